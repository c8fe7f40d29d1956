"""The paper's table through the command line: real Ray, real MLflow, every row trained on a small spoken corpus."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nas.paper.reproduce import VARIANTS
from nas.paper.table import build_table, markdown
from nas.study.budget import read_lines
from nas.study.folder import open_folder
from nas.worker.unfinished import FOLDERS
from trainers.speech.synthetic import speak_corpus

REPRODUCE = [sys.executable, "-m", "nas.cli", "reproduce"]
TINY = ("--name", "paper", "--steps", "2", "--seeds", "2", "--rates", "1e-3,5e-4", "--lengths", "1", "--batch", "4")


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*REPRODUCE, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A working folder in which an experiment has ended."""
    made = tmp_path_factory.mktemp("work")
    speak_corpus(made / "spoken.parquet", speakers=10, clips_per_keyword=1)
    run(made, *TINY, "--data", "spoken.parquet", "--teacher", str(teacher_folder))
    return made


@pytest.fixture
def table(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "studies/paper/paper.json").read_text())
    return content


def test_every_row_stands_in_the_table(table: dict[str, Any]) -> None:
    rows = {(row["model"], row["variant"]): row for row in table["rows"]}
    assert list(rows)[:4] == [(model, variant) for variant in list(VARIANTS)[:2] for model in ("teacher", "student")]
    assert set(rows) == {(model, variant) for model in ("teacher", "student") for variant in VARIANTS} | {
        ("student from scratch", "joint"),
        ("BC-ResNet", "joint"),
    }
    for (_, variant), row in rows.items():
        assert ("accuracy" in row) == (variant != "speakers alone") and ("eer" in row) == (variant != "keywords alone")
        assert ("min_dcf" in row) == ("eer" in row) and row["params"] > 0 and row["seconds"] > 0
    joint = rows["student", "joint"]
    assert joint["size_ratio"] == pytest.approx(joint["params"] / rows["teacher", "joint"]["params"])
    scratch = rows["student from scratch", "joint"]["steps"]
    assert 2 * scratch["finetune"] == 2 * joint["steps"]["finetune"] + joint["steps"]["distill"]
    assert table["best_student"]["accuracy_change"] == joint["change"]["accuracy"]["value"]
    assert table["best_student"]["eer_change_interval"][0] <= table["best_student"]["eer_change"]
    of, minus = rows["student", "joint"], rows["student from scratch", "joint"]
    scratched = next(told for told in table["comparisons"] if told["minus"] == "student from scratch joint")
    assert scratched["eer"]["value"] == pytest.approx(of["eer"]["value"] - minus["eer"]["value"]) and len(table["comparisons"]) == 4
    assert scratched["eer"]["low"] <= scratched["eer"]["value"] <= scratched["eer"]["high"]
    assert table["teacher"]["params"] == rows["teacher", "joint"]["params"]


def test_the_teachers_setting_is_the_best_by_validation_and_untested(folder: Path, table: dict[str, Any]) -> None:
    settings = table["settings"]
    assert [setting["rate"] for setting in settings] == [1e-3, 5e-4]
    best = min(settings, key=lambda setting: 100 - setting["val_accuracy"] + setting["val_eer"])
    tuned = next(row for row in table["rows"] if (row["model"], row["variant"]) == ("teacher", "joint"))
    assert tuned["tuning"]["rate"] == best["rate"]
    assert not list((folder / "studies/paper/students").glob("setting-*/outcome_test.npz"))


def test_nothing_is_left_to_go_on_from(folder: Path) -> None:
    assert not any((folder / "studies/paper" / left).exists() for left in FOLDERS)


def test_every_training_is_a_run(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/srlnas.db")
    experiment = client.get_experiment_by_name("paper")
    assert experiment is not None
    kinds = [run.data.tags.get("srlnas.kind") for run in client.search_runs([experiment.experiment_id])]
    assert kinds.count("reproduction") == 2 + 2 * 10
    parent = next(run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"paper.json", "paper.md"}


def test_an_interrupted_experiment_trains_what_is_missing_and_what_failed_alone(folder: Path) -> None:
    """Also when a setting that failed at first would now be the best: the rows that stand were trained with another."""
    path = folder / "studies/paper/rows.jsonl"
    lines = [_better_if_not_chosen(line, folder) for line in path.read_text().splitlines()]
    before = (folder / "studies/paper/paper.json").read_text()
    failed = {**json.loads(lines[-3]), "scores": {}, "error": "the loss became nan"}
    path.write_text("\n".join([*lines[:-2], json.dumps(failed), lines[-2][:20]]) + "\n")  # the last line was torn
    records = list({line["name"]: line for line in read_lines(path)}.values())
    table = build_table(open_folder(folder / "studies/paper"), records, {"teacher_params": 1, "synthetic": True}, 2)
    assert table["failed"] == {failed["name"]: "the loss became nan"} and failed["name"] in markdown(table)
    assert (failed["model"], failed["variant"]) not in {(row["model"], row["variant"]) for row in table["rows"]}
    told = run(folder, "--resume", "paper")
    assert "| BC-ResNet | joint |" in told
    assert told.count("trained in") == 3  # a line for each that was trained again
    again = json.loads((folder / "studies/paper/paper.json").read_text())
    for ours, theirs in zip(again["rows"], json.loads(before)["rows"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def _better_if_not_chosen(line: str, folder: Path) -> str:
    record = json.loads(line)
    if "test" in record["splits"] or record["name"] == json.loads((folder / "studies/paper/setting.json").read_text()):
        return line
    return json.dumps({**record, "scores": {**record["scores"], "keyword_error": 0.0, "eer": 0.0}})
