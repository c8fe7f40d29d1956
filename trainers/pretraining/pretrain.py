"""Pretraining of a teacher: HuBERT's masked prediction of hidden units (Hsu et al., arXiv 2106.07447), of any size on any corpus.

The first iteration predicts k-means units of MFCCs, or of a hidden state of another teacher, each later one units of a hidden
state of the network so far. Unlike HuBERT's, a later iteration goes on with the weights that it has: a few CPU-hours cannot pay
for a second random start. Part of the clips can have another talker mixed in, whose units are not asked for (WavLM, arXiv
2110.13900).
"""

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from search_spaces.architecture import FRAME_SAMPLES, RECEPTIVE_FIELD, Architecture, Geometry, frame_count
from trainers.learning.batches import Augmentation
from trainers.learning.distill import update
from trainers.learning.precision import autocast
from trainers.learning.resume import interval, kept_position, read_state, write_state
from trainers.networks.encoder import Positions, SpeechEncoder
from trainers.pretraining.masked import Labelled, MaskedPredictor, draw_masks, overlap
from trainers.pretraining.units import MOST_UNITS, Features, assign_units, fit_units, hidden_state, mfcc, utterances
from trainers.speech.corpora import Corpus
from trainers.teacher.teacher import Teacher

VALIDATION_STEPS = 500  # between two validations
AHEAD = 4  # batches that are cut while one trains, each by a thread: on a GPU a step takes less time than its batch
VALIDATION_WINDOWS = 512
CHECKPOINT_FILE, PLAN_FILE = "checkpoint.safetensors", "plan.json"

Batch = tuple[Tensor, Tensor, Tensor]  # samples (batch, window), units (batch, frames) or -1, masked (batch, frames)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """steps, units: of each iteration. layer: whose hidden state later iterations predict the units of.

    batch: windows an update. window: samples. rate: AdamW's at its height. mask_share: of frames at which a masked span of
    `mask_frames` begins (HuBERT's; with 0.1 and 5 a linear probe of `mini-hubert`'s layers read two points fewer keywords).
    unmasked_weight: of the loss over frames that are not masked; HuBERT's is 0.
    mix_share: of windows that a second talker is mixed into (at 0.2 the probe told voices apart less well, where few hours of
    speech are at hand). noise_share: of windows that noise is mixed into. speeds: of the copies of every clip.
    """

    steps: tuple[int, ...]
    units: tuple[int, ...]
    layer: int
    batch: int = 32
    window: int = 16_080
    rate: float = 1e-3
    mask_share: float = 0.08
    mask_frames: int = 10
    unmasked_weight: float = 0.0
    mix_share: float = 0.0
    noise_share: float = 0.0
    speeds: tuple[float, ...] = (1.0, 0.9, 1.1)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.units) or not self.steps:
            raise ValueError(f"steps {self.steps} and units {self.units} must name one number for each iteration")
        if frame_count(self.window) < 2:
            raise ValueError(f"a window of {self.window} samples has not two frames; {RECEPTIVE_FIELD + FRAME_SAMPLES} have")
        if min(*self.steps, *self.units, self.batch, self.layer) < 1:
            raise ValueError("steps, units, batch and layer must be above zero")
        if max(self.units) >= MOST_UNITS:
            raise ValueError(f"{max(self.units)} units are too many: below {MOST_UNITS} are allowed")
        for name in ("mask_share", "mix_share", "noise_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.replace('_', ' ')} {getattr(self, name)} is not from 0 to 1")
        if not 0 <= self.unmasked_weight <= 100:
            raise ValueError(f"unmasked weight {self.unmasked_weight} is not from 0 to 100")
        if not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds {self.speeds} are not from 0.5 to 2")


@dataclass(frozen=True, kw_only=True)
class UnitSource:
    """A teacher's hidden state, from 0, whose units the first iteration predicts. Raises ValueError where it has no such state."""

    teacher: Teacher
    layer: int

    def __post_init__(self) -> None:
        depth = self.teacher.architecture.depth
        if not 0 <= self.layer <= depth:
            raise ValueError(f"the teacher {self.teacher.name} has no layer {self.layer}; units may come from 0 to {depth}")

    def __str__(self) -> str:
        kind = "with transcripts" if self.teacher.is_supervised else "on speech alone"
        return f"layer {self.layer} of the teacher {self.teacher.name}, digest {self.teacher.digest}, which was trained {kind}"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a run tells: `values` at a step over all iterations, a stage that begins, and steps done of all."""

    values: Callable[[int, dict[str, float]], None] = lambda step, values: None
    stage: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A run in `folder`, which holds all that a restart needs: the plan, the units and the last checkpoint.

    noise: what is mixed in; white noise coloured at random where it is None.
    start: a teacher whose weights the first iteration goes on with, of the same architecture and geometry; without it they are new.
    units_from: whose units the first iteration predicts; those of MFCCs where it is None.
    """

    recipe: PretrainRecipe
    corpus: Corpus
    architecture: Architecture
    geometry: Geometry
    noise: Corpus | None
    folder: Path
    device: torch.device
    start: Teacher | None = None
    units_from: UnitSource | None = None
    watch: Watch = Watch()


