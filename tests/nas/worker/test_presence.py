"""When a training's clock starts and ends: a worker says so, also on a machine whose clock differs."""

import json
import os
import time
from pathlib import Path

import pytest

from nas.worker import own_ray, presence
from nas.worker.own_ray import what_ray_wrote
from nas.worker.presence import Arrival, present


@pytest.fixture
def task(tmp_path: Path) -> str:
    return json.dumps({"study": str(tmp_path), "name": "candidate-3"})


def announce(task: str) -> None:
    """A worker that comes, and says nothing more."""
    with present(task):
        pass


def test_a_training_that_waits_takes_no_time(task: str) -> None:
    assert Arrival(task).seconds() is None


def test_time_counts_from_when_the_worker_began(task: str, tmp_path: Path) -> None:
    arrival = Arrival(task)
    time.sleep(0.3)
    announce(task)
    first = arrival.seconds()
    assert first is not None and first < 0.3  # it waited longer than that
    time.sleep(0.1)
    assert (arrival.seconds() or 0) >= first + 0.1


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_clock_that_differs_makes_a_training_no_longer_than_it_was_asked_for(task: str, tmp_path: Path, ahead: float) -> None:
    arrival = Arrival(task)
    announce(task)
    os.utime(tmp_path / "begun/candidate-3", (time.time() + ahead,) * 2)
    assert 0 <= (arrival.seconds() or 0) <= time.monotonic() - arrival.asked


def test_a_second_training_of_the_name_waits_for_its_own_worker(task: str) -> None:
    announce(task)
    assert Arrival(task).seconds() is None


def test_every_second_is_paid_once(task: str) -> None:
    arrival = Arrival(task)
    assert arrival.pay() == 0.0  # nobody has come
    announce(task)
    time.sleep(0.1)
    first = arrival.pay()
    assert first > 0 and arrival.owed() < first
    assert arrival.paid == pytest.approx(first)


def test_nothing_is_owed_for_a_worker_that_gives_no_sign_of_life(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the silence before that is seen; all of it where the worker lives."""
    for name, seconds in (("BEAT", 0.1), ("LOOK", 0.0), ("SILENCE", 0.6)):
        monkeypatch.setattr(presence, name, seconds)
    arrival = Arrival(task)
    with present(task):
        time.sleep(1.0)
        assert (arrival.seconds() or 0) >= 0.9 and not arrival.is_silent()
        paid = arrival.pay()
    time.sleep(1.0)
    assert arrival.is_silent() and arrival.owed() <= 0.6
    lived = arrival.seconds()
    time.sleep(0.3)
    assert arrival.seconds() == lived and arrival.pay() + paid < 2.0


def test_a_worker_of_before_does_not_come_back(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was taken for dead goes on writing: the driver waits for another."""
    monkeypatch.setattr(presence, "BEAT", 0.05)
    with present(task):
        arrival = Arrival(task)
        time.sleep(0.3)
        assert arrival.seconds() is None


def test_a_training_that_ray_lost_ends_the_wait(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has room and begins nothing; a worker that fell silent. What waits on a full cluster waits on."""
    room = [False]
    monkeypatch.setattr(presence, "is_own", lambda: False)
    monkeypatch.setattr(presence, "has_room", lambda cpus, gpus: room[0])
    for name in ("PATIENCE", "LOST"):
        monkeypatch.setattr(presence, name, 0.2)
    waiting = Arrival(task)
    time.sleep(0.3)
    waiting.check()
    room[0] = True
    waiting.check()  # another training has just ended, and Ray is about to begin this one
    room[0] = False
    time.sleep(0.3)
    waiting.check()
    room[0] = True
    waiting.check()
    time.sleep(0.3)
    with pytest.raises(ValueError, match="has room"):
        waiting.check()
    with present(task):
        waiting.check()
    time.sleep(0.6)
    waiting.check()  # all of it may have slept
    time.sleep(0.3)
    with pytest.raises(ValueError, match="no sign of life"):
        waiting.check()


def test_a_mark_of_every_worker_is_no_reason_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_ray, "logs", lambda: tmp_path)
    worker = tmp_path / "worker-1-01000000-7.err"
    worker.write_text(":job_id:01000000\n:task_name:run_task\n")
    assert what_ray_wrote() == ""
    worker.write_text(":job_id:01000000\nbash: /no/such/python: No such file or directory\n")
    (tmp_path / "raylet.err").write_text("[E 2844] (raylet) file_system_monitor.cc:116: /tmp/ray is over 95% full\n")
    os.utime(worker, (1, 1))  # the disk's warning is the latest
    assert what_ray_wrote() == "bash: /no/such/python: No such file or directory"
    assert what_ray_wrote(since=2) == ""  # of a stage before
