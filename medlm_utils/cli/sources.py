"""The rows that `medlm detect` judges: texts or numbers of a CSV file, or an array.

Knows nothing about detectors. What is wrong with a file is said before any work.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medlm_utils import anomaly
from medlm_utils.cli import columns as measured
from medlm_utils.cli import tables
from medlm_utils.runtime import MedlmError

CHUNK = 4096  # rows in memory at a time, where the detector does not need all


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
    warnings
        What may be meant, or a mistake in the file.
    """

    path: Path
    count: int
    values: np.ndarray | None = None
    columns: tuple[str, ...] = ()
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    table: Path | None = None
    heading: tuple[str, ...] = ()
    texts: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

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


def read_texts(path: Path, names: Sequence[str], must_differ: bool = True) -> Source:
    """The rows of a CSV file, none of them without a text.

    Parameters
    ----------
    path
        A CSV file in UTF-8 with a heading.
    names
        Of the columns whose texts are joined.
    must_differ
        Whether they are fitted on: nothing is more usual among equal texts.

    Raises
    ------
    MedlmError
        If the file cannot be read, lacks a column, has a row without text, or all
        texts are equal and must differ.
    """
    reading = iter(tables.rows(path))
    _, heading = next(reading)
    places = [measured.place_of(path, heading, name, "text") for name in names]
    source = Source(path, 0, table=path, heading=tuple(heading), texts=tuple(places))
    missing, count, first, differ = [], 0, "", False
    for line, fields in reading:
        count += 1
        text = source.text_of(fields)
        first = first or text
        differ |= text != first
        if not text:
            missing.append(line)
    if not count:
        raise tables.no_rows(path)
    tables.refuse_missing(path, "text", ",".join(names), missing)
    if must_differ and not differ and count > 1:
        raise MedlmError(
            f"All {count:,} texts of {path} are equal; expected texts that differ. Is "
            "--text the right column?"
        )
    return dataclasses.replace(source, count=count)


def read_columns(
    path: Path,
    names: Sequence[str],
    excluded: Sequence[str] = (),
    is_named: bool | None = None,
) -> Source:
    """The numbers of a table.

    Parameters
    ----------
    path, names, excluded, is_named
        As in `columns.read`.

    Raises
    ------
    MedlmError
        As in `columns.read`.
    """
    read = measured.read(path, names, excluded, is_named)
    return Source(
        path,
        read.count,
        read.values,
        read.names,
        read.left_out,
        path,
        read.heading,
        warnings=read.warnings,
    )


def lacking(path: Path, names: Sequence[str]) -> list[str]:
    """The names that no column of a table has."""
    _, heading = next(iter(tables.rows(path)))
    known = {name.strip() for name in heading}
    return [name for name in names if name.strip() not in known]


def without_constant(
    source: Source, usual: Source | None, is_named: bool
) -> tuple[Source, Source | None]:
    """The rows and the usual rows, less the columns that have no spread.

    Parameters
    ----------
    source, usual
        With the same columns; None where the source is fitted on itself.
    is_named
        Whether the columns were asked for: then such a column is an error.

    Raises
    ------
    MedlmError
        If one was asked for, or none is left.
    """
    fitted = usual or source
    assert fitted.values is not None and source.values is not None
    same = anomaly.constant_columns(fitted.values)
    if not len(same):
        return source, usual
    names = [source.columns[place] for place in same]
    if is_named or len(same) == len(source.columns):
        raise MedlmError(
            f"{fitted.path}: the same value in every row of {tables.listing(names)}; "
            "expected columns that differ. Name others with --columns."
        )
    left_out, warnings = dict(source.left_out), list(source.warnings)
    for place, name in zip(same, names, strict=True):
        left_out[name] = "the same value in every row"
        value = fitted.values[0, place]
        others = int((source.values[:, place] != value).sum())
        if usual:
            left_out[name] += f" of {usual.path.name}"
        if others:
            warnings.append(
                f"Column {name!r} is left out, for it is {value:g} in every row of "
                f"{fitted.path.name}; in {source.path.name} {others:,} rows have "
                "another value, and nothing is made of it."
            )
    source = dataclasses.replace(
        _only(source, same), left_out=left_out, warnings=tuple(warnings)
    )
    return source, usual and _only(usual, same)


def without_counters(source: Source, usual: Source) -> tuple[Source, Source]:
    """Both less the columns that count the usual rows, for an input may be too short.

    Raises
    ------
    MedlmError
        If no other column is left.
    """
    assert usual.values is not None
    why = {
        n: measured.identifier(usual.values[:, n]) for n in range(len(usual.columns))
    }
    dropped = [place for place, reason in why.items() if reason]
    told = {
        source.columns[place]: f"{why[place]}, in {usual.path.name}"
        for place in dropped
    }
    if len(dropped) == len(source.columns):
        raise measured.no_numbers(source.path, source.left_out | told)
    source = dataclasses.replace(source, left_out=source.left_out | told)
    return _only(source, np.array(dropped, int)), _only(usual, np.array(dropped, int))


def _only(source: Source, dropped: np.ndarray) -> Source:
    """The rows without some of their columns."""
    assert source.values is not None
    kept = np.setdiff1d(np.arange(len(source.columns)), dropped)
    names = tuple(source.columns[place] for place in kept)
    values = np.ascontiguousarray(source.values[:, kept])
    return dataclasses.replace(source, columns=names, values=values)


def shared(source: Source, usual: Source) -> int:
    """How many rows stand among the usual rows too, equal in all that is compared."""
    known = set(_row_keys(usual))
    return sum(key in known for key in _row_keys(source))


def _row_keys(source: Source) -> Iterator[int]:
    """One number a row, the same for equal rows."""
    if source.values is None:
        yield from (hash(source.text_of(fields)) for fields in source.fields())
        return
    for _, chunk in chunks_of(source.values):
        for row in chunk.astype(float) + 0.0:  # for -0.0 equals 0.0
            yield hash(row.tobytes())


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
    places = tuple(measured.place_of(table, heading, name, "text") for name in names)
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
    most = min(measured.LARGEST, float(np.finfo(values.dtype).max))
    for start, chunk in chunks_of(values):
        bad = np.argwhere(~(np.abs(chunk) <= most))  # comparing with NaN is False
        if len(bad):
            row, column = bad[0]
            raise MedlmError(
                f"{path}, row {start + row + 1:,}, column {column + 1:,} (both counted "
                f"from 1): {chunk[row, column]}; expected finite numbers up to 1e15 in "
                "size. Leave the row out, or make the array again."
            )
