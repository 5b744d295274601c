"""Distance from the usual: detectors on vectors, where a higher score is more
anomalous.

Knows nothing about notes or how they became vectors: arrays come in, one score a row
goes out. Axes: ``rows`` (notes, patients), ``columns`` (features of a row).

Every detector learns from training rows alone, without labels. `Detector.anomaly_score`
judges new rows (inductive); `Detector.training_scores` judges the training rows
themselves (transductive), and where neighbours count, a row is not its own neighbour.
scikit-learn's scores point the other way: its ``score_samples`` is high for the usual.
None of the detectors has a ``contamination``: it would move a threshold and leave the
ranking as it is. `threshold_for_budget` sets the threshold.

What chapter 4 derives is written out here; the rest is scikit-learn's. Memory grows
with the rows that are given, never with their square. The training rows are kept and
not copied: change them and the scores change.

Source: chapter 4.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from medlm_utils import metrics
from medlm_utils.runtime import MedlmError

METRICS = ("euclidean", "cosine")
_PART_BYTES = 2**26  # of intermediate numbers at a time
_LARGEST = 1e15  # beyond it the squares of float32 overflow
_SAME = 1e-12  # values that differ by less, relative to their size, differ by rounding
_SEARCH_ERROR = 1e-7  # of distances between equal rows, relative to their length
_LEAST_SHRINKAGE = 1e-6  # so that columns that say the same have an inverse
_MAD_TO_SD = 1.4826  # of a normal distribution
_MEAN_TO_SD = 1.2533  # the same for the mean absolute deviation


# What all detectors share -------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class Detector(abc.ABC):
    """A way to say how far a row is from the usual: `fit`, then a score a row.

    Settings are stored when it is made, what `fit` learns ends in ``_``.

    Parameters
    ----------
    seed
        Of whatever is drawn; the same seed and rows give the same scores.

    Raises
    ------
    MedlmError
        If a setting is out of its range.

    Source: chapter 4.
    """

    name: ClassVar[str]  # its key in `DETECTORS`

    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0)
        self._check_settings()

    def fit(self, rows: ArrayLike) -> Self:
        """Learn what is usual.

        Parameters
        ----------
        rows
            (rows, columns) numbers, usual rows or nearly so. float32 stays float32.

        Returns
        -------
        Detector
            Itself.

        Raises
        ------
        MedlmError
            If a number is NaN, infinite or above 1e15 in size, there are fewer rows
            than the method needs (two, or one more than it looks at neighbours), or
            a column is constant and the method divides by its spread.
        """
        known = _checked(rows, least=self.least_rows())
        self._learn(known)
        self.rows_ = known
        return self

    def anomaly_score(self, rows: ArrayLike) -> np.ndarray:
        """How far new rows are from the training rows; higher is more anomalous.

        Parameters
        ----------
        rows
            (rows, columns) with the columns of the training rows. A training row counts
            as a new one here, so it finds itself among its neighbours.

        Returns
        -------
        ndarray
            (rows,)

        Raises
        ------
        MedlmError
            If nothing has been fitted, there is no row, the columns are not as many as
            in training, or a number is NaN, infinite or above 1e15 in size.
        """
        self._check_fitted()
        new = _checked(rows, columns=self.rows_.shape[1])
        return self._in_parts(self._score, new)

    def training_scores(self) -> np.ndarray:
        """How far each training row is from the others; higher is more anomalous.

        `knn`, `lof`, `kernel_density` and `ecod` judge a row by the others alone. The
        rest judge it with what they learned from all rows, itself among them.

        Returns
        -------
        ndarray
            (rows,)

        Raises
        ------
        MedlmError
            If nothing has been fitted.
        """
        self._check_fitted()
        return self._score_training()

    def _check_settings(self) -> None:  # noqa: B027 (some have no settings)
        """Refuses settings out of range."""

    def least_rows(self) -> int:
        """How few training rows are enough."""
        return 2

    @abc.abstractmethod
    def _learn(self, rows: np.ndarray) -> None:
        """Learns from checked rows."""

    @abc.abstractmethod
    def _score(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) of one part of checked rows."""

    def _score_training(self) -> np.ndarray:
        return self._in_parts(self._score, self.rows_)

    def _in_parts(
        self, score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
    ) -> np.ndarray:
        """(rows,) with no more than a part's intermediate numbers at a time."""
        kind = self.rows_.dtype  # scikit-learn is slow where two types meet
        return np.concatenate(
            [score(rows[part].astype(kind, copy=False)) for part in _parts(rows)]
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "rows_"):
            raise MedlmError(
                f"The detector {self.name!r} has not learned what is usual; call fit "
                "with the training rows first."
            )


