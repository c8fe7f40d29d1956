"""Searches replayed on the recorded trainings of edge-96: which way of searching spends a budget best. `make bench-search` runs it.

The project's own searcher and rungs propose and stop; a training takes the seconds that were recorded and has the scores that were
recorded. Every method has the resource-seconds of 32 full trainings. With early stopping a candidate pays for each rung that it
finished, fine-tuning and scoring included; without, for one distillation, one fine-tuning and one scoring.
"""

import argparse
import heapq
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import kendalltau

from nas.proposals.scheduler import Rungs
from nas.proposals.searcher import Hooks, StudySearcher
from nas.stages.explore import first_candidates
from nas.study.candidates import OBJECTIVES, Candidate
from nas.study.config import Sampler
from nas.study.pareto import Points, hypervolume, non_dominated
from search_spaces.architecture import Architecture
from search_spaces.catalog import find_space
from trainers.teacher.teacher import load_teacher

HERE = Path(__file__).parent
TABLE, RESULT = HERE / "edge-96/trainings.parquet", HERE / "results/search.json"
SPACE, TEACHER = "edge-96", load_teacher("mini-hubert")
FULL_TRAININGS, SEEDS, WORKERS, CANDIDATES, REDUCTION = 32, 30, 4, 100, 3
OURS = "srlnas"
Start = Literal["kept layers", "shared student"]
REFERENCE = np.array([30.0, 30.0, 5.0])  # keyword error %, EER %, ms: behind what every training of the table ends at
GRID = np.linspace(0, 1, 201)  # of the budget


@dataclass(frozen=True)
class Method:
    """stops: rungs (from 1) at which a candidate may be stopped. first: whether it tries what a search tries first. start: of
    trainings."""

    sampler: Sampler
    stops: tuple[int, ...] = ()
    first: bool = False
    start: Start = "kept layers"


METHODS: Mapping[str, Method] = {
    "random": Method("random"),
    "NSGA-II": Method("nsga2"),
    "TPE": Method("tpe"),
    "random, early stopping": Method("random", stops=(1,)),
    "GP": Method("gp"),
    "TPE, shared student": Method("tpe", first=True, start="shared student"),
    OURS: Method("gp", first=True, start="shared student"),
}


@dataclass(frozen=True)
class Training:
    """Of one architecture: points (rungs, objectives); seconds (rungs,) of distillation since the rung before, and of what every
    rung does anew, fine-tuning and scoring."""

    points: Points
    distilling: Points
    tuning: Points

    def seconds(self, before: int, rung: int) -> float:
        """From the end of a rung (0: the beginning) to that of a later one."""
        return float(self.distilling[before:rung].sum() + self.tuning[rung - 1])

    @property
    def full_seconds(self) -> float:
        return self.seconds(0, len(self.points))


@cache
def recorded() -> tuple[list[dict[str, Any]], float]:
    """The rows, by rung, and the seconds of the shared student."""
    table = pq.read_table(TABLE)
    return sorted(table.to_pylist(), key=lambda row: int(row["rung"])), float(table.schema.metadata[b"shared_seconds"])


@cache
def trainings(start: Start, seed: int = 0) -> dict[str, Training]:
    """By the architecture's key."""
    by_key = dict[str, list[dict[str, Any]]]()
    for row in recorded()[0]:
        if (row["start"], row["seed"]) == (start, seed):
            by_key.setdefault(row["key"], []).append(row)
    return {key: _training(rungs) for key, rungs in by_key.items()}


def _training(rungs: Sequence[Mapping[str, Any]]) -> Training:
    return Training(
        points=np.array([[row[objective.name] for objective in OBJECTIVES] for row in rungs], float),
        distilling=np.array([row["distill_seconds"] for row in rungs]),
        tuning=np.array([row["finetune_seconds"] + row["score_seconds"] for row in rungs]),
    )


