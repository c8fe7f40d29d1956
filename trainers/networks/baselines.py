"""BC-ResNet (Kim et al., arXiv 2106.04140): a small network that distils nothing.

With 321,000 parameters it matches students of many millions on Speech Commands, so a front that leaves it out misleads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.architecture import BC_BINS, BC_STEM, Baseline, Geometry, mel_frames
from search_spaces.cost import BYTES, Cost, mel_alive
from trainers.networks.broadcast import Broadcast
from trainers.networks.encoder import normalize


class BroadcastResNet(Broadcast):
    """Samples to one state a log-mel frame, in the place of a student's encoder; `Student` adds the heads.

    Ours is, beside what `Broadcast` says, what `Student` does after the mean over time.
    """

    def __init__(self, architecture: Baseline, geometry: Geometry) -> None:
        super().__init__(architecture.width)
        self.architecture, self.geometry = architecture, geometry

    def forward(self, x_bn: Tensor) -> list[Tensor]:
        """(batch, samples) -> [(batch, frames, width)]."""
        return list(self.states(x_bn))

    def states(self, x_bn: Tensor) -> Iterator[Tensor]:
        """The one state, as `trainers.networks.encoder.SpeechEncoder.states` gives all of its."""
        yield self.hear(normalize(x_bn.float()))


def counted_cost(model: nn.Module, baseline: Baseline, samples: int) -> Cost:
    """As `search_spaces.cost.cost`, of a student around a baseline, by torch's own count.

    weight_bytes has batch norm's statistics too. peak_activation_bytes is the log-mel's or the stem's.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, samples))
    params = sum(weight.numel() for weight in model.parameters())
    constants = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    stem = 2 * BC_STEM * baseline.scale * BC_BINS // 2 * mel_frames(samples)  # before and after its activation
    return Cost(
        params=params,
        weight_bytes=BYTES * (params + constants),
        macs={"all": int(counter.get_total_flops()) // 2},
        peak_activation_bytes=BYTES * (samples + max(mel_alive(mel_frames(samples)), stem)),
    )
