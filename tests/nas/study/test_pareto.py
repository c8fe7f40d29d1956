"""Dominance, hypervolume and the knee against brute force, on ties, duplicates and NaN too."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas.study.pareto import dominates, hypervolume, knee, non_dominated

coarse = st.integers(0, 4).map(float)  # ties and duplicates are common
points_3d = st.integers(1, 12).flatmap(lambda n: arrays(float, (n, 3), elements=coarse))


@given(points_3d)
def test_front_is_what_no_other_point_dominates(points: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == expected


@given(points_3d)
def test_dominance_is_a_strict_partial_order(points: np.ndarray) -> None:
    for a, b, c in itertools.product(points[:4], repeat=3):
        assert not (dominates(a, b) and dominates(b, a))
        assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


def test_duplicates_stay_and_nan_goes() -> None:
    points = np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 0.0], [0.0, np.inf], [2.0, 1.0], [2.0, 2.0]])
    assert non_dominated(points).tolist() == [True, True, False, False, True, False]


@given(points_3d)
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points: np.ndarray) -> None:
    reference = np.full(3, 4.0)
    cells = itertools.product(range(4), repeat=3)
    covered = sum(any((point <= cell).all() for point in points) for cell in map(np.array, cells))
    assert hypervolume(points, reference) == pytest.approx(covered)


@given(points_3d, arrays(float, 3, elements=coarse))
def test_hypervolume_never_falls_with_another_point(points: np.ndarray, extra: np.ndarray) -> None:
    reference = np.full(3, 4.0)
    assert hypervolume(np.vstack([points, extra]), reference) >= hypervolume(points, reference) - 1e-9


def test_hypervolume_by_hand() -> None:
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([4.0, 4.0])) == pytest.approx(3 * 1 + 2 * 2)
    assert hypervolume(np.array([[5.0, 5.0]]), np.array([4.0, 4.0])) == 0


def test_knee_is_the_balanced_member() -> None:
    assert knee(np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])) == 1
    assert knee(np.array([[3.0, 3.0]])) == 0
