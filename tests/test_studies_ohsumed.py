"""The study ohsumed: its corpus, its choices, its training, and the test set last."""

import dataclasses
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs
from study_runs import a_study, run_tiny, tracked
from test_studies import without_times

from medlm_utils import bert, data, metrics, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core, ohsumed

METRICS = {
    "test_accuracy",
    "macro_f1",
    "validation_accuracy",
    "majority_accuracy",
    "majority_macro_f1",
    "tfidf_accuracy",
    "tfidf_macro_f1",
    "frozen_accuracy",
    "frozen_macro_f1",
    "encoder_rate",
    "epochs",
    "parameters",
    "training_hours",
}
INDEX = "a/1\ttest\tC02\na/2\ttraining\tC01\na/3\ttraining\tC02\n"
CORPUS = "Third. \nFirst one. \nSecond\x85one. "


pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture()
def task(tmp_path):
    """A tiny task whose study makes its parts in a folder of the test."""
    study = a_study(tmp_path, "ohsumed", tiny=True)
    corpus = ohsumed.read_corpus(tiny=True)
    return ohsumed.Task(study, ohsumed.PLANS["tiny"], corpus, "float32")


def small_model(labels):
    """A classifier with two small blocks that reads MiniLM's tokens."""
    from transformers import BertConfig

    tokenizer = bert.tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(1)
    return bert.Classifier.from_config(config, labels, tokenizer, longest=24)


def in_a_part(study, make):
    """What `make` returns as a part of a study."""
    return study.run([core.Part("part", {}, 1.0, make)])[0]


class TestCorpus:
    def test_one_split_in_order(self):
        texts, classes = ohsumed.parse(INDEX, CORPUS, "train")
        assert texts == ["First one.", "Second\x85one."]
        assert classes == ["C01", "C02"]
        assert ohsumed.parse(INDEX, CORPUS, "test") == (["Third."], ["C02"])

    @pytest.mark.parametrize(
        ("index", "corpus"),
        [(INDEX, CORPUS + "\nFourth."), (INDEX.replace("\tC01", ""), CORPUS)],
    )
    def test_lines_that_do_not_belong_together(self, index, corpus):
        with pytest.raises(MedlmError, match="medlm data fetch ohsumed"):
            ohsumed.parse(index, corpus, "train")

    def test_other_counts_are_refused(self, tmp_path):
        (tmp_path / "index.txt").write_text(INDEX, encoding="utf-8")
        (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
        with pytest.raises(MedlmError, match="2 abstracts for train; expected 3357"):
            ohsumed._read("train", tmp_path)

    def test_other_classes_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data, "fetch", lambda name: tmp_path)
        monkeypatch.setattr(ohsumed, "_read", lambda *a: (["x", "y"], ["C01", "C99"]))
        with pytest.raises(MedlmError, match="the classes C01, C99; expected C01, C02"):
            ohsumed.read_corpus()

    def test_a_class_of_the_test_set_alone_is_refused(self):
        with pytest.raises(MedlmError, match="the class C03; expected one of C01, C02"):
            ohsumed._numbered(["x"], ["C03"], ["C01", "C02"])

    def test_the_real_files_have_the_published_counts(self):
        if not data.verify("ohsumed", hashes=False).complete:
            pytest.skip("OHSUMED is not here: `medlm data fetch ohsumed`")
        corpus = ohsumed.read_corpus()
        asked = corpus.test()
        assert (len(corpus.train), len(asked)) == (3357, 4043)
        both = np.bincount([*corpus.train.label, *asked.label])
        assert len(both) == 23 and both[3] == 1030 and both[21] == 19
        assert not set(corpus.train.texts) & set(asked.texts)

    def test_the_stand_in_has_every_class_in_training(self):
        corpus = ohsumed.read_corpus(tiny=True)
        assert set(corpus.train.label) == set(range(len(corpus.labels)))
        assert len(corpus.test()) > 5


class TestChoices:
    def test_every_class_gives_its_share(self):
        label = np.repeat([0, 1, 2], [200, 40, 3])
        chosen = ohsumed.held_out(label, 0.15, seed=0)
        assert np.bincount(label[chosen], minlength=3).tolist() == [30, 6, 0]
        assert np.array_equal(chosen, ohsumed.held_out(label, 0.15, seed=0))
        assert not np.array_equal(chosen, ohsumed.held_out(label, 0.15, seed=1))

    def test_no_abstract_is_on_both_sides(self, task):
        known, asked = task.parts()
        both = sorted([*known.texts, *asked.texts])
        assert len(asked) and both == sorted(task.corpus.train.texts)

    def test_accuracy_chooses_then_the_loss_then_the_first(self):
        found = [(0.7, 1.0), (0.8, 1.2), (0.8, 1.1), (0.8, 1.1), (0.1, 0.1)]
        found = [{"accuracy": a, "loss": n} for a, n in found]
        assert ohsumed.best_of(found) == 2

    def test_what_validation_measures(self):
        rng = np.random.default_rng(0)
        label, logits = rng.integers(0, 3, 50), rng.normal(size=(50, 3))
        got, chosen = ohsumed.measured(label, logits), logits.argmax(1)
        shares = torch.tensor(logits).softmax(1).numpy()
        assert got["loss"] == pytest.approx(theirs.log_loss(label, shares))
        assert got["accuracy"] == theirs.accuracy_score(label, chosen)
        expected = theirs.f1_score(label, chosen, average="macro")
        assert got["macro_f1"] == pytest.approx(expected)

    def test_scores_of_the_test(self):
        label, said = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
        got = ohsumed.score(label, said, classes=4)
        wilson = metrics.wilson(4, 6)
        assert got["accuracy"] == {
            "value": 4 / 6,
            "low": wilson.low,
            "high": wilson.high,
            "n": 6,
        }
        each = theirs.f1_score(label, said, average=None)
        assert got["f1"][:3] == pytest.approx(list(each)) and got["f1"][3] is None
        assert got["macro_f1"] == pytest.approx(each.mean())


