"""The shared student: what is taken out of it is what was trained in it, for every member of a space."""

import dataclasses
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import BatchNorm2d

from search_spaces.architecture import Architecture, frame_count
from search_spaces.space import RandomChooser, SearchSpace, front_alone
from trainers.learning.batches import Augmentation
from trainers.learning.distill import update
from trainers.learning.elastic import Elastic, load_shared
from trainers.learning.finetune import finetune
from trainers.learning.recipe import Recipe
from trainers.learning.resume import PassedOver, read_position
from trainers.learning.sandwich import Sandwich, distill_shared, distilled_steps, sandwich, train_shared
from trainers.learning.streams import keyword_stream
from trainers.learning.targets import Targets, prepare_targets
from trainers.networks.encoder import BroadcastFront, Layer
from trainers.networks.inherit import stream_importance
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

CPU = torch.device("cpu")
WINDOW = 4880
SPACE = SearchSpace(
    name="little",
    front_widths={"wave": (8, 16), "mel": (8, 16), "bc": (8, 24)},
    frame_strides=(1, 2),
    widths=(16, 24, 32),
    heads=(1, 2),
    ffn_dims=(16, 32),
    kept_layers=((), (1,), (2,), (1, 3), (1, 2, 3)),
)
RECIPE = Recipe(batch=4, distill_rate=3e-3)
WORDS = ("fall", "flat", "rise")


