"""A pretrained CNN: its blocks by hand, new head, freeze by stage, fine-tune, explain.

Knows nothing about files, patients or how good an answer is. Images come as
`ct.SliceBatches` gives them: (batch, channels, height, width) in grey, 0 to 1.

A stage is one of `STAGES`, from the input on; `frozen_stages` counts from there.

Source: He et al. 2016; chapter 5.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from medlm_utils import ct, metrics, training
from medlm_utils.runtime import MedlmError

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
# ImageNet's weights expect red, green and blue with this mean and spread.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOSSES = ("cross-entropy", "squared error")
SIMULATED = "resnet18_simulated.safetensors"  # made by the study ct_pretrain
_FORMAT = 1  # of a file of weights


# From first principles ----------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to what came in.

    The names of its parts are torchvision's, so that weights can be exchanged.

    Parameters
    ----------
    inputs, outputs
        Channels.
    stride
        Of the first convolution; 2 halves height and width.
    shortcut
        False: the twin that adds nothing, as networks were before.

    Source: He et al. 2016, figure 2; chapter 5.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, shortcut: bool = True
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut
        self.downsample: nn.Module | None = None
        if shortcut and (stride != 1 or inputs != outputs):  # shapes have to agree
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, smaller by the stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut:
            out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


def count_parameters(module: nn.Module, trained: bool = False) -> int:
    """How many numbers a module learns; with `trained`, without the frozen ones."""
    chosen = (p for p in module.parameters() if p.requires_grad or not trained)
    return sum(p.numel() for p in chosen)


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many pixels of the image one output sees, and how far two outputs lie apart.

    Parameters
    ----------
    layers
        (kernel, stride) of convolutions and poolings, one after the other.

    Returns
    -------
    tuple of int
        Width of the receptive field and stride, in pixels of the image.

    Raises
    ------
    MedlmError
        If a kernel or a stride is below 1.

    Source: Araujo et al. 2019; chapter 5.
    """
    field = stride = 1
    for kernel, step in layers:
        if kernel < 1 or step < 1:
            raise MedlmError(f"A layer {(kernel, step)}; expected numbers from 1 on.")
        field += (kernel - 1) * stride
        stride *= step
    return field, stride


def receptive_fields(model: ResNet18) -> dict[str, tuple[int, int]]:
    """Receptive field and stride in pixels at the end of each stage with convolutions.

    The longest way counts: through the convolutions of each block, not the shortcuts.

    Source: chapter 5.
    """
    layers: list[tuple[int, int]] = []
    fields = {}
    for stage in STAGES[:-1]:
        for name, module in _stage(model, stage).named_modules():
            is_layer = isinstance(module, (nn.Conv2d, nn.MaxPool2d))
            if is_layer and "downsample" not in name:
                kernel, step = module.kernel_size, module.stride
                layers.append((_first(kernel), _first(step)))
        fields[stage] = receptive_field(layers)
    return fields


def _first(size: Any) -> int:
    return int(size[0] if isinstance(size, tuple) else size)


