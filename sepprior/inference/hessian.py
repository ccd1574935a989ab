"""The Hessian of the joint energy, in blocks, and what error bars need of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.least_squares import inverse_information


@dataclass(frozen=True)
class Hessian:
    """Expected second derivatives of the joint energy of Q problems.

    The coordinates are theta (P), the missing samples (G), and the latents of the W
    windows (K each), which do not see each other.

    Attributes:
        corner: shape (Q, P + G, P + G), of theta and the missing samples.
        cross: shape (Q, W, P + G, K), between these and the latents.
        latent: shape (Q, W, K, K), of each window's latent.
        n_theta: P.
    """

    corner: Tensor
    cross: Tensor
    latent: Tensor
    n_theta: int

    def freed(self) -> Tensor:
        """The corner with the latents marginalised (Schur complement)."""
        inverse = torch.linalg.inv(self.latent)
        return self.corner - torch.einsum(
            "qwik,qwkl,qwjl->qij", self.cross, inverse, self.cross
        )

    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of theta and the volume.

        Returns:
            Covariance with the latents free (Q, P, P), with them fixed (Q, P, P), and
            half the log-determinant of the whole Hessian (Q,).
        """
        p = self.n_theta
        freed = self.freed()
        half_log_det = 0.5 * torch.linalg.slogdet(self.latent).logabsdet.sum(-1)
        half_log_det = half_log_det + 0.5 * torch.linalg.slogdet(freed).logabsdet
        marginal = inverse_information(freed)[:, :p, :p]
        conditional = inverse_information(self.corner)[:, :p, :p]
        return marginal, conditional, half_log_det

    def dense(self) -> Tensor:
        """The whole matrix (Q, D, D): theta, the missing samples, window by window."""
        q, n_windows, k, _ = self.latent.shape
        first = self.corner.shape[-1]
        size = first + n_windows * k
        whole = self.corner.new_zeros(q, size, size)
        whole[:, :first, :first] = self.corner
        for w in range(n_windows):
            here = slice(first + w * k, first + (w + 1) * k)
            whole[:, :first, here] = self.cross[:, w]
            whole[:, here, :first] = self.cross[:, w].mT
            whole[:, here, here] = self.latent[:, w]
        return whole


def spread(information: Tensor) -> Tensor:
    """R with ``R R^T`` the inverse of information matrices (Q, D, D).

    ``theta = mode + R u`` has that covariance for a standard normal u.
    """
    scale = information.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    unit = information * scale[:, :, None] * scale[:, None, :]
    eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    factor = torch.linalg.cholesky(unit + 1e-12 * eye)
    inverse = torch.linalg.solve_triangular(factor.mT, eye.expand_as(unit), upper=True)
    return scale[:, :, None] * inverse
