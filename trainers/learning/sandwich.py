"""Training of the shared student by the sandwich rule (Yu and Huang, arXiv 1903.05134): every batch trains a largest, a smallest
and a random member, whose gradients are summed. It is distilled, then tuned on both tasks. Rates and
lengths were found by trial: `tests/benchmarks/README.md`.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace, front_alone
from trainers.learning.batches import Augmentation
from trainers.learning.distill import CLIP_NORM, distillation_loss, distiller, warm_up
from trainers.learning.elastic import Elastic, identity, load_shared, number_of
from trainers.learning.finetune import finetune
from trainers.learning.precision import autocast
from trainers.learning.resume import CHECKPOINT_ASKED, Checkpoint, interval, kept_position, restore_generators, write_state
from trainers.learning.streams import DISTILLATION, Share, alone, distillation_stream
from trainers.learning.targets import Targets
from trainers.networks.student import Student

Progress = Callable[[int, int], None]
RATE = 1.5  # of the shared student's fine-tuning over a candidate's
TUNED = 4  # steps of fine-tuning for each of distillation


def train_shared(
    elastic: Elastic,
    targets: Targets,
    *,
    steps: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    path: Path,
    tutor: Student | None = None,
    share: Share = alone,
) -> None:
    """Distils the shared weights for a share of the steps (`distilled_steps`), then tunes them for all of them, and writes them to
    `path`, from which an interrupted distillation goes on; tuning goes on from a checkpoint beside it, which it takes away.
    Raises as `distill_shared`.

    The seed is that of the candidates, so that their random matrix of speaker classes begins as this one's did: with another one
    what was inherited is lost in part, and EERs rose by two points or more.
    """
    if kept_position(path).get("tuned", 0) >= steps:
        return
    distilled = distilled_steps(steps)
    distill_shared(elastic, targets, steps=distilled, augment=augment, seed=seed, device=device, path=path)
    recipe = dataclasses.replace(elastic.recipe, rate=RATE * elastic.recipe.random_rate)
    tuned = Sandwich(elastic, seed)
    made_of = [
        identity(elastic.space, elastic.teacher, recipe),
        elastic.keywords,
        targets.corpus.digest,
        steps,
        seed,
        tutor is None,
    ]
    kept = path.parent / "tuned" / "shared student.safetensors"
    checkpoint = Checkpoint(path=kept, of=number_of([*made_of, dataclasses.asdict(recipe)]))
    finetune(
        tuned,
        targets.corpus,
        recipe,
        steps=steps,
        window=targets.window,
        augment=augment,
        seed=seed + 1,
        device=device,
        tutor=tutor if recipe.tutor_weight else None,
        checkpoint=checkpoint,
        share=share,
    )
    write_shared(path, elastic, distiller(elastic, recipe), steps=distilled, tuned=steps)
    checkpoint.path.unlink(missing_ok=True)


def distilled_steps(steps: int) -> int:
    """Of distillation, before so many of fine-tuning."""
    return math.ceil(steps / TUNED)


def distill_shared(
    elastic: Elastic,
    targets: Targets,
    *,
    steps: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    path: Path | None = None,
    share: Share = alone,
    progress: Progress | None = None,
) -> list[float]:
    """Trains the shared weights in place by the sandwich rule (Yu and Huang, arXiv 1903.05134): the gradient of a largest, a
    smallest and a random member on the same batch; returns the sum of their losses of every step.

    path: where to write the weights every so often, and go on from. Raises ValueError where they are of another space, teacher or
    recipe, FloatingPointError when training diverges.
    """
    elastic.to(device).train()
    optimizer = distiller(elastic, elastic.recipe)
    done, asked = 0, False
    if path and kept_position(path):
        done = load_shared(elastic, path, device, optimizer)
        restore_generators(path, device)
    stream = share(DISTILLATION, distillation_stream(targets, elastic.recipe.batch, augment, seed))
    losses, written = list[float](), time.monotonic()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * warm_up(step, steps) * cool_down(step, steps)
        batch = stream(step)
        states, audio = targets.batch(batch.labels, device), torch.tensor(batch.audio, device=device).float()
        total = 0.0
        optimizer.zero_grad(set_to_none=True)
        for member in sandwich(elastic.space, seed, step):
            with autocast(device):
                predicted = elastic.predict_teacher(member, audio, states[0].shape[1])
            loss = torch.stack([distillation_loss(p.float(), s) for p, s in zip(predicted, states)]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not total < float("inf"):
            raise FloatingPointError(f"the loss became {total}")
        nn.utils.clip_grad_norm_(elastic.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(total)
        asked_now = path is not None and not asked and (path.parent / CHECKPOINT_ASKED).exists()
        if path and (step + 1 == steps or asked_now or time.monotonic() - written >= interval()):
            write_shared(path, elastic, optimizer, steps=step + 1)
            asked, written = asked or asked_now, time.monotonic()
        if progress:
            progress(step + 1, steps)
    return losses


def write_shared(path: Path, elastic: Elastic, optimizer: torch.optim.Optimizer, *, steps: int, tuned: int = 0) -> None:
    made_for = {"of": identity(elastic.space, elastic.teacher, elastic.recipe), "words": number_of(elastic.keywords)}
    write_state(path, elastic, optimizer, {"steps": steps, "tuned": tuned, **made_for})


def cool_down(step: int, steps: int) -> float:
    """Share of the rate, a cosine down to nothing: what is taken out is not distilled on."""
    return (1 + math.cos(math.pi * step / steps)) / 2


class Sandwich(nn.Module):
    """The shared student as `trainers.learning.finetune` trains it: a largest, a smallest and a random member hear every batch."""

    def __init__(self, elastic: Elastic, seed: int) -> None:
        super().__init__()
        self.elastic, self.seed = elastic, seed
        self.keywords, self.predicted_layers = elastic.keywords, elastic.teacher.predicted_layers
        self.heard: Tensor  # batches; a buffer, so that a training goes on with the members that come next
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))

    def is_broadcast(self, name: str) -> bool:
        return self.elastic.is_broadcast(name.removeprefix("elastic."))

    def forward(self, audio_bn: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> logits and embeddings, (3 x batch, ...)."""
        members = sandwich(self.elastic.space, self.seed, int(self.heard))
        self.heard += 1
        logits, embeddings = zip(*(self.elastic(member, audio_bn) for member in members))
        return torch.cat(logits), torch.cat(embeddings)


def sandwich(space: SearchSpace, seed: int, step: int) -> list[Architecture]:
    """The members that a step trains: one of the largest sizes, one of the smallest, and one of sizes drawn at random."""
    rng = random.Random(f"{seed} {step}")
    return [_member(space, rng, end) for end in (-1, 0, None)]


def _member(space: SearchSpace, rng: random.Random, end: int | None) -> Architecture:
    """Widths, heads and units at an end of their choices, or drawn. Front ends, strides and sets of layers are drawn for all: what
    was trained seldom was ranked too low, and deep members, when one was in every step, too high."""

    def size(choices: tuple[int, ...]) -> int:
        return rng.choice(choices) if end is None else choices[end]

    front_end = rng.choice(tuple(space.front_widths))
    kept = rng.choice([kept for kept in space.kept_layers if kept or front_end == "bc"])
    front_width = size(space.front_widths[front_end])
    if not kept:
        return front_alone(front_end, front_width)
    return Architecture(
        front_end=front_end,
        front_width=front_width,
        frame_stride=rng.choice(space.frame_strides),
        width=size(space.widths),
        heads=tuple(size(space.heads) for _ in kept),
        ffn_dims=tuple(size(space.ffn_dims) for _ in kept),
        kept_layers=kept,
    )
