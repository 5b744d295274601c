"""A small encoder fine-tuned on OHSUMED, 23 classes, beside published numbers.

The split is the official one of the single-label subset. What is chosen is chosen on a
validation part of the training set: the encoder's learning rate and the number of
epochs by one trial a rate, all with one seed, and the penalty of each baseline. Then
the chosen setting is trained anew from the pretrained weights, once a seed, on all of
the training set and for the chosen number of epochs. The test set is opened last, once
for every model.

Not chosen here but fixed beforehand are the mean over tokens, how many tokens are read,
batch, head rate, smoothing, dropout, warm-up and weight decay. With them, 4 epochs and
a rate of 1e-4, one seed had been scored on the test set before this study was written;
nothing was changed for what it said. A head from `bert.fit_head` was left out after a
short trial on training abstracts alone, in which a random one was better.

The unit is the abstract: the collection names no patients. The encoder may have read
these abstracts before, without their classes; see `CAVEAT`.

Source: chapter 3; `python -m medlm_utils.studies.ohsumed`. The collection is that of
Hersh et al. 1994, the split and the published numbers are those of the BertGCN README.
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
from torch import Tensor

from medlm_utils import bert, clinic, data, metrics, runtime, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core

ENCODER = "minilm"
SPLITS = {"train": "training", "test": "test"}  # our word, and that of the index
ABSTRACTS = {"train": 3357, "test": 4043}

TITLES = {
    "C01": "Bacterial infections and mycoses",
    "C02": "Virus diseases",
    "C03": "Parasitic diseases",
    "C04": "Neoplasms",
    "C05": "Musculoskeletal diseases",
    "C06": "Digestive system diseases",
    "C07": "Stomatognathic diseases",
    "C08": "Respiratory tract diseases",
    "C09": "Otorhinolaryngologic diseases",
    "C10": "Nervous system diseases",
    "C11": "Eye diseases",
    "C12": "Urologic and male genital diseases",
    "C13": "Female genital diseases and pregnancy complications",
    "C14": "Cardiovascular diseases",
    "C15": "Hemic and lymphatic diseases",
    "C16": "Neonatal diseases and abnormalities",
    "C17": "Skin and connective tissue diseases",
    "C18": "Nutritional and metabolic diseases",
    "C19": "Endocrine diseases",
    "C20": "Immunologic diseases",
    "C21": "Disorders of environmental origin",
    "C22": "Animal diseases",
    "C23": "Pathological conditions, signs and symptoms",
}

# Test accuracy on the same split.
PUBLISHED = (
    ("TextGCN", 0.684, "BertGCN README"),
    ("BERT", 0.705, "BertGCN README"),
    ("RoBERTa", 0.707, "BertGCN README"),
    ("BertGCN", 0.728, "BertGCN README"),
)

CAVEAT = (
    "all-MiniLM-L6-v2 was trained on S2ORC among others, which may hold these "
    "abstracts, those of the test set too, without their classes."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is tried, and how often the chosen setting is trained, on one machine."""

    encoder_rates: tuple[float, ...]  # each a trial; validation chooses
    epochs: int  # of a trial; validation chooses how many of them
    seeds: tuple[int, ...]  # of the trainings; the trials have the first one
    longest: int  # tokens of an abstract; what follows is not read
    batch: int = 16
    checkpoint_every: int = 50  # steps
    # Inverse L2 penalties of the two logistic regressions; validation chooses.
    tfidf_c: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    frozen_c: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    head_rate: float = 2e-3
    smoothing: float = 0.05
    dropout: float = 0.1
    validation_share: float = 0.15  # of the training set


PLANS = {
    "tiny": Plan((1e-4, 2e-4), 2, (0, 1), 24, 8, 8, (1.0, 10.0), (1.0,)),
    "cpu": Plan((1e-4, 2e-4), 4, (0, 1, 2), 256),
    "gpu": Plan((5e-5, 1e-4, 2e-4), 6, (0, 1, 2, 3, 4), 512),
}


