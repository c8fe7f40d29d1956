"""Before a search: what can be seen wrong at once, then speech, teacher states, and a worker's share of a GPU."""

import dataclasses
import math
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from deploy.measure import device_facts
from nas.device.known import is_of_this_machine, is_prepared, known_profile, prepare_device, study_profile, study_target
from nas.planning.pace import measured_gpu_share
from nas.planning.plan import check_rungs, named_file
from nas.proposals.earlier import FEWEST, teaches
from nas.study.budget import Account, Budget, parse_budget
from nas.study.config import StudyConfig
from nas.study.folder import Study, earlier_studies
from nas.study.progress import progress
from nas.tracking.connection import connect as connect_mlflow
from nas.tracking.connection import default_tracking_uri
from nas.worker import cluster
from nas.worker.context import Context, cost_of, open_context
from search_spaces.catalog import CATALOG, find_space
from search_spaces.space import Replay
from trainers.learning.elastic import check_shared
from trainers.learning.precision import pick_device
from trainers.speech.corpora import summaries
from trainers.teacher.teacher import load_teacher

PREPARED_FILE = "prepared.json"
STATES_SHARE = 0.05  # of a budget, at most, for teacher states
CALIBRATION_SHARE = 0.05  # of a budget, at most, for measuring the target
BEFORE_SEARCH = CALIBRATION, PREPARATION, PROBE = "calibration", "preparation", "probe"  # purposes in the ledger


def check_config(config: StudyConfig, ray_address: str | None = None) -> None:
    """Raises ValueError, before a study folder is made, for what can be seen wrong without reading the corpus."""
    budget = parse_budget(config.budget)
    check_rungs(config)
    if config.space not in CATALOG:
        raise ValueError(f"there is no space {config.space!r}; known are {', '.join(sorted(CATALOG))}")
    for path in (*config.data, *config.trials, config.noise):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    teacher = load_teacher(config.teacher)
    for study in earlier_studies(config):
        if load_teacher(study.config.teacher).digest != teacher.digest:
            raise ValueError(f"nothing is learnt from the study {study.config.name}: its teacher is {study.config.teacher}")
        if not teaches(study.candidates()):
            raise ValueError(
                f"nothing is learnt from the study {study.config.name}: fewer than {FEWEST} candidates came to its end"
            )
    teacher.geometry.frames(study_target(config).window)  # a Whisper's positions end
    if (shared := named_file(config.warm_start)) is not None:
        if not shared.is_file():
            raise ValueError(f"warm_start is {config.warm_start!r}: neither on, off, auto nor a file")
        check_shared(shared, find_space(config.space, teacher.architecture, teacher.geometry), teacher, config.recipe)
    connect_mlflow(config.tracking_uri or default_tracking_uri())
    cluster.connect(ray_address)
    cluster.workers(config, budget)


def check_members(study: Study) -> None:
    """Raises ValueError, before anything is spent, where a study that goes on has candidates which its space does not hold."""
    if not (candidates := study.candidates()):
        return
    teacher, config = load_teacher(study.config.teacher), study.config
    space = find_space(config.space, teacher.architecture, teacher.geometry)
    for candidate in candidates:
        try:
            space.architecture(Replay(candidate.architecture))
        except ValueError as error:
            raise ValueError(
                f"the space of the study {config.name} is another one than its candidates': {error} "
                f"(candidate {candidate.number}); put back space and teacher in {study.folder}/study.toml, or begin a new study"
            ) from None


def check_target(config: StudyConfig) -> None:
    """Raises ValueError where the target's profile is of no use to this search."""
    known_profile(study_target(config), load_teacher(config.teacher).geometry, config.recipe.heads)


