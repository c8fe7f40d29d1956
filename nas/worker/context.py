"""What every training of a study shares, opened once a worker process."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy.target import Target
from nas.device.known import is_prepared, study_device, study_target
from nas.device.profile import Device
from nas.study.budget import parse_budget
from nas.study.config import StudyConfig
from nas.study.folder import PLAN_FILE, Study, open_folder
from search_spaces.architecture import Baseline, Geometry, Heads, Network
from search_spaces.catalog import find_space
from search_spaces.cost import Cost, cost
from search_spaces.space import SearchSpace
from trainers.importing.synthetic import speak_corpus
from trainers.learning.batches import Augmentation
from trainers.learning.lessons import prepare_lesson, read_lesson
from trainers.learning.precision import pick_device
from trainers.learning.targets import Targets, affordable_windows, prepare_targets
from trainers.networks.baselines import counted_cost
from trainers.networks.fitting import Lesson
from trainers.networks.student import Student
from trainers.scoring.draw import Scored, balanced_draw
from trainers.speech.corpora import Corpus, check_trainable
from trainers.speech.loading import load_corpus
from trainers.speech.trial_lists import study_trials
from trainers.speech.trials import Trials
from trainers.teacher.teacher import Teacher, load_teacher

MODEL = "model"  # folder below `students/` of the model that a study tunes on
SHARED_FILE = "shared.safetensors"  # weights of the shared student, in the study folder


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
    heard: str  # names what batches depend on, beside the seed

    @property
    def batches(self) -> Path:
        """Of this study on this node: where another one hears the same, its end must not take them away."""
        digest = hashlib.sha256(f"{self.heard} {self.study.folder.resolve()}".encode()).hexdigest()
        return Path(self.study.config.cache) / "batches" / digest[:16]

    @functools.cached_property
    def lesson(self) -> Lesson:
        """On which students are fitted to the teacher."""
        return read_lesson(self.prepare_lesson(), device_of(self.study.config))

    def prepare_lesson(self) -> Path:
        """Where it is kept; made where the cache lacks it."""
        config = self.study.config
        return prepare_lesson(self.targets, config.recipe.fit_windows, device_of(config), Path(config.cache))

    @functools.cached_property
    def drawn(self) -> Scored:
        """What candidates are scored on: the same of all."""
        return balanced_draw(self.corpus, "val", self.trials["val"], self.target.window)

    @functools.cached_property
    def device(self) -> Device:
        """What the target will need for a student."""
        return study_device(self.study, self.target)


def device_of(config: StudyConfig) -> torch.device:
    """What trains: the CPU where its time is what the budget buys, a GPU or not."""
    return torch.device("cpu") if parse_budget(config.budget).resource == "cpu" and not config.gpus else pick_device()


def open_context(study: Study, progress: Callable[[int, int], None] | None = None, state_seconds: float = math.inf) -> Context:
    """Decodes and computes what the cache lacks. Where teacher states would take longer than `state_seconds`, the study, whose
    configuration then says so, has fewer windows of them."""
    config = study.config
    cache, device = Path(config.cache), device_of(config)
    target, teacher = study_target(config), load_teacher(config.teacher)
    corpus = load_corpus([Path(path) for path in config.data] or [embedded_corpus(cache)], cache)
    check_trainable(corpus)
    trials = study_trials([Path(path) for path in config.trials], corpus, config.seed)
    noise = load_corpus([Path(config.noise)], cache) if config.noise else None
    mode = config.targets if config.distils else "online"
    if math.isfinite(state_seconds) and mode != "online" and not (study.folder / PLAN_FILE).is_file():  # what is planned is heard
        limit, seed = config.target_windows, config.seed
        windows = affordable_windows(
            teacher, corpus, cache, window=target.window, limit=limit, seed=seed, seconds=state_seconds, device=device
        )
        study = study if windows == limit else study.changed(target_windows=windows)
        config = study.config
    targets = prepare_targets(
        teacher,
        corpus,
        cache,
        window=target.window,
        limit=config.target_windows,
        seed=config.seed,
        mode=mode,
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
        heard=hashlib.sha256(json.dumps(_heard(config, corpus, noise, target)).encode()).hexdigest()[:16],
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


def space_of(context: Context) -> SearchSpace:
    return find_space(context.study.config.space, context.teacher.architecture, context.teacher.geometry)


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


def tightest(*limits: float | None) -> float | None:
    """The smallest of the study's and the target's limits, None where neither binds."""
    return min((limit for limit in limits if limit is not None), default=None)
