"""Joint fine-tuning on both tasks: a keyword batch, then a speaker batch, each an update of all parameters (arXiv 2210.16611)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM
from trainers.batches import Augmentation, by_length, shuffled, training_windows
from trainers.corpora import Corpus
from trainers.distill import update
from trainers.precision import autocast
from trainers.student import Student

Progress = Callable[[int, int], None]


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
        angle_b = cosine_bs.gather(1, speaker_b[:, None])[:, 0].acos()
        turn_b = (angle_b * self.margin / math.pi).floor()  # psi of the paper: monotonous over [0, pi]
        margin_b = (1 - 2 * (turn_b % 2)) * (angle_b * self.margin).cos() - 2 * turn_b
        right_b = (margin_b + self.ease * angle_b.cos()) / (1 + self.ease)
        logits_bs = cosine_bs.scatter(1, speaker_b[:, None], right_b[:, None])
        return F.cross_entropy(self.scale * logits_bs, speaker_b)


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """steps: pairs of a keyword and a speaker update. batch: windows an update. rate: Adam's at its height, decayed by a cosine."""

    steps: int
    batch: int
    rate: float = 5e-4


def finetune(
    student: Student,
    corpus: Corpus,
    recipe: FinetuneRecipe,
    *,
    window: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> list[tuple[float, float]]:
    """Trains the student in place on the corpus' train split; returns the keyword and the speaker loss of every step."""
    rng = np.random.default_rng(seed)
    labels = {keyword: i for i, keyword in enumerate(student.keywords)}
    keyword_rows, speaker_rows = corpus.rows("train", with_keyword=True), corpus.rows("train", with_speaker=True)
    speakers = {name: i for i, name in enumerate(np.unique(corpus.speakers[speaker_rows].astype(str)))}
    student.to(device).train()
    angular = AngularSoftmax(len(speakers), generator=torch.Generator().manual_seed(seed)).to(device)
    optimizer = torch.optim.Adam([*student.parameters(), *angular.parameters()], lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=2 * recipe.steps + 1, pct_start=0.15, cycle_momentum=False
    )
    clips, voices = shuffled(keyword_rows, rng), by_length(corpus, speaker_rows, window, rng)

    def forward(rows: list[int]) -> tuple[Tensor, Tensor]:
        audio = training_windows(corpus, rows, window, rng, augment).to(device)
        with autocast(device):
            logits, embedding = student(audio)
        return logits.float(), embedding.float()

    losses = []
    for step in range(recipe.steps):
        rows = [next(clips) for _ in range(recipe.batch)]
        wanted = torch.tensor([labels[corpus.keywords[row]] for row in rows], device=device)
        keyword_loss = F.cross_entropy(forward(rows)[0], wanted)
        update(student, optimizer, keyword_loss)
        schedule.step()
        rows = [next(voices) for _ in range(recipe.batch)]
        wanted = torch.tensor([speakers[corpus.speakers[row]] for row in rows], device=device)
        speaker_loss = angular(forward(rows)[1], wanted)
        update(student, optimizer, speaker_loss)
        schedule.step()
        losses.append((keyword_loss.item(), speaker_loss.item()))
        if progress:
            progress(step + 1, recipe.steps)
    return losses
