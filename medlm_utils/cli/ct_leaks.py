"""Images that are of one person by their pixels or headers, whatever the table says.

Knows nothing about models. What looks alike is a guess: the same slice of two people
can look more alike than two slices of one.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from medlm_utils.ct import some
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import image_folder

SIDE = 12  # of the rectangle whose differences are the hash
NEAR = 0.07  # share of bits that differ: neighbours of 1 mm have 0.035, people 0.15
NEAR_NEIGHBOUR = 0.14  # where the numbers in the names of two files say neighbours too
GREATEST_GROUP = 1 / 3  # of all images: if more look alike, likeness tells nobody apart
MOST_IMAGES = 20_000  # are compared with each other: a minute
_BLOCK = 1024  # images compared with all others at a time

# What stands in headers whose patient was taken out.
_NOBODY = re.compile(
    r"(anon|anonym|anonymous|anonymi[sz]ed|anonymous ?patient|de-?identified|removed|"
    r"unknown|none|null|n/?a|patient|patientid|pat|test|xx+|0+|-+|\?+|no ?name|hidden|"
    r"private|default|id)?",
    re.IGNORECASE,
)

Rows = Mapping[str, np.ndarray]  # of each part


def check(images: image_folder.Folder, rows: Rows, trusts_table: bool) -> list[str]:
    """Refuse parts that share a picture or a person; warn of what is less sure.

    Parameters
    ----------
    images
        All of them.
    rows
        Of each part.
    trusts_table
        True: what would be an error is a warning.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    MedlmError
        If the same picture, or a patient by the headers, is in two parts.
    """
    part = np.full(len(images.files), "", object)
    for name, chosen in rows.items():
        part[chosen] = name
    warnings = []
    for said in (_equal_pictures(images, part), _headers(images, part)):
        for words, is_leak in said:
            if is_leak and not trusts_table:
                raise MedlmError(
                    f"{words}. Expected all images of a person under one patient: "
                    "correct the table (`medlm ct-patients` makes one), or let "
                    "--trust-table turn this into a warning."
                )
            warnings.append(words)
    return warnings + _look_alikes(images, part)


# Equal pictures -----------------------------------------------------------------------


def _equal_pictures(
    images: image_folder.Folder, part: np.ndarray
) -> list[tuple[str, bool]]:
    """What equal pictures say, and whether that is a leak."""
    groups = [
        rows
        for rows in equal(images.digests)
        if images.images[rows[0]].min() < images.images[rows[0]].max()  # not all black
    ]
    across = [rows for rows in groups if len(set(part[rows])) > 1]
    labelled = [rows for rows in groups if len(set(images.label[rows].tolist())) > 1]
    people = [rows for rows in groups if len(set(images.patient[rows].tolist())) > 1]
    said = []
    if across:
        said.append((f"{_told(images, across, 'is', 'in two parts')}", True))
    if labelled:
        said.append((f"{_told(images, labelled, 'has', 'two classes')}", False))
    if people and not across:
        said.append((f"{_told(images, people, 'is', 'of two patients')}", False))
    return said


def _told(
    images: image_folder.Folder, groups: list[np.ndarray], verb: str, what: str
) -> str:
    pairs = [" = ".join(images.files[row] for row in rows[:2]) for rows in groups]
    count = sum(map(len, groups))
    return f"the same picture {verb} {what}, {count} files in all: {some(pairs)}"


def equal(digests: Sequence[str]) -> list[np.ndarray]:
    """The rows of each digest that comes more than once."""
    groups: dict[str, list[int]] = {}
    for row, digest in enumerate(digests):
        groups.setdefault(digest, []).append(row)
    return [np.array(rows) for rows in groups.values() if len(rows) > 1]


# Headers ------------------------------------------------------------------------------


def known_ids(ids: Sequence[str]) -> list[str]:
    """IDs of patients as headers have them; empty where they name nobody.

    Parameters
    ----------
    ids
        (slices,) If all are the same, that one names nobody.
    """
    if len(set(ids)) < 2:
        return [""] * len(ids)
    return ["" if _NOBODY.fullmatch(name.strip()) else name.strip() for name in ids]


def _headers(images: image_folder.Folder, part: np.ndarray) -> list[tuple[str, bool]]:
    """Where PatientID in the headers says otherwise than the table."""
    ids = known_ids(images.header_patients)
    of_id: dict[str, set[str]] = {}
    of_patient: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for name, patient, where in zip(ids, images.patient.tolist(), part, strict=False):
        if name:
            of_id.setdefault(name, set()).add(patient)
            of_patient.setdefault(patient, set()).add(name)
            parts.setdefault(name, set()).add(where)
    said = []
    shared = [name for name, patients in of_id.items() if len(patients) > 1]
    leaks = [name for name in shared if len(parts[name]) > 1]
    if shared:
        meant = leaks or shared
        names = [" and ".join(sorted(of_id[name])[:3]) for name in meant]
        where = "different parts" if leaks else "one part"
        words = (
            f"{len(meant)} PatientIDs in the DICOM headers are each of several "
            f"patients of the table, such as {some(names)}, in {where}"
        )
        said.append((words, bool(leaks)))
    several = [patient for patient, names in of_patient.items() if len(names) > 1]
    if several:
        words = (
            f"{len(several)} patients of the table have several PatientIDs in the "
            f"DICOM headers: {some(several)}"
        )
        said.append((words, False))
    return said


# What looks alike ---------------------------------------------------------------------


def _look_alikes(images: image_folder.Folder, part: np.ndarray) -> list[str]:
    """A warning where nearly the same image is in two parts under two patients."""
    if len(images.files) > MOST_IMAGES:
        return []
    pairs = near(hashes(images.images), NEAR)
    if not len(pairs) or is_no_guide(len(images.files), pairs):
        return []
    apart = part[pairs[:, 0]] != part[pairs[:, 1]]
    equal_ = np.array([images.digests[a] == images.digests[b] for a, b in pairs])
    found = pairs[apart & ~equal_]
    if not len(found):
        return []
    count = len(np.unique(found))
    names = [f"{images.files[a]} and {images.files[b]}" for a, b in found[:3]]
    return [
        f"{count} images look nearly like one of another patient in another part: "
        f"{some(names)}. Are they of one person? `medlm ct-patients` shows which "
        "images look alike"
    ]


def hashes(images: np.ndarray) -> np.ndarray:
    """(images, bits): whether each place is brighter than the one beside or above it.

    Parameters
    ----------
    images
        (images, height, width), HU or grey; HU are seen through the lung window.

    Source: the "difference hash" of Krawetz 2013, in both directions.
    """
    from medlm_utils import ct

    bits = []
    for image in images:
        grey = ct.to_tensor(image, None if images.dtype == np.uint8 else ct.LUNG)
        across, down = (
            F.interpolate(255 * grey, side, mode="bilinear", antialias=True)[0, 0]
            for side in ((SIDE, SIDE + 1), (SIDE + 1, SIDE))
        )
        # A difference of less than 1 of 255 is noise, in air above all.
        steps = [across.diff(dim=1) > 1, down.diff(dim=0) > 1]
        bits.append(torch.cat([step.flatten() for step in steps]).numpy())
    return np.array(bits)


def near(bits: np.ndarray, most: float) -> np.ndarray:
    """(pairs, 2) rows, the smaller one first, of which at most so many bits differ."""
    signs = torch.from_numpy(np.where(bits, 1, -1).astype(np.float32))
    least = (1 - 2 * most) * bits.shape[1]
    found = []
    for start in range(0, len(signs), _BLOCK):
        alike = signs[start : start + _BLOCK] @ signs[start:].T >= least - 0.5
        one, other = np.nonzero(np.triu(alike.numpy(), 1))
        found.append(np.stack([one, other], axis=1) + start)
    return np.concatenate(found)


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """(images,) the number of each one's group, from the pairs that are linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs))
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number: np.ndarray = connected_components(graph, directed=False)[1]
    return number


def is_no_guide(count: int, pairs: np.ndarray) -> bool:
    """Whether so many images look alike that this says nothing about people.

    Parameters
    ----------
    count
        Images.
    pairs
        (pairs, 2) rows of those that look alike.
    """
    greatest = max(collections.Counter(groups(count, pairs).tolist()).values())
    return count > 10 and greatest > GREATEST_GROUP * count
