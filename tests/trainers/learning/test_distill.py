"""Distillation: the paper's loss, which falls, repeats with its seed, and stops a student that diverges."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.architecture import Architecture
from trainers.learning.batches import Augmentation
from trainers.learning.distill import CLIP_NORM, distill, distillation_loss, distiller, update, warm_up
from trainers.learning.recipe import Recipe
from trainers.learning.targets import Targets, prepare_targets
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def targets(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    cache = tmp_path_factory.mktemp("cache")
    return prepare_targets(tiny_teacher, tiny_corpus, cache, window=4880, limit=60, seed=0, mode="cached")


def student(teacher: Teacher, stride: int = 1, seed: int = 0) -> Student:
    architecture = Architecture(
        front_end="wave", front_width=16, frame_stride=stride, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,)
    )
    torch.manual_seed(seed)
    layers = teacher.predicted_layers
    return Student(architecture, teacher.geometry, ("a", "b"), predicted_layers=layers, target_width=48, is_folded=False)


def trained(targets: Targets, seed: int = 0, steps: int = 30, stride: int = 1) -> list[float]:
    recipe = Recipe(batch=8, distill_rate=3e-3)
    return distill(student(targets.teacher, stride), targets, recipe, steps=steps, augment=Augmentation(), seed=seed, device=CPU)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))
def test_the_loss_is_the_papers(clips: int, frames: int, width: int, seed: int) -> None:
    """L = sum over t of |f - g|_1 / K - log sigmoid(cos(f, g)), here the mean over frames and clips."""
    rng = np.random.default_rng(seed)
    f, g = rng.standard_normal((2, clips, frames, width)).astype(np.float32)
    total = 0.0
    for teacher, pupil in zip(f.reshape(-1, width), g.reshape(-1, width), strict=True):
        cosine = teacher @ pupil / (np.linalg.norm(teacher) * np.linalg.norm(pupil))
        total += np.abs(teacher - pupil).sum() / width - np.log(1 / (1 + np.exp(-cosine)))
    loss = distillation_loss(torch.from_numpy(g), torch.from_numpy(f))
    assert loss.item() == pytest.approx(total / (clips * frames), abs=1e-5)


def test_the_loss_is_least_for_the_target_itself() -> None:
    state = torch.randn(2, 5, 8)
    least = distillation_loss(state, state).item()
    assert least == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    for other in (state + 0.1 * torch.randn_like(state), 2 * state, -state, torch.zeros_like(state)):
        assert distillation_loss(other, state).item() > least


def test_warm_up_rises_linearly_then_stays() -> None:
    assert [2.0 * warm_up(step, 50) for step in range(50)] == pytest.approx([0.4, 0.8, 1.2, 1.6] + [2.0] * 46)


def test_training_on_is_exact(targets: Targets) -> None:
    """From any step, with the optimizer kept: the same losses as without a stop."""
    whole, stopped, recipe = student(targets.teacher), student(targets.teacher), Recipe(batch=8)
    common: dict[str, Any] = {"augment": Augmentation(), "seed": 1, "device": CPU, "first_steps": 4}
    at_once = distill(whole, targets, recipe, steps=9, **common)
    optimizer = distiller(stopped, recipe)
    parts = [distill(stopped, targets, recipe, steps=n, done=m, optimizer=optimizer, **common) for m, n in ((0, 4), (4, 9))]
    assert at_once == parts[0] + parts[1]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name])


@pytest.mark.parametrize("stride", [1, 2])
def test_the_loss_falls(targets: Targets, stride: int) -> None:
    losses = trained(targets, stride=stride)
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_a_seed_repeats_every_loss(targets: Targets) -> None:
    first = trained(targets, seed=1, steps=8)
    assert first == trained(targets, seed=1, steps=8)
    assert first != trained(targets, seed=2, steps=8)


def test_cached_and_online_targets_train_alike(targets: Targets) -> None:
    online = dataclasses.replace(targets, states=None)
    assert trained(online, steps=4) == pytest.approx(trained(targets, steps=4), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("front_end", ["wave", "mel"])
def test_a_compiled_step_is_one_graph_and_the_same(targets: Targets, front_end: Any) -> None:
    """As on a GPU, by a compiler without a back end of its own: what could not be compiled whole would show here."""
    pupil = student(targets.teacher)
    if front_end == "mel":
        pupil = Student(
            dataclasses.replace(pupil.encoder.architecture, front_end="mel"),
            targets.teacher.geometry,
            ("a", "b"),
            predicted_layers=targets.teacher.predicted_layers,
            target_width=48,
            is_folded=False,
        )
    audio = torch.randn(2, 4880)
    for plain in (pupil.predict_teacher, pupil.eval().forward):
        rest = (15,) if plain == pupil.predict_teacher else ()
        graph = torch.compile(plain, backend="aot_eager", dynamic=False, fullgraph=True)
        torch.testing.assert_close(graph(audio, *rest), plain(audio, *rest))


def test_progress_hears_every_step(targets: Targets) -> None:
    told: list[tuple[int, int]] = []
    recipe = Recipe(batch=2)
    pupil = student(targets.teacher)
    distill(pupil, targets, recipe, steps=3, augment=Augmentation(), seed=0, device=CPU, progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_teacher_is_not_trained(targets: Targets) -> None:
    before = {name: value.clone() for name, value in targets.teacher.encoder.state_dict().items()}
    online = dataclasses.replace(targets, states=None)
    trained(online, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in targets.teacher.encoder.state_dict().items())


def test_a_student_that_diverges_stops(targets: Targets) -> None:
    pupil = student(targets.teacher)
    pupil.encoder.projection.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        distill(pupil, targets, Recipe(batch=2), steps=3, augment=Augmentation(), seed=0, device=CPU)


def test_an_update_is_clipped() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    for _ in range(2):
        update(layer.parameters(), optimizer, 1000 * layer(torch.ones(1, 4)).sum())
    assert (layer.weight - before).norm().item() == pytest.approx(2 * CLIP_NORM, rel=1e-3)


def test_an_update_forgets_the_gradient_before_it() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    for sign in (1, -1):
        update(layer.parameters(), optimizer, sign * layer(torch.ones(1, 4)).sum())
    torch.testing.assert_close(layer.weight.detach(), before)


def test_training_on_online_targets_writes_nothing(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path: Path) -> None:
    online = prepare_targets(tiny_teacher, tiny_corpus, tmp_path, window=4880, limit=10, seed=0, mode="online")
    trained(online, steps=1)
    assert not list(tmp_path.iterdir())
