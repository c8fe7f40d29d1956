"""What the student predicts: the teacher's hidden states for a seeded list of windows, cached on disk or computed as needed."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.architecture import FRAME_SAMPLES
from trainers.learning.batches import cut
from trainers.learning.precision import autocast
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

Mode = Literal["auto", "cached", "online"]
Progress = Callable[[int, int], None]
BATCH = 32
FREE_SHARE = 0.5  # `auto` fills at most this share of the free disk


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Windows (clip `rows`, `starts` in samples, both (windows,)) and the states of `layers` in each.

    states: (windows, layers, frames, teacher width) float16, mapped; None when the teacher computes them in every batch.
    """

    corpus: Corpus
    teacher: Teacher
    window: int
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    states: NDArray[np.float16] | None

    def audio(self, picked: NDArray[np.integer]) -> NDArray[np.float32]:
        """(picked, window) clean samples."""
        return np.stack([cut(self.corpus, int(self.rows[i]), int(self.starts[i]), self.window) for i in picked])

    def batch(self, picked: NDArray[np.integer], device: torch.device) -> list[Tensor]:
        """For each predicted layer (picked, frames, teacher width) float32."""
        if self.states is not None:
            return list(torch.from_numpy(self.states[picked]).to(device).float().unbind(1))
        return teacher_states(self.teacher, torch.from_numpy(self.audio(picked)).to(device))


@torch.no_grad()
def teacher_states(teacher: Teacher, audio_bn: Tensor) -> list[Tensor]:
    """The predicted layers' hidden states, each (batch, frames, teacher width) float32."""
    encoder = teacher.encoder.to(audio_bn.device)
    with autocast(audio_bn.device):
        states = encoder(audio_bn)
    return [states[layer].float() for layer in teacher.predicted_layers]


def choose_windows(corpus: Corpus, window: int, limit: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A seeded list of at most `limit` windows of the train split that do not overlap: clip rows and starts (windows,), in
    corpus order so that disk is read forward. Starts are multiples of 320 samples: frames lie where they lie in the clip."""
    hop = window // FRAME_SAMPLES * FRAME_SAMPLES
    pairs = [
        (int(row), start) for row in corpus.rows("train") for start in range(0, max(1, corpus.length(int(row)) - hop + 1), hop)
    ]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit])
    rows, starts = np.array([pairs[i] for i in chosen], dtype=np.int64).T
    return rows, starts


def cache_bytes(teacher: Teacher, window: int, windows: int) -> int:
    return windows * len(teacher.predicted_layers) * teacher.geometry.frames(window) * teacher.architecture.width * 2


def prepare_targets(
    teacher: Teacher,
    corpus: Corpus,
    cache: Path,
    *,
    window: int,
    limit: int,
    seed: int,
    mode: Mode = "auto",
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Targets:
    """Chooses the windows and, unless `online`, caches their states below `cache` (once for every teacher, corpus and list)."""
    rows, starts = choose_windows(corpus, window, limit, seed)
    targets = Targets(corpus=corpus, teacher=teacher, window=window, rows=rows, starts=starts, states=None)
    identity = [teacher.digest, corpus.digest, window, limit, seed, teacher.predicted_layers]
    path = cache / "targets" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.npy"
    if mode == "auto" and not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        fits = cache_bytes(teacher, window, len(rows)) <= FREE_SHARE * shutil.disk_usage(cache).free
        mode = "cached" if fits else "online"
    if mode == "online":
        return targets
    if not path.is_file():
        _write_states(targets, path, device or torch.device("cpu"), progress)
    states = np.load(path, mmap_mode="r")
    return Targets(corpus=corpus, teacher=teacher, window=window, rows=rows, starts=starts, states=states)


def _write_states(targets: Targets, path: Path, device: torch.device, progress: Progress | None) -> None:
    """Renamed into place when complete: an interrupted cache is made again, never read."""
    teacher, count = targets.teacher, len(targets.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (count, len(teacher.predicted_layers), teacher.geometry.frames(targets.window), teacher.architecture.width)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        states = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        for first in range(0, count, BATCH):
            picked = np.arange(first, min(first + BATCH, count))
            computed = targets.batch(picked, device)
            states[picked] = torch.stack(computed, 1).half().cpu().numpy()
            if progress:
                progress(int(picked[-1]) + 1, count)
        states.flush()
        unfinished.replace(path)
