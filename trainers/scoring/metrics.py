"""Keyword accuracy and equal error rate with 95 % intervals, by corpus and as means over corpora. All rates are in percent.

Each corpus counts once, however many clips it has. Intervals are from a bootstrap over speakers within corpora: in each resample
the speakers of a corpus are redrawn among themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainers.scoring.errors import Floats, Ints, Ranking, accuracy, equal_error_rate, smallest_detection_cost
from trainers.scoring.outcome import Outcome, parts

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float


def draw_speakers(outcome: Outcome, seed: int | Sequence[int] = 0) -> Ints:
    """(resamples, speakers) of a corpus: how often each speaker is drawn. A seed pairs the resamples of two students."""
    numbers = np.concatenate([outcome.clip_speakers, outcome.enrol_speakers, outcome.test_speakers])
    speakers = 1 + int(numbers.max())
    return np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=RESAMPLES)


def bootstrap(outcome: Outcome, drawn: Ints) -> tuple[Floats, Floats]:
    """Accuracy and equal error rate of every resample of a corpus, each (resamples,); NaN where one lacks a kind of trial.

    A trial between two speakers counts as often as both were drawn (their product), a trial of one speaker as often as that one.
    Where one speaker alone was drawn, which happens where there are few, that one is tried against all others.
    """
    distinct, which = np.unique(drawn, axis=0, return_inverse=True)  # four speakers are drawn in 35 ways, not in a thousand
    clips, right = (np.bincount(outcome.clip_speakers, w, drawn.shape[1]) for w in (None, outcome.correct))
    heard = distinct @ clips
    accuracies = np.divide(distinct @ right, heard, out=np.full(len(distinct), np.nan), where=heard > 0) * 100
    return accuracies[which.ravel()], _bootstrap_trials(outcome, distinct)[which.ravel()]


def _bootstrap_trials(outcome: Outcome, drawn: Ints) -> Floats:
    rates = np.full(len(drawn), np.nan)
    if not len(outcome.same):
        return rates
    ranking = Ranking.of(outcome.trial_scores, outcome.same)
    targets = outcome.enrol_speakers[ranking.targets]
    enrol, test = outcome.enrol_speakers[ranking.impostors], outcome.test_speakers[ranking.impostors]
    for i, counts in enumerate(drawn.astype(float)):
        same, different = counts[targets], counts[enrol] * counts[test]
        if not different.any():  # one speaker alone was drawn
            different = counts[enrol] + counts[test]
        if same.any() and different.any():
            rates[i] = ranking.equal_error_rate(same, different)
    return rates


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """One model's figures, or a recipe's models' of several seeds, or the difference of two, with their resamples.

    names: of the corpora; values (corpora, 2, seeds), drawn (corpora, 2, resamples): keyword accuracy and equal error rate, NaN
    where a corpus has none.
    """

    names: tuple[str, ...]
    values: Floats
    drawn: Floats

    def __sub__(self, other: "Resampled") -> "Resampled":
        """In points, paired. Raises ValueError for figures of other corpora."""
        if self.names != other.names:
            named = ("; ".join(filter(None, names)) or "one corpus" for names in (self.names, other.names))
            raise ValueError(f"scores of other corpora cannot be compared, {' and '.join(named)}: begin a new study")
        return Resampled(names=self.names, values=self.values - other.values, drawn=self.drawn - other.drawn)

    def macro(self) -> tuple[Floats, Floats]:
        """(2, seeds), (2, resamples): means over the corpora that have the figure."""
        has = np.isfinite(self.values[:, :, 0])
        values, drawn = ([of[has[:, kind], kind].mean(axis=0) for kind in range(2)] for of in (self.values, self.drawn))
        return np.array(values), np.array(drawn)

    def rates(self) -> tuple[Rate, Rate]:
        """Means over corpora of keyword accuracy and of equal error rate."""
        values, drawn = self.macro()
        return rate_of(values[0], drawn[0]), rate_of(values[1], drawn[1])

    def by_corpus(self) -> dict[str, dict[str, Rate]]:
        """`accuracy` and `eer` of each corpus that has them; empty where there is one corpus alone."""
        return {
            name: {kind: rate_of(values[k], drawn[k]) for k, kind in enumerate(("accuracy", "eer")) if np.isfinite(values[k]).all()}
            for name, values, drawn in zip(self.names, self.values, self.drawn, strict=True)
            if name
        }


def resampled(seeds: Sequence[Outcome]) -> Resampled:
    """Every resample draws speakers and seeds, the same ones for whatever has the same speakers and as many seeds, so that a
    difference of two is paired."""
    each = [_resampled_seed(outcome) for outcome in seeds]
    values, drawn = np.stack([v for v, _ in each], -1), np.stack([d for _, d in each])
    shares = np.random.default_rng(1).multinomial(len(each), np.full(len(each), 1 / len(each)), size=RESAMPLES) / len(each)
    return Resampled(names=tuple(parts(seeds[0])), values=values, drawn=np.einsum("sctn,ns->ctn", drawn, shares))


def _resampled_seed(outcome: Outcome) -> tuple[Floats, Floats]:
    """Values (corpora, 2) and resamples (corpora, 2, resamples)."""
    found = list(parts(outcome).values())
    values = [
        [accuracy(p.correct) if len(p.correct) else np.nan, equal_error_rate(p.trial_scores, p.same) if len(p.same) else np.nan]
        for p in found
    ]
    drawn = [[whole(rates) for rates in bootstrap(p, draw_speakers(p, [0, place]))] for place, p in enumerate(found)]
    return np.array(values), np.array(drawn)


def whole(drawn: Floats) -> Floats:
    """(resamples,): in the place of those that lack a kind of trial others of the corpus, the same for whatever has its speakers;
    they would take the draws of all other corpora away."""
    has = np.isfinite(drawn)
    return np.where(has, drawn, np.resize(drawn[has], len(drawn))) if has.any() else drawn


def rates(*seeds: Outcome) -> tuple[Rate, Rate]:
    """Keyword accuracy and equal error rate of one model, or of a recipe's models of several seeds: means over corpora and seeds,
    with intervals over speakers and seeds."""
    return resampled(seeds).rates()


def changes(seeds: Sequence[Outcome], baseline: Sequence[Outcome]) -> tuple[Rate, Rate]:
    """Accuracy and equal error rate minus the baseline's, in points, with paired intervals: both see the same speakers drawn, and
    the same of their seeds, which are as many."""
    assert len(seeds) == len(baseline)
    return (resampled(seeds) - resampled(baseline)).rates()


def detection_costs(outcome: Outcome) -> dict[str, float]:
    """The smallest detection cost of each corpus that has trials, by name as in `parts`."""
    return {name: smallest_detection_cost(p.trial_scores, p.same) for name, p in parts(outcome).items() if len(p.same)}


def worst_speakers(outcome: Outcome) -> dict[str, Any] | None:
    """Keyword accuracy of the quarter of speakers whom a model hears worst, in percent, each speaker counted once; None of fewer
    than four. They were chosen by the clips that they are judged by: strangers like them may be heard better."""
    said = np.bincount(outcome.clip_speakers)
    right = np.bincount(outcome.clip_speakers, outcome.correct, len(said))
    each = np.sort(100 * right[said > 0] / said[said > 0])
    count = len(each) // 4
    return {"speakers": count, "of": len(each), "accuracy": round(float(each[:count].mean()), 2)} if count else None


def rate_of(values: Floats, drawn: Floats) -> Rate:
    """values (seeds,), drawn (resamples,)."""
    low, high = np.nanpercentile(drawn, INTERVAL)
    return Rate(value=float(values.mean()), low=float(low), high=float(high))


def contents(by_corpus: Mapping[str, Mapping[str, Rate]]) -> dict[str, dict[str, Any]]:
    """As JSON."""
    return {name: {kind: asdict(rate) for kind, rate in found.items()} for name, found in by_corpus.items()}
