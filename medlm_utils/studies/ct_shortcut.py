"""A letter in the corner that tells the label: what a network does with it.

Two networks are fine-tuned on the same patients of hospital A. In the images of the one
most abnormal patients carry a small dense letter beside the body, and few of the
others; those of the other one have no letter. Both are asked about the same test
patients in several ways: with the letter as often as in training; without it; with
the letter on the others; with the lungs blanked, so that the letter alone is left;
with the lungs blanked and no letter, so that nothing is; and about patients of hospital
B, whose scanner is another one.

How much the letter is worth is known. Alone it has an exact AUROC, and a reader who
knows opacities and letter adds their two log likelihood ratios.

Source: chapter 5; `python -m medlm_utils.studies.ct_shortcut`. The question is that of
Zech et al. 2018 and DeGrave et al. 2021; lungs were blanked by Maguolo and Nanni 2021.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from medlm_utils import ct, phantom, resnet
from medlm_utils.studies import core, ct_learning_curve, ct_runs

DRAW, MARKER_SEED, TEST_MARKER_SEED = 61, 62, 63
SHARES = (0.9, 0.1)  # of abnormal and of other patients who carry the letter
LUNG_HU = -860  # of a lung without anything in it
TRAININGS = ("with_marker", "without_marker")
WAYS = (
    "home",
    "no_marker",
    "marker_reversed",
    "lungs_blanked",
    "nothing_left",
    "second_hospital",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Patients and training of one machine.

    Parameters
    ----------
    patients
        Labelled ones, validation patients included.
    test_patients
        Of hospital A, and as many of hospital B.
    epochs
        Of fine-tuning.
    rate, head_rate, frozen_stages, batch
        As in `resnet.FineTuning`.
    size
        Height and width of an image.
    """

    patients: int
    test_patients: int
    epochs: int
    rate: float = 0.002
    head_rate: float = 0.01
    frozen_stages: int = 0
    batch: int = 32
    size: int = 128


PLANS = {
    "tiny": Plan(12, 24, 1, batch=16, size=32),
    "cpu": Plan(300, 400, 4),
    "gpu": Plan(1600, 2000, 12),
}


# Ways to ask --------------------------------------------------------------------------


def asked(plan: Plan) -> dict[str, phantom.Cohort]:
    """The test cohorts, by name of `WAYS`; all but the last are of one hospital."""
    home = ct_runs.patients(plan.test_patients, ct_runs.TEST_SEED, size=plan.size)
    other = ct_runs.patients(plan.test_patients, ct_runs.TEST_SEED, "B", plan.size)
    abnormal, normal = SHARES
    marked = phantom.with_marker(home, abnormal, normal, TEST_MARKER_SEED)
    return {
        "home": marked,
        "no_marker": home,
        "marker_reversed": phantom.with_marker(
            home, normal, abnormal, TEST_MARKER_SEED
        ),
        "lungs_blanked": blanked(marked),
        "nothing_left": blanked(home),
        "second_hospital": other,
    }


def blanked(cohort: phantom.Cohort) -> phantom.Cohort:
    """The same slices with nothing in the lungs: no vessels, no opacities, no air."""
    images = np.where(cohort.lungs, np.int16(LUNG_HU), cohort.images)
    return dataclasses.replace(cohort, images=images)


def carries(plain: phantom.Cohort, marked: phantom.Cohort) -> np.ndarray:
    """(patients,) who carries the letter, sorted by name."""
    changed = (plain.images != marked.images).any(axis=(1, 2))
    return ct.by_patient(plain.patient, changed.astype(float), "max")[1] == 1


def marker_log_ratio(has: np.ndarray) -> np.ndarray:
    """(patients,) ln P(letter or none | abnormal) - ln P(the same | normal)."""
    abnormal, normal = SHARES
    return np.where(
        has,
        math.log(abnormal / normal),
        math.log((1 - abnormal) / (1 - normal)),
    )


# Runs ---------------------------------------------------------------------------------


