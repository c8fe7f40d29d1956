"""Distillation: the student learns to predict the teacher's hidden states (Kerpicci et al., arXiv 2210.16611)."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.batches import Augmentation, Rng, shuffled
from trainers.precision import autocast
from trainers.recipe import Recipe
from trainers.student import Student
from trainers.targets import Targets

Progress = Callable[[int, int], None]
CLIP_NORM = 5.0


def distillation_loss(predicted_btk: Tensor, target_btk: Tensor) -> Tensor:
    """L1 over K channels minus log sigmoid of the cosine, per frame; the mean over frames and clips where the paper sums over
    frames (with windows of one length the two differ by a constant, which Adam does not see)."""
    distance_bt = (predicted_btk - target_btk).abs().mean(-1)
    return (distance_bt - F.logsigmoid(F.cosine_similarity(predicted_btk, target_btk, dim=-1))).mean()


def warm_up(optimizer: torch.optim.Optimizer, steps: int, share: float = 0.1) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear over the first `share` of the steps, then constant: training on from any step is exact."""
    length = max(1, round(steps * share))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / length))


def distill(
    student: Student,
    targets: Targets,
    recipe: Recipe,
    *,
    steps: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> list[float]:
    """Trains the student in place; returns the loss of every step. What the student hears is augmented, its targets are clean."""
    rng = np.random.default_rng(seed)
    student.to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.distill_rate, weight_decay=0.01)
    schedule = warm_up(optimizer, steps)
    computed = distillation_losses(student, targets, recipe.batch, augment, rng, device)
    losses = []
    for step in range(steps):
        loss = next(computed)
        update(student, optimizer, loss)
        schedule.step()
        losses.append(loss.item())
        if progress:
            progress(step + 1, steps)
    return losses


def distillation_losses(
    student: Student, targets: Targets, batch: int, augment: Augmentation, rng: Rng, device: torch.device
) -> Iterator[Tensor]:
    """The loss of the student as it is on batch after batch, for ever, summed over the predicted layers."""
    order = shuffled(np.arange(len(targets.rows)), rng)
    while True:
        picked = np.array(list(islice(order, batch)))
        states = targets.batch(picked, device)
        audio = torch.from_numpy(augment(targets.audio(picked), rng)).to(device)
        with autocast(device):
            predicted = student.predict_teacher(audio, states[0].shape[1])
        yield torch.stack([distillation_loss(p.float(), s) for p, s in zip(predicted, states)]).sum()


def update(student: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One clipped step. Raises FloatingPointError when the loss is not finite: a candidate then fails instead of scoring noise."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
    optimizer.step()
