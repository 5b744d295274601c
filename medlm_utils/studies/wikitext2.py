"""The course's language model on WikiText-2, word level, beside published numbers.

Two million tokens are few for a Transformer: it soon knows them by heart. So the study
adds dropout to the model of chapter 2 and keeps the weights that were best on the
validation text. The test text is opened once, with these weights. Everything is
static: no weight and no cache is adapted to the text that is scored.

Source: chapter 2; `python -m medlm_utils.studies.wikitext2`. The corpus is that of
Merity et al. 2017.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import clinic, data, runtime, text, training
from medlm_utils.metrics import ratio_by_patient
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core
from medlm_utils.transformer import TransformerLM


@dataclasses.dataclass(frozen=True)
class Plan:
    """Model and training of one machine."""

    d_model: int
    heads: int
    d_ff: int
    blocks: int
    dropouts: tuple[float, ...]  # each a training; validation chooses
    window: int  # tokens that the model reads at once
    context: int  # of these, how many are not scored again in the evaluation
    batch: int  # windows a step
    epochs: int
    learning_rate: float
    weight_decay: float = 0.1
    warm_up: float = 0.05  # share of the steps


PLANS = {
    "tiny": Plan(16, 2, 32, 1, (0.0, 0.1), 16, 8, 8, 2, 3e-3),
    "cpu": Plan(256, 4, 1024, 4, (0.1,), 128, 64, 8, 4, 1e-3),
    "gpu": Plan(512, 8, 2048, 8, (0.3, 0.4, 0.5), 256, 192, 32, 60, 6e-4),
}

# Token counts that make numbers comparable: <eos> ends every line, blank ones too.
TOKENS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
VOCABULARY = 33_278  # ours adds <pad> and <start>, which the model must learn to avoid

# Test perplexity, word level, without adaptation to the test text.
PUBLISHED = (
    ("LSTM 200x2, 6 epochs", 142.07, "pytorch/examples, user report"),
    ("LSTM 200x2 tied, 6 epochs", 130.32, "pytorch/examples, user report"),
    ("LSTM 650x2 tied", 86.68, "pytorch/examples, user report"),
    ("LSTM 1500x2 tied", 84.1, "pytorch/examples, user report"),
    ("AWD-LSTM", 65.6, "awd-lstm-lm README"),
    ("Mogrifier LSTM", 55.1, "NLP-progress"),
)


# The corpus ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of training and validation; the test text stays closed until asked for."""

    tokenizer: text.WordTokenizer
    train: Tensor
    valid: Tensor
    folder: Path | None  # None: the stand-in of a tiny run

    def test(self) -> str:
        """The test text."""
        return _read("test", self.folder)


def read_corpus(tiny: bool = False) -> Corpus:
    """WikiText-2 as numbers; in a tiny run, notes of the clinic in its place.

    Raises
    ------
    MedlmError
        If the files are not there and cannot be fetched, or the counts of tokens are
        not the published ones, so that no published number could stand beside ours.
    """
    folder = None if tiny else data.fetch("wikitext-2")
    training_text = _read("train", folder)
    tokenizer = text.WordTokenizer.train([training_text], split=str.split)
    train = text.stream(tokenizer, training_text)
    valid = text.stream(tokenizer, _read("valid", folder))
    if not tiny:
        check_counts({"train": len(train), "valid": len(valid)}, len(tokenizer))
    return Corpus(tokenizer, train, valid, folder)


def check_counts(counts: Mapping[str, int], vocabulary: int) -> None:
    """Refuse a corpus that is not cut into words as the published one.

    Parameters
    ----------
    counts
        ``"train"``, ``"valid"`` or ``"test"`` to its number of tokens.
    vocabulary
        Of our tokenizer, which has two tokens more than the published one.

    Raises
    ------
    MedlmError
        If a number differs.
    """
    expected = {name: TOKENS[name] for name in counts}
    if dict(counts) != expected or vocabulary != VOCABULARY + 2:
        raise MedlmError(
            f"WikiText-2 has {dict(counts)} tokens and a vocabulary of {vocabulary}; "
            f"expected {expected} and {VOCABULARY + 2}. Fetch it again: `medlm data "
            "fetch wikitext-2`."
        )


def _read(name: str, folder: Path | None) -> str:
    if folder is not None:
        return (folder / f"{name}.txt").read_text(encoding="utf-8")
    seed = list(TOKENS).index(name)
    notes = clinic.Clinic().draw(40 if name == "train" else 8, seed).text
    words = (" ".join(text.split_words(note)) for note in notes)
    return "\n".join(f" = Note = \n \n {note} \n" for note in words)


