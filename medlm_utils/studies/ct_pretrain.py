"""A ResNet-18 pre-trained on a simulated source hospital, with a richer label.

The task of chapter 5 has one bit a patient. Here each slice says much more: how many
opacities there are, of which kind and size, and where. One linear head counts them in
each cell of the last feature map, 4 x 4 cells of 32 x 32 pixels; a second one does so
after the third stage, and a third asks after the second stage what share of each cell
is opaque, so that early stages learn sooner. Then the heads are thrown away.

A classifier reads the mean of the features over the cells. A count that is linear in
the features of its cell is linear in that mean, too; and the exact evidence of a slice
is a sum over its opacities. So what a fine-tuned head needs lies ready.

The weights are kept in the package as whole numbers of 8 bits, with one scale for each
channel. What that costs is measured on patients of the source hospital who were not
learnt from, and were not asked when the settings were chosen.

Source: chapter 5; `python -m medlm_utils.studies.ct_pretrain`. Heads at early stages
are those of Lee et al. 2015.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import ct, dicom, metrics, phantom, resnet, runtime, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core, ct_runs

SIZES_MM = (8.0, 12.0, 18.0, 27.0, 40.0)  # between which diameters are shared out
SEED, VALIDATION_SEED, TEST_SEED = 1, 2, 3  # of patients of the source hospital
COARSE, MIDDLE, FINE = 32, 16, 8  # pixels along a cell, by stage
WHOLE_WEIGHT, OPAQUE_WEIGHT = 0.2, 30.0  # beside squared errors of cells
RARE = -5.0  # logit of a cell's opaque share before anything is learnt
DRAWS = 1000  # of patients, for intervals

# What was tried before, on the validation patients alone: 320 steps of 32 slices of 800
# patients, while the first head still began by calling half of each cell opaque.
TRIED = (
    {"learning_rate": 1e-3, "rare": 0.0, "kinds_auroc": 0.590},
    {"learning_rate": 3e-3, "rare": 0.0, "kinds_auroc": 0.635},
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Patients and training of one machine.

    Parameters
    ----------
    patients, validation, test
        Of the source hospital: to learn from, to choose settings, to measure.
    steps, batch
        Of the training, in slices.
    learning_rate
        The largest one.
    looks
        How often the validation patients are asked.
    size
        Height and width of an image.
    shift
        Pixels by which a slice is moved at most.
    weight_decay, clip
        As in `training.fit`.
    """

    patients: int
    validation: int
    test: int
    steps: int
    batch: int
    learning_rate: float
    looks: int
    size: int = 128
    shift: int = 8
    weight_decay: float = 0.05
    clip: float = 5.0


PLANS = {
    "tiny": Plan(8, 4, 12, 6, 8, 1e-3, 2, size=64, shift=4),
    "cpu": Plan(2500, 150, 400, 2600, 32, 2e-3, 13),
    "gpu": Plan(10_000, 300, 400, 12_000, 64, 1e-3, 12),
}


# What a slice says --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
    """The opacities of a cohort, as a network is asked for them.

    Parameters
    ----------
    first
        (slices + 1,) where the opacities of each slice begin.
    row, column
        (opacities,) the middle of each, in pixels.
    kind
        (opacities,) its number in `phantom.KINDS`.
    place
        (opacities,) where its diameter lies among `SIZES_MM`, 0 to 4, on the scale of
        the logarithm.
    """

    first: np.ndarray
    row: np.ndarray
    column: np.ndarray
    kind: np.ndarray
    place: np.ndarray


def find(cohort: phantom.Cohort) -> Found:
    """The opacities of a cohort, in the order of its slices."""
    size = cohort.images.shape[-1]
    counts = [len(some) for some in cohort.opacities]
    spacing = np.repeat(cohort.spacing_mm, counts)
    every = [opacity for some in cohort.opacities for opacity in some]
    diameters = np.array([opacity.diameter_mm for opacity in every])
    steps = np.arange(len(SIZES_MM))
    return Found(
        np.concatenate([[0], np.cumsum(counts)]),
        np.array([o.y_mm for o in every]) / spacing + (size - 1) / 2,
        np.array([o.x_mm for o in every]) / spacing + (size - 1) / 2,
        np.array([phantom.KINDS.index(o.kind) for o in every], int),
        np.interp(np.log(diameters), np.log(SIZES_MM), steps),
    )


