"""Checkers for the exercises on lung CT with a ResNet: they explain what is wrong.

Every checker takes the learner's function and returns a `core.Result`. An answer may
come as a tensor, a NumPy array, a list or a plain number. The oracles are closed forms,
torch's own layers and loops over single patients; the wrong answers are computed beside
them, on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medlm_utils.checks.core import (
    Answer,
    Attempt,
    Mistake,
    Tally,
    as_tensor,
    difference,
    generator,
    one_number,
    shape,
    sized,
)

TALLY = Tally("Lung CT with a ResNet")
_FIVE_SIGMA = 5.0  # the room that answers which draw have, in standard errors


def summary() -> None:
    """Print how many of the chapter's exercises are answered."""
    TALLY.summary()


def _tensor(attempt: Attempt) -> Attempt:
    """The attempt with its value as a tensor, where it can be one."""
    value = as_tensor(attempt.value)
    return attempt if value is None else Attempt(value, attempt.inputs)


# 1. Stored values to a window --------------------------------------------------------

HOUNSFIELD = "First HU = stored * slope + intercept, then the window, then the padding."
WINDOW = "The window begins at level - width / 2, is 0 there, and 1 a width higher."
# Slope, intercept, padding, level, width, and between which shares of the window the
# values lie. A picture that reaches both ends of its window equals one that is
# stretched after clipping; where padding is at one end, the rest stays off the other.
_SCANNERS: list[tuple[float, float, int, float, float, float, float]] = [
    (2.0, -600.0, 900, 300.0, 2000.0, -0.4, 1.3),
    (0.5, -200.0, 1500, 40.0, 1000.0, 0.2, 1.4),
    (1.0, -1024.0, -2000, -600.0, 1500.0, -0.3, 0.8),
]


@TALLY.exercise
def to_window(answer: Answer) -> str:
    """Check `to_window(stored, slope, intercept, padding, level, width)`, in [0, 1].

    `stored` int16 (rows, columns), as a DICOM file has it; the result is (rows,
    columns): HU in a window of `width` around `level`, 0 below, 1 above, and 0 where
    `stored` is `padding`. Oracle: the closed form. In two of three cases padding would
    be bright, and some tissue has as many HU as padding has stored.
    """
    draw = generator()
    for slope, intercept, padding, level, width, low, high in _SCANNERS:
        share = low + (high - low) * torch.rand(5, 7, generator=draw)
        hu = level + width * (share - 0.5)
        hu[2, 2:4] = padding if padding > level else hu[2, 2:4]
        stored = ((hu - intercept) / slope).round().to(torch.int16)
        stored[0, :3] = stored[-1, -2:] = padding
        settings = (slope, intercept, padding, level, width)
        attempt = answer.on(
            stored=stored,
            slope=slope,
            intercept=intercept,
            padding=padding,
            level=level,
            width=width,
        )
        expected = _windowed(stored, *settings)
        _tensor(attempt).equals(expected, _window_mistakes(stored, *settings))
    return "values of three scanners and windows, and their padding."


def _windowed(
    stored: Tensor,
    slope: float,
    intercept: float,
    padding: int,
    level: float,
    width: float,
) -> Tensor:
    """The oracle, in double precision."""
    hu = stored.double() * slope + intercept
    grey = ((hu - level) / width + 0.5).clamp(0, 1)
    return grey.masked_fill(stored == padding, 0.0)


def _window_mistakes(
    stored: Tensor,
    slope: float,
    intercept: float,
    padding: int,
    level: float,
    width: float,
) -> list[Mistake]:
    """Wrong pictures, with padding at 0 and without; the likeliest first."""
    raw, padded = stored.double(), stored == padding
    hu = raw * slope + intercept
    grey = (hu - level) / width + 0.5
    found: list[Mistake] = []

    def add(value: Tensor, says: str, look: str = "") -> None:
        """Both with padding at 0 and without."""
        found.append(Mistake(value.masked_fill(padded, 0.0), says, look))
        found.append(Mistake(value, f"{says} And padding is not 0.", look))

    right, lowest = grey.clamp(0, 1), level - width / 2
    found.append(
        Mistake(right, "Padding is not 0: it is no tissue, but has a grey of its own.")
    )
    found.append(
        Mistake(
            right.masked_fill(hu == padding, 0.0),
            "Padding is sought among HU: it is a stored value, before the slope.",
            "Compare stored == padding.",
        )
    )
    air = (-1000 - level) / width + 0.5
    for value, says in (
        (min(max(air, 0.0), 1.0), "Padding became air, -1000 HU: it is 0 here."),
        (1.0, "Padding is 1, white: it is 0 here."),
        (math.nan, "Padding is not a number: it is 0 here."),
    ):
        found.append(Mistake(right.masked_fill(padded, value), says))
    _add_window_scales(add, raw, slope, intercept, level, width)
    add(grey, "Nothing is clipped: below the window is 0, above it is 1.", WINDOW)
    add(grey.clamp(min=0), "Above the window is 1: clip there, too.", WINDOW)
    add(grey.clamp(max=1), "Below the window is 0: clip there, too.", WINDOW)
    add(
        ((hu - level) / (2 * width) + 0.5).clamp(0, 1),
        "The width is taken as half of it: the window is width HU wide.",
        WINDOW,
    )
    add(((hu - level) / width).clamp(0, 1), "The window begins at its level.", WINDOW)
    add(
        ((hu - lowest) / (width / 2)).clamp(0, 1),
        "The window ends at its level.",
        WINDOW,
    )
    add(1 - right, "It is upside down: 0 is below the window.", WINDOW)
    add((2 * grey - 1).clamp(-1, 1), "This is from -1 to 1: return 0 to 1.", WINDOW)
    add(
        (255 * right).round(),
        "This is from 0 to 255, and whole: return 0 to 1.",
        WINDOW,
    )
    add(255 * right, "This is from 0 to 255: return 0 to 1.", WINDOW)
    add(hu.clamp(lowest, lowest + width), "These are HU: scale them to 0 to 1.", WINDOW)
    add(hu, "These are HU: the window is missing.", WINDOW)
    add((hu >= level).double(), "Only black and white: the window has greys.", WINDOW)
    add((hu > level).double(), "Only black and white: the window has greys.", WINDOW)
    add(
        ((hu - level + 0.5) / (width - 1) + 0.5).clamp(0, 1),
        "This is the DICOM standard's window for whole greys, half a unit and width "
        "- 1: here the window is exact.",
        WINDOW,
    )
    _add_own_scales(add, hu, raw, padded, lowest, width)
    return found


def _add_window_scales(
    add: Callable[..., None],
    raw: Tensor,
    slope: float,
    intercept: float,
    level: float,
    width: float,
) -> None:
    """Mistakes on the way to HU."""
    for hu, says in (
        (raw, "Stored values are no HU: slope and intercept are not used."),
        (raw * slope, "The intercept is not added."),
        (raw + intercept, "The slope is not used."),
        ((raw + intercept) * slope, "The slope comes first, then the intercept."),
        (raw / slope + intercept, "The slope multiplies: it does not divide."),
        (raw * slope - intercept, "The intercept is added, not subtracted."),
        ((raw - intercept) / slope, "This is the way back, from HU to stored values."),
    ):
        add(((hu - level) / width + 0.5).clamp(0, 1), says, HOUNSFIELD)


def _add_own_scales(
    add: Callable[..., None],
    hu: Tensor,
    raw: Tensor,
    padded: Tensor,
    lowest: float,
    width: float,
) -> None:
    """Each image on a scale of its own, in several manners."""
    says = (
        "Each image is stretched to its own smallest and largest value: one tissue "
        "gets another grey in every image, and HU are lost."
    )
    tissue = ~padded
    clipped = hu.clamp(lowest, lowest + width)
    for values in (hu, raw, clipped):
        for part in (values, values[tissue]):
            low, high = part.min(), part.max()
            add((values - low) / (high - low), says, WINDOW)
            add(((values - low) / (high - low)).clamp(0, 1), says, WINDOW)
    for values in (hu, clipped):
        for part in (values, values[tissue]):
            add(
                (values - part.mean()) / part.std(),
                "Each image is brought to mean 0 and spread 1 of its own.",
                WINDOW,
            )


# 2. Size and receptive field ---------------------------------------------------------

Layer = tuple[int, int, int]  # kernel, stride, padding
SIZE = "A layer of kernel k, stride s, padding p: floor((size + 2 p - k) / s) + 1."
FIELD = "A layer adds (k - 1) times the product of the strides of the layers before it."
_STACKS: list[tuple[int, list[Layer]]] = [
    (128, [(7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 2, 1)]),
    (90, [(7, 2, 3), (5, 3, 1), (4, 2, 1), (3, 1, 0), (5, 1, 2)]),
    (50, [(5, 2, 1), (3, 1, 0), (4, 3, 1), (1, 1, 0), (3, 2, 2)]),
    (33, [(4, 3, 0), (3, 2, 0)]),
]


