"""Which recipe trains a student best: one factor at a time against the defaults, two seeds, scored on validation speakers.

Every training is kept in OUT by a hash of all that it depends on, so an interrupted comparison continues and a changed default
trains only what it changes. The trainings are short: the order of two recipes is what counts. `make bench-recipe` runs it.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from search_spaces.architecture import Architecture
from search_spaces.cost import cost
from trainers.batches import Augmentation
from trainers.corpora import Corpus, load_corpus
from trainers.distill import DistillRecipe, distill
from trainers.encoder import SpeechEncoder
from trainers.finetune import FinetuneRecipe, finetune
from trainers.inherit import Narrowing, inherit
from trainers.metrics import Outcome, Rate, changes, rates
from trainers.scoring import score
from trainers.student import Heads, Student
from trainers.targets import Targets, prepare_targets
from trainers.teacher import Teacher, load_teacher
from trainers.trials import Trials, load_trials

WINDOW, TARGET_WINDOWS, SEEDS = 16_080, 8_000, (0, 1)
CPU = torch.device("cpu")
WAVE = Architecture(
    front_end="wave", front_width=96, frame_stride=1, width=192, heads=(3, 3), ffn_dims=(512, 512), kept_layers=(1, 2)
)
MEL = dataclasses.replace(WAVE, front_end="mel", front_width=128, width=240, heads=(4, 4), ffn_dims=(640, 640))
SPEEDS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One recipe; the defaults are those of the project."""

    architecture: Architecture = WAVE
    start: Literal["kept layers", "random"] = "kept layers"
    narrowing: Narrowing = "importance"
    heads: Heads = "predictions"
    mask_share: float = 0.0
    distill: DistillRecipe
    finetune: FinetuneRecipe


@dataclass(frozen=True, kw_only=True)
class Bench:
    corpus: Corpus
    trials: Trials
    noise: Corpus | None
    teacher: Teacher
    targets: Targets
    out: Path


def alternatives(base: Setting) -> dict[str, dict[str, Setting]]:
    """By factor and name; at most ten factors."""

    def changed(**changes: Any) -> Setting:
        return dataclasses.replace(base, **changes)

    def tuned(**changes: Any) -> Setting:
        return dataclasses.replace(base, finetune=dataclasses.replace(base.finetune, **changes))

    return {
        "start": {
            "evenly spread layers": changed(architecture=dataclasses.replace(WAVE, kept_layers=(3, 6))),
            "random": changed(start="random"),
        },
        "narrower by": {"prefix": changed(narrowing="prefix"), "random": changed(narrowing="random")},
        "heads read": {"mean of the encoder": changed(heads="mean"), "mean and deviation": changed(heads="mean and deviation")},
        "margin": {"additive angular": tuned(margin="additive")},
        "speeds": {"0.85 to 1.15": tuned(speeds=SPEEDS)},
        "speakers at 0.9 and 1.1 are others": {"yes": tuned(speaker_speeds=(1.0, 0.9, 1.1))},
        "masks": {"half of the windows": changed(mask_share=0.5)},
        "distillation kept on": {"weight 1": tuned(distilling=1.0)},
        "front end's rate": {"a tenth": tuned(front_rate=0.1)},
        "front end": {"mel, equal MACs": changed(architecture=MEL)},
    }


def outcome_of(bench: Bench, setting: Setting, seed: int) -> tuple[Outcome, float]:
    """Validation outcome of one training, and its seconds of CPU; from the folder where it was trained before."""
    asked = {**_described(setting), "seed": seed, "teacher": bench.teacher.digest, "corpus": bench.corpus.digest}
    path = bench.out / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        started = time.process_time()
        student = _train(bench, setting, seed)
        outcome = score(student, bench.corpus, "val", bench.trials, WINDOW, CPU)
        part = path.with_suffix(".part.npz")
        np.savez(part, seconds=time.process_time() - started, asked=json.dumps(asked), **dataclasses.asdict(outcome))
        part.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        fields = {name: arrays[name] for name in (field.name for field in dataclasses.fields(Outcome))}
        return Outcome(**fields), float(arrays["seconds"])


