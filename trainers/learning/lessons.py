"""What students are fitted on: a lesson of their teacher's, made once for a teacher and its speech."""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.learning.targets import Targets
from trainers.networks.fitting import Lesson, listen

LISTS = ("sums", "orders", "streams")


def prepare_lesson(targets: Targets, windows: int, device: torch.device, cache: Path) -> Path:
    """A file below the cache with the lesson of so many of the targets' windows, always the same ones; made where it is missing."""
    path = cache / "lessons" / f"{_name(targets, windows)}.safetensors"
    if not path.is_file():
        audio_bn = torch.from_numpy(targets.audio(fitting_windows(targets, windows))).to(device)
        _write(path, listen(targets.teacher.encoder.to(device), audio_bn))
    return path


def fitting_windows(targets: Targets, count: int) -> NDArray[np.int64]:
    """Their numbers among the targets'."""
    return np.random.default_rng(0).permutation(len(targets.rows))[:count]


def _name(targets: Targets, windows: int) -> str:
    picked = fitting_windows(targets, windows)
    heard = [targets.rows[picked].tolist(), targets.starts[picked].tolist(), targets.window]
    what = [version("srlnas"), targets.teacher.digest, targets.corpus.digest, heard]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _write(path: Path, lesson: Lesson) -> None:
    """Whole or not at all; of two that make it at once, the later one stays."""
    tensors = {"audio": lesson.audio, "front": lesson.front, "convolved": lesson.convolved}
    tensors |= {f"{name}.{i}": tensor for name in LISTS for i, tensor in enumerate(getattr(lesson, name))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(path)


def read_lesson(path: Path, device: torch.device) -> Lesson:
    tensors = load_file(path, device=str(device))

    def listed(name: str) -> tuple[Tensor, ...]:
        return tuple(tensors[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in tensors)))

    return Lesson(
        audio=tensors["audio"],
        front=tensors["front"],
        convolved=tensors["convolved"],
        sums=listed("sums"),
        orders=listed("orders"),
        streams=listed("streams"),
    )
