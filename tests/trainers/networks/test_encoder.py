"""The encoder: frames lie where HuBERT's lie, padding changes nothing, the log-mel is torchaudio's."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from search_spaces.architecture import MEL_BINS, Architecture, Geometry, frame_count
from search_spaces.space import front_alone
from trainers.networks.encoder import BroadcastFront, Gate, RelativePositions, SpeechEncoder, TimeNorm, convolve, normalize
from trainers.networks.log_mel import LogMel

GEOMETRY = Geometry(
    head_dim=8,
    conv_dims=(16,) * 7,
    conv_bias=True,
    front_norm="layer",
    norm_order="post",
    position_kernel=16,
    position_groups=4,
    normalize_input=True,
)
FRONTS = [("wave", "layer"), ("wave", "group"), ("mel", "layer"), ("bc", "layer")]
WIDTHS = {"wave": 12, "mel": 12, "bc": 16}
BIASED = {"relative_buckets": 8, "relative_distance": 12}


def encoder(front_end: Any = "wave", front_norm: Any = "layer", stride: int = 1, **geometry: Any) -> SpeechEncoder:
    architecture = Architecture(
        front_end=front_end,
        front_width=WIDTHS[front_end],
        frame_stride=stride,
        width=16,
        heads=(2, 2) if "relative_buckets" in geometry else (2, 3),
        ffn_dims=(24, 40),
        kept_layers=(1, 2),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = SpeechEncoder(architecture, dataclasses.replace(GEOMETRY, front_norm=front_norm, **geometry)).eval()
        for weight in built.parameters():  # norms too: one that is left out is then seen
            weight.data += 0.1 * torch.randn_like(weight)
    return built


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@settings(max_examples=40)
@given(st.sampled_from(FRONTS), st.sampled_from([1, 2]), st.integers(400, 9000))
def test_every_front_end_gives_the_promised_frames(front: tuple[str, str], stride: int, samples: int) -> None:
    built = encoder(*front, stride)
    with torch.no_grad():
        states = built(noise(1, samples))
    frames = frame_count(samples)
    assert built.front(noise(1, samples), None).shape == (1, frames, WIDTHS[front[0]])
    assert [state.shape for state in states] == [(1, -(-frames // stride), 16)] * 3


@settings(max_examples=30)
@given(
    st.sampled_from(FRONTS),
    st.sampled_from([1, 2]),
    st.sampled_from(["post", "pre"]),
    st.booleans(),
    st.sampled_from([{}, BIASED]),
    st.lists(st.integers(400, 6000), min_size=2, max_size=4),
)
def test_a_padded_row_gives_what_it_gives_unpadded(
    front: tuple[str, str], stride: int, order: str, normalized: bool, bias: dict[str, int], lengths: list[int]
) -> None:
    built = encoder(*front, stride, norm_order=order, normalize_input=normalized, **bias)
    padded = 3 + 5 * noise(len(lengths), max(lengths) + 500)  # what stands in the padding must not matter
    rows = [noise(1, length) + 0.1 for length in lengths]
    for i, row in enumerate(rows):
        padded[i, : lengths[i]] = row
    with torch.no_grad():
        together = built(padded, torch.tensor(lengths))
        for i, row in enumerate(rows):
            for state, alone in zip(together, built(row), strict=True):
                torch.testing.assert_close(state[i : i + 1, : alone.shape[1]], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("front", FRONTS)
def test_full_lengths_are_the_same_as_none(front: tuple[str, str]) -> None:
    built, audio = encoder(*front), noise(2, 5000)
    with torch.no_grad():
        for state, expected in zip(built(audio, torch.tensor([5000, 5000])), built(audio), strict=True):
            torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("front", [("wave", "layer"), ("mel", "layer")])
def test_frames_are_centred_on_sample_320_t_plus_200(front: tuple[str, str]) -> None:
    """Which samples a frame hears, by its gradient: as many before its centre as after."""
    built, audio = encoder(*front), noise(1, 6000).requires_grad_()
    frames = built.front(audio, None)
    for t in (4, 7, 12):
        (gradient,) = torch.autograd.grad(frames[0, t].sum(), audio, retain_graph=True)
        heard = gradient[0].nonzero()
        assert abs((int(heard[0]) + int(heard[-1])) / 2 - (320 * t + 200)) <= 1


@pytest.mark.parametrize("front", [("wave", "layer"), ("mel", "layer")])
def test_an_impulse_that_moves_by_320_samples_moves_by_a_frame(front: tuple[str, str]) -> None:
    built = encoder(*front)
    audio = torch.zeros(2, 8000)
    audio[0, 2760] = audio[1, 3080] = 1.0
    first, second = built.front(audio, None).detach()
    torch.testing.assert_close(first[1:-2], second[2:-1], atol=1e-5, rtol=1e-5)
    quiet = built.front(torch.zeros(1, 8000), None)[0]
    changed = (first - quiet).abs().sum(-1) > 1e-4
    assert changed[8]  # frame 8 is centred on sample 2,760
    assert not changed[:6].any()
    assert not changed[11:].any()


@pytest.mark.parametrize(("family", "first"), [("hubert", 200), ("whisper", 0)])
def test_frames_of_broadcast_blocks_lie_on_the_teachers(family: Any, first: int) -> None:
    """They hear a second on either side. Sounds that mirror each other about a frame's centre do so in what filters that are
    symmetric over time make of them; sounds that move by a frame do too."""
    torch.manual_seed(1)
    front, centre = BroadcastFront(16, dataclasses.replace(GEOMETRY, family=family)).eval(), 320 * 50 + first
    for conv in front.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.data += conv.weight.data.flip(-1)
    audio = noise(1, 33_000)
    near = slice(centre - 14_000, centre + 14_001)
    mirrored, moved = audio.clone(), torch.zeros_like(audio)
    mirrored[:, near] = audio[:, near].flip(-1)
    moved[:, 320:] = audio[:, :-320]
    with torch.no_grad():
        heard, back, later = (front(x, None)[0] for x in (audio, mirrored, moved))
    torch.testing.assert_close(back[45:56], heard[45:56].flip(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(later[51], heard[50], atol=1e-5, rtol=1e-4)
    assert (heard[49] - heard[51]).abs().max() > 0.01  # so a frame's place matters


@pytest.mark.parametrize("samples", [400, 719, 720, 16_080])
@pytest.mark.parametrize("stride", [1, 2])
def test_broadcast_blocks_give_a_whispers_frames(samples: int, stride: int) -> None:
    a = Architecture(front_end="bc", front_width=16, frame_stride=stride, width=16, heads=(2,), ffn_dims=(24,), kept_layers=(1,))
    g = dataclasses.replace(GEOMETRY, family="whisper", norm_order="pre", position_groups=1, position_table=64)
    with torch.no_grad():
        states = SpeechEncoder(a, g).eval()(noise(2, samples))
        alone = SpeechEncoder(front_alone("bc", 16), g).eval()(noise(2, samples))
    assert [state.shape for state in states] == [(2, -(-g.frames(samples) // stride), 16)] * 2
    assert [state.shape for state in alone] == [(2, g.frames(samples), 16)]


def test_without_layers_the_front_ends_output_is_the_one_state() -> None:
    built, audio = SpeechEncoder(front_alone("bc", 8), GEOMETRY).eval(), 3 + 2 * noise(2, 5000)
    with torch.no_grad():
        (state,) = built(audio)
        (padded,) = built(F.pad(audio, (0, 900), value=7.0), torch.tensor([5000, 5000]))
        torch.testing.assert_close(state, built.front(normalize(audio), None))
    torch.testing.assert_close(padded[:, : state.shape[1]], state, atol=1e-5, rtol=1e-4)
    assert {name.split(".")[0] for name, _ in built.named_parameters()} == {"front"}


@pytest.mark.parametrize("stride", [1, 2])
def test_the_order_of_rows_does_not_matter(stride: int) -> None:
    built, audio = encoder(stride=stride), noise(3, 4000)
    with torch.no_grad():
        torch.testing.assert_close(built(audio.flip(0))[-1], built(audio)[-1].flip(0), atol=1e-5, rtol=1e-5)


@settings(max_examples=15)
@given(st.integers(400, 9000), st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_the_log_mel_is_torchaudios(samples: int, loudness: float) -> None:
    audio = loudness * noise(2, samples)
    oracle = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=400, hop_length=160, f_min=20.0, f_max=7600.0, n_mels=MEL_BINS, center=False, power=2.0
    )
    expected = oracle(audio).clamp(min=1e-5).log().transpose(1, 2)
    torch.testing.assert_close(LogMel()(audio), expected, atol=2e-3, rtol=1e-3)


def test_the_log_mel_of_a_tone_peaks_in_its_band_and_silence_is_the_floor() -> None:
    time = torch.arange(4000) / 16_000
    mel = LogMel()(torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (300.0, 1000.0, 3000.0, 7000.0)]))
    bank = torchaudio.functional.melscale_fbanks(201, 20.0, 7600.0, MEL_BINS, 16_000)
    for row, hertz in zip(mel, (300, 1000, 3000, 7000)):
        assert (bank[hertz // 40, row.argmax(-1)] > 0).all()  # the loudest band holds the tone
    silent = LogMel()(torch.zeros(1, 4000))
    torch.testing.assert_close(silent, torch.full_like(silent, 1e-5).log())


def test_normalising_gives_zero_mean_and_unit_variance_of_the_valid_samples() -> None:
    audio = 7 + 3 * noise(2, 1000)
    valid = torch.arange(1000) < torch.tensor([[1000], [600]])
    out = normalize(audio, valid)
    for row, length in zip(out, (1000, 600)):
        assert row[:length].mean().abs() < 1e-5
        assert (row[:length].var(unbiased=False) - 1).abs() < 1e-4
        assert not row[length:].any()
    torch.testing.assert_close(out[:1], normalize(audio[:1]))
    assert torch.isfinite(normalize(torch.zeros(1, 500))).all()


@pytest.mark.parametrize("normalized", [False, True])
def test_normalised_input_makes_the_encoder_deaf_to_gain_and_offset(normalized: bool) -> None:
    built, audio = encoder(normalize_input=normalized), noise(1, 3000)
    heard_by_bc = encoder("bc", normalize_input=normalized)
    with torch.no_grad():
        difference = (built(audio)[-1] - built(5 * audio + 2)[-1]).abs().max()
        assert (heard_by_bc(audio)[-1] - heard_by_bc(5 * audio + 2)[-1]).abs().max() < 1e-3  # in any case
    assert (difference < 1e-3) == normalized


@settings(max_examples=30)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(9, 40)
)
def test_convolve_is_conv1d(groups: int, size: int, kernel: int, stride: int, padding: int, bias: bool, frames: int) -> None:
    conv = nn.Conv1d(groups * size, groups * 2, kernel, stride, padding, groups=groups, bias=bias)
    x_bct = noise(2, groups * size, frames)
    torch.testing.assert_close(convolve(conv, x_bct.transpose(1, 2)), conv(x_bct).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", range(1, 18))
def test_convolve_in_bfloat16_is_convolve(size: int) -> None:
    """Channels of a group: on a CPU with AMX, oneDNN computes noise for 4 to 14 as they are."""
    torch.manual_seed(size)
    conv, x = nn.Conv1d(4 * size, 4 * size, 16, padding=8, groups=4), torch.randn(2, 50, 4 * size)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = convolve(conv, x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), convolve(conv, x), atol=0.03, rtol=0.03)


def test_time_norm_is_group_norm() -> None:
    ours, theirs = TimeNorm(6), nn.GroupNorm(6, 6)
    for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        weight.data = other.data = torch.randn_like(other)
    x_bct = 2 + noise(3, 6, 50)
    torch.testing.assert_close(ours(x_bct.transpose(1, 2)), theirs(x_bct).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("buckets", "distance"), [(320, 800), (32, 128), (8, 12), (4, 2)])
def test_the_position_bias_is_that_of_transformers(buckets: int, distance: int) -> None:
    theirs = WavLMAttention(16, 2, num_buckets=buckets, max_distance=distance)
    ours = RelativePositions(2, buckets, distance)
    ours.table.weight = theirs.rel_attn_embed.weight
    for steps in (1, 2, 1700):
        assert torch.equal(ours(steps), theirs.compute_bias(steps, steps))


def test_a_gate_of_zero_weights_is_that_of_the_paper() -> None:
    """Both gates at one half: 1/2 (1/2 scale - 1) + 2."""
    gate = Gate(2, 8)
    gate.projection.weight.data.zero_()
    gate.projection.bias.data.zero_()
    gate.scale.data = torch.tensor([1.0, 6.0])
    assert torch.equal(gate(noise(1, 3, 16)), torch.tensor([1.75, 3.0])[None, :, None, None].expand(1, 2, 3, 1))


def test_a_width_that_the_positions_cannot_group_is_refused() -> None:
    architecture = dataclasses.replace(encoder().architecture, width=18)
    with pytest.raises(ValueError, match="width 18 is not a multiple of the 4 groups"):
        SpeechEncoder(architecture, GEOMETRY)
