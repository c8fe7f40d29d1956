"""What a search depends on goes away in its middle: MLflow's server, its database, its artifacts, room on the disk."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nas.study.folder import open_folder
from nas.tracking.connection import connect

pytestmark = pytest.mark.slow
SRLNAS = [sys.executable, "-m", "nas.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]
Options = tuple[str, ...]


class Search:
    """One that runs in a folder, and what it has said."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.output = folder / "said"
        with self.output.open("w") as said:
            command = [*SRLNAS, "search", *options]
            self.process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)

    def said(self) -> str:
        return self.output.read_text()

    def waits_for(self, stage: str) -> None:
        while stage not in self.said().splitlines():
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def ends(self) -> int:
        return self.process.wait(900)


def all_is_there(folder: Path, uri: str) -> None:
    """Every candidate and final as one run, every member as one version of the model."""
    study, client = open_folder(folder / "studies/one"), connect(uri)
    front = json.loads((study.folder / "front.json").read_text())
    assert front["stage"] == "final" and all(candidate.state == "complete" for candidate in study.candidates())
    experiment = client.get_experiment_by_name("one")
    assert experiment is not None
    runs = Counter(run.data.tags["mlflow.runName"] for run in client.search_runs([experiment.experiment_id], max_results=1000))
    assert set(runs.values()) == {1}
    assert {f"candidate {candidate.number}" for candidate in study.candidates()} <= set(runs)
    assert {member["name"] for member in front["members"]} <= set(runs)
    assert len(client.search_model_versions("name = 'one'")) == len(front["members"])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.3)


class Server:
    """MLflow's, with a database and artifacts that outlive it."""

    def __init__(self, folder: Path, files: str = "served", **environment: str) -> None:
        self.folder, self.log, self.files, self.environment = folder, folder / "server.log", files, environment
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", self.files, "--port", str(self.port)]
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "mlflow", "server", *options, "--workers", "1"]
            environment = os.environ | self.environment
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"{self.uri}/health", self.process, self.log)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def test_mlflows_server_is_killed_and_started_again(on_known_machine: Path, tiny_search: Options) -> None:
    server = Server(on_known_machine)
    try:
        search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "3", "--tracking-uri", server.uri)
        search.waits_for("search")
        server.kill()
        search.waits_for("finalists and references")
        server.start()
        assert search.ends() == 0, search.said()
        assert search.said().count("MLflow does not answer, the search goes on") == 1
        all_is_there(on_known_machine, server.uri)
    finally:
        server.kill()


def test_a_locked_database_is_passed_over(on_known_machine: Path, tiny_search: Options) -> None:
    search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "3")
    search.waits_for("search")
    other = sqlite3.connect(on_known_machine / "srlnas.db", timeout=60)
    other.execute("BEGIN EXCLUSIVE")
    search.waits_for("finalists and references")
    other.rollback()
    other.close()
    assert search.ends() == 0, search.said()
    assert "database is locked" in search.said()
    all_is_there(on_known_machine, f"sqlite:///{on_known_machine}/srlnas.db")


def test_artifacts_that_cannot_be_stored_are_stored_later(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "3")
    search.waits_for("search")
    store = on_known_machine / "mlartifacts"
    if store.is_dir():
        store.rename(on_known_machine / "away")
    store.write_text("no folder")
    assert search.ends() == 2
    assert "MLflow did not take the results" in search.said() and "--resume one` logs it again" in search.said()
    assert "Traceback" not in search.said()
    store.unlink()
    srlnas(on_known_machine, "search", "--resume", "one")
    all_is_there(on_known_machine, f"sqlite:///{on_known_machine}/srlnas.db")


@pytest.fixture
def s3(on_known_machine: Path) -> Iterator[dict[str, str]]:
    """A server that speaks S3, with one bucket: what another process has to know of it."""
    address, log = f"http://127.0.0.1:{(port := free_port())}", on_known_machine / "s3.log"
    with log.open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=said, stderr=said)
    try:
        wait_for(address, process, log)
        key = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        store(key | {"MLFLOW_S3_ENDPOINT_URL": address}).create_bucket(Bucket="mlflow")
        yield key | {"MLFLOW_S3_ENDPOINT_URL": address}
    finally:
        process.kill()
        process.wait(30)


