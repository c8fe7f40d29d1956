"""What a student costs, from its architecture alone: closed forms that take microseconds and equal what torch counts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from search_spaces.architecture import (
    BC_BANDS,
    BC_BINS,
    BC_STAGES,
    BC_STEM,
    BC_UNIT,
    EMBEDDING_DIM,
    FRONT_KERNELS,
    FRONT_STRIDES,
    MEL_BINS,
    RECEPTIVE_FIELD,
    Architecture,
    Geometry,
    Heads,
    frame_count,
    head_inputs,
    mel_frames,
)

BYTES = 4  # of an fp32 number
MEL_RADIX = 20  # the log-mel's Fourier transform of 400 samples is two products over 20 x 20
MEL_HALF = MEL_RADIX // 2 + 1  # of its 20 row bins, those that mirror no other
MEL_KERNEL = 3  # of the two convolutions after the log-mel
LANES = 16  # channels that onnxruntime's blocked convolutions compute at once, on AVX-512 and NEON alike


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One student on one window, batch 1, fp32, without prediction layers (a folded student).

    params: all weights: encoder, keyword head, speaker head. WavLM's gates are counted as `trainers.networks.encoder` has them.
    weight_bytes: 4 x (params + constants), the numbers that an exported graph carries; constants are the log-mel's, Whisper's
        positions, and the statistics of batch norms. (With WavLM's position bias, which no student has, it also carries an index of
        8 bytes for each pair of steps.)
    macs: multiply-accumulates of the matrix products and convolutions by kind: half of what
        `torch.utils.flop_counter.FlopCounterMode` counts. Elementwise work and normalisation count nothing, as they do there.
        `depthwise` are convolutions of one channel each, which move more than they multiply.
    vector_macs: of a student, those of its convolutions with channels rounded up to whole vectors of LANES.
    work: of a student, what else takes time: `layers`, broadcast `blocks`, and the numbers that operations other than products
        write: `front` after each convolution of the front end, `states` at each layer norm of the transformer, `units`, `softmax`.
    peak_activation_bytes: the largest sum of tensors alive at one operation of a student's `forward`, in the order
        in which the code writes them. The window is alive throughout (the caller holds it); every other tensor lives from the
        operation that returns it to the last one that reads it. Views are free, nothing is computed in place, and what a
        kernel allocates inside itself does not count. A runtime that frees a tensor after its last reader needs this much;
        one that fuses an activation into the operation before it needs less.
    """

    params: int
    weight_bytes: int
    macs: Mapping[str, int]
    peak_activation_bytes: int
    vector_macs: Mapping[str, int] = field(default_factory=dict)
    work: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())


@dataclass(frozen=True)
class _Conv:
    """One convolution of the front end; `frames` counts its outputs. inputs: that each of its outputs reads. normed: weights of the
    batch norm that follows, which has as many statistics."""

    inputs: int
    outputs: int
    kernel: int
    frames: int
    kind: str = "convs"
    normed: int = 0

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel


def cost(architecture: Architecture, geometry: Geometry, keywords: int, samples: int, read: Heads = "mean") -> Cost:
    """Cost of a student with `keywords` classes on windows of `samples` at 16 kHz; `read`: what its heads do.

    Raises ValueError when the window is shorter than one frame, or the width does not divide into the geometry's groups.
    """
    if samples < RECEPTIVE_FIELD:
        raise ValueError(f"a window of {samples} samples has no frame; it needs at least {RECEPTIVE_FIELD}")
    if architecture.depth and architecture.width % geometry.position_groups:
        raise ValueError(f"width {architecture.width} is not a multiple of {geometry.position_groups} position groups")
    params = _params(architecture, geometry, keywords, read)
    constants = sum(conv.normed for conv in _front(architecture, geometry, samples))
    if bins := _bins(architecture, geometry):
        constants += _mel_constants(bins)
    if geometry.family == "whisper" and architecture.depth:
        constants += _steps(architecture, geometry, samples) * architecture.width
    return Cost(
        params=params,
        weight_bytes=BYTES * (params + constants),
        macs=_macs(architecture, geometry, keywords, samples, read),
        vector_macs=_vector_macs(architecture, geometry, samples),
        work=_work(architecture, geometry, samples),
        peak_activation_bytes=BYTES * (samples + max(_alive(architecture, geometry, keywords, samples, read))),
    )


def _bins(a: Architecture, g: Geometry) -> int:
    """Of the log-mel, 0 where there is none."""
    return {"wave": 0, "mel": g.mel_bins, "bc": BC_BINS}[a.front_end]


