"""What a study knows of its target: the profile that `srlnas profile` made, one measured now, or one scaled by a data sheet."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from deploy.measure import Tell, device_facts
from deploy.target import DATA_SHEET, Target, load_target
from nas.device.calibrate import calibrate
from nas.device.latency import data_sheet_scale
from nas.device.profile import CARRIED, HERE, PROFILES, Device, Profile, device_of, profile_path, read_profile
from nas.study.config import StudyConfig
from nas.study.folder import Study
from search_spaces.architecture import Geometry, Heads
from trainers.teacher.teacher import Teacher

DEVICE_FILE = "device.json"  # in a study's folder: the profile that it predicts with
THIS_MACHINE = "host"
SPEED_SIZE, SPEED_BYTES, SPEED_RUNS = 512, 64_000_000, 10


def study_target(config: StudyConfig) -> Target:
    """Raises ValueError as `load_target`."""
    target = load_target(config.target)
    return replace(target, precision=config.precision or target.precision)


def known_profile(target: Target, geometry: Geometry, heads: Heads, profiles: Path = PROFILES) -> Profile | None:
    """What `srlnas profile` found of the target, None where it found nothing.

    Raises ValueError when it was found for other students, or this machine is no longer the one that was measured.
    """
    path = profile_path(target.name, profiles)
    if not path.is_file():
        return None
    profile, again = read_profile(path), f"; measure it again with `srlnas profile --target {target.name}`, or delete {path}"
    if (profile.threads, profile.window) != (target.threads, target.window):
        raise ValueError(
            f"{target.name} was profiled with {profile.threads} threads and windows of {profile.window} samples{again}"
        )
    if (profile.geometry, profile.heads) != (geometry, heads):
        raise ValueError(f"{target.name} was profiled with students of another teacher or recipe{again} (--teacher, --recipe)")
    if not is_of_this_machine(profile):
        known = f"{profile.device['cpu']} with onnxruntime {profile.device['onnxruntime']}"
        raise ValueError(f"{target.name} was profiled on {known}, which this machine no longer is{again}")
    device_of(profile, target.precision)
    return profile


def is_of_this_machine(profile: Profile) -> bool:
    """True too where the profile is of another device, which this machine cannot look at."""
    now = device_facts()
    return profile.where != HERE or all(profile.device[fact] == now[fact] for fact in ("cpu", "onnxruntime"))


def prepare_device(study: Study, teacher: Teacher, tell: Tell | None = None, seconds: float | None = None) -> None:
    """Writes what the study predicts with: the target's profile; where there is none, one of this machine, measured now in about so
    many seconds."""
    target, heads = study_target(study.config), study.config.recipe.heads
    profile, speed = known_profile(target, teacher.geometry, heads), None
    if profile is None and target.is_here:
        profile = calibrate(target, teacher, heads, tell=tell, seconds=seconds)
    elif profile is None:
        here = replace(load_target(THIS_MACHINE), threads=target.threads, window=target.window, precision=target.precision)
        profile = _profile_of_this_machine(here, teacher, heads) or calibrate(here, teacher, heads, tell=tell, seconds=seconds)
        speed = machine_speed()
    study.write_json(DEVICE_FILE, {"profile": profile.to_dict(), "speed": speed})


def _profile_of_this_machine(here: Target, teacher: Teacher, heads: Heads) -> Profile | None:
    """Of which a data sheet is scaled; None where what is known does not fit."""
    try:
        profile = known_profile(here, teacher.geometry, heads)
    except ValueError:
        return None
    return profile if profile is not None and profile.where == HERE else None


def is_prepared(study: Study) -> bool:
    return (study.folder / DEVICE_FILE).is_file()


def study_profile(study: Study) -> Profile:
    return Profile.from_dict(study.read_json(DEVICE_FILE)["profile"])


def reachable(profile: Profile, target: Target) -> bool:
    """Whether trained students can be measured on the target: its profile is its own, and it is here or answers over SSH."""
    return profile.target == target.name and profile.where != CARRIED


def study_device(study: Study, target: Target) -> Device:
    """The study must be prepared. Data-sheet figures where its profile is of this machine and the target is another."""
    speed = study.read_json(DEVICE_FILE)["speed"]
    scale = data_sheet_scale(speed, {name: getattr(target, name) for name in DATA_SHEET}) if speed else None
    return device_of(study_profile(study), target.precision, scale)


def machine_speed() -> dict[str, float]:
    """This machine's `gflops` in large fp32 products and `bandwidth` in GB/s of a copy (both ways), of one core, at its best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square, block = torch.rand(SPEED_SIZE, SPEED_SIZE), torch.zeros(SPEED_BYTES // 4)
        product = min(_seconds(lambda: torch.mm(square, square)) for _ in range(SPEED_RUNS))
        copy = min(_seconds(block.clone) for _ in range(SPEED_RUNS))
    finally:
        torch.set_num_threads(threads)
    return {"gflops": 2e-9 * SPEED_SIZE**3 / product, "bandwidth": 2e-9 * SPEED_BYTES / copy}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
