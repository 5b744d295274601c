"""How good, and how sure: estimates with intervals, operating points, calibration.

Knows nothing about models or texts: labels, scores and probabilities come in as arrays,
numbers come out. Nothing is averaged over batches: every function takes all rows.

Axes: ``rows`` (notes, slices), ``classes``, ``patients``. Classes are numbered from 0.
A higher score always means "more likely positive", and a row is called positive when
its score is at or above the threshold. Logarithms are natural, so losses are in nats.

Source: chapter 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medlm_utils.runtime import METRIC_FIELDS, MedlmError, approx

_SUM_TOLERANCE = 1e-3  # how far a row of probabilities may be from 1: float16, rounding
_MISSING = ("", "nan", "None", "<NA>", "NaT")  # patients that are none, as text
_LOST_SHARE = 0.1  # of resamples without a value: beyond it there is no interval


class UndefinedError(MedlmError):
    """The measure has no value on these rows, such as AUROC with one class only."""


# Estimates and their intervals --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number, the interval that says how sure we are of it, and what it rests on.

    Parameters
    ----------
    value
        The estimate.
    low, high
        Ends of its interval.
    n
        How many independent things it rests on.
    unit
        Such as ``"nats"``; empty for a share.
    level
        Of the interval: 0.95 covers the truth in 95 of 100 studies.
    counted
        What `n` counts.
    remark
        What a reader must know beside it; stands at the end of the text.

    Source: chapter 3.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    level: float = 0.95
    counted: str = "patients"
    remark: str = ""

    def approx(self, digits: int = 3) -> str:
        """As text with ≈ before every number that may differ between machines.

        Parameters
        ----------
        digits
            Significant digits, 1 to 4.

        Raises
        ------
        ValueError
            If `digits` is not 1 to 4.

        Examples
        --------
        >>> Estimate(0.87, 0.79, 0.93, 120).approx(2)
        '≈0.87 (95% CI ≈0.79 to ≈0.93; 120 patients)'
        """
        value, low, high = (
            approx(float(x), digits) for x in (self.value, self.low, self.high)
        )
        unit = f" {self.unit}" if self.unit else ""
        remark = f"; {self.remark}" if self.remark else ""
        return (
            f"{value}{unit} ({100 * self.level:g}% CI {low} to {high}; "
            f"{self.n} {self.counted}{remark})"
        )

    def text(self, digits: int = 3) -> str:
        """The same without ≈: for what is the same on every machine, and for reports.

        Parameters
        ----------
        digits
            Significant digits, 1 to 4.

        Raises
        ------
        ValueError
            If `digits` is not 1 to 4.
        """
        return self.approx(digits).replace("≈", "")

    def __str__(self) -> str:
        return self.text()

    def as_metric(self) -> dict[str, Any]:
        """As a record holds it: value, low, high, n, and the unit if any."""
        fields = {name: getattr(self, name) for name in METRIC_FIELDS}
        return {name: value for name, value in fields.items() if value != ""}


def wilson(
    successes: int, n: int, level: float = 0.95, counted: str = "rows"
) -> Estimate:
    """A share of `n` independent trials, with Wilson's interval.

    It stays between 0 and 1, and has a width even when every trial succeeds.

    Parameters
    ----------
    successes
        0 to `n`.
    n
        Trials that have nothing to do with each other; for several notes of one patient
        take `mean_by_patient`.
    level
        Of the interval, between 0 and 1.
    counted
        What a trial is, in the plural.

    Returns
    -------
    Estimate
        The share, 0 to 1.

    Raises
    ------
    MedlmError
        If there is no trial, more successes than trials, or `level` is out of range.

    Source: Wilson 1927; chapter 1 derives it.
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise MedlmError(
            f"{successes} successes in {n} trials; expected at least one trial, and 0 "
            "to all of them to succeed."
        )
    share, w = float(successes / n), float(special.ndtri((1 + level) / 2)) ** 2 / n
    middle = (share + w / 2) / (1 + w)
    half = (w * share * (1 - share) + w**2 / 4) ** 0.5 / (1 + w)
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Estimate(share, low, high, int(n), level=level, counted=counted)


