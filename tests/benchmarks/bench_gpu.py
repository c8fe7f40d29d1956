"""What one card gives: `make bench-gpu` runs it in eight minutes at most, and writes build/bench/gpu.json,
anew after each part.

Teacher's forward, distillation and joint tuning at several batches: clips a second and model FLOPs utilisation. Losses beside those
of the CPU in float32. One student against several at once, each in a process of its own. Compiled against not. The tests that need
a card. Audio is noise, made here. Needs torch, torchaudio and transformers; of this project `trainers` and `search_spaces` alone.
Without a card it does the same in miniature and says `cpu`. Utilisation counts twice the MACs of a clip forward, three times that
in training.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from base_size import BASE, GEOMETRY, WINDOW, device_name, macs_of, noise_corpus, peak_flops, random_teacher, student_of, timed

from search_spaces.architecture import Architecture, Geometry
from search_spaces.catalog import paper_student
from trainers.learning import precision
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distill, distiller
from trainers.learning.finetune import finetune
from trainers.learning.precision import pick_device
from trainers.learning.recipe import Recipe
from trainers.learning.streams import distillation_stream
from trainers.learning.targets import Targets, prepare_targets, teacher_states
from trainers.networks.student import Student

ROOT = Path(__file__).parents[2]
GPU_TESTS = "tests/trainers/learning/test_on_a_gpu.py"  # those that need no more than this benchmark
TOLERANCE = 0.03  # of a loss, relative: bfloat16 against float32
WARMING = 2  # steps
WINDOWS = 512  # of cached teacher states
COMPARED_STEPS, COMPARED_BATCH = 3, 4
Task = Literal["distillation", "joint tuning"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the whole run. together: numbers of processes. many: steps after which a compiled and a plain training are compared."""

    teacher: Architecture
    geometry: Geometry
    batches: tuple[int, ...]
    steps: int
    together: tuple[int, ...]
    many: int


