"""Which recipe trains a student best: one factor at a time against the paper's choices, two seeds, scored on validation speakers.

Every training is kept in OUT by a hash of all that it depends on, so an interrupted comparison continues and a changed default
trains only what it changes. The trainings are short: the order of two recipes is what counts. `make bench-recipe` runs it.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search_spaces.architecture import Architecture
from search_spaces.cost import cost
from trainers.learning.distill import distill
from trainers.learning.finetune import finetune
from trainers.learning.recipe import Recipe
from trainers.learning.targets import Targets, prepare_targets
from trainers.networks.encoder import SpeechEncoder
from trainers.networks.inherit import inherit
from trainers.networks.student import Student
from trainers.scoring.metrics import Rate, changes, rates
from trainers.scoring.outcome import Outcome
from trainers.scoring.scoring import score
from trainers.speech.corpora import Corpus
from trainers.speech.decoding import content_hash
from trainers.speech.loading import load_corpus
from trainers.speech.trial_lists import load_trials
from trainers.speech.trials import Trials
from trainers.teacher.teacher import Teacher, load_teacher

WINDOW, TARGET_WINDOWS, SEEDS = 16_080, 8_000, (0, 1)
CPU = torch.device("cpu")
# what the others were compared with; what won is now the default
BEFORE = Recipe(margin="angular", speaker_weight=0.0, heads="predictions", speeds=(1.0,))
WAVE = Architecture(
    front_end="wave", front_width=96, frame_stride=1, width=192, heads=(3, 3), ffn_dims=(512, 512), kept_layers=(1, 2)
)
MEL = dataclasses.replace(WAVE, front_end="mel", front_width=128, width=240, heads=(4, 4), ffn_dims=(640, 640))
SPEEDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An architecture and how it is trained."""

    architecture: Architecture = WAVE
    recipe: Recipe = BEFORE


@dataclass(frozen=True, kw_only=True)
class Bench:
    corpus: Corpus
    trials: Trials
    noise: Corpus | None
    digests: tuple[str, ...]  # of the corpus, trials and noise
    teacher: Teacher
    targets: Targets
    steps: int
    out: Path


def alternatives() -> dict[tuple[str, str], Setting]:
    """By factor and what is tried instead: twelve comparisons."""

    def changed(**changes: Any) -> Setting:
        return Setting(recipe=dataclasses.replace(BEFORE, **changes))

    return {
        ("start", "evenly spread layers"): Setting(architecture=dataclasses.replace(WAVE, kept_layers=(3, 6))),
        ("start", "random"): changed(start="random"),
        ("target", "layer to layer, heads read the encoder"): changed(matching="layer to layer", heads="mean"),
        ("heads read", "mean of the encoder"): changed(heads="mean"),
        ("heads read", "mean and deviation, speakers of every state"): changed(heads="every state"),
        ("margin", "additive angular"): changed(margin="additive"),
        ("updates", "both tasks in one, the speaker's loss at 0.3"): changed(speaker_weight=0.3),
        ("the speaker's loss", "trains layer 1 and below"): changed(heads="every state", speaker_layer=1),
        ("keyword windows", "speeds 0.7 to 1.4, half masked, equaliser of 3 dB"): changed(
            speeds=SPEEDS, mask_share=0.5, equalizer_db=3.0
        ),
        ("speaker windows", "at 0.9 and 1.1 others speak"): changed(speaker_speeds=(1.0, 0.9, 1.1)),
        ("distillation kept on", "weight 1"): changed(distilling=1.0),
        ("front end", "mel, equal MACs"): Setting(architecture=MEL),
    }


