"""What all checkers share: calling an answer, naming its mistake, keeping the tally.

Knows nothing about any exercise. A checker is a function that gets an `Answer`, tries
it on inputs of its own and returns one sentence saying what was checked;
`Tally.exercise` turns it into what the notebooks call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

WIDTH = 72  # of printed lines: reads beside a cell, without scrolling
PASSED, FAILED, UNANSWERED = "passed", "not right yet", "not answered yet"


# A known wrong number, the mistake in one sentence, and where to look.
WrongNumber = tuple[float, str, str]


class NotPassedError(AssertionError):
    """Raised by `Result.require` when an answer is missing or wrong."""


class _WrongError(Exception):
    """Ends a check: the answer is wrong, and the message says how."""


class _UnansweredError(Exception):
    """Ends a check: there is no answer yet."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a checker found out about one answer.

    Parameters
    ----------
    exercise
        Name of the exercise, such as ``"scores"``.
    status
        ``"passed"``, ``"not right yet"`` or ``"not answered yet"``.
    message
        The text that was printed.
    """

    exercise: str
    status: str
    message: str

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return self.status == PASSED

    def require(self) -> Result:
        """Return this result if it passed; for graders.

        Raises
        ------
        NotPassedError
            If the answer is missing or wrong; the message is what was printed.
        """
        if not self.passed:
            raise NotPassedError(self.message)
        return self


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A known wrong answer: the value it gives, how it is called, where to look.

    Parameters
    ----------
    value
        What a function with this mistake returns, any shape.
    says
        The mistake in one sentence.
    look
        What to look at, one sentence; may be empty.
    """

    value: Tensor
    says: str
    look: str = ""


