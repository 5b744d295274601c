"""How fast BERT is fine-tuned and asked, beside the Trainer and a pipeline.

The same pretrained encoder learns the same notes, in turns and in one process: by our
loop; by the Trainer of `transformers` with its own classifier, set as fast as its
options allow (batches by length, the table of words frozen, no dropout); and by the
Trainer as it comes, with dynamic padding. All have the fused AdamW and the same
precision. A plain loop over notes that are all padded to 512 tokens, as many tutorials
have it, is no peer: it shows what padding costs. Asking is measured from text to
probabilities, with tokenization: ours beside a pipeline of `transformers`.

What padding costs depends on how long the texts are, so it is measured twice: on notes
of the clinic, and on the abstracts of OHSUMED, read up to the length that is padded to.

Source: chapter 3; `python -m medlm_utils.studies.bert_speed`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import bert, clinic, data, metrics, runtime, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import clinic_runs, core, ohsumed, peers
from medlm_utils.studies.peers import Watch

OURS, TRAINER, DEFAULTS = "ours", "hf_trainer", "hf_trainer_defaults"
PADDED, PIPELINE = "padded", "pipeline"
CONTESTANTS = (OURS, TRAINER, DEFAULTS, PADDED)
PEERS = (TRAINER, DEFAULTS)
RATE = 1e-4  # learning rate of all


@dataclasses.dataclass(frozen=True)
class Size:
    """What is timed, and how often."""

    batch: int  # notes a step
    longest: int  # tokens of a note
    padded_to: int
    warm_up: int  # steps that are not timed
    steps: int  # steps that are
    padded_steps: int  # of the padded loop, which takes long
    abstract_steps: int  # of our loop on abstracts
    asked: int  # notes
    asked_batch: int
    repeats: int
    matrix: int  # rows and columns of the matrices whose product is timed


def of_chapter(profile: str, **timing: int) -> Size:
    """The batches of chapter 3 on such a machine."""
    batch = runtime.PROFILES[profile].bert_batch
    return Size(batch=batch, longest=256, padded_to=512, **timing)


SIZES = {
    "tiny": Size(2, 24, 48, 1, 2, 2, 2, 4, 2, 2, 64),
    "cpu": of_chapter(
        "cpu",
        warm_up=2,
        steps=18,
        padded_steps=3,
        abstract_steps=6,
        asked=160,
        asked_batch=8,
        repeats=6,
        matrix=1024,
    ),
    "gpu": of_chapter(
        "gpu",
        warm_up=10,
        steps=100,
        padded_steps=50,
        abstract_steps=50,
        asked=8192,
        asked_batch=256,
        repeats=6,
        matrix=8192,
    ),
}


# Fine-tuning --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Notes:
    """What all contestants learn and are asked: texts, tokens, numbers of labels."""

    text: list[str]
    rows: list[Tensor]
    label: np.ndarray

    def first(self, count: int) -> Notes:
        """The first so many."""
        return Notes(self.text[:count], self.rows[:count], self.label[:count])


def draw(tokenizer: Any, size: Size) -> Notes:
    """As many notes of the clinic as a repeat needs."""
    count = max((size.warm_up + size.steps) * size.batch, size.asked)
    notes = clinic.Clinic("A").draw(count, clinic_runs.DRAW)[:count]
    part = clinic_runs.labelled(clinic.Clinic("A"), notes, tokenizer, size.longest)
    return Notes(list(notes.text), part.rows, part.label)


def abstracts(tokenizer: Any, size: Size, tiny: bool) -> Notes:
    """Abstracts of OHSUMED, or its stand-in; their labels are no diseases, only cost.

    Raises
    ------
    MedlmError
        If the collection cannot be had, or has too few.
    """
    known = ohsumed.read_corpus(tiny).train
    count = (size.warm_up + size.abstract_steps) * size.batch
    if len(known) < count:
        raise MedlmError(f"{len(known)} abstracts; expected at least {count}.")
    order = np.random.default_rng(runtime.SEED).permutation(len(known))[:count]
    texts = [str(text) for text in known.texts[order]]
    rows = bert.encode(tokenizer, texts, size.padded_to)
    return Notes(texts, rows, known.label[order] % len(clinic_runs.labels()))


def seconds_of_ours(
    model: bert.Classifier, notes: Notes, size: Size, profile: runtime.Profile
) -> float:
    """The timed steps of one epoch, as `bert.finetune` makes them."""
    watch = Watch(profile.device)
    batches = bert.LabelledBatches(notes.rows, notes.label, size.batch)
    settings = bert.FineTuning(
        encoder_rate=RATE,
        head_rate=RATE,
        warm_up=size.warm_up / len(batches),
        precision=clinic_runs.precision_of(profile),
    )

    def at(step: int) -> Any:
        if step == size.warm_up:
            watch.start()
        return batches.at(step)

    training.fit(model, at, **bert.loop_settings(settings, len(batches)))
    return watch.stop()


def hf_classifier(profile: runtime.Profile, *, as_it_comes: bool = False) -> Any:
    """The encoder with the classifier of `transformers`, on its device.

    Parameters
    ----------
    profile
        Names the device.
    as_it_comes
        False: without dropout, and its table of words frozen, as ours.
    """
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(runtime.SEED)
    names = dict(enumerate(clinic_runs.labels()))
    folder = data.weights(clinic_runs.ENCODER)
    with bert.quiet():  # it warns of the new head
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(names), id2label=names
        )
    if not as_it_comes:
        bert.set_dropout(model, 0.0)
        model.get_input_embeddings().requires_grad_(False)
    return model.to(profile.device)


def seconds_in_trainer(
    model: Any,
    notes: Notes,
    size: Size,
    profile: runtime.Profile,
    *,
    tokenizer: Any,
    by_length: bool,
) -> float:
    """The timed steps of one epoch in the Trainer of `transformers`.

    Parameters
    ----------
    model
        Of `hf_classifier`.
    notes, size, profile
        As of the other contestants.
    tokenizer
        Whose padding the Trainer's usual collator applies.
    by_length
        True: notes of similar lengths share a batch, by the Trainer's own option.
    """
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    last = size.warm_up + size.steps
    timing, seconds = peers.timing(profile.device, size.warm_up, last)
    rows: Any = trainer_rows(notes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            arguments(folder, size, profile, by_length),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[timing],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    return seconds[0]


def trainer_rows(notes: Notes) -> list[dict[str, Any]]:
    """Notes as the Trainer's usual collator takes them: lists, not yet padded."""
    return [
        {
            "input_ids": row.tolist(),
            "attention_mask": [1] * len(row),
            "labels": int(label),
        }
        for row, label in zip(notes.rows, notes.label, strict=True)
    ]


