"""Waveforms as planes of log-magnitude and instantaneous frequency, and back.

The representation of GANSynth (Engel et al. 2019, section 2): the phase of a frequency
bin is described by its advance from frame to frame, which for a steady tone is
constant. Frames overlap by three quarters, so that a tone anywhere in its bin advances
by less than half a turn between frames and the advance can be told from its remainder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sepprior.transforms import TightSTFT, frame_length

OVERLAP = 4
FLOOR = 1e-4
"""Added to the magnitude inside the logarithm, standard deviations of the recording."""
LIMIT = 3.0
"""Standard deviations of the log-magnitude that a plane's range [-1, 1] spans."""


class PhasePlane(nn.Module):
    """The map between waveforms (B, N) and planes (B, 2, F, T).

    Channel 0 is the log-magnitude, normalised per frequency with moments over samples
    and frames, over 3; channel 1 the phase advance since the frame before in half turns
    (-1 to 1), in the first frame the phase itself. Nyquist is left out.

    Args:
        window: N.
    """

    log_mean: Tensor
    log_sd: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.stft = TightSTFT(window, frame_length(window), OVERLAP)
        self.bins, self.frames = self.stft.length // 2, self.stft.n_frames
        self.register_buffer("log_mean", torch.zeros(self.bins, 1))
        self.register_buffer("log_sd", torch.ones(self.bins, 1))

    def log_magnitude(self, waveform: Tensor) -> Tensor:
        """Unnormalised log-magnitudes (B, F, T)."""
        return torch.log(self.stft.analyse(waveform)[..., :-1, :].abs() + FLOOR)

    def fit(self, mean: Tensor, sd: Tensor) -> None:
        """Set the moments of the log-magnitude, each (F, 1)."""
        self.log_mean.copy_(mean)
        self.log_sd.copy_(sd)

    def analyse(self, waveform: Tensor) -> Tensor:
        """Planes (B, 2, F, T) of waveforms (B, N)."""
        coefficients = self.stft.analyse(waveform)[..., :-1, :]
        level = torch.log(coefficients.abs() + FLOOR)
        level = ((level - self.log_mean) / (LIMIT * self.log_sd)).clamp(-1.0, 1.0)
        phase = torch.angle(coefficients)
        advance = torch.diff(phase, dim=-1)
        advance = torch.remainder(advance + math.pi, 2.0 * math.pi) - math.pi
        frequency = torch.cat([phase[..., :1], advance], -1) / math.pi
        return torch.stack([level, frequency], 1)

    def synthesise(self, planes: Tensor) -> Tensor:
        """Waveforms (B, N) of planes (B, 2, F, T): phases by summation.

        In float32 at least: a long sum leaves none of bfloat16's eight bits.
        """
        planes = planes.to(torch.promote_types(planes.dtype, torch.float32))
        level = LIMIT * planes[:, 0] * self.log_sd + self.log_mean
        magnitude = torch.exp(level)
        phase = math.pi * torch.cumsum(planes[:, 1], -1)
        coefficients = torch.complex(
            magnitude * torch.cos(phase), magnitude * torch.sin(phase)
        )
        nyquist = torch.zeros_like(coefficients[:, :1])
        return self.stft.synthesise(torch.cat([coefficients, nyquist], 1))
