"""Picture and DICOM files to rectangles of one size and kind.

Knows nothing about patients and labels. A rectangle holds Hounsfield units (HU) if it
comes from a DICOM file, or from a picture of 16 bits whose offset is known; and grey
levels 0 to 255 if it comes from any other picture, which has lost its HU.

Axes: `slices height width`.

Source: chapter 5.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from medlm_utils import dicom
from medlm_utils.runtime import MedlmError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM = (".dcm", ".dicom", ".ima")
# What a file with the name of a picture may be; Pillow knows many more, and some of
# them run other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
# Pictures of 16 bits that use fewer grey levels than this hold other numbers than grey.
_USED_LEVELS = 2**14
_LEAST_SIDE = 8  # pixels: in fewer nothing can be seen
_FEW_LEVELS = 16  # of grey: what is left where HU of 16 bits were cut to 8


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

    Links to files and folders are followed, but none back to where it came from. What
    is hidden is left out, and so is the index of a medium (DICOMDIR).

    Raises
    ------
    MedlmError
        If there is no such folder, or no image in it, or one that cannot be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedlmError(f"There is no folder {folder}; expected one with images.")
    found = sorted(path for path in _files(folder, ()) if _is_image(path))
    if not found:
        raise MedlmError(
            f"There are no images in {folder}; expected files that end in "
            f"{', '.join((*PICTURES, *DICOM))}, or DICOM files without an ending."
        )
    return found


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files and links to nothing, those of folders within included."""
    try:
        about = folder.stat()
        entries = list(folder.iterdir())
    except OSError as error:
        raise MedlmError(
            f"The folder {folder} cannot be opened ({error.strerror}); expected one "
            "that may be read."
        ) from error
    here = about.st_dev, about.st_ino
    if here in above:  # a link to a folder that it lies in
        return
    for path in entries:
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            yield from _files(path, (*above, here))
        elif path.is_file() or path.is_symlink():
            yield path


def _is_image(path: Path) -> bool:
    """By its name; many scanners give DICOM files none that says so."""
    if is_picture(path):
        return True
    if dicom.is_dicom(path):
        return True
    return path.suffix.lower() in DICOM and not dicom.is_index(path)


def is_picture(name: str | Path) -> bool:
    """Whether a file is a picture, by its name."""
    return Path(name).suffix.lower() in PICTURES


