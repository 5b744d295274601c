"""Tests of the kinds of files that the commands read: the same notes in all of them."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlm_utils.cli import formats, splits, tables
from medlm_utils.runtime import MedlmError

HEADING = ["patient", "text", "age", "label"]
NOTES = [
    ["005", "Cough; fever, no pain.", "41", "flu"],
    ["p2", 'He said "no".\nThen he left.', "", "none"],
    ["p3", "Übelkeit, 38°\tand more", "7", "flu"],
]


def as_csv(path: Path, mark: str = ",", packed: bool = False) -> Path:
    content = io.StringIO()
    csv.writer(content, delimiter=mark).writerows([HEADING, *NOTES])
    raw = content.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    return path


def as_json(path: Path) -> Path:
    """Ages are numbers, a missing one is null or left out."""
    lines = []
    for patient, text, age, label in NOTES:
        record: dict[str, Any] = {"patient": patient, "text": text}
        record |= {"age": int(age)} if age else {}
        lines.append(json.dumps(record | {"label": label}, ensure_ascii=False))
    raw = ("\n\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def as_excel(path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["patient", "text", "age", "label"])
    for patient, text, age, label in NOTES:
        sheet.append([patient, text, int(age) if age else None, label])
    book.create_sheet("Sheet2")  # empty, as Excel used to add them
    book.save(path)
    return path


def as_parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(HEADING, zip(*NOTES, strict=True), strict=True))
    ages = pyarrow.array([int(age) if age else None for age in columns["age"]])
    parquet.write_table(pyarrow.table(columns | {"age": ages}), path)
    return path


KINDS = {
    "notes.csv": as_csv,
    "comma.txt": as_csv,
    "notes.tsv": lambda path: as_csv(path, "\t"),
    "tabs.csv": lambda path: as_csv(path, "\t"),
    "semicolons.csv": lambda path: as_csv(path, ";"),
    "notes.csv.gz": lambda path: as_csv(path, packed=True),
    "notes.tsv.gz": lambda path: as_csv(path, "\t", packed=True),
    "notes.jsonl": as_json,
    "notes.jsonl.gz": as_json,
    "notes.xlsx": as_excel,
    "notes.parquet": as_parquet,
    "misnamed.csv": as_parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_of_files_hold_the_same_strings(name: str, tmp_path: Path) -> None:
    path = KINDS[name](tmp_path / name)
    found = [fields for _, fields in tables.rows(path)]
    order = [found[0].index(column) for column in HEADING]  # JSON may have another
    assert [[fields[n] for n in order] for fields in found] == [HEADING, *NOTES]
    table = tables.read(path, "text", "label", "patient")
    assert table.label == ("flu", "none", "flu") and table.patient[0] == "005"
    stream = tables.scan(path, "text")
    texts = [row[stream.column] for chunk in stream.chunks(2) for row in chunk]
    assert texts == [note[1] for note in NOTES] and stream.count == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.csv", "in line 3;"),
        ("notes.jsonl", "in line 3;"),
        ("notes.xlsx", "in row 3;"),
        ("notes.parquet", "in row 2;"),
    ],
)
def test_an_error_says_where_in_the_words_of_the_file(
    name: str, said: str, tmp_path: Path
) -> None:
    """The second note has no age; in JSON an empty line stands between two notes."""
    path = KINDS[name](tmp_path / name)
    with pytest.raises(MedlmError, match=said):
        tables.scan(path, "age")


def test_cells_of_excel_are_what_excel_shows(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    values = {
        7: "00007",
        None: "",
        6.0: "6",
        0.1 + 0.2: "0.3",
        123456789012: "123456789012",
        "005": "005",
        True: "TRUE",
        datetime.datetime(2024, 5, 31): "2024-05-31",
        datetime.datetime(2024, 5, 31, 8, 5): "2024-05-31 08:05:00",
        "_x000D_\n": "\r\n",
    }
    book = openpyxl.Workbook()
    for value in ["x", *values]:
        book.active.append([value, "kept"])
    book.active["A2"].number_format = "00000"
    book.save(tmp_path / "cells.xlsx")
    found = [fields[0] for _, fields in tables.rows(tmp_path / "cells.xlsx")]
    assert found == ["x", *values.values()]


def test_cells_of_parquet_keep_whole_numbers_and_short_fractions(
    tmp_path: Path,
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    day = datetime.date(2024, 5, 31)
    columns = {
        "whole": pa.array([5, None], pa.int64()),
        "float": pa.array([5.0, float("nan")]),
        "short": pa.array([0.1, None], pa.float32()),
        "exact": pa.array([0.1 + 0.2, 1e300]),
        "truth": pa.array([True, None]),
        "day": pa.array([day, None]),
        "time": pa.array([datetime.datetime(2024, 5, 31), None]),
        "word": pa.array(["005", None]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    _, first, second = (fields for _, fields in tables.rows(tmp_path / "t.parquet"))
    assert first == [
        *["5", "5", "0.1", "0.30000000000000004", "True"],
        *["2024-05-31", "2024-05-31", "005"],
    ]
    assert second == ["", "", "", "1e+300", "", "", "", ""]


def test_json_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"a": 5, "b": 5.0, "c": true}\n{"d": NaN, "a": 1e3, "b": null}\n'
        '{"a": "\\ud83d", "b": 12345678901234567890}\n'
    )
    assert [fields for _, fields in tables.rows(path)] == [
        ["a", "b", "c", "d"],
        ["5", "5.0", "true", ""],
        ["1e3", "", "", ""],
        ["?", "12345678901234567890", "", ""],
    ]


def packed(content: bytes, cut: int | None = None) -> bytes:
    return gzip.compress(content)[:cut]


GOOD = b"patient,text,label\np1,Cough,flu\n"
BAD = {
    "utf-16 without mark": (GOOD.decode().encode("utf-16-le"), "is in UTF-16"),
    "utf-16, tabs": (GOOD.decode().encode("utf-16"), "is in UTF-16; expected UTF-8"),
    "array": (b'[\n {"text": "a"}]', "one piece of JSON; expected JSON lines"),
    "object": (b'{\n "text": "a"\n}', "line 1: no JSON object"),
    "half": (b'{"text": "Mr Smith"}\n{"text": "Mr', "line 2: no JSON object"),
    "list": (b'{"text": "a"}\n["Mr Smith"]', "line 2: no JSON object"),
    "nested": (b'{"text": "a", "label": ["x"]}', "'label' holds a list"),
    "deep": (b'{"a":' * 100_000, "line 1: no JSON object"),
    "cut gzip": (packed(GOOD * 500, 60), "damaged or cut short"),
    "gzip of latin-1": (packed(GOOD + b"p,\xdcbel,x\n"), "line 3 cannot be decoded"),
    "gzip twice": (packed(b"PAR1" + GOOD), "packed twice"),
    "xz": (b"\xfd7zXZ\x00" + bytes(50), "packed with xz"),
    "old Excel": (b"\xd0\xcf\x11\xe0" + bytes(50), "save it as .xlsx"),
    "program": (b"\x7fELF and more text\0", "no file of text"),
    "empty gzip": (packed(b""), "is empty"),
    "heading alone": (b"patient;text;label\n", "a heading and no rows"),
}
OPTIONAL = {
    "zip": (b"PK\x03\x04" + bytes(50), "no Excel workbook", "openpyxl"),
    "cut Parquet": (b"PAR1" + bytes(50), "no Parquet file that can be", "pyarrow"),
}


@pytest.mark.parametrize("name", BAD | OPTIONAL)
def test_a_file_of_another_kind_is_one_clear_error(name: str, tmp_path: Path) -> None:
    content, said, *needed = (BAD | OPTIONAL)[name]
    for module in needed:
        pytest.importorskip(module)
    path = tmp_path / "notes.csv"
    path.write_bytes(content)
    with pytest.raises(MedlmError) as caught:
        tables.scan(path, "text")
    message = str(caught.value)
    assert said in message and message.count(str(path)) == 1 and "\n" not in message
    assert "Smith" not in message
    with pytest.raises(MedlmError, match=re.escape(said)):
        tables.read(path, "text", "label", None)


def test_sheets_are_not_chosen_in_silence(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["text", "label"])
    book.active.append(["Cough", "flu"])
    other = book.create_sheet("Codes")
    other.append(["code", "meaning"])
    path = tmp_path / "notes.xlsx"
    book.save(path)
    with pytest.raises(MedlmError, match=r"2 sheets .*'Sheet', 'Codes'"):
        tables.scan(path, "text")
    other.sheet_state = "hidden"
    book.save(path)
    assert tables.scan(path, "text").count == 1
    book.active.append(["Fever", "flu", "a remark without a heading"])
    book.save(path)
    with pytest.raises(MedlmError, match=r"row 3: 3 fields; expected 2.*first row"):
        tables.scan(path, "text")


def test_nested_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "notes.parquet"
    for values in ([["a"]], [{"b": 1}], [b"bytes"]):
        parquet.write_table(pa.table({"text": ["a"], "labels": values}), path)
        with pytest.raises(MedlmError, match="column 'labels' holds"):
            tables.scan(path, "text")


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"PAR1"])
def test_what_is_not_installed_is_named(
    magic: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(formats.importlib, "import_module", missing)
    path = tmp_path / "notes"
    path.write_bytes(magic)
    with pytest.raises(MedlmError, match=r'pip install "medlm-utils\[tables\]"'):
        tables.scan(path, "text")


@pytest.mark.parametrize(
    "first",
    [
        'P1,"Mr John Smith, born 1960, lives in 5 High Street.",a',
        "P1,John Smith HIV,a",
        "17,John Smith,a",
        "John Smith has had a fever since Monday,a",
        "John Smith,a\nJane Roe,a",
    ],
)
def test_the_first_note_is_never_printed(first: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text(first + "\n")
    with pytest.raises(MedlmError, match="Is the heading missing") as caught:
        tables.scan(path, "text")
    assert "John" not in str(caught.value)


def test_names_of_columns_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("Patient id,report text,age,x1\n1,Cough,3,2\n")
    with pytest.raises(MedlmError, match="it has 'Patient id', 'report text', 'age'"):
        tables.scan(path, "text")


def test_a_wrong_label_column_prints_no_note() -> None:
    note = "Mr John Smith, born 1960, lives in 5 High Street."
    assert tables.listing([note, "flu"]) == f"(a text of {len(note)} characters), 'flu'"


def test_numbers_of_parquet_are_those_of_numpy(tmp_path: Path) -> None:
    """Property: what is written as a string is read back as the same number."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    parquet.write_table(pa.table({"x": values}), tmp_path / "x.parquet")
    _, *found = (fields[0] for _, fields in tables.rows(tmp_path / "x.parquet"))
    assert (np.array(found, float) == values).all()


