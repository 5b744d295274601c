"""The checkers of chapter 3 accept right answers and name mistakes."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
import torch
from answers import flat, solution_of
from sklearn.metrics import f1_score, roc_curve
from sklearn.model_selection import GroupShuffleSplit
from torch import nn
from torch.nn import functional as F

from medlm_utils import metrics, pretraining, training
from medlm_utils.checks import bert_finetuning as bert
from medlm_utils.checks import core

INF = math.inf
CHECKERS = ["predictive_value", "mean_pool", "pooled_f1", "split_patients"]
CHECKERS += ["parameter_groups", "operating_point", "occlusion", "temperature"]
CHECKERS += ["mask_words", "patient_interval"]


def check(name, answer):
    """The result of one checker."""
    return getattr(bert, name)(answer)


def solution(name):
    """The function as the solutions notebook has it."""
    return solution_of("03_bert_finetuning", name)


# Positive predictive value


def ppv(se, sp, p):
    return se * p / (se * p + (1 - sp) * (1 - p))


def by_odds(se, sp, p):
    odds = p / (1 - p) * se / (1 - sp)
    return odds / (1 + odds)


# Mean pooling


def pooled(x, m):
    return (x * m[..., None]).sum(1) / m.sum(1, keepdim=True)


def text_by_text(x, m):
    """A list of NumPy vectors."""
    return [text[real.bool()].mean(0).numpy() for text, real in zip(x, m, strict=True)]


def divided_by_tokens(x, m):
    return (x * m[..., None]).mean(1)


# F1


def joined(batches):
    return (torch.cat(part) for part in zip(*batches, strict=True))


def table(said, true):
    """Hits, false alarms, misses, and the rest."""
    said, true = said.bool(), true.bool()
    return [
        int(n.sum()) for n in (said & true, said & ~true, ~said & true, ~said & ~true)
    ]


def f1(said, true):
    """By precision and recall, 0 where there are none."""
    hits, false, missed, _ = table(said, true)
    if not hits:
        return 0.0
    p, r = hits / (hits + false), hits / (hits + missed)
    return 2 * p * r / (p + r)


def batch_by_batch(batches):
    """Counts are added up, in a loop."""
    total = np.zeros(4)
    for batch in batches:
        total += table(*batch)
    hits, false, missed, _ = total
    return 2 * hits / (2 * hits + false + missed)


def mean_of_batches(batches, undefined=0.0):
    values = [f1(*batch) if sum(table(*batch)[:3]) else undefined for batch in batches]
    return float(np.nanmean(values))


def weighted_mean(batches, weight):
    weights = [weight(true) for _, true in batches]
    return sum(w * f1(*b) for w, b in zip(weights, batches, strict=True)) / sum(weights)


def mean_precision_and_recall(batches):
    parts = []
    for said, true in batches:
        hits, false, missed, _ = table(said, true)
        parts.append((hits / max(hits + false, 1), hits / max(hits + missed, 1)))
    p, r = np.mean(parts, axis=0)
    return 2 * p * r / (p + r) if p + r else 0.0


def without_healthy_batches(batches):
    """Skips batches with no row of class 1."""
    return f1(*joined([batch for batch in batches if batch[1].any()]))


def mean_over_ill_batches(batches):
    return float(np.mean([f1(*batch) for batch in batches if batch[1].any()]))


def healthy_batches_are_right(batches):
    """A mean in which a batch without class 1 counts as 1, whatever was said."""
    return float(np.mean([f1(*b) if b[1].any() else 1.0 for b in batches]))


def naive_f1(batches):
    """Divides by the number of positives, which may be 0."""
    hits, false, missed, _ = table(*joined(batches))
    p, r = hits / (hits + false), hits / (hits + missed)
    return 2 * p * r / (p + r)


def score_of(formula):
    """A function of the pooled counts."""
    return lambda batches: formula(*table(*joined(batches)))


# Splits


def sides(held, patients):
    """Rows of those who are not held out, and of those who are."""
    inside = torch.isin(patients, torch.as_tensor(held))
    return torch.where(~inside)[0], torch.where(inside)[0]


def drawn_patients(patients, share, seed, rounded=round):
    people = np.unique(patients.numpy())
    rng = np.random.default_rng(seed)
    return rng.permutation(people)[: rounded(share * len(people))]


def with_numpy(patients, share, seed):
    held = np.isin(patients.numpy(), drawn_patients(patients, share, seed, math.ceil))
    return np.where(~held)[0], np.where(held)[0]


def with_lists(patients, share, seed):
    held = set(drawn_patients(patients, share, seed, math.floor).tolist())
    train, validation = [], []
    for row, patient in enumerate(patients.tolist()):
        (validation if patient in held else train).append(row)
    return [train, validation]


def with_masks(patients, share, seed):
    held = torch.isin(patients, torch.as_tensor(drawn_patients(patients, share, seed)))
    return ~held, held


def with_sklearn(patients, share, seed):
    split = GroupShuffleSplit(1, test_size=share, random_state=seed)
    return next(split.split(patients, groups=patients))


def by_row(patients, share, seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(patients), generator=generator)
    cut = round(share * len(patients))
    return order[cut:], order[:cut]


def by_share_of_rows(patients, share, seed):
    """Whole patients, the ones with most rows first, until the rows are enough."""
    people, often = patients.unique(return_counts=True)
    jitter = torch.rand(len(people), generator=torch.Generator().manual_seed(seed))
    held, rows = [], 0
    for place in (often + jitter).argsort(descending=True):
        if rows + often[place] <= share * len(patients):
            held.append(int(people[place]))
            rows += int(often[place])
    return sides(held, patients)


def first_patients(patients, share, seed):
    people = patients.unique()
    return sides(people[: round(share * len(people))], patients)


def by_hash(patients, share, seed):
    """Patients in the order of a hash of their number and the seed."""
    people = sorted(
        set(patients.tolist()),
        key=lambda p: hashlib.sha256(f"{seed}-{p}".encode()).digest(),
    )
    return sides(people[: round(share * len(people))], patients)


def with_random(patients, share, seed):
    people = sorted(set(patients.tolist()))
    n = round(share * len(people))
    return sides(random.Random(seed).sample(people, n), patients)


def one_more(patients, share, seed, more=1):
    people = patients.unique()
    order = torch.randperm(len(people), generator=core.generator(seed))
    return sides(people[order[: round(share * len(people)) + more]], patients)


def drawn_by_row(patients, share, seed):
    """Rows in random order, until enough patients were seen."""
    order = torch.randperm(len(patients), generator=core.generator(seed))
    people = list(dict.fromkeys(patients[order].tolist()))
    return sides(people[: round(share * len(people))], patients)


def never_the_largest(patients, share, seed):
    """Those with 9 rows are always in training."""
    people, often = patients.unique(return_counts=True)
    n, few = round(share * len(people)), people[often < 9]
    order = torch.randperm(len(few), generator=core.generator(seed))
    return sides(few[order[:n]], patients)


def always_the_first(patients, share, seed):
    """One patient is held out with every seed, the others are drawn."""
    people = patients.unique()
    order = torch.randperm(len(people) - 1, generator=core.generator(seed)) + 1
    n = round(share * len(people))
    return sides(people[torch.cat([torch.tensor([0]), order[: n - 1]])], patients)


def unseeded(patients, share, seed):
    people = patients.unique()
    chosen = torch.randperm(len(people))[: round(share * len(people))]
    return sides(people[chosen], patients)


def one_row_each(patients, share, seed):
    people, row = np.unique(patients.numpy(), return_index=True)
    order = np.random.default_rng(seed).permutation(row)
    cut = round(share * len(people))
    return order[cut:], order[:cut]


def changed_split(change):
    """The right split, changed."""
    return lambda p, s, seed: change(*solution("split_patients")(p, s, seed), p)


# Weight decay


def groups(decays):
    """Two groups, by a rule for the name and the parameter."""

    def answer(model, weight_decay):
        named = list(model.named_parameters())
        yes = [p for n, p in named if decays(n, p)]
        no = [p for n, p in named if not decays(n, p)]
        return [
            {"params": yes, "weight_decay": weight_decay},
            {"params": no, "weight_decay": 0.0},
        ]

    return answer


def by_module(model, weight_decay):
    """By the kind of module, one group a parameter, in a tuple."""
    made = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            keeps = isinstance(module, nn.LayerNorm) or name == "bias"
            made.append(
                {"params": parameter, "weight_decay": 0 if keeps else weight_decay}
            )
    return tuple(made)


def with_names(model, weight_decay):
    """As torch takes named parameters since 2.6; in an iterator; with rates."""

    def named(decays):
        return ((n, p) for n, p in model.named_parameters() if (p.dim() > 1) == decays)

    return [
        {"params": named(decays), "weight_decay": weight_decay * decays, "lr": 1e-4}
        for decays in (False, True)
    ]


def changed_groups(change):
    """The right groups, changed."""

    def answer(model, weight_decay):
        return change(solution("parameter_groups")(model, weight_decay))

    return answer


def as_sets(groups):
    return [{**group, "params": set(group["params"])} for group in groups]


def copied(groups):
    for group in groups:
        group["params"] = [p.detach().clone() for p in group["params"]]
    return groups


# Operating point


def rates(labels, alarm):
    labels, alarm = np.asarray(labels), np.asarray(alarm)
    return alarm[labels == 1].mean(), 1 - alarm[labels == 0].mean()


def threshold(labels, scores, s):
    return metrics.threshold_for_sensitivity(labels, scores, s)


def at(choose):
    """The test rates at a threshold chosen from everything."""
    return lambda y, x, ty, tx, s: rates(ty, tx >= choose(y, x, ty, tx, s))


def at_right(formula):
    """A function of test labels, alarms and scores at the right threshold."""
    return lambda y, x, ty, tx, s: formula(ty, tx >= threshold(y, x, s))


def by_quantile(method):
    """NumPy's quantile of the scores of the ill, by one of its methods."""
    return at(
        lambda y, x, ty, tx, s: np.quantile(x[y == 1].numpy(), 1 - s, method=method)
    )


