"""A bundle: the folder in which a student leaves. Everything in it is hashed, and it runs with numpy and onnxruntime alone.

model.onnx, labels.json, parity.json (file against student), classify.py, listen.py, sources.py, enrol.py, README.md, and
manifest.json, which describes them. No voice is in it.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.card import card
from deploy.export import INPUT, OPSET, OUTPUTS, Parity, Windows, export_onnx, name_student, parity
from deploy.judging import Judge, calibration_windows
from deploy.probe import LIMITS, answers, difference
from deploy.quantize import quantize_static
from deploy.target import Target
from search_spaces.architecture import EMBEDDING_DIM, SAMPLE_RATE
from search_spaces.kinds import text_of
from trainers.networks.student import Student, load_student, weights_hash

FORMAT = 1
MANIFEST_FILE = "manifest.json"
RUNTIME = Path(__file__).parent / "runtime"
SCRIPTS = ("classify.py", "listen.py", "enrol.py", "sources.py")
VOICES_FILE = "voices.json"  # of `enrol.py`
BESIDE = (MANIFEST_FILE, VOICES_FILE)  # what need not be in the manifest
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A complete bundle on disk. `manifest` is manifest.json as read."""

    folder: Path
    labels: tuple[str, ...]
    window: int
    manifest: Mapping[str, Any]


