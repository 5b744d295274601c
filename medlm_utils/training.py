"""One loop for every chapter, and evaluation without gradients.

Knows nothing about texts or models: a batch comes from a function of the step, a loss
from a function of model and batch. So a run that was stopped can be taken up again, and
ends with the same weights, bit for bit, as one that was not.

Units: losses in nats per target, times in seconds; steps count from 0.

Source: chapter 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils.runtime import MedlmError
from medlm_utils.text import IGNORED, PAD, Nats, inputs_and_targets, pad

# (model, batch) to the loss summed over the targets, and how many targets there were.
Loss = Callable[[nn.Module, Any], tuple[Tensor, int]]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}
_READ_EVERY = 50  # steps between two looks at the loss: on a GPU each look waits for it
_FORMAT = 1  # of a checkpoint


# Parts of the loop --------------------------------------------------------------------


def language_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
    """Cross-entropy of the next token, summed over the targets of a batch.

    Parameters
    ----------
    model
        (batch, tokens) token numbers to logits (batch, tokens, vocabulary).
    batch
        (batch, tokens) token numbers, padded with 0; the shift happens here.

    Returns
    -------
    tuple
        Nats, a scalar with gradient, and the number of targets.

    Raises
    ------
    MedlmError
        If the batch is no rectangle of whole numbers.

    Source: chapter 2.
    """
    return token_nats(model, batch).sum(), int((batch[:, 1:] != PAD).sum())


def token_nats(model: nn.Module, batch: Tensor) -> Tensor:
    """-log p of each target, (batch, tokens - 1), 0 at padding; with gradients.

    Parameters
    ----------
    model, batch
        As in `language_loss`.

    Raises
    ------
    MedlmError
        If the batch is no rectangle of whole numbers.

    Source: chapter 2.
    """
    inputs, targets = inputs_and_targets(batch)
    device = device_of(model)
    logits = model(inputs.to(device)).flatten(0, 1).float()
    nats = F.cross_entropy(
        logits, targets.to(device).flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(targets.shape)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, gains and embeddings do not.

    Parameters
    ----------
    model
        Its parameters that need a gradient; shared ones count once.
    weight_decay
        Of the matrices.

    Returns
    -------
    list of dict
        Two groups for an optimiser of torch, the decaying one first.

    Source: Loshchilov & Hutter 2019; Radford et al. 2018; chapter 2.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    every = [p for p in model.parameters() if p.requires_grad]
    decaying = [p for p in every if p.dim() >= 2 and id(p) not in tables]
    chosen = {id(parameter) for parameter in decaying}
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": [p for p in every if id(p) not in chosen], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    learning_rate: float = 1e-3,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, as one kernel of torch.

    Parameters
    ----------
    model, weight_decay
        As in `parameter_groups`.
    betas
        How long the mean gradient and the mean squared gradient remember.
    learning_rate
        Until a schedule changes it.

    Source: Loshchilov & Hutter 2019; chapter 2.
    """
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def warm_up_cosine(
    step: int, steps: int, peak: float, warm_up: int, floor: float = 0.1
) -> float:
    """The learning rate of a step: up in a line to the peak, down in a cosine.

    Parameters
    ----------
    step
        0 to steps - 1; later ones get the floor.
    steps
        Of the whole run.
    peak
        The largest learning rate, reached in step `warm_up` - 1.
    warm_up
        How many steps go up.
    floor
        The share of the peak that the last step gets.

    Raises
    ------
    MedlmError
        If the warm-up is longer than the run, or a number is out of its range.

    Source: Loshchilov & Hutter 2017; chapter 2.
    """
    if not (0 <= warm_up <= steps and steps > 0 and peak > 0 and 0 <= floor <= 1):
        raise MedlmError(
            f"steps {steps}, warm_up {warm_up}, peak {peak}, floor {floor}; expected "
            "at least one step, a warm-up no longer than the run, a peak above 0 and a "
            "floor that is a share of it, 0 to 1."
        )
    if step < warm_up:
        return peak * (step + 1) / warm_up
    gone = min((step - warm_up) / max(steps - 1 - warm_up, 1), 1.0)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * gone)) / 2)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context in which a forward pass runs in this precision.

    Parameters
    ----------
    precision
        Of a `runtime.Profile`: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    device
        Where the model is.

    Raises
    ------
    MedlmError
        If the precision has another name.

    Source: chapter 2.
    """
    if precision not in _DTYPES:
        raise MedlmError(
            f"The precision is {precision!r}; expected one of {', '.join(_DTYPES)}."
        )
    dtype = _DTYPES[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device


# The loop -----------------------------------------------------------------------------


@dataclasses.dataclass
class History:
    """What happened in a run, one entry a step.

    Parameters
    ----------
    loss
        Nats per target of the step's batch, before the step.
    targets
        How many there were.
    learning_rate
        Of the step.
    seconds
        From the start of the run to the end of the step; a run that was taken up again
        goes on where the checkpoint stood.
    evaluations
        (steps done, value) for each evaluation.

    Source: chapter 2.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    learning_rate: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    evaluations: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        """Steps done."""
        return len(self.loss)

    @property
    def targets_per_second(self) -> float:
        """Throughput of the whole run, evaluations left in."""
        return sum(self.targets) / self.seconds[-1]


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Any],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    warm_up: int = 0,
    floor: float = 0.1,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    precision: str = "float32",
    loss: Loss = language_loss,
    evaluation: Callable[[], float] | None = None,
    evaluate_every: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> History:
    """Train: forward, backward, clip, step, on a schedule.

    Nothing in it looks at the clock, so a run depends on its settings, its batches and
    torch's seed alone.

    Parameters
    ----------
    model
        Trained in place, on the device where it is; left in evaluation mode.
    batch_at
        Step to batch, such as the method `at` of `text.DocumentBatches`. It must depend
        on the step alone, or a run that is taken up again would see other batches.
    steps
        Of the whole run.
    learning_rate, warm_up, floor
        Peak, steps and share of `warm_up_cosine`.
    weight_decay, betas
        Of `adamw`.
    clip
        The largest norm of the gradient over all parameters.
    precision
        Of the forward pass, as in `autocast`; weights stay in float32.
    loss
        As `language_loss`, its default.
    evaluation, evaluate_every
        A function whose value joins the history after every so many steps, and after
        the last. The model is in evaluation mode while it runs.
    checkpoint, checkpoint_every
        A file to which everything that a run depends on is written after every so many
        steps, and after the last.
    resume
        True: go on from the checkpoint if there is one. False: start anew.
    progress
        True: show a bar.

    Returns
    -------
    History
        Of the whole run, the part before a checkpoint included.

    Raises
    ------
    MedlmError
        If a setting is out of range, a batch has no target, the loss is no longer
        finite, or the checkpoint cannot be written or belongs to another run.

    Source: chapter 2.
    """
    if not clip > 0:
        raise MedlmError(f"clip is {clip}; expected a norm above 0.")
    warm_up_cosine(0, steps, learning_rate, warm_up, floor)  # refuses bad settings
    settings = {
        "steps": steps,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "floor": floor,
        "weight_decay": weight_decay,
        "betas": list(betas),
        "clip": clip,
        "precision": precision,
    }
    run = _Run(model, adamw(model, weight_decay, betas), precision, settings)
    if checkpoint is not None and resume and checkpoint.exists():
        run.load(checkpoint)
    with _bar(steps, len(run.history), progress) as bar:
        for step in range(len(run.history), steps):
            rate = warm_up_cosine(step, steps, learning_rate, warm_up, floor)
            run.step(batch_at(step), loss, rate, clip)
            bar.update()
            done = step + 1
            if evaluation and _is_due(done, evaluate_every, steps):
                run.evaluate(evaluation)
            if checkpoint is not None and _is_due(done, checkpoint_every, steps):
                run.save(checkpoint)
    run.read_losses()
    model.eval()
    return run.history


