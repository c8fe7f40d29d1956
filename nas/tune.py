"""`srlnas tune`: a model of an earlier study is tuned on, on that study's speech and on more, and becomes a version of that model.

It lives in a study folder of its own. Its front has one member, and beside it the model as it was, scored on the same clips.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nas.device.known import DEVICE_FILE
from nas.planning.preparation import calibrate_target, check_config, prepare, sized
from nas.planning.tuning import TuningPlan, planned_tuning
from nas.report.files import write_report
from nas.report.front import build_front
from nas.report.listening import check_member
from nas.report.publish import MODEL_FILE, report
from nas.stages.finals import AS_IT_WAS, TUTOR, Final, final_task, is_done, record_final
from nas.stages.measure import measure_finals
from nas.stages.tutor import has_tutor, prepare_tutor
from nas.study.budget import Account, in_words, parse_budget
from nas.study.config import StudyConfig
from nas.study.folder import LINEAGE_FILE, STUDIES, Study, create_study, open_folder
from nas.study.progress import progress
from nas.tracking.connection import default_tracking_uri
from nas.tracking.mirror import tracked
from nas.tracking.registry import resolve_model
from nas.worker import cluster
from nas.worker.context import MODEL, Context, embedded_corpus
from nas.worker.ending import ended_by_sigterm
from nas.worker.own_ray import watched
from nas.worker.trainings import run_alone
from nas.worker.unfinished import forget, forget_all
from search_spaces.architecture import Architecture, Heads
from search_spaces.kinds import text_of
from trainers.networks.student import ARCHITECTURE_FILE, WEIGHTS_FILE, load_student, save_student, with_keywords

TUNED = "tuned"
DEFAULT_BUDGETS = {"cpu": "20cpu-minutes", "gpu": "5gpu-minutes"}


def begin_tuning(
    model: str,
    *,
    name: str,
    budget: str | None,
    tracking_uri: str | None,
    data: Sequence[str],
    trials: Sequence[str],
    ray_address: str | None,
    **changed: Any,
) -> Study:
    """A study that tunes a model on: with the configuration of the one that found it, further corpora, and what else is `changed`.

    model: as `resolve_model` takes it. data, trials: absolute paths, beside those of that study. budget: by default some minutes of
    the resource that the study spent.
    Raises ValueError for an unknown model, and where the study that found it is not here, or is another one by now.
    """

    def fill(study: Study) -> None:
        place = study.weights_folder(MODEL)
        place.mkdir(parents=True)
        for file in (WEIGHTS_FILE, ARCHITECTURE_FILE):
            shutil.copyfile(resolved.folder / file, place / file)
        study.write_json(LINEAGE_FILE, _lineage(resolved.name, resolved.version, content))
        if (profile := found_by.read_json(DEVICE_FILE)) and (config.target, config.recipe.heads) == of_profile:
            study.write_json(DEVICE_FILE, profile)
        if not data and has_tutor(found_by):
            shutil.copytree(found_by.weights_folder(TUTOR), study.weights_folder(TUTOR))

    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve_model(model, tracking_uri or default_tracking_uri(), folder=Path(folder))
        if not (resolved.folder / MODEL_FILE).is_file():
            raise ValueError(f"{model} is no model of srlnas: it has no {MODEL_FILE}")
        content = json.loads(text_of(resolved.folder / MODEL_FILE))
        found_by = _found_by(content["provenance"], model)
        budget = budget or DEFAULT_BUDGETS[parse_budget(found_by.config.budget).resource]
        config = _config(found_by.config, data, trials, name=name, budget=budget, tracking_uri=tracking_uri, **changed)
        of_profile = (found_by.config.target, found_by.config.recipe.heads)
        check_config(config, ray_address)
        return create_study(config, fill=fill)


def tune(study: Study, console: Console, *, ray_address: str | None = None, budget: str | None = None) -> dict[str, Any]:
    """Runs or continues it; returns its front. budget: the new total of one that goes on. Raises ValueError for what the user can
    mend."""
    with study.locked():
        study = study.told(budget=budget)
        config, total = study.config, parse_budget(study.config.budget)
        cluster.connect(ray_address)
        cluster.workers(config, total)
        with (
            ended_by_sigterm(study.folder),
            tracked(config.tracking_uri, config.name, tags={"budget": config.budget}) as tracking,
        ):
            context = sized(prepare(study, total, console), total)
            with watched(f"srlnas tune --resume {config.name}"):
                _run(context, cluster.account_of(context.study, total), console)
            write_report(study, build_front(study))
            front = report(context, tracking)
    shutil.rmtree(context.batches, ignore_errors=True)
    forget_all(study)
    return front


def _run(context: Context, account: Account, console: Console) -> None:
    study = context.study
    _widen(context, console)
    calibrate_target(context, account, console)
    architecture = load_student(study.weights_folder(MODEL)).architecture
    assert isinstance(architecture, Architecture), "a baseline is no member of a front"
    plan = planned_tuning(context, architecture, account, has_tutor=has_tutor(study))
    tutor = f"a tutor of {plan.tutor_steps:,} steps in {in_words(plan.tutor_seconds)}, then " if plan.tutor_steps else ""
    console.print(f"plan: {account.budget}; {tutor}{plan.steps:,} steps of both tasks in {in_words(plan.seconds)}")
    if plan.tutor_steps:
        with progress(console, "tutor", in_words) as tick:
            prepare_tutor(context, account, tick, steps=plan.tutor_steps, seconds=plan.tutor_seconds, cores=plan.cores)
    for final in _finals(study, architecture, plan):
        if not is_done(study, final):
            _train(context, account, final, plan, console)
    measure_finals(context, account)


def _widen(context: Context, console: Console) -> None:
    """Lets the model know of the keywords that came with further speech, once."""
    study, keywords = context.study, context.corpus.keyword_labels
    student = load_student(study.weights_folder(MODEL))
    if missing := set(student.keywords) - set(keywords):
        raise ValueError(f"the speech has no clips of {', '.join(sorted(missing))}, which the model knows")
    if new := sorted(set(keywords) - set(student.keywords)):
        console.print(f"new keywords: {', '.join(new)}")
        study.write_json(LINEAGE_FILE, {**study.read_json(LINEAGE_FILE), "new_keywords": new})
    if keywords != student.keywords:
        with study.new_weights(MODEL) as wider:
            save_student(with_keywords(student, keywords), wider)


def _finals(study: Study, architecture: Architecture, plan: TuningPlan) -> list[Final]:
    """The model as it was, and tuned on."""
    before = study.read_json(LINEAGE_FILE)["steps"]
    as_it_was = Final(
        name="as-it-was",
        role=AS_IT_WAS,
        architecture=architecture,
        start="model",
        distill_steps=before["distill"],
        finetune_steps=before["finetune"],
        source=MODEL,
    )
    tuned = Final(
        name=TUNED,
        role="finalist",
        architecture=architecture,
        start="model",
        distill_steps=0,
        finetune_steps=plan.steps,
        tutor_steps=plan.tutor_steps or before.get("tutor", 0) * has_tutor(study),
        read_before=True,
    )
    return [as_it_was, tuned]


def _train(context: Context, account: Account, final: Final, plan: TuningPlan, console: Console) -> None:
    study = context.study
    cores = 0.0 if final.source else cluster.cores_alone(study.config, plan.cores)
    seed = study.config.seed + study.read_json(LINEAGE_FILE)["generation"]  # else it would hear the same windows again
    task = final_task(study, final, seed=seed, tutor=TUTOR if has_tutor(study) else None, cpus=cores or None)
    with progress(console, final.name, in_words) as tick:
        expected = 0.0 if final.source else plan.seconds
        report = run_alone(task, study.config, account, what="tuning", expected=expected, tick=tick, cores=cores)
    kind = context.device.latency_model.kind
    record_final(study, dataclasses.replace(final, scores=report.get("scores", {}), error=report.get("error"), latency_kind=kind))
    if "error" in report:
        raise ValueError(f"{final.name} failed: {report['error']}; `srlnas tune --resume {study.config.name}` tries again")
    forget(study, final.name)


def _found_by(provenance: Mapping[str, Any], model: str) -> Study:
    folder = STUDIES / provenance["study"]
    if not (folder / "study.toml").is_file():
        raise ValueError(f"{model} was found by the study {provenance['study']}, which is not in {STUDIES}/: run this where it is")
    study = open_folder(folder)
    check_member(study, provenance)
    return study


def _config(found_by: StudyConfig, data: Sequence[str], trials: Sequence[str], **changed: Any) -> StudyConfig:
    own = found_by.data or ((str(embedded_corpus(Path(found_by.cache)).resolve()),) if data else ())
    more = {"data": (*own, *data), "trials": (*found_by.trials, *trials), "distill_steps": 0, "finetune_steps": None}
    more |= {"warm_start": "off", "learn_from": (), "rungs": None}  # what the search began with may be gone
    # What is exported reads its states, and predicts none.
    heads: Heads = "mean" if found_by.recipe.heads == "predictions" else found_by.recipe.heads
    if parse_budget(changed["budget"]).resource == "cpu":
        more["gpus"] = 0.0
    more["recipe"] = dataclasses.replace(found_by.recipe, distilling=0.0, heads=heads)
    return dataclasses.replace(found_by, **{**more, **{name: value for name, value in changed.items() if value is not None}})


def _lineage(name: str, version: int | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """Where a tuned model comes from; goes with it."""
    before = content["provenance"]
    return {
        "model": f"models:/{name}/{version}" if version is not None else f"run {before['run_id']}",
        "registered": name if version is not None else before.get("tuned_from", before)["study"],
        "study": before["study"],
        "member": before["member"],
        "steps": before["steps"],
        "generation": before.get("tuned_from", {}).get("generation", 0) + 1,
    }
