"""One training, from an architecture to scores: a plain function that runs with or without Ray."""

import copy
import dataclasses
import functools
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deploy.target import Target, load_target
from nas.config import StudyConfig
from nas.device import is_prepared, study_device
from nas.profile import Device
from nas.study import Study, open_folder
from search_spaces.architecture import Architecture, Baseline, Geometry, Heads, Network, network_from_dict
from search_spaces.catalog import find_space
from search_spaces.cost import Cost, cost
from search_spaces.space import SearchSpace
from trainers.baselines import BASELINE_RATE, counted_cost
from trainers.batches import Augmentation
from trainers.corpora import Corpus, check_trainable, load_corpus
from trainers.distill import distill, distiller
from trainers.elastic import Elastic, load_shared
from trainers.encoder import SpeechEncoder
from trainers.finetune import finetune
from trainers.inherit import inherit
from trainers.metrics import Outcome, rates
from trainers.precision import pick_device
from trainers.recipe import Recipe
from trainers.resume import read_position, read_state, write_state
from trainers.sandwich import train_shared
from trainers.scoring import score
from trainers.streams import Share, alone, shared
from trainers.student import Student, save_student
from trainers.synthetic import speak_corpus
from trainers.targets import FREE_SHARE, Targets, prepare_targets
from trainers.teacher import Teacher, load_teacher
from trainers.trials import Trials, load_trials, make_trials

