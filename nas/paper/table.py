"""The table of `nas.paper.reproduce` as JSON, as text and in MLflow."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nas.report.corpora import markdown_table
from nas.study.budget import in_words
from nas.study.folder import Study
from nas.tracking.mirror import Tracking
from nas.worker.evaluate import read_outcome
from trainers.learning.metrics import Rate, Resampled, contents, detection_costs, resampled
from trainers.learning.outcome import Outcome

Record = Mapping[str, Any]  # a line of rows.jsonl
Key = tuple[str, str]  # model and variant: a row of the table
JOINT, FROZEN = "joint", "joint, encoder frozen"
COMPARED: Sequence[tuple[Key, Key]] = (
    (("teacher", JOINT), ("teacher", FROZEN)),
    (("student", JOINT), ("student", FROZEN)),
    (("student", JOINT), ("student from scratch", JOINT)),
    (("student", JOINT), ("BC-ResNet", JOINT)),
)


def build_table(study: Study, records: Sequence[Record], facts: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Rows that have all their seeds, means over them on the test split, and each row's change against the teacher tuned alike.

    best_student is the jointly tuned student. A task that a row was not trained for has no figure.
    """
    groups: dict[Key, list[Record]] = {}
    for record in records:
        if record["scores"] and "test" in record["splits"]:
            groups.setdefault((record["model"], record["variant"]), []).append(record)
    whole = {key: sorted(group, key=lambda r: int(r["seed"])) for key, group in groups.items() if len(group) == seeds}
    outcomes = {key: [_outcome(study, record) for record in group] for key, group in whole.items()}
    scored = {key: resampled(own) for key, own in outcomes.items()}
    rows = [_row(key, group, scored, outcomes[key], facts) for key, group in whole.items()]
    by_key = {(row["model"], row["variant"]): row for row in rows}
    table = {**facts, "seeds": seeds, "settings": [_setting(r) for r in records if "test" not in r["splits"]], "rows": rows}
    table["failed"] = {record["name"]: record["error"] for record in records if not record["scores"]}
    table["comparisons"] = [
        {"of": " ".join(of), "minus": " ".join(minus)}
        | {name: asdict(change) for name, change in zip(("accuracy", "eer"), (scored[of] - scored[minus]).rates())}
        for of, minus in COMPARED
        if of in scored and minus in scored
    ]
    teacher, student = by_key.get(("teacher", "joint")), by_key.get(("student", "joint"))
    if teacher:
        table["teacher"] = {name: teacher[name]["value"] for name in ("accuracy", "eer")} | {"params": teacher["params"]}
    if student and "change" in student:
        table["best_student"] = {"params": student["params"], "size_ratio": student["size_ratio"]} | {
            key: value
            for name, change in student["change"].items()
            for key, value in ((f"{name}_change", change["value"]), (f"{name}_change_interval", [change["low"], change["high"]]))
        }
    return table


def _outcome(study: Study, record: Record) -> Outcome:
    return read_outcome(study.weights_folder(record["name"]) / "outcome_test.npz")


def _row(
    key: Key, group: Sequence[Record], scored: Mapping[Key, Resampled], own: Sequence[Outcome], facts: Mapping[str, Any]
) -> dict[str, Any]:
    (model, variant), tuning = key, group[0]["tuning"]
    asked = [kind for kind, task in (("accuracy", "keywords"), ("eer", "speakers")) if tuning.get(task, True)]
    row = {
        "model": model,
        "variant": variant,
        "architecture": group[0]["architecture"],
        "params": int(group[0]["scores"]["params"]),
        "size_ratio": group[0]["scores"]["params"] / facts["teacher_params"],
        "steps": {"distill": group[0]["distill_steps"], "finetune": group[0]["finetune_steps"]},
        "tuning": tuning,
        "seconds": statistics.fmean(record["seconds"] for record in group),
    }
    told, by_corpus = _told(scored[key], asked)
    if "eer" in asked:
        costs = [detection_costs(outcome) for outcome in own]
        told["min_dcf"] = statistics.fmean(statistics.fmean(cost.values()) for cost in costs)
        for corpus in by_corpus.keys() & costs[0].keys():
            by_corpus[corpus]["min_dcf"] = statistics.fmean(cost[corpus] for cost in costs)
    if model != "teacher" and ("teacher", variant) in scored:
        told["change"], changed = _told(scored[key] - scored["teacher", variant], asked)
        for corpus, change in changed.items():
            by_corpus[corpus]["change"] = change
    return {**row, **told, **({"by_corpus": by_corpus} if by_corpus else {})}


def _told(found: Resampled, asked: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a row was trained for, of what was found: over corpora and by corpus."""
    whole: dict[str, Rate] = dict(zip(("accuracy", "eer"), found.rates()))
    several = {name: {kind: own[kind] for kind in asked if kind in own} for name, own in found.by_corpus().items()}
    return {kind: asdict(whole[kind]) for kind in asked}, {name: own for name, own in contents(several).items() if own}


def _setting(record: Record) -> dict[str, Any]:
    scores = record["scores"]
    return {
        "rate": record["tuning"]["rate"],
        "finetune_steps": record["finetune_steps"],
        "val_accuracy": 100 - scores["keyword_error"] if scores else None,
        "val_eer": scores.get("eer"),
        "error": record["error"],
    }


def markdown(table: Mapping[str, Any]) -> str:
    columns = ("model", "tuned", "params", "size", "accuracy %", "change", "EER %", "change", "minDCF", "cost")
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * len(columns), *map(_cells, table["rows"]))]
    by_corpus = markdown_table(("model", "tuned"), [((r["model"], r["variant"]), r.get("by_corpus", {})) for r in table["rows"]])
    over = "corpora and " if by_corpus else ""
    settings = "; ".join(
        f"{s['rate']:g}, {s['finetune_steps']} steps: {s['val_accuracy']:.1f} / {s['val_eer']:.1f}"
        for s in table["settings"]
        if s["val_accuracy"] is not None
    )
    notes = [
        f"Test split, means of {over}{table['seeds']} seeds, 95 % intervals over speakers and seeds; changes against the teacher "
        "tuned alike, paired. minDCF at a prior of 0.01. Cost: of one seed; CPU time, or wall time where a worker has a GPU; the "
        "student's distillation is in the joint row, the other variants start from it.",
        f"The teacher's settings, tuned for both tasks (validation accuracy / EER, %): {settings}.",
        *(["These results are synthetic: the speech was made by espeak-ng."] if table["synthetic"] else []),
    ]
    notes += [
        f"{row['of']} less {row['minus']}: accuracy {_interval(row['accuracy'], '+')}, EER {_interval(row['eer'], '+')} points."
        for row in table["comparisons"]
    ]
    notes += [f"{name} failed: {error}; --resume tries again." for name, error in table["failed"].items()]
    return "\n".join([*lines, *by_corpus, "", *(f"- {note}" for note in notes)]) + "\n"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    change = row.get("change", {})
    return (
        row["model"],
        row["variant"],
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


def log_rows(tracking: Tracking, records: Sequence[Record]) -> None:
    """Every training as a child run."""
    for record in records:
        tracking.log_run(
            record["name"],
            kind="reproduction",
            params={
                **record["architecture"],
                **{name: record[name] for name in ("model", "variant", "seed", "start", "distill_steps", "finetune_steps")},
                **record["tuning"],
            },
            metrics={**record["scores"], "seconds": record["seconds"]},
            tags={"error": record["error"] or ""},
            status="FINISHED" if record["scores"] else "FAILED",
        )
