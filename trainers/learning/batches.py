"""Windows cut from a corpus, and what is done to them before a student hears them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from search_spaces.architecture import FRAME_SAMPLES, SAMPLE_RATE
from trainers.speech.corpora import Corpus

Ints = NDArray[np.integer]
Rng = np.random.Generator
OCTAVES = 8  # of an equaliser, 62 Hz to 8 kHz


def cut(corpus: Corpus, row: int, start: int, window: int) -> NDArray[np.float32]:
    """(window,) samples of a clip from `start` on, zeros before its beginning (a negative start) and after its end."""
    out = np.zeros(window, np.float32)
    begin, end = max(start, 0), min(start + window, corpus.length(row))
    if begin < end:
        out[begin - start : end - start] = corpus.clip(row, begin, end)
    return out


def cut_at_speed(corpus: Corpus, row: int, start: int, window: int, speed: float) -> NDArray[np.float32]:
    """`cut` of a clip that is played at another speed, pitch and tempo together; `start` is in the clip's own samples. A speed is
    taken in whole hundredths.

    torchaudio's resampler makes its filters anew in every call: 50 times as slow for a window.
    """
    if speed == 1:
        return cut(corpus, row, start, window)
    margin = 64  # keeps the resampler's edge out
    percent = round(100 * speed)
    raw = cut(corpus, row, start - margin, math.ceil(window * percent / 100) + 2 * margin)
    skipped = round(100 * margin / percent)
    return np.asarray(scipy.signal.resample_poly(raw, 100, percent)[skipped : skipped + window], np.float32)


def window_starts(length: int, window: int) -> list[int]:
    """Where the windows begin that score a clip of `length` samples: side by side on whole frames, centred, one at least.

    A window of 50 frames (16,080 samples) advances by 16,000, so its frames join without a gap.
    """
    hop = window // FRAME_SAMPLES * FRAME_SAMPLES
    count = max(1, length // hop)
    if length <= window:
        return [0]
    spare = max(0, length - ((count - 1) * hop + window))
    return [spare // 2 + i * hop for i in range(count)]


def random_start(length: int, window: int, rng: Rng, part: int = 0, of: int = 1) -> int:
    """A random start on a whole frame, so that every frame of the window lies in the clip where it can; of `of` equal parts of all
    such starts in the one that `part` numbers, from 0."""
    starts = max(0, length - window) // FRAME_SAMPLES + 1
    first, end = starts * part // of, starts * (part + 1) // of
    return int(rng.integers(first, max(first + 1, end))) * FRAME_SAMPLES


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training window goes through: an equaliser, a gain, noise at a random signal-to-noise ratio, and masks.

    Noise is a piece of the `noise` corpus, of its `split` where it has one, or white noise coloured at random where there is no
    corpus. equalizer_db: see `equalized`.
    mask_share: of windows in which a band of frequencies and two spans of time fall silent (SpecAugment, arXiv 1904.08779, on the
    waveform: every front end hears it).
    """

    noise: Corpus | None = None
    split: str = "train"
    gain_db: float = 6.0
    noise_share: float = 0.5
    snr_db: tuple[float, float] = (5.0, 25.0)
    equalizer_db: float = 0.0
    mask_share: float = 0.0

    def __call__(self, windows: NDArray[np.float32], rng: Rng) -> NDArray[np.float32]:
        """(batch, samples) -> the same shape."""
        gains = 10 ** (rng.uniform(-self.gain_db, self.gain_db, (len(windows), 1)) / 20)
        heard: NDArray[np.float32] = windows.astype(np.float32)
        if self.equalizer_db:
            heard = np.stack([equalized(samples, self.equalizer_db, rng) for samples in heard])
        for row in np.flatnonzero(rng.random(len(windows)) < self.noise_share):
            level = 10 ** (-rng.uniform(*self.snr_db) / 20) * np.sqrt(np.mean(windows[row] ** 2))
            heard[row] += self.unit_noise(windows.shape[1], rng) * level
        for row in np.flatnonzero(rng.random(len(windows)) < self.mask_share):
            heard[row] = masked(heard[row], rng)
        return heard * gains.astype(np.float32)

    @functools.cached_property
    def _noise_rows(self) -> Ints:
        assert self.noise is not None
        own = self.noise.rows(self.split)
        return own if len(own) else self.noise.rows()

    def unit_noise(self, samples: int, rng: Rng) -> NDArray[np.float32]:
        """(samples,) of unit loudness."""
        if self.noise is not None:
            row = int(self._noise_rows[rng.integers(len(self._noise_rows))])
            noise = cut(self.noise, row, random_start(self.noise.length(row), samples, rng), samples)
        else:
            spectrum = np.fft.rfft(rng.standard_normal(samples))
            tilt = np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(0, 1)  # white to pink and brown
            noise = np.fft.irfft(spectrum * tilt, samples).astype(np.float32)
        noise /= np.sqrt(np.mean(noise**2)) + 1e-9
        return noise


