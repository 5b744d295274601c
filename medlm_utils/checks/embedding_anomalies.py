"""Checkers for the exercises on anomalies: they explain what is wrong.

Every checker takes the learner's function and returns a `core.Result`. Inputs are NumPy
arrays in double precision and plain numbers; an answer may come as an array, a list or
a tensor of any real type. The oracles are written row by row; the wrong answers are
computed beside them, on the same inputs. Higher scores are more anomalous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medlm_utils import metrics
from medlm_utils.checks.core import (
    Answer,
    Attempt,
    Mistake,
    Tally,
    WrongNumber,
    as_tensor,
    one_number,
    same,
    shown,
    sized,
)

TALLY = Tally("Anomaly detection on embeddings")
_TOLERANCE = 1e-4  # leaves room for answers in single precision

Numbers = NDArray[Any]  # of floats, of counts or of bools
# A known wrong array; the mistake in one sentence; where to look.
WrongArray = tuple[Any, str, str]


def summary() -> None:
    """Print how many of the chapter's exercises are answered."""
    TALLY.summary()


# What answers may be -----------------------------------------------------------------


def _numbers(attempt: Attempt) -> Tensor:
    """The value in double precision; fails unless it is an array of real numbers."""
    value = as_tensor(attempt.value)
    if value is None or value.is_complex() or value.dtype == torch.bool:
        what = "of bool" if value is not None and value.dtype == torch.bool else ""
        came = f"{sized(attempt.value)} {what}".strip()
        attempt.fail(f"Expected an array of real numbers, came {came}.")
    return value.double()


def _compare(
    attempt: Attempt,
    expected: Numbers,
    mistakes: list[WrongArray],
    also: Numbers | None = None,
) -> None:
    """Compare an array with the right one, or another as right, then with mistakes."""
    came = Attempt(_numbers(attempt), attempt.inputs)
    if also is not None and _alike(came.value, also):
        return
    known = [Mistake(_tensor(value), says, look) for value, says, look in mistakes]
    came.equals(_tensor(expected), known, _TOLERANCE)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def _alike(came: Tensor, expected: Any) -> bool:
    """Whether shape and values agree, but for rounding."""
    other = _tensor(expected)
    return came.shape == other.shape and torch.allclose(
        came, other, _TOLERANCE, _TOLERANCE
    )


def _two_numbers(attempt: Attempt, what: str) -> tuple[float, float]:
    """The value as two floats; fails unless it is a pair of numbers."""
    value = attempt.value
    array = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0
    if not (array or isinstance(value, (tuple, list))):
        attempt.fail(f"Expected a pair, {what}, came {sized(value)}.")
    if len(value) != 2:
        attempt.fail(f"Expected a pair, {what}, came {len(value)} values.")
    first, second = map(one_number, value)
    if first is None or second is None:
        wrong = value[0] if first is None else value[1]
        attempt.fail(f"Expected two numbers, {what}; one is {sized(wrong)}.")
    return first, second


# 1. The best possible score -----------------------------------------------------------

RATIO = "Write both log densities, each with its own mean and sd, then subtract."
# (mean, sd) of the usual rows and of the anomalies. In the last, anomalies lie in the
# middle of the usual rows.
_WORLDS = [((1.0, 0.5), (4.0, 3.0)), ((0.0, 1.0), (2.0, 1.0)), ((0.0, 2.0), (0.0, 0.4))]


@TALLY.exercise
def likelihood_ratio(answer: Answer) -> str:
    """Check `likelihood_ratio(x, usual, odd)`, log p1 - log p0 of each number.

    `x` float (rows,); `usual` and `odd` are pairs (mean, standard deviation) of two
    normal distributions, p0 and p1; the result is (rows,), in nats. Oracle: the
    densities, number by number.
    """
    rng = np.random.default_rng(1)
    for usual, odd in _WORLDS:
        x = np.concatenate([rng.normal(*usual, size=5), rng.normal(*odd, size=4)])
        attempt = answer.on(x=x, usual=usual, odd=odd)
        expected = _log_normal(x, *odd) - _log_normal(x, *usual)
        _compare(attempt, expected, _ratio_mistakes(x, usual, odd))
    best, plain = _aurocs_inside()
    return (
        "values for three worlds. In the last, anomalies lie among the usual: by this "
        f"ratio their AUROC is {best:.2f}, by -log p0 it is {plain:.2f}."
    )


def _log_normal(x: Numbers, mean: float, sd: float) -> Numbers:
    """Log density of a normal distribution, number by number: (rows,)."""
    scale = math.log(sd * math.sqrt(2 * math.pi))
    return np.array([-(((value - mean) / sd) ** 2) / 2 - scale for value in x])


def _aurocs_inside(rows: int = 4000) -> tuple[float, float]:
    """AUROC of the ratio and of -log p0 where anomalies lie among the usual rows."""
    usual, odd = _WORLDS[-1]
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(*usual, size=rows), rng.normal(*odd, size=rows)])
    label = np.repeat([0, 1], rows)
    log_p0, log_p1 = _log_normal(x, *usual), _log_normal(x, *odd)
    return metrics.auroc(label, log_p1 - log_p0), metrics.auroc(label, -log_p0)


def _ratio_mistakes(
    x: Numbers, usual: tuple[float, float], odd: tuple[float, float]
) -> list[WrongArray]:
    """Wrong scores (rows,), the likeliest first."""
    p0, p1 = _log_normal(x, *usual), _log_normal(x, *odd)
    right = p1 - p0
    z0, z1 = (x - usual[0]) / usual[1], (x - odd[0]) / odd[1]
    logs = math.log(odd[1] / usual[1])
    roots = [
        _log_normal(x, mean, math.sqrt(sd)) for mean, sd in (odd, usual)
    ]  # as if sd were a variance
    with np.errstate(all="ignore"):
        return [
            (-right, "The sign is wrong: higher must be more anomalous.", RATIO),
            (-p0, "This is -log p0, which knows nothing of the anomalies.", RATIO),
            (p1, "This is log p1 alone: subtract log p0.", RATIO),
            (p0, "This is log p0, which is high for the usual.", RATIO),
            (np.exp(right), "This is the ratio itself: take its logarithm.", RATIO),
            (
                (z0**2 - z1**2) / 2,
                "The logarithms of the two sds are left out: they differ.",
                "A normal density has 1 / sd before its exponential.",
            ),
            (
                (z0**2 - z1**2) / 2 + logs,
                "The sign of the log sds is wrong: a wide density is low.",
                RATIO,
            ),
            (
                (z0**2 - z1**2) / 2 - 2 * logs,
                "log sd counts twice: it is log sd, or half of log variance.",
                RATIO,
            ),
            (
                z0**2 - z1**2 - logs,
                "The half before the squared z is missing.",
                RATIO,
            ),
            (roots[0] - roots[1], "The sd is taken for a variance: square it.", RATIO),
            (
                (x - usual[0]) ** 2 / 2 - (x - odd[0]) ** 2 / 2,
                "The sds are not used: both are taken as 1.",
                RATIO,
            ),
            ((np.abs(z0) - np.abs(z1)) / 2 - logs, "The z are not squared.", RATIO),
            (right / math.log(10), "The logarithm is to base 10: take np.log.", ""),
            (right / math.log(2), "The logarithm is to base 2: take np.log.", ""),
            (np.exp(p1) - np.exp(p0), "These are densities: take logarithms.", RATIO),
            (p1 / p0, "The log of a ratio is a difference of logs.", RATIO),
            (p1 + p0, "The two log densities are added: subtract log p0.", RATIO),
            (
                1 / (1 + np.exp(-right)),
                "This is a probability, as if half of the rows were anomalies.",
                RATIO,
            ),
            (np.abs(right), "The sign is lost: usual rows score high, too.", RATIO),
            (np.maximum(right, 0), "Scores below 0 are cut off: they rank, too.", ""),
            (np.abs(z0), "This is the distance from the usual mean in sds.", RATIO),
            (right.sum(), "One number came: return a score for each.", ""),
            (right.mean(), "One number came: return a score for each.", ""),
        ]


# 2. Robust z ------------------------------------------------------------------------

ROBUST = (
    "MAD is the median of |x - median|, column by column, over `known`; 1.4826 MAD "
    "stands for the sd."
)
_TO_SD = 1.4826


