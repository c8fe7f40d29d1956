"""What `srlnas studies` tells of studies, and what it takes away."""

from dataclasses import replace
from pathlib import Path

import pytest

from nas.report.front import FRONT_FILE
from nas.report.overview import ENDED, overview, prune, row_of, state_of
from nas.stages.finals import Final, record_final
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.study.lease import Lease, write_lease
from search_spaces.architecture import Architecture

SMALL = Architecture(front_end="mel", front_width=32, frame_stride=2, width=64, heads=(1,), ffn_dims=(64,), kept_layers=(1,))
FINAL = Final(
    name="final-2",
    role="finalist",
    architecture=SMALL,
    start="kept layers",
    distill_steps=0,
    finetune_steps=2,
    source="candidate-2",
)
SCORES = [(20.0, 10.0, 1.0), (10.0, 9.0, 2.0), (21.0, 11.0, 1.5), (30.0, 30.0, 3.0)]  # the first two beat the others


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Four candidates with weights, the third of which was tested as it was trained."""
    made = create_study(StudyConfig(name="a", budget="10cpu-minutes"), tmp_path)
    for number, (error, eer, latency) in enumerate(SCORES):
        scores = {"keyword_error": error, "eer": eer, "latency_ms": latency}
        made.record(Candidate(number=number, architecture=SMALL, state="complete", scores=scores))
        folder = made.weights_folder(f"candidate-{number}")
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"1" * 100_000)
    record_final(made, FINAL)
    made.ledger.charge("candidates", 120.0)
    return made


def test_a_study_is_to_be_continued_until_its_front_is_final(study: Study) -> None:
    row = row_of(study)
    assert (row.name, row.command, row.state, row.front) == ("a", "search", "to continue", "2 of 4 candidates trained")
    assert (row.spent, row.left) == ("2 min CPU", "8 min") and row.disk > 400_000
    study.write_json(FRONT_FILE, {"stage": "final", "members": [{}, {}]})
    assert row_of(study).state == ENDED and row_of(study).front == "2 members"
    (study.folder / "tuned").mkdir()  # it goes on with a larger budget, and was interrupted
    assert row_of(study).state == "to continue"
    with pytest.raises(ValueError, match="has not ended"):
        list(prune(study))


def test_a_driver_here_or_elsewhere_is_named(study: Study) -> None:
    write_lease(study.folder, Lease(host="elsewhere", boot="another", pid=7, token="theirs"))
    assert state_of(study) == "running, process 7 on elsewhere"
    (study.folder / "driver.json").unlink()
    with study.locked():
        assert state_of(study).startswith("running, process ")


def test_pruning_leaves_what_a_larger_budget_may_need(study: Study) -> None:
    """Candidates that nothing beats, and those that finals are copies of."""
    with pytest.raises(ValueError, match="has not ended"):
        list(prune(study))
    study.write_json(FRONT_FILE, {"stage": "final", "members": []})
    (study.folder / "begun").mkdir()
    taken = dict(prune(study))
    assert list(taken) == ["weights of beaten candidates", "signs of life"] and taken["weights of beaten candidates"] >= 100_000
    assert sorted(folder.name for folder in (study.folder / "students").iterdir()) == ["candidate-0", "candidate-1", "candidate-2"]
    assert not list(prune(study))


def test_pruning_keeps_what_only_a_final_that_came_out_worse_had_beaten(study: Study) -> None:
    """It could be a member yet, with a larger budget."""
    worse = {"keyword_error": 40.0, "eer": 40.0, "latency_ms": 4.0}
    for number in (0, 1, 2):
        record_final(study, replace(FINAL, name=f"final-{number}", candidate=number, source=f"candidate-{number}", scores=worse))
    study.write_json(FRONT_FILE, {"stage": "final", "members": []})
    assert list(prune(study)) == []


def test_one_that_cannot_be_read_hides_no_other(study: Study) -> None:
    broken = create_study(replace(study.config, name="broken"), study.folder.parent)
    (broken.folder / "study.toml").write_text("name = ")
    states = {row.name: row.state for row in overview(study.folder.parent)}
    assert states["a"] == "to continue" and states["broken"].startswith("unreadable: ") and "TOML" in states["broken"]


def test_a_study_without_candidates_has_none_that_are_beaten(study: Study) -> None:
    """As of `srlnas tune`."""
    (study.folder / "candidates.jsonl").unlink()
    study.write_json(FRONT_FILE, {"stage": "final", "members": []})
    (study.folder / "begun").mkdir()
    assert [what for what, _ in prune(study)] == ["signs of life"]
