"""Slices to tensors: HU windows, splits by patient, batches, folders of images.

Knows nothing about networks. A slice is a rectangle of numbers: Hounsfield units (HU)
if it comes from a DICOM file or from the simulated scanner, grey levels 0 to 255 if it
comes from a PNG or JPEG file, which have lost their HU.

Axes: `slices height width`; a batch is `(batch, 1, height, width)`.

Source: chapter 5.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from medlm_utils.runtime import MedlmError

AIR_HU = -1000.0  # what lies outside of a scanner's field of view gets this value
GREY_LEVELS = 255.0  # the white of an 8-bit image
PICTURES = (".png", ".jpg", ".jpeg")
DICOM = (".dcm", ".dicom")
AGGREGATIONS = ("max", "mean", "noisy-or")


# Hounsfield units and windows ---------------------------------------------------------


class Window(NamedTuple):
    """The range of Hounsfield units that an image shows, from black to white."""

    width_hu: float
    level_hu: float  # its middle

    @property
    def low_hu(self) -> float:
        """What becomes black, with everything below."""
        return self.level_hu - self.width_hu / 2

    @property
    def high_hu(self) -> float:
        """What becomes white, with everything above."""
        return self.level_hu + self.width_hu / 2


LUNG = Window(1500.0, -600.0)
MEDIASTINUM = Window(400.0, 40.0)


def window(hu: ArrayLike, window: Window = LUNG) -> np.ndarray:
    """Hounsfield units to grey, 0 to 1, the same for every image.

    Parameters
    ----------
    hu
        Of any shape.
    window
        What becomes black and what white.

    Returns
    -------
    ndarray
        float32, the shape of `hu`.

    Raises
    ------
    MedlmError
        If the window has no width, or a number is not finite.

    Source: chapter 5.
    """
    values = np.asarray(hu, np.float32)
    if not window.width_hu > 0:
        raise MedlmError(
            f"The window is {window.width_hu} HU wide; expected more than 0."
        )
    if not np.isfinite(values).all():
        raise MedlmError(
            "Some values are not finite; expected Hounsfield units. Give what lies "
            f"outside of the field of view the value of air, {AIR_HU:.0f} HU."
        )
    return np.clip((values - window.low_hu) / window.width_hu, 0, 1, dtype=np.float32)


def to_tensor(images: ArrayLike, window: Window | None = LUNG) -> Tensor:
    """Slices as the rectangle that a network reads.

    Parameters
    ----------
    images
        (height, width) or (slices, height, width), in HU.
    window
        As in `window`. None: `images` are grey already, 0 to 1, or 0 to 255 if they are
        of type uint8.

    Returns
    -------
    Tensor
        (slices, 1, height, width), float32, 0 to 1.

    Raises
    ------
    MedlmError
        If the shape is another one, or the numbers do not fit `window`.

    Source: chapter 5.
    """
    values = np.asarray(images)
    if values.ndim not in (2, 3) or not values.size:
        raise MedlmError(
            f"Images of shape {values.shape}; expected (height, width) or (slices, "
            "height, width)."
        )
    if values.ndim == 2:
        values = values[None]
    return torch.from_numpy(_grey(values, window))[:, None]


def _grey(values: np.ndarray, chosen: Window | None) -> np.ndarray:
    """Grey, 0 to 1, float32."""
    if chosen is not None:
        if values.dtype == np.uint8:
            raise MedlmError(
                "The images are grey levels of 8 bits, which are no Hounsfield units; "
                "expected HU for a window. Use window=None."
            )
        return window(values, chosen)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(GREY_LEVELS)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise MedlmError(
            f"Without a window the images are grey levels, 0 to 1; these go from "
            f"{low:.4g} to {high:.4g}. For Hounsfield units give a window."
        )
    return values.astype(np.float32)


# DICOM --------------------------------------------------------------------------------


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


# Splits by patient --------------------------------------------------------------------


def split(
    patients: Sequence[Any] | np.ndarray | None,
    shares: Sequence[float],
    seed: int,
    label: ArrayLike | None = None,
) -> tuple[np.ndarray, ...]:
    """The rows of each part; all rows of a patient are in the same one.

    Parameters
    ----------
    patients
        (rows,) whose row it is. Without them no split is made: slices of one patient
        look alike, and a test on a patient whom the model has seen is no test.
    shares
        Of the patients, one a part, that sum to 1, such as ``(0.6, 0.2, 0.2)``.
    seed
        Of the draw.
    label
        (rows,) whole numbers: every label gets the same shares. A patient counts with
        his largest one, so with "abnormal" if one of his slices is.

    Returns
    -------
    tuple of ndarray
        Row numbers in rising order, one array a part.

    Raises
    ------
    MedlmError
        If there are no patients, one has no name, a part would have no patient, or the
        numbers do not fit.

    Source: chapter 5.
    """
    names, of_row = _numbered(patients)
    share = np.asarray(shares, float)
    if share.ndim != 1 or (share <= 0).any() or not math.isclose(share.sum(), 1):
        raise MedlmError(f"The shares are {shares}; expected shares above 0, sum 1.")
    stratum = np.zeros(len(names), int)
    if label is not None:
        np.maximum.at(stratum, of_row, _whole_numbers(label, len(of_row)))
    rng = np.random.default_rng(seed)
    part = np.empty(len(names), int)
    for value in np.unique(stratum):
        chosen = rng.permutation(np.flatnonzero(stratum == value))
        ends = np.round(np.cumsum(share) * len(chosen)).astype(int)
        part[chosen] = np.searchsorted(ends, np.arange(len(chosen)), side="right")
    empty = [number for number in range(len(share)) if not (part == number).any()]
    if empty:
        raise MedlmError(
            f"{len(names)} patients are too few for the shares {tuple(shares)}: part "
            f"{empty[0]} would have none. Expected at least one in each part."
        )
    return tuple(np.flatnonzero(part[of_row] == n) for n in range(len(share)))


def check_apart(*parts: Sequence[Any] | np.ndarray) -> None:
    """Refuse parts that share a patient.

    Parameters
    ----------
    parts
        The patients of the rows of each part.

    Raises
    ------
    MedlmError
        If a patient is in two parts, or has no name.

    Source: chapter 5.
    """
    sets = [set(_checked_patients(part).tolist()) for part in parts]
    for number, first in enumerate(sets):
        for other, second in enumerate(sets[number + 1 :], number + 1):
            both = sorted(first & second, key=str)
            if both:
                raise MedlmError(
                    f"{len(both)} patients are in part {number} and in part {other} "
                    f"(counted from 0): {_some(both)}. Expected each patient in one: "
                    "split by patient."
                )


def _numbered(patients: Any) -> tuple[np.ndarray, np.ndarray]:
    """The patients, sorted, and the number of each row's."""
    names, of_row = np.unique(_checked_patients(patients), return_inverse=True)
    return names, of_row.reshape(-1)