class Answer:
    """A learner's function, to be tried on inputs.

    Parameters
    ----------
    function
        What the learner passed: a function, or nothing yet.
    """

    def __init__(self, function: Any) -> None:
        if function is None or function is Ellipsis:
            raise _UnansweredError("There is no function yet.")
        if not callable(function):
            raise _WrongError(
                f"Expected a function, came {kind(function)}. "
                "Pass the function itself, without calling it."
            )
        self._function = function
        self.notes: list[str] = []

    def on(self, **inputs: Any) -> Attempt:
        """Call the function on copies of `inputs`, in their order, by position."""
        copies = {name: _copy(value) for name, value in inputs.items()}
        try:
            value = self._function(*copies.values())
        except NotImplementedError:
            raise _UnansweredError("The function is not implemented.") from None
        except Exception as error:
            raise _WrongError(
                f"Your function raised {type(error).__name__}: {_first_line(error)} "
                f"Inputs: {described(inputs)}."
            ) from None
        if value is None:
            raise _UnansweredError("The function returns None: is `return` missing?")
        if value is Ellipsis:  # the stub, as the notebook has it
            raise _UnansweredError("The function returns nothing.")
        self._note_changes(inputs, copies)
        return Attempt(value, inputs)

    def _note_changes(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Remember, once each, which inputs the function overwrote."""
        for name, value in before.items():
            if _changed(value, after[name]):
                note = f"Note: it overwrites its input {name}, which surprises callers."
                if note not in self.notes:
                    self.notes.append(note)


class Attempt:
    """One call of an answer: the inputs it got and the value that came back.

    Parameters
    ----------
    value
        What the function returned.
    inputs
        Name to input, in order.
    """

    def __init__(self, value: Any, inputs: dict[str, Any]) -> None:
        self.value = value
        self.inputs = inputs

    def fail(self, says: str, look: str = "") -> NoReturn:
        """End the check: `says` is the mistake, `look` is where to look."""
        hint = [f"Hint: {look}"] if look else []
        inputs = f"Inputs: {described(self.inputs)}."
        raise _WrongError("\n".join([says, *hint, inputs]))

    def tensor(self) -> Tensor:
        """The value on the CPU without gradient; fails unless it is a tensor."""
        if not isinstance(self.value, Tensor):
            came = f"Expected a torch.Tensor, came {kind(self.value)}."
            self.fail(f"{came} {_to_tensor(self.value)}")
        if self.value.is_complex():
            self.fail("Expected real numbers, came complex ones.")
        return self.value.detach().cpu()

    def equals(
        self, expected: Tensor, mistakes: list[Mistake], tolerance: float = 1e-5
    ) -> None:
        """Compare the value with `expected`, then with known mistakes.

        Parameters
        ----------
        expected
            The right value; floats are compared in float64, whatever their type.
        mistakes
            Known wrong values, the likeliest first.
        tolerance
            Largest difference allowed, absolute and relative.
        """
        came = self.tensor()
        if not _close(came, expected, tolerance):
            for mistake in mistakes:
                # Wider: in some mistakes rounding grows, as in sines of large angles.
                if _close(came, mistake.value, 10 * tolerance):
                    told = difference(came, expected)
                    self.fail(f"{mistake.says} {told}".strip(), mistake.look)
            self._shape(came, expected)
            self._type(came, expected)
            self.fail(f"The values are wrong. {difference(came, expected)}")
        self._type(came, expected)

    def number(self) -> float:
        """The value as a float; fails unless it is one number, however wrapped."""
        found = one_number(self.value)
        if found is None:
            self.fail(f"Expected one number, came {sized(self.value)}.")
        return found

    def equals_number(self, expected: float, mistakes: list[WrongNumber]) -> None:
        """Compare one number with the right one, then with known mistakes.

        Parameters
        ----------
        expected
            The right number.
        mistakes
            Known wrong ones, the likeliest first.
        """
        came = self.number()
        if same(came, expected):
            return
        told = f"Expected {shown(expected)}, came {shown(came)}."
        for value, says, look in mistakes:
            if same(came, value):
                self.fail(f"{says} {told}", look)
        self.fail(f"The value is wrong. {told}")

    def _shape(self, came: Tensor, expected: Tensor) -> None:
        if came.shape != expected.shape:
            self.fail(
                f"The shape is wrong: expected {shape(expected)}, came {shape(came)}."
            )

    def _type(self, came: Tensor, expected: Tensor) -> None:
        """Any floating type will do for floats; a mask must be bool."""
        both_float = came.is_floating_point() and expected.is_floating_point()
        if not both_float and came.dtype != expected.dtype:
            wanted = "a floating type" if expected.is_floating_point() else "bool"
            self.fail(
                f"The type is wrong: expected {wanted}, came {_dtype_name(came)}."
            )


class Tally:
    """The exercises of one chapter in order, and how each stands.

    Parameters
    ----------
    chapter
        Its subject, such as ``"Attention"``.
    """

    def __init__(self, chapter: str) -> None:
        self.chapter = chapter
        self.results: dict[str, Result | None] = {}

    def exercise(self, check: Callable[[Answer], str]) -> Callable[[Any], Result]:
        """Make a checker of `check`: it prints what it found and returns a `Result`."""
        name = check.__name__
        self.results[name] = None
        number = len(self.results)

        def checker(answer: Any) -> Result:
            status, text = _run(check, answer)
            message = _laid_out(f"Exercise {number}, {name}: {status}.", text)
            result = Result(name, status, message)
            self.results[name] = result
            print(message)
            return result

        checker.__name__ = checker.__qualname__ = name
        checker.__doc__ = check.__doc__
        checker.__module__ = check.__module__
        return checker

    def summary(self) -> None:
        """Print how many exercises are answered, and how each stands."""
        standing = {n: r.status if r else UNANSWERED for n, r in self.results.items()}
        statuses = list(standing.values())
        passed, failed = statuses.count(PASSED), statuses.count(FAILED)
        lines = [f"{passed} of {len(statuses)} answered"]
        if passed + failed:
            lines[0] += f" ({passed + failed} attempted)"
        for number, (name, status) in enumerate(standing.items(), start=1):
            lines.append(f"  {number} {name}: {status}")
        print("\n".join(lines))


def _run(check: Callable[[Answer], str], function: Any) -> tuple[str, str]:
    """Status and text of one check; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]), default_float32():
        try:
            answer = Answer(function)
            checked = check(answer)
        except _UnansweredError as error:
            return UNANSWERED, str(error)
        except _WrongError as error:
            return FAILED, str(error)
    return PASSED, "\n".join([f"Checked: {checked}", *answer.notes])


@contextlib.contextmanager
def default_float32() -> Iterator[None]:
    """Draw inputs in float32 even where a notebook has set another default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def generator(seed: int = 0) -> torch.Generator:
    """A source of random numbers of its own, the same at every call."""
    return torch.Generator().manual_seed(seed)


def shape(tensor: Tensor) -> str:
    """The shape as text: ``(2, 3)``."""
    return str(tuple(tensor.shape))


def kind(value: Any) -> str:
    """What `value` is, as words for a sentence, never its address."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {shape(value)}"
    if isinstance(value, (bool, int, float)):
        return f"the {type(value).__name__} {value}"
    return f"an object of type {type(value).__name__}"