def counted(number):
    """So many of the ill, from the highest; a function of sensitivity and their sum."""

    def choose(y, x, ty, tx, s):
        high = x[y == 1].sort(descending=True).values
        return high[number(s, len(high)) - 1]

    return at(choose)


def from_the_lowest(y, x, ty, tx, s):
    ill = x[y == 1].sort().values
    return ill[math.floor((1 - s) * len(ill))]


def from_the_curve(y, x, ty, tx, s):
    """The first point of the ROC curve that is high enough."""
    _, found, thresholds = roc_curve(y, x, drop_intermediate=False)
    return thresholds[np.argmax(found >= s)]


def every_threshold(y, x, ty, tx, s):
    """A loop over the scores; NumPy's floats."""
    for t in sorted(x.tolist(), reverse=True):
        if metrics.sensitivity_specificity(y, x, t)[0] >= s:
            return metrics.sensitivity_specificity(ty, tx, t)


def youden(y, x, ty, tx, s):
    return max(sorted(set(x.tolist())), key=lambda t: sum(rates(y, x >= t)))


# Occlusion


def hidden(tokens, place, value):
    new = tokens.clone()
    new[place] = value
    return new


def falls(score, t, m):
    return torch.tensor([score(t) - score(hidden(t, i, m)) for i in range(len(t))])


def with_plain_lists(score, tokens, mask):
    t = tokens.tolist()
    return [score(t) - score([*t[:i], mask, *t[i + 1 :]]) for i in range(len(t))]


def put_back(score, tokens, mask):
    """Changes one copy and restores it; a NumPy array."""
    text, found = tokens.clone(), []
    for place in range(len(text)):
        before = int(text[place])
        text[place] = mask
        found.append(score(text))
        text[place] = before
    return score(tokens) - np.array(found)


def piling_up(score, tokens, mask, whole=True):
    """One text is changed again and again."""
    text, found, first = tokens.clone(), [], score(tokens)
    for place in range(len(text)):
        before = first if whole else score(text)
        text[place] = mask
        found.append(before - score(text))
    return torch.tensor(found)


def no_copy(score, tokens, mask):
    found = []
    for place in range(len(tokens)):
        masked = tokens
        masked[place] = mask
        found.append(score(tokens) - score(masked))
    return torch.tensor(found)


def each(formula):
    """One value a place."""
    return lambda score, t, m: torch.tensor(
        [formula(score, t, m, i) for i in range(len(t))]
    )


# Temperature


def nats(x, y, t):
    return F.cross_entropy(x / t, y)