def prepare(study: Study, budget: Budget, console: Console) -> Context:
    """Decodes the corpus, computes the teacher's states, of no more windows than a small share of the budget pays for; charged,
    nothing done twice."""
    on_driver = driver_resources(budget)
    state_seconds = STATES_SHARE * budget.seconds / on_driver if on_driver else math.inf
    with study.ledger.timing(PREPARATION, on_driver), progress(console, "speech and teacher states") as tick:
        context = open_context(study, tick, state_seconds)
        recipe = study.config.recipe
        if on_driver and recipe.fit_windows and recipe.start == "kept layers":  # else the first worker, on its GPU
            context.prepare_lesson()
    console.print(
        f"corpus: {len(context.corpus):,} clips, {len(context.corpus.keyword_labels)} keywords; teacher {context.teacher.name}: "
        f"{_taught(context)}"
    )
    for line in corpus_lines(context):
        console.print(line)
    for remark in context.corpus.remarks:
        console.print(remark)
    if context.corpus.skipped:
        clip, reason = context.corpus.skipped[0]
        console.print(f"{len(context.corpus.skipped)} clips skipped, the first {clip}: {reason}")
    study.write_json(PREPARED_FILE, facts(context))
    return context


def _taught(context: Context) -> str:
    """How students learn its hidden states."""
    if not context.study.config.distils:
        return f"students are fitted to it on {min(context.study.config.recipe.fit_windows, len(context.targets.rows)):,} windows"
    stated = "cached" if context.targets.states is not None else "computed in every batch (too large for the free disk)"
    return f"states of {len(context.targets.rows):,} windows {stated}"


def corpus_lines(context: Context) -> Iterator[str]:
    """A line a corpus where there are several: what it has, and what its scores rest on."""
    corpus = context.corpus
    if len(corpus.names) < 2:
        return
    for number, (name, own) in enumerate(summaries(corpus).items()):
        counts = (np.count_nonzero(corpus.corpus_numbers[context.trials[split].enrol] == number) for split in ("val", "test"))
        trials = "{:,} and {:,} trials".format(*counts)
        yield f"  {name}: {own['clips']:,} clips, {own['keywords']} keywords, {own['speakers']:,} speakers, {trials} (val, test)"


def sized(context: Context, budget: Budget) -> Context:
    """With the share of a GPU that a worker takes, measured on one where the user named none; charged."""
    if context.study.config.gpus or budget.resource == "cpu":
        return context
    share, seconds = cluster.on_a_gpu(measured_gpu_share, str(context.study.folder.resolve()))
    context.study.ledger.charge(PROBE, seconds)
    return dataclasses.replace(context, study=context.study.changed(gpus=share))


def calibrate_target(context: Context, account: Account, console: Console) -> None:
    """Finds what the target needs for a student, in its profile, or measured now, and charged; says which."""
    study = context.study
    if not is_prepared(study) or not is_of_this_machine(study_profile(study)):  # a study may go on elsewhere
        seconds = CALIBRATION_SHARE * account.budget.seconds if account.core else None
        with study.ledger.timing(CALIBRATION, account.core), progress(console, "calibration") as tick:
            prepare_device(study, context.teacher, tick, seconds)
    kind, target = context.device.latency_model.kind, context.target
    console.print(f"latency and memory on {target.name}: {kind}, {target.threads} thread, {target.precision}")
    profile = study_profile(study)
    if profile.disturbances:
        console.print(profile.disturbances)
    measured = {
        "latency_kind": kind,
        "disturbances": profile.disturbances,
        "machine": f"{described(profile.device)}{', scaled by the data sheet' if kind == 'data sheet' else ''}",
    }
    study.write_json(PREPARED_FILE, {**study.read_json(PREPARED_FILE), **measured})


def facts(context: Context) -> dict[str, Any]:
    """What a report says of the study beside its results."""
    return {
        "synthetic": context.corpus.synthetic,
        "corpus": context.corpus.digest,
        "teacher": context.teacher.name,
        "teacher_is_supervised": context.teacher.is_supervised,
        "teacher_params": cost_of(context, context.teacher.architecture, context.teacher.encoder.geometry).params,
        "target": dataclasses.asdict(context.target),
        "machine": described(device_facts()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def described(device: Mapping[str, Any]) -> str:
    return f"{device['cpu']}, {device['cores']} cores, onnxruntime {device['onnxruntime']}"


def driver_resources(budget: Budget) -> float:
    """What a step in the driver holds of the budget's resource: torch's threads, or the GPU that it computes on."""
    return float(torch.get_num_threads()) if budget.resource == "cpu" else float(pick_device().type == "cuda")
