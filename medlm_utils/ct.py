"""Slices to tensors: HU windows, splits by patient, batches.

Knows nothing about networks. A slice is a rectangle of numbers: Hounsfield units (HU)
if it comes from a DICOM file or from the simulated scanner, grey levels 0 to 255 if it
comes from a PNG or JPEG file, which have lost their HU.

Axes: `slices height width`; a batch is `(batch, 1, height, width)`.

Source: chapter 5.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from medlm_utils.dicom import AIR_HU
from medlm_utils.runtime import MedlmError

GREY_LEVELS = 255.0  # the white of an 8-bit image
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
                    f"(counted from 0): {some(both)}. Expected each patient in one: "
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


def some(names: Sequence[Any], most: int = 3) -> str:
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
