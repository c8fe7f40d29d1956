"""The speech encoder: teacher and students alike, from samples to hidden states. Read it from top to bottom.

Shapes: b batch, n samples, c channels, f features, t frames at 50 Hz, s steps of the transformer (t / frame_stride), w width,
h heads, d channels of a head. Every forward takes the valid samples of each row (`lengths_b`); without them all are valid. Whisper
knows no such thing: it hears what a window is padded with.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import (
    FRONT_KERNELS,
    FRONT_STRIDES,
    MEL_BINS,
    MEL_HOP,
    RECEPTIVE_FIELD,
    Architecture,
    Geometry,
)
from trainers.networks.broadcast import Broadcast
from trainers.networks.log_mel import CENTRED, LogMel, WhisperLogMel

AMX_CHANNELS = 16
NORMALIZE_EPS = 1e-7  # the constant of transformers' Wav2Vec2FeatureExtractor
WHISPER_TIMESCALE = 10_000.0


def normalize(x_bn: Tensor, valid_bn: Tensor | None = None) -> Tensor:
    """Zero mean and unit variance over each row's valid samples; zeros elsewhere."""
    if valid_bn is None:
        x_bn = x_bn - x_bn.mean(-1, keepdim=True)
        return x_bn / (x_bn.square().mean(-1, keepdim=True) + NORMALIZE_EPS).sqrt()
    count_b1 = valid_bn.sum(-1, keepdim=True)
    x_bn = (x_bn - (x_bn * valid_bn).sum(-1, keepdim=True) / count_b1) * valid_bn
    return x_bn / (x_bn.square().sum(-1, keepdim=True) / count_b1 + NORMALIZE_EPS).sqrt()


def convolve(conv: nn.Conv1d, x_btc: Tensor) -> Tensor:
    """A 1-d convolution from (batch, frames, channels) to the same order, computed as a 2-d one in channels-last memory.

    torch's conv1d wants channels first: with the transposes that layer norm and the transformer then need, a training step
    of the paper's student took 1.8 times as long on a CPU.
    """
    weight, stride, padding = conv.weight.unsqueeze(2), (1, conv.stride[0]), (0, int(conv.padding[0]))
    x_btc, weight = _filled_groups(x_btc, weight, conv.groups)
    y = F.conv2d(x_btc.transpose(1, 2).unsqueeze(2), weight, conv.bias, stride, padding, groups=conv.groups)
    return y.squeeze(2).transpose(1, 2)


def _filled_groups(x_btc: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Both with zeros, in bfloat16 on a CPU, where oneDNN 3.12 fails: up to AMX_CHANNELS a group with AMX, where it computes noise
    for groups of 4 to 14 channels (students of `mini-hubert` have 12 at width 192; in float32 the convolution would take six times
    as long); up to 2 without AMX, where it never ends to make a kernel for groups of one channel and 15 taps or more."""
    missing = (AMX_CHANNELS if torch.cpu._is_amx_tile_supported() else 2) - weight.shape[1]
    if groups == 1 or missing <= 0 or not torch.is_autocast_enabled("cpu"):
        return x_btc, weight
    x_btgc = x_btc.reshape(*x_btc.shape[:-1], groups, -1)
    return F.pad(x_btgc, (0, missing)).flatten(-2), F.pad(weight, (0, 0, 0, 0, 0, missing))


class TimeNorm(nn.GroupNorm):
    """Group norm with one channel a group: each channel over its valid frames (a padded row gives what it gives unpadded)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x_btc: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        x_btc = x_btc.float()
        valid_bt1 = None if lengths_b is None else _valid(lengths_b, x_btc.shape[1])[..., None]
        x_btc = x_btc - _mean_over_time(x_btc, valid_bt1)
        return x_btc / (_mean_over_time(x_btc.square(), valid_bt1) + self.eps).sqrt() * self.weight + self.bias


def _mean_over_time(x_btc: Tensor, valid_bt1: Tensor | None) -> Tensor:
    if valid_bt1 is None:
        return x_btc.mean(1, keepdim=True)
    return (x_btc * valid_bt1).sum(1, keepdim=True) / valid_bt1.sum(1, keepdim=True)


class WaveFront(nn.Module):
    """HuBERT's convolutions over the waveform, channels scaled to the student's front width."""

    def __init__(self, dims: tuple[int, ...], geometry: Geometry) -> None:
        super().__init__()
        inputs = (1, *dims[:-1])
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, kernel, stride, bias=geometry.conv_bias)
            for i, o, kernel, stride in zip(inputs, dims, FRONT_KERNELS, FRONT_STRIDES)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if geometry.front_norm == "layer" else TimeNorm(dim) if i == 0 else nn.Identity()
            for i, dim in enumerate(dims)
        )

    def forward(self, x_bn: Tensor, lengths_b: Tensor | None) -> Tensor:
        """(batch, samples) -> (batch, frames, front width)."""
        x_btc = x_bn[..., None]
        for conv, norm, kernel, stride in zip(self.convs, self.norms, FRONT_KERNELS, FRONT_STRIDES):
            assert isinstance(conv, nn.Conv1d)
            x_btc = convolve(conv, x_btc)
            if lengths_b is not None:
                lengths_b = (lengths_b - kernel) // stride + 1
            x_btc = F.gelu(norm(x_btc, lengths_b) if isinstance(norm, TimeNorm) else norm(x_btc))
        return x_btc