def _is_due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _bar(steps: int, done: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, disable=not shown, unit="step")


class _Run:
    """A model in training and everything that its next step depends on."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        precision: str,
        settings: dict[str, Any],
    ):
        self.model, self.optimiser, self.settings = model, optimiser, settings
        self.device = device_of(model)
        self.precision = precision
        # float16 has few exponents: the loss is scaled up, the gradients down again.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=precision == "float16"
        )
        self.history = History()
        self._unread: list[Tensor] = []  # losses still on the device
        self._before = time.monotonic()

    def step(self, batch: Any, loss: Loss, rate: float, clip: float) -> None:
        """One step of training."""
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with autocast(self.precision, self.device):
            nats, count = loss(self.model, batch)
        if not count:
            raise MedlmError(
                f"The batch of step {len(self.history)} has no target; expected at "
                "least one."
            )
        self.optimiser.zero_grad()
        self.scaler.scale(nats / count).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._note(nats.detach() / count, count, rate)

    def _note(self, loss: Tensor, count: int, rate: float) -> None:
        history = self.history
        history.loss.append(math.nan)  # until it is read
        history.targets.append(count)
        history.learning_rate.append(rate)
        self._unread.append(loss)
        if self.device.type == "cpu" or len(self._unread) == _READ_EVERY:
            self.read_losses()
        history.seconds.append(round(time.monotonic() - self._before, 4))

    def read_losses(self) -> None:
        """Bring the losses of the latest steps into the history, and look at them."""
        if not self._unread:
            return
        read = torch.stack(self._unread).tolist()
        first = len(self.history) - len(read)
        self.history.loss[first:] = read
        self._unread.clear()
        for step, loss in enumerate(read, first):
            if not math.isfinite(loss):
                raise MedlmError(
                    f"The loss of step {step} is {loss}; expected a finite number. Try "
                    "a smaller learning rate or a longer warm-up."
                )

    def evaluate(self, evaluation: Callable[[], float]) -> None:
        """Note the value of `evaluation` at this step."""
        self.model.eval()
        value = float(evaluation())
        self.history.evaluations.append((len(self.history), value))

    # What a checkpoint holds: one file, so that no half of it can be of another step.

    def save(self, path: Path) -> None:
        """Write everything beside `path`, then rename."""
        self.read_losses()
        state = {
            "settings": self.settings,
            "history": dataclasses.asdict(self.history),
            "scaler": self.scaler.state_dict(),
            "generators": _generators(),
        }
        _write_checkpoint(path, self._tensors(), state)

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, the optimiser's memory and torch's generators, by name."""
        tensors = {f"model.{n}": t for n, t in _weights(self.model).items()}
        for number, memory in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{n}": t for n, t in memory.items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote."""
        tensors, state = _read_checkpoint(path)
        expected = json.loads(json.dumps(self.settings))
        if state["settings"] != expected:
            raise _of_another_run(path, state["settings"], expected)
        kept = {n[6:]: t for n, t in tensors.items() if n.startswith("model.")}
        have = _weights(self.model)
        if {n: t.shape for n, t in kept.items()} != {
            n: t.shape for n, t in have.items()
        }:
            raise MedlmError(
                f"The weights in {path} do not fit this model; expected names and "
                "shapes to be the same. Name another file, or delete this one."
            )
        self.model.load_state_dict(kept, strict=False)
        self._load_optimiser(tensors)
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        self.history.evaluations = [(s, v) for s, v in self.history.evaluations]
        self._before = time.monotonic() - (self.history.seconds or [0.0])[-1]
        _set_generators(state["generators"])
        torch.set_rng_state(tensors["generator.cpu"])
        if "generator.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator.cuda"], self.device)

    def _load_optimiser(self, tensors: dict[str, Tensor]) -> None:
        memory: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, field = name.split(".")
                memory.setdefault(int(number), {})[field] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": memory, "param_groups": groups})


