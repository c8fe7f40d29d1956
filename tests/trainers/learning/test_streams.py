"""Batches are functions of the step: every clip once an epoch, the same in any order of asking, and the same when shared."""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.learning.batches import Augmentation
from trainers.learning.recipe import Recipe
from trainers.learning.sharing import CHUNK, shared
from trainers.learning.streams import Batch, Stream, corpora_of_classes, distillation_stream, epochs, keyword_stream, speaker_stream
from trainers.learning.targets import prepare_targets
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

WINDOW = 4880
RECIPE = Recipe(batch=6, speaker_speeds=(1.0, 0.9))


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.audio, b.audio) and np.array_equal(a.labels, b.labels)


def keywords_of(corpus: Corpus, seed: int = 0) -> Stream:
    return keyword_stream(corpus, corpus.keyword_labels, RECIPE, WINDOW, Augmentation(), seed)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_each_epoch_has_every_number_once(count: int, batch: int, seed: int) -> None:
    picked = epochs(count, batch, seed)
    drawn = np.concatenate([picked(step) for step in range(-(-3 * count // batch))])[: 3 * count].reshape(3, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in drawn.tolist())
    if count > 9:
        assert len({tuple(epoch) for epoch in drawn.tolist()}) == 3


@pytest.mark.parametrize("make", [keywords_of, lambda corpus, seed=0: speaker_stream(corpus, RECIPE, WINDOW, Augmentation(), seed)])
def test_a_step_has_its_batch_whatever_was_asked_before(make: Callable[..., Stream], tiny_corpus: Corpus) -> None:
    stream = make(tiny_corpus)
    forward = [stream(step) for step in range(5)]
    assert all(same(make(tiny_corpus)(step), forward[step]) for step in (4, 0, 3))
    assert not any(same(forward[0], batch) for batch in forward[1:])
    assert not same(make(tiny_corpus, seed=1)(0), forward[0])
    assert forward[0].audio.shape == (6, WINDOW) and forward[0].labels.shape == (6,)


def test_targets_are_numbered_and_heard_in_their_window(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    targets = prepare_targets(tiny_teacher, tiny_corpus, tmp_path, window=WINDOW, limit=40, seed=0, mode="online")
    batch = distillation_stream(targets, 6, Augmentation(noise_share=0.0, gain_db=0.0), 0)(3)
    np.testing.assert_array_equal(batch.audio, targets.audio(batch.labels).astype(np.float16))


def test_all_speech_of_speakers_is_heard_before_any_of_it_again(tiny_corpus: Corpus) -> None:
    """One speaker has clips of a window, another a clip of four windows, another one of a window alone."""
    rows = tiny_corpus.rows("train", with_speaker=True)
    names = sorted(set(tiny_corpus.speakers[rows]))
    windows = Counter[int]()
    for row in rows:
        windows[names.index(tiny_corpus.speakers[row])] += max(1, tiny_corpus.length(int(row)) // WINDOW)
    stream, epoch = speaker_stream(tiny_corpus, Recipe(batch=2), WINDOW, Augmentation(), 0), windows.total()
    heard = [int(label) for step in range(epoch) for label in stream(step).labels]
    assert Counter(heard[:epoch]) == Counter(heard[epoch:]) == windows and heard[:epoch] != heard[epoch:]


def test_speakers_and_speeds_are_classes(tiny_corpus: Corpus) -> None:
    stream = speaker_stream(tiny_corpus, RECIPE, WINDOW, Augmentation(), 0)
    drawn = Counter(int(label) for step in range(200) for label in stream(step).labels)
    assert set(drawn) == set(range(len(corpora_of_classes(tiny_corpus, RECIPE)))) == set(range(8))
    assert max(drawn.values()) < 1.5 * min(drawn.values())


def test_shared_batches_are_the_same_and_made_once(tiny_corpus: Corpus, tmp_path: Path) -> None:
    made = list[int]()

    def counted(step: int) -> Batch:
        made.append(step)
        return keywords_of(tiny_corpus)(step)

    ours, theirs = (shared(tmp_path, 2 * CHUNK, "keywords", counted) for _ in range(2))
    for step in (0, CHUNK - 1, CHUNK + 3):
        assert same(ours(step), keywords_of(tiny_corpus)(step)) and same(theirs(step), ours(step))
    assert sorted(made) == list(range(2 * CHUNK))
    assert same(ours(2 * CHUNK), keywords_of(tiny_corpus)(2 * CHUNK))  # beyond the shared ones
    assert made[-1] == 2 * CHUNK and not (tmp_path / "keywords" / "2.arrow").exists()


def test_what_an_interrupted_writer_left_is_made_again(tiny_corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "keywords").mkdir()
    (tmp_path / "keywords" / "0.part").write_bytes(b"torn")
    assert same(shared(tmp_path, CHUNK, "keywords", keywords_of(tiny_corpus))(1), keywords_of(tiny_corpus)(1))


def _ask(corpus: Corpus, folder: Path, made: Path) -> None:
    def noted(step: int) -> Batch:
        with made.open("a") as file:
            file.write(f"{step}\n")
        return keywords_of(corpus)(step)

    shared(folder, CHUNK, "keywords", noted)(0)


def test_processes_that_ask_at_once_make_a_file_once(tiny_corpus: Corpus, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_ask, args=(tiny_corpus, tmp_path, tmp_path / "made")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(map(int, (tmp_path / "made").read_text().split())) == list(range(CHUNK))
