"""The checkers of chapter 2 accept right answers and name mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from answers import flat, solution_of
from torch.nn import functional as F

from medlm_utils import text, training
from medlm_utils.checks import core
from medlm_utils.checks import transformer_lm as lm

INF = math.inf
LN2 = math.log(2)
CHECKERS = ["shift", "nats_per_token", "per_word", "bigram_kneser_ney"]
CHECKERS += ["learning_rate", "chances", "exposure"]


def check(name, answer):
    """The result of one checker."""
    return getattr(lm, name)(answer)


def solution(name):
    """The function as the solutions notebook has it."""
    return solution_of("02_transformer_lm", name)


# Shift


def hide(t):
    return t.masked_fill(t == 0, -100)


def written_into_a_slice(b):
    """The targets are a view, so that the inputs change too."""
    inputs, targets = b[:, :-1], b[:, 1:]
    targets[targets == 0] = -100
    return inputs, targets


def cloned(b):
    targets = b[:, 1:].clone()
    targets[targets == 0] = -100
    return b[:, :-1], targets


def column_by_column(b):
    """Loops, in a list instead of a tuple."""
    pairs = [[(t if t else -100) for t in row[1:]] for row in b.tolist()]
    return [b[:, :-1].clone(), torch.tensor(pairs)]


def first_hidden(b):
    return b[:, :-1], hide(b[:, 1:]).masked_fill(b[:, :-1] == 2, -100)


def end_hidden(b):
    return b[:, :-1], hide(b[:, 1:]).masked_fill(b[:, 1:] == 3, -100)


def some_padding_kept(b):
    targets = hide(b[:, 1:])
    targets[:, -1] = b[:, -1]
    return b[:, :-1], targets


# Nats per token


def by_token(x, t):
    """-log p of each target, 0 at padding; and which are real."""
    real = t != -100
    picked = x.log_softmax(-1).gather(-1, t.clamp(min=0)[..., None])[..., 0]
    return -picked * real, real


def pooled(x, t):
    return F.cross_entropy(x.flatten(0, 1), t.flatten())


def in_loops(x, t):
    nats = [
        float(x[r, c].logsumexp(0) - x[r, c, t[r, c]])
        for r in range(len(t))
        for c in range(t.shape[1])
        if t[r, c] != -100
    ]
    return sum(nats) / len(nats)


def of_rows(x, t):
    """Mean nats of each row."""
    nats, real = by_token(x, t)
    return nats.sum(-1) / real.sum(-1)


def naive_softmax(x, t):
    p = x.exp() / x.exp().sum(-1, keepdim=True)
    real = t != -100
    chosen = p.gather(-1, t.clamp(min=0)[..., None])[..., 0]
    return -chosen[real].log().mean()


def all_scored(x, t):
    return F.cross_entropy(x.flatten(0, 1), t.clamp(min=0).flatten())


def mean_probability(x, t):
    nats, real = by_token(x, t)
    return -(-nats[real]).exp().mean().log()


# Kneser-Ney


def parts(c, d, low=0.0):
    """What is kept, what is freed, and the continuation shares."""
    seen = (c > 0).double()
    total = c.sum(1, keepdim=True)
    kept = (c - d).clamp(min=low) / total
    return kept, d * seen.sum(1, keepdim=True) / total, seen.sum(0) / seen.sum()


def kneser_ney(c, d, low=0.0):
    kept, freed, shares = parts(c, d, low)
    return kept + freed * shares


def unigram(c, d):
    kept, freed, _ = parts(c, d)
    return kept + freed * c.sum(0) / c.sum()


def mended(c, d):
    """The empty row by nan_to_num, a row at a time."""
    table, shares = kneser_ney(c, d), parts(c, d)[2]
    return torch.stack([shares if row.isnan().any() else row for row in table])


def as_in_the_module(c, d):
    """Both orders discounted, from the course's own class."""
    pairs = [
        torch.tensor([v, w])
        for v in range(len(c))
        for w in range(len(c))
        for _ in range(int(c[v, w]))
    ]
    model = text.KneserNeyBigram(pairs, len(c), d)
    v, w = torch.meshgrid(*[torch.arange(len(c))] * 2, indexing="ij")
    return torch.from_numpy(model.probability(v.numpy(), w.numpy()))


