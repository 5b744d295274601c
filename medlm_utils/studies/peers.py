"""What studies share that train with the Trainer of `transformers` beside our loop.

Source: chapters 2 and 3.
"""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import torch

from medlm_utils.runtime import MedlmError


def check_accelerate() -> None:
    """Refuse at the start what the Trainer would refuse later.

    Raises
    ------
    MedlmError
        If the package accelerate is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MedlmError(
            "The Trainer of transformers needs the package accelerate, which is not "
            "installed. Run `python -m pip install accelerate`."
        )


def arguments(folder: str | Path, precision: str, device: str, **more: Any) -> Any:
    """Options of the Trainer: our precision and clipping, nothing reported or shown.

    Parameters
    ----------
    folder
        Where the Trainer may write.
    precision
        As in `training.autocast`.
    device
        ``"cpu"``, or one that the Trainer finds itself.
    more
        Further options of ``transformers.TrainingArguments``.
    """
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_grad_norm=1.0,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


class Watch:
    """The time from the start of one step to the end of the last, the GPU's too.

    Parameters
    ----------
    device
        ``"cuda"``, or one that has done its work when a call returns.
    """

    def __init__(self, device: str):
        self.device, self.started = device, math.nan

    def start(self) -> None:
        """Start to count, when all that was asked for before is done."""
        self.wait()
        self.started = time.perf_counter()

    def stop(self) -> float:
        """Seconds since the start."""
        self.wait()
        return time.perf_counter() - self.started

    def wait(self) -> None:
        """Until the GPU has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def timing(device: str, first: int, last: int) -> tuple[Any, list[float]]:
    """A callback of the Trainer that times its steps.

    Parameters
    ----------
    device
        Of the training.
    first, last
        How many steps are done when the time starts, and when it ends.

    Returns
    -------
    tuple
        The callback, and a list that gets the seconds.
    """
    from transformers import TrainerCallback

    watch, seconds = Watch(device), []

    class Timing(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == first:
                watch.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == last:
                seconds.append(watch.stop())

    return Timing(), seconds
