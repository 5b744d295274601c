"""What all studies share: options, kept parts, time left, intervals, the record.

A study is a list of parts. Each finished part is kept in a folder of work files, and a
long training has a checkpoint there, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs
import safetensors.torch
from torch import nn

from medlm_utils import runtime, training
from medlm_utils.runtime import MedlmError, Profile

TELL_EVERY_S = 300  # of a training without a bar
_ELSEWHERE = "name another with --out or --work"

# The 97.5% point of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a study that is done as a whole, and kept.

    Parameters
    ----------
    name
        Of the file that keeps it.
    settings
        What its result depends on; with other settings it is another part.
    cost
        How long it takes compared with the other parts, in any unit.
    make
        Returns the result, as JSON can hold it.
    """

    name: str
    settings: dict[str, Any]
    cost: float
    make: Callable[[], dict[str, Any]]


@dataclasses.dataclass
class Study:
    """One run of a study: where it runs, where its files lie, how long it has taken.

    Parameters
    ----------
    name
        As in ``python -m medlm_utils.studies.NAME``.
    profile
        Of the machine.
    tiny
        True: the smallest sizes, to see that every path works.
    work
        The folder of kept parts and checkpoints.
    path
        The record that will be written.
    """

    name: str
    profile: Profile
    tiny: bool
    work: Path
    path: Path
    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    _running: Part | None = None
    _carried: float = 0.0  # seconds of a training before it was taken up again

    @property
    def size(self) -> str:
        """The row of a study's table of sizes: ``"tiny"``, or the profile's name."""
        return "tiny" if self.tiny else self.profile.name

    def run(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """The results of all parts, in order: made here, or kept from an earlier run.

        Says before each part how many are left, and after the first how long that
        will take.
        """
        kept = {part.name: self._kept(part) for part in parts}
        left = [part for part in parts if kept[part.name] is None]
        if len(left) < len(parts):
            say(f"{len(parts) - len(left)} of {len(parts)} parts are kept: {self.work}")
        seconds = cost = 0.0
        for place, part in enumerate(left):
            rate = seconds / cost if cost else math.nan
            to_do = left[place:]
            say(_progress(part, len(to_do), sum(p.cost for p in to_do) * rate))
            entry = kept[part.name] = self._make(part)
            seconds, cost = seconds + entry["seconds"], cost + part.cost
        entries = [entry for entry in kept.values() if entry]
        self.seconds += sum(entry["seconds"] for entry in entries)
        peaks = [entry["peak_gb"] for entry in entries]
        self.peak_memory_gb = max([self.peak_memory_gb, *peaks])
        return [entry["result"] for entry in entries]

    def file(self, ending: str) -> Path:
        """A work file of the part that is being made, such as ``.checkpoint``."""
        if self._running is None:
            raise ValueError("No part is being made; expected a call from Part.make.")
        return self._file(self._running, ending)

    def fit(
        self, model: nn.Module, batch_at: Callable[[int], Any], **settings: Any
    ) -> training.History:
        """`training.fit` with a checkpoint, from which a stopped study goes on.

        Parameters
        ----------
        model, batch_at, settings
            As in `training.fit`. One training a part.
        """
        started = time.monotonic()
        history = training.fit(
            model,
            batch_at if _is_shown() else _telling(batch_at, settings["steps"]),
            checkpoint=self.file(".checkpoint"),
            resume=True,
            progress=_is_shown(),
            **settings,
        )
        here = time.monotonic() - started
        self._carried += max(0.0, history.seconds[-1] - here)
        return history

    def _make(self, part: Part) -> dict[str, Any]:
        """Make a part from its own seed, and keep it."""
        runtime.seed_everything(runtime.SEED)
        self._running, self._carried, started = part, 0.0, time.monotonic()
        result = part.make()
        entry = {
            "settings": part.settings,
            "seconds": time.monotonic() - started + self._carried,
            "peak_gb": runtime.peak_memory_gb() or 0.0,
            "result": result,
        }
        runtime.write_json(self._file(part, ".json"), entry)
        self.file(".checkpoint").unlink(missing_ok=True)
        # As it will be read if the study is taken up again.
        return json.loads(json.dumps(entry))

    def _kept(self, part: Part) -> dict[str, Any] | None:
        """What an earlier run kept of this part."""
        path = self._file(part, ".json")
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            return {name: entry[name] for name in ("seconds", "peak_gb", "result")}
        except (ValueError, KeyError, TypeError) as error:
            raise MedlmError(
                f"{path} is no part of a study. Delete it, or add --fresh to make "
                "every part anew."
            ) from error

    def _file(self, part: Part, ending: str) -> Path:
        """Named after part, settings and machine: others never meet in one file."""
        depends_on = {
            **part.settings,
            "hardware": runtime.hardware(self.profile.device),
            "versions": runtime.versions(),
            "seed": runtime.SEED,
        }
        text = json.dumps(depends_on, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.work / f"{part.name}-{digest}{ending}"


Run = Callable[[Study], tuple[dict[str, Any], dict[str, Any]]]


# The command --------------------------------------------------------------------------


def main(
    name: str, about: str, run: Run, arguments: Sequence[str] | None = None
) -> int:
    """Run a study from the command line, and write its record.

    Parameters
    ----------
    name
        Of the study.
    about
        One sentence for ``--help``.
    run
        A function of a `Study` that returns its metrics, as `runtime.results` takes
        them, and the series of its figure, as JSON can hold them.
    arguments
        By default those of the command line.

    Returns
    -------
    int
        The exit status: 0 done, 1 an error that was reported, 130 stopped by Ctrl-C.
        Wrong usage leaves with 2 through `SystemExit`.
    """
    chosen = _parser(name, about).parse_args(arguments)
    try:
        with _prepared(name, chosen) as study:
            started = time.monotonic()
            metrics, series = run(study)
            _record(study, metrics, series, started)
        return 0
    except MedlmError as error:
        print(f"medlm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("medlm: stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser(name: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m medlm_utils.studies.{name}", description=about
    )
    parser.add_argument(
        "--tiny", action="store_true", help="see in seconds that everything works"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="of results; default: MEDLM_RESULTS_DIR, else the package's own records",
    )
    parser.add_argument(
        "--work",
        metavar="FOLDER",
        type=Path,
        help="of kept parts and checkpoints; default: this user's cache",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="make every part anew, keep nothing"
    )
    return parser


@contextlib.contextmanager
def _prepared(name: str, chosen: argparse.Namespace) -> Iterator[Study]:
    """Profile, threads and folders of a run; only one run uses a folder at a time."""
    wanted = os.environ.get("MEDLM_PROFILE", "").strip().lower()
    profile, reason = runtime.choose_profile(wanted)
    runtime.use_all_cores()
    runtime.keep_memory()
    path = _record_path(name, profile, chosen.tiny, chosen.out)
    runtime.check_writable(path.parent, _ELSEWHERE)
    with _work_folder(name, profile, chosen) as work:
        say(
            f"study {name}{', tiny' if chosen.tiny else ''}, profile {profile.name} "
            f"({reason}), seed {runtime.SEED}. Results: {path}. Work files: {work}"
        )
        yield Study(name, profile, chosen.tiny, work, path)


def _record_path(name: str, profile: Profile, tiny: bool, out: Path | None) -> Path:
    """Where the record goes; a tiny run never changes a record of the package.

    A machine with a GPU has a record of its own beside that of the CPU.
    """
    tracked = runtime.shipped_records()
    is_checkout = (tracked.parent.parent / "pyproject.toml").exists()
    named = out or ("MEDLM_RESULTS_DIR" in os.environ and runtime.results_dir())
    folder = named or (tracked if is_checkout and not tiny else runtime.results_dir())
    if tiny and folder.resolve().is_relative_to(tracked.parent.resolve()):
        raise MedlmError(
            f"--tiny does not write into {tracked}, which holds the records of full "
            "runs. Name another folder with --out."
        )
    stem = name if profile.name == "cpu" else f"{name}_{profile.name}"
    return folder / "studies" / f"{stem}.json"


@contextlib.contextmanager
def _work_folder(
    name: str, profile: Profile, chosen: argparse.Namespace
) -> Iterator[Path]:
    """The folder of work files, held by this process alone; a tiny one is temporary."""
    if chosen.tiny and chosen.work is None:
        with tempfile.TemporaryDirectory(prefix=f"medlm-{name}-") as temporary:
            yield Path(temporary)
        return
    cache = platformdirs.user_cache_path("medlm", appauthor=False) / "studies"
    size = "tiny" if chosen.tiny else profile.name
    folder: Path = (chosen.work or cache) / f"{name}-{size}"
    runtime.check_writable(folder, _ELSEWHERE)
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise MedlmError(
            f"Another run of this study works in {folder}. Wait for it, or name "
            "another folder with --work."
        ) from error
    try:
        if chosen.fresh:
            shutil.rmtree(folder)
            folder.mkdir()
        yield folder
    finally:
        lock.release()


def _record(
    study: Study, metrics: dict[str, Any], series: dict[str, Any], started: float
) -> None:
    """Write the record: as of a notebook, with its command and its series."""
    seconds = max(study.seconds, time.monotonic() - started)
    content = runtime.results(metrics, seconds, study.profile.device)
    if "peak_memory_gb" in content:
        content["peak_memory_gb"] = max(content["peak_memory_gb"], study.peak_memory_gb)
    command = ["python", "-m", f"medlm_utils.studies.{study.name}"]
    content["command"] = shlex.join([*command, *(["--tiny"] if study.tiny else [])])
    content["series"] = series
    runtime.write_json(study.path, content)
    runtime.print_results(content)


def say(text: str) -> None:
    """Progress goes to standard error, the results to standard output."""
    print(f"medlm: {text}", file=sys.stderr, flush=True)


def _is_shown() -> bool:
    """Bars are for people: none in a file or where TQDM_DISABLE is set."""
    return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "") in ("", "0")


def _telling(batch_at: Callable[[int], Any], steps: int) -> Callable[[int], Any]:
    """The same batches; says every few minutes how long the training will take."""
    first: list[float] = []
    told = time.monotonic()

    def at(step: int) -> Any:
        nonlocal told
        now = time.monotonic()
        first[:] = first or [step, now]
        if now - told > TELL_EVERY_S:
            told, rate = now, (now - first[1]) / max(step - first[0], 1)
            say(f"step {step} of {steps}, about {in_words(rate * (steps - step))}")
        return batch_at(step)

    return at


def _progress(part: Part, left: int, seconds: float) -> str:
    words = f"{part.name}; {left} {'part' if left == 1 else 'parts'} to do"
    if math.isnan(seconds):
        return words
    return f"{words}, about {in_words(seconds)}"


def in_words(seconds: float) -> str:
    """A duration such as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# Weights that one part keeps for another ----------------------------------------------


def save_weights(
    model: nn.Module, path: Path, about: dict[str, str] | None = None
) -> None:
    """Write all weights beside a work file, then rename.

    Parameters
    ----------
    model
        On any device.
    path
        Of the file, ending in ``.safetensors``.
    about
        What the file says of them.
    """
    part = path.with_suffix(".part")
    weights = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}
    # Not by `save_file`, whose files nobody else may read.
    part.write_bytes(safetensors.torch.save(weights, about))
    part.replace(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a work file into a model.

    Raises
    ------
    MedlmError
        If the file is gone, damaged or of another model.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise MedlmError(
            f"{path} does not hold the weights that this study trained. Add --fresh to "
            "make every part anew."
        ) from error


# Intervals ----------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with its 95% interval, by Student's t.

    Parameters
    ----------
    values
        2 to 10 numbers, one for each seed.

    Raises
    ------
    ValueError
        If there are fewer or more.
    """
    if not 2 <= len(values) <= len(_STUDENT) + 1:
        raise ValueError(f"{len(values)} values; expected 2 to {len(_STUDENT) + 1}.")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = _STUDENT[len(values) - 2] * error
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def over_repeats(values: Sequence[float]) -> dict[str, float]:
    """Median over repeats with the interval that covers it in at least 95% of cases.

    The interval runs between two of the values, whatever their distribution; with fewer
    than six of them no interval covers so much, and it is the whole range.

    Parameters
    ----------
    values
        One number for each repeat.
    """
    ordered, n = sorted(values), len(values)
    outside, skipped = 0.0, 0
    while outside + 2 * math.comb(n, skipped) / 2**n <= 0.05:
        outside += 2 * math.comb(n, skipped) / 2**n
        skipped += 1
    edge = max(skipped - 1, 0)
    median = float(np.median(ordered))
    return {
        "value": median,
        "low": ordered[edge],
        "high": ordered[n - 1 - edge],
        "n": n,
    }
