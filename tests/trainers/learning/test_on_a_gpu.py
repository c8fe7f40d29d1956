"""Training on a card beside the CPU. No conftest, no pyarrow, no soundfile: `make bench-gpu` runs it where little but torch is."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.catalog import paper_student
from trainers.learning import precision
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distill, distiller
from trainers.learning.finetune import finetune
from trainers.learning.precision import pick_device
from trainers.learning.recipe import Recipe
from trainers.learning.resume import read_position, read_state, write_state
from trainers.learning.targets import Targets, prepare_targets, teacher_states
from trainers.networks.encoder import SpeechEncoder
from trainers.networks.inherit import inherit
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus, MappedSamples
from trainers.teacher.teacher import load_teacher

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

WORDS, WINDOW, RECIPE = ("no", "yes"), 16_080, Recipe(batch=8)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    """Of 24 clips of noise, by the bundled teacher on the card."""
    folder, count, length = tmp_path_factory.mktemp("noise"), 24, 16_000
    np.random.default_rng(0).integers(-3000, 3000, count * length).astype("<i2").tofile(folder / "noise.i16")
    corpus = Corpus(
        samples=(MappedSamples(folder / "noise.i16"),),
        files=np.zeros(count, np.int64),
        starts=np.arange(count) * length,
        lengths=np.full(count, length),
        ids=np.array([f"clip{i}" for i in range(count)], object),
        splits=np.array(["train"] * count, object),
        keywords=np.array([WORDS[i % 2] for i in range(count)], object),
        speakers=np.array([f"speaker{i % 4}" for i in range(count)], object),
        digest="noise",
        synthetic=True,
        skipped=(),
    )
    return prepare_targets(
        load_teacher("mini-hubert"), corpus, folder, window=WINDOW, limit=24, seed=0, mode="cached", device=pick_device()
    )


def student_of(targets: Targets) -> Student:
    teacher = targets.teacher
    torch.manual_seed(0)
    student = Student(
        paper_student(teacher.architecture),
        teacher.geometry,
        WORDS,
        predicted_layers=teacher.predicted_layers,
        target_width=teacher.architecture.width,
        is_folded=False,
    )
    assert isinstance(student.encoder, SpeechEncoder)
    inherit(student.encoder, teacher.encoder)
    return student


def distilled(targets: Targets, device: torch.device, **options: Any) -> list[float]:
    common: dict[str, Any] = {"augment": Augmentation(), "seed": 0, "device": device, "steps": 4}
    return distill(student_of(targets), targets, RECIPE, **{**common, **options})


@pytest.mark.parametrize("name", ["mini", "mini-hubert"])
def test_states_are_those_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, audio = load_teacher(name), 0.1 * torch.randn(4, WINDOW)
    here = [state.cpu() for state in teacher_states(teacher, audio.to(pick_device()))]
    monkeypatch.setenv("SRLNAS_PRECISION", "float32")
    for rounded, exact in zip(here, teacher_states(teacher, audio), strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_distillation_goes_as_on_the_cpu(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    here = distilled(targets, pick_device())
    monkeypatch.setenv("SRLNAS_PRECISION", "float32")
    assert here == pytest.approx(distilled(targets, torch.device("cpu")), rel=0.03)


def test_joint_tuning_goes_as_on_the_cpu(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned(device: torch.device) -> np.ndarray[Any, Any]:
        options: Any = {"steps": 4, "window": WINDOW, "augment": Augmentation(), "seed": 0, "device": device}
        return np.array(finetune(student_of(targets), targets.corpus, RECIPE, **options))

    here = tuned(pick_device())
    monkeypatch.setenv("SRLNAS_PRECISION", "float32")
    np.testing.assert_allclose(here, tuned(torch.device("cpu")), rtol=0.05)


def test_a_compiled_training_has_the_losses_of_a_plain_one(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = distilled(targets, pick_device())
    monkeypatch.setattr(precision, "COMPILED_STEPS", 1)
    assert distilled(targets, pick_device()) == pytest.approx(plain, rel=0.02)


def test_a_training_goes_on_from_its_file(targets: Targets, tmp_path: Path) -> None:
    device, student = pick_device(), student_of(targets)
    optimizer = distiller(student.to(device), RECIPE)
    options: Any = {"augment": Augmentation(), "seed": 0, "device": device, "first_steps": 2}
    distill(student, targets, RECIPE, steps=2, optimizer=optimizer, **options)
    write_state(tmp_path / "state.safetensors", student, optimizer, {"steps": 2})
    other = student_of(targets).to(device)
    fresh = distiller(other, RECIPE)
    assert read_position(tmp_path / "state.safetensors") == {"steps": 2}
    read_state(tmp_path / "state.safetensors", other, fresh, device)
    went_on = distill(other, targets, RECIPE, steps=4, done=2, optimizer=fresh, **options)
    assert went_on == pytest.approx(distilled(targets, device, first_steps=2)[2:], rel=0.01)


def test_a_student_on_the_cpu_inherits_from_a_teacher_on_the_gpu(targets: Targets) -> None:
    """The teacher moves to the device that computes its states; students are made on the CPU."""
    expected = student_of(targets).state_dict()
    targets.teacher.encoder.to(pick_device())
    for name, value in student_of(targets).state_dict().items():
        assert torch.equal(value.cpu(), expected[name].cpu()), name


def test_a_whisper_s_student_does_too() -> None:
    teacher = load_teacher("mini")
    sizes: dict[str, Any] = {"heads": (2, 2, 2), "ffn_dims": (256, 256, 256)}
    narrow = dataclasses.replace(teacher.architecture, front_width=64, width=128, frame_stride=2, **sizes)
    here, there = SpeechEncoder(narrow, teacher.geometry), SpeechEncoder(narrow, teacher.geometry)
    inherit(there, teacher.encoder)
    inherit(here, teacher.encoder.to(pick_device()))
    for name, value in there.state_dict().items():
        torch.testing.assert_close(here.state_dict()[name].cpu(), value, atol=1e-4, rtol=1e-4)
