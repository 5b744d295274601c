"""What next-sentence prediction adds to hidden words, when an encoder is pre-trained.

One small encoder is pre-trained on the clinic's notes in two ways: by hidden words
alone, on whole notes; and by hidden words and next sentences, where every second note
gets the second half of another. Both take as many steps, from the same weights and on
the same text. A third encoder is not pre-trained. All three are then fine-tuned to name
the disease, with equal settings, on the same few labelled notes.

How much there is to learn from the halves is known. Most strange pairs the clinic could
not have written as one note: a group of symptoms comes twice or too late, or the cut is
not where this note would be cut. In the others the halves may point to different
diseases. Nothing else is shared: bay and age stand in the first half alone.

Source: chapter 3; `python -m medlm_utils.studies.nsp_ablation`. The question is that of
Liu et al. 2019, section 4.2, who left next sentences out and lost nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from medlm_utils import bert, clinic, metrics, runtime, text
from medlm_utils.pretraining import (
    MaskedBatches,
    MaskedLM,
    SmallClassifier,
    SmallEncoder,
    evaluate,
    masked_loss,
    pair_loss,
    sentence_pairs,
)
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core

ARMS = ("none", "mlm", "mlm_nsp")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Encoder, text and training of one machine."""

    d_model: int
    blocks: int
    patients: int  # whose notes have no label
    steps: int
    batch: int  # notes a step
    learning_rate: float
    labelled: tuple[int, int]  # notes for fine-tuning: few, and more
    validation: int  # notes, which choose the epoch
    test_patients: int
    epochs: int
    rate: float  # peak learning rate of the encoder in fine-tuning
    looks: int  # how often a pre-training is looked at
    seeds: int = 3
    heads: int = 4
    longest: int = 256  # positions; a note has about 100 tokens


PLANS = {
    "tiny": Plan(16, 1, 60, 6, 4, 3e-3, (16, 24), 16, 20, 1, 1e-3, 2, seeds=2),
    "cpu": Plan(64, 2, 12_000, 4000, 16, 4e-3, (300, 1200), 300, 600, 10, 1e-3, 8),
    "gpu": Plan(256, 4, 60_000, 10_000, 64, 1e-3, (300, 1200), 300, 2000, 10, 3e-4, 20),
}

FEWEST_PATIENTS = 5000  # whose notes show every word that the clinic uses
TEST_SEED, WATCHED_SEED = 7, 8
LABELLED_SEED, VALIDATION_SEED = 100, 200  # plus the seed of the training
WATCHED_PATIENTS = 100  # whose notes show how a pre-training goes on


# The notes ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Halves:
    """Notes in two halves, as they were written and mixed with those of other notes.

    Parameters
    ----------
    notes
        As they were drawn.
    whole
        Rows in which every note keeps its own second half.
    mixed, is_next
        As `pretraining.sentence_pairs` makes them.
    """

    notes: clinic.Notes
    whole: list[Tensor]
    mixed: list[Tensor]
    is_next: Tensor


@dataclasses.dataclass(frozen=True)
class Material:
    """All notes of the study but the labelled ones, which depend on the seed."""

    world: clinic.Clinic
    tokenizer: text.WordTokenizer
    plain: Halves  # without labels, for pre-training
    watched: Halves
    test: Halves

    @property
    def mask(self) -> int:
        """The number of [MASK], one more than there are tokens."""
        return len(self.tokenizer)

    def hidden(self, halves: Halves, mixed: bool = False) -> MaskedBatches:
        """Batches for `pretraining.evaluate`: the same words are hidden each time."""
        if mixed:
            return MaskedBatches(halves.mixed, self.mask, 64, 0, halves.is_next)
        return MaskedBatches(halves.whole, self.mask, 64)


def draw(plan: Plan) -> Material:
    """The notes of hospital A, and the tokenizer that knows their words."""
    world = clinic.Clinic("A")
    plain = world.draw(max(plan.patients, FEWEST_PATIENTS), runtime.SEED)
    tokenizer = text.WordTokenizer.train(plain.text)
    parts = [
        plain[: plan.patients],  # a patient has at least one note
        world.draw(WATCHED_PATIENTS, WATCHED_SEED),
        world.draw(plan.test_patients, TEST_SEED),
    ]
    return Material(world, tokenizer, *(cut(tokenizer, notes) for notes in parts))


def cut(tokenizer: text.Tokenizer, notes: clinic.Notes, seed: int = 0) -> Halves:
    """Cut notes into halves, and mix every second of them."""
    texts = list(notes.text)
    whole, _ = sentence_pairs(tokenizer, texts, seed, mixed=False)
    return Halves(notes, whole, *sentence_pairs(tokenizer, texts, seed))