def arguments(
    folder: str, size: Size, profile: runtime.Profile, by_length: bool
) -> Any:
    """The optimiser and the precision of our loop; nothing is written or logged."""
    return peers.arguments(
        folder,
        clinic_runs.precision_of(profile),
        profile.device,
        num_train_epochs=1,
        per_device_train_batch_size=size.batch,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        warmup_steps=size.warm_up,
        optim="adamw_torch_fused",
        weight_decay=0.01,
        save_strategy="no",
        logging_nan_inf_filter=False,  # it would look at every loss, and wait for it
        **by_length_option(by_length),
    )


def by_length_option(by_length: bool) -> dict[str, Any]:
    """The Trainer's option for batches by length, as this version calls it."""
    from transformers import TrainingArguments

    if not by_length:
        return {}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}  # up to transformers 5.0


def seconds_when_padded(
    model: Any, notes: Notes, size: Size, profile: runtime.Profile
) -> float:
    """The timed steps of a plain loop over notes that are all padded to one length."""
    from torch.utils.data import DataLoader, TensorDataset

    ids, mask = padded(notes.rows, size.padded_to)
    table = TensorDataset(ids, mask, torch.from_numpy(notes.label))
    loader = DataLoader(table, batch_size=size.batch, shuffle=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, fused=True)
    device = torch.device(profile.device)
    watch = Watch(profile.device)
    model.train()
    for step, batch in enumerate(loader):
        if step == size.warm_up:
            watch.start()
        ids, mask, label = (part.to(device) for part in batch)
        with training.autocast(clinic_runs.precision_of(profile), device):
            logits = model(input_ids=ids, attention_mask=mask).logits
        adam.zero_grad()
        F.cross_entropy(logits.float(), label).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
    return watch.stop()


def padded(rows: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """Rows filled up with padding, and the mask that tells it: (rows, tokens) each."""
    ids, mask = bert.rectangle(rows)
    missing = (0, tokens - ids.shape[1])
    return F.pad(ids, missing), F.pad(mask, missing)


# Asking -------------------------------------------------------------------------------


def asked_of_ours(
    model: bert.Classifier, texts: Sequence[str], size: Size, profile: runtime.Profile
) -> np.ndarray:
    """Probabilities of texts, (texts, classes): encoded, batched by length, asked."""
    rows = bert.encode(model.tokenizer, texts, size.longest)
    precision = clinic_runs.precision_of(profile)
    return metrics.softmax(
        bert.predict_logits(model, rows, size.asked_batch, precision)
    )


def asked_of_pipeline(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    size: Size,
    profile: runtime.Profile,
) -> np.ndarray:
    """The same from ``pipeline("text-classification")`` of `transformers`."""
    from transformers import pipeline

    ask = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device=profile.device
    )
    precision = clinic_runs.precision_of(profile)
    with training.autocast(precision, torch.device(profile.device)):
        answers: Any = ask(
            list(texts),
            batch_size=size.asked_batch,
            top_k=None,
            truncation=True,
            max_length=size.longest,
        )
    named = [{one["label"]: one["score"] for one in answer} for answer in answers]
    return np.array([[one[label] for label in clinic_runs.labels()] for one in named])


