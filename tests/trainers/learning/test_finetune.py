"""Fine-tuning: the angular margin is the paper's, both tasks learn at once, a seed repeats them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.architecture import EMBEDDING_DIM, Architecture, Geometry
from search_spaces.space import front_alone
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distillation_losses
from trainers.learning.finetune import AdditiveAngularSoftmax, AngularSoftmax, finetune
from trainers.learning.recipe import Recipe
from trainers.learning.streams import distillation_stream
from trainers.learning.targets import prepare_targets
from trainers.networks.student import Student
from trainers.scoring.scoring import hear
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

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


def tuned(built: Student, corpus: Corpus, steps: int, seed: int = 0, **options: Any) -> list[tuple[float, ...]]:
    options = {"augment": Augmentation(gain_db=3.0, snr_db=(20.0, 30.0)), **options}
    known = {name: options.pop(name) for name in list(options) if hasattr(Recipe, name)}
    recipe = Recipe(**{"rate": 3e-3, **known})
    return finetune(built, corpus, recipe, steps=steps, window=WINDOW, seed=seed, device=CPU, **options)


def psi(angle: float, margin: int) -> float:
    """SphereFace's: (-1)^k cos(m angle) - 2 k for an angle in [k pi / m, (k + 1) pi / m]."""
    k = min(int(angle * margin / np.pi), margin - 1)
    return float((-1) ** k * np.cos(margin * angle) - 2 * k)


@settings(max_examples=40)
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


@given(st.integers(0, 999))
@settings(max_examples=20)
def test_a_voice_is_told_from_those_of_its_own_corpus(seed: int) -> None:
    """As if there were no others."""
    torch.manual_seed(seed)
    whole = AdditiveAngularSoftmax(7, corpora=torch.tensor([0, 2, 0, 2, 0, 2, 2]))
    own = AdditiveAngularSoftmax(3)
    own.classes.data = whole.classes.data[[0, 2, 4]]
    embedding = torch.nn.functional.normalize(torch.randn(5, EMBEDDING_DIM), dim=-1)
    found, wanted = whole(embedding, torch.tensor([0, 2, 4, 0, 2])), own(embedding, torch.tensor([0, 1, 2, 0, 1]))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    whole(embedding, torch.tensor([0, 2, 4, 0, 2])).backward()
    assert whole.classes.grad is not None and not whole.classes.grad[[1, 3, 5, 6]].any()


@pytest.mark.parametrize(
    "angular", [AdditiveAngularSoftmax(3, scale=4.0)] + [AngularSoftmax(3, m, 4.0, e) for m in range(1, 5) for e in (0.0, 5.0)]
)
def test_the_loss_rises_with_the_angle_to_the_right_speaker(angular: AngularSoftmax) -> None:
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


@given(st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=30)
def test_the_additive_margin_is_arcfaces(speakers: int, seed: int) -> None:
    torch.manual_seed(seed)
    additive = AdditiveAngularSoftmax(speakers, scale=20.0)
    embedding, speaker = torch.nn.functional.normalize(torch.randn(5, EMBEDDING_DIM), dim=-1), torch.arange(5) % speakers
    cosine = embedding @ torch.nn.functional.normalize(additive.classes, dim=-1).T
    logits = cosine.detach().double().numpy().copy()
    for row, right in enumerate(speaker.tolist()):
        logits[row, right] = np.cos(np.arccos(logits[row, right]) + 0.2)
    expected = [np.log(np.exp(20 * (row - row[right])).sum()) for row, right in zip(logits, speaker.tolist())]
    assert additive(embedding, speaker).item() == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def trained(tiny_corpus: Corpus) -> tuple[Student, list[tuple[float, ...]]]:
    built = student()
    return built, tuned(built, tiny_corpus, 60)


def test_keywords_and_speakers_are_learnt_together(trained: tuple[Student, list[tuple[float, ...]]], tiny_corpus: Corpus) -> None:
    built, losses = trained
    assert len(losses) == 60
    keyword, speaker = np.array(losses).T
    assert keyword[-10:].mean() < 0.4 * keyword[:5].mean()
    assert speaker[-10:].mean() < 0.3 * speaker[:5].mean()
    rows = tiny_corpus.rows("train", with_keyword=True)
    logits, embeddings = hear(built.folded(), tiny_corpus, rows, WINDOW, CPU)
    assert (np.array(built.keywords, object)[logits.argmax(1)] == tiny_corpus.keywords[rows]).mean() > 0.95
    alike = embeddings @ embeddings.T
    same = tiny_corpus.speakers[rows][:, None] == tiny_corpus.speakers[rows]
    assert alike[same].mean() > alike[~same].mean() + 0.5


