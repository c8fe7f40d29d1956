"""A training that can go on: weights, the optimizer's state and the generators' in one safetensors file, with where it stood."""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
GENERATORS = "generator."
BESIDE = "beside."
CHECKPOINT_ASKED = "ending"  # a file beside the folders of checkpoints: whoever trains is to write one now
ASKING = 0.5  # seconds between two looks for it
FORMAT = 1  # of the files; those of before it was written down have none
ABOUT = ("format", "tensors")  # of a file's metadata, what is about the file
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
Beside = Callable[[], Mapping[str, Tensor]]


class PassedOver(UserWarning):
    """A checkpoint that is of no use: what it was of begins anew."""


@dataclass(kw_only=True)
class Checkpoint:
    """A file that one training is kept in by time, so that an interruption loses no more than that. A short one writes none.

    of: a number of all that the training depends on. The file of another one is passed over, and overwritten. beside: tensors that
    were kept beside the training's own, when it was read.
    """

    path: Path
    of: int
    clock: Callable[[], float] = time.monotonic
    beside: Mapping[str, Tensor] = field(init=False, default_factory=dict)
    written: float = field(init=False)
    looked: float = field(init=False)
    was_asked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.written = self.looked = self.clock()

    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int | None:
        """Into what trains; returns the steps that are done. What follows is then what would have followed.

        None where there is no file, or one of another training; where it is damaged or of another version, with a warning.
        """
        position = kept_position(self.path)
        if position.get("of") != self.of:
            return None
        try:
            generators, beside = _read_generators(self.path), _read_named(self.path, BESIDE)
            read_state(self.path, model, optimizer, device)
        except (ValueError, SafetensorError) as error:
            _pass_over(self.path, error)
            return None
        _set_generators(generators, device)
        self.beside = beside
        return position["steps"]

    def keep(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, beside: Beside = dict) -> None:
        """Writes it where the last time is long ago, or where it is asked for, once. beside: asked for where it is written."""
        if self.clock() - self.written >= interval() or self._is_asked():
            self.write(model, optimizer, steps, beside())

    def _is_asked(self) -> bool:
        if self.was_asked or self.clock() - self.looked < ASKING:
            return False
        self.looked = self.clock()
        self.was_asked = (self.path.parent.parent / CHECKPOINT_ASKED).exists()
        return self.was_asked

    def write(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, beside: Mapping[str, Tensor] = NOTHING) -> None:
        write_state(self.path, model, optimizer, {"steps": steps, "of": self.of}, beside)
        self.written = self.clock()


def interval() -> float:
    """Seconds between two checkpoints. The environment's SRLNAS_CHECKPOINT_SECONDS changes it: for a slow disk, and for tests."""
    return float(os.environ.get("SRLNAS_CHECKPOINT_SECONDS", "30"))


def write_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, int],
    beside: Mapping[str, Tensor] = NOTHING,
) -> None:
    """Renamed into place when on disk."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS:
            if parameter in optimizer.state:  # nothing has changed a parameter without a gradient
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors |= {GENERATORS + name: state for name, state in _generators(next(model.parameters()).device).items()}
    tensors |= {BESIDE + name: value for name, value in beside.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")  # two workers may write the same
    where = {name: str(value) for name, value in {**position, "format": FORMAT, "tensors": len(tensors)}.items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata=where)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_position(path: Path) -> dict[str, int]:
    """Empty where there is no file yet. Raises ValueError when it is damaged, or of another version."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            position = {name: int(value) for name, value in file.metadata().items()}
            tensors = len(file.keys())
    except (SafetensorError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it to begin anew ({error})") from None
    if (version := position.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"{path} is of version {version}, this reads {FORMAT}: remove it to begin anew")
    if position.get("tensors", tensors) != tensors:
        raise ValueError(f"{path} is damaged: remove it to begin anew ({tensors} tensors of {position['tensors']})")
    return {name: value for name, value in position.items() if name not in ABOUT}


def kept_position(path: Path) -> dict[str, int]:
    """As `read_position`, of a file that this training wrote itself: one that is damaged, or of another version, is taken away with
    a warning (`PassedOver`), as if it had not been."""
    try:
        return read_position(path)
    except ValueError as error:
        _pass_over(path, error)
        return {}


def _pass_over(path: Path, error: Exception) -> None:
    reason = str(error).removeprefix(f"{path} ").replace(": remove it to begin anew", "")
    warnings.warn(f"{path} {reason}: passed over, what it was of begins anew", PassedOver, stacklevel=3)
    path.unlink(missing_ok=True)


def read_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Into the model and the optimizer; torch's generators stay as they are. Raises ValueError, and changes neither, where the file
    has not all that they need."""
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: remove it to begin anew ({error})") from None
    weights = {name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")}
    parameters = {name: p for name, p in model.named_parameters() if any(f"{moment}.{name}" in tensors for moment in MOMENTS)}
    wanted = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    wanted |= {f"{moment}.{name}": p.shape for name, p in parameters.items() for moment in MOMENTS[1:]}
    wanted |= {f"{MOMENTS[0]}.{name}": torch.Size() for name in parameters}
    if wrong := [name for name, shape in wanted.items() if name not in tensors or tensors[name].shape != shape]:
        raise ValueError(f"{path} is damaged: remove it to begin anew ({wrong[0]} is missing or of another size)")
    model.load_state_dict(weights)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, which dropout draws from, (bytes,) each."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _read_generators(path: Path) -> dict[str, Tensor]:
    """Raises SafetensorError where that of the CPU is missing."""
    return _read_named(path, GENERATORS, "cpu")


def _read_named(path: Path, prefix: str, *wanted: str) -> dict[str, Tensor]:
    """The tensors of a prefix, without it, on the CPU. Raises SafetensorError where one that is wanted is missing."""
    with safe_open(path, "pt") as file:
        kept = list(file.keys())
        names = {name.removeprefix(prefix) for name in kept if name.startswith(prefix)}
        return {name: file.get_tensor(prefix + name) for name in {*wanted, *names}}


def restore_generators(path: Path, device: torch.device) -> None:
    """As they were when the file was written."""
    _set_generators(_read_generators(path), device)


def _set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:  # it may go on on another device
        torch.cuda.set_rng_state(states["cuda"], device)