class Replay:
    """One search on simulated workers: the driver's side of `nas.stages.explore`, its trainings looked up."""

    def __init__(self, method: Method, seed: int, budget: float) -> None:
        self.method, self.table, self.budget = method, trainings(method.start), budget
        self.rungs = Rungs(REDUCTION)
        self.running, self.done = dict[int, Candidate](), list[tuple[float, Sequence[float]]]()
        self.spent = recorded()[1] if method.start == "shared student" else 0.0
        self.queue = list[tuple[float, int, str]]()
        space = find_space(SPACE, TEACHER.architecture, TEACHER.geometry)
        first = first_candidates(space, TEACHER.architecture, TEACHER.geometry) if method.first else ()
        hooks = Hooks(
            refusal=lambda _: None,
            affordable=lambda _: self.spent < self.budget,
            started=self.started,
            refused=lambda *_: None,
            finished=lambda number: self.running.pop(number),
            latency=lambda architecture: float(self.table[architecture.key].points[-1, -1]),
            seconds=lambda architecture: self.table[architecture.key].full_seconds,
        )
        self.searcher = StudySearcher(space, hooks, history=(), seed=seed, limit=None, sampler=method.sampler, first=first)

    def started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        self.running[number] = Candidate(number=number, architecture=architecture, state="running")
        return {"number": number}

    def run(self) -> list[tuple[float, Sequence[float]]]:
        """(resource-seconds spent by then, objectives) of each candidate that finished the last rung."""
        clock, started = 0.0, 0
        while True:
            while len(self.running) < WORKERS:
                config = self.searcher.suggest(str(started))
                if not isinstance(config, dict):
                    break
                self.enter(clock, config["number"], str(started))
                started += 1
            if not self.queue:
                return self.done
            clock, number, trial = heapq.heappop(self.queue)
            if self.goes_on(number):
                self.enter(clock, number, trial)
            else:
                self.searcher.on_trial_complete(trial)

    def enter(self, clock: float, number: int, trial: str) -> None:
        """To the next rung at which it may be stopped, or to the last."""
        heapq.heappush(self.queue, (clock + self.next_rung(number)[1], number, trial))

    def next_rung(self, number: int) -> tuple[int, float]:
        """And the seconds up to there."""
        candidate = self.running[number]
        training = self.table[candidate.architecture.key]
        rung = next(stop for stop in (*self.method.stops, len(training.points)) if stop > candidate.rung)
        return rung, training.seconds(candidate.rung, rung)

    def goes_on(self, number: int) -> bool:
        """What the candidate paid for is spent when it is reached; what would end beyond the budget does not count."""
        rung, seconds = self.next_rung(number)
        points = self.table[self.running[number].architecture.key].points
        self.spent += seconds
        point = points[rung - 1].tolist()
        is_best = rung < len(points) and self.rungs.goes_on(rung, point)
        state = "complete" if rung == len(points) else "running" if is_best and self.spent < self.budget else "stopped"
        scores = dict(zip((objective.name for objective in OBJECTIVES), point, strict=True))
        self.running[number] = replace(self.running[number], rung=rung, state=state, scores=scores)  # type: ignore[arg-type]
        if state == "complete" and self.spent <= self.budget:
            self.done.append((self.spent, point))
        return state == "running"


def curve(name: str, seed: int) -> list[float]:
    """Hypervolume of the front at each point of the grid, as a share of that of every training of the table."""
    budget = full_budget()
    done = Replay(METHODS[name], seed, budget).run()
    ends = np.array([spent for spent, _ in done]) / budget
    volumes, front = [0.0], np.empty((0, len(OBJECTIVES)))
    for _, point in done:
        front = np.vstack([front, point])
        front = front[non_dominated(front)]
        volumes.append(hypervolume(front, REFERENCE))
    return [volumes[int((ends <= share).sum())] / whole_hypervolume() for share in GRID]


@cache
def whole_hypervolume() -> float:
    every = [training.points[-1] for start in get_args(Start) for training in trainings(start).values()]
    return hypervolume(np.array(every), REFERENCE)


def full_budget() -> float:
    return FULL_TRAININGS * float(np.mean([training.full_seconds for training in trainings("kept layers").values()]))


def inheritance() -> dict[str, Any]:
    """What a shared student saves: the shortest rung of those that begin with it where both mean scores are no worse than those of
    students trained by themselves (mean of their seeds); and whether it ranks students as their own trainings do, as well as
    another seed."""
    by_seed, warm = [trainings("kept layers", seed) for seed in range(3)], trainings("shared student")
    alone, keys = by_seed[0], sorted(by_seed[1])
    wanted = np.mean([[trained[key].points[-1, :2] for key in keys] for trained in by_seed], (0, 1))
    rungs = len(next(iter(warm.values())).points)
    scores = [np.mean([warm[key].points[rung, :2] for key in keys], 0) for rung in range(rungs)]
    reached = next((rung for rung in range(rungs) if (scores[rung] <= wanted).all()), None)
    seconds = [np.mean([warm[key].seconds(0, rung + 1) for key in keys]) + recorded()[1] / CANDIDATES for rung in range(rungs)]
    full = float(np.mean([alone[key].full_seconds for key in keys]))
    return {
        "compute_ratio": None if reached is None else full / float(seconds[reached]),
        "architectures": len(keys),
        "rung": reached,
        "scores_by_rung": [rung.tolist() for rung in scores],
        "scores_alone": wanted.tolist(),
        "full_seconds": full,
        "inherited_seconds": [float(value) for value in seconds],
        "shared_seconds": recorded()[1],
        **rankings(by_seed, warm, keys, -1 if reached is None else reached),
    }


