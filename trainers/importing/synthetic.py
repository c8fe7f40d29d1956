"""The embedded default corpus: espeak-ng says ten keywords and other words with the voices of virtual speakers.

It lets everything run without a download. It is not speech: results on it say `synthetic`.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from search_spaces.architecture import SAMPLE_RATE
from trainers.importing.espeak import SPEAK_RATE, Say, Voice, espeak
from trainers.importing.importers import split_groups
from trainers.speech.corpora import Progress
from trainers.speech.parquet import UNKNOWN, write_corpus

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHER_WORDS = (
    "apple bird cat dog eight five four happy house marvin nine one river seven sheila six table three tree water window zero"
)
UNKNOWN_SHARE = 4  # `_unknown_` clips for one of a keyword
ACCENTS = ("en-US", "en", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029", "en-US-nyc")
VARIANTS = (  # of the wheel's hundred those that sound like a person; Klatt voices draw from the C library's random numbers
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Andy Annie Denis Diogo Henrique Hugo Mario Michael Mike Nguyen aunty belinda"
    " boris grandma grandpa ian linda max norbert pablo quincy rob robert sandro steph travis victor zac"
)
CLIP_SAMPLES = SAMPLE_RATE
_SPOKEN_SAMPLES = 33_075  # 1.5 s of espeak, longer than any of the words; a product of small primes, for the Fourier transform
_LEAD_SAMPLES = 2_205  # of silence before a word: the frequency response is symmetric in time and would wrap its onset to the end
_CURVE_TERMS = 8  # cosines that make up a speaker's frequency response

Wave = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Speaker:
    """One throat: a voice, its length (stretches time and formants alike) and a frequency response (cosine terms in dB)."""

    name: str
    split: str
    voice: Voice
    length: float
    response_db: NDArray[np.float64]


def speak_corpus(
    path: Path, *, speakers: int = 60, clips_per_keyword: int = 3, seed: int = 0, progress: Progress | None = None
) -> None:
    """Writes `speakers` x (10 keywords x clips_per_keyword + 4 clips_per_keyword `_unknown_`) clips of 1 s as a corpus.

    Splits are speaker-disjoint, 70/15/15 % of the speakers; no two speakers have the same accent and variant. The same arguments
    give the same bytes. Raises ValueError for fewer than 4 or more speakers than there are voices, and for no clips.
    """
    voices = len(ACCENTS) * len(VARIANTS.split())
    if not 4 <= speakers <= voices:
        raise ValueError(f"speakers is {speakers}; from 4 (for three splits) to {voices} (voices) are possible")
    if clips_per_keyword < 1:
        raise ValueError(f"clips_per_keyword is {clips_per_keyword}; at least 1 is needed")
    rng = np.random.default_rng(seed)
    with espeak(int(rng.integers(1, 2**31))) as say:
        write_corpus(path, _rows(say, _cast(speakers, seed, rng), clips_per_keyword, rng, progress), synthetic=True)


def _cast(count: int, seed: int, rng: np.random.Generator) -> list[_Speaker]:
    names = [f"speaker-{i:03}" for i in range(count)]
    split_of = split_groups(names, seed, 0.15, 0.15)
    voices = [f"gmw/{accent}+{variant}" for accent, variant in product(ACCENTS, VARIANTS.split())]
    order = rng.permutation(len(voices))
    return [_speaker(name, split_of[name], voices[voice], rng) for name, voice in zip(names, order[:count], strict=True)]


def _speaker(name: str, split: str, espeak_name: str, rng: np.random.Generator) -> _Speaker:
    voice = Voice(
        name=espeak_name,
        pitch=int(rng.integers(25, 92)),
        pitch_range=int(rng.integers(20, 81)),
        rate=int(rng.integers(140, 191)),
    )
    return _Speaker(name=name, split=split, voice=voice, length=rng.uniform(0.88, 1.12), response_db=_response(6.0, rng))


def _response(first_db: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random cosine terms, the first (the tilt) with a standard deviation of `first_db`, the k-th with a k-th of it."""
    return rng.normal(size=_CURVE_TERMS) * first_db / np.arange(1, _CURVE_TERMS + 1)


