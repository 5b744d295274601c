"""How accuracy grows with labelled patients, for four learners of the same task.

A small encoder that starts from chance; the same after pre-training on hidden words of
notes without labels; MiniLM, pre-trained by others on general text and fine-tuned as in
the chapter; and runs of one to three words, TF-IDF, with a logistic regression. Each
learns to name the disease from a hospital's notes, and is asked about the same notes of
other patients, in usual and in other words. Whatever is chosen on validation notes,
these count among the labelled ones, for they need labels, too.

How long a training lasts follows one rule: so many passes over a note, however few
notes there are, and at least so many epochs. The look with the lowest loss on the
validation notes is kept.

Source: chapter 3; `python -m medlm_utils.studies.bert_learning_curve`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from medlm_utils import bert, clinic, metrics
from medlm_utils.studies import clinic_runs, core, nsp_ablation

LEARNERS = ("scratch", "pretrained_small", "minilm", "tfidf")
DRAWS = (clinic_runs.DRAW, 101, 102)  # of labelled notes, one for each seed
GOAL = 0.7  # of the ceiling: how many patients does each learner need for it?
FEWEST_LOOKS = 4  # at the validation notes, in a training


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which points of the curves are measured, and how long each training lasts."""

    patients: tuple[int, ...]  # labelled, for training and validation
    test_patients: int
    repeated_minilm: int  # up to so many patients, all draws; beyond, the first
    repeated: int  # the same for the other learners
    passes_minilm: int  # over a note, at least, in a training of MiniLM
    epochs_minilm: int  # at least
    passes_small: int
    epochs_small: int
    tfidf_c: tuple[float, ...]  # of which validation notes choose one
    longest: int = 256  # tokens of a note, for MiniLM


CS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
DOUBLING = (75, 150, 300, 600, 1200, 2400, 4800)
PLANS = {
    "tiny": Plan((24, 48), 16, 0, 24, 40, 1, 40, 1, (3.0, 30.0), longest=24),
    "cpu": Plan(DOUBLING, 400, 75, 300, 1600, 2, 12_000, 10, CS),
    "gpu": Plan((*DOUBLING, 9600, 19_200), 2000, 1200, 1200, 4000, 3, 24_000, 10, CS),
}


# What is learned, and from what -------------------------------------------------------


def epochs_for(notes: int, passes: int, least: int) -> int:
    """Epochs of a training: so many passes over a note, and at least so many epochs.

    Parameters
    ----------
    notes
        For training.
    passes
        Notes that are read in the whole training, at least.
    least
        Epochs, at least.
    """
    return max(least, math.ceil(passes / notes))


def sizes_of(plan: Plan, patients: int) -> clinic_runs.Sizes:
    """How many notes a point of the curve has."""
    return clinic_runs.Sizes(patients, plan.test_patients, plan.longest)


@functools.lru_cache(maxsize=1)
def small_material(plan: nsp_ablation.Plan) -> nsp_ablation.Material:
    """Notes and words of the small encoder, drawn once for all parts."""
    return nsp_ablation.draw(plan)


def learn_minilm(
    study: core.Study, plan: Plan, patients: int, seed: int
) -> dict[str, Any]:
    """Fine-tune MiniLM as in the chapter, only longer where there are few notes.

    Returns
    -------
    dict
        As `answered` gives it, and how it was trained.
    """
    model = clinic_runs.build(seed=seed, device=study.profile.device)
    notes = clinic_runs.material(model.tokenizer, sizes_of(plan, patients), DRAWS[seed])
    epochs = epochs_for(len(notes.train.rows), plan.passes_minilm, plan.epochs_minilm)
    settings = clinic_runs.settings_of(
        study,
        epochs=epochs,
        looks=math.ceil(FEWEST_LOOKS / epochs),
        seed=seed,
    )
    tuned = clinic_runs.fine_tune(study, model, notes, settings)
    return trained(model, notes, settings, tuned)


