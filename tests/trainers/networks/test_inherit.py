"""Inheritance: a whole student is its teacher, a narrower one holds the teacher's weights, and starts nearer to it than chance."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.architecture import Architecture
from search_spaces.space import front_alone
from trainers.learning.batches import cut
from trainers.networks.encoder import Layer, SpeechEncoder, convolve, normalize
from trainers.networks.inherit import inherit
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher, load_teacher


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def mini() -> Teacher:
    return load_teacher("mini-hubert")


def shaped(teacher: Teacher, **changes: Any) -> Architecture:
    """The teacher's architecture, changed; heads and ffn_dims as one number for all layers."""
    depth = len(changes.get("kept_layers", teacher.architecture.kept_layers))
    whole = {"heads": teacher.architecture.heads[0], "ffn_dims": teacher.architecture.ffn_dims[0], **changes}
    layers = {name: (whole.pop(name),) * depth for name in ("heads", "ffn_dims")}
    return dataclasses.replace(teacher.architecture, **whole, **layers)


def heir(teacher: Teacher, seed: int = 0, **changes: Any) -> SpeechEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = SpeechEncoder(shaped(teacher, **changes), teacher.geometry)
    inherit(student, teacher.encoder)
    return student.eval()


def test_nothing_is_inherited_without_layers(tiny_teacher: Teacher) -> None:
    alone = SpeechEncoder(front_alone("bc", 16), tiny_teacher.geometry)
    before = {name: value.clone() for name, value in alone.state_dict().items()}
    inherit(alone, tiny_teacher.encoder)
    assert all(torch.equal(value, before[name]) for name, value in alone.state_dict().items())


def layer(encoder: SpeechEncoder, index: int) -> Layer:
    found = encoder.layers[index]
    assert isinstance(found, Layer)
    return found


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("front_norm", ["layer", "group"])
def test_a_whole_student_is_its_teacher(tiny_teacher: Teacher, front_norm: Any, order: Any) -> None:
    geometry = dataclasses.replace(tiny_teacher.geometry, front_norm=front_norm, norm_order=order)
    teacher = Teacher(name="", digest="", encoder=SpeechEncoder(tiny_teacher.architecture, geometry).eval())
    for weight in teacher.encoder.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    student, audio = heir(teacher), noise(2, 5000)
    with torch.no_grad():
        for state, expected in zip(student(audio), teacher.encoder(audio), strict=True):
            assert torch.equal(state, expected)


def test_a_whole_student_of_a_whisper_is_its_teacher(tiny_whisper: Teacher) -> None:
    student, audio = heir(tiny_whisper), 0.1 * noise(2, 16_080)
    with torch.no_grad():
        for state, expected in zip(student(audio), tiny_whisper.encoder(audio), strict=True):
            assert torch.equal(state, expected)


def test_a_narrower_student_of_a_whisper_hears_what_its_teacher_hears(tiny_whisper: Teacher) -> None:
    """Channels keep their columns of the positions; at half the frames a step is the mean of two. What the convolutions write comes
    near to the teacher's channels, where chance does not."""
    student, audio = heir(tiny_whisper, width=32, front_width=32), 0.1 * noise(4, 16_080)
    channels = positions_of(student.norm.bias, tiny_whisper.encoder.norm.bias)
    assert torch.equal(student.positions.table, tiny_whisper.encoder.positions.table[:, channels])  # type: ignore[union-attr]
    halved = heir(tiny_whisper, frame_stride=2)
    whole = tiny_whisper.encoder.positions.table  # type: ignore[union-attr]
    assert torch.allclose(halved.positions.table, whole.unflatten(0, (-1, 2)).mean(1), atol=1e-6)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        wanted = tiny_whisper.encoder(audio)[0]
        inherited, pairs = student(audio)[0], halved(audio)[0]
        drawn = SpeechEncoder(student.architecture, student.geometry)(audio)[0]
    assert (inherited - wanted[..., channels]).abs().mean() < 0.5 * (drawn - wanted[..., channels]).abs().mean()
    assert (pairs - wanted.unflatten(1, (-1, 2)).mean(2)).abs().mean() < 0.1 * wanted.abs().mean()


