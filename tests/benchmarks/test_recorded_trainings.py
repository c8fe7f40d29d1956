"""The recorded trainings that searches are replayed on: complete, as their page says, and a replay keeps to its budget."""

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("bench_search", BENCHMARKS / "bench_search.py")
    assert spec and spec.loader
    sys.modules["bench_search"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_search"]


def test_every_student_of_the_space_is_there(bench: ModuleType) -> None:
    rows, shared_seconds = bench.recorded()
    found = Counter((row["start"], row["seed"], row["finetune_steps"]) for row in rows)
    alone = {("kept layers", 0, 108): 96, ("kept layers", 0, 324): 96, ("kept layers", 1, 324): 16, ("kept layers", 2, 324): 16}
    assert found == {**alone, **{("shared student", 0, steps): 96 for steps in (12, 36, 108)}}
    assert len({row["key"] for row in rows}) == 96 and shared_seconds > 0
    assert bench.TABLE.stat().st_size < 5e6
    described = re.findall(r"`(\w+)`", (BENCHMARKS / "edge-96/README.md").read_text())
    assert set(rows[0]) <= {*described, "keyword_error_low", "keyword_error_high", "eer_low", "eer_high"}


def test_the_reference_point_is_behind_every_training(bench: ModuleType) -> None:
    ends = [training.points[-1] for start in ("kept layers", "shared student") for training in bench.trainings(start).values()]
    assert (np.array(ends) < bench.REFERENCE).all()


@pytest.mark.parametrize("method", ["random", "srlnas"])
def test_a_replay_spends_its_budget_and_repeats_with_its_seed(bench: ModuleType, method: str) -> None:
    budget = bench.full_budget() / 4 + bench.recorded()[1]
    done = bench.Replay(bench.METHODS[method], 0, budget).run()
    spent = [seconds for seconds, _ in done]
    dearest = max(training.full_seconds for training in bench.trainings("kept layers").values())
    assert spent == sorted(spent) and budget - bench.WORKERS * dearest < spent[-1] <= budget
    assert done == bench.Replay(bench.METHODS[method], 0, budget).run()
