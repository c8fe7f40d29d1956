"""What a budget buys: predictions, the plan, the finalists' share, the choice of finalists."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.planning.admission import checked
from nas.planning.pace import CUDA_BYTES, WORTH_CORES, Pace, Sizes, best_cores, gpu_share
from nas.planning.plan import (
    FEWEST_STEPS,
    FEWEST_TUTOR,
    FINAL_SAFETY,
    MOST_STEPS,
    MOST_TUTOR,
    REFERENCE_SHARE,
    SHORTEST_RUNG,
    SPARED,
    STANDING_SHARE,
    TUTOR_SHARE,
    Plan,
    full_steps,
    make_plan,
    steps_between,
    tutoring,
)
from nas.planning.tuning import plan_tuning
from nas.stages.finalists import best_within, choose_finalists, spread
from nas.study.budget import Account, Budget, Ledger, parse_budget
from nas.study.candidates import Candidate, values_of
from nas.study.config import StudyConfig
from nas.study.pareto import non_dominated
from nas.worker.task import rung_lengths
from search_spaces.architecture import Architecture
from trainers.learning.recipe import Recipe

PACE = Pace(per_clip=1e-3, per_mac=5e-11, scored=1000, batch=32)
TYPICAL = 50e6
SIZES = Sizes(typical=TYPICAL, smallest=8e6, sandwich=150e6, references=(280e6, 200e6, 500e6))


def plan(budget: Budget, **fields: Any) -> Plan:
    return make_plan(StudyConfig(name="a", **fields), budget, 60.0, PACE, SIZES)


@given(st.floats(1200, 1e6), st.sampled_from([2, 3, 4]))
def test_what_is_planned_fits_the_budget(seconds: float, reduction: int) -> None:
    planned = plan(Budget(resource="cpu", seconds=seconds), reduction=reduction)
    lengths = planned.lengths()
    parts = planned.tutor_seconds + planned.shared_seconds + planned.search_seconds + planned.final_seconds
    assert parts == pytest.approx(seconds - 60)
    costs = [PACE.rung(TYPICAL, lengths, rung) for rung in range(planned.rungs)]
    on_average = sum(cost / reduction**rung for rung, cost in enumerate(costs))
    assert (planned.candidates - 1) * on_average <= planned.search_seconds
    assert FEWEST_STEPS <= planned.full_steps <= MOST_STEPS
    references = [PACE.seconds(macs, planned.distill_steps, planned.full_steps) for macs in (*SIZES.references, TYPICAL)]
    most = REFERENCE_SHARE * planned.final_seconds
    replaced = planned.tutor_steps >= planned.full_steps  # the tutor is the teacher
    full = planned.finalists * references[-1] + sum(min(most, seconds) for seconds in references[replaced:])
    assert planned.finalists == 0 or full <= planned.final_seconds


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 4), st.integers(2, 4))
def test_rungs_end_at_the_steps_and_each_is_reduction_times_as_long(
    distill: int, finetune: int, rungs: int, reduction: int
) -> None:
    lengths = rung_lengths(distill, finetune, rungs, reduction)
    assert len(lengths) == rungs and lengths[-1] == (distill, finetune)
    for (shorter, _), (longer, _) in pairwise(lengths):
        assert longer / reduction <= shorter < longer / reduction + 1
    whole = PACE.rungs(TYPICAL, lengths)
    assert whole == pytest.approx(sum(PACE.rung(TYPICAL, lengths, rung) for rung in range(rungs)))
    assert PACE.expected(TYPICAL, lengths, reduction) <= whole
    assert PACE.rungs(TYPICAL, lengths, rungs) == 0


def test_a_long_training_is_cut_into_rungs_and_a_short_one_is_not() -> None:
    assert plan(parse_budget("20cpu-minutes")).rungs == 1
    long = plan(parse_budget("8cpu-days"))
    assert long.rungs == 3 and long.lengths()[0][1] >= SHORTEST_RUNG // SPARED
    cold = plan(parse_budget("8cpu-days"), warm_start="off")
    assert cold.rungs == 3 and cold.lengths()[0][1] >= SHORTEST_RUNG
    assert plan(parse_budget("8cpu-days"), rungs=2).rungs == 2


def test_a_shared_student_is_made_where_enough_candidates_take_from_it() -> None:
    """Only where they are not fitted to their teacher."""
    inherited = Recipe(fit_windows=0)
    few = plan(parse_budget("40cpu-minutes"), candidates=3, recipe=inherited)
    many = plan(parse_budget("8cpu-days"), recipe=inherited)
    fitted = plan(parse_budget("8cpu-days"))
    assert fitted.shared_steps == fitted.distill_steps == 0 and fitted.spared < 0
    assert few.shared_steps == 0 and few.distill_steps > 0
    assert many.shared_steps > 0 and many.distill_steps == 0 and many.shared_seconds < 0.2 * many.search_seconds
    for mode, distilled in (("on", False), ("off", True)):
        planned = plan(parse_budget("8cpu-days"), warm_start=mode, candidates=20, recipe=inherited)
        assert (planned.shared_steps == 0) == distilled == (planned.distill_steps > 0)
    given = plan(parse_budget("8cpu-days"), warm_start="other/shared.safetensors")
    assert given.shared_steps > 0 and given.shared_seconds == 0


@given(st.floats(1200, 1e6))
def test_a_tutor_takes_its_share_at_most(seconds: float) -> None:
    budget = Budget(resource="cpu", seconds=seconds)
    planned = plan(budget)
    stands = planned.tutor_steps >= planned.full_steps  # for the teacher, which is then not trained for a final's length
    assert planned.tutor_seconds <= (STANDING_SHARE if stands else TUTOR_SHARE) * (seconds - 60)
    assert planned.tutor_steps <= MOST_TUTOR
    assert (planned.tutor_steps == 0) == (PACE.seconds(SIZES.references[0], 0, FEWEST_TUTOR) > TUTOR_SHARE * (seconds - 60))
    assert plan(budget, recipe=Recipe(tutor_weight=0.0)).tutor_steps == 0
    assert plan(budget, finetune_steps=20).tutor_steps <= 60


def test_a_tutor_that_is_slightly_shorter_than_finals_is_made_as_long() -> None:
    """Or the teacher would be tuned twice."""
    budget = parse_budget("30cpu-minutes")
    tutor = plan(budget).tutor_steps
    for longer, stands in ((1.0, True), (1.2, True), (3.0, False)):
        planned = plan(budget, finetune_steps=round(longer * tutor))
        assert (planned.tutor_steps >= planned.full_steps) == stands


def test_a_tutor_pays_for_the_batches_that_it_is_the_first_to_hear() -> None:
    """On all the cores that wait for them."""
    config, held = StudyConfig(name="a"), replace(PACE, cores=2.0, alone=1.2)
    free, paid = (tutoring(config, 1.0, pace, SIZES) for pace in (held, replace(held, per_made=3e-3)))
    for steps, seconds in free.items():
        assert paid[steps] == pytest.approx(seconds + 2 * 3e-3 * 2 * steps * PACE.batch)


@given(st.floats(1e8, 8e10))
def test_workers_that_share_a_gpu_fit_into_its_memory(peak: float) -> None:
    share, total = gpu_share(peak, 80e9), 80e9
    assert 1 / 16 <= share <= 1
    assert round(1 / share) * (peak + CUDA_BYTES) <= 0.9 * total or share == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rungs": 4, "finetune_steps": 20}, "do not fit into 20 steps: the last needs at least 27"),
        ({"rungs": 9}, "end at 131,220 steps or more"),
    ],
)
def test_rungs_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(parse_budget("8cpu-days"), **fields)


def test_rungs_that_the_budget_does_not_buy_say_what_would() -> None:
    with pytest.raises(ValueError, match=r"buys not one candidate .* fewer steps or rungs"):
        plan(parse_budget("10cpu-minutes"), rungs=5)


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
    shortest = plan(parse_budget("2cpu-hours"), distill_steps=50, finetune_steps=50, warm_start="off")

    def cost(steps: int) -> float:
        return sum(PACE.seconds(m, steps, steps) for m in macs)

    steps = full_steps(seconds, cost, shortest, 3.0)
    assert steps == 0 or 50 <= steps <= 150
    assert FINAL_SAFETY * cost(steps) <= seconds or steps == 0
    assert steps in (0, 150) or FINAL_SAFETY * cost(2 * steps) > seconds


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


def test_what_failed_is_no_finalist() -> None:
    good, nan = candidates(np.array([[1.0, 2.0, 3.0], [np.nan, 1.0, 1.0]]))
    failed = Candidate(number=2, architecture=good.architecture, state="failed")
    assert choose_finalists([good, nan, failed], 5) == [good]


def test_stopped_candidates_fill_up_what_complete_ones_leave_free() -> None:
    """From the highest rung down: their scores say nothing beside those of another rung."""
    complete, late, early = (replace(one, number=i) for i, one in enumerate(candidates([(9.0, 9.0, 9.0)] * 3)))
    late = replace(late, state="stopped", rung=2)
    early = replace(early, state="stopped", rung=1, scores=dict.fromkeys(early.scores, 1.0))
    assert choose_finalists([early, late, replace(complete, rung=3)], 2) == [replace(complete, rung=3), late]
    assert choose_finalists([early, late, complete], 3) == [complete, late, early]


def test_the_best_of_a_quarter_of_the_teacher_is_a_finalist_wherever_it_was_stopped() -> None:
    """Scores of two rungs are not compared: what counts is how much it lost to the best that reached its own."""
    large, small, early = (replace(one, number=i) for i, one in enumerate(candidates(np.ones((3, 3)))))
    rows = [(large, 1, 20.0, 9e6), (large, 2, 4.0, 9e6), (small, 1, 30.0, 1e6), (small, 2, 9.0, 1e6), (early, 1, 21.0, 2e6)]
    history = [
        replace(one, rung=rung, scores={**one.scores, "keyword_error": error, "params": params})
        for one, rung, error, params in rows
    ]
    of_a_quarter = best_within(history, 2e6)
    assert of_a_quarter is not None and of_a_quarter.number == early.number
    best = best_within(history, 1e6)
    assert best is not None and best.number == small.number
    assert best_within(history, 1e5) is None
    latest = [history[1], history[3], replace(history[4], state="stopped")]
    diverged = replace(history[4], state="failed", rung=1)
    assert best_within([*history, diverged], 2e6) == best
    assert [c.number for c in choose_finalists(latest, 2, of_a_quarter)] == [large.number, early.number]
    assert [c.number for c in choose_finalists(latest, 1, of_a_quarter)] == [large.number]


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


@given(st.floats(0.0, 1.0), st.integers(1, 4), st.integers(1, 64))
def test_a_training_alone_holds_cores_that_it_uses(serial: float, held: int, most: int) -> None:
    """Amdahl's law: what part of an update no further core speeds up."""

    def seconds(cores: int) -> float:
        return serial + (1 - serial) / cores

    cores, alone = best_cores(seconds, held, most)
    if most <= held or seconds(min(2 * held, most)) * min(2 * held, most) > WORTH_CORES * seconds(held) * held:
        assert (cores, alone) == (0, 1.0)
    else:
        assert held < cores <= most
        assert alone == pytest.approx(max(1.0, cores * seconds(cores) / (held * seconds(held))))
        assert alone <= WORTH_CORES


