"""The end of a search: the best candidates and the references, trained at full length, measured side by side, tested once."""

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.measure import Measurement
from nas.device.calibrate import measure_students
from nas.device.known import DEVICE_FILE, reachable, study_profile
from nas.device.profile import Profile, Taken
from nas.stages.pace import Pace, training_macs
from nas.stages.plan import FINAL_SAFETY, Plan, full_steps, resources_of
from nas.study.budget import Budget, append_line, read_lines
from nas.study.candidates import Candidate, Kind, values_of
from nas.study.folder import Study
from nas.study.pareto import epsilon_net, knee, non_dominated
from nas.worker.cluster import run_tasks
from nas.worker.context import Context, cost_scores
from nas.worker.evaluate import own_tuning
from nas.worker.task import Start, Task, task_json
from search_spaces.architecture import Baseline, Geometry, Network, network_from_dict
from search_spaces.catalog import paper_student
from trainers.networks.student import load_student
from trainers.speech.decoding import content_hash

Role = Literal["finalist", "teacher", "paper's student", "BC-ResNet", "knee from scratch"]
FINALS_FILE = "finals.jsonl"
PREDICTED = "predicted_latency_ms"
OVERDRAFT = 0.01  # of the budget, by which what is predicted may overrun it
SPENT_ON = {"finalist": "finalists"}


@dataclass(frozen=True, kw_only=True)
class Final:
    """One training at full length. name: also of its folder in `students/`. candidate: number of a finalist's candidate.
    latency_kind: predicted until the student itself was measured, after training; then `scores` has predicted_* too.
    latency_marks: what speaks against that measurement."""

    name: str
    role: Role
    architecture: Network
    start: Start
    distill_steps: int
    finetune_steps: int
    candidate: int | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    latency_kind: Kind = "calibrated"
    latency_marks: tuple[str, ...] = ()
    error: str | None = None

    def objectives(self) -> list[float]:
        return values_of(self.scores)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "architecture": json.loads(self.architecture.to_json())}, sort_keys=True)


def read_finals(study: Study) -> list[Final]:
    """The latest record of each training at full length."""
    lines = [{**line, "architecture": network_from_dict(line["architecture"])} for line in read_lines(study.folder / FINALS_FILE)]
    return list({line["name"]: Final(**line) for line in lines}.values())


