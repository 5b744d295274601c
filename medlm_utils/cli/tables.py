"""Tables of notes: each fault is one clear error before any work.

Knows nothing about models, nor how the kinds of files differ. A small file becomes a
`Table`; a file of any size is scanned once, so that every fault is found, and then read
in chunks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medlm_utils.cli.formats import counted_in, rows
from medlm_utils.runtime import MedlmError

# How programs write that there is no value; "none" is left out, for it can be a class.
MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "null"}
MISSING |= {"#div/0!", "#name?", "#null!", "#num!", "#ref!", "#value!"}  # of Excel
_NOBODY = frozenset(("unknown", "unk", "none", "missing", "anonymous", "-", "?"))
ENOUGH = 50  # patients, or notes, below which an interval is somewhat too narrow
_LOOK = 200  # rows in which a value of the first one may come again
_SHORTENED = r"(?i)\d[.,]\d+e\+?\d+|\de\+\d+"  # 1.23457E+11
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
    separator
        Of the labels of a note that has several; None: each has one.
    part
        Which one of the file it is; empty for the whole.
    """

    path: Path
    sha256: str
    text: tuple[str, ...]
    label: tuple[str, ...]
    patient: tuple[str, ...] | None
    separator: str | None = None
    part: str = ""

    def __len__(self) -> int:
        """Notes."""
        return len(self.text)

    def __str__(self) -> str:
        """What it is called in a message."""
        return f"the {self.part} part of {self.path}" if self.part else str(self.path)

    def chosen(self, rows: Sequence[int], part: str) -> Table:
        """Some of its notes, as a part of this name."""
        patient = self.patient
        return dataclasses.replace(
            self,
            text=tuple(self.text[row] for row in rows),
            label=tuple(self.label[row] for row in rows),
            patient=None if patient is None else tuple(patient[row] for row in rows),
            part=part,
        )

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The labels of each note: one, or several different ones."""
        return tuple(_pieces(cell, self.separator) for cell in self.label)

    @property
    def classes(self) -> tuple[str, ...]:
        """All its different labels, in the order of `classes`."""
        return classes([label for labels in self.labels for label in labels])

    @property
    def unit(self) -> str:
        """What an interval resamples: ``"patient"``, or ``"note"`` where unknown."""
        return "note" if self.patient is None else "patient"

    @property
    def groups(self) -> tuple[str, ...]:
        """The unit that each note belongs to; 5, 5.0 and 005 are one patient."""
        if self.patient is None:
            return tuple(map(str, range(len(self))))
        return tuple(map(plain, self.patient))


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


def read(
    path: Path,
    text: str,
    label: str,
    patient: str | None,
    separator: str | None = None,
) -> Table:
    """The notes of a file and their labels.

    Parameters
    ----------
    path
        As `formats.rows` reads it, with a heading.
    text, label, patient
        Names of its columns; None for a file that does not name its patients.
    separator
        Of the labels in a cell; None: each is one label as it stands.

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
    _refuse_two_roles(wanted)
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
        if what == "label" and separator:
            is_missing = functools.partial(_lacks_label, separator=separator)
        missing = [n for n, v in enumerate(values) if is_missing(v)]
        cell = values[missing[0]].strip() if missing and what != "text" else ""
        places_ = [lines[n] for n in missing]
        refuse_missing(path, what, wanted[what], places_, cell)
    return Table(
        path,
        sha256(path),
        columns["text"],
        tuple(map(str.strip, columns["label"])),
        tuple(map(str.strip, columns["patient"])) if "patient" in columns else None,
        separator,
    )