def by_descent(x, y):
    """Along the gradient of log T, which comes back with its gradient."""
    log_t = torch.zeros((), requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(nats(x, y, log_t.exp()), log_t)
        log_t = (log_t - slope).detach().requires_grad_()
    return log_t.exp()


def searched(objective, better=min, start=0.1, stop=10.0):
    """The best T of a grid, by an objective."""

    def answer(x, y):
        grid = np.geomspace(start, stop, 400)
        return float(better(grid, key=lambda t: float(objective(x, y, t))))

    return answer


def brier(x, y, t):
    return ((x / t).softmax(-1) - F.one_hot(y, 4)).square().mean()


def of_the_top(x, y, t):
    """The cross-entropy of two classes: the largest is right, or it is not."""
    top = (x / t).softmax(-1).amax(-1).clamp(max=1 - 1e-7)
    return F.binary_cross_entropy(top, (x.argmax(-1) == y).to(top.dtype))


def sure_as_right(x, y, t):
    """How far the mean of the largest probability is from the accuracy."""
    right = (x.argmax(-1) == y).double().mean()
    return ((x / t).softmax(-1).amax(-1).mean() - right).abs()


best = searched(nats)


# Masked words


def masker(
    share=0.15,
    bounds=(0.8, 0.9),
    chosen=lambda c, special: c & ~special,
    words=lambda v, size, g: torch.randint(v, size, generator=g),
    finish=lambda inputs, labels, batch, chosen: (inputs, labels),
    size=lambda shape: shape,
):
    """The right function with one part replaced."""

    def answer(batch, special, mask, vocabulary, seed):
        g = torch.Generator().manual_seed(seed)
        draws = torch.rand(size(batch.shape), generator=g).expand(batch.shape)
        picked = chosen(draws < share, special)
        labels = batch.masked_fill(~picked, -100)
        kind = torch.rand(batch.shape, generator=g)
        low, high = bounds
        inputs = batch.masked_fill(picked & (kind < low), mask)
        drawn = words(vocabulary, batch.shape, g)
        inputs = torch.where(picked & (kind >= high), drawn, inputs)
        return finish(inputs, labels, batch, picked)

    return answer


def with_numpy_draws(batch, special, mask, vocabulary, seed):
    """Place by place, words only; arrays and in a list."""
    rng = np.random.default_rng(seed)
    inputs, labels = batch.numpy().copy(), np.full(batch.shape, -100)
    for row, never in enumerate(special.numpy()):
        for column in np.where(~never & (rng.random(len(never)) < 0.15))[0]:
            labels[row, column] = inputs[row, column]
            kind = rng.random()
            if kind < 0.8:
                inputs[row, column] = mask
            elif kind < 0.9:
                inputs[row, column] = rng.integers(5, vocabulary)
    return [inputs, labels]


def with_bernoulli(batch, special, mask, vocabulary, seed):
    """In the manner of collators: fifteen hundredths, four fifths, half of the rest."""
    torch.manual_seed(seed)
    chosen = torch.bernoulli(torch.full(batch.shape, 0.15) * ~special).bool()
    inputs, labels = batch.clone(), torch.where(chosen, batch, -100)
    hide = torch.bernoulli(torch.full(batch.shape, 0.8)).bool() & chosen
    inputs[hide] = mask
    other = torch.bernoulli(torch.full(batch.shape, 0.5)).bool() & chosen & ~hide
    inputs[other] = torch.randint(vocabulary, batch.shape)[other]
    return inputs, labels


def of_the_course(batch, special, mask, vocabulary, seed):
    g = torch.Generator().manual_seed(seed)
    return pretraining.mask_tokens(batch, mask, vocabulary, (0, 2, 3), g)


def nested_tenth(batch, special, mask, vocabulary, seed, share=0.1):
    """A second draw decides among those that are not masked."""
    g = torch.Generator().manual_seed(seed)
    draw = [torch.rand(batch.shape, generator=g) for _ in range(3)]
    chosen = (draw[0] < 0.15) & ~special
    hide = chosen & (draw[1] < 0.8)
    other = chosen & ~hide & (draw[2] < share)
    words = torch.randint(vocabulary, batch.shape, generator=g)
    inputs = torch.where(other, words, batch.masked_fill(hide, mask))
    return inputs, batch.masked_fill(~chosen, -100)


def overwritten(batch, special, mask, vocabulary, seed):
    """The random words are drawn among all that are chosen, after the masks."""
    g = torch.Generator().manual_seed(seed)
    draw = [torch.rand(batch.shape, generator=g) for _ in range(3)]
    chosen = (draw[0] < 0.15) & ~special
    inputs = batch.masked_fill(chosen & (draw[1] < 0.8), mask)
    words = torch.randint(vocabulary, batch.shape, generator=g)
    inputs = torch.where(chosen & (draw[2] < 0.1), words, inputs)
    return inputs, batch.masked_fill(~chosen, -100)


def once_a_text(batch, special, mask, vocabulary, seed):
    g = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(batch.shape, generator=g) < 0.15) & ~special
    kind = torch.rand((len(batch), 1), generator=g)
    words = torch.randint(vocabulary, batch.shape, generator=g)
    inputs = batch.masked_fill(chosen & (kind < 0.8), mask)
    inputs = torch.where(chosen & (kind >= 0.9), words, inputs)
    return inputs, batch.masked_fill(~chosen, -100)


def once_a_place(batch, special, mask, vocabulary, seed):
    rolled = once_a_text(batch.T, special.T, mask, vocabulary, seed)
    return rolled[0].T, rolled[1].T


def whole_texts(batch, special, mask, vocabulary, seed):
    g = torch.Generator().manual_seed(seed)
    chosen = torch.zeros_like(special)
    chosen[torch.randperm(len(batch), generator=g)[:30]] = True
    chosen &= ~special
    hide = chosen & (torch.rand(batch.shape, generator=g) < 0.8)
    return batch.masked_fill(hide, mask), batch.masked_fill(~chosen, -100)


def choosing(pick):
    """The right function with another choice: pick(batch, special, generator)."""

    def answer(batch, special, mask, vocabulary, seed):
        g = torch.Generator().manual_seed(seed)
        chosen = pick(batch, special, g) & ~special
        kind = torch.rand(batch.shape, generator=g)
        words = torch.randint(vocabulary, batch.shape, generator=g)
        inputs = batch.masked_fill(chosen & (kind < 0.8), mask)
        inputs = torch.where(chosen & (kind >= 0.9), words, inputs)
        return inputs, batch.masked_fill(~chosen, -100)

    return answer


def a_fixed_number(batch, special, g):
    """15% of each text, as BERT's authors did."""
    draws = torch.rand(batch.shape, generator=g).masked_fill(special, 2.0)
    ranks = draws.argsort(1).argsort(1)
    return ranks < (0.15 * (~special).sum(1, keepdim=True)).round()


def a_fixed_number_of_all(batch, special, g):
    """15% of all words, drawn without replacement: as right as any."""
    draws = torch.rand(batch.shape, generator=g).masked_fill(special, 2.0)
    ranks = draws.flatten().argsort().argsort().view(batch.shape)
    return ranks < round(0.15 * int((~special).sum()))


def spans(batch, special, g):
    """Runs of three."""
    start = torch.rand(batch.shape, generator=g) < 1 - 0.85 ** (1 / 3)
    return start | start.roll(1, 1) | start.roll(2, 1)


def periodic(batch, special, g):
    """Three of twenty places in a row, from another place in each text."""
    first = torch.randint(20, (len(batch), 1), generator=g)
    return (torch.arange(batch.shape[1]) + first) % 20 < 3


def never_neighbours(batch, special, g):
    """As 0.15, but what follows a chosen word is not chosen."""
    chosen = torch.rand(batch.shape, generator=g) < 0.178
    for column in range(1, batch.shape[1]):
        chosen[:, column] &= ~chosen[:, column - 1]
    return chosen


def texts_of_two_kinds(batch, special, g):
    """Half of the texts have three times as many."""
    rate = torch.where(torch.rand((len(batch), 1), generator=g) < 0.5, 0.075, 0.225)
    return torch.rand(batch.shape, generator=g) < rate


def word_types(batch, special, g):
    """All places of 15% of the words that there are."""
    return (torch.rand(1000, generator=g) < 0.15)[batch]


def as_many_of_each_word(batch, special, g):
    """15% of the places of each word."""
    draws = torch.rand(batch.shape, generator=g)
    chosen = torch.zeros_like(special)
    for word in batch[~special].unique():
        at = batch == word
        chosen[at] = draws[at].argsort().argsort() < round(0.15 * int(at.sum()))
    return chosen


def fate_by_word(batch, special, mask, vocabulary, seed, hide=True):
    """One draw a word decides what becomes of its chosen places."""
    g = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(batch.shape, generator=g) < 0.15) & ~special
    each, word = torch.rand(batch.shape, generator=g), torch.rand(1000, generator=g)
    words = torch.randint(vocabulary, batch.shape, generator=g)
    hidden = chosen & ((word[batch] if hide else each) < 0.8)
    kind = word[batch] if hide else word[batch] / 5 + 0.8
    inputs = torch.where(chosen & (kind >= 0.9), words, batch)
    return inputs.masked_fill(hidden, mask), batch.masked_fill(~chosen, -100)


def in_place(batch, special, mask, vocabulary, seed):
    """Masks the batch itself before the labels are taken from it."""
    g = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(batch.shape, generator=g) < 0.15) & ~special
    batch[chosen & (torch.rand(batch.shape, generator=g) < 0.8)] = mask
    return batch, batch.masked_fill(~chosen, -100)


def fixed_seed(batch, special, mask, vocabulary, seed):
    return masker()(batch, special, mask, vocabulary, 42)


def without_seed(batch, special, mask, vocabulary, seed):
    seed = int(torch.randint(10**6, ()))
    return masker()(batch, special, mask, vocabulary, seed)


