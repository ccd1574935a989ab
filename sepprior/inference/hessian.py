"""The Hessian of the joint energy, in blocks, and what error bars need of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.gaps import Block, factor, half_log_det
from sepprior.inference.least_squares import inverse_information


@dataclass(frozen=True)
class GapTerms:
    """Second derivatives by the missing samples of n windows, g in each.

    Attributes:
        block: the windows.
        own: shape (n, g, g).
        theta: shape (n, g, P), with the signal's parameters.
        latent: shape (n, g, K), with the window's latent.
    """

    block: Block
    own: Tensor
    theta: Tensor
    latent: Tensor


@dataclass(frozen=True)
class Hessian:
    """Expected second derivatives of the joint energy of Q problems.

    The coordinates are theta (P), the missing samples (G), and the latents of the W
    windows (K each). Latents and missing samples of different windows do not see each
    other.

    Attributes:
        corner: shape (Q, P, P), of theta.
        cross: shape (Q, W, P, K), between theta and the latents.
        latent: shape (Q, W, K, K), of each window's latent.
        gaps: what the missing samples add.
        n_gaps: G; problems with fewer missing samples have spare slots.
    """

    corner: Tensor
    cross: Tensor
    latent: Tensor
    gaps: list[GapTerms]
    n_gaps: int

    def present(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The blocks with the missing samples marginalised (Schur complement).

        Returns:
            Corner, cross and latent, and half the log-determinant of what was
            eliminated, (Q,).
        """
        corner, cross, latent = (
            v.clone() for v in (self.corner, self.cross, self.latent)
        )
        volume = corner.new_zeros(len(corner))
        for terms in self.gaps:
            problem, window = terms.block.problem, terms.block.window
            root = factor(terms.own)
            theta, z = (
                torch.linalg.solve_triangular(root, v, upper=False)
                for v in (terms.theta, terms.latent)
            )
            corner.index_add_(0, problem, -theta.mT @ theta)
            cross[problem, window] -= theta.mT @ z
            latent[problem, window] -= z.mT @ z
            volume.index_add_(0, problem, half_log_det(root))
        return corner, cross, latent, volume

    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of theta and the volume.

        Returns:
            Covariance with the latents free (Q, P, P), with them fixed (Q, P, P), and
            half the log-determinant of the whole Hessian (Q,).
        """
        corner, cross, latent, volume = self.present()
        inverse = torch.linalg.inv(latent)
        freed = corner - torch.einsum("qwik,qwkl,qwjl->qij", cross, inverse, cross)
        volume = volume + 0.5 * torch.linalg.slogdet(latent).logabsdet.sum(-1)
        volume = volume + 0.5 * torch.linalg.slogdet(freed).logabsdet
        return inverse_information(freed), inverse_information(corner), volume

    def dense(self) -> Tensor:
        """The whole matrix (Q, D, D): theta, the missing samples, window by window.

        Spare slots carry no information, and get that of a standard normal.
        """
        q, n_windows, k, _ = self.latent.shape
        p = self.corner.shape[-1]
        first = p + self.n_gaps
        size = first + n_windows * k
        whole = self.corner.new_zeros(q, size, size)
        whole[:, :p, :p] = self.corner
        for w in range(n_windows):
            here = slice(first + w * k, first + (w + 1) * k)
            whole[:, :p, here] = self.cross[:, w]
            whole[:, here, :p] = self.cross[:, w].mT
            whole[:, here, here] = self.latent[:, w]
        for terms in self.gaps:
            own = (p + terms.block.slot)[:, :, None]
            problem = terms.block.problem[:, None, None]
            whole[problem, own, own.mT] = terms.own
            own_latent = first + k * terms.block.window[:, None]
            own_latent = own_latent + torch.arange(k, device=whole.device)
            theta = torch.arange(p, device=whole.device).expand(len(own), -1)
            for others, values in (
                (theta, terms.theta),
                (own_latent, terms.latent),
            ):
                whole[problem, own, others[:, None]] = values
                whole[problem, others[:, :, None], own.mT] = values.mT
        spare = whole.diagonal(dim1=-2, dim2=-1) == 0
        return whole + torch.diag_embed(spare.to(whole))


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
