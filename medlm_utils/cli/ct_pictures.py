"""Pictures for a report on CT images: what a network sees, and what it looked at.

Each becomes a small PNG that stands in the page itself.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medlm_utils.cli import ct_results

if TYPE_CHECKING:
    from medlm_utils import ct, resnet

SIDE = 160  # pixels of a picture in the page
EXAMPLES = 12  # of what the network sees, over all classes
ERRORS = 6  # patients
RIGHT = 3  # patients, to compare the errors with
MOST_CHARACTERS = 1_100_000  # of all pictures together
_COLOURS = 48  # of a map over an image: enough, and a quarter of the bytes


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Parameters
    ----------
    group
        ``"seen"``, ``"wrong"`` or ``"right"``.
    source
        A data URI.
    words
        What it shows.
    """

    group: str
    source: str
    words: str


def of_part(
    model: resnet.ResNet18,
    images: np.ndarray,
    window: ct.Window | None,
    found: ct_results.Answers,
    classes: Sequence[str],
    threshold: float | None,
) -> list[Picture]:
    """What the network sees of a part, its worst errors, and where it looked.

    Parameters
    ----------
    model
        After its training.
    images
        (slices, height, width) of the part.
    window
        As in `ct.to_tensor`.
    found
        What the model says of these slices.
    classes, threshold
        As in `ct_results.measured`.
    """
    pictures = [_seen(images[row], window, classes[found.label[row]])
                for row in _examples(found.label, len(classes))]  # fmt: skip
    chosen = _chosen(found, threshold)
    if chosen:
        maps = _maps(model, images, window, [(row, to) for _, row, to in chosen])
        for (group, row, to), grey, heat in zip(chosen, *maps, strict=True):
            words = (
                f"Truth: {classes[found.label[row]]}. {classes[to]} "
                f"{found.shares[row, to]:.2f} for this slice; what speaks for it is "
                "red."
            )
            pictures.append(Picture(group, _beside(grey, heat), words))
    return _not_too_many(pictures)


def _not_too_many(pictures: list[Picture]) -> list[Picture]:
    kept, left = [], MOST_CHARACTERS
    for picture in pictures:
        left -= len(picture.source)
        if left < 0:
            break
        kept.append(picture)
    return kept


def _examples(label: np.ndarray, classes: int) -> list[int]:
    """A few rows of each class, spread over the part."""
    each = max(1, EXAMPLES // classes)
    rows = []
    for number in range(classes):
        of_class = np.flatnonzero(label == number)
        places = np.linspace(0, len(of_class) - 1, min(each, len(of_class)))
        rows += of_class[np.round(places).astype(int)].tolist()
    return rows[: 2 * EXAMPLES]


def _seen(image: np.ndarray, window: ct.Window | None, name: str) -> Picture:
    return Picture("seen", _uri(_large(_grey(image, window))), name)


def _chosen(
    found: ct_results.Answers, threshold: float | None
) -> list[tuple[str, int, int]]:
    """Group, row and class of the slices whose map is drawn.

    An error is a patient; of him the slice is shown that speaks most for what was said.
    """
    patients = found.patients
    named = ct_results.called(patients.shares, threshold)
    truth = patients.shares[np.arange(len(named)), patients.label]
    order = np.argsort(truth, kind="stable")
    wrong = [n for n in order if named[n] != patients.label[n]][:ERRORS]
    right = [n for n in order[::-1] if named[n] == patients.label[n] > 0][:RIGHT]
    chosen = []
    for group, numbers in (("wrong", wrong), ("right", right)):
        for number in numbers:
            rows = np.flatnonzero(found.patient == patients.names[number])
            of_class = found.shares[rows, named[number]]
            chosen.append((group, int(rows[of_class.argmax()]), int(named[number])))
    return chosen


def _maps(
    model: resnet.ResNet18,
    images: np.ndarray,
    window: ct.Window | None,
    asked: list[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, height, width) images in grey 0 to 1, and Grad-CAM of each."""
    import torch

    from medlm_utils import ct, resnet

    rows, classes = (list(column) for column in zip(*asked, strict=True))
    tensor = ct.to_tensor(images[rows], window)
    maps = resnet.grad_cam(model, tensor, torch.tensor(classes))
    return tensor[:, 0].numpy(), maps.numpy()


# Bytes --------------------------------------------------------------------------------


def _grey(image: np.ndarray, window: ct.Window | None) -> np.ndarray:
    """(height, width), 0 to 1, as the network gets it."""
    from medlm_utils import ct

    return ct.to_tensor(image, window)[0, 0].numpy()


def _large(grey: np.ndarray) -> np.ndarray:
    """The same picture, uint8, its longer side `SIDE` pixels."""
    from PIL import Image

    drawn = Image.fromarray(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8))
    scale = SIDE / max(drawn.size)
    width, height = (max(1, round(scale * side)) for side in drawn.size)
    return np.asarray(drawn.resize((width, height), Image.Resampling.BILINEAR))


def _beside(grey: np.ndarray, heat: np.ndarray) -> str:
    """An image and, beside it, the same one under its map in red."""
    plain, warm = _large(grey), _large(heat).astype(float)[..., None] / 255
    colours = np.repeat(plain[..., None], 3, axis=2).astype(float)
    red = np.array([255.0, 60.0, 30.0])
    under = colours + 0.6 * warm * (red - colours)
    return _uri(np.concatenate([colours, under], axis=1).astype(np.uint8))


def _uri(pixels: np.ndarray) -> str:
    """A PNG of grey or colours as a data URI."""
    from PIL import Image

    drawn = Image.fromarray(pixels)
    if pixels.ndim == 3:
        drawn = drawn.quantize(_COLOURS)
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail(image: np.ndarray) -> str:
    """A small picture of an image, HU in the lung window, as a data URI."""
    from medlm_utils import ct

    window = ct.LUNG if image.dtype != np.uint8 else None
    return _uri(_large(_grey(image, window))[::2, ::2])
