"""A front as a table for a terminal and for Markdown."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nas.report.corpora import TITLE, ByCorpus, cells, corpora_of, markdown_table
from nas.report.front import Member
from nas.stages.finals import PREDICTED
from nas.study.budget import in_words
from nas.study.candidates import KINDS

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
        title_of(member),
        ", ".join(member.get("aliases", [])),
        f"{member['params'] / 1e6:.2f} M",
        f"{100 * (ratio - 1):+.0f} %" if ratio and member["role"] != "teacher" else "",
        interval(100 - scores[error], 100 - scores[f"{error}_high"], 100 - scores[f"{error}_low"]),
        change_text(change, "accuracy"),
        interval(scores[eer], scores[f"{eer}_low"], scores[f"{eer}_high"]),
        change_text(change, "eer"),
        f"{member['latency_ms']:.2f}" if measured else "",
        three(*(scores[f"{'predicted_' if measured else ''}latency_{end}"] for end in ("ms", "low", "high"))),
        f"{scores['memory_bytes'] / 1e6:.0f}" if "memory_bytes" in scores else "",
    )


def title_of(member: Member) -> str:
    return str(member["name"] if member["role"] in ("finalist", "candidate") else member["role"])


def interval(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def three(value: float, low: float, high: float) -> str:
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def change_text(change: Mapping[str, Any] | None, name: str) -> str:
    return f"{change[name]['value']:+.1f} [{change[name]['low']:+.1f}, {change[name]['high']:+.1f}]" if change else ""


def caption(front: Mapping[str, Any]) -> str:
    target = front.get("target") or {}
    kinds = [kind for kind in KINDS if any(m["latency_kind"] == kind for m in [*front["members"], *front["references"]])]
    corpora = corpora_of([own for _, own in _by_corpus(front)])
    means = f" means over {len(corpora)} corpora," if corpora else ""
    within = " within corpora" if corpora else ""
    where = (
        f"Latency and memory of the process: {', '.join(kinds)}, {target.get('name')}, {target.get('threads')} thread, "
        f"{target.get('precision')}, {target.get('window')} samples a window ({front.get('machine')}); predicted: "
        f"{PROMISES.get(front.get('latency_kind') or '', '')}."
    )
    against = "the model as it was" if "tuned_from" in front else "the teacher"
    spent = ", ".join(f"{what} {in_words(seconds)}" for what, seconds in front["ledger"].items())
    return (
        f"Scores: {front['split']} split,{means} 95 % intervals over speakers{within}; changes against {against}, paired. "
        f"{where} Budget {front['budget']}, spent: {spent}."
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
    lines += markdown_table(("name",), [((title_of(member),), own) for member, own in _by_corpus(front)])
    return "\n".join([*lines, "", caption(front), "", *(f"- {note}" for note in front["notes"])]) + "\n"


def _by_corpus(front: Mapping[str, Any]) -> list[tuple[Member, ByCorpus]]:
    return [(member, member.get("by_corpus", {})) for member in [*front["members"], *front["references"]]]


def rich_corpora(front: Mapping[str, Any]) -> list[Table]:
    """A table of the scores on each corpus where there are several."""
    shown = _by_corpus(front)
    corpora = corpora_of([own for _, own in shown])
    if not corpora:
        return []
    table = Table(title=f"by corpus, {front['split']} split: {TITLE}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("name", *corpora):
        table.add_column(escape(column), justify="left" if column == "name" else "right", overflow="fold")
    for member, own in shown:
        table.add_row(escape(title_of(member)), *cells(own, corpora))
    return [table]
