"""One CT slice of a DICOM file, in Hounsfield units (HU).

Knows nothing about windows, folders and networks.

Axes: `height width`.

Source: chapter 5.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medlm_utils.runtime import MedlmError

AIR_HU = -1000.0  # what lies outside of a scanner's field of view gets this value
LOWEST_HU = -1024.0  # the floor of 12 bits: nothing is thinner than air
MOST_PIXELS = 2**26  # 8192 x 8192, far above any scanner: a larger image is a trap

# Words of ImageType whose pixels are no slice in HU: views that plan a scan, maps of
# blood flow and of materials, and pictures of a screen.
_NO_SLICE = frozenset(
    {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCREEN SAVE", "DOSE_INFO"}
    | {"CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "EFF_ATOMIC_NUM"}
    | {"ELECTRON_DENSITY", "MAT_FRACTIONAL", "MAT_SPECIFIC", "MAT_VALUE_BASED"}
)
# What was computed from slices instead of measured.
_REFORMATTED = re.compile(r"MPR|REFORMAT|PROJECTION|^(MIP|MINIP|AVERAGE|VOLUME)$")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DICOMDIR = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![.\d])")
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d+)?|[.,]\d+)(e[-+]?\d+)?", re.IGNORECASE)
_PLANES = ("sagittal", "coronal", "axial")  # across x, y and z of the patient


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a CT, read from a DICOM file.

    Parameters
    ----------
    hu
        (height, width), float32, in Hounsfield units; padding has the value of air, and
        nothing is below -1024.
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
    plane
        axial, coronal or sagittal, whichever is nearest; empty if not given.
    derived
        What says that the slice was not measured but made of others, such as MPR;
        empty if nothing does.

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
    plane: str
    derived: str


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
        Of a DICOM file with one slice; it need not have the preamble of one.

    Raises
    ------
    MedlmError
        If there is no such file, it is no DICOM file, is damaged or cut short, is no CT
        of one grey slice, cannot be decoded, has no usable rescale slope and intercept,
        or has values that are no HU of a body.

    Source: DICOM PS3.3, C.7.6.3, C.8.2.1 and C.11.1; chapter 5.
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about tags that are not used here
        try:
            return _slice(path, _dicom(path))
        except MedlmError:
            raise
        except Exception as error:  # pydicom decodes late, and raises what it likes
            raise _damaged(path) from error


def _slice(path: Path, content: Any) -> Slice:
    _check_is_ct_slice(path, content)
    slope, intercept = _rescale(path, content)
    stored = _stored(path, content)
    measured = stored.astype(np.float32) * slope + intercept
    hu, padding = settled(measured, _is_padding(stored, measured, content))
    problem = implausible(measured, padding)
    if problem:
        raise MedlmError(f"{path} {problem}")
    maker = (text(content, "Manufacturer"), text(content, "ManufacturerModelName"))
    return Slice(
        hu=hu,
        patient=text(content, "PatientID"),
        series=text(content, "SeriesInstanceUID"),
        spacing_mm=_spacing(content),
        thickness_mm=number(content, "SliceThickness") or None,
        padding=padding,
        shown_inverted=text(content, "PhotometricInterpretation") == "MONOCHROME1",
        scanner=" ".join(part for part in maker if part),
        kernel=text(content, "ConvolutionKernel"),
        plane=_plane(content),
        derived=_derived(content),
    )


# Files --------------------------------------------------------------------------------


def is_dicom(path: str | Path) -> bool:
    """Whether a file holds a DICOM data set that can be an image, by its first bytes.

    The index of a medium, DICOMDIR, is none. A file that cannot be opened is none.
    """
    head = _head(path)
    if head[128:132] == b"DICM":
        return not _DICOMDIR.search(head)
    return _starts_with_a_tag(head)


def is_index(path: str | Path) -> bool:
    """Whether a file is the index of a medium, DICOMDIR, whatever its name."""
    head = _head(path)
    return head[128:132] == b"DICM" and bool(_DICOMDIR.search(head))


def _head(path: str | Path) -> bytes:
    """The first bytes of a file; none if it cannot be opened."""
    try:
        with Path(path).open("rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _starts_with_a_tag(head: bytes) -> bool:
    """Whether the first bytes are a first tag of a data set: DICOM, no preamble."""
    if len(head) < 16 or head[:2] not in (b"\2\0", b"\x08\0", b"\0\x08"):
        return False
    order: Literal["little", "big"] = "little" if head[0] else "big"
    if int.from_bytes(head[2:4], order) > 0x18:  # UIDs, the type of image
        return False
    if head[4:6].isalpha() and head[4:6].isupper():
        return True  # it names the type of its value
    length = int.from_bytes(head[4:8], order)
    return length % 2 == 0 and length <= 64


def _dicom(path: Path) -> Any:
    """The content of a DICOM file, its pixels not yet decoded."""
    import pydicom

    if not path.is_file():
        raise MedlmError(f"There is no file {path}; expected a DICOM file.")
    try:
        return pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        content = pydicom.dcmread(path, force=True)
        if not any(name in content for name in ("SOPClassUID", "Modality", "Rows")):
            raise _damaged(path) from error
        return content


def _damaged(path: Path) -> MedlmError:
    return MedlmError(
        f"{path} cannot be read as a DICOM file: it is damaged, cut short or of "
        "another kind. Expected a CT slice; copy the file again."
    )


# Tags, of which many are not as the standard has them ---------------------------------


def number(content: Any, name: str) -> float | None:
    """The first number of an optional tag.

    Parameters
    ----------
    content
        A data set of pydicom.
    name
        Of the tag, such as SliceThickness. In enhanced files it is looked up in what
        all frames share, then in what the first frame has.

    Returns
    -------
    float or None
        Finite. "1,25" is 1.25, "120 kV" is 120; None if the tag is missing, empty or
        holds no number.
    """
    found = numbers(content, name)
    return found[0] if found else None


def numbers(content: Any, name: str) -> tuple[float, ...]:
    """All numbers of an optional tag, as in `number`; empty if it holds none."""
    found = (_NUMBER.search(value) for value in _values(content, name))
    values = (float(match[0].replace(",", ".")) for match in found if match)
    return tuple(value for value in values if np.isfinite(value))


def text(content: Any, name: str) -> str:
    """An optional tag as text; empty if it is missing or empty."""
    return "\\".join(_values(content, name))


def _values(content: Any, name: str) -> list[str]:
    """The values of a tag as text, none of them empty."""
    for level in _levels(content):
        if name in level:
            found = [value.strip("\0 ") for value in _as_text(level, name)]
            if any(found):
                return [value for value in found if value]
    return []


def _as_text(level: Any, name: str) -> list[str]:
    """The values of a tag of one data set."""
    from pydicom.multival import MultiValue

    try:
        value = level[name].value
    except Exception:  # not of the tag's type: taken as it was written
        raw = level.get_item(name).value
        return raw.decode("latin-1").split("\\") if isinstance(raw, bytes) else []
    if isinstance(value, MultiValue | list | tuple):
        return [str(one) for one in value]
    return ["" if value is None else str(value)]


def _levels(content: Any) -> Iterator[Any]:
    """The data set, then the groups of tags of an enhanced one: its first frame's."""
    yield content
    for group in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(content.get(group) or ())[:1]:
            for element in item:
                if element.VR == "SQ":
                    yield from list(element.value or ())[:1]


