"""srlnas from Python: the calls of the command line, with its errors."""

from pathlib import Path

import pytest

from nas.api import StudyConfig, export, front, open_study, search
from nas.study.candidates import Candidate
from nas.study.folder import create_study
from search_spaces.architecture import Architecture

SMALL = Architecture(front_end="mel", front_width=32, frame_stride=2, width=64, heads=(1,), ffn_dims=(64,), kept_layers=(1,))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_a_user_can_mend_is_said_before_anything_is_made(tmp_path: Path) -> None:
    for config, message in (
        (StudyConfig(name="a", budget="much"), "does not parse"),
        (StudyConfig(name="a", data=("none.parquet",)), "there is no file .*none.parquet"),
        (StudyConfig(name="a", space="none"), "there is no space"),
    ):
        with pytest.raises(ValueError, match=message):
            search(config)
    with pytest.raises(ValueError, match="there is no study 'a'"):
        search("a")
    assert not (tmp_path / "studies").exists()


def test_a_study_in_progress_has_a_front() -> None:
    study = create_study(StudyConfig(name="a"))
    scores = {"keyword_error": 1.0, "eer": 2.0, "latency_ms": 3.0, "params": 10.0, "memory_bytes": 1e6}
    scores |= {f"{name}_{end}": 3.0 for name in ("latency", "memory") for end in ("low", "high")}
    study.record(Candidate(number=0, architecture=SMALL, state="complete", scores=scores))
    study.write_json("prepared.json", {"synthetic": True, "teacher_params": 1000, "target": {"name": "host", "threads": 1}})
    found = front(open_study("a"))
    assert found["stage"] == "search" and len(found["members"]) == 1


def test_an_export_of_nothing_is_refused(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/srlnas.db"
    with pytest.raises(ValueError, match="each rate is a number above zero"):
        export("models:/a@knee", false_alarms=(0.0,), tracking_uri=uri)
    with pytest.raises(ValueError, match="there is no MLflow database"):
        export("models:/a@knee", tracking_uri=uri)


def test_paths_hold_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    config = StudyConfig(name="a", data=("a.parquet",), target="board.toml", cache="cache").absolute()
    assert config.data == (str(tmp_path / "a.parquet"),) and config.target == str(tmp_path / "board.toml")
    assert config.cache == str(tmp_path / "cache") and config.teacher == "mini" and config.noise is None
