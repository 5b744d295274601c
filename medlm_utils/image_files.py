"""Picture and DICOM files to rectangles of one size and kind.

Knows nothing about patients and labels. A rectangle holds Hounsfield units (HU) if it
comes from a DICOM file, and grey levels 0 to 255 if it comes from a PNG or JPEG file,
which have lost their HU.

Axes: `slices height width`.

Source: chapter 5.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from medlm_utils.dicom import read_dicom
from medlm_utils.runtime import MedlmError

PICTURES = (".png", ".jpg", ".jpeg")
DICOM = (".dcm", ".dicom")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files become rectangles.

    Parameters
    ----------
    size
        Padded to a square, with air or black, then brought to so many pixels in height
        and width. None: images stay as they are, and have to be of one size.
    spacing_mm
        Of DICOM files: brought to so many mm a pixel, then cut or padded to `size`.
    grey
        True: pictures of different modes are all brought to grey of 8 bits.
    skip_bad
        True: files that cannot be read are left out and listed.
    png_offset
        Pictures of 16 bits hold HU + this, such as 32768 or 1024, and are read in HU.
        None: they are grey levels.
    """

    size: int | None = None
    spacing_mm: float | None = None
    grey: bool = False
    skip_bad: bool = False
    png_offset: float | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size and kind.

    Parameters
    ----------
    values
        (slices, height, width), int16 in HU, or uint8 in grey levels.
    names
        (slices,) of their files.
    skipped
        Files that were left out, each with the reason.
    header_patients
        (slices,) PatientID of each DICOM file; empty for pictures, or if it has none.
    digests
        (slices,) of the pixels as decoded: equal pictures have equal ones.
    warnings
        What makes results less than they seem.
    """

    values: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    header_patients: tuple[str, ...]
    digests: tuple[str, ...]
    warnings: tuple[str, ...]


def find(folder: str | Path) -> list[Path]:
    """All pictures and DICOM files in a folder and those within it, sorted.

    Raises
    ------
    MedlmError
        If there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedlmError(f"There is no folder {folder}; expected one with images.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and _is_image(path) and not path.name.startswith(".")
    )
    if not found:
        raise MedlmError(
            f"There are no images in {folder}; expected files that end in "
            f"{', '.join((*PICTURES, *DICOM))}."
        )
    return found


def _is_image(path: Path) -> bool:
    """By its name; many scanners give DICOM files none that says so."""
    if path.suffix.lower() in (*PICTURES, *DICOM):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_picture(name: str | Path) -> bool:
    """Whether a file is a PNG or JPEG, by its name."""
    return Path(name).suffix.lower() in PICTURES


def read(folder: str | Path, names: Sequence[str], reading: Reading) -> Images:
    """Images as one array.

    Parameters
    ----------
    folder
        Where they lie.
    names
        Of files in the folder.
    reading
        How files become rectangles.

    Raises
    ------
    MedlmError
        If the size is too small, a file cannot be read, or sizes, modes or kinds
        differ.
    """
    size = reading.size
    if size is not None and size < 8:
        raise MedlmError(f"The size is {size} pixels; expected at least 8.")
    pictures = [name for name in names if is_picture(name)]
    if pictures and len(pictures) < len(names):
        other = next(name for name in names if not is_picture(name))
        raise MedlmError(
            f"{folder} holds pictures ({pictures[0]}) and DICOM files ({other}); "
            "expected one kind: only DICOM files have Hounsfield units."
        )
    read, images, modes, patients, digests, bad = [], [], [], [], [], []
    for name in names:
        try:
            image, mode, patient = _read_one(Path(folder) / name)
        except MedlmError as error:
            bad.append((name, str(error)))
            continue
        read.append(name)
        modes.append(mode)
        patients.append(patient)
        digests.append(hashlib.sha256(image.tobytes()).hexdigest())
        images.append(image if size is None else _resized(image, size))
    _check_bad(bad, len(names), reading.skip_bad, folder)
    if not reading.grey:
        _check_alike("mode", modes, read, "grey=True (--grey) brings all to grey")
    shapes = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
    advice = "size=128 (--size 128), or another size, brings all to one"
    _check_alike("size", shapes, read, advice)
    return Images(
        values=np.stack(images),
        names=tuple(read),
        skipped=tuple(bad),
        header_patients=tuple(patients),
        digests=tuple(digests),
        warnings=(),
    )


def _read_one(path: Path) -> tuple[np.ndarray, str, str]:
    """(height, width), int16 in HU or uint8; its mode; and its patient."""
    if not is_picture(path):
        found = read_dicom(path)
        hu = np.clip(np.round(found.hu), -32768, 32767).astype(np.int16)
        return hu, "HU", found.patient
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            mode = picture.mode
            if mode.startswith("I"):  # 16 bits; Pillow would cut them off
                values = np.asarray(picture, float) / 257
                return np.clip(np.round(values), 0, 255).astype(np.uint8), mode, ""
            return np.asarray(picture.convert("L")), mode, ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MedlmError(
            f"{path} cannot be read as a picture: it is damaged, cut short or of "
            "another kind. Expected a PNG or JPEG file; copy it again."
        ) from error


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size), each pixel a mean of those that it covers, the type kept."""
    if image.shape == (size, size):
        return image
    given = torch.from_numpy(image.astype(np.float32))[None, None]
    small = F.interpolate(
        given, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0, 0].round().numpy().astype(image.dtype)


def _check_bad(
    bad: list[tuple[str, str]], count: int, skip_bad: bool, folder: str | Path
) -> None:
    if len(bad) == count:
        raise MedlmError(f"None of the {count} images can be read. {bad[0][1]}")
    if bad and not skip_bad:
        more = f" {len(bad) - 1} more cannot be read either." if len(bad) > 1 else ""
        raise MedlmError(
            f"{bad[0][1]}{more} Of {count} images in {folder}; skip_bad=True "
            "(--skip-bad) leaves such files out and lists them."
        )


def _check_alike(
    what: str, values: Sequence[str], names: Sequence[str], advice: str
) -> None:
    """Refuse images that differ: that alone may tell the class."""
    counted = collections.Counter(values).most_common()
    if len(counted) < 2:
        return
    found = ", ".join(f"{count} with {value}" for value, count in counted[:4])
    rare = counted[-1][0]
    raise MedlmError(
        f"The images differ in {what}: {found}, such as {names[values.index(rare)]}. "
        f"Expected one {what}, since a model can tell classes by it alone; {advice}."
    )
