"""Measuring: the estimate and its interval on made-up times, the protocol on real models with wide bounds, the file on its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import measure as module
from deploy.export import reference_model
from deploy.measure import Pass, device_facts, interval, marks, measure, peak_memory, ratio

WINDOW = 8_080


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.onnx"
    reference_model(path, WINDOW)
    return path


def passes(true: float, pace: list[float], seed: int = 0, noise: float = 0.02) -> list[Pass]:
    """Times that only disturbances lengthen; `pace`: how much slower both models are in each pass."""
    random = np.random.default_rng(seed)

    def times(base: float, slower: float) -> np.ndarray:
        return base * slower * (1 + random.exponential(noise, 60))

    return [Pass(times(true, slower), times(1.0, slower), 0.1) for slower in pace]


@given(st.floats(0.05, 20.0), st.integers(0, 99))
def test_disturbances_of_both_models_leave_the_ratio(true: float, seed: int) -> None:
    steady, disturbed = passes(true, [1.0] * 6, seed), passes(true, [1.0, 3.0, 1.5, 1.0, 2.0, 9.0], seed)
    for taken in (steady, disturbed):
        assert ratio(taken) == pytest.approx(true, rel=0.02)
        low, high = interval(taken)
        assert low <= ratio(taken) <= high


def test_marks_say_what_was_wrong() -> None:
    assert marks(passes(2.0, [1.0] * 9), 0.01, 40.0) == ()
    assert "drift" in marks(passes(2.0, [1.0, 1.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 0.01, None)
    assert "throttled" in marks(passes(2.0, [1.0, 1.0, 1.0, 1.1, 1.1, 1.1, 1.2, 1.2, 1.2]), 0.01, None)
    assert "throttled" in marks(passes(2.0, [1.0] * 9), 0.01, 85.0)
    wild = [Pass(one.model * (1 + 0.3 * n), one.reference, 0.1) for n, one in enumerate(passes(2.0, [1.0] * 6))]
    assert "imprecise" in marks(wild, 0.001, None)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_passes_are_marked_and_less_sure(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = passes(2.0, [1.0] * count), passes(2.0, [1.0] * 6)
    assert "hurried" in marks(few, 0.01, None)
    assert "hurried" not in marks(many, 0.01, None)
    lowest, highest = interval(few)
    monkeypatch.setattr(module, "WIDER", {})
    low, high = interval(few)
    assert 0 < lowest < low <= ratio(few) <= high < highest


def test_no_pass_begins_when_the_time_is_over(reference: Path) -> None:
    """A clock of a second a look: what is imprecise ends after two passes of each; without an end it goes on."""
    ticking = iter(range(10**6))
    options: dict[str, Any] = {"window": WINDOW, "reference_ms": 4.0, "precision": 1e-9}
    hurried = measure([reference, reference], reference, seconds=1.0, now=lambda: float(next(ticking)), **options)
    assert [one.passes for one in hurried] == [2, 2]
    assert all("hurried" in one.marks for one in hurried)
    still = measure([reference], reference, seconds=1.0, now=lambda: 0.0, **options)
    assert still[0].passes == module.MOST_PASSES


def test_a_model_against_itself_is_one(reference: Path) -> None:
    one, two = measure([reference, reference], reference, window=WINDOW, reference_ms=4.0, precision=0.05)
    for result in (one, two):
        assert 0.7 < result.ratio < 1.4
        assert result.low <= result.milliseconds <= result.high
        assert result.milliseconds == pytest.approx(4 * result.ratio)
        assert module.FEWEST_PASSES <= result.passes <= module.MOST_PASSES
        assert (result.threads, result.window, result.peak_memory) == (1, WINDOW, 0)


def test_a_window_four_times_as_long_takes_longer_and_more_memory(reference: Path, tmp_path: Path) -> None:
    reference_model(tmp_path / "long.onnx", 4 * WINDOW)
    times = [
        measure([path], path, window=window, precision=1.0)[0].milliseconds
        for path, window in ((reference, WINDOW), (tmp_path / "long.onnx", 4 * WINDOW))
    ]
    assert times[1] > 1.5 * times[0]
    assert 20e6 < peak_memory(reference, WINDOW) < peak_memory(tmp_path / "long.onnx", 4 * WINDOW)


def test_several_threads_use_the_wall_clock(reference: Path) -> None:
    result = measure([reference], reference, window=WINDOW, threads=2, precision=1.0)[0]
    assert result.threads == 2
    assert result.reference_ms > 0


def test_progress_is_told(reference: Path) -> None:
    heard: list[tuple[int, int]] = []
    measure([reference], reference, window=WINDOW, precision=1.0, tell=lambda done, most: heard.append((done, most)))
    assert heard[-1] == (module.MOST_PASSES, module.MOST_PASSES) and heard == sorted(heard)


def test_wrong_files(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        measure([tmp_path / "none.onnx"], reference, window=WINDOW)
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a model"):
        measure([tmp_path / "bad.onnx"], reference, window=WINDOW)
    with pytest.raises(ValueError, match="hears"):
        measure([reference], reference, window=WINDOW + 320)
    with pytest.raises(ValueError, match="could not be measured: measure: no model at"):
        peak_memory(tmp_path / "none.onnx", WINDOW)


def test_facts_are_json() -> None:
    facts = json.loads(json.dumps(device_facts()))
    assert {"cpu", "cores", "memory", "governor", "temperature", "load", "onnxruntime", "numpy"} <= set(facts)


def test_the_file_runs_alone_and_refuses_what_is_no_kit(tmp_path: Path) -> None:
    script = shutil.copy(module.__file__, tmp_path)
    done = subprocess.run([sys.executable, "-I", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("measure: ") and "is no kit" in done.stderr and done.stderr.count("\n") == 1


def test_a_device_without_onnxruntime_is_told_what_to_install(tmp_path: Path) -> None:
    script = shutil.copy(module.__file__, tmp_path)
    done = subprocess.run([sys.executable, "-I", "-S", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install numpy onnxruntime" in done.stderr and done.stderr.count("\n") == 1