def choose_finalists(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most `most` complete candidates: the front first, then what is behind it, front by front. Of a front that is too large,
    its knee and extremes, then always the member farthest from those chosen (objectives scaled to the front's range)."""
    chosen: list[Candidate] = []
    left = [c for c in candidates if c.state == "complete" and np.isfinite(values_of(c.scores)).all()]
    while left and len(chosen) < most:
        points = np.array([values_of(c.scores) for c in left])
        on_front = non_dominated(points)
        front = [c for c, on in zip(left, on_front) if on]
        chosen += [front[i] for i in spread(points[on_front], most - len(chosen))]
        left = [c for c, on in zip(left, on_front) if not on]
    return chosen


def equal_updates(distill_steps: int, finetune_steps: int) -> int:
    """Fine-tuning steps, of two updates each, of what is not distilled: as many updates as both trainings of a student."""
    return finetune_steps + distill_steps // 2


def spread(points: np.ndarray[Any, np.dtype[np.floating[Any]]], most: int) -> list[int]:
    """Indices of at most `most` rows that lie apart: knee, the best in each objective, then the farthest from all chosen."""
    return epsilon_net(points, list(dict.fromkeys([knee(points), *map(int, points.argmin(0))])))[:most]


class Finals:
    """Trains finalists and references. What `finals.jsonl` has as done is not trained again."""

    def __init__(
        self, context: Context, plan: Plan, pace: Pace, budget: Budget, workers: int, tick: Callable[[float, float], None]
    ):
        self.context, self.plan, self.pace, self.budget, self.workers, self.tick = context, plan, pace, budget, workers, tick
        self.resources = resources_of(context.study.config, budget)
        self.expected, self.finished = 0.0, 0.0  # wall seconds, for the progress

    def run(self) -> list[Final]:
        """All finals; the scratch reference last, because it has the architecture of the final front's knee."""
        self._train(self.wanted())
        self._measure()
        trained = [final for final in read_finals(self.context.study) if final.role == "finalist" and final.scores]
        if trained:
            self._train([self._scratch(trained)])
            self._measure()
        return read_finals(self.context.study)

    def wanted(self) -> list[Final]:
        """The references and as many finalists as what is left of the budget trains at least as long as a candidate.

        Where finals were begun before, those, and further finalists of the same length that a raised budget pays for.
        """
        study = self.context.study
        candidates = choose_finalists(study.candidates(), study.config.finalists)
        recorded = [final for final in read_finals(study) if final.role != "knee from scratch"]
        finals = recorded + self._further(recorded, candidates) if recorded else self._first(candidates)
        for final in finals:
            if final not in recorded:
                append_line(study.folder / FINALS_FILE, final.to_json())
        return finals

    def _first(self, candidates: Sequence[Candidate]) -> list[Final]:
        study, teacher = self.context.study, self.context.teacher.architecture
        left = self.budget.seconds - study.ledger.spent
        for count in range(len(candidates), 0, -1):
            members = [candidate.architecture for candidate in candidates[:count]]
            # the first member twice: it stands for the scratch reference
            trained: list[Network] = [teacher, paper_student(teacher), Baseline(), *members, members[0]]
            macs = [training_macs(self.context, architecture) for architecture in trained]
            steps = full_steps(left, self.resources, self.pace, macs, self.plan, study.config.full_length)
            if steps or count == 1:
                length = max(steps, self.plan.full_steps)
                return [*self._references(length), *self._finalists(candidates[:count], length)]
        return []

    def _further(self, recorded: Sequence[Final], candidates: Sequence[Candidate]) -> list[Final]:
        begun = {final.candidate for final in recorded}
        length = next(final.finetune_steps for final in recorded if final.role == "paper's student")
        new = self._finalists([c for c in candidates if c.number not in begun], length)
        left = self.budget.seconds - self.context.study.ledger.spent
        left -= sum(self._seconds(final) for final in recorded if not self._done(final)) * self.resources
        afforded = np.cumsum([FINAL_SAFETY * self.resources * self._seconds(final) for final in new]) <= left
        return [final for final, affordable in zip(new, afforded) if affordable]

    def _references(self, steps: int) -> list[Final]:
        teacher, distill = self.context.teacher.architecture, self._distill_steps(steps)
        paper = paper_student(teacher)
        return [
            Final(name="teacher", role="teacher", architecture=teacher, start="teacher", distill_steps=0, finetune_steps=steps),
            Final(
                name="paper-student",
                role="paper's student",
                architecture=paper,
                start=self.context.study.config.recipe.start,
                distill_steps=distill,
                finetune_steps=steps,
            ),
            Final(
                name="bc-resnet",
                role="BC-ResNet",
                architecture=Baseline(),
                start="random",
                distill_steps=0,
                finetune_steps=equal_updates(distill, steps),
            ),
        ]

    def _finalists(self, candidates: Sequence[Candidate], steps: int) -> list[Final]:
        """Those that begin with a shared student's weights are tuned for as many updates as others are distilled and tuned."""
        distill, tune = self._distill_steps(steps), steps
        start: Start = self.context.study.config.recipe.start
        if self.plan.shared_steps:
            distill, tune, start = 0, equal_updates(distill, steps), "shared student"
        return [
            Final(
                name=f"final-{candidate.number}",
                role="finalist",
                architecture=candidate.architecture,
                start=start,
                distill_steps=distill,
                finetune_steps=tune,
                candidate=candidate.number,
            )
            for candidate in candidates
        ]

    def _distill_steps(self, steps: int) -> int:
        """Of what begins with the teacher's weights: in a candidate's proportion; as many where candidates were spared them."""
        return steps if self.plan.shared_steps else round(steps * self.plan.distill_steps / self.plan.finetune_steps)

    def _scratch(self, finalists: Sequence[Final]) -> Final:
        """The knee's architecture at random, fine-tuned for as many updates as the knee was distilled and fine-tuned for."""
        front = [f for f, on in zip(finalists, non_dominated(np.array([f.objectives() for f in finalists]))) if on]
        best = front[knee(np.array([f.objectives() for f in front]))]
        return Final(
            name=f"{best.name}-from-scratch",
            role="knee from scratch",
            architecture=best.architecture,
            start="random",
            distill_steps=0,
            finetune_steps=equal_updates(best.distill_steps, best.finetune_steps),
            candidate=best.candidate,
        )

    def _done(self, final: Final) -> bool:
        """What failed is tried again when the study is resumed."""
        return any(done.name == final.name and done.scores for done in read_finals(self.context.study))

    def _train(self, wanted: Sequence[Final]) -> None:
        """What is not done, longest first, so that the workers end together."""
        left = sorted((final for final in wanted if not self._done(final)), key=self._seconds, reverse=True)
        self.expected, self.finished = sum(map(self._seconds, left)), 0.0
        for final, report in self._reports(left):
            scores, kind = report.get("scores", {}), self.context.device.latency_model.kind
            if scores:  # of a cached report they are another target's
                scores = {**scores, **cost_scores(self.context, final.architecture, self._geometry(final))}
            trained = dataclasses.replace(final, scores=scores, error=report.get("error"), latency_kind=kind)
            append_line(self.context.study.folder / FINALS_FILE, trained.to_json())
            self.finished += self._seconds(final)

    def _geometry(self, final: Final) -> Geometry:
        """The teacher keeps its own, relative position bias included."""
        return self.context.teacher.encoder.geometry if final.start == "teacher" else self.context.teacher.geometry

    def _seconds(self, final: Final) -> float:
        return self.pace.seconds(training_macs(self.context, final.architecture), final.distill_steps, final.finetune_steps)

    def _reports(self, finals: Sequence[Final]) -> Iterator[tuple[Final, dict[str, Any]]]:
        """Each final with its report, those that an earlier study trained at once. What runs is charged, interrupted or not."""
        cached = {final.name: report for final in finals if (report := self._cached(final)) is not None}
        for final in finals:
            if final.name in cached:
                yield final, cached[final.name]
        for final, report in run_tasks(
            [final for final in finals if final.name not in cached],
            lambda final: task_json(self._task(final)),
            self.context.study.config,
            self.workers,
            charge=self._charge,
            admit=self._affordable,
            tick=lambda running: self.tick((self.finished + running) * self.resources, self.expected * self.resources),
        ):
            if "scores" in report and final.role in ("teacher", "paper's student", "BC-ResNet"):
                self._keep(final, report)
            yield final, report

    def _affordable(self, final: Final, running: Sequence[tuple[Final, float]]) -> bool:
        """Whether it fits into the budget; what a front cannot do without, its references and first finalist, always does."""
        first = next(recorded.name for recorded in read_finals(self.context.study) if recorded.role == "finalist")
        if final.role != "finalist" or final.name == first:
            return True
        seconds = self._seconds(final) + sum(max(0.0, self._seconds(other) - past) for other, past in running)
        return self.context.study.ledger.spent + seconds * self.resources <= (1 + OVERDRAFT) * self.budget.seconds

    def _charge(self, final: Final, seconds: float) -> None:
        self.context.study.ledger.charge(SPENT_ON.get(final.role, "references"), seconds * self.resources)

    def _task(self, final: Final) -> Task:
        return Task(
            study=str(self.context.study.folder.resolve()),
            name=final.name,
            architecture=final.architecture.to_json(),
            start=final.start,
            distill_steps=final.distill_steps,
            finetune_steps=final.finetune_steps,
            splits=("val", "test"),
            seed=self.context.study.config.seed,
            tuning=own_tuning(final.architecture),
        )

    def _cache(self, final: Final) -> Path:
        """Where a reference of this teacher, corpus and recipe is kept for later studies."""
        context, config = self.context, self.context.study.config
        cache = Path(config.cache)
        files = [content_hash(Path(path), cache) for path in (config.trials, config.noise) if path]
        recipe = [asdict(config.recipe), own_tuning(final.architecture), final.distill_steps, final.finetune_steps]
        data = [context.teacher.digest, context.corpus.digest, *files, config.target_windows, context.target.window]
        what = [version("srlnas"), final.name, final.architecture.to_json(), final.start, config.seed, recipe, data]
        return cache / "references" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def _cached(self, final: Final) -> dict[str, Any] | None:
        """The report of a reference that an earlier study trained, its student copied here; it costs this study nothing."""
        folder = self._cache(final)
        if not (folder / "report.json").is_file():
            return None
        shutil.copytree(folder, self.context.study.weights_folder(final.name), dirs_exist_ok=True)
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        return report

    def _keep(self, final: Final, report: dict[str, Any]) -> None:
        folder = self._cache(final)
        shutil.copytree(self.context.study.weights_folder(final.name), folder, dirs_exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report))

    def _measure(self) -> None:
        """Latency and memory of what was trained, the files themselves, on an idle machine or on the target over SSH."""
        study, profile = self.context.study, study_profile(self.context.study)
        waiting = [final for final in read_finals(study) if final.scores and PREDICTED not in final.scores]
        if not waiting or not reachable(profile, self.context.target):
            return
        students = {final.name: load_student(study.weights_folder(final.name)) for final in waiting}
        try:
            with study.ledger.timing("measuring finalists", 1.0 if self.budget.resource == "cpu" else 0.0):
                taken = measure_students(students, self.context.target, profile)
        except ValueError as error:
            warnings.warn(f"finalists keep their predicted latency: {error}", stacklevel=2)
            return
        measured = [_measured(final, taken[final.name].measurement) for final in waiting]
        for final in measured:
            append_line(study.folder / FINALS_FILE, final.to_json())
        if refitted := with_surprises(profile, measured, taken):
            study.write_json(DEVICE_FILE, {**study.read_json(DEVICE_FILE), "profile": refitted.to_dict()})
            vars(self.context).pop("device", None)  # read anew by the next prediction


def _measured(final: Final, m: Measurement) -> Final:
    predicted = {f"predicted_{name}": value for name, value in final.scores.items() if name.startswith(("latency_", "memory_"))}
    latency = {"latency_ms": m.milliseconds, "latency_low": m.low, "latency_high": m.high}
    memory = dict.fromkeys(("memory_bytes", "memory_low", "memory_high"), float(m.peak_memory))
    return dataclasses.replace(
        final, scores={**final.scores, **predicted, **latency, **memory}, latency_kind="measured", latency_marks=m.marks
    )


def with_surprises(profile: Profile, finals: Sequence[Final], taken: Mapping[str, Taken]) -> Profile | None:
    """Where an undisturbed finalist lies outside its interval, the profile with all undisturbed finalists, which its models are
    fitted to next; all, since the surprising ones alone would bias it. None where there is no surprise."""
    calm = [final for final in finals if final.role == "finalist" and not final.latency_marks]
    if all(as_predicted(final.scores) for final in calm):
        return None
    return profile.with_taken([taken[final.name] for final in calm])


def as_predicted(scores: Mapping[str, float]) -> bool:
    """Whether the measured latency lies in the interval that was predicted for it."""
    return scores["predicted_latency_low"] <= scores["latency_ms"] <= scores["predicted_latency_high"]
