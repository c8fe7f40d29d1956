"""Multi-objective asynchronous successive halving, stopping variant (Schmucker et al., arXiv 2106.12639), on Ray Tune.

A candidate trains on through rungs of rising length until it is not among the best 1/reduction of all that have reached its
rung. Which are the best: non-dominated front by front, inside a front by an epsilon-net, so that those that go on are spread over
it. Ray has no such scheduler; that of Syne Tune 0.16 confuses ranks and orders, and stops most non-dominated newcomers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from nas.study.pareto import epsilon_net, front_ranks

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


MOST = 1000  # points of a rung: fronts take time and memory quadratic in them


class Rungs:
    """The points that reached each rung latest, in order of arrival."""

    def __init__(self, reduction: int) -> None:
        self.reduction = reduction
        self.points: dict[int, deque[Sequence[float]]] = {}

    def reach(self, rung: int, point: Sequence[float]) -> bool:
        """Records a newcomer; False, and nothing recorded, where it is not finite."""
        if is_finite := bool(np.isfinite(point).all()):
            self.points.setdefault(rung, deque(maxlen=MOST)).append(point)
        return is_finite

    def goes_on(self, rung: int, point: Sequence[float]) -> bool:
        """Records a newcomer; whether it is among the best floor(n / reduction) of the latest n on its rung, and at least one is.

        The first on a rung goes on, and whoever dominates all others; a point that is not finite does not, and is not recorded.
        """
        if not self.reach(rung, point):
            return False
        reached = self.points[rung]
        return place(np.array(reached, float)) < max(1, len(reached) // self.reduction)


def place(points: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """How many come before the last point (points, objectives): those on better fronts, and in its own front those before it in
    the epsilon-net that begins with the best in the first objective."""
    ranks = front_ranks(points)
    front = np.flatnonzero(ranks == ranks[-1])
    order = epsilon_net(points[front], [int(points[front, 0].argmin())])
    return int((ranks < ranks[-1]).sum()) + order.index(len(front) - 1)


class RungScheduler(FIFOScheduler):
    """Ray's side: asks the driver about every report of a trial, and tells it why one died."""

    def __init__(self, goes_on: Callable[[dict[str, Any], str], bool], died: Callable[..., None]) -> None:
        """goes_on: of a trial's configuration and its report. died: of its configuration, the error that Ray kept of it (None where
        it kept none), and the reason in its words."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.goes_on, self.died = goes_on, died

    def __reduce__(self) -> tuple[type[FIFOScheduler], tuple[()]]:
        """As `StudySearcher`: Ray pickles it and nobody reads it."""
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> str:
        return str(TrialScheduler.CONTINUE if self.goes_on(trial.config, result["report"]) else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: "TuneController", trial: "Trial") -> None:
        self.died(trial.config, trial.get_pickled_error(), Path(trial.error_file).read_text() if trial.error_file else "")
