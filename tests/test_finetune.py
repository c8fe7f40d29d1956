"""Fine-tuning: the angular margin is the paper's, both tasks learn at once, a seed repeats them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.architecture import EMBEDDING_DIM, Architecture, Geometry
from trainers.batches import Augmentation
from trainers.corpora import Corpus
from trainers.finetune import AngularSoftmax, FinetuneRecipe, finetune
from trainers.scoring import hear
from trainers.student import Student

CPU = torch.device("cpu")
WINDOW = 4880
GEOMETRY = Geometry(
    head_dim=16,
    conv_dims=(16,) * 7,
    conv_bias=True,
    front_norm="layer",
    norm_order="post",
    position_kernel=16,
    position_groups=4,
    normalize_input=True,
)


def student(keywords: tuple[str, ...] = ("fall", "flat", "rise"), **options: Any) -> Student:
    architecture = Architecture(
        front_end="mel", front_width=32, frame_stride=1, width=32, heads=(2,), ffn_dims=(64,), kept_layers=(1,)
    )
    torch.manual_seed(0)
    return Student(architecture, GEOMETRY, keywords, is_folded=False, **options)


def tuned(built: Student, corpus: Corpus, steps: int, seed: int = 0, **options: Any) -> list[tuple[float, float]]:
    options = {"augment": Augmentation(gain_db=3.0, snr_db=(20.0, 30.0)), **options}
    recipe = FinetuneRecipe(steps=steps, batch=16, rate=3e-3)
    return finetune(built, corpus, recipe, window=WINDOW, seed=seed, device=CPU, **options)


def psi(angle: float, margin: int) -> float:
    """SphereFace's: (-1)^k cos(m angle) - 2 k for an angle in [k pi / m, (k + 1) pi / m]."""
    k = min(int(angle * margin / np.pi), margin - 1)
    return float((-1) ** k * np.cos(margin * angle) - 2 * k)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.floats(0, 10), st.floats(1, 30), st.integers(0, 999))
