"""Speaker verification trials: pairs of clips, and whether one speaker says both."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainers.speech.corpora import Corpus, Rows
from trainers.speech.parquet import SPLITS, open_parquet, whole_file

SCHEMA = pa.schema({"split": pa.string(), "enrol_id": pa.string(), "test_id": pa.string(), "same_speaker": pa.bool_()})
COLUMNS = tuple(SCHEMA.names)
DRAWN_A_TRIAL = 40  # pairs drawn for each that is wanted: most have different keywords


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Each (trials,): rows of the corpus, and whether both clips are of one speaker."""

    enrol: Rows
    test: Rows
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def load_trials(path: Path, corpus: Corpus) -> dict[str, Trials]:
    """The trials of each split that a Parquet file names (split, enrol_id, test_id, same_speaker).

    Trials of clips that the corpus skipped are dropped. Raises ValueError when the file is not in the format, when a trial names
    a clip that is not in the corpus or of another split, and when it contradicts the corpus about the speakers.
    """
    with open_parquet(path, COLUMNS) as file:
        columns = file.read(list(COLUMNS)).to_pydict()
    skipped = {clip for clip, _ in corpus.skipped}
    row_of = {clip: row for row, clip in enumerate(corpus.ids)}
    kept: dict[str, list[tuple[int, int, bool]]] = {}
    for split, enrol, test, same in zip(*(columns[name] for name in COLUMNS), strict=True):
        if enrol not in skipped and test not in skipped:
            pair = (_row(row_of, enrol, path), _row(row_of, test, path))
            _check(corpus, pair, split, same, path)
            kept.setdefault(split, []).append((*pair, same))
    return {split: _trials(*(np.array(column) for column in zip(*kept[split], strict=True))) for split in SPLITS if split in kept}


def write_trials(path: Path, trials: Iterable[tuple[str, str, str, bool]]) -> None:
    """Writes (split, enrol_id, test_id, same_speaker) of each trial, whole or not at all."""
    with whole_file(path) as part:
        pq.write_table(pa.Table.from_pylist([dict(zip(COLUMNS, trial, strict=True)) for trial in trials], SCHEMA), part)


def make_trials(corpus: Corpus, split: str, seed: int, per_speaker: int = 500) -> Trials:
    """For each speaker of a split, equally many pairs with a clip of his own and with a clip of somebody else.

    The clips of a pair have different keywords (any two clips where keywords are not known), so that a system cannot score by
    the word. Up to `per_speaker` pairs of each kind, fewer where a speaker has not so many; none for a speaker of one clip. The
    same corpus and seed give the same trials. Raises ValueError when no speaker has pairs of both kinds.
    """
    rng = np.random.default_rng(seed)
    rows = corpus.rows(split, with_speaker=True)
    words = _word_numbers(corpus, rows)
    found = [
        _speaker_trials(rows[corpus.speakers[rows] == name], rows[corpus.speakers[rows] != name], words, per_speaker, rng)
        for name in sorted(set(corpus.speakers[rows]))
    ]
    if not sum(map(len, found)):
        raise ValueError(f"split {split!r} allows no trials: they need 2 speakers, one of them with clips of 2 keywords")
    return _trials(*(np.concatenate([getattr(t, name) for t in found]) for name in ("enrol", "test", "same")))


def _trials(enrol: Rows, test: Rows, same: NDArray[np.bool_]) -> Trials:
    return Trials(enrol=enrol.astype(np.intp), test=test.astype(np.intp), same=same.astype(bool))


def _row(row_of: Mapping[str, int], clip: str, path: Path) -> int:
    if clip not in row_of:
        raise ValueError(f"{path} names the clip {clip!r}, which is not in the corpus")
    return row_of[clip]


def _check(corpus: Corpus, pair: tuple[int, int], split: str, same: object, path: Path) -> None:
    names = " and ".join(repr(corpus.ids[row]) for row in pair)
    if any(corpus.splits[row] != split for row in pair):
        raise ValueError(f"{path}: the trial of {names} is in split {split!r}, its clips are not")
    if not isinstance(same, bool):
        raise ValueError(f"{path}: same_speaker of the trial of {names} is {same!r}, not true or false")
    enrol, test = (corpus.speakers[row] for row in pair)
    if enrol is not None and test is not None and (enrol == test) != same:
        raise ValueError(f"{path}: same_speaker of {names} is {str(same).lower()}, but their speakers are {enrol!r} and {test!r}")


def _word_numbers(corpus: Corpus, rows: Rows) -> NDArray[np.int64]:
    """One number a row of the corpus, equal where the keyword is; an unlabelled clip equals no other."""
    known = sorted(set(corpus.keywords[rows]) - {None})
    number = {keyword: i for i, keyword in enumerate(known)}
    return np.array([number.get(keyword, -1 - row) for row, keyword in enumerate(corpus.keywords)], np.int64)


def _speaker_trials(own: Rows, others: Rows, words: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> Trials:
    same = _pairs(own, own, words, wanted, rng)
    different = _pairs(own, others, words, wanted, rng)
    count = min(len(same), len(different))
    pairs = np.concatenate([same[:count], different[:count]])
    return _trials(pairs[:, 0], pairs[:, 1], np.arange(2 * count) < count)


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
