"""`srlnas reproduce`: the paper's table (Kerpicci et al., arXiv 2210.16611) on any teacher and corpus.

The teacher and its student, each tuned for one task, for both, and for both with the encoder frozen; beside them two networks that
distil nothing: the student's architecture from scratch, and BC-ResNet. The teacher's rate and length are chosen once among several,
tuned for both tasks, by validation; all others have the recipe's (BC-ResNet a rate of its own). Lives in a study folder: what
`rows.jsonl` has is not trained again.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from nas.paper.table import FROZEN, JOINT, build_table, log_rows, markdown
from nas.stages.finalists import equal_updates
from nas.stages.pace import training_macs
from nas.stages.preparation import facts, prepare
from nas.study.budget import Account, append_line, in_words, parse_budget, read_lines
from nas.study.config import StudyConfig
from nas.study.folder import EXPERIMENT_FILE, Study, create_study
from nas.study.progress import Tick, progress
from nas.tracking.mirror import Tracking, tracked
from nas.worker import cluster
from nas.worker.context import Context
from nas.worker.evaluate import make_student, own_tuning
from nas.worker.task import Start, Task, task_json
from nas.worker.trainings import run_tasks
from nas.worker.unfinished import forget_all
from search_spaces.architecture import Architecture, Baseline, Network
from search_spaces.catalog import paper_student
from trainers.teacher.teacher import load_teacher

ROWS_FILE, SETTING_FILE = "rows.jsonl", "setting.json"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    JOINT: {},
    "keywords alone": {"speakers": False},
    "speakers alone": {"keywords": False},
    FROZEN: {"frozen": True},
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """seeds: of every row. rates, lengths: the teacher's settings, each pair one; lengths are shares of the fine-tuning steps.
    student: None is the paper's."""

    seeds: int = 3
    rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3)
    lengths: tuple[float, ...] = (0.5, 1.0)
    student: Architecture | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.rates or min(*self.rates, *self.lengths, 1.0) <= 0:
            raise ValueError("an experiment has at least one seed, and rates and lengths above zero")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: a line of the table for one seed, or one of the teacher's settings, which is not tested."""

    name: str
    model: str
    variant: str
    seed: int
    architecture: Network
    start: Start
    distill_steps: int
    finetune_steps: int
    tuning: Mapping[str, Any]
    splits: tuple[str, ...] = ("val", "test")


class Reproduction:
    """Trains rows in Ray workers; `rows.jsonl` is the truth."""

    def __init__(self, context: Context, experiment: Experiment, account: Account, tick: Tick, tell: Callable[[str], None]) -> None:
        """tick: hears the work done and in all; tell: a line of text for every training that ended."""
        config = context.study.config
        assert config.distill_steps and config.finetune_steps, "an experiment names its steps"
        self.context, self.experiment, self.account, self.tick, self.tell = context, experiment, account, tick, tell
        self.student = experiment.student or paper_student(context.teacher.architecture)
        self.distill_steps, self.finetune_steps = config.distill_steps, config.finetune_steps

    def run(self) -> list[dict[str, Any]]:
        """The records of all rows, the teacher's settings first. Students that share a distillation wait for the first of them."""
        self._train(list(self.settings()))
        rows = list(self.rows(self.chosen_setting()))
        self._train([row for row in rows if row.variant == JOINT])
        self._train([row for row in rows if row.variant != JOINT])
        done = {record["name"]: record for record in self.done()}
        return [done[row.name] for row in (*self.settings(), *rows) if row.name in done]  # not as they happened to end

    def settings(self) -> Iterator[Row]:
        for rate, length in itertools.product(self.experiment.rates, self.experiment.lengths):
            steps = max(1, round(length * self.finetune_steps))
            yield self._teacher(f"setting-{rate:g}-{steps}", JOINT, 0, {"rate": rate}, steps, splits=("val",))

    def chosen_setting(self) -> Row:
        """The best when the first row was trained: a setting that failed then and is trained later must not mix two in a row."""
        study = self.context.study
        name = study.read_json(SETTING_FILE)
        if name is None:
            name = self.best_setting().name
            study.write_json(SETTING_FILE, name)
        return next(row for row in self.settings() if row.name == name)

    def best_setting(self) -> Row:
        """By the sum of keyword error and EER on validation speakers. Raises ValueError when none was trained."""
        scores = {record["name"]: record["scores"] for record in self.done() if record["scores"]}
        trained = [row for row in self.settings() if row.name in scores]
        if not trained:
            raise ValueError(
                "no setting of the teacher could be trained: " + "; ".join(r["error"] or "" for r in self.done())[:300]
            )
        return min(trained, key=lambda row: scores[row.name]["keyword_error"] + scores[row.name]["eer"])

    def rows(self, setting: Row) -> Iterator[Row]:
        updates = equal_updates(self.distill_steps, self.finetune_steps)
        for seed in range(self.experiment.seeds):
            for variant, changes in VARIANTS.items():
                tuning = {**setting.tuning, **changes}
                yield self._teacher(f"teacher-{_slug(variant)}-{seed}", variant, seed, tuning, setting.finetune_steps)
                yield Row(
                    name=f"student-{_slug(variant)}-{seed}",
                    model="student",
                    variant=variant,
                    seed=seed,
                    architecture=self.student,
                    start=self.context.study.config.recipe.start,
                    distill_steps=self.distill_steps,
                    finetune_steps=self.finetune_steps,
                    tuning=changes,
                )
            networks: dict[str, Network] = {"student from scratch": self.student, "BC-ResNet": Baseline()}
            for model, network in networks.items():
                yield Row(
                    name=f"{_slug(model)}-{seed}",
                    model=model,
                    variant=JOINT,
                    seed=seed,
                    architecture=network,
                    start="random",
                    distill_steps=0,
                    finetune_steps=updates,
                    tuning=own_tuning(network),
                )

    def _teacher(
        self, name: str, variant: str, seed: int, tuning: Mapping[str, Any], steps: int, splits: tuple[str, ...] = ("val", "test")
    ) -> Row:
        return Row(
            name=name,
            model="teacher",
            variant=variant,
            seed=seed,
            architecture=self.context.teacher.architecture,
            start="teacher",
            distill_steps=0,
            finetune_steps=steps,
            tuning=tuning,
            splits=splits,
        )

    def done(self) -> list[dict[str, Any]]:
        """The latest record of each row."""
        records = read_lines(self.context.study.folder / ROWS_FILE)
        return list({record["name"]: record for record in records}.values())

    def _train(self, rows: Sequence[Row]) -> None:
        trained = {record["name"] for record in self.done() if record["scores"]}
        waiting = [row for row in rows if row.name not in trained]
        self.tick(*self._progress())
        for row, report in run_tasks(
            waiting,
            lambda row: task_json(self._task(row)),
            self.context.study.config,
            self.account.workers,
            charge=lambda row, seconds: self.account.charge(row.model, seconds),
            tick=lambda _: None,
        ):
            self._record(row, report)
            self.tick(*self._progress())

    def _progress(self) -> tuple[float, float]:
        """Work done and in all, in MACs of updates; the teacher's setting, before it is known, is the longest."""
        trained = {record["name"] for record in self.done() if record["scores"]}
        longest = max(self.settings(), key=lambda row: row.finetune_steps)
        work = {row.name: self._work(row) for row in (*self.settings(), *self.rows(longest))}
        return sum(work[name] for name in trained), sum(work.values())

    def _work(self, row: Row) -> float:
        tasks = sum(bool(row.tuning.get(task, True)) for task in ("keywords", "speakers"))
        distilled = row.distill_steps if row.variant == JOINT else 0  # the others take over what it distilled
        return training_macs(self.context, row.architecture) * (distilled + tasks * row.finetune_steps)

    def _record(self, row: Row, report: Mapping[str, Any]) -> None:
        seconds = report.get("seconds", 0.0) if self.context.study.config.gpus else sum(report.get("cpu_seconds", {}).values())
        fields = {**dataclasses.asdict(row), "architecture": json.loads(row.architecture.to_json())}
        append_line(
            self.context.study.folder / ROWS_FILE,
            {**fields, "scores": report.get("scores", {}), "error": report.get("error"), "seconds": seconds},
        )
        self.tell(f"{row.name}: " + (report.get("error") or f"trained in {in_words(seconds)}"))

    def _task(self, row: Row) -> Task:
        return Task(
            study=str(self.context.study.folder.resolve()),
            name=row.name,
            architecture=row.architecture.to_json(),
            start=row.start,
            distill_steps=row.distill_steps,
            finetune_steps=row.finetune_steps,
            splits=row.splits,
            seed=row.seed,
            tuning=dict(row.tuning),
            distilled=f"seed-{row.seed}" if row.distill_steps else None,
        )


