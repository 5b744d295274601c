"""Writing files of results: whole or not at all, and the folder of a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import filelock

from medlm_utils import runtime
from medlm_utils.runtime import MedlmError

RUN = "run.json"  # what a run depends on; written first
REPORT = "report.json"  # written last: a folder that holds it holds a finished run
PAGE = "report.html"
MODEL = "model"
SPLIT = "split.csv"
CHECKPOINT = "checkpoint.safetensors"
_LOCK = ".lock"
_ENDINGS = {".csv", ".tsv", ".npy", ".npz", ".json", ".jsonl", ".parquet"}
_ENDINGS |= {".xls", ".xlsx", ".ods", ".gz", ".zip", ".bz2", ".xz", ".html"}


@contextlib.contextmanager
def beside(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write into, which gets its name when all of it is there.

    Parameters
    ----------
    path
        Of the file; while it is written, ``.part`` is added to its name.
    mode
        ``"w"`` for text in UTF-8, ``"wb"`` for bytes.

    Raises
    ------
    MedlmError
        If it cannot be written; nothing of it stays.
    """
    part = path.with_name(path.name + ".part")
    text: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    try:
        try:
            with part.open(mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with beside(path) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_output(path: Path, inputs: Sequence[Path], force: bool, needed: int) -> None:
    """Refuse at the start what would fail, or do harm, at the end.

    Parameters
    ----------
    path
        Of a file that is to be written.
    inputs
        Files that it must not replace.
    force
        True: it may replace another file.
    needed
        About how many bytes it will have.

    Raises
    ------
    MedlmError
        If there is such a file, or it cannot be written.
    """
    if any(path.resolve() == given.resolve() for given in inputs):
        raise MedlmError(f"{path} is read and cannot be written too; name another.")
    if path.is_dir():
        raise MedlmError(f"{path} is a folder; expected the name of a file.")
    if path.exists() and not force:
        raise MedlmError(
            f"{path} is there already. Name another file, or add --force to replace it."
        )
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:  # there is no such folder
        raise unwritable(path, error) from error
    runtime.check_writable(path.parent, "name another")
    check_space(path.parent, free, needed)


def check_ending(path: Path, own: str) -> None:
    """Refuse a name that promises another kind of file than is written.

    Parameters
    ----------
    path
        Of a file that is to be written.
    own
        How the name of its kind ends: ``".csv"`` or ``".npy"``.

    Raises
    ------
    MedlmError
        If it ends as that of another well-known kind.
    """
    ending = path.suffix.lower()
    if ending in _ENDINGS - {own}:
        raise MedlmError(
            f"--output is {path}, and what is written is no {ending} file; expected a "
            f"name that ends in {own}."
        )


def unwritable(path: Path, error: OSError) -> MedlmError:
    """The error of a place that cannot be written."""
    return MedlmError(
        f"Cannot write {path}: {error.strerror or error}. Expected a place with free "
        "space that you may write; name another."
    )


class RunFolder:
    """The folder of one run: whose it is, and how far it came.

    Parameters
    ----------
    folder
        Made if missing.
    identity
        What the run depends on, as JSON can hold it: names to short values.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self._lock = filelock.FileLock(folder / _LOCK)

    def enter(self, resume: bool, needed: int) -> bool:
        """Take the folder for this run alone.

        Parameters
        ----------
        resume
            Whether it may hold a part of this run.
        needed
            How many bytes will be written.

        Returns
        -------
        bool
            Whether the run is finished already.

        Raises
        ------
        MedlmError
            If the folder cannot be written, is too small, holds another run or other
            files, or holds this run and `resume` is False.
        """
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
            finished = self._check(resume)
            if not finished:
                check_space(self.folder, shutil.disk_usage(self.folder).free, needed)
                save_json(self.folder / RUN, self.identity)
        except (OSError, MedlmError) as error:
            self.leave()
            if is_new:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            if isinstance(error, OSError):
                raise unwritable(self.folder, error) from error
            raise
        return finished

    def leave(self) -> None:
        """Let others have the folder."""
        if self._lock.is_locked:
            self._lock.release()
            with contextlib.suppress(OSError):
                (self.folder / _LOCK).unlink()

    def _take(self) -> None:
        """Two processes in one folder would destroy each other's work."""
        try:
            # Some network disks have no locks: there the reader must take care.
            with contextlib.suppress(NotImplementedError):
                self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise MedlmError(
                f"Another process works in {self.folder} at this moment. Wait for it, "
                "or name another folder with --out."
            ) from error

    def _check(self, resume: bool) -> bool:
        """Refuse what is not this run; whether it is finished."""
        stored = self._stored()
        if stored is None:
            return False
        wanted = json.loads(json.dumps(self.identity))
        if stored != wanted:
            raise MedlmError(
                f"{self.folder} holds another run: {_differences(stored, wanted)}. "
                "Name another folder with --out, or give the same files and settings."
            )
        finished = (self.folder / REPORT).is_file()
        if not resume:
            state = "finished" if finished else "not finished"
            raise MedlmError(
                f"{self.folder} holds this very run, {state}. Add --resume to go on "
                "with it, or name another folder with --out."
            )
        return finished

    def _stored(self) -> dict[str, Any] | None:
        """What the run in the folder depends on; None for an empty folder."""
        path = self.folder / RUN
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            stored = None
            if not {entry.name for entry in self.folder.iterdir()} - {_LOCK}:
                return None
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise MedlmError(
                f"{self.folder} holds files that are not of a run. Name an empty "
                "folder, or one to be made, with --out."
            )
        return stored


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = dict.fromkeys([*wanted, *stored])
    return ", ".join(
        f"{name} {stored.get(name)} (now {wanted.get(name)})"
        for name in names
        if stored.get(name) != wanted.get(name)
    )


def check_space(folder: Path, free: int, needed: int) -> None:
    """Refuse at the start what would not fit on the disk; sizes in bytes."""
    if free < needed:
        raise MedlmError(
            f"{folder} has {free / 1e6:,.0f} MB free; this needs about "
            f"{needed / 1e6:,.0f} MB. Free some space, or name a place on a larger "
            "disk."
        )
