"""Ray: connecting to it, and what it has."""

import math
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray

from nas.study.budget import Account, Budget
from nas.study.config import StudyConfig
from nas.study.folder import Study
from nas.worker import own_ray

Item = TypeVar("Item")
ANSWER_SECONDS = 5
LONGEST_TMPDIR = 40
EXACT = 1e-9  # ten tenths are one
PACKAGES = ("nas", "deploy", "trainers", "search_spaces")


def connect(address: str | None = None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address` (or RAY_ADDRESS) and sends it this code.

    Raises ValueError when no cluster answers there.
    """
    if ray.is_initialized():
        if not own_ray.died():
            return
        ray.shutdown()  # of a notebook's last search
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default: keep CUDA_VISIBLE_DEVICES as it is
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: the front is written first
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # CSV, JSON and TensorBoard files that nobody reads
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # we say it in a line
    if len(os.environ.get("TMPDIR", "")) > LONGEST_TMPDIR:  # a socket's path has 107 bytes, and Ray's own part of it is long
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "include_dashboard": False}
    own_ray.quiet()
    if address in (None, "", "local"):  # Ray itself would join any cluster that it finds on this machine
        _secret()
        own_ray.stay_on_loopback()
        with own_ray.own_sigterm():
            ray.init(address="local", runtime_env=_interpreter(), **common)
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


def _secret() -> None:
    """Ray keeps the token that its processes share below HOME. Where nothing can be written there, this run has one of its own."""
    place = Path(os.path.expanduser("~")) / ".ray"
    try:
        place.mkdir(exist_ok=True)
        is_writable = os.access(place, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable and not (place / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _interpreter() -> dict[str, Any]:
    """Ray starts workers through a shell and does not quote the interpreter's path: one with a blank is quoted here."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


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
    """How many trainings of the study run at once: of what the cluster can run its share, at least one. Raises ValueError when the
    cluster cannot run one, or lacks the budget's resource."""
    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus, gpus = (sum(has.get(name, 0.0) for has in nodes) for name in ("CPU", "GPU"))
    if budget.resource == "gpu" and not gpus:
        raise ValueError(
            f"the budget names GPUs and the cluster has none ({cpus:g} CPUs); give cpu-hours, or the --ray-address of one that has"
        )
    share = config.gpus or float(budget.resource == "gpu")  # before it is measured, a whole one
    possible = sum(_fits(has.get("CPU", 0.0), has.get("GPU", 0.0), config.cpus, share) for has in nodes)
    if not possible:
        raise ValueError(
            f"a worker of {config.cpus:g} CPUs and {share:g} GPUs is more than a node has, of {cpus:g} and {gpus:g} in the cluster"
        )
    return min(max(1, int(config.share * possible)), config.workers or sys.maxsize)


def _fits(cpus: float, gpus: float, each_cpus: float, each_gpus: float) -> int:
    """Workers on a node of so many cores and cards. A share of a card is of one card, and several cards are of one node."""
    on_cores = int(cpus / each_cpus + EXACT)
    if not each_gpus:
        return on_cores
    on_cards = int(gpus) * int(1 / each_gpus + EXACT) if each_gpus <= 1 else int(gpus / each_gpus)
    return min(on_cores, on_cards)


def cores_of_a_node(config: StudyConfig) -> int:
    """That a training of the study may hold alone. 1 on a cluster of several nodes, where others may hold a core of each, and all
    of one would never come."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) != 1:
        return 1
    return max(1, int(min(config.share * nodes[0], (config.workers or math.inf) * config.cpus)))


def cores_alone(config: StudyConfig, planned: float) -> float:
    """What a training that runs alone holds, 0: a worker's cores, where the study goes on with fewer than were planned."""
    return planned if planned <= cores_of_a_node(config) else 0.0


def account_of(study: Study, budget: Budget) -> Account:
    """What the study's trainings may spend here. Raises ValueError as `workers`."""
    at_once = workers(study.config, budget)
    return Account(budget=budget, ledger=study.ledger, resources=study.config.held(budget), workers=at_once)


def on_a_gpu(function: Callable[[str], Item], text: str) -> tuple[Item, float]:
    """What a function gives that has a whole GPU to itself, and the seconds that it took there: what waits for one costs nothing.
    Raises ValueError where its worker dies."""

    def timed(text: str) -> tuple[Item, float]:
        began = time.monotonic()
        return function(text), time.monotonic() - began

    try:
        found: tuple[Item, float] = ray.get(ray.remote(timed).options(num_gpus=1, max_retries=0).remote(text))
    except ray.exceptions.WorkerCrashedError as error:
        raise ValueError(f"the worker that measured what a training takes of a GPU died: {error}; or give --gpus") from None
    return found
