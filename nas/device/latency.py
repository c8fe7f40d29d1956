"""Latency and memory of a student on a target, predicted from what it counts, with an interval and its kind.

Analytic models: milliseconds and bytes are sums of what the operations of `search_spaces.cost` cost on a device, and a few
measurements of informative students say how much that is. A device that was never measured is scaled from this machine by its
data sheet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.device.regression import Array, Prior, Regression, fit, left_out
from nas.study.candidates import Kind
from search_spaces.cost import Cost

SURE = 1.96  # standard deviations in half of a measurement's 95 % interval

# Of one count, in units of a multiply-accumulate of a large product; round figures. What is not a product moves numbers through
# caches, a few operations each; `start` is what a runtime needs to begin its some 60 operations, `layer` those of one more,
# `block` those of one broadcast block.
LATENCY_COSTS = {
    "start": 1.5e7,
    "layer": 1e6,
    "block": 1e6,
    "mel": 4.0,
    "convs": 2.0,
    "depthwise": 10.0,
    "front": 100.0,
    "positions": 3.0,
    "products": 1.0,
    "attention": 2.0,
    "softmax": 30.0,
    "units": 150.0,
    "states": 400.0,
    "weights": 0.2,  # bytes
}
LATENCY_PRIOR = Prior(values=tuple(LATENCY_COSTS.values()), spread=0.7, noise=0.018, weight=6.0)
# Bytes of a process: the interpreter, numpy and the runtime; weights, read from the file and laid out anew; activations.
MEMORY_COSTS = {"process": 60e6, "weights": 2.0, "activations": 2.0}
MEMORY_PRIOR = Prior(values=tuple(MEMORY_COSTS.values()), spread=0.5, noise=0.013, weight=6.0)
BANDWIDTH = ("weights",)  # what a device's memory bounds; its arithmetic bounds the rest
LEAST_DATA_SHEET_FACTOR = 2.0  # no data sheet tells a latency more closely than this, either way


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval: 95 % where it was measured, else the 90 % in which a measurement is expected."""

    value: float
    low: float
    high: float
    kind: Kind


def latency_counts(cost: Cost) -> Array:
    """(features,), in the order of LATENCY_COSTS."""
    macs, work = cost.macs, cost.work
    return np.array(
        [
            1.0,
            work["layers"],
            work["blocks"],
            macs["mel"],
            cost.vector_macs["convs"],
            cost.vector_macs["depthwise"],
            work["front"],
            cost.vector_macs["positions"],
            macs["projection"] + macs["qkvo"] + macs["ffn"] + macs["heads"],
            macs["attention"],
            work["softmax"],
            work["units"],
            work["states"],
            cost.weight_bytes,
        ],
        dtype=float,
    )


def memory_counts(cost: Cost) -> Array:
    """(features,), in the order of MEMORY_COSTS."""
    return np.array([1.0, cost.weight_bytes, cost.peak_activation_bytes], dtype=float)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From a measured device to one with a data sheet alone: factors of each coefficient, as expected and at its best."""

    expected: Array
    best: Array


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """One figure of one device: its regression, and the scale where the device itself was never measured."""

    regression: Regression
    scale: Scale | None = None

    @property
    def kind(self) -> Kind:
        return "data sheet" if self.scale else "calibrated"

    def predict(self, counts: Array) -> Estimate:
        """The figure of a student, from what it counts; some microseconds a call."""
        if self.scale is None:
            value, low, high = self.regression.predict(counts)
            return Estimate(value=value, low=low, high=high, kind=self.kind)
        return data_sheet_estimate(self.regression.coefficients * counts, self.scale)


def data_sheet_estimate(parts: Array, scale: Scale) -> Estimate:
    """What is the sum of `parts` on the measured device, on the scaled one: as far either way as its best is from its expected."""
    value, best = float(parts @ scale.expected), float(parts @ scale.best)
    factor = max(LEAST_DATA_SHEET_FACTOR, value / best)
    return Estimate(value=value, low=value / factor, high=value * factor, kind="data sheet")


def fit_latency(costs: Sequence[Cost], milliseconds: Sequence[float], errors: Sequence[float]) -> Regression:
    """errors: relative standard deviations of the measurements."""
    return fit(np.stack([latency_counts(cost) for cost in costs]), np.array(milliseconds), np.array(errors), LATENCY_PRIOR)


def fit_memory(costs: Sequence[Cost], peaks: Sequence[float]) -> Regression:
    return fit(np.stack([memory_counts(cost) for cost in costs]), np.array(peaks), np.zeros(len(costs)), MEMORY_PRIOR)


def left_out_latency(costs: Sequence[Cost], milliseconds: Sequence[float], errors: Sequence[float]) -> Array:
    """Relative error of each measurement as all others predict it."""
    return left_out(np.stack([latency_counts(cost) for cost in costs]), np.array(milliseconds), np.array(errors), LATENCY_PRIOR)


def data_sheet_scale(here: Mapping[str, float], sheet: Mapping[str, Any]) -> Scale:
    """From this machine, of measured `gflops` and `bandwidth` (one core), to a target's data sheet."""

    def factors(gflops: float, bandwidth: float) -> Array:
        return np.array([here["bandwidth"] / bandwidth if name in BANDWIDTH else here["gflops"] / gflops for name in LATENCY_COSTS])

    return Scale(
        expected=factors(sheet["sustained_gflops"], sheet["sustained_bandwidth"]),
        best=factors(sheet["peak_gflops"], sheet["peak_bandwidth"]),
    )
