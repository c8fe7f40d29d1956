"""From a budget to a plan: a few updates timed on this machine, what they let the budget buy, and how that is told."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nas.planning.pace import Pace, probe, sizes, with_cores
from nas.planning.plan import FEWEST_MEMBERS, SEARCH_SHARE, Plan, make_plan
from nas.planning.preparation import BEFORE_SEARCH, PROBE, driver_resources
from nas.study.budget import Account, in_words
from nas.study.config import Sampler, StudyConfig
from nas.study.folder import PLAN_FILE
from nas.study.progress import progress
from nas.worker import cluster
from nas.worker.context import Context, space_of
from search_spaces.kinds import made_of

BEST_SAMPLER: Sampler = "gp"  # of those that tests/benchmarks replays


def planned(context: Context, account: Account, console: Console) -> tuple[Plan, Pace]:
    """The plan that a study began with (with its share of a budget that was raised since), or a new one from a measured probe."""
    study, config = context.study, context.study.config
    recorded = study.read_json(PLAN_FILE)
    if recorded:
        plan, pace = _read(study.folder / PLAN_FILE, recorded)
        left = account.budget.seconds - sum(map(account.spent_on, BEFORE_SEARCH)) - plan.tutor_seconds
        search = left * SEARCH_SHARE - plan.shared_seconds
        more = max(1.0, search / plan.search_seconds) if plan.search_seconds > 0 else 1.0
        count = min(round(more * plan.candidates), config.candidates or sys.maxsize)
        plan = dataclasses.replace(plan, candidates=count, search_seconds=search, final_seconds=left * (1 - SEARCH_SHARE))
        return plan, pace
    space, on_driver = space_of(context), driver_resources(account.budget)
    with study.ledger.timing(PROBE, on_driver), progress(console, "timing a few updates"), threads(config.cpus):
        pace = probe(context, space)
        if account.budget.resource == "cpu" and (config.recipe.tutor_weight or config.warm_start != "off"):
            pace = with_cores(context, pace, min(cluster.cores_of_a_node(config), round(on_driver)))
    plan = make_plan(config, account.budget, study.ledger.spent, pace, sizes(context, space))
    study.write_json(PLAN_FILE, {"plan": dataclasses.asdict(plan), "pace": dataclasses.asdict(pace)})
    return plan, pace


def _read(path: Path, recorded: Any) -> tuple[Plan, Pace]:
    """Raises ValueError where it is of another version, or no plan."""
    try:
        return made_of(Plan, recorded["plan"]), made_of(Pace, recorded["pace"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a plan of this version ({error}): begin a new study, or go on with the older srlnas"
        ) from None


@contextmanager
def threads(cpus: float) -> Iterator[None]:
    """A worker's number of threads, so that the probe times what a worker will do."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, round(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_plan(plan: Plan, config: StudyConfig, account: Account, wall: float) -> str:
    """wall: seconds to go."""
    lengths, workers = plan.lengths(), account.workers
    rungs = " -> ".join(f"{distill} + 2 x {finetune}" if distill else f"2 x {finetune}" for distill, finetune in lengths)
    updates = "updates of distillation and of both tasks" if plan.distill_steps else "updates of both tasks"
    share = f", of which about one in {plan.reduction} goes on to the next" if len(lengths) > 1 else ""
    tutor = (
        f"  a tutor, the teacher tuned for {plan.tutor_steps:,} steps, in {in_words(plan.tutor_seconds)}\n"
        if plan.tutor_steps
        else ""
    )
    made = f"of {plan.shared_steps:,} steps in {in_words(plan.shared_seconds)}" if plan.shared_seconds else "that was made before"
    shared = f"  a shared student {made}\n" if plan.shared_steps else ""
    return (
        f"plan: {account.budget}, {in_words(account.ledger.spent)} spent so far; {workers} trainings at once, about "
        f"{in_words(wall)} to go\n{tutor}{shared}"
        f"  about {plan.candidates} candidates in {in_words(plan.search_seconds)}; {updates}: "
        f"{rungs}{share}\n"
        f"  then {_end(plan, config)}\n"
        f"  {_why(plan, config)}"
    )


def _why(plan: Plan, config: StudyConfig) -> str:
    """What was chosen for this budget."""
    proposals = f"{config.sampler} proposes"
    if config.sampler == BEST_SAMPLER:
        proposals += ", which found most in replayed searches"
    if config.warm_start != "auto":
        return proposals
    amount = in_words(abs(plan.spared))
    if plan.shared_steps:
        return f"{proposals}; a shared student spares candidates {amount} more than it takes"
    return f"{proposals}; no shared student, which would take {amount} more than it spares"


def _end(plan: Plan, config: StudyConfig) -> str:
    enough, amount = min(FEWEST_MEMBERS, plan.candidates), in_words(plan.final_seconds)
    members = f"at least {enough} members, or all that nothing else beats"
    if plan.candidates < FEWEST_MEMBERS:
        members = f"at most {plan.candidates} members"
        if plan.candidates != config.candidates:
            members += f", since the budget is too small for {FEWEST_MEMBERS}"
    if plan.finalists < min(enough, config.finalists):
        return f"4 references in {amount}, and candidates as they were trained: {members}"
    return f"about {plan.finalists} finalists and 4 references in {amount}, as long as that allows: {members}"
