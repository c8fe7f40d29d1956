"""Trials: lists that are read are checked against the corpus; lists that are made are balanced and never of one word."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.speech.corpora import Corpus
from trainers.speech.trial_lists import load_trials, write_trials
from trainers.speech.trials import Trials, make_trials

REAL = Path(__file__).parents[3] / ".." / "shared" / "data"


def corpus_of(clips: list[tuple[str, str | None, str | None]], skipped: tuple[str, ...] = ()) -> Corpus:
    """A corpus without samples of (split, keyword, speaker) clips named c0, c1, ..."""
    count = len(clips)
    zeros = np.zeros(count, np.int64)
    split, keyword, speaker = (np.array([clip[i] for clip in clips], object) for i in range(3))
    return Corpus(
        samples=(), files=zeros, starts=zeros, lengths=zeros, ids=np.array([f"c{i}" for i in range(count)], object), splits=split,
        keywords=keyword, speakers=speaker, digest="", synthetic=False, skipped=tuple((clip, "silent") for clip in skipped),
    )  # fmt: skip


def write(path: Path, *trials: tuple[Any, ...]) -> Path:
    names = ("split", "enrol_id", "test_id", "same_speaker")
    pq.write_table(pa.Table.from_pylist([dict(zip(names, trial, strict=True)) for trial in trials]), path)
    return path


CLIPS: list[tuple[str, str | None, str | None]] = [
    ("val", "yes", "ann"),
    ("val", "no", "ann"),
    ("val", "no", "bob"),
    ("test", "yes", "eve"),
    ("test", "no", None),
]


def test_trials_are_read_by_split(tmp_path: Path) -> None:
    path = write(tmp_path / "t", ("val", "c0", "c1", True), ("test", "c3", "c4", False), ("val", "c0", "c2", False))
    found = load_trials(path, corpus_of(CLIPS))
    assert sorted(found) == ["test", "val"]
    assert (found["val"].enrol.tolist(), found["val"].test.tolist()) == ([0, 0], [1, 2])
    assert found["val"].same.tolist() == [True, False]
    assert found["test"].same.dtype == bool


def test_trials_that_are_written_are_read(tmp_path: Path) -> None:
    write_trials(tmp_path / "new" / "t", [("test", "c3", "c4", False), ("val", "c0", "c1", True)])
    found = load_trials(tmp_path / "new" / "t", corpus_of(CLIPS))
    assert {split: pairs_of(trials) for split, trials in found.items()} == {"test": [(3, 4, False)], "val": [(0, 1, True)]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t"]


def test_trials_of_skipped_clips_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "t", ("val", "c0", "gone", True), ("val", "gone", "c1", True), ("val", "c0", "c1", True))
    assert len(load_trials(path, corpus_of(CLIPS, skipped=("gone",)))["val"]) == 1


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (("val", "c0", "c9", True), "names the clip 'c9', which is not in the corpus"),
        (("val", "c0", None, True), "names the clip None"),
        (("val", "c0", "c2", True), "same_speaker of 'c0' and 'c2' is true.*'ann' and 'bob'"),
        (("val", "c0", "c1", False), "same_speaker of 'c0' and 'c1' is false"),
        (("test", "c0", "c1", True), "is in split 'test', its clips are not"),
        (("dev", "c0", "c1", True), "is in split 'dev'"),
        (("val", "c0", "c1", 2), "is 2, not true or false"),
    ],
)
def test_wrong_trials_are_named(tmp_path: Path, trial: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_trials(write(tmp_path / "t", trial), corpus_of(CLIPS))
    assert "\n" not in str(refused.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        load_trials(tmp_path / "t", corpus_of(CLIPS))
    pq.write_table(pa.table({"split": ["val"], "enrol_id": ["c0"]}), tmp_path / "t")
    with pytest.raises(ValueError, match="lacks the columns test_id, same_speaker"):
        load_trials(tmp_path / "t", corpus_of(CLIPS))


def pairs_of(trials: Trials) -> list[tuple[int, int, bool]]:
    return list(zip(trials.enrol.tolist(), trials.test.tolist(), trials.same.tolist(), strict=True))


def every_pair(corpus: Corpus, split: str, speaker: str, same: bool) -> int:
    """How many pairs a speaker allows, counted one by one."""
    rows = corpus.rows(split, with_speaker=True)
    words, speakers = corpus.keywords, corpus.speakers
    return sum(
        (words[a] != words[b] or words[a] is None) and (a < b if same else True)
        for a in rows[speakers[rows] == speaker]
        for b in rows
        if (speakers[b] == speaker) == same
    )


clips = st.tuples(st.sampled_from(["val", "test"]), st.sampled_from(["a", "b", "c", None]), st.sampled_from(["x", "y", "z", None]))


@settings(max_examples=60)
@given(st.lists(clips, max_size=24), st.integers(1, 12), st.integers(0, 3))
def test_made_trials_are_valid_distinct_balanced_and_as_many_as_possible(
    entries: list[tuple[str, str | None, str | None]], wanted: int, seed: int
) -> None:
    corpus = corpus_of([(split, word, speaker and f"{split}-{speaker}") for split, word, speaker in entries])
    names = sorted(set(corpus.speakers[corpus.rows("val", with_speaker=True)]))
    expected = {n: min(wanted, every_pair(corpus, "val", n, True), every_pair(corpus, "val", n, False)) for n in names}
    if not any(expected.values()):
        with pytest.raises(ValueError, match="'val' allows no trials"):
            make_trials(corpus, "val", seed, wanted)
        return
    trials = make_trials(corpus, "val", seed, wanted)
    pairs = pairs_of(trials)
    assert len(set(pairs)) == len(pairs)
    for a, b, same in pairs:
        assert corpus.splits[a] == corpus.splits[b] == "val"
        assert a != b
        assert (corpus.speakers[a] == corpus.speakers[b]) == same
        assert corpus.keywords[a] != corpus.keywords[b] or corpus.keywords[a] is None
    counts = Counter((corpus.speakers[a], same) for a, _, same in pairs)
    assert counts == {(name, same): count for name, count in expected.items() for same in (True, False) if count}
    assert pairs == pairs_of(make_trials(corpus, "val", seed, wanted))


def test_many_clips_give_the_wanted_number_and_another_seed_other_pairs() -> None:
    rng = np.random.default_rng(0)
    corpus = corpus_of([("val", f"word{rng.integers(2)}", f"speaker{i % 5}") for i in range(4000)])
    trials = make_trials(corpus, "val", 0)
    assert len(trials) == 5 * 1000
    assert trials.same.sum() == 5 * 500
    assert not np.array_equal(trials.enrol, make_trials(corpus, "val", 1).enrol)
    others = Counter(corpus.speakers[trials.test[~trials.same]])
    assert min(others.values()) > 350  # impostors come from everybody


def test_real_trials(tmp_path: Path) -> None:
    path = REAL / "arabic_speech_commands.parquet"
    if not path.is_file():
        pytest.skip(f"no real speech at {REAL}")
    columns = pq.read_table(path, columns=["id", "split", "keyword", "speaker_id"])
    ids, *fields = (columns[name].to_pylist() for name in columns.column_names)
    corpus = corpus_of(list(zip(*fields, strict=True)))
    corpus.ids[:] = ids
    found = load_trials(REAL / "arabic_trials.parquet", corpus)
    assert {split: (len(t), t.same.sum()) for split, t in found.items()} == {"val": (8000, 4000), "test": (12_000, 6000)}
    made = make_trials(corpus, "test", 0)
    assert (len(made), made.same.sum()) == (6000, 3000)


def in_two(ids: list[str]) -> Corpus:
    """The validation clips twice, in the corpora a and b, with these ids."""
    twice = corpus_of([*CLIPS[:3], *CLIPS[:3]])
    return dataclasses.replace(twice, ids=np.array(ids, object), corpora=np.repeat([0, 1], 3), names=("a", "b"))


def test_a_trial_is_of_the_corpus_that_has_both_clips(tmp_path: Path) -> None:
    both = in_two(["c0", "a1", "c2", "c0", "b1", "c2"])
    found = load_trials(write(tmp_path / "t", ("val", "c0", "b1", True), ("val", "c2", "a1", False)), both)["val"]
    assert (found.enrol.tolist(), found.test.tolist()) == ([3, 2], [4, 1])
    with pytest.raises(ValueError, match="'c0' and 'c2' names clips that are in several corpora, a and b"):
        load_trials(write(tmp_path / "t", ("val", "c0", "c2", False)), both)
    with pytest.raises(ValueError, match="names clips of two corpora, a and b"):
        load_trials(write(tmp_path / "t", ("val", "a1", "b1", True)), both)


def test_ids_that_are_numbers_and_labels_that_are_bits_are_read(tmp_path: Path) -> None:
    numbered = dataclasses.replace(corpus_of(CLIPS), ids=np.array(["0", "1", "2", "3", "4"], object))
    found = load_trials(write(tmp_path / "t", ("val", 0, 1, 1), ("val", 0, 2, 0)), numbered)["val"]
    assert found.test.tolist() == [1, 2] and found.same.tolist() == [True, False]
