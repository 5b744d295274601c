"""How good answers with one label each are, and what counting words would answer.

Knows nothing about runs, models or pages: probabilities come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medlm_utils import metrics

BASELINE_NOTES = 20_000  # so many teach the baseline: enough, and done in a minute
BASELINE_WEIGHTS = 3_000_000  # at most so many, for the memory's sake
Metrics = dict[str, dict[str, Any]]

# Answers ------------------------------------------------------------------------------


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(notes, classes) probabilities."""
    return metrics.softmax(logits / temperature)


def heading(labels: Sequence[str]) -> list[str]:
    """Names of the columns of an `answer`."""
    return ["predicted", *(f"p_{label}" for label in labels)]


def answer(labels: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """The most probable label, then the probability of each."""
    best = labels[int(probabilities.argmax())]
    return [best, *(f"{p:.6g}" for p in probabilities)]


# Numbers ------------------------------------------------------------------------------


def scores(
    label: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[str],
    majority: int,
    baseline: np.ndarray,
) -> Metrics:
    """How good a model is, beside doing nothing and beside counting words.

    Parameters
    ----------
    label
        (notes,) class numbers.
    probabilities
        (notes, classes) of the model, calibrated.
    groups
        (notes,) what an interval resamples: patients, or notes.
    majority
        The most frequent class of the training notes.
    baseline
        (notes,) what `word_counts` predicts.

    Returns
    -------
    dict
        Name to ``value``, ``low``, ``high``, ``n`` and ``unit``, as in a record.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    right, counted = predicted == label, baseline == label

    def weighted_f1(truth: np.ndarray, named: np.ndarray) -> float:
        return metrics.f1(truth, named, classes, "weighted")

    def macro_f1(truth: np.ndarray, named: np.ndarray) -> float:
        return metrics.f1(truth, named, classes, "macro")

    by = Intervals(groups)
    return {
        "accuracy": by.mean(right),
        "majority_accuracy": by.mean(label == majority),
        "word_counts_accuracy": by.mean(counted),
        "gain_over_word_counts": by.mean(right.astype(float) - counted),
        "weighted_f1": by.statistic(weighted_f1, label, predicted),
        "macro_f1": by.statistic(macro_f1, label, predicted),
        "log_loss": by.mean(metrics.surprisal(label, probabilities), "nats"),
    }


class Intervals:
    """Estimates with intervals by group; without them where there is one group.

    Parameters
    ----------
    groups
        (notes,) what is drawn again.
    draws
        How often.
    """

    def __init__(self, groups: Sequence[str], draws: int = 1000):
        self.groups, self.draws = groups, draws
        self.is_alone = len(set(groups)) < 2

    def mean(self, values: np.ndarray, unit: str = "") -> dict[str, Any]:
        """Of one value a note."""
        if self.is_alone:
            return _bare(float(np.mean(values)), unit)
        of = metrics.mean_by_patient(values, self.groups, draws=self.draws, unit=unit)
        return of.as_metric()

    def statistic(self, function: Any, *columns: np.ndarray) -> dict[str, Any]:
        """Of all notes at once."""
        if not self.is_alone:
            try:
                of = metrics.interval_by_patient(
                    function, self.groups, *columns, draws=self.draws
                )
                return of.as_metric()
            except metrics.UndefinedError:
                pass  # too few have what it needs: the value must do
        return _bare(float(function(*columns)))


def _bare(value: float, unit: str = "") -> dict[str, Any]:
    return {"value": value, "n": 1} | ({"unit": unit} if unit else {})


def by_class(label: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """The confusion matrix, and precision, recall and F1 of each class.

    A number that has no value, such as the precision of a class that was never named,
    is None.
    """
    counts = metrics.confusion(label, predicted, classes)
    names = ("precision", "recall", "f1")
    columns = dict(zip(names, metrics.precision_recall_f1(counts), strict=True))
    return {"confusion": counts.tolist()} | {
        name: _or_none(values) for name, values in columns.items()
    }


def calibration(label: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """What was promised and what came, in ten bins, and their mean distance."""
    right = probabilities.argmax(axis=1) == label
    return bins(probabilities.max(axis=1), right)


def bins(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The table of a calibration: (answers,) probabilities, and whether they came."""
    table = metrics.reliability(confidence, right)
    return {
        "error": metrics.expected_calibration_error(confidence, right),
        "count": table.count.tolist(),
        "confidence": _or_none(table.confidence),
        "correct": _or_none(table.correct),
    }


def temperature(logits: np.ndarray, label: np.ndarray) -> tuple[float, str]:
    """The temperature that fits best, and why it is 1 where there is none."""
    try:
        return metrics.fit_temperature(logits, label), ""
    except metrics.UndefinedError as error:
        return 1.0, str(error)


def majority(label: np.ndarray) -> int:
    """The most frequent class."""
    return int(np.bincount(label).argmax())


def word_counts(
    texts: Sequence[str],
    label: np.ndarray,
    asked: Sequence[str],
    seed: int,
    balanced: bool = False,
) -> np.ndarray:
    """What a logistic regression on TF-IDF of one to three words predicts.

    Parameters
    ----------
    texts, label
        Notes for training and their classes; at most `BASELINE_NOTES` are used.
    asked
        Notes whose class is asked for.
    seed
        Of the choice of notes.
    balanced
        True: every class counts alike, as the model with weights has learned.

    Returns
    -------
    ndarray
        (asked,) class numbers.

    Source: chapter 3.
    """
    from sklearn.linear_model import LogisticRegression

    weight = "balanced" if balanced else None
    model = LogisticRegression(C=10.0, max_iter=1000, class_weight=weight)
    vectors = word_vectors(texts, asked, seed, len(set(label)))
    if vectors is not None and len(set(label[vectors[0]])) > 1:
        chosen, known, new = vectors
        return model.fit(known, label[chosen]).predict(new)
    return np.full(len(asked), majority(label))  # no note has a word


def word_vectors(
    texts: Sequence[str], asked: Sequence[str], seed: int, classes: int
) -> tuple[np.ndarray, Any, Any] | None:
    """Which notes teach the baseline, their vectors and those of the notes asked for.

    None where no note has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(texts))[:BASELINE_NOTES]
    vectors = TfidfVectorizer(
        ngram_range=(1, 3),
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b",
        max_features=max(BASELINE_WEIGHTS // classes, 1000),
    )
    try:
        known = vectors.fit_transform(texts[place] for place in chosen)
    except ValueError:
        return None
    return chosen, known, vectors.transform(asked)


def _or_none(values: np.ndarray) -> list[float | None]:
    """NaN, which JSON does not know, becomes None."""
    return [None if np.isnan(value) else float(value) for value in values]