class TestBaselines:
    @pytest.fixture()
    def vectors(self, monkeypatch):
        """In place of the frozen encoder: one number, the length of the text."""

        def lengths(task, known, asked):
            return [
                np.array([[len(one) / 100] for one in part.texts])
                for part in (known, asked)
            ]

        monkeypatch.setattr(ohsumed, "frozen_vectors", lengths)

    def test_words_come_from_the_known_texts_alone(self):
        known = ohsumed.Abstracts(np.array(["a fever", "no fever"], object), [0, 1])
        asked = ohsumed.Abstracts(np.array(["fever of cows"], object), [0])
        first, second = ohsumed.tfidf_vectors(known, asked)
        assert first.shape == (2, 1) and second.toarray().tolist() == [[1.0]]

    def test_validation_chooses_the_penalty(self, task, vectors):
        found = ohsumed.tune_baselines(task)
        known, asked = task.parts()
        first, second = ohsumed.tfidf_vectors(known, asked)
        by_hand = {
            c: (
                ohsumed.regression(first, known.label, c).predict(second) == asked.label
            )
            for c in task.plan.tfidf_c
        }
        tried = {one["c"]: one["accuracy"] for one in found["tfidf"]["tried"]}
        assert tried == {c: pytest.approx(right.mean()) for c, right in by_hand.items()}
        assert tried[found["tfidf"]["c"]] == max(tried.values())
        assert found["frozen"]["c"] == 1.0

    def test_they_know_all_of_the_training_set(self, task, vectors):
        tuned = {"tfidf": {"c": 1e4}, "frozen": {"c": 1.0}}
        answers = ohsumed.baseline_answers(task, task.corpus.train, tuned)
        label = task.corpus.train.label
        assert (answers["tfidf"] == label).mean() > 0.95
        assert set(answers["majority"]) == {np.bincount(label).argmax()}

    def test_the_frozen_encoder(self, task, monkeypatch):
        model = small_model(task.corpus.labels).eval()
        monkeypatch.setattr(ohsumed.Task, "build", lambda self: model)
        known, asked = task.parts()
        first, second = ohsumed.frozen_vectors(task, known, asked)
        assert first.shape == (len(known), 16) and len(second) == len(asked)
        with torch.no_grad():
            batch = bert.rectangle(ohsumed.encoded(model, asked)[:1])
            states = model.encoder(*batch).last_hidden_state[0]
        assert second[0] == pytest.approx(states.mean(0).numpy(), abs=1e-5)


