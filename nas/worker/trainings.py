"""Trainings as Ray runs them: what a worker does, and the driver's loop over many of them."""

import dataclasses
import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray

from nas.study.budget import Account
from nas.study.config import StudyConfig
from nas.study.progress import say
from nas.study.room import found_no_room, no_room
from nas.worker.deaths import Deaths
from nas.worker.presence import Arrival, present

Item = TypeVar("Item")
HEARTBEAT = 10.0  # seconds between two charges of what runs: a driver that is killed leaves no more than that unpaid


def reports(text: str) -> Iterator[dict[str, Any]]:
    """One training in a worker, a report a rung. Whatever goes wrong comes back as a report: the search goes on.

    notes: of a report, what a user should know of what came before it."""
    try:
        with present(text), _noted() as notes:
            from nas.worker.evaluate import evaluate
            from nas.worker.task import task_from_json

            task = task_from_json(text)
            for report in evaluate(task):
                yield {"state": "complete" if report["rung"] == task.rungs else "running", "notes": notes(), **report}
    except Exception as error:
        yield _failed(error)


def run_task(text: str) -> dict[str, Any]:
    """A training that is scored once."""
    (report,) = reports(text)
    return report


def train_shared(text: str) -> dict[str, Any]:
    """The making of a study's shared student in a worker: distilled, then tuned."""
    try:
        with present(text), _noted() as notes:
            from nas.worker.evaluate import distil_shared

            distil_shared(**json.loads(text))
            return {"state": "complete", "notes": notes()}
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> dict[str, Any]:
    """no_room: the disk was full, which is no fault of the training's."""
    return {"state": "failed", "error": described(error), "no_room": found_no_room(error)}


def check_room(report: Mapping[str, Any]) -> None:
    """Raises ValueError, so that all stops and can go on later, for a training that found the disk full."""
    if report.get("no_room"):
        raise no_room(str(report["error"]))


@contextmanager
def _noted() -> Iterator[Callable[[], list[str]]]:
    """Gives a function of the checkpoints that were passed over since it was asked last: a worker's terminal is nobody's."""
    from trainers.learning.resume import PassedOver

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PassedOver)

        def notes() -> list[str]:
            said = [str(warning.message) for warning in caught]
            caught.clear()
            return said

        yield notes


def described(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


@dataclass
class _Running(Generic[Item]):
    """An item that was handed to Ray."""

    item: Item
    arrival: Arrival
    task: str


def run_tasks(
    items: Sequence[Item],
    task_json: Callable[[Item], str],
    config: StudyConfig,
    workers: int,
    *,
    function: Callable[[str], dict[str, Any]] = run_task,
    charge: Callable[[Item, float], object],
    tick: Callable[[float], None],
    admit: Callable[[Item, Sequence[tuple[Item, float]]], Item | None] = lambda item, running: item,
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Trains the items in Ray workers, in their order; each with its report as it ends. One that died of its surroundings is tried
    again (`Deaths`).

    task_json: the task of an item, for `function`. charge: hears the wall seconds of each, bit by bit while it runs, from when its
    worker began. tick: hears, about every second, for how many seconds the ones that run have run. admit: an item as it is begun
    beside those that run, each with its seconds so far; None where it is passed over.
    Raises ValueError when no worker comes, and where a training found its disk full.
    """
    remote = ray.remote(function).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0)
    waiting, running, deaths = list(items), dict[Any, _Running[Item]](), Deaths()

    def pay(one: _Running[Item], interval: float = 0.0) -> None:
        if one.arrival.owed() > interval:
            charge(one.item, one.arrival.pay())

    def past() -> list[tuple[Item, float]]:
        return [(one.item, one.arrival.seconds() or 0.0) for one in running.values()]

    def begin(item: Item, task: str) -> None:
        arrival = Arrival(task)
        running[remote.remote(task)] = _Running(item, arrival, task)

    try:
        while True:
            while waiting and len(running) < workers:
                if (item := admit(waiting.pop(0), past())) is not None:
                    begin(item, task_json(item))
            if not running:
                deaths.say(set(), wait=0.0)
                return
            for reference in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                pay(running[reference])
                one = running.pop(reference)
                report = _report(reference, one.arrival.name, deaths)
                if report is None:
                    begin(one.item, one.task)
                    continue
                check_room(report)
                for note in report.pop("notes", ()):
                    say(f"{one.arrival.name}: {note}")
                yield one.item, report
            for one in running.values():
                pay(one, HEARTBEAT)
                one.arrival.check(config.cpus, config.gpus)
            deaths.say({one.arrival.name for one in running.values() if one.arrival.is_silent()})
            tick(sum(seconds for _, seconds in past()))
    finally:
        for one in running.values():
            pay(one)


def run_alone(
    task: str,
    config: StudyConfig,
    account: Account,
    *,
    what: str,
    expected: float,
    tick: Callable[[float, float], None],
    cores: float = 0.0,
    function: Callable[[str], dict[str, Any]] = run_task,
) -> dict[str, Any]:
    """One training in a Ray worker, charged as `what`; returns its report. Raises ValueError when no worker comes.

    cores: that it holds and is charged for, 0: those of a worker. tick: hears the resource-seconds that it has spent, and those
    that it is expected to spend.
    """
    spent = 0.0
    if cores:
        config, account = dataclasses.replace(config, cpus=cores), dataclasses.replace(account, resources=cores)

    def charge(_: str, wall: float) -> None:
        nonlocal spent
        spent += account.charge(what, wall)
        tick(spent, max(expected, spent))

    ((_, report),) = run_tasks([task], str, config, 1, function=function, charge=charge, tick=lambda _: None)
    return report


def _report(reference: Any, name: str, deaths: Deaths) -> dict[str, Any] | None:
    """Of a training that ended; None where it is to be tried again."""
    try:
        report: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as error:
        return None if deaths.again(name, str(error), error) else {"error": deaths.error(name)}
    return report


def trainable(config: dict[str, Any]) -> None:
    """What Ray Tune runs. The report travels as JSON, because Tune flattens nested results and mixes its own fields in."""
    from ray import tune

    for report in reports(config["task"]):
        tune.report({"report": json.dumps(report)})
