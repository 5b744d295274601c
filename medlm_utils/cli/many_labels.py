"""What a model of several labels a note has shown: numbers of each label and of all.

A label stands for one question, yes or no. Knows nothing about models or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medlm_utils import metrics
from medlm_utils.cli import results

MOST_LABELS = 25  # with intervals and a place on the page: the most frequent ones
DRAWS = (1000, 200)  # of an interval, for small tables and for large ones
LARGE = 10_000  # answers in a table that is large
Statistic = Callable[..., np.ndarray]  # one value a label, (labels,)


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(notes, labels) probabilities, each of its own: they need not sum to 1."""
    return metrics.softmax(_of_yes(logits / temperature))[..., 1]


def _of_yes(logits: np.ndarray) -> np.ndarray:
    """(..., 2): of no and yes, as two classes have them."""
    return np.stack([np.zeros_like(logits), logits], axis=-1)


def temperature(logits: np.ndarray, label: np.ndarray) -> tuple[float, str]:
    """As `results.temperature`: one for all labels."""
    return results.temperature(_of_yes(logits).reshape(-1, 2), label.reshape(-1))


def thresholds(label: np.ndarray, probabilities: np.ndarray) -> tuple[float, ...]:
    """For each label the highest threshold with the best F1; without a yes, 1.

    Parameters
    ----------
    label, probabilities
        (notes, labels) of the validation notes.
    """
    return tuple(map(_best_threshold, label.T, probabilities.T))


def _best_threshold(label: np.ndarray, p: np.ndarray) -> float:
    if not label.any():
        return 1.0
    precision, recall, at = metrics.precision_recall_curve(label, p)
    with np.errstate(invalid="ignore"):
        f1 = 2 * precision * recall / (precision + recall)
    return float(at[int(np.nanargmax(f1))])


