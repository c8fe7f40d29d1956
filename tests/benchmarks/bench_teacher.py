"""What a Base-size teacher costs in training: clips a second and peak memory, side by side. `make bench-teacher` runs it.

A clip is one window of 16,080 samples. The jobs take turns, so that all of them meet the same machine, and each job's memory is the
peak of a process of its own. On a GPU everything runs in bfloat16, and model FLOPs utilisation is clips a second times twice
the MACs of a clip (three times that in training) over the card's dense bfloat16 peak, from its data sheet.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_size import (
    BASE,
    GEOMETRY,
    WINDOW,
    device_name,
    macs_of,
    noise_corpus,
    peak_flops,
    random_teacher,
    student_of,
    timed,
)

from search_spaces.architecture import Architecture
from search_spaces.catalog import CATALOG, paper_student
from search_spaces.space import RandomChooser
from trainers.learning.batches import Augmentation
from trainers.learning.distill import distill
from trainers.learning.finetune import finetune
from trainers.learning.precision import autocast, pick_device
from trainers.learning.recipe import Recipe
from trainers.learning.targets import prepare_targets, teacher_states

SMALL_MACS = 0.8e9  # of the small student, a second of speech
FLAT_STEPS = 1_000
Job = Callable[[int], float]  # steps -> seconds they took


def small_student() -> Architecture:
    """The largest of 1,000 draws of the space `default` that needs at most 0.8 GMACs a second of speech."""
    space = CATALOG["default"](BASE, GEOMETRY)
    drawn = [space.architecture(RandomChooser(random.Random(seed))) for seed in range(1000)]
    costs = {architecture: macs_of(architecture) for architecture in drawn}
    return max((a for a in drawn if costs[a] <= SMALL_MACS), key=costs.__getitem__)


def make_jobs(folder: Path, batch: int, device: torch.device, wanted: str | None = None) -> dict[str, Job]:
    """Each job trains the same student on from call to call. With `wanted` only that one is made, for its memory alone."""
    teacher = random_teacher()
    corpus = noise_corpus(folder)
    students = {"paper's student": paper_student(BASE), "small student": small_student()}

    def forward(steps: int) -> float:
        audio = 0.1 * torch.randn(batch, WINDOW, device=device)
        return timed(device, lambda: [teacher_states(teacher, audio) for _ in range(steps)])

    def distilling(architecture: Architecture, mode: Any) -> Job:
        targets = prepare_targets(teacher, corpus, folder, window=WINDOW, limit=256, seed=0, mode=mode, device=device)
        if mode == "cached":
            teacher.encoder.cpu()
        student = student_of(architecture, teacher, distilled=True).to(device)

        def job(steps: int) -> float:
            recipe = Recipe(batch=batch, distill_rate=1e-5)
            return timed(
                device, lambda: distill(student, targets, recipe, steps=steps, augment=Augmentation(), seed=0, device=device)
            )

        return job

    def finetuning(architecture: Architecture) -> Job:
        student = student_of(architecture, teacher, distilled=False).to(device)

        def job(steps: int) -> float:
            recipe = Recipe(batch=batch // 2, rate=1e-5)  # a step is two batches
            options: Any = {"window": WINDOW, "augment": Augmentation(), "seed": 0, "device": device}
            return timed(device, lambda: finetune(student, corpus, recipe, steps=steps, **options))

        return job

    makers: dict[str, Callable[[], Job]] = {"teacher's forward": lambda: forward}
    for name, architecture in students.items():
        for mode in ("online", "cached"):
            makers[f"distil {name}, {mode}"] = partial(distilling, architecture, mode)
        makers[f"fine-tune {name}"] = partial(finetuning, architecture)
    return {name: make() for name, make in makers.items() if wanted in (None, name)}


def clips_per_second(jobs: dict[str, Job], batch: int, steps: int, rounds: int) -> dict[str, float]:
    """The median over rounds in which the jobs take turns; a first round warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            took = job(steps)
            if turn:
                seconds[name].append(took)
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
    return {name: batch * steps / float(np.median(times)) for name, times in seconds.items()}


