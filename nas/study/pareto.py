"""Non-dominated sets, hypervolume and the choice of a member. Points are rows (points, objectives), every objective minimised.

A row with NaN or infinity is on no front and dominates nothing. Exact duplicates stand or fall together: both are kept.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]


def dominates(a: Points, b: Points) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; both (objectives,)."""
    return bool(np.isfinite(a).all() and np.all(a <= b) and np.any(a < b))


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """(points,) true on the front. Quadratic in the points, which a study has hundreds of."""
    finite = np.isfinite(points).all(1)
    rivals = points[finite]
    beaten = [bool(((rivals <= point).all(1) & (rivals < point).any(1)).any()) for point in points]
    return finite & ~np.array(beaten, bool)


def front_ranks(points: Points) -> NDArray[np.int_]:
    """(points,) 0 on the front, 1 on the front of what is left, and so on; rows that are not finite come after all fronts."""
    ranks, left = np.full(len(points), len(points)), np.asarray(np.isfinite(points).all(1))
    no_worse = np.asarray((points[:, None] <= points).all(-1))
    beats = np.asarray(no_worse & ~no_worse.T & left[:, None])
    rivals = beats.sum(0)  # that are still left
    for rank in range(len(points)):
        front = left & (rivals == 0)
        ranks[front] = rank
        rivals -= beats[front].sum(0)
        left &= ~front
        if not left.any():
            break
    return ranks


def epsilon_net(points: Points, first: Sequence[int]) -> list[int]:
    """All rows, begun with `first`, each next one the farthest from those before it, so that any number of them from the beginning
    covers the points evenly (Schmucker et al., arXiv 2106.12639). Objectives are scaled to the points' own range; of equally far
    rows the first comes first."""
    scaled, order = _scaled(points), list(first)
    gaps = np.linalg.norm(scaled[:, None] - scaled[order], axis=-1).min(1)
    gaps[order] = -1.0
    while len(order) < len(points):
        farthest = int(np.flatnonzero(gaps > gaps.max() - 1e-9)[0])
        order.append(farthest)
        gaps = np.minimum(gaps, np.linalg.norm(scaled - scaled[farthest], axis=-1))
        gaps[order] = -1.0
    return order


def hypervolume(points: Points, reference: Points) -> float:
    """Volume that the points dominate below the reference (objectives,). Exact, by slicing the last objective: a slab between two
    neighbouring values has as its base the hypervolume of the points reached so far in the other objectives."""
    points = points[(points < reference).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(np.append(points[:, -1], reference[-1]))
    return sum(float(height) * hypervolume(points[: i + 1, :-1], reference[:-1]) for i, height in enumerate(heights) if height > 0)


def knee(points: Points) -> int:
    """The member of a front nearest to its ideal point, objectives scaled to the front's own range (0 where it has none)."""
    return int(np.argmin(np.square(_scaled(points)).sum(1)))


def _scaled(points: Points) -> Points:
    low, high = points.min(0), points.max(0)
    scaled: Points = (points - low) / np.where(high > low, high - low, 1.0)
    return scaled
