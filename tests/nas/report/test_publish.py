"""What MLflow gets of a search whose trainings at full length failed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.report.front import build_front
from nas.report.publish import report
from nas.search import check_any_final
from nas.stages.finals import Final, record_final
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.tracking.mirror import open_tracking
from search_spaces.architecture import Architecture

SMALL = Architecture(front_end="mel", front_width=8, frame_stride=1, width=16, heads=(1,), ffn_dims=(16,), kept_layers=(1,))
SCORES = {"params": 500.0, "keyword_error": 9.0, "eer": 12.0, "memory_bytes": 8e7}
SCORES |= {f"{name}{end}": 10.0 for name in ("keyword_error", "eer") for end in ("_low", "_high")}
SCORES |= dict.fromkeys(("latency_ms", "latency_low", "latency_high"), 2.0)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    made = create_study(StudyConfig(name="a"))
    made.write_json("prepared.json", {"synthetic": True, "teacher_params": 1000, "target": {"name": "host", "threads": 1}})
    made.record(Candidate(number=0, architecture=SMALL, state="complete", scores=SCORES, rung=1, weights="students/candidate-0"))
    return made


def final(name: str, role: Any, **fields: Any) -> Final:
    return Final(name=name, role=role, architecture=SMALL, start="random", distill_steps=1, finetune_steps=1, **fields)


def test_a_search_whose_finals_all_failed_is_logged_and_says_why(study: Study) -> None:
    for name, role in (("teacher", "teacher"), ("final-0", "finalist")):
        record_final(study, final(name, role, error="the worker died 4 times, at last: no memory"))
    tracking = open_tracking("sqlite:///srlnas.db", "a")
    context: Any = SimpleNamespace(study=study)
    front = report(context, tracking)
    assert front["stage"] == "search" and [member["name"] for member in front["members"]] == ["candidate-0"]
    runs = {run.info.run_name: run.info.status for run in tracking.client.search_runs([tracking.experiment_id])}
    assert runs["final-0"] == "FAILED" and runs["candidate 0"] == "FINISHED"
    assert not tracking.client.search_registered_models()
    with pytest.raises(ValueError, match=r"no finalist of 1 was trained; final-0: the worker died 4 times.*search --resume a"):
        check_any_final(study)


def test_a_scratch_reference_that_failed_leaves_the_final_front(study: Study) -> None:
    scores = {**SCORES, **{f"test_{name}": SCORES[name] for name in ("keyword_error", "eer")}}
    record_final(study, trained := final("final-0", "finalist", scores=scores, candidate=0))
    assert build_front(study)["stage"] == "search"  # the reference is still to come
    record_final(study, replace(trained, name="final-0-from-scratch", role="knee from scratch", scores={}, error="NaN"))
    front = build_front(study)
    assert front["stage"] == "final" and [member["name"] for member in front["members"]] == ["final-0"]
    assert not front["references"]
