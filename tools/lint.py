"""Everything that can be said of the project without running it: all checks in turn.

python tools/lint.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ["medlm_utils", "tools", "tests", "book/_ext"]
WORDS = [*CODE, "book", "notebooks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
CHECKS = {
    "style": ["-m", "ruff", "check", *CODE, "notebooks"],
    "layout": ["-m", "ruff", "format", "--check", *CODE],
    "types": ["-m", "mypy"],
    "spelling": ["-m", "codespell_lib", *WORDS],
    "notebook structure": ["tools/check_structure.py"],
    "exercises derived": ["tools/exercises.py", "--check"],
    "book": ["tools/build_book.py", "--build-folder", "_build/lint"],
    "links": ["tools/check_links.py", "_build/lint/html"],
}


def main() -> int:
    failed = []
    for name, command in CHECKS.items():
        print(f"-- {name}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(name)
    print(f"lint failed: {', '.join(failed)}" if failed else "lint passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
