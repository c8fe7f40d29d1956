"""What an interruption leaves of a task, and where it goes on: checkpoints in the study folder."""

import dataclasses
import shutil

from nas.study.folder import Study
from nas.worker.context import SHARED_FILE, Context
from nas.worker.task import Task
from trainers.learning.elastic import number_of
from trainers.learning.recipe import Recipe
from trainers.learning.resume import Checkpoint, read_position

FOLDERS = DISTILLED, TUNED = "distilled", "tuned"


def distilling(context: Context, task: Task, recipe: Recipe) -> Checkpoint | None:
    """Of what the task distils, on all its rungs. Its steps are no part of what it depends on: it may go on to more."""
    if not task.name:
        return None
    made_of = [task.lengths()[0][0], recipe.batch, recipe.distill_rate]
    path = context.study.folder / DISTILLED / f"{task.distilled or task.name}.safetensors"
    return Checkpoint(path=path, of=number_of([*_begun(context, task), made_of]))


def tuning(context: Context, task: Task, rung: int, recipe: Recipe) -> Checkpoint | None:
    """Of the fine-tuning on a rung, from 0."""
    if not task.name:
        return None
    made_of = [task.lengths()[0][0], task.lengths()[rung], dataclasses.asdict(recipe), task.tutor]
    path = context.study.folder / TUNED / f"{task.name}.safetensors"
    return Checkpoint(path=path, of=number_of([*_begun(context, task), made_of]))


def _begun(context: Context, task: Task) -> list[object]:
    """What a training begins with, and what it hears."""
    shared = read_position(context.study.folder / SHARED_FILE) if task.start == "shared student" else {}
    return [context.heard, context.teacher.digest, task.architecture, task.start, task.seed, shared]


def forget(study: Study, name: str) -> None:
    """Of a task whose end is recorded: before, a driver that is killed would have it trained again."""
    for folder in FOLDERS:
        (study.folder / folder / f"{name}.safetensors").unlink(missing_ok=True)


def forget_all(study: Study) -> None:
    """Of a study that has ended, with what tasks have shared and what was cut while it was written."""
    for folder in FOLDERS:
        shutil.rmtree(study.folder / folder, ignore_errors=True)
