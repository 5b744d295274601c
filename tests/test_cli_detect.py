"""Tests of `medlm detect`: what it reads, finds, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_bert import WORDS, Page, contents, csv_file, said_by, write_encoder

from medlm_utils import anomaly
from medlm_utils.cli import (
    columns,
    detect,
    detect_report,
    pages,
    processes,
    reading,
    sources,
)
from medlm_utils.cli import main as cli
from medlm_utils.runtime import MedlmError

pytestmark = pytest.mark.usefixtures("on_the_cpu")

DETECTORS = tuple(anomaly.DETECTORS)
EVIL = '<script>alert("x")</script> & more'

# Files with planted anomalies ---------------------------------------------------------

ROWS = 90
PLANTED = (12, 40, 77)  # counted from 0


def numbers() -> np.ndarray:
    """Weight follows height; three rows do not belong, one only by both at once."""
    rng = np.random.default_rng(5)
    height = rng.normal(170, 8, ROWS)
    weight = 70 + 0.9 * (height - 170) + rng.normal(0, 2, ROWS)
    sodium = rng.normal(140, 0.4, ROWS)
    rows = np.column_stack([height, weight, sodium]).round(2)
    rows[12, 2], rows[40, 1], rows[77] = 120, 250, (185, 50, 140)
    return rows


def write_numbers(path: Path, rows: np.ndarray, first: int = 0) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "height", "note", "weight", "sodium", "label"])
        for number, (height, weight, sodium) in enumerate(rows, start=first):
            words = f'line {number},\nwith "quotes"'
            writer.writerow([number // 2, height, words, weight, sodium, 0])


def write_vectors(path: Path, rows: int, seed: int = 3, width: int = 6) -> np.ndarray:
    """Directions near one another but for the planted ones; lengths say nothing."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, width)) + 6
    for number, planted in enumerate(PLANTED):
        if planted < rows:
            vectors[planted, number] = -20
    vectors *= rng.uniform(0.1, 10, size=(rows, 1))
    vectors = vectors.astype(np.float32)
    np.save(path, vectors)
    return vectors


