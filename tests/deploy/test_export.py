"""Export: the file computes what the student computes, in about as many bytes as it has weights."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploy.export import OUTPUTS, PARITY_LIMIT, REFERENCE_GEOMETRY, Parity, export_onnx, parity, reference_model
from deploy.measure import open_session
from deploy.quantize import quantize_static
from deploy.target import Target, load_target
from search_spaces.architecture import Architecture, Geometry
from search_spaces.space import front_alone
from trainers.networks.student import Student

WINDOW = 16_080
KEYWORDS = ("yes", "no", "_unknown_")
MEL_CONSTANTS = 28_000  # the two products of the Fourier transform, and the filter bank


def geometry(front_norm: str = "layer", norm_order: str = "post", normalize_input: bool = True) -> Geometry:
    return replace(
        REFERENCE_GEOMETRY,
        front_norm=front_norm,  # type: ignore[arg-type]
        norm_order=norm_order,  # type: ignore[arg-type]
        normalize_input=normalize_input,
    )


def small(front_end: str = "mel", frame_stride: int = 2) -> Architecture:
    return Architecture(
        front_end=front_end,  # type: ignore[arg-type]
        front_width=48,
        frame_stride=frame_stride,
        width=96,
        heads=(1, 2),
        ffn_dims=(128, 192),
        kept_layers=(1, 3),
    )


def noise(clips: int, window: int = WINDOW) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((clips, window))).astype(np.float32)


def student(architecture: Architecture, shape: Geometry, **predictions: object) -> Student:
    """Random weights, no two layer norms alike: the exporter merges equal tensors."""
    torch.manual_seed(0)
    built = Student(architecture, shape, KEYWORDS, **predictions)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return built


@pytest.mark.parametrize(
    ("front_end", "frame_stride", "front_norm", "norm_order"),
    [
        ("wave", 1, "layer", "post"),
        ("wave", 2, "group", "pre"),
        ("wave", 2, "layer", "pre"),
        ("wave", 1, "group", "post"),
        ("mel", 1, "layer", "pre"),
        ("mel", 2, "layer", "post"),
        ("bc", 2, "layer", "pre"),
    ],
)
def test_file_equals_student(tmp_path: Path, front_end: str, frame_stride: int, front_norm: str, norm_order: str) -> None:
    original = student(small(front_end, frame_stride), geometry(front_norm, norm_order, normalize_input=frame_stride == 1))
    export_onnx(original, tmp_path / "model.onnx", WINDOW)
    result = parity(original, tmp_path / "model.onnx", noise(3))
    assert result.ok
    assert max(result.max_abs_logits, result.max_abs_embedding) <= 1e-5
    assert (result.clips, result.same_keyword) == (3, 1.0)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no external data


@pytest.mark.parametrize("whisper", [False, True])
def test_broadcast_blocks_alone_equal_their_file_in_integers_too(tmp_path: Path, whisper: bool) -> None:
    of_whisper: dict[str, Any] = {"family": "whisper", "norm_order": "pre", "position_table": 64, "normalize_input": False}
    original = student(front_alone("bc", 64), replace(geometry(), **of_whisper) if whisper else geometry())
    export_onnx(original, tmp_path / "model.onnx", WINDOW)
    windows = np.random.default_rng(0).standard_normal((3, WINDOW)).astype(np.float32)
    assert parity(original, tmp_path / "model.onnx", windows).ok
    quantize_static(original, tmp_path / "int8.onnx", windows)
    assert parity(original, tmp_path / "int8.onnx", windows).max_abs_embedding < 0.05


@pytest.mark.parametrize("front_end", ["wave", "mel"])
def test_file_weighs_its_params(tmp_path: Path, front_end: str) -> None:
    original = student(small(front_end), geometry())
    export_onnx(original, tmp_path / "model.onnx", WINDOW)
    graph = onnx.load(tmp_path / "model.onnx").graph
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    tensors += [onnx.numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"]
    params = sum(weight.numel() for weight in original.parameters())
    values = sum(tensor.size for tensor in tensors if tensor.dtype == np.float32)
    assert params <= values <= params + MEL_CONSTANTS * (front_end == "mel") + 50
    large = [tensor.tobytes() for tensor in tensors if tensor.size > 1_000]
    assert len(large) == len(set(large))
    assert (tmp_path / "model.onnx").stat().st_size - 4 * values < 100_000  # the graph itself


def test_inputs_and_outputs(tmp_path: Path) -> None:
    export_onnx(student(small(), geometry()), tmp_path / "model.onnx", 8_080)
    session = open_session(tmp_path / "model.onnx")
    assert [(node.name, node.shape, node.type) for node in session.get_inputs()] == [("audio", [1, 8_080], "tensor(float)")]
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("logits", [1, 3]), ("embedding", [1, 128])]
    embedding = session.run(list(OUTPUTS), {"audio": noise(1, 8_080)})[1]
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)


def test_prediction_layers_are_folded(tmp_path: Path) -> None:
    original = student(small(), geometry(), predicted_layers=(2, 4), target_width=256, is_folded=False)
    export_onnx(original, tmp_path / "model.onnx", WINDOW)
    assert parity(original, tmp_path / "model.onnx", noise(2)).max_abs_logits <= 1e-5
    folded = sum(weight.numel() for weight in original.folded().parameters())
    assert (tmp_path / "model.onnx").stat().st_size < 4 * (folded + MEL_CONSTANTS) + 100_000


def test_parity_sees_another_student(tmp_path: Path) -> None:
    original = student(small(), geometry())
    export_onnx(original, tmp_path / "model.onnx", WINDOW)
    with torch.no_grad():
        original.keyword_head.bias[1] += 100
    result = parity(original, tmp_path / "model.onnx", noise(2))
    assert not result.ok
    assert result.max_abs_logits == pytest.approx(100, rel=1e-3)
    assert result.max_abs_embedding <= 1e-5
    with torch.no_grad():
        original.keyword_head.bias[:] = float("nan")
    assert not parity(original, tmp_path / "model.onnx", noise(2)).ok


def test_export_is_quiet_repeatable_and_leaves_the_student_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = student(small("mel", 2), geometry()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(original, tmp_path / "a.onnx", WINDOW)
        export_onnx(original, tmp_path / "b.onnx", WINDOW)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert original.training


def test_reference_is_the_same_whatever_the_seed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference_model(tmp_path / "a.onnx", WINDOW)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # the caller's random numbers are untouched
    reference_model(tmp_path / "b.onnx", WINDOW)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_host_target() -> None:
    target = load_target("host")
    assert (target.name, target.runtime, target.precision) == ("host", "onnxruntime", "fp32")
    assert (target.threads, target.window) == (1, WINDOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('description = "x"\nthreads = 0', "threads is 0"),
        ('description = "x"\nthreads = true', "threads is True"),
        ('description = "x"\nwindow = 100', "window is 100"),
        ('description = "x"\nprecision = "int3"', "precision is 'int3'; allowed: fp32"),
        ('description = "x"\nmax_latency_ms = -1.0', "max_latency_ms is -1.0"),
        ('description = "x"\nmax_latency_ms = "fast"', "max_latency_ms is 'fast'"),
        ('description = "x"\nmax_params = 1.5', "max_params is 1.5"),
        ('description = "x"\ncolour = "red"', "unknown field 'colour'"),
        ('description = "x"\nsustained_gflops = 4.0', "its data sheet lacks peak_gflops, peak_bandwidth, sustained_bandwidth"),
        (
            'description = "x"\npeak_gflops = 1.0\nsustained_gflops = 4.0\npeak_bandwidth = 1.0\nsustained_bandwidth = 1.0',
            "cannot be above the peak",
        ),
        ('description = "x"\nsources = "me"', "it is a list of texts"),
        ("threads = 1", "no description"),
        ("threads =", "is not TOML"),
    ],
)
def test_bad_targets(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "board.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_target(tmp_path / "board.toml")


def test_targets_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text('description = "x"\nthreads = 4\nmax_latency_ms = 40\nmax_params = 2_000_000')
    expected = Target(name="board", description="x", threads=4, max_latency_ms=40, max_params=2_000_000)
    assert load_target(tmp_path / "board.toml") == load_target(str(tmp_path / "board.toml")) == expected


@pytest.mark.parametrize("name", ["toaster", "../targets/host", ""])
def test_unknown_target_names_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"known: .*host"):
        load_target(name)


def test_missing_target_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the target"):
        load_target(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("largest", "off", "is_ok"),
    [(5.0, 9e-5, True), (5.0, 1.1e-4, False), (22.0, 2e-4, True), (22.0, 3e-4, False), (1e9, float("inf"), False)],
)
def test_the_limit_grows_with_large_logits(largest: float, off: float, is_ok: bool) -> None:
    """As float32's rounding does; it stays below what could change a keyword."""
    found = Parity(clips=1, max_abs_logits=off, max_abs_embedding=0.0, largest_logit=largest, same_keyword=1.0)
    assert found.ok == is_ok
    assert not Parity(clips=1, max_abs_logits=0.0, max_abs_embedding=2e-4, largest_logit=largest, same_keyword=1.0).ok


def test_an_embedding_that_cancels_out_may_differ_as_float32_rounds_it(tmp_path: Path) -> None:
    """Of a student that was hardly trained: all windows sound alike to it, and its head tells them apart all the same."""
    built, windows = student(small(), geometry()).eval(), noise(3)
    export_onnx(built, tmp_path / "plain.onnx", WINDOW)
    plain = parity(built, tmp_path / "plain.onnx", windows)
    with torch.no_grad():
        middle_f = built.hear(torch.from_numpy(windows)).mean(0)
        built.speaker_head.bias.copy_(-(middle_f @ built.speaker_head.weight.T))
    export_onnx(built, tmp_path / "cancelled.onnx", WINDOW)
    found = parity(built, tmp_path / "cancelled.onnx", windows)
    assert plain.embedding_limit == PARITY_LIMIT
    assert found.ok and found.cancelled > 5 * plain.cancelled
    blind = Parity(clips=1, max_abs_logits=0.0, max_abs_embedding=0.011, largest_logit=1.0, same_keyword=1.0, cancelled=np.inf)
    assert not blind.ok