class TestTraining:
    def test_it_trains_as_the_package_does(self, task):
        settings = task.settings(1e-3, epochs=1, seed=3)
        known, asked = task.parts()
        ours, reference = (small_model(task.corpus.labels) for _ in range(2))
        before = [p.clone() for p in ours.parameters()]
        rows = [ohsumed.encoded(reference, part) for part in (known, asked)]
        bert.finetune(reference, rows[0], known.label, rows[1], asked.label, settings)
        in_a_part(
            task.study,
            lambda: {"steps": len(ohsumed.fit(task, ours, known, settings))},
        )
        pairs = zip(ours.parameters(), reference.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        pairs = zip(before, ours.parameters(), strict=True)
        assert sum(not torch.equal(one, other) for one, other in pairs) > 20

    def test_every_setting_of_the_plan_is_used(self, task):
        odd = {"batch": 7, "head_rate": 0.3, "dropout": 0.2, "longest": 20}
        odd["smoothing"] = 0.3
        plan = dataclasses.replace(task.plan, **odd)
        settings = dataclasses.replace(task, plan=plan).settings(1e-3, 5, 9)
        chosen = {"encoder_rate": 1e-3, "epochs": 5, "seed": 9, "precision": "float32"}
        assert settings == bert.FineTuning(**odd, **chosen)

    def test_the_seed_draws_the_head(self, task):
        heads = [task.build(seed).head.weight for seed in (0, 0, 1)]
        assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])

    def test_weights_go_to_a_file_and_back(self, tmp_path):
        one, other = small_model(["a", "b"]), small_model(["a", "b"])
        torch.nn.init.normal_(one.head.weight)
        path = tmp_path / "weights.safetensors"
        core.save_weights(one, path)
        core.load_weights(other, path)
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("content", [None, b"cut short"])
    def test_weights_that_are_gone_or_damaged(self, tmp_path, content):
        path = tmp_path / "weights.safetensors"
        if content:
            path.write_bytes(content)
        with pytest.raises(MedlmError, match="Add --fresh"):
            core.load_weights(small_model(["a", "b"]), path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A tiny run: its record, its folder, its steps, its events and its CPU seconds."""
    folder, events, steps = tmp_path_factory.mktemp("unbroken"), [], []
    read, fit, step = ohsumed._read, core.Study.fit, training._Run.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLM_PROFILE", "cpu")
        patch.setattr(ohsumed, "_read", lambda *a: events.append(a[0]) or read(*a))
        patch.setattr(
            core.Study, "fit", lambda *a, **k: events.append("fit") or fit(*a, **k)
        )
        patch.setattr(training._Run, "step", lambda *a: steps.append(1) or step(*a))
        before, started = tracked(), time.process_time()
        record = run_tiny(ohsumed, folder)
        seconds = time.process_time() - started
    assert tracked() == before
    return {
        "record": record,
        "folder": folder,
        "steps": len(steps),
        "events": events,
        "seconds": seconds,
    }


@pytest.mark.slow
class TestTiny:
    def test_the_record_has_its_shape(self, unbroken):
        record = unbroken["record"]
        assert unbroken["seconds"] < 60  # transformers may not have been imported yet
        assert set(record["metrics"]) == METRICS
        assert record["metrics"]["test_accuracy"]["n"] == 2
        assert record["command"] == "python -m medlm_utils.studies.ohsumed --tiny"
        series = record["series"]
        assert "S2ORC" in series["caveat"] and series["unit"] == "abstract"
        assert [len(one["by_epoch"]) for one in series["trials"]] == [2, 2]
        assert [one["seed"] for one in series["by_seed"]] == [0, 1]
        for one in series["by_seed"]:
            interval = one["test_accuracy"]
            assert interval["low"] <= interval["value"] <= interval["high"]
            assert interval["n"] == series["abstracts"]["test"]
        sizes = [sum(c[name] for c in series["classes"]) for name in ("train", "test")]
        assert sizes == [series["abstracts"]["train"], series["abstracts"]["test"]]
        published = {p["model"]: p["test_accuracy"] for p in series["published"]}
        assert published["BertGCN"] == 0.728 and published["BERT"] == 0.705

    def test_the_best_setting_is_trained_again(self, unbroken):
        record = unbroken["record"]
        trials, values = record["series"]["trials"], record["metrics"]
        best = trials[ohsumed.best_of(trials)]
        assert values["encoder_rate"]["value"] == best["encoder_rate"]
        assert values["epochs"]["value"] == best["best_epoch"]
        right = values["validation_accuracy"]
        assert right["value"] == pytest.approx(best["accuracy"], rel=1e-5)
        assert right["n"] == record["series"]["abstracts"]["of_these_validation"]

    def test_the_test_set_is_read_once_and_last(self, unbroken):
        assert unbroken["events"] == ["train", "fit", "fit", "fit", "fit", "test"]

    def test_the_same_again_and_nothing_twice(self, unbroken, tmp_path, capsys):
        again = run_tiny(ohsumed, unbroken["folder"])
        assert "are kept" in capsys.readouterr().err
        other = run_tiny(ohsumed, tmp_path)
        assert "are kept" not in capsys.readouterr().err
        expected = without_times(unbroken["record"])
        assert without_times(again) == without_times(other) == expected

    def test_killed_and_taken_up_again(self, unbroken, tmp_path, monkeypatch):
        code = (
            "import os, signal, sys\n"
            "from medlm_utils import training\n"
            "from medlm_utils.studies import ohsumed\n"
            "save, saves = training._Run.save, []\n"
            "def dying(self, path):\n"
            "    save(self, path)\n"
            "    saves.append(path)\n"
            "    if len(saves) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
            "training._Run.save = dying\n"
            "ohsumed.main(sys.argv[1:])\n"
        )
        options = ["--tiny", "--out", tmp_path, "--work", tmp_path / "work"]
        done = subprocess.run([sys.executable, "-c", code, *map(str, options)])
        assert done.returncode == -signal.SIGKILL
        assert list((tmp_path / "work").rglob("*.checkpoint"))
        steps, step = [], training._Run.step
        monkeypatch.setattr(
            training._Run, "step", lambda *a: steps.append(1) or step(*a)
        )
        assert without_times(run_tiny(ohsumed, tmp_path)) == without_times(
            unbroken["record"]
        )
        assert len(steps) < unbroken["steps"] - 14  # a trial is kept, half another
        assert not list((tmp_path / "work").rglob("*.checkpoint"))
