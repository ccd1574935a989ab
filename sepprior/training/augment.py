"""Random changes of training windows that noise does not mind.

Each keeps what the recipe says the noise does not depend on: when it happens, a little
white noise, a missing band, the exact time scale. All are off by default; what is not
true of an instrument's noise must not be switched on.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.signal import zoom_fft
from torch import Tensor

from sepprior.config import AdversarialConfig

GUARD = 16
"""Samples left on either side of what is read, so that the mirror image is far off."""


def stretch_margin(config: AdversarialConfig) -> int:
    """Samples that `augmented` wants on either side of each window of a recipe."""
    if not config.augment_stretch:
        return 0
    return math.ceil(0.5 * config.augment_stretch * config.window) + GUARD


def augmented(
    windows: Tensor, config: AdversarialConfig, *, sd: float, rng: torch.Generator
) -> Tensor:
    """Training windows (B, N) with the augmentations of a recipe.

    Args:
        windows: level removed, with the samples around them, (B, N + 2 margin); see
            `stretch_margin`.
        config: the recipe.
        sd: standard deviation of the recording, in the windows' units.
        rng: source of randomness; none is drawn for what is off.
    """
    if config.augment_stretch:
        margin = stretch_margin(config)
        windows = stretched(windows, config.augment_stretch, rng, margin=margin)
    if config.augment_shift:
        windows = shifted(windows, rng)
    if config.augment_mask:
        windows = masked(windows, config.augment_mask, rng)
    if config.augment_noise:
        windows = with_noise(windows, config.augment_noise * sd, rng)
    return windows


def shifted(windows: Tensor, rng: torch.Generator) -> Tensor:
    """Each window (B, N) rolled by a random number of samples; the end meets the start.

    The magnitude of its Fourier transform is kept.
    """
    n = windows.shape[-1]
    by = torch.randint(n, (len(windows), 1), generator=rng).to(windows.device)
    index = (torch.arange(n, device=windows.device) - by) % n
    return windows.gather(1, index)


def with_noise(windows: Tensor, sd: float, rng: torch.Generator) -> Tensor:
    """Windows (B, N) plus white noise of standard deviation `sd`."""
    noise = torch.randn(windows.shape, generator=rng, dtype=windows.dtype)
    return windows + sd * noise.to(windows.device)


def masked(windows: Tensor, widest: float, rng: torch.Generator) -> Tensor:
    """Windows (B, N) without a random band of frequencies each (Park et al. 2019).

    The band's power is lost: white noise keeps ``1 - widest / 2`` of its variance.

    Args:
        windows: shape (B, N).
        widest: largest width of the band, as a share of 0 to Nyquist.
        rng: source of randomness.
    """
    spectrum = torch.fft.rfft(windows)
    bins = spectrum.shape[-1]
    drawn = torch.rand((2, len(windows), 1), generator=rng).to(windows.device)
    width = drawn[0] * widest * bins
    first = drawn[1] * (bins - width)
    at = torch.arange(bins, device=windows.device)
    keep = (at < first) | (at >= first + width)
    return torch.fft.irfft(spectrum * keep, windows.shape[-1])


def stretched(
    crops: Tensor, largest: float, rng: torch.Generator, *, margin: int = 0
) -> Tensor:
    """Windows (B, N) on a time scale changed by up to `largest` either way.

    Each is read around its middle at f times the pace, by trigonometric interpolation
    of the crop and its mirror image (a chirp-z transform; Rabiner, Schafer and Rader
    1969), which attenuates no frequency. Every frequency becomes f times itself, beyond
    Nyquist folded back, and a spectrum S becomes ``S(nu / f) / f``: the variance is
    kept and, over all f, white noise stays white (to 0.2 dB below 0.4 cycles per
    sample, for changes of up to 0.2), but lines and slopes are smeared by as much as
    the time scale is changed.

    Args:
        crops: shape (B, N + 2 margin).
        largest: largest relative change.
        rng: source of randomness.
        margin: samples on either side that are there to be read, see `stretch_margin`.
    """
    length = crops.shape[-1]
    n, middle = length - 2 * margin, 0.5 * (length - 1)
    drawn = torch.rand((len(crops), 1), generator=rng, dtype=torch.float64)
    pace = torch.exp((2.0 * drawn - 1.0) * torch.log1p(torch.tensor(largest)))
    first = middle - 0.5 * (n - 1) * pace
    edges = torch.cat([first, first + n * pace], 1)
    mirrored = torch.cat([crops, crops[:, 1:-1].flip(-1)], -1).double()
    period = mirrored.shape[-1]
    cosines = torch.fft.rfft(mirrored, norm="forward").real.cpu()
    cosines[:, 1:-1] *= 2.0
    rows = zip(cosines.numpy(), edges.tolist(), strict=True)
    read = [zoom_fft(row, edge, n, fs=period).real for row, edge in rows]
    return torch.from_numpy(np.stack(read)).to(crops)
