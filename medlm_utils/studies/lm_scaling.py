"""How a language model's loss falls with its size, its data and its compute.

Many models learn the clinic's notes, each from notes that it never sees twice. The
clinic's entropy is known, so what is left to learn is known too: the excess over the
floor, in nats per token. Does the best excess follow a law of the compute C,
excess = a C^-b, a straight line on logarithmic axes? The slope from one efficient run
to the next says, and a last, much longer training that is left out of the fit.

Every model also writes notes, of which the clinic's grammar says whether they are any.

Source: chapter 2; `python -m medlm_utils.studies.lm_scaling`. The question is that of
Kaplan et al. 2020.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlm_utils import clinic, metrics, runtime, text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core, lm_speed
from medlm_utils.transformer import TransformerLM, generate


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which models are trained: every width for every number of steps, every seed."""

    widths: tuple[int, ...]  # d_model
    steps: tuple[int, ...]  # each a training of its own, with its own schedule
    seeds: int
    batch: int  # notes
    test_notes: int  # fresh ones, on which all models are scored
    long_steps: int  # of one more training of the widest model, which the law foresees
    written: int  # notes that each model writes
    heads: int = 4
    blocks: int = 3
    longest: int = 224  # positions; a note has about 100 tokens


GRIDS = {
    "tiny": Grid((8, 16), (3, 6, 12), 2, 4, 20, 24, 3),
    "cpu": Grid(
        (32, 64, 96, 128), (125, 250, 500, 1000, 2000), 3, 10, 600, 16_000, 200
    ),
    "gpu": Grid(
        (32, 64, 128, 256), (250, 500, 1000, 2000, 4000), 3, 32, 2000, 32_000, 500
    ),
}

# The law is fitted where the models know more than pairs of words: runs whose excess is
# below this share of the floor. It was fixed before the long training was run.
KNEE = 0.15

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


def past_the_knee(
    front: Sequence[dict[str, Any]], floor: float
) -> list[dict[str, Any]]:
    """The runs of a front to which the law is fitted: see `KNEE`.

    Where too few are left for a line, as in a tiny run, the last two of the front.
    """
    chosen = [run for run in front if run["excess"] < KNEE * floor]
    return chosen if len(chosen) >= 2 else list(front[-2:])


def law_of(runs: Sequence[dict[str, Any]]) -> Law:
    """`fit_law` of runs."""
    return fit_law([r["compute"] for r in runs], [r["excess"] for r in runs])


def slopes(front: Sequence[dict[str, Any]]) -> list[float]:
    """b between each two neighbours of a front: all alike if the law holds."""
    logs = np.log([[run["compute"], run["excess"]] for run in front])
    steps = np.diff(logs, axis=0)
    return [float(b) for b in -steps[:, 1] / steps[:, 0]]


