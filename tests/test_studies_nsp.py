"""studies/nsp_ablation.py: what is compared, against what, and that it says so."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from study_runs import a_study, run_tiny

from medlm_utils import clinic, pretraining, runtime, text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core, nsp_ablation

METRICS = {
    "masked_accuracy_unigram",
    "masked_nats_unigram",
    "masked_accuracy_mlm",
    "masked_nats_mlm",
    "masked_accuracy_mlm_nsp",
    "masked_nats_mlm_nsp",
    "masked_accuracy_gain_nsp",
    "next_accuracy",
    "next_accuracy_grammar",
    "next_accuracy_clinic",
    "ceiling_accuracy",
    "accuracy_over_ceiling_none",
    "accuracy_over_ceiling_mlm",
    "accuracy_over_ceiling_mlm_nsp",
    "accuracy_over_ceiling_gain_nsp",
}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def found_in(record):
    return {name: record[name] for name in ("metrics", "series")}


@pytest.mark.slow
class TestTiny:
    def test_the_record_has_its_shape(self, tmp_path):
        started = time.process_time()
        record = run_tiny(nsp_ablation, tmp_path)
        assert time.process_time() - started < 60
        assert set(record["metrics"]) == METRICS
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        plan, series = nsp_ablation.PLANS["tiny"], record["series"]
        assert len(series["pretrained"]) == 2 * plan.seeds
        assert len(series["tuned"]) == 3 * plan.seeds * len(plan.labelled)
        for run in series["pretrained"]:
            steps = [entry["step"] for entry in run["curve"]]
            assert steps == [3, 6] and "weights" not in run
            for measured in (run, *run["curve"]):
                assert ("next_accuracy" in measured) == (run["arm"] == "mlm_nsp")

    def test_the_same_again_and_nothing_twice(self, tmp_path, capsys):
        first = run_tiny(nsp_ablation, tmp_path)
        capsys.readouterr()
        again = run_tiny(nsp_ablation, tmp_path)
        assert "4 of 4 parts are kept" in capsys.readouterr().err
        fresh = run_tiny(nsp_ablation, tmp_path, "--fresh")
        assert found_in(first) == found_in(again) == found_in(fresh)


@pytest.fixture(scope="module")
def material():
    return nsp_ablation.draw(nsp_ablation.PLANS["tiny"])


@pytest.fixture()
def study(tmp_path):
    return a_study(tmp_path, tiny=True)


class TestNotes:
    def test_no_word_is_unknown_and_the_text_is_the_same(self, material):
        for halves in (material.plain, material.watched, material.test):
            both = [*halves.whole, *halves.mixed]
            assert not any((row == text.UNKNOWN).any() for row in both)
            same = halves.is_next.bool()
            for whole, mixed, kept in zip(
                halves.whole, halves.mixed, same, strict=True
            ):
                assert torch.equal(whole, mixed) or not kept
            # What is mixed is the same text: as many words, within chance.
            words = [sum(map(len, rows)) for rows in (halves.whole, halves.mixed)]
            assert words[1] == pytest.approx(words[0], rel=0.1)

    def test_the_two_texts_of_a_row(self, material):
        for row, note in zip(
            material.test.whole, material.test.notes.text, strict=True
        ):
            halves = nsp_ablation.halves_of(material.tokenizer, row)
            assert " ".join(halves) == note and all(halves)

    def test_labelled_notes_depend_on_the_seed_and_fewer_are_the_first(self, material):
        rows, labels = nsp_ablation.labelled(material, 100, 12)
        assert len(rows) == len(labels) == 12
        again, _ = nsp_ablation.labelled(material, 100, 12)
        assert all(map(torch.equal, rows, again))
        other, _ = nsp_ablation.labelled(material, 101, 12)
        assert not all(map(torch.equal, rows, other))

    def test_a_guess_by_frequency(self):
        rows = [torch.tensor([2, 5, 5, 6, 3, 7, 3])]
        batches = pretraining.MaskedBatches(rows, 9, 4, share=1.0)
        found = nsp_ablation.guess(rows, batches)
        # Counts with one added: 5: 3, 6: 2, 7: 2, 4 and 8: 1. Four are hidden.
        expected = -np.log([3 / 9, 3 / 9, 2 / 9, 2 / 9]).mean()
        assert found["loss"] == pytest.approx(expected, rel=1e-6)
        assert found["accuracy"] == 0.5


class TestReader:
    def test_evidence_of_both_halves_is_the_clinics_own(self, material):
        """With what neither half says it makes up the exact posterior."""
        world = material.world
        groups = [f.group for f in world.world.findings]
        prior = np.log(world.prior)[:, None] + np.log(world.severity)
        for note in material.test.notes.text[:30]:
            logs = prior + nsp_ablation.evidence(world, note, 100).sum(axis=0)
            said = {s.finding for s in world.spans(note)}
            names = zip(groups, world.world.findings, strict=True)
            filled = {"examination"} | {g for g, f in names if f.name in said}
            for number, group in enumerate(groups):
                if group not in filled:
                    logs = logs + np.log(world.mention_rates[:, :, number, 0])
            ours = np.exp(logsumexp(logs, axis=1) - logsumexp(logs))
            expected = world.posterior(world.parse([note]))[0]
            np.testing.assert_allclose(ours, expected, atol=1e-9)

    def test_what_stands_in_which_half(self, material):
        note = material.test.notes.text[0]
        world, exam = material.world, note.index("On examination")
        early, late = (
            nsp_ablation.evidence(world, note, end) for end in (exam - 1, len(note))
        )
        assert not late[1].any() and early[1].any()
        np.testing.assert_allclose(early.sum(axis=0), late[0])

    def test_agreement_of_halves_that_name_one_disease(self):
        world = clinic.Clinic("A")
        sure = np.full((2, *world.severity.shape), -50.0)
        sure[:, 3] = 0.0
        # Both are sure of disease 3: 1 / P(disease) times as likely together.
        together = nsp_ablation.agreement(world, sure)
        assert together == pytest.approx(-np.log(world.prior[3]), abs=1e-6)
        sure[1] = np.roll(sure[1], 1, axis=0)
        assert nsp_ablation.agreement(world, sure) < -40
        nothing = np.zeros_like(sure)
        assert nsp_ablation.agreement(world, nothing) == pytest.approx(0)

    def test_halves_of_one_note_fit_and_repeated_groups_do_not(self, material):
        whole = nsp_ablation.shared_evidence(material, material.test.whole)
        assert np.isfinite(whole).all() and whole.mean() > 0.3
        row = material.test.whole[0].tolist()
        first = row[: row.index(text.END) + 1]
        twice = torch.tensor([*first, *first[1:]])
        ratio = nsp_ablation.shared_evidence(material, [twice, twice])
        assert (ratio == -np.inf).all()

    def test_halves_of_one_note_that_is_cut_elsewhere_do_not_fit(self, material):
        rows = []
        for note in material.test.notes.text[:5]:
            first, second = note.split(". ", 1)
            halves = (material.tokenizer.encode(part) for part in (first + ".", second))
            early, late = halves
            rows.append(torch.tensor([text.START, *early, text.END, *late, text.END]))
        ratio = nsp_ablation.shared_evidence(material, rows)
        assert (ratio == -np.inf).all()

    def test_a_reader_never_misses_and_weighing_diseases_helps(self, material):
        notes = material.world.draw(400, 5)
        halves = nsp_ablation.cut(material.tokenizer, notes)
        larger = dataclasses.replace(material, plain=halves, test=halves)
        ratio = nsp_ablation.shared_evidence(larger, halves.mixed)
        is_next = halves.is_next.numpy() == 1
        assert np.isfinite(ratio[is_next]).all()
        found = nsp_ablation.readers(larger)
        fits = np.isfinite(ratio[~is_next]).mean()
        assert found["possible"] == pytest.approx(fits)
        right = is_next.mean() + (1 - is_next.mean()) * (1 - fits)
        assert found["grammar"]["value"] == pytest.approx(right)
        assert found["clinic"]["value"] > found["grammar"]["value"]

    def test_a_text_of_another_clinic(self, material):
        with pytest.raises(MedlmError, match="no note of this clinic"):
            nsp_ablation.evidence(material.world, "No note. At all.", 3)


class TestTraining:
    def test_all_arms_begin_with_the_same_weights(self, study, material, monkeypatch):
        plan, begun = nsp_ablation.PLANS["tiny"], []
        evaluated = {"accuracy": 0.0, "loss": 0.0, "next_accuracy": 0.0}
        monkeypatch.setattr(nsp_ablation, "score", lambda *_: evaluated)

        def fit(self, model, batch_at, **settings):
            begun.append((model, batch_at(0), settings["loss"]))
            return history()

        monkeypatch.setattr(core.Study, "fit", fit)
        monkeypatch.setattr(core.Study, "file", lambda s, end: s.work / f"x{end}")
        for arm in ("mlm", "mlm_nsp"):
            nsp_ablation.pretrain(study, plan, material, arm, 1)
        (words, plain, one), (both, pairs, two) = begun
        new = nsp_ablation.new_encoder(plan, material, 1).state_dict()
        for model in (words, both):
            weights = model.encoder.state_dict()
            assert all(torch.equal(new[name], weights[name]) for name in new)
        assert (len(plain), one) == (4, pretraining.masked_loss)
        assert (len(pairs), two) == (5, pretraining.pair_loss)
        assert words.pair_head is None and both.pair_head is not None

    def test_both_arms_are_asked_for_the_same_words(self, material):
        asked = []

        class Deaf(pretraining.MaskedLM):
            def forward(self, input_ids, *rest):
                asked[-1].append(input_ids)
                return super().forward(input_ids, *rest)

        for pairs in (False, True):
            asked.append([])
            encoder = nsp_ablation.new_encoder(nsp_ablation.PLANS["tiny"], material, 0)
            found = nsp_ablation.score(Deaf(encoder, pairs), material, material.test)
            assert ("next_accuracy" in found) == pairs
        count = len(asked[0])
        assert all(map(torch.equal, asked[0], asked[1][:count]))
        assert len(asked[1]) == 2 * count

    def test_the_kept_encoder_is_what_is_fine_tuned(self, study, material, monkeypatch):
        plan, started = nsp_ablation.PLANS["tiny"], []

        def finetune(model, rows, labels, val_rows, val_labels, settings, **more):
            started.append((model.encoder.words.weight.detach().clone(), len(rows)))
            raise KeyboardInterrupt

        part = core.Part("p", {}, 1.0, lambda: made(study, plan, material))
        (pretrained,) = study.run([part])
        monkeypatch.setattr(nsp_ablation.bert, "finetune", finetune)
        monkeypatch.setattr(core.Study, "file", lambda s, end: s.work / f"y{end}")
        for weights in (pretrained["weights"], None):
            with pytest.raises(KeyboardInterrupt):
                nsp_ablation.finetune(study, plan, material, "mlm", 0, 16, weights)
        new = nsp_ablation.new_encoder(plan, material, 0).words.weight
        assert torch.equal(started[1][0], new) and not torch.equal(started[0][0], new)
        assert [count for _, count in started] == [16, 16]


def made(study, plan, material):
    return nsp_ablation.pretrain(study, plan, material, "mlm", 0)


def history():
    return training.History(evaluations=[(1, 0.0)], measures=[{"loss": 0.0}])


def test_gains_are_paired_by_seed():
    plan = nsp_ablation.PLANS["tiny"]
    most = max(plan.labelled)
    pretrained, tuned = [], []
    for seed in (1, 0):  # in any order
        for arm, more in (("mlm", 0.0), ("mlm_nsp", 0.01)):
            score = {"accuracy": 0.5 + 0.2 * seed + more, "loss": 1.0}
            pretrained.append({"arm": arm, "seed": seed, "weights": "w", **score})
            pretrained[-1]["next_accuracy"] = 0.7
        for arm, more in (("none", 0.0), ("mlm", 0.3), ("mlm_nsp", 0.25)):
            for notes in plan.labelled:
                share = 0.3 + 0.3 * seed + more - (notes != most)
                run = {"arm": arm, "seed": seed, "notes": notes}
                tuned.append({**run, "accuracy_over_ceiling": share})
    # The seeds of the two come in different orders.
    pretrained[1], pretrained[3] = pretrained[3], pretrained[1]
    known = {"grammar": 0.8, "clinic": 0.9, "ceiling": 0.8, "possible": 0.2}
    known["guess"] = {"accuracy": 0.1, "loss": 4.0}
    metrics, _ = nsp_ablation.summary(plan, pretrained, tuned, known)
    assert set(metrics) == METRICS
    gain = metrics["accuracy_over_ceiling_gain_nsp"]
    assert [gain[k] for k in ("value", "low", "high")] == pytest.approx([-0.05] * 3)
    gain = metrics["masked_accuracy_gain_nsp"]
    assert [gain[k] for k in ("value", "low", "high")] == pytest.approx([0.01] * 3)
    assert metrics["accuracy_over_ceiling_mlm"]["value"] == pytest.approx(0.75)
