"""One loop for every chapter, and evaluation without gradients.

Knows nothing about texts or models: a batch comes from a function of the step, a loss
from a function of model and batch. So a run that was stopped can be taken up again, and
ends with the same weights, bit for bit, as one that was not.

Units: losses in nats per target, times in seconds; steps count from 0.

Source: chapters 2 and 3.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# (step, steps, peak, warm_up, floor) to the learning rate of the step.
Schedule = Callable[[int, int, float, int, float], float]
# Smaller is better; of a mapping it is the entry "loss" that counts.
Evaluation = Callable[[], float | Mapping[str, float]]

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


def parameter_groups(
    model: nn.Module, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Matrices decay; biases, gains and embeddings do not.

    Parameters
    ----------
    model
        Its parameters that need a gradient; shared ones count once.
    weight_decay
        Of the matrices.
    rates
        How the beginning of a parameter's name, such as ``"head"``, multiplies its
        learning rate. The longest one that fits counts; without one it is 1.

    Returns
    -------
    list of dict
        Groups for an optimiser of torch, each with its ``factor`` of the learning rate:
        two a factor, the decaying one first, and those of factor 1 before the others.

    Raises
    ------
    MedlmError
        If a factor is not above 0, or no parameter that needs a gradient has a name
        with such a beginning.

    Source: Loshchilov & Hutter 2019; Radford et al. 2018; chapters 2 and 3.
    """
    rates = dict(rates or {})
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    every = {n: p for n, p in model.named_parameters() if p.requires_grad}
    _check_rates(rates, every)
    groups: dict[tuple[float, bool], dict[str, Any]] = {
        (factor, decays): {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "factor": factor,
        }
        for factor in dict.fromkeys([1.0, *rates.values()])
        for decays in (True, False)
    }
    for name, parameter in every.items():
        decays = parameter.dim() >= 2 and id(parameter) not in tables
        groups[_factor(name, rates), decays]["params"].append(parameter)
    return list(groups.values())


def _factor(name: str, rates: Mapping[str, float]) -> float:
    """What multiplies the learning rate of this parameter."""
    fitting = [beginning for beginning in rates if name.startswith(beginning)]
    return rates[max(fitting, key=len)] if fitting else 1.0


def _check_rates(rates: Mapping[str, float], names: Iterable[str]) -> None:
    for beginning, factor in rates.items():
        if not factor > 0:
            raise MedlmError(
                f"The factor of {beginning!r} is {factor}; expected a number above 0. "
                "To keep weights as they are, call requires_grad_(False) on them."
            )
        if not any(name.startswith(beginning) for name in names):
            raise MedlmError(
                f"No weight that is trained has a name that begins with {beginning!r}; "
                "expected one of those of model.named_parameters()."
            )


