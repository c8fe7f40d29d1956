"""Whether a worker has come for a training, and whether it still lives: its clock starts and ends with that.

A worker says so by a file in the study folder, which every node sees, again and again while it works.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.worker.own_ray import has_room, is_own, logs, what_ray_wrote

BEAT = 5.0  # seconds between two signs of life
LOOK = 1.0  # seconds between two looks at them
SILENCE = 15.0  # seconds without one after which nothing is charged
PATIENCE = 60.0  # seconds without a worker, when Ray has said what is wrong
MOST_PATIENCE = 300.0  # when it has said nothing: a machine may be slow
LOST = 600.0  # seconds after which Ray, that says of a training neither that it runs nor that it died, has lost it


def _file(task: str) -> Path:
    fields = json.loads(task)
    return Path(fields["study"]) / "begun" / str(fields.get("name", "shared student"))


@contextmanager
def present(task: str) -> Iterator[None]:
    """In the worker, around all that takes time. task: its JSON."""
    file, began, end = _file(task), time.monotonic(), threading.Event()
    file.parent.mkdir(exist_ok=True)
    file.write_text("0.0")

    def beat() -> None:
        while not end.wait(BEAT):
            try:
                with file.open("r+") as opened:  # not made anew: the driver takes it away when another worker is asked
                    opened.write(f"{time.monotonic() - began:.1f}")
            except OSError:
                continue

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        end.set()


def is_present(file: Path) -> bool:
    """Whether a training gave a sign of life lately. One that has just ended still counts: its file stays."""
    try:
        return time.time() - file.stat().st_mtime < SILENCE
    except OSError:
        return False


class Arrival:
    """In the driver, of one training that was handed to Ray."""

    def __init__(self, task: str) -> None:
        self.file, self.asked = _file(task), time.monotonic()
        self.began: float | None = None
        self.looked = -LOOK
        self.lived = 0.0  # seconds from when it began to its last sign of life
        self.paid = 0.0  # of its seconds
        self.lost_since: float | None = None
        self.file.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        return self.file.name

    def seconds(self) -> float | None:
        """Since the worker began, up to its last sign of life where that is long ago; None before."""
        if (began := self._look()) is None:
            return None
        past = time.monotonic() - began
        return past if past - self.lived < SILENCE else self.lived

    def is_silent(self) -> bool:
        """Whether the last sign of life of a worker that came is long ago."""
        return (began := self._look()) is not None and time.monotonic() - began - self.lived >= SILENCE

    def _look(self) -> float | None:
        """When the worker began, None before. Clocks of two machines differ: of its file's age a beat at most is believed."""
        now = time.monotonic()
        if self.began is not None and now - self.looked < LOOK:
            return self.began
        self.looked = now
        try:
            with self.file.open() as opened:  # a network's file system asks its server then
                self.lived = max(self.lived, float(opened.read() or 0.0))
        except OSError:  # not there yet, or a network's file system is away
            return self.began
        except ValueError:  # torn, by a network's file system
            pass
        if self.began is None:
            ago = min(BEAT, max(0.0, time.time() - self.file.stat().st_mtime))
            self.began = max(self.asked, time.monotonic() - ago - self.lived)
        return self.began

    def _stays(self, is_lost: bool) -> bool:
        """Whether that was seen at every look for a minute: room is there for a moment when another training ends, and all of this
        may have been suspended."""
        self.lost_since = (self.lost_since or time.monotonic()) if is_lost else None
        return self.lost_since is not None and time.monotonic() - self.lost_since >= PATIENCE

    def owed(self) -> float:
        """Seconds that were not paid."""
        return max(0.0, (self.seconds() or 0.0) - self.paid)

    def pay(self) -> float:
        """Pays what is owed; returns it."""
        owed = self.owed()
        self.paid += owed
        return owed

    def check(self, cpus: float = 1.0, gpus: float = 0.0) -> None:
        """Raises ValueError when no worker has come for long: with what Ray wrote, where it is this command's own; on a cluster,
        where others may have taken all room, when there is room for one of so many cores and cards. And when one that came has
        given no sign of life for long, and Ray does not say that it died."""
        waited, began = time.monotonic() - self.asked, self._look()
        if began is not None:
            if self._stays(time.monotonic() - began - self.lived > LOST):
                raise ValueError(f"no sign of life from {self.name} for long, and Ray says nothing of it; --resume goes on")
            return
        if waited < PATIENCE:
            return
        if not is_own():
            if self._stays(waited > LOST and has_room(cpus, gpus)):
                raise ValueError(f"the cluster has room, and {self.name} waits for {waited:.0f} s to begin; --resume goes on")
            return
        said = what_ray_wrote(since=time.time() - waited)
        if said or waited > MOST_PATIENCE:
            raise ValueError(
                f"no worker of Ray has begun a training for {waited:.0f} s; nothing is charged for it. Ray wrote: "
                f"{said or 'nothing'} (its logs are in {logs()})"
            )
