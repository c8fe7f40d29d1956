"""The end of a search: the best candidates and the references, trained at full length, measured side by side, tested once."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nas.stages.finalists import Choice
from nas.stages.finals import Final, final_task, is_done, record_final
from nas.stages.measure import measure_finals
from nas.stages.references import keep, kept_report
from nas.worker.context import Context, cost_scores
from nas.worker.trainings import run_tasks
from nas.worker.unfinished import forget
from search_spaces.architecture import Geometry

SPENT_ON = {"finalist": "finalists"}
Tick = Callable[[float, float], None]


def finalise(choice: Choice, tick: Tick) -> None:
    """Trains all finals, further finalists while they fit, and the scratch reference last, because it has the architecture of the
    front's knee. What was done before is not trained again. tick: hears resource-seconds done and in all, as predicted."""
    begun = set[tuple[str, int]]()  # names and steps: a reference may be trained again, longer
    while wanted := [final for final in choice.wanted() if (final.name, final.finetune_steps) not in begun]:
        begun |= {(final.name, final.finetune_steps) for final in wanted}
        train_finals(choice, wanted, tick)
    if scratch := choice.scratch():
        train_finals(choice, [scratch], tick)


def train_finals(choice: Choice, wanted: Sequence[Final], tick: Tick) -> None:
    """Those not done; then measures them. First come members that are only tested, then finalists, then references; of each the
    longest first, so that the workers end together."""
    context, study = choice.context, choice.context.study

    def order(final: Final) -> tuple[bool, bool, float]:
        return final.role != "finalist", final.source is None, -choice.seconds(final)

    left = sorted((final for final in wanted if not is_done(study, final)), key=order)
    for final, report in _reports(choice, left, tick):
        scores = report.get("scores", {})
        if scores:  # of a kept report they are another target's
            scores = {**scores, **cost_scores(context, final.architecture, _geometry(context, final))}
        kind, error = context.device.latency_model.kind, report.get("error")
        record_final(study, dataclasses.replace(final, scores=scores, error=error, latency_kind=kind))
        if scores:
            forget(study, final.name)
    measure_finals(context, choice.account)


def _reports(choice: Choice, finals: Sequence[Final], tick: Tick) -> Iterator[tuple[Final, dict[str, Any]]]:
    """Each final with its report, those that an earlier study trained at once. What runs is charged, interrupted or not."""
    context, account = choice.context, choice.account
    kept = {final.name: report for final in finals if (report := kept_report(context, final)) is not None}
    yield from ((final, kept[final.name]) for final in finals if final.name in kept)
    left, ended = [final for final in finals if final.name not in kept], list[float]()  # wall seconds
    expected = min(sum(map(choice.seconds, left)), max(0.0, account.left) / account.resources)  # references shrink to that
    for final, report in run_tasks(
        left,
        lambda final: final_task(context.study, final, sharing=True),
        context.study.config,
        account.workers,
        charge=lambda final, seconds: account.charge(SPENT_ON.get(final.role, "references"), seconds),
        admit=choice.begun,
        tick=lambda running: tick((sum(ended) + running) * account.resources, expected * account.resources),
    ):
        keep(context, final, report)
        yield final, report
        ended.append(choice.seconds(final))


def _geometry(context: Context, final: Final) -> Geometry:
    """The teacher keeps its own, relative position bias included."""
    return context.teacher.encoder.geometry if final.start == "teacher" else context.teacher.geometry
