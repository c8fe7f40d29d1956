"""Integers for a student's products: static int8, with scales that were found on speech.

It suffers from channels of very different size: a scale that fits the largest leaves the others few steps. So a copy of
the student that computes the same is exported: where a norm comes before a product, each channel is divided in the one and
multiplied in the other until both are about as even (SmoothQuant, Xiao et al., arXiv 2211.10438), and what a head reads is centred
and scaled.
"""

import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploy.export import INPUT, write_graph
from trainers.networks.encoder import Layer, SpeechEncoder
from trainers.networks.student import Student

MEL = "/mel/"  # in the names of the log-mel's operations: their products span more than 8 bits can tell apart
MIGRATION = 0.5  # of a channel's size, from activations to weights; 0.3 to 0.7 were about as good, and 2 points better than none
SMALLEST = 1e-6
BATCH = 32  # windows
HEADS = "keyword_head", "speaker_head"

Windows = NDArray[np.float32]


def quantize_static(student: Student, out: Path, windows: Windows) -> None:
    """Writes a student with its convolutions and the products with its weights in int8, a scale for each channel of the weights.

    Weights keep 7 bits: x86 without VNNI adds two products in 16, which two of 8 bits overflow. Log-mels and the products of
    attention stay in fp32; of the heads the weights alone are int8.

    windows: (windows, samples) of training speech, on which activations get their scales.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source = Path(folder) / "fp32.onnx"
        write_graph(evened(student, windows), source, windows.shape[1])
        quantize_static(
            str(source),
            str(out),
            _Reader(windows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=_in_fp32(source),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
    _shrink_heads(out)


class _Reader:
    """Windows one at a time, as onnxruntime asks for them."""

    def __init__(self, windows: Windows) -> None:
        self.waiting = iter(windows)

    def get_next(self) -> dict[str, Windows] | None:
        window = next(self.waiting, None)
        return None if window is None else {INPUT: window[None]}


class ScaledHead(nn.Module):
    """A linear map of features that are centred and scaled first: the same function, with weights of about one size."""

    scale: Tensor
    shift: Tensor

    def __init__(self, head: nn.Linear, features_bf: Tensor) -> None:
        super().__init__()
        self.linear = copy.deepcopy(head)
        mean_f, deviation_f = features_bf.mean(0), features_bf.std(0).clamp_min(SMALLEST)
        self.register_buffer("scale", 1 / deviation_f)
        self.register_buffer("shift", -mean_f / deviation_f)
        self.linear.bias.copy_(head(mean_f))
        self.linear.weight.mul_(deviation_f)
        self.in_features = head.in_features

    def forward(self, features_bf: Tensor) -> Tensor:
        mapped: Tensor = self.linear(features_bf * self.scale + self.shift)
        return mapped


class OnRows(nn.Module):
    """A linear map of (rows, inputs): in the file it is one operation with its bias, whose sums of integers are scaled and shifted
    in one. Of (batch, steps, inputs) it would be a product, and its bias an operation of its own on fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x_bsi: Tensor) -> Tensor:
        mapped: Tensor = self.linear(x_bsi.flatten(0, -2))
        return mapped.reshape(*x_bsi.shape[:-1], mapped.shape[-1])


@torch.no_grad()
def evened(student: Student, windows: Windows) -> Student:
    """A folded copy of the same function whose channels are more even, as the windows show them, with linear maps `OnRows`."""
    even = student.folded().cpu()
    norms = list(_before_products(even))
    largest = {norm: torch.full((norm.normalized_shape[0],), SMALLEST) for norm, _ in norms}
    read = {name: list[Tensor]() for name in HEADS}

    def seen(norm: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(norm, nn.LayerNorm)
        largest[norm] = torch.maximum(largest[norm], output.abs().flatten(0, -2).amax(0))

    hooks = [norm.register_forward_hook(seen) for norm, _ in norms]
    for name in HEADS:
        hooks.append(getattr(even, name).register_forward_pre_hook(lambda _, inputs, name=name: read[name].append(inputs[0])))
    for first in range(0, len(windows), BATCH):
        even(torch.from_numpy(windows[first : first + BATCH]))
    for hook in hooks:
        hook.remove()
    for norm, products in norms:
        weights = torch.stack([product.weight.abs().amax(0) for product in products]).amax(0).clamp_min(SMALLEST)
        scale = largest[norm] ** MIGRATION / weights ** (1 - MIGRATION)
        norm.weight.div_(scale)
        norm.bias.div_(scale)
        for product in products:
            product.weight.mul_(scale)
    for name in HEADS:
        setattr(even, name, ScaledHead(getattr(even, name), torch.cat(read[name])))
    for parent in list(even.encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child.bias is not None:
                setattr(parent, name, OnRows(child))
    return even


def _before_products(student: Student) -> Iterator[tuple[nn.LayerNorm, list[nn.Linear]]]:
    """Norms that nothing but linear maps read: those before attention and units, where norms come before. After them, the residual
    stream reads them too."""
    if isinstance(student.encoder, SpeechEncoder):
        for layer in student.encoder.layers:
            assert isinstance(layer, Layer)
            if layer.pre:
                yield layer.attention_norm, [layer.attention.q, layer.attention.k, layer.attention.v]
                yield layer.ffn_norm, [layer.ffn_in]


def _is_head(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(f"/{head}/" in node.name for head in HEADS)


def _in_fp32(path: Path) -> list[str]:
    """Names of products that are no student's weights', of the log-mel's, and of the heads'."""
    graph = onnx.load(str(path)).graph
    fixed = {tensor.name for tensor in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }

    def is_free(node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and not fixed & set(node.input)

    return [node.name for node in graph.node if MEL in node.name or _is_head(node) or is_free(node)]


def _shrink_heads(path: Path) -> None:
    """Their weights become int8, a scale for each row; what they compute stays in fp32. As a cast and a product, unlike as a
    DequantizeLinear, ONNX Runtime makes them fp32 once, when it loads the file, and not in every inference."""
    model = onnx.load(str(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for place, node in [(place, node) for place, node in enumerate(graph.node) if _is_head(node)][::-1]:
        name = node.input[1]
        rows = numpy_helper.to_array(weights[name])
        scale = np.maximum(np.abs(rows).max(1, keepdims=True) / 127, 1e-12).astype(np.float32)
        whole = np.round(rows / scale).astype(np.int8)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(numpy_helper.from_array(part, f"{name}_{of}") for of, part in (("int8", whole), ("scale", scale)))
        graph.node.insert(place, helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], f"{name}_scaled"))
        graph.node.insert(place, helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], f"{name}_cast", to=TensorProto.FLOAT))
    onnx.save(model, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """It recommends a pre-processing that changes nothing for a graph of fixed shapes."""
    level, log = logging.root.level, logging.getLogger()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
