"""Which columns of a table are measurements, and their numbers.

Knows nothing about detectors. What is no measurement is left out, with the reason; what
nearly is one is an error, so that no slip of the pen removes a column.
"""

from __future__ import annotations

import array
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medlm_utils.cli import run, tables
from medlm_utils.runtime import MedlmError

LARGEST = 1e15  # as in `anomaly`: beyond it the squares of float32 overflow
NOT_MEASURED = {
    run.PATIENT: "its name says whose row it is",
    "label": "its name says that it is an answer",
}
NEARLY_ALL = 0.9  # of the values are numbers: then the others are slips
BY_CHANCE = 1e-3  # how rarely measured whole numbers may be taken for a counter

_SURELY_TEXT = 1000  # values that are no numbers, before any that is one
_SHOWN = 6  # characters of a value that an error may quote: too few for a note

# Whole headings that count rows or name people, with or without blanks between.
_WHOSE = r"patient|subject|participant|person|individual|proband|pat"
_COUNTED = (
    r"row|index|idx|nr|no|num|number|nummer|numero|numéro|id|record|rec|line|seq|"
    r"sequence|case|fall|study|sample|visit|stay|hadm|encounter|admission|hospital|"
    r"medical|file|image|scan|unnamed0?"
)
# Words of a heading that say the same wherever they stand.
_MARKS = {
    *("id", "ids", "identifier", "mrn", "uid", "uuid", "guid", "ssn", "nhs", "barcode"),
    *("zip", "zipcode", "postcode", "plz", "phone", "telephone", "telefon", "fax"),
    *("accession", "snomed", "sctid", "loinc", "date", "datum", "dob", "timestamp"),
}

