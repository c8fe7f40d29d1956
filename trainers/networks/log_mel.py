"""Log-mel energies of the front ends, without a library's Fourier transform, so that they are exported as products.

Shapes: b batch, n samples, t frames at 100 Hz, f mel bins.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from search_spaces.architecture import MEL_BINS, MEL_HOP, RECEPTIVE_FIELD, SAMPLE_RATE

SMALLEST_POWER = 1e-5  # floor under a mel power, about -50 dB of a unit-variance signal
WHISPER_POWER = 1e-10
CENTRED = (RECEPTIVE_FIELD // 2, RECEPTIVE_FIELD // 2 - MEL_HOP)  # samples reflected at either end: Whisper drops the last frame


class LogMel(nn.Module):
    """Log-mel energies every 10 ms of 25 ms Hann windows, without centre padding.

    The Fourier transform of 400 samples is two matrix products over 20 x 20 (Cooley and Tukey 1965) between fixed matrices of
    3,000 numbers. The plain 400 x 402 matrix costs five times the products and 640 kB in the exported file, more than
    the smallest student weighs.
    """

    RADIX = 20

    def __init__(self, bins: int = MEL_BINS) -> None:
        super().__init__()
        with torch.device("cpu"):  # constants are real also where a network's weights are not
            constants = self._constants(self._bank(bins))
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)
        self.window: Tensor
        self.fine: Tensor
        self.scale_real: Tensor
        self.scale_imag: Tensor
        self.coarse: Tensor
        self.bank: Tensor

    def _bank(self, bins: int) -> Tensor:
        """(frequencies, bins)"""
        bank: Tensor = torchaudio.functional.melscale_fbanks(self.RADIX**2 // 2 + 1, 20.0, 7600.0, bins, SAMPLE_RATE)
        return bank

    def _constants(self, bank: Tensor) -> dict[str, Tensor]:
        n, half = self.RADIX, self.RADIX // 2 + 1  # bins above 200 mirror those below
        row, column = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        turn = 2 * math.pi * row * column / n
        twiddle = 2 * math.pi * row * column / n**2
        fine, coarse = torch.polar(torch.ones_like(turn), -turn), torch.polar(torch.ones_like(turn), -turn)[:, :half]
        scale = torch.polar(torch.ones_like(twiddle), -twiddle)
        return {
            "window": torch.hann_window(RECEPTIVE_FIELD, periodic=True, dtype=torch.float64),
            "fine": torch.cat([fine.real, fine.imag], 1),
            "scale_real": scale.real,
            "scale_imag": scale.imag,
            "coarse": torch.cat([torch.cat([coarse.real, coarse.imag], 1), torch.cat([-coarse.imag, coarse.real], 1)]),
            "bank": F.pad(bank, (0, 0, 0, n * half - bank.shape[0])),
        }

    def forward(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 100 Hz frames, mel bins)."""
        return self.energies(x_bn).clamp(min=SMALLEST_POWER).log()

    def energies(self, x_bn: Tensor) -> Tensor:
        """(batch, samples) -> (batch, 100 Hz frames, mel bins), before the logarithm."""
        n, half = self.RADIX, self.RADIX // 2 + 1
        frames = (x_bn.shape[-1] - RECEPTIVE_FIELD) // MEL_HOP + 1
        block = math.gcd(RECEPTIVE_FIELD, MEL_HOP)  # frames are runs of whole blocks, so slices replace a gather
        step, width = MEL_HOP // block, RECEPTIVE_FIELD // block
        blocks = torch.unflatten(x_bn[:, : ((frames - 1) * step + width) * block], -1, (-1, block))
        x_btn = torch.cat([blocks[:, i : i + (frames - 1) * step + 1 : step] for i in range(width)], -1) * self.window
        columns = torch.unflatten(x_btn, -1, (n, n)).transpose(-1, -2) @ self.fine  # (.., column, [real | imag] of row bin)
        real, imag = columns[..., :n], columns[..., n:]
        turned = torch.cat([real * self.scale_real - imag * self.scale_imag, real * self.scale_imag + imag * self.scale_real], -2)
        spectrum = torch.unflatten(turned, -2, (2, n)).permute(0, 1, 4, 2, 3).flatten(-2) @ self.coarse  # (.., row, [real | imag])
        power = spectrum[..., :half].square() + spectrum[..., half:].square()
        return power.transpose(-1, -2).flatten(-2) @ self.bank


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
