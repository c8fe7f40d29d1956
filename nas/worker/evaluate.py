"""One training, from an architecture to scores: a plain function that runs with or without Ray."""

import copy
import dataclasses
import functools
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.target import Precision
from nas.worker.context import MODEL, SHARED_FILE, Context, context_of, cost_scores, device_of, space_of
from nas.worker.task import Start, Task
from nas.worker.unfinished import distilling, tuning
from search_spaces.architecture import Architecture, Network, network_from_dict
from trainers.learning.distill import distill, distiller, fit_student
from trainers.learning.elastic import Elastic, load_shared
from trainers.learning.finetune import finetune
from trainers.learning.recipe import Recipe
from trainers.learning.sandwich import train_shared
from trainers.learning.sharing import shared
from trainers.learning.streams import Share, alone
from trainers.learning.targets import FREE_SHARE
from trainers.networks.encoder import SpeechEncoder
from trainers.networks.inherit import inherit
from trainers.networks.student import Student, continued, load_student, save_student
from trainers.scoring.draw import Scored, whole
from trainers.scoring.outcome import Outcome
from trainers.scoring.scores import FIGURES, quality_scores
from trainers.scoring.scoring import score
from trainers.teacher.teacher import Teacher

MOST_SHARED_STEPS = 4096  # of each of three streams: 6 GB with 16 windows of a second


def evaluate(task: Task) -> Iterator[dict[str, Any]]:
    """Builds and trains one student, or takes the task's source, and scores it on every rung; the last one's student is saved.

    A report a rung, as it ends: its number from 1 (`rung`), `scores`, wall `seconds` since the last report, and `cpu_seconds` by
    part, of this process. An interrupted task goes on where it was. Raises FloatingPointError when training diverges.
    """
    context = context_of(task.study)
    torch.set_num_threads(max(1, math.ceil(task.cpus or context.study.config.cpus)))
    torch.manual_seed(task.seed)
    watch = Stopwatch()
    for rung, tuned in enumerate(_students(context, task, watch), task.done + 1):
        trained, is_last = tuned.cpu().folded(), rung == task.rungs
        if is_last:
            save_student(trained, context.study.weights_folder(task.name))
        scores = _qualities(context, task, trained, is_last=is_last)
        scores |= cost_scores(context, trained.architecture, trained.encoder.geometry)
        yield {"rung": rung, "scores": scores, **watch.lap("scoring")}


def _qualities(context: Context, task: Task, trained: Student, *, is_last: bool) -> dict[str, float]:
    """Scores of each split, in the task's precision on the last rung, whose outcomes are kept."""
    folder, scores, window = context.study.weights_folder(task.name), dict[str, float](), context.target.window
    with _in_int8(context, trained, task.precision if is_last else "fp32") as int8:
        for split in task.splits:
            prefix = "" if split == "val" else f"{split}_"
            scored = context.drawn if task.draw and split == "val" else whole(context.corpus, split, context.trials[split])
            outcome = score(trained, context.corpus, scored, window, device_of(context.study.config))
            if int8:
                write_outcome(outcome, folder / f"fp32_{split}.npz")
                exact = quality_scores(outcome, prefix=prefix)
                scores |= {f"fp32_{prefix}{name}": exact[f"{prefix}{name}"] for name in FIGURES.values()}
                outcome = int8(scored)
            if is_last:
                write_outcome(outcome, folder / f"outcome_{split}.npz")
            scores |= quality_scores(outcome, prefix=prefix)
    return scores


@contextmanager
def _in_int8(context: Context, student: Student, precision: Precision) -> Iterator[Callable[[Scored], Outcome] | None]:
    """Scores the student's file in int8; None for fp32. ONNX is imported late: most trainings do without it."""
    if precision == "fp32":
        yield None
        return
    from deploy.judging import calibration_windows, score_file
    from deploy.quantize import quantize_static

    corpus, window = context.corpus, context.target.window
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(student, path, calibration_windows(corpus, window))
        yield lambda scored: score_file(path, student.keywords, corpus, scored, window)


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


def _students(context: Context, task: Task, watch: Stopwatch) -> Iterator[Student]:
    """One a rung."""
    if task.source:
        yield load_student(context.study.weights_folder(task.source))
        return
    architecture = network_from_dict(json.loads(task.architecture))
    student = build_student(context, architecture, task.start, distilled=task.distill_steps > 0)
    yield from train(context, student, task, watch)


@functools.lru_cache(maxsize=1)
def shared_student(folder: str) -> Elastic:
    """Raises ValueError where the study has none."""
    context, path = context_of(folder), Path(folder) / SHARED_FILE
    elastic = new_elastic(context)
    if not load_shared(elastic, path, torch.device("cpu")):
        raise ValueError(f"there is no {path}: the shared student's weights are missing")
    return elastic.eval()


def distil_shared(study: str, steps: int, tutor: str | None = None, cpus: float | None = None) -> None:
    """Into the study folder; goes on where it was interrupted. It hears the batches that candidates will hear. cpus: as
    of `Task`."""
    context = context_of(study)
    config = context.study.config
    torch.set_num_threads(max(1, math.ceil(cpus or config.cpus)))
    torch.manual_seed(config.seed)
    train_shared(
        new_elastic(context),
        context.targets,
        steps=steps,
        augment=context.augment,
        seed=config.seed,
        device=device_of(config),
        path=context.study.folder / SHARED_FILE,
        tutor=tutor_of(context, tutor),
        share=sharing(context, config.seed),
    )


