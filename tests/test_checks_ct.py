"""The checkers of chapter 5 accept right answers and name mistakes."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from answers import flat, solution_of
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock

from medlm_utils.checks import core, ct_resnet

CHECKERS = ["to_window", "output_and_field", "convolve", "residual_block"]
CHECKERS += ["resnet_parameters", "held_out", "patient_scores", "net_benefit"]
CHECKERS += ["grad_cam", "log_ratio"]


def check(name, answer):
    """The result of one checker."""
    return getattr(ct_resnet, name)(answer)


def solution(name):
    """The function as the solutions notebook has it."""
    return solution_of("05_ct_resnet", name)


def changed(name, change):
    """The right answer, changed."""
    return lambda *inputs: change(solution(name)(*inputs))


# Windows


def scaled(hu_of=lambda x, a, b: x * a + b, low=lambda c, w: c - w / 2, wide=1.0):
    """A window with one part replaced, padding at 0."""

    def answer(stored, slope, intercept, padding, level, width):
        hu = hu_of(stored.double(), slope, intercept)
        grey = ((hu - low(level, width)) / (wide * width)).clamp(0, 1)
        return grey.masked_fill(stored == padding, 0)

    return answer


def in_hu(change, pad=True):
    """A function of HU, level and width."""

    def answer(stored, slope, intercept, padding, level, width):
        out = change(stored * slope + intercept, level, width)
        return out.masked_fill(stored == padding, 0) if pad else out

    return answer


def clipped(hu, level, width):
    return ((hu - level) / width + 0.5).clamp(0, 1)


def clipped_first(stored, slope, intercept, padding, level, width):
    """HU are clipped to the window, then moved; NumPy."""
    low = level - width / 2
    hu = np.clip(stored.numpy() * slope + intercept, low, low + width)
    return np.where(stored.numpy() == padding, 0, (hu - low) / width)


def pixel_by_pixel(stored, slope, intercept, padding, level, width):
    """Nested lists of floats."""
    low = level - width / 2

    def grey(value):
        if value == padding:
            return 0.0
        return min(max((value * slope + intercept - low) / width, 0.0), 1.0)

    return [[grey(value) for value in row] for row in stored.tolist()]


def padded_air(stored, slope, intercept, padding, level, width):
    hu = (stored * slope + intercept).masked_fill(stored == padding, -1000)
    return clipped(hu, level, width)


def padded_hu(stored, slope, intercept, padding, level, width):
    hu = stored * slope + intercept
    return clipped(hu, level, width).masked_fill(hu == padding, 0)


def tissue_min_max(stored, slope, intercept, padding, level, width):
    """Padding left out of the smallest and the largest value."""
    inside = stored != padding
    low, high = stored[inside].min(), stored[inside].max()
    return ((stored - low) / (high - low)).masked_fill(~inside, 0)


def min_max(x):
    return (x - x.min()) / (x.max() - x.min())


# Layers


def through(rule, field=None):
    """The side by a rule for one layer; the receptive field as it is."""

    def answer(size, layers):
        right = solution("output_and_field")(size, layers)[1]
        for layer in layers:
            size = rule(size, *layer)
        return size, right

    return answer


def seen(rule):
    """The right side, and a field by a rule for kernels and strides."""

    def answer(size, layers):
        right = solution("output_and_field")(size, layers)[0]
        kernels, strides, _ = zip(*layers, strict=True)
        return right, rule(kernels, strides)

    return answer


def by_layers(size, layers):
    """Real layers: an image through them, and a gradient back."""
    x = torch.zeros(1, 1, size, 1)
    net = nn.Sequential(
        *[nn.MaxPool2d((k, 1), (s, 1), 0) if not p else padded_layer(k, s, p)
          for k, s, p in layers]
    )  # fmt: skip
    field = 1
    for kernel, stride, _ in layers[::-1]:
        field = kernel + (field - 1) * stride
    return np.array([net(x).shape[2], field])


def padded_layer(kernel, stride, padding):
    return nn.Conv2d(1, 1, (kernel, 1), (stride, 1), (padding, 0))


def by_gradient(size, layers):
    """The field is where a gradient arrives, in an image without borders."""
    x = torch.ones(1, 1, 301, 1, dtype=torch.float64, requires_grad=True)
    out, side = x, size
    for k, s, p in layers:
        weights = torch.ones(1, 1, k, 1, dtype=torch.float64)
        out = F.conv2d(out, weights, stride=(s, 1))
        side = math.floor((side + 2 * p - k) / s + 1)
    out[0, 0, out.shape[2] // 2, 0].backward()
    return side, int((x.grad != 0).sum())


def rounded_at_the_end(size, layers):
    """Rounding down once is as good as rounding down in each layer."""
    exact = through(lambda n, k, s, p: (n + 2 * p - k) / s + 1)(size, layers)
    return math.floor(exact[0] + 1e-9), exact[1]


def running(strides):
    """The product of the strides before each layer."""
    return [math.prod(strides[:i]) for i in range(len(strides))]


# Convolutions


def conv(change=lambda x, w, b, s, p: (x, w, b, s, p)):
    """torch's own, with changed inputs."""

    def answer(x, w, b, s, p):
        x, w, b, s, p = change(x, w, b, s, p)
        return F.conv2d(x[None], w, b, s, p)[0]

    return answer


def unfolded(x, w, b, s, p):
    """One matrix product over all patches."""
    patches = F.unfold(x[None], w.shape[2:], padding=p, stride=s)[0]
    rows = (x.shape[1] + 2 * p - w.shape[2]) // s + 1
    return (w.flatten(1) @ patches + b[:, None]).view(len(w), rows, -1)


def strided(x, w, b, s, p):
    """Views of all windows, NumPy."""
    padded = np.pad(x.numpy(), ((0, 0), (p, p), (p, p)))
    view = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (1, 2))
    found = np.einsum("cijkl,fckl->fij", view[:, ::s, ::s], w.numpy())
    return found + b.numpy()[:, None, None]


def padded_by(mode):
    def answer(x, w, b, s, p):
        padded = F.pad(x[None], (p, p, p, p), mode=mode)
        return F.conv2d(padded, w, b, s)[0]

    return answer


def later(x, w, b, s, p):
    """The first place is a stride further in."""
    return F.conv2d(F.pad(x, (p, p, p, p))[None], w, b)[0][:, s - 1 :: s, s - 1 :: s]