@TALLY.exercise
def output_and_field(answer: Answer) -> str:
    """Check `output_and_field(size, layers)`, a pair of whole numbers.

    `size` is the side of a square image in pixels, `layers` a list of (kernel, stride,
    padding), the first layer first; the result is the side of the last layer's output,
    and the side of the square of pixels that one entry of it sees, as if the image had
    no border. Oracle: ones through torch's pooling, and the recursion from behind.
    """
    attempts = [answer.on(size=size, layers=list(at)) for size, at in _STACKS]
    came = [_whole_pair(attempt) for attempt in attempts]
    wanted = [(_side(*stack), _field(stack[1])) for stack in _STACKS]
    swapped = all(pair == right[::-1] for pair, right in zip(came, wanted, strict=True))
    for place, name, mistakes, look in (
        (0, "The output's side", _side_mistakes, SIZE),
        (1, "The receptive field", _field_mistakes, FIELD),
    ):
        wrong = [i for i, pair in enumerate(came) if pair[place] != wanted[i][place]]
        if not wrong:
            continue
        first = wrong[0]
        x, y = came[first]
        told = f"Expected {wanted[first]}, came ({x:g}, {y:g})."
        if swapped:
            attempts[first].fail(f"The two are exchanged: the output is first. {told}")
        tables = [mistakes(*stack) for stack in _STACKS]
        says = _named([pair[place] for pair in came], tables) or f"{name} is wrong."
        attempts[first].fail(f"{says} {told}", look)
    return "both numbers for four stacks, among them a ResNet's first layers."


def _named(came: list[float], tables: list[list[tuple[float, str]]]) -> str | None:
    """The mistake that gives what came in every case; numbers alike by chance do not.

    `tables` has for each case the same mistakes, with the numbers that they give.
    """
    for column in zip(*tables, strict=True):
        pairs = zip(came, column, strict=True)
        if all(math.isclose(x, value, rel_tol=1e-9) for x, (value, _) in pairs):
            return column[0][1]
    return None


def _whole_pair(attempt: Attempt) -> tuple[float, float]:
    """The value as two numbers; fails unless it is a pair of them."""
    value, what = attempt.value, "the output's side and the receptive field"
    array = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0
    if not (array or isinstance(value, (tuple, list))) or len(value) != 2:
        attempt.fail(f"Expected a pair, {what}, came {sized(value)}.")
    numbers = [one_number(part) for part in value]
    for part, number in zip(value, numbers, strict=True):
        if number is None:
            attempt.fail(f"Expected two numbers, {what}; one is {sized(part)}.")
    return numbers[0], numbers[1]  # type: ignore[return-value]


def _side(size: int, layers: Iterable[Layer]) -> int:
    """The oracle of the output's side: a row of pixels through torch's pooling."""
    row = torch.ones(1, 1, size)
    for kernel, stride, padding in layers:
        padded = functional.pad(row, (padding, padding))
        row = functional.max_pool1d(padded, kernel, stride)
    return row.shape[-1]


def _field(layers: list[Layer]) -> int:
    """The oracle of the receptive field: from the last layer to the first."""
    field = 1
    for kernel, stride, _ in reversed(layers):
        field = (field - 1) * stride + kernel
    return field


def _through(size: float, layers: Iterable[Layer], step: Callable[..., float]) -> float:
    """A side through all layers by the rule `step(size, kernel, stride, padding)`."""
    for layer in layers:
        size = step(size, *layer)
    return size