# The corpus ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Abstracts:
    """Texts and the numbers of their classes, (abstracts,) each."""

    texts: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: np.ndarray) -> Abstracts:
        """The abstracts of a mask or of row numbers."""
        return Abstracts(self.texts[rows], self.label[rows])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The training set; the test set stays closed until asked for."""

    labels: tuple[str, ...]  # names of the classes, by number
    train: Abstracts
    folder: Path | None  # None: the stand-in of a tiny run

    def test(self) -> Abstracts:
        """The test set.

        Raises
        ------
        MedlmError
            As `read_corpus`.
        """
        return _numbered(*_read("test", self.folder), self.labels)


def read_corpus(tiny: bool = False) -> Corpus:
    """OHSUMED's training set; in a tiny run, notes of the clinic in its place.

    Raises
    ------
    MedlmError
        If the files are not there and cannot be fetched, or do not hold the published
        numbers of abstracts and classes, so that no published accuracy could stand
        beside ours.
    """
    folder = None if tiny else data.fetch("ohsumed")
    texts, classes = _read("train", folder)
    labels = tuple(sorted(set(classes)))
    if not tiny and labels != tuple(TITLES):
        raise _other_corpus(f"the classes {', '.join(labels)}", ", ".join(TITLES))
    return Corpus(labels, _numbered(texts, classes, labels), folder)


def parse(index: str, corpus: str, split: str) -> tuple[list[str], list[str]]:
    """Texts and names of classes of one split.

    Parameters
    ----------
    index
        A line for each document: its name, its split and its class, with tabs between.
    corpus
        The text of the same document in the same line.
    split
        ``"train"`` or ``"test"``.

    Raises
    ------
    MedlmError
        If the two have not the same number of lines, or a line not three fields.
    """
    entries = [line.split("\t") for line in _lines(index)]
    texts = _lines(corpus)
    if len(entries) != len(texts) or any(len(entry) != 3 for entry in entries):
        raise _other_corpus(
            f"{len(entries)} lines in its index and {len(texts)} texts",
            "as many, and three fields in each line of the index",
        )
    chosen = [
        (text.strip(), name)
        for (_, of, name), text in zip(entries, texts, strict=True)
        if of == SPLITS[split]
    ]
    return [text for text, _ in chosen], [name for _, name in chosen]


def _lines(content: str) -> list[str]:
    return content.removesuffix("\n").split("\n")


def _read(split: str, folder: Path | None) -> tuple[list[str], list[str]]:
    """Texts and names of classes of a split, counted."""
    if folder is None:
        return _stand_in(split)
    index, corpus = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("index.txt", "corpus.txt")
    )
    found = parse(index, corpus, split)
    if len(found[0]) != ABSTRACTS[split]:
        raise _other_corpus(
            f"{len(found[0])} abstracts for {split}", str(ABSTRACTS[split])
        )
    return found


def _stand_in(split: str) -> tuple[list[str], list[str]]:
    """Notes of the clinic, each with its disease."""
    home = clinic.Clinic("A")
    patients, seed = {"train": (32, 2), "test": (10, 3)}[split]  # 2 has every disease
    notes = home.draw(patients, seed)
    return list(notes.text), [home.diseases[number] for number in notes.label]


def _numbered(
    texts: Sequence[str], classes: Sequence[str], labels: Sequence[str]
) -> Abstracts:
    unknown = sorted(set(classes) - set(labels))
    if unknown:
        raise _other_corpus(f"the class {unknown[0]}", f"one of {', '.join(labels)}")
    place = {name: number for number, name in enumerate(labels)}
    return Abstracts(
        np.array(texts, dtype=object), np.array([place[name] for name in classes])
    )


def _other_corpus(found: str, expected: str) -> MedlmError:
    return MedlmError(
        f"OHSUMED has {found}; expected {expected}. Fetch it again: `medlm data fetch "
        "ohsumed`."
    )


def held_out(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows are for validation: the same share of every class, (rows,) bool.

    Parameters
    ----------
    label
        (rows,) numbers of classes.
    share
        Rounded to whole rows of a class, so a very small class may give none.
    seed
        Of the choice.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(label), bool)
    for number in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == number))
        chosen[rows[: round(share * len(rows))]] = True
    return chosen


# Fine-tuning --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """What every part of the study needs."""

    study: core.Study
    plan: Plan
    corpus: Corpus
    precision: str

    @property
    def validation(self) -> np.ndarray:
        """Which of the training abstracts are for validation, (abstracts,) bool."""
        share = self.plan.validation_share
        return held_out(self.corpus.train.label, share, runtime.SEED)

    def parts(self) -> tuple[Abstracts, Abstracts]:
        """The training set without the validation part, and this part."""
        return self.corpus.train[~self.validation], self.corpus.train[self.validation]

    def settings(self, encoder_rate: float, epochs: int, seed: int) -> bert.FineTuning:
        """One fine-tuning of the plan."""
        return bert.FineTuning(
            epochs=epochs,
            batch=self.plan.batch,
            encoder_rate=encoder_rate,
            head_rate=self.plan.head_rate,
            dropout=self.plan.dropout,
            smoothing=self.plan.smoothing,
            longest=self.plan.longest,
            seed=seed,
            precision=self.precision,
        )

    def build(self, seed: int = 0) -> bert.Classifier:
        """The pretrained encoder with a random head, drawn from the seed."""
        torch.manual_seed(seed)
        model = bert.Classifier.pretrained(
            self.corpus.labels, ENCODER, longest=self.plan.longest
        )
        return model.to(self.study.profile.device)


def encoded(model: bert.Classifier, abstracts: Abstracts) -> list[Tensor]:
    """Abstracts as rows of token numbers."""
    return bert.encode(model.tokenizer, list(abstracts.texts), model.longest)


def fit(
    task: Task,
    model: bert.Classifier,
    abstracts: Abstracts,
    settings: bert.FineTuning,
    evaluation: training.Evaluation | None = None,
) -> training.History:
    """As `bert.finetune`, but the model is left with the weights of its last epoch.

    A training on all of the training set has no validation texts to choose by.

    Parameters
    ----------
    task
        Whose study goes on with its checkpoint, if there is one.
    model
        As `Task.build` makes it.
    abstracts, settings
        To learn from, and how.
    evaluation
        After every epoch, as in `training.fit`.
    """
    rows = encoded(model, abstracts)
    batches = bert.LabelledBatches(rows, abstracts.label, settings.batch, settings.seed)
    model.freeze(settings.frozen_blocks, settings.frozen_words)
    bert.set_dropout(model, settings.dropout)
    torch.manual_seed(settings.seed)
    return task.study.fit(
        model,
        batches.at,
        **bert.loop_settings(settings, settings.epochs * len(batches)),
        evaluation=evaluation,
        evaluate_every=len(batches),
        checkpoint_every=task.plan.checkpoint_every,
    )


def trial(task: Task, settings: bert.FineTuning) -> dict[str, Any]:
    """Train without the validation part, and measure on it after each epoch."""
    model = task.build(settings.seed)
    known, asked = task.parts()
    rows = encoded(model, asked)

    def evaluation() -> dict[str, float]:
        logits = bert.predict_logits(model, rows, precision=settings.precision)
        found = measured(asked.label, logits)
        core.say(
            f"rate {settings.encoder_rate:g}: validation accuracy "
            f"{found['accuracy']:.3f}, loss {found['loss']:.3f}"
        )
        return found

    by_epoch = fit(task, model, known, settings, evaluation).measures
    best = best_of(by_epoch)
    return {
        "encoder_rate": settings.encoder_rate,
        "by_epoch": by_epoch,
        "best_epoch": 1 + best,
        **by_epoch[best],
    }


def measured(label: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """What is measured on validation: loss without smoothing, accuracy, macro-F1.

    Parameters
    ----------
    label
        (abstracts,) numbers of classes.
    logits
        (abstracts, classes).
    """
    predicted = logits.argmax(axis=1)
    return {
        "loss": metrics.log_loss(label, metrics.softmax(logits)),
        "accuracy": metrics.accuracy(label, predicted),
        "macro_f1": metrics.f1(label, predicted, logits.shape[1]),
    }


def best_of(found: Sequence[dict[str, Any]]) -> int:
    """Place of the highest accuracy; of several, the smallest loss, then the first.

    Parameters
    ----------
    found
        Epochs or trials, as `measured` describes them.
    """
    order = [(-one["accuracy"], one["loss"]) for one in found]
    return order.index(min(order))


def train(task: Task, settings: bert.FineTuning) -> dict[str, Any]:
    """Train on all of the training set, and keep the weights in a work file."""
    model = task.build(settings.seed)
    history = fit(task, model, task.corpus.train, settings)
    path = task.study.file(".safetensors")
    core.save_weights(model, path)
    return {
        "seed": settings.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": history.seconds[-1],
        "weights": path.name,
    }


# Baselines ----------------------------------------------------------------------------


def regression(vectors: Any, label: np.ndarray, c: float) -> Any:
    """A logistic regression on vectors, (abstracts, features)."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000).fit(vectors, label)


