"""The paper's table through the command line: real Ray, real MLflow, every row trained on a small spoken corpus. The experiment is
killed inside its first training, and resumed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nas.paper.experiment import FROZEN, JOINT, KEYWORDS, SPEAKERS, read_experiment
from nas.paper.table import build_table
from nas.paper.text import markdown
from nas.study.budget import read_lines
from nas.study.folder import open_folder
from nas.worker.evaluate import evaluate
from nas.worker.task import Task
from nas.worker.unfinished import FOLDERS
from search_spaces.architecture import Architecture
from trainers.importing.synthetic import speak_corpus
from trainers.learning.resume import read_position
from trainers.speech.loading import load_corpus
from trainers.speech.trial_lists import write_trials
from trainers.speech.trials import make_trials

REPRODUCE = [sys.executable, "-m", "nas.cli", "reproduce"]
STEPS = 12
LENGTH = ("--steps", str(STEPS), "--distill-steps", "2", "--seeds", "2", "--batch", "4")
TINY = ("--name", "paper", *LENGTH, "--rates", "1e-3,5e-4", "--lengths", "1", "--student", "little.json", "--student", "wide.json")
LITTLE = Architecture(front_end="mel", front_width=8, frame_stride=1, width=16, heads=(1,), ffn_dims=(16,), kept_layers=(1,))
WIDE = dataclasses.replace(LITTLE, front_width=48, width=48, heads=(4, 4), ffn_dims=(64, 64), kept_layers=(1, 2))
FIRST = f"setting-joint-0.001-{STEPS}"  # the training that is killed
EVERY_STEP = {**os.environ, "SRLNAS_CHECKPOINT_SECONDS": "0"}


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*REPRODUCE, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps_kept(folder: Path, *arguments: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Of the first training, as a command goes on: the steps in its checkpoint."""
    options: Any = {"env": EVERY_STEP, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*REPRODUCE, *arguments], cwd=folder, start_new_session=True, **options)
    while process.poll() is None:
        with suppress(OSError, RuntimeError):  # torch's, of a file that goes while it is opened
            yield read_position(folder / f"studies/paper/tuned/{FIRST}.safetensors").get("steps", 0), process
        time.sleep(0.01)
    assert process.returncode in (0, -signal.SIGKILL), process.communicate()


