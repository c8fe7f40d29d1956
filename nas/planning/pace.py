"""How long a training takes on this machine: measured once by a few updates, corrected by what candidates took."""

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from nas.device.known import is_prepared, reachable, study_profile
from nas.study.budget import parse_budget
from nas.worker.context import Context, context_of, cost_of, space_of
from nas.worker.evaluate import build_student, train
from nas.worker.task import Lengths, Task
from search_spaces.architecture import Baseline, Network
from search_spaces.catalog import paper_student
from search_spaces.space import RandomChooser, SearchSpace
from trainers.learning.heads import head_batches
from trainers.learning.sandwich import sandwich
from trainers.learning.streams import keyword_stream
from trainers.scoring.draw import whole

BASE_SECONDS = 3.0  # of a training beside its updates: building, scoring's set-up, saving; corrected by what is seen
DEPTHWISE = 6.0  # a MAC of BC-ResNet takes as long as six of a student (CPU, bf16): its convolutions move more than they multiply
TYPICAL_DRAWS = 64
PROBE_STEPS = 2
MEASURING = {"fp32": 7.0, "int8": 12.0}  # seconds of a student: export, memory, and passes that take turns
WORTH_CORES = 1.5  # times the resource-seconds of a worker that a training alone may take for the cores of a node
CUDA_BYTES = 6e8  # of a process that has a CUDA context, beside torch's own memory
MOST_ON_A_GPU = 16


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Predicted wall seconds of one training on one worker: base + (per_clip + per_mac x MACs) x clips, times `factor`.

    A clip that is trained on counts once; one that is scored, or on which heads are fitted, a third: it needs no backward pass.
    scored: clips of validation; drawn: those of them that candidates are scored on, None: all. head_steps: as `Recipe.head_steps`.
    is_taught: whether heads are fitted before tuning too.
    scorings: of a split, of what is trained at full length: in fp32, and in int8 where that is deployed. measuring: seconds of its
    latency on the target, 0 where it is not measured, or costs nothing of the budget.
    per_made: seconds of making a clip of a batch, which is augmented once a node and then heard by all.
    cores: that a training which runs alone holds, 0 where those are a worker's. alone: what it then costs in resource-seconds, over
    what it costs on a worker's: the cores over how much faster it is.
    """

    per_clip: float
    per_mac: float
    scored: int
    batch: int
    factor: float = 1.0
    drawn: int | None = None
    head_steps: int = 0
    is_taught: bool = True
    scorings: int = 1
    measuring: float = 0.0
    per_made: float = 0.0
    cores: float = 0.0
    alone: float = 1.0

    def seconds(self, macs: float, distill_steps: int, finetune_steps: int, *, is_random: bool = False) -> float:
        """Of what is trained at full length, scored on validation and test clips, and measured. is_random: it begins at random."""
        final = dataclasses.replace(self, drawn=None, scored=2 * self.scorings * self.scored, is_taught=not is_random)
        return final.rung(macs, [(distill_steps, finetune_steps)], 0) + self.measuring

    def rung(self, macs: float, lengths: Lengths, rung: int) -> float:
        """Of a candidate's rung alone (from 0), whose distillation goes on from the one before."""
        scored = self.scored if self.drawn is None else self.drawn
        distilled = lengths[rung - 1][0] if rung else 0
        steps = lengths[rung][1]
        before, after = head_batches(steps, self.head_steps)
        tuned = 2 * steps + 2 * (before * self.is_taught + after) / 3
        clips = (lengths[rung][0] - distilled + tuned) * self.batch + scored / 3
        return self.factor * ((0.0 if rung else BASE_SECONDS) + (self.per_clip + self.per_mac * macs) * clips)

    def making(self, finetune_steps: int) -> float:
        """Of the batches of so many steps of both tasks."""
        batches = max(finetune_steps, *head_batches(finetune_steps, self.head_steps))
        return self.factor * self.per_made * 2 * batches * self.batch

    def tested(self, macs: float) -> float:
        """Of a student that is scored on both splits, measured, and not trained."""
        clips = 2 * self.scorings * self.scored / 3
        return self.factor * (BASE_SECONDS + (self.per_clip + self.per_mac * macs) * clips) + self.measuring

    def updates(self, macs: float, members: int, steps: int) -> float:
        """Of so many steps that train several members, of so many MACs together, on one batch."""
        return self.factor * (self.per_clip * members + self.per_mac * macs) * self.batch * steps

    def rungs(self, macs: float, lengths: Lengths, first: int = 0) -> float:
        """Of all rungs from the first on."""
        return sum(self.rung(macs, lengths, rung) for rung in range(first, len(lengths)))

    def expected(self, macs: float, lengths: Lengths, reduction: int) -> float:
        """Of a candidate on average, where 1/reduction of those on a rung goes on."""
        return math.fsum(self.rung(macs, lengths, rung) / reduction**rung for rung in range(len(lengths)))

    def corrected(self, seen: Iterable[tuple[float, float]]) -> "Pace":
        """With the median of seen over predicted seconds, pairs (seen, predicted by this pace without its factor)."""
        ratios = [actual / predicted for actual, predicted in seen]
        factor = statistics.median(ratios) if ratios else self.factor
        return dataclasses.replace(self, factor=factor)


