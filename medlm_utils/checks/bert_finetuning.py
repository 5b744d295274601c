"""Checkers for the exercises on fine-tuning BERT: they explain what is wrong.

Every checker takes the learner's function and returns a `core.Result`. An answer may
come as a tensor, a NumPy array, a list or a plain number. The oracles are closed forms,
loops over single rows and long simulations; the wrong answers are computed beside them,
on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medlm_utils.checks.core import (
    Answer,
    Attempt,
    Mistake,
    Tally,
    WrongNumber,
    as_tensor,
    generator,
    one_number,
    same,
    shown,
    sized,
)
from medlm_utils.text import IGNORED

TALLY = Tally("Fine-tuning BERT")
_FIVE_SIGMA = 5.0  # the room that answers which draw have, in standard errors


def summary() -> None:
    """Print how many of the chapter's exercises are answered."""
    TALLY.summary()


# What answers may be -----------------------------------------------------------------

Numbers = tuple[float, float]
# A known wrong pair of numbers; the mistake in one sentence; where to look.
WrongPair = tuple[Numbers, str, str]


def _tensor(attempt: Attempt) -> Attempt:
    """The attempt with its value as a tensor, where it can be one."""
    value = as_tensor(attempt.value)
    return attempt if value is None else Attempt(value, attempt.inputs)


def _two(attempt: Attempt, what: str) -> tuple[Any, Any]:
    """The two parts of the value; fails unless there are two."""
    value = attempt.value
    array = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0
    if not (array or isinstance(value, (tuple, list))):
        attempt.fail(f"Expected a pair, {what}, came {sized(value)}.")
    if len(value) != 2:
        attempt.fail(f"Expected a pair, {what}, came {len(value)} values.")
    return value[0], value[1]


def _two_numbers(attempt: Attempt, what: str) -> Numbers:
    """The value as two floats; fails unless it is a pair of numbers."""
    parts = _two(attempt, what)
    numbers = [one_number(part) for part in parts]
    for part, number in zip(parts, numbers, strict=True):
        if number is None:
            attempt.fail(f"Expected two numbers, {what}; one is {sized(part)}.")
    return numbers[0], numbers[1]  # type: ignore[return-value]


def _both_shown(pair: Numbers) -> str:
    return f"({pair[0]:.3g}, {pair[1]:.3g})"


# 1. Positive predictive value --------------------------------------------------------

BAYES = "Of all people: how many are ill and positive, how many healthy and positive?"


@TALLY.exercise
def predictive_value(answer: Answer) -> str:
    """Check `predictive_value(sensitivity, specificity, prevalence)`.

    Three shares between 0 and 1; the result is one number, the share of the ill among
    those who test positive. Oracle: Bayes' rule, in counts of people.
    """
    for sensitivity, specificity, prevalence in [
        (0.9, 0.8, 0.1),
        (0.95, 0.99, 0.01),
        (0.7, 0.97, 0.4),
        (0.6, 0.9, 0.0001),
    ]:
        given = (sensitivity, specificity, prevalence)
        attempt = answer.on(
            sensitivity=sensitivity, specificity=specificity, prevalence=prevalence
        )
        ill, healthy = _positives(*given)
        attempt.equals_number(ill / (ill + healthy), _predictive_mistakes(*given))
    return "values for four tests, from 1 ill of 10,000 to 4 of 10."


def _positives(sensitivity: float, specificity: float, prevalence: float) -> Numbers:
    """Shares of all people: ill and positive, healthy and positive."""
    return sensitivity * prevalence, (1 - specificity) * (1 - prevalence)


def _predictive_mistakes(se: float, sp: float, p: float) -> list[WrongNumber]:
    """Wrong values; `se`, `sp`, `p`: sensitivity, specificity, prevalence."""
    ill, healthy = _positives(se, sp, p)
    missed, cleared = (1 - se) * p, sp * (1 - p)
    swapped = _positives(se, sp, 1 - p)
    right = ill / (ill + healthy)
    return [
        (
            se / (se + 1 - sp),
            "The prevalence is not used, as if half of the people were ill.",
            BAYES,
        ),
        (se, "This is the sensitivity: the share of positives among the ill.", BAYES),
        (
            ill,
            "This is the share of all people who are ill and positive: divide by all "
            "who are positive.",
            BAYES,
        ),
        (
            ill + healthy,
            "This is the share of all people who are positive: it is the divisor.",
            BAYES,
        ),
        (
            cleared / (cleared + missed),
            "This is the negative predictive value: the healthy among the negatives.",
            BAYES,
        ),
        (1 - right, "This is the share of false alarms among the positives.", BAYES),
        (
            swapped[0] / sum(swapped),
            "The prevalence is the share of the ill, not of the healthy.",
            BAYES,
        ),
        (
            ill / (ill + cleared),
            "The healthy who test positive are 1 - specificity, not specificity.",
            BAYES,
        ),
        (
            ill / (ill + 1 - sp),
            "The false alarms are a share of the healthy: multiply by 1 - prevalence.",
            BAYES,
        ),
        (
            se / (se + healthy),
            "The true alarms are a share of the ill: multiply by the prevalence.",
            BAYES,
        ),
        (
            ill / healthy,
            "These are odds, ill to healthy: a probability is ill / (ill + healthy).",
            "",
        ),
        (
            se / (1 - sp) * p,
            "A likelihood ratio multiplies odds, not probabilities.",
            "Take prevalence / (1 - prevalence), multiply, then turn back.",
        ),
        (se / (1 - sp), "This is the likelihood ratio of a positive test.", BAYES),
        (ill + cleared, "This is the accuracy.", BAYES),
        (100 * right, "This is in per cent: return a share.", ""),
    ]


# 2. Mean pooling ---------------------------------------------------------------------

POOL = "Add the states where the mask is 1, then divide by how many there are."


@TALLY.exercise
def mean_pool(answer: Answer) -> str:
    """Check `mean_pool(states, attention_mask)`, one vector for each text.

    `states` float (batch, tokens, d_model), not 0 at padding, as an encoder leaves
    them; `attention_mask` int64 (batch, tokens), 1 for a token and 0 for padding; the
    result is (batch, d_model). Oracle: a loop over the texts. One batch has no padding,
    and one text is a single token.
    """
    draw = generator()
    for lengths, d_model in [((5, 3, 1), 4), ((4, 4), 3), ((2, 7, 4, 3), 6)]:
        size = (len(lengths), max(lengths))
        states = torch.randn(*size, d_model, generator=draw) + 0.5
        mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
        attempt = answer.on(states=states, attention_mask=mask)
        expected = _pooled(states, lengths)
        _tensor(attempt).equals(expected, _pool_mistakes(states, mask))
    return "values for three batches, one of them without padding."


def _pooled(states: Tensor, lengths: Iterable[int]) -> Tensor:
    """The oracle, text by text: (batch, d_model) in double precision."""
    texts = zip(states.double(), lengths, strict=True)
    return torch.stack([text[:length].mean(0) for text, length in texts])


def _pool_mistakes(states: Tensor, attention_mask: Tensor) -> list[Mistake]:
    """Wrong vectors for states (batch, tokens, d_model), the likeliest first."""
    x, real = states.double(), attention_mask.bool()[..., None]
    lengths, tokens = real.sum(1), x.shape[1]
    total = (x * real).sum(1)
    right = total / lengths
    rest = (x * ~real).sum(1) / (~real).sum(1)
    last = x[torch.arange(len(x)), lengths[:, 0] - 1]
    shape = "There must be one vector of d_model entries for each text."
    mistakes = [
        Mistake(
            x.mean(1),
            "Padding is counted: a text's vector changes with its batch.",
            POOL,
        ),
        Mistake(
            total / tokens,
            "The states of padding are left out of the sum, but the divisor counts "
            "them.",
            "Divide by the sum of the mask, row by row.",
        ),
        Mistake(x.sum(1) / lengths, "The states of padding are in the sum.", POOL),
        Mistake(total, "This is the sum: divide by the number of tokens.", POOL),
        Mistake(x.sum(1), "This is the sum of all states, with padding.", POOL),
        Mistake(
            x[:, 0],
            "This is the state of [CLS]: take the mean of all tokens.",
            POOL,
        ),
        Mistake(last, "This is the state of the last token.", POOL),
        Mistake(rest, "This is the mean of the padding: 1 means token.", POOL),
        Mistake(
            rest.nan_to_num(), "This is the mean of the padding: 1 means token.", POOL
        ),
        Mistake(
            total / lengths.sum(),
            "It is divided by the tokens of the whole batch.",
            "Each row has its own divisor: sum the mask along dim=1.",
        ),
        Mistake(total / lengths.sqrt(), "It is divided by the root of the number."),
        Mistake(
            functional.normalize(right, dim=-1),
            "The mean is scaled to length 1: that is a step of its own.",
            POOL,
        ),
        Mistake(x.amax(1), "This is the largest state, padding included.", POOL),
        Mistake(
            x.masked_fill(~real, -math.inf).amax(1), "This is the largest state.", POOL
        ),
        Mistake((x * real).amax(1), "This is the largest state.", POOL),
        Mistake(x.mean(-1), f"The mean runs over features. {shape}", POOL),
        Mistake((x * real).mean(-1), f"The mean runs over features. {shape}", POOL),
        Mistake(x.mean(0), f"The mean runs over the texts. {shape}", POOL),
        Mistake((x * real).sum(0) / real.sum(0), f"It runs over the texts. {shape}"),
        Mistake(total.sum(0) / lengths.sum(), f"All texts are one. {shape}", POOL),
    ]
    for later in ((x * real)[:, 1:].sum(1) / (lengths - 1),):
        says = "The first token, [CLS], is left out: its mask is 1."
        mistakes += [
            Mistake(later, says, POOL),
            Mistake(later.nan_to_num(), says, POOL),
        ]
    return mistakes


