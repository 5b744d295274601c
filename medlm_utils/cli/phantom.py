"""The command `medlm phantom write FOLDER`: slices of simulated patients as files."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medlm_utils import metrics, phantom
from medlm_utils.runtime import SEED, MedlmError, own_version

if TYPE_CHECKING:
    from pydicom.uid import UID

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

ABOUT = "phantom.json"  # how the files were made
TABLE = "patients.csv"
CLASSES = ("normal", "abnormal")  # of the patient, so of all its slices
FORMATS = ("png", "dicom")
LOWEST_HU = -1024  # is stored as 0: twelve bits hold what the scanner can tell


def add_commands(groups: Groups) -> None:
    """Add the group ``phantom`` to the parser."""
    text = "the simulated scanner: chest CT whose best possible reading is known"
    group = groups.add_parser("phantom", help=text, description=text)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "scan simulated patients: normal/ and abnormal/, with a table of patients"
    command = commands.add_parser("write", help=text, description=text)
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, help="new, or an empty one"
    )
    command.add_argument(
        "--patients", metavar="N", type=int, default=100, help="default: %(default)s"
    )
    command.add_argument(
        "--seed", metavar="S", type=int, default=SEED, help="default: %(default)s"
    )
    hospitals = ", ".join(phantom.HOSPITALS)
    command.add_argument(
        "--hospital", metavar="H", default="A", help=f"{hospitals}; default: A"
    )
    command.add_argument(
        "--format",
        choices=("dicom", "png", "both"),
        default="both",
        help="both (default) makes the folders dicom and png in FOLDER",
    )
    command.set_defaults(run=run_write)


def run_write(chosen: argparse.Namespace) -> int:
    """Scan, write all files or none, and say what was written."""
    formats = FORMATS if chosen.format == "both" else (chosen.format,)
    with _new_folder(chosen.folder) as beside:
        cohort = phantom.draw(chosen.patients, chosen.seed, chosen.hospital)
        for name in formats:
            place = beside / name if chosen.format == "both" else beside
            _write_images(place, cohort, name, chosen.seed)
        about = {
            "what": "SIMULATED chest CT: no patient, not for clinical use",
            "hospital": chosen.hospital,
            "patients": chosen.patients,
            "seed": chosen.seed,
            "format": chosen.format,
            "version_of_the_scanner": phantom.VERSION,
            "medlm": own_version(),
        }
        page = json.dumps(about, indent=1) + "\n"
        (beside / ABOUT).write_text(page, encoding="utf-8")
    _report(chosen.folder, cohort, formats, chosen.format == "both")
    return 0


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name when all has gone well."""
    beside = None
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MedlmError(
                f"{folder} is there already, and not empty. Name a new folder, or "
                "delete this one yourself."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        home = folder.resolve()
        beside = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
        beside.chmod(0o777 & ~_umask())
        yield beside
        if home.is_dir():
            home.rmdir()  # empty, or this fails
        os.rename(beside, home)
    except OSError as error:
        raise MedlmError(
            f"Cannot write {folder}: {error.strerror or error}. Expected a place with "
            "free space that you may write; name another."
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _umask() -> int:
    """What is withheld from new files; asking means setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_images(folder: Path, cohort: phantom.Cohort, kind: str, seed: int) -> None:
    """One file a slice, in the folder of its class, and the table of patients."""
    write: Callable[[Path, phantom.Cohort, int, int, int], None]
    write, ending = {"png": (_png, "png"), "dicom": (_dicom, "dcm")}[kind]
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    rows = []
    for row, number in enumerate(_numbers(cohort.patient)):
        name = CLASSES[cohort.label[row]]
        file = f"{name}/{cohort.patient[row]}_{number}.{ending}"
        write(folder / file, cohort, row, number, seed)
        rows.append((file, cohort.patient[row], cohort.label[row], cohort.scanner[row]))
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as page:
        writer = csv.writer(page, lineterminator="\n")
        writer.writerow(("file", "patient", "label", "scanner"))
        writer.writerows(rows)


def _numbers(patients: np.ndarray) -> Iterator[int]:
    """1, 2, 3 for the slices of each patient, which stand together."""
    before, number = None, 0
    for patient in patients:
        number = number + 1 if patient == before else 1
        before = patient
        yield number


def _png(path: Path, cohort: phantom.Cohort, row: int, number: int, seed: int) -> None:
    """The slice through the lung window, grey of 8 bits: its HU are lost."""
    from medlm_utils import ct

    grey = np.rint(ct.window(cohort.images[row]) * ct.GREY_LEVELS).astype(np.uint8)
    Image.fromarray(grey).save(path)


def _dicom(
    path: Path, cohort: phantom.Cohort, row: int, number: int, seed: int
) -> None:
    """The slice as a DICOM file of the class CT Image Storage, with all its HU."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    patient, scanner = str(cohort.patient[row]), str(cohort.scanner[row])
    image, spacing = cohort.images[row], float(cohort.spacing_mm[row])
    corner = -spacing * (len(image) - 1) / 2
    device = phantom.HOSPITALS[phantom.hospital_of(scanner)].scanners[scanner]
    said = "SIMULATED: no patient, not for clinical use"
    whose = f"{phantom.VERSION} {seed} {scanner} {patient} {image.shape}"

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(f"slice {number} {whose}")
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian

    file = Dataset()
    file.file_meta = meta
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.SpecificCharacterSet = "ISO_IR 100"
    file.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    file.ImageComments = f"{said}. Made by medlm."
    file.DerivationDescription = said
    # Who. What the standard wants and nobody has stays empty.
    file.PatientName = f"SIMULATED^{patient}"
    file.PatientID = patient
    file.PatientComments = said
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
        setattr(file, name, "")
    for name in ("ReferringPhysicianName", "AccessionNumber", "StudyID"):
        setattr(file, name, "")
    file.PatientIdentityRemoved = "YES"
    file.DeidentificationMethod = "There is no person"
    # Which study, series and slice.
    file.StudyInstanceUID = _uid(f"study {whose}")
    file.SeriesInstanceUID = _uid(f"series {whose}")
    file.FrameOfReferenceUID = _uid(f"frame {whose}")
    file.StudyDescription = "SIMULATED chest CT"
    file.SeriesDescription = "SIMULATED chest CT"
    file.Modality = "CT"
    file.BodyPartExamined = "CHEST"
    file.SeriesNumber, file.AcquisitionNumber, file.InstanceNumber = 1, 1, number
    # How it was taken.
    file.Manufacturer = "medlm (simulated)"
    file.ManufacturerModelName = scanner
    file.SoftwareVersions = f"phantom {phantom.VERSION}"
    file.KVP = None
    file.ConvolutionKernel = f"Hann {device.cutoff:g}+{device.boost:g}"
    file.ReconstructionDiameter = device.field_mm
    file.PatientPosition = "HFS"
    file.PositionReferenceIndicator = ""
    # Where it lies: columns run to the patient's left, rows to the back.
    file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    file.ImagePositionPatient = [corner, corner, phantom.SLICE_MM * (1 - number)]
    file.PixelSpacing = [spacing, spacing]
    file.SliceThickness = phantom.THICKNESS_MM
    # The pixels.
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.Rows, file.Columns = image.shape
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation = 0
    file.RescaleIntercept, file.RescaleSlope = LOWEST_HU, 1
    file.RescaleType = "HU"
    file.WindowCenter, file.WindowWidth = -600, 1500
    file.BurnedInAnnotation = "NO"
    file.LossyImageCompression = "00"
    stored = (image.astype(np.int32) - LOWEST_HU).astype("<u2")
    file.PixelData = stored.tobytes()
    file["PixelData"].VR = "OW"
    file.save_as(path, enforce_file_format=True)


def _uid(text: str) -> UID:
    """An identifier that is unique to a text, and the same in every run."""
    from pydicom.uid import UID

    number = uuid.uuid5(uuid.NAMESPACE_OID, f"medlm phantom {text}").int
    return UID(f"2.25.{number}")


def _report(
    folder: Path, cohort: phantom.Cohort, formats: tuple[str, ...], both: bool
) -> None:
    """Print the counts, and the ceiling for these patients."""
    _, label, ratio = phantom.patient_log_ratio(cohort)
    ill = int(label.sum())
    print(f"Wrote into {folder}, all SIMULATED:")
    for name in formats:
        place = f"{name}/" if both else ""
        kind = {"png": "PNG (lung window)", "dicom": "DICOM (HU)"}[name]
        print(f"  {place}normal, {place}abnormal: {len(cohort):,} slices, {kind}")
        print(f"  {place}{TABLE}: file, patient, label, scanner")
    print(f"  {ABOUT}: how they were made")
    print(f"Patients: {len(label):,}, of whom {ill:,} abnormal.")
    if 0 < ill < len(label):
        best: Any = metrics.auroc(label, ratio)
        print(f"The best possible reader of these patients has AUROC {best:.3f}.")
