"""The table of `nas.paper.table` as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.report.corpora import markdown_table
from nas.report.notes import supervised
from nas.study.budget import in_words


def markdown(table: Mapping[str, Any]) -> str:
    columns = ("model", "tuned", "seeds", "params", "size", "accuracy %", "change", "EER %", "change", "minDCF", "cost")
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * len(columns), *map(_cells, table["rows"]))]
    by_corpus = markdown_table(("model", "tuned"), [((r["model"], r["variant"]), r.get("by_corpus", {})) for r in table["rows"]])
    over = "corpora and " if by_corpus else "the "
    notes = [
        f"Test split, means over {over}seeds, 95 % intervals over speakers and seeds. Changes are against the teacher tuned alike, "
        "paired, over the seeds that both have. minDCF at a prior of 0.01.",
        "Cost: of one seed; CPU time, or wall time where a worker has a GPU. A student's distillation is in its joint row, the "
        "others start from it. Of a training that was interrupted it counts what came after.",
        *_settings(table["settings"]),
        *_tutor(table["rows"]),
        *([supervised(table["teacher_name"])] if table.get("teacher_is_supervised") else []),
        *(["These results are synthetic: the speech was made by espeak-ng."] if table["synthetic"] else []),
    ]
    notes += [f"{row['of']} less {row['minus']}: {_figures(row)} points ({_seeds(row)})." for row in table["comparisons"]]
    notes += [f"{name} failed: {error}; --resume tries again." for name, error in table["failed"].items()]
    return "\n".join([*lines, *by_corpus, "", *(f"- {note}" for note in notes)]) + "\n"


def _settings(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each variant."""
    for variant in dict.fromkeys(setting["variant"] for setting in settings):
        tried = [s for s in settings if s["variant"] == variant and (s["val_accuracy"], s["val_eer"]) != (None, None)]
        told = "; ".join(f"{s['rate']:g}, {s['finetune_steps']} steps: {_scores(s)}" for s in tried)
        yield f"The teacher's settings, {variant} (on validation speakers): {told}."


def _tutor(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tutor in {row["tutor"]: None for row in rows if row.get("tutor")}:
        names = dict.fromkeys(row["model"] for row in rows if row["tutor"] == tutor)
        yield f"Beside the labels, the answers of the tuned teacher ({tutor}) taught: {', '.join(names)}."


def _scores(setting: Mapping[str, Any]) -> str:
    named = (("accuracy", setting["val_accuracy"]), ("EER", setting["val_eer"]))
    return ", ".join(f"{name} {value:.1f} %" for name, value in named if value is not None)


def _figures(row: Mapping[str, Any]) -> str:
    named = (("accuracy", row.get("accuracy")), ("EER", row.get("eer")))
    return ", ".join(f"{name} {_interval(change, '+')}" for name, change in named if change)


def _seeds(row: Mapping[str, Any]) -> str:
    return "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    change = row.get("change", {})
    return (
        row["model"],
        row["variant"],
        str(row["seeds"]),
        f"{row['params'] / 1e6:.2f} M",
        f"{100 * row['size_ratio']:.0f} %",
        _interval(row.get("accuracy"), ""),
        _interval(change.get("accuracy"), "+"),
        _interval(row.get("eer"), ""),
        _interval(change.get("eer"), "+"),
        f"{row['min_dcf']:.2f}" if "min_dcf" in row else "",
        in_words(row["seconds"]),
    )


def _interval(rate: Mapping[str, float] | None, sign: str) -> str:
    return f"{rate['value']:{sign}.1f} [{rate['low']:{sign}.1f}, {rate['high']:{sign}.1f}]" if rate else ""
