"""Fitting: a whole student stays its teacher; a narrower one explains more of it than what it inherited."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from trainers.importing.synthetic import speak_corpus
from trainers.learning.batches import cut
from trainers.networks.encoder import BroadcastFront, SpeechEncoder, normalize
from trainers.networks.fitting import fit, fit_writer, listen, regress, settle, strided
from trainers.networks.inherit import inherit
from trainers.speech.loading import load_corpus
from trainers.teacher.teacher import Teacher, load_teacher


def noise(windows: int, seed: int) -> Tensor:
    """Of a slow envelope, so that frames differ as those of speech do."""
    generator = torch.Generator().manual_seed(seed)
    envelope = torch.randn(windows, 12, generator=generator).exp().repeat_interleave(420, 1)
    return 0.1 * envelope * torch.randn(windows, envelope.shape[1], generator=generator)


def heir(teacher: Teacher, **changes: Any) -> SpeechEncoder:
    """Inherited, not fitted; heads and ffn_dims as one number for all layers."""
    depth = len(changes.get("kept_layers", teacher.architecture.kept_layers))
    whole = {"heads": teacher.architecture.heads[0], "ffn_dims": teacher.architecture.ffn_dims[0], **changes}
    layers = {name: (whole.pop(name),) * depth for name in ("heads", "ffn_dims")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = SpeechEncoder(dataclasses.replace(teacher.architecture, **whole, **layers), teacher.geometry)
    inherit(student, teacher.encoder)
    return student.eval()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """(windows, samples)."""
    folder = tmp_path_factory.mktemp("speech")
    speak_corpus(folder / "speech.parquet", speakers=24, clips_per_keyword=1)
    corpus = load_corpus([folder / "speech.parquet"], folder)
    windows = np.stack([cut(corpus, row, 0, 16_080) for row in range(len(corpus.ids))])
    return torch.from_numpy(windows[np.random.default_rng(0).permutation(len(windows))])


@torch.no_grad()
def explained(student: SpeechEncoder, teacher: SpeechEncoder, audio: Tensor, layer: int) -> float:
    """Share of a teacher's layer that the best linear map from the student's last state gives, on other windows."""
    state, wanted = student(audio)[-1], strided(teacher(audio)[layer], student.architecture.frame_stride)
    half = len(audio) // 2
    readout = nn.Linear(state.shape[-1], wanted.shape[-1])
    readout.weight.zero_()
    regress(readout, state[:half], wanted[:half])
    error, rest = wanted[half:] - readout(state[half:]), wanted[half:]
    return float(1 - error.square().sum() / (rest - rest.mean((0, 1))).square().sum())


@pytest.fixture(scope="module")
def teachers(tiny_teacher: Teacher, tiny_whisper: Teacher) -> dict[str, Teacher]:
    pre = dataclasses.replace(tiny_teacher.geometry, norm_order="pre", front_norm="layer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        large = Teacher(name="", digest="", encoder=SpeechEncoder(tiny_teacher.architecture, pre).eval())
        for weight in large.encoder.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return {"base": tiny_teacher, "large": large, "whisper": tiny_whisper}


@pytest.mark.parametrize("family", ["base", "large", "whisper"])
def test_a_whole_student_stays_its_teacher(teachers: dict[str, Teacher], family: str) -> None:
    teacher, audio = teachers[family].encoder, noise(16, 1)
    student = heir(teachers[family])
    fit(student, teacher, listen(teacher, noise(16, 0)))
    with torch.no_grad():
        for state, expected in zip(student(audio), teacher(audio), strict=True):
            torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["mini-hubert", "mini"])
def test_fitting_explains_more_of_the_teacher(speech: Tensor, name: str, stride: int) -> None:
    """Layer 2 left out, everything narrower."""
    teacher = load_teacher(name)
    student = heir(teacher, front_width=48, width=96, heads=2, ffn_dims=192, kept_layers=(1, 3), frame_stride=stride)
    fitted = heir(teacher, front_width=48, width=96, heads=2, ffn_dims=192, kept_layers=(1, 3), frame_stride=stride)
    fit(fitted, teacher.encoder, listen(teacher.encoder, speech[:200]))
    before, after = (explained(one, teacher.encoder, speech[200:], layer=3) for one in (student, fitted))
    assert after > before + 0.02


@pytest.mark.parametrize("family", ["base", "large", "whisper"])
def test_a_fit_returns_what_the_student_then_computes(teachers: dict[str, Teacher], family: str) -> None:
    teacher, audio = teachers[family].encoder, noise(40, 0)
    student = heir(teachers[family], kept_layers=(1, 3), heads=2, ffn_dims=32)
    for state, expected in zip(fit(student, teacher, listen(teacher, audio)), student(audio), strict=True):
        torch.testing.assert_close(state, expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "front_end"), [("mini-hubert", "mel"), ("mini-hubert", "bc"), ("mini", "bc")])
def test_a_front_end_that_inherits_nothing_is_heard_through_its_projection(speech: Tensor, name: str, front_end: str) -> None:
    """Log-mels of a HuBERT's student, broadcast blocks of any: the convolutions stay random, what follows them is fitted."""
    teacher = load_teacher(name)
    changes: dict[str, Any] = {"front_width": 48, "width": 96, "heads": 2, "ffn_dims": 192, "kept_layers": (1,)}
    student, fitted = heir(teacher, front_end=front_end, **changes), heir(teacher, front_end=front_end, **changes)
    fit(fitted, teacher.encoder, listen(teacher.encoder, speech[:200]))
    if isinstance(student.front, BroadcastFront):  # as in training, where batch norms take the statistics of what is heard
        settle(student.front, [student.heard(speech[:200])])
        student.eval()
    assert all(map(torch.equal, student.front.parameters(), fitted.front.parameters()))
    before, after = (explained(one, teacher.encoder, speech[200:], layer=1) for one in (student, fitted))
    assert after > before + 0.02


