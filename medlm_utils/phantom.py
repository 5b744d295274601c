"""The simulated scanner: chest slice in HU -> projections -> image, with exact ceiling.

Knows nothing about models. A patient has an anatomy and a label; each slice gets
opacities whose number, kind, diameter and contrast are drawn from known densities, so
the likelihood ratio of the label is a sum. The slice is painted on a grid twice as fine
as the image, projected, counted in photons, and reconstructed.

Axes: ``slices``, ``height``, ``width`` (images), ``views``, ``bins`` (projections),
``patients``. Lengths are in mm, CT numbers in Hounsfield units (HU). x grows to the
patient's left, which is the right of the image; y grows to the back.

Source: book page "The simulated scanner"; chapter 5.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs
import scipy.fft
import scipy.ndimage
import scipy.sparse
import scipy.special
from numpy.typing import ArrayLike

from medlm_utils.runtime import MedlmError, cores

VERSION = 1  # of pixels and densities: a change of either is a new number
KINDS = ("ground glass", "consolidation", "nodule")  # masks carry 1, 2, 3
WATER = 0.0193  # attenuation of water at about 70 keV, per mm
VIEWS = 180  # directions over half a turn
FINER = 2  # painted pixels along a side of an image pixel
SLICE_MM = 10.0  # from one slice of a patient to the next
THICKNESS_MM = 5.0  # of a slice: what is thinner than this is only partly seen
BATCH = 24  # slices painted and projected together
THREADS = 4  # batches at a time, so that memory stays under a gigabyte
_ANGLES = 1024  # entries of a table over the angle around the chest


@dataclasses.dataclass(frozen=True)
class Density:
    """Of one sort of opacities in a slice: Poisson number, then kind, size, contrast.

    Parameters
    ----------
    rate
        Mean number in a slice.
    kinds
        (kinds,) probability of each of `KINDS`.
    median_mm
        (kinds,) median diameter.
    sigma_log
        Standard deviation of the logarithm of the diameter.
    contrast_hu, contrast_sd
        (kinds,) normal density of the contrast to the lung around.
    """

    rate: float
    kinds: tuple[float, ...]
    median_mm: tuple[float, ...]
    sigma_log: float
    contrast_hu: tuple[float, ...]
    contrast_sd: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Scanner:
    """What one scanner does to every slice.

    Parameters
    ----------
    field_mm
        Side of the image.
    photons
        Doses that are equally frequent: photons that enter towards one bin.
    cutoff
        Where the reconstruction kernel ends, as a share of the bins' Nyquist frequency;
        higher is sharper and noisier.
    boost
        What a sharp kernel adds in the middle of its band; 0 for a plain Hann window.
    """

    field_mm: float
    photons: tuple[float, ...]
    cutoff: float
    boost: float = 0.0


@dataclasses.dataclass(frozen=True)
class Hospital:
    """Its scanners, and the opacities of its patients.

    Parameters
    ----------
    scanners
        Name to scanner; equally frequent.
    benign, abnormal
        Opacities of all patients, and those that abnormal patients have besides.
    """

    scanners: dict[str, Scanner]
    benign: Density
    abnormal: Density


_BENIGN = Density(
    rate=1.2,
    kinds=(0.40, 0.15, 0.45),
    median_mm=(17.0, 15.0, 11.0),
    sigma_log=0.38,
    contrast_hu=(230.0, 540.0, 690.0),
    contrast_sd=(60.0, 90.0, 90.0),
)
_ABNORMAL = Density(
    rate=1.1,
    kinds=(0.48, 0.42, 0.10),
    median_mm=(31.0, 28.0, 18.0),
    sigma_log=0.38,
    contrast_hu=(330.0, 680.0, 760.0),
    contrast_sd=(60.0, 90.0, 90.0),
)

HOSPITALS = {
    "A": Hospital(
        scanners={
            "A1": Scanner(340.0, (1.2e5, 4e4), cutoff=0.72),
            "A2": Scanner(330.0, (8e4, 2.5e4), cutoff=0.84),
        },
        benign=_BENIGN,
        abnormal=_ABNORMAL,
    ),
    "B": Hospital(
        scanners={"B1": Scanner(365.0, (2.5e4, 1.2e4), cutoff=1.0, boost=0.35)},
        benign=_BENIGN,
        abnormal=_ABNORMAL,
    ),
    "source": Hospital(
        scanners={
            "S1": Scanner(340.0, (1.5e5, 4e4), cutoff=0.70),
            "S2": Scanner(330.0, (8e4, 2e4), cutoff=0.85),
            "S3": Scanner(350.0, (6e4, 1.5e4), cutoff=0.95, boost=0.2),
            "S4": Scanner(360.0, (4e4, 1.2e4), cutoff=0.78),
        },
        benign=dataclasses.replace(_BENIGN, rate=1.6, sigma_log=0.45),
        abnormal=dataclasses.replace(
            _ABNORMAL, rate=1.8, kinds=(0.45, 0.35, 0.20), sigma_log=0.45
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Opacity:
    """One opacity as it was drawn.

    Parameters
    ----------
    kind
        One of `KINDS`.
    x_mm, y_mm
        Its middle, from the middle of the image, to the right and down.
    diameter_mm
        Of the disc of the same area, before the pleura cuts it.
    contrast_hu
        What it adds to the lung around.
    """

    kind: str
    x_mm: float
    y_mm: float
    diameter_mm: float
    contrast_hu: float


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Slices of patients with all that is true of them, one row a slice.

    Parameters
    ----------
    images
        (slices, height, width) int16, HU.
    patient
        (slices,) names.
    label
        (slices,) 1 if the PATIENT is abnormal, the same for all slices of a patient.
    scanner
        (slices,) names.
    dose
        (slices,) photons that enter towards one bin.
    lesions
        (slices, height, width) uint8: 0 none, else 1 + the number in `KINDS`.
    lungs
        (slices, height, width) bool, opacities included.
    opacities
        A tuple for each slice.
    log_ratio
        (slices,) ln P(opacities | abnormal) - ln P(opacities | normal), exact.
    spacing_mm
        (slices,) side of an image pixel.
    """

    images: np.ndarray
    patient: np.ndarray
    label: np.ndarray
    scanner: np.ndarray
    dose: np.ndarray
    lesions: np.ndarray
    lungs: np.ndarray
    opacities: tuple[tuple[Opacity, ...], ...]
    log_ratio: np.ndarray
    spacing_mm: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> Cohort:
        """The slices of these rows: a slice, a mask, numbers, or one number."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        every = arrays.pop("opacities")
        opacities = tuple(every[row] for row in rows)
        return Cohort(**{n: a[rows] for n, a in arrays.items()}, opacities=opacities)


# The anatomy --------------------------------------------------------------------------

# Traits of a patient, each standard normal and cut at two: column of the draw.
_TRAITS = tuple(
    """width depth square fat muscle shift_x shift_y heart heart_x heart_angle aorta
    vertebra enhanced lung gravity ribs rib_phase mediastinum trachea sternum
    fat_side fat_back bone lobe tilt table bumps1 bumps2 bumps3 bumps4
    """.split()  # noqa: SIM905
)


class _Painter:
    """A batch of slices being painted on the fine grid.

    Parameters
    ----------
    pixel_mm
        (slices,) side of a fine pixel.
    side
        Fine pixels along a side.
    """

    def __init__(self, pixel_mm: np.ndarray, side: int) -> None:
        self.pixel = pixel_mm.astype(np.float32)
        self.side = side
        self.hu = np.full((len(pixel_mm), side, side), -1000, np.float32)
        self.steps = np.arange(side, dtype=np.float32) - (side - 1) / 2

    def axes(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """x (slices, 1, width) and y (slices, height, 1) of a window, in mm."""
        scale = self.pixel[:, None, None]
        return self.steps[columns] * scale, self.steps[rows, None] * scale

    def window(self, x: Any, y: Any, reach: Any) -> tuple[slice, slice]:
        """The smallest window that holds all of the batch."""

        def span(middle: Any) -> slice:
            low = np.min((middle - reach) / self.pixel) + (self.side - 1) / 2 - 1
            high = np.max((middle + reach) / self.pixel) + (self.side - 1) / 2 + 2
            return slice(max(int(low), 0), min(max(int(np.ceil(high)), 1), self.side))

        return span(y), span(x)

    def ellipse(
        self, x: Any, y: Any, a: Any, b: Any, angle: Any = 0.0
    ) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """A window and how much of each of its pixels lies in the ellipse, 0 to 1."""
        x, y, a, b, angle = (
            np.broadcast_to(np.asarray(v, np.float32), self.pixel.shape)
            for v in (x, y, a, b, angle)
        )
        rows, columns = self.window(x, y, np.maximum(a, b))
        east, south = self.axes(rows, columns)
        east, south = east - x[:, None, None], south - y[:, None, None]
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        u = (east * cos + south * sin) / a[:, None, None]
        v = (south * cos - east * sin) / b[:, None, None]
        r = np.sqrt(u * u + v * v) + 1e-6
        slope = np.sqrt((u / a[:, None, None]) ** 2 + (v / b[:, None, None]) ** 2) / r
        distance = (1 - r) / np.maximum(slope, 1e-6)
        cover = np.clip(distance / self.pixel[:, None, None] + 0.5, 0, 1)
        return (slice(None), rows, columns), cover

    def paint(self, place: Any, cover: np.ndarray, hu: Any) -> None:
        """Lay a tissue over what is there."""
        hu = np.asarray(hu, np.float32)
        hu = hu[:, None, None] if hu.ndim == 1 else hu
        here = self.hu[place]
        here += cover * (hu - here)

    def disc(
        self, x: Any, y: Any, a: Any, b: Any, hu: Any, angle: Any = 0.0, share: Any = 1
    ) -> None:
        """Paint an ellipse; ``share`` fades it."""
        place, cover = self.ellipse(x, y, a, b, angle)
        share = np.asarray(share, np.float32)
        share = share[:, None, None] if share.ndim == 1 else share
        self.paint(place, cover * share, hu)


def _smooth(x: Any, low: Any, high: Any) -> Any:
    """A step from 0 at ``low`` to 1 at ``high`` with soft ends."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(angle: np.ndarray, middle: Any, width: Any) -> np.ndarray:
    """(slices, angles): 1 at ``middle``, falling as a Gaussian around the circle."""
    middle, width = np.asarray(middle), np.asarray(width)
    middle = middle[:, None] if middle.ndim else middle
    width = width[:, None] if width.ndim else width
    away = np.angle(np.exp(1j * (angle - middle)))
    return np.exp(-0.5 * (away / width) ** 2)


