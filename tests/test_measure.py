"""Measuring: the interval against an exact oracle, the protocol on real models with wide bounds, the file on its own."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import measure as module
from deploy.export import reference_model
from deploy.measure import device_facts, measure, median_interval, reference_milliseconds

WINDOW = 8_080


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.onnx"
    reference_model(path, WINDOW)
    return path


def test_a_model_against_itself_is_one(reference: Path) -> None:
    result = measure(reference, reference, window=WINDOW, seconds=0.5, reference_ms=4.0)
    assert 0.7 < result.ratio < 1.4
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert result.milliseconds == pytest.approx(4 * result.ratio)
    assert (result.low, result.high) == (pytest.approx(4 * result.ratio_low), pytest.approx(4 * result.ratio_high))
    assert (result.threads, result.window) == (1, WINDOW)


def test_a_window_four_times_as_long_takes_longer(reference: Path, tmp_path: Path) -> None:
    reference_model(tmp_path / "long.onnx", 4 * WINDOW)
    long = reference_milliseconds(tmp_path / "long.onnx", window=4 * WINDOW, runs=10)
    assert long > 1.5 * reference_milliseconds(reference, window=WINDOW, runs=10)


def test_stops_at_repeats_and_at_the_time(reference: Path) -> None:
    few = measure(reference, reference, window=WINDOW, repeats=10, precision=0.0, seconds=60, reference_ms=1.0)
    assert few.repeats == 10
    timed_out = measure(reference, reference, window=WINDOW, precision=0.0, seconds=0, reference_ms=1.0)
    precise = measure(reference, reference, window=WINDOW, precision=9.0, seconds=60, reference_ms=1.0)
    assert timed_out.repeats == precise.repeats == module.FEWEST_REPEATS


def test_several_threads_use_the_wall_clock(reference: Path) -> None:
    result = measure(reference, reference, window=WINDOW, threads=2, seconds=0.2)
    assert result.threads == 2
    assert result.reference_ms > 0


def test_wrong_files(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        measure(tmp_path / "none.onnx", reference, window=WINDOW, reference_ms=1.0)
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a model"):
        measure(tmp_path / "bad.onnx", reference, window=WINDOW, reference_ms=1.0)
    with pytest.raises(ValueError, match="hears"):
        measure(reference, reference, window=WINDOW + 320)


@given(st.integers(min_value=8, max_value=300))
def test_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    """Exact coverage of the chosen ranks by the binomial distribution."""
    low, high = median_interval(list(range(n)))
    assert low + high == n - 1
    below = sum(math.comb(n, k) for k in range(int(low) + 1)) / 2**n
    assert 1 - 2 * below >= 0.95
    assert 1 - 2 * (below + math.comb(n, int(low) + 1) / 2**n) < 0.95  # the next pair inwards would not do


def test_interval_ignores_order_and_outliers() -> None:
    values = np.random.default_rng(0).permutation(np.r_[np.linspace(1, 2, 99), 1e9])
    low, high = median_interval(list(values))
    assert 1.35 < low < 1.5 < high < 1.65


def test_facts_are_json() -> None:
    facts = json.loads(json.dumps(device_facts()))
    assert {"cpu", "cores", "load", "onnxruntime", "numpy"} <= set(facts)


def test_the_file_runs_alone(reference: Path, tmp_path: Path) -> None:
    script = shutil.copy(module.__file__, tmp_path)
    command = [sys.executable, "-I", script, str(reference), "--reference", str(reference), "--seconds", "0.1"]
    done = subprocess.run([*command, "--window", str(WINDOW)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert 0.5 < result["ratio"] < 2
    assert result["device"]["cores"] >= 1
    failed = subprocess.run([*command, "--window", "100"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("measure: ")
    assert failed.stderr.count("\n") == 1
