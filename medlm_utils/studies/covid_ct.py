"""COVID-CT on its official split: a forest that sees no pixels, then a network.

The images were cut from publications, those with COVID-19 from other ones than those
without, so that a file betrays its class before anyone looks at it. A forest gets the
size of the file, width, height, number of colours and format. Others see what remains
when format, colours and encoding are brought to one: the size of the picture; the bytes
of its uniform file; its grey levels without their places.

Then the network sees uniform images alone: grey, one width and height, coded the same
way. torchvision's ResNet-18 starts from random weights; from weights that were trained
on simulated slices; and from those of ImageNet, where torchvision has them at hand.
Learning rate and number of epochs are chosen on the official validation images, by one
trial a rate and start. Then the chosen setting is trained anew, once a seed, on the
official training images. The test images are opened last, once for every model.

Whatever is decided at a threshold has it at one half, as in the published numbers.
Nothing of an image is kept: the record holds no pixels, for nobody granted a licence.

Source: chapter 5; `python -m medlm_utils.studies.covid_ct`. The collection and its
split are those of Zhao et al. 2020; see `PUBLISHED` for the numbers of others.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torchvision import models

from medlm_utils import ct, data, metrics, resnet, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core

CLASSES = ("other", "COVID-19")  # by number
NAMES = ("NonCOVID", "COVID")  # the same in folders and files
COLUMNS = (("image name", "patient id"), ("File name", "Patient ID"))
IMAGES = {"train": (234, 191), "val": (58, 60), "test": (105, 98)}  # of each class

# On the same test images; None where it was not published.
PUBLISHED = (
    {
        "model": "DenseNet-169",
        "accuracy": 0.847,
        "f1": 0.854,
        "auroc": 0.919,
        "source": "README of the collection, by its authors",
    },
    {
        "model": "Self-Trans",
        "accuracy": None,
        "f1": 0.85,
        "auroc": 0.94,
        "source": "He et al. 2020, abstract",
    },
    {
        "model": "run again by others, pretrained",
        "accuracy": 0.729,
        "f1": None,
        "auroc": 0.819,
        "source": "notebooks of an independent run",
    },
    {
        "model": "run again by others, random start",
        "accuracy": 0.665,
        "f1": None,
        "auroc": 0.793,
        "source": "notebooks of an independent run",
    },
)

CAVEAT = (
    "The two classes come from different publications. Whoever can tell the "
    "publications apart can tell the classes apart, without any disease: no number "
    "here should reach a patient."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is tried, and how often the chosen setting is trained, on one machine."""

    size: int  # width and height of an image, pixels
    rates: tuple[float, ...]  # each a trial of each start; validation chooses
    epochs: int  # of a training; validation chooses the look whose weights are kept
    seeds: tuple[int, ...]  # of the trainings; the trials have the first one
    batch: int = 32
    trees: int = 500


PLANS = {
    "tiny": Plan(32, (0.005, 0.02), 2, (0, 1), 8, 50),
    "cpu": Plan(160, (0.005, 0.02), 16, (0, 1, 2)),
    "gpu": Plan(224, (0.005, 0.01, 0.02), 40, (0, 1, 2, 3, 4)),
}

# The pages of journals differ more in brightness than scanners do.
AUGMENT = ct.Augment(shift=0.06, rotate_degrees=10, scale=0.12, gain=0.1)


# The collection -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Files:
    """Images of one part of the split, unopened, (images,) each."""

    path: tuple[Path, ...]
    label: np.ndarray  # number of the class
    patient: np.ndarray  # name, unique in the collection

    def __len__(self) -> int:
        return len(self.path)


def read_split(folder: Path) -> dict[str, Files]:
    """Which image is in which part of the split, and whose it is; opens no image.

    Parameters
    ----------
    folder
        With the lists of the split and the tables of patients as they were published.

    Returns
    -------
    dict
        ``"train"``, ``"val"`` and ``"test"``.

    Raises
    ------
    MedlmError
        If a list or table is missing or cannot be read, an image has no patient, or a
        patient has images in two parts.
    """
    patients = [_patients(folder, number) for number in range(len(CLASSES))]
    split = {part: _part_files(folder, part, patients) for part in IMAGES}
    seen: dict[str, str] = {}
    for part, files in split.items():
        for patient in np.unique(files.patient):
            if seen.setdefault(patient, part) != part:
                raise _other_collection(
                    f"{patient} in both {seen[patient]} and {part}",
                    "every patient in one part of the split",
                )
    return split


