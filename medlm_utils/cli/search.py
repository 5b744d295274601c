"""One search of `medlm detect`: what was asked, and what was found."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

import numpy as np

from medlm_utils import anomaly
from medlm_utils.cli import sources


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search of which no fault is known.

    Parameters
    ----------
    chosen
        The options of the command.
    source
        The rows that are scored.
    usual
        The rows that the detector is fitted on; None for the `source` itself.
    detector
        Not fitted yet.
    metric
        ``"euclidean"`` or ``"cosine"``.
    budget
        How many rows to flag at most.
    started
        Of `time.monotonic`.
    precision
        That texts are embedded in; empty where nothing is.
    """

    chosen: argparse.Namespace
    source: sources.Source
    usual: sources.Source | None
    detector: anomaly.Detector
    metric: str
    budget: int
    started: float
    precision: str = ""

    @property
    def fitted(self) -> sources.Source:
        """The rows that the detector is fitted on."""
        return self.usual or self.source

    @property
    def sources(self) -> list[sources.Source]:
        """The rows that are scored, and those that the detector is fitted on."""
        return [self.source, *([self.usual] if self.usual else [])]

    @functools.cached_property
    def shared(self) -> int:
        """How many rows stand among the usual rows too."""
        return sources.shared(self.source, self.usual) if self.usual else 0

    @property
    def warnings(self) -> list[str]:
        """What may be meant, or a mistake in the files."""
        found = list(self.source.warnings)
        if self.usual:
            name = self.usual.path.name
            found += [f"{name}: {warning}" for warning in self.usual.warnings]
        if self.shared and self.usual:
            rows = "1 row stands" if self.shared == 1 else f"{self.shared:,} rows stand"
            found.append(
                f"{rows} in {self.usual.path.name} too, with the same values. If they "
                "are the same patients, they are compared with themselves and look "
                "usual; leave them out of --fit."
            )
        return found

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to write."""
        out: Path = self.chosen.output
        return {
            "csv": out,
            "html": out.with_name(f"{out.stem}.report.html"),
            "json": out.with_name(f"{out.stem}.report.json"),
        }


@dataclasses.dataclass(frozen=True)
class Found:
    """What the detector says of each row. Rows are counted from 0.

    Parameters
    ----------
    scores
        (rows,) higher = more anomalous.
    order
        (rows,) from the highest score to the lowest; of equal ones the first row first.
    budget
        How many of them are flagged.
    nearest
        (flagged, neighbours) the usual rows nearest to each, the nearest first.
    distance
        (flagged, neighbours) how far they are.
    deviations
        (flagged, columns) robust z of a table of numbers, else None.
    middle
        The score of the middle row of those that the detector was fitted on: no row is
        flagged that does not exceed it.
    rounding
        By how much equal scores may differ.
    asked
        How many rows were to be flagged.
    """

    scores: np.ndarray
    order: np.ndarray
    budget: int
    nearest: np.ndarray
    distance: np.ndarray
    deviations: np.ndarray | None
    middle: float
    rounding: float
    asked: int

    @property
    def flagged(self) -> np.ndarray:
        """(flagged,) rows by rank."""
        return self.order[: self.budget]

    @property
    def threshold(self) -> float:
        """The smallest score that is flagged."""
        return float(self.scores[self.flagged[-1]])

    @property
    def tied(self) -> int:
        """How many rows have that score too, and were left out."""
        rest = self.scores[self.order[self.budget :]]
        above = rest[rest > self.middle + self.rounding]
        return int((above >= self.threshold - self.rounding).sum())

    @property
    def warnings(self) -> list[str]:
        """Where the budget does not say which rows are unusual."""
        found = []
        if self.budget < self.asked:
            found.append(
                f"Only {self.budget:,} of the {self.asked:,} rows that the budget "
                "allows are flagged: the others score no more than the middle row, "
                f"{self.middle:.4g}."
            )
        if self.tied:
            rows = "1 row has" if self.tied == 1 else f"{self.tied:,} rows have"
            found.append(
                f"{rows} the score of the last flagged one, unflagged: scores that are "
                f"apart by {self.rounding:.1g} or less may differ by rounding alone."
            )
        return found
