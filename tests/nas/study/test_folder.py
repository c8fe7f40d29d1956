"""The study folder: configuration, record of candidates, locking, errors."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study, open_study
from search_spaces.architecture import Architecture

ARCHITECTURE = Architecture(
    front_end="mel", front_width=32, frame_stride=2, width=64, heads=(1, 2), ffn_dims=(64, 128), kept_layers=(1, 3)
)


def test_configuration_round_trips_through_toml(tmp_path: Path) -> None:
    config = StudyConfig(name="a", data=('/with "quotes"\\and\\é🎙.parquet', "b.parquet"), max_params=2e6, candidates=3, gpus=0.25)
    config.write(tmp_path / "study.toml")
    assert StudyConfig.read(tmp_path / "study.toml") == config


def test_trial_lists_are_read_as_they_were_written_before_there_were_several(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "a"\ntrials = "/data/trials.parquet"\n')
    assert StudyConfig.read(path).trials == ("/data/trials.parquet",)
    path.write_text('name = "a"\n')
    assert StudyConfig.read(path).trials == ()
    two = StudyConfig(name="a", trials=("a.parquet", "b.parquet"))
    two.write(path)
    assert StudyConfig.read(path) == two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not TOML"),
        ('name = "a"\nbudgit = "1"', "budgit"),
        ('name = "a/b"', "not allowed"),
        ('name = "a"\nformat = 2', "reads 1"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        StudyConfig.read(tmp_path / "study.toml")


@pytest.mark.parametrize(
    "fields",
    [
        {"target_windows": 0},
        {"share": 0},
        {"share": 1.5},
        {"workers": 0},
        {"finalists": 0},
        {"candidates": 0},
        {"targets": "later"},
        {"name": "../a"},
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        StudyConfig(**{"name": "a", **fields})  # type: ignore[arg-type]


def test_the_last_state_of_a_candidate_counts_and_a_torn_line_does_not(tmp_path: Path) -> None:
    study = create_study(StudyConfig(name="a"), tmp_path)
    first = Candidate(number=0, architecture=ARCHITECTURE, state="running")
    done = replace(first, state="complete", scores={"eer": 12.5}, seconds=3.5, weights="students/candidate-0")
    study.record(first)
    study.record(Candidate(number=1, architecture=ARCHITECTURE, state="running"))
    study.record(done)
    with (study.folder / "candidates.jsonl").open("a") as file:
        file.write('{"number": 1, "state": "compl')
    assert [(c.number, c.state) for c in open_study("a", tmp_path).candidates()] == [(0, "complete"), (1, "running")]
    assert study.candidates()[0] == done


def test_a_study_is_made_once_and_found_again(tmp_path: Path) -> None:
    create_study(StudyConfig(name="a"), tmp_path)
    with pytest.raises(ValueError, match="--resume a"):
        create_study(StudyConfig(name="a"), tmp_path)
    with pytest.raises(ValueError, match="known: a"):
        open_study("b", tmp_path)
    with pytest.raises(ValueError, match="no study"):
        open_study(None, tmp_path / "empty")
    assert open_study(None, tmp_path).config.name == "a"


def test_a_raised_budget_is_written_down(tmp_path: Path) -> None:
    study = create_study(StudyConfig(name="a", budget="1cpu-hours"), tmp_path)
    assert study.told(budget="2cpu-hours", share=0.5).config == open_study("a", tmp_path).config
    assert (open_study("a", tmp_path).config.budget, open_study("a", tmp_path).config.share) == ("2cpu-hours", 0.5)
    for budget, reason in (("much", "does not parse"), ("2gpu-hours", "spends CPU time")):
        with pytest.raises(ValueError, match=reason):
            study.told(budget=budget)
    assert open_study("a", tmp_path).config.budget == "2cpu-hours"


def test_a_configuration_that_the_disk_has_no_room_for_leaves_the_old_one(tmp_path: Path) -> None:
    create_study(StudyConfig(name="a"), tmp_path)
    code = (
        "import resource, sys; from pathlib import Path; from nas.study.folder import open_study; "
        "study = open_study('a', Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); study.told(workers=3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode != 0 and "too large" in done.stderr
    assert open_study("a", tmp_path).config.workers is None


def test_a_study_begins_whole_or_not_at_all(tmp_path: Path) -> None:
    def stopped(study: Study) -> None:
        (study.folder / "begun").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_study(StudyConfig(name="a"), tmp_path, fill=stopped)
    assert not list(tmp_path.iterdir())


def test_new_weights_take_the_place_of_the_old_ones_at_once(tmp_path: Path) -> None:
    study = create_study(StudyConfig(name="a"), tmp_path)
    with study.new_weights("tutor") as folder:
        (folder / "old").touch()
    with suppress(KeyboardInterrupt), study.new_weights("tutor") as folder:
        (folder / "torn").touch()
        raise KeyboardInterrupt
    assert [path.name for path in study.weights_folder("tutor").iterdir()] == ["old"]
    with study.new_weights("tutor") as folder:
        (folder / "new").touch()
    assert [path.name for path in study.weights_folder("tutor").iterdir()] == ["new"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    study = create_study(StudyConfig(name="demo", seed=3), tmp_path)
    file = study.folder / "study.toml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert StudyConfig.read(file).seed == 3
