"""The study anomaly_representations: its vectors, its lines, its sums, its run."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from study_runs import run_tiny, tracked
from test_studies import without_times

from medlm_utils import anomaly, anomaly_worlds, bert, metrics, runtime
from medlm_utils.anomaly_worlds import KINDS
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import anomaly_representations as study
from medlm_utils.studies import anomaly_runs as runs

SLUGS = (
    "unseen_disease",
    "mixed_up_record",
    "another_patients_header",
    "garbled_text",
)
METRICS = {
    *(
        f"{what}_{name}"
        for name in SLUGS
        for what in (
            "contamination",
            *(f"{line}_auroc" for line in study.LINES),
            "headline_auroc",
            "headline_average_precision",
            "best_auroc",
            "isolation_forest_auroc",
        )
    ),
    "auroc_gain_over_label_free_line",
    "auroc_gain_over_text_line",
    "auroc_gain_over_ceiling",
    "cases_forest_below_60_another_above_90",
    "pairs_below_chance",
    "pairs",
    "test_patients",
}
PLAN = study.Plan((1, 2), 25, 12, 8, 60)

pytestmark = pytest.mark.usefixtures("on_the_cpu")


class LetterCounts:
    """In place of the networks: numbers that depend on the text alone."""

    def vectors(self, texts):
        letters = "abcdefghilmnoprstu"
        counts = [[text.lower().count(letter) for letter in letters] for text in texts]
        rows = np.array(counts, float) + 1
        names = ("MiniLM mean", "MiniLM [CLS]", "reader", "reader logits")
        return {name: rows + place for place, name in enumerate(names)}


@pytest.fixture(scope="module")
def groups():
    return study.draw(PLAN, seed=7)


@pytest.fixture(scope="module")
def found(groups):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "WIDEST", 5)
        return study.represented(groups, LetterCounts())


class TestNotes:
    def test_no_patient_is_in_two_groups(self, groups):
        assert list(groups) == ["train", "usual", *KINDS]
        people = {name: set(notes.patient) for name, notes in groups.items()}
        assert [len(some) for some in people.values()] == [25, 12, 8, 8, 8, 8]
        as_many = study.draw(dataclasses.replace(PLAN, usual=PLAN.patients), seed=7)
        assert not set(as_many["train"].text) & set(as_many["usual"].text)
        for kind in KINDS:
            assert not people[kind] & (people["usual"] | people["train"])

    def test_usual_patients_never_have_the_unseen_disease(self, groups):
        names = anomaly_worlds.usual_clinic(study.UNSEEN).diseases
        number = names.index(study.UNSEEN)
        assert number not in groups["train"].label
        assert (groups["unseen disease"].label == number).all()

    def test_a_seed_draws_the_same_notes(self, groups):
        again = study.draw(PLAN, seed=7)
        assert all(list(again[n].text) == list(groups[n].text) for n in groups)
        assert list(study.draw(PLAN, 8)["train"].text) != list(groups["train"].text)


class TestVectors:
    def test_every_group_has_its_rows(self, groups, found):
        assert tuple(found) == study.REPRESENTATIONS
        for name, rows in found.items():
            missing = set(groups) - set(rows)
            assert missing == ({"garbled text"} if name == "findings" else set())
            assert all(len(rows[group]) == len(groups[group]) for group in rows)

    def test_a_group_keeps_its_own_rows(self, groups, found):
        for group, notes in groups.items():
            own = LetterCounts().vectors(list(notes.text))["reader logits"]
            assert np.array_equal(found["reader logits"][group], own)

    def test_whitened_and_of_length_one(self, found):
        train = found["MiniLM mean"]["train"]
        whitening = anomaly.Whitening(components=5).fit(train)
        for group, rows in found["MiniLM mean"].items():
            expected = whitening.transform(rows)
            assert found["MiniLM whitened"][group] == pytest.approx(expected)
            length = np.linalg.norm(found["reader, length 1"][group], axis=1)
            assert length == pytest.approx(1)

    def test_words_are_those_of_training(self, groups, found):
        words = runs.tfidf_svd(list(groups["train"].text), 100, 0, words_together=2)
        for group, rows in found["TF-IDF"].items():
            assert rows == pytest.approx(words(list(groups[group].text)))

    def test_findings_vary_in_training(self, groups, found):
        rows = found["findings"]["train"]
        assert not len(anomaly.constant_columns(rows))
        every = anomaly_worlds.facts(groups["train"])
        kept = rows.shape[1] + len(anomaly.constant_columns(every))
        assert kept == every.shape[1]

    def test_odd_notes_teach_nothing(self, groups, found, monkeypatch):
        monkeypatch.setattr(study, "WIDEST", 5)
        fewer = {**groups, "unseen disease": groups["unseen disease"][:3]}
        again = study.represented(fewer, LetterCounts())
        for name, rows in again.items():
            assert rows["usual"] == pytest.approx(found[name]["usual"]), name

    @pytest.mark.slow
    def test_of_the_networks(self, groups):
        texts = list(groups["usual"].text[:5])
        networks = study.Networks.load(runtime.PROFILES["cpu"])
        networks = dataclasses.replace(networks, precision="float32")
        got = networks.vectors(texts)
        rows = bert.encode(networks.tokenizer, texts)
        for name, pooling in (("MiniLM mean", "mean"), ("MiniLM [CLS]", "cls")):
            expected = bert.embed(networks.minilm, rows, pooling)
            assert got[name] == pytest.approx(expected, abs=1e-5)
        with torch.no_grad():
            ids, mask = bert.rectangle(networks.reader.rows(texts))
            logits = networks.reader(ids, mask).numpy()
        assert got["reader logits"] == pytest.approx(logits, abs=1e-4)
        assert got["reader"].shape[0] == 5 != got["reader"].shape[1]


class TestOneSeed:
    def test_scores_go_to_their_groups(self, found):
        rows = found["reader"]
        scores = study._scores(rows, ["usual", *KINDS], seed=1)
        assert set(scores) == set(anomaly.DETECTORS)
        for name in ("knn", "isolation_forest"):
            fitted = anomaly.detector(name, seed=1).fit(rows["train"])
            for group, score in scores[name].items():
                assert score == pytest.approx(fitted.anomaly_score(rows[group]))

    def test_a_refusal_is_kept(self, found, monkeypatch):
        def refusing(train, asked, seed, detectors):
            if detectors == ["lof"]:
                raise MedlmError("too few rows")
            return {detectors[0]: np.zeros(len(asked))}

        monkeypatch.setattr(runs, "all_scores", refusing)
        scores = study._scores(found["reader"], ["usual", *KINDS], seed=1)
        assert scores["lof"] == {"refused": "too few rows"}
        assert set(scores["knn"]) == {"usual", *KINDS}

    @pytest.mark.parametrize("kind", KINDS)
    def test_measures_and_lines_are_of_the_same_notes(self, kind, groups, found):
        scores = study._scores(found["reader"], ["usual", *KINDS], seed=1)
        got = study._measured(scores, groups, kind, PLAN, seed=3)["ecod"]
        usual, odd = (scores["ecod"][group] for group in ("usual", kind))
        label = np.repeat([0, 1], [len(usual), len(odd)])
        people = np.concatenate([groups[g].patient for g in ("usual", kind)])
        expected = metrics.interval_by_patient(
            metrics.auroc, people, label, np.append(usual, odd), draws=60, seed=3
        )
        for name in ("value", "low", "high"):
            assert got["auroc"][name] == pytest.approx(
                getattr(expected, name), abs=1e-5
            )
        lines = study._lines(groups, kind, PLAN, seed=3)
        assert lines["contamination"] == pytest.approx(label.mean())
        world = anomaly_worlds.odd_patients(kind, study.UNSEEN)
        notes = anomaly_worlds.together(groups["usual"], groups[kind])[0]
        best = metrics.auroc(label, world.log_ratio(notes))
        got = lines["lines"]["neyman_pearson"]["auroc"]["value"]
        assert got == pytest.approx(best, abs=1e-5)
        for name, of in (("neg_log_p0", "facts"), ("neg_log_p0_text", "text")):
            score = anomaly_worlds.surprise(world.usual, notes, of)
            got = lines["lines"][name]["average_precision"]["value"]
            expected = metrics.average_precision(label, score)
            assert got == pytest.approx(expected, abs=1e-5)


def one(value):
    """Both measures, as a seed has them."""
    both = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"auroc": both, "average_precision": both}


def made(values, base):
    """A seed in which every pair has `base`, but for these (kind, pair) values."""
    kinds = {}
    for kind in KINDS:
        pairs = {
            name: {d: one(values.get((kind, name, d), base)) for d in anomaly.DETECTORS}
            for name in study.REPRESENTATIONS
        }
        lines = {line: one(values.get((kind, line), 0.9)) for line in study.LINES}
        kinds[kind] = {"contamination": 0.2, "pairs": pairs, "lines": lines}
    return {"notes": {"train": 3}, "kinds": kinds}


KIND = KINDS[0]


class TestOverSeeds:
    def grid(self):
        first = {
            (KIND, "TF-IDF", "lof"): 0.99,
            (KIND, "TF-IDF", "isolation_forest"): 0.55,
            (KIND, "findings", "knn"): 0.8,
            (KIND, *study.HEADLINE): 0.7,
            (KIND, "neg_log_p0"): 0.75,
            (KINDS[1], "reader", "ecod"): 0.3,
        }
        second = {**first, (KIND, "TF-IDF", "lof"): 0.91, (KIND, "neg_log_p0"): 0.7}
        second |= {(KIND, *study.HEADLINE): 0.75, (KIND, "neyman_pearson"): 0.95}
        seeds = [made(first, 0.65), made(second, 0.65)]
        for seed in seeds:
            garbled = seed["kinds"]["garbled text"]["pairs"]["findings"]
            garbled.update({d: {"refused": "no facts"} for d in anomaly.DETECTORS})
        return study.Grid(seeds)

    def test_a_cell(self):
        cell = self.grid().cell(KIND, ("TF-IDF", "lof"))
        assert cell["auroc"]["value"] == pytest.approx(0.95)
        assert [one["value"] for one in cell["auroc_by_seed"]] == [0.99, 0.91]
        assert cell["auroc"]["high"] == 1.0  # a share stays one
        refused = self.grid().cell("garbled text", ("findings", "knn"))
        assert refused == {"refused": "no facts"}
        assert len(self.grid().pairs("garbled text")) == len(study.PAIRS) - 9

    def test_shares_of_a_line(self):
        shares = self.grid().shares(KIND, study.HEADLINE, "neg_log_p0")
        assert shares == pytest.approx([0.2 / 0.25, 0.25 / 0.2])

    def test_the_best_pair_is_named_by_the_other_seeds(self):
        """Each seed has a winner of its own, which only the other seed sees."""
        own = [{(KIND, "reader", "knn"): 0.9}, {(KIND, "reader", "lof"): 0.9}]
        grid = study.Grid([made(values, 0.6) for values in own])
        chosen, values = grid.chosen(KIND)
        assert chosen == [("reader", "lof"), ("reader", "knn")]
        assert values == [0.6, 0.6]

    def test_where_the_forest_fails(self):
        (case,) = study.forest_fails(self.grid())
        assert case["representation"] == "TF-IDF" and case["detector"] == "lof"
        assert case["auroc"] == 0.95 and case["forest_auroc"] == 0.55
        assert study.forest_fails(self.grid(), low=0.5) == []
        assert study.forest_fails(self.grid(), high=0.96) == []

    def test_what_is_below_chance(self):
        (case,) = study.below_chance(self.grid())
        assert (case["representation"], case["detector"]) == ("reader", "ecod")
        assert case["kind"] == KINDS[1] and case["auroc"]["high"] == 0.3

    def test_metrics_and_series(self):
        got = study._metrics(PLAN, self.grid())
        assert set(got) == METRICS
        gain = got["auroc_gain_over_label_free_line"]
        assert gain["value"] == pytest.approx((0.8 + 1.25) / 2)
        assert gain["high"] > 1.25
        expected = (0.2 / 0.4 + 0.25 / 0.45) / 2
        assert got["auroc_gain_over_ceiling"]["value"] == pytest.approx(expected)
        assert got["best_auroc_unseen_disease"]["value"] == pytest.approx(0.95)
        assert got["headline_auroc_unseen_disease"]["value"] == pytest.approx(0.725)
        assert got["pairs"] == 4 * 72 - 9
        assert got["test_patients"] == 2 * (12 + 4 * 8)
        series = study._series(PLAN, self.grid())
        assert len(series["grid"]) == 4 * 72 and len(series["lines"]) == 12


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
        capsys.readouterr()
        # Stopped before the last seed, then taken up again.
        next((tmp_path / "work").rglob("seed-502-*.json")).unlink()
        seeds, make = [], study.one_seed
        monkeypatch.setattr(
            study, "one_seed", lambda *a: seeds.append(a[-1]) or make(*a)
        )
        again = run_tiny(study, tmp_path)
        assert "1 of 2 parts are kept" in capsys.readouterr().err and seeds == [502]
        assert without_times(again) == without_times(record)
