"""Searches that are killed: SIGKILL to the driver, a worker, the raylet, Ray's GCS or a whole node (all of Ray there) at a random
moment of every stage, each search continued until it ends. What was lost, what is there twice, what a kill cost in seconds of work,
and whether the ledger is right.

One search after another, whose students are tiny; every kill is a line in OUT/kills.jsonl, so an interrupted run goes on. Several
may run at once: searches wait for Ray and for signs of life as often as they compute.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.report.front import FRONT_FILE
from nas.stages.finals import FINALS_FILE, read_finals
from nas.study.budget import read_lines
from nas.study.folder import Study, open_folder
from nas.tracking.connection import connect
from trainers.importing.synthetic import speak_corpus

ROOT = Path(__file__).parents[2]
SRLNAS = [sys.executable, "-P", "-m", "nas.cli"]
# What the driver prints when a stage begins, where its output is no terminal.
STAGES = {
    "preparation": "speech and teacher states",
    "tutor": "tutor",
    "shared student": "shared student",  # of every second search or so
    "candidates": "search",
    "finals": "finalists and references",
    "report": "further members",
}
VICTIMS = ("driver", "worker", "raylet", "gcs_server", "node")
TITLES = (b"ray::run_task", b"ray::ImplicitFunc", b"ray::train_shared")  # of a worker that trains
TRAINED = ("tutor", "shared student", "candidates", "finalists", "references")  # in the ledger
CHECKPOINTS = "3"  # seconds between two of a training
LOOK = 0.1
KILLS = 3  # of one search in one stage: a training is tried again as often
LONGEST_WAIT = 6.0  # seconds into a stage, at most, before the kill
COMES_WITHIN = 60.0  # seconds for a worker that is waited for
TRAINING = ("tutor", "shared student", "candidates", "finals")  # stages that have workers
OPTIONS = ("--space", "edge", "--steps", "4", "--batch", "8", "--candidates", "3", "--finalists", "2", "--budget", "3cpu-hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no search after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench/survive")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if not (speech := asked.out / "speech.parquet").is_file():
        speak_corpus(speech, speakers=14, clips_per_keyword=1)
    until = time.monotonic() + 60 * asked.minutes
    while len(kills(asked.out)) < asked.kills and time.monotonic() < until:
        number = len(_lines(asked.out / "searches.jsonl"))
        ended = Survivor(asked.out, f"search-{number}-{os.getpid()}", random.Random()).run()
        _append(asked.out / "searches.jsonl", ended)
        (asked.out / "survive.json").write_text(json.dumps(summary(asked.out), indent=2) + "\n")
        print(json.dumps(summary(asked.out), indent=2), flush=True)


def kills(out: Path) -> list[dict[str, Any]]:
    return _lines(out / "kills.jsonl")


def summary(out: Path) -> dict[str, Any]:
    done, searches = kills(out), _lines(out / "searches.jsonl")
    lost = [kill["lost_seconds"] for kill in done]
    pairs = Counter(f"{kill['victim']} in {kill['stage']}" for kill in done)
    return {
        "kills": len(done),
        "searches": len(searches),
        "lost": sum(search["lost"] for search in searches),
        "doubled": sum(search["doubled"] for search in searches),
        "unfinished": sum(not search["ended"] for search in searches),
        "work_lost_seconds": {"median": statistics.median(lost), "most": max(lost)} if lost else {},
        "ledger_error": [round(search["ledger_error"], 3) for search in searches],
        "by_pair": dict(sorted(pairs.items())),
        "tracebacks": sum(search["tracebacks"] for search in searches),
    }


@dataclass
class Survivor:
    """One search with kills in every stage."""

    out: Path
    name: str
    rng: random.Random
    said: list[str] = field(default_factory=list)
    used: float = 0.0  # seconds of workers that trained, as sampled from their titles
    ends: threading.Event = field(default_factory=threading.Event)
    running: subprocess.Popen[str] | None = None

    @property
    def folder(self) -> Path:
        return self.out / "studies" / self.name

    def run(self) -> dict[str, Any]:
        sampler = threading.Thread(target=self._sample, daemon=True)
        sampler.start()
        start = "on" if self.rng.random() < 0.5 else "off"
        command = [
            "search",
            *OPTIONS,
            "--warm-start",
            start,
            "--name",
            self.name,
            "--data",
            "speech.parquet",
            "--target",
            "raspberry-pi-4",
        ]
        left = KILLS * list(STAGES)
        for _ in range(2 * len(left)):
            self._start([*command, "--cache", f"cache/{self.rng.randrange(10**9)}"] if not self.folder.exists() else self._resume)
            if self._lives_through(left):
                break
        self.ends.set()
        sampler.join()
        return self._judged()

    @property
    def _resume(self) -> list[str]:
        return ["search", "--resume", self.name]

    def _start(self, arguments: list[str]) -> None:
        environment = {**os.environ, "SRLNAS_CHECKPOINT_SECONDS": CHECKPOINTS, "PYTHONPATH": str(ROOT)}
        options: dict[str, Any] = {"cwd": self.out, "env": environment, "text": True, "start_new_session": True}
        self.running = subprocess.Popen([*SRLNAS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        self.said = []
        threading.Thread(target=self._read, args=(self.running,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line.rstrip())
            with (self.out / f"{self.name}.log").open("a") as log:
                log.write(line)

    def _stage(self) -> str | None:
        begun = [stage for stage, title in STAGES.items() if title in self.said]
        return begun[-1] if begun else None

    def _lives_through(self, left: list[str]) -> bool:
        """Kills in each stage that is left, until the search is to be continued (False) or has ended (True)."""
        assert self.running is not None
        while self.running.poll() is None:
            if (stage := self._stage()) in left:
                left.remove(stage)  # type: ignore[arg-type]  # it is in the list
                time.sleep(self.rng.uniform(0, LONGEST_WAIT))
                if self.running.poll() is None and self._stage() == stage:
                    self._kill(str(stage))
            time.sleep(LOOK)
        time.sleep(2 * LOOK)
        self._clear()
        return self.running.returncode == 0

    def _kill(self, stage: str) -> None:
        """Of what was killed least there. A worker is waited for, since it comes seconds after its stage has begun, and killed some
        seconds into its training."""
        done = Counter((kill["victim"], kill["stage"]) for kill in kills(self.out))
        victims = VICTIMS if stage in TRAINING else [victim for victim in VICTIMS if victim != "worker"]
        victim = min(victims, key=lambda name: (done[name, stage], self.rng.random()))
        if victim == "worker" and self._awaits_worker(stage):
            time.sleep(self.rng.uniform(0, LONGEST_WAIT))
        now = time.time()
        if not (pids := self._processes(victim)):
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        kill = {"search": self.name, "stage": stage, "victim": victim, "lost_seconds": round(self._lost(now, victim), 2)}
        _append(self.out / "kills.jsonl", kill)
        print(kill, flush=True)

    def _awaits_worker(self, stage: str) -> bool:
        assert self.running is not None
        until = time.monotonic() + COMES_WITHIN
        while not (there := bool(self._processes("worker"))) and self._stage() == stage and self.running.poll() is None:
            if time.monotonic() > until:
                break
            time.sleep(LOOK)
        return there

    def _processes(self, victim: str) -> list[int]:
        assert self.running is not None
        if victim == "driver":
            return [self.running.pid]
        below = list(processes(self.running.pid))
        if victim == "node":
            return [pid for pid, _ in below]
        titles = TITLES if victim == "worker" else (f"/{victim}\0".encode(),)
        return [pid for pid, title in below if any(wanted in title for wanted in titles)][:1]

    def _lost(self, now: float, victim: str) -> float:
        """Seconds between the kill and what a continued search begins with: of every training that ran, or of the stage."""
        trainings = [file for file in (self.folder / "begun").glob("*") if now - file.stat().st_mtime < 6]
        kept = {
            file.stem: file.stat().st_mtime
            for folder in ("distilled", "tuned")
            for file in (self.folder / folder).glob("*.safetensors")
        }
        since = [max(kept.get(file.name, 0.0), file.stat().st_mtime - float(file.read_text() or 0)) for file in trainings]
        if victim == "worker":
            return max((now - begun for begun in since), default=0.0)
        written = [file.stat().st_mtime for file in self.folder.rglob("*") if file.is_file() and file.name != "driver.json"]
        return sum(now - begun for begun in since) if since else now - max(written, default=now)

    def _clear(self) -> None:
        """What a killed driver left of Ray ends by itself; where it does not, in ten seconds."""
        assert self.running is not None
        until = time.monotonic() + 10
        while time.monotonic() < until and self._group():
            time.sleep(LOOK)
        for pid in self._group():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _group(self) -> list[int]:
        """Processes of the search's session, whoever is their parent by now."""
        assert self.running is not None
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError, ValueError):
                if int((place / "stat").read_text().rsplit(")", 1)[1].split()[3]) == self.running.pid:
                    found.append(int(place.name))
        return found

    def _sample(self) -> None:
        before = time.monotonic()
        while not self.ends.wait(LOOK):
            now, seconds = time.monotonic(), 0
            if self.running is not None:
                with suppress(OSError):
                    seconds = sum(any(wanted in title for wanted in TITLES) for _, title in processes(self.running.pid))
            self.used += seconds * (now - before)
            before = now

    def _judged(self) -> dict[str, Any]:
        study = open_folder(self.folder)
        ledger = study.ledger.by_purpose()
        trained = sum(ledger.get(what, 0.0) for what in TRAINED)
        front = study.read_json(FRONT_FILE)
        return {
            "search": self.name,
            "ended": bool(front and front["stage"] == "final"),
            "lost": lost(study),
            "doubled": doubled(study, self.out),
            "ledger_error": trained / self.used - 1 if self.used else 0.0,
            "tracebacks": (self.out / f"{self.name}.log").read_text().count("Traceback"),
        }