@TALLY.exercise
def robust_z(answer: Answer) -> str:
    """Check `robust_z(known, new)`, the largest robust z of each new row.

    `known` float (rows, columns), with a few gross outliers; `new` (new rows, columns);
    the result is (new rows,). Oracle: column by column.
    """
    rng = np.random.default_rng(3)
    for rows, columns in [(31, 3), (40, 2)]:
        scale = 10.0 ** np.arange(columns)
        known = (rng.normal(size=(rows, columns)) + 1) * scale
        known[:3] += 25 * scale
        new = (1.5 * rng.normal(size=(7, columns)) + 1) * scale
        new[0] = (1 - 6 * (np.arange(columns) == 0)) * scale
        attempt = answer.on(known=known, new=new)
        _compare(attempt, _largest_z(known, new), _z_mistakes(known, new))
    return "values for two sets of rows, which gross outliers hide in."


def _largest_z(known: Numbers, new: Numbers) -> Numbers:
    """The oracle: (new rows,)."""
    scores = []
    for row in new:
        zs = []
        for value, column in zip(row, known.T, strict=True):
            middle = np.median(column)
            spread = _TO_SD * np.median([abs(other - middle) for other in column])
            zs.append(abs(value - middle) / spread)
        scores.append(max(zs))
    return np.array(scores)


def _z_mistakes(known: Numbers, new: Numbers) -> list[WrongArray]:
    """Wrong scores (new rows,), the likeliest first."""
    mean, sd, median = known.mean(0), known.std(0), np.median(known, 0)
    away = np.abs(known - median)
    mad, q = np.median(away, 0), np.quantile(known, [0.25, 0.75], axis=0)

    def top(centre: Any, spread: Any) -> Numbers:
        return np.abs((new - centre) / spread).max(1)

    def own(rows: Numbers) -> tuple[Numbers, Numbers]:
        middle = np.median(rows, 0)
        return middle, _TO_SD * np.median(np.abs(rows - middle), 0)

    z = (new - median) / (_TO_SD * mad)
    masked = "Mean and sd are pulled by the outliers, which so hide: take medians."
    most = "Take the largest |z| of the row."
    one = np.median(known)
    return [
        (top(mean, sd), masked, ROBUST),
        (top(mean, known.std(0, ddof=1)), masked, ROBUST),
        (top(median, sd), "The sd is pulled by the outliers: take the MAD.", ROBUST),
        (
            top(median, known.std(0, ddof=1)),
            "The sd is pulled by the outliers: take the MAD.",
            ROBUST,
        ),
        (top(mean, _TO_SD * mad), "The centre is the mean, not the median.", ROBUST),
        (
            top(mean, _TO_SD * np.median(np.abs(known - mean), 0)),
            "The centre is the mean, not the median.",
            ROBUST,
        ),
        (top(median, mad), "The factor 1.4826 is missing from the spread.", ROBUST),
        (top(median, mad / _TO_SD), "The MAD is divided by 1.4826: multiply.", ROBUST),
        (
            top(median, _TO_SD * away.mean(0)),
            "The spread is a mean of absolute deviations: take their median.",
            ROBUST,
        ),
        (
            top(median, away.mean(0)),
            "The spread is a mean of absolute deviations: take their median.",
            ROBUST,
        ),
        (
            top(median, _TO_SD * np.median(np.abs(known), 0)),
            "The MAD is a median of |x|: subtract the median of the column first.",
            ROBUST,
        ),
        (
            top(median, (q[1] - q[0]) / 1.349),
            "The spread is the distance of the quartiles, not the MAD.",
            ROBUST,
        ),
        (
            top(median, _TO_SD * mad**2),
            "The MAD is squared: it is no variance.",
            ROBUST,
        ),
        (
            top(median, np.sqrt(_TO_SD * mad)),
            "A root is taken: MAD is no variance.",
            ROBUST,
        ),
        (
            np.abs((new - one) / (_TO_SD * np.median(np.abs(known - one)))).max(1),
            "All columns share one median: take medians along axis=0.",
            ROBUST,
        ),
        (
            np.abs((new - own(new)[0]) / own(new)[1]).max(1),
            "Median and MAD come from the new rows: take those of `known`.",
            ROBUST,
        ),
        (
            np.abs((new - median) / own(new)[1]).max(1),
            "The MAD comes from the new rows: take that of `known`.",
            ROBUST,
        ),
        (np.abs(new - median).max(1), "Nothing is divided by the spread.", ROBUST),
        (np.abs(new / (_TO_SD * mad)).max(1), "The median is not subtracted.", ROBUST),
        (z.max(1), "The sign is kept: a value far below is odd, too.", most),
        (z.min(1), "This is the smallest z, with its sign.", most),
        (np.abs(z).min(1), "This is the smallest |z| of a row.", most),
        (np.abs(z).mean(1), "This is the mean of |z| over columns.", most),
        (np.abs(z).sum(1), "This is the sum of |z| over columns.", most),
        (
            np.linalg.norm(z, axis=1),
            "This is the length of z: a root of squares.",
            most,
        ),
        ((z**2).max(1), "The z is squared.", most),
        (np.abs(z.mean(1)), "Signs cancel in the mean over columns.", most),
        (-np.abs(z).max(1), "The sign is wrong: higher must be more anomalous.", ""),
        (np.abs(z).max(0), "The largest is taken over rows: take it along axis=1.", ""),
        (np.abs(z), "These are the z of all columns: return one number a row.", most),
        (np.abs(z).max(), "One number came: return one a row.", most),
        (
            _largest_z(known, known),
            "These are scores of the known rows: judge the new ones.",
            "",
        ),
    ]


# 3. Whitening -----------------------------------------------------------------------

WHITE = (
    "With S = (1 - share) C + share diag(C) = L L^T, the rows (x - mean) inv(L)^T are "
    "white."
)


@TALLY.exercise
def whiten(answer: Answer) -> str:
    """Check `whiten(known, new, share)`, new rows in which the known ones are round.

    `known` float (rows, columns); `new` (new rows, columns); `share` between 0 and 1:
    the covariance C of `known` is shrunk to S = (1 - share) C + share diag(C). The
    result is (new rows, columns), turned in any way: only inner products are compared,
    with (x - mean) S^-1 (y - mean). C may be divided by rows or by rows - 1. Oracle:
    the inverse of S. One set has fewer rows than columns.
    """
    rng = np.random.default_rng(4)
    for rows, columns, share in [(30, 3, 0.2), (6, 8, 0.3), (40, 2, 0.05)]:
        mix = rng.normal(size=(columns, columns)) + np.eye(columns)
        scale = 3.0 ** np.arange(columns) if columns < 4 else 1 + np.arange(columns)
        known = rng.normal(size=(rows, columns)) @ mix * scale + 2 * scale
        new = 1.5 * rng.normal(size=(4, columns)) * scale + 3 * scale
        attempt = answer.on(known=known, new=new, share=share)
        _check_white(attempt, known, new, share)
    return "lengths and inner products for three sets, one with more columns than rows."


def _check_white(attempt: Attempt, known: Numbers, new: Numbers, share: float) -> None:
    """Compare the inner products of what came with those of rows whitened."""
    came = _numbers(attempt)
    if came.ndim == 1 and len(came) == len(new):
        attempt.fail("One number a row came: return the whitened rows.", WHITE)
    if came.shape == new.T.shape != new.shape:
        attempt.fail("Rows and columns are exchanged: transpose the result.")
    if came.ndim != 2 or came.shape[0] != len(new):
        wanted = f"({len(new)}, {new.shape[1]})"
        attempt.fail(
            f"The shape is wrong: expected {wanted}, came {tuple(came.shape)}."
        )
    products = came @ came.T
    rights = [_products(known, new, share, ddof) for ddof in (0, 1)]
    if any(_alike_products(products, right) for right in rights):
        return
    for wrong, says, look in _white_mistakes(known, new, share):
        if _alike_products(products, wrong @ wrong.T):
            attempt.fail(says, look)
    lengths, wanted_lengths = products.diagonal().sqrt(), rights[0].diagonal() ** 0.5
    if _alike(lengths, wanted_lengths):
        attempt.fail("Lengths are right, but not the angles between rows.", WHITE)
    worst = int((lengths - _tensor(wanted_lengths)).abs().nan_to_num(math.inf).argmax())
    attempt.fail(
        "The values are wrong. A whitened row is as long as its Mahalanobis distance: "
        f"expected {shown(wanted_lengths[worst])} for row {worst}, came "
        f"{shown(float(lengths[worst]))}.",
        WHITE,
    )


def _alike_products(came: Tensor, expected: Any) -> bool:
    """With room for single precision, relative to the largest."""
    other = _tensor(expected)
    return bool((came - other).abs().max() <= 10 * _TOLERANCE * other.abs().max())


