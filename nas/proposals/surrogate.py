"""Proposals by a model: of many members of a space, the one whose training is expected to add most to the front's hypervolume.

A Gaussian process over a student's sizes predicts each of its errors. Its latency is known before it is trained, so nothing is left
to learn of it, and candidates that were stopped tell what they scored on their rung: Optuna's GP learns all objectives alike and
from finished candidates alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from scipy.special import ndtr
from scipy.stats import qmc

from nas.study.candidates import Candidate, values_of
from nas.study.pareto import Points
from search_spaces.architecture import Architecture

FEWEST = 4  # candidates with scores before anything is modelled
MOST = 256  # that are modelled: the cost is cubic in them
LENGTHS = np.geomspace(0.7, 8.0, 8)  # of the kernel, where a feature goes from -1 to 1
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)  # variance between trainings of the same sizes, over that which the sizes explain
TRUSTS = (0.0, 0.5, 1.0, 3.0)  # weights of what earlier studies say
MARGIN = 0.1  # of the range of what is seen or expected: how far behind the worst of it the reference lies
DRAWS = 1024  # points at which the improvement is integrated


def modelled(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with scores, by rung and on a rung by age; where they are too many, the furthest trained and latest."""
    scored = [c for c in candidates if c.rung and np.isfinite(values_of(c.scores)).all()]
    return sorted(scored, key=lambda c: (c.rung, c.number))[-MOST:]


def most_promising(
    pool: Sequence[Architecture],
    running: Sequence[Architecture],
    scored: Sequence[Candidate],
    latency: Callable[[Architecture], float],
    seconds: Callable[[Architecture], float],
    hindsight: Callable[[Sequence[Architecture]], Points] | None = None,
) -> Architecture:
    """The member of the pool with the largest expected hypervolume improvement a second of its training (as Snoek et al., arXiv
    1206.2944), over the candidates that finished the last rung and over what those that run are expected to reach.

    scored: as `modelled` gives them. latency: in ms. seconds: that a training is predicted to take. hindsight: what earlier studies
    lead one to expect of architectures, (members, errors).
    """
    last, members = scored[-1].rung, [*pool, *running]
    rows = to_unit([*(features(c.architecture, c.rung) for c in scored), *(features(a, last) for a in members)])
    told = hindsight([*(c.architecture for c in scored), *members]) if hindsight else rows[:, :0]
    rows = np.hstack([rows, told])
    known, asked, under_way = np.split(rows, [len(scored), len(scored) + len(pool)])
    points = np.array([values_of(c.scores) for c in scored])
    front = points[[c.rung == last for c in scored]]
    if running:  # taken for what is expected of them, so that workers do not all train the same
        expected = np.column_stack([posterior(known, points[:, :-1], under_way, told.shape[1])[0], [latency(a) for a in running]])
        known, points, front = np.vstack([known, under_way]), np.vstack([points, expected]), np.vstack([front, expected])
    means, deviations = posterior(known, points[:, :-1], asked, told.shape[1])
    expected = np.column_stack([means, [latency(a) for a in pool]])
    return pool[int((expected_improvement(front, expected, deviations) / [seconds(a) for a in pool]).argmax())]


def features(architecture: Architecture, rung: int) -> list[float]:
    """What errors depend on: sizes on a scale of ratios, the layers kept by their number and mean, and the rung. What a student
    without layers lacks is not a number."""
    a, lacks = architecture, float("nan")
    of_layers = (a.frame_stride, a.width, np.mean(a.heads), np.mean(a.ffn_dims)) if a.depth else (lacks,) * 4
    sizes = np.log2([a.front_width, a.depth or 0.5, *of_layers])  # half a layer: as far from one as one from two
    kept = float(np.mean(a.kept_layers)) if a.depth else lacks
    return [float(a.front_end == "mel"), float(a.front_end == "bc"), *sizes, kept, float(rung)]


