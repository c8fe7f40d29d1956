"""The bundle's contract: what is in it, that it is complete or absent, that changes are seen, and that it runs on its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

from deploy.bundle import Bundle, check_answers, verify_bundle, write_bundle
from deploy.card import card
from deploy.export import REFERENCE_GEOMETRY
from deploy.runtime.classify import cut, resample
from deploy.target import load_target
from search_spaces.architecture import Architecture, Geometry
from trainers.networks.student import Student, load_student, save_student

KEYWORDS = ("نعم", "não", "häuser")
TARGET = load_target("host")
CLIPS = (0.1 * np.random.default_rng(0).standard_normal((3, TARGET.window))).astype(np.float32)
FILES = {"model.onnx", "labels.json", "parity.json", "classify.py", "listen.py", "enrol.py", "sources.py", "README.md"}
ARCHITECTURE = Architecture(front_end="mel", front_width=32, frame_stride=2, width=64, heads=(1,), ffn_dims=(96,), kept_layers=(1,))


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    save_student(Student(ARCHITECTURE, REFERENCE_GEOMETRY, KEYWORDS), folder)
    return folder


@pytest.fixture(scope="module")
def written(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        student_folder,
        tmp_path_factory.mktemp("exports") / "deep" / "demo-1",
        target=TARGET,
        clips=CLIPS,
        synthetic=True,
        scores={"keyword_error": {"value": 4.0, "low": 3.0, "high": 5.0, "unit": "%"}},
        latency={"milliseconds": 0.5, "low": 0.4, "high": 0.6, "how": "measured"},
        provenance={"study": "demo", "candidate": 3},
    )


@pytest.fixture
def bundle(written: Bundle, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written.folder, tmp_path / "bundle"))


def test_contract(written: Bundle, student_folder: Path) -> None:
    assert {path.name for path in written.folder.iterdir()} == FILES | {"manifest.json"}
    assert [path.name for path in written.folder.parent.iterdir()] == ["demo-1"]
    manifest = json.loads((written.folder / "manifest.json").read_text())
    assert manifest == written.manifest
    assert set(manifest["files"]) == FILES
    assert manifest["files"]["model.onnx"]["bytes"] == (written.folder / "model.onnx").stat().st_size
    assert (manifest["name"], manifest["synthetic"], manifest["format"]) == ("demo-1", True, 1)
    assert tuple(manifest["labels"]) == written.labels == KEYWORDS
    assert json.loads((written.folder / "labels.json").read_text()) == list(KEYWORDS)
    assert (manifest["sample_rate"], manifest["window"], written.window) == (16_000, 16_080, 16_080)
    assert manifest["input"] == {"name": "audio", "shape": [1, 16_080], "type": "float32"}
    assert manifest["outputs"] == {"logits": [1, 3], "embedding": [1, 128]}
    assert manifest["params"] == sum(weight.numel() for weight in load_student(student_folder).parameters())
    assert Architecture.from_dict(manifest["architecture"]) == ARCHITECTURE
    assert Geometry.from_dict(manifest["geometry"]) == REFERENCE_GEOMETRY
    assert manifest["scores"]["keyword_error"]["high"] == 5.0
    assert manifest["latency"] == {
        **{"milliseconds": 0.5, "low": 0.4, "high": 0.6, "how": "measured"},
        **{"target": "host", "threads": 1, "precision": "fp32", "window": 16_080},
    }
    assert manifest["provenance"] == {"study": "demo", "candidate": 3}
    assert {"python", "torch", "onnx", "onnxruntime", "numpy"} == set(manifest["versions"])
    assert json.loads((written.folder / "parity.json").read_text()) == {**manifest["parity"], "limit": 1e-4}
    assert manifest["parity"]["max_abs_logits"] <= 1e-5
    assert "synthetic" in (written.folder / "README.md").read_text()


def test_the_card_says_where_it_fails_and_what_it_may_be_used_for(student_folder: Path, tmp_path: Path) -> None:
    rates = {f"test_{name}{end}": 10.0 for name in ("keyword_error", "eer") for end in ("", "_low", "_high")}
    for corpus, error in (("quiet", 5.0), ("phone", 15.0)):
        rates |= {f"test_{name}{end}.{corpus}": error for name in ("keyword_error", "eer") for end in ("", "_low", "_high")}
    write_bundle(
        student_folder,
        tmp_path / "demo",
        target=TARGET,
        clips=CLIPS,
        synthetic=False,
        scores=rates,
        latency={"milliseconds": 2.0, "low": 1.9, "high": 2.2, "how": "calibrated"},
        provenance={
            "teacher": {"name": "mini", "licence": "mit"},
            "began_with": "theirs.safetensors",
            "corpus": {"files": ["a.parquet", "b.parquet"], "licences": {"a": "CC BY 4.0", "b": None}},
            "noise": {"street": "CC0"},
        },
        voice_thresholds=[
            {"false_acceptance": 1.0, "unsupported": "9 trials of different speakers; 300 are needed"},
            {"false_acceptance": 5.0, "threshold": 0.5, "missed": 9.0},
        ],
        worst_speakers={"speakers": 3, "of": 12, "accuracy": 71.3},
        elsewhere=[{"target": "board", "milliseconds": 8.0, "low": 4.0, "high": 16.0, "threads": 2, "precision": "fp32"}],
    )
    card = (tmp_path / "demo" / "README.md").read_text()
    for said in (
        "90.0 [90.0, 90.0] % accuracy",
        "worst on phone: accuracy 85.0 %",
        "worst on phone: EER 15.0 %",
        "Of the 3 of 12 test speakers whom it hears worst, it hears 71.3 % of the keywords.",
        "2.00 [1.90, 2.20] ms a window of 16080 samples, calibrated: host, 1 thread, fp32",
        "- board: 8.0 [4.0, 16.0] ms in fp32, 16 %.",
        "teacher mini, whose licence is: mit",
        "began with the shared weights theirs.safetensors.",
        "learned in noise from street, whose licence is: CC0.",
        "learned from a, whose licence is: CC BY 4.0.",
        "learned from b, whose licence is not known: ask who recorded it.",
        "1 % of other voices' clips are taken for the enrolled one's: unsupported, 9 trials",
        "from a similarity of 0.500 on; 9 % of its own clips are missed",
    ):
        assert said in card, said


def test_the_model_names_the_student_that_it_is_made_of(student_folder: Path, tmp_path: Path) -> None:
    made = write_bundle(student_folder, tmp_path / "made", target=TARGET, clips=CLIPS, synthetic=False)
    named = {prop.key: prop.value for prop in onnx.load(str(made.folder / "model.onnx")).metadata_props}
    digest = hashlib.sha256((student_folder / "weights.safetensors").read_bytes()).hexdigest()
    assert named["srlnas.student.sha256"] == made.manifest["student"] == digest


def test_without_scores_or_latency(student_folder: Path, tmp_path: Path) -> None:
    plain = write_bundle(student_folder, tmp_path / "plain", target=TARGET, clips=CLIPS, synthetic=False)
    assert (plain.manifest["scores"], plain.manifest["latency"], plain.manifest["provenance"]) == ({}, None, {})
    assert "synthetic" not in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_or_missing_file_is_named(bundle: Path, name: str) -> None:
    verify_bundle(bundle)
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not the file"):
        verify_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        verify_bundle(bundle)


def test_a_model_that_answers_differently_here_is_not_trusted(bundle: Path) -> None:
    assert check_answers(verify_bundle(bundle)) < 1e-6
    manifest = json.loads((bundle / "manifest.json").read_text())
    for logits in ([value + 0.01 for value in manifest["probe"]["logits"]], [0.0], [float("nan")] * 3):
        changed = {**manifest, "probe": {**manifest["probe"], "logits": logits}}
        (bundle / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="answers differently here"):
            check_answers(verify_bundle(bundle))
    del manifest["probe"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="export the model again"):
        check_answers(verify_bundle(bundle))


def test_a_file_that_was_not_exported_is_named(bundle: Path) -> None:
    (bundle / "voices.json").touch()  # of enrol.py
    verify_bundle(bundle)
    (bundle / "evil.py").touch()
    with pytest.raises(ValueError, match=r"files that were not exported: evil.py"):
        verify_bundle(bundle)


def test_damaged_manifests(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        verify_bundle(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"not a bundle: manifest.json is missing"):
        verify_bundle(tmp_path)
    for text in ("{", "[]", "{}", '{"files": {"a": 1}}'):
        (bundle / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            verify_bundle(bundle)


def test_an_existing_folder_is_refused_and_kept(student_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(ValueError, match="mine exists: choose another --name, or delete it"):
        write_bundle(student_folder, tmp_path / "mine", target=TARGET, clips=CLIPS, synthetic=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


@pytest.mark.parametrize("name", [".hidden", "a b", "ä", "-x", "a;b"])
def test_names(student_folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        write_bundle(student_folder, tmp_path / name, target=TARGET, clips=CLIPS, synthetic=False)


def test_code_that_python_kept_is_no_part_of_an_export(written: Bundle, tmp_path: Path) -> None:
    """It would run in the place of what was hashed; the scripts keep none."""
    copy = shutil.copytree(written.folder, tmp_path / "copy")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, copy / "enrol.py", "--list"], env=environment, check=True)
    verify_bundle(copy)
    (copy / "__pycache__").mkdir()
    with pytest.raises(ValueError, match="files that were not exported: __pycache__"):
        verify_bundle(copy)


@pytest.mark.parametrize(
    ("milliseconds", "threads", "share", "is_slow"),
    [(20.0, 1, "20.0", False), (60.0, 4, "240.0", False), (110.0, 1, "110.0", True)],
)
def test_the_card_counts_all_cores_and_says_what_is_too_slow(
    written: Bundle, milliseconds: float, threads: int, share: str, is_slow: bool
) -> None:
    latency = {**written.manifest["latency"], "milliseconds": milliseconds, "threads": threads}
    said = card({**written.manifest, "latency": latency})
    assert f"take {share} % of one core" in said and ("`--hop`" in said) == is_slow


@pytest.mark.parametrize("shape", [(0, 16_080), (2, 16_000), (16_080,)])
def test_clips_of_another_window(student_folder: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted are"):
        write_bundle(student_folder, tmp_path / "x", target=TARGET, clips=np.zeros(shape, np.float32), synthetic=False)
    assert not list(tmp_path.iterdir())


def _broken_student(folder: Path) -> Path:
    student = Student(ARCHITECTURE, REFERENCE_GEOMETRY, KEYWORDS)
    with torch.no_grad():
        student.speaker_head.weight.fill_(float("nan"))
    save_student(student, folder)
    return folder


def test_nothing_stays_after_a_failure(student_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    broken = _broken_student(tmp_path / "student")
    with pytest.raises(ValueError, match=r"differs from the student by .* allowed are 0.0001 and 0.0001"):
        write_bundle(broken, tmp_path / "exports" / "x", target=TARGET, clips=CLIPS, synthetic=False)
    with pytest.raises(ValueError, match="is not a student"):
        write_bundle(tmp_path, tmp_path / "exports" / "x", target=TARGET, clips=CLIPS, synthetic=False)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_bundle(
            student_folder, tmp_path / "exports" / "x", target=TARGET, clips=CLIPS, synthetic=False, provenance={"x": Path()}
        )
    assert not list((tmp_path / "exports").iterdir())


# classify.py, as a user runs it

ALONE = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    foreign = {"torch", "onnx", "trainers", "deploy", "scipy", "soundfile"} & set(sys.modules)
    assert not foreign, foreign
"""


