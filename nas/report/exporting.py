"""From a model in MLflow to a bundle, and what that showed back onto the page of its study."""

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle, write_bundle
from deploy.card import shown_lines
from deploy.hearing import Speech, listening
from deploy.target import Precision, load_target
from nas.report.elsewhere import elsewhere
from nas.report.front import EXPORTS_FILE, FRONT_FILE, add_exports
from nas.report.listening import judge_of
from nas.report.page import PAGE_FILE, write_page
from nas.report.publish import CLIPS_FILE, FULL_SCALE, MODEL_FILE
from nas.study.budget import append_line
from nas.study.folder import open_study
from nas.study.progress import say
from nas.tracking.outage import first_line
from nas.tracking.registry import log_beside, resolve_model
from search_spaces.kinds import text_of


def export_model(
    model: str,
    name: str | None,
    tracking_uri: str,
    exports: Path,
    speech_of: Callable[[Mapping[str, Any]], Speech | None] = lambda provenance: None,
    precision: Precision | None = None,
    accept_loss: bool = False,
) -> Bundle:
    """Fetches a model from MLflow and writes it as a bundle below `exports`.

    speech_of: of a model's provenance, the speech on which thresholds for its keywords are chosen. precision: the one that it was
    searched for where it is None. accept_loss: whatever int8 loses.
    Raises ValueError for an unknown model, a name that is taken or not allowed, and a file that differs from the student.
    """
    if name is not None and name != Path(name).name:
        raise ValueError(f"--name is {name!r}: it is the name of a folder below {exports}, without slashes")
    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve_model(model, tracking_uri, folder=Path(folder))
        default = f"{resolved.name}-{resolved.version}" if resolved.version is not None else resolved.name
        try:
            content = json.loads(text_of(resolved.folder / MODEL_FILE))
        except FileNotFoundError:
            raise ValueError(f"{model} is no model of srlnas: it has no {MODEL_FILE}") from None
        target = replace(load_target(content["target"]), precision=content.get("precision", "fp32"))
        if target.threads != content.get("threads", target.threads):
            raise ValueError(f"{model} was measured with {content['threads']} threads, {target.name} now says {target.threads}")
        if target.precision == "int8" and precision == "fp32":
            raise ValueError(f"{model} was scored and measured in int8: leave --precision out, or search again in fp32")
        is_int8 = "int8" in (precision, target.precision)
        if accept_loss and not is_int8:
            raise ValueError("--accept-loss is for --precision int8")
        judge = judge_of(content["provenance"], accept_loss) if is_int8 else None
        speech = speech_of(content["provenance"])
        clips = np.load(resolved.folder / CLIPS_FILE, allow_pickle=False).astype(np.float32) / FULL_SCALE
        bundle = write_bundle(
            resolved.folder,
            exports / (name or default),
            target=target,
            clips=clips,
            synthetic=content["synthetic"],
            scores=content["scores"],
            latency=content["latency"],
            provenance=content["provenance"],
            voice_thresholds=content.get("voice_thresholds", ()),  # models that were logged before have none
            worst_speakers=content.get("worst_speakers"),
            elsewhere=elsewhere(content["provenance"]["study"], resolved.folder),
            judge=judge,
            listening=functools.partial(listening, speech=speech) if speech else None,
        )
    _note(content["provenance"], bundle, tracking_uri)
    return bundle


def _note(provenance: Mapping[str, Any], bundle: Bundle, tracking_uri: str) -> None:
    """What thresholds and integers showed, onto the page of the study that found the model, where that is in this folder, and onto
    MLflow's copy of it."""
    with suppress(ValueError):
        study = open_study(provenance["study"], commands=("search", "tune"))
        front = study.read_json(FRONT_FILE) or {"members": []}
        if provenance["run_id"] not in [member.get("run_id") for member in front["members"]]:
            return
        manifest = bundle.manifest
        shown = [line.strip().removeprefix("- ") for line in shown_lines(manifest)]
        about = {"name": bundle.folder.name, "precision": manifest["precision"], "shown": shown}
        append_line(study.folder / EXPORTS_FILE, {"member": provenance["member"], **about})
        add_exports(front, study)
        study.write_json(FRONT_FILE, front)
        write_page([front], study.folder / PAGE_FILE)
        try:
            log_beside(provenance["run_id"], study.folder / PAGE_FILE, tracking_uri)
        except Exception as error:  # MLflow's and its transports' many kinds
            say(f"MLflow keeps its {PAGE_FILE} as it was: {first_line(error)}")
