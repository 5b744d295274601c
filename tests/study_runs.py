"""Running a study in small, for the tests of each."""

import json

from medlm_utils import runtime
from medlm_utils.studies import core


def run_tiny(module, folder, *more):
    """The record of a tiny run of a study's module, made in a folder of the test."""
    options = ["--tiny", "--out", str(folder), "--work", str(folder / "work"), *more]
    assert module.main(options) == 0
    name = module.__name__.rpartition(".")[2]
    path = folder / "studies" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def a_study(folder, name="example", tiny=False, profile="cpu"):
    """A study whose work and record lie in a folder of the test."""
    record = folder / f"{name}.json"
    return core.Study(name, runtime.PROFILES[profile], tiny, folder, record)


def tracked():
    """What lies in the folder of the studies' records, with its times."""
    files = (runtime.shipped_records() / "studies").rglob("*")
    return {path: path.stat().st_mtime_ns for path in files}
