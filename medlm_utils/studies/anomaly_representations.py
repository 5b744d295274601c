"""Every detector on every kind of vector, for every kind of odd patient of the clinic.

The detectors learn from notes of usual patients, and score other usual patients' notes
together with those of odd ones. Beside each score stand two lines that are exact: the
Neyman-Pearson ceiling, which ranks by p1/p0 and which no detector passes on average;
and -log p0, of the facts and of the whole text, for whoever knows the usual notes by
heart and nothing else. All see one note at a time.

The vectors are those of chapter 4. Its reader was trained on notes of usual patients,
with their diseases and findings as labels; it has seen no odd one. Facts are read off
the text by rules that know the clinic's language, so a garbled text has none.

Five seeds draw five times other patients, to learn from and to test. An interval over
seeds holds both sources of chance; one by patient stands beside each seed. The pair of
the headline was fixed before, on other odd patients: `HEADLINE`. The best pair is named
for each seed by the other four.

Source: chapter 4; `python -m medlm_utils.studies.anomaly_representations`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlm_utils import (
    anomaly,
    anomaly_worlds,
    bert,
    note_reader,
    runtime,
    transformer,
)
from medlm_utils.anomaly_worlds import KINDS
from medlm_utils.clinic import Notes
from medlm_utils.note_reader import NoteReader
from medlm_utils.pretraining import mean_over_tokens
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import anomaly_runs as runs
from medlm_utils.studies import core
from medlm_utils.studies.anomaly_adbench import over_seeds

UNSEEN = "meningitis"
REPRESENTATIONS = (
    "TF-IDF",
    "MiniLM mean",
    "MiniLM [CLS]",
    "MiniLM whitened",
    "reader",
    "reader, length 1",
    "reader logits",
    "findings",
)
LINES = ("neyman_pearson", "neg_log_p0", "neg_log_p0_text")
HEADLINE = ("reader, length 1", "knn")
FOREST = "isolation_forest"
COMPONENTS = 100  # of TF-IDF
WIDEST = 50  # directions that are whitened
TEST_SEEDS = 1000  # are so much higher: usual patients of a test are new people
FIRST_ODD = 500_000  # the number of an odd patient; usual ones are fewer
UNREADABLE = "A garbled text has no facts: it cannot be read."


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many patients, and how often."""

    seeds: tuple[int, ...]
    patients: int  # usual ones, to learn from; 1 to 3 notes each
    usual: int  # patients of the test
    odd: int  # patients of the test, of each kind
    draws: int  # of patients, for an interval


PLANS = {
    "tiny": Plan((501, 502), 30, 12, 8, 80),
    "cpu": Plan((501, 502, 503, 504, 505), 1700, 400, 80, 1000),
    "gpu": Plan((501, 502, 503, 504, 505), 1700, 400, 80, 1000),
}


# From notes to vectors ----------------------------------------------------------------


class _MeanAndFirst(nn.Module):
    """An encoder whose one state a text is the mean of its states, and the first one.

    So that both ways to pool cost one pass.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) token numbers to (batch, 1, 2 d_model)."""
        states = self.encoder(input_ids, attention_mask)[-1]
        both = [mean_over_tokens(states, attention_mask), states[:, 0]]
        return torch.cat(both, dim=-1)[:, None]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The two encoders, on the device of the run."""

    minilm: nn.Module
    tokenizer: Any
    reader: NoteReader
    precision: str  # of MiniLM

    @classmethod
    def load(cls, profile: runtime.Profile) -> Networks:
        """MiniLM as it was published, and the reader that comes with the course.

        Raises
        ------
        MedlmError
            As `bert.load_encoder` and `note_reader.load`.
        """
        return cls(
            bert.load_encoder("minilm", transformer.fused_attention).to(profile.device),
            bert.tokenizer("minilm"),
            note_reader.load().to(profile.device),
            runtime.fast_precision(profile),
        )

    def vectors(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Four kinds of vectors, (texts, columns) each; nothing is learned for them."""
        rows = bert.encode(self.tokenizer, texts)
        pooling = _MeanAndFirst(self.minilm)
        both = bert.embed(pooling, rows, "cls", precision=self.precision)
        mean, first = np.split(both, 2, axis=1)
        read = self.reader.rows(texts)
        return {
            "MiniLM mean": mean,
            "MiniLM [CLS]": first,
            "reader": bert.embed(self.reader, read),
            "reader logits": bert.predict_logits(self.reader, read),
        }


