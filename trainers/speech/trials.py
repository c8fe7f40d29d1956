"""Speaker verification trials: pairs of clips of one corpus, and whether one speaker says both."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.speech.corpora import Corpus, Rows

DRAWN_A_TRIAL = 40  # pairs drawn for each that is wanted: most have different keywords


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Each (trials,): rows of the corpus, and whether both clips are of one speaker."""

    enrol: Rows
    test: Rows
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def make_trials(corpus: Corpus, split: str, seed: int, per_speaker: int = 500) -> Trials:
    """For each speaker of a split, equally many pairs with a clip of his own and with a clip of somebody else of his corpus.

    The clips of a pair have different keywords (any two clips where keywords are not known), so that a system cannot score by
    the word. Up to `per_speaker` pairs of each kind, fewer where a speaker has not so many; none for a speaker of one clip. The
    same corpus and seed give the same trials. Raises ValueError when no speaker has pairs of both kinds.
    """
    trials = joined(draw_trials(corpus, split, seed, per_speaker))
    if not len(trials):
        where = " of one corpus" if len(corpus.names) > 1 else ""
        raise ValueError(f"split {split!r} allows no trials: they need 2 speakers{where}, one of them with clips of 2 keywords")
    return trials


def draw_trials(corpus: Corpus, split: str, seed: int, per_speaker: int = 500, *, but: Collection[int] = ()) -> list[Trials]:
    """As `make_trials`, for each corpus that has speakers in the split, those numbered in `but` left out. May be empty."""
    rows = corpus.rows(split, with_speaker=True)
    words, numbers = _word_numbers(corpus, rows), corpus.corpus_numbers[rows]
    return [
        _corpus_trials(corpus, rows[numbers == number], words, per_speaker, np.random.default_rng([seed, place]))
        for place, number in enumerate(np.unique(numbers))  # one corpus draws as if the others, that have nobody here, were not
        if number not in but
    ]


def joined(trials: Sequence[Trials]) -> Trials:
    """End to end."""
    none = as_trials(*(np.zeros(0, np.intp),) * 3)
    return as_trials(*(np.concatenate([getattr(t, name) for t in (none, *trials)]) for name in ("enrol", "test", "same")))


def as_trials(enrol: Rows, test: Rows, same: NDArray[np.generic]) -> Trials:
    return Trials(enrol=enrol.astype(np.intp), test=test.astype(np.intp), same=same.astype(bool))


def _word_numbers(corpus: Corpus, rows: Rows) -> NDArray[np.int64]:
    """One number a row of the corpus, equal where the keyword is; an unlabelled clip equals no other."""
    known = sorted(set(corpus.keywords[rows]) - {None})
    number = {keyword: i for i, keyword in enumerate(known)}
    return np.array([number.get(keyword, -1 - row) for row, keyword in enumerate(corpus.keywords)], np.int64)


def _corpus_trials(corpus: Corpus, rows: Rows, words: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> Trials:
    speakers = corpus.speakers[rows]
    return joined(
        [_speaker_trials(rows[speakers == name], rows[speakers != name], words, wanted, rng) for name in sorted(set(speakers))]
    )


def _speaker_trials(own: Rows, others: Rows, words: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> Trials:
    same = _pairs(own, own, words, wanted, rng)
    different = _pairs(own, others, words, wanted, rng)
    count = min(len(same), len(different))
    pairs = np.concatenate([same[:count], different[:count]])
    return as_trials(pairs[:, 0], pairs[:, 1], np.arange(2 * count) < count)


def _pairs(left: Rows, right: Rows, words: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> Rows:
    """Up to `wanted` distinct pairs of different words in random order, (pairs, 2). Left with itself: each pair once."""
    total = len(left) * len(right)
    drawn = max(DRAWN_A_TRIAL * wanted, 10_000)  # of more pairs than that a sample is enough
    codes = rng.permutation(total if total <= drawn else np.unique(rng.integers(total, size=drawn)))
    enrol, test = left[codes // max(1, len(right))], right[codes % max(1, len(right))]
    good = words[enrol] != words[test]
    if left is right:
        good &= enrol < test
    return np.stack([enrol[good], test[good]], 1)[:wanted]
