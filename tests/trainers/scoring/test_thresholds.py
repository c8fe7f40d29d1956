"""A threshold keeps its rate on the trials that it was chosen on, and is the lowest that does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.scoring.outcome import Outcome
from trainers.scoring.thresholds import clip_thresholds, lowest_threshold, voice_thresholds


def accepted(others: list[np.ndarray], threshold: float) -> float:
    return float(np.mean([(scores >= threshold).mean() for scores in others]))


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=30), min_size=1, max_size=3),
    st.floats(0.0, 1.0),
)
def test_the_lowest_threshold_that_keeps_a_rate(drawn: list[list[int]], share: float) -> None:
    others = [np.array(scores) / 10 for scores in drawn]
    threshold = lowest_threshold(others, share)
    assert accepted(others, threshold) <= share + 1e-9
    below = [score for score in np.concatenate(others) if score < threshold]
    assert not below or accepted(others, max(below)) > share


def outcome(same: np.ndarray, scores: np.ndarray) -> Outcome:
    speakers = np.zeros(len(same), int)
    return Outcome(
        correct=np.ones(1, bool),
        clip_speakers=np.zeros(1, int),
        trial_scores=scores,
        same=same,
        enrol_speakers=speakers,
        test_speakers=np.where(same, speakers, 1),
    )


def test_a_rate_is_stated_where_trials_support_it() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0  # 200 trials of different speakers: enough for 5 and 10 %, not for 1 %
    one, five, ten = voice_thresholds(outcome(same, same * 0.5 + 0.1 * rng.standard_normal(400)))
    assert one == {"false_acceptance": 1.0, "unsupported": "200 trials of different speakers; 300 are needed"}
    assert five["threshold"] > ten["threshold"] == pytest.approx(0.1 * 1.28, abs=0.05)
    assert 0 <= ten["missed"] <= five["missed"] < 5


def test_what_nearly_all_clips_of_a_voice_reach_is_stated_where_it_is_lower() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    unsure, sure = (outcome(same, same * apart + 0.2 * rng.standard_normal(4000)) for apart in (0.4, 2.0))
    *stated, last = clip_thresholds(unsure)
    assert stated == voice_thresholds(unsure)
    assert last["threshold"] < stated[-1]["threshold"] and last["false_acceptance"] > 10
    scores = unsure.trial_scores
    assert (scores[same] < last["threshold"]).mean() == pytest.approx(0.05, abs=1e-3) and last["missed"] == 5.0
    assert 100 * (scores[~same] >= last["threshold"]).mean() == pytest.approx(last["false_acceptance"], abs=0.1)
    assert clip_thresholds(sure) == voice_thresholds(sure)  # 10 % of others ask for less
    few = outcome(same[:40], unsure.trial_scores[:40])
    assert clip_thresholds(few) == voice_thresholds(few)


def test_a_corpus_of_few_trials_is_named_and_left_out() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(430) % 2 == 0
    scores = same * 0.5 + 0.1 * rng.standard_normal(430)
    large, few = outcome(same[:400], scores[:400]), np.arange(430) >= 400
    both = replace(
        outcome(same, scores),
        enrol_speakers=2 * few,
        test_speakers=2 * few + ~same,
        speaker_corpora=np.array([0, 0, 1, 1]),
        corpora=np.array(["large", "few"]),
    )
    for found, alone in zip(voice_thresholds(both), voice_thresholds(large)):
        assert found == ({**alone, "without": ["few"]} if "threshold" in alone else alone)


def test_each_corpus_counts_once() -> None:
    quiet, loud = np.linspace(0, 0.1, 1000), np.linspace(0.5, 0.9, 100)
    threshold = lowest_threshold([quiet, loud], 0.05)
    assert accepted([quiet, loud], threshold) == pytest.approx(0.05, abs=0.005) and 0.8 < threshold < 0.9