def _rows(
    say: Say, speakers: list[_Speaker], clips: int, rng: np.random.Generator, progress: Progress | None
) -> Iterator[Mapping[str, Any]]:
    total = len(speakers) * clips * (len(KEYWORDS) + UNKNOWN_SHARE)
    for done, speaker in enumerate(speakers, 1):
        spoken = [(word, word) for word in KEYWORDS for _ in range(clips)]
        spoken += [(UNKNOWN, str(word)) for word in rng.choice(OTHER_WORDS.split(), UNKNOWN_SHARE * clips)]
        for number, (keyword, word) in enumerate(spoken):
            yield _row(f"{speaker.name}/{keyword}/{number:03}-{word}", speaker, keyword, _clip(say, speaker, word, rng))
        if progress:
            progress(done * total // len(speakers), total)


def _row(clip: str, speaker: _Speaker, keyword: str, x: Wave) -> Mapping[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, x, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return {
        "id": clip,
        "split": speaker.split,
        "keyword": keyword,
        "speaker_id": speaker.name,
        "duration_s": len(x) / SAMPLE_RATE,
        "audio": {"bytes": file.getvalue(), "path": f"{clip}.flac"},
    }


def _clip(say: Say, speaker: _Speaker, word: str, rng: np.random.Generator) -> Wave:
    """One clip (CLIP_SAMPLES,): said a little differently each time, through another microphone, in another noise."""
    voice = Voice(
        name=speaker.voice.name,
        pitch=speaker.voice.pitch + int(rng.integers(-6, 7)),
        pitch_range=speaker.voice.pitch_range + int(rng.integers(-10, 11)),
        rate=round(speaker.voice.rate * rng.uniform(0.85, 1.15)),
    )
    x = _throat(say(word, voice), speaker.length, speaker.response_db + _response(1.0, rng))
    x = _noisy(_centred(x, int(rng.integers(-800, 801))), rng)
    peak = 10 ** (rng.uniform(-24, -1) / 20)
    scaled: Wave = x * np.float32(peak / np.abs(x).max())
    return scaled


def _throat(spoken: Wave, length: float, response_db: NDArray[np.float64]) -> Wave:
    """espeak's samples -> 16 kHz, `length` times as long, with the frequency response. One Fourier transform does all three."""
    samples = 100 * round(_SPOKEN_SAMPLES * SAMPLE_RATE / SPEAK_RATE * length / 100)
    spectrum = np.fft.rfft(np.pad(spoken, (_LEAD_SAMPLES, 0)), _SPOKEN_SAMPLES)[: samples // 2 + 1]
    octaves = np.log2(1 + np.linspace(0, 8000, len(spectrum)) / 500) / np.log2(17)  # 0 to 1, even steps above 500 Hz
    terms = np.cos(np.pi * octaves[:, None] * np.arange(1, _CURVE_TERMS + 1))
    return np.fft.irfft(spectrum * 10 ** (terms @ response_db / 20), samples).astype(np.float32)


def _centred(x: Wave, shift: int) -> Wave:
    """The loud part of x in the middle of a clip, moved by `shift` samples as far as there is room, cut where it is longer."""
    loud = np.flatnonzero(np.abs(x) > 0.02 * np.abs(x).max())
    word = x[loud[0] : loud[-1] + 1]
    surplus = max(0, len(word) - CLIP_SAMPLES)
    word = word[surplus // 2 :][:CLIP_SAMPLES]
    room = CLIP_SAMPLES - len(word)
    before = min(max(room // 2 + shift, 0), room)
    return np.pad(word, (before, room - before))


def _noisy(x: Wave, rng: np.random.Generator) -> Wave:
    """White to pink noise at 10 to 40 dB below the clip's power."""
    spectrum = np.fft.rfft(rng.standard_normal(len(x)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** rng.uniform(0, 0.5)  # power falls as 1/f for 0.5, flat below 20 Hz
    noise = np.fft.irfft(spectrum, len(x))
    ratio = 10 ** (-rng.uniform(10, 40) / 20)
    mixed: Wave = (x + noise * ratio * np.sqrt(np.square(x).mean() / np.square(noise).mean())).astype(np.float32)
    return mixed