def _patients(folder: Path, number: int) -> dict[str, str]:
    """Whose each image of a class is, by the image's file name."""
    name, (image, patient) = NAMES[number], COLUMNS[number]
    path = folder / "Info" / f"{name}-CT-MetaInfo.csv"
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        return {row[image].strip(): f"{name} {row[patient].strip()}" for row in rows}
    except (KeyError, AttributeError) as error:
        raise _other_collection(
            f"{path.name} without {image!r} and {patient!r} in every row",
            "these two columns, filled",
        ) from error


def _part_files(folder: Path, part: str, patients: Sequence[dict[str, str]]) -> Files:
    """The images of one part, those of the first class first."""
    paths, labels, whose = [], [], []
    for number, name in enumerate(NAMES):
        listed = folder / "Data-split" / name / f"{part}CT_{name}.txt"
        for line in filter(None, map(str.strip, _text(listed).splitlines())):
            if not patients[number].get(line):
                raise _other_collection(f"no patient of {line}", "one for each image")
            paths.append(folder / f"CT_{name}" / line)
            labels.append(number)
            whose.append(patients[number][line])
    return Files(tuple(paths), np.array(labels), np.array(whose))


def check_counts(split: dict[str, Files]) -> None:
    """Refuse another split: no published number could stand beside its results.

    Raises
    ------
    MedlmError
        If a part has not the published number of images of each class.
    """
    for part, expected in IMAGES.items():
        found = np.bincount(split[part].label, minlength=len(CLASSES)).tolist()
        if found != list(expected):
            raise _other_collection(
                f"{found} images of {' and '.join(CLASSES)} in {part}",
                str(list(expected)),
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _other_collection(f"no readable {path.name}", "it to be there") from error


def _other_collection(found: str, expected: str) -> MedlmError:
    return MedlmError(
        f"COVID-CT has {found}; expected {expected}. Fetch it again: `medlm data fetch "
        "covid-ct`."
    )


# Images -------------------------------------------------------------------------------


def grey(image: Image.Image) -> np.ndarray:
    """An image of any mode as grey levels, (height, width) uint8.

    What is transparent becomes black; levels of 16 bits keep their upper 8.

    Parameters
    ----------
    image
        Of Pillow, whose pixels it may read only now.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        return np.clip(levels // 256, 0, 255).astype(np.uint8)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.array(image.convert("L"))


def uniform(levels: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Grey levels in one size and one encoding, so that only the picture differs.

    The whole picture is kept, its proportions are not. It is written as a JPEG file of
    one quality, as half of the collection was, and read again.

    Parameters
    ----------
    levels
        (height, width) uint8.
    size
        Width and height that it gets.

    Returns
    -------
    tuple
        (size, size) uint8, and how many bytes the file has.
    """
    resized = Image.fromarray(levels).resize((size, size), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=90)
    return np.array(Image.open(file)), file.tell()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels are read when they are asked for.

    Raises
    ------
    MedlmError
        If it is missing or damaged, even if that shows only when it is read.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError) as error:  # what Pillow raises
        raise _other_collection(
            f"an image that cannot be read, {path.name}", "a whole PNG or JPEG file"
        ) from error


# A stand-in for tiny runs -------------------------------------------------------------

_STAND_IN = {"train": 6, "val": 4, "test": 5}  # patients of each class
_MODES = ("RGBA", "RGB", "L", "P", "I;16")


def write_stand_in(folder: Path) -> Path:
    """Made images in the collection's layout: discs, in the second class a bright one.

    Files differ in format, mode and size as those of the collection do, and more.

    Parameters
    ----------
    folder
        To write in.
    """
    rng = np.random.default_rng(runtime.SEED)
    for number, name in enumerate(NAMES):
        rows = []
        for part, count in _STAND_IN.items():
            names = [
                (f"{part}{n}%{k}.{'jpg' if n % 2 > number else 'png'}", f"{part} {n}")
                for n in range(count)
                for k in range(1 + n % 2)
            ]
            listed = folder / "Data-split" / name / f"{part}CT_{name}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("\n".join(image for image, _ in names), encoding="utf-8")
            rows += names
        (folder / "Info").mkdir(exist_ok=True)
        table = folder / "Info" / f"{name}-CT-MetaInfo.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS[number], *rows])
        (folder / f"CT_{name}").mkdir(exist_ok=True)
        for place, (image, _) in enumerate(rows):
            _write_made(folder / f"CT_{name}" / image, number, place, rng)
    return folder


