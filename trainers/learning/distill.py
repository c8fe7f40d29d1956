"""Distillation: the student learns to predict the teacher's hidden states (Kerpicci et al., arXiv 2210.16611)."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.learning.batches import Augmentation
from trainers.learning.lessons import fitting_windows
from trainers.learning.precision import autocast, compiled
from trainers.learning.recipe import Recipe
from trainers.learning.resume import Checkpoint
from trainers.learning.streams import DISTILLATION, Share, Stream, alone, distillation_stream
from trainers.learning.targets import Targets
from trainers.networks.encoder import SpeechEncoder
from trainers.networks.fitting import Lesson, fit, regress
from trainers.networks.student import Student

Progress = Callable[[int, int], None]
Predict = Callable[[Tensor, int], list[Tensor]]
CLIP_NORM = 5.0
WARM_UP = 0.1  # of the steps


def distillation_loss(predicted_btk: Tensor, target_btk: Tensor) -> Tensor:
    """L1 over K channels minus log sigmoid of the cosine, per frame; the mean over frames and clips where the paper sums over
    frames (with windows of one length the two differ by a constant, which Adam does not see)."""
    distance_bt = (predicted_btk - target_btk).abs().mean(-1)
    return (distance_bt - F.logsigmoid(F.cosine_similarity(predicted_btk, target_btk, dim=-1))).mean()


@torch.no_grad()
def fit_student(student: Student, targets: Targets, lesson: Lesson) -> None:
    """Distillation in closed form of a student that inherited from its teacher: encoder, then prediction layers.

    lesson: of these targets (`learning/lessons.py`); the student goes to its device."""
    device = lesson.audio.device
    encoder, teacher = student.to(device).encoder, targets.teacher.encoder.to(device)
    assert isinstance(encoder, SpeechEncoder), "a baseline inherits nothing"
    states = fit(encoder, teacher, lesson)
    if not student.predicted_layers:
        return
    targeted = targets.batch(fitting_windows(targets, len(lesson.audio)), device)
    for layer, at, wanted in zip(student.predictions, student.predicting(len(states) - 1), targeted):
        assert isinstance(layer, nn.Linear)
        layer.weight.zero_()
        layer.bias.zero_()
        steps = states[at].shape[1]
        missing = steps * layer.out_features // wanted.shape[-1] - wanted.shape[1]
        wanted = torch.cat([wanted, wanted[:, -1:].expand(-1, missing, -1)], 1)  # as `strided` has it
        regress(layer, states[at], wanted.reshape(len(wanted), steps, layer.out_features))


def warm_up(step: int, steps: int) -> float:
    """Share of the full rate: it rises linearly over the first tenth of `steps`, then stays, so that training on is exact."""
    return min(1.0, (step + 1) / max(1, round(WARM_UP * steps)))


class Trainable(Protocol):
    """What is trained, a module: a student, or many that share their weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def is_broadcast(self, name: str) -> bool:
        """Whether a parameter belongs to broadcast blocks, or to what has nothing else beneath it."""


def distiller(student: Trainable, recipe: Recipe) -> torch.optim.Optimizer:
    """Each group has its `highest` rate."""
    groups = {recipe.distill_rate: list[nn.Parameter](), recipe.bc_distill_rate: list[nn.Parameter]()}
    for name, parameter in student.named_parameters():
        groups[recipe.bc_distill_rate if student.is_broadcast(name) else recipe.distill_rate].append(parameter)
    each = [{"params": params, "highest": rate} for rate, params in groups.items() if params]
    return torch.optim.AdamW(each, lr=recipe.distill_rate, weight_decay=0.01, fused=True)


def distill(
    student: Student,
    targets: Targets,
    recipe: Recipe,
    *,
    steps: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    done: int = 0,
    first_steps: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: Checkpoint | None = None,
    share: Share = alone,
    progress: Progress | None = None,
) -> list[float]:
    """Trains the student in place up to `steps`; returns the loss of every step. What it hears is augmented, its targets are clean.

    done: steps behind it, to go on exactly, with their `optimizer` (of `distiller`). first_steps: up to which it was to go at
    first, which sets the warm-up. checkpoint: that it is kept in. share: of batches with other students.
    """
    student.to(device).train()
    optimizer = optimizer or distiller(student, recipe)
    stream = share(DISTILLATION, distillation_stream(targets, recipe.batch, augment, seed))
    losses = []
    predict = compiled(student.predict_teacher, device, steps)
    for step, loss in zip(range(done, steps), distillation_losses(predict, targets, stream, device, first=done)):
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * warm_up(step, first_steps or steps)
        update(student.parameters(), optimizer, loss)
        losses.append(loss.item())
        if checkpoint:
            checkpoint.keep(student, optimizer, step + 1)
        if progress:
            progress(step + 1, steps)
    return losses


def distillation_losses(
    predict: Predict, targets: Targets, stream: Stream, device: torch.device, first: int = 0
) -> Iterator[Tensor]:
    """The loss of what a student predicts, as it is, on batch after batch, for ever, summed over the predicted layers.

    predict: `Student.predict_teacher`, compiled or not.
    """
    for step in itertools.count(first):
        batch = stream(step)
        states = targets.batch(batch.labels, device)
        audio = torch.tensor(batch.audio, device=device).float()
        with autocast(device):
            predicted = predict(audio, states[0].shape[1])
        yield torch.stack([distillation_loss(p.float(), s) for p, s in zip(predicted, states)]).sum()


def update(weights: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step, its gradient clipped over `weights`. Raises FloatingPointError when the loss is not finite: a candidate then fails
    instead of scoring noise."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
    optimizer.step()
