"""The closed forms against what torch itself counts."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.architecture import (
    EMBEDDING_DIM,
    MEL_BINS,
    MEL_HOP,
    RECEPTIVE_FIELD,
    Architecture,
    Geometry,
    Heads,
)
from search_spaces.cost import LANES, cost
from trainers.networks.student import Student

MINI_DIMS = (32, 64, 128, 128, 128, 128, 128)
WHISPER: dict[str, Any] = {
    "family": "whisper",
    "norm_order": "pre",
    "position_kernel": 0,
    "position_groups": 1,
    "position_table": 64,
}
WAVLM = {"relative_buckets": 320, "relative_distance": 800}


def geometry(**changes: Any) -> Geometry:
    fields: dict[str, Any] = {
        "head_dim": 64,
        "conv_dims": MINI_DIMS,
        "conv_bias": True,
        "front_norm": "layer",
        "norm_order": "post",
        "position_kernel": 64,
        "position_groups": 16,
        "normalize_input": True,
    }
    return Geometry(**(fields | changes))


def uniform(
    depth: int, width: int, heads: int, ffn_dim: int, front_width: int, front_end: Any = "wave", stride: int = 1
) -> Architecture:
    return Architecture(
        front_end=front_end,
        front_width=front_width,
        frame_stride=stride,
        width=width,
        heads=(heads,) * depth,
        ffn_dims=(ffn_dim,) * depth,
        kept_layers=tuple(range(1, depth + 1)),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Architecture, Geometry, int, int]:
    """An architecture and a geometry of any kind, small; a number of keywords; a window in samples."""
    g = geometry(
        head_dim=draw(st.sampled_from((8, 24))),
        conv_dims=draw(st.sampled_from((MINI_DIMS, (48,) * 7, (6, 3, 9, 5, 7, 4, 8)))),
        conv_bias=draw(st.booleans()),
        front_norm=draw(st.sampled_from(("group", "layer"))),
        norm_order=draw(st.sampled_from(("pre", "post"))),
        position_kernel=draw(st.integers(3, 20)),
        position_groups=draw(st.sampled_from((1, 4))),
        normalize_input=draw(st.booleans()),
    )
    front_end = draw(st.sampled_from(("wave", "mel", "bc")))
    depth = draw(st.integers(0 if front_end == "bc" else 1, 3))
    layer = st.integers(1, 8)
    sizes: dict[str, Any] = {}
    if draw(st.integers(0, 2)) == 0:
        g = replace(g, **WHISPER, mel_bins=draw(st.sampled_from((80, 128))))
        front_end = "bc" if front_end == "bc" else "mel"
    elif depth and draw(st.booleans()):  # a teacher with a relative position bias: equal heads in each layer, as wide as the stream
        heads = draw(layer)
        g = replace(g, relative_buckets=draw(st.sampled_from((4, 32))), relative_distance=40)
        sizes = {"width": heads * g.head_dim, "heads": (heads,) * depth}
    if not sizes:
        sizes = {"width": 4 * draw(st.integers(1, 60)), "heads": tuple(draw(layer) for _ in range(depth))}
    front_width = 8 * draw(st.integers(1, 40)) if front_end == "bc" else draw(st.integers(1, 200))
    a = Architecture(
        front_end=front_end,
        front_width=front_width,
        frame_stride=draw(st.sampled_from((1, 2))) if depth else 1,
        **(sizes if depth else {"width": front_width, "heads": ()}),
        ffn_dims=tuple(draw(layer) * 100 - 90 for _ in range(depth)),
        kept_layers=tuple(range(1, depth + 1)),
    )
    samples = draw(st.sampled_from((400, 719, 8_000, 16_080)) | st.integers(400, 20_000))
    return a, g, draw(st.integers(1, 40)), samples


def student(a: Architecture, g: Geometry, keywords: int, read: Heads = "mean") -> Student:
    return Student(a, g, tuple(f"word{i}" for i in range(keywords)), heads=read).eval()


def counted_params(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted_macs(model: torch.nn.Module, window: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(window)
    return int(counter.get_total_flops()) // 2


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which storages each operation reads and returns. In inference mode these are the operations that the code writes,
    not the pieces they are made of. Keeps every tensor, so that no address is used twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[set[int], set[int]]] = []
        self.bytes: dict[int, int] = {}
        self._tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((set(self._storages((args, kwargs))), set(self._storages(result))))
        return result

    def _storages(self, tree: Any) -> Iterator[int]:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                self._tensors.append(tensor)
                storage = tensor.untyped_storage()
                self.bytes[storage._cdata] = storage.nbytes()
                yield storage._cdata


def traced_peak(model: torch.nn.Module, window: Tensor) -> int:
    """Largest sum of bytes alive at one operation: the window, the model's results to the end, all else until its last reader."""
    trace = Trace()
    with torch.inference_mode(), trace:
        results = model(window)
    constants = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), window)}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, (read, returned) in enumerate(trace.operations):
        for storage in (read | returned) - constants:
            first.setdefault(storage, number)
            last[storage] = number
    last |= {result.untyped_storage()._cdata: len(trace.operations) for result in results}
    peak = max(sum(trace.bytes[s] for s in first if first[s] <= n <= last[s]) for n in range(len(trace.operations)))
    return peak + int(window.nbytes)


