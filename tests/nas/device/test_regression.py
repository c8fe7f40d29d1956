"""Few measurements, many coefficients: what the data say, what the prior says, and intervals that hold what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.device.regression import COVERAGE, Array, Prior, fit, left_out, most_informative

PRIOR = Prior(values=(1.0, 0.1, 0.01, 0.02), spread=0.5, noise=0.02, weight=6.0)


def rows(number: int, seed: int) -> Array:
    """Counts of such sizes that each feature matters."""
    return np.random.default_rng(seed).uniform(0.1, 3.0, (number, 4)) / np.array(PRIOR.values)


def exact(number: int) -> Array:
    return np.zeros(number)


@settings(max_examples=50)
@given(st.lists(st.floats(0.2, 5.0), min_size=4, max_size=4), st.integers(0, 999), st.floats(1e-6, 1e6))
def test_many_exact_measurements_find_the_coefficients(factors: list[float], seed: int, unit: float) -> None:
    """Whatever the prior says, and whatever the unit."""
    counts, true = rows(200, seed), unit * np.array(PRIOR.values) * factors
    found = fit(counts, counts @ true, exact(200), PRIOR)
    assert found.coefficients == pytest.approx(true, rel=0.03)
    value, low, high = found.predict(counts[0])
    assert low <= counts[0] @ true <= high and value == pytest.approx(counts[0] @ true, rel=0.01)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 999), st.floats(0.01, 100.0))
def test_where_the_prior_is_right_one_measurement_is_enough(number: int, seed: int, unit: float) -> None:
    counts = rows(number + 50, seed)
    times = unit * counts @ np.array(PRIOR.values)
    found = fit(counts[:number], times[:number], exact(number), PRIOR)
    assert [found.predict(row)[0] for row in counts] == pytest.approx(times, rel=1e-6)


@given(st.integers(2, 12), st.integers(0, 999))
def test_no_coefficient_is_negative_and_no_interval_is_upside_down(number: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = rows(number, seed)
    found = fit(counts, random.uniform(0.1, 10, number), random.uniform(0, 0.2, number), PRIOR)
    assert (found.coefficients >= 0).all()
    for row in rows(10, seed + 1):
        value, low, high = found.predict(row)
        assert 0 <= low <= value <= high


def test_intervals_cover_what_they_promise() -> None:
    """Truths drawn from the prior, measured with its noise."""
    random, inside, number = np.random.default_rng(0), list[bool](), 10
    for draw in range(300):
        counts = rows(number + 5, draw)
        true = counts @ (np.array(PRIOR.values) * np.clip(random.normal(1, PRIOR.spread, 4), 0.05, None))
        noisy = true * random.normal(1, PRIOR.noise, len(true))
        found = fit(counts[:number], noisy[:number], exact(number), PRIOR)
        for row, measured in zip(counts[number:], noisy[number:]):
            _, low, high = found.predict(row)
            inside.append(low <= measured <= high)
    assert COVERAGE - 0.03 <= np.mean(inside) <= COVERAGE + 0.05


def test_what_lies_far_from_the_measurements_is_told_less_surely() -> None:
    counts = rows(8, 0)
    counts[:, 3] = 0  # never seen
    found = fit(counts, counts @ np.array(PRIOR.values), exact(8), PRIOR)
    (_, low, high), (_, far_low, far_high) = found.predict(counts[0]), found.predict(counts[0] + np.array([0, 0, 0, 500.0]))
    assert (far_high - far_low) / (far_high + far_low) > 2 * (high - low) / (high + low)


def test_what_is_larger_than_all_measured_is_told_less_surely() -> None:
    """Twice as wide, relatively, at e times the largest."""
    counts = rows(8, 0)
    found = fit(counts, counts @ np.array(PRIOR.values), exact(8), PRIOR)
    largest = counts[int((counts @ found.coefficients).argmax())]
    (value, _, high), (far, _, far_high) = found.predict(largest), found.predict(np.e * largest)
    assert (far_high / far - 1) == pytest.approx(2 * (high / value - 1))


def test_a_disturbed_measurement_counts_for_less() -> None:
    counts = rows(12, 0)
    times = counts @ np.array(PRIOR.values)
    times[0] *= 2

    def wrong(errors: Array) -> float:
        return max(abs(fit(counts, times, errors, PRIOR).predict(row)[0] / (row @ np.array(PRIOR.values)) - 1) for row in counts)

    errors = exact(12)
    believed = wrong(errors)
    errors[0] = 0.5
    assert wrong(errors) < believed / 5


def test_each_measurement_as_the_others_predict_it() -> None:
    counts = rows(12, 0)
    times = counts @ np.array(PRIOR.values)
    times[3] *= 1.5
    off = left_out(counts, times, exact(12), PRIOR)
    assert off[3] == pytest.approx(1 / 1.5 - 1, abs=0.05)
    assert np.abs(np.delete(off, 3)).max() < abs(off[3])


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(3, 8))
def test_informative_students_beat_random_ones(seed: int, number: int) -> None:
    """By what they are chosen for, the mean relative variance of all predictions."""
    counts = rows(60, seed)
    expected = counts @ np.array(PRIOR.values)
    chosen = most_informative(counts, expected, number, PRIOR, first=(5, 9))
    assert chosen[:2] == [5, 9] and len(set(chosen)) == number

    def variance(picked: list[int]) -> float:
        scaled = counts * np.array(PRIOR.values) / expected[:, None]
        precision = np.eye(4) / PRIOR.spread**2 + scaled[picked].T @ scaled[picked] / PRIOR.noise**2
        return float(np.einsum("ij,jk,ik->", scaled, np.linalg.inv(precision), scaled))

    random = np.random.default_rng(seed)
    others = [variance([5, 9, *map(int, random.choice(np.setdiff1d(np.arange(60), [5, 9]), number - 2, False))]) for _ in range(30)]
    assert variance(chosen) <= np.median(others)
    best_next = min(variance([*chosen[:2], i]) for i in range(60) if i not in chosen[:2])
    assert variance(chosen[:3]) == pytest.approx(best_next)


def test_no_more_are_chosen_than_there_are() -> None:
    counts = rows(3, 0)
    assert sorted(most_informative(counts, counts.sum(1), 10, PRIOR)) == [0, 1, 2]
