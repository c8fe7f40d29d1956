"""Trainings at full length, finalists and references: what `finals.jsonl` has of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from nas.device.known import study_target
from nas.study.budget import append_line, records
from nas.study.candidates import Candidate, Kind, values_of
from nas.study.config import check_name
from nas.study.folder import Study
from nas.study.pareto import non_dominated
from nas.worker.task import Start, Task, task_json
from search_spaces.architecture import Network, network_from_dict
from search_spaces.kinds import made_of

Role = Literal["finalist", "teacher", "paper's student", "BC-ResNet", "knee from scratch", "tutor", "as it was"]
SCRATCH: Role = "knee from scratch"
AS_IT_WAS: Role = "as it was"  # the model that is tuned on
TUTOR = "tutor"  # its folder in `students/`, and what the ledger calls it
FINALS_FILE = "finals.jsonl"
PREDICTED = "predicted_latency_ms"


@dataclass(frozen=True, kw_only=True)
class Final:
    """One training at full length. name: also of its folder in `students/`. candidate: number of a finalist's candidate.
    latency_kind: predicted until the student itself was measured, after training; then `scores` has predicted_* too.
    latency_marks: what speaks against that measurement. tutor_steps: of the tutor that it asks, 0 without one. source: of
    `students/`, the candidate or the tutor that it is, as that was trained. read_before: tested as a candidate, then trained on."""

    name: str
    role: Role
    architecture: Network
    start: Start
    distill_steps: int
    finetune_steps: int
    candidate: int | None = None
    tutor_steps: int = 0
    source: str | None = None
    read_before: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    latency_kind: Kind = "calibrated"
    latency_marks: tuple[str, ...] = ()
    error: str | None = None

    @property
    def updates(self) -> int:
        """Batches that it learned from: a step of fine-tuning has one of each task."""
        return self.distill_steps + 2 * self.finetune_steps

    def objectives(self) -> list[float]:
        return values_of(self.scores)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "architecture": json.loads(self.architecture.to_json())}, sort_keys=True)


def read_finals(study: Study) -> list[Final]:
    """The latest record of each training at full length."""
    return list({final.name: final for final in records(study.folder / FINALS_FILE, _final)}.values())


def _final(line: dict[str, Any]) -> Final:
    """Raises ValueError, KeyError or TypeError for what is none, and for names that leave the study: others may have written it."""
    for name in filter(None, (line["name"], line.get("source"))):
        check_name(name)
    marks = tuple(line.get("latency_marks", ()))
    values = {**line, "architecture": network_from_dict(line["architecture"]), "latency_marks": marks}
    return made_of(Final, values)


def members_of(finals: Sequence[Final]) -> list[Final]:
    """Finalists that were tested; of a candidate that was trained on after it was tested, that training."""
    tested = [final for final in finals if final.role == "finalist" and final.scores]
    trained_on = {final.candidate for final in tested if not final.source}
    return [final for final in tested if not final.source or final.candidate not in trained_on]


def front_of(finals: Sequence[Final]) -> list[Final]:
    """The members that no other beats on validation speakers."""
    members = members_of(finals)
    if not members:
        return []
    return [member for member, on in zip(members, non_dominated(np.array([m.objectives() for m in members]))) if on]


def unbeaten(candidates: Sequence[Candidate], finals: Sequence[Final]) -> list[Candidate]:
    """Complete candidates that were not trained on, and that no other one and no finalist beats on validation speakers."""
    tested = [final for final in finals if final.role == "finalist" and final.scores]
    begun = {final.candidate for final in tested}
    left = [c for c in candidates if c.state == "complete" and c.number not in begun]
    points = np.array([*(values_of(c.scores) for c in left), *(final.objectives() for final in tested)]).reshape(-1, 3)
    return [candidate for candidate, on in zip(left, non_dominated(points)) if on]


def final_task(study: Study, final: Final, **changed: Any) -> str:
    """What a worker is asked for; of what is not deployed, the teacher and its tutor, in fp32. changed: fields of the task."""
    task = Task(
        study=str(study.folder.resolve()),
        name=final.name,
        architecture=final.architecture.to_json(),
        start=final.start,
        distill_steps=final.distill_steps,
        finetune_steps=final.finetune_steps,
        splits=("val", "test"),
        seed=study.config.seed,
        tutor=TUTOR if final.tutor_steps else None,
        source=final.source,
        precision="fp32" if final.role in ("teacher", "tutor") else study_target(study.config).precision,
    )
    return task_json(replace(task, **changed))


def record_final(study: Study, *finals: Final) -> None:
    """At once: a study whose finals are recorded in part would take that for all that was wanted."""
    append_line(study.folder / FINALS_FILE, "\n".join(final.to_json() for final in finals))


def is_done(study: Study, final: Final) -> bool:
    """What failed is not: it is tried again when the study is resumed."""
    return any(done.name == final.name and done.scores for done in read_finals(study))


def as_predicted(scores: Mapping[str, float]) -> bool:
    """Whether the measured latency lies in the interval that was predicted for it."""
    return scores["predicted_latency_low"] <= scores["latency_ms"] <= scores["predicted_latency_high"]
