"""What the paper's experiment trains: the teacher's settings, and the rows of its table."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.paper.experiment import (
    BASELINE,
    FROZEN,
    JOINT,
    KEYWORDS,
    PAPER,
    SPEAKERS,
    TEACHER,
    VARIANTS,
    Experiment,
    from_scratch,
    slug,
)
from nas.worker.context import Context
from nas.worker.task import Start
from search_spaces.architecture import Architecture, Baseline, Network
from search_spaces.catalog import paper_student


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: a line of the table for one seed, or one of the teacher's settings, which is not tested.

    tutor: name of the setting whose tuned teacher a student asks.
    """

    name: str
    model: str
    variant: str
    seed: int
    architecture: Network
    start: Start
    distill_steps: int
    finetune_steps: int
    tuning: Mapping[str, Any]
    splits: tuple[str, ...] = ("val", "test")
    tutor: str | None = None


@dataclass(frozen=True)
class Rows:
    """All rows of an experiment. What validation chooses is an argument: a setting for each variant, and the best student."""

    context: Context
    experiment: Experiment

    @property
    def students(self) -> dict[str, Architecture]:
        return {PAPER: paper_student(self.context.teacher.architecture), **self.experiment.students}

    @property
    def given(self) -> dict[str, Architecture]:
        """Those among which the best is chosen."""
        return dict(self.experiment.students) or self.students

    @property
    def steps(self) -> tuple[int, int]:
        """Of distillation and of fine-tuning."""
        config = self.context.study.config
        assert config.distill_steps is not None and config.finetune_steps, "an experiment names its steps"
        return config.distill_steps, config.finetune_steps

    def settings(self) -> Iterator[Row]:
        """Of the teacher for each variant; the frozen one takes the joint one's."""
        for variant in (JOINT, KEYWORDS, SPEAKERS) if self.experiment.seeds_alone else (JOINT,):
            for rate, length in itertools.product(self.experiment.rates, self.experiment.lengths):
                steps = max(1, round(length * self.steps[1]))
                name, tuning = f"setting-{slug(variant)}-{rate:g}-{steps}", {"rate": rate, **VARIANTS[variant]}
                yield self._row(TEACHER, variant, 0, name=name, tuning=tuning, finetune_steps=steps, splits=("val",))

    def joint(self, setting: Row) -> Iterator[Row]:
        """All models of the first seed, then of the others."""
        for seed in range(self.experiment.seeds):
            yield self._teacher(JOINT, seed, setting)
            yield from (self._row(name, JOINT, seed, tutor=setting.name) for name in self.students)
            yield self._from_nothing(BASELINE, seed, Baseline())

    def scratch(self, best: str) -> Iterator[Row]:
        """The best student's architecture, from nothing."""
        for seed in range(self.experiment.seeds):
            yield self._from_nothing(from_scratch(best), seed, self.students[best])

    def alone(self, settings: Mapping[str, Row], best: str) -> Iterator[Row]:
        """The other variants: of the teacher, the paper's student and the best one."""
        for seed, variant in itertools.product(range(self.experiment.seeds_alone), (KEYWORDS, SPEAKERS, FROZEN)):
            yield self._teacher(variant, seed, settings[JOINT if variant == FROZEN else variant])
            tutor = settings[JOINT].name
            yield from (self._row(name, variant, seed, tutor=tutor) for name in dict.fromkeys((PAPER, best)))

    def _teacher(self, variant: str, seed: int, setting: Row) -> Row:
        tuning = {"rate": setting.tuning["rate"], **VARIANTS[variant]}
        return self._row(TEACHER, variant, seed, tuning=tuning, finetune_steps=setting.finetune_steps)

    def _from_nothing(self, model: str, seed: int, network: Network) -> Row:
        """With as many updates as both trainings of a student; where a step of fine-tuning is one update, it hears more windows."""
        (distill, finetune), is_joint = self.steps, self.context.study.config.recipe.speaker_weight > 0
        steps = finetune + distill // (1 if is_joint else 2)
        return self._row(model, JOINT, seed, architecture=network, start="random", distill_steps=0, finetune_steps=steps)

    def _row(self, model: str, variant: str, seed: int, **changed: Any) -> Row:
        """Of the teacher or a student as they are, but for what is changed."""
        student = {"start": self.context.study.config.recipe.start, "distill_steps": self.steps[0]}
        fields: dict[str, Any] = {"start": "teacher", "distill_steps": 0} if model == TEACHER else student
        fields["architecture"] = {TEACHER: self.context.teacher.architecture, **self.students}.get(model)
        fields |= {"name": f"{slug(model)}-{slug(variant)}-{seed}", "finetune_steps": self.steps[1], "tuning": VARIANTS[variant]}
        return Row(model=model, variant=variant, seed=seed, **{**fields, **changed})


def in_table_order(rows: Sequence[Row]) -> list[Row]:
    """Joint rows first, then variant by variant; of a model all seeds."""
    models = [*dict.fromkeys(row.model for row in rows if row.model != BASELINE), BASELINE]
    return sorted(rows, key=lambda row: (list(VARIANTS).index(row.variant), models.index(row.model), row.seed))
