"""The rows of a file of notes, whatever program wrote it, as strings.

Knows nothing about columns, labels or models. What kind a file is, its first bytes say,
not its name; none is read whole into memory.

Excel and Parquet are read by openpyxl and pyarrow themselves: pandas would make 5.0 of
5 in a column of whole numbers with gaps.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import functools
import gzip
import importlib
import io
import itertools
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils.runtime import MedlmError

LONGEST_FIELD = 10_000_000  # characters; a quote that is never closed is soon longer

Row = tuple[int, list[str]]  # where it begins in the file, and its fields

_SHORT, _KNOWN = 40, 1000  # characters, and values of a column, that are remembered
_HEAD = 4096  # bytes that tell what a file is
_GZIP = b"\x1f\x8b"
_BINARY = {b"PK\x03\x04": "excel", b"PAR1": "parquet"}
_PACKED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
}
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
_EXPECTED = (
    "Expected a CSV file in UTF-8, or Excel (.xlsx), Parquet or JSON lines (.jsonl)."
)
_AS_UTF8 = "Save it as UTF-8; spreadsheets call it 'CSV UTF-8'."


# Any file -----------------------------------------------------------------------------


def rows(path: Path) -> Iterator[Row]:
    """The heading, then all rows; those without anything are passed over.

    Parameters
    ----------
    path
        CSV in UTF-8, with commas, semicolons or tabs, or JSON lines, each also packed
        with gzip; Excel (.xlsx) with one sheet; Parquet.

    Yields
    ------
    tuple
        The line of the file, or the row where it has no lines (`counted_in`), and the
        fields: as many as the heading has. What is missing is an empty string.

    Raises
    ------
    MedlmError
        If the file cannot be read, is empty, or is none of these.
    """
    heading = None
    try:
        for place, fields in _READERS[_kind(path)](path):
            heading = heading or fields
            if len(fields) != len(heading):
                raise _uneven(path, place, fields, heading)
            yield place, fields
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MedlmError(
            f"{path} is packed with gzip, and damaged or cut short; copy it again."
        ) from error
    except OSError as error:
        why = error.strerror or "it is damaged"
        raise MedlmError(f"Cannot read {path}: {why}. {_EXPECTED}") from error
    if heading is None:
        raise MedlmError(
            f"{path} is empty; expected a CSV file whose first line names the columns."
        )


def counted_in(path: Path) -> str:
    """What the numbers of `rows` count: ``"line"``, or ``"row"`` of a sheet."""
    try:
        return "row" if _kind(path) in _BINARY.values() else "line"
    except (MedlmError, OSError, EOFError, zlib.error):
        return "line"


def _kind(path: Path) -> str:
    """A name of `_READERS`."""
    with _open(path) as file:
        head = file.read(_HEAD)
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            if _is_gzip(path):
                raise MedlmError(f"{path} is packed twice; unpack it with gunzip.")
            return kind
    _refuse_binary(path, head)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"\[\s*[{\[]", start):
        raise MedlmError(
            f"{path} is one piece of JSON; expected JSON lines: one object in each "
            "line. pandas writes them: to_json(..., orient='records', lines=True)."
        )
    return "json" if re.match(rb'\{\s*["}]', start) else "separated"


def _refuse_binary(path: Path, head: bytes) -> None:
    """What is no text, by name if it is well known."""
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise MedlmError(
                f"{path} is packed with {name}, which is not read; unpack it, or pack "
                "it with gzip."
            )
    if head.startswith(_OLD_EXCEL):
        raise MedlmError(
            f"{path} is an Excel file of the old kind (.xls), or has a password; save "
            "it as .xlsx without one."
        )
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(b"\0") > len(head) / 8:
        raise MedlmError(f"{path} is in UTF-16; expected UTF-8. {_AS_UTF8}")
    if b"\0" in head:
        raise MedlmError(f"{path} is no file of text. {_EXPECTED}")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _open(path: Path) -> Any:
    """The bytes of a file, unpacked."""
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _uneven(
    path: Path, place: int, fields: list[str], heading: list[str]
) -> MedlmError:
    what = counted_in(path)
    advice = (
        "A field with a comma or a line break stands in double quotes."
        if what == "line"
        else "Name every column in the first row."
    )
    return MedlmError(
        f"{path}, {what} {place}: {len(fields)} fields; expected {len(heading)}, as in "
        f"the heading. {advice}"
    )


def _not_utf8(path: Path) -> MedlmError:
    """Names the first line that cannot be decoded."""
    with _open(path) as file:
        line = next(n for n, bad in enumerate(map(_is_bad, file), start=1) if bad)
    return MedlmError(
        f"{path} is not in UTF-8: line {line} cannot be decoded. {_AS_UTF8}"
    )


def _is_bad(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


# Text ---------------------------------------------------------------------------------


def _separated(path: Path) -> Iterator[Row]:
    """CSV, whose heading tells what separates its fields."""
    csv.field_size_limit(LONGEST_FIELD)
    mark, line = _separator(path), 1
    is_first, seen = True, _Seen(mark)
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, delimiter=mark, strict=True)
            for fields in reader:
                if fields and not (is_first and _is_hint(fields)):
                    if swallowed := seen.rows_inside(fields):
                        raise _stray_quote(path, line, swallowed)
                    yield line, fields
                is_first = is_first and not fields
                line = reader.line_num + 1
    except csv.Error as error:
        raise _malformed(path, line, str(error)) from error


def _separator(path: Path) -> str:
    """Comma, semicolon or tab: what cuts the heading into the most names."""

    def names(mark: str) -> int:
        with _open_text(path) as file:
            filled = filter(None, csv.reader(file, delimiter=mark))
            heading = next(filled, [])
            return len(next(filled, []) if _is_hint(heading) else heading)

    try:
        return max(",;\t", key=names)  # the first of equal ones: the comma
    except csv.Error:  # which the reading itself reports
        return ","


class _Seen:
    """Short values that came in each column: they tell a row from lines of a note."""

    def __init__(self, mark: str):
        self._mark = mark
        self._values: list[set[str]] = []

    def rows_inside(self, fields: list[str]) -> int:
        """How many rows a field has taken in, from one stray quote to the next."""
        if not self._values:
            self._values = [set() for _ in fields]
        inside = [line for f in fields if "\n" in f for line in f.split("\n")[1:-1]]
        rows = sum(map(self._is_row, inside))
        if rows > 1 and 2 * rows > len(inside):
            return rows
        for known, value in zip(self._values, fields, strict=False):
            if len(value) <= _SHORT and len(known) < _KNOWN:
                known.add(value.strip())
        return 0

    def _is_row(self, line: str) -> bool:
        values = [value.strip().strip('"') for value in line.split(self._mark)]
        if len(values) != len(self._values):
            return False
        pairs = zip(values, self._values, strict=True)
        return any(value in known for value, known in pairs if value)


def _stray_quote(path: Path, line: int, rows: int) -> MedlmError:
    return MedlmError(
        f"{path}: a field of the row that begins in line {line} holds {rows} lines "
        "that look like rows of this file; expected a field to hold no rows. A double "
        "quote before a text is not closed there: close it, or write it twice."
    )


def _is_hint(fields: list[str]) -> bool:
    """Whether a first line is Excel's ``sep=;``, cut by whatever mark."""
    first = "".join(fields[:1]).lower()
    return first.startswith("sep=") and not any(fields[1:])