# Patients and labels that differ in writing only --------------------------------------


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["5", "5.0", "005", " 5", "5.", "+5", "５"], 1),
        (["p5", "P5", " p5 "], 1),
        (["Ward  A", "ward a"], 1),
        (["5.5", "5.50", "05.5"], 1),
        (["5", "50", "0.5", "-5", "5a", "5e0", "p05", "p5", "500", "0"], 10),
        (["0", "00", "0.0"], 1),
    ],
)
def test_plain_names(names: list[str], count: int) -> None:
    assert len(set(map(tables.plain, names))) == count


def notes(name: str, *each: str, separator: str | None = None) -> tables.Table:
    """Notes written as ``patient text label``."""
    patient, text, label = zip(*(note.split() for note in each), strict=True)
    return tables.Table(Path(name), name, text, label, patient, separator)


@pytest.mark.parametrize("other", ["5.0", "005", "5"])
def test_one_patient_in_two_files_is_refused_however_it_is_written(other: str) -> None:
    parts = {
        "training": notes("train.csv", "5 a x", "6 b y"),
        "validation": notes("val.csv", f"{other} c x"),
    }
    with pytest.raises(MedlmError, match=r"train.csv .*val.csv .*plit by patient"):
        tables.check_parts(parts)


def test_one_patient_in_one_file_is_a_warning_and_counts_once() -> None:
    training = notes("train.csv", "p5 a x", "P5 b y", "7 c x", "7.0 d x", "8 e x")
    other = notes("val.csv", "p6 f x")
    (said,) = tables.check_parts({"training": training, "validation": other})
    assert "'p5' and 'P5'" in said and "first of 2 such cases" in said
    assert len(set(training.groups)) == 3 and training.patient[1] == "P5"


