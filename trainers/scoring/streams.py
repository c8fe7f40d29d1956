"""Streams of speech in noise, made of a corpus' clips: thresholds are chosen on them, and listening is scored on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import SAMPLE_RATE
from trainers.learning.batches import Augmentation, Ints, Rng
from trainers.speech.corpora import FULL_SCALE, Corpus

PAUSES = 0.5, 1.5  # seconds between two clips
SNR_DB = (25.0, 20.0, 15.0, 10.0)  # of one stream after another
LONGEST = 300.0  # seconds of speech in a stream
PIECE = round(LONGEST * SAMPLE_RATE)
NOISE_SECONDS = 4.0
FRAME = SAMPLE_RATE // 50
LOUD_DB = 25.0  # below a clip's loudest frame, where its speech ends

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """A clip in a stream: its keyword, None for other speech, the seconds at which it begins, its speech ends, and it ends, and its
    row in the corpus, None of a recording."""

    keyword: str | None
    begin: float
    spoken: float
    end: float
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """samples: (samples,) int16. said: in order."""

    samples: NDArray[np.int16]
    said: tuple[Said, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def speech_streams(
    corpus: Corpus, rows: Ints, noise: Corpus | None, *, seconds: float = math.inf, snr_db: Sequence[float] = SNR_DB, seed: int = 0
) -> list[Stream]:
    """Clips in random order, of at most so many seconds together, in streams of five minutes of speech. The noise of one is at the
    same level throughout: the `snr_db` by turns, of a clip of median loudness; there are as many streams as levels, at least.

    noise: as of `Augmentation`, of the split that the first row is of.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    lengths = corpus.lengths[order] / SAMPLE_RATE
    order = order[: max(1, int((np.cumsum(lengths) <= seconds).sum()))]
    count = max(math.ceil(lengths[: len(order)].sum() / LONGEST), min(len(snr_db), len(order)))
    augment = Augmentation(noise=noise, split=str(corpus.splits[order[0]]))
    return [_stream(corpus, order[number::count], augment, snr_db[number % len(snr_db)], rng) for number in range(count)]


def _stream(corpus: Corpus, rows: Ints, augment: Augmentation, snr_db: float, rng: Rng) -> Stream:
    parts, said, at = [silence(rng)], list[Said](), 0
    for row in rows.tolist():
        at += len(parts[-1])
        clip, keyword = corpus.clip(row), corpus.keywords[row]
        ends = (at + speech_end(clip)) / SAMPLE_RATE, (at + len(clip)) / SAMPLE_RATE
        said.append(Said(None if keyword is None or keyword.startswith("_") else keyword, at / SAMPLE_RATE, *ends, row))
        parts += [clip, silence(rng)]
        at += len(clip)
    loudness = float(np.median([np.sqrt(np.mean(part**2)) for part in parts[1::2]]))
    heard = np.concatenate(parts)
    heard += 10 ** (-snr_db / 20) * loudness * _noise(augment, len(heard), rng)
    return Stream(samples=np.round(heard.clip(-1, 1) * (FULL_SCALE - 1)).astype(np.int16), said=tuple(said))


def recorded_streams(samples: NDArray[np.int16]) -> list[Stream]:
    """Of a recording in which no keyword is said, in pieces of five minutes."""
    return [_recorded(part) for part in np.split(samples, range(PIECE, len(samples), PIECE))]


def _recorded(samples: NDArray[np.int16]) -> Stream:
    seconds = len(samples) / SAMPLE_RATE
    return Stream(samples=samples, said=(Said(None, 0.0, seconds, seconds),))


def silence(rng: Rng) -> Floats:
    return np.zeros(round(rng.uniform(*PAUSES) * SAMPLE_RATE), np.float32)


def speech_end(clip: Floats) -> int:
    """The sample after the last frame of 20 ms that is about as loud as the loudest."""
    frames = clip[: max(1, len(clip) // FRAME) * FRAME]
    power = np.square(np.pad(frames, (0, -len(frames) % FRAME))).reshape(-1, FRAME).mean(1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-LOUD_DB / 10))
    return min(len(clip), (int(loud[-1]) + 1) * FRAME)


def _noise(augment: Augmentation, samples: int, rng: Rng) -> Floats:
    """(samples,) of unit loudness, piece after piece."""
    piece = round(NOISE_SECONDS * SAMPLE_RATE)
    return np.concatenate([augment.unit_noise(piece, rng) for _ in range(-(-samples // piece))])[:samples]