def tfidf_vectors(known: Abstracts, asked: Abstracts) -> tuple[Any, Any]:
    """TF-IDF of both; words and their weights come from the known ones alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    return words.fit_transform(known.texts), words.transform(asked.texts)


def frozen_vectors(task: Task, known: Abstracts, asked: Abstracts) -> tuple[Any, Any]:
    """Vectors of both by the encoder as it was published, (abstracts, d_model)."""
    model = task.build()
    first, second = (
        bert.embed(model, encoded(model, part), precision=task.precision)
        for part in (known, asked)
    )
    return first, second


def tune_baselines(task: Task) -> dict[str, Any]:
    """For both logistic regressions, the `c` with the highest validation accuracy.

    Returns
    -------
    dict
        ``"tfidf"`` and ``"frozen"``, each to ``"c"`` and to all that were ``"tried"``.
    """
    known, asked = task.parts()
    plan, found = task.plan, {}
    for name, (first, second), cs in (
        ("tfidf", tfidf_vectors(known, asked), plan.tfidf_c),
        ("frozen", frozen_vectors(task, known, asked), plan.frozen_c),
    ):
        tried = []
        for c in cs:
            predicted = regression(first, known.label, c).predict(second)
            right = metrics.accuracy(asked.label, predicted)
            tried.append({"c": c, "accuracy": right})
        best = max(tried, key=lambda one: one["accuracy"])
        found[name] = {"c": best["c"], "tried": tried}
    return found


def baseline_answers(
    task: Task, asked: Abstracts, tuned: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What baselines that know all of the training set answer, (abstracts,) each."""
    known = task.corpus.train
    answers = {"majority": np.full(len(asked), np.bincount(known.label).argmax())}
    for name, (first, second) in (
        ("tfidf", tfidf_vectors(known, asked)),
        ("frozen", frozen_vectors(task, known, asked)),
    ):
        fitted = regression(first, known.label, tuned[name]["c"])
        answers[name] = fitted.predict(second)
    return answers


