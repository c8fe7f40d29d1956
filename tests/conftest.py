"""What several test files share: one thread, no network, a tiny teacher and a tiny corpus."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing answers there: no test reaches a model hub
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start too: test processes already fill the cores,
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # and a thread that waits must not keep one busy
os.environ |= {"RAY_worker_niceness": "0"}  # Ray's own 15 lets searches wait for all tests that run beside them

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import settings
from numpy.typing import NDArray

from nas.tracking.connection import ENVIRONMENT
from trainers.importing.synthetic import speak_corpus
from trainers.speech.corpora import Corpus
from trainers.speech.loading import load_corpus
from trainers.speech.parquet import write_corpus
from trainers.teacher.teacher import Teacher, load_teacher

os.environ.update(ENVIRONMENT)  # before any test imports MLflow, which reads them once
torch.set_num_threads(1)
settings.register_profile("work", deadline=None)  # no test is about seconds: this machine may be any
settings.load_profile("work")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would what it starts

TINY_WHISPER: dict[str, Any] = {
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
    "max_source_positions": 66,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
CONTOURS = {"rise": (110.0, 220.0), "fall": (220.0, 110.0), "flat": (160.0, 160.0)}  # hertz at a clip's start and end
SPEAKERS = {"train": 4, "val": 3, "test": 3}
LONG = (
    "test_search",
    "test_clusters",
    "test_interruptions",
    "test_shared_student",
    "test_cli",
    "test_reproduce",
    "test_kit",
    "test_profile",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole commands first: at the end, one of two workers had nothing left to do for minutes."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def voice(contour: str, speaker: int, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A tone whose pitch follows the keyword and whose overtones belong to the speaker."""
    samples = round(seconds * 16_000)
    start, end = CONTOURS[contour]
    phase = 2 * np.pi * np.cumsum(np.linspace(start, end, samples)) / 16_000 * rng.uniform(0.95, 1.05)
    overtones = np.random.default_rng(100 + speaker).uniform(0, 1, 12) ** 3
    tone = sum(share * np.sin((k + 1) * phase) for k, share in enumerate(overtones)) / overtones.sum()
    noisy: NDArray[np.float64] = 0.4 * tone + 0.005 * rng.standard_normal(samples)
    return noisy


def encoded(samples: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def tiny_rows() -> Iterator[dict[str, Any]]:
    """Each speaker says each word three times (0.3 to 0.45 s) and, unlabelled, one long clip; one test clip is of nobody known."""
    rng = np.random.default_rng(0)
    number = 0
    for split, speakers in SPEAKERS.items():
        for speaker in range(speakers):
            for word in [*CONTOURS] * 3 + [None]:
                seconds = rng.uniform(0.3, 0.45) if word else 1.5
                audio = voice(word or "rise", number, seconds, rng)
                fields = {"split": split, "keyword": word, "speaker_id": f"{split}{speaker}", "duration_s": seconds}
                yield {"id": f"clip{number}-{rng.integers(2**40)}", **fields, "audio": {"bytes": encoded(audio), "path": None}}
            number += 1
    fields = {"id": "stranger", "split": "test", "keyword": "rise", "speaker_id": None, "duration_s": 0.4}
    yield {**fields, "audio": {"bytes": encoded(voice("rise", 99, 0.4, rng)), "path": None}}


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """101 clips of tones with 3 keywords and 10 speakers: learnable in a few steps."""
    folder = tmp_path_factory.mktemp("tiny_corpus")
    write_corpus(folder / "corpus.parquet", tiny_rows(), synthetic=True)
    return load_corpus([folder / "corpus.parquet"], folder / "cache")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HuBERT of three layers in transformers format. Every weight is random, biases and norms included."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    folder = tmp_path_factory.mktemp("tiny_teacher")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HubertModel(config)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of three layers with its decoder, positions for 1.32 s. Every weight is random, biases and norms included."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(**TINY_WHISPER)
    folder = tmp_path_factory.mktemp("tiny_whisper")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
        for weight in model.parameters():
            if weight.requires_grad:  # positions are fixed
                weight.data += 0.05 * torch.randn_like(weight)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_whisper(whisper_folder: Path) -> Teacher:
    return load_teacher(str(whisper_folder))


@pytest.fixture(scope="session")
def tiny_teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(str(teacher_folder))


@pytest.fixture(scope="session")
def srlnas() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a folder: fails where the command does, unless `check` is False."""

    def run(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nas.cli", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def tiny_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of the smallest search, on a small spoken corpus, for a board that is only known by its data sheet: measuring takes
    most of a minute. Test processes share the cache: teacher states and references are made once for all searches of one length."""
    path = tmp_path_factory.mktemp("spoken") / "spoken.parquet"
    speak_corpus(path, speakers=14, clips_per_keyword=1)
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    options = ("--space", "edge", "--steps", "2", "--batch", "8", "--finalists", "3", "--budget", "3cpu-hours")
    options = (*options, "--target", "raspberry-pi-4")
    return (*options, "--cache", str(cache), "--data", str(path))


MAC_MS = 2e-8  # milliseconds of a multiply-accumulate on the machine of `known_profile`


@pytest.fixture(scope="session")
def known_profile() -> Callable[..., Any]:
    """A profile of this machine as if its operations cost what `LATENCY_COSTS` says: for tests of what comes after calibration,
    which takes most of a minute. Arguments: teacher, number of students, heads."""
    from deploy.measure import Measurement, device_facts
    from deploy.target import load_target
    from nas.device.calibrate import calibration_students
    from nas.device.latency import LATENCY_COSTS, latency_counts
    from nas.device.profile import KEYWORDS, Profile, Taken
    from search_spaces.architecture import Architecture
    from search_spaces.cost import cost

    def profile(teacher: Teacher, number: int = 10, heads: Any = "every state") -> Profile:
        taken, host = [], load_target("host")
        for network in calibration_students(teacher, heads, host, number).values():
            milliseconds, peak = 2.0, 70e6
            if isinstance(network, Architecture):
                counted = cost(network, teacher.geometry, KEYWORDS, host.window, heads)
                milliseconds = MAC_MS * float(latency_counts(counted) @ np.array(list(LATENCY_COSTS.values())))
                peak = 60e6 + 2.0 * counted.weight_bytes + 1.5 * counted.peak_activation_bytes
            measured = Measurement(
                ratio=milliseconds / 3,
                ratio_low=milliseconds / 3.03,
                ratio_high=milliseconds / 2.97,
                reference_ms=3.0,
                median_ms=milliseconds,
                passes=6,
                seconds=1.0,
                threads=host.threads,
                window=host.window,
                peak_memory=int(peak),
            )
            taken.append(Taken(network=network, precision="fp32", measurement=measured))
        return Profile(
            target="host",
            threads=host.threads,
            window=host.window,
            geometry=teacher.geometry,
            heads=heads,
            device=device_facts(),
            taken=tuple(taken),
        )

    return profile


@pytest.fixture
def on_known_machine(known_profile: Callable[..., Any], tmp_path: Path) -> Path:
    """A working folder in which this machine has been profiled for students of the bundled teacher."""
    from nas.device.profile import profile_path, write_profile

    write_profile(known_profile(load_teacher("mini")), profile_path("host", tmp_path / "profiles"))
    return tmp_path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven; its log has what pages complain of."""
    if not (chromium := shutil.which("chromium")) or not (driver := shutil.which("chromedriver")):
        pytest.skip("needs Chromium and its driver: Debian's packages chromium and chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = Chrome(options=options, service=ChromeService(driver))
    yield driven
    driven.quit()