def gradients_by_depth(
    blocks: int,
    shortcut: bool,
    channels: int = 16,
    size: int = 16,
    seed: int = 0,
    normalise: bool = True,
) -> np.ndarray:
    """How large the gradient is that reaches each of a stack of new blocks.

    Parameters
    ----------
    blocks
        Of type `ResidualBlock`, one after the other.
    shortcut
        False: without.
    channels, size
        Of random images that go in.
    seed
        Of weights, images and the random direction that is asked for at the end.
    normalise
        False: no batch normalisation, as before 2015.

    Returns
    -------
    ndarray
        (blocks,): norm of the gradient in the input of each block, from the first on,
        divided by its norm at the end.

    Source: He et al. 2016; chapter 5.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stack = nn.ModuleList(
            ResidualBlock(channels, channels, shortcut=shortcut) for _ in range(blocks)
        )
        states = [torch.randn(8, channels, size, size, requires_grad=True)]
        direction = torch.randn(8, channels, size, size)
    for block in stack:
        if not normalise:
            block.bn1, block.bn2 = nn.Identity(), nn.Identity()
        states.append(block(states[-1]))
    found = torch.autograd.grad((states[-1] * direction).sum(), states)
    norms = np.array([float(gradient.norm()) for gradient in found])
    return norms[:-1] / norms[-1]


# The network --------------------------------------------------------------------------


class ResNet18(models.ResNet):
    """torchvision's ResNet-18 for images of any number of channels.

    Its stages can be frozen; what is frozen keeps the running means of its batch
    normalisation too, also in training mode.

    Parameters
    ----------
    classes
        Outputs: classes, or 1 for a number.
    channels
        1 for CT.

    Source: He et al. 2016; chapter 5.
    """

    def __init__(self, classes: int, channels: int = 1):
        if classes < 1 or channels < 1:
            raise MedlmError(
                f"{classes} classes and {channels} channels; expected at least 1 each."
            )
        super().__init__(models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=classes)
        self.fc: nn.Linear
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out")
        self.frozen_stages = 0
        self.keeps_norms = False

    @property
    def classes(self) -> int:
        """Outputs."""
        return int(self.fc.out_features)

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.conv1.in_channels

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (batch, 512): the mean of each channel of layer4."""
        for stage in STAGES[:-1]:
            x = _stage(self, stage)(x)
        return x.mean((2, 3))

    def new_head(self, classes: int) -> None:
        """A head with random weights for so many classes."""
        self.fc = nn.Linear(self.fc.in_features, classes).to(self.fc.weight.device)

    def train(self, mode: bool = True) -> ResNet18:
        """Training mode, but for what `freeze` keeps as it is."""
        super().train(mode)
        if self.keeps_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.training = False
        for stage in STAGES[: self.frozen_stages]:
            for module in _stage(self, stage).modules():
                module.training = False
        return self


def _stage(model: ResNet18, name: str) -> nn.Module:
    """The modules of a stage; those of the stem in the order in which they are used."""
    if name == "stem":
        return nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    return getattr(model, name)


def freeze(model: ResNet18, stages: int, norms: bool = False) -> None:
    """Leave the first stages as they are, batch normalisation included.

    Parameters
    ----------
    model
        All its later stages are trained.
    stages
        0: all is trained; 1: the stem is not; 5: the head alone is.
    norms
        True: every batch normalisation keeps its running mean and spread, and uses them
        in training too. Its factors and shifts are trained.

    Raises
    ------
    MedlmError
        If there are not so many stages before the head.

    Source: chapter 5.
    """
    if not 0 <= stages < len(STAGES):
        raise MedlmError(
            f"{stages} stages are to be frozen; expected 0 to {len(STAGES) - 1} of "
            f"{', '.join(STAGES[:-1])}."
        )
    model.frozen_stages, model.keeps_norms = stages, norms
    for number, stage in enumerate(STAGES):
        _stage(model, stage).requires_grad_(number >= stages)
    model.train(model.training)


def build(
    classes: int,
    weights: str | Path | None = None,
    channels: int = 1,
    seed: int = 0,
) -> ResNet18:
    """A ResNet-18, from scratch or with weights that are there already.

    Parameters
    ----------
    classes
        Outputs. The head is random unless the weights have one of the same size and
        come from a file that is named.
    weights
        None: random. ``"imagenet"``: torchvision's, downloaded on the first use and
        brought to one channel. ``"simulated"``: those that come with the package, from
        the study ct_pretrain. Or a file that `save_int8` wrote.
    channels
        Of an image.
    seed
        Of what is random.

    Raises
    ------
    MedlmError
        If the weights cannot be downloaded, are not there, or are damaged.

    Source: chapter 5.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResNet18(classes, channels)
    if weights == "imagenet":
        _load_imagenet(model)
    elif weights is not None:
        path = simulated_weights() if weights == "simulated" else Path(weights)
        kept, _ = load_int8(path)
        if weights == "simulated" or len(kept.get("fc.bias", ())) != classes:
            kept = {n: t for n, t in kept.items() if not n.startswith("fc.")}
        _load(model, kept, str(path))
    return model.to(memory_format=torch.channels_last)  # a third faster on a CPU


def simulated_weights() -> Path:
    """The file of the weights that were pre-trained on simulated images."""
    return Path(__file__).parent / "recorded" / "weights" / SIMULATED


def _load(model: ResNet18, kept: Mapping[str, Tensor], source: str) -> None:
    """Give the model these weights; only a head may be missing."""
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in kept and not n.startswith("fc.")]
    odd = [n for n, t in kept.items() if n not in wanted or wanted[n].shape != t.shape]
    if missing or odd:
        name = (missing + odd)[0]
        raise MedlmError(
            f"The weights in {source} do not fit a ResNet-18 with {model.channels} "
            f"channels: {name} is {'missing' if missing else 'another one'}. Expected "
            "those of such a model."
        )
    model.load_state_dict(dict(kept), strict=False)


def _load_imagenet(model: ResNet18) -> None:
    """torchvision's weights, for grey images between 0 and 1."""
    chosen = models.ResNet18_Weights.IMAGENET1K_V1
    try:
        kept = chosen.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # torch, urllib and the socket raise what they like
        raise MedlmError(
            "ImageNet's weights for ResNet-18 cannot be downloaded: "
            f"{type(error).__name__}: {error}. Expected a network, or the file in the "
            "cache of torch.hub. Without one use weights='simulated'."
        ) from error
    _load(model, for_grey(kept, model.channels), "torchvision")


