"""A tutor's answers: the same windows, shared with the batches, and a student that comes to agree."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_spaces.architecture import EMBEDDING_DIM, Architecture
from trainers.learning.batches import Augmentation
from trainers.learning.finetune import finetune
from trainers.learning.recipe import Recipe
from trainers.learning.sharing import CHUNK, shared
from trainers.learning.streams import Stream, keyword_stream
from trainers.learning.tutor import TEMPERATURE, Tutoring, answered
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU = torch.device("cpu")
WINDOW, RECIPE = 4880, Recipe(batch=6)


def student(teacher: Teacher, corpus: Corpus, seed: int) -> Student:
    architecture = Architecture(
        front_end="wave", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(architecture, teacher.geometry, corpus.keyword_labels, heads="every state", is_folded=False)


@pytest.fixture(scope="module")
def tutor(tiny_teacher: Teacher, tiny_corpus: Corpus) -> Student:
    return student(tiny_teacher, tiny_corpus, seed=7).folded()


def words(corpus: Corpus) -> Stream:
    return keyword_stream(corpus, corpus.keyword_labels, RECIPE, WINDOW, Augmentation(), 0)


def test_answers_are_the_tutors_to_the_window_that_the_student_hears(tutor: Student, tiny_corpus: Corpus, tmp_path: Path) -> None:
    batch = shared(tmp_path, CHUNK, "answered", answered(words(tiny_corpus), tutor, CPU))(3)
    with torch.no_grad():
        expected = torch.cat(tutor(torch.tensor(batch.audio).float()), 1)
    assert batch.answers is not None
    assert np.array_equal(batch.audio, words(tiny_corpus)(3).audio)
    np.testing.assert_allclose(batch.answers, expected, rtol=2e-2, atol=2e-2)  # bfloat16 where the machine has it


def test_the_loss_is_the_divergence_and_the_angle() -> None:
    torch.manual_seed(0)
    logits, theirs, embedding, wanted = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, EMBEDDING_DIM), torch.randn(5, 128)
    p, q = (theirs / TEMPERATURE).softmax(1), (logits / TEMPERATURE).softmax(1)
    divergence = TEMPERATURE**2 * (p * (p / q).log()).sum(1).mean()
    angle = 1 - F.cosine_similarity(embedding, wanted).mean()
    answers = torch.cat([theirs, wanted], 1)
    for keywords, speakers in ((True, True), (True, False), (False, True)):
        loss = Tutoring(keywords=keywords, speakers=speakers)(logits, embedding, answers)
        torch.testing.assert_close(loss, keywords * divergence + speakers * angle)
    same = Tutoring(keywords=True, speakers=True)(theirs, wanted, answers)
    assert same.item() == pytest.approx(0, abs=1e-5)


def test_a_taught_student_agrees_with_its_tutor(tutor: Student, tiny_teacher: Teacher, tiny_corpus: Corpus) -> None:
    """A tutor that knows nothing of the words: agreeing with it is no by-product of learning them."""
    heard = torch.tensor(np.concatenate([words(tiny_corpus)(step).audio for step in range(90, 94)])).float()
    with torch.no_grad():
        wanted = tutor(heard)[0].log_softmax(1)
    distances = []
    for who in (None, tutor):
        pupil = student(tiny_teacher, tiny_corpus, seed=0)
        finetune(
            pupil,
            tiny_corpus,
            Recipe(batch=6, rate=3e-3, tutor_weight=10, head_steps=0),
            steps=30,
            window=WINDOW,
            augment=Augmentation(),
            seed=0,
            device=CPU,
            tutor=who,
        )
        with torch.no_grad():
            said = pupil.eval()(heard)[0].log_softmax(1)
        distances.append(F.kl_div(said, wanted, reduction="batchmean", log_target=True).item())
    assert distances[1] < 0.5 * distances[0]
