"""Trains every student of the space edge-96 and records its scores at every rung: what searches are replayed on.

alone: each student by itself, 16 of them with three seeds. warm: each with the weights of one shared student. time: the seconds of
some updates of each, all on one machine, so that they compare wherever and whenever a training was recorded. measure: latencies, on
an otherwise idle machine. table: all of it as Parquet. A line a student in a file below OUT; what was interrupted goes on. The
trainings are the project's own (`nas.worker.evaluate`), on real speech, without Ray.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.kit import hollow
from nas.device.calibrate import calibrate, measure_students
from nas.study.budget import append_line, read_lines
from nas.study.config import StudyConfig
from nas.study.folder import Study
from nas.study.progress import console, progress
from nas.worker.context import SHARED_FILE, open_context
from nas.worker.evaluate import build_student, distil_shared, evaluate
from nas.worker.task import Task, task_from_json, task_json
from search_spaces.architecture import Architecture
from search_spaces.catalog import find_space
from trainers.learning.recipe import Recipe
from trainers.teacher.teacher import load_teacher

SPACE, SEEDS, REPEATED = "edge-96", 3, 16
RUNGS, REDUCTION, STEPS = 2, 3, 324
WARM_RUNGS, WARM_STEPS, WARM_RATE, SHARED_STEPS = 3, 108, 8e-4, 1296
TIMED_STEPS = 16
STARTS = {"alone": "kept layers", "warm": "shared student"}
RECORDS, SHARED_SECONDS, LATENCIES = "records.jsonl", "shared.jsonl", "latencies.jsonl"
TABLE = Path(__file__).parent / "edge-96/trainings.parquet"
GROUP = 24  # students that are measured side by side
SCORES = ("keyword_error", "keyword_error_low", "keyword_error_high", "eer", "eer_low", "eer_high", "params", "macs")
RATE = 1.5e-3  # of fine-tuning: at this length better than the recipe's for two members, in both tasks


def members(teacher: str) -> list[Architecture]:
    """All students of the space, in an order that says nothing of them; the first ones are trained with every seed."""
    loaded = load_teacher(teacher)
    space = find_space(SPACE, loaded.architecture, loaded.geometry)
    fronts = [(front_end, width) for front_end, widths in space.front_widths.items() for width in widths]
    every = [
        Architecture(
            front_end=front_end,
            front_width=front_width,
            frame_stride=stride,
            width=width,
            heads=space.heads * len(kept),
            ffn_dims=space.ffn_dims * len(kept),
            kept_layers=kept,
        )
        for (front_end, front_width), stride, width, kept in product(fronts, space.frame_strides, space.widths, space.kept_layers)
    ]
    assert len(every) == space.size
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def warm_trainings(study: Study) -> list[Task]:
    """With a shared student's weights, at the rate that suits them."""
    return [
        training(study, architecture, "warm", start=STARTS["warm"], distill_steps=0, finetune_steps=WARM_STEPS, rungs=WARM_RUNGS)
        for architecture in members(study.config.teacher)
    ]


def timed_trainings(study: Study) -> list[Task]:
    """A few updates of everything, for their seconds alone."""
    lengths = {"distill_steps": TIMED_STEPS, "finetune_steps": TIMED_STEPS}
    return [
        training(study, architecture, "timed", start=STARTS["alone"], **lengths) for architecture in members(study.config.teacher)
    ]


def prepare_shared(folder: str) -> float:
    """Trains the shared student, if it is not there; returns its CPU seconds."""
    began = time.process_time()
    distil_shared(folder, SHARED_STEPS)
    return time.process_time() - began


def alone_trainings(study: Study) -> list[Task]:
    architectures = members(study.config.teacher)
    wanted = [(seed, a) for seed in range(SEEDS) for a in (architectures[:REPEATED] if seed else architectures)]
    lengths = {"distill_steps": STEPS, "finetune_steps": STEPS}
    return [training(study, a, seed, start=STARTS["alone"], **lengths, rungs=1 if seed else RUNGS, seed=seed) for seed, a in wanted]


def training(study: Study, architecture: Architecture, suffix: str | int, **fields: Any) -> Task:
    return Task(
        study=str(study.folder.resolve()),
        name=f"{architecture.key}-{suffix}",
        architecture=architecture.to_json(),
        splits=("val",),
        reduction=REDUCTION,
        sharing=True,
        **{"seed": 0, **fields},
    )


def train(text: str) -> dict[str, Any]:
    task = task_from_json(text)
    return {
        "name": task.name,
        "seed": task.seed,
        "architecture": json.loads(task.architecture),
        "rungs": [{**report, "lengths": length} for report, length in zip(evaluate(task), task.lengths(), strict=True)],
    }


