"""Checkers for the exercises on language models: they explain what is wrong.

Every checker takes the learner's function and returns a `core.Result`. The oracles are
torch's own functions, loops over single entries, and the course's own modules; the
wrong answers are computed beside them, on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medlm_utils.checks.core import (
    Answer,
    Attempt,
    Mistake,
    Tally,
    WrongNumber,
    generator,
    kind,
    same,
    shown,
)
from medlm_utils.text import END, IGNORED, PAD, START, inputs_and_targets
from medlm_utils.training import warm_up_cosine

TALLY = Tally("A Transformer language model")

LN2 = math.log(2)


def summary() -> None:
    """Print how many of the chapter's exercises are answered."""
    TALLY.summary()


# 1. Shift ----------------------------------------------------------------------------

ONE_SHIFT = "Inputs are all columns but the last, targets all columns but the first."
HIDE = "Where the target is 0, put -100; leave every other target as it is."
Pair = tuple[Tensor, Tensor]


@TALLY.exercise
def shift(answer: Answer) -> str:
    """Check `shift(batch)`, what a language model reads and what it must predict.

    `batch` int64 (batch, tokens), documents that end in padding, 0; the result is
    inputs and targets, (batch, tokens - 1) each, the targets -100 where they would be
    padding. Oracle: `text.inputs_and_targets`. One batch has no padding, and in one
    the longest padding is all but the first two tokens.
    """
    for lengths in [(7, 5, 4), (6, 6), (9, 2)]:
        batch = _documents(lengths, generator())
        attempt = answer.on(batch=batch)
        _check_pair(attempt, _pair(attempt), inputs_and_targets(batch), batch)
    return "inputs and targets of three batches, one of them without padding."