def write_texts(path: Path, rows: int, seed: int = 1) -> list[tuple[str, str]]:
    """Titles and abstracts of the encoder's words; the planted ones have others."""
    draw, texts = random.Random(seed), []
    for number in range(rows):
        words = draw.sample(WORDS[:6] * 2, k=12)
        title, abstract = " ".join(words[:4]), " ".join(words[4:])
        if number in PLANTED and seed == 1:
            title, abstract = "Chest chest", "chest denies\nchest " * (1 + number // 40)
        texts.append((title, abstract))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "abstract"])
        writer.writerows((f"n{n}", *both) for n, both in enumerate(texts))
    return texts


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and files of the three kinds; nobody writes into it."""
    folder = tmp_path_factory.mktemp("given")
    write_encoder(folder / "encoder")
    write_numbers(folder / "numbers.csv", numbers())
    usual = np.delete(numbers(), PLANTED, axis=0)
    write_numbers(folder / "usual_numbers.csv", usual + 0.01, first=500)
    write_vectors(folder / "vectors.npy", ROWS)
    write_texts(folder / "texts.csv", ROWS)
    write_texts(folder / "usual_texts.csv", 50, seed=2)
    vectors = np.delete(np.load(folder / "vectors.npy"), PLANTED, axis=0)
    np.save(folder / "usual_vectors.npy", vectors * np.float32(1.1))
    return folder


KINDS = {
    "numbers": ("numbers.csv", []),
    "array": ("vectors.npy", []),
    "array with rows": (
        "vectors.npy",
        ["--rows={given}/texts.csv", "--text=title,abstract"],
    ),
    "texts": ("texts.csv", ["--text=title,abstract", "--model={given}/encoder"]),
}
USUAL = {
    "numbers.csv": "usual_numbers.csv",
    "vectors.npy": "usual_vectors.npy",
    "texts.csv": "usual_texts.csv",
}


def detected(given: Path, kind: str, out: Path, *more: str) -> int:
    """The status of the command on one of the files."""
    name, options = KINDS[kind]
    words = [word.format(given=given) for word in options]
    files = [f"--input={given / name}", f"--output={out}"]
    exact = "--precision=float32"  # what is compared with an oracle
    return cli.main(["detect", *files, "--budget=3", *words, exact, *more])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def flagged_in(rows: list[dict[str, str]]) -> set[int]:
    return {place for place, row in enumerate(rows) if row["flagged"] == "1"}


def report_of(out: Path) -> dict[str, Any]:
    path = out.with_name(f"{out.stem}.report.json")
    return json.loads(path.read_text(encoding="utf-8"))


def as_compared(given: Path, name: str, like: str = "") -> np.ndarray:
    """What a detector must get of a file, made another way than the command does."""
    path = given / name
    if path.suffix == ".npy":
        rows = np.load(path)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if "texts" in name:
        from medlm_utils import bert

        model = bert.Classifier.pretrained(("a", "b"), given / "encoder")
        texts = [f"{row['title']} {row['abstract']}" for row in table(path)]
        rows = bert.embed(model, bert.encode(model.tokenizer, texts, 32))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    names = ("height", "weight", "sodium")
    own, fitted = (
        np.column_stack([column(table(given / file), n) for n in names])
        for file in (name, like or name)
    )
    median = np.median(fitted, axis=0)
    mad = np.median(np.abs(fitted - median), axis=0)
    return (own - median) / (1.4826 * mad)


def direct(kind: str, name: str, **settings: Any) -> anomaly.Detector:
    if name == "knn" and kind != "numbers":
        settings["metric"] = "cosine"
    return anomaly.detector(name, **settings)


# What it finds ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", [False, True])
def test_what_was_planted_is_found(
    kind: str, fit: bool, given: Path, tmp_path: Path
) -> None:
    name = KINDS[kind][0]
    more = [f"--fit={given / USUAL[name]}"] if fit else []
    out = tmp_path / "scores.csv"
    assert detected(given, kind, out, *more) == 0
    rows = table(out)
    assert flagged_in(rows) == set(PLANTED)
    scores, rank = column(rows, "anomaly_score"), column(rows, "rank")
    assert (np.sort(rank) == np.arange(1, ROWS + 1)).all()
    assert (np.diff(scores[np.argsort(rank)]) <= 0).all()
    expected = as_compared(given, name, USUAL[name] if fit else "")
    if fit:
        known = direct(kind, "knn").fit(as_compared(given, USUAL[name]))
        assert scores == pytest.approx(known.anomaly_score(expected), abs=1e-5)
    else:
        known = direct(kind, "knn").fit(expected)
        assert scores == pytest.approx(known.training_scores(), abs=1e-5)
    found = report_of(out)
    assert found["fitted_on"]["how"] == ("inductive" if fit else "transductive")
    assert {path.name for path in tmp_path.iterdir()} == {
        *["scores.csv", "scores.report.json", "scores.report.html"]
    }


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("fit", [False, True])
def test_every_detector_gives_the_scores_of_the_library(
    name: str, fit: bool, given: Path, tmp_path: Path
) -> None:
    more = [f"--fit={given / 'usual_numbers.csv'}"] if fit else []
    out = tmp_path / "scores.csv"
    words = [f"--detector={name}", "--seed=7", *more]
    assert detected(given, "numbers", out, *words) == 0
    known = anomaly.detector(name, seed=7)
    usual = "usual_numbers.csv" if fit else "numbers.csv"
    known.fit(as_compared(given, usual))
    rows = as_compared(given, "numbers.csv", usual)
    expected = known.anomaly_score(rows) if fit else known.training_scores()
    assert column(table(out), "anomaly_score") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_order_and_their_columns(
    kind: str, given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert detected(given, kind, out) == 0
    source = {"array": None, "numbers": "numbers.csv"}.get(kind, "texts.csv")
    before = list(csv.reader((given / source).open(newline=""))) if source else []
    after = list(csv.reader(out.open(newline="")))
    width = len(before[0]) if source else 0
    assert [row[:width] for row in after] == (before or [[]] * len(after))
    assert tuple(after[0][width:]) == detect.ADDED
    assert [row["row_number"] for row in table(out)] == [
        str(number) for number in range(1, ROWS + 1)
    ]


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_neighbours_are_the_nearest_usual_rows(
    chunk: int,
    fit: bool,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand: distances to all rows that are not flagged, or to those of --fit."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    out = tmp_path / "scores.csv"
    more = [f"--fit={given / 'usual_numbers.csv'}"] if fit else []
    assert detected(given, "numbers", out, *more) == 0
    rows, usual = table(out), "usual_numbers.csv" if fit else "numbers.csv"
    ours = as_compared(given, "numbers.csv", usual)
    among = as_compared(given, usual)
    left_out = set() if fit else set(PLANTED)
    for place, row in enumerate(rows):
        near = [row[f"nearest_{n}"] for n in (1, 2, 3)]
        far = [row[f"distance_{n}"] for n in (1, 2, 3)]
        if place not in PLANTED:
            assert near == far == ["", "", ""]
            continue
        apart = np.linalg.norm(among - ours[place], axis=1)
        order = [other for other in np.argsort(apart) if other not in left_out][:3]
        assert [int(number) - 1 for number in near] == order
        assert np.array(far, float) == pytest.approx(apart[order], rel=1e-4)


def test_neighbours_are_rows_of_the_other_file(given: Path, tmp_path: Path) -> None:
    """A row that was flagged may have its double there, in the same place."""
    write_numbers(tmp_path / "usual.csv", numbers() + 0.01)
    out = tmp_path / "out.csv"
    assert detected(given, "numbers", out, f"--fit={tmp_path / 'usual.csv'}") == 0
    for row in table(out):
        expected = row["row_number"] if row["flagged"] == "1" else ""
        assert row["nearest_1"] == expected


def test_pieces_do_not_change_the_scores(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole.csv", tmp_path / "pieces.csv"
    more = [f"--fit={given / 'usual_vectors.npy'}"]
    assert detected(given, "array", whole, *more) == 0
    monkeypatch.setattr(sources, "CHUNK", 7)
    assert detected(given, "array", pieces, *more) == 0
    a, b = (column(table(out), "anomaly_score") for out in (whole, pieces))
    assert a == pytest.approx(b, abs=1e-6)


def test_vectors_made_elsewhere_give_the_scores_of_the_texts(
    given: Path, tmp_path: Path
) -> None:
    """`medlm embed`, then its file: the two ways to the same result."""
    words = [f"--input={given / 'texts.csv'}", f"--output={tmp_path / 'emb.npy'}"]
    model = f"--model={given / 'encoder'}"
    assert cli.main(["embed", *words, model, "--text=abstract"]) == 0
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    words = ["--text=abstract", "--budget=3"]
    source = f"--input={given / 'texts.csv'}"
    assert cli.main(["detect", source, model, *words, f"--output={one}"]) == 0
    source = [f"--input={tmp_path / 'emb.npy'}", f"--rows={given / 'texts.csv'}"]
    assert cli.main(["detect", *source, *words, f"--output={two}"]) == 0
    assert one.read_bytes() == two.read_bytes()


def test_the_metric_is_a_choice(given: Path, tmp_path: Path) -> None:
    """Lengths say nothing in cosine, and nearly all in Euclidean distance."""
    out = tmp_path / "scores.csv"
    assert detected(given, "array", out, "--metric=euclidean") == 0
    known = anomaly.detector("knn").fit(np.load(given / "vectors.npy"))
    scores = column(table(out), "anomaly_score")
    assert scores == pytest.approx(known.training_scores(), rel=1e-5)
    assert scores.max() > 2  # which 1 - cosine cannot be


@pytest.mark.parametrize("kind", ["float16", "float64", ">f4"])
def test_arrays_of_other_floats(kind: str, given: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.load(given / "vectors.npy").astype(kind))
    out = tmp_path / "scores.csv"
    words = [f"--input={tmp_path / 'v.npy'}", f"--output={out}", "--budget=3"]
    for metric in ("cosine", "euclidean"):
        assert cli.main(["detect", *words, f"--metric={metric}", "--force"]) == 0
    assert cli.main(["detect", *words, "--force"]) == 0
    assert flagged_in(table(out)) == set(PLANTED)


def test_named_columns_only(given: Path, tmp_path: Path) -> None:
    """By height and weight alone the row with a strange sodium is usual."""
    out = tmp_path / "scores.csv"
    assert detected(given, "numbers", out, "--columns=weight,height") == 0
    assert report_of(out)["input"]["columns"] == ["weight", "height"]
    assert {40, 77} < flagged_in(table(out)) != set(PLANTED)


def test_all_numbers_but_patient_and_label(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    assert detected(given, "numbers", out) == 0
    found = report_of(out)["input"]
    assert found["columns"] == ["height", "weight", "sodium"]
    assert found["left_out"] == {
        "patient": "its name says whose row it is",
        "note": "text, the first in line 2",
        "label": "its name says that it is an answer",
    }
    printed = capsys.readouterr()
    assert "Columns: height, weight, sodium" in printed.err
    page = Page(out.with_name("scores.report.html").read_text())
    for name, why in found["left_out"].items():
        assert f"Left out: {name!r}, {why}" in printed.err
        assert f"Left out: {name}" in page.text and why in page.text
    assert "line 0," not in printed.err  # nobody's text in a log
    assert "Flagged 3 of 90 rows, from a score of" in printed.out


def test_a_name_with_a_comma_stands_in_quotes(tmp_path: Path) -> None:
    body = "".join(f"{n},{n * n % 17}\n" for n in range(20))
    source = csv_file(tmp_path, '"age, years",b\n' + body)
    words = [f"--input={source}", f"--output={tmp_path / 'out.csv'}", "--budget=1"]
    assert cli.main(["detect", *words, '--columns="age, years",b']) == 0
    found = report_of(tmp_path / "out.csv")["input"]["columns"]
    assert found == ["age, years", "b"]


# Which columns are measurements -------------------------------------------------------

MEASURED = list(np.random.default_rng(1).normal(70, 9, 60).round(1))


def written(folder: Path, values: dict[str, list[Any]]) -> Path:
    path = folder / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))
    return path


def a_sample(low: int, high: int, seed: int = 0) -> list[int]:
    """60 different whole numbers."""
    return random.Random(seed).sample(range(low, high), 60)


NO_MEASUREMENTS = {
    "id": [5 + n // 2 for n in range(60)],
    "patient_id": [5 + n // 2 for n in range(60)],
    "PatientID": a_sample(1000, 9999),
    "subjectid": a_sample(1000, 9999),
    "Patient number": a_sample(1000, 9999),
    "MRN": a_sample(10**6, 10**7),
    "row": list(range(60)),
    "Unnamed: 0": list(range(60)),
    "record no.": a_sample(1000, 9999),
    "zip code": [90000 + n % 20 for n in range(60)],
    "admission_date": [45000 + n % 30 for n in range(60)],
    "anything": list(range(7, 67)),
    "shuffled": a_sample(1000, 1090),
    "contact": a_sample(10**9, 10**10),
    "seen": [20240101 + n % 28 for n in range(60)],
    "area": [f"{n * 7 % 90:05d}" for n in range(60)],
    "ward": [3] * 60,
    "empty": [""] * 60,
    "rare": ["" if n % 3 else n * 1.5 for n in range(60)],
    "smoker": [str(n % 3 == 0) for n in range(60)],
    "time": [f"{n % 24}:30" for n in range(60)],
    "": [n * n % 13 for n in range(60)],
}


@pytest.mark.parametrize("name", NO_MEASUREMENTS)
def test_what_is_no_measurement_is_left_out(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, {name: NO_MEASUREMENTS[name], "w": MEASURED})
    source, _ = sources.without_constant(sources.read_columns(path, ()), None, False)
    assert source.columns == ("w",) and source.left_out[name]
    if name not in ("", "ward", "empty", "rare", "smoker", "time"):
        assert sources.read_columns(path, (name, "w")).columns == (name, "w")


def test_all_that_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, NO_MEASUREMENTS | {"w": MEASURED})
    out = tmp_path / "out.csv"
    assert cli.main(["detect", f"--input={path}", f"--output={out}"]) == 0
    left_out, err = report_of(out)["input"]["left_out"], capsys.readouterr().err
    page = Page(out.with_name("out.report.html").read_text(encoding="utf-8"))
    assert set(left_out) == set(NO_MEASUREMENTS)
    for name, why in left_out.items():
        assert f"Left out: {name!r}, {why}" in err
        assert f"Left out: {name}" in page.text and why in page.text


MEASUREMENTS = {
    "platelets": a_sample(150, 450),
    "age": [30 + n * n % 50 for n in range(60)],
    "creatinine": [0.5 + n / 100 for n in range(60)],  # all different, in order
    "birth_year": [1940 + n % 50 for n in range(60)],
    "cell number": a_sample(4000, 9000),
    "cardiac_index": [2 + n % 7 for n in range(60)],
    "fluid": [1000 + 50 * (n % 20) for n in range(60)],
    "visit": [1 + n % 4 for n in range(60)],
    "WBC per l": [10**6 * n for n in a_sample(4000, 9900)],
    "icd": [n % 2 for n in range(60)],
    "case": [n % 2 for n in range(60)],
    "length of stay": [1 + n * n % 23 for n in range(60)],
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_take_part(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, {name: MEASUREMENTS[name], "w": MEASURED})
    source = sources.read_columns(path, ())
    assert source.columns == (name, "w")
    assert source.left_out == {} and source.warnings == ()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (a_sample(10**6, 10**7), "whole numbers of 7 digits, all different"),
        (sorted(a_sample(150, 450)), "all different, in order"),
        ([f"{n % 30:02d}" for n in range(60)], "written with a 0 in front"),
    ],
)
def test_doubtful_columns_take_part_with_a_warning(
    values: list[Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path, {"x, y": values, "w": MEASURED}), tmp_path / "o.csv"
    words = ["detect", f"--input={path}", f"--output={out}", "--force"]
    assert cli.main(words) == 0
    assert report_of(out)["input"]["columns"] == ["x, y", "w"]
    (warning,) = report_of(out)["warnings"]
    assert why in warning and f"Warning: {warning}" in capsys.readouterr().err
    page = Page(out.with_name("o.report.html").read_text(encoding="utf-8"))
    assert warning in page.text
    advice = warning.partition("leave it out: ")[2].rstrip(".")
    assert cli.main([*words, *shlex.split(advice)]) == 0  # as it says
    assert report_of(out)["input"]["columns"] == ["w"]


@pytest.mark.parametrize("rows", [10, 60, 1000])
def test_measured_whole_numbers_are_hardly_ever_taken_for_a_counter(rows: int) -> None:
    """On the narrowest scale on which so many are seldom all different, and others."""
    rng = np.random.default_rng(rows)
    for width in (rows, 2 * rows, rows**2 // 14, rows**2):
        drawn = rng.integers(0, width, (1000, rows)).astype(float)
        assert sum(bool(columns.identifier(one)) for one in drawn) <= 4
    assert columns.identifier(rng.permutation(rows) + 5000.0)
    assert (
        columns.identifier(rng.permutation(rows * 13 // 10)[:rows] * 1.0) or rows < 60
    )


SLIPS = {
    "letter": ("7o", "'7o' is no number (a unit or letters)"),
    "point": ("1.2.3", "'1.2.3' is no number"),
    "word": ("n.a.", "'n.a.' is no number"),
    "comma": (
        "12,5",
        "'12,5' is no number (a decimal comma, where others have a point",
    ),
    "thousands": ("1,234,567", "'1,234,567' is no number (a mark between thousands)"),
    "unit": ("5 mg", "'5 mg' is no number (a unit or letters)"),
    "limit": ("<0.5", "'<0.5' is no number (a limit and no value)"),
    "percent": ("45%", "'45%' is no number (a percent sign)"),
    "minus": ("−5", "'−5' is no number (another minus sign)"),
    "note": ("Jane Doe, died at home", "a text of 22 characters is no number"),
    "birthday": ("31.12.1950", "a date or time is no number"),
}


@pytest.mark.parametrize("name", SLIPS)
@pytest.mark.parametrize("is_named", [False, True])
def test_a_slip_removes_no_column(name: str, is_named: bool, tmp_path: Path) -> None:
    slip, said = SLIPS[name]
    values = [slip if n == 41 else value for n, value in enumerate(MEASURED)]
    path = written(tmp_path, {"dose": values, "w": MEASURED})
    with pytest.raises(MedlmError) as error:
        sources.read_columns(path, ("dose",) * is_named)
    line = str(error.value)
    assert f"t.csv, line 43, column 'dose': {said}" in line, line
    assert "59 of 60 values are numbers" in line and "Jane" not in line
    assert ("--exclude dose" in line) != is_named
    source = sources.read_columns(path, (), ("dose",))
    assert source.left_out == {"dose": "named by --exclude"}


@pytest.mark.parametrize(
    ("values", "is_error", "words"),
    [
        (["<0.5" if n % 4 else n for n in range(60)], False, "although it looks like"),
        (["<0.5" if n % 4 == 0 else n for n in range(60)], True, "45 of 60 values are"),
        (["neg" if n % 4 == 0 else n for n in range(60)], False, "although it looks"),
        (["high" if n % 4 else n for n in range(60)], False, "45 of 60 values are no"),
        ([f"{n} mg" for n in range(60)], False, "numbers with a unit or letters"),
        ([f"{n},100" for n in range(10, 70)], False, "a comma that may mark thousands"),
        ([f"{n},100" if n % 20 == 9 else n for n in range(60)], True, "a comma that"),
    ],
)
def test_columns_that_hold_many_numbers(
    values: list[Any], is_error: bool, words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, {"crp": values, "w": MEASURED})
    if is_error:
        with pytest.raises(MedlmError, match=words):
            sources.read_columns(path, ())
        return
    source = sources.read_columns(path, ())
    assert words in source.left_out["crp"] + " ".join(source.warnings)


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_decimal_commas_are_read_as_points(
    mark: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As spreadsheets of many countries write the same file."""
    rows = numbers()
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(["height", "weight", "sodium"])
        writer.writerows([str(v).replace(".", ",") for v in row] for row in rows)
    out = tmp_path / "out.csv"
    words = [f"--input={tmp_path / 't.csv'}", f"--output={out}", "--budget=3"]
    assert cli.main(["detect", *words]) == 0
    told = "Decimal commas are read as points in 'height', 'weight', 'sodium'."
    assert told in capsys.readouterr().err and told in report_of(out)["warnings"]
    expected = direct("numbers", "knn").fit(as_compared(given, "numbers.csv"))
    scores = column(table(out), "anomaly_score")
    assert scores == pytest.approx(expected.training_scores(), rel=1e-6)


