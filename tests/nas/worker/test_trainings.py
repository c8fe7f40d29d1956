"""A training that has a node for itself: what it holds, and what it is charged. Real Ray."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from nas.study.budget import Account, Ledger, parse_budget
from nas.study.config import StudyConfig
from nas.worker import cluster
from nas.worker.trainings import run_alone


@pytest.fixture
def node_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    cluster.connect(started.address)
    yield started
    ray.shutdown()
    started.shutdown()


def test_a_training_alone_holds_all_its_cores_and_pays_for_them(node_of_two_cores: Cluster, tmp_path: Path) -> None:
    def train(text: str) -> dict[str, Any]:
        import time

        import ray

        from nas.worker.presence import present

        with present(text):
            began = time.monotonic()
            time.sleep(3)
            held = ray.get_runtime_context().get_assigned_resources()
        return {"state": "complete", "cpus": held["CPU"], "seconds": time.monotonic() - began}

    account = Account(budget=parse_budget("1cpu-hours"), ledger=Ledger(tmp_path / "ledger.jsonl"), resources=1.0, workers=2)
    heard = list[tuple[float, float]]()
    study = StudyConfig(name="a")
    for cores, held in ((cluster.cores_alone(study, 2.0), 2.0), (cluster.cores_alone(study, 4.0), 1.0)):  # four are too many
        heard.clear()
        before = account.ledger.spent
        task = json.dumps({"study": str(tmp_path), "name": f"tutor-{held:g}"})
        said = {"what": "tutor", "expected": 1.0, "tick": lambda *seconds: heard.append(seconds)}
        report = run_alone(task, study, account, cores=cores, function=train, **said)
        spent = account.ledger.spent - before
        assert report["cpus"] == held
        assert held * report["seconds"] <= spent + 0.1 < held * (report["seconds"] + 20)
        assert heard[-1] == (pytest.approx(spent), pytest.approx(spent))  # beyond what was expected, that grows with it
    assert account.spent_on("tutor") == pytest.approx(account.ledger.spent)


@pytest.mark.parametrize(
    ("share", "most", "at_once", "cores"), [(1.0, None, 2, 2), (0.5, None, 1, 1), (0.1, None, 1, 1), (1.0, 1, 1, 1), (1.0, 9, 2, 2)]
)
def test_a_study_holds_its_share_of_the_cluster(
    node_of_two_cores: Cluster, share: float, most: int | None, at_once: int, cores: int
) -> None:
    """Beside other studies; one training at least."""
    study = StudyConfig(name="a", share=share, workers=most)
    assert cluster.workers(study, parse_budget("1cpu-hours")) == at_once
    assert cluster.cores_of_a_node(study) == cores


def test_of_several_nodes_none_is_taken_whole(node_of_two_cores: Cluster) -> None:
    """Others may hold a core of each."""
    study = StudyConfig(name="a")
    assert cluster.cores_of_a_node(study) == 2
    node_of_two_cores.add_node(num_cpus=4)
    assert cluster.cores_of_a_node(study) == 1 and cluster.cores_alone(study, 2.0) == 0


@pytest.mark.parametrize(
    ("has", "each", "fits"),
    [
        ((4, 0), (1, 0.0), 4),
        ((4, 0), (3, 0.0), 1),  # the fourth core is of no use
        ((1, 0), (0.1, 0.0), 10),
        ((8, 2), (1, 0.4), 4),  # a share of a card is of one card
        ((3, 2), (1, 0.25), 3),
        ((8, 3), (1, 2.0), 1),
    ],
)
def test_a_training_is_on_one_node_and_a_share_on_one_card(has: tuple[float, float], each: tuple[float, float], fits: int) -> None:
    assert cluster._fits(*has, *each) == fits


def test_cores_of_two_nodes_are_not_one_worker_s(node_of_two_cores: Cluster) -> None:
    node_of_two_cores.add_node(num_cpus=2)
    assert cluster.workers(StudyConfig(name="a", cpus=2), parse_budget("1cpu-hours")) == 2
    with pytest.raises(ValueError, match="more than a node has"):
        cluster.workers(StudyConfig(name="a", cpus=3), parse_budget("1cpu-hours"))


def test_what_waits_for_a_card_is_not_charged(node_of_two_cores: Cluster) -> None:
    """Another study holds it for three seconds."""

    def hold() -> None:
        time.sleep(3.0)

    began = time.monotonic()
    other = ray.remote(hold).options(num_gpus=1).remote()
    share, seconds = cluster.on_a_gpu(len, "four")
    assert share == 4 and seconds < 1.0 and time.monotonic() - began >= 3.0
    ray.get(other)
