"""Connecting to Ray: what is handed to it, and which cluster is meant."""

import os
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