_SIGN, _DIGITS = r"[-+−–]?", r"\d+"
_NEAR = {  # what a person reads as a number, and why a program does not
    "a decimal comma": rf"{_SIGN}(\d*,{_DIGITS}|{_DIGITS},)",
    "a mark between thousands": rf"{_SIGN}\d{{1,3}}([,.'’  ]\d{{3}})+([.,]\d*)?",
    "a limit and no value": rf"[<>≤≥=~≈]+\s*{_SIGN}{_DIGITS}([.,]\d+)?",
    "a percent sign": rf"{_SIGN}{_DIGITS}([.,]\d+)?\s*%",
    "a unit or letters": rf"{_SIGN}{_DIGITS}([.,]\d+)?\s*[^\W\d_][\w/.²³^*]{{0,9}}|"
    rf"{_SIGN}{_DIGITS}([.,]\d+)?\s*[/°]\s*\w{{1,9}}",
    "another minus sign": rf"[−–]\s*{_DIGITS}(\.\d+)?",
}
_OTHER = {
    "dates or times": r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}.*|\d{1,2}:\d{2}.*",
    "true or false; write 1 and 0 to use it": r"(?i:true|false|yes|no)",
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The columns of a table that are used.

    Parameters
    ----------
    count
        Rows of the table.
    heading
        Names of all its columns.
    names
        Of those that are used.
    values
        (rows, columns) their finite numbers.
    left_out
        Other columns to the reason.
    warnings
        What may be meant, or a mistake.
    """

    count: int
    heading: tuple[str, ...]
    names: tuple[str, ...]
    values: np.ndarray
    left_out: dict[str, str]
    warnings: tuple[str, ...]


def read(
    path: Path,
    names: Sequence[str] = (),
    excluded: Sequence[str] = (),
    is_named: bool | None = None,
) -> Numbers:
    """The numbers of a table.

    Parameters
    ----------
    path
        As `tables.rows` reads it, with a heading.
    names
        Of the columns to use; none: all that are measurements, by `Column.why_not`.
    excluded
        Of columns that are not to be used.
    is_named
        Whether --columns names them; None: if there are names.

    Raises
    ------
    MedlmError
        If the file cannot be read, lacks a column, has no column of numbers, or a
        value of a column that is used is missing, no number, or above 1e15 in size.
    """
    is_named = bool(names) if is_named is None else is_named
    reading = iter(tables.rows(path))
    _, heading = next(reading)
    warnings = check_heading(path, heading)
    left_out = {} if names else _known(path, heading, excluded)
    columns = _columns(path, heading, names, left_out)
    count = 0
    for line, fields in reading:
        count += 1
        for column in columns:
            column.add(line, fields[column.place])
    if not count:
        raise tables.no_rows(path)
    for column in columns:
        column.settle()
    if not names:
        why = {column.name: column.why_not(warnings) for column in columns}
        left_out |= {name: reason for name, reason in why.items() if reason}
        columns = [column for column in columns if not why[column.name]]
    if not columns:
        raise no_numbers(path, left_out)
    _refuse_doubles(path, columns)
    for column in columns:
        column.refuse_faults(is_named)
        warnings += column.doubts() if not names else []
    commas = [column.name for column in columns if column.comma]
    if commas:
        listed = tables.listing(commas)
        warnings.append(f"Decimal commas are read as points in {listed}.")
    values = np.column_stack([column.numbers for column in columns])
    found = tuple(column.name for column in columns)
    in_order = {name: left_out[name] for name in heading if name in left_out}
    return Numbers(count, tuple(heading), found, values, in_order, tuple(warnings))


# The heading --------------------------------------------------------------------------


def check_heading(path: Path, heading: Sequence[str]) -> list[str]:
    """Refuse a first row of values, and warn where it may be one; shows none of them.

    Names that are numbers in rising order may be wavelengths or years.
    """
    numbers = [float(name) for name in heading if _is_number(name)]
    if not numbers or 2 * len(numbers) < len(heading):
        return []
    steps = np.diff(numbers)
    if len(numbers) == 1 or not (steps > 0).all():
        raise MedlmError(
            f"{path}: of the {len(heading):,} names in its first row {len(numbers):,} "
            "can be read as numbers. Is the heading "
            "missing? Expected the names of the columns first."
        )
    if (steps == 1).all() and numbers[0] in (0, 1):  # as pandas names them
        return []
    return [
        f"Of the {len(heading):,} names in the first row of {path.name} "
        f"{len(numbers):,} are numbers. If it is no heading, one row is not judged."
    ]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(parse(text))
    except ValueError:
        return False


def _known(
    path: Path, heading: Sequence[str], excluded: Sequence[str]
) -> dict[str, str]:
    """The columns that are left out unread."""
    found = (place_of(path, heading, name, "exclude", many=True) for name in excluded)
    known = {heading[place]: "named by --exclude" for place in found}
    for name in heading:
        if name.strip().lower() in NOT_MEASURED:
            known.setdefault(name, NOT_MEASURED[name.strip().lower()])
        elif not name.strip():
            known[name] = "it has no name"
    return known


def place_of(
    path: Path, heading: Sequence[str], name: str, what: str, many: bool = False
) -> int:
    """Where the column of this name stands, whatever blanks surround its heading.

    Parameters
    ----------
    path, heading, name
        The file, the names of its columns, and the one that is looked for.
    what
        The option that names it.
    many
        Whether several columns may have the name.

    Raises
    ------
    MedlmError
        If there is none, or more than one.
    """
    if name not in heading:
        alike = [other for other in heading if other.strip() == name.strip()]
        name = alike[0] if alike else name
    if many and name in heading:
        return heading.index(name)
    return tables.place_of(path, list(heading), name, what)


def _columns(
    path: Path,
    heading: list[str],
    names: Sequence[str],
    left_out: dict[str, str],
) -> list[Column]:
    """The columns to read: those named, or all that are not known to be left out."""
    if names:
        places = [place_of(path, heading, name, "columns") for name in names]
    else:
        places = [n for n, name in enumerate(heading) if name not in left_out]
    return [Column(path, heading[place], place) for place in places]


def _refuse_doubles(path: Path, columns: Sequence[Column]) -> None:
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise MedlmError(
                f"{path} has {names.count(name)} columns {name!r}; expected one. "
                "Rename the others, or leave all of them out with --exclude."
            )


def no_numbers(path: Path, left_out: dict[str, str]) -> MedlmError:
    """The error of a table in which nothing has been measured."""
    reasons = "; ".join(
        f"{tables.listing([name])}: {why}" for name, why in list(left_out.items())[:8]
    )
    return MedlmError(
        f"{path} has no column of measured numbers. Left out: {reasons}. Name columns "
        "of text with --text, or of numbers with --columns."
    )


# One column ---------------------------------------------------------------------------


class Column:
    """The numbers of one column, and a count of the values that are none.

    Parameters
    ----------
    path, name, place
        The file, the heading of the column, and where it stands, from 0.
    """

    def __init__(self, path: Path, name: str, place: int):
        self.path, self.name, self.place = path, name, place
        self.values = array.array("d")  # NaN where there is no number
        self.numbers = np.empty(0)
        self.plain = self.points = 0  # numbers, and those with a decimal point
        self.comma = 0  # numbers with a decimal comma, which are read if all have one
        self.is_thousand = True  # three digits follow each comma
        self.zeros = 0  # whole numbers such as 007
        self.widths: set[int] = set()  # digits of whole numbers; 0 for others
        self.gaps, self.first_gap = 0, (0, "")
        self.huge, self.first_huge = 0, (0, "")
        self.strange: dict[str, int] = {}  # the kind of a value that is none, how often
        self.first: dict[str, tuple[int, str]] = {}

    def add(self, line: int, text: str) -> None:
        """Take the value of one row."""
        if not self.plain and self.strange.get("text", 0) >= _SURELY_TEXT:
            return
        text = text.strip()
        try:
            value = parse(text)
        except ValueError:
            self.values.append(self._strange(line, text))
            return
        if math.isnan(value):
            self.gaps += 1
            self.first_gap = self.first_gap if self.gaps > 1 else (line, text)
        elif abs(value) > LARGEST:
            self.huge += 1
            self.first_huge = self.first_huge if self.huge > 1 else (line, text)
            self.plain += 1
        else:
            self.plain += 1
            self.points += "." in text
            width = len(text) if text.isdecimal() else 0
            self.zeros += width > 1 and text[0] == "0"
            self.widths.add(width)
        self.values.append(value)

    def _strange(self, line: int, text: str) -> float:
        """Count it; the number of a decimal comma, else NaN."""
        kind = kind_of(text)
        self.strange[kind] = self.strange.get(kind, 0) + 1
        self.first.setdefault(kind, (line, text))
        if kind == "a decimal comma":
            self.comma += 1
            self.is_thousand &= bool(re.fullmatch(r"\D?[1-9]\d{0,2},\d{3}", text))
            return float(text.replace(",", ".").translate(str.maketrans("−–", "--")))
        return math.nan

    def settle(self) -> None:
        """Once all rows are there: commas are read where no value has a point."""
        self.numbers = np.array(self.values)
        if self.comma and not self.points and not self.is_thousand:
            self.plain += self.strange.pop("a decimal comma")
            self.first.pop("a decimal comma")

    @property
    def strangers(self) -> int:
        """Values that are no numbers."""
        return sum(self.strange.values())

    # What is wrong with it

    def why_not(self, warnings: list[str]) -> str:
        """Why it is no measurement; nothing where it is one.

        Parameters
        ----------
        warnings
            Gets one more where numbers are lost with the column.

        Raises
        ------
        MedlmError
            If nearly all of its values are numbers.
        """
        present = self.plain + self.strangers
        if not present:
            return "no value in any row"
        known = self.numbers[np.isfinite(self.numbers)]
        if named_identifier(self.name, known):
            return "by its name and its whole numbers an identifier or a date"
        if self.strangers:
            return self._why_strange(present, warnings)
        if self.gaps > present:
            return f"no value in {self.gaps:,} of {self.gaps + present:,} rows"
        if self.gaps or self.huge:
            return ""  # which `refuse_faults` says
        if self.zeros and len(self.widths) == 1 and min(self.widths) >= 4:
            return "whole numbers of one width, with a 0 in front: a code"
        return identifier(known)

    def _why_strange(self, present: int, warnings: list[str]) -> str:
        near = sum(self.strange.get(kind, 0) for kind in _NEAR)
        if self.plain >= NEARLY_ALL * present or (
            2 * self.plain >= present and self.plain + near >= NEARLY_ALL * present
        ):
            raise self._no_number(is_named=False)
        kind = max(self.strange, key=lambda one: self.strange[one])
        line, text = self.first[kind]
        where = f"the first in {_where(self.path, line)}"
        if self.plain:
            why = f"{self.strangers:,} of {present:,} values are no numbers, {where}"
        elif kind in _NEAR:
            why = f"numbers with {self._near(kind)}, {where} ({_quoted(text)})"
        else:
            why = f"{kind}, {where}" if kind == "text" else kind
        if 2 * self.plain >= present or self.plain + near >= NEARLY_ALL * present:
            warnings.append(
                f"Column {self.name!r} is left out although it looks like one of "
                f"numbers: {why}. Write each as a number with a decimal point."
            )
        return why

    def _near(self, kind: str) -> str:
        """Why a program cannot read what a person takes for a number."""
        if kind != "a decimal comma":
            return kind
        if self.is_thousand:
            return "a comma that may mark thousands or decimals"
        return f"{kind}, where others have a point" if self.points else kind

    def refuse_faults(self, is_named: bool) -> None:
        """Refuse a value that cannot be used.

        Parameters
        ----------
        is_named
            Whether --columns names it.

        Raises
        ------
        MedlmError
            For the first such value, with its line and its column.
        """
        if self.strangers:
            raise self._no_number(is_named)
        if self.huge:
            line, text = self.first_huge
            raise self._error(
                line,
                f"{_quoted(text)}{_more(self.huge)}; expected numbers up to 1e15 in "
                "size, for the squares of larger ones are beyond what is computed, and "
                "few measurements are. If it is one, write it in another unit",
                is_named,
            )
        if self.gaps:
            line, text = self.first_gap
            raise self._error(
                line,
                f"{repr(text) if text else 'nothing'}{_more(self.gaps)}; expected a "
                "finite number in every row. Fill it in, leave the row out",
                is_named,
            )

    def _no_number(self, is_named: bool) -> MedlmError:
        kind = min(self.first, key=lambda one: self.first[one][0])
        line, text = self.first[kind]
        why = f" ({self._near(kind)})" if kind in _NEAR else ""
        share = f"{self.plain:,} of {self.plain + self.strangers:,} values are numbers"
        return self._error(
            line,
            f"{_quoted(text)} is no number{why}{_more(self.strangers)}; expected one, "
            f"with a decimal point: {share}. Correct it",
            is_named,
        )

    def _error(self, line: int, words: str, is_named: bool) -> MedlmError:
        way_out = "name other columns with --columns"
        if not is_named:
            way_out = f"leave the column out: --exclude {_shell(self.name)}"
        where = f"{self.path}, {_where(self.path, line)}, column {self.name!r}"
        return MedlmError(f"{where}: {words}, or {way_out}.")

    def doubts(self) -> list[str]:
        """What may be a mistake in a column that is used and not named."""
        found = []
        why = perhaps_identifier(self.numbers)
        if not why and self.zeros:
            why = f"{self.zeros:,} of its whole numbers are written with a 0 in front"
        if why:
            found.append(
                f"Column {self.name!r} may be an identifier or a code: {why}. It takes "
                f"part; to leave it out: --exclude {_shell(self.name)}."
            )
        for value in stand_ins(self.numbers):
            count = int((self.numbers == value).sum())
            found.append(
                f"Column {self.name!r} holds {value:g}{_rows(count)}, far from all "
                "other values. If it stands for a missing value, correct it: such rows "
                "are flagged for that alone."
            )
        return found


def parse(text: str) -> float:
    """A number; NaN for a value that is missing.

    Raises
    ------
    ValueError
        If it is neither.
    """
    text = text.strip()
    if text.lower() in tables.MISSING:
        return math.nan
    if "_" in text:  # which Python takes for a part of a number
        raise ValueError(text)
    return float(text)


def kind_of(text: str) -> str:
    """What a value that is no number is instead; ``"text"`` if nothing is known."""
    if len(text) <= 30:
        for kind, pattern in (_OTHER | _NEAR).items():
            if re.fullmatch(pattern, text):
                return kind
    return "text"


def _quoted(text: str) -> str:
    """A value as an error may show it: a number with its unit, but no note."""
    if len(text) <= _SHOWN or (len(text) <= 20 and kind_of(text) in _NEAR):
        return repr(text)
    if _is_large(text):
        return repr(text[:20])
    if kind_of(text) == "dates or times":
        return "a date or time"
    return f"a text of {len(text):,} characters"


def _is_large(text: str) -> bool:
    try:
        return abs(float(text)) > LARGEST
    except ValueError:
        return False


def _where(path: Path, line: int) -> str:
    return f"{tables.counted_in(path)} {line}"


def _more(count: int) -> str:
    return f" (the first of {count:,})" if count > 1 else ""


def _rows(count: int) -> str:
    return " in 1 row" if count == 1 else f" in {count:,} rows"


def _shell(name: str) -> str:
    """A name as it stands on a command line."""
    return name if re.fullmatch(r"[\w.-]+", name) else f"'\"{name}\"'"


# Identifiers --------------------------------------------------------------------------


def named_identifier(name: str, values: np.ndarray) -> bool:
    """Whether a heading says that its whole numbers are no measurements.

    Parameters
    ----------
    name
        Such as ``patient_id``, ``MRN``, ``row`` or ``zip code``. Words that only
        count, such as ``row`` or ``number``, say so if all values differ.
    values
        (rows,) those that are not missing.
    """
    if not _is_whole(values):
        return False
    squeezed = re.sub(r"[\W_]+", "", name.lower())
    if re.fullmatch(f"({_WHOSE}|{_COUNTED})+", squeezed) or name.strip() == "#":
        says_whose = re.search(f"{_WHOSE}|id$", squeezed) is not None
        return says_whose or _all_differ(values)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    has_mark = not _MARKS.isdisjoint(word.lower() for word in words)
    return has_mark and len(np.unique(values)) > 2  # 0 and 1 answer a question


def identifier(values: np.ndarray) -> str:
    """Why numbers are no measurements, whatever their heading; else nothing.

    Independent measurements on a scale of m whole numbers are all different with the
    probability (1 - 1/m)(1 - 2/m)... at most, as if each number were as likely as any
    other: this is the birthday problem. So `BY_CHANCE` bounds how often a measured
    column is taken for a counter.

    Parameters
    ----------
    values
        (rows,) those that are not missing.
    """
    if not _is_whole(values):
        return ""
    if _are_dates(values):
        return "dates written as whole numbers"
    if not _all_differ(values):
        return ""
    size = values.max() - values.min() + 1
    chance = np.log1p(-np.arange(len(values)) / size).sum()
    if chance < math.log(BY_CHANCE):
        return "whole numbers, all different and close together: a counter"
    if np.abs(values).min() >= 1e9 and not _are_rounded(values):
        return "whole numbers of 10 digits or more, all different: an identifier"
    return ""


def perhaps_identifier(values: np.ndarray) -> str:
    """Why used numbers may be an identifier; nothing if they look measured."""
    if len(values) < 6 or not _is_whole(values) or not _all_differ(values):
        return ""
    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():
        return "whole numbers, all different, in order"
    digits = np.floor(np.log10(np.maximum(np.abs(values), 1)))
    if digits.min() == digits.max() >= 4 and not _are_rounded(values):
        return f"whole numbers of {digits.max() + 1:.0f} digits, all different"
    return ""


def _is_whole(values: np.ndarray) -> bool:
    return len(values) > 0 and bool((values == np.floor(values)).all())


def _all_differ(values: np.ndarray) -> bool:
    return len(np.unique(values)) == len(values)


def _are_rounded(values: np.ndarray) -> bool:
    """Whether they end in 0, as large measurements do."""
    return bool((values % 10 == 0).mean() > 0.5)


def _are_dates(values: np.ndarray) -> bool:
    """Whether all are like 20240531."""
    year, month, day = values // 10_000, values // 100 % 100, values % 100
    is_year = (year >= 1850) & (year <= 2150)
    is_day = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return bool((is_year & is_day).all())


# Stand-ins ----------------------------------------------------------------------------


def stand_ins(values: np.ndarray) -> list[float]:
    """Values such as -999 or 9999 that lie further off than all others are apart.

    Parameters
    ----------
    values
        (rows,)
    """
    found = []
    for value in (values.min(), values.max()):
        rest = values[values != value]
        digits = f"{abs(value):.15g}"
        if not len(rest) or not set(digits) <= {"9"}:
            continue
        gap = np.abs(rest - value).min()
        if gap > rest.max() - rest.min():
            found.append(float(value))
    return found
