"""Whether a worker has come for a training: its clock starts then, and one that never comes is an error.

A worker says so by a file in the study folder, which every node sees.
"""

import json
import time
from pathlib import Path
from typing import Any

import ray

PATIENCE = 60.0  # seconds without a worker, when Ray has said what is wrong
MOST_PATIENCE = 300.0  # when it has said nothing: a machine may be slow
SAID = 300  # characters


def _file(task: str) -> Path:
    fields = json.loads(task)
    return Path(fields["study"]) / "begun" / str(fields.get("name", "shared student"))


def announce(task: str) -> None:
    """In the worker, before anything that takes time. task: its JSON."""
    file = _file(task)
    file.parent.mkdir(exist_ok=True)
    file.touch()


class Arrival:
    """In the driver, of one training that was handed to Ray."""

    def __init__(self, task: str) -> None:
        self.file, self.asked = _file(task), time.monotonic()
        self.began: float | None = None
        self.paid = 0.0  # of its seconds
        self.file.unlink(missing_ok=True)

    def seconds(self) -> float | None:
        """Since the worker began, None before."""
        now = time.monotonic()
        if self.began is None:
            try:
                ago = time.time() - self.file.stat().st_mtime
            except FileNotFoundError:
                return None
            self.began = max(self.asked, now - max(0.0, ago))  # clocks of two machines differ
        return now - self.began

    def owed(self) -> float:
        """Seconds that were not paid."""
        return (self.seconds() or 0.0) - self.paid

    def pay(self) -> float:
        """Pays what is owed; returns it."""
        owed = self.owed()
        self.paid += owed
        return owed

    def check(self) -> None:
        """Raises ValueError, with what Ray wrote, when no worker has come for long on a Ray that is this command's own. On a
        cluster others may have taken all room, and a training waits."""
        waited = time.monotonic() - self.asked
        if waited < PATIENCE or self.seconds() is not None or not _is_own_ray():
            return
        said = what_ray_wrote()
        if said or waited > MOST_PATIENCE:
            raise ValueError(
                f"no worker of Ray has begun a training for {waited:.0f} s; nothing is charged for it. Ray wrote: "
                f"{said or 'nothing'} (its logs are in {_logs()})"
            )


def _node() -> Any:
    return ray._private.worker._global_node  # Ray says nowhere else whether it is this command's own, and where it logs


def _is_own_ray() -> bool:
    return _node() is not None and bool(_node().head)


def _logs() -> Path:
    return Path(_node().get_logs_dir_path())


def what_ray_wrote() -> str:
    """The last line of the latest that workers, their set-up or the raylet wrote as errors on this node; empty without one."""
    files = [*_logs().glob("worker-*.err"), *_logs().glob("raylet.err"), *_logs().glob("runtime_env_setup-*.log")]
    for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
        if lines := [line for line in lines if line and not line.startswith(":")]:  # `:job_id:` is a mark, written by every worker
            return lines[-1][:SAID]
    return ""
