"""BC-ResNet (Kim et al., arXiv 2106.04140): a small network that distils nothing.

Most of a block works on the mean over frequency, a sequence, and is broadcast back over frequency. With 321,000 parameters it
matches students of many millions on Speech Commands, so a front that leaves it out misleads.
Shapes: b batch, n samples, c channels, f mel bins, t frames at 100 Hz, w width.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.architecture import Baseline, Geometry, mel_frames
from search_spaces.cost import BYTES, Cost, mel_alive
from trainers.networks.encoder import normalize
from trainers.networks.log_mel import LogMel, as_exported

MEL_BINS = 40
SUB_BANDS = 5
DROPOUT = 0.1
BASELINE_RATE = 4e-3  # of fine-tuning: after 250 steps on real speech 46 % of 40 keywords, at a student's 5e-4 19 %
STEM = 16  # channels of the first convolution at scale 1
STAGES = ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8))  # channels at scale 1, blocks, stride over mels, dilation


class SubSpectralNorm(nn.Module):
    """Batch norm with statistics of its own for each of five bands of frequency (Chang et al., arXiv 2103.13620)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels * SUB_BANDS)

    def forward(self, x_bcft: Tensor) -> Tensor:
        banded = torch.unflatten(x_bcft, 2, (SUB_BANDS, -1)).flatten(1, 2)
        return torch.unflatten(self.norm(banded), 1, (-1, SUB_BANDS)).flatten(2, 3)


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

    def forward(self, x_bcft: Tensor) -> Tensor:
        y_bcft = self.over_frequency(self.widen(x_bcft))
        z_bcft = y_bcft + self.over_time(y_bcft.mean(2, keepdim=True))
        return F.relu(z_bcft if self.is_first else x_bcft + z_bcft)


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class BroadcastResNet(nn.Module):
    """Samples to one state a log-mel frame, in the place of a student's encoder; `Student` adds the heads.

    Ours are the windows of 25 ms (the paper's have 30), the normalised input, and what `Student` does after the mean over time.
    """

    def __init__(self, architecture: Baseline, geometry: Geometry) -> None:
        super().__init__()
        self.architecture, self.geometry = architecture, geometry
        scale, channels = architecture.scale, STEM * architecture.scale
        self.mel = LogMel(MEL_BINS)
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        blocks = []
        for width, count, stride, dilation in STAGES:
            blocks.append(Block(channels, width * scale, dilation, stride))
            channels = width * scale
            blocks += [Block(channels, channels, dilation) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)
        over_bins = nn.Conv2d(channels, channels, 5, padding=(0, 2), groups=channels, bias=False)
        self.tail = nn.Sequential(over_bins, *pointwise(channels, architecture.width))

    def forward(self, x_bn: Tensor) -> list[Tensor]:
        """(batch, samples) -> [(batch, frames, width)]."""
        return list(self.states(x_bn))

    def states(self, x_bn: Tensor) -> Iterator[Tensor]:
        """The one state, as `trainers.networks.encoder.SpeechEncoder.states` gives all of its."""
        with torch.autocast(x_bn.device.type, enabled=False):  # a power spectrum in bfloat16 is noise
            mel_btf = self.mel(normalize(x_bn.float()))
        x_bcft = self.stem(mel_btf.transpose(1, 2)[:, None])
        yield self.tail(self.blocks(x_bcft)).squeeze(2).transpose(1, 2)


def counted_cost(model: nn.Module, baseline: Baseline, samples: int) -> Cost:
    """As `search_spaces.cost.cost`, of a student around a baseline, by torch's own count.

    weight_bytes has batch norm's statistics too. peak_activation_bytes is the log-mel's or the stem's.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad(), as_exported():
        model(torch.zeros(1, samples))
    params = sum(weight.numel() for weight in model.parameters())
    constants = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    stem = 2 * STEM * baseline.scale * MEL_BINS // 2 * mel_frames(samples)  # before and after its activation
    return Cost(
        params=params,
        weight_bytes=BYTES * (params + constants),
        macs={"all": int(counter.get_total_flops()) // 2},
        peak_activation_bytes=BYTES * (samples + max(mel_alive(mel_frames(samples)), stem)),
    )