def probe(context: Context, space: SearchSpace) -> Pace:
    """Times a few updates of the smallest student, the paper's student and the teacher's size on this machine."""
    teacher, distils = context.teacher, context.study.config.distils
    rows, times = [], []
    for architecture in (space.smallest(teacher.geometry), paper_student(teacher.architecture), space.largest(teacher.geometry)):
        student = build_student(context, architecture, "random", distilled=distils)
        for steps in (1, PROBE_STEPS):  # the first compiles kernels, fills caches and makes batches
            task = _probe_task(context, steps)
            started = time.monotonic()
            next(train(context, student, task))
        seconds = (time.monotonic() - started) / ((2 + distils) * PROBE_STEPS * context.study.config.recipe.batch)
        rows.append([1.0, training_macs(context, architecture)])
        times.append(seconds)
    scale = np.array(times)[:, None]
    (per_clip, per_mac), _ = nnls(np.array(rows) / scale, np.ones(len(times)))  # relative errors
    scored, drawn = (len(of.rows) for of in (whole(context.corpus, "val", context.trials["val"]), context.drawn))
    recipe, study = context.study.config.recipe, context.study
    is_measured = is_prepared(study) and reachable(study_profile(study), context.target)
    return Pace(
        per_clip=float(per_clip),
        per_mac=float(per_mac),
        scored=scored,
        drawn=drawn,
        batch=recipe.batch,
        head_steps=recipe.head_steps,
        scorings=2 if context.target.precision == "int8" else 1,
        measuring=MEASURING[context.target.precision]
        if is_measured and parse_budget(study.config.budget).resource == "cpu"
        else 0.0,
        per_made=_seconds_made(context),
    )


def _seconds_made(context: Context) -> float:
    """Of a clip of a batch."""
    recipe, window = context.study.config.recipe, context.target.window
    stream = keyword_stream(context.corpus, context.corpus.keyword_labels, recipe, window, context.augment, seed=0)
    for steps in (1, PROBE_STEPS):  # the first reads what is mapped
        started = time.monotonic()
        for step in range(steps):
            stream(step)
    return (time.monotonic() - started) / (PROBE_STEPS * recipe.batch)


def with_cores(context: Context, pace: Pace, most: int, architecture: Network | None = None) -> Pace:
    """With the cores, at most so many, that a training which runs alone does best to hold: see `best_cores`. architecture: of what
    trains, by default the teacher's."""
    network = architecture or context.teacher.architecture
    student = build_student(context, network, "random", distilled=context.study.config.distils)
    before = torch.get_num_threads()

    def seconds(cores: int) -> float:
        """The shorter of two, since one that is disturbed would cost the tutor half of its length."""
        torch.set_num_threads(cores)
        taken = []
        for _ in range(2):
            started = time.monotonic()
            next(train(context, student, _probe_task(context, PROBE_STEPS)))
            taken.append(time.monotonic() - started)
        torch.set_num_threads(before)
        return min(taken)

    cores, alone = best_cores(seconds, context.study.config.cpus, most)
    return dataclasses.replace(pace, cores=float(cores), alone=alone) if cores else pace