def named(probabilities: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(notes, labels): 1 for what reaches its threshold."""
    return (probabilities >= np.asarray(thresholds)).astype(int)


def answer(
    labels: Sequence[str], p: np.ndarray, thresholds: Sequence[float]
) -> list[str]:
    """The labels that reach their threshold, then the probability of each."""
    chosen = named(p, thresholds)
    words = [label for label, yes in zip(labels, chosen, strict=True) if yes]
    return ["|".join(words), *(f"{value:.6g}" for value in p)]


# Numbers ------------------------------------------------------------------------------


def scores(
    label: np.ndarray,
    model: tuple[np.ndarray, np.ndarray],
    counting: tuple[np.ndarray, np.ndarray],
    groups: Sequence[str],
) -> results.Metrics:
    """How good a model is over all labels, beside counting words.

    Parameters
    ----------
    label
        (notes, labels) 0 or 1.
    model, counting
        Probabilities and what is `named`, (notes, labels) each, of the model and of
        counting words.
    groups
        (notes,) what an interval resamples.

    Returns
    -------
    dict
        As `results.scores`. Macro: the mean over the labels that occur. Micro: over all
        answers at once.
    """
    by = results.Intervals(groups, draws(label))
    (p, yes), (counted, counted_yes) = model, counting
    ours, theirs, rows = Ranked(label, p), Ranked(label, counted), np.arange(len(label))
    answers = np.stack([1 - p, p], axis=-1).reshape(-1, 2)
    nats = metrics.surprisal(label.reshape(-1), answers).reshape(label.shape)

    def gain(rows: np.ndarray) -> float:
        return _mean(ours.average_precision(rows)) - _mean(
            theirs.average_precision(rows)
        )

    def macro(of: Statistic, *columns: np.ndarray) -> dict[str, Any]:
        return by.statistic(lambda *drawn: _mean(of(*drawn)), *columns)

    return {
        "macro_average_precision": macro(ours.average_precision, rows),
        "word_counts_macro_average_precision": macro(theirs.average_precision, rows),
        "gain_over_word_counts": by.statistic(gain, rows),
        "macro_prevalence": by.mean(label.mean(axis=1)),
        "macro_auroc": macro(ours.auroc, rows),
        "word_counts_macro_auroc": macro(theirs.auroc, rows),
        "macro_f1": macro(f1, label, yes),
        "word_counts_macro_f1": macro(f1, label, counted_yes),
        "micro_f1": macro(_micro_f1, label, yes),
        "word_counts_micro_f1": macro(_micro_f1, label, counted_yes),
        "all_labels_right": by.mean((yes == label).all(axis=1)),
        "log_loss": by.mean(nats.mean(axis=1), "nats"),
    }


class Ranked:
    """Notes in the order of each label's scores: sorted once, for all resamples.

    It gives what `metrics.average_precision` and `metrics.auroc` give, of all labels
    at once and many times as fast.

    Parameters
    ----------
    label, score
        (notes, labels).
    """

    def __init__(self, label: np.ndarray, score: np.ndarray):
        self.order = np.argsort(-score, axis=0, kind="stable")
        self.label = np.take_along_axis(label, self.order, axis=0)
        ordered = np.take_along_axis(score, self.order, axis=0)
        starts = np.diff(ordered, axis=0, prepend=np.inf) != 0
        place = np.arange(len(label))[:, None]
        # The first and the last note with the same score as each one.
        self.first = np.maximum.accumulate(np.where(starts, place, 0), axis=0)
        is_last = np.roll(starts, -1, axis=0)
        is_last[-1] = True
        backwards = np.where(is_last, place, len(label))[::-1]
        self.last = np.minimum.accumulate(backwards, axis=0)[::-1]

    def _counted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often each note was drawn, and as one with the label."""
        drawn = np.bincount(rows, minlength=len(self.order))[self.order]
        return drawn, drawn * self.label

    def average_precision(self, rows: np.ndarray) -> np.ndarray:
        """(labels,), NaN for a label that none of the drawn rows has."""
        drawn, true = self._counted(rows)
        with np.errstate(invalid="ignore"):
            precision = true.cumsum(axis=0) / drawn.cumsum(axis=0)
            reached = np.take_along_axis(precision, self.last, axis=0)
            total = np.where(true > 0, true * reached, 0).sum(axis=0)
            return total / true.sum(axis=0)

    def auroc(self, rows: np.ndarray) -> np.ndarray:
        """(labels,), NaN for a label that all of the drawn rows have, or none."""
        drawn, true = self._counted(rows)
        above = true.cumsum(axis=0)
        before = np.take_along_axis(above - true, self.first, axis=0)
        until = np.take_along_axis(above, self.last, axis=0)
        false = drawn - true
        with np.errstate(invalid="ignore"):
            pairs = true.sum(axis=0) * false.sum(axis=0)
            return (false * (before + until)).sum(axis=0) / (2 * pairs)


def draws(label: np.ndarray) -> int:
    """How often an interval draws: seconds, not minutes, for a large table too."""
    return DRAWS[label.size > LARGE]


def by_label(
    label: np.ndarray,
    model: tuple[np.ndarray, np.ndarray],
    counted: np.ndarray,
    groups: Sequence[str],
) -> list[dict[str, Any]]:
    """Prevalence, AUROC, average precision and F1 of each label.

    A number that has no value, such as the AUROC of a label that no note has, is None;
    labels beyond the `MOST_LABELS` most frequent ones have no intervals.
    """
    by = results.Intervals(groups, draws(label))
    alone = results.Intervals(["one"] * len(label))
    order = np.argsort(-label.sum(axis=0), kind="stable")
    shown, rows = set(order[:MOST_LABELS].tolist()), np.arange(len(label))
    p, yes = model
    found = []
    for n, name in enumerate(label.T):
        one, of = name[:, None], by if n in shown else alone
        ours, theirs = Ranked(one, p[:, [n]]), Ranked(one, counted[:, [n]])
        precision = theirs.average_precision
        found.append(
            {
                "notes": int(name.sum()),
                "prevalence": float(name.mean()),
                "auroc": _or_none(of, ours.auroc, rows),
                "average_precision": _or_none(of, ours.average_precision, rows),
                "word_counts_average_precision": _or_none(alone, precision, rows),
                "f1": _or_none(alone, f1, one, yes[:, [n]]),
            }
        )
    return found


def _or_none(
    by: results.Intervals, of: Statistic, *columns: np.ndarray
) -> dict[str, Any] | None:
    """Of one label; None where it has no value."""
    if np.isnan(of(*columns)).all():
        return None
    return by.statistic(lambda *drawn: float(of(*drawn)[0]), *columns)


def calibration(label: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """As `results.calibration`: of a yes, over all labels."""
    return results.bins(probabilities.reshape(-1), label.reshape(-1))


def f1(label: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """2 x right / (true + named) of each label; NaN where there is neither."""
    total = label.sum(axis=0) + yes.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return 2 * (label * yes).sum(axis=0) / total


def _micro_f1(label: np.ndarray, yes: np.ndarray) -> np.ndarray:
    return f1(label.reshape(-1, 1), yes.reshape(-1, 1))


def _mean(values: np.ndarray) -> float:
    """Over the labels that have a value."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


# Counting words -----------------------------------------------------------------------


def word_counts(
    texts: Sequence[str],
    label: np.ndarray,
    asked: Sequence[str],
    seed: int,
    balanced: bool = False,
) -> np.ndarray:
    """`results.word_counts` for each label: (asked, labels) probabilities."""
    from sklearn.linear_model import LogisticRegression

    prevalence = np.tile(label.mean(axis=0), (len(asked), 1))
    vectors = results.word_vectors(texts, asked, seed, label.shape[1])
    if vectors is None:
        return prevalence
    chosen, known, new = vectors
    weight = "balanced" if balanced else None
    for n, yes in enumerate(label[chosen].T):
        if 0 < yes.sum() < len(yes):
            model = LogisticRegression(C=10.0, max_iter=1000, class_weight=weight)
            prevalence[:, n] = model.fit(known, yes).predict_proba(new)[:, 1]
    return prevalence