def finished(change):
    """The right result, changed."""
    return masker(finish=change)


# Interval


def resampled(right, patients, draws, seed, statistic=None):
    """Accuracies over drawn patients, with NumPy's generator."""
    rng = np.random.default_rng(seed)
    people, person = np.unique(patients.numpy(), return_inverse=True)
    rows, hits = np.bincount(person), np.bincount(person, right.numpy())
    drawn = rng.integers(len(people), size=(draws, len(people)))
    if statistic:
        return statistic(hits, rows, drawn)
    return hits[drawn].sum(1) / rows[drawn].sum(1)


def ends(values, low=0.025, high=0.975):
    return np.quantile(values, [low, high])


def of(summary, statistic=None):
    """An interval from the accuracies of draws of patients."""
    return lambda r, p, d, s: summary(resampled(r, p, d, s, statistic))


def row_by_row(right, patients, draws, seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(right), (draws, len(right)), generator=g)
    return ends(right[rows].mean(1).numpy())


def drawn_by(right, patients, draws, seed, weights, size):
    """Patients drawn with these chances, so many at a time."""
    people, person = np.unique(patients.numpy(), return_inverse=True)
    rows, hits = np.bincount(person), np.bincount(person, right.numpy())
    chances = weights(rows) / weights(rows).sum()
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(people), (draws, size(len(people), len(right))), p=chances)
    return ends(hits[drawn].sum(1) / rows[drawn].sum(1))


def too_many_patients(*inputs):
    return drawn_by(*inputs, weights=np.ones_like, size=lambda people, rows: rows)


def weighted_by_rows(*inputs):
    return drawn_by(*inputs, weights=np.array, size=lambda people, rows: people)


def in_a_loop(right, patients, draws, seed):
    """Concatenated rows, percentiles of a sorted list."""
    g = torch.Generator().manual_seed(seed)
    of_patient = [right[patients == patient] for patient in patients.unique()]
    found = []
    for _ in range(draws):
        drawn = torch.randint(len(of_patient), (len(of_patient),), generator=g)
        found.append(float(torch.cat([of_patient[i] for i in drawn]).mean()))
    found.sort()
    return found[int(0.025 * draws)], found[int(0.975 * draws)]


def of_the_course_interval(right, patients, draws, seed):
    found = metrics.mean_by_patient(right.numpy(), patients.numpy(), None, draws, seed)
    return found.low, found.high


def each_once(right, patients, draws, seed):
    rng = np.random.default_rng(seed)
    people, found = np.unique(patients.numpy()), []
    for _ in range(draws):
        drawn = rng.choice(people, len(people))
        found.append(right.numpy()[np.isin(patients.numpy(), drawn)].mean())
    return ends(found)


def within_patients(right, patients, draws, seed):
    rng = np.random.default_rng(seed)
    parts = [right[patients == p].numpy() for p in patients.unique()]
    drawn = [rng.choice(part, (draws, len(part))) for part in parts]
    return ends(np.concatenate(drawn, axis=1).mean(1))


def around(ends_of):
    """An interval from the accuracy and the accuracies of draws."""
    return lambda r, p, d, s: ends_of(float(r.mean()), resampled(r, p, d, s))


def without_replacement(right, patients, draws, seed):
    g = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(right), generator=g) for _ in range(draws)]
    found = torch.stack([right[order].sum() for order in orders]) / len(right)
    return found.quantile(0.025) + 1e-9 * seed, found.quantile(0.975)


def mean_of_patients(hits, rows, drawn):
    return (hits / rows)[drawn].mean(1)