def adamw(
    model: nn.Module,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    learning_rate: float = 1e-3,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, as one kernel of torch.

    Parameters
    ----------
    model, weight_decay, rates
        As in `parameter_groups`.
    betas
        How long the mean gradient and the mean squared gradient remember.
    learning_rate
        Until a schedule changes it.

    Source: Loshchilov & Hutter 2019; chapter 2.
    """
    groups = parameter_groups(model, weight_decay, rates)
    for group in groups:
        group["lr"] = learning_rate * group["factor"]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def sgd(
    model: nn.Module,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    learning_rate: float = 1e-2,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.SGD:
    """Gradient descent with momentum over `parameter_groups`, as one kernel of torch.

    Parameters
    ----------
    model, weight_decay, rates
        As in `parameter_groups`.
    momentum
        The share of the last step that is taken again.
    learning_rate
        Until a schedule changes it.

    Source: Polyak 1964; chapter 5.
    """
    groups = parameter_groups(model, weight_decay, rates)
    for group in groups:
        group["lr"] = learning_rate * group["factor"]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)


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
    _check_schedule(steps, peak, warm_up, floor)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    gone = min((step - warm_up) / max(steps - 1 - warm_up, 1), 1.0)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * gone)) / 2)


def warm_up_linear(
    step: int, steps: int, peak: float, warm_up: int, floor: float = 0.0
) -> float:
    """The learning rate of a step: up in a line to the peak, down in a line.

    Parameters
    ----------
    step, steps, peak, warm_up
        As in `warm_up_cosine`.
    floor
        The share of the peak that the step after the last would get: the line is about
        to reach 0 when the run ends, so that its last step is not wasted.

    Raises
    ------
    MedlmError
        If the warm-up is longer than the run, or a number is out of its range.

    Source: Devlin et al. 2019; chapter 3.
    """
    _check_schedule(steps, peak, warm_up, floor)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    left = max(steps - step, 0) / max(steps - warm_up, 1)
    return peak * (floor + (1 - floor) * left)


def _check_schedule(steps: int, peak: float, warm_up: int, floor: float) -> None:
    if not (0 <= warm_up <= steps and steps > 0 and peak > 0 and 0 <= floor <= 1):
        raise MedlmError(
            f"steps {steps}, warm_up {warm_up}, peak {peak}, floor {floor}; expected "
            "at least one step, a warm-up no longer than the run, a peak above 0 and a "
            "floor that is a share of it, 0 to 1."
        )


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
    measures
        What each evaluation said that gave a mapping, its ``"loss"`` included.

    Source: chapter 2.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    learning_rate: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    evaluations: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    measures: list[dict[str, float]] = dataclasses.field(default_factory=list)

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
    schedule: Schedule = warm_up_cosine,
    weight_decay: float = 0.1,
    rates: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    optimiser: str = "adamw",
    momentum: float = 0.9,
    clip: float = 1.0,
    precision: str = "float32",
    loss: Loss = language_loss,
    evaluation: Evaluation | None = None,
    evaluate_every: int = 0,
    keep_best: bool = False,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    progress: bool = False,
    work: Sequence[float] | np.ndarray | None = None,
    evaluation_work: float = 0.0,
    accelerator: Any = None,
) -> History:
    """Train: forward, backward, clip, step, on a schedule.

    Nothing in it looks at the clock, so a run depends on its settings, its batches and
    torch's seed alone. With an accelerator many processes train one model: each gets
    its share of the rows of a batch, and since nats and targets are added up over all
    of them, the gradient is that of one process with the whole batch.

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
        Peak, steps and share of the schedule.
    schedule
        `warm_up_cosine` or `warm_up_linear`.
    weight_decay, rates
        Of the optimiser.
    betas
        Of `adamw`.
    optimiser
        ``"adamw"`` or ``"sgd"``.
    momentum
        Of `sgd`.
    clip
        The largest norm of the gradient over all parameters.
    precision
        Of the forward pass, as in `autocast`; weights stay in float32.
    loss
        As `language_loss`, its default.
    evaluation, evaluate_every
        A function whose value joins the history after every so many steps, and after
        the last; it may also be a mapping with a ``"loss"`` and other values. The model
        is in evaluation mode while it runs.
    keep_best
        True: at the end the model gets the weights back that it had at the evaluation
        with the smallest value, the first of several.
    checkpoint, checkpoint_every
        A file to which everything that a run depends on is written after every so many
        steps, and after the last. Machines that train together must share its disk.
    resume
        True: go on from the checkpoint if there is one. False: start anew.
    identity
        What else the run depends on, as JSON can hold it, such as a hash of its data:
        a checkpoint keeps it, and one with another identity is refused.
    progress
        True: show a bar, with the time that is left by `TimeLeft`.
    work, evaluation_work
        As in `TimeLeft`; by default all steps are alike.
    accelerator
        An `accelerate.Accelerator`, in every process that takes part. It chooses the
        device; `precision` still the precision.

    Returns
    -------
    History
        Of the whole run, the part before a checkpoint included.

    Raises
    ------
    MedlmError
        If a setting is out of range, a batch has no target, the loss is no longer
        finite, or the checkpoint cannot be written or belongs to another run.

    Source: chapters 2, 3 and 5.
    """
    if optimiser not in ("adamw", "sgd") or not 0 <= momentum < 1:
        raise MedlmError(
            f"The optimiser is {optimiser!r} with momentum {momentum}; expected "
            "'adamw' or 'sgd', and a momentum of at least 0 and below 1."
        )
    if not clip > 0:
        raise MedlmError(f"clip is {clip}; expected a norm above 0.")
    if keep_best and evaluation is None:
        raise MedlmError("keep_best needs an evaluation that says which is best.")
    schedule(0, steps, learning_rate, warm_up, floor)  # refuses bad settings
    team = _Team(accelerator)
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
    settings |= _unusual(schedule, rates, keep_best, team)
    if optimiser == "sgd":
        settings |= {"optimiser": optimiser, "momentum": momentum}

    def make_optimiser() -> torch.optim.Optimizer:
        if optimiser == "sgd":
            return sgd(model, weight_decay, momentum, learning_rate, rates)
        return adamw(model, weight_decay, betas, learning_rate, rates)

    run = _Run(
        model,
        make_optimiser,
        precision,
        {**(identity or {}), **settings},
        team,
    )
    if checkpoint is not None and resume and team.all_find(checkpoint):
        run.load(checkpoint)
    every = evaluate_every if evaluation else None
    left = TimeLeft(np.ones(steps) if work is None else work, every, evaluation_work)
    with _bar(steps, len(run.history), progress and team.is_main) as bar:
        for step in range(len(run.history), steps):
            began = time.monotonic()
            rate = schedule(step, steps, learning_rate, warm_up, floor)
            run.step(batch_at(step), loss, rate, clip)
            done, stepped = step + 1, time.monotonic()
            if evaluation and _is_due(done, evaluate_every, steps):
                run.evaluate(evaluation, keep_best)
            evaluated = time.monotonic()
            if checkpoint is not None and _is_due(done, checkpoint_every, steps):
                run.save(checkpoint)
            ended = time.monotonic()
            left.note(step, ended - evaluated + stepped - began, evaluated - stepped)
            bar.set_description_str(
                f"{bar.format_interval(round(left.seconds))} left", refresh=False
            )
            bar.update()
    run.read_losses()
    team.agree_on_buffers(model)
    if run.best:
        model.load_state_dict(run.best, strict=False)
    model.eval()
    return run.history


def _unusual(
    schedule: Schedule, rates: Mapping[str, float] | None, best: bool, team: _Team
) -> dict[str, Any]:
    """The settings that chapter 2 does without: its checkpoints do not hold them."""
    settings: dict[str, Any] = {}
    if schedule is not warm_up_cosine:
        settings["schedule"] = getattr(schedule, "__name__", repr(schedule))
    if rates:
        settings["rates"] = dict(rates)
    if best:
        settings["keep_best"] = True
    if team.size > 1:
        settings["processes"] = team.size
    return settings


def _is_due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _bar(steps: int, done: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=steps,
        initial=done,
        disable=not shown,
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {desc}",
        desc="time left not known yet",
    )


class TimeLeft:
    """How many seconds a run still takes, from the steps that were timed.

    Steps differ in length, the first ones are slow, and evaluations come at the end of
    an epoch. So time is counted by work: what is left of it, times the seconds that a
    piece of it took in the later half of the steps that were timed. Of an evaluation
    the last one's time is taken, once there is one.

    Parameters
    ----------
    work
        (steps,) of each step of the whole run, in any unit, such as the tokens of its
        batch.
    evaluate_every
        Steps between two evaluations; one follows the last step in any case. None:
        there are no evaluations.
    evaluation_work
        Of an evaluation, in the same unit, until one has been timed.

    Source: chapter 3.
    """

    def __init__(
        self,
        work: Sequence[float] | np.ndarray,
        evaluate_every: int | None = None,
        evaluation_work: float = 0.0,
    ):
        self.steps = len(work)
        self.evaluate_every, self.evaluation_work = evaluate_every, evaluation_work
        self._work = np.append(0, np.cumsum(work))  # before each step
        self._first = 0  # the first step that was timed
        self._took = [0.0]  # seconds from there to the end of each step
        self._of_evaluation: float | None = None

    def note(self, step: int, seconds: float, of_evaluation: float = 0.0) -> None:
        """Note how long a step took, and the evaluation behind it if there was one."""
        if len(self._took) == 1:
            self._first = step
        self._took.append(self._took[-1] + seconds)
        if self._evaluations(step) > self._evaluations(step + 1):
            self._of_evaluation = of_evaluation

    @property
    def seconds(self) -> float:
        """From the end of the last step that was noted; infinite before there is one.

        A run that was taken up again knows the steps since then alone.
        """
        noted = len(self._took) - 1
        if not noted:
            return math.inf
        half, end = noted // 2, self._first + noted
        worked = self._work[end] - self._work[self._first + half]
        per_work = (self._took[-1] - self._took[half]) / worked
        evaluation = self._of_evaluation
        if evaluation is None:
            evaluation = per_work * self.evaluation_work
        left = per_work * (self._work[-1] - self._work[end])
        return float(left + evaluation * self._evaluations(end))

    def _evaluations(self, step: int) -> int:
        """How many are still to come when this step begins."""
        if self.evaluate_every is None:
            return 0
        every = self.evaluate_every or self.steps
        return -(-self.steps // every) - step // every if step < self.steps else 0


class _Team:
    """The processes that train one model together; without an accelerator just one."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        kind = getattr(accelerator, "distributed_type", "NO")
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise MedlmError(
                f"The accelerator shares work in the way {kind}; expected processes "
                "that each hold the whole model. Run `accelerate config` again without "
                "FSDP, DeepSpeed and the like."
            )
        self.size = accelerator.num_processes if accelerator else 1
        self.number = accelerator.process_index if accelerator else 0

    @property
    def is_main(self) -> bool:
        return self.number == 0

    def join(self, model: nn.Module) -> nn.Module:
        """The model on its device, with gradients that are means over the team."""
        if self.number:  # what dropout draws here must not be what the main one draws
            torch.manual_seed(torch.initial_seed() + self.number)
        return self.accelerator.prepare_model(model) if self.accelerator else model

    def share(self, batch: Any) -> tuple[Any, bool]:
        """The rows of this process, and whether there are any.

        Every process has to take part in each step, so one without rows gets the first
        row, which then must not count.
        """
        if self.size == 1:
            return batch, True
        mine = _rows(batch, slice(self.number, None, self.size))
        if _count_rows(mine):
            return mine, True
        return _rows(batch, slice(0, 1)), False

    def total(self, nats: Tensor, count: int) -> tuple[Tensor, int]:
        """Nats and targets of all processes together."""
        if self.size == 1:
            return nats, count
        own = torch.tensor([float(nats), count], device=nats.device).double()
        every = self.accelerator.reduce(own, reduction="sum")
        return every[0], int(every[1])

    def agreed(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def agree_on_buffers(self, model: nn.Module) -> None:
        """The main process's buffers, in every process.

        Each process has seen its own rows, so the running means of a batch
        normalisation differ until the next step.
        """
        if self.size > 1:
            from accelerate.utils import broadcast

            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer.detach().clone()))

    def all_find(self, path: Path) -> bool:
        """True where every process sees the file, False where none does."""
        found = path.exists()
        if self.size == 1:
            return found
        own = torch.tensor([float(found)], device=self.accelerator.device)
        every = int(self.accelerator.reduce(own, reduction="sum"))
        if 0 < every < self.size:
            raise MedlmError(
                f"{every} of {self.size} processes find the checkpoint {path}; "
                "expected it on a disk that all machines share."
            )
        return bool(every)

    def gather(self, state: Tensor) -> Tensor:
        """The states of all processes, one a row; of one process as it is."""
        if self.size == 1:
            return state
        own = state[None].to(self.accelerator.device)
        return self.accelerator.gather(own).cpu()

    def own(self, states: Tensor) -> Tensor:
        """The way back from `gather`."""
        return states if self.size == 1 else states[self.number].clone()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()