def guess(rows: Sequence[Tensor], batches: MaskedBatches) -> dict[str, float]:
    """Hidden words guessed by how often each occurs, whatever stands beside it.

    Parameters
    ----------
    rows
        Whose words are counted, one added to each count.
    batches
        As for `pretraining.evaluate`.

    Returns
    -------
    dict
        ``"loss"`` in nats a hidden word, and ``"accuracy"`` of the commonest word.
    """
    counts = torch.bincount(torch.cat(list(rows)), minlength=batches.vocabulary) + 1.0
    counts[: len(text.SPECIALS)] = 0
    targets = torch.cat([batch[3].flatten() for batch in batches.epoch(0)])
    targets = targets[targets != text.IGNORED]
    nats = -(counts / counts.sum()).log()[targets]
    right = (targets == counts.argmax()).float()
    return {"loss": float(nats.mean()), "accuracy": float(right.mean())}


# A reader who knows the clinic --------------------------------------------------------


def shared_evidence(material: Material, rows: Sequence[Tensor]) -> np.ndarray:
    """What the diseases say about two halves: do they come from one note?

    Parameters
    ----------
    material
        Clinic and tokenizer.
    rows
        As `pretraining.sentence_pairs` makes them.

    Returns
    -------
    array
        (rows,) the log of P(both halves) over P(first) P(second), for what they say
        about age, sex, vital signs and findings; minus infinity where the clinic
        writes no note with these two halves.

    Source: chapter 3.
    """
    parts = [halves_of(material.tokenizer, row) for row in rows]
    joined = [" ".join(part) for part in parts]
    again, _ = sentence_pairs(material.tokenizer, joined, 0, mixed=False)
    found = np.full(len(rows), -np.inf)
    for number, (first, _) in enumerate(parts):
        # Halves of one note are cut where this note is cut.
        if torch.equal(again[number], rows[number]):
            try:
                logs = evidence(material.world, joined[number], len(first))
            except MedlmError:  # no note of this clinic
                continue
            found[number] = agreement(material.world, logs)
    return found


def halves_of(tokenizer: text.Tokenizer, row: Tensor) -> tuple[str, str]:
    """The two texts of a row of `pretraining.sentence_pairs`."""
    numbers = row.tolist()
    middle = numbers.index(text.END)
    return tokenizer.decode(numbers[1:middle]), tokenizer.decode(numbers[middle + 1 :])


def evidence(world: clinic.Clinic, note: str, end: int) -> np.ndarray:
    """log P(what a half says | disease, severity) for both halves of a note.

    A group of symptoms of which neither says anything belongs to neither.

    Parameters
    ----------
    world
        The clinic.
    note
        A whole note.
    end
        Of the first half, in characters.

    Returns
    -------
    array
        (2, diseases, severities).

    Raises
    ------
    MedlmError
        If the clinic does not write such a note.
    """
    read = world.parse([note])
    groups = {finding.name: finding.group for finding in world.world.findings}
    half = {groups[s.finding]: int(s.start > end) for s in world.spans(note)}
    half["examination"] = int(note.index("On examination") > end)
    logs = np.zeros((2, *world.severity.shape))
    for disease, about in enumerate(world.world.diseases):
        women = about.women if read.sex[0] == 0 else 1 - about.women
        logs[0, disease] += np.log(about.ages[read.age_band[0]]) + np.log(women)
    for vital, rates in enumerate(world.vital_rates):
        logs[half["examination"]] += np.log(rates[:, read.vitals[0, vital], None])
    for number, finding in enumerate(world.world.findings):
        if finding.group in half:
            rates = world.mention_rates[:, :, number, read.mentions[0, number]]
            logs[half[finding.group]] += np.log(rates)
    return logs


def agreement(world: clinic.Clinic, logs: np.ndarray) -> float:
    """log of P(both halves) over P(first) P(second), from their `evidence`."""
    prior = np.log(world.prior)[:, None] + np.log(world.severity)
    return float(
        logsumexp(prior + logs.sum(axis=0))
        - sum(logsumexp(prior + half) for half in logs)
    )


def readers(material: Material, sample: int = 1000) -> dict[str, Any]:
    """How often readers who know the clinic tell which test halves belong together.

    One knows its grammar: two halves that the clinic could have written together do.
    The other weighs the diseases, too.

    Returns
    -------
    dict
        ``"grammar"`` and ``"clinic"``, metrics with intervals by patient, and
        ``"possible"``: the share of halves of different notes that fit together, from
        the notes for pre-training.
    """
    strange = [
        row
        for row, is_next in zip(
            material.plain.mixed, material.plain.is_next, strict=True
        )
        if not is_next
    ]
    possible = np.isfinite(shared_evidence(material, strange[:sample])).mean()
    ratio = shared_evidence(material, material.test.mixed)
    # Given that they fit, halves of one note are 1 / possible times as likely to.
    says = {
        "grammar": np.isfinite(ratio),
        "clinic": ratio > np.log(max(possible, 1e-9)),
    }
    truth, patients = material.test.is_next.numpy() == 1, material.test.notes.patient
    scores = {
        name: metrics.mean_by_patient(said == truth, patients).as_metric()
        for name, said in says.items()
    }
    return {**scores, "possible": float(possible)}


