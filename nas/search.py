"""The main job: prepare, calibrate, plan, tune a tutor, share, explore, finalise, explore with the rest, report. Each step is in
its own module; this is their order."""

import shutil
from typing import Any

from rich.console import Console

from nas.planning.admission import Admission
from nas.planning.forecast import Forecast
from nas.planning.planning import describe_plan, planned
from nas.planning.preparation import calibrate_target, check_members, prepare, sized
from nas.report.files import write_report
from nas.report.front import build_front
from nas.report.publish import report
from nas.stages.explore import Exploration
from nas.stages.finalise import finalise, train_finals
from nas.stages.finalists import Choice
from nas.stages.finals import read_finals
from nas.stages.shared import check_named, has_shared, prepare_shared
from nas.stages.tutor import has_tutor, prepare_tutor
from nas.study.budget import Account, in_words, parse_budget
from nas.study.folder import Study
from nas.study.progress import progress
from nas.tracking.mirror import Tracking, tracked
from nas.worker import cluster
from nas.worker.context import Context
from nas.worker.ending import ended_by_sigterm
from nas.worker.own_ray import watched
from nas.worker.unfinished import forget_all


def search(study: Study, console: Console, *, ray_address: str | None = None, **told: Any) -> dict[str, Any]:
    """Runs or continues a study; returns its front. Ctrl-C and SIGTERM write the front so far and pass on.

    told: as `Study.told`, of one that goes on.
    Raises ValueError for what the user can mend, before anything is spent where that can be known.
    """
    with study.locked():
        study = study.told(**told)
        config, budget = study.config, parse_budget(study.config.budget)
        check_members(study)
        cluster.connect(ray_address)
        cluster.workers(config, budget)
        with (
            ended_by_sigterm(study.folder),
            tracked(config.tracking_uri, config.name, tags={"budget": config.budget}) as tracking,
        ):
            context = sized(prepare(study, budget, console), budget)
            check_named(context)
            try:
                with watched(f"srlnas search --resume {config.name}"):
                    run(context, cluster.account_of(context.study, budget), tracking, console)
            except KeyboardInterrupt:
                write_report(context.study, build_front(context.study))
                raise
            front = report(context, tracking)
            check_any_final(context.study)
    shutil.rmtree(context.batches, ignore_errors=True)
    forget_all(study)
    return front


def run(context: Context, account: Account, tracking: Tracking, console: Console) -> None:
    """All trainings: the tutor, the shared student, candidates, finalists and references, candidates for what is left."""
    calibrate_target(context, account, console)
    plan, pace = planned(context, account, console)
    shared_seconds = 0.0 if has_shared(context.study, plan) else plan.shared_seconds
    alone = shared_seconds + (0.0 if has_tutor(context.study) else plan.tutor_seconds)
    forecast = Forecast(account=account, console=console, alone=alone, cores=plan.alone_cores)
    console.print(describe_plan(plan, context.study.config, account, forecast.to_go()))
    if plan.tutor_steps:
        with progress(console, "tutor", in_words) as tick:
            prepare_tutor(context, account, tick, steps=plan.tutor_steps, seconds=plan.tutor_seconds, cores=plan.alone_cores)
        forecast.after("the tutor", shared_seconds)
    if plan.shared_steps:
        with progress(console, "shared student", in_words) as tick:
            prepare_shared(context, plan, account, tick)
        forecast.after("the shared student")
    admission = Admission(context, plan, pace, account)
    with progress(console, "search", in_words) as tick:
        exploration = Exploration(admission, tracking, tick)
        exploration.run()
    forecast.after("the candidates")
    check_any_complete(context.study)
    choice = Choice(context=context, plan=plan, pace=admission.final_pace, account=account)
    with progress(console, "finalists and references", in_words) as tick:
        finalise(choice, tick)
    forecast.after("finalists and references")
    if (more := account.left - choice.tests()) > 0:
        with progress(console, "candidates for what is left", in_words) as exploration.tick:
            exploration.run(more=more)
    with progress(console, "further members", in_words) as tick:
        train_finals(choice, choice.as_trained(), tick)


def check_any_final(study: Study) -> None:
    """Raises ValueError, with a reason, when no finalist was trained."""
    finalists = [final for final in read_finals(study) if final.role == "finalist"]
    if not any(final.scores for final in finalists):
        reason = next((f"{final.name}: {final.error}" for final in finalists if final.error), "the budget had no room")
        raise ValueError(
            f"no finalist of {len(finalists)} was trained; {reason}; the front of the candidates is in {study.folder}, and "
            f"`srlnas search --resume {study.config.name}` tries again"
        )


def check_any_complete(study: Study) -> None:
    """Raises ValueError, with a reason, when no candidate finished."""
    candidates = study.candidates()
    if not any(candidate.state == "complete" for candidate in candidates):
        reason = next(
            (f"{candidate.state}: {candidate.error}" for candidate in candidates if candidate.error), "none was affordable"
        )
        raise ValueError(f"no candidate of {len(candidates)} finished; the first was {reason}")
