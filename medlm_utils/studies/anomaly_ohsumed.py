"""Abstracts of a disease class that was held out, found by detectors without labels.

One class of OHSUMED after another is the anomaly. The detectors learn from the training
abstracts of all other classes, without their labels, and score the whole test set, in
which the abstracts of the class held out should stand highest. Held out are all classes
with at least `Plan.least` test abstracts; nothing else is chosen. Of the test set only
the sizes of its classes were looked at beforehand.

Five ways from an abstract to a vector: the mean of the last hidden states of MiniLM, as
it was published; the same whitened; the same with length 1, so that distances are those
of cosine; TF-IDF with SVD, which has read nothing but these abstracts; and this with
length 1. All nine detectors have the settings of chapter 4. A logistic regression that
was given the labels, those of the class held out too, shows how much the vectors hold
at all.

The fifth way was added after the other four had been measured. A text of an unseen
class has words that training never had; they count for nothing, so its TF-IDF vector is
short, and lies near the middle, where detectors find it most usual. `SHORT` scores by
that alone, the shortest highest.

Of 45 pairs of vectors and detector, some pair is the best by luck alone. So the study
also takes for each class the pair that was best for all others, and measures that.

The unit is the abstract: the collection names no patients. MiniLM may have read these
abstracts before, without their classes; see `CAVEAT`.

Source: chapter 4; `python -m medlm_utils.studies.anomaly_ohsumed`. The collection is
that of Hersh et al. 1994, the numbers for orientation are those of NLP-ADBench.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medlm_utils import anomaly, bert
from medlm_utils.runtime import SEED, MedlmError
from medlm_utils.studies import anomaly_runs as runs
from medlm_utils.studies import core, ohsumed
from medlm_utils.studies.ohsumed import CAVEAT, Abstracts, Corpus

REPRESENTATIONS = (
    "minilm",
    "minilm_whitened",
    "minilm_unit",
    "tfidf_svd",
    "tfidf_svd_unit",
)
WITH_LABELS = "with_labels"
SHORT = "short_tfidf_svd"
INTERVAL = (
    "Over abstracts, for these classes. Drawing abstracts again repeats some, which "
    "raises average precision a little: its intervals lie high."
)

# AUROC of detectors on vectors of news, one of four sections being the anomaly.
ORIENTATION = (
    ("AG News", "BERT", "isolation_forest", 0.612),
    ("AG News", "BERT", "lof", 0.743),
    ("AG News", "OpenAI", "isolation_forest", 0.521),
    ("AG News", "OpenAI", "lof", 0.891),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is held out, and the sizes of the run."""

    least: int  # test abstracts of a class, to be held out
    longest: int  # tokens of an abstract; what follows is not read
    components: int  # of the SVD
    draws: int  # of abstracts, for an interval
    c: float = 1.0  # inverse penalty; what validation chose in the study ohsumed


PLANS = {
    "tiny": Plan(4, 24, 8, 100),
    "cpu": Plan(100, 256, 100, 1000),
    "gpu": Plan(100, 256, 100, 1000),
}


# The corpus ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """What every part of the study needs."""

    study: core.Study
    plan: Plan
    corpus: Corpus
    test: Abstracts

    @property
    def held_out(self) -> list[int]:
        """The numbers of the classes that are held out in turn."""
        return chosen_classes(self.test.label, self.plan.least)


def chosen_classes(label: np.ndarray, least: int) -> list[int]:
    """The classes with enough abstracts.

    Parameters
    ----------
    label
        (abstracts,) numbers of classes.
    least
        How many are enough.

    Raises
    ------
    MedlmError
        If fewer than two classes have so many: each is the other's usual one.
    """
    sizes = np.bincount(label)
    chosen = [int(number) for number in np.flatnonzero(sizes >= least)]
    if len(chosen) < 2:
        raise MedlmError(
            f"{len(chosen)} classes have at least {least} test abstracts; expected two "
            f"or more. The largest has {sizes.max()}."
        )
    return chosen


# Scores -------------------------------------------------------------------------------


def embed(task: Task) -> dict[str, Any]:
    """Vectors of all abstracts, and of the test set every class's chance with labels.

    Both are kept in a work file.
    """
    corpus, plan = task.corpus, task.plan
    model = bert.Classifier.pretrained(
        corpus.labels, ohsumed.ENCODER, longest=plan.longest
    ).to(task.study.profile.device)
    # Single precision: whitening makes small directions as large as the others.
    train, test = (
        bert.embed(model, ohsumed.encoded(model, part), precision="float32")
        for part in (corpus.train, task.test)
    )
    fitted = ohsumed.regression(train, corpus.train.label, plan.c)
    chance = np.zeros((len(test), len(corpus.labels)))
    chance[:, fitted.classes_] = fitted.predict_proba(test)
    path = task.study.file(".npz")
    runs.save_arrays(path, {"train": train, "test": test, WITH_LABELS: chance})
    return {"file": path.name, "columns": train.shape[1]}