def _documents(lengths: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Documents of so many tokens, start and end among them, padded with 0."""
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        words = torch.randperm(40, generator=draw)[: length - 2] + END + 1
        batch[row, :length] = torch.tensor([START, *words.tolist(), END])
    return batch


def _pair(attempt: Attempt) -> Pair:
    """The two tensors of the answer; fails unless there are two of whole numbers."""
    value = attempt.value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        attempt.fail(
            f"Expected inputs and targets, a pair of tensors, came {kind(value)}.",
            "Write `return inputs, targets`.",
        )
    for name, part in zip(("inputs", "targets"), value, strict=True):
        if not isinstance(part, Tensor):
            attempt.fail(f"Expected a tensor of {name}, came {kind(part)}.")
        if part.dtype != torch.int64:
            type_name = str(part.dtype).removeprefix("torch.")
            attempt.fail(f"Tokens are int64: the {name} came as {type_name}.")
    return value[0].detach().cpu(), value[1].detach().cpu()


def _check_pair(attempt: Attempt, came: Pair, expected: Pair, batch: Tensor) -> None:
    """Known mistakes first, then what is wrong with the one or the other tensor."""
    if all(map(torch.equal, came, expected)):
        return
    for inputs, targets, says, look in _shift_mistakes(batch):
        if torch.equal(came[0], inputs) and torch.equal(came[1], targets):
            attempt.fail(says, look)
    if came[1].shape == expected[1].shape:
        _check_hidden(attempt, came[1], expected[1])
    for name, one, right in zip(("inputs", "targets"), came, expected, strict=True):
        if (one == IGNORED).any() and name == "inputs":
            attempt.fail(
                "The inputs hold -100, which is no token: a model cannot look it up.",
                "Writing into a slice changes the batch, and so the inputs: use "
                "masked_fill, or clone() first.",
            )
        if one.shape != right.shape:
            attempt.fail(
                f"The {name} have a wrong shape: expected {tuple(right.shape)}, came "
                f"{tuple(one.shape)}.",
                ONE_SHIFT,
            )
        if not torch.equal(one, right):
            attempt.fail(f"The {name} are wrong.", ONE_SHIFT)


def _check_hidden(attempt: Attempt, came: Tensor, expected: Tensor) -> None:
    """Whether -100 stands where padding would be a target, and nowhere else."""
    hidden, right = came == IGNORED, expected == IGNORED
    if torch.equal(hidden, right) or not hidden.any():
        return
    row, column = (int(place[0]) for place in torch.where(hidden != right))
    where = f"in row {row}, column {column}"
    if hidden[row, column]:
        attempt.fail(f"A real target is hidden by -100 {where}.", HIDE)
    attempt.fail(f"Padding is a target, without -100, {where}.", HIDE)


def _shift_mistakes(batch: Tensor) -> list[tuple[Tensor, Tensor, str, str]]:
    """Wrong inputs and targets of a batch, with the mistake and where to look."""
    early, late = batch[:, :-1], batch[:, 1:]
    targets = late.masked_fill(late == PAD, IGNORED)
    hidden = batch.masked_fill(batch == PAD, IGNORED)
    copy = "Nothing is shifted: each token is its own target, and a model only copies."
    keep = "The last column of the inputs has no target: leave it out."
    mistakes = [
        (batch, batch, copy, ONE_SHIFT),
        (early, early, copy, ONE_SHIFT),
        (late, late, copy, ONE_SHIFT),
        (
            batch,
            hidden,
            f"{copy} Models of transformers shift inside; here you do it.",
            ONE_SHIFT,
        ),
        (early, hidden[:, :-1], copy, ONE_SHIFT),
        (late, early, "It is shifted the wrong way: the targets come first.", ""),
        (
            late,
            hidden[:, :-1],
            "It is shifted the wrong way: the targets come first.",
            ONE_SHIFT,
        ),
        (targets, early, "Inputs and targets are exchanged.", "Return inputs first."),
        (batch[:, :-2], batch[:, 2:], "It is shifted twice.", ONE_SHIFT),
        (batch[:, :-2], hidden[:, 2:], "It is shifted twice.", ONE_SHIFT),
        (
            batch,
            batch.roll(-1, dims=1),
            "roll brings the first token back as the last target.",
            ONE_SHIFT,
        ),
        (
            batch,
            hidden.roll(-1, dims=1),
            "roll brings the first token back as the last target.",
            ONE_SHIFT,
        ),
        (batch, late, "The inputs are one column too long.", keep),
        (batch, targets, "The inputs are one column too long.", keep),
        (
            early,
            late.masked_fill(early == PAD, IGNORED),
            "-100 stands where the input is padding: the first padding of a row is "
            "still a target.",
            HIDE,
        ),
    ]
    if bool((late == PAD).any()):
        kept = "Padding is still a target: a model would be paid for predicting 0."
        mistakes.append((early, late, kept, HIDE))
    return mistakes


# 2. Nats per token -------------------------------------------------------------------

POOL = "Add up -log p of all targets that are not -100, then divide by their number."


@TALLY.exercise
def nats_per_token(answer: Answer) -> str:
    """Check `nats_per_token(logits, targets)`, the loss that the course reports.

    `logits` float (batch, tokens, vocabulary), `targets` int64 (batch, tokens), -100
    at padding; the result is one number: total nats over total targets. Oracle:
    `F.cross_entropy`. The rows have different lengths, so that a mean of their means
    shows; one row has no target at all; in the last batch the logits are large.
    """
    draw = generator()
    for lengths in [(5, 3, 1), (6, 0, 2)]:
        logits = 1.5 * torch.randn(len(lengths), max(lengths), 7, generator=draw)
        targets = _targets(lengths, 7, draw)
        attempt = answer.on(logits=logits, targets=targets)
        expected = float(_pooled(logits, targets))
        attempt.equals_number(expected, _nats_mistakes(logits, targets))
    _check_large_logits(answer, draw)
    return (
        "values for rows of different lengths, for a row without targets, and for "
        "large logits."
    )


def _targets(
    lengths: tuple[int, ...], vocabulary: int, draw: torch.Generator
) -> Tensor:
    """Targets (rows, longest), -100 after the end of each row; 0 is a token here."""
    size = (len(lengths), max(lengths))
    targets = torch.randint(0, vocabulary, size, generator=draw)
    targets[0, 0] = 0  # one at least, in a row that is never empty
    past = torch.arange(size[1]) >= torch.tensor(lengths)[:, None]
    return targets.masked_fill(past, IGNORED)


def _pooled(logits: Tensor, targets: Tensor) -> Tensor:
    """The oracle: mean nats of all targets together."""
    return functional.cross_entropy(
        logits.double().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
    )


def _check_large_logits(answer: Answer, draw: torch.Generator) -> None:
    """Logits of 200 and -200: right on paper is not enough there."""
    logits = 200 * torch.randn(2, 3, 7, generator=draw).sign()
    targets = _targets((3, 2), 7, draw)
    attempt = answer.on(logits=logits, targets=targets)
    came, expected = attempt.number(), float(_pooled(logits, targets))
    if not same(came, expected):
        attempt.fail(
            "With logits of 200 and -200 the value is wrong: exp overflows, or a "
            "probability becomes 0 and its logarithm -inf. "
            f"Expected {shown(expected)}, came {shown(came)}.",
            "Use log_softmax or cross_entropy on the logits.",
        )


def _nats_mistakes(logits: Tensor, targets: Tensor) -> list[WrongNumber]:
    """Wrong values for logits (batch, tokens, vocabulary), the likeliest first."""
    real, known = targets != IGNORED, targets.clamp(min=0)
    log_p = logits.double().log_softmax(-1)
    every = -log_p.gather(-1, known[..., None])[..., 0]
    nats = every * real
    total, count = nats.sum(), real.sum()
    lengths = real.sum(-1)
    rows = (nats.sum(-1) / lengths)[lengths > 0]
    right = total / count
    double = _pooled(logits.softmax(-1), targets)
    later = targets[:, 1:].contiguous()
    scaled = "Take the logarithm of base e, and no exp at the end."
    values: list[tuple[Tensor, str, str]] = [
        (
            rows.mean(),
            "This is a mean of the rows' means: a short row counts as much as a "
            "long one.",
            POOL,
        ),
        (
            nats.sum(-1).div(lengths.clamp(min=1)).mean(),
            "This is a mean of the rows' means, and a row without targets counts as 0.",
            POOL,
        ),
        (
            (every * (targets > 0)).sum() / (targets > 0).sum(),
            "Targets of 0 are left out: token 0 is a token here, only -100 is padding.",
            POOL,
        ),
        (nats.mean(), "Padding is counted: the divisor is too large.", POOL),
        (every.mean(), "Padding is scored, as if 0 were a target there.", POOL),
        (every.sum() / count, "Padding is scored, as if 0 were a target.", POOL),
        (total, "These are the nats of all targets: divide by their number.", POOL),
        (total / len(targets), "It is divided by the rows, not the targets.", POOL),
        (total / targets.shape[1], "It is divided by the columns.", POOL),
        (right / LN2, "These are bits per token, not nats.", scaled),
        (right.exp(), "This is a perplexity: exp is too much here.", scaled),
        (rows.exp().mean(), "This is a mean of the rows' perplexities.", POOL),
        (rows.exp().mean().log(), "Perplexities are averaged, not nats.", POOL),
        (-right, "The sign is wrong: nats are -log p, and positive.", ""),
        (
            -((-every).exp() * real).sum().div(count).log(),
            "It is the logarithm of a mean probability: take the mean of logarithms.",
            POOL,
        ),
        (
            double,
            "The softmax is taken twice: cross_entropy expects logits.",
            "Give cross_entropy the logits as they are.",
        ),
        (
            functional.cross_entropy(
                logits.double()[:, :-1].flatten(0, 1), later.flatten()
            ),
            "It is shifted once more: these targets are shifted already.",
            "logits[:, t] belong to targets[:, t].",
        ),
    ]
    for dim in (0, 1):
        other = -logits.double().log_softmax(dim).gather(-1, known[..., None])[..., 0]
        says = "The softmax runs over the wrong axis: the vocabulary is the last."
        values.append(((other * real).sum() / count, says, "Use dim=-1."))
    return [(float(value), says, look) for value, says, look in values]


# 3. Perplexity per word --------------------------------------------------------------

PER_WORD = "exp of all nats over all words: the number of tokens does not occur."


@TALLY.exercise
def per_word(answer: Answer) -> str:
    """Check `per_word(nats, words)`, a perplexity that tokenizers share.

    `nats` float (texts, tokens), -log p of each sub-word token and 0 after the end of
    a text; `words` int64 (texts,); the result is one number, the exponential of total
    nats over total words. Oracle: that formula in double precision. The same texts are
    cut twice, into few and into many tokens, which must not matter; the last text is
    so long that the product of its probabilities is 0 in floats.
    """
    draw = generator()
    words = torch.tensor([4, 9, 3])
    nats = _ragged((6, 11, 5), draw)
    for cut in (nats, _cut_finer(nats)):
        attempt = answer.on(nats=cut, words=words)
        attempt.equals_number(_word_perplexity(cut, words), _word_mistakes(cut, words))
    long, many = 2 * torch.rand(1, 4000, generator=draw) + 1, torch.tensor([2500])
    attempt, expected = answer.on(nats=long, words=many), _word_perplexity(long, many)
    came = attempt.number()
    if not same(came, expected, 1e-3):
        attempt.fail(
            "The value is wrong for one text of 2,500 words: the product of many "
            "probabilities is 0 in floats, and exp of many nats is inf. "
            f"Expected {shown(expected)}, came {shown(came)}.",
            "Add nats and divide before you take exp.",
        )
    return "values, the same texts cut into more tokens, and a long text."


def _ragged(lengths: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Nats (texts, longest), 0 after the end of each text."""
    nats = 3 * torch.rand(len(lengths), max(lengths), generator=draw) + 0.3
    past = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return nats.masked_fill(past, 0.0)


def _cut_finer(nats: Tensor) -> Tensor:
    """The same texts in twice the tokens: the first piece of two has most nats."""
    return torch.stack([0.7 * nats, 0.3 * nats], dim=-1).flatten(1)


def _word_perplexity(nats: Tensor, words: Tensor) -> float:
    return math.exp(float(nats.double().sum()) / int(words.sum()))


def _word_mistakes(nats: Tensor, words: Tensor) -> list[WrongNumber]:
    """Wrong values for nats (texts, tokens), the likeliest first."""
    nats = nats.double()
    total, count = float(nats.sum()), int(words.sum())
    tokens = int((nats > 0).sum())
    texts = nats.sum(-1) / words
    pieces = (nats.sum(-1) / (nats > 0).sum(-1)).exp()
    share = total / count
    of_tokens = "A perplexity per token changes with the tokenizer."
    mean = "Add first, over all texts; then divide, then take exp."
    return [
        (math.exp(total / tokens), f"It is divided by tokens. {of_tokens}", PER_WORD),
        (
            math.exp(total / nats.numel()),
            f"It is divided by tokens, padding included. {of_tokens}",
            PER_WORD,
        ),
        (share, "These are nats per word: exp is missing.", PER_WORD),
        (share / LN2, "These are bits per word: exp is missing.", PER_WORD),
        (2**share, "2 is raised to nats: it takes e, or bits.", "Use exp."),
        (
            math.exp(share / LN2),
            "e is raised to bits: it takes 2, or nats.",
            "Use exp(nats).",
        ),
        (math.exp(-share), "The sign is wrong: this is a probability.", PER_WORD),
        (float(texts.exp().mean()), "This is a mean of the texts' perplexities.", mean),
        (
            float(texts.mean().exp()),
            "The texts' nats per word are averaged: a short text counts as much as a "
            "long one.",
            mean,
        ),
        (
            float((texts.exp() * words).sum() / count),
            "This is a mean of the texts' perplexities, though weighted.",
            mean,
        ),
        (
            math.exp(total / tokens) * tokens / count,
            "The perplexity per token is multiplied by tokens per word: nats add up, "
            "perplexities multiply.",
            PER_WORD,
        ),
        (float(pieces.mean()), f"It is a mean over texts, by token. {of_tokens}", mean),
        (math.exp(total / len(words)), "It is divided by the number of texts.", mean),
        (
            float((nats.exp() * (nats > 0)).sum() / tokens),
            "exp of every token is averaged: exp comes last.",
            mean,
        ),
    ]


# 4. Kneser-Ney -----------------------------------------------------------------------

CONTINUE = "A token's share in the second part: how many different tokens it follows."
FREED = "The weight of row v: discount * (different followers of v) / (its total)."


@TALLY.exercise
def bigram_kneser_ney(answer: Answer) -> str:
    """Check `bigram_kneser_ney(counts, discount)`, the interpolated Kneser-Ney bigram.

    `counts` int64 (vocabulary, vocabulary), how often the column's token followed the
    row's; `discount` above 0 and at most 1; the result is float of the same shape,
    p(column | row), each row summing to 1. A row without counts gets the continuation
    shares. Oracle: the formula of Chen & Goodman (1999), entry by entry, in loops.
    """
    for table, discount in [(_TABLE, 0.75), (_LARGER, 0.4), (_TABLE, 1.0)]:
        counts = torch.tensor(table)
        attempt = answer.on(counts=counts, discount=discount)
        expected = _kneser_ney(counts, discount)
        attempt.equals(expected, _kneser_ney_mistakes(counts, discount))
    _check_empty_row(answer)
    return "all entries of two tables, and a table with an empty row."


# Every row has counts. In the first table the third token is frequent but follows one
# token only: its count and its continuation differ much. In the second the first token
# follows nothing, as the start of a text: there q is 0, unless it is smoothed too.
_TABLE = [
    [0, 2, 9, 1],
    [3, 0, 0, 2],
    [1, 4, 0, 1],
    [2, 0, 0, 0],
]
_LARGER = [
    [0, 1, 0, 3, 0],
    [0, 5, 1, 0, 1],
    [0, 2, 0, 1, 0],
    [0, 1, 1, 1, 12],
    [0, 6, 0, 2, 0],
]


def _kneser_ney(counts: Tensor, discount: float) -> Tensor:
    """The oracle, in plain loops: (vocabulary, vocabulary)."""
    table = counts.tolist()
    size = range(len(table))
    pairs = sum(count > 0 for row in table for count in row)
    rows = []
    for row in table:
        total, followers = sum(row), sum(count > 0 for count in row)
        shares = []
        for token in size:
            backed = sum(table[before][token] > 0 for before in size) / pairs
            if total:
                kept = max(row[token] - discount, 0) / total
                shares.append(kept + discount * followers / total * backed)
            else:
                shares.append(backed)
        rows.append(shares)
    return torch.tensor(rows, dtype=torch.float64)


def _kneser_ney_mistakes(counts: Tensor, discount: float) -> list[Mistake]:
    """Wrong tables; every row of `counts` has counts."""
    c, seen = counts.double(), (counts > 0).double()
    total, followers = c.sum(1, keepdim=True), seen.sum(1, keepdim=True)
    kept = (c - discount).clamp(min=0) / total
    freed = discount * followers / total
    backed = seen.sum(0) / seen.sum()
    uniform = torch.full_like(backed, 1 / len(c))
    size = len(c)
    right = kept + freed * backed
    lower = ((seen.sum(0) - discount).clamp(min=0) / seen.sum()) + (
        discount * (seen.sum(0) > 0).sum() / seen.sum() / size
    )
    unseen = (1 - seen) * backed
    only_unseen = kept + freed * unseen / unseen.sum(1, keepdim=True)
    sums = "The rows do not sum to 1"
    return [
        Mistake(
            kept + freed * c.sum(0) / c.sum(),
            "The second part has the unigram: how often a token occurs, not how many "
            "tokens it follows.",
            CONTINUE,
        ),
        Mistake(kept + freed * uniform, "The second part is uniform.", CONTINUE),
        Mistake(
            kept + freed * seen.sum(1) / seen.sum(),
            "The second part counts the followers of a token, not what it follows: "
            "the axis is wrong.",
            CONTINUE,
        ),
        Mistake(
            kept,
            f"{sums}: what the discount frees is not given back.",
            FREED,
        ),
        Mistake(
            kept / kept.sum(1, keepdim=True),
            "What the discount frees goes back to the pairs that were seen: unseen "
            "ones stay at 0.",
            FREED,
        ),
        Mistake(
            c / total + freed * backed,
            f"{sums}: nothing is taken from the counts, but something is added.",
            "Take the discount from each count first, not below 0.",
        ),
        Mistake(
            (c - discount) / total + freed * backed,
            f"{sums}: the discount is taken from counts of 0 too.",
            "max(count - discount, 0).",
        ),
        Mistake(
            (c - discount) / total,
            "The discount is taken from counts of 0 too, and nothing is given back.",
            "max(count - discount, 0).",
        ),
        Mistake(
            kept + discount / total * backed,
            f"{sums}: the discount was taken from every follower, not once a row.",
            FREED,
        ),
        Mistake(
            kept + discount * backed,
            f"{sums}: the weight of the second part is the bare discount.",
            FREED,
        ),
        Mistake(
            kept + discount * size / total * backed,
            f"{sums}: the discount is taken from followers only, not from the whole "
            "vocabulary.",
            FREED,
        ),
        Mistake(
            kept + freed * seen.sum(0) / size,
            f"{sums}: the continuation is divided by the vocabulary, not by the "
            "number of different pairs.",
            CONTINUE,
        ),
        Mistake(
            kept + freed * seen.sum(0) / c.sum(),
            f"{sums}: the continuation is divided by all counts, not by the number of "
            "different pairs.",
            CONTINUE,
        ),
        Mistake(
            kept + freed * seen.sum(0),
            f"{sums}: the continuation counts are not divided by their sum.",
            CONTINUE,
        ),
        Mistake(
            kept + freed * lower,
            "The continuation is discounted as well: the chapter's module does that, "
            "but the formula here does not.",
            CONTINUE,
        ),
        Mistake(
            only_unseen,
            "What is freed goes to unseen pairs only: that is back-off. Interpolated "
            "means that every pair gets its part.",
            FREED,
        ),
        Mistake(c / total, "These are relative frequencies: nothing is discounted."),
        Mistake((c + 1) / (total + size), "This is add-one, not Kneser-Ney."),
        Mistake(
            backed.expand(size, size),
            "This is the second part alone, without the pairs' own counts.",
        ),
        Mistake(right.T, "The table is transposed: rows are the tokens before."),
        Mistake(
            _kneser_ney(counts.T, discount),
            "The counts are read by columns: row v holds what followed v.",
            "Sum over the last axis: dim=1.",
        ),
        Mistake(
            _kneser_ney(counts.T, discount).T,
            "The counts are read by columns: row v holds what followed v.",
            "Sum over the last axis: dim=1.",
        ),
    ]


def _check_empty_row(answer: Answer) -> None:
    """A token that nothing follows: its row is the continuation."""
    counts = torch.tensor([[0, 2, 1], [0, 0, 0], [4, 1, 0]])
    attempt = answer.on(counts=counts, discount=0.75)
    came, expected = attempt.tensor(), _kneser_ney(counts, 0.75)
    look = "Where a row's total is 0, use the continuation shares alone."
    if came.shape == expected.shape and not torch.allclose(
        came[1].double(), expected[1], atol=1e-5
    ):
        attempt.fail(f"{_empty_row(came[1])} Expected the continuation shares.", look)
    attempt.equals(expected, [])


def _empty_row(row: Tensor) -> str:
    """What stands in the row without counts, as a sentence."""
    start = "The row of a token that nothing follows"
    if not row.isfinite().all():
        return f"{start} is divided by 0: its total is 0."
    if not row.any():
        return f"{start} is 0, so that whatever comes next has probability 0."
    if torch.allclose(row, row[0].expand_as(row)):
        return f"{start} is uniform."
    return f"{start} is wrong."


# 5. Learning rate --------------------------------------------------------------------

Curve = Callable[[float], float]


@TALLY.exercise
def learning_rate(answer: Answer) -> str:
    """Check `learning_rate(step, steps, peak, warm_up, floor)`, one step's rate.

    Steps count from 0. Below `warm_up` the rate is peak * (step + 1) / warm_up; step
    `warm_up` has the peak, the last step floor * peak, and between them lies half a
    period of a cosine. The result is one number. Oracle: `training.warm_up_cosine`.
    The warm-up and what follows are judged apart; the last run has no warm-up.
    """
    for steps, peak, warm_up, floor in [(20, 0.5, 5, 0.1), (31, 2.0, 8, 0.25)]:
        _check_schedule(answer, steps, peak, warm_up, floor)
    _check_schedule(answer, 12, 0.5, 0, 0.2)
    return "every step of three runs, the last of them without warm-up."


def _check_schedule(
    answer: Answer, steps: int, peak: float, warm_up: int, floor: float
) -> None:
    """Ask for the rate of every step; then compare the way up, then the way down."""
    settings = {"steps": steps, "peak": peak, "warm_up": warm_up, "floor": floor}
    came, attempts = [], []
    for step in range(steps):
        attempts.append(answer.on(step=step, **settings))
        came.append(attempts[-1].number())
    expected = [
        warm_up_cosine(step, steps, peak, warm_up, floor) for step in range(steps)
    ]
    for part, mistakes in (
        (range(warm_up), _rises(peak, warm_up, floor)),
        (range(warm_up, steps), _falls(steps, peak, warm_up, floor)),
    ):
        wrong = [step for step in part if not same(came[step], expected[step])]
        if wrong:
            _blame(attempts[wrong[0]], came, expected, part, mistakes)


def _blame(
    attempt: Attempt,
    came: list[float],
    expected: list[float],
    part: range,
    mistakes: list[tuple[Curve, str]],
) -> None:
    """Fail with the mistake that explains every step of a part of the curve."""
    step = attempt.inputs["step"]
    told = f"Step {step}: expected {shown(expected[step])}, came {shown(came[step])}."
    for curve, says in mistakes:
        if all(same(came[s], curve(s)) for s in part):
            attempt.fail(f"{says} {told}")
    name = "after the warm-up" if part.start or len(part) == len(came) else "going up"
    attempt.fail(f"The rate {name} is wrong. {told}")


def _rises(peak: float, warm_up: int, floor: float) -> list[tuple[Curve, str]]:
    """Wrong ways up, as functions of the step."""
    return [
        (
            lambda s: peak * s / warm_up,
            "The warm-up starts at 0: the first step changes nothing. Use step + 1.",
        ),
        (lambda s: peak, "There is no warm-up: the rate starts at the peak."),
        (
            lambda s: peak * (s + 1) / (warm_up + 1),
            "The warm-up is one step too long: step warm_up - 1 has the peak.",
        ),
        (
            lambda s: peak * s / (warm_up - 1) if warm_up > 1 else math.nan,
            "The warm-up starts at 0: the first step changes nothing. Use step + 1.",
        ),
        (
            lambda s: peak * (floor + (1 - floor) * s / warm_up),
            "The warm-up starts from the floor: it starts from peak / warm_up.",
        ),
        (
            lambda s: peak * (floor + (1 - floor) * (s + 1) / warm_up),
            "The warm-up starts from the floor: it starts from peak / warm_up.",
        ),
        (lambda s: (s + 1) / warm_up, "The warm-up does not use the peak."),
        (
            lambda s: peak * (1 - math.cos(math.pi * (s + 1) / warm_up)) / 2,
            "The warm-up is a cosine: it is a straight line.",
        ),
    ]


def _falls(
    steps: int, peak: float, warm_up: int, floor: float
) -> list[tuple[Curve, str]]:
    """Wrong ways down, as functions of the step."""
    low, span = peak * floor, steps - 1 - warm_up

    def cosine(gone: float, end: float = floor) -> float:
        return peak * (end + (1 - end) * (1 + math.cos(math.pi * gone)) / 2)

    def after(step: float) -> float:
        return (step - warm_up) / span

    def waves(gone: float) -> float:
        return (1 + math.cos(gone)) / 2

    mistakes: list[tuple[Curve, str]] = []
    times: list[tuple[Curve, str]] = [
        (after, ""),
        (
            lambda s: (s - warm_up) / (steps - warm_up),
            "The cosine ends one step too late: step steps - 1 is the last.",
        ),
        (
            lambda s: (s - warm_up + 1) / (steps - warm_up),
            "The cosine starts one step too early: step warm_up has the peak.",
        ),
        (
            lambda s: s / (steps - 1),
            "The cosine starts at step 0, not where the warm-up ends.",
        ),
        (lambda s: s / steps, "The cosine starts at step 0, not after the warm-up."),
        (
            lambda s: (s - warm_up) / steps,
            "The cosine is as long as the run, warm-up included: it never ends.",
        ),
        (
            lambda s: (s - warm_up) / (steps - 1),
            "The cosine is as long as the run, warm-up included: it never ends.",
        ),
    ]
    for gone, says in times:
        if says:
            mistakes.append((lambda s, g=gone: cosine(g(s)), says))  # type: ignore[misc]
        mistakes.append(
            (
                lambda s, g=gone: cosine(g(s), 0.0),  # type: ignore[misc]
                f"There is no floor: the rate falls to 0. {says}".strip(),
            )
        )
    shapes: list[tuple[Curve, str]] = [
        (
            lambda g: floor + (peak - floor) * waves(math.pi * g),
            "The floor is a share of the peak, not a rate.",
        ),
        (
            lambda g: peak * (floor + waves(math.pi * g)),
            "The floor is added on top: the rate starts above the peak.",
        ),
        (
            lambda g: floor + peak * waves(math.pi * g),
            "The floor is added on top, and it is a share of the peak, not a rate.",
        ),
        (
            lambda g: max(low, peak * waves(math.pi * g)),
            "The cosine falls to 0 and is cut off at the floor: it must reach the "
            "floor at its end.",
        ),
        (
            lambda g: max(floor, peak * waves(math.pi * g)),
            "The cosine is cut off at the floor, which is a share of the peak.",
        ),
        (
            lambda g: low + (peak - low) * waves(2 * math.pi * g),
            "The period is wrong: a whole one goes back to the peak. Use half.",
        ),
        (
            lambda g: low + (peak - low) * math.cos(math.pi * g / 2),
            "A quarter of a cosine: it falls in one bend. Use (1 + cos(pi * x)) / 2.",
        ),
        (
            lambda g: low + (peak - low) * waves(math.pi * g / 2),
            "The period is wrong: cos(pi * x / 2) ends half-way down.",
        ),
        (
            lambda g: low + (peak - low) * waves(g),
            "pi is missing: cos takes radians, and half a period is pi.",
        ),
        (
            lambda g: low + (peak - low) * waves(180 * g),
            "cos takes radians, not degrees: half a period is pi, not 180.",
        ),
        (
            lambda g: low + (peak - low) * math.cos(math.pi * g),
            "The cosine runs from 1 to -1: add 1 and halve it.",
        ),
        (
            lambda g: low + (peak - low) * (1 + math.cos(math.pi * g)),
            "The cosine is not halved: 1 + cos runs from 2 to 0.",
        ),
        (
            lambda g: low + (peak - low) * (1 - waves(math.pi * g)),
            "The cosine is upside down: it rises.",
        ),
        (lambda g: low + (peak - low) * (1 - g), "The way down is a straight line."),
        (lambda g: peak, "The rate stays at the peak: the way down is missing."),
    ]
    for shape, says in shapes:
        mistakes.append((lambda s, f=shape: f(after(s)), says))  # type: ignore[misc]
    return mistakes


# 6. Chances --------------------------------------------------------------------------

BEST = "Set the logits below the k-th largest of their row to -inf, then softmax."


@TALLY.exercise
def chances(answer: Answer) -> str:
    """Check `chances(logits, temperature, top_k)`, the distribution to draw from.

    `logits` float (batch, vocabulary); the result has the same shape: the softmax of
    logits / temperature over the `top_k` best tokens of each row, 0 for all others.
    Oracle: `topk`, `softmax` and `scatter` in double precision. No two logits are
    equal. Last come large logits at a low temperature.
    """
    draw = generator()
    cases = [(0.5, 3), (2.0, 4), (1.0, 7), (0.7, 1)]
    for temperature, top_k in cases:
        logits = torch.randn(5, 7, generator=draw)
        attempt = answer.on(logits=logits, temperature=temperature, top_k=top_k)
        expected = _best_chances(logits, temperature, top_k)
        attempt.equals(expected, _chance_mistakes(logits, temperature, top_k))
    _check_cold(answer)
    return (
        "values and sums of rows for four settings, among them all tokens and one, "
        "and large logits at a low temperature."
    )


def _best_chances(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The oracle: (batch, vocabulary), in double precision."""
    best, tokens = logits.double().topk(top_k)
    shares = (best / temperature).softmax(-1)
    return torch.zeros(logits.shape, dtype=torch.float64).scatter(1, tokens, shares)


def _check_cold(answer: Answer) -> None:
    """Logits up to 90 at temperature 0.1: exp(900) is inf, in doubles too."""
    logits = torch.tensor([[90.0, 89.9, 12.0, 60.0], [-149.0, -149.1, -190.0, -149.9]])
    attempt = answer.on(logits=logits, temperature=0.1, top_k=3)
    came, expected = attempt.tensor(), _best_chances(logits, 0.1, 3)
    if came.shape == expected.shape and not torch.allclose(
        came.double(), expected, atol=1e-4
    ):
        attempt.fail(
            "Large logits at a low temperature give wrong values: exp(900) is inf, "
            "exp(-900) is 0, and a number such as -100 is not low enough to hide a "
            "token.",
            BEST,
        )


def _chance_mistakes(logits: Tensor, temperature: float, top_k: int) -> list[Mistake]:
    """Wrong distributions for logits (batch, vocabulary)."""
    x = logits.double()
    scaled, plain = x / temperature, x.softmax(-1)
    out = x < x.topk(top_k).values[:, -1:]
    kept = scaled.masked_fill(out, -math.inf)
    low = x > x.topk(top_k, largest=False).values[:, -1:]
    above = x <= x.topk(top_k).values[:, -1:]
    everywhere = x < x.flatten().topk(top_k).values[-1]
    column = x < x.topk(min(top_k, len(x)), dim=0).values[-1:]
    axis = "The softmax runs over the wrong axis: each row must sum to 1."
    best = scaled.topk(top_k)
    mistakes = [
        Mistake(
            _best_chances(x, 1 / temperature, top_k),
            "The logits are multiplied by the temperature: divide by it.",
            "A low temperature makes the best token likelier.",
        ),
        Mistake(
            scaled.softmax(-1).masked_fill(out, 0),
            "top_k is applied after the softmax: rows no longer sum to 1.",
            "Hide tokens before the softmax, or divide by what is left.",
        ),
        Mistake(
            scaled.masked_fill(low, -math.inf).softmax(-1),
            "The smallest logits are kept, not the largest.",
            BEST,
        ),
        Mistake(
            scaled.softmax(-1), "top_k is not used: every token has a chance.", BEST
        ),
        Mistake(
            x.masked_fill(out, -math.inf).softmax(-1),
            "The temperature is not used.",
            "Divide the logits by it.",
        ),
        Mistake(plain, "Neither temperature nor top_k is used.", BEST),
        Mistake(
            best.values.softmax(-1),
            "Only the best tokens are there: expected one chance for each token of the "
            "vocabulary, 0 for the others.",
            BEST,
        ),
        Mistake(
            scaled.masked_fill(out, 0).softmax(-1),
            "Hidden logits are set to 0, and exp(0) is 1.",
            BEST,
        ),
        Mistake(
            (plain / temperature).masked_fill(out, -math.inf).softmax(-1),
            "The softmax is taken twice, the temperature between them.",
            BEST,
        ),
        Mistake(
            plain.masked_fill(out, 0) / temperature,
            "Probabilities are divided by the temperature: divide the logits.",
            BEST,
        ),
        Mistake(
            x.masked_fill(out, -math.inf).softmax(-1) / temperature,
            "Probabilities are divided by the temperature: divide the logits.",
            BEST,
        ),
        Mistake(
            scaled.masked_fill(above, -math.inf).softmax(-1).nan_to_num(),
            "The k-th best token is hidden too: only k - 1 are left.",
            "Keep what is equal to the k-th largest.",
        ),
        Mistake(
            scaled.masked_fill(above, -math.inf).softmax(-1),
            "The k-th best token is hidden too: only k - 1 are left.",
            "Keep what is equal to the k-th largest.",
        ),
        Mistake(
            scaled.masked_fill(everywhere, -math.inf).softmax(-1).nan_to_num(),
            "The best tokens are those of the whole batch: each row has its own.",
            "Use topk along the last axis.",
        ),
        Mistake(
            scaled.masked_fill(everywhere, -math.inf).softmax(-1),
            "The best tokens are those of the whole batch: each row has its own.",
            "Use topk along the last axis.",
        ),
        Mistake(
            scaled.masked_fill(column, -math.inf).softmax(-1),
            "The best are sought down the columns: tokens are the last axis.",
            "Use dim=-1.",
        ),
        Mistake(kept, "These are logits: the softmax is missing.", BEST),
        Mistake(kept.log_softmax(-1), "These are logarithms: use softmax.", BEST),
    ]
    for wrong in (kept.softmax(0), kept.softmax(0).nan_to_num()):
        mistakes.append(Mistake(wrong, axis, "Use dim=-1."))
    if temperature != 1:
        mistakes.append(
            Mistake(
                _best_chances(x, temperature**2, top_k),
                "The temperature is used twice.",
                BEST,
            )
        )
    return mistakes


# 7. Exposure -------------------------------------------------------------------------

RANK = "The rank is 1 plus the number of candidates with fewer nats than the canary."


@TALLY.exercise
def exposure(answer: Answer) -> str:
    """Check `exposure(nats, canary)`, how much a model remembers a planted text.

    `nats` float (candidates,), -log p of each text that might have been planted;
    `canary` is the place of the one that was; the result is one number, in bits:
    log2(candidates) - log2(rank), where rank 1 has the fewest nats. Oracle: the place
    in Python's `sorted`. No two candidates are equal.
    """
    for candidates, rank in [(50, 9), (300, 37), (64, 1), (40, 40)]:
        nats, canary = _candidates(candidates, rank)
        attempt = answer.on(nats=nats, canary=canary)
        place = sorted(nats.tolist()).index(float(nats[canary])) + 1
        expected = math.log2(candidates) - math.log2(place)
        attempt.equals_number(expected, _exposure_mistakes(nats, canary, place))
    return "a canary in the middle of others, the likeliest, and the least likely."


def _candidates(count: int, rank: int) -> tuple[Tensor, int]:
    """Nats of so many candidates in no order, and where the one of this rank stands."""
    draw = generator()
    nats = 30 + 5 * torch.rand(count, generator=draw)
    return nats, int(nats.argsort()[rank - 1])


def _exposure_mistakes(nats: Tensor, canary: int, rank: int) -> list[WrongNumber]:
    """Wrong values; `rank` is the right one, from 1."""
    count = len(nats)
    order = nats.argsort()
    sought = int(order[canary])  # which candidate has rank `canary`
    from_end = count - rank + 1
    bits = math.log2(count)

    def exposed(place: int) -> float:
        return bits - math.log2(place) if place > 0 else math.inf

    argsort = "argsort()[canary] is the candidate at that rank, not the canary's rank."
    rest = count - 1
    return [
        (exposed(rank - 1), "The rank counts from 0: the likeliest has rank 1.", RANK),
        (
            exposed(from_end),
            "The ranks run the wrong way: rank 1 is the likeliest, with fewest nats.",
            RANK,
        ),
        (
            exposed(from_end - 1),
            "The ranks run the wrong way, and from 0: rank 1 has the fewest nats.",
            RANK,
        ),
        (exposed(sought), argsort, RANK),
        (exposed(sought + 1), argsort, RANK),
        (exposed(rank) * LN2, "These are nats: exposure is in bits, with log2.", ""),
        (exposed(rank) * math.log10(2), "log10 is used: exposure is in bits.", ""),
        (-exposed(rank), "The sign is wrong: log2(candidates) comes first.", ""),
        (-math.log2(rank), "log2(candidates) is missing.", ""),
        (
            math.log2(rank),
            "This is log2 of the rank: take it from log2(candidates).",
            "",
        ),
        (float(rank), "This is the rank: take its log2 from log2(candidates).", ""),
        (bits - rank, "The rank itself is subtracted: take its log2.", ""),
        (count / rank, "This is candidates / rank: log2 is missing.", ""),
        (
            (math.log2(rest) if rest else 0.0) - math.log2(rank),
            "The canary is one of the candidates: count all of them.",
            "",
        ),
        (
            bits - float(nats[canary]) / LN2,
            "The nats are subtracted, not the logarithm of the rank.",
            RANK,
        ),
        (
            math.log2(count - rank) if count > rank else math.nan,
            "The rank is subtracted before the logarithm: take log2 of each.",
            "",
        ),
    ]
