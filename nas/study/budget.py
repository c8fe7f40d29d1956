"""What a search may spend and what it has spent, in resource-seconds: one GPU, or one CPU core, for one second."""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from search_spaces.kinds import LONGEST, is_of

Record = TypeVar("Record")
Resource = Literal["cpu", "gpu"]
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
TAKEN_OVER = dict[Path, str]()  # study folders that another driver has taken over from this one, with the line that says so


@dataclass(frozen=True, kw_only=True)
class Budget:
    """resource: whose seconds are counted."""

    resource: Resource
    seconds: float

    def __str__(self) -> str:
        return f"{in_words(self.seconds)} of {self.resource.upper()} time"


def parse_budget(text: str) -> Budget:
    """`8gpu-days`, `4gpu-hours`, `30cpu-minutes`, `90 cpu-seconds`. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(cpu|gpu)-(second|minute|hour|day)s?\s*", text)
    if not match or float(match[1]) == 0:
        raise ValueError(
            f"budget {text!r} does not parse; write an amount above zero with its unit: 8gpu-days, 4gpu-hours, 30cpu-minutes"
        )
    return Budget(resource="gpu" if match[2] == "gpu" else "cpu", seconds=float(match[1]) * UNITS[match[3]])


def in_words(seconds: float) -> str:
    """A duration for people: `42 s`, `12.5 min`, `3.2 h`, `8 d`."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{seconds:.0f} s"


class Ledger:
    """What was spent and on what: a file of JSON lines, appended and synced by one process, that survives an interruption."""

    def __init__(self, path: Path) -> None:
        self.path, self.totals = path, dict[str, float]()
        for what, seconds in records(path, _charge):
            self._add(what, seconds)

    def charge(self, what: str, resource_seconds: float) -> None:
        self._add(what, resource_seconds)
        append_line(self.path, {"what": what, "seconds": round(resource_seconds, 3)})

    def _add(self, what: str, resource_seconds: float) -> None:
        self.totals[what] = self.totals.get(what, 0.0) + resource_seconds

    @contextmanager
    def timing(self, what: str, resources: float) -> Iterator[None]:
        """Charges the time inside the block, an interrupted one too, times the resources that it held."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.charge(what, (time.monotonic() - started) * resources)

    def by_purpose(self) -> dict[str, float]:
        """Resource-seconds by purpose, in order of first charge."""
        return dict(self.totals)

    @property
    def spent(self) -> float:
        return sum(self.totals.values())


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a study may spend, what it has spent, and how much a second of its trainings costs.

    resources: of the budget's resource (cores, or a share of a GPU), that one training holds. workers: trainings at once.
    """

    budget: Budget
    ledger: Ledger
    resources: float
    workers: int

    @property
    def left(self) -> float:
        """Resource-seconds; below zero when more was spent than the budget."""
        return self.budget.seconds - self.ledger.spent

    @property
    def core(self) -> float:
        """Of the budget's resource, what one core of the driver is."""
        return float(self.budget.resource == "cpu")

    def spent_on(self, what: str) -> float:
        return self.ledger.by_purpose().get(what, 0.0)

    def charge(self, what: str, seconds: float) -> float:
        """Of one training's wall seconds. Returns the resource-seconds."""
        self.ledger.charge(what, seconds * self.resources)
        return seconds * self.resources


def check_not_taken(path: Path) -> None:
    """Raises ValueError before a file is written in a study folder that another driver has taken over."""
    if path.parent in TAKEN_OVER:
        raise ValueError(TAKEN_OVER[path.parent])


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all. Raises ValueError as `check_not_taken`."""
    check_not_taken(path)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def append_line(path: Path, fields: dict[str, Any] | str) -> None:
    """One line of JSON, on disk before the call returns. Raises ValueError as `check_not_taken`."""
    check_not_taken(path)
    text = fields if isinstance(fields, str) else json.dumps(fields)
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):  # a torn last line is ended, so that it spoils itself alone
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _charge(line: dict[str, Any]) -> tuple[str, float]:
    seconds = line["seconds"]
    if not is_of(seconds, float) or not math.isfinite(seconds):
        raise ValueError(f"seconds is {seconds!r}")
    return str(line["what"]), float(seconds)


def records(path: Path, parse: Callable[[dict[str, Any]], Record]) -> Iterator[Record]:
    """What the lines written whole are. Raises ValueError, with the file's name, for one that is something else."""
    for line in read_lines(path):
        try:
            yield parse(line)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} has a line that cannot be read: {reason}") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines written whole; a torn one is passed over, and one that is longer than any of ours."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        while line := file.readline(LONGEST):
            with suppress(json.JSONDecodeError):
                yield json.loads(line)