def with_opening(running: Tensor) -> Tensor:
    """An end before the first token, so that this one is predicted too."""
    return torch.cat([torch.tensor([text.END]), running])


def articles(words: str) -> np.ndarray:
    """The number of the article of each token, (tokens,); titles stand between ``=``.

    Parameters
    ----------
    words
        Running text with a title before each article.
    """
    lines = [line.split() for line in words.removesuffix("\n").split("\n")]
    is_title = [
        len(line) > 2 and line[0] == line[-1] == "=" and line[1] != "="
        for line in lines
    ]
    return np.repeat(np.cumsum(is_title), [len(line) + 1 for line in lines])


# The model ----------------------------------------------------------------------------


class DropoutLM(TransformerLM):
    """`TransformerLM` with dropout: of the embeddings, and of what each part adds.

    Parameters
    ----------
    dropout
        Share of the numbers that a training step sets to 0.
    sizes
        As of `TransformerLM`.

    Source: Srivastava et al. 2014; its places as in Radford et al. 2019.
    """

    def __init__(self, dropout: float, **sizes: Any):
        super().__init__(**sizes)
        self.dropout = dropout
        block: Any  # a ModuleList does not say of which modules
        for block in self.blocks:
            for part in (block.attention, block.feed_forward):
                part.register_forward_hook(self._drop_added)

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Token numbers to vectors, of which training drops a share."""
        return self._drop(super().embed(tokens, first))

    def logits(self, state: Tensor) -> Tensor:
        """Logits of a state, of which training drops a share."""
        return super().logits(self._drop(state))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _drop_added(self, module: nn.Module, inputs: Any, added: Tensor) -> Tensor:
        return self._drop(added)


def build(plan: Plan, vocabulary: int, dropout: float) -> DropoutLM:
    """The model of a plan, its weights drawn from the seed."""
    torch.manual_seed(runtime.SEED)
    return DropoutLM(
        dropout,
        vocabulary=vocabulary,
        longest=plan.window,
        d_model=plan.d_model,
        heads=plan.heads,
        d_ff=plan.d_ff,
        blocks=plan.blocks,
    )


def score(
    model: nn.Module,
    running: Tensor,
    plan: Plan,
    context: int,
    precision: str = "float32",
) -> np.ndarray:
    """-log p of every token, (tokens,), each from at least `context` tokens before it.

    The first `context` tokens of the text have only what stands before them.

    Parameters
    ----------
    model
        A language model.
    running
        (tokens,) of a text.
    plan
        Of its windows.
    context
        0 is fast; more is fairer to the first tokens of a window.
    precision
        As in `training.autocast`.
    """
    rows = text.windows(with_opening(running), plan.window, context)
    nats = training.evaluate(model, rows, plan.batch, context, precision)
    return np.concatenate(nats.by_row)


# The study ----------------------------------------------------------------------------


@dataclasses.dataclass
class Best:
    """The weights that were best on the validation text so far, in a file.

    Parameters
    ----------
    path
        Of the file; one that an earlier run left is gone on with.
    """

    path: Path

    @property
    def nats_per_token(self) -> float:
        """Of the kept weights; infinite before there are any."""
        if not self.path.exists():
            return math.inf
        with safetensors.safe_open(self.path, framework="pt") as file:
            return float(file.metadata()["nats_per_token"])

    def offer(self, model: nn.Module, nats_per_token: float) -> None:
        """Keep these weights if they are better."""
        if nats_per_token < self.nats_per_token:
            about = {"nats_per_token": repr(nats_per_token)}
            core.save_weights(model, self.path, about)

    def load(self, model: nn.Module) -> None:
        """Put the kept weights into a model."""
        core.load_weights(model, self.path)


def train(
    study: core.Study, plan: Plan, corpus: Corpus, dropout: float
) -> dict[str, Any]:
    """Train with this dropout; keep the best weights, and say how good they are."""
    precision = runtime.fast_precision(study.profile)
    model = build(plan, len(corpus.tokenizer), dropout).to(study.profile.device)
    batches = text.StreamBatches(corpus.train, plan.window, plan.batch, runtime.SEED)
    steps, best = plan.epochs * len(batches), Best(study.file(".safetensors"))
    fast = functools.partial(score, model, corpus.valid, plan, 0, precision)

    def evaluation() -> float:
        nats = float(fast().mean())
        best.offer(model, nats)
        core.say(f"dropout {dropout:g}: validation perplexity {math.exp(nats):.1f}")
        return nats

    history = study.fit(
        model,
        batches.at,
        steps=steps,
        learning_rate=plan.learning_rate,
        warm_up=int(plan.warm_up * steps),
        weight_decay=plan.weight_decay,
        precision=precision,
        evaluation=evaluation,
        evaluate_every=len(batches),
        checkpoint_every=max(1, len(batches) // 4),
    )
    best.load(model)
    nats = score(model, corpus.valid, plan, plan.context)
    values = [value for _, value in history.evaluations]
    return {
        "dropout": dropout,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_nats_per_token": float(nats.mean()),
        "best_epoch": 1 + int(np.argmin(values)),
        "steps_an_epoch": len(batches),
        "validation_by_epoch": values,
        "training_by_epoch": _by_epoch(history, len(batches)),
        "training_seconds": history.seconds[-1],
        "weights": best.path.name,
    }


def _by_epoch(history: training.History, steps: int) -> list[float]:
    """Training loss of each epoch, nats per token; with dropout, as it was trained."""
    nats = np.array(history.loss) * np.array(history.targets)
    starts = np.arange(0, len(nats), steps)
    sums = np.add.reduceat(nats, starts)
    return [float(v) for v in sums / np.add.reduceat(history.targets, starts)]


def test(
    study: core.Study, plan: Plan, corpus: Corpus, chosen: dict[str, Any]
) -> dict[str, Any]:
    """Open the test text, once, with the weights that validation chose."""
    model = build(plan, len(corpus.tokenizer), chosen["dropout"])
    Best(study.work / chosen["weights"]).load(model.to(study.profile.device))
    words = corpus.test()
    running = text.stream(corpus.tokenizer, words)
    if not study.tiny:
        check_counts({"test": len(running)}, len(corpus.tokenizer))
    nats = score(model, running, plan, plan.context)
    article = articles(words)
    return {
        "tokens": len(nats),
        "nats_per_token": float(nats.mean()),
        **_interval(nats, article),
        "articles": len(np.unique(article)),
    }


def _interval(nats: np.ndarray, article: np.ndarray) -> dict[str, float]:
    """95% interval of the nats per token, over articles drawn again and again."""
    found = ratio_by_patient(
        nats, np.ones(len(nats)), article, draws=2000, seed=runtime.SEED
    )
    return {"low": found.low, "high": found.high}


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, choose on validation, open the test text once."""
    plan = PLANS[study.size]
    corpus = read_corpus(study.tiny)
    precision = runtime.fast_precision(study.profile)
    settings = {"precision": precision, **dataclasses.asdict(plan)}
    trained = study.run(
        [
            core.Part(
                f"dropout-{dropout:g}",
                {**settings, "dropout": dropout},
                1.0,
                functools.partial(train, study, plan, corpus, dropout),
            )
            for dropout in plan.dropouts
        ]
    )
    chosen = min(trained, key=lambda t: t["validation_nats_per_token"])
    make = functools.partial(test, study, plan, corpus, chosen)
    (tested,) = study.run([core.Part("test", {**settings, **chosen}, 0.05, make)])
    metrics, series = summary(plan, trained, chosen, tested)
    return metrics, {**series, "precision": precision}


def summary(
    plan: Plan,
    trained: list[dict[str, Any]],
    chosen: dict[str, Any],
    tested: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of the trainings and of the test."""
    metrics = {
        "test_perplexity": {
            "value": math.exp(tested["nats_per_token"]),
            "low": math.exp(tested["low"]),
            "high": math.exp(tested["high"]),
            "n": tested["articles"],
        },
        "validation_perplexity": math.exp(chosen["validation_nats_per_token"]),
        "epochs": plan.epochs,
        "best_epoch": chosen["best_epoch"],
        "parameters": chosen["parameters"],
        "dropout": chosen["dropout"],
        "training_hours": {"value": chosen["training_seconds"] / 3600, "unit": "h"},
    }
    of_this_run = ("training_seconds", "weights")
    series = {
        "plan": dataclasses.asdict(plan),
        "trainings": [
            {k: v for k, v in t.items() if k not in of_this_run} for t in trained
        ],
        "test_tokens": tested["tokens"],
        "published": [
            {"model": model, "test_perplexity": value, "source": source}
            for model, value, source in PUBLISHED
        ],
    }
    return metrics, series


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Word-level perplexity of the course's language model on WikiText-2."
    return core.main("wikitext2", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
