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

from nas.budget import in_words
from nas.candidates import OBJECTIVES, Candidate
from nas.evaluate import read_outcome
from nas.finalise import Final, read_finals
from nas.pareto import dominates, hypervolume, knee, non_dominated
from nas.searcher import values_of
from nas.study import Study
from trainers.metrics import changes

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
        **_figures(final.scores, facts),
        "name": final.name,
        "role": final.role,
        "candidate": final.candidate,
        "run_id": (run_ids or {}).get(final.name),
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
        **_figures(candidate.scores, facts),
        "name": f"candidate-{candidate.number}",
        "role": "candidate",
        "candidate": candidate.number,
        "run_id": candidate.run_id,
        "architecture": json.loads(candidate.architecture.to_json()),
    }


def _figures(scores: Mapping[str, float], facts: Mapping[str, Any]) -> Member:
    params = int(scores["params"])
    return {
        "params": params,
        "size_ratio": params / facts["teacher_params"] if facts.get("teacher_params") else None,
        "scores": dict(scores),
        "latency_ms": scores["latency_ms"],
        "latency_kind": "measured",
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


COLUMNS = ("name", "alias", "params", "size", "accuracy %", "change", "EER %", "change", "latency ms")


def rows(front: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows: members from the fastest, then references. Test scores once there are any, else validation scores."""
    return [_row(member, front["split"]) for member in [*front["members"], *front["references"]]]


def _row(member: Member, split: str) -> tuple[str, ...]:
    scores, prefix, change = member["scores"], "test_" if split == "test" else "", member.get("change")
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
        f"{member['latency_ms']:.2f}",
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _change(change: Mapping[str, Any] | None, name: str) -> str:
    return f"{change[name]['value']:+.1f} [{change[name]['low']:+.1f}, {change[name]['high']:+.1f}]" if change else ""


def caption(front: Mapping[str, Any]) -> str:
    target = front.get("target") or {}
    where = (
        f"Latency: measured, {target.get('name')}, {target.get('threads')} thread, {target.get('precision')}, "
        f"{target.get('window')} samples a window ({front.get('machine')})."
    )
    spent = ", ".join(f"{what} {in_words(seconds)}" for what, seconds in front["ledger"].items())
    return (
        f"Scores: {front['split']} split, 95 % intervals over speakers; changes against the teacher, paired. {where} "
        f"Budget {front['budget']}, spent: {spent}."
    )


def rich_table(front: Mapping[str, Any]) -> Table:
    title = f"{front['study']}{' (synthetic speech)' if front['synthetic'] else ''}: {len(front['members'])} on the front"
    table = Table(title=title, caption=caption(front), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("name", "alias") else "right", no_wrap=column != "alias")
    for row in rows(front):
        table.add_row(*map(escape, row))
    return table


def markdown(front: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows(front))]
    return "\n".join([*lines, "", caption(front), "", *(f"- {note}" for note in front["notes"])]) + "\n"


def write_report(study: Study, front: Mapping[str, Any]) -> list[Path]:
    """front.json, front.md and front.png in the study folder; returns the pictures."""
    study.write_json(FRONT_FILE, front)
    (study.folder / "front.md").write_text(markdown(front))
    return [plot(front, study.folder / "front.png")]


def plot(front: Mapping[str, Any], path: Path) -> Path:
    """Keyword error and EER over latency: members and references (crosses) with their intervals, each under its own number."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    shown = [(member, "o", "tab:blue") for member in front["members"]] + [(m, "x", "tab:red") for m in front["references"]]
    for axes, name, label in zip(figure.subplots(1, 2), ("keyword_error", "eer"), ("keyword error", "equal error rate")):
        for number, (member, marker, color) in enumerate(shown, 1):
            x, (y, low, high) = member["latency_ms"], _drawn(member["scores"], name, front["split"])
            bars = [[max(0.0, y - low)], [max(0.0, high - y)]]
            entry = f"{number} {_title(member)}, {member['params'] / 1e6:.2f} M"
            axes.errorbar(x, y, yerr=bars, fmt=marker, color=color, capsize=2, alpha=0.7, label=entry)
            axes.annotate(str(number), (x, y), fontsize=9, xytext=(5, 3), textcoords="offset points")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(
            xlabel=f"latency, ms ({(front.get('target') or {}).get('name')}, measured)", ylabel=f"{label}, % ({front['split']})"
        )
        axes.grid(alpha=0.3)
    if shown:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{front['study']}{', synthetic speech' if front['synthetic'] else ''}")
    figure.savefig(path, dpi=110)
    return path


def _drawn(scores: Mapping[str, float], name: str, split: str) -> tuple[float, float, float]:
    prefix = "test_" if split == "test" else ""
    return scores[f"{prefix}{name}"], scores[f"{prefix}{name}_low"], scores[f"{prefix}{name}_high"]


def _title(member: Member) -> str:
    if member["role"] in ("finalist", "candidate"):
        return str(member["name"]) + (f" ({', '.join(member['aliases'])})" if member["aliases"] else "")
    return str(member["role"])
