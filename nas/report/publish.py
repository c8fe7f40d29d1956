"""The mirror in MLflow: finals as runs, front members as models and registered versions with their aliases."""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nas.planning.plan import named_file
from nas.report.description import model_description, study_description, version_tags
from nas.report.files import write_report
from nas.report.front import Member, build_front
from nas.report.page import PAGE_FILE
from nas.stages.finals import Final, read_finals
from nas.study.folder import Study, command_of
from nas.study.room import found_no_room
from nas.tracking.mirror import Tracking
from nas.tracking.models import log_model, register
from nas.tracking.outage import first_line
from nas.tracking.pages import artifact_link, members_link
from nas.worker.context import Context
from nas.worker.evaluate import read_outcome
from trainers.learning.batches import cut, window_starts
from trainers.networks.student import ARCHITECTURE_FILE, WEIGHTS_FILE, weights_hash
from trainers.scoring.metrics import worst_speakers
from trainers.scoring.thresholds import clip_thresholds
from trainers.speech.corpora import stated_licences

MODEL_FILE, CLIPS_FILE = "model.json", "clips.npy"
PARITY_CLIPS = 32
FULL_SCALE = 32767


def report(context: Context, tracking: Tracking) -> dict[str, Any]:
    """Writes the front to the study folder and to MLflow, which then has all of the study, also what it missed before.

    Raises ValueError when MLflow does not take it: nothing is lost then, and resuming the study logs it again.
    """
    study = context.study
    write_report(study, build_front(study))
    try:
        for candidate in study.candidates():
            tracking.log_candidate(candidate)
        front = build_front(study, log_finals(study, tracking))
        publish(context, tracking, front, write_report(study, front))
    except Exception as error:  # MLflow's and its transports' many kinds
        if found_no_room(error):
            raise
        raise ValueError(
            f"MLflow did not take the results ({first_line(error)}); the front is in {study.folder}, and "
            f"`srlnas {command_of(study.folder)} --resume {study.config.name}` logs it again"
        ) from error
    return front


def log_finals(study: Study, tracking: Tracking) -> dict[str, str]:
    """Every training at full length as a child run; returns run ids by name."""
    return {final.name: _log_final(final, tracking) for final in read_finals(study) if final.scores or final.error}


def _log_final(final: Final, tracking: Tracking) -> str:
    architecture = final.architecture.to_json()
    steps = {"distill_steps": final.distill_steps, "finetune_steps": final.finetune_steps}
    log = functools.partial(
        tracking.log_run,
        final.name,
        kind="finalist" if final.role == "finalist" else "reference",
        params={**json.loads(architecture), "start": final.start, **steps},
        metrics=final.scores,
        tags={"role": final.role, "latency_kind": final.latency_kind, **({"error": final.error} if final.error else {})},
        status="FAILED" if final.error else "FINISHED",
    )
    try:
        return log()
    except ValueError:  # MLflow has another one of the name: of a study that was begun anew, or that failed at another length
        return log(key="-".join([final.name, *map(str, steps.values()), hashlib.sha256(architecture.encode()).hexdigest()[:12]]))


def publish(context: Context, tracking: Tracking, front: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """The front on the parent run, and each member as a version of the registered model named like the study. Candidates, which are
    the front where no finalist was trained, are no models: they were never tested."""
    study, registered = context.study, front.get("tuned_from", {}).get("registered", context.study.config.name)
    page_link = artifact_link(tracking.experiment_id, tracking.run_id, PAGE_FILE)
    described = study_description(front, page_link, members_link(tracking.experiment_id))
    for member in front["members"] if front["stage"] == "final" else ():
        with tempfile.TemporaryDirectory() as folder:
            _fill_model_folder(context, front, member, Path(folder))
            model_id = log_model(tracking, member["run_id"], member["name"], Path(folder), metrics=member["scores"])
        register(
            tracking.client,
            registered,
            model_id,
            aliases=member["aliases"],
            tags=version_tags(front, member),
            description=model_description(front, member, page_link),
        )
    found = {"hypervolume": front["hypervolume"] or 0.0, "members": len(front["members"])}
    tracking.log_front(front, page=study.folder / PAGE_FILE, plots=pictures, metrics=found)
    tracking.describe(described)
    if front["stage"] == "final" and "tuned_from" not in front:
        tracking.client.update_registered_model(registered, described)


def _fill_model_folder(context: Context, front: Mapping[str, Any], member: Member, folder: Path) -> None:
    """The student, what it scored and where it comes from, and a few real windows on which an export is checked."""
    student = context.study.weights_folder(member["name"])
    for name in (ARCHITECTURE_FILE, WEIGHTS_FILE):
        shutil.copyfile(student / name, folder / name)
    np.save(folder / CLIPS_FILE, parity_clips(context))
    content = {
        "scores": member["scores"],
        "latency": {
            "milliseconds": member["scores"]["latency_ms"],
            "low": member["scores"]["latency_low"],
            "high": member["scores"]["latency_high"],
            "how": member["latency_kind"],
            **{name: value for name, value in member["scores"].items() if name.startswith("predicted_latency_")},
            "memory_bytes": member["scores"]["memory_bytes"],
        },
        "voice_thresholds": clip_thresholds(read_outcome(student / "outcome_val.npz")),
        "worst_speakers": worst_speakers(read_outcome(student / "outcome_test.npz")),
        "target": context.study.config.target,
        "precision": context.target.precision,
        "threads": context.target.threads,
        "synthetic": front["synthetic"],
        "provenance": {
            "study": context.study.config.name,
            "member": member["name"],
            "candidate": member["candidate"],
            "run_id": member["run_id"],
            "weights": weights_hash(student),
            "teacher": {"name": context.teacher.name, "digest": context.teacher.digest, "licence": context.teacher.licence},
            "corpus": {
                "files": [Path(path).name for path in context.study.config.data],
                "digest": context.corpus.digest,
                "licences": stated_licences(context.corpus) if context.study.config.data else {},
            },
            "noise": stated_licences(context.augment.noise) if context.augment.noise else {},
            "steps": member["steps"],
            "seed": context.study.config.seed,
            "srlnas": version("srlnas"),
            "machine": front["machine"],
            **({"began_with": named.name} if (named := named_file(context.study.config.warm_start)) else {}),
            **({"tuned_from": front["tuned_from"]} if "tuned_from" in front else {}),
        },
    }
    (folder / MODEL_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def parity_clips(context: Context) -> np.ndarray[Any, np.dtype[np.int16]]:
    """(PARITY_CLIPS, window) int16: windows of validation clips, spread over the split."""
    rows = context.corpus.rows("val", with_keyword=True)
    picked = rows[np.linspace(0, len(rows) - 1, min(PARITY_CLIPS, len(rows))).astype(int)]
    window = context.target.window
    cuts = [cut(context.corpus, int(row), window_starts(context.corpus.length(int(row)), window)[0], window) for row in picked]
    return np.round(np.stack(cuts) * FULL_SCALE).astype(np.int16)
