"""What a tutor answers beside the labels: the teacher itself, tuned on the same tasks.

A student hears the same windows as its tutor and matches its answers (Hinton et al., arXiv 1503.02531; that both hear the same view
is what makes it work, Beyer et al., arXiv 2106.05237). Windows of either task serve both: speech without keywords has voices and
words too. Answers come with the batch, so that students that share batches share them.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM
from trainers.learning.precision import autocast
from trainers.learning.streams import Batch, Stream
from trainers.networks.student import Student

TEMPERATURE = 2.0


def answered(stream: Stream, tutor: Student, device: torch.device) -> Stream:
    """The same batches with the tutor's answers."""
    tutor.to(device).eval()

    @torch.no_grad()
    def of(step: int) -> Batch:
        batch = stream(step)
        with autocast(device):
            logits, embedding = tutor(torch.tensor(batch.audio, device=device).float())
        return dataclasses.replace(batch, answers=torch.cat([logits, embedding], 1).half().cpu().numpy())

    return of


class Tutoring(nn.Module):
    """Divergence of the softened keyword logits, and the cosine distance of embeddings, the student's turned to the tutor's by a
    linear map that serves training alone."""

    def __init__(self, *, keywords: bool, speakers: bool) -> None:
        super().__init__()
        self.keywords, self.speakers = keywords, speakers
        self.turn = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        nn.init.eye_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)

    def forward(self, logits_bk: Tensor, embedding_be: Tensor, answers_ba: Tensor) -> Tensor:
        """(batch, keywords), (batch, EMBEDDING_DIM), (batch, keywords + EMBEDDING_DIM) -> the mean loss, of the trained tasks."""
        tutors_bk, tutors_be = torch.split(answers_ba, [logits_bk.shape[1], EMBEDDING_DIM], 1)
        loss = torch.zeros((), device=logits_bk.device)
        if self.keywords:
            soft, wanted = ((x / TEMPERATURE).log_softmax(-1) for x in (logits_bk, tutors_bk))
            loss = loss + TEMPERATURE**2 * F.kl_div(soft, wanted, reduction="batchmean", log_target=True)
        if self.speakers:
            loss = loss + (1 - F.cosine_similarity(self.turn(embedding_be), tutors_be, dim=-1)).mean()
        return loss
