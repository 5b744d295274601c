"""What the studies of chapter 3 on notes share: its notes, its fine-tuning, its scores.

The notes, the split, the head and the settings are those of the chapter's own run, so
that a study changes only what it is about.

Source: chapter 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlm_utils import bert, clinic, metrics, runtime
from medlm_utils.runtime import MedlmError, Profile
from medlm_utils.studies import core

ENCODER = "minilm"
DRAW = 1  # the seed of the chapter's notes for training and validation
TEST_SEED, OTHER_WORDS_SEED = 2, 3
SHARES = (0.9, 0.1)  # of the patients, for training and validation
HEAD_NOTES = 300  # the first so many suffice for the first head
CHECKPOINT_EVERY = 500  # steps


# Notes --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many notes a run has, and how much of each is read.

    Parameters
    ----------
    patients
        Whose notes are for training and validation.
    test_patients
        Drawn anew for the test, and again for the test in other words.
    longest
        Tokens of a note, special tokens included.
    """

    patients: int
    test_patients: int
    longest: int = 256


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Notes with what a model reads of them, and what it should say.

    Parameters
    ----------
    notes
        As they were drawn.
    rows
        Their tokens, as `bert.encode` makes them.
    label
        (notes,) numbers of classes, in the order of `Material.labels`.
    exact
        (notes, classes) the posterior of a perfect reader, in the same order.
    """

    notes: clinic.Notes
    rows: list[Tensor]
    label: np.ndarray
    exact: np.ndarray

    @property
    def ceiling(self) -> float:
        """The accuracy that no reader of these notes can pass on average."""
        return clinic.accuracy_ceiling(self.exact)


@dataclasses.dataclass(frozen=True)
class Material:
    """All notes of a run.

    Parameters
    ----------
    labels
        Names of the diseases, sorted.
    train, val
        Of hospital A, split by patient.
    test
        Other patients of the same hospital, the same in every study.
    other_words
        Others again, in phrasings of which the training notes hold none.
    """

    labels: tuple[str, ...]
    train: Labelled
    val: Labelled
    test: Labelled
    other_words: Labelled


def labels() -> tuple[str, ...]:
    """The diseases of the clinic, sorted by name, as a reader of a CSV finds them."""
    return tuple(sorted(clinic.Clinic("A").diseases))


def material(tokenizer: Any, sizes: Sizes, draw: int = DRAW) -> Material:
    """Draw the notes of a run, and encode them.

    Parameters
    ----------
    tokenizer
        Of the encoder, such as ``build(...).tokenizer``; None for notes without rows.
    sizes
        How many notes.
    draw
        The seed of training and validation; the test notes do not depend on it.

    Raises
    ------
    MedlmError
        If `draw` is the seed of test notes.

    Source: chapter 3.
    """
    if draw in (TEST_SEED, OTHER_WORDS_SEED):
        raise MedlmError(
            f"draw is {draw}, the seed of test notes; expected another number, so that "
            "no model is trained on them."
        )
    home = clinic.Clinic("A")
    elsewhere = clinic.Clinic("A", "held out")
    drawn = home.draw(sizes.patients, draw)
    train, val = clinic.split_by_patient(drawn, SHARES, draw)
    test = home.draw(sizes.test_patients, TEST_SEED)
    other = elsewhere.draw(sizes.test_patients, OTHER_WORDS_SEED)
    parts = [
        labelled(place, notes, tokenizer, sizes.longest)
        for place, notes in [
            (home, train),
            (home, val),
            (home, test),
            (elsewhere, other),
        ]
    ]
    return Material(labels(), *parts)


def with_rows(
    notes: Material, encode: Callable[[clinic.Notes], list[Tensor]]
) -> Material:
    """The same notes for another model, with the rows that it reads.

    Parameters
    ----------
    notes
        Such as ``material(None, ...)``, which has no rows.
    encode
        Notes to one row each.
    """
    parts = [notes.train, notes.val, notes.test, notes.other_words]
    given = [dataclasses.replace(part, rows=encode(part.notes)) for part in parts]
    return Material(notes.labels, *given)


def labelled(
    place: clinic.Clinic,
    notes: clinic.Notes,
    tokenizer: Any = None,
    longest: int = 256,
) -> Labelled:
    """Notes with labels and posterior in the order of `labels`, and encoded.

    Parameters
    ----------
    place
        The hospital that drew them.
    notes
        With patients and truth.
    tokenizer, longest
        As of `bert.encode`; without a tokenizer there are no rows.
    """
    order = np.argsort(place.diseases)  # of each name, the disease
    rank = np.argsort(order)  # of each disease, the name
    rows = bert.encode(tokenizer, list(notes.text), longest) if tokenizer else []
    return Labelled(notes, rows, rank[notes.label], place.posterior(notes)[:, order])


# Training -----------------------------------------------------------------------------


def sizes_of(study: core.Study) -> Sizes:
    """As many notes as in the chapter; in a tiny run a few, and their beginnings."""
    if study.tiny:
        return Sizes(24, 16, longest=24)
    return Sizes(study.profile.bert_patients, study.profile.bert_test_patients)


def settings_of(study: core.Study, **changes: Any) -> bert.FineTuning:
    """The chapter's fine-tuning on this machine; in a tiny run it is short.

    Parameters
    ----------
    study
        Whose profile counts.
    changes
        Fields of `bert.FineTuning` that are to differ.
    """
    profile = study.profile
    chosen: dict[str, Any] = {
        "epochs": 1 if study.tiny else profile.bert_epochs,
        "batch": profile.bert_batch,
        "looks": profile.bert_looks,
        "encoder_rate": 2e-4,
        "head_rate": 2e-3,
        "dropout": profile.bert_dropout,
        "precision": precision_of(profile, study.tiny),
    }
    return bert.FineTuning(**(chosen | changes))


def precision_of(profile: Profile, tiny: bool = False) -> str:
    """The fast precision of this machine; in a tiny run the profile's own."""
    return profile.precision if tiny else runtime.fast_precision(profile)


