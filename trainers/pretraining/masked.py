"""Masked prediction: the network that predicts, what it hears, and which frames are hidden (HuBERT, arXiv 2106.07447)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.architecture import frame_count
from trainers.learning.batches import Rng
from trainers.networks.encoder import SpeechEncoder, normalize
from trainers.pretraining.units import Utterances

CODE_WIDTH = 256  # HuBERT Base's
TEMPERATURE = 0.1


class MaskedPredictor(nn.Module):
    """The encoder with a mask's embedding, and codewords that its last hidden state is compared with."""

    def __init__(self, encoder: SpeechEncoder, units: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask = nn.Parameter(torch.rand(encoder.architecture.width))
        self.head = nn.Linear(encoder.architecture.width, CODE_WIDTH)
        self.codewords = nn.Parameter(torch.randn(units, CODE_WIDTH) / CODE_WIDTH**0.5)

    def forward(self, x_bn: Tensor, masked_bt: Tensor, asked_bt: Tensor) -> Tensor:
        """(batch, samples), twice (batch, frames) -> logits of the frames that are asked for (asked, units)."""
        if self.encoder.geometry.normalize_input:
            x_bn = normalize(x_bn)
        x_btw = self.encoder.projection(self.encoder.front_norm(self.encoder.front(x_bn, None)))
        *_, state_btw = self.encoder.transform(torch.where(masked_bt[..., None], self.mask.to(x_btw.dtype), x_btw), None)
        code_ac = F.normalize(self.head(state_btw[asked_bt]).float(), dim=-1)
        logits_au: Tensor = code_ac @ F.normalize(self.codewords, dim=-1).T / TEMPERATURE
        return logits_au


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Utterances, and the unit of each of their frames."""

    clips: Utterances
    units: NDArray[np.int16]

    def pick(self, count: int, window: int, rng: Rng) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(count, window) samples and (count, frames) units, -1 outside of the clip. Every frame is as likely to be heard."""
        frames = frame_count(window)
        wanted = np.searchsorted(self.clips.firsts, rng.integers(self.clips.firsts[-1], size=count), side="right") - 1
        audio = np.zeros((count, window), np.float32)
        units = np.full((count, frames), -1, np.int64)
        for i, utterance in enumerate(wanted):
            begin, length = int(self.clips.firsts[utterance]), int(self.clips.frames[utterance])
            slack = max(5, frames // 5)  # a short clip lies anywhere, a long one begins and ends up to so much outside
            first = int(rng.integers(-slack, max(0, length - frames) + slack + 1))
            audio[i] = self.clips.audio(int(utterance), first, window)
            low, high = max(first, 0), min(first + frames, length)
            if low < high:
                units[i, low - first : high - first] = self.units[begin + low : begin + high]
        return audio, units


def draw_masks(shape: tuple[int, int], share: float, span: int, rng: Rng) -> NDArray[np.bool_]:
    """(batch, frames): spans of `span` frames, which may overlap, at least one a row."""
    begins = rng.random(shape) < share
    begins[np.arange(shape[0]), rng.integers(max(1, shape[1] - span), size=shape[0])] |= ~begins.any(1)
    masked = np.zeros(shape, bool)
    for offset in range(min(span, shape[1])):
        masked[:, offset:] |= begins[:, : shape[1] - offset]
    return masked


def overlap(audio: NDArray[np.float32], share: float, rng: Rng) -> NDArray[np.float32]:
    """Mixes a stretch of another row, at most half a window, -5 to 5 dB, into a share of the rows (batch, samples)."""
    out, samples = audio.copy(), audio.shape[1]
    loudness = np.sqrt(np.mean(audio**2, 1)) + 1e-6
    for row in np.flatnonzero(rng.random(len(audio)) < share):
        other, length = int(rng.integers(len(audio))), int(rng.integers(samples // 10, samples // 2))
        source, place = rng.integers(samples - length, size=2)
        gain = 10 ** (rng.uniform(-5, 5) / 20) * loudness[row] / loudness[other]
        out[row, place : place + length] += gain * audio[other, source : source + length]
    return out
