"""How much a fine-tuning varies with its seed, beside the doubt of its test patients.

The chapter's run is repeated: five times on the same notes, where the seed changes the
order of the notes and the dropout, and five times with the same seed on training notes
that are drawn anew. The head is no source of chance: it starts from a logistic
regression. The spread over runs stands beside the interval by patient of a single run.

Source: chapter 3; `python -m medlm_utils.studies.bert_seeds`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from medlm_utils import clinic, metrics
from medlm_utils.studies import clinic_runs, core

Z = 1.96  # half the width of a 95% interval, in standard deviations


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which runs are made; the run of the first seed on the first draw is in both."""

    seeds: tuple[int, ...]  # of the order of notes and of dropout, on the first draw
    draws: tuple[int, ...]  # of the training notes, with the first seed


PLANS = {
    "tiny": Plan((0, 1), (1, 101)),
    "cpu": Plan((0, 1, 2, 3, 4), (1, 101, 102, 103, 104)),
    "gpu": Plan((0, 1, 2, 3, 4), (1, 101, 102, 103, 104)),
}


# What the runs say --------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Standard deviation over runs with its 95% interval, by the chi-squared law.

    Few runs say little about it: with five the interval reaches from 0.6 to 2.9 times
    the value.

    Parameters
    ----------
    values
        Two or more, one for each run.

    Raises
    ------
    ValueError
        If there are fewer.

    Source: chapter 3.
    """
    from scipy import stats

    freedom = len(values) - 1
    if freedom < 1:
        raise ValueError(f"{len(values)} values; expected 2 or more.")
    deviation = float(np.std(values, ddof=1))
    low, high = (
        deviation * math.sqrt(freedom / stats.chi2.ppf(share, freedom))
        for share in (0.975, 0.025)
    )
    return {"value": deviation, "low": low, "high": high, "n": len(values)}


def disagreement(chosen: np.ndarray) -> np.ndarray:
    """In how many of all pairs of runs the answers to a note differ.

    Parameters
    ----------
    chosen
        (runs, notes) numbers of classes, of two runs or more.

    Returns
    -------
    ndarray
        (notes,) shares.

    Source: chapter 3.
    """
    pairs = itertools.combinations(chosen, 2)
    return np.mean([one != other for one, other in pairs], axis=0)


def together(probabilities: np.ndarray, test: clinic_runs.Labelled) -> dict[str, Any]:
    """What the runs of several seeds say about each other, and what their mean says.

    Parameters
    ----------
    probabilities
        (runs, notes, classes).
    test
        The notes.

    Returns
    -------
    dict
        Metrics with intervals by patient: ``disagreement``; accuracy and excess
        log-loss of the mean of the probabilities, the ensemble; its gain in accuracy
        over the mean of the runs.

    Source: Lakshminarayanan et al. 2017; chapter 3.
    """
    chosen, ensemble = probabilities.argmax(axis=2), probabilities.mean(axis=0)
    right = ensemble.argmax(axis=1) == test.label
    alone = (chosen == test.label).mean(axis=0)
    excess = clinic_runs.excess_of_each(ensemble, test)
    by_note = {
        "disagreement": disagreement(chosen),
        "ensemble_accuracy": right,
        "ensemble_gain": right - alone,
        "ensemble_excess_log_loss": excess,
    }
    units = {"ensemble_excess_log_loss": "nats"}
    return {
        name: metrics.mean_by_patient(
            values, test.notes.patient, unit=units.get(name, "")
        ).as_metric()
        for name, values in by_note.items()
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make all runs; compare what varies between them with what patients leave open."""
    plan = PLANS[study.size]
    first, same_seed = (plan.draws[0], plan.seeds[0]), plan.seeds[0]
    of_seeds = [(first[0], seed) for seed in plan.seeds]
    of_draws = [(draw, same_seed) for draw in plan.draws]
    chosen = list(dict.fromkeys([*of_seeds, *of_draws]))
    results = study.run([_part(study, *one) for one in chosen])
    found = dict(zip(chosen, results, strict=True))
    seeds, draws = ([found[one] for one in arm] for arm in (of_seeds, of_draws))
    rows = [_row(one, found[one]) for one in chosen]
    return _metrics(seeds, draws, _test_notes(study)), {"runs": rows}


def _part(study: core.Study, draw: int, seed: int) -> core.Part:
    sizes, settings = (
        clinic_runs.sizes_of(study),
        clinic_runs.settings_of(study, seed=seed),
    )
    make = functools.partial(
        clinic_runs.train_and_measure, study, sizes, settings, draw
    )
    depends_on = clinic_runs.identity(sizes, settings, draw)
    return core.Part(f"draw-{draw}-seed-{seed}", depends_on, 1.0, make)


def _test_notes(study: core.Study) -> clinic_runs.Labelled:
    """The test notes once more, for what several runs say together; without rows."""
    home = clinic.Clinic("A")
    patients = clinic_runs.sizes_of(study).test_patients
    notes = home.draw(patients, clinic_runs.TEST_SEED)
    return clinic_runs.labelled(home, notes)


def _row(which: tuple[int, int], result: dict[str, Any]) -> dict[str, Any]:
    """One run in the series."""
    return {
        "draw": which[0],
        "seed": which[1],
        **{name: value for name, value in result.items() if name != "logits"},
    }


def _metrics(
    seeds: Sequence[dict[str, Any]],
    draws: Sequence[dict[str, Any]],
    test: clinic_runs.Labelled,
) -> dict[str, Any]:
    """The metrics of the record."""
    accuracy = [one["test"]["accuracy"]["value"] for one in seeds]
    of_draws = [one["test"]["accuracy"]["value"] for one in draws]
    widths = [
        (one["test"]["accuracy"]["high"] - one["test"]["accuracy"]["low"]) / 2
        for one in seeds
    ]
    deviation = spread(accuracy)
    over_ceiling = [one["test"]["accuracy_over_ceiling"] for one in seeds]
    excess = [one["test"]["excess_log_loss"]["value"] for one in seeds]
    other = [one["other_words"]["accuracy"]["value"] for one in seeds]
    probabilities = np.stack([metrics.softmax(one["logits"]) for one in seeds])
    return {
        "accuracy_over_ceiling": core.over_seeds(over_ceiling),
        "accuracy": core.over_seeds(accuracy),
        "accuracy_of_new_draws": core.over_seeds(of_draws),
        "ceiling_accuracy": test.ceiling,
        "excess_log_loss": {**core.over_seeds(excess), "unit": "nats"},
        "held_out_words_accuracy": core.over_seeds(other),
        "held_out_words_ceiling": seeds[0]["other_words"]["ceiling"],
        "sd_over_seeds": deviation,
        "sd_over_draws": spread(of_draws),
        "half_width_by_seed": {
            name: value if name == "n" else Z * value
            for name, value in deviation.items()
        },
        "half_width_by_patient": float(np.mean(widths)),
        **together(probabilities, test),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "How much a fine-tuning varies with its seed and with its training notes."
    return core.main("bert_seeds", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
