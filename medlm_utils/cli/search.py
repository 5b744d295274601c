"""One search of `medlm detect`: what was asked, and what was found."""

from __future__ import annotations

import argparse
import dataclasses
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
    started
        Of `time.monotonic`.
    """

    chosen: argparse.Namespace
    source: sources.Source
    usual: sources.Source | None
    detector: anomaly.Detector
    metric: str
    started: float

    @property
    def fitted(self) -> sources.Source:
        """The rows that the detector is fitted on."""
        return self.usual or self.source

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
    """

    scores: np.ndarray
    order: np.ndarray
    budget: int
    nearest: np.ndarray
    distance: np.ndarray
    deviations: np.ndarray | None

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
        return int((self.scores[self.order[self.budget :]] == self.threshold).sum())
