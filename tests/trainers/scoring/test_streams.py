"""Streams hold each clip where they say, in noise of the level that they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import FRAME_SAMPLES, SAMPLE_RATE
from trainers.learning.batches import Augmentation, cut
from trainers.scoring.streams import PAUSES, SNR_DB, Stream, recorded_streams, speech_end, speech_streams
from trainers.speech.corpora import Corpus

QUIET = (200.0,)  # dB: no noise to speak of


def streams(corpus: Corpus, **options: object) -> list[Stream]:
    return speech_streams(corpus, corpus.rows("val"), None, **options)  # type: ignore[arg-type]


def test_every_clip_is_said_once_where_it_is_told(tiny_corpus: Corpus) -> None:
    rows = tiny_corpus.rows("val")
    (stream,) = streams(tiny_corpus, snr_db=QUIET)
    assert len(stream.said) == len(rows)
    clips = [tiny_corpus.clip(int(row)) for row in rows]
    for said in stream.said:
        begin, end = (round(SAMPLE_RATE * seconds) for seconds in (said.begin, said.end))
        heard = stream.samples[begin:end] / 32767
        alike = [len(clip) == len(heard) and np.abs(clip - heard).max() < 1e-3 for clip in clips]
        assert sum(alike) == 1 and tiny_corpus.keywords[rows[alike.index(True)]] in (said.keyword, "_silence_", "_unknown_")
        assert said.begin < said.spoken <= said.end
        clips.pop(alike.index(True))
        rows = np.delete(rows, alike.index(True))
    pauses = [after.begin - before.end for before, after in zip(stream.said, stream.said[1:])]
    assert all(PAUSES[0] - 1e-3 <= pause <= PAUSES[1] + 1e-3 for pause in pauses)


def test_noise_is_as_loud_as_asked(tiny_corpus: Corpus) -> None:
    (quiet,), (loud,) = (streams(tiny_corpus, snr_db=snr) for snr in (QUIET, (10.0,)))
    clips = [quiet.samples[round(SAMPLE_RATE * s.begin) : round(SAMPLE_RATE * s.end)] for s in quiet.said]
    loudness = np.median([np.sqrt(np.mean(np.square(clip, dtype=float))) for clip in clips])
    noise = loud.samples.astype(float) - quiet.samples
    assert 20 * np.log10(loudness / noise.std()) == pytest.approx(10, abs=0.5)


def test_a_seed_gives_the_same_streams_and_another_other_ones(tiny_corpus: Corpus) -> None:
    one, same, other = (streams(tiny_corpus, seed=seed)[0].samples for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@given(st.floats(0.5, 30))
def test_no_more_speech_than_asked_but_a_clip(tiny_corpus: Corpus, seconds: float) -> None:
    found = streams(tiny_corpus, seconds=seconds)
    lengths = [said.end - said.begin for stream in found for said in stream.said]
    assert sum(lengths) <= seconds + 1e-6 or len(lengths) == 1


def test_long_speech_is_dealt_out_to_streams_of_several_levels(tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.scoring.streams.LONGEST", 3.0)
    found = streams(tiny_corpus)
    assert len(found) > 2 and len(SNR_DB) > 2
    assert sum(len(stream.said) for stream in found) == len(tiny_corpus.rows("val"))


def test_short_speech_is_heard_at_every_level(tiny_corpus: Corpus) -> None:
    assert len(streams(tiny_corpus)) == len(SNR_DB)
    assert [len(stream.said) for stream in streams(tiny_corpus, seconds=0.1)] == [1]  # one clip is in one stream


def test_noise_of_training_is_not_that_of_validation(tiny_corpus: Corpus) -> None:
    for split in ("train", "val"):
        augment, rows = Augmentation(noise=tiny_corpus, split=split), tiny_corpus.rows(split)
        for seed in range(10):
            heard = augment.unit_noise(3200, np.random.default_rng(seed))
            starts = ((int(row), start) for row in rows for start in range(0, tiny_corpus.length(int(row)), FRAME_SAMPLES))
            assert any(np.allclose(heard, unit(cut(tiny_corpus, row, start, 3200)), atol=1e-4) for row, start in starts)


def unit(samples: np.ndarray) -> np.ndarray:
    return samples / (np.sqrt(np.mean(samples**2)) + 1e-9)


def test_speech_ends_where_the_last_loud_frame_does() -> None:
    clip = np.concatenate([np.zeros(3200), np.sin(np.arange(6400)), 0.01 * np.sin(np.arange(6400))]).astype(np.float32)
    assert speech_end(clip) == 9600
    assert speech_end(np.ones(100, np.float32)) == 100


@given(st.integers(1, 50))
def test_a_recording_is_heard_whole_and_says_nothing_that_is_asked_for(count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.scoring.streams.PIECE", 16)
        samples = np.arange(count, dtype=np.int16)
        found = recorded_streams(samples)
    assert np.array_equal(np.concatenate([stream.samples for stream in found]), samples)
    assert all(0 < len(stream.samples) <= 16 for stream in found)
    assert [said.keyword for stream in found for said in stream.said] == [None] * len(found)
