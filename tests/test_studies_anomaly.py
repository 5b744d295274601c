"""The studies anomaly_adbench and anomaly_cost: their rows, their sums, their runs."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_ind_from_stats
from sklearn import metrics as theirs
from sklearn.preprocessing import StandardScaler
from test_studies import tracked, without_times

from medlm_utils import anomaly, data, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import anomaly_adbench as adbench
from medlm_utils.studies import anomaly_cost as cost
from medlm_utils.studies import core

STUDIES = {"anomaly_adbench": adbench, "anomaly_cost": cost}
METRICS = {
    "anomaly_adbench": {
        *(
            f"auroc_{table}_{name}"
            for table in adbench.TABLES
            for name in adbench.AS_PUBLISHED
        ),
        "largest_difference",
        "mean_difference",
        "cells",
        "cells_within",
        "cells_explained",
        "largest_difference_default_settings",
        "mean_difference_default_settings",
        "cells_within_default_settings",
    },
    "anomaly_cost": {
        *(
            f"{what}_{name}"
            for name in anomaly.DETECTORS
            for what in ("largest_rows", "seconds", "growth_exponent", "peak_mb")
        ),
        *(f"ratio_{name}" for name in cost.LIBRARY),
        "largest_ratio",
        "ratios_within_goal",
        "stopped",
    },
}
PEAKS = {f"peak_mb_{name}" for name in anomaly.DETECTORS}
SMALL = adbench.Table(np.arange(12.0).reshape(6, 2) ** 2, np.array([0, 0, 1, 0, 1, 0]))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("MEDLM_PROFILE", "cpu")


class TestTables:
    def test_the_real_files_have_the_published_sizes(self):
        if not data.verify("adbench", hashes=False).complete:
            pytest.skip("ADBench is not here: `medlm data fetch adbench`")
        tables = {name: adbench.read_table(name) for name in adbench.TABLES}
        assert tables["wdbc"].contamination == pytest.approx(10 / 367)
        assert all(table.rows.dtype == float for table in tables.values())

    def test_another_size_is_refused(self, tmp_path):
        np.savez(tmp_path / "x.npz", X=SMALL.rows, y=SMALL.label)
        read = adbench.load(tmp_path, adbench.Size("x.npz", 6, 2, 2))
        assert np.array_equal(read.rows, SMALL.rows)
        with pytest.raises(MedlmError, match="medlm data fetch adbench"):
            adbench.load(tmp_path, adbench.Size("x.npz", 6, 2, 3))

    def test_columns_are_standardised_as_by_scikit_learn(self):
        rows = np.column_stack([SMALL.rows, np.full(6, 3.0)])
        got = adbench.Table(rows, SMALL.label).standardised()
        assert got.rows == pytest.approx(StandardScaler().fit_transform(rows))

    def test_a_small_table_is_drawn_to_the_least(self):
        table, train = adbench.sample(SMALL, seed=3, least=50)
        assert len(table) == len(train) == 50 and train.max() < 50
        assert table.rows.mean(0) == pytest.approx(np.zeros(2))
        # Every drawn row is one of the table, with its own label.
        drawn = np.random.RandomState(3).choice(6, 50)
        assert np.array_equal(table.label, SMALL.label[drawn])

    def test_a_large_table_keeps_its_rows(self):
        table, train = adbench.sample(SMALL, seed=3, least=6)
        assert np.array_equal(table.rows, SMALL.standardised().rows)
        again = adbench.sample(SMALL, seed=3, least=6)[1]
        assert np.array_equal(train, again) and len(set(train)) < 6
        other = adbench.sample(SMALL, seed=4, least=6)[1]
        assert not np.array_equal(train, other)

    def test_the_draws_are_those_of_the_published_run(self):
        """Its calls in its order, of which the second draws nothing."""
        np.random.seed(2)
        rows = np.random.choice(np.arange(6), 30, replace=True)
        label = SMALL.label[rows]
        np.random.choice(np.where(label == 1)[0], 0, replace=False)
        expected = np.random.choice(np.arange(30), size=30, replace=True)
        table, train = adbench.sample(SMALL, seed=2, least=30)
        assert np.array_equal(table.label, label) and np.array_equal(train, expected)


class TestComparison:
    def test_every_cell_has_a_published_number(self):
        assert set(adbench.PUBLISHED) == set(adbench.AS_PUBLISHED)
        for cells in adbench.PUBLISHED.values():
            assert set(cells) == set(adbench.TABLES)
            assert all(40 < mean < 100 > 10 > spread for mean, spread in cells.values())

    def test_the_difference_and_its_interval(self):
        ours = [0.80, 0.83, 0.79, 0.82]
        got = adbench.compare(ours, 0.85, 0.03)
        assert got["difference"] == pytest.approx(-0.04)
        assert not got["within"]
        mean, spread = np.mean(ours), np.std(ours, ddof=1)
        # Where the interval ends, Welch's test says p = 0.05.
        for end in ("difference_low", "difference_high"):
            test = ttest_ind_from_stats(
                mean, spread, 4, mean - got[end], 0.03, 5, equal_var=False
            )
            shifted = ttest_ind_from_stats(
                mean - got[end], spread, 4, 0.85, 0.03, 5, equal_var=False
            )
            assert shifted.pvalue == pytest.approx(0.05)
            assert test.pvalue < 1.0
        assert got["chance"] == (got["difference_low"] <= 0 <= got["difference_high"])

    @pytest.mark.parametrize(
        ("published", "within", "chance"),
        [(0.80, True, True), (0.835, False, False), (0.775, True, False)],
    )
    def test_agreement_and_chance(self, published, within, chance):
        got = adbench.compare([0.798, 0.80, 0.802], published, 0.001)
        assert (got["within"], got["chance"]) == (within, chance)

    def test_an_interval_of_a_share_stays_one(self):
        assert adbench.over_seeds([0.99, 1.0])["high"] == 1.0
        assert adbench.over_seeds([0.0, 0.01])["low"] == 0.0

    def test_counts_of_the_cells(self):
        rows = [
            {"difference": d, "within": w, "chance": c}
            for d, w, c in [(0.01, True, False), (-0.2, False, True), (0.1, 0, 0)]
        ]
        got = adbench.agreement(rows)
        assert got["largest_difference"] == 0.2 and got["cells"] == 3
        assert got["mean_difference"] == pytest.approx(0.31 / 3)
        assert (got["cells_within"], got["cells_explained"]) == (1, 2)

    def test_the_defaults_stand_in_for_their_detectors(self):
        """As published all agree; with the defaults two detectors do not."""

        def one(name, table):
            detector = name.removesuffix("_default")
            shift = 0.2 if name.endswith("_default") else 0.0
            if detector not in adbench.PUBLISHED:
                return {"auroc": 0.5}
            return {"auroc": adbench.PUBLISHED[detector][table][0] / 100 - shift}

        by_seed = {
            table: [{"found": {n: one(n, table) for n in adbench.SETTINGS}}] * 2
            for table in adbench.TABLES
        }
        rows = adbench.cells(by_seed)
        assert len(rows) == 6 * 7
        usual = [row for row in rows if row["setting"] in adbench.AS_PUBLISHED]
        assert adbench.agreement(usual)["largest_difference"] == pytest.approx(0)
        for table in by_seed:
            for found in by_seed[table]:
                found["contamination"] = 0.1
                for measures in found["found"].values():
                    measures["average_precision"] = 0.5
        whole = {table: by_seed[table][0] for table in by_seed}
        found, series = adbench.summary(adbench.PLANS["tiny"], by_seed, whole)
        assert set(found) == METRICS["anomaly_adbench"]
        assert found["cells_within"] == 30
        assert found["cells_within_default_settings"] == 18
        assert found["largest_difference_default_settings"] == pytest.approx(0.2)
        assert len(series["by_table"]) == 6 * len(adbench.SETTINGS)


class TestProtocols:
    @pytest.fixture()
    def table(self):
        return adbench.read_table("cardio", tiny=True)

    def test_every_detector_has_a_setting(self):
        used = {setting.detector for setting in adbench.SETTINGS.values()}
        assert used == set(anomaly.DETECTORS)

    def test_a_row_may_be_its_own_neighbour(self, table):
        found = adbench.by_published_protocol(table, seed=1, least=80)
        drawn, train = adbench.sample(table, seed=1, least=80)
        apart = np.linalg.norm(drawn.rows[:, None] - drawn.rows[train][None], axis=2)
        score = np.sort(apart, axis=1)[:, 31]
        expected = theirs.roc_auc_score(drawn.label, score)
        assert found["found"]["knn"]["auroc"] == pytest.approx(expected)
        expected = theirs.average_precision_score(drawn.label, score)
        got = found["found"]["knn"]["average_precision"]
        assert got == pytest.approx(expected)
        assert found["contamination"] == drawn.label.mean()

    def test_row_by_row_none_is_its_own_neighbour(self, table):
        found = adbench.row_by_row(table, draws=60)
        rows = StandardScaler().fit_transform(table.rows)
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        score = np.sort(apart, axis=1)[:, 5]  # the first is the row itself
        got = found["found"]["knn_default"]["auroc"]
        assert got["value"] == pytest.approx(theirs.roc_auc_score(table.label, score))
        assert got["low"] < got["value"] < got["high"] and got["n"] == 68

    def test_a_refusal_is_kept_but_not_of_a_published_detector(self):
        def measured(setting):
            if setting.detector == refusing:
                raise MedlmError("a constant column")
            return {"auroc": 0.5}

        refusing = "robust_z"
        found = adbench.each(measured)
        assert found["robust_z"] == {"refused": "a constant column"}
        assert (
            adbench._of_seeds([{"auroc": 0.5}, found["robust_z"]]) == found["robust_z"]
        )
        refusing = "lof"
        with pytest.raises(MedlmError, match="a constant column"):
            adbench.each(measured)


class TestRows:
    def test_they_resemble_embeddings(self):
        rows = cost.embedding_like(2300, 64, seed=1)
        assert rows.dtype == np.float32 and rows.shape == (2300, 64)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(2300), abs=1e-5)
        variance = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        assert variance[:16].sum() > 0.8 * variance.sum()
        assert np.linalg.matrix_rank(rows) == 64

    def test_a_seed_draws_rows_of_the_same_groups(self):
        one, same, other = (cost.embedding_like(500, 32, seed) for seed in (1, 1, 2))
        assert np.array_equal(one, same) and not np.array_equal(one, other)
        fitted = anomaly.detector("mahalanobis").fit(one)
        new, own = fitted.anomaly_score(other), fitted.anomaly_score(one)
        assert np.median(new) == pytest.approx(np.median(own), rel=0.1)


JOB = cost.Job("knn", (200, 400), 8, limit_s=60.0, repeats=2, enough_s=60.0)


class Pipe:
    """Messages that are already there; after the last one, silence or the end."""

    def __init__(self, *messages, end=None):
        self.messages, self.end, self.limits = list(messages), end, []

    def poll(self, limit_s):
        self.limits.append(limit_s)
        return bool(self.messages) or self.end is not None

    def recv(self):
        if not self.messages:
            raise self.end
        return self.messages.pop(0)


SMALLER = [("ready", None), ("rows", 200), ("fit", 2.0), ("score", 1.0)]
LARGER = [("peak_mb", 3.0), ("rows", 400), ("fit", 4.0), ("score", 5.0)]


class TestListening:
    @pytest.mark.parametrize("end", [None, EOFError()])
    @pytest.mark.parametrize(
        ("messages", "stops", "fits"),
        [
            (SMALLER[:2], ["fit", "not tried"], [[], []]),
            (SMALLER[:3], ["score", "not tried"], [[2.0], []]),
            (SMALLER, ["fit", "not tried"], [[2.0], []]),
            ([*SMALLER, *LARGER[:1]], [None, "rows"], [[2.0], []]),
            ([*SMALLER, *LARGER[:2]], [None, "fit"], [[2.0], []]),
            ([*SMALLER, *LARGER[:3]], [None, "score"], [[2.0], [4.0]]),
        ],
    )
    def test_silence_and_death_are_stops(self, messages, stops, fits, end):
        found = cost._listen(Pipe(*messages, end=end), JOB)
        assert [one["stopped"] for one in found] == stops
        assert [one["fit"] for one in found] == fits

    def test_a_process_that_never_starts(self):
        with pytest.raises(MedlmError, match="did not start"):
            cost._listen(Pipe(), JOB)

    def test_all_that_is_said(self):
        messages = [*SMALLER, *SMALLER[2:], *LARGER, ("peak_mb", 9.0), ("done", None)]
        pipe = Pipe(*messages)
        one, other = cost._listen(pipe, JOB)
        assert one["fit"] == [2.0, 2.0] and one["score"] == [1.0, 1.0]
        assert (one["peak_mb"], other["peak_mb"]) == (3.0, 9.0)
        assert one["stopped"] is other["stopped"] is None
        # What is measured has the limit; starting and making the rows have another.
        own = [limit != JOB.limit_s for limit in pipe.limits]
        assert own == [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.slow
class TestProcess:
    def test_time_and_memory(self):
        one, other = cost.measure(JOB)
        for found in (one, other):
            assert len(found["fit"]) == len(found["score"]) == 2
            assert found["stopped"] is None
            assert all(0 < seconds < 60 for seconds in found["fit"] + found["score"])

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux says the peak")
    def test_the_memory_is_that_of_the_detector(self):
        held = np.ones(40_000_000)  # 320 MB of this process, none of the other's
        # All distances at once would be 128 MB, a part of them 64; the rows are 0.3.
        job = cost.Job("kernel_density", (100, 4000), 8, 60.0, 1, 1.0)
        small, large = (one["peak_mb"] for one in cost.measure(job))
        assert 0 <= small < 20 < large < 200 and held.all()

    def test_what_takes_too_long_is_stopped(self):
        slow = cost.Job("one_class_svm", (60, 20_000, 40_000), 64, 0.5, 1, 1.0)
        found = cost.measure(slow)
        assert [one["stopped"] for one in found] == [None, "fit", "not tried"]

    def test_a_refusal_reaches_the_reader(self):
        unknown = dataclasses.replace(JOB, detector="crystal_ball")
        with pytest.raises(MedlmError, match="no detector 'crystal_ball'"):
            cost.measure(unknown)

    def test_what_is_measured_holds_no_torch(self):
        """Its memory would be counted, and loading it takes longer than the rest."""
        code = (
            "import sys; from medlm_utils.studies import anomaly_cost as c; "
            "c.embedding_like(3, 2, 0); sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestLibrary:
    @pytest.mark.parametrize("name", cost.LIBRARY)
    def test_it_computes_what_we_compute(self, name):
        known, new = (cost.embedding_like(300, 16, seed) for seed in (1, 2))
        ours, library = cost.ours(name, known, new), cost.LIBRARY[name](known, new)
        assert spearmanr(ours, library).statistic > 0.999

    def test_all_but_our_own_have_one(self):
        assert set(anomaly.DETECTORS) - set(cost.LIBRARY) == {"robust_z", "ecod"}

    def test_in_turns(self, monkeypatch):
        called = []
        monkeypatch.setitem(
            cost.LIBRARY, "knn", lambda *a: called.append(("library", len(a[0])))
        )
        monkeypatch.setattr(cost, "ours", lambda n, *a: called.append((n, len(a[0]))))
        found = cost.in_turns("knn", cost.PLANS["tiny"])
        assert {name: len(times) for name, times in found.items()} == {
            "ours": 2,
            "library": 2,
        }
        timed = [name for name, rows in called if rows == 200]
        assert timed == ["library", "knn", "knn", "library"]


class TestCurves:
    def test_an_exponent_is_found_again(self):
        points = [(n, 3e-6 * n**1.7) for n in (10_000, 1000, 100_000)]
        assert cost.growth(points) == pytest.approx(1.7)
        assert cost.growth(points[:1]) is None
        # A fixed cost at few rows does not hide how it grows.
        bent = [(1000, 1.0), (10_000, 1.1), (100_000, 110.0)]
        assert cost.growth(bent) == pytest.approx(2.0)

    def row(self, rows, fit, score, stopped=None):
        found = {"fit": fit, "score": score, "peak_mb": 5.0, "stopped": stopped}
        return cost.row("knn", rows, found)

    def test_a_point_of_the_figure(self):
        row = self.row(10, [1.0, 9.0, 2.0], [4.0, 5.0, 6.0])
        assert (row["fit_seconds"], row["score_seconds"], row["seconds"]) == (2, 5, 7)
        assert row["repeats"] == 3 and row["stopped"] is None
        cut = self.row(10, [1.0], [], "score")
        assert cut["seconds"] is None and cut["stopped"] == "score"
        assert cut["fit_seconds"] == 1.0
        # Only the second repeat was stopped: the first one counts.
        again = self.row(10, [1.0, 2.0], [3.0], "score")
        assert again["seconds"] == 4.5 and again["stopped"] is None

    def test_what_was_stopped_is_foreseen(self):
        rows = [
            self.row(100, [1.0], [1.0]),
            self.row(1000, [100.0], [100.0]),
            self.row(10_000, [], [], "fit"),
        ]
        got = cost.curve("knn", rows)
        assert got["largest_rows"] == 1000 and got["seconds"] == 200
        assert got["exponent"] == pytest.approx(2)
        assert got["expected_seconds"] == {"10000": pytest.approx(20_000)}

    def test_stops_are_counted_and_ratios_compared(self):
        rows = [
            {**self.row(n, [n / 1e3], [n / 1e3]), "detector": name}
            for name in anomaly.DETECTORS
            for n in (100, 1000)
        ]
        stopped = self.row(10_000, [], [], "fit")
        turns = {
            name: {"ours": [1.0, 1.2, 1.4], "library": [1.0, 1.0, 1.0]}
            for name in cost.LIBRARY
        }
        turns["lof"] = {"ours": [1.0] * 3, "library": [2.0] * 3}
        found, series = cost.summary(cost.PLANS["tiny"], [*rows, stopped], turns)
        assert set(found) == METRICS["anomaly_cost"]
        assert found["stopped"] == 1 and found["ratios_within_goal"] == 1
        assert found["ratio_knn"]["value"] == found["largest_ratio"] == 1.2
        assert found["growth_exponent_ecod"] == pytest.approx(1)
        assert series["turns"]["lof"]["ratio"]["value"] == 0.5

    def test_a_detector_that_reached_nothing(self):
        got = cost.curve("knn", [self.row(100, [], [], "fit")])
        assert got["largest_rows"] == 0 and got["exponent"] is None
        assert math.isfinite(got["seconds"]) and got["expected_seconds"] == {}


def run_tiny(name, folder, *more):
    options = ["--tiny", "--out", str(folder), "--work", str(folder / "work"), *more]
    assert STUDIES[name].main(options) == 0
    path = folder / "studies" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
class TestTiny:
    @pytest.mark.parametrize("name", STUDIES)
    def test_the_record_has_its_shape(self, name, tmp_path, capsys):
        before, started = tracked(), time.process_time()
        record = run_tiny(name, tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        unknown = {} if sys.platform == "linux" else PEAKS  # of memory
        assert set(record["metrics"]) == METRICS[name].difference(unknown)
        assert record["command"] == f"python -m medlm_utils.studies.{name} --tiny"
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        assert "are kept" not in capsys.readouterr().err
        again = run_tiny(name, tmp_path)  # from what was kept, clocks and all
        assert "are kept" in capsys.readouterr().err
        assert without_times(again) == without_times(record)

    def test_adbench_stopped_and_taken_up_again(self, tmp_path, monkeypatch):
        unbroken = run_tiny("anomaly_adbench", tmp_path / "unbroken")
        make, made = core.Study._make, []

        def stopping(self, part):
            made.append(part.name)
            if len(made) == 5:
                raise KeyboardInterrupt
            return make(self, part)

        monkeypatch.setattr(core.Study, "_make", stopping)
        folder = tmp_path / "stopped"
        options = ["--tiny", "--out", str(folder), "--work", str(folder / "work")]
        assert adbench.main(options) == 130
        assert not (folder / "studies" / "anomaly_adbench.json").exists()
        record = run_tiny("anomaly_adbench", folder)
        assert without_times(record) == without_times(unbroken)
        assert len(made) == 19  # 18 parts, of which the fifth was begun twice

    def test_series_of_the_costs(self, tmp_path):
        series = run_tiny("anomaly_cost", tmp_path)["series"]
        assert len(series["rows"]) == 2 * len(anomaly.DETECTORS)
        for row in series["rows"]:
            assert row["stopped"] is None
            total = row["fit_seconds"] + row["score_seconds"]
            assert row["seconds"] == pytest.approx(total)
