"""SIGTERM: trainings are asked for checkpoints, and the command ends as one that can go on."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from nas.worker import ending
from nas.worker.ending import Terminated, ended_by_sigterm, wait_for_checkpoints
from nas.worker.own_ray import own_sigterm
from trainers.learning.resume import CHECKPOINT_ASKED


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two trainings give signs of life, one has ended long ago."""
    for name in ("candidate-0", "tutor", "old"):
        file = tmp_path / "begun" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("1.0")
    os.utime(tmp_path / "begun/old", (0, 0))
    return tmp_path


def test_it_waits_until_all_that_train_have_written(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they distil or tune; a checkpoint from before does not count."""
    monkeypatch.setattr(ending, "LONGEST", 600.0)
    asked, written = study / CHECKPOINT_ASKED, list[str]()
    (study / "tuned").mkdir()
    (study / "tuned/tutor.safetensors").touch()
    os.utime(study / "tuned/tutor.safetensors", (0, 0))

    def train() -> None:
        while not asked.exists():
            time.sleep(0.01)
        for folder, name in (("distilled", "candidate-0"), ("tuned", "tutor")):
            time.sleep(0.3)
            (study / folder).mkdir(exist_ok=True)
            (study / folder / f"{name}.safetensors").touch()
            written.append(name)

    trained = threading.Thread(target=train)
    trained.start()
    wait_for_checkpoints(study, asked)
    assert written == ["candidate-0", "tutor"]
    trained.join()


def test_it_does_not_wait_for_ever(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LONGEST", 0.1)
    wait_for_checkpoints(study, study / CHECKPOINT_ASKED)


@pytest.mark.parametrize("follows", [None, ValueError("Ray's raylet on this machine died")])
def test_what_follows_a_sigterm_is_its_doing(follows: Exception | None, tmp_path: Path) -> None:
    """Slurm sends it to Ray's processes too."""

    def work() -> None:
        with ended_by_sigterm(tmp_path):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(20)
            except Terminated:
                if follows:
                    raise follows from None
                raise

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        work()
    assert signal.getsignal(signal.SIGTERM) == before and not (tmp_path / CHECKPOINT_ASKED).exists()


def test_an_error_without_a_signal_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), ended_by_sigterm(tmp_path):
        raise ValueError("mine")


@pytest.mark.parametrize("is_command", [True, False])
def test_ray_s_start_takes_no_command_s_handler(is_command: bool) -> None:
    """Ray's own ends the process as failed; in a notebook, which has none, it stays."""
    theirs, ours = lambda *_: None, signal.default_int_handler if is_command else signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with own_sigterm():
            signal.signal(signal.SIGTERM, theirs)
        assert signal.getsignal(signal.SIGTERM) == (ours if is_command else theirs)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_while_ray_starts_is_heard_by_the_command() -> None:
    """Ray's handlers end the process with codes of their own."""

    def start() -> None:
        with own_sigterm():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    ours = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, ours)


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    """Where a scheduler runs a search by `nas.api`."""
    before, seen = signal.getsignal(signal.SIGTERM), list[object]()

    def work() -> None:
        with ended_by_sigterm(tmp_path):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