# 3. Pooled F1 ------------------------------------------------------------------------

ONE_TABLE = "Count true positives, false positives and misses over all batches first."
# Predicted and true classes, batch by batch; two have no row truly of class 1, and in
# one of these the model says 1.
_BATCHES = [
    ("11010010", "10011010"),
    ("00100000", "01100001"),
    ("00000000", "00000000"),
    ("01001", "00000"),
    ("101", "111"),
]
_EVEN = [("1100", "1010"), ("0111", "1011"), ("1000", "0001")]
_SILENT = [("000", "010"), ("0000", "1000")]


class _Batches(list):
    """Pairs of tensors, described by how many there are."""

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(true)) for _, true in self)
        return f"{len(self)} batches (predicted, true) of {sizes} rows"


@TALLY.exercise
def pooled_f1(answer: Answer) -> str:
    """Check `pooled_f1(batches)`, the F1 of class 1 over all rows.

    `batches` is a list of pairs (predicted, true) of int64 tensors (rows,), 0 or 1; the
    result is one number. At least one row is truly of class 1; where the model never
    says 1, F1 is 0. Oracle: counts over all rows. The batches differ in size and in
    how many rows are of class 1.
    """
    for table in (_BATCHES, _EVEN, _SILENT):
        attempt = answer.on(batches=_batches(table))
        joined = tuple("".join(column) for column in zip(*table, strict=True))
        ((predicted, true),) = _batches([joined])  # type: ignore[list-item]
        hits, false, missed, _ = _counts(predicted, true)
        expected = float(2 * hits / (2 * hits + false + missed))
        if hits or same(attempt.number(), 0.0):
            attempt.equals_number(expected, _f1_mistakes(_batches(table)))
        else:
            _fail_silent(attempt)
    return "values for two lists of batches, and a model that never says 1."


def _batches(table: list[tuple[str, str]]) -> _Batches:
    """Digits as tensors."""
    return _Batches(
        (torch.tensor([*map(int, said)]), torch.tensor([*map(int, true)]))
        for said, true in table
    )


def _counts(predicted: Tensor, true: Tensor) -> tuple[Tensor, ...]:
    """True positives, false positives, misses, true negatives, in double precision."""
    said, ill = predicted.double(), true.double()
    hits = (said * ill).sum()
    return hits, said.sum() - hits, ill.sum() - hits, ((1 - said) * (1 - ill)).sum()


def _fail_silent(attempt: Attempt) -> None:
    came = attempt.number()
    attempt.fail(
        "Where the model never says 1, F1 is 0: precision is 0 / 0 there. "
        f"Expected 0, came {shown(came)}.",
        "2 * hits / (predicted + true) needs no precision.",
    )


def _f1_mistakes(batches: _Batches) -> list[WrongNumber]:
    """Wrong values, those of means over batches first."""
    tables = torch.stack([torch.stack(_counts(*batch)) for batch in batches])
    return [
        *_mean_f1(tables),
        *_other_scores(*tables.sum(0)),
        *_single_f1(tables),
        _without_healthy_batches(tables),
    ]


def _mean_f1(tables: Tensor) -> list[WrongNumber]:
    """Means over batches; `tables` (batches, 4), counts as `_counts` gives them."""
    hits, false, missed, _ = tables.T
    each, sizes = 2 * hits / (2 * hits + false + missed), tables.sum(1)
    ill = hits + missed
    precision, recall = hits / (hits + false), hits / ill
    mean = "This is a mean of the batches' F1"
    undefined = "a batch without class 1 has none"
    values = [
        (each.nan_to_num(0).mean(), f"{mean}; {undefined}, and counts as 0."),
        (each.nan_to_num(1).mean(), f"{mean}; {undefined}, and counts as 1."),
        (each.where(ill > 0, 1.0).mean(), f"{mean}; {undefined}, and counts as 1."),
        (each.nanmean(), f"{mean}, and {undefined}."),
        (each[ill > 0].mean(), f"{mean}, and {undefined}."),
        (
            (each.nan_to_num(0) * sizes).sum() / sizes.sum(),
            f"{mean}, weighted by their rows: F1 is no mean over rows.",
        ),
        (
            (each.nan_to_num(0) * ill).sum() / ill.sum(),
            f"{mean}, weighted by their rows of class 1.",
        ),
    ]
    for fill in (0.0, math.nan):
        p = precision.nan_to_num(fill).nanmean()
        r = recall.nan_to_num(fill).nanmean()
        says = "Precision and recall are means over batches: count over all rows."
        values.append((2 * p * r / (p + r), says))
    return [(float(value), says, ONE_TABLE) for value, says in values]


def _other_scores(
    hits: Tensor, false: Tensor, missed: Tensor, cleared: Tensor
) -> list[WrongNumber]:
    """Other scores of the same counts over all rows."""
    p, r = hits / (hits + false), hits / (hits + missed)
    f1, rows = 2 * hits / (2 * hits + false + missed), hits + false + missed + cleared
    healthy = 2 * cleared / (2 * cleared + false + missed)
    ill_share = (hits + missed) / rows
    values = [
        (p, "This is the precision alone."),
        (r, "This is the recall alone."),
        ((hits + cleared) / rows, "This is the accuracy, or a micro F1."),
        (healthy, "This is the F1 of class 0."),
        ((f1 + healthy) / 2, "This is the macro F1, the mean over both classes."),
        (
            f1 * ill_share + healthy * (1 - ill_share),
            "This is the weighted F1, over both classes.",
        ),
        ((p + r) / 2, "This is the arithmetic mean of precision and recall."),
        ((p * r).sqrt(), "This is the geometric mean of precision and recall."),
        (p * r / (p + r), "The factor 2 is missing: F1 is 2 p r / (p + r)."),
        (hits / (hits + false + missed), "The hits count once: this is Jaccard's."),
        (2 * hits / (hits + false + missed), "The hits count once in the divisor."),
        (cleared / (cleared + false), "This is the specificity."),
        (100 * f1, "This is in per cent: return a share."),
    ]
    look = "F1 is 2 * hits / (2 * hits + false alarms + misses), of class 1."
    return [(float(value), says, look) for value, says in values]


def _single_f1(tables: Tensor) -> list[WrongNumber]:
    """The F1 of one batch alone."""
    wrong = []
    for place, name in ((-1, "last"), (0, "first")):
        hits, false, missed, _ = tables[place]
        value = float(2 * hits / (2 * hits + false + missed))
        wrong.append((value, f"This is the F1 of the {name} batch alone.", ONE_TABLE))
    return wrong


def _without_healthy_batches(tables: Tensor) -> WrongNumber:
    """The F1 over all rows of the batches that have a row of class 1."""
    kept = tables[tables[:, 0] + tables[:, 2] > 0]
    hits, false, missed, _ = kept.sum(0)
    return (
        float(2 * hits / (2 * hits + false + missed)),
        "Batches without class 1 are left out, and their false alarms with them.",
        ONE_TABLE,
    )


# 4. Splitting by patient -------------------------------------------------------------

BY_PATIENT = "Draw from patients.unique(), then take the rows of those who were drawn."


@TALLY.exercise
def split_patients(answer: Answer) -> str:
    """Check `split_patients(patients, share, seed)`, the rows of train and validation.

    `patients` int64 (rows,), whose row it is; the result is two lists of row numbers,
    or two masks (rows,): first training, then validation. All rows of a patient are on
    one side; validation gets the share of the patients, here a whole number. Equal
    seeds give equal splits and other seeds others, and over 100 seeds every patient is
    held out about as often. Patients have 1 to 9 rows, in no order.
    """
    for count, share in [(24, 0.25), (40, 0.4)]:
        patients = _rows_of_patients(count, generator(count))
        attempt = answer.on(patients=patients, share=share, seed=0)
        train, validation = _sides(attempt, patients)
        _check_rows(attempt, train, validation, patients)
        _check_patients(attempt, train, validation, patients, share)
    _check_split_seeds(answer, patients, share)
    _check_split_chances(answer, patients, share)
    return (
        "that no patient is on both sides, that no row is lost, the share of patients, "
        "the seed, and that every patient may be held out."
    )


