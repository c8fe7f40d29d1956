"""A training that can go on: weights and both moments of AdamW in one safetensors file, with where it stood."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def write_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: Mapping[str, int]) -> None:
    """Renamed into place when on disk."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS:
            if parameter in optimizer.state:  # nothing has changed a parameter without a gradient
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")  # two workers may write the same
    where = {name: str(value) for name, value in position.items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata=where)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_position(path: Path) -> dict[str, int]:
    """Empty where there is no file yet. Raises ValueError when it is damaged."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return {name: int(value) for name, value in file.metadata().items()}
    except (SafetensorError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it to begin anew ({error})") from None


def read_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, step: int) -> None:
    """Into the model and the optimizer, which has made `step` steps."""
    tensors = load_file(path, device=str(device))
    model.load_state_dict({name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step), device=device), **moments}