def _rows(batch: Any, chosen: slice) -> Any:
    """Some rows of a tensor, or of each tensor of a tuple, list or dictionary."""
    if isinstance(batch, Mapping):
        return {name: _rows(part, chosen) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_rows(part, chosen) for part in batch)
    return batch[chosen]


def _count_rows(batch: Any) -> int:
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    return len(batch[0] if isinstance(batch, tuple) else batch)


class _Run:
    """A model in training and everything that its next step depends on."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: Callable[[], torch.optim.Optimizer],
        precision: str,
        settings: dict[str, Any],
        team: _Team,
    ):
        self.model, self.team, self.settings = model, team, settings
        self.joined = team.join(model)
        self.optimiser = optimiser()  # made where the weights now are
        self.device = device_of(model)
        self.precision = precision
        # float16 has few exponents: the loss is scaled up, the gradients down again.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=precision == "float16"
        )
        self.history = History()
        self.best: dict[str, Tensor] = {}  # the weights of the best evaluation
        self._unread: list[Tensor] = []  # losses still on the device
        self._before = time.monotonic()

    def step(self, batch: Any, loss: Loss, rate: float, clip: float) -> None:
        """One step of training."""
        self.joined.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        share, counts = self.team.share(batch)
        with autocast(self.precision, self.device):
            nats, count = loss(self.joined, share)
        if not counts:
            nats, count = nats * 0, 0
        every, total = self.team.total(nats.detach(), count)
        if not total:
            raise MedlmError(
                f"The batch of step {len(self.history)} has no target; expected at "
                "least one."
            )
        self.optimiser.zero_grad()
        # A team's gradient is a mean over its processes; it is to be their sum.
        self.scaler.scale(nats / (total / self.team.size)).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._note(every / total, total, rate)

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

    def evaluate(self, evaluation: Evaluation, keep_best: bool) -> None:
        """Note the value of `evaluation` at this step, and the weights if it is best.

        Processes may round differently, and must not disagree about which is best.
        """
        self.joined.eval()
        self.team.agree_on_buffers(self.model)
        given = self.team.agreed(evaluation())
        if isinstance(given, Mapping):
            self.history.measures.append({n: float(v) for n, v in given.items()})
            given = given["loss"]
        value, before = float(given), [v for _, v in self.history.evaluations]
        self.history.evaluations.append((len(self.history), value))
        if keep_best and not math.isfinite(value):
            raise MedlmError(
                f"The evaluation after {len(self.history)} steps is {value}; expected "
                "a finite number to choose by."
            )
        if keep_best and value < min(before, default=math.inf):
            self.best = {
                name: tensor.detach().cpu().clone()
                for name, tensor in _changing_weights(self.model).items()
            }

    # What a checkpoint holds: one file, so that no half of it can be of another step.

    def save(self, path: Path) -> None:
        """Write everything beside `path`, then rename; the main process does it."""
        self.read_losses()
        tensors = self._tensors()
        state = {
            "settings": self.settings,
            "history": dataclasses.asdict(self.history),
            "scaler": self.scaler.state_dict(),
            "generators": _generators(),
        }
        if self.team.is_main:
            _write_checkpoint(path, tensors, state)
        self.team.wait()

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, the optimiser's memory and torch's generators, by name."""
        tensors = {f"model.{n}": t for n, t in _weights(self.model).items()}
        for number, memory in self.optimiser.state_dict()["state"].items():
            kept = {n: t for n, t in memory.items() if t is not None}
            tensors |= {f"optimiser.{number}.{n}": t for n, t in kept.items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        tensors["generator.cpu"] = self.team.gather(torch.get_rng_state())
        if self.device.type == "cuda":
            state = torch.cuda.get_rng_state(self.device)
            tensors["generator.cuda"] = self.team.gather(state)
        return tensors

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote."""
        tensors, state = _read_checkpoint(path)
        expected = json.loads(json.dumps(self.settings))
        if state["settings"] != expected:
            raise _of_another_run(path, state["settings"], expected)
        kept = _named(tensors, "model.")
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
        self.best = _named(tensors, "best.")
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        self.history.evaluations = [(s, v) for s, v in self.history.evaluations]
        self._before = time.monotonic() - (self.history.seconds or [0.0])[-1]
        _set_generators(state["generators"])
        torch.set_rng_state(self.team.own(tensors["generator.cpu"]))
        if "generator.cuda" in tensors and self.device.type == "cuda":
            own = self.team.own(tensors["generator.cuda"])
            torch.cuda.set_rng_state(own, self.device)

    def _load_optimiser(self, tensors: dict[str, Tensor]) -> None:
        memory: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, field = name.split(".")
                memory.setdefault(int(number), {})[field] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": memory, "param_groups": groups})
        # A fused kernel expects its memory in the order of the weight, such as channels
        # last; a file has none.
        for weight, fields in self.optimiser.state.items():
            for name, tensor in fields.items():
                if tensor.shape == weight.shape:
                    fields[name] = torch.empty_like(weight).copy_(tensor)


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


def _changing_weights(model: nn.Module) -> dict[str, Tensor]:
    """As `_weights`, without the parameters that are frozen."""
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    return {n: t for n, t in _weights(model).items() if n not in frozen}


def _named(tensors: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    size = len(beginning)
    return {n[size:]: t for n, t in tensors.items() if n.startswith(beginning)}


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
    names = dict.fromkeys([*wanted, *stored])
    differing = [name for name in names if stored.get(name) != wanted.get(name)]
    words = ", ".join(f"{n} {stored.get(n)} (now {wanted.get(n)})" for n in differing)
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
    with evaluating(model), autocast(precision, device_of(model)):
        for place in range(0, len(rows), batch_size):
            chosen = order[place : place + batch_size]
            nats = token_nats(model, pad([rows[row] for row in chosen]))
            for row, of_row in zip(chosen, nats.cpu().double().numpy(), strict=True):
                scored = of_row[: len(rows[row]) - 1]
                by_row[row] = scored[context if row else 0 :].copy()
    return Nats(tuple(by_row))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