def back_off(c, d):
    kept, freed, shares = parts(c, d)
    unseen = (c == 0) * shares
    return kept + freed * unseen / unseen.sum(1, keepdim=True)


# Learning rate


def schedule(rise=None, fall=None, gone=None):
    """A learning rate with one part replaced."""

    def rate(step, steps, peak, warm_up, floor):
        if step < warm_up:
            return peak * rise(step, warm_up) if rise else peak * (step + 1) / warm_up
        g = (step - warm_up) / (steps - 1 - warm_up)
        if gone:
            g = gone(step, steps, warm_up)
        if fall:
            return fall(g, peak, floor)
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * g)) / 2)

    return rate


def wave(g):
    return (1 + math.cos(math.pi * g)) / 2


def of_transformers(step, steps, peak, warm_up, floor):
    """get_cosine_schedule_with_warmup: from 0 to 0."""
    if step < warm_up:
        return peak * step / max(1, warm_up)
    return peak * wave((step - warm_up) / max(1, steps - warm_up))


def without_floor(step, steps, peak, warm_up, floor):
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * wave((step - warm_up) / (steps - warm_up))


def by_min(step, steps, peak, warm_up, floor):
    """Divides by warm_up even where it is 0."""
    rise = (step + 1) / warm_up
    return peak * rise if rise < 1 else solution("learning_rate")(
        step, steps, peak, warm_up, floor
    )  # fmt: skip


# Chances


def out_of(x, k):
    return x < x.topk(k).values[:, -1:]


def scattered(x, t, k):
    best, at = (x / t).topk(k)
    return torch.zeros_like(x).scatter(-1, at, best.softmax(-1))


def renormalised(x, t, k):
    p = (x / t).softmax(-1) * ~out_of(x, k)
    return p / p.sum(-1, keepdim=True)


def row_by_row(x, t, k):
    rows = []
    for row in x:
        keep = row.argsort(descending=True)[:k]
        new = torch.full_like(row, -INF)
        new[keep] = row[keep] / t
        rows.append(new.softmax(0))
    return torch.stack(rows)


def by_hand(x, t, k):
    powers = (x / t).exp() * ~out_of(x, k)
    return powers / powers.sum(-1, keepdim=True)


def hidden(x, k):
    return x.masked_fill(out_of(x, k), -INF)


# Exposure


def bits(n, rank):
    return math.log2(n) - math.log2(rank)


def likelier(x, c):
    return int((x < x[c]).sum())


RIGHT = {
    "shift": [
        cloned,
        column_by_column,
        lambda b: text.inputs_and_targets(b),
        lambda b: (b[:, :-1], torch.where(b[:, 1:] > 0, b[:, 1:], -100)),
    ],
    "nats_per_token": [
        pooled,
        in_loops,
        lambda x, t: F.cross_entropy(x.mT, t),
        lambda x, t: by_token(x, t)[0].sum().item() / int((t != -100).sum()),
        lambda x, t: pooled(x.double(), t).numpy(),
        lambda x, t: pooled(x, t)[None],
    ],
    "per_word": [
        lambda n, w: math.exp(n.sum() / w.sum()),
        lambda n, w: float(n.double().sum() / w.sum()) and 2 ** float(
            n.double().sum() / LN2 / w.sum()
        ),
        lambda n, w: n[n > 0].mean().exp() ** ((n > 0).sum() / w.sum()),
        lambda n, w: torch.exp((n.sum(1) / w * w).sum() / w.sum()),
    ],
    "bigram_kneser_ney": [
        mended,
        lambda c, d: mended(c.float(), d),
        lambda c, d: lm._kneser_ney(c, d),
    ],
    "learning_rate": [
        training.warm_up_cosine,
        lambda s, n, p, w, f: torch.tensor(solution("learning_rate")(s, n, p, w, f)),
        schedule(fall=lambda g, p, f: p * f + (p - p * f) * wave(g)),
    ],
    "chances": [
        scattered,
        renormalised,
        row_by_row,
        lambda x, t, k: (hidden(x, k) / t).softmax(-1),
        lambda x, t, k: hidden(x / t, k).double().softmax(-1),
        lambda x, t, k: (x / t).masked_fill(out_of(x, k), -1e9).softmax(-1),
    ],
    "exposure": [
        lambda x, c: bits(len(x), 1 + likelier(x, c)),
        lambda x, c: torch.tensor(len(x) / (1 + likelier(x, c))).log2(),
        lambda x, c: bits(len(x), 1 + x.argsort().tolist().index(c)),
        lambda x, c: bits(len(x), 1 + int(x.argsort().argsort()[c])),
        lambda x, c: -math.log2((x <= x[c]).double().mean()),
    ],
}  # fmt: skip

