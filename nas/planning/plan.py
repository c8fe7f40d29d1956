"""What a budget buys: how it is split into a shared student, candidates, finalists and references, and how long each is trained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas.planning.pace import Pace, Sizes
from nas.study.budget import Budget, in_words
from nas.study.config import StudyConfig
from nas.worker.task import Lengths, rung_lengths
from trainers.learning.sandwich import distilled_steps

TUTOR_SHARE = 0.12  # of what is left, at most, for the tuned teacher that students ask
STANDING_SHARE = 0.2  # likewise, where the tutor is made as long as finals, so that it is the teacher that they are compared with
FEWEST_TUTOR, MOST_TUTOR = 40, 1200  # steps
START_SECONDS = 6.0  # of a worker, which loads torch and opens a study
SEARCH_SHARE = 0.45  # of the budget goes to candidates, the rest to finalists and references
FEWEST_STEPS, MOST_STEPS = 20, 5000
MOST_FULL_STEPS = 20_000
SAFETY = 1.15  # a training is begun only where this much of its predicted time is left
FINAL_SAFETY = 1.05  # of finalists and references, whose time is known better: candidates have corrected the pace
SHORTEST_RUNG, MOST_RUNGS = 50, 3  # steps: shorter ones tell nothing of keywords
WORTH_STOPPING = 0.5  # of a candidate's cost without rungs, at most: those that are stopped are sometimes the wrong ones
FEWEST_MEMBERS = 5  # of a front, that are assured before references
REFERENCE_SHARE = 0.25  # of what is left for the end of a search, at most, for one reference
SPARED = 3  # a candidate that begins with a shared student's weights is as good after a third of the steps of fine-tuning
SHARED_LENGTH = 12  # steps of the shared student over those of a candidate that begins with its weights
MOST_CANDIDATES = 100_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """distill_steps, finetune_steps: of the last rung. candidates: expected, most of them stopped early. finalists: expected.
    shared_steps: of the shared student, 0 without one; tutor_steps: of the tutor, likewise. shared_seconds, tutor_seconds,
    search_seconds, final_seconds: resource-seconds for them, for candidates, and for finalists and references. spared: those that a
    shared student spares candidates beyond its own; below zero where it costs more."""

    distill_steps: int
    finetune_steps: int
    rungs: int
    reduction: int
    candidates: int
    finalists: int
    shared_steps: int
    shared_seconds: float
    search_seconds: float
    final_seconds: float
    tutor_steps: int = 0
    tutor_seconds: float = 0.0
    spared: float = 0.0
    alone_cores: float = 0.0  # that the tutor and the shared student hold, 0: a worker's

    @property
    def full_steps(self) -> int:
        """The fewest of finalists and references: a candidate's, or what it would need without a shared student's weights."""
        return self.finetune_steps * (SPARED if self.shared_steps else 1)

    def lengths(self) -> Lengths:
        return rung_lengths(self.distill_steps, self.finetune_steps, self.rungs, self.reduction)


def wanted_candidates(seconds: float) -> int:
    """How many candidates a search should see before its trainings grow longer: 16 in a few minutes, 200 in days."""
    return min(200, max(16, round(16 * math.sqrt(seconds / 600))))


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Predicted resource-seconds by `steps`, those of a candidate's last rung where the configuration names none. warm: candidates
    begin with a shared student's weights and are not distilled. tutor_steps: a tutor of so many steps stands for the teacher."""

    config: StudyConfig
    resources: float
    pace: Pace
    sizes: Sizes
    warm: bool
    tutor_steps: int = 0

    def lengths(self, steps: int) -> Lengths:
        config = self.config
        if self.warm:
            distill, shortest = 0, SHORTEST_RUNG // SPARED
            finetune = config.finetune_steps or max(shortest, steps // SPARED)
        else:
            distill, finetune, shortest = *self.named(steps), SHORTEST_RUNG
        if config.rungs:
            return rung_lengths(distill, finetune, config.rungs, config.reduction)
        whole, *cut = [rung_lengths(distill, finetune, rungs, config.reduction) for rungs in range(1, MOST_RUNGS + 1)]
        telling = [lengths for lengths in cut if min(steps for steps in lengths[0] if steps) >= shortest]
        cheapest = min(telling, key=self.expected, default=whole)
        return cheapest if self.expected(cheapest) <= WORTH_STOPPING * self.expected(whole) else whole

    def named(self, steps: int) -> tuple[int, int]:
        """Of distillation and of fine-tuning: those of the configuration, or `steps`. What is fitted to its teacher in closed form
        needs no steps of distillation."""
        distill, tune = self.config.distill_steps, self.config.finetune_steps or steps
        if distill is None:
            distill = 0 if self.config.recipe.fit_windows else steps
        return distill, tune

    def expected(self, lengths: Lengths) -> float:
        """Resource-seconds of a typical candidate on average: most are stopped early."""
        return self.resources * self.pace.expected(self.sizes.typical, lengths, self.config.reduction)

    def shared_steps(self, steps: int) -> int:
        return SHARED_LENGTH * self.lengths(steps)[-1][1] if self.warm else 0

    def shared(self, steps: int) -> float:
        """Of the shared student, two updates a step of fine-tuning and one a step of distillation; its file may also be there."""
        is_there = named_file(self.config.warm_start) is not None
        updates = 2 * self.shared_steps(steps) + distilled_steps(self.shared_steps(steps))
        return 0.0 if is_there else self.resources * self.pace.alone * self.pace.updates(self.sizes.sandwich, 3, updates)

    def candidate(self, steps: int) -> float:
        return self.expected(self.lengths(steps))

    def finals(self, steps: int, finalists: int, left: float = math.inf) -> float:
        """Of finalists at a candidate's length, and of references, one of them a finalist from scratch; none of these takes more
        than its share of what is `left` for all."""
        lengths, pace = self.named(steps), self.pace
        *taught, baseline = self.sizes.references[self.tutor_steps >= lengths[1] :]
        references = [pace.seconds(macs, *lengths) for macs in taught]
        references += [pace.seconds(macs, *lengths, is_random=True) for macs in (baseline, self.sizes.typical)]
        own = [min(seconds, REFERENCE_SHARE * left / self.resources) for seconds in references]
        return SAFETY * self.resources * (finalists * pace.seconds(self.sizes.typical, *lengths) + sum(own))

    def least(self, steps: int) -> float:
        """Of a search that trains one candidate, which is the smallest, and tests it; its references are as short as that lets."""
        smallest = self.pace.rungs(self.sizes.smallest, self.lengths(steps)) + self.pace.tested(self.sizes.smallest)
        return (SAFETY * self.resources * smallest + self.shared(steps)) / SEARCH_SHARE

    def longest(self, left: float) -> int:
        """Steps that let a search with so much left see enough candidates and train as many finalists as a front should have."""
        search = left * SEARCH_SHARE
        wanted = min(self.config.candidates or math.inf, wanted_candidates(search))
        finalists, end = min(self.config.finalists, FEWEST_MEMBERS), left - search
        fewest = check_rungs(self.config)
        return max(
            (
                steps
                for steps in steps_between(fewest, MOST_STEPS)
                if self.shared(steps) + self.candidate(steps) * wanted <= search and self.finals(steps, finalists, end) <= end
            ),
            default=fewest,
        )


def make_plan(config: StudyConfig, budget: Budget, spent: float, pace: Pace, sizes: Sizes) -> Plan:
    """Splits what is left of the budget, and trains candidates as long as lets the search see enough of them and some finalists.

    Steps and rungs that the configuration names stay. Raises ValueError, saying what it would take, when the budget buys not one
    candidate, or not the rungs.
    """
    left, resources = max(0.0, budget.seconds - spent), config.held(budget)
    lengths = tutoring(config, resources, pace, sizes)
    short = max((steps for steps in lengths if lengths[steps] <= TUTOR_SHARE * left), default=0)
    plan = _plan(config, budget, spent, pace, sizes, (short, lengths.get(short, 0.0)))
    if not 0 < short < plan.full_steps or plan.candidates == 1:
        return plan
    standing = min((steps for steps in lengths if steps >= plan.full_steps), default=0)
    seconds = lengths.get(standing, math.inf)
    return _plan(config, budget, spent, pace, sizes, (standing, seconds)) if seconds <= STANDING_SHARE * left else plan


def _plan(config: StudyConfig, budget: Budget, spent: float, pace: Pace, sizes: Sizes, tutor: tuple[int, float]) -> Plan:
    """With a tutor of so many steps and resource-seconds."""
    tutor_steps, tutor_seconds = tutor
    left = max(0.0, budget.seconds - spent) - tutor_seconds
    costs = Costs(config=config, resources=config.held(budget), pace=pace, sizes=sizes, warm=False, tutor_steps=tutor_steps)
    sparing = spared(costs, left)
    costs = replace(costs, warm=sparing > 0 if config.warm_start == "auto" else config.warm_start != "off")
    least = costs.least(check_rungs(config))
    if least > left:
        raise ValueError(
            f"the budget of {budget} buys not one candidate here: {in_words(spent)} went into preparation and "
            f"{in_words(least)} more are needed; give at least {math.ceil((spent + least) / 60)}{budget.resource}-minutes, "
            "or fewer steps or rungs"
        )
    search, steps = left * SEARCH_SHARE, costs.longest(left)
    distill_steps, finetune_steps = costs.lengths(steps)[-1]
    finalists = [n for n in range(1, config.finalists + 1) if costs.finals(steps, n, left - search) <= left - search]
    return Plan(
        distill_steps=distill_steps,
        finetune_steps=finetune_steps,
        rungs=len(costs.lengths(steps)),
        reduction=config.reduction,
        candidates=max(1, min(config.candidates or MOST_CANDIDATES, number_of_candidates(costs, left, steps))),
        finalists=max(finalists, default=0),
        shared_steps=costs.shared_steps(steps),
        shared_seconds=costs.shared(steps),
        search_seconds=search - costs.shared(steps),
        final_seconds=left - search,
        tutor_steps=tutor_steps,
        tutor_seconds=tutor_seconds,
        spared=sparing,
        alone_cores=pace.cores,
    )


def tutoring(config: StudyConfig, resources: float, pace: Pace, sizes: Sizes) -> dict[int, float]:
    """Resource-seconds of a tutor by the steps that it may have; none where the recipe asks none."""
    if not config.recipe.tutor_weight:
        return {}
    most = round(config.full_length * config.finetune_steps) if config.finetune_steps else MOST_TUTOR
    lengths = steps_between(min(FEWEST_TUTOR, most), min(most, MOST_TUTOR))
    whole = replace(pace, drawn=None)
    cores = pace.cores or resources  # all that it holds wait for its start, and for the batches that it is the first to hear
    tuned = {steps: whole.rung(sizes.references[0], [(0, steps)], 0) for steps in lengths}
    return {steps: resources * pace.alone * tuned[steps] + cores * (pace.making(steps) + START_SECONDS) for steps in lengths}


def number_of_candidates(costs: Costs, left: float, steps: int) -> int:
    return int((left * SEARCH_SHARE - costs.shared(steps)) / costs.candidate(steps))


def spared(cold: Costs, left: float) -> float:
    """Resource-seconds that a shared student leaves for candidates beyond its cost: they are tuned for a shorter time and not
    distilled. It spares nothing where they are fitted to their teacher, which is as good a start."""
    steps, warm = cold.longest(left), replace(cold, warm=True)
    if cold.config.recipe.fit_windows:
        return -warm.shared(steps)
    count = min(cold.config.candidates or MOST_CANDIDATES, number_of_candidates(cold, left, steps))
    return count * (cold.candidate(steps) - warm.candidate(steps)) - warm.shared(steps)


def named_file(warm_start: str) -> Path | None:
    """Weights that a configuration names instead of on, off or auto."""
    return None if warm_start in ("on", "off", "auto") else Path(warm_start)


def check_rungs(config: StudyConfig) -> int:
    """The fewest steps of the last rung. Raises ValueError where steps that are named have no room for the rungs that are."""
    factor: int = config.reduction ** ((config.rungs or 1) - 1)
    named = [steps for steps in (config.distill_steps, config.finetune_steps) if steps]
    if named and min(named) < factor:
        raise ValueError(
            f"{config.rungs} rungs, each {config.reduction} times as long as the one before, do not fit into {min(named)} steps: "
            f"the last needs at least {factor}; give more steps or fewer rungs"
        )
    if not named and FEWEST_STEPS * factor > MOST_STEPS:
        raise ValueError(
            f"{config.rungs} rungs, each {config.reduction} times as long as the one before, end at {FEWEST_STEPS * factor:,} "
            f"steps or more, and a candidate trains at most {MOST_STEPS:,}; give fewer rungs or a smaller reduction"
        )
    return FEWEST_STEPS * factor


def steps_between(fewest: int, most: int) -> Sequence[int]:
    """Round numbers of steps, each some 10 % above the one before, so that similar budgets train equally long."""
    steps = {fewest, most}
    value = float(fewest)
    while value < most:
        digits = 10 ** max(0, int(math.log10(value)) - 1)
        steps.add(min(most, round(value / digits) * digits))
        value *= 1.1
    return sorted(steps)


def full_steps(seconds: float, cost: Callable[[int], float], plan: Plan, full_length: float) -> int:
    """Steps of each finalist and reference, whose resource-seconds together are the `cost`, that fit into those left; `full_length`
    times a candidate's at most; 0 when not even a candidate's length fits. The final length is never below a candidate's."""
    most = max(plan.full_steps, min(MOST_FULL_STEPS, round(full_length * plan.full_steps)))
    fitting = [steps for steps in steps_between(plan.full_steps, most) if FINAL_SAFETY * cost(steps) <= seconds]
    return max(fitting, default=0)