def learn_small(
    study: core.Study, plan: Plan, weights: str | None, patients: int, seed: int
) -> dict[str, Any]:
    """Train the small encoder of `nsp_ablation` with a head.

    Parameters
    ----------
    study, plan, patients, seed
        Of the part.
    weights
        The work file of a pre-trained encoder; None for one that starts from chance.

    Returns
    -------
    dict
        As `learn_minilm`.
    """
    small = nsp_ablation.PLANS[study.size]
    material = small_material(small)
    labels = clinic_runs.labels()
    model = nsp_ablation.classifier(study, small, material, labels, seed, weights)
    notes = clinic_runs.with_rows(
        clinic_runs.material(None, sizes_of(plan, patients), DRAWS[seed]),
        lambda part: nsp_ablation.cut(material.tokenizer, part).whole,
    )
    epochs = epochs_for(len(notes.train.rows), plan.passes_small, plan.epochs_small)
    settings = nsp_ablation.settings_of(study, small, epochs, seed)
    tuned = clinic_runs.train(study, model, notes, settings)
    return trained(model, notes, settings, tuned)


def trained(
    model: Any,
    notes: clinic_runs.Material,
    settings: bert.FineTuning,
    tuned: bert.Tuned,
) -> dict[str, Any]:
    """What a trained model answers, and how it was trained."""
    clinic_runs.calibrate(model, notes.val, settings.precision)
    test, other = (
        clinic_runs.scaled_logits(model, part.rows, settings.precision)
        for part in (notes.test, notes.other_words)
    )
    return {
        **answered(notes, test, other),
        "epochs": settings.epochs,
        "best": tuned.best,
        "looks": len(tuned.loss),
        "validation_loss": min(tuned.loss),
        "seconds": tuned.history.seconds[-1],
    }


