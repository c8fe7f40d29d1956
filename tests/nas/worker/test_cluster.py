"""Connecting to Ray: what is handed to it, and which cluster is meant."""

import os
import subprocess
import sys

import pytest

from nas.worker import cluster


def test_an_interpreter_with_a_blank_in_its_path_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts workers through a shell and does not quote it itself."""
    monkeypatch.setattr(sys, "executable", "/My Project/.venv/bin/python")
    assert cluster._interpreter() == {"py_executable": "'/My Project/.venv/bin/python'"}
    monkeypatch.setattr(sys, "executable", "/project/.venv/bin/python")
    assert cluster._interpreter() == {}


@pytest.mark.parametrize("said", [None, "", "local"])
def test_without_an_address_ray_starts_anew_and_joins_nobody(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    begun = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: begun.append(options["address"]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if said is not None:
        monkeypatch.setenv("RAY_ADDRESS", said)
    cluster.connect()
    assert begun == ["local"]


def test_a_long_temporary_folder_leaves_room_for_rays_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + 60 * "t")
    cluster.connect()
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.delenv("RAY_TMPDIR")


LISTENING = """
import os, time
from pathlib import Path
import ray
import psutil  # which Ray brings
from nas.worker import cluster
cluster.connect()
ray.get(ray.remote(lambda: None).remote())
ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
names = {process.name() for process in ours}
assert {"gcs_server", "raylet"} <= names, names
for process in ours:
    for socket in process.net_connections("inet"):
        if socket.status == "LISTEN":
            print(socket.laddr.ip)
"""


def test_what_a_search_starts_is_reached_from_this_machine_alone() -> None:
    """Ray on Linux listens on all addresses by itself."""
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    addresses = done.stdout.split()
    assert len(addresses) >= 4 and all(ip.removeprefix("::ffff:") in ("127.0.0.1", "::1") for ip in addresses), addresses
