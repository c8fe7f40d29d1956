"""Units of masked prediction: utterances at several speeds, MFCCs on the encoder's frames, k-means."""

from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces.architecture import frame_count
from trainers.pretraining.units import assign_units, fit_units, hidden_state, mfcc, utterances, windows_of
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

WINDOW = 16_080
CPU = torch.device("cpu")


def test_every_clip_comes_at_every_speed_and_frames_add_up(tiny_corpus: Corpus) -> None:
    clips = utterances(tiny_corpus, "train", (1.0, 0.9, 1.1))
    train = tiny_corpus.rows("train")
    assert [tuple(clips.rows[i::1][: len(train)]) for i in (0, len(train))] == [tuple(train)] * 2
    for row, speed, frames in zip(clips.rows, clips.speeds, clips.frames):
        assert frames == frame_count(int(tiny_corpus.length(row) / speed))


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.0, 1.1])
def test_a_speed_moves_pitch_and_frames_together(tiny_corpus: Corpus, speed: float) -> None:
    """The long clip rises in pitch: an utterance at a speed has the clip's sound at the stretched place, higher by the speed."""
    row = next(row for row in tiny_corpus.rows("train") if tiny_corpus.length(int(row)) > 20_000)
    plain = utterances(tiny_corpus, "train", (1.0,))
    fast = utterances(tiny_corpus, "train", (speed,))
    at = int(np.flatnonzero(plain.rows == row)[0])
    heard = fast.audio(at, 20, 4_000)
    begin = round(20 * 320 * speed)
    original = tiny_corpus.clip(int(row))[begin : begin + round(4_000 * speed)]
    expected = np.interp(np.arange(4_000) * speed, np.arange(len(original)), original)
    assert np.corrcoef(heard, expected)[0, 1] > 0.99


def test_audio_outside_of_an_utterance_is_silent(tiny_corpus: Corpus) -> None:
    clips = utterances(tiny_corpus, "train", (1.0,))
    assert not clips.audio(0, -3, WINDOW)[: 3 * 320].any()
    assert not clips.audio(0, int(clips.frames[0]) + 2, WINDOW).any()


def test_mfccs_have_the_encoder_s_frames() -> None:
    """A click is heard in the frames whose 400 samples hold it, and in the neighbours that the differences look at."""
    for samples in (400, 719, 720, 5_000, WINDOW):
        assert mfcc(torch.randn(2, samples)).shape == (2, frame_count(samples), 39)
    audio = 0.01 * torch.randn(1, WINDOW)
    clicked = audio.clone()
    clicked[0, 320 * 25 + 200] += 0.5
    changed = (mfcc(clicked) - mfcc(audio)).abs().sum(-1)[0]
    assert changed.argmax() == 25


def test_a_whisper_s_frames_are_brought_to_the_encoder_s(tiny_whisper: Teacher) -> None:
    """They are centred on sample 320 t + 200: what is heard there changes frame t most."""
    features = hidden_state(tiny_whisper.encoder, 0)
    for samples in (720, 5_000, WINDOW):
        assert features(torch.randn(2, samples)).shape == (2, frame_count(samples), 48)
    audio = torch.zeros(1, WINDOW)
    audio[0, 0] = 1.0
    clicked = audio.clone()
    clicked[0, 320 * 10 + 200] = 0.01
    changed = (features(clicked) - features(audio)).abs().sum(-1)[0]
    assert changed.argmax() == 10


def test_windows_cover_every_frame_once(tiny_corpus: Corpus) -> None:
    clips = utterances(tiny_corpus, "train", (1.0, 0.9))
    seen = np.zeros(clips.firsts[-1], int)
    for utterance, first, frames in windows_of(clips, WINDOW):
        begin = clips.firsts[utterance] + first
        seen[begin : begin + frames] += 1
    assert (seen == 1).all()


def test_units_are_the_nearest_centroids(tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path) -> None:
    clips = utterances(tiny_corpus, "train", (1.0,))
    features = hidden_state(tiny_teacher.encoder, 2)
    centroids = fit_units(clips, features, 8, window=WINDOW, seed=0, device=CPU)
    assert np.array_equal(centroids, fit_units(clips, features, 8, window=WINDOW, seed=0, device=CPU))
    assign_units(clips, features, centroids, tmp_path / "units.npy", window=WINDOW, device=CPU)
    units = np.load(tmp_path / "units.npy")
    assert units.shape == (clips.firsts[-1],) and len(set(units)) > 3
    utterance = len(clips) // 2
    with torch.no_grad():
        states = features(torch.from_numpy(clips.audio(utterance, 0, WINDOW))[None])[0, : clips.frames[utterance]].numpy()
    expected = ((states[:, None] - centroids) ** 2).sum(-1).argmin(1)
    found = units[clips.firsts[utterance] : clips.firsts[utterance + 1]][: len(expected)]
    assert (found == expected[: len(found)]).mean() > 0.95  # a batch of another size rounds bfloat16 in another way


def test_too_small_a_corpus_is_refused(tiny_corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="5000 units need 50000 frames"):
        fit_units(utterances(tiny_corpus, "train", (1.0,)), mfcc, 5_000, window=WINDOW, seed=0, device=CPU)