def _rows_of_patients(count: int, draw: torch.Generator) -> Tensor:
    """Numbers of so many patients, one a row, in no order; most have few rows."""
    names = 1000 + torch.randperm(800, generator=draw)[:count]
    often = torch.randint(1, 4, (count,), generator=draw)
    often[: count // 8] = 9
    rows = names.repeat_interleave(often)
    return rows[torch.randperm(len(rows), generator=draw)]


def _sides(attempt: Attempt, patients: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers of both sides; masks count as rows, too."""
    sides = []
    what = "the rows of training and of validation"
    for part in _two(attempt, what):
        rows = as_tensor(sorted(part) if isinstance(part, set) else part)
        if rows is None or rows.dim() != 1:
            attempt.fail(f"Expected row numbers in one axis, came {sized(part)}.")
        if rows.dtype == torch.bool and len(rows) == len(patients):
            rows = torch.where(rows)[0]
        elif rows.is_floating_point() and len(rows):
            attempt.fail("Row numbers are whole numbers: floats came.")
        sides.append(rows.long())
    return sides[0], sides[1]


def _check_rows(
    attempt: Attempt, train: Tensor, validation: Tensor, patients: Tensor
) -> None:
    """Every row is on one side, once; whatever the patients."""
    both = torch.cat([train, validation])
    if len(both) and torch.isin(both, patients).all():
        attempt.fail("These are patients, not rows.", "torch.where gives their rows.")
    if ((both < 0) | (both >= len(patients))).any():
        attempt.fail(f"A row is out of range: there are {len(patients)} rows.")
    for name, rows in (("training", train), ("validation", validation)):
        if not len(rows):
            attempt.fail(f"There is no row for {name}.", BY_PATIENT)
        if len(rows.unique()) < len(rows):
            attempt.fail(f"A row is there twice in {name}.", BY_PATIENT)
    shared = train[torch.isin(train, validation)]
    if len(shared):
        attempt.fail(f"Row {int(shared[0])} is on both sides.", BY_PATIENT)
    if len(both) < len(patients):
        lost = len(patients) - len(both)
        attempt.fail(
            f"{lost} of {len(patients)} rows are on neither side: a patient has "
            "several rows, and all of them count.",
            BY_PATIENT,
        )


def _check_patients(
    attempt: Attempt, train: Tensor, validation: Tensor, patients: Tensor, share: float
) -> None:
    """No patient is on both sides, and the share is one of patients."""
    left, right = patients[train].unique(), patients[validation].unique()
    shared = left[torch.isin(left, right)]
    if len(shared):
        attempt.fail(
            f"{len(shared)} patients are on both sides, such as {int(shared[0])}: rows "
            "were split, not patients, and validation asks about patients that the "
            "model knows.",
            BY_PATIENT,
        )
    count = len(left) + len(right)
    wanted, came = round(share * count), len(right)
    told = f"Expected {wanted} of {count} patients in validation, came {came}."
    if came == wanted:
        return
    if len(left) == wanted:
        attempt.fail(f"The sides are exchanged: training comes first. {told}")
    if abs(came - wanted) == 1:
        more = "many" if came > wanted else "few"
        rounded = "round(share * len(people)) says how many, and [:n] takes n."
        attempt.fail(f"One patient too {more} is held out. {told}", rounded)
    if abs(len(validation) - share * len(patients)) <= 9:
        attempt.fail(f"The share counts rows, not patients. {told}", BY_PATIENT)
    attempt.fail(f"The share is wrong. {told}", BY_PATIENT)


def _check_split_seeds(answer: Answer, patients: Tensor, share: float) -> None:
    """Equal seeds, equal splits; other seeds, other splits."""
    held = []
    for seed in (3, 3, 4, 5):
        attempt = answer.on(patients=patients, share=share, seed=seed)
        held.append(set(patients[_sides(attempt, patients)[1]].tolist()))
    if held[0] != held[1]:
        attempt.fail(
            "Two calls with the same seed give different splits: nobody can repeat the "
            "result.",
            "Draw from torch.Generator().manual_seed(seed).",
        )
    if held[0] == held[2] == held[3]:
        attempt.fail(
            "Every seed gives the same split: patients are not drawn, so that those "
            "who came first, or have small numbers, are always on one side.",
            BY_PATIENT,
        )


_SPLITS = 100


def _check_split_chances(answer: Answer, patients: Tensor, share: float) -> None:
    """Over many seeds every patient is held out as often, but for chance."""
    people, person = patients.unique(return_inverse=True)
    rows, held = person.bincount(), torch.zeros(len(people))
    for seed in range(_SPLITS):
        attempt = answer.on(patients=patients, share=share, seed=seed)
        held += torch.isin(people, patients[_sides(attempt, patients)[1]])
    wanted = _SPLITS * share
    gap = (held - wanted).abs()
    if gap.max() <= _FIVE_SIGMA * math.sqrt(wanted * (1 - share)):
        return
    worst = int(gap.argmax())
    seldom = "often" if held[worst] > wanted else "seldom"
    attempt.fail(
        f"Patients with many rows or few, or with some numbers, are held out too "
        f"{seldom}: patient {int(people[worst])}, with {int(rows[worst])} rows, is in "
        f"validation for {int(held[worst])} of {_SPLITS} seeds. Expected about "
        f"{wanted:.0f}.",
        f"Each has the same chance. {BY_PATIENT}",
    )


# 5. Weight decay ---------------------------------------------------------------------

BY_KIND = "Not by name: biases and the weights of LayerNorm have one axis only."


class _Published(nn.Module):
    """Named as BERT's layers in `transformers`."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.classifier = nn.Linear(4, 2)

    def __repr__(self) -> str:
        return "an encoder named as in transformers"


class _Unnamed(nn.Module):
    """Layers with numbers, a layer normalisation called norm, a head for abnormal."""

    def __init__(self) -> None:
        super().__init__()
        # Wider than the head is large: the number of entries tells nothing.
        self.body = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 4))
        self.norm = nn.LayerNorm(4)
        self.abnormal = nn.Linear(4, 2)

    def __repr__(self) -> str:
        return "an encoder with other names"


@TALLY.exercise
def parameter_groups(answer: Answer) -> str:
    """Check `parameter_groups(model, weight_decay)`, groups for torch's AdamW.

    `model` is a module of linear layers and `nn.LayerNorm`; the result is a list of
    dicts with ``"params"`` and ``"weight_decay"``. Weights of linear layers decay;
    biases and both parameters of every LayerNorm do not. Every parameter is in one
    group. Oracle: the kind of the module that holds a parameter. Names differ between
    the two models.
    """
    for model, weight_decay in ((_Published(), 0.1), (_Unnamed(), 0.02)):
        attempt = answer.on(model=model, weight_decay=weight_decay)
        _check_decays(attempt, model, _decays(attempt, model), weight_decay)
    return "the decay of every parameter of two models whose layers are named apart."


def _decays(attempt: Attempt, model: nn.Module) -> dict[str, float]:
    """Name to decay; fails unless every parameter is in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for group in _groups(attempt):
        params = group["params"]
        if isinstance(params, set):
            attempt.fail("AdamW takes lists, not sets: their order is lost.")
        for entry in [params] if isinstance(params, Tensor) else params:
            # torch takes pairs of a name and a parameter, too.
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(parameter, str):
                attempt.fail("A group holds names: AdamW needs the parameters.")
            name = names.get(id(parameter))
            if name is None:
                attempt.fail(
                    f"A group holds {sized(parameter)} that is no parameter of the "
                    "model, such as a copy: AdamW would train it in vain.",
                    "model.parameters() gives the parameters themselves.",
                )
            if name in found:
                attempt.fail(f"{name} is in the groups twice: AdamW refuses that.")
            found[name] = float(group["weight_decay"])
    for name in names.values():
        if name not in found:
            attempt.fail(f"{name} is in no group: it would never be trained.")
    return found


def _groups(attempt: Attempt) -> list[dict[str, Any]]:
    """The groups as a list; fails unless each has parameters and a decay."""
    value = attempt.value
    wanted = "a list of dicts with the keys params and weight_decay"
    if isinstance(value, dict) or not isinstance(value, Iterable):
        attempt.fail(f"Expected {wanted}, came {sized(value)}.")
    groups = list(value)
    for group in groups:
        if not isinstance(group, dict) or "params" not in group:
            attempt.fail(f"Expected {wanted}, came a list with {sized(group)}.")
        if "weight_decay" not in group:
            attempt.fail(
                "A group has no weight_decay: AdamW then takes its own default, which "
                "is 0.01, not 0.",
                "Write it into every group.",
            )
    return groups


def _check_decays(
    attempt: Attempt, model: nn.Module, decays: dict[str, float], weight_decay: float
) -> None:
    """Compare the decay of every parameter; known mistakes first."""
    kinds = _kinds(model)
    expected = {n: weight_decay if k == "matrix" else 0.0 for n, k in kinds.items()}
    wrong = [name for name in kinds if not same(decays[name], expected[name])]
    if not wrong:
        return
    told = f"{wrong[0]}: expected {expected[wrong[0]]:g}, came {decays[wrong[0]]:g}."
    for decaying, says in _DECAY_MISTAKES.items():
        if all(
            same(decays[n], weight_decay if k in decaying else 0.0)
            for n, k in kinds.items()
        ):
            attempt.fail(f"{says} {told}", BY_KIND)
    if "abnormal.weight" in wrong and decays["abnormal.weight"] == 0:
        attempt.fail(
            f"A head called abnormal has norm in its name, but is no LayerNorm. {told}",
            BY_KIND,
        )
    if _by_size(model, decays, weight_decay):
        attempt.fail(
            "The number of entries decides: a wide LayerNorm has more of them than a "
            f"small matrix. {told}",
            BY_KIND,
        )
    if isinstance(model, _Unnamed) and kinds[wrong[0]] == "gain":
        attempt.fail(
            f"Weights of a LayerNorm decay: here its name is another. {told}", BY_KIND
        )
    attempt.fail(f"A decay is wrong. {told}", BY_KIND)


def _by_size(model: nn.Module, decays: dict[str, float], weight_decay: float) -> bool:
    """Whether all that decay have more entries than all that do not."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    large = [size for name, size in sizes.items() if same(decays[name], weight_decay)]
    small = [size for name, size in sizes.items() if same(decays[name], 0.0)]
    both = bool(large and small) and len(large) + len(small) == len(sizes)
    return both and min(large) > max(small)


