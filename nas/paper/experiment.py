"""What the paper's experiment is asked for."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nas.study.config import StudyConfig
from nas.study.folder import EXPERIMENT_FILE, Study, create_study
from nas.worker.evaluate import make_student
from search_spaces.architecture import Architecture
from search_spaces.catalog import paper_student
from trainers.teacher.teacher import load_teacher

TEACHER, PAPER, BASELINE = "teacher", "paper's student", "BC-ResNet"
JOINT, KEYWORDS, SPEAKERS, FROZEN = "joint", "keywords alone", "speakers alone", "joint, encoder frozen"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    JOINT: {},
    KEYWORDS: {"speakers": False},
    SPEAKERS: {"keywords": False},
    FROZEN: {"frozen": True},
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """seeds: of every joint row; seeds_alone: of the other variants' rows.

    rates, lengths: the teacher's settings, each pair one; lengths are shares of the fine-tuning steps. students: by name, beside
    the paper's.
    """

    seeds: int = 3
    seeds_alone: int = 1
    rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3)
    lengths: tuple[float, ...] = (0.5, 1.0)
    students: Mapping[str, Architecture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.rates or min(*self.rates, *self.lengths, 1.0) <= 0:
            raise ValueError("an experiment has at least one seed, and rates and lengths above zero")
        if not 0 <= self.seeds_alone <= self.seeds:
            raise ValueError(f"seeds alone is {self.seeds_alone}; it is from 0 to the seeds of the joint rows, {self.seeds}")
        named = (TEACHER, PAPER, BASELINE, *map(from_scratch, (PAPER, *self.students)), *self.students)
        for other, name in itertools.combinations(named, 2):
            if slug(other) == slug(name):
                raise ValueError(f"a student is named {name!r}, and another row of the table {other!r}: name the file otherwise")


def from_scratch(student: str) -> str:
    return f"{student} from scratch"


def slug(text: str) -> str:
    return text.lower().replace(",", "").replace("'s", "").replace(" ", "-")


def new_experiment(config: StudyConfig, experiment: Experiment) -> Study:
    """Raises ValueError, before a folder is made, for a rate that no recipe has and a student that does not fit the teacher."""
    for rate in experiment.rates:
        dataclasses.replace(config.recipe, rate=rate)
    teacher = load_teacher(config.teacher)
    for name, student in {PAPER: paper_student(teacher.architecture), **experiment.students}.items():
        try:
            make_student(teacher, config.recipe, ("keyword",), student, config.recipe.start, distilled=True)
        except ValueError as error:
            raise ValueError(f"the student {name}: {error}") from None
    return create_study(config, fill=lambda study: study.write_json(EXPERIMENT_FILE, dataclasses.asdict(experiment)))


def read_experiment(study: Study) -> Experiment:
    """Raises ValueError for an experiment of an older version."""
    fields: dict[str, Any] = study.read_json(EXPERIMENT_FILE)
    if "students" not in fields:
        raise ValueError(f"the experiment {study.config.name} was begun by an older version, with one student: begin a new one")
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    students = {name: Architecture.from_dict(student) for name, student in fields["students"].items()}
    return Experiment(**{**fields, **lists, "students": students})
