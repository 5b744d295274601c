"""What holds for every test: one thread, no window, no tracked file written."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # small models: a second thread only spins
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(autouse=True)
def results_elsewhere(tmp_path, monkeypatch):
    """A test that records writes into its own folder."""
    monkeypatch.setenv("MEDLM_RESULTS_DIR", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the project."""
    return ROOT


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The machine of the test has no GPU, whatever it has."""
    monkeypatch.setenv("MEDLM_PROFILE", "cpu")
