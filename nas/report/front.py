"""What a study found: the front as JSON, as a table, as a picture. Read from the study folder alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nas.report.plots import plot_front, plot_latency
from nas.stages.finalise import PREDICTED, Final, as_predicted, read_finals
from nas.study.budget import in_words
from nas.study.candidates import KINDS, OBJECTIVES, Candidate, values_of
from nas.study.folder import Study
from nas.study.pareto import dominates, hypervolume, knee, non_dominated
from nas.worker.evaluate import read_outcome
from trainers.learning.metrics import changes

FRONT_FILE = "front.json"
REFERENCE_POINT = (100.0, 50.0)  # keyword error and EER of a student that knows nothing; latency's is the slowest reference's
SMALL, CLOSE = 0.25, 3.0  # "small and close": at most a quarter of the teacher, within 3 points of both its scores

Member = dict[str, Any]


def build_front(study: Study, run_ids: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The final front with its references or, before there is one, the front of the candidates so far.

    run_ids: MLflow runs of finals by name.
    """
    facts = study.read_json("prepared.json") or {}
    finals = [final for final in read_finals(study) if final.scores]
    finalists = [final for final in finals if final.role == "finalist"]
    ended = any(final.role == "knee from scratch" for final in finals)
    if ended:
        points = np.array([final.objectives() for final in finalists])
        on_front = [final for final, on in zip(finalists, non_dominated(points)) if on]
        best = on_front[knee(np.array([final.objectives() for final in on_front]))]
        beside = [f for f in finals if f.role != "finalist" and f.candidate in (None, best.candidate)]
        members, references = ([_member(study, final, facts, run_ids) for final in shown] for shown in (on_front, beside))
    else:
        members, references = [_candidate_member(candidate, facts) for candidate in search_front(study.candidates())], []
    members.sort(key=lambda member: float(member["latency_ms"]))
    _name_aliases(members)
    front: dict[str, Any] = {
        "study": study.config.name,
        "stage": "final" if ended else "search",
        "split": "test" if ended else "val",
        "synthetic": bool(facts.get("synthetic")),
        "objectives": [{**asdict(objective), "direction": "minimise", "split": "val"} for objective in OBJECTIVES],
        "target": facts.get("target"),
        "teacher": facts.get("teacher"),
        "machine": facts.get("machine"),
        "latency_kind": facts.get("latency_kind"),
        "disturbances": facts.get("disturbances"),
        "budget": study.config.budget,
        "ledger": study.ledger.by_purpose(),
        "candidates": count_states(study.candidates()),
        "members": members,
        "references": references,
    }
    front["hypervolume"] = front_hypervolume(members, references)
    return {**front, "notes": notes(front)}


def search_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The non-dominated candidates that finished."""
    complete = [candidate for candidate in candidates if candidate.state == "complete"]
    if not complete:
        return []
    return [c for c, on in zip(complete, non_dominated(np.array([values_of(c.scores) for c in complete]))) if on]


def count_states(candidates: Sequence[Candidate]) -> dict[str, int]:
    states = [candidate.state for candidate in candidates]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _member(study: Study, final: Final, facts: Mapping[str, Any], run_ids: Mapping[str, str] | None) -> Member:
    member = {
        **_figures(final.scores, facts, final.latency_kind),
        "name": final.name,
        "role": final.role,
        "candidate": final.candidate,
        "run_id": (run_ids or {}).get(final.name),
        "latency_marks": list(final.latency_marks),
        "start": final.start,
        "steps": {"distill": final.distill_steps, "finetune": final.finetune_steps},
        "architecture": json.loads(final.architecture.to_json()),
    }
    if final.role != "teacher" and (study.weights_folder("teacher") / "outcome_test.npz").is_file():
        accuracy, eer = changes(
            *([read_outcome(study.weights_folder(name) / "outcome_test.npz")] for name in (final.name, "teacher"))
        )
        member["change"] = {"accuracy": asdict(accuracy), "eer": asdict(eer)}
    return member


def _candidate_member(candidate: Candidate, facts: Mapping[str, Any]) -> Member:
    return {
        **_figures(candidate.scores, facts, candidate.latency_kind),
        "name": f"candidate-{candidate.number}",
        "role": "candidate",
        "candidate": candidate.number,
        "run_id": candidate.run_id,
        "architecture": json.loads(candidate.architecture.to_json()),
    }


def _figures(scores: Mapping[str, float], facts: Mapping[str, Any], kind: str) -> Member:
    params = int(scores["params"])
    return {
        "params": params,
        "size_ratio": params / facts["teacher_params"] if facts.get("teacher_params") else None,
        "scores": dict(scores),
        "latency_ms": scores["latency_ms"],
        "latency_kind": kind,
    }


def _name_aliases(members: Sequence[Member]) -> None:
    """Marks the front's knee, fastest, smallest and most accurate member, by validation scores."""
    for member in members:
        member["aliases"] = []
    if not members:
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