def header_facts(path: str | Path) -> dict[str, float | str | None]:
    """What the header of a DICOM file says about how it was made; never raises.

    Parameters
    ----------
    path
        Of any file.

    Returns
    -------
    dict
        Columns, Rows, PixelSpacing (from row to row), SliceThickness and KVP, each a
        number or None; Manufacturer, ManufacturerModelName and ConvolutionKernel, text.
        Nothing of it names a patient.
    """
    import pydicom

    facts: dict[str, float | str | None] = dict.fromkeys(
        ("Columns", "Rows", "PixelSpacing", "SliceThickness", "KVP")
    )
    facts |= dict.fromkeys(("Manufacturer", "ManufacturerModelName"), "")
    facts["ConvolutionKernel"] = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            for name, empty in facts.items():
                look = text if isinstance(empty, str) else number
                facts[name] = look(content, name)
        except Exception:  # what is damaged says nothing more
            pass
    return facts


def _spacing(content: Any) -> tuple[float, float] | None:
    """From row to row and from column to column; one value is meant for both."""
    found = numbers(content, "PixelSpacing")[:2]
    if not found or min(found) <= 0:
        return None
    return found[0], found[-1]


def _plane(content: Any) -> str:
    """The plane that is nearest; a tilted gantry stays axial."""
    found = numbers(content, "ImageOrientationPatient")
    if len(found) != 6:
        return ""
    across = np.abs(np.cross(found[:3], found[3:]))
    return _PLANES[int(across.argmax())] if across.max() > 0 else ""


def _derived(content: Any) -> str:
    """What says that the slice is made of others; empty if nothing does."""
    kind = [value.upper() for value in _values(content, "ImageType")]
    for value in kind:
        if _REFORMATTED.search(value):
            return value
    if text(content, "SOPClassUID").startswith(_SECONDARY_CAPTURE):
        return "secondary capture"
    return "SECONDARY" if kind[1:2] == ["SECONDARY"] else ""


# What is refused ----------------------------------------------------------------------