def equalized(samples: NDArray[np.float32], decibels: float, rng: Rng) -> NDArray[np.float32]:
    """(samples,) as another microphone in another room hears them: from octave to octave the gain takes a random step of that
    standard deviation."""
    octaves = np.log2(SAMPLE_RATE / 2) - np.arange(OCTAVES)[::-1]
    gains = np.cumsum(rng.normal(0, decibels, OCTAVES))
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    curve = np.interp(np.log2(np.maximum(hertz, 1)), octaves, gains - gains.mean())
    return np.asarray(np.fft.irfft(np.fft.rfft(samples) * 10 ** (curve / 20), len(samples)), np.float32)


def masked(samples: NDArray[np.float32], rng: Rng) -> NDArray[np.float32]:
    """(samples,) without a band of up to 8 of 40 mels and without two spans of up to a tenth of the time."""
    spectrum = np.fft.rfft(samples)
    width = rng.integers(9)
    low, high = (_hertz(mel) for mel in rng.integers(41 - width) + np.array([0, width]))
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(low <= hertz) & (hertz < high)] = 0
    out = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    for _ in range(2):
        length = int(rng.integers(len(samples) // 10 + 1))
        start = int(rng.integers(len(samples) - length + 1))
        out[start : start + length] = 0
    return out


def _hertz(mel: float) -> float:
    """Of a position among 40 mels up to half the sample rate (O'Shaughnessy 1987)."""
    top = math.log10(1 + SAMPLE_RATE / 2 / 700)
    return float(700 * (10 ** (top * mel / 40) - 1))


def windows_filled(corpus: Corpus, rows: Ints, window: int) -> Ints:
    """How many windows of speech each row fills, (rows,), one at least.

    Batches that draw each of them alike hear all speech alike. Speakers drawn alike, or by the square root of what they say, lost
    where one corpus has few speakers and the other many of one utterance each: the student hardly heard the speech that it is
    scored on (validation EER 38 % against 23 %).
    """
    return np.array([max(1, corpus.length(int(row)) // window) for row in rows])


def training_windows(
    corpus: Corpus,
    rows: Sequence[int],
    window: int,
    rng: Rng,
    augment: Augmentation,
    *,
    speeds: Sequence[float] | None = None,
    parts: Sequence[tuple[int, int]] | None = None,
    shift: int = 5 * FRAME_SAMPLES,
) -> NDArray[np.float32]:
    """(batch, window): a random window of each clip, shifted by whole frames where the clip is no longer than it.

    speeds: at which each clip is played. parts: of each clip, `part` and `of` of `random_start`.
    """
    cuts, count = [], len(rows)
    for row, speed, part in zip(rows, speeds or [1.0] * count, parts or [(0, 1)] * count, strict=True):
        spoken = math.ceil(window * speed)  # samples of the clip that fill the window
        start = random_start(corpus.length(row), spoken, rng, *part)
        if corpus.length(row) <= spoken:
            start = int(rng.integers(-shift // FRAME_SAMPLES, shift // FRAME_SAMPLES + 1)) * FRAME_SAMPLES
        cuts.append(cut_at_speed(corpus, row, start, window, speed))
    return augment(np.stack(cuts), rng)
