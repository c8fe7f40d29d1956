"""What a budget buys for a model that is tuned on: a tutor, and as many steps as are left."""

from dataclasses import asdict, dataclass

from nas.planning.pace import Pace, probe, sizes, training_macs, with_cores
from nas.planning.plan import FINAL_SAFETY, MOST_FULL_STEPS, START_SECONDS, TUTOR_SHARE, steps_between, tutoring
from nas.planning.planning import threads
from nas.planning.preparation import PROBE, driver_resources
from nas.study.budget import Account, in_words
from nas.study.folder import PLAN_FILE
from nas.worker import cluster
from nas.worker.context import Context, space_of
from search_spaces.architecture import Architecture

FEWEST_STEPS = 10  # fewer change nothing


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """steps: of both tasks. tutor_steps: 0 without a tutor of its own. seconds, tutor_seconds: resource-seconds. cores: that each
    holds, 0: a worker's."""

    steps: int
    seconds: float
    tutor_steps: int
    tutor_seconds: float
    cores: float


def planned_tuning(context: Context, architecture: Architecture, account: Account, *, has_tutor: bool) -> TuningPlan:
    """The plan that the study began with, or a new one from a measured probe. has_tutor: there is one already.

    Raises ValueError where the budget buys too little."""
    study, config = context.study, context.study.config
    if recorded := study.read_json(PLAN_FILE):
        return TuningPlan(**recorded)
    space, on_driver = space_of(context), driver_resources(account.budget)
    with study.ledger.timing(PROBE, on_driver), threads(config.cpus):
        pace = probe(context, space)
        if account.budget.resource == "cpu":
            pace = with_cores(context, pace, min(cluster.cores_of_a_node(config), round(on_driver)), architecture)
    tutors = {} if has_tutor else tutoring(config, account.resources, pace, sizes(context, space))
    plan = plan_tuning(pace, training_macs(context, architecture), account, tutors, config.finetune_steps)
    study.write_json(PLAN_FILE, asdict(plan))
    return plan


def plan_tuning(pace: Pace, macs: float, account: Account, tutors: dict[int, float], named: int | None) -> TuningPlan:
    """tutors: resource-seconds by the steps that one may have. named: steps that the user named."""
    resources, cores = account.resources, pace.cores or account.resources
    tutor = max((steps for steps in tutors if tutors[steps] <= TUTOR_SHARE * account.left), default=0)

    def seconds(steps: int) -> float:
        return resources * pace.alone * pace.seconds(macs, 0, steps) + cores * (pace.making(steps) + START_SECONDS)

    left = account.left - tutors.get(tutor, 0.0) - 2 * resources * pace.tested(macs)
    asked = [named] if named else steps_between(FEWEST_STEPS, MOST_FULL_STEPS)
    fitting = [steps for steps in asked if FINAL_SAFETY * seconds(steps) <= left]
    if not fitting:
        needed = account.budget.seconds - left + FINAL_SAFETY * seconds(asked[0])
        raise ValueError(
            f"the budget of {account.budget} does not buy {asked[0]} steps of tuning here: {in_words(account.ledger.spent)} went "
            f"into preparation; give about {needed / 60 + 1:.0f}{account.budget.resource}-minutes"
        )
    return TuningPlan(
        steps=max(fitting), seconds=seconds(max(fitting)), tutor_steps=tutor, tutor_seconds=tutors.get(tutor, 0.0), cores=pace.cores
    )