def test_labels_that_differ_in_writing_only_are_a_warning() -> None:
    training = notes("train.csv", "p a 1", "q b 1.0", "r c Yes", "s d yes")
    (said,) = tables.check_parts({"training": training, "v": notes("v", "t f 1")})
    assert "'1' and '1.0'" in said and "first of 2 such cases" in said
    with pytest.raises(MedlmError, match="'YES' may be 'yes', written another way"):
        tables.check_parts({"training": training, "v": notes("v", "t f YES")})


def test_cells_with_several_labels_are_a_warning_unless_they_are_read_so() -> None:
    each = ["p a x|y", "q b x", "r c y"]
    other = {"v": notes("v", "s d x", separator="|")}
    (said,) = tables.check_parts({"training": notes("t", *each), **other})
    assert "'x|y'" in said and "--multi-label '|'" in said
    several = notes("t", *each, separator="|")
    assert tables.check_parts({"training": several, **other}) == []
    assert several.classes == ("x", "y") and several.labels[0] == ("x", "y")


def test_a_missing_label_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("text,label\nCough,NA\nFever,x|n/a\nPain,x||y|\n")
    with pytest.raises(MedlmError, match=r"in line 2; .*holds 'NA', which counts as"):
        tables.read(path, "text", "label", None)
    with pytest.raises(MedlmError, match="2 rows without a label"):
        tables.read(path, "text", "label", None, "|")
    path.write_text("text,label\nPain,x||y|\n")
    table = tables.read(path, "text", "label", None, "|")
    assert table.labels == (("x", "y"),)


