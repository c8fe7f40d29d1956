"""What students are fitted on is made once, and read whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.learning import lessons
from trainers.learning.lessons import LISTS, fitting_windows, prepare_lesson, read_lesson
from trainers.learning.targets import Targets, choose_windows
from trainers.networks.fitting import listen
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU, WINDOW, COUNT = torch.device("cpu"), 8000, 12


def targets_of(corpus: Corpus, teacher: Teacher) -> Targets:
    rows, starts = choose_windows(corpus, WINDOW, 40, seed=0)
    return Targets(corpus=corpus, teacher=teacher, window=WINDOW, rows=rows, starts=starts, states=None)


@pytest.mark.parametrize("family", ["tiny_teacher", "tiny_whisper"])
def test_a_lesson_that_was_kept_is_the_one_that_was_heard(
    family: str, request: pytest.FixtureRequest, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not made again."""
    targets = targets_of(tiny_corpus, request.getfixturevalue(family))
    audio = torch.from_numpy(targets.audio(fitting_windows(targets, COUNT)))
    made = listen(targets.teacher.encoder, audio)
    path = prepare_lesson(targets, COUNT, CPU, tmp_path)
    monkeypatch.setattr(lessons, "listen", None)
    kept = read_lesson(prepare_lesson(targets, COUNT, CPU, tmp_path), CPU)
    for name in ("audio", "front", "convolved"):
        assert torch.equal(getattr(kept, name), getattr(made, name))
    for name in LISTS:
        pairs = zip(getattr(kept, name), getattr(made, name), strict=True)
        assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_speech_another_teacher_or_more_windows_have_a_lesson_of_their_own(
    tiny_corpus: Corpus, tiny_teacher: Teacher, tiny_whisper: Teacher, tmp_path: Path
) -> None:
    targets = targets_of(tiny_corpus, tiny_teacher)
    fewer = replace(targets, rows=targets.rows[:30], starts=targets.starts[:30])
    asked = [(targets, COUNT), (targets, COUNT + 1), (fewer, COUNT), (replace(targets, teacher=tiny_whisper), COUNT)]
    assert len({prepare_lesson(of, count, CPU, tmp_path) for of, count in asked}) == len(asked)


def test_windows_are_drawn_once_and_the_same_each_time(tiny_corpus: Corpus, tiny_teacher: Teacher) -> None:
    targets = targets_of(tiny_corpus, tiny_teacher)
    first = fitting_windows(targets, COUNT)
    assert np.array_equal(first, fitting_windows(targets, COUNT)) and len(set(first.tolist())) == COUNT
    assert len(fitting_windows(targets, 1000)) == len(targets.rows)  # all there are
