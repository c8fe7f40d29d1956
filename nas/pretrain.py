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
from nas.study.budget import append_line, read_lines, write_whole
from nas.study.progress import progress
from nas.tracking.mirror import Tracking, tracked
from nas.tracking.outage import Outage, first_line
from nas.worker.ending import ended_by_sigterm
from search_spaces.architecture import SAMPLE_RATE
from trainers.learning.precision import pick_device
from trainers.networks.dimensions import dimensions
from trainers.pretraining.pretrain import Pretraining, PretrainRecipe, UnitSource, Watch, pretrain
from trainers.speech.corpora import Corpus
from trainers.teacher.folder import CONFIG
from trainers.teacher.teacher import load_teacher
from trainers.teacher.writer import teacher_shape, write_teacher

EXPERIMENT = "teachers"
SPENT_FILE = "spent.json"  # seconds and the last values, over all restarts
WAITING_FILE = "waiting.jsonl"  # values that MLflow did not take
MADE_FILE = "made"  # the run whose teacher is complete


@dataclass(kw_only=True)
class Curves:
    """Passes a run's values on to MLflow, which may be away, and to the console; counts the seconds. What MLflow did not take is
    kept in `folder`, and sent again with the next values."""

    tracking: Tracking
    console: Console
    folder: Path
    total: int
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        spent = self.folder / SPENT_FILE
        self.spent: dict[str, float] = json.loads(spent.read_text()) if spent.is_file() else {"seconds": 0.0}
        self.before = self.spent["seconds"]
        self.waiting = [(int(line["step"]), line["values"]) for line in read_lines(self.folder / WAITING_FILE)]
        self.outage = Outage("the pretraining")

    def values(self, step: int, values: dict[str, float]) -> None:
        self.spent |= {**values, "seconds": self.before + time.monotonic() - self.began}
        write_whole(self.folder / SPENT_FILE, json.dumps(self.spent))
        self.waiting.append((step, values))
        append_line(self.folder / WAITING_FILE, {"step": step, "values": values})
        self.outage.passed_over(self.send)
        if "val_loss" in values:
            told = {name: value for name, value in values.items() if name not in ("rate", "iteration")}
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in told.items())
            self.console.print(f"step {step} of {self.total}: {shown}")

    def send(self) -> None:
        """What MLflow lacks."""
        while self.waiting:  # it takes 1,000 values a call
            self.tracking.log_curves(self.waiting[:100])
            del self.waiting[:100]
            lines = [json.dumps({"step": step, "values": values}) + "\n" for step, values in self.waiting]
            write_whole(self.folder / WAITING_FILE, "".join(lines))


def pretrain_teacher(
    out: Path,
    corpus: Corpus,
    noise: Corpus | None,
    recipe: PretrainRecipe,
    *,
    shape: str,
    start: str | None = None,
    units_from: UnitSource | None = None,
    licence: str,
    tracking_uri: str | None,
    console: Console,
) -> dict[str, Any]:
    """Makes the teacher `out` or continues to; returns the facts of its card. Until it is done the run lives in `out`.pretraining.

    start: a HuBERT in a folder, whose weights the run goes on with and whose shape it takes. units_from: as in `Pretraining`.
    Raises ValueError when `out` holds a teacher already, and for all that `trainers.pretraining.pretrain.pretrain` refuses.
    """
    config, normalizes = teacher_shape(start or shape)
    begun = load_teacher(start) if start else None
    architecture, geometry = dimensions(config, normalizes)
    folder, device = out.with_name(f"{out.name}.pretraining"), pick_device()
    asked = {
        "corpus": corpus.digest,
        "noise": noise.digest if noise else None,
        "shape": architecture.key,
        "start": begun.digest if begun else None,
        "units_from": str(units_from) if units_from else None,
        **asdict(recipe),
    }
    name = f"{out.name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"
    is_made = (out / CONFIG).exists()
    if is_made and not ((folder / MADE_FILE).is_file() and (folder / MADE_FILE).read_text() == name):
        raise ValueError(f"{out} holds a teacher already: choose another folder, or remove it")
    with ended_by_sigterm(folder), tracked(tracking_uri, EXPERIMENT, search=name, description="Pretrained teachers") as tracking:
        tracking.log_curves([], params=asked)
        folder.mkdir(parents=True, exist_ok=True)
        curves = Curves(tracking=tracking, console=console, folder=folder, total=sum(recipe.steps))
        if not is_made:
            with progress(console, f"pretraining {out}") as tick:
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
                        units_from=units_from,
                        watch=Watch(values=curves.values, stage=console.print, progress=tick),
                    )
                )
            (folder / MADE_FILE).write_text(name)  # before: a teacher that nobody knows of would be in the way
            write_teacher(encoder, config, out, card(_facts(out.name, corpus, asked, curves.spent, device, licence)))
        _log(tracking, curves, out)
    shutil.rmtree(folder)
    return _facts(out.name, corpus, asked, curves.spent, device, licence)


def _log(tracking: Tracking, curves: Curves, out: Path) -> None:
    """What MLflow lacks of a teacher that is made. Raises ValueError when it does not take it: nothing is lost then."""
    try:
        curves.send()
        tracking.client.log_artifact(tracking.run_id, str(out / "README.md"))
    except Exception as error:  # MLflow's and its transports' many kinds
        raise ValueError(
            f"the teacher {out} is complete, but MLflow did not take its curves ({first_line(error)}): "
            "the same command logs them again"
        ) from error


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
    source = asked["units_from"] or "MFCCs"
    later = f", then of layer {asked['layer']}" if len(asked["steps"]) > 1 else ""
    start = f"the weights of the teacher with digest {asked['start']}" if asked["start"] else "new weights"
    noise = f"noise of the corpus {asked['noise']}" if asked["noise"] else "white noise, coloured at random,"
    iterations = "; ".join(f"{steps} steps towards {units} units" for steps, units in zip(asked["steps"], asked["units"]))
    return f"""---
license: {facts["licence"]}
---
# {facts["name"]}

A HuBERT in transformers format, pretrained by `srlnas teacher pretrain`{" on synthetic speech" if facts["synthetic"] else ""}.

- Data: {facts["clips"]} unlabelled clips, {facts["speech_hours"]:.2f} hours, {facts["speakers"]} known speakers; the train split
  alone. Corpus digest {asked["corpus"]}.
- Start: {start}.
- Units: k-means of {source}{later}.
- Recipe: masked prediction of those units: {iterations};
  {asked["batch"]} windows of {asked["window"]} samples an update, rate {asked["rate"]}, seed {asked["seed"]}.
- Heard: masks of {asked["mask_frames"]} frames that begin at {asked["mask_share"]:.0%} of frames; frames that are not masked weigh
  {asked["unmasked_weight"]:g}; a second talker in {asked["mix_share"]:.0%} of windows; {noise} in {asked["noise_share"]:.0%};
  speeds {speeds}.
- Cost: {facts["hours"]:.2f} hours on {facts["device"]}.
- Figures of the last step: {", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())}.
"""
