"""What a study found, as JSON: members and references with their figures. Read from the study folder alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nas.report.notes import notes
from nas.stages.finals import AS_IT_WAS, SCRATCH, TUTOR, Final, front_of, read_finals
from nas.study.budget import read_lines
from nas.study.candidates import OBJECTIVES, Candidate, values_of
from nas.study.folder import LINEAGE_FILE, Study
from nas.study.pareto import hypervolume, knee, non_dominated
from nas.tracking.connection import shown
from nas.worker.evaluate import read_outcome
from trainers.scoring.metrics import Resampled, contents, resampled
from trainers.scoring.scores import by_corpus

FRONT_FILE = "front.json"
EXPORTS_FILE = "exports.jsonl"
REFERENCE_POINT = (100.0, 50.0)  # keyword error and EER of a student that knows nothing; latency's is the slowest reference's

Member = dict[str, Any]


def _from_scratch(finals: Sequence[Final], best: Final) -> list[Final]:
    """Of the front's knee or, where a later member has taken its place, of the one that was the knee when it was trained."""
    made = [final for final in finals if final.scores and final.role == SCRATCH]
    return [final for final in made if final.candidate == best.candidate] or made[-1:]


def build_front(study: Study, run_ids: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The final front with its references or, before there is one, the front of the candidates so far.

    run_ids: MLflow runs of finals by name.
    """
    facts = study.read_json("prepared.json") or {}
    finals, tuned_from = read_finals(study), study.read_json(LINEAGE_FILE)
    on_front = front_of(finals)
    is_last_done = any(final.role == SCRATCH and (final.scores or final.error) for final in finals)  # it comes last
    ended = bool(on_front) and (tuned_from is not None or is_last_done)
    if ended:
        best = on_front[knee(np.array([final.objectives() for final in on_front]))]
        beside = [f for f in finals if f.scores and f.role not in ("finalist", SCRATCH)] + _from_scratch(finals, best)
        outcomes = {final.name: tested(study, final.name) for final in [*on_front, *beside]}
        compared = outcomes.get("as-it-was" if tuned_from else "teacher")
        members, references = (
            [_member(final, facts, run_ids, outcomes[final.name], compared) for final in shown] for shown in (on_front, beside)
        )
        for member in members:
            member["against"] = _against(member, references, outcomes)
    else:
        members, references = [_candidate_member(candidate, facts) for candidate in search_front(study.candidates())], []
    seconds = {candidate.number: candidate.seconds for candidate in study.candidates()}
    for member in members:
        member["candidate_seconds"] = seconds.get(member["candidate"])
    members.sort(key=lambda member: float(member["latency_ms"]))
    _name_aliases(members, only="tuned" if tuned_from else None)
    front: dict[str, Any] = {
        "study": study.config.name,
        "stage": "final" if ended else "search",
        "split": "test" if ended else "val",
        "synthetic": bool(facts.get("synthetic")),
        "corpus": facts.get("corpus"),
        "objectives": [{**asdict(objective), "direction": "minimise", "split": "val"} for objective in OBJECTIVES],
        "target": facts.get("target"),
        "teacher": facts.get("teacher"),
        "teacher_is_supervised": bool(facts.get("teacher_is_supervised")),
        "machine": facts.get("machine"),
        "latency_kind": facts.get("latency_kind"),
        "disturbances": facts.get("disturbances"),
        "tracking_uri": study.config.tracking_uri and shown(study.config.tracking_uri),
        "budget": study.config.budget,
        "ledger": study.ledger.by_purpose(),
        "candidates": count_states(study.candidates()),
        "members": members,
        "references": references,
        **({"tuned_from": tuned_from} if tuned_from else {}),
        **({"learn_from": study.config.learn_from} if study.config.learn_from else {}),
    }
    add_exports(front, study)
    front["hypervolume"] = front_hypervolume(members, references)
    return {**front, "notes": notes(front)}


def add_exports(front: Mapping[str, Any], study: Study) -> None:
    """To each member what was exported of it, the latest of each name: lines of `exports.jsonl`."""
    for member in front["members"]:
        own = [line for line in read_lines(study.folder / EXPORTS_FILE) if line["member"] == member["name"]]
        member["exports"] = list({line["name"]: line for line in own}.values())


def search_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The non-dominated candidates that finished."""
    complete = [candidate for candidate in candidates if candidate.state == "complete"]
    if not complete:
        return []
    return [c for c, on in zip(complete, non_dominated(np.array([values_of(c.scores) for c in complete]))) if on]


def count_states(candidates: Sequence[Candidate]) -> dict[str, int]:
    states = [candidate.state for candidate in candidates]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def tested(study: Study, name: str) -> Resampled | None:
    """What a training at full length did on the test split, None where there is none."""
    path = study.weights_folder(name) / "outcome_test.npz"
    return resampled([read_outcome(path)]) if path.is_file() else None


def _against(member: Member, references: Sequence[Member], outcomes: Mapping[str, Resampled | None]) -> dict[str, Any]:
    """Paired changes of the test scores, in points, against references that learned from no fewer updates; from scratch its own
    architecture alone."""
    own, found = outcomes[member["name"]], {}
    for reference in references:
        is_asked = reference["role"] not in ("teacher", AS_IT_WAS, TUTOR) and reference["updates"] >= member["updates"]
        is_asked &= reference["role"] != SCRATCH or reference["candidate"] == member["candidate"]
        if is_asked and own and (other := outcomes[reference["name"]]):
            found[reference["role"]] = dict(zip(("accuracy", "eer"), map(asdict, (own - other).rates())))
    return found


def _member(
    final: Final,
    facts: Mapping[str, Any],
    run_ids: Mapping[str, str] | None,
    own: Resampled | None,
    compared: Resampled | None,
) -> Member:
    """own: its test outcome; compared: the one that this is compared with, the teacher's or that of the model as it was."""
    member = {
        **_figures(final.scores, facts, final.latency_kind, "test"),
        "name": final.name,
        "role": final.role,
        "candidate": final.candidate,
        "run_id": (run_ids or {}).get(final.name),
        "latency_marks": list(final.latency_marks),
        "start": final.start,
        "steps": {"distill": final.distill_steps, "finetune": final.finetune_steps, "tutor": final.tutor_steps},
        "updates": final.updates,
        "as_trained": final.role == "finalist" and final.source is not None,
        "read_before": final.read_before,
        "architecture": json.loads(final.architecture.to_json()),
    }
    if final.role not in ("teacher", AS_IT_WAS) and compared and own:
        change = own - compared
        member["change"] = dict(zip(("accuracy", "eer"), map(asdict, change.rates())))
        for corpus, changed in contents(change.by_corpus()).items():
            member["by_corpus"][corpus]["change"] = changed
    return member


def _candidate_member(candidate: Candidate, facts: Mapping[str, Any]) -> Member:
    return {
        **_figures(candidate.scores, facts, candidate.latency_kind, "val"),
        "name": f"candidate-{candidate.number}",
        "role": "candidate",
        "candidate": candidate.number,
        "run_id": candidate.run_id,
        "architecture": json.loads(candidate.architecture.to_json()),
    }


def _figures(scores: Mapping[str, float], facts: Mapping[str, Any], kind: str, split: str) -> Member:
    params, corpora = int(scores["params"]), by_corpus(scores, split)
    return {
        "params": params,
        "size_ratio": params / facts["teacher_params"] if facts.get("teacher_params") else None,
        "scores": dict(scores),
        **({"by_corpus": corpora} if corpora else {}),
        "latency_ms": scores["latency_ms"],
        "latency_kind": kind,
    }


def _name_aliases(members: Sequence[Member], only: str | None = None) -> None:
    """Marks the front's knee, fastest, smallest and most accurate member, by validation scores. only: marks all with this alone."""
    for member in members:
        member["aliases"] = [only] if only else []
    if only or not members:
        return
    points = np.array([objective_values(member) for member in members])
    rules = {
        "knee": knee(points),
        "fastest": int(points[:, 2].argmin()),
        "smallest": min(range(len(members)), key=lambda i: members[i]["params"]),
        "most-accurate": min(range(len(members)), key=lambda i: (points[i, 0], points[i, 1])),
    }
    for alias, index in rules.items():
        members[index]["aliases"].append(alias)


def objective_values(member: Member) -> list[float]:
    return [float(member["scores"][objective.name]) for objective in OBJECTIVES]


def front_hypervolume(members: Sequence[Member], references: Sequence[Member]) -> float | None:
    """Of the members' validation scores, below a student that knows nothing and is as slow as the slowest here."""
    if not members:
        return None
    slowest = max(float(member["latency_ms"]) for member in [*members, *references])
    return hypervolume(np.array([objective_values(member) for member in members]), np.array([*REFERENCE_POINT, slowest * 1.001]))
