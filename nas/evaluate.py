"""One training, from an architecture to scores: a plain function that runs with or without Ray."""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from deploy.target import Target, load_target
from nas.device import is_prepared, study_device
from nas.profile import Device
from nas.study import Study, open_folder
from search_spaces.architecture import Baseline, Geometry, Heads, Network, network_from_dict
from search_spaces.cost import Cost, cost
from trainers.baselines import BASELINE_RATE, counted_cost
from trainers.batches import Augmentation
from trainers.corpora import Corpus, check_trainable, load_corpus
from trainers.distill import distill
from trainers.encoder import SpeechEncoder
from trainers.finetune import finetune
from trainers.inherit import inherit
from trainers.metrics import Outcome, rates
from trainers.precision import pick_device
from trainers.recipe import Recipe
from trainers.scoring import score
from trainers.student import Student, save_student
from trainers.synthetic import speak_corpus
from trainers.targets import Targets, prepare_targets
from trainers.teacher import Teacher, load_teacher
from trainers.trials import Trials, load_trials, make_trials

Start = Literal["kept layers", "random", "teacher"]
Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training. Plain values alone, so that it travels to any worker as JSON.

    study: absolute folder. name: of the student below its `students/`. start: from the kept teacher layers, at random, or the
    teacher itself. splits: those to score; `test` only once a study, for finalists and references.
    tuning: fields of the recipe that differ from the study's. distilled: name of the distilled student below the
    study's `distilled/`, which the first task that asks for it makes, and others begin with.
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
    )


def embedded_corpus(cache: Path) -> Path:
    """The default corpus, spoken into the cache when it is first asked for."""
    path = cache / "embedded.parquet"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        speak_corpus(path, speakers=80)
    return path


@functools.lru_cache(maxsize=1)
def _context_of(folder: str) -> Context:
    return open_context(open_folder(Path(folder)))


def evaluate(task: Task, progress: Progress | None = None) -> dict[str, Any]:
    """Builds, trains, scores and saves one student; returns `scores`, the wall `seconds` it took, and `cpu_seconds`.

    Raises FloatingPointError when training diverges.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    context = _context_of(task.study)
    torch.set_num_threads(max(1, math.ceil(context.study.config.cpus)))
    torch.manual_seed(task.seed)
    architecture = network_from_dict(json.loads(task.architecture))
    student = build_student(context, architecture, task.start, distilled=task.distill_steps > 0)
    train(context, student, task, progress)
    trained = student.cpu().folded()
    folder, scores = context.study.weights_folder(task.name), dict[str, float]()
    save_student(trained, folder)
    for split in task.splits:
        outcome = score(trained, context.corpus, split, context.trials[split], context.target.window, pick_device())
        write_outcome(outcome, folder / f"outcome_{split}.npz")
        scores |= quality_scores(outcome, prefix="" if split == "val" else f"{split}_")
    scores |= cost_scores(context, trained.architecture, trained.encoder.geometry)
    return {"scores": scores, "seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu_started}


def own_tuning(network: Network) -> dict[str, Any]:
    """What a network's training has of its own instead of the recipe's."""
    return {"rate": BASELINE_RATE} if isinstance(network, Baseline) else {}


def build_student(context: Context, architecture: Network, start: Start, *, distilled: bool) -> Student:
    recipe, keywords = context.study.config.recipe, context.corpus.keyword_labels
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


def train(context: Context, student: Student, task: Task, progress: Progress | None = None) -> None:
    """Distils, then fine-tunes; `progress` hears the share done, by updates."""
    config, device = context.study.config, pick_device()
    updates = task.distill_steps + 2 * task.finetune_steps

    def tell(offset: int, weight: int) -> Callable[[int, int], None] | None:
        return (lambda step, _: progress((offset + weight * step) / updates)) if progress else None

    recipe = dataclasses.replace(config.recipe, **task.tuning)
    kept = context.study.folder / "distilled" / f"{task.distilled}.safetensors" if task.distilled else None
    if kept and kept.is_file():
        student.load_state_dict(load_file(kept))
    elif task.distill_steps:
        distill(
            student,
            context.targets,
            recipe,
            steps=task.distill_steps,
            augment=context.augment,
            seed=task.seed,
            device=device,
            progress=tell(0, 1),
        )
        if kept:
            kept.parent.mkdir(exist_ok=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            save_file({name: value.cpu().contiguous() for name, value in student.state_dict().items()}, part)
            part.replace(kept)
    finetune(
        student,
        context.corpus,
        recipe,
        steps=task.finetune_steps,
        window=context.target.window,
        augment=context.augment,
        seed=task.seed + 1,
        device=device,
        targets=context.targets,
        progress=tell(task.distill_steps, 2),
    )


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
