"""What a student did on a split: enough for every figure and its interval."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainers.scoring.errors import Bools, Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a student did on one split, clip by clip and trial by trial: enough for every figure and its interval.

    correct, clip_speakers (clips,). trial_scores, same, enrol_speakers, test_speakers (trials,). Speakers are numbers.
    corpora (corpora,): their names where the split has several, and speaker_corpora (speakers,): of which each speaker is, and so
    each clip and trial. Both are empty where all is of one.
    """

    correct: Bools
    clip_speakers: Ints
    trial_scores: Floats
    same: Bools
    enrol_speakers: Ints
    test_speakers: Ints
    speaker_corpora: Ints = field(default_factory=lambda: np.zeros(0, np.intp))
    corpora: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))


def parts(outcome: Outcome) -> dict[str, Outcome]:
    """What each corpus has of it, by name, with speakers of its own numbers from 0; all of it as "" where there is one corpus."""
    if not len(outcome.corpora):
        return {"": outcome}
    return {str(name): _part(outcome, outcome.speaker_corpora == number) for number, name in enumerate(outcome.corpora)}


def _part(outcome: Outcome, speakers: Bools) -> Outcome:
    own, clips, trials = np.cumsum(speakers) - 1, speakers[outcome.clip_speakers], speakers[outcome.enrol_speakers]
    assert np.array_equal(trials, speakers[outcome.test_speakers]), "a trial is of one corpus"
    return Outcome(
        correct=outcome.correct[clips],
        clip_speakers=own[outcome.clip_speakers[clips]],
        trial_scores=outcome.trial_scores[trials],
        same=outcome.same[trials],
        enrol_speakers=own[outcome.enrol_speakers[trials]],
        test_speakers=own[outcome.test_speakers[trials]],
    )
