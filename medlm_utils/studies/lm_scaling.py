"""How a language model's loss falls with its size, its data and its compute.

Many models learn the clinic's notes, each from notes that it never sees twice. The
clinic's entropy is known, so what is left to learn is known too: the excess over the
floor, in nats per token. Against compute C the best of them follow excess = a C^-b, a
straight line on logarithmic axes, and no constant has to be guessed.

Source: chapter 2; `python -m medlm_utils.studies.lm_scaling`. The question is that of
Kaplan et al. 2020.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlm_utils import clinic, runtime, text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core
from medlm_utils.transformer import TransformerLM


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which models are trained: every width for every number of steps, every seed."""

    widths: tuple[int, ...]  # d_model
    steps: tuple[int, ...]  # each a training of its own, with its own schedule
    seeds: int
    batch: int  # notes
    test_notes: int  # fresh ones, on which all models are scored
    heads: int = 4
    blocks: int = 3
    longest: int = 224  # positions; a note has about 100 tokens


GRIDS = {
    "tiny": Grid((8, 16), (3, 6, 12), 2, 4, 20),
    "cpu": Grid((32, 64, 96, 128), (125, 250, 500, 1000, 2000), 3, 10, 600),
    "gpu": Grid((32, 64, 128, 256), (250, 500, 1000, 2000, 4000), 3, 32, 2000),
}

FEWEST_PATIENTS = 5000  # whose notes show every word that the clinic uses
TEST_SEED = 7  # of the fresh notes; training notes come from `runtime.SEED`


@dataclasses.dataclass(frozen=True)
class Law:
    """excess = a C^-b: the straight line on logarithmic axes."""

    a: float
    b: float

    def excess(self, compute: float) -> float:
        """Nats per token over the floor that it foresees for so much compute."""
        return self.a * compute**-self.b


def fit_law(compute: Iterable[float], excess: Iterable[float]) -> Law:
    """Least squares of log excess on log compute.

    Parameters
    ----------
    compute
        Operations of each run.
    excess
        Nats per token over the floor, above 0.

    Source: chapter 2.
    """
    slope, height = np.polyfit(np.log(list(compute)), np.log(list(excess)), 1)
    return Law(float(np.exp(height)), float(-slope))


