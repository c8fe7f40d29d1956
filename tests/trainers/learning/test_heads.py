"""Heads in closed form: the discriminants are what their definitions say, and a student that begins with them knows at once."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import nn

from search_spaces.architecture import EMBEDDING_DIM, Architecture
from trainers.learning.batches import Augmentation
from trainers.learning.finetune import finetune
from trainers.learning.heads import KEYWORD_SHRINKAGE, SPEAKER_SHRINKAGE, Heard, fit_heads, hear, keyword_map, speaker_map
from trainers.learning.recipe import Recipe
from trainers.learning.streams import Batch, Stream, keyword_stream
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU, WINDOW = torch.device("cpu"), 4880
SHAPE = Architecture(front_end="mel", front_width=32, frame_stride=1, width=32, heads=(2,), ffn_dims=(64,), kept_layers=(1,))
WORDS = ("fall", "flat", "rise")


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def clouds(classes: int, features: int, count: int, seed: int, apart: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of classes that lie apart, each class there at least twice."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (count,), generator=generator)])
    centres, mixing = (torch.randn(*shape, generator=generator) for shape in ((classes, features), (features, features)))
    return apart * centres[labels] + torch.randn(len(labels), features, generator=generator) @ mixing, labels


def scatters(x: torch.Tensor, labels: torch.Tensor, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Within and between classes, by loops."""
    middle, size = x.mean(0), x.shape[1]
    within, between = torch.zeros(size, size), torch.zeros(size, size)
    for number in labels.unique():
        own = x[labels == number]
        centre = own.mean(0)
        within += sum(torch.outer(row - centre, row - centre) for row in own) / len(x)
        between += len(own) / len(x) * torch.outer(centre - middle, centre - middle)
    return ((1 - shrinkage) * within + shrinkage * within.trace() / size * torch.eye(size)).numpy(), between.numpy()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 99))
def test_the_keyword_map_compares_gaussians_of_one_covariance(classes: int, features: int, seed: int) -> None:
    x, labels = clouds(classes, features, 40, seed)
    weight, bias = keyword_map(x, labels, classes + 1)
    said = (x @ weight + bias)[:, :classes]
    within, _ = scatters(x, labels, KEYWORD_SHRINKAGE)
    shares = np.bincount(labels.numpy()) / len(labels)
    densities = [multivariate_normal(x[labels == k].mean(0).numpy(), within).logpdf(x.numpy()) for k in range(classes)]
    wanted = np.stack(densities, 1) + np.log(shares)
    differences = [rows - rows[:, :1] for rows in (said.numpy(), wanted)]
    assert np.allclose(*differences, rtol=1e-6, atol=1e-6)
    assert not weight[:, classes].any()  # nobody said this word


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(2, 9), st.integers(0, 99))
def test_the_speaker_map_is_the_discriminants_each_by_its_share_between_speakers(speakers: int, features: int, seed: int) -> None:
    x, labels = clouds(speakers, features, 60, seed)
    weight, bias = speaker_map(x, labels, torch.zeros(speakers, dtype=torch.long))
    within, between = scatters(x, labels, SPEAKER_SHRINKAGE)
    few = min(speakers - 1, features)
    ratios = scipy.linalg.eigh(between, within, eigvals_only=True)[::-1][:few]
    map_fd = weight[:, :few].numpy()
    assert np.allclose(map_fd.T @ within @ map_fd, np.diag(ratios / (1 + ratios)), atol=1e-5)
    assert np.allclose(map_fd.T @ between @ map_fd, np.diag(ratios**2 / (1 + ratios)), atol=1e-5)
    assert torch.allclose((x @ weight + bias).mean(0), torch.zeros(EMBEDDING_DIM), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99))
def test_what_tells_corpora_apart_tells_no_voices(speakers: int, features: int, seed: int) -> None:
    """A microphone that shifts all windows of a corpus leaves the map as it is."""
    x, labels = clouds(2 * speakers, features, 60, seed)
    corpora = torch.arange(2 * speakers) // speakers * 7  # numbers with gaps
    shift = 50 * torch.randn(features, generator=torch.Generator().manual_seed(seed))
    moved = x + (corpora[labels] > 0)[:, None] * shift
    (weight, _), (same, _) = (speaker_map(heard, labels, corpora) for heard in (x, moved))
    assert torch.allclose(weight @ weight.T, same @ same.T, atol=1e-6)  # a direction's sign is free


def built(teacher: Teacher) -> Student:
    torch.manual_seed(0)
    return Student(SHAPE, teacher.geometry, WORDS, heads="every state", is_folded=False).float()