def tested_point(member: Member) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    return np.array([member["scores"]["test_keyword_error"], member["scores"]["test_eer"], member["latency_ms"]])


def notes(front: Mapping[str, Any]) -> list[str]:
    """What a reader must not overlook, in sentences."""
    said = ["These results are synthetic: the speech was made by espeak-ng."] if front["synthetic"] else []
    said += [f"{front['disturbances']}."] if front.get("disturbances") else []
    disturbed = [m["name"] for m in [*front["members"], *front["references"]] if m.get("latency_marks")]
    if disturbed:
        said.append(f"Measured on a machine that did not keep its pace: {', '.join(disturbed)}.")
    if front["stage"] == "search":
        return [*said, "The search has not ended: validation scores of candidates, no test scores, no references."]
    by_role = {reference["role"]: reference for reference in front["references"]}
    paper, teacher, baseline, scratch = map(by_role.get, ("paper's student", "teacher", "BC-ResNet", "knee from scratch"))
    members = front["members"]
    if paper:
        better = [m["name"] for m in members if dominates(tested_point(m), tested_point(paper))]
        said.append(
            f"Better than the paper's student in keyword error, EER and latency at once (test): {', '.join(better)}."
            if better
            else "No member is better than the paper's student in keyword error, EER and latency at once (test)."
        )
    if teacher:
        close = [m["name"] for m in members if m["size_ratio"] <= SMALL and _within(m, teacher, CLOSE)]
        said.append(
            f"At most {SMALL:.0%} of the teacher's params and within {CLOSE:g} points of its accuracy and EER (test): "
            + (", ".join(close) or "none")
            + "."
        )
    beaten = [m["name"] for m in members if baseline and dominates(tested_point(baseline), tested_point(m))]
    if beaten:
        said.append(
            "BC-ResNet, which distils nothing, is better in keyword error, EER and latency at once (test) than: "
            + f"{', '.join(beaten)}."
        )
    measured = [member for member in members if PREDICTED in member["scores"]]
    if measured:
        outside = [member for member in measured if not as_predicted(member["scores"])]
        off = np.mean([abs(m["scores"][PREDICTED] / m["latency_ms"] - 1) for m in measured])
        refitted = "; the model was fitted again" if any(not m["latency_marks"] for m in outside) else ""
        said.append(
            f"Latency as predicted before training, on average {100 * off:.1f} % off: {len(measured) - len(outside)} of "
            f"{len(measured)} members were measured within the interval{refitted}."
        )
    if any(member["start"] == "shared student" for member in members):
        said.append(
            "Members began with the weights of the search's shared student and were tuned for as many updates as references were "
            "distilled and tuned; its own training is in the ledger."
        )
    if scratch:
        start = next((m for m in members if "knee" in m["aliases"]), None)
        if start and not dominates(tested_point(start)[:2], tested_point(scratch)[:2]):
            said.append(
                "The knee's architecture trained from scratch, with as many updates, is not worse in both scores (test): "
                "distillation did not pay at this length."
            )
    return said


