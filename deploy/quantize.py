"""Integers for a student's matrix products: dynamic int8, where scales come from each window as it is heard."""

import logging
from pathlib import Path

import onnx

FRONT = "/front/"  # in the names of the front end's operations


def quantize_dynamic(source: Path, out: Path) -> None:
    """Writes `source` with its transformer's matrix products in int8: weights once, activations window by window.

    The front end stays in fp32: of the convolutions, dynamic int8 is 2.5 to 3.3 times slower, and the log-mel's products span
    more than 8 bits can tell apart. Weights keep 7 bits: x86 without VNNI adds two products in 16, which two of 8 bits overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    front = [node.name for node in onnx.load(str(source), load_external_data=False).graph.node if FRONT in node.name]
    level, log = logging.root.level, logging.getLogger()
    log.setLevel(logging.ERROR)  # it recommends a pre-processing that changes nothing for a graph of fixed shapes
    options = {"op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8, "nodes_to_exclude": front}
    try:
        quantize_dynamic(source, out, reduce_range=True, **options)
    finally:
        log.setLevel(level)