def test_a_norm_heads_classes_and_the_turn_are_set_from_what_was_heard(tiny_teacher: Teacher) -> None:
    student = built(tiny_teacher).double()
    x, labels = clouds(3, student.speaker_head.in_features, 300, seed=1, apart=6.0)
    turned = nn.init.orthogonal_(torch.empty(EMBEDDING_DIM, EMBEDDING_DIM))
    classes, turn = nn.Parameter(torch.randn(4, EMBEDDING_DIM)), nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
    before = classes[3].clone()
    words = Heard(features=5 + 3 * x, labels=labels, answers=None)
    corpora = torch.zeros(4, dtype=torch.long)
    fit_heads(student, words, words, classes, corpora, None)
    student.eval()
    read = student.norm(words.features)
    assert torch.allclose(read.mean(0), torch.zeros(len(read[0])), atol=1e-6)
    said = student.keyword_head(read[:, -student.keyword_head.in_features :])
    assert (said.argmax(1) == labels).double().mean() > 0.95
    assert F.cross_entropy(said, labels) < 0.3
    embedding = F.normalize(student.speaker_head(read), dim=-1)
    assert ((embedding @ F.normalize(classes, dim=-1).T).argmax(1) == labels).double().mean() > 0.95
    assert torch.equal(classes[3], before)  # nobody heard this speaker
    answers = torch.cat([torch.zeros(len(x), 3), embedding.detach() @ turned], 1)
    fit_heads(student, None, replace(words, answers=answers), classes, corpora, turn)
    assert F.cosine_similarity(turn(embedding), answers[:, 3:]).min() > 0.98


def test_one_speaker_alone_leaves_the_speaker_head_as_it_is(tiny_teacher: Teacher) -> None:
    """A map of nothing but zeros could not learn."""
    student = built(tiny_teacher).double()
    before, (x, labels) = student.speaker_head.weight.clone(), clouds(2, student.speaker_head.in_features, 20, seed=0)
    alone = Heard(features=x, labels=torch.zeros_like(labels), answers=None)
    fit_heads(student, None, alone, nn.Parameter(torch.randn(1, EMBEDDING_DIM)), torch.zeros(1, dtype=torch.long), None)
    assert torch.equal(student.speaker_head.weight, before)


@pytest.mark.parametrize("is_taught", [False, True])
def test_heads_are_fitted_to_what_the_tuned_encoder_hears(is_taught: bool, tiny_teacher: Teacher, tiny_corpus: Corpus) -> None:
    torch.set_default_dtype(torch.float32)
    student, recipe, augment = built(tiny_teacher), Recipe(batch=8, head_steps=5), Augmentation(noise_share=0.0)
    finetune(student, tiny_corpus, recipe, steps=4, window=WINDOW, augment=augment, seed=0, device=CPU, is_taught=is_taught)
    words = keyword_stream(tiny_corpus, WORDS, recipe, WINDOW, augment, seed=0)
    heard = hear(student.eval(), words, 5, CPU)  # of five times as many as it was tuned on, at most head_steps
    read = student.norm(heard.features)[:, -student.keyword_head.in_features :]
    wanted, _ = keyword_map(read, heard.labels, len(WORDS))
    found = student.keyword_head.weight.T
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=1e-3)


def test_a_tutor_is_asked_about_the_tuned_batches_alone(tiny_teacher: Teacher, tiny_corpus: Corpus) -> None:
    torch.set_default_dtype(torch.float32)
    asked = []

    def share(name: str, stream: Stream) -> Stream:
        def of(step: int) -> Batch:
            asked.append((name, step))
            return stream(step)

        return of

    student, tutor, recipe = built(tiny_teacher), built(tiny_teacher).folded(), Recipe(batch=4)
    options = {"window": WINDOW, "augment": Augmentation(noise_share=0.0), "seed": 0, "device": CPU}
    finetune(student, tiny_corpus, recipe, steps=3, tutor=tutor, share=share, is_taught=True, **options)  # type: ignore[arg-type]
    for task in ("keywords", "speakers"):
        assert {step for name, step in asked if name.startswith(f"{task} answered")} == {0, 1, 2}
        assert {step for name, step in asked if name == task} == set(range(3, 15))


def test_what_learns_from_a_teacher_knows_its_words_before_it_is_tuned(tiny_teacher: Teacher, tiny_corpus: Corpus) -> None:
    """The first loss is a tenth of what heads at random have, and the norm's statistics stay."""
    torch.set_default_dtype(torch.float32)
    losses = dict[bool, float]()
    for is_taught in (False, True):
        student, recipe = built(tiny_teacher), Recipe(batch=16, rate=1e-6, head_steps=8)
        options = {"window": WINDOW, "augment": Augmentation(noise_share=0.0), "seed": 0, "device": CPU}
        tuned = finetune(student, tiny_corpus, recipe, steps=8, is_taught=is_taught, **options)  # type: ignore[arg-type]
        losses[is_taught] = float(np.mean([words for words, _ in tuned]))
        counted = student.norm.num_batches_tracked
        assert isinstance(counted, torch.Tensor) and (int(counted) == 0) == is_taught
    assert losses[True] < 0.3 * losses[False]