class _Chest:
    """The chest of a batch of slices: where each structure lies, and its painting.

    Parameters
    ----------
    traits
        Name to (slices,) trait of the slice's patient.
    height_mm
        (slices,) how far below the fork of the trachea, less 15 mm.
    pixel_mm, side
        Of the fine grid.
    """

    def __init__(
        self,
        traits: dict[str, np.ndarray],
        height_mm: np.ndarray,
        pixel_mm: np.ndarray,
        side: int,
    ) -> None:
        self.traits = t = traits
        self.low = (
            height_mm / 80
        )  # 0 at the great vessels, 1 at the middle of the heart
        self.canvas = _Painter(pixel_mm, side)
        self.x0 = 4 * t["shift_x"]
        self.y0 = 4 * t["shift_y"] - 9
        self._outlines()
        east, south = self.canvas.axes()
        east, south = east - self._all(self.x0), south - self._all(self.y0)
        self.radius = np.sqrt(east**2 + south**2)
        turn = np.arctan2(south, east) * np.float32(_ANGLES / (2 * np.pi))
        self.turn = turn.astype(np.int32) % _ANGLES
        self.turn += (_ANGLES * np.arange(len(pixel_mm), dtype=np.int32))[:, None, None]
        self.front = -south  # how far in front of the chest's middle

    @staticmethod
    def _all(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)[:, None, None]

    def _outlines(self) -> None:
        """Radii of pleura, chest wall, muscle and skin over the angle, in mm."""
        t, low = self.traits, self.low
        angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
        self.angle = angle = np.where(angle > np.pi, angle - 2 * np.pi, angle)[None]
        across = (113 + 5 * t["width"] + 7 * low)[:, None]
        along = (76 + 4.5 * t["depth"] + 2 * low)[:, None]
        power = (2.25 + 0.12 * t["square"])[:, None]
        c, s = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        pleura = ((c / across) ** power + (s / along) ** power) ** (-1 / power)
        for k in range(2, 6):
            wave = 0.008 * t[f"bumps{k - 1}"][:, None]
            pleura = pleura * (1 + wave * np.sin(k * angle + k * t["tilt"][:, None]))
        wall = 13.0
        strong = (1 + 0.2 * t["muscle"])[:, None]
        pectoral = _bump(angle, -np.pi / 2 + 0.75, 0.27) + _bump(
            angle, -np.pi / 2 - 0.75, 0.27
        )
        upper = 1 - 0.5 * _smooth(low, 0.2, 1.1)[:, None]
        shoulder = _bump(angle, 0.72, 0.24) + _bump(angle, np.pi - 0.72, 0.24)
        back = _bump(angle, np.pi / 2, 0.42)
        muscle = 3.0 + strong * (
            13 * upper * pectoral + 13 * upper * shoulder + 15 * back
        )
        thick = np.exp(0.38 * t["fat"])[:, None]
        fat = thick * (
            4.5
            + 3.5 * np.exp(0.3 * t["fat_side"])[:, None] * np.abs(np.sin(angle)) ** 2
            + 4 * np.exp(0.3 * t["fat_back"])[:, None] * _bump(angle, np.pi / 2, 0.8)
            + 3 * pectoral
            + 2 * (_bump(angle, 0.55, 0.3) + _bump(angle, np.pi - 0.55, 0.3))
        )
        self.pleura, self.wall = pleura, pleura + wall
        self.muscle = self.wall + muscle
        self.skin = self.muscle + fat
        longest = 0.485 * self.canvas.pixel * self.canvas.side
        shrink = np.minimum(1, (longest - 6) / self.skin[:, np.abs(c[0]) > 0.9].max(1))
        for name in ("pleura", "wall", "muscle", "skin"):
            setattr(self, name, getattr(self, name) * shrink[:, None])
        self.across = self.pleura[:, 0]
        self.back = self.pleura[:, _ANGLES // 4]
        self.top = self.pleura[:, 3 * _ANGLES // 4]

    def inside(self, outline: np.ndarray) -> np.ndarray:
        """How much of each pixel lies inside an outline, 0 to 1."""
        distance = self.depth(outline)
        return np.clip(distance / self._all(self.canvas.pixel) + 0.5, 0, 1)

    def depth(self, outline: np.ndarray) -> np.ndarray:
        """How far inside an outline each pixel lies, in mm."""
        return outline.astype(np.float32).ravel()[self.turn] - self.radius

    def arcs(self, middle: np.ndarray, half: np.ndarray, hu: np.ndarray) -> None:
        """Bones along the wall: a shell around marrow, ``half`` thick each way."""
        away = np.abs(self.depth(middle))
        thick = half.astype(np.float32).ravel()[self.turn]
        pixel = self._all(self.canvas.pixel)
        every = (slice(None),) * 3
        outer = np.clip((thick - away) / pixel + 0.5, 0, 1) * (thick > 0.3)
        self.canvas.paint(every, outer, hu)
        inner = np.clip((thick - 1.9 - away) / pixel + 0.5, 0, 1) * (thick > 2.2)
        self.canvas.paint(every, inner, 0.32 * hu)

    def paint(self, rngs: list[np.random.Generator], tree: np.ndarray) -> None:
        """Paint all but opacities; leaves ``lung`` (cover) and ``aerated`` (HU)."""
        self._table()
        self._body_wall()
        self._mediastinum()
        self._lungs(rngs, tree)
        self._vessels_of_the_middle()
        self._bones()

    def _table(self) -> None:
        t, canvas = self.traits, self.canvas
        below = self.skin[:, _ANGLES // 4] + self.y0 + 5
        radius = 330 + 15 * t["table"]
        for depth, hu in ((0.0, -420), (2.5, -930)):
            place, cover = canvas.ellipse(
                self.x0, below - radius + 9 - depth, radius, radius
            )
            east = canvas.axes(*place[1:])[0] - self._all(self.x0)
            south = canvas.axes(*place[1:])[1]
            low = self._all(below - 16)
            canvas.paint(
                place, cover * _smooth(south, low, low + 1) * (abs(east) < 95), hu
            )

    def _body_wall(self) -> None:
        t, canvas = self.traits, self.canvas
        every = (slice(None),) * 3
        in_skin = self.inside(self.skin)
        canvas.paint(every, in_skin, 10)  # the skin itself
        canvas.paint(every, self.inside(self.skin - 2.2), -105 + 4 * t["fat_back"])
        muscle = 48 + 5 * t["muscle"]
        canvas.paint(every, self.inside(self.muscle), muscle)
        # Fat between the layers of muscle, and between wall and muscle.
        seam = np.abs(self.depth(self.wall + 0.5 * (self.muscle - self.wall)))
        thin = (self.muscle - self.wall > 9).astype(np.float32).ravel()[self.turn]
        canvas.paint(every, thin * 0.6 * np.exp(-((seam / 1.5) ** 2)), -100)
        gap = np.abs(self.depth(self.wall))
        canvas.paint(every, 0.55 * np.exp(-((gap / 1.4) ** 2)), -100)

    def _mediastinum(self) -> None:
        """Fat of the middle, and ``middle``: how much of a pixel is no lung."""
        t, low, canvas = self.traits, self.low, self.canvas
        x0, y0 = self.x0, self.y0
        self.spine_y = y0 + self.back - 14
        grown = _smooth(low, 0.15, 0.85)
        self.heart = {
            "x": x0 + 19 + 4 * t["heart_x"] + 3 * grown,
            "y": y0 - self.top + 52 + 2 * grown,
            "a": (34 + 17 * grown) * (1 + 0.06 * t["heart"]),
            "b": (30 + 9 * grown) * (1 + 0.06 * t["heart"]),
            "angle": -0.5 + 0.12 * t["heart_angle"],
        }
        middle = np.zeros_like(canvas.hu)
        wide = 1 + 0.08 * t["mediastinum"]
        shapes = [
            (x0 + 2, y0 - 4, 20 * wide, self.top + 0 * low),  # from breastbone to spine
            (x0 + 2, y0 - self.top * 0.42, (29 - 8 * grown) * wide, 33 + 0 * low),
            (x0 + 3, y0 + 8, (36 + 2 * grown) * wide, 25 + 0 * low),
            (x0, self.spine_y, 23 + 0 * low, 22 + 0 * low),
            (x0 + 23, self.spine_y - 22, 17 + t["aorta"], 17 + t["aorta"]),
        ]
        for x, y, a, b in shapes:
            place, cover = canvas.ellipse(x, y, a, b)
            np.maximum(middle[place], cover, out=middle[place])
        h = self.heart
        share = _smooth(low, 0.2, 0.45)
        place, cover = canvas.ellipse(
            h["x"],
            h["y"],
            20 + (h["a"] - 16) * share,
            20 + (h["b"] - 16) * share,
            h["angle"],
        )
        np.maximum(middle[place], cover, out=middle[place])
        self.hila = []
        for side in (-1, 1):
            x = x0 + side * (40 + 5 * grown) + 3
            y = y0 + 7 + 6 * low
            a, b = 10 + 0 * low, 12 + 2 * t["aorta"]
            self.hila.append((x, y, a, b))
            place, cover = canvas.ellipse(x, y, a, b)
            np.maximum(middle[place], cover, out=middle[place])
        self.middle = middle

    def _lungs(self, rngs: list[np.random.Generator], tree: np.ndarray) -> None:
        t, canvas = self.traits, self.canvas
        chest = self.inside(self.pleura - 1.5)
        self.lung = chest * (1 - self.middle)
        every = (slice(None),) * 3
        inner = self.inside(self.pleura)
        canvas.paint(every, inner, -92)
        # Heavier towards the back, where a supine patient's blood gathers.
        slope = 0.45 + 0.18 * t["gravity"]
        air = self._all(-868 + 16 * t["lung"]) - self._all(slope) * self.front
        air = air + 16 * _fields(rngs, canvas.side)
        for side in (-1, 1):  # the fissures, seen as faint lines
            x = self.x0 + side * 30
            y = self.y0 - 95 + 12 * t["lobe"] + 75 * self.low
            ring = np.hypot(
                canvas.axes()[0] - self._all(x), canvas.axes()[1] - self._all(y)
            )
            air += 50 * np.exp(-(((ring - self._all(118 + 8 * t["tilt"])) / 1.0) ** 2))
        self.aerated = air
        vessels = self._cut_tree(tree)
        filled = air + vessels * (self._all(self.blood) - air)
        canvas.paint(every, self.lung, filled)

    @property
    def blood(self) -> np.ndarray:
        """HU of blood: half of the patients were given contrast medium."""
        t = self.traits["enhanced"]
        return np.where(t > 0, 135 + 25 * np.abs(t), 42 + 3 * t)

    def _cut_tree(self, points: np.ndarray) -> np.ndarray:
        """How much of each pixel is vessel, from (points, 5) of all slices.

        Columns: slice, x, y (mm), radius (mm), share of the slice's thickness.
        """
        canvas = self.canvas
        number = points[:, 0].astype(np.int64)
        pixel = canvas.pixel[number]
        half = (canvas.side - 1) / 2
        column = (points[:, 1] + self.x0[number]) / pixel + half
        row = (points[:, 2] + self.y0[number]) / pixel + half
        radius = points[:, 3] / pixel
        offsets = np.arange(-4, 5)
        rows = np.rint(row).astype(np.int64)[:, None, None] + offsets[:, None]
        columns = np.rint(column).astype(np.int64)[:, None, None] + offsets
        away = np.hypot(rows - row[:, None, None], columns - column[:, None, None])
        cover = np.clip(radius[:, None, None] + 0.5 - away, 0, 1)
        cover *= points[:, 4, None, None]
        np.clip(rows, 0, canvas.side - 1, out=rows)
        np.clip(columns, 0, canvas.side - 1, out=columns)
        place = (number[:, None, None] * canvas.side + rows) * canvas.side + columns
        vessels = np.zeros_like(canvas.hu)
        np.maximum.at(vessels.ravel(), place.ravel(), cover.ravel().astype(np.float32))
        return vessels

    def _vessels_of_the_middle(self) -> None:
        t, low, canvas, blood = self.traits, self.low, self.canvas, self.blood
        x0, y0 = self.x0, self.y0
        tissue = 38 + 2 * t["muscle"]
        soft = np.where(t["enhanced"] > 0, 95, 40) + 3 * t["heart"]
        fat = -85 + 3 * t["fat_back"]
        great, heart = 1 - _smooth(low, 0.45, 0.65), _smooth(low, 0.25, 0.5)
        size = 1 + 0.08 * t["aorta"]
        # Behind: aorta, gullet, azygos vein.
        canvas.disc(x0 + 23, self.spine_y - 22, 12.5 * size, 12.5 * size, blood)
        canvas.disc(x0 + 6, self.spine_y - 30, 7, 6, tissue)
        canvas.disc(x0 + 6, self.spine_y - 30, 2.2, 1.4, -500)
        canvas.disc(x0 - 9, self.spine_y - 21, 4, 4, blood)
        for x, y, a, b in self.hila:
            canvas.disc(x, y, a - 1, b - 3, blood)
        # The heart: wall, then chambers.
        h = self.heart
        for hu, dx, dy, long, short in (
            (soft, 0, 0, 1.0, 1.0),
            (blood, 0.42, -0.02, 0.44, 0.40),  # left ventricle
            (blood - 6, -0.02, -0.42, 0.58, 0.36),  # right ventricle
            (blood - 4, -0.55, -0.02, 0.30, 0.46),  # right atrium
            (blood + 2, -0.18, 0.52, 0.46, 0.34),  # left atrium
            (fat, -0.40, -0.66, 0.17, 0.13),  # fat in the grooves, with an artery each
            (fat, 0.30, 0.66, 0.20, 0.11),
            (blood, -0.40, -0.66, 0.05, 0.06),
            (blood, 0.30, 0.66, 0.05, 0.06),
        ):
            cos, sin = np.cos(h["angle"]), np.sin(h["angle"])
            along, across = dx * h["a"], dy * h["b"]
            canvas.disc(
                h["x"] + along * cos - across * sin,
                h["y"] + along * sin + across * cos,
                long * h["a"],
                short * h["b"],
                hu,
                h["angle"],
                heart,
            )
        # Above: ascending aorta, pulmonary trunk and its branches, superior cava.
        front = y0 - self.top
        canvas.disc(x0 - 6, front + 46, 16 * size, 16 * size, blood, share=great)
        canvas.disc(x0 + 20, front + 48, 14, 17, blood - 4, 0.5, share=great)
        bar = great * _smooth(low, 0.1, 0.25)
        canvas.disc(x0 - 12, y0 - 1, 26, 8, blood - 4, -0.12, share=bar)
        canvas.disc(x0 + 30, y0 + 2, 15, 9, blood - 4, 0.7, share=bar)
        canvas.disc(x0 - 28, front + 56, 9, 10, blood, share=great)
        # The windpipe and its two branches.
        wide = 8.5 + 0.8 * t["trachea"]
        whole = 1 - _smooth(low, 0.12, 0.2)
        forked = _smooth(low, 0.1, 0.2) * (1 - _smooth(low, 0.5, 0.72))
        canvas.disc(x0, y0 + 20, wide + 1.8, wide + 1.8, tissue, share=whole)
        canvas.disc(x0, y0 + 20, wide, wide, -985, share=whole)
        for side in (-1, 1):
            apart = side * (8 + 40 * np.clip(low - 0.1, 0, 0.7))
            down = 20 + 6 * np.clip(low, 0, 0.8)
            a, b = 0.85 * wide, 0.62 * wide
            turn = side * 0.35
            canvas.disc(x0 + apart, y0 + down, a + 1.6, b + 1.6, tissue, turn, forked)
            canvas.disc(x0 + apart, y0 + down, a, b, -985, turn, forked)

    def _bones(self) -> None:
        t, canvas = self.traits, self.canvas
        shell = 560 + 60 * t["bone"]
        # Ribs run down and forward, so a slice cuts them obliquely.
        half = np.zeros_like(self.pleura)
        thick = 4.3 + 0.3 * t["ribs"]
        shift = 0.10 * t["rib_phase"] + 0.16 * (self.low * 80 / SLICE_MM)
        for side in (0, 1):
            for k in range(-3, 3):
                place = 0.54 * k + 0.1 + np.mod(shift + 0.2 * side, 0.54)
                angle = place if side == 0 else np.pi - place
                away = np.abs(np.angle(np.exp(1j * (self.angle - angle[:, None]))))
                long = 0.125 + 0.05 * np.cos(place)
                lens = np.sqrt(np.clip(1 - (away / long[:, None]) ** 2, 0, 1))
                not_front = _smooth(np.abs(np.pi / 2 + place), 0.25, 0.45)
                not_back = _smooth(np.abs(np.pi / 2 - place), 0.18, 0.3)
                half = np.maximum(half, (thick * not_front * not_back)[:, None] * lens)
        self.arcs(0.48 * self.pleura + 0.52 * self.wall, half, shell)
        # Shoulder blades, in the upper slices.
        high = 1 - _smooth(self.low, 0.55, 0.85)
        blade = np.maximum(
            *(
                np.sqrt(
                    np.clip(
                        1 - (np.angle(np.exp(1j * (self.angle - m))) / 0.26) ** 2, 0, 1
                    )
                )
                for m in (0.70, np.pi - 0.70)
            )
        )
        self.arcs(self.wall + 6, (3.4 * high)[:, None] * blade, shell)
        self._spine(shell)
        # The breastbone.
        x, y = self.x0, self.y0 - self.top - 7
        wide = 17 + 2 * t["sternum"]
        canvas.disc(x, y, wide, 6.5, 0.8 * shell)
        canvas.disc(x, y, wide - 2, 4.7, 130 + 20 * t["bone"])

    def _spine(self, shell: np.ndarray) -> None:
        t, canvas = self.traits, self.canvas
        x, y = self.x0, self.spine_y
        size = 1 + 0.06 * t["vertebra"]
        marrow = 165 + 30 * t["bone"]
        for side in (-1, 1):  # muscles along the spine
            canvas.disc(x + side * 21, y + 29, 19, 12, 52, side * 0.25)
        for side in (-1, 1):
            canvas.disc(x + side * 25, y + 16, 17, 4.6, shell, side * 0.32)
            canvas.disc(x + side * 25, y + 16, 14.5, 2.6, marrow, side * 0.32)
            canvas.disc(x + side * 11.5, y + 15, 4.5, 8, shell)
            canvas.disc(x + side * 8, y + 26, 4, 11, shell, side * 0.85)
        canvas.disc(x, y + 38, 3.6, 13, shell)
        canvas.disc(x, y + 38, 1.8, 11, marrow)
        canvas.disc(x, y + 19.5, 9.5, 8.5, 25)
        canvas.disc(x, y + 19.5, 5, 4.5, 40)
        canvas.disc(x, y, 18 * size, 15 * size, shell)
        canvas.disc(x, y, 16.2 * size, 13.2 * size, marrow)


def _fields(rngs: list[np.random.Generator], side: int) -> np.ndarray:
    """Smooth random fields of unit variance, (slices, side, side)."""
    fields = np.zeros((len(rngs), side, side), np.float32)
    for coarse, weight in ((side // 8, 0.75), (side // 3, 0.66)):
        up = _upsampler(coarse, side)
        noise = np.stack(
            [r.standard_normal((coarse, coarse), np.float32) for r in rngs]
        )
        fields += np.float32(weight) * (up @ noise @ up.T)
    return fields


@functools.cache
def _upsampler(coarse: int, side: int) -> np.ndarray:
    """(side, coarse) smooth interpolation whose rows have unit length."""
    where = (np.arange(side) + 0.5) * coarse / side - 0.5
    weights = np.exp(-0.5 * ((where[:, None] - np.arange(coarse)) / 0.6) ** 2)
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return weights.astype(np.float32)


def _tree(rng: np.random.Generator) -> np.ndarray:
    """A patient's lung vessels as (points, 4): x, y, z and radius in mm.

    From each hilum eleven vessels leave; each forks six times, thinner and shorter.
    """
    side = np.repeat([-1.0, 1.0], 11)
    turn = np.tile(np.linspace(-1.35, 1.35, 11), 2) + 0.15 * rng.standard_normal(22)
    rise = 0.8 * rng.standard_normal(22)
    heading = np.stack([side * np.cos(turn), np.sin(turn), rise], axis=1)
    start = np.stack([side * 40.0, np.full(22, 9.0), np.full(22, 38.0)], axis=1)
    start[:, 2] += 18 * rng.standard_normal(22)
    radius = 2.6 * np.exp(0.15 * rng.standard_normal(22))
    points = []
    for length in (22, 18, 15, 12, 11, 9, 7):
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        long = length * np.exp(0.2 * rng.standard_normal(len(start)))
        steps = np.linspace(0, 1, int(length / 1.2))
        along = start[:, None] + steps[:, None] * (long[:, None] * heading)[:, None]
        sag = (
            1.0
            * np.sin(np.pi * steps)[:, None]
            * rng.standard_normal((len(start), 1, 3))
        )
        along = along + sag
        thin = radius[:, None] * (1 - 0.22 * steps)
        points.append(np.concatenate([along, thin[..., None]], axis=2).reshape(-1, 4))
        start = np.repeat(along[:, -1], 2, axis=0)
        fork = 0.55 * rng.standard_normal((len(start) // 2, 3))
        heading = np.repeat(heading, 2, axis=0) + np.repeat(fork, 2, axis=0) * np.tile(
            [[1.0], [-1.0]], (len(fork), 1)
        )
        radius = (
            np.repeat(radius, 2) * 0.83 * np.exp(0.1 * rng.standard_normal(len(start)))
        )
    return np.concatenate(points)


def _cut(tree: np.ndarray, height_mm: float, number: int) -> np.ndarray:
    """The part of a tree that a slice meets, as `_Chest._cut_tree` takes it."""
    away = np.abs(tree[:, 2] - height_mm)
    reach = THICKNESS_MM / 2 + tree[:, 3]
    near = tree[away < reach]
    away = away[away < reach]
    seen = np.minimum(
        np.minimum(THICKNESS_MM / 2, near[:, 3] - away)
        + np.minimum(THICKNESS_MM / 2, near[:, 3] + away),
        THICKNESS_MM,
    )
    share = np.clip(seen / THICKNESS_MM, 0, 1) ** 0.6
    return np.column_stack([np.full(len(near), number), near[:, :2], near[:, 3], share])


# The opacities ------------------------------------------------------------------------


def _draw_opacities(
    rng: np.random.Generator, density: Density
) -> list[tuple[int, float, float]]:
    """Kind, diameter and contrast of each of a Poisson number of opacities."""
    drawn = []
    for _ in range(rng.poisson(density.rate)):
        kind = int(np.searchsorted(np.cumsum(density.kinds), rng.random()))
        kind = min(kind, len(KINDS) - 1)
        size = density.median_mm[kind] * np.exp(
            density.sigma_log * rng.standard_normal()
        )
        contrast = (
            density.contrast_hu[kind]
            + density.contrast_sd[kind] * rng.standard_normal()
        )
        drawn.append((kind, float(size), float(contrast)))
    return drawn


def log_density(
    density: Density, kind: np.ndarray, diameter_mm: np.ndarray, contrast_hu: np.ndarray
) -> np.ndarray:
    """ln g(kind, log diameter, contrast), one number an opacity.

    Parameters
    ----------
    density
        Whose; its rate plays no part.
    kind
        (opacities,) numbers in `KINDS`.
    diameter_mm, contrast_hu
        (opacities,)

    Returns
    -------
    np.ndarray
        (opacities,) nats.
    """
    kind = np.asarray(kind, int)
    size = np.log(np.asarray(diameter_mm, float) / np.take(density.median_mm, kind))
    size = size / density.sigma_log
    sd = np.take(density.contrast_sd, kind)
    contrast = (
        np.asarray(contrast_hu, float) - np.take(density.contrast_hu, kind)
    ) / sd
    constant = np.log(2 * np.pi * density.sigma_log * sd)
    prior = np.log(np.take(density.kinds, kind))
    return prior - constant - (size**2 + contrast**2) / 2


def log_ratio(
    hospital: str, kind: np.ndarray, diameter_mm: np.ndarray, contrast_hu: np.ndarray
) -> float:
    """ln P(opacities of a slice | abnormal) - ln P(the same | normal), exact.

    Both classes carry benign opacities, a Poisson process of rate L0 and density g0;
    the abnormal class also one of L1 and g1. So the ratio is
    sum ln(1 + L1 g1 / (L0 g0)) - L1.
    """
    here = HOSPITALS[hospital]
    gain = np.log(here.abnormal.rate / here.benign.rate)
    gain = gain + log_density(here.abnormal, kind, diameter_mm, contrast_hu)
    gain = gain - log_density(here.benign, kind, diameter_mm, contrast_hu)
    return float(np.logaddexp(0, gain).sum() - here.abnormal.rate)


# Softness of the edge in mm, and how wavy the outline is, by kind.
_EDGE_MM = (5.0, 2.6, 1.3)
_WAVES = (0.11, 0.09, 0.035)
_DISC = np.stack(
    [
        np.sqrt((np.arange(48) + 0.5) / 48) * np.cos(np.arange(48) * 2.39996),
        np.sqrt((np.arange(48) + 0.5) / 48) * np.sin(np.arange(48) * 2.39996),
    ]
)


def _place(
    rng: np.random.Generator, free: np.ndarray, radius: float
) -> tuple[float, float]:
    """Row and column (fine pixels) of an opacity: in the lung, apart from others."""
    lung = np.argwhere(free[::3, ::3]) * 3
    if len(lung) == 0:
        lung = np.array([[free.shape[0] // 2, free.shape[1] // 2]])
    middles = lung[rng.integers(len(lung), size=24)] + rng.random((24, 2)) * 2 - 1
    around = np.rint(middles[:, :, None] + radius * _DISC).astype(int)
    np.clip(around, 0, free.shape[0] - 1, out=around)
    share = free[around[:, 0], around[:, 1]].mean(axis=1)
    good = np.flatnonzero(share > 0.85)
    row, column = middles[good[0] if len(good) else share.argmax()]
    return float(row), float(column)


def _shape(
    rng: np.random.Generator,
    kind: int,
    radius: float,
    row: float,
    column: float,
    side: int,
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A window, and the depth of its pixels inside a wavy outline of the given area."""
    orders = np.arange(2, 7)
    waves = _WAVES[kind] * rng.standard_normal(5) / np.sqrt(orders - 1)
    phases = 2 * np.pi * rng.random(5)
    # The area of r(1 + waves) is pi r^2 (1 + half the sum of their squares).
    radius = radius / np.sqrt(1 + (waves**2).sum() / 2)
    reach = radius * (1 + np.abs(waves).sum()) + 6
    rows = slice(max(int(row - reach), 0), min(int(row + reach) + 2, side))
    columns = slice(max(int(column - reach), 0), min(int(column + reach) + 2, side))
    south = np.arange(rows.start, rows.stop)[:, None] - row
    east = np.arange(columns.start, columns.stop) - column
    angle = np.arctan2(south, east)[..., None]
    outline = radius * (1 + (waves * np.cos(orders * angle + phases)).sum(axis=-1))
    return (rows, columns), outline - np.hypot(south, east)


def _paint_opacities(
    rng: np.random.Generator,
    drawn: list[tuple[int, float, float]],
    chest: _Chest,
    number: int,
) -> tuple[list[Opacity], np.ndarray]:
    """Paint the opacities of one slice; returns them with places, and a fine mask."""
    canvas = chest.canvas
    pixel, side = float(canvas.pixel[number]), canvas.side
    lung = chest.lung[number]
    free = lung > 0.5
    mask = np.zeros((side, side), np.uint8)
    painted = []
    half = (side - 1) / 2
    for kind, size, contrast in drawn:
        radius = size / 2 / pixel
        row, column = _place(rng, free, radius)
        place, depth = _shape(rng, kind, radius, row, column, side)
        edge = min(_EDGE_MM[kind], 0.5 * size) / pixel
        profile = np.clip(depth / edge + 0.5, 0, 1)
        grain = rng.standard_normal(depth.shape)
        grain = scipy.ndimage.gaussian_filter(grain, 1.6) * 5.6
        rough = (0.10, 0.06, 0.02)[kind]
        added = profile * contrast * (1 + rough * grain)
        here = canvas.hu[number][place]
        filled = np.maximum(here, chest.aerated[number][place] + added)
        here += lung[place] * (filled - here)
        inside = (depth > 0) & (lung[place] > 0.5)
        mask[place][inside] = kind + 1
        free[place] &= ~(depth > -2)
        painted.append(
            Opacity(
                KINDS[kind],
                (column - half) * pixel,
                (row - half) * pixel,
                size,
                contrast,
            )
        )
    return painted, mask


# The scanner --------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _projector(size: int) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Line integrals of a fine slice, and the sum of filtered views over an image.

    The first is (views * bins, fine pixels): Joseph's rule, in fine pixels. The second
    is (pixels, views * bins): linear interpolation in each view. Both stop at the
    largest circle.
    """
    side = FINER * size
    half = (side - 1) / 2
    steps = np.arange(side, dtype=np.float32) - half
    angles = np.arange(VIEWS) * (np.pi / VIEWS)
    most = VIEWS * side * side * 2
    weights, columns = np.empty(most, np.float32), np.empty(most, np.int32)
    counts, used = [], 0
    for angle in angles:
        cos, sin = np.cos(angle), np.sin(angle)
        # The ray of bin s: x cos + y sin = s. Walk along the steeper axis.
        along_y = abs(cos) >= abs(sin)
        lead, lag = (cos, sin) if along_y else (sin, cos)
        cross = (steps[:, None] - steps[None] * lag) / lead  # (bins, steps)
        low = np.floor(cross + half).astype(np.int32)
        upper = (cross + half - low).astype(np.float32)
        inside = (cross**2 + steps[None] ** 2 < half**2) & (low >= 0) & (low < side - 1)
        step = np.broadcast_to(np.arange(side, dtype=np.int32), cross.shape)
        if along_y:
            first, second = step * side + low, step * side + low + 1
        else:
            first, second = low * side + step, (low + 1) * side + step
        length = np.float32(1 / abs(lead))
        pair = np.stack([(1 - upper) * length, upper * length], axis=-1)
        part = slice(used, used + 2 * int(inside.sum()))
        used = part.stop
        weights[part] = pair[inside].ravel()
        columns[part] = np.stack([first, second], axis=-1)[inside].ravel()
        counts.append(2 * inside.sum(axis=1))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    forward = scipy.sparse.csr_array(
        (weights[:used], columns[:used], ends), shape=(VIEWS * side, side * side)
    )
    return forward, _back_projector(size, angles)


def _back_projector(size: int, angles: np.ndarray) -> scipy.sparse.csr_array:
    side = FINER * size
    steps = ((np.arange(size) - (size - 1) / 2) * FINER).astype(np.float32)
    x, y = (a.ravel() for a in np.meshgrid(steps, steps))
    inside = x**2 + y**2 < ((side - 1) / 2 - 1) ** 2
    x, y = x[inside], y[inside]
    place = x[:, None] * np.cos(angles) + y[:, None] * np.sin(angles) + (side - 1) / 2
    low = np.floor(place).astype(np.int32)
    upper = (place - low).astype(np.float32)
    first = low + side * np.arange(VIEWS, dtype=np.int32)
    columns = np.stack([first, first + 1], axis=-1)
    weights = np.stack([1 - upper, upper], axis=-1).astype(np.float32)
    counts = np.where(inside, 2 * VIEWS, 0)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return scipy.sparse.csr_array(
        (weights.ravel(), columns.ravel().astype(np.int32), ends),
        shape=(size * size, VIEWS * side),
    )


def project(hu: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Line integrals of the attenuation, without noise.

    Parameters
    ----------
    hu
        (slices, 2 height, 2 width) CT numbers on the fine grid.
    spacing_mm
        (slices,) side of an IMAGE pixel; a fine one is half of it.

    Returns
    -------
    np.ndarray
        (slices, views, bins) float32, no unit.
    """
    count, side, _ = hu.shape
    forward, _ = _projector(side // FINER)
    per_mm = np.float32(WATER) * (1 + hu.reshape(count, -1).T * np.float32(1e-3))
    sums = forward @ np.ascontiguousarray(per_mm)
    pixel = np.asarray(spacing_mm, np.float32) / FINER
    return np.ascontiguousarray((sums * pixel).T).reshape(count, VIEWS, side)


def _filter(bins: int, cutoff: float, boost: float) -> np.ndarray:
    """The ramp, from its exact values in space, times the kernel's window."""
    length = 2 * bins
    n = np.fft.fftfreq(length, 1 / length)
    odd = n % 2 != 0
    ramp = np.zeros(length)
    ramp[0] = 0.25
    ramp[odd] = -1 / (np.pi * n[odd]) ** 2
    response = np.fft.rfft(ramp).real
    share = np.fft.rfftfreq(length) * 2 / cutoff
    window = np.where(share < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(share, 1)), 0)
    window = window * (1 + boost * 4 * share * np.clip(1 - share, 0, 1) * 1.6)
    return (response * window).astype(np.float32)


def reconstruct(
    projections: np.ndarray,
    spacing_mm: np.ndarray,
    cutoff: ArrayLike = 0.8,
    boost: ArrayLike = 0.0,
) -> np.ndarray:
    """Filtered back-projection.

    Parameters
    ----------
    projections
        (slices, views, bins) line integrals.
    spacing_mm
        (slices,) side of an image pixel.
    cutoff, boost
        The kernel, as in `Scanner`; one for all or one for each slice.

    Returns
    -------
    np.ndarray
        (slices, height, width) float32, HU; air outside the circle.
    """
    count, views, bins = projections.shape
    size = bins // FINER
    _, back = _projector(size)
    cutoff, boost = (np.broadcast_to(v, count) for v in (cutoff, boost))
    response = np.stack(
        [_filter(bins, c, b) for c, b in zip(cutoff, boost, strict=True)]
    )[:, None]
    spectrum = scipy.fft.rfft(projections, 2 * bins, axis=2) * response
    filtered = scipy.fft.irfft(spectrum, 2 * bins, axis=2)[:, :, :bins]
    columns = np.ascontiguousarray(filtered.reshape(count, -1).T.astype(np.float32))
    pixel = np.asarray(spacing_mm, np.float32) / FINER
    per_mm = (back @ columns) * (np.float32(np.pi / views) / pixel)
    hu = 1000 * (per_mm / np.float32(WATER) - 1)
    return np.ascontiguousarray(hu.T).reshape(count, size, size)


def count_photons(
    projections: np.ndarray, photons: float, rng: np.random.Generator
) -> np.ndarray:
    """Projections as measured: ln(photons / counts), counts Poisson and at least 1."""
    counts = rng.poisson(photons * np.exp(-projections.astype(np.float64)))
    return np.log(photons / np.maximum(counts, 1)).astype(np.float32)


# The cohort ---------------------------------------------------------------------------


def draw(
    patients: int,
    seed: int,
    hospital: str = "A",
    slices: int = 3,
    size: int = 128,
    first_patient: int = 0,
    prevalence: float = 0.4,
) -> Cohort:
    """Draw patients and scan them.

    A patient depends on seed, hospital and number alone, so ``first_patient`` gives
    others of the same world: two draws whose numbers do not overlap share nobody.

    Parameters
    ----------
    patients
        How many.
    seed
        Of the world; other seeds have other patients.
    hospital
        ``"A"``, ``"B"`` or ``"source"``.
    slices
        Of each patient, `SLICE_MM` apart.
    size
        Height and width of an image.
    first_patient
        Number of the first one.
    prevalence
        Probability that a patient is abnormal.

    Returns
    -------
    Cohort
        ``patients * slices`` rows, those of a patient one after another.

    Raises
    ------
    MedlmError
        If an argument is out of range.
    """
    _check(patients, seed, hospital, slices, size, first_patient, prevalence)
    chosen = (int(patients), int(seed), hospital, int(slices), int(size))
    rest = (int(first_patient), float(prevalence))
    return _cached(lambda: _scan(*chosen, *rest), _key(hospital, *chosen, *rest))


def _check(
    patients: int,
    seed: int,
    hospital: str,
    slices: int,
    size: int,
    first_patient: int,
    prevalence: float,
) -> None:
    if hospital not in HOSPITALS:
        raise MedlmError(
            f"There is no hospital {hospital!r}; expected {', '.join(HOSPITALS)}."
        )
    least = {"patients": 1, "slices": 1, "seed": 0, "first_patient": 0}
    given = {
        "patients": patients,
        "slices": slices,
        "seed": seed,
        "first_patient": first_patient,
    }
    for name, low in least.items():
        value = given[name]
        if not isinstance(value, (int, np.integer)) or value < low:
            raise MedlmError(
                f"{name} is {value!r}; expected a whole number, at least {low}."
            )
    if slices > 6:
        raise MedlmError(f"slices is {slices}; expected 1 to 6: the chest ends there.")
    if not isinstance(size, (int, np.integer)) or not 32 <= size <= 192 or size % 8:
        raise MedlmError(f"size is {size!r}; expected 32 to 192, a multiple of 8.")
    if not 0 <= prevalence <= 1:
        raise MedlmError(f"prevalence is {prevalence}; expected 0 to 1.")


def _scan(
    patients: int,
    seed: int,
    hospital: str,
    slices: int,
    size: int,
    first_patient: int,
    prevalence: float,
) -> Cohort:
    _projector(size)  # once, before threads ask for it
    code = list(HOSPITALS).index(hospital)
    numbers = np.arange(first_patient, first_patient + patients)
    step = max(1, BATCH // slices)
    groups = [numbers[i : i + step] for i in range(0, patients, step)]

    def scan(group: np.ndarray) -> Cohort:
        return _scan_group(group, seed, hospital, code, slices, size, prevalence)

    with ThreadPoolExecutor(min(cores(), THREADS)) as pool:
        parts = list(pool.map(scan, groups))
    columns = [f.name for f in dataclasses.fields(Cohort) if f.name != "opacities"]
    joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in columns}
    return Cohort(**joined, opacities=tuple(o for p in parts for o in p.opacities))


def _scan_group(
    group: np.ndarray,
    seed: int,
    hospital: str,
    code: int,
    slices: int,
    size: int,
    prevalence: float,
) -> Cohort:
    """Draw, paint, project and reconstruct a few patients."""
    here = HOSPITALS[hospital]
    side = FINER * size
    names, labels, scanners, doses = [], [], [], []
    traits, heights, rngs, trees, drawn = [], [], [], [], []
    for patient in group:
        rng = np.random.default_rng([VERSION, seed, code, int(patient)])
        label = int(rng.random() < prevalence)
        scanner = list(here.scanners)[rng.integers(len(here.scanners))]
        dose = here.scanners[scanner].photons
        photons = dose[rng.integers(len(dose))]
        trait = np.clip(rng.standard_normal(len(_TRAITS)), -2, 2)
        tree = _tree(rng)
        top = 6 + 45 * rng.random()
        for number, own in enumerate(rng.spawn(slices)):
            names.append(f"{hospital}{seed}-{patient:05d}")
            labels.append(label)
            scanners.append(scanner)
            doses.append(photons)
            # Breath and position differ a little from slice to slice.
            traits.append(trait + 0.08 * own.standard_normal(len(_TRAITS)))
            heights.append(top + SLICE_MM * number)
            trees.append(_cut(tree, heights[-1], len(names) - 1))
            sorts = [here.benign, here.abnormal][: 1 + label]
            some = [o for d in sorts for o in _draw_opacities(own, d)]
            # Largest first: neither order nor place may tell which sort one is of.
            drawn.append(sorted(some, key=lambda o: -o[1]))
            rngs.append(own)
    columns = np.array(traits).T
    columns[_TRAITS.index("enhanced")] = np.repeat(
        columns[_TRAITS.index("enhanced"), ::slices], slices
    )
    machine = [here.scanners[name] for name in scanners]
    spacing = np.array([m.field_mm / size for m in machine])
    chest = _Chest(
        dict(zip(_TRAITS, columns, strict=True)),
        np.array(heights),
        spacing / FINER,
        side,
    )
    chest.paint(rngs, np.concatenate(trees))
    painted = [
        _paint_opacities(rng, some, chest, number)
        for number, (rng, some) in enumerate(zip(rngs, drawn, strict=True))
    ]
    sums = project(chest.canvas.hu, spacing)
    measured = np.stack(
        [count_photons(s, d, r) for s, d, r in zip(sums, doses, rngs, strict=True)]
    )
    hu = reconstruct(
        measured, spacing, [m.cutoff for m in machine], [m.boost for m in machine]
    )
    fine_lung = chest.lung.reshape(len(names), size, FINER, size, FINER)
    return Cohort(
        images=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        patient=np.array(names),
        label=np.array(labels),
        scanner=np.array(scanners),
        dose=np.array(doses, float),
        lesions=_coarse_mask(np.stack([mask for _, mask in painted]), size),
        lungs=fine_lung.mean(axis=(2, 4)) >= 0.5,
        opacities=tuple(tuple(some) for some, _ in painted),
        log_ratio=np.array([_ratio_of(hospital, some) for some in drawn]),
        spacing_mm=spacing,
    )


def _ratio_of(hospital: str, drawn: list[tuple[int, float, float]]) -> float:
    kind, size, contrast = np.array(drawn).reshape(-1, 3).T
    return log_ratio(hospital, kind, size, contrast)


def _coarse_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The kind that fills at least half of an image pixel."""
    coarse = np.zeros((len(mask), size, size), np.uint8)
    parts = mask.reshape(len(mask), size, FINER, size, FINER)
    for code in range(1, len(KINDS) + 1):
        coarse[(parts == code).mean(axis=(2, 4)) >= 0.5] = code
    return coarse


def patient_log_ratio(cohort: Cohort) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The exact log likelihood ratio of each patient.

    Given the label, opacities of a patient's slices are drawn independently, so the
    patient's ratio is the sum over the slices.

    Returns
    -------
    tuple of np.ndarray
        (patients,) names, labels and ratios, in the order of first appearance.
    """
    names, first, group = np.unique(
        cohort.patient, return_index=True, return_inverse=True
    )
    total = np.bincount(group, cohort.log_ratio)
    order = np.argsort(first)
    return names[order], cohort.label[first[order]], total[order]


# Readers and ceilings -----------------------------------------------------------------


def draw_log_ratios(
    patients: int,
    seed: int,
    hospital: str = "A",
    slices: int = 3,
    prevalence: float = 0.4,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and exact ratios of patients whom nobody scans: for a precise ceiling.

    Opacities are drawn from the same densities as in `draw`, without images, so tens of
    thousands of patients take a second.

    Returns
    -------
    tuple of np.ndarray
        (patients,) labels, and log likelihood ratios over all slices of a patient.
    """
    _check(patients, seed, hospital, slices, 32, 0, prevalence)
    here = HOSPITALS[hospital]
    rng = np.random.default_rng(seed)
    label = (rng.random(patients) < prevalence).astype(int)
    ratio = np.full(patients, -here.abnormal.rate * slices)
    gain = np.log(here.abnormal.rate / here.benign.rate)
    for density, who in (
        (here.benign, np.arange(patients)),
        (here.abnormal, np.flatnonzero(label)),
    ):
        # The slices of a patient together are one Poisson process.
        owner = np.repeat(who, rng.poisson(density.rate * slices, len(who)))
        kind = rng.choice(len(KINDS), len(owner), p=density.kinds)
        size = np.take(density.median_mm, kind)
        size = size * np.exp(density.sigma_log * rng.standard_normal(len(owner)))
        contrast = rng.normal(
            np.take(density.contrast_hu, kind), np.take(density.contrast_sd, kind)
        )
        more = log_density(here.abnormal, kind, size, contrast)
        less = log_density(here.benign, kind, size, contrast)
        np.add.at(ratio, owner, np.logaddexp(0, gain + more - less))
    return label, ratio


def reader_given_masks(cohort: Cohort) -> np.ndarray:
    """The score of a reader who is told where each opacity is and of what kind.

    It measures diameter and contrast of each in the noisy image, and puts them into
    the exact ratio. What it loses against `Cohort.log_ratio` is the price of measuring;
    what a network loses against it is the price of finding and of learning.

    Returns
    -------
    np.ndarray
        (slices,) log likelihood ratios, in nats; higher = more abnormal.
    """
    scores = []
    for row in range(len(cohort)):
        kind, size, contrast = _measured(cohort, row)
        hospital = hospital_of(str(cohort.scanner[row]))
        scores.append(log_ratio(hospital, kind, size, contrast))
    return np.array(scores)


def hospital_of(scanner: str) -> str:
    """The hospital that has this scanner."""
    for name, hospital in HOSPITALS.items():
        if scanner in hospital.scanners:
            return name
    every = ", ".join(s for h in HOSPITALS.values() for s in h.scanners)
    raise MedlmError(f"No hospital has the scanner {scanner!r}; expected {every}.")


def _measured(cohort: Cohort, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind, diameter and contrast of each opacity, from mask and image."""
    image, mask = cohort.images[row].astype(float), cohort.lesions[row]
    free = cohort.lungs[row] & (mask == 0)
    lung = np.median(image[free]) if free.any() else -860.0
    found = []
    for kind in range(len(KINDS)):
        parts, _ = scipy.ndimage.label(mask == kind + 1, np.ones((3, 3)))
        for number, place in enumerate(scipy.ndimage.find_objects(parts), start=1):
            inside = parts == number
            core = scipy.ndimage.binary_erosion(inside)
            core = core if core.sum() >= 4 else inside
            beside = free[place[0]]
            around = np.median(image[place[0]][beside]) if beside.any() else lung
            area = inside.sum() * cohort.spacing_mm[row] ** 2
            size = 2 * np.sqrt(area / np.pi)
            found.append((kind, size, np.median(image[core]) - around))
    columns = np.array(found, float).reshape(-1, 3).T
    return columns[0].astype(int), columns[1], columns[2]


def largest_opacity(cohort: Cohort) -> np.ndarray:
    """(slices,) diameter in mm of the largest opacity in the true mask; 0 if none."""
    sizes = (_measured(cohort, row)[1] for row in range(len(cohort)))
    return np.array([size.max(initial=0) for size in sizes])


def mean_lung_hu(cohort: Cohort) -> np.ndarray:
    """(slices,) mean HU inside the lungs: a baseline that looks at nothing in them."""
    inside = cohort.lungs.sum(axis=(1, 2))
    total = np.where(cohort.lungs, cohort.images, 0).sum(axis=(1, 2), dtype=np.int64)
    return total / np.maximum(inside, 1)


def known_signal_auc(
    hu: np.ndarray, added_hu: np.ndarray, spacing_mm: float, photons: float
) -> float:
    """The best AUROC for a signal whose place, size and background are all known.

    Counts are Poisson, so a change dp of the projections p is seen with
    SNR^2 = photons * sum(exp(-p) dp^2), to first order; then AUROC = Phi(SNR / sqrt 2).

    Parameters
    ----------
    hu, added_hu
        (2 height, 2 width) the slice on the fine grid, and what the signal adds.
    spacing_mm
        Side of an image pixel.
    photons
        That enter towards one bin.

    Returns
    -------
    float
        Of a reader of the counts; no reader of the image can do better.
    """
    both = np.stack([hu, hu + added_hu]).astype(np.float32)
    before, after = project(both, np.full(2, spacing_mm)).astype(np.float64)
    snr = np.sqrt(photons * (np.exp(-before) * (after - before) ** 2).sum())
    return float(scipy.special.ndtr(snr / np.sqrt(2)))


_LETTER = ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#")


def with_marker(
    cohort: Cohort, share_abnormal: float, share_normal: float, seed: int
) -> Cohort:
    """The same slices, some with a small dense letter R in the corner, off the body.

    Such a letter is laid beside the patient. If some patients get it more often than
    others, it tells the label.

    Parameters
    ----------
    share_abnormal, share_normal
        Probabilities that a patient carries it, in all slices.
    seed
        Of the choice.

    Returns
    -------
    Cohort
        With new images; all else is shared.
    """
    for share in (share_abnormal, share_normal):
        if not 0 <= share <= 1:
            raise MedlmError(f"The share with a marker is {share}; expected 0 to 1.")
    names, first, group = np.unique(
        cohort.patient, return_index=True, return_inverse=True
    )
    shares = np.where(cohort.label[first] == 1, share_abnormal, share_normal)
    marked = (np.random.default_rng(seed).random(len(names)) < shares)[group]
    scale = max(1, cohort.images.shape[1] // 64)
    letter = np.array([[c == "#" for c in row] for row in _LETTER])
    letter = np.kron(letter, np.ones((scale, scale), bool))
    images = cohort.images.copy()
    corner = images[:, 2 * scale :, 2 * scale :][:, : len(letter), : letter.shape[1]]
    corner[marked[:, None, None] & letter] = 1000
    return dataclasses.replace(cohort, images=images)


# The cache ----------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where cohorts are kept: ``MEDLM_CACHE_DIR``, or this user's cache."""
    chosen = os.environ.get("MEDLM_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / "phantom"
    return platformdirs.user_cache_path("medlm", appauthor=False) / "phantom"


def _key(hospital: str, *parameters: Any) -> str:
    """The name of a cohort: a hash of all that its pixels depend on."""
    about = {
        "version": VERSION,
        "hospital": dataclasses.asdict(HOSPITALS[hospital]),
        "parameters": parameters,
        "scanner": (WATER, VIEWS, FINER, SLICE_MM, THICKNESS_MM),
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _cached(make: Callable[[], Cohort], key: str) -> Cohort:
    """From the cache if it is there and whole; else made, and kept if that can be."""
    folder = cache_dir()
    found = _read(folder / f"{key}.npz")
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{key}.lock")
        lock.acquire()
    except OSError:  # nowhere to keep it
        return make()
    try:
        # Somebody else may have made it while we waited.
        found = _read(folder / f"{key}.npz", says=True)
        if found is None:
            found = make()
            with contextlib.suppress(OSError):
                _write(found, folder / f"{key}.npz")
        return found
    finally:
        lock.release()


def _read(path: Path, says: bool = False) -> Cohort | None:
    """A kept cohort whose bytes are those that were written, else None."""
    try:
        content = path.read_bytes()
        wanted = path.with_suffix(".sha256").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        content, wanted = b"", "missing"
    if content and hashlib.sha256(content).hexdigest() == wanted:
        return _unpack(content)
    if says and path.exists():
        print(f"{path} is damaged; it is made again.", file=sys.stderr)
    return None


def _write(cohort: Cohort, path: Path) -> None:
    """Keep a cohort: written beside, then renamed; its hash comes last."""
    content = _pack(cohort)
    digest = hashlib.sha256(content).hexdigest().encode("ascii")
    for target, data in ((path, content), (path.with_suffix(".sha256"), digest)):
        number, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{target.name}-")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def _pack(cohort: Cohort) -> memoryview:
    arrays = {f.name: getattr(cohort, f.name) for f in dataclasses.fields(cohort)}
    opacities = arrays.pop("opacities")
    arrays["lungs"] = np.packbits(arrays["lungs"], axis=-1)
    arrays["counts"] = np.array([len(some) for some in opacities])
    flat = [o for some in opacities for o in some]
    arrays["kinds"] = np.array([KINDS.index(o.kind) for o in flat], int)
    arrays["numbers"] = np.array(
        [(o.x_mm, o.y_mm, o.diameter_mm, o.contrast_hu) for o in flat], float
    ).reshape(-1, 4)
    page = io.BytesIO()
    np.savez(page, **arrays)
    return page.getbuffer()


def _unpack(content: bytes) -> Cohort:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    arrays["lungs"] = np.unpackbits(arrays["lungs"], axis=-1).astype(bool)
    counts, kinds = arrays.pop("counts"), arrays.pop("kinds")
    numbers = arrays.pop("numbers").tolist()
    flat = [Opacity(KINDS[k], *row) for k, row in zip(kinds, numbers, strict=True)]
    ends = np.cumsum(counts)
    opacities = tuple(
        tuple(flat[end - count : end]) for end, count in zip(ends, counts, strict=True)
    )
    return Cohort(**arrays, opacities=opacities)
