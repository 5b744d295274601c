"""A small encoder that reads notes: it tags each word and names the disease.

Knows nothing about anomalies. It is chapter 3's small encoder with two heads, trained
on both tasks at once. A tag says which finding a word belongs to and how it is
asserted; the disease is read off the mean of all tokens' states. Naming the disease
alone is learned slowly, for few words of a note tell of it. With tags every finding
teaches, and the mean then holds what the note says.

Rows are those of `text.documents`. The course comes with a trained reader; the study
``anomaly_encoder`` makes it.

Source: chapter 4.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import runtime, text, training
from medlm_utils.clinic import MENTIONS, Clinic
from medlm_utils.pretraining import SmallClassifier, SmallEncoder, mean_over_tokens
from medlm_utils.runtime import MedlmError
from medlm_utils.text import IGNORED, PAD

ASSERTIONS = MENTIONS[1:]  # a silent finding has no words


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the encoder; see `pretraining.SmallEncoder`."""

    d_model: int = 96
    heads: int = 4
    d_ff: int = 288
    blocks: int = 2
    longest: int = 256  # a note has about 100 tokens, and two pasted together more


class NoteReader(SmallClassifier):
    """A small encoder with a head for every token and one for the whole note.

    `bert.embed` and `bert.predict_logits` take it as they take any classifier.

    Parameters
    ----------
    words
        The vocabulary, as `text.WordTokenizer` takes it.
    labels
        The diseases, in the order of the logits.
    findings
        The findings, in the order of the tags.
    sizes
        Of the encoder.

    Raises
    ------
    MedlmError
        If there are not two labels, or the vocabulary is none.

    Source: chapter 4.
    """

    def __init__(
        self,
        words: Sequence[str],
        labels: Sequence[str],
        findings: Sequence[str],
        sizes: Sizes | None = None,
    ):
        sizes = sizes or Sizes()
        encoder = SmallEncoder(len(words), **dataclasses.asdict(sizes))
        super().__init__(encoder, labels, dropout=0.0)
        self.sizes = sizes
        self.recipe: dict[str, Any] = {}
        self.tokenizer = text.WordTokenizer(words)
        self.findings = tuple(findings)
        tags = 1 + len(self.findings) * len(ASSERTIONS)
        self.tag_head = nn.Linear(sizes.d_model, tags)

    def rows(self, texts: Sequence[str]) -> list[Tensor]:
        """Texts as rows that the encoder can read, (tokens,) each.

        Words that no training note held become ``<unk>``; of a text with more tokens
        than positions the end is cut off.

        Raises
        ------
        MedlmError
            If there are no texts, or one is empty.
        """
        return [row[: self.longest] for row in text.documents(self.tokenizer, texts)]

    def both(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the tags, (batch, tokens, tags), and of the diseases."""
        states = self.encoder(input_ids, attention_mask)
        pooled = mean_over_tokens(states, attention_mask)
        return self.tag_head(states), self.head(self.dropout(pooled))


# What it learns -----------------------------------------------------------------------


def tags_of(clinic: Clinic, note: str) -> Tensor:
    """The tag of each token of a note: 0, or finding and assertion as one number.

    Parameters
    ----------
    clinic
        Whose note it is.
    note
        The text.

    Returns
    -------
    Tensor
        (tokens,) as `text.documents` makes them; start and end have 0. The tag of
        finding f with assertion a is 1 + f * 4 + a, both counted from 0.

    Raises
    ------
    MedlmError
        If the clinic cannot read the note.

    Source: Ramshaw & Marcus 1995 on tags, here without a begin; chapter 4.
    """
    number = {f.name: place for place, f in enumerate(clinic.world.findings)}
    tags, place, spans = [0], 0, list(clinic.spans(note))
    for word in text.split_words(note):
        place = note.lower().index(word, place)
        inside = [span for span in spans if span.start <= place < span.end]
        tags += [_tag(number[s.finding], s.assertion) for s in inside] or [0]
        place += len(word)
    return torch.tensor([*tags, 0])


def _tag(finding: int, assertion: str) -> int:
    return 1 + finding * len(ASSERTIONS) + ASSERTIONS.index(assertion)


class TaggedBatches(text.DocumentBatches):
    """Batches of rows with a tag for each token and a label for each row.

    Parameters
    ----------
    rows
        As `NoteReader.rows` makes them.
    tags
        As `tags_of` makes them, one tensor a row and of its length.
    labels
        (rows,) numbers of classes.
    size, seed
        As in `text.DocumentBatches`. A batch is a tuple: ``input_ids``,
        ``attention_mask`` and tags, (batch, tokens), and labels, (batch,); tags are
        `IGNORED` at padding.

    Raises
    ------
    MedlmError
        If there are no rows, or not as many tags or labels.

    Source: chapter 4.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        tags: Sequence[Tensor],
        labels: np.ndarray,
        size: int,
        seed: int = 0,
    ):
        super().__init__(rows, size, seed)
        if not len(rows) == len(tags) == len(labels):
            raise MedlmError(
                f"{len(rows)} rows, {len(tags)} rows of tags and {len(labels)} labels; "
                "expected as many of each."
            )
        unequal = [
            row
            for row, tag in zip(self.rows, tags, strict=True)
            if len(row) != len(tag)
        ]
        if unequal:
            raise MedlmError(
                f"{len(unequal)} rows have not one tag a token; expected `tags_of` the "
                "same note."
            )
        self.tags, self.labels = list(tags), torch.as_tensor(np.asarray(labels)).long()

    def _batch_of(self, chosen: np.ndarray) -> Any:
        input_ids = text.pad([self.rows[row] for row in chosen])
        tags = nn.utils.rnn.pad_sequence(
            [self.tags[row] for row in chosen], True, IGNORED
        )
        mask = (input_ids != PAD).long()
        return input_ids, mask, tags, self.labels[torch.from_numpy(chosen)]


