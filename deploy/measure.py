"""Latency and memory of ONNX models on this machine. One file, numpy and onnxruntime only: a kit carries it to any device.

    python3 measure.py                  # in an unpacked kit: measures its models, writes result.json, prints where it is

Machines are noisy: clock speed and neighbours change within seconds. So each inference stands beside those of a fixed reference
model: blocks of both, as long, alternate; all models take turns, pass after pass, in sessions opened anew, so that a bad
second or an unlucky place in memory costs each of them little. Disturbances only add time, so what is kept of all
passes is a low percentile of the model's times over the same of the reference's, a ratio; its interval comes
from the passes, resampled. The ratio times the reference's own undisturbed time is the latency in
milliseconds. One thread is timed by its CPU time, which leaves out what other processes take; several by the wall clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"measure: this device has no {missing.name}: install it with `python3 -m pip install numpy onnxruntime`")

FORMAT = 1  # of kits and results
KIT_FILE, RESULT_FILE = "kit.json", "result.json"
FEWEST_PASSES, MOST_PASSES = 6, 16
HURRIED_PASSES = 2  # where there is no time for more
# An interval of so few passes: Student's t over normal, and the spread of a small sample.
WIDER = {2: 9.2, 3: 2.7, 4: 1.9, 5: 1.6}
PASS_SECONDS = 0.25  # of one model and the reference beside it
WARM_UP = 2
BLOCK = 2  # inferences of the reference in its smallest block
LARGEST_BLOCK = 20
UNDISTURBED = 2.0  # percentile; not the minimum, which one lucky run decides
RESAMPLES = 200
DRIFT = 1.25  # the reference's slowest pass over its fastest
THROTTLED = 1.15  # the reference's last passes over its first
HOT = 80.0  # degrees Celsius
IMPRECISE = 3.0  # times the precision that was asked for

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Measurement:
    """ratio: of the model's time over the reference's; ratio_low, ratio_high: its 95 % interval.

    milliseconds, low, high: the ratio and its interval times `reference_ms`, the reference's own undisturbed time.
    median_ms: the median inference of this run, disturbances included. passes, seconds: how often, and how long in all.
    peak_memory: bytes that a process of numpy, onnxruntime and this model held at most; 0 where it was not taken.
    marks: what speaks against it: drift, throttled, imprecise, hurried (fewer than 6 passes).
    """

    ratio: float
    ratio_low: float
    ratio_high: float
    reference_ms: float
    median_ms: float
    passes: int
    seconds: float
    threads: int
    window: int
    peak_memory: int = 0
    marks: tuple[str, ...] = ()

    @property
    def milliseconds(self) -> float:
        return self.ratio * self.reference_ms

    @property
    def low(self) -> float:
        return self.ratio_low * self.reference_ms

    @property
    def high(self) -> float:
        return self.ratio_high * self.reference_ms


@dataclass(frozen=True)
class Pass:
    """Seconds of each inference of the model, and of the reference beside it; seconds on the wall."""

    model: np.ndarray[Any, np.dtype[np.floating[Any]]]
    reference: np.ndarray[Any, np.dtype[np.floating[Any]]]
    seconds: float


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
    models: Sequence[str | Path],
    reference: str | Path,
    *,
    window: int,
    threads: int = 1,
    precision: float = 0.01,
    reference_ms: float | None = None,
    memory: bool = False,
    tell: Tell | None = None,
    seconds: float | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """One inference of `window` samples of noise, of each model, beside the reference's.

    Each model takes turns until the half-width of its interval is `precision` of the ratio: 6 to 16 passes of a quarter of a
    second and at least one inference. reference_ms: the reference's own time on this machine, None: as found here.
    memory: also the peak memory of a fresh process for each. tell: hears passes done and passes at most.
    seconds: after which no further pass begins, but for two of each model; now: the clock. A model of fewer than 6 passes is
    marked, its interval wider.
    Raises ValueError when a file is no model or hears another window.
    """
    passes: list[list[Pass]] = [[] for _ in models]
    end = now() + (float("inf") if seconds is None else seconds)
    peaks = [peak_memory(model, window, threads) if memory else 0 for model in models]
    for turn in range(MOST_PASSES):
        for index, model in enumerate(models):
            is_late = turn >= HURRIED_PASSES and now() >= end
            if not is_late and not _finished(passes[index], precision):
                passes[index].append(_one_pass(model, reference, window, threads))
            if tell:
                tell(turn * len(models) + index + 1, MOST_PASSES * len(models))
    if reference_ms is None and models:
        reference_ms = 1e3 * _undisturbed([one.reference for taken in passes for one in taken])
    return [_measurement(taken, reference_ms or 0.0, precision, threads, window, peak) for taken, peak in zip(passes, peaks)]


def _measurement(
    passes: Sequence[Pass], reference_ms: float, precision: float, threads: int, window: int, peak: int
) -> Measurement:
    low, high = interval(passes)
    return Measurement(
        ratio=ratio(passes),
        ratio_low=low,
        ratio_high=high,
        reference_ms=reference_ms,
        median_ms=1e3 * float(np.median(np.concatenate([one.model for one in passes]))),
        passes=len(passes),
        seconds=sum(one.seconds for one in passes),
        threads=threads,
        window=window,
        peak_memory=peak,
        marks=marks(passes, precision, temperature()),
    )


def ratio(passes: Sequence[Pass]) -> float:
    """The model's undisturbed time over the reference's."""
    return _undisturbed([one.model for one in passes]) / _undisturbed([one.reference for one in passes])


def interval(passes: Sequence[Pass]) -> tuple[float, float]:
    """95 % interval of the ratio: bootstrap over passes (Efron 1979), since inferences of one pass share their disturbances."""
    random = np.random.default_rng(0)
    draws = [ratio([passes[i] for i in random.integers(0, len(passes), len(passes))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, (2.5, 97.5))
    middle, wider = ratio(passes), WIDER.get(len(passes), 1.0)
    return float(middle * min(1.0, low / middle) ** wider), float(middle * max(1.0, high / middle) ** wider)


def marks(passes: Sequence[Pass], precision: float, degrees: float | None) -> tuple[str, ...]:
    """What speaks against a measurement: the reference did not keep its pace, or the interval stayed wide."""
    pace = [_undisturbed([one.reference]) for one in passes]
    third = max(1, len(pace) // 3)
    low, high = interval(passes)
    throttled = np.median(pace[-third:]) > THROTTLED * np.median(pace[:third]) or (degrees or 0.0) >= HOT
    found = {
        "drift": max(pace) > DRIFT * min(pace),
        "throttled": bool(throttled),
        "hurried": len(passes) < FEWEST_PASSES,
        "imprecise": (high - low) / 2 > IMPRECISE * precision * ratio(passes),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _undisturbed(times: Sequence[np.ndarray[Any, np.dtype[np.floating[Any]]]]) -> float:
    return float(np.percentile(np.concatenate(times), UNDISTURBED))


def _finished(passes: Sequence[Pass], precision: float) -> bool:
    if len(passes) < FEWEST_PASSES:
        return False
    low, high = interval(passes)
    return (high - low) / 2 <= precision * ratio(passes)


def _one_pass(model_path: str | Path, reference_path: str | Path, window: int, threads: int) -> Pass:
    start = time.perf_counter()
    model, reference = (_timer(path, window, threads) for path in (model_path, reference_path))
    model_runs, reference_runs = _block_sizes(model, reference)
    began = time.perf_counter()
    of_model, of_reference = list[float](), [reference() for _ in range(reference_runs)]
    while not of_model or time.perf_counter() - began < PASS_SECONDS:
        of_model += [model() for _ in range(model_runs)]
        of_reference += [reference() for _ in range(reference_runs)]
    return Pass(np.array(of_model), np.array(of_reference), time.perf_counter() - start)


def _timer(model_path: str | Path, window: int, threads: int) -> Callable[[], float]:
    """A function that runs the model once and returns the seconds it took."""
    session = open_session(model_path, threads)
    audio = session.get_inputs()[0]
    if list(audio.shape) != [1, window]:
        raise ValueError(f"{model_path} hears {audio.shape}, not windows of [1, {window}] samples: export it for this window")
    noise = {audio.name: (0.1 * np.random.default_rng(0).standard_normal((1, window))).astype(np.float32)}
    clock = time.thread_time if threads == 1 else time.perf_counter

    def run_once() -> float:
        start = clock()
        session.run(None, noise)
        return clock() - start

    return run_once


def _block_sizes(model: Callable[[], float], reference: Callable[[], float]) -> tuple[int, int]:
    """Inferences a block that take about as long for both. Blocks, because an inference right after another model's finds cold
    caches (a student of 0.7 ms takes a fifth longer then); equal times, because then disturbances hit both alike."""
    model_time, reference_time = (min(timer() for _ in range(WARM_UP)) for timer in (model, reference))
    block = max(BLOCK * reference_time, model_time)
    sizes = (min(LARGEST_BLOCK, max(1, round(block / max(once, 1e-9)))) for once in (model_time, reference_time))
    return next(sizes), next(sizes)


def peak_memory(model_path: str | Path, window: int, threads: int = 1) -> int:
    """Bytes that a fresh process with numpy, onnxruntime and the model held at most while it ran a few windows.

    Raises ValueError when the process fails, for want of memory too.
    """
    command = [sys.executable, os.path.abspath(__file__), "--peak", str(model_path), str(window), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}, most likely for want of memory"]
        raise ValueError(f"the memory of {model_path} could not be measured: {lines[-1]}")
    return int(done.stdout)


def _own_peak(model_path: str, window: int, threads: int) -> int:
    """As Linux counts it for this process alone; `ru_maxrss` would count what it was forked from."""
    timer = _timer(model_path, window, threads)
    for _ in range(WARM_UP + 1):
        timer()
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_facts() -> dict[str, Any]:
    """What a reader of a latency has to know about the machine; what cannot be read is None."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo") or "")
    frequency = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return {
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": 1024 * int(memory[1]) if memory else None,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "megahertz": int(frequency) / 1e3 if frequency else None,
        "temperature": temperature(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def temperature() -> float | None:
    """Of the hottest zone, in degrees Celsius."""
    zones = [_text(str(path)) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    return max((int(zone) / 1e3 for zone in zones if zone and zone.lstrip("-").isdigit()), default=None)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu_model() -> str:
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return next((fields[key] for key in ("model name", "Model", "Hardware") if fields.get(key)), platform.processor() or "unknown")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_kit(folder: Path, tell: Tell | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Measures the models of a kit, one list of equal threads and window; what `srlnas profile fit` reads. seconds: as `measure`.

    Raises ValueError when the folder is no kit of this format, or a file is not the one that it names.
    """
    try:
        kit = json.loads((folder / KIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{folder} is no kit: it has no readable {KIT_FILE}") from None
    if kit.get("format") != FORMAT:
        raise ValueError(f"the kit has format {kit.get('format')}, this file knows {FORMAT}: make a new one")
    for name, sha256 in kit["files"].items():
        if "/" in name or not (folder / name).is_file() or digest(folder / name) != sha256:
            raise ValueError(f"{folder / name} is not the file of this kit: unpack it again")
    before, start = device_facts(), time.perf_counter()
    taken = measure(
        [folder / model["file"] for model in kit["models"]],
        folder / kit["reference"],
        window=kit["window"],
        threads=kit["threads"],
        memory=True,
        tell=tell,
        seconds=seconds,
    )
    return {
        "format": FORMAT,
        "kit": digest(folder / KIT_FILE),
        "device": before,
        "temperature_after": temperature(),
        "seconds": time.perf_counter() - start,
        "measurements": [
            {"name": model["name"], **dataclasses.asdict(measurement)} for model, measurement in zip(kit["models"], taken)
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the models of a kit on this machine.")
    parser.add_argument("kit", nargs="?", type=Path, default=Path(__file__).parent, help="folder; default: this file's own")
    parser.add_argument("--stdout", action="store_true", help="print the result instead of writing result.json")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "WINDOW", "THREADS"), help="print the peak memory of one model")
    arguments = parser.parse_args()
    try:
        if arguments.peak:
            print(_own_peak(arguments.peak[0], int(arguments.peak[1]), int(arguments.peak[2])))
            return 0
        result = json.dumps(run_kit(arguments.kit, _tell), indent=2)
    except ValueError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    if arguments.stdout:
        print(result)
        return 0
    (arguments.kit / RESULT_FILE).write_text(result + "\n", encoding="utf-8")
    print((arguments.kit / RESULT_FILE).resolve())
    return 0


def _tell(done: int, most: int) -> None:
    print(f"\rmeasuring: {100 * done // most} %", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
