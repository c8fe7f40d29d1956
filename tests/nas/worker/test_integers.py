"""A study that is deployed in int8: its finals are scored in the file that an export writes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle import write_bundle
from nas.device.known import study_target
from nas.report.listening import judge_of
from nas.report.notes import _integers, lost_by_integers
from nas.stages.finals import Final, final_task
from nas.stages.references import _place
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.worker.context import context_of
from nas.worker.evaluate import evaluate
from nas.worker.task import task_from_json
from search_spaces.architecture import Architecture
from trainers.importing.synthetic import speak_corpus
from trainers.learning.recipe import Recipe
from trainers.networks.student import weights_hash

STUDENT = Architecture(front_end="mel", front_width=16, frame_stride=1, width=24, heads=(2,), ffn_dims=(32,), kept_layers=(1,))
FINAL = Final(name="f", role="finalist", architecture=STUDENT, start="kept layers", distill_steps=0, finetune_steps=2)


@pytest.fixture
def study(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    speak_corpus(tmp_path / "spoken.parquet", speakers=8, clips_per_keyword=1)
    paths = {"data": (str(tmp_path / "spoken.parquet"),), "cache": str(tmp_path / "cache")}
    config = StudyConfig(name="one", teacher=str(teacher_folder), recipe=Recipe(batch=4), target="raspberry-pi-4", **paths)
    return create_study(dataclasses.replace(config, precision="int8"))


def test_what_a_final_scores_is_what_its_export_scores(study: Study, tmp_path: Path) -> None:
    (report,) = evaluate(task_from_json(final_task(study, FINAL)))
    scores, context = report["scores"], context_of(str(study.folder.resolve()))
    provenance = {"study": "one", "member": "f", "corpus": {"digest": context.corpus.digest}}
    clips = np.zeros((1, context.target.window), np.float32)
    for other in ({"weights": "0" * 64}, {"member": "g"}):  # the study was begun anew since
        with pytest.raises(ValueError, match="than the model, or none"):
            judge_of({**provenance, **other}, accept_loss=True)
    judge = judge_of({**provenance, "weights": weights_hash(study.weights_folder("f"))}, accept_loss=True)
    latency = {"milliseconds": 2.0, "low": 1.0, "high": 3.0, "how": "measured"}
    folder = study.weights_folder("f")
    bundle = write_bundle(
        folder, tmp_path / "out", target=context.target, clips=clips, synthetic=True, judge=judge, latency=latency
    ).manifest
    for split in ("", "test_"):
        assert scores[f"{split}keyword_error"] == bundle["scores"][f"{split}keyword_error"]
        assert scores[f"{split}eer"] == bundle["scores"][f"{split}eer"]
    change = bundle["int8"]["val"]["eer_change"]["value"]
    assert scores["eer"] - scores["fp32_eer"] == pytest.approx(change)
    assert bundle["latency"]["milliseconds"] == 2.0 and bundle["latency"]["precision"] == "int8"
    assert lost_by_integers(scores) >= change - 1e-9
    assert sorted(path.name for path in folder.glob("*.npz")) == [
        f"{kind}_{split}.npz" for kind in ("fp32", "outcome") for split in ("test", "val")
    ]


def test_the_teacher_is_scored_as_it_is_and_references_of_each_precision_are_kept_apart(study: Study) -> None:
    teacher = dataclasses.replace(FINAL, role="teacher", start="teacher")
    assert task_from_json(final_task(study, teacher)).precision == "fp32"
    exact = create_study(dataclasses.replace(study.config, name="two", precision=None))
    assert study_target(exact.config).precision == "fp32"
    here, there = (context_of(str(one.folder.resolve())) for one in (study, exact))
    paper = dataclasses.replace(FINAL, role="paper's student")
    assert _place(here, teacher) == _place(there, teacher) and _place(here, paper) != _place(there, paper)


def test_a_front_says_which_members_integers_cost_too_much() -> None:
    member = {"name": "a", "scores": {"keyword_error": 9.0, "fp32_keyword_error": 8.4, "eer": 5.0, "fp32_eer": 5.0}}
    scored, lost = _integers({"target": {"precision": "int8"}, "members": [member]})
    assert scored == "Scores and latencies are of int8; the teacher is scored in fp32."
    assert lost.endswith("--accept-loss: int8 costs more than 0.5 points on validation speakers: a.")
    assert not list(_integers({"target": {"precision": "fp32"}, "members": [member]}))