def _front(a: Architecture, g: Geometry, samples: int) -> list[_Conv]:
    if a.front_end == "bc":
        return [*_broadcast(a.front_width, g.mel_frames(samples))]
    dims = g.front_dims(a)
    if g.family == "whisper":
        kernel, frames = 2 * a.frame_stride + 1, _steps(a, g, samples)
        return [_Conv(g.mel_bins, dims[0], MEL_KERNEL, g.mel_frames(samples)), _Conv(dims[0], dims[1], kernel, frames)]
    if a.front_end == "mel":
        frames = mel_frames(samples)
        return [_Conv(MEL_BINS, dims[0], MEL_KERNEL, frames), _Conv(dims[0], dims[1], MEL_KERNEL, frame_count(samples))]
    convs, frames = list[_Conv](), samples
    for inputs, outputs, kernel, stride in zip((1, *dims[:-1]), dims, FRONT_KERNELS, FRONT_STRIDES, strict=True):
        frames = (frames - kernel) // stride + 1
        convs.append(_Conv(inputs, outputs, kernel, frames, "convs" if convs else "first_conv"))
    return convs


def _broadcast(width: int, frames: int) -> Iterator[_Conv]:
    """The convolutions of BC-ResNet, in its order; `frames` of the log-mel."""
    rows, channels = BC_BINS // 2, BC_STEM * width // BC_UNIT
    yield _Conv(1, channels, 25, rows * frames, "first_conv", 2 * channels)
    for own, count, stride, _ in BC_STAGES:
        outputs = own * width // BC_UNIT
        yield _Conv(channels, outputs, 1, rows * frames, normed=2 * outputs)
        rows, channels = rows // stride, outputs
        for _ in range(count):
            yield _Conv(1, channels, 3, rows * frames, "depthwise", 2 * channels * BC_BANDS)
            yield _Conv(1, channels, 3, frames, "depthwise", 2 * channels)
            yield _Conv(channels, channels, 1, frames)
    yield _Conv(1, channels, 25, -(-frames // 2), "depthwise")
    yield _Conv(channels, width, 1, -(-frames // 2), normed=2 * width)


def mel_alive(frames: int) -> int:
    """Numbers alive at the log-mel's peak: for each frame two times 20 x 22, a product and the next."""
    return frames * 2 * MEL_RADIX * 2 * MEL_HALF


def _mel_constants(bins: int) -> int:
    """Numbers in the first product, the second, and the mel bank."""
    n, half = MEL_RADIX, MEL_HALF
    return n * 2 * half * n + 2 * n * 2 * n + n * half * bins


def _steps(a: Architecture, g: Geometry, samples: int) -> int:
    return -(-g.frames(samples) // a.frame_stride)


def _position_kernel(a: Architecture, g: Geometry) -> int:
    return g.position_kernel // a.frame_stride


def _position_steps(a: Architecture, g: Geometry, steps: int) -> int:
    """An even kernel, padded by its half on both sides, gives one step more than it reads. A table convolves nothing."""
    return 0 if g.family == "whisper" or not a.depth else steps + (_position_kernel(a, g) + 1) % 2


def _params(a: Architecture, g: Geometry, keywords: int, read: Heads) -> int:
    w, (of_words, of_voices) = a.width, head_inputs(a, read)
    projection = positions = layers = 0
    if _is_projected(a, g):
        projection = 2 * a.front_width + (a.front_width * a.frame_stride + 1) * w  # with the norm before it
    if a.depth and g.family == "hubert":
        positions = (w // g.position_groups * _position_kernel(a, g) + 1) * w
    for heads, ffn in zip(a.heads, a.ffn_dims, strict=True):
        inner = heads * g.head_dim
        layers += 3 * (w + 1) * inner + (inner + 1) * w + (w + 1) * ffn + (ffn + 1) * w + 4 * w
        layers -= inner if g.family == "whisper" else 0  # its keys have no bias
        layers += 2 * (g.head_dim + 1) + heads if g.relative_buckets else 0  # the gate of the position bias
    if a.depth:
        layers += g.relative_buckets * a.heads[0] + 2 * w  # one table for all layers, the norm before or after them
    return _front_params(a, g) + projection + positions + layers + (of_words + 1) * keywords + (of_voices + 1) * EMBEDDING_DIM


def _is_projected(a: Architecture, g: Geometry) -> bool:
    """Not where a Whisper's second convolution writes the width, nor without layers."""
    return a.depth > 0 and (g.family == "hubert" or a.front_end == "bc")


def _front_params(a: Architecture, g: Geometry) -> int:
    convs = _front(a, g, RECEPTIVE_FIELD)
    channels = sum(conv.outputs for conv in convs)
    weights = sum(conv.weights for conv in convs)
    if a.front_end == "bc":
        return weights + sum(conv.normed for conv in convs)
    if g.family == "whisper":
        return weights + channels
    if a.front_end == "mel":
        return 2 * MEL_BINS + weights + channels
    normed = channels if g.front_norm == "layer" else convs[0].outputs
    return weights + (channels if g.conv_bias else 0) + 2 * normed


def _macs(a: Architecture, g: Geometry, keywords: int, samples: int, read: Heads) -> dict[str, int]:
    w, s, bins, front = a.width, _steps(a, g, samples), _bins(a, g), _front(a, g, samples)
    convs = {kind: sum(c.weights * c.frames for c in front if c.kind == kind) for kind in ("first_conv", "convs", "depthwise")}
    n, half = MEL_RADIX, MEL_HALF
    inner, (of_words, of_voices) = sum(a.heads) * g.head_dim, head_inputs(a, read)
    return {
        "mel": g.mel_frames(samples) * (n * 2 * half * n + 2 * n * 2 * n * half + n * half * bins) if bins else 0,
        **convs,  # the first one over one channel: a kind of its own for a processor
        "projection": s * a.front_width * a.frame_stride * w if _is_projected(a, g) else 0,
        "positions": _position_steps(a, g, s) * _position_kernel(a, g) * w * w // g.position_groups,
        "qkvo": 4 * s * w * inner,
        "attention": 2 * s * s * inner + (2 * s * inner if g.relative_buckets else 0),  # products, gates of the position bias
        "ffn": 2 * s * w * sum(a.ffn_dims),
        "heads": of_words * keywords + of_voices * EMBEDDING_DIM,
    }


def _vector_macs(a: Architecture, g: Geometry, samples: int) -> dict[str, int]:
    s, group, front = _steps(a, g, samples), a.width // g.position_groups, _front(a, g, samples)
    return {
        "convs": sum(_whole(c.inputs) * _whole(c.outputs) * c.kernel * c.frames for c in front if c.kind == "convs"),
        "depthwise": sum(_whole(c.outputs) * c.kernel * c.frames for c in front if c.kind == "depthwise"),
        "positions": _position_steps(a, g, s) * _position_kernel(a, g) * a.width * _whole(group),
    }


def _whole(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _work(a: Architecture, g: Geometry, samples: int) -> dict[str, int]:
    s = _steps(a, g, samples)
    return {
        "layers": a.depth,
        "blocks": sum(count for _, count, _, _ in BC_STAGES) if a.front_end == "bc" else 0,
        "front": sum(conv.outputs * conv.frames for conv in _front(a, g, samples)),
        "states": s * a.width * (2 * a.depth + 1) if a.depth else 0,
        "units": s * sum(a.ffn_dims),
        "softmax": sum(a.heads) * s * s,
    }


def _alive(a: Architecture, g: Geometry, keywords: int, samples: int, read: Heads) -> Iterator[int]:
    """Numbers alive beside the window at the operations that can be the peak; no other operation needs more."""
    s = _steps(a, g, samples)
    x, front = s * a.width, g.frames(samples) * a.front_width
    if g.normalize_input or a.front_end == "bc":
        yield 2 * samples + 1  # the centred window, its square, the variance
    yield from _alive_in_front(a, g, samples)
    if _is_projected(a, g):
        yield front + s * a.frame_stride * a.front_width  # padded to whole strides
    if a.depth:
        yield 2 * x + _position_steps(a, g, s) * a.width  # x, the positional convolution, its activation; or x with the table added
    pooled = head_inputs(a, read)[1]
    w, deviates = a.width, read == "every state"
    for layer, (heads, ffn) in enumerate(zip(a.heads, a.ffn_dims, strict=True), 1):
        kept = 2 * w * layer if deviates else 0  # statistics of the states before this layer
        yield kept + 3 * x  # x, what attention or the units add to it, the sum
        inner, logits = s * heads * g.head_dim, heads * s * s
        bias, gate = (logits, s * heads) if g.relative_buckets else (0, 0)
        if g.norm_order == "pre":
            yield kept + 2 * x + 3 * inner + bias + gate  # x, its norm, q, k, v
        yield kept + x + 3 * inner + logits + bias + gate  # x, q, k, v, q @ k
        yield kept + x + inner + 2 * logits + bias + gate  # x, v, the logits before and after softmax, or before and after the bias
        yield kept + x + 2 * s * ffn + (bias if layer < a.depth else 0)  # x, the hidden units before and after activation
    if deviates:
        yield pooled - w + 2 * x  # the last state less its mean, squared
        yield 2 * pooled  # the statistics, side by side
    yield pooled + keywords + EMBEDDING_DIM  # what is pooled and both heads
    yield keywords + 2 * EMBEDDING_DIM + 1  # the logits, the embedding, its length, the unit embedding


def _alive_in_front(a: Architecture, g: Geometry, samples: int) -> Iterator[int]:
    convs = _front(a, g, samples)
    if a.front_end == "bc":
        convs = convs[:1]  # what follows holds less at once
    if _bins(a, g):
        yield mel_alive(g.mel_frames(samples))
    elif g.front_norm == "group":
        yield 2 * convs[0].outputs * convs[0].frames + convs[0].outputs  # the centred channels, their square, the variance
    if g.family == "whisper" and a.front_end == "mel":
        heard, read = convs[0].frames, 2 * a.frame_stride * convs[1].frames
        yield (heard + read) * convs[0].outputs if read > heard else 0  # padded to what the second convolution reads
    for conv in convs:
        yield 2 * conv.outputs * conv.frames  # before and after activation
