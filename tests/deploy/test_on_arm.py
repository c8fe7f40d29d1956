"""An export on ARM: Debian's Python and the wheels of numpy and onnxruntime for aarch64, emulated. It says nothing about time.

Downloads 50 MB. Nothing of this machine is changed.
"""

import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.bundle import verify_bundle, write_bundle
from deploy.export import OUTPUTS
from deploy.judging import Judge
from deploy.probe import LIMITS, difference, sound
from deploy.target import load_target
from search_spaces.architecture import Architecture
from trainers.networks.student import Student, save_student
from trainers.scoring.draw import whole
from trainers.scoring.scoring import score
from trainers.scoring.streams import speech_streams
from trainers.speech.corpora import Corpus
from trainers.speech.trial_lists import study_trials
from trainers.teacher.teacher import Teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64" or os.geteuid() != 0, reason="emulates ARM on x86, and asks apt as root"),
]

WINDOW, EXACT, INTEGERS = 16_080, 1e-3, 0.05
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6", "zlib1g"),
    *("libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
)
WHEELS = ["numpy", "onnxruntime", "flatbuffers", "protobuf", "packaging"]
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")
CPUINFO = "processor\t: 0\nFeatures\t: fp asimd crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd08\n"
Python = Callable[..., subprocess.CompletedProcess[bytes]]

ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from classify import load_model
session, manifest, labels = load_model(__import__("pathlib").Path(sys.argv[1]))
outputs = session.run(["logits", "embedding"], {"audio": np.load(sys.argv[2])})
print(json.dumps([output[0].tolist() for output in outputs]))
"""


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Python]:
    """A folder that is the root of an ARM machine, and its Python."""
    folder = tmp_path_factory.mktemp("arm")
    root, lists = folder / "root", folder / "lists"
    (lists / "partial").mkdir(parents=True)
    foreign = ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", f"Dir::State::Lists={lists}"]
    wheels = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", *wheels]
    for command in (
        ["apt-get", "download", "qemu-user-static"],
        ["apt-get", *foreign, "update"],
        ["apt-get", *foreign, "download", *(f"{name}:arm64" for name in PACKAGES)],
        [*pip, "--implementation", "cp", *WHEELS],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{' '.join(command[:2])} found nothing here: {done.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        place = folder / "host" if "amd64" in package.name else root
        subprocess.run(["dpkg", "-x", package, place], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(CPUINFO)  # without it onnxruntime takes the host's for an ARM's
    emulator = [folder / "host/usr/bin/qemu-aarch64-static", "-L", root, root / "usr/bin/python3.11", "-B"]

    def python(*words: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {"PYTHONPATH": "/site", "PYTHONHOME": "/usr"}
        return subprocess.run([*emulator, *map(str, words)], input=data, env=environment, capture_output=True)

    return root, python


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_corpus: Corpus,
    tiny_whisper: Teacher,
    arm: tuple[Path, Python],
) -> Path:
    """Of a student with random weights, in the root."""
    torch.manual_seed(0)
    small = Architecture(front_end="mel", front_width=32, frame_stride=1, width=48, heads=(1,), ffn_dims=(96,), kept_layers=(1,))
    student = Student(small, tiny_whisper.geometry, tiny_corpus.keyword_labels).eval()
    trials, cpu = study_trials([], tiny_corpus, 0), torch.device("cpu")
    fp32 = {name: score(student, tiny_corpus, whole(tiny_corpus, name, trials[name]), WINDOW, cpu) for name in ("val", "test")}
    judge = Judge(corpus=tiny_corpus, trials=trials, fp32=fp32, accept_loss=True)
    folder = tmp_path_factory.mktemp("student")
    save_student(student, folder)
    clips = (0.1 * np.random.default_rng(0).standard_normal((2, WINDOW))).astype(np.float32)
    out = arm[0] / "exports" / request.param
    judged = judge if request.param == "int8" else None
    return write_bundle(folder, out, target=load_target("host"), clips=clips, synthetic=True, judge=judged).folder


def test_it_answers_as_it_does_here(bundle: Path, arm: tuple[Path, Python]) -> None:
    root, python = arm
    audio, inside = root / "audio.npy", f"/exports/{bundle.name}"
    np.save(audio, (0.1 * np.random.default_rng(1).standard_normal((1, WINDOW))).astype(np.float32))
    there = python("-c", ASK, inside, "/audio.npy")
    assert there.returncode == 0, there.stderr.decode()
    here = subprocess.run([sys.executable, "-B", "-c", ASK, bundle, audio], capture_output=True, check=True)
    limit = INTEGERS if verify_bundle(bundle).manifest["precision"] == "int8" else EXACT
    for one, other in zip(json.loads(here.stdout), json.loads(there.stdout), strict=True):
        assert np.abs(np.subtract(one, other)).max() <= limit


def test_it_says_there_what_it_said_when_it_was_exported(bundle: Path, arm: tuple[Path, Python]) -> None:
    """As `srlnas verify` asks it."""
    root, python = arm
    manifest = verify_bundle(bundle).manifest
    np.save(root / "sound.npy", sound(manifest["window"])[None])
    there = python("-c", ASK, f"/exports/{bundle.name}", "/sound.npy")
    assert there.returncode == 0, there.stderr.decode()
    said = dict(zip(OUTPUTS, json.loads(there.stdout), strict=True))
    assert difference(manifest["probe"], said) <= LIMITS[manifest["precision"]]


def test_it_hears_the_same_events_there(bundle: Path, arm: tuple[Path, Python], tiny_corpus: Corpus) -> None:
    (stream,) = speech_streams(tiny_corpus, tiny_corpus.rows("test"), None, seconds=6, snr_db=(25.0,))
    words = ("-", "--threshold", "0")
    there = arm[1](f"/exports/{bundle.name}/listen.py", *words, data=stream.samples.tobytes())
    assert there.returncode == 0, there.stderr.decode()
    command = [sys.executable, "-B", str(bundle / "listen.py"), *words]
    here = subprocess.run(command, input=stream.samples.tobytes(), capture_output=True, check=True)
    heard = [[(event["time"], event["keyword"]) for event in map(json.loads, run.stdout.splitlines())] for run in (here, there)]
    assert heard[0] == heard[1] and heard[0]
