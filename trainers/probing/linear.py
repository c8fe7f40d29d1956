"""Linear probes: logistic regression for keywords, discriminants for speakers, each for several strengths of regularisation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.architecture import EMBEDDING_DIM

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

DECAYS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # L2 penalties of the keyword probe
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6)  # of the within-speaker scatter towards a multiple of the identity
STEPS, EPOCHS, BATCH, RATE = 600, 10, 256, 1e-2  # of the keyword probe's Adam
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class Affine:
    """x -> x @ weight + bias, standardisation included."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, x: Floats) -> Floats:
        """(rows, features) -> (rows, outputs)."""
        y: Floats = x @ self.weight + self.bias
        return y


def fit_keywords(x: Floats, labels: Ints, seed: int, device: torch.device | None = None) -> list[Affine]:
    """Multinomial logistic regression on standardised features by minibatch Adam, one probe for each of DECAYS.

    x (clips, features), labels (clips,) numbers from 0. The seed draws the start and the order of clips. Within 0.3 points of
    L-BFGS run to convergence on the same penalties, and at full batch that has no seed to average over.
    """
    mean, deviation = _moments(x)
    x_nf = torch.from_numpy(((x - mean) / deviation).astype(np.float32)).to(device)
    y_n = torch.from_numpy(labels.astype(np.int64)).to(device)
    weight, bias = _train_heads(x_nf, y_n, int(labels.max()) + 1, torch.Generator().manual_seed(seed))
    return [_unstandardised(w, b, mean, deviation) for w, b in zip(weight, bias)]


@torch.no_grad()
def _train_heads(x_nf: Tensor, y_n: Tensor, classes: int, generator: torch.Generator) -> tuple[Floats, Floats]:
    """All penalties at once, as one wide head: weights (penalties, features, classes) and biases (penalties, classes).

    The gradient of a softmax regression is one product; autograd took twice as long.
    """
    (count, features), penalties = x_nf.shape, torch.tensor(DECAYS, device=x_nf.device)[:, None]
    start = 0.1 * features**-0.5 * torch.randn(features, len(DECAYS), classes, generator=generator)
    weight, bias = start.to(x_nf.device), torch.zeros(len(DECAYS), classes, device=x_nf.device)
    right_nc, steps, batch = F.one_hot(y_n, classes).float(), max(STEPS, EPOCHS * count // BATCH), min(BATCH, count)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        picked, order = order[:batch].to(x_nf.device), order[batch:]
        x = x_nf[picked]
        said = ((x @ weight.flatten(1)).unflatten(1, (-1, classes)) + bias).softmax(-1)
        wrong = (said - right_nc[picked][:, None]) / batch
        weight.grad, bias.grad = (x.T @ wrong.flatten(1)).view_as(weight).addcmul_(weight, penalties), wrong.sum(0)
        optimizer.step()
        schedule.step()
    return weight.transpose(0, 1).cpu().numpy(), bias.cpu().numpy()


def fit_speakers(x: Floats, labels: Ints, seed: int, corpora: Ints | None = None) -> list[Affine]:
    """Linear discriminant analysis to at most EMBEDDING_DIM values that cosines compare, one for each of SHRINKAGES.

    x (windows, features), labels (windows,) numbers from 0, corpora (speakers,) the number of each one's corpus, all of one
    without it: voices are told apart within a corpus, since rooms and microphones tell corpora apart (log-mels of four corpora:
    validation EER 14.5 %, without that 15.6). The seed draws the windows' weights (Bayesian bootstrap, Rubin 1981).
    A direction counts by the share of its variance that lies between speakers. Of what was tried this had the lowest validation
    EER with the teacher, the random copy and log-mels alike (9.8, 36.3, 15.1 %): plain discriminants (11.0, 39.3, 18.2 %)
    count directions full that tell few speakers apart; a map learnt by angular softmax reached 11.5, 36.6, 18.2 %.
    """
    mean, deviation = _moments(x)
    x = (x - mean) / deviation
    weights = np.random.default_rng(seed).exponential(size=len(x)).astype(np.float32)
    weights /= weights.sum()
    sums = np.zeros((int(labels.max()) + 1, x.shape[1]))
    np.add.at(sums, labels, x * weights[:, None])
    shares = np.bincount(labels, weights, len(sums)).astype(np.float64)
    centres = sums / np.maximum(shares, 1e-12)[:, None]
    middle = shares @ centres
    scattered = (x - centres[labels].astype(np.float32)) * np.sqrt(weights)[:, None]
    variances, axes = np.linalg.eigh((scattered.T @ scattered).astype(np.float64))
    of_one = np.zeros(len(sums), np.int64)
    spread = (centres - _middles(centres, shares, of_one if corpora is None else corpora)) * np.sqrt(shares)[:, None]
    fitted = []
    for shrinkage in SHRINKAGES:
        shrunk = (1 - shrinkage) * variances.clip(0) + shrinkage * variances.mean() + SMALLEST_DEVIATION
        whitener = axes / np.sqrt(shrunk)
        _, ratios, directions = np.linalg.svd(spread @ whitener, full_matrices=False)
        ratios, directions = ratios[:EMBEDDING_DIM] ** 2, directions[:EMBEDDING_DIM]  # variance between by variance within
        weight = whitener @ (directions.T * np.sqrt(ratios / (1 + ratios)))
        fitted.append(_unstandardised(weight, -middle @ weight, mean, deviation))
    return fitted


def _middles(centres: Floats, shares: NDArray[np.float64], corpora: Ints) -> Floats:
    """(speakers, features): of each speaker's corpus."""
    sums, weights = np.zeros((int(corpora.max()) + 1, centres.shape[1])), np.bincount(corpora, shares)
    np.add.at(sums, corpora, centres * shares[:, None])
    middles: Floats = (sums / np.maximum(weights, 1e-12)[:, None])[corpora]
    return middles


def _moments(x: Floats) -> tuple[Floats, Floats]:
    return x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + SMALLEST_DEVIATION


def _unstandardised(weight: Floats, bias: Floats, mean: Floats, deviation: Floats) -> Affine:
    scaled = weight / deviation[:, None]
    return Affine(weight=scaled.astype(np.float32), bias=(bias - mean @ scaled).astype(np.float32))