def _products(known: Numbers, new: Numbers, share: float, ddof: int) -> Numbers:
    """The oracle, (new rows, new rows): inner products of whitened rows."""
    away, off = known - known.mean(0), new - known.mean(0)
    covariance = away.T @ away / (len(known) - ddof)
    shrunk = (1 - share) * covariance + share * np.diag(covariance.diagonal())
    return off @ np.linalg.inv(shrunk) @ off.T


def _white_mistakes(known: Numbers, new: Numbers, share: float) -> list[WrongArray]:
    """Wrong rows (new rows, columns); only their inner products are compared."""
    mean, columns = known.mean(0), known.shape[1]
    off = new - mean
    covariance = np.cov(known.T, ddof=0)
    variance, eye = covariance.diagonal(), np.eye(columns)
    sd = np.sqrt(variance)
    correlation = covariance / np.outer(sd, sd)
    shrunk = (1 - share) * covariance + share * np.diag(variance)
    toward = "Shrink towards the variances on the diagonal, columns uncorrelated."
    own = np.cov(new.T, ddof=0)
    own = (1 - share) * own + share * np.diag(own.diagonal())
    raw = known.T @ known / len(known)
    raw = (1 - share) * raw + share * np.diag(raw.diagonal())
    lower = np.linalg.cholesky(shrunk)
    whole = (1 - share) * correlation + share * eye
    made: list[tuple[Callable[[], Numbers], str, str]] = [
        (
            lambda: new @ _inverse_root(shrunk),
            "The rows are not centred: subtract the mean of `known`.",
            WHITE,
        ),
        (
            lambda: (new - new.mean(0)) @ _inverse_root(shrunk),
            "The rows are centred on their own mean: take that of `known`.",
            WHITE,
        ),
        (
            lambda: (new - known.mean()) @ _inverse_root(shrunk),
            "All columns share one mean: take known.mean(axis=0).",
            WHITE,
        ),
        (
            lambda: off @ _inverse_root(raw),
            "The covariance is computed without subtracting the mean.",
            WHITE,
        ),
        (
            lambda: new @ _inverse_root(raw),
            "Nothing is centred: subtract the mean of `known` first.",
            WHITE,
        ),
        (
            lambda: off @ _inverse_root(own),
            "The covariance comes from the new rows: take that of `known`.",
            WHITE,
        ),
        (
            lambda: (new - new.mean(0)) @ _inverse_root(own),
            "Mean and covariance come from the new rows: take those of `known`.",
            WHITE,
        ),
        (
            lambda: off / sd,
            "Columns are only divided by their sds: their correlations stay.",
            WHITE,
        ),
        (lambda: off / variance, "Columns are divided by their variances.", WHITE),
        (lambda: off, "Rows are centred, and perhaps turned, but not scaled.", WHITE),
        (
            lambda: off @ _inverse_root(covariance),
            "The covariance is not shrunk: `share` is not used.",
            WHITE,
        ),
        (
            lambda: (
                off
                @ _inverse_root(share * covariance + (1 - share) * np.diag(variance))
            ),
            "The shares are exchanged: `share` is the weight of the diagonal.",
            WHITE,
        ),
        (
            lambda: off @ _inverse_root((1 - share) * covariance + share * eye),
            "It is shrunk towards the identity, whatever the units.",
            toward,
        ),
        (
            lambda: (
                off
                @ _inverse_root(
                    (1 - share) * covariance + share * variance.mean() * eye
                )
            ),
            "It is shrunk towards one variance for all columns.",
            toward,
        ),
        (
            lambda: off @ _inverse_root(covariance + share * np.diag(variance)),
            "The diagonal is added, but C keeps its whole weight.",
            "Weigh C by 1 - share.",
        ),
        (
            lambda: off @ _inverse_root(covariance + share * eye),
            "`share` is added to the diagonal, whatever the units.",
            toward,
        ),
        (
            lambda: off @ _inverse_root((1 - share) * covariance),
            "C is made smaller, but nothing is added to its diagonal.",
            toward,
        ),
        (
            lambda: off @ np.linalg.inv(shrunk),
            "This is the inverse of S: take its inverse root.",
            WHITE,
        ),
        (lambda: off @ shrunk, "The rows are multiplied by S: divide.", WHITE),
        (
            lambda: off @ lower,
            "The rows are multiplied by the root of S: take its inverse.",
            WHITE,
        ),
        (
            lambda: off @ lower.T,
            "The rows are multiplied by the root of S: take its inverse.",
            WHITE,
        ),
        (
            lambda: off @ np.linalg.inv(lower),
            "The factor of Cholesky is not transposed: rows need inv(L).T.",
            WHITE,
        ),
        (
            lambda: off @ _inverse_root(whole),
            "This is the root of the correlations: divide by the sds first.",
            WHITE,
        ),
        (
            lambda: off / sd @ _inverse_root(shrunk),
            "It is divided by the sds twice: the covariance holds them already.",
            WHITE,
        ),
        (
            lambda: _unit(off @ _inverse_root(shrunk)),
            "The rows are scaled to length 1: their length is the distance.",
            "",
        ),
        (
            lambda: np.abs(off) @ _inverse_root(shrunk),
            "The signs are lost before the rows are turned.",
            WHITE,
        ),
    ]
    return [(_or_nan(make), says, look) for make, says, look in made]


