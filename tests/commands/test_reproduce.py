"""The paper's table through the command line: real Ray, real MLflow, every row trained on a small spoken corpus."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nas.paper.reproduce import VARIANTS
from nas.paper.table import build_table, markdown
from nas.study.budget import read_lines
from nas.study.folder import open_folder
from trainers.speech.loading import load_corpus
from trainers.speech.synthetic import speak_corpus
from trainers.speech.trial_lists import write_trials
from trainers.speech.trials import make_trials

REPRODUCE = [sys.executable, "-m", "nas.cli", "reproduce"]
TINY = ("--name", "paper", "--steps", "2", "--seeds", "2", "--rates", "1e-3,5e-4", "--lengths", "1", "--batch", "4")


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*REPRODUCE, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A working folder in which an experiment of two corpora has ended; `voices` has no keywords to test."""
    made = tmp_path_factory.mktemp("work")
    asked = []
    for seed, name in enumerate(("spoken", "voices")):
        speak_corpus(made / f"{name}.parquet", speakers=10 + 3 * seed, clips_per_keyword=1, seed=seed)
        if name == "voices":
            _without_words(made / f"{name}.parquet")
        write_list(made / f"{name}.parquet", made / f"{name}_trials.parquet")
        asked += ["--data", f"{name}.parquet", "--trials", f"{name}_trials.parquet"]
    told = run(made, *TINY, *asked, "--teacher", str(teacher_folder))
    assert "\n  voices: 182 clips, 11 keywords, 13 speakers, 40 and 40 trials (val, test)\n" in told
    return made


def _without_words(path: Path) -> None:
    """But for those of the train split."""
    table = pq.read_table(path)
    words = [word if split == "train" else None for split, word in zip(*(table[n].to_pylist() for n in ("split", "keyword")))]
    place = table.schema.get_field_index("keyword")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(words, pa.string())), path)


def write_list(path: Path, out: Path) -> None:
    """Ten trials of each kind a speaker."""
    corpus = load_corpus([path], path.parent / "decoded")
    found = {split: make_trials(corpus, split, seed=0, per_speaker=10) for split in ("val", "test")}
    ids = corpus.ids
    write_trials(out, ((s, ids[a], ids[b], bool(c)) for s, t in found.items() for a, b, c in zip(t.enrol, t.test, t.same)))


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


def test_scores_stand_by_corpus(folder: Path, table: dict[str, Any]) -> None:
    assert "NaN" not in (folder / "studies/paper/paper.json").read_text()
    for row in table["rows"]:
        own, asked = row["by_corpus"], {kind for kind in ("accuracy", "eer") if kind in row}
        assert set(own) == ({"spoken", "voices"} if "eer" in row else {"spoken"})
        for corpus, found in own.items():
            told = {"accuracy", "eer"} & found.keys()
            assert told == asked - ({"accuracy"} if corpus == "voices" else set())
            assert ("min_dcf" in found) == ("eer" in found) and ("change" in found) == ("change" in row)
            assert all(set(found["change"][kind]) == {"value", "low", "high"} for kind in told if "change" in found)
        for kind in asked:
            figures = [found[kind]["value"] for found in own.values() if kind in found]
            assert row[kind]["value"] == pytest.approx(sum(figures) / len(figures))
        if "eer" in row:
            assert row["min_dcf"] == pytest.approx(sum(found["min_dcf"] for found in own.values()) / 2)
    text = (folder / "studies/paper/paper.md").read_text()
    assert "| model | tuned | spoken | voices |" in text and "means of corpora and 2 seeds" in text


def test_every_run_has_the_scores_of_each_corpus(folder: Path) -> None:
    *_, record = read_lines(folder / "studies/paper/rows.jsonl")
    assert {"eer.voices", "eer_low.voices", "test_keyword_error_high.spoken"} <= set(record["scores"])
    assert "keyword_error.voices" not in record["scores"]


def test_the_teachers_setting_is_the_best_by_validation_and_untested(folder: Path, table: dict[str, Any]) -> None:
    settings = table["settings"]
    assert [setting["rate"] for setting in settings] == [1e-3, 5e-4]
    best = min(settings, key=lambda setting: 100 - setting["val_accuracy"] + setting["val_eer"])
    tuned = next(row for row in table["rows"] if (row["model"], row["variant"]) == ("teacher", "joint"))
    assert tuned["tuning"]["rate"] == best["rate"]
    assert not list((folder / "studies/paper/students").glob("setting-*/outcome_test.npz"))


def test_students_of_a_seed_share_a_distillation(folder: Path) -> None:
    assert {path.name for path in (folder / "studies/paper/distilled").iterdir()} == {"seed-0.safetensors", "seed-1.safetensors"}


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
