"""Trainings as Ray runs them: what a worker does, and the driver's loop over many of them."""

import dataclasses
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray

from nas.study.budget import Account
from nas.study.config import StudyConfig
from nas.worker.presence import Arrival, announce

Item = TypeVar("Item")
HEARTBEAT = 10.0  # seconds between two charges of what runs: a driver that is killed leaves no more than that unpaid


def reports(text: str) -> Iterator[dict[str, Any]]:
    """One training in a worker, a report a rung. Whatever goes wrong comes back as a report: the search goes on."""
    announce(text)
    from nas.worker.evaluate import evaluate
    from nas.worker.task import task_from_json

    task = task_from_json(text)
    try:
        for report in evaluate(task):
            yield {"state": "complete" if report["rung"] == task.rungs else "running", **report}
    except Exception as error:
        yield {"state": "failed", "error": described(error)}


def run_task(text: str) -> dict[str, Any]:
    """A training that is scored once."""
    (report,) = reports(text)
    return report


def train_shared(text: str) -> dict[str, Any]:
    """The making of a study's shared student in a worker: distilled, then tuned."""
    announce(text)
    from nas.worker.evaluate import distil_shared

    try:
        distil_shared(**json.loads(text))
    except Exception as error:
        return {"state": "failed", "error": described(error)}
    return {"state": "complete"}


def described(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


@dataclass
class _Running(Generic[Item]):
    """An item that was handed to Ray."""

    item: Item
    arrival: Arrival


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
    """Trains the items in Ray workers, in their order; each with its report as it ends.

    task_json: the task of an item, for `function`. charge: hears the wall seconds of each, bit by bit while it runs, from when its
    worker began. tick: hears, about every second, for how many seconds the ones that run have run. admit: an item as it is begun
    beside those that run, each with its seconds so far; None where it is passed over.
    Raises ValueError when no worker comes.
    """
    remote = ray.remote(function).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0)
    waiting, running = list(items), dict[Any, _Running[Item]]()

    def pay(one: _Running[Item], interval: float = 0.0) -> None:
        if one.arrival.owed() > interval:
            charge(one.item, one.arrival.pay())

    def past() -> list[tuple[Item, float]]:
        return [(one.item, one.arrival.seconds() or 0.0) for one in running.values()]

    try:
        while True:
            while waiting and len(running) < workers:
                if (item := admit(waiting.pop(0), past())) is not None:
                    task = task_json(item)
                    arrival = Arrival(task)
                    running[remote.remote(task)] = _Running(item, arrival)
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                pay(running[reference])
                yield running.pop(reference).item, _report(reference)
            for one in running.values():
                pay(one, HEARTBEAT)
                one.arrival.check()
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


def _report(reference: Any) -> dict[str, Any]:
    try:
        report: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as error:
        return {"error": f"the worker died: {str(error).splitlines()[0]}"}
    return report


def trainable(config: dict[str, Any]) -> None:
    """What Ray Tune runs. The report travels as JSON, because Tune flattens nested results and mixes its own fields in."""
    from ray import tune

    for report in reports(config["task"]):
        tune.report({"report": json.dumps(report)})