def best_cores(seconds: Callable[[int], float], cpus: float, most: int) -> tuple[int, float]:
    """The most cores, doubled from a worker's on, at which a training takes no more than WORTH_CORES times the resource-seconds
    that it takes on a worker's, and how many times; (0, 1) where those are none. seconds: of a training on so many cores."""
    found, once, cores = (0, 1.0), 0.0, max(1, math.ceil(cpus))
    while cores < most:
        once = once or seconds(cores) * cpus
        cores = min(2 * cores, most)
        more = max(1.0, seconds(cores) * cores / once)
        if more > WORTH_CORES:
            break
        found = (cores, more)
    return found


def _probe_task(context: Context, steps: int) -> Task:
    """Of updates alone, on batches that are there already, as nearly all of a search are: a node makes them once."""
    config = context.study.config
    return Task(
        study="",
        name="",
        architecture="",
        start="random",
        distill_steps=steps if config.distils else 0,
        finetune_steps=steps,
        splits=(),
        seed=config.seed,
        tuning={"head_steps": 0},
        sharing=True,
    )


def typical_macs(context: Context, space: SearchSpace, seed: int) -> float:
    """Mean MACs of random members of the space, as `Pace` counts them."""
    chooser = RandomChooser(random.Random(seed))
    draws = [space.architecture(chooser) for _ in range(TYPICAL_DRAWS)]
    return statistics.fmean(training_macs(context, architecture) for architecture in draws)


def measured_gpu_share(study: str) -> float:
    """Of a GPU for one worker, by the memory that updates of the largest student of each front end took, since broadcast blocks of
    fewer weights hold more at once; runs where there is one."""
    context = context_of(study)
    torch.cuda.reset_peak_memory_stats()
    for architecture in space_of(context).corners(-1):
        student = build_student(context, architecture, "random", distilled=context.study.config.distils)
        next(train(context, student, _probe_task(context, PROBE_STEPS)))
    return gpu_share(torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory)


def gpu_share(peak: float, total: float) -> float:
    """One over as many workers as fit, each of `peak` bytes and what CUDA itself holds, into nine tenths of a GPU."""
    return 1 / min(MOST_ON_A_GPU, max(1, int(0.9 * total / (peak + CUDA_BYTES))))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """MACs: of a typical candidate, of the smallest one, of the members together that a step of the shared student trains, and of
    each reference."""

    typical: float
    smallest: float
    sandwich: float
    references: tuple[float, ...]


def training_macs(context: Context, architecture: Network) -> float:
    """MACs as `Pace` counts them."""
    counted = cost_of(context, architecture)
    if isinstance(architecture, Baseline):
        return DEPTHWISE * counted.total_macs
    blocks = sum(counted.macs[kind] for kind in ("first_conv", "convs", "depthwise")) if architecture.front_end == "bc" else 0
    return counted.total_macs + (DEPTHWISE - 1) * blocks


def sizes(context: Context, space: SearchSpace) -> Sizes:
    teacher = context.teacher
    references: tuple[Network, ...] = (teacher.architecture, paper_student(teacher.architecture), Baseline())
    return Sizes(
        typical=typical_macs(context, space, context.study.config.seed),
        smallest=training_macs(context, space.smallest(teacher.geometry)),
        sandwich=statistics.fmean(
            sum(training_macs(context, a) for a in sandwich(space, 0, step)) for step in range(TYPICAL_DRAWS)
        ),
        references=tuple(training_macs(context, network) for network in references),
    )