FULL = Size(teacher=BASE, geometry=GEOMETRY, batches=(16, 64, 256), steps=12, together=(1, 2, 4, 8), many=60)
NARROW = dataclasses.replace(BASE, front_width=32, width=192, heads=(3,) * 3, ffn_dims=(384,) * 3, kept_layers=(1, 2, 3))
MINIATURE = Size(
    teacher=NARROW,
    geometry=dataclasses.replace(GEOMETRY, conv_dims=(32,) * 7),
    batches=(2, 4),
    steps=2,
    together=(1, 2),
    many=3,
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements share. The student is the paper's."""

    size: Size
    device: torch.device
    targets: Targets

    @property
    def architecture(self) -> Architecture:
        return paper_student(self.size.teacher)

    def student(self) -> Student:
        torch.manual_seed(0)
        return student_of(self.architecture, self.targets.teacher, distilled=True).to(self.device)

    def macs(self, architecture: Architecture) -> int:
        return macs_of(architecture, self.size.geometry)


def open_bench(size: Size, folder: Path, device: torch.device) -> Bench:
    """States are cached in the folder, by the first process that opens it."""
    teacher, corpus = random_teacher(size.teacher, size.geometry), noise_corpus(folder)
    targets = prepare_targets(teacher, corpus, folder, window=WINDOW, limit=WINDOWS, seed=0, mode="cached", device=device)
    return Bench(size=size, device=device, targets=targets)


def trainer(bench: Bench, task: Task, batch: int) -> Callable[[int], list[float]]:
    """A function of steps that trains one student on from call to call and returns losses, all of a step summed."""
    student, recipe = bench.student(), Recipe(batch=batch, rate=1e-5, distill_rate=1e-5)
    common: dict[str, Any] = {"augment": Augmentation(), "seed": 0, "device": bench.device}
    optimizer = distiller(student, recipe)

    def train(steps: int) -> list[float]:
        if task == "distillation":
            return distill(student, bench.targets, recipe, steps=steps, optimizer=optimizer, **common)
        return [sum(losses) for losses in finetune(student, bench.targets.corpus, recipe, steps=steps, window=WINDOW, **common)]

    return train


def speed(bench: Bench, work: Callable[[int], object], steps: int, clips: int, flops: int) -> dict[str, float | None]:
    """work: of so many steps, each of so many clips of so many FLOPs; a few are done before, to warm up."""
    work(WARMING)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(bench.device, lambda: work(steps))
    peak = peak_flops(bench.device)
    memory = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None
    rate = steps * clips / seconds
    return {"clips_per_second": rate, "utilisation": peak and rate * flops / peak, "memory_gb": memory}


def forwards(bench: Bench) -> dict[str, Any]:
    """The teacher's, by batch."""
    found = {}
    for batch in bench.size.batches:
        audio = 0.1 * torch.randn(batch, WINDOW, device=bench.device)
        work = functools.partial(_repeat, functools.partial(teacher_states, bench.targets.teacher, audio))
        found[str(batch)] = speed(bench, work, 2 * bench.size.steps, batch, 2 * bench.macs(bench.size.teacher))
    bench.targets.teacher.encoder.cpu()
    return found


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def trainings(bench: Bench, task: Task) -> dict[str, Any]:
    """By batch. A step of joint tuning hears two batches."""
    found, heard = {}, 1 if task == "distillation" else 2
    for batch in bench.size.batches:
        work = trainer(bench, task, batch)
        found[str(batch)] = speed(bench, work, bench.size.steps, heard * batch, 6 * bench.macs(bench.architecture))
    return found


def streams(bench: Bench) -> dict[str, float]:
    """Clips a second that one process makes for distillation, by batch: what trainings cannot outrun."""
    found = {}
    for batch in bench.size.batches:
        stream = distillation_stream(bench.targets, batch, Augmentation(), 0)
        steps = itertools.count()
        seconds = timed(torch.device("cpu"), lambda: _repeat(lambda: stream(next(steps)), bench.size.steps))  # noqa: B023
        found[str(batch)] = batch * bench.size.steps / seconds
    return found


def losses_beside_the_cpu(bench: Bench) -> dict[str, Any]:
    """The same first steps here, and on the CPU in float32. Raises AssertionError where they differ by more than TOLERANCE."""
    found: dict[str, Any] = {"tolerance": TOLERANCE}
    tasks: tuple[Task, ...] = ("distillation", "joint tuning")
    for task in tasks:
        here = trainer(bench, task, COMPARED_BATCH)(COMPARED_STEPS)
        with float32():
            there = trainer(dataclasses.replace(bench, device=torch.device("cpu")), task, COMPARED_BATCH)(COMPARED_STEPS)
        worst = max(abs(a / b - 1) for a, b in zip(here, there, strict=True))
        assert worst <= TOLERANCE, f"{task}: {here} here, {there} on the CPU"
        found[task] = {"here": here, "cpu_float32": there, "largest_difference": worst}
    return found


@contextmanager
def float32() -> Iterator[None]:
    before = os.environ.get("SRLNAS_PRECISION")
    os.environ["SRLNAS_PRECISION"] = "float32"
    try:
        yield
    finally:
        os.environ.pop("SRLNAS_PRECISION") if before is None else os.environ.update(SRLNAS_PRECISION=before)


def together(bench: Bench, folder: Path) -> dict[str, Any]:
    """Clips a second of all processes, by how many train at once, each a student of its own at the smallest batch."""
    batch = bench.size.batches[0]
    found = {str(count): crowd(folder, count) * batch * bench.size.steps for count in bench.size.together}
    return {"batch": batch, "clips_per_second": found}


def crowd(folder: Path, count: int) -> float:
    """Trainings a second of so many processes that begin together."""
    command = [sys.executable, __file__, "--trainee", str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    trainees = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        for trainee in trainees:
            assert trainee.stdout.readline() == "ready\n", "a process did not come up"
        for trainee in trainees:
            trainee.stdin.write("go\n")
            trainee.stdin.flush()
        seconds = [float(trainee.stdout.readline()) for trainee in trainees]
    finally:
        for trainee in trainees:
            trainee.communicate()
    return count / max(seconds)


def be_a_trainee(bench: Bench) -> None:
    train = trainer(bench, "distillation", bench.size.batches[0])
    train(2)
    print("ready", flush=True)
    sys.stdin.readline()
    print(timed(bench.device, lambda: train(bench.size.steps)), flush=True)


def compiling(bench: Bench) -> dict[str, Any]:
    """The same distillation plain and compiled: seconds of the first step and of one after, and the steps that win them back."""
    batch, steps, usual, found = bench.size.batches[0], bench.size.many, precision.COMPILED_STEPS, dict[str, Any]()
    for name, least in (("plain", 10**9), ("compiled", 1)):
        precision.COMPILED_STEPS = least
        train = trainer(bench, "distillation", batch)
        first = timed(bench.device, lambda: train(1))  # noqa: B023
        found[name] = {"first_step_s": first, "step_s": timed(bench.device, lambda: train(steps)) / steps}  # noqa: B023
    precision.COMPILED_STEPS = usual
    gained = found["plain"]["step_s"] - found["compiled"]["step_s"]
    lost = found["compiled"]["first_step_s"] - found["plain"]["first_step_s"]
    pays = lost / gained if gained > 0 and lost > 0 else None
    return {"batch": batch, **found, "pays_after_steps": pays, "threshold": usual, "compiles_here": bench.device.type == "cuda"}


def gpu_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-m", "gpu", GPU_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    return {"exit": done.returncode, "said": lines[-1] if lines else ""}


def report(bench: Bench, folder: Path, out: Path) -> None:
    """Written anew after each part: a machine that is only lent may be gone before the last."""
    began = time.monotonic()
    found: dict[str, Any] = {
        "device": device_name(bench.device),
        "precision": "bfloat16" if precision.autocast(bench.device)._enabled else "float32",
        "torch": torch.__version__,
        "teacher_macs": bench.macs(bench.size.teacher),
        "student_macs": bench.macs(bench.architecture),
    }
    parts: Mapping[str, Callable[[], Any]] = {
        "teacher_forward": lambda: forwards(bench),
        "streams_clips_per_second": lambda: streams(bench),
        "distillation": lambda: trainings(bench, "distillation"),
        "joint_tuning": lambda: trainings(bench, "joint tuning"),
        "losses": lambda: losses_beside_the_cpu(bench),
        "together": lambda: together(bench, folder),
        "compiling": lambda: compiling(bench),
        "gpu_tests": gpu_tests,
    }
    for name, measure in parts.items():
        found |= {name: measure(), "seconds": time.monotonic() - began}
        out.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{json.dumps({name: found[name]})}\n{name}: {found['seconds']:.0f} s so far", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu.json"))
    parser.add_argument("--trainee", type=Path, help="one of several processes, whose states lie in this folder")
    asked = parser.parse_args(arguments)
    device = pick_device()
    size = FULL if device.type == "cuda" else MINIATURE
    if asked.trainee:
        be_a_trainee(open_bench(size, asked.trainee, device))
        return
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report(open_bench(size, Path(folder), device), Path(folder), asked.out)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
