"""The processes that share one command: one alone, or those of `accelerate launch`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from medlm_utils import runtime
from medlm_utils.runtime import MedlmError

T = TypeVar("T")

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

# Where launchers say how many processes there are.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def add_precision(command: argparse.ArgumentParser) -> None:
    """Add ``--precision`` to a command, whose choice `Team.precision` makes a name."""
    text = (
        "of the large products of matrices; auto takes what is fast on this machine; "
        "default: %(default)s"
    )
    command.add_argument("--precision", choices=PRECISIONS, default="auto", help=text)


@contextlib.contextmanager
def options_named(**options: str) -> Iterator[None]:
    """An error about an argument of the Python API names the option that set it.

    Parameters
    ----------
    options
        Argument to option, such as ``encoder_rate="--rate"``.
    """
    try:
        yield
    except MedlmError as error:
        argument, is_set, rest = str(error).partition(" is ")
        if not is_set or argument not in options:
            raise
        raise MedlmError(f"{options[argument]} is {rest}") from error


class Team:
    """This process among all that run the same command.

    Only the main one, number 0, prints and writes.

    Raises
    ------
    MedlmError
        If ``MEDLM_PROFILE`` names no profile, or ``gpu`` where there is no GPU.
    """

    def __init__(self) -> None:
        runtime.stop_spinning()
        # A log needs no more lines, and tqdm reads this when it is loaded.
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_MININTERVAL", "30")
            os.environ.setdefault("TQDM_MAXINTERVAL", "30")
        wanted = os.environ.get("MEDLM_PROFILE", "").strip().lower()
        self.profile, _ = runtime.choose_profile(wanted)
        self.accelerator = _accelerator(self.profile.device)
        if self.accelerator is None:
            runtime.use_all_cores()

    @property
    def number(self) -> int:
        """Of this process, from 0."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.number == 0

    @property
    def device(self) -> Any:
        """Where this process computes."""
        return self.accelerator.device if self.accelerator else self.profile.device

    @property
    def shows_bars(self) -> bool:
        """Whether this process shows how far it is."""
        return self.is_main and os.environ.get("TQDM_DISABLE", "") in ("", "0")

    def precision(self, wanted: str = "auto") -> str:
        """What is computed in, once `wanted` is one of `PRECISIONS`.

        Automatic is what is fast here, `runtime.fast_precision`: on a GPU that of the
        profile, on a processor bfloat16 where it has matrix units, else float32.
        """
        if wanted != "auto":
            return wanted
        return runtime.fast_precision(self.profile)

    def say(self, text: str) -> None:
        """Progress goes to standard error, the results to standard output."""
        if self.is_main:
            print(f"medlm: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """What ends all processes alike is told by the main one only."""
        try:
            yield
        except MedlmError:
            if self.is_main:
                raise
            raise SystemExit(1) from None

    def all_do(self, work: Callable[[], T]) -> T:
        """The same work in every process; an error of any of them ends all.

        Without this the others would wait for it for ever.
        """
        done: Any = None
        problem = ""
        try:
            done = work()
        except MedlmError as error:
            problem = str(error)
        for number, said in enumerate(self._gather(problem)):
            if said:
                where = f"Process {number} of {self.size}: " if number else ""
                raise MedlmError(where + said)
        return done

    def main_does(self, work: Callable[[], T]) -> T:
        """Work of the main process, whose result all get; its error ends all."""
        done: Any = self.all_do(work if self.is_main else lambda: None)
        return self._gather(done)[0]

    def _gather(self, own: Any) -> list[Any]:
        """One small thing from each process."""
        if self.size == 1:
            return [own]
        from accelerate.utils import gather_object

        return gather_object([own])

    def leave(self) -> None:
        """Say goodbye to the other processes."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def _accelerator(device: str) -> Any:
    """Accelerate's view of the processes; None for a process alone."""
    sizes = (os.environ.get(name, "1") for name in _SIZES)
    if "LOCAL_RANK" not in os.environ and all(size in ("", "0", "1") for size in sizes):
        return None
    from accelerate import Accelerator

    # The precision is that of the profile, which the training loop looks after.
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    return accelerator if accelerator.num_processes > 1 else None
