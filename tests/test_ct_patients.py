"""`medlm ct-patients`: headers as they are, and groups of pictures that look alike."""

from __future__ import annotations

import collections
import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage
from test_cli_bert import Page

from medlm_utils import ct, dicom, image_folder
from medlm_utils.cli import ct_leaks, ct_patients, ct_run
from medlm_utils.cli import main as cli


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def groups_of(rows: list[dict[str, str]]) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["patient"], set()).add(row["file"])
    return {frozenset(group) for group in found.values()}


def series(seed: int, slices: int = 6) -> np.ndarray:
    """Neighbouring slices of a smooth volume, and no other patient has such a one."""
    rng = np.random.default_rng(seed)
    volume = ndimage.gaussian_filter(rng.normal(size=(slices, 48, 48)), (6, 5, 5))
    low, high = volume.min(), volume.max()
    noise = rng.normal(0, 2, volume.shape)
    return np.clip(250 * (volume - low) / (high - low) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients of six neighbouring slices; the names do not say which are."""
    folder = tmp_path_factory.mktemp("pictures")
    names = np.random.default_rng(0).permutation(60)
    for patient in range(10):
        top = folder / ("normal", "ill")[patient % 2]
        top.mkdir(exist_ok=True)
        for place, values in enumerate(series(patient)):
            name = f"p{patient}x{names[6 * patient + place]}"
            Image.fromarray(values).save(top / f"{name}.png")
    return folder


def test_slices_of_a_series_are_a_group(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "patients.csv"
    assert cli.main(["ct-patients", str(pictures), f"--output={out}"]) == 0
    said = capsys.readouterr().out
    assert "10 groups of 60 pictures that look alike: a guess" in said
    assert "Warning" not in said
    rows = table(out)
    for row in rows:
        assert row["label"] == row["file"].split("/")[0]
    expected = collections.defaultdict(set)
    for row in rows:
        expected[row["file"].split("x")[0]].add(row["file"])
    assert groups_of(rows) == {frozenset(group) for group in expected.values()}
    page = Page((tmp_path / "patients.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.seen) == 60
    assert "images of patients" in page.text and "are a guess" in page.text


def test_nothing_is_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "patients.csv"
    for there in (out, tmp_path / "patients.html"):
        there.write_text("Corrected by hand")
        assert cli.main(["ct-patients", str(pictures), f"--output={out}"]) == 1
        assert f"{there} is there already" in capsys.readouterr().err
        assert there.read_text() == "Corrected by hand"
        there.unlink()
    out.write_text("old")
    assert cli.main(["ct-patients", str(pictures), f"--output={out}", "--force"]) == 0
    assert len(table(out)) == 60


def test_finetune_takes_the_table_and_finds_no_leak(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "patients.csv"
    assert cli.main(["ct-patients", str(pictures), f"--output={out}"]) == 0
    found = image_folder.read_folder(pictures, out)
    assert found.classes == ("normal", "ill") and not found.warnings
    drawn = ct.split(found.patient, ct_run.SHARES, 0, found.label)
    rows = dict(zip(ct_run.PARTS, drawn, strict=True))
    assert ct_leaks.check(found, rows, False) == []
    # With a table that is wrong the neighbours are seen.
    wrong = [f"{n}" for n in range(60)]
    apart = dataclasses.replace(found, patient=np.array(wrong))
    rows = {"training": np.arange(0, 60, 2), "test": np.arange(1, 60, 2)}
    (said,) = ct_leaks.check(apart, rows, False)
    assert "60 images look nearly like one of another patient" in said


@pytest.mark.slow
def test_where_all_look_alike_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All patients of the simulated scanner have one anatomy."""
    made = tmp_path / "made"
    assert cli.main(["phantom", "write", str(made), "--patients=20"]) == 0
    out = tmp_path / "png.csv"
    assert cli.main(["ct-patients", str(made / "png"), f"--output={out}"]) == 0
    assert "too much alike to tell people apart" in capsys.readouterr().out
    # Its DICOM headers do tell.
    out = tmp_path / "dicom.csv"
    assert cli.main(["ct-patients", str(made / "dicom"), f"--output={out}"]) == 0
    assert "Warning" not in capsys.readouterr().out
    known = {row["file"]: row["patient"] for row in table(made / "dicom/patients.csv")}
    rows = table(out)
    assert {row["file"]: row["patient"] for row in rows} == known
    assert {row["label"] for row in rows} == {"normal", "abnormal"}
    assert not out.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("ids", "studies", "expected", "warned"),
    [
        ("p1 p1 p2 p3", "1 1 2 3", "p1 p1 p2 p3", False),
        ("ANON ANON ANON ANON", "1 1 2 3", "study_1 study_1 study_2 study_3", True),
        ("p1 p1 0 p3", "1 1 2 3", "p1 p1 study_2 p3", True),
        ("- - - -", "- - - -", "series_7 series_7 series_8 series_9", True),
    ],
)
def test_headers(
    ids: str, studies: str, expected: str, warned: bool, tmp_path: Path
) -> None:
    names = [f"{n}.dcm" for n in range(4)]
    rows = zip(names, ids.split(), studies.split(), "7789", strict=True)
    for name, patient, study, of_series in rows:
        content = pydicom.dcmread(dicom.sample_dicom())
        content.PatientID = patient.strip("-")
        content.StudyInstanceUID = study.strip("-")
        content.SeriesInstanceUID = of_series
        content.save_as(tmp_path / name)
    guess = ct_patients.of_headers(tmp_path, names)
    assert guess.patient == [word.replace("_", " ") for word in expected.split()]
    assert (len(guess.words) > 1) == warned and guess.images is None