def record(study: Study, every: Sequence[Task], workers: int, seconds: float) -> None:
    """Trains what is not recorded; begins nothing after so many seconds."""
    records, until = study.folder / RECORDS, time.monotonic() + seconds
    done = {line["name"] for line in read_lines(records)}
    waiting = [task for task in every if task.name not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, progress(console(), "trainings") as tick:
        running = {pool.submit(train, task_json(task)) for task in waiting[:workers]}
        del waiting[:workers]
        while running:
            ended = next(as_completed(running))
            running.remove(ended)
            append_line(records, ended.result())
            done.add(ended.result()["name"])
            print(f"{len(done)} of {len(every)}: {ended.result()['name']}", flush=True)
            tick(len(done), len(every))
            if waiting and time.monotonic() < until:
                running.add(pool.submit(train, task_json(waiting.pop(0))))


def measure(study: Study) -> None:
    """Each architecture in fp32 on this machine: hollow students, since weights cost the same whatever they are, in groups that are
    measured side by side."""
    context = open_context(study)
    profile = calibrate(context.target, context.teacher, study.config.recipe.heads)
    architectures = members(study.config.teacher)
    for first in range(0, len(architectures), GROUP):
        group = {a.key: hollow(build_student(context, a, "random", distilled=False)) for a in architectures[first : first + GROUP]}
        for key, taken in measure_students(group, context.target, profile).items():
            m = taken.measurement
            figures = {"latency_ms": m.milliseconds, "latency_low": m.low, "latency_high": m.high, "memory_bytes": m.peak_memory}
            append_line(study.folder / LATENCIES, {"key": key, **figures})
        print(f"{first + len(group)} of {len(architectures)} measured", flush=True)


def write_table(folder: Path, path: Path) -> None:
    """One row a training and rung; the seconds of the shared student in the file's metadata."""
    latencies = {line["key"]: line for line in read_lines(folder / "measure" / LATENCIES)}
    timed = seconds_each(folder / "time" / RECORDS)
    rows = [
        row
        for part in ("alone", "warm")
        for record in read_lines(folder / part / RECORDS)
        for row in rows_of(part, record, timed[record["name"].split("-")[0]], latencies)
    ]
    shared = sum(float(line["seconds"]) for line in read_lines(folder / "warm" / SHARED_SECONDS)) * clock(folder, timed)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"shared_seconds": str(shared)})
    pq.write_table(table, path, compression="zstd")
    print(f"{len(rows):,} rows in {path}, {path.stat().st_size / 1e3:.0f} kB")


def clock(folder: Path, timed: Mapping[str, Mapping[str, float]]) -> float:
    """Timed over recorded seconds of fine-tuning with shared weights: a few steps are dearer than many, and the shared student's
    seconds are of all its steps."""
    lasts = [(record["name"].split("-")[0], record["rungs"][-1]) for record in read_lines(folder / "warm" / RECORDS)]
    recorded = sum(rung["cpu_seconds"]["fine-tuning"] for _, rung in lasts)
    return sum(rung["lengths"][1] * timed[key]["fine-tuning"] for key, rung in lasts) / recorded


def seconds_each(records: Path) -> dict[str, dict[str, float]]:
    """CPU seconds of a student's distillation and fine-tuning step, and of scoring it, by its key."""
    steps = {"distillation": TIMED_STEPS, "fine-tuning": TIMED_STEPS, "scoring": 1}
    return {
        record["name"].split("-")[0]: {part: record["rungs"][0]["cpu_seconds"][part] / n for part, n in steps.items()}
        for record in read_lines(records)
    }


def rows_of(
    part: str, record: Mapping[str, Any], seconds: Mapping[str, float], latencies: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    key, distilled = Architecture.from_dict(record["architecture"]).key, 0
    for rung in record["rungs"]:
        distill_steps, finetune_steps = rung["lengths"]
        yield {
            **latencies[key],
            "start": STARTS[part],
            "seed": record["seed"],
            "rung": rung["rung"],
            "distill_steps": distill_steps,
            "finetune_steps": finetune_steps,
            **{name: rung["scores"][name] for name in SCORES},
            "distill_seconds": (distill_steps - distilled) * seconds["distillation"],
            "finetune_seconds": finetune_steps * seconds["fine-tuning"],
            "score_seconds": seconds["scoring"],
            **record["architecture"],
        }
        distilled = distill_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("alone", "warm", "time", "measure", "table"))
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--trials", required=True)
    parser.add_argument("--noise")
    parser.add_argument("--teacher", default="mini-hubert")
    parser.add_argument("--cache", default="studies/.cache")
    parser.add_argument("--out", type=Path, default=Path("build/bench/search"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Begin no training after so long.")
    asked = parser.parse_args()
    config = StudyConfig(
        name=SPACE,
        space=SPACE,
        teacher=asked.teacher,
        data=tuple(asked.data),
        trials=(asked.trials,),
        noise=asked.noise,
        cache=asked.cache,
        recipe=Recipe(rate=WARM_RATE if asked.part == "warm" else RATE),
    )
    if asked.part == "table":
        write_table(asked.out, TABLE)
        return
    study = Study(folder=asked.out / asked.part, config=config)
    study.folder.mkdir(parents=True, exist_ok=True)
    config.write(study.folder / "study.toml")
    open_context(study)  # decodes and computes once what the workers then map
    if asked.part == "measure":
        measure(study)
        return
    if asked.part == "warm" and not (study.folder / SHARED_FILE).is_file():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            seconds = apart.submit(prepare_shared, str(study.folder.resolve())).result()
        append_line(study.folder / SHARED_SECONDS, {"seconds": seconds})
    every = {"alone": alone_trainings, "warm": warm_trainings, "time": timed_trainings}[asked.part](study)
    record(study, every, asked.workers, asked.seconds)


if __name__ == "__main__":
    main()
