"""Ray: connecting to it, and one training as it runs in a worker."""

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from nas.study.budget import Account, Budget
from nas.study.config import StudyConfig
from nas.study.folder import Study

Item = TypeVar("Item")
ANSWER_SECONDS = 5
HEARTBEAT = 10.0  # seconds between two charges of what runs: a driver that is killed leaves no more than that unpaid
PACKAGES = ("nas", "deploy", "trainers", "search_spaces")


def connect(address: str | None = None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address` (or RAY_ADDRESS) and sends it this code.

    Raises ValueError when no cluster answers there.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default: keep CUDA_VISIBLE_DEVICES as it is
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: the front is written first
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # CSV, JSON and TensorBoard files that nobody reads
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if address is None:
        ray.init(**common)
        return
    del common["include_dashboard"]
    check_answers(address)
    root = Path(__file__).parents[2]
    try:
        ray.init(address=address, runtime_env={"py_modules": [str(root / package) for package in PACKAGES]}, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head` or leave --ray-address out"
        ) from None


def check_answers(address: str) -> None:
    """Raises ValueError when nothing listens at `host:port` (Ray itself would try for minutes), and for a Ray Client address:
    Tune then runs away from the study folder, which the driver alone writes."""
    if address == "auto":
        return
    if "://" in address:
        raise ValueError(
            f"the Ray address is {address!r}; run this on a node of the cluster and give host:port (6379 by default) or auto"
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head` or leave --ray-address out"
        ) from None


def workers(config: StudyConfig, budget: Budget) -> int:
    """How many trainings run at once. Raises ValueError when the cluster cannot run one, or lacks the budget's resource."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    if budget.resource == "gpu" and not gpus:
        raise ValueError(
            f"the budget names GPUs and the cluster has none ({cpus:g} CPUs); give cpu-hours, or the --ray-address of one that has"
        )
    share = config.gpus or float(budget.resource == "gpu")  # before it is measured, a whole one
    possible = min(cpus / config.cpus, gpus / share if share else float("inf"))
    if possible < 1:
        raise ValueError(
            f"a worker of {config.cpus:g} CPUs and {share:g} GPUs is more than the cluster has ({cpus:g} and {gpus:g})"
        )
    return int(possible)


def account_of(study: Study, budget: Budget) -> Account:
    """What the study's trainings may spend here. Raises ValueError as `workers`."""
    at_once = workers(study.config, budget)
    return Account(budget=budget, ledger=study.ledger, resources=study.config.held(budget), workers=at_once)


def on_a_gpu(function: Callable[[str], Item], text: str) -> Item:
    """What a function gives that has a whole GPU to itself."""
    found: Item = ray.get(ray.remote(function).options(num_gpus=1, max_retries=0).remote(text))
    return found


def reports(text: str) -> Iterator[dict[str, Any]]:
    """One training in a worker, a report a rung. Whatever goes wrong comes back as a report: the search goes on."""
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
    """The distillation of a study's shared student in a worker."""
    from nas.worker.evaluate import distil_shared

    try:
        distil_shared(**json.loads(text))
    except Exception as error:
        return {"state": "failed", "error": described(error)}
    return {"state": "complete"}


def described(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def run_tasks(
    items: Sequence[Item],
    task_json: Callable[[Item], str],
    config: StudyConfig,
    workers: int,
    *,
    function: Callable[[str], dict[str, Any]] = run_task,
    charge: Callable[[Item, float], object],
    tick: Callable[[float], None],
    admit: Callable[[Item, Sequence[tuple[Item, float]]], bool] = lambda item, running: True,
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Trains the items in Ray workers, in their order; each with its report as it ends.

    task_json: the task of an item, for `function`. charge: hears the wall seconds of each, bit by bit while it runs.
    tick: hears, about every second, for how many seconds the ones that run have run. admit: whether to begin an item beside those
    that run, each with its seconds so far; one that is not admitted is passed over.
    """
    remote = ray.remote(function).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0)
    waiting, running, paid = list(items), dict[Any, tuple[Item, float]](), dict[Any, float]()

    def pay(reference: Any, interval: float = 0.0) -> None:
        now = time.monotonic()
        if now - paid[reference] >= interval:
            charge(running[reference][0], now - paid[reference])
            paid[reference] = now

    def past() -> list[tuple[Item, float]]:
        return [(item, time.monotonic() - began) for item, began in running.values()]

    try:
        while True:
            while waiting and len(running) < workers:
                if admit(item := waiting.pop(0), past()):
                    reference = remote.remote(task_json(item))
                    running[reference], paid[reference] = (item, time.monotonic()), time.monotonic()
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                pay(reference)
                yield running.pop(reference)[0], _report(reference)
            for reference in running:
                pay(reference, HEARTBEAT)
            tick(sum(seconds for _, seconds in past()))
    finally:
        for reference in running:
            pay(reference)


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
