"""Windows, augmentation and the order of clips."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.learning.batches import Augmentation, cut, equalized, random_start, training_windows, window_starts
from trainers.speech.corpora import Corpus

WINDOW = 4880  # 15 frames


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tones(count: int, samples: int = 8000) -> NDArray[np.float32]:
    hertz = np.linspace(200, 900, count)[:, None]
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(samples) / 16_000)).astype(np.float32)


@given(st.integers(1, 400_000), st.integers(1, 100))
def test_windows_join_on_whole_frames_and_lie_in_the_clip(length: int, frames: int) -> None:
    window, hop = 320 * frames + 80, 320 * frames
    starts = window_starts(length, window)
    assert starts[0] >= 0
    assert all(b - a == hop for a, b in pairwise(starts))
    if length >= window:
        assert starts[-1] + hop <= length  # the last one's tail of 80 samples may reach past the end
        left, right = starts[0], length - (starts[-1] + hop)
        assert left + right < hop + 80  # no further window fits
        assert abs(left - right) <= 81  # centred
    else:
        assert starts == [0]


@given(st.integers(-9000, 30_000), st.integers(1, 9000))
@settings(max_examples=60)
def test_cut_is_a_slice_with_zeros_around_it(tiny_corpus: Corpus, start: int, window: int) -> None:
    clip = tiny_corpus.clip(9)
    assert len(clip) == 24_000
    around = np.concatenate([np.zeros(9000), clip, np.zeros(39_000)])
    part = cut(tiny_corpus, 9, start, window)
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part, around[9000 + start : 9000 + start + window])


@given(st.integers(0, 100_000), st.integers(400, 20_000), st.integers(0, 99))
def test_random_starts_lie_on_frames_of_the_clip(length: int, window: int, seed: int) -> None:
    start = random_start(length, window, rng(seed))
    assert start % 320 == 0
    assert 0 <= start <= max(0, length - window)


def test_random_starts_reach_every_frame() -> None:
    generator = rng()
    assert {random_start(6000, WINDOW, generator) for _ in range(200)} == {0, 320, 640, 960}


def test_augmentation_keeps_shape_and_is_finite_even_for_silence() -> None:
    windows = np.concatenate([tones(3), np.zeros((1, 8000), np.float32)])
    before = windows.copy()
    heard = Augmentation(noise_share=1.0)(windows, rng())
    assert heard.shape == windows.shape
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    np.testing.assert_array_equal(windows, before)
    assert not heard[3].any()


def test_augmentation_repeats_with_its_seed_and_differs_between_windows() -> None:
    windows, augment = np.repeat(tones(1), 4, axis=0), Augmentation(noise_share=1.0)
    first = augment(windows, rng(1))
    np.testing.assert_array_equal(first, augment(windows, rng(1)))
    assert np.abs(first - augment(windows, rng(2))).max() > 0.01
    assert np.abs(first[1:] - first[:1]).max(axis=1).min() > 0.01


def levels(heard: NDArray[np.float32], clean: NDArray[np.float32]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Gain and signal-to-noise ratio in dB of each window, from the part of what is heard that is proportional to the clean one."""
    gains = (heard * clean).sum(1) / (clean**2).sum(1)
    noise = heard - gains[:, None] * clean
    ratio = (gains**2) * (clean**2).mean(1) / (noise**2).mean(1)
    return 20 * np.log10(gains), 10 * np.log10(ratio)


@pytest.mark.parametrize("recorded", [False, True])
def test_noise_comes_at_the_promised_ratios_and_gains(recorded: bool, tiny_corpus: Corpus) -> None:
    clean = tones(200)
    noise = tiny_corpus if recorded else None
    heard = Augmentation(noise=noise, noise_share=1.0, snr_db=(5.0, 25.0), gain_db=6.0)(clean, rng())
    gains, ratios = levels(heard, clean)
    slack = 1.5  # noise is not quite orthogonal to the signal
    assert -6 - slack < gains.min() < -4 and 4 < gains.max() < 6 + slack
    assert 5 - slack < ratios.min() < 8 and 22 < ratios.max() < 25 + slack


def test_noise_comes_in_its_share_of_windows() -> None:
    clean = tones(400)
    heard = Augmentation(noise_share=0.25, gain_db=0.0)(clean, rng())
    assert 0.15 < (np.abs(heard - clean).max(1) > 1e-6).mean() < 0.35
    np.testing.assert_array_equal(Augmentation(noise_share=0.0, gain_db=0.0)(clean, rng()), clean)


