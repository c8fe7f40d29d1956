"""Latency of an ONNX model on this machine. One file, numpy and onnxruntime only: copy it to a device and run it there.

    python measure.py model.onnx --reference reference.onnx --window 16080 --threads 1

Machines are noisy: clock speed and neighbours change within seconds. So blocks of inferences of the model alternate with blocks,
as long, of a fixed reference model. What is kept is the ratio of a block's median inference to the mean of the medians before and
after it; the result is the median of these ratios. Blocks, because an inference right after another model's finds cold caches
(a student of 0.7 ms takes a fifth longer then); equal times, because then disturbances hit both alike. The ratio
times the reference's own undisturbed time, measured once a machine, is the latency in milliseconds. One thread is timed by its
CPU time, which leaves out what other processes take; several threads by the wall clock.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

FEWEST_REPEATS = 8  # below 6 not even the extremes bound the median at 95 %
WARM_UP = 3
BLOCK = 3  # inferences of the reference in its smallest block
LARGEST_BLOCK = 20
REFERENCE_RUNS = 60
REFERENCE_PERCENTILE = 10.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """ratio: median of the model's time over the reference's; ratio_low, ratio_high: its 95 % interval by order statistics.

    repeats: blocks that were timed. seconds: wall-clock time that this took. reference_ms: the reference's own time.
    """

    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    seconds: float
    reference_ms: float
    threads: int
    window: int

    @property
    def milliseconds(self) -> float:
        return self.ratio * self.reference_ms

    @property
    def low(self) -> float:
        """Milliseconds at the low end of the interval."""
        return self.ratio_low * self.reference_ms

    @property
    def high(self) -> float:
        """Milliseconds at the high end of the interval."""
        return self.ratio_high * self.reference_ms


def open_session(model_path: str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on the CPU, quiet but for errors. Raises ValueError when the file is missing or no ONNX model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if not Path(model_path).is_file():
        raise ValueError(f"no model at {model_path}")
    try:
        return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but this one
        raise ValueError(f"{model_path} is not a model that onnxruntime can run: {str(error).splitlines()[0]}") from None


def measure(
    model_path: str | Path,
    reference_path: str | Path,
    *,
    window: int,
    threads: int = 1,
    repeats: int = 200,
    precision: float = 0.005,
    seconds: float = 2.0,
    reference_ms: float | None = None,
    seed: int = 0,
) -> Measurement:
    """Time of one inference of `window` samples of noise (from `seed`), beside the reference's.

    Stops when the half-width of the interval is `precision` of the ratio, at `repeats`, or after `seconds`; never before 8
    repeats, so large models take longer. `reference_ms`: the reference's own time on this machine; None measures it first
    (`reference_milliseconds`).
    Raises ValueError when a file is no model or hears another window.
    """
    if reference_ms is None:
        reference_ms = reference_milliseconds(reference_path, window=window, threads=threads, seed=seed)
    model = _timer(model_path, window, threads, seed)
    reference = _timer(reference_path, window, threads, seed)
    model_runs, reference_runs = _block_sizes(model, reference)
    start, ratios = time.perf_counter(), list[float]()
    before = _block(reference, reference_runs)
    while not _finished(ratios, repeats, precision, time.perf_counter() - start, seconds):
        middle, after = _block(model, model_runs), _block(reference, reference_runs)
        ratios.append(2 * middle / (before + after))
        before = after
    low, high = median_interval(ratios)
    return Measurement(
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        repeats=len(ratios),
        seconds=time.perf_counter() - start,
        reference_ms=reference_ms,
        threads=threads,
        window=window,
    )


def reference_milliseconds(
    reference_path: str | Path, *, window: int, threads: int = 1, runs: int = REFERENCE_RUNS, seed: int = 0
) -> float:
    """The model's own undisturbed time: the 10th percentile of `runs` inferences, in milliseconds.

    A low percentile because disturbances only add time; not the minimum, which one lucky run decides.
    """
    timer = _timer(reference_path, window, threads, seed)
    for _ in range(WARM_UP):
        timer()
    return 1e3 * float(np.percentile([timer() for _ in range(runs)], REFERENCE_PERCENTILE))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median, whatever the distribution: the innermost pair of order statistics that holds it at least so
    often by the binomial distribution. Fewer than 6 values give their extremes, which hold it less often."""
    ordered, n = sorted(values), len(values)
    rank, below = 0, (n + 1) / 2**n  # probability that at most rank + 1 values lie below the median
    while below <= 0.025:
        rank += 1
        below += math.comb(n, rank + 1) / 2**n
    return ordered[rank], ordered[n - 1 - rank]


def device_facts() -> dict[str, object]:
    """What a reader of a latency has to know about the machine."""
    return {
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return next((fields[key] for key in ("model name", "Model", "Hardware") if fields.get(key)), "unknown")


def _timer(model_path: str | Path, window: int, threads: int, seed: int) -> Callable[[], float]:
    """A function that runs the model once and returns the seconds it took."""
    session = open_session(model_path, threads)
    audio = session.get_inputs()[0]
    if list(audio.shape) != [1, window]:
        raise ValueError(f"{model_path} hears {audio.shape}, not windows of [1, {window}] samples: export it for this window")
    noise = {audio.name: (0.1 * np.random.default_rng(seed).standard_normal((1, window))).astype(np.float32)}
    clock = time.thread_time if threads == 1 else time.perf_counter

    def run_once() -> float:
        start = clock()
        session.run(None, noise)
        return clock() - start

    return run_once


def _block(timer: Callable[[], float], runs: int) -> float:
    return float(np.median([timer() for _ in range(runs)]))


def _block_sizes(model: Callable[[], float], reference: Callable[[], float]) -> tuple[int, int]:
    """Inferences a block that take about as long for both: three of the reference's, or one of the model's where that is longer."""
    model_time, reference_time = (min(timer() for _ in range(WARM_UP)) for timer in (model, reference))
    block = max(BLOCK * reference_time, model_time)
    sizes = (min(LARGEST_BLOCK, max(1, round(block / max(once, 1e-9)))) for once in (model_time, reference_time))
    return next(sizes), next(sizes)


def _finished(ratios: Sequence[float], repeats: int, precision: float, elapsed: float, seconds: float) -> bool:
    if len(ratios) < FEWEST_REPEATS:
        return False
    if len(ratios) >= repeats or elapsed >= seconds:
        return True
    low, high = median_interval(ratios)
    return (high - low) / 2 <= precision * float(np.median(ratios))


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency of an ONNX model on this machine, as JSON.")
    parser.add_argument("model")
    parser.add_argument("--reference", required=True, help="the fixed reference model (ONNX)")
    parser.add_argument("--window", type=int, required=True, help="samples at 16 kHz")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="stop after this long")
    arguments = parser.parse_args()
    try:
        result = measure(
            arguments.model, arguments.reference, window=arguments.window, threads=arguments.threads, seconds=arguments.seconds
        )
    except ValueError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 2
    times = {"milliseconds": result.milliseconds, "low": result.low, "high": result.high}
    print(json.dumps({**times, **dataclasses.asdict(result), "device": device_facts()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