def interval_by_patient(
    statistic: Callable[..., float],
    patients: ArrayLike,
    *arrays: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unit: str = "",
) -> Estimate:
    """Any statistic with its interval: patients are drawn again, with all their rows.

    Rows of one patient resemble each other, so drawing rows would promise too much. The
    interval holds the middle `level` of the resampled values; with few patients (below
    about 50) it is somewhat too narrow. Resamples without a value (one class only, for
    AUROC) are left out, and the remark says how many. Two models are compared by the
    statistic of their difference, on the same rows.

    Parameters
    ----------
    statistic
        Function of the arrays, in their order, to one number. NaN or `UndefinedError`
        means that it has no value.
    patients
        (rows,) whose row it is: numbers or names.
    arrays
        Each (rows, ...).
    draws
        How often all patients are drawn, with replacement.
    seed
        The same seed draws the same patients, whatever the statistic.
    level
        Of the interval, between 0 and 1.
    unit
        Of the statistic.

    Returns
    -------
    Estimate
        The statistic on all rows; `n` counts patients.

    Raises
    ------
    MedlmError
        If the lengths differ, a patient is missing, there are fewer than two patients,
        the draws are too few for the level, the statistic has no finite value on all
        rows, or none in more than a tenth of the resamples.

    Examples
    --------
    >>> patients, label = [1, 1, 2, 3, 3, 4], np.array([0, 0, 1, 1, 1, 0])
    >>> old, new = np.array([1, 3, 2, 4, 5, 3]), np.array([1, 2, 4, 4, 5, 3])
    >>> def gain(label, new, old):
    ...     return auroc(label, new) - auroc(label, old)
    >>> gained = interval_by_patient(gain, patients, label, new, old, draws=40)

    Source: Field and Welsh 2007, "cluster bootstrap"; chapter 3.
    """
    number, count = _number_patients(patients)
    columns = [np.atleast_1d(array) for array in arrays]
    _check_lengths(
        patients=number, **{f"array {i + 1}": a for i, a in enumerate(columns)}
    )
    value = float(statistic(*columns))
    drawn = (
        _value_or_nan(statistic, [column[rows] for column in columns])
        for rows in _resampled_rows(number, count, _rng(draws, level, seed), draws)
    )
    return _estimate(value, np.fromiter(drawn, float, draws), count, level, unit)


