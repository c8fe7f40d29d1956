"""What a budget buys: how long one training takes, and how the budget is split into candidates, finalists and references."""

import math
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from nas.budget import Budget, in_words
from nas.config import StudyConfig
from nas.evaluate import Context, Task, build_student, cost_of, train
from search_spaces.architecture import Architecture, Baseline, Network
from search_spaces.catalog import find_space, paper_student
from search_spaces.space import RandomChooser, SearchSpace

SEARCH_SHARE = 0.45  # of the budget goes to candidates, the rest to finalists and references
FEWEST_STEPS, MOST_STEPS = 20, 5000
MOST_FULL_STEPS = 20_000
SAFETY = 1.15  # a training is begun only where this much of its predicted time is left
BASE_SECONDS = 10.0  # of a training beside its updates: building, scoring's set-up, saving; corrected by what is seen
DEPTHWISE = 6.0  # a MAC of BC-ResNet takes as long as six of a student (CPU, bf16): its convolutions move more than they multiply
TYPICAL_DRAWS = 64
PROBE_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Predicted wall seconds of one training on one worker: base + (per_clip + per_mac x MACs) x clips, times `factor`.

    A clip that is trained on counts once, a clip that is scored a third: it needs no backward pass.
    """

    per_clip: float
    per_mac: float
    scored: int
    batch: int
    factor: float = 1.0

    def seconds(self, macs: float, distill_steps: int, finetune_steps: int) -> float:
        clips = (distill_steps + 2 * finetune_steps) * self.batch + self.scored / 3
        return self.factor * (BASE_SECONDS + (self.per_clip + self.per_mac * macs) * clips)

    def corrected(self, seen: Iterable[tuple[float, float]]) -> "Pace":
        """With the median of seen over predicted seconds, pairs (seen, predicted by this pace without its factor)."""
        ratios = [actual / predicted for actual, predicted in seen]
        factor = statistics.median(ratios) if ratios else self.factor
        return Pace(per_clip=self.per_clip, per_mac=self.per_mac, scored=self.scored, batch=self.batch, factor=factor)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """search_seconds, final_seconds: resource-seconds for candidates, and for finalists and references. candidates: expected."""

    distill_steps: int
    finetune_steps: int
    candidates: int
    search_seconds: float
    final_seconds: float


def probe(context: Context, space: SearchSpace) -> Pace:
    """Times a few updates of the smallest student, the paper's student and the teacher's size on this machine."""
    teacher = context.teacher
    rows, times = [], []
    for architecture in (space.smallest(teacher.geometry), paper_student(teacher.architecture), space.largest(teacher.geometry)):
        student = build_student(context, architecture, "random", distilled=True)
        for steps in (1, PROBE_STEPS):  # the first compiles kernels and fills caches
            task = _probe_task(steps)
            started = time.monotonic()
            train(context, student, task)
        seconds = (time.monotonic() - started) / (3 * PROBE_STEPS * context.study.config.recipe.batch)
        rows.append([1.0, cost_of(context, architecture).total_macs])
        times.append(seconds)
    scale = np.array(times)[:, None]
    (per_clip, per_mac), _ = nnls(np.array(rows) / scale, np.ones(len(times)))  # relative errors
    splits = [context.corpus.rows("val", with_keyword=True), context.trials["val"].enrol, context.trials["val"].test]
    scored = len(np.unique(np.concatenate(splits)))
    return Pace(per_clip=float(per_clip), per_mac=float(per_mac), scored=scored, batch=context.study.config.recipe.batch)


def _probe_task(steps: int) -> Task:
    return Task(study="", name="", architecture="", start="random", distill_steps=steps, finetune_steps=steps, splits=(), seed=0)


def typical_macs(context: Context, space: SearchSpace, seed: int) -> float:
    """Mean MACs of random members of the space."""
    chooser = RandomChooser(random.Random(seed))
    draws = [space.architecture(chooser) for _ in range(TYPICAL_DRAWS)]
    return statistics.fmean(cost_of(context, architecture).total_macs for architecture in draws)


def wanted_candidates(seconds: float) -> int:
    """How many candidates a search should see before its trainings grow longer: 16 in a few minutes, 200 in days."""
    return min(200, max(16, round(16 * math.sqrt(seconds / 600))))


def make_plan(config: StudyConfig, budget: Budget, spent: float, pace: Pace, typical: float, smallest: float, fixed: float) -> Plan:
    """Splits what is left of the budget. `typical`, `smallest`: MACs of a candidate; `fixed`: MACs of the largest reference.

    Steps that the configuration names stay; else candidates are trained as long as lets the search see enough of them.
    Raises ValueError, saying what it would take, when the budget buys not one candidate and its references.
    """
    resources = config.gpus if budget.resource == "gpu" else config.cpus
    left = max(0.0, budget.seconds - spent)
    search = left * SEARCH_SHARE
    wanted = min(config.candidates or math.inf, wanted_candidates(search))

    def candidate(steps: int, macs: float) -> float:
        return resources * pace.seconds(macs, config.distill_steps or steps, config.finetune_steps or steps)

    longest = max(
        (s for s in steps_between(FEWEST_STEPS, MOST_STEPS) if candidate(s, typical) * wanted <= search), default=FEWEST_STEPS
    )
    references = 4 * candidate(FEWEST_STEPS, fixed)
    least = SAFETY * max(candidate(FEWEST_STEPS, smallest) / SEARCH_SHARE, references / (1 - SEARCH_SHARE))
    if least > left:
        needed = spent + least
        raise ValueError(
            f"the budget of {budget} buys not one candidate with its references here: {in_words(spent)} went into preparation and "
            f"{in_words(least)} more are needed; give at least {math.ceil(needed / 60)}{budget.resource}-minutes, or fewer steps"
        )
    distill_steps, finetune_steps = config.distill_steps or longest, config.finetune_steps or longest
    expected = int(search / candidate(longest, typical))
    return Plan(
        distill_steps=distill_steps,
        finetune_steps=finetune_steps,
        candidates=max(1, min(config.candidates or expected, expected)),
        search_seconds=search,
        final_seconds=left - search,
    )


def steps_between(fewest: int, most: int) -> Sequence[int]:
    """Round numbers of steps, each some 10 % above the one before, so that similar budgets train equally long."""
    steps = {fewest, most}
    value = float(fewest)
    while value < most:
        digits = 10 ** max(0, int(math.log10(value)) - 1)
        steps.add(min(most, round(value / digits) * digits))
        value *= 1.1
    return sorted(steps)


def full_steps(seconds: float, resources: float, pace: Pace, macs: Sequence[float], plan: Plan, full_length: float) -> int:
    """Steps of each finalist and reference (their MACs) that fit into the resource-seconds left, `full_length` times a
    candidate's at most; 0 when not even a candidate's length fits. The final length is never below a candidate's."""
    most = min(MOST_FULL_STEPS, round(full_length * plan.finetune_steps))
    fitting = [
        steps
        for steps in {*steps_between(plan.finetune_steps, max(most, plan.finetune_steps))}
        if SAFETY * resources * sum(pace.seconds(m, steps, steps) for m in macs) <= seconds
    ]
    return max(fitting, default=0)


def training_macs(context: Context, architecture: Network) -> float:
    """MACs as `Pace` counts them."""
    return cost_of(context, architecture).total_macs * (DEPTHWISE if isinstance(architecture, Baseline) else 1.0)


def space_of(context: Context) -> SearchSpace:
    return find_space(context.study.config.space, context.teacher.architecture, context.teacher.geometry)


def macs_of(context: Context, architectures: Iterable[Architecture]) -> list[float]:
    return [cost_of(context, architecture).total_macs for architecture in architectures]