def _within(member: Member, teacher: Member, points: float) -> bool:
    return all(member["scores"][f"test_{name}"] - teacher["scores"][f"test_{name}"] <= points for name in ("keyword_error", "eer"))


PROMISES = {
    "calibrated": "calibrated, 90 % intervals",
    "data sheet": "data sheet, a factor of two or more either way",
}
COLUMNS = ("name", "alias", "params", "size", "accuracy %", "change", "EER %", "change", "latency ms", "predicted", "memory MB")


def rows(front: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows: members from the fastest, then references. Test scores once there are any, else validation scores."""
    return [_row(member, front["split"]) for member in [*front["members"], *front["references"]]]


def _row(member: Member, split: str) -> tuple[str, ...]:
    scores, prefix, change = member["scores"], "test_" if split == "test" else "", member.get("change")
    measured = member["latency_kind"] == "measured" and PREDICTED in scores
    error, eer = f"{prefix}keyword_error", f"{prefix}eer"
    ratio = member["size_ratio"]
    return (
        member["name"] if member["role"] in ("finalist", "candidate") else member["role"],
        ", ".join(member.get("aliases", [])),
        f"{member['params'] / 1e6:.2f} M",
        f"{100 * (ratio - 1):+.0f} %" if ratio and member["role"] != "teacher" else "",
        _interval(100 - scores[error], 100 - scores[f"{error}_high"], 100 - scores[f"{error}_low"]),
        _change(change, "accuracy"),
        _interval(scores[eer], scores[f"{eer}_low"], scores[f"{eer}_high"]),
        _change(change, "eer"),
        f"{member['latency_ms']:.2f}" if measured else "",
        _three(*(scores[f"{'predicted_' if measured else ''}latency_{end}"] for end in ("ms", "low", "high"))),
        f"{scores['memory_bytes'] / 1e6:.0f}" if "memory_bytes" in scores else "",
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _three(value: float, low: float, high: float) -> str:
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _change(change: Mapping[str, Any] | None, name: str) -> str:
    return f"{change[name]['value']:+.1f} [{change[name]['low']:+.1f}, {change[name]['high']:+.1f}]" if change else ""


def caption(front: Mapping[str, Any]) -> str:
    target = front.get("target") or {}
    kinds = [kind for kind in KINDS if any(m["latency_kind"] == kind for m in [*front["members"], *front["references"]])]
    where = (
        f"Latency and memory of the process: {', '.join(kinds)}, {target.get('name')}, {target.get('threads')} thread, "
        f"{target.get('precision')}, {target.get('window')} samples a window ({front.get('machine')}); predicted: "
        f"{PROMISES.get(front.get('latency_kind') or '', '')}."
    )
    spent = ", ".join(f"{what} {in_words(seconds)}" for what, seconds in front["ledger"].items())
    return (
        f"Scores: {front['split']} split, 95 % intervals over speakers; changes against the teacher, paired. {where} "
        f"Budget {front['budget']}, spent: {spent}."
    )


def rich_table(front: Mapping[str, Any]) -> Table:
    title = f"{front['study']}{' (synthetic speech)' if front['synthetic'] else ''}: {len(front['members'])} on the front"
    table = Table(title=title, caption=caption(front), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in (COLUMNS[0], *COLUMNS[2:]):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for name, aliases, *figures in rows(front):  # aliases and intervals below: side by side fits no terminal
        cells = [f"{name}\n{aliases}".strip(), *(cell.replace(" [", "\n[") for cell in figures)]
        table.add_row(*map(escape, cells))
    return table


def markdown(front: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows(front))]
    return "\n".join([*lines, "", caption(front), "", *(f"- {note}" for note in front["notes"])]) + "\n"


def write_report(study: Study, front: Mapping[str, Any]) -> list[Path]:
    """front.json, front.md and front.png in the study folder; returns the pictures."""
    study.write_json(FRONT_FILE, front)
    (study.folder / "front.md").write_text(markdown(front))
    return [plot_front(front, study.folder / "front.png"), *plot_latency(front, study.folder / "latency.png")]
