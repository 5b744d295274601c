"""anomaly.py: slow loops, all pairs and scikit-learn as oracles; budgets and errors."""

import dataclasses
import doctest
import inspect
import math

import numpy as np
import pytest
import sklearn.metrics as oracle
from scipy import spatial, special, stats
from sklearn import covariance, ensemble, mixture, neighbors, svm

from medlm_utils import anomaly, metrics
from medlm_utils.anomaly import DETECTORS, Whitening, detector, nearest
from medlm_utils.runtime import MedlmError

SEEDS = range(5)
EVERY = list(DETECTORS)


def some_rows(seed=0, rows=120, columns=4):
    """Two clusters whose columns depend on each other and have different spreads."""
    rng = np.random.default_rng(seed)
    turn = rng.normal(size=(columns, columns))
    drawn = rng.normal(size=(rows, columns)) @ turn
    return drawn + 6 * (np.arange(rows) % 2)[:, None] + rng.gamma(1, size=drawn.shape)


def some_scores(seed, rows=60, ties=True):
    """Labels and scores, rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    label = np.r_[0, 1, rng.random(rows - 2) < 0.3].astype(int)
    return label, np.round(rng.normal(size=rows) + label, 0 if ties else 12)


def quick(name, **settings):
    """A detector, with fewer trees than usual."""
    few = {"trees": 10} if name == "isolation_forest" else {}
    return detector(name, **few, **settings)


def without(rows, i):
    return np.delete(rows, i, axis=0)


def test_examples_of_the_docstrings():
    assert doctest.testmod(anomaly).failed == 0


# What holds for every detector --------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
class TestEveryDetector:
    def test_an_obvious_outlier_scores_highest(self, name):
        known, new = some_rows(0), some_rows(1, 30)
        found = quick(name).fit(known)
        far = known.mean(axis=0) + 100
        scores = found.anomaly_score(np.vstack([new, far]))
        assert scores.shape == (31,)
        assert scores[-1] > scores[:-1].max()

    def test_an_obvious_outlier_in_training_scores_highest(self, name):
        known = np.vstack([some_rows(0), some_rows(0).mean(axis=0) + 100])
        settings = {"components": 1} if name == "gaussian_mixture" else {}
        scores = quick(name, **settings).fit(known).training_scores()
        assert scores.shape == (121,)
        assert scores.argmax() == 120

    def test_scores_do_not_depend_on_the_parts(self, name, monkeypatch):
        known, new = some_rows(0), some_rows(1, 31)
        whole = quick(name).fit(known)
        expected = whole.anomaly_score(new), whole.training_scores()
        monkeypatch.setattr(anomaly, "_PART_BYTES", 7 * 8 * known.shape[1])
        parts = quick(name).fit(known)
        assert parts.anomaly_score(new) == pytest.approx(expected[0], rel=1e-9)
        assert parts.training_scores() == pytest.approx(expected[1], rel=1e-9)

    def test_no_part_is_larger_than_said(self, name, monkeypatch):
        known, sizes = some_rows(0), []
        found = quick(name).fit(known)
        score = found._score
        monkeypatch.setattr(
            found, "_score", lambda r: (sizes.append(len(r)), score(r))[1]
        )
        monkeypatch.setattr(anomaly, "_PART_BYTES", 10 * 8 * known.shape[1])
        found.anomaly_score(known)
        assert sizes == [10] * 12

    def test_a_score_does_not_depend_on_the_rows_beside_it(self, name):
        found, new = quick(name).fit(some_rows(0)), some_rows(1, 30)
        alone = [found.anomaly_score(new[i : i + 1])[0] for i in range(5)]
        assert alone == pytest.approx(found.anomaly_score(new)[:5], rel=1e-9)

    def test_the_same_seed_gives_the_same_scores(self, name):
        known, new = some_rows(0, 1300), some_rows(1, 20)
        one, two = (quick(name, seed=3).fit(known) for _ in range(2))
        assert np.array_equal(one.anomaly_score(new), two.anomaly_score(new))

    def test_float32_gives_nearly_the_same(self, name):
        known, new = some_rows(0), some_rows(1, 30)
        expected = quick(name).fit(known).anomaly_score(new)
        narrow = quick(name).fit(known.astype(np.float32)).anomaly_score(new)
        # A cut of a tree or a rank may fall on the other side of a rounded value.
        assert narrow == pytest.approx(expected, rel=2e-2, abs=1e-3)

    def test_many_columns_and_few_rows(self, name):
        rng = np.random.default_rng(0)
        known, new = rng.normal(size=(2, 60, 384))
        found = quick(name).fit(known)
        odd = found.anomaly_score(new + 3)
        assert np.isfinite(odd).all() and np.isfinite(found.training_scores()).all()
        assert (
            metrics.auroc([0] * 60 + [1] * 60, np.r_[found.anomaly_score(new), odd])
            > 0.9
        )

    def test_frames_and_integers_are_numbers_too(self, name):
        pandas = pytest.importorskip("pandas")
        known = np.round(some_rows(0) * 10)
        expected = quick(name).fit(known).training_scores()
        frame = pandas.DataFrame(known.astype(int))
        assert quick(name).fit(frame).training_scores() == pytest.approx(expected)

    def test_a_number_that_is_none_is_found(self, name):
        found = quick(name).fit(some_rows(0))
        for wrong in (np.nan, np.inf, -np.inf, 1e300, -1e16):
            rows = some_rows(0)
            rows[70, 2] = wrong
            for call in (quick(name).fit, found.anomaly_score):
                with pytest.raises(MedlmError, match=r"row 70, column 2 \(from 0\)"):
                    call(rows)

    def test_too_few_rows(self, name):
        least = {"knn": 6, "lof": 21, "gaussian_mixture": 5}.get(name, 2)
        rows = some_rows(0)
        assert np.isfinite(quick(name).fit(rows[:least]).training_scores()).all()
        for few in {0, 1, least - 1}:
            with pytest.raises(
                MedlmError, match=f"{few} rows; expected at least {least}"
            ):
                quick(name).fit(rows[:few])

    def test_rows_of_another_shape(self, name):
        found = quick(name).fit(some_rows(0))
        with pytest.raises(MedlmError, match="3 columns, the training rows have 4"):
            found.anomaly_score(some_rows(0)[:, :3])
        with pytest.raises(MedlmError, match="0 rows; expected at least 1"):
            found.anomaly_score(np.empty((0, 4)))
        for wrong in (np.zeros(4), np.zeros((2, 2, 2)), np.zeros((5, 0))):
            with pytest.raises(MedlmError, match=r"expected \(rows, columns\)"):
                quick(name).fit(wrong)
        with pytest.raises(MedlmError, match="cannot be read as numbers"):
            quick(name).fit([["a", "b"], ["c", "d"]])

    def test_nothing_fitted(self, name):
        for call in (quick(name).training_scores, quick(name).anomaly_score):
            arguments = [] if call.__name__ == "training_scores" else [some_rows(0)]
            with pytest.raises(MedlmError, match=f"'{name}' has not learned"):
                call(*arguments)

    def test_a_failed_fit_leaves_what_was_learned(self, name):
        known = some_rows(0)
        found = quick(name).fit(known)
        before = found.anomaly_score(known)
        with pytest.raises(MedlmError):
            found.fit(np.full((3, 4), np.nan))
        assert np.array_equal(found.anomaly_score(known), before)

    def test_names_and_settings(self, name):
        kind = DETECTORS[name]
        assert kind.name == name
        assert "chapter 4" in inspect.getdoc(kind)
        for field in dataclasses.fields(kind):
            assert f"\n{field.name}\n" in inspect.getdoc(kind) or field.name == "seed"
        with pytest.raises(MedlmError, match="no setting 'contamination'; it has"):
            detector(name, contamination=0.1)


def test_an_unknown_detector():
    with pytest.raises(
        MedlmError, match=f"'ocsvm'; expected one of {', '.join(EVERY)}"
    ):
        detector("ocsvm")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("knn", {"k": 0}),
        ("knn", {"k": 2.5}),
        ("knn", {"k": True}),
        ("knn", {"reduce": "median"}),
        ("knn", {"metric": "manhattan"}),
        ("lof", {"k": 0}),
        ("ecod", {"largest_of": "rows"}),
        ("kernel_density", {"bandwidth": 0}),
        ("kernel_density", {"bandwidth": "scott"}),
        ("gaussian_mixture", {"components": 0}),
        ("gaussian_mixture", {"covariance": "round"}),
        ("gaussian_mixture", {"reg_covar": -1}),
        ("isolation_forest", {"trees": 0}),
        ("isolation_forest", {"rows_a_tree": 1}),
        ("one_class_svm", {"nu": 0}),
        ("one_class_svm", {"nu": 1.5}),
        ("one_class_svm", {"gamma": "auto"}),
        ("robust_z", {"seed": -1}),
    ],
)
def test_a_setting_out_of_range(name, settings):
    [(setting, value)] = settings.items()
    with pytest.raises(MedlmError, match=f"^{setting} is {value!r}; expected"):
        detector(name, **settings)


@pytest.mark.parametrize("name", ["knn", "lof", "kernel_density"])
def test_a_training_row_is_judged_by_the_others(name):
    """LOF reads densities of neighbours that know the row, so only roughly there."""
    rows = some_rows(2, 80)
    settings = {"bandwidth": 1.0} if name == "kernel_density" else {"k": 6}
    alone = [
        detector(name, **settings)
        .fit(without(rows, i))
        .anomaly_score(rows[i : i + 1])[0]
        for i in range(len(rows))
    ]
    scores = detector(name, **settings).fit(rows).training_scores()
    if name == "lof":
        assert stats.spearmanr(scores, alone).statistic > 0.9
        return
    assert scores == pytest.approx(alone, rel=1e-9)
    as_new = detector(name, **settings).fit(rows).anomaly_score(rows)
    assert (as_new < scores).all()  # a row finds itself


def test_contamination_moves_the_threshold_and_not_the_ranking():
    rows = some_rows(0)
    ours = detector("isolation_forest", seed=1).fit(rows).anomaly_score(rows)
    for contamination in (0.02, 0.4):
        theirs = ensemble.IsolationForest(
            max_samples=len(rows), contamination=contamination, random_state=1
        ).fit(rows)
        shift = ours + theirs.decision_function(rows)
        assert np.ptp(shift) < 1e-12
        flagged = ours >= anomaly.threshold_for_budget(ours, 1, contamination)
        assert (theirs.predict(rows[flagged]) == -1).all()


# Each against its definition ----------------------------------------------------------


class TestRobustZ:
    def test_against_the_definition(self):
        known, new = some_rows(0), some_rows(1, 20)
        z = np.abs(new - np.median(known, axis=0)) / (
            1.4826 * stats.median_abs_deviation(known, axis=0)
        )
        found = detector("robust_z").fit(known).anomaly_score(new)
        assert found == pytest.approx(z.max(axis=1))

    def test_units_do_not_matter(self):
        known, scale = some_rows(0), np.array([1e-6, 1, 1e3, 7])
        one, two = (detector("robust_z").fit(r) for r in (known, known * scale + 5))
        assert one.training_scores() == pytest.approx(two.training_scores())

    def test_a_few_anomalies_hardly_move_it(self):
        known, new = some_rows(0, 200), some_rows(1, 20)
        spoilt = np.vstack([known, np.full((10, 4), 1e6)])
        one, two = (
            detector("robust_z").fit(r).anomaly_score(new) for r in (known, spoilt)
        )
        assert two == pytest.approx(one, abs=0.25)

    def test_a_column_that_is_mostly_one_value(self):
        column = np.r_[np.full(90, 0.1 + 0.2), np.full(10, 1.3)]
        rows = np.c_[column, np.arange(100)]
        found = detector("robust_z").fit(rows).anomaly_score([[1.3, 49.5], [0.3, 49.5]])
        assert found == pytest.approx([1 / (1.2533 * 0.1), 0], abs=1e-9)


def test_standard_normal_columns_have_a_robust_spread_of_one():
    rows = np.random.default_rng(0).normal(size=(40_000, 2))
    assert detector("robust_z").fit(rows).spread_ == pytest.approx([1, 1], abs=0.02)
    rare = np.where(np.abs(rows) < 0.8, 0, rows)  # MAD 0
    fallen = detector("robust_z").fit(rare).spread_
    assert fallen == pytest.approx(1.2533 * np.abs(rare).mean(axis=0), rel=1e-3)


@pytest.mark.parametrize("name", ["robust_z", "mahalanobis"])
def test_constant_columns_are_named(name):
    rows = some_rows(0, columns=9)
    rows[:, 3], rows[:, 7] = 0.1, 1e6 + 1e-8 * rows[:, 7]
    assert list(anomaly.constant_columns(rows)) == [3, 7]
    for call in (detector(name).fit, Whitening().fit):
        with pytest.raises(
            MedlmError, match=r"Column 3, 7 \(from 0\) is constant: 0.1"
        ):
            call(rows)
    found = detector(name)
    with pytest.raises(MedlmError, match="Column 0, 1, 2, 3, 4 and 4 more"):
        found.fit(np.ones((5, 9)))
    with pytest.raises(MedlmError, match="has not learned"):
        found.training_scores()


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"robust_z", "mahalanobis"}))
def test_the_others_stand_constant_columns(name):
    rows = some_rows(0)
    rows[:, 3] = 2.5
    found = detector(name).fit(rows)
    assert np.isfinite(found.training_scores()).all()
    other = rows[:1].copy()
    other[0, 3] = 50
    change = found.anomaly_score(other)[0] - found.anomaly_score(rows[:1])[0]
    # A forest cannot cut such a column; to ECOD it is one rare value in one sum.
    assert change == 0 if name == "isolation_forest" else change >= 0
    assert change > 0 or name in ("isolation_forest", "ecod")


class TestMahalanobis:
    @pytest.mark.parametrize(("rows", "columns"), [(400, 4), (60, 30), (30, 60)])
    def test_against_an_explicit_inverse(self, rows, columns):
        known, new = some_rows(0, rows, columns), some_rows(1, 20, columns)
        mean, spread = known.mean(axis=0), known.std(axis=0)
        shrunk = covariance.ledoit_wolf((known - mean) / spread)[0]
        inverse = np.linalg.inv(np.outer(spread, spread) * shrunk)
        expected = [math.sqrt((x - mean) @ inverse @ (x - mean)) for x in new]
        found = detector("mahalanobis").fit(known).anomaly_score(new)
        assert found == pytest.approx(expected, rel=1e-7)

    def test_many_rows_need_no_shrinkage(self):
        known, new = some_rows(0, 40_000, 3), some_rows(1, 20, 3)
        inverse = np.linalg.inv(np.cov(known.T))
        expected = [
            spatial.distance.mahalanobis(x, known.mean(0), inverse) for x in new
        ]
        found = detector("mahalanobis").fit(known).anomaly_score(new)
        assert found == pytest.approx(expected, rel=1e-2)

    def test_units_do_not_matter(self):
        known, scale = some_rows(0), np.array([1e-6, 1, 1e3, 7])
        one, two = (detector("mahalanobis").fit(r) for r in (known, known * scale + 5))
        assert one.training_scores() == pytest.approx(two.training_scores(), rel=1e-6)

    def test_columns_that_say_the_same(self):
        x = np.random.default_rng(0).normal(size=200)
        found = detector("mahalanobis").fit(np.c_[x, 2 * x])
        along, across = found.anomaly_score([[1, 2], [1, -2]])
        assert np.isfinite(across) and across > 10 * along
        two = detector("mahalanobis").fit([[0.0, 0.0], [1.0, 1.0]])
        assert np.isfinite(two.anomaly_score([[1, 0]])).all()


def tails_in_a_loop(known, x):
    """Minus log tails of one row, column by column; the row is counted once more."""
    left, right = [], []
    for column, value in zip(known.T, x, strict=True):
        column = [*column, value]
        left.append(-math.log(sum(v <= value for v in column) / len(column)))
        right.append(-math.log(sum(v >= value for v in column) / len(column)))
    return np.array(left), np.array(right)


class TestEcod:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_against_a_slow_loop(self, seed):
        side = [1, 1, -1, -1]  # skewed both ways; rounded for ties
        known = np.round(np.random.default_rng(seed).gamma(1, 3, size=(60, 4)) * side)
        new = np.round(some_rows(seed + 10, 20) * side)
        skew = stats.skew(known, axis=0)
        expected, columns = [], []
        for x in new:
            left, right = tails_in_a_loop(known, x)
            auto = np.where(skew < 0, left, right)
            expected.append(max(left.sum(), right.sum(), auto.sum()))
            columns.append(np.maximum(left, right).sum())
        assert (skew < 0).any() and (skew > 0).any()
        assert detector("ecod").fit(known).anomaly_score(new) == pytest.approx(expected)
        other = detector("ecod", largest_of="columns").fit(known)
        assert other.anomaly_score(new) == pytest.approx(columns)

    def test_the_skewed_side_can_be_the_largest(self):
        rng = np.random.default_rng(0)
        known = np.c_[rng.gamma(1, size=300), -rng.gamma(1, size=300)]
        x = [6.0, -6.0]  # far on the long side of each
        left, right = tails_in_a_loop(known, x)
        expected = right[0] + left[1]
        assert expected > max(left.sum(), right.sum()) + 1
        assert detector("ecod").fit(known).anomaly_score([x])[0] == pytest.approx(
            expected
        )

    def test_a_training_row_counts_itself_once(self):
        known = some_rows(1, 40)
        skew = stats.skew(known, axis=0)
        expected = []
        for i, x in enumerate(known):
            left, right = tails_in_a_loop(without(known, i), x)
            auto = np.where(skew < 0, left, right)
            expected.append(max(left.sum(), right.sum(), auto.sum()))
        assert detector("ecod").fit(known).training_scores() == pytest.approx(expected)

    def test_against_pyod(self):
        peer = pytest.importorskip("pyod.models.ecod", reason="PyOD is not installed")
        known, new = some_rows(0), some_rows(1, 10)
        theirs = peer.ECOD().fit(known)
        ours = detector("ecod", largest_of="columns").fit(known)
        assert ours.training_scores() == pytest.approx(theirs.decision_scores_)
        one_at_a_time = [theirs.decision_function(x[None])[0] for x in new]
        assert ours.anomaly_score(new) == pytest.approx(one_at_a_time)


class TestKnn:
    @pytest.mark.parametrize("columns", [3, 40])  # trees, and all pairs
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("reduce", ["mean", "largest"])
    def test_against_all_pairs(self, metric, reduce, columns):
        known, new = some_rows(0, columns=columns), some_rows(1, 30, columns)
        take = {"mean": np.mean, "largest": np.max}[reduce]
        found = detector("knn", k=4, reduce=reduce, metric=metric).fit(known)

        pairs = np.sort(spatial.distance.cdist(new, known, metric), axis=1)
        expected = take(pairs[:, :4], axis=1)
        assert found.anomaly_score(new) == pytest.approx(expected, rel=1e-6)

        pairs = spatial.distance.cdist(known, known, metric)
        np.fill_diagonal(pairs, np.inf)
        expected = take(np.sort(pairs, axis=1)[:, :4], axis=1)
        assert found.training_scores() == pytest.approx(expected, rel=1e-6)

    def test_repeated_rows_are_neighbours_of_each_other(self):
        rows = np.repeat(some_rows(0, 10), 2, axis=0)
        assert detector("knn", k=1).fit(rows).training_scores() == pytest.approx(0)
        assert detector("knn", k=2).fit(rows).training_scores().min() > 0

    def test_a_row_without_direction(self):
        rows = some_rows(0)
        rows[5] = 0
        with pytest.raises(MedlmError, match=r"Row 5 \(from 0\) is all zeros"):
            detector("knn", metric="cosine").fit(rows)
        detector("knn").fit(rows)


def test_lof_against_scikit_learn():
    known, new = some_rows(0), some_rows(1, 30)
    ours = detector("lof", k=7).fit(known)
    past = neighbors.LocalOutlierFactor(n_neighbors=7).fit(known)
    assert ours.training_scores() == pytest.approx(-past.negative_outlier_factor_)
    theirs = neighbors.LocalOutlierFactor(n_neighbors=7, novelty=True).fit(known)
    assert ours.anomaly_score(new) == pytest.approx(-theirs.score_samples(new))


class TestKernelDensity:
    @pytest.mark.parametrize("columns", [1, 2, 50])
    def test_against_scikit_learn_and_the_sum(self, columns):
        """One leaf: with many leaves scikit-learn is far off in many columns."""
        known, new = some_rows(0, columns=columns), some_rows(1, 30, columns)
        ours = detector("kernel_density", bandwidth=0.7).fit(known).anomaly_score(new)
        theirs = neighbors.KernelDensity(bandwidth=0.7, leaf_size=len(known)).fit(known)
        assert ours == pytest.approx(-theirs.score_samples(new))
        squared = spatial.distance.cdist(new, known, "sqeuclidean") / 0.7**2
        logs = special.logsumexp(-squared / 2, axis=1) - math.log(len(known))
        expected = columns / 2 * math.log(2 * math.pi * 0.7**2) - logs
        assert ours == pytest.approx(expected)

    def test_far_away_is_a_number_too(self):
        found = detector("kernel_density").fit(some_rows(0))
        near, far = found.anomaly_score([[1e4] * 4, [1e5] * 4])
        assert np.isfinite(far) and far > near

    @pytest.mark.parametrize("columns", [2, 60])
    def test_the_bandwidth_is_the_typical_distance(self, columns):
        known = some_rows(0, columns=columns)
        pairs = np.sort(spatial.distance.cdist(known, known), axis=1)
        expected = np.median(pairs[:, 5]) / math.sqrt(columns)
        found = detector("kernel_density").fit(known).bandwidth_
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize("columns", [2, 60])
    def test_no_bandwidth_from_repeated_rows(self, columns):
        rows = np.repeat(some_rows(0, 10, columns), 7, axis=0)
        with pytest.raises(MedlmError, match="equal to 5 others"):
            detector("kernel_density").fit(rows)
        detector("kernel_density", bandwidth=1).fit(rows)


class TestGaussianMixture:
    def test_one_component_is_a_normal_distribution(self):
        known, new = some_rows(0), some_rows(1, 30)
        ours = detector("gaussian_mixture", components=1, reg_covar=1e-9).fit(known)
        normal = stats.multivariate_normal(known.mean(axis=0), np.cov(known.T, ddof=0))
        assert ours.anomaly_score(new) == pytest.approx(-normal.logpdf(new), rel=1e-5)

    @pytest.mark.parametrize(
        ("rows", "columns", "expected"),
        [(200, 4, 0.02), (9000, 2, 0.001), (60, 30, 0.1)],
    )
    def test_fewer_rows_are_trusted_less(self, rows, columns, expected):
        known = some_rows(0, rows, columns)
        found = detector("gaussian_mixture", components=1).fit(known)
        assert found.model_.reg_covar == pytest.approx(expected)

    def test_a_component_can_settle_on_an_anomaly(self):
        """Why it is to be fitted on usual rows."""
        rows = np.vstack([some_rows(0), np.full(4, 100.0)])
        assert detector("gaussian_mixture").fit(rows).training_scores().argmax() != 120
        clean = detector("gaussian_mixture").fit(rows[:-1]).anomaly_score(rows)
        assert clean.argmax() == 120

    def test_settings_arrive(self):
        settings = {"components": 2, "covariance": "diag", "reg_covar": 0.05}
        known = some_rows(0)
        scaled = (known - known.mean(axis=0)) / known.std(axis=0)
        theirs = mixture.GaussianMixture(
            2, covariance_type="diag", reg_covar=0.05, random_state=4
        ).fit(scaled)
        ours = detector("gaussian_mixture", seed=4, **settings).fit(known)
        shift = ours.training_scores() + theirs.score_samples(scaled)
        assert shift == pytest.approx(np.log(known.std(axis=0)).sum())


def test_isolation_forest_against_scikit_learn():
    known, new = some_rows(0, 300), some_rows(1, 30)
    theirs = ensemble.IsolationForest(random_state=5).fit(known)
    ours = detector("isolation_forest", seed=5).fit(known)
    assert ours.anomaly_score(new) == pytest.approx(-theirs.score_samples(new))
    few = detector("isolation_forest", trees=3, rows_a_tree=16).fit(known)
    assert len(few.model_.estimators_) == 3 and few.model_.max_samples_ == 16
    assert not np.array_equal(
        detector("isolation_forest", seed=6).fit(known).anomaly_score(new),
        ours.anomaly_score(new),
    )


def test_one_class_svm_against_scikit_learn():
    known, new = some_rows(0), some_rows(1, 30)
    theirs = svm.OneClassSVM(nu=0.2, gamma=0.1).fit(known)
    ours = detector("one_class_svm", nu=0.2, gamma=0.1).fit(known)
    assert ours.anomaly_score(new) == pytest.approx(-theirs.score_samples(new))
    outside = detector("one_class_svm").fit(some_rows(0, 400))
    model = outside.model_
    share = (outside.training_scores() > -model.offset_[0] + 1e-9).mean()
    assert 0.02 < share < 0.07  # at most nu, but for rows on the boundary


# Vectors and neighbours ---------------------------------------------------------------


class TestWhitening:
    def test_usual_rows_vary_alike_in_every_direction(self):
        rows = some_rows(0, 20_000) * [1, 10, 100, 1e-3]
        white = Whitening().fit(rows).transform(rows)
        assert np.cov(white.T) == pytest.approx(np.eye(4), abs=0.02)
        assert white.mean(axis=0) == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize(("rows", "columns"), [(300, 4), (40, 60)])
    def test_the_length_is_the_mahalanobis_score(self, rows, columns):
        known, new = some_rows(0, rows, columns), some_rows(1, 20, columns)
        length = np.linalg.norm(Whitening().fit(known).transform(new), axis=1)
        score = detector("mahalanobis").fit(known).anomaly_score(new)
        assert length == pytest.approx(score, rel=1e-7)

    def test_components_are_the_widest(self):
        known, new = some_rows(0), some_rows(1, 20)
        every = Whitening().fit(known).transform(new)
        two = Whitening(components=2).fit(known).transform(new)
        assert two == pytest.approx(every[:, :2])
        z = (known - known.mean(axis=0)) / known.std(axis=0)
        first = Whitening(components=1).fit(known).transform(known)[:, 0]
        widest = np.linalg.svd(z, full_matrices=False)[0][:, 0]
        assert abs(np.corrcoef(first, widest)[0, 1]) == pytest.approx(1)

    def test_few_rows_are_not_blown_up(self):
        known, new = np.random.default_rng(0).normal(size=(2, 50, 100))
        white = Whitening().fit(known).transform(new)
        assert np.abs(white).max() < 20

    def test_does_not_depend_on_the_parts(self, monkeypatch):
        known = some_rows(0)
        expected = Whitening().fit(known).transform(known)
        monkeypatch.setattr(anomaly, "_PART_BYTES", 7 * 8 * 4)
        assert Whitening().fit(known).transform(known) == pytest.approx(expected)

    def test_errors(self):
        rows = some_rows(0)
        with pytest.raises(MedlmError, match="whitening has not learned"):
            Whitening().transform(rows)
        with pytest.raises(
            MedlmError, match="components is 5, but there are 4 columns"
        ):
            Whitening(components=5).fit(rows)
        with pytest.raises(MedlmError, match="components is 0"):
            Whitening(components=0)
        with pytest.raises(MedlmError, match="3 columns"):
            Whitening().fit(rows).transform(rows[:, :3])


@pytest.mark.parametrize("kind", [np.float32, float])
def test_unit_length(kind):
    rows = some_rows(0).astype(kind)
    unit = anomaly.unit_length(rows)
    assert unit.dtype == kind
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1, rel=1e-6)
    assert unit == pytest.approx(
        rows / np.linalg.norm(rows, axis=1, keepdims=True), 1e-5
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_against_all_pairs(metric):
    known, new = some_rows(0), some_rows(1, 30)
    places, distances = nearest(known, new, 3, metric)
    pairs = spatial.distance.cdist(new, known, metric)
    assert np.array_equal(places, np.argsort(pairs, axis=1)[:, :3])
    assert distances == pytest.approx(np.sort(pairs, axis=1)[:, :3], rel=1e-6)
    places, distances = nearest(known, known[:4], 1, metric)
    assert np.array_equal(places[:, 0], range(4))
    assert distances == pytest.approx(0, abs=1e-7)


def test_nearest_refuses():
    rows = some_rows(0)
    for wrong, message in [
        ({"k": 121}, "train_rows has 120 rows; expected at least 121"),
        ({"k": 0}, "k is 0"),
        (
            {"metric": "hamming"},
            "metric is 'hamming'; expected one of euclidean, cosine",
        ),
    ]:
        with pytest.raises(MedlmError, match=message):
            nearest(rows, rows, **wrong)
    with pytest.raises(MedlmError, match="2 columns, the training rows have 4"):
        nearest(rows, rows[:, :2])


# From score to decision ---------------------------------------------------------------


class TestBudget:
    @pytest.mark.parametrize("seed", range(40))
    def test_never_more_than_the_budget_and_no_row_less_than_it_allows(self, seed):
        rng = np.random.default_rng(seed)
        scores = np.round(rng.normal(size=rng.integers(50, 300)), rng.integers(0, 4))
        notes, reviews = 300, int(rng.integers(20, 301))
        allowed = len(scores) * reviews / notes
        try:
            threshold = anomaly.threshold_for_budget(scores, notes, reviews)
        except MedlmError:
            assert (scores == scores.max()).sum() > allowed  # nothing fits
            return
        flagged = (scores >= threshold).sum()
        assert 0 < flagged <= allowed
        lower = scores[scores < threshold]
        assert not len(lower) or (scores >= lower.max()).sum() > allowed

    def test_without_ties_the_budget_is_used_up(self):
        scores = np.random.default_rng(0).permutation(300)
        for reviews in range(1, 301):
            threshold = anomaly.threshold_for_budget(scores, 300, reviews)
            assert (scores >= threshold).sum() == reviews

    def test_equal_scores_at_the_border_are_left_out(self):
        assert anomaly.threshold_for_budget([5, 4, 4, 4, 1, 0], 6, 3) == 5
        assert anomaly.threshold_for_budget([5, 4, 4, 4, 1, 0], 6, 4) == 4
        assert anomaly.threshold_for_budget([np.inf, 4, 4, 4, 1, 0], 6, 2) == np.inf

    def test_all_notes_may_be_read(self):
        assert anomaly.threshold_for_budget([3, 1, 1], 10, 10) == 1

    @pytest.mark.parametrize(
        ("scores", "notes", "reviews", "message"),
        [
            ([1, 2], 10, 11, "11 reviews for 10 notes"),
            ([1, 2], 10, 0, "0 reviews for 10 notes"),
            ([1, 2], float("nan"), 1, "expected above 0 reviews"),
            ([], 10, 5, "at least one"),
            ([1, np.nan], 10, 5, "NaN in 1"),
            ([1, 2], 300, 20, "scores of at least 15 notes"),
            ([7, 7, 7, 1], 4, 2, "3 of 4 notes share the highest score"),
            ([np.inf, np.inf, 1], 3, 1, "2 of 3 notes share the highest score"),
        ],
    )
    def test_errors(self, scores, notes, reviews, message):
        with pytest.raises(MedlmError, match=message):
            anomaly.threshold_for_budget(scores, notes, reviews)


class TestPrecisionAt:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_is_the_mean_over_orders_of_equal_scores(self, seed):
        label, score = some_scores(seed)
        rng = np.random.default_rng(seed)
        for k in (1, 7, 30, 60):
            found = []
            for _ in range(1000):
                order = np.lexsort([rng.random(60), -score])
                found.append(label[order[:k]].mean())
            expected = np.mean(found)
            assert anomaly.precision_at(label, score, k) == pytest.approx(
                expected, abs=0.05
            )

    @pytest.mark.parametrize("seed", SEEDS)
    def test_without_ties(self, seed):
        label, score = some_scores(seed, ties=False)
        for k in range(1, 61):
            expected = label[np.argsort(-score)[:k]].mean()
            assert anomaly.precision_at(label, score, k) == pytest.approx(expected)

    def test_errors(self):
        assert anomaly.precision_at([0, 0, 0], [1, 2, 3], 2) == 0
        for label, score, k, message in [
            ([0, 1], [1, 2], 3, "k is 3, but there are 2 rows"),
            ([0, 1], [1, 2], 0, "k is 0"),
            ([0, 2], [1, 2], 1, "expected 0 or 1"),
            ([0, 1, 1], [1, 2], 1, "3 labels"),
            ([0, 1], [1, np.nan], 1, "NaN"),
        ]:
            with pytest.raises(MedlmError, match=message):
                anomaly.precision_at(label, score, k)


def repeated(label, score, anomalies, usual):
    """Every anomaly and every usual row as often as said."""
    times = np.where(label == 1, anomalies, usual)
    return np.repeat(label, times), np.repeat(score, times)


class TestAtAnotherPrevalence:
    @pytest.mark.parametrize("ties", [True, False])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_average_precision_against_repeated_rows(self, seed, ties):
        label, score = some_scores(seed, ties=ties)
        for anomalies, usual in ((1, 1), (1, 20), (7, 3)):
            many, scores = repeated(label, score, anomalies, usual)
            expected = oracle.average_precision_score(many, scores)
            found = anomaly.average_precision_at(label, score, many.mean())
            assert found == pytest.approx(expected)
        own = anomaly.average_precision_at(label, score, label.mean())
        assert own == pytest.approx(metrics.average_precision(label, score))

    def test_guessing_scores_the_contamination(self):
        rng = np.random.default_rng(0)
        label, score = rng.random(200_000) < 0.3, rng.random(200_000)
        for share in (0.02, 0.5):
            found = anomaly.average_precision_at(label, score, share)
            assert found == pytest.approx(share, rel=0.05)
        assert anomaly.average_precision_at([0, 1], [1, 1], 0.1) == pytest.approx(0.1)

    @pytest.mark.parametrize("ties", [True, False])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_expected_precision_against_repeated_rows(self, seed, ties):
        label, score = some_scores(seed, ties=ties)
        for anomalies, usual in ((1, 1), (1, 20), (7, 3)):
            many, scores = repeated(label, score, anomalies, usual)
            for k in {1, len(many) // 10, len(many) // 2, len(many)}:
                expected = anomaly.precision_at(many, scores, k)
                found = anomaly.expected_precision(
                    label, score, many.mean(), k / len(many)
                )
                assert found == pytest.approx(expected)

    def test_all_flagged_is_the_prevalence(self):
        label, score = some_scores(0)
        assert anomaly.expected_precision(label, score, 0.01, 1) == pytest.approx(0.01)

    @pytest.mark.parametrize("wrong", [0, 1, -0.1, 2, "rare", np.nan])
    def test_errors(self, wrong):
        label, score = some_scores(0)
        with pytest.raises(MedlmError, match="contamination is"):
            anomaly.average_precision_at(label, score, wrong)
        with pytest.raises(MedlmError, match="prevalence is"):
            anomaly.expected_precision(label, score, wrong, 0.5)
        if wrong != 1:
            with pytest.raises(MedlmError, match="flagged_share is"):
                anomaly.expected_precision(label, score, 0.5, wrong)
        with pytest.raises(metrics.UndefinedError):
            anomaly.average_precision_at([0, 0], [1, 2], 0.5)
