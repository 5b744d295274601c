"""A fine-tuning on CT images before it starts: images and model without a fault."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli.processes import Team
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import ct, image_files, image_folder, resnet

PARTS = ("training", "validation", "test")
SHARES = (0.6, 0.2, 0.2)  # where neither table nor folders say the split
VALIDATION_SHARE = 0.25  # of the training patients, where they name no validation
WINDOWS = ("lung", "mediastinum")
_PART_OF = {"train": "training", "val": "validation", "test": "test"}
_SPARE_BYTES = 10_000_000  # of predictions and the report
_LARGEST_SEED = 2**32 - 1  # that numpy takes
_LEAST_SEEN = 0.02  # of the pixels, within the window
_FEW = 50  # patients: with fewer an interval is too narrow


@dataclasses.dataclass
class CtRun:
    """A fine-tuning of which no fault is known.

    Parameters
    ----------
    chosen
        The options of the command.
    images
        All of them, whose they are and what they show.
    rows
        ``"training"``, ``"validation"`` and ``"test"`` to row numbers.
    facts
        (slices, numbers) about the files, that say nothing about their patients.
    window
        Of images in HU; None for grey ones.
    model, settings
        As `resnet.finetune` takes them.
    sha256
        Of images, labels, patients and parts; and of the weights at the start.
    warnings
        What makes the results look better than they are.
    started
        Of `time.monotonic`.
    """

    chosen: argparse.Namespace
    images: image_folder.Folder
    rows: dict[str, np.ndarray]
    facts: np.ndarray
    window: ct.Window | None
    model: resnet.ResNet18
    settings: resnet.FineTuning
    sha256: dict[str, str]
    warnings: list[str]
    started: float

    @classmethod
    def prepare(cls, chosen: argparse.Namespace, team: Team) -> CtRun:
        """Read the images and load the weights.

        Raises
        ------
        MedlmError
            For every fault of files, table and settings.
        """
        from medlm_utils import image_folder, resnet
        from medlm_utils.cli import ct_leaks

        started = time.monotonic()
        _check_options(chosen)
        window = window_of(chosen.window)
        settings = resnet.FineTuning(
            epochs=chosen.epochs,
            batch=chosen.batch,
            rate=chosen.rate,
            head_rate=2 * chosen.rate,
            frozen_stages=chosen.frozen,
            head_first=chosen.weights != "none",
            seed=chosen.seed,
            precision=team.precision(chosen.precision),
        )
        images = image_folder.read_folder(
            chosen.images, chosen.patients, reading(chosen), chosen.positive
        )
        _check_aggregation(images, chosen.by)
        rows, drawn = _parts(images, chosen.seed)
        _check_classes(images, rows)
        warnings = [*images.warnings, *ct_leaks.check(images, rows, chosen.trust_table)]
        warnings += drawn + _warnings(images, rows) + outside_of(images, window)
        facts = file_facts([chosen.images / name for name in images.files])
        runtime.seed_everything(chosen.seed)
        weights = None if chosen.weights == "none" else chosen.weights
        model = resnet.build(len(images.classes), weights, seed=chosen.seed)
        resnet.freeze(model, chosen.frozen)
        return cls(
            chosen,
            images,
            rows,
            facts,
            window if images.window else None,
            model,
            settings,
            {"images": _digest(images, rows), "weights": _digest_of(model)},
            warnings,
            started,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What the resulting weights depend on, in short."""
        return {
            "command": "ct-finetune",
            "images": self.sha256["images"][:12],
            "weights": self.sha256["weights"][:12],
            "window": self.window and list(self.window),
            "by": self.chosen.by,
            "sensitivity": self.chosen.sensitivity,
            **dataclasses.asdict(self.settings),
        }

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def trained(self) -> int:
        """How many of them are learned."""
        return sum(w.numel() for w in self.model.parameters() if w.requires_grad)

    @property
    def needed_bytes(self) -> int:
        """Of the model and two checkpoints, since one is written beside the other."""
        checkpoint = self.weights + 2 * self.trained  # momentum, the best weights
        return 4 * (2 * checkpoint + self.weights) + _SPARE_BYTES

    @property
    def command(self) -> str:
        """The command with its settings; of paths only the last part."""
        words = ["medlm", "ct-finetune"]
        left_out = {"run", "resume", "checkpoint_every"}
        for name, value in vars(self.chosen).items():
            option = f"--{name.replace('_', '-')}"
            if name in left_out or value is None or value is False:
                continue
            if value is True:
                words.append(option)
            else:
                is_path = isinstance(value, Path) or name == "weights"
                words += [option, Path(value).name if is_path else str(value)]
        return shlex.join(words)