# Pre-training and fine-tuning ---------------------------------------------------------


def new_encoder(plan: Plan, material: Material, seed: int) -> SmallEncoder:
    """An encoder whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return SmallEncoder(
        material.mask + 1,
        plan.longest,
        plan.d_model,
        plan.heads,
        3 * plan.d_model,
        plan.blocks,
    )


def pretrain(
    study: core.Study, plan: Plan, material: Material, arm: str, seed: int
) -> dict[str, Any]:
    """Pre-train an encoder, keep it, and say how well it guesses on fresh notes."""
    pairs, plain = arm == "mlm_nsp", material.plain
    model = MaskedLM(new_encoder(plan, material, seed), pairs)
    model.to(study.profile.device)
    rows, is_next = (plain.mixed, plain.is_next) if pairs else (plain.whole, None)
    history = study.fit(
        model,
        MaskedBatches(rows, material.mask, plan.batch, seed, is_next).at,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warm_up=plan.steps // 20,
        precision=study.profile.precision,
        loss=pair_loss if pairs else masked_loss,
        evaluation=lambda: score(model, material, material.watched),
        evaluate_every=plan.steps // plan.looks,
        checkpoint_every=500,
    )
    kept = study.file(".safetensors")
    core.save_weights(model.encoder, kept)
    steps = [step for step, _ in history.evaluations]
    return {
        "arm": arm,
        "seed": seed,
        **score(model, material, material.test),
        "curve": [
            {"step": step, **measured}
            for step, measured in zip(steps, history.measures, strict=True)
        ],
        "weights": kept.name,
    }


def score(model: MaskedLM, material: Material, halves: Halves) -> dict[str, float]:
    """Hidden words of whole notes; next sentences of the mixed ones, with their head.

    Returns
    -------
    dict
        ``"loss"`` (nats a hidden word), ``"accuracy"`` and ``"next_accuracy"``, as
        `pretraining.evaluate` gives them.
    """
    found = evaluate(model, material.hidden(halves))
    if model.pair_head is not None:
        pairs = evaluate(model, material.hidden(halves, mixed=True))
        found["next_accuracy"] = pairs["next_accuracy"]
    return found


def classifier(
    study: core.Study,
    plan: Plan,
    material: Material,
    labels: Sequence[str],
    seed: int,
    weights: str | None,
) -> SmallClassifier:
    """The small encoder with a head; both start from the seed.

    Parameters
    ----------
    labels
        What the head names.
    weights
        The work file of a pre-trained encoder; None for one that is not pre-trained.
    """
    encoder = new_encoder(plan, material, seed)
    if weights is not None:
        core.load_weights(encoder, study.work / weights)
    torch.manual_seed(seed)
    return SmallClassifier(encoder, labels).to(study.profile.device)


def settings_of(
    study: core.Study, plan: Plan, epochs: int, seed: int
) -> bert.FineTuning:
    """How the small classifier is fine-tuned: whole, table of words and all."""
    return bert.FineTuning(
        epochs=epochs,
        encoder_rate=plan.rate,
        frozen_words=False,
        seed=seed,
        precision=study.profile.precision,
    )


def finetune(
    study: core.Study,
    plan: Plan,
    material: Material,
    arm: str,
    seed: int,
    notes: int,
    weights: str | None,
) -> dict[str, Any]:
    """Fine-tune the encoder of an arm on so many labelled notes; score it on the test.

    Parameters
    ----------
    weights
        The work file of the encoder; None for one that is not pre-trained.
    """
    diseases = material.world.diseases
    model = classifier(study, plan, material, diseases, seed, weights)
    rows, labels = labelled(material, LABELLED_SEED + seed, max(plan.labelled))
    validation = labelled(material, VALIDATION_SEED + seed, plan.validation)
    settings = settings_of(study, plan, plan.epochs, seed)
    tuned = bert.finetune(
        model,
        rows[:notes],
        labels[:notes],
        *validation,
        settings,
        checkpoint=study.file(".checkpoint"),
        resume=True,
    )
    test = material.test
    said = bert.predict_logits(model, test.whole).argmax(axis=1)
    accuracy = metrics.accuracy(test.notes.label, said)
    return {
        "arm": arm,
        "seed": seed,
        "notes": notes,
        "accuracy": accuracy,
        "accuracy_over_ceiling": accuracy / ceiling(material),
        "best_epoch": tuned.best,
        "validation_loss": list(tuned.loss),
    }


def labelled(
    material: Material, seed: int, count: int
) -> tuple[list[Tensor], np.ndarray]:
    """Rows of so many fresh notes, in two halves as they were written, and labels."""
    notes = material.world.draw(count, seed)[:count]
    return cut(material.tokenizer, notes).whole, notes.label


def ceiling(material: Material) -> float:
    """The accuracy that no reader of the test notes can pass on average."""
    return clinic.accuracy_ceiling(material.world.posterior(material.test.notes))


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre-train in both ways with every seed, then fine-tune all encoders."""
    plan = PLANS[study.size]
    material = draw(plan)
    settings = {"precision": study.profile.precision, **dataclasses.asdict(plan)}
    chosen = list(itertools.product(range(plan.seeds), ARMS))
    pretrained = study.run(
        [
            core.Part(
                f"pretrain-{arm}-{seed}",
                {**settings, "arm": arm, "seed": seed},
                float(plan.steps * plan.batch),
                functools.partial(pretrain, study, plan, material, arm, seed),
            )
            for seed, arm in chosen
            if arm != "none"
        ]
    )
    weights = {(p["arm"], p["seed"]): p["weights"] for p in pretrained}
    make = functools.partial(finetune, study, plan, material)
    tuned = study.run(
        [
            core.Part(
                f"finetune-{arm}-{seed}-{notes}",
                {**settings, "arm": arm, "seed": seed, "notes": notes},
                float(notes * plan.epochs),
                functools.partial(make, arm, seed, notes, weights.get((arm, seed))),
            )
            for (seed, arm), notes in itertools.product(chosen, plan.labelled)
        ]
    )
    known = readers(material) | {
        "ceiling": ceiling(material),
        "guess": guess(material.plain.whole, material.hidden(material.test)),
    }
    return summary(plan, pretrained, tuned, known)


