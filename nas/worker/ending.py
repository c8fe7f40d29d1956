"""SIGTERM, as Slurm, Kubernetes and systemd send it before they kill: trainings write their checkpoints, and the command ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from nas.worker.context import SHARED_FILE
from nas.worker.presence import is_present
from nas.worker.unfinished import FOLDERS
from trainers.learning.resume import CHECKPOINT_ASKED

LONGEST = 15.0  # seconds for trainings to write them
LOOK = 0.2


class Terminated(KeyboardInterrupt):
    """The command was asked to end, and can go on later."""


@contextmanager
def ended_by_sigterm(study: Path) -> Iterator[None]:
    """For a block of work, after Ray was connected, which has a handler of its own. Raises `Terminated` when SIGTERM came, whatever
    the block then raised: Slurm sends it to Ray's processes too, which die of it. Signals reach the main thread alone: in another
    one nothing is changed.

    study: a folder below which trainings keep checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, had = study / CHECKPOINT_ASKED, [False]
    asked.unlink(missing_ok=True)

    def end(number: int, frame: FrameType | None) -> None:
        if had[0]:  # a second one
            os._exit(128 + number)
        had[0] = True
        wait_for_checkpoints(study, asked)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException as error:
        if had[0]:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        asked.unlink(missing_ok=True)


def wait_for_checkpoints(study: Path, asked: Path) -> None:
    """Asks all trainings that run to write one, and returns when each has, or when there is no more time for that."""
    waiting = [file.name for file in (study / "begun").glob("*") if is_present(file)]
    asked.touch()
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not all(_has_written(study, name, asked) for name in waiting):
        time.sleep(LOOK)


def _has_written(study: Path, name: str, asked: Path) -> bool:
    kept = [*(study / folder / f"{name}.safetensors" for folder in FOLDERS), study / SHARED_FILE]
    return any(file.is_file() and file.stat().st_mtime >= asked.stat().st_mtime for file in kept)
