"""What may happen to a search: Ctrl-C, workers, the driver or Ray itself killed. Real Ray, on a small spoken corpus."""

import json
import os
import pty
import re
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
from nas.stages.finals import FINALS_FILE
from nas.study.budget import read_lines
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


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    arguments = ["search", *tiny_search, "--finalists", "1", "--candidates", "3", "--cpus", "2", "--name", "cut"]
    record = on_known_machine / "studies/cut/candidates.jsonl"
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    started = subprocess.Popen([*SRLNAS, *arguments], cwd=on_known_machine, **options)
    until(started, lambda: record.is_file() and '"complete"' in record.read_text())
    for _ in range(2):
        os.kill(started.pid, signal.SIGINT)
        time.sleep(0.2)
    out, err = started.communicate(timeout=10)
    assert started.returncode == 130 and "Traceback" not in out + err, out + err
    srlnas(on_known_machine, "search", "--resume", "cut")
    complete = [c["number"] for c in read_lines(record) if c["state"] == "complete"]
    assert len(complete) == len(set(complete)) == 3


def until(process: subprocess.Popen[Any], happened: Callable[[], bool], every: float = 0.2) -> None:
    """Waits for it while the process runs."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(every)


def without_a_tutor(folder: Path) -> list[str]:
    """Candidates come at once."""
    (folder / "recipe.toml").write_text("tutor_weight = 0.0\n")
    return ["--recipe", "recipe.toml"]


def below(pid: int, title: bytes) -> list[int]:
    """Processes below one whose command line holds a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            command, ancestor = (process / "cmdline").read_bytes(), int(process.name)
            while ancestor not in (0, pid):
                ancestor = int(Path(f"/proc/{ancestor}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if ancestor == pid and title in command:
                found.append(int(process.name))
    return found


CANDIDATE, FINAL = b"ray::ImplicitFunc", b"ray::run_task"


def test_workers_that_are_killed_lose_nothing(on_known_machine: Path, tiny_search: Options) -> None:
    """As the kernel does when memory runs out: one of a candidate and one of a training at full length. Both go on in the same
    search. The driver runs on a terminal, so its progress is drawn too."""
    arguments = ["search", *tiny_search, "--steps", "6", "--candidates", "2", "--finalists", "1", "--name", "killed"]
    arguments += ["--cpus", str(os.cpu_count()), *without_a_tutor(on_known_machine)]  # one at a time
    terminal, theirs = pty.openpty()
    study = on_known_machine / "studies/killed"
    options: Any = {"env": {**os.environ, "SRLNAS_CHECKPOINT_SECONDS": "0"}, "stdout": theirs, "stderr": theirs}
    started = subprocess.Popen([*SRLNAS, *arguments], cwd=on_known_machine, start_new_session=True, **options)
    os.close(theirs)
    drawn = bytearray()

    def read() -> None:
        with suppress(OSError):
            while part := os.read(terminal, 65536):
                drawn.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    for name, title in (("candidate-0", CANDIDATE), ("final-*", FINAL)):
        until(started, lambda name=name: any(study.glob(f"tuned/{name}.safetensors")), every=0.02)
        os.kill(below(started.pid, title)[0], signal.SIGKILL)
    started.wait()
    reader.join()
    os.close(terminal)
    text = drawn.decode(errors="replace")
    assert started.returncode == 0, text
    said = " ".join(text.split())
    assert "a worker died: candidate-0 is tried again from its checkpoint" in said
    assert re.search("a worker died: final-[01] is tried again from its checkpoint", said)
    assert "Traceback" not in text and " left" in text and " spent" in text
    reached = [(c.number, c.rung) for c in open_folder(study).history() if c.rung]
    assert len(reached) == len(set(reached))
    assert [candidate.state for candidate in open_folder(study).candidates()] == ["complete", "complete"]
    finals = [line["name"] for line in read_lines(study / FINALS_FILE) if line["scores"] and line["latency_kind"] != "measured"]
    assert len(finals) == len(set(finals)) >= 5  # and the candidate that was no finalist, where nothing beats it
    assert not (study / "tuned").exists()


def test_sigterm_asks_to_be_continued(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    """As Slurm and Kubernetes send it. By the exit code a scheduler knows that the study goes on, and nothing is left behind that
    would keep it from that."""
    arguments = ["search", *tiny_search, "--steps", "1000", "--candidates", "1", "--cpus", "2", "--name", "ended"]
    study = on_known_machine / "studies/ended"
    options: Any = {"env": {**os.environ, "SRLNAS_CHECKPOINT_SECONDS": "1"}, "text": True, "start_new_session": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": on_known_machine}
    started = subprocess.Popen([*SRLNAS, *arguments, *without_a_tutor(on_known_machine)], **options)
    until(started, lambda: any(study.glob("distilled/candidate-0*")))
    os.kill(started.pid, signal.SIGTERM)
    out, err = started.communicate()
    assert started.returncode == 75, out + err
    assert "srlnas search --resume ended" in out and "Traceback" not in err
    assert (study / "distilled/candidate-0.safetensors").is_file()
    assert not (study / "ending").exists() and not (study / "driver.json").exists()
    assert [candidate.state for candidate in open_folder(study).candidates()] == ["running"]
    listed = json.loads(srlnas(on_known_machine, "studies", "--json").stdout)
    assert [(row["name"], row["state"]) for row in listed] == [("ended", "to continue")]


@pytest.mark.parametrize("part", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_ray_that_dies_is_said_in_a_line(part: str, on_known_machine: Path, tiny_search: Options) -> None:
    """With the command that goes on; what its candidate had used is paid, and no more."""
    arguments = ["search", *tiny_search, "--steps", "300", "--candidates", "1", "--cpus", "2", "--name", "lost"]
    arguments += without_a_tutor(on_known_machine)
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    started = subprocess.Popen([*SRLNAS, *arguments], cwd=on_known_machine, **options)
    until(started, lambda: any((on_known_machine / "studies/lost/begun").glob("candidate-*")))
    began = time.monotonic()
    time.sleep(3)
    (process,) = below(started.pid, f"/{part}\0".encode())
    os.kill(process, signal.SIGKILL)
    out, err = started.communicate(timeout=120)
    wall = time.monotonic() - began
    assert started.returncode == 2, out + err
    assert len(err.strip().splitlines()) == 1 and f"Ray's {part} on this machine died" in err
    assert "`srlnas search --resume lost` goes on" in err and "state-dump" not in out and "Traceback" not in out
    spent = open_folder(on_known_machine / "studies/lost").ledger.by_purpose()["candidates"]
    assert 0 < spent <= 2 * (wall + 5)


NO_WORKERS = """
from nas.worker import cluster, presence
cluster._interpreter = lambda: {"py_executable": "/nowhere/python"}
presence.PATIENCE = 15.0
from nas.cli.main import main
main()
"""


def test_a_worker_that_never_comes_is_said_and_costs_nothing(on_known_machine: Path, tiny_search: Options) -> None:
    """Ray's own words are in the line; the ledger has nothing for candidates."""
    command = [sys.executable, "-c", NO_WORKERS, "search", *tiny_search, "--candidates", "1", "--name", "alone"]
    command += without_a_tutor(on_known_machine)
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
