"""Calibration: informative students are chosen, measured on a device (here, over SSH, or by a kit that is carried), and read."""

import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.kit import Kit, hollow, make_kit, run_here, run_over_ssh
from deploy.measure import Tell
from deploy.target import Target
from nas.device.latency import LATENCY_PRIOR, MEMORY_PRIOR, latency_counts, memory_counts
from nas.device.profile import (
    FEWEST,
    HERE,
    KEYWORDS,
    Profile,
    Taken,
    device_of,
    measurement_from_dict,
)
from nas.device.regression import most_informative
from search_spaces.architecture import Baseline, Geometry, Heads, Network
from search_spaces.catalog import CATALOG, find_space
from search_spaces.cost import cost
from search_spaces.space import RandomChooser
from trainers.networks.student import Student
from trainers.teacher.teacher import Teacher

DRAWN = 400  # students from which the informative ones are chosen
STUDENT_SECONDS = 4.0  # that a student takes at least: export, memory, six passes


def calibration_students(teacher: Teacher, heads: Heads, target: Target, number: int) -> dict[str, Network]:
    """The `number` students of all spaces whose measurements tell most, the smallest and the largest first; and BC-ResNet.

    Those that need more than half of the device's memory are left out.
    """
    spaces = [find_space(name, teacher.architecture, teacher.geometry) for name in CATALOG]
    chooser = RandomChooser(random.Random(0))  # the same students for every device of a kind
    drawn = [space.architecture(chooser) for _ in range(-(-DRAWN // len(spaces))) for space in spaces]
    ends = [end for space in spaces for end in (space.smallest(teacher.geometry), space.largest(teacher.geometry))]
    counted = {a: cost(a, teacher.geometry, KEYWORDS, target.window, heads) for a in [*ends, *drawn]}
    room = target.memory_bytes and target.memory_bytes / 2
    fitting = {a: c for a, c in counted.items() if room is None or memory_counts(c) @ np.array(MEMORY_PRIOR.values) <= room}
    if len(fitting) < number:
        raise ValueError(f"{len(fitting)} students fit into {target.name}'s memory; {number} are wanted to calibrate it")
    counts = np.stack([latency_counts(c) for c in fitting.values()])
    expected = counts @ np.array(LATENCY_PRIOR.values)
    chosen = most_informative(counts, expected, number, LATENCY_PRIOR, first=(int(expected.argmin()), int(expected.argmax())))
    networks = list(fitting)
    return {**{f"student-{n}": networks[i] for n, i in enumerate(chosen)}, "bc-resnet": Baseline()}


def calibration_kit(
    folder: Path, teacher: Teacher, heads: Heads, target: Target, number: int, precisions: tuple[str, ...]
) -> tuple[Kit, dict[str, Network]]:
    """A kit of hollow students to calibrate a target with, and its networks by name."""
    if number < FEWEST:
        raise ValueError(f"{number} measurements are too few to calibrate a device: at least {FEWEST}; 10 are good, 20 better")
    networks = calibration_students(teacher, heads, target, number)
    words = tuple(f"word{n}" for n in range(KEYWORDS))
    students = {name: hollow(Student(network, teacher.geometry, words, heads=heads)) for name, network in networks.items()}
    return make_kit(folder, students, target, precisions), networks


def run_kit(
    kit: Kit, where: str, python: str = "python3", tell: Tell | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """Its result, of this machine, which begins no further pass after so many seconds, or of a host. Raises ValueError where a host
    answers with another kit's."""
    result = run_here(kit, tell, seconds) if where == HERE else run_over_ssh(kit, where, python=python, tell=tell)
    if not isinstance(result, dict) or result.get("kit") != kit.digest:
        raise ValueError(f"{where} sent no result of this kit: run it again")
    return result


def read_taken(result: Mapping[str, Any], networks: Mapping[str, Network]) -> tuple[Taken, ...]:
    """The measurements of a kit's result, by the networks that went into it. Raises ValueError when they are not those."""
    taken = []
    try:
        for entry in result["measurements"]:
            name, precision = str(entry["name"]).rsplit("/", 1)
            measurement = measurement_from_dict({key: value for key, value in entry.items() if key != "name"})
            taken.append(Taken(network=networks[name], precision=precision, measurement=measurement))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the result is damaged, or of another kit ({error}): run the kit again") from None
    return tuple(taken)


def calibrate(
    target: Target,
    teacher: Teacher,
    heads: Heads,
    *,
    number: int = 10,
    precisions: tuple[str, ...] = (),
    where: str = HERE,
    python: str = "python3",
    tell: Tell | None = None,
    seconds: float | None = None,
) -> Profile:
    """Measures informative students on this machine, or on a host. precisions: the target's where there are none. seconds: for all
    of it, on this machine: with fewer students and passes then, and wider intervals."""
    started = time.monotonic()
    if seconds is not None:
        number = min(number, max(FEWEST, int(seconds / STUDENT_SECONDS)))
    with tempfile.TemporaryDirectory() as folder:
        kit, networks = calibration_kit(Path(folder) / "kit", teacher, heads, target, number, precisions or (target.precision,))
        left = None if seconds is None else seconds - (time.monotonic() - started)
        result = run_kit(kit, where, python, tell, left)
    return replace(profile_from(result, networks, target, teacher.geometry, heads, where), python=python)


def profile_from(
    result: Mapping[str, Any], networks: Mapping[str, Network], target: Target, geometry: Geometry, heads: Heads, where: str
) -> Profile:
    """What a kit's result tells. Raises ValueError when it is damaged, not of these networks, measured otherwise than the target
    says, or too little to fit a model to."""
    taken = read_taken(result, networks)
    if not isinstance(result.get("device"), Mapping) or {t.network for t in taken} != set(networks.values()):
        raise ValueError("the result is damaged, or not of all students of its kit: run the kit again")
    conditions = (target.threads, target.window)
    if any((t.measurement.threads, t.measurement.window) != conditions for t in taken):
        raise ValueError(f"the result was measured with other threads or another window than {target.name} has now: make a new kit")
    profile = Profile(
        target=target.name,
        threads=target.threads,
        window=target.window,
        geometry=geometry,
        heads=heads,
        device=result["device"],
        taken=taken,
        where=where,
    )
    for precision in profile.precisions:
        device_of(profile, precision)
    return profile


def measure_students(students: Mapping[str, Student], target: Target, profile: Profile) -> dict[str, Taken]:
    """Trained students on the device of a profile, by name, in its milliseconds. Raises ValueError where it does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        kit = make_kit(Path(folder) / "kit", students, target, (target.precision,))
        result = run_kit(kit, profile.where, profile.python)
    taken = read_taken(result, {name: student.architecture for name, student in students.items()})
    again = [replace(t, measurement=replace(t.measurement, reference_ms=profile.reference_ms)) for t in taken]
    return dict(zip(students, again))