def test_a_folder_of_patients_is_no_class(tmp_path: Path) -> None:
    for patient in "ab":
        (tmp_path / patient).mkdir()
        for number, values in enumerate(series(ord(patient), 3)):
            Image.fromarray(values).save(tmp_path / patient / f"{number}.png")
    out = tmp_path / "patients.csv"
    assert cli.main(["ct-patients", str(tmp_path), f"--output={out}"]) == 0
    assert list(table(out)[0]) == ["file", "patient"]


def test_nor_is_a_fold_or_a_site(tmp_path: Path) -> None:
    for number, top in enumerate(("fold1", "fold2")):
        for place, label in enumerate(("normal", "ill")):
            folder = tmp_path / "in" / top / label
            folder.mkdir(parents=True)
            for n, values in enumerate(series(2 * number + place, 3)):
                Image.fromarray(values).save(folder / f"{n}.png")
    out = tmp_path / "patients.csv"
    assert cli.main(["ct-patients", str(tmp_path / "in"), f"--output={out}"]) == 0
    assert list(table(out)[0]) == ["file", "patient"]


def test_folders_of_series_are_no_classes() -> None:
    """Two kernels of a patient and a scan of another, each in a folder."""
    names, patients = ["a_sharp/0", "a_smooth/0", "b/0", "b/1"], ["a", "a", "b", "b"]
    rows = list(ct_patients._rows(ct_patients.Guess(names, patients, [])))
    assert rows[0] == ["file", "patient"]
    assert rows[1] == ["a_sharp/0", "a"]


def test_bad_files_and_equal_ones(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "patients.csv"
    images.mkdir()
    first, other = sorted(pictures.rglob("p0*"))[0], sorted(pictures.rglob("p1*"))[0]
    shutil.copy(first, images / "a.png")
    shutil.copy(first, images / "b.png")
    shutil.copy(other, images / "c.png")
    (images / "d.png").write_bytes(b"no picture")
    words = ["ct-patients", str(images), f"--output={out}"]
    assert cli.main(words) == 1
    assert "--skip-bad" in capsys.readouterr().err and not out.exists()
    assert cli.main([*words, "--skip-bad"]) == 0
    assert "left out: d.png" in capsys.readouterr().out
    assert groups_of(table(out)) == {
        frozenset({"a.png", "b.png"}),
        frozenset({"c.png"}),
    }
