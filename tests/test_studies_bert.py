"""Chapter 3's studies on notes: runs as in the chapter, honest spreads, fair races."""

import dataclasses
import importlib.util
import itertools
import json
import time

import numpy as np
import pytest
import torch
from study_runs import a_study, run_tiny, tracked
from test_bert import classifier, labelled, some_rows, weights_of

from medlm_utils import bert, clinic, metrics, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import (
    bert_seeds,
    bert_speed,
    bert_trainer_agreement,
    clinic_runs,
    core,
)

STUDIES = {
    "bert_seeds": bert_seeds,
    "bert_trainer_agreement": bert_trainer_agreement,
    "bert_speed": bert_speed,
}
METRICS = {
    "bert_seeds": {
        "accuracy_over_ceiling",
        "accuracy",
        "accuracy_of_new_draws",
        "ceiling_accuracy",
        "excess_log_loss",
        "held_out_words_accuracy",
        "held_out_words_ceiling",
        "sd_over_seeds",
        "sd_over_draws",
        "half_width_by_seed",
        "half_width_by_patient",
        "disagreement",
        "ensemble_accuracy",
        "ensemble_gain",
        "ensemble_excess_log_loss",
    },
    "bert_trainer_agreement": {
        "accuracy_ours",
        "accuracy_trainer",
        "accuracy_difference",
        "ceiling_accuracy",
        "sd_over_seeds",
        "is_within_seed_spread",
        "same_batches_weights_apart",
        "same_batches_weights_moved",
        "same_batches_logits_apart",
    },
    "bert_speed": {
        "notes_per_second_ours",
        "notes_per_second_hf_trainer",
        "notes_per_second_hf_trainer_defaults",
        "notes_per_second_padded",
        "asked_per_second_ours",
        "asked_per_second_pipeline",
        "ratio_vs_fastest",
        "ratio_vs_hf_trainer_defaults",
        "padding_cost",
        "padding_cost_foreseen",
        "abstracts_per_second_ours",
        "abstracts_per_second_padded",
        "padding_cost_abstracts",
        "padding_cost_abstracts_foreseen",
        "asked_ratio_vs_pipeline",
        "share_of_matrix_rate",
    },
}
HAS_TRAINER = importlib.util.find_spec("accelerate") is not None
needs_trainer = pytest.mark.skipif(
    not HAS_TRAINER, reason="the HF Trainer needs accelerate, which is not installed"
)
EACH = [
    "bert_seeds",
    pytest.param("bert_trainer_agreement", marks=needs_trainer),
    pytest.param("bert_speed", marks=needs_trainer),
]
HOME = clinic.Clinic("A")


pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture
def study(tmp_path):
    return a_study(tmp_path)


def timeless(record):
    """Metrics and series of a record, without seconds."""
    runs = [{**run, "seconds": 0} for run in record["series"]["runs"]]
    return record["metrics"], record["series"] | {"runs": runs}


