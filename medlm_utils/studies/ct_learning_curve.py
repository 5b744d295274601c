"""Chapter 5 over the number of labelled patients: scratch, frozen, fine-tuned.

Three ways to a network for the patients of hospital A, with equal numbers of labelled
patients: from random weights; as a linear head on the features of the weights that come
with the package; and as those weights fine-tuned. The validation patients who choose
weights and penalty are a fifth of the labelled ones. All are asked about the same test
patients, and beside them stand readers who know more: the exact likelihood ratio of the
opacities, the same ratio of what can be measured inside the true masks, the diameter of
the largest opacity; and the mean HU of the lungs, a reader who looks at nothing.

Source: chapter 5; `python -m medlm_utils.studies.ct_learning_curve`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils import phantom, resnet
from medlm_utils.studies import core, ct_runs
from medlm_utils.studies.bert_learning_curve import crossing

GOAL = 0.9  # of the gain over the ceiling, where the curve levels off
LEARNERS = ("scratch", "frozen", "finetuned")
DRAW = 41  # the seed of the labelled patients; each run has others of them
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Patients and trainings of one machine.

    Parameters
    ----------
    patients
        Labelled ones at each point, validation patients included.
    repeated, twice
        Points up to so many patients have three runs, or two; the others have one.
    test_patients
        The same for all.
    epochs, passes
        Of fine-tuning: every slice is seen so often, and so many slices in any case.
    epochs_scratch, passes_scratch
        From random weights.
    rate, head_rate, frozen_stages
        Of fine-tuning, as in `resnet.FineTuning`.
    rate_scratch
        Of all stages from random weights.
    size
        Height and width of an image.
    """

    patients: tuple[int, ...]
    repeated: int
    twice: int
    test_patients: int
    epochs: int
    passes: int
    epochs_scratch: int
    passes_scratch: int
    rate: float = 0.002
    head_rate: float = 0.01
    frozen_stages: int = 0
    rate_scratch: float = 0.1
    batch: int = 32
    size: int = 128


PLANS = {
    "tiny": Plan((10, 15), 10, 10, 24, 1, 1, 1, 1, batch=16, size=32),
    "cpu": Plan((25, 50, 100, 200, 400, 800, 1600), 100, 200, 500, 5, 0, 6, 2400),
    "gpu": Plan(
        (25, 50, 100, 200, 400, 800, 1600, 3200), 3200, 3200, 2000, 8, 0, 30, 30_000
    ),
}


# Runs ---------------------------------------------------------------------------------


def labelled(plan: Plan, count: int, seed: int) -> phantom.Cohort:
    """The labelled patients of a run: others for each seed, fewer among more.

    The runs of one seed share a cohort; those of several seeds are parts of one world.
    """
    every = ct_runs.patients(most(plan, seed), DRAW + seed, size=plan.size)
    return ct_runs.first(every, count)


def most(plan: Plan, seed: int) -> int:
    """The largest number of patients that this seed has a run for."""
    return max(count for count in plan.patients if seed < seeds_of(plan, count))


def seeds_of(plan: Plan, count: int) -> int:
    """How many runs a point has."""
    if count <= plan.repeated:
        return len(SEEDS)
    return 2 if count <= plan.twice else 1


def learn(
    study: core.Study, plan: Plan, learner: str, count: int, seed: int
) -> dict[str, Any]:
    """Train, and score the test patients.

    Returns
    -------
    dict
        ``score``, one a test patient, sorted by name; and how it was trained.
    """
    cohort = labelled(plan, count, seed)
    test = ct_runs.patients(plan.test_patients, ct_runs.TEST_SEED, size=plan.size)
    told: dict[str, Any]
    if learner == "frozen":
        model, penalty = ct_runs.fit_frozen(study, cohort, "simulated", seed)
        told = {"penalty": penalty}
    else:
        settings = settings_of(study, plan, learner, len(cohort), seed)
        weights = None if learner == "scratch" else "simulated"
        model, tuned = ct_runs.tune(study, cohort, weights, settings)
        told = {
            "epochs": settings.epochs,
            "best": tuned.best,
            "validation_loss": min(tuned.loss),
            "passes": sum(tuned.history.targets),
            "seconds": tuned.history.seconds[-1],
        }
    score = ct_runs.scores(study, model, test)
    return {"score": score.round(5).tolist(), "slices": len(cohort), **told}


def settings_of(
    study: core.Study, plan: Plan, learner: str, slices: int, seed: int
) -> resnet.FineTuning:
    """How a network is trained on labelled slices, a fifth of them held back."""
    precision = ct_runs.precision_of(study)
    seen = round(slices * ct_runs.SHARES[0])
    if learner == "scratch":
        return resnet.FineTuning(
            epochs=ct_runs.epochs_for(seen, plan.passes_scratch, plan.epochs_scratch),
            batch=plan.batch,
            rate=plan.rate_scratch,
            head_rate=plan.rate_scratch,
            head_first=False,
            seed=seed,
            precision=precision,
        )
    return resnet.FineTuning(
        epochs=ct_runs.epochs_for(seen, plan.passes, plan.epochs),
        batch=plan.batch,
        rate=plan.rate,
        head_rate=plan.head_rate,
        frozen_stages=plan.frozen_stages,
        head_first=False,  # `ct_runs.tune` has given it a better one
        seed=seed,
        precision=precision,
    )