def kill_tree(pid: int) -> None:
    """A process and all below it, Ray's workers too: one that is left would end the training."""
    found = [pid]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            ancestor = int(process.name)
            while ancestor not in (0, pid):
                ancestor = int(Path(f"/proc/{ancestor}/stat").read_text().rsplit(")", 1)[1].split()[1])
            found += [int(process.name)] if ancestor == pid else []
    for one in found:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A working folder in which an experiment was killed, went on and has ended: of two corpora, `voices` without words to test."""
    made = tmp_path_factory.mktemp("work")
    asked = list[str]()
    for seed, name in enumerate(("spoken", "voices")):
        speak_corpus(made / f"{name}.parquet", speakers=10 + 3 * seed, clips_per_keyword=1, seed=seed)
        if name == "voices":
            _without_words(made / f"{name}.parquet")
        write_list(made / f"{name}.parquet", made / f"{name}_trials.parquet")
        asked += ["--data", f"{name}.parquet", "--trials", f"{name}_trials.parquet"]
    for name, student in (("little", LITTLE), ("wide", WIDE)):
        (made / f"{name}.json").write_text(student.to_json())
    reached = 0
    for steps, process in steps_kept(made, *TINY, *asked, "--teacher", str(teacher_folder)):
        if steps >= 3:
            reached = steps
            kill_tree(process.pid)
    seen = [steps for steps, _ in steps_kept(made, "--resume", "paper") if steps]
    (made / "seen.json").write_text(json.dumps([reached, *seen]))
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


def test_a_training_that_was_killed_goes_on_inside(folder: Path) -> None:
    """Not one of its steps is trained again that was kept, and the student is the one of a training that nobody killed."""
    reached, *seen = json.loads((folder / "seen.json").read_text())
    assert 3 <= reached < STEPS and min(seen) >= reached and max(seen) > reached
    study = open_folder(folder / "studies/paper")
    killed = next(record for record in read_lines(study.folder / "rows.jsonl") if record["name"] == FIRST)
    fields = {name: killed[name] for name in ("start", "distill_steps", "finetune_steps", "seed", "tuning", "tutor")}
    task = Task(
        study=str(study.folder.resolve()), name="again", architecture=json.dumps(killed["architecture"]), splits=(), **fields
    )
    list(evaluate(task))
    weights = [study.weights_folder(name) / "weights.safetensors" for name in (FIRST, "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_every_row_stands_in_the_table(table: dict[str, Any]) -> None:
    rows = {(row["model"], row["variant"]): row for row in table["rows"]}
    models = ["teacher", "paper's student", "little", "wide", "little from scratch", "BC-ResNet"]
    alone = [(model, variant) for variant in (KEYWORDS, SPEAKERS, FROZEN) for model in ("teacher", "paper's student", "little")]
    assert list(rows) == [*((model, JOINT) for model in models), *alone]
    for (model, variant), row in rows.items():
        assert (row["tutor"] is None) == (model in ("teacher", "little from scratch", "BC-ResNet"))
        assert ("accuracy" in row) == (variant != SPEAKERS) and ("eer" in row) == (variant != KEYWORDS)
        assert ("min_dcf" in row) == ("eer" in row) and row["params"] > 0 and row["seconds"] > 0
        assert row["seeds"] == (2 if variant == JOINT else 1)
    joint, scratch = rows["little", JOINT], rows["little from scratch", JOINT]
    assert joint["size_ratio"] == pytest.approx(joint["params"] / rows["teacher", JOINT]["params"])
    assert 2 * scratch["steps"]["finetune"] == 2 * joint["steps"]["finetune"] + joint["steps"]["distill"]
    assert scratch["params"] == joint["params"] and table["teacher"]["params"] == rows["teacher", JOINT]["params"]


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
    assert "| model | tuned | spoken | voices |" in text and "means over corpora and seeds" in text


def test_every_run_has_the_scores_of_each_corpus(folder: Path) -> None:
    *_, record = read_lines(folder / "studies/paper/rows.jsonl")
    assert {"eer.voices", "eer_low.voices", "test_keyword_error_high.spoken"} <= set(record["scores"])
    assert "keyword_error.voices" not in record["scores"]


def test_the_best_student_is_small_and_has_the_figures_of_its_row(table: dict[str, Any]) -> None:
    rows = {(row["model"], row["variant"]): row for row in table["rows"]}
    assert list(table["students"]) == ["paper's student", "little", "wide"]
    assert table["students"]["wide"]["size_ratio"] > 0.25 >= table["students"]["little"]["size_ratio"]
    assert table["best_student"] == {"model": "little", **table["students"]["little"]}
    for name, figures in table["students"].items():
        change = rows[name, JOINT]["change"]
        assert figures["accuracy_change"] == change["accuracy"]["value"]
        assert figures["eer_change_interval"] == [change["eer"]["low"], change["eer"]["high"]]


def test_rows_are_compared_in_what_both_were_trained_for_and_over_the_seeds_of_both(folder: Path, table: dict[str, Any]) -> None:
    told = {(row["of"], row["minus"]): row for row in table["comparisons"]}
    alone = {(f"{model} joint", f"{model} {v}") for model in ("teacher", "paper's student", "little") for v in (KEYWORDS, SPEAKERS)}
    others = {("teacher joint", "teacher joint, encoder frozen"), ("little joint", "little from scratch joint")}
    assert set(told) == alone | others | {("little joint", "BC-ResNet joint")}
    for (_, minus), row in told.items():
        assert ("accuracy" in row, "eer" in row) == (not minus.endswith(SPEAKERS), not minus.endswith(KEYWORDS))
        assert all(row[name]["low"] <= row[name]["value"] <= row[name]["high"] for name in ("accuracy", "eer") if name in row)
    records = {record["name"]: record["scores"] for record in read_lines(folder / "studies/paper/rows.jsonl")}
    first = records["little-joint-0"]["test_eer"] - records["little-speakers-alone-0"]["test_eer"]
    assert told["little joint", "little speakers alone"]["eer"]["value"] == pytest.approx(first)
    assert told["little joint", "little speakers alone"]["seeds"] == 1 and told["little joint", "BC-ResNet joint"]["seeds"] == 2


def test_each_variant_of_the_teacher_has_its_own_setting_chosen_untested(folder: Path, table: dict[str, Any]) -> None:
    rows = {(row["model"], row["variant"]): row for row in table["rows"]}
    for variant in (JOINT, KEYWORDS, SPEAKERS):
        tried = [setting for setting in table["settings"] if setting["variant"] == variant]
        assert [setting["rate"] for setting in tried] == [1e-3, 5e-4]
        best = min(tried, key=lambda s: (0 if s["val_accuracy"] is None else -s["val_accuracy"]) + (s["val_eer"] or 0))
        assert rows["teacher", variant]["tuning"]["rate"] == best["rate"]
    assert rows["teacher", FROZEN]["tuning"]["rate"] == rows["teacher", JOINT]["tuning"]["rate"]
    assert not any("rate" in rows[model, JOINT]["tuning"] for model in ("BC-ResNet", "little"))
    assert not list((folder / "studies/paper/students").glob("setting-*/outcome_test.npz"))


def test_what_tells_most_is_trained_first_and_a_table_of_it_is_one(folder: Path) -> None:
    study = open_folder(folder / "studies/paper")
    records = list(read_lines(study.folder / "rows.jsonl"))
    names = [record["name"] for record in records]
    first = ["teacher-joint-0", "paper-student-joint-0", "little-joint-0", "wide-joint-0", "bc-resnet-joint-0"]
    second = [name.replace("-0", "-1") for name in first]
    assert set(names[6:16]) == {*first, *second} and set(names[16:18]) == {f"little-from-scratch-joint-{seed}" for seed in (0, 1)}
    assert set(names[6 : names.index(second[-1])]) >= set(first)  # two workers may end in another order
    facts = {"teacher_params": 1, "synthetic": True}
    for count in (0, 6, 8):
        table = build_table(study, records[:count], facts, read_experiment(study), None)
        assert len(table["rows"]) == max(0, count - 6) and "best_student" not in table
        assert markdown(table).count("| 1 |") == len(table["rows"])


def test_nothing_is_left_to_go_on_from(folder: Path) -> None:
    assert not any((folder / "studies/paper" / left).exists() for left in FOLDERS)


def test_every_training_is_a_run(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/srlnas.db")
    experiment = client.get_experiment_by_name("paper")
    assert experiment is not None
    kinds = [run.data.tags.get("srlnas.kind") for run in client.search_runs([experiment.experiment_id])]
    assert kinds.count("reproduction") == 6 + 2 * 6 + 9
    parent = next(run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"paper.json", "paper.md"}


def test_an_interrupted_experiment_trains_what_is_missing_and_what_failed_alone(folder: Path) -> None:
    """Also when a setting or a student that failed at first would now be the best: the rows that stand are of another."""
    path = folder / "studies/paper/rows.jsonl"
    lines = [_better_if_not_chosen(line, folder) for line in path.read_text().splitlines()]
    before = (folder / "studies/paper/paper.json").read_text()
    failed = {**json.loads(lines[-3]), "scores": {}, "error": "the loss became nan"}
    path.write_text("\n".join([*lines[:-2], json.dumps(failed), lines[-2][:20]]) + "\n")  # the last line was torn
    records = list({line["name"]: line for line in read_lines(path)}.values())
    study = open_folder(folder / "studies/paper")
    table = build_table(study, records, {"teacher_params": 1, "synthetic": True}, read_experiment(study), "little")
    assert table["failed"] == {failed["name"]: "the loss became nan"} and failed["name"] in markdown(table)
    assert (failed["model"], failed["variant"]) not in {(row["model"], row["variant"]) for row in table["rows"]}
    interrupted = subprocess.Popen([*REPRODUCE, "--resume", "paper"], cwd=folder, stdout=subprocess.PIPE, text=True)
    while len(list(read_lines(path))) < len(lines):  # until one of them ends
        assert interrupted.poll() is None
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    first = interrupted.communicate()[0]
    assert interrupted.returncode == 130 and "srlnas reproduce --resume paper" in first
    so_far = json.loads((study.folder / "paper.json").read_text())
    assert len(table["rows"]) <= len(so_far["rows"]) < len(json.loads(before)["rows"]) and so_far["best_student"]
    told = run(folder, "--resume", "paper")
    assert "| BC-ResNet | joint |" in told
    assert len([record for record in read_lines(path) if record["scores"]]) == len(lines) - 2 + 3  # each of three once more
    again = json.loads((folder / "studies/paper/paper.json").read_text())
    for ours, theirs in zip(again["rows"], json.loads(before)["rows"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def _better_if_not_chosen(line: str, folder: Path) -> str:
    record, chosen = json.loads(line), json.loads((folder / "studies/paper/chosen.json").read_text())
    if record["name"] in chosen["settings"].values() or record["model"] not in ("teacher", "wide", "paper's student"):
        return line
    return json.dumps({**record, "scores": {**record["scores"], "keyword_error": 0.0, "eer": 0.0}})
