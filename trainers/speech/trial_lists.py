"""Trial lists as Parquet files: split, enrol_id, test_id, same_speaker. A list is for one corpus."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.speech.columns import text_columns
from trainers.speech.corpora import SPLITS, Corpus
from trainers.speech.parquet import open_parquet, readable, whole_file
from trainers.speech.trials import Trials, as_trials, draw_trials, joined, make_trials

SCHEMA = pa.schema({"split": pa.string(), "enrol_id": pa.string(), "test_id": pa.string(), "same_speaker": pa.bool_()})
COLUMNS = tuple(SCHEMA.names)
SCORED = ("val", "test")

Listed = tuple[str, str, str, object]  # a row of a list
Places = Mapping[str, Mapping[int, int]]  # clip id -> number of each corpus that has it -> row


def study_trials(paths: Sequence[Path], corpus: Corpus, seed: int) -> dict[str, Trials]:
    """The trials of validation and test: of the lists and, for each corpus and split that no list is for, drawn within it.

    Raises ValueError as `load_lists`, and where a split has no trials and allows none.
    """
    listed, found = load_lists(paths, corpus), dict[str, Trials]()
    for split in SCORED:
        given = {number: trials for (of, number), trials in listed.items() if of == split}
        trials = joined([*given.values(), *draw_trials(corpus, split, seed, but=given)])
        found[split] = trials if len(trials) else make_trials(corpus, split, seed)
    return found


def load_lists(paths: Sequence[Path], corpus: Corpus) -> dict[tuple[str, int], Trials]:
    """The trials of each split and corpus (its number) that the lists name.

    Raises ValueError as `load_trials`, for two lists of one corpus and split, and where the trials of one are all of the same or
    all of different speakers.
    """
    found: dict[tuple[str, int], Trials] = {}
    lists: dict[tuple[str, int], Path] = {}
    for path in paths:
        for split, trials in load_trials(path, corpus).items():
            key = split, int(corpus.corpus_numbers[trials.enrol[0]])
            if key in found:
                raise ValueError(f"{lists[key]} and {path} both give {split} trials of {_name(corpus, key[1])}: give one of them")
            if trials.same.all() or not trials.same.any():
                kind = "the same speaker" if trials.same.all() else "different speakers"
                raise ValueError(f"{path}: all {len(trials)} {split} trials are of {kind}: an EER needs both kinds")
            found[key], lists[key] = trials, path
    return found


def load_trials(path: Path, corpus: Corpus) -> dict[str, Trials]:
    """The trials of each split that a Parquet file names (split, enrol_id, test_id, same_speaker: true or false, 1 or 0).

    A list is for the corpus that has both clips of each trial. Trials of clips that were skipped are dropped.
    Raises ValueError when the file is not in the format, when a trial names a clip that is not in the corpus or of another split,
    when the trials are of several corpora or may be, and when one contradicts the corpus about the speakers.
    """
    with open_parquet(path, COLUMNS) as file, readable(path):
        table = file.read(list(COLUMNS))
    texts = text_columns(path, table, COLUMNS[:3])[0].to_pydict()
    trials: list[Listed] = list(zip(*texts.values(), table[COLUMNS[3]].to_pylist(), strict=True))
    skipped, places = {clip for clip, _ in corpus.skipped}, places_of(corpus)
    number = _corpus_of([t for t in trials if not skipped & {t[1], t[2]}], corpus, places, path)
    kept: dict[str, list[tuple[int, int, bool]]] = {}
    for split, enrol, test, said in trials:
        if number is not None and number in places.get(enrol, {}) and number in places.get(test, {}):
            pair = places[enrol][number], places[test][number]
            same = bool(said) if said in (0, 1) else said
            _check(corpus, pair, split, same, path)
            kept.setdefault(split, []).append((*pair, bool(same)))
    return {split: as_trials(*(np.array(column) for column in zip(*kept[split], strict=True))) for split in SPLITS if split in kept}


def places_of(corpus: Corpus) -> Places:
    """The rows of each id: one in each corpus that has it."""
    places: dict[str, dict[int, int]] = {}
    for row, (clip, number) in enumerate(zip(corpus.ids, corpus.corpus_numbers.tolist(), strict=True)):
        places.setdefault(clip, {})[number] = row
    return places


def _corpus_of(trials: Sequence[Listed], corpus: Corpus, places: Places, path: Path) -> int | None:
    """The number of the one corpus that has both clips of each trial, None without a trial."""
    left: set[int] | None = None
    for _, enrol, test, _ in trials:
        both = _with_both(enrol, test, corpus, places, path)
        before, left = left, both if left is None else left & both
        if not left:
            names = f"{_names(corpus, both)}, those before it of {_names(corpus, before or ())}"
            raise ValueError(f"{path} mixes corpora: the trial of {enrol!r} and {test!r} is of {names}; write a list for each")
    if left and len(left) > 1:
        raise ValueError(f"{path}: its clips are all in several corpora, {_names(corpus, left)}: give ids that are in one alone")
    return left.pop() if left else None


def _with_both(enrol: str, test: str, corpus: Corpus, places: Places, path: Path) -> set[int]:
    for clip in (enrol, test):
        if clip not in places:
            raise ValueError(f"{path} names the clip {clip!r}, which is not in the corpus")
    if both := places[enrol].keys() & places[test].keys():
        return both
    mixed = f"a clip of {_names(corpus, places[enrol])} with one of {_names(corpus, places[test])}"
    raise ValueError(f"{path} mixes corpora: the trial of {enrol!r} and {test!r} pairs {mixed}; a trial is of one corpus")


def _names(corpus: Corpus, numbers: Iterable[int]) -> str:
    return " and ".join(_name(corpus, number) for number in sorted(numbers))


def _name(corpus: Corpus, number: int) -> str:
    return corpus.names[number] if corpus.names else "the corpus"


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