# The test -----------------------------------------------------------------------------


def test(
    task: Task, tuned: dict[str, Any], trained: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Open the test set, once, for the weights of every seed and for the baselines."""
    asked, classes = task.corpus.test(), len(task.corpus.labels)
    answers = baseline_answers(task, asked, tuned)
    model = task.build()
    rows = encoded(model, asked)
    by_seed = []
    for one in trained:
        core.load_weights(model, task.study.work / one["weights"])
        logits = bert.predict_logits(model, rows, precision=task.precision)
        by_seed.append(score(asked.label, logits.argmax(axis=1), classes))
    return {
        "by_seed": by_seed,
        "baselines": {n: score(asked.label, a, classes) for n, a in answers.items()},
        "of_class": np.bincount(asked.label, minlength=classes).tolist(),
    }


def score(label: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy with Wilson's interval over abstracts, macro-F1, and F1 of each class.

    Parameters
    ----------
    label, predicted
        (abstracts,) numbers of classes.
    classes
        How many there are. One that is neither in `label` nor predicted has no F1, and
        None in its place.
    """
    right = int((label == predicted).sum())
    each = metrics.f1(label, predicted, classes, average=None)
    return {
        "accuracy": metrics.wilson(right, len(label)).as_metric(),
        "macro_f1": metrics.f1(label, predicted, classes),
        "f1": [None if np.isnan(value) else float(value) for value in each],
    }


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose on validation, train every seed on all, open the test set once."""
    plan, precision = PLANS[study.size], runtime.fast_precision(study.profile)
    task = Task(study, plan, read_corpus(study.tiny), precision)
    trials = [
        task.settings(rate, plan.epochs, plan.seeds[0]) for rate in plan.encoder_rates
    ]
    tuned, *tried = study.run(
        [_tuning_part(task), *(_trial_part(task, one) for one in trials)]
    )
    chosen = tried[best_of(tried)]
    rate, epochs = chosen["encoder_rate"], chosen["best_epoch"]
    trained = study.run(
        [_train_part(task, task.settings(rate, epochs, seed)) for seed in plan.seeds]
    )
    (tested,) = study.run([_test_part(task, tuned, trained)])
    series = {
        "plan": dataclasses.asdict(plan),
        "precision": precision,
        "trials": tried,
        "tuned_baselines": tuned,
        **_series(task, trained, tested),
    }
    return _metrics(task, chosen, trained, tested), series


# A cost is a number of abstracts that pass forwards and backwards; forwards alone is
# about a quarter.


def _tuning_part(task: Task) -> core.Part:
    plan = task.plan
    depends_on = {
        "share": plan.validation_share,
        "tfidf_c": plan.tfidf_c,
        "frozen_c": plan.frozen_c,
        "longest": plan.longest,
        "precision": task.precision,
    }
    make = functools.partial(tune_baselines, task)
    return core.Part("baselines", depends_on, len(task.corpus.train) / 3, make)


def _trial_part(task: Task, settings: bert.FineTuning) -> core.Part:
    share = task.plan.validation_share
    return core.Part(
        f"trial-{settings.encoder_rate:g}",
        {**dataclasses.asdict(settings), "share": share},
        settings.epochs * len(task.corpus.train) * (1 - share + share / 4),
        functools.partial(trial, task, settings),
    )


def _train_part(task: Task, settings: bert.FineTuning) -> core.Part:
    return core.Part(
        f"seed-{settings.seed}",
        dataclasses.asdict(settings),
        settings.epochs * len(task.corpus.train),
        functools.partial(train, task, settings),
    )


def _test_part(
    task: Task, tuned: dict[str, Any], trained: Sequence[dict[str, Any]]
) -> core.Part:
    depends_on = {
        "c": [one["c"] for one in tuned.values()],
        "weights": [one["weights"] for one in trained],
        "precision": task.precision,
    }
    make = functools.partial(test, task, tuned, trained)
    return core.Part("test", depends_on, 1.0, make)


def _metrics(
    task: Task,
    chosen: dict[str, Any],
    trained: Sequence[dict[str, Any]],
    tested: dict[str, Any],
) -> dict[str, Any]:
    """The metrics of the record."""
    by_seed, others = tested["by_seed"], tested["baselines"].items()
    asked = int(task.validation.sum())
    right = round(chosen["accuracy"] * asked)
    hours = np.mean([one["training_seconds"] for one in trained]) / 3600
    return {
        "test_accuracy": core.over_seeds([s["accuracy"]["value"] for s in by_seed]),
        "macro_f1": core.over_seeds([s["macro_f1"] for s in by_seed]),
        "validation_accuracy": metrics.wilson(right, asked).as_metric(),
        **{f"{name}_accuracy": one["accuracy"] for name, one in others},
        **{f"{name}_macro_f1": one["macro_f1"] for name, one in others},
        "encoder_rate": chosen["encoder_rate"],
        "epochs": chosen["best_epoch"],
        "parameters": trained[0]["parameters"],
        "training_hours": {"value": hours, "unit": "h"},
    }


def _series(
    task: Task, trained: Sequence[dict[str, Any]], tested: dict[str, Any]
) -> dict[str, Any]:
    """What the figures of the chapter draw."""
    return {
        "unit": "abstract",
        "caveat": CAVEAT,
        "trained_on": "all of the training set, for the chosen number of epochs",
        "by_seed": [
            {
                "seed": one["seed"],
                "test_accuracy": found["accuracy"],  # interval over abstracts
                "macro_f1": found["macro_f1"],
            }
            for one, found in zip(trained, tested["by_seed"], strict=True)
        ],
        "classes": _classes(task.corpus, tested),
        "abstracts": {
            "train": len(task.corpus.train),
            "of_these_validation": int(task.validation.sum()),
            "test": sum(tested["of_class"]),
        },
        "published": [
            {"model": model, "test_accuracy": value, "source": source}
            for model, value, source in PUBLISHED
        ],
    }


def _classes(corpus: Corpus, tested: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each class its size, and its F1 by every fine-tuned model and baseline."""
    of_train = np.bincount(corpus.train.label, minlength=len(corpus.labels)).tolist()
    return [
        {
            "name": name,
            "title": TITLES.get(name, name),
            "train": of_train[number],
            "test": tested["of_class"][number],
            "f1_by_seed": [one["f1"][number] for one in tested["by_seed"]],
            "tfidf_f1": tested["baselines"]["tfidf"]["f1"][number],
            "frozen_f1": tested["baselines"]["frozen"]["f1"][number],
        }
        for number, name in enumerate(corpus.labels)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "A small encoder fine-tuned on OHSUMED, beside published numbers."
    return core.main("ohsumed", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
