"""Where we run and how to run it again: profile, device, seed, result records.

Knows nothing about models, data or figures. A notebook calls `setup` first and `record`
last; everything between them is seeded, timed and written down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs


class MedlmError(RuntimeError):
    """An error of the reader's input or machine, with what to do about it."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Sizes, steps and precision of one kind of machine: one row of `PROFILES`."""

    name: str
    device: str  # torch device
    precision: str  # of training from chapter 2 on; "float16" on GPUs without bfloat16
    # chapter 1, attention
    attention_tokens: tuple[int, ...]  # sequence lengths whose time is measured
    attention_repeats: int  # timings a length; the shortest counts
    translator_steps: int  # training steps of the small encoder-decoder
    translator_batch: int  # sentences a step
    # chapter 2, a language model
    lm_patients: int  # whose notes are for training and validation
    lm_test_patients: int  # drawn anew for the test
    lm_d_model: int  # width of a token; the feed-forward part is three times as wide
    lm_blocks: int
    lm_batch: int  # notes a step
    lm_steps: int  # training steps
    # chapter 3, BERT
    mlm_d_model: int  # of the encoder that is pre-trained in small
    mlm_steps: int
    bert_patients: int  # whose notes are for training and validation
    bert_test_patients: int  # drawn anew for the test
    bert_epochs: int
    bert_looks: int  # at the validation notes, in an epoch
    bert_batch: int  # notes a step
    bert_dropout: float
    bert_explained: int  # notes that are taken apart, phrase by phrase
    # chapter 4, anomalies
    anomaly_points: int  # of the plane, for training and again for the test
    anomaly_patients: int  # usual ones, from whose notes detectors learn
    anomaly_test_patients: int  # usual ones in the test
    anomaly_odd_patients: int  # of each kind, in the test
    anomaly_draws: int  # of patients, for the intervals of the large table
    # chapter 5, lung CT
    ct_patients: int  # for training and validation
    ct_test_patients: int
    ct_epochs: int
    ct_batch: int  # slices a step


# The one dial. MEDLM_PROFILE chooses a row; a bigger machine means bigger numbers here.
PROFILES = {
    "cpu": Profile(
        name="cpu",
        device="cpu",
        precision="float32",
        attention_tokens=(128, 256, 512, 1024, 2048),
        attention_repeats=9,
        translator_steps=400,
        translator_batch=64,
        lm_patients=16_000,
        lm_test_patients=500,
        lm_d_model=64,
        lm_blocks=3,
        lm_batch=8,
        lm_steps=3000,
        mlm_d_model=64,
        mlm_steps=200,
        bert_patients=1250,
        bert_test_patients=400,
        bert_epochs=1,
        bert_looks=2,
        bert_batch=16,
        bert_dropout=0.0,
        bert_explained=18,
        anomaly_points=1000,
        anomaly_patients=900,
        anomaly_test_patients=300,
        anomaly_odd_patients=100,
        anomaly_draws=200,
        ct_patients=240,
        ct_test_patients=400,
        ct_epochs=1,
        ct_batch=32,
    ),
    "gpu": Profile(
        name="gpu",
        device="cuda",
        precision="bfloat16",
        attention_tokens=(1024, 2048, 4096, 8192, 16384),
        attention_repeats=20,
        translator_steps=1000,
        translator_batch=256,
        lm_patients=100_000,
        lm_test_patients=2000,
        lm_d_model=256,
        lm_blocks=6,
        lm_batch=64,
        lm_steps=4000,
        mlm_d_model=256,
        mlm_steps=2000,
        bert_patients=20_000,
        bert_test_patients=2000,
        bert_epochs=3,
        bert_looks=1,
        bert_batch=32,
        bert_dropout=0.1,
        bert_explained=100,
        anomaly_points=5000,
        anomaly_patients=6000,
        anomaly_test_patients=1500,
        anomaly_odd_patients=500,
        anomaly_draws=1000,
        ct_patients=2000,
        ct_test_patients=1000,
        ct_epochs=10,
        ct_batch=64,
    ),
}

SEED = 2017  # the year of "Attention is all you need"


# How figures look everywhere: readable on a phone, and for a colour-blind reader.
PLOTTING: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7'])",
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.6),
    "font.size": 11,
    "grid.alpha": 0.3,
    "image.cmap": "cividis",
    "savefig.bbox": "tight",
}

# How often a thread looks for new work before it sleeps. Small steps are half as fast
# again if it sleeps at once; far more often, and a busy machine stands still.
SPIN = "1000"

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as malloc.h of glibc numbers them