# Wrong answers, each with words that the message must have.
WRONG = {
    "shift": [
        (lambda b: (b, b), "Nothing is shifted"),
        (lambda b: (b[:, :-1], b[:, :-1]), "Nothing is shifted"),
        (lambda b: (b[:, 1:], b[:, 1:]), "Nothing is shifted"),
        (lambda b: (b, hide(b)), "Models of transformers shift inside"),
        (lambda b: (b[:, :-1], hide(b[:, :-1])), "Nothing is shifted"),
        (lambda b: (b[:, 1:], hide(b[:, :-1])), "shifted the wrong way"),
        (lambda b: (b[:, 1:], b[:, :-1]), "shifted the wrong way"),
        (lambda b: (hide(b[:, 1:]), b[:, :-1]), "are exchanged"),
        (lambda b: (b[:, :-2], hide(b[:, 2:])), "shifted twice"),
        (lambda b: (b[:, :-2], b[:, 2:]), "shifted twice"),
        (lambda b: (b, b.roll(-1, 1)), "roll brings the first token back"),
        (lambda b: (b, hide(b.roll(-1, 1))), "roll brings the first token back"),
        (lambda b: (b, hide(b[:, 1:])), "inputs are one column too long"),
        (lambda b: (b[:, :-1], b[:, 1:]), "Padding is still a target"),
        (
            lambda b: (b[:, :-1], b[:, 1:].masked_fill(b[:, :-1] == 0, -100)),
            "the first padding of a row is still a target",
        ),
        (written_into_a_slice, "The inputs hold -100, which is no token"),
        (lambda b: (hide(b[:, :-1]), hide(b[:, 1:])), "The inputs hold -100"),
        (first_hidden, "A real target is hidden by -100 in row 0, column 0"),
        (end_hidden, "A real target is hidden by -100 in row 0, column 5"),
        (some_padding_kept, "Padding is a target, without -100, in row 1, column 5"),
        (lambda b: (b[:-1], hide(b[1:])), "targets have a wrong shape|inputs have a"),
        (lambda b: (b[:, :-1].flip(1), hide(b[:, 1:])), "The inputs are wrong"),
        (lambda b: (b[:, :-1], hide(b[:, 1:] * 2)), "The targets are wrong"),
        (lambda b: b[:, 1:], "a pair of tensors, came a tensor of shape (3, 6)"),
        (lambda b: (b[:, :-1], b[:, 1:].float()), "targets came as float32"),
        (lambda b: (b[:, :-1].tolist(), b[:, 1:]), "Expected a tensor of inputs"),
        (lambda b: b[:, 1:] @ b, "raised RuntimeError"),
    ],
    "nats_per_token": [
        (lambda x, t: of_rows(x, t).mean(), "a mean of the rows' means"),
        (lambda x, t: of_rows(x, t).nanmean(), "a mean of the rows' means"),
        (
            lambda x, t: by_token(x, t)[0].mean(),
            "Padding is counted: the divisor is too large",
        ),
        (all_scored, "Padding is scored, as if 0 were"),
        (
            lambda x, t: by_token(x, t)[0][t > 0].mean(),
            "Targets of 0 are left out",
        ),
        (lambda x, t: by_token(x, t)[0].sum(), "divide by their number"),
        (lambda x, t: by_token(x, t)[0].sum() / len(t), "by the rows, not the targets"),
        (lambda x, t: by_token(x, t)[0].sum(1).mean(), "by the rows, not the targets"),
        (lambda x, t: by_token(x, t)[0].sum(0).mean(), "divided by the columns"),
        (lambda x, t: pooled(x, t) / LN2, "These are bits per token"),
        (lambda x, t: pooled(x, t).exp(), "This is a perplexity"),
        (lambda x, t: of_rows(x, t).exp().mean(), "a mean of the rows' perplexities"),
        (lambda x, t: of_rows(x, t).exp().mean().log(), "Perplexities are averaged"),
        (lambda x, t: -pooled(x, t), "The sign is wrong"),
        (mean_probability, "logarithm of a mean probability"),
        (lambda x, t: pooled(x.softmax(-1), t), "The softmax is taken twice"),
        (
            lambda x, t: pooled(x[:, :-1], t[:, 1:].contiguous()),
            "It is shifted once more",
        ),
        (
            lambda x, t: F.nll_loss(x.log_softmax(1).flatten(0, 1), t.flatten()),
            "softmax runs over the wrong axis",
        ),
        (naive_softmax, "With logits of 200 and -200 the value is wrong"),
        (
            lambda x, t: F.nll_loss(x.softmax(-1).log().flatten(0, 1), t.flatten()),
            "With logits of 200 and -200 the value is wrong",
        ),
        (lambda x, t: pooled(x, t) + 0.1, "The value is wrong. Expected"),
        (lambda x, t: by_token(x, t)[0], "Expected one number, came a tensor of shape"),
        (lambda x, t: "2.1", "Expected one number, came an object of type str"),
        (lambda x, t: True, "Expected one number, came the bool True"),
        (lambda x, t: F.cross_entropy(x, t), "raised"),
    ],
    "per_word": [
        (lambda n, w: n.sum().div((n > 0).sum()).exp(), "It is divided by tokens."),
        (lambda n, w: n.mean().exp(), "divided by tokens, padding included"),
        (lambda n, w: n.sum() / w.sum(), "nats per word: exp is missing"),
        (lambda n, w: n.sum() / w.sum() / LN2, "bits per word: exp is missing"),
        (lambda n, w: 2 ** (n.sum() / w.sum()), "2 is raised to nats"),
        (lambda n, w: (n.sum() / w.sum() / LN2).exp(), "e is raised to bits"),
        (lambda n, w: (-n.sum() / w.sum()).exp(), "The sign is wrong"),
        (lambda n, w: (n.sum(1) / w).exp().mean(), "a mean of the texts' perplexities"),
        (lambda n, w: (n.sum(1) / w).mean().exp(), "nats per word are averaged"),
        (
            lambda n, w: ((n.sum(1) / w).exp() * w).sum() / w.sum(),
            "though weighted",
        ),
        (
            lambda n, w: n[n > 0].mean().exp() * (n > 0).sum() / w.sum(),
            "is multiplied by tokens per word",
        ),
        (
            lambda n, w: (n.sum(1) / (n > 0).sum(1)).exp().mean(),
            "a mean over texts, by token",
        ),
        (lambda n, w: (n.sum() / len(w)).exp(), "divided by the number of texts"),
        (lambda n, w: n[n > 0].exp().mean(), "exp of every token is averaged"),
        (
            lambda n, w: (-n).exp().prod() ** (-1 / w.sum()),
            "the product of many probabilities is 0",
        ),
        (lambda n, w: n.sum().exp() ** (1 / w.sum()), "exp of many nats is inf"),
        (lambda n, w: (n.sum(1) / w).exp(), "Expected one number, came a tensor"),
        (lambda n, w: n.sum(1) / n.sum(0), "raised RuntimeError"),
    ],
    "bigram_kneser_ney": [
        (unigram, "The second part has the unigram"),
        (
            lambda c, d: parts(c, d)[0] + parts(c, d)[1] / len(c),
            "The second part is uniform",
        ),
        (
            lambda c, d: parts(c, d)[0]
            + parts(c, d)[1] * (c > 0).sum(1) / (c > 0).sum(),
            "counts the followers of a token",
        ),
        (lambda c, d: parts(c, d)[0], "what the discount frees is not given back"),
        (
            lambda c, d: parts(c, d)[0] / parts(c, d)[0].sum(1, keepdim=True),
            "goes back to the pairs that were seen",
        ),
        (
            lambda c, d: c / c.sum(1, keepdim=True) + parts(c, d)[1] * parts(c, d)[2],
            "nothing is taken from the counts",
        ),
        (lambda c, d: kneser_ney(c, d, -INF), "is taken from counts of 0 too"),
        (
            lambda c, d: (c - d) / c.sum(1, keepdim=True),
            "counts of 0 too, and nothing is given back",
        ),
        (
            lambda c, d: parts(c, d)[0] + d / c.sum(1, keepdim=True) * parts(c, d)[2],
            "taken from every follower, not once a row",
        ),
        (lambda c, d: parts(c, d)[0] + d * parts(c, d)[2], "is the bare discount"),
        (
            lambda c, d: parts(c, d)[0]
            + d * len(c) / c.sum(1, keepdim=True) * parts(c, d)[2],
            "from followers only, not from the whole vocabulary",
        ),
        (
            lambda c, d: parts(c, d)[0] + parts(c, d)[1] * (c > 0).sum(0) / len(c),
            "continuation is divided by the vocabulary",
        ),
        (
            lambda c, d: parts(c, d)[0] + parts(c, d)[1] * (c > 0).sum(0) / c.sum(),
            "continuation is divided by all counts",
        ),
        (
            lambda c, d: parts(c, d)[0] + parts(c, d)[1] * (c > 0).sum(0),
            "continuation counts are not divided",
        ),
        (as_in_the_module, "The continuation is discounted as well"),
        (back_off, "that is back-off"),
        (lambda c, d: c / c.sum(1, keepdim=True), "relative frequencies"),
        (lambda c, d: (c + 1) / (c + 1).sum(1, keepdim=True), "This is add-one"),
        (lambda c, d: parts(c, d)[2].expand(c.shape), "the second part alone"),
        (lambda c, d: kneser_ney(c, d).T, "The table is transposed"),
        (lambda c, d: kneser_ney(c.T, d), "The counts are read by columns"),
        (lambda c, d: kneser_ney(c.T, d).T, "The counts are read by columns"),
        (kneser_ney, "is divided by 0: its total is 0"),
        (lambda c, d: kneser_ney(c, d).nan_to_num(), "is 0, so that whatever comes"),
        (lambda c, d: kneser_ney(c, d).nan_to_num(1 / len(c)), "follows is uniform"),
        (lambda c, d: mended(c, d) * (2 - c.any(1).double())[:, None], "follows is wr"),
        (lambda c, d: kneser_ney(c, d) + 0.01, "The values are wrong"),
        (lambda c, d: kneser_ney(c, d).sum(1), "The shape is wrong"),
        (lambda c, d: kneser_ney(c, d).tolist(), "Expected a torch.Tensor"),
    ],
    "learning_rate": [
        (schedule(rise=lambda s, w: s / w), "The warm-up starts at 0"),
        (schedule(rise=lambda s, w: s / (w - 1)), "The warm-up starts at 0"),
        (schedule(rise=lambda s, w: 1), "There is no warm-up"),
        (schedule(rise=lambda s, w: (s + 1) / (w + 1)), "one step too long"),
        (
            lambda s, n, p, w, f: p * (f + (1 - f) * s / w) if s < w else p,
            "The warm-up starts from the floor",
        ),
        (
            lambda s, n, p, w, f: p * (f + (1 - f) * (s + 1) / w) if s < w else p,
            "The warm-up starts from the floor",
        ),
        (lambda s, n, p, w, f: (s + 1) / w, "The warm-up does not use the peak"),
        (
            schedule(rise=lambda s, w: 1 - wave((s + 1) / w)),
            "The warm-up is a cosine",
        ),
        (of_transformers, "The warm-up starts at 0"),
        (
            without_floor,
            "There is no floor: the rate falls to 0. The cosine ends one step too late",
        ),
        (schedule(fall=lambda g, p, f: p * wave(g)), "There is no floor"),
        (schedule(gone=lambda s, n, w: (s - w) / (n - w)), "ends one step too late"),
        (schedule(gone=lambda s, n, w: (s - w + 1) / (n - w)), "one step too early"),
        (schedule(gone=lambda s, n, w: s / (n - 1)), "The cosine starts at step 0"),
        (schedule(gone=lambda s, n, w: s / n), "The cosine starts at step 0"),
        (schedule(gone=lambda s, n, w: (s - w) / n), "as long as the run"),
        (schedule(gone=lambda s, n, w: (s - w) / (n - 1)), "as long as the run"),
        (
            schedule(fall=lambda g, p, f: f + (p - f) * wave(g)),
            "The floor is a share of the peak, not a rate",
        ),
        (schedule(fall=lambda g, p, f: p * (f + wave(g))), "The floor is added on top"),
        (schedule(fall=lambda g, p, f: f + p * wave(g)), "added on top, and it is a"),
        (schedule(fall=lambda g, p, f: p * max(f, wave(g))), "cut off at the floor"),
        (schedule(fall=lambda g, p, f: max(f, p * wave(g))), "cut off at the floor"),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * wave(2 * g)),
            "a whole one goes back to the peak",
        ),
        (
            schedule(
                fall=lambda g, p, f: p * f + (p - p * f) * math.cos(math.pi * g / 2)
            ),
            "A quarter of a cosine",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * wave(g / 2)),
            "ends half-way down",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * wave(g / math.pi)),
            "pi is missing",
        ),
        (
            schedule(
                fall=lambda g, p, f: p * f + (p - p * f) * wave(180 * g / math.pi)
            ),
            "cos takes radians, not degrees",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * math.cos(math.pi * g)),
            "runs from 1 to -1",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * 2 * wave(g)),
            "The cosine is not halved",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * (1 - wave(g))),
            "upside down",
        ),
        (
            schedule(fall=lambda g, p, f: p * f + (p - p * f) * (1 - g)),
            "The way down is a straight line",
        ),
        (schedule(fall=lambda g, p, f: p), "The rate stays at the peak"),
        (schedule(rise=lambda s, w: 0.3), "The rate going up is wrong. Step 0"),
        (
            schedule(fall=lambda g, p, f: 0.3),
            "after the warm-up is wrong. Step 5: expected 0.5, came 0.3.",
        ),
        (by_min, "raised ZeroDivisionError"),
        (lambda *inputs: [0.1, 0.2], "Expected one number, came a list of 2"),
    ],
    "chances": [
        (lambda x, t, k: (hidden(x, k) * t).softmax(-1), "multiplied by the temp"),
        (
            lambda x, t, k: (x / t).softmax(-1) * ~out_of(x, k),
            "top_k is applied after the softmax",
        ),
        (
            lambda x, t, k: (x / t)
            .masked_fill(x > (-(-x).topk(k).values)[:, -1:], -INF)
            .softmax(-1),
            "The smallest logits are kept",
        ),
        (lambda x, t, k: (x / t).softmax(-1), "top_k is not used"),
        (lambda x, t, k: hidden(x, k).softmax(-1), "The temperature is not used"),
        (lambda x, t, k: x.softmax(-1), "Neither temperature nor top_k"),
        (lambda x, t, k: (x / t).topk(k).values.softmax(-1), "Only the best tokens"),
        (
            lambda x, t, k: (x / t * ~out_of(x, k)).softmax(-1),
            "Hidden logits are set to 0",
        ),
        (
            lambda x, t, k: hidden(x.softmax(-1) / t, k).softmax(-1),
            "The softmax is taken twice",
        ),
        (
            lambda x, t, k: x.softmax(-1) * ~out_of(x, k) / t,
            "Probabilities are divided by the temperature",
        ),
        (
            lambda x, t, k: hidden(x, k).softmax(-1) / t,
            "Probabilities are divided by the temperature",
        ),
        (
            lambda x, t, k: (x / t)
            .masked_fill(x <= x.topk(k).values[:, -1:], -INF)
            .softmax(-1),
            "The k-th best token is hidden too",
        ),
        (
            lambda x, t, k: (x / t)
            .masked_fill(x < x.flatten().topk(k).values[-1], -INF)
            .softmax(-1),
            "those of the whole batch",
        ),
        (
            lambda x, t, k: (x / t)
            .masked_fill(x < x.topk(min(k, 5), 0).values[-1:], -INF)
            .softmax(-1),
            "sought down the columns",
        ),
        (lambda x, t, k: hidden(x / t, k), "These are logits"),
        (lambda x, t, k: hidden(x / t, k).log_softmax(-1), "These are logarithms"),
        (lambda x, t, k: hidden(x / t, k).softmax(0), "over the wrong axis"),
        (lambda x, t, k: hidden(x / t / t, k).softmax(-1), "temperature is used twice"),
        (by_hand, "Large logits at a low temperature"),
        (
            lambda x, t, k: x.masked_fill(out_of(x, k), -100.0).div(t).softmax(-1),
            "Large logits at a low temperature",
        ),
        (lambda x, t, k: hidden(x / t, k).softmax(-1) * 0.9, "The values are wrong"),
        (
            lambda x, t, k: torch.multinomial(scattered(x, t, k), 1),
            "The shape is wrong: expected (5, 7), came (5, 1)",
        ),
        (lambda x, t, k: x.topk(k) / t, "raised TypeError"),
    ],
    "exposure": [
        (lambda x, c: bits(len(x), likelier(x, c)), "The rank counts from 0"),
        (
            lambda x, c: bits(len(x), 1 + int((x > x[c]).sum())),
            "The ranks run the wrong way: rank 1",
        ),
        (
            lambda x, c: bits(len(x), int((x > x[c]).sum())),
            "The ranks run the wrong way, and from 0",
        ),
        (
            lambda x, c: bits(len(x), 1 + int(x.argsort()[c])),
            "argsort()[canary] is the candidate at that rank",
        ),
        (
            lambda x, c: bits(len(x), int(x.argsort()[c])),
            "argsort()[canary] is the candidate at that rank",
        ),
        (
            lambda x, c: math.log(len(x)) - math.log(1 + likelier(x, c)),
            "These are nats",
        ),
        (
            lambda x, c: math.log10(len(x)) - math.log10(1 + likelier(x, c)),
            "log10 is used",
        ),
        (lambda x, c: -bits(len(x), 1 + likelier(x, c)), "The sign is wrong"),
        (lambda x, c: -math.log2(1 + likelier(x, c)), "log2(candidates) is missing"),
        (lambda x, c: math.log2(1 + likelier(x, c)), "This is log2 of the rank"),
        (lambda x, c: 1 + likelier(x, c), "This is the rank"),
        (
            lambda x, c: math.log2(len(x)) - 1 - likelier(x, c),
            "The rank itself is subtracted",
        ),
        (lambda x, c: len(x) / (1 + likelier(x, c)), "This is candidates / rank"),
        (
            lambda x, c: bits(len(x) - 1, 1 + likelier(x, c)),
            "The canary is one of the candidates",
        ),
        (
            lambda x, c: math.log2(len(x)) - float(x[c]) / LN2,
            "The nats are subtracted",
        ),
        (
            lambda x, c: math.log2(len(x) - 1 - likelier(x, c)),
            "subtracted before the logarithm",
        ),
        (lambda x, c: 0.0, "The value is wrong. Expected 2.474, came 0."),
        (lambda x, c: x, "Expected one number, came a tensor of shape (50,)"),
        (lambda x, c: x[c:c] + x[:2, None] @ x, "raised"),
    ],
}  # fmt: skip


