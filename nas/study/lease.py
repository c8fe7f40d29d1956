"""One driver a study: a lock where the file system has locks, and a lease in the folder where it has none, or where the driver
runs on another machine. The lease says who runs the study and gives signs of life. No two clocks are compared: what counts is
whether the file changes while it is watched.
"""

import _thread
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from nas.study.budget import TAKEN_OVER, check_not_taken
from nas.study.progress import say
from search_spaces.kinds import made_of, text_of

LEASE_FILE = "driver.json"
LOCK_FILE = ".lock"
BEAT = 10.0  # seconds between two signs of life
EXPIRY = 45.0  # seconds without one after which a driver is taken for dead
LOOK = 0.5  # seconds between two looks at a lease that is watched
SETTLING = 2.0  # seconds in which another one that takes the same lease at the same time is seen


@dataclass(frozen=True, kw_only=True)
class Lease:
    """host, boot, pid: of the driver. token: of this run of it. beats: signs of life so far."""

    host: str
    boot: str
    pid: int
    token: str
    beats: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_of_this_machine(self) -> bool:
        return (self.host, self.boot) == _machine()


def read_lease(folder: Path) -> Lease | None:
    """None where nobody has one; a torn or foreign file is nobody's."""
    try:
        return made_of(Lease, json.loads(text_of(folder / LEASE_FILE)))
    except (OSError, ValueError, TypeError):
        return None


def write_lease(folder: Path, lease: Lease) -> None:
    part = folder / f".{LEASE_FILE}.{lease.token}"
    part.write_text(json.dumps(vars(lease)))
    part.replace(folder / LEASE_FILE)


def is_running(folder: Path) -> Lease | None:
    """The lease of a driver that lives, as far as a look tells: on another machine by the age of its last sign of life, which its
    clock dates."""
    lease = read_lease(folder)
    if lease is None:
        return None
    if lease.is_of_this_machine:
        try:
            os.kill(lease.pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # of another user
            pass
        return lease
    with suppress(OSError):
        return lease if time.time() - (folder / LEASE_FILE).stat().st_mtime < EXPIRY else None
    return None


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """While the block runs, no other driver runs this study. Raises ValueError where another one does, and where another one has
    taken the study over while nothing was heard of this one (a machine that slept)."""
    with (folder / LOCK_FILE).open("w") as file:
        has_lock = _lock(file, folder, name)
        _await_expiry(folder, name, has_lock)
        keeper = _take(folder, name, has_lock)
        thread = threading.Thread(target=keeper.run, daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            check_not_taken(folder / LEASE_FILE)
            raise
        finally:
            keeper.end.set()
            thread.join(BEAT)
            TAKEN_OVER.pop(folder, None)
            if (now := read_lease(folder)) and now.token == keeper.lease.token:
                (folder / LEASE_FILE).unlink(missing_ok=True)


def _taken_over(name: str, other: Lease) -> str:
    return f"the study {name} was taken over by {other}, since nothing was heard of this process; what it had recorded is kept"


def _refusal(name: str, other: Lease | None) -> ValueError:
    return ValueError(f"{other or 'another process'} is running the study {name}: wait for it, or end it")


def _lock(file: IO[str], folder: Path, name: str) -> bool:
    """Whether the file system has locks. Raises ValueError where another process holds this one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(name, read_lease(folder)) from None
    except OSError:
        return False
    return True


def _await_expiry(folder: Path, name: str, has_lock: bool) -> None:
    """Raises ValueError where the driver of a lease that is there gives a sign of life."""
    lease = read_lease(folder)
    if lease is None or (has_lock and lease.is_of_this_machine):  # it would hold the lock
        return
    say(f"{lease} had begun to run the study {name}: waiting {EXPIRY:.0f} s for a sign of life from it")
    until = time.monotonic() + EXPIRY
    while time.monotonic() < until:
        time.sleep(LOOK)
        now = read_lease(folder)
        if now is None:
            return
        if now != lease:
            raise _refusal(name, now)


@dataclass(kw_only=True)
class _Keeper:
    """A thread that renews a lease. When another driver has taken it, nothing more is written in the folder, and the work is
    interrupted where it is in the main thread; in another one its next record ends it.

    in_main: whether the work is in the main thread."""

    folder: Path
    name: str
    lease: Lease
    in_main: bool
    end: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.end.wait(BEAT):
            now = read_lease(self.folder)
            if now is not None and now.token != self.lease.token:
                TAKEN_OVER[self.folder] = _taken_over(self.name, now)
                if self.in_main:
                    _thread.interrupt_main()
                return
            self.lease = replace(self.lease, beats=self.lease.beats + 1)
            with suppress(OSError):  # a disk that is full, a server that is away
                write_lease(self.folder, self.lease)


def _take(folder: Path, name: str, has_lock: bool) -> _Keeper:
    """Raises ValueError where another one takes it at the same time."""
    host, boot = _machine()
    lease = Lease(host=host, boot=boot, pid=os.getpid(), token=secrets.token_hex(8))
    write_lease(folder, lease)
    if not has_lock:
        time.sleep(SETTLING)
        now = read_lease(folder)
        if now is not None and now.token != lease.token:
            raise _refusal(name, now)
    in_main = threading.current_thread() is threading.main_thread()
    return _Keeper(folder=folder, name=name, lease=lease, in_main=in_main)


def _machine() -> tuple[str, str]:
    """Its name, and a number of its last start: two machines may have one name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return socket.gethostname(), boot
