"""What a search decides about candidates: which are refused, which the budget has room for, which go on from a rung."""

import functools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas.planning.pace import Pace, training_macs
from nas.planning.plan import SAFETY, Plan
from nas.proposals.scheduler import Rungs
from nas.study.budget import Account
from nas.study.candidates import OBJECTIVES, Candidate, values_of
from nas.worker.context import Context, cost_scores, tightest
from search_spaces.architecture import Architecture

SPENT_ON = "candidates"
MOST_KNOWN = 4096  # architectures whose MACs are remembered: what runs is asked for at every draw
LATEST = 200  # candidates whose times correct the pace: the machine may have changed since others


class Admission:
    """Holds what was learned from candidates that ended: how long trainings take here, and what was reached on each rung.

    learned_pace: the probe's pace, corrected by what the candidates took."""

    def __init__(self, context: Context, plan: Plan, pace: Pace, account: Account) -> None:
        self.context, self.plan, self.pace, self.account = context, plan, pace, account
        self.lengths, self.limit, self.is_filling = plan.lengths(), plan.search_seconds, False
        self.rungs, self.seen = Rungs(plan.reduction), deque[tuple[float, float]](maxlen=LATEST)
        self.macs = functools.lru_cache(MOST_KNOWN)(functools.partial(training_macs, context))
        self.learned_pace = pace
        self._replay()

    def _replay(self) -> None:
        """What the study folder has of rungs that were reached and of candidates that ended."""
        study, rungs = self.context.study, dict[int, int]()
        for candidate in study.history():
            if candidate.rung > rungs.get(candidate.number, 0) and candidate.state in ("running", "stopped", "complete"):
                rungs[candidate.number] = candidate.rung
                self.rungs.reach(candidate.rung, values_of(candidate.scores))
        for candidate in study.candidates():
            if candidate.state in ("stopped", "complete"):
                self.learn(candidate)

    def allow(self, more: float) -> None:
        """Sets what candidates may spend in all: the plan's share or, where `more` resource-seconds are left over from elsewhere,
        those on top; what is begun with them may be stopped for want of them."""
        wanted = max(self.plan.search_seconds, self.spent + more)
        self.limit, self.is_filling = min(wanted, self.spent + self.account.left), more > 0

    @property
    def spent(self) -> float:
        return self.account.spent_on(SPENT_ON)

    @property
    def final_pace(self) -> Pace:
        """Of finals, never faster than the probe's: they make their own batches, candidates read what others made."""
        return replace(self.pace, factor=max(1.0, self.learned_pace.factor))

    def learn(self, candidate: Candidate) -> None:
        """Notes the wall seconds that a candidate took up to its rung, beside those that the probe's pace predicted."""
        macs, pace = self.macs(candidate.architecture), replace(self.pace, factor=1.0)
        predicted = pace.rungs(macs, self.lengths[: candidate.rung])
        self.seen.append((candidate.seconds / self.account.resources, predicted))
        self.learned_pace = self.pace.corrected(self.seen)

    def seconds(self, architecture: Architecture) -> float:
        """Predicted wall seconds through all rungs."""
        return self.learned_pace.rungs(self.macs(architecture), self.lengths)

    def refusal(self, architecture: Architecture) -> str | None:
        return limits_broken(self.context, cost_scores(self.context, architecture))

    def affordable(self, newcomer: Candidate, running: Sequence[Candidate]) -> bool:
        """Whether the rungs that this and all that runs have not finished fit into what is left, as predicted; when filling up, the
        next one."""
        rungs = 1 if self.is_filling else len(self.lengths)
        to_pay = [self._to_pay(candidate, max(candidate.rung + 1, rungs)) for candidate in [*running, newcomer]]
        return self.spent + sum(to_pay) <= self.limit

    def judged(self, candidate: Candidate, others: Sequence[Candidate]) -> Candidate:
        """As it goes on from the rung that it reached: stopped where it is not among the best there, or where the next rung cannot
        be paid beside those of the others that run."""
        goes_on = self.rungs.goes_on(candidate.rung, values_of(candidate.scores))
        if candidate.state == "complete":
            return candidate
        if not goes_on:
            return replace(candidate, state="stopped")
        if self.spent + sum(self._to_pay(c, c.rung + 1) for c in [candidate, *others]) <= self.limit:
            return candidate
        return replace(candidate, state="stopped", error=f"the budget has no room for rung {candidate.rung + 1}")

    def _to_pay(self, candidate: Candidate, rungs: int) -> float:
        """Predicted resource-seconds of a candidate from the last rung that it finished up to `rungs`."""
        lengths = self.lengths[: max(rungs, candidate.rung)]
        seconds = self.learned_pace.rungs(self.macs(candidate.architecture), lengths, candidate.rung)
        return SAFETY * self.account.resources * seconds


def checked(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A report whose objectives are all finite numbers; else it is a failed one that names what is missing."""
    scores = report.get("scores", {})
    missing = [objective.name for objective in OBJECTIVES if not math.isfinite(scores.get(objective.name, math.nan))]
    if report["state"] == "failed" or not missing:
        return report
    return {**report, "state": "failed", "error": f"no finite value for {', '.join(missing)}"}


def limits_broken(context: Context, scores: Mapping[str, float]) -> str | None:
    """Why a student is too large or too slow for the study's limits or the target's, None when it is not.

    Of what is predicted the whole interval has to lie beyond a limit.
    """
    config, target, kind = context.study.config, context.target, context.device.latency_model.kind
    for value, limits, what in (
        (scores["params"], (config.max_params, target.max_params), "{value:,.0f} params are beyond the limit of {limit:,.0f}"),
        (
            scores["latency_low"],
            (config.max_latency_ms, target.max_latency_ms),
            f"at least {{value:.3g}} ms ({kind}) are beyond the limit of {{limit:g}} ms",
        ),
        (
            scores["memory_low"] / 1e6,
            [limit and limit / 1e6 for limit in (config.max_memory, target.max_memory_bytes)],
            f"at least {{value:.3g}} MB of the process ({kind}) are beyond the limit of {{limit:g}} MB",
        ),
    ):
        limit = tightest(*limits)
        if limit is not None and value > limit:
            return what.format(value=value, limit=limit)
    return None
