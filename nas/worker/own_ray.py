"""Ray where this command started it: where it logs, and what becomes of the command when it dies."""

import _thread
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

WITHOUT = ("raylet", "gcs_server")  # processes without which no training comes back
LOOK = 0.5  # seconds between two looks at them
GRACE = 30.0  # seconds for the command to end by itself: calls to a Ray that is gone wait for a minute, and cannot be interrupted
SAID = 300  # characters
# A mark like `:job_id:`, written by every worker; a disk that is nearly full, which the raylet tells every ten seconds; a trace of
# mutexes in a process that ends.
NO_REASON = re.compile(r"^:|file_system_monitor|mutex\.cc")


def node() -> Any:
    return ray._private.worker._global_node  # Ray says nowhere else whether it is this command's own, and where it logs


def is_own() -> bool:
    return node() is not None and bool(node().head)


def has_room(cpus: float, gpus: float) -> bool:
    """Whether a node of the cluster has so much that nobody holds; of a share of a card, a whole one."""
    nodes: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return any(free.get("CPU", 0.0) >= cpus and free.get("GPU", 0.0) >= math.ceil(gpus) for free in nodes.values())


def logs() -> Path:
    return Path(node().get_logs_dir_path())


def what_ray_wrote(since: float = 0.0) -> str:
    """The last line of the latest that workers, their set-up or the raylet wrote as errors on this node; empty without one.

    since: by this machine's clock, in seconds; what was last written to before belongs to trainings of before."""
    files = [*logs().glob("worker-*.err"), *logs().glob("raylet.err"), *logs().glob("runtime_env_setup-*.log")]
    written = sorted((path.stat().st_mtime, path) for path in files)
    for file in (path for when, path in reversed(written) if when >= since):
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
        if lines := [line for line in lines if line and not NO_REASON.search(line)]:
            return lines[-1][:SAID]
    return ""


def died() -> str:
    """Which process of Ray, that no training comes back without, has died; empty where Ray is not this command's own."""
    return next((kind for kind, _ in node().dead_processes() if kind in WITHOUT), "") if is_own() else ""


def stay_on_loopback() -> None:
    """Ray on Linux listens on all addresses of the machine, and takes 127.0.0.1 for a wish to be reached. As on systems where it
    forms no clusters, it is then reached from this machine alone."""
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # of the processes that it starts


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Ray's start sets handlers of SIGTERM that end the process as failed. After the block the command's own is back, and it hears
    of a signal that came within; where there was none, as in a notebook, Ray's stays."""
    ours = signal.getsignal(signal.SIGTERM)
    if not callable(ours) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # nothing else in Ray's start raises it
        ours(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, ours)


def quiet() -> None:
    """What Ray pushes to its driver's terminal, hundreds of lines of a raylet's log, is in its log files too."""
    ray._private.worker.print_to_stdstream = lambda *data, **options: None


class Watch:
    """A thread that looks whether Ray still runs, and interrupts the work when it does not, where that is in the main thread: in
    another one Ray's own calls fail after a while."""

    def __init__(self, command: str) -> None:
        """command: that goes on afterwards."""
        self.command, self.gone, self.left = command, "", threading.Event()
        self.in_main = threading.current_thread() is threading.main_thread()

    def said(self) -> str:
        return (
            f"Ray's {self.gone} on this machine died, and all trainings with it; nothing is charged for them any more, and "
            f"`{self.command}` goes on from their checkpoints (Ray's logs are in {logs()})"
        )

    def look(self) -> bool:
        """Whether Ray of this command's own has died."""
        self.gone = self.gone or died()
        return bool(self.gone)

    def run(self) -> None:
        while not self.left.wait(LOOK):
            if self.look() and self.in_main:
                _thread.interrupt_main()
                self._end()

    def _end(self) -> None:
        if not self.left.wait(GRACE):
            print(f"srlnas: {self.said()}", file=sys.stderr, flush=True)
            os._exit(2)


@contextmanager
def watched(command: str) -> Iterator[None]:
    """For a block of work. Raises ValueError, whatever the block raised of it, when Ray of this command's own has died.

    command: that goes on with the work."""
    watch = Watch(command)
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        yield
    except BaseException as error:
        if watch.look():
            raise ValueError(watch.said()) from error
        raise
    finally:
        watch.left.set()
