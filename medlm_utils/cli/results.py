"""What a run has shown, as JSON can hold it: all that the report is made of."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import metrics, runtime
from medlm_utils.cli.run import Run

if TYPE_CHECKING:
    from medlm_utils import bert

BASELINE_NOTES = 20_000  # so many teach the baseline: enough, and done in a minute
BASELINE_WEIGHTS = 3_000_000  # at most so many, for the memory's sake
Metrics = dict[str, dict[str, Any]]

# A run, as a whole --------------------------------------------------------------------


def content(
    run: Run,
    tuned: bert.Tuned,
    logits: Mapping[str, np.ndarray],
    remark: str,
    cut: Mapping[str, int],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``report.json`` holds.

    Parameters
    ----------
    run, tuned
        The fine-tuning; its model has its temperature.
    logits
        Part to (notes, classes), without the training notes.
    remark
        On the temperature, if any.
    cut
        Part to how many of its notes lost their end.
    machine
        ``device``, and how many ``processes``.
    """
    measured: Metrics = {}
    parts: dict[str, Any] = {}
    judge = _several_labels if run.has_several_labels else _one_label
    for name, baseline in _baselines(run, list(logits)).items():
        found, parts[name] = judge(run, name, logits[name], baseline)
        measured |= {f"{name}_{metric}": value for metric, value in found.items()}
    seconds = time.monotonic() - run.started
    weights = {} if run.weights is None else {"class_weights": "balanced"}
    return {
        **runtime.results(dict(measured), seconds, machine["device"]),
        "seed": run.settings.seed,
        "command": run.command,
        "processes": machine["processes"],
        "settings": dataclasses.asdict(run.settings) | weights,
        "warnings": run.warnings,
        "interval_unit": run.parts["training"].unit,
        "draws": _draws(run),
        "model": _model_facts(run, remark),
        "data": {name: _data_facts(run, name, cut[name]) for name in run.parts},
        "split": None if run.split is None else _split_facts(run),
        "history": _history(tuned),
        "parts": parts,
    }


Baseline = tuple[np.ndarray, np.ndarray]  # its probabilities, if any, and its answers


def _one_label(
    run: Run, part: str, logits: np.ndarray, baseline: Baseline
) -> tuple[Metrics, dict[str, Any]]:
    """The numbers of a part with one label a note: for the record, and by class."""
    label = run.numbers(part)
    p = probabilities(logits, run.model.temperature)
    most = majority(run.numbers("training"))
    found = scores(label, p, run.parts[part].groups, most, baseline[1])
    before = calibration(label, probabilities(logits))
    facts = by_class(label, p.argmax(axis=1), p.shape[1])
    return found, facts | {"before": before, "after": calibration(label, p)}


def _several_labels(
    run: Run, part: str, logits: np.ndarray, baseline: Baseline
) -> tuple[Metrics, dict[str, Any]]:
    """The same where a note may have several labels."""
    from medlm_utils.cli import many_labels as many

    label, groups = run.numbers(part), run.parts[part].groups
    p = many.probabilities(logits, run.model.temperature)
    answers = p, many.named(p, run.model.thresholds or ())
    found = many.scores(label, answers, baseline, groups)
    before = many.calibration(label, many.probabilities(logits))
    facts = {"labels": many.by_label(label, answers, baseline[0], groups)}
    return found, facts | {"before": before, "after": many.calibration(label, p)}


def _draws(run: Run) -> int:
    """How often intervals draw in the part with the most notes."""
    from medlm_utils.cli import many_labels as many

    if not run.has_several_labels:
        return many.DRAWS[0]
    return min(many.draws(run.numbers(name)) for name in list(run.parts)[1:])


def _baselines(run: Run, parts: list[str]) -> dict[str, Baseline]:
    """What counting words says about the notes of these parts."""
    from medlm_utils.cli import many_labels as many

    training, label = run.parts["training"].text, run.numbers("training")
    asked = [text for name in parts for text in run.parts[name].text]
    count = many.word_counts if run.has_several_labels else word_counts
    balanced = run.weights is not None
    found = count(training, label, asked, run.settings.seed, balanced)
    ends = np.cumsum([len(run.parts[name]) for name in parts])[:-1]
    answers = dict(zip(parts, np.split(found, ends), strict=True))
    if not run.has_several_labels:
        return {name: (one, one) for name, one in answers.items()}
    limits = many.thresholds(run.numbers("validation"), answers["validation"])
    return {name: (p, many.named(p, limits)) for name, p in answers.items()}


