"""The report says what the study folder holds, no more: marks, notes, table and picture."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.report.files import write_report
from nas.report.front import build_front
from nas.report.table import caption, markdown, rich_corpora, rows
from nas.stages.finals import FINALS_FILE, Final
from nas.study.budget import append_line
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.tracking.mirror import _table
from nas.worker.evaluate import read_outcome, write_outcome
from search_spaces.architecture import Architecture
from trainers.scoring.outcome import Outcome
from trainers.scoring.scores import quality_scores

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


def of_two(error: float, seed: int, worse: float) -> Outcome:
    """As `outcome`, of four speakers in the corpus `words`, and of four in `voices`, which has no keywords and where a student
    separates speakers as if it erred in `worse` more."""
    rng = np.random.default_rng(seed)
    speakers = np.concatenate([rng.integers(0, 4, 200), rng.integers(4, 8, 200)])
    same, hard = rng.random(400) < 0.5, speakers >= 4
    return Outcome(
        correct=rng.random(200) >= error,
        clip_speakers=speakers[:200],
        trial_scores=same * (1 - error - worse * hard) + 0.5 * rng.standard_normal(400),
        same=same,
        enrol_speakers=speakers,
        test_speakers=np.where(same, speakers, speakers // 4 * 4 + (speakers + 1) % 4),
        speaker_corpora=np.repeat([0, 1], 4),
        corpora=np.array(["words", "voices"]),
    )


def final(
    study: Study, name: str, role: str, error: float, latency: float, params: int, worse: float | None = None, **fields: Any
) -> None:
    scores = {
        "params": float(params),
        "memory_bytes": 80e6,
        **dict.fromkeys(("latency_ms", "latency_low", "latency_high"), latency),
    }
    scores |= {f"predicted_latency_{end}": factor * latency for end, factor in (("ms", 1.1), ("low", 1.02), ("high", 1.2))}
    for split, prefix in (("val", ""), ("test", "test_")):
        seed = len(name) + len(prefix)
        result = outcome(error, seed) if worse is None else of_two(error, seed, worse)
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
    append_line(study.folder / FINALS_FILE, replace(record, **fields).to_json())


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
    said = "Better than the paper's student in keyword error, EER and latency at once (test)"
    front = build_front(study)
    [note] = [note for note in front["notes"] if note.startswith(said)]
    for member in front["members"]:
        against = member["against"]["paper's student"]
        is_clear = against["accuracy"]["low"] > 0 and against["eer"]["high"] < 0
        assert member["name"] in note.split("at once")[1] and is_clear == (member["name"] in note.split("intervals: ")[1])
    final(study, "paper-student", "paper's student", 0.01, 0.5, 500)
    notes = build_front(study)["notes"]
    assert f"{said}: none." in notes
    assert any(note.startswith("The paper's student is better in") and note.endswith(": final-0, final-1.") for note in notes)


def test_what_learned_from_fewer_updates_is_not_compared(study: Study) -> None:
    finished(study)
    final(study, "bc-resnet", "BC-ResNet", 0.03, 2.0, 320)
    for member, latency, params in (("final-0", 1.0, 100), ("final-1", 3.0, 250)):
        final(study, member, "finalist", 0.2 if member == "final-0" else 0.06, latency, params, finetune_steps=4)
    found = build_front(study)["notes"]
    said = "Trained with fewer updates than some members, and not compared with those: "
    assert any(note.startswith(said) and "BC-ResNet (3 of 9)" in note and "teacher" not in note for note in found)
    assert any("The teacher was tuned with fewer updates than some members (3 of 9)" in note for note in found)
    assert not any("paper's student in keyword error" in note or "within 3 points" in note for note in found)
    assert not any("did not pay" in note for note in found)
    # a member that learned from more, and is worse, is worse
    assert any(note.endswith("at once (test) than: final-1.") for note in found)


def test_members_as_they_were_trained_are_named(study: Study) -> None:
    finished(study)
    final(study, "member-5", "finalist", 0.02, 5.0, 400, candidate=5, source="candidate-5")
    final(study, "final-1", "finalist", 0.06, 3.0, 250, candidate=1, read_before=True)
    front = build_front(study)
    assert [member["name"] for member in front["members"] if member["as_trained"]] == ["member-5"]
    assert "Candidates as they were trained, not at full length: member-5." in front["notes"]
    assert any(note.startswith("The test split was read before") and note.endswith(": final-1.") for note in front["notes"])


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


@pytest.fixture
def two(study: Study) -> Study:
    """A study that has ended, of two corpora; on one of them final-1 is much worse."""
    final(study, "teacher", "teacher", 0.05, 10.0, 1000, worse=0)
    final(study, "knee-from-scratch", "knee from scratch", 0.6, 1.0, 100, worse=0)
    final(study, "final-0", "finalist", 0.1, 1.0, 100, worse=0)
    final(study, "final-1", "finalist", 0.06, 0.9, 250, worse=1.5)
    return study


def test_scores_stand_by_corpus_where_there_are_several(two: Study) -> None:
    front = build_front(two)
    member = next(m for m in front["members"] if m["name"] == "final-1")
    scores, own = member["scores"], member["by_corpus"]
    figures = {"voices": {"eer", "change"}, "words": {"accuracy", "eer", "change"}}
    assert {corpus: set(found) for corpus, found in own.items()} == figures
    assert scores["test_eer"] == pytest.approx((own["voices"]["eer"]["value"] + own["words"]["eer"]["value"]) / 2)
    rate = own["voices"]["eer"]
    assert (scores["test_eer.voices"], scores["test_eer_low.voices"]) == (rate["value"], rate["low"])
    assert scores["test_keyword_error"] == scores["test_keyword_error.words"] and "test_keyword_error.voices" not in scores
    assert own["words"]["accuracy"]["low"] == pytest.approx(100 - scores["test_keyword_error_high.words"])
    changes = [own[corpus]["change"]["eer"]["value"] for corpus in own]
    assert member["change"]["eer"]["value"] == pytest.approx(sum(changes) / 2)
    assert set(own["voices"]["change"]) == {"eer"} and set(own["voices"]["change"]["eer"]) == {"value", "low", "high"}
    assert "NaN" not in json.dumps(front)
    assert all("change" not in found for found in front["references"][0]["by_corpus"].values())


def test_a_table_of_corpora_stands_below_the_front(two: Study) -> None:
    front = build_front(two)
    text = markdown(front)
    assert "| name | voices | words |" in text and "means over 2 corpora" in caption(front)
    eer = front["references"][0]["by_corpus"]["voices"]["eer"]["value"]
    assert f"| teacher | - / {eer:.1f} |" in text
    assert [len(table.columns) for table in rich_corpora(front)] == [3]
    json.loads(json.dumps(_table(front["members"])))


def test_a_member_that_is_good_on_one_corpus_alone_is_named(two: Study) -> None:
    note = next(note for note in build_front(two)["notes"] if note.startswith("Lose more against the teacher on one corpus"))
    assert "by at least 5 points (test): final-1 (EER on voices: " in note and "final-0" not in note
    shutil.rmtree(two.weights_folder("teacher"))
    lines = (two.folder / FINALS_FILE).read_text().splitlines()
    (two.folder / FINALS_FILE).write_text("\n".join(lines[1:]) + "\n")
    note = next(note for note in build_front(two)["notes"] if note.startswith("Worse on one corpus than in their own mean"))
    assert "by at least 15 points (test): final-1 (EER on voices: " in note


def test_one_corpus_has_no_table_of_corpora(study: Study) -> None:
    finished(study)
    front = build_front(study)
    assert "by_corpus" not in json.dumps(front) and rich_corpora(front) == [] and "corpora" not in markdown(front)


def test_an_outcome_is_plain_arrays_and_one_without_corpora_is_read(tmp_path: Path) -> None:
    kept = of_two(0.2, 0, 0.0)
    write_outcome(kept, tmp_path / "new.npz")
    assert quality_scores(read_outcome(tmp_path / "new.npz")) == quality_scores(kept)
    before = {name: value for name, value in vars(outcome(0.2, 0)).items() if "corpora" not in name}
    np.savez(tmp_path / "old.npz", **before)
    assert quality_scores(read_outcome(tmp_path / "old.npz")) == quality_scores(outcome(0.2, 0))
    with np.load(tmp_path / "new.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*before, "speaker_corpora", "corpora"}
