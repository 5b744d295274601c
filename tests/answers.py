"""What the tests of every chapter's checkers share: solutions and cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

SOLUTIONS = Path(__file__).resolve().parent.parent / "notebooks" / "solutions"


def solution_of(notebook, name):
    """The function of an exercise as a solutions notebook has it."""
    path = SOLUTIONS / f"{notebook}.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["metadata"].get("medlm") == {"exercise": name, "role": "solution"}:
            scope = {"torch": torch, "math": math, "np": np}
            exec("".join(cell["source"]), scope)
            return scope[name]
    raise LookupError(name)


def flat(cases):
    """(name, number, case) for every case, for parametrize."""
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, found in cases.items()
        for number, case in enumerate(found)
    ]