def represented(
    vectors: Mapping[str, np.ndarray], task: Task, held_out: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Usual training rows and all test rows, in every representation.

    Parameters
    ----------
    vectors
        ``"train"`` and ``"test"``, (abstracts, columns) of all abstracts.
    task
        With their texts and labels.
    held_out
        The number of the class that training must not see: neither the detectors, nor
        what whitens, weighs words or finds directions.
    """
    usual = task.corpus.train.label != held_out
    train, test = vectors["train"][usual], vectors["test"]
    whitening = anomaly.Whitening().fit(train)
    texts = list(task.corpus.train.texts[usual])
    words = runs.tfidf_svd(texts, task.plan.components, SEED)
    by_words = words(texts), words(list(task.test.texts))
    both = (
        (train, test),
        (whitening.transform(train), whitening.transform(test)),
        (anomaly.unit_length(train), anomaly.unit_length(test)),
        by_words,
        (anomaly.unit_length(by_words[0]), anomaly.unit_length(by_words[1])),
    )
    return dict(zip(REPRESENTATIONS, both, strict=True))


def score(task: Task, vectors: str, held_out: int) -> dict[str, Any]:
    """Scores of the test set by every pair, kept in a work file.

    The number of the class is the detectors' seed, so that the mean over classes is one
    over seeds too.
    """
    known = runs.load_arrays(task.study.work / vectors)
    kept = {WITH_LABELS: known[WITH_LABELS][:, held_out]}
    every = represented(known, task, held_out)
    kept[SHORT] = -np.linalg.norm(every["tfidf_svd"][1], axis=1)
    for name, (train, test) in every.items():
        scores = runs.all_scores(train, test, seed=held_out)
        kept |= {_pair(name, detector): found for detector, found in scores.items()}
    path = task.study.file(".npz")
    runs.save_arrays(path, kept)
    return {"file": path.name}


def _pair(representation: str, detector: str) -> str:
    return f"{representation}/{detector}"


PAIRS = tuple(_pair(r, d) for r in REPRESENTATIONS for d in anomaly.DETECTORS)


# Measures -----------------------------------------------------------------------------

Found = dict[str, dict[str, runs.Measured]]  # of each pair, both measures


def judge(task: Task, files: Sequence[str]) -> dict[str, Any]:
    """All measures of all classes and pairs, with intervals over abstracts."""
    label = task.test.label
    resamples = runs.Resamples(np.arange(len(label)), task.plan.draws, SEED)
    by_class = []
    for number, file in zip(task.held_out, files, strict=True):
        kept = runs.load_arrays(task.study.work / file)
        odd = (label == number).astype(int)
        by_class.append({p: resamples.measure(odd, s) for p, s in kept.items()})
    return {"mean": _means(by_class), **_summary(by_class), **_each(by_class)}


def _means(by_class: Sequence[Found]) -> dict[str, Any]:
    """Of every pair, both measures as means over the classes held out."""
    return {
        pair: {
            measure: _mean(by_class, pair, measure).as_metric()
            for measure in runs.MEASURES
        }
        for pair in (*PAIRS, WITH_LABELS, SHORT)
    }


def _mean(
    by_class: Sequence[Found], pair: str, measure: str = "auroc"
) -> runs.Measured:
    return runs.mean_of([found[pair][measure] for found in by_class])


def _summary(by_class: Sequence[Found]) -> dict[str, Any]:
    """The best pair, what a choice on other classes is worth, and the gain on a forest.

    The forest is the isolation forest on MiniLM's vectors as they are.
    """
    aurocs = np.array([[one[p]["auroc"].value for p in PAIRS] for one in by_class])
    best = PAIRS[aurocs.mean(axis=0).argmax()]
    chosen = [PAIRS[place] for place in runs.best_for_others(aurocs)]
    others = runs.mean_of(
        [one[p]["auroc"] for one, p in zip(by_class, chosen, strict=True)]
    )
    forest = _mean(by_class, _pair("minilm", "isolation_forest"))
    return {
        "best": best,
        "chosen": chosen,
        "chosen_auroc": others.as_metric(),
        "gain": (others - forest).as_metric(),
    }


def _each(by_class: Sequence[Found]) -> dict[str, Any]:
    """Both measures of every class and pair, rounded."""
    return {
        "by_class": [
            {pair: {m: found[m].short() for m in found} for pair, found in one.items()}
            for one in by_class
        ]
    }


def times_last(
    by_class: Sequence[Mapping[str, Any]], representation: str, detector: str
) -> int:
    """In how many classes a detector has the lowest AUROC of all nine.

    Parameters
    ----------
    by_class
        Of each class, pairs to their measures.
    representation, detector
        The pair; the others are those of the same representation.
    """

    def auroc(one: Mapping[str, Any], name: str) -> float:
        return float(one[_pair(representation, name)]["auroc"]["value"])

    return sum(
        min(anomaly.DETECTORS, key=functools.partial(auroc, one)) == detector
        for one in by_class
    )


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Embed all abstracts, hold out one class after another, measure.

    Raises
    ------
    MedlmError
        As `ohsumed.read_corpus` and `chosen_classes`.
    """
    corpus = ohsumed.read_corpus(study.tiny)
    task = Task(study, PLANS[study.size], corpus, corpus.test())
    (embedded,) = study.run([_vectors_part(task)])
    vectors = embedded["file"]
    scored = study.run([_class_part(task, vectors, c) for c in task.held_out])
    (judged,) = study.run([_judge_part(task, [one["file"] for one in scored])])
    return _metrics(task, judged), _series(task, judged)


# A cost is about a second of one core.


def _vectors_part(task: Task) -> core.Part:
    depends_on = {
        "longest": task.plan.longest,
        "c": task.plan.c,
        "abstracts": [len(task.corpus.train), len(task.test)],
    }
    return core.Part("vectors", depends_on, 300.0, functools.partial(embed, task))


def _class_part(task: Task, vectors: str, held_out: int) -> core.Part:
    depends_on = {
        "vectors": vectors,
        "class": held_out,
        "components": task.plan.components,
        "pairs": PAIRS,
    }
    make = functools.partial(score, task, vectors, held_out)
    return core.Part(
        task.corpus.labels[held_out].replace(" ", "-"), depends_on, 15, make
    )


def _judge_part(task: Task, files: Sequence[str]) -> core.Part:
    depends_on = {"files": list(files), "draws": task.plan.draws}
    make = functools.partial(judge, task, files)
    return core.Part("intervals", depends_on, 60.0, make)


def _metrics(task: Task, judged: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the record."""
    mean, by_class = judged["mean"], judged["by_class"]
    forest = _pair("minilm", "isolation_forest")
    on_minilm = {name: mean[_pair("minilm", name)] for name in anomaly.DETECTORS}
    return {
        "held_out_classes": len(task.held_out),
        "contamination": float(np.mean(_contamination(task))),
        **{f"auroc_{name}": one["auroc"] for name, one in on_minilm.items()},
        **{
            f"average_precision_{name}": one["average_precision"]
            for name, one in on_minilm.items()
        },
        **{
            f"auroc_isolation_forest_{name}": mean[_pair(name, "isolation_forest")][
                "auroc"
            ]
            for name in REPRESENTATIONS[1:]
        },
        "best_auroc": mean[judged["best"]]["auroc"],
        "best_average_precision": mean[judged["best"]]["average_precision"],
        "chosen_on_other_classes_auroc": judged["chosen_auroc"],
        "gain_over_isolation_forest": judged["gain"],
        "short_tfidf_svd_auroc": mean[SHORT]["auroc"],
        "with_labels_auroc": mean[WITH_LABELS]["auroc"],
        "with_labels_average_precision": mean[WITH_LABELS]["average_precision"],
        "classes_isolation_forest_last": times_last(
            by_class, "minilm", "isolation_forest"
        ),
        "classes_isolation_forest_below_chance": sum(
            one[forest]["auroc"]["high"] < 0.5 for one in by_class
        ),
    }


def _contamination(task: Task) -> list[float]:
    """The share of each class that is held out, in the test set."""
    return [float((task.test.label == number).mean()) for number in task.held_out]


def _series(task: Task, judged: dict[str, Any]) -> dict[str, Any]:
    """What the figures of the chapter draw."""
    return {
        "plan": dataclasses.asdict(task.plan),
        "unit": "abstract",
        "interval": INTERVAL,
        "caveat": CAVEAT,
        "detectors_learn_from": "training abstracts of all other classes",
        "one_seed_a_class": True,
        "abstracts": {"train": len(task.corpus.train), "test": len(task.test)},
        "representations": list(REPRESENTATIONS),
        "detectors": list(anomaly.DETECTORS),
        "best": judged["best"],
        "mean_over_classes": [
            {"pair": pair, **{name: _rounded(one[name]) for name in runs.MEASURES}}
            for pair, one in judged["mean"].items()
        ],
        "classes": _classes(task, judged),
        "orientation": [
            {"data": data, "vectors": vectors, "detector": name, "auroc": value}
            for data, vectors, name, value in ORIENTATION
        ],
        "orientation_source": "NLP-ADBench, table 2",
    }


def _rounded(metric: dict[str, Any]) -> dict[str, float]:
    return {name: round(metric[name], runs.DIGITS) for name in ("value", "low", "high")}


def _classes(task: Task, judged: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each class that was held out, its sizes and the measures of every pair."""
    labels, train = task.corpus.labels, task.corpus.train.label
    return [
        {
            "name": labels[number],
            "title": ohsumed.TITLES.get(labels[number], labels[number]),
            "train_left_out": int((train == number).sum()),
            "test": int((task.test.label == number).sum()),
            "contamination": round(share, runs.DIGITS),
            "best_for_other_classes": chosen,
            "pairs": found,
        }
        for number, share, chosen, found in zip(
            task.held_out,
            _contamination(task),
            judged["chosen"],
            judged["by_class"],
            strict=True,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Disease classes held out of OHSUMED, found by detectors without labels."
    return core.main("anomaly_ohsumed", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
