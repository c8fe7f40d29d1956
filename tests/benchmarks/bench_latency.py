"""How well a handful of measurements predicts latency and memory: students held out of calibration, from all search spaces.

Every student is measured once in fp32 and in int8, and the held-out ones a second time, much later: the noise floor. Then 20
calibration sets are chosen from the others, as `srlnas profile` chooses, and predict the held-out ones; so do the baselines,
from the same measurements. What is measured is kept in OUT/latency_rows.jsonl, so an interrupted run continues
(unless the machine, onnxruntime or the way to measure is another).
`make bench-latency` runs it on an idle machine, in about 20 minutes.
"""

import argparse
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import GradientBoostingRegressor

from deploy import measure as measuring
from deploy.export import reference_model
from deploy.kit import export_precision, hollow
from deploy.measure import device_facts, digest, measure
from nas.device.latency import LATENCY_PRIOR, MEMORY_PRIOR, SURE, latency_counts, memory_counts
from nas.device.profile import KEYWORDS
from nas.device.regression import Array, fit, most_informative
from search_spaces.architecture import Architecture
from search_spaces.catalog import find_space
from search_spaces.cost import cost
from search_spaces.space import RandomChooser
from trainers.learning.recipe import Recipe
from trainers.networks.student import Student
from trainers.teacher.teacher import load_teacher

WINDOW, PRECISIONS = 16_080, ("fp32", "int8")
HELD_OUT, POOL, SETS, CHUNK = 60, 90, 20, 10
SPACES = ("default", "edge", "paper")  # of which students are drawn
REFERENCE_MS = 1.0  # ratios are what counts; every figure is relative
TEACHER, HEADS = load_teacher("mini-hubert"), Recipe().heads
WORDS = tuple(f"word{number}" for number in range(KEYWORDS))

Predictor = Callable[[Sequence[int]], Array]  # calibration indices -> predictions for all students


def students() -> tuple[list[Architecture], list[Architecture]]:
    """Held out, a third from each space; and the pool to calibrate from, with the ends of each space. No one is in both."""
    chooser, spaces = RandomChooser(random.Random(1)), [find_space(n, TEACHER.architecture, TEACHER.geometry) for n in SPACES]
    pool = [end for space in spaces for end in (space.smallest(TEACHER.geometry), space.largest(TEACHER.geometry))]
    held_out = list[Architecture]()
    for wanted, number in ((held_out, HELD_OUT), (pool, POOL)):
        for draw in range(100 * number):
            drawn = spaces[draw % len(spaces)].architecture(chooser)
            if len(wanted) < number and drawn not in held_out and drawn not in pool:
                wanted.append(drawn)
    return held_out, list(dict.fromkeys(pool))


def jobs() -> Iterator[tuple[str, list[Architecture]]]:
    """Chunks to measure, in random order; the second round of the held-out ones at the end."""
    held_out, pool = students()
    everyone = [*held_out, *pool]
    random.Random(0).shuffle(everyone)
    for taken, of in (("first", everyone), ("second", held_out)):
        for start in range(0, len(of), CHUNK):
            yield taken, of[start : start + CHUNK]


def take(out: Path) -> list[dict[str, Any]]:
    lines = out.read_text().splitlines() if out.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["measured_by"] == measured_by()]
    done = {(row["round"], row["key"]) for row in rows}
    todo = list(jobs())
    for number, (taken, chunk) in enumerate(todo):
        left = [a for a in chunk if (taken, a.key) not in done]
        if left:
            began = time.monotonic()
            new = measured(left, taken)
            rows += new
            with out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
            print(f"{number + 1} of {len(todo)} chunks, {time.monotonic() - began:.0f} s", flush=True)
    return rows


