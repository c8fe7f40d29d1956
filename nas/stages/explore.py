"""The search itself: Ray Tune trains what Optuna proposes, while the budget for it lasts."""

import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nas.proposals.scheduler import Rungs, RungScheduler
from nas.proposals.searcher import Hooks, StudySearcher
from nas.stages.pace import Pace
from nas.stages.plan import SAFETY, Plan, resources_of
from nas.study.budget import Budget
from nas.study.candidates import LATENCY, OBJECTIVES, Candidate, values_of
from nas.tracking.mirror import Tracking
from nas.worker.cluster import HEARTBEAT, trainable
from nas.worker.context import Context, cost_of, cost_scores, space_of, tightest
from nas.worker.task import Task, task_json
from search_spaces.architecture import Architecture, Geometry
from search_spaces.catalog import published_students
from search_spaces.space import Nearest, SearchSpace

SPENT_ON = "candidates"
REASON = 400  # characters


@dataclass
class Running:
    """A candidate in training. since: when what it runs now was last charged."""

    candidate: Candidate
    since: float


class Exploration:
    """The driver's side of a search: refuses, admits, stops, records. Holds what is running; all else is in the study folder."""

    def __init__(
        self, context: Context, plan: Plan, pace: Pace, budget: Budget, tracking: Tracking, tick: Callable[[float, float], None]
    ):
        self.context, self.plan, self.pace, self.tracking, self.tick = context, plan, pace, tracking, tick
        self.study, self.budget = context.study, budget
        self.resources = resources_of(context.study.config, budget)
        self.lengths, self.limit, self.is_filling = plan.lengths(), plan.search_seconds, False
        self.running, self.interrupted = dict[int, Running](), dict[int, Candidate]()
        self.rungs, self.reasons, self.warned = Rungs(plan.reduction), dict[int, str](), False
        self.kind = context.device.latency_model.kind
        self.seen = list[tuple[float, float]]()
        self._replay()

    def _replay(self) -> None:
        """What the folder has of rungs that were reached, and of those who were on their way."""
        rungs = dict[int, int]()
        for candidate in self.study.history():
            if candidate.rung > rungs.get(candidate.number, 0) and candidate.state in ("running", "stopped", "complete"):
                rungs[candidate.number] = candidate.rung
                self.rungs.goes_on(candidate.rung, values_of(candidate.scores))
        for candidate in self.study.candidates():
            if candidate.state == "running":
                self.interrupted[candidate.number] = candidate
            elif candidate.state in ("stopped", "complete"):
                self.seen.append(self._lesson(candidate))

    def run(self, workers: int, *, more: float = 0.0) -> None:
        """Returns when nothing more can be afforded. An interruption leaves the running candidates recorded as running.

        more: resource-seconds beyond the plan, left over from elsewhere; what is begun with them may be stopped for want of them.
        """
        from ray import tune

        config, space, teacher = self.study.config, space_of(self.context), self.context.teacher
        left = self.budget.seconds - self.study.ledger.spent
        self.limit, self.is_filling = min(max(self.plan.search_seconds, self._spent() + more), self._spent() + left), more > 0
        searcher = StudySearcher(
            space,
            self._hooks(),
            history=self.study.candidates(),
            seed=config.seed,
            limit=config.candidates,
            sampler=config.sampler,
            first=first_candidates(space, teacher.architecture, teacher.geometry),
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with tempfile.TemporaryDirectory(prefix="srlnas-ray-") as scratch:  # Ray's own state is never read again
                tune.Tuner(
                    tune.with_resources(trainable, {"cpu": config.cpus, "gpu": config.gpus}),
                    tune_config=tune.TuneConfig(
                        search_alg=searcher,
                        scheduler=RungScheduler(self._goes_on, self._died),
                        num_samples=-1,
                        max_concurrent_trials=workers,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[_ticker(self.show)]),
                ).fit()
        finally:  # what was interrupted was paid for
            for running in self.running.values():
                self._charge(running)

    def _hooks(self) -> Hooks:
        return Hooks(
            refusal=self._refusal,
            affordable=self._affordable,
            started=self._started,
            refused=self._refused,
            finished=self._finished,
            latency=lambda architecture: cost_scores(self.context, architecture)[LATENCY.name],
            seconds=lambda architecture: self.learned_pace.rungs(self._macs(architecture), self.lengths),
        )

    def show(self) -> None:
        """Progress: of what the search may spend, what is spent. Charges what runs every few seconds, so that a driver that is
        killed leaves little unpaid."""
        for running in self.running.values():
            if time.monotonic() - running.since > HEARTBEAT:
                self._charge(running)
        self.tick(self._spent(), self.limit)

    def _charge(self, running: Running) -> None:
        now = time.monotonic()
        seconds, running.since = (now - running.since) * self.resources, now
        self.study.ledger.charge(SPENT_ON, seconds)
        running.candidate = replace(running.candidate, seconds=running.candidate.seconds + seconds)

    def _spent(self) -> float:
        return self.study.ledger.by_purpose().get(SPENT_ON, 0.0)

    def _refusal(self, architecture: Architecture) -> str | None:
        return limits_broken(self.context, cost_scores(self.context, architecture))

    @property
    def learned_pace(self) -> Pace:
        """The probe's pace, corrected by what the candidates took."""
        return self.pace.corrected(self.seen)

    @property
    def final_pace(self) -> Pace:
        """Of finals, never faster than the probe's: they make their own batches, candidates read what others made."""
        return replace(self.pace, factor=max(1.0, self.learned_pace.factor))

    def _lesson(self, candidate: Candidate) -> tuple[float, float]:
        """Wall seconds that a candidate took up to its rung, and what the probe's pace predicted."""
        macs, pace = self._macs(candidate.architecture), replace(self.pace, factor=1.0)
        return candidate.seconds / self.resources, pace.rungs(macs, self.lengths[: candidate.rung])

    def _macs(self, architecture: Architecture) -> float:
        return cost_of(self.context, architecture).total_macs

    def _to_pay(self, candidate: Candidate, rungs: int) -> float:
        """Predicted resource-seconds of a candidate from the last rung that it finished up to `rungs`."""
        lengths = self.lengths[: max(rungs, candidate.rung)]
        return SAFETY * self.resources * self.learned_pace.rungs(self._macs(candidate.architecture), lengths, candidate.rung)

    def _affordable(self, architecture: Architecture) -> bool:
        """Whether all rungs of this and of all that runs fit into what is left, as predicted; when filling up, its first rung."""
        newcomer = Candidate(number=-1, architecture=architecture, state="running")
        rungs = 1 if self.is_filling else len(self.lengths)
        under_way = [running.candidate for running in self.running.values()]
        to_pay = [self._to_pay(candidate, max(candidate.rung + 1, rungs)) for candidate in [*under_way, newcomer]]
        return self._spent() + sum(to_pay) <= self.limit

    def _started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        new = Candidate(number=number, architecture=architecture, state="running", latency_kind=self.kind)
        candidate = self.interrupted.pop(number, new)
        name = f"candidate-{number}"
        task = Task(
            study=str(self.study.folder.resolve()),
            name=name,
            architecture=architecture.to_json(),
            start="shared student" if self.plan.shared_steps else self.study.config.recipe.start,
            distill_steps=self.plan.distill_steps,
            finetune_steps=self.plan.finetune_steps,
            splits=("val",),
            seed=self.study.config.seed,
            distilled=name if self.plan.rungs > 1 and self.plan.distill_steps else None,
            rungs=self.plan.rungs,
            reduction=self.plan.reduction,
            done=candidate.rung,
            sharing=True,
        )
        self.running[number] = Running(candidate=candidate, since=time.monotonic())
        self.study.record(candidate)
        return {"task": task_json(task), "number": number}

    def _refused(self, number: int, architecture: Architecture, reason: str) -> None:
        scores = cost_scores(self.context, architecture)
        refused = Candidate(number=number, architecture=architecture, state="refused", scores=scores, error=reason)
        self._record(replace(refused, latency_kind=self.kind))

    def _goes_on(self, trial: Mapping[str, Any], text: str) -> bool:
        """Records what a candidate reached; whether it trains on."""
        running = self.running[trial["number"]]
        self._charge(running)
        report = checked(json.loads(text))
        reached = replace(running.candidate, state=report["state"], error=report.get("error"))
        if report["state"] != "failed":
            reached = replace(reached, rung=report["rung"], scores=report["scores"])
        if report["state"] == "complete":
            reached = replace(reached, weights=f"students/candidate-{reached.number}")
            self.rungs.goes_on(reached.rung, values_of(reached.scores))
        elif report["state"] == "running":
            reached = self._judged(reached)
        running.candidate = self._record(reached)
        return reached.state in ("running", "complete")

    def _judged(self, candidate: Candidate) -> Candidate:
        """Stopped where it is not among the best of its rung, or where the next rung cannot be paid."""
        if not self.rungs.goes_on(candidate.rung, values_of(candidate.scores)):
            return replace(candidate, state="stopped")
        others = [other.candidate for other in self.running.values() if other.candidate.number != candidate.number]
        to_pay = sum(self._to_pay(c, c.rung + 1) for c in [candidate, *others])
        if self._spent() + to_pay <= self.limit:
            return candidate
        return replace(candidate, state="stopped", error=f"the budget has no room for rung {candidate.rung + 1}")

    def _died(self, trial: Mapping[str, Any], reason: str) -> None:
        """Ray's words, of which the last line says what happened."""
        lines = [line.strip() for line in reason.splitlines() if line.strip()]
        self.reasons[trial["number"]] = lines[-1][:REASON] if lines else "most likely for want of memory"

    def _finished(self, number: int) -> Candidate:
        running = self.running.pop(number)
        if running.candidate.state == "running":
            self._charge(running)
            reason = self.reasons.pop(number, "most likely for want of memory")
            running.candidate = self._record(replace(running.candidate, state="failed", error=f"the worker died: {reason}"))
        if running.candidate.state != "failed":
            self.seen.append(self._lesson(running.candidate))
        (self.study.folder / "distilled" / f"candidate-{number}.safetensors").unlink(missing_ok=True)
        return running.candidate

    def _record(self, candidate: Candidate) -> Candidate:
        candidate = replace(candidate, run_id=self._mirror(candidate) or candidate.run_id)
        self.study.record(candidate)
        self.show()
        return candidate

    def _mirror(self, candidate: Candidate) -> str | None:
        """Logs to MLflow. A server that went away costs the search nothing: the report logs again what it missed."""
        try:
            return self.tracking.log_candidate(candidate)
        except Exception as error:  # MLflow's and its transports' many kinds
            if not self.warned:
                warnings.warn(f"MLflow does not answer, the search goes on and logs at its end: {error}", stacklevel=2)
            self.warned = True
            return None


def first_candidates(space: SearchSpace, teacher: Architecture, geometry: Geometry) -> list[Architecture]:
    """What is tried before any proposal: the smallest and the largest student, and the members next to published ones."""
    published = [space.architecture(Nearest(student)) for student in published_students(teacher).values()]
    return [space.smallest(geometry), space.largest(geometry), *published]


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


def _ticker(show: Callable[[], None]) -> Any:
    from ray.tune import Callback

    class Ticker(Callback):
        def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
            """As `StudySearcher`: Ray pickles it and nobody reads it."""
            return Callback, ()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            show()

    return Ticker()
