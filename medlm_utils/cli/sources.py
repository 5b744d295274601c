"""The rows that `medlm detect` judges: texts or numbers of a CSV file, or an array.

Knows nothing about detectors. What is wrong with a file is said before any work.
"""

from __future__ import annotations

import array
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medlm_utils.cli import run, tables
from medlm_utils.runtime import MedlmError

CHUNK = 4096  # rows in memory at a time, where the detector does not need all
NOT_MEASURED = ("", run.PATIENT, "label")  # left out, unless --columns names them


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one file, of which no fault is known.

    Parameters
    ----------
    path
        Of the file.
    count
        Rows.
    values
        (rows, features) finite numbers; None for texts, which are not embedded yet.
    columns
        Names of the features; none for embeddings.
    left_out
        Column to why it is no feature.
    table
        The CSV file with the rows, if any.
    heading
        Names of its columns.
    texts
        Places of those whose text is embedded or shown.
    """

    path: Path
    count: int
    values: np.ndarray | None = None
    columns: tuple[str, ...] = ()
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    table: Path | None = None
    heading: tuple[str, ...] = ()
    texts: tuple[int, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        return list(dict.fromkeys([self.path, *([self.table] if self.table else [])]))

    def fields(self) -> Iterator[list[str]]:
        """The fields of all rows of the table; of an array alone none."""
        if self.table is None:
            yield from ([] for _ in range(self.count))
            return
        reading = itertools.islice(tables.rows(self.table), 1, None)
        seen = 0
        for seen, (_, fields) in enumerate(reading, start=1):
            if seen > self.count:
                break
            yield fields
        if seen != self.count:
            raise tables.Stream(self.table, self.heading, 0, self.count).changed()

    def text_of(self, fields: Sequence[str]) -> str:
        """The texts of one row, joined."""
        return " ".join(fields[place] for place in self.texts).strip()

    def texts_at(self, numbers: Iterable[int]) -> dict[int, str]:
        """The texts of some rows, counted from 0."""
        wanted = set(numbers) if self.texts else set()
        rows = enumerate(self.fields()) if wanted else ()
        return {n: self.text_of(fields) for n, fields in rows if n in wanted}


@dataclasses.dataclass(frozen=True)
class Texts(tables.Stream):
    """The joined texts, as `medlm embed` reads those of one column."""

    source: Source

    def chunks(self, size: int) -> Iterator[list[list[str]]]:
        """`size` rows at a time, each its text alone."""
        texts = ([self.source.text_of(fields)] for fields in self.source.fields())
        while chunk := list(itertools.islice(texts, size)):
            yield chunk


def read_texts(path: Path, names: Sequence[str]) -> Source:
    """The rows of a CSV file, none of them without a text.

    Parameters
    ----------
    path
        A CSV file in UTF-8 with a heading.
    names
        Of the columns whose texts are joined.

    Raises
    ------
    MedlmError
        If the file cannot be read, lacks a column, or has a row without text.
    """
    reading = iter(tables.rows(path))
    _, heading = next(reading)
    places = [tables.place_of(path, heading, name, "text") for name in names]
    missing, count = [], 0
    for line, fields in reading:
        count += 1
        if not any(fields[place].strip() for place in places):
            missing.append(line)
    if not count:
        raise tables.no_rows(path)
    tables.refuse_missing(path, "text", ",".join(names), missing)
    return Source(path, count, table=path, heading=tuple(heading), texts=tuple(places))


def read_columns(path: Path, names: Sequence[str]) -> Source:
    """The numbers of a CSV file.

    Parameters
    ----------
    path
        A CSV file in UTF-8 with a heading.
    names
        Of its columns; none: all in which every value is a number.

    Raises
    ------
    MedlmError
        If the file cannot be read, lacks a column, has no column of numbers, or a
        value is missing, not finite or no number.
    """
    reading = iter(tables.rows(path))
    _, heading = next(reading)
    wanted = names or [name for name in heading if name not in NOT_MEASURED]
    columns = [
        _Column(path, name, tables.place_of(path, heading, name, "columns"))
        for name in wanted
    ]
    count = 0
    for line, fields in reading:
        count += 1
        for column in columns:
            column.add(line, fields[column.place])
    if not count:
        raise tables.no_rows(path)
    strange = [column for column in columns if column.stranger and not names]
    left_out = {column.name: f"no number in line {column.line}" for column in strange}
    columns = [column for column in columns if column not in strange]
    if not columns:
        raise _no_numbers(path, heading)
    for column in columns:
        column.refuse_faults()
    values = np.column_stack([column.values for column in columns])
    found = tuple(column.name for column in columns)
    return Source(path, count, values, found, left_out, path, tuple(heading))


class _Column:
    """The numbers of one column, and the first value that is none."""

    def __init__(self, path: Path, name: str, place: int):
        self.path, self.name, self.place = path, name, place
        self.values = array.array("d")
        self.stranger, self.line = "", 0
        self.gaps = 0
        self.first_gap: tuple[int, str] | None = None

    def add(self, line: int, text: str) -> None:
        if self.stranger:
            return
        try:
            value = _number(text)
        except ValueError:
            self.stranger, self.line = text.strip(), line
            return
        if not math.isfinite(value):
            self.gaps += 1
            self.first_gap = self.first_gap or (line, text.strip())
        self.values.append(value)

    def refuse_faults(self) -> None:
        if self.stranger:
            raise MedlmError(
                f"{self.path}, line {self.line}, column {self.name!r}: "
                f"{self.stranger[:30]!r} is no number; expected one, with a decimal "
                "point. Correct it, or name other columns with --columns."
            )
        if self.first_gap:
            line, value = self.first_gap
            more = f" (the first of {self.gaps:,})" if self.gaps > 1 else ""
            raise MedlmError(
                f"{self.path}, line {line}, column {self.name!r}: "
                f"{repr(value) if value else 'nothing'}{more}; expected a finite "
                "number in every row. Fill it in, leave the row out, or name other "
                "columns with --columns."
            )


def _number(text: str) -> float:
    """A number; NaN for a value that is missing."""
    text = text.strip()
    if text.lower() in tables.MISSING:
        return math.nan
    if "_" in text:  # which Python takes for a part of a number
        raise ValueError(text)
    return float(text)


def _no_numbers(path: Path, heading: Sequence[str]) -> MedlmError:
    return MedlmError(
        f"{path} has no column of numbers but patient and label; it has "
        f"{', '.join(map(repr, heading))}. Name columns of text with --text, or of "
        "numbers with --columns."
    )


def read_array(path: Path, table: Path | None, names: Sequence[str]) -> Source:
    """An array of embeddings, which stays on the disk.

    Parameters
    ----------
    path
        Of an ``.npy`` file, (rows, features) of floating-point numbers.
    table
        The CSV file that it was made of, or None.
    names
        Of columns of the table that are shown.

    Raises
    ------
    MedlmError
        If there is no such array in the file, or the table does not fit it.
    """
    try:
        values = np.lib.format.open_memmap(path, mode="r")  # never reads a pickle
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise MedlmError(
            f"Cannot read {path}: {why}. Expected a file of numpy.save with an array "
            "of floating-point numbers, one row a note."
        ) from error
    if values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise MedlmError(
            f"{path} is an array of shape {values.shape} and type {values.dtype}; "
            "expected (rows, features) of floating-point numbers."
        )
    _refuse_gaps(path, values)
    source = Source(path, len(values), values)
    return source if table is None else _beside_table(source, table, names)


def _beside_table(source: Source, table: Path, names: Sequence[str]) -> Source:
    """The array with the CSV file that it was made of."""
    reading = iter(tables.rows(table))
    _, heading = next(reading)
    places = tuple(tables.place_of(table, heading, name, "text") for name in names)
    count = sum(1 for _ in reading)
    if count != source.count:
        raise MedlmError(
            f"{source.path} has {source.count:,} rows and {table} has {count:,}; "
            "expected one row of the array for each row of the file, in the same order."
        )
    names_there = tuple(heading)
    return dataclasses.replace(source, table=table, heading=names_there, texts=places)


def chunks_of(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Where each piece of the rows begins, and the piece."""
    for start in range(0, len(values), CHUNK):
        yield start, np.asarray(values[start : start + CHUNK])


def _refuse_gaps(path: Path, values: np.ndarray) -> None:
    for start, chunk in chunks_of(values):
        bad = np.argwhere(~np.isfinite(chunk))
        if len(bad):
            row, column = bad[0]
            raise MedlmError(
                f"{path}, row {start + row + 1:,}, column {column + 1:,} (both counted "
                f"from 1): {chunk[row, column]}; expected finite numbers. Leave the "
                "row out, or make the array again."
            )
