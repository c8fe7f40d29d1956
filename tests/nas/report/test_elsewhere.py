"""What an export says of devices that are not its target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.export import REFERENCE_GEOMETRY
from deploy.target import known_targets
from nas.device.known import DEVICE_FILE
from nas.report.elsewhere import elsewhere
from nas.study.config import StudyConfig
from nas.study.folder import create_study
from search_spaces.architecture import Architecture, Geometry
from trainers.networks.student import Student, save_student
from trainers.teacher.teacher import Teacher

SPEED = {"gflops": 50.0, "bandwidth": 10.0}


def saved(folder: Path, geometry: Geometry, width: int = 48) -> Path:
    torch.manual_seed(0)
    small = Architecture(front_end="mel", front_width=32, frame_stride=2, width=width, heads=(1,), ffn_dims=(96,), kept_layers=(1,))
    save_student(Student(small, geometry, ("yes", "no")), folder)
    return folder


def test_every_known_device_is_told_of(
    known_profile: Callable[..., Any], tiny_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small, large = (saved(tmp_path / str(width), tiny_teacher.geometry, width) for width in (48, 192))
    assert elsewhere("one", small) == []  # no such study here
    study = create_study(StudyConfig(name="one"))
    assert elsewhere("one", small) == []  # begun anew, and not prepared yet
    study.write_json(DEVICE_FILE, {"profile": known_profile(tiny_teacher).to_dict(), "speed": SPEED})
    found = {other["target"]: other for other in elsewhere("one", small)}
    assert {*found, "host"} == {*known_targets()}
    assert all(other["low"] < other["milliseconds"] < other["high"] for other in found.values())
    assert found["raspberry-pi-3"]["milliseconds"] > found["raspberry-pi-5"]["milliseconds"]
    slower = {other["target"]: other["milliseconds"] for other in elsewhere("one", large)}
    assert all(slower[name] > other["milliseconds"] for name, other in found.items())
    assert elsewhere("one", saved(tmp_path / "other", REFERENCE_GEOMETRY)) == []  # of another teacher