@pytest.mark.parametrize("value", ["9e17", "900000000000207008", "1e400", "-inf"])
def test_too_large_numbers_are_named(value: str, tmp_path: Path) -> None:
    values = [value if n in (4, 9) else n * n % 7 for n in range(60)]
    path = written(tmp_path, {"concept": values, "w": MEASURED})
    with pytest.raises(MedlmError) as error:
        sources.read_columns(path, ())
    said = f"line 6, column 'concept': '{value}' (the first of 2); expected numbers up"
    assert said in str(error.value) and "to 1e15 in size" in str(error.value)


def test_numbers_far_beyond_the_spread_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [1e9 if n == 4 else 1e-9 * (n % 7) for n in range(60)]
    path = written(tmp_path, {"a": values, "w": MEASURED})
    assert cli.main(["detect", f"--input={path}", f"--output={tmp_path / 'o'}"]) == 1
    said = "row 5 (counted from 1), column 'a': 1e+09 is more than 1e15 times"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "is_told"), [(-999, True), (9999, True), (99, False), (150.5, False)]
)
def test_stand_ins_for_missing_values(
    value: float, is_told: bool, tmp_path: Path
) -> None:
    """99 may be a weight where 95 is one."""
    values = [value if n % 20 == 3 else v for n, v in enumerate(MEASURED)]
    source = sources.read_columns(written(tmp_path, {"a": values}), ())
    told = [f"holds {value:g} in 3 rows" in line for line in source.warnings]
    assert told == [True] * is_told


