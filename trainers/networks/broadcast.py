"""Broadcast residual blocks over log-mel, of BC-ResNet (Kim et al., arXiv 2106.04140): most of a block works on the mean over
frequency, a sequence, and is broadcast back over frequency.

Shapes: b batch, n samples, c channels, f mel bins, t frames at 100 Hz, w width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import BC_BANDS, BC_BINS, BC_STAGES, BC_STEM, BC_UNIT
from trainers.networks.log_mel import LogMel

DROPOUT = 0.1


class SubSpectralNorm(nn.Module):
    """Batch norm with statistics of its own for each of five bands of frequency (Chang et al., arXiv 2103.13620)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels * BC_BANDS)

    def forward(self, x_bcft: Tensor) -> Tensor:
        banded = torch.unflatten(x_bcft, 2, (BC_BANDS, -1)).flatten(1, 2)
        return torch.unflatten(self.norm(banded), 1, (-1, BC_BANDS)).flatten(2, 3)


class Block(nn.Module):
    """relu(x + y + z): y is x filtered over frequency, z the mean of y over frequency, filtered over time and broadcast.

    The first block of a stage brings the channels to their number before y, and leaves x out.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int, stride: int | None = None) -> None:
        super().__init__()
        self.is_first = stride is not None
        self.widen = nn.Identity() if stride is None else pointwise(inputs, outputs)
        self.over_frequency = nn.Sequential(
            nn.Conv2d(outputs, outputs, (3, 1), (stride or 1, 1), (1, 0), groups=outputs, bias=False), SubSpectralNorm(outputs)
        )
        self.over_time = nn.Sequential(
            nn.Conv2d(outputs, outputs, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=outputs, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.Dropout2d(DROPOUT),
        )

    def forward(self, x_bcft: Tensor, valid_b11t: Tensor | None = None) -> Tensor:
        y_bcft = self.over_frequency(self.widen(x_bcft))
        z_bcft = y_bcft + self.over_time(masked(y_bcft.mean(2, keepdim=True), valid_b11t))
        return F.relu(z_bcft if self.is_first else x_bcft + z_bcft)


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def masked(x_bcft: Tensor, valid_b11t: Tensor | None) -> Tensor:
    """Zeros after a row's end, as a convolution has there at the end of the batch."""
    return x_bcft if valid_b11t is None else x_bcft * valid_b11t


class Broadcast(nn.Module):
    """Normalised samples to states, at 100 a second or, with a stride of 2, every other one: the last convolution over time leaves
    out the rest.

    width: of the states, 32 times the paper's scale. Ours are the windows of 25 ms (the paper's have 30) and the normalised input.
    """

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        channels = BC_STEM * width // BC_UNIT
        self.mel = LogMel(BC_BINS)
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        blocks = []
        for own, count, over_mels, dilation in BC_STAGES:
            outputs = own * width // BC_UNIT
            blocks.append(Block(channels, outputs, dilation, over_mels))
            channels = outputs
            blocks += [Block(channels, channels, dilation) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)
        over_bins = nn.Conv2d(channels, channels, 5, (1, stride), padding=(0, 2), groups=channels, bias=False)
        self.tail = nn.Sequential(over_bins, *pointwise(channels, width))

    def hear(self, x_bn: Tensor, valid_bt: Tensor | None = None) -> Tensor:
        """(batch, samples) -> (batch, frames, width). valid_bt: the log-mel's frames that count, all where it is None."""
        valid_b11t = None if valid_bt is None else valid_bt[:, None, None]
        with torch.autocast(x_bn.device.type, enabled=False):  # a power spectrum in bfloat16 is noise
            mel_btf = self.mel(x_bn.float())
        x_bcft = self.stem(masked(mel_btf.transpose(1, 2)[:, None], valid_b11t))
        for block in self.blocks:
            x_bcft = block(x_bcft, valid_b11t)
        heard_btw: Tensor = self.tail(masked(x_bcft, valid_b11t)).squeeze(2).transpose(1, 2)
        return heard_btw
