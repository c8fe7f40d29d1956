"""The search itself: Ray Tune trains what Optuna proposes, while the budget for it lasts."""

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nas.budget import Budget
from nas.candidates import OBJECTIVES, Candidate
from nas.cluster import trainable
from nas.evaluate import Context, Task, cost_of, cost_scores, task_json, tightest
from nas.plan import SAFETY, Pace, Plan, space_of
from nas.searcher import Hooks, StudySearcher
from nas.tracking import Tracking
from search_spaces.architecture import Architecture

SPENT_ON = "candidates"


class Exploration:
    """The driver's side of a search: refuses, admits, records. Holds what is running; everything else is in the study folder."""

    def __init__(
        self, context: Context, plan: Plan, pace: Pace, budget: Budget, tracking: Tracking, tick: Callable[[float, float], None]
    ):
        self.context, self.plan, self.pace, self.tracking, self.tick = context, plan, pace, tracking, tick
        config = context.study.config
        self.resources = config.gpus if budget.resource == "gpu" else config.cpus
        self.running: dict[int, tuple[Candidate, float]] = {}  # with the time that each began
        self.warned = False
        self.kind = context.device.latency_model.kind
        self.seen = [self._lesson(candidate) for candidate in context.study.candidates() if candidate.state == "complete"]

    def run(self, workers: int) -> None:
        """Returns when nothing more can be afforded. An interruption leaves the running candidates recorded as running."""
        from ray import tune

        config = self.context.study.config
        searcher = StudySearcher(
            space_of(self.context),
            self._hooks(),
            history=self.context.study.candidates(),
            seed=config.seed,
            limit=config.candidates,
        )
        searcher.enqueue(space_of(self.context).smallest(self.context.teacher.geometry))
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with tempfile.TemporaryDirectory(prefix="srlnas-ray-") as scratch:  # Ray's own state is never read again
                tune.Tuner(
                    tune.with_resources(trainable, {"cpu": config.cpus, "gpu": config.gpus}),
                    tune_config=tune.TuneConfig(
                        search_alg=searcher, num_samples=-1, max_concurrent_trials=workers, reuse_actors=True
                    ),
                    run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[_ticker(self.show)]),
                ).fit()
        finally:  # what was interrupted was paid for
            for _, began in self.running.values():
                self.context.study.ledger.charge(SPENT_ON, (time.monotonic() - began) * self.resources)

    def show(self) -> None:
        """Progress: of what the search may spend, what is spent, running trainings included."""
        under_way = sum(time.monotonic() - began for _, began in self.running.values()) * self.resources
        self.tick(self._spent() + under_way, self.plan.search_seconds)

    def _hooks(self) -> Hooks:
        return Hooks(
            refusal=self._refusal,
            affordable=self._affordable,
            started=self._started,
            refused=self._refused,
            finished=self._finished,
        )

    def _spent(self) -> float:
        return self.context.study.ledger.by_purpose().get(SPENT_ON, 0.0)

    def _refusal(self, architecture: Architecture) -> str | None:
        return limits_broken(self.context, cost_scores(self.context, architecture))

    def _predicted(self, architecture: Architecture, pace: Pace) -> float:
        macs = cost_of(self.context, architecture).total_macs
        return pace.seconds(macs, self.plan.distill_steps, self.plan.finetune_steps)

    @property
    def learned_pace(self) -> Pace:
        """The probe's pace, corrected by what the candidates took."""
        return self.pace.corrected(self.seen)

    def _lesson(self, candidate: Candidate) -> tuple[float, float]:
        """Wall seconds that a candidate took, and what the probe's pace predicted."""
        return candidate.seconds / self.resources, self._predicted(candidate.architecture, replace(self.pace, factor=1.0))

    def _affordable(self, architecture: Architecture) -> bool:
        """Whether this and all that runs will have ended, as predicted, before the search's share is spent."""
        pace = self.learned_pace
        under_way = [*(candidate.architecture for candidate, _ in self.running.values()), architecture]
        predicted = SAFETY * self.resources * sum(self._predicted(a, pace) for a in under_way)
        return self._spent() + predicted <= self.plan.search_seconds

    def _started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        study = self.context.study
        task = Task(
            study=str(study.folder.resolve()),
            name=f"candidate-{number}",
            architecture=architecture.to_json(),
            start=self.context.study.config.recipe.start,
            distill_steps=self.plan.distill_steps,
            finetune_steps=self.plan.finetune_steps,
            splits=("val",),
            seed=study.config.seed,
        )
        candidate = Candidate(number=number, architecture=architecture, state="running", latency_kind=self.kind)
        self.running[number] = (candidate, time.monotonic())
        study.record(candidate)
        return {"task": task_json(task)}

    def _refused(self, number: int, architecture: Architecture, reason: str) -> None:
        scores = cost_scores(self.context, architecture)
        refused = Candidate(number=number, architecture=architecture, state="refused", scores=scores, error=reason)
        self._record(replace(refused, latency_kind=self.kind))

    def _finished(self, number: int, report: Mapping[str, Any] | None) -> Candidate:
        candidate, began = self.running.pop(number)
        seconds = time.monotonic() - began
        report = checked(report or {"state": "failed", "error": "the worker died, most likely for want of memory"})
        self.context.study.ledger.charge(SPENT_ON, seconds * self.resources)
        recorded = self._record(
            replace(
                candidate,
                state=report["state"],
                scores=report.get("scores", {}),
                rung=1 if report["state"] == "complete" else 0,
                seconds=seconds * self.resources,
                weights=f"students/candidate-{number}" if report["state"] == "complete" else None,
                error=report.get("error"),
            )
        )
        if recorded.state == "complete":
            self.seen.append(self._lesson(recorded))
        return recorded

    def _record(self, candidate: Candidate) -> Candidate:
        candidate = replace(candidate, run_id=self._mirror(candidate))
        self.context.study.record(candidate)
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


def checked(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A complete report whose objectives are all finite numbers; else it is a failed one that names what is missing."""
    scores = report.get("scores", {})
    missing = [objective.name for objective in OBJECTIVES if not math.isfinite(scores.get(objective.name, math.nan))]
    if report["state"] != "complete" or not missing:
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
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            show()

    return Ticker()
