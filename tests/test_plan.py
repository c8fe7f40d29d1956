"""What a budget buys: predictions, the plan, the finalists' share, the choice of finalists."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.budget import Budget, parse_budget
from nas.candidates import Candidate
from nas.config import StudyConfig
from nas.explore import checked
from nas.finalise import choose_finalists, spread
from nas.pareto import non_dominated
from nas.plan import FEWEST_STEPS, MOST_STEPS, SAFETY, Pace, Plan, full_steps, make_plan, steps_between
from nas.searcher import values_of
from search_spaces.architecture import Architecture

PACE = Pace(per_clip=1e-3, per_mac=5e-11, scored=1000, batch=32)
TYPICAL, SMALLEST, TEACHER = 50e6, 8e6, 280e6


def plan(budget: Budget, **fields: Any) -> Plan:
    return make_plan(StudyConfig(name="a", **fields), budget, 60.0, PACE, TYPICAL, SMALLEST, TEACHER)


@given(st.floats(600, 1e6))
def test_what_is_planned_fits_the_budget(seconds: float) -> None:
    planned = plan(Budget(resource="cpu", seconds=seconds))
    candidate = PACE.seconds(TYPICAL, planned.distill_steps, planned.finetune_steps)
    assert planned.search_seconds + planned.final_seconds == pytest.approx(seconds - 60)
    assert (planned.candidates - 1) * candidate <= planned.search_seconds
    assert FEWEST_STEPS <= planned.finetune_steps <= MOST_STEPS


def test_more_budget_trains_more_candidates_for_longer() -> None:
    plans = [plan(parse_budget(text)) for text in ("20cpu-minutes", "2cpu-hours", "1cpu-days", "8cpu-days")]
    assert [p.finetune_steps for p in plans] == sorted(p.finetune_steps for p in plans)
    assert [p.candidates for p in plans] == sorted(p.candidates for p in plans)
    assert plans[0].candidates >= 10


def test_a_budget_that_buys_nothing_says_what_it_would_take() -> None:
    with pytest.raises(ValueError, match=r"give at least (\d+)cpu-minutes") as refusal:
        plan(parse_budget("30cpu-seconds"))
    enough = str(refusal.value).split("at least ")[1].split(",")[0]
    assert plan(parse_budget(enough)).candidates >= 1


def test_named_steps_and_a_candidate_limit_are_kept() -> None:
    planned = plan(parse_budget("2cpu-hours"), distill_steps=33, finetune_steps=44, candidates=3)
    assert (planned.distill_steps, planned.finetune_steps, planned.candidates) == (33, 44, 3)


@given(st.floats(0, 1e5), st.lists(st.floats(1e6, 3e8), min_size=1, max_size=8))
def test_full_length_fits_what_is_left_or_is_nothing(seconds: float, macs: list[float]) -> None:
    shortest = Plan(distill_steps=50, finetune_steps=50, candidates=1, search_seconds=1, final_seconds=1)
    steps = full_steps(seconds, 1.0, PACE, macs, shortest, 3.0)
    assert steps == 0 or 50 <= steps <= 150
    assert SAFETY * sum(PACE.seconds(m, steps, steps) for m in macs) <= seconds or steps == 0


def test_steps_rise_by_about_a_tenth() -> None:
    steps = steps_between(20, 5000)
    assert steps[0] == 20 and steps[-1] == 5000
    assert all(1 < b / a <= 1.2 for a, b in pairwise(steps))


def test_the_pace_learns_from_what_trainings_took() -> None:
    predicted = PACE.seconds(TYPICAL, 100, 100)
    slower = PACE.corrected([(predicted * 1.5, predicted), (predicted * 1.4, predicted), (predicted * 9, predicted)])
    assert slower.seconds(TYPICAL, 100, 100) == pytest.approx(1.5 * predicted)


def candidates(points: np.ndarray) -> list[Candidate]:
    architecture = Architecture(
        front_end="mel", front_width=8, frame_stride=1, width=16, heads=(1,), ffn_dims=(16,), kept_layers=(1,)
    )
    names = ("keyword_error", "eer", "latency_ms")
    return [
        Candidate(number=i, architecture=architecture, state="complete", scores=dict(zip(names, map(float, row))))
        for i, row in enumerate(points)
    ]


@given(st.integers(1, 10), st.integers(1, 25), st.integers(0, 99))
def test_finalists_are_the_front_first(most: int, count: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (count, 3)).astype(float)
    chosen = choose_finalists(candidates(points), most)
    assert len({c.number for c in chosen}) == len(chosen) == min(most, count)
    on_front = {i for i, on in enumerate(non_dominated(points)) if on}
    assert len(on_front & {c.number for c in chosen}) == min(most, len(on_front))


def test_only_complete_candidates_become_finalists() -> None:
    good, nan = candidates(np.array([[1.0, 2.0, 3.0], [np.nan, 1.0, 1.0]]))
    failed = Candidate(number=2, architecture=good.architecture, state="failed")
    assert choose_finalists([good, nan, failed], 5) == [good]


def test_a_large_front_keeps_its_extremes() -> None:
    rng = random.Random(0)
    points = np.array([[x, 1 - x, rng.random()] for x in np.linspace(0, 1, 50)])
    chosen = spread(points, 4)
    assert {int(points[:, i].argmin()) for i in range(3)} <= set(chosen)


def test_a_report_without_a_finite_objective_is_a_failure() -> None:
    scores = {"keyword_error": 5.0, "eer": 10.0, "latency_ms": 1.5}
    assert checked({"state": "complete", "scores": scores})["state"] == "complete"
    for bad in ({**scores, "eer": float("nan")}, {"eer": 1.0}, {**scores, "latency_ms": float("inf")}):
        assert checked({"state": "complete", "scores": bad})["state"] == "failed"
    assert values_of(candidates(np.array([[1.0, 2.0, 3.0]]))[0].scores) == [1.0, 2.0, 3.0]
