"""The table of `nas.paper.reproduce` as JSON and in MLflow."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nas.paper.choice import Record
from nas.paper.experiment import BASELINE, FROZEN, JOINT, KEYWORDS, PAPER, SPEAKERS, TEACHER, Experiment, from_scratch
from nas.study.folder import Study
from nas.tracking.mirror import Tracking
from nas.worker.evaluate import read_outcome
from trainers.scoring.metrics import Rate, Resampled, contents, detection_costs, resampled
from trainers.scoring.outcome import Outcome

Key = tuple[str, str]  # model and variant: a row of the table
Outcomes = Mapping[int, Outcome]  # by seed
ByCorpus = dict[str, dict[str, Any]]
KINDS = ("accuracy", "eer")


def build_table(
    study: Study, records: Sequence[Record], facts: Mapping[str, Any], experiment: Experiment, best: str | None
) -> dict[str, Any]:
    """A row for each model and variant: means on the test split over the seeds that were trained, and the change against the
    teacher tuned alike, over those that both have. A task that a row was not trained for has no figure.

    students: figures of every jointly tuned student, by name; best_student: those of the best.
    """
    groups: dict[Key, list[Record]] = {}
    for record in records:
        if record["scores"] and "test" in record["splits"]:
            groups.setdefault((record["model"], record["variant"]), []).append(record)
    outcomes = {key: {record["seed"]: _outcome(study, record) for record in group} for key, group in groups.items()}
    rows = [_row(key, group, outcomes, facts) for key, group in groups.items()]
    by_key = {(row["model"], row["variant"]): row for row in rows}
    table = {
        **facts,
        "teacher_name": facts.get("teacher"),
        "seeds": experiment.seeds,
        "seeds_alone": experiment.seeds_alone,
        "settings": [_setting(record) for record in records if "test" not in record["splits"]],
        "rows": rows,
        "failed": {record["name"]: record["error"] for record in records if not record["scores"]},
        "comparisons": list(_comparisons(by_key, outcomes, best)),
        "students": {
            name: _figures(by_key[name, JOINT])
            for name in (PAPER, *experiment.students)
            if "change" in by_key.get((name, JOINT), {})
        },
    }
    if teacher := by_key.get((TEACHER, JOINT)):
        table["teacher"] = {name: teacher[name]["value"] for name in ("accuracy", "eer")} | {"params": teacher["params"]}
    if best in table["students"]:
        table["best_student"] = {"model": best, **table["students"][best]}
    return table


def _figures(row: Record) -> dict[str, Any]:
    return {"params": row["params"], "size_ratio": row["size_ratio"]} | {
        key: value
        for name, change in row["change"].items()
        for key, value in ((f"{name}_change", change["value"]), (f"{name}_change_interval", [change["low"], change["high"]]))
    }


def _comparisons(rows: Mapping[Key, Record], outcomes: Mapping[Key, Outcomes], best: str | None) -> Iterator[dict[str, Any]]:
    """What the rows are for: the joint row less another one, in the figures that both have."""
    pairs = [(model, (model, variant)) for model, variant in rows if variant in (KEYWORDS, SPEAKERS)]
    pairs += [(TEACHER, (TEACHER, FROZEN))]
    pairs += [(best, (other, JOINT)) for other in (from_scratch(best), BASELINE)] if best else []
    for model, other in pairs:
        of = (model, JOINT)
        if of in rows and other in rows and (change := _change(outcomes[of], outcomes[other])):
            seeds = len(set(outcomes[of]) & set(outcomes[other]))
            told, by_corpus = _told(change, [kind for kind in KINDS if kind in rows[other]])
            yield {"of": " ".join(of), "minus": " ".join(other), "seeds": seeds, **told, **_several(by_corpus)}


def _change(own: Outcomes, other: Outcomes) -> Resampled | None:
    """In points, paired; None where they have no seed in common."""
    common = [seed for seed in own if seed in other]
    return resampled([own[s] for s in common]) - resampled([other[s] for s in common]) if common else None


def _told(found: Resampled, asked: Sequence[str]) -> tuple[dict[str, Any], ByCorpus]:
    """Of what was found, what a row was trained for: over corpora and by corpus."""
    whole: dict[str, Rate] = dict(zip(KINDS, found.rates()))
    several = {name: {kind: own[kind] for kind in asked if kind in own} for name, own in found.by_corpus().items()}
    return {kind: asdict(whole[kind]) for kind in asked}, {name: own for name, own in contents(several).items() if own}


def _several(by_corpus: ByCorpus) -> dict[str, ByCorpus]:
    return {"by_corpus": by_corpus} if by_corpus else {}


def _outcome(study: Study, record: Record) -> Outcome:
    return read_outcome(study.weights_folder(record["name"]) / "outcome_test.npz")


def _row(key: Key, group: Sequence[Record], outcomes: Mapping[Key, Outcomes], facts: Mapping[str, Any]) -> dict[str, Any]:
    (model, variant), tuning, own = key, group[0]["tuning"], list(outcomes[key].values())
    asked = [kind for kind, task in zip(KINDS, ("keywords", "speakers")) if tuning.get(task, True)]
    row = {
        "model": model,
        "variant": variant,
        "seeds": len(group),
        "architecture": group[0]["architecture"],
        "params": int(group[0]["scores"]["params"]),
        "size_ratio": group[0]["scores"]["params"] / facts["teacher_params"],
        "steps": {"distill": group[0]["distill_steps"], "finetune": group[0]["finetune_steps"]},
        "tuning": tuning,
        "tutor": group[0].get("tutor"),
        "seconds": statistics.fmean(record["seconds"] for record in group),
    }
    told, by_corpus = _told(resampled(own), asked)
    if "eer" in asked:
        costs = [detection_costs(outcome) for outcome in own]
        told["min_dcf"] = statistics.fmean(statistics.fmean(cost.values()) for cost in costs)
        for corpus in by_corpus.keys() & costs[0].keys():
            by_corpus[corpus]["min_dcf"] = statistics.fmean(cost[corpus] for cost in costs)
    if model != TEACHER and (change := _change(outcomes[key], outcomes.get((TEACHER, variant), {}))):
        told["change"], changed = _told(change, asked)
        for corpus, points in changed.items():
            by_corpus[corpus]["change"] = points
    return {**row, **told, **_several(by_corpus)}


def _setting(record: Record) -> dict[str, Any]:
    scores = record["scores"]
    return {
        "variant": record["variant"],
        "rate": record["tuning"]["rate"],
        "finetune_steps": record["finetune_steps"],
        "val_accuracy": 100 - scores["keyword_error"] if scores and record["tuning"].get("keywords", True) else None,
        "val_eer": scores.get("eer") if record["tuning"].get("speakers", True) else None,
        "error": record["error"],
    }


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
