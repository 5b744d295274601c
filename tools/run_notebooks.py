"""Run the notebooks, one after another, cut off from the network, on the CPU profile.

    python tools/run_notebooks.py [NAME ...]             re-run what is stale, in place
    python tools/run_notebooks.py --build [NAME ...]     into _build/executed
    python tools/run_notebooks.py --validate [NAME ...]  nbval against stored outputs
    python tools/run_notebooks.py --stale                name what is stale, run nothing

NAME is a path or part of one, such as 01_attention; --force runs fresh ones too.
--validate --shake SEED compares runs whose numbers differ as on another processor.
Only the first form writes tracked files: outputs, and records.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from notebook_inputs import ROOT, inputs_hash, is_fresh, read_notebook, stored_hash

from medlm_utils import runtime

sys.path.append(str(Path(__file__).parent / "kernel"))
import shaken

NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "_build" / "executed"
KERNEL_LOG = ROOT / "_build" / "kernel.log"
RECORDED = ROOT / "medlm_utils" / "recorded"
CELL_TIMEOUT_S = 300
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)
STOPPED = "\nStopped. Nothing half-written is left; call the same command again."


def kernel_environment(results: Path) -> dict[str, str]:
    """The environment of every run: CPU profile, no network, no progress bars."""
    paths = [str(ROOT / "tools" / "kernel"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "MEDLM_PROFILE": "cpu",
        "MEDLM_OFFLINE": "1",
        "MEDLM_SHAKE": "",  # whatever the caller has set: only `validate` asks for it
        "MEDLM_RESULTS_DIR": str(results),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def chosen(names: list[str]) -> list[Path]:
    """The notebooks that the names mean, all of them without names, in order."""
    every = sorted(
        path
        for path in NOTEBOOKS.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    )
    if not names:
        return every
    wanted = [path for path in every if any(name in path.as_posix() for name in names)]
    if not wanted:
        stems = ", ".join(path.relative_to(NOTEBOOKS).as_posix() for path in every)
        raise SystemExit(
            f"No notebook is called {' '.join(names)}. There are: {stems}."
        )
    return wanted


class NotebookFailed(Exception):
    """A cell failed; the message holds its code, its error and its place."""


class Progress(threading.Thread):
    """Says every few seconds which cell runs, for how long, and the usual time."""

    def __init__(self, title: str, cells: int, usual_s: float | None):
        super().__init__(daemon=True)
        self.title, self.cells, self.usual_s = title, cells, usual_s
        self.cell = 0
        self.started = time.monotonic()
        self.finished = threading.Event()
        self.tty = sys.stdout.isatty()

    def line(self) -> str:
        usual = f" of about {self.usual_s:.0f} s" if self.usual_s else " s"
        elapsed = time.monotonic() - self.started
        return f"{self.title}  cell {self.cell}/{self.cells}  {elapsed:.0f}{usual}"

    def run(self) -> None:
        print(self.line(), end="" if self.tty else "\n", flush=True)
        while not self.finished.wait(1 if self.tty else 10):
            print(
                f"\r{self.line()}" if self.tty else self.line(),
                end="" if self.tty else "\n",
                flush=True,
            )

    def stop(self, outcome: str) -> None:
        self.finished.set()
        self.join()
        elapsed = time.monotonic() - self.started
        start = "\r" if self.tty else ""
        print(
            f"{start}{self.title}  {outcome} after {elapsed:.0f} s" + 20 * " ",
            flush=True,
        )


def usual_seconds(path: Path) -> float | None:
    """How long the stored run of a notebook took, kernel start included."""
    return read_notebook(path)["metadata"].get("medlm", {}).get("seconds")


def execute(path: Path, title: str, results: Path) -> nbformat.NotebookNode:
    """Run one notebook from the top and return it with its outputs.

    Raises `NotebookFailed` when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    progress = Progress(title, len(notebook.cells), usual_seconds(path))

    def count(cell_index: int, **_: Any) -> None:
        progress.cell = cell_index + 1

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        on_cell_start=count,
        resources={"metadata": {"path": str(path.parent)}},
    )
    progress.start()
    try:
        with open(KERNEL_LOG, "wb") as log:  # a dying kernel talks a lot
            client.execute(env=kernel_environment(results), stderr=log)
    except (Exception, asyncio.CancelledError, KeyboardInterrupt) as error:
        # On Ctrl-C nbclient cancels what it waits for, or ends the kernel and then
        # trips over its absence.
        is_ended = getattr(client, "_async_cleanup_kernel_future", None) is not None
        if is_ended or not isinstance(error, Exception):
            progress.stop("stopped")
            raise KeyboardInterrupt from error
        progress.stop("FAILED")
        if not isinstance(error, FAILURES):
            raise
        where = f"That was cell {progress.cell} of {progress.cells} of {path.name}."
        said = ""
        if isinstance(error, DeadKernelError):
            said = KERNEL_LOG.read_text(errors="replace")[-2000:]
        raise NotebookFailed(f"{error}\n{said}{where}") from error
    progress.stop("done")
    normalise(notebook)
    notebook.metadata["medlm"] = notebook.metadata.get("medlm", {}) | {
        "inputs_sha256": inputs_hash(notebook),
        "seconds": round(time.monotonic() - progress.started),
    }
    return notebook


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Take out what differs from run to run and means nothing."""
    for cell in notebook.cells:
        for name in ("execution", "ExecuteTime", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):
                plain = output.data["text/plain"]
                output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", plain)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write beside, then rename."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def run_in_place(paths: list[Path], force: bool) -> None:
    """Re-run stale notebooks; outputs and records go where git tracks them."""
    stale = [path for path in paths if force or not is_fresh(path)]
    for number, path in enumerate(stale, 1):
        record = RECORDED / "cpu" / f"{path.stem}.json"
        chapter = path.parent == NOTEBOOKS
        results = RECORDED if chapter else ROOT / "_build" / "results"
        first_time = chapter and not record.exists()
        write(execute(path, title(path, number, stale), results), path)
        if first_time:  # the first line tells the recorded time: now there is one
            write(execute(path, title(path, number, stale), results), path)
    print(f"{len(stale)} run, {len(paths) - len(stale)} were fresh.")


def build(paths: list[Path], force: bool) -> None:
    """Execute into _build/executed; what was executed here with these inputs stays."""
    results = ROOT / "_build" / "results"
    stale = [path for path in paths if force or not refresh_text(path)]
    for number, path in enumerate(stale, 1):
        write(execute(path, title(path, number, stale), results), executed_path(path))
    gone = set(EXECUTED.rglob("*.ipynb")) - {executed_path(path) for path in chosen([])}
    for path in gone:
        path.unlink()
    fresh = len(paths) - len(stale)
    print(f"{len(stale)} notebooks executed, {fresh} fresh since the last build.")


def executed_path(path: Path) -> Path:
    """Where `build` puts the executed copy of a notebook."""
    return EXECUTED / path.relative_to(NOTEBOOKS)


def refresh_text(path: Path) -> bool:
    """Whether the executed copy is fresh; if so, give it today's text and metadata."""
    copy = executed_path(path)
    if not copy.exists():
        return False
    notebook = nbformat.read(path, as_version=4)
    executed = nbformat.read(copy, as_version=4)
    if stored_hash(executed) != inputs_hash(notebook):
        return False
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    today = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if len(ran) != len(today):
        return False
    for new, old in zip(today, ran, strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    notebook.metadata["medlm"] = notebook.metadata.get("medlm", {}) | {
        name: executed.metadata["medlm"][name] for name in ("inputs_sha256", "seconds")
    }
    if notebook != executed:
        write(notebook, copy)
    return True


def title(path: Path, number: int, paths: list[Path]) -> str:
    """Such as `[1/2] 01_attention`."""
    return f"[{number}/{len(paths)}] {path.relative_to(NOTEBOOKS).with_suffix('')}"


def validate(paths: list[Path], seed: int | None = None) -> int:
    """nbval: run every notebook, compare with its stored outputs; the exit status.

    With a seed the runs are shaken, see `tools/kernel/shaken.py`.
    """
    shaking = {} if seed is None else shaken.environment(seed)
    with tempfile.TemporaryDirectory() as results:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "--nbval-sanitize-with",
            str(ROOT / "tests" / "nbval_sanitize.cfg"),
            "--nbval-cell-timeout",
            str(CELL_TIMEOUT_S),
            "-p",
            "no:cacheprovider",
            "--durations=5",
            *map(str, paths),
        ]
        return subprocess.run(
            command, cwd=ROOT, env=kernel_environment(Path(results)) | shaking
        ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--force", action="store_true", help="run fresh ones too")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--build", action="store_true", help="into _build/executed")
    mode.add_argument("--validate", action="store_true", help="nbval")
    mode.add_argument("--stale", action="store_true", help="name what is stale")
    parser.add_argument("--shake", type=int, metavar="SEED", help="for --validate")
    options = parser.parse_args()
    if options.shake is not None and not options.validate:
        parser.error("--shake goes with --validate: shaken outputs are not kept.")
    paths = chosen(options.names)
    if options.validate:
        return validate(paths, options.shake)
    if options.stale:
        stale = [path for path in paths if not is_fresh(path)]
        print(
            "\n".join(f"stale: {path.relative_to(ROOT)}" for path in stale)
            or "all fresh"
        )
        return bool(stale)
    check_writable(ROOT / "_build" / "results")
    try:
        (build if options.build else run_in_place)(paths, options.force)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except NotebookFailed as error:
        print("\n" + re.sub(r"\x1b\[[0-9;]*m", "", str(error)), file=sys.stderr)
        return 1
    return 0


def check_writable(folder: Path) -> None:
    """Stop before the first minute of work, not after it, when nothing can be kept."""
    try:
        runtime.check_writable(folder, "remove what stands in its place")
    except runtime.MedlmError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    status = main()
    if status == 130:  # nothing may follow, such as the last words of nbclient's tasks
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