METRIC_FIELDS = ("value", "low", "high", "n", "unit")


@dataclasses.dataclass(frozen=True)
class _Run:
    """What `record` must know about the notebook that called `setup`."""

    notebook: str
    profile: Profile
    started: float


_run: _Run | None = None


def setup(notebook: str) -> Profile:
    """Seed, threads, profile and plotting for one notebook; prints one line.

    Parameters
    ----------
    notebook
        The notebook's file name without its ending, such as ``"01_attention"``.

    Returns
    -------
    Profile
        The row of `PROFILES` that this machine, or ``MEDLM_PROFILE``, asks for.

    Raises
    ------
    MedlmError
        If ``MEDLM_PROFILE`` names no profile, or ``gpu`` where there is no GPU.

    Source: contract of every notebook, book page "How to use this book".
    """
    global _run
    started = time.monotonic()
    stop_spinning()
    wanted = os.environ.get("MEDLM_PROFILE", "").strip().lower()
    profile, reason = choose_profile(wanted)
    seed_everything(SEED)
    use_all_cores()
    style_plots()
    _run = _Run(notebook, profile, started)
    print(
        f"medlm {own_version()}, profile {profile.name} ({reason}), "
        f"seed {SEED}{usual_duration(notebook, profile.name)}"
    )
    return profile


def stop_spinning() -> None:
    """Threads without work sleep at once and leave their core to others.

    Torch reads this when its first thread starts, so call it before. What the reader
    has set in ``GOMP_SPINCOUNT`` stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)


def choose_profile(wanted: str) -> tuple[Profile, str]:
    """The profile for this machine and the reason for it.

    Parameters
    ----------
    wanted
        ``"cpu"``, ``"gpu"``, or ``""`` for what the machine has.

    Raises
    ------
    MedlmError
        If `wanted` names no profile, or ``"gpu"`` where there is no GPU.
    """
    import torch

    if wanted not in ("", *PROFILES):
        raise MedlmError(
            f"MEDLM_PROFILE is {wanted!r}; expected one of {', '.join(PROFILES)}. "
            "Set it to one of these, or remove it to use what the machine has."
        )
    has_gpu = torch.cuda.is_available()
    if wanted == "gpu" and not has_gpu:
        raise MedlmError(
            "MEDLM_PROFILE is 'gpu', but torch finds no CUDA GPU. Set it to 'cpu', or "
            "on Colab choose Runtime > Change runtime type > GPU."
        )
    if wanted == "cpu" or not has_gpu:
        return PROFILES["cpu"], "MEDLM_PROFILE" if wanted else "no GPU found"
    # Cards before Ampere only emulate bfloat16, slowly.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    profile = dataclasses.replace(
        PROFILES["gpu"], precision="bfloat16" if native else "float16"
    )
    return profile, f"{torch.cuda.get_device_name()} found"


def fast_precision(profile: Profile) -> str:
    """The precision for large matrices: bfloat16 where a processor has units for them.

    Without such units (AMX) bfloat16 was slower than float32, though the processor has
    instructions for it: 0.8 times its speed in a step of training MiniLM, with AMX 1.6.

    Parameters
    ----------
    profile
        Of this run; on a GPU its own precision is the fast one.

    Returns
    -------
    str
        As in `training.autocast`.

    Source: chapter 3.
    """
    import torch

    needed = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = all(getattr(torch.cpu, name, bool)() for name in needed)
    is_faster = profile.device == "cpu" and native
    return "bfloat16" if is_faster else profile.precision


def checked_seed(seed: int, name: str = "seed") -> int:
    """The seed, refused where a generator does not take it.

    Parameters
    ----------
    seed
        NumPy's old generator takes the fewest.
    name
        Of what the reader has set.

    Raises
    ------
    MedlmError
        If it is not from 0 to 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise MedlmError(
            f"{name} is {seed}; expected a whole number from 0 to {2**32 - 1}."
        )
    return seed


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators; ask cuBLAS to repeat itself.

    Raises
    ------
    MedlmError
        As in `checked_seed`.
    """
    import torch

    checked_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def use_all_cores() -> None:
    """Let torch use every core this process may use, unless OMP_NUM_THREADS is set."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())