def for_grey(kept: Mapping[str, Tensor], channels: int = 1) -> dict[str, Tensor]:
    """Weights for red, green and blue, brought to grey images between 0 and 1.

    ImageNet's networks expect each colour c as (x_c - mean_c) / std_c. A grey image has
    the same x in each, so the first convolution of all colours is one of x with the
    summed weights w_c / std_c, less a constant; the batch normalisation that follows
    subtracts the constant. Only at the image's border, where zeros are padded, the
    result differs.

    Parameters
    ----------
    kept
        Of torchvision's ResNet-18; without its head in the result.
    channels
        Between which the summed weights are shared.

    Source: chapter 5.
    """
    weight = kept["conv1.weight"]
    mean, std = (
        weight.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    grey = {n: t.clone() for n, t in kept.items() if not n.startswith("fc.")}
    summed = (weight / std).sum(1, keepdim=True)
    grey["conv1.weight"] = summed.repeat(1, channels, 1, 1) / channels
    grey["bn1.running_mean"] += (weight * mean / std).sum((1, 2, 3))
    return grey


# Weights in a small file --------------------------------------------------------------


def save_int8(model: nn.Module, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write weights of 8 bits, with what is known about them.

    Each output channel of a convolution or a linear layer has a scale of its own, such
    that its largest weight becomes 127; a weight is then off by half a step at most.
    All else, such as batch normalisation, stays as it is.

    Parameters
    ----------
    model
        Whose weights they are.
    path
        Of a safetensors file.
    about
        As JSON can hold it: recipe, seed, data, numbers that were reached.

    Raises
    ------
    MedlmError
        If a weight is not finite, or the file cannot be written.

    Source: chapter 5.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        if not torch.isfinite(value).all():
            raise MedlmError(
                f"{name} is not finite; expected weights that are numbers."
            )
        if value.dim() < 2:
            tensors[name] = value.clone()
        else:
            tensors[name], tensors[f"{name}.scale"] = _to_int8(value)
    _write_weights(tensors, path, about)


def save(model: ResNet18, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write a model with its weights as they are, and what is known about it.

    Parameters
    ----------
    model, path, about
        As in `save_int8`.

    Raises
    ------
    MedlmError
        If the file cannot be written.

    Source: chapter 5.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    _write_weights(tensors, Path(path), about)


def load(path: str | Path) -> tuple[ResNet18, dict[str, Any]]:
    """What `save` wrote: a model, ready for evaluation, and what is known about it.

    Parameters
    ----------
    path
        Of the file; one of `save_int8` will do too.

    Raises
    ------
    MedlmError
        As in `load_int8`, or if the weights are not those of a ResNet-18.

    Source: chapter 5.
    """
    kept, about = load_int8(path)
    if not {"fc.weight", "conv1.weight"} <= kept.keys():
        raise _bad_file(Path(path), "they are not those of a ResNet-18")
    outputs, channels = len(kept["fc.weight"]), kept["conv1.weight"].shape[1]
    with torch.random.fork_rng():  # weights are drawn, and then replaced
        model = ResNet18(outputs, channels)
    _load(model, kept, str(path))
    return model.eval(), about


def _write_weights(
    tensors: dict[str, Tensor], path: Path, about: Mapping[str, Any]
) -> None:
    """Beside, then renamed."""
    text = json.dumps(dict(about))
    header = {"medlm": str(_FORMAT), "about": text, "sha256": _digest(tensors, text)}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(safetensors.torch.save(tensors, metadata=header))
        os.replace(part, path)
    except OSError as error:
        raise MedlmError(
            f"Cannot write the weights to {path}: {error.strerror}. Expected a folder "
            "with free space that you may write."
        ) from error


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers -127 to 127, and the scale of each output channel."""
    scale = weight.flatten(1).abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scale.view(shape)).round().to(torch.int8), scale


def load_int8(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_int8` wrote: weights in float32 by name, and what is known about them.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    MedlmError
        If there is no such file, it is damaged, of another kind, or its content does
        not fit its hash.

    Source: chapter 5.
    """
    path = Path(path)
    if not path.is_file():
        raise MedlmError(
            f"There are no weights {path}; expected a file that save_int8 or `medlm "
            "ct-finetune` wrote. Those of the package are made by `python -m "
            "medlm_utils.studies.ct_pretrain`."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise _bad_file(path, "it is damaged or cut short") from error
    if header.get("medlm") != str(_FORMAT) or "about" not in header:
        raise _bad_file(path, "another program, or another version, wrote it")
    if header.get("sha256") != _digest(tensors, header["about"]):
        raise _bad_file(path, "its content does not fit its hash")
    weights = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = tensors[f"{name}.scale"].view(-1, *[1] * (tensor.dim() - 1))
            weights[name] = tensor.float() * scale
        elif not name.endswith(".scale"):
            weights[name] = tensor
    return weights, json.loads(header["about"])


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, tensors and text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bad_file(path: Path, why: str) -> MedlmError:
    return MedlmError(
        f"{path} holds no weights that can be used: {why}. Expected a file that "
        "save_int8 wrote. Copy it again, or install the package again."
    )


# Answers ------------------------------------------------------------------------------


def cross_entropy_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, int]:
    """Cross-entropy of the labels, summed over a batch: for `training.fit`.

    Parameters
    ----------
    model
        (batch, channels, height, width) to logits (batch, classes).
    batch
        As `ct.SliceBatches` makes it.

    Returns
    -------
    tuple
        Nats, a scalar with gradient, and the number of slices.

    Source: chapter 5.
    """
    images, labels = (part.to(training.device_of(model)) for part in batch)
    return F.cross_entropy(model(images).float(), labels, reduction="sum"), len(labels)


def squared_error_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, int]:
    """Squared error of a number, summed over a batch: for `training.fit`.

    Parameters
    ----------
    model
        With one output.
    batch
        As `ct.SliceBatches` makes it of labels of a float type.

    Source: chapter 5.
    """
    images, wanted = (part.to(training.device_of(model)) for part in batch)
    errors = model(images).float().squeeze(1) - wanted
    return errors.square().sum(), len(wanted)


def predict(
    model: nn.Module,
    images: np.ndarray,
    window: ct.Window | None = ct.LUNG,
    batch_size: int = 64,
    precision: str = "float32",
    accelerator: Any = None,
) -> np.ndarray:
    """The outputs for every slice: logits, or numbers.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    images
        (slices, height, width), as `ct.SliceBatches` takes them.
    window
        As in `ct.to_tensor`.
    batch_size
        Slices in a batch: only time and memory depend on it.
    precision
        As in `training.autocast`.
    accelerator
        An `accelerate.Accelerator`: each process takes its share of the slices, and all
        get the whole result.

    Returns
    -------
    ndarray
        (slices, classes), float32.

    Raises
    ------
    MedlmError
        If there are no slices, or `batch_size` is below 1.

    Source: chapter 5.
    """
    return _of_each(model, model, images, window, batch_size, precision, accelerator)


def features(
    model: ResNet18,
    images: np.ndarray,
    window: ct.Window | None = ct.LUNG,
    batch_size: int = 64,
    precision: str = "float32",
) -> np.ndarray:
    """What the head of the model sees of every slice, (slices, 512); as `predict`."""
    compute = model.features
    return _of_each(compute, model, images, window, batch_size, precision, None)


@torch.no_grad()
def _of_each(
    compute: Callable[[Tensor], Tensor],
    model: nn.Module,
    images: np.ndarray,
    window: ct.Window | None,
    batch_size: int,
    precision: str,
    accelerator: Any,
) -> np.ndarray:
    """`compute` of each slice, in batches, shared by all processes."""
    count = len(images)
    if not count or batch_size < 1:
        raise MedlmError(
            f"{count} slices in batches of {batch_size}; expected at least one slice, "
            "and batches of at least one."
        )
    size = accelerator.num_processes if accelerator else 1
    each = -(-count // size)
    order = np.arange(each * size) % count  # some twice, so that all shares are equal
    mine = order[accelerator.process_index if accelerator else 0 :: size]
    device = training.device_of(model)
    parts = []
    with training.evaluating(model), training.autocast(precision, device):
        for place in range(0, each, batch_size):
            chosen = images[mine[place : place + batch_size]]
            batch = ct.to_tensor(chosen, window).to(device)
            parts.append(compute(batch).float())
    values = torch.cat(parts)
    if size > 1:
        values = accelerator.gather(values)
        order = np.concatenate([order[number::size] for number in range(size)])
    found = np.empty((count, values.shape[1]), np.float32)
    found[order] = values.cpu().numpy()
    return found


# Fine-tuning --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How a network is fine-tuned: gradient descent with momentum, as in 2016.

    Parameters
    ----------
    epochs
        Times that every slice is seen.
    looks
        How often in an epoch, about, the validation slices are looked at, and after the
        last step in any case.
    batch
        Slices a step.
    rate, head_rate
        Peak learning rates of the stages and of the head.
    momentum
        Of `training.sgd`.
    warm_up
        Share of the steps in which the rates rise; then they fall in a cosine.
    weight_decay
        Of convolutions and head; not of batch normalisations and biases.
    frozen_stages, keep_norms
        As in `freeze`. In few steps, or in batches of few images, a batch's own mean
        and spread do harm.
    head_first
        True: the head begins as the best linear one on the features as they are, so
        that no random gradient goes through weights that are good already. From scratch
        there are none: say False.
    augment
        As in `ct.SliceBatches`.
    loss
        ``"cross-entropy"`` for classes, ``"squared error"`` for numbers.
    seed
        Of order and changes of the slices.
    precision
        Of the forward pass, as in `training.autocast`.
    channels_last
        True, as `build` makes it: the channels of a pixel lie together in memory, which
        convolutions like best.

    Raises
    ------
    MedlmError
        If a number is out of its range.

    Source: He et al. 2016; chapter 5.
    """

    epochs: int = 8
    looks: int = 1
    batch: int = 32
    rate: float = 0.01
    head_rate: float = 0.02
    momentum: float = 0.9
    warm_up: float = 0.1
    weight_decay: float = 1e-4
    frozen_stages: int = 0
    keep_norms: bool = False
    head_first: bool = True
    augment: ct.Augment | None = dataclasses.field(default_factory=ct.Augment)
    loss: str = "cross-entropy"
    seed: int = 0
    precision: str = "float32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("looks", 1),
            ("batch", 1),
            ("weight_decay", 0),
            ("frozen_stages", 0),
        ):
            if getattr(self, name) < low:
                raise _bad_setting(self, name, f"at least {low}")
        for name in ("rate", "head_rate"):
            if not getattr(self, name) > 0:
                raise _bad_setting(self, name, "above 0")
        for name in ("warm_up", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise _bad_setting(self, name, "0 up to less than 1")
        if self.loss not in LOSSES:
            raise _bad_setting(self, "loss", f"one of {', '.join(LOSSES)}")


def _bad_setting(settings: FineTuning, name: str, expected: str) -> MedlmError:
    return MedlmError(f"{name} is {getattr(settings, name)!r}; expected {expected}.")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What happened in a fine-tuning, measured at each look at the validation slices.

    Parameters
    ----------
    history
        Of every step.
    loss
        Mean cross-entropy in nats a slice, or mean squared error, (looks,).
    steps
        That were done before each look, (looks,).

    Source: chapter 5.
    """

    history: training.History
    loss: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def best(self) -> int:
        """The look with the smallest loss, counted from 1."""
        return 1 + int(np.argmin(self.loss))


def fit_head(
    model: ResNet18,
    images: np.ndarray,
    labels: ArrayLike,
    window: ct.Window | None = ct.LUNG,
    loss: str = "cross-entropy",
    penalty: float = 100.0,
    precision: str = "float32",
) -> None:
    """Give the head the best linear weights for the features as they are.

    A logistic regression for classes, a ridge regression for numbers, on features that
    are brought to mean 0 and, all by one factor, to spread 1 first. This alone is the
    "frozen" network.

    Parameters
    ----------
    model
        Its head is changed, its stages are not.
    images, labels, window
        As in `ct.SliceBatches`; a class without a slice gets a small bias alone.
    loss
        As in `FineTuning`.
    penalty
        How much large weights cost.
    precision
        Of the features, as in `training.autocast`.

    Raises
    ------
    MedlmError
        If labels do not fit slices or model, or all slices have the same one.

    Source: Kumar et al. 2022; chapter 5.
    """
    known = _checked_labels(model, labels, len(images), loss)
    if len(np.unique(known)) < 2:
        raise MedlmError(
            f"All {len(known)} slices have the label {known[0]}; expected at least two "
            "different ones."
        )
    seen = features(model, images, window, precision=precision).astype(float)
    # One factor for all: a feature that hardly varies must not become a loud one.
    mean, spread = seen.mean(0), max(float(np.sqrt(seen.var(0).mean())), 1e-6)
    fitted = _numbers_head if loss == "squared error" else _classes_head
    weight, bias = fitted((seen - mean) / spread, known, penalty, model.classes)
    weight = weight / spread
    head = model.fc
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight))
        head.bias.copy_(torch.as_tensor(bias - weight @ mean))


def _classes_head(
    seen: np.ndarray, known: np.ndarray, penalty: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, 512) and bias of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=1 / penalty, max_iter=2000).fit(seen, known)
    some_weight, some_bias = found.coef_, found.intercept_
    if len(found.classes_) == 2:  # scikit-learn gives the second against the first
        some_weight = np.vstack([-some_weight, some_weight]) / 2
        some_bias = np.append(-some_bias, some_bias) / 2
    weight = np.zeros((classes, seen.shape[1]))
    bias = np.full(classes, -np.log(len(known)))
    weight[found.classes_], bias[found.classes_] = some_weight, some_bias
    return weight, bias