def _kinds(model: nn.Module) -> dict[str, str]:
    """Name to kind: matrix, bias, and gain or shift of a LayerNorm."""
    kinds = {}
    for place, module in model.named_modules():
        norm = isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False):
            weight = "gain" if norm else "matrix"
            other = "shift" if norm else "bias"
            kinds[f"{place}.{name}"] = weight if name == "weight" else other
    return kinds


_NAMES = "A rule by names misses what is named otherwise."
# Which kinds decay, and what is said of it.
_DECAY_MISTAKES = {
    ("matrix", "bias", "gain", "shift"): "Everything decays.",
    (): "Nothing decays.",
    ("bias", "gain", "shift"): "The groups are exchanged: the matrices decay.",
    ("matrix", "gain"): f"Weights of LayerNorm decay. {_NAMES}",
    ("matrix", "bias"): "Biases of linear layers decay.",
    ("matrix", "gain", "shift"): f"LayerNorm decays, both of its parameters. {_NAMES}",
    ("matrix", "shift"): "The biases of LayerNorm decay.",
    ("matrix", "bias", "shift"): "Biases decay.",
    ("gain",): "The groups are exchanged, and biases do not decay in either.",
}


# 6. An operating point ---------------------------------------------------------------

CHOOSE = "Sort the scores of the ill of validation, and count from the highest."
ON_TEST = "On test rows, use the threshold as it is: score >= threshold is an alarm."
RATES = "sensitivity and specificity on the test rows"


@TALLY.exercise
def operating_point(answer: Answer) -> str:
    """Check `operating_point(labels, scores, test_labels, test_scores, sensitivity)`.

    Labels int64 (rows,), 1 for ill; scores float (rows,). The threshold is the highest
    of the validation scores at which at least `sensitivity` of the ill of validation
    have a score >= threshold; the result is a pair: sensitivity and specificity of the
    test rows at that threshold. Oracle: every threshold tried. Scores have two digits,
    so that some are equal to the threshold; the draws are those on which
    most mistakes give a pair of their own. In the third case the number of the ill to
    be found is whole, and exact in floats; the fourth tells rounding up from rounding
    to the nearest.
    """
    for seed, ill, sensitivity in [
        (80, 25, 0.9),
        (33, 33, 0.8),
        (190, 20, 0.75),
        (895, 28, 0.9),
    ]:
        draw = generator(seed)
        labels, scores = _scored(ill, 60, draw)
        test_labels, test_scores = _scored(41, 90, draw)
        inputs = {"labels": labels, "scores": scores}
        inputs |= {"test_labels": test_labels, "test_scores": test_scores}
        threshold = _threshold(labels, scores, sensitivity)
        test_scores[torch.where(test_labels == 0)[0][:2]] = threshold
        test_scores[torch.where(test_labels == 1)[0][:2]] = threshold
        attempt = answer.on(**inputs, sensitivity=sensitivity)
        expected = _rates(test_labels, test_scores >= threshold)
        _check_point(attempt, expected, _point_mistakes(**inputs, wanted=sensitivity))
    return "both shares for four validation sets, with scores at the threshold."


