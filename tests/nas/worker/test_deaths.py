"""What died of its surroundings is tried again, what failed by itself is not. Real Ray, real kills; trainings that only wait."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.worker import cluster
from nas.worker.deaths import MOST_DEATHS, Deaths, listed, revived
from nas.worker.presence import SILENCE
from nas.worker.trainings import run_tasks
from search_spaces.architecture import Architecture

CONFIG = StudyConfig(name="a")
STUDENT = Architecture(front_end="mel", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,))
Json = Callable[[str], str]


@pytest.fixture
def ray_of_two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head without room, where the driver is, and two nodes with room for one training each."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [started.add_node(num_cpus=1) for _ in range(2)]
    cluster.connect(started.address)
    yield started, nodes
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def task_json(tmp_path: Path) -> Json:
    return lambda name: f'{{"study": "{tmp_path}", "name": "{name}"}}'


def until(happened: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_what_dies_is_tried_again_thrice_and_what_fails_is_not(
    ray_of_two_nodes: tuple[Cluster, list[Any]], task_json: Json, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then a node is killed under one of two trainings: it goes on on the other, and its time after the kill is not charged."""

    def train(text: str) -> dict[str, Any]:
        import json
        import os
        import signal
        import time
        from pathlib import Path

        import ray

        from nas.worker.presence import present

        task = json.loads(text)
        name, folder = task["name"], Path(task["study"])
        with present(text):
            (folder / f"{name}.{time.time_ns()}").write_text(ray.get_runtime_context().get_node_id())
            attempts = len(list(folder.glob(f"{name}.*")))
            if name == "always" or (name == "once" and attempts == 1):
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "raises":
                raise RuntimeError("by itself")
            while name.startswith("waits") and not (folder / "go").exists():
                time.sleep(0.1)
        return {"state": "complete", "notes": ["a word"] if name == "once" else []}

    def attempts(name: str) -> list[Path]:
        return sorted(tmp_path.glob(f"{name}.*"))

    charged = dict[str, float]()

    def run(*names: str) -> dict[str, dict[str, Any]]:
        def charge(name: str, seconds: float) -> None:
            charged[name] = charged.get(name, 0.0) + seconds

        reports = list(run_tasks(names, task_json, CONFIG, 2, function=train, charge=charge, tick=lambda _: None))
        assert len(reports) == len(names)
        return dict(reports)

    reports = run("once", "always", "raises")
    assert [len(attempts(name)) for name in ("once", "always", "raises")] == [2, 1 + MOST_DEATHS, 1]
    assert reports["once"] == {"state": "complete"}
    assert reports["always"]["error"].startswith(f"the worker died {1 + MOST_DEATHS} times, at last: ")
    assert "RuntimeError: by itself" in reports["raises"]["error"]
    said = capfd.readouterr().err
    assert "srlnas: once: a word" in said and "tried again from" in said and "Traceback" not in said

    _, nodes = ray_of_two_nodes
    killed = dict[str, float]()

    def kill_a_node() -> None:
        try:
            where = until(lambda: attempts("waits-1") and attempts("waits-1")[0].read_text())
            until(lambda: attempts("waits-2"))
            time.sleep(2)
            killed["began"] = attempts("waits-1")[0].stat().st_mtime
            killed["at"] = time.time()
            raylet = next(node for node in nodes if node.node_id == where).all_processes["raylet"][0].process
            os.kill(raylet.pid, signal.SIGKILL)
            raylet.wait()  # or its workers take the zombie for alive
            until(lambda: "a node died" in "".join(heard))
            killed["noticed"] = time.time()
        finally:
            (tmp_path / "go").touch()

    heard = list[str]()

    def listen() -> None:
        while not (tmp_path / "go").exists():
            heard.append(capfd.readouterr().err)
            time.sleep(0.1)

    threads = [threading.Thread(target=target) for target in (kill_a_node, listen)]
    for thread in threads:
        thread.start()
    reports = run("waits-1", "waits-2")
    for thread in threads:
        thread.join()
    assert {name: report["state"] for name, report in reports.items()} == {"waits-1": "complete", "waits-2": "complete"}
    first, second = (path.read_text() for path in attempts("waits-1"))
    assert first != second and len(attempts("waits-2")) == 1
    assert killed["noticed"] - killed["at"] < 60  # half a minute; this machine may be busy
    again = time.time() - attempts("waits-1")[1].stat().st_mtime
    assert charged["waits-1"] < killed["at"] - killed["began"] + SILENCE + 5 + again
    assert "srlnas: a node died: waits-1 is tried again from its checkpoint" in "".join(heard)
    assert "state-dump" not in "".join(heard)


def test_a_line_names_what_died_together(capsys: pytest.CaptureFixture[str]) -> None:
    deaths = Deaths()
    for name in ("candidate-1", "candidate-2"):
        assert deaths.again(name, "ray.exceptions.ActorDiedError: ...\nThe actor died because its node has died. Node Id: 7")
    deaths.say(set())
    assert capsys.readouterr().err == ""  # more may have died of it
    deaths.say({"candidate-3"}, wait=0.0)
    silent, dead = capsys.readouterr().err.splitlines()
    assert silent == "srlnas: no sign of life from candidate-3: nothing is charged until there is one"
    assert dead == "srlnas: a node died: 2 trainings (candidate-1, candidate-2) are tried again from their checkpoints"
    deaths.say({"candidate-3"}, wait=0.0)
    assert capsys.readouterr().err == ""
    assert listed(["a", "b", "c", "d"]) == "4 trainings (a, b, c, ...)"


def test_what_died_too_often_is_tried_again_when_the_study_is_resumed() -> None:
    """What failed by itself is not, also where its worker had died before."""
    deaths, by_itself = Deaths(), RayTaskError("train", "", ValueError("its own"))  # type: ignore[no-untyped-call]
    while deaths.again("often", "low on memory"):
        pass
    deaths.again("once", "lost")
    assert not deaths.again("once", "its own", by_itself)
    ended = {
        name: Candidate(number=1, architecture=STUDENT, state="failed", error=deaths.error(name)) for name in ("often", "once")
    }
    assert revived(ended["often"]) == replace(ended["often"], state="running", error=None)
    assert revived(ended["once"]) == ended["once"]


def test_want_of_memory_is_said_without_the_essay_behind_it() -> None:
    deaths = Deaths()
    for _ in range(MOST_DEATHS):
        assert deaths.again("final-1", "Task was killed due to the node running low on memory.\nRefer to the documentation")
    assert not deaths.again("final-1", "Task was killed due to the node running low on memory.\nRefer to the documentation")
    assert deaths.error("final-1") == "the worker died 4 times, at last: Task was killed due to the node running low on memory."
