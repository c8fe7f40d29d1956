"""Trial lists as Parquet files: split, enrol_id, test_id, same_speaker."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.speech.columns import text_columns
from trainers.speech.corpora import SPLITS, Corpus
from trainers.speech.parquet import open_parquet, whole_file
from trainers.speech.trials import Trials, as_trials

SCHEMA = pa.schema({"split": pa.string(), "enrol_id": pa.string(), "test_id": pa.string(), "same_speaker": pa.bool_()})
COLUMNS = tuple(SCHEMA.names)


def load_trials(path: Path, corpus: Corpus) -> dict[str, Trials]:
    """The trials of each split that a Parquet file names (split, enrol_id, test_id, same_speaker: true or false, 1 or 0).

    Trials of clips that the corpus skipped are dropped. Where an id is in several corpora, a trial is of the one that has both.
    Raises ValueError when the file is not in the format, when a trial names a clip that is not in the corpus or of another split,
    when it may be of two corpora, and when it contradicts the corpus about the speakers.
    """
    with open_parquet(path, COLUMNS) as file:
        table = file.read(list(COLUMNS))
    texts = text_columns(path, table, COLUMNS[:3])[0].to_pydict()
    skipped, rows = {clip for clip, _ in corpus.skipped}, rows_by_id(corpus)
    kept: dict[str, list[tuple[int, int, bool]]] = {}
    for split, enrol, test, said in zip(*texts.values(), table[COLUMNS[3]].to_pylist(), strict=True):
        if enrol not in skipped and test not in skipped:
            pair = _pair(corpus, rows, enrol, test, path)
            same = bool(said) if said in (0, 1) else said
            _check(corpus, pair, split, same, path)
            kept.setdefault(split, []).append((*pair, same))
    return {split: as_trials(*(np.array(column) for column in zip(*kept[split], strict=True))) for split in SPLITS if split in kept}


def rows_by_id(corpus: Corpus) -> dict[str, list[int]]:
    """Rows of each id: one in each corpus that has it."""
    rows: dict[str, list[int]] = {}
    for row, clip in enumerate(corpus.ids):
        rows.setdefault(clip, []).append(row)
    return rows


def _pair(corpus: Corpus, rows: Mapping[str, list[int]], enrol: str, test: str, path: Path) -> tuple[int, int]:
    for clip in (enrol, test):
        if clip not in rows:
            raise ValueError(f"{path} names the clip {clip!r}, which is not in the corpus")
    of = corpus.corpora if corpus.corpora is not None else np.zeros(len(corpus), int)
    pairs = [(a, b) for a in rows[enrol] for b in rows[test] if of[a] == of[b]]
    if len(pairs) == 1:
        return pairs[0]
    names = " and ".join(dict.fromkeys(corpus.names[of[row]] for row in (*rows[enrol], *rows[test])))
    wrong = "clips of two corpora" if not pairs else "clips that are in several corpora"
    raise ValueError(f"{path}: the trial of {enrol!r} and {test!r} names {wrong}, {names}: give ids that are in one corpus alone")


def write_trials(path: Path, trials: Iterable[tuple[str, str, str, bool]]) -> None:
    """Writes (split, enrol_id, test_id, same_speaker) of each trial, whole or not at all."""
    with whole_file(path) as part:
        pq.write_table(pa.Table.from_pylist([dict(zip(COLUMNS, trial, strict=True)) for trial in trials], SCHEMA), part)


def _check(corpus: Corpus, pair: tuple[int, int], split: str, same: object, path: Path) -> None:
    names = " and ".join(repr(corpus.ids[row]) for row in pair)
    if any(corpus.splits[row] != split for row in pair):
        raise ValueError(f"{path}: the trial of {names} is in split {split!r}, its clips are not")
    if not isinstance(same, bool):
        raise ValueError(f"{path}: same_speaker of the trial of {names} is {same!r}, not true or false")
    enrol, test = (corpus.speakers[row] for row in pair)
    if enrol is not None and test is not None and (enrol == test) != same:
        raise ValueError(f"{path}: same_speaker of {names} is {str(same).lower()}, but their speakers are {enrol!r} and {test!r}")