def last_row_lost(x, w, b, s, p):
    out = F.conv2d(x[None], w, b, s, p)[0]
    return out if s == 1 else out[:, :-1, :-1]


# Blocks


def by_torchvision(x, weights, stride):
    """torchvision's own block."""
    width, channels = weights["conv1.weight"].shape[:2]
    down = None
    if "downsample.0.weight" in weights:
        down = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        )
    block = BasicBlock(channels, width, stride, down).eval()
    block.load_state_dict(weights)
    return block(x)


def block(
    training=False,
    middle=torch.relu,
    join=lambda a, b: torch.relu(a + b),
    norm=None,
    eps=1e-5,
    strides=None,
    names=("bn1", "bn2"),
    shortcut=True,
):
    """A block on torch's functions, with one part replaced."""

    def answer(x, w, stride):
        def bn(out, name):
            keys = ("running_mean", "running_var", "weight", "bias")
            parts = [w[f"{name}.{key}"] for key in keys]
            if norm:
                return norm(out, *[part[:, None, None] for part in parts])
            return F.batch_norm(out, *parts, training, eps=eps)

        first, second = strides(stride) if strides else (stride, 1)
        out = F.conv2d(x, w["conv1.weight"], stride=first, padding=1)
        out = middle(bn(out, names[0]))
        out = bn(F.conv2d(out, w["conv2.weight"], stride=second, padding=1), names[1])
        if "downsample.0.weight" in w:
            x = F.conv2d(x, w["downsample.0.weight"], stride=stride)
            x = bn(x, "downsample.1") if shortcut else x
        return join(out, x)

    return answer


def plain(x):
    return x


def before_norm(x, w, stride):
    """The ReLU between conv1 and bn1."""

    def norm(out, mean, var, gain, bias):
        if torch.equal(mean[:, 0, 0], w["bn1.running_mean"]):
            out = out.relu()
        return (out - mean) / (var + 1e-5).sqrt() * gain + bias

    return block(norm=norm, middle=plain)(x, w, stride)


# Parameters


def by_modules(channels, stages, classes):
    """The sizes of real layers."""
    wide = stages[0][1]
    layers = [nn.Conv2d(channels, wide, 7, bias=False), nn.BatchNorm2d(wide)]
    for blocks, width in stages:
        for _ in range(blocks):
            sizes = [(wide, 3), (width, 3)] + [(wide, 1)] * (wide != width)
            for size, kernel in sizes:
                layers.append(nn.Conv2d(size, width, kernel, bias=False))
                layers.append(nn.BatchNorm2d(width))
            wide = width
    layers.append(nn.Linear(wide, classes))
    return sum(p.numel() for layer in layers for p in layer.parameters())


def counted(
    norm=2,
    bias=0,
    down=lambda block, wide, width: wide != width,
    down_norm=True,
    first=lambda wide, width: wide,
    kernels=(7, 3, 1),
    convs=2,
    head=lambda wide, classes: (wide + 1) * classes,
    stem_norm=True,
):
    """A count with one part replaced."""

    def answer(channels, stages, classes):
        def conv(kernel, a, b):
            return kernel**2 * a * b + bias * b

        stem, middle, side = kernels
        wide = stages[0][1]
        total = conv(stem, channels, wide) + norm * wide * stem_norm
        for blocks, width in stages:
            for block in range(blocks):
                total += conv(middle, first(wide, width), width)
                total += (convs - 1) * conv(middle, width, width)
                total += convs * norm * width
                if down(block, wide, width):
                    total += conv(side, wide, width) + norm * width * down_norm
                wide = width
        return total + head(wide, classes)

    return answer


# Splits


def person_labels(patients, labels):
    people, person = np.unique(patients.numpy(), return_inverse=True)
    positive = np.bincount(person, labels.numpy())
    return people, positive, np.bincount(person)


def strata(kind=lambda positive, rows: positive > 0, draw=None):
    """Stratified by any label of patients, with NumPy's generator."""

    def answer(patients, labels, share, seed):
        people, positive, rows = person_labels(patients, labels)
        rng, held = np.random.default_rng(seed), []
        label = kind(positive, rows)
        for group in (people[label], people[~label]):
            order = (draw or rng.permutation)(group)
            held += list(order[: round(share * len(group))])
        return np.isin(patients.numpy(), held)

    return answer


def with_sklearn(patients, labels, share, seed):
    """Patients through train_test_split; a list of bools."""
    people, positive, _ = person_labels(patients, labels)
    _, held = train_test_split(
        people, test_size=share, stratify=positive > 0, random_state=seed
    )
    return [int(p) in set(held.tolist()) for p in patients]


def by_hash(patients, labels, share, seed):
    """Patients in the order of a hash of their number and the seed; 0 and 1."""

    def hashed(group):
        return sorted(
            group, key=lambda p: hashlib.sha256(f"{seed}-{p}".encode()).digest()
        )

    mask = strata(draw=hashed)(patients, labels, share, seed)
    return torch.tensor(mask).long()


def folds(patients, labels, share, seed):
    """One fold of StratifiedGroupKFold, which balances rows."""
    split = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=seed)
    _, rows = next(split.split(patients, labels, patients))
    return torch.isin(torch.arange(len(patients)), torch.as_tensor(rows))


def by_row(patients, labels, share, seed):
    rows = np.arange(len(patients))
    _, held = train_test_split(
        rows, test_size=share, stratify=labels, random_state=seed
    )
    return np.isin(rows, held)


def unstratified(patients, labels, share, seed):
    people = patients.unique()
    order = torch.randperm(len(people), generator=core.generator(seed))
    return torch.isin(patients, people[order[: round(share * len(people))]])


