"""The embedded corpus: the same bytes from the same seed, in the format, with speakers that can be told apart."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.importing.espeak import SPEAK_RATE, Voice, espeak
from trainers.importing.synthetic import ACCENTS, KEYWORDS, OTHER_WORDS, VARIANTS, speak_corpus
from trainers.speech.corpora import Corpus, check_trainable
from trainers.speech.loading import load_corpus
from trainers.speech.parquet import UNKNOWN


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("eight")
    speak_corpus(folder / "c.parquet", speakers=8, clips_per_keyword=2, seed=1)
    return load_corpus([folder / "c.parquet"], folder / "cache")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        speak_corpus(tmp_path / name, speakers=4, clips_per_keyword=1, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_every_voice_exists_and_repeats_itself() -> None:
    voices = [f"gmw/{accent}+f1" for accent in ACCENTS] + [f"gmw/en+{variant}" for variant in VARIANTS.split()]

    def speak() -> list[bytes]:
        with espeak(1) as say:
            return [say("yes", Voice(name=name, pitch=50, pitch_range=50, rate=170)).tobytes() for name in voices]

    first = speak()
    assert first == speak()
    assert all(len(samples) > SPEAK_RATE // 4 for samples in first)


def test_pitch_and_rate_do_what_they_say() -> None:
    with espeak(1) as say:
        slow, fast = (say("window", Voice(name="gmw/en-US", pitch=50, pitch_range=0, rate=rate)) for rate in (120, 240))
        low, high = (say("all", Voice(name="gmw/en-US", pitch=pitch, pitch_range=0, rate=120)) for pitch in (50, 99))
    assert len(slow) > 1.4 * len(fast)
    assert 70 < _pitch(low) < 110 < 1.3 * _pitch(low) < _pitch(high) < 200


def _pitch(x: NDArray[np.float32]) -> float:
    """Hertz, by the first peak of the autocorrelation of the whole word."""
    power = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)
    lags = np.arange(SPEAK_RATE // 500, SPEAK_RATE // 60)
    return float(SPEAK_RATE / lags[power[lags].argmax()])


def test_unknown_voices_are_named() -> None:
    with espeak(1) as say, pytest.raises(ValueError, match="no voice 'martian'"):
        say("yes", Voice(name="martian", pitch=50, pitch_range=50, rate=170))


def test_the_corpus_has_the_promised_clips(eight: Corpus) -> None:
    check_trainable(eight)
    assert eight.synthetic
    assert eight.skipped == ()
    assert len(eight) == 8 * 2 * (10 + 4)
    assert set(eight.lengths) == {16_000}
    assert eight.keyword_labels == tuple(sorted((*KEYWORDS, UNKNOWN)))
    for speaker in set(eight.speakers):
        said = eight.keywords[eight.speakers == speaker].tolist()
        assert [said.count(keyword) for keyword in KEYWORDS] == [2] * 10
        assert said.count(UNKNOWN) == 8
    assert not set(KEYWORDS) & set(OTHER_WORDS.split())


def test_splits_share_no_speaker(eight: Corpus) -> None:
    speakers = {split: set(eight.speakers[eight.rows(split)]) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in speakers.items()} == {"train": 4, "val": 2, "test": 2}
    assert len(set.union(*speakers.values())) == 8


def test_every_clip_holds_a_word_that_is_not_cut(eight: Corpus) -> None:
    clips = np.stack([eight.clip(i) for i in range(len(eight))])
    peaks = np.abs(clips).max(1)
    assert peaks.min() > 0.05
    assert peaks.max() < 1
    assert peaks.std() > 0.1  # levels differ
    power = np.square(clips).reshape(len(clips), 10, 1600).mean(2)
    assert (power[:, 3:7].max(1) > 2 * power[:, [0, 9]].max(1)).all()  # loud in the middle, quiet at both ends


def test_a_speaker_sounds_like_himself(eight: Corpus) -> None:
    """The mean spectrum of half of a speaker's clips is nearest to that of his other half, for most."""
    spectra = np.stack([np.log(np.abs(np.fft.rfft(eight.clip(i)))[100:7900].reshape(-1, 100).mean(1)) for i in range(len(eight))])
    spectra -= spectra.mean(1, keepdims=True)
    names = sorted(set(eight.speakers))
    halves = np.array([[spectra[eight.speakers == name][half::2].mean(0) for name in names] for half in (0, 1)])
    distances = np.linalg.norm(halves[0][:, None] - halves[1][None], axis=-1)
    assert (distances.argmin(1) == np.arange(8)).sum() >= 7


@pytest.mark.parametrize(
    ("speakers", "clips", "message"), [(3, 1, "speakers is 3"), (9999, 1, "9999"), (4, 0, "clips_per_keyword")]
)
def test_impossible_sizes_are_refused(tmp_path: Path, speakers: int, clips: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speak_corpus(tmp_path / "c", speakers=speakers, clips_per_keyword=clips)
