"""The rows of the paper's experiment, trained in Ray workers."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.paper.choice import Choice
from nas.paper.experiment import JOINT, Experiment, slug
from nas.paper.rows import Row, Rows, in_table_order
from nas.planning.pace import training_macs
from nas.study.budget import Account, append_line, in_words, read_lines
from nas.study.progress import Tick
from nas.worker.context import Context, cost_of
from nas.worker.task import Task, task_json
from nas.worker.trainings import run_tasks
from nas.worker.unfinished import forget

ROWS_FILE = "rows.jsonl"


class Reproduction:
    """Trains rows in Ray workers; `rows.jsonl` is the truth."""

    def __init__(self, context: Context, experiment: Experiment, account: Account, tick: Tick, tell: Callable[[str], None]) -> None:
        """tick: hears the work done and in all; tell: a line of text for every training that ended."""
        self.context, self.account, self.tick, self.tell = context, account, tick, tell
        self.rows, self.study, self.choice = Rows(context, experiment), context.study, Choice(context.study)

    def run(self) -> None:
        """What tells most comes first. Rows that share a distillation wait for the joint one, which makes it."""
        settings = list(self.rows.settings())
        self._train(settings)
        chosen = self.choice.settings(settings, self.done())
        self._train(list(self.rows.joint(chosen[JOINT])))
        if best := self._best():
            self._train(list(self.rows.scratch(best)))
            self._train(list(self.rows.alone(chosen, best)))

    def records(self) -> list[dict[str, Any]]:
        """Of all rows so far, as they stand in the table and not as they happened to end; the teacher's settings first."""
        done = {record["name"]: record for record in self.done()}
        return [done[row.name] for row in self._all() if row.name in done]

    def _best(self) -> str | None:
        teacher = self.context.teacher
        params = cost_of(self.context, teacher.architecture, teacher.encoder.geometry).params
        return self.choice.best(self.rows.given, self.done(), params)

    def _all(self) -> list[Row]:
        """Before something was chosen, with the longest setting or the largest student."""
        settings, chosen = list(self.rows.settings()), self.choice.made()
        names = chosen.get("settings", {}).values()
        longest = {row.variant: row for row in sorted(settings, key=lambda row: (row.name in names, row.finetune_steps))}
        given = self.rows.given
        best = chosen.get("best") or max(given, key=lambda name: training_macs(self.context, given[name]))
        rows = [*self.rows.joint(longest[JOINT]), *self.rows.scratch(best), *self.rows.alone(longest, best)]
        return [*settings, *in_table_order(rows)]

    def done(self) -> list[dict[str, Any]]:
        """The latest record of each row."""
        records = read_lines(self.study.folder / ROWS_FILE)
        return list({record["name"]: record for record in records}.values())

    def _train(self, rows: Sequence[Row]) -> None:
        trained = {record["name"] for record in self.done() if record["scores"]}
        waiting = [row for row in rows if row.name not in trained]
        self.tick(*self._progress())
        for row, report in run_tasks(
            waiting,
            lambda row: task_json(self._task(row)),
            self.study.config,
            self.account.workers,
            charge=lambda row, seconds: self.account.charge(row.model, seconds),
            tick=lambda _: None,
        ):
            self._record(row, report)
            self.tick(*self._progress())

    def _progress(self) -> tuple[float, float]:
        """Work done and in all, in MACs of updates."""
        trained = {record["name"] for record in self.done() if record["scores"]}
        work = {row.name: self._work(row) for row in self._all()}
        return sum(seconds for name, seconds in work.items() if name in trained), sum(work.values())

    def _work(self, row: Row) -> float:
        tasks = sum(bool(row.tuning.get(task, True)) for task in ("keywords", "speakers"))
        distilled = row.distill_steps if row.variant == JOINT else 0  # the others take over what it distilled
        return training_macs(self.context, row.architecture) * (distilled + tasks * row.finetune_steps)

    def _record(self, row: Row, report: Mapping[str, Any]) -> None:
        seconds = report.get("seconds", 0.0) if self.study.config.gpus else sum(report.get("cpu_seconds", {}).values())
        fields = {**dataclasses.asdict(row), "architecture": json.loads(row.architecture.to_json())}
        append_line(
            self.study.folder / ROWS_FILE,
            {**fields, "scores": report.get("scores", {}), "error": report.get("error"), "seconds": seconds},
        )
        if report.get("scores"):
            forget(self.study, row.name)
        self.tell(f"{row.name}: " + (report.get("error") or f"trained in {in_words(seconds)}"))

    def _task(self, row: Row) -> Task:
        return Task(
            study=str(self.study.folder.resolve()),
            name=row.name,
            architecture=row.architecture.to_json(),
            start=row.start,
            distill_steps=row.distill_steps,
            finetune_steps=row.finetune_steps,
            splits=row.splits,
            seed=row.seed,
            tuning=dict(row.tuning),
            tutor=row.tutor,
            sharing=True,
            distilled=f"{slug(row.model)}-{row.seed}" if row.distill_steps else None,
        )
