"""What the network of a diffusion prior is shown of a window."""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.diffusion import Smoothing
from sepprior.transforms import (
    MAX_DENSE_WINDOW,
    Whitener,
    cholesky_covariance,
    toeplitz,
)


class Geometry:
    """Covariance of the whitened noise, and the views of it the network is given.

    The first view is standardised by the Gaussian part, ``S^-1/2 y``; the second, for
    windows that are whitened by a matrix, is the coloured series before whitening, in
    which levels, pulses and lines have their recorded shape.

    Args:
        smoothing: covariance C of the whitened noise, float32.
        colouring: shape (N, N), transposed inverse of the whitening matrix, or None.
        variance: of the noise, and of what the whitening filter was made from.
    """

    def __init__(
        self,
        smoothing: Smoothing,
        colouring: Tensor | None,
        variance: tuple[float, float],
    ) -> None:
        self.smoothing, self.colouring, self.variance = smoothing, colouring, variance

    @staticmethod
    def of(whitener: Whitener, autocovariance: Tensor) -> Geometry:
        """The geometry of a filter and of the noise it is applied to."""
        window = whitener.window
        variance = (float(autocovariance[0]), float(whitener.autocovariance[0]))
        same = torch.equal(whitener.autocovariance, autocovariance)
        if window > MAX_DENSE_WINDOW:
            assert same, "long windows are whitened by the whole spectrum"
            smoothing = Smoothing.of(None, window=window, dtype=torch.float32)
            return Geometry(smoothing.to(autocovariance.device), None, variance)
        eye = torch.eye(window, dtype=torch.float64, device=autocovariance.device)
        covariance = None
        if not same:
            # From the factor, so that it is positive where the estimate is not.
            factor = cholesky_covariance(toeplitz(autocovariance))
            white = whitener.forward(factor.mT)
            covariance = white.mT @ white
        smoothing = Smoothing.of(covariance, window=window, dtype=torch.float32)
        colouring = whitener.inverse(eye).float()
        return Geometry(smoothing.to(autocovariance.device), colouring, variance)

    @property
    def n_views(self) -> int:
        """V, what `views` gives per window."""
        return 1 if self.colouring is None else 2

    def views(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Smoothed whitened windows (B, N) at levels (B,) as (B, V, N)."""
        standard = self.smoothing.standardise(noisy, sigma)
        if self.colouring is None:
            return standard.unsqueeze(1)
        noise, added = self.variance
        scale = (noise + sigma.square() * added).rsqrt().unsqueeze(-1)
        return torch.stack([standard, (noisy @ self.colouring) * scale], 1)
