"""Non-dominated sets, hypervolume and the choice of a member. Points are rows (points, objectives), every objective minimised.

A row with NaN or infinity is on no front and dominates nothing. Exact duplicates stand or fall together: both are kept.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]
Rule = Literal["knee", "fastest", "smallest", "most-accurate"]
RULES: tuple[Rule, ...] = get_args(Rule)


def dominates(a: Points, b: Points) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; both (objectives,)."""
    return bool(np.isfinite(a).all() and np.all(a <= b) and np.any(a < b))


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """(points,) true on the front. Quadratic in the points, which a study has hundreds of."""
    finite = np.isfinite(points).all(1)
    rivals = points[finite]
    beaten = [bool(((rivals <= point).all(1) & (rivals < point).any(1)).any()) for point in points]
    return finite & ~np.array(beaten, bool)


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
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.square(scaled).sum(1)))