def _numbers_head(
    seen: np.ndarray, known: np.ndarray, penalty: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (1, 512) and bias of a ridge regression."""
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=penalty).fit(seen, known)
    return found.coef_[None], np.array([found.intercept_])


def _checked_labels(
    model: ResNet18, labels: ArrayLike, slices: int, loss: str
) -> np.ndarray:
    """Labels that fit slices, model and loss."""
    known = np.asarray(labels)
    if loss == "squared error":
        if model.classes != 1 or known.shape != (slices,):
            raise MedlmError(
                f"Numbers of shape {known.shape} for {slices} slices, and a model with "
                f"{model.classes} outputs; expected one number a slice, and one output."
            )
        return known.astype(np.float32)
    whole = known.dtype.kind in "iub" and known.shape == (slices,) and slices > 0
    if not whole or known.min() < 0 or known.max() >= model.classes:
        raise MedlmError(
            f"Labels of shape {known.shape} and type {known.dtype} for {slices} "
            f"slices; expected one whole number a slice, 0 to {model.classes - 1}."
        )
    return known.astype(np.int64)


def finetune(
    model: ResNet18,
    train_images: np.ndarray,
    train_labels: ArrayLike,
    val_images: np.ndarray,
    val_labels: ArrayLike,
    settings: FineTuning | None = None,
    *,
    window: ct.Window | None = ct.LUNG,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    resume: bool = False,
    progress: bool = False,
    accelerator: Any = None,
) -> Tuned:
    """Fine-tune a network, the head first, and leave it with its best weights.

    They are those of the look with the smallest loss on the validation slices. With
    several processes each normalises its own part of a batch, so that their result is
    near that of one process, and not equal to it.

    Parameters
    ----------
    model
        Trained in place. Its head has as many outputs as there are classes.
    train_images, train_labels, val_images, val_labels, window
        As in `ct.SliceBatches`.
    settings
        By default ``FineTuning()``.
    checkpoint, checkpoint_every, resume, progress, accelerator
        As in `training.fit`. A checkpoint of other slices or settings is refused.

    Raises
    ------
    MedlmError
        If labels do not fit the slices or the model, or as in `training.fit`.

    Source: He et al. 2016; chapter 5.
    """
    settings = settings or FineTuning()
    known = _checked_labels(model, train_labels, len(train_images), settings.loss)
    truth = _checked_labels(model, val_labels, len(val_images), settings.loss)
    batches = ct.SliceBatches(
        train_images, known, settings.batch, settings.seed, settings.augment, window
    )
    precision = settings.precision
    if accelerator is not None:
        model.to(accelerator.device)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    if settings.head_first and not (resume and checkpoint and checkpoint.exists()):
        fit_head(model, train_images, known, window, settings.loss, precision=precision)
    freeze(model, settings.frozen_stages, settings.keep_norms)
    steps = settings.epochs * len(batches)

    def validate() -> dict[str, float]:
        outputs = predict(
            model, val_images, window, precision=precision, accelerator=accelerator
        )
        return {"loss": _mean_loss(outputs, truth, settings.loss)}

    is_class = settings.loss == "cross-entropy"
    history = training.fit(
        model,
        batches.at,
        steps=steps,
        learning_rate=settings.rate,
        rates={"fc": settings.head_rate / settings.rate},
        warm_up=round(settings.warm_up * steps),
        floor=0.0,
        weight_decay=settings.weight_decay,
        optimiser="sgd",
        momentum=settings.momentum,
        precision=precision,
        loss=cross_entropy_loss if is_class else squared_error_loss,
        evaluation=validate,
        evaluate_every=-(-len(batches) // settings.looks),
        keep_best=True,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        identity={
            **dataclasses.asdict(settings),
            "slices": _digest_of_slices(train_images, known, val_images, truth),
            "window": window and list(window),
        },
        progress=progress,
        accelerator=accelerator,
    )
    looks = history.evaluations
    return Tuned(history, tuple(v for _, v in looks), tuple(s for s, _ in looks))


def _mean_loss(outputs: np.ndarray, truth: np.ndarray, loss: str) -> float:
    """Nats a slice, or mean squared error."""
    if loss == "cross-entropy":
        return metrics.log_loss(truth, metrics.softmax(outputs))
    return float(np.mean((outputs[:, 0] - truth) ** 2))


def _digest_of_slices(*arrays: np.ndarray) -> str:
    """One short name for all slices and labels of a fine-tuning."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


# What it looked at --------------------------------------------------------------------


def grad_cam(
    model: ResNet18, images: Tensor, target: int | Tensor = 1, stage: str = "layer4"
) -> Tensor:
    """Where an image speaks for a class, as the channels of a stage see it.

    The gradient of the class's logit, averaged over the image, weighs the channels;
    what remains above 0 is shown.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    images
        (batch, channels, height, width), grey, 0 to 1.
    target
        The class, or one for each image.
    stage
        One of `STAGES`, with convolutions. Later ones mean more and show less: at
        layer4 one cell of the map is 32 pixels.

    Returns
    -------
    Tensor
        (batch, height, width), 0 to 1: the largest of an image is 1, unless all are 0.

    Raises
    ------
    MedlmError
        If the stage has another name.

    Source: Selvaraju et al. 2017; chapter 5.
    """
    if stage not in STAGES[:-1]:
        raise MedlmError(
            f"The stage is {stage!r}; expected one of {', '.join(STAGES[:-1])}."
        )
    device = training.device_of(model)
    chosen = _targets(target, len(images))
    with training.evaluating(model), torch.enable_grad():
        seen = images.to(device)
        place = STAGES.index(stage) + 1
        for name in STAGES[:place]:
            seen = _stage(model, name)(seen)
        x = seen = seen.detach().requires_grad_()
        for name in STAGES[place:-1]:
            x = _stage(model, name)(x)
        logits = model.fc(x.mean((2, 3)))
        wanted = logits.gather(1, chosen.to(device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(wanted, [seen])
    weight = gradient.mean((2, 3), keepdim=True)
    maps = F.relu((weight * seen.detach()).sum(1, keepdim=True))
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    largest = maps.amax((2, 3), keepdim=True)
    return (maps / largest.clamp(min=1e-12))[:, 0].cpu()


def _targets(target: int | Tensor, count: int) -> Tensor:
    return torch.as_tensor(target).expand(count)


@torch.no_grad()
def occlusion_map(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor = 1,
    patch: int = 16,
    stride: int = 8,
    fill: float | None = None,
    batch_size: int = 64,
) -> Tensor:
    """How much the logit of a class falls when a square of the image is covered.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    images
        (batch, channels, height, width), grey, 0 to 1.
    target
        The class, or one for each image.
    patch, stride
        Side of the square, and how far apart squares lie, in pixels.
    fill
        What covers; by default the mean of the image.
    batch_size
        Covered images at a time.

    Returns
    -------
    Tensor
        (batch, height, width): at each pixel the mean fall over the squares that cover
        it. Above 0, what lies there speaks for the class.

    Raises
    ------
    MedlmError
        If the square does not fit the image, or the stride leaves pixels out.

    Source: Zeiler & Fergus 2014; chapter 5.
    """
    count, _, height, width = images.shape
    if not (1 <= stride <= patch <= min(height, width)):
        raise MedlmError(
            f"Squares of {patch} pixels, {stride} apart, on images of {height} x "
            f"{width}; expected squares that fit, and a stride of at most their side."
        )
    device = training.device_of(model)
    places = [(y, x) for y in _starts(height, patch, stride)
              for x in _starts(width, patch, stride)]  # fmt: skip
    chosen = _targets(target, count)
    falls, covers = torch.zeros(count, height, width), torch.zeros(height, width)
    for y, x in places:
        covers[y : y + patch, x : x + patch] += 1
    with training.evaluating(model):
        for number in range(count):
            image, label = images[number : number + 1].to(device), int(chosen[number])
            cover = float(image.mean()) if fill is None else fill
            whole = model(image)[0, label]
            for place in range(0, len(places), batch_size):
                some = places[place : place + batch_size]
                covered = image.repeat(len(some), 1, 1, 1)
                for row, (y, x) in enumerate(some):
                    covered[row, :, y : y + patch, x : x + patch] = cover
                fall = (whole - model(covered)[:, label]).cpu()
                for row, (y, x) in enumerate(some):
                    falls[number, y : y + patch, x : x + patch] += fall[row]
    return falls / covers


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """Where squares begin; the last one ends at the border."""
    starts = list(range(0, length - patch + 1, stride))
    return starts if starts[-1] == length - patch else [*starts, length - patch]


def randomised(model: ResNet18, stages: int = len(STAGES), seed: int = 0) -> ResNet18:
    """A copy whose last stages have forgotten what they learned.

    An explanation that looks the same on it does not explain the model.

    Parameters
    ----------
    model
        Left as it is.
    stages
        So many from the head on: 1 is the head alone, 6 is everything.
    seed
        Of the new weights.

    Raises
    ------
    MedlmError
        If there are not so many stages.

    Source: Adebayo et al. 2018; chapter 5.
    """
    if not 1 <= stages <= len(STAGES):
        raise MedlmError(
            f"{stages} stages are to be randomised; expected 1 to {len(STAGES)}."
        )
    # Not the seed itself: a model that was built with it would stay as it is.
    fresh = build(model.classes, None, model.channels, seed + 1_000_003)
    twin = copy.deepcopy(model)
    for stage in STAGES[len(STAGES) - stages :]:
        weights = _stage(fresh, stage).state_dict()
        _stage(twin, stage).load_state_dict(weights)
    return twin


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How well maps point at lesions, one entry an image that has one.

    Parameters
    ----------
    inside
        Share of the map's highest pixels, as many as the lesion has, that lie in it.
    pointing
        True where the highest pixel lies in the lesion.
    chance
        What `inside` would be of a map that knows nothing: the lesion's share of the
        image.

    Source: Zhang et al. 2018 for the pointing game; chapter 5.
    """

    inside: np.ndarray
    pointing: np.ndarray
    chance: np.ndarray


def overlap(maps: ArrayLike, lesions: ArrayLike, seed: int = 0) -> Overlap:
    """Compare maps with the lesions that are there.

    Parameters
    ----------
    maps
        (images, height, width), higher where the model looked.
    lesions
        (images, height, width), True in a lesion; images without one are left out.
    seed
        Of the order of pixels with equal values.

    Raises
    ------
    MedlmError
        If the shapes differ, a map is not finite, or no image has a lesion.

    Source: chapter 5.
    """
    values, masks = np.asarray(maps, float), np.asarray(lesions, bool)
    if values.shape != masks.shape or values.ndim != 3 or not masks.any():
        raise MedlmError(
            f"Maps of shape {values.shape}, lesions of shape {masks.shape} with "
            f"{masks.sum()} pixels; expected the same shape (images, height, width), "
            "and a lesion."
        )
    if not np.isfinite(values).all():
        raise MedlmError("A map is not finite; expected numbers.")
    rng = np.random.default_rng(seed)
    has = masks.any(axis=(1, 2))
    inside, pointing = [], []
    for value, mask in zip(values[has], masks[has], strict=True):
        ties = rng.permutation(mask.size)
        order = np.lexsort((ties, -value.ravel()))
        hit = mask.ravel()[order[: mask.sum()]]
        inside.append(hit.mean())
        pointing.append(bool(hit[0]))
    return Overlap(np.array(inside), np.array(pointing), masks[has].mean(axis=(1, 2)))
