"""Build the HTML book from the committed notebooks, or from those just executed.

    python tools/build_book.py [--executed] [--build-folder FOLDER] [--out FOLDER]

Sources are staged in _build/source, where Sphinx reads them; the pages go to
_build/html. --build-folder names another folder than _build for both. A file that did
not change keeps its time stamp, so that a second build reads only what is new. Needs
neither torch nor the network.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"

# Left out of the book: solutions stand folded inside the chapters.
NOT_STAGED = ("solutions", ".ipynb_checkpoints", "__pycache__")
# What shapes every page: when it changes, nothing of an earlier build may stay.
SHAPES_EVERY_PAGE = ("_config.yml", "_toc.yml", "book/_ext", "book/_templates")
PROBLEM = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback|^\w*(Error|Exception):")
# What a build folder holds, and the file that says it is one.
PARTS = ("source", "book", "html")
OURS = "medlm-build.txt"
MARKER = ".nojekyll"  # GitHub Pages: serve folders that begin with an underscore


class BuildError(Exception):
    """The book was not built; the message says why."""


def main() -> int:
    """Read the command line, build, say where the page is."""
    options = parse_arguments()
    started = time.monotonic()
    print("Building the book (up to two minutes) ...", flush=True)
    try:
        index = build(
            build_folder=options.build_folder.resolve(),
            executed=options.executed,
            notebooks=options.notebooks,
            show=options.verbose,
        )
        print(f"Built in {time.monotonic() - started:.1f} s: {index.as_uri()}")
        if options.out:
            publish(index.parent, options.out)
            print(f"Copied to {options.out.resolve()}")
    except BuildError as error:
        print(f"The book was not built. {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The book was not built. {what_to_do(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing half-written is left; call again.", file=sys.stderr)
        return 130
    return 0


def what_to_do(error: OSError) -> str:
    """A file that cannot be read or written: which, why, and what helps."""
    where = error.filename2 or error.filename or "A file"
    return (
        f"{where}: {error.strerror or error}. The build folder and the folder after "
        "--out must be folders that you may write to, on a disk with room. Mend that, "
        "or name another folder with --build-folder."
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--executed",
        action="store_true",
        help="take notebooks from _build/executed and results from _build/results",
    )
    parser.add_argument("--notebooks", type=Path, help="another folder of notebooks")
    parser.add_argument(
        "--build-folder",
        type=Path,
        default=BUILD,
        metavar="FOLDER",
        help="where everything is built (default: _build)",
    )
    parser.add_argument("--out", type=Path, help="also copy the finished site there")
    parser.add_argument("--verbose", action="store_true", help="show Sphinx's output")
    return parser.parse_args()


def build(
    root: Path = ROOT,
    build_folder: Path | None = None,
    *,
    executed: bool = False,
    notebooks: Path | None = None,
    show: bool = False,
) -> Path:
    """Stage, build and copy; returns the path of the finished index.html.

    Parameters
    ----------
    root
        The repository.
    build_folder
        Where everything is built; ``root/_build`` by default.
    executed
        Take notebooks and results of this machine's last run, not the committed ones.
    notebooks
        Another folder in place of ``root/notebooks``.
    show
        Print what Sphinx says.

    Raises
    ------
    BuildError
        If a source is missing or Sphinx warns; its message holds the warnings.
    """
    build_folder = build_folder or root / "_build"
    claim(build_folder, usual=root / "_build")
    source, book = build_folder / "source", build_folder / "book"
    sync(sources(root, executed, notebooks), source)
    forget_if_reshaped(source, book)
    results = root / ("_build/results" if executed else "medlm_utils/recorded")
    run_jupyter_book(source, book, results, root, show)
    html = build_folder / "html"
    sync(files_of(book / "_build" / "html", is_page_or_asset), html)
    return html / "index.html"


def claim(folder: Path, usual: Path) -> None:
    """Take a folder for building, if nothing else can be lost there.

    Raises
    ------
    BuildError
        If it holds a folder ``source``, ``book`` or ``html`` that no build made.
    """
    taken = [name for name in PARTS if (folder / name).exists()]
    if taken and folder != usual and not (folder / OURS).is_file():
        raise BuildError(
            f"{folder} holds {', '.join(taken)}, which no build of the book made (no "
            f"{OURS} beside it). Name an empty or new folder after --build-folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).write_text("Made by tools/build_book.py.\n", encoding="utf-8")


def sources(
    root: Path, executed: bool = False, notebooks: Path | None = None
) -> dict[str, Path]:
    """What to stage: path inside the book to the file that is copied there."""
    found = {name: root / name for name in ("_config.yml", "_toc.yml", "CHANGELOG.md")}
    missing = [name for name, path in found.items() if not path.exists()]
    if missing:
        raise BuildError(f"{', '.join(missing)} not found in {root}.")
    found |= prefixed("book", files_of(root / "book", is_source))
    chapters = files_of(notebooks or root / "notebooks", is_source)
    found |= prefixed("notebooks", chapters)
    if executed:
        found |= prefixed("notebooks", executed_versions(root, chapters))
    return found


def executed_versions(root: Path, chapters: dict[str, Path]) -> dict[str, Path]:
    """The same notebooks as this machine executed them, all or none."""
    folder = root / "_build" / "executed"
    names = [name for name in chapters if name.endswith(".ipynb")]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BuildError(
            f"{', '.join(missing)} not found in {folder}. Run `make book`, or leave "
            "out --executed to build from the committed notebooks."
        )
    return {name: folder / name for name in names}


def is_source(path: Path) -> bool:
    """Whether a file belongs into the book."""
    return not any(part in NOT_STAGED for part in path.parts)


def is_page_or_asset(path: Path) -> bool:
    """Whether a file that Sphinx wrote belongs to the site."""
    return path.name != ".buildinfo"


def files_of(folder: Path, keep: Callable[[Path], bool]) -> dict[str, Path]:
    """Relative path to file, for every file below `folder` that `keep` accepts."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    relative = ((path.relative_to(folder), path) for path in paths)
    return {name.as_posix(): path for name, path in relative if keep(name)}


