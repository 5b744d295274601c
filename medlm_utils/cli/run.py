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
from medlm_utils.cli import splits, tables
from medlm_utils.cli.processes import options_named
from medlm_utils.cli.reading import usable_precision
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
    split
        How they came out of one file, if they did.
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
    split: splits.Split | None
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
        seed = runtime.checked_seed(chosen.seed, "--seed")
        parts, split = read_parts(chosen)
        warnings = tables.check_parts(parts) + tables.few_patients(parts)
        runtime.seed_everything(seed)  # the head's first weights are drawn
        labels = parts["training"].classes
        with options_named(**OPTIONS):
            model = bert.Classifier.pretrained(
                labels, chosen.model, dropout=chosen.dropout, longest=chosen.tokens
            )
            precision = usable_precision(model, precision, chosen.precision)
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
        return cls(chosen, parts, split, warnings, model, settings, sha256, started)

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
            **self._unusual,
        }

    @property
    def _unusual(self) -> dict[str, Any]:
        """What a run depends on that most runs do without."""
        found: dict[str, Any] = {}
        if self.split is not None:
            found["split"] = self.split.digest
        if self.has_several_labels:
            found["multi-label"] = self.chosen.multi_label
        if self.weights is not None:
            found["class weights"] = "balanced"
        return found

    @property
    def has_several_labels(self) -> bool:
        """Whether a note may have several labels."""
        return self.chosen.multi_label is not None

    @property
    def weights(self) -> np.ndarray | None:
        """(classes,), as `bert.finetune` takes them: the rarer, the more."""
        if not self.chosen.class_weights:
            return None
        return balanced_weights(self.numbers("training"), len(self.model.labels))

    @property
    def trained(self) -> int:
        """How many weights are learned: all but the table of words."""
        words = self.model.encoder.get_input_embeddings().weight.numel()
        return self.parameters - words * self.settings.frozen_words

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def needed_bytes(self) -> int:
        """Of the model and two checkpoints, since one is written beside the other."""
        checkpoint = self.parameters + 3 * self.trained  # two moments, the best weights
        return 4 * (2 * checkpoint + self.parameters) + _SPARE_BYTES

    @property
    def command(self) -> str:
        """The command with its settings; of paths only the last part."""
        from medlm_utils import bert

        words = ["medlm", "finetune"]
        left_out = {"run", "resume", "checkpoint_every"}
        for name, value in vars(self.chosen).items():
            if name not in left_out and value is not None and value is not False:
                is_path = isinstance(value, Path) or (
                    name == "model" and not bert.is_hub_name(value)
                )
                words.append(f"--{name.replace('_', '-')}")
                if value is not True:
                    words.append(Path(value).name if is_path else str(value))
        return shlex.join(words)

    def numbers(self, part: str) -> np.ndarray:
        """(notes,) class numbers of a part; (notes, classes) 0 or 1 of several."""
        table = self.parts[part]
        if not self.has_several_labels:
            return self.model.numbers(table.label).numpy()
        found = np.zeros((len(table), len(self.model.labels)), int)
        for row, labels in enumerate(table.labels):
            found[row, self.model.numbers(labels).numpy()] = 1
        return found


def read_parts(
    chosen: argparse.Namespace,
) -> tuple[dict[str, tables.Table], splits.Split | None]:
    """The notes of the files that the options name, and how one file was split.

    Raises
    ------
    MedlmError
        As in `tables.read`, `splits.draw` and `splits.read`; also if the options name
        neither one file nor a file for each part.
    """
    paths = {"training": chosen.train, "validation": chosen.val, "test": chosen.test}
    given = {name: path for name, path in paths.items() if path is not None}
    if chosen.data is None and "training" in given and "validation" in given:
        if chosen.split is not None:
            raise MedlmError("--split is for --data, which names one file to split.")
        return _read_all(chosen, given), None
    if chosen.data is None or given:
        raise MedlmError(
            "Expected --train and --val, and --test if there is one; or --data alone, "
            "one file that is split by patient."
        )
    table = _read_all(chosen, {"all": chosen.data})["all"]
    if chosen.split is None:
        split = splits.draw(table, chosen.seed)
    else:
        split = splits.read(chosen.split, table)
    return split.parts, split


def _read_all(
    chosen: argparse.Namespace, paths: dict[str, Path]
) -> dict[str, tables.Table]:
    patient, separator = chosen.patient, chosen.multi_label
    if separator is not None and not separator.strip():
        raise MedlmError(
            "--multi-label is empty; expected what separates labels, such as '|'."
        )
    first, *_ = paths.values()
    if patient is None and tables.has_column(first, PATIENT):
        patient = PATIENT
    found = {
        name: tables.read(path, chosen.text, chosen.label, patient, separator)
        for name, path in paths.items()
    }
    barred = [c for table in found.values() for c in table.classes if "|" in c]
    if separator is not None and barred:
        raise MedlmError(
            f"The label {tables.listing(barred[:1])} holds '|', which stands between "
            "predicted labels; rename it, or is '|' the separator?"
        )
    return found


def balanced_weights(label: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) weights: of a class the inverse of its frequency, 1 on average.

    Parameters
    ----------
    label
        (notes,) class numbers: the weights of all notes sum to their number. Or
        (notes, classes) 0 or 1: a yes then weighs as many as there are without it.
    classes
        How many there are; all of them occur.
    """
    if label.ndim == 1:
        return len(label) / (classes * np.bincount(label, minlength=classes))
    yes = label.sum(axis=0)
    return np.where(yes < len(label), (len(label) - yes) / yes, 1.0)


def weights_sha256(model: str) -> str:
    """The SHA-256 over the hashes of all files of weights that a model starts from."""
    from medlm_utils import bert

    digest = hashlib.sha256()
    for path in sorted(bert.weights_folder(model).glob("model*.safetensors")):
        digest.update(tables.sha256(path).encode())
    return digest.hexdigest()
