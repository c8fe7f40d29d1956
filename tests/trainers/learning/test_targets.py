"""Targets: cached states are the teacher's own, are computed once, and are never read half-written."""

import dataclasses
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.learning.targets import Targets, affordable_windows, cache_bytes, choose_windows, prepare_targets
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

WINDOW = 4880  # 15 frames
CPU = torch.device("cpu")


def prepared(teacher: Teacher, corpus: Corpus, cache: Path, **options: Any) -> Targets:
    return prepare_targets(teacher, corpus, cache, **{"window": WINDOW, "limit": 40, "seed": 1, "mode": "cached", **options})


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npy"))


def test_cached_states_are_those_computed_online(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    cached = prepared(tiny_teacher, tiny_corpus, tmp_path)
    online = prepared(tiny_teacher, tiny_corpus, tmp_path, mode="online")
    assert online.states is None
    assert cached.states is not None
    assert cached.states.shape == (40, 3, 15, 48)
    picked = np.array([3, 39, 0])
    assert np.array_equal(cached.audio(picked), online.audio(picked))
    for ours, expected in zip(cached.batch(picked, CPU), online.batch(picked, CPU), strict=True):
        assert ours.shape == (3, 15, 48)
        assert ours.dtype == expected.dtype == torch.float32
        assert (ours - expected).norm() < 0.01 * expected.norm()


def test_states_are_the_predicted_layers_of_the_teacher(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    targets = prepared(tiny_teacher, tiny_corpus, tmp_path)
    clip, start = tiny_corpus.clip(int(targets.rows[5])), int(targets.starts[5])
    part = np.zeros(WINDOW, np.float32)
    heard = clip[start : start + WINDOW]
    part[: len(heard)] = heard
    with torch.no_grad():
        states = tiny_teacher.encoder(torch.from_numpy(part)[None])
    for ours, layer in zip(targets.batch(np.array([5]), CPU), tiny_teacher.predicted_layers, strict=True):
        assert (ours - states[layer]).norm() < 0.02 * states[layer].norm()  # float16, and bfloat16 where the CPU multiplies it


def test_a_cache_is_computed_once(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepared(tiny_teacher, tiny_corpus, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(32, 40), (40, 40)]
    (file,) = cached_files(tmp_path)
    before = file.stat().st_mtime_ns
    prepared(tiny_teacher, tiny_corpus, tmp_path, progress=lambda done, total: told.append((done, total)))
    prepared(tiny_teacher, tiny_corpus, tmp_path, mode="auto")
    assert cached_files(tmp_path) == [file]
    assert file.stat().st_mtime_ns == before
    assert len(told) == 2


def test_each_corpus_teacher_window_and_list_has_its_own_cache(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    prepared(tiny_teacher, tiny_corpus, tmp_path)
    prepared(dataclasses.replace(tiny_teacher, digest="other"), tiny_corpus, tmp_path)
    prepared(tiny_teacher, dataclasses.replace(tiny_corpus, digest="other"), tmp_path)
    for changes in ({"window": 3280}, {"seed": 2}):
        prepared(tiny_teacher, tiny_corpus, tmp_path, **changes)
    assert len(cached_files(tmp_path)) == 5
    prepared(dataclasses.replace(tiny_teacher, name="by another path"), tiny_corpus, tmp_path)
    assert len(cached_files(tmp_path)) == 5


@settings(max_examples=4)
@given(st.integers(1, 39))
def test_a_larger_cache_serves_a_smaller_list_and_a_smaller_one_grows(
    tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, limit: int
) -> None:
    told = list[tuple[int, int]]()
    cache, other = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("cache")
    small = prepared(tiny_teacher, tiny_corpus, cache, limit=limit)
    grown = prepared(tiny_teacher, tiny_corpus, cache, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40)
    assert told[0][0] == min(limit + 32, 40)  # what was there is not computed again
    served = prepared(tiny_teacher, tiny_corpus, cache, limit=limit)
    whole = prepared(tiny_teacher, tiny_corpus, other)
    for ours, expected, count in ((grown, whole, 40), (served, small, limit)):
        assert np.array_equal(ours.rows, expected.rows)
        assert np.array_equal(ours.starts, expected.starts)
        for state, wanted in zip(ours.batch(np.arange(count), CPU), expected.batch(np.arange(count), CPU), strict=True):
            assert (state - wanted).norm() < 0.02 * wanted.norm()


class Clock:
    """Of a teacher that takes so many seconds a window: it goes on by a batch whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.read = seconds, 0

    def __call__(self) -> float:
        self.read += 1
        return 32 * self.seconds * self.read


@pytest.mark.parametrize(
    ("cached", "limit", "seconds", "windows"),
    [
        (0, 40, 1e9, 40),  # all that is wanted
        (0, 40, 26.0, 26),  # what there is time for, in steps of 8
        (0, 40, 1.0, 8),  # enough to be fitted on, in any case
        (40, 40, 1.0, 40),  # what is there costs nothing
        (24, 40, 26.0, 24),  # a budget a little larger hears the same
        (16, 40, 26.0, 24),  # a larger one more
        (24, 40, 1.0, 24),
    ],
)
def test_states_are_of_no_more_windows_than_there_is_time_for(
    tiny_teacher: Teacher,
    tiny_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: int,
    limit: int,
    seconds: float,
    windows: int,
) -> None:
    monkeypatch.setattr("trainers.learning.targets.FEWEST", 8)
    if cached:
        prepared(tiny_teacher, tiny_corpus, tmp_path, limit=cached)
    found = affordable_windows(
        tiny_teacher, tiny_corpus, tmp_path, window=WINDOW, limit=limit, seed=1, seconds=seconds, device=CPU, now=Clock(1.0)
    )
    assert found == windows // 8 * 8


def test_an_interrupted_cache_leaves_nothing_that_is_read(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(tiny_teacher, tiny_corpus, tmp_path, progress=interrupt)
    assert not cached_files(tmp_path)
    states = prepared(tiny_teacher, tiny_corpus, tmp_path).states
    expected = prepared(tiny_teacher, tiny_corpus, tmp_path / "other").states
    assert states is not None
    assert expected is not None
    assert np.array_equal(states, expected)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**31))
def test_chosen_windows_lie_on_frames_of_train_clips_without_overlap(
    tiny_corpus: Corpus, frames: int, limit: int, seed: int
) -> None:
    window, hop = 320 * frames + 80, 320 * frames
    rows, starts = choose_windows(tiny_corpus, window, limit, seed)
    assert len(rows) == len(starts) <= limit
    assert set(tiny_corpus.splits[rows]) == {"train"}
    assert (starts % 320 == 0).all()
    assert (starts >= 0).all()
    inside = starts + hop <= tiny_corpus.lengths[rows]
    assert (inside | (starts == 0)).all()  # a clip that fills no window has one of its own
    pairs = list(zip(rows.tolist(), starts.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert all(a != b or t - s >= hop for (a, s), (b, t) in pairwise(pairs))


def test_windows_are_chosen_by_the_seed(tiny_corpus: Corpus) -> None:
    first, again, other = (choose_windows(tiny_corpus, WINDOW, 10, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_without_a_limit_every_clip_is_heard(tiny_corpus: Corpus) -> None:
    rows, _ = choose_windows(tiny_corpus, WINDOW, 10**6, 0)
    assert set(rows) == set(tiny_corpus.rows("train"))
    assert sum(rows == 9) == 24_000 // 4800  # five windows side by side in the long clip


def test_auto_caches_where_the_disk_allows_it(
    tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = cache_bytes(tiny_teacher, WINDOW, 40)
    assert needed == 40 * 3 * 15 * 48 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * needed - 2))
    assert prepared(tiny_teacher, tiny_corpus, tmp_path, mode="auto").states is None
    assert not cached_files(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * needed))
    assert prepared(tiny_teacher, tiny_corpus, tmp_path, mode="auto").states is not None
    (file,) = cached_files(tmp_path)
    assert 0 <= file.stat().st_size - needed < 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))  # it is there: no room is needed
    assert prepared(tiny_teacher, tiny_corpus, tmp_path, mode="auto").states is not None
