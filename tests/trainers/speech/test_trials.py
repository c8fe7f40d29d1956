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
from trainers.speech.trial_lists import load_trials, study_trials, write_trials
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
    twice = corpus_of([*CLIPS[:3], *[(split, word, f"b:{name}") for split, word, name in CLIPS[:3]]])
    return dataclasses.replace(twice, ids=np.array(ids, object), corpora=np.repeat([0, 1], 3), names=("a", "b"))


def test_a_list_is_for_the_corpus_that_has_both_clips_of_each_trial(tmp_path: Path) -> None:
    both = in_two(["c0", "a1", "c2", "c0", "b1", "c2"])
    found = load_trials(write(tmp_path / "t", ("val", "c0", "c2", False), ("val", "c0", "b1", True)), both)["val"]
    assert (found.enrol.tolist(), found.test.tolist()) == ([3, 3], [5, 4])  # c0 and c2 are in both, b1 is not
    with pytest.raises(ValueError, match="t: its clips are all in several corpora, a and b: give ids that are in one alone"):
        load_trials(write(tmp_path / "t", ("val", "c0", "c2", False)), both)


def test_a_list_that_mixes_corpora_is_refused_by_its_name_the_trial_and_the_corpora(tmp_path: Path) -> None:
    both = in_two(["a0", "a1", "a2", "b0", "b1", "b2"])
    with pytest.raises(ValueError, match="t mixes corpora: the trial of 'a1' and 'b1' pairs a clip of a with one of b; "):
        load_trials(write(tmp_path / "t", ("val", "a0", "a1", True), ("val", "a1", "b1", True)), both)
    with pytest.raises(ValueError, match="t mixes corpora: the trial of 'b0' and 'b1' is of b, those before it of a; ") as refused:
        load_trials(write(tmp_path / "t", ("val", "a0", "a1", True), ("val", "b0", "b1", True)), both)
    assert "\n" not in str(refused.value)


def test_an_id_that_one_corpus_skipped_is_a_clip_of_the_other(tmp_path: Path) -> None:
    both = dataclasses.replace(in_two(["a0", "a1", "a2", "c0", "b1", "b2"]), skipped=(("c0", "silent"), ("gone", "silent")))
    lines = (("val", "c0", "b1", True), ("val", "b1", "b2", False), ("val", "b1", "gone", True))
    assert pairs_of(load_trials(write(tmp_path / "t", *lines), both)["val"]) == [(3, 4, True), (4, 5, False)]


def test_a_list_for_each_corpus_and_trials_drawn_within_those_that_have_none(tmp_path: Path) -> None:
    rows = [(s, word, f"{c}:{s}{n}") for c in "abc" for s in ("val", "test") for n in range(2) for word in ("yes", "no", "up")]
    three = dataclasses.replace(corpus_of(rows), corpora=np.repeat([0, 1, 2], 12), names=("a", "b", "c"))
    one = write(tmp_path / "one", ("val", "c0", "c1", True), ("val", "c0", "c4", False))
    other = write(tmp_path / "other", ("test", "c18", "c19", True), ("test", "c18", "c22", False))
    found = study_trials([one, other], three, seed=0)
    assert set(found) == {"val", "test"}
    for split, listed in (("val", 0), ("test", 1)):
        numbers = three.corpora[found[split].enrol]  # type: ignore[index]
        assert np.array_equal(numbers, three.corpora[found[split].test])  # type: ignore[index]
        assert Counter(numbers.tolist())[listed] == 2 and set(numbers.tolist()) == {0, 1, 2}
    assert pairs_of(study_trials([], three, seed=0)["val"]) == pairs_of(make_trials(three, "val", 0))
    with pytest.raises(ValueError, match=r"one and .*again both give val trials of a: give one of them"):
        study_trials([one, write(tmp_path / "again", ("val", "c0", "c2", True), ("val", "c0", "c5", False))], three, seed=0)
    with pytest.raises(ValueError, match="again: all 1 val trials are of the same speaker: an EER needs both kinds"):
        study_trials([write(tmp_path / "again", ("val", "c0", "c2", True))], three, seed=0)


def test_a_corpus_that_allows_no_trials_has_none_and_changes_no_others() -> None:
    """One clip a speaker, as LibriSpeech's 251 speakers here; and one that has nobody in the split."""
    alone = corpus_of([("val", word, f"b:{name}") for name in range(3) for word in ("yes", "no", "up")])
    ones = [*[("train", None, f"a:{i}") for i in range(4)], *[("val", w, s) for w, s in zip(alone.keywords, alone.speakers)]]
    beside = dataclasses.replace(corpus_of([*ones, ("val", None, "c:0"), ("val", None, "c:1")]), names=("a", "b", "c"))
    beside = dataclasses.replace(beside, corpora=np.repeat([0, 1, 2], [4, 9, 2]))
    assert [(a - 4, b - 4, same) for a, b, same in pairs_of(make_trials(beside, "val", 3))] == pairs_of(
        make_trials(alone, "val", 3)
    )
    nobody = dataclasses.replace(corpus_of([("val", "yes", "a"), ("val", "no", "b")]), corpora=np.arange(2), names=("a", "b"))
    with pytest.raises(ValueError, match="allows no trials: they need 2 speakers of one corpus"):
        make_trials(nobody, "val", 0)


def test_ids_that_are_numbers_and_labels_that_are_bits_are_read(tmp_path: Path) -> None:
    numbered = dataclasses.replace(corpus_of(CLIPS), ids=np.array(["0", "1", "2", "3", "4"], object))
    found = load_trials(write(tmp_path / "t", ("val", 0, 1, 1), ("val", 0, 2, 0)), numbered)["val"]
    assert found.test.tolist() == [1, 2] and found.same.tolist() == [True, False]
