"""Each checker accepts right answers, however written, and names mistakes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from answers import flat, solution_of
from torch import nn
from torch.nn import functional as F

from medlm_utils.checks import attention, core

INF = math.inf
CHECKERS = ["scores", "weights", "causal_mask", "split_heads", "sinusoidal"]
CHECKERS += ["layer_norm", "count_parameters"]


def check(name, answer):
    """The result of one checker."""
    return getattr(attention, name)(answer)


def solution(name):
    """The function as the solutions notebook has it."""
    return solution_of("01_attention", name)


def hidden(s, m):
    return s.masked_fill(~m, -INF)


def renormalised(s, m):
    shares = s.softmax(-1) * m
    return shares / shares.sum(-1, keepdim=True)


def by_loop(s, m):
    """Masked softmax row by row."""
    m = m.expand(s.shape)
    out = torch.zeros_like(s).reshape(-1, s.shape[-1])
    rows = zip(s.reshape(out.shape), m.reshape(out.shape), strict=True)
    for at, (row, allowed) in enumerate(rows):
        if allowed.any():
            out[at, allowed] = row[allowed].softmax(0)
    return out.reshape(s.shape)


def unshifted(s, m):
    """Softmax written out, without subtracting the maximum."""
    powers = torch.where(m, s.exp(), 0)
    return powers / powers.sum(-1, keepdim=True)


def shifted(s, m, top):
    """Softmax written out, after subtracting `top` of the masked scores."""
    powers = (hidden(s, m) - top(hidden(s, m))).exp()
    return (powers / powers.sum(-1, keepdim=True)).nan_to_num()


def by_comparing(q, k):
    """The causal mask entry by entry."""
    return torch.tensor([[j <= k - q + i for j in range(k)] for i in range(q)])


def layer(d, f):
    return nn.TransformerEncoderLayer(d, 1, f)


def turned_round(k):
    """What k.T does: all axes in reverse order."""
    return k.permute(*reversed(range(k.dim())))


def heads_by_view(x, h):
    return x.view(x.shape[0], x.shape[1], h, -1)


def waves(t, d, exponent=None, start=0, base=10000.0):
    """Angles (tokens, d_model / 2) of the positions."""
    even = torch.arange(0, d, 2)
    exponent = even / d if exponent is None else exponent
    return torch.arange(start, start + t)[:, None] / base**exponent


def woven(angle):
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def filled(t, d):
    """The table as most tutorials fill it, with exp and log."""
    table = torch.zeros(t, d)
    rate = torch.exp(torch.arange(0, d, 2).float() * (-math.log(10000.0) / d))
    position = torch.arange(t).unsqueeze(1)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def every_column(t, d):
    """The exponent counts columns, so that a sine and its cosine differ."""
    angle = torch.arange(t)[:, None] / 10000 ** (torch.arange(d) / d)
    return torch.where(torch.arange(d) % 2 == 0, angle.sin(), angle.cos())


def norm(x, g, b, e, dim=-1, correction=0, inside=True, centre=True):
    mean = x.mean(dim, keepdim=True)
    variance = x.var(dim, correction=correction, keepdim=True)
    root = (variance + e).sqrt() if inside else variance.sqrt() + e
    return (x - mean if centre else x) / root * g + b


def block(d, f, heads=1, projections=4, attention_bias=4, ff_bias=1, norms=2):
    attention_size = heads * (projections * d * d + attention_bias * d)
    return attention_size + 2 * d * f + ff_bias * (f + d) + norms * 2 * d


RIGHT = {
    "scores": [
        lambda q, k: torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.size(-1)),
        lambda q, k: (q / q.shape[-1] ** 0.5) @ k.mT,
        lambda q, k: (k @ q.transpose(-2, -1)).transpose(-2, -1) * k.shape[-1] ** -0.5,
        lambda q, k: (q.float() @ k.float().mT) / torch.tensor(q.shape[-1]).sqrt(),
        lambda q, k: nn.Parameter(q @ k.mT / q.shape[-1] ** 0.5),
    ],
    "weights": [
        by_loop,
        lambda s, m: hidden(s, m).softmax(-1).nan_to_num(),
        lambda s, m: torch.where(m, s, -INF).softmax(-1).nan_to_num(0.0),
        lambda s, m: (
            s.masked_fill(~m, torch.finfo(s.dtype).min).softmax(-1)
            * m.any(-1, keepdim=True)
        ),
        lambda s, m: s.masked_fill(~m, -1e9).softmax(-1) * m,
        lambda s, m: (s + torch.where(m, 0.0, -1e9)).softmax(-1).masked_fill(~m, 0),
        lambda s, m: shifted(s, m, lambda row: row.amax(-1, keepdim=True)),
    ],
    "causal_mask": [
        lambda q, k: torch.ones(q, k, dtype=torch.bool).tril(k - q),
        lambda q, k: torch.ones(k, k).tril()[-q:] == 1,
        lambda q, k: ~torch.ones(q, k).triu(k - q + 1).bool(),
        by_comparing,
    ],
    "split_heads": [
        lambda x, h: x.unflatten(-1, (h, -1)).transpose(1, 2),
        lambda x, h: torch.stack(x.chunk(h, -1), 1),
        lambda x, h: heads_by_view(x, h).permute(0, 2, 1, 3).contiguous(),
    ],
    "sinusoidal": [
        filled,
        lambda t, d: woven(waves(t, d).double()),
        lambda t, d: woven(waves(t, d)),
    ],
    "layer_norm": [
        lambda x, g, b, e: F.layer_norm(x, x.shape[-1:], g, b, e),
        lambda x, g, b, e: norm(x, g, b, e),
        lambda x, g, b, e: (x - x.mean(-1, True)) * torch.rsqrt(
            x.square().mean(-1, True) - x.mean(-1, True) ** 2 + e
        ) * g + b,
    ],
    "count_parameters": [
        lambda d, f: 4 * d * d + 2 * d * f + f + 9 * d,
        lambda d, f: torch.tensor(block(d, f)),
        lambda d, f: sum(p.numel() for p in layer(d, f).parameters()),
    ],
}  # fmt: skip

# Wrong answers, each with words that the message must have.
WRONG = {
    "scores": [
        (lambda q, k: q @ k.mT, "not divided by sqrt(d_head)"),
        (lambda q, k: q @ k.mT / q.shape[-1], "by d_head, not by its square root"),
        (lambda q, k: q @ k.mT * q.shape[-1] ** 0.5, "multiplied by sqrt(d_head)"),
        (lambda q, k: q @ k.mT / k.shape[-2] ** 0.5, "root of the number of keys"),
        (lambda q, k: q @ k.mT / q.shape[-2] ** 0.5, "root of the number of queries"),
        (lambda q, k: q @ k.mT / q.shape[0] ** 0.5, "root of the number of queries"),
        (
            lambda q, k: q @ k.mT
            / (q.shape[-1] * (q.shape[1] if q.dim() == 4 else 1)) ** 0.5,
            "sqrt(d_model), not by sqrt(d_head)",
        ),
        (lambda q, k: k @ q.mT / q.shape[-1] ** 0.5, "transposed"),
        (lambda q, k: k @ q.mT, "transposed, and not divided"),
        (lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), "These are weights"),
        (lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, "cosines"),
        (lambda q, k: q @ k.mT / 8**0.5, "The values are wrong. Expected"),
        (lambda q, k: q @ k.mT / 8, "The values are wrong. Expected"),
        (lambda q, k: q @ k.mT / 7**0.5, "The values are wrong. Expected"),
        (lambda q, k: q @ k.mT / math.isqrt(q.shape[-1]), "root rounded down"),
        (lambda q, k: q @ k.mT / q.shape[-1]**1/2, "by 2 * d_head: `a / d**1/2`"),
        (lambda q, k: q @ k.mT * q.shape[-1]**-1/2, "by 2 * d_head"),
        (lambda q, k: q @ k.mT / (q.shape[-1]**1/2), "by d_head / 2: `d**1/2` is"),
        (lambda q, k: q @ k, "raised RuntimeError"),
        (lambda q, k: q @ turned_round(k) / q.shape[-1] ** 0.5, "k (2, 11, 18)"),
        (lambda q, k: q.sum(), "expected (3, 5), came ()"),
        (
            lambda q, k: [1.0],
            "Expected a torch.Tensor, came an object of type list. "
            "Return torch.tensor(...) of it.",
        ),
        (lambda q, k: (q @ k.mT).numpy(), "type ndarray. Return torch.tensor(...) of"),
        (lambda q, k: 1.0, "came the float 1.0. Return torch.tensor(...) of it."),
        (lambda q, k: list(q), "type list. Return torch.stack(...) of it."),
        (lambda q, k: {}, "came an object of type dict. Return one tensor."),
        (lambda q, k: (q @ k.mT).long(), "a floating type, came int64"),
        (lambda q, k: torch.complex(q, q), "came complex"),
        (lambda q: q, "raised TypeError"),
    ],
    "weights": [
        (lambda s, m: s.softmax(-1), "The mask is not used"),
        (lambda s, m: s.softmax(-1) * m, "applied after the softmax"),
        (renormalised, "blocked score of 200"),
        (lambda s, m: (s.exp() * m) / (s.exp() * m).sum(-1, keepdim=True), "of 200"),
        (lambda s, m: hidden(s, ~m).softmax(-1), "the wrong way round"),
        (lambda s, m: (s * m).softmax(-1), "set to 0 before the softmax"),
        (lambda s, m: hidden(s, m).softmax(-2), "over the wrong axis"),
        (lambda s, m: hidden(s, m).softmax(-2).nan_to_num(), "over the wrong axis"),
        (lambda s, m: s.softmax(0) * m, "over the wrong axis"),
        (lambda s, m: s.softmax(-2), "over the wrong axis"),
        (hidden, "the softmax is missing"),
        (lambda s, m: hidden(s, m).log_softmax(-1), "logarithms"),
        (lambda s, m: hidden(s, m).exp(), "do not sum to 1"),
        (lambda s, m: hidden(s, m).softmax(-1), "every key blocked is NaN"),
        (lambda s, m: s.masked_fill(~m, -1e9).softmax(-1), "still sums to 1"),
        (lambda s, m: (s + ~m * -1e9).softmax(-1), "still sums to 1"),
        (lambda s, m: hidden(s, m).softmax(-1).nan_to_num(0.5), "values are wrong"),
        (
            lambda s, m: s.masked_fill(~m, -100.0).softmax(-1) * m,
            "A blocked score beats allowed ones of -150",
        ),
        (lambda s, m: s.masked_fill(~m, -100.0).softmax(-1), "allowed ones of -150"),
        (lambda s, m: s.masked_fill(~m, -20.0).softmax(-1) * m, "ones of -150"),
        (unshifted, "Allowed scores of 200 overflow"),
        (lambda s, m: unshifted(s, m).nan_to_num(), "Allowed scores of 200 overflow"),
        (lambda s, m: shifted(s, m, torch.max), "subtract each row's own maximum"),
        (
            lambda s, m: hidden(s, m).div(s.shape[-1] ** 0.5).softmax(-1).nan_to_num(),
            "The scores are scaled already",
        ),
        (lambda s, m: s.masked_fill(~m, 1e-9).softmax(-1), "set to 0 before the"),
        (lambda s, m: s.masked_fill(~m, 1e-9).softmax(-1) * m, "1e-9 instead of -1e9"),
        (lambda s, m: s.masked_fill(~m, -1e-9).softmax(-1) * m, "1e-9 instead of"),
        (lambda s, m: s[m], "The shape is wrong"),
    ],
    "causal_mask": [
        (lambda q, k: torch.ones(q, k).triu(k - q).bool(), "the upper triangle"),
        (lambda q, k: torch.ones(q, k).triu(k - q + 1).bool(), "are exchanged"),
        (lambda q, k: torch.ones(q, k).tril(k - q - 1).bool(), "diagonal is hidden"),
        (lambda q, k: torch.ones(q, k).tril().bool(), "aligned to the top left"),
        (lambda q, k: torch.ones(q, k).tril(k - q + 1).bool(), "one token too many"),
        (lambda q, k: torch.ones(q, k).bool(), "Nothing is hidden"),
        (lambda q, k: torch.ones(q, k).tril(k - q), "expected bool, came float32"),
        (lambda q, k: torch.ones(q, k).tril(k - q).long(), "expected bool, came int64"),
        (lambda q, k: torch.full((q, k), -INF).triu(k - q + 1), "added to scores"),
        (lambda q, k: torch.ones(k, k).tril().bool(), "expected (2, 5), came (5, 5)"),
        (lambda q, k: torch.ones(q, k).tril(q - k).bool(), "shifted the wrong way"),
        (lambda q, k: torch.eye(k).bool()[-q:], "Each query sees only itself"),
        (
            lambda q, k: torch.cat([by_comparing(q, q), torch.ones(q, k - q) == 1], 1),
            "The cache stands on the right",
        ),
        (lambda q, k: torch.ones(q, k).tril(k - q).bool()[None], "The shape is wrong"),
        (lambda q, k: torch.ones(q, k).tril(k - q).bool().T, "the upper triangle"),
        (
            lambda q, k: by_comparing(q, k) if q == k else by_comparing(q, k).T,
            "mask is transposed",
        ),
    ],
    "split_heads": [
        (lambda x, h: x.view(x.shape[0], h, x.shape[1], -1), "without transposing"),
        (heads_by_view, "Heads and tokens are in the wrong order"),
        (
            lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2),
            "every heads-th feature",
        ),
        (lambda x, h: heads_by_view(x, h).permute(0, 2, 3, 1), "last two axes"),
        (lambda x, h: heads_by_view(x, h).permute(2, 0, 1, 3), "head axis comes first"),
        (lambda x, h: heads_by_view(x, h).transpose(1, 2).flatten(0, 1), "are merged"),
        (lambda x, h: x, "expected (2, 3, 5, 4), came (2, 5, 12)"),
        (lambda x, h: x.view(x.shape[0], x.shape[1], h, 5), "raised RuntimeError"),
    ],
    "sinusoidal": [
        (
            lambda t, d: torch.cat([waves(t, d).sin(), waves(t, d).cos()], -1),
            "two halves",
        ),
        (lambda t, d: woven(waves(t, d)).flip(1), "values are wrong"),
        (lambda t, d: woven(waves(t, d)).unflatten(1, (-1, 2)).flip(2).flatten(1),
         "are exchanged"),
        (lambda t, d: woven(waves(t, d, start=1)), "start at 1"),
        (lambda t, d: woven(waves(t, d, base=1000.0)), "The base is 1000,"),
        (lambda t, d: woven(waves(t, d, base=math.e)), "The base is e,"),
        (lambda t, d: woven(waves(t, d, torch.arange(d // 2) / d)), "i / d_model, not"),
        (lambda t, d: woven(waves(t, d, 2 * torch.arange(0, d, 2) / d)), "2 is there"),
        (lambda t, d: woven(waves(t, d, -torch.arange(0, d, 2) / d)), "multiplied"),
        (every_column, "share one angle"),
        (lambda t, d: woven(waves(t, d, torch.arange(0, d, 2) / t)), "2i / tokens"),
        (
            lambda t, d: woven(waves(t, d, torch.linspace(0, 1, d // 2))),
            "2i / (d_model - 2)",
        ),
        (
            lambda t, d: woven(waves(t, d, torch.arange(0, d, 2) / (d - 1))),
            "values are wrong",
        ),
        (lambda t, d: waves(t, d).sin().repeat_interleave(2, -1), "only sines"),
        (lambda t, d: woven(waves(t, d)).T, "transposed"),
        (lambda t, d: woven(waves(t, d))[None], "axis too many"),
        (lambda t, d: torch.zeros(t, d), "values are wrong"),
        (lambda t, d: torch.zeros(t), "came (5,)"),
    ],
    "layer_norm": [
        (lambda x, g, b, e: norm(x, g, b, e, correction=1), "d_model - 1, not by"),
        (lambda x, g, b, e: norm(x, g, b, e, inside=False), "eps stands outside"),
        (
            lambda x, g, b, e: norm(x, g, b, e, correction=1, inside=False),
            "d_model - 1, not by d_model, and eps stands outside",
        ),
        (lambda x, g, b, e: norm(x, g, b, 0), "argument eps is not used"),
        (lambda x, g, b, e: norm(x, g, b, 0, correction=1), "and eps is not used"),
        (lambda x, g, b, e: norm(x, g, b, 1e-5), "argument eps is not used"),
        (lambda x, g, b, e: norm(x, g, b, e, dim=-2), "wrong axis"),
        (lambda x, g, b, e: norm(x, g, b, e, dim=0), "wrong axis"),
        (lambda x, g, b, e: norm(x, g, b, e, dim=tuple(range(x.dim()))), "wrong axis"),
        (lambda x, g, b, e: norm(x, g, b, e, centre=False), "mean is not subtracted"),
        (lambda x, g, b, e: F.rms_norm(x, x.shape[-1:], g, e) + b, "RMSNorm"),
        (lambda x, g, b, e: norm(x, 1, 0, e), "gain and bias are not used"),
        (lambda x, g, b, e: norm(x, g, 0, e), "bias is not added"),
        (lambda x, g, b, e: norm(x, 1, b, e), "gain is not used"),
        (lambda x, g, b, e: norm(x, b, g, e), "exchanged"),
        (lambda x, g, b, e: (norm(x, 1, 0, e) + b) * g, "before gain multiplies"),
        (lambda x, g, b, e: norm(x, g, b, e).mean(-1), "The shape is wrong"),
        (lambda x, g, b, e: (x - x.mean(-1)) / x.std(-1), "raised RuntimeError"),
    ],
    "count_parameters": [
        (lambda d, f: block(d, f, ff_bias=0), "biases of the feed-forward"),
        (lambda d, f: block(d, f, attention_bias=0), "biases of the projections"),
        (lambda d, f: block(d, f, norms=0), "layer norms, are missing"),
        (lambda d, f: block(d, f, norms=1), "Half of the layer norms"),
        (lambda d, f: block(d, f, attention_bias=0, ff_bias=0), "All biases"),
        (lambda d, f: 4 * d * d + 2 * d * f, "Only matrices"),
        (lambda d, f: block(d, f, heads=8), "counted 8 times, once a head"),
        (lambda d, f: block(d, f, heads=12), "counted 12 times, once a head"),
        (lambda d, f: block(d, f, projections=3, attention_bias=3), "A projection is"),
        (lambda d, f: block(d, f) - d * f, "A matrix of the feed-forward"),
        (lambda d, f: block(d, f) - 3 * d, "queries, keys and values are missing."),
        (lambda d, f: block(d, f) + f - d, "has d_model entries, not d_ff"),
        (lambda d, f: block(d, f) + 2 * (f - d), "d_model features, not d_ff"),
        (lambda d, f: block(d, 4 * d), "d_ff is taken as 4 * d_model"),
        (lambda d, f: block(d, f) + 1, "There are 1 too many. Expected 458, came 459"),
        (lambda d, f: block(d, f) - 1, "There are 1 too few"),
        (lambda d, f: float(block(d, f)), "A count is an int: came float"),
        (lambda d, f: str(block(d, f)), "A count is an int: came str"),
        (lambda d, f: True, "A count is an int: came bool"),
    ],
}  # fmt: skip


def any_stub(*inputs):
    return ...


def test_every_exercise_has_cases():
    assert list(attention.TALLY.results) == CHECKERS
    assert list(RIGHT) == list(WRONG) == CHECKERS
    assert all(len(wrong) >= 2 for wrong in WRONG.values())


def test_a_forgotten_return_is_named_and_a_stub_is_not_blamed():
    forgotten, stub = attention.scores(lambda q, k: None), attention.scores(any_stub)
    assert "The function returns None: is `return` missing?" in forgotten.message
    assert stub.message.endswith("  The function returns nothing.")


@pytest.mark.parametrize("name, answer", flat(RIGHT))
def test_other_right_answers_pass(name, answer):
    result = check(name, answer)
    assert result.passed, result.message


@pytest.mark.parametrize("name, case", flat(WRONG))
def test_a_wrong_answer_is_told_its_mistake(name, case):
    answer, words = case
    result = check(name, answer)
    assert result.status == "not right yet"
    assert words in " ".join(result.message.split())
    with pytest.raises(core.NotPassedError) as raised:
        result.require()
    assert str(raised.value) == result.message


def test_not_implemented_is_unanswered():
    def answer(q, k):
        raise NotImplementedError

    assert attention.scores(answer).status == "not answered yet"


@pytest.mark.parametrize("answer", [3.5, "text", torch.ones(2, 3)])
def test_what_is_no_function_is_refused(answer):
    result = attention.scores(answer)
    assert "Expected a function, came " in result.message
    assert result.status == "not right yet"


def test_the_message_is_printed_short_and_the_same_each_time(capsys):
    for name, cases in WRONG.items():
        for answer, _ in cases:
            first, second = check(name, answer), check(name, answer)
            assert first == second
            printed = capsys.readouterr().out
            assert printed == f"{first.message}\n{first.message}\n"
            assert max(map(len, printed.splitlines())) <= core.WIDTH
            assert len(first.message.splitlines()) <= 10


@pytest.mark.parametrize("name", CHECKERS)
def test_the_random_state_is_neither_used_nor_changed(name):
    def restless(*inputs):
        torch.rand(3)
        return WRONG[name][0][0](*inputs)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = check(name, restless)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert check(name, restless) == first


def test_overwriting_an_input_is_noted_and_harms_no_check():
    def answer(s, m):
        return s.masked_fill_(~m, -INF).softmax(-1).nan_to_num_()

    result = attention.weights(answer)
    assert result.passed and result.message.count("overwrites its input") == 1


@pytest.mark.parametrize(
    "value",
    [2, 2.0, Fraction(2), np.float32(2), np.array([2.0]), [2], torch.tensor([[2]])],
)
def test_a_number_is_one_however_it_is_wrapped(value):
    assert core.one_number(value) == 2.0


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (True, "the bool True"),
        (torch.tensor(True), "a tensor of shape ()"),
        ("2", "an object of type str"),
        ([2, 3], "a list of 2"),
        (np.ones(2), "an array of shape (2,)"),
        (1j, "an object of type complex"),
        (None, "an object of type NoneType"),
    ],
)
def test_what_is_not_one_number_is_told(value, told):
    assert core.one_number(value) is None
    assert core.sized(value) == told


def test_a_value_with_gradient_is_accepted():
    gain = nn.Parameter(torch.ones(()))
    assert attention.layer_norm(lambda x, g, b, e: gain * norm(x, g, b, e)).passed


@pytest.fixture
def fresh_tally():
    """The tally as in a notebook just opened; restored afterwards."""
    before = dict(attention.TALLY.results)
    attention.TALLY.results = dict.fromkeys(before)
    yield
    attention.TALLY.results = before


def test_the_summary_counts_in_order(fresh_tally, capsys):
    attention.summary()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "0 of 7 answered"
    assert [line.split()[1].rstrip(":") for line in rest] == CHECKERS
    assert all(line.endswith(": not answered yet") for line in rest)

    attention.weights(solution("weights"))
    attention.scores(lambda q, k: q @ k.mT)
    attention.layer_norm(lambda *inputs: None)
    capsys.readouterr()
    attention.summary()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "1 of 7 answered (2 attempted)"
    assert rest[:2] == ["  1 scores: not right yet", "  2 weights: passed"]
    assert rest[5] == "  6 layer_norm: not answered yet"


def test_the_last_answer_counts(fresh_tally, capsys):
    attention.scores(solution("scores"))
    attention.scores(lambda q, k: q @ k.mT)
    capsys.readouterr()
    attention.summary()
    assert capsys.readouterr().out.startswith("0 of 7 answered (1 attempted)")


def test_inputs_do_not_saturate_the_softmax():
    """Saturated weights look alike with and without the scale: nothing would show."""
    for scores, mask in attention._weight_inputs(core.generator()):
        assert (hidden(scores, mask).softmax(-1).amax(-1) < 0.99).all()
        allowed = mask.expand(scores.shape).sum(-1)
        assert (allowed >= 1).all() and (allowed < scores.shape[-1]).all()
