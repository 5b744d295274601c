"""Numbers as another processor would give them, from the same notebook.

Two processors round differently. Training makes a large difference of it: after a few
hundred steps hardly a digit is the same, and whatever is printed without ≈ must not
depend on it. `run_notebooks.py --validate --shake SEED` sets ``MEDLM_SHAKE``, and then
the first step of every optimizer moves each weight by about a millionth of itself. With
an odd SEED the libraries also choose their code for processors without AVX-512.
"""

import importlib.abc
import os
import sys
from typing import Any

AMOUNT = 1e-6

# To be set before the libraries are loaded: in the environment of the kernel.
OLDER_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}


def environment(seed: int) -> dict[str, str]:
    """What a kernel that is to be shaken needs in its environment."""
    return {"MEDLM_SHAKE": str(seed)} | (OLDER_PROCESSOR if seed % 2 else {})


def shake(seed: int) -> None:
    """Move weights at each optimizer's first step; with an odd seed, no bfloat16."""
    import torch
    from torch.optim import optimizer

    def after_step(stepped: torch.optim.Optimizer, *_: Any) -> None:
        if getattr(stepped, "is_shaken", False):
            return
        stepped.is_shaken = True  # type: ignore[attr-defined]
        taken = [state.get("step", 1) for state in stepped.state.values()]
        if max(taken, default=1) > 1:
            return  # it goes on from a checkpoint, whose weights were moved
        # The same for all: two runs that must agree on one machine still do.
        random = torch.Generator().manual_seed(seed)
        for group in stepped.param_groups:
            for weights in group["params"]:
                noise = torch.randn(weights.shape, generator=random)
                with torch.no_grad():
                    weights.mul_(1 + AMOUNT * noise.to(weights.device))

    optimizer.register_optimizer_step_post_hook(after_step)
    if seed % 2:
        torch.cpu._is_avx512_bf16_supported = lambda: False


class BeforeMedlm(importlib.abc.MetaPathFinder):
    """Shakes when the notebook first imports `medlm_utils`, which finds itself then."""

    def __init__(self, seed: int):
        self.seed = seed

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "medlm_utils":
            sys.meta_path.remove(self)
            shake(self.seed)


if os.environ.get("MEDLM_SHAKE"):
    sys.meta_path.insert(0, BeforeMedlm(int(os.environ["MEDLM_SHAKE"])))
