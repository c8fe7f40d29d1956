"""Trains every student of the space edge-96 and records its scores and seconds at every rung: what searches are replayed on.

Each is trained by itself, 16 of them with three seeds, and (`--warm`) each with the weights of one shared student. One line a
training in OUT/records.jsonl; an interrupted recording goes on. `--table` measures latencies (on an otherwise idle machine) and
writes the Parquet table. The trainings are the project's own (`nas.evaluate`), on real speech, without Ray.
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

from deploy.measure import Measurement
from nas.budget import append_line, read_lines
from nas.calibrate import calibrate, measure_students
from nas.config import StudyConfig
from nas.evaluate import SHARED_FILE, Task, distil_shared, evaluate, open_context, task_from_json, task_json
from nas.progress import console, progress
from nas.study import Study
from search_spaces.architecture import Architecture
from search_spaces.catalog import find_space
from trainers.recipe import Recipe
from trainers.student import load_student
from trainers.teacher import load_teacher

SPACE, SEEDS, REPEATED = "edge-96", 3, 16
RUNGS, REDUCTION, STEPS = 2, 3, 324
WARM_RUNGS, WARM_STEPS, WARM_RATE, SHARED_STEPS = 2, 81, 5e-4, 648
WARM = "warm"
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
        training(study, architecture, WARM, start="shared student", distill_steps=0, finetune_steps=WARM_STEPS, rungs=WARM_RUNGS)
        for architecture in members(study.config.teacher)
    ]


def prepare_shared(folder: str) -> float:
    """Trains the shared student, if it is not there; returns its CPU seconds."""
    began = time.process_time()
    distil_shared(folder, SHARED_STEPS)
    return time.process_time() - began


def trainings(study: Study) -> list[Task]:
    architectures = members(study.config.teacher)
    wanted = [(seed, a) for seed in range(SEEDS) for a in (architectures[:REPEATED] if seed else architectures)]
    lengths = {"distill_steps": STEPS, "finetune_steps": STEPS}
    return [training(study, a, seed, start="kept layers", **lengths, rungs=1 if seed else RUNGS, seed=seed) for seed, a in wanted]


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
    records, until = study.folder / "records.jsonl", time.monotonic() + seconds
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


def latencies(study: Study) -> dict[str, Measurement]:
    """Of one student of each architecture, by key, in fp32 on this machine, in groups that are measured side by side."""
    context = open_context(study)
    profile = calibrate(context.target, context.teacher, study.config.recipe.heads)
    keys = [architecture.key for architecture in members(study.config.teacher)]
    found = dict[str, Measurement]()
    for first in range(0, len(keys), GROUP):
        students = {key: load_student(study.weights_folder(f"{key}-0")) for key in keys[first : first + GROUP]}
        found |= {key: taken.measurement for key, taken in measure_students(students, context.target, profile).items()}
        print(f"{len(found)} of {len(keys)} measured", flush=True)
    return found


def write_table(study: Study, path: Path) -> None:
    """One row a training and rung; the seconds of the shared student in the file's metadata."""
    measured, warm = latencies(study), study.folder / WARM
    rows = [
        row
        for records in (study.folder / "records.jsonl", warm / "records.jsonl")
        for record in read_lines(records)
        for row in rows_of(record, measured)
    ]
    shared = sum(float(line["seconds"]) for line in read_lines(warm / "shared.jsonl"))
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"shared_seconds": str(shared)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    print(f"{len(rows):,} rows in {path}, {path.stat().st_size / 1e3:.0f} kB")


def rows_of(record: Mapping[str, Any], measured: Mapping[str, Measurement]) -> Iterator[dict[str, Any]]:
    architecture = Architecture.from_dict(record["architecture"])
    latency, is_warm = measured[architecture.key], record["name"].endswith(WARM)
    for rung in record["rungs"]:
        seconds = rung["cpu_seconds"]
        yield {
            "key": architecture.key,
            "start": "shared student" if is_warm else "kept layers",
            "seed": record["seed"],
            "rung": rung["rung"],
            "distill_steps": rung["lengths"][0],
            "finetune_steps": rung["lengths"][1],
            **{name: rung["scores"][name] for name in SCORES},
            "distill_seconds": seconds["distillation"],
            "finetune_seconds": seconds["fine-tuning"],
            "score_seconds": seconds["scoring"],
            "latency_ms": latency.milliseconds,
            "latency_low": latency.low,
            "latency_high": latency.high,
            "memory_bytes": latency.peak_memory,
            **record["architecture"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--trials", required=True)
    parser.add_argument("--noise")
    parser.add_argument("--teacher", default="mini")
    parser.add_argument("--cache", default="studies/.cache")
    parser.add_argument("--out", type=Path, default=Path("build/bench/search"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Begin no training after so long.")
    parser.add_argument("--warm", action="store_true", help="Record trainings that begin with a shared student's weights.")
    parser.add_argument("--table", type=Path, help="Measure latencies and write this table of what is recorded.")
    asked = parser.parse_args()
    config = StudyConfig(
        name=SPACE,
        space=SPACE,
        teacher=asked.teacher,
        data=tuple(asked.data),
        trials=asked.trials,
        noise=asked.noise,
        cache=asked.cache,
        recipe=Recipe(rate=WARM_RATE if asked.warm else RATE),
    )
    asked.out = asked.out / WARM if asked.warm else asked.out
    asked.out.mkdir(parents=True, exist_ok=True)
    config.write(asked.out / "study.toml")
    study = Study(folder=asked.out, config=config)
    open_context(study)  # decodes and computes once what the workers then map
    if asked.table:
        write_table(study, asked.table)
    else:
        every = warm_trainings(study) if asked.warm else trainings(study)
        if asked.warm and not (study.folder / SHARED_FILE).is_file():
            spent = ProcessPoolExecutor(1, multiprocessing.get_context("spawn")).submit(prepare_shared, str(study.folder.resolve()))
            append_line(study.folder / "shared.jsonl", {"seconds": spent.result()})
        record(study, every, asked.workers, asked.seconds)


if __name__ == "__main__":
    main()
