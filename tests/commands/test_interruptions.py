"""What may happen to a search: Ctrl-C, a worker that is killed, a driver that is killed. Real Ray, on a small spoken corpus."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nas.planning.pace import Pace
from nas.planning.plan import Plan
from nas.study.folder import open_folder
from nas.worker.trainings import HEARTBEAT

SRLNAS = [sys.executable, "-m", "nas.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]


def test_ctrl_c_loses_nothing(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    """Interrupted while candidates train; the front so far is there; the same command with --resume runs the rest alone. The
    interpreter's path has a blank, which Ray does not quote."""
    (on_known_machine / "my project").symlink_to(sys.prefix)
    python = str(on_known_machine / "my project/bin" / Path(sys.executable).name)
    arguments = ["search", *tiny_search, "--finalists", "1", "--candidates", "3", "--cpus", "2", "--name", "cut"]
    record = on_known_machine / "studies/cut/candidates.jsonl"
    started = subprocess.Popen(
        [python, "-m", "nas.cli", *arguments],
        cwd=on_known_machine,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(started, lambda: record.is_file() and '"complete"' in record.read_text())
    os.kill(started.pid, signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == 130, out + err
    assert "srlnas search --resume cut" in out and "Traceback" not in err
    so_far = json.loads(srlnas(on_known_machine, "front", "cut", "--json").stdout)
    assert so_far["stage"] == "search" and so_far["members"]
    before = {c["number"]: c for c in map(json.loads, record.read_text().splitlines()) if c["state"] == "complete"}

    srlnas(on_known_machine, "search", "--resume", "cut")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert all(sum(c["number"] == number and c["state"] == "running" for c in lines) == 1 for number in before)
    complete = {c["number"] for c in lines if c["state"] == "complete"}
    assert set(before) < complete and len(complete) == 3
    assert json.loads(srlnas(on_known_machine, "front", "cut", "--json").stdout)["stage"] == "final"


def until(process: subprocess.Popen[Any], happened: Callable[[], bool]) -> None:
    """Waits for it while the process runs."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


def workers_of(pid: int) -> list[int]:
    """Ray Tune's workers below a process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            title, ancestor = (process / "cmdline").read_bytes(), int(process.name)
            while ancestor not in (0, pid):
                ancestor = int(Path(f"/proc/{ancestor}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if ancestor == pid and b"ray::ImplicitFunc" in title:
                found.append(int(process.name))
    return found


def test_a_worker_that_is_killed_fails_its_candidate_and_the_search_goes_on(
    on_known_machine: Path, tiny_search: Options, srlnas: Run
) -> None:
    """As the kernel does when memory runs out. The driver runs on a terminal, so its progress is drawn too."""
    arguments = ["search", *tiny_search, "--steps", "20", "--candidates", "3", "--cpus", "2", "--name", "killed"]
    terminal, theirs = pty.openpty()
    record = on_known_machine / "studies/killed/candidates.jsonl"
    started = subprocess.Popen([*SRLNAS, *arguments], cwd=on_known_machine, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    drawn = bytearray()

    def read() -> None:
        with suppress(OSError):
            while part := os.read(terminal, 65536):
                drawn.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    until(started, lambda: record.is_file() and workers_of(started.pid) != [])
    time.sleep(1)
    os.kill(workers_of(started.pid)[0], signal.SIGKILL)
    until(started, lambda: '"complete"' in record.read_text())
    os.kill(started.pid, signal.SIGINT)
    started.wait()
    reader.join()
    os.close(terminal)
    text = drawn.decode(errors="replace")
    assert started.returncode == 130, text
    candidates = open_folder(record.parent).candidates()
    assert [candidate.state for candidate in candidates][:2] == ["failed", "complete"]
    assert "the worker died: The actor is dead because its worker process has died" in str(candidates[0].error)
    assert candidates[0].seconds > 0
    assert " left" in text and " spent" in text


NO_WORKERS = """
from nas.worker import cluster, presence
cluster._interpreter = lambda: {"py_executable": "/nowhere/python"}
presence.PATIENCE = 3.0
from nas.cli.main import main
main()
"""


def test_a_worker_that_never_comes_is_said_and_costs_nothing(on_known_machine: Path, tiny_search: Options) -> None:
    """Ray's own words are in the line; the ledger has nothing for candidates."""
    command = [sys.executable, "-c", NO_WORKERS, "search", *tiny_search, "--candidates", "1", "--name", "alone"]
    done = subprocess.run(command, cwd=on_known_machine, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "no worker of Ray has begun a training" in done.stderr
    assert "/nowhere/python" in done.stderr
    study = open_folder(on_known_machine / "studies/alone")
    assert "candidates" not in study.ledger.by_purpose()
    assert [(candidate.state, candidate.seconds) for candidate in study.candidates()] == [("running", 0.0)]


@pytest.mark.slow
def test_the_ledger_ends_at_the_budget_across_a_killed_driver(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    """Within one hundredth or one shortest rung; what a killed driver had running is paid but for a heartbeat."""
    asked = ("--space", "edge", "--finalists", "2", "--batch", "8", "--budget", "6cpu-minutes", *tiny_search[-2:])
    command = [*SRLNAS, "search", *asked, "--name", "paid"]
    started = subprocess.Popen(command, cwd=on_known_machine, start_new_session=True)
    record, began = on_known_machine / "studies/paid/candidates.jsonl", time.monotonic()
    while started.poll() is None and not record.is_file():
        time.sleep(0.2)
    time.sleep(25)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(30)
    study, wall = open_folder(on_known_machine / "studies/paid"), time.monotonic() - began
    before = study.ledger.spent
    assert before > 2 * (25 - 2 * HEARTBEAT) and before < 2 * wall
    srlnas(on_known_machine, "search", "--resume", "paid")
    study = open_folder(on_known_machine / "studies/paid")
    states = [candidate.state for candidate in study.candidates()]
    assert "running" not in states and states.count("complete") >= 1
    recorded = study.read_json("plan.json")
    plan, pace = Plan(**recorded["plan"]), Pace(**recorded["pace"])
    shortest = pace.rung(8e6, plan.lengths(), 0) * 1.15
    print("budget 360, spent", study.ledger.spent, "shortest rung", shortest, states)
    assert 360 - max(3.6, 2 * shortest) <= study.ledger.spent <= 1.01 * 360 + shortest
