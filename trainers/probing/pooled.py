"""What a probe reads: hidden states pooled over windows, of a teacher, an untrained copy of it, or log-mels."""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.learning.batches import cut, window_starts
from trainers.networks.encoder import SpeechEncoder, normalize
from trainers.networks.log_mel import LogMel
from trainers.scoring.draw import MOST_WINDOWS
from trainers.scoring.scoring import BATCH
from trainers.speech.corpora import Corpus
from trainers.speech.trials import Trials
from trainers.teacher.teacher import Teacher

Ints = NDArray[np.integer]
Progress = Callable[[int, int], None]
LAYOUT = "mean and deviation, float32"  # of the cached features; part of their key


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is probed. key: the same for the same function. states: (batch, samples) -> some of (batch, frames, width)."""

    name: str
    key: str
    states: Callable[[Tensor], Sequence[Tensor]]


def teacher_subject(teacher: Teacher) -> Subject:
    return _subject(teacher.name, teacher.digest, teacher.encoder)


def random_subject(teacher: Teacher, seed: int = 0) -> Subject:
    """An untrained network of the teacher's architecture: what the architecture gives by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SpeechEncoder(teacher.architecture, teacher.encoder.geometry).eval()
    return _subject("random copy", f"random {seed} {teacher.architecture.to_json()} {teacher.encoder.geometry.to_json()}", encoder)


def log_mel_subject() -> Subject:
    """80 log-mel energies of the normalised window (without normalisation keyword accuracy fell by two points)."""
    mel = LogMel()
    return Subject(name="log-mel", key="log-mel", states=lambda audio_bn: [mel.to(audio_bn.device)(normalize(audio_bn))])


def _subject(name: str, key: str, encoder: SpeechEncoder) -> Subject:
    return Subject(name=name, key=key, states=lambda audio_bn: encoder.to(audio_bn.device)(audio_bn))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every subject is probed on: a corpus, the trials of val and test, the window in samples, the seeds of the probes."""

    corpus: Corpus
    trials: Mapping[str, Trials]
    window: int
    seeds: tuple[int, ...]

    @functools.cached_property
    def rows(self) -> Ints:
        """The clips that are heard, rising: those with a keyword, of a known speaker or in a trial."""
        rows = [self.corpus.rows(with_keyword=True), self.corpus.rows(with_speaker=True)]
        return np.unique(np.concatenate([*rows, *(side for t in self.trials.values() for side in (t.enrol, t.test))]))

    @functools.cached_property
    def windows(self) -> list[tuple[int, int]]:
        """(clip, first sample) of every window, clips rising; at most 20 a clip, as in scoring."""
        return [
            (int(row), start)
            for row in self.rows
            for start in window_starts(self.corpus.length(int(row)), self.window)[:MOST_WINDOWS]
        ]

    @functools.cached_property
    def clips(self) -> Ints:
        """(windows,) the clip of each window."""
        return np.array([row for row, _ in self.windows])


def pooled_states(
    subject: Subject, bench: Bench, cache: Path, device: torch.device, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Mean and deviation over time of every state in every window, (states, windows, 2 x width) float32, mapped from disk.

    Computed once below `cache` for each subject, corpus, window and choice of clips. In float32: bfloat16 is no faster on CPUs
    (331 s against 208 s for one teacher), and features must not depend on the machine that filled the cache.
    """
    rows = hashlib.sha256(bench.rows.astype("<i8").tobytes()).hexdigest()
    identity = json.dumps([LAYOUT, MOST_WINDOWS, subject.key, bench.corpus.digest, bench.window, rows])
    path = cache / "probe" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # renamed into place when complete
            _write_states(subject, bench, Path(folder) / path.name, device, progress)
            (Path(folder) / path.name).replace(path)
    states: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return states


@torch.inference_mode()
def _write_states(subject: Subject, bench: Bench, path: Path, device: torch.device, progress: Progress | None) -> None:
    file = None
    for first in range(0, len(bench.windows), BATCH):
        part = bench.windows[first : first + BATCH]
        audio = np.stack([cut(bench.corpus, row, start, bench.window) for row, start in part])
        states = subject.states(torch.from_numpy(audio).to(device))
        pooled = torch.stack([torch.cat([s.mean(1), s.std(1, correction=0)], -1) for s in states]).cpu().numpy()
        if file is None:
            shape = (len(pooled), len(bench.windows), pooled.shape[-1])
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        file[:, first : first + len(part)] = pooled
        if progress:
            progress(first + len(part), len(bench.windows))
    assert file is not None
    file.flush()