def store(known: dict[str, str]) -> Any:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    return boto3.client(
        "s3",
        endpoint_url=known["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        region_name=known["AWS_DEFAULT_REGION"],
    )


def test_files_lie_in_an_s3_store_whose_keys_a_search_does_not_have(
    on_known_machine: Path, tiny_search: Options, srlnas: Run, s3: dict[str, str]
) -> None:
    server = Server(on_known_machine, "s3://mlflow/files", **s3)
    try:
        srlnas(on_known_machine, "search", *tiny_search, "--name", "one", "--candidates", "3", "--tracking-uri", server.uri)
        all_is_there(on_known_machine, server.uri)
        kept = [item["Key"] for item in store(s3).list_objects_v2(Bucket="mlflow")["Contents"]]
        assert any(name.endswith("weights.safetensors") for name in kept) and any(name.endswith("front.html") for name in kept)
        srlnas(on_known_machine, "export", "models:/one@smallest", "--tracking-uri", server.uri, "--name", "shipped", "--no-listen")
        srlnas(on_known_machine, "verify", "deploy/exports/shipped")
    finally:
        server.kill()


def test_a_full_disk_is_said_and_the_search_goes_on_with_room(on_known_machine: Path, tiny_search: Options, srlnas: Run) -> None:
    studies = on_known_machine / "studies"
    studies.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(studies)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk is a tmpfs, which this user may not mount")
    try:
        search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "3")
        assert search.ends() == 2, search.said()
        assert "no room is left on a disk" in search.said() and "Traceback" not in search.said()
        subprocess.run(["mount", "-o", "remount,size=800m", str(studies)], check=True)
        srlnas(on_known_machine, "search", "--resume", "one")
        all_is_there(on_known_machine, f"sqlite:///{on_known_machine}/srlnas.db")
    finally:
        subprocess.run(["umount", str(studies)], check=True)


def test_memory_that_is_gone_is_said_and_the_study_goes_on_with_more(
    on_known_machine: Path, tiny_search: Options, srlnas: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own monitor kills workers, as if the machine had no memory left for them."""
    with monkeypatch.context() as context:
        context.setenv("RAY_memory_usage_threshold", "0.01")
        search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "2", "--finalists", "1")
        assert search.ends() == 2, search.said()
    said = search.said()
    assert "low on memory" in said.splitlines()[-1] and "Traceback" not in said and len(said.splitlines()) < 30
    srlnas(on_known_machine, "search", "--resume", "one")
    all_is_there(on_known_machine, f"sqlite:///{on_known_machine}/srlnas.db")


def test_a_study_that_is_copied_elsewhere_goes_on_there_before_it_began(
    on_known_machine: Path, tiny_search: Options, srlnas: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To a machine whose clock is an hour behind: what it wrote lies in the future. MLflow there has none of its runs."""
    search = Search(on_known_machine, *tiny_search, "--name", "one", "--candidates", "3")
    study = on_known_machine / "studies/one"
    while not any(candidate.state == "complete" for candidate in (open_folder(study).candidates() if study.is_dir() else ())):
        assert search.process.poll() is None, search.said()
        time.sleep(0.2)
    os.killpg(search.process.pid, signal.SIGKILL)
    search.process.wait(30)
    there = tmp_path_factory.mktemp("there")
    shutil.copytree(study, there / "studies/one")
    ahead = time.time() + 3600
    for path in (there / "studies/one").rglob("*"):
        os.utime(path, (ahead, ahead))
    before = {candidate.number: candidate.seconds for candidate in open_folder(study).candidates() if candidate.state == "complete"}
    said = srlnas(there, "search", "--resume", "one").stdout
    assert "Traceback" not in said
    after = {candidate.number: candidate.seconds for candidate in open_folder(there / "studies/one").candidates()}
    assert set(after) == {0, 1, 2} and all(after[number] == seconds for number, seconds in before.items())
    all_is_there(there, f"sqlite:///{there}/srlnas.db")
    assert {path.name for path in there.iterdir()} >= {"studies", "srlnas.db"}
    assert not (on_known_machine / "studies/one/front.json").exists()