@pytest.fixture(scope="module")
def targets(tiny_teacher: Teacher, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    cache = tmp_path_factory.mktemp("cache")
    return prepare_targets(tiny_teacher, tiny_corpus, cache, window=WINDOW, limit=60, seed=0, mode="cached")


@pytest.fixture(scope="module")
def trained(tiny_teacher: Teacher, targets: Targets) -> tuple[Elastic, list[float]]:
    torch.manual_seed(0)
    elastic = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    return elastic, distill_shared(elastic, targets, steps=40, augment=Augmentation(), seed=0, device=CPU)


members = st.integers(0, 10**6).map(lambda seed: SPACE.architecture(RandomChooser(random.Random(seed))))


@settings(max_examples=40)
@given(members)
def test_what_is_extracted_computes_what_the_shared_student_does(
    trained: tuple[Elastic, list[float]], member: Architecture
) -> None:
    elastic, audio = trained[0].eval(), torch.randn(2, WINDOW)
    student = elastic.extract(member).eval()
    assert student.architecture == member
    with torch.no_grad():
        ours, theirs = (
            student.predict_teacher(audio, frame_count(WINDOW)),
            elastic.predict_teacher(member, audio, frame_count(WINDOW)),
        )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    student.norm.train()  # as in the shared student, by the statistics of the batch
    with torch.no_grad():
        for a, b in zip(student(audio), elastic(member, audio), strict=True):
            torch.testing.assert_close(a, b)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_whisper_s_members_too(tiny_whisper: Teacher, seed: int) -> None:
    """Each stride has a convolution and positions of its own, of which a member has the first channels."""
    space = dataclasses.replace(SPACE, front_widths={"mel": (8, 16), "bc": (8, 24)})
    elastic, audio = Elastic(space, tiny_whisper, RECIPE, WORDS).eval(), 0.1 * torch.randn(2, WINDOW)
    student = elastic.extract(space.architecture(RandomChooser(random.Random(seed)))).eval()
    student.norm.train()
    frames = tiny_whisper.geometry.frames(WINDOW)
    assert isinstance(student.architecture, Architecture)
    with torch.no_grad():
        ours = [*student.predict_teacher(audio, frames), *student(audio)]
        theirs = [*elastic.predict_teacher(student.architecture, audio, frames), *elastic(student.architecture, audio)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_architecture_is_an_argument_and_not_state(trained: tuple[Elastic, list[float]]) -> None:
    elastic, audio = trained[0].eval(), torch.randn(1, WINDOW)
    with torch.no_grad():
        before = elastic.predict_teacher(SPACE.corners(-1)[0], audio, frame_count(WINDOW))
        elastic.predict_teacher(SPACE.corners(0)[1], audio, frame_count(WINDOW))
        after = elastic.predict_teacher(SPACE.corners(-1)[0], audio, frame_count(WINDOW))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@settings(max_examples=20)
@given(members)
def test_a_step_of_a_member_changes_its_own_weights_alone(tiny_teacher: Teacher, member: Architecture) -> None:
    elastic, audio = Elastic(SPACE, tiny_teacher, RECIPE, WORDS), torch.randn(1, WINDOW)
    torch.stack([state.square().sum() for state in elastic.predict_teacher(member, audio, frame_count(WINDOW))]).sum().backward()
    touched = {name for name, value in elastic.named_parameters() if value.grad is not None}
    layers = {int(name.split("/")[1]) for name in touched if "layers/" in name}
    assert layers == set(member.kept_layers)
    assert all(name.split(".")[1].startswith(member.front_end) for name in touched if "/front/" in name)
    for name, value in elastic.named_parameters():
        if value.grad is not None and name.endswith("ffn_in/weight"):
            units = member.ffn_dims[member.kept_layers.index(int(name.split("/")[1]))]
            assert not value.grad[units:].any() and not value.grad[:, member.width :].any()
            assert value.grad[:units, : member.width].any(1).all()


def test_channels_are_sorted_once_by_importance_in_the_teacher(tiny_teacher: Teacher) -> None:
    elastic = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    importance = stream_importance(tiny_teacher.encoder, tuple(range(1, tiny_teacher.architecture.depth + 1)))
    order = importance.argsort(descending=True, stable=True)
    for width in SPACE.widths:
        member = dataclasses.replace(SPACE.corners(0)[0], width=width, kept_layers=(2,))
        layer = elastic.extract(member).encoder.layers[0]
        source = tiny_teacher.encoder.layers[1]
        assert isinstance(layer, Layer) and isinstance(source, Layer)
        assert torch.equal(layer.attention_norm.weight, source.attention_norm.weight[order[:width]])
        ranked = (source.ffn_in.weight.square().sum(1) * source.ffn_out.weight.square().sum(0)).argsort(
            descending=True, stable=True
        )
        assert torch.equal(layer.ffn_in.bias, source.ffn_in.bias[ranked[: member.ffn_dims[0]]])


def test_the_loss_of_all_sizes_falls(trained: tuple[Elastic, list[float]], tiny_teacher: Teacher, targets: Targets) -> None:
    _, losses = trained
    assert len(losses) == 40 and sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.slow
def test_both_tasks_are_learnt_by_all_sizes_at_once(tiny_teacher: Teacher, tiny_corpus: Corpus) -> None:
    torch.manual_seed(0)
    space = dataclasses.replace(SPACE, front_widths={"mel": (16,)}, widths=(24, 32))
    elastic, recipe = Elastic(space, tiny_teacher, RECIPE, WORDS), dataclasses.replace(RECIPE, batch=16, rate=3e-3)
    quiet = Augmentation(gain_db=3.0, snr_db=(20.0, 30.0))
    losses = finetune(Sandwich(elastic, 0), tiny_corpus, recipe, steps=80, window=WINDOW, augment=quiet, seed=0, device=CPU)
    keywords, speakers = ([loss[task] for loss in losses] for task in (0, 1))
    assert sum(keywords[-10:]) < 0.6 * sum(keywords[:10]) and sum(speakers[-10:]) < 0.8 * sum(speakers[:10])
    batch = keyword_stream(tiny_corpus, WORDS, recipe, WINDOW, quiet, 9)(0)
    for member in (*space.corners(0), *space.corners(-1)):
        with torch.no_grad():
            logits, _ = elastic(member, torch.tensor(batch.audio).float())
        assert (logits.argmax(1).numpy() == batch.labels).mean() > 0.6, member


def test_a_training_that_ended_is_not_repeated(tiny_teacher: Teacher, targets: Targets, tmp_path: Path) -> None:
    path = tmp_path / "shared.safetensors"
    elastic = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    common: dict[str, Any] = {"augment": Augmentation(), "seed": 0, "device": CPU, "path": path}
    train_shared(elastic, targets, steps=8, **common)
    assert (read_position(path)["steps"], read_position(path)["tuned"]) == (distilled_steps(8), 8)
    written = path.stat().st_mtime_ns
    train_shared(elastic, targets, steps=8, **common)
    assert path.stat().st_mtime_ns == written
    again = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    assert load_shared(again, path, CPU) == distilled_steps(8)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in elastic.state_dict().items())


def test_shared_weights_that_were_cut_in_half_are_made_anew(tiny_teacher: Teacher, targets: Targets, tmp_path: Path) -> None:
    path, whole = tmp_path / "shared.safetensors", tmp_path / "whole.safetensors"
    common: dict[str, Any] = {"steps": 4, "augment": Augmentation(), "seed": 0, "device": CPU}
    for file in (path, whole):
        torch.manual_seed(0)
        train_shared(Elastic(SPACE, tiny_teacher, RECIPE, WORDS), targets, path=file, **common)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    torch.manual_seed(0)
    with pytest.warns(PassedOver, match="is damaged"):
        train_shared(Elastic(SPACE, tiny_teacher, RECIPE, WORDS), targets, path=path, **common)
    made, expected = load_file(path), load_file(whole)
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)