@pytest.mark.slow
class TestTiny:
    @pytest.mark.parametrize("name", EACH)
    def test_the_record_has_its_shape(self, name, tmp_path):
        before, started = tracked(), time.process_time()
        record = run_tiny(STUDIES[name], tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        assert record["command"] == f"python -m medlm_utils.studies.{name} --tiny"
        assert set(record["metrics"]) == METRICS[name]
        for metric in record["metrics"].values():
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]

    @pytest.mark.parametrize("name", EACH[:2])
    def test_the_same_again(self, name, tmp_path, capsys):
        first = run_tiny(STUDIES[name], tmp_path)
        again = run_tiny(STUDIES[name], tmp_path)
        assert "are kept" in capsys.readouterr().err
        assert again["series"] == first["series"]  # kept: the seconds, too
        anew = run_tiny(STUDIES[name], tmp_path / "elsewhere")
        assert timeless(anew) == timeless(first)
        if name == "bert_seeds":  # the first run of both arms is made once
            runs = [(run["draw"], run["seed"]) for run in first["series"]["runs"]]
            assert runs == [(1, 0), (1, 1), (101, 0)]

    def test_a_stopped_part_goes_on_from_its_checkpoint(self, tmp_path, monkeypatch):
        study, found = a_study(tmp_path, tiny=True), []
        sizes = clinic_runs.sizes_of(study)
        settings = clinic_runs.settings_of(study, batch=4)
        at, seen = bert.LabelledBatches.at, []

        def part():
            return core.Part(
                "one",
                clinic_runs.identity(sizes, settings),
                1,
                lambda: clinic_runs.train_and_measure(study, sizes, settings),
            )

        def stop(self, step):
            seen.append(step)
            if step == 3:
                raise KeyboardInterrupt
            return at(self, step)

        monkeypatch.setattr(clinic_runs, "CHECKPOINT_EVERY", 2)
        monkeypatch.setattr(bert.LabelledBatches, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            study.run([part()])
        monkeypatch.setattr(
            bert.LabelledBatches, "at", lambda s, n: seen.append(n) or at(s, n)
        )
        found += study.run([part()])
        assert seen[:4] == [0, 1, 2, 3] and seen[4] == 2
        found += a_study(tmp_path / "whole", tiny=True).run([part()])
        for result in found:
            result["seconds"] = 0
        assert found[0] == found[1]


# What the studies share ---------------------------------------------------------------


class Words:
    """A tokenizer that numbers words by their letters."""

    model_max_length = 512

    def __call__(self, texts, max_length=512, **_):
        rows = [[1, *(2 + sum(map(ord, w)) % 50 for w in t.split())] for t in texts]
        return {"input_ids": [row[:max_length] for row in rows]}


SIZES = clinic_runs.Sizes(40, 20, longest=30)


class TestRuns:
    def test_notes_settings_and_split_are_those_of_the_chapter(self, study, root):
        profile = study.profile
        sizes, settings = clinic_runs.sizes_of(study), clinic_runs.settings_of(study)
        assert sizes.patients == profile.bert_patients
        assert sizes.test_patients == profile.bert_test_patients
        assert settings == bert.FineTuning(
            epochs=profile.bert_epochs,
            batch=profile.bert_batch,
            looks=profile.bert_looks,
            encoder_rate=2e-4,
            head_rate=2e-3,
            dropout=profile.bert_dropout,
            seed=0,
            precision=runtime.fast_precision(profile),
        )
        cells = json.loads((root / "notebooks/03_bert_finetuning.ipynb").read_text())
        code = " ".join("".join(cell["source"]) for cell in cells["cells"])
        for line in [
            "hospital.draw(patients=profile.bert_patients, seed=1)",
            "clinic.split_by_patient(notes, [0.9, 0.1], seed=1)",
            "patients=profile.bert_test_patients, seed=2,",
            "encoder_rate=2e-4, head_rate=2e-3",
            "LogisticRegression(C=3, max_iter=2000)",
        ]:
            assert line in code
        assert (clinic_runs.DRAW, clinic_runs.TEST_SEED) == (1, 2)
        assert clinic_runs.SHARES == (0.9, 0.1)

    def test_changes_of_the_settings(self, study):
        changed = clinic_runs.settings_of(study, seed=3, epochs=9)
        assert (changed.seed, changed.epochs) == (3, 9)

    def test_a_draw_changes_the_training_notes_alone(self):
        first, other = (clinic_runs.material(Words(), SIZES, draw) for draw in (1, 101))
        for part in ("test", "other_words"):
            same = [getattr(one, part).notes.text for one in (first, other)]
            assert list(same[0]) == list(same[1])
        assert set(first.train.notes.text).isdisjoint(other.train.notes.text)
        for one in (first, other):
            assert not set(one.train.notes.patient) & set(one.val.notes.patient)
        assert max(len(row) for row in first.train.rows) == 30

    def test_it_has_the_notes_of_the_chapter(self):
        found = clinic_runs.material(Words(), SIZES)
        drawn = HOME.draw(40, seed=1)
        train, val = clinic.split_by_patient(drawn, [0.9, 0.1], seed=1)
        assert list(found.train.notes.text) == list(train.text)
        assert list(found.val.notes.text) == list(val.text)
        assert list(found.test.notes.text) == list(HOME.draw(20, seed=2).text)

    @pytest.mark.parametrize("draw", [2, 3])
    def test_the_seed_of_test_notes_is_refused(self, draw):
        with pytest.raises(MedlmError, match=f"draw is {draw}, the seed of test notes"):
            clinic_runs.material(Words(), SIZES, draw)

    def test_labels_and_posterior_have_the_order_of_names(self):
        notes = HOME.draw(50, seed=9)
        found, names = clinic_runs.labelled(HOME, notes), clinic_runs.labels()
        assert list(names) == sorted(HOME.diseases) != list(HOME.diseases)
        said = [names[number] for number in found.label]
        assert said == [HOME.diseases[number] for number in notes.label]
        exact = HOME.posterior(notes)
        for column, name in enumerate(names):
            expected = exact[:, HOME.diseases.index(name)]
            np.testing.assert_array_equal(found.exact[:, column], expected)
        assert found.ceiling == pytest.approx(exact.max(axis=1).mean())
        assert found.rows == []

    def test_scores_of_a_perfect_reader_and_of_a_lazy_one(self):
        notes = clinic_runs.labelled(HOME, HOME.draw(60, seed=9))
        best = clinic_runs.scores(np.log(notes.exact), notes)
        assert best["excess_log_loss"]["value"] == pytest.approx(0, abs=1e-9)
        right = (notes.exact.argmax(axis=1) == notes.label).mean()
        assert best["accuracy"]["value"] == pytest.approx(right)
        assert best["accuracy"]["n"] == 60
        assert best["accuracy_over_ceiling"] == pytest.approx(right / notes.ceiling)
        lazy = clinic_runs.scores(np.zeros((len(notes.notes), 12)), notes)
        floor = -np.log(notes.exact[np.arange(len(notes.label)), notes.label]).mean()
        lost = np.log(12) - floor
        assert lazy["excess_log_loss"]["value"] == pytest.approx(lost)

    def test_the_temperature_is_that_of_validation_notes(self):
        model, (rows, labels) = classifier(), labelled(60, 1)
        val = clinic_runs.Labelled(None, rows, np.array(labels), np.empty(0))
        clinic_runs.calibrate(model, val, "float32")
        logits = bert.predict_logits(model, rows)
        assert model.temperature == metrics.fit_temperature(logits, val.label) != 1
        found = clinic_runs.scaled_logits(model, rows, "float32")
        np.testing.assert_allclose(found, logits / model.temperature)
        right = dataclasses.replace(val, label=logits.argmax(axis=1))
        clinic_runs.calibrate(model, right, "float32")  # the surer the better
        assert model.temperature == 1


# Seeds --------------------------------------------------------------------------------


class TestSeeds:
    def test_the_interval_of_the_spread_covers_it(self):
        rng = np.random.default_rng(0)
        spans = [bert_seeds.spread(row) for row in rng.normal(0, 2, size=(1000, 5))]
        inside = [span["low"] <= 2 <= span["high"] for span in spans]
        assert 0.93 < np.mean(inside) < 0.97
        known = bert_seeds.spread([1.0, 2.0, 3.0, 4.0, 5.0])
        assert known["value"] == pytest.approx(2.5**0.5)
        assert known["low"] / known["value"] == pytest.approx(0.599, abs=0.001)
        assert known["high"] / known["value"] == pytest.approx(2.874, abs=0.001)

    def test_one_run_has_no_spread(self):
        with pytest.raises(ValueError, match="1 values; expected 2 or more"):
            bert_seeds.spread([0.5])

    def test_disagreement_counts_pairs(self):
        chosen = np.random.default_rng(0).integers(3, size=(5, 40))
        found = bert_seeds.disagreement(chosen)
        for note in range(40):
            pairs = list(itertools.combinations(chosen[:, note], 2))
            assert found[note] == pytest.approx(np.mean([a != b for a, b in pairs]))
        assert not bert_seeds.disagreement(np.tile(chosen[0], (3, 1))).any()

    def test_the_ensemble_is_the_mean_of_the_probabilities(self):
        test = clinic_runs.labelled(HOME, HOME.draw(60, seed=9))
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(4, *test.exact.shape))
        p = metrics.softmax(np.log(test.exact + 1e-3) + noise)
        found = bert_seeds.together(p, test)
        mean = p.mean(axis=0)
        right = metrics.accuracy(test.label, mean.argmax(axis=1))
        alone = [metrics.accuracy(test.label, one.argmax(axis=1)) for one in p]
        excess = metrics.excess_log_loss(test.label, mean, test.exact)
        value = {name: metric["value"] for name, metric in found.items()}
        assert value["ensemble_accuracy"] == pytest.approx(right)
        assert value["ensemble_gain"] == pytest.approx(right - np.mean(alone))
        assert value["ensemble_excess_log_loss"] == pytest.approx(excess)
        assert 0 < value["disagreement"] < 1

    @pytest.mark.parametrize("size", bert_seeds.PLANS)
    def test_no_draw_is_one_of_the_test(self, size):
        plan = bert_seeds.PLANS[size]
        tests = {clinic_runs.TEST_SEED, clinic_runs.OTHER_WORDS_SEED}
        assert not set(plan.draws) & tests
        assert plan.draws[0] == clinic_runs.DRAW and plan.seeds[0] == 0