def _scored(ill: int, healthy: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels and scores of two digits in no order; the ill have the higher ones."""
    labels = torch.tensor([1] * ill + [0] * healthy)
    scores = (1.5 * labels - 1 + torch.randn(len(labels), generator=draw)).sigmoid()
    order = torch.randperm(len(labels), generator=draw)
    return labels[order], (100 * scores[order]).round() / 100


def _threshold(labels: Tensor, scores: Tensor, sensitivity: float) -> float:
    """The oracle: every score tried, the highest first."""
    ill = scores[labels == 1]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        if float((ill >= threshold).double().mean()) >= sensitivity:
            return threshold
    raise AssertionError("the lowest score finds everybody")


def _rates(labels: Tensor, alarm: Tensor) -> Numbers:
    """Sensitivity and specificity."""
    found = alarm[labels == 1].double().mean()
    return float(found), float((~alarm[labels == 0]).double().mean())


def _check_point(
    attempt: Attempt, expected: Numbers, mistakes: list[WrongPair]
) -> None:
    """Compare both numbers with the right ones, then with known mistakes."""
    came = _two_numbers(attempt, RATES)
    if all(map(same, came, expected)):
        return
    told = f"Expected {_both_shown(expected)}, came {_both_shown(came)}."
    for pair, says, look in mistakes:
        if all(map(same, came, pair)):
            attempt.fail(f"{says} {told}", look)
    attempt.fail(f"The pair is wrong. {told}", ON_TEST)


def _point_mistakes(
    labels: Tensor,
    scores: Tensor,
    test_labels: Tensor,
    test_scores: Tensor,
    wanted: float,
) -> list[WrongPair]:
    """Wrong pairs: another threshold, or other shares at the right one."""
    right = _threshold(labels, scores, wanted)
    alarm = test_scores >= right
    mistakes = [
        (_rates(test_labels, test_scores >= threshold), says, CHOOSE)
        for threshold, says in _wrong_thresholds(
            labels, scores, test_labels, test_scores, wanted
        )
    ]
    found, cleared = _rates(test_labels, alarm)
    ill = test_labels == 1
    precision = float(ill[alarm].double().mean())
    healthy = float((~ill)[~alarm].double().mean())
    hit = float((alarm == ill).double().mean())
    first = f"Return {RATES}."
    return [
        *mistakes,
        (
            _rates(test_labels, test_scores > right),
            "A score equal to the threshold is an alarm, too: use >=.",
            ON_TEST,
        ),
        (
            _rates(labels, scores >= right),
            "These are the shares of validation, where the threshold was chosen: the "
            "sensitivity is met there by construction.",
            ON_TEST,
        ),
        ((cleared, found), "The two are exchanged: sensitivity comes first.", ""),
        (
            (found, 1 - cleared),
            "The second is the share of false alarms, 1 - specificity.",
            first,
        ),
        (
            (1 - found, 1 - cleared),
            "The alarm is upside down: the ill have the higher scores.",
            ON_TEST,
        ),
        ((found, precision), "The second is the positive predictive value.", first),
        ((found, healthy), "The second is the negative predictive value.", first),
        ((found, hit), "The second is the accuracy.", first),
        ((precision, healthy), "These are predictive values.", first),
        ((right, found), "The first is the threshold.", first),
        ((right, cleared), "The first is the threshold.", first),
        ((wanted, cleared), "The first is the sensitivity that was wanted.", first),
    ]


def _wrong_thresholds(
    labels: Tensor,
    scores: Tensor,
    test_labels: Tensor,
    test_scores: Tensor,
    wanted: float,
) -> list[tuple[float, str]]:
    """Thresholds chosen wrongly, with the mistake; the worst first."""
    every = torch.cat([labels, test_labels]), torch.cat([scores, test_scores])
    ill, healthy = scores[labels == 1], scores[labels == 0]
    high = ill.sort(descending=True).values
    needed = math.ceil(wanted * len(ill))
    return [
        (
            _threshold(test_labels, test_scores, wanted),
            "The threshold was chosen on the test rows: it fits their chance, and the "
            "sensitivity found is no measurement any more.",
        ),
        (
            _threshold(*every, wanted),
            "The test rows helped to choose the threshold: choose on validation alone.",
        ),
        (0.5, "The threshold is 0.5: the wanted sensitivity is not used."),
        (
            float(ill.quantile(1 - wanted)),
            "quantile interpolates between two scores, and too few of the ill of "
            "validation are found.",
        ),
        (
            float(scores.quantile(1 - wanted)),
            "The threshold comes from the scores of all rows, not of the ill.",
        ),
        (
            _threshold(torch.ones_like(labels), scores, wanted),
            "The threshold comes from the scores of all rows, not of the ill.",
        ),
        (
            float(healthy.quantile(wanted)),
            "The threshold fixes the specificity: it comes from the healthy.",
        ),
        (
            float(healthy.sort().values[math.ceil(wanted * len(healthy)) - 1]),
            "The threshold fixes the specificity: it comes from the healthy.",
        ),
        (
            float(high.flip(0)[needed - 1]),
            "The scores are counted from the lowest: most of the ill are missed.",
        ),
        (float(ill.quantile(wanted)), "The quantile is 1 - sensitivity of the ill."),
        (float(high[-1]), "This is the lowest threshold of all: it finds everybody."),
        (
            float(high[needed]),
            "One of the ill too many is found: the first of a list has index 0, and a "
            "number that is whole is not rounded up.",
        ),
        (
            float(high[needed - 2]),
            "One of the ill too few is found in validation: round up.",
        ),
        (
            _youden(labels, scores),
            "The threshold maximises sensitivity + specificity: that was not asked.",
        ),
    ]


def _youden(labels: Tensor, scores: Tensor) -> float:
    """The threshold with the largest sum of sensitivity and specificity."""
    return max(
        sorted(set(scores.tolist())), key=lambda t: sum(_rates(labels, scores >= t))
    )


# 7. Occlusion ------------------------------------------------------------------------

ANEW = "For each place start from a copy of the tokens: tokens.clone()."


class _Score:
    """A score of one text, in which neighbours matter, as in negation."""

    def __init__(self, draw: torch.Generator) -> None:
        self.words = torch.randn(60, generator=draw, dtype=torch.float64)
        self.pairs = torch.randn(60, 60, generator=draw, dtype=torch.float64)

    def __call__(self, tokens: Any) -> float:
        """The score of tokens (tokens,), a float."""
        text = torch.as_tensor(tokens)
        if text.dim() != 1:
            raise ValueError(
                f"score takes one text: expected (tokens,), came {tuple(text.shape)}"
            )
        text = text.long()
        return float(self.words[text].sum() + self.pairs[text[:-1], text[1:]].sum())

    def __repr__(self) -> str:
        return "a function of one text"


@TALLY.exercise
def occlusion(answer: Answer) -> str:
    """Check `occlusion(score, tokens, mask)`, how much each token carries.

    `score` takes int64 (tokens,) and returns a float; the result is (tokens,): the
    score of the text minus its score with this one token replaced by `mask`. Oracle:
    a loop. A token stands twice in the text, neighbours matter, and some falls are
    below 0.
    """
    draw = generator()
    for tokens, mask in [([7, 31, 12, 31, 5, 44], 3), ([9, 20, 20, 51], 1)]:
        score, text = _Score(draw), torch.tensor(tokens)
        attempt = answer.on(score=score, tokens=text, mask=mask)
        falls = score(text) - _occluded(score, text, mask)
        _tensor(attempt).equals(falls, _fall_mistakes(score, text, mask))
    return "the falls of two texts, with a token that stands twice."


def _occluded(score: _Score, tokens: Tensor, value: int) -> Tensor:
    """The scores of the texts with one token replaced: (tokens,)."""
    texts = tokens.repeat(len(tokens), 1).fill_diagonal_(value)
    return torch.tensor([score(text) for text in texts], dtype=torch.float64)


def _fall_mistakes(score: _Score, tokens: Tensor, mask: int) -> list[Mistake]:
    """Wrong falls of the text `tokens` (tokens,), the likeliest first."""
    whole, places = score(tokens), range(len(tokens))
    hidden = _occluded(score, tokens, mask)
    right = whole - hidden

    def scores(texts: Iterable[Tensor]) -> Tensor:
        return torch.tensor([score(text) for text in texts], dtype=torch.float64)

    def masked(at: Tensor) -> Tensor:
        return tokens.masked_fill(at, mask)

    index = torch.arange(len(tokens))
    growing = scores(masked(index <= place) for place in places)
    before = torch.cat([torch.tensor([whole], dtype=torch.float64), growing[:-1]])
    alone = scores(masked(index != place) for place in places)
    twins = scores(masked(tokens == token) for token in tokens)
    cut = scores(torch.cat([tokens[:p], tokens[p + 1 :]]) for p in places)
    kept = "The masks of earlier places are still there"
    signs = "A fall below 0 is a finding: the token spoke against, as a negation does."
    sizes = "Return the falls themselves, in the units of the score."
    return [
        Mistake(
            -right,
            "The sign is wrong: a fall is the whole text's score minus the other.",
        ),
        Mistake(
            whole - growing,
            f"{kept}: one text is changed again and again.",
            ANEW,
        ),
        Mistake(growing - whole, f"{kept}, and the sign is wrong.", ANEW),
        Mistake(
            before - growing,
            f"{kept}: each fall is counted from the text before.",
            ANEW,
        ),
        Mistake(
            torch.zeros_like(right),
            "All falls are 0: both scores are of the same text. Without a copy, the "
            "text itself is changed.",
            ANEW,
        ),
        Mistake(whole - cut, "The token is deleted: replace it by the mask token."),
        Mistake(
            whole - _occluded(score, tokens, 0),
            "The token is replaced by 0, the padding, not by the mask token.",
        ),
        Mistake(
            whole - twins,
            "A token that stands twice is replaced in both places: go by place.",
            ANEW,
        ),
        Mistake(
            whole - alone, "All other tokens are masked: mask the one alone.", ANEW
        ),
        Mistake(alone, "These are scores of single tokens, the others masked.", ANEW),
        Mistake(hidden, "These are the scores: subtract them from the text's own."),
        Mistake(growing, f"These are scores, no falls. {kept}.", ANEW),
        Mistake(right.abs(), f"The sign is lost. {signs}"),
        Mistake(right.clamp(min=0), f"Falls below 0 are set to 0. {signs}"),
        Mistake(right**2, f"The falls are squared. {signs}"),
        Mistake(right / whole, f"The falls are divided by the score. {sizes}"),
        Mistake(right / right.sum(), f"The falls are divided by their sum. {sizes}"),
        Mistake(
            right / right.abs().sum(), f"The falls are divided by their sum. {sizes}"
        ),
        Mistake(right / right.abs().max(), f"The largest is set to 1. {sizes}"),
        Mistake(right.softmax(0), f"A softmax is taken. {sizes}"),
        Mistake(right.mean(), "One number came: each token has its own fall."),
        Mistake(right[1:], "The first token is left out."),
        Mistake(right[:-1], "The last token is left out."),
        Mistake(right[1:-1], "The first and the last token are left out."),
        Mistake(right.flip(0), "The falls are in reverse order."),
        Mistake(right.sort(descending=True).values, "The falls are sorted: keep them."),
        Mistake(right.roll(1), "Each fall stands one place too late."),
        Mistake(right.roll(-1), "Each fall stands one place too early."),
    ]


# 8. Temperature ----------------------------------------------------------------------

FIT = "Compute the mean cross-entropy of logits / T for many T; keep the best T."
_CLOSE = 0.02  # of the temperature: a grid need not be finer


@TALLY.exercise
def temperature(answer: Answer) -> str:
    """Check `temperature(logits, labels)`, the one number that calibrates.

    `logits` float (rows, classes), `labels` int64 (rows,); the result is T between 0.1
    and 10, to within 2%: the one with the smallest mean cross-entropy of logits / T.
    Oracle: bisection on the derivative by 1 / T, which is monotone. The logits of the
    first case are too large, those of the second too small; in the third the class
    with the largest logit is right in two rows of five only.
    """
    for seed, scale, second in [(0, 2.5, 0.0), (15, 0.6, 0.0), (3, 1.25, 0.4)]:
        logits, labels = _miscalibrated(scale, second, generator(seed))
        _check_temperature(answer.on(logits=logits, labels=labels), logits, labels)
    return (
        "T for logits that are too large, for logits that are too small, and where the "
        "largest is seldom right."
    )


def _miscalibrated(
    scale: float, second: float, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scaled logits (400, 4) and labels; a share `second` of the first are second."""
    logits = 2 * torch.randn(400, 4, generator=draw)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]
    if second:
        order = logits.argsort(dim=-1, descending=True)
        swapped = torch.rand(400, generator=draw) < second
        labels = torch.where(swapped & (labels == order[:, 0]), order[:, 1], labels)
    return scale * logits, labels


def _nats(logits: Tensor, labels: Tensor, value: float) -> float:
    """Mean cross-entropy at a temperature."""
    return float(functional.cross_entropy(logits.double() / value, labels))


