"""Tables of notes: each fault is one clear error before any work.

Knows nothing about models, nor how the kinds of files differ. A small file becomes a
`Table`; a file of any size is scanned once, so that every fault is found, and then read
in chunks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medlm_utils.cli.formats import counted_in, rows
from medlm_utils.runtime import MedlmError

# How programs write that there is no value; "none" is left out, for it can be a class.
MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "null"}
_LOOK = 200  # rows in which a value of the first one may come again
LONGEST_NAME = 40  # of what is quoted in an error: what is longer may be a note


@dataclasses.dataclass(frozen=True)
class Table:
    """Notes of one file with their labels.

    Parameters
    ----------
    path
        Where they are from.
    sha256
        Of the file.
    text, label
        One string a note, none of them empty.
    patient
        One string a note, or None where the file does not say whose notes they are.
    """

    path: Path
    sha256: str
    text: tuple[str, ...]
    label: tuple[str, ...]
    patient: tuple[str, ...] | None

    def __len__(self) -> int:
        """Notes."""
        return len(self.text)

    @property
    def unit(self) -> str:
        """What an interval resamples: ``"patient"``, or ``"note"`` where unknown."""
        return "note" if self.patient is None else "patient"

    @property
    def groups(self) -> tuple[str, ...]:
        """The unit that each note belongs to."""
        return self.patient or tuple(map(str, range(len(self))))


@dataclasses.dataclass(frozen=True)
class Stream:
    """Notes of a file of any size, of which a scan has found no fault.

    Parameters
    ----------
    path
        Where they are from.
    heading
        Names of the columns.
    column
        Place of the texts among them.
    count
        Rows.
    """

    path: Path
    heading: tuple[str, ...]
    column: int
    count: int

    def chunks(self, size: int) -> Iterator[list[list[str]]]:
        """The fields of all rows, `size` rows at a time, in their order."""
        reading = iter(rows(self.path))
        next(reading)
        seen = 0
        while chunk := [fields for _, fields in itertools.islice(reading, size)]:
            seen += len(chunk)
            if any(_is_empty(fields[self.column]) for fields in chunk):
                raise self.changed()
            yield chunk
        if seen != self.count:
            raise self.changed()

    def changed(self) -> MedlmError:
        """The error of a file that is no longer the one that was checked."""
        return MedlmError(
            f"{self.path} has changed while it was read; expected the same "
            f"{self.count:,} rows to the end. Run the command again."
        )


# Whole files --------------------------------------------------------------------------


def read(path: Path, text: str, label: str, patient: str | None) -> Table:
    """The notes of a file and their labels.

    Parameters
    ----------
    path
        As `formats.rows` reads it, with a heading.
    text, label, patient
        Names of its columns; None for a file that does not name its patients.

    Raises
    ------
    MedlmError
        If the file cannot be read, is no such file, lacks a column, or has a row
        without text, label or patient.
    """
    reading = iter(rows(path))
    _, heading = next(reading)
    wanted = {"text": text, "label": label}
    wanted |= {"patient": patient} if patient is not None else {}
    places = {what: place_of(path, heading, wanted[what], what) for what in wanted}
    lines, kept = [], []
    for line, fields in reading:
        lines.append(line)
        kept.append([fields[place] for place in places.values()])
    if not kept:
        raise no_rows(path)
    columns = dict(zip(wanted, zip(*kept, strict=True), strict=True))
    for what, values in columns.items():
        is_missing = _is_empty if what == "text" else _is_missing
        missing = [n for n, v in enumerate(values) if is_missing(v)]
        cell = values[missing[0]].strip() if missing else ""
        places_ = [lines[n] for n in missing]
        refuse_missing(path, what, wanted[what], places_, cell)
    return Table(
        path,
        sha256(path),
        columns["text"],
        tuple(map(str.strip, columns["label"])),
        tuple(map(str.strip, columns["patient"])) if "patient" in columns else None,
    )


def has_column(path: Path, name: str) -> bool:
    """Whether the heading of a file names this column."""
    return name in next(iter(rows(path)))[1]


def classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels in order: numbers by their size, words by the alphabet."""
    different = sorted(set(labels))
    if all(label.isdecimal() for label in different):
        different.sort(key=int)
    return tuple(different)


def check_parts(parts: Mapping[str, Table]) -> list[str]:
    """Refuse parts that cannot train a model, or tell nothing about one.

    Parameters
    ----------
    parts
        Name to notes; ``"training"`` comes first.

    Returns
    -------
    list of str
        Warnings: what may be meant, but makes a result look better than it is.

    Raises
    ------
    MedlmError
        If the training notes have one class only, another part has a class that they
        do not have, or a patient has notes in two parts.
    """
    training, *others = parts.values()
    known = classes(training.label)
    if len(known) < 2:
        raise MedlmError(
            f"All {len(training):,} labels of {training.path} are {listing(known)}; "
            "expected at least two classes. Is --label the right column?"
        )
    for other in others:
        _refuse_unseen(training, other, known)
    warnings = _nameless(training)
    for (one, a), (two, b) in itertools.combinations(parts.items(), 2):
        if a.sha256 == b.sha256:
            raise MedlmError(
                f"{a.path} and {b.path} are the same file; expected other notes for "
                f"{two} than for {one}."
            )
        _refuse_shared_patients(a, b)
        known_texts = set(a.text)
        shared = sum(text in known_texts for text in b.text)
        if shared:
            also = f"is a {one} text" if shared == 1 else f"are {one} texts"
            warnings.append(
                f"{shared:,} of {len(b):,} {two} texts {also} too, word for word; "
                "results on them say little about new notes."
            )
    return warnings


