"""What each detector costs: time and memory by the number of rows, and our share of it.

Made rows that resemble embeddings: many columns, few directions, groups, length 1. Each
detector learns from so many of them and scores as many new ones, in a process of its
own, few rows first; so the memory is that of this detector alone. The process is
stopped when fitting or scoring takes longer than the limit. How time grows is read off
the two largest numbers of rows that were reached.

What our code adds is measured beside the library's own call with equal settings, on the
same rows, in one process and in turns. `robust_z` and `ecod` are our own, without a
call to compare them with.

Source: chapter 4; `python -m medlm_utils.studies.anomaly_cost`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import anomaly
from medlm_utils.runtime import SEED, MedlmError

if TYPE_CHECKING:
    # Elsewhere it is imported where it is used: it loads torch, which the processes
    # that are measured do without.
    from medlm_utils.studies import core

START_S = 300.0  # how long a process may take to start and to make its rows
GOAL = 1.1  # our time over the library's


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which numbers of rows are tried, and for how long."""

    rows: tuple[int, ...]
    columns: int
    limit_s: float  # of a fit, and of scoring
    repeats: int  # at most, of what is quick
    enough_s: float  # after so long nothing is repeated
    ratio_rows: int
    ratio_repeats: int


PLANS = {
    "tiny": Plan((100, 300), 16, 60.0, 1, 1.0, 200, 2),
    "cpu": Plan((1000, 10_000, 100_000), 384, 120.0, 5, 10.0, 3000, 9),
    "gpu": Plan((1000, 10_000, 100_000), 384, 120.0, 5, 10.0, 3000, 9),
}


# The rows -----------------------------------------------------------------------------


def embedding_like(
    rows: int, columns: int, seed: int, directions: int = 16, groups: int = 12
) -> np.ndarray:
    """Rows like embeddings: groups in a few bent directions, a little noise, length 1.

    Parameters
    ----------
    rows, columns
        Of the result.
    seed
        Of the rows; the groups and directions are the same for all.
    directions
        In which the rows differ, before they are bent.
    groups
        How many.

    Returns
    -------
    ndarray
        (rows, columns) of float32, made a block at a time so that nothing else is held.
    """
    world = np.random.default_rng(SEED)
    centres = 2 * world.normal(size=(groups, directions))
    axes = world.normal(size=(directions, columns)) / math.sqrt(directions)
    rng = np.random.default_rng(seed)
    made = np.empty((rows, columns), np.float32)
    for start in range(0, rows, 1000):
        block = made[start : start + 1000]
        group = rng.integers(groups, size=len(block))
        place = centres[group] + rng.normal(size=(len(block), directions))
        block[:] = np.tanh(place @ axes) + 0.1 * rng.normal(size=block.shape)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return made


# Each detector in a process of its own ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process measures."""

    detector: str
    rows: tuple[int, ...]  # ascending
    columns: int
    limit_s: float
    repeats: int
    enough_s: float