def test_an_interrupted_tuning_goes_on_exactly(
    tiny_teacher: Teacher, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the members that would have come next. Cut within a step of two updates."""

    class Cut(Exception):
        pass

    def run(path: Path, cut: int = 10**9) -> Elastic:
        torch.manual_seed(0)
        elastic, left = Elastic(SPACE, tiny_teacher, RECIPE, WORDS), iter(range(cut))

        def counted(*arguments: Any) -> None:
            if next(left, None) is None:
                raise Cut
            update(*arguments)

        monkeypatch.setattr("trainers.learning.finetune.update", counted)
        with suppress(Cut):
            train_shared(elastic, targets, steps=6, augment=Augmentation(), seed=0, device=CPU, path=path)
        made.append(cut - len(list(left)))
        return elastic

    made = list[int]()
    monkeypatch.setenv("SRLNAS_CHECKPOINT_SECONDS", "0")
    whole = run(tmp_path / "whole.safetensors", 100)
    run(tmp_path / "parts.safetensors", 7)
    parts = run(tmp_path / "parts.safetensors", 100)
    assert made == [12, 7, 6]
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"whole.safetensors", "parts.safetensors"}


def test_a_step_trains_both_ends_and_a_random_member() -> None:
    space = dataclasses.replace(SPACE, front_widths={"wave": (8,), "mel": (8, 12, 16)}, kept_layers=SPACE.kept_layers[1:])
    seen = [sandwich(space, 0, step) for step in range(600)]
    for place, end in ((0, -1), (1, 0)):
        for member in (step[place] for step in seen):
            assert (member.front_width, member.width) == (space.front_widths[member.front_end][end], space.widths[end])
            assert (set(member.heads), set(member.ffn_dims)) == ({space.heads[end]}, {space.ffn_dims[end]})
    for place in range(3):
        drawn = [step[place] for step in seen]
        for field, shares in (
            ("front_end", {"wave": 1 / 2, "mel": 1 / 2}),
            ("frame_stride", dict.fromkeys(space.frame_strides, 1 / 2)),
            ("kept_layers", dict.fromkeys(space.kept_layers, 1 / 4)),
        ):
            assert Counter(getattr(m, field) for m in drawn) == pytest.approx({k: 600 * s for k, s in shares.items()}, abs=60)
    assert len({step[2].key for step in seen}) > 200 and all(member in space for step in seen for member in step)
    assert seen == [sandwich(space, 0, step) for step in range(600)]


def test_students_without_layers_are_trained_behind_broadcast_blocks_alone() -> None:
    seen = [member for step in range(600) for member in sandwich(SPACE, 0, step)]
    alone = [member for member in seen if not member.depth]
    assert {member.front_end for member in alone} == {"bc"} and all(member in SPACE for member in seen)
    assert len(alone) == pytest.approx(1800 / 3 / len(SPACE.kept_layers), abs=40)
    assert {member.front_width for member in alone} == {8, 24}


def test_each_width_of_broadcast_blocks_has_statistics_of_its_own(tiny_teacher: Teacher, targets: Targets, tmp_path: Path) -> None:
    """Which training changes, a file keeps, and a member takes with it."""
    torch.manual_seed(0)
    elastic, audio, frames = Elastic(SPACE, tiny_teacher, RECIPE, WORDS).train(), torch.randn(4, WINDOW), frame_count(WINDOW)
    before = {name: value.clone() for name, value in elastic.statistics.named_buffers()}
    elastic.predict_teacher(front_alone("bc", 8), audio, frames)
    changed = {name for name, value in elastic.statistics.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("8/")}
    path = tmp_path / "shared.safetensors"
    distill_shared(elastic, targets, steps=4, augment=Augmentation(), seed=0, device=CPU, path=path)
    again = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    load_shared(again, path, CPU)
    trained = dict(elastic.statistics.named_buffers())
    assert all(torch.equal(value, trained[name]) for name, value in again.statistics.named_buffers())
    for member in (front_alone("bc", 24), dataclasses.replace(SPACE.corners(0)[0], front_end="bc", front_width=24)):
        front = again.extract(member).encoder.front
        assert isinstance(front, BroadcastFront)
        stem = front.stem[1]
        assert isinstance(stem, BatchNorm2d) and stem.running_mean is not None
        assert torch.equal(stem.running_mean, trained["24/stem/1/running_mean"])
        assert stem.running_mean.data_ptr() != again.statistics.get_buffer("24/stem/1/running_mean").data_ptr()


def test_the_weights_of_narrow_broadcast_blocks_are_a_part_of_the_wide_ones(tiny_teacher: Teacher) -> None:
    elastic = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
    narrow, wide = (dict(elastic.extract(front_alone("bc", width)).named_parameters()) for width in (8, 24))
    for name, weight in narrow.items():
        if "keyword_head.weight" not in name and "speaker_head.weight" not in name:
            assert torch.equal(weight, wide[name][tuple(slice(size) for size in weight.shape)])


def test_an_interrupted_distillation_goes_on_exactly(tiny_teacher: Teacher, targets: Targets, tmp_path: Path) -> None:
    def run(path: Path | None, steps: int, seed: int = 0) -> tuple[Elastic, list[float]]:
        torch.manual_seed(seed)
        elastic = Elastic(SPACE, tiny_teacher, RECIPE, WORDS)
        return elastic, distill_shared(elastic, targets, steps=steps, augment=Augmentation(), seed=0, device=CPU, path=path)

    whole, at_once = run(None, 6)
    path = tmp_path / "shared.safetensors"
    started = run(path, 6)  # as if it had been cut before its last step: the file is of step 6, so begin from an earlier one
    assert started[1] == at_once
    again, nothing = run(path, 6, seed=1)
    assert nothing == []
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("other", ["space", "teacher", "recipe", "keywords"])
def test_shared_weights_of_something_else_are_refused(other: str, tiny_teacher: Teacher, targets: Targets, tmp_path: Path) -> None:
    path = tmp_path / "shared.safetensors"
    distill_shared(
        Elastic(SPACE, tiny_teacher, RECIPE, WORDS), targets, steps=1, augment=Augmentation(), seed=0, device=CPU, path=path
    )
    changed = {
        "space": (dataclasses.replace(SPACE, widths=(16, 32)), tiny_teacher, RECIPE, WORDS),
        "teacher": (SPACE, dataclasses.replace(tiny_teacher, digest="other"), RECIPE, WORDS),
        "recipe": (SPACE, tiny_teacher, dataclasses.replace(RECIPE, heads="mean"), WORDS),
        "keywords": (SPACE, tiny_teacher, RECIPE, ("yes", "no", "up")),
    }[other]
    with pytest.raises(ValueError, match=r"holds no shared student of the space|tuned on other keywords"):
        load_shared(Elastic(*changed), path, CPU)
    assert load_shared(Elastic(SPACE, tiny_teacher, RECIPE, WORDS), path, CPU) == 1


def test_who_is_no_member_cannot_be_extracted(trained: tuple[Elastic, list[float]]) -> None:
    with pytest.raises(ValueError, match="has no"):
        trained[0].extract(dataclasses.replace(SPACE.corners(0)[0], width=20))