def test_the_first_layers_of_a_student_that_keeps_them_are_the_teachers(mini: Teacher) -> None:
    """The paper's student: the convolutions and the first two layers."""
    student, audio = heir(mini, kept_layers=(1, 2)), noise(1, 5000)
    with torch.no_grad():
        for state, expected in zip(student(audio), mini.encoder(audio)[:3], strict=True):
            assert torch.equal(state, expected)


def test_each_layer_starts_from_the_one_that_it_keeps(mini: Teacher) -> None:
    student = heir(mini, kept_layers=(2, 3, 6))
    for i, kept in enumerate((2, 3, 6)):
        ours, theirs = layer(student, i).state_dict(), layer(mini.encoder, kept - 1).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_student_of_wavlm_leaves_the_position_bias_behind(tiny_teacher: Teacher, order: Any) -> None:
    own = dataclasses.replace(tiny_teacher.encoder.geometry, norm_order=order, relative_buckets=8, relative_distance=20)
    teacher = Teacher(name="", digest="", encoder=SpeechEncoder(tiny_teacher.architecture, own).eval())
    student = heir(teacher, kept_layers=(1, 3))
    assert student.geometry == own.of_students
    for i, kept in enumerate((1, 3)):
        ours, theirs = layer(student, i).state_dict(), layer(teacher.encoder, kept - 1).state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
        assert {name for name in theirs if name not in ours} == {
            f"attention.gate.{name}" for name in ("scale", "projection.weight", "projection.bias")
        }


def positions_of(part: Tensor, whole: Tensor) -> Tensor:
    """Where the numbers of `part` stand in `whole`, both (n,)."""
    found = (part[:, None] == whole).nonzero()
    assert len(found) == len(part)
    return found[:, 1]


def test_rows_and_columns_of_a_narrower_student_are_the_teachers(tiny_teacher: Teacher) -> None:
    """The biases tell which channels, heads and units were taken; every matrix must have taken the same."""
    student = heir(tiny_teacher, width=32, heads=2, ffn_dims=40, front_width=12, kept_layers=(1, 3))
    teacher = tiny_teacher.encoder
    channels = positions_of(student.projection.bias, teacher.projection.bias)
    front = positions_of(student.front_norm.bias, teacher.front_norm.bias)
    assert torch.equal(student.projection.weight, teacher.projection.weight[channels][:, front])
    assert torch.equal(student.positions.conv.bias, teacher.positions.conv.bias[channels])
    assert torch.equal(student.norm.weight, teacher.norm.weight[channels])
    for i, kept in enumerate((1, 3)):
        ours, theirs = layer(student, i), layer(teacher, kept - 1)
        inside = positions_of(ours.attention.q.bias, theirs.attention.q.bias)
        assert torch.equal(inside % 12, torch.arange(12).repeat(2))  # whole heads of 12 channels
        for name in ("q", "k", "v"):
            source = getattr(theirs.attention, name)
            assert torch.equal(getattr(ours.attention, name).weight, source.weight[inside][:, channels])
            assert torch.equal(getattr(ours.attention, name).bias, source.bias[inside])
        assert torch.equal(ours.attention.out.weight, theirs.attention.out.weight[channels][:, inside])
        units = positions_of(ours.ffn_in.bias, theirs.ffn_in.bias)
        assert torch.equal(ours.ffn_in.weight, theirs.ffn_in.weight[units][:, channels])
        assert torch.equal(ours.ffn_out.weight, theirs.ffn_out.weight[channels][:, units])
        for name in ("attention_norm", "ffn_norm"):
            assert torch.equal(getattr(ours, name).weight, getattr(theirs, name).weight[channels])


