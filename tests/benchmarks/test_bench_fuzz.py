"""A few mutations of each format that others write: read, or refused in a line."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
MUTATIONS = 15


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fuzz", HERE / "bench_fuzz.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def seeds(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    bench.make_seeds(folder)
    return folder


FORMATS = ("audio", "corpus", "trials", "target", "recipe", "study", "teacher", "student", "profile", "kit result", "bundle")


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_read_or_refused_in_a_line(name: str, bench: ModuleType, seeds: Path) -> None:
    assert set(bench.FORMATS) == set(FORMATS)
    lines = [bench.one(name, seeds, number, seed=100) for number in range(MUTATIONS)]
    assert not [line["crash"] for line in lines if "crash" in line]
    assert any("refused" in line for line in lines)
    bench.FORMATS[name].read(seeds / name)  # unchanged, it is read


def test_what_was_recorded_holds() -> None:
    recorded = json.loads((HERE / "results/fuzz.json").read_text())
    assert recorded["fuzzed"] >= 9_990 and recorded["crashes"] == 0
    assert recorded["past_first_parse"] >= 0.3 * recorded["fuzzed"]