def write_bundle(
    student_folder: Path,
    out: Path,
    *,
    target: Target,
    clips: Windows,
    synthetic: bool,
    scores: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    voice_thresholds: Sequence[Mapping[str, Any]] = (),
    worst_speakers: Mapping[str, Any] | None = None,
    elsewhere: Sequence[Mapping[str, Any]] = (),
    judge: Judge | None = None,
    listening: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Bundle:
    """Exports a student's folder to the new folder `out`, which appears only when it is complete.

    clips: (clips, target.window) samples, best real ones, on which file and student are compared.
    scores: with their intervals. latency: milliseconds, low, high and `how` (measured, calibrated or data sheet); the target's
    name, threads, precision and window are added. provenance: study, candidate, run, teacher, corpus. voice_thresholds: for rates
    of false acceptance, as `trainers.scoring.thresholds` has them; worst_speakers: as `trainers.scoring.metrics`; elsewhere: what
    it takes on other targets. All are JSON values. judge: makes it int8, and has its say over that; a latency of fp32 is
    then taken times what int8 saves on this machine.
    listening: a function of the bundle that is complete but for them, which gives further entries of its manifest.
    synthetic: the scores were taken on synthetic speech.
    Raises ValueError when the name is not allowed or taken, the student cannot be read, or the file differs from it.
    """
    _check_name(out)
    if clips.ndim != 2 or not len(clips) or clips.shape[1] != target.window:
        raise ValueError(f"clips are {clips.shape}; wanted are (clips, {target.window}), at least one")
    student = load_student(student_folder)
    manifest = {
        **_description(student, target, synthetic),
        "name": out.name,
        "scores": dict(scores or {}),
        "latency": latency and {**latency, **_conditions(target)},
        "provenance": dict(provenance or {}),
        "voice_thresholds": [dict(threshold) for threshold in voice_thresholds],
        "worst_speakers": worst_speakers and dict(worst_speakers),
        "elsewhere": [dict(other) for other in elsewhere],
        "student": weights_hash(student_folder),
        "keyword_thresholds": [],
        "precision": "fp32",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{out.name}.{os.getpid()}"
    try:
        unfinished.mkdir()
        manifest = _fill(unfinished, student, target.window, clips, manifest, judge)
        if listening:
            _seal(unfinished, {**manifest, **listening(unfinished)})
        _check_name(out)  # another export may have taken it meanwhile
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return verify_bundle(out)


def verify_bundle(folder: Path) -> Bundle:
    """The bundle, once every file has the hash that its manifest names. Raises ValueError, which names what is missing or changed.

    The manifest cannot name its own: compare `manifest_hash` with what the export said.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    try:
        text = text_of(folder / MANIFEST_FILE)
    except OSError:
        raise ValueError(f"{folder} is not a bundle: {MANIFEST_FILE} is missing") from None
    except UnicodeDecodeError:
        text = ""
    try:
        manifest = json.loads(text)
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        labels, window = tuple(manifest["labels"]), int(manifest["window"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / MANIFEST_FILE} is damaged: export the student again") from None
    for name, digest in hashes.items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise ValueError(f"{folder} is damaged: {name} is missing; export the student again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder} is damaged: {name} is not the file that was exported; export the student again")
    if strange := sorted({path.name for path in folder.iterdir()} - {*hashes, *BESIDE}):
        raise ValueError(f"{folder} has files that were not exported: {', '.join(strange)}; delete them, or do not trust it")
    return Bundle(folder=folder, labels=labels, window=window, manifest=manifest)


def manifest_hash(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def check_answers(bundle: Bundle) -> float:
    """How far the model, on this machine, is from what it said to a fixed sound when it was exported. Raises ValueError where it is
    too far, and for a bundle that was exported before that was recorded."""
    if "probe" not in bundle.manifest:
        raise ValueError(f"{bundle.folder} has no recorded answers: export the model again")
    here = answers(bundle.folder / "model.onnx", bundle.window)
    try:
        off = difference(bundle.manifest["probe"], here)
        limit = LIMITS[bundle.manifest.get("precision", "fp32")]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{bundle.folder / MANIFEST_FILE} is damaged: export the student again") from None
    if off > limit:
        raise ValueError(
            f"{bundle.folder} answers differently here: by {off:.2g}, allowed is {limit:g}; do not trust it on this machine"
        )
    return off


def _check_name(out: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", out.name):
        raise ValueError(f"the name {out.name!r} is not allowed: letters, digits, '.', '_' and '-', a letter or digit first")
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists: choose another --name, or delete it")


def _description(student: Student, target: Target, synthetic: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "synthetic": synthetic,
        "labels": list(student.keywords),
        "sample_rate": SAMPLE_RATE,
        "window": target.window,
        "input": {"name": INPUT, "shape": [1, target.window], "type": "float32"},
        "outputs": {name: [1, size] for name, size in zip(OUTPUTS, (len(student.keywords), EMBEDDING_DIM), strict=True)},
        "opset": OPSET,
        "params": sum(weight.numel() for weight in student.parameters()),
        "architecture": json.loads(student.architecture.to_json()),
        "geometry": json.loads(student.encoder.geometry.to_json()),
        "target": dataclasses.asdict(target),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def _conditions(target: Target) -> dict[str, Any]:
    return {"target": target.name, "threads": target.threads, "precision": target.precision, "window": target.window}


def _fill(
    folder: Path, student: Student, window: int, clips: Windows, manifest: dict[str, Any], judge: Judge | None
) -> dict[str, Any]:
    """Returns the manifest, which now says how the file answers."""
    export_onnx(student, folder / "model.onnx", window)
    result = parity(student, folder / "model.onnx", clips)
    if not result.ok:
        raise ValueError(_refusal(result))
    if judge:
        manifest = {**manifest, **_to_int8(folder / "model.onnx", student, window, judge, manifest)}
        result = parity(student, folder / "model.onnx", clips)
    name_student(folder / "model.onnx", manifest["student"])
    _write_json(folder / "parity.json", {**dataclasses.asdict(result), "limit": result.limit})
    _write_json(folder / "labels.json", list(student.keywords))
    for script in SCRIPTS:
        shutil.copyfile(RUNTIME / script, folder / script)
    probe = answers(folder / "model.onnx", window)
    manifest = {**manifest, "parity": dataclasses.asdict(result), "probe": probe}
    _seal(folder, manifest)
    return manifest


def _to_int8(path: Path, student: Student, window: int, judge: Judge, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """In place of the file in fp32; returns what that changes of the manifest."""
    small = path.with_name("int8.onnx")
    quantize_static(student, small, calibration_windows(judge.corpus, window))
    found = judge.entries(path, small, student.keywords, window, manifest["target"]["threads"])
    small.replace(path)
    latency, ratio = manifest["latency"], found["int8"]["latency_ratio"]
    if latency and latency["precision"] == "fp32":
        scaled = {"milliseconds": "value", "low": "low", "high": "high"}
        how = f"{latency['how']} in fp32, times {ratio['value']:.2f} that int8 takes on {ratio['machine']}"
        of_fp32 = [name for name in latency if name == "memory_bytes" or name.startswith("predicted_")]
        latency = {name: value for name, value in latency.items() if name not in of_fp32}
        latency |= {**{name: latency[name] * ratio[end] for name, end in scaled.items()}, "precision": "int8", "how": how}
    scores = {**manifest["scores"], **found["scores"]}
    target = {**manifest["target"], "precision": "int8"}
    return {**found, "scores": scores, "precision": "int8", "target": target, "latency": latency}


def _seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the card and the manifest, with the hashes of all other files."""
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_FILE
    }
    _write_json(folder / MANIFEST_FILE, {**manifest, "files": files})


def _refusal(result: Parity) -> str:
    return (
        f"the exported model differs from the student by {result.max_abs_logits:.2g} in the logits and "
        f"{result.max_abs_embedding:.2g} in the embedding, over {result.clips} clips; allowed are {result.limit:g} and "
        f"{result.embedding_limit:g}: "
        "check that the student's weights are finite"
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
