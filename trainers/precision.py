"""Which device trains, and in which precision."""

import torch


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it (GPUs; CPUs with AVX512-BF16 or AMX), else float32. Weights stay float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
