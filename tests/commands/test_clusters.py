"""Searches on Ray clusters that others started: several nodes that come and go, cards that are claimed, two studies at once."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from nas.stages.finals import read_finals
from nas.study.folder import open_folder

SRLNAS = [sys.executable, "-m", "nas.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]
Start = Callable[..., Cluster]
HANGS = 1500.0  # seconds after which a search of a minute or two hangs, on any machine


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function of the head's resources; the cluster ends with the test. No driver of this process joins it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a head that others start has another token than this user's
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")  # see `ended`
    monkeypatch.setenv("SRLNAS_CHECKPOINT_SECONDS", "0")  # workers have their node's environment
    started = list[Cluster]()

    def begin(**head: Any) -> Cluster:
        started.append(Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head}))
        return started[0]

    yield begin
    for cluster in started:
        cluster.shutdown()


def ended(search: subprocess.Popen[str]) -> tuple[str, str]:
    """What a search wrote. One that hangs says where, and leaves no process that the next test would suffer from."""
    try:
        return search.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        search.send_signal(signal.SIGABRT)  # Python's faulthandler shows all its threads
        out, err = search.communicate()
        pytest.fail(f"the search hangs\n{out}\n{err}")


def test_a_budget_of_gpus_buys_shares_of_cards(start: Start, on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    """A card that the cluster claims to have, two workers of half a card; only CUDA is not there."""
    cluster = start(num_cpus=2, num_gpus=1)
    asked = ("--budget", "3gpu-hours", "--gpus", "0.5", "--candidates", "2", "--finalists", "1")
    said = srlnas(on_known_machine, "search", *tiny_search, *asked, "--name", "cards", "--ray-address", cluster.address).stdout
    assert "3 h of GPU time" in said and "2 trainings at once" in said
    study = open_folder(on_known_machine / "studies/cards")
    assert study.read_json("front.json")["stage"] == "final" and study.read_json("front.json")["members"]
    candidates = study.candidates()
    assert [candidate.state for candidate in candidates] == ["complete"] * 2
    spent = study.ledger.by_purpose()
    assert spent["candidates"] == pytest.approx(sum(candidate.seconds for candidate in candidates), abs=0.01)
    assert spent.get("preparation", 0.0) == 0.0  # the driver holds no card


def test_a_search_outlives_a_node_and_uses_a_new_one(
    start: Start, on_known_machine: Path, tiny_search: Options, tmp_path: Path
) -> None:
    """A head with the driver alone, two nodes with room for a training each. One is killed under its training, which goes on
    elsewhere from its checkpoint; a node that joins gets work. Nothing is lost, nothing is there twice."""
    cluster = start(num_cpus=0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    (on_known_machine / "recipe.toml").write_text("tutor_weight = 0.0\n")
    options = [*tiny_search, "--candidates", "4", "--finalists", "1", "--steps", "4", "--recipe", "recipe.toml", "--name", "nodes"]
    study = on_known_machine / "studies/nodes"
    started = subprocess.Popen(
        [*SRLNAS, "search", *options, "--ray-address", cluster.address],
        cwd=on_known_machine,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (len(list(study.glob("begun/candidate-*"))) >= 2 and any(study.glob("distilled/candidate-*"))):
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    cluster.remove_node(nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1)
    out, err = ended(started)
    assert started.returncode == 0, out + err
    said = [line for line in err.splitlines() if "died" in line]
    assert len(said) == 1 and "tried again from its checkpoint" in said[0] and "Traceback" not in out + err
    opened = open_folder(study)
    assert [candidate.state for candidate in opened.candidates()] == ["complete"] * 4
    reached = Counter((candidate.number, candidate.rung) for candidate in opened.history() if candidate.rung)
    assert set(reached.values()) == {1}
    finals = [final for final in read_finals(opened) if final.scores]
    assert {final.role for final in finals} >= {"finalist", "teacher", "paper's student", "BC-ResNet"}
    assert json.loads((study / "front.json").read_text())["stage"] == "final"


@pytest.mark.slow
def test_two_studies_side_by_side_end_at_their_budgets(start: Start, on_known_machine: Path, tiny_search: Options) -> None:
    """Each with half of the cluster; what waits for the other's trainings is not charged."""
    cluster = start(num_cpus=2)
    asked = ["--space", "edge", "--finalists", "2", "--batch", "8", "--budget", "6cpu-minutes", "--share", "0.5", *tiny_search[-6:]]
    both = [
        subprocess.Popen(
            [*SRLNAS, "search", *asked, "--name", name, "--ray-address", cluster.address],
            cwd=on_known_machine,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("left", "right")
    ]
    said = [ended(search)[0] for search in both]
    for name, search, text in zip(("left", "right"), both, said):
        assert search.returncode == 0, text
        assert "1 trainings at once" in text
        study = open_folder(on_known_machine / "studies" / name)
        shortest = min(candidate.seconds for candidate in study.candidates() if candidate.state == "complete")
        assert 360 - max(3.6, shortest) <= study.ledger.spent <= 1.01 * 360  # what is left is too little for one more