def pretrain(run: Pretraining) -> SpeechEncoder:
    """Trains from the last checkpoint, where there is one; returns the encoder in evaluation mode, on the CPU.

    A run that is interrupted and continued computes what one run would. Raises ValueError when the folder holds a run of another
    recipe, corpus or shape, when the corpus is too small for the units, and FloatingPointError when the loss is not finite.
    """
    if len(run.recipe.steps) > 1 and run.recipe.layer > run.architecture.depth:
        raise ValueError(f"there is no layer {run.recipe.layer} to take units from: the shape has {run.architecture.depth}")
    _check_plan(run)
    torch.manual_seed(run.recipe.seed)
    encoder = SpeechEncoder(run.architecture, run.geometry)
    if run.start:
        encoder.load_state_dict(run.start.encoder.state_dict())
    else:
        draw_weights(encoder)
    encoder.to(run.device)
    for iteration in range(_position(run)[0], len(run.recipe.steps)):
        _iterate(run, encoder, iteration)
    return encoder.cpu().eval()


@torch.no_grad()
def draw_weights(encoder: SpeechEncoder) -> None:
    """New weights as HuBERT's are drawn: small ones in the transformer, so that every layer begins near the identity.

    From torch's own, about twice as large, the same loss took about twice the steps.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert isinstance(encoder.positions, Positions), "a Whisper is not pretrained here"
    conv = encoder.positions.conv
    nn.init.normal_(conv.weight, std=2 / (conv.kernel_size[0] * conv.out_channels) ** 0.5)


def _check_plan(run: Pretraining) -> None:
    shapes = {"architecture": run.architecture.to_json(), "geometry": run.geometry.to_json()}
    digests = {
        "corpus": run.corpus.digest,
        "noise": run.noise.digest if run.noise else None,
        "start": run.start.digest if run.start else None,
        "source of units": [run.units_from.teacher.digest, run.units_from.layer] if run.units_from else None,
    }
    plan = json.loads(json.dumps({"recipe": asdict(run.recipe), **digests, **shapes}))
    path = run.folder / PLAN_FILE
    begun = json.loads(path.read_text()) if path.is_file() else plan
    begun["recipe"] = {"unmasked_weight": 0.0, **begun["recipe"]}  # what an older run does not name
    begun["geometry"] = Geometry.from_json(begun["geometry"]).to_json()
    changed = [name for name in plan if plan[name] != begun.get(name)]
    if changed:
        raise ValueError(f"{run.folder} holds a run of another {changed[0]}: continue it as it was begun, or remove the folder")
    run.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=2) + "\n")


def _position(run: Pretraining) -> tuple[int, int]:
    """(iteration, steps of it that are done) of the last checkpoint."""
    position = kept_position(run.folder / CHECKPOINT_FILE)
    return position.get("iteration", 0), position.get("step", 0)


def _iterate(run: Pretraining, encoder: SpeechEncoder, iteration: int) -> None:
    """One iteration: units from the encoder as it is, then steps up to the iteration's end."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed + iteration)
    model = MaskedPredictor(encoder, recipe.units[iteration]).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    at, done = _position(run)
    if (run.folder / CHECKPOINT_FILE).is_file():
        _restore(run, model, optimizer, same_iteration=at == iteration)
    start = done if at == iteration else 0
    train, validation = _labelled(run, encoder, iteration)
    offset, written = sum(recipe.steps[:iteration]), time.monotonic()
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = deque(pool.submit(_batch, run, train, iteration, start + i) for i in range(AHEAD))
        for step in range(start, recipe.steps[iteration]):
            waiting.append(pool.submit(_batch, run, train, iteration, step + AHEAD))
            values = _step(run, model, optimizer, waiting.popleft().result(), _rate(recipe, iteration, step))
            run.watch.progress(offset + step + 1, sum(recipe.steps))
            is_last = step + 1 == recipe.steps[iteration]
            if is_last or time.monotonic() - written >= interval():
                _save(run, model, optimizer, iteration, step + 1)
                written = time.monotonic()
            if is_last or (step + 1) % VALIDATION_STEPS == 0:
                values |= _validate(run, model, validation)
            if is_last or (step + 1) % 50 == 0:
                run.watch.values(offset + step + 1, values | {"iteration": iteration + 1})


