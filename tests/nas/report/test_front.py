"""The report says what the study folder holds, no more: marks, notes, table and picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.report.front import build_front
from nas.report.table import caption, markdown, rows, write_report
from nas.stages.finals import FINALS_FILE, Final
from nas.study.budget import append_line
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.worker.evaluate import quality_scores, write_outcome
from search_spaces.architecture import Architecture
from trainers.learning.metrics import Outcome

SMALL = Architecture(front_end="mel", front_width=8, frame_stride=1, width=16, heads=(1,), ffn_dims=(16,), kept_layers=(1,))


def outcome(error: float, seed: int) -> Outcome:
    """A student that errs in a share of the clips and separates speakers the worse the more it errs."""
    rng = np.random.default_rng(seed)
    speakers = rng.integers(0, 8, 400)
    same = rng.random(400) < 0.5
    return Outcome(
        correct=rng.random(400) >= error,
        clip_speakers=speakers,
        trial_scores=same * (1 - error) + 0.5 * rng.standard_normal(400),
        same=same,
        enrol_speakers=speakers,
        test_speakers=np.where(same, speakers, (speakers + 1) % 8),
    )


def final(study: Study, name: str, role: str, error: float, latency: float, params: int) -> None:
    scores = {
        "params": float(params),
        "memory_bytes": 80e6,
        **dict.fromkeys(("latency_ms", "latency_low", "latency_high"), latency),
    }
    scores |= {f"predicted_latency_{end}": factor * latency for end, factor in (("ms", 1.1), ("low", 1.02), ("high", 1.2))}
    for split, prefix in (("val", ""), ("test", "test_")):
        result = outcome(error, seed=len(name) + len(prefix))
        scores |= quality_scores(result, prefix)
        folder = study.weights_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_outcome(result, folder / f"outcome_{split}.npz")
    record = Final(
        name=name,
        role=role,  # type: ignore[arg-type]
        architecture=SMALL,
        start="random",
        distill_steps=1,
        finetune_steps=1,
        scores=scores,
        latency_kind="measured",
    )
    append_line(study.folder / FINALS_FILE, record.to_json())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = create_study(StudyConfig(name="a"), tmp_path)
    made.write_json(
        "prepared.json",
        {"synthetic": True, "teacher_params": 1000, "target": {"name": "host", "threads": 1}, "latency_kind": "calibrated"},
    )
    return made


def finished(study: Study, paper_error: float = 0.3) -> None:
    final(study, "teacher", "teacher", 0.05, 10.0, 1000)
    final(study, "paper-student", "paper's student", paper_error, 5.0, 500)
    final(study, "knee-from-scratch", "knee from scratch", 0.6, 1.0, 100)
    final(study, "final-0", "finalist", 0.2, 1.0, 100)
    final(study, "final-1", "finalist", 0.06, 3.0, 250)
    final(study, "final-2", "finalist", 0.9, 4.0, 300)  # dominated


def test_members_are_what_nothing_dominates_and_aliases_name_the_ends(study: Study) -> None:
    finished(study)
    front = build_front(study)
    aliases = {member["name"]: member["aliases"] for member in front["members"]}
    assert set(aliases) == {"final-0", "final-1"}
    assert {"fastest", "smallest"} <= set(aliases["final-0"]) and "most-accurate" in aliases["final-1"]
    assert [m["size_ratio"] for m in front["members"]] == [0.1, 0.25]
    assert front["members"][0]["change"]["accuracy"]["value"] == pytest.approx(
        front["references"][0]["scores"]["test_keyword_error"] - front["members"][0]["scores"]["test_keyword_error"]
    )


def test_the_report_says_whether_the_papers_student_is_beaten(study: Study) -> None:
    finished(study)
    assert (
        "Better than the paper's student in keyword error, EER and latency at once (test): final-0, final-1."
        in build_front(study)["notes"]
    )
    final(study, "paper-student", "paper's student", 0.01, 0.5, 500)
    assert any(note.startswith("No member is better than the paper's student") for note in build_front(study)["notes"])


def test_the_report_names_the_members_that_bc_resnet_beats(study: Study) -> None:
    finished(study)
    assert not any("BC-ResNet" in note for note in build_front(study)["notes"])
    final(study, "bc-resnet", "BC-ResNet", 0.03, 2.0, 320)
    assert any(note.endswith("at once (test) than: final-1.") for note in build_front(study)["notes"])


def test_the_report_says_when_distillation_did_not_pay(study: Study) -> None:
    finished(study)
    assert not any("did not pay" in note for note in build_front(study)["notes"])
    for member in ("final-0", "final-1"):
        final(study, member, "finalist", 0.5, 1.0, 100)
    final(study, "knee-from-scratch", "knee from scratch", 0.01, 1.0, 100)
    assert any("did not pay" in note for note in build_front(study)["notes"])


def test_an_unfinished_study_shows_validation_scores_and_says_so(study: Study) -> None:
    scores = {
        **quality_scores(outcome(0.2, 0)),
        "latency_ms": 2.0,
        "latency_low": 1.9,
        "latency_high": 2.1,
        "memory_bytes": 8e7,
        "params": 100.0,
    }
    study.record(Candidate(number=0, architecture=SMALL, state="complete", scores=scores))
    study.record(Candidate(number=1, architecture=replace(SMALL, width=32), state="failed", error="boom"))
    front = build_front(study)
    assert (front["stage"], front["split"], len(front["members"])) == ("search", "val", 1)
    assert any("has not ended" in note for note in front["notes"])
    assert front["candidates"] == {"complete": 1, "failed": 1}


def test_a_study_without_a_candidate_has_an_empty_front(study: Study) -> None:
    front = build_front(study)
    assert front["members"] == [] and front["hypervolume"] is None
    assert write_report(study, front)[0].stat().st_size > 0


def test_every_figure_of_the_table_stands_in_the_files(study: Study) -> None:
    finished(study)
    front = build_front(study, {"final-0": "f" * 32})
    pictures = write_report(study, front)
    assert [picture.name for picture in pictures] == ["front.png", "latency.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert json.loads((study.folder / "front.json").read_text()) == json.loads(json.dumps(front))
    text = (study.folder / "front.md").read_text()
    assert text == markdown(front)
    assert all(cell in text for row in rows(front) for cell in row)
    assert "measured, host, 1 thread" in caption(front) and "synthetic" in text
    assert "1.1 [1.02, 1.2]" in text and any("10.0 % off: 0 of 2 members" in note for note in front["notes"])
    assert front["members"][0]["run_id"] == "f" * 32