def _write_made(path: Path, number: int, place: int, rng: np.random.Generator) -> None:
    """One made image of a class; its place in the order chooses its mode."""
    height, width = rng.integers(40, 80, 2)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    levels = 40.0 + 60 * (np.hypot(x, y) < 0.9) + rng.normal(0, 10, y.shape)
    if number:
        middle = rng.uniform(-0.4, 0.4, 2)
        levels += 110 * (np.hypot(x - middle[0], y - middle[1]) < 0.3)
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    mode = "L" if path.suffix == ".jpg" else _MODES[place % len(_MODES)]
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(path)


def _write_weights(path: Path) -> Path:
    """Random weights whose normalisation fits images, in place of simulated ones."""
    model = resnet.build(3, seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(20):
            model(torch.rand(8, 1, 32, 32))
    resnet.save_int8(model, path, {"is": "made"})
    return path


# What is seen without looking ---------------------------------------------------------

SIGHTS = {
    "file": ("bytes", "width", "height", "bands", "is_jpeg"),
    "sizes": ("width", "height", "grey_bytes"),
    "uniform_file": ("uniform_bytes",),
    "grey_levels": tuple(f"level_{n:02}" for n in range(16)),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """Opened images.

    Parameters
    ----------
    files
        Which ones.
    pixels
        (images, size, size) uint8, uniform.
    facts
        Name to (images,) numbers, as `SIGHTS` names them.
    """

    files: Files
    pixels: np.ndarray
    facts: dict[str, np.ndarray]

    def table(self, sight: str) -> np.ndarray:
        """(images, facts) that one kind of forest sees."""
        return np.column_stack([self.facts[name] for name in SIGHTS[sight]])


def look(files: Files, size: int) -> Seen:
    """Open images: uniform pixels, and the facts about each.

    Parameters
    ----------
    files
        At least one.
    size
        Width and height of the uniform images.

    Raises
    ------
    MedlmError
        If an image is missing or damaged; by name.
    """
    pixels, facts = [], []
    for path in files.path:
        with opened(path) as image:
            levels = grey(image)
            about = _about_file(path, image, levels)
        same, coded = uniform(levels, size)
        shares = np.bincount(same.ravel() // 16, minlength=16) / same.size
        of_levels = dict(zip(SIGHTS["grey_levels"], shares, strict=True))
        pixels.append(same)
        facts.append({**about, "uniform_bytes": coded, **of_levels})
    columns = {name: np.array([one[name] for one in facts]) for name in facts[0]}
    return Seen(files, np.stack(pixels), columns)


def _about_file(path: Path, image: Image.Image, levels: np.ndarray) -> dict[str, float]:
    """Facts of the file as it is, and the bytes of its grey levels as a PNG file."""
    as_png = io.BytesIO()
    Image.fromarray(levels).save(as_png, "PNG")
    return {
        "bytes": path.stat().st_size,
        "width": image.width,
        "height": image.height,
        "bands": len(image.getbands()),  # 1 grey, 3 RGB, 4 RGBA
        "is_jpeg": float(image.format == "JPEG"),  # whatever its name says
        "grey_bytes": as_png.tell(),
    }


def forest(known: Seen, asked: Seen, sight: str, trees: int) -> np.ndarray:
    """What a random forest of scikit-learn's defaults says, (asked,) probabilities.

    Parameters
    ----------
    known, asked
        What it learns from, and what it is asked about.
    sight
        A name of `SIGHTS`.
    trees
        How many it has.
    """
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, random_state=runtime.SEED)
    model.fit(known.table(sight), known.files.label)
    return model.predict_proba(asked.table(sight))[:, 1]


# Judging ------------------------------------------------------------------------------


def judged(files: Files, *scores: np.ndarray) -> dict[str, Any]:
    """Accuracy, F1 of COVID-19 and AUROC with intervals by patient.

    Parameters
    ----------
    files
        That were asked about.
    scores
        (images,) probabilities of COVID-19, by one model or one for each seed; then
        the mean over the models is reported, and its interval holds these models for
        fixed.
    """
    return {
        name: metrics.interval_by_patient(
            lambda label, *columns, of=of: np.mean([of(label, one) for one in columns]),
            files.patient,
            files.label,
            *scores,
        ).as_metric()
        for name, of in MEASURES.items()
    }


def accuracy(label: np.ndarray, score: np.ndarray) -> float:
    """The share that is right at the threshold of one half."""
    return metrics.accuracy(label, (score >= 0.5).astype(int))


def f1(label: np.ndarray, score: np.ndarray) -> float:
    """F1 of COVID-19 at the threshold of one half."""
    predicted = (score >= 0.5).astype(int)
    return float(metrics.f1(label, predicted, len(CLASSES), average=None)[1])


MEASURES = {"accuracy": accuracy, "f1": f1, "auroc": metrics.auroc}


# The network --------------------------------------------------------------------------

RANDOM, SIMULATED, IMAGENET = "random", "simulated", "imagenet"  # where it starts


def has_imagenet() -> bool:
    """Whether torchvision has ImageNet's weights at hand, or may and can fetch them."""
    file = Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name
    is_kept = (Path(torch.hub.get_dir()) / "checkpoints" / file).exists()
    if data.offline() and not is_kept:
        return False
    try:
        resnet.build(len(CLASSES), IMAGENET)
    except MedlmError as error:
        core.say(f"without a start from ImageNet: {error}")
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Task:
    """What every part of the study needs.

    Parameters
    ----------
    study, plan
        Of this run.
    split
        As `read_split` returns it.
    precision
        As in `training.autocast`.
    weights
        Of each start, as `resnet.build` takes them.
    """

    study: core.Study
    plan: Plan
    split: dict[str, Files]
    precision: str
    weights: dict[str, str | Path | None]

    @functools.cached_property
    def known(self) -> Seen:
        """The official training images, opened."""
        return look(self.split["train"], self.plan.size)

    @functools.cached_property
    def asked(self) -> Seen:
        """The official validation images, opened."""
        return look(self.split["val"], self.plan.size)

    def settings(self, start: str, rate: float, seed: int) -> resnet.FineTuning:
        """One training of the plan; a random network has no features for a head."""
        return resnet.FineTuning(
            epochs=self.plan.epochs,
            batch=self.plan.batch,
            rate=rate,
            head_rate=rate,
            head_first=start != RANDOM,
            augment=AUGMENT,
            seed=seed,
            precision=self.precision,
        )

    def build(self, start: str, seed: int = 0) -> resnet.ResNet18:
        """The network as it starts; the seed draws what is random."""
        model = resnet.build(len(CLASSES), self.weights[start], seed=seed)
        return model.to(self.study.profile.device)

    def probabilities(self, model: resnet.ResNet18, seen: Seen) -> np.ndarray:
        """Of COVID-19, (images,)."""
        logits = resnet.predict(
            model, seen.pixels, window=None, precision=self.precision
        )
        return metrics.softmax(logits)[:, 1]

    def digest(self, start: str) -> str:
        """A short name for the weights of a start."""
        weights = self.weights[start]
        path = resnet.simulated_weights() if weights == SIMULATED else weights
        if not isinstance(path, Path):
            return str(path)
        with safetensors.safe_open(path, "pt") as file:  # the file's own bytes vary:
            return file.metadata()["sha256"][:16]  # its header has no order


def train(task: Task, start: str, settings: resnet.FineTuning) -> dict[str, Any]:
    """Train on the training images; keep the weights of the best look at the others.

    Returns
    -------
    dict
        What validation said at this look, and the name of the work file.
    """
    model = task.build(start, settings.seed)
    known, asked, label = task.known, task.asked, task.asked.files.label
    tuned = resnet.finetune(
        model,
        known.pixels,
        known.files.label,
        asked.pixels,
        label,
        settings,
        window=None,
        checkpoint=task.study.file(".checkpoint"),
        resume=True,
    )
    path = task.study.file(".safetensors")
    _save(model, path)
    score = task.probabilities(model, asked)
    found = {
        "start": start,
        "rate": settings.rate,
        "seed": settings.seed,
        "loss": min(tuned.loss),
        "best_epoch": tuned.best,
        "loss_by_epoch": list(tuned.loss),
        **{name: of(label, score) for name, of in MEASURES.items()},
        "training_seconds": tuned.history.seconds[-1],
        "weights": path.name,
    }
    core.say(
        f"{start}, rate {settings.rate:g}, seed {settings.seed}: validation loss "
        f"{found['loss']:.3f} at epoch {tuned.best}, AUROC {found['auroc']:.3f}"
    )
    return found


def _save(model: torch.nn.Module, path: Path) -> None:
    """All weights and running means, written beside the file, then renamed."""
    part = path.with_suffix(".part")
    state = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    part.write_bytes(safetensors.torch.save(state))
    part.replace(path)


def best_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The training with the smallest validation loss, the first of several."""
    return min(found, key=lambda one: one["loss"])


def ask_forests(task: Task) -> dict[str, Any]:
    """What each forest reaches on the validation images; nothing is chosen by it."""
    asked = task.asked
    return {
        sight: judged(asked.files, forest(task.known, asked, sight, task.plan.trees))
        for sight in SIGHTS
    }


# The test -----------------------------------------------------------------------------


def test(task: Task, trained: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Open the test images, once, for every forest and every trained network."""
    asked = look(task.split["test"], task.plan.size)
    files, trees = asked.files, task.plan.trees
    of_forest = {sight: forest(task.known, asked, sight, trees) for sight in SIGHTS}
    of_network: dict[str, list[np.ndarray]] = {}
    for one in trained:
        model = task.build(one["start"])
        core.load_weights(model, task.study.work / one["weights"])
        said = task.probabilities(model, asked)
        of_network.setdefault(one["start"], []).append(said)
    networks = {
        start: {
            "mean": judged(files, *said),
            "by_seed": [judged(files, score) for score in said],
            "gain_on_random": gain(files, said, of_network[RANDOM]),
            "gain_on_file_forest": gain(files, said, [of_forest["file"]]),
        }
        for start, said in of_network.items()
    }
    return {
        "forests": {sight: judged(files, said) for sight, said in of_forest.items()},
        "networks": networks,
        "all_called_ill": judged(files, np.ones(len(files))),
        "majority": judged(files, np.zeros(len(files)))["accuracy"],
        "of_class": np.bincount(files.label).tolist(),
        "patients": len(np.unique(files.patient)),
    }


def gain(
    files: Files, new: Sequence[np.ndarray], old: Sequence[np.ndarray]
) -> dict[str, Any]:
    """How much higher the mean AUROC of some scores is, with an interval by patient.

    Parameters
    ----------
    files
        That were asked about.
    new, old
        Scores of one or more models each, (images,).
    """

    def difference(label: np.ndarray, *scores: np.ndarray) -> float:
        values = [metrics.auroc(label, one) for one in scores]
        return float(np.mean(values[: len(new)]) - np.mean(values[len(new) :]))

    return metrics.interval_by_patient(
        difference, files.patient, files.label, *new, *old
    ).as_metric()


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask the forests, choose on validation, train every seed, open the test once."""
    task = _task(study)
    plan, first = task.plan, task.plan.seeds[0]
    forests, *tried = study.run(
        [
            _forest_part(task),
            *(_train_part(task, s, r, first) for s in task.weights for r in plan.rates),
        ]
    )
    chosen = {s: best_of([t for t in tried if t["start"] == s]) for s in task.weights}
    more = study.run(
        [
            _train_part(task, start, one["rate"], seed)
            for start, one in chosen.items()
            for seed in plan.seeds[1:]
        ]
    )
    trained = [*chosen.values(), *more]
    (tested,) = study.run([_test_part(task, trained)])
    return _metrics(forests, trained, tested), _series(
        task, forests, tried, trained, tested
    )


def _task(study: core.Study) -> Task:
    """The collection and the starts; in a tiny run made images and made weights.

    Raises
    ------
    MedlmError
        If the files are not there and cannot be fetched, are not those of the published
        split, or the package lacks its weights.
    """
    weights: dict[str, str | Path | None] = {RANDOM: None, SIMULATED: SIMULATED}
    if study.tiny:
        split = read_split(write_stand_in(study.work / "stand-in"))
        weights[SIMULATED] = _write_weights(study.work / "made.safetensors")
    else:
        split = read_split(data.fetch("covid-ct"))
        check_counts(split)
        resnet.load_int8(resnet.simulated_weights())  # refuses at the start, not later
        if has_imagenet():
            weights[IMAGENET] = IMAGENET
    precision = runtime.fast_precision(study.profile)
    return Task(study, PLANS[study.size], split, precision, weights)


# A cost is a number of images that a network learns from once.


def _forest_part(task: Task) -> core.Part:
    depends_on = {"size": task.plan.size, "trees": task.plan.trees}
    make = functools.partial(ask_forests, task)
    return core.Part("forests", depends_on, len(task.split["train"]), make)


def _train_part(task: Task, start: str, rate: float, seed: int) -> core.Part:
    settings = task.settings(start, rate, seed)
    return core.Part(
        f"{start}-{rate:g}-{seed}",
        {
            **dataclasses.asdict(settings),
            "size": task.plan.size,
            "weights": task.digest(start),
        },
        settings.epochs * (len(task.split["train"]) + len(task.split["val"]) / 4),
        functools.partial(train, task, start, settings),
    )


def _test_part(task: Task, trained: Sequence[dict[str, Any]]) -> core.Part:
    depends_on = {
        "size": task.plan.size,
        "trees": task.plan.trees,
        "weights": [one["weights"] for one in trained],
        "precision": task.precision,
    }
    make = functools.partial(test, task, trained)
    return core.Part("test", depends_on, len(task.split["test"]), make)


def _metrics(
    forests: dict[str, Any], trained: Sequence[dict[str, Any]], tested: dict[str, Any]
) -> dict[str, Any]:
    """The metrics of the record."""
    found: dict[str, Any] = {
        f"forest_{sight}_{name}": value
        for sight, measures in tested["forests"].items()
        for name, value in measures.items()
    }
    found["forest_file_validation_auroc"] = forests["file"]["auroc"]
    for start, one in tested["networks"].items():
        found |= {f"{start}_{name}": value for name, value in one["mean"].items()}
        found[f"{start}_less_file_forest_auroc"] = one["gain_on_file_forest"]
        if start != RANDOM:
            found[f"{start}_gain_auroc"] = one["gain_on_random"]
        of_start = [t for t in trained if t["start"] == start]
        found[f"{start}_rate"] = of_start[0]["rate"]
        validation = [t["auroc"] for t in of_start]
        found[f"{start}_validation_auroc"] = core.over_seeds(validation)
    hours = np.mean([one["training_seconds"] for one in trained]) / 3600
    return {
        **found,
        "majority_accuracy": tested["majority"],
        "all_called_ill_f1": tested["all_called_ill"]["f1"],
        "training_hours": {"value": float(hours), "unit": "h"},
    }


def _series(
    task: Task,
    forests: dict[str, Any],
    tried: Sequence[dict[str, Any]],
    trained: Sequence[dict[str, Any]],
    tested: dict[str, Any],
) -> dict[str, Any]:
    """What the figures of the chapter draw."""
    return {
        "plan": dataclasses.asdict(task.plan),
        "augment": dataclasses.asdict(AUGMENT),
        "precision": task.precision,
        "unit": "patient",
        "caveat": CAVEAT,
        "interval": "patients drawn again; of networks, for the mean of these seeds",
        "imagenet": IMAGENET in task.weights,
        "trials": [_without_file(one) for one in tried],
        "trainings": [_without_file(one) for one in trained],
        "forests_see": {sight: list(names) for sight, names in SIGHTS.items()},
        "forests_validation": forests,
        "test": tested,
        "images": {part: len(files) for part, files in task.split.items()},
        "patients": {
            part: len(np.unique(files.patient)) for part, files in task.split.items()
        },
        "published": list(PUBLISHED),
    }


def _without_file(one: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in one.items() if n not in ("weights", "training_seconds")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = (
        "COVID-CT: a forest that sees no pixels, and a network that sees nothing else."
    )
    return core.main("covid_ct", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
