"""What the search itself costs: a thousand candidates whose training is a table look-up, through real Ray, Optuna and MLflow.

own: seconds a candidate in our searcher, scheduler, ledger, records and MLflow, in the driver; total: with Ray, on an idle machine.
beside: CPU seconds of one real training beside its updates, scored on the draw and, as finals are, on all of validation.
`make bench-overhead` runs it.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import nas.stages.explore
from nas.device.known import prepare_device
from nas.planning.admission import Admission
from nas.planning.pace import Pace
from nas.planning.plan import Plan
from nas.proposals.scheduler import RungScheduler
from nas.proposals.searcher import StudySearcher
from nas.study.budget import Budget
from nas.study.config import StudyConfig
from nas.study.folder import create_study
from nas.tracking.mirror import open_tracking
from nas.worker import cluster
from nas.worker.context import context_of, open_context, space_of
from nas.worker.evaluate import evaluate
from nas.worker.task import Task, task_from_json
from search_spaces.space import RandomChooser
from trainers.importing.synthetic import speak_corpus

PAGE = os.sysconf("SC_PAGESIZE")
MEMBERS = 4
SETTLED = 0.2  # of the candidates, after which memory is compared


def trivial(config: dict[str, Any]) -> None:
    """A training of no time, with scores that depend on the architecture and improve with the rung."""
    from ray import tune

    task = task_from_json(config["task"])
    seen = int(config["number"] * 2654435761 % 1000) / 1000
    for rung in range(1, task.rungs + 1):
        errors = {"keyword_error": 60 * seen + 30 / rung, "eer": 20 + 20 * (1 - seen) / rung}
        scores = {**errors, "latency_ms": 1 + 3 * seen, "params": 1e6}
        state = "complete" if rung == task.rungs else "running"
        tune.report({"report": json.dumps({"state": state, "rung": rung, "scores": scores, "seconds": 0.0})})


class Timed:
    """Seconds inside of methods, each counted once however they call each other."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def wrap(self, owner: type, name: str) -> None:
        method = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began, self.depth = time.perf_counter(), self.depth + 1
            try:
                return method(*arguments, **options)
            finally:
                self.depth -= 1
                self.seconds += (time.perf_counter() - began) * (self.depth == 0)

        setattr(owner, name, timed)


def run(folder: Path, candidates: int) -> dict[str, float]:
    os.chdir(folder)
    speak_corpus(Path("spoken.parquet"), speakers=14, clips_per_keyword=1)
    config = StudyConfig(name="overhead", space="default", data=("spoken.parquet",), candidates=candidates, cpus=1.0)
    study = create_study(config)
    context = open_context(study)
    prepare_device(study, context.teacher)
    plan = Plan(
        distill_steps=90,
        finetune_steps=90,
        rungs=3,
        reduction=3,
        candidates=candidates,
        finalists=1,
        shared_steps=0,
        shared_seconds=0.0,
        search_seconds=1e9,
        final_seconds=0.0,
    )
    cluster.connect()
    budget, own = Budget(resource="cpu", seconds=1e9), Timed()
    for name in ("suggest", "on_trial_complete"):
        own.wrap(StudySearcher, name)
    for name in ("on_trial_result", "on_trial_error"):
        own.wrap(RungScheduler, name)
    nas.stages.explore.trainable = trivial
    pace = Pace(per_clip=1e-6, per_mac=0.0, scored=0, batch=16)
    sizes = list[tuple[int, float]]()
    tracking = open_tracking("sqlite:///runs.db", "overhead")
    admission = Admission(context, plan, pace, cluster.account_of(study, budget))
    exploration = nas.stages.explore.Exploration(admission, tracking, noted(sizes))
    assert space_of(context).size > candidates
    began = time.perf_counter()
    exploration.run()
    total = time.perf_counter() - began
    trained = sum(candidate.state in ("complete", "stopped") for candidate in study.candidates())
    settled = sizes[int(SETTLED * len(sizes))][1]
    return {
        "candidates": trained,
        "own_seconds": own.seconds / trained,
        "total_seconds": total / trained,
        "rss_growth_mb": (sizes[-1][1] - settled) / 1e6,
    }


def beside(corpus: tuple[str, ...], trials: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """By part, of members of `edge` with an update of each kind: means. The first training, which opens what a worker keeps open,
    is left out. With SRLNAS_PRECISION=float32, ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and MKL_ENABLE_INSTRUCTIONS=AVX2
    in the environment it imitates a processor that has no more than that."""
    torch.set_num_threads(1)
    study = create_study(StudyConfig(name="beside", space="edge", data=corpus, trials=trials, target_windows=512))
    folder = str(study.folder.resolve())
    context = context_of(folder)
    space, chooser = space_of(context), RandomChooser(random.Random(0))
    members = [space.smallest(context.teacher.geometry), *(space.architecture(chooser) for _ in range(MEMBERS))]
    parts = {"draw": list[dict[str, float]](), "all": list[dict[str, float]]()}
    for number, member in enumerate(members):
        for name, found in parts.items():
            task = Task(
                study=folder,
                name=f"{name}-{number}",
                architecture=member.to_json(),
                start="kept layers",
                distill_steps=1,
                finetune_steps=1,
                splits=("val",),
                seed=0,
                draw=name == "draw",
            )
            (report,) = evaluate(task)
            found.append(report["cpu_seconds"])
    return {name: {part: fmean(one[part] for one in found[1:]) for part in found[0]} for name, found in parts.items()}


def noted(sizes: list[tuple[int, float]]) -> Callable[[float, float], None]:
    def note(done: float, total: float) -> None:
        sizes.append((len(sizes), float(Path("/proc/self/statm").read_text().split()[1]) * PAGE))

    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=1000, help="0: none, one training alone is timed")
    parser.add_argument("--data", type=Path, action="append", default=[], help="of the training; default: the embedded corpus")
    parser.add_argument("--trials", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("build/bench/overhead"))
    asked = parser.parse_args()
    out = asked.out.resolve() / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True)
    data, trials = (tuple(str(path.resolve()) for path in paths) for paths in (asked.data, asked.trials))
    found: dict[str, Any] = run(out, asked.candidates) if asked.candidates else {}
    os.chdir(out)
    found["beside"] = beside(data, trials)
    (out / "overhead.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