# From runs to numbers -----------------------------------------------------------------


def row(
    learner: str, count: int, runs: Sequence[dict[str, Any]], known: ct_runs.Known
) -> dict[str, Any]:
    """A point of the figure: means over runs with intervals by patient."""
    every = [np.array(run["score"]) for run in runs]
    oracle = known.readers["oracle"]
    return {
        "learner": learner,
        "patients": count,
        "auroc": ct_runs.auroc_of(known.label, *every).as_metric(),
        "gain_over_ceiling": ct_runs.gain_of(known.label, oracle, *every).as_metric(),
        "runs": [
            {
                "gain_over_ceiling": ct_runs.gain(known.label, score, oracle),
                **{name: value for name, value in run.items() if name != "score"},
            }
            for score, run in zip(every, runs, strict=True)
        ],
    }


def summary(
    rows: Sequence[dict[str, Any]], last: dict[str, np.ndarray], known: ct_runs.Known
) -> dict[str, Any]:
    """Metrics at the largest number of patients, and how many patients a goal takes.

    Parameters
    ----------
    rows
        As `row` gives them, with rising numbers of patients.
    last
        Of each learner the scores of one run with all patients.
    known
        The test patients.
    """
    oracle, label = known.readers["oracle"], known.label
    count = max(one["patients"] for one in rows)
    found: dict[str, Any] = {"patients": {"value": count, "unit": "patients"}}
    for name, score in known.readers.items():
        found[f"auroc_{name}"] = ct_runs.auroc_of(label, score).as_metric()
        if name != "oracle":
            gain = ct_runs.gain_of(label, oracle, score).as_metric()
            found[f"gain_over_ceiling_{name}"] = gain
    for one in rows:
        if one["patients"] == count:
            found[f"auroc_{one['learner']}"] = one["auroc"]
            found[f"gain_over_ceiling_{one['learner']}"] = one["gain_over_ceiling"]
    found["auroc_gain_over_ceiling"] = found["gain_over_ceiling_finetuned"]
    found["auroc_lead_of_finetuned_over_scratch"] = ct_runs.lead_of(
        label, last["finetuned"], last["scratch"]
    ).as_metric()
    goals = {name: needed(rows, name) for name in LEARNERS}
    for name, value in goals.items():
        if value is not None:
            found[f"patients_for_goal_{name}"] = {"value": value, "unit": "patients"}
    return found


def needed(
    rows: Sequence[dict[str, Any]], learner: str, goal: float = GOAL
) -> float | None:
    """Patients at which a learner reaches the goal; None if it does not."""
    curve = [one for one in rows if one["learner"] == learner]
    found = crossing(
        [one["patients"] for one in curve],
        [one["gain_over_ceiling"]["value"] for one in curve],
        goal,
    )
    return None if np.isnan(found) else found


def equal_to(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many patients fine-tuning takes to be as good as scratch with all of them."""
    last = [one for one in rows if one["learner"] == "scratch"][-1]
    goal = last["gain_over_ceiling"]["value"]
    return {
        "scratch_patients": last["patients"],
        "gain_over_ceiling": goal,
        "finetuned_patients": needed(rows, "finetuned", goal),
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """All learners at all numbers of patients."""
    plan = PLANS[study.size]
    chosen = [
        (learner, count, seed)
        for count in plan.patients
        for learner in LEARNERS
        for seed in range(seeds_of(plan, count))
    ]
    results = study.run([_part(study, plan, *one) for one in chosen])
    test = ct_runs.patients(plan.test_patients, ct_runs.TEST_SEED, size=plan.size)
    known = ct_runs.known(test)
    points: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (learner, count, _), result in zip(chosen, results, strict=True):
        points.setdefault((learner, count), []).append(result)
    rows = [row(*point, runs, known) for point, runs in points.items()]
    last = {
        name: np.array(points[name, plan.patients[-1]][0]["score"]) for name in LEARNERS
    }
    return summary(rows, last, known), {
        "plan": dataclasses.asdict(plan),
        "goal": GOAL,
        "points": rows,
        "as_good_as_scratch": equal_to(rows),
    }


def _part(
    study: core.Study, plan: Plan, learner: str, count: int, seed: int
) -> core.Part:
    """A run; its settings hold what it depends on, so that plans may grow."""
    slices = 3 * count
    if learner == "frozen":
        how: dict[str, Any] = {"penalties": ct_runs.PENALTIES}
        cost = slices / 300
    else:
        settings = settings_of(study, plan, learner, slices, seed)
        how = dataclasses.asdict(settings)
        cost = settings.epochs * slices / 100
    kept = {
        "world": [phantom.VERSION, DRAW + seed, most(plan, seed), ct_runs.TEST_SEED],
        "test_patients": plan.test_patients,
        "size": plan.size,
        "patients": count,
        "seed": seed,
        "how": how,
        "weights": None if learner == "scratch" else digest(resnet.simulated_weights()),
    }
    make = functools.partial(learn, study, plan, learner, count, seed)
    return core.Part(f"{learner}-{count}-{seed}", kept, 5 + cost, make)


def digest(path: Path) -> str:
    """The beginning of a file's SHA-256; empty where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "AUROC against the number of labelled patients, for three ways to learn."
    return core.main("ct_learning_curve", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
