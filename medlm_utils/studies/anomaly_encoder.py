"""A reader of notes for chapter 4, and how well it reads what it was trained on.

A small encoder (`note_reader.NoteReader`) learns from usual notes alone, those of the
eleven diseases that are known: to tag every finding with its assertion, and to name the
disease. No odd note takes part, neither in training nor in any choice. A twin learns
to name the disease only, in as many steps; what it misses is why the tags are there.

A full run writes the reader's file into the package, beside the record.

Source: chapter 4; `python -m medlm_utils.studies.anomaly_encoder`.
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

from medlm_utils import (
    anomaly_worlds,
    bert,
    clinic,
    metrics,
    note_reader,
    runtime,
    text,
)
from medlm_utils.note_reader import NoteReader, Sizes, TaggedBatches
from medlm_utils.studies import core

TRAIN_SEED, TEST_SEED = 401, 402
FIRST_TEST_PATIENT = 500_000  # other people, with names of their own
ARMS = ("tags and disease", "disease alone")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Notes, encoder and training of one machine."""

    patients: int
    test_patients: int
    steps: int
    batch: int  # notes a step
    learning_rate: float
    sizes: Sizes


PLANS = {
    "tiny": Plan(60, 20, 8, 4, 3e-3, Sizes(16, 2, 32, 1)),
    "cpu": Plan(24_000, 600, 3000, 16, 4e-3, Sizes()),
    "gpu": Plan(24_000, 600, 3000, 16, 4e-3, Sizes()),
}


# The notes ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Material:
    """Usual notes: the clinic, and those for training and for the test."""

    usual: clinic.Clinic
    train: clinic.Notes
    test: clinic.Notes

    @property
    def known(self) -> np.ndarray:
        """The numbers of the diseases that usual patients have."""
        return np.flatnonzero(self.usual.prior)

    @property
    def labels(self) -> list[str]:
        """Their names, in this order."""
        return [self.usual.diseases[number] for number in self.known]

    def number(self, notes: clinic.Notes) -> np.ndarray:
        """(notes,) the place of each note's disease among `labels`."""
        return np.searchsorted(self.known, notes.label)


def draw(plan: Plan) -> Material:
    """Notes of the clinic in which one disease was never seen."""
    usual = anomaly_worlds.usual_clinic()
    return Material(
        usual,
        usual.draw(plan.patients, TRAIN_SEED),
        usual.draw(plan.test_patients, TEST_SEED, FIRST_TEST_PATIENT),
    )


def new_reader(material: Material, sizes: Sizes) -> NoteReader:
    """With random weights, and the words of the training notes."""
    words = text.WordTokenizer.train(material.train.text).words
    findings = [finding.name for finding in material.usual.world.findings]
    return NoteReader(words, material.labels, findings, sizes)


def batches_of(
    reader: NoteReader, material: Material, notes: clinic.Notes, size: int
) -> TaggedBatches:
    """The notes as the reader learns from them."""
    tags = [
        note_reader.tags_of(material.usual, note)[: reader.longest]
        for note in notes.text
    ]
    rows = reader.rows(notes.text.tolist())
    return TaggedBatches(rows, tags, material.number(notes), size, runtime.SEED)


# The trainings ------------------------------------------------------------------------


def disease_loss(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, int]:
    """The twin's loss: the disease alone, as in chapter 3."""
    input_ids, mask, _, labels = batch
    return bert.classification_loss(model, (input_ids, mask, labels))


LOSSES = {ARMS[0]: note_reader.reading_loss, ARMS[1]: disease_loss}


def train_and_measure(study: core.Study, plan: Plan, arm: str) -> dict[str, Any]:
    """One training, and how well the reader reads usual notes of other patients."""
    material = draw(plan)
    torch.manual_seed(runtime.SEED)
    reader = new_reader(material, plan.sizes).to(study.profile.device)
    batches = batches_of(reader, material, material.train, plan.batch)
    history = study.fit(
        reader,
        batches.at,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warm_up=plan.steps // 30 + 1,
        loss=LOSSES[arm],
        checkpoint_every=500,
    )
    if arm == ARMS[0]:
        note_reader.save(reader, study.file(".safetensors"), recipe(plan))
    return {
        **measured(reader, material),
        "loss": float(np.mean(history.loss[-100:])),
        "file": study.file(".safetensors").name,
    }


def recipe(plan: Plan) -> dict[str, Any]:
    """How the file was made."""
    return {
        "command": "python -m medlm_utils.studies.anomaly_encoder",
        "train_seed": TRAIN_SEED,
        "seed": runtime.SEED,
        **dataclasses.asdict(plan),
    }


def measured(reader: NoteReader, material: Material) -> dict[str, Any]:
    """Accuracy of the disease with its ceiling, and of the tags."""
    test = material.test
    logits = bert.predict_logits(reader, reader.rows(test.text.tolist()))
    right = logits.argmax(axis=1) == material.number(test)
    exact = material.usual.posterior(test)
    tagged = batches_of(reader, material, test, 64)
    accuracy = metrics.mean_by_patient(right, test.patient)
    ceiling = clinic.accuracy_ceiling(exact)
    return {
        "accuracy": accuracy.as_metric(),
        "ceiling": ceiling,
        "accuracy_over_ceiling": accuracy.value / ceiling,
        "tag_accuracy": note_reader.tag_accuracy(reader, tagged),
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train both, keep the first, and say how well they read."""
    plan = PLANS[study.size]
    results = study.run([_part(study, plan, arm) for arm in ARMS])
    both = dict(zip(ARMS, results, strict=True))
    reader, twin = (both[arm] for arm in ARMS)
    target = _target(study)
    note_reader.save(
        note_reader.load(study.work / reader["file"]), target, recipe(plan)
    )
    found = {
        "accuracy": reader["accuracy"],
        "ceiling_accuracy": reader["ceiling"],
        "accuracy_over_ceiling": reader["accuracy_over_ceiling"],
        "tag_accuracy": reader["tag_accuracy"],
        "disease_alone_accuracy": twin["accuracy"],
        "file_mb": target.stat().st_size / 1e6,
        "parameters": sum(p.numel() for p in note_reader.load(target).parameters()),
    }
    return found, {"arms": [{"arm": arm, **_shown(both[arm])} for arm in ARMS]}


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """What the series keeps of a training."""
    return {name: value for name, value in result.items() if name != "file"}


def _part(study: core.Study, plan: Plan, arm: str) -> core.Part:
    make = functools.partial(train_and_measure, study, plan, arm)
    name = "reader" if arm == ARMS[0] else "twin"
    seeds = {"train": TRAIN_SEED, "test": TEST_SEED}
    settings = {"arm": arm, **dataclasses.asdict(plan), **seeds}
    return core.Part(name, settings, 1.0, make)


def _target(study: core.Study) -> Path:
    """Beside the record: of a full run the file that the course ships."""
    return study.path.parent.parent / "weights" / note_reader.shipped().name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "A small encoder that tags findings and names the disease, for chapter 4."
    return core.main("anomaly_encoder", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