def test_other_ways_to_choose_are_the_first_ones_and_any(tiny_teacher: Teacher) -> None:
    taken = {}
    for narrowing in ("prefix", "random", "importance"):
        student = SpeechEncoder(shaped(tiny_teacher, width=32, heads=2, ffn_dims=40, front_width=12), tiny_teacher.geometry)
        torch.manual_seed(1)
        inherit(student, tiny_teacher.encoder, narrowing)  # type: ignore[arg-type]
        taken[narrowing] = positions_of(student.projection.bias, tiny_teacher.encoder.projection.bias).tolist()
    assert taken["prefix"] == list(range(32))
    assert all(order == sorted(order) for order in taken.values()) and len({tuple(order) for order in taken.values()}) == 3


def test_positions_keep_the_teachers_taps_between_channels_of_one_group(tiny_teacher: Teacher) -> None:
    student, source = heir(tiny_teacher, width=32), tiny_teacher.encoder.positions.conv  # 4 groups of 12 channels become 4 of 8
    channels = positions_of(student.projection.bias, tiny_teacher.encoder.projection.bias).tolist()
    kept = 0
    for row, taps in enumerate(student.positions.conv.weight):
        for column, tap in enumerate(taps):
            ours, other = channels[row], channels[row // 8 * 8 + column]
            alike = ours // 12 == other // 12
            kept += alike
            assert torch.equal(tap, source.weight[ours, other % 12] if alike else torch.zeros(16))
    assert 32 < kept < 32 * 8


def test_what_carries_nothing_is_left_behind(tiny_teacher: Teacher) -> None:
    """A head, a unit and a channel of zero weight are the ones that a student does without."""
    teacher = Teacher(name="", digest="", encoder=SpeechEncoder(tiny_teacher.architecture, tiny_teacher.geometry))
    teacher.encoder.load_state_dict(tiny_teacher.encoder.state_dict())
    teacher.encoder.projection.weight.data[7] = 0
    for i in range(3):
        found = layer(teacher.encoder, i)
        found.attention.out.weight.data[:, 12:24] = 0  # the second head of 12 channels writes nothing
        found.attention.v.weight.data[36:] = 0  # the fourth reads nothing
        found.attention.out.weight.data[7] = found.ffn_out.weight.data[7] = 0
        found.ffn_out.weight.data[:, 5] = 0
    student = heir(teacher, width=44, heads=2, ffn_dims=63)
    assert 7 not in positions_of(student.projection.bias, teacher.encoder.projection.bias)
    for i in range(3):
        ours, theirs = layer(student, i), layer(teacher.encoder, i)
        kept = positions_of(ours.attention.q.bias, theirs.attention.q.bias)
        assert sorted({int(head) for head in kept // 12}) == [0, 2]
        assert 5 not in positions_of(ours.ffn_in.bias, theirs.ffn_in.bias)


def test_a_narrower_front_takes_each_convolution_from_the_teacher(tiny_teacher: Teacher) -> None:
    student, inputs = heir(tiny_teacher, front_width=8), torch.tensor([0])
    for i in range(7):
        ours, theirs = student.front.convs[i], tiny_teacher.encoder.front.convs[i]
        rows = [int((theirs.weight[:, inputs] == kernel).all(-1).all(-1).nonzero()) for kernel in ours.weight]
        inputs = torch.tensor(rows)
        assert len(set(rows)) == 8


def test_channels_of_a_narrower_front_are_as_loud_as_the_teachers(mini: Teacher) -> None:
    """On other noise than it was set by; with the teacher's own norms they are not."""
    student, teacher = heir(mini, front_width=64), mini.encoder
    hum = torch.fft.irfft(torch.fft.rfft(noise(4, 16_080)) * torch.arange(8041).clamp(min=1) ** -0.5, n=16_080)
    ours = theirs = normalize(hum)[..., None]
    copied, inputs = ours, torch.tensor([0])
    off = {"set": 0.0, "copied": 0.0}
    with torch.no_grad():
        for conv, norm, source, source_norm in zip(
            student.front.convs, student.front.norms, teacher.front.convs, teacher.front.norms
        ):
            rows = [int((source.weight[:, inputs] == kernel).all(-1).all(-1).nonzero()) for kernel in conv.weight]
            inputs = torch.tensor(rows)
            ours, theirs, copied = norm(convolve(conv, ours)), source_norm(convolve(source, theirs)), convolve(conv, copied)
            copied = F.layer_norm(copied, (len(rows),), source_norm.weight[inputs], source_norm.bias[inputs])
            for name, heard in (("set", ours), ("copied", copied)):
                off[name] += float((heard.std((0, 1)) / theirs[..., inputs].std((0, 1))).log().abs().mean())
            ours, theirs, copied = F.gelu(ours), F.gelu(theirs), F.gelu(copied)
    assert off["set"] < 0.5 * off["copied"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("front_end", ["wave", "mel"])
def test_any_student_of_the_teacher_can_inherit(mini: Teacher, front_end: str, stride: int) -> None:
    student = heir(
        mini, front_end=front_end, front_width=48, frame_stride=stride, width=96, heads=1, ffn_dims=200, kept_layers=(2, 5)
    )
    with torch.no_grad():
        states = student(noise(2, 5000))
    assert all(torch.isfinite(state).all() for state in states)
    assert states[-1].shape == (2, -(-15 // stride), 96)


def test_with_stride_2_a_steady_sound_gives_the_teachers_state(tiny_teacher: Teacher) -> None:
    """Where nothing changes from frame to frame, two frames at half the weight are one, in projection and positions alike."""
    student = heir(tiny_teacher, frame_stride=2)
    audio = torch.sin(2 * torch.pi * 50 * torch.arange(40_240) / 16_000)[None]  # 320 samples a period: all frames are alike
    with torch.no_grad():
        ours, theirs = student(audio)[0], tiny_teacher.encoder(audio)[0]
    torch.testing.assert_close(ours[:, 30], theirs[:, 60], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"width": 52}, {"heads": 5}, {"ffn_dims": 65}, {"front_width": 17}, {"front_width": 17, "front_end": "wave"}]
)
def test_a_wider_student_is_refused(tiny_teacher: Teacher, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wider than its teacher"):
        heir(tiny_teacher, **changes)


def test_a_mel_front_may_be_wider(tiny_teacher: Teacher) -> None:
    assert torch.isfinite(heir(tiny_teacher, front_end="mel", front_width=20)(noise(1, 3000))[-1]).all()


def test_a_layer_that_the_teacher_lacks_is_refused(tiny_teacher: Teacher) -> None:
    with pytest.raises(ValueError, match="keeps layer 4; its teacher has 3"):
        heir(tiny_teacher, kept_layers=(1, 4))


def explained(states: Tensor, targets: Tensor) -> float:
    """Share of the targets' variance that a ridge regression explains on the second half of the clips."""
    half = len(states) // 2
    x, y = states.flatten(0, 1).double(), targets.flatten(0, 1).double()
    split = half * states.shape[1]
    x, y = torch.cat([x, torch.ones(len(x), 1)], 1), y - y[:split].mean(0)
    weights = torch.linalg.solve(x[:split].T @ x[:split] + torch.eye(x.shape[1]), x[:split].T @ y[:split])
    return float(1 - (y[split:] - x[split:] @ weights).square().sum() / y[split:].square().sum())


def test_a_narrower_heir_knows_more_of_the_teacher_than_chance(mini: Teacher, tiny_corpus: Corpus) -> None:
    audio = torch.stack([torch.from_numpy(cut(tiny_corpus, int(row), 0, 4880)) for row in tiny_corpus.rows()])
    size = {"width": 128, "heads": 2, "ffn_dims": 384, "front_width": 64, "kept_layers": (2, 6)}
    torch.manual_seed(0)
    with torch.no_grad():
        targets = mini.encoder(audio)[6]
        inherited = explained(heir(mini, **size)(audio)[-1], targets)
        random = [explained(SpeechEncoder(shaped(mini, **size), mini.geometry).eval()(audio)[-1], targets) for _ in range(2)]
    assert inherited > 0.2 + max(random)  # 0.4 to 0.5 against 0.1, with three teachers of the shape
