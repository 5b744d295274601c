"""A fine-tuning before it starts: notes, model and settings without a fault."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli import tables
from medlm_utils.cli.processes import options_named
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import bert

PATIENT = "patient"  # the column that is used where --patient names none
OPTIONS = {  # what arguments of the model and its settings are called here
    "longest": "--tokens",
    "encoder_rate": "--rate",
    "epochs": "--epochs",
    "batch": "--batch",
    "dropout": "--dropout",
}
_SPARE_BYTES = 10_000_000  # of predictions and the report


@dataclasses.dataclass
class Run:
    """A fine-tuning of which no fault is known.

    Parameters
    ----------
    chosen
        The options of the command.
    parts
        ``"training"``, ``"validation"`` and perhaps ``"test"`` to their notes.
    warnings
        What makes its results look better than they are.
    model, settings
        As `bert.finetune` takes them.
    base_sha256
        Of the weights that it starts from.
    started
        Of `time.monotonic`.
    """

    chosen: argparse.Namespace
    parts: dict[str, tables.Table]
    warnings: list[str]
    model: bert.Classifier
    settings: bert.FineTuning
    base_sha256: str
    started: float

    @classmethod
    def prepare(cls, chosen: argparse.Namespace, precision: str) -> Run:
        """Read the notes and load the model.

        Raises
        ------
        MedlmError
            For every fault of files, model and settings.
        """
        from medlm_utils import bert

        started = time.monotonic()
        if chosen.checkpoint_every < 1:
            raise MedlmError(
                f"--checkpoint-every is {chosen.checkpoint_every}; expected at least 1."
            )
        parts = read_parts(chosen)
        warnings = tables.check_parts(parts)
        seed = runtime.checked_seed(chosen.seed, "--seed")
        runtime.seed_everything(seed)  # the head's first weights are drawn
        labels = tables.classes(parts["training"].label)
        with options_named(**OPTIONS):
            model = bert.Classifier.pretrained(
                labels, chosen.model, dropout=chosen.dropout, longest=chosen.tokens
            )
            settings = bert.FineTuning(
                epochs=chosen.epochs,
                batch=chosen.batch,
                encoder_rate=chosen.rate,
                dropout=chosen.dropout,
                longest=model.longest,
                seed=chosen.seed,
                precision=precision,
            )
        sha256 = weights_sha256(chosen.model)
        return cls(chosen, parts, warnings, model, settings, sha256, started)

    @property
    def identity(self) -> dict[str, Any]:
        """What the resulting weights depend on, in short."""
        named = self.parts["training"].patient is not None
        return {
            "command": "finetune",
            **{f"{name} notes": p.sha256[:12] for name, p in self.parts.items()},
            "text column": self.chosen.text,
            "label column": self.chosen.label,
            "patient column": (self.chosen.patient or PATIENT) if named else None,
            "model": self.base_sha256[:12],
            **dataclasses.asdict(self.settings),
        }

    @property
    def trained(self) -> int:
        """How many weights are learned: all but the table of words."""
        words = self.model.encoder.get_input_embeddings().weight.numel()
        return self.weights - words * self.settings.frozen_words

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def needed_bytes(self) -> int:
        """Of the model and two checkpoints, since one is written beside the other."""
        checkpoint = self.weights + 3 * self.trained  # two moments, the best weights
        return 4 * (2 * checkpoint + self.weights) + _SPARE_BYTES

    @property
    def command(self) -> str:
        """The command with its settings; of paths only the last part."""
        from medlm_utils import bert

        words = ["medlm", "finetune"]
        left_out = {"run", "resume", "checkpoint_every"}
        for name, value in vars(self.chosen).items():
            if name not in left_out and value is not None:
                is_path = isinstance(value, Path) or (
                    name == "model" and not bert.is_hub_name(value)
                )
                words += [f"--{name}", Path(value).name if is_path else str(value)]
        return shlex.join(words)

    def numbers(self, part: str) -> np.ndarray:
        """(notes,) class numbers of a part."""
        return self.model.numbers(self.parts[part].label).numpy()


def read_parts(chosen: argparse.Namespace) -> dict[str, tables.Table]:
    """The notes of the files that the options name.

    Raises
    ------
    MedlmError
        As in `tables.read`.
    """
    patient = chosen.patient
    if patient is None and tables.has_column(chosen.train, PATIENT):
        patient = PATIENT
    paths = {"training": chosen.train, "validation": chosen.val, "test": chosen.test}
    return {
        name: tables.read(path, chosen.text, chosen.label, patient)
        for name, path in paths.items()
        if path is not None
    }


def weights_sha256(model: str) -> str:
    """The SHA-256 over the hashes of all files of weights that a model starts from."""
    from medlm_utils import bert

    digest = hashlib.sha256()
    for path in sorted(bert.weights_folder(model).glob("model*.safetensors")):
        digest.update(tables.sha256(path).encode())
    return digest.hexdigest()