def _described(setting: Setting) -> dict[str, Any]:
    return {**dataclasses.asdict(setting), "architecture": json.loads(setting.architecture.to_json())}


def _train(bench: Bench, setting: Setting, seed: int) -> Student:
    torch.manual_seed(seed)
    teacher = bench.teacher
    student = Student(
        setting.architecture,
        teacher.geometry,
        bench.corpus.keyword_labels,
        predicted_layers=teacher.predicted_layers,
        target_width=teacher.architecture.width,
        heads=setting.heads,
        is_folded=False,
    )
    assert isinstance(student.encoder, SpeechEncoder)
    if setting.start == "kept layers":
        inherit(student.encoder, teacher.encoder, setting.narrowing)
    augment = Augmentation(noise=bench.noise, mask_share=setting.mask_share)
    distill(student, bench.targets, setting.distill, augment=augment, seed=seed, device=CPU)
    finetune(
        student,
        bench.corpus,
        setting.finetune,
        window=WINDOW,
        augment=augment,
        seed=seed + 1,
        device=CPU,
        targets=bench.targets,
    )
    return student.folded()


def named(pair: tuple[Rate, Rate]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(rate) for name, rate in zip(("accuracy", "eer"), pair)}


def table(
    rows: list[Mapping[str, Any]], base: Mapping[str, Mapping[str, float]], teacher: Teacher, setting: Setting, keywords: int
) -> str:
    def change(told: Mapping[str, float]) -> str:
        return f"{told['value']:+.1f} [{told['low']:+.1f}, {told['high']:+.1f}]"

    macs = cost(setting.architecture, teacher.geometry, keywords, WINDOW).total_macs
    lines = [
        f"Defaults: {base['accuracy']['value']:.1f} % keyword accuracy, {base['eer']['value']:.1f} % EER ({macs / 1e6:.0f} M MACs, "
        f"{setting.distill.steps} + 2 x {setting.finetune.steps} updates of {setting.distill.batch} windows).",
        "",
        "| factor | instead | accuracy, points | EER, points | CPU time |",
        "|---|---|---|---|---|",
        *(
            f"| {row['factor']} | {row['instead']} | {change(row['accuracy'])} | {change(row['eer'])} | x{row['time']:.2f} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--teacher", default="mini")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", action="append", help="factors; default: all")
    parser.add_argument("--cache", type=Path, default=Path("studies/.cache"))
    parser.add_argument("--out", type=Path, default=Path("build/bench/recipe"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    corpus, teacher = load_corpus(asked.data, asked.cache), load_teacher(asked.teacher)
    bench = Bench(
        corpus=corpus,
        trials=load_trials(asked.trials, corpus)["val"],
        noise=load_corpus([asked.noise], asked.cache) if asked.noise else None,
        teacher=teacher,
        targets=prepare_targets(teacher, corpus, asked.cache, window=WINDOW, limit=TARGET_WINDOWS, seed=0),
        out=asked.out,
    )
    base = Setting(
        distill=DistillRecipe(steps=asked.steps, batch=asked.batch), finetune=FinetuneRecipe(steps=asked.steps, batch=asked.batch)
    )
    before = [outcome_of(bench, base, seed) for seed in SEEDS]
    base_rates = named(rates(*(outcome for outcome, _ in before)))
    print(json.dumps(base_rates), flush=True)
    rows = []
    for factor, settings in alternatives(base).items():
        for instead, setting in settings.items() if not asked.only or factor in asked.only else ():
            trained = [outcome_of(bench, setting, seed) for seed in SEEDS]
            told = named(changes([outcome for outcome, _ in trained], [outcome for outcome, _ in before]))
            slower = sum(seconds for _, seconds in trained) / sum(seconds for _, seconds in before)
            rows.append({"factor": factor, "instead": instead, **told, "time": slower})
            print(json.dumps(rows[-1]), flush=True)
    (asked.out / "recipe.json").write_text(json.dumps({"defaults": base_rates, "rows": rows}, indent=2) + "\n")
    (asked.out / "recipe.md").write_text(table(rows, base_rates, teacher, base, len(corpus.keyword_labels)))


if __name__ == "__main__":
    main()
