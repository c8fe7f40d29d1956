"""Log-mel energies of the front ends; exported without a library's Fourier transform, as products.

Shapes: b batch, n samples, t frames at 100 Hz, f mel bins.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from search_spaces.architecture import MEL_BINS, MEL_HOP, RECEPTIVE_FIELD, SAMPLE_RATE

SMALLEST_POWER = 1e-5  # floor under a mel power, about -50 dB of a unit-variance signal
WHISPER_POWER = 1e-10
CENTRED = (RECEPTIVE_FIELD // 2, RECEPTIVE_FIELD // 2 - MEL_HOP)  # samples reflected at either end: Whisper drops the last frame
_by_products = False


@contextmanager
def as_exported() -> Iterator[None]:
    """Within, log-mels are computed as in an exported file, by products alone: to export them, or to count their cost there."""
    global _by_products
    before, _by_products = _by_products, True
    try:
        yield
    finally:
        _by_products = before


class LogMel(nn.Module):
    """Log-mel energies every 10 ms of 25 ms Hann windows, without centre padding.

    In training and scoring the Fourier transform is the library's, which takes a third of the time. In an exported file that of 400
    samples is two products over 20 x 20 (Cooley and Tukey 1965). The first is a convolution over rows of 20 samples, a group for
    each column, which also cuts frames, multiplies by the window and turns; of its 20 bins 11 are computed, since those of real
    samples mirror the others. Nothing is moved between the products. The plain 400 x 402 matrix costs four times as much and
    640 kB in the exported file, more than the smallest student weighs.
    """

    RADIX = 20

    def __init__(self, bins: int = MEL_BINS) -> None:
        super().__init__()
        with torch.device("cpu"):  # constants are real also where a network's weights are not
            constants = self._constants(self._bank(bins))
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.rows: Tensor
        self.columns: Tensor
        self.bank: Tensor
        self.order: Tensor

    def _bank(self, bins: int) -> Tensor:
        """(frequencies, bins)"""
        bank: Tensor = torchaudio.functional.melscale_fbanks(self.RADIX**2 // 2 + 1, 20.0, 7600.0, bins, SAMPLE_RATE)
        return bank

    def _constants(self, bank: Tensor) -> dict[str, Tensor]:
        """rows: (column and part and row bin, 1, 20), the first product's; columns: (part and column bin, column and part), the
        second's; a part is real or imaginary. bank: (bins, column bin and row bin). order: of the frequencies in those."""
        n, half = self.RADIX, self.RADIX // 2 + 1
        at = torch.arange(n, dtype=torch.float64)
        window_rc = torch.hann_window(RECEPTIVE_FIELD, periodic=True, dtype=torch.float64).reshape(n, n)
        turn_ckr = 2 * math.pi * at[:half, None] * (at / n + at[:, None, None] / n**2)
        rows = torch.stack([turn_ckr.cos(), -turn_ckr.sin()], 1) * window_rc.T[:, None, None]
        turn_kc = 2 * math.pi * at[:, None] * at / n
        real, imag = turn_kc.cos(), -turn_kc.sin()
        columns = torch.cat([torch.stack([real, -imag], -1), torch.stack([imag, real], -1)]).flatten(1)
        frequency = (torch.arange(half) + n * torch.arange(n)[:, None]).flatten()
        frequency = torch.minimum(frequency, n**2 - frequency)
        order = torch.stack([(frequency == f).nonzero()[0, 0] for f in range(len(bank))])
        once = torch.zeros(bank.shape[1], n * half).index_copy(1, order, bank.T)
        return {"rows": rows.flatten(0, 2)[:, None].float(), "columns": columns.float(), "bank": once, "order": order}

    def forward(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 100 Hz frames, mel bins)."""
        return self.energies(x_bn).clamp(min=SMALLEST_POWER).log()

    def energies(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 100 Hz frames, mel bins), before the logarithm."""
        if _by_products:
            return self._energies_by_products(x_bn)
        window = self.rows[:: 2 * (self.RADIX // 2 + 1), 0].T.flatten()  # the first row bin turns nothing
        x_btn = x_bn.unfold(-1, RECEPTIVE_FIELD, MEL_HOP) * window
        power_btf = torch.view_as_real(torch.fft.rfft(x_btn)).square().sum(-1)
        return power_btf @ self.bank.T[self.order]

    def _energies_by_products(self, x_bn: Tensor) -> Tensor:
        n, frames = self.RADIX, (x_bn.shape[-1] - RECEPTIVE_FIELD) // MEL_HOP + 1
        columns_bcr = torch.unflatten(x_bn[:, : (frames - 1) * MEL_HOP + RECEPTIVE_FIELD], -1, (-1, n)).transpose(1, 2)
        rows = F.conv1d(columns_bcr, self.rows, stride=MEL_HOP // n, groups=n)  # (batch, column and part and row bin, frame)
        spectrum = torch.matmul(self.columns, torch.unflatten(rows, 1, (2 * n, -1)).flatten(2))
        square = spectrum.square()  # (batch, part and column bin, row bin and frame)
        power_bkt = torch.unflatten(square[:, :n] + square[:, n:], -1, (-1, frames)).flatten(1, 2)
        return torch.matmul(self.bank, power_bkt).transpose(1, 2)


class WhisperLogMel(LogMel):
    """Whisper's (Radford et al., arXiv 2212.04356): Slaney's scale from 0 to 8 kHz, frame m centred on sample 160 m by reflection
    at the window's ends, decimal logarithm, nothing more than 8 below the window's largest, scaled to about -1 to 1."""

    def _bank(self, bins: int) -> Tensor:
        bank: Tensor = torchaudio.functional.melscale_fbanks(
            self.RADIX**2 // 2 + 1, 0.0, SAMPLE_RATE / 2, bins, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        return bank

    def forward(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, samples / 160, mel bins)."""
        energies = self.energies(F.pad(x_bn, CENTRED, "reflect"))
        log_btf = energies.clamp(min=WHISPER_POWER).log10()
        return (torch.maximum(log_btf, log_btf.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
