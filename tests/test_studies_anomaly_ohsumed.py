"""The study anomaly_ohsumed: what training may see, its measures, its run."""

import functools
import time

import numpy as np
import pytest
from study_runs import a_study, run_tiny, tracked
from test_studies import without_times

from medlm_utils import anomaly, data, metrics, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import anomaly_ohsumed as study
from medlm_utils.studies import anomaly_runs as runs
from medlm_utils.studies import core, ohsumed

METRICS = {
    "held_out_classes",
    "contamination",
    *(f"auroc_{name}" for name in anomaly.DETECTORS),
    *(f"average_precision_{name}" for name in anomaly.DETECTORS),
    *(f"auroc_isolation_forest_{name}" for name in study.REPRESENTATIONS[1:]),
    "best_auroc",
    "best_average_precision",
    "chosen_on_other_classes_auroc",
    "gain_over_isolation_forest",
    "short_tfidf_svd_auroc",
    "with_labels_auroc",
    "with_labels_average_precision",
    "classes_isolation_forest_last",
    "classes_isolation_forest_below_chance",
}

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture()
def rows():
    """40 patients with 1 to 3 rows, a label, and a score with many ties."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    label = (rng.random(len(patients)) < 0.3).astype(int)
    return patients, label, np.round(rng.normal(size=len(patients)) + label, 1)


@pytest.fixture()
def task(tmp_path):
    """Random vectors of 90 abstracts in three classes, and a study in a folder."""
    rng = np.random.default_rng(1)
    words = [f"word{number}" for number in range(8)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(90)]
    label = np.arange(90) % 3
    train, test = (ohsumed.Abstracts(np.array(texts, object), label) for _ in "12")
    corpus = ohsumed.Corpus(("C01", "C02", "C03"), train, None)
    a = a_study(tmp_path, "anomaly_ohsumed", tiny=True)
    return study.Task(a, study.Plan(20, 24, 3, 60), corpus, test)


class TestResamples:
    @pytest.mark.parametrize("measure", runs.MEASURES)
    def test_as_interval_by_patient(self, rows, measure):
        patients, label, score = rows
        expected = metrics.interval_by_patient(
            getattr(metrics, measure), patients, label, score, draws=80, seed=5
        ).as_metric()
        found = runs.Resamples(patients, 80, 5).measure(label, score)[measure]
        got = found.as_metric()
        for name in ("value", "low", "high", "n"):
            assert got[name] == pytest.approx(expected[name], abs=1e-12)

    def test_a_difference_is_of_the_same_draws(self, rows):
        patients, label, score = rows
        other = np.random.default_rng(3).normal(size=len(score))

        def gain(label, one, two):
            return metrics.auroc(label, one) - metrics.auroc(label, two)

        expected = metrics.interval_by_patient(
            gain, patients, label, score, other, draws=80, seed=2
        )
        drawn = runs.Resamples(patients, 80, 2)
        one, two = (drawn.measure(label, s)["auroc"] for s in (score, other))
        got = (one - two).as_metric()
        assert got["low"] == pytest.approx(expected.low)
        assert got["high"] == pytest.approx(expected.high)
        mean = runs.mean_of([one, two])
        assert mean.value == pytest.approx((one.value + two.value) / 2)
        assert mean.drawn == pytest.approx((one.drawn + two.drawn) / 2)

    def test_draws_of_one_class_have_no_value(self):
        label, score = np.array([1, 0, 0, 0]), np.arange(4.0)
        found = runs.Resamples(np.arange(4), 200, 0).measure(label, score)
        assert 0.2 < np.isnan(found["auroc"].drawn).mean() < 0.45
        with pytest.raises(MedlmError, match="expected at most a tenth"):
            found["auroc"].as_metric()


class TestRows:
    def test_large_classes_are_held_out(self):
        label = np.repeat([0, 1, 3], [5, 9, 7])
        assert study.chosen_classes(label, 7) == [1, 3]
        with pytest.raises(MedlmError, match="1 classes have at least 8"):
            study.chosen_classes(label, 8)

    def test_of_the_real_corpus(self):
        if not data.verify("ohsumed", hashes=False).complete:
            pytest.skip("OHSUMED is not here: `medlm data fetch ohsumed`")
        label = ohsumed.read_corpus().test().label
        chosen = study.chosen_classes(label, study.PLANS["cpu"].least)
        sizes = np.bincount(label)
        assert len(chosen) == 14 and sizes[chosen].min() == 102
        assert np.delete(sizes, chosen).max() == 79

    def test_nothing_is_learned_from_the_class_held_out(self, task):
        """Neither its vectors nor its words change anything."""
        rng = np.random.default_rng(2)
        vectors = {part: rng.normal(size=(90, 4)) for part in ("train", "test")}
        before = study.represented(vectors, task, held_out=1)
        odd = task.corpus.train.label == 1
        changed = {**vectors, "train": np.where(odd[:, None], 50, vectors["train"])}
        task.corpus.train.texts[odd] = "other other words words"
        after = study.represented(changed, task, held_out=1)
        assert set(before) == set(study.REPRESENTATIONS)
        for name, (train, test) in before.items():
            assert len(train) == 60 and len(test) == 90
            assert np.array_equal(train, after[name][0]), name
            usual_test = test[~odd], after[name][1][~odd]
            assert np.array_equal(*usual_test), name

    def test_representations(self, task):
        rng = np.random.default_rng(2)
        vectors = {part: rng.normal(size=(90, 4)) + 3 for part in ("train", "test")}
        got = study.represented(vectors, task, held_out=0)
        assert np.array_equal(got["minilm"][1], vectors["test"])
        assert np.linalg.norm(got["minilm_unit"][1], axis=1) == pytest.approx(1)
        fitted = anomaly.detector("mahalanobis").fit(got["minilm"][0])
        score = fitted.anomaly_score(vectors["test"])
        length = np.linalg.norm(got["minilm_whitened"][1], axis=1)
        assert length == pytest.approx(score)
        short, unit = got["tfidf_svd"][0], got["tfidf_svd_unit"][0]
        assert short.shape == (60, 3) and np.linalg.norm(short, axis=1).max() < 1
        assert unit == pytest.approx(anomaly.unit_length(short))

    def test_what_is_short_and_what_is_said_with_labels(self, task):
        """Both are scores of the class held out, in the order of the test set."""
        rng = np.random.default_rng(2)
        vectors = {part: rng.normal(size=(90, 4)) for part in ("train", "test")}
        chance = rng.random((90, 3))
        path = task.study.work / "vectors.npz"
        runs.save_arrays(path, {**vectors, study.WITH_LABELS: chance})
        make = functools.partial(study.score, task, path.name, 2)
        (done,) = task.study.run([core.Part("part", {}, 1.0, make)])
        kept = runs.load_arrays(task.study.work / done["file"])
        assert set(kept) == {*study.PAIRS, study.WITH_LABELS, study.SHORT}
        assert np.array_equal(kept[study.WITH_LABELS], chance[:, 2])
        rows = study.represented(vectors, task, 2)
        length = np.linalg.norm(rows["tfidf_svd"][1], axis=1)
        assert kept[study.SHORT] == pytest.approx(-length)
        train, test = rows["minilm"]
        fitted = anomaly.detector("isolation_forest", seed=2).fit(train)
        expected = fitted.anomaly_score(test)
        assert kept["minilm/isolation_forest"] == pytest.approx(expected)

    def test_an_unseen_word_counts_for_nothing(self):
        vectors = runs.tfidf_svd(["ab cd", "ab cd", "cd ef", "ef ab"], 9, seed=0)
        got = vectors(["ab xy", "ab", "xy"])
        assert got.shape == (3, 2)
        assert np.array_equal(got[0], got[1]) and not got[2].any()


class TestSummary:
    def test_the_choice_for_a_class_is_made_on_the_others(self):
        aurocs = np.array([[0.7, 0.1, 0.6], [0.2, 0.6, 0.5], [0.2, 0.8, 0.6]])
        assert runs.best_for_others(aurocs).tolist() == [1, 2, 2]

    def test_a_pair_that_is_always_right(self, task):
        """One pair scores 1, the forest 0, all others are in between."""
        rng = np.random.default_rng(0)
        label = task.test.label
        files = []
        for number in task.held_out:
            odd = (label == number) * 1.0
            kept = {pair: rng.normal(size=90) for pair in study.PAIRS}
            kept["tfidf_svd/lof"] = odd
            kept["minilm/isolation_forest"] = -odd
            kept[study.WITH_LABELS] = kept[study.SHORT] = odd
            path = task.study.work / f"{number}.npz"
            runs.save_arrays(path, kept)
            files.append(path.name)
        judged = study.judge(task, files)
        assert judged["best"] == "tfidf_svd/lof"
        assert judged["chosen"] == ["tfidf_svd/lof"] * 3
        assert judged["gain"]["value"] == 1 and judged["gain"]["n"] == 90
        found = study._metrics(task, judged)
        assert set(found) == METRICS
        assert found["classes_isolation_forest_last"] == 3
        assert found["classes_isolation_forest_below_chance"] == 3
        assert found["auroc_isolation_forest"]["value"] == 0
        assert found["with_labels_average_precision"]["value"] == 1
        assert found["contamination"] == pytest.approx(1 / 3)
        each = [one["minilm/knn"]["auroc"]["value"] for one in judged["by_class"]]
        mean = found["auroc_knn"]["value"]
        assert mean == pytest.approx(np.mean(each), abs=1e-5)

    def test_a_work_file_that_is_gone(self, tmp_path):
        with pytest.raises(MedlmError, match="--fresh"):
            runs.load_arrays(tmp_path / "none.npz")
        (tmp_path / "bad.npz").write_bytes(b"PK no archive")
        with pytest.raises(MedlmError, match="--fresh"):
            runs.load_arrays(tmp_path / "bad.npz")


@pytest.mark.slow
class TestTiny:
    def test_the_record(self, tmp_path, capsys, monkeypatch):
        before, started = tracked(), time.process_time()
        record = run_tiny(study, tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        assert set(record["metrics"]) == METRICS
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        series = record["series"]
        assert len(series["classes"]) == record["metrics"]["held_out_classes"]["value"]
        assert len(series["mean_over_classes"]) == len(study.PAIRS) + 2
        assert "S2ORC" in series["caveat"] and len(series["orientation"]) == 4
        capsys.readouterr()
        # Stopped before the last part, then taken up again.
        last = next((tmp_path / "work").rglob("intervals-*.json"))
        last.unlink()
        monkeypatch.setattr(study, "embed", lambda task: pytest.fail("made twice"))
        again = run_tiny(study, tmp_path)
        assert "are kept" in capsys.readouterr().err
        assert without_times(again) == without_times(record)

    def test_a_gap_in_the_data_is_one_message(self, tmp_path, monkeypatch, capsys):
        def gone(name):
            raise MedlmError("ohsumed is not here")

        monkeypatch.setattr(data, "fetch", gone)
        options = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
        assert study.main(options) == 1
        assert "medlm: ohsumed is not here" in capsys.readouterr().err
