"""A training that is cut anywhere and goes on: every loss and every weight is what an uninterrupted one has, to the last bit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from search_spaces.architecture import Architecture, Baseline, Network
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distill, distiller
from trainers.learning.finetune import finetune, one_cycle
from trainers.learning.recipe import Recipe
from trainers.learning.resume import CHECKPOINT_ASKED, Checkpoint, PassedOver, read_position
from trainers.learning.streams import Batch, Share, Stream, alone
from trainers.learning.targets import Targets, prepare_targets
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU = torch.device("cpu")
WINDOW, STEPS = 4880, 8
STUDENT = Architecture(front_end="mel", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,))
Trained = tuple[Student, list[Any]]
Train = Callable[..., Trained]


class Cut(Exception):
    """What happens in the middle."""


@pytest.fixture(scope="module")
def targets(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    cache = tmp_path_factory.mktemp("cache")
    return prepare_targets(tiny_teacher, tiny_corpus, cache, window=WINDOW, limit=60, seed=0, mode="cached")


@dataclass
class Course:
    """A clock that stands, but for a minute before the step that is `written`; nothing more happens after the step of the `cut`."""

    written: int = 0
    cut: int = 0
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def progress(self, step: int, steps: int) -> None:
        if step == self.cut:
            raise Cut
        if step + 1 == self.written:
            self.now += 60.0


def kept(path: Path, clock: Callable[[], float], of: int = 1) -> Checkpoint:
    return Checkpoint(path=path, of=of, clock=clock)


def distilled(targets: Targets) -> Train:
    def train(checkpoint: Checkpoint | None, progress: Any) -> Trained:
        student, recipe = built(targets, STUDENT), Recipe(batch=4)
        optimizer = distiller(student, recipe)
        done = checkpoint.read(student, optimizer, CPU) if checkpoint else None
        options: Any = {"augment": Augmentation(), "seed": 1, "device": CPU, "done": done or 0, "optimizer": optimizer}
        losses = distill(student, targets, recipe, steps=STEPS, checkpoint=checkpoint, progress=progress, **options)
        return student, losses

    return train


def tuned(targets: Targets, network: Network, *, is_taught: bool = False, **changed: Any) -> Train:
    def train(checkpoint: Checkpoint | None, progress: Any, share: Share = alone) -> Trained:
        student, recipe = built(targets, network), Recipe(batch=4, **changed)
        options: Any = {"window": WINDOW, "augment": Augmentation(), "seed": 1, "device": CPU, "targets": targets}
        options |= {"is_taught": is_taught, "share": share}
        losses = finetune(student, targets.corpus, recipe, steps=STEPS, checkpoint=checkpoint, progress=progress, **options)
        return student, losses

    return train


def built(targets: Targets, network: Network) -> Student:
    torch.manual_seed(0)
    teacher, options = targets.teacher, dict[str, Any]()
    if isinstance(network, Architecture):
        options = {"predicted_layers": teacher.predicted_layers, "target_width": teacher.architecture.width}
    return Student(network, teacher.geometry, ("fall", "flat", "rise"), heads="every state", is_folded=False, **options)


TRAININGS: dict[str, Callable[[Targets], Train]] = {
    "distillation": distilled,
    "both tasks": lambda targets: tuned(targets, STUDENT),
    "one task": lambda targets: tuned(targets, STUDENT, keywords=False),
    "heads alone": lambda targets: tuned(targets, STUDENT, frozen=True),
    "heads that were fitted first": lambda targets: tuned(targets, STUDENT, is_taught=True),
    "distillation kept on": lambda targets: tuned(targets, STUDENT, distilling=0.5),
    "BC-ResNet, whose dropout draws": lambda targets: tuned(targets, Baseline()),
    "broadcast blocks before a layer": lambda targets: tuned(targets, replace(STUDENT, front_end="bc")),
}


@pytest.mark.parametrize("training", TRAININGS)
def test_what_was_cut_goes_on_to_the_last_bit(training: str, targets: Targets, tmp_path: Path) -> None:
    """Cut twice, each time some steps behind the last checkpoint, with other draws from torch's generator between."""
    train = TRAININGS[training](targets)
    whole, at_once = train(None, None)
    path = tmp_path / "checkpoint.safetensors"
    for written, cut in ((2, 4), (5, 7)):
        course = Course(written, cut)
        with pytest.raises(Cut):
            train(kept(path, course), course.progress)
        assert read_position(path)["steps"] == written
        torch.randn(7)
    parts, rest = train(kept(path, Course()), None)
    assert rest == at_once[5:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def cut_at(number: int, made: list[int]) -> Share:
    """Cut before so many batches are made; `made` counts them."""

    def share(name: str, stream: Stream) -> Stream:
        def of(step: int) -> Batch:
            if len(made) == number:
                raise Cut
            made.append(step)
            return stream(step)

        return of

    return share


@pytest.mark.parametrize("at", [0, 5, 13, 16, 20, 32, 37, 45, 51], ids=lambda at: f"batch {at}")
def test_heads_that_were_being_fitted_go_on_to_the_last_bit(at: int, targets: Targets, tmp_path: Path) -> None:
    """Eight batches of each task are heard before the tuning, eight are tuned on, ten are heard after it. None is heard twice, but
    for the first of a task, which tells how many there are in one, and those of an update that was cut."""
    path, every = tmp_path / "checkpoint.safetensors", count(step=60)
    train, made = tuned(targets, STUDENT, is_taught=True, head_steps=10), list[int]()
    whole, _ = train(None, None)
    with pytest.raises(Cut):
        train(kept(path, lambda: next(every)), None, cut_at(at, made))
    torch.randn(7)
    parts, _ = train(kept(path, Course()), None, cut_at(1000, made))
    assert 52 <= len(made) <= 52 + 3
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_a_short_training_writes_nothing(targets: Targets, tmp_path: Path) -> None:
    tuned(targets, STUDENT)(kept(tmp_path / "checkpoint.safetensors", Course()), None)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_of_another_training_is_passed_over_and_overwritten(targets: Targets, tmp_path: Path) -> None:
    path, train = tmp_path / "checkpoint.safetensors", tuned(targets, STUDENT)
    course, again = Course(written=4, cut=5), Course(written=3)
    with pytest.raises(Cut):
        tuned(targets, STUDENT, rate=1e-2)(kept(path, course, of=2), course.progress)
    _, losses = train(kept(path, again, of=1), again.progress)
    assert losses == train(None, None)[1]
    assert read_position(path) == {"steps": 3, "of": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path, without: tuple[str, str] = ("", "-"), *, counted: bool = False, **about: int) -> None:
    """Written again without the tensors of a kind and a part, with other facts."""
    with safe_open(path, "pt") as file:
        facts = {**file.metadata(), **{name: str(value) for name, value in about.items()}}
    kind, part = without
    tensors = {name: value for name, value in load_file(path).items() if not (name.startswith(kind) and part in name)}
    facts |= {"tensors": str(len(tensors))} if counted else {}
    save_file(tensors, path, metadata=facts)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in half": (cut_in_half, "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "no checkpoint": (lambda path: path.write_bytes(b"x" * 5000), "is damaged"),
    "another version": (lambda path: changed(path, format=2), "is of version 2, this reads 1"),
    "without a tensor": (lambda path: changed(path, ("exp_avg.", "keyword_head")), "is damaged .[0-9]+ tensors of"),
    "without a weight": (lambda path: changed(path, ("model.", "keyword"), counted=True), "is damaged .model.*keyword"),
    "without a moment": (lambda path: changed(path, ("exp_avg.", "keyword"), counted=True), "is damaged .exp_avg.*keyword"),
    "without the generator": (lambda path: changed(path, ("generator.", "cpu"), counted=True), "generator.cpu"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(damage: str, targets: Targets, tmp_path: Path) -> None:
    """The training begins anew, and ends as if there had been no file."""
    path, train = tmp_path / "checkpoint.safetensors", tuned(targets, STUDENT)
    course = Course(written=4, cut=5)
    with pytest.raises(Cut):
        train(kept(path, course), course.progress)
    harm, said = DAMAGES[damage]
    harm(path)
    with pytest.warns(PassedOver, match=said):
        student, losses = train(kept(path, Course()), None)
    whole, expected = train(None, None)
    assert losses == expected and not path.exists()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_that_does_not_name_its_version_is_of_the_first(targets: Targets, tmp_path: Path) -> None:
    path, train = tmp_path / "checkpoint.safetensors", tuned(targets, STUDENT)
    course = Course(written=4, cut=5)
    with pytest.raises(Cut):
        train(kept(path, course), course.progress)
    with safe_open(path, "pt") as file:
        facts = {name: value for name, value in file.metadata().items() if name in ("steps", "of")}
    save_file(load_file(path), path, metadata=facts)
    assert train(kept(path, Course()), None)[1] == train(None, None)[1][4:]


@pytest.mark.parametrize("updates", [1, 2, 6, 7, 40, 1001])
def test_the_rates_are_those_of_torchs_one_cycle(updates: int) -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [weight]} for weight in weights])
    highest = [3e-4, 0.0]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, highest, total_steps=updates + 1, pct_start=0.15, cycle_momentum=False
    )
    for update in range(updates):
        assert [one_cycle(update, updates, rate) for rate in highest] == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()


def test_who_is_asked_writes_once_whatever_the_time(targets: Targets, tmp_path: Path) -> None:
    """By a file beside the folder of checkpoints; it is looked for now and then, so that a slow file system is left alone."""
    clock, student = Course(), built(targets, STUDENT)
    checkpoint, optimizer = kept(tmp_path / "tuned/a.safetensors", clock), distiller(student, Recipe())

    def keep(steps: int, *, seconds: float) -> int:
        clock.now += seconds
        checkpoint.keep(student, optimizer, steps)
        return read_position(checkpoint.path).get("steps", 0)

    assert keep(1, seconds=1.0) == 0
    (tmp_path / CHECKPOINT_ASKED).touch()
    assert keep(2, seconds=0.01) == 0
    assert keep(3, seconds=1.0) == 3
    assert keep(4, seconds=1.0) == 3
    assert keep(5, seconds=60.0) == 5
