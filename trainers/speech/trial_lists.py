"""Trial lists as Parquet files: split, enrol_id, test_id, same_speaker."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.speech.corpora import SPLITS, Corpus
from trainers.speech.parquet import open_parquet, whole_file
from trainers.speech.trials import Trials, as_trials

SCHEMA = pa.schema({"split": pa.string(), "enrol_id": pa.string(), "test_id": pa.string(), "same_speaker": pa.bool_()})
COLUMNS = tuple(SCHEMA.names)


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
    return {split: as_trials(*(np.array(column) for column in zip(*kept[split], strict=True))) for split in SPLITS if split in kept}


def write_trials(path: Path, trials: Iterable[tuple[str, str, str, bool]]) -> None:
    """Writes (split, enrol_id, test_id, same_speaker) of each trial, whole or not at all."""
    with whole_file(path) as part:
        pq.write_table(pa.Table.from_pylist([dict(zip(COLUMNS, trial, strict=True)) for trial in trials], SCHEMA), part)


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