def _model_facts(run: Run, remark: str) -> dict[str, Any]:
    of_tokens = {"mean": "the mean of its tokens", "pooler": "its first token, pooled"}
    return {
        "base": Path(run.chosen.model).name,
        "base_sha256": run.base_sha256,
        "classes": list(run.model.labels),
        "thresholds": run.model.thresholds,
        "parameters": run.parameters,
        "trained": run.trained,
        "pooling": of_tokens[run.model.pooling],
        "longest": run.settings.longest,
        "temperature": run.model.temperature,
        "temperature_remark": remark,
    }


def _data_facts(run: Run, part: str, cut: int) -> dict[str, Any]:
    table = run.parts[part]
    counted = collections.Counter(one for labels in table.labels for one in labels)
    return {
        "file": table.path.name,
        "sha256": table.sha256,
        "notes": len(table),
        "patients": None if table.patient is None else len(set(table.groups)),
        "frequencies": {label: counted[label] for label in run.model.labels},
        "cut": cut,
    }


def _split_facts(run: Run) -> dict[str, Any]:
    """How one file became three parts."""
    given = run.chosen.split
    return {
        "file": run.parts["training"].path.name,
        "by": run.parts["training"].unit,
        "how": f"as in {given.name}" if given else f"drawn, seed {run.settings.seed}",
    }


def _history(tuned: bert.Tuned) -> dict[str, Any]:
    columns = zip(tuned.loss, tuned.accuracy, tuned.weighted_f1, strict=True)
    names = ("loss", "accuracy", "weighted_f1")
    return {
        "loss": [round(loss, 5) for loss in tuned.history.loss],
        "steps_per_epoch": len(tuned.history) // len(tuned.loss),
        "epochs": [dict(zip(names, values, strict=True)) for values in columns],
        "best_epoch": tuned.best,
        "remark": epochs_in_words(tuned.loss),
    }


def epochs_in_words(loss: Sequence[float]) -> str:
    """Which epoch was kept, and what that says about the number of epochs.

    Parameters
    ----------
    loss
        Of the validation notes after each epoch.
    """
    best = 1 + int(np.argmin(loss))
    kept = (
        f"The model is that of epoch {best} of {len(loss)}, where the validation loss "
        f"was smallest ({loss[best - 1]:.3f})"
    )
    if len(loss) == 1:
        return f"{kept}: there was no other. More epochs may help."
    if best == len(loss):
        return f"{kept}: it still fell in the last one. More epochs may help."
    return (
        f"{kept}; later it was no smaller ({loss[-1]:.3f} at the end), so the later "
        "epochs are left out, and more would hardly help."
    )


# Answers ------------------------------------------------------------------------------


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(notes, classes) probabilities."""
    return metrics.softmax(logits / temperature)


def heading(labels: Sequence[str]) -> list[str]:
    """Names of the columns of an `answer`."""
    return ["predicted", *(f"p_{label}" for label in labels)]


def shares(model: bert.Classifier, logits: np.ndarray) -> np.ndarray:
    """(notes, classes) probabilities, calibrated; several labels a note each have one.

    Parameters
    ----------
    model
        With its temperature, and with thresholds if it names several labels a note.
    logits
        (notes, classes).
    """
    from medlm_utils.cli import many_labels as many

    of_logits = probabilities if model.thresholds is None else many.probabilities
    return of_logits(logits, model.temperature)


def answers(model: bert.Classifier, shares: np.ndarray) -> list[list[str]]:
    """What `heading` names, of each note, from its probabilities."""
    from medlm_utils.cli import many_labels as many

    limits = model.thresholds
    if limits is None:
        return [answer(model.labels, p) for p in shares]
    return [many.answer(model.labels, p, limits) for p in shares]


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