def _best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The oracle: where the derivative of the loss by 1 / T is 0."""
    x = logits.double()
    picked = x.gather(1, labels[:, None]).mean()
    low, high = math.log(0.01), math.log(100)
    for _ in range(60):
        middle = (low + high) / 2
        weights = (x / math.exp(middle)).softmax(-1)
        # Above 0: the logits are still too large for T, so T must grow.
        if (weights * x).sum(1).mean() > picked:
            low = middle
        else:
            high = middle
    return math.exp(low)


def _check_temperature(attempt: Attempt, logits: Tensor, labels: Tensor) -> None:
    """Compare T with the best, then with known mistakes, then by its loss."""
    came, best = attempt.number(), _best_temperature(logits, labels)
    if same(came, best, _CLOSE):
        return
    for value, says, look in _temperature_mistakes(logits, labels, best):
        if same(came, value, _CLOSE):
            attempt.fail(f"{says} Expected {shown(best)}, came {shown(came)}.", look)
    if came <= 0 or not math.isfinite(came):
        attempt.fail(f"A temperature is above 0 and finite; came {shown(came)}.", FIT)
    attempt.fail(
        f"T = {shown(came)} is not the best: the mean cross-entropy is "
        f"{_nats(logits, labels, came):.4f} nats, but "
        f"{_nats(logits, labels, best):.4f} at T = {shown(best)}.",
        "Make the search longer, or the grid finer." if came > 0.1 else FIT,
    )


def _temperature_mistakes(
    logits: Tensor, labels: Tensor, best: float
) -> list[WrongNumber]:
    """Wrong values for logits (rows, classes), the likeliest first."""
    x = logits.double()
    edges = "It is an end of the range: the largest loss was sought, not the smallest."
    return [
        (
            1 / best,
            "This is 1 / T: logits are divided by T, not multiplied.",
            FIT,
        ),
        (1.0, "This is 1, where a search starts: nothing was fitted.", FIT),
        (0.1, edges, "Use argmin."),
        (10.0, edges, "Use argmin."),
        (math.log(best), "This is log T: take exp of it.", FIT),
        (_nats(logits, labels, best), "This is the loss at the best T.", "Return T."),
        (
            _brier_temperature(x, labels),
            "This T minimises squared errors: the cross-entropy was asked.",
            FIT,
        ),
        (
            _top_temperature(x, labels),
            "This T fits the largest class alone, right or wrong: the cross-entropy "
            "is at the label, whichever class that is.",
            FIT,
        ),
        (
            _best_temperature(x.softmax(-1), labels),
            "The logits are probabilities already: the softmax is taken twice.",
            "Give cross_entropy logits / T.",
        ),
        (float(x.std()), "This is the spread of the logits: the labels count.", FIT),
        (best**2, "T is squared: divide the logits by T once.", FIT),
        (math.sqrt(best), "This is the root of T: divide the logits by T once.", FIT),
    ]


def _brier_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest mean squared error of the probabilities."""
    truth = functional.one_hot(labels, logits.shape[1])
    return _smallest(lambda t: (((logits / t).softmax(-1) - truth) ** 2).mean())


def _top_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest binary cross-entropy of the largest class."""
    right = (logits.argmax(-1) == labels).double()

    def loss(value: float) -> Tensor:
        top = (logits / value).softmax(-1).amax(-1)
        return functional.binary_cross_entropy(top, right)

    return _smallest(loss)


def _smallest(loss: Callable[[float], Tensor]) -> float:
    """The temperature of a grid from 0.1 to 10 with the smallest loss."""
    grid = torch.logspace(-1, 1, 401, dtype=torch.float64).tolist()
    return grid[int(torch.stack([loss(value) for value in grid]).argmin())]


# 9. Masked words ---------------------------------------------------------------------

SELECT = "Draw one number for each place; chosen are those below 0.15, but no special."
SPLIT = "Draw a second number for each place: below 0.8, 0.8 to 0.9, and above."
LABELS = "Labels are the tokens as they were, -100 where a place is not chosen."
_CLS, _SEP, _MASK = 2, 3, 4
_WORDS, _VOCABULARY = (5, 300), 1000  # the texts use the first words only
# Mean squares of standardized counts are 1 by chance, to within 0.1 or so.
_LITTLE, _MUCH = 0.5, 1.6


@TALLY.exercise
def mask_words(answer: Answer) -> str:
    """Check `mask_words(batch, special, mask, vocabulary, seed)`, BERT's own task.

    `batch` int64 (texts, tokens); `special` bool of the same shape, True where no word
    stands; the result is a pair of the same shape: inputs and labels. 15% of the words
    are chosen, each by itself; of them 80% become `mask`, 10% any token below
    `vocabulary`, 10% stay. Labels are -100 where nothing is chosen. Shares are
    compared on some 16,000 words, with five standard errors of room; so is how often
    neighbours are chosen together, and how numbers of chosen words spread over texts
    and over the words of the vocabulary.
    """
    batch, special = _texts(generator())
    inputs = {"batch": batch, "special": special}
    inputs |= {"mask": _MASK, "vocabulary": _VOCABULARY}  # type: ignore[dict-item]
    attempt = answer.on(**inputs, seed=0)
    masked, labels = _masked_pair(attempt, batch)
    _check_labels(attempt, masked, labels, batch)
    chosen = labels != IGNORED
    _check_chosen(attempt, chosen, special, batch, masked)
    _check_by_itself(attempt, chosen, special)
    _check_by_word(attempt, chosen, batch, masked)
    _check_shares(attempt, masked, chosen, batch)
    _check_random_words(attempt, masked[chosen], batch[chosen])
    _check_mask_seeds(answer, inputs, masked)
    return (
        "labels, special tokens, that words are drawn one by one, the shares 15% and "
        "80/10/10, the random words, and the seed."
    )


def _texts(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts with [CLS], [SEP] and padding, and where these stand."""
    size = (200, 120)
    batch = torch.randint(*_WORDS, size, generator=draw)
    lengths = torch.randint(40, size[1] + 1, (size[0], 1), generator=draw)
    lengths[:4] = size[1]  # some without padding, to compare their places
    place = torch.arange(size[1])
    batch[:, 0] = _CLS
    batch = batch.masked_fill(place == lengths - 1, _SEP).masked_fill(
        place >= lengths, 0
    )
    return batch, batch < _WORDS[0]


