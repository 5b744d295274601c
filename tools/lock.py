"""Pin every dependency of pyproject.toml with its hashes.

    python tools/lock.py [--upgrade]

requirements.lock holds all extras; requirements-book.lock holds the extra `book` alone,
at the same versions. environment.yml is written from pyproject.toml too. No index
address is stored in any of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = [
    sys.executable,
    "-m",
    "uv",
    "pip",
    "compile",
    "--quiet",
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-annotate",
    "--custom-compile-command",
    "make lock",
]


def environment_yml(project: dict) -> str:
    """The text of environment.yml: Python from conda, the rest from pyproject.toml."""
    extras = ",".join(sorted(project["optional-dependencies"]))
    return (
        "# Written by `make lock` from pyproject.toml: edit that file, not this one.\n"
        "name: medlm\n"
        "channels:\n  - conda-forge\n"
        "dependencies:\n"
        f"  - python{project['requires-python']}\n"
        "  - pip\n"
        "  - make\n"
        "  - pip:\n"
        f"      - -e .[{extras}]\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions"
    )
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    subprocess.run(
        [
            *COMPILE,
            *upgrade,
            "pyproject.toml",
            "--all-extras",
            "-o",
            "requirements.lock",
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "book.in"
        wanted.write_text("\n".join(project["optional-dependencies"]["book"]) + "\n")
        subprocess.run(
            [
                *COMPILE,
                str(wanted),
                "-c",
                "requirements.lock",
                "-o",
                "requirements-book.lock",
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    (ROOT / "environment.yml").write_text(environment_yml(project))


if __name__ == "__main__":
    main()
