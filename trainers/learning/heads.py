"""A student's heads in closed form: discriminants of what its encoder makes of the speech on which it is tuned.

An encoder that was fitted to its teacher has the words and voices in it, and heads that begin at random shake it while they find
them. The keyword head begins as the classifier of Gaussians that have one covariance, the speaker head as linear discriminants;
then the statistics of the norm before them stay, since those of a batch of 16 windows are noise to a map that was fitted.

After tuning they are fitted again: in some hundred steps an encoder learns more than its heads follow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import EMBEDDING_DIM
from trainers.learning.precision import autocast
from trainers.learning.streams import Stream
from trainers.networks.fitting import regress
from trainers.networks.student import Student

KEYWORD_SHRINKAGE = 0.1  # of the scatter within classes, towards a multiple of the identity
SPEAKER_SHRINKAGE = 0.2
HELD_OUT = 5  # of so many windows one tells how sure the keyword head may be
AGAIN = 5  # times the steps: in equal time better than 2 by 2 to 4 points of words, and 8 is no better
SCALES = torch.logspace(1, -8, 19, base=2)


def head_batches(steps: int, most: int) -> tuple[int, int]:
    """Of each task, on which heads are fitted before so many steps of tuning, and after them."""
    return min(steps, most), min(AGAIN * steps, most)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """features: (windows, features), what a student's norm reads; labels: (windows,); answers: a tutor's, None without one."""

    features: Tensor
    labels: Tensor
    answers: Tensor | None = None


@torch.no_grad()
def hear(
    student: Student,
    stream: Stream,
    steps: int,
    device: torch.device,
    *,
    begun: Heard | None = None,
    keep: Callable[[Callable[[], Heard]], object] = lambda heard: None,
) -> Heard:
    """Of the first batches of a stream, so many; the student is then as it was.

    begun: of the first of them, what was heard before. keep: hears after each batch of a function that gives all so far."""
    was_training, parts = student.training, [begun] if begun else []
    student.eval()
    at = 0 if begun is None else len(begun.labels) // len(stream(0).labels)
    for batch in map(stream, range(at, steps)):
        with autocast(device):
            features = student.hear(torch.tensor(batch.audio, device=device).float()).float()
        answers = None if batch.answers is None else torch.tensor(batch.answers, device=device).float()
        parts.append(Heard(features=features, labels=torch.tensor(batch.labels, device=device), answers=answers))
        keep(lambda: _joined(parts))
    student.train(was_training)
    return _joined(parts)


def _joined(parts: Sequence[Heard]) -> Heard:
    """With answers where all have some."""
    answers = [part.answers for part in parts if part.answers is not None]
    return Heard(
        features=torch.cat([part.features for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        answers=torch.cat(answers) if len(answers) == len(parts) else None,
    )


def to_tensors(heard: Mapping[str, Heard]) -> dict[str, Tensor]:
    """What was heard of each task, for a checkpoint."""
    return {f"{task}.{name}": value for task, one in heard.items() for name, value in vars(one).items() if value is not None}


def from_tensors(kept: Mapping[str, Tensor], device: torch.device) -> dict[str, Heard]:
    """`to_tensors` backwards."""
    tasks = {name.partition(".")[0] for name in kept}
    fields = {
        task: {name.partition(".")[2]: kept[name].to(device) for name in kept if name.startswith(f"{task}.")} for task in tasks
    }
    return {task: Heard(**fields[task]) for task in tasks}


@torch.no_grad()
def fit_heads(
    student: Student, words: Heard | None, voices: Heard | None, classes: nn.Parameter, corpora_s: Tensor, turn: nn.Linear | None
) -> None:
    """Sets the norm's statistics and the heads of the tasks that were heard; one speaker alone tells nothing of voices.

    classes: (speakers, EMBEDDING_DIM), of a speaker's softmax: each becomes the mean of its speaker's embeddings. corpora_s:
    (speakers,), the number of each one's corpus. turn: from the student's embeddings to its tutor's, where voices have answers.
    """
    heard = torch.cat([task.features for task in (words, voices) if task])
    if isinstance(student.norm, nn.BatchNorm1d):
        assert student.norm.running_mean is not None and student.norm.running_var is not None
        student.norm.running_mean.copy_(heard.mean(0))
        student.norm.running_var.copy_(heard.var(0, correction=0))
    student.norm.eval()
    if words:
        head = student.keyword_head
        read_nf = student.norm(words.features)[:, -head.in_features :]  # the last state's are the last
        _set(head, *_keyword_map(read_nf, words.labels, head.out_features))
    if voices and len(torch.unique(voices.labels)) > 1:
        read_nf = student.norm(voices.features)
        _set(student.speaker_head, *speaker_map(read_nf, voices.labels, corpora_s))
        embedding_ne = F.normalize(student.speaker_head(read_nf), dim=-1)
        numbers, centre_se = _centres(embedding_ne, voices.labels)
        classes[numbers] = EMBEDDING_DIM**0.5 * F.normalize(centre_se, dim=-1)
        if turn is not None and voices.answers is not None:
            regress(turn, embedding_ne, voices.answers[:, -EMBEDDING_DIM:])


def _keyword_map(x_nf: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`keyword_map`, as sure as is right for windows that it was not made of."""
    held = torch.arange(len(x_nf), device=x_nf.device) % HELD_OUT == 0
    weight_fk, bias_k = keyword_map(x_nf[~held], labels[~held], count)
    said_nk = x_nf[held] @ weight_fk + bias_k
    wrong = torch.stack([F.cross_entropy(scale * said_nk, labels[held]) for scale in SCALES])
    scale = float(SCALES[int(wrong.argmin())])
    weight_fk, bias_k = keyword_map(x_nf, labels, count)
    return scale * weight_fk, scale * bias_k


