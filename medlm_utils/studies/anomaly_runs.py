"""What the studies of chapter 4 on texts share: scores of all detectors, and intervals.

A study that compares many detectors needs many intervals over the same rows. So the
patients are drawn once, as `metrics.interval_by_patient` draws them, and every score
is measured on all draws together; means and differences over several scores come from
the same draws. A draw repeats rows, which raises average precision a little; where it
is low, its interval lies high.

Source: chapter 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medlm_utils import anomaly, metrics
from medlm_utils.runtime import MedlmError

_LOST_SHARE = 0.1  # of the draws; more without a value, and there is no interval
DIGITS = 5  # of what a series holds


# Intervals of many scores -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measure of all rows, and of every draw; two of the same draws can be compared.

    Parameters
    ----------
    value
        Of all rows.
    drawn
        (draws,); NaN where a draw has rows of one class only.
    n
        How many patients are drawn.
    """

    value: float
    drawn: np.ndarray
    n: int

    def __sub__(self, other: Measured) -> Measured:
        """The difference, draw by draw."""
        return Measured(self.value - other.value, self.drawn - other.drawn, self.n)

    def as_metric(self) -> dict[str, Any]:
        """The value with its 95% interval, as `runtime.results` takes it.

        Raises
        ------
        MedlmError
            If more than a tenth of the draws have no value.
        """
        kept = self.drawn[np.isfinite(self.drawn)]
        lost = len(self.drawn) - len(kept)
        if lost > _LOST_SHARE * len(self.drawn):
            raise MedlmError(
                f"{lost} of {len(self.drawn)} draws of {self.n} patients have no "
                "anomaly or nothing else; expected at most a tenth. Take more of both."
            )
        low, high = (float(end) for end in np.quantile(kept, [0.025, 0.975]))
        return {"value": self.value, "low": low, "high": high, "n": self.n}

    def short(self) -> dict[str, float]:
        """The same for a series: rounded, without `n`."""
        found = self.as_metric()
        return {name: round(found[name], DIGITS) for name in ("value", "low", "high")}


def mean_of(found: Sequence[Measured]) -> Measured:
    """The mean of several measures, draw by draw.

    Parameters
    ----------
    found
        Of the same draws.
    """
    value = float(np.mean([one.value for one in found]))
    return Measured(value, np.mean([one.drawn for one in found], axis=0), found[0].n)


class Resamples:
    """Patients drawn again and again, with all their rows.

    Parameters
    ----------
    patients
        (rows,) whose row it is.
    draws
        How often all patients are drawn, with replacement.
    seed
        Of the draws; with the same one `metrics.interval_by_patient` has the same.
    """

    def __init__(self, patients: ArrayLike, draws: int, seed: int):
        number = np.unique(np.asarray(patients), return_inverse=True)[1]
        self.n, rng = int(number.max()) + 1, np.random.default_rng(seed)
        picked = [rng.integers(self.n, size=self.n) for _ in range(draws)]
        # How often each row is in each draw, (draws, rows).
        self.times = np.stack(
            [np.bincount(p, minlength=self.n)[number] for p in picked]
        )

    def measure(self, label: np.ndarray, score: np.ndarray) -> dict[str, Measured]:
        """AUROC and average precision of one score, on all rows and on every draw.

        Parameters
        ----------
        label
            (rows,) with 1 for an anomaly.
        score
            (rows,), higher for the more anomalous.
        """
        drawn = _of_draws(self.times, label, score)
        values = metrics.auroc(label, score), metrics.average_precision(label, score)
        return {
            name: Measured(value, of_draws, self.n)
            for name, value, of_draws in zip(MEASURES, values, drawn, strict=True)
        }


MEASURES = ("auroc", "average_precision")


def _of_draws(
    times: np.ndarray, label: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both measures where each row is there so many times, (draws,) each."""
    order = np.argsort(-score, kind="stable")
    ordered, weights = score[order], times[:, order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of each group of equal scores
    true = np.cumsum(weights * (label[order] == 1), axis=1)[:, last]
    flagged = np.cumsum(weights, axis=1)[:, last]
    false = flagged - true
    new_true, new_false = (np.diff(v, prepend=0, axis=1) for v in (true, false))
    with np.errstate(invalid="ignore"):  # 0 / 0: a draw of one class only
        pairs = (new_false * (2 * true - new_true)).sum(axis=1)
        auroc = pairs / (2.0 * true[:, -1] * false[:, -1])
        precision = true / np.maximum(flagged, 1)
        average = (new_true * precision).sum(axis=1) / true[:, -1]
    return auroc, np.where(np.isnan(auroc), np.nan, average)


def best_for_others(aurocs: np.ndarray) -> np.ndarray:
    """For each row the column with the highest mean over all other rows.

    Parameters
    ----------
    aurocs
        (rows, columns): of a class that is held out, or of a seed, and of each pair of
        vectors and detector.

    Returns
    -------
    ndarray
        (rows,) numbers of columns: choices that did not see what they are judged on.
    """
    return (aurocs.sum(axis=0) - aurocs).argmax(axis=1)


# Scores -------------------------------------------------------------------------------


def all_scores(
    train: np.ndarray,
    asked: np.ndarray,
    seed: int,
    detectors: Sequence[str] = tuple(anomaly.DETECTORS),
) -> dict[str, np.ndarray]:
    """What each detector, fitted on usual rows, says of others: (asked rows,) each.

    Parameters
    ----------
    train
        (rows, columns) of usual rows.
    asked
        (asked rows, columns).
    seed
        Of the detectors that draw something.
    detectors
        Keys of `anomaly.DETECTORS`; all of them with their own settings.

    Raises
    ------
    MedlmError
        As `anomaly.Detector.fit`.
    """
    return {
        name: anomaly.detector(name, seed=seed).fit(train).anomaly_score(asked)
        for name in detectors
    }


def tfidf_svd(
    train: Sequence[str], components: int, seed: int, words_together: int = 1
) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts as the widest directions of their words' weights, learned from usual texts.

    Parameters
    ----------
    train
        Usual texts.
    components
        Columns of the result; with fewer words, one fewer than there are words.
    seed
        Of the randomised decomposition.
    words_together
        2: pairs of neighbouring words count too.

    Returns
    -------
    Callable
        A function of texts that gives (texts, components). Words that stand in
        one training text only, or in none, count for nothing.

    Source: Deerwester et al. 1990; chapter 4.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        sublinear_tf=True, min_df=2, ngram_range=(1, words_together)
    )
    weights = words.fit_transform(train)
    columns = min(components, weights.shape[1] - 1)
    svd = TruncatedSVD(columns, random_state=seed).fit(weights)
    return lambda texts: svd.transform(words.transform(texts))


# Arrays that one part keeps for another -----------------------------------------------


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays beside a work file, then rename.

    Parameters
    ----------
    path
        Of the file, ending in ``.npz``.
    arrays
        By name.
    """
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a work file, by name.

    Raises
    ------
    MedlmError
        If the file is gone or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive raises many kinds
        raise MedlmError(
            f"{path} does not hold the arrays that this study kept. Add --fresh to "
            "make every part anew."
        ) from error