def efficient(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that no cheaper run beats, cheapest first."""
    best, chosen = np.inf, []
    for run in sorted(runs, key=lambda run: run["compute"]):
        if run["excess"] < best:
            best = run["excess"]
            chosen.append(run)
    return chosen


def guessed_floor(runs: Sequence[dict[str, Any]]) -> float:
    """The constant c for which nats = c + a C^-b fits best: a floor nobody told it.

    Parameters
    ----------
    runs
        At least three, with ``compute`` and ``nats_per_token``.

    Source: as Kaplan et al. 2020 must do where no floor is known; chapter 2.
    """
    compute = np.array([run["compute"] for run in runs])
    nats = np.array([run["nats_per_token"] for run in runs])
    candidates = np.linspace(0, 0.999, 1000) * nats.min()

    def error(floor: float) -> float:
        law = fit_law(compute, nats - floor)
        return float(np.square(floor + law.a * compute**-law.b - nats).sum())

    return float(min(candidates, key=error))


# The notes and one training -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Notes:
    """Rows for training and test, and what the test notes' exact likelihood is."""

    vocabulary: int
    train: list[Tensor]
    test: list[Tensor]
    floor: np.ndarray  # (test notes,) nats of each note
    bigram: float  # nats per token

    @property
    def floor_nats_per_token(self) -> float:
        """The exact entropy of the test notes."""
        return float(self.floor.sum()) / sum(len(row) - 1 for row in self.test)


def draw(grid: Grid) -> Notes:
    """Notes for the longest training of every seed, and fresh ones for the test.

    Raises
    ------
    MedlmError
        If the fresh notes hold a word that the tokenizer does not know: the floor is
        that of the text as it stands.
    """
    world = clinic.Clinic()
    # A patient has at least one note, so there are enough.
    needed = grid.seeds * max(grid.steps) * grid.batch
    drawn = world.draw(max(needed, FEWEST_PATIENTS), runtime.SEED).text
    fresh = world.draw(grid.test_notes, TEST_SEED)[: grid.test_notes]
    tokenizer = text.WordTokenizer.train(drawn)
    if unknown := tokenizer.unknown(fresh.text):
        raise MedlmError(
            f"The fresh notes hold {', '.join(unknown)}, which the tokenizer does not "
            "know; expected no unknown word. Train it on more notes."
        )
    train = text.documents(tokenizer, drawn[:needed])
    test = text.documents(tokenizer, fresh.text)
    bigram = text.KneserNeyBigram(train, len(tokenizer)).nats(test)
    floor = -world.log_likelihood(fresh)
    return Notes(len(tokenizer), train, test, floor, bigram.nats_per_token)


def learning_rate(d_model: int) -> float:
    """The peak: larger models get smaller steps, by the square root of their width."""
    return 4e-3 * (32 / d_model) ** 0.5


def operations(model: TransformerLM, tokens: int) -> float:
    """6 for each number of a matrix and token: 2 forward, 4 backward.

    The table of embeddings counts once, as the output layer that it is too; positions
    and attention's own products, a few percent here, are left out.

    Source: Kaplan et al. 2020, table 1.
    """
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return 6.0 * tokens * (matrices - model.positions.weight.numel())


def train(
    study: core.Study, grid: Grid, notes: Notes, width: int, steps: int, seed: int
) -> dict[str, Any]:
    """Train one model of the grid and score it on the fresh notes."""
    torch.manual_seed(seed)
    model = TransformerLM(
        notes.vocabulary, grid.longest, width, grid.heads, 3 * width, grid.blocks
    ).to(study.profile.device)
    # As many notes as the training needs, other ones for each seed: none comes twice.
    first = seed * max(grid.steps) * grid.batch
    rows = notes.train[first : first + steps * grid.batch]
    history = study.fit(
        model,
        text.DocumentBatches(rows, grid.batch, seed).at,
        steps=steps,
        learning_rate=learning_rate(width),
        warm_up=min(100, steps // 5),
        precision=study.profile.precision,
        checkpoint_every=500,
    )
    nats = training.evaluate(model, notes.test)
    return {
        "d_model": width,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": sum(history.targets),
        "compute": operations(model, sum(history.targets)),
        "seed": seed,
        "nats_per_token": nats.nats_per_token,
        "excess": (nats.total - float(notes.floor.sum())) / nats.tokens,
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the whole grid, fit the law for each seed, and say how sure it is."""
    grid = GRIDS[study.size]
    notes = draw(grid)
    make = functools.partial(train, study, grid, notes)
    settings = {"precision": study.profile.precision, "longest_run": max(grid.steps)}
    settings |= {"batch": grid.batch, "test_notes": grid.test_notes}
    runs = study.run(
        [
            core.Part(
                "width-{}-steps-{}-seed-{}".format(*chosen),
                {**settings, "chosen": chosen},
                float(chosen[1] * (chosen[0] + 16)),
                functools.partial(make, *chosen),
            )
            for seed in range(grid.seeds)
            for width in grid.widths
            for steps in grid.steps
            for chosen in [(width, steps, seed)]
        ]
    )
    return summary(grid, notes, runs)


def summary(
    grid: Grid, notes: Notes, runs: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of all runs."""
    fronts = [
        efficient([r for r in runs if r["seed"] == seed]) for seed in range(grid.seeds)
    ]
    laws = [
        fit_law([r["compute"] for r in f], [r["excess"] for r in f]) for f in fronts
    ]
    all_efficient = [r for front in fronts for r in front]
    pooled = fit_law(
        [r["compute"] for r in all_efficient], [r["excess"] for r in all_efficient]
    )
    last = [min(r["excess"] for r in front) for front in fronts]
    floor = notes.floor_nats_per_token
    metrics = {
        "floor_nats_per_token": {"value": floor, "unit": "nats/token"},
        "bigram_nats_per_token": {"value": notes.bigram, "unit": "nats/token"},
        "law_exponent": core.over_seeds([law.b for law in laws]),
        "law_error_percent": 100 * law_error(pooled, all_efficient),
        "best_excess_percent": core.over_seeds([100 * e / floor for e in last])
        | {"unit": "%"},
        "floor_guessed_by_fit": core.over_seeds([guessed_floor(f) for f in fronts])
        | {"unit": "nats/token"},
    }
    series = {
        "runs": runs,
        "efficient": [
            {"seed": r["seed"], "compute": r["compute"], "excess": r["excess"]}
            for r in all_efficient
        ],
        "law": dataclasses.asdict(pooled),
        "law_of_seed": [dataclasses.asdict(law) for law in laws],
        "floor_nats_per_token": floor,
        "bigram_nats_per_token": notes.bigram,
        "test_tokens": sum(len(row) - 1 for row in notes.test),
    }
    return metrics, series


def law_error(law: Law, runs: Sequence[dict[str, Any]]) -> float:
    """How far the law is from a run: exp of the mean absolute log ratio, minus 1."""
    logs = [abs(np.log(r["excess"] / law.excess(r["compute"]))) for r in runs]
    return float(np.expm1(np.mean(logs)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Loss of a language model against size, data and compute, over the floor."
    return core.main("lm_scaling", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
