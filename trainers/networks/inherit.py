"""A student's first weights, from the teacher layers that it keeps.

Where the student is narrower it takes the teacher's most important channels, heads and units. Importance is the norm of the
weights that write to them: a channel that no layer writes to carries nothing. One set of residual channels serves all layers,
since they share the stream. The convolutions, where most is lost, are listened to instead: see `_inherit_front`. Other ways to
choose, to compare with: the first ones, as in networks that share weights by prefix, or any.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.networks.encoder import (
    Attention,
    Layer,
    Positions,
    PositionTable,
    SpeechEncoder,
    WaveFront,
    WhisperFront,
    convolve,
    normalize,
)

HEARD = (8, 16_080)  # windows of noise, samples
LOUDNESS = 0.05  # of the noise where loudness matters: that of speech
SMALLEST_DEVIATION = 1e-2  # of a channel after layer norm, where most are near one; a constant one must not be blown up

Narrowing = Literal["importance", "prefix", "random", "ranked"]
Choose = Callable[
    [Tensor, int], Tensor
]  # importance, count -> the indices taken, rising, so that an equal count keeps all in order


@torch.no_grad()
def inherit(student: SpeechEncoder, teacher: SpeechEncoder, narrowing: Narrowing = "importance") -> None:
    """Overwrites the student's weights in place. What the teacher has no counterpart of (broadcast blocks, a HuBERT's of a mel
    front end) keeps its random start, as does all of a student without layers; WavLM's relative position bias stays behind.

    Raises ValueError when the student is wider somewhere than its teacher, or keeps a layer that the teacher lacks.
    """
    assert student.relative is None, "students have no relative position bias"
    a = student.architecture
    if not a.depth:
        return
    _check_fits(student, teacher)
    choose, channels = CHOICES[narrowing], kept_channels(student, teacher, narrowing)
    if isinstance(student.front, WhisperFront) and isinstance(teacher.front, WhisperFront):
        front = choose(_convolved_importance(teacher.front), a.front_width)
        inherit_whisper_front(student.front, teacher.front, channels, front)
    elif isinstance(student.front, WaveFront) and isinstance(teacher.front, WaveFront):
        front = _inherit_front(student.front, teacher.front, _projection_importance(teacher), choose)
        _copy_norm(student.front_norm, teacher.front_norm, front)
        # two frames are projected together with half the weight each: the projection of their mean
        student.projection.weight.copy_(teacher.projection.weight[channels][:, front].repeat(1, a.frame_stride) / a.frame_stride)
        student.projection.bias.copy_(teacher.projection.bias[channels])
    inherit_stream(student, teacher, channels)
    for layer, kept in zip(student.layers, a.kept_layers):
        source = teacher.layers[kept - 1]
        assert isinstance(layer, Layer) and isinstance(source, Layer)
        of_heads = _head_importance(source.attention, student.geometry.head_dim)
        of_units = source.ffn_in.weight.square().sum(1) * source.ffn_out.weight.square().sum(0)
        heads, units = choose(of_heads, layer.attention.heads), choose(of_units, layer.ffn_in.out_features)
        inherit_layer(layer, source, channels, inside(heads, student.geometry.head_dim), units)


def _check_fits(student: SpeechEncoder, teacher: SpeechEncoder) -> None:
    a, t = student.architecture, teacher.architecture
    if a.kept_layers[-1] > t.depth:
        raise ValueError(f"the student keeps layer {a.kept_layers[-1]}; its teacher has {t.depth}")
    wider = a.width > t.width or max(a.heads) > min(t.heads) or max(a.ffn_dims) > min(t.ffn_dims)
    if wider or (a.front_end == t.front_end and a.front_width > t.front_width):
        raise ValueError(
            "the student is wider than its teacher: width, heads, ffn_dims and the width of the same front end must not exceed "
            "the teacher's"
        )


CHOICES: dict[Narrowing, Choose] = {
    "importance": lambda importance, count: importance.topk(count).indices.sort().values,
    "ranked": lambda importance, count: importance.argsort(descending=True, stable=True)[:count],  # the most important first
    "prefix": lambda importance, count: torch.arange(count, device=importance.device),
    "random": lambda importance, count: torch.randperm(len(importance), device=importance.device)[:count].sort().values,
}


def kept_channels(student: SpeechEncoder, teacher: SpeechEncoder, narrowing: Narrowing) -> Tensor:
    """(student width,): the channels of the teacher's residual stream that the student takes over."""
    a = student.architecture
    return CHOICES[narrowing](stream_importance(teacher, a.kept_layers), a.width)