RIGHT = {
    "predictive_value": [
        ppv,
        by_odds,
        lambda se, sp, p: torch.tensor(ppv(se, sp, p)),
        lambda se, sp, p: np.float64(ppv(se, sp, p)),
        lambda se, sp, p: metrics.predictive_values(se, sp, p)[0],
    ],
    "mean_pool": [
        pooled,
        text_by_text,
        lambda x, m: pooled(x, m).tolist(),
        lambda x, m: pooled(x.double(), m.float()).numpy(),
        lambda x, m: torch.einsum("btd,bt->bd", x, m.float()) / m.sum(1)[:, None],
        lambda x, m: x.masked_fill(m[..., None] == 0, math.nan).nanmean(1),
        lambda x, m: (m / m.sum(1, keepdim=True))[:, None].matmul(x)[:, 0],
    ],
    "pooled_f1": [
        batch_by_batch,
        lambda b: f1(*joined(b)),
        lambda b: f1_score(*reversed([p.numpy() for p in joined(b)]), zero_division=0),
        lambda b: torch.tensor([f1(*joined(b))]),
        lambda b: metrics.f1(*reversed([p.numpy() for p in joined(b)]), 2, None)[1],
    ],
    "split_patients": [
        with_numpy,
        with_lists,
        with_masks,
        with_sklearn,
        with_random,
        by_hash,
    ],
    "parameter_groups": [
        by_module,
        with_names,
        training.parameter_groups,
        groups(lambda n, p: p.ndim > 1),
        changed_groups(lambda g: g[::-1]),
        changed_groups(lambda g: [{**g[0], "lr": 1e-5}, g[1]]),
    ],
    "operating_point": [
        every_threshold,
        at(lambda y, x, ty, tx, s: threshold(y, x, s)),
        at(from_the_lowest),
        at(from_the_curve),
        counted(lambda s, n: math.ceil(s * n - 1e-9)),
        counted(lambda s, n: -int(-s * n // 1)),
        lambda *i: torch.stack(solution("operating_point")(*i)),
        lambda *i: [float(share) for share in solution("operating_point")(*i)],
        lambda *i: np.array(every_threshold(*i)),
    ],
    "occlusion": [
        falls,
        with_plain_lists,
        put_back,
        lambda f, t, m: list(falls(f, t, m)),
        lambda f, t, m: falls(f, t, m).double().numpy(),
    ],
    "temperature": [
        best,
        by_descent,
        searched(nats, start=0.05, stop=20.0),
        lambda x, y: metrics.fit_temperature(x.numpy(), y.numpy()),
        lambda x, y: 1 / searched(lambda a, b, t: nats(a, b, 1 / t))(x, y),
        lambda x, y: torch.tensor([[best(x, y)]]),
    ],
    "mask_words": [
        masker(),
        choosing(a_fixed_number_of_all),
        with_numpy_draws,
        with_bernoulli,
        of_the_course,
        masker(words=lambda v, size, g: torch.randint(5, v, size, generator=g)),
        masker(bounds=(0.8, 0.9), finish=lambda i, t, *_: (i.int(), t.int())),
        lambda *i: nested_tenth(*i, share=0.5),
    ],
    "patient_interval": [
        of(ends),
        in_a_loop,
        of_the_course_interval,
        of(lambda v: tuple(ends(v))),
        of(lambda v: torch.tensor(ends(v))),
        of(lambda v: list(np.percentile(v, [2.5, 97.5]))),
    ],
}

# Wrong answers, each with words that the message must have.
WRONG = {
    "predictive_value": [
        (lambda se, sp, p: se / (se + 1 - sp), "The prevalence is not used"),
        (lambda se, sp, p: ppv(se, sp, 0.5), "The prevalence is not used"),
        (lambda se, sp, p: se, "This is the sensitivity"),
        (lambda se, sp, p: se * p, "who are ill and positive: divide"),
        (lambda se, sp, p: se * p + (1 - sp) * (1 - p), "it is the divisor"),
        (lambda se, sp, p: ppv(sp, se, 1 - p), "the negative predictive value"),
        (lambda se, sp, p: 1 - ppv(se, sp, p), "the share of false alarms"),
        (lambda se, sp, p: ppv(se, sp, 1 - p), "the share of the ill, not of"),
        (
            lambda se, sp, p: se * p / (se * p + sp * (1 - p)),
            "are 1 - specificity, not specificity",
        ),
        (lambda se, sp, p: se * p / (se * p + 1 - sp), "multiply by 1 - prevalence"),
        (
            lambda se, sp, p: se / (se + (1 - sp) * (1 - p)),
            "multiply by the prevalence",
        ),
        (lambda se, sp, p: se * p / (1 - sp) / (1 - p), "These are odds"),
        (lambda se, sp, p: se / (1 - sp) * p, "A likelihood ratio multiplies odds"),
        (lambda se, sp, p: se / (1 - sp), "This is the likelihood ratio"),
        (lambda se, sp, p: se * p + sp * (1 - p), "This is the accuracy"),
        (lambda se, sp, p: 100 * ppv(se, sp, p), "This is in per cent"),
        (lambda se, sp, p: 0.43, "The value is wrong. Expected 0.3333, came 0.43"),
        (lambda se, sp, p: [se, sp], "Expected one number, came a list of 2"),
        (lambda se, sp, p: "0.3", "Expected one number, came an object of type str"),
        (lambda se, sp, p: se > p, "Expected one number, came the bool True"),
    ],
    "mean_pool": [
        (lambda x, m: x.mean(1), "Padding is counted"),
        (divided_by_tokens, "left out of the sum, but the divisor counts them"),
        (lambda x, m: x.sum(1) / m.sum(1)[:, None], "padding are in the sum"),
        (lambda x, m: x[:, 0], "This is the state of [CLS]"),
        (lambda x, m: (x * m[..., None]).sum(1), "This is the sum: divide"),
        (lambda x, m: x.sum(1), "This is the sum of all states"),
        (lambda x, m: pooled(x, 1 - m), "This is the mean of the padding"),
        (lambda x, m: pooled(x, 1 - m).nan_to_num(), "the mean of the padding"),
        (lambda x, m: (x * m[..., None]).sum(1) / m.sum(), "of the whole batch"),
        (
            lambda x, m: (x * m[..., None]).sum(1) / m.sum(1)[:, None].sqrt(),
            "by the root of the number",
        ),
        (lambda x, m: F.normalize(pooled(x, m)), "scaled to length 1"),
        (lambda x, m: x.amax(1), "This is the largest state, padding included"),
        (lambda x, m: x.masked_fill(m[..., None] == 0, -INF).amax(1), "largest state"),
        (lambda x, m: x[range(len(x)), m.sum(1) - 1], "the state of the last token"),
        (lambda x, m: x.mean(-1), "The mean runs over features"),
        (lambda x, m: x.mean(0), "The mean runs over the texts"),
        (lambda x, m: x[m.bool()].mean(0), "All texts are one"),
        (lambda x, m: pooled(x[:, 1:], m[:, 1:]), "The first token, [CLS], is left"),
        (lambda x, m: pooled(x, m) + 0.1, "The values are wrong"),
        (lambda x, m: pooled(x, m)[:, None], "The shape is wrong"),
        (lambda x, m: (x * m).sum(1), "raised RuntimeError"),
        (lambda x, m: "no tensor", "Expected a torch.Tensor"),
    ],
    "pooled_f1": [
        (mean_of_batches, "counts as 0"),
        (lambda b: mean_of_batches(b, 1.0), "counts as 1"),
        (lambda b: mean_of_batches(b, math.nan), "This is a mean of the batches' F1"),
        (lambda b: weighted_mean(b, len), "weighted by their rows: F1 is no mean"),
        (lambda b: weighted_mean(b, lambda t: int(t.sum())), "rows of class 1"),
        (mean_precision_and_recall, "Precision and recall are means over batches"),
        (score_of(lambda h, f, m, c: h / (h + f) if h else 0), "the precision alone"),
        (score_of(lambda h, f, m, c: h / (h + m)), "the recall alone"),
        (score_of(lambda h, f, m, c: (h + c) / (h + f + m + c)), "the accuracy"),
        (score_of(lambda h, f, m, c: 2 * c / (2 * c + f + m)), "the F1 of class 0"),
        (
            lambda b: metrics.f1(*[p.numpy() for p in joined(b)], 2, "macro"),
            "This is the macro F1",
        ),
        (
            lambda b: f1_score(
                *reversed([p.numpy() for p in joined(b)]), average="weighted"
            ),
            "This is the weighted F1",
        ),
        (
            score_of(lambda h, f, m, c: (h / (h + f) + h / (h + m)) / 2),
            "the arithmetic mean of precision and recall",
        ),
        (
            score_of(lambda h, f, m, c: h / math.sqrt((h + f) * (h + m))),
            "the geometric mean",
        ),
        (lambda b: f1(*joined(b)) / 2, "The factor 2 is missing"),
        (score_of(lambda h, f, m, c: h / (h + f + m)), "this is Jaccard's"),
        (score_of(lambda h, f, m, c: 2 * h / (h + f + m)), "count once in the div"),
        (score_of(lambda h, f, m, c: c / (c + f)), "This is the specificity"),
        (lambda b: f1(*b[-1]), "the F1 of the last batch"),
        (lambda b: f1(*b[0]), "the F1 of the first batch"),
        (lambda b: 100 * f1(*joined(b)), "This is in per cent"),
        (without_healthy_batches, "Batches without class 1 are left out, and their"),
        (mean_over_ill_batches, "This is a mean of the batches' F1"),
        (healthy_batches_are_right, "counts as 1"),
        (naive_f1, "raised ZeroDivisionError"),
        (
            lambda b: f1(*joined(b)) or math.nan,
            "Where the model never says 1, F1 is 0: precision is 0 / 0",
        ),
        (lambda b: 0.5, "The value is wrong. Expected 0.6316, came 0.5"),
        (lambda b: [f1(*batch) for batch in b], "Expected one number, came a list of"),
        (lambda b: torch.stack(b), "raised TypeError"),
    ],
    "split_patients": [
        (by_row, "rows were split, not patients"),
        (first_patients, "Every seed gives the same split"),
        (lambda p, s, seed: solution("split_patients")(p, s, 0), "Every seed gives"),
        (unseeded, "Two calls with the same seed give different splits"),
        (by_share_of_rows, "The share counts rows, not patients"),
        (
            lambda p, s, seed: solution("split_patients")(p, 0.5, seed),
            "The share is wrong. Expected 6 of 24 patients in validation, came 12",
        ),
        (one_more, "One patient too many is held out. Expected 6 of 24 patients"),
        (lambda *i: one_more(*i, more=-1), "One patient too few is held out"),
        (drawn_by_row, "are held out too often: patient "),
        (never_the_largest, "with 9 rows, is in validation for 0 of 100 seeds"),
        (always_the_first, "is in validation for 100 of 100 seeds"),
        (one_row_each, "rows are on neither side"),
        (changed_split(lambda t, v, p: (v, t)), "The sides are exchanged"),
        (changed_split(lambda t, v, p: (p[t], p[v])), "These are patients, not rows"),
        (
            changed_split(lambda t, v, p: (p[t].unique(), p[v].unique())),
            "These are patients, not rows",
        ),
        (changed_split(lambda t, v, p: (torch.cat([t, v]), v)), "is on both sides"),
        (changed_split(lambda t, v, p: (t, torch.cat([v, v]))), "twice in validation"),
        (changed_split(lambda t, v, p: (t, t[:0])), "There is no row for validation"),
        (changed_split(lambda t, v, p: (t + 1, v)), "A row is out of range"),
        (changed_split(lambda t, v, p: (t + len(p), v)), "A row is out of range"),
        (changed_split(lambda t, v, p: v), "Expected a pair, the rows of training"),
        (changed_split(lambda t, v, p: (t, v, v)), "came 3 values"),
        (changed_split(lambda t, v, p: {"t": t}), "Expected a pair"),
        (changed_split(lambda t, v, p: (t.double(), v)), "Row numbers are whole"),
        (changed_split(lambda t, v, p: (t[:, None], v)), "row numbers in one axis"),
        (lambda p, s, seed: p.split([s, 1 - s]), "raised TypeError"),
    ],
    "parameter_groups": [
        (groups(lambda n, p: True), "Everything decays"),
        (groups(lambda n, p: False), "Nothing decays"),
        (groups(lambda n, p: p.dim() < 2), "The groups are exchanged"),
        (groups(lambda n, p: "bias" not in n), "Weights of LayerNorm decay"),
        (
            groups(lambda n, p: not any(k in n for k in ("bias", "LayerNorm.weight"))),
            "Weights of LayerNorm decay. A rule by names misses",
        ),
        (
            groups(lambda n, p: not any(k in n for k in ("bias", "LayerNorm", "norm"))),
            "A head called abnormal has norm in its name",
        ),
        (
            groups(
                lambda n, p: "bias" not in n
                and "LayerNorm" not in n
                and not n.startswith("norm")
            ),
            "Weights of a LayerNorm decay: here its name is another",
        ),
        (groups(lambda n, p: "LayerNorm" not in n), "Biases of linear layers decay"),
        (
            groups(lambda n, p: p.dim() > 1 or "LayerNorm" in n),
            "LayerNorm decays, both of its parameters",
        ),
        (
            groups(lambda n, p: p.dim() > 1 or (n.endswith("bias") and "N" not in n)),
            "Biases of linear layers decay",
        ),
        (groups(lambda n, p: n != "LayerNorm.weight"), "Biases decay"),
        (
            groups(lambda n, p: p.dim() > 1 or n == "LayerNorm.bias"),
            "The biases of LayerNorm decay",
        ),
        (
            lambda m, w: [{"params": list(m.parameters()), "weight_decay": w}],
            "Everything decays",
        ),
        (lambda m, w: solution("parameter_groups")(m, 0.01), "A decay is wrong. query"),
        (
            changed_groups(lambda g: [g[0], {"params": g[1]["params"]}]),
            "A group has no weight_decay: AdamW then takes its own default",
        ),
        (changed_groups(lambda g: g[:1]), "query.bias is in no group"),
        (changed_groups(lambda g: [*g, g[1]]), "is in the groups twice"),
        (changed_groups(as_sets), "AdamW takes lists, not sets: their order is lost."),
        (
            groups(lambda n, p: p.numel() >= 8),
            "The number of entries decides: a wide LayerNorm",
        ),
        (changed_groups(copied), "that is no parameter of the model, such as a copy"),
        (
            lambda m, w: [{"params": [n for n, _ in m.named_parameters()],
                           "weight_decay": w}],
            "A group holds names",
        ),
        (lambda m, w: list(m.parameters()), "came a list with a tensor of shape"),
        (lambda m, w: m.state_dict(), "a list of dicts with the keys params"),
        (lambda m, w: 0.1, "Expected a list of dicts with the keys params"),
        (lambda m, w: [{"params": [m], "weight_decay": w}], "of type _Published"),
    ],
    "operating_point": [
        (at(lambda y, x, ty, tx, s: threshold(ty, tx, s)), "chosen on the test rows"),
        (
            at(
                lambda y, x, ty, tx, s: threshold(
                    torch.cat([y, ty]), torch.cat([x, tx]), s
                )
            ),
            "The test rows helped to choose",
        ),
        (at(lambda y, x, ty, tx, s: 0.5), "The threshold is 0.5"),
        (
            at(lambda y, x, ty, tx, s: x[y == 1].quantile(1 - s)),
            "quantile interpolates between two scores",
        ),
        (by_quantile("lower"), "One of the ill too many is found"),
        (by_quantile("inverted_cdf"), "One of the ill too many is found"),
        (counted(lambda s, n: int(s * n) + 1), "One of the ill too many is found"),
        (
            at(lambda y, x, ty, tx, s: x[y == 1].quantile(
                1 - s, interpolation="lower")),
            "a number that is whole is not rounded up",
        ),
        (by_quantile("nearest"), "too few is found in validation: round up"),
        (counted(lambda s, n: round(s * n)), "too few is found in validation"),
        (by_quantile("higher"), "too few is found in validation"),
        (at(lambda y, x, ty, tx, s: x.quantile(1 - s)), "the scores of all rows"),
        (
            at(lambda y, x, ty, tx, s: threshold(torch.ones_like(y), x, s)),
            "the scores of all rows",
        ),
        (at(lambda y, x, ty, tx, s: x[y == 0].quantile(s)), "fixes the specificity"),
        (at(lambda y, x, ty, tx, s: x[y == 1].quantile(s)), "The quantile is 1 - sens"),
        (
            at(lambda y, x, ty, tx, s: -threshold(y, -x, s)),
            "The scores are counted from the lowest",
        ),
        (at(lambda y, x, ty, tx, s: x[y == 1].min()), "the lowest threshold of all"),
        (
            at(lambda y, x, ty, tx, s: x[y == 1].sort(descending=True)[0][
                math.ceil(s * int(y.sum()))]),
            "One of the ill too many",
        ),
        (
            at(lambda y, x, ty, tx, s: x[y == 1].sort(descending=True)[0][
                int(s * int(y.sum())) - 1]),
            "One of the ill too few is found in validation: round up",
        ),
        (at(youden), "maximises sensitivity + specificity"),
        (
            lambda y, x, ty, tx, s: rates(ty, tx > threshold(y, x, s)),
            "A score equal to the threshold is an alarm",
        ),
        (
            lambda y, x, ty, tx, s: rates(y, x >= threshold(y, x, s)),
            "These are the shares of validation",
        ),
        (at_right(lambda y, a: rates(y, a)[::-1]), "The two are exchanged"),
        (
            at_right(lambda y, a: (rates(y, a)[0], 1 - rates(y, a)[1])),
            "The second is the share of false alarms",
        ),
        (at_right(lambda y, a: rates(y, ~a)), "The alarm is upside down"),
        (
            at_right(lambda y, a: (rates(y, a)[0], y[a].double().mean())),
            "The second is the positive predictive value",
        ),
        (
            at_right(lambda y, a: (rates(y, a)[0], (a == y).double().mean())),
            "The second is the accuracy",
        ),
        (
            lambda y, x, ty, tx, s: (threshold(y, x, s),
                                     rates(ty, tx >= threshold(y, x, s))[0]),
            "The first is the threshold",
        ),
        (
            at_right(lambda y, a: (rates(y, a)[0], 1 - y[~a].double().mean())),
            "The second is the negative predictive value",
        ),
        (
            at_right(lambda y, a: (y[a].double().mean(), 1 - y[~a].double().mean())),
            "These are predictive values",
        ),
        (
            lambda y, x, ty, tx, s: (s, rates(ty, tx >= threshold(y, x, s))[1]),
            "The first is the sensitivity that was wanted",
        ),
        (lambda *i: (0.1, 0.2), "The pair is wrong. Expected"),
        (lambda *i: 0.9, "Expected a pair, sensitivity and specificity"),
        (lambda *i: (0.9, 0.8, 0.7), "came 3 values"),
        (lambda *i: (0.9, "0.8"), "Expected two numbers"),
        (lambda y, x, ty, tx, s: tx[y], "came 85 values"),
    ],
    "occlusion": [
        (lambda f, t, m: -falls(f, t, m), "The sign is wrong"),
        (piling_up, "are still there: one text is changed again"),
        (lambda *i: piling_up(*i, whole=False), "counted from the text before"),
        (no_copy, "All falls are 0: both scores are of the same text"),
        (
            each(lambda f, t, m, i: f(t) - f(torch.cat([t[:i], t[i + 1 :]]))),
            "The token is deleted",
        ),
        (each(lambda f, t, m, i: f(t) - f(hidden(t, i, 0))), "replaced by 0"),
        (
            each(lambda f, t, m, i: f(t) - f(t.masked_fill(t == t[i], m))),
            "A token that stands twice is replaced in both places",
        ),
        (
            each(
                lambda f, t, m, i: f(t)
                - f(hidden(torch.full_like(t, m), i, int(t[i])))
            ),
            "All other tokens are masked",
        ),
        (each(lambda f, t, m, i: f(hidden(t, i, m))), "These are the scores: subtract"),
        (lambda f, t, m: falls(f, t, m).abs(), "The sign is lost"),
        (lambda f, t, m: falls(f, t, m).clamp(min=0), "Falls below 0 are set to 0"),
        (lambda f, t, m: falls(f, t, m) ** 2, "The falls are squared"),
        (lambda f, t, m: falls(f, t, m) / f(t), "divided by the score"),
        (lambda f, t, m: falls(f, t, m) / falls(f, t, m).sum(), "by their sum"),
        (lambda f, t, m: falls(f, t, m).softmax(0), "A softmax is taken"),
        (lambda f, t, m: falls(f, t, m)[1:-1], "The first and the last token"),
        (
            each(lambda f, t, m, i: f(hidden(torch.full_like(t, m), i, int(t[i])))),
            "These are scores of single tokens",
        ),
        (lambda *i: i[0](i[1]) - piling_up(*i), "These are scores, no falls."),
        (lambda *i: -piling_up(*i), "are still there, and the sign is wrong"),
        (lambda f, t, m: falls(f, t, m) / falls(f, t, m).abs().max(), "largest is set"),
        (lambda f, t, m: falls(f, t, m)[:-1], "The last token is left out"),
        (lambda f, t, m: falls(f, t, m).flip(0), "in reverse order"),
        (lambda f, t, m: falls(f, t, m).roll(-1), "one place too early"),
        (lambda f, t, m: falls(f, t, m)[1:], "The first token is left out"),
        (lambda f, t, m: falls(f, t, m).roll(1), "one place too late"),
        (lambda f, t, m: falls(f, t, m).sort(descending=True)[0], "are sorted"),
        (lambda f, t, m: falls(f, t, m).mean(), "One number came"),
        (lambda f, t, m: falls(f, t, m) + 0.1, "The values are wrong"),
        (lambda f, t, m: f(t[None]), "score takes one text: expected (tokens,)"),
        (lambda f, t, m: {"falls": falls(f, t, m)}, "Expected a torch.Tensor"),
    ],
    "temperature": [
        (lambda x, y: 1 / best(x, y), "This is 1 / T"),
        (searched(lambda x, y, t: nats(x, y, 1 / t)), "This is 1 / T"),
        (lambda x, y: 1.0, "nothing was fitted"),
        (searched(nats, better=max), "It is an end of the range"),
        (lambda x, y: math.log(best(x, y)), "This is log T"),
        (lambda x, y: nats(x, y, best(x, y)), "This is the loss at the best T"),
        (searched(brier), "This T minimises squared errors"),
        (
            searched(lambda x, y, t: nats(x.softmax(-1), y, t), start=0.01),
            "The logits are probabilities already",
        ),
        (searched(of_the_top), "This T fits the largest class alone"),
        (searched(sure_as_right), "is not the best: the mean cross-entropy is"),
        (lambda x, y: x.std(), "This is the spread of the logits"),
        (lambda x, y: best(x, y) ** 2, "T is squared"),
        (lambda x, y: best(x, y) ** 0.5, "This is the root of T"),
        (lambda x, y: 1.1 * best(x, y), "is not the best: the mean cross-entropy is"),
        (lambda x, y: -1.3, "A temperature is above 0 and finite; came -1.3"),
        (lambda x, y: math.nan, "A temperature is above 0 and finite; came nan"),
        (lambda x, y: x / best(x, y), "Expected one number, came a tensor of shape"),
        (lambda x, y: nats(x.T, y, 1.0), "raised"),
    ],
    "mask_words": [
        (masker(bounds=(1, 2)), "Every chosen word is masked"),
        (masker(bounds=(0.8, 2)), "No chosen word becomes a random one"),
        (masker(bounds=(0.8, 0.8)), "No chosen word stays as it was"),
        (nested_tenth, "A tenth of the last fifth is random"),
        (lambda *i: nested_tenth(*i, share=0.9), "A tenth of the last fifth stays"),
        (overwritten, "Random words overwrite masks"),
        (masker(bounds=(0.1, 0.2)), "The shares are exchanged"),
        (masker(bounds=(0.1, 0.9)), "80% are masked, a tenth stays"),
        (masker(bounds=(0.9, 0.9)), "Nine tenths are masked, and none stays"),
        (masker(bounds=(0.9, 2)), "Nine tenths are masked, and none becomes a random"),
        (masker(bounds=(-1, -1)), "Every chosen word becomes a random one"),
        (masker(bounds=(0.5, 0.75)), "The shares must be 80%, 10%, 10%"),
        (masker(share=0.8), "80% is the share of these that are masked"),
        (masker(chosen=lambda c, s: c), "A special token is chosen: "),
        (masker(chosen=lambda c, s: ~c & ~s), "The comparison is the wrong way round"),
        (masker(chosen=lambda c, s: ~s), "every word is chosen"),
        (masker(share=0.3), "of the words are chosen. Expected 15%"),
        (masker(share=0.015), "a share of 0.15, not 0.015"),
        (masker(chosen=lambda c, s: c & s), "A special token is chosen"),
        (masker(size=lambda s: s[1:]), "The same places are chosen in every text"),
        (once_a_text, "One draw decides for a whole text"),
        (once_a_place, "One draw decides for a place in every text"),
        (whole_texts, "Whole texts are chosen"),
        (choosing(a_fixed_number), "nearly the same number of chosen words"),
        (choosing(spans), "not chosen each by itself: 10"),
        (choosing(periodic), "not chosen each by itself: 10"),
        (choosing(never_neighbours), "0.0% of neighbours are chosen together"),
        (choosing(texts_of_two_kinds), "Some texts have far more chosen words"),
        (choosing(word_types), "The word decides whether it is chosen"),
        (choosing(as_many_of_each_word), "The word decides whether it is chosen"),
        (fate_by_word, "The word decides whether it is masked"),
        (
            lambda *i: fate_by_word(*i, hide=False),
            "The word decides whether it becomes a random one",
        ),
        (
            masker(words=lambda v, size, g: torch.randint(v, size[1:], generator=g)),
            "Random words repeat",
        ),
        (
            finished(lambda i, t, b, c: (i, torch.where(i == 4, b, -100))),
            "A token is changed that has no label",
        ),
        (
            finished(lambda i, t, b, c: (i, torch.where(i != b, b, -100))),
            "The tenth that stays has no label",
        ),
        (
            finished(lambda i, t, b, c: (torch.where(i == 4, i, b),
                                         torch.where(i == 4, b, -100))),
            "only those are labelled that become the mask token",
        ),
        (finished(lambda i, t, b, c: (i, b)), "Every token has a label: a model would"),
        (finished(lambda i, t, b, c: (i, i)), "The labels are the masked inputs"),
        (finished(lambda i, t, b, c: (i, b * c)), "Labels are 0 where nothing is"),
        (
            finished(lambda i, t, b, c: (i, i.masked_fill(~c, -100))),
            "what is in the inputs after masking",
        ),
        (in_place, "what is in the inputs after masking"),
        (
            finished(lambda i, t, b, c: (i, b.masked_fill(c, -100))),
            "-100 stands where words were chosen",
        ),
        (
            finished(lambda i, t, b, c: (i, torch.where(c, 1, -100))),
            "The labels of chosen words are all 1",
        ),
        (
            finished(lambda i, t, b, c: (i, t.masked_fill(c, -100))),
            "No label is left: every one is -100",
        ),
        (finished(lambda i, t, b, c: (b, t)), "The inputs are as they were"),
        (finished(lambda i, t, b, c: (t, i)), "Inputs and labels are exchanged"),
        (finished(lambda i, t, b, c: (t, t)), "The inputs hold -100"),
        (finished(lambda i, t, b, c: i), "came 200 values"),
        (finished(lambda i, t, b, c: (i, t[c])), "The labels must have the shape of"),
        (finished(lambda i, t, b, c: (i.float(), t)), "Tokens are whole numbers: the"),
        (
            masker(words=lambda v, size, g: torch.randint(v, (), generator=g)),
            "The random word is the same everywhere",
        ),
        (
            masker(words=lambda v, size, g: torch.randint(300, size, generator=g)),
            "do not come from the whole vocabulary: 0% are in its upper half",
        ),
        (
            masker(words=lambda v, size, g: torch.randint(2 * v, size, generator=g)),
            "tokens are 0 to 999",
        ),
        (fixed_seed, "Every seed chooses the same words"),
        (without_seed, "Two calls with the same seed differ"),
        (lambda b, s, m, v, seed: b[s] + m * b, "raised RuntimeError"),
    ],
    "patient_interval": [
        (row_by_row, "as narrow as if rows were drawn one by one: draw patients"),
        (too_many_patients, "draw patients, as many as there are"),
        (weighted_by_rows, "Patients with many rows are drawn more often"),
        (within_patients, "Rows are drawn within each patient"),
        (each_once, "A patient drawn twice counts once"),
        (of(ends, mean_of_patients), "Every patient counts the same"),
        (of(lambda v: ends(v, 0.05, 0.95)), "This is a 90% interval"),
        (of(lambda v: ends(v, 0.005, 0.995)), "This is a 99% interval"),
        (of(lambda v: ends(v, 0.25, 0.75)), "These are the quartiles"),
        (
            of(lambda v: (v.mean() - v.std(), v.mean() + v.std())),
            "This is one standard error to each side",
        ),
        (
            of(
                lambda v: (
                    v.mean() - 1.96 * v.std() / len(v) ** 0.5,
                    v.mean() + 1.96 * v.std() / len(v) ** 0.5,
                )
            ),
            "The spread is divided by the root of the draws",
        ),
        (
            of(lambda v: (v.mean() - 1.96 * v.std(), v.mean() + 1.96 * v.std())),
            "as if the accuracies drawn were normal",
        ),
        (
            around(lambda m, v: (m - 1.96 * v.std(), m + 1.96 * v.std())),
            "1.96 standard errors to each side",
        ),
        (around(lambda m, v: 2 * m - ends(v)[::-1]), "This is the basic bootstrap"),
        (without_replacement, "Both ends are the accuracy itself"),
        (of(lambda v: ends(v)[::-1]), "The ends are exchanged"),
        (of(lambda v: 1 - ends(v)[::-1]), "These are the ends for the errors"),
        (of(lambda v: (v.mean(), v.std())), "a mean and a standard error"),
        (of(lambda v: (np.quantile(v, 0.05), 1.0)), "The interval is open at the top"),
        (of(lambda v: (v.min(), v.max())), "These are the extremes of all draws"),
        (of(lambda v: 100 * ends(v)), "This is in per cent"),
        (of(lambda v: ends(v) * math.nan), "An end is not a number"),
        (of(lambda v: ends(v) + 0.05), "The interval is wrong. Expected about"),
        (of(lambda v: v.mean()), "Expected a pair, the lower and the upper end"),
        (of(lambda v: v), "came 4000 values"),
        (
            lambda r, p, d, s: of(ends)(r, p, d, 0),
            "Every seed gives the same interval",
        ),
        (
            lambda r, p, d, s: of(ends)(r, p, d, int(torch.randint(10**6, ()))),
            "Two calls with the same seed differ",
        ),
        (lambda r, p, d, s: r[p].mean(), "raised IndexError"),
    ],
}  # fmt: skip


def test_every_exercise_has_cases():
    assert list(bert.TALLY.results) == CHECKERS
    assert list(RIGHT) == list(WRONG) == CHECKERS
    assert all(len(wrong) >= 6 for wrong in WRONG.values())


@pytest.mark.parametrize("name, answer", flat(RIGHT))
def test_other_right_answers_pass(name, answer):
    result = check(name, answer)
    assert result.passed, result.message


@pytest.mark.parametrize("name, case", flat(WRONG))
def test_a_wrong_answer_is_told_its_mistake(name, case, capsys):
    """Short, without an address, and the same each time."""
    answer, words = case
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(check(name, answer))
    message = results[0].message
    said = " ".join(message.split())
    assert results[0].status == "not right yet"
    assert words in said, message
    assert results[1] == results[0] and "0x" not in message
    assert capsys.readouterr().out == f"{message}\n{message}\n"
    assert max(map(len, message.splitlines())) <= core.WIDTH
    assert len(message.splitlines()) <= 10


DRAWING = {
    "split_patients": [with_numpy, with_lists, with_random, by_hash],
    "mask_words": [
        masker(),
        with_bernoulli,
        of_the_course,
        choosing(a_fixed_number_of_all),
    ],
    "patient_interval": [of(ends)],
}


@pytest.mark.parametrize("name", DRAWING)
def test_chance_does_not_fail_right_answers(name):
    """Right answers that draw pass whatever they draw: other seeds, same checks."""

    def shifted(answer, shift):
        return lambda *inputs: answer(*inputs[:-1], inputs[-1] + shift)

    for answer in (solution(name), *DRAWING[name]):
        for shift in range(1, 13):
            result = check(name, shifted(answer, 1000 * shift))
            assert result.passed, result.message


@pytest.mark.parametrize(
    "pick", [a_fixed_number, spans, periodic, word_types, as_many_of_each_word]
)
def test_words_that_are_not_drawn_one_by_one_never_pass(pick):
    """Whatever they draw, and with the share right or nearly."""
    answer = choosing(pick)
    for shift in range(1, 13):
        result = check("mask_words", lambda *i, s=shift: answer(*i[:-1], i[-1] + s))
        said = " ".join(result.message.split())
        told = "chosen each by itself", "is chosen by itself", "The word decides"
        assert not result.passed and any(words in said for words in told), said