@pytest.mark.parametrize(
    ("heading", "status", "said"),
    [
        ("78.4,142.3,1", 1, "Is the heading missing?"),
        ("12,12,13", 1, "Is the heading missing?"),
        ("Chest pain at night,78.4", 1, "Is the heading missing?"),
        ("45,70.5,142", 0, "If it is no heading, one row is not judged"),
        ("0,1,2", 0, ""),
        ("a,b,2", 0, ""),
    ],
)
def test_a_heading_of_numbers(
    heading: str, status: int, said: str, tmp_path: Path
) -> None:
    width = heading.count(",") + 1
    rows = zip(MEASURED, MEASURED[::-1], MEASURED[5:] + MEASURED[:5], strict=True)
    body = "".join(",".join(map(str, row[:width])) + "\n" for row in rows)
    path = csv_file(tmp_path, f"{heading}\n{body}")
    try:
        found = " ".join(sources.read_columns(path, ()).warnings)
        assert status == 0 and bool(found) == bool(said)
    except MedlmError as error:
        found = str(error)
        assert status == 1
    assert said in found and "Chest" not in found and "78.4" not in found


def test_a_counter_of_the_usual_rows_is_left_out(tmp_path: Path) -> None:
    """Too few rows of the input show that it is one."""
    usual = written(tmp_path, {"n": list(range(60)), "w": MEASURED})
    path = csv_file(tmp_path, "n,w\n1,70\n2,71\n3,200\n")
    words = [f"--input={path}", f"--fit={usual}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main(["detect", *words]) == 0
    assert report_of(tmp_path / "out.csv")["input"]["columns"] == ["w"]
    assert flagged_in(table(tmp_path / "out.csv")) == {2}


def test_excluded_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both of the same name; blanks around a heading do not count."""
    body = "".join(
        f"{v},{n % 7},{w},x\n"
        for n, (v, w) in enumerate(zip(MEASURED, MEASURED[::-1], strict=True))
    )
    path = csv_file(tmp_path, "a, a ,b,note\n" + body)
    doubles = csv_file(tmp_path, "a,a,b,note\n" + body, "doubles.csv")
    out = tmp_path / "out.csv"
    words = [f"--output={out}", "--force"]
    for source, left in ((path, [" a ", "b"]), (doubles, ["b"])):
        given = [f"--input={source}", "--exclude=a"]
        assert cli.main(["detect", *given, *words]) == 0
        assert report_of(out)["input"]["columns"] == left
    assert cli.main(["detect", f"--input={path}", "--columns=b, a", *words]) == 0
    assert report_of(out)["input"]["columns"] == ["b", "a"]
    capsys.readouterr()
    assert cli.main(["detect", f"--input={doubles}", *words]) == 1
    assert "has 2 columns 'a'; expected one" in said_by(capsys)
    usual = csv_file(tmp_path, "b\n" + "".join(f"{v}\n" for v in MEASURED), "u.csv")
    given = [f"--input={path}", f"--fit={usual}", "--exclude=a, a "]
    assert cli.main(["detect", *given[:2], *words]) == 1
    assert "has no column 'a', which is compared in" in said_by(capsys)


# Ranks, ties, budgets -----------------------------------------------------------------


def detect_column(folder: Path, values: list[Any], *more: str) -> Path:
    source = csv_file(folder, "a,b\n" + "".join(f"{v},{n}\n" for n, v in values))
    out = folder / "out.csv"
    words = [f"--input={source}", f"--output={out}", "--columns=a", *more]
    assert cli.main(["detect", *words]) == 0
    return out


def test_of_equal_scores_the_first_rows_are_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six rows share the highest score; four are flagged, and the rest is told."""
    values = [5 if place % 3 == 1 else place % 2 for place in range(18)]
    out = detect_column(
        tmp_path, list(enumerate(values)), "--budget=4", "--detector=robust_z"
    )
    assert flagged_in(table(out)) == {1, 4, 7, 10}
    assert report_of(out)["tied_and_not_flagged"] == 2
    err = capsys.readouterr().err
    assert "2 rows have the score of the last flagged one, unflagged" in err
    assert column(table(out), "rank")[[1, 4, 7, 10, 13, 16]].tolist() == [*range(1, 7)]
    page = out.with_name("out.report.html").read_text()
    assert "Rows left out with that score, but for rounding: 2." in page


@pytest.mark.parametrize("asked", [1, 3, 9, 10])
def test_as_many_rows_are_flagged_as_the_budget_says(
    asked: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But none that scores no more than the middle row: of ten, five score higher."""
    values = list(enumerate([1, 2, 3, 4, 5, 6, 7, 8, 9, 50]))
    out = detect_column(tmp_path, values, f"--budget={asked}")
    rows, budget = table(out), min(asked, 5)
    assert len(flagged_in(rows)) == len(report_of(out)["flagged"]) == budget
    told = f"Only 5 of the {asked} rows that the budget allows are flagged"
    assert (told in capsys.readouterr().err) == (asked > 5)
    assert any(told in line for line in report_of(out)["warnings"]) == (asked > 5)
    for row in rows:
        near = [row[f"nearest_{n}"] for n in (1, 2, 3) if row[f"nearest_{n}"]]
        assert len(near) == (min(3, 10 - budget) if row["flagged"] == "1" else 0)
    scores = column(rows, "anomaly_score")
    threshold = report_of(out)["metrics"]["threshold"]["value"]
    assert (scores > threshold + 1e-3).sum() < budget
    assert (scores >= threshold - 1e-3).sum() >= budget


@pytest.mark.parametrize(("rows", "flagged"), [(7, 1), (40, 4), (250, 20)])
def test_a_tenth_of_the_rows_is_flagged_where_nobody_says_how_many(
    rows: int, flagged: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(rows).normal(size=rows)
    out = detect_column(tmp_path, list(enumerate(values)))
    assert len(flagged_in(table(out))) == report_of(out)["budget"] == flagged
    assert (
        f"{flagged} {'is' if flagged == 1 else 'are'} to be flagged (a tenth, at "
        in (capsys.readouterr().err)
    )


def test_nothing_at_the_middle_is_flagged(tmp_path: Path) -> None:
    """Twenty equal rows, three that differ: no fourth one is called unusual."""
    values = [5] * 20 + [9, 14, 30]
    out = detect_column(tmp_path, list(enumerate(values)), "--budget=10")
    assert flagged_in(table(out)) == {20, 21, 22}
    (told,) = report_of(out)["warnings"]
    assert told.startswith("Only 3 of the 10 rows that the budget allows are flagged")
    assert told in Page(out.with_name("out.report.html").read_text()).text


@pytest.mark.parametrize("name", ["knn", "robust_z", "lof", "isolation_forest"])
def test_equal_scores_are_no_ranking(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = csv_file(tmp_path, "a,b\n" + "0,1\n1,0\n" * 30)
    words = [f"--input={source}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main(["detect", *words, f"--detector={name}"]) == 1
    assert "No row of" in (err := capsys.readouterr().err) and "stands out" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]


def test_rounding_makes_no_row_unusual(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vectors of one text, as batches of different width give them."""
    rng = np.random.default_rng(0)
    vectors = 1 + 1e-7 * rng.normal(size=(40, 9))
    np.save(tmp_path / "v.npy", vectors.astype(np.float32))
    words = [f"--input={tmp_path / 'v.npy'}", f"--output={tmp_path / 'out.csv'}"]
    for metric in ("cosine", "euclidean"):
        assert cli.main(["detect", *words, f"--metric={metric}"]) == 1
        assert "stands out" in capsys.readouterr().err
    vectors[7, 2] = 2
    np.save(tmp_path / "v.npy", vectors.astype(np.float32))
    assert cli.main(["detect", *words]) == 0
    assert flagged_in(table(tmp_path / "out.csv")) == {7}


@pytest.mark.parametrize("is_new", [False, True])
def test_equal_texts(
    is_new: bool, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error where they are fitted on; beside other rows they can all be unusual."""
    path = csv_file(tmp_path, "title,abstract\n" + "chest pain,denies\n" * 12)
    words = ["--text=title,abstract", f"--model={given / 'encoder'}"]
    words += [f"--fit={given / 'usual_texts.csv'}"] * is_new
    files = [f"--input={path}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main(["detect", *files, *words]) == (0 if is_new else 1)
    if not is_new:
        assert f"All 12 texts of {path} are equal; expected" in said_by(capsys)
    else:
        assert "11 rows have the score of the last" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["numbers", "array", "texts"])
def test_rows_that_are_among_the_usual_ones_are_counted(
    kind: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = KINDS[kind][0]
    path = tmp_path / name
    if kind == "array":
        np.save(path, np.load(given / name)[20:])
    else:
        rows = list(csv.reader((given / name).open(newline="")))
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *rows[21:]])
    assert detected(given, kind, tmp_path / "out.csv", f"--fit={path}") == 0
    told = f"70 rows stand in {name} too, with the same values."
    assert told in capsys.readouterr().err
    report = report_of(tmp_path / "out.csv")
    assert report["fitted_on"]["also_in_the_input"] == 70
    assert any(line.startswith(told) for line in report["warnings"])


@pytest.mark.parametrize("fit", [False, True])
def test_constant_columns_are_left_out(
    fit: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the rows that are fitted on; what varies beside them is told."""
    wards = [1 if n < 50 or not fit else 2 for n in range(60)]
    path = written(tmp_path, {"a": MEASURED, "ward": wards, "b": MEASURED[::-1]})
    words = [f"--input={path}", f"--output={tmp_path / 'out.csv'}"]
    if fit:
        usual = csv_file(
            tmp_path,
            "b,ward,a\n"
            + "".join(
                f"{a},1,{b + n}\n"
                for n, (a, b) in enumerate(zip(MEASURED, MEASURED[::-1], strict=True))
            ),
        )
        words.append(f"--fit={usual}")
    assert cli.main(["detect", *words]) == 0
    report = report_of(tmp_path / "out.csv")
    assert report["input"]["columns"] == ["a", "b"]
    assert "the same value in every row" in report["input"]["left_out"]["ward"]
    told = "in t.csv 10 rows have another value, and nothing is made of it"
    assert any(told in line for line in report["warnings"]) == fit
    capsys.readouterr()
    named = ["--columns=a,ward,b", "--force"]
    assert cli.main(["detect", *words, *named]) == 1
    assert "same value in every row of 'ward'" in said_by(capsys)


def test_the_report_names_the_precision_that_was_taken(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some encoders need float32 where the machine would take bfloat16; asked once."""
    asked = []

    def taken(model: Any, fast: str, wanted: str) -> str:
        asked.append((fast, wanted))
        return "float32"

    monkeypatch.setattr(processes.Team, "precision", lambda team, wanted: "bfloat16")
    monkeypatch.setattr(reading, "usable_precision", taken)
    out, more = tmp_path / "out.csv", f"--fit={given / 'usual_texts.csv'}"
    assert detected(given, "texts", out, more, "--precision=auto") == 0
    assert report_of(out)["precision"] == "float32"
    assert asked == [("bfloat16", "auto")]


def test_what_was_read_of_the_texts_is_told(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six tokens of fourteen, on the terminal, in the report and on the page."""
    out = tmp_path / "out.csv"
    more = ["--tokens=6", f"--fit={given / 'usual_texts.csv'}"]
    assert detected(given, "texts", out, *more) == 0
    report = report_of(out)
    read = report["reading"]
    assert report["precision"] == "float32"
    assert {name: one["cut"] for name, one in read.items()} == {
        "texts.csv": 90,
        "usual_texts.csv": 50,
    }
    page = Page(out.with_name("out.report.html").read_text(encoding="utf-8")).text
    assert "90, at most 6 tokens at once; 90 lose their end." in page
    warnings = [line for line in report["warnings"] if "longer than 6 tokens" in line]
    assert [line.partition(":")[0] for line in warnings] == list(read)
    err = capsys.readouterr().err
    assert all(line in page and line in err for line in warnings)
    assert detected(given, "texts", out, *more, "--long=mean", "--force") == 0
    assert report_of(out)["reading"]["texts.csv"]["tokens_lost"] == 0


def test_the_same_seed_gives_the_same_files(given: Path, tmp_path: Path) -> None:
    """Only the time may differ; another seed grows another forest."""
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "scores.csv"
        words = ["--detector=isolation_forest", f"--seed={seed}"]
        assert detected(given, "numbers", out, *words) == 0
        content = report_of(out)
        for changing in ("notebook_seconds", "peak_memory_gb", "date"):
            content.pop(changing, None)
        found.append((out.read_bytes(), content))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


# Memory -------------------------------------------------------------------------------


class FirstNumber(anomaly.Detector):
    """Scores a row by its first number, and remembers what it was given."""

    given: Any = None

    def fit(self, rows: Any) -> FirstNumber:
        FirstNumber.given = self.rows_ = rows
        return self

    def training_scores(self) -> np.ndarray:
        return np.array(self.rows_[:, 0], float)

    def _learn(self, rows: Any) -> None: ...

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, 0]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_vectors_stay_on_the_disk(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 MB never more than some pieces are in memory."""
    import tracemalloc

    monkeypatch.setitem(anomaly.DETECTORS, "first", FirstNumber)
    monkeypatch.setattr(sources, "CHUNK", 100)
    vectors = np.random.default_rng(0).normal(size=(4000, 512)).astype(np.float32)
    words = ["--detector=first", f"--metric={metric}", f"--input={tmp_path / 'v.npy'}"]
    words += [f"--output={tmp_path / 'out.csv'}", "--force"]
    for rows in (100, 4000):  # the first call loads modules, which are not meant
        np.save(tmp_path / "v.npy", vectors[:rows])
        tracemalloc.start()
        assert cli.main(["detect", *words]) == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(FirstNumber.given, np.memmap)
    assert FirstNumber.given.dtype == np.float32
    assert peak < vectors.nbytes / 2
    scores = column(table(tmp_path / "out.csv"), "anomaly_score")
    lengths = np.linalg.norm(vectors, axis=1) if metric == "cosine" else 1
    assert scores == pytest.approx(vectors[:, 0] / lengths, abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {
        *["v.npy", "out.csv", "out.report.json", "out.report.html"]
    }


def test_scores_without_end_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(anomaly.DETECTORS, "first", FirstNumber)
    endless = np.where(np.arange(30) == 4, np.inf, 1.0)
    monkeypatch.setattr(FirstNumber, "training_scores", lambda self: endless)
    np.save(tmp_path / "v.npy", GOOD_ARRAY)
    words = [f"--input={tmp_path / 'v.npy'}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main(["detect", *words, "--detector=first"]) == 1
    assert "first gives row 5 (counted from 1) the score inf" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


@pytest.mark.parametrize("kind", ["array", "texts"])
def test_a_disk_without_place_for_the_vectors(
    kind: str,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """90 rows of 6 or 16 numbers of four bytes, and one byte less than that."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    free = detect._SPARE_BYTES + (2159 if kind == "array" else 5759)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9e9, 9e9, free))
    monkeypatch.setattr(detect, "_check_outputs", lambda plan: None)
    assert detected(given, kind, tmp_path / "out.csv") == 1
    assert "has 2 MB free; this needs about 2 MB" in said_by(capsys)
    free += 1
    assert detected(given, kind, tmp_path / "out.csv") == 0


def test_texts_are_embedded_in_pieces(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medlm_utils import bert

    encode, sizes = bert.encode, []

    def counted(tokenizer: Any, texts: Any, longest: int) -> Any:
        sizes.append(len(texts))
        return encode(tokenizer, texts, longest)

    monkeypatch.setattr(bert, "encode", counted)
    assert detected(given, "texts", tmp_path / "out.csv", "--batch=5") == 0
    assert sizes == [40, 40, 10]


# What is refused ----------------------------------------------------------------------

GOOD = "age,note\n" + "".join(f"{30 + n * n % 11},cough {n}\n" for n in range(30))
BAD_OPTIONS = {
    "detector": (["--detector=magic"], "no detector 'magic'; expected one of robust_z"),
    "budget": (["--budget=31"], "--budget is 31, and {path} has 30 rows"),
    "no budget": (["--budget=0"], "--budget is 0; expected at least 1"),
    "below": (["--budget=-4"], "--budget is -4; expected at least 1"),
    "batch": (["--batch=0"], "--batch is 0; expected at least 1"),
    "metric": (["--metric=city"], "--metric is 'city'; expected euclidean or cosine"),
    "tokens": (["--tokens=9"], "--tokens is for texts that are embedded, with --text"),
    "long": (["--long=mean"], "--long is for texts that are embedded, with --text"),
    "exclude": (["--exclude=bmi"], "no column 'bmi'; it has 'age', 'note'"),
    "all": (["--exclude=age"], "has no column of measured numbers. Left out: 'age'"),
    "exclude and columns": (["--exclude=age", "--columns=age"], "--exclude is for"),
    "exclude and text": (["--exclude=age", "--text=note"], "--exclude is for"),
    "cosine": (["--metric=cosine"], "'cosine', which is for embeddings"),
    "both": (["--text=note", "--columns=age"], "Got --text and --columns; expected"),
    "no text": (["--text=body"], "no column 'body'; it has 'age', 'note'. Name the"),
    "no column": (["--columns=age,bmi"], "no column 'bmi'; it has 'age', 'note'"),
    "words": (["--columns=note"], "line 2, column 'note': a text of 7 characters is"),
    "no names": (["--columns="], "--columns is ''; expected names of columns"),
    "twice": (["--columns=age,age"], "--columns is 'age,age'; expected names"),
    "gap in names": (["--text=,note"], "--text is ',note'; expected names"),
    "rows": (["--rows={path}"], "--rows belongs to an .npy file, and --input is"),
    "fit": (["--fit={path}"], "--fit and --input are both {path}; expected other"),
    "fit kind": (["--fit=usual.npy"], "expected two CSV files, or two .npy files"),
    "fit missing": (["--fit={folder}/none.csv"], "Cannot read {folder}/none.csv"),
    "folder": (["--output={folder}"], "{folder} is a folder; expected the name"),
    "no folder": (["--output={folder}/a/b.csv"], "/a/b.csv: No such file"),
    "same": (["--output={path}", "--force"], "{path} is read and cannot be written"),
    "no model": (["--text=note", "--model=none"], "There is no model 'none'"),
    "no input": (["--input={folder}/none.csv"], "Cannot read {folder}/none.csv: No"),
    "no array": (["--input={folder}/none.npy"], "Cannot read {folder}/none.npy: No"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_clear_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, said = BAD_OPTIONS[name]
    path = csv_file(tmp_path, GOOD)
    words = [f"--input={path}", f"--output={tmp_path / 'out.csv'}", "--budget=5"]
    words += [word.format(path=path, folder=tmp_path) for word in options]
    before = contents(tmp_path)
    assert cli.main(["detect", *words]) == 1
    line = said_by(capsys)
    assert said.format(path=path, folder=tmp_path) in line, line
    assert contents(tmp_path) == before


def lines(*values: Any) -> str:
    return "a,b\n" + "".join(f"{value},{n % 7}\n" for n, value in enumerate(values))


MANY = list(range(20))
BAD_FILES = {
    "empty": ("", [], "is empty; expected a CSV file whose first line names"),
    "heading": ("a,b\n", [], "has a heading and no rows"),
    "heading, text": ("a,b\n", ["--text=a"], "has a heading and no rows"),
    "latin-1": (lines(*MANY, "Übel").encode("latin-1"), [], "not in UTF-8: line 22"),
    "uneven": (lines(*MANY) + "1\n", [], "line 22: 1 fields; expected 2"),
    "no number": ("a,label\n" + "x,1\n" * 20, [], "has no column of measured numbers"),
    "NaN": (lines(*MANY, "nan", "NA"), [], "line 22, column 'a': 'nan' (the first of"),
    "nothing": (lines(1, "", *MANY), [], "line 3, column 'a': nothing; expected a fin"),
    "infinite": (lines(*MANY, "inf"), ["--columns=a"], "line 22, column 'a': 'inf'"),
    "word": (lines(*MANY, "1O"), ["--columns=a"], "column 'a': '1O' is no number"),
    "comma": (
        lines(*MANY, 0.5, '"1,5"'),
        ["--columns=a"],
        "'1,5' is no number (a decimal comma, where others have a point); expected",
    ),
    "underscore": (lines(*MANY, "1_0"), ["--columns=a"], "'1_0' is no number"),
    "constant": (
        lines(*[4.0] * 20),
        ["--columns=a,b"],
        "same value in every row of 'a'; expected",
    ),
    "all constant": ("a\n" + "4\n" * 20, [], "same value in every row of 'a'; expe"),
    "few": (lines(1, 2, 3, 4, 5), ["--budget=1"], "needs at least 6"),
    "empty text": (
        "a,b\n" + "x,y\n,z\n , \n",
        ["--text=a,b"],
        "1 row without a text (column 'a,b'), in line 4",
    ),
    "taken": (lines(*MANY).replace("b", "rank", 1), [], "has a column 'rank' already"),
    "two names": ("a,a\n" + "1,2\n2,1\n" * 9, [], "has 2 columns 'a'; expected one"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, options, said = BAD_FILES[name]
    path = csv_file(tmp_path, content)
    words = [f"--input={path}", f"--output={tmp_path / 'out.csv'}", "--budget=2"]
    assert cli.main(["detect", *words, *options]) == 1
    line = said_by(capsys)
    assert said in line and str(path) in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]


def changed(vectors: np.ndarray, row: int, place: Any, value: float) -> np.ndarray:
    vectors = vectors.copy()
    vectors[row, place] = value
    return vectors


GOOD_ARRAY = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
BAD_ARRAYS: dict[str, tuple[Any, list[str], str]] = {
    "one axis": (GOOD_ARRAY[0], [], "of shape (4,) and type float32; expected (rows"),
    "three axes": (GOOD_ARRAY[None], [], "an array of shape (1, 30, 4)"),
    "whole numbers": (np.ones((30, 4), int), [], "type int64; expected (rows, feat"),
    "objects": (np.array([["a", None]] * 9, object), [], "Python objects in dtype"),
    "no rows": (GOOD_ARRAY[:0], [], "of shape (0, 4) and type float32; expected"),
    "NaN": (changed(GOOD_ARRAY, 7, 2, np.nan), [], "row 8, column 3 (both counted"),
    "infinite": (changed(GOOD_ARRAY, 0, 3, -np.inf), [], "column 4 (both counted from"),
    "zeros": (changed(GOOD_ARRAY, 9, slice(None), 0), [], "row 10 (counted from 1) ho"),
    "equal": (GOOD_ARRAY * 0 + 3, [], "All 30 rows of {path} are equal; expected"),
    "no file": (b"", [], "Cannot read {path}: "),
    "no array": (b"text,label\na,b\n" * 20, [], "Cannot read {path}: "),
    "columns": (GOOD_ARRAY, ["--columns=a"], "columns have no names; leave out --col"),
    "exclude": (GOOD_ARRAY, ["--exclude=a"], "--exclude is for columns of numbers th"),
    "large": (GOOD_ARRAY * 1e16, [], "row 1, column 1 (both counted from 1): "),
    "text": (GOOD_ARRAY, ["--text=a"], "name it with --rows"),
    "fit": (GOOD_ARRAY, ["--fit={narrow}"], "has 3 numbers a row and {path} has 4;"),
    "fit kind": (GOOD_ARRAY, ["--fit={rows}"], "expected two CSV files, or two .npy"),
    "rows": (GOOD_ARRAY, ["--rows={rows}"], "has 30 rows and {rows} has 29; expected"),
    "shown": (
        GOOD_ARRAY[1:],
        ["--rows={rows}", "--text=b"],
        "has no column 'b'; it has 'text'",
    ),
    "few": (GOOD_ARRAY[:5], [], "{path} has 5 rows; knn compares each row with 5"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_one_clear_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, options, said = BAD_ARRAYS[name]
    places = {n: tmp_path / f"{n}.npy" for n in ("path", "narrow")}
    places["rows"] = csv_file(tmp_path, "text\n" + "cough\n" * 29)
    np.save(places["narrow"], GOOD_ARRAY[:, :3])
    if isinstance(content, bytes):
        places["path"].write_bytes(content)
    else:
        np.save(places["path"], content, allow_pickle=True)
    before = contents(tmp_path)
    words = [f"--input={places['path']}", f"--output={tmp_path / 'o.csv'}"]
    words += [word.format(**places) for word in options]
    assert cli.main(["detect", *words, "--budget=2"]) == 1
    line = said_by(capsys)
    assert said.format(**places) in line, line
    assert contents(tmp_path) == before


def test_an_array_that_is_cut_short(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes((given / "vectors.npy").read_bytes()[:-100])
    words = [f"--input={path}", f"--output={tmp_path / 'out.csv'}"]
    assert cli.main(["detect", *words]) == 1
    assert f"Cannot read {path}: " in said_by(capsys)


@pytest.mark.parametrize(
    ("usual", "said"),
    [
        ("height,weight\n" + "1,2\n2,1\n" * 9, "no column 'sodium', which is compared"),
        ("height,weight,sodium\n" + "1,2,3\n2,x,1\n" * 9, "'x' is no number"),
        ("height,weight,sodium\n" + "1,2,3\n2,,1\n" * 9, "column 'weight': nothing"),
        ("height,weight,sodium\n" + "1,2,3\n2,1,1\n" * 2, "has 4 rows; knn compares"),
    ],
)
def test_usual_rows_must_be_like_the_others(
    usual: str,
    said: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = csv_file(tmp_path, usual)
    assert detected(given, "numbers", tmp_path / "o.csv", f"--fit={path}") == 1
    line = said_by(capsys)
    assert said in line and str(path) in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]


def test_usual_rows_may_stand_in_other_columns(given: Path, tmp_path: Path) -> None:
    """Columns are known by their names; a constant one of the input is no fault."""
    rows = np.delete(numbers(), PLANTED, axis=0)
    body = "".join(f"{c},{a},{b}\n" for a, b, c in rows)
    usual = csv_file(tmp_path, "sodium,height,weight\n" + body)
    assert detected(given, "numbers", tmp_path / "o.csv", f"--fit={usual}") == 0
    assert flagged_in(table(tmp_path / "o.csv")) == set(PLANTED)


def test_a_saved_model_without_tokenizer_is_refused(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(given / "encoder", encoder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (encoder / name).unlink(missing_ok=True)
    out = tmp_path / "out.csv"
    assert detected(given, "texts", out, f"--model={encoder}") == 1
    assert "tokenizer" in capsys.readouterr().err
    assert not out.exists()


class TwoProcesses:
    """What Accelerate says of the main one of two."""

    process_index, num_processes, device = 0, 2, "cpu"


def test_several_processes_are_refused(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "_accelerator", lambda device: TwoProcesses())
    assert detected(given, "numbers", tmp_path / "out.csv") == 1
    assert "was started in 2 processes; expected one" in said_by(capsys)


# Nothing half-written -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.csv", "out.report.json", "out.report.html"])
def test_a_file_in_the_way_is_not_lost(
    name: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("Weeks of work")
    assert detected(given, "numbers", tmp_path / "out.csv") == 1
    assert f"{name} is there already. Name another file, or add" in said_by(capsys)
    assert contents(tmp_path) == {name: b"Weeks of work"}
    assert detected(given, "numbers", tmp_path / "out.csv", "--force") == 0
    assert len(contents(tmp_path)) == 3
    assert contents(tmp_path)[name] != b"Weeks of work"


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_new", [True, False])
def test_an_interrupted_write_leaves_nothing(
    is_new: bool,
    error: BaseException,
    at: int,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever of the three files the disk has no place for."""
    if not is_new:
        (tmp_path / "out.csv").write_text("before")
    fsync, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == at:
            raise error
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    status = detected(given, "array with rows", tmp_path / "out.csv", "--force")
    assert status == (1 if isinstance(error, OSError) else 130)
    assert contents(tmp_path) == ({} if is_new else {"out.csv": b"before"})


@pytest.mark.parametrize("kind", ["array", "texts"])
def test_a_full_disk_while_vectors_are_stored(
    kind: str,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tempfile

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

    def full(**named: Any) -> Any:
        return Full() if "prefix" in named else temporary(**named)

    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert detected(given, kind, tmp_path / "out.csv") == 1
    err = capsys.readouterr().err
    assert f"Cannot write {tmp_path}: No space left on device" in err
    assert contents(tmp_path) == {}


def test_ctrl_c_while_it_scores_leaves_nothing(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(anomaly.DETECTORS["knn"], "training_scores", stopped)
    assert detected(given, "texts", tmp_path / "out.csv") == 130
    assert contents(tmp_path) == {}


def test_a_file_that_changes_under_our_hands_is_noticed(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "numbers.csv"
    shutil.copy(given / "numbers.csv", source)
    find = detect.find

    def slow(*arguments: Any) -> Any:
        with source.open("a") as file:
            file.write("9,9,9,9,9,9\n")
        return find(*arguments)

    monkeypatch.setattr(detect, "find", slow)
    assert detected(tmp_path, "numbers", tmp_path / "out.csv") == 1
    assert "has changed while it was read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.csv"]


# The report ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all kinds, as KIND.csv."""
    folder = tmp_path_factory.mktemp("reported")
    for kind in KINDS:
        assert detected(given, kind, folder / f"{kind}.csv") == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_agrees_with_the_scores(kind: str, reported: Path) -> None:
    rows, found = table(reported / f"{kind}.csv"), report_of(reported / f"{kind}.csv")
    scores = column(rows, "anomaly_score")
    assert len(found["flagged"]) == found["budget"] == 3
    for rank, fact in enumerate(found["flagged"], start=1):
        row = rows[fact["row_number"] - 1]
        assert fact["rank"] == rank == int(row["rank"])
        assert fact["score"] == pytest.approx(float(row["anomaly_score"]))
        for number, near in enumerate(fact["nearest"], start=1):
            assert str(near["row_number"]) == row[f"nearest_{number}"]
    spread = found["distribution"]
    assert sum(spread["counts"]) + spread["beyond"] == len(rows)
    assert spread["quantiles"]["0.5"] == pytest.approx(np.median(scores))
    top = found["metrics"]
    assert top["largest_score"]["value"] == pytest.approx(scores.max(), rel=1e-5)
    assert top["threshold"]["value"] == pytest.approx(np.sort(scores)[-3], rel=1e-5)


@pytest.mark.parametrize("kind", ["texts", "array with rows"])
def test_the_report_shows_texts_of_rows_and_neighbours(
    kind: str, given: Path, reported: Path
) -> None:
    texts = [
        " ".join(f"{row['title']} {row['abstract']}".split())
        for row in table(given / "texts.csv")
    ]
    page = Page((reported / f"{kind}.report.html").read_text(encoding="utf-8"))
    for fact in report_of(reported / f"{kind}.csv")["flagged"]:
        for one in (fact, *fact["nearest"]):
            assert one["text"] == texts[one["row_number"] - 1]
            assert one["text"] in page.text


def test_texts_beside_usual_rows_are_those_of_the_other_file(
    given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    assert detected(given, "texts", out, f"--fit={given / 'usual_texts.csv'}") == 0
    rows = table(given / "usual_texts.csv")
    usual = [f"{row['title']} {row['abstract']}" for row in rows]
    for fact in report_of(out)["flagged"]:
        assert fact["text"].startswith("Chest")
        for near in fact["nearest"]:
            assert near["text"] == usual[near["row_number"] - 1]


def test_columns_that_stand_out_are_named(reported: Path, given: Path) -> None:
    """With their robust z, from the file alone."""
    expected = as_compared(given, "numbers.csv")
    names = ("height", "weight", "sodium")
    found = report_of(reported / "numbers.csv")["flagged"]
    first = {fact["row_number"] - 1: fact["stands_out"][0] for fact in found}
    assert {row: one["column"] for row, one in first.items()} == {
        12: "sodium",
        40: "weight",
        77: "weight",
    }
    for fact in found:
        row = fact["row_number"] - 1
        sizes = [abs(one["robust_z"]) for one in fact["stands_out"]]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3
        for one in fact["stands_out"]:
            z = expected[row, names.index(one["column"])]
            assert one["robust_z"] == pytest.approx(z)
            assert one["value"] == numbers()[row, names.index(one["column"])]
    page = (reported / "numbers.report.html").read_text()
    assert re.search(r"sodium 120 \(robust z -\d+\.\d\)", page)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_stands_alone_and_says_what_its_figure_shows(
    kind: str, reported: Path
) -> None:
    source = (reported / f"{kind}.report.html").read_text(encoding="utf-8")
    page = Page(source)
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 1 and "script" not in tags and "img" not in tags
    assert tags.count("article") == 3 and tags.count("h1") == 1
    assert not re.search(r"(src|href)\s*=\s*\"(?!#)", source)
    alt = next(attributes for tag, attributes in page.seen if tag == "svg")
    assert "Histogram of 90 anomaly scores" in (alt["aria-label"] or "")
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) > 10
    assert "DejaVu" not in source and "prefers-color-scheme: dark" in source
    for ink in pages.INKS:
        assert ink not in source
    assert detect_report.CAUTION in page.text
    assert "transductive" in page.text and "knn" in page.text


def test_the_page_is_made_of_the_report_alone(reported: Path) -> None:
    for kind in KINDS:
        source = (reported / f"{kind}.report.html").read_text(encoding="utf-8")
        assert detect_report.page(report_of(reported / f"{kind}.csv")) == source


def test_nothing_of_the_files_can_change_the_page(tmp_path: Path) -> None:
    """Texts, names of columns and of files are shown, not obeyed."""
    path, out = tmp_path / "<b>notes & <i>.csv", tmp_path / "out.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([EVIL, "b", "<s>"])
        writer.writerows([n // 2, n * n % 7 + 99 * (n == 4), EVIL] for n in range(30))
    words = [f"--input={path}", f"--output={out}", "--budget=2"]
    assert cli.main(["detect", *words]) == 0
    page = Page(out.with_name("out.report.html").read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "s"} & {tag for tag, _ in page.seen}
    assert page.text.count(EVIL) >= 3 and path.name in page.text
    content = report_of(out)
    for fact in content["flagged"]:
        fact["text"] = EVIL
        for near in fact["nearest"]:
            near["text"] = EVIL
    shown = Page(detect_report.page(content))
    assert not any(tag == "script" for tag, _ in shown.seen)
    assert shown.text.count(EVIL) >= page.text.count(EVIL) + 8


def test_texts_on_the_page_are_escaped_and_shortened(
    given: Path, tmp_path: Path
) -> None:
    long = "<u>fever</u> " + "cough " * 200
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "abstract"])
        writer.writerows([f"{WORDS[n % 6]} {WORDS[n // 6]}", long] for n in range(20))
    shutil.copytree(given / "encoder", tmp_path / "encoder")
    assert detected(tmp_path, "texts", tmp_path / "out.csv") == 0
    page = Page((tmp_path / "out.report.html").read_text(encoding="utf-8"))
    assert not any(tag == "u" for tag, _ in page.seen)
    assert "<u>fever</u>" in page.text
    for fact in report_of(tmp_path / "out.csv")["flagged"]:
        assert fact["text"].endswith(" …")
        assert len(fact["text"]) <= detect_report.LONGEST + 2


def test_a_long_list_is_cut_on_the_page_not_in_the_file(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect_report, "LISTED", 4)
    out = tmp_path / "out.csv"
    assert detected(given, "numbers", out, "--budget=9") == 0
    assert len(report_of(out)["flagged"]) == 4 and len(flagged_in(table(out))) == 9
    page = (tmp_path / "out.report.html").read_text()
    assert "The first 4; the CSV file has all." in page


def test_it_reminds_and_names_no_folder(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert detected(given, "texts", out) == 0
    assert capsys.readouterr().err.count("identifiable patient data do not") == 1
    written = (tmp_path / "out.report.json").read_text()
    assert str(given) not in written and str(tmp_path) not in written
    command = report_of(out)["command"]
    assert command.startswith("medlm detect --input texts.csv --output out.csv")
    assert "--model encoder" in command and "--budget 3" in command


def test_a_huge_score_does_not_hide_the_others() -> None:
    """999 scores below 2 and one of a million: the bins are for the 999."""
    scores = np.append(np.linspace(0, 2, 999), 1e6)
    found = detect_report.distribution(scores, threshold=1.9)
    assert found["beyond"] == 1 and found["edges"][-1] < 3
    assert sum(found["counts"]) == 999 and max(found["counts"]) < 50
    same = detect_report.distribution(np.ones(5), threshold=1)
    assert sum(same["counts"]) == 5 and same["beyond"] == 0