def learn_tfidf(plan: Plan, patients: int, seed: int) -> dict[str, Any]:
    """A logistic regression on runs of one to three words.

    Its `c` is the one with the lowest loss on the validation notes, each at its best
    temperature, as the other learners have theirs.

    Returns
    -------
    dict
        As `answered` gives it, and the ``c``.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    notes = clinic_runs.material(None, sizes_of(plan, patients), DRAWS[seed])
    words = TfidfVectorizer(ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    known = words.fit_transform(notes.train.notes.text)
    asked = [
        words.transform(part.notes.text)
        for part in (notes.val, notes.test, notes.other_words)
    ]
    tried = []
    for c in plan.tfidf_c:
        val, test, other = regression_logits(known, notes.train.label, asked, c)
        warmth = clinic_runs.temperature(val, notes.val.label)
        loss = metrics.log_loss(notes.val.label, metrics.softmax(val / warmth))
        tried.append((loss, c, test / warmth, other / warmth))
    _, c, test, other = min(tried, key=lambda one: one[:2])
    return {**answered(notes, test, other), "c": c}


def regression_logits(
    known: Any, label: np.ndarray, asked: Sequence[Any], c: float
) -> list[np.ndarray]:
    """Fit a logistic regression, and ask it about other notes.

    Parameters
    ----------
    known, label
        (notes, features) and (notes,) numbers of classes.
    asked
        Sets of other notes, (notes, features) each.
    c
        How freely it fits: the inverse of its L2 penalty.

    Returns
    -------
    list of array
        (notes, classes) log-probabilities. A class without a note has that of one in
        as many notes, for its true one is not known to be zero.
    """
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=c, max_iter=1000).fit(known, label)
    filled = []
    for notes in asked:
        shape = (notes.shape[0], len(clinic_runs.labels()))
        logits = np.full(shape, -math.log(len(label)))
        logits[:, found.classes_] = found.predict_log_proba(notes)
        filled.append(logits)
    return filled


def answered(
    notes: clinic_runs.Material, test: np.ndarray, other: np.ndarray
) -> dict[str, Any]:
    """What a learner makes of each test note, as a work file can hold it.

    Parameters
    ----------
    notes
        Of the point.
    test, other
        (notes, classes) logits of the test notes, in usual and in other words.

    Returns
    -------
    dict
        ``right`` and ``right_other``, 0 or 1 a note; ``excess``, nats a note over the
        exact posterior; ``notes``, how many there were for training.
    """
    excess = clinic_runs.excess_of_each(metrics.softmax(test), notes.test)
    return {
        "right": (test.argmax(axis=1) == notes.test.label).astype(int).tolist(),
        "right_other": (other.argmax(axis=1) == notes.other_words.label)
        .astype(int)
        .tolist(),
        "excess": excess.round(6).tolist(),
        "notes": len(notes.train.notes),
    }


# Readers who overlook something -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """The test notes, and what perfect readers say of them.

    Parameters
    ----------
    usual, other
        In usual and in other words; without rows.
    blind
        (notes,) whether a reader who takes every denial for a finding names the truth.
    misleading
        (notes,) truth values: a denied finding would mislead such a reader.
    """

    usual: clinic_runs.Labelled
    other: clinic_runs.Labelled
    blind: np.ndarray
    misleading: np.ndarray


def asked_notes(plan: Plan) -> Asked:
    """The test notes once more, for what is said over all points.

    Denials mislead where a reader who is blind to negation, hedges and family gives
    another answer than the exact one, and a reader who is blind to hedges and family
    alone does not.
    """
    home = clinic.Clinic("A")
    notes = clinic_runs.material(None, sizes_of(plan, 24))
    usual, order = notes.test, np.argsort(home.diseases)
    exact, negation, rest = (
        home.posterior(usual.notes, reader)[:, order].argmax(axis=1)
        for reader in ("full note", "negation-blind", "hedge- and family-blind")
    )
    misleading = (negation != exact) & (rest == exact)
    return Asked(usual, notes.other_words, negation == usual.label, misleading)


# From points to numbers ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    """All runs of a learner with one number of patients.

    Parameters
    ----------
    learner, patients
        Which.
    runs
        What `answered` gave, for every seed.
    """

    learner: str
    patients: int
    runs: list[dict[str, Any]]

    def mean(self, name: str) -> np.ndarray:
        """(notes,) the mean over seeds of ``right``, ``right_other`` or ``excess``."""
        return np.mean([run[name] for run in self.runs], axis=0)


def over_ceiling(right: np.ndarray, notes: clinic_runs.Labelled) -> metrics.Estimate:
    """Accuracy over the ceiling, both from the same notes, with interval by patient."""
    best = notes.exact.max(axis=1)
    return metrics.ratio_by_patient(right, best, notes.notes.patient)


def crossing(
    patients: Sequence[int], reached: Sequence[float], goal: float = GOAL
) -> float:
    """How many patients it takes to reach a goal, between points by a line.

    Parameters
    ----------
    patients
        Of each point, rising. The line is straight over their logarithm.
    reached
        At each point.
    goal
        To be reached for the first time.

    Returns
    -------
    float
        The first number of patients itself where it is enough, so at most so many; NaN
        where no point reaches the goal.
    """
    enough = [place for place, share in enumerate(reached) if share >= goal]
    if not enough:
        return math.nan
    place = enough[0]
    if place == 0:
        return float(patients[0])
    below, above = reached[place - 1], reached[place]
    step = (goal - below) / (above - below)
    low, high = math.log(patients[place - 1]), math.log(patients[place])
    return math.exp(low + step * (high - low))


def needed(
    curves: Sequence[Sequence[Point]], usual: clinic_runs.Labelled
) -> dict[str, Any] | None:
    """Patients that a learner needs for the goal, or how many times those of another.

    Parameters
    ----------
    curves
        The points of the learner; for a ratio those of the other one behind them.
    usual
        The test notes.

    Returns
    -------
    dict or None
        A metric; its interval, by test patient, is left out where more than a tenth of
        the resamples do not reach the goal. None where the curves do not reach it.
    """
    best, who = usual.exact.max(axis=1), usual.notes.patient
    counts = [[point.patients for point in curve] for curve in curves]
    rights = [np.stack([p.mean("right") for p in c], axis=1) for c in curves]

    def of(best: np.ndarray, *rights: np.ndarray) -> float:
        found = [
            crossing(count, list(right.sum(axis=0) / best.sum()))
            for count, right in zip(counts, rights, strict=True)
        ]
        return found[0] if len(found) == 1 else found[0] / found[1]

    value = of(best, *rights)
    if math.isnan(value):
        return None
    unit = {"unit": "patients"} if len(curves) == 1 else {}
    try:
        found = metrics.interval_by_patient(of, who, best, *rights)
    except metrics.UndefinedError:
        return {"value": value, **unit}
    return {**found.as_metric(), **unit}


def row(point: Point, asked: Asked) -> dict[str, Any]:
    """A point of the figure: numbers with intervals by patient, and each run alone."""
    usual, who, elsewhere = asked.usual, asked.usual.notes.patient, asked.other
    told = ("epochs", "best", "looks", "validation_loss", "seconds", "c")
    mean_of = functools.partial(metrics.mean_by_patient, patients=who)
    other = point.mean("right_other")
    return {
        "learner": point.learner,
        "patients": point.patients,
        "seeds": len(point.runs),
        "accuracy": mean_of(point.mean("right")).as_metric(),
        "accuracy_over_ceiling": over_ceiling(point.mean("right"), usual).as_metric(),
        "excess_log_loss": mean_of(point.mean("excess"), unit="nats").as_metric(),
        "held_out_accuracy": metrics.mean_by_patient(
            other, elsewhere.notes.patient
        ).as_metric(),
        "held_out_over_ceiling": over_ceiling(other, elsewhere).as_metric(),
        "negation_notes_accuracy": _on_negations(point.mean("right"), asked),
        "runs": [
            {
                "accuracy": float(np.mean(run["right"])),
                "notes": run["notes"],
                **{name: run[name] for name in told if name in run},
            }
            for run in point.runs
        ],
    }


def _on_negations(values: np.ndarray, asked: Asked) -> dict[str, Any]:
    """The mean over notes in which a denial would mislead, as a metric."""
    chosen, who = asked.misleading, asked.usual.notes.patient
    return metrics.mean_by_patient(values[chosen], who[chosen]).as_metric()


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre-train the small encoder once, then measure all points."""
    plan, small = PLANS[study.size], nsp_ablation.PLANS[study.size]
    hidden = study.run([_pretraining(study, small)])[0]
    chosen = [
        (learner, patients, seed)
        for patients in plan.patients
        for learner in LEARNERS
        for seed in range(seeds_of(plan, learner, patients))
    ]
    results = study.run([_part(study, plan, hidden, *one) for one in chosen])
    points: dict[str, list[Point]] = {learner: [] for learner in LEARNERS}
    for (learner, patients, seed), result in zip(chosen, results, strict=True):
        if seed == 0:
            points[learner].append(Point(learner, patients, []))
        points[learner][-1].runs.append(result)
    found, series = summary(points, asked_notes(plan))
    return found, {
        "plan": dataclasses.asdict(plan),
        "pretraining": {k: v for k, v in hidden.items() if k != "weights"}
        | {"notes": small.patients, "steps": small.steps, "batch": small.batch},
        **series,
    }