def test_a_plan_pays_for_the_cores_of_what_trains_alone() -> None:
    config, budget = StudyConfig(name="a", warm_start="on", finetune_steps=300), Budget(resource="cpu", seconds=40_000)
    plans = [make_plan(config, budget, 0.0, pace, SIZES) for pace in (PACE, replace(PACE, cores=8.0, alone=1.25))]
    assert [planned.alone_cores for planned in plans] == [0.0, 8.0]
    assert plans[1].shared_seconds == pytest.approx(1.25 * plans[0].shared_seconds)
    assert plans[1].tutor_seconds <= TUTOR_SHARE * 40_000


def test_candidates_pay_for_the_clips_that_are_drawn_and_finals_for_all() -> None:
    drawn = replace(PACE, drawn=100)
    assert drawn.seconds(TYPICAL, 50, 50) == PACE.seconds(TYPICAL, 50, 50)
    clips = PACE.scored - 100
    saved = PACE.rungs(TYPICAL, [(50, 50)]) - drawn.rungs(TYPICAL, [(50, 50)])
    assert saved == pytest.approx((PACE.per_clip + PACE.per_mac * TYPICAL) * clips / 3)


@given(st.floats(300, 1e4), st.booleans())
def test_a_model_is_tuned_for_as_long_as_the_budget_lasts(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, tutored: bool
) -> None:
    budget = Budget(resource="cpu", seconds=seconds)
    account = Account(budget=budget, ledger=Ledger(tmp_path_factory.mktemp("a") / "ledger.jsonl"), resources=1.0, workers=1)
    tutors = tutoring(StudyConfig(name="a"), 1.0, PACE, SIZES) if tutored else {}
    planned = plan_tuning(PACE, TYPICAL, account, tutors, None)
    assert (planned.tutor_steps > 0) <= tutored
    assert planned.tutor_seconds <= TUTOR_SHARE * seconds
    assert planned.tutor_seconds + FINAL_SAFETY * planned.seconds <= seconds
    with pytest.raises(ValueError, match="does not buy"):
        plan_tuning(PACE, TYPICAL, account, tutors, 100 * planned.steps)
