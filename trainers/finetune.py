"""Joint fine-tuning on both tasks: a keyword batch, then a speaker batch, each an update of all parameters (arXiv 2210.16611)."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM
from trainers.batches import Augmentation, Rng, by_length, shuffled, training_windows
from trainers.corpora import Corpus
from trainers.distill import distillation_losses, update
from trainers.precision import autocast
from trainers.recipe import Recipe
from trainers.student import Student
from trainers.targets import Targets

Progress = Callable[[int, int], None]
ADDITIVE_MARGIN = 0.2


class AngularSoftmax(nn.Module):
    """Angular softmax of Liu et al. (SphereFace, arXiv 1704.08063) on unit embeddings: the angle to the right speaker counts
    `margin` times, softened as there by `ease` parts of the plain cosine; logits are scaled by `scale`. The class matrix serves
    training alone. The paper states none of these constants."""

    def __init__(
        self, speakers: int, margin: int = 2, scale: float = 20.0, ease: float = 5.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.ease = margin, scale, ease
        self.classes = nn.Parameter(torch.randn(speakers, EMBEDDING_DIM, generator=generator))

    def forward(self, embedding_be: Tensor, speaker_b: Tensor) -> Tensor:
        """(batch, EMBEDDING_DIM) of unit length, (batch,) class numbers -> the mean loss."""
        cosine_bs = (embedding_be @ F.normalize(self.classes, dim=-1).T).clamp(-1 + 1e-6, 1 - 1e-6)
        right_b = self.right(cosine_bs.gather(1, speaker_b[:, None])[:, 0].acos())
        logits_bs = cosine_bs.scatter(1, speaker_b[:, None], right_b[:, None])
        return F.cross_entropy(self.scale * logits_bs, speaker_b)

    def right(self, angle_b: Tensor) -> Tensor:
        """What an angle to the right speaker counts."""
        turn_b = (angle_b * self.margin / math.pi).floor()  # psi of the paper: monotonous over [0, pi]
        margin_b = (1 - 2 * (turn_b % 2)) * (angle_b * self.margin).cos() - 2 * turn_b
        return (margin_b + self.ease * angle_b.cos()) / (1 + self.ease)


class AdditiveAngularSoftmax(AngularSoftmax):
    """Additive angular margin of Deng et al. (ArcFace, arXiv 1801.07698): the angle to the right speaker counts 0.2 more, and
    beyond pi as much below -1 as it has turned, so that the loss goes on rising."""

    def right(self, angle_b: Tensor) -> Tensor:
        wider_b = angle_b + ADDITIVE_MARGIN
        return torch.where(wider_b < math.pi, wider_b.cos(), -1 - (wider_b - math.pi))


def finetune(
    student: Student,
    corpus: Corpus,
    recipe: Recipe,
    *,
    steps: int,
    window: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    targets: Targets | None = None,
    progress: Progress | None = None,
) -> list[tuple[float, ...]]:
    """Trains the student in place on the corpus' train split; returns each task's loss of every step, keywords first.

    steps: of one update a task each.
    targets: of the distillation loss, where the recipe keeps it and the student has prediction layers.
    """
    rng = np.random.default_rng(seed)
    student.to(device).train()
    if recipe.frozen:
        freeze(student)
    keywords = _keyword_batches(student, corpus, recipe, rng)
    speakers, count = _speaker_batches(corpus, recipe, window, rng)
    kind = AngularSoftmax if recipe.margin == "angular" else AdditiveAngularSoftmax
    angular = kind(count, generator=torch.Generator().manual_seed(seed)).to(device)
    kept = None
    if recipe.distilling and targets and student.predicted_layers:
        kept = distillation_losses(student, targets, recipe.batch, augment, rng, device)
    optimizer, schedule = _optimizer(student, angular, recipe, steps)

    changing = dataclasses.replace(augment, equalizer_db=recipe.equalizer_db, mask_share=recipe.mask_share)

    def forward(batch: Batch, augment: Augmentation) -> tuple[Tensor, Tensor, Tensor]:
        audio = training_windows(corpus, batch.rows, window, rng, augment, speeds=batch.speeds).to(device)
        with autocast(device):
            logits, embedding = student(audio)
        return logits.float(), embedding.float(), torch.tensor(batch.labels, device=device)

    def keyword_loss() -> Tensor:
        logits, _, wanted = forward(next(keywords), changing)
        return F.cross_entropy(logits, wanted)

    def speaker_loss() -> Tensor:
        _, embedding, wanted = forward(next(speakers), augment)
        loss: Tensor = angular(embedding, wanted)
        return loss + recipe.distilling * next(kept) if kept else loss

    tasks = [loss for loss, is_asked in ((keyword_loss, recipe.keywords), (speaker_loss, recipe.speakers)) if is_asked]
    losses = []
    for step in range(steps):
        computed = []
        for task in tasks:
            loss = task()
            update(student, optimizer, loss)
            schedule.step()
            computed.append(loss.item())
        losses.append(tuple(computed))
        if progress:
            progress(step + 1, steps)
    return losses


def freeze(student: Student) -> None:
    """All but the heads, statistics of norms in the encoder included."""
    student.encoder.eval()
    for part in (student.encoder, student.predictions):
        part.requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips, the speed of each, and its class."""

    rows: list[int]
    speeds: list[float]
    labels: list[int]


def _keyword_batches(student: Student, corpus: Corpus, recipe: Recipe, rng: Rng) -> Iterator[Batch]:
    labels = {keyword: i for i, keyword in enumerate(student.keywords)}
    clips = shuffled(corpus.rows("train", with_keyword=True), rng)
    while True:
        rows = list(islice(clips, recipe.batch))
        speeds = rng.choice(recipe.speeds, size=recipe.batch).tolist()
        yield Batch(rows=rows, speeds=speeds, labels=[labels[corpus.keywords[row]] for row in rows])


def _speaker_batches(corpus: Corpus, recipe: Recipe, window: int, rng: Rng) -> tuple[Iterator[Batch], int]:
    """Batches for ever, and the number of classes: speakers times speeds."""
    rows_of_speakers = corpus.rows("train", with_speaker=True)
    speakers = {name: i for i, name in enumerate(np.unique(corpus.speakers[rows_of_speakers].astype(str)))}
    clips = by_length(corpus, rows_of_speakers, window, rng)

    def batches() -> Iterator[Batch]:
        while True:
            rows, at = list(islice(clips, recipe.batch)), rng.integers(len(recipe.speaker_speeds), size=recipe.batch)
            labels = [speakers[corpus.speakers[row]] + int(i) * len(speakers) for row, i in zip(rows, at)]
            yield Batch(rows=rows, speeds=[recipe.speaker_speeds[i] for i in at], labels=labels)

    return batches(), len(speakers) * len(recipe.speaker_speeds)


def _optimizer(
    student: Student, angular: AngularSoftmax, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    front = {name for name, _ in student.named_parameters() if name.startswith("encoder.front")}
    groups = [[p for name, p in student.named_parameters() if (name in front) == is_front] for is_front in (True, False)]
    rates = [recipe.rate * recipe.front_rate, recipe.rate]
    optimizer = torch.optim.Adam(
        [{"params": params, "lr": rate} for params, rate in zip((groups[0], [*groups[1], *angular.parameters()]), rates)]
    )
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=(recipe.keywords + recipe.speakers) * steps + 1, pct_start=0.15, cycle_momentum=False
    )
