"""Everything that a search was asked for: one frozen record, written to the study's `study.toml`."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from deploy.target import Precision
from nas.study.budget import Budget, write_whole
from search_spaces.kinds import made_of, text_of
from trainers.learning.recipe import Recipe
from trainers.learning.targets import Mode
from trainers.teacher.folder import absolute_source

Sampler = Literal["gp", "optuna-gp", "tpe", "nsga2", "random"]
FORMAT = 1  # of a study's folder: rises when an older srlnas would misread it


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """name: letters, digits, `.`, `_`, `-`. space: of the catalog. teacher: a bundled one, a folder or a hub id.

    target: a device's name, or a .toml file. precision: of what is deployed; the target's where it is None.
    data: Parquet corpora, side by side; empty for the embedded default. trials: Parquet lists, each for one corpus. noise: Parquet,
    or none.
    budget: `30cpu-minutes`. max_*: limits that refuse a candidate before training (ms; count; bytes of the process).
    candidates: at most so many. distill_steps, finetune_steps: of a candidate on its last rung, rungs: lengths at which it may be
    stopped, each `reduction` times as long as the one before; planned from the budget when None. What is fitted to its teacher
    needs no steps of distillation.
    sampler: of `nas.proposals.searcher`.
    warm_start: whether candidates begin with the weights of a shared student: on, off, auto, or the file of another study's.
    full_length: a finalist's and a reference's steps over a candidate's. finalists: how many at most.
    target_windows: at most so many windows of teacher states. cpus, gpus: of one worker; with a budget of
    GPUs, 0 is a share of one that is measured. workers: trainings at once at most; share: of the cluster, that they hold at most.
    cache: decoded audio, teacher states, references; on every node the same path, filled there when missing.
    learn_from: studies in `studies/` whose candidates proposals learn of.
    recipe: how everything is trained, a table of its own in the file.
    """

    name: str
    space: str = "default"
    teacher: str = "mini"
    data: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    noise: str | None = None
    target: str = "host"
    precision: Precision | None = None
    budget: str = "30cpu-minutes"
    max_latency_ms: float | None = None
    max_params: float | None = None
    max_memory: float | None = None
    candidates: int | None = None
    distill_steps: int | None = None
    finetune_steps: int | None = None
    rungs: int | None = None
    reduction: int = 3
    sampler: Sampler = "gp"
    warm_start: str = "auto"
    full_length: float = 3.0
    finalists: int = 8
    targets: Mode = "auto"
    target_windows: int = 8000
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int | None = None
    share: float = 1.0
    learn_from: tuple[str, ...] = ()
    seed: int = 0
    tracking_uri: str | None = None
    cache: str = "studies/.cache"
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def distils(self) -> bool:
        """Whether anything is trained on the teacher's hidden states, beside the fit in closed form."""
        if self.warm_start not in ("auto", "off"):
            return True
        return not self.recipe.fit_windows if self.distill_steps is None else self.distill_steps > 0

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, least in (("full_length", 1), ("reduction", 2), ("finalists", 1), ("target_windows", 1), ("cpus", 0.01)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least {least}")
        for name, least in (("candidates", 1), ("distill_steps", 0), ("finetune_steps", 1), ("rungs", 1), ("workers", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}; it is at least {least}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it is above 0 and at most 1")
        for name, kinds in (("targets", Mode), ("sampler", Sampler)):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(get_args(kinds))}")
        if self.precision not in (None, *get_args(Precision)):
            raise ValueError(f"precision is {self.precision!r}; allowed are {', '.join(get_args(Precision))}")
        if self.learn_from and self.sampler != "gp":
            raise ValueError(f"{self.sampler} does not learn from earlier studies: leave --learn-from out, or let gp propose")
        if self.recipe.frozen or not (self.recipe.keywords and self.recipe.speakers):
            raise ValueError(
                "a study trains whole students for both tasks: leave keywords, speakers and frozen out of the recipe; "
                "`srlnas reproduce` compares them"
            )

        if not self.distils and (self.recipe.distilling or self.recipe.heads == "predictions"):
            raise ValueError(
                "the recipe's distilling, and heads that read predictions, are for students that are distilled step by step: give "
                "--steps, or fit_windows = 0 in the recipe"
            )

    def held(self, budget: Budget) -> float:
        """What one worker holds of the budget's resource."""
        return self.gpus if budget.resource == "gpu" else self.cpus

    def absolute(self) -> Self:
        """With paths that hold from any folder, on every node."""

        def whole(path: str) -> str:
            return str(Path(path).resolve())

        return dataclasses.replace(
            self,
            teacher=absolute_source(self.teacher),
            data=tuple(map(whole, self.data)),
            trials=tuple(map(whole, self.trials)),
            noise=whole(self.noise) if self.noise else None,
            target=whole(self.target) if self.target.endswith(".toml") else self.target,
            cache=whole(self.cache),
        )

    def write(self, path: Path) -> None:
        """TOML, whole or not at all; what is None is left out. A JSON string, number or list of strings is TOML as it stands."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        recipe = fields.pop("recipe")
        lines = [*_toml({"format": FORMAT, **fields}), "", "[recipe]", *_toml(recipe)]
        write_whole(path, "\n".join(lines) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ValueError on a file that is not TOML, is of a newer srlnas, or has a field that no study has."""
        try:
            fields: dict[str, Any] = tomllib.loads(text_of(path, "utf-8-sig"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        if (version := fields.pop("format", 1)) != FORMAT:
            raise ValueError(
                f"{path} has format {version!r}, this srlnas reads {FORMAT}: go on with the srlnas that began the study"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"{path} has unknown fields {sorted(unknown)}; known are {sorted(known)}")
        recipe = Recipe.from_dict(fields.get("recipe", {}))
        lists = {name: _listed(fields.get(name, ())) for name in ("data", "learn_from", "trials")}
        values = {**fields, **lists, "recipe": recipe}
        return made_of(cls, values)


def _listed(value: Any) -> Any:
    """TOML has lists for tuples; one path alone was written without one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _toml(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]


def check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"the name {name!r} is not allowed: letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
        )
