"""The search itself: Ray Tune trains what Optuna proposes, while the budget for it lasts."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nas.planning.admission import Admission, checked
from nas.proposals.scheduler import RungScheduler
from nas.proposals.searcher import Hooks, StudySearcher
from nas.stages.finals import TUTOR
from nas.stages.records import Records
from nas.study.candidates import LATENCY, Candidate
from nas.study.folder import earlier_studies
from nas.study.progress import say
from nas.tracking.mirror import Tracking
from nas.worker.context import cost_scores, space_of
from nas.worker.deaths import Deaths, revived
from nas.worker.task import Task, task_json
from nas.worker.trainings import HEARTBEAT, check_room, trainable
from search_spaces.architecture import RECEPTIVE_FIELD, Architecture, Geometry, Heads
from search_spaces.catalog import QUARTER, published_students
from search_spaces.cost import cost
from search_spaces.space import Nearest, SearchSpace

KEYWORDS = 12  # of a head whose weights are counted; a few more or less change nothing


class Exploration:
    """The driver's side of Ray Tune: hands out tasks, hears reports, and asks `Admission` what becomes of them."""

    def __init__(self, admission: Admission, tracking: Tracking, tick: Callable[[float, float], None]) -> None:
        """tick: hears the resource-seconds that candidates have spent and may spend."""
        self.admission, self.context, self.plan, self.tick = admission, admission.context, admission.plan, tick
        self.records = Records(self.context.study, admission.account, tracking)
        self.interrupted = {c.number: c for c in map(revived, self.context.study.candidates()) if c.state == "running"}
        self.deaths = Deaths()
        self.absence: ValueError | None = None  # of workers

    def run(self, *, more: float = 0.0) -> None:
        """Returns when nothing more can be afforded. An interruption leaves the running candidates recorded as running.

        more: resource-seconds beyond the plan, left over from elsewhere. Raises ValueError when no worker comes.
        """
        from ray import tune

        config = self.context.study.config
        self.admission.allow(more)
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what Tune writes of errors we say in a line
        try:
            with tempfile.TemporaryDirectory(prefix="srlnas-ray-") as scratch:  # Ray's own state is never read again
                tune.Tuner(
                    tune.with_resources(trainable, {"cpu": config.cpus, "gpu": config.gpus}),
                    tune_config=tune.TuneConfig(
                        search_alg=self._searcher(),
                        scheduler=RungScheduler(self._goes_on, self._died),
                        num_samples=-1,
                        max_concurrent_trials=self.admission.account.workers,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[_ticker(self.show)]),
                ).fit()
            self.deaths.say(set(), wait=0.0)
        except Exception:
            if self.absence:  # Tune wraps what its callbacks raise
                raise self.absence from None
            raise
        finally:  # what was interrupted was paid for
            self.records.leave()

    def show(self) -> None:
        """Progress. Charges what runs every few seconds, so that a driver that is killed leaves little unpaid."""
        self.records.charge_all(HEARTBEAT)
        try:
            self.records.check_workers()
        except ValueError as error:
            self.absence = error
            raise
        self.deaths.say(self.records.silent())
        self.tick(self.admission.spent, self.admission.limit)

    def _searcher(self) -> StudySearcher:
        config, space, teacher = self.context.study.config, space_of(self.context), self.context.teacher
        hooks = Hooks(
            refusal=self.admission.refusal,
            affordable=self._affordable,
            started=self._started,
            refused=self._refused,
            finished=self._finished,
            latency=lambda architecture: cost_scores(self.context, architecture)[LATENCY.name],
            seconds=self.admission.seconds,
        )
        return StudySearcher(
            space,
            hooks,
            history=[self.interrupted.get(candidate.number, candidate) for candidate in self.context.study.candidates()],
            seed=config.seed,
            limit=config.candidates,
            sampler=config.sampler,
            first=first_candidates(space, teacher.architecture, teacher.geometry, config.recipe.heads),
            earlier=[study.candidates() for study in earlier_studies(config)],
        )

    def _affordable(self, architecture: Architecture) -> bool:
        """Of what was interrupted, its finished rungs are paid."""
        waiting = (candidate for candidate in self.interrupted.values() if candidate.architecture == architecture)
        return self.admission.affordable(next(waiting, None) or self._new(-1, architecture), self.records.candidates())

    def _new(self, number: int, architecture: Architecture) -> Candidate:
        kind = self.context.device.latency_model.kind
        return Candidate(number=number, architecture=architecture, state="running", latency_kind=kind)

    def _started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        candidate = self.interrupted.pop(number, None) or self._new(number, architecture)
        task = task_json(self._task(candidate))
        self.records.begin(candidate, task)
        return {"task": task, "number": number}

    def _task(self, candidate: Candidate) -> Task:
        plan, study, name = self.plan, self.context.study, f"candidate-{candidate.number}"
        return Task(
            study=str(study.folder.resolve()),
            name=name,
            architecture=candidate.architecture.to_json(),
            start="shared student" if plan.shared_steps else study.config.recipe.start,
            distill_steps=plan.distill_steps,
            finetune_steps=plan.finetune_steps,
            splits=("val",),
            seed=study.config.seed,
            distilled=name if plan.rungs > 1 and plan.distill_steps else None,
            tutor=TUTOR if plan.tutor_steps else None,
            rungs=plan.rungs,
            reduction=plan.reduction,
            done=candidate.rung,
            sharing=True,
            draw=True,
        )

    def _refused(self, number: int, architecture: Architecture, reason: str) -> None:
        scores = cost_scores(self.context, architecture)
        self._record(replace(self._new(number, architecture), state="refused", scores=scores, error=reason))

    def _goes_on(self, trial: Mapping[str, Any], text: str) -> bool:
        """Records what a candidate reached; whether it trains on."""
        number, report = trial["number"], checked(json.loads(text))
        try:
            check_room(report)
        except ValueError as error:
            self.absence = error
            raise
        for note in report.get("notes", ()):
            say(f"candidate-{number}: {note}")
        reached = replace(self.records.charged(number), state=report["state"], error=report.get("error"))
        if report["state"] != "failed":
            reached = replace(reached, rung=report["rung"], scores=report["scores"])
            reached = self.admission.judged(reached, self.records.candidates(but=number))
        if reached.state == "complete":
            reached = replace(reached, weights=f"students/candidate-{number}")
        self._record(reached)
        return reached.state in ("running", "complete")

    def _died(self, trial: Mapping[str, Any], error: Exception | None, reason: str) -> None:
        number = trial["number"]
        if self.deaths.again(f"candidate-{number}", reason, error):
            self.interrupted[number] = self.records.interrupt(number)

    def _finished(self, number: int) -> Candidate | None:
        if number in self.interrupted:
            return None
        if self.records.running[number].candidate.state == "running":
            error = self.deaths.error(f"candidate-{number}")
            self._record(replace(self.records.charged(number), state="failed", error=error))
        ended = self.records.end(number)
        if ended.state != "failed":
            self.admission.learn(ended)
        return ended

    def _record(self, candidate: Candidate) -> None:
        self.records.record(candidate)
        self.show()


def first_candidates(
    space: SearchSpace, teacher: Architecture, geometry: Geometry, read: Heads = "every state"
) -> list[Architecture]:
    """What is tried before any proposal: the smallest and the largest student, the largest of at most a quarter of the teacher's
    weights, and the members next to published ones."""

    def weights(architecture: Architecture) -> int:
        return cost(architecture, geometry, keywords=KEYWORDS, samples=RECEPTIVE_FIELD, read=read).params

    published = [space.architecture(Nearest(student)) for student in published_students(teacher).values()]
    quarter = space.largest_within(QUARTER * weights(teacher), teacher.front_end, weights)
    return [space.smallest(geometry), space.largest(geometry), *([quarter] if quarter else []), *published]


def _ticker(show: Callable[[], None]) -> Any:
    from ray.tune import Callback

    class Ticker(Callback):
        def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
            """As `StudySearcher`: Ray pickles it and nobody reads it."""
            return Callback, ()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            show()

    return Ticker()