def _checked_patients(patients: Any) -> np.ndarray:
    """(rows,) patients, every one with a name."""
    if patients is None:
        raise MedlmError(
            "There are no patients; expected the patient of each row. Slices of one "
            "patient look alike: a split that ignores who is who tests on patients "
            "whom the model has seen, so none is made."
        )
    given = np.asarray(patients)
    if given.ndim != 1 or not len(given):
        raise MedlmError(
            f"Patients of shape {given.shape}; expected one a row, and at least one."
        )
    for row, name in enumerate(given.tolist()):
        nameless = name is None or (isinstance(name, float) and math.isnan(name))
        if nameless or not str(name).strip():
            raise MedlmError(
                f"The patient of row {row} (counted from 0) is {name!r}; expected a "
                "name or number in every row. Leave rows out whose patient is unknown."
            )
    return given if given.dtype != object else given.astype(str)


def _whole_numbers(label: ArrayLike, rows: int) -> np.ndarray:
    values = np.asarray(label)
    is_whole = values.dtype.kind in "iub" and (not values.size or values.min() >= 0)
    if values.shape != (rows,) or not is_whole:
        raise MedlmError(
            f"Labels of shape {values.shape} and type {values.dtype} for {rows} rows; "
            "expected one whole number a row, from 0 on."
        )
    return values.astype(int)