@given(st.integers(1, 9), st.integers(0, 8_000), st.integers(0, 99))
def test_parts_of_a_clip_are_all_of_it(filled: int, spare: int, seed: int) -> None:
    """Whatever starts they have: side by side, in order."""
    length, generator = filled * WINDOW + spare, rng(seed)
    drawn = [[random_start(length, WINDOW, generator, part, filled) for _ in range(20)] for part in range(filled)]
    assert all(max(before) < min(after) for before, after in pairwise(drawn))
    assert min(map(min, drawn)) >= 0 and max(map(max, drawn)) <= length - WINDOW


def test_training_windows_are_cut_on_whole_frames(tiny_corpus: Corpus) -> None:
    quiet = Augmentation(noise_share=0.0, gain_db=0.0)
    clip = tiny_corpus.clip(9)
    for part in training_windows(tiny_corpus, [9] * 20, WINDOW, rng(), quiet):
        assert any(np.array_equal(part, clip[start : start + WINDOW]) for start in range(0, 24_000 - WINDOW + 1, 320))


def test_a_clip_that_fills_no_window_is_shifted_by_whole_frames(tiny_corpus: Corpus) -> None:
    quiet = Augmentation(noise_share=0.0, gain_db=0.0)
    wide = 16_080
    clip = np.pad(tiny_corpus.clip(0), (1600, wide + 1600))
    options = {shift: clip[1600 + shift : 1600 + shift + wide] for shift in range(-1600, 1601, 320)}
    seen = set()
    for part in training_windows(tiny_corpus, [0] * 100, wide, rng(), quiet):
        (shift,) = (shift for shift, expected in options.items() if np.array_equal(part, expected))
        seen.add(shift)
    assert seen == set(options)


def test_training_windows_repeat_with_their_seed(tiny_corpus: Corpus) -> None:
    first, second, other = (training_windows(tiny_corpus, [0, 9, 19], WINDOW, rng(s), Augmentation()) for s in (1, 1, 2))
    assert first.shape == (3, WINDOW)
    assert (first == second).all()
    assert not (first == other).all()


def test_masks_silence_a_band_and_spans_in_their_share_of_windows() -> None:
    clean = np.repeat(rng(1).standard_normal((1, 16_000)).astype(np.float32), 300, axis=0)
    heard = Augmentation(mask_share=0.5, noise_share=0.0, gain_db=0.0)(clean, rng())
    masked = (heard != clean).any(1)
    assert 0.4 < masked.mean() < 0.6
    silent = (heard[masked] == 0).mean(1)
    assert silent.max() <= 0.2 and 0.05 < silent.mean() < 0.15  # two spans of up to a tenth
    kept = (np.abs(np.fft.rfft(heard[masked])) ** 2).sum(1) / (np.abs(np.fft.rfft(clean[masked])) ** 2).sum(1)
    assert kept.min() > 0.3 and kept.max() < 1.001


def test_a_clip_at_another_speed_fills_the_window(tiny_corpus: Corpus) -> None:
    rows = [int(row) for row in tiny_corpus.rows("train") if tiny_corpus.length(int(row)) == 24_000]
    plain = Augmentation(noise_share=0.0, gain_db=0.0)
    for speed in (0.8, 0.875, 0.975, 1.0, 1.075, 1.25):
        heard = training_windows(tiny_corpus, rows, WINDOW, rng(), plain, speeds=[speed] * len(rows))
        assert heard.shape == (len(rows), WINDOW)
        assert (np.abs(heard[:, -400:]).max(1) > 0.01).all()  # no silence at the end
        peak = np.abs(np.fft.rfft(heard * np.hanning(WINDOW))).argmax(1) * 16_000 / WINDOW
        if speed == 1.0:
            original = peak
    np.testing.assert_allclose(peak, 1.25 * original, rtol=0.2)


def test_an_equaliser_tilts_the_spectrum_as_far_as_it_is_told_and_moves_nothing() -> None:
    click = np.zeros(4880, np.float32)
    click[2000] = 1.0
    hertz = np.fft.rfftfreq(4880, 1 / 16_000)
    steps = []
    for seed in range(200):
        gains = 20 * np.log10(np.abs(np.fft.rfft(equalized(click, 3.0, rng(seed)))) + 1e-9)
        octaves = [gains[np.argmin(np.abs(hertz - 8000 / 2**i))] for i in range(8)]
        steps.append(np.diff(octaves))
    assert np.std(steps) == pytest.approx(3.0, rel=0.15) and abs(np.mean(steps)) < 0.5
    assert np.abs(equalized(click, 3.0, rng())).argmax() == 2000