class MelFront(nn.Module):
    """Log-mel and two convolutions, the second of stride 2: 50 frames/s, each centred where HuBERT's is."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.mel = LogMel()
        self.norm = nn.LayerNorm(MEL_BINS)
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, 3, stride, padding=1) for i, o, stride in zip((MEL_BINS, *dims[:-1]), dims, (1, 2))
        )

    def forward(self, x_bn: Tensor, lengths_b: Tensor | None) -> Tensor:
        """(batch, samples) -> (batch, frames, front width)."""
        with torch.autocast(x_bn.device.type, enabled=False):  # a power spectrum in bfloat16 is noise
            mel_btf = self.mel(x_bn.float())
        x_btc: Tensor = self.norm(mel_btf)
        if lengths_b is not None:
            lengths_b = (lengths_b - RECEPTIVE_FIELD) // MEL_HOP + 1
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            if lengths_b is not None:  # the convolution pads with zeros at the end of a row, not of the batch
                x_btc = x_btc * _valid(lengths_b, x_btc.shape[1])[..., None]
                lengths_b = (lengths_b - 1) // conv.stride[0] + 1
            x_btc = F.gelu(convolve(conv, x_btc))
        return x_btc


class BroadcastFront(Broadcast):
    """BC-ResNet's blocks at 50 frames/s: its last convolution over time takes every other frame of the log-mel, whose frame m lies
    on sample 160 m + 200 where HuBERT's frame t lies on 320 t + 200. For a Whisper's students, whose frame t lies on 320 t, the
    samples are reflected at the window's ends by half of the log-mel's window, as Whisper does."""

    def __init__(self, width: int, geometry: Geometry) -> None:
        super().__init__(width, stride=2)
        self.is_centred = geometry.family == "whisper"

    def forward(self, x_bn: Tensor, lengths_b: Tensor | None) -> Tensor:
        """(batch, samples), normalised -> (batch, frames, front width)."""
        if self.is_centred:
            x_bn = F.pad(x_bn, CENTRED, "reflect")
        frames = (x_bn.shape[-1] - RECEPTIVE_FIELD) // MEL_HOP + 1
        return self.hear(x_bn, None if lengths_b is None else _valid((lengths_b - RECEPTIVE_FIELD) // MEL_HOP + 1, frames))


class WhisperFront(nn.Module):
    """Whisper's log-mel and two convolutions, the second of stride 2 and as wide as the transformer: frame t is centred on sample
    320 t. With frame_stride 2 its stride is 4, and its kernel spans the two frames that a step stands for."""

    def __init__(self, architecture: Architecture, geometry: Geometry) -> None:
        super().__init__()
        (front_width, width), stride = geometry.front_dims(architecture), architecture.frame_stride
        self.mel = WhisperLogMel(geometry.mel_bins)
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(geometry.mel_bins, front_width, 3, padding=1),
                nn.Conv1d(front_width, width, 2 * stride + 1, 2 * stride, padding=1),
            ]
        )

    @property
    def convolutions(self) -> tuple[nn.Conv1d, nn.Conv1d]:
        first, second = self.convs
        assert isinstance(first, nn.Conv1d) and isinstance(second, nn.Conv1d)
        return first, second

    def forward(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, steps, width)."""
        first, second = self.convolutions
        with torch.autocast(x_bn.device.type, enabled=False):
            mel_btf = self.mel(x_bn.float())
        x_btc = F.gelu(convolve(first, mel_btf))
        if missing := -x_btc.shape[1] % second.stride[0]:
            x_btc = F.pad(x_btc, (0, 0, 0, missing))
        return F.gelu(convolve(second, x_btc))