def build(
    encoder: str | Path = ENCODER, seed: int = 0, device: str = "cpu"
) -> bert.Classifier:
    """A pretrained encoder with a random head over the diseases.

    Parameters
    ----------
    encoder
        A name of `data.weights`, or a folder, as for `bert.Classifier.pretrained`.
    seed
        Of the head's weights; `bert.fit_head` replaces them.
    device
        Where it will be.
    """
    torch.manual_seed(seed)
    return bert.Classifier.pretrained(labels(), encoder).to(device)


def start_head(model: bert.Classifier, notes: Labelled, precision: str) -> None:
    """`bert.fit_head` on the first notes, as the chapter does it."""
    rows, label = notes.rows[:HEAD_NOTES], notes.label[:HEAD_NOTES]
    bert.fit_head(model, rows, label, precision=precision)


def fine_tune(
    study: core.Study,
    model: bert.Classifier,
    notes: Material,
    settings: bert.FineTuning,
) -> bert.Tuned:
    """Fit the head, then train all, in a part of a study; the best weights are kept.

    The part has a checkpoint, from which a stopped study goes on.

    Parameters
    ----------
    study
        Whose part is being made.
    model
        As `build` makes it.
    notes
        Training notes to learn from, validation notes to choose the weights.
    settings
        As `settings_of` gives them.
    """
    start_head(model, notes.train, settings.precision)
    return train(study, model, notes, settings)


def train(
    study: core.Study, model: Any, notes: Material, settings: bert.FineTuning
) -> bert.Tuned:
    """The same from the head that the model has.

    Parameters
    ----------
    study, notes, settings
        As in `fine_tune`.
    model
        A `bert.Classifier` or a `pretraining.SmallClassifier`.
    """
    train, val = notes.train, notes.val
    return bert.finetune(
        model,
        train.rows,
        train.label,
        val.rows,
        val.label,
        settings,
        checkpoint=study.file(".checkpoint"),
        checkpoint_every=CHECKPOINT_EVERY,
        resume=True,
    )


# Scores -------------------------------------------------------------------------------


def calibrate(model: Any, val: Labelled, precision: str) -> None:
    """Give a model the temperature that suits validation notes; 1 where none is best.

    Source: Guo et al. 2017; chapter 3.
    """
    logits = bert.predict_logits(model, val.rows, precision=precision)
    model.temperature = temperature(logits, val.label)


def temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """As `metrics.fit_temperature`; 1 where none is best.

    Parameters
    ----------
    logits, label
        (notes, classes) and (notes,), of validation notes.
    """
    try:
        return metrics.fit_temperature(logits, label)
    except metrics.UndefinedError:
        return 1.0


def scaled_logits(model: Any, rows: Sequence[Tensor], precision: str) -> np.ndarray:
    """Logits over the temperature, (rows, classes): `metrics.softmax` takes them."""
    logits = bert.predict_logits(model, rows, precision=precision)
    return logits / model.temperature


def scores(logits: np.ndarray, notes: Labelled) -> dict[str, Any]:
    """How good answers are, and what the best reader would reach.

    Parameters
    ----------
    logits
        (notes, classes), as `scaled_logits` gives them.
    notes
        That were asked.

    Returns
    -------
    dict
        ``accuracy`` and ``excess_log_loss`` (nats a note, over the exact posterior)
        with their intervals by patient, as `runtime.results` takes them; ``ceiling``
        and ``accuracy_over_ceiling``, numbers.

    Source: chapter 3.
    """
    probabilities = metrics.softmax(logits)
    patient, truth = notes.notes.patient, notes.label
    right = metrics.mean_by_patient(probabilities.argmax(axis=1) == truth, patient)
    excess = metrics.mean_by_patient(
        excess_of_each(probabilities, notes), patient, unit="nats"
    )
    return {
        "accuracy": right.as_metric(),
        "excess_log_loss": excess.as_metric(),
        "ceiling": notes.ceiling,
        "accuracy_over_ceiling": right.value / notes.ceiling,
    }


def excess_of_each(probabilities: np.ndarray, notes: Labelled) -> np.ndarray:
    """Nats lost to the model in each note: log-loss less that of the posterior."""
    lost = metrics.surprisal(notes.label, probabilities)
    return lost - metrics.surprisal(notes.label, notes.exact)


def measure(model: bert.Classifier, notes: Material, precision: str) -> dict[str, Any]:
    """Calibrate on validation notes, then score the test notes and the other words.

    Parameters
    ----------
    model
        Trained; its temperature is set.
    notes
        Of the run.
    precision
        As in `training.autocast`.

    Returns
    -------
    dict
        ``test`` and ``other_words`` as `scores` gives them, ``temperature``, and
        ``logits`` of the test notes over the temperature, as JSON can hold them.

    Source: chapter 3.
    """
    calibrate(model, notes.val, precision)
    logits = scaled_logits(model, notes.test.rows, precision)
    other = scaled_logits(model, notes.other_words.rows, precision)
    return {
        "test": scores(logits, notes.test),
        "other_words": scores(other, notes.other_words),
        "temperature": model.temperature,
        "logits": logits.astype(float).round(5).tolist(),
    }


def train_and_measure(
    study: core.Study,
    sizes: Sizes,
    settings: bert.FineTuning,
    draw: int = DRAW,
    encoder: str | Path = ENCODER,
) -> dict[str, Any]:
    """One run of the chapter as a whole, for `core.Part.make`.

    Parameters
    ----------
    study
        Whose part is being made.
    sizes, draw
        As in `material`.
    settings
        As in `fine_tune`.
    encoder
        As in `build`.

    Returns
    -------
    dict
        What `measure` gives; ``notes``, how many there were for training; ``best``,
        the look that was kept; ``validation_loss`` at each; ``seconds`` of
        training.

    Source: chapter 3.
    """
    model = build(encoder, settings.seed, study.profile.device)
    notes = material(model.tokenizer, sizes, draw)
    tuned = fine_tune(study, model, notes, settings)
    return {
        **measure(model, notes, settings.precision),
        "notes": len(notes.train.rows),
        "best": tuned.best,
        "validation_loss": list(tuned.loss),
        "seconds": tuned.history.seconds[-1],
    }


def identity(
    sizes: Sizes,
    settings: bert.FineTuning,
    draw: int = DRAW,
    encoder: str | Path = ENCODER,
) -> dict[str, Any]:
    """What the result of `train_and_measure` depends on, for `core.Part.settings`."""
    return {
        **dataclasses.asdict(sizes),
        **dataclasses.asdict(settings),
        "longest": sizes.longest,
        "draw": draw,
        "encoder": str(encoder),
    }