def test_every_exercise_has_cases():
    assert list(lm.TALLY.results) == CHECKERS
    assert list(RIGHT) == list(WRONG) == CHECKERS
    assert all(len(wrong) >= 2 for wrong in WRONG.values())


@pytest.mark.parametrize("name, answer", flat(RIGHT))
def test_other_right_answers_pass(name, answer):
    result = check(name, answer)
    assert result.passed, result.message


@pytest.mark.parametrize("name, case", flat(WRONG))
def test_a_wrong_answer_is_told_its_mistake(name, case):
    answer, words = case
    result = check(name, answer)
    assert result.status == "not right yet"
    said = " ".join(result.message.split())
    assert any(wanted in said for wanted in words.split("|")), result.message


def test_the_message_is_printed_short_and_the_same_each_time(capsys):
    for name, cases in WRONG.items():
        for answer, _ in cases:
            torch.manual_seed(0)
            first = check(name, answer)
            torch.manual_seed(0)
            assert check(name, answer) == first
            printed = capsys.readouterr().out
            assert printed == f"{first.message}\n{first.message}\n"
            assert max(map(len, printed.splitlines())) <= core.WIDTH
            assert len(first.message.splitlines()) <= 10


# The oracles against others


def test_the_table_is_the_course_s_but_for_a_token_that_follows_nothing():
    """The module discounts the continuation too: q then is nowhere 0."""
    for rows in (lm._TABLE, lm._LARGER):
        counts = torch.tensor(rows)
        table, module = lm._kneser_ney(counts, 0.4), as_in_the_module(counts, 0.4)
        assert torch.allclose(table.sum(1), torch.ones(len(table)).double())
        everywhere = bool((counts.sum(0) > 0).all())
        assert torch.allclose(table, module) is everywhere
        assert module.min() > 0 and (table.min() > 0) == everywhere


