"""The shared student of a study: whether it pays, and how it is made. Candidates that begin with its weights are not distilled."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from nas.planning.plan import Plan, named_file
from nas.stages.finals import TUTOR
from nas.study.budget import Account
from nas.study.folder import Study
from nas.worker.cluster import cores_alone
from nas.worker.context import SHARED_FILE, Context, space_of
from nas.worker.trainings import run_alone, train_shared
from trainers.learning.elastic import check_shared
from trainers.learning.resume import kept_position

SPENT_ON = "shared student"


def prepare_shared(context: Context, plan: Plan, account: Account, tick: Callable[[float, float], None]) -> None:
    """Makes it, where the plan has one and the study folder has not: from the file that was named, from what another study of the
    same teacher, corpus, space and recipe left in the cache, or in a worker, and charged.

    Raises ValueError when the named file is of another space, teacher or recipe, and when its distillation failed.
    """
    study, path = context.study, context.study.folder / SHARED_FILE
    named = named_file(study.config.warm_start)
    if has_shared(study, plan):
        return
    if named and not named.is_file():
        raise ValueError(
            f"the shared student {named} is gone: put it back, and `srlnas search --resume {study.config.name}` goes on"
        )
    source = named or cached_file(context, plan)
    if source.is_file() and (named or kept_position(source)):
        _check(context, source)
        shutil.copy(source, path)
        return
    tutor = TUTOR if plan.tutor_steps else None
    cores = cores_alone(study.config, plan.alone_cores)
    task = json.dumps({"study": str(study.folder.resolve()), "steps": plan.shared_steps, "tutor": tutor, "cpus": cores or None})
    expected = plan.shared_seconds
    report = run_alone(task, study.config, account, what=SPENT_ON, expected=expected, tick=tick, cores=cores, function=train_shared)
    if "error" in report:
        raise ValueError(
            f"the shared student was not made: {report['error']}; `srlnas search --resume {study.config.name}` goes on, "
            "a search with --warm-start off does without it"
        )
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, source)


def check_named(context: Context) -> None:
    """Raises ValueError, before more is spent, where a shared student was named that knows other keywords than the corpus has."""
    named = named_file(context.study.config.warm_start)
    if named and named.is_file():
        _check(context, named)


def _check(context: Context, source: Path) -> None:
    check_shared(source, space_of(context), context.teacher, context.study.config.recipe, context.corpus.keyword_labels)


def has_shared(study: Study, plan: Plan) -> bool:
    """Whether all is there that the plan has of one; a file that was named is copied as it is."""
    made = kept_position(study.folder / SHARED_FILE)
    return not plan.shared_steps or made.get("tuned", 0) >= plan.shared_steps or bool(named_file(study.config.warm_start) and made)


def cached_file(context: Context, plan: Plan) -> Path:
    config = context.study.config
    what = [
        config.space,
        context.teacher.digest,
        context.corpus.digest,
        context.heard,
        config.seed,
        plan.shared_steps,
        plan.tutor_steps,
    ]
    return Path(config.cache) / "shared" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.safetensors"
