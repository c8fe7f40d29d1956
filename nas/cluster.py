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

from nas.budget import Budget
from nas.config import StudyConfig

Item = TypeVar("Item")
ANSWER_SECONDS = 5
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
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if address is None:
        ray.init(**common)
        return
    del common["include_dashboard"]
    check_answers(address)
    root = Path(__file__).parent.parent
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
    possible = min(cpus / config.cpus, gpus / config.gpus if config.gpus else float("inf"))
    if possible < 1:
        raise ValueError(
            f"a worker of {config.cpus:g} CPUs and {config.gpus:g} GPUs is more than the cluster has ({cpus:g} and {gpus:g})"
        )
    return int(possible)


def run_task(text: str) -> dict[str, Any]:
    """One training in a worker. Whatever goes wrong comes back as a report: the search goes on."""
    from nas.evaluate import evaluate, task_from_json

    try:
        return {"state": "complete", **evaluate(task_from_json(text))}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"state": "failed", "error": f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"}


def run_tasks(
    items: Sequence[Item],
    task_json: Callable[[Item], str],
    config: StudyConfig,
    workers: int,
    *,
    charge: Callable[[Item, float], None],
    tick: Callable[[float], None],
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Trains the items in Ray workers, in their order; each with its report as it ends.

    task_json: the task of an item. charge: hears the wall seconds of each, those too of what still runs when this is closed.
    tick: hears, about every second, for how many seconds the ones that run have run.
    """
    remote = ray.remote(run_task).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0)
    waiting, running = list(items), dict[Any, tuple[Item, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                item = waiting.pop(0)
                running[remote.remote(task_json(item))] = item, time.monotonic()
            for reference in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                item, began = running.pop(reference)
                charge(item, time.monotonic() - began)
                yield item, _report(reference)
            tick(sum(time.monotonic() - began for _, began in running.values()))
    finally:
        for item, began in running.values():
            charge(item, time.monotonic() - began)


def _report(reference: Any) -> dict[str, Any]:
    try:
        report: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as error:
        return {"error": f"the worker died: {str(error).splitlines()[0]}"}
    return report


def trainable(config: dict[str, Any]) -> None:
    """What Ray Tune runs. The report travels as JSON, because Tune flattens nested results and mixes its own fields in."""
    from ray import tune

    tune.report({"report": json.dumps(run_task(config["task"]))})