def detector(name: str, *, seed: int = 0, **settings: Any) -> Detector:
    """A detector by its name.

    Parameters
    ----------
    name
        A key of `DETECTORS`.
    seed, settings
        As the detector's class takes them.

    Returns
    -------
    Detector
        Not fitted yet.

    Raises
    ------
    MedlmError
        If there is no such detector, it has no such setting, or a setting is out of
        range.

    Examples
    --------
    >>> usual = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> knn = detector("knn", k=2).fit(usual)
    >>> bool(knn.anomaly_score([[5, 5]])[0] > knn.training_scores().max())
    True

    Source: chapter 4.
    """
    if name not in DETECTORS:
        raise MedlmError(
            f"There is no detector {name!r}; expected one of {', '.join(DETECTORS)}."
        )
    known = [f.name for f in dataclasses.fields(DETECTORS[name]) if f.name != "seed"]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise MedlmError(
            f"The detector {name!r} has no setting {unknown[0]!r}; it has "
            f"{', '.join(known) or 'none'}{' and ' if known else ' but '}seed."
        )
    return DETECTORS[name](seed=seed, **settings)


# Statistical: one column at a time, or their covariance -------------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class RobustZ(Detector):
    """The largest robust z of a row: ``|x - median| / (1.4826 MAD)`` over columns.

    MAD is the median absolute deviation; a few anomalies among the training rows hardly
    move it. It is 0 where more than half of a column has one value; then the mean
    absolute deviation stands in, as 1.2533 times it. A constant column has no spread at
    all and is refused. It sees no dependency between columns.

    Source: Iglewicz & Hoaglin 1993; chapter 4.
    """

    name: ClassVar[str] = "robust_z"

    def _learn(self, rows: np.ndarray) -> None:
        _refuse_constant(rows)
        columns = [_centre_and_spread(column) for column in rows.T]
        self.median_, self.spread_ = np.transpose(columns)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return np.abs((rows - self.median_) / self.spread_).max(axis=1)


