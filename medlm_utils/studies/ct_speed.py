"""How fast our ResNet-18 learns slices, beside the tutorials' way and a plain loop.

Two questions, both asked in turns and in one process. First the whole way from stored
slices to a step. Ours keeps the cohort in memory as int16 HU, makes each batch at once
and trains in the fast precision. The tutorials' way reads PNG files of the same size
through torchvision's ImageFolder, anew in every epoch and one by one, with their usual
crops, batches of 4 and plain gradient descent with momentum in float32; its files are
read by several processes, or by the one that trains. Ours in float32 stands beside it,
to show how much is precision and how much the way.

Then the step alone, on batches that lie ready: ours in float32 and in bfloat16, with
the channels of a pixel together in memory or apart; and the plain loop that one finds
in torchvision's reference recipe, with the same model, batches, precision and memory.
There it has our clipping of the gradient, which is an option of the recipe, so that all
settings are equal; or, as "bare", it has none, which saves a look at every gradient.

Source: chapter 5; `python -m medlm_utils.studies.ct_speed`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import ct, resnet, runtime, training
from medlm_utils.studies import core
from medlm_utils.studies.bert_speed import matrix_rate, ratio
from medlm_utils.studies.peers import Watch

OURS, OURS_FLOAT32 = "ours", "ours_float32"
TUTORIAL, TUTORIAL_ALONE = "tutorial", "tutorial_alone"
WAYS = (OURS, OURS_FLOAT32, TUTORIAL, TUTORIAL_ALONE)
LAYOUTS = ("last", "first")  # where the axis of channels lies in memory
CLASSES = 2
CLIP = 1.0  # the largest norm of a gradient in `training.fit`
FOLDERS = ("normal", "abnormal")


@dataclasses.dataclass(frozen=True)
class Size:
    """What is timed, and how often."""

    side: int  # width and height of a slice, pixels
    batch: int  # slices of our step
    warm_up: int  # steps that are not timed
    steps: int  # steps that are
    tutorial_batch: int
    tutorial_warm_up: int
    tutorial_steps: int
    workers: int  # processes that read files for the tutorials' way
    repeats: int
    matrix: int  # rows and columns of the matrices whose product is timed

    @property
    def slices(self) -> int:
        """As many as any way needs, each of them once."""
        ours = (self.warm_up + self.steps) * self.batch
        theirs = (self.tutorial_warm_up + self.tutorial_steps) * self.tutorial_batch
        return max(ours, theirs)


SIZES = {
    "tiny": Size(32, 2, 1, 2, 2, 1, 2, 1, 2, 64),
    "cpu": Size(128, 32, 2, 7, 4, 12, 44, 4, 6, 1024),
    "gpu": Size(128, 32, 20, 200, 4, 100, 400, 4, 6, 8192),
}


# Slices -------------------------------------------------------------------------------


def made_slices(count: int, side: int) -> np.ndarray:
    """Smooth random fields with a scanner's noise, (count, side, side) int16 HU.

    Speed does not depend on what is seen, but files of noise alone would be larger, and
    slower to read, than those of slices.

    Parameters
    ----------
    count, side
        Slices, and their width and height in pixels.
    """
    generator = torch.Generator().manual_seed(runtime.SEED)
    coarse = torch.randn(count, 1, 9, 9, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic")[:, 0]
    noise = torch.randn(smooth.shape, generator=generator)
    return (-600 + 400 * smooth + 20 * noise).clamp(-1024, 3071).to(torch.int16).numpy()


def write_pngs(folder: Path, hu: np.ndarray, label: np.ndarray) -> None:
    """Slices as the tutorials have them: grey PNG files in a folder for each class.

    Parameters
    ----------
    folder
        In which the folders of the classes are made.
    hu
        (slices, height, width).
    label
        (slices,) numbers of `FOLDERS`.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    levels = (255 * ct.window(hu)).round().astype(np.uint8)
    for number, image in enumerate(levels):
        path = folder / FOLDERS[label[number]] / f"{number:05}.png"
        Image.fromarray(image).save(path)


# The whole way ------------------------------------------------------------------------


def seconds_of_fit(
    model: nn.Module,
    batch_at: Callable[[int], Any],
    size: Size,
    precision: str,
    device: str,
) -> float:
    """The timed steps of a training as `resnet.finetune` makes them.

    Parameters
    ----------
    model
        On its device.
    batch_at
        As in `training.fit`.
    size
        How many steps, and how many of them first that do not count.
    precision, device
        As in `training.autocast`.
    """
    watch, settings = Watch(device), resnet.FineTuning()
    steps = size.warm_up + size.steps

    def at(step: int) -> Any:
        if step == size.warm_up:
            watch.start()
        return batch_at(step)

    training.fit(
        model,
        at,
        steps=steps,
        learning_rate=settings.rate,
        warm_up=size.warm_up,
        floor=0.0,
        weight_decay=settings.weight_decay,
        rates={"fc": settings.head_rate / settings.rate},
        optimiser="sgd",
        momentum=settings.momentum,
        precision=precision,
        clip=CLIP,
        loss=resnet.cross_entropy_loss,
    )
    return watch.stop()