def _check_is_ct_slice(path: Path, content: Any) -> None:
    modality = text(content, "Modality") or "CT"
    if modality != "CT":
        raise MedlmError(
            f"{path} has the modality {modality[:16]}; expected CT. Only there are "
            "pixels Hounsfield units."
        )
    if not any(name in content for name in ("PixelData", "FloatPixelData")):
        raise MedlmError(
            f"{path} has no pixel data; expected a CT slice. Structured reports, plans "
            "and index files of a CT (such as DICOMDIR) hold no image: leave them out."
        )
    frames = int(number(content, "NumberOfFrames") or 1)
    samples = int(number(content, "SamplesPerPixel") or 1)
    if frames != 1 or samples != 1:
        advice = "Save each frame by itself" if frames > 1 else "Leave it out"
        raise MedlmError(
            f"{path} has {frames} frames of {samples} colours; expected one grey "
            f"slice. {advice}."
        )
    if text(content, "PhotometricInterpretation").startswith("PALETTE"):
        raise MedlmError(f"{path} has a palette of colours; expected one grey slice.")
    _check_kind(path, content)


def _check_kind(path: Path, content: Any) -> None:
    """Refuse what a CT writes besides slices, and images of other quantities."""
    kind = [value.upper() for value in _values(content, "ImageType")]
    for value in kind:
        if value in _NO_SLICE:
            raise MedlmError(
                f"{path} is of the type {value}; expected a CT slice in Hounsfield "
                "units. Localizers, maps and screen shots are none: leave them out."
            )
    for unit in map(str.upper, _values(content, "RescaleType")):
        # US is "unspecified": GDCM adds it to files that it compresses. GE writes
        # Houndsfield Unit.
        if unit not in ("HU", "US") and "HOUN" not in unit:
            raise MedlmError(
                f"{path} has the RescaleType {unit[:16]}; expected HU, or none. Its "
                "pixels are another quantity than Hounsfield units: leave it out."
            )


def _rescale(path: Path, content: Any) -> tuple[np.float32, np.float32]:
    """Slope and intercept."""
    found = {}
    for name in ("RescaleSlope", "RescaleIntercept"):
        written, values = _values(content, name), numbers(content, name)
        if not written:
            table = "ModalityLUTSequence" in content
            raise MedlmError(
                f"{path} has no RescaleSlope or no RescaleIntercept; expected both. "
                + "It has a table of values instead (ModalityLUTSequence). " * table
                + "Without them its stored values cannot be turned into Hounsfield "
                "units."
            )
        wrong = len(values) < len(written) or len(set(values)) > 1
        if wrong or (name == "RescaleSlope" and values[0] <= 0):
            given = ", ".join(written)[:40]
            raise MedlmError(
                f"{path} has the {name} {given}; expected one number"
                + " above 0" * (name == "RescaleSlope")
                + ". Its stored values cannot be turned into Hounsfield units."
            )
        found[name] = np.float32(values[0])
    bits = number(content, "BitsStored") or 16
    if (span := 2**bits * found["RescaleSlope"]) < 1000:
        raise MedlmError(
            f"{path} has {bits:.0f} bits, which reach over {span:.0f} HU; expected at "
            "least 1000, from air to water. It is the picture of a window, and has "
            "lost its Hounsfield units."
        )
    return found["RescaleSlope"], found["RescaleIntercept"]


def implausible(hu: np.ndarray, padding: np.ndarray) -> str | None:
    """Why an image cannot be a body in Hounsfield units; None if it can.

    Parameters
    ----------
    hu
        (height, width).
    padding
        (height, width), True where there is no image.

    Returns
    -------
    str or None
        The rest of a sentence that begins with the name of a file.
    """
    inside = hu[~padding]
    if not inside.size or inside.min() == inside.max():
        return "has one value everywhere; expected a CT slice. Leave the file out."
    if not np.isfinite(inside).all():
        return "has values that are no numbers; expected a CT slice."
    if (share := float(np.mean(inside > 2500))) > 0.1:
        return (
            f"has {share:.0%} of its pixels above 2500 HU, which is denser than bone; "
            "expected less than 10%. Its numbers have wrapped around (air stored as "
            "3000 to 4095), or its slope or intercept is wrong."
        )
    if inside.min() >= 0 and inside.max() <= 255 and np.ptp(inside) > 127:
        return (
            f"goes from {inside.min():.0f} to {inside.max():.0f} HU; expected air, fat "
            "or bone. These are the grey levels of a picture (0 to 255), which has "
            "lost its Hounsfield units."
        )
    share = float(np.mean(inside == 0))
    if share > 0.2 and inside.min() == 0 and inside.max() > 100:
        return (
            f"has {share:.0%} of its pixels at 0 HU, and nothing below; expected air "
            "near -1000 HU. Somebody cut off what is below 0, or masked the rest."
        )
    thin = np.mean((inside > -200) & (inside < 350))  # where air is, after + 1024
    soft = np.mean((inside > 900) & (inside < 1200))
    if soft > 0.15 and thin > 0.05 and inside.min() > -200:
        return (
            f"has {soft:.0%} of its pixels between 900 and 1200 HU and nothing like "
            "air or fat; expected soft tissue near 40 HU. Its RescaleIntercept is "
            "wrong, most likely by 1024."
        )
    if not ((inside > -900) & (inside < 1500)).any():
        return (
            f"goes from {inside.min():.4g} to {inside.max():.4g} HU; expected a slice "
            "of a body, of which something lies between -900 and 1500."
        )
    far = float(np.mean(inside < -1500))  # also padding, blurred by compression
    if far > 0.05 and np.mean(inside > -300) < 0.02:
        return (
            f"has {far:.0%} of its pixels below -1500 HU and nothing like soft "
            "tissue; expected air near -1000 HU. Its RescaleIntercept is wrong, most "
            "likely by 1024."
        )
    return None