def test_blocks_settle_on_what_they_will_compute_in_training(tiny_teacher: Teacher) -> None:
    """But for dropout: they are fitted as they will be heard."""
    front, audio = BroadcastFront(16, tiny_teacher.geometry).train(), normalize(noise(8, 0))
    for module in front.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        heard = front(audio, None)
        settle(front, [audio])
        settled = front.eval()(audio, None)
    assert (settled - heard).abs().mean() < 0.1 * heard.abs().mean()


def test_a_teacher_with_gated_positions_is_fitted_to(tiny_teacher: Teacher) -> None:
    geometry = dataclasses.replace(tiny_teacher.geometry, relative_buckets=8, relative_distance=16, head_dim=12)
    architecture = Architecture(
        **{**dataclasses.asdict(tiny_teacher.architecture), "heads": (4,) * tiny_teacher.architecture.depth}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Teacher(name="", digest="", encoder=SpeechEncoder(architecture, geometry).eval())
        student = SpeechEncoder(architecture, geometry.of_students).eval()
    inherit(student, teacher.encoder)
    fit(student, teacher.encoder, listen(teacher.encoder, noise(64, 0)))
    assert explained(student, teacher.encoder, noise(64, 1), layer=architecture.depth) > 0.9


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(0, 999))
def test_regression_finds_the_map_that_made_the_data(inputs: int, outputs: int, has_bias: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true, linear = nn.Linear(inputs, outputs, bias=has_bias), nn.Linear(inputs, outputs, bias=has_bias)
    heard = torch.randn(40, 5, inputs, generator=generator)
    with torch.no_grad():
        wanted = true(heard)
        before = (linear(heard) - wanted).square().mean()
        for _ in range(3):  # a ridge pulls back to where it began
            regress(linear, heard, wanted)
        assert (linear(heard) - wanted).square().mean() < 1e-5 * before + 1e-9


@torch.no_grad()
def test_what_is_hardly_heard_keeps_its_weight() -> None:
    """A norm that has all but silenced a channel would else be answered by a weight in the thousands."""
    generator = torch.Generator().manual_seed(0)
    x, true = torch.randn(500, 8, generator=generator), torch.randn(8, 3, generator=generator)
    linear = nn.Linear(8, 3)
    own = linear.weight.detach().clone()
    regress(linear, x * torch.tensor([1.0] * 7 + [1e-5]), x @ true)
    torch.testing.assert_close(linear.weight[:, 7], own[:, 7], atol=0.1, rtol=0.0)
    torch.testing.assert_close(linear.weight[:, :7].T, true[:7], atol=0.3, rtol=0.0)


def test_a_narrow_stream_carries_what_explains_most() -> None:
    """Of a teacher of two independent directions over six channels, a stream of two channels can carry all; copies of two of the
    channels carry less."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(4000, 2, generator=generator)
    wanted = sources @ torch.randn(2, 6, generator=generator) + 0.05 * torch.randn(4000, 6, generator=generator)
    writer, stream = nn.Linear(2, 2), 0.1 * torch.randn(4000, 2, generator=generator)
    with torch.no_grad():
        fit_writer(writer, stream, sources, wanted)
        back = nn.Linear(2, 6)
        regress(back, stream + writer(sources), wanted)
        left = (back(stream + writer(sources)) - wanted).var() / wanted.var()
    assert left < 0.1