def _refuse_two_roles(wanted: Mapping[str, str]) -> None:
    """A model that reads the label beside, or as, the text learns nothing."""
    for (one, name), (two, other) in itertools.combinations(wanted.items(), 2):
        if name == other:
            raise MedlmError(
                f"--{one} and --{two} both name the column {name!r}; expected a column "
                "for each."
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
    known = training.classes
    if len(known) < 2:
        raise MedlmError(
            f"All {len(training):,} labels of {training} are {listing(known)}; "
            "expected at least two classes. Is --label the right column?"
        )
    for other in others:
        _refuse_unseen(training, other, known)
    warnings = _nameless(training) + _written_twice(training, known)
    warnings += _never_several(training)
    warnings += [warning for other in others for warning in _one_class(other)]
    for table in parts.values():
        warnings += _one_patient_twice(table) + _shortened(table) + _nobody(table)
    words = {name: list(map(_bare_words, table.text)) for name, table in parts.items()}
    for (one, a), (two, b) in itertools.combinations(parts.items(), 2):
        if a.sha256 == b.sha256 and a.part == b.part:
            raise MedlmError(
                f"{a} and {b} are the same file; expected other notes for "
                f"{two} than for {one}."
            )
        _refuse_shared_patients(a, b)
        known_texts = set(words[one])
        shared = sum(text in known_texts for text in words[two])
        if shared:
            also = f"is a {one} text" if shared == 1 else f"are {one} texts"
            warnings.append(
                f"{shared:,} of {len(b):,} {two} texts {also} too, word for word; "
                "results on them say little about new notes."
            )
    return warnings


def _bare_words(text: str) -> str:
    """The words of a text: capitals and blanks do not make it another one."""
    return " ".join(text.casefold().split())


def _nobody(table: Table) -> list[str]:
    """A warning where notes of whoever count as one person's."""
    named = [patient.casefold() for patient in table.patient or ()]
    found = {name: named.count(name) for name in _NOBODY.intersection(named)}
    return [
        f"{count:,} notes of {table} are of the patient {name!r}, who counts as one "
        "person; if they are of several, leave them out or name them."
        for name, count in sorted(found.items())
        if count > 1
    ]


def few_patients(parts: Mapping[str, Table]) -> list[str]:
    """A warning where intervals are too narrow: of parts after the training notes."""
    _, *others = parts.items()
    few = [
        f"{len(set(table.groups)):,} in {name}"
        for name, table in others
        if len(set(table.groups)) < ENOUGH
    ]
    unit = "notes" if others[0][1].patient is None else "patients"
    return [
        f"Few {unit}: {', '.join(few)}. Below about {ENOUGH}, intervals are somewhat "
        "too narrow."
    ] * bool(few)


def _nameless(training: Table) -> list[str]:
    """A warning where nobody can see whose notes they are."""
    if training.patient is not None:
        return []
    split = "it was split by note, " if training.part else ""
    return [
        f"{training.path} does not name its patients: {split}nobody can see whether "
        "one has notes in two parts, and intervals are by note. Name the column with "
        "--patient."
    ]


def _written_twice(training: Table, known: Sequence[str]) -> list[str]:
    """Warnings of labels that are rather one, or several, than what they are here."""
    warnings = []
    twice = _alike(known)
    if twice:
        pairs = " and ".join(map(repr, twice[0]))
        warnings.append(
            f"{training} has the labels {pairs}, each a class of its own, though they "
            f"differ in writing only{_more(twice)}. If they mean the same, write them "
            "alike."
        )
    for mark in "|;":
        several = [k for k in known if mark in k and set(_pieces(k, mark)) & set(known)]
        if several and training.separator is None:
            warnings.append(
                f"{training} has labels such as {listing(several[:1])}, each a class "
                f"of its own. If a note may have several, add --multi-label '{mark}'."
            )
    return warnings


def _never_several(training: Table) -> list[str]:
    """A warning where the mark between labels is rather another one."""
    if training.separator is None or any(len(n) > 1 for n in training.labels):
        return []
    return [
        f"No note of {training} has two labels with {training.separator!r} between "
        "them; each cell is read as one label. Is --multi-label the right mark?"
    ]


def _one_class(other: Table) -> list[str]:
    """A warning of a part on which always naming one class is never wrong."""
    if len(other) < 2 or len(other.classes) > 1:  # one note: too few, told elsewhere
        return []
    return [
        f"All {len(other):,} labels of {other} are {listing(other.classes)}; its "
        "results say nothing about the other classes."
    ]


def _shortened(table: Table) -> list[str]:
    """A warning of long numbers that a spreadsheet has cut to a few digits."""
    short = [p for p in table.patient or () if re.fullmatch(_SHORTENED, p, re.ASCII)]
    return [
        f"{table} has {listing(classes(short), 'patient')}, as spreadsheets shorten "
        "long numbers: different people may have become one, or one several. Export "
        "the numbers again, as text."
    ] * bool(short)


def _one_patient_twice(table: Table) -> list[str]:
    twice = _alike(table.patient or ())
    return [
        f"{table} has patients {' and '.join(map(repr, same))}, which differ in "
        f"writing only{_more(twice)}; they count as one. Write them alike, or give "
        "different people names that differ in more."
        for same in twice[:1]
    ]


def _more(found: Sequence[object]) -> str:
    return f" (the first of {len(found):,} such cases)" if len(found) > 1 else ""


def plain(name: str) -> str:
    """A name without what programs change: 5, 5.0, 005 and p5, P5 become one."""
    name = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = re.fullmatch(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?", name, re.ASCII)
    if number is None:
        return name
    sign, whole, fraction = number.groups()
    return f"{sign.strip('+')}{whole}{'.' * bool(fraction)}{fraction or ''}"


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Different names that are `plain` the same, together."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(plain(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _pieces(cell: str, separator: str | None) -> tuple[str, ...]:
    """The labels of a cell, each of them once."""
    if separator is None:
        return (cell,)
    pieces = (piece.strip() for piece in cell.split(separator))
    return tuple(dict.fromkeys(filter(None, pieces)))


def _lacks_label(cell: str, separator: str) -> bool:
    pieces = _pieces(cell, separator)
    return not pieces or any(map(_is_missing, pieces))


def _refuse_unseen(training: Table, other: Table, known: Sequence[str]) -> None:
    unseen = [label for label in other.classes if label not in set(known)]
    if not unseen:
        return
    written = {plain(label): label for label in known}
    same = [(label, written.get(plain(label))) for label in unseen]
    hints = [f" {a!r} may be {b!r}, written another way." for a, b in same if b]
    raise MedlmError(
        f"{other} has {listing(unseen, 'label')} that {training} does not have; its "
        f"labels are {listing(known)}.{''.join(hints[:1])} A model cannot learn a "
        "class without training notes: add some, or leave these rows out."
    )


def _refuse_shared_patients(one: Table, other: Table) -> None:
    shared = classes(list(set(one.patient or ()) & set(other.patient or ())))
    if shared:
        raise MedlmError(
            f"{one} and {other} share {listing(shared, 'patient')}; "
            "expected all notes of a patient in one file, else the model is tested on "
            "people whom it knows. Split by patient."
        )
    here = {plain(name): name for name in one.patient or ()}
    there = {plain(name): name for name in other.patient or ()}
    both = [(here[name], there[name]) for name in here if name in there]
    for a, b in both[:1]:
        raise MedlmError(
            f"{one} has a patient {a!r} and {other} a patient {b!r}{_more(both)}: one "
            "person, as it seems, written in two ways. Expected all notes of a patient "
            "in one file: write names alike and split by patient, or give different "
            "people names that differ in more than zeros, case and spaces."
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
    """Whether there is nothing to see: a zero-width space is none for `strip`."""
    return all(mark.isspace() or not mark.isprintable() for mark in text)


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
