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
LARGE = 20_000  # answers in a table that is large
Statistic = Callable[[np.ndarray, np.ndarray], float]


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
    nats = metrics.surprisal(
        label.reshape(-1), np.stack([1 - p, p], axis=-1).reshape(-1, 2)
    )
    return {
        "macro_average_precision": by.statistic(_macro_precision, label, p),
        "word_counts_macro_average_precision": by.statistic(
            _macro_precision, label, counted
        ),
        "gain_over_word_counts": by.statistic(_gain, label, p, counted),
        "macro_prevalence": by.mean(label.mean(axis=1)),
        "macro_auroc": by.statistic(_macro_auroc, label, p),
        "word_counts_macro_auroc": by.statistic(_macro_auroc, label, counted),
        "macro_f1": by.statistic(_macro_f1, label, yes),
        "word_counts_macro_f1": by.statistic(_macro_f1, label, counted_yes),
        "micro_f1": by.statistic(_micro_f1, label, yes),
        "word_counts_micro_f1": by.statistic(_micro_f1, label, counted_yes),
        "all_labels_right": by.mean((yes == label).all(axis=1)),
        "log_loss": by.mean(nats.reshape(label.shape).mean(axis=1), "nats"),
    }


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
    shown = set(order[:MOST_LABELS].tolist())
    p, yes = model
    return [
        {
            "notes": int(label[:, n].sum()),
            "prevalence": float(label[:, n].mean()),
            "auroc": _or_none(of, metrics.auroc, label[:, n], p[:, n]),
            "average_precision": _or_none(
                of, metrics.average_precision, label[:, n], p[:, n]
            ),
            "word_counts_average_precision": _or_none(
                alone, metrics.average_precision, label[:, n], counted[:, n]
            ),
            "f1": _or_none(alone, _f1, label[:, n], yes[:, n]),
        }
        for n in range(label.shape[1])
        for of in [by if n in shown else alone]
    ]


def _or_none(
    by: results.Intervals, of: Statistic, label: np.ndarray, given: np.ndarray
) -> dict[str, Any] | None:
    try:
        found = by.statistic(of, label, given)
    except metrics.UndefinedError:
        return None
    return found if np.isfinite(found["value"]) else None


def calibration(label: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """As `results.calibration`: of a yes, over all labels."""
    return results.bins(probabilities.reshape(-1), label.reshape(-1))


def _f1(label: np.ndarray, yes: np.ndarray) -> float:
    """2 x right / (true + named); NaN where there is neither."""
    total = label.sum() + yes.sum()
    return float(2 * (label * yes).sum() / total) if total else np.nan


def _macro(of: Statistic, label: np.ndarray, given: np.ndarray) -> float:
    """The mean over the labels for which it has a value."""
    values = []
    for one, column in zip(label.T, given.T, strict=True):
        try:
            values.append(of(one, column))
        except metrics.UndefinedError:
            values.append(np.nan)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _macro_precision(label: np.ndarray, p: np.ndarray) -> float:
    return _macro(metrics.average_precision, label, p)


def _gain(label: np.ndarray, p: np.ndarray, counted: np.ndarray) -> float:
    return _macro_precision(label, p) - _macro_precision(label, counted)


def _macro_auroc(label: np.ndarray, p: np.ndarray) -> float:
    return _macro(metrics.auroc, label, p)


def _macro_f1(label: np.ndarray, yes: np.ndarray) -> float:
    return _macro(_f1, label, yes)


def _micro_f1(label: np.ndarray, yes: np.ndarray) -> float:
    return _f1(label.reshape(-1), yes.reshape(-1))


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
