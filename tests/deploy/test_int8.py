"""A student in integers: the same function before it is rounded, close to it after, judged on speech before it is shipped."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploy.bundle import check_answers, verify_bundle, write_bundle
from deploy.export import export_onnx, parity
from deploy.judging import Judge
from deploy.quantize import evened, quantize_static
from deploy.target import load_target
from search_spaces.architecture import Architecture
from trainers.learning.batches import cut
from trainers.networks.student import Student, save_student
from trainers.scoring.draw import whole
from trainers.scoring.outcome import Outcome
from trainers.scoring.scoring import score
from trainers.speech.corpora import Corpus
from trainers.speech.trial_lists import study_trials
from trainers.teacher.teacher import Teacher

WINDOW = 16_080
MADE = {"mel": ("mel", 32, (1,)), "wave": ("wave", 32, (1,)), "blocks": ("bc", 64, ()), "blocks and a layer": ("bc", 64, (1,))}


def made(teacher: Teacher, kind: str, keywords: tuple[str, ...] = ("no", "yes")) -> Student:
    """With random weights, and one channel in eight a hundred times as large as its neighbours before it is scaled back."""
    front, width, kept = MADE[kind]
    small = Architecture(
        front_end=front,  # type: ignore[arg-type]
        front_width=width,
        frame_stride=1,
        width=48 if kept else width,
        heads=(1,) * len(kept),
        ffn_dims=(96,) * len(kept),
        kept_layers=kept,
    )
    torch.manual_seed(0)
    student = Student(small, teacher.geometry, keywords).eval()
    with torch.no_grad():
        for layer in student.encoder.layers:
            layer.attention_norm.weight[::8] *= 100
            for product in (layer.attention.q, layer.attention.k, layer.attention.v):
                product.weight[:, ::8] /= 100
    return student


@pytest.fixture(scope="module")
def windows(tiny_corpus: Corpus) -> np.ndarray:
    return np.stack([cut(tiny_corpus, int(row), 0, WINDOW) for row in tiny_corpus.rows("train")[:24]])


@pytest.mark.parametrize("kind", sorted(MADE))
@pytest.mark.parametrize("family", ["hubert", "whisper"])
def test_a_student_that_is_evened_computes_the_same(
    kind: str, family: str, windows: np.ndarray, tiny_teacher: Teacher, tiny_whisper: Teacher
) -> None:
    if family == "whisper" and kind == "wave":
        pytest.skip("a Whisper's student has no such front end")
    student = made(tiny_whisper if family == "whisper" else tiny_teacher, kind)
    with torch.no_grad():
        audio = torch.from_numpy(windows)
        expected, found = student.folded()(audio), evened(student, windows)(audio)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("kind", sorted(MADE))
def test_integers_are_close_and_leave_no_weights(
    kind: str, windows: np.ndarray, tiny_whisper: Teacher, tiny_teacher: Teacher, tmp_path: Path
) -> None:
    student = made(tiny_teacher if kind == "wave" else tiny_whisper, kind)
    quantize_static(student, tmp_path / "int8.onnx", windows)
    found = parity(student, tmp_path / "int8.onnx", windows)
    with torch.no_grad():
        spread = float(student.folded()(torch.from_numpy(windows))[0].std())
    assert found.max_abs_logits < 3 * spread and found.max_abs_embedding < 0.2
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kept = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not [tensor.name for tensor in kept if "weight" in tensor.name and len(tensor.dims) > 1 and min(tensor.dims) > 1]


@pytest.fixture(scope="module")
def trials(tiny_corpus: Corpus) -> Mapping[str, Any]:
    return study_trials([], tiny_corpus, 0)


@pytest.fixture(scope="module")
def judge(tiny_corpus: Corpus, tiny_whisper: Teacher, trials: Mapping[str, Any]) -> Judge:
    student = made(tiny_whisper, "mel", tiny_corpus.keyword_labels)
    fp32 = {
        split: score(student.folded(), tiny_corpus, whole(tiny_corpus, split, trials[split]), WINDOW, torch.device("cpu"))
        for split in ("val", "test")
    }
    return Judge(corpus=tiny_corpus, trials=trials, fp32=fp32, accept_loss=True)


def exported(judge: Judge, teacher: Teacher, tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    save_student(made(teacher, "mel", judge.corpus.keyword_labels).folded(), folder)
    clips = (0.1 * np.random.default_rng(0).standard_normal((2, WINDOW))).astype(np.float32)
    latency = {"milliseconds": 2.0, "low": 1.9, "high": 2.2, "how": "measured"}
    target = load_target("host")
    return write_bundle(
        folder, tmp_path / "exports" / "int8", target=target, clips=clips, synthetic=True, latency=latency, judge=judge
    ).folder


def test_an_export_in_integers_says_what_they_cost(judge: Judge, tiny_whisper: Teacher, tmp_path: Path) -> None:
    folder = exported(judge, tiny_whisper, tmp_path)
    bundle = verify_bundle(folder)
    entry, latency = bundle.manifest["int8"], bundle.manifest["latency"]
    assert bundle.manifest["precision"] == bundle.manifest["target"]["precision"] == latency["precision"] == "int8"
    assert check_answers(bundle) == 0
    assert latency["milliseconds"] == pytest.approx(2.0 * entry["latency_ratio"]["value"])
    for split in ("val", "test"):
        change = entry[split]["accuracy_change"]
        assert change["low"] <= change["value"] <= change["high"]
    assert bundle.manifest["scores"]["test_keyword_error"] == pytest.approx(100 - entry["test"]["accuracy"]["value"])
    assert "int8 against fp32, test speakers" in (folder / "README.md").read_text()
    assert json.loads((folder / "parity.json").read_text())["max_abs_logits"] > 0
    assert [path.name for path in folder.glob("*.onnx")] == ["model.onnx"]


def test_what_loses_too_much_is_refused_before_test_speakers_are_heard(judge: Judge, tiny_whisper: Teacher, tmp_path: Path) -> None:
    fp32 = judge.fp32["val"]
    perfect: Outcome = dataclasses.replace(fp32, correct=np.ones_like(fp32.correct), trial_scores=fp32.same.astype(float))
    strict = dataclasses.replace(judge, fp32={"val": perfect}, accept_loss=False)
    with pytest.raises(ValueError, match=r"allowed is a loss of 0\.5: export fp32, another member, or give --accept-loss"):
        exported(strict, tiny_whisper, tmp_path)
    assert not (tmp_path / "exports" / "int8").exists()


def test_the_file_is_smaller_than_in_fp32(tmp_path: Path, windows: np.ndarray, tiny_whisper: Teacher) -> None:
    large = dataclasses.replace(made(tiny_whisper, "mel").architecture, ffn_dims=(4096,))
    assert isinstance(large, Architecture)
    student = Student(large, tiny_whisper.geometry, ("no", "yes")).eval()
    export_onnx(student, tmp_path / "fp32.onnx", WINDOW)
    quantize_static(student, tmp_path / "int8.onnx", windows)
    saved = (tmp_path / "fp32.onnx").stat().st_size - (tmp_path / "int8.onnx").stat().st_size
    assert saved > 0.7 * 4 * 2 * 48 * 4096  # of the two products' weights