def to_unit(rows: Sequence[Sequence[float]]) -> Points:
    """(rows, features), each feature from -1 to 1; what is not a number lies in the middle."""
    table = np.array(rows, float)
    low, high = np.fmin.reduce(table), np.fmax.reduce(table)
    unit = 2 * (table - low) / np.where(high > low, high - low, 1.0) - 1
    return np.where(np.isnan(unit), 0.0, unit)


def posterior(rows: Points, values: Points, new: Points, told: int = 0) -> tuple[Points, Points]:
    """Means and standard deviations (new, errors) of Gaussian processes through the values (rows, errors). Of each error, the
    kernel's length and the noise are the likeliest of a grid, the scale the likeliest of all (Rasmussen and Williams, 2006,
    sections 2.2 and 5.4). told: of so many features, the last, the weight is the likeliest of a grid too, with nothing in it."""
    centred = values - values.mean(0)
    weights = [np.repeat([1.0, trust], [rows.shape[1] - told, told]) for trust in (TRUSTS if told else (1.0,))]
    fits = [fit for weight in weights for length in LENGTHS for fit in _fits(rows, centred, length, weight)]
    each = [_predict(rows, new, i, max(fits, key=lambda fit: fit.likelihoods[i])) for i in range(values.shape[1])]
    means, deviations = (np.column_stack(every) for every in zip(*each, strict=True))
    return values.mean(0) + means, deviations


class _Fit(NamedTuple):
    """likelihoods: logarithms (errors,). scales: variances (errors,). factor: of the covariance over the scale. weights: (rows,
    errors). of_features: their weights (features,)."""

    length: float
    of_features: Points
    likelihoods: Points
    scales: Points
    factor: tuple[Points, bool]
    weights: Points


def _fits(rows: Points, centred: Points, length: float, of_features: Points) -> Iterator[_Fit]:
    """One for each noise."""
    covariance = kernel(rows * of_features, rows * of_features, length)
    for noise in NOISES:
        factor = cho_factor(covariance + noise * np.eye(len(rows)), lower=True)
        weights = cho_solve(factor, centred)
        scales = np.maximum((centred * weights).mean(0), 1e-12)
        likelihoods = -len(rows) / 2 * np.log(scales) - np.log(np.diag(factor[0])).sum()
        yield _Fit(length, of_features, likelihoods, scales, factor, weights)


def _predict(rows: Points, new: Points, error: int, fit: _Fit) -> tuple[Points, Points]:
    """Mean and standard deviation (new,) of one of the errors."""
    new = new * fit.of_features
    across = kernel(new, rows * fit.of_features, fit.length)
    left = 1 + (new**2).sum(1) - np.einsum("nr,rn->n", across, cho_solve(fit.factor, across.T))
    return across @ fit.weights[:, error], np.sqrt(fit.scales[error] * np.maximum(left, 1e-9))


def kernel(a: Points, b: Points, length: float) -> Points:
    """(a, b): Matern 5/2 and a linear trend, without which half a dozen trainings predicted no better than their mean."""
    distances = 5**0.5 * cdist(a, b) / length
    return np.asarray((1 + distances + distances**2 / 3) * np.exp(-distances) + a @ b.T)


def expected_improvement(front: Points, expected: Points, deviations: Points) -> Points:
    """(members,) expected hypervolume improvement over the front (points, objectives), as a share of a box around it all.

    expected: (members, objectives) means. deviations: (members, objectives - 1), since the last objective is known. The chance
    that a member dominates a point, averaged over points that the front does not dominate: exact in the members' distribution.
    """
    every = np.vstack([front, expected])
    spread = np.where(np.ptp(every, 0) > 0, np.ptp(every, 0), 1.0)
    low, high = every.min(0) - MARGIN * spread, every.max(0) + MARGIN * spread
    draws = low + (high - low) * qmc.Sobol(every.shape[1], seed=0).random(DRAWS)
    free = draws[~(front[None] <= draws[:, None]).all(-1).any(1)]
    chances = ndtr((free[None, :, :-1] - expected[:, None, :-1]) / deviations[:, None]).prod(-1)
    return np.asarray((chances * (expected[:, None, -1] <= free[None, :, -1])).sum(1) / DRAWS)
