"""What the student predicts: the teacher's hidden states for a seeded list of windows, cached on disk or computed as needed."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
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
Windows = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and starts
BATCH = 32
FEWEST = 256  # windows: what students are fitted on
WORTH_MORE = 1.5  # times as many windows as the cache has, before it is extended for a budget that could be a little larger
FREE_SHARE = 0.5  # `auto` fills at most this share of the free disk


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Windows (clip `rows`, `starts` in samples, both (windows,)) and the states of `layers` in each.

    states: (windows of the cache, layers, frames, teacher width) float16, mapped; None when the teacher computes them anew.
    places: (windows,) of each window in the cache, which may hold more.
    """

    corpus: Corpus
    teacher: Teacher
    window: int
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    states: NDArray[np.float16] | None
    places: NDArray[np.intp] | None = None

    def audio(self, picked: NDArray[np.integer]) -> NDArray[np.float32]:
        """(picked, window) clean samples."""
        return np.stack([cut(self.corpus, int(self.rows[i]), int(self.starts[i]), self.window) for i in picked])

    def batch(self, picked: NDArray[np.integer], device: torch.device) -> list[Tensor]:
        """For each predicted layer (picked, frames, teacher width) float32."""
        if self.states is not None:
            at = picked if self.places is None else self.places[picked]
            return list(torch.from_numpy(self.states[at]).to(device).float().unbind(1))
        return teacher_states(self.teacher, torch.from_numpy(self.audio(picked)).to(device))


@torch.no_grad()
def teacher_states(teacher: Teacher, audio_bn: Tensor) -> list[Tensor]:
    """The predicted layers' hidden states, each (batch, frames, teacher width) float32."""
    encoder = teacher.encoder.to(audio_bn.device)
    with autocast(audio_bn.device):
        states = encoder(audio_bn)
    return [states[layer].float() for layer in teacher.predicted_layers]


def choose_windows(corpus: Corpus, window: int, limit: int, seed: int) -> Windows:
    """A seeded list of at most `limit` windows of the train split that do not overlap: clip rows and starts (windows,), in
    corpus order so that disk is read forward. Starts are multiples of 320 samples: frames lie where they lie in the clip. A larger
    limit's list holds a smaller one's."""
    hop = window // FRAME_SAMPLES * FRAME_SAMPLES
    pairs = [
        (int(row), start) for row in corpus.rows("train") for start in range(0, max(1, corpus.length(int(row)) - hop + 1), hop)
    ]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit])
    rows, starts = np.array([pairs[i] for i in chosen], dtype=np.int64).T
    return rows, starts


def _places(smaller: Windows, larger: Windows) -> NDArray[np.intp]:
    """(windows of the smaller list,): where each, (rows, starts), stands in the larger one that holds it."""
    at = {pair: place for place, pair in enumerate(zip(*(of.tolist() for of in larger), strict=True))}
    return np.array([at[pair] for pair in zip(*(of.tolist() for of in smaller), strict=True)], np.intp)


def cache_bytes(teacher: Teacher, window: int, windows: int) -> int:
    return windows * len(teacher.predicted_layers) * teacher.geometry.frames(window) * teacher.architecture.width * 2


class _Cache:
    """Files of states below a folder, `TEACHER-AND-CORPUS-WINDOWS.npy`, one for each limit that was asked for."""

    def __init__(self, teacher: Teacher, corpus: Corpus, cache: Path, window: int, seed: int) -> None:
        self.corpus, self.window, self.seed, self.folder = corpus, window, seed, cache / "targets"
        identity = [teacher.digest, corpus.digest, window, seed, teacher.predicted_layers]
        self.stem = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def path(self, windows: int) -> Path:
        return self.folder / f"{self.stem}-{windows}.npy"

    def windows(self) -> list[int]:
        """Of each file, rising."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{self.stem}-*.npy"))

    def serving(self, windows: int) -> int | None:
        """The size of the smallest file that has so many."""
        return next((found for found in self.windows() if found >= windows), None)

    def places(self, smaller: int, larger: int) -> NDArray[np.intp]:
        first, second = (choose_windows(self.corpus, self.window, limit, self.seed) for limit in (smaller, larger))
        return _places(first, second)


def affordable_windows(
    teacher: Teacher,
    corpus: Corpus,
    cache: Path,
    *,
    window: int,
    limit: int,
    seed: int,
    seconds: float,
    device: torch.device,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """How many windows' states, at most `limit`, the teacher computes in so many seconds, by the pace of its first batches: whole
    steps of FEWEST windows, one at least. What a cache has is taken as it is; it grows only where that is worth it, so that
    studies of like budgets hear the same windows."""
    found = _Cache(teacher, corpus, cache, window, seed)
    rows, starts = choose_windows(corpus, window, limit, seed)
    count, has = len(rows), max(found.windows(), default=0)
    if has >= count or count <= FEWEST:
        return limit
    targets = Targets(corpus=corpus, teacher=teacher, window=window, rows=rows, starts=starts, states=None)
    for first in (0, BATCH):  # the first one fills caches
        started = now()
        targets.batch(np.arange(first, first + BATCH) % count, device)
    possible = int(seconds * BATCH / max(now() - started, 1e-9))
    if possible >= count:
        return limit
    return has if possible < WORTH_MORE * has else max(FEWEST, possible // FEWEST * FEWEST)


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
    """Chooses the windows and, unless `online`, caches their states below `cache`: once for every teacher and corpus, as a larger
    cache serves a smaller list and grows out of a smaller one."""
    rows, starts = choose_windows(corpus, window, limit, seed)
    targets, found = Targets(corpus=corpus, teacher=teacher, window=window, rows=rows, starts=starts, states=None), len(rows)
    files = _Cache(teacher, corpus, cache, window, seed)
    if mode == "auto" and files.serving(found) is None:
        cache.mkdir(parents=True, exist_ok=True)
        fits = cache_bytes(teacher, window, found) <= FREE_SHARE * shutil.disk_usage(cache).free
        mode = "cached" if fits else "online"
    if mode == "online":
        return targets
    if files.serving(found) is None:
        _write_states(targets, files, device or torch.device("cpu"), progress)
    has = files.serving(found)
    assert has is not None, "it was written"
    states = np.load(files.path(has), mmap_mode="r")
    return dataclasses.replace(targets, states=states, places=None if has == found else files.places(found, has))


def _write_states(targets: Targets, files: _Cache, device: torch.device, progress: Progress | None) -> None:
    """Renamed into place when complete: an interrupted cache is made again, never read. What a smaller one has is taken from it."""
    teacher, count = targets.teacher, len(targets.rows)
    path, smaller = files.path(count), max(files.windows(), default=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (count, len(teacher.predicted_layers), teacher.geometry.frames(targets.window), teacher.architecture.width)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        states = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        missing = np.ones(count, bool)
        if smaller:
            known = files.places(smaller, count)
            states[known], missing[known] = np.load(files.path(smaller), mmap_mode="r"), False
        left = np.flatnonzero(missing)
        for first in range(0, len(left), BATCH):
            picked = left[first : first + BATCH]
            computed = targets.batch(picked, device)
            states[picked] = torch.stack(computed, 1).half().cpu().numpy()
            if progress:
                progress(count - len(left) + first + len(picked), count)
        states.flush()
        unfinished.replace(path)