def count(
    found: Found,
    rows: Sequence[int] | np.ndarray,
    cells: int,
    pixels: int,
    shift: tuple[int, int] = (0, 0),
) -> Tensor:
    """How many opacities of each kind and size each cell holds.

    An opacity counts in the cell of its middle; one that is between two sizes is shared
    between them, so that the counts of a slice sum to the number of its opacities.

    Parameters
    ----------
    found
        Of a cohort.
    rows
        Numbers of slices.
    cells
        Along a side of the map.
    pixels
        Along a side of a cell.
    shift
        Rows and columns by which the slices were moved.

    Returns
    -------
    Tensor
        (rows, kinds * sizes, cells, cells), the sizes of a kind one after another.
    """
    many = len(SIZES_MM)
    which = [np.arange(found.first[row], found.first[row + 1]) for row in rows]
    number = np.repeat(np.arange(len(which)), [len(some) for some in which])
    chosen = np.concatenate(which)
    place = found.place[chosen]
    low = np.minimum(place.astype(int), many - 2)
    row, column = (
        np.clip((middle[chosen] + 0.5 + by) // pixels, 0, cells - 1).astype(int)
        for middle, by in zip((found.row, found.column), shift, strict=True)
    )
    counts = np.zeros((len(which), len(phantom.KINDS) * many, cells, cells), np.float32)
    for size, share in ((low, 1 - (place - low)), (low + 1, place - low)):
        channel = found.kind[chosen] * many + size
        np.add.at(counts, (number, channel, row, column), share)
    return torch.from_numpy(counts)


def opaque(masks: np.ndarray, pixels: int) -> Tensor:
    """(slices, kinds, cells, cells) what share of each cell each kind fills."""
    kinds = np.arange(1, len(phantom.KINDS) + 1, dtype=np.uint8)[:, None, None]
    of_each = (masks[:, None] == kinds).astype(np.float32)
    return F.avg_pool2d(torch.from_numpy(of_each), pixels)


def present(cohort: phantom.Cohort) -> np.ndarray:
    """(slices, kinds) whether the slice has an opacity of the kind."""
    named = [{opacity.kind for opacity in some} for some in cohort.opacities]
    return np.array([[kind in some for kind in phantom.KINDS] for some in named])


def moved(rows: np.ndarray, shift: tuple[int, int], outside: int) -> np.ndarray:
    """Images (slices, height, width) moved down and right; what comes in is given."""
    filled = np.full_like(rows, outside)
    height, width = rows.shape[1:]
    down, right = shift
    to = slice(max(down, 0), height + min(down, 0))
    across = slice(max(right, 0), width + min(right, 0))
    source = slice(max(-down, 0), height + min(-down, 0))
    along = slice(max(-right, 0), width + min(-right, 0))
    filled[:, to, across] = rows[:, source, along]
    return filled


# Training -----------------------------------------------------------------------------


class Heads(nn.Module):
    """A ResNet with the three heads that are thrown away.

    Parameters
    ----------
    network
        As `resnet.build` makes it; its own head is not used.
    """

    def __init__(self, network: resnet.ResNet18):
        super().__init__()
        network.fc.requires_grad_(False)
        counts = len(phantom.KINDS) * len(SIZES_MM)
        self.network = network
        self.share = nn.Conv2d(128, len(phantom.KINDS), 1)
        self.middle = nn.Conv2d(256, counts, 1)
        self.coarse = nn.Conv2d(512, counts, 1)
        for head in (self.share, self.middle, self.coarse):
            nn.init.normal_(head.weight, std=0.01)
            assert head.bias is not None
            nn.init.zeros_(head.bias)
        # Hardly anything is opaque: a head that has to learn that learns nothing else.
        assert self.share.bias is not None
        nn.init.constant_(self.share.bias, RARE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(slices, 1, height, width) to three maps, the finest first."""
        net = self.network
        stem = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        second = net.layer2(net.layer1(stem))
        third = net.layer3(second)
        return self.share(second), self.middle(third), self.coarse(net.layer4(third))


class Batches:
    """Slices in random order, moved and with other contrast, with their answers.

    Parameters
    ----------
    cohort
        Of the source hospital.
    plan
        Its size, batch and shift count.
    seed
        Of order, shifts and contrasts.
    """

    def __init__(self, cohort: phantom.Cohort, plan: Plan, seed: int):
        self.cohort, self.plan, self.seed = cohort, plan, seed
        self.found = find(cohort)

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Images and what each head is to say; depends on the step alone."""
        plan, rows = self.plan, self._rows(step)
        rng = np.random.default_rng([self.seed, 1, step])
        down, right = rng.integers(-plan.shift, plan.shift + 1, 2).tolist()
        shift = (down, right)
        images = moved(self.cohort.images[rows], shift, int(dicom.AIR_HU))
        masks = moved(self.cohort.lesions[rows], shift, 0)
        one_each = (len(rows), 1, 1)
        hu = (images - dicom.AIR_HU) * rng.normal(1, 0.04, one_each) + dicom.AIR_HU
        hu += rng.normal(0, 30, one_each)
        middle, coarse = (
            count(self.found, rows, plan.size // pixels, pixels, shift)
            for pixels in (MIDDLE, COARSE)
        )
        return ct.to_tensor(hu), opaque(masks, FINE), middle, coarse

    def _rows(self, step: int) -> np.ndarray:
        """Each slice once in a pass; what is too few for a batch is left out."""
        batch = self.plan.batch
        a_pass, number = divmod(step, len(self.cohort) // batch)
        order = np.random.default_rng([self.seed, 0, a_pass]).permutation(
            len(self.cohort)
        )
        return order[number * batch : (number + 1) * batch]


def richer_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    """What the three heads get wrong, summed over slices, and how many there are.

    Squared errors of the counts, cell by cell, at the two later heads; at the last one
    those of the whole slice, too. Cross-entropy of the opaque shares at the first.
    """
    device = training.device_of(model)
    images, share, middle, coarse = (part.to(device) for part in batch)
    said = [map_.float() for map_ in model(images)]
    opaque_nats = F.binary_cross_entropy_with_logits(said[0], share, reduction="none")
    misses = (said[1] - middle).square().sum() + (said[2] - coarse).square().sum()
    whole = (said[2] - coarse).sum(dim=(2, 3)).square().sum()
    # Cells with something in them are few: the mean would vanish beside the counts.
    nats = OPAQUE_WEIGHT * opaque_nats.mean(dim=(1, 2, 3)).sum()
    return misses + WHOLE_WEIGHT * whole + nats, len(images)


def new_model(seed: int) -> Heads:
    """Network and heads whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Heads(resnet.build(1, seed=seed))


@torch.no_grad()
def counted(model: Heads, images: np.ndarray, precision: str) -> np.ndarray:
    """How many opacities of each kind and size the last head sees in each slice.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    images
        (slices, height, width), HU.
    precision
        As in `training.autocast`.

    Returns
    -------
    ndarray
        (slices, kinds, sizes); a count may be a little below 0.
    """
    device = training.device_of(model)
    found = []
    with training.evaluating(model), training.autocast(precision, device):
        for first in range(0, len(images), 64):
            batch = ct.to_tensor(images[first : first + 64]).to(device)
            found.append(model(batch)[2].float().sum(dim=(2, 3)).cpu())
    shape = len(images), len(phantom.KINDS), len(SIZES_MM)
    return torch.cat(found).numpy().reshape(shape)


def explained(said: np.ndarray, truth: np.ndarray) -> float:
    """The share of the counts' variance that is explained, over all kinds and sizes."""
    return float(1 - np.square(said - truth).mean() / truth.var(axis=0).mean())


def true_counts(cohort: phantom.Cohort) -> np.ndarray:
    """(slices, kinds, sizes) what `counted` is to say."""
    size = cohort.images.shape[-1]
    counts = count(find(cohort), range(len(cohort)), 1, size).numpy()
    return counts.reshape(len(cohort), len(phantom.KINDS), len(SIZES_MM))


def kinds_auroc(said: np.ndarray, cohort: phantom.Cohort) -> float:
    """AUROC of "this slice has the kind", mean over kinds, by the count of the kind."""
    truth, scores = present(cohort), said.sum(axis=2)
    return mean_auroc(truth, scores)


def mean_auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The mean over columns of the AUROC of each."""
    columns = zip(truth.T, scores.T, strict=True)
    return float(np.mean([metrics.auroc(t.astype(int), s) for t, s in columns]))


def pretrain(study: core.Study, plan: Plan) -> dict[str, Any]:
    """Train, write the weights as work files, and ask both about the test patients."""
    draw = functools.partial(phantom.draw, hospital="source", size=plan.size)
    cohort, watched = draw(plan.patients, SEED), draw(plan.validation, VALIDATION_SEED)
    precision = ct_runs.precision_of(study)
    model, truth = new_model(runtime.SEED), true_counts(watched)
    model.to(study.profile.device)

    def look() -> dict[str, float]:
        said = counted(model, watched.images, precision)
        found = {
            "loss": 1 - explained(said, truth),
            "kinds_auroc": kinds_auroc(said, watched),
        }
        words = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        core.say(f"validation patients: {words}")
        return found

    history = study.fit(
        model,
        Batches(cohort, plan, runtime.SEED).at,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warm_up=plan.steps // 20,
        floor=0.01,
        weight_decay=plan.weight_decay,
        betas=(0.9, 0.98),
        clip=plan.clip,
        precision=precision,
        loss=richer_loss,
        evaluation=look,
        evaluate_every=plan.steps // plan.looks,
        checkpoint_every=250,
    )
    about = recipe(plan, precision, history)
    small = study.file(".safetensors")
    resnet.save_int8(model.network, small, about)
    test = draw(plan.test, TEST_SEED)
    in_float = counted(model, test.images, precision)
    model.network = resnet.build(1, small).to(study.profile.device)
    in_int8 = counted(model, test.images, precision)
    return {
        "weights": small.name,
        "megabytes": small.stat().st_size / 1e6,
        "curve": [
            {"step": step, **measured}
            for (step, _), measured in zip(
                history.evaluations, history.measures, strict=True
            )
        ],
        "slices_per_second": history.targets_per_second,
        "training_seconds": history.seconds[-1],
        "patient": test.patient.tolist(),
        "present": present(test).astype(int).tolist(),
        "float": in_float.sum(axis=2).round(5).tolist(),
        "int8": in_int8.sum(axis=2).round(5).tolist(),
        "explained": explained(in_float, true_counts(test)),
        "explained_int8": explained(in_int8, true_counts(test)),
    }


def recipe(plan: Plan, precision: str, history: training.History) -> dict[str, Any]:
    """What the file of weights says of itself."""
    return {
        "made_by": "python -m medlm_utils.studies.ct_pretrain",
        "data": f"simulated: phantom version {phantom.VERSION}, hospital 'source'",
        "seeds": {"patients": SEED, "training": runtime.SEED},
        "plan": dataclasses.asdict(plan),
        "targets": {
            "kinds": list(phantom.KINDS),
            "sizes_mm": list(SIZES_MM),
            "whole_weight": WHOLE_WEIGHT,
            "opaque_weight": OPAQUE_WEIGHT,
        },
        "window": list(ct.LUNG),
        "precision": precision,
        "image_passes": sum(history.targets),
        "validation": history.measures[-1],
        "versions": runtime.versions(),
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre-train, keep the weights beside the records, and say what they are worth."""
    plan = PLANS[study.size]
    settings = {
        **dataclasses.asdict(plan),
        "precision": ct_runs.precision_of(study),
        "phantom": phantom.VERSION,
        "targets": [*SIZES_MM, WHOLE_WEIGHT, OPAQUE_WEIGHT],
    }
    part = core.Part("pretrain", settings, 1.0, lambda: pretrain(study, plan))
    result = study.run([part])[0]
    keep(study.work / result["weights"], weights_path(study))
    return summary(result), {
        "plan": dataclasses.asdict(plan),
        "curve": result["curve"],
        "sizes_mm": list(SIZES_MM),
        "tried": TRIED,
    }


def weights_path(study: core.Study) -> Path:
    """Where the weights go: beside the folder of the studies' records."""
    return study.path.parent.parent / "weights" / resnet.SIMULATED


def keep(work: Path, path: Path) -> None:
    """Copy a work file to its place, whole or not at all."""
    if not work.exists():
        raise MedlmError(
            f"{work} is gone. Add --fresh to pre-train again, or name the folder of "
            "work files with --work."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(work.read_bytes())
    part.replace(path)


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the test patients, with intervals by patient.

    Parameters
    ----------
    result
        As `pretrain` gives it.
    """
    who, truth = result["patient"], np.array(result["present"])
    scores = {name: np.array(result[name]) for name in ("float", "int8")}

    def lost(truth: np.ndarray, whole: np.ndarray, small: np.ndarray) -> float:
        return mean_auroc(truth, whole) - mean_auroc(truth, small)

    of_each = functools.partial(metrics.interval_by_patient, draws=DRAWS)
    found: dict[str, Any] = {
        f"kinds_auroc_{name}": of_each(mean_auroc, who, truth, said).as_metric()
        for name, said in scores.items()
    }
    found["kinds_auroc_lost_by_int8"] = of_each(
        lost, who, truth, scores["float"], scores["int8"]
    ).as_metric()
    for number, kind in enumerate(phantom.KINDS):
        found[f"auroc_{kind.replace(' ', '_')}"] = of_each(
            metrics.auroc, who, truth[:, number], scores["int8"][:, number]
        ).as_metric()
    found["counts_explained"] = {"value": result["explained"]}
    found["counts_explained_int8"] = {"value": result["explained_int8"]}
    found["weights_megabytes"] = {"value": result["megabytes"], "unit": "MB"}
    found["slices_per_second"] = {"value": result["slices_per_second"], "unit": "1/s"}
    found["training_minutes"] = {
        "value": result["training_seconds"] / 60,
        "unit": "min",
    }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Pre-train a ResNet-18 on a simulated hospital; the weights of chapter 5."
    return core.main("ct_pretrain", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