# One file in three parts --------------------------------------------------------------


def many_notes(count: int, named: bool = True) -> tables.Table:
    """Two notes a patient, who is written in two ways; label c is rare."""
    rng = np.random.default_rng(0)
    label = rng.choice(["a", "b", "c"], count, p=[0.6, 0.3, 0.1])
    label = label[np.arange(count) // 2]  # both notes of a patient have the same
    patient = [f"{n // 2}{'.0' * (n % 2)}" for n in range(count)]
    text = [f"note {n // 2}" for n in range(count)]
    known = tuple(patient) if named else None
    return tables.Table(Path("n.csv"), "n", tuple(text), tuple(label), known)


@pytest.mark.parametrize("named", [True, False])
def test_a_split_keeps_patients_together_and_labels_alike(named: bool) -> None:
    """Without patients, notes with the same words stay together."""
    table = many_notes(400, named)
    split = splits.draw(table, 3)
    parts = split.parts
    assert list(parts) == ["training", "validation", "test"]
    assert sorted(np.concatenate(list(split.rows.values()))) == list(range(400))
    units = [set(part.groups if named else part.text) for part in parts.values()]
    assert sum(map(len, units)) == 200 == len(set.union(*units))
    assert [len(unit) for unit in units] == pytest.approx([120, 40, 40], abs=2)
    whole = table.label.count("c") / 400
    for part in parts.values():
        assert part.label.count("c") / len(part) == pytest.approx(whole, abs=0.02)
    assert split.digest == splits.draw(table, 3).digest != splits.draw(table, 4).digest


def test_a_written_split_is_the_same_again(tmp_path: Path) -> None:
    table = many_notes(40)
    split = splits.draw(table, 0)
    path = tmp_path / "split.csv"
    split.write(path)
    again = splits.read(path, table)
    assert again.digest == split.digest
    assert again.parts == split.parts
    good = path.read_text()
    for bad in (
        good.replace("\n2,", "\n3,"),
        good.replace("training", "train"),
        good.replace("\n2,0.0,", "\n2,7,"),
        good[: good.index("\n40,") + 1],
        good + "41,9,test\n",
    ):
        path.write_text(bad)
        with pytest.raises(MedlmError, match="split"):
            splits.read(path, table)


def test_too_few_patients_for_a_split() -> None:
    with pytest.raises(MedlmError, match=r"n.csv has 2 different patients, too few"):
        splits.draw(many_notes(4), 0)


def rows_with_a_stray_quote(path: Path) -> Path:
    """The quote before the fifth note closes before the words of the ninth."""
    lines = [f"p{n},note {n} is short,{('flu', 'none')[n % 2]}" for n in range(12)]
    lines[4] = lines[4].replace("note", '"note')
    lines[8] = lines[8].replace("note 8 is short", 'note 8 is short"')
    path.write_text("\n".join(["patient,text,label", *lines]) + "\n", encoding="utf-8")
    return path


def test_a_stray_quote_does_not_swallow_rows(tmp_path: Path) -> None:
    path = rows_with_a_stray_quote(tmp_path / "notes.csv")
    with pytest.raises(MedlmError, match="begins in line 6 holds 3 lines that look"):
        list(formats.rows(path))


def test_a_note_of_several_lines_is_no_stray_quote(tmp_path: Path) -> None:
    """Lines with as many commas as a row, and none of its values."""
    note = "Na, 140, high\nK, 4.1, normal\nCl, 99, low\nend"
    path = tmp_path / "notes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [["p1", note, "flu"], ["p2", note, "none"], ["p3", note, "flu"]]
        csv.writer(file).writerows([["patient", "text", "label"], *rows])
    assert [fields[1] for _, fields in formats.rows(path)][1:] == [note] * 3


def noted(path: Path, patients: list[str], texts: list[str]) -> tables.Table:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = zip(patients, texts, "ab" * len(texts), strict=False)
        csv.writer(file).writerows([["patient", "text", "label"], *rows])
    return tables.read(path, "text", "label", "patient")


def test_notes_of_nobody_and_texts_but_for_capitals(tmp_path: Path) -> None:
    one = noted(tmp_path / "a.csv", ["Unknown", "unknown", "p3"], ["One.", "Two", "x"])
    other = noted(tmp_path / "b.csv", ["p4", "p5"], ["ONE. ", "three"])
    said = " ".join(tables.check_parts({"training": one, "validation": other}))
    assert "2 notes of" in said and "of the patient 'unknown'" in said
    assert "1 of 2 validation texts is a training text too" in said