def stream_importance(teacher: SpeechEncoder, kept: tuple[int, ...]) -> Tensor:
    """(teacher width,): squared norm of everything that writes to a channel of the residual stream."""
    total = _writes_stream(teacher).square().flatten(1).sum(1)
    for index in kept:
        layer = teacher.layers[index - 1]
        assert isinstance(layer, Layer)
        total = total + layer.attention.out.weight.square().sum(1) + layer.ffn_out.weight.square().sum(1)
    return total


def _writes_stream(teacher: SpeechEncoder) -> Tensor:
    """(teacher width, ...): the weights that write to the residual stream before the layers do."""
    if isinstance(teacher.front, WhisperFront):
        return teacher.front.convolutions[1].weight
    return teacher.projection.weight


def _projection_importance(teacher: SpeechEncoder) -> Tensor:
    """(front width,): squared norm of the weights that read a channel of the last convolution."""
    weight: Tensor = teacher.projection.weight * teacher.front_norm.weight
    return weight.square().sum(0)


def _inherit_front(student: WaveFront, teacher: WaveFront, projected: Tensor, choose: Choose) -> Tensor:
    """Copies the most important channels, convolution by convolution; returns those of the last.

    A channel is as important as its power, when the teacher hears pink noise, times the weights that read it. Layer norm over
    fewer channels moves all of them, so each norm's weights are set to give every channel the mean and the deviation that it
    has in the teacher (REPAIR, Jordan et al., arXiv 2211.08403). With half the channels of the convolutions, width and heads, a
    ridge regression explained 0.49 and 0.44 of two teachers' last layer on speech; with the norm of the weights alone 0.40.
    projected: (front width,) importance of the last convolution's channels to what reads them.
    """
    inputs, theirs = torch.tensor([0]), _pink_noise().to(projected.device)
    ours = theirs.to(next(student.parameters()).device)
    convs = [conv for conv in teacher.convs if isinstance(conv, nn.Conv1d)]
    readers = [*(conv.weight.square().sum((0, 2)) for conv in convs[1:]), projected]
    for conv, norm, source, source_norm, read in zip(student.convs, student.norms, convs, teacher.norms, readers):
        assert isinstance(conv, nn.Conv1d)
        normed = source_norm(convolve(source, theirs))
        theirs = F.gelu(normed)
        outputs = choose(theirs.square().mean((0, 1)) * read, conv.out_channels)
        conv.weight.copy_(source.weight[:, inputs][outputs])
        if conv.bias is not None and source.bias is not None:
            conv.bias.copy_(source.bias[outputs])
        if not isinstance(norm, nn.Identity):
            _copy_norm(norm, source_norm, outputs)
        states = convolve(conv, ours)
        if isinstance(norm, nn.LayerNorm) and conv.weight.numel() < source.weight.numel():
            _sound_alike(norm, states, normed[..., outputs].to(ours.device))
        ours = F.gelu(norm(states))
        inputs = outputs
    return inputs


def _convolved_importance(teacher: WhisperFront) -> Tensor:
    """(front width,), as in `_inherit_front`."""
    return _noise_convolved(teacher).square().mean((0, 1)) * teacher.convolutions[1].weight.square().sum((0, 2))


def _noise_convolved(teacher: WhisperFront) -> Tensor:
    """(windows, frames, front width): what its first convolution makes of pink noise."""
    first, _ = teacher.convolutions
    return F.gelu(convolve(first, teacher.mel(LOUDNESS * _pink_noise()[..., 0].to(first.weight.device))))


def inherit_whisper_front(student: WhisperFront, teacher: WhisperFront, channels: Tensor, front: Tensor) -> None:
    """No norm follows the convolutions, so the second one's own weights are set to sound as the teacher's do on pink noise.

    channels: (student width,) of the residual stream, which the second convolution writes. front: (student front width,) of the
    first one's.
    """
    (first, second), (our_first, our_second) = teacher.convolutions, student.convolutions
    assert our_first.bias is not None and first.bias is not None and our_second.bias is not None and second.bias is not None
    our_first.weight.copy_(first.weight[front])
    our_first.bias.copy_(first.bias[front])
    weight, bias = second.weight[channels][:, front], second.bias[channels]
    if len(front) < first.out_channels:
        theirs = _noise_convolved(teacher)
        wanted = convolve(second, theirs)[..., channels]
        states = F.conv1d(theirs[..., front].transpose(1, 2), weight, bias, second.stride, second.padding).transpose(1, 2)
        scale = wanted.std((0, 1)) / states.std((0, 1)).clamp(min=SMALLEST_DEVIATION)
        weight, bias = scale[:, None, None] * weight, wanted.mean((0, 1)) - scale * (states.mean((0, 1)) - bias)
    weight = weight.to(our_second.weight.device)  # the teacher may be on another one
    our_second.weight.zero_()
    steps = range(0, our_second.stride[0], second.stride[0])
    for tap in steps:  # one step stands for so many frames: the mean of what they hear
        our_second.weight[..., tap : tap + 3] += weight / len(steps)
    our_second.bias.copy_(bias)


