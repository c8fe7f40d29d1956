"""What a student will take on every device that srlnas knows, not on its target alone."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.target import DATA_SHEET, Target, known_targets, load_target
from nas.device.known import DEVICE_FILE, is_of_this_machine, is_prepared, machine_speed, study_profile, study_target
from nas.device.latency import data_sheet_scale
from nas.device.profile import HERE, Profile, device_of
from nas.study.folder import open_study
from search_spaces.architecture import Architecture
from trainers.networks.student import load_student


def elsewhere(study_name: str, student: Path) -> list[dict[str, Any]]:
    """By its data sheet, of each other target: milliseconds a window with their interval. Scaled from this machine's profile; none
    where the study is not in this folder or has another machine's."""
    with suppress(ValueError):
        study, found = open_study(study_name, commands=("search", "tune")), load_student(student)
        if not is_prepared(study):
            return []
        profile, target = study_profile(study), study_target(study.config)
        speed, architecture = study.read_json(DEVICE_FILE)["speed"], found.architecture
        is_known = profile.where == HERE and (speed or is_of_this_machine(profile)) and profile.geometry == found.encoder.geometry
        if is_known and isinstance(architecture, Architecture):
            others = [load_target(name) for name in known_targets() if name != target.name]
            speed = speed or machine_speed()
            return [_on(other, target.precision, architecture, profile, speed) for other in others if _is_alike(other, profile)]
    return []


def _is_alike(target: Target, profile: Profile) -> bool:
    return not target.is_here and (target.threads, target.window) == (profile.threads, profile.window)


def _on(target: Target, precision: str, architecture: Architecture, profile: Profile, speed: dict[str, float]) -> dict[str, Any]:
    scale = data_sheet_scale(speed, {name: getattr(target, name) for name in DATA_SHEET})
    found = device_of(profile, precision, scale).latency(architecture, profile.cost(architecture))
    assert found is not None
    times = {"milliseconds": found.value, "low": found.low, "high": found.high}
    return {"target": target.name, **times, "threads": target.threads, "precision": precision}