# The Trainer --------------------------------------------------------------------------


def material_of(train, val):
    """Rows and labels as the material of a run; no notes are needed to train."""

    def of(rows, labels):
        texts = np.array([str(n) for n in range(len(rows))], dtype=object)
        fields = {field.name: texts for field in dataclasses.fields(clinic.Notes)}
        notes = clinic.Notes(**fields)
        return clinic_runs.Labelled(notes, rows, np.array(labels), np.empty(len(rows)))

    test = of(*val)
    return clinic_runs.Material(("a", "b", "c"), of(*train), test, test, test)


FAST = bert.FineTuning(
    epochs=4,
    batch=8,
    encoder_rate=3e-3,
    head_rate=1e-2,
    frozen_words=False,
    dropout=0.0,
)


@needs_trainer
@pytest.mark.slow
class TestTrainer:
    def test_it_learns_and_keeps_the_best_epoch(self):
        """Labels that follow from nothing: what is learned by heart only harms."""
        val = (some_rows(30, 2), np.arange(30) % 3)
        model = classifier()
        notes = material_of((some_rows(60, 1), np.arange(60) % 3), val)
        settings = dataclasses.replace(FAST, epochs=8)
        losses = bert_trainer_agreement.train_with_trainer(model, notes, settings)
        assert len(losses) == 8 and np.argmin(losses) < 7
        p = metrics.softmax(bert.predict_logits(model, val[0]))
        assert metrics.log_loss(val[1], p) == pytest.approx(min(losses), rel=1e-5)
        assert not model.training
        easy, learned = material_of(labelled(160, 1), labelled(30, 2)), classifier()
        losses = bert_trainer_agreement.train_with_trainer(
            learned, easy, dataclasses.replace(FAST, epochs=12)
        )
        assert min(losses) < 0.4

    def test_it_depends_on_its_seed_alone(self):
        notes = material_of(labelled(40, 1), labelled(10, 2))
        found = []
        for seed, noise in [(0, 1), (0, 2), (1, 1)]:
            model = classifier()
            torch.manual_seed(noise)
            settings = dataclasses.replace(FAST, epochs=1, dropout=0.2, seed=seed)
            bert_trainer_agreement.train_with_trainer(model, notes, settings)
            found.append(weights_of(model)["head.weight"])
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_the_same_batches_end_in_the_same_weights(self):
        notes = material_of(labelled(160, 1), labelled(10, 2))
        found = bert_trainer_agreement.same_batches(classifier(), notes, FAST, 12)
        assert found["steps"] == 12
        assert found["apart"] < 1e-4 < 1e-2 < found["moved"]
        assert found["logits_apart"] < 1e-3

    def test_other_batches_do_not(self, monkeypatch):
        train = bert_trainer_agreement.train_with_trainer

        def turned(model, notes, settings, batches):
            return train(model, notes, settings, batches[::-1])

        monkeypatch.setattr(bert_trainer_agreement, "train_with_trainer", turned)
        notes = material_of(labelled(160, 1), labelled(10, 2))
        found = bert_trainer_agreement.same_batches(classifier(), notes, FAST, 12)
        assert found["apart"] > 1e-3


