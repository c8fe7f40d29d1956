"""A student's first weights, fitted to speech: distillation in closed form.

`inherit` copies what a narrower student keeps; what it left out is then missing from every sum. Here, from the front end upwards,
each map of the student is set by ridge regression to give, from what the student itself has computed so far, what the teacher
computes on the same speech. The ridge pulls towards the inherited weights, so a whole student stays its teacher.

What reads the residual stream (queries, keys, values, units) is fitted to the teacher's own. What writes to it need not write the
teacher's channels: any stream from which a linear map gives back all of the teacher's is as good, and a narrow one has better
things to carry than some of the channels whole. Such writing weights are found by turns: the best map back from the stream, then
the best change of the stream for that map (alternating least squares).

Post-training pruning repairs a layer in the same way by its own outputs (for example Frantar and Alistarh, arXiv 2208.11580);
here the target is the state of the whole teacher, layers that the student leaves out included.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.networks.choosing import explaining
from trainers.networks.encoder import BroadcastFront, Layer, SpeechEncoder, WhisperFront, convolve
from trainers.networks.inherit import inherit_layer, inherit_stream, inherit_whisper_front, inside

RIDGE = 1e-3  # of each input's power
FLOOR = 1e-3  # of the inputs' mean power
TRUST = 3e-2  # ridge on a change of the stream, of the mean power of the map back
ROUNDS = 6
SAME = 2e-3  # half precision
BATCH = 32  # windows that go through a front end at once: its first states are long
SETTLED = 64  # windows that tell batch norms their statistics
BLOCK = 256  # rows of a symmetric product that are computed at once
SMALLEST_DEVIATION = 1e-3  # of a teacher's channel; a constant one must not be blown up


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a teacher computes on some speech.

    audio: (windows, samples). front: what its convolutions or projection make, before positions; sums: what enters layer 1, then
    the stream after each attention and feed-forward, before a norm that follows; each (windows, frames, width), in half precision.
    orders: in which a student takes over heads and units, (heads,) and (units,) by turns; convolved: likewise the channels of a
    Whisper's first convolution, none of other fronts; streams: those of the residual stream, for the last layer that it keeps.
    """

    audio: Tensor
    front: Tensor
    sums: tuple[Tensor, ...]
    orders: tuple[Tensor, ...]
    convolved: Tensor
    streams: tuple[Tensor, ...]


@torch.no_grad()
def listen(teacher: SpeechEncoder, audio_bn: Tensor) -> Lesson:
    """One lesson serves all students. audio_bn: (windows, samples), on the teacher's device. 256 windows of a second explain more
    of its layers than 128, and 512 a little more; a third of the frames of 512 windows explains less."""
    heard = teacher.heard(audio_bn)
    front, x = _entering(teacher, heard)
    sums, orders = [x.half()], list[Tensor]()
    bias = None if teacher.relative is None else teacher.relative(x.shape[1])
    for half in _all_halves(teacher, bias):
        gathered = half.gather(half.hear(x))
        written = half.writer(gathered)
        orders.append(explaining(gathered, written, half.size))
        total = x + written
        sums.append(total.half())
        x = half.leave(total)
    return Lesson(
        audio=audio_bn,
        front=front.half(),
        sums=tuple(sums),
        orders=tuple(orders),
        convolved=_convolved(teacher, heard, front),
        streams=tuple(_stream(_leaving(teacher, front), total.float()) for total in sums[2::2]),
    )


@torch.no_grad()
def fit(student: SpeechEncoder, teacher: SpeechEncoder, lesson: Lesson) -> list[Tensor]:
    """Overwrites the weights of a student with layers that has inherited from its teacher. What it takes over of the residual
    stream, of heads, units and a Whisper's first convolution is chosen anew, on this speech; the convolutions of `wave` stay.
    All is on one device. Returns what the student now computes on the lesson, as its `forward` does in evaluation.
    """
    assert student.architecture.depth, "without layers there is nothing to fit"
    was_training = student.training
    if isinstance(student.front, BroadcastFront):
        settle(student.front, torch.split(student.heard(lesson.audio[:SETTLED]), BATCH))
    student.eval()
    channels = lesson.streams[student.architecture.kept_layers[-1] - 1][: student.architecture.width].sort().values
    inherit_stream(student, teacher, channels)
    stride, sides = student.architecture.frame_stride, list(_all_halves(teacher))
    if isinstance(student.front, WhisperFront) and isinstance(teacher.front, WhisperFront):
        count = student.front.convolutions[0].out_channels
        inherit_whisper_front(student.front, teacher.front, channels, lesson.convolved[:count].sort().values)
    ours = _fit_front(student, lesson, channels)
    states = [ours]
    for layer, number in zip(student.layers, student.architecture.kept_layers):
        assert isinstance(layer, Layer)
        first, source = 2 * (number - 1), teacher.layers[number - 1]
        assert isinstance(source, Layer)
        entering = [_entered(sides, lesson, at) for at in (first, first + 1)]
        if _is_whole(layer, source) and _is_same(ours, entering[0]):
            ours = layer(ours, None)
            states.append(ours)
            continue
        halves = list(_halves(layer))
        kept = [_first(lesson.orders[first + i], half) for i, half in enumerate(halves)]
        inherit_layer(layer, source, channels, *kept)
        for half, side, x_btw, total, rows in zip(halves, sides[first:], entering, lesson.sums[first + 1 :], kept):
            ours = _fit_half(half, side, ours, x_btw, total.float(), rows, stride)
        states.append(ours)
    if student.geometry.norm_order == "pre":
        states[-1] = student.norm(states[-1])
    student.train(was_training)
    return states


