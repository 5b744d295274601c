"""Checkers for the exercises on attention: they explain what is wrong with an answer.

Every checker takes the learner's function and returns a `core.Result`. The oracles are
torch's own functions; the wrong answers are computed beside them, on the same inputs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from medlm_utils.checks.core import (
    Answer,
    Attempt,
    Mistake,
    Tally,
    difference,
    generator,
)

TALLY = Tally("Attention")


def summary() -> None:
    """Print how many of the chapter's exercises are answered."""
    TALLY.summary()


# 1. Scores ---------------------------------------------------------------------------

SCALE = "Divide by the square root of the last size of q."
# Shapes of q and k: all wrong divisors differ, so that each is called by its name. The
# first d_head, 7, is no usual size, and its root is no whole number.
SCORE_SHAPES = [
    ((3, 7), (5, 7)),
    ((2, 5, 18), (2, 11, 18)),
    ((2, 3, 4, 10), (2, 3, 6, 10)),
]


@TALLY.exercise
def scores(answer: Answer) -> str:
    """Check `scores(q, k)`, the scaled dot products of queries and keys.

    `q` (..., queries, d_head), `k` (..., keys, d_head), both float; the result is
    (..., queries, keys). Oracle: `torch.matmul`, which broadcasts over leading axes.
    Inputs have variance 1, so scores stay far from saturating a softmax.
    """
    draw = generator()
    for dtype in (torch.float32, torch.float64):
        for q_shape, k_shape in SCORE_SHAPES:
            q = torch.randn(q_shape, generator=draw, dtype=dtype)
            k = torch.randn(k_shape, generator=draw, dtype=dtype)
            dots = q @ k.transpose(-2, -1)
            expected = dots / math.sqrt(q.shape[-1])
            answer.on(q=q, k=k).equals(expected, _score_mistakes(q, k, dots))
    return "values and shapes for 2, 3 and 4 axes, in float32 and float64."


def _score_mistakes(q: Tensor, k: Tensor, dots: Tensor) -> list[Mistake]:
    """Wrong scores for q (..., queries, d_head) and k (..., keys, d_head)."""
    *leading, queries, d_head = q.shape
    keys, heads = k.shape[-2], leading[-1] if leading else 1
    right = dots / math.sqrt(d_head)
    lengths = q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
    divisors = {
        "not divided by sqrt(d_head)": 1.0,
        "divided by d_head, not by its square root": d_head,
        "divided by 2 * d_head: `a / d**1/2` is a / d / 2. Write `a / d**0.5`": (
            2 * d_head
        ),
        "divided by d_head / 2: `d**1/2` is d / 2. Write `d**0.5`": d_head / 2,
        "divided by the root rounded down: use math.sqrt, not math.isqrt": (
            math.isqrt(d_head)
        ),
        "divided by the number of keys": keys,
        "multiplied by sqrt(d_head), not divided": 1 / math.sqrt(d_head),
        "divided by the square root of the number of keys": math.sqrt(keys),
        "divided by the square root of the number of queries": math.sqrt(queries),
        "divided by sqrt(d_model), not by sqrt(d_head)": math.sqrt(heads * d_head),
        "divided by the square root of the number of heads": math.sqrt(heads),
    }
    return [
        *(
            Mistake(dots / by, f"The scores are {name}.", SCALE)
            for name, by in divisors.items()
        ),
        Mistake(
            right.transpose(-2, -1),
            "The scores are transposed: rows must be queries, columns keys.",
            "Put q first in the product.",
        ),
        Mistake(
            dots.transpose(-2, -1),
            "The scores are transposed, and not divided by sqrt(d_head).",
            "Put q first in the product.",
        ),
        Mistake(
            right.softmax(-1),
            "These are weights: the softmax belongs to the next exercise.",
        ),
        Mistake(dots / lengths, "These are cosines: vectors keep their length.", SCALE),
    ]


# 2. Weights --------------------------------------------------------------------------

BEFORE = "Set blocked scores to -inf, then take the softmax."


