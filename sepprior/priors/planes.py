"""Time-frequency planes as networks see them: what is left out, and normalised how."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_FLOOR = 1e-3
"""Floor of a bin's relative power inside the logarithm of the critic's planes."""

MAGNITUDE_FLOOR = 1e-6
"""Floor of the log-magnitude spectrogram (Donahue et al. 2019)."""


@dataclass(frozen=True)
class PlaneStatistics:
    """Moments per frequency over windows *and* frames, each of shape (F, 1).

    F excludes Nyquist. `rms` is that of the complex coefficients; `log_mean` and
    `log_sd` are the moments of the log-magnitude channel. `loudest` is the log variance
    that the loudest bin of the recording asks for; no bin is decoded as louder.
    """

    rms: Tensor
    log_mean: Tensor
    log_sd: Tensor
    loudest: float = math.inf


def crop_plane(coefficients: Tensor, *, complex_mode: bool) -> Tensor:
    """The part of the plane (..., F, T) that networks see: Nyquist left out.

    Magnitude mode also leaves out the frame that begins before the first sample; what
    remains are the published frames (a whole number of hops, padded at the end).
    """
    return coefficients[..., :-1, 0 if complex_mode else 1 :]


def log_magnitude(coefficients: Tensor, rms: Tensor, *, complex_mode: bool) -> Tensor:
    """Log-magnitude of coefficients (..., F, T), floored.

    The published floor 1e-6 in magnitude mode; in complex mode a smoother one,
    relative to the mean power of the frequency.
    """
    if complex_mode:
        power = (coefficients / rms).abs().square()
        return 0.5 * torch.log(power + LOG_FLOOR)
    return torch.log(coefficients.abs() + MAGNITUDE_FLOOR)


def plane_channels(
    coefficients: Tensor, statistics: PlaneStatistics, *, complex_mode: bool = True
) -> Tensor:
    """Normalised channels (B, C, F, T) of complex coefficients (B, F, T).

    Magnitude mode: the log-magnitude, normalised per frequency, divided by 3 and
    clipped to [-1, 1]. Complex mode: real and imaginary part over their rms first.
    """
    logs = log_magnitude(coefficients, statistics.rms, complex_mode=complex_mode)
    logs = (logs - statistics.log_mean) / (3.0 * statistics.log_sd)
    logs = logs.clamp(-1.0, 1.0)
    if not complex_mode:
        return logs.unsqueeze(1)
    parts = coefficients / statistics.rms
    return torch.stack([parts.real, parts.imag, logs], 1)