def test_both_losses_may_share_an_update(tiny_corpus: Corpus, trained: tuple[Student, list[tuple[float, ...]]]) -> None:
    """Its first losses are those of a network that nothing has changed; half as many updates learn both tasks too. A speaker's loss
    that weighs nearly nothing leaves the words to themselves."""
    together, words = student(), student()
    losses = np.array(tuned(together, tiny_corpus, 60, speaker_weight=0.3)).T
    assert losses[0][0] == trained[1][0][0] and losses.shape == (2, 60) and losses[1][0] != trained[1][0][1]
    assert losses[0][-10:].mean() < 0.5 * losses[0][:5].mean() and losses[1][-10:].mean() < 0.5 * losses[1][:5].mean()
    slight = np.array(tuned(words, tiny_corpus, 20, speaker_weight=1e-9)).T[0]
    alone = np.array(tuned(student(), tiny_corpus, 20, speakers=False)).T[0]
    assert slight == pytest.approx(alone, rel=2e-2)


def test_it_holds_for_speakers_that_were_not_heard(trained: tuple[Student, list[tuple[float, ...]]], tiny_corpus: Corpus) -> None:
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


def test_a_speaker_at_another_speed_is_another_class(tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same speakers at one speed stay one class, and at three speeds are three times as many."""
    made, wanted = list[int](), set[int]()
    forward = AngularSoftmax.forward

    def record(angular: AngularSoftmax, embedding: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        made.append(len(angular.classes))
        wanted.update(speaker.tolist())
        return forward(angular, embedding, speaker)

    monkeypatch.setattr(AngularSoftmax, "forward", record)
    tuned(student(), tiny_corpus, 12, speaker_speeds=(1.0, 0.9, 1.1))
    assert set(made) == {12} and wanted == set(range(12))


def test_a_front_end_of_rate_zero_stays(tiny_corpus: Corpus) -> None:
    built = student()
    before = {name: value.clone() for name, value in built.named_parameters()}
    tuned(built, tiny_corpus, 2, front_rate=0.0)
    still = {name for name, value in built.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith("encoder.front")} and len(still) > 3


@pytest.mark.parametrize("depth", [0, 1])
def test_broadcast_blocks_have_a_rate_of_their_own(depth: int, tiny_corpus: Corpus) -> None:
    """And so has all of a student that has nothing else."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {"width": 16, "heads": (2,), "ffn_dims": (16,), "kept_layers": (1,)}
    a = Architecture(front_end="bc", front_width=32, frame_stride=1, **layers) if depth else front_alone("bc", 32)
    built = Student(a, GEOMETRY, ("fall", "flat", "rise"), heads="every state", is_folded=False)
    before = {name: value.clone() for name, value in built.named_parameters()}
    tuned(built, tiny_corpus, 2, bc_rate=1e-7, rate=1e-3, head_steps=0)
    moved = {name for name, value in built.named_parameters() if (value - before[name]).abs().max() > 1e-5}
    rest = {name for name in before if not name.startswith("encoder.front.")}
    unmoved = {name for name in before if name.endswith("attention.k.bias")}  # softmax leaves it nothing but rounding to learn from
    assert moved - unmoved == (rest - unmoved if depth else set())


def test_distillation_that_is_kept_on_keeps_the_student_near_its_teacher(
    tiny_corpus: Corpus, tiny_teacher: Teacher, tmp_path: Path
) -> None:
    targets = prepare_targets(tiny_teacher, tiny_corpus, tmp_path, window=WINDOW, limit=40, seed=0)

    def distance(weight: float) -> float:
        built = student(predicted_layers=tiny_teacher.predicted_layers, target_width=48)
        tuned(built, tiny_corpus, 25, distilling=weight, targets=targets)
        heard = distillation_stream(targets, 40, Augmentation(), 0)
        losses = distillation_losses(built.eval().predict_teacher, targets, heard, CPU)
        with torch.no_grad():
            return float(next(losses))

    assert distance(1.0) < 0.9 * distance(0.0)


@pytest.mark.parametrize("task", ["keywords", "speakers"])
def test_one_task_alone_leaves_the_others_head(task: str, tiny_corpus: Corpus) -> None:
    built, other = student(), {"keywords": "speaker_head", "speakers": "keyword_head"}[task]
    before = {name: value.clone() for name, value in built.named_parameters()}
    losses = tuned(built, tiny_corpus, 3, **{"keywords": task == "keywords", "speakers": task == "speakers"})
    assert np.shape(losses) == (3, 1)
    still = {name for name, value in built.named_parameters() if torch.equal(value, before[name])}
    assert still == {f"{other}.weight", f"{other}.bias"}


def test_a_frozen_student_trains_its_heads_alone(tiny_corpus: Corpus) -> None:
    built = student(predicted_layers=(1, 2), target_width=8)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    tuned(built, tiny_corpus, 3, frozen=True)
    changed = {name.split(".")[0] for name, value in built.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"keyword_head", "speaker_head", "norm"}