# Pixels -------------------------------------------------------------------------------


def _stored(path: Path, content: Any) -> np.ndarray:
    """The numbers in the file, (height, width)."""
    from pydicom.pixels import get_decoder

    sides = [number(content, name) or 0 for name in ("Rows", "Columns")]
    if not 0 < sides[0] * sides[1] <= MOST_PIXELS:
        raise MedlmError(
            f"{path} has {sides[1]:.0f} x {sides[0]:.0f} pixels; expected a CT slice, "
            "such as 512 x 512."
        )
    if "NumberOfFrames" in content:
        content.NumberOfFrames = 1  # checked; written twice it stops pydicom
    syntax = _transfer_syntax(content)
    try:
        decodes = get_decoder(syntax).is_available
    except NotImplementedError:
        decodes = False
    if not decodes:
        raise MedlmError(
            f"{path} is compressed ({syntax.name}), and no package that is installed "
            'decompresses that. Most need `pip install "medlm-utils[dicom]"`; else '
            "save the file uncompressed."
        )
    try:
        return np.asarray(content.pixel_array)
    except Exception as error:  # pydicom's decoders raise what they like
        raise MedlmError(
            f"The pixels of {path} cannot be decoded: the file is damaged, cut short "
            "or wrongly described by its header. Copy it again."
        ) from error


def _transfer_syntax(content: Any) -> Any:
    """How the pixels are written; set where the file lost the part that says it."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    meta = getattr(content, "file_meta", None)
    if meta is None:
        meta = content.file_meta = FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        implicit, little = content.original_encoding
        plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain
    return meta.TransferSyntaxUID


def _is_padding(stored: np.ndarray, hu: np.ndarray, content: Any) -> np.ndarray:
    """True where the file says that there is no image, (height, width)."""
    one = number(content, "PixelPaddingValue")
    if one is None:
        return np.zeros(stored.shape, bool)
    other = number(content, "PixelPaddingRangeLimit")
    ends = [
        _as_stored(end, stored.dtype) for end in (one, one if other is None else other)
    ]
    found = (stored >= min(ends)) & (stored <= max(ends))
    if found.any() and hu[found].max() > -500:
        return _at_border(found)  # a value that tissue has too
    return found


def _as_stored(value: float, kind: np.dtype) -> float:
    """A padding value as the pixels have it, whose sign its tag may not share."""
    if kind.kind not in "iu":
        return value
    limits, span = np.iinfo(kind), 2 ** (8 * kind.itemsize)
    if value > limits.max:
        return value - span
    return value + span if value < limits.min else value


def _at_border(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask that reach the border."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    edges = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
    return mask & np.isin(parts, np.unique(np.concatenate(edges)))


def settled(
    hu: np.ndarray, padding: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """An image without the values that only say that there is no image.

    Scanners fill what lies outside of their circle with a value far below air, and not
    every file says so: one value that reaches from a corner, at -1024 HU or below.

    Parameters
    ----------
    hu
        (height, width).
    padding
        (height, width), True where the file says that there is no image.

    Returns
    -------
    tuple of ndarray
        float32, in HU: padding has the value of air, nothing is below -1024; and the
        padding, with what no tag names.
    """
    found = np.zeros(hu.shape, bool) if padding is None else padding.copy()
    for corner in {float(hu[row, column]) for row in (0, -1) for column in (0, -1)}:
        if corner <= LOWEST_HU:
            same = _at_border(hu == corner)
            # A few equal pixels are noise.
            found |= same if same.mean() > 0.001 else False
    clean = np.maximum(hu, LOWEST_HU, dtype=np.float32)
    clean[found] = AIR_HU
    return clean, found
