"""One CT slice of a DICOM file, in Hounsfield units (HU).

Knows nothing about windows, folders and networks.

Axes: `height width`.

Source: chapter 5.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils.runtime import MedlmError

AIR_HU = -1000.0  # what lies outside of a scanner's field of view gets this value


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a CT, read from a DICOM file.

    Parameters
    ----------
    hu
        (height, width), float32, in Hounsfield units; padding has the value of air.
    patient, series
        As the file names them; empty if it does not.
    spacing_mm
        From row to row and from column to column; None if the file does not say.
    thickness_mm
        None if the file does not say.
    padding
        (height, width), True outside of the scanner's field of view.
    shown_inverted
        True for MONOCHROME1: the file asks to be shown with air in white. That concerns
        the screen alone; the Hounsfield units are the same.
    scanner, kernel
        Maker and model, and the reconstruction kernel; empty if not given.

    Source: chapter 5.
    """

    hu: np.ndarray
    patient: str
    series: str
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    padding: np.ndarray
    shown_inverted: bool
    scanner: str
    kernel: str


def sample_dicom() -> Path:
    """A real CT slice of 128 x 128 that comes with pydicom: nothing to download."""
    from pydicom.data import get_testdata_file

    found = get_testdata_file("CT_small.dcm", download=False)
    if found is None:
        raise MedlmError(
            "pydicom came without its file CT_small.dcm; install pydicom again."
        )
    return Path(str(found))


def read_dicom(path: str | Path) -> Slice:
    """A CT slice in Hounsfield units.

    HU = stored value * RescaleSlope + RescaleIntercept.

    Parameters
    ----------
    path
        Of a DICOM file with one slice.

    Raises
    ------
    MedlmError
        If there is no such file, it is no DICOM file, is damaged or cut short, is no CT
        of one grey slice, or has no pixels or no rescale slope and intercept.

    Source: DICOM PS3.3, C.7.6.3 and C.11.1; chapter 5.
    """
    path = Path(path)
    content = _dicom(path)
    _check_is_ct_slice(path, content)
    slope, intercept = (
        content.get(name) for name in ("RescaleSlope", "RescaleIntercept")
    )
    if slope is None or intercept is None:
        raise MedlmError(
            f"{path} has no RescaleSlope or no RescaleIntercept; expected both. "
            "Without them its stored values cannot be turned into Hounsfield units."
        )
    stored = _stored(path, content)
    padding = _is_padding(stored, content)
    hu = stored.astype(np.float32) * float(slope) + float(intercept)
    hu[padding] = AIR_HU
    spacing = content.get("PixelSpacing")
    thickness = content.get("SliceThickness")
    maker = (content.get("Manufacturer"), content.get("ManufacturerModelName"))
    return Slice(
        hu=hu.astype(np.float32),
        patient=str(content.get("PatientID") or ""),
        series=str(content.get("SeriesInstanceUID") or ""),
        spacing_mm=(float(spacing[0]), float(spacing[1])) if spacing else None,
        thickness_mm=float(thickness) if thickness else None,
        padding=padding,
        shown_inverted=content.get("PhotometricInterpretation") == "MONOCHROME1",
        scanner=" ".join(str(part) for part in maker if part),
        kernel=str(content.get("ConvolutionKernel") or ""),
    )


def _dicom(path: Path) -> Any:
    """The content of a DICOM file, its pixels not yet decoded."""
    import pydicom

    if not path.is_file():
        raise MedlmError(f"There is no file {path}; expected a DICOM file.")
    try:
        return pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError, ValueError) as error:
        raise MedlmError(
            f"{path} cannot be read as a DICOM file: it is damaged, cut short or of "
            "another kind. Expected a CT slice; copy the file again."
        ) from error


def _check_is_ct_slice(path: Path, content: Any) -> None:
    if content.get("Modality", "CT") != "CT":
        raise MedlmError(
            f"{path} has the modality {content.Modality}; expected CT. Only there are "
            "pixels Hounsfield units."
        )
    if not any(name in content for name in ("PixelData", "FloatPixelData")):
        raise MedlmError(
            f"{path} has no pixel data; expected a CT slice. Structured reports, plans "
            "and index files of a CT (such as DICOMDIR) hold no image: leave them out."
        )
    frames = int(content.get("NumberOfFrames") or 1)
    samples = int(content.get("SamplesPerPixel") or 1)
    if frames != 1 or samples != 1:
        raise MedlmError(
            f"{path} has {frames} frames of {samples} colours; expected one grey slice."
        )


def _stored(path: Path, content: Any) -> np.ndarray:
    """The numbers in the file, (height, width)."""
    try:
        return np.asarray(content.pixel_array)
    except Exception as error:  # pydicom's decoders raise what they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MedlmError(
            f"The pixels of {path} cannot be decoded: {reason} The file is damaged or "
            "cut short, or compressed in a way that needs another package."
        ) from error


def _is_padding(stored: np.ndarray, content: Any) -> np.ndarray:
    """True where the file says that there is no image, (height, width)."""
    one = content.get("PixelPaddingValue")
    if one is None:
        return np.zeros(stored.shape, bool)
    other = content.get("PixelPaddingRangeLimit")
    ends = [int(one), int(one if other is None else other)]
    return (stored >= min(ends)) & (stored <= max(ends))
