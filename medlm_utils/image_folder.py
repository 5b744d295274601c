"""A folder of images with the table of its patients: classes, splits, what leaks.

Knows nothing about networks.

Axes: `slices height width`.

Source: chapter 5.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils import image_files
from medlm_utils.ct import LUNG, Window, some
from medlm_utils.runtime import MedlmError


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a folder, all of one size and kind, and whose they are.

    Parameters
    ----------
    images
        (slices, height, width): int16 in HU from DICOM files, uint8 from pictures.
    files
        (slices,) names within the folder, with ``/``.
    classes
        Names; the class that means "nothing found", if one has such a name, is first.
    label
        (slices,) numbers of classes.
    patient
        (slices,) as the table says.
    split
        (slices,) as the table says; None if it has no such column.
    skipped
        Files that could not be read, and why.

    Source: chapter 5.
    """

    images: np.ndarray
    files: tuple[str, ...]
    classes: tuple[str, ...]
    label: np.ndarray
    patient: np.ndarray
    split: np.ndarray | None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def window(self) -> Window | None:
        """For `to_tensor`: the lung window for HU, None for pictures."""
        return LUNG if self.images.dtype == np.int16 else None


def read_folder(
    folder: str | Path,
    patients: str | Path | None,
    size: int | None = None,
    grey: bool = False,
    skip_bad: bool = False,
) -> Folder:
    """A folder of pictures or DICOM files, with the table of its patients.

    Parameters
    ----------
    folder
        Each class in a folder of its own, such as ``normal/`` and ``abnormal/``; or any
        folder, and the table says the labels.
    patients
        A CSV file with the columns ``file`` (its name within the folder) and
        ``patient``, perhaps ``label`` and ``split``. Other columns do not matter.
    size
        All images are brought to so many pixels in height and width. By default they
        stay as they are, and have to be of one size.
    grey
        True: pictures of different modes are all brought to grey of 8 bits.
    skip_bad
        True: files that cannot be read are left out and listed.

    Raises
    ------
    MedlmError
        If there is no table, or it does not fit the files; a file is damaged or cut
        short; sizes, modes or kinds differ; there is one class; or a patient is in two
        splits.

    Source: chapter 5.
    """
    folder = Path(folder)
    rows = read_table(patients)
    names = [path.relative_to(folder).as_posix() for path in image_files.find(folder)]
    check_table(names, rows, folder, Path(str(patients)))
    reading = image_files.Reading(size=size, grey=grey, skip_bad=skip_bad)
    images = image_files.read(folder, names, reading)
    read = images.names
    of_file = [rows[name] for name in read]
    labels = _labels(read, of_file, Path(str(patients)))
    patient = np.array([row["patient"] for row in of_file])
    split = np.array([row.get("split", "") for row in of_file])
    _check_splits(patient, split, Path(str(patients)))
    classes = ordered_classes(labels)
    if len(classes) < 2:
        raise MedlmError(
            f"All {len(labels)} images in {folder} are of the class {classes[0]!r}; "
            "expected at least two classes, each in a folder of its own or named in "
            "the column label of the table."
        )
    label = np.array([classes.index(name) for name in labels])
    has_splits = bool((split != "").any())
    return Folder(
        images.values,
        read,
        classes,
        label,
        patient,
        split if has_splits else None,
        images.skipped,
    )


def read_table(path: str | Path | None) -> dict[str, dict[str, str]]:
    """The rows of a table of patients, by file.

    Parameters
    ----------
    path
        A CSV file with the columns ``file`` and ``patient``, perhaps others.

    Raises
    ------
    MedlmError
        If there is no such file, it lacks a column, or a row has no file or patient.
    """
    if path is None or not Path(path).is_file():
        missing = "There is no table of patients" if path is None else f"No file {path}"
        raise MedlmError(
            f"{missing}; expected a CSV file with the columns file and patient. "
            "Without it slices of one patient would come into training and test, and "
            "the result would be too good."
        )
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedlmError(
            f"{path} cannot be read; expected a CSV file in UTF-8. Save it as one."
        ) from error
    for name in ("file", "patient"):
        if name not in columns:
            raise MedlmError(
                f"{path} has no column {name!r}; it has "
                f"{', '.join(columns) or 'none'}. Expected the columns file and "
                "patient, separated by commas."
            )
    by_file: dict[str, dict[str, str]] = {}
    for row in rows:
        clean = {n: (v or "").strip() for n, v in row.items() if isinstance(n, str)}
        name = clean["file"].replace("\\", "/").removeprefix("./")
        if not name or not clean["patient"]:
            raise MedlmError(
                f"{path} has a row without a {'file' if not name else 'patient'}: "
                f"{', '.join(clean.values())}. Expected both in every row."
            )
        if name in by_file:
            raise MedlmError(f"{path} names {name} twice; expected one row a file.")
        by_file[name] = clean
    return by_file