def settle(front: BroadcastFront, parts: Sequence[Tensor]) -> None:
    """Gives its batch norms the statistics of this speech, (windows, samples) each: what it will compute in training, but for what
    dropout takes."""
    front.eval()
    norms = [module for module in front.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain mean over the parts
    for part_bn in parts:
        front(part_bn, None)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _is_whole(layer: Layer, source: Layer) -> bool:
    """Whether it has all that its source has. Where it also hears the same, there is nothing to repair."""
    return [weight.shape for weight in layer.parameters()] == [weight.shape for weight in source.parameters()]


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=SAME, atol=SAME)


@dataclass(frozen=True, kw_only=True)
class _Half:
    """Attention or feed-forward of a layer: readers of the stream, what they gather, the writer back to it. size: channels of a
    head, or of a unit, 1."""

    norm: nn.Module
    is_pre: bool
    readers: tuple[nn.Linear, ...]
    gather: Callable[[Tensor], Tensor]
    writer: nn.Linear
    size: int

    def hear(self, x_bsw: Tensor) -> Tensor:
        heard: Tensor = self.norm(x_bsw) if self.is_pre else x_bsw
        return heard

    def leave(self, total_bsw: Tensor) -> Tensor:
        left: Tensor = total_bsw if self.is_pre else self.norm(total_bsw)
        return left


def _halves(layer: Layer, bias_hss: Tensor | None = None) -> Iterator[_Half]:
    attention = layer.attention
    yield _Half(
        norm=layer.attention_norm,
        is_pre=layer.pre,
        readers=(attention.q, attention.k, attention.v),
        gather=lambda heard: attention.mix(heard, None, bias_hss),
        writer=attention.out,
        size=layer.head_dim,
    )
    yield _Half(
        norm=layer.ffn_norm,
        is_pre=layer.pre,
        readers=(layer.ffn_in,),
        gather=lambda heard: F.gelu(layer.ffn_in(heard)),
        writer=layer.ffn_out,
        size=1,
    )


def _all_halves(encoder: SpeechEncoder, bias_hss: Tensor | None = None) -> Iterator[_Half]:
    for layer in encoder.layers:
        assert isinstance(layer, Layer)
        yield from _halves(layer, bias_hss)


def _entered(sides: Sequence[_Half], lesson: Lesson, at: int) -> Tensor:
    """(windows, frames, teacher width): what enters a half of the teacher."""
    before = lesson.sums[at].float()
    return sides[at - 1].leave(before) if at else before


def _first(order: Tensor, half: _Half) -> Tensor:
    """Channels of the teacher's heads or units that the student's half takes over, rising."""
    count = half.writer.in_features // half.size
    return inside(order[:count].sort().values, half.size)


def _fit_half(half: _Half, side: _Half, ours: Tensor, theirs: Tensor, total: Tensor, rows: Tensor, stride: int) -> Tensor:
    """ours: (windows, steps, width); theirs, total: (windows, frames, teacher width), what enters the teacher's half and the sum
    that it makes; returns what leaves the student's."""
    _fit_readers(half.readers, half.hear(ours), side.readers, strided(side.hear(theirs), stride), rows)
    gathered = half.gather(half.hear(ours))
    fit_writer(half.writer, ours, gathered, strided(total, stride))
    return half.leave(ours + half.writer(gathered))


