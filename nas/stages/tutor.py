"""The tutor of a study: its teacher, tuned on the study's keywords and speakers first, so that students can ask for its answers."""

from collections.abc import Callable

from nas.stages.finals import TUTOR, Final, final_task
from nas.stages.references import keep, kept_report
from nas.study.budget import Account
from nas.study.folder import Study, command_of
from nas.worker.cluster import cores_alone
from nas.worker.context import Context
from nas.worker.trainings import run_alone
from nas.worker.unfinished import forget
from trainers.networks.student import ARCHITECTURE_FILE


def has_tutor(study: Study) -> bool:
    return (study.weights_folder(TUTOR) / ARCHITECTURE_FILE).is_file()


def prepare_tutor(
    context: Context, account: Account, tick: Callable[[float, float], None], *, steps: int, seconds: float, cores: float
) -> None:
    """Tunes it in a worker, charged, where the study folder has none; one that another study left in the cache is taken.

    seconds: resource-seconds that are expected. cores: as planned. Raises ValueError when its training failed."""
    study, architecture = context.study, context.teacher.architecture
    if has_tutor(study):
        return
    final = Final(name=TUTOR, role="tutor", architecture=architecture, start="teacher", distill_steps=0, finetune_steps=steps)
    if kept_report(context, final):
        return
    cores = cores_alone(context.study.config, cores)
    task = final_task(study, final, splits=("val",), cpus=cores or None)
    report = run_alone(task, study.config, account, what=TUTOR, expected=seconds, tick=tick, cores=cores)
    if "error" in report:
        raise ValueError(
            f"the tutor was not made: {report['error']}; `srlnas {command_of(study.folder)} --resume {study.config.name}` goes on, "
            "a search whose recipe has tutor_weight = 0.0 does without it"
        )
    keep(context, final, report)
    forget(study, TUTOR)