# Checkpoints --------------------------------------------------------------------------


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what has two names is kept under the first."""
    seen: set[tuple[int, torch.Size]] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen or not tensor.numel():
            weights[name] = tensor
        seen.add(place)
    return weights


def _generators() -> dict[str, Any]:
    """The states of Python's and NumPy's generators, as JSON can hold them."""
    kind, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(words).tolist(), *rest],
    }


def _set_generators(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(states["numpy"]))


def _write_checkpoint(
    path: Path, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """One safetensors file; the state lies in its header, as JSON with a hash."""
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    text = json.dumps(state)
    header = {"medlm": str(_FORMAT), "state": text, "sha256": _digest(tensors, text)}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(safetensors.torch.save(tensors, metadata=header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MedlmError(
            f"Cannot write the checkpoint {path}: {error.strerror}. Expected a folder "
            "with free space that you may write."
        ) from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint whose hash is right."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise _not_a_checkpoint(path, "it is damaged or of another kind") from error
    if header.get("medlm") != str(_FORMAT):
        raise _not_a_checkpoint(path, "another program, or another version, wrote it")
    if header["sha256"] != _digest(tensors, header["state"]):
        raise _not_a_checkpoint(path, "its content does not fit its hash")
    return tensors, json.loads(header["state"])


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 over names, tensors and state."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _not_a_checkpoint(path: Path, why: str) -> MedlmError:
    return MedlmError(
        f"{path} is no checkpoint that can be used: {why}. Expected a file that "
        "`training.fit` wrote. Delete it, or use resume=False to start anew."
    )


def _of_another_run(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any]
) -> MedlmError:
    differing = [name for name in wanted if stored.get(name) != wanted[name]]
    words = ", ".join(f"{n} {stored.get(n)} (now {wanted[n]})" for n in differing)
    return MedlmError(
        f"The checkpoint {path} is of another run: {words}. Use the same settings, or "
        "another file, or resume=False to start anew."
    )


# Evaluation ---------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Sequence[Tensor],
    batch_size: int = 64,
    context: int = 0,
    precision: str = "float32",
) -> Nats:
    """-log p of every target of every row, without gradients.

    Rows of similar length share a batch, whatever their order; the result does not
    depend on `batch_size`, only time and memory do.

    Parameters
    ----------
    model
        (batch, tokens) token numbers to logits; in evaluation mode while this runs.
    rows
        As `text.documents` or `text.windows` make them.
    batch_size
        Rows in a batch.
    context
        As in `text.windows`: so many first targets of each row but the first row are
        not scored.
    precision
        As in `autocast`.

    Returns
    -------
    Nats
        One array a row, in the order of `rows`.

    Raises
    ------
    MedlmError
        If there are no rows, one has fewer than two tokens, or `batch_size` is below 1.

    Source: chapter 2.
    """
    shortest = min((len(row) for row in rows), default=0)
    if shortest < 2 or batch_size < 1:
        raise MedlmError(
            f"{len(rows)} rows, the shortest with {shortest} tokens, in batches of "
            f"{batch_size}; expected rows of at least two tokens, and batches of one."
        )
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    by_row: list[np.ndarray] = [np.empty(0)] * len(rows)
    with _evaluating(model), autocast(precision, device_of(model)):
        for place in range(0, len(rows), batch_size):
            chosen = order[place : place + batch_size]
            nats = token_nats(model, pad([rows[row] for row in chosen]))
            for row, of_row in zip(chosen, nats.cpu().double().numpy(), strict=True):
                scored = of_row[: len(rows[row]) - 1]
                by_row[row] = scored[context if row else 0 :].copy()
    return Nats(tuple(by_row))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
