"""`srlnas teacher pretrain`: a run of `trainers.pretraining`, its curves in MLflow, and a model card at its end."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deploy.measure import device_facts
from nas.study.progress import progress
from nas.tracking.mirror import Tracking, tracked
from search_spaces.architecture import SAMPLE_RATE
from trainers.learning.precision import pick_device
from trainers.networks.dimensions import dimensions
from trainers.pretraining.pretrain import Pretraining, PretrainRecipe, Watch, pretrain
from trainers.speech.corpora import Corpus
from trainers.teacher.folder import CONFIG
from trainers.teacher.teacher import load_teacher
from trainers.teacher.writer import teacher_shape, write_teacher

EXPERIMENT = "teachers"
SPENT_FILE = "spent.json"  # seconds and the last values, over all restarts


@dataclass(kw_only=True)
class Curves:
    """Passes a run's values on to MLflow, which may be away for a while, and to the console; counts the seconds."""

    tracking: Tracking
    console: Console
    file: Path
    total: int
    began: float = field(default_factory=time.monotonic)
    waiting: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spent: dict[str, float] = json.loads(self.file.read_text()) if self.file.is_file() else {"seconds": 0.0}
        self.before = self.spent["seconds"]

    def values(self, step: int, values: dict[str, float]) -> None:
        from mlflow.exceptions import MlflowException

        self.spent |= {**values, "seconds": self.before + time.monotonic() - self.began}
        self.file.write_text(json.dumps(self.spent))
        self.waiting.append((step, values))
        try:
            while self.waiting:  # MLflow takes 1,000 values a call
                self.tracking.log_curves(self.waiting[:100])
                del self.waiting[:100]
        except MlflowException as error:
            self.console.print(f"MLflow did not take the values of step {step}, they will be sent again: {str(error)[:200]}")
        if "val_loss" in values:
            told = {name: value for name, value in values.items() if name not in ("rate", "iteration")}
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in told.items())
            self.console.print(f"step {step} of {self.total}: {shown}")


def pretrain_teacher(
    out: Path,
    corpus: Corpus,
    noise: Corpus | None,
    recipe: PretrainRecipe,
    *,
    shape: str,
    start: str | None = None,
    licence: str,
    tracking_uri: str | None,
    console: Console,
) -> dict[str, Any]:
    """Makes the teacher `out` or continues to; returns the facts of its card. Until it is done the run lives in `out`.pretraining.

    start: a HuBERT in a folder, whose weights the run goes on with and whose shape it takes.
    Raises ValueError when `out` holds a teacher already, and for all that `trainers.pretraining.pretrain.pretrain` refuses.
    """
    if (out / CONFIG).exists():
        raise ValueError(f"{out} holds a teacher already: choose another folder, or remove it")
    config, normalizes = teacher_shape(start or shape)
    begun = load_teacher(start) if start else None
    architecture, geometry = dimensions(config, normalizes)
    folder, device = out.with_name(f"{out.name}.pretraining"), pick_device()
    asked = {
        "corpus": corpus.digest,
        "noise": noise.digest if noise else None,
        "shape": architecture.key,
        "start": begun.digest if begun else None,
        **asdict(recipe),
    }
    name = f"{out.name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"
    with tracked(tracking_uri, EXPERIMENT, search=name, description="Pretrained teachers") as tracking:
        tracking.log_curves([], params=asked)
        with progress(console, f"pretraining {out}") as tick:
            curves = Curves(tracking=tracking, console=console, file=folder / SPENT_FILE, total=sum(recipe.steps))
            encoder = pretrain(
                Pretraining(
                    recipe=recipe,
                    corpus=corpus,
                    architecture=architecture,
                    geometry=geometry,
                    noise=noise,
                    folder=folder,
                    device=device,
                    start=begun,
                    watch=Watch(values=curves.values, stage=console.print, progress=tick),
                )
            )
        facts = _facts(out.name, corpus, asked, curves.spent, device, licence)
        write_teacher(encoder, config, out, card(facts))
        tracking.client.log_artifact(tracking.run_id, str(out / "README.md"))
    shutil.rmtree(folder)
    return facts


def _facts(
    name: str, corpus: Corpus, asked: Mapping[str, Any], spent: Mapping[str, float], device: torch.device, licence: str
) -> dict[str, Any]:
    rows = corpus.rows("train")
    return {
        "name": name,
        "licence": licence,
        "clips": len(rows),
        "speech_hours": float(corpus.lengths[rows].sum()) / SAMPLE_RATE / 3600,
        "speakers": len(set(corpus.speakers[rows]) - {None}),
        "synthetic": corpus.synthetic,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device_facts()['cpu']}, CPU",
        "hours": spent["seconds"] / 3600,
        "asked": dict(asked),
        "figures": {key: value for key, value in spent.items() if key.endswith(("loss", "accuracy"))},
    }


def card(facts: Mapping[str, Any]) -> str:
    """The model card: what a user must know before a search rests on this teacher."""
    asked, figures = facts["asked"], facts["figures"]
    speeds = ", ".join(map(str, asked["speeds"]))
    start = f"the weights of the teacher with digest {asked['start']}" if asked["start"] else "new weights"
    noise = f"the corpus {asked['noise']}" if asked["noise"] else "white noise, coloured at random,"
    iterations = "; ".join(f"{steps} steps towards {units} units" for steps, units in zip(asked["steps"], asked["units"]))
    return f"""---
license: {facts["licence"]}
---
# {facts["name"]}

A HuBERT in transformers format, pretrained by `srlnas teacher pretrain`{" on synthetic speech" if facts["synthetic"] else ""}.

- Data: {facts["clips"]} unlabelled clips, {facts["speech_hours"]:.2f} hours, {facts["speakers"]} known speakers; the train split
  alone. Corpus digest {asked["corpus"]}.
- Start: {start}.
- Recipe: masked prediction of k-means units, first of MFCCs, then of layer {asked["layer"]}: {iterations};
  {asked["batch"]} windows of {asked["window"]} samples an update, rate {asked["rate"]}, seed {asked["seed"]}.
- Heard: masks of {asked["mask_frames"]} frames that begin at {asked["mask_share"]:.0%} of frames; a second talker in
  {asked["mix_share"]:.0%} and {noise} in {asked["noise_share"]:.0%} of windows; speeds {speeds}.
- Cost: {facts["hours"]:.2f} hours on {facts["device"]}.
- Figures of the last step: {", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())}.
"""