def classify(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.argv = {[str(bundle / 'classify.py'), *arguments]!r}\n{ALONE}"
    return subprocess.run([sys.executable, "-I", "-c", program], cwd=bundle.parent, capture_output=True, text=True)


def save_wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> str:
    with wave.open(str(path), "wb") as clip:
        clip.setparams((channels, 2, rate, 0, "NONE", ""))
        clip.writeframes((samples * 32_767).round().astype("<i2").repeat(channels).tobytes())
    return str(path)


def expected(student_folder: Path, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pcm = (samples * 32_767).round() / 32_768
    with torch.no_grad():
        logits, embedding = load_student(student_folder)(torch.from_numpy(cut(pcm.astype(np.float32), TARGET.window)))
    mean = embedding.mean(0).numpy()
    return logits.mean(0).softmax(-1).numpy(), mean / np.linalg.norm(mean)


@pytest.mark.parametrize(("length", "channels"), [(9_000, 1), (16_080, 2), (40_000, 1)])
def test_classify_equals_the_student(written: Bundle, student_folder: Path, tmp_path: Path, length: int, channels: int) -> None:
    samples = 0.1 * np.random.default_rng(length).uniform(-1, 1, length)
    clip = save_wav(tmp_path / "clip.wav", samples, channels=channels)
    shares, embedding = expected(student_folder, samples)
    done = classify(written.folder, clip, "--json", "--embedding")
    assert (done.returncode, "their mean is heard" in done.stderr) == (0, channels > 1)
    result = json.loads(done.stdout)
    assert result["keyword"] == KEYWORDS[shares.argmax()] == next(iter(result["shares"]))
    assert [result["shares"][keyword] for keyword in KEYWORDS] == pytest.approx(shares.tolist(), abs=1e-5)
    assert result["embedding"] == pytest.approx(embedding.tolist(), abs=1e-4)


def test_classify_prints_one_line(written: Bundle, student_folder: Path, tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).uniform(-1, 1, 16_000)
    shares, _ = expected(student_folder, samples)
    done = classify(written.folder, save_wav(tmp_path / "clip.wav", samples))
    assert done.stdout == f"{KEYWORDS[shares.argmax()]}  {100 * shares.max():.1f} %\n"


def tone() -> np.ndarray:
    return 0.3 * np.sin(np.arange(16_000) / 20)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(np.where(np.arange(16_000) == 9, np.nan, tone()), "not numbers"), (20_000 * tone(), "where full scale is 1")],
)
def test_classify_refuses_what_training_refuses(written: Bundle, tmp_path: Path, samples: np.ndarray, reason: str) -> None:
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    command = [sys.executable, str(written.folder / "classify.py"), str(tmp_path / "clip.wav")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and reason in done.stderr


def test_a_wav_that_was_streamed_is_read_to_its_end_and_no_further(written: Bundle, tmp_path: Path) -> None:
    """Its header says 4 GiB, which a board cannot give."""
    plain = Path(save_wav(tmp_path / "plain.wav", tone())).read_bytes()
    at = plain.index(b"data")
    (tmp_path / "pipe.wav").write_bytes(plain[:4] + b"\xff" * 4 + plain[8 : at + 4] + b"\xff" * 4 + plain[at + 8 :])
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))"
    said = []
    for name in ("plain.wav", "pipe.wav"):
        run = f"import sys, runpy; {limit}; sys.argv = {[str(written.folder / 'classify.py'), str(tmp_path / name)]!r}"
        done = subprocess.run([sys.executable, "-I", "-c", f"{run}\n{ALONE}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


def test_a_label_that_the_terminal_lacks_is_written_in_escapes(written: Bundle, tmp_path: Path) -> None:
    clip = save_wav(tmp_path / "clip.wav", tone())
    for options in ([], ["--json"]):
        command = [sys.executable, str(written.folder / "classify.py"), clip, *options]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, "")


def _text(path: Path) -> None:
    path.write_text("not a sound")


def _empty(path: Path) -> None:
    path.touch()


def _no_frames(path: Path) -> None:
    save_wav(path, np.zeros(0))


def _absent(path: Path) -> None:
    pass


def _silent(path: Path) -> None:
    save_wav(path, np.zeros(16_000))


def _slow(path: Path) -> None:
    save_wav(path, tone(), rate=2_000)


@pytest.mark.parametrize("make", [_text, _empty, _no_frames, _absent, _silent, _slow])
def test_classify_refuses_in_one_line(written: Bundle, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "clip.wav")
    arguments = [str(written.folder / "classify.py"), str(tmp_path / "clip.wav")]
    program = f"import sys; sys.modules['soundfile'] = None; sys.argv = {arguments!r}"
    run = f"{program}\nimport runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", run], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("classify: ")
    assert "clip.wav" in done.stderr
    assert done.stderr.count("\n") == 1


