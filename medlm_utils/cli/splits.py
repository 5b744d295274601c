"""One table of notes in three parts, by patient, so that the split can be used again.

Knows nothing about models.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from medlm_utils.cli import files, tables
from medlm_utils.runtime import MedlmError

SHARES = {"training": 0.6, "validation": 0.2, "test": 0.2}
HEADING = ("row", "patient", "part")


@dataclasses.dataclass(frozen=True)
class Split:
    """A table, and which of its notes are in which part.

    Parameters
    ----------
    table
        All notes.
    rows
        Part to the numbers of its notes, from 0.
    """

    table: tables.Table
    rows: dict[str, np.ndarray]

    @property
    def parts(self) -> dict[str, tables.Table]:
        """Part to its notes."""
        return {n: self.table.chosen(rows.tolist(), n) for n, rows in self.rows.items()}

    @property
    def lines(self) -> list[list[str]]:
        """Row (from 1, without the heading), patient and part of each note."""
        part_of = {int(row): part for part, rows in self.rows.items() for row in rows}
        patient = self.table.patient or [""] * len(self.table)
        return [[str(n + 1), who, part_of[n]] for n, who in enumerate(patient)]

    @property
    def digest(self) -> str:
        """A short name for which notes are in which part."""
        return hashlib.sha256(repr(self.lines).encode()).hexdigest()[:12]

    def write(self, path: Path) -> None:
        """Its lines as a CSV file, which `read` reads."""
        with files.beside(path) as file:
            csv.writer(file, lineterminator="\n").writerows([HEADING, *self.lines])


def draw(table: tables.Table, seed: int) -> Split:
    """60, 20 and 20% of the patients, and of those of each label as far as it goes.

    Parameters
    ----------
    table
        Without patients the notes are split; notes with the same words stay together.
    seed
        Of the draw.

    Raises
    ------
    MedlmError
        If there are too few for three parts.
    """
    from medlm_utils import ct

    units = table.text if table.patient is None else table.groups
    number = {unit: n for n, unit in enumerate(dict.fromkeys(units))}
    try:
        rows = ct.split(
            [number[unit] for unit in units],
            tuple(SHARES.values()),
            seed,
            _rarest_label(table),
        )
    except MedlmError as error:
        raise MedlmError(
            f"{table.path} has {len(number):,} different {table.unit}s, too few for "
            "three parts with every label in the training notes; add some, or split "
            "it yourself: --train, --val, --test."
        ) from error
    return Split(table, dict(zip(SHARES, rows, strict=True)))


def _rarest_label(table: tables.Table) -> list[int]:
    """The larger, the rarer: a patient is counted with his rarest label."""
    counted = Counter(label for labels in table.labels for label in labels)
    order = sorted(counted, key=lambda label: (-counted[label], label))
    place = {label: n for n, label in enumerate(order)}
    return [max(place[label] for label in labels) for labels in table.labels]


def read(path: Path, table: tables.Table) -> Split:
    """What `Split.write` wrote.

    Raises
    ------
    MedlmError
        If it is no such file, or not of this table.
    """
    reading = iter(tables.rows(path))
    _, heading = next(reading)
    places = [tables.place_of(path, heading, name, "split") for name in HEADING]
    patient = table.patient or [""] * len(table)
    found: dict[str, list[int]] = {part: [] for part in SHARES}
    count = 0
    for count, (line, fields) in enumerate(reading, start=1):
        row, who, part = (fields[place] for place in places)
        expected = str(count), patient[count - 1] if count <= len(table) else None
        if part not in found or (row, who) != expected:
            raise MedlmError(
                f"{path}, line {line}, is not of a split of {table.path}; expected the "
                "file split.csv that a run with the same --data and --patient wrote."
            )
        found[part].append(count - 1)
    if count != len(table) or not all(found.values()):
        raise MedlmError(
            f"{path} has {count:,} rows and {table.path} {len(table):,}; expected as "
            "many, and some in each part. Is it the split of another file?"
        )
    return Split(table, {part: np.array(rows) for part, rows in found.items()})