def _side_mistakes(size: int, layers: list[Layer]) -> list[tuple[float, str]]:
    """Wrong sides, the likeliest first."""
    rules: list[tuple[Callable[..., float], str]] = [
        (lambda n, k, s, p: (n - k) // s + 1, "The padding is not used."),
        (
            lambda n, k, s, p: (n + p - k) // s + 1,
            "The padding is counted on one side: it stands on both.",
        ),
        (lambda n, k, s, p: (n + 2 * p - k) // s, "The + 1 is missing."),
        (lambda n, k, s, p: n + 2 * p - k + 1, "The stride is not used."),
        (
            lambda n, k, s, p: -((n + 2 * p - k) // -s) + 1,
            "It is rounded up: a kernel that would pass the end is not applied.",
        ),
        (
            lambda n, k, s, p: round((n + 2 * p - k) / s) + 1,
            "It is rounded to the nearest: a layer rounds down.",
        ),
        (
            lambda n, k, s, p: (n + 2 * p - k) / s + 1,
            "It is not rounded down in every layer.",
        ),
        (
            lambda n, k, s, p: n // s,
            "Only the strides divide: kernel and padding count, too.",
        ),
        (lambda n, k, s, p: -(n // -s), "Only the strides divide, rounded up."),
        (lambda n, k, s, p: (n + 2 * p) // s, "The kernel is not subtracted."),
        (
            lambda n, k, s, p: (n + 2 * p - k + 1) // s,
            "The + 1 is inside the division.",
        ),
    ]
    found = [(_through(size, layers, step), says) for step, says in rules]
    found += [
        (_side(size, layers) ** 2, "This is the number of entries: return the side."),
        (_side(size, layers[:1]), "This is the side after the first layer."),
        (_side(size, layers[:-1]), "This is the side before the last layer."),
        (_side(size, layers[-1:]), "Only the last layer is applied."),
        (_side(size, layers[::-1]), "The layers are applied in reverse order."),
    ]
    return found


def _field_mistakes(size: int, layers: list[Layer]) -> list[tuple[float, str]]:
    """Wrong receptive fields, the likeliest first."""
    right, jump = _field(layers), math.prod(s for _, s, _ in layers)
    kernels = [k for k, _, _ in layers]
    before = [math.prod(s for _, s, _ in layers[:i]) for i in range(len(layers))]
    until = [math.prod(s for _, s, _ in layers[: i + 1]) for i in range(len(layers))]
    sides = [size] + [_side(size, layers[: i + 1]) for i in range(len(layers))]
    return [
        (1 + sum(k - 1 for k in kernels), "The strides are not used."),
        (
            1 + sum((k - 1) * j for k, j in zip(kernels, until, strict=True)),
            "A layer's own stride is in its step: only those before it count.",
        ),
        (
            1 + sum((k - 1) * s for k, s, _ in layers),
            "Each kernel is multiplied by its own stride: the product of all strides "
            "before it counts.",
        ),
        (
            1
            + sum(
                (k - 1) * s
                for k, s in zip(kernels, [1, *(s for _, s, _ in layers)], strict=False)
            ),
            "Only the stride of the layer before counts here: the steps multiply.",
        ),
        (right - 1, "The first pixel is missing: begin with 1."),
        (
            sum(k * j for k, j in zip(kernels, before, strict=True)),
            "A layer adds (k - 1) steps, not k.",
        ),
        (
            1 + sum(k * j for k, j in zip(kernels, before, strict=True)),
            "A layer adds (k - 1) steps, not k.",
        ),
        (sum(kernels), "The kernels are added up: they overlap."),
        (math.prod(kernels), "The kernels are multiplied: they overlap."),
        (jump, "This is the step from one entry to the next, the product of strides."),
        (kernels[-1], "This is the last layer's kernel: how many pixels are below it?"),
        (max(kernels), "This is the largest kernel."),
        (min(right, size), "It is cut at the image: count as if there were no border."),
        (right**2, "This is the number of pixels: return the side of the square."),
        (_field(layers[::-1]), "The layers are taken in reverse order."),
        (_field(layers[:-1]), "The last layer is left out."),
        (
            right + 2 * sum(p for _, _, p in layers),
            "Padding does not change what an entry sees.",
        ),
        (
            right - 2 * sum(p * j for (_, _, p), j in zip(layers, before, strict=True)),
            "Padding does not change what an entry sees.",
        ),
        (sides[0] / sides[-1], "This is the image's side by the output's."),
    ]


# 3. A convolution by hand ------------------------------------------------------------

SLIDE = "out[f, i, j] = bias[f] + sum of weights[f] * padded[:, i s : i s + k, ...]."


@TALLY.exercise
def convolve(answer: Answer) -> str:
    """Check `convolve(image, weights, bias, stride, padding)`, as torch's conv2d.

    `image` float (channels, rows, columns), `weights` (filters, channels, kernel rows,
    kernel columns), `bias` (filters,); the result is (filters, rows out, columns out).
    Oracle: `torch.nn.functional.conv2d` in double precision. No image and not every
    kernel is square.
    """
    draw = generator()
    for channels, rows, columns, filters, kernel, stride, padding in [
        (2, 6, 8, 3, (3, 3), 1, 1),
        (3, 9, 6, 2, (2, 3), 2, 0),
        (1, 8, 11, 2, (3, 4), 3, 2),
    ]:
        image = torch.randn(channels, rows, columns, generator=draw) + 0.5
        weights = torch.randn(filters, channels, *kernel, generator=draw)
        bias = torch.randn(filters, generator=draw)
        given = (image, weights, bias, stride, padding)
        attempt = answer.on(
            image=image, weights=weights, bias=bias, stride=stride, padding=padding
        )
        _tensor(attempt).equals(_convolved(*given), _convolve_mistakes(*given))
    return "values for three images, with and without padding, strides 1 to 3."


def _convolved(
    image: Tensor, weights: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """The oracle: (filters, rows out, columns out) in double precision."""
    return functional.conv2d(
        image.double()[None], weights.double(), bias.double(), stride, padding
    )[0]


def _convolve_mistakes(
    image: Tensor, weights: Tensor, bias: Tensor, stride: int, padding: int
) -> list[Mistake]:
    """Wrong maps, the likeliest first."""
    x, w, b = image.double(), weights.double(), bias.double()
    given = (b, stride, padding)
    right = _convolved(x, w, *given)
    shift = b[:, None, None]
    found = [
        Mistake(
            _convolved(x, w.flip(2, 3), *given),
            "The kernel is flipped: that is the convolution of mathematics; the layers "
            "of networks do not flip.",
            SLIDE,
        ),
        Mistake(_convolved(x, w.flip(2), *given), "The kernel's rows are flipped."),
        Mistake(_convolved(x, w.flip(3), *given), "The kernel's columns are flipped."),
        Mistake(right - shift, "The bias is not added.", SLIDE),
        Mistake(
            right + shift * (x.shape[0] * w.shape[2] * w.shape[3] - 1),
            "The bias is added in every term: once for each entry is right.",
            SLIDE,
        ),
        Mistake(
            right + shift * (x.shape[0] - 1),
            "The bias is added once for each channel: once is right.",
            SLIDE,
        ),
        Mistake(_convolved(x, w, b, stride, 0), "The padding is not used.", SLIDE),
        Mistake(_convolved(x, w, b, 1, padding), "The stride is not used.", SLIDE),
        Mistake(
            _convolved(x, w, b, 1, 0), "Neither stride nor padding is used.", SLIDE
        ),
        Mistake(
            (right - shift) / (w[0].numel()) + shift,
            "This is a mean over the kernel: take the sum.",
            SLIDE,
        ),
        Mistake(
            (right - shift) / x.shape[0] + shift,
            "The channels are averaged: take their sum.",
            SLIDE,
        ),
        Mistake(
            _convolved(x[:1], w[:, :1], *given),
            "Only the first channel is used: sum over all of them.",
            SLIDE,
        ),
        Mistake(right.clamp(min=0), "Values below 0 are cut: a ReLU comes later."),
        Mistake(right.sum(0), "The filters are summed: each has a map of its own."),
        Mistake(right[0], "Only the first filter is applied.", SLIDE),
        Mistake(right.transpose(1, 2), "Rows and columns are exchanged."),
        Mistake(right.permute(1, 2, 0), "The filters come last: put them first."),
        Mistake(right[None], "There is an axis too many: one image has no batch."),
    ]
    return found + _border_mistakes(x, w, b, stride, padding)


def _border_mistakes(
    x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int
) -> list[Mistake]:
    """Mistakes at the borders, in double precision."""
    found = []
    if padding:
        for mode in ("replicate", "reflect", "circular"):
            sides = (padding,) * 4
            padded = functional.pad(x[None], sides, mode=mode)[0]
            says = "The border is filled with pixels: padding is 0."
            found.append(Mistake(_convolved(padded, w, b, stride, 0), says))
        for side, where in (
            ((0, padding, 0, padding), "below and on the right"),
            ((padding, 0, padding, 0), "above and on the left"),
            ((padding, padding, 0, 0), "of the columns"),
            ((0, 0, padding, padding), "of the rows"),
        ):
            padded = functional.pad(x, side)
            says = f"There is padding {where} only: it stands on all four sides."
            found.append(Mistake(_convolved(padded, w, b, stride, 0), says))
    if stride > 1:
        padded = functional.pad(x, (padding,) * 4)[:, stride - 1 :, stride - 1 :]
        found.append(
            Mistake(
                _convolved(padded, w, b, stride, 0),
                "The first place is the corner: it is not a stride further in.",
                SLIDE,
            )
        )
        dense = _convolved(x, w, b, 1, padding)
        found.append(
            Mistake(
                functional.avg_pool2d(dense, stride),
                "The places between are averaged: a stride leaves them out.",
                SLIDE,
            )
        )
        right = dense[:, ::stride, ::stride]
        found.append(
            Mistake(
                right[:, :-1, :-1],
                "The last row and the last column are missing: count the places with "
                "floor((size + 2 p - k) / s) + 1.",
            )
        )
    return found


# 4. A residual block -----------------------------------------------------------------

BLOCK = "conv1, bn1, ReLU, conv2, bn2; then add the shortcut; then ReLU."
NORM = "(x - running_mean) / sqrt(running_var + 1e-5) * weight + bias, by channel."
_EPS = 1e-5


class _Weights(dict[str, Tensor]):
    """A block's state, described by its size."""

    def __repr__(self) -> str:
        kind = "with" if "downsample.0.weight" in self else "without"
        return f"a dict of {len(self)} tensors, {kind} downsample"


@TALLY.exercise
def residual_block(answer: Answer) -> str:
    """Check `residual_block(x, weights, stride)`, a basic block in eval mode.

    `x` float (batch, channels, rows, columns); `weights` maps the names of a basic
    block of torchvision to tensors; the result is the block's output. The first
    convolution has the stride, both are 3x3 with a padding of 1. Oracle: torch's own
    layers. Some running variances are as small as eps.
    """
    draw = generator(3)
    for channels, width, stride in [(4, 4, 1), (3, 5, 2)]:
        x = torch.randn(2, channels, 6, 8, generator=draw) + 0.3
        weights = _block_weights(channels, width, draw)
        expected = _block(x, weights, stride)
        given = _Weights({name: value.clone() for name, value in weights.items()})
        attempt = answer.on(x=x, weights=given, stride=stride)
        mistakes = _block_mistakes(x, weights, stride)
        _tensor(attempt).equals(expected, mistakes, tolerance=1e-4)
    return "a block whose shortcut is the input, and one with a downsample."


def _block_weights(channels: int, width: int, draw: torch.Generator) -> _Weights:
    """Weights as training leaves them: no statistic is 0 or 1."""
    found = _Weights()
    layers = [("conv1", "bn1", channels, 3), ("conv2", "bn2", width, 3)]
    if channels != width:
        layers.append(("downsample.0", "downsample.1", channels, 1))
    for conv, norm, wide, kernel in layers:
        size = (width, wide, kernel, kernel)
        scale = (2 / (wide * kernel**2)) ** 0.5
        found[f"{conv}.weight"] = scale * torch.randn(size, generator=draw)
        found[f"{norm}.weight"] = 0.5 + torch.rand(width, generator=draw)
        found[f"{norm}.bias"] = 0.5 * torch.randn(width, generator=draw)
        found[f"{norm}.running_mean"] = 0.5 * torch.randn(width, generator=draw)
        variance = 0.3 + torch.rand(width, generator=draw)
        # A channel that is nearly dead, so that eps matters.
        found[f"{conv}.weight"][0] *= 0.004
        found[f"{norm}.running_mean"][0] *= 0.004
        variance[0] = 1e-5
        found[f"{norm}.running_var"] = variance
        found[f"{norm}.num_batches_tracked"] = torch.tensor(100)
    return found


def _block(
    x: Tensor,
    weights: dict[str, Tensor],
    stride: int,
    norm: Callable[..., Tensor] | None = None,
    middle: Callable[[Tensor], Tensor] = torch.relu,
    join: Callable[[Tensor, Tensor], Tensor] = lambda a, b: torch.relu(a + b),
    strides: tuple[int, int] | None = None,
    shortcut_norm: bool = True,
) -> Tensor:
    """The oracle in double precision; its parts can be replaced by wrong ones."""
    w = {name: value.double() for name, value in weights.items()}
    norm = norm or _normed
    first, second = strides or (stride, 1)
    x = x.double()
    out = functional.conv2d(x, w["conv1.weight"], stride=first, padding=1)
    out = middle(norm(out, w, "bn1"))
    out = functional.conv2d(out, w["conv2.weight"], stride=second, padding=1)
    out = norm(out, w, "bn2")
    if "downsample.0.weight" in w:
        x = functional.conv2d(x, w["downsample.0.weight"], stride=stride)
        x = norm(x, w, "downsample.1") if shortcut_norm else x
    return join(out, x)


def _normed(
    x: Tensor,
    w: dict[str, Tensor],
    name: str,
    eps: float = _EPS,
    power: float = 0.5,
    center: bool = True,
    scale: bool = True,
    shift: bool = True,
    own: bool = False,
) -> Tensor:
    """Batch normalisation by the running statistics, or with one part missing."""

    def part(key: str) -> Tensor:
        return w[f"{name}.{key}"][:, None, None]

    mean, variance = part("running_mean"), part("running_var")
    if own:
        axes = (0, 2, 3)
        mean = x.mean(axes)[:, None, None]
        variance = x.var(axes, unbiased=False)[:, None, None]
    out = (x - mean if center else x) / (variance + eps) ** power
    out = out * part("weight") if scale else out
    return out + part("bias") if shift else out


def _block_mistakes(
    x: Tensor, weights: dict[str, Tensor], stride: int
) -> list[Mistake]:
    """Wrong outputs, the likeliest first."""
    relu = torch.relu

    def block(**changes: object) -> Tensor:
        return _block(x, weights, stride, **changes)  # type: ignore[arg-type]

    def with_norm(**changes: object) -> Tensor:
        return block(norm=lambda *i: _normed(*i, **changes))  # type: ignore[arg-type]

    def plain(out: Tensor) -> Tensor:
        return out

    found = [
        Mistake(
            block(join=lambda a, b: a + b),
            "The last ReLU is missing: it comes after the sum.",
            BLOCK,
        ),
        Mistake(
            block(join=lambda a, b: relu(a) + b),
            "The ReLU comes before the sum: add the shortcut first.",
            BLOCK,
        ),
        Mistake(
            block(join=lambda a, b: relu(relu(a) + b)),
            "There is a ReLU between bn2 and the sum: the block could only add.",
            BLOCK,
        ),
        Mistake(
            block(join=lambda a, b: relu(a) + relu(b)),
            "Both ways get a ReLU of their own: the sum gets one.",
            BLOCK,
        ),
        Mistake(
            block(join=lambda a, b: relu(a + relu(b))),
            "The shortcut gets a ReLU: it is added as it is.",
            BLOCK,
        ),
        Mistake(block(join=lambda a, b: relu(a)), "The shortcut is not added.", BLOCK),
        Mistake(block(join=lambda a, b: a), "The shortcut is not added.", BLOCK),
        Mistake(
            block(join=lambda a, b: relu(a - b)), "The shortcut is subtracted.", BLOCK
        ),
        Mistake(block(middle=plain), "The ReLU after bn1 is missing.", BLOCK),
        Mistake(
            block(middle=plain, join=lambda a, b: a + b),
            "Both ReLUs are missing: the block is linear.",
            BLOCK,
        ),
        Mistake(
            with_norm(own=True),
            "The batch's own mean and variance are used, as in training: in eval mode "
            "the running ones are.",
            NORM,
        ),
        Mistake(
            with_norm(power=1.0), "It is divided by the variance: take its root.", NORM
        ),
        Mistake(with_norm(eps=0.0), "eps, 1e-5, is not added to the variance.", NORM),
        Mistake(with_norm(center=False), "The running mean is not subtracted.", NORM),
        Mistake(
            with_norm(scale=False),
            "The weight of batch normalisation is missing.",
            NORM,
        ),
        Mistake(
            with_norm(shift=False), "The bias of batch normalisation is missing.", NORM
        ),
        Mistake(
            with_norm(scale=False, shift=False),
            "Weight and bias of batch normalisation are missing.",
            NORM,
        ),
        Mistake(
            block(norm=lambda out, w, name: out),
            "Batch normalisation is missing: it is off in no mode.",
            NORM,
        ),
        Mistake(
            block(norm=_eps_outside),
            "eps is added to the variance, not its root.",
            NORM,
        ),
        Mistake(_relu_first(x, weights, stride), "The ReLU comes before bn1.", BLOCK),
        Mistake(
            _shared_norm(x, weights, stride), "bn1 is used twice: bn2 follows conv2."
        ),
    ]
    if stride > 1:
        found += [
            Mistake(
                block(strides=(1, stride)),
                "The second convolution has the stride: the first has it.",
                BLOCK,
            ),
            Mistake(
                block(shortcut_norm=False),
                "The downsample's batch normalisation is missing.",
                BLOCK,
            ),
        ]
    return found


def _eps_outside(out: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """eps beside the root."""

    def part(key: str) -> Tensor:
        return w[f"{name}.{key}"][:, None, None]

    out = (out - part("running_mean")) / (part("running_var").sqrt() + _EPS)
    return out * part("weight") + part("bias")


def _relu_first(x: Tensor, weights: dict[str, Tensor], stride: int) -> Tensor:
    """A ReLU between conv1 and bn1, none after it."""

    def norm(out: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
        return _normed(torch.relu(out) if name == "bn1" else out, w, name)

    return _block(x, weights, stride, norm=norm, middle=lambda out: out)


def _shared_norm(x: Tensor, weights: dict[str, Tensor], stride: int) -> Tensor:
    """The statistics of bn1 after both convolutions."""
    shared = {name: weights[name.replace("bn2", "bn1")] for name in weights}
    return _block(x, shared, stride)


# 5. Counting parameters --------------------------------------------------------------

COUNT = "A convolution has k * k * in * out weights, a BatchNorm 2 for each channel."
Stages = list[tuple[int, int]]  # blocks, width
# Channels of the image, stages, classes; the first is ResNet-18, the second ResNet-34.
_NETWORKS: list[tuple[int, Stages, int]] = [
    (3, [(2, 64), (2, 128), (2, 256), (2, 512)], 1000),
    (1, [(3, 64), (4, 128), (6, 256), (3, 512)], 2),
    (2, [(1, 16), (3, 40)], 5),
]


@TALLY.exercise
def resnet_parameters(answer: Answer) -> str:
    """Check `resnet_parameters(channels, stages, classes)`, a whole number.

    `channels` of the image; `stages` is a list of (blocks, width); the result is how
    many numbers are trained. Oracle: the sizes of all weights, layer by layer;
    compared exactly.
    """
    attempts = [
        answer.on(channels=channels, stages=list(stages), classes=classes)
        for channels, stages, classes in _NETWORKS
    ]
    came = [attempt.number() for attempt in attempts]
    wanted = [_parameters(*network) for network in _NETWORKS]
    for attempt, x, right in zip(attempts, came, wanted, strict=True):
        if x != right:
            tables = [_count_mistakes(*network) for network in _NETWORKS]
            says = _named(came, tables) or "The number is wrong."
            attempt.fail(f"{says} Expected {right:,}, came {x:,.12g}.", COUNT)
    return "ResNet-18, ResNet-34 for one channel and two classes, and a small one."


def _parameters(
    channels: int,
    stages: Stages,
    classes: int,
    *,
    norm: int = 2,
    conv_bias: int = 0,
    stem: int = 7,
    stem_norm: bool = True,
    down: str = "first",
    down_kernel: int = 1,
    down_norm: bool = True,
    head: bool = True,
    head_bias: bool = True,
    narrow: bool = True,
    kernel: int = 3,
    convs: int = 2,
) -> int:
    """The oracle, or the same with one part counted wrongly."""

    def conv(size: int, wide: int, width: int) -> int:
        return size * size * wide * width + conv_bias * width

    wide = stages[0][1]
    total = conv(stem, channels, wide) + norm * wide * stem_norm
    for blocks, width in stages:
        for block in range(blocks):
            first = wide if narrow else width
            total += conv(kernel, first, width) + (convs - 1) * conv(
                kernel, width, width
            )
            total += convs * norm * width
            has_down = {
                "first": wide != width,
                "none": False,
                "stages": block == 0,
                "blocks": True,
            }[down]
            if has_down:
                total += conv(down_kernel, wide, width) + norm * width * down_norm
            wide = width
    if head:
        total += wide * classes + classes * head_bias
    return total


def _count_mistakes(
    channels: int, stages: Stages, classes: int
) -> list[tuple[float, str]]:
    """Wrong numbers, the likeliest first."""

    def count(**changes: object) -> int:
        return _parameters(channels, stages, classes, **changes)  # type: ignore[arg-type]

    right, width = count(), stages[-1][1]
    return [
        (count(conv_bias=1), "The convolutions have no bias: BatchNorm has one."),
        (
            count(norm=4),
            "Running means and variances are counted: they are not trained.",
        ),
        (count(norm=0), "BatchNorm is not counted: a weight and a bias a channel."),
        (
            count(norm=1),
            "BatchNorm has two numbers a channel, a weight and a bias: one is counted.",
        ),
        (
            count(down="none"),
            "The convolutions on the shortcuts are missing, with their BatchNorm.",
        ),
        (count(down_norm=False), "BatchNorm on the shortcuts is missing."),
        (
            count(down="stages"),
            "The first stage has no convolution on a shortcut: its width stays.",
        ),
        (
            count(down="blocks"),
            "Every block has a convolution on its shortcut here: only those have it "
            "where the width changes.",
        ),
        (count(down_kernel=3), "The convolutions on the shortcuts are 1x1."),
        (count(head_bias=False), "The bias of the last layer is missing."),
        (count(head=False), "The last layer is missing."),
        (
            count(narrow=False),
            "The first block of a stage takes in the width of the stage before it.",
        ),
        (count(convs=1), "A block has two convolutions, each with its BatchNorm."),
        (count(convs=3), "A block has two convolutions, each with its BatchNorm."),
        (count(stem_norm=False), "BatchNorm of the first convolution is missing."),
        (count(stem=3), "The first convolution is 7x7."),
        (
            right - 49 * channels * stages[0][1] - 2 * stages[0][1],
            "The first convolution and its BatchNorm are missing.",
        ),
        (
            right - 49 * channels * stages[0][1],
            "The first convolution is missing.",
        ),
        (
            _parameters(3, stages, classes),
            "The image has as many channels as it is said, not always 3.",
        ),
        (
            _parameters(channels, stages, 1000),
            "There are as many classes as it is said, not always 1000.",
        ),
        (
            count(head=False) + 49 * width * classes + classes,
            "The last layer reads one number a channel, the mean over the map.",
        ),
        (
            _parameters(channels, [(1, width) for _, width in stages], classes),
            "Each stage is counted with one block.",
        ),
        (
            _parameters(channels, [(2, width) for _, width in stages], classes),
            "Each stage is counted with two blocks.",
        ),
        (4 * right, "These are bytes in float32: return the number of parameters."),
    ]


# 6. A stratified split by patient ----------------------------------------------------

STRATA = "Draw the share of the ill patients and that of the healthy ones, apart."
MASK = "torch.isin(patients, held) is True at all rows of those who are held out."
_SPLITS = 100


@TALLY.exercise
def held_out(answer: Answer) -> str:
    """Check `held_out(patients, labels, share, seed)`, a mask of rows.

    `patients` int64 (rows,), whose slice it is; `labels` int64 (rows,), 1 where the
    slice shows the disease; the result is bool (rows,), True for validation. A patient
    is ill if any slice is. All rows of a patient are on one side, and the share is held
    out of the ill and of the healthy patients, here whole numbers of both. Equal seeds
    give equal masks and other seeds others, and over 100 seeds every patient is held
    out about as often.
    """
    for ill, healthy, share in [(16, 24, 0.25), (10, 20, 0.4)]:
        patients, labels = _slices(ill, healthy, generator(ill + 2))
        held = torch.zeros(ill + healthy)
        people = patients.unique()
        for seed in range(_SPLITS):
            attempt = answer.on(
                patients=patients, labels=labels, share=share, seed=seed
            )
            mask = _mask(attempt, patients)
            _check_sides(attempt, mask, patients, labels)
            _check_shares(answer, attempt, mask, patients, labels, share)
            held += torch.isin(people, patients[mask])
        _check_held_chances(attempt, held / _SPLITS, share)
        _check_held_seeds(answer, patients, labels, share)
    return (
        "that no patient is on both sides, the share of the ill and of the healthy, "
        "the seed, and that every patient may be held out."
    )


def _slices(ill: int, healthy: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patients and labels of slices in no order; half of the ill have healthy ones."""
    count = ill + healthy
    names = 2000 + torch.randperm(900, generator=draw)[:count]
    often = torch.randint(3, 8, (count,), generator=draw)
    patients = names.repeat_interleave(often)
    rank = torch.cat([torch.arange(int(n)) for n in often])
    person = torch.arange(count).repeat_interleave(often)
    labels = (person < ill // 2) | ((person < ill) & (rank == 0))
    order = torch.randperm(len(patients), generator=draw)
    return patients[order], labels[order].long()


def _mask(attempt: Attempt, patients: Tensor) -> Tensor:
    """The value as a bool mask of rows; fails unless it is one."""
    value = as_tensor(attempt.value)
    if value is None:
        attempt.fail(f"Expected a mask (rows,), came {sized(attempt.value)}.", MASK)
    if value.dim() == 1 and value.dtype != torch.bool:
        if len(value) and torch.isin(value, patients).all():
            attempt.fail("These are patients: return a mask of rows.", MASK)
        if len(value) != len(patients) or not torch.isin(value, _BITS).all():
            attempt.fail("These are row numbers: return a mask of all rows.", MASK)
        value = value.bool()
    if value.shape != patients.shape:
        attempt.fail(
            f"Expected a mask {shape(patients)}, one entry a row, came {shape(value)}.",
            MASK,
        )
    return value


_BITS = torch.tensor([0, 1])


def _check_sides(
    attempt: Attempt, mask: Tensor, patients: Tensor, labels: Tensor
) -> None:
    """No patient is on both sides."""
    people, person = patients.unique(return_inverse=True)
    rows = person.bincount()
    inside = person.bincount(weights=mask.double())
    parted = (inside > 0) & (inside < rows)
    if not parted.any():
        return
    how = "rows were split, not patients."
    if _kinds_together(mask, person, labels):
        how = (
            "their ill slices and their healthy ones were drawn apart. Give each "
            "patient one label."
        )
    attempt.fail(
        f"{int(parted.sum())} patients are on both sides, such as "
        f"{int(people[parted][0])}: {how}",
        MASK,
    )


def _check_shares(
    answer: Answer,
    attempt: Attempt,
    mask: Tensor,
    patients: Tensor,
    labels: Tensor,
    share: float,
) -> None:
    """The share of the ill patients and of the healthy ones."""
    people = patients.unique()
    held = torch.isin(people, patients[mask])
    ill = torch.isin(people, patients[labels == 1])
    wanted = [round(share * int(n)) for n in (ill.sum(), (~ill).sum())]
    came = [int((held & ill).sum()), int((held & ~ill).sum())]
    if came != wanted:
        told = (
            f"Expected {wanted[0]} of {int(ill.sum())} ill and {wanted[1]} of "
            f"{int((~ill).sum())} healthy patients in validation, came {came[0]} and "
            f"{came[1]}."
        )
        attempt.fail(f"{_why(answer, patients, labels, share)} {told}", STRATA)


def _why(answer: Answer, patients: Tensor, labels: Tensor, share: float) -> str:
    """What wrong shares of patients come from: what holds for every seed."""
    people, person = patients.unique(return_inverse=True)
    rows, positive = (
        person.bincount(),
        person[labels == 1].bincount(minlength=len(people)),
    )
    ill, half = positive > 0, 2 * positive
    sets = []
    for seed in range(20):
        attempt = answer.on(patients=patients, labels=labels, share=share, seed=seed)
        sets.append(torch.isin(people, patients[_mask(attempt, patients)]))

    def always(holds: Callable[[Tensor], bool]) -> bool:
        return all(holds(held) for held in sets)

    if always(lambda held: not held.any()):
        return "Nobody is held out."
    if always(lambda held: _is_stratified(~held, ill, share)):
        return "The mask is upside down: True is validation."
    for kind, says in (
        (positive == rows, "all of whose slices are"),
        (half > rows, "most of whose slices are"),
        (half >= rows, "half of whose slices are"),
        (_first_labels(person, labels), "whose first slice is"),
    ):
        if always(lambda held, kind=kind: _is_stratified(held, kind, share)):  # type: ignore[misc]
            return f"Patients {says} count as ill: one ill slice is enough."
    everybody = torch.ones_like(ill)
    if always(lambda held: _is_stratified(held, everybody, share)):
        return (
            "The share is right over all patients, but not among the ill and among the "
            "healthy: chance decides how many of the ill are held out."
        )
    for part, other in ((ill, "healthy"), (~ill, "ill")):
        if always(lambda held, part=part: _is_share(held, part, share)):  # type: ignore[misc]
            return f"The share is right but for the {other}."
    return "The share is wrong."


def _kinds_together(mask: Tensor, person: Tensor, labels: Tensor) -> bool:
    """Whether all rows of a patient that have one label are on one side."""
    both = 2 * person + labels
    inside = both.bincount(weights=mask.double())
    return bool(((inside == 0) | (inside == both.bincount())).all())


def _first_labels(person: Tensor, labels: Tensor) -> Tensor:
    """Whether each patient's first row is ill: (people,)."""
    first = [int(torch.where(person == p)[0][0]) for p in range(int(person.max()) + 1)]
    return labels[torch.tensor(first)] == 1


def _is_stratified(held: Tensor, kind: Tensor, share: float) -> bool:
    """Whether the share is held out on both sides of a label."""
    return all(_is_share(held, part, share) for part in (kind, ~kind))


def _is_share(held: Tensor, part: Tensor, share: float) -> bool:
    """Whether the share of a part of the patients is held out, rounded."""
    return abs(int((held & part).sum()) - share * int(part.sum())) <= 0.5


def _check_held_seeds(
    answer: Answer, patients: Tensor, labels: Tensor, share: float
) -> None:
    """Equal seeds, equal masks; other seeds, other masks."""
    found = []
    for seed in (3, 3, 4, 5):
        attempt = answer.on(patients=patients, labels=labels, share=share, seed=seed)
        found.append(_mask(attempt, patients))
    if not torch.equal(found[0], found[1]):
        attempt.fail(
            "Two calls with the same seed differ: nobody can repeat the result.",
            "Draw from torch.Generator().manual_seed(seed).",
        )


def _check_held_chances(attempt: Attempt, often: Tensor, share: float) -> None:
    """Over many seeds every patient is held out as often, but for chance."""
    if ((often == 0) | (often == 1)).all():
        attempt.fail(
            "Every seed gives the same split: patients are not drawn, so that those "
            "who came first, or have small numbers, are always on one side.",
            STRATA,
        )
    room = _FIVE_SIGMA * math.sqrt(share * (1 - share) / _SPLITS)
    if (often - share).abs().max() > room:
        worst = float(often[(often - share).abs().argmax()])
        attempt.fail(
            f"A patient is held out with {worst:.0%} of the seeds. Expected about "
            f"{share:.0%} for each.",
            "torch.randperm over the patients of one label gives each the same chance.",
        )


# 7. Patients from slices -------------------------------------------------------------

NOISY_OR = "The chance that no slice is positive is the product of 1 - p; subtract it."


@TALLY.exercise
def patient_scores(answer: Answer) -> str:
    """Check `patient_scores(probabilities, patients)`, a noisy-or of slices.

    `probabilities` float (slices,), `patients` int64 (slices,), whose slice it is; the
    result is (patients,), in ascending order of their numbers: 1 minus the product of
    1 - p over a patient's slices. Oracle: a loop over patients. They have 1 to 6
    slices in no order, and one slice has the probability 1.
    """
    for seed, often in ((4, [3, 1, 4, 2, 5]), (1, [2, 6, 1, 5, 3, 3, 1])):
        draw = generator(seed)
        names = 40 + torch.randperm(60, generator=draw)[: len(often)]
        patients = names.repeat_interleave(torch.tensor(often))
        order = torch.randperm(len(patients), generator=draw)
        patients = patients[order]
        probabilities = 0.02 + 0.6 * torch.rand(len(order), generator=draw)
        if seed == 1:
            probabilities[torch.where(patients == names[1])[0][2]] = 1.0
        attempt = answer.on(probabilities=probabilities, patients=patients)
        parts = [probabilities[patients == p].double() for p in patients.unique()]
        expected = _of_each(parts, lambda p: 1 - (1 - p).prod())
        mistakes = _patient_mistakes(probabilities, patients, parts)
        _tensor(attempt).equals(expected, mistakes)
    return "two sets of patients with 1 to 6 slices, one of them certain."


def _of_each(parts: list[Tensor], score: Callable[[Tensor], Tensor]) -> Tensor:
    """One number for each patient: (patients,)."""
    return torch.stack([score(part) for part in parts])


def _patient_mistakes(
    probabilities: Tensor, patients: Tensor, parts: list[Tensor]
) -> list[Mistake]:
    """Wrong scores; `parts` are the slices of each patient, in double precision."""
    p = probabilities.double()
    right = _of_each(parts, lambda p: 1 - (1 - p).prod())
    widest = max(map(len, parts))
    seen = list(dict.fromkeys(patients.tolist()))
    people = patients.unique().tolist()
    shown_order = right[torch.tensor([people.index(name) for name in seen])]
    found: list[tuple[Tensor, str]] = [
        (
            _of_each(parts, torch.amax),
            "This is the largest slice alone: two slices that are half sure say more "
            "than one.",
        ),
        (
            _of_each(parts, torch.mean),
            "This is the mean: many healthy slices would hide one ill slice.",
        ),
        (_of_each(parts, torch.sum), "This is the sum, which may be above 1."),
        (
            _of_each(parts, lambda p: p.sum().clamp(max=1)),
            "This is the sum, cut at 1.",
        ),
        (
            _of_each(parts, torch.prod),
            "This is the chance that all slices are positive: any will do.",
        ),
        (
            _of_each(parts, lambda p: (1 - p).prod()),
            "This is the chance that no slice is positive: subtract it from 1.",
        ),
        (
            _of_each(parts, lambda p: 1 - p.prod()),
            "This is the chance that some slice is negative: multiply 1 - p, not p.",
        ),
        (
            _of_each(parts, lambda p: 1 - (1 - p).prod() ** (1 / len(p))),
            "The root by the number of slices makes a mean of it.",
        ),
        (_of_each(parts, lambda p: p.log().mean().exp()), "This is a geometric mean."),
        (_of_each(parts, torch.median), "This is the median of the slices."),
        (_of_each(parts, torch.amin), "This is the smallest slice."),
        (_of_each(parts, lambda p: p[0]), "This is each patient's first slice."),
        (_of_each(parts, lambda p: p[-1]), "This is each patient's last slice."),
        (
            _of_each(parts, lambda p: 1 - (1 - p.amax()) ** len(p)),
            "The largest slice is counted for all slices.",
        ),
        (
            _of_each(parts, lambda p: 1 - (1 - p.mean()) ** len(p)),
            "The mean slice is counted for all slices.",
        ),
        (
            _of_each(parts, lambda p: p.sum() / widest),
            "All patients are divided by the largest number of slices.",
        ),
        (
            _of_each(parts, lambda p: 1 - (1 - p[:3]).prod()),
            "Only three slices of each patient count: take all.",
        ),
        (
            _of_each(parts, lambda p: 1 - (1 - p).prod() * 0.5 ** (widest - len(p))),
            "Missing slices are filled with 0.5: they have the probability 0.",
        ),
        (
            _of_each(parts, lambda p: (p.logit().sum()).sigmoid()),
            "Log-odds are added: that is another rule.",
        ),
        (
            shown_order,
            "The patients are in the order of their first slices: sort their numbers.",
        ),
        (right.flip(0), "The patients are in descending order."),
        (right.sort().values, "The scores are sorted: keep them with their patients."),
        (1 - (1 - p).prod(), "All patients are one: there is a score for each."),
        (
            right[patients.unique(return_inverse=True)[1]],
            "There is a score for each slice: return one for each patient.",
        ),
    ]
    one_hot = (patients.unique()[:, None] == patients).double()
    spoiled = 1 - (one_hot @ (1 - p).log()).exp()
    if spoiled.isnan().any():
        says = "A slice of probability 1: log(0) times 0 is not a number."
        found.insert(0, (spoiled, says))
    return [Mistake(value, says, NOISY_OR) for value, says in found]


# 8. Net benefit ----------------------------------------------------------------------

BENEFIT = "True positives / n - false positives / n * t / (1 - t), n all patients."


@TALLY.exercise
def net_benefit(answer: Answer) -> str:
    """Check `net_benefit(labels, probabilities, thresholds)`, a decision curve.

    `labels` int64 (patients,), 1 for ill; `probabilities` float (patients,);
    `thresholds` float (thresholds,) above 0 and below 1; the result is (2, thresholds):
    net benefit of treating those with a probability at or above the threshold, and of
    treating everybody. Oracle: counts, threshold by threshold. Probabilities have two
    digits, and some equal a threshold.
    """
    for seed, ill, healthy in ((0, 14, 46), (1, 30, 33)):
        draw = generator(seed)
        labels = torch.tensor([1] * ill + [0] * healthy)
        logits = 2.0 * labels - 1.7 + torch.randn(len(labels), generator=draw)
        order = torch.randperm(len(labels), generator=draw)
        labels = labels[order]
        probabilities = (100 * logits[order].sigmoid()).round() / 100
        thresholds = torch.tensor([0.05, 0.1, 0.2, 0.35, 0.6])
        for label, place in ((0, 1), (0, 2), (1, 3), (0, 4)):
            probabilities[torch.where(labels == label)[0][place]] = thresholds[place]
        inputs = {"labels": labels, "probabilities": probabilities}
        attempt = answer.on(**inputs, thresholds=thresholds)
        expected = _benefits(labels, probabilities, thresholds)
        mistakes = _benefit_mistakes(labels, probabilities, thresholds)
        _tensor(attempt).equals(expected, mistakes)
    return "both curves for two sets of patients, with probabilities at a threshold."


def _benefits(labels: Tensor, probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """The oracle: (2, thresholds) in double precision."""
    rows = []
    for alarms in (lambda t: probabilities >= t, lambda t: labels >= 0):
        row = []
        for t in thresholds:
            hits = float((alarms(t) & (labels == 1)).sum())
            false = float((alarms(t) & (labels == 0)).sum())
            odds = float(t) / (1 - float(t))
            row.append((hits - false * odds) / len(labels))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _benefit_mistakes(
    labels: Tensor, probabilities: Tensor, thresholds: Tensor
) -> list[Mistake]:
    """Wrong curves, the likeliest first."""
    t, ill = thresholds.double(), (labels == 1).double()
    n, share, odds = len(labels), ill.mean(), t / (1 - t)
    alarm = (probabilities >= thresholds[:, None]).double()
    strict = (probabilities > thresholds[:, None]).double()
    every = torch.ones_like(alarm)

    def curves(
        rule: Callable[[Tensor, Tensor], Tensor], model: Tensor = alarm
    ) -> Tensor:
        """Both rows by a rule of shares of true and false positives."""
        rows = [((a * ill).mean(1), (a * (1 - ill)).mean(1)) for a in (model, every)]
        return torch.stack([rule(*row) for row in rows])

    def right(hits: Tensor, false: Tensor) -> Tensor:
        return hits - false * odds

    both = curves(right)
    none = torch.zeros_like(t)
    half = (probabilities >= 0.5).double().expand(alarm.shape)
    found: list[tuple[Tensor, str]] = [
        (
            curves(lambda h, f: h - f / odds),
            "The weight is upside down: a false alarm costs t / (1 - t) of a hit.",
        ),
        (curves(lambda h, f: h - f), "A false alarm is not weighted by t / (1 - t)."),
        (
            curves(lambda h, f: h - f * t),
            "The weight is t / (1 - t), the odds, not t itself.",
        ),
        (
            curves(lambda h, f: h - f * (1 - t)),
            "The weight is t / (1 - t), not 1 - t.",
        ),
        (
            curves(lambda h, f: h / share - f / (1 - share) * odds),
            "Sensitivity and false-alarm rate are used: divide both by all patients.",
        ),
        (
            curves(lambda h, f: h / share - f * odds),
            "The hits are divided by the ill: divide by all patients.",
        ),
        (both / share, "It is divided by the prevalence: that is a standardised one."),
        (both * n, "These are counts: divide by the number of patients."),
        (curves(lambda h, f: h + f * odds), "False alarms are subtracted, not added."),
        (curves(lambda h, f: h), "These are the hits: subtract the false alarms."),
        (
            curves(lambda h, f: (h - f * odds) / (h + f)),
            "It is divided by those who are treated: divide by all patients.",
        ),
        (
            curves(lambda h, f: h - (1 - share - f) * odds),
            "The healthy without an alarm are subtracted: those with one are.",
        ),
        (
            curves(lambda h, f: f - h * odds),
            "Ill and healthy are exchanged: 1 is ill.",
        ),
        (
            curves(lambda h, f: h - f * odds - (share - h)),
            "The missed are subtracted as well: they are in the hits already.",
        ),
        (
            curves(right, strict),
            "A probability equal to the threshold is treated, too: use >=.",
        ),
        (
            curves(right, 1 - alarm),
            "Those below the threshold are treated: treat those at or above it.",
        ),
        (
            curves(right, half),
            "Who is treated depends on the threshold: it is not 0.5 for all.",
        ),
        (both.flip(0), "The rows are exchanged: the model comes first."),
        (
            torch.stack([both[0], none]),
            "The second row is for treating nobody, 0: it is for everybody.",
        ),
        (
            torch.stack([both[0], share.expand(t.shape)]),
            "Treating everybody has false alarms, too: all who are healthy.",
        ),
        (
            torch.stack([both[0], both[0] - both[1]]),
            "The second row is the difference: return everybody's own.",
        ),
        (both[0], "The second row is missing: treating everybody."),
        (both[0] - both[1], "This is the difference of the rows: return both."),
        (both.T, "The rows are thresholds: return (2, thresholds)."),
        (both.clamp(min=0), "Below 0 it does harm: do not cut it off."),
        (100 * both, "This is for 100 patients: return it for one."),
    ]
    return [Mistake(value, says, BENEFIT) for value, says in found]


# 9. Grad-CAM -------------------------------------------------------------------------

CAM = "Weights: each channel's mean gradient. Then sum over channels, then ReLU."


@TALLY.exercise
def grad_cam(answer: Answer) -> str:
    """Check `grad_cam(activations, gradients)`, a map of what speaks for a class.

    Both float (channels, rows, columns): a layer's output, and the gradient of the
    class's logit by it; the result is (rows, columns), not scaled. Oracle: a loop over
    channels. In the last case nothing speaks for the class, and the map is 0.
    """
    draw = generator()
    for channels, rows, columns, sign in [(5, 4, 6, 0), (9, 7, 5, 0), (4, 3, 4, -1)]:
        size = (channels, rows, columns)
        activations = torch.randn(size, generator=draw) + 0.2
        gradients = torch.randn(size, generator=draw)
        gradients += 0.5 * torch.randn(channels, 1, 1, generator=draw)
        if sign:
            activations, gradients = activations.abs(), -gradients.abs()
        attempt = answer.on(activations=activations, gradients=gradients)
        expected = _cam(activations, gradients)
        mistakes = _cam_mistakes(activations.double(), gradients.double())
        _tensor(attempt).equals(expected, mistakes)
    return "three maps, one of them empty."


def _cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """The oracle: channel by channel, in double precision."""
    total = torch.zeros(activations.shape[1:], dtype=torch.float64)
    for activation, gradient in zip(activations, gradients, strict=True):
        total += gradient.double().mean() * activation.double()
    return total.clamp(min=0)


def _cam_mistakes(a: Tensor, g: Tensor) -> list[Mistake]:
    """Wrong maps of activations and gradients (channels, rows, columns)."""
    weights = g.mean((1, 2), keepdim=True)
    total = (weights * a).sum(0)
    right, size = total.relu(), a[0].numel()
    low, high = right.min(), right.max()
    found: list[tuple[Tensor, str]] = [
        (total, "The ReLU is missing: what speaks against the class stays in."),
        (
            (weights * a).relu().sum(0),
            "The ReLU comes before the sum: channels against the class cannot "
            "outweigh those for it.",
        ),
        (
            (weights.relu() * a).sum(0).relu(),
            "The weights are cut at 0: channels that speak against the class count.",
        ),
        (
            (weights.relu() * a).sum(0),
            "The weights are cut at 0: channels that speak against the class count.",
        ),
        (total.abs(), "Absolute values are taken: cut off what is below 0."),
        (
            (weights.abs() * a).sum(0).relu(),
            "The weights have lost their signs.",
        ),
        (
            (g * a).sum(0).relu(),
            "Gradients multiply place by place: average each channel's first.",
        ),
        (
            (g * a).sum(0),
            "Gradients multiply place by place, and the ReLU is missing.",
        ),
        (
            (g.relu() * a).sum(0).relu(),
            "Gradients are cut at 0 place by place: average each channel's first.",
        ),
        (
            (g.relu().mean((1, 2), keepdim=True) * a).sum(0).relu(),
            "Gradients are cut at 0 before their mean.",
        ),
        (
            size * right,
            "The weights are sums of the gradients: take their means.",
        ),
        (
            (g.amax((1, 2), keepdim=True) * a).sum(0).relu(),
            "The weights are the largest gradients: take their means.",
        ),
        (
            right / len(a),
            "The channels are averaged: take their sum.",
        ),
        (
            (g.mean(0) * a.sum(0)).relu(),
            "The gradients are averaged over channels: average over places.",
        ),
        (
            (g.mean(0) * a).sum(0).relu(),
            "The gradients are averaged over channels: average over places.",
        ),
        (
            (g.mean() * a).sum(0).relu(),
            "One weight for all channels: each has its own.",
        ),
        (
            (weights * a.relu()).sum(0).relu(),
            "The activations are cut at 0 first.",
        ),
        (
            (a.mean((1, 2), keepdim=True) * g).sum(0).relu(),
            "Activations and gradients are exchanged.",
        ),
        (
            (weights.softmax(0) * a).sum(0).relu(),
            "The weights go through a softmax: take them as they are.",
        ),
        (
            torch.full_like(right, math.nan),
            "Where nothing speaks for the class the map is 0: here 0 / 0 came.",
        ),
        (right / high, "The map is scaled to 1: return it as it is."),
        (
            (right - low) / (high - low),
            "The map is stretched from 0 to 1: return it as it is.",
        ),
        (
            right / right.sum(),
            "The map is scaled to sum to 1: return it as it is.",
        ),
        ((-total).relu(), "The sign is wrong: this speaks against the class."),
        (a.sum(0).relu(), "The gradients are not used."),
        (a.mean(0), "The gradients are not used."),
        (g.abs().amax(0), "The activations are not used: this is a saliency map."),
        (g.mean(0).relu(), "The activations are not used."),
        ((weights * a).relu(), "The sum over channels is missing."),
        (weights * a, "The sum over channels is missing."),
        (right.T, "Rows and columns are exchanged."),
    ]
    return [Mistake(value, says, CAM) for value, says in found]


# 10. The latent oracle ---------------------------------------------------------------

RATIO = "Sum ln(1 + L1 g1 / (L0 g0)) over a patient's opacities, then subtract L1."


class _Opacities(list[Tensor]):
    """Diameters of each patient's opacities, described by how many there are."""

    def __repr__(self) -> str:
        counts = ", ".join(str(len(part)) for part in self)
        return f"a list of tensors of {counts} diameters"


@TALLY.exercise
def log_ratio(answer: Answer) -> str:
    """Check `log_ratio(diameters, rates, medians, sigma)` of the latent oracle.

    `diameters` is a list of float tensors (opacities,), one for each patient, in mm,
    some of them empty; `rates` are the mean numbers L0 and L1, of benign opacities in
    everybody and of further ones in the ill; `medians` are theirs in mm, and `sigma`
    is the standard deviation of the logarithm of a diameter; the result is (patients,):
    ln of the likelihood of what was seen in the ill, divided by that in the healthy.
    Oracle: the densities of two Poisson processes.
    """
    draw = generator()
    for counts, rates, medians, sigma in [
        ((3, 0, 1, 5), (1.5, 2.0), (5.0, 8.0), 0.4),
        ((2, 4, 0, 1, 3), (0.8, 0.5), (4.0, 12.0), 0.55),
        ((1, 6, 2), (2.5, 3.0), (6.0, 4.5), 0.3),
    ]:
        diameters = [
            5.5 * (0.5 * torch.randn(count, generator=draw)).exp() for count in counts
        ]
        given = _Opacities(part.clone() for part in diameters)
        attempt = answer.on(diameters=given, rates=rates, medians=medians, sigma=sigma)
        parts = [part.double() for part in diameters]
        expected = _ratios(parts, rates, medians, sigma)
        mistakes = _ratio_mistakes(parts, rates, medians, sigma)
        # What double precision can hold may be infinite in single precision.
        mistakes += _ratio_mistakes(diameters, rates, medians, sigma)
        _check_ratio(_tensor(attempt), expected, mistakes)
    return "three groups of patients, some of them without any opacity."


Pair = tuple[float, float]


def _check_ratio(attempt: Attempt, expected: Tensor, mistakes: list[Mistake]) -> None:
    """As `equals`; then whether only patients without an opacity are wrong."""
    value = attempt.value
    if isinstance(value, Tensor) and value.shape == expected.shape:
        near = torch.isclose(value.detach().double(), expected, 1e-4, 1e-4)
        empty = torch.tensor([not len(part) for part in attempt.inputs["diameters"]])
        if (~near).any() and not (~near & ~empty).any():
            attempt.fail(
                "A patient without an opacity speaks for health: ln of the ratio is "
                f"-L1 there. {difference(value, expected)}",
                RATIO,
            )
    attempt.equals(expected, mistakes)


def _lognormal(d: Tensor, median: float, sigma: float) -> Tensor:
    """The density of a diameter in mm."""
    z = (d.log() - math.log(median)) / sigma
    return (-(z**2) / 2).exp() / (d * sigma * math.sqrt(2 * math.pi))


def _ratios(parts: list[Tensor], rates: Pair, medians: Pair, sigma: float) -> Tensor:
    """The oracle: densities of two Poisson processes, in double precision.

    A process of intensity f has exp(-F) times the product of f as its density, where F
    is the mean number; that of the ill is the sum of both intensities.
    """
    benign, further = rates
    found = []
    for d in parts:
        usual = benign * _lognormal(d, medians[0], sigma)
        together = usual + further * _lognormal(d, medians[1], sigma)
        healthy = usual.log().sum() - benign
        ill = together.log().sum() - (benign + further)
        found.append(ill - healthy)
    return torch.stack(found)


def _ratio_mistakes(
    parts: list[Tensor], rates: Pair, medians: Pair, sigma: float
) -> list[Mistake]:
    """Wrong ratios of patients' diameters `parts`, the likeliest first."""
    (benign, further), (small, large) = rates, medians
    weight = further / benign
    right = _ratios(parts, rates, medians, sigma)

    def densities(d: Tensor) -> Tensor:
        """g1 / g0."""
        return _lognormal(d, large, sigma) / _lognormal(d, small, sigma)

    def normal(x: Tensor, spread: float, low: float, high: float) -> Tensor:
        """The same of a normal density."""
        return (((x - low) ** 2 - (x - high) ** 2) / (2 * spread**2)).exp()

    def of(summed: Callable[[Tensor], Tensor], less: float = further) -> Tensor:
        """A sum for each patient, minus L1."""
        return _of_each(parts, lambda d: summed(d) - less)

    def terms(ratio: Callable[[Tensor], Tensor]) -> Tensor:
        """The right formula with another g1 / g0."""
        return of(lambda d: (weight * ratio(d)).log1p().sum())

    def logs(d: Tensor) -> Tensor:
        return (weight * densities(d)).log1p()

    low, high = math.log(small), math.log(large)
    found: list[tuple[Tensor, str]] = [
        (right + further, "L1 is not subtracted: that fewer are seen is evidence."),
        (right + 2 * further, "L1 is added: subtract it."),
        (
            of(lambda d: logs(d).sum(), further - benign),
            "L1 is subtracted, not L1 - L0: benign opacities are in everybody.",
        ),
        (
            of(lambda d: logs(d).sum(), benign + further),
            "L1 is subtracted, not L0 + L1: L0 cancels.",
        ),
        (
            of(lambda d: logs(d).sum(), benign),
            "L1 is subtracted, not L0.",
        ),
        (
            _of_each(parts, lambda d: (logs(d) - further).sum()),
            "L1 is subtracted once for each opacity: once for each patient is right.",
        ),
        (
            of(lambda d: (weight * densities(d)).log().sum()),
            "The 1 + is missing: the ill have benign opacities, too.",
        ),
        (
            of(lambda d: (weight * densities(d)).log().sum(), further - benign),
            "The ill are taken to have further opacities only: they have benign ones, "
            "too.",
        ),
        (
            of(lambda d: (1 + (weight * densities(d)).sum()).log()),
            "The logarithm comes after the sum: each opacity has its own.",
        ),
        (
            of(lambda d: logs(d).sum() / max(len(d), 1)),
            "This is a mean over opacities: add them up.",
        ),
        (
            of(lambda d: logs(d).max() if len(d) else logs(d).sum()),
            "Only one opacity counts: the one that speaks most for illness.",
        ),
        (
            of(lambda d: (weight * densities(d.max())).log1p() if len(d) else d.sum()),
            "Only the largest opacity counts: add up all of them.",
        ),
        (
            of(lambda d: (1 / (weight * densities(d))).log1p().sum()),
            "The ratio is upside down: L1 g1 is above L0 g0.",
        ),
        (
            of(lambda d: (weight / densities(d)).log1p().sum()),
            "g0 and g1 are exchanged.",
        ),
        (
            of(lambda d: (densities(d) / weight).log1p().sum()),
            "L0 and L1 are exchanged in the ratio.",
        ),
        (
            of(lambda d: densities(d).log1p().sum()),
            "The rates are missing in the ratio: L1 g1 / (L0 g0).",
        ),
        (
            of(lambda d: (further * densities(d)).log1p().sum()),
            "L0 is missing in the ratio: L1 g1 / (L0 g0).",
        ),
        (
            of(lambda d: (densities(d) / benign).log1p().sum()),
            "L1 is missing in the ratio: L1 g1 / (L0 g0).",
        ),
        (
            terms(torch.ones_like),
            "Only their number counts: the diameters are not used.",
        ),
        (
            terms(lambda d: normal(d, sigma, small, large)),
            "The diameter is taken as normal: its logarithm is.",
        ),
        (
            terms(lambda d: normal(d.log(), sigma, small, large)),
            "The logarithm has the mean ln(median), not the median.",
        ),
        (
            terms(
                lambda d: normal(
                    d.log(), sigma, low - sigma**2 / 2, high - sigma**2 / 2
                )
            ),
            "The medians are taken as means: ln(median) is the logarithm's mean.",
        ),
        (
            terms(lambda d: normal(d.log(), sigma**0.5, low, high)),
            "sigma is taken as a variance: it is a standard deviation.",
        ),
        (
            terms(lambda d: normal(d.log(), sigma**2, low, high)),
            "sigma is squared twice: it is a standard deviation.",
        ),
        (
            terms(lambda d: normal(d.log(), sigma / 2**0.5, low, high)),
            "The half in the normal density's exponent is missing.",
        ),
        (
            terms(
                lambda d: normal(d.log10(), sigma, math.log10(small), math.log10(large))
            ),
            "Logarithms are natural ones: log10 came.",
        ),
        (
            terms(
                lambda d: normal(d.log2(), sigma, math.log2(small), math.log2(large))
            ),
            "Logarithms are natural ones: log2 came.",
        ),
        (
            of(lambda d: logs(d).sum() / math.log(10)),
            "Logarithms are natural ones: log10 came.",
        ),
        (
            of(lambda d: logs(d).sum() / math.log(2)),
            "Logarithms are natural ones: log2 came.",
        ),
        (
            right / math.log(10),
            "Logarithms are natural ones: log10 came.",
        ),
        (right.exp(), "This is the ratio itself: return its logarithm."),
        (right.sigmoid(), "This is a probability, if half of all were ill."),
        (-right, "The sign is wrong: above 0 speaks for illness."),
        (
            of(lambda d: (1 + weight * densities(d)).prod()),
            "The logarithm is missing: L1 is subtracted from a product.",
        ),
        (
            of(lambda d: (weight * densities(d)).sum()),
            "The logarithm is missing: ln(1 + ratio) for each opacity.",
        ),
        (right.sum(), "All patients are added up: there is a number for each."),
        (right.mean(), "This is the mean of all patients: there is a number for each."),
        (right.sort().values, "The patients are sorted: keep their order."),
    ]
    return [Mistake(value, says, RATIO) for value, says in found]
