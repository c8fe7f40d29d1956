"""What a masked frame is to be told: k-means units of MFCCs or of a teacher's hidden states, then of the network's own (HuBERT,
arXiv 2106.07447)."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.architecture import FRAME_SAMPLES, MEL_HOP, RECEPTIVE_FIELD, SAMPLE_RATE, frame_count
from trainers.learning.batches import cut_at_speed
from trainers.learning.precision import autocast
from trainers.networks.encoder import SpeechEncoder, normalize
from trainers.speech.corpora import Corpus

MOST_UNITS = 2**15  # a file of units has 16 bits for each
Features = Callable[[Tensor], Tensor]  # (batch, samples) -> (batch, frames, channels)
Progress = Callable[[int, int], None]
BATCH = 64
FITTED_FRAMES = 300_000  # k-means sees so many; HuBERT's saw a tenth of its audio


@dataclass(frozen=True, kw_only=True)
class Utterances:
    """Clips at several speeds: pitch and tempo together, so that few speakers become more.

    rows, speeds: one entry an utterance (a speed of 1.1 is a shorter, higher clip). firsts: where its frames start, and their end.
    """

    corpus: Corpus
    rows: NDArray[np.int64]
    speeds: NDArray[np.float64]
    firsts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def frames(self) -> NDArray[np.int64]:
        """(utterances,)"""
        return np.diff(self.firsts)

    def audio(self, utterance: int, frame: int, window: int) -> NDArray[np.float32]:
        """(window,) samples of an utterance from a frame on (it may be negative), zeros outside."""
        speed = float(self.speeds[utterance])
        return cut_at_speed(self.corpus, int(self.rows[utterance]), round(frame * FRAME_SAMPLES * speed), window, speed)


def utterances(corpus: Corpus, split: str, speeds: tuple[float, ...]) -> Utterances:
    """Every clip of a split at every speed; clips too short for one frame are left out."""
    pairs = [(row, speed) for speed in speeds for row in corpus.rows(split)]
    counts = np.array([frame_count(int(corpus.length(int(row)) / speed)) for row, speed in pairs], np.int64)
    kept = [pair for pair, count in zip(pairs, counts) if count > 0]
    return Utterances(
        corpus=corpus,
        rows=np.array([row for row, _ in kept], np.int64),
        speeds=np.array([speed for _, speed in kept], float),
        firsts=np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64),
    )


def mfcc(x_bn: Tensor) -> Tensor:
    """(batch, samples) -> (batch, frames, 39): 13 MFCCs with first and second differences, each frame where the encoder's is."""
    transform = _mfcc_transform().to(x_bn.device)
    x_bft = transform(normalize(x_bn.float()))
    delta = torchaudio.functional.compute_deltas(x_bft)
    parts = [x_bft, delta, torchaudio.functional.compute_deltas(delta)]
    return torch.cat(parts, 1)[..., :: FRAME_SAMPLES // MEL_HOP].transpose(1, 2)


@functools.cache
def _mfcc_transform() -> torchaudio.transforms.MFCC:
    mel: dict[str, Any] = {"n_fft": RECEPTIVE_FIELD, "hop_length": MEL_HOP, "n_mels": 40, "center": False}
    return torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=13, log_mels=True, melkwargs=mel)


def hidden_state(encoder: SpeechEncoder, layer: int) -> Features:
    """The features of a layer of an encoder in evaluation mode, each frame where HuBERT's is: Whisper's, which are centred 200
    samples before, are those of the window from sample 200 on."""
    skipped = RECEPTIVE_FIELD // 2 if encoder.geometry.family == "whisper" else 0

    def features(x_bn: Tensor) -> Tensor:
        with autocast(x_bn.device):
            state_btw = next(itertools.islice(encoder.to(x_bn.device).states(x_bn[:, skipped:]), layer, None))
        return state_btw[:, : frame_count(x_bn.shape[1])].float()

    return features


def windows_of(clips: Utterances, window: int) -> Iterator[tuple[int, int, int]]:
    """(utterance, first frame, frames) of windows side by side that cover every frame once."""
    hop = frame_count(window)
    for utterance, frames in enumerate(clips.frames):
        for first in range(0, int(frames), hop):
            yield utterance, first, min(hop, int(frames) - first)


@torch.no_grad()
def feature_batches(
    clips: Utterances, features: Features, window: int, device: torch.device, picked: list[tuple[int, int, int]]
) -> Iterator[tuple[list[tuple[int, int, int]], list[NDArray[np.float32]]]]:
    """The features of windows, batch by batch: the windows, and for each (its frames, channels)."""
    for begin in range(0, len(picked), BATCH):
        batch = picked[begin : begin + BATCH]
        audio = torch.from_numpy(np.stack([clips.audio(utterance, first, window) for utterance, first, _ in batch]))
        computed = features(audio.to(device)).cpu().numpy()
        yield batch, [state[:frames] for state, (_, _, frames) in zip(computed, batch)]


def fit_units(
    clips: Utterances, features: Features, count: int, *, window: int, seed: int, device: torch.device
) -> NDArray[np.float32]:
    """Centroids (count, channels) by scikit-learn's mini-batch k-means on a seeded sample of windows.

    Raises ValueError when the corpus has fewer frames than units are wanted.
    """
    from sklearn.cluster import MiniBatchKMeans

    if clips.firsts[-1] < 10 * count:
        raise ValueError(f"{count} units need {10 * count} frames (20 ms each) of speech; the corpus has {clips.firsts[-1]}")
    every = list(windows_of(clips, window))
    wanted = np.random.default_rng(seed).permutation(len(every))[: max(1, FITTED_FRAMES * len(every) // int(clips.firsts[-1]))]
    sample = np.concatenate(
        [np.concatenate(found) for _, found in feature_batches(clips, features, window, device, [every[i] for i in wanted])]
    )
    kmeans = MiniBatchKMeans(count, batch_size=10_000, n_init=5, max_no_improvement=50, random_state=seed)
    centroids: NDArray[np.float32] = kmeans.fit(sample).cluster_centers_.astype(np.float32)
    return centroids


def assign_units(
    clips: Utterances,
    features: Features,
    centroids: NDArray[np.float32],
    path: Path,
    *,
    window: int,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Writes the nearest centroid of every frame, (frames of all utterances,) int16, to an .npy file, whole or not at all."""
    assert len(centroids) < MOST_UNITS
    part = path.with_suffix(".part.npy")
    units = np.lib.format.open_memmap(part, mode="w+", dtype=np.int16, shape=(int(clips.firsts[-1]),))
    centres = torch.from_numpy(centroids)
    every, done = list(windows_of(clips, window)), 0
    for batch, found in feature_batches(clips, features, window, device, every):
        for (utterance, first, frames), states in zip(batch, found):
            begin = clips.firsts[utterance] + first
            units[begin : begin + frames] = torch.cdist(torch.from_numpy(states), centres).argmin(1).numpy()
        done += len(batch)
        if progress:
            progress(done, len(every))
    units.flush()
    part.replace(path)
