"""Early stopping against brute force, written from the definition in arXiv 2106.12639: partial orders, ties, NaN, duplicates."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas.proposals.scheduler import Rungs
from nas.study.pareto import dominates, epsilon_net, front_ranks, non_dominated

coarse = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf])
arrivals = st.lists(st.tuples(coarse, coarse, coarse), min_size=1, max_size=14)
finite = st.integers(1, 14).flatmap(lambda n: arrays(float, (n, 3), elements=st.integers(0, 3).map(float)))

Point = Sequence[float]


def beats(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b)) and any(x < y for x, y in zip(a, b))


def sorted_by_definition(points: list[Point]) -> list[int]:
    """Numbers of the points, best first: peel off front after front; order each by the greedy epsilon-net."""
    left, order = list(range(len(points))), list[int]()
    while left:
        front = [i for i in left if not any(beats(points[j], points[i]) for j in left)]
        spans = [max(points[i][k] for i in front) - min(points[i][k] for i in front) or 1.0 for k in range(3)]
        scaled = {i: [points[i][k] / spans[k] for k in range(3)] for i in front}
        chosen = [min(front, key=lambda i: (points[i][0], i))]
        while len(chosen) < len(front):
            gaps = {i: min(math.dist(scaled[i], scaled[j]) for j in chosen) for i in front if i not in chosen}
            chosen.append(next(i for i, gap in gaps.items() if gap > max(gaps.values()) - 1e-9))
        order += chosen
        left = [i for i in left if i not in front]
    return order


@given(arrivals, st.integers(2, 4))
@example([(1.0, 1.0, 1.0)] * 6, 2)
@example([(float(i), 3.0 - i, 0.0) for i in range(4)] * 2, 3)
def test_every_decision_is_that_of_the_definition(points: list[Point], reduction: int) -> None:
    rungs, arrived = Rungs(reduction), list[Point]()
    for point in points:
        if not all(map(math.isfinite, point)):
            assert not rungs.goes_on(0, point)
            continue
        arrived.append(point)
        best = sorted_by_definition(arrived)[: max(1, len(arrived) // reduction)]
        assert rungs.goes_on(0, point) == (len(arrived) - 1 in best)


@given(arrivals, st.integers(2, 4))
def test_a_newcomer_that_dominates_its_rung_is_never_stopped(points: list[Point], reduction: int) -> None:
    rungs = Rungs(reduction)
    for point in points:
        rungs.goes_on(1, point)
    assert rungs.goes_on(1, (-1.0, -1.0, -1.0))


def test_rungs_are_judged_apart() -> None:
    rungs = Rungs(3)
    for i in range(6):
        rungs.goes_on(0, (float(i), 0.0, 0.0))
    assert not rungs.goes_on(0, (9.0, 0.0, 0.0))
    assert rungs.goes_on(1, (9.0, 0.0, 0.0))


def test_about_one_in_reduction_goes_on_once_many_have_come() -> None:
    rng, rungs = np.random.default_rng(0), Rungs(3)
    went_on = [rungs.goes_on(0, rng.random(3).tolist()) for _ in range(400)]
    assert 0.25 < np.mean(went_on[100:]) < 0.45


@given(finite)
def test_ranks_are_fronts_peeled_one_by_one(points: np.ndarray) -> None:
    ranks = front_ranks(points)
    for rank in range(int(ranks.max()) + 1):
        left = ranks >= rank
        assert (non_dominated(points[left]) == (ranks[left] == rank)).all()
    for (a, ra), (b, rb) in itertools.product(zip(points, ranks), repeat=2):
        assert not dominates(a, b) or ra < rb


@given(finite, st.integers(0, 13))
def test_a_net_has_every_point_once_and_thins_out(points: np.ndarray, first: int) -> None:
    first %= len(points)
    order = epsilon_net(points, [first])
    assert order[0] == first and sorted(order) == list(range(len(points)))
    spans = np.where(np.ptp(points, 0) > 0, np.ptp(points, 0), 1.0)
    scaled = points / spans
    gaps = [np.linalg.norm(scaled[order[i]] - scaled[order[:i]], axis=1).min() for i in range(1, len(order))]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(gaps))


def test_a_net_covers_a_line_from_its_ends() -> None:
    line = np.array([[x, 10 - x] for x in range(11)], float)
    assert epsilon_net(line, [0])[:3] == [0, 10, 5]


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_two_go_on_only_as_the_best(count: int) -> None:
    rungs = Rungs(3)
    assert rungs.goes_on(0, (1.0, 1.0, 1.0))
    assert rungs.goes_on(0, (0.0, 2.0, 1.0)) and not rungs.goes_on(0, (2.0, 2.0, 1.0))
