"""A draw: by turns, balanced, always the same, and what it says of a student is what the student does on its clips."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import Architecture
from trainers.networks.student import Student
from trainers.scoring.draw import balanced_draw, in_turns, whole
from trainers.scoring.scoring import score
from trainers.speech.corpora import Corpus
from trainers.speech.trials import make_trials
from trainers.teacher.teacher import Teacher

WINDOW = 4880
CPU = torch.device("cpu")

items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=80)


@given(items, st.integers(1, 90))
def test_a_draw_is_as_even_as_its_items_allow(drawn: list[tuple[int, int, int]], count: int) -> None:
    """Of corpora first, then of keywords in each: none has two more than another that has some left."""
    corpora, keywords, _ = np.array(drawn).T
    picked = in_turns((corpora, 10 * corpora + keywords), count)
    assert len(set(picked.tolist())) == len(picked) == min(count, len(drawn))
    assert np.array_equal(picked, np.sort(picked))
    for group, outer in ((corpora, np.zeros_like(corpora)), (10 * corpora + keywords, corpora)):
        for outside in np.unique(outer):
            inside = outer == outside
            sizes = {number: int((group[inside] == number).sum()) for number in np.unique(group[inside])}
            taken = {number: int((group[picked][inside[picked]] == number).sum()) for number in sizes}
            open_ended = [taken[number] for number in sizes if taken[number] < sizes[number]]
            assert max(taken.values()) <= min(open_ended, default=len(drawn)) + 1


@given(items, st.integers(1, 40))
def test_a_draw_is_always_the_same(drawn: list[tuple[int, int, int]], count: int) -> None:
    groups = tuple(np.array(drawn).T)
    assert np.array_equal(in_turns(groups, count), in_turns(groups, count))


def test_equal_trials_are_of_clips_that_are_heard_anyway() -> None:
    group = np.zeros(6, np.intp)
    enrol, test = np.array([0, 1, 2, 3, 4, 5]), np.array([1, 2, 3, 4, 5, 0])
    picked = in_turns((group,), 2, (enrol, test), np.array([9, 0, 0, 0, 9, 9]))
    assert picked.tolist() == [1, 2]


def test_a_draw_of_a_corpus_has_every_keyword_and_speaker(tiny_corpus: Corpus) -> None:
    """Three keywords and three speakers of 27 clips."""
    trials = make_trials(tiny_corpus, "val", 0)
    drawn = balanced_draw(tiny_corpus, "val", trials, WINDOW, clips=9, most_trials=12)
    assert len(drawn.clips) == 9
    for names in (tiny_corpus.keywords, tiny_corpus.speakers):
        assert np.unique(names[drawn.clips].astype(str), return_counts=True)[1].tolist() == [3, 3, 3]
    listed = set(zip(trials.enrol.tolist(), trials.test.tolist(), trials.same.tolist(), strict=True))
    assert set(zip(drawn.trials.enrol.tolist(), drawn.trials.test.tolist(), drawn.trials.same.tolist(), strict=True)) <= listed
    assert drawn.trials.same.sum() == 6
    assert np.unique(tiny_corpus.speakers[drawn.trials.enrol].astype(str), return_counts=True)[1].tolist() == [4, 4, 4]


def test_a_draw_that_is_as_large_as_the_split_is_the_split(tiny_corpus: Corpus) -> None:
    trials = make_trials(tiny_corpus, "val", 0)
    drawn, all_of_it = balanced_draw(tiny_corpus, "val", trials, WINDOW, 10**6, 10**6), whole(tiny_corpus, "val", trials)
    assert np.array_equal(drawn.clips, all_of_it.clips)
    assert np.array_equal(drawn.trials.enrol, trials.enrol)


def test_a_student_does_on_a_draw_what_it_does_on_the_split(tiny_corpus: Corpus, tiny_teacher: Teacher) -> None:
    architecture = Architecture(
        front_end="mel", front_width=16, frame_stride=1, width=48, heads=(2,), ffn_dims=(32,), kept_layers=(1,)
    )
    torch.manual_seed(0)
    student = Student(architecture, tiny_teacher.geometry, tiny_corpus.keyword_labels)
    trials = make_trials(tiny_corpus, "val", 0)
    drawn = balanced_draw(tiny_corpus, "val", trials, WINDOW, clips=9, most_trials=12)
    ours = score(student, tiny_corpus, drawn, WINDOW, CPU)
    of_all = score(student, tiny_corpus, whole(tiny_corpus, "val", trials), WINDOW, CPU)
    clips = tiny_corpus.rows("val", with_keyword=True)
    assert np.array_equal(ours.correct, of_all.correct[np.searchsorted(clips, drawn.clips)])
    at = {pair: i for i, pair in enumerate(zip(trials.enrol.tolist(), trials.test.tolist(), strict=True))}
    places = [at[pair] for pair in zip(drawn.trials.enrol.tolist(), drawn.trials.test.tolist(), strict=True)]
    np.testing.assert_allclose(ours.trial_scores, of_all.trial_scores[places], atol=1e-4)