def measure(job: Job) -> list[dict[str, Any]]:
    """Time and memory of a detector, in a process of its own.

    Parameters
    ----------
    job
        What to measure.

    Returns
    -------
    list of dict
        One for each number of rows: `fit` and `score`, lists of seconds; `peak_mb`, of
        memory beyond that of the rows, None where it was stopped or the system does not
        say; `stopped`, None or in what: ``"fit"``, ``"score"``, ``"rows"`` if these
        were already too many, ``"not tried"`` after a smaller one was stopped.

    Raises
    ------
    MedlmError
        If the detector refuses the rows, or the process does not start.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, job), daemon=True)
    child.start()
    sender.close()  # so that the end of the child is the end of its messages
    try:
        return _listen(receiver, job)
    finally:
        child.kill()
        child.join()
        receiver.close()


# What a process does next when it has said this, as far as it can be stopped in it.
_NEXT = {"start": "start", "rows": "fit", "fit": "score", "score": "fit"}


def _listen(receiver: Connection, job: Job) -> list[dict[str, Any]]:
    """What the process says, until it is done, stopped or gone."""
    found: list[dict[str, Any]] = [
        {"fit": [], "score": [], "peak_mb": None, "stopped": "not tried"}
        for _ in job.rows
    ]
    sizes, said, one = iter(found), "start", found[0]
    while True:
        doing = _NEXT.get(said, "rows")
        heard = _hear(receiver, job.limit_s if doing in ("fit", "score") else START_S)
        if heard is None and doing == "start":
            raise MedlmError(
                f"The process for the detector {job.detector!r} did not start. Close "
                "what else runs on this machine, and try again."
            )
        if heard is None:
            stopped = next(sizes, one) if doing == "rows" else one
            stopped["stopped"] = doing
            return found
        said, value = heard
        if said == "refused":
            raise MedlmError(value)
        if said == "done":
            return found
        if said == "rows":
            one = next(sizes)
            one["stopped"] = None
        elif said == "peak_mb":
            one["peak_mb"] = value
        elif said != "ready":
            one[said].append(value)


def _hear(receiver: Connection, limit_s: float) -> tuple[str, Any] | None:
    """The next message; None after the limit, or when there are none any more.

    A process that the system ends, for its memory, ends its messages.
    """
    try:
        return receiver.recv() if receiver.poll(limit_s) else None
    except EOFError:
        return None


def _measure(sender: Connection, job: Job) -> None:
    """The process: says after each step what it was, and how long it took."""
    try:
        few = embedding_like(60, job.columns, seed=0)
        anomaly.detector(job.detector).fit(few).anomaly_score(few)  # loads its library
        sender.send(("ready", None))
        at_start = peak_bytes()
        for rows in job.rows:
            known, new = (embedding_like(rows, job.columns, seed) for seed in (1, 2))
            sender.send(("rows", rows))
            _repeat(sender, job, known, new)
            sender.send(("peak_mb", _beyond(at_start, known.nbytes + new.nbytes)))
        sender.send(("done", None))
    except MedlmError as error:
        sender.send(("refused", str(error)))


def _repeat(sender: Connection, job: Job, known: np.ndarray, new: np.ndarray) -> None:
    """Fit and score as often as the job says, or until it has taken long enough."""
    started = time.perf_counter()
    for _ in range(job.repeats):
        fitting = time.perf_counter()
        fitted = anomaly.detector(job.detector, seed=SEED).fit(known)
        scoring = time.perf_counter()
        sender.send(("fit", scoring - fitting))
        scoring = time.perf_counter()
        fitted.anomaly_score(new)
        done = time.perf_counter()
        sender.send(("score", done - scoring))
        if done - started > job.enough_s:
            return


def _beyond(at_start: int | None, rows_bytes: int) -> float | None:
    """MB of memory that were held beyond those at the start and those of the rows."""
    peak = peak_bytes()
    if peak is None or at_start is None:
        return None
    return max(0.0, (peak - at_start - rows_bytes) / 1e6)


def peak_bytes() -> int | None:
    """The most memory this process has held so far; None where unknown.

    Linux alone: what `resource` says of a new process holds the memory of the old one.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            peak = next(line for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(peak.split()[1]) * 1024


# Beside the library's own call --------------------------------------------------------


Call = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Settings that the library's call needs to be told; the others are our defaults.
EQUAL: dict[str, dict[str, Any]] = {
    "kernel_density": {"bandwidth": 0.2},
    "gaussian_mixture": {"reg_covar": 0.1},
}


def ours(name: str, known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Scores of new rows, (rows,), from our detector.

    Parameters
    ----------
    name
        A key of `LIBRARY`.
    known, new
        (rows, columns) to learn from and to score.
    """
    made = anomaly.detector(name, seed=SEED, **EQUAL.get(name, {}))
    return made.fit(known).anomaly_score(new)


def _ledoit_wolf(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.covariance import LedoitWolf
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known)
    fitted = LedoitWolf().fit(scaler.transform(known))
    return np.sqrt(fitted.mahalanobis(scaler.transform(new)))


def _neighbours(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=5).fit(known).kneighbors(new)[0].mean(axis=1)


def _outlier_factor(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import LocalOutlierFactor

    fitted = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(known)
    return -fitted.score_samples(new)


def _density(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import KernelDensity

    bandwidth = EQUAL["kernel_density"]["bandwidth"]
    return -KernelDensity(bandwidth=bandwidth).fit(known).score_samples(new)


def _mixture(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.mixture import GaussianMixture
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known)
    reg_covar = EQUAL["gaussian_mixture"]["reg_covar"]
    fitted = GaussianMixture(5, reg_covar=reg_covar, random_state=SEED)
    fitted.fit(scaler.transform(known))
    return -fitted.score_samples(scaler.transform(new))


def _forest(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=SEED).fit(known).score_samples(new)


def _svm(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.svm import OneClassSVM

    return -OneClassSVM(nu=0.05).fit(known).score_samples(new)


LIBRARY: dict[str, Call] = {
    "mahalanobis": _ledoit_wolf,
    "knn": _neighbours,
    "lof": _outlier_factor,
    "kernel_density": _density,
    "gaussian_mixture": _mixture,
    "isolation_forest": _forest,
    "one_class_svm": _svm,
}


def in_turns(name: str, plan: Plan) -> dict[str, Any]:
    """Our detector and the library's call, timed in turns on the same rows.

    Parameters
    ----------
    name
        A key of `LIBRARY`.
    plan
        Of the run.

    Returns
    -------
    dict
        `ours` and `library`, lists of seconds of fitting and scoring.
    """
    known, new = (embedding_like(plan.ratio_rows, plan.columns, s) for s in (1, 2))
    calls: dict[str, Call] = {
        "ours": functools.partial(ours, name),
        "library": LIBRARY[name],
    }
    for call in calls.values():
        call(known[:60], new[:60])  # loads what it needs
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for repeat in range(plan.ratio_repeats):
        # Each repeat begins with the other one: none always runs on a rested machine.
        for which in list(calls)[:: 1 if repeat % 2 else -1]:
            started = time.perf_counter()
            calls[which](known, new)
            seconds[which].append(time.perf_counter() - started)
    return seconds


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure every detector at every number of rows, then beside the library."""
    plan = PLANS[study.size]
    jobs = [_job(name, plan) for name in anomaly.DETECTORS]
    found = study.run([_cost_part(job) for job in jobs])
    turns = study.run([_ratio_part(name, plan) for name in LIBRARY])
    rows = [
        row(job.detector, count, one)
        for job, sizes in zip(jobs, found, strict=True)
        for count, one in zip(job.rows, sizes["sizes"], strict=True)
    ]
    return summary(plan, rows, dict(zip(LIBRARY, turns, strict=True)))


def _job(name: str, plan: Plan) -> Job:
    return Job(name, plan.rows, plan.columns, plan.limit_s, plan.repeats, plan.enough_s)


def _cost_part(job: Job) -> core.Part:
    from medlm_utils.studies import core

    settings = dataclasses.asdict(job)
    return core.Part(job.detector, settings, 1.0, lambda: {"sizes": measure(job)})


def _ratio_part(name: str, plan: Plan) -> core.Part:
    from medlm_utils.studies import core

    settings = {
        "detector": name,
        "rows": plan.ratio_rows,
        "columns": plan.columns,
        "repeats": plan.ratio_repeats,
        "equal": EQUAL.get(name, {}),
    }
    make = functools.partial(in_turns, name, plan)
    return core.Part(f"ratio-{name}", settings, 1.0, make)


def row(detector: str, rows: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """One point of the figure: median seconds, or where it was stopped.

    Parameters
    ----------
    detector, rows
        Which point.
    found
        As `measure` returns it.
    """
    fit, score = (
        statistics.median(found[name]) if found[name] else None
        for name in ("fit", "score")
    )
    seconds = None if fit is None or score is None else fit + score
    return {
        "detector": detector,
        "rows": rows,
        "fit_seconds": fit,
        "score_seconds": score,
        "seconds": seconds,
        "repeats": len(found["score"]),
        "peak_mb": found["peak_mb"],
        # If a later repeat was stopped, the first one counts.
        "stopped": found["stopped"] if seconds is None else None,
    }


def growth(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent b of seconds = a * rows**b, between the two largest numbers of rows.

    Parameters
    ----------
    points
        Rows and seconds.

    Returns
    -------
    float or None
        None with fewer than two points. 1: twice the rows take twice as long; 2: four
        times.
    """
    if len(points) < 2:
        return None
    (rows_a, seconds_a), (rows_b, seconds_b) = sorted(points)[-2:]
    return math.log(seconds_b / seconds_a) / math.log(rows_b / rows_a)


def curve(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the time of one detector grows, and what the stopped sizes would take.

    Parameters
    ----------
    name
        Of the detector.
    rows
        The points of the figure, of all detectors.
    """
    own = [row for row in rows if row["detector"] == name]
    points = [(row["rows"], row["seconds"]) for row in own if row["seconds"]]
    exponent = growth(points)
    last, seconds = max(points, default=(0, 0.0))
    expected = {
        str(row["rows"]): seconds * (row["rows"] / last) ** exponent
        for row in own
        if row["rows"] > last and exponent is not None
    }
    return {
        "exponent": exponent,
        "largest_rows": last,
        "seconds": seconds,
        "peak_mb": next((r["peak_mb"] for r in own if r["rows"] == last), None),
        "expected_seconds": expected,
    }


def summary(
    plan: Plan, rows: Sequence[dict[str, Any]], turns: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of all measurements.

    Parameters
    ----------
    plan
        Of the run.
    rows
        The points of the figure.
    turns
        Of each detector with a library's call, what `in_turns` found.
    """
    curves = {name: curve(name, rows) for name in anomaly.DETECTORS}
    ratios = {name: _ratio(found) for name, found in turns.items()}
    metrics: dict[str, Any] = {}
    for name, one in curves.items():
        metrics[f"largest_rows_{name}"] = one["largest_rows"]
        metrics[f"seconds_{name}"] = {"value": one["seconds"], "unit": "s"}
        if one["exponent"] is not None:
            metrics[f"growth_exponent_{name}"] = one["exponent"]
        if one["peak_mb"] is not None:
            metrics[f"peak_mb_{name}"] = {"value": one["peak_mb"], "unit": "MB"}
    metrics |= {f"ratio_{name}": ratio for name, ratio in ratios.items()}
    metrics["largest_ratio"] = max(ratio["value"] for ratio in ratios.values())
    metrics["ratios_within_goal"] = sum(r["value"] <= GOAL for r in ratios.values())
    metrics["stopped"] = sum(row["stopped"] is not None for row in rows)
    return metrics, {
        "plan": dataclasses.asdict(plan),
        "goal": GOAL,
        "rows": list(rows),
        "curves": curves,
        "turns": {n: {**found, "ratio": ratios[n]} for n, found in turns.items()},
        "equal_settings": EQUAL,
    }


def _ratio(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    from medlm_utils.studies import core

    pairs = zip(found["ours"], found["library"], strict=True)
    return core.over_repeats([a / b for a, b in pairs])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    from medlm_utils.studies import core

    about = "Time and memory of each detector by its rows, beside the library's call."
    return core.main("anomaly_cost", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
