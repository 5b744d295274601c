"""Tests of `medlm ct-finetune` and `medlm ct-predict`, and of their report."""

from __future__ import annotations

import argparse
import base64
import collections
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import safetensors.torch
import sklearn.metrics
import torch
from PIL import Image
from test_cli_bert import Page, contents

from medlm_utils import ct, dicom, image_files, image_folder, resnet, runtime
from medlm_utils.cli import (
    ct_finetune,
    ct_leaks,
    ct_pictures,
    ct_predict,
    ct_results,
    ct_run,
)
from medlm_utils.cli import main as cli
from medlm_utils.runtime import MedlmError

ROOT = Path(__file__).resolve().parent.parent
HEADING = ("file", "patient", "label", "scanner")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_images(folder: Path, patients: int = 30, kind: str = "png") -> None:
    """What `medlm phantom write` writes, smaller: a bright square in the abnormal."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(patients):
        name = ("normal", "abnormal")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place in (1, 2):
            hu = rng.normal(-800, 60, (32, 32))
            y, x = rng.integers(2, 20, 2)
            hu[y : y + 10, x : x + 10] += 500 * (number % 2)
            file = f"{name}/p{number:02d}_{place}.{kind}"
            if kind == "png":
                grey = np.rint(ct.window(hu) * 255).astype(np.uint8)
                Image.fromarray(grey).save(folder / file)
            else:
                write_dicom(folder / file, hu)
            rows.append((file, f"p{number:02d}", number % 2, "S1"))
    write_table(
        folder / "patients.csv",
        [dict(zip(HEADING, row, strict=True)) for row in rows],
    )


def write_dicom(path: Path, hu: np.ndarray) -> None:
    content = pydicom.dcmread(dicom.sample_dicom())
    content.Rows, content.Columns = hu.shape
    content.PixelData = np.rint(hu + 1024).astype("<i2").tobytes()
    content.save_as(path)


def words_of(images: Path, out: Path, *more: str) -> list[str]:
    """The words of a command that takes seconds."""
    files = [f"--images={images}", f"--patients={images / 'patients.csv'}"]
    settings = ["--epochs=2", "--batch=16", "--weights=none", "--checkpoint-every=1"]
    return ["ct-finetune", *files, f"--out={out}", *settings, *more]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images; nobody writes into it."""
    folder = tmp_path_factory.mktemp("given") / "images"
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def run(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(words_of(given, out)) == 0
    return out


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def own(given: Path, tmp_path: Path) -> Path:
    """Images that a test may spoil."""
    shutil.copytree(given, tmp_path / "images")
    return tmp_path / "images"


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, the reminder apart."""
    lines = capsys.readouterr().err.splitlines()
    kept = [line for line in lines if not line.startswith("medlm: Reminder:")]
    assert len(kept) == 1, kept
    return kept[0]


# medlm ct-finetune --------------------------------------------------------------------


def test_the_choices_are_those_of_the_modules() -> None:
    assert set(ct_finetune.AGGREGATIONS) == set(ct.AGGREGATIONS)


@pytest.mark.slow
def test_a_run_leaves_model_predictions_and_report(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *["model.safetensors", "report.json", "report.html", "run.json"],
        *(
            f"predictions_{part}_{what}.csv"
            for part in ("validation", "test")
            for what in ("slices", "patients")
        ),
    }


@pytest.mark.slow
def test_no_patient_is_in_two_parts(run: Path, given: Path, report: Any) -> None:
    sides = [
        {row["patient"] for row in read_table(run / f"predictions_{part}_slices.csv")}
        for part in ("validation", "test")
    ]
    every = {row["patient"] for row in read_table(given / "patients.csv")}
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert report["data"]["training"]["patients"] == len(every - sides[0] - sides[1])
    assert sum(part["images"] for part in report["data"].values()) == 60


@pytest.mark.slow
def test_every_number_of_the_report_comes_from_the_predictions(
    run: Path, given: Path, report: Any
) -> None:
    classes, point = report["model"]["classes"], report["model"]["threshold"]
    assert classes == ["normal", "abnormal"]
    majority = training_majority(run, given, classes)
    for part in ("validation", "test"):
        slices = read_table(run / f"predictions_{part}_slices.csv")
        patients = read_table(run / f"predictions_{part}_patients.csv")
        check_patients_are_their_slices(slices, patients)
        called = np.where(score_of(patients) >= point - 1e-6, *classes[::-1])
        assert called.tolist() == [row["at_operating_point"] for row in patients]
        expected = {
            **recomputed(patients, classes, called, majority),
            **{f"slice_{n}": v for n, v in recomputed(slices, classes).items()},
        }
        check_metrics(report, part, expected, {"no_pixels_auroc"}, len(patients))
        check_confusion(report, part, patients, classes, called)
    assert report["metrics"]["validation_sensitivity"]["value"] >= 0.9


def training_majority(run: Path, given: Path, classes: list[str]) -> str:
    """The class of most patients who are in no file of predictions."""
    seen = {
        row["patient"]
        for part in ("validation", "test")
        for row in read_table(run / f"predictions_{part}_patients.csv")
    }
    rows = read_table(given / "patients.csv")
    label = {row["patient"]: row["label"] for row in rows if row["patient"] not in seen}
    counted = collections.Counter(label.values())
    names = classes if set(counted) <= set(classes) else [str(n) for n in range(9)]
    most = max(sorted(counted, key=names.index), key=lambda name: counted[name])
    return most if most in classes else classes[int(most)]


def check_patients_are_their_slices(
    slices: list[dict[str, str]], patients: list[dict[str, str]]
) -> None:
    names = [name for name in patients[0] if name.startswith("p_")]
    for row in patients:
        own = [s for s in slices if s["patient"] == row["patient"]]
        assert {s["label"] for s in own} == {row["label"]}
        for name in names:
            mean = np.mean([float(s[name]) for s in own])
            assert float(row[name]) == pytest.approx(mean, abs=1e-5)


def recomputed(
    rows: list[dict[str, str]],
    classes: list[str],
    called: np.ndarray | None = None,
    majority: str | None = None,
) -> dict[str, float]:
    """What scikit-learn says of a file of predictions."""
    label = np.array([row["label"] for row in rows])
    shares = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    shares /= shares.sum(axis=1, keepdims=True)  # six digits of each were written
    number = np.array([classes.index(name) for name in label])
    said = {"log_loss": sklearn.metrics.log_loss(number, shares)}
    if len(classes) == 2:
        ill, score = label == classes[1], shares[:, 1]
        said["auroc"] = sklearn.metrics.roc_auc_score(ill, score)
        said["auprc"] = sklearn.metrics.average_precision_score(ill, score)
        said["prevalence"] = ill.mean()
    for place, name in enumerate(classes if len(classes) > 2 else ()):
        area = sklearn.metrics.roc_auc_score(label == name, shares[:, place])
        said[f"auroc_{name}"] = area
    if called is not None:
        said["accuracy"] = (called == label).mean()
        said["macro_f1"] = sklearn.metrics.f1_score(
            label, called, labels=classes, average="macro", zero_division=0
        )
    if called is not None and len(classes) == 2:
        said["sensitivity"] = (called[label == classes[1]] == classes[1]).mean()
        said["specificity"] = (called[label == classes[0]] == classes[0]).mean()
    if majority is not None:
        said["majority_accuracy"] = (label == majority).mean()
    return said


def check_metrics(
    report: Any, part: str, expected: dict[str, float], apart: set[str], count: int
) -> None:
    """Every number of the part, and no other; all of them count patients."""
    prefix = f"{part}_"
    found = {
        name.removeprefix(prefix): value
        for name, value in report["metrics"].items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in apart
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=2e-5), name
        if name not in ("sensitivity", "specificity"):
            assert found[name]["n"] == count, name


def check_confusion(
    report: Any,
    part: str,
    rows: list[dict[str, str]],
    classes: list[str],
    called: np.ndarray,
) -> None:
    label = [row["label"] for row in rows]
    matrix = sklearn.metrics.confusion_matrix(label, called, labels=classes)
    content = report["parts"][part]
    np.testing.assert_array_equal(content["confusion"], matrix)
    right = np.trace(matrix) / matrix.sum()
    assert report["metrics"][f"{part}_accuracy"]["value"] == pytest.approx(right)
    counts = report["data"][part]
    assert counts["patients"] == len(rows)
    assert list(counts["frequencies"].values()) == matrix.sum(axis=1).tolist()


def score_of(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([float(row["p_abnormal"]) for row in rows])


@pytest.mark.slow
def test_the_page_stands_alone_and_says_what_its_figures_show(run: Path) -> None:
    source = (run / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 3 and "script" not in tags
    assert not re.search(r"(src|href)\s*=\s*\"(?!#|data:image/png;base64,)", source)
    pictures = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(pictures) >= 10 and all(picture["alt"] for picture in pictures)
    assert len(source) < 1_500_000
    for tag, attributes in page.seen:
        if tag == "svg":
            assert len((attributes["aria-label"] or "").split()) > 5
    for said in (
        "Not for clinical use",
        "AUROC of a forest that sees no pixels",
        "PNG and JPEG files have lost their Hounsfield units",
        "No patient has images in two parts, as the table names them",
        "Positive class: abnormal ('normal' says that nothing was found)",
        "These are images of test patients",
        "Accuracy at the operating point",
    ):
        assert said in page.text
    assert str(ROOT) not in source and "/tmp" not in source


@pytest.mark.slow
def test_files_that_tell_the_class_are_a_warning(report: Any) -> None:
    """The squares compress: the size of a file is enough."""
    known = report["metrics"]["test_no_pixels_auroc"]
    words = [w for w in report["warnings"] if "a forest that sees no pixels" in w]
    assert bool(words) == (known.get("low", 0) > 0.5)


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(
    run: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    assert cli.main(words_of(given, run)) == 1
    assert "holds this very run, finished. Add --resume" in said_by(capsys)
    assert cli.main(words_of(given, run, "--resume")) == 0
    assert "This run is finished" in said_by(capsys)
    assert cli.main(words_of(given, run, "--resume", "--seed=5")) == 1
    assert "holds another run" in said_by(capsys)
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before


@pytest.mark.slow
def test_a_run_that_breaks_off_ends_in_the_same_weights(
    run: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, at = tmp_path / "out", ct.SliceBatches.at

    def broken(self: Any, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr(ct.SliceBatches, "at", broken)
    assert cli.main(words_of(given, out)) == 130
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "report.json").exists()
    seen: list[int] = []

    def counted(self: Any, step: int) -> Any:
        seen.append(step)
        return at(self, step)

    monkeypatch.setattr(ct.SliceBatches, "at", counted)
    assert cli.main(words_of(given, out, "--resume")) == 0
    assert seen[0] == 3
    (whole, about), (found, also) = (
        resnet.load_int8(folder / "model.safetensors") for folder in (run, out)
    )
    assert about == also and whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    for path in run.glob("predictions_*.csv"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not (out / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_dicom_files_simulated_weights_and_a_split_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says who is where, and what: no folders of classes."""
    images = tmp_path / "images"
    write_images(images, 12, "dcm")
    rows = read_table(images / "patients.csv")
    flat = tmp_path / "flat"
    flat.mkdir()
    for row in rows:
        name = row["file"].split("/")[1]
        shutil.move(images / row["file"], flat / name)
        number = int(row["patient"][1:])
        row["file"] = name
        row["label"] = ("healthy", "ill")[int(row["label"])]
        row["split"] = "train" if number < 6 else "val" if number < 10 else "test"
    write_table(flat / "patients.csv", rows)
    broken = next(flat.glob("p00_*.dcm"))
    content = pydicom.dcmread(broken)
    del content.PixelData
    content.save_as(broken)
    words = words_of(flat, tmp_path / "out", "--weights=simulated", "--epochs=1")
    assert cli.main(words) == 1
    assert "has no pixel data" in said_by(capsys)
    assert cli.main([*words, "--skip-bad"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["classes"] == ["healthy", "ill"]
    assert report["model"]["window"] == [1500.0, -600.0]
    assert report["data"]["training"]["images"] == 11
    assert report["data"]["test"]["patients"] == 2
    assert [name for name, _ in report["skipped"]] == [broken.name]
    assert "1 files could not be read" in report["warnings"][0]
    # What predict says of the same files is what the run said.
    output = tmp_path / "answers.csv"
    asked = ["ct-predict", f"--model={tmp_path / 'out' / 'model.safetensors'}"]
    asked += [f"--images={flat}", f"--output={output}", "--batch=1", "--skip-bad"]
    assert cli.main(asked) == 0
    printed = capsys.readouterr().out
    assert f"left out: {broken.name}" in printed and "Wrote 23 rows" in printed
    answers = {row["file"]: float(row["p_ill"]) for row in read_table(output)}
    for row in read_table(tmp_path / "out" / "predictions_test_slices.csv"):
        assert answers[row["file"]] == pytest.approx(float(row["p_ill"]), abs=0.02)


@pytest.mark.slow
def test_three_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out, classes = tmp_path / "images", tmp_path / "out", ["a", "b", "c"]
    write_images(images, 24)
    rows = read_table(images / "patients.csv")
    for row in rows:
        row["label"] = "abc"[int(row["patient"][1:]) % 3]
        name = row["file"].split("/")[1]
        shutil.move(images / row["file"], images / name)
        row["file"] = name
    write_table(images / "patients.csv", rows)
    words = words_of(images, out, "--epochs=1")
    assert cli.main([*words, "--by=max"]) == 1
    assert "--by max is for two classes; with 3" in said_by(capsys)
    assert cli.main([*words, "--no-pictures"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["threshold"] is None
    majority = training_majority(out, images, classes)
    for part in ("validation", "test"):
        slices = read_table(out / f"predictions_{part}_slices.csv")
        patients = read_table(out / f"predictions_{part}_patients.csv")
        check_patients_are_their_slices(slices, patients)
        called, likeliest = (
            np.array([row["predicted"] for row in rows]) for rows in (patients, slices)
        )
        of_slices = recomputed(slices, classes, likeliest)
        expected = recomputed(patients, classes, called, majority)
        expected |= {f"slice_{name}": value for name, value in of_slices.items()}
        check_metrics(report, part, expected, set(), len(patients))
        check_confusion(report, part, patients, classes, called)
    source = (out / "report.html").read_text()
    Page(source)
    assert "<img" not in source and "Pictures were left out" in source


@pytest.mark.slow
def test_what_phantom_writes_can_be_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLM_CACHE_DIR", str(tmp_path / "cache"))
    made = tmp_path / "made"
    assert cli.main(["phantom", "write", str(made), "--patients=20"]) == 0
    for kind in ("png", "dicom"):
        images, out = made / kind, tmp_path / f"run-{kind}"
        words = words_of(images, out, "--epochs=1", "--weights=simulated")
        assert cli.main(words) == 0
        report = json.loads((out / "report.json").read_text())
        assert report["model"]["classes"] == ["normal", "abnormal"]
        assert report["model"]["images"] == ("grey" if kind == "png" else "HU")


# What is refused before any training --------------------------------------------------


def spoil(images: Path, how: str) -> list[str]:
    """Make good images into bad ones; the options that the command then needs."""
    rows = read_table(images / "patients.csv")
    first = images / rows[0]["file"]
    if how == "cut short":
        first.write_bytes(first.read_bytes()[:200])
    elif how == "not an image":
        first.write_text("all is well")
    elif how == "one class":
        shutil.rmtree(images / "abnormal")
        rows = [row for row in rows if row["label"] == "0"]
    elif how == "two splits":
        for number, row in enumerate(rows):
            row["split"] = "train" if number % 2 else "test"
    elif how == "no such split":
        for row in rows:
            row["split"] = "learn"
    elif how == "sizes":
        Image.new("L", (20, 20)).save(first)
    elif how == "modes":
        Image.new("RGB", (32, 32)).save(first)
    elif how == "no patient":
        rows[0]["patient"] = ""
    elif how == "no validation":
        for row in rows:
            row["split"] = "train"
    write_table(images / "patients.csv", rows)
    return {"no table": ["--patients={none}"]}.get(how, [])


BAD = {
    "cut short": ("p00_1.png cannot be read as a picture", "--skip-bad"),
    "not an image": ("p00_1.png cannot be read as a picture", "--skip-bad"),
    "one class": ("are of the class 'normal'", "at least two classes"),
    "two splits": ("The patient p01 is in two splits", "test"),
    "no such split": ("The column split says 'learn'", "train, val or test"),
    "no validation": ("The validation part has no image of the class", "'normal'"),
    "sizes": ("differ in size: 59 with 32 x 32, 1 with 20 x 20", "--size 128"),
    "modes": ("differ in mode: 59 with L, 1 with RGB", "--grey"),
    "no patient": ("has a row without a patient", "patients.csv"),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_images_are_one_clear_error(
    how: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(own, how)
    assert cli.main(words_of(own, tmp_path / "out")) == 1
    line = said_by(capsys)
    assert line.startswith("medlm: ") and all(part in line for part in BAD[how]), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--images={out}/none", "There is no folder"),
        ("--patients={out}/none.csv", "No file"),
        ("--weights={out}/none", "There are no weights"),
        ("--weights=imagenet", "cannot be downloaded"),
        ("--epochs=0", "epochs is 0; expected at least 1"),
        ("--rate=0", "rate is 0.0; expected above 0"),
        ("--rate=inf", "--rate is inf; expected a number"),
        ("--frozen=6", "6 stages are to be frozen; expected 0 to 5"),
        ("--sensitivity=2", "--sensitivity is 2.0"),
        ("--checkpoint-every=0", "--checkpoint-every is 0"),
        ("--size=4", "The size is 4 pixels"),
        ("--seed=-1", "--seed is -1; expected 0 to"),
        ("--window=bone", "--window is 'bone'; expected lung, mediastinum, or width"),
        ("--window=0,40", "--window is '0,40'"),
        ("--window=400,nan", "--window is '400,nan'"),
        ("--positive=ill", "--positive ill is none of the classes"),
    ],
)
def test_bad_options_are_one_clear_error(
    option: str,
    said: str,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    out = tmp_path / "out"
    assert cli.main(words_of(given, out, option.format(out=out))) == 1
    assert said in said_by(capsys)
    assert not out.exists()


def test_no_table_of_patients(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ct-finetune", f"--images={given}", f"--out={tmp_path / 'out'}"]
    assert cli.main(words) == 1
    assert "There is no table of patients" in said_by(capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lung", (1500, -600)),
        ("400,40", (400, 40)),
        ("1500 -600", (1500, -600)),
        ("2000;0.5", (2000, 0.5)),
    ],
)
def test_windows_by_name_or_number(words: str, expected: tuple[float, float]) -> None:
    assert tuple(ct_run.window_of(words)) == expected


# What gives a split away --------------------------------------------------------------


def folder_of(
    patient: str, ids: str = "", digests: str = "", label: str = ""
) -> image_folder.Folder:
    """Images of noise; a letter or word each says patient, header and pixels."""
    names = patient.split()
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (len(names), 16, 16)).astype(np.uint8)
    given = digests.split() or [str(n) for n in range(len(names))]
    for row, digest in enumerate(given):
        values[row] = values[given.index(digest)]
    return image_folder.Folder(
        images=values,
        files=tuple(f"{n}.png" for n in range(len(names))),
        classes=("normal", "ill"),
        why="said",
        label=np.array([int(word) for word in label.split()] or [0] * len(names)),
        patient=np.array(names),
        split=None,
        digests=tuple(given),
        header_patients=tuple(ids.replace("_", " ").split(",")) if ids else ("",) * 9,
    )


HALVES = {"training": np.array([0, 1, 2]), "test": np.array([3, 4, 5])}


def test_images_of_different_people_are_no_leak() -> None:
    assert ct_leaks.check(folder_of("a a b c d d"), HALVES, False) == []


def test_the_same_picture_in_two_parts_is_refused() -> None:
    twins = folder_of("a a b c d d", digests="x y z x v w")
    with pytest.raises(
        MedlmError, match=r"in two parts, 2 files in all: 0\.png = 3"
    ) as e:
        ct_leaks.check(twins, HALVES, False)
    assert "--trust-table" in str(e.value) and "ct-patients" in str(e.value)
    said = ct_leaks.check(twins, HALVES, True)
    assert len(said) == 1 and "the same picture is in two parts" in said[0]


def test_the_same_picture_in_one_part_or_of_nothing_is_none() -> None:
    twice = folder_of("a a b c d d", digests="x x y z v w")
    assert ct_leaks.check(twice, HALVES, False) == []
    people = folder_of("a b c d e f", digests="x x y z v w")
    assert "of two patients" in ct_leaks.check(people, HALVES, False)[0]
    labels = folder_of("a a c d e f", digests="x x y z v w", label="0 1 0 0 0 0")
    assert "has two classes" in ct_leaks.check(labels, HALVES, False)[0]
    black = folder_of("a a b c d d", digests="x y z x v w")
    black.images[[0, 3]] = 7
    assert ct_leaks.check(black, HALVES, False) == []


@pytest.mark.parametrize(
    "ids",
    [
        "ANON,ANON,ANON,ANON,ANON,ANON",
        "site 1,site 1,site 1,site 1,site 1,site 1",
        "p1,p1,p2,p3,p4,p4",
        "Anonymous,p1,p2,Anonymous,p3,p3",
        "0,p1,p2,000,p3,p3",
        ",,,,,",
        ",p1,p2,,p3,p3",
    ],
)
def test_headers_that_name_nobody_or_agree(ids: str) -> None:
    assert ct_leaks.check(folder_of("a a b c d d", ids), HALVES, False) == []


def test_headers_that_say_otherwise() -> None:
    leak = folder_of("a a b c d d", "p1,p1,p2,p2,p3,p3")
    with pytest.raises(
        MedlmError, match=r"each of several patients .* b and c, in diff"
    ):
        ct_leaks.check(leak, HALVES, False)
    assert len(ct_leaks.check(leak, HALVES, True)) == 1
    inside = folder_of("a a b c d d", "p1,p1,p1,p2,p3,p3")
    assert "a and b, in one part" in ct_leaks.check(inside, HALVES, False)[0]
    several = folder_of("a a b c d d", "p1,p9,p2,p4,p3,p3")
    assert "several PatientIDs" in ct_leaks.check(several, HALVES, False)[0]


def test_neighbours_in_two_parts_are_a_warning() -> None:
    """Nearly the same image, under another patient; and not where all look alike."""
    images = folder_of("a b c d e f")
    y, x = np.mgrid[:16, :16]
    for row in range(6):  # a smooth hill each, elsewhere
        hill = (y - 3 - row) ** 2 + (x - 12 + 2 * row) ** 2
        images.images[row] = 250 * np.exp(-hill / 40)
    assert ct_leaks.check(images, HALVES, False) == []
    images.images[4] = np.minimum(images.images[1].astype(int) + 2, 255)
    said = ct_leaks.check(images, HALVES, False)
    assert len(said) == 1 and "1.png and 4.png" in said[0]


def test_near_and_groups_are_what_pairs_by_hand_say() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((40, 64)) < 0.5
    bits[7], bits[30] = bits[3], bits[3]
    bits[30, :2] ^= True
    apart = (bits[:, None] != bits[None]).sum(2)
    expected = {
        (a, b) for a in range(40) for b in range(a + 1, 40) if apart[a, b] <= 20
    }
    found = ct_leaks.near(bits, 20 / 64)
    assert {tuple(pair) for pair in found.tolist()} == expected >= {(3, 7), (3, 30)}
    number = ct_leaks.groups(40, np.array([[3, 7], [7, 30]]))
    assert len(set(number)) == 38 and number[3] == number[7] == number[30]


def test_a_class_that_loses_its_patients_is_a_warning() -> None:
    every = folder_of("a a b b c c", label="0 1 0 1 0 1")
    said = ct_run._lost_classes(every)
    assert len(said) == 1 and "3 of 3 patients with images of 'normal'" in said[0]
    assert "No patient is left" in said[0]
    assert not ct_run._lost_classes(folder_of("a a b b c c", label="0 1 0 0 0 0"))


@pytest.mark.slow
def test_bleeding_patients_are_not_called_healthy(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slices have labels: of a bleeding patient some show nothing."""
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(given, images)
    names = {"normal": "No Hemorrhage", "abnormal": "Hemorrhage"}
    for old, new in names.items():
        (images / old).rename(images / new)
    rows = read_table(images / "patients.csv")
    for row in rows:
        folder, name = row["file"].split("/")
        row["file"] = f"{names[folder]}/{name}"
        del row["label"]
        if folder == "abnormal" and name.endswith("_1.png"):
            (images / row["file"]).rename(images / "No Hemorrhage" / name)
            row["file"] = f"No Hemorrhage/{name}"
    write_table(images / "patients.csv", rows)
    assert cli.main(words_of(images, out, "--epochs=1")) == 0
    said = "positive class: Hemorrhage ('No Hemorrhage' says that nothing was found)"
    assert said in capsys.readouterr().err
    for part in ("validation", "test"):
        for row in read_table(out / f"predictions_{part}_patients.csv"):
            bleeds = int(row["patient"][1:]) % 2
            assert row["label"] == ("No Hemorrhage", "Hemorrhage")[bleeds]


def test_odd_headers_cost_nothing(tmp_path: Path) -> None:
    """The facts of files are read before the training, and never raise."""
    paths = [tmp_path / f"{n}.dcm" for n in range(3)]
    for number, path in enumerate(paths):
        content = pydicom.dcmread(dicom.sample_dicom())
        with pydicom.config.disable_value_validation():
            content.add_new("KVP", "LO", "120 kV" if number else "120")
        content.save_as(path)
    paths[2].write_bytes(b"no DICOM file")
    facts = ct_run.file_facts(paths)
    assert facts.shape[0] == 3 and np.isfinite(facts).all()


# Pictures -----------------------------------------------------------------------------


def test_pictures_show_the_worst_errors_first_and_fit_in_the_page() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 64, 48)).astype(np.uint8)
    patient, label = np.arange(40) // 2, np.arange(40) // 2 % 2
    second = np.where(label == 1, 0.9, 0.2)
    second[2 * np.array([3, 4])] = 0.05, 0.97  # patients 3 (ill) and 4 (well)
    second[2 * np.array([3, 4]) + 1] = 0.1, 0.6
    shares = np.stack([1 - second, second], axis=1)
    found = ct_results.Answers(
        [str(n) for n in range(40)], patient, label, np.log(shares), shares, "mean"
    )
    model = resnet.build(2, None, seed=0)
    pictures = ct_pictures.of_part(model, images, None, found, ["well", "ill"], 0.5)
    groups = collections.Counter(picture.group for picture in pictures)
    assert groups == {"seen": 12, "wrong": 2, "right": 3}
    wrong = [picture.words for picture in pictures if picture.group == "wrong"]
    assert wrong[0].startswith("Truth: ill. well 0.95")
    assert wrong[1].startswith("Truth: well. ill 0.97")
    for picture in pictures:
        code = picture.source.removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(code))) as drawn:
            wide = 120 * (1 + (picture.group != "seen"))
            assert drawn.size == (wide, 160)
    first = base64.b64decode(pictures[0].source.split(",")[1])
    with Image.open(io.BytesIO(first)) as drawn:
        expected = Image.fromarray(images[0]).resize((120, 160), Image.BILINEAR)
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


# medlm ct-predict ---------------------------------------------------------------------


def predict(run: Path, images: Path, out: Path, *more: str) -> int:
    words = [f"--model={run / 'model.safetensors'}", f"--images={images}"]
    return cli.main(["ct-predict", *words, f"--output={out}", *more])


@pytest.mark.slow
def test_predict_says_what_the_run_said(
    run: Path, given: Path, tmp_path: Path, report: Any
) -> None:
    """With a batch of 1 the files are read in chunks of 8, of 60."""
    out, table = tmp_path / "out.csv", given / "patients.csv"
    assert predict(run, given, out, "--batch=1", f"--patients={table}") == 0
    found = read_table(out)
    assert [row["file"] for row in found] == [
        path.relative_to(given).as_posix() for path in image_files.find(given)
    ]
    assert list(found[0]) == ["file", "patient", "predicted", "p_normal", "p_abnormal"]
    of_file = {row["file"]: float(row["p_abnormal"]) for row in found}
    for row in read_table(run / "predictions_test_slices.csv"):
        expected = float(row["p_abnormal"])
        assert of_file[row["file"]] == pytest.approx(expected, abs=0.02)
    threshold = report["model"]["threshold"]
    patients = read_table(tmp_path / "out_patients.csv")
    assert len(patients) == 30
    for row in patients:
        share = np.mean([float(r["p_abnormal"]) for r in found
                         if r["patient"] == row["patient"]])  # fmt: skip
        assert float(row["p_abnormal"]) == pytest.approx(share, abs=1e-5)
        if abs(share - threshold) > 1e-5:
            called = ("normal", "abnormal")[int(share >= threshold)]
            assert row["at_operating_point"] == called


@pytest.mark.slow
def test_labels_make_predict_a_test_on_other_images(
    run: Path, tmp_path: Path, report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "other", tmp_path / "out.csv"
    write_images(images, 14)
    coarse = sorted((images / "normal").glob("*.png"))[0]
    values = np.asarray(Image.open(coarse)) // 64 * 64
    Image.fromarray(values.astype(np.uint8)).save(coarse)
    table = f"--patients={images / 'patients.csv'}"
    assert predict(run, images, out, table) == 0
    said = capsys.readouterr()
    assert (
        "outside: AUROC" in said.out and "1 of 28 images have no more than" in said.err
    )
    content = json.loads((tmp_path / "out.report.json").read_text())
    classes, point = report["model"]["classes"], report["model"]["threshold"]
    assert content["model"]["threshold"] == point
    assert any("1 of 28 images have no" in words for words in content["warnings"])
    truth = {
        row["patient"]: row["label"] for row in read_table(images / "patients.csv")
    }
    slices, patients = read_table(out), read_table(tmp_path / "out_patients.csv")
    for row in (*slices, *patients):
        row["label"] = classes[int(truth[row["patient"]])]
    called = np.array([row["at_operating_point"] for row in patients])
    expected = recomputed(patients, classes, called)
    expected |= {f"slice_{n}": v for n, v in recomputed(slices, classes).items()}
    check_metrics(content, "outside", expected, set(), 14)
    check_confusion(content, "outside", patients, classes, called)
    source = (tmp_path / "out.report.html").read_text()
    page = Page(source)
    assert "Nothing was chosen on these images" in page.text
    assert "only 14 patients" in page.text and "<img" not in source


@pytest.mark.slow
def test_labels_of_other_names_are_one_line(
    run: Path, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out.csv"
    table = tmp_path / "patients.csv"
    shutil.copytree(given, images)
    (images / "normal").rename(images / "well")
    rows = read_table(given / "patients.csv")
    for row in rows:
        if row["file"].startswith("normal/"):
            row["file"] = row["file"].replace("normal/", "well/")
    write_table(table, rows)
    assert predict(run, images, out, f"--patients={table}") == 1
    assert "are well, and the model knows normal, abnormal" in said_by(capsys)
    assert not out.exists()
    for row in rows:
        del row["label"]
    write_table(table, rows)
    assert predict(run, images, out, f"--patients={table}") == 0
    said = capsys.readouterr().out
    assert "No report: The classes of these images are well, and" in said
    assert not (tmp_path / "out.report.html").exists()


@pytest.mark.parametrize(
    "labels, found",
    [
        (["Normal", "ABNORMAL"], [0, 1]),
        (["abnormal"], [1]),
        (["well", "abnormal"], None),
    ],
)
def test_classes_are_known_by_their_names(labels: list[str], found: Any) -> None:
    number, why = ct_predict._numbers(labels, ["normal", "abnormal"])
    assert number == found and bool(why) == (found is None)
    assert ct_predict._numbers(["a", "A"], ["A", "a"])[0] == [1, 0]


def test_a_window_that_shows_nothing_is_a_warning() -> None:
    hu = np.linspace(-1000, 700, 400).reshape(1, 20, 20).astype(np.int16)
    images = image_folder.Folder(
        hu, ("a",), ("0", "1"), "", np.zeros(1), np.array(["p"]), None
    )
    for window in (ct.LUNG, ct.MEDIASTINUM, ct.Window(80, 40)):
        assert not ct_run.outside_of(images, window)
    for window in (ct.Window(10, 40), ct.Window(40, 900)):  # 40,400 turned round
        (words,) = ct_run.outside_of(images, window)
        assert "width first" in words
    grey = dataclasses.replace(images, images=hu.astype(np.uint8))
    assert not ct_run.outside_of(grey, ct.Window(40, 900))


@pytest.mark.parametrize("labels", [("normal", "abnormal"), ("normal", "normal")])
def test_the_table_may_call_classes_as_the_model_does(
    tmp_path: Path, labels: tuple[str, str]
) -> None:
    """Folders of other names; one of them only, where all are of one class."""
    for top in dict.fromkeys(["A", "B"][: len(set(labels))]):
        (tmp_path / "in" / top).mkdir(parents=True)
    tops = ["A", "B"] if len(set(labels)) == 2 else ["A", "A"]
    rows = [
        {"file": f"{top}/{n}.png", "patient": str(n), "label": label}
        for n, (top, label) in enumerate(zip(tops, labels, strict=True))
    ]
    write_table(tmp_path / "patients.csv", rows)
    chosen = argparse.Namespace(
        images=tmp_path / "in", patients=tmp_path / "patients.csv"
    )
    about = {"classes": ["normal", "abnormal"]}
    known = ct_predict._known(chosen, about, [row["file"] for row in rows])
    expected = [about["classes"].index(label) for label in labels]
    assert list((known.label or {}).values()) == expected


@pytest.mark.slow
def test_predict_needs_no_table_and_skips_what_is_bad(
    run: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = own / "normal" / "p00_1.png"
    bad.write_bytes(b"no image")
    out = tmp_path / "out.csv"
    assert predict(run, own, out) == 1
    assert "p00_1.png cannot be read" in said_by(capsys) and not out.exists()
    assert predict(run, own, out, "--skip-bad") == 0
    assert "1 files could not be read and were left out" in capsys.readouterr().out
    assert len(read_table(out)) == 59 and "patient" not in read_table(out)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["other kind", "other size", "weights", "pickle", "there", "batch"]
)
def test_predict_refuses(
    how: str,
    run: Path,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, model, more, said = given, run / "model.safetensors", [], ""
    out = tmp_path / "out.csv"
    if how == "other kind":
        images, said = tmp_path / "dicom", "learned from pictures, in grey"
        images.mkdir()
        shutil.copy(dicom.sample_dicom(), images)
    elif how == "other size":
        images, said = tmp_path / "large", "40 x 40 pixels; expected 32 x 32"
        images.mkdir()
        Image.new("L", (40, 40)).save(images / "a.png")
    elif how == "weights":
        model, said = resnet.simulated_weights(), "is no model of `medlm ct-finetune`"
    elif how == "pickle":
        model, said = tmp_path / "model.pt", "holds no weights that can be used"
        model.write_bytes(b"\x80\x04.")
    elif how == "there":
        out.write_text("Weeks of work")
        said = "is there already. Name another file, or add --force"
    else:
        more, said = ["--batch=0"], "--batch is 0"
    words = ["ct-predict", f"--model={model}", f"--images={images}", f"--output={out}"]
    assert cli.main([*words, *more]) == 1
    assert said in said_by(capsys)
    assert out.exists() == (how == "there")


# Several processes --------------------------------------------------------------------


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of medlm in two processes on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--main_process_port", str(port)),
            *("-m", "medlm_utils", *words),
        ],
        cwd=ROOT,
        env={**os.environ, "MEDLM_PROFILE": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def pair(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes."""
    out = tmp_path_factory.mktemp("pair") / "out"
    done = launch(*words_of(given, out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test: AUROC") == 1
    assert re.search(r"on cpu\S*, 2 processes", done.stderr)
    return out


@pytest.mark.slow
class TestTwoProcesses:
    def test_they_write_one_run(self, pair: Path, run: Path) -> None:
        assert contents(pair).keys() == contents(run).keys()
        report = json.loads((pair / "report.json").read_text())
        assert report["processes"] == 2

    def test_the_main_model_is_the_one_that_was_judged(
        self, pair: Path, given: Path, tmp_path: Path
    ) -> None:
        """Running means differ between processes; what is written has to answer."""
        assert predict(pair, given, tmp_path / "out.csv") == 0
        alone = {row["file"]: row for row in read_table(tmp_path / "out.csv")}
        for row in read_table(pair / "predictions_test_slices.csv"):
            found = float(alone[row["file"]]["p_abnormal"])
            assert found == pytest.approx(float(row["p_abnormal"]), abs=0.02)

    def test_weights_move_as_far_as_those_of_one(self, pair: Path, run: Path) -> None:
        """Not the same: each process normalises its own half of a batch."""
        one, two = (
            safetensors.torch.load_file(folder / "model.safetensors")["conv1.weight"]
            for folder in (run, pair)
        )
        start = build_start()
        moved = [float((weight - start).norm()) for weight in (one, two)]
        assert 0.3 < moved[1] / moved[0] < 3

    def test_they_share_a_prediction(
        self, run: Path, given: Path, tmp_path: Path
    ) -> None:
        out, alone = tmp_path / "two.csv", tmp_path / "one.csv"
        words = [f"--model={run / 'model.safetensors'}", f"--images={given}"]
        done = launch("ct-predict", *words, f"--output={out}", "--batch=7")
        assert done.returncode == 0, done.stderr
        assert predict(run, given, alone) == 0
        pairs = zip(read_table(out), read_table(alone), strict=True)
        for one, two in pairs:
            assert one["file"] == two["file"]
            assert float(one["p_abnormal"]) == pytest.approx(
                float(two["p_abnormal"]), abs=0.02
            )


def build_start() -> Any:
    """The first convolution of a run from scratch, before it."""
    return resnet.build(2, None, seed=runtime.SEED).conv1.weight.detach()