def _some(names: Sequence[Any], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def by_patient(
    patient: Sequence[Any] | np.ndarray, score: ArrayLike, how: str = "max"
) -> tuple[np.ndarray, np.ndarray]:
    """One score a patient, from those of his slices.

    Parameters
    ----------
    patient
        (slices,) whose slice it is.
    score
        (slices,), higher is more abnormal.
    how
        ``"max"``: the most abnormal slice; ``"mean"``; or ``"noisy-or"``: the
        probability that at least one slice is abnormal, were they independent.

    Returns
    -------
    tuple of ndarray
        The patients, sorted, and their scores, (patients,) each.

    Raises
    ------
    MedlmError
        If scores and patients do not fit, or `how` is noisy-or and a score is no
        probability.

    Source: Pearl 1988 for the noisy-or; chapter 5.
    """
    names, of_row = _numbered(patient)
    scores = np.asarray(score, float)
    if scores.shape != of_row.shape or not np.isfinite(scores).all():
        raise MedlmError(
            f"Scores of shape {scores.shape} for {len(of_row)} slices; expected one "
            "finite score a slice."
        )
    if how == "max":
        values = np.full(len(names), -np.inf)
        np.maximum.at(values, of_row, scores)
    elif how == "mean":
        values = np.bincount(of_row, scores) / np.bincount(of_row)
    elif how == "noisy-or":
        values = _noisy_or(of_row, scores)
    else:
        raise MedlmError(f"how is {how!r}; expected one of {', '.join(AGGREGATIONS)}.")
    return names, values


def _noisy_or(of_row: np.ndarray, scores: np.ndarray) -> np.ndarray:
    if scores.min() < 0 or scores.max() > 1:
        raise MedlmError(
            f"Scores go from {scores.min():.4g} to {scores.max():.4g}; expected "
            "probabilities, 0 to 1, for noisy-or."
        )
    with np.errstate(divide="ignore"):  # log 0 is -inf: then the patient gets 1
        none = np.bincount(of_row, np.log1p(-scores))
    return -np.expm1(none)


# Batches ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Augment:
    """Small random changes of an image that leave a patient a patient.

    All of a batch are drawn and done at once. What a scanner or a breath would change
    is on; what no patient looks like is off, and there to be tried.

    Parameters
    ----------
    shift
        Largest shift in each direction, as a share of the width.
    rotate_degrees
        Largest rotation.
    scale
        Largest enlargement or reduction, as a share: 0.1 is 0.9 to 1.1.
    noise
        Standard deviation of noise added to each pixel, in grey (0 to 1).
    gain
        Largest change of brightness, as a share.
    flip_horizontal
        True: every other image is mirrored. Its heart is then on the right: situs
        inversus, 1 in 10,000 people.
    flip_vertical
        True: every other image is upside down: spine in front, and gravity upwards.

    Raises
    ------
    MedlmError
        If a number is below 0, or so large that the image would leave its frame.

    Source: chapter 5.
    """

    shift: float = 0.04
    rotate_degrees: float = 8.0
    scale: float = 0.08
    noise: float = 0.01
    gain: float = 0.03
    flip_horizontal: bool = False
    flip_vertical: bool = False

    def __post_init__(self) -> None:
        for name, most in (
            ("shift", 0.5),
            ("rotate_degrees", 180),
            ("scale", 0.5),
            ("noise", 1),
            ("gain", 1),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise MedlmError(
                    f"{name} is {getattr(self, name)}; expected 0 to {most}."
                )

    def __call__(self, images: Tensor, seed: int | Sequence[int]) -> Tensor:
        """Changed images: what lies outside is filled with the nearest pixel.

        Parameters
        ----------
        images
            (batch, 1, height, width), 0 to 1.
        seed
            The same seed, the same changes.

        Returns
        -------
        Tensor
            The same shape, 0 to 1.
        """
        rng = np.random.default_rng(seed)
        grid = F.affine_grid(self._matrices(images, rng), list(images.shape), False)
        moved = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
        gain = 1 + self.gain * rng.uniform(-1, 1, size=(len(images), 1, 1, 1))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(images.shape, generator=generator) * self.noise
        return (moved * torch.from_numpy(gain).float() + noise).clamp(0, 1)

    def _matrices(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Where each pixel comes from, (batch, 2, 3), in halves of a side."""
        batch, _, height, width = images.shape
        angle = np.deg2rad(self.rotate_degrees) * rng.uniform(-1, 1, batch)
        zoom = 1 + self.scale * rng.uniform(-1, 1, (batch, 1, 1))
        shift = 2 * self.shift * rng.uniform(-1, 1, (batch, 2))
        flips = np.array([self.flip_horizontal, self.flip_vertical])
        mirror = np.where((rng.uniform(size=(batch, 2)) < 0.5) & flips, -1.0, 1.0)
        cos, sin, aspect = np.cos(angle), np.sin(angle), height / width
        turn = np.stack([cos, -sin * aspect, sin / aspect, cos], axis=1)
        matrix = turn.reshape(batch, 2, 2) * mirror[:, None, :] / zoom
        return torch.from_numpy(
            np.concatenate([matrix, shift[:, :, None]], axis=2)
        ).float()


class SliceBatches:
    """Batches of slices in a new order each epoch: for `training.fit`.

    The slices of an epoch are shared out equally, so that no batch is so small that its
    normalisation fails.

    Parameters
    ----------
    images
        (slices, height, width), in HU; or grey, with ``window=None``. They stay as they
        are: what is done to them is done batch by batch.
    labels
        (slices,) numbers of classes; or numbers to be predicted, of a float type.
    size
        Largest number of slices in a batch.
    seed
        Of order and changes. The batch of a step depends on `seed` and the step alone.
        It is a tuple: images (batch, 1, height, width) in grey 0 to 1, labels (batch,).
    augment
        None: the images as they are.
    window
        As in `to_tensor`.

    Raises
    ------
    MedlmError
        If there are no slices, not as many labels, or `size` is below 1.

    Source: chapter 5.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: ArrayLike,
        size: int,
        seed: int = 0,
        augment: Augment | None = None,
        window: Window | None = LUNG,
    ):
        self.images, known = np.asarray(images), np.asarray(labels)
        if self.images.ndim != 3 or not len(self.images) or size < 1:
            raise MedlmError(
                f"Images of shape {self.images.shape} in batches of {size}; expected "
                "(slices, height, width), at least one, in batches of at least one."
            )
        if known.dtype.kind != "f":
            known = _whole_numbers(known, len(self.images))
        if known.shape != (len(self.images),) or not np.isfinite(known).all():
            raise MedlmError(
                f"Labels of shape {known.shape} for {len(self.images)} slices; "
                "expected one finite number a slice."
            )
        kind = torch.float32 if known.dtype.kind == "f" else torch.int64
        self.labels = torch.from_numpy(known).to(kind)
        self.size, self.seed, self.augment = size, seed, augment
        self.window = window
        # Steps come one after the other, so the latest epoch is all that is needed.
        self._order = functools.lru_cache(maxsize=1)(self._epoch_of)

    def _epoch_of(self, number: int) -> list[np.ndarray]:
        """Slices of each batch; sizes differ by one at most."""
        rng = np.random.default_rng([self.seed, number])
        return np.array_split(rng.permutation(len(self.images)), len(self))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.size)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a training step; steps count from 0."""
        epoch, place = divmod(step, len(self))
        chosen = self._order(epoch)[place]
        images = to_tensor(self.images[chosen], self.window)
        if self.augment is not None:
            images = self.augment(images, [self.seed, step, 1])
        return images, self.labels[torch.from_numpy(chosen)]

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All batches of one epoch; epochs count from 0."""
        first = number * len(self)
        return map(self.at, range(first, first + len(self)))


def share_cut_out(
    lesions: np.ndarray,
    draws: int = 200,
    seed: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    kept: float = 0.5,
) -> float:
    """How often a random crop leaves less than half of the lesion, its label unchanged.

    Parameters
    ----------
    lesions
        (slices, height, width), True in a lesion; slices without one do not count.
    draws
        Crops, of which each is tried on every slice.
    seed
        Of the crops.
    scale, ratio
        Of torchvision's RandomResizedCrop, by default its own defaults.
    kept
        The share of the lesion's pixels that has to stay.

    Returns
    -------
    float
        Share of all crops of all slices with a lesion.

    Raises
    ------
    MedlmError
        If no slice has a lesion, or there are no draws.

    Source: chapter 5.
    """
    from torchvision.transforms import RandomResizedCrop

    masks = np.asarray(lesions, bool)
    if masks.ndim != 3 or draws < 1 or not masks.any():
        raise MedlmError(
            f"Lesions of shape {masks.shape}, {masks.sum()} pixels, and {draws} draws; "
            "expected (slices, height, width) with at least one lesion, and one draw."
        )
    masks = masks[masks.any(axis=(1, 2))]
    # Sums over everything above and left of a pixel give any crop's sum in four reads.
    above = np.pad(masks.cumsum(1, dtype=np.int64).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    whole, lost = above[:, -1, -1], 0.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(draws):
            top, left, height, width = RandomResizedCrop.get_params(
                torch.empty(masks.shape), list(scale), list(ratio)
            )
            low, right = top + height, left + width
            inside = above[:, low, right] - above[:, top, right]
            inside = inside - above[:, low, left] + above[:, top, left]
            lost += (inside < kept * whole).mean()
    return float(lost / draws)


# Folders of images --------------------------------------------------------------------


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
    names = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    check_table(names, rows, folder, Path(str(patients)))
    images, read, skipped = read_images(folder, names, size, grey, skip_bad)
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
        images,
        tuple(read),
        classes,
        label,
        patient,
        split if has_splits else None,
        tuple(skipped),
    )


def image_files(folder: str | Path) -> list[Path]:
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


def read_images(
    folder: str | Path,
    names: Sequence[str],
    size: int | None = None,
    grey: bool = False,
    skip_bad: bool = False,
) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """Images as one array.

    Parameters
    ----------
    folder, size, grey, skip_bad
        As in `read_folder`.
    names
        Of files in the folder.

    Returns
    -------
    tuple
        Images (slices, height, width), int16 in HU or uint8; the names of their files;
        and the files that were left out, each with the reason.

    Raises
    ------
    MedlmError
        As in `read_folder`, for the files.
    """
    if size is not None and size < 8:
        raise MedlmError(f"The size is {size} pixels; expected at least 8.")
    pictures = [name for name in names if is_picture(name)]
    if pictures and len(pictures) < len(names):
        other = next(name for name in names if not is_picture(name))
        raise MedlmError(
            f"{folder} holds pictures ({pictures[0]}) and DICOM files ({other}); "
            "expected one kind: only DICOM files have Hounsfield units."
        )
    read, images, modes, bad = [], [], [], []
    for name in names:
        try:
            image, mode = _read_one(Path(folder) / name)
        except MedlmError as error:
            bad.append((name, str(error)))
            continue
        read.append(name)
        modes.append(mode)
        images.append(image if size is None else _resized(image, size))
    _check_bad(bad, len(names), skip_bad, folder)
    if not grey:
        _check_alike("mode", modes, read, "grey=True (--grey) brings all to grey")
    shapes = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
    advice = "size=128 (--size 128), or another size, brings all to one"
    _check_alike("size", shapes, read, advice)
    return np.stack(images), read, bad


def _read_one(path: Path) -> tuple[np.ndarray, str]:
    """(height, width), int16 in HU or uint8; and its mode."""
    if not is_picture(path):
        hu = read_dicom(path).hu
        return np.clip(np.round(hu), -32768, 32767).astype(np.int16), "HU"
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            mode = picture.mode
            if mode.startswith("I"):  # 16 bits; Pillow would cut them off
                values = np.asarray(picture, float) / 257
                return np.clip(np.round(values), 0, 255).astype(np.uint8), mode
            return np.asarray(picture.convert("L")), mode
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
            f"{_some(unknown)}. Expected the patient of every image, its file named as "
            "in the folder, such as normal/p1_0.png."
        )
    missing = sorted(set(rows) - set(names))
    if missing:
        raise MedlmError(
            f"{len(missing)} files of {table} are not in {folder}, or are no images: "
            f"{_some(missing)}. Expected all of them; copy them, or take the rows out."
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
                f"{len(loose)} images have no class: {_some(loose)}. Expected each "
                f"class in a folder of its own, or a column label in {table}."
            )
        return folders
    labels = [row["label"] for row in rows]
    nameless = [n for n, label in zip(names, labels, strict=True) if not label]
    if nameless:
        raise MedlmError(
            f"{len(nameless)} rows of {table} have no label: {_some(nameless)}. "
            "Expected one in every row, or no column label."
        )
    pairs = sorted(set(zip(folders, labels, strict=True)))
    if len(pairs) == len(set(folders)) == len(set(labels)):
        return folders  # both say the same; the folder says it in words
    if len(set(folders)) == len(set(labels)) and len(set(folders)) > 1:
        raise MedlmError(
            f"The column label of {table} and the folders do not agree: "
            f"{_some([f'{label} in {top}/' for top, label in pairs], 6)}. Expected one "
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