def test_classify_checks_the_model(bundle: Path, tmp_path: Path) -> None:
    clip = save_wav(tmp_path / "clip.wav", np.zeros(16_000))
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"\0")
    done = classify(bundle, clip)
    assert done.returncode == 2
    assert "model.onnx is not the file" in done.stderr
    (bundle / "labels.json").unlink()
    assert "labels.json is missing" in classify(bundle, clip).stderr


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone_and_drops_what_would_alias(rate: int) -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate).astype(np.float32)
    result = resample(tone, rate, 16_000)
    ideal = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    assert len(result) == 16_000
    assert np.abs(result - ideal)[200:-200].max() < 2e-3
    if rate > 22_050:
        above = np.sin(2 * np.pi * 10_000 * np.arange(rate) / rate).astype(np.float32)
        assert np.abs(resample(above, rate, 16_000))[200:-200].max() < 2e-3


def test_cut() -> None:
    ramp = np.arange(40_000, dtype=np.float32)
    assert [row[0] for row in cut(ramp, 16_080)] == [0, 16_000, 23_920]
    assert [row[0] for row in cut(ramp[:32_080], 16_080)] == [0, 16_000]
    assert [row[0] for row in cut(ramp[:17_000], 16_080)] == [0, 920]
    short = cut(ramp[:100], 16_080)
    assert (short.shape, short[0, 99], short[0, 100:].any()) == ((1, 16_080), 99, False)