class PositionTable(nn.Module):
    """Whisper's fixed positions, no parameters: sines and cosines of the step (Vaswani et al., arXiv 1706.03762). A student has the
    columns of the channels that it took over from its teacher; with frame_stride 2 a row is the mean of two."""

    def __init__(self, frames: int, width: int, frame_stride: int) -> None:
        super().__init__()
        table_tw = sinusoids(frames + frames % 2, width + width % 2)[:, :width]
        self.register_buffer("table", torch.unflatten(table_tw, 0, (-1, frame_stride)).mean(1)[: -(-frames // frame_stride)])
        self.table: Tensor

    def forward(self, x_bsw: Tensor) -> Tensor:
        """(batch, steps, width) -> (steps, width)."""
        return self.table[: x_bsw.shape[1]]


def sinusoids(length: int, channels: int) -> Tensor:
    """(length, channels), of an even number of channels: first the sines, then the cosines. On the CPU, whatever is the default:
    on `meta`, on which a teacher is made, torch would load its compiler for it, 2 seconds in each process."""
    rates = torch.exp(-math.log(WHISPER_TIMESCALE) / max(1, channels // 2 - 1) * torch.arange(channels // 2, device="cpu"))
    angles = torch.arange(length, device="cpu")[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Positions(nn.Module):
    """The convolution that tells the transformer where it is. Its weight norm is folded when a teacher is loaded."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x_bsw: Tensor) -> Tensor:
        return F.gelu(convolve(self.conv, x_bsw)[:, : x_bsw.shape[1]])  # an even kernel gives one step too many


class RelativePositions(nn.Module):
    """WavLM's position bias (arXiv 2110.13900), computed once for all layers: a learned number for each head and bucket of
    distances. As in T5 (arXiv 1910.10683), half of the buckets are for what lies ahead, and of each half the first half are
    single distances; the others widen with the logarithm up to `distance`, beyond which all are alike."""

    def __init__(self, heads: int, buckets: int, distance: int) -> None:
        super().__init__()
        self.buckets, self.distance = buckets, distance
        self.table = nn.Embedding(buckets, heads)

    def forward(self, steps: int) -> Tensor:
        """(heads, steps, steps): how much each step (row) leans to each other step (column) for its distance."""
        device = self.table.weight.device
        bias_dh = self.table(self._bucket(torch.arange(1 - steps, steps, device=device)))  # a row for each distance
        # what step i adds to its logit for step j stands in row j - i + steps - 1
        row_ss = torch.arange(steps - 1, 2 * steps - 1, device=device) - torch.arange(steps, device=device)[:, None]
        bias_hss: Tensor = bias_dh[row_ss].permute(2, 0, 1)
        return bias_hss

    def _bucket(self, distances: Tensor) -> Tensor:
        half = self.buckets // 2
        exact, far = half // 2, distances.abs()
        widening = (far.clamp(min=1).float() / exact).log() / math.log(self.distance / exact) * (half - exact)
        bucket = torch.where(far < exact, far, (exact + widening.long()).clamp(max=half - 1))
        return bucket + half * (distances > 0)


class Gate(nn.Module):
    """How much of the position bias a head takes at a step: WavLM's gated relative position bias (arXiv 2110.13900).

    The original has eight outputs, summed by fours; here the weights are summed once, when a teacher is loaded.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(head_dim, 2)
        self.scale = nn.Parameter(torch.ones(heads))

    def forward(self, x_bsw: Tensor) -> Tensor:
        """(batch, heads, steps, 1), from each head's own channels of the residual stream."""
        x_bshd = torch.unflatten(x_bsw, -1, (len(self.scale), -1))
        update_bsh, reset_bsh = self.projection(x_bshd).sigmoid().unbind(-1)
        gate_bsh: Tensor = update_bsh * (reset_bsh * self.scale - 1) + 2
        return gate_bsh.transpose(1, 2)[..., None]


class Attention(nn.Module):
    """Multi-head self-attention; heads x head_dim need not be the width, unless the position bias is gated."""

    def __init__(self, width: int, heads: int, geometry: Geometry) -> None:
        super().__init__()
        inner = heads * geometry.head_dim
        self.heads = heads
        has_bias = {"k": geometry.family == "hubert"}
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=has_bias.get(name, True)) for name in "qkv")
        self.out = nn.Linear(inner, width)
        self.gate = Gate(heads, geometry.head_dim) if geometry.relative_buckets else None

    def forward(self, x_bsw: Tensor, mask_b11s: Tensor | None, bias_hss: Tensor | None = None) -> Tensor:
        out_bsw: Tensor = self.out(self.mix(x_bsw, mask_b11s, bias_hss))
        return out_bsw

    def mix(self, x_bsw: Tensor, mask_b11s: Tensor | None = None, bias_hss: Tensor | None = None) -> Tensor:
        """(batch, steps, width) -> (batch, steps, heads x head_dim): what the heads gather, before they write it."""
        gate_bhs1 = None if self.gate is None else self.gate(x_bsw)
        q, k, v = (proj(x_bsw).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q, self.k, self.v))
        logits_bhss = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if gate_bhs1 is not None and bias_hss is not None:
            logits_bhss = torch.addcmul(logits_bhss, gate_bhs1, bias_hss)
        if mask_b11s is not None:
            logits_bhss = logits_bhss.masked_fill(~mask_b11s, float("-inf"))
        mixed_bhsd = logits_bhss.softmax(-1) @ v
        mixed_bsf: Tensor = mixed_bhsd.transpose(1, 2).flatten(-2)
        return mixed_bsf


class Layer(nn.Module):
    """A transformer layer; layer norm after each half (`post`, Base models) or before it (`pre`, Large models)."""

    def __init__(self, width: int, heads: int, ffn_dim: int, geometry: Geometry) -> None:
        super().__init__()
        self.pre, self.head_dim = geometry.norm_order == "pre", geometry.head_dim
        self.attention = Attention(width, heads, geometry)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn_in, self.ffn_out = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
        if self.pre:
            x = x + self.attention(self.attention_norm(x), mask, bias)
            return x + self._ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, bias))
        x = self.ffn_norm(x + self._ffn(x))
        return x

    def _ffn(self, x: Tensor) -> Tensor:
        x = self.ffn_out(F.gelu(self.ffn_in(x)))
        return x


class SpeechEncoder(nn.Module):
    """Samples to hidden states: front end, projection, positions, transformer layers.

    With the own architecture and weights of HuBERT, wav2vec 2.0, WavLM or Whisper the output equals transformers'. With
    frame_stride 2 two neighbouring frames are projected together and the positional convolution spans the same time with half the
    taps.
    Without layers the front end's output is the one state: no projection, no positions, no norm.
    Raises ValueError when the width is not a multiple of the positional convolution's groups, or a Whisper's student has no mels.
    """

    def __init__(self, architecture: Architecture, geometry: Geometry) -> None:
        super().__init__()
        a, g = architecture, geometry
        if a.depth and a.width % g.position_groups:
            raise ValueError(f"width {a.width} is not a multiple of the {g.position_groups} groups of the positional convolution")
        self.architecture, self.geometry = a, g
        self.front = _new_front(a, g)
        self.positions: Positions | PositionTable
        if a.depth and not isinstance(self.front, WhisperFront):
            self.front_norm = nn.LayerNorm(a.front_width)
            self.projection = nn.Linear(a.front_width * a.frame_stride, a.width)
        if a.depth:
            self.positions = (
                PositionTable(g.position_table, a.width, a.frame_stride)
                if g.family == "whisper"
                else Positions(a.width, g.position_kernel // a.frame_stride, g.position_groups)
            )
            self.norm = nn.LayerNorm(a.width)
        self.layers = nn.ModuleList(Layer(a.width, h, f, g) for h, f in zip(a.heads, a.ffn_dims))
        self.relative: RelativePositions | None = None
        if g.relative_buckets:
            if {heads * g.head_dim for heads in a.heads} != {a.width}:
                raise ValueError("only a teacher has a relative position bias")
            self.relative = RelativePositions(a.heads[0], g.relative_buckets, g.relative_distance)

    def forward(self, x_bn: Tensor, lengths_b: Tensor | None = None) -> list[Tensor]:
        """(batch, samples) at 16 kHz -> the input of layer 1 and the output of every layer, each (batch, steps, width).

        The last one is transformers' `last_hidden_state`: with norm_order `pre` it has gone through the final norm.
        """
        return list(self.states(x_bn, lengths_b))

    def states(self, x_bn: Tensor, lengths_b: Tensor | None = None) -> Iterator[Tensor]:
        """What `forward` returns, one by one: a state that nobody keeps need not stay in memory."""
        x_bn = self.heard(x_bn, lengths_b)
        if self.geometry.family == "whisper":
            assert lengths_b is None, "Whisper has no mask"
            self.geometry.frames(x_bn.shape[-1])
        if isinstance(self.front, WhisperFront):
            yield from self.transform(self.front(x_bn), None)
            return
        if not self.architecture.depth:
            yield self.front(x_bn, lengths_b)
            return
        x_btc = self.front_norm(self.front(x_bn, lengths_b))
        stride = self.architecture.frame_stride
        mask_bs = None
        if lengths_b is not None:
            frames_b = (lengths_b - RECEPTIVE_FIELD) // 320 + 1
            x_btc = x_btc * _valid(frames_b, x_btc.shape[1])[..., None]
            mask_bs = _valid((frames_b - 1) // stride + 1, (x_btc.shape[1] - 1) // stride + 1)
        yield from self.transform(self.projection(self.stacked(x_btc)), mask_bs)

    def heard(self, x_bn: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """(batch, samples), as the front end takes them."""
        if not (self.geometry.normalize_input or isinstance(self.front, BroadcastFront)):
            return x_bn
        return normalize(x_bn.float(), None if lengths_b is None else _valid(lengths_b, x_bn.shape[-1]))

    def stacked(self, x_btc: Tensor) -> Tensor:
        """(batch, frames, front width) -> (batch, steps, front width x frame_stride)."""
        stride = self.architecture.frame_stride
        if stride == 1:
            return x_btc
        return torch.unflatten(F.pad(x_btc, (0, 0, 0, -x_btc.shape[1] % stride)), 1, (-1, stride)).flatten(-2)

    def placed(self, x_bsw: Tensor) -> Tensor:
        """With positions added: what enters layer 1."""
        x_bsw = x_bsw + self.positions(x_bsw)
        placed_bsw: Tensor = x_bsw if self.geometry.norm_order == "pre" else self.norm(x_bsw)
        return placed_bsw

    def transform(self, x_bsw: Tensor, mask_bs: Tensor | None) -> Iterator[Tensor]:
        if mask_bs is not None:
            x_bsw = x_bsw * mask_bs[..., None]
        x_bsw, pre = self.placed(x_bsw), self.geometry.norm_order == "pre"
        mask_b11s = None if mask_bs is None else mask_bs[:, None, None]
        bias_hss = None if self.relative is None else self.relative(x_bsw.shape[1])
        for layer in self.layers:
            yield x_bsw
            x_bsw = layer(x_bsw, mask_b11s, bias_hss)
        yield self.norm(x_bsw) if pre else x_bsw


def _new_front(a: Architecture, g: Geometry) -> WaveFront | MelFront | WhisperFront | BroadcastFront:
    if a.front_end == "bc":
        return BroadcastFront(a.front_width, g)
    if g.family == "whisper":
        if a.front_end != "mel":
            raise ValueError(f"a student of a Whisper encoder has the front end 'mel' or 'bc', not {a.front_end!r}")
        return WhisperFront(a, g)
    dims = g.front_dims(a)
    return WaveFront(dims, g) if a.front_end == "wave" else MelFront(dims)


def _valid(lengths_b: Tensor, size: int) -> Tensor:
    """(batch, size), true where the position is below the row's length."""
    return torch.arange(size, device=lengths_b.device) < lengths_b[:, None]