def check(a: Architecture, g: Geometry, keywords: int, samples: int, read: Heads = "mean") -> None:
    model, window = student(a, g, keywords, read), torch.zeros(1, samples)
    told = cost(a, g, keywords, samples, read)
    assert told.params == counted_params(model)
    table = model.get_buffer("encoder.positions.table") if g.family == "whisper" and a.depth else torch.zeros(0, 0)
    unused = table[-(-g.frames(samples) // a.frame_stride) :]  # the file has the window's rows
    numbers = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    assert told.weight_bytes == sum(t.nbytes for t in numbers) - unused.nbytes
    assert told.total_macs == counted_macs(model, window)
    assert told.peak_activation_bytes == traced_peak(model, window)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@settings(max_examples=120)
@given(cases(), st.sampled_from(get_args(Heads)))
def test_costs_equal_torchs_own_count(case: tuple[Architecture, Geometry, int, int], read: Heads) -> None:
    check(*case, read)


@pytest.mark.parametrize("samples", [8_000, 16_080])
@pytest.mark.parametrize("front_end", ["wave", "mel"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_students_of_mini_size(norm: str, order: str, stride: int, front_end: str, samples: int) -> None:
    g = geometry(front_norm=norm, norm_order=order, conv_bias=norm == "layer")
    check(uniform(2, 128, 2, 384, 64, front_end, stride), g, 12, samples)


@pytest.mark.parametrize(
    ("a", "norm_order", "keywords", "samples", "numbers"),
    [
        (uniform(1, 4, 1, 4, 400, stride=2), "post", 2, 400, 400 + 800),  # padding one frame to two
        (uniform(1, 400, 1, 4, 4), "post", 2, 16_080, 400 * (50 + 51 + 50)),  # positional convolution
        (uniform(1, 256, 4, 4, 4), "pre", 2, 16_080, 50 * (2 * 256 + 3 * 256)),  # q, k, v before layer norm's output is dropped
        (uniform(1, 256, 4, 4, 4), "post", 2, 16_080, 50 * (256 + 3 * 256) + 4 * 50 * 50),  # q @ k
        (uniform(1, 64, 4, 4, 4), "post", 2, 64_400, 201 * (64 + 256) + 2 * 4 * 201 * 201),  # softmax
        (uniform(1, 64, 1, 999, 4), "pre", 2, 16_080, 50 * (64 + 2 * 999)),  # hidden units
        (uniform(1, 256, 1, 4, 4, stride=2), "post", 2_000, 400, 256 + 2_000 + EMBEDDING_DIM),  # heads
        (uniform(1, 4, 1, 4, 4, stride=2), "post", 2_000, 400, 2_000 + 2 * EMBEDDING_DIM + 1),  # unit embedding
    ],
)
def test_each_part_can_be_the_peak(a: Architecture, norm_order: str, keywords: int, samples: int, numbers: int) -> None:
    dims = (*(1,) * 6, a.front_width)
    g = geometry(conv_dims=dims, norm_order=norm_order, position_kernel=8, position_groups=4, normalize_input=False)
    assert cost(a, g, keywords, samples).peak_activation_bytes == 4 * (samples + numbers)
    check(a, g, keywords, samples)


def test_a_sum_in_a_layer_can_be_the_peak_where_every_state_is_read() -> None:
    a = uniform(2, 44, 1, 10, 1)
    g = geometry(head_dim=8, norm_order="pre", position_kernel=3, position_groups=1, normalize_input=False, conv_dims=(1,) * 7)
    check(a, g, 1, 8_000, "every state")


@pytest.mark.parametrize(
    ("case", "published"),  # transformers' count, less the mask embedding and the weight norm's gains, which a student lacks
    [
        ((uniform(12, 768, 12, 3072, 512), {"conv_bias": False, "front_norm": "group"}), 94_371_712 - 768 - 128),
        ((uniform(24, 1024, 16, 4096, 512), {"norm_order": "pre"}), 315_438_720 - 1024 - 128),
        # a gate's eight outputs are two here: 6 x 65 fewer a layer
        (
            (uniform(12, 768, 12, 3072, 512), {"conv_bias": False, "front_norm": "group", **WAVLM}),
            94_381_936 - 768 - 128 - 12 * 6 * 65,
        ),
        (
            (uniform(24, 1024, 16, 4096, 512), {"conv_bias": False, "norm_order": "pre", **WAVLM}),
            315_453_120 - 1024 - 128 - 24 * 6 * 65,
        ),
    ],
    ids=["hubert base", "hubert large", "wavlm base", "wavlm large"],
)
def test_published_sizes(case: tuple[Architecture, dict[str, Any]], published: int) -> None:
    a, changes = case
    g = geometry(**({"conv_dims": (512,) * 7, "position_kernel": 128} | changes))
    told = cost(a, g, keywords=12, samples=16_080)
    with torch.device("meta"):
        model, window = student(a, g, 12), torch.zeros(1, 16_080)
    assert told.params == counted_params(model) == published + (a.width + 1) * (12 + EMBEDDING_DIM)
    assert told.total_macs == counted_macs(model, window)
    assert told.peak_activation_bytes == traced_peak(model, window)


@pytest.mark.parametrize(("front_end", "biased"), [("wave", False), ("mel", False), ("wave", True)])
def test_macs_by_kind(front_end: str, biased: bool) -> None:
    """FlopCounterMode counts by module: the same kinds, told apart by name."""
    a, g = uniform(2, 64, 3, 96, 32, front_end), geometry()
    if biased:
        a, g = replace(a, width=192), geometry(**WAVLM)
    told, model = cost(a, g, 5, 16_080).macs, student(a, g, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 16_080))
    counts = {name.removeprefix("Student."): sum(by_op.values()) // 2 for name, by_op in counter.get_flop_counts().items()}
    mel = counts.get("encoder.front.mel", 0)
    first = 3_215 * 10 * 8 if front_end == "wave" else 0  # frames, taps, channels: a quarter of the teacher's 32
    layers = [f"encoder.layers.{i}" for i in range(a.depth)]
    qkvo = sum(counts[f"{layer}.attention.{name}"] for layer in layers for name in ("q", "k", "v", "out"))
    assert told == {
        "mel": mel,
        "first_conv": first,
        "convs": counts["encoder.front"] - mel - first,
        "depthwise": 0,
        "projection": counts["encoder.projection"],
        "positions": counts["encoder.positions"],
        "qkvo": qkvo,
        "attention": sum(counts[f"{layer}.attention"] for layer in layers) - qkvo,
        "ffn": sum(counts[f"{layer}.{name}"] for layer in layers for name in ("ffn_in", "ffn_out")),
        "heads": counts["keyword_head"] + counts["speaker_head"],
    }


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers the operations of a kind return, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        first = tree_leaves(result)[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        self.numbers[name] = self.numbers.get(name, 0) + (first.numel() if isinstance(first, Tensor) else 0)
        return result


@settings(max_examples=40)
@given(cases())
def test_other_work_equals_what_torch_writes(case: tuple[Architecture, Geometry, int, int]) -> None:
    """By activation and norm: each convolution and each feed-forward's first half is activated, as are the positions."""
    a, g, keywords, samples = case
    told, frames, written = cost(a, g, keywords, samples), g.frames(samples), Written()
    with torch.no_grad(), written:
        student(a, g, keywords)(torch.zeros(1, samples))
    steps = -(-frames // a.frame_stride)
    assert told.work["layers"] == a.depth
    assert told.work["softmax"] == written.numbers.get("_softmax", 0)
    is_whisper, is_bc = g.family == "whisper", a.front_end == "bc"
    positions = 0 if is_whisper or not a.depth else steps * a.width
    assert (0 if is_bc else told.work["front"]) + told.work["units"] + positions == written.numbers.get("gelu", 0)
    assert told.work["blocks"] == (12 if is_bc else 0) == written.calls.get("silu", 0)
    if is_bc and not positions:
        assert told.work["front"] == written.numbers["convolution"]
    norms = told.work["states"] + (frames * a.front_width if a.depth and (is_bc or not is_whisper) else 0)
    if is_whisper or is_bc:
        pass  # no layer norm in its front end
    elif a.front_end == "mel":
        norms += MEL_BINS * ((samples - RECEPTIVE_FIELD) // MEL_HOP + 1)
    elif g.front_norm == "layer":
        norms += told.work["front"]
    assert norms == written.numbers.get("native_layer_norm", 0)


@given(cases())
def test_whole_vectors_hold_the_channels(case: tuple[Architecture, Geometry, int, int]) -> None:
    a, g, keywords, samples = case
    told = cost(a, g, keywords, samples)
    for kind in ("convs", "depthwise", "positions"):
        assert told.vector_macs[kind] >= told.macs[kind]
        assert told.vector_macs[kind] % LANES == 0
    wide = geometry(conv_dims=(32, 64, 128, 128, 128, 128, 128), position_groups=4)
    whole = cost(uniform(1, 128, 1, 64, 128), wide, 1, 16_080)
    assert (whole.vector_macs["convs"], whole.vector_macs["positions"]) == (whole.macs["convs"], whole.macs["positions"])


@pytest.mark.parametrize(
    ("layers", "width", "bins", "published"),  # of openai/whisper-*, less the positions, which are no weights
    [(4, 384, 80, 8_208_384 - 1500 * 384), (6, 512, 80, 20_590_592 - 1500 * 512), (32, 1280, 128, 636_968_960 - 1500 * 1280)],
    ids=["tiny", "base", "large-v3"],
)
def test_published_sizes_of_whisper(layers: int, width: int, bins: int, published: int) -> None:
    a = uniform(layers, width, width // 64, 4 * width, width, "mel")
    g = geometry(**{**WHISPER, "position_table": 1500}, mel_bins=bins)
    told = cost(a, g, keywords=12, samples=16_080)
    with torch.device("meta"):
        model = student(a, g, 12)
    assert told.params == counted_params(model) == published + (a.width + 1) * (12 + EMBEDDING_DIM)


def test_a_window_longer_than_the_positions_is_refused() -> None:
    g = geometry(**WHISPER)
    assert cost(uniform(1, 64, 1, 64, 32, "mel"), g, 1, 20_480).params
    with pytest.raises(ValueError, match="a window of 21000 samples is longer than the teacher's positions, which end at 20480"):
        cost(uniform(1, 64, 1, 64, 32, "mel"), g, 1, 21_000)


def test_a_window_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples has no frame; it needs at least 400"):
        cost(uniform(1, 64, 1, 64, 32), geometry(), 1, 399)


def test_a_width_that_does_not_divide_into_the_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="width 72 is not a multiple of 16"):
        cost(uniform(1, 72, 1, 64, 32), geometry(), 1, 400)


def test_a_cost_takes_microseconds() -> None:
    a, g = uniform(6, 256, 4, 768, 128), geometry()
    started = time.process_time()
    for _ in range(200):
        cost(a, g, 12, 16_080)
    assert (time.process_time() - started) / 200 < 1e-3  # 40 microseconds on an idle core
