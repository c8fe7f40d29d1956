"""BC-ResNet: the paper's sizes and arithmetic; as a student it is saved, folded and exported like any other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy.export import export_onnx, parity
from search_spaces.architecture import EMBEDDING_DIM, Architecture, Baseline, network_from_dict
from trainers.networks.baselines import BroadcastResNet, counted_cost
from trainers.networks.broadcast import Block, SubSpectralNorm
from trainers.networks.student import Student, load_student, save_student
from trainers.teacher.teacher import Teacher

KEYWORDS = tuple("abcdefghijkl")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def bc_resnet(teacher: Teacher, scale: int = 1) -> Student:
    """With batch norms that have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(Baseline(scale=scale), teacher.geometry, KEYWORDS, is_folded=False).train()
        for _ in range(3):
            student(noise(4, 8_000))
    return student.eval()


@pytest.mark.parametrize(("scale", "published"), [(1, 9_200), (2, 27_300), (3, 54_200), (6, 188_000), (8, 321_000)])
def test_published_sizes(tiny_teacher: Teacher, scale: int, published: int) -> None:
    """Kim et al., table 2, with 12 keywords; the speaker head is ours."""
    student = Student(Baseline(scale=scale), tiny_teacher.geometry, KEYWORDS)
    speaker_head = (32 * scale + 1) * EMBEDDING_DIM
    assert sum(weight.numel() for weight in student.parameters()) - speaker_head == pytest.approx(published, rel=0.004)


def test_published_multiplications(tiny_teacher: Teacher) -> None:
    """89.1 M for scale 8 and 1 s, which is 101 frames when padded; neither the log-mel nor, with torch, any norm counts."""
    student = Student(Baseline(), tiny_teacher.geometry, KEYWORDS).eval()
    told, log_mel = counted_cost(student, Baseline(), 16_400), counted_cost(_MelOnly(student), Baseline(), 16_400)
    assert told.total_macs - log_mel.total_macs == pytest.approx(89.1e6, rel=0.05)
    assert told.params == sum(weight.numel() for weight in student.parameters())


class _MelOnly(torch.nn.Module):
    def __init__(self, student: Student) -> None:
        super().__init__()
        assert isinstance(student.encoder, BroadcastResNet)
        self.mel = student.encoder.mel

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.mel(x)
        return states


def test_each_band_of_frequency_is_normalised_alone() -> None:
    x = noise(6, 3, 20, 7) + 10 * torch.arange(20)[:, None] // 4
    y = SubSpectralNorm(3)(x)
    for band in y.unflatten(2, (5, 4)).unbind(2):
        assert torch.allclose(band.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
        assert torch.allclose(band.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-3)


def test_a_block_adds_to_its_input_what_is_the_same_at_every_frequency() -> None:
    block = Block(4, 4, dilation=2).eval()
    x = noise(1, 4, 10, 30).abs()
    with torch.no_grad():
        added = block(x) - torch.relu(x + block.over_frequency(x))
        block.over_frequency[0].weight.zero_()  # type: ignore[operator, union-attr]
        broadcast = block(x) - x
    assert added.abs().max() > 0
    assert torch.allclose(broadcast, broadcast.mean(2, keepdim=True).expand_as(broadcast), atol=1e-5)


def test_only_as_much_time_is_seen_as_the_dilations_reach() -> None:
    block = Block(4, 4, dilation=3).eval()
    x = noise(1, 4, 10, 30)
    changed = x.clone()
    changed[..., 15] += 1
    with torch.no_grad():
        seen = (block(x) - block(changed)).abs().amax((0, 1, 2)) > 0
    assert set(seen.nonzero()[:, 0].tolist()) <= {12, 15, 18} and seen[15]


def test_a_folder_gives_back_what_was_saved(tiny_teacher: Teacher, tmp_path: Path) -> None:
    student = bc_resnet(tiny_teacher)
    save_student(student.folded(), tmp_path)
    loaded, audio = load_student(tmp_path), noise(2, 16_080)
    assert loaded.architecture == Baseline(scale=1)
    with torch.no_grad():
        for ours, theirs in zip(loaded(audio), student(audio)):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_export_is_the_student(tiny_teacher: Teacher, tmp_path: Path) -> None:
    student = bc_resnet(tiny_teacher)
    export_onnx(student, tmp_path / "model.onnx", 16_080)
    assert parity(student.folded(), tmp_path / "model.onnx", noise(3, 16_080).numpy()).ok


def test_json_tells_a_baseline_from_an_architecture(tiny_teacher: Teacher) -> None:
    for network in (Baseline(scale=3), tiny_teacher.architecture):
        assert type(network).from_json(network.to_json()) == network
    assert network_from_dict({"baseline": "bc-resnet", "scale": 3}) == Baseline(scale=3)
    assert isinstance(network_from_dict({**vars(tiny_teacher.architecture)}), Architecture)
    with pytest.raises(ValueError, match="there is no baseline 'vgg'"):
        network_from_dict({"baseline": "vgg", "scale": 1})
