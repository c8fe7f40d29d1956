"""What a worker is asked to do: one training, as plain values."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.target import Precision

Lengths = Sequence[tuple[int, int]]


Start = Literal["kept layers", "random", "teacher", "shared student", "model"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training. Plain values alone, so that it travels to any worker as JSON.

    study: absolute folder. name: of the student below its `students/`, and of what an
    interruption leaves of it; without one it leaves nothing. start: from the kept teacher layers, at random, the teacher
    itself, with the weights of the study's shared student, or with those of the model that it tunes on. splits: those to score;
    `test` only once a study, for finalists and references.
    rungs: lengths at which it is scored, each `reduction` times the one before up to the steps; the rungs `done` are passed over.
    tuning: fields of the recipe that differ from the study's. distilled: name of the distilled student below the
    study's `distilled/`, which the first task that asks for it makes, and others begin with and go on from.
    tutor: name of the tuned teacher below `students/` that is asked for its answers.
    sharing: whether others hear the same batches, so that a node makes them once.
    source: name of a student below `students/` that is scored as it is, instead of a training.
    cpus: that it may keep busy, where those are not the study's for a worker.
    precision: in which what was trained is scored; fp32 scores are kept beside those of int8.
    draw: whether validation scores are of the study's draw (`trainers.scoring.draw`), as a candidate's are, and not of the
    whole split.
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
    tutor: str | None = None
    rungs: int = 1
    reduction: int = 1
    done: int = 0
    sharing: bool = False
    source: str | None = None
    draw: bool = False
    precision: Precision = "fp32"
    cpus: float | None = None

    def lengths(self) -> Lengths:
        return rung_lengths(self.distill_steps, self.finetune_steps, self.rungs, self.reduction)


def rung_lengths(distill_steps: int, finetune_steps: int, rungs: int, reduction: int) -> Lengths:
    """Distillation steps from the beginning, and fine-tuning steps, of every rung; the last one's are given."""
    parts = [reduction ** (rungs - 1 - rung) for rung in range(rungs)]
    return [(math.ceil(distill_steps / part), math.ceil(finetune_steps / part)) for part in parts]


def task_json(task: Task) -> str:
    return json.dumps(dataclasses.asdict(task))


def task_from_json(text: str) -> Task:
    fields = json.loads(text)
    return Task(**{**fields, "splits": tuple(fields["splits"])})