def prefixed(folder: str, files: dict[str, Path]) -> dict[str, Path]:
    """The same files under a folder."""
    return {f"{folder}/{name}": path for name, path in files.items()}


def sync(files: dict[str, Path], target: Path) -> list[str]:
    """Make `target` hold exactly `files`; returns the names that changed.

    What is equal stays untouched, time stamp included. What differs gets the present
    time, even if its source is older: Sphinx asks whether a file is newer than its
    last reading of it.
    """
    changed = []
    for name, path in files.items():
        copy = target / name
        if copy.is_file() and filecmp.cmp(path, copy, shallow=False):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_whole(path, copy)
        changed.append(name)
    filecmp.clear_cache()
    return changed + list(remove_others(files, target))


def copy_whole(path: Path, copy: Path) -> None:
    """Copy a file so that whoever stops us finds the old one or the new one."""
    part = copy.with_name(f"{copy.name}.part")
    try:
        shutil.copyfile(path, part)
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


def remove_others(files: dict[str, Path], target: Path) -> Iterator[str]:
    """Delete what `files` does not name, and folders left empty; yields the names."""
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif (name := path.relative_to(target).as_posix()) not in files:
            path.unlink()
            yield name


def forget_if_reshaped(source: Path, book: Path) -> None:
    """Start anew when the configuration, the extension or the list of pages changed."""
    stamp = book / "shape.txt"
    shape = shape_of(source)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != shape:
        shutil.rmtree(book, ignore_errors=True)
        book.mkdir(parents=True)
        stamp.write_text(shape, encoding="utf-8")


def shape_of(source: Path) -> str:
    """A hash of what shapes every page: settings, extension, pages, versions."""
    staged = files_of(source, lambda path: path.suffix != ".pyc")
    digest = hashlib.sha256("\n".join(staged).encode())
    for name, path in staged.items():
        if name.startswith(SHAPES_EVERY_PAGE):
            digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    for package in ("sphinx", "jupyter-book", "myst-nb", "sphinx-book-theme"):
        digest.update(installed_version(package).encode())
    return digest.hexdigest()


def installed_version(package: str) -> str:
    """The version of a package that the book needs."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise BuildError(
            f"{package} is not installed here. Run `python tools/setup_env.py` and use "
            "the environment that it makes."
        ) from None


def run_jupyter_book(
    source: Path, book: Path, results: Path, root: Path, show: bool
) -> None:
    """Run jupyter-book with warnings as errors.

    Raises
    ------
    BuildError
        With the lines of the output that name a problem.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(book)]
    command += ["-W", "-n", "--keep-going"]
    try:
        done = subprocess.run(
            command,
            env=environment(results, root),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except KeyboardInterrupt:
        # Sphinx may have been writing a page: the next build starts anew.
        (book / "shape.txt").unlink()
        raise
    (book / "build.log").write_text(done.stdout, encoding="utf-8")
    if show:
        print(done.stdout)
    if done.returncode or not (book / "_build/html/index.html").is_file():
        # A page that was read with a warning would not warn again: read it anew.
        (book / "shape.txt").unlink()
        raise BuildError("\n" + "\n".join(problems(done.stdout)))


def environment(results: Path, root: Path) -> dict[str, str]:
    """The environment of the build: our package on the path, where the results are."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MEDLM_RESULTS_DIR": str(results),
    }


def problems(output: str) -> list[str]:
    """The lines that say what is wrong, or the last lines where none does."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    found = [line for line in plain if PROBLEM.search(line)]
    return list(dict.fromkeys(found)) or plain[-15:]


def publish(html: Path, out: Path) -> None:
    """Make the folder `out` an exact copy of the site, ready to be served.

    Raises
    ------
    BuildError
        If `out` holds something that is not an earlier copy: nothing is deleted then.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise BuildError(
            f"{out} is not empty and not an earlier copy of the book (no {MARKER} in "
            "it). Name an empty or new folder after --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    marker = html / MARKER
    marker.touch()
    sync(files_of(html, lambda path: True), out)


if __name__ == "__main__":
    sys.exit(main())