Lengths = Sequence[tuple[int, int]]
Start = Literal["kept layers", "random", "teacher", "shared student"]
SHARED_FILE = "shared.safetensors"
MOST_SHARED_STEPS = 4096  # of each of three streams: 6 GB with 16 windows of a second


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training. Plain values alone, so that it travels to any worker as JSON.

    study: absolute folder. name: of the student below its `students/`. start: from the kept teacher layers, at random, the teacher
    itself, or with the weights of the study's shared student. splits: those to score; `test` only once a study, for finalists and
    references.
    rungs: lengths at which it is scored, each `reduction` times the one before up to the steps; the rungs `done` are passed over.
    tuning: fields of the recipe that differ from the study's. distilled: name of the distilled student below the
    study's `distilled/`, which the first task that asks for it makes, and others begin with and go on from.
    sharing: whether others hear the same batches, so that a node makes them once.
    """

    study: str
    name: str
    architecture: str
    start: Start
    distill_steps: int
    finetune_steps: int
    splits: tuple[str, ...]
    seed: int
    tuning: Mapping[str, Any] = field(default_factory=dict)
    distilled: str | None = None
    rungs: int = 1
    reduction: int = 1
    done: int = 0
    sharing: bool = False

    def lengths(self) -> Lengths:
        return rung_lengths(self.distill_steps, self.finetune_steps, self.rungs, self.reduction)


def rung_lengths(distill_steps: int, finetune_steps: int, rungs: int, reduction: int) -> Lengths:
    """Distillation steps from the beginning, and fine-tuning steps, of every rung; the last one's are given."""
    parts = [reduction ** (rungs - 1 - rung) for rung in range(rungs)]
    return [(math.ceil(distill_steps / part), math.ceil(finetune_steps / part)) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every training of a study shares; opened once a worker process, audio and teacher states mapped."""

    study: Study
    target: Target
    corpus: Corpus
    trials: dict[str, Trials]
    augment: Augmentation
    teacher: Teacher
    targets: Targets
    batches: Path  # of this node

    @functools.cached_property
    def device(self) -> Device:
        """What the target will need for a student."""
        return study_device(self.study, self.target)


def open_context(study: Study, progress: Callable[[int, int], None] | None = None) -> Context:
    """Decodes and computes what the cache lacks."""
    config = study.config
    cache, device = Path(config.cache), pick_device()
    target, teacher = load_target(config.target), load_teacher(config.teacher)
    corpus = load_corpus([Path(path) for path in config.data] or [embedded_corpus(cache)], cache)
    check_trainable(corpus)
    trials = load_trials(Path(config.trials), corpus) if config.trials else {}
    trials |= {split: make_trials(corpus, split, config.seed) for split in ("val", "test") if split not in trials}
    noise = load_corpus([Path(config.noise)], cache) if config.noise else None
    targets = prepare_targets(
        teacher,
        corpus,
        cache,
        window=target.window,
        limit=config.target_windows,
        seed=config.seed,
        mode=config.targets,
        device=device,
        progress=progress,
    )
    return Context(
        study=study,
        target=target,
        corpus=corpus,
        trials=trials,
        augment=config.recipe.augmentation(noise),
        teacher=teacher,
        targets=targets,
        batches=cache / "batches" / hashlib.sha256(json.dumps(_heard(config, corpus, noise, target)).encode()).hexdigest()[:16],
    )


def _heard(config: StudyConfig, corpus: Corpus, noise: Corpus | None, target: Target) -> list[Any]:
    """What batches depend on, beside the seed."""
    recipe = dataclasses.asdict(config.recipe)
    return [corpus.digest, noise and noise.digest, target.window, config.target_windows, config.seed, recipe]


def embedded_corpus(cache: Path) -> Path:
    """The default corpus, spoken into the cache when it is first asked for."""
    path = cache / "embedded.parquet"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        speak_corpus(path, speakers=80)
    return path


@functools.lru_cache(maxsize=1)
def context_of(folder: str) -> Context:
    return open_context(open_folder(Path(folder)))


def evaluate(task: Task) -> Iterator[dict[str, Any]]:
    """Builds and trains one student, and scores it on every rung; the last one's student is saved.

    A report a rung, as it ends: its number from 1 (`rung`), `scores`, wall `seconds` since the last report, and `cpu_seconds` by
    part. Raises FloatingPointError when training diverges.
    """
    context = context_of(task.study)
    torch.set_num_threads(max(1, math.ceil(context.study.config.cpus)))
    torch.manual_seed(task.seed)
    watch = Stopwatch()
    architecture = network_from_dict(json.loads(task.architecture))
    student = build_student(context, architecture, task.start, distilled=task.distill_steps > 0)
    for rung, tuned in enumerate(train(context, student, task, watch), task.done + 1):
        trained = tuned.cpu().folded()
        folder, scores = context.study.weights_folder(task.name), dict[str, float]()
        if rung == task.rungs:
            save_student(trained, folder)
        for split in task.splits:
            outcome = score(trained, context.corpus, split, context.trials[split], context.target.window, pick_device())
            if rung == task.rungs:
                write_outcome(outcome, folder / f"outcome_{split}.npz")
            scores |= quality_scores(outcome, prefix="" if split == "val" else f"{split}_")
        scores |= cost_scores(context, trained.architecture, trained.encoder.geometry)
        yield {"rung": rung, "scores": scores, **watch.lap("scoring")}


class Stopwatch:
    """Wall seconds of a lap, and its CPU seconds by part."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.parts = time.monotonic(), time.process_time(), dict[str, float]()

    def part(self, name: str) -> None:
        """Ends a part of the lap."""
        now = time.process_time()
        self.parts[name], self.cpu = now - self.cpu, now

    def lap(self, name: str) -> dict[str, Any]:
        """Ends the lap and its last part."""
        self.part(name)
        now, parts = time.monotonic(), self.parts
        seconds, self.wall, self.parts = now - self.wall, now, {}
        return {"seconds": seconds, "cpu_seconds": parts}


@functools.lru_cache(maxsize=1)
def shared_student(folder: str) -> Elastic:
    """Raises ValueError where the study has none."""
    context, path = context_of(folder), Path(folder) / SHARED_FILE
    elastic = new_elastic(context)
    if not load_shared(elastic, path, torch.device("cpu")):
        raise ValueError(f"there is no {path}: the shared student's weights are missing")
    return elastic.eval()


def distil_shared(study: str, steps: int) -> None:
    """Into the study folder; goes on where it was interrupted."""
    context = context_of(study)
    config = context.study.config
    torch.set_num_threads(max(1, math.ceil(config.cpus)))
    torch.manual_seed(config.seed)
    train_shared(
        new_elastic(context),
        context.targets,
        steps=steps,
        augment=context.augment,
        seed=config.seed,
        device=pick_device(),
        path=context.study.folder / SHARED_FILE,
    )


def new_elastic(context: Context) -> Elastic:
    return Elastic(space_of(context), context.teacher, context.study.config.recipe, context.corpus.keyword_labels)


def space_of(context: Context) -> SearchSpace:
    return find_space(context.study.config.space, context.teacher.architecture, context.teacher.geometry)


def own_tuning(network: Network) -> dict[str, Any]:
    """What a network's training has of its own instead of the recipe's."""
    return {"rate": BASELINE_RATE} if isinstance(network, Baseline) else {}


def build_student(context: Context, architecture: Network, start: Start, *, distilled: bool) -> Student:
    recipe, keywords = context.study.config.recipe, context.corpus.keyword_labels
    if start == "shared student":
        assert isinstance(architecture, Architecture), "a baseline inherits nothing"
        return shared_student(str(context.study.folder.resolve())).extract(architecture)
    return make_student(context.teacher, recipe, keywords, architecture, start, distilled=distilled)


def make_student(
    teacher: Teacher, recipe: Recipe, keywords: tuple[str, ...], architecture: Network, start: Start, *, distilled: bool
) -> Student:
    """Raises ValueError where the start is from layers that do not hold the student."""
    student = Student(
        architecture,
        teacher.encoder.geometry if start == "teacher" else teacher.geometry,
        keywords,
        predicted_layers=teacher.predicted_layers if distilled else (),
        target_width=teacher.architecture.width if distilled else 0,
        heads=recipe.heads,
        matching=recipe.matching,
        is_folded=False,
    )
    if start == "teacher":
        student.encoder.load_state_dict(teacher.encoder.state_dict())
    elif start == "kept layers":
        assert isinstance(student.encoder, SpeechEncoder), "a baseline inherits nothing"
        inherit(student.encoder, teacher.encoder, recipe.narrowing)
    return student


def train(context: Context, student: Student, task: Task, watch: Stopwatch | None = None) -> Iterator[Student]:
    """Distils up to each rung, and gives for each a copy that is fine-tuned, so that distillation goes on from what it made."""
    device, watch = pick_device(), watch or Stopwatch()
    recipe = dataclasses.replace(context.study.config.recipe, **task.tuning)
    optimizer, done = distiller(student.to(device), recipe), 0
    kept = context.study.folder / "distilled" / f"{task.distilled}.safetensors" if task.distilled else None
    if kept and (position := read_position(kept)):
        done = position["steps"]
        read_state(kept, student, optimizer, device, done)
    lengths, share = task.lengths(), sharing(context, task)
    for distill_steps, finetune_steps in lengths[task.done :]:
        if distill_steps > done:
            distill(
                student,
                context.targets,
                recipe,
                steps=distill_steps,
                augment=context.augment,
                seed=task.seed,
                device=device,
                done=done,
                first_steps=lengths[0][0],
                optimizer=optimizer,
                share=share,
            )
            done = distill_steps
            if kept:
                write_state(kept, student, optimizer, {"steps": done})
        watch.part("distillation")
        tuned = copy.deepcopy(student)
        finetune(
            tuned,
            context.corpus,
            recipe,
            steps=finetune_steps,
            window=context.target.window,
            augment=context.augment,
            seed=task.seed + 1,
            device=device,
            targets=context.targets,
            share=share,
        )
        watch.part("fine-tuning")
        yield tuned


def sharing(context: Context, task: Task) -> Share:
    """Batches of this task's seed, made once a node where others hear them too and the disk has room for them."""
    if not task.sharing:
        return alone
    clip = context.target.window * 2
    room = FREE_SHARE * shutil.disk_usage(context.batches.parent.parent).free / (3 * context.study.config.recipe.batch * clip)
    return functools.partial(shared, context.batches / str(task.seed), min(MOST_SHARED_STEPS, int(room)))


def tightest(*limits: float | None) -> float | None:
    """The smallest of the study's and the target's limits, None where neither binds."""
    return min((limit for limit in limits if limit is not None), default=None)


def quality_scores(outcome: Outcome, prefix: str = "") -> dict[str, float]:
    """Keyword error and EER in percent with their intervals."""
    accuracy, eer = rates(outcome)
    return {
        f"{prefix}keyword_error": 100 - accuracy.value,
        f"{prefix}keyword_error_low": 100 - accuracy.high,
        f"{prefix}keyword_error_high": 100 - accuracy.low,
        f"{prefix}eer": eer.value,
        f"{prefix}eer_low": eer.low,
        f"{prefix}eer_high": eer.high,
    }


def cost_of(context: Context, architecture: Network, geometry: Geometry | None = None) -> Cost:
    """Of a student; of the teacher itself with its own geometry; of a baseline."""
    geometry, keywords, window = geometry or context.teacher.geometry, context.corpus.keyword_labels, context.target.window
    read = context.study.config.recipe.heads
    if isinstance(architecture, Baseline):
        return _baseline_cost(architecture, geometry, keywords, window, read)
    return cost(architecture, geometry, len(keywords), window, read)


@functools.cache
def _baseline_cost(baseline: Baseline, geometry: Geometry, keywords: tuple[str, ...], window: int, read: Heads) -> Cost:
    return counted_cost(Student(baseline, geometry, keywords, heads=read).eval(), baseline, window)


def cost_scores(context: Context, architecture: Network, geometry: Geometry | None = None) -> dict[str, float]:
    """What a student costs: counts, and the latency and memory that are predicted for the target, with their intervals."""
    counted = cost_of(context, architecture, geometry)
    scores: dict[str, float] = {
        "params": counted.params,
        "macs": counted.total_macs,
        "weight_bytes": counted.weight_bytes,
        "peak_activation_bytes": counted.peak_activation_bytes,
    }
    if not is_prepared(context.study):  # an experiment compares scores alone
        return scores
    latency, memory = context.device.latency(architecture, counted), context.device.memory(architecture, counted)
    for name, unit, estimate in (("latency", "ms", latency), ("memory", "bytes", memory)):
        if estimate is not None:
            scores |= {f"{name}_{unit}": estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return scores


def write_outcome(outcome: Outcome, path: Path) -> None:
    np.savez(path, **dataclasses.asdict(outcome))


def read_outcome(path: Path) -> Outcome:
    with np.load(path, allow_pickle=False) as arrays:
        return Outcome(**arrays)


def task_json(task: Task) -> str:
    return json.dumps(dataclasses.asdict(task))


def task_from_json(text: str) -> Task:
    fields = json.loads(text)
    return Task(**{**fields, "splits": tuple(fields["splits"])})