def represented(
    groups: Mapping[str, Notes], networks: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Every representation of several groups of notes.

    Parameters
    ----------
    groups
        Notes by name. Whatever is learned (words and their weights, directions to
        whiten, columns that vary) is learned from those of ``"train"``.
    networks
        With a method ``vectors``, as `Networks` has it.

    Returns
    -------
    dict
        Of each of `REPRESENTATIONS`, names of groups to (notes, columns). Groups with
        garbled notes have no ``"findings"``.
    """
    texts = {name: list(notes.text) for name, notes in groups.items()}
    ends = np.cumsum([len(some) for some in texts.values()])[:-1]
    every = networks.vectors([text for some in texts.values() for text in some])
    found = {
        kind: dict(zip(texts, np.split(rows, ends), strict=True))
        for kind, rows in every.items()
    }
    words = runs.tfidf_svd(texts["train"], COMPONENTS, seed=0, words_together=2)
    found["TF-IDF"] = {name: words(some) for name, some in texts.items()}
    mean = found["MiniLM mean"]
    whitening = anomaly.Whitening(components=WIDEST).fit(mean["train"])
    found["MiniLM whitened"] = {n: whitening.transform(r) for n, r in mean.items()}
    found["reader, length 1"] = {
        name: anomaly.unit_length(rows) for name, rows in found["reader"].items()
    }
    found["findings"] = _findings(groups)
    return {name: found[name] for name in REPRESENTATIONS}


def _findings(groups: Mapping[str, Notes]) -> dict[str, np.ndarray]:
    """What the notes say, without the columns that are constant in training."""
    rows = {
        name: anomaly_worlds.facts(notes)
        for name, notes in groups.items()
        if not (notes.age_band == anomaly_worlds.UNREADABLE).any()
    }
    constant = anomaly.constant_columns(rows["train"])
    return {name: np.delete(some, constant, axis=1) for name, some in rows.items()}


# One seed -----------------------------------------------------------------------------


def draw(plan: Plan, seed: int) -> dict[str, Notes]:
    """Usual notes to learn from and to test, and odd ones of each kind.

    Parameters
    ----------
    plan
        How many patients.
    seed
        Of `Plan.seeds`.
    """
    usual, new = anomaly_worlds.usual_clinic(UNSEEN), seed + TEST_SEEDS
    odd = {kind: anomaly_worlds.odd_patients(kind, UNSEEN) for kind in KINDS}
    return {
        "train": usual.draw(plan.patients, seed),
        "usual": usual.draw(plan.usual, new),
        **{kind: one.draw(plan.odd, new, FIRST_ODD) for kind, one in odd.items()},
    }


def one_seed(plan: Plan, profile: runtime.Profile, seed: int) -> dict[str, Any]:
    """Every kind of odd patient, representation and detector, by patient.

    Parameters
    ----------
    plan
        How many patients.
    profile
        Where the networks run.
    seed
        Of the patients, the detectors and the draws of the intervals.
    """
    groups = draw(plan, seed)
    every = represented(groups, Networks.load(profile))
    found = {kind: {"pairs": {}, **_lines(groups, kind, plan, seed)} for kind in KINDS}
    for name, rows in every.items():
        asked = [group for group in rows if group != "train"]
        scores = _scores(rows, asked, seed)
        for kind in KINDS:
            found[kind]["pairs"][name] = (
                _measured(scores, groups, kind, plan, seed)
                if kind in asked
                else {detector: {"refused": UNREADABLE} for detector in scores}
            )
    sizes = {name: len(notes) for name, notes in groups.items()}
    return {"notes": sizes, "kinds": found}


def _scores(
    rows: Mapping[str, np.ndarray], asked: Sequence[str], seed: int
) -> dict[str, Any]:
    """Of each detector, groups to their scores; where it refuses, its words."""
    ends = np.cumsum([len(rows[name]) for name in asked])[:-1]
    every = np.concatenate([rows[name] for name in asked])
    found: dict[str, Any] = {}
    for name in anomaly.DETECTORS:
        try:
            score = runs.all_scores(rows["train"], every, seed, [name])[name]
            found[name] = dict(zip(asked, np.split(score, ends), strict=True))
        except MedlmError as error:
            found[name] = {"refused": str(error)}
    return found


def _lines(
    groups: Mapping[str, Notes], kind: str, plan: Plan, seed: int
) -> dict[str, Any]:
    """The ceiling and the two label-free lines, and the share of odd notes."""
    odd = anomaly_worlds.odd_patients(kind, UNSEEN)
    notes, label = anomaly_worlds.together(groups["usual"], groups[kind])
    resamples = runs.Resamples(notes.patient, plan.draws, seed)
    scores = {
        "neyman_pearson": odd.log_ratio(notes),
        "neg_log_p0": anomaly_worlds.surprise(odd.usual, notes, "facts"),
        "neg_log_p0_text": anomaly_worlds.surprise(odd.usual, notes, "text"),
    }
    lines = {name: _short(resamples, label, score) for name, score in scores.items()}
    return {"contamination": float(label.mean()), "lines": lines}


def _measured(
    scores: Mapping[str, Any],
    groups: Mapping[str, Notes],
    kind: str,
    plan: Plan,
    seed: int,
) -> dict[str, Any]:
    """Of each detector both measures, or why there are none."""
    notes, label = anomaly_worlds.together(groups["usual"], groups[kind])
    resamples = runs.Resamples(notes.patient, plan.draws, seed)
    return {
        name: by_group
        if "refused" in by_group
        else _short(
            resamples, label, np.concatenate([by_group["usual"], by_group[kind]])
        )
        for name, by_group in scores.items()
    }


def _short(
    resamples: runs.Resamples, label: np.ndarray, score: np.ndarray
) -> dict[str, dict[str, float]]:
    measured = resamples.measure(label, score)
    return {name: one.short() for name, one in measured.items()}


# Over seeds ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Grid:
    """What all seeds found.

    Parameters
    ----------
    seeds
        What `one_seed` returned, one for each.
    """

    seeds: Sequence[dict[str, Any]]

    def values(self, kind: str, pair: tuple[str, str], measure: str) -> list[float]:
        """One number for each seed; none where any was refused.

        Parameters
        ----------
        kind, measure
            Of odd patients; ``"auroc"`` or ``"average_precision"``.
        pair
            Representation and detector; or ``"lines"`` and one of `LINES`.
        """
        found = [self._found(seed["kinds"][kind], pair) for seed in self.seeds]
        if any("refused" in one for one in found):
            return []
        return [one[measure]["value"] for one in found]

    def cell(self, kind: str, pair: tuple[str, str]) -> dict[str, Any]:
        """Both measures over seeds, and AUROC of each seed with its interval."""
        found = [self._found(seed["kinds"][kind], pair) for seed in self.seeds]
        refused = [one for one in found if "refused" in one]
        if refused:
            return refused[0]
        values = {m: [one[m]["value"] for one in found] for m in runs.MEASURES}
        over = {name: _rounded(over_seeds(some)) for name, some in values.items()}
        return {**over, "auroc_by_seed": [one["auroc"] for one in found]}

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """The pairs that no seed refused."""
        return [pair for pair in PAIRS if self.values(kind, pair, "auroc")]

    def chosen(self, kind: str) -> tuple[list[tuple[str, str]], list[float]]:
        """For each seed the pair that was best on all others, and its AUROC here."""
        pairs = self.pairs(kind)
        aurocs = np.array([self.values(kind, pair, "auroc") for pair in pairs]).T
        places = runs.best_for_others(aurocs)
        values = [float(row[place]) for row, place in zip(aurocs, places, strict=True)]
        return [pairs[place] for place in places], values

    def shares(self, kind: str, pair: tuple[str, str], line: str) -> list[float]:
        """(AUROC - 0.5) over that of a line, one for each seed."""
        values = (self.values(kind, p, "auroc") for p in (pair, ("lines", line)))
        return [(own - 0.5) / (best - 0.5) for own, best in zip(*values, strict=True)]

    def _found(self, found: dict[str, Any], pair: tuple[str, str]) -> dict[str, Any]:
        first, second = pair
        where = found["lines"] if first == "lines" else found["pairs"][first]
        return dict(where[second])


PAIRS = [(name, detector) for name in REPRESENTATIONS for detector in anomaly.DETECTORS]


def forest_fails(grid: Grid, low: float = 0.6, high: float = 0.9) -> list[dict]:
    """Where the isolation forest is poor and another detector good, on the same rows.

    Parameters
    ----------
    grid
        Of all seeds.
    low, high
        The forest's mean AUROC is below the one, the other's above the other.
    """
    found = []
    for kind in KINDS:
        means = {p: np.mean(grid.values(kind, p, "auroc")) for p in grid.pairs(kind)}
        for name in REPRESENTATIONS:
            own = {d: float(v) for (n, d), v in means.items() if n == name}
            best = max(own, key=lambda d: own[d], default=FOREST)
            if FOREST in own and own[FOREST] < low and own[best] > high:
                row = {"kind": kind, "representation": name, "detector": best}
                scores = {"auroc": own[best], "forest_auroc": own[FOREST]}
                found.append({**row, **_rounded(scores)})
    return found


def below_chance(grid: Grid) -> list[dict[str, Any]]:
    """The pairs whose whole interval over seeds is below 0.5.

    Parameters
    ----------
    grid
        Of all seeds.
    """
    found = []
    for kind in KINDS:
        for name, detector in grid.pairs(kind):
            auroc = over_seeds(grid.values(kind, (name, detector), "auroc"))
            if auroc["high"] < 0.5:
                row = {"kind": kind, "representation": name, "detector": detector}
                found.append({**row, "auroc": _rounded(auroc)})
    return found


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {n: round(v, runs.DIGITS) for n, v in values.items() if n != "n"}


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """All seeds, one after another.

    Raises
    ------
    MedlmError
        As `Networks.load`.
    """
    plan = PLANS[study.size]
    grid = Grid(study.run([_part(study, plan, seed) for seed in plan.seeds]))
    return _metrics(plan, grid), _series(plan, grid)


def _part(study: core.Study, plan: Plan, seed: int) -> core.Part:
    depends_on = {
        **{name: value for name, value in vars(plan).items() if name != "seeds"},
        "seed": seed,
        "pairs": PAIRS,
        "reader": hashlib.sha256(note_reader.shipped().read_bytes()).hexdigest(),
    }
    make = functools.partial(one_seed, plan, study.profile, seed)
    return core.Part(f"seed-{seed}", depends_on, 1.0, make)


def slug(kind: str) -> str:
    """A kind of odd patient as a part of a metric's name.

    Parameters
    ----------
    kind
        One of `KINDS`.
    """
    return kind.replace("'", "").replace("-", "_").replace(" ", "_")


def _metrics(plan: Plan, grid: Grid) -> dict[str, Any]:
    """The metrics of the record."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        name = slug(kind)
        contamination = [seed["kinds"][kind]["contamination"] for seed in grid.seeds]
        found[f"contamination_{name}"] = float(np.mean(contamination))
        for line in LINES:
            auroc = grid.values(kind, ("lines", line), "auroc")
            found[f"{line}_auroc_{name}"] = over_seeds(auroc)
        for measure in runs.MEASURES:
            values = grid.values(kind, HEADLINE, measure)
            found[f"headline_{measure}_{name}"] = over_seeds(values)
        found[f"best_auroc_{name}"] = over_seeds(grid.chosen(kind)[1])
        forest = grid.values(kind, (HEADLINE[0], FOREST), "auroc")
        found[f"isolation_forest_auroc_{name}"] = over_seeds(forest)
    for name, line in (
        ("auroc_gain_over_label_free_line", "neg_log_p0"),
        ("auroc_gain_over_text_line", "neg_log_p0_text"),
        ("auroc_gain_over_ceiling", "neyman_pearson"),
    ):
        shares = grid.shares("unseen disease", HEADLINE, line)
        found[name] = core.over_seeds(shares)  # may pass 1: the lines are no bounds
    return {
        **found,
        "cases_forest_below_60_another_above_90": len(forest_fails(grid)),
        "pairs_below_chance": len(below_chance(grid)),
        "pairs": sum(len(grid.pairs(kind)) for kind in KINDS),
        "test_patients": len(plan.seeds) * (plan.usual + len(KINDS) * plan.odd),
    }


def _series(plan: Plan, grid: Grid) -> dict[str, Any]:
    """What the table and the figure of the chapter show."""
    return {
        "plan": dataclasses.asdict(plan),
        "notes": [seed["notes"] for seed in grid.seeds],
        "interval": "over seeds; of one seed, by patient",
        "headline": list(HEADLINE),
        "representations": list(REPRESENTATIONS),
        "detectors": list(anomaly.DETECTORS),
        "lines": [
            {"kind": kind, "line": line, **grid.cell(kind, ("lines", line))}
            for kind in KINDS
            for line in LINES
        ],
        "grid": [
            {
                "kind": kind,
                "representation": name,
                "detector": detector,
                **grid.cell(kind, (name, detector)),
            }
            for kind in KINDS
            for name, detector in PAIRS
        ],
        "best_on_other_seeds": {kind: grid.chosen(kind)[0] for kind in KINDS},
        "forest_fails": forest_fails(grid),
        "below_chance": below_chance(grid),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Every detector on every kind of vector, for every kind of odd patient."
    return core.main("anomaly_representations", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