# Options ------------------------------------------------------------------------------


def _check_options(chosen: argparse.Namespace) -> None:
    if chosen.checkpoint_every < 1:
        raise MedlmError(
            f"--checkpoint-every is {chosen.checkpoint_every}; expected at least 1."
        )
    if not 0 < chosen.sensitivity <= 1:
        raise MedlmError(
            f"--sensitivity is {chosen.sensitivity}; expected above 0, at most 1."
        )
    if math.isinf(chosen.rate):
        raise MedlmError(f"--rate is {chosen.rate}; expected a number, such as 0.01.")
    if not 0 <= chosen.seed <= _LARGEST_SEED:
        raise MedlmError(
            f"--seed is {chosen.seed}; expected 0 to {_LARGEST_SEED}, any number will "
            "do."
        )


def window_of(words: str) -> ct.Window:
    """A window by its name, or by width and level in HU, such as ``400,40``.

    Raises
    ------
    MedlmError
        If it is neither.
    """
    from medlm_utils import ct

    named = {"lung": ct.LUNG, "mediastinum": ct.MEDIASTINUM}
    if words in named:
        return named[words]
    try:
        width, level = (float(word) for word in re.split(r"[,;/ ]+", words.strip()))
    except ValueError:
        width, level = 0.0, np.nan
    if not (0 < width < np.inf and np.isfinite(level)):
        raise MedlmError(
            f"--window is {words!r}; expected {', '.join(WINDOWS)}, or width and level "
            "in HU, such as 400,40."
        )
    return ct.Window(width, level)


def reading(chosen: argparse.Namespace) -> image_files.Reading:
    """How the options say that files become images."""
    from medlm_utils import image_files

    return image_files.Reading(
        size=chosen.size,
        spacing_mm=chosen.spacing,
        grey=chosen.grey,
        skip_bad=chosen.skip_bad,
        png_offset=chosen.png_offset,
    )


def _check_aggregation(images: image_folder.Folder, by: str) -> None:
    if len(images.classes) > 2 and by != "mean":
        raise MedlmError(
            f"--by {by} is for two classes; with {len(images.classes)} a patient gets "
            "the mean of his slices, since the largest share of each class would not "
            "add up to 1. Leave --by out."
        )


# Parts --------------------------------------------------------------------------------


