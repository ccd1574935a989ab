"""The contract between noise priors and the code that uses them.

A prior decodes a latent z into a conditional Gaussian for one window of noise,

    n | z ~ N(m(z), Sigma(z)),        z ~ p(z),

and exposes it through *features*: a fixed linear map A of the window with

    -log p(n | z) = 1/2 sum_c precision_c(z) (A n - mean(z))_c^2 + half_log_det(z)

up to ``N/2 log 2 pi``. Everything downstream (starts, joint optimisation, error bars,
diagnostics) is written against these few members and never asks which prior it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sepprior.errors import whole_number

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

GAIN_SIGMAS = 2.0
"""Standard errors by which a prior's held-out likelihood must beat the Gaussian's."""
MOST_DRAWN = 2**30
"""Samples that are drawn in one call, at most: 8 GiB."""
ROUNDING = 1e-6
"""Nats per sample that single precision may add, the same in every window."""


@dataclass(frozen=True)
class Decoded:
    """A batch of conditional Gaussians in the feature domain.

    Attributes:
        mean: shape (..., C), features of the coherent part m(z).
        precision: shape (..., C) or broadcastable, inverse variances of the features.
        half_log_det: shape (...), ``log det Sigma(z) / 2`` in nats.
    """

    mean: Tensor
    precision: Tensor
    half_log_det: Tensor


@runtime_checkable
class Prior(Protocol):
    """What every frozen noise prior has. N samples in a window, K latent dimensions."""

    name: str
    learned: bool
    window: int
    sample_rate: float
    n_latent: int
    level: float
    autocovariance: Tensor
    device: torch.device
    metadata: dict[str, Any]

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` windows of noise in data units, level included, shape (n, N)."""
        ...

    def heldout_nll(self, windows: Tensor) -> Tensor:
        """``-log p`` of windows (n, N) in data units, or an upper bound, nats, (n,).

        Of a density that integrates to 1 at most, with all constants: values of
        different priors can be compared, and less is better.
        """
        ...

    def to(self, device: torch.device | str) -> Prior:
        """The same prior on another device."""
        ...


@runtime_checkable
class ScorePrior(Prior, Protocol):
    """A prior that gives the score of its density smoothed to noise levels.

    L levels, falling, through which estimates are annealed; scores exist down to the
    level `lowest`. w stands for whitened windows (..., N).
    """

    levels: Tensor
    lowest: float

    def features(self, x: Tensor) -> Tensor:
        """Whitened windows of noise (..., N), data units without the level."""
        ...

    def score(self, noisy: Tensor, sigma: float) -> Tensor:
        """Gradient of the log-density smoothed to level sigma, (B, N) to (B, N)."""
        ...

    def information_matrix(self, index: int) -> Tensor:
        """``E[score score^T]`` at ``levels[index]``, (N, N) float64."""
        ...

    def scatter_matrix(self, index: int) -> Tensor:
        """``E[s s^T]`` at ``levels[index]``, (N, N) float64.

        s is what the solver uses: the score of clean noise with noise of that level
        added, averaged over a draw and its opposite.
        """
        ...

    def lines(self, low: float, high: float) -> Tensor:
        """Frequencies between two, Hz, at which the whitened noise has strong lines."""
        ...

    def gaussianised(self, score: Tensor, index: int) -> Tensor:
        """Noise of which a Gaussian would have this score, (B, N) data units."""
        ...

    def gaussian_energy(self, w: Tensor) -> Tensor:
        """``-log`` density of the Gaussian of equal covariance, (B, N) to (B,)."""
        ...

    def gain(self, w: Tensor) -> Tensor:
        """Log-density over that Gaussian's, nats, (B, N) to (B,)."""
        ...


@runtime_checkable
class LatentPrior(Prior, Protocol):
    """A prior that decodes a latent. C features, K latent dimensions."""

    dtype: torch.dtype

    def to(self, device: torch.device | str) -> LatentPrior:
        """The same prior on another device."""
        ...

    @property
    def n_candidates(self) -> int:
        """Proposals for z worth comparing per start."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """The linear map A: (..., N) in data units to (..., C), unit scale."""
        ...

    def decode(self, z: Tensor) -> Decoded:
        """Conditional Gaussian of latents (..., K)."""
        ...

    def coherent(self, z: Tensor) -> Tensor:
        """m(z) in data units, (..., K) to (..., N), without the level."""
        ...

    def latent_energy(self, z: Tensor) -> Tensor:
        """``-log p(z)`` up to a constant, (..., K) to (...)."""
        ...

    def from_normal(self, draws: Tensor) -> Tensor:
        """Latents (..., K) that are distributed as z, from standard normal draws."""
        ...

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Candidate latents (n, ..., K) for noise whose features are (..., C).

        `draws` (n, ..., K) are standard normal; a candidate depends on nothing else.
        """
        ...

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Residual features (..., C) as a white series of unit variance (..., N)."""
        ...

    def latent_scale(self, features: Tensor) -> Tensor:
        """Expected posterior standard deviation of z, (..., C) to (..., K)."""
        ...

    def latent_curvature(self, z: Tensor) -> Tensor:
        """Expected Hessian of `latent_energy`, (B, K) to (B, K, K)."""
        ...


@runtime_checkable
class Scalable(Prior, Protocol):
    """A prior whose noise can be made louder or quieter."""

    def scaled(self, factor: float) -> Prior:
        """Noise so many times as loud, about the same level, otherwise the same."""
        ...


def beats_gaussian(heldout: Mapping[str, float]) -> bool:
    """Whether a prior described noise it had not seen better than its spectrum does.

    Args:
        heldout: ``gain`` in held-out likelihood and its standard error
            ``gain_stderr``, nats per sample.
    """
    return heldout["gain"] > max(GAIN_SIGMAS * heldout["gain_stderr"], ROUNDING)


def sample_count(n: int, window: int) -> int:
    """How many windows to draw, checked."""
    return whole_number("n", n, most=max(1, MOST_DRAWN // window))


def unit_scale(features: Tensor, n_latent: int) -> Tensor:
    """The scale of z under its own distribution, ones, (..., C) to (..., K)."""
    return features.new_ones((*features.shape[:-1], n_latent))


def unit_curvature(z: Tensor) -> Tensor:
    """The Hessian of ``||z||^2 / 2`` at latents (B, K), identities (B, K, K)."""
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return eye.expand(len(z), -1, -1)


def conditional_energy(features: Tensor, decoded: Decoded) -> Tensor:
    """``-log p(n | z)`` without ``N/2 log 2 pi``, shape (...).

    Args:
        features: shape (..., C), features of the noise hypothesis ``x - level - s``.
        decoded: conditional Gaussians with the same leading shape.
    """
    deviation = features - decoded.mean
    quadratic = (decoded.precision * deviation.square()).sum(-1)
    return 0.5 * quadratic + decoded.half_log_det


def joint_energy(prior: LatentPrior, features: Tensor, z: Tensor) -> Tensor:
    """``-log p(n | z) - log p(z)`` without constants, shape (...)."""
    return conditional_energy(features, prior.decode(z)) + prior.latent_energy(z)
