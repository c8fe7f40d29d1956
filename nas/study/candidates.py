"""What a search speaks of: objectives, and candidates with their state, scores and cost."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any, Literal, get_args

from search_spaces.architecture import Architecture
from search_spaces.kinds import made_of

Kind = Literal["measured", "calibrated", "data sheet"]  # how a latency is known
KINDS: tuple[Kind, ...] = get_args(Kind)
State = Literal["running", "complete", "stopped", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A score that the search minimises. Limits are the study's (`StudyConfig`) and the target's."""

    name: str
    unit: str


KEYWORD_ERROR = Objective(name="keyword_error", unit="%")
EER = Objective(name="eer", unit="%")
LATENCY = Objective(name="latency_ms", unit="ms")
OBJECTIVES = (KEYWORD_ERROR, EER, LATENCY)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One student of a study. Changed by `dataclasses.replace` alone.

    rung: the last that it finished, from 1; 0 before. scores: there, by name; quality in percent on the validation split, costs
    (params, macs, weight_bytes, peak_activation_bytes), latency_ms and memory_bytes as predicted, each with _low and _high.
    seconds: resource-seconds used. weights: folder of the trained student, relative to the study.
    error: why it was refused or failed. run_id: its MLflow run. latency_kind: what its latency and memory rest on.
    """

    number: int
    architecture: Architecture
    state: State
    scores: Mapping[str, float] = field(default_factory=dict)
    rung: int = 0
    seconds: float = 0.0
    weights: str | None = None
    error: str | None = None
    run_id: str | None = None
    latency_kind: Kind = "calibrated"

    def to_json(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["architecture"] = json.loads(self.architecture.to_json())
        return json.dumps(fields, sort_keys=True, default=dict)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Candidate":
        """Raises ValueError or KeyError for what is no candidate."""
        values = {**fields, "architecture": Architecture.from_dict(fields["architecture"])}
        return made_of(cls, values)


def values_of(scores: Mapping[str, float]) -> list[float]:
    """The objectives' values; NaN where a score is missing."""
    return [float(scores.get(objective.name, nan)) for objective in OBJECTIVES]