@TALLY.exercise
def weights(answer: Answer) -> str:
    """Check `weights(scores, mask)`, the softmax over the keys that a mask allows.

    `scores` float (..., queries, keys); `mask` bool, broadcastable to it, True where
    attending is allowed; the result has the shape of `scores`. A row with every key
    blocked must be zero. A blocked score, however large, must have no influence: an
    answer that masks after the softmax and divides by the row's sum is equal in exact
    arithmetic and fails there. Allowed scores of 200 or -150 must do no harm either.
    Oracle: `F.scaled_dot_product_attention` with the identity as values.
    """
    for scores, mask in _weight_inputs(generator()):
        attempt = answer.on(scores=scores, mask=mask)
        expected = _allowed_softmax(scores, mask)
        attempt.equals(expected, _weight_mistakes(scores, mask))
    _check_large_blocked(answer)
    _check_blocked_row(answer)
    return (
        "values, sums of rows, masks that broadcast, a large blocked score, and a row "
        "with every key blocked."
    )


def _weight_inputs(draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Scores and masks; every row has a key allowed and a key blocked."""
    padding = torch.tensor([[True] * 4 + [False], [True] * 2 + [False] * 3])
    mixed = torch.tensor(
        [
            [True, False, True, True, False],
            [False, True, True, False, False],
            [True, True, False, False, True],
        ]
    )
    return [
        (torch.randn(3, 5, generator=draw), mixed),
        (torch.randn(2, 4, 3, 5, generator=draw), mixed),
        (torch.randn(2, 4, 3, 5, generator=draw), padding[:, None, None, :]),
        (torch.randn(3, 5, generator=draw, dtype=torch.float64), mixed),
    ]


def _allowed_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """The oracle: attention (..., queries, keys) over values that are the identity."""
    keys = scores.shape[-1]
    identity = torch.eye(keys, dtype=scores.dtype).expand(*scores.shape[:-2], -1, -1)
    # With the identity as keys too, and scale 1, the scores are the queries themselves.
    return functional.scaled_dot_product_attention(
        scores, identity, identity, mask.expand(scores.shape), scale=1.0
    )


def _weight_mistakes(scores: Tensor, mask: Tensor) -> list[Mistake]:
    """Wrong weights for scores (..., queries, keys) and a mask that broadcasts."""
    blocked = ~mask.expand(scores.shape)
    hidden = scores.masked_fill(blocked, -math.inf)
    plain = scores.softmax(-1)
    axis = "The softmax runs over the wrong axis: each row must sum to 1."
    keys = "Weights are shared among the keys, the last axis: dim=-1."
    mistakes = [
        Mistake(plain, "The mask is not used: blocked keys have weight.", BEFORE),
        Mistake(
            plain.masked_fill(blocked, 0),
            "The mask is applied after the softmax: rows no longer sum to 1.",
            BEFORE,
        ),
        Mistake(
            scores.masked_fill(mask, -math.inf).softmax(-1),
            "The mask is read the wrong way round: True means may attend.",
            "Fill where the mask is False: ~mask.",
        ),
        Mistake(
            scores.masked_fill(blocked, 0).softmax(-1),
            "Blocked scores are set to 0 before the softmax, and exp(0) is 1.",
            BEFORE,
        ),
        Mistake(
            scores.masked_fill(blocked, 0).softmax(-1).masked_fill(blocked, 0),
            "Blocked scores are 0 or nearly (1e-9 instead of -1e9?) in the softmax and "
            "take a share: exp(0) is 1, and rows no longer sum to 1.",
            BEFORE,
        ),
        Mistake(
            (hidden / math.sqrt(scores.shape[-1])).softmax(-1),
            "The scores are scaled already: here they are divided by the square root "
            "of the number of keys.",
            "Take the softmax of the masked scores as they are.",
        ),
        Mistake(hidden, "These are masked scores: the softmax is missing.", BEFORE),
        Mistake(
            hidden.log_softmax(-1),
            "These are logarithms of weights: use softmax, not log_softmax.",
        ),
        Mistake(
            torch.where(blocked, 0, scores.exp()),
            "The rows do not sum to 1: divide by the sum over the keys.",
        ),
    ]
    for dim in range(scores.dim() - 1):
        wrong = hidden.softmax(dim)
        unmasked = scores.softmax(dim)
        values = (wrong, wrong.nan_to_num(), unmasked.masked_fill(blocked, 0), unmasked)
        mistakes += [Mistake(value, axis, keys) for value in values]
    return mistakes


# In float32 exp(200) is inf and exp(-150) is 0. Scores and mask by rows, the mistake
# that shows there when the rows before came out right, and where to look.
MASK = [True, False, True]
LARGE: list[tuple[list[list[float]], list[list[bool]], str, str]] = [
    (
        [[0.5, 200.0, -0.5], [1.0, 0.0, 0.5]],
        [MASK, [True] * 3],
        "A blocked score of 200 changes the weights of the allowed keys. Masking "
        "after the exponential and then dividing by the sum is right on paper, but "
        "in float32 the blocked score takes all the weight or overflows.",
        BEFORE,
    ),
    (
        [[200.0, 0.0, 199.0]],
        [MASK],
        "Allowed scores of 200 overflow: subtract the row's maximum, or use softmax.",
        "",
    ),
    (
        [[-150.0, 0.0, -151.0]],
        [MASK],
        "A blocked score beats allowed ones of -150: a number such as -100 is not low "
        "enough. Use -inf.",
        "",
    ),
    (
        [[200.0, 0.0, 199.0], [-150.0, 0.0, -151.0]],
        [MASK, MASK],
        "A row with scores of 200 spoils one with scores of -150: subtract each row's "
        "own maximum, not one of all rows, or use softmax.",
        "",
    ),
]


def _check_large_blocked(answer: Answer) -> None:
    """Large scores, blocked and allowed, in the order of `LARGE`."""
    for rows, allowed, says, look in LARGE:
        scores, mask = torch.tensor(rows), torch.tensor(allowed)
        attempt = answer.on(scores=scores, mask=mask)
        came, expected = attempt.tensor(), _allowed_softmax(scores, mask)
        if came.shape == expected.shape and not torch.allclose(
            came.double(), expected.double(), atol=1e-5
        ):
            attempt.fail(f"{says} {difference(came, expected)}", look)


def _check_blocked_row(answer: Answer) -> None:
    """A row with every key blocked gives zeros, and leaves the other rows alone."""
    for dtype in (torch.float32, torch.float64):
        scores = torch.randn(3, 4, generator=generator(), dtype=dtype)
        mask = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])
        attempt = answer.on(scores=scores, mask=mask)
        _diagnose_blocked_row(attempt, attempt.tensor()[1])
        # Not the oracle: torch versions have differed on such rows.
        expected = _allowed_softmax(scores, mask | ~mask.any(-1, keepdim=True))
        expected[1] = 0
        attempt.equals(expected, [])


def _diagnose_blocked_row(attempt: Attempt, row: Tensor) -> None:
    look = "Where a row has no True in the mask, the weights are 0."
    if row.isnan().any():
        attempt.fail(
            "The row with every key blocked is NaN: a softmax over nothing but -inf "
            "divides 0 by 0. Expected zeros.",
            look,
        )
    if abs(float(row.sum()) - 1) < 1e-3:
        attempt.fail(
            "The row with every key blocked still sums to 1: a large negative number "
            "instead of -inf hides keys only next to allowed ones. Expected zeros.",
            look,
        )


# 3. Causal mask ----------------------------------------------------------------------


@TALLY.exercise
def causal_mask(answer: Answer) -> str:
    """Check `causal_mask(queries, keys)`, for the last positions of a sequence.

    The queries are the last `queries` of `keys` tokens, as in decoding with a cache;
    the result is bool (queries, keys), True where attending is allowed: row r sees the
    keys 0 to keys - queries + r. Oracle: that inequality.
    """
    # A single query sees every key, so that many wrong masks look alike there: last.
    for queries, keys in [(5, 5), (2, 5), (3, 8), (1, 4), (1, 1)]:
        attempt = answer.on(queries=queries, keys=keys)
        positions = torch.arange(keys - queries, keys)
        expected = torch.arange(keys)[None, :] <= positions[:, None]
        _refuse_additive(attempt, expected)
        attempt.equals(expected, _causal_mistakes(queries, keys))
    return "square masks, one query with a cache, and several queries with a cache."


def _refuse_additive(attempt: Attempt, expected: Tensor) -> None:
    """Name a mask of 0 and -inf, or of 1 and 0, that would otherwise be right."""
    came = attempt.tensor()
    if came.dtype == torch.bool or came.shape != expected.shape:
        return
    if torch.equal(came == 0, expected) and bool((came[~expected] < 0).all()):
        attempt.fail(
            "This mask is to be added to scores (0 and a large negative number). "
            "Expected bool, True where attending is allowed."
        )


def _causal_mistakes(queries: int, keys: int) -> list[Mistake]:
    """Wrong masks of shape (queries, keys), and transposed ones."""
    ones = torch.ones(queries, keys, dtype=torch.bool)
    past = keys - queries
    right = ones.tril(past)
    meaning = "True means may attend: the lower triangle, with the diagonal."
    cache = f"The first of {queries} queries is token {past}, not token 0."
    future = "Row r is a query: it may look at itself and to the left."
    # On a square mask some of these coincide: the likeliest comes first. The shifted
    # one and the cache on the right are wrong only with a cache.
    return [
        Mistake(
            ones.tril(-past),
            "The diagonal is shifted the wrong way: tril(keys - queries), not queries "
            "- keys.",
            cache,
        ),
        Mistake(~right, "True and False are exchanged: the past is hidden.", meaning),
        Mistake(
            ones.triu(past),
            "This is the upper triangle: queries see the future, not the past.",
            future,
        ),
        Mistake(
            ones.tril(past - 1),
            "The diagonal is hidden: a token must see itself, or the first token sees "
            "nothing.",
            meaning,
        ),
        Mistake(
            ones.tril(),
            "The mask is aligned to the top left: with a cache the queries are the "
            "last tokens, and they see all tokens before them.",
            cache,
        ),
        Mistake(ones.triu(1), "True marks the future, from the top left.", cache),
        Mistake(ones.tril(past + 1), "Each query sees one token too many.", future),
        Mistake(ones, "Nothing is hidden: queries see the future.", future),
        Mistake(
            torch.eye(keys, dtype=torch.bool)[-queries:],
            "Each query sees only itself: the past is hidden.",
            meaning,
        ),
        Mistake(
            torch.cat([right[:, past:], right[:, :past]], dim=-1),
            "The cache stands on the right: its keys are the first columns.",
            cache,
        ),
        Mistake(
            right.T.clone(),
            "The mask is transposed: rows are queries, columns are keys.",
            future,
        ),
    ]


# 4. Heads ----------------------------------------------------------------------------


@TALLY.exercise
def split_heads(answer: Answer) -> str:
    """Check `split_heads(x, heads)`, which gives each head its own slice of features.

    `x` float (batch, tokens, d_model); the result is (batch, heads, tokens, d_head)
    with d_head = d_model / heads, head h holding the features h * d_head onwards.
    Oracle: `torch.chunk` along the features.
    """
    draw = generator()
    for batch, tokens, heads, d_head in [(2, 5, 3, 4), (1, 7, 2, 3), (4, 6, 1, 5)]:
        x = torch.randn(batch, tokens, heads * d_head, generator=draw)
        expected = torch.stack(x.chunk(heads, dim=-1), dim=1)
        answer.on(x=x, heads=heads).equals(expected, _head_mistakes(x, heads))
    return "shapes, and that each head holds its own slice, for 1, 2 and 3 heads."


def _head_mistakes(x: Tensor, heads: int) -> list[Mistake]:
    """Wrong ways to split x (batch, tokens, d_model)."""
    batch, tokens, d_model = x.shape
    d_head = d_model // heads
    split = x.view(batch, tokens, heads, d_head)
    strided = x.view(batch, tokens, d_head, heads)
    right = split.transpose(1, 2)
    swap = "First split the last axis: (batch, tokens, heads, d_head); then swap."
    return [
        Mistake(
            x.reshape(batch, heads, tokens, d_head),
            "The tensor is only reshaped, without transposing: a head gets all "
            "features of a few tokens instead of a few features of all tokens.",
            swap,
        ),
        Mistake(
            split,
            "Heads and tokens are in the wrong order: expected (batch, heads, tokens, "
            "d_head). transpose(1, 2) is missing.",
            swap,
        ),
        Mistake(
            strided.permute(0, 3, 1, 2),
            "Each head takes every heads-th feature: it must take d_head neighbours.",
            "Split the last axis as (heads, d_head), in this order.",
        ),
        Mistake(
            right.transpose(-2, -1),
            "The last two axes are exchanged: tokens come before d_head.",
            swap,
        ),
        Mistake(
            right.transpose(0, 1), "The head axis comes first: batch must be.", swap
        ),
        Mistake(
            right.reshape(batch * heads, tokens, d_head),
            "Batch and heads are merged: keep them as two axes.",
            swap,
        ),
    ]


# 5. Positions ------------------------------------------------------------------------


@TALLY.exercise
def sinusoidal(answer: Answer) -> str:
    """Check `sinusoidal(tokens, d_model)`, the positions of Vaswani et al. (2017).

    `d_model` is even; the result is float (tokens, d_model): column 2i is
    sin(t / 10000^(2i / d_model)), column 2i + 1 the cosine of the same angle, for
    positions t from 0. Oracle: that formula, entry by entry, in double precision.
    """
    # 5 tokens are neither d_model - 1, nor d_model - 2, nor d_model / 2: all differ.
    for tokens, d_model in [(5, 8), (40, 12), (9, 4)]:
        attempt = answer.on(tokens=tokens, d_model=d_model)
        expected = _table(tokens, d_model)
        mistakes = _position_mistakes(tokens, d_model)
        attempt.equals(expected, mistakes, tolerance=1e-4)
    return "all entries of three tables of different sizes."


def _table(
    tokens: int,
    d_model: int,
    base: float = 10000,
    first: int = 0,
    exponent: Callable[[int, int], float] = lambda column, d: column // 2 * 2 / d,
) -> Tensor:
    """Interleaved sines and cosines (tokens, d_model), right or with one mistake."""
    rows = []
    for t in range(first, first + tokens):
        angles = [t / base ** exponent(column, d_model) for column in range(d_model)]
        rows.append(
            [math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)]
        )
    return torch.tensor(rows, dtype=torch.float64)


def _position_mistakes(tokens: int, d_model: int) -> list[Mistake]:
    """Wrong tables (tokens, d_model)."""
    right = _table(tokens, d_model)
    sines, cosines = right[:, 0::2], right[:, 1::2]
    size = (tokens, d_model)
    bases = {"1000": 1e3, "100000": 1e5, "e": math.e}
    power = "The exponent is 2i / d_model, where i = 0, 1, ... counts the pairs."
    columns = "Even columns are sines, odd columns cosines, side by side."
    exponents: dict[str, Callable[[int, int], float]] = {
        "i / d_model, not 2i / d_model": lambda c, d: c // 2 / d,
        "column / d_model: a sine and its cosine must share one angle": (
            lambda c, d: c / d
        ),
        "twice the column over d_model": lambda c, d: 2 * c / d,
        "4i / d_model: the 2 is there twice": lambda c, d: 4 * (c // 2) / d,
        "negative: positions are multiplied": lambda c, d: -(c // 2) * 2 / d,
        "2i / tokens": lambda c, d: c // 2 * 2 / tokens,
        "2i / (d_model - 2)": lambda c, d: c // 2 * 2 / (d - 2),
    }
    return [
        Mistake(
            torch.cat([sines, cosines], dim=-1),
            "Sines and cosines stand in two halves, not interleaved.",
            columns,
        ),
        Mistake(
            torch.stack([cosines, sines], dim=-1).flatten(1),
            "Sines and cosines are exchanged.",
            columns,
        ),
        Mistake(_table(*size, first=1), "Positions start at 1: they start at 0."),
        *(
            Mistake(_table(*size, base=base), f"The base is {name}, not 10000.", power)
            for name, base in bases.items()
        ),
        *(
            Mistake(_table(*size, exponent=given), f"The exponent is {name}.", power)
            for name, given in exponents.items()
        ),
        Mistake(
            sines.repeat_interleave(2, dim=-1),
            "There are only sines: odd columns are cosines.",
            columns,
        ),
        Mistake(right.T, "The table is transposed: rows are positions, not features."),
        Mistake(right[None], "There is an axis too many: expected (tokens, d_model)."),
    ]


# 6. Layer norm -----------------------------------------------------------------------

ROOT = "Divide by sqrt(variance + eps), the variance as a mean over the last axis."


@TALLY.exercise
def layer_norm(answer: Answer) -> str:
    """Check `layer_norm(x, gain, bias, eps)`, a token's features at mean 0, variance 1.

    `x` float (..., d_model), `gain` and `bias` (d_model,), `eps` a float; the result
    has the shape of `x`. Oracle: `F.layer_norm`. One eps is 0.1: with the usual 1e-5
    nobody sees where it stands.
    """
    draw = generator()
    for x_shape, eps in [((4, 6), 0.1), ((2, 5, 8), 0.1), ((3, 5, 4), 1e-5)]:
        x = 2 + torch.randn(x_shape, generator=draw)
        gain = 1 + 0.5 * torch.randn(x_shape[-1], generator=draw)
        bias = torch.randn(x_shape[-1], generator=draw)
        expected = functional.layer_norm(x, x_shape[-1:], gain, bias, eps)
        attempt = answer.on(x=x, gain=gain, bias=bias, eps=eps)
        attempt.equals(expected, _norm_mistakes(x, gain, bias, eps))
    return "values for 2 and 3 axes, with a small and with a large eps."


def _norm_mistakes(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> list[Mistake]:
    """Wrong norms of x (..., d_model)."""
    centred = x - x.mean(-1, keepdim=True)
    biased = x.var(-1, correction=0, keepdim=True)
    unbiased = x.var(-1, correction=1, keepdim=True)
    normal = centred / (biased + eps).sqrt()
    dims: list[tuple[int, ...]] = [(-2,), (0,), tuple(range(x.dim()))]
    n_minus_1 = "The variance is divided by d_model - 1, not by d_model"
    look = "torch's var and std need correction=0."
    axis = "The mean and variance are taken over the wrong axis."

    def scaled(values: Tensor, says: str, look: str = ROOT) -> Mistake:
        return Mistake(values * gain + bias, says, look)

    return [
        scaled(centred / (unbiased + eps).sqrt(), f"{n_minus_1}.", look),
        scaled(
            centred / (unbiased.sqrt() + eps),
            f"{n_minus_1}, and eps stands outside the root.",
            look,
        ),
        scaled(centred / (biased.sqrt() + eps), "eps stands outside the root."),
        scaled(centred / biased.sqrt(), "The argument eps is not used."),
        scaled(centred / unbiased.sqrt(), f"{n_minus_1}, and eps is not used.", look),
        scaled(centred / (biased + eps), "It divides by the variance, not its root."),
        scaled(centred, "It only subtracts the mean, without dividing."),
        scaled(x / (biased + eps).sqrt(), "The mean is not subtracted."),
        scaled(
            x / (x.square().mean(-1, keepdim=True) + eps).sqrt(),
            "This is RMSNorm: the mean is not subtracted.",
        ),
        Mistake(normal, "gain and bias are not used.", "Last: times gain, plus bias."),
        Mistake(normal * gain, "bias is not added.", "Last: times gain, plus bias."),
        Mistake(normal + bias, "gain is not used.", "Last: times gain, plus bias."),
        Mistake(normal * bias + gain, "gain and bias are exchanged: gain multiplies."),
        Mistake((normal + bias) * gain, "bias is added before gain multiplies it."),
        *(
            scaled(_normalised(x, dim, correction, eps), axis, "Use dim=-1.")
            for dim in dims
            for correction in (0, 1)
        ),
    ]


def _normalised(x: Tensor, dim: tuple[int, ...], correction: int, eps: float) -> Tensor:
    """x at mean 0 and variance 1 over the axes `dim`."""
    variance = x.var(dim, correction=correction, keepdim=True)
    return (x - x.mean(dim, keepdim=True)) / (variance + eps).sqrt()


# 7. Parameters -----------------------------------------------------------------------


@TALLY.exercise
def count_parameters(answer: Answer) -> str:
    """Check `count_parameters(d_model, d_ff)`, the size of one encoder block.

    Four projections with bias, a feed-forward network with biases, two layer norms;
    the result is an int. Oracle: `nn.TransformerEncoderLayer`, without memory.
    """
    for d_model, d_ff in [(6, 20), (8, 32), (12, 30), (768, 3072)]:
        attempt = answer.on(d_model=d_model, d_ff=d_ff)
        came = _whole(attempt)
        layer = nn.TransformerEncoderLayer(d_model, 2, d_ff, device="meta")
        expected = sum(parameter.numel() for parameter in layer.parameters())
        if came != expected:
            numbers = f"Expected {expected}, came {came}."
            says, look = _miscount(came, expected, d_model, d_ff)
            attempt.fail(f"{says} {numbers}", look)
    return "four sizes, the last that of BERT-base, against torch's own layer."


def _whole(attempt: Attempt) -> int:
    """The value as an int; fails for floats, bools and everything else."""
    try:
        if isinstance(attempt.value, bool):
            raise TypeError
        return operator.index(attempt.value)
    except TypeError:
        attempt.fail(
            f"A count is an int: came {type(attempt.value).__name__}.",
            "Use // instead of /, and int(...) around a tensor.",
        )


def _miscount(came: int, expected: int, d_model: int, d_ff: int) -> tuple[str, str]:
    """What was counted wrongly, and where to look."""
    attention = 4 * (d_model * d_model + d_model)
    everything = "List every matrix and vector with its shape."
    for short, says in _left_out(d_model, d_ff):
        if expected - came == short:
            return f"{says}.", everything
    for extra, says in _too_much(d_model, d_ff):
        if came - expected == extra:
            return f"{says}.", everything
    for heads in range(2, 17):
        if came - expected == (heads - 1) * attention:
            return (
                f"The attention is counted {heads} times, once a head.",
                "Heads share d_model: each has d_model / heads columns.",
            )
    if came == attention + 8 * d_model**2 + 9 * d_model:
        return "d_ff is taken as 4 * d_model.", "Use the argument d_ff."
    few = "few" if came < expected else "many"
    return f"There are {abs(came - expected)} too {few}.", everything


def _left_out(d_model: int, d_ff: int) -> list[tuple[int, str]]:
    """Sizes of what is easily left out, and how to say so; the likeliest first."""
    d, f = d_model, d_ff
    return [
        (4 * d, "The biases of the projections, or both layer norms, are missing"),
        (f + d, "The two biases of the feed-forward network are missing"),
        (f + 5 * d, "All biases of the linear layers are missing"),
        (f + 9 * d, "Only matrices are counted: biases and layer norms are missing"),
        (3 * d, "The biases of queries, keys and values are missing"),
        (2 * d, "Half of the layer norms is missing: two norms, gain and bias each"),
        (f, "The first bias of the feed-forward network is missing"),
        (d, "One bias of d_model entries is missing"),
        (d * d + d, "A projection is missing: queries, keys, values and the output"),
        (d * d, "A matrix is missing: queries, keys, values and the output"),
        (d * f, "A matrix of the feed-forward network is missing: it has two"),
        (d * f + d, "The second layer of the feed-forward network is missing"),
        (2 * d * f + f + d, "The feed-forward network is missing"),
        (4 * d * d + 4 * d, "The attention is missing"),
    ]


def _too_much(d_model: int, d_ff: int) -> list[tuple[int, str]]:
    """What a vector of d_ff instead of d_model entries adds, and how to say so."""
    more = d_ff - d_model
    second = "The second bias of the feed-forward network has d_model entries, not d_ff"
    return [
        (more, second),
        (2 * more, "A layer norm has d_model features, not d_ff"),
    ]