def _masked_pair(attempt: Attempt, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels as int64, of the batch's shape; fails unless they are."""
    pair = []
    for name, part in zip(
        ("inputs", "labels"), _two(attempt, "inputs and labels"), strict=True
    ):
        value = as_tensor(part)
        if value is None or value.shape != batch.shape:
            attempt.fail(
                f"The {name} must have the shape of the batch, {tuple(batch.shape)}: "
                f"came {sized(part)}."
            )
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            attempt.fail(f"Tokens are whole numbers: the {name} came as {value.dtype}.")
        pair.append(value.long())
    return pair[0], pair[1]


def _check_labels(
    attempt: Attempt, masked: Tensor, labels: Tensor, batch: Tensor
) -> None:
    """What the labels hold, whatever was drawn."""
    chosen, changed = labels != IGNORED, masked != batch
    if (masked == IGNORED).any():
        if chosen.all():
            attempt.fail("Inputs and labels are exchanged: inputs come first.")
        attempt.fail("The inputs hold -100, which is no token.", LABELS)
    if chosen.all():
        attempt.fail(f"{_unhidden(masked, labels, batch)} Expected -100.", LABELS)
    if not chosen.any():
        attempt.fail("No label is left: every one is -100.", LABELS)
    if not changed.any():
        attempt.fail("The inputs are as they were: nothing is masked.", SPLIT)
    if not (changed & chosen).any():
        attempt.fail(
            "-100 stands where words were chosen: it belongs everywhere else.", LABELS
        )
    if not torch.equal(labels[chosen], batch[chosen]):
        attempt.fail(_wrong_label(masked[chosen], labels[chosen]), LABELS)
    if (changed & ~chosen).any():
        attempt.fail(
            "A token is changed that has no label. Random words have one, too: the "
            "model must learn to doubt what it reads.",
            LABELS,
        )


def _unhidden(masked: Tensor, labels: Tensor, batch: Tensor) -> str:
    """What stands in labels without any -100, as a sentence."""
    if torch.equal(labels, batch):
        return "Every token has a label: a model would be paid for copying."
    if torch.equal(labels, masked):
        return "The labels are the masked inputs."
    if (labels == 0).double().mean() > 0.5:
        return "Labels are 0 where nothing is chosen: cross-entropy would count them."
    return "Every token has a label."


def _wrong_label(masked: Tensor, labels: Tensor) -> str:
    """What stands in the labels of chosen words, as a sentence."""
    if torch.equal(labels, masked):
        return (
            "The labels hold what is in the inputs after masking: the model is asked "
            "for [MASK]. Take them from the batch, before it is changed."
        )
    if len(labels.unique()) == 1:
        return f"The labels of chosen words are all {int(labels[0])}."
    return "A label is not the token that stood there."


def _check_chosen(
    attempt: Attempt, chosen: Tensor, special: Tensor, batch: Tensor, masked: Tensor
) -> None:
    """No special token is chosen, and places are drawn one by one."""
    if (chosen & special).any():
        row, column = (int(at[0]) for at in torch.where(chosen & special))
        name = {0: "padding", _CLS: "[CLS]", _SEP: "[SEP]"}[int(batch[row, column])]
        attempt.fail(
            f"A special token is chosen: {name} in row {row}, column {column}.", SELECT
        )
    if not (chosen | special).all() and (chosen | special).all(1).any():
        attempt.fail("Whole texts are chosen: draw for each token.", SELECT)
    texts = chosen[:4, 1:-1]  # without padding
    if not texts.all() and (texts == texts[0]).all():
        attempt.fail(
            "The same places are chosen in every text: draw for each token, with the "
            "shape of the batch.",
            SELECT,
        )
    for axis, name in ((1, "a whole text"), (0, "a place in every text")):
        if _alike((masked == _MASK) & chosen, chosen, axis):
            attempt.fail(f"One draw decides for {name}: draw for each word.", SPLIT)


def _check_by_itself(attempt: Attempt, chosen: Tensor, special: Tensor) -> None:
    """Neighbours are chosen together, and texts differ, as chance has it."""
    words = ~special
    pairs = words[:, 1:] & words[:, :-1]
    share = float(chosen[words].double().mean())
    together = float((chosen[:, 1:] & chosen[:, :-1])[pairs].double().mean())
    # A word is in two pairs, so that pairs are not independent.
    variance = share**2 * (1 - share**2) + 2 * share**3 * (1 - share)
    told = f"{together:.1%} of neighbours are chosen together. Expected {share**2:.1%}."
    if abs(together - share**2) > _FIVE_SIGMA * math.sqrt(variance / int(pairs.sum())):
        attempt.fail(f"Words are not chosen each by itself: {told}", SELECT)
    spread = _spread(chosen.sum(1), words.sum(1))
    if spread <= _LITTLE:
        attempt.fail(
            "Texts of one length have nearly the same number of chosen words: each "
            "word is chosen by itself, so that these numbers vary.",
            SELECT,
        )
    if spread >= _MUCH:
        attempt.fail(
            "Some texts have far more chosen words than others of their length: each "
            "word is chosen by itself.",
            SELECT,
        )


def _check_by_word(
    attempt: Attempt, chosen: Tensor, batch: Tensor, masked: Tensor
) -> None:
    """The word itself does not decide what becomes of it."""
    hidden = chosen & (masked == _MASK)
    other = chosen & ~hidden & (masked != batch)
    for part, of, what in (
        (chosen, batch >= _WORDS[0], "whether it is chosen"),
        (hidden, chosen, "whether it is masked"),
        (other, chosen & ~hidden, "whether it becomes a random one"),
    ):
        counts = [batch[at].bincount(minlength=_WORDS[1]) for at in (part, of)]
        if not _LITTLE < _spread(*counts) < _MUCH:
            attempt.fail(
                f"The word decides {what}, for all its places at once: draw for each "
                "place.",
                SELECT if part is chosen else SPLIT,
            )


def _spread(counts: Tensor, totals: Tensor) -> float:
    """Mean of the squared z of counts, if each had the share of all; 1 by chance."""
    counts, totals = counts[totals > 0].double(), totals[totals > 0].double()
    share = counts.sum() / totals.sum()
    if not 0.01 < share < 0.99:
        return 1.0  # nothing varies: that is told elsewhere
    gaps = counts - share * totals
    return float((gaps**2 / (totals * share * (1 - share))).mean())


def _alike(hidden: Tensor, chosen: Tensor, axis: int) -> bool:
    """Whether along an axis all that is chosen is masked or nothing, nearly always."""
    if not 0.3 < hidden[chosen].double().mean() < 0.97:
        return False  # hardly any mask, or little else: that is told elsewhere
    alike = (hidden.sum(axis) == 0) | (hidden.sum(axis) == chosen.sum(axis))
    return bool(alike[chosen.sum(axis) >= 5].double().mean() > 0.9)


def _check_shares(
    attempt: Attempt, masked: Tensor, chosen: Tensor, batch: Tensor
) -> None:
    """15% of the words, and 80/10/10 of these."""
    words, count = int((batch >= _WORDS[0]).sum()), int(chosen.sum())
    hidden = (masked == _MASK)[chosen].double().mean()
    stay = (masked == batch)[chosen].double().mean()
    came = [float(hidden), float(1 - hidden - stay), float(stay)]
    percents = "{:.0%} are masked, {:.0%} random, {:.0%} as they were".format(*came)
    told = f"Of the chosen, {percents}."
    share, fewer = count / words, 0.9 * 0.15
    if _near(came, [8 / 9, 1 / 9, 0.0], count) and abs(share - fewer) < 0.0075:
        unlabelled = "The tenth that stays has no label: it is chosen, too."
        attempt.fail(f"{unlabelled} {told}", SPLIT)
    if not _near([share], [0.15], words):
        why = _why(share, words)
        attempt.fail(f"{share:.1%} of the words are chosen. {why}", SELECT)
    if not _near(came, [0.8, 0.1, 0.1], count):
        known = (says for *shares, says in _KINDS if _near(came, shares, count))
        says = next(known, "The shares must be 80%, 10%, 10%.")
        attempt.fail(f"{says} {told}", SPLIT)


def _near(came: list[float], wanted: list[float], count: int) -> bool:
    """Whether shares of so many draws may have come from the wanted ones."""
    # A share of 0 has room, too: one random token of a thousand is the mask, or the
    # token that stood there.
    return all(
        abs(c - w) <= _FIVE_SIGMA * math.sqrt(max(w * (1 - w), 4e-3) / count)
        for c, w in zip(came, wanted, strict=True)
    )


def _why(share: float, words: int) -> str:
    """What a wrong share of chosen words comes from, as a sentence."""
    for wanted, says in _SHARES.items():
        if _near([share], [wanted], words):
            return says
    return "Expected 15%."


_SHARES = {
    0.85: "The comparison is the wrong way round.",
    1.0: "Expected 15%: every word is chosen.",
    0.12: "Expected 15%: only those are labelled that become the mask token.",
    0.015: "Expected 15%, a share of 0.15, not 0.015.",
    0.8: "Expected 15%: 80% is the share of these that are masked.",
}
# Wrong shares of mask, random and kept words.
_KINDS: list[tuple[float, float, float, str]] = [
    (1.0, 0.0, 0.0, "Every chosen word is masked: a tenth is random, a tenth stays."),
    (0.8, 0.2, 0.0, "No chosen word stays as it was: a tenth does."),
    (0.8, 0.0, 0.2, "No chosen word becomes a random one: a tenth does."),
    (
        0.8,
        0.02,
        0.18,
        "A tenth of the last fifth is random: it is a tenth of all that are chosen, "
        "half of that fifth.",
    ),
    (0.8, 0.18, 0.02, "A tenth of the last fifth stays: it is half of that fifth."),
    (0.72, 0.1, 0.18, "Random words overwrite masks: the two draws are not apart."),
    (0.72, 0.18, 0.1, "Random words overwrite masks: the two draws are not apart."),
    (0.9, 0.1, 0.0, "Nine tenths are masked, and none stays as it was."),
    (0.9, 0.0, 0.1, "Nine tenths are masked, and none becomes a random word."),
    (0.1, 0.8, 0.1, "The shares are exchanged: 80% are masked."),
    (0.1, 0.1, 0.8, "The shares are exchanged: 80% are masked, a tenth stays."),
    (0.0, 1.0, 0.0, "Every chosen word becomes a random one."),
]


def _check_random_words(attempt: Attempt, masked: Tensor, batch: Tensor) -> None:
    """Random words are any tokens of the vocabulary, drawn one by one."""
    words = masked[(masked != _MASK) & (masked != batch)]
    look = "torch.randint(vocabulary, batch.shape, generator=...)"
    if ((words < 0) | (words >= _VOCABULARY)).any():
        attempt.fail(
            f"A random word is {int(words.min())} or {int(words.max())}: tokens are "
            f"0 to {_VOCABULARY - 1}.",
            look,
        )
    if len(words.unique()) == 1:
        attempt.fail("The random word is the same everywhere: draw one each.", look)
    high = float((words >= _VOCABULARY // 2).double().mean())
    if not 0.3 < high < 0.7:
        attempt.fail(
            "Random words do not come from the whole vocabulary: "
            f"{high:.0%} are in its upper half.",
            look,
        )
    if len(words.unique()) < 0.75 * len(words):
        attempt.fail("Random words repeat: draw one for each place.", look)


def _check_mask_seeds(
    answer: Answer, inputs: dict[str, Tensor], before: Tensor
) -> None:
    """Equal seeds, equal masks; other seeds, other masks."""
    for seed in (0, 1):
        attempt = answer.on(**inputs, seed=seed)
        again, _ = _masked_pair(attempt, before)
        if seed == 0 and not torch.equal(again, before):
            attempt.fail(
                "Two calls with the same seed differ.",
                "Give every draw generator=torch.Generator().manual_seed(seed).",
            )
        if seed == 1 and torch.equal(again, before):
            attempt.fail(
                "Every seed chooses the same words: a model would see each text with "
                "the same gaps in every epoch.",
                "Give every draw generator=torch.Generator().manual_seed(seed).",
            )


# 10. An interval by patient ----------------------------------------------------------

RESAMPLE = "A draw is as many patients as there are, with replacement, and their rows."
ENDS = "the lower and the upper end"
_DRAWS = 4000


@TALLY.exercise
def patient_interval(answer: Answer) -> str:
    """Check `patient_interval(right, patients, draws, seed)`, a 95% interval.

    `right` float (rows,), 1 where a prediction is right and else 0; `patients` int64
    (rows,), whose row it is; the result is a pair, the 2.5% and the 97.5% quantile of
    the accuracy over all rows of the patients drawn. Oracle: the same with 20,000 draws
    of its own; a fifth of a standard error is left to chance, or more where the ends
    vary more. Rows of one patient are alike, and patients with many rows are predicted
    worse. In the second set two patients have most of the errors, so that the
    accuracies drawn are skewed.
    """
    for seed, skewed, room in ((0, False, 0.2), (2, True, 0.3)):
        right, patients = _predictions(generator(seed), skewed)
        attempt = answer.on(right=right, patients=patients, draws=_DRAWS, seed=seed)
        came = _two_numbers(attempt, ENDS)
        _check_interval(attempt, came, right, patients, room)
    _check_interval_seeds(answer, right, patients)
    return "both ends for two sets of patients, and the seed."


def _predictions(draw: torch.Generator, skewed: bool) -> tuple[Tensor, Tensor]:
    """Right or wrong, and whose row: 40 patients, the rows of each nearly alike."""
    often = torch.cat([torch.full((30,), 6), torch.full((10,), 25)])
    chance = torch.where(torch.rand(40, generator=draw) < 0.7, 0.96, 0.15)
    chance[30:] -= 0.1
    if skewed:
        chance = torch.full((40,), 0.98)
        chance[[20, 30]] = 0.05  # one of the patients with 6 rows, one of those with 25
    names = 300 + torch.randperm(500, generator=draw)[:40]
    patients = names.repeat_interleave(often)
    hits = torch.rand(len(patients), generator=draw) < chance.repeat_interleave(often)
    order = torch.randperm(len(patients), generator=draw)
    return hits[order].float(), patients[order]


def _check_interval(
    attempt: Attempt, came: Numbers, right: Tensor, patients: Tensor, room: float
) -> None:
    """Accept what is near the oracle; else name the mistake that is nearest.

    `room` is in standard errors: what `_DRAWS` draws leave to chance, and more.
    """
    drawn = _resampled(right, patients)
    expected, spread = _ends(drawn), float(drawn.std())

    def far(pair: Numbers) -> float:
        gaps = [abs(a - b) for a, b in zip(came, pair, strict=True)]
        return max(gaps) / spread

    if far(expected) <= room:
        return
    told = f"Expected about {_both_shown(expected)}, came {_both_shown(came)}."
    if not all(map(math.isfinite, came)):
        attempt.fail(f"An end is not a number. {told}", RESAMPLE)
    others = _wrongly_resampled(right, patients)
    mistakes = _interval_mistakes(right, drawn, others)
    pair, says, look = min(mistakes, key=lambda mistake: far(mistake[0]))
    if far(pair) <= room:
        attempt.fail(f"{says} {told}", look)
    if came[1] > 2:
        attempt.fail(f"This is in per cent: return shares. {told}")
    low, high = _ends(drawn, 0.998)
    if came[0] < low and came[1] > high:
        extremes = "These are the extremes of all draws, or nearly"
        attempt.fail(f"{extremes}: leave 2.5% out on each side. {told}", RESAMPLE)
    attempt.fail(f"The interval is wrong. {told}", RESAMPLE)


def _ends(values: Tensor, level: float = 0.95) -> Numbers:
    """The quantiles that leave half of 1 - level out on each side."""
    tail = (1 - level) / 2
    return float(values.quantile(tail)), float(values.quantile(1 - tail))


def _by_patient(right: Tensor, patients: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and right rows of each patient, in double precision."""
    _, person = patients.unique(return_inverse=True)
    return person.bincount().double(), person.bincount(weights=right.double())


def _drawn_people(people: int) -> Tensor:
    """The oracle's draws: (draws, people), the same at every call."""
    return torch.randint(people, (20_000, people), generator=generator(7))


def _resampled(right: Tensor, patients: Tensor) -> Tensor:
    """The oracle: accuracies over the rows of drawn patients."""
    rows, hits = _by_patient(right, patients)
    drawn = _drawn_people(len(rows))
    return hits[drawn].sum(1) / rows[drawn].sum(1)


def _wrongly_resampled(right: Tensor, patients: Tensor) -> dict[str, Tensor]:
    """Accuracies of as many draws of other, wrong, kinds."""
    rows, hits = _by_patient(right, patients)
    drawn, draw = _drawn_people(len(rows)), generator(8)
    once = torch.zeros(drawn.shape).scatter(1, drawn, 1.0).double()
    # Rows drawn one by one are right as often as a coin of their share is.
    share, total = right.double().mean(), len(right)
    single = torch.full((len(drawn),), float(total), dtype=torch.float64)
    rows_alone = torch.binomial(single, share.expand(len(drawn)), generator=draw)
    shares = (hits / rows).expand(drawn.shape)
    within = torch.binomial(rows.expand(drawn.shape), shares, generator=draw)
    often = rows.multinomial(drawn.numel(), replacement=True, generator=draw)
    often = often.view(drawn.shape)
    return {
        "rows": rows_alone / total,
        "often": hits[often].sum(1) / rows[often].sum(1),
        "within": within.sum(1) / total,
        "once": (once * hits).sum(1) / (once * rows).sum(1),
        "means": (hits / rows)[drawn].mean(1),
    }


def _interval_mistakes(
    right: Tensor, drawn: Tensor, others: dict[str, Tensor]
) -> list[WrongPair]:
    """Wrong intervals; `drawn` is right, `others` the accuracies of wrong draws."""
    low, high = _ends(drawn)
    mean, spread = float(right.double().mean()), float(drawn.std())
    error = 1.96 * spread / math.sqrt(_DRAWS)
    found = [
        (
            _ends(others["rows"]),
            "The interval is as narrow as if rows were drawn one by one: draw "
            "patients, as many as there are, for rows of one patient are alike.",
        ),
        (
            _ends(others["within"]),
            "Rows are drawn within each patient, and the patients stay the same: other "
            "patients are what the interval is about.",
        ),
        (
            _ends(others["once"]),
            "A patient drawn twice counts once: the interval is too narrow. With isin "
            "or a set, repetitions are lost.",
        ),
        (
            _ends(others["means"]),
            "Every patient counts the same: it is a mean of patients' accuracies, not "
            "the accuracy of all rows drawn.",
        ),
        (
            _ends(others["often"]),
            "Patients with many rows are drawn more often: draw from the patients, "
            "each with the same chance.",
        ),
        (
            (mean - error, mean + error),
            "The spread is divided by the root of the draws: more draws do not make "
            "the patients more.",
        ),
        ((mean, mean), "Both ends are the accuracy itself: nothing was drawn."),
        (_ends(drawn, 0.9), "This is a 90% interval: leave 2.5% out on each side."),
        (_ends(drawn, 0.99), "This is a 99% interval: leave 2.5% out on each side."),
        (_ends(drawn, 0.5), "These are the quartiles: leave 2.5% out on each side."),
        (
            (mean - spread, mean + spread),
            "This is one standard error to each side: take 2.5% and 97.5%.",
        ),
        (
            (mean - 1.96 * spread, mean + 1.96 * spread),
            "This is 1.96 standard errors to each side, as if the accuracies drawn "
            "were normal: here they are skewed. Take their quantiles.",
        ),
        (
            (2 * mean - high, 2 * mean - low),
            "This is the basic bootstrap, mirrored at the accuracy: return the "
            "quantiles of the draws themselves.",
        ),
        ((high, low), "The ends are exchanged: the lower one comes first."),
        ((1 - high, 1 - low), "These are the ends for the errors, not the accuracy."),
        (
            (float(drawn.quantile(0.05)), 1.0),
            "The interval is open at the top: it has two ends.",
        ),
        ((mean, spread), "These are a mean and a standard error, not two ends."),
    ]
    return [(pair, says, RESAMPLE) for pair, says in found]


def _check_interval_seeds(answer: Answer, right: Tensor, patients: Tensor) -> None:
    """Equal seeds, equal intervals; other seeds, others."""
    found = []
    for seed in (3, 3, 4):
        attempt = answer.on(right=right, patients=patients, draws=50, seed=seed)
        found.append(_two_numbers(attempt, ENDS))
    look = "Draw from torch.Generator().manual_seed(seed)."
    if found[0] != found[1]:
        attempt.fail("Two calls with the same seed differ.", look)
    if found[0] == found[2]:
        attempt.fail("Every seed gives the same interval: the seed is not used.", look)