def _entering(encoder: SpeechEncoder, audio_bn: Tensor) -> tuple[Tensor, Tensor]:
    """What the convolutions or the projection make, and what enters layer 1; both (windows, steps, width)."""
    made = []
    for part_bn in torch.split(audio_bn, BATCH):
        if isinstance(encoder.front, WhisperFront):
            first, second = encoder.front.convolutions
            made.append(convolve(second, F.gelu(convolve(first, encoder.front.mel(part_bn)))))
        else:
            made.append(encoder.projection(encoder.stacked(encoder.front_norm(encoder.front(part_bn, None)))))
    front = torch.cat(made)
    return front, encoder.placed(_leaving(encoder, front))


def _leaving(encoder: SpeechEncoder, front: Tensor) -> Tensor:
    """What the front end gives to the residual stream."""
    return F.gelu(front) if isinstance(encoder.front, WhisperFront) else front


def _stream(left: Tensor, total: Tensor) -> Tensor:
    """The order of the stream's channels, by how well they explain, as the front end leaves them, all that it leaves and the total
    after a layer; all channels alike."""
    return explaining(left, torch.cat([_alike(left), _alike(total)], -1), 1)


def _alike(x: Tensor) -> Tensor:
    return x / x.flatten(0, -2).std(0).clamp(min=SMALLEST_DEVIATION)


def _fit_front(student: SpeechEncoder, lesson: Lesson, channels: Tensor) -> Tensor:
    """The last convolution of a Whisper's student, the projection of others; what enters layer 1, (windows, steps, width)."""
    parts, stride = torch.split(student.heard(lesson.audio), BATCH), student.architecture.frame_stride
    wanted = lesson.front.float()[..., channels]
    if isinstance(student.front, WhisperFront):
        second, heard = student.front.convolutions[1], _read_by_second(student.front, student.heard(lesson.audio))
        linear = nn.Linear(heard.shape[-1], second.out_channels, device=heard.device)
        assert second.bias is not None
        linear.weight.copy_(second.weight.flatten(1))
        linear.bias.copy_(second.bias)
    else:
        heard = torch.cat([student.stacked(student.front_norm(student.front(part_bn, None))) for part_bn in parts])
        linear = student.projection
        wanted = F.gelu(wanted) if student.geometry.family == "whisper" else wanted  # which no activation follows here
    regress(linear, heard, strided(wanted, stride))
    made = linear(heard)
    if isinstance(student.front, WhisperFront):
        assert second.bias is not None
        second.weight.copy_(linear.weight.view_as(second.weight))
        second.bias.copy_(linear.bias)
        made = F.gelu(made)
    return student.placed(made)


def _convolved(teacher: SpeechEncoder, heard_bn: Tensor, front: Tensor) -> Tensor:
    """The order of the first convolution's channels, by what the second makes of them, all of its channels alike."""
    if not isinstance(teacher.front, WhisperFront):
        return torch.zeros(0, dtype=torch.long, device=front.device)
    taps = teacher.front.convolutions[1].kernel_size[0]
    return explaining(_read_by_second(teacher.front, heard_bn), _alike(front), taps)


def _read_by_second(front: WhisperFront, audio_bn: Tensor) -> Tensor:
    """(windows, samples) -> (windows, steps, channels x taps): what each output of the second convolution reads."""
    first, second = front.convolutions
    return torch.cat([_taps(second, F.gelu(convolve(first, front.mel(part_bn)))) for part_bn in torch.split(audio_bn, BATCH)])


def _taps(conv: nn.Conv1d, x_btc: Tensor) -> Tensor:
    """(batch, frames, channels) -> (batch, steps, channels x taps): what each output of the convolution reads."""
    x_btc = F.pad(x_btc, (0, 0, int(conv.padding[0]), int(conv.padding[0]) + -x_btc.shape[1] % conv.stride[0]))
    return x_btc.unfold(1, conv.kernel_size[0], conv.stride[0]).flatten(-2)


def strided(x_btw: Tensor, stride: int) -> Tensor:
    """(batch, frames, width) -> (batch, steps, width): the mean of the frames of a step, the last repeated where one is missing."""
    missing = -x_btw.shape[1] % stride
    even_btw = torch.cat([x_btw, x_btw[:, -1:].expand(-1, missing, -1)], 1)
    return torch.unflatten(even_btw, 1, (-1, stride)).mean(2)


def regress(linear: nn.Linear, heard: Tensor, wanted: Tensor) -> None:
    """Sets the map from `heard`, (..., inputs), to `wanted`, (..., outputs), by ridge regression around its own weights."""
    x_ni = _rows(heard)
    _regress(linear, _power(x_ni), x_ni.T @ wanted.flatten(0, -2))