def keep_memory() -> bool:
    """Let this process keep the memory that large tensors free, for the next ones.

    The C library of Linux gives large blocks back at once. The next step of a training
    then gets them anew, page by page, which can take a third of its time. A process
    that keeps them needs more memory in all: for long studies, not for chapters.

    Returns
    -------
    bool
        Whether the C library is one that can be told so (glibc).

    Source: the manual of mallopt.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    no_own_blocks = mallopt(_M_MMAP_MAX, 0)
    return bool(no_own_blocks and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside a ``with`` block.

    Times of one core compare better, and tiny steps gain nothing from a second one.
    Source: chapter 1.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def style_plots() -> None:
    """Apply `PLOTTING` to matplotlib."""
    import matplotlib

    matplotlib.rcParams.update(PLOTTING)


def usual_duration(notebook: str, profile: str) -> str:
    """How long the recorded run took, as the end of a sentence, or nothing."""
    recorded = shipped_records() / profile / f"{notebook}.json"
    if not recorded.exists():
        return ""
    seconds = json.loads(recorded.read_text(encoding="utf-8"))["notebook_seconds"]
    return f", usually {approx(seconds, 2)} s"


def approx(value: float, digits: int = 3) -> str:
    """A number that may differ between machines, as text with a leading ≈.

    nbval masks what stands behind the ≈, so an assert beside it must hold the claim.

    Parameters
    ----------
    value
        Any real number.
    digits
        Significant digits, 1 to 4; a whole number (``int``) is shown without decimals.

    Raises
    ------
    ValueError
        If `digits` is not 1 to 4: more of them would promise what no run keeps.

    Examples
    --------
    >>> approx(0.12345), approx(1234.5), approx(2.3e-7, 2)
    ('≈0.123', '≈1230', '≈2.3e-07')
    """
    if not 1 <= digits <= 4:
        raise ValueError(f"digits is {digits}; expected 1 to 4.")
    if isinstance(value, int) and abs(value) < 10**digits:
        return f"≈{value}"
    value = float(value)
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0 or not 1e-4 <= abs(rounded) < 1e6:
        return f"≈{value:.{digits}g}"
    decimals = max(digits - 1 - int(np.floor(np.log10(abs(rounded)))), 0)
    return f"≈{rounded:.{decimals}f}"


def record(metrics: dict[str, float | dict[str, Any]]) -> Path:
    """Write the results of the running notebook and say how long it took.

    Parameters
    ----------
    metrics
        Name to value, or to a dictionary with ``value`` and any of ``low``, ``high``
        (interval), ``n`` (sample size), ``unit``.

    Returns
    -------
    Path
        The file written: ``<results>/<profile>/<notebook>.json``.

    Raises
    ------
    MedlmError
        If `setup` has not run, a metric has an unknown field or no finite value, or
        the folder of results cannot be written.
    """
    if _run is None:
        raise MedlmError("runtime.record() needs runtime.setup(): run the first cell.")
    seconds = time.monotonic() - _run.started
    content = results(metrics, seconds, _run.profile.device)
    path = results_dir() / _run.profile.name / f"{_run.notebook}.json"
    write_json(path, content)
    print_results(content)
    return path


def results(
    metrics: dict[str, float | dict[str, Any]], seconds: float, device: str
) -> dict[str, Any]:
    """What a record holds, of a notebook or of a study.

    Parameters
    ----------
    metrics
        As in `record`.
    seconds
        How long the run took.
    device
        The torch device that was used.

    Raises
    ------
    MedlmError
        If a metric has an unknown field or no finite value.
    """
    content: dict[str, Any] = {
        "metrics": {name: _metric(name, value) for name, value in metrics.items()},
        "notebook_seconds": round(seconds, 1),
        "peak_memory_gb": peak_memory_gb(),
        "hardware": hardware(device),
        "versions": versions(),
        "seed": SEED,
        "date": datetime.date.today().isoformat(),
    }
    return {name: value for name, value in content.items() if value is not None}


def print_results(content: dict[str, Any]) -> None:
    """Print a record: one line a metric, then how long the run took."""
    for name, metric in content["metrics"].items():
        print(f"{name:<37} {_in_words(metric)}")
    took = f"{approx(content['notebook_seconds'], 2)} s"
    if "peak_memory_gb" in content:
        took += f" and {approx(content['peak_memory_gb'], 2)} GB of memory"
    print(f"Recorded. This run took {took}.")


def _in_words(metric: dict[str, Any]) -> str:
    """Such as ``≈0.870 (≈0.790 to ≈0.930, n = 120) AUROC``."""
    words = approx(metric["value"])
    doubt = []
    if "low" in metric and "high" in metric:
        doubt.append(f"{approx(metric['low'])} to {approx(metric['high'])}")
    if "n" in metric:
        doubt.append(f"n = {metric['n']}")
    words += f" ({', '.join(doubt)})" if doubt else ""
    return f"{words} {metric.get('unit', '')}".rstrip()


def _metric(name: str, given: float | dict[str, Any]) -> dict[str, Any]:
    """One metric as the record stores it, checked."""
    fields = given if isinstance(given, dict) else {"value": given}
    unknown = sorted(set(fields) - set(METRIC_FIELDS))
    if unknown or "value" not in fields:
        raise MedlmError(
            f"Metric {name!r} has the fields {sorted(fields)}; expected 'value' and "
            f"any of {', '.join(METRIC_FIELDS[1:])}."
        )
    stored: dict[str, Any] = {}
    for field, value in fields.items():
        stored[field] = value if field == "unit" else _finite(name, field, value)
    return stored


def _finite(name: str, field: str, value: Any) -> float | int:
    """`value` as a plain Python number, refused when it is not finite."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise MedlmError(f"Metric {name!r}: {field} is {value!r}; expected a number.")
    if not np.isfinite(number):
        raise MedlmError(f"Metric {name!r}: {field} is {number}; expected it finite.")
    return number if isinstance(number, int) else float(f"{number:.6g}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON beside `path`, then rename, so that no half-written file stays.

    Raises
    ------
    MedlmError
        If the folder cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, as other processes may write too; and not of `tempfile`,
        # whose files nobody else may read.
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MedlmError(
            f"Cannot write {path}: {error.strerror}. Expected a folder with free space "
            "that you may write; set MEDLM_RESULTS_DIR to one."
        ) from error


def check_writable(folder: Path, advice: str) -> None:
    """Refuse at the start what would fail only at the end; makes the folder.

    Parameters
    ----------
    folder
        Into which something will be written.
    advice
        What to do where that cannot be, the end of the error's last sentence.

    Raises
    ------
    MedlmError
        If the folder cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name: several processes may look at the same time.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MedlmError(
            f"Cannot write into {folder}: {error.strerror}. Expected a folder with "
            f"free space that you may write; {advice}."
        ) from error


def results_dir() -> Path:
    """Where `record` writes: MEDLM_RESULTS_DIR, else a folder of this user's own."""
    named = os.environ.get("MEDLM_RESULTS_DIR")
    if named:
        return Path(named)
    return Path(platformdirs.user_data_dir("medlm", appauthor=False)) / "results"


def shipped_records() -> Path:
    """The records that come with the package: made by `make notebooks`."""
    return Path(__file__).parent / "recorded"


def study(name: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A recorded study, and what it says: numbers, date, machine, duration, command.

    Parameters
    ----------
    name
        As in ``python -m medlm_utils.studies.NAME``; ``NAME_gpu`` where a GPU made it.
    only
        The metrics that are printed; None: all of them.

    Returns
    -------
    dict
        The record: ``"metrics"`` as `record` takes them, ``"series"`` for figures, and
        how they were made.

    Raises
    ------
    MedlmError
        If no such study is recorded, or it has no such metric.

    Source: chapter 2.
    """
    folder = shipped_records() / "studies"
    path = folder / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise MedlmError(
            f"No study {name!r} is recorded; expected one of {known or 'none yet'}. "
            f"To make it: python -m medlm_utils.studies.{name}"
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(only or ()) - set(content["metrics"]))
    if unknown:
        raise MedlmError(
            f"The study {name!r} has no metric {unknown[0]!r}; it has "
            f"{', '.join(content['metrics'])}."
        )
    for key in content["metrics"] if only is None else only:
        print(f"{key:<37} {_in_words(content['metrics'][key])}")
    minutes = approx(content["notebook_seconds"] / 60, 2)
    print(f"Recorded {content['date']} on {content['hardware']} in {minutes} min.")
    print(f"Again: {content['command']}")
    return content


def peak_memory_gb() -> float | None:
    """The most memory this process has held so far, in GB; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)


def hardware(device: str) -> str:
    """The machine in words: cores and processor family, and the GPU that was used."""
    many = "core" if cores() == 1 else "cores"
    words = f"{cores()} {many}, {platform.machine()}"
    if device == "cuda":
        import torch

        words += f", {torch.cuda.get_device_name()}"
    return words


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("numpy", "torch", "transformers")
    own = {"python": platform.python_version(), "medlm-utils": own_version()}
    return own | {name: metadata.version(name) for name in names}


def own_version() -> str:
    """The version of this package, also where it is used without being installed."""
    try:
        return metadata.version("medlm-utils")
    except metadata.PackageNotFoundError:
        return "not installed"