def _labelled(run: Pretraining, encoder: SpeechEncoder, iteration: int) -> tuple[Labelled, Labelled | None]:
    """The train and the validation utterances with their units, which are made once an iteration."""
    recipe = run.recipe
    name, features = _unit_features(run, encoder, iteration)
    made = {split: run.folder / f"units-{iteration + 1}-{split}.npy" for split in ("train", "val")}
    clips = {"train": utterances(run.corpus, "train", recipe.speeds), "val": utterances(run.corpus, "val", (1.0,))}
    if not all(made[split].is_file() for split in made if len(clips[split])):
        encoder.eval()
        run.watch.stage(f"k-means: {recipe.units[iteration]} units of {name}")
        fitted = fit_units(
            clips["train"], features, recipe.units[iteration], window=recipe.window, seed=recipe.seed, device=run.device
        )
        for split, path in made.items():
            if len(clips[split]):
                run.watch.stage(f"units of the {split} split")
                assign_units(clips[split], features, fitted, path, window=recipe.window, device=run.device)
    run.watch.stage(f"iteration {iteration + 1}: masked prediction of units of {name}")
    train, validation = (
        Labelled(clips=clips[split], units=np.load(path, mmap_mode="r")) if len(clips[split]) else None
        for split, path in made.items()
    )
    assert train is not None
    return train, validation


def _unit_features(run: Pretraining, encoder: SpeechEncoder, iteration: int) -> tuple[str, Features]:
    """What the units of an iteration are clustered from, and its name."""
    if iteration > 0:
        return f"layer {run.recipe.layer}", hidden_state(encoder, run.recipe.layer)
    if run.units_from:
        teacher, layer = run.units_from.teacher, run.units_from.layer
        return f"layer {layer} of {teacher.name}", hidden_state(teacher.encoder, layer)
    return "MFCCs", mfcc


def _batch(run: Pretraining, train: Labelled, iteration: int, step: int) -> Batch:
    """A function of seed, iteration and step alone, so that a restart needs no state of a generator."""
    recipe = run.recipe
    rng = np.random.default_rng([recipe.seed, iteration, step])
    audio, units = train.pick(recipe.batch, recipe.window, rng)
    augment = Augmentation(noise=run.noise, noise_share=recipe.noise_share)
    heard = augment(overlap(audio, recipe.mix_share, rng), rng)
    masked = draw_masks(units.shape, recipe.mask_share, recipe.mask_frames, rng)
    return torch.from_numpy(heard), torch.from_numpy(units), torch.from_numpy(masked)


def _rate(recipe: PretrainRecipe, iteration: int, step: int) -> float:
    """Linear up over a twelfth of the iteration, then linear down, as HuBERT's."""
    total = recipe.steps[iteration]
    rise = max(1, total // 12)
    return recipe.rate * min((step + 1) / rise, (total - step) / max(1, total - rise))


def _step(
    run: Pretraining, model: MaskedPredictor, optimizer: torch.optim.Optimizer, batch: Batch, rate: float
) -> dict[str, float]:
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, accuracy = _predict(run, model, batch)
    update(model.parameters(), optimizer, loss)
    return {"loss": loss.item(), "masked_accuracy": accuracy.item(), "rate": rate}


def _predict(run: Pretraining, model: MaskedPredictor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy over the masked frames that have a unit; the loss of the others is added by its weight."""
    audio, units, masked = (part.to(run.device, non_blocking=True) for part in batch)
    asked = (units >= 0) & (masked if not run.recipe.unmasked_weight else torch.ones_like(masked))
    with autocast(run.device):
        logits = model(audio, masked, asked)
    wanted, hidden = units[asked], masked[asked]
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    loss = _mean(losses[hidden])
    if run.recipe.unmasked_weight:
        loss = loss + run.recipe.unmasked_weight * _mean(losses[~hidden])
    return loss, _mean((logits.argmax(-1) == wanted)[hidden].float())


def _mean(values: Tensor) -> Tensor:
    """0 of none: where few short clips are heard at once, no frame with a unit may be masked."""
    return values.sum() / max(1, len(values))


@torch.no_grad()
def _validate(run: Pretraining, model: MaskedPredictor, validation: Labelled | None) -> dict[str, float]:
    """On the same clean windows and masks every time."""
    if validation is None:
        return {}
    recipe, rng, found = run.recipe, np.random.default_rng(run.recipe.seed), []
    model.eval()
    for _ in range(max(1, VALIDATION_WINDOWS // recipe.batch)):
        audio, units = validation.pick(recipe.batch, recipe.window, rng)
        masked = draw_masks(units.shape, recipe.mask_share, recipe.mask_frames, rng)
        found.append(
            torch.stack(_predict(run, model, (torch.from_numpy(audio), torch.from_numpy(units), torch.from_numpy(masked))))
        )
    loss, accuracy = torch.stack(found).mean(0).tolist()
    return {"val_loss": loss, "val_masked_accuracy": accuracy}


def _save(run: Pretraining, model: MaskedPredictor, optimizer: torch.optim.Optimizer, iteration: int, step: int) -> None:
    write_state(run.folder / CHECKPOINT_FILE, model, optimizer, {"iteration": iteration, "step": step})


def _restore(run: Pretraining, model: MaskedPredictor, optimizer: torch.optim.Optimizer, *, same_iteration: bool) -> None:
    """The weights; within an iteration also its head and the optimizer, which a new iteration begins anew."""
    path = run.folder / CHECKPOINT_FILE
    if same_iteration:
        read_state(path, model, optimizer, run.device)
        return
    start = "model.encoder."
    tensors = load_file(path, device=str(run.device))
    model.encoder.load_state_dict({name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)})
