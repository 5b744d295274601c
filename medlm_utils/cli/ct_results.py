"""How good a classifier of CT images is, by patient and by slice, as JSON can hold it.

Knows nothing about networks: probabilities come in.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils import metrics
from medlm_utils.cli import files, results
from medlm_utils.runtime import MedlmError

Metrics = dict[str, dict[str, Any]]


@dataclasses.dataclass
class Patients:
    """What a model says of the patients of a part.

    Parameters
    ----------
    names, label
        (patients,) and (patients,) numbers of classes.
    shares
        (patients, classes) probabilities, from those of their slices.
    """

    names: np.ndarray
    label: np.ndarray
    shares: np.ndarray


@dataclasses.dataclass
class Answers:
    """What a model says of the slices of a part, beside what is true.

    Parameters
    ----------
    files, patient, label
        (slices,) names, patients and numbers of classes.
    logits
        (slices, classes).
    shares
        (slices, classes) probabilities: the logits after the temperature.
    by
        How slices make a score of their patient.
    """

    files: Sequence[str]
    patient: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    shares: np.ndarray
    by: str

    @property
    def patients(self) -> Patients:
        """From slices to patients; one has the largest class of his slices."""
        from medlm_utils import ct

        names, most = ct.by_patient(self.patient, self.label)
        shares = by_patient(self.patient, self.shares, self.by)
        return Patients(names, most.astype(int), shares)


def by_patient(patient: np.ndarray, shares: np.ndarray, how: str) -> np.ndarray:
    """(patients, classes) probabilities, from (slices, classes).

    With two classes `how` is about the second one. With more it is the mean: the
    largest of each class would not sum to 1.
    """
    from medlm_utils import ct

    if shares.shape[1] == 2:
        _, second = ct.by_patient(patient, shares[:, 1].astype(float), how)
        return np.stack([1 - second, second], axis=1)
    columns = [ct.by_patient(patient, column, "mean")[1] for column in shares.T]
    return np.stack(columns, axis=1)


def called(shares: np.ndarray, threshold: float | None) -> np.ndarray:
    """Numbers of classes: at the operating point, or the likeliest without one."""
    if threshold is None:
        return shares.argmax(axis=1)
    return (shares[:, 1] >= threshold).astype(int)


# Numbers ------------------------------------------------------------------------------


def measured(
    found: Answers,
    classes: Sequence[str],
    threshold: float | None,
    majority: int | None = None,
    blind: np.ndarray | None = None,
) -> Metrics:
    """All metrics of a part: of its patients, and with ``slice_`` of its slices.

    Parameters
    ----------
    found
        What the model says.
    classes
        Their names.
    threshold
        The operating point; None for more than two classes.
    majority
        The class that most training patients have.
    blind
        (slices,) what a model says that sees no pixels; two classes only.
    """
    patients = found.patients
    scores = _patient_scores(patients, classes, threshold)
    if majority is not None:
        most = float((patients.label == majority).mean())
        scores["majority_accuracy"] = {"value": most, "n": len(patients.label)}
    if blind is not None and len(classes) == 2:
        from medlm_utils import ct

        _, score = ct.by_patient(found.patient, blind, "mean")
        scores["no_pixels_auroc"] = _estimate(
            patients.names, metrics.auroc, patients.label, score
        )
    of_slices = _scores(found.patient, found.label, found.shares, classes)
    if len(classes) > 2:
        of_slices |= _called(found.patient, found.label, found.shares, None)
    scores |= {f"slice_{name}": value for name, value in of_slices.items()}
    return {name: value for name, value in scores.items() if value}


def _patient_scores(
    found: Patients, classes: Sequence[str], threshold: float | None
) -> Metrics:
    scores = _scores(found.names, found.label, found.shares, classes)
    scores |= _called(found.names, found.label, found.shares, threshold)
    if threshold is not None:
        positive = found.shares[:, 1] >= threshold
        sick, well = found.label == 1, found.label == 0
        rights = {"sensitivity": positive[sick], "specificity": ~positive[well]}
        for name, right in rights.items():
            if len(right):
                of = metrics.wilson(int(right.sum()), len(right))
                scores[name] = dict(of.as_metric())
    return scores


def _scores(
    patient: np.ndarray, label: np.ndarray, shares: np.ndarray, classes: Sequence[str]
) -> Metrics:
    """What needs no decision; a number that has no value is empty."""
    found = {"log_loss": _estimate(patient, metrics.log_loss, label, shares)}
    if len(classes) == 2:
        score = shares[:, 1]
        found["auroc"] = _estimate(patient, metrics.auroc, label, score)
        found["auprc"] = _estimate(patient, metrics.average_precision, label, score)
        found["prevalence"] = _estimate(patient, np.mean, label)
        return found
    for number, name in enumerate(classes):
        is_it = (label == number).astype(int)
        found[f"auroc_{name}"] = _estimate(
            patient, metrics.auroc, is_it, shares[:, number]
        )
    return found


def _called(
    patient: np.ndarray, label: np.ndarray, shares: np.ndarray, threshold: float | None
) -> Metrics:
    """What depends on which class is named."""
    classes, chosen = shares.shape[1], called(shares, threshold)

    def macro_f1(truth: np.ndarray, named: np.ndarray) -> float:
        return metrics.f1(truth, named, classes, "macro")

    return {
        "accuracy": _estimate(patient, metrics.accuracy, label, chosen),
        "macro_f1": _estimate(patient, macro_f1, label, chosen),
    }


def _estimate(
    patient: np.ndarray, function: Any, *columns: np.ndarray
) -> dict[str, Any]:
    """A number with its interval by patient, without one where there is none."""
    try:
        found = metrics.interval_by_patient(function, patient, *columns)
        return dict(found.as_metric())
    except MedlmError:  # too few patients, or of one class, in some of the draws
        try:
            value = float(function(*columns))
        except metrics.UndefinedError:
            return {}
        return {"value": value, "n": len(set(patient.tolist()))}


def part(found: Answers, threshold: float | None) -> dict[str, Any]:
    """Counts and curves of the patients of a part, and calibration of its slices."""
    patients = found.patients
    classes = patients.shares.shape[1]
    chosen = called(patients.shares, threshold)
    content: dict[str, Any] = results.by_class(patients.label, chosen, classes)
    if classes == 2 and len(set(patients.label.tolist())) == 2:
        wrong, right, _ = metrics.roc_curve(patients.label, patients.shares[:, 1])
        content["roc"] = {
            "x": np.asarray(wrong).tolist(),
            "y": np.asarray(right).tolist(),
        }
    before = results.probabilities(found.logits)
    return content | {
        "before": results.calibration(found.label, before),
        "after": results.calibration(found.label, found.shares),
    }


def counts(
    patient: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """How many images and patients there are, and how many patients of each class."""
    from medlm_utils import ct

    _, most = ct.by_patient(patient, label)
    return {
        "images": len(label),
        "patients": len(most),
        "frequencies": {
            name: int((most == number).sum()) for number, name in enumerate(classes)
        },
    }


def blind_warning(scores: Metrics, part: str) -> list[str]:
    """Said where files alone tell the class, and this can be no accident."""
    found = scores.get(f"{part}_no_pixels_auroc", {})
    if found.get("low", 0) <= 0.5:
        return []
    return [
        "a forest that sees no pixels, only size, format and header of the files, "
        f"reaches an AUROC of {found['value']:.2f}: the classes were stored or "
        "compress differently, and the network may have learned that"
    ]


# Files --------------------------------------------------------------------------------


def write_patients(
    path: Path,
    classes: Sequence[str],
    names: np.ndarray,
    shares: np.ndarray,
    threshold: float | None,
    label: np.ndarray | None = None,
) -> None:
    """A row a patient; what is called positive is decided by the operating point."""
    known = [] if label is None else ["label"]
    point = [] if threshold is None else ["at_operating_point"]
    with files.beside(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", *known, *results.heading(classes), *point])
        for row, (name, p) in enumerate(zip(names, shares, strict=True)):
            said = [] if label is None else [classes[label[row]]]
            named = [classes[n] for n in called(p[None], threshold)] if point else []
            writer.writerow([name, *said, *results.answer(classes, p), *named])


def write_slices(path: Path, classes: Sequence[str], found: Answers) -> None:
    """A row a slice."""
    columns = zip(found.files, found.patient, found.label, found.shares, strict=True)
    with files.beside(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "patient", "label", *results.heading(classes)])
        for name, patient, label, p in columns:
            said = [name, patient, classes[label]]
            writer.writerow([*said, *results.answer(classes, p)])