def processes(above: int) -> Iterator[tuple[int, bytes]]:
    """Those below a process, with their command lines."""
    parents, titles = dict[int, int](), dict[int, bytes]()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parents[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(place.name)] = (place / "cmdline").read_bytes()
    for pid in parents:
        ancestor = pid
        while ancestor not in (0, above):
            ancestor = parents.get(ancestor, 0)
        if ancestor == above and pid != above:
            yield pid, titles.get(pid, b"")


def lost(study: Study) -> int:
    """Candidates that did not end well, members that MLflow or the folder lacks, references that were not trained."""
    candidates, finals = study.candidates(), [final for final in read_finals(study) if final.scores]
    missing = {"teacher", "paper's student", "BC-ResNet"} - {final.role for final in finals}
    unended = sum(candidate.state != "complete" for candidate in candidates) + max(0, 3 - len(candidates))
    weights = sum(not (study.weights_folder(final.name) / "weights.safetensors").is_file() for final in finals)
    return len(missing) + unended + weights


def doubled(study: Study, out: Path) -> int:
    """Rungs that were reached twice, finals that were tested twice, runs of one name, versions of one model."""
    rungs = Counter((candidate.number, candidate.rung) for candidate in study.history() if candidate.rung)
    lines = [line for line in read_lines(study.folder / FINALS_FILE) if line["scores"]]
    finals = Counter(line["name"] for line in lines if line["latency_kind"] != "measured")
    client = connect(f"sqlite:///{out}/srlnas.db")
    experiment = client.get_experiment_by_name(study.config.name)
    assert experiment is not None
    runs = Counter(run.info.run_name for run in client.search_runs([experiment.experiment_id], max_results=1000))
    versions = client.search_model_versions(f"name = '{study.config.name}'")
    models = Counter(version.tags.get("srlnas.model_id", version.version) for version in versions)
    return sum(count - 1 for counts in (rungs, finals, runs, models) for count in counts.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