def test_pooled_nats_are_those_of_the_course():
    """The same rows through `training.token_nats`: a model that is a fixed table."""
    draw = core.generator(3)
    table = torch.nn.Embedding(9, 9)
    with torch.no_grad():
        table.weight.copy_(torch.randn(9, 9, generator=draw))
    batch = torch.tensor([[2, 5, 7, 8, 3], [2, 4, 3, 0, 0]])
    total, count = training.language_loss(table, batch)
    inputs, targets = solution("shift")(batch)
    ours = solution("nats_per_token")(table(inputs), targets)
    assert torch.allclose(ours, total / count)


def test_the_distribution_is_the_one_that_is_drawn_from():
    """Frequencies of draws from the best logits, as `transformer.generate` draws."""
    logits = torch.randn(1, 6, generator=core.generator(4))
    expected = solution("chances")(logits, 0.8, 3)
    best, tokens = logits.topk(3)
    draws = torch.multinomial(
        (best / 0.8).softmax(-1), 20_000, True, generator=core.generator(5)
    )
    counts = torch.bincount(tokens[0, draws[0]], minlength=6)
    assert torch.allclose(counts / 20_000, expected[0], atol=0.015)


def test_an_unplanted_canary_is_exposed_by_one_bit_and_a_half():
    """1 / ln 2 bits on average: what the discussion says."""
    nats = torch.rand(2000, generator=core.generator(6))
    every = [solution("exposure")(nats, place) for place in range(2000)]
    assert sum(every) / len(every) == pytest.approx(1 / LN2, abs=0.01)
    assert sum(value >= 1 for value in every) == 1000


@pytest.mark.parametrize(
    "mistakes",
    [
        lambda: lm._nats_mistakes(
            torch.randn(3, 5, 7, generator=core.generator()),
            lm._targets((5, 3, 1), 7, core.generator()),
        ),
        lambda: lm._word_mistakes(
            lm._ragged((6, 11, 5), core.generator()), torch.tensor([4, 9, 3])
        ),
        lambda: lm._exposure_mistakes(*lm._candidates(50, 9), 9),
    ],
)
def test_no_two_mistakes_look_alike_on_the_first_input(mistakes):
    """Else one would be called by the other's name."""
    by_words = {}
    for value, says, _ in mistakes():
        by_words.setdefault(says, []).append(value)
    seen = [(value, says) for says, values in by_words.items() for value in values]
    for at, (value, says) in enumerate(seen):
        for other, words in seen[at + 1 :]:
            # A row without targets is the only difference between these two.
            alike = says.split(":")[0][:30] == words.split(":")[0][:30]
            assert alike or not math.isclose(value, other, rel_tol=1e-3), (says, words)