def check_table(
    names: Sequence[str], rows: dict[str, Any], folder: Path, table: Path
) -> None:
    """Refuse a table that does not name just the files of a folder.

    Parameters
    ----------
    names
        Of the images in the folder.
    rows
        As `read_table` gives them.
    folder, table
        For the words of the error.

    Raises
    ------
    MedlmError
        If an image is not in the table, or the other way round.
    """
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise MedlmError(
            f"{len(unknown)} of {len(names)} images in {folder} are not in {table}: "
            f"{some(unknown)}. Expected the patient of every image, its file named as "
            "in the folder, such as normal/p1_0.png."
        )
    missing = sorted(set(rows) - set(names))
    if missing:
        raise MedlmError(
            f"{len(missing)} files of {table} are not in {folder}, or are no images: "
            f"{some(missing)}. Expected all of them; copy them, or take the rows out."
        )


def _labels(
    names: Sequence[str], rows: Sequence[dict[str, str]], table: Path
) -> list[str]:
    """The class of each file: of its folder, or of the table."""
    folders = [name.split("/")[0] if "/" in name else "" for name in names]
    if not any("label" in row for row in rows):
        loose = [name for name, top in zip(names, folders, strict=True) if not top]
        if loose:
            raise MedlmError(
                f"{len(loose)} images have no class: {some(loose)}. Expected each "
                f"class in a folder of its own, or a column label in {table}."
            )
        return folders
    labels = [row["label"] for row in rows]
    nameless = [n for n, label in zip(names, labels, strict=True) if not label]
    if nameless:
        raise MedlmError(
            f"{len(nameless)} rows of {table} have no label: {some(nameless)}. "
            "Expected one in every row, or no column label."
        )
    pairs = sorted(set(zip(folders, labels, strict=True)))
    if len(pairs) == len(set(folders)) == len(set(labels)):
        return folders  # both say the same; the folder says it in words
    if len(set(folders)) == len(set(labels)) and len(set(folders)) > 1:
        raise MedlmError(
            f"The column label of {table} and the folders do not agree: "
            f"{some([f'{label} in {top}/' for top, label in pairs], 6)}. Expected one "
            "label a folder, or labels without such folders."
        )
    return labels


# Names of classes that mean: nothing found.
_NOTHING = ("normal", "negative", "healthy", "control", "benign", "no", "none", "0")


def ordered_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of labels, what means "nothing found" first, else sorted."""

    def place(name: str) -> tuple[bool, float, str]:
        number = float(name) if name.isdigit() else math.inf
        return name.lower() not in _NOTHING, number, name

    return tuple(sorted(set(labels), key=place))


def _check_splits(patient: np.ndarray, split: np.ndarray, table: Path) -> None:
    """No patient in two splits, as far as the table names any."""
    nameless = split == ""
    if nameless.all():
        return
    if nameless.any():
        raise MedlmError(
            f"{nameless.sum()} of {len(split)} rows of {table} have no split; expected "
            "one in every row, or no column split."
        )
    of_patient: dict[str, str] = {}
    for name, part in zip(patient.tolist(), split.tolist(), strict=True):
        if of_patient.setdefault(name, part) != part:
            raise MedlmError(
                f"The patient {name} is in two splits of {table}, {of_patient[name]} "
                f"and {part}; expected each patient in one. Slices of one patient look "
                "alike, so the test would be no test."
            )