def _inverse_root(matrix: Numbers) -> Numbers:
    """The symmetric root of the inverse; NaN where there is none."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 1e-9 * values[-1]:
        return np.full_like(matrix, math.nan)
    return (vectors / np.sqrt(values)) @ vectors.T


def _or_nan(make: Callable[[], Numbers]) -> Numbers:
    """What `make` returns, or NaN where it has no inverse."""
    try:
        return make()
    except np.linalg.LinAlgError:
        return np.full((1, 1), math.nan)


def _unit(rows: Numbers) -> Numbers:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# 4. Nearest neighbours ----------------------------------------------------------------

OTHERS = "Set the diagonal of the distances to infinity, then take the k smallest."


@TALLY.exercise
def knn_distance(answer: Answer) -> str:
    """Check `knn_distance(rows, k)`, how far each row is from its nearest others.

    `rows` float (rows, d_model), embeddings of any length; the result is (rows,), the
    mean of 1 - cosine to the `k` nearest other rows. Two rows point the same way.
    Oracle: a loop over pairs.
    """
    rng = np.random.default_rng(5)
    for count, d_model, k in [(12, 4, 3), (9, 6, 1), (15, 3, 5)]:
        rows = rng.normal(size=(count, d_model)) + 0.7
        rows *= np.exp(rng.normal(size=(count, 1)))
        rows[4] = 2 * rows[1]
        attempt = answer.on(rows=rows, k=k)
        distances = _cosine_distances(rows)
        expected = np.array(
            [sorted(np.delete(row, own))[:k] for own, row in enumerate(distances)]
        ).mean(1)
        _compare(attempt, expected, _neighbour_mistakes(rows, k))
    return "values for three sets of rows, with two rows that point the same way."


def _cosine_distances(rows: Numbers) -> Numbers:
    """1 - cosine of each pair, one by one: (rows, rows)."""
    return np.array(
        [
            [1 - a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)) for b in rows]
            for a in rows
        ]
    )


def _neighbour_mistakes(rows: Numbers, k: int) -> list[WrongArray]:
    """Wrong scores (rows,), the likeliest first."""
    cosine = _cosine_distances(rows)
    euclid = np.linalg.norm(rows[:, None] - rows, axis=2)
    itself, away = np.eye(len(rows), dtype=bool), 2.0

    def others(distances: Numbers, count: int = k) -> Numbers:
        return np.sort(np.where(itself, np.inf, distances), 1)[:, :count]

    nearest = others(cosine)
    by_euclid = np.where(itself, np.inf, euclid).argsort(1)[:, :k]
    filtered = np.sort(np.where(cosine > 1e-9, cosine, np.inf), 1)[:, :k]
    angle = np.arccos(np.clip(1 - others(cosine), -1, 1))
    far = -np.sort(np.where(itself, np.inf, -cosine), 1)[:, :k]
    dot = rows @ rows.T
    length = np.linalg.norm(rows, axis=1)
    unlike = "1 - cosine compares directions: divide by both lengths."
    return [
        (
            np.sort(cosine, 1)[:, :k].mean(1),
            "A row is its own nearest neighbour here: leave it out.",
            OTHERS,
        ),
        (
            np.sort(cosine, 1)[:, : k + 1].mean(1),
            "The sum is over k others, but the row itself, at 0, counts in the mean.",
            OTHERS,
        ),
        (
            filtered.mean(1),
            "Distances of 0 are left out: another row may point the same way.",
            "Leave out the row by its place, not by its distance.",
        ),
        (nearest[:, -1], "This is the distance to the k-th: take the mean.", ""),
        (nearest.sum(1), "This is the sum of the k distances: take the mean.", ""),
        (nearest[:, 0], "This is the distance to the nearest: take k of them.", ""),
        (np.median(nearest, 1), "This is the median of the k: take the mean.", ""),
        (others(cosine, k + 1).mean(1), "One neighbour too many is taken.", OTHERS),
        (
            (1 - nearest).mean(1),
            "This is the similarity, high for the usual: take 1 - cosine.",
            "",
        ),
        (-nearest.mean(1), "The sign is wrong: higher must be more anomalous.", ""),
        (
            (nearest - 1).mean(1),
            "This is -cosine: take 1 - cosine.",
            "",
        ),
        (others(euclid).mean(1), "These are Euclidean distances of the rows.", unlike),
        (
            np.take_along_axis(cosine, by_euclid, 1).mean(1),
            "The neighbours are chosen by Euclidean distance.",
            unlike,
        ),
        (
            np.sqrt(2 * nearest.clip(0)).mean(1),
            "These are Euclidean distances of unit vectors: 1 - cosine is half their "
            "square.",
            unlike,
        ),
        (
            2 * nearest.mean(1),
            "These are squared distances of unit vectors, twice 1 - cosine.",
            "",
        ),
        (others(1 - dot).mean(1), "The lengths are not divided out.", unlike),
        (
            others(1 - dot / length[:, None]).mean(1),
            "Only one of the two lengths is divided out.",
            unlike,
        ),
        (
            others(1 - dot / length).mean(1),
            "Only one of the two lengths is divided out.",
            unlike,
        ),
        (
            others(1 - dot / np.outer(length, length) ** 2).mean(1),
            "It is divided by squared lengths: take the root of the sum of squares.",
            unlike,
        ),
        (far.mean(1), "These are the farthest rows: sort upwards.", OTHERS),
        (
            np.sort(cosine, 1)[:, -k:].mean(1),
            "These are the farthest rows: sort upwards.",
            OTHERS,
        ),
        (
            cosine.sum(1) / (len(rows) - 1),
            "This is the mean over all others: take the k nearest.",
            OTHERS,
        ),
        (cosine.mean(1), "This is the mean over all rows: take the k nearest.", OTHERS),
        (
            np.sort(1 - dot / np.outer(length, length) + away * itself, 1)[
                :, 1 : k + 1
            ].mean(1),
            "The nearest other row is skipped.",
            OTHERS,
        ),
        (angle.mean(1), "These are angles: take 1 - cosine.", ""),
        (angle.mean(1) / math.pi, "These are angles: take 1 - cosine.", ""),
        ((nearest**2).mean(1), "The distances are squared.", ""),
        (
            others(_cosine_distances(rows - rows.mean(0))).mean(1),
            "The rows are centred first: that is a step of its own.",
            "",
        ),
        (
            others(_cosine_distances(rows - rows.mean(1, keepdims=True))).mean(1),
            "This is 1 - correlation: each row has lost its own mean.",
            "",
        ),
        (
            others(1 - np.abs(1 - cosine)).mean(1),
            "The sign of the cosine is lost: opposite is not near.",
            "",
        ),
        (nearest, "These are all k distances: take the mean of each row.", ""),
        (nearest.mean(), "One number came: return one a row.", ""),
    ]


# 5. What logits cannot see ------------------------------------------------------------

UNSEEN = (
    "The seen part is the projection on the row space of `weights`: pinv(W) @ W @ h."
)


@TALLY.exercise
def unseen_length(answer: Answer) -> str:
    """Check `unseen_length(weights, states)`, what of each state changes no logit.

    `weights` float (classes, d_model), of a linear head; `states` (rows, d_model); the
    result is (rows,), the length of the part of each state that is orthogonal to all
    rows of `weights`. In one head, the rows of `weights` add up to 0. Oracle: an
    orthonormal basis by Gram and Schmidt.
    """
    rng = np.random.default_rng(6)
    for classes, d_model in [(3, 8), (4, 6), (2, 5)]:
        weights = rng.normal(size=(classes, d_model)) + 0.5
        if classes == 4:
            weights -= weights.mean(0)
        states = rng.normal(size=(6, d_model)) + 0.3
        attempt = answer.on(weights=weights, states=states)
        unseen = _unseen(weights, states)
        expected = np.sqrt((unseen**2).sum(1))
        _compare(attempt, expected, _unseen_mistakes(weights, states, unseen))
    return "lengths for three heads; in one, the rows of the weights add up to 0."


def _unseen(weights: Numbers, states: Numbers) -> Numbers:
    """The oracle, (rows, d_model): each direction of the weights taken away in turn."""
    basis: list[Numbers] = []
    for row in weights:
        rest = row - sum((row @ other * other for other in basis), np.zeros(len(row)))
        if np.linalg.norm(rest) > 1e-9 * np.linalg.norm(row):
            basis.append(rest / np.linalg.norm(rest))
    left = states.copy()
    for direction in basis:
        left -= np.outer(left @ direction, direction)
    return left


def _unseen_mistakes(
    weights: Numbers, states: Numbers, unseen: Numbers
) -> list[WrongArray]:
    """Wrong lengths (rows,), the likeliest first."""
    size, seen = np.linalg.norm(states, axis=1), states - unseen
    hidden, visible = np.linalg.norm(unseen, axis=1), np.linalg.norm(seen, axis=1)
    logits, unit = states @ weights.T, _unit(weights)
    shift = _unseen(weights - weights.mean(0), states)
    tall = np.linalg.svd(weights)[2]
    orthogonal = "The rows of `weights` are not orthonormal: use the pseudo-inverse."
    moved = _unseen(weights, states - states.mean(0))
    return [
        (visible, "This is the part that the logits do see.", UNSEEN),
        (size, "This is the length of the whole state.", UNSEEN),
        (
            np.linalg.norm(states - logits @ weights, axis=1),
            "W^T W is no projection here.",
            orthogonal,
        ),
        (
            np.linalg.norm(states - states @ unit.T @ unit, axis=1),
            "Each row is taken away by itself, though rows overlap.",
            orthogonal,
        ),
        (np.linalg.norm(logits, axis=1), "This is the length of the logits.", UNSEEN),
        (
            size - np.linalg.norm(logits, axis=1),
            "Lengths of states and of logits cannot be subtracted.",
            UNSEEN,
        ),
        (
            size - visible,
            "Lengths do not subtract: their squares do.",
            "hidden^2 = whole^2 - seen^2, by Pythagoras.",
        ),
        (hidden**2, "The length is squared: take the root.", ""),
        (hidden / size, "This is a share of the state's length.", ""),
        (hidden**2 / size**2, "This is a share of the state's squared length.", ""),
        (np.abs(unseen).sum(1), "This is a sum of absolute values, no length.", ""),
        (unseen.sum(1), "This is the sum of the part's numbers, no length.", ""),
        (np.abs(unseen).max(1), "This is the part's largest number, no length.", ""),
        (unseen.mean(1), "This is the mean of the part's numbers, no length.", ""),
        (
            np.sqrt((unseen**2).mean(1)),
            "This is a root of a mean: take the root of the sum.",
            "",
        ),
        (
            np.linalg.norm(shift, axis=1),
            "This is what changes no probability. A shift of all logits alike changes "
            "the logits.",
            "Do not subtract the mean of `weights`.",
        ),
        (
            np.linalg.norm(moved, axis=1),
            "The states are centred first: that is a step of its own.",
            "",
        ),
        (
            np.abs(states @ tall[-1]),
            "This is one direction only: all that the logits cannot see count.",
            UNSEEN,
        ),
        (
            np.linalg.norm(states - states @ tall[:1].T @ tall[:1], axis=1),
            "Only the strongest direction of the weights is taken away.",
            UNSEEN,
        ),
        (-hidden, "A length is not negative.", ""),
        (unseen, "These are the parts themselves: return their lengths.", ""),
        (
            np.linalg.norm(unseen, axis=0),
            "The sum of squares runs over rows: take axis=1.",
            "",
        ),
        (np.linalg.norm(unseen), "One number came: return one a row.", ""),
    ]


# 6. Isolation -------------------------------------------------------------------------

PATH = (
    "Add c(left) to the cuts of each tree, take the mean over trees, divide by c(n), "
    "and take 2 to the minus that."
)


@TALLY.exercise
def isolation_score(answer: Answer) -> str:
    """Check `isolation_score(cuts, left, n)`, an isolation forest's score of each row.

    `cuts` int64 (trees, rows), how many cuts led to the row's leaf; `left` int64
    (trees, rows), how many of the tree's `n` training rows lie in that leaf, from 1.
    The result is (rows,). Oracle: harmonic numbers added up; the usual approximation,
    with c(2) = 1, passes too.
    """
    rng = np.random.default_rng(7)
    for trees, rows, n in [(5, 4, 256), (8, 6, 64), (3, 7, 16)]:
        cuts = rng.integers(2, 2 + int(math.log2(n)), size=(trees, rows))
        left = rng.choice([1, 1, 2, 3, 7], size=(trees, rows))
        cuts[:, 0], left[:, 0] = 2, 1
        attempt = answer.on(cuts=cuts, left=left, n=n)
        expected = _isolation(cuts, left, n, _average_path)
        also = _isolation(cuts, left, n, _approximate_path)
        _compare(attempt, expected, _isolation_mistakes(cuts, left, n), also)
    return "values for three forests, with leaves that hold more than one row."


def _average_path(rows: int) -> float:
    """c(rows): the mean number of cuts that part a row from the others."""
    harmonic = sum(1 / number for number in range(1, rows))
    return 2 * harmonic - 2 * (rows - 1) / rows


def _approximate_path(rows: int) -> float:
    """The same with the logarithm in place of the harmonic number, as forests do."""
    if rows <= 2:
        return float(rows == 2)
    return 2 * (math.log(rows - 1) + np.euler_gamma) - 2 * (rows - 1) / rows


def _isolation(
    cuts: Numbers, left: Numbers, n: int, path: Callable[[int], float]
) -> Numbers:
    """Score of each row, (rows,), with `path` for c."""
    depth = cuts + np.vectorize(path, otypes=[float])(left)
    return 2 ** (-depth.mean(0) / path(n))


def _isolation_mistakes(cuts: Numbers, left: Numbers, n: int) -> list[WrongArray]:
    """Wrong scores (rows,), the likeliest first; exact and approximate ones."""
    twins = [
        _isolation_wrong(cuts, left, n, path)
        for path in (_average_path, _approximate_path)
    ]
    return [wrong for pair in zip(*twins, strict=True) for wrong in pair]


def _isolation_wrong(
    cuts: Numbers, left: Numbers, n: int, path: Callable[[int], float]
) -> list[WrongArray]:
    """Wrong scores with `path` for c."""
    c = np.vectorize(path, otypes=[float])
    rest, full = c(left), path(n)
    depth, harmonic = cuts + rest, sum(1 / i for i in range(1, n + 1))
    mean = depth.mean(0)
    right = 2 ** (-mean / full)
    plain = 2 * (np.log(np.maximum(left - 1, 1)) + np.euler_gamma)
    plain = np.where(left > 1, plain - 2 * (left - 1) / left, 0)
    twice = 2 * np.log(np.maximum(left, 1)) + 2 * np.euler_gamma - 2 * (left - 1) / left
    many = "A leaf with more rows would have been cut further: add c(left)."
    usual = "A short path must score high: 2 to the MINUS mean / c(n)."
    return [
        (2 ** (-cuts.mean(0) / full), "c(left) is not added to the cuts.", many),
        (
            2 ** (-(cuts + left).mean(0) / full),
            "The rows left in a leaf are added, not c of them.",
            many,
        ),
        (2 ** (-(cuts - rest).mean(0) / full), "c(left) is subtracted.", many),
        (
            2 ** (-(cuts + np.log2(left)).mean(0) / full),
            "log2 of the rows in the leaf is added in place of c(left).",
            many,
        ),
        (
            2 ** (-(cuts + plain).mean(0) / full),
            "c(2) is 1: the logarithm comes near to H only for many rows.",
            "H(1) = 1, H(2) = 1 + 1/2.",
        ),
        (
            2 ** (-(cuts + twice).mean(0) / full),
            "c(m) has H(m - 1), and c(1) = 0.",
            PATH,
        ),
        (
            2 ** (-(cuts + rest / full).mean(0) / full),
            "c(left) is in cuts already: do not divide it by c(n) twice.",
            PATH,
        ),
        (
            2 ** (-cuts.mean(0) / rest.mean(0).clip(1e-9)),
            "It is divided by c(left): divide by c(n), add c(left).",
            PATH,
        ),
        (
            (2 ** (-depth / full)).mean(0),
            "This is a mean of the trees' scores: take the mean of the paths first.",
            PATH,
        ),
        (2 ** (mean / full), "The sign of the exponent is wrong.", usual),
        (1 - right, "This is 1 - score, high for the usual.", usual),
        (-right, "The sign is scikit-learn's: high for the usual.", usual),
        (0.5 - right, "This is scikit-learn's decision, high for the usual.", usual),
        (right - 0.5, "0.5 is subtracted: that is a threshold.", PATH),
        (mean, "This is the mean path, which is long for the usual.", PATH),
        (-mean, "This is minus the mean path: bring it to 0 to 1.", PATH),
        (mean / full, "This is the exponent, which is high for the usual.", PATH),
        (-mean / full, "This is the exponent: take 2 to it.", PATH),
        (np.exp(-mean / full), "This is e to the exponent: take 2.", PATH),
        (2 ** (-mean), "The path is not divided by c(n).", PATH),
        (2 ** (-mean / n), "The path is divided by n, not by c(n).", PATH),
        (
            2 ** (-mean / math.log2(n)),
            "The path is divided by log2(n), not by c(n).",
            PATH,
        ),
        (
            2 ** (-mean / (2 * harmonic - 2 * (n - 1) / n)),
            "c(n) has H(n - 1), not H(n).",
            PATH,
        ),
        (
            2 ** (-mean / (full + 2 * (n - 1) / n)),
            "The second term of c(n), 2 (n - 1) / n, is missing.",
            PATH,
        ),
        (
            2 ** (-mean / (2 * math.log(n - 1) - 2 * (n - 1) / n)),
            "Euler's constant, 0.5772, is missing from H(n - 1).",
            PATH,
        ),
        (2 ** (-mean / (full / 2)), "The factor 2 of c(n) is missing.", PATH),
        (
            2 ** (-depth.sum(0) / full),
            "The paths are added up: take the mean over trees.",
            PATH,
        ),
        (
            2 ** (-np.median(depth, 0) / full),
            "This is the median over trees: take the mean.",
            PATH,
        ),
        (
            2 ** (-depth.min(0) / full),
            "This is the shortest path of all trees: take the mean.",
            PATH,
        ),
        (
            2 ** (-depth.mean(1) / full),
            "The mean runs over rows: take it over trees, axis=0.",
            PATH,
        ),
        (2 ** (-depth / full), "There is a score for each tree: take means.", PATH),
        (2 ** (-depth.mean() / full), "One number came: return one a row.", PATH),
    ]


# 7. ECOD ------------------------------------------------------------------------------

TAILS = (
    "Three sums over columns: -log of left tails, of right tails, and for each column "
    "of the tail on its long side. Take the largest."
)


@TALLY.exercise
def tail_score(answer: Answer) -> str:
    """Check `tail_score(rows)`, ECOD's score of each row.

    `rows` float (rows, columns), with equal values in some columns; the result is
    (rows,): the largest of three sums over columns of -log tail. A tail is the share of
    all rows at or below a value, or at or above it, the row itself included. The third
    sum takes left tails where the skewness is negative, else right ones. Oracle: counts
    of rows, value by value.
    """
    rng = np.random.default_rng(8)
    for count in (15, 24):
        rows = rng.exponential(size=(count, 3)) * [1, -2, 1]
        rows[:, 2] = rng.permutation(_skewed_against_its_median(count))
        rows = rows.round(1)
        rows[2] = [rows[:, 0].max(), rows[:, 1].min(), np.median(rows[:, 2])]
        attempt = answer.on(rows=rows)
        left, right = _tails(rows)
        skew = _skewness(rows)
        expected = _largest_sum(-np.log(left), -np.log(right), skew)
        _compare(attempt, expected, _tail_mistakes(rows, left, right, skew))
    return "values for two sets of rows, skewed to the left and to the right."


def _skewed_against_its_median(count: int) -> Numbers:
    """(count,) negative skewness, though the mean is above the median."""
    values = np.linspace(0, 3, count)
    values[: count // 2 + 1] = np.linspace(0, 0.5, count // 2 + 1)
    values[0] = -4.0
    return values


def _skewness(rows: Numbers) -> Numbers:
    """(columns,) third moments over the cubes of the sds."""
    away = rows - rows.mean(0)
    return (away**3).mean(0) / (away**2).mean(0) ** 1.5


def _tails(rows: Numbers) -> tuple[Numbers, Numbers]:
    """Shares of rows at or below each value, and at or above it, (rows, columns)."""
    left, right = np.zeros((2, *rows.shape))
    for place, value in np.ndenumerate(rows):
        column = rows[:, place[1]]
        left[place] = sum(column <= value) / len(rows)
        right[place] = sum(column >= value) / len(rows)
    return left, right


def _largest_sum(left: Numbers, right: Numbers, skew: Numbers) -> Numbers:
    """(rows,) the largest of three sums over columns."""
    long_side = np.where(skew < 0, left, right)
    return np.max([part.sum(1) for part in (left, right, long_side)], axis=0)


def _tail_mistakes(
    rows: Numbers, left: Numbers, right: Numbers, skew: Numbers
) -> list[WrongArray]:
    """Wrong scores (rows,), the likeliest first."""
    n = len(rows)
    a, b = -np.log(left), -np.log(right)
    third = np.where(skew < 0, a, b)
    score = _largest_sum(a, b, skew)
    order = rows.argsort(0, kind="stable").argsort(0, kind="stable") + 1
    with np.errstate(divide="ignore"):
        open_left, open_right = -np.log(1 - right), -np.log(1 - left)
    beside = -np.log((n * left + 1) / (n + 1)), -np.log((n * right + 1) / (n + 1))
    wider = -np.log(n * left / (n + 1)), -np.log(n * right / (n + 1))
    centre = rows.mean(0) - np.median(rows, 0)
    strict = "Count the row itself, and rows with an equal value: no tail is empty."
    return [
        (
            np.maximum(a, b).sum(1),
            "The larger tail is taken column by column, before the sums. So does the "
            "authors' program; their paper sums first.",
            TAILS,
        ),
        (a.sum(1), "These are left tails only.", TAILS),
        (b.sum(1), "These are right tails only.", TAILS),
        (third.sum(1), "This is the third sum only.", TAILS),
        (np.maximum(a.sum(1), b.sum(1)), "The third sum is missing.", TAILS),
        (
            _largest_sum(a, b, -skew),
            "The long sides are exchanged: left where the skewness is negative.",
            TAILS,
        ),
        (
            _largest_sum(a, b, centre),
            "Mean minus median is not the skewness: take the sum of cubes.",
            "The sign of ((x - mean) ** 3).sum() is enough.",
        ),
        (
            _largest_sum(a, b, np.full_like(skew, skew.mean())),
            "Each column has its own skewness: take it along axis=0.",
            TAILS,
        ),
        (
            np.min([a.sum(1), b.sum(1), third.sum(1)], axis=0),
            "This is the smallest of the three sums: take the largest.",
            TAILS,
        ),
        (a.sum(1) + b.sum(1) + third.sum(1), "The three sums are added.", TAILS),
        (a.sum(1) + b.sum(1), "The left and the right sums are added.", TAILS),
        (
            np.mean([a.sum(1), b.sum(1), third.sum(1)], axis=0),
            "This is the mean of the three sums: take the largest.",
            TAILS,
        ),
        (_largest_sum(open_left, open_right, skew), "A tail is empty.", strict),
        (
            _largest_sum(a, open_right, skew),
            "The right tail is 1 - left tail: the row itself is in neither.",
            strict,
        ),
        (
            _largest_sum(-np.log(order / n), -np.log((n + 1 - order) / n), skew),
            "Equal values have tails of their own: count all at or below.",
            "np.searchsorted, or comparing all pairs, counts equal values.",
        ),
        (
            _largest_sum(*beside, skew),
            "The rows are judged as new ones: each is one of the n here.",
            "",
        ),
        (_largest_sum(*wider, skew), "It is divided by n + 1, not by n.", ""),
        (
            _largest_sum(-np.log(n * left), -np.log(n * right), skew),
            "These are counts: divide by the number of rows.",
            "",
        ),
        (-score, "The sign is wrong: higher must be more anomalous.", ""),
        (
            -_largest_sum(-a, -b, skew),
            "The sign is turned after the maximum: rare tails must win.",
            "",
        ),
        (
            _largest_sum(-a, -b, skew),
            "log tail is negative: take minus the logarithm.",
            "",
        ),
        (score / rows.shape[1], "This is a mean over columns: take the sum.", ""),
        (score / math.log(10), "The logarithm is to base 10: take np.log.", ""),
        (score / math.log(2), "The logarithm is to base 2: take np.log.", ""),
        (_largest_sum(left, right, skew), "These are tails: take -log.", TAILS),
        (_largest_sum(1 - left, 1 - right, skew), "Take -log of the tails.", TAILS),
        (np.exp(-score), "This is a product of tails: take -log of it.", ""),
        (
            np.max([a.max(1), b.max(1)], axis=0),
            "This is the rarest single value: add up over columns.",
            TAILS,
        ),
        (
            np.minimum(a, b).sum(1),
            "The smaller -log tail of each column is taken: the common side.",
            TAILS,
        ),
        (
            np.max([a.sum(0), b.sum(0), third.sum(0)], axis=0),
            "The sums run over rows: add up over columns, axis=1.",
            "",
        ),
        (score.sum(), "One number came: return one a row.", ""),
    ]


# 8. A threshold for a budget ----------------------------------------------------------

BUDGET = (
    "Sort the anomaly scores downwards; if the last that fits ties with the next, go "
    "up to the next higher score."
)
# How many notes have scores, how many come and can be read a day, and whether scores
# tie. In the third, 29 / 100 * 100 is below 29 in floats.
_BUDGETS = [
    (90, 400, 20, False),
    (250, 500, 20, True),
    (100, 100, 29, False),
    (60, 300, 20, True),
    (40, 30, 30, False),
]


@TALLY.exercise
def review_threshold(answer: Answer) -> str:
    """Check `review_threshold(score_samples, notes_a_day, reviews_a_day)`.

    `score_samples` float (notes,), scikit-learn's, high for the usual; two whole
    numbers. The result is one number: the lowest of the anomaly scores, which are
    -score_samples, at or above which lies no more than the share reviews / notes of
    these notes. Equal scores are flagged together or not at all. Oracle: every score is
    tried.
    """
    rng = np.random.default_rng(9)
    for notes, a_day, reviews, tie in _BUDGETS:
        scores = rng.normal(size=notes) * 2 + 3
        if tie:
            scores = scores.round(1)
            order = scores.argsort()
            fit = notes * reviews // a_day
            scores[order[fit - 3 : fit + 2]] = scores[order[fit - 3]] + 0.01
        attempt = answer.on(
            score_samples=scores, notes_a_day=a_day, reviews_a_day=reviews
        )
        _check_budget(attempt, -scores, a_day, reviews)
    return "thresholds for five budgets, with equal scores at the border of two."


def _check_budget(attempt: Attempt, scores: Numbers, a_day: int, reviews: int) -> None:
    """Compare the threshold on anomaly scores (notes,)."""
    came, fit = attempt.number(), len(scores) * reviews // a_day
    expected = min(score for score in scores if (scores >= score).sum() <= fit)
    if same(came, expected, 1e-6):
        return
    mistakes = _budget_mistakes(scores, a_day, reviews)
    told = f"Expected {expected:.4f}, came {came:.4f}."
    for value, says, look in mistakes:
        if same(came, value, 1e-6):
            attempt.fail(f"{says} {told}", look)
    flagged = int((scores >= came).sum())
    wanted = int((scores >= expected).sum())
    if flagged == wanted:
        says = "It flags the right notes, but it is none of the scores."
    elif flagged > fit:
        says = f"It flags {flagged} of {len(scores)} notes; no more than {fit} fit."
    else:
        says = f"It flags {flagged} of {len(scores)} notes; {wanted} fit."
    attempt.fail(f"{says} {told}", BUDGET)


def _budget_mistakes(scores: Numbers, a_day: int, reviews: int) -> list[WrongNumber]:
    """Wrong thresholds; `scores` are anomaly scores (notes,)."""
    down, n = np.sort(scores)[::-1], len(scores)
    fit, share = n * reviews // a_day, reviews / a_day

    def at(place: int, of: Numbers = down) -> float:
        return float(of[min(max(place, 1), n) - 1])

    def lowest(of: Numbers, allowed: int) -> float:
        fitting = [score for score in of if (of >= score).sum() <= allowed]
        return float(min(fitting, default=math.inf))

    right = lowest(scores, fit)
    turned = "score_samples is high for the usual: the anomaly score is minus it."
    many = "Equal scores at the border are flagged, and more than fit."
    fewer = [score for score in scores if (scores > score).sum() <= fit]
    known: list[WrongNumber] = [
        (-right, "This is a threshold on score_samples.", turned),
        (
            lowest(-scores, fit),
            "The sign is not turned: the most usual notes are flagged.",
            turned,
        ),
        (at(fit, np.sort(-scores)[::-1]), "The most usual notes are flagged.", turned),
    ]
    trap = int(share * n)
    if trap != fit:
        says = "In floats, 29 / 100 * 100 is below 29: multiply first, then divide."
        known.append((lowest(scores, trap), says, "notes * reviews // notes_a_day"))
    if at(fit) != right:
        known.append((at(fit), many, BUDGET))
    else:
        known += [
            (at(fit - 1), "One note too few is flagged.", BUDGET),
            (lowest(scores, fit - 1), "One note too few is flagged.", BUDGET),
        ]
    quantiles = [
        float(np.quantile(values, q) * sign)
        for values, q, sign in ((scores, 1 - share, 1), (-scores, share, -1))
    ]
    known += [
        *(
            (value, "A quantile lies between two scores.", BUDGET)
            for value in quantiles
        ),
        (
            float(min(fewer)),
            "A note is flagged at the threshold, too: this flags one more, or many.",
            BUDGET,
        ),
        (at(fit + 1), "One note too many is flagged.", BUDGET),
        (at(math.ceil(n * share)), "The notes that fit are rounded up.", BUDGET),
        (
            at(reviews),
            "The day's reviews are counted off from all scores, of many days.",
            "The share reviews / notes of the scores may be flagged.",
        ),
        (
            lowest(scores, reviews),
            "The day's reviews are counted off from all scores, of many days.",
            "The share reviews / notes of the scores may be flagged.",
        ),
        (at(n - fit + 1), "The share that is not reviewed is flagged.", BUDGET),
        (at(n - fit), "The share that is not reviewed is flagged.", BUDGET),
        (at(n // 10), "A tenth is flagged, whatever the budget.", BUDGET),
        (
            float(np.quantile(scores, 0.9)),
            "A tenth is flagged, whatever the budget.",
            BUDGET,
        ),
        (float(down[0]), "This is the highest score: one note is flagged.", BUDGET),
        (float(down[-1]), "This is the lowest score: all are flagged.", BUDGET),
        (share, "This is the share to review, no score.", BUDGET),
        (float(fit), "This is how many notes fit, no score.", BUDGET),
    ]
    return [wrong for wrong in known if not same(wrong[0], right, 1e-6)]


# 9. In the clinic ---------------------------------------------------------------------

CLINIC = (
    "Sensitivity and false alarm rate carry over; of all notes in the clinic, "
    "prevalence are anomalies."
)
_SETS = [
    ((40, 60), 2.0, 0.01, 500),
    ((30, 30), 1.5, 0.002, 2000),
    ((15, 85), 1.0, 0.4, 50),
]


@TALLY.exercise
def in_the_clinic(answer: Answer) -> str:
    """Check `in_the_clinic(labels, scores, threshold, prevalence, notes_a_day)`.

    `labels` int64 (rows,), 1 for an anomaly and 0 for a usual row; `scores` float
    (rows,), an alarm at or above `threshold`; the share `prevalence` of the clinic's
    notes are anomalies. The result is a pair: alarms a day on average, and the share of
    anomalies among the alarms. Oracle: counts, weighted.
    """
    rng = np.random.default_rng(10)
    for (odd, usual), threshold, prevalence, a_day in _SETS:
        labels = rng.permutation(np.repeat([1, 0], [odd, usual]))
        scores = (rng.normal(size=len(labels)) + 1.5 * labels).round(1) + 0.5
        for kind in (0, 1):
            scores[np.flatnonzero(labels == kind)[:2]] = threshold
        attempt = answer.on(
            labels=labels,
            scores=scores,
            threshold=threshold,
            prevalence=prevalence,
            notes_a_day=a_day,
        )
        _check_clinic(attempt, labels, scores >= threshold, scores > threshold)
    return "alarms and precision at three prevalences, with scores at the threshold."


def _check_clinic(
    attempt: Attempt, labels: Numbers, alarm: Numbers, above: Numbers
) -> None:
    """Compare both numbers; `above` lacks the rows at the threshold."""
    p, a_day = attempt.inputs["prevalence"], attempt.inputs["notes_a_day"]
    came = _two_numbers(attempt, "alarms a day and precision")
    rates = _rates(labels, alarm)
    right = _expected(rates, p, a_day)
    if same(came[0], right[1]) and same(came[1], right[0]):
        attempt.fail("The two are exchanged: alarms first, then precision.")
    strict = _expected(_rates(labels, above), p, a_day)
    if same(came[0], strict[0]) and same(came[1], strict[1]):
        attempt.fail("A score at the threshold is an alarm, too: take >=.")
    parts = [
        ("alarms", came[0], right[0], _alarm_mistakes(rates, labels, alarm, p, a_day)),
        ("precision", came[1], right[1], _precision_mistakes(rates, labels, alarm, p)),
    ]
    for what, number, wanted, mistakes in parts:
        if same(number, wanted):
            continue
        told = f"Expected {shown(wanted)} ({what}), came {shown(number)}."
        for value, says, look in mistakes:
            if same(number, value):
                attempt.fail(f"{says} {told}", look)
        attempt.fail(f"The {what} came out wrong. {told}", CLINIC)


def _rates(labels: Numbers, alarm: Numbers) -> tuple[float, float]:
    """Sensitivity and false alarm rate."""
    odd = labels == 1
    return float(alarm[odd].mean()), float(alarm[~odd].mean())


def _expected(rates: tuple[float, float], p: float, a_day: int) -> tuple[float, float]:
    """Alarms a day, and the share of anomalies among them."""
    true, false = rates[0] * p * a_day, rates[1] * (1 - p) * a_day
    return true + false, true / (true + false)


def _alarm_mistakes(
    rates: tuple[float, float], labels: Numbers, alarm: Numbers, p: float, a_day: int
) -> list[WrongNumber]:
    """Wrong alarms a day, the likeliest first."""
    found, false = rates
    true, wrong = found * p * a_day, false * (1 - p) * a_day
    right = true + wrong
    return [
        (
            float(alarm.mean()) * a_day,
            "The alarms are those of the test set, where anomalies are more common.",
            CLINIC,
        ),
        (
            float(alarm.sum()),
            "These are the alarms of the test set, not those of a day.",
            CLINIC,
        ),
        (true, "These are the true alarms alone: add the false ones.", CLINIC),
        (wrong, "These are the false alarms alone: add the true ones.", CLINIC),
        (
            right / a_day,
            "This is the share of notes with an alarm: multiply by notes_a_day.",
            "",
        ),
        (
            (found + false) * a_day,
            "The prevalence is not used.",
            CLINIC,
        ),
        (
            true + false * a_day,
            "False alarms are a share of the usual notes: multiply by 1 - prevalence.",
            CLINIC,
        ),
        (
            found * a_day + wrong,
            "True alarms are a share of the anomalies: multiply by the prevalence.",
            CLINIC,
        ),
        (
            found * (1 - p) * a_day + false * p * a_day,
            "The prevalence is the share of anomalies, not of the usual.",
            CLINIC,
        ),
        (
            true + (1 - false) * (1 - p) * a_day,
            "Usual notes below the threshold raise no alarm: take the false alarm "
            "rate.",
            CLINIC,
        ),
        (p * a_day, "These are the anomalies a day, found or not.", CLINIC),
        (a_day - right, "These are the notes without an alarm.", CLINIC),
        (float(round(right)), "The alarms are rounded: a mean need not be whole.", ""),
        (float(math.floor(right)), "The alarms are rounded down.", ""),
        (float(math.ceil(right)), "The alarms are rounded up.", ""),
    ]


def _precision_mistakes(
    rates: tuple[float, float], labels: Numbers, alarm: Numbers, p: float
) -> list[WrongNumber]:
    """Wrong shares of anomalies among alarms, the likeliest first."""
    found, false = rates
    true, wrong = found * p, false * (1 - p)
    right = true / (true + wrong)
    return [
        (
            float((labels == 1)[alarm].mean()),
            "This is the precision of the test set, where anomalies are more common.",
            CLINIC,
        ),
        (found, "This is the sensitivity: the alarms among the anomalies.", CLINIC),
        (
            found / (found + false),
            "The prevalence is not used, as if half of the notes were anomalies.",
            CLINIC,
        ),
        (true, "Divide the true alarms by all alarms, not by all notes.", CLINIC),
        (1 - right, "This is the share of false alarms.", CLINIC),
        (true / wrong, "This is true alarms by false ones: divide by all.", CLINIC),
        (
            true / (true + false),
            "False alarms are a share of the usual notes: multiply by 1 - prevalence.",
            CLINIC,
        ),
        (
            found / (found + wrong),
            "True alarms are a share of the anomalies: multiply by the prevalence.",
            CLINIC,
        ),
        (
            found * (1 - p) / (found * (1 - p) + false * p),
            "The prevalence is the share of anomalies, not of the usual.",
            CLINIC,
        ),
        (
            true / (true + (1 - false) * (1 - p)),
            "Usual notes below the threshold raise no alarm: take the false alarm "
            "rate.",
            CLINIC,
        ),
        (
            p / (true + wrong),
            "Not every anomaly raises an alarm: multiply by the sensitivity.",
            CLINIC,
        ),
        (p, "This is the prevalence: the precision of guessing.", CLINIC),
        (float(((labels == 1) == alarm).mean()), "This is the accuracy.", CLINIC),
        (100 * right, "This is in per cent: return a share.", ""),
    ]


# 10. The local outlier factor ---------------------------------------------------------

LOCAL = (
    "reach(p, o) = max(distance(p, o), k-th distance of o); density(p) = 1 / mean "
    "reach; LOF = mean density of the neighbours / density(p)."
)


@TALLY.exercise
def outlier_factor(answer: Answer) -> str:
    """Check `outlier_factor(rows, k)`, LOF of each row among the others.

    `rows` float (rows, columns), no two pairs at one distance; `k` is a whole number;
    the result is (rows,). Oracle: row by row. There is a dense and a thin cluster, and
    a row beside the dense one.
    """
    rng = np.random.default_rng(11)
    for dense, thin, k in [(12, 10, 4), (9, 8, 3), (14, 6, 5)]:
        rows = np.concatenate(
            [
                0.2 * rng.normal(size=(dense, 2)),
                2.5 * rng.normal(size=(thin, 2)) + 12,
                [[1.6, -1.4]],
            ]
        )
        attempt = answer.on(rows=rows, k=k)
        expected, mistakes = _factors(rows, k), _factor_mistakes(rows, k)
        _compare(attempt, expected, mistakes)
    return "values for three sets, each with a dense and a thin cluster."


def _factors(rows: Numbers, k: int) -> Numbers:
    """The oracle, (rows,), row by row."""
    count = range(len(rows))
    distance = [[math.dist(a, b) for b in rows] for a in rows]
    near = [
        sorted((o for o in count if o != p), key=distance[p].__getitem__)[:k]
        for p in count
    ]
    reach_of = [distance[p][near[p][-1]] for p in count]
    density = [
        k / sum(max(distance[p][o], reach_of[o]) for o in near[p]) for p in count
    ]
    return np.array([sum(density[o] for o in near[p]) / k / density[p] for p in count])


def _factor_mistakes(rows: Numbers, k: int) -> list[WrongArray]:
    """Wrong factors (rows,), the likeliest first."""
    distance = np.linalg.norm(rows[:, None] - rows, axis=2)
    itself = np.eye(len(rows), dtype=bool)

    def neighbours(count: int, own: bool = False) -> NDArray[np.int64]:
        return np.where(itself & (not own), np.inf, distance).argsort(1)[:, :count]

    def apart(near: NDArray[np.int64]) -> Numbers:
        return np.take_along_axis(distance, near, 1)

    def factor(density: Numbers, near: NDArray[np.int64]) -> Numbers:
        return density[near].mean(1) / density

    near = neighbours(k)
    radius = apart(near)[:, -1]
    reach = np.maximum(apart(near), radius[near])
    density = 1 / reach.mean(1)
    right = factor(density, near)

    def whole(near: NDArray[np.int64]) -> Numbers:
        radius = apart(near)[:, -1]
        return factor(1 / np.maximum(apart(near), radius[near]).mean(1), near)

    simple, own = 1 / apart(near).mean(1), neighbours(k, own=True)
    mine = np.maximum(apart(near), radius[:, None])
    least = np.minimum(apart(near), radius[near])
    with_self = neighbours(k + 1, own=True)
    first = apart(near)[:, 0]
    city = np.abs(rows[:, None] - rows).sum(2)
    return [
        (
            whole(own),
            "A row is its own nearest neighbour here: leave it out.",
            LOCAL,
        ),
        (
            whole(with_self),
            "A row counts among its own k + 1 neighbours: leave it out.",
            LOCAL,
        ),
        (whole(neighbours(k + 1)), "One neighbour too many is taken.", LOCAL),
        (
            factor(simple, near),
            "Plain distances are used: a reach is at least the k-th distance of the "
            "neighbour.",
            LOCAL,
        ),
        (
            factor(1 / mine.mean(1), near),
            "The reach has the k-th distance of the row itself: take that of the "
            "neighbour.",
            LOCAL,
        ),
        (
            factor(1 / least.mean(1), near),
            "The reach is the smaller of the two: take the larger.",
            LOCAL,
        ),
        (
            factor(1 / radius[near].mean(1), near),
            "The reach is the neighbour's k-th distance alone.",
            LOCAL,
        ),
        (
            factor(1 / np.maximum(apart(near), first[near]).mean(1), near),
            "The reach has the neighbour's nearest distance: take its k-th.",
            LOCAL,
        ),
        (1 / right, "The ratio is upside down: a thin place must score high.", LOCAL),
        (-right, "The sign is scikit-learn's: high for the usual.", ""),
        (1 - right, "The sign is wrong: higher must be more anomalous.", ""),
        (right - 1, "1 is subtracted: LOF is about 1 for the usual.", ""),
        (
            density / density[near].mean(1),
            "The ratio is upside down: a thin place must score high.",
            LOCAL,
        ),
        (
            (1 / density[near]).mean(1) * density,
            "This is the neighbours' mean reach by the row's own: upside down.",
            LOCAL,
        ),
        (
            1 / ((1 / density[near]).mean(1) * density),
            "The neighbours' reaches are averaged: average their densities.",
            LOCAL,
        ),
        (
            np.median(density[near], 1) / density,
            "The median of the neighbours' densities is taken: take the mean.",
            LOCAL,
        ),
        (
            density[near].sum(1) / density,
            "The densities are added up: take their mean.",
            LOCAL,
        ),
        (
            factor(1 / reach.sum(1), near) * k,
            "The densities are added up: take their mean.",
            LOCAL,
        ),
        (
            factor((1 / reach).mean(1), near),
            "The density is a mean of 1 / reach: take 1 / mean reach.",
            LOCAL,
        ),
        (factor(1 / radius, near), "The density is 1 / k-th distance.", LOCAL),
        (
            density[near].mean(1) - density,
            "Densities are subtracted: divide.",
            LOCAL,
        ),
        (np.log(right), "A logarithm is taken.", ""),
        (density, "This is the density, high for the usual.", LOCAL),
        (
            1 / density,
            "This is the mean reach, which knows nothing of the neighbours' densities.",
            LOCAL,
        ),
        (radius, "This is the k-th distance, no ratio of densities.", LOCAL),
        (apart(near).mean(1), "This is the mean distance to k others.", LOCAL),
        (
            density.mean() / density,
            "The density is compared with that of all rows: take the neighbours.",
            LOCAL,
        ),
        (
            _squared_factor(distance, near),
            "The distances are squared: take the root.",
            LOCAL,
        ),
        (
            _city_factor(city, k, itself),
            "Distances are sums of absolute differences: take Euclidean ones.",
            LOCAL,
        ),
        (right.mean(), "One number came: return one a row.", ""),
    ]


def _squared_factor(distance: Numbers, near: NDArray[np.int64]) -> Numbers:
    """LOF with squared distances, (rows,)."""
    squared = np.take_along_axis(distance**2, near, 1)
    density = 1 / np.maximum(squared, squared[:, -1][near]).mean(1)
    return density[near].mean(1) / density


def _city_factor(city: Numbers, k: int, itself: NDArray[np.bool_]) -> Numbers:
    """LOF with the sum of absolute differences as distance, (rows,)."""
    near = np.where(itself, np.inf, city).argsort(1)[:, :k]
    apart = np.take_along_axis(city, near, 1)
    density = 1 / np.maximum(apart, apart[:, -1][near]).mean(1)
    return density[near].mean(1) / density