def _parts(
    images: image_folder.Folder, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of each part, as table or folders say or by our own split; remarks."""
    from medlm_utils import ct, image_folder

    if images.split is None:
        drawn = ct.split(images.patient, SHARES, seed, images.label)
        return dict(zip(PARTS, drawn, strict=True)), []
    words = {word: image_folder.split_of(word) for word in images.split.tolist()}
    odd = sorted(word for word, meant in words.items() if meant is None)
    if odd:
        raise MedlmError(
            f"The column split says {odd[0]!r}; expected train, val or test."
        )
    split = np.array([_PART_OF[words[word] or ""] for word in images.split.tolist()])
    rows = {part: np.flatnonzero(split == part) for part in PARTS}
    if len(rows["validation"]) or not (len(rows["test"]) and len(rows["training"])):
        return {part: chosen for part, chosen in rows.items() if len(chosen)}, []
    shares = (1 - VALIDATION_SHARE, VALIDATION_SHARE)
    given = rows["training"]
    kept, taken = ct.split(images.patient[given], shares, seed, images.label[given])
    rows |= {"training": given[kept], "validation": given[taken]}
    remark = (
        f"there are training and test images and none for validation: "
        f"{VALIDATION_SHARE:.0%} of the training patients were drawn for it"
    )
    return rows, [remark]


def _check_classes(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> None:
    """Training and validation need every class, or nothing can be learned or chosen."""
    _check_patients_class(images)
    for part in PARTS[:2]:
        found = set(images.label[rows.get(part, [])].tolist())
        missing = [c for n, c in enumerate(images.classes) if n not in found]
        if missing:
            raise MedlmError(
                f"The {part} part has no image of the class {missing[0]!r}; expected "
                "every class in training and validation. Add patients, or give the "
                "table a column split with train, val and test."
            )


def _check_patients_class(images: image_folder.Folder) -> None:
    """Of more than two classes a patient has one, beside images of "nothing found"."""
    if len(images.classes) == 2:
        return
    counts = images.label > 0 if images.why else np.full(len(images.label), True)
    pairs = set(zip(images.patient[counts], images.label[counts], strict=True))
    if len(pairs) > len({patient for patient, _ in pairs}):
        beside = f", perhaps beside {images.classes[0]!r}" if images.why else ""
        raise MedlmError(
            f"There are {len(images.classes)} classes, and a patient with images of "
            f"two of them; expected one class a patient{beside}, or two classes."
        )


def _warnings(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> list[str]:
    found = []
    if images.skipped:
        names = ", ".join(name for name, _ in images.skipped[:5])
        more = ", ..." if len(images.skipped) > 5 else ""
        found.append(
            f"{len(images.skipped)} files could not be read and were left out: "
            f"{names}{more}"
        )
    if images.window is None:
        found.append(
            "PNG and JPEG files have lost their Hounsfield units: whoever exported "
            "them chose the window, perhaps another one for each class"
        )
    few = {part: len(set(images.patient[chosen])) for part, chosen in rows.items()}
    found += [
        f"only {count} {part} patients: its intervals are wide, and too narrow still"
        for part, count in few.items()
        if count < _FEW and part != "training"
    ]
    return _lost_classes(images) + found


def outside_of(images: image_folder.Folder, window: ct.Window) -> list[str]:
    """A warning where nearly all of the images is black or white in the window."""
    if images.window is None:
        return []
    some = images.images[:: max(1, len(images.images) // 200)]
    seen = np.mean((some > window.low_hu) & (some < window.high_hu))
    if seen > _LEAST_SEEN:
        return []
    return [
        f"only {seen:.1%} of the pixels lie within the window of {window.low_hu:g} to "
        f"{window.high_hu:g} HU, and all others are black or white: --window takes the "
        "width first, then the level"
    ]


def _lost_classes(images: image_folder.Folder) -> list[str]:
    """A warning where most patients with images of a class count as another one."""
    from medlm_utils import ct

    _, most = ct.by_patient(images.patient, images.label)
    said = []
    for number, name in enumerate(images.classes):
        have = len(set(images.patient[images.label == number].tolist()))
        count = int((most == number).sum())
        if 2 * count >= have:
            continue
        none = " No patient is left of this class." if not count else ""
        said.append(
            f"{have - count} of {have} patients with images of {name!r} count as "
            "another class, since at least one image of theirs is of that one: is the "
            f"positive class the right one, and is a label about the image?{none}"
        )
    return said


# Files --------------------------------------------------------------------------------


def file_facts(paths: list[Path]) -> np.ndarray:
    """(files, numbers) on size, format and header, none of them about a patient."""
    told = [_facts(path) for path in paths]
    numbers = sorted({name for facts in told for name in facts})
    return np.array([[facts.get(name, 0.0) for name in numbers] for facts in told])


def _facts(path: Path) -> dict[str, float]:
    from medlm_utils import dicom, image_files

    facts: dict[str, float] = {"bytes": float(path.stat().st_size)}
    if image_files.is_picture(path):
        from PIL import Image

        with Image.open(path) as picture:
            said: dict[str, Any] = {"width": picture.width, "height": picture.height}
            said["format"] = f"{picture.mode} {picture.format}"
    else:
        said = dicom.header_facts(path)
    for name, value in said.items():
        is_number = isinstance(value, int | float) and np.isfinite(value)
        facts[name] = float(value) if is_number else _number_of(str(value or ""))
    return facts


def _number_of(words: str) -> float:
    """A number that is the same for the same words, and means no more."""
    digest = hashlib.sha256(words.encode()).hexdigest()
    return float(int(digest[:8], 16)) if words else 0.0


def _digest(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images.images).tobytes())
    told: list[Any] = [images.files, images.label.tolist(), images.patient.tolist()]
    told += [images.classes, {part: chosen.tolist() for part, chosen in rows.items()}]
    digest.update(repr(told).encode())
    return digest.hexdigest()


def _digest_of(model: resnet.ResNet18) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
