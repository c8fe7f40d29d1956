"""When a training's clock starts: a worker says so, also on a machine whose clock differs."""

import json
import os
import time
from pathlib import Path

import pytest

from nas.worker import presence
from nas.worker.presence import Arrival, announce, what_ray_wrote


@pytest.fixture
def task(tmp_path: Path) -> str:
    return json.dumps({"study": str(tmp_path), "name": "candidate-3"})


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


def test_a_mark_of_every_worker_is_no_reason_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_logs", lambda: tmp_path)
    worker = tmp_path / "worker-1-01000000-7.err"
    worker.write_text(":job_id:01000000\n:task_name:run_task\n")
    assert what_ray_wrote() == ""
    worker.write_text(":job_id:01000000\nbash: /no/such/python: No such file or directory\n")
    assert what_ray_wrote() == "bash: /no/such/python: No such file or directory"
