"""The end of a search: the best candidates and the references, trained at full length, measured side by side, tested once."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nas.stages.finalists import Choice
from nas.stages.finals import Final, is_done, record_final
from nas.stages.measure import measure_finals
from nas.stages.references import keep, kept_report
from nas.stages.tutor import TUTOR
from nas.worker.context import Context, cost_scores
from nas.worker.task import Task, task_json
from nas.worker.trainings import run_tasks
from search_spaces.architecture import Geometry

SPENT_ON = {"finalist": "finalists"}
Tick = Callable[[float, float], None]


def finalise(choice: Choice, tick: Tick) -> None:
    """Trains all finals; the scratch reference last, because it has the architecture of the final front's knee. What was done
    before is not trained again. tick: hears resource-seconds done and in all, as predicted."""
    train_finals(choice, choice.wanted(), tick)
    measure_finals(choice.context, choice.account)
    if scratch := choice.scratch():
        train_finals(choice, [scratch], tick)
        measure_finals(choice.context, choice.account)


def train_finals(choice: Choice, wanted: Sequence[Final], tick: Tick) -> None:
    """Those not done, longest first, so that the workers end together."""
    context, study = choice.context, choice.context.study
    left = sorted((final for final in wanted if not is_done(study, final)), key=choice.seconds, reverse=True)
    for final, report in _reports(choice, left, tick):
        scores = report.get("scores", {})
        if scores:  # of a kept report they are another target's
            scores = {**scores, **cost_scores(context, final.architecture, _geometry(context, final))}
        kind, error = context.device.latency_model.kind, report.get("error")
        record_final(study, dataclasses.replace(final, scores=scores, error=error, latency_kind=kind))


def _reports(choice: Choice, finals: Sequence[Final], tick: Tick) -> Iterator[tuple[Final, dict[str, Any]]]:
    """Each final with its report, those that an earlier study trained at once. What runs is charged, interrupted or not."""
    context, account = choice.context, choice.account
    expected, ended = sum(map(choice.seconds, finals)), list[float]()  # wall seconds
    kept = {final.name: report for final in finals if (report := kept_report(context, final)) is not None}
    for final in finals:
        if final.name in kept:
            yield final, kept[final.name]
            ended.append(choice.seconds(final))
    for final, report in run_tasks(
        [final for final in finals if final.name not in kept],
        lambda final: task_json(_task(context, final)),
        context.study.config,
        account.workers,
        charge=lambda final, seconds: account.charge(SPENT_ON.get(final.role, "references"), seconds),
        admit=choice.affordable,
        tick=lambda running: tick((sum(ended) + running) * account.resources, expected * account.resources),
    ):
        keep(context, final, report)
        yield final, report
        ended.append(choice.seconds(final))


def _geometry(context: Context, final: Final) -> Geometry:
    """The teacher keeps its own, relative position bias included."""
    return context.teacher.encoder.geometry if final.start == "teacher" else context.teacher.geometry


def _task(context: Context, final: Final) -> Task:
    return Task(
        study=str(context.study.folder.resolve()),
        name=final.name,
        architecture=final.architecture.to_json(),
        start=final.start,
        distill_steps=final.distill_steps,
        finetune_steps=final.finetune_steps,
        splits=("val", "test"),
        seed=context.study.config.seed,
        tutor=TUTOR if final.tutor_steps else None,
        sharing=True,
    )
