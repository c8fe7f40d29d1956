"""A database for MLflow that several processes make at once, or that one is killed in the making of."""

import subprocess
import sys
import time
from pathlib import Path

from nas.tracking.connection import connect

ROOT = Path(__file__).parents[3]
CONNECTS = "import sys; from nas.tracking.connection import connect; connect(sys.argv[1]).create_experiment(sys.argv[2])"


def begun(folder: Path, name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-c", CONNECTS, f"sqlite:///{folder}/srlnas.db", name]
    return subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def test_searches_that_begin_at_once_share_the_database_that_one_makes(tmp_path: Path) -> None:
    both = [begun(tmp_path, name) for name in ("left", "right")]
    for process in both:
        _, said = process.communicate()
        assert process.returncode == 0, said
    found = {experiment.name for experiment in connect(f"sqlite:///{tmp_path}/srlnas.db").search_experiments()}
    assert found >= {"left", "right"}
    assert [path.name for path in tmp_path.iterdir()] == ["srlnas.db"]


def test_a_process_that_is_killed_in_the_making_leaves_the_way_free(tmp_path: Path) -> None:
    first = begun(tmp_path, "first")
    while not (parts := [path for path in tmp_path.glob(".srlnas.db.*") if path.stat().st_size > 10_000]):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert parts and not (tmp_path / "srlnas.db").exists()
    second = begun(tmp_path, "second")
    _, said = second.communicate()
    assert second.returncode == 0, said