def sized(value: Any) -> str:
    """As `kind`, with the shape of an array and the length of a list."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return kind(value)


def as_tensor(value: Any) -> Tensor | None:
    """A tensor, an array or nested lists of them as a tensor; None for other things."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        parts = [as_tensor(part) for part in value]
        if any(p is None or p.shape != parts[0].shape for p in parts):  # type: ignore[union-attr]
            return None
        return torch.stack(parts)  # type: ignore[arg-type]
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        return None


def one_number(value: Any) -> float | None:
    """One number, however it is wrapped; None for anything else."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    tensor = as_tensor(value)
    if tensor is None or tensor.numel() != 1:
        return None
    if tensor.dtype == torch.bool or tensor.is_complex():
        return None
    return float(tensor)


def same(came: float, expected: float, tolerance: float = 1e-4) -> bool:
    """Whether two numbers are alike, but for rounding."""
    return math.isclose(came, expected, rel_tol=tolerance, abs_tol=1e-6)


def shown(value: float) -> str:
    """Four digits: mistakes are often small."""
    return f"{value:.4g}"


def _to_tensor(value: Any) -> str:
    """What to do with a value that should have been a tensor, as a sentence."""
    if isinstance(value, (list, tuple)):
        tensors = any(isinstance(entry, Tensor) for entry in value)
        return f"Return torch.{'stack' if tensors else 'tensor'}(...) of it."
    if isinstance(value, (np.ndarray, bool, int, float)):
        return "Return torch.tensor(...) of it."
    return "Return one tensor."


def described(inputs: dict[str, Any]) -> str:
    """Inputs as words: with shapes for tensors and arrays, with values for numbers."""
    words = []
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            words.append(f"{name} {shape(value)} {_dtype_name(value)}")
        elif isinstance(value, np.ndarray):
            words.append(f"{name} {value.shape} {value.dtype}")
        else:
            words.append(f"{name} = {value}")
    return ", ".join(words)


def difference(came: Tensor, expected: Tensor) -> str:
    """Where two tensors of one shape differ most, as a sentence; else nothing."""
    if came.shape != expected.shape:
        return f"Expected the shape {shape(expected)}, came {shape(came)}."
    gap = (came.double() - expected.double()).abs()
    gap = gap.nan_to_num(nan=float("inf"))
    index = torch.unravel_index(gap.argmax(), gap.shape)
    place = [int(axis) for axis in index]
    return (
        f"Expected {_number(expected[index])}, came {_number(came[index])} at {place}."
    )


def _number(value: Tensor) -> str:
    """One entry with three digits, free of the noise of the last bits."""
    if value.dtype == torch.bool:
        return str(bool(value))
    rounded = round(float(value), 6) + 0.0 if value.isfinite() else float(value)
    return f"{rounded:.3g}"


def _close(came: Tensor, expected: Tensor, tolerance: float) -> bool:
    if came.shape != expected.shape:
        return False
    return torch.allclose(
        came.double(), expected.double(), tolerance, tolerance, equal_nan=True
    )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.clone() if isinstance(value, Tensor) else value


def _changed(before: Any, after: Any) -> bool:
    """Whether a tensor or an array is not what it was."""
    if isinstance(before, np.ndarray):
        floats = before.dtype.kind == "f"  # only these have NaN, and NaN != NaN
        return not np.array_equal(before, after, equal_nan=floats)
    return isinstance(before, Tensor) and not torch.equal(before, after)


def _first_line(error: Exception) -> str:
    """The first line of an error's text, short, without memory addresses."""
    line = next(iter(str(error).splitlines()), "")
    line = textwrap.shorten(re.sub(r"( at)? 0x[0-9a-fA-F]+", "", line), 160)
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _laid_out(headline: str, text: str) -> str:
    """Headline, then each line of `text` wrapped and indented."""
    lines = [headline]
    for paragraph in text.splitlines():
        lines += textwrap.wrap(
            paragraph, WIDTH, initial_indent="  ", subsequent_indent="  "
        )
    return "\n".join(lines)
