"""`medlm phantom write`: valid DICOM files, pictures, a table; nothing by halves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medlm_utils import dicom, image_folder, phantom
from medlm_utils.cli import main as cli
from medlm_utils.cli import phantom as cli_phantom

PATIENTS = 5

# What the standard asks of a CT image: type 1 must have a value, type 2 may be empty.
TYPE_1 = """SOPClassUID SOPInstanceUID ImageType StudyInstanceUID SeriesInstanceUID
Modality FrameOfReferenceUID PixelSpacing ImageOrientationPatient ImagePositionPatient
SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit
PixelRepresentation RescaleIntercept RescaleSlope PixelData""".split()  # noqa: SIM905
TYPE_2 = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime
ReferringPhysicianName StudyID AccessionNumber SeriesNumber Manufacturer KVP
PositionReferenceIndicator InstanceNumber AcquisitionNumber SliceThickness
PatientPosition""".split()  # noqa: SIM905


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """No test touches the reader's cache; all scan the same few patients once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def write(folder: Path, *options: str) -> int:
    return cli.main(
        ["phantom", "write", str(folder), "--patients", str(PATIENTS), *options]
    )


@pytest.fixture(scope="module")
def cohort(own_cache):
    return phantom.draw(PATIENTS, 2017)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("home") / "scans"
    with pytest.MonkeyPatch.context() as patch:
        # A value that the standard forbids is an error.
        mode = pydicom.config.RAISE
        patch.setattr(pydicom.config.settings, "writing_validation_mode", mode)
        assert write(folder) == 0
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "patients.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("kind", "ending"), [("png", ".png"), ("dicom", ".dcm")])
def test_the_table_names_every_file_and_its_patient(folder, cohort, kind, ending):
    rows = table(folder / kind)
    assert {row["file"] for row in rows} | {"patients.csv"} == files_in(folder / kind)
    assert [row["patient"] for row in rows] == list(cohort.patient)
    assert [int(row["label"]) for row in rows] == list(cohort.label)
    assert [row["scanner"] for row in rows] == list(cohort.scanner)
    for row in rows:
        assert row["file"].endswith(ending)
        assert row["file"].split("/")[0] == ("normal", "abnormal")[int(row["label"])]


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_the_course_reads_what_it_wrote(folder, cohort, kind):
    read = image_folder.read_folder(folder / kind, folder / kind / "patients.csv")
    assert read.classes == ("normal", "abnormal")
    assert len(read.files) == len(cohort)
    assert set(read.patient) == set(cohort.patient)


def test_dicom_files_hold_the_hu(folder, cohort):
    for row, entry in enumerate(table(folder / "dicom")):
        one = dicom.read_dicom(folder / "dicom" / entry["file"])
        assert np.array_equal(one.hu, cohort.images[row])
        assert one.patient == cohort.patient[row]
        assert one.spacing_mm == pytest.approx((cohort.spacing_mm[row],) * 2)
        assert one.thickness_mm == phantom.THICKNESS_MM


def test_dicom_files_have_what_the_standard_asks_of_a_ct(folder):
    for path in (folder / "dicom").rglob("*.dcm"):
        content = pydicom.dcmread(path)  # refuses a file without preamble and header
        for name in TYPE_1:
            assert content.get(name) not in (None, ""), name
        for name in TYPE_2:
            assert name in content, name
        assert content.SOPClassUID == pydicom.uid.CTImageStorage
        assert content.file_meta.MediaStorageSOPInstanceUID == content.SOPInstanceUID
        assert content.BitsStored <= content.BitsAllocated
        assert content.pixel_array.max() < 2**content.BitsStored
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            assert content[name].value.is_valid


def test_the_header_says_that_it_is_simulated(folder):
    for path in (folder / "dicom").rglob("*.dcm"):
        content = pydicom.dcmread(path, stop_before_pixels=True)
        assert content.ImageType[0] == "DERIVED"
        for name in ("PatientName", "SeriesDescription", "ImageComments"):
            assert "SIMULATED" in str(content[name].value)


def test_slices_of_a_patient_are_one_series_in_order(folder):
    series: dict[str, list[pydicom.Dataset]] = {}
    for path in (folder / "dicom").rglob("*.dcm"):
        content = pydicom.dcmread(path, stop_before_pixels=True)
        series.setdefault(content.SeriesInstanceUID, []).append(content)
    assert len(series) == PATIENTS
    every = [c.SOPInstanceUID for some in series.values() for c in some]
    assert len(set(every)) == len(every)
    for some in series.values():
        assert len({c.PatientID for c in some}) == 1
        assert len({c.StudyInstanceUID for c in some}) == 1
        some.sort(key=lambda c: c.InstanceNumber)
        assert [c.InstanceNumber for c in some] == [1, 2, 3]
        # Later slices lie nearer to the feet; z points to the head.
        z = [float(c.ImagePositionPatient[2]) for c in some]
        assert np.diff(z) == pytest.approx(-phantom.SLICE_MM)


def test_pictures_are_the_lung_window_in_grey(folder, cohort):
    for row, entry in enumerate(table(folder / "png")):
        with Image.open(folder / "png" / entry["file"]) as picture:
            assert picture.mode == "L"
            grey = np.asarray(picture)
        low, width = -1350, 1500
        exact = np.clip((cohort.images[row] - low) / width, 0, 1) * 255
        assert np.abs(grey - exact).max() <= 0.51


def test_a_seed_writes_the_same_bytes(folder, tmp_path):
    assert write(tmp_path / "again") == 0
    assert files_in(tmp_path / "again") == files_in(folder)
    for name in files_in(folder):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(("chosen", "ending"), [("png", ".png"), ("dicom", ".dcm")])
def test_one_format_lies_in_the_folder_itself(tmp_path, chosen, ending):
    assert write(tmp_path / "one", "--format", chosen) == 0
    inside = files_in(tmp_path / "one")
    assert {"patients.csv", "phantom.json"} < inside
    images = inside - {"patients.csv", "phantom.json"}
    assert {Path(name).suffix for name in images} == {ending}
    assert {name.split("/")[0] for name in images} <= {"normal", "abnormal"}


def test_it_says_what_was_written_and_the_ceiling(tmp_path, capsys):
    assert write(tmp_path / "one", "--hospital", "B", "--seed", "3") == 0
    said = capsys.readouterr().out
    _, label, _ = phantom.patient_log_ratio(phantom.draw(PATIENTS, 3, "B"))
    assert "SIMULATED" in said
    assert f"Patients: {PATIENTS}, of whom {label.sum()} abnormal." in said
    assert ("AUROC" in said) == (0 < label.sum() < PATIENTS)
    about = json.loads((tmp_path / "one" / "phantom.json").read_text(encoding="utf-8"))
    assert about["hospital"] == "B" and about["seed"] == 3
    assert about["patients"] == PATIENTS


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert write(tmp_path) == 1
    assert "not empty. Name a new folder" in capsys.readouterr().err
    assert files_in(tmp_path) == {"mine.txt"}


def test_a_file_in_the_way_is_left_alone(tmp_path, capsys):
    (tmp_path / "scans").write_text("mine")
    assert write(tmp_path / "scans") == 1
    assert capsys.readouterr().err.startswith("medlm: ")
    assert (tmp_path / "scans").read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_deep_one_is_made(tmp_path):
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", "--format", "png") == 0
    assert (tmp_path / "empty" / "patients.csv").is_file()
    assert write(tmp_path / "a" / "b" / "c", "--format", "png") == 0
    assert (tmp_path / "a" / "b" / "c" / "patients.csv").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_nothing_is_left_by_halves(tmp_path, monkeypatch, capsys, error):
    real, count = cli_phantom._png, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise error
        real(*arguments)

    monkeypatch.setattr(cli_phantom, "_png", failing)
    status = write(tmp_path / "scans", "--format", "png")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert count == 4
    assert capsys.readouterr().err.startswith("medlm: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hospital", "C"), "expected A, B, source"),
        (("--seed", "-1"), "seed is -1"),
        (("--patients", "0"), "patients is 0"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, capsys, options, words):
    assert write(tmp_path / "scans", *options) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [("--format", "jpeg"), ("--patients", "many")])
def test_wrong_usage_leaves_with_2(tmp_path, wrong):
    with pytest.raises(SystemExit) as left:
        write(tmp_path / "scans", *wrong)
    assert left.value.code == 2