def seeds_of(plan: Plan, learner: str, patients: int) -> int:
    """How many runs a point has: each has another draw of labelled notes, too."""
    most = plan.repeated_minilm if learner == "minilm" else plan.repeated
    return len(DRAWS) if patients <= most else 1


def _pretraining(study: core.Study, small: nsp_ablation.Plan) -> core.Part:
    """The encoder that `nsp_ablation` pre-trains on hidden words alone."""
    return core.Part(
        "pretrain",
        {"precision": study.profile.precision, **dataclasses.asdict(small)},
        1.0,
        lambda: nsp_ablation.pretrain(study, small, small_material(small), "mlm", 0),
    )


def _part(
    study: core.Study,
    plan: Plan,
    hidden: dict[str, Any],
    learner: str,
    patients: int,
    seed: int,
) -> core.Part:
    """A run; its settings hold only what it depends on, so that plans may grow."""
    weights = hidden["weights"] if learner == "pretrained_small" else None
    if learner == "tfidf":
        make = functools.partial(learn_tfidf, plan, patients, seed)
    elif learner == "minilm":
        make = functools.partial(learn_minilm, study, plan, patients, seed)
    else:
        make = functools.partial(learn_small, study, plan, weights, patients, seed)
    settings = {
        "patients": patients,
        "draw": DRAWS[seed],
        "test_patients": plan.test_patients,
        "training": _training(study, plan, learner, seed),
        "weights": weights,
    }
    name = f"{learner}-{patients}-{seed}"
    return core.Part(name, settings, _cost(plan, learner, patients), make)


