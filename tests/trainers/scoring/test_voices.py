"""Voices in streams: who is made known by which clips, what counts as a trial, and what thresholds show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import EMBEDDING_DIM
from trainers.scoring.alarms import Heard
from trainers.scoring.outcome import Outcome
from trainers.scoring.streams import Said, Stream
from trainers.scoring.thresholds import voice_thresholds
from trainers.scoring.voices import CLIPS, enrolment, voices_heard, voices_shown
from trainers.speech.corpora import Corpus


def axis(number: int, share: float = 1.0) -> np.ndarray:
    """Of unit length, so much of it along one axis."""
    vector = np.zeros(EMBEDDING_DIM, np.float32)
    vector[[number, -1]] = share, np.sqrt(1 - share**2)
    return vector


def heard(said: list[Said], events: list[tuple[float, str, float, np.ndarray]]) -> Heard:
    times, keywords, probabilities, embeddings = zip(*events)
    return Heard(
        stream=Stream(samples=np.zeros(1, np.int16), said=tuple(said)),
        times=np.array(times, float),
        keywords=np.array(keywords, object),
        probabilities=np.array(probabilities, float),
        embeddings=np.array(embeddings, np.float32),
    )


def test_a_voice_is_known_by_three_clips_and_heard_in_others(tiny_corpus: Corpus) -> None:
    rows = tiny_corpus.rows("train", with_speaker=True)
    found = enrolment(tiny_corpus, rows)
    assert len(found) > 1
    for speaker, clips in found.items():
        assert len(set(clips.tolist())) == CLIPS and set(tiny_corpus.speakers[clips]) == {speaker}
        assert (tiny_corpus.speakers[rows] == speaker).sum() >= 2 * CLIPS
    assert {speaker: clips.tolist() for speaker, clips in enrolment(tiny_corpus, rows).items()} == {
        speaker: clips.tolist() for speaker, clips in found.items()
    }
    one = rows[tiny_corpus.speakers[rows] == next(iter(found))]
    assert enrolment(tiny_corpus, one) == {}  # nobody to take for another


def test_a_trial_is_an_event_in_known_speech_and_a_voice(tiny_corpus: Corpus) -> None:
    rows = tiny_corpus.rows("train", with_speaker=True)
    (ada, bob), known = list(enrolment(tiny_corpus, rows))[:2], enrolment(tiny_corpus, rows)
    voices = {ada: (known[ada], axis(0)), bob: (known[bob], axis(1))}
    heard_clip = next(int(row) for row in rows if tiny_corpus.speakers[row] == ada and row not in known[ada])
    word = str(tiny_corpus.keywords[heard_clip])
    said = [
        Said(word, 10, 10.5, 11, heard_clip),
        Said(word, 20, 20.5, 21, int(known[ada][0])),  # which made the voice known
        Said(None, 30, 40, 40),  # a recording
    ]
    events = [
        (11.2, word, 0.9, axis(0, 0.8)),
        (20.9, word, 0.9, axis(0)),
        (25.0, word, 0.9, axis(0)),  # where nothing was said
        (35.0, word, 0.9, axis(0)),
        (38.0, word, 0.2, axis(0)),
    ]
    outcome = voices_heard([heard(said, events)], voices, {word: 0.5}, 1.0, tiny_corpus)
    assert outcome.same.tolist() == [True, False]
    assert outcome.trial_scores == pytest.approx([0.8, 0.0])
    assert len(voices_heard([heard(said, events)], voices, {word: None}, 1.0, tiny_corpus).same) == 0


def outcome_of_events(own: np.ndarray, others: np.ndarray) -> Outcome:
    """Of speakers who say as many words each: own (speakers, words), others (speakers, speakers, words) by voice and speaker."""
    speakers, words = own.shape
    voice, speaker = np.indices((speakers, speakers)).reshape(2, -1)
    scores = np.where(np.eye(speakers, dtype=bool)[..., None], own[None], others).reshape(speakers**2, words)
    return Outcome(
        correct=np.zeros(0, bool),
        clip_speakers=np.zeros(0, int),
        trial_scores=scores.ravel(),
        same=np.repeat(voice == speaker, words),
        enrol_speakers=np.repeat(voice, words),
        test_speakers=np.repeat(speaker, words),
    )


@given(st.integers(0, 99))
def test_shares_of_what_was_missed_and_of_what_was_taken_for_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, others = rng.normal(0.5, 0.2, (5, 9)), rng.normal(0.0, 0.2, (5, 5, 9))
    (shown,) = voices_shown(outcome_of_events(own, others), [{"false_acceptance": 5.0, "threshold": 0.3}])
    assert shown["events"] == 45 and shown["voices"] == 5
    assert shown["missed"]["value"] == pytest.approx(100 * (own < 0.3).mean(), abs=0.01)
    assert shown["accepted"]["value"] == pytest.approx(100 * (others[~np.eye(5, dtype=bool)] >= 0.3).mean(), abs=0.01)
    for rate in (shown["missed"], shown["accepted"]):
        assert rate["low"] <= rate["value"] <= rate["high"]


def test_intervals_are_over_speakers_not_over_words() -> None:
    """One speaker of four is never known: however many words each says, three draws in ten have nobody of that kind or several."""
    own = np.repeat([[0.9], [0.9], [0.9], [0.1]], 1000, 1)
    (shown,) = voices_shown(outcome_of_events(own, np.zeros((4, 4, 1000))), [{"false_acceptance": 5.0, "threshold": 0.5}])
    assert shown["missed"] == {"value": 25.0, "low": 0.0, "high": 75.0} and shown["accepted"]["high"] == 0.0


def test_where_nothing_was_told_nothing_is_shown() -> None:
    nothing = outcome_of_events(np.zeros((0, 0)), np.zeros((0, 0, 0)))
    (shown,) = voices_shown(nothing, [{"false_acceptance": 5.0, "threshold": 0.5}])
    assert shown == {"chosen_for": 5.0, "events": 0, "voices": 0, "missed": None, "accepted": None}


def test_thresholds_of_a_stream_keep_their_rate() -> None:
    rng = np.random.default_rng(0)
    outcome = outcome_of_events(rng.normal(0.5, 0.2, (8, 10)), rng.normal(0.0, 0.2, (8, 8, 10)))
    stated = voice_thresholds(outcome)
    assert [entry["false_acceptance"] for entry in stated if "threshold" in entry] == [1.0, 5.0, 10.0]
    for shown, entry in zip(voices_shown(outcome, stated), stated):
        assert shown["accepted"]["value"] <= entry["false_acceptance"] == shown["chosen_for"]
        assert shown["missed"]["value"] == pytest.approx(entry["missed"], abs=0.01)
