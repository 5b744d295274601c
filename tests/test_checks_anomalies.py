"""The checkers of chapter 4 accept right answers and name mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from answers import flat, solution_of
from scipy import special, stats
from sklearn import covariance, neighbors
from sklearn.metrics.pairwise import cosine_distances

from medlm_utils import anomaly
from medlm_utils.checks import core
from medlm_utils.checks import embedding_anomalies as ea

CHECKERS = ["likelihood_ratio", "robust_z", "whiten", "knn_distance"]
CHECKERS += ["unseen_length", "isolation_score", "tail_score", "review_threshold"]
CHECKERS += ["in_the_clinic", "outlier_factor"]
NUMBERS = ["review_threshold", "in_the_clinic"]
ARRAYS = [name for name in CHECKERS if name not in NUMBERS]
SCORES = [name for name in ARRAYS if name != "whiten"]


def check(name, answer):
    """The result of one checker."""
    return getattr(ea, name)(answer)


def solution(name):
    """The function as the solutions notebook has it."""
    return solution_of("04_embedding_anomalies", name)


def after(name, change):
    """The solution, whose value is then changed."""
    solved = solution(name)
    return lambda *inputs: change(solved(*inputs))


# The likelihood ratio


def with_scipy(x, usual, odd):
    return stats.norm(*odd).logpdf(x) - stats.norm(*usual).logpdf(x)


def one_by_one(x, usual, odd):
    """A list of plain numbers, by densities."""
    return [
        math.log(stats.norm.pdf(v, *odd)) - math.log(stats.norm.pdf(v, *usual))
        for v in x
    ]


def bends(x, mean, sd):
    return -(((x - mean) / sd) ** 2) / 2


# Robust z


def z_by(centre, spread, reduce=lambda z: np.abs(z).max(1)):
    """A robust z with another centre, spread or reduction."""

    def answer(known, new):
        middle = centre(known)
        return reduce((new - middle) / spread(known, middle))

    return answer


def median(rows):
    return np.median(rows, axis=0)


def mad(rows, middle):
    return 1.4826 * np.median(np.abs(rows - middle), axis=0)


def with_scipy_mad(known, new):
    spread = stats.median_abs_deviation(known, axis=0, scale="normal")
    return np.abs((new - np.median(known, axis=0)) / spread).max(axis=1)


# Whitening


def shrunk(rows, share, ddof=0):
    c = np.cov(rows.T, ddof=ddof)
    return (1 - share) * c + share * np.diag(np.diag(c))


def root(s):
    values, vectors = np.linalg.eigh(s)
    return vectors / np.sqrt(values) @ vectors.T


def symmetric(known, new, share):
    return (new - known.mean(0)) @ root(shrunk(known, share))


def components(known, new, share):
    """Principal components, with the n - 1 of np.cov."""
    values, vectors = np.linalg.eigh(shrunk(known, share, ddof=1))
    return (new - known.mean(0)) @ vectors / np.sqrt(values)


def by_correlations(known, new, share):
    """The same S, as shrunk correlations."""
    sd = known.std(0)
    r = (1 - share) * np.corrcoef(known.T) + share * np.eye(len(sd))
    return (new - known.mean(0)) / sd @ np.linalg.inv(np.linalg.cholesky(r)).T


def whitened_by(matrix):
    """x - mean times the inverse root of another matrix."""
    return lambda k, n, s: (n - k.mean(0)) @ root(matrix(k, s))


# Nearest neighbours


def with_sklearn(rows, k):
    found = neighbors.NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows)
    return found.kneighbors()[0].mean(1)


def skipping_the_first(rows, k):
    """By columns 1 to k of the sorted distances."""
    return np.sort(cosine_distances(rows), axis=1)[:, 1 : k + 1].mean(1)


def of_the_course(rows, k):
    return anomaly.detector("knn", k=k, metric="cosine").fit(rows).training_scores()


def nearest(rows, k, distances, reduce=lambda d: d.mean(1)):
    d = distances.astype(float).copy()
    np.fill_diagonal(d, np.inf)
    return reduce(np.sort(d, 1)[:, :k])


def dropping_zeros(rows, k):
    d = cosine_distances(rows)
    d[d < 1e-9] = np.inf
    return np.sort(d, 1)[:, :k].mean(1)


def euclid(rows):
    return np.linalg.norm(rows[:, None] - rows, axis=2)


# Logits


def by_svd(weights, states):
    """Lengths in the null space."""
    _, size, right = np.linalg.svd(weights)
    rank = (size > 1e-9 * size[0]).sum()
    return np.linalg.norm(states @ right[rank:].T, axis=1)


def by_least_squares(weights, states):
    """The residual of a fit, by Pythagoras and lists."""
    fitted = np.linalg.lstsq(weights.T, states.T, rcond=None)[0]
    seen = (weights.T @ fitted).T
    return [math.sqrt(s @ s - v @ v) for s, v in zip(states, seen, strict=True)]


def by_qr_of_all(weights, states):
    """Takes dependent rows for independent ones."""
    basis = np.linalg.qr(weights.T)[0]
    return np.linalg.norm(states - states @ basis @ basis.T, axis=1)


# Isolation


def harmonic(m):
    return special.digamma(m) + np.euler_gamma  # H(m - 1)


def paths(m):
    m = np.asarray(m, dtype=float)
    return 2 * harmonic(m) - 2 * (m - 1) / m


def as_libraries(cuts, left, n):
    """The logarithm for the harmonic number, with its two exceptions."""

    def c(m):
        m = np.asarray(m, dtype=float)
        many = 2 * (np.log(np.maximum(m - 1, 1)) + 0.5772156649) - 2 * (m - 1) / m
        return np.where(m > 2, many, m - 1)

    return 2.0 ** -((cuts + c(left)).mean(0) / c(n))


def isolated(depth=lambda c, r: (c + r).mean(0), full=paths, score=lambda e: 2.0**-e):
    return lambda cuts, left, n: score(depth(cuts, paths(left)) / full(n))


# ECOD


def counts(rows):
    below = np.array([[(c <= v).sum() for v in c] for c in rows.T]).T
    above = np.array([[(c >= v).sum() for v in c] for c in rows.T]).T
    return below, above


def tails(change=lambda t: -np.log(t), skew=None, join=lambda s: np.max(s, 0)):
    """ECOD with other tails, another skewness or another way to join the sums."""

    def answer(rows):
        left, right = (change(part / len(rows)) for part in counts(rows))
        lean = stats.skew(rows) if skew is None else skew(rows)
        third = np.where(lean < 0, left, right)
        return join([left.sum(1), right.sum(1), third.sum(1)])

    return answer


def ecod_of_the_course(rows):
    return anomaly.detector("ecod").fit(rows).training_scores()


def ecod_of_the_program(rows):
    return anomaly.detector("ecod", largest_of="columns").fit(rows).training_scores()


def ordinal(rows):
    n = len(rows)
    rank = stats.rankdata(rows, method="ordinal", axis=0)
    a, b = -np.log(rank / n), -np.log((n + 1 - rank) / n)
    third = np.where(stats.skew(rows) < 0, a, b)
    return np.max([a.sum(1), b.sum(1), third.sum(1)], 0)


def empty_right(rows):
    n, (below, _) = len(rows), counts(rows)
    with np.errstate(divide="ignore"):
        a, b = -np.log(below / n), -np.log(1 - below / n)
    third = np.where(stats.skew(rows) < 0, a, b)
    return np.max([a.sum(1), b.sum(1), third.sum(1)], 0)


def new_rows(rows):
    return anomaly.detector("ecod").fit(rows).anomaly_score(rows)


# Budgets


def budget_of_the_course(score_samples, notes, reviews):
    return anomaly.threshold_for_budget(-score_samples, notes, reviews)


def trying_all(score_samples, notes, reviews):
    """Upwards through the scores, until few enough are flagged."""
    scores = [-float(s) for s in score_samples]
    for threshold in sorted(scores):
        flagged = sum(score >= threshold for score in scores)
        if flagged * notes <= len(scores) * reviews:
            return np.array([threshold])
    raise AssertionError


def counted_down(places):
    """The anomaly score at some place from the top."""
    return lambda s, n, r: np.sort(-s)[::-1][min(places(len(s), n, r), len(s)) - 1]


# The clinic


def clinic(alarms, precision):
    """A pair by formulas of sensitivity, false alarm rate, prevalence, notes."""

    def answer(labels, scores, threshold, prevalence, notes):
        alarm = scores >= threshold
        given = alarm[labels == 1].mean(), alarm[labels == 0].mean(), prevalence, notes
        return alarms(*given), precision(*given)

    return answer


def a_day(se, fa, p, n):
    return n * (se * p + fa * (1 - p))


def right_ones(se, fa, p, n):
    return se * p / (se * p + fa * (1 - p))


def by_odds(se, fa, p, n):
    odds = p / (1 - p) * se / fa
    return odds / (1 + odds)


def of_the_test_set(labels, scores, threshold, prevalence, notes):
    alarm = scores >= threshold
    return alarm.mean() * notes, labels[alarm].mean()


def clinic_with(change):
    """The solution with other inputs."""
    solved = solution("in_the_clinic")
    return lambda *inputs: solved(*change(*inputs))


# LOF


def lof_of_sklearn(rows, k, sign=-1):
    return (
        sign
        * neighbors.LocalOutlierFactor(n_neighbors=k).fit(rows).negative_outlier_factor_
    )


def lof(
    rows,
    k,
    own=False,
    reach=lambda d, kth, near: np.maximum(d, kth[near]),
    ratio=lambda density, near: density[near].mean(1) / density,
    distance=euclid,
):
    """LOF with another reach or ratio."""
    apart = distance(rows)
    if not own:
        np.fill_diagonal(apart, np.inf)
    near = apart.argsort(1)[:, :k]
    d = np.take_along_axis(apart, near, 1)
    density = 1 / reach(d, d[:, -1], near).mean(1)
    return ratio(density, near)


def lof_by(**other):
    return lambda rows, k: lof(rows, k, **other)


RIGHT = {
    "likelihood_ratio": [with_scipy, one_by_one],
    "robust_z": [
        z_by(median, mad),
        with_scipy_mad,
        lambda k, n: anomaly.detector("robust_z").fit(k).anomaly_score(n),
    ],
    "whiten": [symmetric, components, by_correlations],
    "knn_distance": [with_sklearn, skipping_the_first, of_the_course],
    "unseen_length": [by_svd, by_least_squares],
    "isolation_score": [isolated(), as_libraries],
    "tail_score": [tails(), ecod_of_the_course],
    "review_threshold": [budget_of_the_course, trying_all],
    "in_the_clinic": [
        clinic(a_day, by_odds),
        lambda *i: np.array(clinic(a_day, right_ones)(*i)),
        lambda *i: torch.tensor(clinic(a_day, right_ones)(*i)),
    ],
    "outlier_factor": [lof, lof_of_sklearn],
}

WRONG = {
    "likelihood_ratio": [
        (lambda x, u, o: -stats.norm(*u).logpdf(x), "This is -log p0, which knows"),
        (lambda x, u, o: with_scipy(x, o, u), "The sign is wrong"),
        (lambda x, u, o: stats.norm(*o).logpdf(x), "This is log p1 alone"),
        (lambda x, u, o: np.exp(with_scipy(x, u, o)), "This is the ratio itself"),
        (lambda x, u, o: bends(x, *o) - bends(x, *u), "the two sds are left out"),
        (
            lambda x, u, o: with_scipy(x, (u[0], u[1] ** 0.5), (o[0], o[1] ** 0.5)),
            "taken for a variance",
        ),
        (
            lambda x, u, o: 2 * (bends(x, *o) - bends(x, *u)) - np.log(o[1] / u[1]),
            "The half before the squared z is missing",
        ),
        (lambda x, u, o: with_scipy(x, u, o) / np.log(10), "to base 10"),
        (
            lambda x, u, o: stats.norm(*o).pdf(x) - stats.norm(*u).pdf(x),
            "These are densities",
        ),
        (
            lambda x, u, o: stats.norm(*o).logpdf(x) / stats.norm(*u).logpdf(x),
            "The log of a ratio is a difference",
        ),
        (
            lambda x, u, o: special.expit(with_scipy(x, u, o)),
            "This is a probability",
        ),
        (lambda x, u, o: np.abs(x - u[0]) / u[1], "This is the distance from the"),
    ],
    "robust_z": [
        (z_by(lambda r: r.mean(0), lambda r, m: r.std(0)), "Mean and sd are pulled"),
        (
            z_by(lambda r: r.mean(0), lambda r, m: r.std(0, ddof=1)),
            "Mean and sd are pulled",
        ),
        (z_by(median, lambda r, m: r.std(0)), "The sd is pulled"),
        (z_by(lambda r: r.mean(0), mad), "The centre is the mean"),
        (z_by(median, lambda r, m: mad(r, m) / 1.4826), "1.4826 is missing"),
        (z_by(median, lambda r, m: mad(r, m) / 1.4826**2), "is divided by 1.4826"),
        (z_by(median, lambda r, m: np.abs(r - m).mean(0)), "a mean of absolute"),
        (z_by(np.median, mad), "values are wrong"),
        (
            lambda k, n: z_by(np.median, lambda r, m: 1.4826 * np.median(abs(r - m)))(
                k, n
            ),
            "All columns share one median",
        ),
        (lambda k, n: z_by(median, mad)(n, n), "come from the new rows"),
        (lambda k, n: z_by(median, mad)(k, k), "These are scores of the known rows"),
        (z_by(median, mad, lambda z: z.max(1)), "The sign is kept"),
        (z_by(median, mad, lambda z: np.abs(z).mean(1)), "the mean of |z|"),
        (z_by(median, mad, lambda z: np.linalg.norm(z, axis=1)), "the length of z"),
        (z_by(median, mad, lambda z: np.abs(z).max(0)), "taken over rows"),
        (z_by(median, mad, np.abs), "These are the z of all columns"),
    ],
    "whiten": [
        (lambda k, n, s: n @ root(shrunk(k, s)), "The rows are not centred"),
        (
            lambda k, n, s: (n - n.mean(0)) @ root(shrunk(k, s)),
            "centred on their own mean",
        ),
        (lambda k, n, s: symmetric(n, n, s), "Mean and covariance come from the new"),
        (lambda k, n, s: (n - k.mean(0)) / k.std(0), "only divided by their sds"),
        (lambda k, n, s: symmetric(k, n, 0), "`share` is not used"),
        (lambda k, n, s: symmetric(k, n, 1 - s), "The shares are exchanged"),
        (
            whitened_by(lambda k, s: (1 - s) * np.cov(k.T, ddof=0) + s * np.eye(
                k.shape[1]
            )),
            "towards the identity",
        ),
        (
            lambda k, n, s: (n - k.mean(0)) @ np.linalg.inv(shrunk(k, s)),
            "This is the inverse of S",
        ),
        (
            lambda k, n, s: (n - k.mean(0)) @ np.linalg.cholesky(shrunk(k, s)),
            "multiplied by the root of S",
        ),
        (
            lambda k, n, s: (n - k.mean(0))
            @ np.linalg.inv(np.linalg.cholesky(shrunk(k, s))),
            "Cholesky is not transposed",
        ),
        (
            lambda k, n, s: (n - k.mean(0))
            @ root((1 - s) * np.corrcoef(k.T) + s * np.eye(k.shape[1])),
            "divide by the sds first",
        ),
        (
            lambda k, n, s: (n - k.mean(0))
            @ root(covariance.shrunk_covariance(np.cov(k.T, ddof=0), shrinkage=s)),
            "one variance for all columns",
        ),
        (
            lambda k, n, s: (n - k.mean(0)) @ np.linalg.eigh(shrunk(k, s))[1],
            "not scaled",
        ),
        (lambda k, n, s: anomaly.unit_length(symmetric(k, n, s)), "to length 1"),
        (lambda k, n, s: np.linalg.norm(symmetric(k, n, s), axis=1), "One number a"),
        (lambda k, n, s: symmetric(k, n, s).T, "Rows and columns are exchanged"),
        (lambda k, n, s: np.abs(symmetric(k, n, s)), "but not the angles"),
        (lambda k, n, s: symmetric(k, k, s), "The shape is wrong: expected (4, 3)"),
        (lambda k, n, s: symmetric(k, n, s)[:, 1:], "as its Mahalanobis distance"),
        (lambda k, n, s: symmetric(k.T, n, s), "raised"),
    ],
    "knn_distance": [
        (
            lambda r, k: np.sort(cosine_distances(r), 1)[:, :k].mean(1),
            "A row is its own nearest neighbour",
        ),
        (
            lambda r, k: np.sort(cosine_distances(r), 1)[:, : k + 1].mean(1),
            "counts in the mean",
        ),
        (dropping_zeros, "Distances of 0 are left out"),
        (lambda r, k: nearest(r, k, euclid(r)), "These are Euclidean distances of the"),
        (
            lambda r, k: nearest(r, k, cosine_distances(r), lambda d: d[:, -1]),
            "the distance to the k-th",
        ),
        (
            lambda r, k: nearest(r, k, cosine_distances(r), lambda d: d.sum(1)),
            "the sum of the k distances",
        ),
        (lambda r, k: 1 - with_sklearn(r, k), "This is the similarity"),
        (lambda r, k: -with_sklearn(r, k), "The sign is wrong"),
        (lambda r, k: nearest(r, k, 1 - r @ r.T), "The lengths are not divided out"),
        (
            lambda r, k: nearest(r, k, euclid(anomaly.unit_length(r))),
            "Euclidean distances of unit vectors",
        ),
        (
            lambda r, k: np.sort(cosine_distances(r), 1)[:, -k:].mean(1),
            "These are the farthest rows",
        ),
        (lambda r, k: with_sklearn(r, k + 1), "One neighbour too many"),
        (
            lambda r, k: with_sklearn(r - r.mean(0), k),
            "The rows are centred first",
        ),
        (
            lambda r, k: nearest(r, k, 1 - abs(1 - cosine_distances(r))),
            "The sign of the cosine is lost",
        ),
    ],
    "unseen_length": [
        (
            lambda w, s: np.linalg.norm(s @ np.linalg.pinv(w) @ w, axis=1),
            "the part that the logits do see",
        ),
        (lambda w, s: np.linalg.norm(s, axis=1), "the length of the whole state"),
        (
            lambda w, s: np.linalg.norm(s - s @ w.T @ w, axis=1),
            "W^T W is no projection",
        ),
        (lambda w, s: np.linalg.norm(s @ w.T, axis=1), "the length of the logits"),
        (
            lambda w, s: np.linalg.norm(s, axis=1)
            - np.linalg.norm(s @ np.linalg.pinv(w) @ w, axis=1),
            "Lengths do not subtract",
        ),
        (lambda w, s: by_svd(w, s) ** 2, "The length is squared"),
        (lambda w, s: by_svd(w, s) / np.linalg.norm(s, axis=1), "a share of the"),
        (lambda w, s: by_svd(w - w.mean(0), s), "This is what changes no probability"),
        (lambda w, s: by_svd(w, s - s.mean(0)), "The states are centred first"),
        (
            lambda w, s: np.abs(s @ np.linalg.svd(w)[2][-1]),
            "This is one direction only",
        ),
        (
            lambda w, s: s - s @ np.linalg.pinv(w) @ w,
            "These are the parts themselves",
        ),
        (by_qr_of_all, "values are wrong"),
        (
            lambda w, s: np.linalg.norm(
                s - s @ anomaly.unit_length(w).T @ anomaly.unit_length(w), axis=1
            ),
            "Each row is taken away by itself",
        ),
    ],
    "isolation_score": [
        (isolated(lambda c, r: c.mean(0)), "c(left) is not added"),
        (
            lambda c, m, n: 2.0 ** -((c + m).mean(0) / paths(n)),
            "The rows left in a leaf are added",
        ),
        (
            lambda c, m, n: (2.0 ** -((c + paths(m)) / paths(n))).mean(0),
            "This is a mean of the trees' scores",
        ),
        (isolated(score=lambda e: 2.0**e), "The sign of the exponent"),
        (isolated(score=lambda e: -(2.0**-e)), "The sign is scikit-learn's"),
        (isolated(score=lambda e: 0.5 - 2.0**-e), "scikit-learn's decision"),
        (isolated(score=lambda e: np.exp(-e)), "This is e to the exponent"),
        (isolated(full=np.log2), "divided by log2(n)"),
        (isolated(full=lambda n: n), "divided by n, not by c(n)"),
        (
            isolated(full=lambda n: 2 * harmonic(n + 1) - 2 * (n - 1) / n),
            "H(n - 1), not H(n)",
        ),
        (isolated(full=lambda n: 2 * harmonic(n)), "The second term of c(n)"),
        (isolated(lambda c, r: (c + r).sum(0)), "The paths are added up"),
        (isolated(lambda c, r: (c + r).mean(1)), "The mean runs over rows"),
        (isolated(lambda c, r: c + r), "There is a score for each tree"),
        (isolated(score=lambda e: e), "This is the exponent, which is high"),
        (
            lambda c, m, n: 2.0
            ** -(
                (
                    c
                    + np.where(
                        m > 1,
                        2 * np.log(np.maximum(m - 1, 1))
                        + 2 * np.euler_gamma
                        - 2 * (m - 1) / m,
                        0,
                    )
                ).mean(0)
                / paths(n)
            ),
            "c(2) is 1",
        ),
    ],
    "tail_score": [
        (ecod_of_the_program, "column by column, before the sums"),
        (tails(join=lambda s: s[0]), "These are left tails only"),
        (tails(join=lambda s: s[1]), "These are right tails only"),
        (tails(join=lambda s: s[2]), "This is the third sum only"),
        (tails(join=lambda s: np.max(s[:2], 0)), "The third sum is missing"),
        (tails(join=lambda s: np.min(s, 0)), "the smallest of the three sums"),
        (tails(join=lambda s: np.sum(s, 0)), "The three sums are added"),
        (tails(skew=lambda r: -stats.skew(r)), "The long sides are exchanged"),
        (
            tails(skew=lambda r: r.mean(0) - np.median(r, 0)),
            "Mean minus median is not the skewness",
        ),
        (ordinal, "Equal values have tails of their own"),
        (empty_right, "The right tail is 1 - left tail"),
        (new_rows, "The rows are judged as new ones"),
        (tails(change=lambda t: -np.log10(t)), "to base 10"),
        (tails(change=lambda t: t), "These are tails: take -log"),
        (tails(change=np.log), "log tail is negative"),
        (lambda r: tails()(r) / r.shape[1], "a mean over columns"),
    ],
    "review_threshold": [
        (
            lambda s, n, r: anomaly.threshold_for_budget(s, n, r),
            "the most usual notes are flagged",
        ),
        (lambda *i: -budget_of_the_course(*i), "a threshold on score_samples"),
        (lambda s, n, r: np.quantile(-s, 1 - r / n), "A quantile lies between"),
        (counted_down(lambda m, n, r: m * r // n), "Equal scores at the border"),
        (counted_down(lambda m, n, r: r), "counted off from all scores"),
        (
            lambda s, n, r: anomaly.threshold_for_budget(
                -s, len(s), max(int(len(s) * (r / n)), 1)
            ),
            "In floats, 29 / 100 * 100 is below 29",
        ),
        (lambda s, n, r: max(-s), "This is the highest score"),
        (lambda s, n, r: min(-s), "This is the lowest score"),
        (lambda s, n, r: np.quantile(-s, 0.9), "A tenth is flagged"),
        (lambda s, n, r: r / n, "This is the share to review"),
        (lambda *i: budget_of_the_course(*i) - 1e-4, "but it is none of the scores"),
        (lambda *i: budget_of_the_course(*i) - 3, "no more than 4 fit"),
        (lambda *i: budget_of_the_course(*i) + 3, "It flags 0 of 90 notes"),
        (lambda *i: math.nan, "It flags 0 of 90 notes"),
        (lambda s, n, r: -s, "Expected one number, came an array of shape (90,)"),
        (lambda *i: "high", "Expected one number"),
    ],
    "in_the_clinic": [
        (of_the_test_set, "The alarms are those of the test set"),
        (
            lambda *i: (clinic(a_day, right_ones)(*i)[0], of_the_test_set(*i)[1]),
            "This is the precision of the test set",
        ),
        (lambda *i: clinic(a_day, right_ones)(*i)[::-1], "The two are exchanged"),
        (
            clinic_with(lambda y, s, t, p, n: (y, s, t + 1e-9, p, n)),
            "A score at the threshold is an alarm",
        ),
        (
            clinic_with(lambda y, s, t, p, n: (y, s, t, 1 - p, n)),
            "The prevalence is the share of anomalies",
        ),
        (clinic(lambda se, fa, p, n: n * se * p, right_ones), "the true alarms alone"),
        (
            clinic(lambda se, fa, p, n: n * fa * (1 - p), right_ones),
            "the false alarms alone",
        ),
        (
            clinic(lambda se, fa, p, n: se * p + fa * (1 - p), right_ones),
            "multiply by notes_a_day",
        ),
        (
            clinic(lambda se, fa, p, n: n * (se * p + fa), right_ones),
            "False alarms are a share of the usual notes",
        ),
        (
            clinic(lambda *rates: round(a_day(*rates)), right_ones),
            "The alarms are rounded",
        ),
        (clinic(a_day, lambda se, fa, p, n: se), "This is the sensitivity"),
        (
            clinic(a_day, lambda se, fa, p, n: se / (se + fa)),
            "as if half of the notes were anomalies",
        ),
        (
            clinic(a_day, lambda se, fa, p, n: se * p / (fa * (1 - p))),
            "true alarms by false ones",
        ),
        (clinic(a_day, lambda se, fa, p, n: p), "the precision of guessing"),
        (clinic(a_day, lambda se, fa, p, n: 0.5), "The precision came out wrong"),
        (clinic(a_day, lambda *i: None), "Expected two numbers"),
        (lambda *i: 12.0, "Expected a pair, alarms a day and precision"),
        (lambda *i: (12.0, 0.1, 0.2), "came 3 values"),
        (lambda y, s, *i: s, "came 100 values"),
    ],
    "outlier_factor": [
        (lof_by(own=True), "A row is its own nearest neighbour"),
        (lambda r, k: lof(r, k + 1), "One neighbour too many"),
        (lambda r, k: lof(r, k + 1, own=True), "among its own k + 1"),
        (lof_by(reach=lambda d, kth, near: d), "Plain distances are used"),
        (
            lof_by(reach=lambda d, kth, near: np.maximum(d, kth[:, None])),
            "the k-th distance of the row itself",
        ),
        (
            lof_by(reach=lambda d, kth, near: np.minimum(d, kth[near])),
            "the smaller of the two",
        ),
        (lambda r, k: 1 / lof(r, k), "The ratio is upside down"),
        (
            lof_by(ratio=lambda density, near: density / density[near].mean(1)),
            "The ratio is upside down",
        ),
        (lambda r, k: lof_of_sklearn(r, k, sign=1), "The sign is scikit-learn's"),
        (
            lof_by(ratio=lambda d, near: 1 / ((1 / d[near]).mean(1) * d)),
            "The neighbours' reaches are averaged",
        ),
        (
            lof_by(ratio=lambda density, near: density[near].sum(1) / density),
            "The densities are added up",
        ),
        (lof_by(ratio=lambda density, near: density), "This is the density"),
        (lof_by(ratio=lambda density, near: 1 / density), "This is the mean reach"),
        (
            lof_by(ratio=lambda density, near: density.mean() / density),
            "compared with that of all rows",
        ),
        (lof_by(distance=lambda r: euclid(r) ** 2), "The distances are squared"),
        (
            lof_by(distance=lambda r: np.abs(r[:, None] - r).sum(2)),
            "sums of absolute differences",
        ),
    ],
}  # fmt: skip


def test_every_exercise_has_cases():
    assert list(ea.TALLY.results) == CHECKERS
    assert list(RIGHT) == list(WRONG) == CHECKERS
    assert all(len(wrong) >= 8 for wrong in WRONG.values())


@pytest.mark.parametrize("name, answer", flat(RIGHT))
def test_other_right_answers_pass(name, answer):
    result = check(name, answer)
    assert result.passed, result.message


@pytest.mark.parametrize("name, case", flat(WRONG))
def test_a_wrong_answer_is_told_its_mistake(name, case, capsys):
    """Short, without an address, and the same each time."""
    answer, words = case
    results = [check(name, answer) for _ in range(2)]
    message = results[0].message
    said = " ".join(message.split())
    assert results[0].status == "not right yet"
    assert words in said, message
    assert results[1] == results[0] and "0x" not in message
    assert capsys.readouterr().out == f"{message}\n{message}\n"
    assert max(map(len, message.splitlines())) <= core.WIDTH
    assert len(message.splitlines()) <= 10


# What holds for every answer ----------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda v: np.asarray(v, np.float32),
        lambda v: np.asarray(v).tolist(),
        torch.from_numpy,
        lambda v: torch.from_numpy(v).float().requires_grad_(),
        lambda v: list(v),
        lambda v: np.asfortranarray(v).astype(object).astype(float),
    ],
)
def test_any_kind_of_array_will_do(name, wrapped):
    result = check(name, after(name, wrapped))
    assert result.passed, result.message


def careful(weights, states):
    """A pseudo-inverse that knows how exact single precision is."""
    seen = states @ np.linalg.pinv(weights, rcond=1e-5) @ weights
    return np.linalg.norm(states - seen, axis=1)


@pytest.mark.parametrize("name", ARRAYS)
def test_single_precision_will_do(name):
    solved = careful if name == "unseen_length" else solution(name)

    def single(*inputs):
        arrays = (isinstance(value, np.ndarray) for value in inputs)
        return solved(
            *(
                v.astype(np.float32) if array and v.dtype == float else v
                for v, array in zip(inputs, arrays, strict=True)
            )
        )

    assert check(name, single).passed


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "change",
    {
        "turned": lambda v: -v,
        "longer": lambda v: 1.01 * v,
        "moved": lambda v: v + 0.02,
        "reversed": lambda v: v[::-1],
        "rolled": lambda v: np.roll(v, 1),
        "sorted": np.sort,
        "ranks": lambda v: v.argsort().argsort(),
        "constant": lambda v: np.full_like(v, v.mean()),
        "zeros": np.zeros_like,
        "halved": lambda v: v / 2,
        "squashed": np.tanh,
        "standard": lambda v: (v - v.mean()) / v.std(),
        "a number": lambda v: v[0],
        "one short": lambda v: v[:-1],
        "a column": lambda v: v[:, None],
        "nan": lambda v: np.where(np.arange(len(v)) == 1, math.nan, v),
        "all nan": lambda v: v * math.nan,
        "infinite": lambda v: np.where(np.arange(len(v)) == 1, math.inf, v),
        "one wrong": lambda v: v + 0.01 * (np.arange(len(v)) == 2),
        "bool": lambda v: v > v.mean(),
        "complex": lambda v: v + 0j,
        "words": lambda v: ["odd"] * len(v),
        "a dict": lambda v: dict(enumerate(v)),
        "ragged": lambda v: [[1.0], [2.0, 3.0]],
        "nothing": lambda v: [],
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_a_changed_score_is_refused(name, change):
    result = check(name, after(name, change[1]))
    assert result.status == "not right yet"
    assert len(result.message.splitlines()) <= 10


@pytest.mark.parametrize(
    "change, came",
    [
        (lambda v: v > 1, "an array of shape (7,) of bool"),
        (lambda v: v + 0j, "an array of shape (7,)"),
        (lambda v: ["odd"] * 7, "a list of 7"),
        (lambda v: {"z": v}, "an object of type dict"),
    ],
)
def test_what_is_no_array_of_numbers_is_told_so(change, came):
    said = " ".join(check("robust_z", after("robust_z", change)).message.split())
    assert f"Expected an array of real numbers, came {came}. Inputs" in said


def test_the_outliers_of_the_exercise_hide_behind_mean_and_sd():
    """They are far by the robust z, and less than 4 by the plain one."""
    inputs = []
    check("robust_z", lambda known, new: inputs.append(known) or new[:, 0])
    for known in inputs:
        plain = z_by(lambda r: r.mean(0), lambda r, m: r.std(0))(known, known[:3])
        assert plain.max() < 4 < 10 < z_by(median, mad)(known, known[:3]).min()


@pytest.mark.parametrize("name", SCORES)
def test_one_wrong_number_anywhere_is_refused(name):
    """Half a per cent, at a place and with a sign that are drawn; twenty draws."""
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def nearly(v, rng=rng):
            wrong = np.array(v, dtype=float)
            large = np.flatnonzero(np.abs(v) > 0.05)
            wrong[rng.choice(large)] *= 1 + 0.005 * rng.choice([-1, 1])
            return wrong

        assert not check(name, after(name, nearly)).passed


def test_whitened_rows_may_be_turned_but_not_changed():
    for seed in range(10):
        rng = np.random.default_rng(seed)

        def turned(w, rng=rng):
            return w @ np.linalg.qr(rng.normal(size=(w.shape[1], w.shape[1])))[0]

        def stretched(w, rng=rng):
            return w * (1 + 0.1 * rng.random(w.shape[1]))

        def mixed(w, rng=rng):
            return w + 0.05 * rng.normal(size=w.shape)

        assert check("whiten", after("whiten", turned)).passed
        assert not check("whiten", after("whiten", stretched)).passed
        assert not check("whiten", after("whiten", mixed)).passed
    for change in (
        lambda w: w[::-1],
        lambda w: w[:-1],
        lambda w: w * math.nan,
        lambda w: w[None],
        lambda w: w + 0.05,
        lambda w: "rows",
        lambda w: w + 0j,
        lambda w: float(w[0, 0]),
    ):
        assert not check("whiten", after("whiten", change)).passed


def test_numbers_may_come_in_any_wrapping_but_must_be_right():
    for wrapped in (np.float32, torch.tensor, lambda v: [v], lambda v: np.array([[v]])):
        assert check("review_threshold", after("review_threshold", wrapped)).passed
        pair = after("in_the_clinic", lambda two, w=wrapped: [w(two[0]), w(two[1])])
        assert check("in_the_clinic", pair).passed
    for factor in (-1, 0.99, 1.01, 2, math.nan, math.inf):
        for name, places in (("review_threshold", [0]), ("in_the_clinic", [0, 1])):
            for place in places:

                def changed(v, place=place, factor=factor):
                    if isinstance(v, tuple):
                        return tuple(
                            n * (factor if at == place else 1) for at, n in enumerate(v)
                        )
                    return v * factor

                assert not check(name, after(name, changed)).passed


# Every mistake that a checker knows ---------------------------------------------------


def spied(monkeypatch, name, function):
    """What one of a checker's functions returned each time, as its solution ran."""
    seen, original = [], getattr(ea, function)

    def spy(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(ea, function, spy)
    check(name, solution(name))
    monkeypatch.setattr(ea, function, original)
    return seen


LISTS = {
    "likelihood_ratio": "_ratio_mistakes",
    "robust_z": "_z_mistakes",
    "knn_distance": "_neighbour_mistakes",
    "unseen_length": "_unseen_mistakes",
    "isolation_score": "_isolation_mistakes",
    "tail_score": "_tail_mistakes",
    "outlier_factor": "_factor_mistakes",
}


@pytest.mark.parametrize("name", LISTS)
def test_every_known_mistake_is_told(name, monkeypatch):
    """The checker's own wrong values, given back to it, case by case."""
    cases = spied(monkeypatch, name, LISTS[name])
    assert len(cases) >= 2 and len({len(case) for case in cases}) == 1
    for number, (_, says, _) in enumerate(cases[0]):
        values = iter([case[number][0] for case in cases])
        result = check(name, lambda *i, values=values: np.asarray(next(values)))
        said = " ".join(result.message.split())
        assert not result.passed, says
        known = [other for case in cases for _, other, _ in case]
        assert any(other in said for other in known), (says, result.message)


def test_every_known_mistake_of_whitening_is_told():
    inputs = []

    def answer(known, new, share):
        inputs.append((known, new, share))
        return solution("whiten")(known, new, share)

    assert check("whiten", answer).passed
    seen = [ea._white_mistakes(*case) for case in inputs]
    for number, (_, says, _) in enumerate(seen[0]):
        wrongs = [case[number][0] for case in seen]
        rights = [solution("whiten")(*case) for case in inputs]
        values = iter(
            [
                right if np.isnan(wrong).any() else wrong
                for wrong, right in zip(wrongs, rights, strict=True)
            ]
        )
        result = check("whiten", lambda *i, values=values: next(values))
        said = " ".join(result.message.split())
        assert not result.passed, says
        assert any(other in said for _, other, _ in seen[0]), (says, said)


def test_every_known_mistake_about_a_budget_is_told():
    inputs = []

    def answer(*case):
        inputs.append(case)
        return solution("review_threshold")(*case)

    assert check("review_threshold", answer).passed
    lists = [ea._budget_mistakes(-s, n, r) for s, n, r in inputs]
    for says in {says for known in lists for _, says, _ in known}:
        values = []
        for case, known in zip(inputs, lists, strict=True):
            wrong = [value for value, other, _ in known if other == says]
            values.append(wrong[0] if wrong else solution("review_threshold")(*case))
        given = iter(values)
        result = check("review_threshold", lambda *i, given=given: next(given))
        said = " ".join(result.message.split())
        assert not result.passed and "It flags" not in said, (says, said)


@pytest.mark.parametrize(
    "place, function", [(0, "_alarm_mistakes"), (1, "_precision_mistakes")]
)
def test_every_known_mistake_in_the_clinic_is_told(place, function):
    inputs, seen = [], []

    def answer(*case):
        inputs.append(case)
        return solution("in_the_clinic")(*case)

    assert check("in_the_clinic", answer).passed
    for labels, scores, threshold, prevalence, notes in inputs:
        alarm = scores >= threshold
        rates = ea._rates(labels, alarm)
        given = (rates, labels, alarm, prevalence, notes)[: 5 - place]
        seen.append(getattr(ea, function)(*given))
    for number, (_, says, _) in enumerate(seen[0]):
        pairs = [list(solution("in_the_clinic")(*case)) for case in inputs]
        for pair, known in zip(pairs, seen, strict=True):
            pair[place] = known[number][0]
        given = iter(pairs)
        result = check("in_the_clinic", lambda *i, given=given: tuple(next(given)))
        said = " ".join(result.message.split())
        assert not result.passed and "came out wrong" not in said, (says, said)


# Oracles ------------------------------------------------------------------------------


def test_the_oracles_agree_with_libraries():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3))
    assert ea._factors(rows, 5) == pytest.approx(lof_of_sklearn(rows, 5))
    assert ea._cosine_distances(rows) == pytest.approx(cosine_distances(rows))
    assert ea._skewness(rows) == pytest.approx(stats.skew(rows))
    for m in (1, 2, 3, 256):
        assert ea._average_path(m) == pytest.approx(float(paths(m)), abs=1e-12)
    distances = np.sqrt(np.diag(ea._products(rows, rows[:5], 0.0, 0)))
    model = covariance.EmpiricalCovariance().fit(rows)
    assert distances == pytest.approx(np.sqrt(model.mahalanobis(rows[:5])))


