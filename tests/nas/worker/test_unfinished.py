"""A task that is cut in any of its parts and asked for again: it does what is missing, and its student is the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study, open_folder
from nas.worker.evaluate import evaluate
from nas.worker.task import Task, task_json
from nas.worker.trainings import reports
from nas.worker.unfinished import FOLDERS, forget
from search_spaces.architecture import Architecture, Baseline
from trainers.importing.synthetic import speak_corpus
from trainers.learning.distill import fit_student
from trainers.learning.recipe import Recipe
from trainers.networks.student import Student

STUDENT = Architecture(front_end="mel", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,))


class Cut(Exception):
    """What happens in the middle."""


@pytest.fixture(scope="module")
def study(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("work")
    speak_corpus(folder / "spoken.parquet", speakers=8, clips_per_keyword=1)
    data, cache = (str(folder / "spoken.parquet"),), str(folder / "cache")
    recipe = Recipe(batch=4)
    return create_study(StudyConfig(name="one", teacher=str(teacher_folder), data=data, cache=cache, recipe=recipe), folder)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Trains a task with checkpoints after every step, until it is cut; tells how many updates it made."""
    from trainers.learning.distill import update

    def run(task: Task, cut: int = 10**9) -> int:
        made = 0

        def counted(*arguments: Any) -> None:
            nonlocal made
            if made == cut:
                raise Cut
            made += 1
            update(*arguments)

        for module in ("distill", "finetune"):
            monkeypatch.setattr(f"trainers.learning.{module}.update", counted)
        try:
            list(evaluate(task))
        except Cut:
            assert made == cut
        else:
            forget(open_folder(Path(task.study)), task.name)  # as whoever records its end
        return made

    monkeypatch.setenv("SRLNAS_CHECKPOINT_SECONDS", "0")
    return run


def student_task(study: Study, **changed: Any) -> Task:
    fields: dict[str, Any] = {"architecture": STUDENT.to_json(), "start": "kept layers", "distill_steps": 6, "finetune_steps": 6}
    whole = Task(study=str(study.folder.resolve()), name="whole", splits=("val",), seed=0, **fields)
    return replace(whole, **changed)


def made(study: Study, name: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in study.weights_folder(name).iterdir()}


def left(study: Study) -> set[str]:
    return {f"{folder}/{path.name}" for folder in FOLDERS for path in (study.folder / folder).glob("*")}


BASELINE = {"architecture": Baseline().to_json(), "start": "random", "distill_steps": 0}
CUTS = {
    "in distillation": ({}, (3, 2), 18 - 3 - 2),
    "in fine-tuning": ({}, (6 + 5,), 18 - 6 - 4),  # its step of two updates is repeated
    "in both": ({}, (3, 3 + 4), 18 - 6 - 4),
    "BC-ResNet": (BASELINE, (6,), 6),
}


@pytest.mark.parametrize("case", CUTS)
def test_it_does_what_is_missing_and_comes_to_the_same(case: str, study: Study, count: Callable[..., int]) -> None:
    changed, cuts, missing = CUTS[case]
    task = student_task(study, **changed)
    count(task)
    whole = made(study, "whole")
    for cut in cuts:
        count(replace(task, name="parts"), cut)
        assert left(study)
    assert count(replace(task, name="parts")) == missing
    assert made(study, "parts") == whole and not left(study)


def test_a_candidate_goes_on_in_its_last_rung(study: Study, count: Callable[..., int]) -> None:
    """2 + 4 + 4 + 12 updates: after 3 of the last fine-tuning, and a worker that is told of the rung that was passed."""
    task = student_task(study, distilled="whole", rungs=2, reduction=3)
    assert count(task) == 22
    whole = made(study, "whole")
    task = replace(task, name="parts", distilled="parts")
    count(task, 13)
    assert left(study) == {"distilled/parts.safetensors", "tuned/parts.safetensors"}
    assert count(replace(task, done=1)) == 10
    assert made(study, "parts") == whole and not left(study)


def test_what_was_fitted_is_kept(study: Study, count: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is cut before its first update is not fitted to its teacher again; one of another task is."""
    fitted = list[Student]()

    def fit(student: Student, *lesson: Any) -> None:
        fitted.append(student)
        fit_student(student, *lesson)

    monkeypatch.setattr("nas.worker.evaluate.fit_student", fit)
    task = student_task(study, name="fitted", distill_steps=0)
    count(task, 0)
    assert [count(task), len(fitted)] == [12, 1]
    count(task, 0)
    assert [count(replace(task, seed=1)), len(fitted)] == [12, 3]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"finetune_steps": 7}, {"tuning": {"rate": 1e-3}}, BASELINE])
def test_another_task_of_the_name_begins_anew(changed: dict[str, Any], study: Study, count: Callable[..., int]) -> None:
    task = replace(student_task(study, name="other", distill_steps=0, start="random"), **changed)
    count(task)
    whole = made(study, "other")
    count(student_task(study, name="other", distill_steps=0, start="random"), 5)
    assert count(task) == 2 * task.finetune_steps
    assert made(study, "other") == whole and not left(study)


def test_tasks_that_share_a_distillation_make_it_once(study: Study, count: Callable[..., int]) -> None:
    task = student_task(study, name="joint", distilled="seed-0")
    assert [count(task), count(replace(task, name="frozen", tuning={"frozen": True}))] == [18, 12]
    assert left(study) == {"distilled/seed-0.safetensors"}
    (study.folder / "distilled/seed-0.safetensors").unlink()


def test_a_damaged_checkpoint_is_told_with_the_report(
    study: Study, count: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.learning.distill import update

    task = student_task(study, name="damaged", distill_steps=0, start="random")
    count(task, 5)
    kept = study.folder / "tuned/damaged.safetensors"
    kept.write_bytes(kept.read_bytes()[:1000])
    monkeypatch.setattr("trainers.learning.finetune.update", update)  # nothing cuts it now
    (report,) = reports(task_json(task))
    assert report["state"] == "complete" and report["rung"] == 1
    (note,) = report["notes"]
    assert "tuned/damaged.safetensors is damaged" in note and "begins anew" in note
    assert left(study) == {"tuned/damaged.safetensors"}  # until its end is recorded
    forget(study, "damaged")
    assert not left(study)
