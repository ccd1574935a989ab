"""Marginal likelihood of a window of noise: the latent integrated out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sepprior.optim import minimize_batch
from sepprior.priors.base import Decoded, LatentPrior, joint_energy

DERIVATIVES_AT_ONCE = 2**21
"""Derivatives of the mean that are computed together; memory is bounded by it."""
FEW_LATENTS = 16
"""Up to here reverse mode serves, since forward mode first imports torch's compiler."""
LATENTS_AT_ONCE = 64
"""Latents whose derivatives are computed together: of more, caches are too small."""


@runtime_checkable
class Tangential(Protocol):
    """A prior that may know a quicker way to its derivatives."""

    @property
    def tangential(self) -> bool:
        """Whether it does."""
        ...

    def tangents(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``d mean / d z`` and ``d log precision / d z`` at (B, K), (K, B, C) each."""
        ...


def decode_tangents(prior: LatentPrior, z: Tensor) -> tuple[Decoded, Tensor, Tensor]:
    """Decode latents together with the derivatives of what they decode to.

    Args:
        prior: the noise prior.
        z: shape (B, K).

    Returns:
        The conditional Gaussians, ``d mean / d z`` of shape (B, K, C) and
        ``d log precision / d z`` of shape (B, K, C).
    """

    def outputs(latent: Tensor) -> tuple[Tensor, Tensor]:
        decoded = prior.decode(latent)
        log_precision = decoded.precision.log().expand_as(decoded.mean)
        return decoded.mean, log_precision

    def derivative(direction: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(outputs, (z,), (direction.expand_as(z),))[1]

    with torch.no_grad():
        decoded = prior.decode(z)
        if z.shape[-1] == 0:
            empty = decoded.mean.unsqueeze(1)[:, :0]
            return decoded, empty, empty
        if isinstance(prior, Tangential) and prior.tangential:
            size = z.shape[-1] * decoded.mean.shape[-1]
            parts = z.split(max(1, DERIVATIVES_AT_ONCE // size))
            quick = zip(*(prior.tangents(part) for part in parts), strict=True)
            d_mean, d_log = (torch.cat(found, 1) for found in quick)
        else:
            directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            at_once = max(1, DERIVATIVES_AT_ONCE // decoded.mean.numel())
            if len(z) <= FEW_LATENTS <= at_once:
                d_mean, d_log = _few_tangents(outputs, z, directions)
            else:
                batched = torch.func.vmap(derivative, chunk_size=at_once)
                d_mean, d_log = batched(directions)
    return decoded, d_mean.transpose(0, 1), d_log.transpose(0, 1)


def _few_tangents(
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, directions: Tensor
) -> tuple[Tensor, ...]:
    """Derivatives of both outputs at latents (B, K) along directions (D, K).

    The transpose ``v -> J^T v`` is linear, and its transpose is J: reverse mode twice,
    with a copy of the latents for each direction. Only sums are differentiated: with
    the gradients of others given, torch imports its compiler's symbols.
    """
    count = len(directions)
    with torch.enable_grad():
        copies = z.detach().repeat(count, 1).requires_grad_()
        # What does not depend on z has derivatives too: zeros.
        found = [value + 0.0 * copies[:, :1] for value in outputs(copies)]
        along = [torch.zeros_like(value, requires_grad=True) for value in found]
        total = (found[0] * along[0]).sum() + (found[1] * along[1]).sum()
        (back,) = torch.autograd.grad(total, copies, create_graph=True)
        moved = (back * directions.repeat_interleave(len(z), 0)).sum()
    slopes = torch.autograd.grad(moved, along)
    return tuple(value.unflatten(0, (count, len(z))) for value in slopes)


def latent_information(
    decoded: Decoded,
    d_mean: Tensor,
    d_log: Tensor,
    curvature: Tensor,
    *,
    redundancy: float,
) -> Tensor:
    """Expected Hessian of the joint energy in z, shape (B, K, K).

    The Fisher information of a Gaussian whose mean and log-variances depend on z,
    ``J_m^T P J_m + J_l^T J_l / 2``, plus that of ``-log p(z)``.

    Args:
        decoded: conditional Gaussians, batch shape (B,).
        d_mean: shape (B, K, C).
        d_log: shape (B, K, C).
        curvature: shape (B, K, K), the prior's `latent_curvature`.
        redundancy: degrees of freedom per feature, N / C.
    """
    weighted = d_mean * decoded.precision.unsqueeze(1)
    information = weighted @ d_mean.mT + 0.5 * redundancy * d_log @ d_log.mT
    return information + curvature


@dataclass(frozen=True)
class Tangent:
    """Noise near given latents, to first order.

    Attributes:
        decoded: conditional Gaussians there, batch shape (B,).
        slopes: ``d mean / d z``, (B, K, C).
        information: expected Hessian of the joint energy in z, (B, K, K).
    """

    decoded: Decoded
    slopes: Tensor
    information: Tensor

    def select(self, which: Tensor) -> Tangent:
        """A sub-batch."""
        decoded = Decoded(*(v[which] for v in vars(self.decoded).values()))
        return Tangent(decoded, self.slopes[which], self.information[which])


def tangent(prior: LatentPrior, z: Tensor) -> Tangent:
    """What a prior decodes to near latents z (B, K)."""
    parts = [_tangent(prior, some) for some in z.split(LATENTS_AT_ONCE)]
    decoded = zip(*(vars(part.decoded).values() for part in parts), strict=True)
    return Tangent(
        Decoded(*(torch.cat(v) for v in decoded)),
        torch.cat([part.slopes for part in parts]),
        torch.cat([part.information for part in parts]),
    )


def _tangent(prior: LatentPrior, z: Tensor) -> Tangent:
    decoded, d_mean, d_log = decode_tangents(prior, z)
    information = latent_information(
        decoded,
        d_mean,
        d_log,
        prior.latent_curvature(z),
        redundancy=prior.window / decoded.mean.shape[-1],
    )
    return Tangent(decoded, d_mean, information)


def laplace_nll(
    prior: LatentPrior,
    windows: Tensor,
    *,
    n_starts: int = 64,
    max_evaluations: int = 80,
) -> Tensor:
    """``-log p`` of noise windows by Laplace's method over z, without the constant.

    The best of `n_starts` proposals is refined by minimisation; the volume of the
    posterior around it is ``-log det H / 2`` with H from `latent_information`
    (MacKay 2003, equation 27.6). Exact when the prior is linear in z.

    Args:
        prior: the noise prior.
        windows: shape (n, N), data units.
        n_starts: proposals screened per window.
        max_evaluations: bound on the refinement.

    Returns:
        Shape (n,), nats, without ``N/2 log 2 pi``.
    """
    windows = torch.as_tensor(windows, dtype=torch.float64).to(prior.device)
    features = prior.features(windows - prior.level)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = torch.randn(
            (n_starts, len(windows), prior.n_latent),
            generator=generator,
            dtype=prior.dtype,
        )
        proposals = prior.propose(features, draws=draws.to(prior.device))
        energies = torch.stack([joint_energy(prior, features, z) for z in proposals])
        best = energies.argmin(0)
        z0 = proposals[best, torch.arange(len(windows))]

    def objective(z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        energy = joint_energy(prior, features[which], z)
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), gradient

    minimum = minimize_batch(objective, z0, max_evaluations=max_evaluations)
    size = max(1, prior.n_latent) * features.shape[-1]
    at_once = min(LATENTS_AT_ONCE, max(1, DERIVATIVES_AT_ONCE // size))
    half = [_half_log_det(prior, z) for z in minimum.x.split(at_once)]
    return minimum.energy + torch.cat(half)


def _half_log_det(prior: LatentPrior, z: Tensor) -> Tensor:
    """``log det H / 2`` at latents (B, K), (B,) float64."""
    decoded, d_mean, d_log = decode_tangents(prior, z)
    # In double: a steep generator's information spans more than single precision, of
    # which the determinant would be nothing or less.
    information = latent_information(
        decoded,
        d_mean.double(),
        d_log.double(),
        prior.latent_curvature(z).double(),
        redundancy=prior.window / decoded.mean.shape[-1],
    )
    return 0.5 * torch.linalg.slogdet(information).logabsdet