def measured(chunk: Sequence[Architecture], taken: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        reference, paths = Path(folder) / "reference.onnx", []
        reference_model(reference, WINDOW)
        for architecture in chunk:
            student = hollow(Student(architecture, TEACHER.geometry, WORDS, heads=HEADS))
            for precision in PRECISIONS:
                paths.append(Path(folder) / f"{architecture.key}-{precision}.onnx")
                export_precision(student, paths[-1], WINDOW, precision)
        figures = measure(paths, reference, window=WINDOW, reference_ms=REFERENCE_MS, memory=True)
    found = dict(zip([path.stem for path in paths], map(dataclasses.asdict, figures)))
    return [
        {
            "round": taken,
            "measured_by": measured_by(),
            "key": a.key,
            "architecture": json.loads(a.to_json()),
            **{precision: found[f"{a.key}-{precision}"] for precision in PRECISIONS},
        }
        for a in chunk
    ]


def measured_by() -> str:
    """The machine, onnxruntime and the measuring file."""
    facts = device_facts()
    return f"{facts['cpu']}, onnxruntime {facts['onnxruntime']}, measure.py {digest(Path(measuring.__file__))[:12]}"


class Bench:
    """The measured students as arrays: held-out first, then the pool."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        held_out, pool = students()
        self.architectures, self.held_out = [*held_out, *pool], len(held_out)
        first = {row["key"]: row for row in rows if row["round"] == "first"}
        second = {row["key"]: row for row in rows if row["round"] == "second"}
        self.rows = [first[a.key] for a in self.architectures]
        self.again = [second[a.key] for a in held_out]
        self.costs = [cost(a, TEACHER.geometry, KEYWORDS, WINDOW, HEADS) for a in self.architectures]
        self.counts = np.stack([latency_counts(c) for c in self.costs])
        self.memory = np.stack([memory_counts(c) for c in self.costs])
        self.expected = self.counts @ np.array(LATENCY_PRIOR.values)

    def figures(self, precision: str, name: str) -> Array:
        return np.array([row[precision][name] for row in self.rows], dtype=float)

    def errors(self, precision: str) -> Array:
        high, low, ratio = (self.figures(precision, name) for name in ("ratio_high", "ratio_low", "ratio"))
        return (high - low) / (2 * SURE * ratio)

    def sets(self, number: int, most: float = float("inf")) -> list[list[int]]:
        """Calibration sets: the informative ones of a random half of the pool and its ends (of those expected below `most`)."""
        pool = [i for i in range(self.held_out, len(self.architectures)) if self.expected[i] <= most]
        ends = [min(pool, key=lambda i: self.expected[i]), max(pool, key=lambda i: self.expected[i])]
        chosen = []
        for seed in range(SETS):
            half = [*ends, *(i for i in random.Random(seed).sample(pool, len(pool) // 2) if i not in ends)]
            picked = most_informative(self.counts[half], self.expected[half], number, LATENCY_PRIOR, first=(0, 1))
            chosen.append([half[i] for i in picked])
        return chosen

    def ours(self, precision: str, calibration: Sequence[int]) -> Array:
        """(students, 3): prediction and interval."""
        c = list(calibration)
        model = fit(self.counts[c], self.figures(precision, "ratio")[c], self.errors(precision)[c], LATENCY_PRIOR)
        return np.array([model.predict(counts) for counts in self.counts])

    def score(self, precision: str, number: int, most: float = float("inf"), least: float = 0.0) -> dict[str, float]:
        truth, tested = self.figures(precision, "ratio"), self._tested(least)
        found = [self.ours(precision, chosen)[tested] for chosen in self.sets(number, most)]
        inside = [(p[:, 1] <= truth[tested]) & (truth[tested] <= p[:, 2]) for p in found]
        seconds = [self.figures(precision, "seconds")[chosen].sum() for chosen in self.sets(number, most)]
        return {
            **errors([p[:, 0] for p in found], truth[tested]),
            "coverage_90": float(np.mean(inside)),
            "half_width": float(np.mean([(p[:, 2] - p[:, 1]) / 2 / p[:, 0] for p in found])),
            "device_seconds": float(max(seconds)),
            "students": len(tested),
        }

    def _tested(self, least: float = 0.0) -> list[int]:
        return [i for i in range(self.held_out) if self.expected[i] >= least]

    def baselines(self, precision: str) -> dict[str, dict[str, dict[str, float]]]:
        """Each from the same measurements."""
        truth, tested = self.figures(precision, "ratio"), self._tested()
        makers: dict[str, Callable[[Array], Predictor]] = {
            "flops": lambda y: self._line(y, np.array([c.total_macs for c in self.costs], dtype=float)),
            "params": lambda y: self._line(y, np.array([c.params for c in self.costs], dtype=float)),
            "block_table": self._table,
            "boosting": self._boosting,
        }
        return {
            name: {
                f"at_{number}": errors([maker(truth)(chosen)[tested] for chosen in self.sets(number)], truth[tested])
                for number in (10, 20)
            }
            for name, maker in makers.items()
        }

    def _line(self, y: Array, x: Array) -> Predictor:
        """A constant and one count, least squares of relative errors."""
        rows = np.stack([np.ones_like(x), x / x.mean()], 1)

        def predict(c: Sequence[int]) -> Array:
            of = list(c)
            return rows @ np.linalg.lstsq(rows[of] / y[of, None], np.ones(len(of)), rcond=None)[0]

        return predict

    def _table(self, y: Array) -> Predictor:
        """A look-up table of blocks (front end; each layer; stride) that add up, ridge regression towards their mean."""
        blocks = [
            [f"{a.front_end}{a.front_width}", f"stride{a.frame_stride}"]
            + [f"{a.width}x{heads}x{ffn}x{a.frame_stride}" for heads, ffn in zip(a.heads, a.ffn_dims)]
            for a in self.architectures
        ]
        names = {name: i for i, name in enumerate(sorted({name for of in blocks for name in of}))}
        rows = np.zeros((len(blocks), len(names)))
        for i, of in enumerate(blocks):
            for name in of:
                rows[i, names[name]] += 1

        def predict(c: Sequence[int]) -> Array:
            of = list(c)
            mean = float(np.mean(y[of] / rows[of].sum(1)))
            scaled, ridge = rows[of] / y[of, None], 0.1 / y[of].mean() * np.eye(len(names))
            target = np.concatenate([np.ones(len(of)), ridge.sum(1) * mean])
            return np.asarray(rows @ np.linalg.lstsq(np.vstack([scaled, ridge]), target, rcond=None)[0])

        return predict

    def _boosting(self, y: Array) -> Predictor:
        def predict(c: Sequence[int]) -> Array:
            model = GradientBoostingRegressor(random_state=0, n_estimators=200, max_depth=2, learning_rate=0.1, min_samples_leaf=1)
            return np.exp(model.fit(self.counts[list(c)], np.log(y[list(c)])).predict(self.counts))

        return predict

    def memory_score(self, precision: str, number: int) -> dict[str, float]:
        truth, tested, found = self.figures(precision, "peak_memory"), self._tested(), []
        for chosen in self.sets(number):
            model = fit(self.memory[chosen], truth[chosen], np.zeros(number), MEMORY_PRIOR)
            found.append(np.array([model.predict(counts) for counts in self.memory])[tested])
        inside = [(p[:, 1] <= truth[tested]) & (truth[tested] <= p[:, 2]) for p in found]
        return {**errors([p[:, 0] for p in found], truth[tested]), "coverage_90": float(np.mean(inside))}

    def noise_floor(self, precision: str) -> dict[str, float]:
        again = np.array([row[precision]["ratio"] for row in self.again])
        return errors([again], self.figures(precision, "ratio")[: self.held_out])


def errors(predictions: Sequence[Array], truth: Array) -> dict[str, float]:
    off = np.abs(np.stack(predictions) / truth - 1)
    return {
        "within_10": float(np.mean(off <= 0.10)),
        "within_5": float(np.mean(off <= 0.05)),
        "mape": float(np.mean(off)),
        "spearman": float(np.mean([spearmanr(p, truth)[0] for p in predictions])),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    bench = Bench(rows)
    median = float(np.median(bench.expected))
    found: dict[str, Any] = {
        precision: {
            **{f"at_{number}": bench.score(precision, number) for number in (10, 20)},
            "extrapolated": bench.score(precision, 10, most=median, least=1.2 * median),
            "baselines": bench.baselines(precision),
            "noise_floor": bench.noise_floor(precision),
        }
        for precision in PRECISIONS
    }
    found["memory"] = {**bench.memory_score("fp32", 10), "int8": bench.memory_score("int8", 10)}
    model = fit(bench.counts, bench.figures("fp32", "ratio"), bench.errors("fp32"), LATENCY_PRIOR)
    began = time.perf_counter()
    for counts in bench.counts:
        model.predict(counts)
    found["predict_microseconds"] = 1e6 * (time.perf_counter() - began) / len(bench.counts)
    marked = [row[precision]["marks"] for row in rows for precision in PRECISIONS if row[precision]["marks"]]
    return {**found, "measurements": 2 * len(rows), "marked": len(marked)}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(of) for name, of in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    before = device_facts()
    rows = take(arguments.out / "latency_rows.jsonl")
    held_out, pool = students()
    result = {
        "command": "make bench-latency",
        "date": time.strftime("%Y-%m-%d"),
        "students": {"held_out": len(held_out), "pool": len(pool), "sets": SETS},
        "device": before,
        **summary(rows),
    }
    text = json.dumps(rounded(result), indent=2)
    (arguments.out / "latency.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