def new_elastic(context: Context) -> Elastic:
    return Elastic(space_of(context), context.teacher, context.study.config.recipe, context.corpus.keyword_labels)


def build_student(context: Context, architecture: Network, start: Start, *, distilled: bool) -> Student:
    recipe, keywords = context.study.config.recipe, context.corpus.keyword_labels
    if start == "shared student":
        assert isinstance(architecture, Architecture), "a baseline inherits nothing"
        return shared_student(str(context.study.folder.resolve())).extract(architecture)
    if start == "model":
        return continued(load_student(context.study.weights_folder(MODEL)), recipe.speaker_layer)
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
        speaker_layer=recipe.speaker_layer,
        is_folded=False,
    )
    if start == "teacher":
        student.encoder.load_state_dict(teacher.encoder.state_dict())
    elif start == "kept layers":
        assert isinstance(student.encoder, SpeechEncoder), "a baseline inherits nothing"
        inherit(student.encoder, teacher.encoder, recipe.narrowing)
    return student


def train(context: Context, student: Student, task: Task, watch: Stopwatch | None = None) -> Iterator[Student]:
    """Fits what inherited to its teacher, distils up to each rung, and gives for each a copy that is fine-tuned, so that
    distillation goes on from what it made; at the last one nothing goes on, and the student itself is."""
    device, watch = device_of(context.study.config), watch or Stopwatch()
    is_taught, recipe = _is_taught(student, task.start), context.study.config.recipe
    recipe = dataclasses.replace(recipe, **{"rate": _rate(recipe, student, task.start, is_taught), **task.tuning})
    optimizer, checkpoint = distiller(student.to(device), recipe), distilling(context, task, recipe)
    read = checkpoint.read(student, optimizer, device) if checkpoint else None
    if read is None and _is_fitted(student, task.start, recipe):
        fit_student(student, context.targets, context.lesson)
        if checkpoint:
            checkpoint.keep(student, optimizer, 0)
    done = read or 0
    watch.part("building")
    lengths, share = task.lengths(), sharing(context, task.seed) if task.sharing else alone
    for rung in range(task.done, task.rungs):
        distill_steps, finetune_steps = lengths[rung]
        if rung and done == lengths[rung - 1][0]:  # it goes on alike, whatever drew from the generator in between
            torch.manual_seed(task.seed)
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
                checkpoint=checkpoint,
                share=share,
            )
            done = distill_steps
            if checkpoint and task.distilled:
                checkpoint.write(student, optimizer, done)
        watch.part("distillation")
        tuned = student if rung == task.rungs - 1 else copy.deepcopy(student)
        torch.manual_seed(task.seed + rung + 1)  # a rung begins alike whether the ones before it were trained here or not
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
            tutor=tutor_of(context, task.tutor) if recipe.tutor_weight else None,
            checkpoint=tuning(context, task, rung, recipe),
            share=share,
            is_taught=is_taught,
        )
        watch.part("fine-tuning")
        yield tuned


def _is_fitted(student: Student, start: Start, recipe: Recipe) -> bool:
    """Whether it is fitted to its teacher before it trains: what has layers that it took over."""
    a = student.architecture
    return start == "kept layers" and recipe.fit_windows > 0 and isinstance(a, Architecture) and a.depth > 0


def _rate(recipe: Recipe, student: Student, start: Start, is_taught: bool) -> float:
    if start in ("teacher", "model"):
        return recipe.teacher_rate
    if not is_taught:
        return recipe.random_rate
    assert isinstance(student.architecture, Architecture)
    return recipe.rate_at(student.architecture.width)


def _is_taught(student: Student, start: Start) -> bool:
    """Whether its encoder has learnt something and its heads have not. Broadcast blocks begin at random."""
    architecture = student.architecture
    if start == "model":
        return True
    return start in ("kept layers", "teacher") and isinstance(architecture, Architecture) and architecture.front_end != "bc"


def tutor_of(context: Context, name: str | None) -> Student | None:
    """Raises ValueError where its weights are missing."""
    return _tutor(str(context.study.weights_folder(name).resolve())) if name else None


@functools.lru_cache(maxsize=1)
def _tutor(folder: str) -> Student:
    return load_student(Path(folder))


def sharing(context: Context, seed: int) -> Share:
    """Batches of a seed, made once a node where the disk has room for them."""
    clip = context.target.window * 2
    room = FREE_SHARE * shutil.disk_usage(context.batches.parent.parent).free / (3 * context.study.config.recipe.batch * clip)
    return functools.partial(shared, context.batches / str(seed), min(MOST_SHARED_STEPS, int(room)))


def write_outcome(outcome: Outcome, path: Path) -> None:
    np.savez(path, **dataclasses.asdict(outcome))


def read_outcome(path: Path) -> Outcome:
    with np.load(path, allow_pickle=False) as arrays:
        return Outcome(**arrays)