def outcome_of(bench: Bench, setting: Setting, seed: int) -> tuple[Outcome, float]:
    """Validation outcome of one training, and its seconds of CPU; from the folder where it was trained before."""
    asked = {
        **_described(setting),
        "steps": bench.steps,
        "seed": seed,
        "teacher": bench.teacher.digest,
        "speech": bench.digests,
    }
    path = bench.out / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        started = time.process_time()
        student = _train(bench, setting, seed)
        outcome = score(student, bench.corpus, "val", bench.trials, WINDOW, CPU)
        part = path.with_suffix(".part.npz")
        np.savez(part, seconds=time.process_time() - started, asked=json.dumps(asked), **dataclasses.asdict(outcome))
        part.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        fields = {field.name: arrays[field.name] for field in dataclasses.fields(Outcome) if field.name in arrays}
        return Outcome(**fields), float(arrays["seconds"])


def _described(setting: Setting) -> dict[str, Any]:
    return {"recipe": dataclasses.asdict(setting.recipe), "architecture": json.loads(setting.architecture.to_json())}


def _train(bench: Bench, setting: Setting, seed: int) -> Student:
    torch.manual_seed(seed)
    teacher, recipe = bench.teacher, setting.recipe
    student = Student(
        setting.architecture,
        teacher.geometry,
        bench.corpus.keyword_labels,
        predicted_layers=teacher.predicted_layers,
        target_width=teacher.architecture.width,
        heads=recipe.heads,
        matching=recipe.matching,
        is_folded=False,
    )
    assert isinstance(student.encoder, SpeechEncoder)
    if recipe.start == "kept layers":
        inherit(student.encoder, teacher.encoder, recipe.narrowing)
    heard: Any = {"augment": recipe.augmentation(bench.noise), "steps": bench.steps, "device": CPU}
    distill(student, bench.targets, recipe, seed=seed, **heard)
    finetune(student, bench.corpus, recipe, window=WINDOW, seed=seed + 1, targets=bench.targets, **heard)
    return student.folded()


def named(pair: tuple[Rate, Rate]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(rate) for name, rate in zip(("accuracy", "eer"), pair)}


def table(rows: Sequence[Mapping[str, Any]], base: Mapping[str, Mapping[str, float]], bench: Bench) -> str:
    def change(told: Mapping[str, float]) -> str:
        return f"{told['value']:+.1f} [{told['low']:+.1f}, {told['high']:+.1f}]"

    macs = cost(WAVE, bench.teacher.geometry, len(bench.corpus.keyword_labels), WINDOW).total_macs
    lines = [
        f"Before: {base['accuracy']['value']:.1f} % keyword accuracy, {base['eer']['value']:.1f} % EER ({macs / 1e6:.0f} M MACs, "
        f"{bench.steps} + 2 x {bench.steps} updates of {BEFORE.batch} windows).",
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
    parser.add_argument("--teacher", default="mini-hubert")
    parser.add_argument("--steps", type=int, default=400)
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
        digests=(corpus.digest, *(content_hash(path, asked.cache) for path in (asked.trials, asked.noise) if path)),
        teacher=teacher,
        targets=prepare_targets(teacher, corpus, asked.cache, window=WINDOW, limit=TARGET_WINDOWS, seed=0),
        steps=asked.steps,
        out=asked.out,
    )
    before = [outcome_of(bench, Setting(), seed) for seed in SEEDS]
    base_rates = named(rates(*(outcome for outcome, _ in before)))
    print(json.dumps(base_rates), flush=True)
    rows = []
    for (factor, instead), setting in alternatives().items():
        trained = [outcome_of(bench, setting, seed) for seed in SEEDS]
        told = named(changes([outcome for outcome, _ in trained], [outcome for outcome, _ in before]))
        slower = sum(seconds for _, seconds in trained) / sum(seconds for _, seconds in before)
        rows.append({"factor": factor, "instead": instead, **told, "time": slower})
        print(json.dumps(rows[-1]), flush=True)
    (asked.out / "recipe.json").write_text(json.dumps({"before": base_rates, "rows": rows}, indent=2) + "\n")
    (asked.out / "recipe.md").write_text(table(rows, base_rates, bench))


if __name__ == "__main__":
    main()