def _centre_and_spread(column: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation of one column."""
    numbers = column.astype(float)
    median = np.median(numbers)
    deviation = np.abs(numbers - median)
    spread = _MAD_TO_SD * np.median(deviation)
    if spread <= _SAME * np.abs(median):
        spread = _MEAN_TO_SD * deviation.mean()
    return float(median), float(spread)


@dataclasses.dataclass(kw_only=True, eq=False)
class Mahalanobis(Detector):
    """The distance from the mean, in standard deviations of the direction one goes.

    The square root of (x - mean) S^-1 (x - mean), with the covariance S shrunk towards
    uncorrelated columns as Ledoit and Wolf derive it. So it has an inverse even with
    fewer rows than columns, and the units of a column do not matter. Refuses constant
    columns.

    Source: Mahalanobis 1936; Ledoit & Wolf 2004; chapter 4.
    """

    name: ClassVar[str] = "mahalanobis"

    def _learn(self, rows: np.ndarray) -> None:
        self.mean_, self.spread_, self.correlation_ = _shrunk_correlation(rows)
        self.precision_ = np.linalg.inv(self.correlation_)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        apart = (rows - self.mean_) / self.spread_
        return np.sqrt(((apart @ self.precision_) * apart).sum(axis=1))


def _shrunk_correlation(
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(columns,) means and standard deviations; (columns, columns) shrunk correlations.

    They are shrunk by the share of their squared distance from no correlation that
    sampling noise explains; Ledoit and Wolf show that this comes nearest to the truth.
    """
    _refuse_constant(rows)
    n, columns = rows.shape
    mean = _sum_of(rows, lambda part: part) / n
    spread = np.sqrt(_sum_of(rows, lambda part: (part - mean) ** 2) / n)
    correlation, fourth = np.zeros((columns, columns)), 0.0
    for part in _parts(rows):
        z = (rows[part] - mean) / spread
        correlation += z.T @ z / n
        fourth += ((z**2).sum(axis=1) ** 2).sum() / n
    size = (correlation**2).sum()
    noise, distance = (fourth - size) / n, size - columns
    share = min(noise / distance, 1.0) if distance > 0 else 0.0
    share = max(share, _LEAST_SHRINKAGE)
    return mean, spread, (1 - share) * correlation + share * np.eye(columns)


def _sum_of(rows: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(columns,) sums of what `change` makes of the rows, a part at a time."""
    sums = [change(rows[part]).sum(axis=0, dtype=float) for part in _parts(rows)]
    return np.sum(sums, axis=0)


@dataclasses.dataclass(kw_only=True, eq=False)
class Ecod(Detector):
    """Minus the log of how rare a row's values are, column by column, and added up.

    In each column, the left tail is the share of training rows at or below the value,
    the right tail the share at or above it. There are three sums of -log tail over the
    columns: all left tails, all right tails, and for each column the tail on its long
    side (left where the skewness is negative). The score is the largest of the three. A
    row always counts itself, so no tail is empty: a new row is one more beside n
    training rows, a training row one of n.

    Parameters
    ----------
    largest_of
        ``"sums"``, as in the paper; ``"columns"``: the larger tail of each column, then
        one sum, as in the authors' program (PyOD).

    Source: Li et al. 2022; chapter 4.
    """

    name: ClassVar[str] = "ecod"

    largest_of: str = "sums"

    def _check_settings(self) -> None:
        _check_choice("largest_of", self.largest_of, ("sums", "columns"))

    def _learn(self, rows: np.ndarray) -> None:
        mean = sum(rows[part].sum(axis=0, dtype=float) for part in _parts(rows))
        mean = mean / len(rows)
        self.skew_ = sum(
            ((rows[part] - mean) ** 3).sum(axis=0) for part in _parts(rows)
        )
        self.sorted_ = np.array(rows.T, order="C")
        self.sorted_.sort(axis=1)

    def _score(self, rows: np.ndarray, new: int = 1) -> np.ndarray:
        n = self.sorted_.shape[1]
        left, right, auto, larger = np.zeros((4, len(rows)))
        for column, known, skew in zip(rows.T, self.sorted_, self.skew_, strict=True):
            below = np.searchsorted(known, column, side="right")  # at or below
            above = n - np.searchsorted(known, column, side="left")
            rare_left = -np.log((below + new) / (n + new))
            rare_right = -np.log((above + new) / (n + new))
            left += rare_left
            right += rare_right
            auto += rare_left if skew < 0 else rare_right
            larger += np.maximum(rare_left, rare_right)
        return (
            larger if self.largest_of == "columns" else np.max([left, right, auto], 0)
        )

    def _score_training(self) -> np.ndarray:
        return self._in_parts(lambda rows: self._score(rows, new=0), self.rows_)


# Distance -----------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class Knn(Detector):
    """The distance to the nearest training rows.

    Parameters
    ----------
    k
        How many. 5 is what comparisons use: with 1, two anomalies hide each other; a
        cluster of more than k anomalies among the training rows looks usual.
    reduce
        ``"mean"`` of the k distances, which varies less, or the ``"largest"``.
    metric
        ``"euclidean"``, or ``"cosine"``: 1 - cosine, for vectors whose length says
        nothing.

    Source: Ramaswamy et al. 2000; Angiulli & Pizzuti 2002; chapter 4.
    """

    name: ClassVar[str] = "knn"

    k: int = 5
    reduce: str = "mean"
    metric: str = "euclidean"

    def _check_settings(self) -> None:
        _check_whole("k", self.k)
        _check_choice("reduce", self.reduce, ("mean", "largest"))
        _check_choice("metric", self.metric, METRICS)

    def least_rows(self) -> int:
        return self.k + 1

    def _learn(self, rows: np.ndarray) -> None:
        self.index_ = _Index(rows, self.metric)

    def _score(self, rows: np.ndarray | None) -> np.ndarray:
        distances = self.index_.nearest(rows, self.k)[1]
        return distances.mean(axis=1) if self.reduce == "mean" else distances[:, -1]

    def _score_training(self) -> np.ndarray:
        return self._score(None)


class _Index:
    """Training rows whose nearest to others can be asked for, in bounded memory.

    Between vectors of length 1, 1 - cosine is half the squared distance, so one search
    serves both metrics.
    """

    def __init__(self, rows: np.ndarray, metric: str):
        from sklearn import neighbors  # here, for it takes most of a second to load

        self.cosine = metric == "cosine"
        self.search = neighbors.NearestNeighbors()
        self.search.fit(unit_length(rows) if self.cosine else rows)

    def nearest(self, rows: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, k) places and distances; None: each training row without itself."""
        if self.cosine and rows is not None:
            rows = unit_length(rows)
        distances, places = self.search.kneighbors(rows, k)
        return places, distances**2 / 2 if self.cosine else distances


# Density ------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class Lof(Detector):
    """The local outlier factor: how much thinner it is here than around the neighbours.

    About 1 inside any cluster, thin or dense. Scikit-learn's. Where more than `k`
    training rows are equal, their density is limited only by rounding, and rows beside
    them score beyond a million.

    Parameters
    ----------
    k
        Neighbours; clusters smaller than this count as anomalies. The authors take 10
        as the least and 20 for most of their figures.

    Source: Breunig et al. 2000; chapter 4.
    """

    name: ClassVar[str] = "lof"

    k: int = 20

    def _check_settings(self) -> None:
        _check_whole("k", self.k)

    def least_rows(self) -> int:
        return self.k + 1

    def _learn(self, rows: np.ndarray) -> None:
        from sklearn import neighbors

        self.model_ = neighbors.LocalOutlierFactor(n_neighbors=self.k, novelty=True)
        self.model_.fit(rows)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return -self.model_.score_samples(rows)

    def _score_training(self) -> np.ndarray:
        return -self.model_.negative_outlier_factor_


@dataclasses.dataclass(kw_only=True, eq=False)
class KernelDensity(Detector):
    """Minus the log of the density: the mean of normal bumps, one at each training row.

    In nats. Written out, for the trees of scikit-learn's are slower than a product of
    matrices where there are hundreds of columns, can be wrong by many nats there
    (its issue 7492), and cannot leave out a row's own bump.

    Parameters
    ----------
    bandwidth
        Standard deviation of a bump in every column. None: the median distance to the
        fifth neighbour, divided by the root of the columns, for that is how far from
        its centre a bump in many columns has its mass. Unlike Scott's rule, which knows
        the spread of all rows only, it follows the scale inside clusters. The median is
        over 1,000 rows drawn, where there are more.

    Raises
    ------
    MedlmError
        If the bandwidth is not above 0; in `fit`, if the median distance is 0, because
        most rows have five equals.

    Source: Parzen 1962; chapter 4.
    """

    name: ClassVar[str] = "kernel_density"

    bandwidth: float | None = None

    def _check_settings(self) -> None:
        if self.bandwidth is not None:
            _check_between("bandwidth", self.bandwidth, 0, np.inf)

    def _learn(self, rows: np.ndarray) -> None:
        self.bandwidth_ = self.bandwidth or self._typical_distance(rows)

    def _typical_distance(self, rows: np.ndarray, fifth: int = 5) -> float:
        drawn = rows[np.random.default_rng(self.seed).permutation(len(rows))[:1000]]
        k = min(fifth + 1, len(rows))  # each drawn row finds itself first
        distances = _Index(rows, "euclidean").nearest(drawn, k)[1][:, -1]
        typical = float(np.median(distances))
        if typical <= _SEARCH_ERROR * np.linalg.norm(drawn, axis=1).max():
            raise MedlmError(
                f"More than half of the rows are equal to {k - 1} others, so their "
                "distances give no bandwidth; give one, or leave out repeated rows."
            )
        return typical / math.sqrt(rows.shape[1])

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return self._in_blocks(rows, leave_out=False)

    def _score_training(self) -> np.ndarray:
        return self._in_blocks(self.rows_, leave_out=True)

    def _in_blocks(self, rows: np.ndarray, leave_out: bool) -> np.ndarray:
        """(rows,) with a block of distances to all training rows at a time."""
        from sklearn import metrics as distances

        n, columns = self.rows_.shape
        variance = self.bandwidth_**2
        constant = math.log(n - leave_out) + columns / 2 * math.log(
            2 * np.pi * variance
        )
        scores = np.empty(len(rows))
        for part in _parts(rows, numbers_a_row=n):
            squared = distances.euclidean_distances(
                rows[part], self.rows_, squared=True
            )
            if leave_out:
                own = np.arange(len(squared))
                squared[own, part.start + own] = np.inf
            squared /= -2 * variance
            scores[part] = constant - _log_sum_exp(squared)
        return scores


def _log_sum_exp(logs: np.ndarray) -> np.ndarray:
    """(rows,) log of the sum of exp over each row, without underflow; in place."""
    top = logs.max(axis=1, keepdims=True)
    logs -= top
    return np.log(np.exp(logs, out=logs).sum(axis=1)) + top[:, 0]


@dataclasses.dataclass(kw_only=True, eq=False)
class GaussianMixture(Detector):
    """Minus the log density of a sum of normal distributions, fitted by EM; in nats.

    Scikit-learn's, on columns divided by their standard deviation, so that units do not
    matter. Fit it on usual rows: a component can settle on a single anomaly, which then
    looks usual.

    Parameters
    ----------
    components
        How many. 5 follow a few clusters or a bent one without needing many rows.
    covariance
        ``"full"`` sees dependencies; ``"tied"``: one for all components, for few rows;
        ``"diag"``: none; ``"spherical"``.
    reg_covar
        Added to each column's variance, which is 1 before. None: columns / rows, but
        0.001 to 0.1: the fewer rows a column, the less an estimated covariance can be
        trusted where it says that there is hardly any variance.

    Source: Dempster et al. 1977; chapter 4.
    """

    name: ClassVar[str] = "gaussian_mixture"

    components: int = 5
    covariance: str = "full"
    reg_covar: float | None = None

    def _check_settings(self) -> None:
        _check_whole("components", self.components)
        kinds = ("full", "tied", "diag", "spherical")
        _check_choice("covariance", self.covariance, kinds)
        if self.reg_covar is not None:
            _check_between("reg_covar", self.reg_covar, 0, np.inf)

    def least_rows(self) -> int:
        return max(2, self.components)

    def _learn(self, rows: np.ndarray) -> None:
        from sklearn import mixture

        n, columns = rows.shape
        mean = _sum_of(rows, lambda part: part) / n
        spread = np.sqrt(_sum_of(rows, lambda part: (part - mean) ** 2) / n)
        self.mean_, self.spread_ = mean, np.where(_is_constant(rows), 1, spread)
        self.model_ = mixture.GaussianMixture(
            self.components,
            covariance_type=self.covariance,
            reg_covar=self.reg_covar or min(max(columns / n, 0.001), 0.1),
            random_state=self.seed,
        ).fit(self._scaled(rows))

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        scaled = (rows - self.mean_) / self.spread_
        return scaled.astype(rows.dtype, copy=False)  # float32 is twice as fast

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return np.log(self.spread_).sum() - self.model_.score_samples(
            self._scaled(rows)
        )


# Isolation, and a boundary ------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class IsolationForest(Detector):
    """How few random cuts part a row from the others, as a score from 0 to 1.

    Scikit-learn's. A cut is at a random value of one random column, so what lies at the
    centre of every column looks usual, even where no training row is near.

    Parameters
    ----------
    trees
        100, where the authors saw path lengths settle.
    rows_a_tree
        Drawn for each tree; 256 in the paper: more rows hide anomalies among the usual.
        With fewer rows, all of them.

    Source: Liu et al. 2008; chapter 4.
    """

    name: ClassVar[str] = "isolation_forest"

    trees: int = 100
    rows_a_tree: int = 256

    def _check_settings(self) -> None:
        _check_whole("trees", self.trees)
        _check_whole("rows_a_tree", self.rows_a_tree, 2)

    def _learn(self, rows: np.ndarray) -> None:
        from sklearn import ensemble

        self.model_ = ensemble.IsolationForest(
            n_estimators=self.trees,
            max_samples=min(self.rows_a_tree, len(rows)),
            random_state=self.seed,
        ).fit(rows)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return -self.model_.score_samples(rows)


@dataclasses.dataclass(kw_only=True, eq=False)
class OneClassSvm(Detector):
    """How far outside a boundary that holds nearly all training rows.

    Scikit-learn's, with the kernel exp(-gamma distance^2): minus a weighted sum of such
    bumps at the rows on and outside the boundary. Far from all of them it is 0, so far
    rows score alike. Its time grows faster than the square of the training rows: draw
    10,000 where there are more.

    Parameters
    ----------
    nu
        At most this share of the training rows lies outside. 0.05 for rows that are
        nearly all usual; scikit-learn's own default, 0.5, calls half of them odd.
    gamma
        Of the kernel. ``"scale"``: 1 / (columns times the variance of all numbers).

    Source: Schölkopf et al. 2001; chapter 4.
    """

    name: ClassVar[str] = "one_class_svm"

    nu: float = 0.05
    gamma: float | str = "scale"

    def _check_settings(self) -> None:
        _check_between("nu", self.nu, 0, 1)
        if self.gamma != "scale":
            _check_between("gamma", self.gamma, 0, np.inf)

    def _learn(self, rows: np.ndarray) -> None:
        from sklearn import svm

        self.model_ = svm.OneClassSVM(nu=self.nu, gamma=self.gamma).fit(rows)

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return -self.model_.score_samples(rows)


DETECTORS: dict[str, type[Detector]] = {
    kind.name: kind
    for kind in (
        RobustZ,
        Mahalanobis,
        Ecod,
        Knn,
        Lof,
        KernelDensity,
        GaussianMixture,
        IsolationForest,
        OneClassSvm,
    )
}


# Vectors before a detector sees them, and their neighbours ----------------------------


@dataclasses.dataclass(kw_only=True, eq=False)
class Whitening:
    """Turned and stretched so that the usual rows vary alike in every direction.

    The principal components of the correlations, each divided by its standard
    deviation. The correlations are shrunk as in `Mahalanobis`, so that no direction in
    which the rows hardly vary is blown up without end; with all components, the length
    of a whitened row is its Mahalanobis score.

    Parameters
    ----------
    components
        How many, the widest first; None: as many as there are columns.

    Source: Kessy et al. 2018; chapter 4.
    """

    components: int | None = None

    def __post_init__(self) -> None:
        if self.components is not None:
            _check_whole("components", self.components)

    def fit(self, rows: ArrayLike) -> Self:
        """Learn mean and directions of usual rows.

        Parameters
        ----------
        rows
            (rows, columns)

        Raises
        ------
        MedlmError
            As `Mahalanobis` does; also for more components than columns.
        """
        known = _checked(rows, least=2)
        if (self.components or 1) > known.shape[1]:
            raise MedlmError(
                f"components is {self.components}, but there are {known.shape[1]} "
                "columns; expected at most as many components."
            )
        self.mean_, spread, correlation = _shrunk_correlation(known)
        variances, directions = np.linalg.eigh(correlation)
        widest = np.argsort(-variances, kind="stable")[: self.components]
        turn = directions[:, widest]
        turn = turn * np.sign(turn[np.abs(turn).argmax(axis=0), range(len(widest))])
        self.matrix_ = turn / np.sqrt(variances[widest]) / spread[:, None]
        return self

    def transform(self, rows: ArrayLike) -> np.ndarray:
        """The same rows, whitened.

        Parameters
        ----------
        rows
            (rows, columns) with the columns of the fitted rows.

        Returns
        -------
        ndarray
            (rows, components), in double precision.

        Raises
        ------
        MedlmError
            As in `Detector.anomaly_score`.
        """
        if not hasattr(self, "matrix_"):
            raise MedlmError(
                "The whitening has not learned what is usual; call fit with the usual "
                "rows first."
            )
        given = _checked(rows, columns=len(self.mean_))
        whitened = np.empty((len(given), self.matrix_.shape[1]))
        for part in _parts(given):
            whitened[part] = (given[part] - self.mean_) @ self.matrix_
        return whitened


def unit_length(rows: ArrayLike) -> np.ndarray:
    """Every row divided by its length, so that only its direction is left.

    Parameters
    ----------
    rows
        (rows, columns)

    Returns
    -------
    ndarray
        (rows, columns); their Euclidean distances order pairs as 1 - cosine does.

    Raises
    ------
    MedlmError
        If a row is all zeros, or a number is NaN, infinite or above 1e15 in size.

    Source: chapter 4.
    """
    given = _checked(rows)
    length = np.sqrt(np.einsum("ij,ij->i", given, given, dtype=float))
    if not length.all():
        raise MedlmError(
            f"Row {length.argmin()} (from 0) is all zeros, so it has no direction; "
            "leave it out, or take a metric other than cosine."
        )
    return given / length[:, None].astype(given.dtype)


def nearest(
    train_rows: ArrayLike, rows: ArrayLike, k: int = 5, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training rows of each row, in bounded memory.

    Parameters
    ----------
    train_rows
        (training rows, columns)
    rows
        (rows, columns); a row that is among the training rows finds itself.
    k
        How many.
    metric
        ``"euclidean"``, or ``"cosine"`` for 1 - cosine.

    Returns
    -------
    tuple of ndarray
        Their places among the training rows and their distances, (rows, k) each, the
        nearest first. Which of several at one distance come first is left open.

    Raises
    ------
    MedlmError
        If there are fewer than `k` training rows, the columns differ, `metric` is
        unknown, or a number is NaN, infinite or above 1e15 in size.

    Source: chapter 4.
    """
    _check_whole("k", k)
    _check_choice("metric", metric, METRICS)
    known = _checked(train_rows, least=k, what="train_rows")
    new = _checked(rows, columns=known.shape[1]).astype(known.dtype, copy=False)
    return _Index(known, metric).nearest(new, k)


def constant_columns(rows: ArrayLike) -> np.ndarray:
    """The numbers of the columns that have one value in all rows, but for rounding.

    They say nothing of what is usual, and robust z, Mahalanobis and whitening, which
    divide by the spread, refuse them.

    Parameters
    ----------
    rows
        (rows, columns)

    Returns
    -------
    ndarray
        (constant columns,) from 0.

    Raises
    ------
    MedlmError
        If there is no row, or a number is NaN, infinite or above 1e15 in size.

    Source: chapter 4.
    """
    return np.flatnonzero(_is_constant(_checked(rows)))


# From score to decision ---------------------------------------------------------------


def threshold_for_budget(
    scores: ArrayLike, notes_a_day: float, reviews_a_day: float
) -> float:
    """The lowest threshold that flags no more than a budget of reviews.

    A note is flagged when its score is at or above the threshold. Of the given scores,
    at most the share reviews / notes is flagged. Equal scores are flagged together or
    not at all: if those at the border do not all fit, none of them is, and fewer are
    flagged than the budget allows. On new notes the number varies from day to day.

    Parameters
    ----------
    scores
        (notes,) of notes like those to come, higher for the more anomalous. They must
        not be those of training rows, unless they are `Detector.training_scores`.
    notes_a_day, reviews_a_day
        How many notes come, and how many somebody can read.

    Raises
    ------
    MedlmError
        If there is no score or one is NaN, the budget is 0 or larger than the notes,
        the scores are too few for it to allow even one, or too many share the highest.

    Source: chapter 4.
    """
    found = np.sort(_column("scores", scores))[::-1]
    if not 0 < reviews_a_day <= notes_a_day < np.inf:
        raise MedlmError(
            f"The budget is {reviews_a_day} reviews for {notes_a_day} notes a day; "
            "expected above 0 reviews, and no more than there are notes."
        )
    allowed = math.floor(len(found) * reviews_a_day / notes_a_day)
    if allowed == 0:
        raise MedlmError(
            f"{reviews_a_day} of {notes_a_day} notes a day are less than one of the "
            f"{len(found)} scores; give the scores of at least "
            f"{math.ceil(notes_a_day / reviews_a_day)} notes."
        )
    fitting = found[:allowed]
    if allowed < len(found):
        fitting = fitting[fitting > found[allowed]]
    if not len(fitting):
        raise MedlmError(
            f"{(found == found[0]).sum()} of {len(found)} notes share the highest "
            f"score, and the budget allows {allowed}: no threshold can choose among "
            "them. Take a detector that tells them apart, or more reviews."
        )
    return float(fitting[-1])


def precision_at(label: ArrayLike, score: ArrayLike, k: int) -> float:
    """The share of anomalies among the k rows with the highest scores.

    Where equal scores compete for the last places, it is the mean over all ways to
    choose among them.

    Parameters
    ----------
    label
        (rows,) 1 for an anomaly, 0 for a usual row.
    score
        (rows,) higher for the more anomalous.
    k
        How many rows are looked at.

    Raises
    ------
    MedlmError
        If the lengths differ, a label is not 0 or 1, a score is NaN, or there are fewer
        than `k` rows.

    Source: chapter 4.
    """
    odd, scores = _labelled(label, score)
    _check_whole("k", k)
    if k > len(scores):
        raise MedlmError(
            f"k is {k}, but there are {len(scores)} rows; a budget cannot be larger "
            "than what there is to review."
        )
    border = np.partition(scores, -k)[-k]
    above, tied = scores > border, scores == border
    found = odd[above].sum() + (k - above.sum()) * odd[tied].mean()
    return float(found / k)


def expected_precision(
    label: ArrayLike, score: ArrayLike, prevalence: float, flagged_share: float
) -> float:
    """The share of anomalies among the flagged, where anomalies have a real prevalence.

    A test set often holds more anomalies than a clinic. Sensitivity and false alarms
    carry over to the clinic if its anomalies and its usual rows are alike; then the
    rows are weighted so that anomalies weigh `prevalence` together, and the highest
    scores with the weight `flagged_share` are flagged. Equal scores at the border are
    flagged in part.

    Parameters
    ----------
    label, score
        As in `precision_at`, with some of each class.
    prevalence
        Share of anomalies where the detector is to be used, between 0 and 1.
    flagged_share
        Of all rows there, above 0, up to 1.

    Raises
    ------
    MedlmError
        As in `precision_at`; `metrics.UndefinedError` if all rows are of one class.

    Source: chapter 4.
    """
    _check_between("prevalence", prevalence, 0, 1)
    if flagged_share != 1:
        _check_between("flagged_share", flagged_share, 0, 1)
    false_alarms, sensitivity, _ = metrics.roc_curve(label, score)
    anomalies = prevalence * sensitivity
    flagged = anomalies + (1 - prevalence) * false_alarms
    return float(np.interp(flagged_share, flagged, anomalies) / flagged_share)


def average_precision_at(
    label: ArrayLike, score: ArrayLike, contamination: float
) -> float:
    """Average precision as if this share of the rows were anomalies.

    Average precision grows with the share of anomalies, and guessing scores just that
    share. So two data sets can be compared at one contamination only: anomalies are
    weighted to have that share together. At the share that the rows have, it is
    `metrics.average_precision`.

    Parameters
    ----------
    label, score
        As in `precision_at`, with some of each class.
    contamination
        Between 0 and 1.

    Raises
    ------
    MedlmError
        As in `expected_precision`.

    Source: chapter 4.
    """
    _check_between("contamination", contamination, 0, 1)
    false_alarms, sensitivity, _ = metrics.roc_curve(label, score)
    anomalies = contamination * sensitivity[1:]
    precision = anomalies / (anomalies + (1 - contamination) * false_alarms[1:])
    return float((np.diff(sensitivity) * precision).sum())


# Checks -------------------------------------------------------------------------------


def _parts(rows: np.ndarray, numbers_a_row: int | None = None) -> Iterator[slice]:
    """Slices of rows whose intermediate numbers take `_PART_BYTES`, or one row."""
    step = max(1, _PART_BYTES // (8 * (numbers_a_row or rows.shape[1])))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def _checked(
    rows: ArrayLike, least: int = 1, columns: int | None = None, what: str = "rows"
) -> np.ndarray:
    """(rows, columns) float32 or float64, finite, each row in one piece."""
    try:
        given = np.asarray(rows)
        kind = given.dtype if given.dtype == np.float32 else float
        numbers = np.asarray(given, dtype=kind, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        raise MedlmError(
            f"{what} cannot be read as numbers ({error}); expected an array (rows, "
            "columns). A sparse matrix must be made dense first."
        ) from error
    if numbers.ndim != 2 or not numbers.shape[1]:
        raise MedlmError(
            f"{what} has the shape {numbers.shape}; expected (rows, columns), with at "
            "least one column."
        )
    if len(numbers) < least:
        fewer = "; or set fewer neighbours or components" if least > 2 else ""
        raise MedlmError(
            f"{what} has {len(numbers)} rows; expected at least {least}{fewer}."
        )
    if columns is not None and numbers.shape[1] != columns:
        raise MedlmError(
            f"{what} has {numbers.shape[1]} columns, the training rows have {columns}; "
            "expected the same columns in the same order."
        )
    if not (numbers.min(initial=0) >= -_LARGEST and numbers.max(initial=0) <= _LARGEST):
        raise _not_finite(what, numbers)  # comparing with NaN is False
    return numbers


def _not_finite(what: str, numbers: np.ndarray) -> MedlmError:
    fit = [(np.abs(numbers[part]) <= _LARGEST).all(axis=1) for part in _parts(numbers)]
    row = int(np.concatenate(fit).argmin())
    column = int((np.abs(numbers[row]) <= _LARGEST).argmin())
    return MedlmError(
        f"{what} holds {numbers[row, column]:g} in row {row}, column {column} (from "
        f"0); expected finite numbers up to {_LARGEST:g} in size. Fill in or leave out "
        "what is missing."
    )


def _is_constant(rows: np.ndarray) -> np.ndarray:
    """(columns,) whether nothing but rounding tells the rows apart."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    return high - low <= np.maximum(_SAME * size, 1e-100)  # whose square would vanish


def _refuse_constant(rows: np.ndarray) -> None:
    columns = np.flatnonzero(_is_constant(rows))
    if len(columns):
        first = ", ".join(str(column) for column in columns[:5])
        more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
        raise MedlmError(
            f"Column {first}{more} (from 0) is constant: {rows[0, columns[0]]:g} in "
            f"all {len(rows)} rows. This method divides by the spread; leave the "
            "column out, or take a method such as knn."
        )


def _column(what: str, values: ArrayLike) -> np.ndarray:
    """(rows,) numbers without NaN; infinity is a score."""
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MedlmError(
            f"{what} cannot be read as numbers ({error}); expected one a row."
        ) from error
    if numbers.ndim != 1 or not len(numbers) or np.isnan(numbers).any():
        raise MedlmError(
            f"{what} has the shape {numbers.shape} and NaN in "
            f"{np.isnan(numbers).sum()} places; expected one number a row, at least "
            "one, and no NaN."
        )
    return numbers


def _labelled(label: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) who is an anomaly, and the scores."""
    labels, scores = _column("label", label), _column("score", score)
    if len(labels) != len(scores) or not np.isin(labels, (0, 1)).all():
        raise MedlmError(
            f"There are {len(labels)} labels from {labels.min():g} to "
            f"{labels.max():g} and {len(scores)} scores; expected 0 or 1 for each."
        )
    return labels == 1, scores


def _check_whole(what: str, value: Any, least: int = 1) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not least <= value < 2**32:
        raise MedlmError(f"{what} is {value!r}; expected a whole number from {least}.")


def _check_between(what: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, (int, float, np.number)) or not low < value < high:
        upto = "" if high == np.inf else f" and below {high:g}"
        raise MedlmError(f"{what} is {value!r}; expected a number above {low:g}{upto}.")


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise MedlmError(f"{what} is {value!r}; expected one of {', '.join(choices)}.")
