"""`srlnas teacher pretrain` as a user calls it: interrupted, continued, its curves in MLflow, its teacher ready for use."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trainers.importing.synthetic import speak_corpus
from trainers.teacher.teacher import describe_teacher, load_teacher

PRETRAIN = (sys.executable, "-m", "nas.cli", "teacher", "pretrain")
SMALL = ("--steps", "8,6", "--units", "8,12", "--batch", "4", "--data", "spoken.parquet", "--licence", "cc0-1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("work")
    speak_corpus(folder / "spoken.parquet", speakers=8, clips_per_keyword=1)
    shutil.copytree(teacher_folder, folder / "shape")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> str:
    """What the command prints that continues a run which Ctrl-C has ended during its first iteration."""
    command = [*PRETRAIN, "own", *SMALL, "--shape", "shape"]
    started = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "own.pretraining/units-1-train.npy").is_file():
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    out, errors = started.communicate()
    assert started.returncode == 130 and "continues from the last checkpoint" in out, out + errors
    assert not (folder / "own").exists()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_tells_its_stages_and_what_comes_next(made: str) -> None:
    for part in (
        "iteration 1",
        "iteration 2: masked prediction of units of layer 2",
        "step 14 of 14",
        "srlnas search --teacher own",
    ):
        assert part in made


@pytest.mark.usefixtures("made")
def test_the_teacher_is_complete_and_says_where_it_comes_from(folder: Path) -> None:
    described = describe_teacher(str(folder / "own"))
    assert described["licence"] == "cc0-1.0" and described["layers"] == 3 and described["precision"] == ["float16"]
    card = (folder / "own/README.md").read_text()
    for part in ("synthetic", "8 steps towards 8 units; 6 steps towards 12 units", "val loss", "speakers"):
        assert part in card
    assert not (folder / "own.pretraining").exists()


@pytest.mark.usefixtures("made")
def test_the_curves_are_in_mlflow_as_one_run(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/srlnas.db")
    runs = client.search_runs([client.get_experiment_by_name("teachers").experiment_id])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED" and runs[0].data.params["units"] == "8 12"
    history = client.get_metric_history(runs[0].info.run_id, "val_loss")
    assert {point.step for point in history} == {8, 14}
    assert [artifact.path for artifact in client.list_artifacts(runs[0].info.run_id)] == ["README.md"]


@pytest.mark.slow
@pytest.mark.usefixtures("made")
def test_a_run_can_begin_with_another_teachers_weights(folder: Path) -> None:
    again = ("next", "--start", "own", "--units-from", "own:1", *SMALL, "--steps", "1", "--units", "8", "--rate", "1e-9")
    done = subprocess.run([*PRETRAIN, *again], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (load_teacher(str(folder / name)) for name in ("own", "next"))
    card = (folder / "next/README.md").read_text()
    assert f"the weights of the teacher with digest {before.digest}" in card
    assert f"k-means of layer 1 of the teacher own, digest {before.digest}, which was trained on speech alone" in card
    for name, value in before.encoder.state_dict().items():
        torch.testing.assert_close(after.encoder.state_dict()[name], value, atol=2e-3, rtol=2e-3)  # float16 on disk


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("own", *SMALL), "holds a teacher already"),
        (("other", *SMALL, "--steps", "many"), "--steps is 'many'"),
        (("other", *SMALL, "--shape", "huge"), "neither mini-hubert, base, large"),
        (("other", *SMALL, "--shape", "shape", "--units", "9000,10"), "9000 units need 90000 frames"),
        (("other", *SMALL, "--units-from", "own:4"), "the teacher own has no layer 4; units may come from 0 to 3"),
        (("other", *SMALL, "--units-from", "nothing"), "teacher 'nothing' is neither"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: tuple[str, ...], part: str) -> None:
    refused = subprocess.run([*PRETRAIN, *arguments], cwd=folder, capture_output=True, text=True)
    assert refused.returncode == 2 and part in refused.stderr and len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (folder / "other").exists()


@pytest.mark.slow  # SQLite waits for every lock
def test_a_locked_database_loses_neither_the_teacher_nor_its_curves(folder: Path) -> None:
    """Something holds srlnas.db until the teacher is made; the same command then logs what MLflow missed."""
    command = [*PRETRAIN, "locked", *SMALL, "--steps", "3", "--units", "8", "--shape", "shape"]
    started = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "locked.pretraining").is_dir():
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    held = sqlite3.connect(folder / "srlnas.db", isolation_level=None, timeout=60)
    held.execute("BEGIN EXCLUSIVE")
    out, errors = started.communicate()
    held.execute("ROLLBACK")
    held.close()
    assert started.returncode == 2 and "the teacher locked is complete, but MLflow did not take its curves" in errors, out + errors
    assert "SELECT" not in errors and (folder / "locked/config.json").is_file()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not (folder / "locked.pretraining").exists(), done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/srlnas.db")
    runs = client.search_runs([client.get_experiment_by_name("teachers").experiment_id])
    run = next(run for run in runs if run.info.run_name.startswith("locked"))
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")] == [3]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert again.returncode == 2 and "holds a teacher already" in again.stderr