class TestAgreement:
    def test_the_largest_difference_leaves_out_biases_of_keys(self):
        model, other = classifier(), classifier()
        assert bert_trainer_agreement.largest_difference(model, other) == 0
        with torch.no_grad():
            for name, weight in other.named_parameters():
                if name.endswith("key.bias"):
                    weight += 1
            other.head.weight[1, 2] += 0.25
        found = bert_trainer_agreement.largest_difference(model, other)
        assert found == pytest.approx(0.25)

    def test_the_pooled_deviation(self):
        groups = np.random.default_rng(0).normal(size=(2, 3))
        inside = groups - groups.mean(axis=1, keepdims=True)
        expected = np.sqrt((inside**2).sum() / 4)
        assert bert_trainer_agreement.pooled_deviation(*groups) == pytest.approx(
            expected
        )

    @pytest.mark.parametrize(("shift", "within"), [(0.0, 1), (0.015, 1), (0.03, 0)])
    def test_what_is_within_the_spread(self, shift, within):
        ours = [0.70, 0.72, 0.74]  # with a deviation of 0.02
        same = {"apart": 0.0, "moved": 1.0, "logits_apart": 0.0, "steps": 2}
        accuracy = {"ours": ours, "trainer": [value - shift for value in ours]}
        found = bert_trainer_agreement._metrics(accuracy, same, 0.9)
        assert found["sd_over_seeds"]["value"] == pytest.approx(0.02)
        assert found["accuracy_difference"]["value"] == pytest.approx(shift)
        assert found["is_within_seed_spread"] == within

    @pytest.mark.parametrize("name", ["bert_trainer_agreement", "bert_speed"])
    def test_without_accelerate_one_clear_error(self, name, study, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MedlmError, match="pip install accelerate"):
            STUDIES[name].run(study)