def _fit_readers(readers: Sequence[nn.Linear], ours: Tensor, sources: Sequence[nn.Linear], theirs: Tensor, rows: Tensor) -> None:
    """Sets each map from `ours`, (..., inputs), to give what its source makes of `theirs`, (..., teacher width), in these rows.
    What is common to all maps is multiplied once."""
    x_ni = _rows(ours)
    power_ii, cross_it = _power(x_ni), x_ni.T @ _rows(theirs)
    for linear, source in zip(readers, sources, strict=True):
        weight_to = _weights(source)[:, rows]
        _regress(linear, power_ii, cross_it[:, : len(weight_to)] @ weight_to)


def _regress(linear: nn.Linear, power_ii: Tensor, cross_io: Tensor) -> None:
    weight_io = _weights(linear)
    inputs = len(weight_io)  # the last row is of the bias, which not all have
    power_ii = power_ii[:inputs, :inputs]
    _set(linear, weight_io + _solve(power_ii, cross_io[:inputs] - power_ii @ weight_io))


def fit_writer(linear: nn.Linear, stream: Tensor, gathered: Tensor, wanted: Tensor) -> None:
    """Sets the map from `gathered`, (..., inputs), to what is added to `stream`, (..., width), so that a linear map from the sum
    explains `wanted`, (..., teacher width), best. Every channel of the teacher counts alike, whatever its power."""
    y_nc, width = wanted.flatten(0, -2), stream.shape[-1]
    both_nz = torch.cat([stream.flatten(0, -2), _rows(gathered)], 1)
    deviation_c = (y_nc - y_nc.mean(0)).square().mean(0).sqrt()  # `std` takes ten times as long
    power_zz, cross_zc = _power(both_nz), both_nz.T @ y_nc / deviation_c.clamp(min=SMALLEST_DEVIATION)
    # the sum, with a column of ones, is `both` times this
    sum_zs = F.pad(torch.eye(width, device=stream.device), (0, 1, 0, len(power_zz) - width))
    sum_zs[-1, -1] = 1.0
    sum_zs[width:, :width] = _weights(linear)
    for _ in range(ROUNDS):
        power_zs = power_zz @ sum_zs
        back_sc = _solve(sum_zs.T @ power_zs, sum_zs.T @ cross_zc)
        missing_ic = cross_zc[width:] - power_zs[width:] @ back_sc
        back_wc = back_sc[:width]
        strength_ww = back_wc @ back_wc.T
        strength_ww.diagonal().add_(TRUST * strength_ww.diagonal().mean())
        change_iw = torch.linalg.solve(strength_ww, back_wc @ missing_ic.T).T
        sum_zs[width:, :width] += _solve(power_zz[width:, width:], change_iw)
    _set(linear, sum_zs[width:, :width])


def _rows(x: Tensor) -> Tensor:
    """(..., inputs) -> (rows, inputs + 1), with a column of ones for the bias."""
    return F.pad(x.flatten(0, -2), (0, 1), value=1.0)


def _power(x_ni: Tensor) -> Tensor:
    """(inputs, inputs): x^T x, of which one half is the other's mirror."""
    inputs = x_ni.shape[1]
    power_ii = x_ni.new_empty(inputs, inputs)
    for first in range(0, inputs, BLOCK):
        last = first + BLOCK
        power_ii[first:last, first:] = x_ni[:, first:last].T @ x_ni[:, first:]
        power_ii[last:, first:last] = power_ii[first:last, last:].T
    return power_ii


def _weights(linear: nn.Linear) -> Tensor:
    """(inputs, outputs), the bias as a last row."""
    return linear.weight.T if linear.bias is None else torch.cat([linear.weight.T, linear.bias[None]])


def _set(linear: nn.Linear, weight_io: Tensor) -> None:
    inputs = linear.in_features
    linear.weight.copy_(weight_io[:inputs].T)
    if linear.bias is not None:
        linear.bias.copy_(weight_io[inputs])


def _solve(power_ii: Tensor, cross_io: Tensor) -> Tensor:
    """(power + ridge)^-1 cross. The ridge is relative to each input's own power, as powers of channels differ a thousandfold, and
    to their mean: what is hardly heard keeps its weight. Without that, channels that a norm has all but silenced got weights in
    the thousands, which explained no more and made a training in bfloat16 noise."""
    power_i = power_ii.diagonal()
    ridged = power_ii + torch.diag(RIDGE * power_i + FLOOR * power_i.mean() + torch.finfo(power_ii.dtype).tiny)
    return torch.cholesky_solve(cross_io, torch.linalg.cholesky(ridged))