def keyword_map(x_nf: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(features, keywords), (keywords,): the classifier of Gaussians of one covariance. A keyword without windows has no weight."""
    numbers, centre_kf = _centres(x_nf, labels)
    weight_fk = torch.linalg.solve(_scatter(x_nf, labels, KEYWORD_SHRINKAGE), centre_kf.T)
    shares_k = torch.bincount(labels, minlength=count).clamp(min=0.5) / len(labels)
    weight, bias = x_nf.new_zeros(x_nf.shape[1], count), shares_k.log()
    weight[:, numbers] = weight_fk
    bias[numbers] -= (centre_kf * weight_fk.T).sum(1) / 2
    return weight, bias


def speaker_map(x_nf: Tensor, labels: Tensor, corpora_s: Tensor) -> tuple[Tensor, Tensor]:
    """(features, EMBEDDING_DIM), (EMBEDDING_DIM,): linear discriminants, each counted by the share of its variance that lies
    between speakers of one corpus, as `trainers.probing.linear.fit_speakers` does. Few speakers have few; the rest of the map is
    zero. corpora_s: the number of each label's corpus: what tells corpora apart, rooms and microphones, tells no voices."""
    numbers, centre_sf = _centres(x_nf, labels)
    share_s = torch.bincount(labels)[numbers] / len(labels)
    middle_f = share_s @ centre_sf
    corpus_s = torch.unique(corpora_s[numbers], return_inverse=True)[1]
    share_cs = share_s * F.one_hot(corpus_s).T
    middle_cf = share_cs @ centre_sf / share_cs.sum(1, keepdim=True)
    spread_sf = (centre_sf - middle_cf[corpus_s]) * share_s.sqrt()[:, None]
    lower_ff = torch.linalg.cholesky(_scatter(x_nf, labels, SPEAKER_SHRINKAGE))
    whitened_fs = torch.linalg.solve_triangular(lower_ff, spread_sf.T, upper=False)
    ratio_s, axes_ss = torch.linalg.eigh(whitened_fs.T @ whitened_fs)  # variance between by variance within, rising
    few = min(EMBEDDING_DIM, len(numbers) - 1)
    ratio_d, axes_sd = ratio_s.flip(0)[:few].clamp(min=1e-6), axes_ss.flip(1)[:, :few]
    direction_fd = whitened_fs @ (axes_sd / ratio_d.sqrt())
    weight_fe = x_nf.new_zeros(x_nf.shape[1], EMBEDDING_DIM)
    weight_fe[:, :few] = torch.linalg.solve_triangular(lower_ff.T, direction_fd * (ratio_d / (1 + ratio_d)).sqrt(), upper=True)
    return weight_fe, -middle_f @ weight_fe


def _scatter(x_nf: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """(features, features): covariance within classes, shrunk."""
    numbers, centre_cf = _centres(x_nf, labels)
    apart_nf = x_nf - centre_cf[torch.searchsorted(numbers, labels)]
    scatter_ff = (1 - shrinkage) / len(x_nf) * (apart_nf.T @ apart_nf)
    scatter_ff.diagonal().add_(shrinkage / (1 - shrinkage) * scatter_ff.diagonal().mean() + torch.finfo(x_nf.dtype).eps)
    return scatter_ff


def _centres(x_nf: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(classes,), (classes, features): the classes that are there, rising, and their means."""
    numbers, places = torch.unique(labels, return_inverse=True)
    sums = x_nf.new_zeros(len(numbers), x_nf.shape[1]).index_add_(0, places, x_nf)
    return numbers, sums / torch.bincount(places)[:, None]


def _set(head: nn.Linear, weight_io: Tensor, bias_o: Tensor) -> None:
    head.weight.copy_(weight_io.T)
    head.bias.copy_(bias_o)
