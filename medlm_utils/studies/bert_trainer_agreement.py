"""Our fine-tuning beside the Trainer of `transformers`: the same model, or nearly?

Two questions. Given the same batches, do both end with the same weights, but for
rounding? And in full, when each draws its own order of the notes, do the accuracies
differ by more than those of two seeds of one of them? Everything else is the same: the
notes, the head from a logistic regression, optimiser, rates, warm-up, clipping and
precision, and that the epoch with the smallest validation loss is kept. Our batches
hold notes of similar lengths, the Trainer's are drawn at random, as is its default.

Source: chapter 3; `python -m medlm_utils.studies.bert_trainer_agreement`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from medlm_utils import bert
from medlm_utils.studies import clinic_runs, core, peers

OURS, TRAINER = "ours", "trainer"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many runs of each, and how long both get the same batches."""

    seeds: int
    same_steps: int


PLANS = {"tiny": Plan(2, 2), "cpu": Plan(3, 20), "gpu": Plan(3, 20)}


# The Trainer --------------------------------------------------------------------------


def train_with_trainer(
    model: bert.Classifier,
    notes: clinic_runs.Material,
    settings: bert.FineTuning,
    batches: Sequence[dict[str, Any]] | None = None,
) -> list[float]:
    """What `bert.finetune` does, by `transformers.Trainer`; the best epoch is kept.

    Parameters
    ----------
    model
        With a fitted head; trained in place, and left in evaluation mode.
    notes
        Training notes to learn from, validation notes to choose the epoch.
    settings
        Smoothing is not used.
    batches
        Of each step of an epoch, as `bert.trainer_collate` makes them; by default the
        Trainer draws them.

    Returns
    -------
    list of float
        The loss of the validation notes after each epoch, nats a note.

    Source: chapter 3.
    """
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, Trainer

    class Ours(Trainer):
        """Reads our batches, where there are any."""

        def get_train_dataloader(self) -> Any:
            if batches is None:
                return super().get_train_dataloader()
            return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]

    train, val = notes.train, notes.val
    a_epoch = len(batches or ()) or math.ceil(len(train.rows) / settings.batch)
    model.freeze(settings.frozen_blocks, settings.frozen_words)
    bert.set_dropout(model, settings.dropout)
    optimisers: Any = bert.trainer_optimisers(
        model, settings, settings.epochs * a_epoch
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Ours(
            bert.trainer_model(model),
            arguments(folder, settings, next(model.parameters()).device.type),
            train_dataset=bert.trainer_dataset(train.rows, train.label),
            eval_dataset=bert.trainer_dataset(val.rows, val.label),
            data_collator=bert.trainer_collate,
            optimizers=optimisers,
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    model.eval()
    every = trainer.state.log_history
    return [float(entry["eval_loss"]) for entry in every if "eval_loss" in entry]


def arguments(folder: str, settings: bert.FineTuning, device: str) -> Any:
    """The Trainer's arguments: epochs, precision and seed as in the settings.

    It validates after each epoch, and goes back to the best one at the end; nothing
    else is written, logged or reported.
    """
    return peers.arguments(
        folder,
        settings.precision,
        device,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=64,
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        remove_unused_columns=False,
    )


# The same batches ---------------------------------------------------------------------


def same_batches(
    model: bert.Classifier,
    notes: clinic_runs.Material,
    settings: bert.FineTuning,
    steps: int,
) -> dict[str, float]:
    """How far both are apart after some steps on the same batches in the same order.

    In float32 and without dropout. The biases of keys are left out: the softmax does
    not see them, so their gradient is nothing but rounding, which Adam makes large.

    Parameters
    ----------
    model
        With a fitted head; trained by `bert.finetune`, a copy of it by the Trainer.
    notes
        Of which the first training notes are taken.
    settings
        Of the chapter.
    steps
        One epoch of so many.

    Returns
    -------
    dict
        ``apart``, the largest difference of a weight, ``moved``, the largest change of
        a weight since the start, and ``logits_apart``, of the validation notes.

    Source: chapter 3.
    """
    settings = dataclasses.replace(
        settings, epochs=1, dropout=0.0, smoothing=0.0, precision="float32"
    )
    few = dataclasses.replace(notes, train=_first(notes.train, steps * settings.batch))
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    rows, label = few.train.rows, few.train.label
    val = notes.val
    bert.finetune(model, rows, label, val.rows, val.label, settings)
    ours = bert.LabelledBatches(rows, label, settings.batch, settings.seed)
    names = ("input_ids", "attention_mask", "labels")
    same = [dict(zip(names, ours.at(n), strict=True)) for n in range(len(ours))]
    train_with_trainer(twin, few, settings, same)
    logits = [bert.predict_logits(one, val.rows) for one in (model, twin)]
    return {
        "apart": largest_difference(model, twin),
        "moved": largest_difference(model, start),
        "logits_apart": float(np.abs(logits[0] - logits[1]).max()),
        "steps": len(ours),
    }


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Of any weight of two models of one shape, the biases of keys left out."""
    pairs = zip(_compared(one), _compared(other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def _compared(model: nn.Module) -> Iterator[torch.Tensor]:
    for name, weight in model.named_parameters():
        if not name.endswith("key.bias"):
            yield weight.detach()


def _first(notes: clinic_runs.Labelled, count: int) -> clinic_runs.Labelled:
    """The first so many notes."""
    return clinic_runs.Labelled(
        notes.notes[:count],
        notes.rows[:count],
        notes.label[:count],
        notes.exact[:count],
    )


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train by both with every seed; compare the accuracies, and single steps.

    Raises
    ------
    MedlmError
        If the Trainer lacks a package.
    """
    peers.check_accelerate()
    plan = PLANS[study.size]
    parts = [_same_part(study, plan.same_steps)]
    for seed in range(plan.seeds):
        parts += [_part(study, whose, seed) for whose in (OURS, TRAINER)]
    same, *runs = study.run(parts)
    by_whose = {OURS: runs[0::2], TRAINER: runs[1::2]}
    rows = [
        {"whose": whose, "seed": seed, **_without_logits(result)}
        for whose, results in by_whose.items()
        for seed, result in enumerate(results)
    ]
    accuracy = {
        whose: [result["test"]["accuracy"]["value"] for result in results]
        for whose, results in by_whose.items()
    }
    ceiling = runs[0]["test"]["ceiling"]
    return _metrics(accuracy, same, ceiling), {"runs": rows, "same_batches": same}


def _same_part(study: core.Study, steps: int) -> core.Part:
    sizes, settings = (
        clinic_runs.sizes_of(study),
        clinic_runs.settings_of(study, looks=1),
    )

    def make() -> dict[str, Any]:
        model = clinic_runs.build(device=study.profile.device)
        notes = clinic_runs.material(model.tokenizer, sizes)
        clinic_runs.start_head(model, notes.train, "float32")
        return same_batches(model, notes, settings, steps)

    depends_on = {**clinic_runs.identity(sizes, settings), "steps": steps}
    return core.Part("same-batches", depends_on, 0.5, make)


def _part(study: core.Study, whose: str, seed: int) -> core.Part:
    sizes = clinic_runs.sizes_of(study)
    settings = clinic_runs.settings_of(study, looks=1, seed=seed)
    makers: dict[str, Callable[..., dict[str, Any]]] = {
        OURS: clinic_runs.train_and_measure,
        TRAINER: _train_and_measure,
    }
    return core.Part(
        f"{whose}-{seed}",
        clinic_runs.identity(sizes, settings),
        1.0,
        lambda: makers[whose](study, sizes, settings),
    )


def _train_and_measure(
    study: core.Study, sizes: clinic_runs.Sizes, settings: bert.FineTuning
) -> dict[str, Any]:
    """As `clinic_runs.train_and_measure`, with the Trainer in the place of our loop."""
    model = clinic_runs.build(seed=settings.seed, device=study.profile.device)
    notes = clinic_runs.material(model.tokenizer, sizes)
    train = notes.train
    clinic_runs.start_head(model, train, settings.precision)
    started = time.monotonic()
    losses = train_with_trainer(model, notes, settings)
    seconds = time.monotonic() - started
    return {
        **clinic_runs.measure(model, notes, settings.precision),
        "notes": len(train.rows),
        "best": 1 + int(np.argmin(losses)),
        "validation_loss": losses,
        "seconds": seconds,
    }


def _without_logits(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "logits"}


def pooled_deviation(*groups: Sequence[float]) -> float:
    """The standard deviation within groups of equal size, pooled over them."""
    return math.sqrt(np.mean([np.var(group, ddof=1) for group in groups]))


def _metrics(
    accuracy: dict[str, list[float]], same: dict[str, float], ceiling: float
) -> dict[str, Any]:
    """The metrics of the record."""
    ours, theirs = accuracy[OURS], accuracy[TRAINER]
    apart = core.over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])
    deviation = pooled_deviation(ours, theirs)
    return {
        "accuracy_ours": core.over_seeds(ours),
        "accuracy_trainer": core.over_seeds(theirs),
        "accuracy_difference": apart,
        "ceiling_accuracy": ceiling,
        "sd_over_seeds": {"value": deviation, "n": 2 * len(ours)},
        "is_within_seed_spread": int(abs(apart["value"]) <= deviation),
        "same_batches_weights_apart": {"value": same["apart"], "n": same["steps"]},
        "same_batches_weights_moved": {"value": same["moved"], "n": same["steps"]},
        "same_batches_logits_apart": {"value": same["logits_apart"]},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Does the Trainer of transformers end where our fine-tuning ends?"
    return core.main("bert_trainer_agreement", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