def _malformed(path: Path, line: int, why: str) -> MedlmError:
    if "end of data" in why or "field larger" in why:
        why = "a double quote is opened and not closed"
    return MedlmError(
        f"{path} is no CSV file that can be read: in the row that begins in line "
        f"{line}, {why}. A field with a comma, a quote or a line break stands in "
        "double quotes; a quote within it is written twice."
    )


def _json_lines(path: Path) -> Iterator[Row]:
    """One object a line; the heading is every key, in the order of appearance."""
    heading = list(dict.fromkeys(key for _, o in _objects(path) for key in o))
    if not heading:
        return
    yield 0, heading
    for line, values in _objects(path):
        if values:
            fields = (_json_field(path, line, k, values.get(k)) for k in heading)
            yield line, list(fields)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines; numbers stay as they are written."""
    with _open_text(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                found = json.loads(
                    text,
                    parse_int=str,
                    parse_float=str,
                    parse_constant=lambda _: None,
                    object_pairs_hook=functools.partial(_once, path, line),
                )
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise MedlmError(
                    f"{path}, line {line}: no JSON object; expected JSON lines, with "
                    "a whole object, {...}, in each line."
                )
            yield line, found


def _once(path: Path, line: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it names a key twice: which value is meant?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MedlmError(
            f"{path}, line {line}: a key stands twice in one object; expected each "
            "once."
        )
    return found


def _json_field(path: Path, line: int, key: str, value: Any) -> str:
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise MedlmError(
            f"{path}, line {line}: {key[:40]!r} holds {kind}; expected a text, a "
            "number, true, false or null. Make columns of its parts, or leave it out."
        )
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    # Half of a pair of surrogates, as a cut emoji leaves it, cannot be written again.
    return value if value.isascii() else value.encode(errors="replace").decode()


# Excel and Parquet --------------------------------------------------------------------


def _excel(path: Path) -> Iterator[Row]:
    """The only visible sheet that is not empty; numbers of rows are those of Excel."""
    openpyxl = _needed("openpyxl", path)
    try:
        with path.open("rb") as file:
            with _quiet():
                book = openpyxl.load_workbook(file, read_only=True, data_only=True)
                sheet = _only_sheet(path, book)
            yield from _sheet_rows(sheet)
    except MedlmError:
        raise
    except Exception as error:  # openpyxl has many for what is damaged
        raise MedlmError(
            f"{path} is no Excel workbook (.xlsx) that can be read: another kind of "
            "file, or damaged. Save it again."
        ) from error


def _only_sheet(path: Path, book: Any) -> Any:
    filled = []
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # which some programs write wrongly
        if sheet.sheet_state == "visible" and any(
            cell.value is not None for row in sheet.iter_rows() for cell in row
        ):
            filled.append(sheet)
    if not filled:
        raise MedlmError(f"{path} is empty; expected a sheet with a heading and rows.")
    if len(filled) > 1:
        names = ", ".join(repr(sheet.title) for sheet in filled[:5])
        raise MedlmError(
            f"{path} has {len(filled)} sheets with something in them: {names}. "
            "Expected one: save the one with the notes in a file of its own."
        )
    return filled[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without openpyxl's warnings of charts, rules and other extras."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sheet_rows(sheet: Any) -> Iterator[Row]:
    reading, width = sheet.iter_rows(), 0
    for number in itertools.count(1):
        with _quiet():  # never over a yield, which others' warnings would pass
            cells = next(reading, None)
        if cells is None:
            return
        fields = [_excel_field(cell) for cell in cells]
        while fields and not fields[-1]:
            fields.pop()
        if fields:
            width = width or len(fields)
            yield number, fields + [""] * (width - len(fields))


def _excel_field(cell: Any) -> str:
    """What Excel shows, but for dates, which are written 2024-05-31."""
    from openpyxl.utils.escape import unescape

    value = cell.value
    if isinstance(value, str):
        return unescape(value)
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.15g}"  # all the digits that Excel keeps
    zeros = re.fullmatch("0+", cell.number_format or "")  # such as 000, of numbers
    written = _field(value)
    return written.zfill(len(zeros[0])) if zeros and written.isdecimal() else written


def _parquet(path: Path) -> Iterator[Row]:
    """The table, in pieces; rows are counted from 1, without the heading."""
    pyarrow = _needed("pyarrow", path)
    parquet = _needed("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            for name, kind in zip(schema.names, schema.types, strict=True):
                _refuse_kind(path, name, str(kind), pyarrow.types.is_nested(kind))
            yield 0, list(schema.names)
            number = itertools.count(1)
            for batch in file.iter_batches(batch_size=_HEAD):
                columns = [_values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    yield next(number), [_field(value) for value in values]
    except pyarrow.ArrowException as error:
        raise MedlmError(
            f"{path} is no Parquet file that can be read: it is damaged, or was cut "
            "short. Write or copy it again."
        ) from error


def _refuse_kind(path: Path, name: str, kind: str, is_nested: bool) -> None:
    if is_nested or "binary" in kind:
        raise MedlmError(
            f"{path}: column {name[:40]!r} holds {kind[:40]}; expected texts, numbers, "
            "dates or truth values. Make columns of its parts, or leave it out."
        )


def _values(column: Any) -> list[Any]:
    """Of a column of Parquet; 0.1 of 32 bits stays 0.1."""
    values = column.to_pylist()
    if str(column.type) in ("float", "halffloat"):
        return [None if value is None else np.float32(value) for value in values]
    return values


def _needed(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MedlmError(
            f"Reading {path} needs {module.partition('.')[0]}, which is not installed. "
            'Install it: pip install "medlm-utils[tables]". Or save the table as CSV.'
        ) from error


def _field(value: Any) -> str:
    """A value as a string; whole numbers without a point, dates as in ISO 8601."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, (float, np.floating)):
        number = float(value)
        is_whole = number.is_integer() and abs(number) < 1e15
        return str(int(number)) if is_whole else str(value)
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time() and value.tzinfo is None
        return str(value.date() if is_day else value)
    return str(value)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "separated": _separated,
    "json": _json_lines,
    "excel": _excel,
    "parquet": _parquet,
}