def kinds_apart(patients, labels, share, seed):
    """Ill and healthy slices by patient, each for itself."""
    g, mask = core.generator(seed), torch.zeros(len(patients), dtype=torch.bool)
    for kind in (0, 1):
        group = patients[labels == kind].unique()
        held = group[torch.randperm(len(group), generator=g)[: len(group) // 4]]
        mask |= torch.isin(patients, held) & (labels == kind)
    return mask


def first_slices(patients, labels, share, seed):
    first = {}
    for patient, label in zip(patients.tolist(), labels.tolist(), strict=True):
        first.setdefault(patient, label)
    ill = np.array([first[p] for p in patients.unique().tolist()]) == 1
    return strata(kind=lambda positive, rows: ill)(patients, labels, share, seed)


def healthy_apart(change):
    """The right number of the ill, a changed number of the healthy."""

    def answer(patients, labels, share, seed):
        people, positive, _ = person_labels(patients, labels)
        rng = np.random.default_rng(seed)
        ill, healthy = people[positive > 0], people[positive == 0]
        n = round(share * len(ill)), change(round(share * len(healthy)))
        held = [*rng.permutation(ill)[: n[0]], *rng.permutation(healthy)[: n[1]]]
        return np.isin(patients.numpy(), held)

    return answer


def never_one(patients, labels, share, seed):
    """One of the healthy is always in training."""
    people, positive, _ = person_labels(patients, labels)
    rng = np.random.default_rng(seed)
    held = []
    for group, skip in ((people[positive > 0], 0), (people[positive == 0], 1)):
        n = round(share * len(group))
        held += list(rng.permutation(group[skip:])[:n])
    return np.isin(patients.numpy(), held)


# Patients


def of_patients(score, order=lambda people: people):
    """A function of each patient's probabilities."""

    def answer(p, patients):
        people = order(patients.unique())
        return torch.stack([score(p[patients == one]) for one in people])

    return answer


def noisy_or(p):
    return 1 - (1 - p).prod()


def in_logs(p, patients):
    """Logarithms are added by index."""
    people, person = patients.unique(return_inverse=True)
    total = torch.zeros(len(people), dtype=torch.float64)
    return -torch.expm1(total.index_add(0, person, torch.log1p(-p.double())))


def in_a_table(p, patients, fill=0.0):
    """A row for each patient, filled; NumPy."""
    parts = [p[patients == one] for one in patients.unique()]
    table = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)
    return 1 - np.prod(1 - table.numpy(), axis=1)


def one_hot(p, patients):
    """Zeros times the logarithm of 0."""
    mask = (patients.unique()[:, None] == patients).float()
    return 1 - (mask @ (1 - p).log()).exp()


def appearing(people_of):
    """Patients in another order, from a list."""

    def answer(p, patients):
        return [noisy_or(p[patients == one]) for one in people_of(patients)]

    return answer


# Net benefit


def curves(rule, alarm=lambda p, t: p >= t, second=None):
    """Both rows by a rule of true and false positives and odds; NumPy."""

    def answer(labels, probabilities, thresholds):
        y, p = labels.numpy(), probabilities.numpy()
        rows = []
        for model in (True, False):
            row = []
            for t in thresholds.numpy():
                chosen = alarm(p, t) if model else np.ones(len(y), dtype=bool)
                hits, false = (chosen & (y == 1)).sum(), (chosen & (y == 0)).sum()
                row.append(rule(hits, false, t / (1 - t), len(y), y.sum()))
            rows.append(row)
        return np.array(rows)

    return answer


def benefit(h, f, w, n, ill):
    return h / n - f / n * w


# The latent oracle


def ratio(
    r=lambda d, rates, medians, sigma: (
        rates[1] / rates[0] * densities(d, medians, sigma)
    ),
    total=lambda r: torch.log1p(r).sum(),
    less=lambda rates: rates[1],
):
    """The right formula, with one part replaced."""

    def answer(diameters, rates, medians, sigma):
        parts = [total(r(d, rates, medians, sigma)) for d in diameters]
        return torch.stack(parts) - less(rates)

    return answer


def densities(d, medians, sigma):
    """g1 / g0 by scipy's densities."""
    zero, one = (
        stats.lognorm(s=sigma, scale=m).pdf(d.double().numpy()) for m in medians
    )
    return torch.as_tensor(one / zero)


def normal(x, sigma, low, high):
    return (((x - low) ** 2 - (x - high) ** 2) / (2 * sigma**2)).exp()


def other(log_ratio):
    """Another g1 / g0: a function of d, medians and sigma."""
    return ratio(r=lambda d, rates, m, s: rates[1] / rates[0] * log_ratio(d, m, s))


def plain_floats(diameters, rates, medians, sigma):
    """Loops over floats, a list."""
    found = []
    for own in diameters:
        total = -rates[1]
        for d in own.tolist():
            g = [stats.norm(math.log(m), sigma).pdf(math.log(d)) for m in medians]
            total += math.log(1 + rates[1] * g[1] / (rates[0] * g[0]))
        found.append(total)
    return found


def skipping_empty(diameters, rates, medians, sigma):
    right = solution("log_ratio")(diameters, rates, medians, sigma)
    return right * torch.tensor([float(len(d) > 0) for d in diameters])


def weighted(d, rates, medians, sigma):
    return rates[1] / rates[0] * densities(d, medians, sigma)


RIGHT = {
    "to_window": [
        clipped_first,
        pixel_by_pixel,
        scaled(),
        lambda *i: solution("to_window")(*i).double(),
        lambda *i: torch.where(i[0] == i[3], 0.0, solution("to_window")(*i)),
    ],
    "output_and_field": [
        by_layers,
        by_gradient,
        rounded_at_the_end,
        lambda *i: torch.tensor(solution("output_and_field")(*i)),
        lambda *i: [float(n) for n in solution("output_and_field")(*i)],
    ],
    "convolve": [
        conv(),
        unfolded,
        strided,
        lambda *i: conv()(*i).double(),
        lambda *i: [*conv()(*i)],
    ],
    "residual_block": [
        by_torchvision,
        block(),
        lambda x, w, s: block()(x.double(), {k: v.double() for k, v in w.items()}, s),
        lambda *i: by_torchvision(*i).detach().numpy(),
    ],
    "resnet_parameters": [
        by_modules,
        counted(),
        lambda *i: float(by_modules(*i)),
        lambda *i: torch.tensor(by_modules(*i)),
        lambda *i: np.int64(by_modules(*i)),
    ],
    "held_out": [strata(), with_sklearn, by_hash],
    "patient_scores": [
        in_logs,
        in_a_table,
        of_patients(noisy_or),
        appearing(lambda patients: sorted(set(patients.tolist()))),
        lambda *i: in_logs(*i).numpy(),
    ],
    "net_benefit": [
        curves(benefit),
        lambda *i: torch.tensor(curves(benefit)(*i)).float(),
        lambda *i: [*torch.tensor(curves(benefit)(*i))],
        lambda *i: curves(benefit)(*i).tolist(),
        curves(lambda h, f, w, n, ill: (h - f * w) / n),
    ],
    "grad_cam": [
        lambda a, g: torch.einsum("c,chw->hw", g.mean((1, 2)), a).clamp(min=0),
        lambda a, g: F.conv2d(a[None], g.mean((1, 2))[None, :, None, None])[
            0, 0
        ].relu(),
        lambda a, g: np.maximum(np.tensordot(g.numpy().mean((1, 2)), a.numpy(), 1), 0),
        lambda a, g: solution("grad_cam")(a.double(), g.double()).tolist(),
    ],
    "log_ratio": [
        ratio(),
        plain_floats,
        lambda *i: solution("log_ratio")(*i).numpy(),
        lambda *i: [*solution("log_ratio")(*i).float()],
        ratio(r=weighted, total=lambda r: (1 + r).prod().log()),
    ],
}

# Wrong answers, each with words that the message must have.
WRONG = {
    "to_window": [
        (in_hu(clipped, pad=False), "Padding is not 0: it is no tissue"),
        (padded_hu, "Padding is sought among HU"),
        (padded_air, "Padding became air"),
        (
            lambda *i: in_hu(clipped, False)(*i).masked_fill(i[0] == i[3], 1),
            "Padding is 1, white",
        ),
        (
            lambda *i: in_hu(clipped, False)(*i).masked_fill(i[0] == i[3], math.nan),
            "Padding is not a number",
        ),
        (scaled(hu_of=lambda x, a, b: x), "slope and intercept are not used"),
        (scaled(hu_of=lambda x, a, b: a * x), "The intercept is not added"),
        (scaled(hu_of=lambda x, a, b: x + b), "The slope is not used"),
        (scaled(hu_of=lambda x, a, b: (x + b) * a), "The slope comes first"),
        (scaled(hu_of=lambda x, a, b: x / a + b), "The slope multiplies"),
        (scaled(hu_of=lambda x, a, b: x * a - b), "The intercept is added, not"),
        (scaled(hu_of=lambda x, a, b: (x - b) / a), "This is the way back"),
        (scaled(low=lambda c, w: c - w, wide=2), "The width is taken as half"),
        (scaled(low=lambda c, w: c), "The window begins at its level"),
        (scaled(wide=0.5), "The window ends at its level"),
        (in_hu(lambda x, c, w: (x - c) / w + 0.5), "Nothing is clipped"),
        (in_hu(lambda x, c, w: ((x - c) / w + 0.5).clamp(min=0)), "Above the window"),
        (in_hu(lambda x, c, w: ((x - c) / w + 0.5).clamp(max=1)), "Below the window"),
        (in_hu(lambda x, c, w: ((x - c) / w + 0.5), pad=False), "And padding is not 0"),
        (in_hu(lambda x, c, w: 1 - clipped(x, c, w)), "It is upside down"),
        (
            in_hu(lambda x, c, w: 1 - clipped(x, c, w), False),
            "upside down: 0 is below the window. And padding is not 0",
        ),
        (in_hu(lambda x, c, w: 2 * clipped(x, c, w) - 1), "This is from -1 to 1"),
        (in_hu(lambda x, c, w: 255 * clipped(x, c, w)), "This is from 0 to 255"),
        (
            in_hu(lambda x, c, w: (255 * clipped(x, c, w)).round()),
            "from 0 to 255, and whole",
        ),
        (in_hu(lambda x, c, w: x.clamp(c - w / 2, c + w / 2)), "These are HU: scale"),
        (in_hu(lambda x, c, w: x), "the window is missing"),
        (in_hu(lambda x, c, w: (x > c).float()), "Only black and white"),
        (in_hu(lambda x, c, w: min_max(x)), "Each image is stretched"),
        (in_hu(lambda x, c, w: min_max(x), False), "Each image is stretched"),
        (in_hu(lambda x, c, w: min_max(x.clamp(c - w / 2, c + w / 2))), "stretched"),
        (
            in_hu(lambda x, c, w: min_max(x.clamp(c - w / 2, c + w / 2)), False),
            "Padding is not 0",  # said first: both ends of the window are reached
        ),
        (tissue_min_max, "one tissue gets another grey in every image"),
        (in_hu(lambda x, c, w: (x - x.mean()) / x.std(), False), "mean 0 and spread 1"),
        (
            in_hu(lambda x, c, w: ((x - c + 0.5) / (w - 1) + 0.5).clamp(0, 1)),
            "This is the DICOM standard's window for whole greys",
        ),
        (lambda *i: in_hu(clipped)(*i) * 0.9, "The values are wrong"),
        (lambda *i: in_hu(clipped)(*i)[0], "The shape is wrong"),
        (lambda *i: i[0] @ i[0], "raised RuntimeError"),
    ],
    "output_and_field": [
        (lambda *i: solution("output_and_field")(*i)[::-1], "The two are exchanged"),
        (through(lambda n, k, s, p: (n - k) // s + 1), "The padding is not used"),
        (through(lambda n, k, s, p: (n + p - k) // s + 1), "counted on one side"),
        (through(lambda n, k, s, p: (n + 2 * p - k) // s), "The + 1 is missing"),
        (through(lambda n, k, s, p: n + 2 * p - k + 1), "The stride is not used"),
        (
            through(lambda n, k, s, p: math.ceil((n + 2 * p - k) / s) + 1),
            "It is rounded up",
        ),
        (through(lambda n, k, s, p: (n + 2 * p - k) / s + 1), "not rounded down in"),
        (through(lambda n, k, s, p: n // s), "Only the strides divide"),
        (through(lambda n, k, s, p: (n + 2 * p) // s), "The kernel is not subtracted"),
        (
            lambda n, layers: (
                solution("output_and_field")(n, layers)[0] ** 2, 1),
            "This is the number of entries",
        ),
        (seen(lambda k, s: 1 + sum(k) - len(k)), "The strides are not used"),
        (
            seen(lambda k, s: 1 + sum(
                (a - 1) * j * b for a, j, b in zip(k, running(s), s, strict=True))),
            "A layer's own stride is in its step",
        ),
        (
            seen(lambda k, s: 1 + sum((a - 1) * b for a, b in zip(k, s, strict=True))),
            "Each kernel is multiplied by its own stride",
        ),
        (
            seen(lambda k, s: 1 + sum(
                (a - 1) * b for a, b in zip(k, (1, *s), strict=False))),
            "Only the stride of the layer before",
        ),
        (
            seen(lambda k, s: sum(
                (a - 1) * j for a, j in zip(k, running(s), strict=True))),
            "The first pixel is missing",
        ),
        (
            seen(lambda k, s: sum(a * j for a, j in zip(k, running(s), strict=True))),
            "A layer adds (k - 1) steps, not k",
        ),
        (seen(lambda k, s: sum(k)), "The kernels are added up"),
        (seen(lambda k, s: math.prod(k)), "The kernels are multiplied"),
        (seen(lambda k, s: math.prod(s)), "This is the step from one entry"),
        (seen(lambda k, s: k[-1]), "This is the last layer's kernel"),
        (
            lambda n, layers: (solution("output_and_field")(n, layers)[0],
                               min(n, solution("output_and_field")(n, layers)[1])),
            "It is cut at the image",
        ),
        (
            changed("output_and_field", lambda v: (v[0], v[1] ** 2)),
            "return the side of the square",
        ),
        (changed("output_and_field", lambda v: (v[0], v[1] + 77)), "field is wrong"),
        (changed("output_and_field", lambda v: (v[0] + 77, v[1])), "side is wrong"),
        (changed("output_and_field", lambda v: v[0]), "Expected a pair"),
        (changed("output_and_field", lambda v: (*v, 1)), "Expected a pair"),
        (changed("output_and_field", lambda v: (v[0], str(v[1]))), "two numbers"),
        (lambda n, layers: layers[9], "raised IndexError"),
    ],
    "convolve": [
        (conv(lambda x, w, b, s, p: (x, w.flip(2, 3), b, s, p)), "kernel is flipped"),
        (conv(lambda x, w, b, s, p: (x, w.flip(2), b, s, p)), "rows are flipped"),
        (conv(lambda x, w, b, s, p: (x, w.flip(3), b, s, p)), "columns are flipped"),
        (conv(lambda x, w, b, s, p: (x, w, 0 * b, s, p)), "The bias is not added"),
        (
            conv(lambda x, w, b, s, p: (x, w, b * len(x), s, p)),
            "once for each channel",
        ),
        (
            conv(lambda x, w, b, s, p: (x, w, b * w[0].numel(), s, p)),
            "The bias is added in every term",
        ),
        (conv(lambda x, w, b, s, p: (x, w, b, s, 0)), "The padding is not used"),
        (conv(lambda x, w, b, s, p: (x, w, b, 1, p)), "The stride is not used"),
        (conv(lambda x, w, b, s, p: (x, w / w[0].numel(), b, s, p)), "This is a mean"),
        (conv(lambda x, w, b, s, p: (x / len(x), w, b, s, p)), "averaged"),
        (conv(lambda x, w, b, s, p: (x[:1], w[:, :1], b, s, p)), "Only the first chan"),
        (changed("convolve", torch.relu), "a ReLU comes later"),
        (changed("convolve", lambda v: v.sum(0)), "The filters are summed"),
        (changed("convolve", lambda v: v[0]), "Only the first filter"),
        (changed("convolve", lambda v: v.mT), "Rows and columns are exchanged"),
        (changed("convolve", lambda v: v.permute(1, 2, 0)), "The filters come last"),
        (changed("convolve", lambda v: v[None]), "an axis too many"),
        (padded_by("replicate"), "The border is filled with pixels"),
        (padded_by("reflect"), "The border is filled with pixels"),
        (
            conv(lambda x, w, b, s, p: (F.pad(x, (0, p, 0, p)), w, b, s, 0)),
            "below and on the right only",
        ),
        (
            conv(lambda x, w, b, s, p: (F.pad(x, (p, p)), w, b, s, 0)),
            "of the columns only",
        ),
        (later, "The first place is the corner"),
        (
            lambda x, w, b, s, p: F.avg_pool2d(conv()(x, w, b, 1, p), s),
            "The places between are averaged",
        ),
        (last_row_lost, "The last row and the last column are missing"),
        (changed("convolve", lambda v: v + 0.1), "The values are wrong"),
        (changed("convolve", lambda v: v[:, :-1]), "The shape is wrong"),
        (lambda x, w, b, s, p: x @ w, "raised RuntimeError"),
    ],
    "residual_block": [
        (block(join=lambda a, b: a + b), "The last ReLU is missing"),
        (block(join=lambda a, b: a.relu() + b), "The ReLU comes before the sum"),
        (
            block(join=lambda a, b: (a.relu() + b).relu()),
            "There is a ReLU between bn2 and the sum",
        ),
        (block(join=lambda a, b: a.relu() + b.relu()), "a ReLU of their own"),
        (block(join=lambda a, b: (a + b.relu()).relu()), "The shortcut gets a ReLU"),
        (block(join=lambda a, b: a.relu()), "The shortcut is not added"),
        (block(join=lambda a, b: (a - b).relu()), "The shortcut is subtracted"),
        (block(middle=plain), "The ReLU after bn1 is missing"),
        (block(middle=plain, join=lambda a, b: a + b), "the block is linear"),
        (block(training=True), "The batch's own mean and variance are used"),
        (
            block(norm=lambda x, m, v, g, b: (x - m) / (v + 1e-5) * g + b),
            "divided by the variance",
        ),
        (block(eps=0.0), "eps, 1e-5, is not added"),
        (
            block(norm=lambda x, m, v, g, b: x / (v + 1e-5).sqrt() * g + b),
            "The running mean is not subtracted",
        ),
        (
            block(norm=lambda x, m, v, g, b: (x - m) / (v + 1e-5).sqrt() + b),
            "The weight of batch normalisation is missing",
        ),
        (
            block(norm=lambda x, m, v, g, b: (x - m) / (v + 1e-5).sqrt() * g),
            "The bias of batch normalisation is missing",
        ),
        (
            block(norm=lambda x, m, v, g, b: (x - m) / (v + 1e-5).sqrt()),
            "Weight and bias of batch normalisation are missing",
        ),
        (block(norm=lambda x, *parts: x), "Batch normalisation is missing"),
        (
            block(norm=lambda x, m, v, g, b: (x - m) / (v.sqrt() + 1e-5) * g + b),
            "eps is added to the variance, not its root",
        ),
        (before_norm, "The ReLU comes before bn1"),
        (block(names=("bn1", "bn1")), "bn1 is used twice"),
        (block(strides=lambda s: (1, s)), "The second convolution has the stride"),
        (block(shortcut=False), "The downsample's batch normalisation is missing"),
        (changed("residual_block", lambda v: v * 1.1), "The values are wrong"),
        (changed("residual_block", lambda v: v[0]), "The shape is wrong"),
        (lambda x, w, s: w["conv3.weight"], "raised KeyError"),
        (
            lambda x, w, s: F.conv2d(x, w["conv1.weight"], stride=s) + x,
            "raised RuntimeError",
        ),
    ],
    "resnet_parameters": [
        (counted(bias=1), "The convolutions have no bias"),
        (counted(norm=4), "Running means and variances are counted"),
        (counted(norm=0), "BatchNorm is not counted"),
        (counted(norm=1), "two numbers a channel"),
        (counted(norm=0, bias=1), "two numbers a channel"),
        (counted(down=lambda *i: False), "on the shortcuts are missing, with"),
        (counted(down_norm=False), "BatchNorm on the shortcuts is missing"),
        (counted(down=lambda block, *i: not block), "The first stage has no conv"),
        (counted(down=lambda *i: True), "Every block has a convolution on its"),
        (counted(kernels=(7, 3, 3)), "on the shortcuts are 1x1"),
        (counted(kernels=(3, 3, 1)), "The first convolution is 7x7"),
        (counted(head=lambda w, c: w * c), "The bias of the last layer"),
        (counted(head=lambda w, c: 0), "The last layer is missing"),
        (counted(head=lambda w, c: 49 * w * c + c), "one number a channel, the mean"),
        (counted(first=lambda a, b: b), "takes in the width of the stage before it"),
        (counted(convs=1), "A block has two convolutions"),
        (counted(stem_norm=False), "BatchNorm of the first convolution"),
        (
            lambda n, stages, c: counted()(0, stages, c) - 2 * stages[0][1],
            "The first convolution and its BatchNorm",
        ),
        (lambda n, stages, c: counted()(0, stages, c), "first convolution is missing"),
        (lambda n, stages, c: counted()(3, stages, c), "not always 3"),
        (lambda n, stages, c: counted()(n, stages, 1000), "not always 1000"),
        (
            lambda n, stages, c: counted()(n, [(1, w) for _, w in stages], c),
            "with one block",
        ),
        (
            lambda n, stages, c: counted()(n, [(2, w) for _, w in stages], c),
            "with two blocks",
        ),
        (lambda *i: 4 * counted()(*i), "These are bytes"),
        (lambda *i: counted()(*i) + 1, "Expected 11,689,512, came 11,689,513"),
        (lambda n, stages, c: stages, "Expected one number, came a list of 4"),
    ],
    "held_out": [
        (by_row, "rows were split, not patients"),
        (kinds_apart, "their ill slices and their healthy ones were drawn apart"),
        (unstratified, "The share is right over all patients, but not among"),
        (folds, "healthy patients in validation, came"),
        (strata(kind=lambda positive, rows: positive == rows), "all of whose slices"),
        (strata(kind=lambda positive, rows: 2 * positive > rows), "whose slices are"),
        (first_slices, "Patients whose first slice is count as ill"),
        (
            lambda p, y, s, seed: strata()(p, y, 1 - s, seed),
            "The mask is upside down",
        ),
        (lambda *i: ~strata()(*i), "The mask is upside down"),
        (lambda p, y, s, seed: p < 0, "Nobody is held out"),
        (lambda p, y, s, seed: p > 0, "The share is wrong. Expected"),
        (healthy_apart(lambda n: 0), "The share is right but for the healthy"),
        (healthy_apart(lambda n: n + 1), "The share is right but for the healthy"),
        (
            lambda p, y, s, seed: strata()(p, y, s / 2, seed),
            "The share is wrong. Expected 4 of 16 ill and 6 of 24 healthy",
        ),
        (strata(draw=lambda group: group), "Every seed gives the same split"),
        (lambda p, y, s, seed: strata()(p, y, s, 0), "Every seed gives the same split"),
        (
            lambda p, y, s, seed: strata()(p, y, s, int(torch.randint(10**6, ()))),
            "Two calls with the same seed differ",
        ),
        (never_one, "A patient is held out with 0% of the seeds"),
        (lambda *i: np.where(strata()(*i))[0], "These are row numbers"),
        (lambda *i: i[0][strata()(*i)], "These are patients: return a mask"),
        (lambda *i: strata()(*i)[:-1], "one entry a row"),
        (lambda *i: {"held": 1}, "Expected a mask (rows,)"),
        (lambda p, y, s, seed: p[y == 1][s], "raised"),
    ],
    "patient_scores": [
        (of_patients(torch.amax), "This is the largest slice alone"),
        (of_patients(torch.mean), "many healthy slices would hide"),
        (of_patients(torch.sum), "This is the sum"),
        (of_patients(lambda p: p.sum().clamp(max=1)), "This is the sum, cut at 1"),
        (of_patients(torch.prod), "all slices are positive"),
        (of_patients(lambda p: (1 - p).prod()), "subtract it from 1"),
        (of_patients(lambda p: 1 - p.prod()), "multiply 1 - p, not p"),
        (
            of_patients(lambda p: 1 - (1 - p).prod() ** (1 / len(p))),
            "The root by the number of slices",
        ),
        (of_patients(lambda p: p.log().mean().exp()), "geometric mean"),
        (of_patients(torch.median), "median"),
        (of_patients(torch.amin), "This is the smallest slice"),
        (of_patients(lambda p: p[0]), "first slice"),
        (of_patients(lambda p: p[-1]), "last slice"),
        (
            of_patients(lambda p: 1 - (1 - p.amax()) ** len(p)),
            "The largest slice is counted for all",
        ),
        (
            of_patients(lambda p: 1 - (1 - p.mean()) ** len(p)),
            "The mean slice is counted for all",
        ),
        (of_patients(lambda p: noisy_or(p[:3])), "Only three slices"),
        (lambda *i: in_a_table(*i, fill=0.5), "Missing slices are filled with 0.5"),
        (of_patients(lambda p: p.logit().sum().sigmoid()), "Log-odds are added"),
        (
            appearing(lambda patients: list(dict.fromkeys(patients.tolist()))),
            "in the order of their first slices",
        ),
        (of_patients(noisy_or, lambda people: people.flip(0)), "in descending order"),
        (changed("patient_scores", lambda v: v.sort().values), "scores are sorted"),
        (lambda p, patients: noisy_or(p), "All patients are one"),
        (
            lambda p, q: in_logs(p, q)[q.unique(return_inverse=True)[1]],
            "There is a score for each slice",
        ),
        (one_hot, "log(0) times 0 is not a number"),
        (changed("patient_scores", lambda v: v / 2), "The values are wrong"),
        (
            lambda p, q: dict(enumerate(solution("patient_scores")(p, q))),
            "Expected a torch.Tensor",
        ),
        (lambda p, q: p[q], "raised IndexError"),
    ],
    "net_benefit": [
        (curves(lambda h, f, w, n, ill: (h - f / w) / n), "The weight is upside down"),
        (curves(lambda h, f, w, n, ill: (h - f) / n), "is not weighted"),
        (curves(lambda h, f, w, n, ill: (h - f * w / (1 + w)) / n), "not t itself"),
        (curves(lambda h, f, w, n, ill: (h - f / (1 + w)) / n), "not 1 - t"),
        (
            curves(lambda h, f, w, n, ill: h / ill - f / (n - ill) * w),
            "Sensitivity and false-alarm rate are used",
        ),
        (curves(lambda h, f, w, n, ill: h / ill - f / n * w), "divided by the ill"),
        (curves(lambda h, f, w, n, ill: (h - f * w) / ill), "by the prevalence"),
        (curves(lambda h, f, w, n, ill: h - f * w), "These are counts"),
        (curves(lambda h, f, w, n, ill: (h + f * w) / n), "subtracted, not added"),
        (curves(lambda h, f, w, n, ill: h / n), "These are the hits"),
        (
            curves(lambda h, f, w, n, ill: (h - f * w) / (h + f)),
            "divided by those who are treated",
        ),
        (
            curves(lambda h, f, w, n, ill: (h - (n - ill - f) * w) / n),
            "The healthy without an alarm are subtracted",
        ),
        (
            curves(lambda h, f, w, n, ill: (f - h * w) / n),
            "Ill and healthy are exchanged",
        ),
        (
            curves(lambda h, f, w, n, ill: (h - f * w - (ill - h)) / n),
            "The missed are subtracted as well",
        ),
        (curves(benefit, lambda p, t: p > t), "use >="),
        (curves(benefit, lambda p, t: p < t), "Those below the threshold are treated"),
        (curves(benefit, lambda p, t: p >= 0.5), "it is not 0.5 for all"),
        (changed("net_benefit", lambda v: v.flip(0)), "The rows are exchanged"),
        (
            changed("net_benefit", lambda v: torch.stack([v[0], 0 * v[1]])),
            "The second row is for treating nobody",
        ),
        (
            lambda y, p, t: torch.stack(
                [solution("net_benefit")(y, p, t)[0], y.double().mean().expand(len(t))]
            ),
            "Treating everybody has false alarms",
        ),
        (
            changed("net_benefit", lambda v: torch.stack([v[0], v[0] - v[1]])),
            "The second row is the difference",
        ),
        (changed("net_benefit", lambda v: v[0]), "The second row is missing"),
        (changed("net_benefit", lambda v: v[0] - v[1]), "the difference of the rows"),
        (changed("net_benefit", lambda v: v.T), "The rows are thresholds"),
        (changed("net_benefit", lambda v: v.clamp(min=0)), "Below 0 it does harm"),
        (changed("net_benefit", lambda v: 100 * v), "This is for 100 patients"),
        (changed("net_benefit", lambda v: v + 0.1), "The values are wrong"),
        (changed("net_benefit", lambda v: (v[0], v[1], 1)), "Expected a torch.Tensor"),
        (lambda y, p, t: p - t, "raised RuntimeError"),
    ],
    "grad_cam": [
        (lambda a, g: weights(g).mul(a).sum(0), "The ReLU is missing"),
        (
            lambda a, g: (weights(g) * a).relu().sum(0),
            "The ReLU comes before the sum",
        ),
        (lambda a, g: (weights(g).relu() * a).sum(0).relu(), "The weights are cut"),
        (lambda a, g: (weights(g) * a).sum(0).abs(), "Absolute values are taken"),
        (lambda a, g: (weights(g).abs() * a).sum(0).relu(), "have lost their signs"),
        (lambda a, g: (g * a).sum(0).relu(), "Gradients multiply place by place"),
        (lambda a, g: (g * a).sum(0), "place by place, and the ReLU is missing"),
        (lambda a, g: (g.relu() * a).sum(0).relu(), "cut at 0 place by place"),
        (lambda a, g: (weights(g.relu()) * a).sum(0).relu(), "before their mean"),
        (
            lambda a, g: (g.sum((1, 2), keepdim=True) * a).sum(0).relu(),
            "The weights are sums",
        ),
        (
            lambda a, g: (g.amax((1, 2), keepdim=True) * a).sum(0).relu(),
            "the largest gradients",
        ),
        (lambda a, g: (weights(g) * a).mean(0).relu(), "The channels are averaged"),
        (lambda a, g: (g.mean(0) * a).sum(0).relu(), "averaged over channels"),
        (lambda a, g: (g.mean() * a).sum(0).relu(), "One weight for all channels"),
        (
            lambda a, g: (weights(g) * a.relu()).sum(0).relu(),
            "The activations are cut at 0 first",
        ),
        (lambda a, g: (weights(a) * g).sum(0).relu(), "are exchanged"),
        (lambda a, g: (weights(g).softmax(0) * a).sum(0).relu(), "a softmax"),
        (changed("grad_cam", lambda v: v / v.max()), "The map is scaled to 1"),
        (changed("grad_cam", min_max), "as it is"),
        (changed("grad_cam", lambda v: v / v.max() * v.max()), "here 0 / 0 came"),
        (changed("grad_cam", lambda v: v / v.sum()), "scaled to sum to 1"),
        (lambda a, g: (weights(-g) * a).sum(0).relu(), "The sign is wrong"),
        (lambda a, g: a.mean(0), "The gradients are not used"),
        (lambda a, g: g.abs().amax(0), "this is a saliency map"),
        (lambda a, g: g.mean(0).relu(), "The activations are not used"),
        (lambda a, g: (weights(g) * a).relu(), "The sum over channels is missing"),
        (changed("grad_cam", lambda v: v.T), "Rows and columns are exchanged"),
        (changed("grad_cam", lambda v: v + 1), "The values are wrong"),
        (changed("grad_cam", lambda v: v[None]), "The shape is wrong"),
        (lambda a, g: g.mean((1, 2)) * a, "raised RuntimeError"),
    ],
    "log_ratio": [
        (ratio(less=lambda rates: 0), "L1 is not subtracted"),
        (ratio(less=lambda rates: -rates[1]), "L1 is added: subtract it"),
        (ratio(less=lambda rates: rates[1] - rates[0]), "not L1 - L0"),
        (ratio(less=sum), "not L0 + L1"),
        (ratio(less=lambda rates: rates[0]), "L1 is subtracted, not L0."),
        (
            lambda d, rates, m, s: torch.stack(
                [(weighted(x, rates, m, s).log1p() - rates[1]).sum() for x in d]
            ),
            "L1 is subtracted once for each opacity",
        ),
        (ratio(total=lambda r: r.log().sum()), "The 1 + is missing"),
        (
            ratio(
                total=lambda r: r.log().sum(), less=lambda rates: rates[1] - rates[0]
            ),
            "are taken to have further opacities only",
        ),
        (ratio(total=lambda r: r.sum().log1p()), "The logarithm comes after the sum"),
        (ratio(total=lambda r: r.log1p().sum() / max(len(r), 1)), "This is a mean"),
        (
            ratio(total=lambda r: r.log1p().amax() if len(r) else r.sum()),
            "Only one opacity counts",
        ),
        (
            ratio(
                r=lambda d, *i: weighted(
                    d.max() if len(d) else d.sum()[None][:0], *i
                ),
            ),
            "Only",
        ),
        (ratio(r=lambda *i: 1 / weighted(*i)), "The ratio is upside down"),
        (
            ratio(r=lambda d, rates, m, s: weighted(d, rates, m[::-1], s)),
            "g0 and g1 are exchanged",
        ),
        (
            ratio(r=lambda d, rates, m, s: weighted(d, rates[::-1], m, s)),
            "L0 and L1 are exchanged",
        ),
        (
            ratio(r=lambda d, rates, m, s: densities(d, m, s)),
            "The rates are missing",
        ),
        (
            ratio(r=lambda d, rates, m, s: rates[1] * densities(d, m, s)),
            "L0 is missing in the ratio",
        ),
        (
            ratio(r=lambda d, rates, m, s: densities(d, m, s) / rates[0]),
            "L1 is missing in the ratio",
        ),
        (other(lambda d, m, s: torch.ones_like(d)), "Only their number counts"),
        (other(lambda d, m, s: normal(d, s, *m)), "The diameter is taken as normal"),
        (other(lambda d, m, s: normal(d.log(), s, *m)), "has the mean ln(median)"),
        (
            other(
                lambda d, m, s: normal(
                    d.log(), s, *[math.log(x) - s**2 / 2 for x in m]
                )
            ),
            "The medians are taken as means",
        ),
        (
            other(lambda d, m, s: normal(d.log(), s**0.5, *map(math.log, m))),
            "sigma is taken as a variance",
        ),
        (
            other(lambda d, m, s: normal(d.log(), s / 2**0.5, *map(math.log, m))),
            "The half in the normal density's exponent",
        ),
        (
            other(lambda d, m, s: normal(d.log10(), s, *map(math.log10, m))),
            "Logarithms are natural ones",
        ),
        (ratio(total=lambda r: (1 + r).log2().sum()), "log2 came"),
        (changed("log_ratio", torch.exp), "This is the ratio itself"),
        (changed("log_ratio", torch.sigmoid), "This is a probability"),
        (changed("log_ratio", torch.neg), "The sign is wrong"),
        (ratio(total=lambda r: (1 + r).prod()), "The logarithm is missing"),
        (ratio(total=torch.sum), "The logarithm is missing"),
        (changed("log_ratio", torch.sum), "All patients are added up"),
        (changed("log_ratio", torch.mean), "This is the mean of all patients"),
        (changed("log_ratio", lambda v: v.sort().values), "The patients are sorted"),
        (skipping_empty, "A patient without an opacity speaks for health"),
        (changed("log_ratio", lambda v: v + 0.1), "The values are wrong"),
        (
            lambda d, rates, m, s: ratio()([x for x in d if len(x)], rates, m, s),
            "The shape is wrong",
        ),
        (lambda d, rates, m, s: torch.stack(d), "raised RuntimeError"),
    ],
}  # fmt: skip


def weights(gradients):
    """Each channel's mean gradient."""
    return gradients.mean((1, 2), keepdim=True)


def test_every_exercise_has_cases():
    assert list(ct_resnet.TALLY.results) == CHECKERS
    assert list(RIGHT) == list(WRONG) == CHECKERS
    assert all(len(wrong) >= 8 for wrong in WRONG.values())


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


@pytest.mark.parametrize("answer", [strata(), with_sklearn, by_hash])
def test_chance_does_not_fail_right_splits(answer):
    """Right answers pass whatever they draw: other seeds, same checks."""
    for shift in range(1, 9):
        result = check(
            "held_out", lambda *i, s=shift: answer(*i[:-1], i[-1] + 1000 * s)
        )
        assert result.passed, result.message


def test_overwritten_inputs_do_not_change_what_is_right():
    """The checkers keep their own copies, of what is inside lists and dicts, too."""

    def in_place(x, w, stride):
        out = by_torchvision(x, w, stride)
        for value in w.values():
            value.zero_()
        return out

    def logs_in_place(diameters, rates, medians, sigma):
        out = solution("log_ratio")(diameters, rates, medians, sigma)
        for own in diameters:
            own.log_()
        return out

    assert check("residual_block", in_place).passed
    assert check("log_ratio", logs_in_place).passed


@pytest.mark.parametrize("make", [models.resnet18, models.resnet34])
def test_parameters_are_counted_as_torchvision_has_them(make):
    blocks = [2, 2, 2, 2] if make is models.resnet18 else [3, 4, 6, 3]
    stages = list(zip(blocks, [64, 128, 256, 512], strict=True))
    counts = sum(p.numel() for p in make(weights=None).parameters())
    assert solution("resnet_parameters")(3, stages, 1000) == counts


def test_the_ratio_is_that_of_simulated_patients():
    """Its mean among the healthy, exponentiated, is 1: it is a likelihood ratio."""
    rng = np.random.default_rng(0)
    rates, medians, sigma = (1.5, 0.7), (5.0, 6.0), 0.4
    diameters = [
        torch.tensor(np.exp(rng.normal(math.log(5.0), sigma, rng.poisson(1.5))))
        for _ in range(20_000)
    ]
    ratios = solution("log_ratio")(diameters, rates, medians, sigma).exp()
    error = float(ratios.std()) / len(ratios) ** 0.5
    assert error < 0.02
    assert abs(float(ratios.mean()) - 1) < 4 * error