def _pink_noise() -> Tensor:
    """(windows, samples, 1) of zero mean and unit variance, always the same: like speech, most of it is low."""
    spectrum = torch.fft.rfft(torch.randn(HEARD, generator=torch.Generator().manual_seed(0)))
    pink = spectrum * torch.arange(spectrum.shape[-1]).clamp(min=1) ** -0.5
    return normalize(torch.fft.irfft(pink, n=HEARD[1]))[..., None]


def _sound_alike(norm: nn.LayerNorm, states: Tensor, wanted: Tensor) -> None:
    """Sets the norm's weights so that what it makes of `states` has the mean and the deviation of `wanted`, channel by channel;
    both (batch, frames, channels)."""
    plain = F.layer_norm(states, norm.normalized_shape, eps=norm.eps)
    scale = wanted.std((0, 1)) / plain.std((0, 1)).clamp(min=SMALLEST_DEVIATION)
    norm.weight.copy_(scale)
    norm.bias.copy_(wanted.mean((0, 1)) - scale * plain.mean((0, 1)))


def inherit_stream(student: SpeechEncoder, teacher: SpeechEncoder, channels: Tensor) -> None:
    """Positions and the encoder's own norm. channels: of the residual stream, (width,)."""
    _inherit_positions(student, teacher, channels)
    _copy_norm(student.norm, teacher.norm, channels)


def _inherit_positions(student: SpeechEncoder, teacher: SpeechEncoder, channels: Tensor) -> None:
    """Channels keep their own taps; an input channel that sat in another group of the teacher starts at zero. Of a table, channels
    keep their columns."""
    if isinstance(student.positions, PositionTable) and isinstance(teacher.positions, PositionTable):
        table, stride = teacher.positions.table[:, channels], student.architecture.frame_stride
        even = F.pad(table, (0, 0, 0, -len(table) % stride))
        student.positions.table.copy_(torch.unflatten(even, 0, (-1, stride)).mean(1))
        return
    assert isinstance(student.positions, Positions) and isinstance(teacher.positions, Positions)
    conv, source = student.positions.conv, teacher.positions.conv
    size, source_size = conv.in_channels // conv.groups, source.in_channels // source.groups
    stride, taps = student.architecture.frame_stride, conv.kernel_size[0]
    # one step stands for `stride` frames: its tap is the sum of theirs
    weight = torch.unflatten(source.weight[..., : taps * stride], -1, (taps, stride)).sum(-1)
    conv.weight.zero_()
    for row, channel in enumerate(channels.tolist()):
        for column in range(size):
            other = int(channels[row // size * size + column])
            if other // source_size == channel // source_size:
                conv.weight[row, column] = weight[channel, other % source_size]
    assert conv.bias is not None and source.bias is not None
    conv.bias.copy_(source.bias[channels])


def inside(heads: Tensor, head_dim: int) -> Tensor:
    """(heads x head_dim,): the attention's channels of some heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()


def inherit_layer(layer: Layer, source: Layer, channels: Tensor, inside: Tensor, units: Tensor) -> None:
    """channels: of the residual stream, (width,); inside: of the attention, (heads x head_dim,); units: (ffn_dim,)."""
    for name in ("q", "k", "v"):
        _copy_linear(getattr(layer.attention, name), getattr(source.attention, name), inside, channels)
    _copy_linear(layer.attention.out, source.attention.out, channels, inside)
    _copy_linear(layer.ffn_in, source.ffn_in, units, channels)
    _copy_linear(layer.ffn_out, source.ffn_out, channels, units)
    _copy_norm(layer.attention_norm, source.attention_norm, channels)
    _copy_norm(layer.ffn_norm, source.ffn_norm, channels)


def _head_importance(attention: Attention, head_dim: int) -> Tensor:
    """(heads,): norm of what a head reads times norm of what it writes."""
    read = torch.unflatten(attention.v.weight.square(), 0, (-1, head_dim)).sum((1, 2))
    return read * torch.unflatten(attention.out.weight.square(), 1, (-1, head_dim)).sum((0, 2))


def _copy_linear(to: nn.Linear, source: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    to.weight.copy_(source.weight[rows][:, columns])
    if source.bias is not None:
        to.bias.copy_(source.bias[rows])


def _copy_norm(to: nn.Module, source: nn.Module, channels: Tensor) -> None:
    assert isinstance(to, nn.LayerNorm | nn.GroupNorm) and isinstance(source, type(to))
    to.weight.copy_(source.weight[channels])
    to.bias.copy_(source.bias[channels])