def peak_memory(device: torch.device) -> float:
    """MB of this process so far: the GPU's where it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    # not getrusage: a process begins with the peak of the one that started it
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1.024 / 1e3


def resident(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def flatness(folder: Path, device: torch.device) -> dict[str, float]:
    """Memory after 100 and after 1,000 cached distillation steps of the small student, in one call of `distill`."""
    job_batch, seen = 4, dict[int, float]()
    teacher = random_teacher()
    targets = prepare_targets(teacher, noise_corpus(folder), folder, window=WINDOW, limit=256, seed=0, mode="cached", device=device)
    student = student_of(small_student(), teacher, distilled=True)

    def progress(done: int, total: int) -> None:
        if done in (100, FLAT_STEPS):
            seen[done] = resident(device)

    recipe = Recipe(batch=job_batch, distill_rate=1e-5)
    distill(student, targets, recipe, steps=FLAT_STEPS, augment=Augmentation(), seed=0, device=device, progress=progress)
    return {"steps": FLAT_STEPS, "mb_after_100": seen[100], "growth_mb": seen[FLAT_STEPS] - seen[100]}


def in_its_own_process(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def utilisation(name: str, speed: float, device: torch.device) -> float | None:
    """Of the card's peak, where that is known; the teacher's forward inside an online step is counted."""
    peak = peak_flops(device)
    if peak is None:
        return None
    hears_teacher, trains = "teacher" in name or "online" in name, "teacher" not in name
    student = paper_student(BASE) if "paper" in name else small_student()
    flops = 2 * macs_of(BASE) * hears_teacher + 6 * macs_of(student) * trains
    return speed * flops / peak


def report(folder: Path, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    device = pick_device()
    jobs = make_jobs(folder, batch, device)
    speeds = clips_per_second(jobs, batch, steps, rounds)
    memory = {name: in_its_own_process("--memory", name, "--batch", str(batch), "--folder", str(folder)) for name in jobs}
    small = small_student()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16 autocast"
        if autocast(device).fast_dtype == torch.bfloat16 and autocast(device)._enabled
        else "float32",
        "torch": torch.__version__,
        "batch": batch,
        "small_student": {"architecture": json.loads(small.to_json()), "macs": macs_of(small)},
        "jobs": {
            name: {
                "clips_per_second": round(speed, 2),
                "peak_mb": round(memory[name], 1),
                **({"utilisation": utilisation(name, speed, device)} if device.type == "cuda" else {}),
            }
            for name, speed in speeds.items()
        },
        "cached_over_online": {
            name: round(speeds[f"distil {name}, cached"] / speeds[f"distil {name}, online"], 2)
            for name in ("paper's student", "small student")
        },
        "flat": in_its_own_process("--flat", "--folder", str(folder)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/teacher.json"))
    parser.add_argument("--batch", type=int, default=64 if torch.cuda.is_available() else 8)
    parser.add_argument("--steps", type=int, default=20 if torch.cuda.is_available() else 2, help="of a job in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", metavar="JOB", help="run this job alone and print its peak memory in MB")
    parser.add_argument("--folder", type=Path, help="of the cached states, for the two options beside this one")
    parser.add_argument("--flat", action="store_true", help="print the growth of memory over 1,000 steps")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        if chosen.memory:
            make_jobs(folder, chosen.batch, pick_device(), chosen.memory)[chosen.memory](3)
            print(json.dumps(peak_memory(pick_device())))
        elif chosen.flat:
            print(json.dumps(flatness(folder, pick_device())))
        else:
            content = report(folder, chosen.batch, chosen.steps, chosen.rounds)
            chosen.out.parent.mkdir(parents=True, exist_ok=True)
            chosen.out.write_text(json.dumps(content, indent=2) + "\n")
            print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