# Speed --------------------------------------------------------------------------------


class TestSpeed:
    def test_it_times_the_batches_of_the_chapter(self):
        for name in ("cpu", "gpu"):
            size = bert_speed.SIZES[name]
            assert size.batch == runtime.PROFILES[name].bert_batch
            assert size.longest == bert.FineTuning().longest and size.padded_to == 512

    def test_padding_changes_no_answer(self):
        model, rows = classifier(), some_rows(5)
        ids, mask = bert_speed.padded(rows, 16)
        assert ids.shape == mask.shape == (5, 16)
        with torch.no_grad():
            found = model(ids, mask)
        np.testing.assert_allclose(found, bert.predict_logits(model, rows), atol=1e-5)

    def test_rows_for_the_collator(self):
        rows, labels = labelled(4, 1)
        notes = bert_speed.Notes(["x"] * 4, rows, np.array(labels))
        found = bert_speed.trainer_rows(notes.first(3))
        assert [one["labels"] for one in found] == labels[:3]
        assert found[2]["input_ids"] == rows[2].tolist()
        assert found[2]["attention_mask"] == [1] * len(rows[2])

    def test_operations_against_the_counter_of_torch(self):
        from torch.utils.flop_counter import FlopCounterMode

        model = classifier()
        model.encoder.set_attn_implementation("eager")  # products that are counted
        model.freeze(words=True)
        row = some_rows(1)[0]
        with FlopCounterMode(display=False) as counter:
            model(*bert.rectangle([row, row])).sum().backward()
        head = 6 * 2 * model.head.weight.numel()
        found = bert_speed.flops_of_step(model, [len(row), len(row)])
        # The pooler, if there is one, is no block and gets no vector.
        assert counter.get_total_flops() == pytest.approx(found + head)

    def test_a_rate_is_measured(self):
        small, large = (bert_speed.matrix_rate(n, "float32", "cpu") for n in (8, 256))
        assert 1e6 < small < large < 1e13

    def test_contestants_take_turns(self):
        names = bert_speed.CONTESTANTS
        orders = [bert_speed._in_turn(names, repeat) for repeat in range(4)]
        assert {order[0] for order in orders} == set(names)
        assert all(set(order) == set(names) for order in orders)

    def test_the_fastest_peer_counts_and_padding_is_no_peer(self):
        speeds = {"ours": 20, "hf_trainer": 16, "hf_trainer_defaults": 10, "padded": 40}
        row = {
            "notes_per_second": {name: [float(v)] * 6 for name, v in speeds.items()},
            "asked_per_second": {"ours": [30.0] * 6, "pipeline": [15.0] * 6},
            "abstracts_per_second": {"ours": [9.0] * 6, "padded": [4.0] * 6},
            "matrix_rate": [1e12] * 6,
            "flops_per_note": 1e10,
            "padded_to": 512,
            "mean_tokens": 128.0,
            "mean_tokens_abstracts": 256.0,
        }
        found = bert_speed._metrics(row)
        assert set(found) == METRICS["bert_speed"]
        assert found["ratio_vs_fastest"]["value"] == 20 / 16
        assert found["ratio_vs_hf_trainer_defaults"]["value"] == 2
        assert found["padding_cost"]["value"] == 0.5
        assert found["padding_cost_foreseen"] == 4
        assert found["padding_cost_abstracts"]["value"] == 2.25
        assert found["padding_cost_abstracts_foreseen"] == 2
        assert found["asked_ratio_vs_pipeline"]["value"] == 2
        assert found["share_of_matrix_rate"]["value"] == pytest.approx(20)

    @needs_trainer
    def test_the_option_for_batches_by_length_is_one_of_this_version(self):
        import transformers

        given = bert_speed.by_length_option(True)
        assert set(given) <= set(transformers.TrainingArguments.__dataclass_fields__)
        assert bert_speed.by_length_option(False) == {}


