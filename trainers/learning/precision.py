"""Which device trains, in which precision, and whether its steps are compiled."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch

COMPILED_STEPS = 1000  # a training of fewer has no time to win back what the compiler takes
Result = TypeVar("Result")


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it (GPUs; CPUs with AVX512-BF16 or AMX), else float32. Weights stay float32.

    The environment's SRLNAS_PRECISION=float32 keeps float32 everywhere: to compare, and to see what an older CPU would do.
    """
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    fast = fast and os.environ.get("SRLNAS_PRECISION") != "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def compiled(forward: Callable[..., Result], device: torch.device, steps: int) -> Callable[..., Result]:
    """The same function, its kernels fused where a long training on a GPU calls it. All its batches have one shape."""
    return torch.compile(forward, dynamic=False) if device.type == "cuda" and steps >= COMPILED_STEPS else forward
