"""What a run has shown, as JSON can hold it: all that the report is made of."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli import many_labels as many
from medlm_utils.cli import results
from medlm_utils.cli.results import Metrics
from medlm_utils.cli.run import Run

if TYPE_CHECKING:
    from medlm_utils import bert


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
    p = results.probabilities(logits, run.model.temperature)
    most = results.majority(run.numbers("training"))
    found = results.scores(label, p, run.parts[part].groups, most, baseline[1])
    before = results.calibration(label, results.probabilities(logits))
    facts = results.by_class(label, p.argmax(axis=1), p.shape[1])
    return found, facts | {"before": before, "after": results.calibration(label, p)}


def _several_labels(
    run: Run, part: str, logits: np.ndarray, baseline: Baseline
) -> tuple[Metrics, dict[str, Any]]:
    """The same where a note may have several labels."""
    label, groups = run.numbers(part), run.parts[part].groups
    p = many.probabilities(logits, run.model.temperature)
    answers = p, many.named(p, run.model.thresholds or ())
    found = many.scores(label, answers, baseline, groups)
    before = many.calibration(label, many.probabilities(logits))
    facts = {"labels": many.by_label(label, answers, baseline[0], groups)}
    return found, facts | {"before": before, "after": many.calibration(label, p)}


def _draws(run: Run) -> int:
    """How often intervals draw in the part with the most notes."""
    if not run.has_several_labels:
        return many.DRAWS[0]
    return min(many.draws(run.numbers(name)) for name in list(run.parts)[1:])


def _baselines(run: Run, parts: list[str]) -> dict[str, Baseline]:
    """What counting words says about the notes of these parts."""
    training, label = run.parts["training"].text, run.numbers("training")
    asked = [text for name in parts for text in run.parts[name].text]
    count = many.word_counts if run.has_several_labels else results.word_counts
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


# Answers of a model ------------------------------------------------------------------


def shares(model: bert.Classifier, logits: np.ndarray) -> np.ndarray:
    """(notes, classes) probabilities, calibrated; several labels a note each have one.

    Parameters
    ----------
    model
        With its temperature, and with thresholds if it names several labels a note.
    logits
        (notes, classes).
    """
    of_logits = (
        results.probabilities if model.thresholds is None else many.probabilities
    )
    return of_logits(logits, model.temperature)


def answers(model: bert.Classifier, shares: np.ndarray) -> list[list[str]]:
    """What `results.heading` names, of each note, from its probabilities."""
    limits = model.thresholds
    if limits is None:
        return [results.answer(model.labels, p) for p in shares]
    return [many.answer(model.labels, p, limits) for p in shares]