def tutorial_loader(folder: Path, size: Size, workers: int) -> Any:
    """Files of a folder, read one by one: crops, mirror images, ImageNet's statistics.

    Parameters
    ----------
    folder
        As `write_pngs` fills it.
    size
        Of slices and batches.
    workers
        Processes that read; 0: the one that trains.
    """
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    changed = transforms.Compose(
        [
            transforms.RandomResizedCrop(size.side),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(resnet.IMAGENET_MEAN, resnet.IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(str(folder), changed)
    return DataLoader(images, size.tutorial_batch, shuffle=True, num_workers=workers)


def seconds_of_tutorial(loader: Any, size: Size, device: str) -> float:
    """The timed steps of the tutorials' loop with torchvision's ResNet-18, in float32.

    Parameters
    ----------
    loader
        Of `tutorial_loader`.
    size
        How many steps, and how many of them first that do not count.
    device
        Of torch.
    """
    from torchvision import models

    model = models.resnet18(num_classes=CLASSES).to(device)
    descent = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    watch, total, right = Watch(device), 0.0, torch.tensor(0)
    model.train()
    for step, (images, label) in enumerate(loader):
        if step == size.tutorial_warm_up:
            watch.start()
        if step == size.tutorial_warm_up + size.tutorial_steps:
            break
        label = label.to(device)
        descent.zero_grad()
        logits = model(images.to(device))
        loss = F.cross_entropy(logits, label)
        loss.backward()
        descent.step()
        total += loss.item() * len(label)
        right = right + (logits.argmax(1) == label).sum()
    return watch.stop()


# The step alone -----------------------------------------------------------------------


def seconds_of_plain_loop(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    warm_up: int,
    precision: str,
    device: str,
    clip: float | None = None,
) -> float:
    """The timed steps of a loop with nothing in it but the step and its loss.

    Parameters
    ----------
    model
        On its device.
    batches
        In memory.
    warm_up
        How many of them first do not count.
    precision, device
        As in `training.autocast`.
    clip
        The largest norm of the gradient; None: whatever it is.
    """
    descent = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
    )
    watch, losses = Watch(device), 0.0
    model.train()
    for step, (images, label) in enumerate(batches):
        if step == warm_up:
            watch.start()
        images, label = images.to(device), label.to(device)
        with training.autocast(precision, torch.device(device)):
            loss = F.cross_entropy(model(images), label)
        descent.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        descent.step()
        losses += loss.item()
    return watch.stop()


def flops_of_step(model: resnet.ResNet18, side: int) -> float:
    """Multiplications and additions for training on one slice, as torch counts them.

    Parameters
    ----------
    model
        Of `resnet.build`.
    side
        Of a slice, pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.zeros(2, model.channels, side, side)
    images = images.to(training.device_of(model))
    with FlopCounterMode(display=False) as counted:
        model(images).sum().backward()
    model.zero_grad()
    return counted.get_total_flops() / len(images)


# The study ----------------------------------------------------------------------------


class Table:
    """All contestants of one size on the same slices.

    Every repeat of every contestant begins with a new model.

    Parameters
    ----------
    size
        What is timed.
    profile
        Where they run.
    folder
        For the PNG files.
    """

    def __init__(self, size: Size, profile: runtime.Profile, folder: Path):
        self.size, self.profile, self.folder = size, profile, folder
        self.fast = runtime.fast_precision(profile)
        self.hu = made_slices(size.slices, size.side)
        self.label = np.arange(size.slices) % CLASSES
        write_pngs(folder, self.hu, self.label)
        ready = self._batches(None)
        self.ready = [ready.at(step) for step in range(size.warm_up + size.steps)]
        self.flops = flops_of_step(self._model("first"), size.side)

    def way(self, name: str) -> float:
        """Slices a second of one repeat of one of `WAYS`."""
        size, device = self.size, self.profile.device
        if name in (TUTORIAL, TUTORIAL_ALONE):
            workers = size.workers if name == TUTORIAL else 0
            loader = tutorial_loader(self.folder, size, workers)
            seconds = seconds_of_tutorial(loader, size, device)
            return size.tutorial_steps * size.tutorial_batch / seconds
        precision = self.fast if name == OURS else "float32"
        batches, model = self._batches(ct.Augment()), self._model("last")
        seconds = seconds_of_fit(model, batches.at, size, precision, device)
        return size.steps * size.batch / seconds

    def step(self, precision: str, layout: str) -> float:
        """Slices a second of our step alone."""
        size, model = self.size, self._model(layout)
        seconds = seconds_of_fit(
            model, self.ready.__getitem__, size, precision, self.profile.device
        )
        return size.steps * size.batch / seconds

    def plain(self, precision: str, layout: str, clip: float | None) -> float:
        """Slices a second of the plain loop's step, all else equal."""
        size, model = self.size, self._model(layout)
        seconds = seconds_of_plain_loop(
            model, self.ready, size.warm_up, precision, self.profile.device, clip
        )
        return size.steps * size.batch / seconds

    def _model(self, layout: str) -> resnet.ResNet18:
        model = resnet.build(CLASSES, seed=runtime.SEED).to(self.profile.device)
        is_last = layout == "last"
        return model.to(
            memory_format=torch.channels_last if is_last else torch.contiguous_format
        )

    def _batches(self, augment: ct.Augment | None) -> ct.SliceBatches:
        chosen = (self.size.warm_up + self.size.steps) * self.size.batch
        return ct.SliceBatches(
            self.hu[:chosen], self.label[:chosen], self.size.batch, augment=augment
        )


def contestants(fast: str) -> dict[str, Callable[[Table], float]]:
    """What is timed, by its name in the record.

    Parameters
    ----------
    fast
        The fast precision of this machine: in it and in float32 the plain loop runs.
    """
    timed: dict[str, Callable[[Table], float]] = {
        name: functools.partial(Table.way, name=name) for name in WAYS
    }
    for precision in ("float32", reduced(fast)):
        for layout in LAYOUTS:
            timed[f"step_{precision}_{layout}"] = functools.partial(
                Table.step, precision=precision, layout=layout
            )
    for precision, layout in (("float32", "first"), (fast, "last")):
        for name, clip in (("plain", CLIP), ("bare", None)):
            timed[f"{name}_{precision}_{layout}"] = functools.partial(
                Table.plain, precision=precision, layout=layout, clip=clip
            )
    return timed


def reduced(fast: str) -> str:
    """The precision of 16 bits that is tried, be it fast on this machine or not."""
    return "float16" if fast == "float16" else "bfloat16"


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time every contestant, in turns; compare."""
    size, fast = SIZES[study.size], runtime.fast_precision(study.profile)
    table = functools.lru_cache(maxsize=1)(
        lambda: Table(size, study.profile, study.work / "png")
    )
    repeats = study.run(
        [_part(study, table, size, fast, repeat) for repeat in range(size.repeats)]
    )
    row = {
        **dataclasses.asdict(size),
        "fast_precision": fast,
        "threads": torch.get_num_threads(),
        "slices_per_second": {
            name: [repeat["slices_per_second"][name] for repeat in repeats]
            for name in contestants(fast)
        },
        "matrix_rate": [repeat["matrix_rate"] for repeat in repeats],
        "flops_per_slice": repeats[0]["flops_per_slice"],
    }
    return _metrics(row), row


def _part(
    study: core.Study,
    table: Callable[[], Table],
    size: Size,
    fast: str,
    repeat: int,
) -> core.Part:
    def make() -> dict[str, Any]:
        timed, on = contestants(fast), table()
        names = list(timed)
        # Each repeat begins with another one: none always runs on a rested machine.
        order = [names[(repeat + n) % len(names)] for n in range(len(names))]
        speeds = {name: timed[name](on) for name in order}
        return {
            "slices_per_second": {name: speeds[name] for name in names},
            "matrix_rate": matrix_rate(size.matrix, fast, study.profile.device),
            "flops_per_slice": on.flops,
        }

    settings = {
        "timed": list(contestants(fast)),
        "threads": torch.get_num_threads(),
        **dataclasses.asdict(size),
    }
    return core.Part(f"repeat-{repeat}", settings, 1.0, make)


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the record."""
    speeds, fast = row["slices_per_second"], row["fast_precision"]
    half = reduced(fast)
    theirs = max((TUTORIAL, TUTORIAL_ALONE), key=lambda name: np.median(speeds[name]))

    def gain(one: str, other: str) -> dict[str, float]:
        return ratio(speeds[one], speeds[other])

    used = [
        100 * speed * row["flops_per_slice"] / rate
        for speed, rate in zip(
            speeds[f"step_{fast}_last"], row["matrix_rate"], strict=True
        )
    ]
    return {
        **{
            f"slices_per_second_{name}": {**core.over_repeats(v), "unit": "slices/s"}
            for name, v in speeds.items()
        },
        "ratio_vs_tutorial": gain(OURS, theirs),
        "ratio_vs_tutorial_float32": gain(OURS_FLOAT32, theirs),
        "ratio_vs_plain_float32": gain("step_float32_first", "plain_float32_first"),
        "ratio_vs_plain_fast": gain(f"step_{fast}_last", f"plain_{fast}_last"),
        "channels_last_gain_float32": gain("step_float32_last", "step_float32_first"),
        "ratio_vs_bare_float32": gain("step_float32_first", "bare_float32_first"),
        "ratio_vs_bare_fast": gain(f"step_{fast}_last", f"bare_{fast}_last"),
        f"channels_last_gain_{half}": gain(f"step_{half}_last", f"step_{half}_first"),
        f"{half}_gain_last": gain(f"step_{half}_last", "step_float32_last"),
        f"{half}_gain_first": gain(f"step_{half}_first", "step_float32_first"),
        "pipeline_share": gain(OURS, f"step_{fast}_last"),
        "share_of_matrix_rate": {**core.over_repeats(used), "unit": "%"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = (
        "Speed of our ResNet's training, beside the tutorials' way and a plain loop."
    )
    return core.main("ct_speed", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