def guessed_floor(runs: Sequence[dict[str, Any]]) -> float:
    """The constant c for which nats = c + a C^-b fits best: a floor nobody told it.

    Parameters
    ----------
    runs
        At least three, with ``compute`` and ``nats_per_token``.

    Source: as Hoffmann et al. 2022 must do where no floor is known; chapter 2.
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

    world: clinic.Clinic
    tokenizer: text.WordTokenizer
    train: list[Tensor]
    test: list[Tensor]
    floor: np.ndarray  # (test notes,) nats of each note
    bigram: float  # nats per token

    @property
    def floor_nats_per_token(self) -> float:
        """The exact entropy of the test notes."""
        return float(self.floor.sum()) / sum(len(row) - 1 for row in self.test)

    def parses(self, row: list[int]) -> bool:
        """Whether the clinic could have written these tokens."""
        try:
            self.world.parse([self.tokenizer.decode(row)])
        except MedlmError:
            return False
        return True


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
    needed = (grid.seeds * max(grid.steps) + grid.long_steps) * grid.batch
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
    return Notes(world, tokenizer, train, test, floor, bigram.nats_per_token)


def learning_rate(d_model: int) -> float:
    """The peak: larger models get smaller steps, by the square root of their width."""
    return 4e-3 * (32 / d_model) ** 0.5


def operations(grid: Grid, notes: Notes, run: dict[str, Any]) -> float:
    """Multiplications and additions of a whole training.

    As `lm_speed.flops_per_token` counts them, for a note of mean length.
    """
    width = run["d_model"]
    size = lm_speed.Size(
        width, grid.heads, 3 * width, grid.blocks, grid.batch, 0, 0, 0, 0, 0
    )
    length = round(np.mean([len(row) - 1 for row in notes.test]))
    vocabulary = len(notes.tokenizer)
    return run["tokens"] * lm_speed.flops_per_token(size, vocabulary, length)


def train(
    study: core.Study, grid: Grid, notes: Notes, width: int, steps: int, seed: int
) -> dict[str, Any]:
    """Train one model and score it on the fresh notes.

    Seed `grid.seeds` is that of the long training: its notes lie after all others.
    """
    torch.manual_seed(seed)
    model = TransformerLM(
        len(notes.tokenizer), grid.longest, width, grid.heads, 3 * width, grid.blocks
    ).to(study.profile.device)
    rows = notes.train[rows_of(grid, steps, seed)]
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
        "seed": seed,
        "nats_per_token": nats.nats_per_token,
        "excess": (nats.total - float(notes.floor.sum())) / nats.tokens,
        "written": grid.written,
        "valid": sum(notes.parses(row) for row in write(model, grid.written)),
    }


def rows_of(grid: Grid, steps: int, seed: int) -> slice:
    """As many notes as a training needs, other ones for each seed: none comes twice."""
    first = seed * max(grid.steps) * grid.batch
    return slice(first, first + steps * grid.batch)


def write(model: TransformerLM, count: int) -> list[list[int]]:
    """Notes drawn from the model as it is: temperature 1, all tokens."""
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(runtime.SEED)
    longest = model.positions.num_embeddings - 1
    model.eval()
    rows = generate(model, text.START, text.END, longest, generator=random, count=count)
    return rows.tolist()


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the whole grid, fit the law for each seed, and say how sure it is."""
    grid = GRIDS[study.size]
    notes = draw(grid)
    make = functools.partial(train, study, grid, notes)
    settings = {"precision": study.profile.precision, "longest_run": max(grid.steps)}
    settings |= {"batch": grid.batch, "test_notes": grid.test_notes}
    settings |= {"long_run": grid.long_steps, "written": grid.written}
    chosen = list(itertools.product(grid.widths, grid.steps, range(grid.seeds)))
    *runs, long_run = study.run(
        [
            core.Part(
                f"width-{width}-steps-{steps}-seed-{seed}",
                {**settings, "chosen": [width, steps, seed]},
                float(steps * (width + 16)),
                functools.partial(make, width, steps, seed),
            )
            for width, steps, seed in [
                *sorted(chosen, key=lambda c: c[2]),
                (max(grid.widths), grid.long_steps, grid.seeds),
            ]
        ]
    )
    return summary(grid, notes, runs, long_run)


def summary(
    grid: Grid, notes: Notes, runs: list[dict[str, Any]], long_run: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of all runs; the law is fitted without the long one."""
    floor = notes.floor_nats_per_token
    for run in [*runs, long_run]:
        run["compute"] = operations(grid, notes, run)
    fronts = [
        efficient([r for r in runs if r["seed"] == seed]) for seed in range(grid.seeds)
    ]
    past = [past_the_knee(front, floor) for front in fronts]
    laws = [law_of(front) for front in past]
    all_efficient = [r for front in past for r in front]
    pooled = law_of(all_efficient)
    last = [min(r["excess"] for r in front) for front in fronts]
    measured = {
        "floor_nats_per_token": {"value": floor, "unit": "nats/token"},
        "bigram_nats_per_token": {"value": notes.bigram, "unit": "nats/token"},
        "law_exponent": core.over_seeds([law.b for law in laws]),
        "law_error_where_fitted_percent": 100 * law_error(pooled, all_efficient),
        "best_excess_percent": core.over_seeds([100 * e / floor for e in last])
        | {"unit": "%"},
        "floor_guessed_by_fit": core.over_seeds([guessed_floor(f) for f in fronts])
        | {"unit": "nats/token"},
        "long_run_excess_percent": 100 * long_run["excess"] / floor,
        "long_run_foreseen_percent": 100 * pooled.excess(long_run["compute"]) / floor,
        "long_run_valid_note_percent": valid_percent(long_run),
    }
    series = {
        "runs": runs,
        "long_run": long_run,
        "efficient": [
            {"seed": r["seed"], "compute": r["compute"], "excess": r["excess"]}
            for front in fronts
            for r in front
        ],
        "slopes": [slopes(front) for front in fronts],
        "knee": KNEE,
        "law": dataclasses.asdict(pooled),
        "law_of_seed": [dataclasses.asdict(law) for law in laws],
        "floor_nats_per_token": floor,
        "bigram_nats_per_token": notes.bigram,
        "test_tokens": sum(len(row) - 1 for row in notes.test),
    }
    return measured, series


def valid_percent(run: dict[str, Any]) -> dict[str, Any]:
    """Share of the written notes that are notes, with Wilson's 95% interval."""
    share = metrics.wilson(run["valid"], run["written"])
    return {
        "value": 100 * share.value,
        "low": 100 * share.low,
        "high": 100 * share.high,
        "n": share.n,
        "unit": "%",
    }


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