def summary(
    plan: Plan,
    pretrained: list[dict[str, Any]],
    tuned: list[dict[str, Any]],
    known: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series; `known` is what needs no training."""
    most = max(plan.labelled)
    words = {arm: _of_seeds(pretrained, arm, "accuracy") for arm in ARMS[1:]}
    nats = {arm: _of_seeds(pretrained, arm, "loss") for arm in ARMS[1:]}
    at_most = [run for run in tuned if run["notes"] == most]
    share = {arm: _of_seeds(at_most, arm, "accuracy_over_ceiling") for arm in ARMS}
    measured: dict[str, Any] = {
        "masked_accuracy_unigram": known["guess"]["accuracy"],
        "masked_nats_unigram": {"value": known["guess"]["loss"], "unit": "nats/word"},
    }
    for arm in ARMS[1:]:
        measured[f"masked_accuracy_{arm}"] = core.over_seeds(words[arm])
        measured[f"masked_nats_{arm}"] = core.over_seeds(nats[arm])
        measured[f"masked_nats_{arm}"]["unit"] = "nats/word"
    measured["masked_accuracy_gain_nsp"] = core.over_seeds(_gain(words))
    following = _of_seeds(pretrained, "mlm_nsp", "next_accuracy")
    measured["next_accuracy"] = core.over_seeds(following)
    measured["next_accuracy_grammar"] = known["grammar"]
    measured["next_accuracy_clinic"] = known["clinic"]
    measured["ceiling_accuracy"] = known["ceiling"]
    for arm in ARMS:
        measured[f"accuracy_over_ceiling_{arm}"] = core.over_seeds(share[arm])
    measured["accuracy_over_ceiling_gain_nsp"] = core.over_seeds(_gain(share))
    series = {
        "plan": dataclasses.asdict(plan),
        "pretrained": [
            {k: v for k, v in run.items() if k != "weights"} for run in pretrained
        ],
        "tuned": tuned,
        "strange_halves_that_fit": known["possible"],
    }
    return measured, series


def _of_seeds(runs: list[dict[str, Any]], arm: str, name: str) -> list[float]:
    """A value of an arm for every seed, in order."""
    return [run[name] for run in sorted(runs, key=_seed) if run["arm"] == arm]


def _seed(run: dict[str, Any]) -> int:
    return int(run["seed"])


def _gain(values: dict[str, list[float]]) -> list[float]:
    """What next sentences add, seed by seed."""
    pairs = zip(values["mlm_nsp"], values["mlm"], strict=True)
    return [both - words for both, words in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "What next-sentence prediction adds to hidden words in pre-training."
    return core.main("nsp_ablation", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