@dataclasses.dataclass(frozen=True)
class _Image:
    """What one file holds."""

    values: np.ndarray  # (height, width), int16 in HU or uint8
    mode: str
    patient: str = ""
    spacing_mm: tuple[float, float] | None = None
    plane: str = ""
    derived: str = ""
    levels: tuple[float, float] | None = None  # of 16 bits: the lowest, the highest

    @property
    def shows_little(self) -> bool:
        """Whether it has one value, or two as the outline of an organ has."""
        low, high = self.values.min(), self.values.max()
        return bool(((self.values == low) | (self.values == high)).all())

    @property
    def is_coarse(self) -> bool:
        """Whether a picture has so few levels of grey that tissues are one."""
        return len(np.unique(self.values)) <= _FEW_LEVELS


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
        If a file cannot be read, or is no CT slice in HU; sizes, modes or kinds differ;
        pictures of 16 bits hold something else than grey levels; or `reading` asks for
        what cannot be.
    """
    _check_reading(reading)
    _check_kind(folder, names, reading)
    rectangles, images, read, bad = [], [], [], []
    digests, empty, coarse = [], [], []
    for name in names:
        try:
            image = _read_one(Path(folder) / name, reading)
            rectangles.append(_fitted(Path(folder) / name, image, reading))
        except MedlmError as error:
            bad.append((name, str(error)))
            continue
        read.append(name)
        digests.append(_digest(image.values))
        if image.shows_little:
            empty.append(name)
        elif image.is_coarse:
            coarse.append(name)
        # Its pixels are not needed twice.
        images.append(dataclasses.replace(image, values=image.values[:0]))
    _check_bad(bad, len(names), reading.skip_bad, folder)
    if not reading.grey:
        modes = [image.mode for image in images]
        _check_alike("mode", modes, read, "grey=True (--grey) brings all to grey")
    _check_levels(images, read, reading)
    shapes = [f"{values.shape[1]} x {values.shape[0]}" for values in rectangles]
    advice = "size=128 (--size 128), or another size, brings all to one"
    _check_alike("size", shapes, read, advice)
    return Images(
        values=np.stack(rectangles),
        names=tuple(read),
        skipped=tuple(bad),
        header_patients=tuple(image.patient for image in images),
        digests=tuple(digests),
        warnings=tuple(_warnings(images, read, empty, coarse)),
    )


def _check_reading(reading: Reading) -> None:
    size, spacing = reading.size, reading.spacing_mm
    if size is not None and size < _LEAST_SIDE:
        raise MedlmError(f"The size is {size} pixels; expected at least {_LEAST_SIDE}.")
    if size is not None and size**2 > dicom.MOST_PIXELS:
        raise MedlmError(
            f"The size is {size} pixels; expected at most "
            f"{math.isqrt(dicom.MOST_PIXELS)}, and 128 to 512 will do."
        )
    if spacing is not None and size is None:
        raise MedlmError(
            "A spacing is given and no size; expected both (--spacing and --size): "
            "images of one spacing have several sizes until they are cut or padded."
        )
    for what, value in (("spacing", spacing), ("offset", reading.png_offset)):
        if value is not None and not math.isfinite(value):
            raise MedlmError(f"The {what} is {value}; expected a number.")
    if spacing is not None and spacing <= 0:
        raise MedlmError(f"The spacing is {spacing} mm; expected more than 0.")


def _check_kind(folder: str | Path, names: Sequence[str], reading: Reading) -> None:
    pictures = [name for name in names if is_picture(name)]
    if pictures and len(pictures) < len(names):
        other = next(name for name in names if not is_picture(name))
        raise MedlmError(
            f"{folder} holds pictures ({pictures[0]}) and DICOM files ({other}); "
            "expected one kind: only DICOM files have Hounsfield units."
        )
    if pictures and reading.spacing_mm is not None:
        raise MedlmError(
            f"A spacing is given (--spacing), and {folder} holds pictures, which do "
            "not say how many mm a pixel has; expected DICOM files."
        )
    if names and not pictures and reading.png_offset is not None:
        raise MedlmError(
            f"An offset is given (--png-offset), and {folder} holds DICOM files, which "
            "say it themselves; expected pictures of 16 bits."
        )


def _read_one(path: Path, reading: Reading) -> _Image:
    if path.is_symlink() and not path.exists():
        raise MedlmError(
            f"{path} is a link to a file that is not there; expected an image. Copy "
            "the file, or take the link away."
        )
    if is_picture(path):
        return _read_picture(path, reading.png_offset)
    found = dicom.read_dicom(path)
    return _Image(
        values=_whole(found.hu),
        mode="HU",
        patient=found.patient,
        spacing_mm=found.spacing_mm,
        plane=found.plane,
        derived=found.derived,
    )


def _whole(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.round(hu), -32768, 32767).astype(np.int16)


def _digest(values: np.ndarray) -> str:
    """Equal for equal images, whatever their files."""
    about = f"{values.shape} {values.dtype}".encode()
    return hashlib.sha256(about + values.tobytes()).hexdigest()


# Pictures -----------------------------------------------------------------------------


def _read_picture(path: Path, offset: float | None) -> _Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about size and transparency
        try:
            # Opened by name, Pillow scrambles plain TIFF files that are to be turned by
            # 90 degrees: it maps them into memory in the shape that they get.
            with (
                path.open("rb") as file,
                Image.open(file, formats=_FORMATS) as picture,
            ):
                _check_picture(path, picture)
                picture.load()
                return _picture(path, _upright(picture), offset)
        except MedlmError:
            raise
        except Exception as error:  # Pillow's readers raise what they like
            if dicom.is_dicom(path):
                raise MedlmError(
                    f"{path} has the name of a picture and is a DICOM file; expected "
                    "one kind. Rename it, so that it ends in .dcm."
                ) from error
            raise MedlmError(
                f"{path} cannot be read as a picture: it is damaged, cut short or of "
                "another kind. Expected a PNG, JPEG, TIFF or BMP file; copy it again."
            ) from error


def _check_picture(path: Path, picture: Any) -> None:
    """Refuse, before any pixel is decoded, what is not one rectangle of grey."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # of a photo, the first is the photo
        raise MedlmError(
            f"{path} has {frames} frames or pages; expected one image a file. Save "
            "each in a file of its own."
        )
    if picture.width * picture.height > dicom.MOST_PIXELS:
        raise MedlmError(
            f"{path} has {picture.width} x {picture.height} pixels; expected a slice, "
            "such as 512 x 512."
        )
    if picture.format == "PNG":
        with path.open("rb") as file:
            head = file.read(26)
        if head[24] == 16 and head[25] != 0:  # bits, and the kind of colour
            raise MedlmError(
                f"{path} has colours of 16 bits, of which only 8 would be read; "
                "expected grey. Save it as grey of 16 bits, or as colours of 8."
            )


