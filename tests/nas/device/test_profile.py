"""Profiles: what is chosen to be measured, what is predicted from it and how it is called, and the commands around them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.kit import FOLDER
from deploy.measure import device_facts
from deploy.target import Target, known_targets, load_target
from nas.device.calibrate import calibration_students, profile_from, read_taken
from nas.device.known import known_profile, machine_speed
from nas.device.latency import LATENCY_COSTS, LEAST_DATA_SHEET_FACTOR, data_sheet_scale, latency_counts, memory_counts
from nas.device.profile import Profile, device_of, profile_path, read_profile, write_profile
from nas.stages.finals import Final
from nas.stages.measure import with_surprises
from search_spaces.architecture import Architecture, Baseline, Geometry, Network
from search_spaces.catalog import CATALOG, find_space
from search_spaces.cost import cost
from search_spaces.space import front_alone
from trainers.teacher.teacher import load_teacher

TEACHER, HOST = load_teacher("mini-hubert"), load_target("host")
MAC_MS = 2e-8  # milliseconds of a multiply-accumulate on the known machine
HEADS = "every state"
BOARDS = [name for name in known_targets() if not load_target(name).is_here]


@pytest.fixture(scope="module")
def profile(known_profile: Callable[..., Profile]) -> Profile:
    return known_profile(TEACHER)


def srlnas(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "nas.cli", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("number", [5, 10, 20])
def test_calibration_students_span_all_spaces(number: int) -> None:
    """The fastest and the slowest by expectation are in; all front ends and both strides; and BC-ResNet."""
    chosen = calibration_students(TEACHER, HEADS, HOST, number)
    assert len(chosen) == len(set(chosen.values())) == number + 1 and chosen["bc-resnet"] == Baseline()
    students = [network for network in chosen.values() if isinstance(network, Architecture)]
    assert {a.front_end for a in students} == {"wave", "mel", "bc"} and {a.frame_stride for a in students} == {1, 2}
    spaces = [find_space(name, TEACHER.architecture, TEACHER.geometry) for name in CATALOG]
    ends = [end for space in spaces for end in (space.smallest(TEACHER.geometry), space.largest(TEACHER.geometry))]

    def expected(architecture: Architecture) -> float:
        counts = latency_counts(cost(architecture, TEACHER.geometry, 12, 16_080, HEADS))
        return float(counts @ np.array(list(LATENCY_COSTS.values())))

    assert max(map(expected, students)) >= max(map(expected, ends)) and min(map(expected, students)) <= min(map(expected, ends))


def test_students_that_a_device_cannot_hold_are_left_out() -> None:
    room = replace(HOST, memory_bytes=150_000_000)
    chosen = calibration_students(TEACHER, HEADS, room, 10)
    largest = max(cost(a, TEACHER.geometry, 12, 16_080).weight_bytes for a in chosen.values() if isinstance(a, Architecture))
    assert largest < 7.5e6
    with pytest.raises(ValueError, match="fit into host's memory"):
        calibration_students(TEACHER, HEADS, replace(HOST, memory_bytes=1000), 10)


def test_a_profile_predicts_its_device(profile: Profile) -> None:
    device = device_of(profile)
    for space in CATALOG:
        largest = find_space(space, TEACHER.architecture, TEACHER.geometry).largest(TEACHER.geometry)
        counted = cost(largest, TEACHER.geometry, 40, 16_080, HEADS)
        latency, memory = device.latency(largest, counted), device.memory(largest, counted)
        assert latency is not None and memory is not None and latency.kind == memory.kind == "calibrated"
        true = MAC_MS * float(latency_counts(counted) @ np.array(list(LATENCY_COSTS.values())))
        assert latency.value == pytest.approx(true, rel=0.01) and latency.low < true < latency.high
        assert memory.value == pytest.approx(60e6 + 2 * counted.weight_bytes + 1.5 * counted.peak_activation_bytes, rel=0.01)
    known = device.latency(Baseline(), counted)
    assert known is not None and (known.value, known.kind) == (pytest.approx(2.0), "measured")
    assert device.latency(Baseline(scale=1), counted) is None


def test_a_device_that_was_profiled_before_there_were_broadcast_blocks_predicts_them_widely(profile: Profile) -> None:
    """Its file is read as before; what nothing measured is as sure as the prior."""
    known = [t for t in profile.taken if not isinstance(t.network, Architecture) or t.network.front_end != "bc"]
    old = device_of(Profile.from_dict(replace(profile, taken=tuple(known)).to_dict()))
    a = front_alone("bc", 256)
    counted = cost(a, TEACHER.geometry, 12, 16_080, HEADS)
    now, then = device_of(profile).latency(a, counted), old.latency(a, counted)
    assert now is not None and then is not None and then.low < now.value < then.high
    assert (then.high - then.low) / then.value > 3 * (now.high - now.low) / now.value


def test_counts_stand_in_the_order_of_their_costs() -> None:
    """Doubling the layers, the window or the front moves the features that are named so."""
    a = Architecture(front_end="wave", front_width=64, frame_stride=1, width=64, heads=(2,), ffn_dims=(128,), kept_layers=(1,))
    plain = dict(zip(LATENCY_COSTS, latency_counts(cost(a, TEACHER.geometry, 12, 16_080))))
    deep = replace(a, heads=(2, 2), ffn_dims=(128, 128), kept_layers=(1, 2))
    twice = dict(zip(LATENCY_COSTS, latency_counts(cost(deep, TEACHER.geometry, 12, 16_080))))
    same = {name for name in plain if plain[name] == twice[name]}
    assert same == {"start", "block", "mel", "convs", "depthwise", "front", "positions"}
    assert all(twice[name] == 2 * plain[name] for name in ("layer", "attention", "softmax", "units"))
    mel = dict(zip(LATENCY_COSTS, latency_counts(cost(replace(a, front_end="mel"), TEACHER.geometry, 12, 16_080))))
    assert plain["mel"] == 0 < mel["mel"] and mel["front"] < plain["front"]
    bc = dict(zip(LATENCY_COSTS, latency_counts(cost(replace(a, front_end="bc"), TEACHER.geometry, 12, 16_080))))
    assert plain["depthwise"] == plain["block"] == 0 < bc["depthwise"] and bc["block"] == 12
    assert len(memory_counts(cost(a, TEACHER.geometry, 12, 16_080))) == 3


@pytest.mark.parametrize("name", BOARDS)
def test_a_data_sheet_predicts_widely_and_says_so(name: str, profile: Profile) -> None:
    """Slower boards are predicted slower; the interval is honest: at least twice either way."""
    board, here = load_target(name), {"gflops": 80.0, "bandwidth": 15.0}
    sheet = {field: getattr(board, field) for field in ("sustained_gflops", "sustained_bandwidth", "peak_gflops", "peak_bandwidth")}
    device = device_of(profile, scale=data_sheet_scale(here, sheet))
    a = find_space("edge", TEACHER.architecture, TEACHER.geometry).largest(TEACHER.geometry)
    counted = cost(a, TEACHER.geometry, 12, 16_080)
    there, host = device.latency(a, counted), device_of(profile).latency(a, counted)
    assert there is not None and host is not None and there.kind == "data sheet"
    slower = 80 / board.sustained_gflops  # type: ignore[operator]
    assert there.value == pytest.approx(slower * host.value, rel=0.25)
    assert there.high / there.value == pytest.approx(there.value / there.low)
    assert there.high / there.value >= LEAST_DATA_SHEET_FACTOR
    reference = device.latency(Baseline(), counted)
    assert reference is not None and reference.kind == "data sheet" and reference.value == pytest.approx(2.0 * slower, rel=0.01)


def test_every_board_has_sources_and_room() -> None:
    assert {"raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano"} <= set(BOARDS)
    assert {"cortex-a53-phone", "cortex-a76-phone"} <= set(BOARDS)
    for board in map(load_target, BOARDS):
        assert board.sources and board.cores and board.memory_bytes and board.max_latency_ms and board.max_memory_bytes
        assert board.max_memory_bytes < board.memory_bytes


def test_this_machine_has_a_speed() -> None:
    speed = machine_speed()
    assert 0.5 < speed["gflops"] < 5000 and 0.1 < speed["bandwidth"] < 2000


def test_a_profile_survives_its_file(tmp_path: Path, profile: Profile) -> None:
    write_profile(profile, tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == profile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no profile"),
        ("[]", "is no profile"),
        ('{"format": 99}', "has format 99"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_profile(tmp_path / "p.json")
    with pytest.raises(ValueError, match="there is no profile"):
        read_profile(tmp_path / "none.json")


def test_too_few_measurements_of_a_precision(profile: Profile) -> None:
    with pytest.raises(ValueError, match="0 measurements in int8; at least 5"):
        device_of(profile, "int8")


@pytest.mark.parametrize("figure", [0, -1.0, float("nan"), float("inf"), "3", None])
def test_figures_from_another_machine_are_numbers(figure: object, profile: Profile) -> None:
    entry = {"name": "a/fp32", **vars(profile.taken[0].measurement), "ratio": figure}
    with pytest.raises(ValueError, match="the result is damaged"):
        read_taken({"measurements": [entry]}, {"a": Baseline()})
    fine = {**entry, "ratio": profile.taken[0].measurement.ratio}
    for wrong in ({**fine, "name": "b/fp32"}, {**fine, "ratio_low": 9e9}):
        with pytest.raises(ValueError, match="the result is damaged"):
            read_taken({"measurements": [wrong]}, {"a": Baseline()})
    assert len(read_taken({"measurements": [fine]}, {"a": Baseline()})) == 1


def networks_of(profile: Profile) -> dict[str, Network]:
    return {f"s{n}": taken.network for n, taken in enumerate(profile.taken)}


def result_of(profile: Profile, **changes: object) -> dict[str, Any]:
    """As a device would send it."""
    entries = [{"name": f"s{n}/fp32", **vars(taken.measurement)} for n, taken in enumerate(profile.taken)]
    return {"device": dict(profile.device), "measurements": entries, **changes}


def test_disturbed_measurements_are_not_used_silently(profile: Profile) -> None:
    assert profile.disturbances == ""
    result = result_of(profile)
    for entry, mark in zip(result["measurements"], ("drift", "throttled")):
        entry["marks"] = [mark]
    disturbed = profile_from(result, networks_of(profile), HOST, TEACHER.geometry, HEADS, "here").disturbances
    assert disturbed.startswith("2 of 11 measurements of host were disturbed (drift, throttled)")


def test_a_result_is_checked_before_it_becomes_a_profile(known_profile: Callable[..., Profile], profile: Profile) -> None:
    def read(result: dict[str, Any], of: Profile = profile, target: Target = HOST) -> Profile:
        return profile_from(result, networks_of(of), target, TEACHER.geometry, HEADS, "here")

    assert read(result_of(profile)) == profile
    with pytest.raises(ValueError, match="damaged"):
        read(result_of(profile, device=None))
    with pytest.raises(ValueError, match="not of all students"):
        read(result_of(profile, measurements=result_of(profile)["measurements"][:7]))
    with pytest.raises(ValueError, match="another window"):
        read(result_of(profile), target=replace(HOST, window=8_080))
    few = replace(profile, taken=profile.taken[:3])
    with pytest.raises(ValueError, match="3 measurements in fp32; at least 5"):
        read(result_of(few), few)


def test_a_profile_of_other_circumstances_is_refused(tmp_path: Path, profile: Profile) -> None:
    def look(written: Profile, geometry: Geometry = TEACHER.geometry) -> Profile | None:
        write_profile(written, profile_path("host", tmp_path))
        return known_profile(HOST, geometry, HEADS, tmp_path)

    assert known_profile(HOST, TEACHER.geometry, HEADS, tmp_path) is None
    assert look(profile) == profile
    with pytest.raises(ValueError, match="2 threads"):
        look(replace(profile, threads=2))
    with pytest.raises(ValueError, match="another teacher or recipe"):
        look(profile, replace(TEACHER.geometry, head_dim=32))
    with pytest.raises(ValueError, match="profiled on an abacus"):
        look(replace(profile, device={**device_facts(), "cpu": "an abacus"}))
    with pytest.raises(ValueError, match="0 measurements in fp32"):
        look(replace(profile, taken=tuple(replace(taken, precision="int8") for taken in profile.taken)))
    assert look(replace(profile, device={"cpu": "another board"}, where="carried")) is not None


def test_a_surprise_refits_the_model_with_all_calm_finalists(profile: Profile) -> None:
    network = profile.taken[0].network
    assert isinstance(network, Architecture)
    plain = Final(name="f", role="finalist", architecture=network, start="random", distill_steps=1, finetune_steps=1)

    def final(name: str, milliseconds: float, **changes: Any) -> Final:
        predicted = {"predicted_latency_low": 0.9, "predicted_latency_high": 1.1}
        return replace(plain, name=name, scores={**predicted, "latency_ms": milliseconds}, **changes)

    taken = {name: profile.taken[n] for n, name in enumerate(("calm", "far", "busy", "other"))}
    calm, far = final("calm", 1.0), final("far", 1.3)
    busy, other = final("busy", 1.5, latency_marks=("drift",)), final("other", 1.5, role="teacher")
    assert with_surprises(profile, [calm, busy, other], taken) is None
    refitted = with_surprises(profile, [calm, far, busy, other], taken)
    assert refitted is not None and refitted.taken[len(profile.taken) :] == (taken["calm"], taken["far"])


def test_a_kit_is_carried_measured_and_fitted(tmp_path: Path) -> None:
    """All of it as its user does it; the device is this machine with nothing of srlnas."""
    srlnas(tmp_path, "profile", "kit", "kit.tar.gz", "--target", "raspberry-pi-zero-2w", "--measurements", "5")
    assert (tmp_path / "kit.tar.gz").stat().st_size < 6e6
    elsewhere = tmp_path / "device"
    elsewhere.mkdir()
    shutil.unpack_archive(tmp_path / "kit.tar.gz", elsewhere, filter="data")
    done = subprocess.run([sys.executable, "-I", f"{FOLDER}/measure.py"], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = Path(done.stdout.strip())
    assert result == (elsewhere / FOLDER / "result.json").resolve()
    fitted = srlnas(tmp_path, "profile", "fit", str(result))
    assert "raspberry-pi-zero-2w, fp32, 1 thread, 16080 samples a window: 5 students" in fitted
    profile = read_profile(tmp_path / "profiles/raspberry-pi-zero-2w.json")
    assert (profile.where, len(profile.taken), profile.device["machine"]) == ("carried", 6, device_facts()["machine"])
    assert "calibrated" in srlnas(tmp_path, "profile", "targets")