def _slug(text: str) -> str:
    return text.lower().replace(",", "").replace(" ", "-")


def reproduce(study: Study, experiment: Experiment, console: Console, *, ray_address: str | None = None) -> dict[str, Any]:
    """Runs or continues an experiment; writes paper.json and paper.md to the study folder, and both with all runs to MLflow.

    Raises ValueError for what the user can mend.
    """
    config = study.config
    budget = parse_budget(config.budget)
    with study.locked():
        cluster.connect(ray_address)
        account = cluster.account_of(study, budget)
        with tracked(config.tracking_uri, config.name) as tracking:
            context = prepare(study, budget, console)
            with progress(console, "trainings") as tick:
                records = Reproduction(context, experiment, account, tick, console.print).run()
            table = build_table(study, records, facts(context), experiment.seeds)
            study.write_json("paper.json", table)
            (study.folder / "paper.md").write_text(markdown(table))
            _publish(study, tracking, records)
    if not table["failed"]:
        forget_all(study)
    return table


def _publish(study: Study, tracking: Tracking, records: list[dict[str, Any]]) -> None:
    """Raises ValueError when MLflow does not take it: nothing is lost then."""
    try:
        log_rows(tracking, records)
        for name in ("paper.json", "paper.md"):
            tracking.client.log_artifact(tracking.run_id, str(study.folder / name))
    except Exception as error:  # MLflow's and its transports' many kinds
        raise ValueError(
            f"MLflow did not take the results ({str(error).splitlines()[0]}); the table is in {study.folder}/paper.md, and "
            f"`srlnas reproduce --resume {study.config.name}` logs it again"
        ) from error


def new_experiment(config: StudyConfig, experiment: Experiment) -> Study:
    """Raises ValueError, before a folder is made, for a rate that no recipe has and a student that does not fit the teacher."""
    for rate in experiment.rates:
        dataclasses.replace(config.recipe, rate=rate)
    teacher = load_teacher(config.teacher)
    student = experiment.student or paper_student(teacher.architecture)
    make_student(teacher, config.recipe, ("keyword",), student, config.recipe.start, distilled=True)
    study = create_study(config)
    study.write_json(EXPERIMENT_FILE, dataclasses.asdict(experiment))
    return study


def read_experiment(study: Study) -> Experiment:
    fields: dict[str, Any] = study.read_json(EXPERIMENT_FILE)
    student = fields["student"]
    return Experiment(
        seeds=fields["seeds"],
        rates=tuple(fields["rates"]),
        lengths=tuple(fields["lengths"]),
        student=Architecture.from_dict(student) if student else None,
    )