def _upright(picture: Any) -> Any:
    """Turned as its camera or scanner says (EXIF)."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # what it says is damaged, and the picture is not
        return picture


def _picture(path: Path, picture: Any, offset: float | None) -> _Image:
    """Of a decoded picture: its grey, or its HU."""
    if picture.mode[0] in "IF":
        return _deep(path, picture, offset)
    if offset is not None:
        raise MedlmError(
            f"{path} has 8 bits, which cannot hold Hounsfield units; expected 16 bits "
            "with an offset (--png-offset)."
        )
    seen = picture
    if picture.mode not in ("L", "1", "RGB", "CMYK", "YCbCr"):  # may be transparent
        from PIL import Image

        colours = picture.convert("RGBA")
        black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
        seen = Image.alpha_composite(black, colours)
    return _Image(np.asarray(seen.convert("L")), picture.mode)


def _deep(path: Path, picture: Any, offset: float | None) -> _Image:
    """Of a picture with more than 8 bits."""
    values = np.asarray(picture, np.float32)
    if offset is not None:
        measured = values - np.float32(offset)
        hu, padding = dicom.settled(measured)
        problem = dicom.implausible(measured, padding)
        if problem:
            raise MedlmError(
                f"With the offset {offset:g} (--png-offset) {path} {problem}"
            )
        return _Image(_whole(hu), "16 bits")
    low, high = float(values.min()), float(values.max())
    if picture.mode == "F" or not (low >= 0 and high < 2**16):
        raise MedlmError(
            f"{path} goes from {low:.6g} to {high:.6g}; expected grey levels of 8 or "
            "16 bits. If it holds Hounsfield units, --png-offset 0 says so; else save "
            "it as grey."
        )
    grey = np.round(values / 257).astype(np.uint8)
    return _Image(grey, "16 bits", levels=(low, high))


def _check_levels(
    images: Sequence[_Image], names: Sequence[str], reading: Reading
) -> None:
    """Refuse pictures of 16 bits that hold other numbers than grey levels."""
    found = [image.levels for image in images if image.levels]
    if not found:
        return
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if not 0 < high - low < _USED_LEVELS:
        return
    name = next(n for n, image in zip(names, images, strict=True) if image.levels)
    raise MedlmError(
        f"The pictures of 16 bits, such as {name}, use {high - low + 1:.0f} of 65536 "
        f"levels ({low:.0f} to {high:.0f}), and little would be left of them as grey; "
        "expected the whole range, or Hounsfield units with their offset: "
        "--png-offset 32768 for DeepLesion, 1024 or 0 for others."
    )


# To one size --------------------------------------------------------------------------


def _fitted(path: Path, image: _Image, reading: Reading) -> np.ndarray:
    """(size, size), without squeezing; as it is where no size is asked for."""
    values, size = image.values, reading.size
    if size is None:
        return values
    if reading.spacing_mm is None:
        return _resized(_padded(values, max(values.shape)), (size, size))
    if image.spacing_mm is None:
        raise MedlmError(
            f"{path} has no usable PixelSpacing; expected the size of its pixels in "
            "mm, since a spacing is asked for (--spacing). Leave the file out."
        )
    sides = [
        round(side * given / reading.spacing_mm)
        for side, given in zip(values.shape, image.spacing_mm, strict=True)
    ]
    if min(sides) < _LEAST_SIDE:
        raise MedlmError(
            f"{path} would have {sides[1]} x {sides[0]} pixels of "
            f"{reading.spacing_mm:g} mm; expected at least {_LEAST_SIDE}. Name a "
            "smaller spacing (--spacing), in mm."
        )
    if math.prod(sides) > dicom.MOST_PIXELS:
        raise MedlmError(
            f"{path} would have {sides[1]} x {sides[0]} pixels of "
            f"{reading.spacing_mm:g} mm; expected a larger spacing (--spacing)."
        )
    return _padded(_resized(values, (sides[0], sides[1])), size)


def _padded(values: np.ndarray, side: int) -> np.ndarray:
    """(side, side), cut or padded around its middle: with air, or with black."""
    fill = dicom.AIR_HU if values.dtype == np.int16 else 0
    square = np.full((side, side), fill, values.dtype)
    here, there = [], []
    for length in values.shape:
        kept = min(length, side)
        here.append(slice((length - kept) // 2, (length - kept) // 2 + kept))
        there.append(slice((side - kept) // 2, (side - kept) // 2 + kept))
    square[tuple(there)] = values[tuple(here)]
    return square


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width), each pixel a mean of those that it covers, the type kept."""
    if image.shape == size:
        return image
    given = torch.from_numpy(image.astype(np.float32))[None, None]
    small = F.interpolate(
        given, size, mode="bilinear", antialias=True, align_corners=False
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


def _warnings(
    images: Sequence[_Image],
    names: Sequence[str],
    empty: Sequence[str],
    coarse: Sequence[str],
) -> Iterator[str]:
    """What the images have that a model could take for the class."""
    planes = [image.plane for image in images]
    counted = collections.Counter(plane for plane in planes if plane).most_common()
    if len(counted) > 1:
        parts = ", ".join(f"{count} {plane}" for plane, count in counted)
        rare = names[planes.index(counted[-1][0])]
        yield (
            f"the slices lie in different planes: {parts}, such as {rare}. A model can "
            "tell classes by that alone; expected one plane"
        )
    made = [n for n, image in zip(names, images, strict=True) if image.derived]
    if made:
        kinds = sorted({image.derived for image in images if image.derived})
        yield (
            f"{len(made)} of {len(names)} slices were computed from others and not "
            f"measured ({', '.join(kinds[:3])}), such as {made[0]}. They are smoother "
            "than others, or of another thickness"
        )
    if empty:
        yield (
            f"{len(empty)} of {len(names)} images have no more than two values, such "
            f"as {empty[0]}: they are blank, or outlines of a lesion, which give the "
            "class away"
        )
    if coarse:
        yield (
            f"{len(coarse)} of {len(names)} images have no more than {_FEW_LEVELS} "
            f"different values, such as {coarse[0]}: most likely Hounsfield units of "
            "16 bits that were cut to 8, and soft tissue is lost. Export them again"
        )