def test_one_column_tells_skewness_from_mean_minus_median():
    for count in (15, 24):
        values = ea._skewed_against_its_median(count)
        assert stats.skew(values) < 0 < values.mean() - np.median(values)


# What arrays ask of every checker -----------------------------------------------------


def test_an_answer_works_on_copies_of_arrays():
    """A function that overwrites its input is told so, and the oracle is unharmed."""

    def in_place(known, new):
        new -= np.median(known, axis=0)
        known -= np.median(known, axis=0)
        new /= 1.4826 * np.median(np.abs(known), axis=0)
        return np.abs(new).max(axis=1)

    result = check("robust_z", in_place)
    assert result.passed
    said = " ".join(result.message.split())
    assert "it overwrites its input known" in said
    assert "it overwrites its input new" in said


def test_missing_values_are_no_change():
    def answer(rows, words):
        return rows.sum()

    tried = core.Answer(answer)
    tried.on(rows=np.array([1.0, math.nan]), words=np.array(["a"], dtype=object))
    assert tried.notes == []


def test_arrays_are_described_by_their_shapes():
    inputs = {"rows": np.zeros((3, 2)), "k": 5, "w": torch.zeros(4)}
    assert core.described(inputs) == "rows (3, 2) float64, k = 5, w (4,) float32"
    said = check("knn_distance", lambda rows, k: rows.T @ rows[:2]).message
    assert "Inputs: rows (12, 4) float64, k = 3." in " ".join(said.split())
