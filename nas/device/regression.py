"""Many coefficients from few measurements: non-negative least squares of relative errors, held near a prior."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student_t

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
COVERAGE = 0.90


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed before anything is measured.

    values: of one count of each feature, up to a common factor, which the measurements find. spread: relative standard
    deviation of each about its value. noise: relative standard deviation of what no coefficient explains, as sure as if
    `weight` measurements had shown it.
    """

    values: tuple[float, ...]
    spread: float
    noise: float
    weight: float

    @property
    def penalty(self) -> float:
        """Of a coefficient's relative distance from its value, in rows of relative errors."""
        return self.noise / self.spread


@dataclass(frozen=True, kw_only=True)
class Regression:
    """coefficients: (features,). covariance: (features, features) of them. noise: relative standard deviation of what they do
    not explain. degrees: of freedom of that. largest: value that was measured."""

    coefficients: Array
    covariance: Array
    noise: float
    degrees: float
    largest: float

    @cached_property
    def quantile(self) -> float:
        return float(student_t.ppf((1 + COVERAGE) / 2, self.degrees))

    def predict(self, counts: Array) -> tuple[float, float, float]:
        """(features,) -> value, and the 90 % interval in which a measurement is expected. Some microseconds.

        Beyond the largest value measured the interval widens with the logarithm of the distance: there a sum of features that
        only nearly holds departs from the truth, which the data cannot tell.
        """
        value = float(counts @ self.coefficients)
        share = counts / value
        half = self.quantile * float(np.sqrt(share @ self.covariance @ share + self.noise**2))
        half *= 1 + log(max(1.0, value / self.largest))
        return value, value * max(0.0, 1 - half), value * (1 + half)


def fit(counts: Array, measured: Array, errors: Array, prior: Prior) -> Regression:
    """counts (measurements, features), measured (measurements,), errors (measurements,): relative standard deviations of those.

    Ridge regression about the prior with coefficients that are not negative, of rows divided by what was measured; the
    intervals are those of the Bayesian linear model with an inverse-gamma noise (without the bound at zero).
    """
    assert len(counts) == len(measured) == len(errors) > 0
    weights = 1 / np.sqrt(1 + (errors / prior.noise) ** 2)
    values = np.array(prior.values)
    rows = counts * values / measured[:, None] * weights[:, None]
    scale = float(weights @ rows.sum(1) / np.square(rows.sum(1)).sum())
    values, rows = values * scale, rows * scale
    penalty = prior.penalty * np.eye(len(values))
    share, _ = nnls(np.vstack([rows, penalty]), np.concatenate([weights, penalty.sum(1)]))
    inverse = np.linalg.inv(rows.T @ rows + penalty**2)
    freedom = prior.weight + len(rows) - float(np.trace(inverse @ rows.T @ rows))
    left = float(np.square(rows @ share - weights).sum())
    noise = float(np.sqrt((prior.weight * prior.noise**2 + left) / freedom))
    return Regression(
        coefficients=share * values,
        covariance=noise**2 * inverse * np.outer(values, values),
        noise=noise,
        degrees=freedom,
        largest=float(measured.max()),
    )


def left_out(counts: Array, measured: Array, errors: Array, prior: Prior) -> Array:
    """(measurements,): relative error of each as predicted by all others."""
    assert len(counts) > 1
    found = []
    for index in range(len(counts)):
        others = np.arange(len(counts)) != index
        value, _, _ = fit(counts[others], measured[others], errors[others], prior).predict(counts[index])
        found.append(value / measured[index] - 1)
    return np.array(found)


def most_informative(counts: Array, expected: Array, number: int, prior: Prior, first: Sequence[int] = ()) -> list[int]:
    """Indices of at most `number` rows whose measurements tell most of all rows: greedy I-optimal design under the prior.

    counts (rows, features); expected (rows,): about what each will measure. Each row added is the one that lowers the mean
    relative variance of all predictions most. first: rows that are measured in any case.
    """
    rows = counts * np.array(prior.values) / expected[:, None]
    covariance = np.eye(rows.shape[1]) * prior.spread**2
    spanned = rows.T @ rows
    chosen = list[int]()
    while len(chosen) < min(number, len(rows)):
        if len(chosen) < len(first):
            best = first[len(chosen)]
        else:
            toward = rows @ covariance
            gain = np.einsum("ij,jk,ik->i", toward, spanned, toward) / (prior.noise**2 + np.einsum("ij,ij->i", toward, rows))
            gain[chosen] = -1.0
            best = int(gain.argmax())
        along = covariance @ rows[best]
        covariance = covariance - np.outer(along, along) / (prior.noise**2 + rows[best] @ along)
        chosen.append(best)
    return chosen