# What the machine can do --------------------------------------------------------------


def flops_of_step(model: bert.Classifier, lengths: Sequence[int]) -> float:
    """Multiplications and additions for training on notes, forward and backward.

    2 for each number of a matrix and each token forward, 4 backward; the same for the
    two products of attention. Padding is not counted, nor what is below a frozen table.

    Parameters
    ----------
    model
        Whose blocks count; the head is small.
    lengths
        Tokens of each note.

    Source: Kaplan et al. 2020, table 1; chapter 3.
    """
    encoder: Any = model.encoder
    layers = [m for m in encoder.encoder.modules() if isinstance(m, nn.Linear)]
    matrices = sum(layer.weight.numel() for layer in layers)
    config, tokens = encoder.config, np.asarray(lengths, float)
    products = 2 * config.num_hidden_layers * config.hidden_size * tokens**2
    return float(6 * (matrices * tokens + products).sum())


def matrix_rate(size: int, precision: str, device: str) -> float:
    """Multiplications and additions a second in the product of two square matrices.

    The best of five: what this machine can do at most, measured, not promised.

    Parameters
    ----------
    size
        Rows and columns.
    precision
        As in `training.autocast`.
    device
        Of torch.
    """
    a = torch.randn(size, size, device=device)
    watch, times = Watch(device), []
    with torch.no_grad(), training.autocast(precision, torch.device(device)):
        a = a @ a / size  # in the precision that is timed
        for _ in range(5):
            watch.start()
            _product = a @ a
            times.append(watch.stop())
    return 2 * size**3 / min(times)


# The study ----------------------------------------------------------------------------


class Table:
    """All contestants, built once and timed again and again.

    Parameters
    ----------
    size
        What is timed.
    profile
        Where they run.
    tiny
        True: with a stand-in for the abstracts.
    """

    def __init__(self, size: Size, profile: runtime.Profile, tiny: bool = False):
        self.size, self.profile = size, profile
        self.ours = clinic_runs.build(seed=runtime.SEED, device=profile.device)
        self.ours.freeze(words=True)
        bert.set_dropout(self.ours, 0.0)
        self.theirs = {
            name: hf_classifier(profile, as_it_comes=name == DEFAULTS)
            for name in (TRAINER, DEFAULTS, PADDED)
        }
        notes = draw(self.ours.tokenizer, size)
        self.notes = notes.first((size.warm_up + size.steps) * size.batch)
        self.asked = notes.text[: size.asked]
        self.abstracts = abstracts(self.ours.tokenizer, size, tiny)

    def notes_per_second(self, name: str) -> float:
        """Of one repeat of one contestant; its optimiser starts anew, it goes on."""
        if name in (OURS, PADDED):
            steps = self.size.steps if name == OURS else self.size.padded_steps
            return self._per_second(name, self.notes, steps)
        seconds = seconds_in_trainer(
            self.theirs[name],
            self.notes,
            self.size,
            self.profile,
            tokenizer=self.ours.tokenizer,
            by_length=name == TRAINER,
        )
        self.theirs[name].zero_grad()  # gives the memory of the gradients back
        return self.size.steps * self.size.batch / seconds

    def abstracts_per_second(self, name: str) -> float:
        """The same on abstracts, by our loop or by the padded one."""
        size = self.size
        steps = size.abstract_steps if name == OURS else size.padded_steps
        return self._per_second(name, self.abstracts, steps)

    def _per_second(self, name: str, texts: Notes, steps: int) -> float:
        """Texts a second in so many steps of our loop or of the padded one."""
        size, model = self.size, self.model(name)
        some = texts.first((size.warm_up + steps) * size.batch)
        train: Any = seconds_of_ours if name == OURS else seconds_when_padded
        seconds = train(model, some, size, self.profile)
        model.zero_grad()
        return steps * size.batch / seconds

    def asked_per_second(self, name: str) -> float:
        """Of one repeat of answers, by ours or by the pipeline."""
        watch = Watch(self.profile.device)
        watch.start()
        if name == OURS:
            asked_of_ours(self.ours, self.asked, self.size, self.profile)
        else:
            model, tokenizer = self.theirs[TRAINER], self.ours.tokenizer
            asked_of_pipeline(model, tokenizer, self.asked, self.size, self.profile)
        return len(self.asked) / watch.stop()

    def model(self, name: str) -> nn.Module:
        """What a contestant trains."""
        return self.ours if name == OURS else self.theirs[name]


