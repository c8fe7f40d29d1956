"""Joint fine-tuning on both tasks: a keyword batch and a speaker batch, of which each is an update of all parameters (arXiv
2210.16611), or both together are one."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM
from trainers.learning.batches import Augmentation
from trainers.learning.distill import Trainable, distillation_losses, update
from trainers.learning.heads import Heard, fit_heads, from_tensors, head_batches, hear, to_tensors
from trainers.learning.precision import autocast, compiled
from trainers.learning.recipe import Recipe
from trainers.learning.resume import Checkpoint
from trainers.learning.streams import (
    DISTILLATION,
    KEYWORDS,
    SPEAKERS,
    Batch,
    Share,
    Stream,
    alone,
    corpora_of_classes,
    distillation_stream,
    keyword_stream,
    speaker_stream,
)
from trainers.learning.targets import Targets
from trainers.learning.tutor import Tutoring, answered
from trainers.networks.student import Student
from trainers.speech.corpora import Corpus

Progress = Callable[[int, int], None]
Hearing = Callable[[], Mapping[str, Heard]]
ADDITIVE_MARGIN = 0.2
RISE = 0.15  # of the updates


class Tunable(Trainable, Protocol):
    """What is fine-tuned: a student, or many at once."""

    keywords: tuple[str, ...]

    def __call__(self, audio_bn: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> logits and embeddings, of as many members after one another as heard it."""

    def to(self, device: torch.device) -> Any: ...
    def train(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class AngularSoftmax(nn.Module):
    """Angular softmax of Liu et al. (SphereFace, arXiv 1704.08063) on unit embeddings: the angle to the right speaker counts
    `margin` times, softened as there by `ease` parts of the plain cosine; logits are scaled by `scale`. The class matrix serves
    training alone. The paper states none of these constants.

    corpora: (speakers,), the number of each one's corpus: a voice is told from those of its own corpus alone, since rooms and
    microphones tell corpora apart; None: all are of one.
    """

    corpora: Tensor

    def __init__(
        self,
        speakers: int,
        margin: int = 2,
        scale: float = 20.0,
        ease: float = 5.0,
        generator: torch.Generator | None = None,
        corpora: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.ease = margin, scale, ease
        self.classes = nn.Parameter(torch.randn(speakers, EMBEDDING_DIM, generator=generator))
        corpora = torch.zeros(speakers, dtype=torch.long) if corpora is None else corpora
        self.register_buffer("corpora", corpora, persistent=False)

    def forward(self, embedding_be: Tensor, speaker_b: Tensor) -> Tensor:
        """(batch, EMBEDDING_DIM) of unit length, (batch,) class numbers -> the mean loss."""
        cosine_bs = (embedding_be @ F.normalize(self.classes, dim=-1).T).clamp(-1 + 1e-6, 1 - 1e-6)
        right_b = self.right(cosine_bs.gather(1, speaker_b[:, None])[:, 0].acos())
        logits_bs = self.scale * cosine_bs.scatter(1, speaker_b[:, None], right_b[:, None])
        is_elsewhere_bs = self.corpora != self.corpora[speaker_b][:, None]
        return F.cross_entropy(logits_bs.masked_fill(is_elsewhere_bs, -torch.inf), speaker_b)

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
    student: Tunable,
    corpus: Corpus,
    recipe: Recipe,
    *,
    steps: int,
    window: int,
    augment: Augmentation,
    seed: int,
    device: torch.device,
    targets: Targets | None = None,
    tutor: Student | None = None,
    checkpoint: Checkpoint | None = None,
    share: Share = alone,
    progress: Progress | None = None,
    is_taught: bool = False,
) -> list[tuple[float, ...]]:
    """Trains the student in place on the corpus' train split; returns each task's loss of every step that it
    trained, keywords first.

    steps: of one batch a task, each an update, or both together one (`Recipe.speaker_weight`).
    targets: of the distillation loss, where the recipe keeps it and the student has prediction layers. tutor: whose answers count
    beside the labels; it has the student's keywords.
    checkpoint: that it is kept in, and goes on from. share: of batches with other students. is_taught: a student whose encoder has
    learnt something, and whose heads are fitted first, on the batches on which it then trains. At the end heads are fitted in any
    case, on those and, where they are few, on further ones: see `head_batches`.
    """
    student.to(device)
    kind = AngularSoftmax if recipe.margin == "angular" else AdditiveAngularSoftmax
    corpora = torch.from_numpy(corpora_of_classes(corpus, recipe))
    angular = kind(len(corpora), generator=torch.Generator().manual_seed(seed), corpora=corpora).to(device)
    tutoring = None if tutor is None else Tutoring(keywords=recipe.keywords, speakers=recipe.speakers).to(device)
    optimizer, both = _optimizer(student, angular, tutoring, recipe), _together(student, angular, tutoring)
    read = checkpoint.read(both, optimizer, device) if checkpoint else None
    done = read or 0

    def keep(steps: int, heard: Hearing = dict) -> None:
        if checkpoint:
            checkpoint.keep(both, optimizer, steps, lambda: to_tensors(heard()))

    begun = from_tensors(checkpoint.beside, device) if checkpoint else {}
    plain = _streams(student, corpus, recipe, window, augment, seed, share)
    streams = plain if tutor is None else _streams(student, corpus, recipe, window, augment, seed, _answered(share, tutor, device))
    before, after = head_batches(steps, recipe.head_steps)
    student.train()
    if isinstance(student, Student):
        if is_taught and before:
            if read is None or (not read and begun):  # or cut in the middle of that
                _fit_heads(student, streams, recipe, before, angular, tutoring, device, begun, partial(keep, 0))
                keep(0)
            student.norm.eval()
        if recipe.frozen:
            freeze(student)
    kept = None
    if recipe.distilling and targets and isinstance(student, Student) and student.predicted_layers:
        heard = share(f"{DISTILLATION} kept", distillation_stream(targets, recipe.batch, augment, seed))
        kept = distillation_losses(student.predict_teacher, targets, heard, device, first=done)
    updates = _updates(
        compiled(student, device, steps),
        streams,
        recipe,
        angular,
        tutoring,
        kept,
        device,
    )
    losses = []
    for step in range(done, steps):
        computed = list[float]()
        for place, summed in enumerate(updates):
            each = [loss(step) for loss, _ in summed]
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(len(updates) * step + place, len(updates) * steps, group["highest"])
            total = torch.stack([weight * loss for loss, (_, weight) in zip(each, summed, strict=True)]).sum()
            update(student.parameters(), optimizer, total)
            computed += [loss.item() for loss in each]
        losses.append(tuple(computed))
        keep(step + 1)
        if progress:
            progress(step + 1, steps)
    if isinstance(student, Student) and after:
        begun = begun if read == steps else {}
        _fit_heads(student, _further(streams, plain, steps), recipe, after, angular, None, device, begun, partial(keep, steps))
    return losses


def _streams(
    student: Tunable, corpus: Corpus, recipe: Recipe, window: int, augment: Augmentation, seed: int, share: Share
) -> tuple[Stream, Stream]:
    """Of keywords and of speakers."""
    changing = dataclasses.replace(augment, equalizer_db=recipe.equalizer_db, mask_share=recipe.mask_share)
    keywords = keyword_stream(corpus, student.keywords, recipe, window, changing, seed)
    return share(KEYWORDS, keywords), share(SPEAKERS, speaker_stream(corpus, recipe, window, augment, seed))


def _further(streams: tuple[Stream, ...], plain: tuple[Stream, ...], steps: int) -> tuple[Stream, ...]:
    """The batches of so many steps, and after them those that no tutor was asked about."""

    def joined(asked: Stream, unasked: Stream) -> Stream:
        return lambda step: (asked if step < steps else unasked)(step)

    return tuple(map(joined, streams, plain))


def _fit_heads(
    student: Student,
    streams: tuple[Stream, ...],
    recipe: Recipe,
    steps: int,
    angular: AngularSoftmax,
    tutoring: Tutoring | None,
    device: torch.device,
    begun: Mapping[str, Heard],
    keep: Callable[[Hearing], None],
) -> None:
    """On so many batches of each task. begun: what was heard before; keep: hears of what is heard by now."""
    heard = dict[str, Heard]()

    def of(task: str, stream: Stream) -> Heard:
        kept = begun.get(task)
        return hear(student, stream, steps, device, begun=kept, keep=lambda one: keep(lambda: {**heard, task: one()}))

    for task, stream, is_asked in zip((KEYWORDS, SPEAKERS), streams, (recipe.keywords, recipe.speakers)):
        if is_asked:
            heard[task] = of(task, stream)
    turn = tutoring.turn if tutoring else None
    fit_heads(student, heard.get(KEYWORDS), heard.get(SPEAKERS), angular.classes, angular.corpora, turn)


def _answered(share: Share, tutor: Student, device: torch.device) -> Share:
    """Named by the tutor too: a study that was begun anew has another one."""
    head = tutor.keyword_head.weight.detach().float().cpu().numpy()
    return lambda name, stream: share(
        f"{name} answered {hashlib.sha256(head.tobytes()).hexdigest()[:8]}", answered(stream, tutor, device)
    )


def _updates(
    hear: Callable[[Tensor], tuple[Tensor, Tensor]],
    streams: tuple[Stream, Stream],
    recipe: Recipe,
    angular: AngularSoftmax,
    tutoring: Tutoring | None,
    kept: Iterator[Tensor] | None,
    device: torch.device,
) -> list[list[tuple[Callable[[int], Tensor], float]]]:
    """The updates of a step, each of one task's loss or of both with their weights. kept: distillation losses, one for each of the
    speaker's."""

    def forward(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """Logits, embeddings, labels, and the tutor's loss, of all members that heard it."""
        with autocast(device):
            logits, embedding = hear(torch.tensor(batch.audio, device=device).float())
        logits, embedding, members = logits.float(), embedding.float(), len(logits) // len(batch.labels)
        wanted = torch.tensor(batch.labels, device=device).repeat(members)
        if not tutoring or batch.answers is None:
            return logits, embedding, wanted, 0.0
        answers = torch.tensor(batch.answers, device=device).float().repeat(members, 1)
        return logits, embedding, wanted, recipe.tutor_weight * tutoring(logits, embedding, answers)

    def keyword_loss(step: int) -> Tensor:
        logits, _, wanted, taught = forward(streams[0](step))
        return F.cross_entropy(logits, wanted) + taught

    def speaker_loss(step: int) -> Tensor:
        _, embedding, wanted, taught = forward(streams[1](step))
        loss: Tensor = angular(embedding, wanted) + taught
        return loss + recipe.distilling * next(kept) if kept else loss

    weighted = ((keyword_loss, 1.0, recipe.keywords), (speaker_loss, recipe.speaker_weight, recipe.speakers))
    tasks: list[tuple[Callable[[int], Tensor], float]] = [(loss, weight) for loss, weight, is_asked in weighted if is_asked]
    if len(tasks) == 2 and recipe.speaker_weight > 0:
        return [tasks]
    return [[(loss, 1.0)] for loss, _ in tasks]


def freeze(student: Student) -> None:
    """All but the heads, statistics of norms in the encoder included."""
    student.encoder.eval()
    for part in (student.encoder, student.predictions):
        part.requires_grad_(False)


def one_cycle(update: int, updates: int, highest: float) -> float:
    """The rate of an update (Smith and Topin, arXiv 1708.07120, as torch's OneCycleLR): a cosine up from a 25th over the first
    15 %, and down to nothing. Of the place alone, so that training goes on exactly."""
    top = RISE * (updates + 1) - 1
    first, begin, end = (0.0, highest / 25, highest) if update <= top else (top, highest, highest / 25 / 1e4)
    share = (update - first) / ((top if update <= top else updates) - first)
    return end + (begin - end) / 2.0 * (math.cos(math.pi * share) + 1)


def _together(student: Tunable, *others: nn.Module | None) -> nn.ModuleDict:
    """All that trains."""
    assert isinstance(student, nn.Module)
    named = zip(("student", "angular", "tutoring"), (student, *others))
    return nn.ModuleDict({name: part for name, part in named if part is not None})


def _optimizer(student: Tunable, angular: AngularSoftmax, tutoring: Tutoring | None, recipe: Recipe) -> torch.optim.Optimizer:
    """Each group has its `highest` rate."""
    rates = {"front": recipe.rate * recipe.front_rate, "rest": recipe.rate, "broadcast": recipe.bc_rate}
    groups = {name: list[nn.Parameter]() for name in rates}
    for name, parameter in student.named_parameters():
        is_front = name.startswith("encoder.front") or "/front" in name
        groups["broadcast" if student.is_broadcast(name) else "front" if is_front else "rest"].append(parameter)
    beside = "rest" if groups["rest"] else "broadcast"
    groups[beside] += [*angular.parameters(), *(tutoring.parameters() if tutoring else ())]
    return torch.optim.Adam([{"params": groups[name], "highest": rate} for name, rate in rates.items() if groups[name]], fused=True)
