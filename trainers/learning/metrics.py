"""Keyword accuracy and equal error rate, with 95 % intervals from a bootstrap over speakers. All rates are in percent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy(correct: Bools, weights: Floats | None = None) -> float:
    """Share of correct clips in percent; `weights` (clips,) counts a clip more than once, as a bootstrap does."""
    return float(100 * np.average(correct, weights=weights))


def equal_error_rate(scores: Floats, same: Bools, weights: Floats | None = None) -> float:
    """Percent at which false acceptances and false rejections meet, interpolated between neighbouring thresholds.

    scores (trials,): higher is more alike. same (trials,): the same speaker. Equal scores move together. Raises ValueError
    unless both kinds of trial are there (with weight).
    """
    order = np.argsort(-scores, kind="stable")
    return _sorted_equal_error_rate(scores[order], same[order], np.ones(len(scores)) if weights is None else weights[order])


def _sorted_equal_error_rate(scores: Floats, same: Bools, weights: Floats) -> float:
    accepted_wrongly, rejected_wrongly = _error_curve(scores, same, weights)
    gap = accepted_wrongly - rejected_wrongly  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(100 * (accepted_wrongly[after - 1] + share * (accepted_wrongly[after] - accepted_wrongly[after - 1])))


def _error_curve(scores: Floats, same: Bools, weights: Floats) -> tuple[Floats, Floats]:
    """Shares of false acceptances and of false rejections from the strictest threshold on; `scores` must fall."""
    targets, impostors = np.cumsum(weights * same), np.cumsum(weights * ~same)
    if not (targets[-1] > 0 and impostors[-1] > 0):
        raise ValueError("an equal error rate needs trials of the same and of different speakers")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    accepted_wrongly = np.append(0.0, impostors[last_of_tie] / impostors[-1])
    return accepted_wrongly, 1 - np.append(0.0, targets[last_of_tie] / targets[-1])


def smallest_detection_cost(scores: Floats, same: Bools, prior: float = 0.01) -> float:
    """NIST's minimum detection cost: the least over thresholds of prior x missed + (1 - prior) x false alarms, over that of the
    better of accepting all and none. From 0 to 1; `prior` is VoxCeleb's. Raises ValueError as `equal_error_rate`."""
    order = np.argsort(-scores, kind="stable")
    accepted_wrongly, rejected_wrongly = _error_curve(scores[order], same[order], np.ones(len(scores)))
    costs = prior * rejected_wrongly + (1 - prior) * accepted_wrongly
    return float(costs.min() / min(prior, 1 - prior))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a student did on one split, clip by clip and trial by trial: enough for every figure and its interval.

    correct, clip_speakers (clips,). trial_scores, same, enrol_speakers, test_speakers (trials,). Speakers are numbers.
    """

    correct: Bools
    clip_speakers: Ints
    trial_scores: Floats
    same: Bools
    enrol_speakers: Ints
    test_speakers: Ints


def draw_speakers(outcome: Outcome, seed: int = 0) -> Ints:
    """(resamples, speakers): how often each speaker is drawn. The same seed pairs the resamples of two students."""
    speakers = 1 + max(int(outcome.clip_speakers.max()), int(outcome.enrol_speakers.max()), int(outcome.test_speakers.max()))
    return np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=RESAMPLES)


def bootstrap(outcome: Outcome, drawn: Ints) -> tuple[Floats, Floats]:
    """Accuracy and equal error rate of every resample, each (resamples,); NaN where a resample lacks one kind of trial.

    A trial between two speakers counts as often as both were drawn (their product), a trial of one speaker as often as that one.
    """
    order = np.argsort(-outcome.trial_scores, kind="stable")
    scores, same = outcome.trial_scores[order], outcome.same[order]
    enrol, test = outcome.enrol_speakers[order], outcome.test_speakers[order]
    distinct, which = np.unique(drawn, axis=0, return_inverse=True)  # four speakers are drawn in 35 ways, not in a thousand
    accuracies, rates = np.full(len(distinct), np.nan), np.full(len(distinct), np.nan)
    for i, counts in enumerate(distinct):
        clips = counts[outcome.clip_speakers].astype(float)
        weights = np.where(same, counts[enrol], counts[enrol] * counts[test]).astype(float)
        if clips.any():
            accuracies[i] = accuracy(outcome.correct, clips)
        if (weights * same).any() and (weights * ~same).any():
            rates[i] = _sorted_equal_error_rate(scores, same, weights)
    return accuracies[which.ravel()], rates[which.ravel()]


def resampled(seeds: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """Values (2, seeds) and resamples (2, resamples) of keyword accuracy and equal error rate.

    Every resample draws speakers and seeds, the same ones for whatever has the same speakers and as many seeds, so that a
    difference of two is paired.
    """
    drawn = draw_speakers(seeds[0])
    each = np.array([bootstrap(outcome, drawn) for outcome in seeds])
    shares = np.random.default_rng(1).multinomial(len(each), np.full(len(each), 1 / len(each)), size=RESAMPLES) / len(each)
    values = [[accuracy(o.correct) for o in seeds], [equal_error_rate(o.trial_scores, o.same) for o in seeds]]
    return np.array(values), np.einsum("stn,ns->tn", each, shares)


def rates(*seeds: Outcome) -> tuple[Rate, Rate]:
    """Keyword accuracy and equal error rate of one model, or of a recipe's models of several seeds: means, with intervals over
    speakers and seeds."""
    values, drawn = resampled(seeds)
    return rate_of(values[0], drawn[0]), rate_of(values[1], drawn[1])


def changes(seeds: Sequence[Outcome], baseline: Sequence[Outcome]) -> tuple[Rate, Rate]:
    """Accuracy and equal error rate minus the baseline's, in points, with paired intervals: both see the same speakers drawn, and
    the same of their seeds, which are as many."""
    assert len(seeds) == len(baseline)
    (values, drawn), (before, drawn_before) = resampled(seeds), resampled(baseline)
    values, drawn = values - before, drawn - drawn_before
    return rate_of(values[0], drawn[0]), rate_of(values[1], drawn[1])


def rate_of(values: Floats, drawn: Floats) -> Rate:
    """values (seeds,), drawn (resamples,)."""
    low, high = np.nanpercentile(drawn, INTERVAL)
    return Rate(value=float(values.mean()), low=float(low), high=float(high))
