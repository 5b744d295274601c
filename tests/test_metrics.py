"""metrics.py: scikit-learn and SciPy as oracles, and the coverage of the intervals."""

import doctest
import warnings

import numpy as np
import pytest
import sklearn.metrics as oracle
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve

from medlm_utils import metrics, runtime
from medlm_utils.metrics import Estimate, UndefinedError
from medlm_utils.runtime import MedlmError

SEEDS = range(10)


def some_classes(seed, rows=60, classes=5, absent=()):
    """Labels and predictions that agree more often than not, without some classes."""
    rng = np.random.default_rng(seed)
    present = np.setdiff1d(np.arange(classes), absent)
    label = rng.choice(present, size=rows)
    predicted = np.where(rng.random(rows) < 0.6, label, rng.choice(present, size=rows))
    return label, predicted


def some_scores(seed, rows=80, ties=True):
    """Labels 0 and 1 with scores that tell them apart a little, rounded for ties."""
    rng = np.random.default_rng(seed)
    label = np.r_[0, 1, rng.random(rows - 2) < rng.uniform(0.1, 0.9)].astype(int)
    score = rng.normal(size=rows) + label
    return label, np.round(score, 0 if ties else 12)


def some_probabilities(seed, rows=200, classes=4):
    """Rows of a Dirichlet distribution, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    exact = rng.dirichlet(np.full(classes, 0.7), size=rows)
    return exact, drawn_from(exact, rng)


def drawn_from(exact, rng):
    return (exact.cumsum(axis=1) > rng.random((len(exact), 1))).argmax(axis=1)


def clustered(rng, patients=80):
    """Values of 1 to 9 rows a patient that share most of their variance; the mean is 0.

    The size of a patient is drawn apart from its effect, so the mean over rows is 0.
    """
    patient = np.repeat(np.arange(patients), rng.integers(1, 10, size=patients))
    effect = rng.normal(size=patients)
    return effect[patient] + 0.5 * rng.normal(size=len(patient)), patient


# Estimates ----------------------------------------------------------------------------


def test_text_of_an_estimate():
    estimate = Estimate(0.87, 0.79, 0.93, 120)
    assert str(estimate) == "0.870 (95% CI 0.790 to 0.930; 120 patients)"
    assert estimate.text(2) == "0.87 (95% CI 0.79 to 0.93; 120 patients)"
    assert estimate.approx() == "≈0.870 (95% CI ≈0.790 to ≈0.930; 120 patients)"
    other = Estimate(1.5, -0.25, 3, 7, "nats", 0.9, "notes", "only seven")
    assert other.text() == "1.50 nats (90% CI -0.250 to 3.00; 7 notes; only seven)"


def test_an_estimate_can_be_recorded():
    bare, full = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.5, 0.4, 0.6, 9, "nats")
    given = {"bare": bare.as_metric(), "full": full.as_metric()}
    stored = runtime.results(given, 1.0, "cpu")["metrics"]
    assert stored["bare"] == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert stored["full"]["unit"] == "nats"


def test_examples_of_the_docstrings():
    assert doctest.testmod(metrics).failed == 0


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_wilson_against_scipy(level):
    for n in (1, 2, 17, 400):
        for successes in {0, 1, n // 3, n - 1, n}:
            ends = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
            found = metrics.wilson(successes, n, level)
            assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
            assert (found.value, found.n) == (successes / n, n)


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5), (1, 2, 0), (1, 2, 1.0)])
def test_wilson_refuses(bad):
    with pytest.raises(MedlmError, match="expected"):
        metrics.wilson(*bad)


# Intervals by patient -----------------------------------------------------------------


def test_coverage_by_patient_and_by_row():
    rng = np.random.default_rng(1)
    by_patient, by_row = 0, 0
    for _ in range(400):
        values, patient = clustered(rng)
        right = metrics.mean_by_patient(values, patient, draws=400)
        wrong = metrics.mean_by_patient(values, np.arange(len(values)), draws=200)
        by_patient += right.low <= 0 <= right.high
        by_row += wrong.low <= 0 <= wrong.high
    assert 0.92 <= by_patient / 400 <= 0.98
    assert by_row / 400 < 0.75


@pytest.mark.slow
def test_coverage_of_auroc_by_patient():
    rng = np.random.default_rng(2)
    truth = special.ndtr(1 / np.sqrt(2 * 1.25))  # scores differ by 1, variance 1.25
    covered = 0
    for _ in range(200):
        noise, patient = clustered(rng, patients=150)
        ill = (rng.random(150) < 0.3)[patient]
        found = metrics.interval_by_patient(
            metrics.auroc, patient, ill, noise + ill, draws=200
        )
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / 200 <= 0.98


def test_sums_and_rows_give_the_same_interval():
    rng = np.random.default_rng(3)
    values, patient = clustered(rng)
    patient = rng.permutation(1000)[patient]  # names in any order, and rows too
    order = rng.permutation(len(values))
    values, patient, weights = values[order], patient[order], rng.random(len(values))
    slow = metrics.interval_by_patient(np.mean, patient, values, seed=5)
    fast = metrics.mean_by_patient(values, patient, seed=5)
    ends = fast.value, fast.low, fast.high
    assert ends == pytest.approx((slow.value, slow.low, slow.high))
    slow = metrics.interval_by_patient(
        lambda v, w: np.average(v, weights=w), patient, values, weights, level=0.8
    )
    fast = metrics.mean_by_patient(values, patient, weights, level=0.8)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))
    top = metrics.ratio_by_patient(values * weights, weights, patient, level=0.8)
    assert (top.low, top.high) == pytest.approx((slow.low, slow.high))
    assert fast.n == 80 and fast.level == 0.8


def test_a_resample_holds_whole_patients():
    patient = np.array(["b", "a", "b", "c", "a", "b"])
    seen = []

    def watch(rows):
        seen.append(np.bincount(rows, minlength=6))
        return 0.5

    found = metrics.interval_by_patient(watch, patient, np.arange(6), draws=200)
    for times in seen[1:]:
        assert times[0] == times[2] == times[5] and times[1] == times[4]
        assert times[0] + times[1] + times[3] == 3
    assert (seen[0] == 1).all()
    assert "no resample differs" in str(found)


def test_the_interval_repeats_itself_and_widens_with_the_level():
    values, patient = clustered(np.random.default_rng(4))
    first = metrics.mean_by_patient(values, patient)
    assert first == metrics.mean_by_patient(values, patient)
    assert first != metrics.mean_by_patient(values, patient, seed=1)
    wide = metrics.mean_by_patient(values, patient, level=0.99)
    assert wide.low < first.low < first.value < first.high < wide.high


def test_names_of_patients_do_not_matter():
    values, patient = clustered(np.random.default_rng(4))
    found = metrics.mean_by_patient(values, patient)
    names = np.array([f"p{number:03}" for number in patient], dtype=object)
    assert metrics.mean_by_patient(values, names) == found
    assert metrics.mean_by_patient(values, 1000 + patient) == found


def test_resamples_of_one_class_are_left_out_and_said():
    label, score = np.array([1, 1, 1, 1] + [0] * 36), np.arange(40) % 7
    found = metrics.interval_by_patient(metrics.auroc, np.arange(40), label, score)
    draws = np.random.default_rng(0)
    empty = sum((draws.integers(40, size=40) > 3).all() for _ in range(1000))
    assert 0 < empty < 100
    assert f"; 40 patients; {empty} of 1000 resamples left out)" in found.text()
    assert f"≈{empty} of 1000" in found.approx()
    label[:3] = 0
    with pytest.raises(
        UndefinedError, match=r"has no value in 3\d\d of 1000 resamples"
    ):
        metrics.interval_by_patient(metrics.auroc, np.arange(40), label, score)


def test_only_the_undefined_is_left_out():
    calls = []

    def fails_later(values):
        calls.append(1)
        if len(calls) > 10:
            raise ValueError("a mistake in the statistic")
        return values.mean()

    with pytest.raises(ValueError, match="a mistake"):
        metrics.interval_by_patient(fails_later, np.arange(9), np.arange(9))


def test_agreeing_truth_values_get_the_interval_of_wilson():
    patient = np.repeat(np.arange(30), 2)
    every = metrics.mean_by_patient(np.ones(60, dtype=bool), patient)
    assert (every.low, every.high) == (metrics.wilson(30, 30).low, 1)
    assert every.n == 30 and "Wilson" in str(every) and "30 patients" in str(every)
    none = metrics.mean_by_patient(np.zeros(60, dtype=bool), patient)
    assert (none.low, none.high) == (0, metrics.wilson(0, 30).high)
    # Differences that are all 0 are no share.
    same = metrics.mean_by_patient(np.zeros(60), patient)
    assert (same.low, same.high) == (0, 0) and "no resample differs" in str(same)


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(6)
    values, patient = clustered(rng)
    better = values + 0.1 + 0.05 * rng.normal(size=len(values))
    gain = metrics.mean_by_patient(better - values, patient)
    assert gain.low > 0
    assert (
        metrics.mean_by_patient(better, patient).low
        < metrics.mean_by_patient(values, patient).high
    )


NAN = float("nan")
BY_PATIENT = [
    ({"patients": [1, 2]}, "patients has 2"),
    ({"patients": []}, "at least one row"),
    ({"patients": [5, 5, 5]}, "one patient"),
    ({"patients": [1, None, 2]}, "1 of 3 rows have no patient.*row 1"),
    ({"patients": [1.0, 2.0, NAN]}, "have no patient"),
    ({"patients": ["a", "", "b"]}, "have no patient"),
    ({"values": [1, NAN, 2]}, "NaN in 1 of 3"),
    ({"values": ["a", "b", "c"]}, "cannot be read as numbers"),
    ({"weights": [1, 1]}, "as many"),
    ({"weights": [1, -1, 1]}, "-1; expected 0 or more"),
    ({"weights": [0, 0, 0]}, "statistic of all rows is nan"),
    ({"level": 95}, "between 0 and 1"),
    ({"draws": 39}, "expected 40 or more"),
    ({"draws": 199, "level": 0.99}, "expected 200 or more"),
]


@pytest.mark.parametrize(("change", "says"), BY_PATIENT)
def test_mean_by_patient_refuses(change, says):
    with pytest.raises(MedlmError, match=says):
        metrics.mean_by_patient(**{"values": [1, 2, 3], "patients": [1, 2, 3]} | change)


def test_interval_by_patient_refuses():
    with pytest.raises(MedlmError, match="array 2 has 2 rows"):
        metrics.interval_by_patient(np.mean, [1, 2, 3], [1, 2, 3], [1, 2])
    with pytest.raises(UndefinedError, match="all rows is inf"):
        metrics.interval_by_patient(np.mean, [1, 2], [1, np.inf])
    with pytest.raises(UndefinedError, match="0 of 3 rows are positive"):
        metrics.interval_by_patient(metrics.auroc, [1, 2, 3], [0, 0, 0], [1, 2, 3])


# Right and wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("absent", [(), (0,), (1, 4)])
@pytest.mark.parametrize("seed", SEEDS)
def test_classes_against_sklearn(seed, absent):
    label, predicted = some_classes(seed, absent=absent)
    assert metrics.accuracy(label, predicted) == oracle.accuracy_score(label, predicted)
    counts = metrics.confusion(label, predicted, 5)
    expected = oracle.confusion_matrix(label, predicted, labels=np.arange(5))
    assert counts.dtype.kind == "i" and (counts == expected).all()
    ours = metrics.precision_recall_f1(counts)
    theirs = oracle.precision_recall_fscore_support(
        label, predicted, labels=np.arange(5), zero_division=np.nan
    )[:3]
    np.testing.assert_allclose(ours, theirs)
    for average in ("macro", "weighted"):
        assert metrics.f1(label, predicted, 5, average) == pytest.approx(
            oracle.f1_score(label, predicted, average=average, zero_division=0)
        )
    np.testing.assert_allclose(metrics.f1(label, predicted, 5, None), ours[2])


def test_a_class_without_value():
    # Class 1 is never named, class 2 has no rows, class 3 has neither.
    precision, recall, f1 = metrics.precision_recall_f1(
        metrics.confusion([0, 0, 1], [0, 2, 0], 4)
    )
    np.testing.assert_equal(precision, [0.5, NAN, 0, NAN])
    np.testing.assert_equal(recall, [0.5, 0, NAN, NAN])
    np.testing.assert_equal(f1, [0.5, 0, 0, NAN])
    assert metrics.f1([0, 0, 1], [0, 2, 0], 4) == pytest.approx(0.5 / 3)


def test_pooled_is_not_the_mean_of_batches():
    label, predicted = some_classes(0, rows=160)
    batches = np.split(np.arange(160), 20)
    mean = np.mean([metrics.f1(label[rows], predicted[rows], 5) for rows in batches])
    assert abs(mean - metrics.f1(label, predicted, 5)) > 0.02


CLASSES = [
    (([0, 1], [0, 1, 1]), "label has 2, predicted has 3"),
    (([], []), "at least one row"),
    (([[0, 1]], [[0, 1]]), r"shape \(1, 2\)"),
    (([0, 1], [0, 3]), "predicted holds 3 .row 1.* 0 to 2"),
    (([-1, 1], [0, 1]), "label holds -1"),
    (([0.5, 1], [0, 1]), "label holds 0.5"),
    (([NAN, 1], [0, 1]), "label holds NaN"),
    (([np.inf, 1], [0, 1]), "label holds inf"),
    ((["cough", "fever"], [0, 1]), "cannot be read as numbers"),
]


@pytest.mark.parametrize(("given", "says"), CLASSES)
def test_confusion_refuses(given, says):
    for function in (metrics.confusion, metrics.f1):
        with pytest.raises(MedlmError, match=says):
            function(*given, 3)


def test_others_of_their_kind_refuse():
    with pytest.raises(MedlmError, match="as many in each"):
        metrics.accuracy([0, 1], [0])
    with pytest.raises(MedlmError, match="square"):
        metrics.precision_recall_f1([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(MedlmError, match="square"):
        metrics.precision_recall_f1([[1, 2], [-4, 5]])
    with pytest.raises(MedlmError, match="'micro'; expected 'macro'"):
        metrics.f1([0, 1], [0, 1], 2, "micro")


# One disease against the rest ---------------------------------------------------------


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_scores_against_sklearn(seed, ties):
    label, score = some_scores(seed, ties=ties)
    expected = oracle.roc_auc_score(label, score)
    assert metrics.auroc(label, score) == pytest.approx(expected)
    expected = oracle.average_precision_score(label, score)
    assert metrics.average_precision(label, score) == pytest.approx(expected)
    expected = oracle.roc_curve(label, score, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc_curve(label, score), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)
    # scikit-learn begins with the lowest threshold, and adds a point without one.
    precision, recall, threshold = oracle.precision_recall_curve(label, score)
    expected = precision[-2::-1], recall[-2::-1], threshold[::-1]
    ours = metrics.precision_recall_curve(label, score)
    for our, their in zip(ours, expected, strict=True):
        np.testing.assert_allclose(our, their)


@pytest.mark.parametrize("seed", SEEDS)
def test_auroc_counts_pairs(seed):
    label, score = some_scores(seed)
    apart = np.subtract.outer(score[label == 1], score[label == 0])
    assert metrics.auroc(label, score) == pytest.approx(
        (apart > 0).mean() + (apart == 0).mean() / 2
    )
    assert metrics.auroc(label, -score) == pytest.approx(
        1 - metrics.auroc(label, score)
    )
    assert metrics.auroc(label, np.exp(score)) == metrics.auroc(label, score)
    assert metrics.auroc(label, np.zeros(len(label))) == 0.5
    assert metrics.average_precision(label, np.zeros(len(label))) == label.mean()
    assert metrics.auroc(label, np.where(label, score, -np.inf)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_sensitivity_and_specificity_against_recall(seed):
    label, score = some_scores(seed)
    for threshold in (-1, 0, 1, 2):
        ours = metrics.sensitivity_specificity(label, score, threshold)
        called = score >= threshold
        theirs = [oracle.recall_score(label, called, pos_label=k) for k in (1, 0)]
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_threshold_is_the_highest_that_suffices(seed, ties):
    label, score = some_scores(seed, ties=ties)
    for wanted in (0.01, 0.5, 0.9, 1):
        threshold = metrics.threshold_for_sensitivity(label, score, wanted)
        found, _ = metrics.sensitivity_specificity(label, score, threshold)
        higher, _ = metrics.sensitivity_specificity(
            label, score, np.nextafter(threshold, np.inf)
        )
        assert higher < wanted <= found


def test_the_threshold_is_not_moved_by_rounding():
    label, score = np.ones(100, dtype=int), np.arange(100)
    assert 0.55 * 100 > 55
    assert metrics.threshold_for_sensitivity(label, score, 0.55) == 45


def test_predictive_values_count_people():
    # Of 10,000 people 100 are ill.
    positive, negative = metrics.predictive_values(0.9, 0.8, 0.01)
    assert positive == pytest.approx(90 / (90 + 1980))
    assert negative == pytest.approx(7920 / (7920 + 10))
    assert metrics.predictive_values(0.95, 0.95, 0.01)[0] == pytest.approx(
        0.16, abs=5e-3
    )
    positive, negative = metrics.predictive_values(0.9, 0.8, [0, 0.5, 1])
    np.testing.assert_allclose(positive, [0, 0.9 / 1.1, 1])
    np.testing.assert_allclose(negative, [1, 0.8 / 0.9, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.predictive_values(0, 1, 0.5)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_predictive_values_are_precision_at_the_prevalence_of_the_rows(seed):
    label, score = some_scores(seed)
    found = metrics.sensitivity_specificity(label, score, 0)
    ours = metrics.predictive_values(*found, label.mean())
    theirs = [oracle.precision_score(label, score >= 0, pos_label=k) for k in (1, 0)]
    assert ours == pytest.approx(theirs)


SCORED = [
    metrics.auroc,
    metrics.roc_curve,
    metrics.average_precision,
    metrics.precision_recall_curve,
    lambda label, score: metrics.sensitivity_specificity(label, score, 0.5),
    lambda label, score: metrics.threshold_for_sensitivity(label, score, 0.5),
]


@pytest.mark.parametrize("function", SCORED)
def test_scores_are_checked(function):
    for label, score, says in (
        ([0, 1, 1], [1, 2], "label has 3, score has 2"),
        ([], [], "at least one row"),
        ([0, 1, 2], [1, 2, 3], "label holds 2"),
        ([0, 1, 1], [1, NAN, 3], "score holds NaN in 1 of 3"),
        ([0, 0, 0], [1, 2, 3], "0 of 3 rows are positive"),
    ):
        with pytest.raises(MedlmError, match=says):
            function(label, score)
    with pytest.raises(UndefinedError):
        function([0, 0, 0], [1, 2, 3])


def test_who_needs_both_classes():
    for function in (SCORED[0], SCORED[1], SCORED[4]):
        with pytest.raises(
            UndefinedError, match=r"2 of 2 rows are positive.*each class"
        ):
            function([1, 1], [1, 2])
    assert metrics.average_precision([1, 1], [1, 2]) == 1
    for wanted in (0, 1.1, NAN):
        with pytest.raises(MedlmError, match="sensitivity is"):
            metrics.threshold_for_sensitivity([0, 1], [0, 1], wanted)
    with pytest.raises(MedlmError, match=r"prevalence is 1\.2"):
        metrics.predictive_values(0.9, 0.9, 1.2)


# Probabilities ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_probabilities_against_sklearn(seed):
    shares, label = some_probabilities(seed)
    theirs = oracle.log_loss(label, shares, labels=np.arange(4))
    assert metrics.log_loss(label, shares) == pytest.approx(theirs)
    assert metrics.surprisal(label, shares).mean() == pytest.approx(theirs)
    apart = sum(oracle.brier_score_loss(label == k, shares[:, k]) for k in range(4))
    assert metrics.brier(label, shares) == pytest.approx(apart)
    two = np.stack([1 - shares[:, 0], shares[:, 0]], axis=1)
    ill = label == 0
    theirs = oracle.brier_score_loss(ill, two[:, 1])
    assert metrics.brier(ill, two) == pytest.approx(2 * theirs)
    assert metrics.log_loss(ill, two) == pytest.approx(oracle.log_loss(ill, two))


def test_the_ends_of_losses():
    sure = np.eye(3)
    assert metrics.log_loss([0, 1, 2], sure) == 0
    assert metrics.brier([0, 1, 2], sure) == 0
    assert metrics.brier([1, 2, 0], sure) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.log_loss([0, 1, 1], sure) == np.inf
    assert metrics.log_loss([0, 1], np.full((2, 3), 1 / 3)) == pytest.approx(np.log(3))


def test_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)) * 10
    found = metrics.softmax(logits)
    np.testing.assert_allclose(found.sum(axis=-1), 1)
    apart = np.log(found[..., 1] / found[..., 0])
    np.testing.assert_allclose(apart, logits[..., 1] - logits[..., 0])
    np.testing.assert_allclose(metrics.softmax([1e4, 1e4, -np.inf]), [0.5, 0.5, 0])
    for bad in ([NAN, 1], [np.inf, 1], [-np.inf, -np.inf]):
        with pytest.raises(MedlmError, match="diverged"):
            metrics.softmax(bad)


@pytest.mark.parametrize("seed", SEEDS)
def test_divergence_is_never_negative_and_is_the_expected_excess(seed):
    exact, _ = some_probabilities(seed)
    model = metrics.softmax(np.log(exact) * 0.7 + 0.2)
    apart = metrics.kl_divergence(exact, model)
    np.testing.assert_allclose(apart, stats.entropy(exact, model, axis=1), atol=1e-12)
    assert (apart >= 0).all() and apart.max() > 0.01
    assert (metrics.kl_divergence(exact, exact) == 0).all()
    near = metrics.kl_divergence(exact, exact * (1 + 9e-4))  # rounded probabilities
    assert (near >= 0).all() and near.max() < 1e-12
    # The expectation of the realised excess over all labels, row by row.
    rows = np.arange(len(exact))
    each = np.stack(
        [
            metrics.surprisal(np.full(len(exact), k), model)
            - metrics.surprisal(np.full(len(exact), k), exact)
            for k in range(4)
        ],
        axis=1,
    )
    np.testing.assert_allclose((exact * each).sum(axis=1), apart, atol=1e-12)
    label = drawn_from(exact, np.random.default_rng(seed))
    ours = metrics.excess_log_loss(label, model, exact)
    assert ours == pytest.approx(each[rows, label].mean())
    assert metrics.excess_log_loss(label, exact, exact) == 0


def test_excess_on_many_labels_is_the_divergence():
    exact, label = some_probabilities(1, rows=100_000)
    model = metrics.softmax(np.log(exact) * 0.7)
    rows = metrics.surprisal(label, model) - metrics.surprisal(label, exact)
    noise = rows.std() / np.sqrt(len(rows))
    realised = metrics.excess_log_loss(label, model, exact)
    expected = metrics.kl_divergence(exact, model).mean()
    assert abs(realised - expected) < 3 * noise < expected / 5


def test_what_the_model_excludes():
    assert metrics.kl_divergence([[0.5, 0.5]], [[1, 0]]) == np.inf
    assert metrics.kl_divergence([[1, 0]], [[0.5, 0.5]]) == pytest.approx(np.log(2))
    assert metrics.excess_log_loss([1], [[1, 0]], [[0.5, 0.5]]) == np.inf
    with pytest.raises(MedlmError, match="0 to 1 of the labels"):
        metrics.excess_log_loss([1], [[0.5, 0.5]], [[1, 0]])


PROBABILITIES = [
    (([0, 1], [[0.5, 0.6], [0.5, 0.5]]), "Row 0 .* sums to 1.1"),
    (([0, 1], [[0.5, 0.5], [1.5, -0.5]]), "Row 1 .* smallest is -0.5"),
    (([0, 1], [[0.5, 0.5], [NAN, 0.5]]), "Row 1 .* sums to nan"),
    (([0, 1], [0.5, 0.5]), r"shape \(2,\).*both 'no' and 'yes'"),
    (([], np.zeros((0, 2))), "shape"),
    (([0, 2], [[0.5, 0.5], [0.5, 0.5]]), "label holds 2"),
    (([0], [[0.5, 0.5], [0.5, 0.5]]), "label has 1, probabilities has 2"),
]


@pytest.mark.parametrize(("given", "says"), PROBABILITIES)
def test_probabilities_are_checked(given, says):
    for function in (metrics.surprisal, metrics.log_loss, metrics.brier):
        with pytest.raises(MedlmError, match=says):
            function(*given)
    with pytest.raises(MedlmError):
        metrics.excess_log_loss(*given, given[1])


def test_shapes_must_agree():
    two, three = np.full((4, 2), 1 / 2), np.full((4, 3), 1 / 3)
    with pytest.raises(MedlmError, match=r"\(4, 3\), the exact ones \(4, 2\)"):
        metrics.kl_divergence(two, three)
    with pytest.raises(MedlmError, match=r"\(4, 2\), the exact ones \(4, 3\)"):
        metrics.excess_log_loss([0, 1, 0, 1], two, three)


def test_single_precision_is_good_enough():
    logits = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    half = special.softmax(logits, axis=1).astype(np.float16)
    label = np.arange(50) % 12
    exact = metrics.log_loss(label, metrics.softmax(logits))
    assert metrics.log_loss(label, half) == pytest.approx(exact, abs=1e-3)


# Calibration --------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 4, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_against_sklearn(seed, bins):
    rng = np.random.default_rng(seed)
    sure = rng.beta(5, 2, size=150)
    right = rng.random(150) < sure**2
    table = metrics.reliability(sure, right, bins)
    share, promised = calibration_curve(right, sure, n_bins=bins)
    full = table.count > 0
    np.testing.assert_allclose(table.correct[full], share)
    np.testing.assert_allclose(table.confidence[full], promised)
    assert np.isnan(table.correct[~full]).all()
    assert table.count.sum() == 150 and len(table.edges) == bins + 1
    counts, _ = np.histogram(sure, table.edges)
    assert (table.count == counts).all()
    apart = np.abs(share - promised) @ table.count[full] / 150
    found = metrics.expected_calibration_error(sure, right, bins)
    assert found == pytest.approx(apart)


def test_edges_belong_to_the_bin_above_them():
    table = metrics.reliability([0, 0.5, 1, 1], [0, 1, 1, 0], 2)
    assert table.count.tolist() == [1, 3]
    assert table.correct.tolist() == [0, 2 / 3]


def test_calibration_error_of_the_calibrated_is_small_but_not_zero():
    rng = np.random.default_rng(0)
    sure = rng.random(200_000)
    right = rng.random(200_000) < sure
    few = metrics.expected_calibration_error(sure[:500], right[:500])
    assert few > 0.02 > 0.005 > metrics.expected_calibration_error(sure, right)


def test_reliability_refuses():
    for given, says in (
        (([0.5, 1.2], [0, 1]), "confidence is"),
        (([0.5, NAN], [0, 1]), "confidence is"),
        (([0.5, 0.5], [0, 2]), "correct holds 2"),
        (([0.5], [0, 1]), "confidence has 1, correct has 2"),
        (([0.5], [0], 0), "bins is 0"),
        (([], []), "confidence is"),
    ):
        for function in (metrics.reliability, metrics.expected_calibration_error):
            with pytest.raises(MedlmError, match=says):
                function(*given)


def test_calibrated_logits_have_the_temperature_one():
    exact, label = some_probabilities(0, rows=20_000)
    logits = np.log(exact)
    found = metrics.fit_temperature(logits, label)
    assert found == pytest.approx(1, abs=0.03)
    for factor in (0.2, 3, 1e6):
        scaled = metrics.fit_temperature(factor * logits, label)
        assert scaled == pytest.approx(factor * found)
    moved = metrics.fit_temperature(logits + np.arange(20_000)[:, None], label)
    assert moved == pytest.approx(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_has_the_smallest_loss(seed):
    exact, label = some_probabilities(seed)
    logits = 2.5 * np.log(exact) + np.random.default_rng(seed).normal(size=exact.shape)

    def loss(log_temperature):
        shares = metrics.softmax(logits / np.exp(log_temperature))
        return metrics.log_loss(label, shares)

    found = metrics.fit_temperature(logits, label)
    best = optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded")
    assert np.log(found) == pytest.approx(best.x, abs=1e-3)
    assert loss(np.log(found)) <= best.fun + 1e-12
    assert loss(np.log(found)) < loss(0)


def test_temperature_of_hard_rows():
    # One row is wrong, by little: a sharp temperature, and still a number.
    logits, label = [[5, 0], [5, 0], [0, 1e-6], [9, 0]], [0, 0, 0, 0]
    assert 0 < metrics.fit_temperature(logits, label) < 1
    with pytest.raises(UndefinedError, match="No row is wrong"):
        metrics.fit_temperature([[2, 0], [0, 1]], [0, 1])
    with pytest.raises(UndefinedError, match="say nothing"):
        metrics.fit_temperature([[2, 0], [0, 1]], [1, 0])
    with pytest.raises(UndefinedError, match="say nothing"):
        metrics.fit_temperature(np.zeros((3, 2)), [0, 1, 0])


def test_temperature_refuses():
    for given, says in (
        (([[1, NAN]], [0]), "not finite"),
        (([[1, np.inf]], [0]), "not finite"),
        (([1, 2], [0, 1]), r"shape \(2,\)"),
        (([[1, 2]], [2]), "label holds 2"),
        (([[1, 2]], [0, 1]), "logits has 1, label has 2"),
        ((np.zeros((0, 2)), []), "at least one row"),
    ):
        with pytest.raises(MedlmError, match=says):
            metrics.fit_temperature(*given)


def test_tensors_and_tables_are_read():
    torch = pytest.importorskip("torch")
    pandas = pytest.importorskip("pandas")
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    label = pandas.Series([0, 1, 1], index=[7, 8, 9])
    shares = metrics.softmax(logits)
    assert metrics.log_loss(label, shares) > 0
    names = pandas.Series(["a", "b", "a"], index=[7, 8, 9])
    found = metrics.mean_by_patient(
        logits.argmax(dim=1) == torch.tensor([0, 1, 1]), names
    )
    assert found.value == pytest.approx(2 / 3)
    with pytest.raises(MedlmError, match="no patient"):
        metrics.mean_by_patient([1, 2, 3], pandas.Series(["a", None, "b"]))
