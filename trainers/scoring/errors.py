"""Error rates of clips and of trials, in percent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


def accuracy(correct: Bools, weights: Floats | None = None) -> float:
    """Share of correct clips in percent; `weights` (clips,) counts a clip more than once, as a bootstrap does."""
    return float(100 * np.average(correct, weights=weights))


def equal_error_rate(scores: Floats, same: Bools, weights: Floats | None = None) -> float:
    """Percent at which false acceptances and false rejections meet, interpolated between neighbouring thresholds.

    scores (trials,): higher is more alike. same (trials,): the same speaker. Equal scores move together. Raises ValueError
    unless both kinds of trial are there (with weight).
    """
    ranking = Ranking.of(scores, same)
    weights = np.ones(len(scores)) if weights is None else weights
    return ranking.equal_error_rate(weights[ranking.targets], weights[ranking.impostors])


def smallest_detection_cost(scores: Floats, same: Bools, prior: float = 0.01) -> float:
    """NIST's minimum detection cost: the least over thresholds of prior x missed + (1 - prior) x false alarms, over that of the
    better of accepting all and none. From 0 to 1; `prior` is VoxCeleb's. Raises ValueError as `equal_error_rate`."""
    ranking = Ranking.of(scores, same)
    _check_kinds(len(ranking.targets), len(ranking.impostors))
    missed = 1 - ranking.accepted_targets / len(ranking.targets)
    costs = prior * missed + (1 - prior) * (ranking.accepted_impostors / len(ranking.impostors))
    return float(costs.min() / min(prior, 1 - prior))


def macro(figure: Callable[[Bools], float], numbers: Ints) -> float:
    """The mean over corpora of what `figure` gives for the clips or trials of one: numbers (clips,), of each one's corpus."""
    return float(np.mean([figure(numbers == number) for number in np.unique(numbers)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Trials from the most alike on, sorted once to be weighted often.

    targets, impostors: the trials of the same and of different speakers. accepted_targets, accepted_impostors (thresholds + 1,):
    how many of them are accepted, from none to all; equal scores move together.
    """

    targets: Ints
    impostors: Ints
    accepted_targets: Ints
    accepted_impostors: Ints

    @classmethod
    def of(cls, scores: Floats, same: Bools) -> Self:
        order = np.argsort(-scores, kind="stable")
        last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
        kind = same[order]
        return cls(
            targets=order[kind],
            impostors=order[~kind],
            accepted_targets=np.append(0, np.cumsum(kind)[last_of_tie]),
            accepted_impostors=np.append(0, np.cumsum(~kind)[last_of_tie]),
        )

    def equal_error_rate(self, targets: Floats, impostors: Floats) -> float:
        """Of weights, in the order of `self.targets` and `self.impostors`. Raises ValueError where one kind weighs nothing."""
        accepted, wrongly = np.append(0.0, np.cumsum(targets)), np.append(0.0, np.cumsum(impostors))
        _check_kinds(accepted[-1], wrongly[-1])

        def shares(threshold: int) -> tuple[float, float]:
            """Of false acceptances and of false rejections."""
            return (
                float(wrongly[self.accepted_impostors[threshold]] / wrongly[-1]),
                1 - float(accepted[self.accepted_targets[threshold]] / accepted[-1]),
            )

        before, after = 0, len(self.accepted_targets) - 1  # the gap between the shares rises from -1 to 1
        while after - before > 1:
            middle = (before + after) // 2
            acceptances, rejections = shares(middle)
            before, after = (before, middle) if acceptances - rejections >= 0 else (middle, after)
        (low, rejected), (high, rejected_after) = shares(before), shares(after)
        share = -(low - rejected) / ((high - rejected_after) - (low - rejected))
        return 100 * (low + share * (high - low))


def _check_kinds(targets: float, impostors: float) -> None:
    if not (targets > 0 and impostors > 0):
        raise ValueError("an equal error rate needs trials of the same and of different speakers")
