"""A front as one HTML file that asks no network for anything: charts, limits, a table, and a card for the model that is chosen.

Observable Plot draws it (`assets/LICENSES.md`). What a reader sees is put into words here; `assets/page.js` shows it."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from nas.report.front import Member
from nas.report.table import caption, change_text, interval, three, title_of
from nas.study.budget import in_words

PAGE_FILE = "front.html"
ASSETS = files("nas.report") / "assets"
Front = Mapping[str, Any]


def write_page(fronts: Sequence[Front], path: Path) -> Path:
    """The page of one front, or of several laid over one another.

    Raises ValueError where two fronts are of the same study, and where the file cannot be written.
    """
    text = page(fronts)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    return path


def page(fronts: Sequence[Front]) -> str:
    """As `write_page`: the text of the file."""
    names = [front["study"] for front in fronts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the study {', '.join(twice)} was given more than once")
    parts = {"title": _escaped(f"{', '.join(names)}: speech students to pick from"), "content": _embedded(_content(fronts))}

    def part(found: re.Match[str]) -> str:
        return parts.get(found[1]) or (ASSETS / found[1]).read_text(encoding="utf-8")

    return re.sub(r"\{\{([\w.]+)\}\}", part, (ASSETS / "page.html").read_text(encoding="utf-8"))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON in which no text can end the script that holds it."""
    return json.dumps(content).replace("<", "\\u003c")


def _content(fronts: Sequence[Front]) -> dict[str, Any]:
    shown = [(front, member) for front in fronts for member in [*front["members"], *front["references"]]]
    target = fronts[0].get("target") or {}
    limits = {
        "latency": target.get("max_latency_ms"),
        "params": _millions(target.get("max_params")),
        "memory": _millions(target.get("max_memory_bytes")),
    }
    return {
        "models": [{"number": number, **_model(front, member)} for number, (front, member) in enumerate(shown, 1)],
        "studies": [
            {"name": front["study"], "caption": caption(front), "notes": [*front["notes"], *_choosing(front)]} for front in fronts
        ],
        "warnings": list(_differences(fronts)),
        "limits": {name: value for name, value in limits.items() if value is not None},
    }


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _choosing(front: Front) -> Iterator[str]:
    if front["stage"] == "final":
        yield "Whoever chooses by test scores chooses luck too: expect the chosen model to be a little worse than it looks here."


def _differences(fronts: Sequence[Front]) -> Iterator[str]:
    """What speaks against laying fronts over one another."""
    kinds = {
        "Latency and memory do not compare: the studies are of different targets or machines": ("target", "machine"),
        "Scores do not compare: the studies have other speech": ("corpus",),
        "Scores do not compare: some are of test speakers, some of validation speakers": ("split",),
        "The studies have different teachers": ("teacher",),
    }
    for warning, fields in kinds.items():
        told = {json.dumps([_told(front, field) for field in fields]): front["study"] for front in fronts}
        if len(told) > 1:
            yield f"{warning} ({', '.join(told.values())})."


def _told(front: Front, field: str) -> object:
    return (front.get("target") or {}).get("name") if field == "target" else front.get(field)


def _model(front: Front, member: Member) -> dict[str, Any]:
    scores, prefix = member["scores"], "test_" if front["split"] == "test" else ""
    is_member = member in front["members"]
    command = export_command(front, member) if is_member else None
    return {
        "id": f"{front['study']}/{member['name']}",
        "study": front["study"],
        "name": title_of(member),
        "aliases": member.get("aliases", []),
        "isMember": is_member,
        "params": member["params"] / 1e6,
        "error": _bounds(scores, f"{prefix}keyword_error"),
        "eer": _bounds(scores, f"{prefix}eer"),
        "latency": [scores[f"latency_{end}"] for end in ("ms", "low", "high")],
        "memory": _millions(scores.get("memory_bytes")),
        "card": [list(fact) for fact in card(front, member)],
        "corpora": [[name, *_of_corpus(own)] for name, own in sorted(member.get("by_corpus", {}).items())],
        "command": command,
        "why_not": _why_not(front, is_member),
    }


def _bounds(scores: Mapping[str, float], name: str) -> list[float]:
    return [scores[name + end] for end in ("", "_low", "_high")]