def ratio_by_patient(
    top: ArrayLike,
    bottom: ArrayLike,
    patients: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unit: str = "",
) -> Estimate:
    """sum(top) / sum(bottom) over rows, with the interval of `interval_by_patient`.

    Faster, for it adds up each patient once.

    Parameters
    ----------
    top, bottom, patients
        (rows,) each.
    draws, seed, level, unit
        As in `interval_by_patient`; the same seed gives the same interval.

    Returns
    -------
    Estimate
        The ratio on all rows; `n` counts patients.

    Raises
    ------
    MedlmError
        As in `interval_by_patient`; also for numbers that are NaN.

    Source: chapter 2 derives it; chapter 3.
    """
    number, count = _number_patients(patients)
    tops, bottoms = _scores("top", top), _scores("bottom", bottom)
    _check_lengths(top=tops, bottom=bottoms, patients=number)
    tops = np.bincount(number, tops, count)
    bottoms = np.bincount(number, bottoms, count)
    rng = _rng(draws, level, seed)
    drawn = np.empty(draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        for draw in range(draws):
            picked = rng.integers(count, size=count)
            drawn[draw] = tops[picked].sum() / bottoms[picked].sum()
        return _estimate(float(tops.sum() / bottoms.sum()), drawn, count, level, unit)


def mean_by_patient(
    values: ArrayLike,
    patients: ArrayLike,
    weights: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unit: str = "",
) -> Estimate:
    """The mean over rows, with the interval of `interval_by_patient`.

    Accuracy is the mean of ``predicted == label``; sensitivity is the mean of
    ``score >= threshold`` over the rows of the ill; an excess log-loss is the mean of
    ``surprisal(label, model) - surprisal(label, exact)``; the gain of one model over
    another is the mean of the differences of their rows.

    Parameters
    ----------
    values
        (rows,). Truth values that are all true or all false, unweighted, get Wilson's
        interval with each patient as one trial: no resample could differ.
    patients
        (rows,).
    weights
        (rows,) of the rows, by default 1 each.
    draws, seed, level, unit
        As in `interval_by_patient`; the same seed gives the same interval.

    Returns
    -------
    Estimate
        The mean on all rows; `n` counts patients.

    Raises
    ------
    MedlmError
        As in `ratio_by_patient`; also if a weight is negative.

    Source: chapter 3.
    """
    rows = np.asarray(values)
    numbers = _scores("values", rows)
    given = np.ones(len(numbers)) if weights is None else _scores("weights", weights)
    if (given < 0).any():
        raise MedlmError(f"A weight is {given.min():g}; expected 0 or more.")
    _check_lengths(values=numbers, weights=given)
    estimate = ratio_by_patient(
        numbers * given, given, patients, draws, seed, level, unit
    )
    if rows.dtype != bool or weights is not None or numbers.min() != numbers.max():
        return estimate
    agreeing = wilson(int(numbers[0]) * estimate.n, estimate.n, level, "patients")
    return dataclasses.replace(
        agreeing, unit=unit, remark="all rows agree: Wilson's interval, by patient"
    )


def _number_patients(patients: ArrayLike) -> tuple[np.ndarray, int]:
    """(rows,) the number of each row's patient, from 0, and how many there are."""
    names = np.asarray(patients)
    if names.ndim != 1 or not len(names):
        raise MedlmError(
            f"patients has the shape {names.shape}; expected one patient a row, and at "
            "least one row."
        )
    if names.dtype.kind not in "iu":
        names = names.astype(str)
        missing = np.isin(names, _MISSING)
        if missing.any():
            raise MedlmError(
                f"{missing.sum()} of {len(names)} rows have no patient, the first is "
                f"row {missing.argmax()} (from 0). Give every row its patient: without "
                "it nobody knows which rows belong together."
            )
    known, number = np.unique(names, return_inverse=True)
    if len(known) < 2:
        raise MedlmError(
            f"All {len(names)} rows are of one patient; expected at least two: one "
            "patient says nothing about how others differ."
        )
    return number, len(known)


def _rng(draws: int, level: float, seed: int) -> np.random.Generator:
    """The generator of the draws, once `draws` and `level` are known to be fit."""
    _check_level(level)
    fewest = int(np.ceil(2 / (1 - level) - 1e-6))
    if draws < fewest:
        raise MedlmError(
            f"draws is {draws}; expected {fewest} or more: the ends of an interval at "
            f"level {level:g} are not seen in fewer."
        )
    return np.random.default_rng(seed)


def _resampled_rows(
    number: np.ndarray, count: int, rng: np.random.Generator, draws: int
) -> Iterator[np.ndarray]:
    """For each draw the rows of `count` patients, drawn with replacement."""
    order, sizes = np.argsort(number, kind="stable"), np.bincount(number)
    starts = (
        np.cumsum(sizes) - sizes
    )  # in `order`, where a patient's rows stand together
    for _ in range(draws):
        picked = rng.integers(count, size=count)
        lengths = sizes[picked]
        offsets = starts[picked] - (np.cumsum(lengths) - lengths)
        yield order[np.repeat(offsets, lengths) + np.arange(lengths.sum())]


def _value_or_nan(statistic: Callable[..., float], columns: list[np.ndarray]) -> float:
    """The statistic of a resample, NaN where it is undefined."""
    try:
        return float(statistic(*columns))
    except UndefinedError:
        return np.nan


def _estimate(
    value: float, drawn: np.ndarray, count: int, level: float, unit: str
) -> Estimate:
    """The value with the middle of the resampled values around it."""
    if not np.isfinite(value):
        raise UndefinedError(
            f"The statistic of all rows is {value}; expected a finite number. Look for "
            "a class or a group without rows, or a probability of 0."
        )
    kept = drawn[np.isfinite(drawn)]
    lost = len(drawn) - len(kept)
    if lost > _LOST_SHARE * len(drawn):
        raise UndefinedError(
            f"The statistic has no value in {lost} of {len(drawn)} resamples of "
            f"{count} patients; expected at most a tenth. Too few patients have what "
            "it needs, such as the disease: report their number, without an interval."
        )
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    remark = f"{approx(lost)} of {len(drawn)} resamples left out" if lost else ""
    if np.isclose(low, high, rtol=1e-12, atol=0):
        remark = "no resample differs, so the interval says nothing"
    return Estimate(value, float(low), float(high), count, unit, level, remark=remark)


# Right and wrong ----------------------------------------------------------------------


def accuracy(label: ArrayLike, predicted: ArrayLike) -> float:
    """The share of rows whose class was named.

    Parameters
    ----------
    label, predicted
        (rows,) class numbers.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, or a class is no whole number.

    Source: chapter 3.
    """
    truth, named = _classes("label", label), _classes("predicted", predicted)
    _check_lengths(label=truth, predicted=named)
    return float((truth == named).mean())


def confusion(label: ArrayLike, predicted: ArrayLike, classes: int) -> np.ndarray:
    """How many rows of each class were called what.

    Parameters
    ----------
    label, predicted
        (rows,) class numbers, 0 to `classes` - 1.
    classes
        How many there are, whether or not they occur.

    Returns
    -------
    ndarray
        (classes, classes) counts: the truth in rows, what was predicted in columns.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, or a class is out of range.

    Source: chapter 3.
    """
    truth = _classes("label", label, classes)
    named = _classes("predicted", predicted, classes)
    _check_lengths(label=truth, predicted=named)
    counts = np.bincount(truth * classes + named, minlength=classes**2)
    return counts.reshape(classes, classes)


def precision_recall_f1(
    confusion: ArrayLike,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class.

    Parameters
    ----------
    confusion
        (classes, classes) counts as `confusion` gives them.

    Returns
    -------
    tuple of ndarray
        Three times (classes,). NaN is what has no value: the precision of a class that
        was never named, the recall of one without rows, the F1 of one that is both. A
        class that was always missed has the F1 0.

    Raises
    ------
    MedlmError
        If the matrix is not square, or holds a negative number or NaN.

    Source: chapter 3.
    """
    counts = _numbers("confusion", confusion)
    if (
        counts.ndim != 2
        or counts.shape[0] != counts.shape[1]
        or not (counts >= 0).all()
    ):
        raise MedlmError(
            f"confusion has the shape {counts.shape}; expected a square of counts, 0 "
            "or more, with the truth in rows."
        )
    right, true, named = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right / named, right / true, 2 * right / (true + named)


@overload
def f1(
    label: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    average: Literal["macro", "weighted"] = ...,
) -> float: ...
@overload
def f1(
    label: ArrayLike, predicted: ArrayLike, classes: int, average: None
) -> np.ndarray: ...
def f1(
    label: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    average: Literal["macro", "weighted"] | None = "macro",
) -> float | np.ndarray:
    """F1: the harmonic mean of precision and recall, from all rows at once.

    Parameters
    ----------
    label, predicted
        (rows,) class numbers, 0 to `classes` - 1.
    classes
        How many there are.
    average
        ``"macro"``: every class counts alike, but for those that are neither in the
        labels nor predicted. ``"weighted"``: each counts as often as it is in the
        labels. None: no average.

    Returns
    -------
    float or ndarray
        The average, or (classes,), NaN where a class is neither in the labels nor
        predicted.

    Raises
    ------
    MedlmError
        As in `confusion`; also if `average` is none of these.

    Source: chapter 3.
    """
    counts = confusion(label, predicted, classes)
    each = precision_recall_f1(counts)[2]
    if average is None:
        return each
    if average == "macro":
        return float(np.nanmean(each))
    if average == "weighted":
        return float(np.nansum(each * counts.sum(axis=1)) / counts.sum())
    raise MedlmError(f"average is {average!r}; expected 'macro', 'weighted' or None.")


# One disease against the rest: scores and operating points ----------------------------


def sensitivity_specificity(
    label: ArrayLike, score: ArrayLike, threshold: float
) -> tuple[float, float]:
    """Which share of the ill is called positive, and of the others negative.

    Parameters
    ----------
    label
        (rows,) 1 for the ill, 0 for the others.
    score
        (rows,) higher for the ill.
    threshold
        A row with this score or a higher one is called positive.

    Returns
    -------
    tuple of float
        Sensitivity and specificity.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, a label is not 0 or 1 or a score is NaN;
        `UndefinedError` if all rows are of one class.

    Source: chapter 3.
    """
    ill, scores = _two_classes(label, score)
    called = scores >= threshold
    return float(called[ill].mean()), float((~called[~ill]).mean())


def threshold_for_sensitivity(
    label: ArrayLike, score: ArrayLike, sensitivity: float
) -> float:
    """The highest threshold that finds at least this share of the ill.

    Choose it on validation rows; on others the sensitivity will differ.

    Parameters
    ----------
    label, score
        As in `sensitivity_specificity`.
    sensitivity
        Above 0, at most 1.

    Returns
    -------
    float
        A score of one of the ill; rows at or above it are called positive.

    Raises
    ------
    MedlmError
        If `sensitivity` is out of range, and as in `sensitivity_specificity`;
        `UndefinedError` if nobody is ill.

    Source: chapter 3.
    """
    if not 0 < sensitivity <= 1:
        raise MedlmError(f"sensitivity is {sensitivity}; expected above 0, at most 1.")
    ill, scores = _two_classes(label, score, both=False)
    found = int(np.ceil(sensitivity * ill.sum() - 1e-9))  # 0.55 * 100 is above 55
    return float(np.sort(scores[ill])[-max(found, 1)])


def predictive_values(
    sensitivity: ArrayLike, specificity: ArrayLike, prevalence: ArrayLike
) -> tuple[Any, Any]:
    """How many of the positives are ill, and of the negatives healthy, by Bayes' rule.

    Parameters
    ----------
    sensitivity, specificity, prevalence
        Numbers or arrays, 0 to 1, whose shapes fit each other.

    Returns
    -------
    tuple
        Positive and negative predictive value, numbers or arrays; NaN where nobody
        would be called so.

    Raises
    ------
    MedlmError
        If a number is not between 0 and 1.

    Examples
    --------
    >>> positive, negative = predictive_values(0.95, 0.95, prevalence=0.01)
    >>> print(f"{positive:.2f} {negative:.4f}")
    0.16 0.9995

    Source: Altman and Bland 1994; chapter 3.
    """
    sens, spec, prev = (
        _shares(name, value)
        for name, value in (
            ("sensitivity", sensitivity),
            ("specificity", specificity),
            ("prevalence", prevalence),
        )
    )
    with np.errstate(invalid="ignore"):
        true, false = sens * prev, (1 - spec) * (1 - prev)
        positive = true / (true + false)
        healthy, missed = spec * (1 - prev), (1 - sens) * prev
        return positive, healthy / (healthy + missed)


def auroc(label: ArrayLike, score: ArrayLike) -> float:
    """The share of pairs, one ill and one not, in which the ill has the higher score.

    Equal scores count half. 0.5 is guessing.

    Parameters
    ----------
    label, score
        As in `sensitivity_specificity`.

    Raises
    ------
    MedlmError
        As in `sensitivity_specificity`.

    Source: Hanley and McNeil 1982; chapter 3.
    """
    true, false, _ = _counts_from_above(*_two_classes(label, score))
    before = np.concatenate([[0], true[:-1]])  # the ill with higher scores
    return float(
        np.sum(np.diff(false, prepend=0) * (before + true)) / (2 * true[-1] * false[-1])
    )


def roc_curve(
    label: ArrayLike, score: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sensitivity against 1 - specificity, for every threshold.

    Parameters
    ----------
    label, score
        As in `sensitivity_specificity`.

    Returns
    -------
    tuple of ndarray
        1 - specificity, sensitivity and threshold, (thresholds,) each: from infinity,
        where nobody is called positive, down through all distinct scores.

    Raises
    ------
    MedlmError
        As in `sensitivity_specificity`.

    Source: Hanley and McNeil 1982; chapter 3.
    """
    true, false, thresholds = _counts_from_above(*_two_classes(label, score))
    start = np.zeros(1)
    return (
        np.concatenate([start, false / false[-1]]),
        np.concatenate([start, true / true[-1]]),
        np.concatenate([[np.inf], thresholds]),
    )


def precision_recall_curve(
    label: ArrayLike, score: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision against recall, for every threshold.

    Parameters
    ----------
    label, score
        As in `sensitivity_specificity`.

    Returns
    -------
    tuple of ndarray
        Precision, recall and threshold, (thresholds,) each: the distinct scores from
        the highest down.

    Raises
    ------
    MedlmError
        As in `sensitivity_specificity`, but only the ill are needed.

    Source: Davis and Goadrich 2006; chapter 3.
    """
    true, false, thresholds = _counts_from_above(
        *_two_classes(label, score, both=False)
    )
    return true / (true + false), true / true[-1], thresholds


def average_precision(label: ArrayLike, score: ArrayLike) -> float:
    """Precision at each threshold, weighted with the recall that it adds.

    The area under the steps of `precision_recall_curve`, without lines drawn between
    them. Guessing scores the prevalence.

    Parameters
    ----------
    label, score
        As in `sensitivity_specificity`.

    Raises
    ------
    MedlmError
        As in `precision_recall_curve`.

    Source: Davis and Goadrich 2006; chapter 3.
    """
    precision, recall, _ = precision_recall_curve(label, score)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _counts_from_above(
    ill: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of each group of equal scores
    true = np.cumsum(ill[order])[last]
    return true, np.flatnonzero(last) + 1 - true, ordered[last]


# Probabilities ------------------------------------------------------------------------


def softmax(logits: ArrayLike) -> np.ndarray:
    """Logits to probabilities, over the last axis, in double precision.

    Parameters
    ----------
    logits
        (..., classes); minus infinity excludes a class.

    Raises
    ------
    MedlmError
        If a logit is NaN or infinity, or a row excludes every class.

    Source: chapter 1.
    """
    values = _numbers("logits", logits)
    if values.ndim == 0 or not values.size:
        raise MedlmError(f"logits has the shape {values.shape}; expected some classes.")
    if not np.isfinite(values.max(axis=-1)).all():
        raise MedlmError(
            "logits holds NaN, infinity, or a row with nothing but minus infinity; "
            "expected finite numbers. A training that diverged gives such logits."
        )
    return special.softmax(values, axis=-1)


def surprisal(label: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """-log p of what was true, row by row.

    Parameters
    ----------
    label
        (rows,) class numbers, 0 to classes - 1.
    probabilities
        (rows, classes), each row summing to 1.

    Returns
    -------
    ndarray
        (rows,) nats; infinite where the truth was given the probability 0.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, a class is out of range, or a row is no
        distribution (NaN, negative, not summing to 1).

    Source: chapter 2.
    """
    truth, shares = _labelled(label, probabilities)
    with np.errstate(divide="ignore"):
        return 0.0 - np.log(shares[np.arange(len(truth)), truth])


def log_loss(label: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean `surprisal`: nats a row, 0 for a prophet, infinite for one sure error.

    Parameters
    ----------
    label, probabilities
        As in `surprisal`.

    Raises
    ------
    MedlmError
        As in `surprisal`.

    Source: chapter 2.
    """
    return float(surprisal(label, probabilities).mean())


def excess_log_loss(
    label: ArrayLike, probabilities: ArrayLike, exact: ArrayLike
) -> float:
    """How many nats a row are lost to the model, on these labels.

    The mean over rows of log exact[label] - log p[label]: log-loss less that of the
    exact posterior, on the same rows. By luck of the labels it can be negative; on
    average over them it is the mean of `kl_divergence`.

    Parameters
    ----------
    label, probabilities
        As in `surprisal`.
    exact
        (rows, classes) the true posterior.

    Raises
    ------
    MedlmError
        As in `surprisal`, also for `exact`, or if a label is impossible under it.

    Source: chapter 3.
    """
    _check_shapes(probabilities, exact)
    floor = surprisal(label, exact)
    if not np.isfinite(floor).all():
        raise MedlmError(
            f"exact gives the probability 0 to {np.isinf(floor).sum()} of the labels; "
            "expected the posterior that these labels were drawn from."
        )
    return float((surprisal(label, probabilities) - floor).mean())


def kl_divergence(exact: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """The expected excess of each row: sum of exact * log(exact / probabilities).

    Parameters
    ----------
    exact, probabilities
        (rows, classes), each row summing to 1.

    Returns
    -------
    ndarray
        (rows,) nats, never negative; infinite where the model excludes what can be.

    Raises
    ------
    MedlmError
        If the shapes differ, or a row is no distribution.

    Source: Kullback and Leibler 1951; chapter 3.
    """
    true, shares = (
        _distributions("exact", exact),
        _distributions("probabilities", probabilities),
    )
    _check_shapes(shares, true)
    # kl_div adds y - x to x log(x / y): the sum is the same, and only rounding
    # makes a term negative.
    return np.maximum(special.kl_div(true, shares), 0).sum(axis=1)


def brier(label: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean over rows of the sum over classes of (p - truth) squared.

    0 for a prophet, 2 for who is always sure and wrong. With two classes it is twice
    the mean of (p - truth) squared of one class, which many call the Brier score.

    Parameters
    ----------
    label, probabilities
        As in `surprisal`.

    Raises
    ------
    MedlmError
        As in `surprisal`.

    Source: Brier 1950; chapter 3.
    """
    truth, shares = _labelled(label, probabilities)
    apart = shares - np.eye(shares.shape[1])[truth]
    return float((apart**2).sum(axis=1).mean())


# Calibration --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What was promised and what came, in bins of equal width.

    Parameters
    ----------
    edges
        (bins + 1,) from 0 to 1; a bin holds its lower edge, the last also 1.
    count
        (bins,) rows.
    confidence
        (bins,) their mean confidence, NaN in an empty bin.
    correct
        (bins,) how often they were right, NaN in an empty bin.

    Source: chapter 3.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 10
) -> Reliability:
    """The table behind a reliability diagram.

    Parameters
    ----------
    confidence
        (rows,) 0 to 1: the probability of the predicted class, or of one disease.
    correct
        (rows,) whether it was that class, 0 or 1.
    bins
        How many, of equal width.

    Returns
    -------
    Reliability
        With the count of every bin.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, a confidence is not 0 to 1, `correct` is
        not 0 or 1, or there is no bin.

    Source: Guo et al. 2017; chapter 3.
    """
    sure, right = _shares("confidence", confidence), _classes("correct", correct, 2)
    _check_lengths(confidence=sure, correct=right)
    if bins < 1:
        raise MedlmError(f"bins is {bins}; expected 1 or more.")
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], sure, side="right")
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        promised = np.bincount(bin_of, sure, bins) / count
        return Reliability(
            edges, count, promised, np.bincount(bin_of, right, bins) / count
        )


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 10
) -> float:
    """The mean distance of promise and outcome over the bins, weighted by their rows.

    It is never 0 for few rows, not even for the exact posterior, and a bootstrap makes
    it larger still: compare it with its value on outcomes drawn from the confidences.

    Parameters
    ----------
    confidence, correct, bins
        As in `reliability`.

    Raises
    ------
    MedlmError
        As in `reliability`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> confidence = rng.uniform(size=500)
    >>> perfect = expected_calibration_error(confidence, rng.random(500) < confidence)
    >>> perfect > 0.01
    True

    Source: Naeini et al. 2015; chapter 3.
    """
    table = reliability(confidence, correct, bins)
    apart = np.nan_to_num(np.abs(table.confidence - table.correct))
    return float((table.count * apart).sum() / table.count.sum())


def fit_temperature(logits: ArrayLike, label: ArrayLike) -> float:
    """The number to divide logits by so that the log-loss is smallest.

    Above 1 the model was too sure. The predicted class does not change. Fit it on
    validation rows. The loss is convex in 1 / temperature: there is one minimum, where
    the label's logit is on average what the probabilities expect it to be.

    Parameters
    ----------
    logits
        (rows, classes), finite.
    label
        (rows,) class numbers, 0 to classes - 1.

    Returns
    -------
    float
        Above 0.

    Raises
    ------
    MedlmError
        If the lengths differ, there is no row, a class is out of range, or a logit is
        not finite; `UndefinedError` if no temperature is best, because no row is wrong
        or because the logits say nothing about the labels.

    Source: Guo et al. 2017; chapter 3.
    """
    from scipy import optimize  # here, for it takes most of a second to load

    gap = _gaps_to_label(logits, label)
    scale = np.abs(gap).max() or 1.0
    gap = gap / scale

    def slope(log_rate: float) -> float:
        shares = special.softmax(np.exp(log_rate) * gap, axis=1)
        return float((shares * gap).sum(axis=1).mean())

    flat, steep = -30.0, 40.0  # beyond them double precision sees no difference
    if slope(steep) <= 0 < -gap.mean():
        raise UndefinedError(
            "No row is wrong, so the surer the better, without end; expected some "
            "errors among the validation rows. Keep the temperature 1, or add rows."
        )
    if slope(flat) >= 0:
        raise UndefinedError(
            "The logits say nothing about the labels, so the less sure the better, "
            "without end. Look for labels in another order than the logits."
        )
    return float(scale * np.exp(-optimize.brentq(slope, flat, steep)))


def _gaps_to_label(logits: ArrayLike, label: ArrayLike) -> np.ndarray:
    """(rows, classes) how far each logit is above that of the label."""
    values = _numbers("logits", logits)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise MedlmError(
            f"logits has the shape {values.shape} and is "
            f"{'finite' if np.isfinite(values).all() else 'not finite'}; expected "
            "(rows, classes), finite."
        )
    truth = _classes("label", label, values.shape[1])
    _check_lengths(logits=values, label=truth)
    return values - values[np.arange(len(truth)), truth][:, None]


# Checks -------------------------------------------------------------------------------


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise MedlmError(f"level is {level}; expected between 0 and 1, such as 0.95.")


def _check_lengths(**columns: np.ndarray) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise MedlmError(f"{found} rows; expected as many in each, in the same order.")


def _check_shapes(probabilities: ArrayLike, exact: ArrayLike) -> None:
    shapes = np.shape(probabilities), np.shape(exact)
    if shapes[0] != shapes[1]:
        raise MedlmError(
            f"The probabilities have the shape {shapes[0]}, the exact ones "
            f"{shapes[1]}; expected the same rows and classes."
        )


def _numbers(what: str, values: ArrayLike) -> np.ndarray:
    """As double precision."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MedlmError(
            f"{what} cannot be read as numbers ({error}); expected an array of numbers."
        ) from error


def _scores(what: str, values: ArrayLike) -> np.ndarray:
    """(rows,) numbers without NaN."""
    scores = _numbers(what, values)
    if scores.ndim != 1 or not len(scores):
        raise MedlmError(
            f"{what} has the shape {scores.shape}; expected one number a row, and at "
            "least one row."
        )
    if np.isnan(scores).any():
        raise MedlmError(
            f"{what} holds NaN in {np.isnan(scores).sum()} of {len(scores)} rows; "
            "expected a number in each."
        )
    return scores


def _shares(what: str, values: ArrayLike) -> np.ndarray:
    """Numbers between 0 and 1, of any shape."""
    shares = _numbers(what, values)[()]
    if not np.size(shares) or not np.all((shares >= 0) & (shares <= 1)):
        raise MedlmError(f"{what} is {shares}; expected numbers from 0 to 1.")
    return shares


def _classes(what: str, values: ArrayLike, classes: int | None = None) -> np.ndarray:
    """(rows,) whole numbers, below `classes` where that is given."""
    given = _scores(what, values)
    last = np.inf if classes is None else classes - 1
    wrong = (
        ~np.isfinite(given) | (given != np.trunc(given)) | (given < 0) | (given > last)
    )
    if wrong.any():
        upto = "0 up" if classes is None else f"0 to {classes - 1}"
        raise MedlmError(
            f"{what} holds {given[wrong][0]:g} (row {wrong.argmax()}, from 0); "
            f"expected whole numbers from {upto}, one for each class."
        )
    return given.astype(int)


def _two_classes(
    label: ArrayLike, score: ArrayLike, both: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) who is ill, and the scores; somebody is, and with `both` somebody not."""
    ill, scores = _classes("label", label, 2).astype(bool), _scores("score", score)
    _check_lengths(label=ill, score=scores)
    if not ill.any() or (both and ill.all()):
        raise UndefinedError(
            f"{ill.sum()} of {len(ill)} rows are positive; expected "
            f"{'some of each class' if both else 'at least one'}: the measure has no "
            "value without."
        )
    return ill, scores


def _distributions(what: str, values: ArrayLike) -> np.ndarray:
    """(rows, classes) probabilities that sum to 1 as exactly as they can."""
    shares = _numbers(what, values)
    if shares.ndim != 2 or not shares.size:
        raise MedlmError(
            f"{what} has the shape {shares.shape}; expected (rows, classes). For one "
            "disease, give the probabilities of both 'no' and 'yes'."
        )
    sums = shares.sum(axis=1, keepdims=True)
    fit = (shares >= 0).all(axis=1) & (np.abs(sums[:, 0] - 1) <= _SUM_TOLERANCE)
    if not fit.all():
        row = int(np.argmin(fit))
        raise MedlmError(
            f"Row {row} (from 0) of {what} sums to {sums[row, 0]:g}, its smallest is "
            f"{shares[row].min():g}; expected probabilities that sum to 1. Logits "
            "become some by softmax."
        )
    return shares / sums


def _labelled(
    label: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Checked (rows,) labels and (rows, classes) probabilities."""
    shares = _distributions("probabilities", probabilities)
    truth = _classes("label", label, shares.shape[1])
    _check_lengths(label=truth, probabilities=shares)
    return truth, shares
