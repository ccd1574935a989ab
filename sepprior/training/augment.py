"""Random changes of training windows that noise does not mind.

Each keeps what the recipe says the noise does not depend on: when it happens, a little
white noise, a missing band, the exact time scale. All are off by default; what is not
true of an instrument's noise must not be switched on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.config import AdversarialConfig


def augmented(
    windows: Tensor, config: AdversarialConfig, *, sd: float, rng: torch.Generator
) -> Tensor:
    """Training windows with the augmentations of a recipe.

    Args:
        windows: shape (B, N), level removed.
        config: the recipe.
        sd: standard deviation of the recording, in the windows' units.
        rng: source of randomness; none is drawn for what is off.
    """
    if config.augment_stretch:
        windows = stretched(windows, config.augment_stretch, rng)
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


def stretched(windows: Tensor, largest: float, rng: torch.Generator) -> Tensor:
    """Windows (B, N) on a time scale changed by up to `largest` either way.

    Resampled linearly around the middle of the window; beyond its ends the window is
    continued by its mirror image.
    """
    n = windows.shape[-1]
    drawn = torch.rand((len(windows), 1), generator=rng, dtype=torch.float64)
    factor = torch.exp((2.0 * drawn - 1.0) * torch.log1p(torch.tensor(largest)))
    middle = 0.5 * (n - 1)
    time = torch.arange(n, dtype=torch.float64) - middle
    place = middle + time * factor
    period = 2.0 * (n - 1)
    place = place % period
    place = torch.minimum(place, period - place).to(windows.device)
    left = place.floor().clamp(0, n - 2).long()
    share = (place - left).to(windows.dtype)
    return torch.lerp(windows.gather(1, left), windows.gather(1, left + 1), share)
