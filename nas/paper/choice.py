"""What validation chooses in the paper's experiment: a setting of the teacher for each variant, and the best student."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.paper.experiment import JOINT
from nas.paper.rows import Row
from nas.study.folder import Study

CHOSEN_FILE = "chosen.json"
LARGEST = 0.25  # of the teacher's params, that the best student may have

Record = Mapping[str, Any]  # a line of rows.jsonl


@dataclass(frozen=True)
class Choice:
    """Made once, and kept: what failed then and is trained later must not mix two choices in a table."""

    study: Study

    def settings(self, rows: Sequence[Row], records: Iterable[Record]) -> dict[str, Row]:
        """By variant. Raises ValueError when none of a variant's settings was trained."""
        names = self._kept("settings", lambda: {variant: row.name for variant, row in best_settings(rows, records).items()})
        return {row.variant: row for row in rows if row.name in names.values()}

    def best(self, students: Iterable[str], records: Iterable[Record], teacher_params: int) -> str | None:
        """None while no student was trained."""
        name: str | None = self._kept("best", lambda: best_student(students, records, teacher_params))
        return name

    def made(self) -> dict[str, Any]:
        """What was chosen so far: `settings`, names of rows by variant; `best`, a student's name."""
        return self.study.read_json(CHOSEN_FILE) or {}

    def _kept(self, what: str, choose: Callable[[], Any]) -> Any:
        chosen = self.made()
        if chosen.get(what) is None:
            chosen[what] = choose()
            self.study.write_json(CHOSEN_FILE, chosen)
        return chosen[what]


def best_settings(rows: Sequence[Row], records: Iterable[Record]) -> dict[str, Row]:
    """Those of the least error on validation speakers. Raises ValueError when none of a variant's was trained."""
    latest = {record["name"]: record for record in records}
    found: dict[str, Row] = {}
    for variant in dict.fromkeys(row.variant for row in rows):
        tried = [row for row in rows if row.variant == variant]
        trained = [row for row in tried if latest.get(row.name, {}).get("scores")]
        if not trained:
            reasons = "; ".join(latest[row.name]["error"] or "" for row in tried if row.name in latest)
            raise ValueError(f"no setting of the teacher, {variant}, could be trained: {reasons[:300]}")
        found[variant] = min(trained, key=lambda row: error(latest[row.name]))
    return found


def best_student(students: Iterable[str], records: Iterable[Record], teacher_params: int) -> str | None:
    """The one of the least error, a mean over its seeds, among those of at most a quarter of the teacher's params; where none is so
    small, the smallest; None where none was trained."""
    joint: dict[str, list[Record]] = {name: [] for name in students}
    for record in records:
        if record["scores"] and record["variant"] == JOINT and record["model"] in joint:
            joint[record["model"]].append(record)
    params = {name: group[0]["scores"]["params"] for name, group in joint.items() if group}
    small = [name for name, count in params.items() if count <= LARGEST * teacher_params]
    if small:
        return min(small, key=lambda name: statistics.fmean(map(error, joint[name])))
    return min(params, key=lambda name: params[name], default=None)


def error(record: Record) -> float:
    """On validation speakers, in points: of keywords, EER, or their sum, as the row was tuned."""
    tasks = {"keywords": "keyword_error", "speakers": "eer"}
    return float(sum(record["scores"][score] for task, score in tasks.items() if record["tuning"].get(task, True)))