_SAME = ("mean_tokens", "mean_tokens_abstracts", "flops_per_note")  # in every repeat


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time every contestant, in turns; compare.

    Raises
    ------
    MedlmError
        If the Trainer lacks a package.
    """
    peers.check_accelerate()
    size = SIZES[study.size]
    table = functools.lru_cache(maxsize=1)(Table)
    repeats = study.run(
        [_part(study, table, size, repeat) for repeat in range(size.repeats)]
    )
    series = {
        name: {one: [r[name][one] for r in repeats] for one in repeats[0][name]}
        for name in ("notes_per_second", "asked_per_second", "abstracts_per_second")
    }
    rates = [repeat["matrix_rate"] for repeat in repeats]
    row = {
        **dataclasses.asdict(size),
        **series,
        "matrix_rate": rates,
        "precision": clinic_runs.precision_of(study.profile),
        **{name: repeats[0][name] for name in _SAME},
    }
    return _metrics(row), row


def _part(
    study: core.Study,
    table: Callable[[Size, runtime.Profile, bool], Table],
    size: Size,
    repeat: int,
) -> core.Part:
    profile = study.profile
    precision = clinic_runs.precision_of(profile)

    def make() -> dict[str, Any]:
        contestants = table(size, profile, study.tiny)
        lengths = [len(row) for row in contestants.notes.rows]
        trained = {
            one: contestants.notes_per_second(one)
            for one in _in_turn(CONTESTANTS, repeat)
        }
        asked = {
            one: contestants.asked_per_second(one)
            for one in _in_turn((OURS, PIPELINE), repeat)
        }
        abstracts = {
            one: contestants.abstracts_per_second(one)
            for one in _in_turn((OURS, PADDED), repeat)
        }
        long = [len(row) for row in contestants.abstracts.rows]
        flops = flops_of_step(contestants.ours, lengths) / len(lengths)
        return {
            "notes_per_second": {one: trained[one] for one in CONTESTANTS},
            "asked_per_second": {one: asked[one] for one in (OURS, PIPELINE)},
            "abstracts_per_second": {one: abstracts[one] for one in (OURS, PADDED)},
            "matrix_rate": matrix_rate(size.matrix, precision, profile.device),
            "mean_tokens": float(np.mean(lengths)),
            "mean_tokens_abstracts": float(np.mean(long)),
            "flops_per_note": flops,
        }

    settings = {"precision": precision, **dataclasses.asdict(size)}
    return core.Part(f"repeat-{repeat}", settings, 1.0, make)


def _in_turn(names: Sequence[str], repeat: int) -> list[str]:
    """Each repeat begins with another one: none always runs on a rested machine."""
    return [names[(repeat + n) % len(names)] for n in range(len(names))]


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as fast, repeat by repeat: the median with its interval."""
    return core.over_repeats([a / b for a, b in zip(one, other, strict=True)])


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the record."""
    trained, asked = row["notes_per_second"], row["asked_per_second"]
    ours = trained[OURS]
    fastest = max(PEERS, key=lambda name: np.median(trained[name]))
    rows = {f"notes_per_second_{name}": trained[name] for name in CONTESTANTS}
    rows |= {f"asked_per_second_{name}": asked[name] for name in (OURS, PIPELINE)}
    abstracts = row["abstracts_per_second"]
    of_abstracts = {f"abstracts_per_second_{n}": v for n, v in abstracts.items()}
    used = [
        100 * speed * row["flops_per_note"] / rate
        for speed, rate in zip(ours, row["matrix_rate"], strict=True)
    ]
    return {
        **{n: {**core.over_repeats(v), "unit": "notes/s"} for n, v in rows.items()},
        **{
            n: {**core.over_repeats(v), "unit": "abstracts/s"}
            for n, v in of_abstracts.items()
        },
        "ratio_vs_fastest": ratio(ours, trained[fastest]),
        "ratio_vs_hf_trainer_defaults": ratio(ours, trained[DEFAULTS]),
        "padding_cost": ratio(ours, trained[PADDED]),
        "padding_cost_foreseen": row["padded_to"] / row["mean_tokens"],
        "padding_cost_abstracts": ratio(abstracts[OURS], abstracts[PADDED]),
        "padding_cost_abstracts_foreseen": row["padded_to"]
        / row["mean_tokens_abstracts"],
        "asked_ratio_vs_pipeline": ratio(asked[OURS], asked[PIPELINE]),
        "share_of_matrix_rate": {**core.over_repeats(used), "unit": "%"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Speed of fine-tuning and of asking, beside the Trainer and a pipeline."
    return core.main("bert_speed", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