def _training(study: core.Study, plan: Plan, learner: str, seed: int) -> dict[str, Any]:
    """What a training depends on, beside its notes."""
    if learner == "tfidf":
        return {"c": plan.tfidf_c}
    if learner == "minilm":
        settings = clinic_runs.settings_of(study, seed=seed)
        rule = {"passes": plan.passes_minilm, "epochs": plan.epochs_minilm}
        return dataclasses.asdict(settings) | rule | {"longest": plan.longest}
    return {
        "passes": plan.passes_small,
        "epochs": plan.epochs_small,
        "seed": seed,
        "precision": study.profile.precision,
        "small": dataclasses.asdict(nsp_ablation.PLANS[study.size]),
    }


def _cost(plan: Plan, learner: str, patients: int) -> float:
    """About the seconds of a run on two idle cores."""
    notes = 1.45 * patients  # for training
    if learner == "tfidf":
        return 1 + notes / 200
    if learner == "minilm":
        passes = max(plan.passes_minilm, plan.epochs_minilm * notes)
        return 0.025 * passes + 0.009 * (1.5 * notes + 3.4 * plan.test_patients)
    return 0.001 * max(plan.passes_small, plan.epochs_small * notes)


def summary(
    points: dict[str, list[Point]], asked: Asked
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of all points.

    Parameters
    ----------
    points
        Of each learner, with rising numbers of patients.
    asked
        The test notes.

    Returns
    -------
    tuple
        Metrics at the largest number of patients, each with its interval by patient,
        and ``patients_for_goal_...`` of those learners that reach it; and the series.
    """
    rows = {
        name: [row(point, asked) for point in curve] for name, curve in points.items()
    }
    last = {name: curve[-1] for name, curve in points.items()}
    usual = asked.usual
    found: dict[str, Any] = {
        "patients": {"value": last["minilm"].patients, "unit": "patients"},
        "ceiling_accuracy": usual.ceiling,
        "held_out_ceiling_accuracy": asked.other.ceiling,
    }
    for name in ("accuracy_over_ceiling", "excess_log_loss"):
        found |= {f"{name}_{one}": rows[one][-1][name] for one in LEARNERS}
    for name in ("held_out_accuracy", "negation_notes_accuracy"):
        for one in ("minilm", "tfidf"):
            found[f"{name}_{one}"] = rows[one][-1][name]
    exact = usual.exact.argmax(axis=1) == usual.label
    found["negation_notes_accuracy_negation_blind"] = _on_negations(asked.blind, asked)
    found["negation_notes_accuracy_exact"] = _on_negations(exact, asked)
    found |= _leads(last, points["minilm"], asked)
    goals = {name: needed([curve], usual) for name, curve in points.items()}
    found |= {f"patients_for_goal_{n}": goal for n, goal in goals.items() if goal}
    saved = needed([points["scratch"], points["pretrained_small"]], usual)
    if saved:
        found["times_fewer_patients_by_pretraining"] = saved
    series = {
        "goal": GOAL,
        "patients_for_goal": goals,
        "negation_notes": int(asked.misleading.sum()),
        "negation_blind_accuracy": float(np.mean(asked.blind)),
        "points": [one for curve in rows.values() for one in curve],
    }
    return found, series


def _leads(
    last: dict[str, Point], curve: Sequence[Point], asked: Asked
) -> dict[str, Any]:
    """By how much MiniLM is ahead of TF-IDF, and of itself one point before."""
    minilm, tfidf = last["minilm"], last["tfidf"]
    lead = minilm.mean("right") - tfidf.mean("right")
    other = minilm.mean("right_other") - tfidf.mean("right_other")
    grown = minilm.mean("right") - curve[-2].mean("right")
    return {
        "held_out_gain_minilm_over_tfidf": metrics.mean_by_patient(
            other, asked.other.notes.patient
        ).as_metric(),
        "negation_notes_gain_minilm_over_tfidf": _on_negations(lead, asked),
        "over_ceiling_gain_of_last_point_minilm": over_ceiling(
            grown, asked.usual
        ).as_metric(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Accuracy against the number of labelled patients, for four learners."
    return core.main("bert_learning_curve", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
