"""The main job: plan, calibrate, prepare, explore, finalise, report. Each step is in its own module; this is their order."""

import dataclasses
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deploy.measure import device_facts
from deploy.target import load_target
from nas.device.known import is_of_this_machine, is_prepared, known_profile, prepare_device, study_profile
from nas.report.front import build_front, write_report
from nas.report.publish import log_finals, publish
from nas.stages.explore import Exploration
from nas.stages.finalise import Finals
from nas.stages.pace import Pace, measured_gpu_share, probe, sizes
from nas.stages.plan import SEARCH_SHARE, Plan, check_rungs, make_plan, named_file, resources_of
from nas.stages.shared import prepare_shared
from nas.study.budget import Budget, in_words, parse_budget
from nas.study.config import StudyConfig
from nas.study.folder import Study
from nas.study.progress import progress
from nas.tracking.connection import connect as connect_mlflow
from nas.tracking.connection import default_tracking_uri
from nas.tracking.mirror import Tracking, open_tracking
from nas.worker import cluster
from nas.worker.context import Context, cost_of, open_context, space_of
from search_spaces.catalog import CATALOG, find_space
from trainers.learning.elastic import check_shared
from trainers.learning.precision import pick_device
from trainers.teacher.teacher import load_teacher

PLAN_FILE, PREPARED_FILE = "plan.json", "prepared.json"
BEFORE_SEARCH = CALIBRATION, PREPARATION, PROBE = "calibration", "preparation", "probe"  # purposes in the ledger


def search(study: Study, console: Console, *, ray_address: str | None = None) -> dict[str, Any]:
    """Runs or continues a study; returns its front. Ctrl-C writes the front so far and passes on.

    Raises ValueError for what the user can mend, before anything is spent where that can be known.
    """
    config, budget = study.config, parse_budget(study.config.budget)
    with study.locked():
        cluster.connect(ray_address)
        cluster.workers(config, budget)
        tracking = open_tracking(config.tracking_uri or default_tracking_uri(), config.name, tags={"budget": config.budget})
        status = "FAILED"
        try:
            context = sized(prepare(study, budget, console), budget)
            study, config = context.study, context.study.config
            workers = cluster.workers(config, budget)
            calibrate_target(context, budget, console)
            plan, pace = planned(context, budget, console)
            console.print(describe_plan(plan, budget, study.ledger.spent, workers, resources_of(config, budget)))
            if plan.shared_steps:
                with progress(console, "shared student", in_words) as tick:
                    prepare_shared(context, plan, resources_of(config, budget), tick)
            with progress(console, "search", in_words) as tick:
                exploration = Exploration(context, plan, pace, budget, tracking, tick)
                exploration.run(workers)
            check_any_complete(study)
            with progress(console, "finalists and references", in_words) as tick:
                Finals(context, plan, exploration.final_pace, budget, workers, tick).run()
            fill_up(exploration, budget, workers, console)
            front = report(context, tracking)
            status = "FINISHED"
            shutil.rmtree(context.batches, ignore_errors=True)
        except KeyboardInterrupt:
            status = "KILLED"
            write_report(study, build_front(study))
            raise
        finally:
            with suppress(Exception):  # a server that went away must not hide what ended the search
                tracking.finish(status)  # type: ignore[arg-type]
    return front


def fill_up(exploration: Exploration, budget: Budget, workers: int, console: Console) -> None:
    """Spends on further candidates what finalists and references left over."""
    left = budget.seconds - exploration.study.ledger.spent
    if left <= 0:
        return
    with progress(console, "candidates for what is left", in_words) as exploration.tick:
        exploration.run(workers, more=left)


def check_any_complete(study: Study) -> None:
    """Raises ValueError, with a reason, when no candidate finished."""
    candidates = study.candidates()
    if not any(candidate.state == "complete" for candidate in candidates):
        reason = next(
            (f"{candidate.state}: {candidate.error}" for candidate in candidates if candidate.error), "none was affordable"
        )
        raise ValueError(f"no candidate of {len(candidates)} finished; the first was {reason}")


def prepare(study: Study, budget: Budget, console: Console) -> Context:
    """Decodes the corpus, computes the teacher's states; charged, nothing done twice."""
    on_driver = driver_resources(budget)
    with study.ledger.timing(PREPARATION, on_driver), progress(console, "speech and teacher states") as tick:
        context = open_context(study, tick)
    stated = "cached" if context.targets.states is not None else "computed in every batch (too large for the free disk)"
    console.print(
        f"corpus: {len(context.corpus):,} clips, {len(context.corpus.keyword_labels)} keywords; teacher {context.teacher.name}: "
        f"states of {len(context.targets.rows):,} windows {stated}"
    )
    if context.corpus.skipped:
        clip, reason = context.corpus.skipped[0]
        console.print(f"{len(context.corpus.skipped)} clips skipped, the first {clip}: {reason}")
    study.write_json(PREPARED_FILE, facts(context))
    return context


def sized(context: Context, budget: Budget) -> Context:
    """With the share of a GPU that a worker takes, measured on one where the user named none; charged."""
    if context.study.config.gpus or budget.resource == "cpu":
        return context
    with context.study.ledger.timing(PROBE, 1.0):
        share = cluster.on_a_gpu(measured_gpu_share, str(context.study.folder.resolve()))
    return dataclasses.replace(context, study=context.study.changed(gpus=share))