def learn(study: core.Study, plan: Plan, training: str) -> dict[str, Any]:
    """Fine-tune with or without the letter, and score all ways to ask.

    Returns
    -------
    dict
        ``scores``: way to (patients,), sorted by name; and how it was trained.
    """
    cohort = ct_runs.patients(plan.patients, DRAW, size=plan.size)
    if training == "with_marker":
        cohort = phantom.with_marker(cohort, *SHARES, MARKER_SEED)
    model, tuned = ct_runs.tune(study, cohort, "simulated", settings_of(study, plan))
    scores = {
        way: ct_runs.scores(study, model, some).round(5).tolist()
        for way, some in asked(plan).items()
    }
    return {
        "scores": scores,
        "best": tuned.best,
        "validation_loss": min(tuned.loss),
        "seconds": tuned.history.seconds[-1],
    }


def settings_of(study: core.Study, plan: Plan) -> resnet.FineTuning:
    """Both networks are trained in this way."""
    return resnet.FineTuning(
        epochs=plan.epochs,
        batch=plan.batch,
        rate=plan.rate,
        head_rate=plan.head_rate,
        frozen_stages=plan.frozen_stages,
        head_first=False,  # `ct_runs.tune` has given it one
        precision=ct_runs.precision_of(study),
    )


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both trainings, all ways to ask."""
    plan = PLANS[study.size]
    settings = {
        **dataclasses.asdict(plan),
        "how": dataclasses.asdict(settings_of(study, plan)),
        "ways": WAYS,
        "world": [phantom.VERSION, DRAW, ct_runs.TEST_SEED, *SHARES, LUNG_HU],
        "weights": ct_learning_curve.digest(resnet.simulated_weights()),
    }
    parts = [
        core.Part(
            name,
            {**settings, "training": name},
            1.0,
            functools.partial(learn, study, plan, name),
        )
        for name in TRAININGS
    ]
    results = dict(zip(TRAININGS, study.run(parts), strict=True))
    cohorts = asked(plan)
    home = ct_runs.known(cohorts["no_marker"])
    other = ct_runs.known(cohorts["second_hospital"])
    has = carries(cohorts["no_marker"], cohorts["home"])
    found = summary(results, home, other, has)
    return found, {
        "plan": dataclasses.asdict(plan),
        "shares": SHARES,
        "carriers": {
            "abnormal": float(has[home.label == 1].mean()),
            "normal": float(has[home.label == 0].mean()),
        },
        "trainings": {
            name: {key: value for key, value in one.items() if key != "scores"}
            for name, one in results.items()
        },
        "ways": WAYS,
    }


def summary(
    results: dict[str, dict[str, Any]],
    home: ct_runs.Known,
    other: ct_runs.Known,
    has: np.ndarray,
) -> dict[str, Any]:
    """Metrics with intervals by patient.

    Parameters
    ----------
    results
        As `learn` gives them, by training.
    home, other
        The test patients of hospitals A and B.
    has
        (patients,) which of those of A carry the letter as in training.
    """
    label, oracle = home.label, home.readers["oracle"]
    letter = marker_log_ratio(has)
    slices = 3  # the oracle is a mean over slices, the letter counts once
    found: dict[str, Any] = {
        "oracle_auroc": ct_runs.auroc_of(label, oracle),
        "oracle_auroc_second_hospital": ct_runs.auroc_of(
            other.label, other.readers["oracle"]
        ),
        "marker_alone_auroc": ct_runs.auroc_of(label, letter),
        "oracle_with_marker_auroc": ct_runs.auroc_of(label, slices * oracle + letter),
    }
    for name, result in results.items():
        scores = {way: np.array(some) for way, some in result["scores"].items()}
        for way in WAYS:
            truth = other.label if way == "second_hospital" else label
            found[f"auroc_{name}_{way}"] = ct_runs.auroc_of(truth, scores[way])
        found[f"auroc_lost_without_marker_{name}"] = ct_runs.lead_of(
            label, scores["home"], scores["no_marker"]
        )
    return {name: estimate.as_metric() for name, estimate in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "A letter in the image that tells the label: AUROC with it and without it."
    return core.main("ct_shortcut", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