def _of_corpus(own: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("accuracy", "eer"):
        yield interval(*(own[kind][end] for end in ("value", "low", "high"))) if kind in own else "-"


def card(front: Front, member: Member) -> Iterator[tuple[str, str]]:
    """What there is to know of a model: names of facts and their texts; what belongs to the fact before has no name."""
    prefix = "test_" if front["split"] == "test" else ""
    scores, change, target = member["scores"], member.get("change"), front.get("target") or {}
    against = " against the model as it was" if "tuned_from" in front else " against the teacher"
    error, eer = _bounds(scores, f"{prefix}keyword_error"), _bounds(scores, f"{prefix}eer")
    yield "accuracy, %", interval(100 - error[0], 100 - error[2], 100 - error[1])
    if change:
        yield "", change_text(change, "accuracy") + against
    yield "EER, %", interval(*eer)
    if change:
        yield "", change_text(change, "eer") + against
    for reference, found in member.get("against", {}).items():
        yield "", f"{change_text(found, 'accuracy')} accuracy, {change_text(found, 'eer')} EER against {reference}"
    yield "latency, ms", f"{three(*(scores[f'latency_{end}'] for end in ('ms', 'low', 'high')))}, {member['latency_kind']}"
    if "predicted_latency_ms" in scores:
        yield "", f"{three(*(scores[f'predicted_latency_{end}'] for end in ('ms', 'low', 'high')))} was predicted"
    if member.get("latency_marks"):
        yield "", f"disturbed: {', '.join(member['latency_marks'])}"
    yield "device", f"{target.get('name')}, {target.get('threads')} thread, {target.get('precision')}"
    yield "size", ", ".join(_size(member))
    yield "built as", described(member["architecture"])
    if front["stage"] == "final":
        yield "trained", ", ".join(_training(member))
    for exported in member.get("exports", ()):
        yield "exported", f"{exported['name']}, {exported['precision']}"
        yield from (("", line) for line in exported["shown"])
    if seconds := member.get("candidate_seconds"):
        yield "cost", f"{in_words(seconds)} as a candidate; the search as a whole: {in_words(sum(front['ledger'].values()))}"


def _size(member: Member) -> Iterator[str]:
    scores, ratio = member["scores"], member["size_ratio"]
    yield f"{member['params'] / 1e6:.2f} M params" + (f" ({100 * ratio:.0f} % of the teacher's)" if ratio else "")
    if "weight_bytes" in scores:
        yield f"{scores['weight_bytes'] / 1e6:.1f} MB of weights in fp32"
    if "macs" in scores:
        yield f"{scores['macs'] / 1e6:.0f} M multiplications a window"


def described(architecture: Mapping[str, Any]) -> str:
    """A network's choices in words."""
    if "baseline" in architecture:
        return f"BC-ResNet of scale {architecture['scale']}"
    rate = 50 // architecture["frame_stride"]
    front = f"{architecture['front_end']} front end of width {architecture['front_width']}, {rate} frames/s"
    if not architecture["kept_layers"]:
        return f"{front}, no layers"
    layers = zip(architecture["kept_layers"], architecture["heads"], architecture["ffn_dims"])
    kept = "; ".join(f"layer {layer} with {heads} head{'s' * (heads > 1)}, {units} units" for layer, heads, units in layers)
    return f"{front}; width {architecture['width']}: the teacher's {kept}"


def _training(member: Member) -> Iterator[str]:
    steps = member["steps"]
    if steps["distill"]:
        yield f"{steps['distill']:,} updates of distillation"
    yield f"{steps['finetune']:,} steps of both tasks"
    yield {"random": "from random weights", "teacher": "from its own weights"}.get(member["start"], f"from the {member['start']}")
    if steps.get("tutor"):
        yield f"with a tutor of {steps['tutor']:,} steps"
    if member.get("as_trained"):
        yield "as the candidate was trained, not at full length"
    if member.get("read_before"):
        yield "its test split was read before"


def export_command(front: Front, member: Member) -> str | None:
    """By the run's id: an alias may move. None before the model is in MLflow."""
    if front["stage"] != "final" or not member.get("run_id"):
        return None
    words = ["srlnas", "export", member["run_id"], "--name", f"{front['study']}-{member['name']}"]
    return shlex.join([*words, *(["--tracking-uri", front["tracking_uri"]] if front.get("tracking_uri") else [])])


def _why_not(front: Front, is_member: bool) -> str:
    if not is_member:
        return "A reference, to compare with: it is not in the registry."
    resume = f"srlnas {'tune' if 'tuned_from' in front else 'search'} --resume {shlex.quote(front['study'])}"
    reason = "The search has not ended" if front["stage"] != "final" else "It is not in MLflow yet"
    return f"{reason}: `{resume}` goes on, and it can be exported then."
