"""srlnas from Python, for notebooks and schedulers: the calls that the command line makes itself.

    from nas.api import StudyConfig, export, front, open_study, search

    search(StudyConfig(name="kitchen", space="edge", budget="8gpu-hours", data=("kitchen.parquet",)))
    search("kitchen", budget="16gpu-hours")              # goes on: after an interruption, or with a larger budget
    found = front(open_study("kitchen"))
    bundle = export("models:/kitchen@knee", precision="int8")

What a user can mend is a ValueError. Ctrl-C and SIGTERM are a KeyboardInterrupt, after which `search` with the name goes on.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from deploy.bundle import Bundle
from deploy.hearing import Speech
from deploy.target import Precision
from nas.planning.preparation import check_config, check_target
from nas.report.exporting import export_model
from nas.report.front import FRONT_FILE, build_front
from nas.report.listening import speech_of
from nas.search import search as run_search
from nas.study.budget import in_words
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study, open_study
from nas.study.progress import console, progress
from nas.tracking.connection import default_tracking_uri

__all__ = ["Bundle", "Study", "StudyConfig", "export", "front", "open_study", "search"]

EXPORTS = Path("deploy/exports")
RATES = (10.0, 1.0, 0.1)
Provenance = Mapping[str, Any]


def search(
    study: StudyConfig | str,
    *,
    budget: str | None = None,
    workers: int | None = None,
    share: float | None = None,
    ray_address: str | None = None,
    to: Console | None = None,
) -> dict[str, Any]:
    """Begins a study, whose folder is `studies/NAME`, or goes on with the one of that name; returns its front as `front` does.

    budget: in place of the study's, the new total of one that goes on. workers, share: likewise. ray_address: of a cluster to join;
    without it RAY_ADDRESS, else Ray on this machine. to: where progress is told; standard output without it.
    Raises ValueError for what the user can mend, before anything is spent where that can be known.
    """
    if isinstance(study, str):
        return run_search(open_study(study), to or console(), ray_address=ray_address, budget=budget, workers=workers, share=share)
    told = {"budget": budget, "workers": workers, "share": share}
    given: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    config = dataclasses.replace(study, **given).absolute()
    check_config(config, ray_address)
    check_target(config)
    return run_search(create_study(config), to or console(), ray_address=ray_address)


def front(study: Study) -> dict[str, Any]:
    """The front of a study, finished or not, as `front.json` has it: `stage`, `members`, `references`, `notes` and what they rest
    on (`nas/README.md` tells what the figures mean)."""
    written = study.read_json(FRONT_FILE)
    is_final = written is not None and written["stage"] == "final"
    return dict(written) if is_final else build_front(study)


def export(
    model: str,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    accept_loss: bool = False,
    listen: bool = True,
    negatives: Sequence[Path] = (),
    false_alarms: Sequence[float] = RATES,
    tracking_uri: str | None = None,
    to: Console | None = None,
) -> Bundle:
    """Writes a model of MLflow (a run id, models:/name@alias or models:/name/version) to `deploy/exports`, checked against the
    trained student on real clips.

    name: of the folder. precision: the study's where it is None; int8 is judged on the study's speech; accept_loss: whatever it
    loses. listen: choose thresholds for keywords on streams of the study's speech, for `false_alarms` an hour and keyword, with
    `negatives`, recordings in which none is said. Where the study's speech is not here, a line says that there are none.
    Raises ValueError for what the user can mend.
    """
    _check_export(precision, listen=listen, negatives=negatives, false_alarms=false_alarms)
    to = to or console()
    with ExitStack() as stack:

        def heard(provenance: Provenance) -> Speech | None:
            try:
                found = speech_of(provenance, negatives, false_alarms)
            except ValueError as error:
                if negatives:
                    raise
                to.print(f"no thresholds are chosen for keywords: {error}", markup=False)
                return None
            tick = stack.enter_context(
                progress(to, "listening to speech of the study", lambda seconds: f"{in_words(seconds)} of it")
            )
            return dataclasses.replace(found, progress=tick)

        return export_model(
            model,
            name,
            tracking_uri or default_tracking_uri(),
            EXPORTS,
            heard if listen else lambda provenance: None,
            precision,
            accept_loss,
        )


def _check_export(precision: str | None, *, listen: bool, negatives: Sequence[Path], false_alarms: Sequence[float]) -> None:
    if not all(math.isfinite(rate) and rate > 0 for rate in false_alarms) or len(set(false_alarms)) < len(false_alarms):
        rates = ",".join(f"{rate:g}" for rate in false_alarms)
        raise ValueError(f"--false-alarms is {rates!r}: each rate is a number above zero, and stands there once")
    if negatives and not listen:
        raise ValueError("--negatives are for thresholds, which --no-listen leaves out: give one of them")
    if precision not in (None, *get_args(Precision)):
        raise ValueError(f"--precision is {precision!r}; it is {' or '.join(get_args(Precision))}")
