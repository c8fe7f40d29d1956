"""A fixed, balanced draw of a split: what is enough to tell candidates apart, in a fraction of the time.

A draw takes clips by turns: of the corpora, in each of its keywords, and of those of the speakers who have the fewest so far.
Trials likewise: of the corpora, of both kinds, of the speakers; of equal ones those that need the least speech beside what is
heard anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.learning.batches import window_starts
from trainers.speech.corpora import Corpus, Rows
from trainers.speech.trials import Trials, as_trials

CLIPS = 480  # with a keyword; the log in tests/benchmarks/README.md tells how well they rank candidates
TRIALS = 960
MOST_WINDOWS = 20  # a clip is heard for 20 windows at most: longer ones tell a speaker no better


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored of a split: clips with a keyword (rows), and trials."""

    clips: Rows
    trials: Trials

    @property
    def rows(self) -> Rows:
        """All clips that have to be heard, rising."""
        return np.unique(np.concatenate([self.clips, self.trials.enrol, self.trials.test]))


def whole(corpus: Corpus, split: str, trials: Trials) -> Scored:
    return Scored(clips=corpus.rows(split, with_keyword=True), trials=trials)


def balanced_draw(corpus: Corpus, split: str, trials: Trials, window: int, clips: int = CLIPS, most_trials: int = TRIALS) -> Scored:
    """The same for the same corpus, trials and window; all of what is no larger than the draw."""
    rows = corpus.rows(split, with_keyword=True)
    corpora, speakers = corpus.corpus_numbers, _numbers(corpus.speakers)
    groups = (corpora[rows], _pairs(corpora[rows], _numbers(corpus.keywords)[rows]), speakers[rows])
    drawn = rows[in_turns(groups, clips)]
    kinds = (
        corpora[trials.enrol],
        _pairs(corpora[trials.enrol], trials.same),
        _pairs(trials.same, speakers[trials.enrol]),
        _pairs(trials.same, speakers[trials.test]),
    )
    windows = np.array([len(window_starts(int(length), window)[:MOST_WINDOWS]) for length in corpus.lengths])
    windows[drawn] = 0
    picked = in_turns(kinds, most_trials, (trials.enrol, trials.test), windows)
    return Scored(clips=drawn, trials=as_trials(trials.enrol[picked], trials.test[picked], trials.same[picked]))


def in_turns(
    groups: Sequence[NDArray[np.integer]],
    count: int,
    parts: Sequence[NDArray[np.integer]] = (),
    costs: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    """Places of at most `count` items, rising. Each is one whose first group has the fewest so far; of those, whose second one has;
    and so on; then whose `parts` cost least, each of which costs once; else at random, always alike.

    groups, parts: (items,) numbers from 0 each. costs: by number of a part.
    """
    items = len(groups[0])
    if items <= count:
        return np.arange(items)
    shuffled = np.random.default_rng(0).permutation(items)
    sorted_groups = [group[shuffled] for group in groups]
    sorted_parts = [part[shuffled] for part in parts]
    taken = [np.zeros(1 + int(group.max()), np.int64) for group in groups]
    left, costs = np.ones(items, bool), None if costs is None else costs.copy()
    picked = list[int]()
    while len(picked) < count:
        at = np.flatnonzero(left)
        for group, counted in zip(sorted_groups, taken):
            counts = counted[group[at]]
            at = at[counts == counts.min()]
        if costs is not None:
            price = np.sum([costs[part[at]] for part in sorted_parts], axis=0)
            at = at[price == price.min()]
        first = int(at[0])
        picked.append(first)
        left[first] = False
        for group, counted in zip(sorted_groups, taken):
            counted[group[first]] += 1
        if costs is not None:
            costs[[part[first] for part in sorted_parts]] = 0
    return np.sort(shuffled[picked])


def _numbers(names: NDArray[np.object_]) -> NDArray[np.intp]:
    """(clips,) equal where names are; what has none is a group of its own."""
    named = np.array([f"clip {i}" if name is None else f"known {name}" for i, name in enumerate(names)])
    return np.unique(named, return_inverse=True)[1]


def _pairs(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.intp]:
    """(items,) a number for each pair."""
    return np.unique(np.stack([np.asarray(first, np.int64), np.asarray(second, np.int64)]), axis=1, return_inverse=True)[1].ravel()