@pytest.fixture(scope="module")
def table():
    size = dataclasses.replace(bert_speed.SIZES["tiny"], batch=4, steps=3)
    return bert_speed.Table(size, runtime.PROFILES["cpu"], tiny=True)


@needs_trainer
@pytest.mark.slow
class TestContestants:
    def test_the_pipeline_gives_the_probabilities_of_its_model(self, table):
        model, tokenizer = table.theirs[bert_speed.TRAINER].eval(), table.ours.tokenizer
        size = dataclasses.replace(table.size, longest=64)
        profile = dataclasses.replace(table.profile, precision="float32")
        texts = table.asked[:3]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clinic_runs, "precision_of", lambda *_: "float32")
            asked = (model, tokenizer, texts, size, profile)
            found = bert_speed.asked_of_pipeline(*asked)
            ours = bert_speed.asked_of_ours(table.ours, texts, size, profile)
        for text, row in zip(texts, found, strict=True):
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            with torch.no_grad():
                expected = model(**given).logits.softmax(-1)[0]
            np.testing.assert_allclose(row, expected, atol=1e-5)
        rows = bert.encode(tokenizer, texts, 64)
        expected = metrics.softmax(bert.predict_logits(table.ours, rows))
        np.testing.assert_allclose(ours, expected, atol=1e-5)

    @pytest.mark.parametrize("name", bert_speed.CONTESTANTS)
    def test_each_trains_what_it_says(self, name, table):
        def state(model):
            return {n: p.detach().clone() for n, p in model.named_parameters()}

        seen = []
        model = table.model(name)
        hook = model.register_forward_pre_hook(
            lambda _, args, given: seen.append((args, given)), with_kwargs=True
        )
        before = state(model)
        assert table.notes_per_second(name) > 0
        hook.remove()
        size = table.size
        timed = size.padded_steps if name == bert_speed.PADDED else size.steps
        assert len(seen) == size.warm_up + timed
        shapes = [
            (args[0] if args else given["input_ids"]).shape for args, given in seen
        ]
        is_padded = all(shape[1] == size.padded_to for shape in shapes)
        assert is_padded == (name == bert_speed.PADDED)
        words = [n for n in before if n.endswith("word_embeddings.weight")]
        changed = {n for n, p in state(model).items() if not torch.equal(p, before[n])}
        assert bool(set(words) & changed) == (name == bert_speed.DEFAULTS)
        assert any("layer.0" in n for n in changed)
        shares = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert (shares == {0.0}) == (name != bert_speed.DEFAULTS)

    @pytest.mark.parametrize("name", [bert_speed.OURS, bert_speed.PADDED])
    def test_abstracts_are_padded_as_notes_are(self, name, table):
        seen, size = [], table.size
        model = table.model(name)
        hook = model.register_forward_pre_hook(
            lambda _, args, given: seen.append(args[0] if args else given["input_ids"]),
            with_kwargs=True,
        )
        assert table.abstracts_per_second(name) > 0
        hook.remove()
        is_ours = name == bert_speed.OURS
        timed = size.abstract_steps if is_ours else size.padded_steps
        assert len(seen) == size.warm_up + timed
        read = {tuple(row.tolist()) for row in table.abstracts.rows}
        for ids in seen:
            rows = [tuple(n for n in row if n) for row in ids.tolist()]
            assert set(rows) <= read
            wanted = max(map(len, rows)) if is_ours else size.padded_to
            assert ids.shape[1] == wanted

    def test_batches_by_length_have_less_padding(self, table):
        rng = np.random.default_rng(0)
        rows = [torch.full((n,), 7) for n in rng.integers(3, 60, size=96)]
        notes = bert_speed.Notes([""] * 96, rows, rng.integers(12, size=96))
        size = dataclasses.replace(table.size, batch=4, warm_up=1, steps=23)
        sizes = {}
        for by_length in (True, False):
            seen = sizes[by_length] = []
            model = Counting(seen)
            bert_speed.seconds_in_trainer(
                model,
                notes,
                size,
                table.profile,
                tokenizer=table.ours.tokenizer,
                by_length=by_length,
            )
        assert sum(sizes[True]) < 0.8 * sum(sizes[False])


class Counting(torch.nn.Module):
    """Notes the tokens of each batch, padding included; learns a number."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.weight = seen, torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask, labels):
        self.seen.append(input_ids.numel())
        return {"loss": self.weight**2, "logits": self.weight.expand(len(labels), 12)}