def test_angular_softmax_is_spherefaces(margin: int, ease: float, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    angular = AngularSoftmax(5, margin, scale, ease)
    embedding = torch.nn.functional.normalize(torch.randn(6, EMBEDDING_DIM), dim=-1)
    embedding[0] = torch.nn.functional.normalize(-angular.classes[2], dim=-1).detach()  # beyond the right angle: k > 0
    speaker = torch.tensor([2, 0, 1, 2, 3, 4])
    classes = torch.nn.functional.normalize(angular.classes, dim=-1).detach().double().numpy()
    losses = []
    for e, right in zip(embedding.double().numpy(), speaker.tolist(), strict=True):
        logits = classes @ e
        angle = float(np.arccos(np.clip(logits[right], -1 + 1e-6, 1 - 1e-6)))
        logits[right] = (psi(angle, margin) + ease * np.cos(angle)) / (1 + ease)
        losses.append(np.log(np.exp(scale * (logits - logits[right])).sum()))
    assert angular(embedding, speaker).item() == pytest.approx(np.mean(losses), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
@pytest.mark.parametrize("ease", [0.0, 5.0])
def test_the_loss_rises_with_the_angle_to_the_right_speaker(margin: int, ease: float) -> None:
    angular = AngularSoftmax(3, margin, 4.0, ease)
    angular.classes.data = torch.eye(3, EMBEDDING_DIM)
    losses = []
    for angle in np.linspace(0.01, np.pi - 0.01, 200):
        embedding = torch.zeros(1, EMBEDDING_DIM)
        embedding[0, 0], embedding[0, 9] = float(np.cos(angle)), float(np.sin(angle))  # the angles to the others stay
        losses.append(angular(embedding, torch.tensor([0])).item())
    assert (np.diff(losses) > 0).all()


def test_a_margin_asks_for_more_than_plain_softmax_and_ease_for_less() -> None:
    embedding = torch.nn.functional.normalize(torch.randn(8, EMBEDDING_DIM), dim=-1)
    classes, speaker = torch.randn(4, EMBEDDING_DIM), torch.arange(8) % 4
    losses = []
    for margin, ease in ((1, 0.0), (2, 5.0), (2, 0.0), (4, 0.0)):
        angular = AngularSoftmax(4, margin, 20.0, ease)
        angular.classes.data = classes
        losses.append(angular(embedding, speaker).item())
    assert losses == sorted(losses)


def test_gradients_are_finite_at_the_class_and_opposite_to_it() -> None:
    angular = AngularSoftmax(2)
    angular.classes.data = torch.eye(2, EMBEDDING_DIM)
    embedding = torch.stack([angular.classes[0], -angular.classes[0]]).detach().requires_grad_()
    angular(embedding, torch.tensor([0, 0])).backward()
    assert embedding.grad is not None
    assert angular.classes.grad is not None
    assert torch.isfinite(embedding.grad).all()
    assert torch.isfinite(angular.classes.grad).all()


@pytest.fixture(scope="module")
def trained(tiny_corpus: Corpus) -> tuple[Student, list[tuple[float, float]]]:
    built = student()
    return built, tuned(built, tiny_corpus, 60)


def test_keywords_and_speakers_are_learnt_together(trained: tuple[Student, list[tuple[float, float]]], tiny_corpus: Corpus) -> None:
    built, losses = trained
    assert len(losses) == 60
    keyword, speaker = np.array(losses).T
    assert keyword[-10:].mean() < 0.3 * keyword[:5].mean()
    assert speaker[-10:].mean() < 0.3 * speaker[:5].mean()
    rows = tiny_corpus.rows("train", with_keyword=True)
    logits, embeddings = hear(built.folded(), tiny_corpus, rows, WINDOW, CPU)
    assert (np.array(built.keywords, object)[logits.argmax(1)] == tiny_corpus.keywords[rows]).mean() > 0.95
    alike = embeddings @ embeddings.T
    same = tiny_corpus.speakers[rows][:, None] == tiny_corpus.speakers[rows]
    assert alike[same].mean() > alike[~same].mean() + 0.5


def test_it_holds_for_speakers_that_were_not_heard(trained: tuple[Student, list[tuple[float, float]]], tiny_corpus: Corpus) -> None:
    rows = tiny_corpus.rows("test", with_keyword=True)
    logits, _ = hear(trained[0].folded(), tiny_corpus, rows, WINDOW, CPU)
    assert (np.array(trained[0].keywords, object)[logits.argmax(1)] == tiny_corpus.keywords[rows]).mean() > 0.7


def test_a_seed_repeats_every_loss_whatever_was_drawn_before(tiny_corpus: Corpus) -> None:
    first = tuned(student(), tiny_corpus, 4, seed=3)
    again = student()
    torch.randn(5)  # somebody else draws from torch's own generator
    assert tuned(again, tiny_corpus, 4, seed=3) == first
    assert tuned(student(), tiny_corpus, 4, seed=4) != first


def test_both_updates_reach_all_weights(tiny_corpus: Corpus) -> None:
    built = student(predicted_layers=(1, 2), target_width=8)
    before = {name: value.clone() for name, value in built.named_parameters()}
    tuned(built, tiny_corpus, 3)
    unchanged = [name for name, value in built.named_parameters() if torch.equal(value, before[name])]
    assert unchanged == []


def test_keywords_are_numbered_as_the_student_does(tiny_corpus: Corpus) -> None:
    """The order of the labels is the student's, not the corpus's."""
    built = student(("rise", "fall", "flat"))
    tuned(built, tiny_corpus, 60)
    rows = tiny_corpus.rows("train", with_keyword=True)
    logits, _ = hear(built.folded(), tiny_corpus, rows, WINDOW, CPU)
    said = np.array(["rise", "fall", "flat"], object)[logits.argmax(1)]
    assert (said == tiny_corpus.keywords[rows]).mean() > 0.95


def test_progress_hears_every_step(tiny_corpus: Corpus) -> None:
    told: list[tuple[int, int]] = []
    tuned(student(), tiny_corpus, 2, progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]


def test_a_student_that_diverges_stops(tiny_corpus: Corpus) -> None:
    built = student()
    built.encoder.projection.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        tuned(built, tiny_corpus, 2)