def reading_loss(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Mean nats of a tag plus mean nats of a label: for `training.fit`.

    Parameters
    ----------
    model
        A `NoteReader`.
    batch
        As `TaggedBatches` makes it.

    Returns
    -------
    tuple
        The sum of both means times the number of notes, and this number, as
        `training.fit` divides the one by the other.

    Source: chapter 4.
    """
    assert isinstance(model, NoteReader)
    device = training.device_of(model)
    input_ids, mask, tags, labels = (part.to(device) for part in batch)
    tag_logits, logits = model.both(input_ids, mask)
    of_tags = F.cross_entropy(
        tag_logits.float().flatten(0, 1), tags.flatten(), ignore_index=IGNORED
    )
    of_labels = F.cross_entropy(logits.float(), labels)
    return len(labels) * (of_tags + of_labels), len(labels)


@torch.no_grad()
def tag_accuracy(model: NoteReader, batches: TaggedBatches) -> float:
    """The share of the tokens inside a finding that get finding and assertion right.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    batches
        Of one epoch, all of it.

    Source: chapter 4.
    """
    right = count = 0
    device = training.device_of(model)
    with training.evaluating(model):
        for batch in batches.epoch(0):
            input_ids, mask, tags, _ = (part.to(device) for part in batch)
            found = model.both(input_ids, mask)[0].argmax(dim=-1)
            inside = tags > 0
            right += int((found == tags)[inside].sum())
            count += int(inside.sum())
    return right / count


# A file of it -------------------------------------------------------------------------


def shipped() -> Path:
    """The reader that comes with the course, made by the study ``anomaly_encoder``."""
    return runtime.shipped_records() / "weights" / "note_reader.safetensors"


def save(model: NoteReader, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write the reader to one file, beside first and then renamed.

    Parameters
    ----------
    model
        On any device.
    path
        Of the file, ending in ``.safetensors``; a file that is there is replaced.
    recipe
        How it was made, as JSON can hold it.

    Raises
    ------
    MedlmError
        If the file cannot be written.

    Source: chapter 4.
    """
    about = {
        "words": model.tokenizer.words,
        "labels": list(model.labels),
        "findings": list(model.findings),
        "sizes": dataclasses.asdict(model.sizes),
        "recipe": dict(recipe),
    }
    content = safetensors.torch.save(
        {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()},
        {"reader": json.dumps(about)},
    )
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise MedlmError(
            f"Cannot write {path}: {error.strerror}. Expected a folder with free space "
            "that you may write."
        ) from error


def load(path: Path | None = None) -> NoteReader:
    """A reader from its file, in evaluation mode.

    Parameters
    ----------
    path
        None: the one that comes with the course.

    Returns
    -------
    NoteReader
        On the CPU. Its attribute `recipe` says how it was made.

    Raises
    ------
    MedlmError
        If the file is not there, damaged, or no reader.

    Source: chapter 4.
    """
    path = path or shipped()
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["reader"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = NoteReader(
            about["words"], about["labels"], about["findings"], Sizes(**about["sizes"])
        )
        model.load_state_dict(weights)
    except FileNotFoundError as error:
        raise MedlmError(
            f"There is no file {path}; expected a reader of notes. To make one: python "
            "-m medlm_utils.studies.anomaly_encoder."
        ) from error
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        raise MedlmError(
            f"{path} is damaged, or no reader of notes ({error}). Install the package "
            "again, or make the file: python -m medlm_utils.studies.anomaly_encoder."
        ) from error
    model.recipe = about["recipe"]
    return model.eval()