def _nameless(training: Table) -> list[str]:
    """A warning where nobody can see whose notes they are."""
    if training.patient is not None:
        return []
    return [
        f"{training.path} does not name its patients: nobody can see whether one has "
        "notes in two parts, and intervals are by note. Name the column with --patient."
    ]


def _refuse_unseen(training: Table, other: Table, known: Sequence[str]) -> None:
    unseen = classes([label for label in other.label if label not in set(known)])
    if unseen:
        raise MedlmError(
            f"{other.path} has {listing(unseen, 'label')} that {training.path} does "
            f"not have; its labels are {listing(known)}. A model cannot learn a class "
            "without training notes: add some, or leave these rows out."
        )


def _refuse_shared_patients(one: Table, other: Table) -> None:
    shared = classes(list(set(one.patient or ()) & set(other.patient or ())))
    if shared:
        raise MedlmError(
            f"{one.path} and {other.path} share {listing(shared, 'patient')}; "
            "expected all notes of a patient in one file, else the model is tested on "
            "people whom it knows. Split by patient."
        )


# Files of any size --------------------------------------------------------------------


def scan(path: Path, text: str) -> Stream:
    """Read a file once from end to end, and refuse it if anything is wrong.

    Parameters
    ----------
    path
        As `formats.rows` reads it, with a heading.
    text
        The column that holds the notes.

    Raises
    ------
    MedlmError
        If the file cannot be read, is no such file, lacks the column, or has a row
        without text.
    """
    reading = iter(rows(path))
    _, heading = next(reading)
    column = place_of(path, heading, text, "text")
    missing, count = [], 0
    for line, fields in reading:
        count += 1
        if _is_empty(fields[column]):
            missing.append(line)
    if not count:
        raise no_rows(path)
    refuse_missing(path, "text", text, missing)
    return Stream(path, tuple(heading), column, count)


# Lines and fields ---------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_empty(text: str) -> bool:
    return not text.strip()


def _is_missing(value: str) -> bool:
    return value.strip().lower() in MISSING


def place_of(path: Path, heading: list[str], name: str, what: str) -> int:
    """Where the column of this name stands."""
    if heading.count(name) == 1:
        return heading.index(name)
    if name in heading:
        raise MedlmError(
            f"{path} has {heading.count(name)} columns {name!r}; expected one."
        )
    raise MedlmError(f"{path} has no column {name!r}; {_found(path, heading, what)}")


def _found(path: Path, heading: list[str], what: str) -> str:
    """The columns that are there; what may be somebody's note is not shown."""
    if _may_be_values(path, heading):
        return (
            f"its first row, of {len(heading)} fields, does not look like names of "
            "columns. Is the heading missing? Add a first line that names them."
        )
    return f"it has {listing(heading, most=8)}. Name the right one with --{what}."


def _may_be_values(path: Path, heading: list[str]) -> bool:
    """Whether a heading is rather a first row: long, numbered, or seen again below."""
    words = [len(name.split()) for name in heading]
    if any(count > 4 for count in words) or any(map(_is_value, heading)):
        return True
    if max(words) > 1 and re.fullmatch(r"\D{0,3}\d+", heading[0].strip()):
        return True  # a number of a patient beside a few words
    again = itertools.islice(rows(path), 1, _LOOK)
    with contextlib.suppress(MedlmError):
        return any(
            name and name == f
            for _, row in again
            for name, f in zip(heading, row, strict=True)
        )
    return False


def _is_value(name: str) -> bool:
    is_number = name.strip().replace(".", "").isdecimal()
    return is_number or len(name) > LONGEST_NAME or name.strip().endswith((".", "!"))


def refuse_missing(
    path: Path, what: str, column: str, places: list[int], cell: str = ""
) -> None:
    """One clear error if a column has no value in some rows of a file.

    Parameters
    ----------
    path, what, column
        The file, what the column is for, and its name.
    places
        As `rows` counts them.
    cell
        What stands in the first of them, if anything: a word of `MISSING`.

    Raises
    ------
    MedlmError
        If there are any.
    """
    if not places:
        return
    rows_ = "1 row" if len(places) == 1 else f"{len(places):,} rows"
    where = "in" if len(places) == 1 else "the first in"
    counts = (
        f": the cell holds {cell!r}, which counts as missing. If {cell!r} is meant, "
        "write it another way"
        if cell
        else ""
    )
    raise MedlmError(
        f"{path}: {rows_} without a {what} (column {column!r}), {where} "
        f"{counted_in(path)} {places[0]}; expected one in every row{counts}. Fill it "
        "in, or leave the row out."
    )


def no_rows(path: Path) -> MedlmError:
    """The error of a file that ends after its heading."""
    return MedlmError(
        f"{path} has a heading and no rows; expected one note in each row."
    )


def listing(names: Sequence[str], noun: str = "", most: int = 3) -> str:
    """The first names, and how many there are in all; with a noun before them.

    A long one may be a note, if somebody named the wrong column: only its length is
    told.
    """
    shown = ", ".join(map(_quoted, names[:most]))
    if len(names) > most:
        shown += f", ... ({len(names):,} in all)"
    return f"the {noun}{'s' * (len(names) > 1)} {shown}" if noun else shown


def _quoted(name: str) -> str:
    if len(name) > LONGEST_NAME:
        return f"(a text of {len(name):,} characters)"
    return repr(name)
