"""What benchmarks of training share: a Base-size teacher with random weights, a corpus of noise, and how work is timed.

Imports of this project `trainers` and `search_spaces` alone, and nothing that a machine with torch lacks.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from search_spaces.architecture import Architecture, Geometry
from search_spaces.cost import cost
from trainers.networks.encoder import SpeechEncoder
from trainers.networks.inherit import inherit
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus, MappedSamples
from trainers.teacher.teacher import Teacher

WINDOW = 16_080
WORDS = tuple(f"word{i}" for i in range(10))
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # dense bfloat16, from the data sheets
GEOMETRY = Geometry(
    head_dim=64,
    conv_dims=(512,) * 7,
    conv_bias=False,
    front_norm="group",
    norm_order="post",
    position_kernel=128,
    position_groups=16,
    normalize_input=True,
)
BASE = Architecture(
    front_end="wave",
    front_width=512,
    frame_stride=1,
    width=768,
    heads=(12,) * 12,
    ffn_dims=(3072,) * 12,
    kept_layers=tuple(range(1, 13)),
)


def random_teacher(architecture: Architecture = BASE, geometry: Geometry = GEOMETRY) -> Teacher:
    torch.manual_seed(0)
    encoder = SpeechEncoder(architecture, geometry).eval().requires_grad_(False)
    return Teacher(name="random", digest=f"random {architecture.key}", encoder=encoder)


def noise_corpus(folder: Path) -> Corpus:
    """400 clips of noise by 20 speakers: speed does not depend on what is said."""
    count, length = 400, 16_000
    noise = 0.1 * 32_767 * np.random.default_rng(0).standard_normal(count * length)
    noise.clip(-32_768, 32_767).astype("<i2").tofile(folder / "noise.i16")
    return Corpus(
        samples=(MappedSamples(folder / "noise.i16"),),
        files=np.zeros(count, np.int64),
        starts=np.arange(count) * length,
        lengths=np.full(count, length),
        ids=np.array([f"clip{i}" for i in range(count)], object),
        splits=np.array(["train"] * count, object),
        keywords=np.array([WORDS[i % len(WORDS)] for i in range(count)], object),
        speakers=np.array([f"speaker{i % 20}" for i in range(count)], object),
        digest="noise",
        synthetic=True,
        skipped=(),
    )


def student_of(architecture: Architecture, teacher: Teacher, *, distilled: bool) -> Student:
    """With the weights of the teacher's layers that it keeps."""
    student = Student(
        architecture,
        teacher.geometry,
        WORDS,
        predicted_layers=teacher.predicted_layers if distilled else (),
        target_width=teacher.architecture.width if distilled else 0,
        is_folded=False,
    )
    assert isinstance(student.encoder, SpeechEncoder)
    inherit(student.encoder, teacher.encoder)
    return student


def macs_of(architecture: Architecture, geometry: Geometry = GEOMETRY) -> int:
    """Of one window, without prediction layers."""
    return cost(architecture, geometry, len(WORDS), WINDOW).total_macs


def peak_flops(device: torch.device) -> float | None:
    """Of the card in dense bfloat16, where its data sheet is known."""
    if device.type != "cuda":
        return None
    return next((flops for card, flops in PEAK_FLOPS.items() if card in torch.cuda.get_device_name(device)), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds; a GPU's queue is waited for."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
