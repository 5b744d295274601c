"""Create the environment that the lock describes; do nothing where it is there.

    python tools/setup_env.py            .venv: everything (notebooks, book, tests)
    python tools/setup_env.py --book     .venv-book: what builds the book, without torch

Only Python with `venv` and a package index are needed. pip installs uv from the lock
(with its hashes), and uv installs the rest from the lock (with theirs).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def venv_python(folder: Path) -> Path:
    """Where the interpreter of a virtual environment lies on this platform."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def lock_block(lock: Path, package: str) -> str:
    """The lines of the lock that pin one package, hashes included."""
    match = re.search(rf"^{package}==.*?(?=^\S|\Z)", lock.read_text(), re.M | re.S)
    if match is None:
        raise SystemExit(f"{lock.name} does not pin {package}: run `make lock`.")
    return match.group()


def stamp_text(lock: Path) -> str:
    """What the environment was made from: interpreter, lock and project file."""
    digest = hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    return f"{sys.version_info[0]}.{sys.version_info[1]} {digest.hexdigest()}\n"


def run(*command: object) -> None:
    """Run one installation step; stop with its exit status when it fails."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        raise SystemExit(
            f"Setting up failed in: {' '.join(map(str, command))}\n"
            "Expected: a package index that pip can reach, and 8 GB of free disk.\n"
            "Mend what the message above names and call the same command again."
        )


def install(folder: Path, lock: Path, package: bool) -> None:
    """Make `folder` hold what `lock` pins, and the project itself."""
    if not venv_python(folder).exists():
        run(sys.executable, "-m", "venv", folder)
    python = venv_python(folder)
    bootstrap = folder / "uv.txt"
    bootstrap.write_text(lock_block(ROOT / "requirements.lock", "uv"))
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "-r",
        bootstrap,
    )
    uv = [python, "-m", "uv", "pip"]
    run(*uv, "install", "--python", python, "--require-hashes", "-r", lock)
    if package:
        run(
            *uv,
            "install",
            "--python",
            python,
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "-e",
            ".",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", action="store_true", help="only what builds the book")
    book = parser.parse_args().book
    if sys.version_info < (3, 11):
        raise SystemExit(
            f"Expected Python 3.11 or newer, got {sys.version.split()[0]}. "
            "Name another one: make PYTHON=python3.12 book"
        )
    folder = ROOT / (".venv-book" if book else ".venv")
    lock = ROOT / ("requirements-book.lock" if book else "requirements.lock")
    stamp = folder / "medlm-lock.txt"
    if stamp.exists() and stamp.read_text() == stamp_text(lock):
        return
    if folder.exists() and not stamp.exists():
        shutil.rmtree(folder)
    print(
        f"Setting up {folder.name} from {lock.name} (once, a few minutes) ...",
        flush=True,
    )
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    install(folder, lock, package=not book)
    stamp.write_text(stamp_text(lock))
    print(f"{folder.name} is ready after {time.monotonic() - start:.0f} s.", flush=True)


if __name__ == "__main__":
    main()