def rankings(
    by_seed: Sequence[Mapping[str, Training]], warm: Mapping[str, Training], keys: Sequence[str], reached: int
) -> dict[str, Any]:
    """Kendall's tau of errors with shared weights, on the rung that was reached and on each, to those of every seed alone; and of
    seeds to each other."""
    taus: dict[str, Any] = {"kendall_tau": {}, "kendall_tau_by_rung": {}, "seed_tau": {}}
    for task, name in enumerate(("keyword_error", "eer")):
        seeds = [np.array([trained[key].points[-1, task] for key in keys]) for trained in by_seed]
        rungs = np.array([warm[key].points[:, task] for key in keys]).T
        by_rung = [float(np.mean([kendalltau(rung, seed).statistic for seed in seeds])) for rung in rungs]
        taus["kendall_tau"][name], taus["kendall_tau_by_rung"][name] = by_rung[reached], by_rung
        taus["seed_tau"][name] = float(np.mean([kendalltau(a, b).statistic for a, b in combinations(seeds, 2)]))
    return taus


def shares_to_reach(curves: Points, value: float) -> Points:
    """(seeds,) share of the budget at which each search has the hypervolume; infinity where it has not."""
    reached = curves >= value
    return np.where(reached.any(1), GRID[reached.argmax(1)], np.inf)


def interval(values: Points) -> dict[str, float]:
    """Median with a 95 % bootstrap interval over seeds."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975], method="nearest")
    return {"value": float(np.median(values)), "low": float(low), "high": float(high)}


def results(curves: Mapping[str, Points]) -> dict[str, Any]:
    ours = curves[OURS]
    ratios = {
        name: shares_to_reach(ours, float(np.median(curves[of][:, -1])))
        for name, of in (("random", "random"), ("nsga2", "NSGA-II"))
    }
    return {
        "budget_ratio_vs_random": float(np.median(ratios["random"])),
        "budget_ratio_vs_nsga2": float(np.median(ratios["nsga2"])),
        "budget_ratio_intervals": {f"vs_{name}": interval(shares) for name, shares in ratios.items()},
        "final_hypervolume": {name: float(np.median(found[:, -1])) for name, found in curves.items()},
        "final_hypervolume_intervals": {name: interval(found[:, -1]) for name, found in curves.items()},
        "budget_seconds": full_budget(),
        "inheritance": inheritance(),
        "seeds": SEEDS,
        "reference_point": REFERENCE.tolist(),
    }


def markdown(curves: Mapping[str, Points]) -> str:
    """The README's table: hypervolume at the end, and the share of the budget at which a method has that of random."""
    random_ends = float(np.median(curves["random"][:, -1]))
    lines = ["| search | hypervolume at the end | has that of random after |", "|---|---|---|"]
    for name, found in curves.items():
        end, share = interval(found[:, -1]), interval(shares_to_reach(found, random_ends))
        low, middle, high = (f"{share[part]:.0%}".replace("inf%", "never") for part in ("low", "value", "high"))
        after = "" if name == "random" else "never" if middle == "never" else f"{middle} [{low}, {high}] of the budget"
        lines.append(f"| {name} | {end['value']:.3f} [{end['low']:.3f}, {end['high']:.3f}] | {after} |")
    return "\n".join(lines) + "\n"


def plot(curves: Mapping[str, Points], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, found in curves.items():
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75], axis=0)
        (line,) = axes.plot(GRID * FULL_TRAININGS, middle, label=name, linewidth=2.5 if name == OURS else 1.5)
        axes.fill_between(GRID * FULL_TRAININGS, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="budget spent, full trainings", ylabel="hypervolume, share of the whole table's", ylim=(0.4, 1.0))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/search"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = {name: pool.map(curve, [name] * SEEDS, range(SEEDS)) for name in METHODS}
        curves = {name: np.array(list(values)) for name, values in found.items()}
    replayed = results(curves)
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    (asked.out / "search.json").write_text(json.dumps({**known, **replayed}, indent=2) + "\n")
    (asked.out / "search.md").write_text(markdown(curves))
    plot(curves, asked.out / "search.png")
    print(json.dumps(replayed, indent=2))


if __name__ == "__main__":
    main()