def calibrate_target(context: Context, budget: Budget, console: Console) -> None:
    """Finds what the target needs for a student, in its profile, or measured now, and charged; says which."""
    study = context.study
    if not is_prepared(study) or not is_of_this_machine(study_profile(study)):  # a study may go on elsewhere
        with study.ledger.timing(CALIBRATION, 1.0 if budget.resource == "cpu" else 0.0), progress(console, "calibration") as tick:
            prepare_device(study, context.teacher, tick)
    kind, target = context.device.latency_model.kind, context.target
    console.print(f"latency and memory on {target.name}: {kind}, {target.threads} thread, {target.precision}")
    profile = study_profile(study)
    if profile.disturbances:
        console.print(profile.disturbances)
    measured = {
        "latency_kind": kind,
        "disturbances": profile.disturbances,
        "machine": f"{described(profile.device)}{', scaled by the data sheet' if kind == 'data sheet' else ''}",
    }
    study.write_json(PREPARED_FILE, {**study.read_json(PREPARED_FILE), **measured})


def facts(context: Context) -> dict[str, Any]:
    """What a report says of the study beside its results."""
    return {
        "synthetic": context.corpus.synthetic,
        "teacher": context.teacher.name,
        "teacher_params": cost_of(context, context.teacher.architecture, context.teacher.encoder.geometry).params,
        "target": dataclasses.asdict(context.target),
        "machine": described(device_facts()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def described(device: Mapping[str, Any]) -> str:
    return f"{device['cpu']}, {device['cores']} cores, onnxruntime {device['onnxruntime']}"


def driver_resources(budget: Budget) -> float:
    """What a step in the driver holds of the budget's resource: torch's threads, or the GPU that it computes on."""
    return float(torch.get_num_threads()) if budget.resource == "cpu" else float(pick_device().type == "cuda")


def planned(context: Context, budget: Budget, console: Console) -> tuple[Plan, Pace]:
    """The plan that a study began with (with its share of a budget that was raised since), or a new one from a measured probe."""
    study, config = context.study, context.study.config
    recorded = study.read_json(PLAN_FILE)
    if recorded:
        plan, spent = Plan(**recorded["plan"]), study.ledger.by_purpose()
        left = budget.seconds - sum(seconds for what, seconds in spent.items() if what in BEFORE_SEARCH)
        search = left * SEARCH_SHARE - plan.shared_seconds
        plan = dataclasses.replace(plan, search_seconds=search, final_seconds=left * (1 - SEARCH_SHARE))
        return plan, Pace(**recorded["pace"])
    space = space_of(context)
    with study.ledger.timing(PROBE, driver_resources(budget)), progress(console, "timing a few updates"), threads(config.cpus):
        pace = probe(context, space)
    plan = make_plan(config, budget, study.ledger.spent, pace, sizes(context, space))
    study.write_json(PLAN_FILE, {"plan": dataclasses.asdict(plan), "pace": dataclasses.asdict(pace)})
    return plan, pace


@contextmanager
def threads(cpus: float) -> Iterator[None]:
    """A worker's number of threads, so that the probe times what a worker will do."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, round(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_plan(plan: Plan, budget: Budget, spent: float, workers: int, resources: float) -> str:
    lengths = plan.lengths()
    rungs = " -> ".join(f"{distill} + 2 x {finetune}" for distill, finetune in lengths)
    share = f", of which about one in {plan.reduction} goes on to the next" if len(lengths) > 1 else ""
    wall = plan.shared_seconds / resources + (plan.search_seconds + plan.final_seconds) / (workers * resources)
    shared = f"a shared student of {plan.shared_steps:,} steps in {in_words(plan.shared_seconds)}" if plan.shared_steps else ""
    return (
        f"plan: {budget}, {in_words(spent)} spent so far; {workers} trainings at once, about {in_words(wall)} to go\n"
        f"{f'  {shared}{chr(10)}' if shared else ''}"
        f"  about {plan.candidates} candidates in {in_words(plan.search_seconds)}; updates of distillation and of both tasks: "
        f"{rungs}{share}\n"
        f"  then about {plan.finalists} finalists and 4 references in {in_words(plan.final_seconds)}, as long as that allows"
    )


def report(context: Context, tracking: Tracking) -> dict[str, Any]:
    """Writes the front to the study folder and to MLflow, which then has all of the study, also what it missed before.

    Raises ValueError when MLflow does not take it: nothing is lost then, and resuming the study logs it again.
    """
    study = context.study
    write_report(study, build_front(study))
    try:
        for candidate in study.candidates():
            tracking.log_candidate(candidate)
        front = build_front(study, log_finals(study, tracking))
        publish(context, tracking, front, write_report(study, front))
    except Exception as error:  # MLflow's and its transports' many kinds
        raise ValueError(
            f"MLflow did not take the results ({str(error).splitlines()[0]}); the front is in {study.folder}, and "
            f"`srlnas search --resume {study.config.name}` logs it again"
        ) from error
    return front


def check_target(config: StudyConfig) -> None:
    """Raises ValueError where the target's profile is of no use to this search."""
    known_profile(load_target(config.target), load_teacher(config.teacher).geometry, config.recipe.heads)


def check_config(config: StudyConfig, ray_address: str | None = None) -> None:
    """Raises ValueError, before a study folder is made, for what can be seen wrong without reading the corpus."""
    budget = parse_budget(config.budget)
    check_rungs(config)
    if config.space not in CATALOG:
        raise ValueError(f"there is no space {config.space!r}; known are {', '.join(sorted(CATALOG))}")
    for path in (*config.data, config.trials, config.noise):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    load_target(config.target)
    teacher = load_teacher(config.teacher)
    if (shared := named_file(config.warm_start)) is not None:
        if not shared.is_file():
            raise ValueError(f"warm_start is {config.warm_start!r}: neither on, off, auto nor a file")
        check_shared(shared, find_space(config.space, teacher.architecture, teacher.geometry), teacher, config.recipe)
    connect_mlflow(config.tracking_uri or default_tracking_uri())
    cluster.connect(ray_address)
    cluster.workers(config, budget)
