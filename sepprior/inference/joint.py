"""Joint optimisation over the signal's parameters and the prior's latent.

Minimises ``E(theta, z) = -log p(x - s(theta) | z) - log p(z)`` for Q problems at once.
A problem is one start of one measurement; it has W windows that share theta and have a
latent each. Missing samples are variables too (their Gaussian integral and their
maximum give the same theta at fixed z).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sepprior.inference.gaps import Elimination, Gaps
from sepprior.inference.hessian import GapTerms, Hessian
from sepprior.inference.least_squares import (
    gauss_newton,
    inverse_information,
)
from sepprior.inference.record import Record
from sepprior.optim import minimize_batch
from sepprior.priors import LatentPrior, conditional_energy
from sepprior.priors.base import Decoded
from sepprior.priors.marginal import Tangent, tangent
from sepprior.signals.form import Form, clamp, prior_energy

DECODED_AT_ONCE = 64
"""Windows that proposals are decoded for together."""
MAX_EVALUATIONS = 30
MOST_RUNS = 5
"""Times at most that a minimisation goes on, once for each window."""
FINAL_STEPS = 3
GAP_NUMBERS = 2**25
"""Numbers of the missing samples' information matrices that are kept together."""
GRADIENT_TOLERANCE = (1e-3, 1e-7)
DECREASE_TOLERANCE = (0.1, 1e-13)
"""In nats and standard errors, for priors in single and in double precision."""


@dataclass(frozen=True)
class JointFit:
    """A batch of joint optima.

    Attributes:
        theta: shape (Q, P).
        z: shape (Q, W, K).
        missing: shape (Q, W, N), values given to the missing samples, 0 elsewhere.
        energy: shape (Q,), the joint energy, nats.
        converged: shape (Q,).
    """

    theta: Tensor
    z: Tensor
    missing: Tensor
    energy: Tensor
    converged: Tensor

    def select(self, which: Tensor) -> JointFit:
        """A sub-batch."""
        return JointFit(*(getattr(self, name)[which] for name in vars(self)))

    def split(self, sizes: list[int]) -> list[JointFit]:
        """Consecutive sub-batches."""
        parts = zip(*(v.split(sizes) for v in vars(self).values()), strict=True)
        return [JointFit(*part) for part in parts]


def joined(fits: list[JointFit]) -> JointFit:
    """Batches one after the other, as one."""
    names = vars(fits[0])
    return JointFit(*(torch.cat([getattr(fit, k) for fit in fits]) for k in names))


@dataclass(frozen=True)
class Optimum:
    """Joint optima of B measurements, with their error bars.

    Attributes:
        fit: of B problems.
        marginal: covariance of theta with the latents free, (B, P, P).
        conditional: the same with the latents fixed, (B, P, P).
        volume: half the log-determinant of the whole Hessian, (B,).
        agreement: share of the starts that ended there, (B,).
        near: the noise near the fit, batch shape (B W,), or None if it is not kept.
    """

    fit: JointFit
    marginal: Tensor
    conditional: Tensor
    volume: Tensor
    agreement: Tensor
    near: Tangent | None = None


class JointProblem:
    """The joint energy of a batch of measurements under a prior.

    Args:
        prior: the noise prior.
        record: B measurements.
        form: the signal.
    """

    def __init__(self, prior: LatentPrior, record: Record, *, form: Form) -> None:
        self.prior, self.record, self.form = prior, record, form
        self.data_features = self.features(record.x, torch.arange(len(record.x)))
        self.gaps = Gaps(record.present)
        self.n_gaps = self.gaps.count
        self.gap_scale = float(prior.autocovariance[0]) ** 0.5

    # -- pieces ------------------------------------------------------------------------

    def features(self, columns: Tensor, which: Tensor) -> Tensor:
        """Features (..., W C) of columns (..., W, N), in float64."""
        if not columns.numel():
            return columns.new_zeros(*columns.shape[:-2], self.data_features.shape[-1])
        return self.prior.features(columns).double().flatten(-2)

    def decode(self, z: Tensor) -> Decoded:
        """Conditional Gaussians of z (Q, W, K), shapes (Q, W, ...)."""
        return self.prior.decode(z)

    def noise_features(self, theta: Tensor, filled: Tensor, which: Tensor) -> Tensor:
        """Features (Q, W, C) of the noise hypothesis, in the prior's precision."""
        signal = self.form.evaluate(self.record.t, theta)
        return self.prior.features(self.record.x[which] + filled - signal)

    def energy(self, theta: Tensor, filled: Tensor, z: Tensor, which: Tensor) -> Tensor:
        """Joint energy (Q,), nats."""
        features = self.noise_features(theta, filled, which)
        each = conditional_energy(features, self.decode(z))
        each = (each + self.prior.latent_energy(z)).double().sum(-1)
        return each + prior_energy(self.form, theta)

    # -- starts ------------------------------------------------------------------------

    def search(
        self,
        theta: Tensor,
        filled: Tensor,
        which: Tensor,
        *,
        candidates: int,
        rounds: int,
        generator: torch.Generator,
        z: Tensor | None = None,
        n_starts: int | None = None,
    ) -> JointFit:
        """Alternate proposals for z and weighted fits of theta, from given thetas.

        Args:
            theta: shape (Q, P).
            filled: shape (Q, W, N), first guess of the missing samples.
            which: measurement of each problem, (Q,).
            candidates: proposals for z per round and window.
            rounds: alternations.
            generator: for the proposals.
            z: shape (Q, W, K), latents to start from, if any.
            n_starts: most starts of one measurement (default: as many for each).

        Returns:
            The best (theta, z) met by each problem.
        """
        best: JointFit | None = None
        if n_starts is None:
            n_starts = len(theta) // len(self.record.x)
        starts = number_within(which), n_starts
        with torch.no_grad():
            known = None if z is None else (z, self.decode(z))
        for _ in range(rounds):
            with torch.no_grad():
                known = self._propose(
                    theta, filled, known, which, starts, candidates, generator
                )
                theta, filled, energy = self.refit(
                    theta, filled, *known, which, steps=1
                )
            z = known[0]
            now = JointFit(
                theta, z, filled, energy, torch.zeros_like(energy, dtype=torch.bool)
            )
            best = now if best is None else _better(best, now)
        assert best is not None
        return best

    def _propose(
        self,
        theta: Tensor,
        filled: Tensor,
        known: tuple[Tensor, Decoded] | None,
        which: Tensor,
        starts: tuple[Tensor, int],
        candidates: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Decoded]:
        """The best of new latents and a known one, with what it decodes to.

        `starts` are the number of each problem among those of its measurement, (Q,),
        and how many there can be.
        """
        features = self.noise_features(theta, filled, which)
        # Each start has draws of its own, and every measurement has the same ones: an
        # answer does not depend on what else is in the batch.
        number, n_starts = starts
        shape = (candidates, n_starts, self.record.x.shape[1], self.prior.n_latent)
        draws = torch.randn(shape, generator=generator, dtype=self.prior.dtype)
        draws = draws.to(self.prior.device)[:, number]
        proposals = self.prior.propose(features, draws=draws)
        if known is None:
            known, proposals = (proposals[0], self.decode(proposals[0])), proposals[1:]
        best_z, decoded = known
        best = dict(vars(decoded))
        best_energy = conditional_energy(features, decoded)
        best_energy = best_energy + self.prior.latent_energy(best_z)
        # Of few problems several candidates are decoded together: a call costs as much.
        at_once = max(1, DECODED_AT_ONCE // max(1, best_energy.numel()))
        for group in proposals.split(at_once) if len(proposals) else ():
            decoded = self.decode(group)
            energies = conditional_energy(features, decoded)
            energies = energies + self.prior.latent_energy(group)
            for candidate, each, *parts in zip(
                group, energies, *vars(decoded).values(), strict=True
            ):
                won = each < best_energy
                best_energy = torch.where(won, each, best_energy)
                best_z = torch.where(won.unsqueeze(-1), candidate, best_z)
                for name, value in zip(best, parts, strict=True):
                    mask = won.view(won.shape + (1,) * (value.dim() - won.dim()))
                    best[name] = torch.where(mask, value, best[name])
        return best_z, Decoded(**best)

    def refit(
        self,
        theta: Tensor,
        filled: Tensor,
        z: Tensor,
        decoded: Decoded,
        which: Tensor,
        *,
        steps: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Theta and the missing samples at fixed z: weighted least squares.

        Returns:
            Theta (Q, P), missing samples (Q, W, N) and the joint energy there (Q,).
        """
        mean = decoded.mean.double().flatten(1)
        weights = decoded.precision.double().flatten(1)
        if self.gaps.count:
            # The missing samples' information matrices are kept for a fit.
            squares = int(self.gaps.in_window.square().sum(-1).max())
            at_once = max(1, GAP_NUMBERS // squares)
            parts = [
                self._refit_gapped(
                    theta[rows], mean[rows], weights[rows], which[rows], steps
                )
                for rows in torch.arange(len(which), device=which.device).split(at_once)
            ]
            theta, filled, energy = (torch.cat(v) for v in zip(*parts, strict=True))
        else:
            fit = gauss_newton(
                self.form,
                self.record,
                self.features,
                which,
                theta,
                self.data_features[which] - mean,
                steps=steps,
                weights=weights,
            )
            theta, energy = fit.theta, fit.energy
        rest = decoded.half_log_det + self.prior.latent_energy(z)
        return theta, filled, energy + rest.double().sum(-1)

    def _refit_gapped(
        self, theta: Tensor, mean: Tensor, weights: Tensor, which: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Theta, missing samples and half the weighted squares of what is left."""
        root = weights.sqrt()
        shape = (*self.record.x.shape[1:2], -1)
        free = self._elimination(which, root.unflatten(1, shape))

        def weighted(columns: Tensor, rows: Tensor) -> Tensor:
            return self.features(columns, rows) * root[rows].unsqueeze(1)

        def projected(columns: Tensor, rows: Tensor) -> Tensor:
            features = weighted(columns, rows).unflatten(2, shape)
            return free.project(features, rows).flatten(2)

        everyone = torch.arange(len(which), device=which.device)
        data = (self.data_features[which] - mean) * root
        target = data.unsqueeze(1).unflatten(2, shape).clone()
        target = free.project(target, everyone).flatten(1)
        fit = gauss_newton(
            self.form, self.record, projected, which, theta, target, steps=steps
        )
        signal = self.form.evaluate(self.record.t, fit.theta).unsqueeze(1)
        rest = data - weighted(signal, everyone)[:, 0]
        filled = free.values(rest.unflatten(1, shape))
        return fit.theta, filled, fit.energy

    @cached_property
    def _impulses(self) -> Tensor:
        """Features (U, C) of unit impulses at the samples missing in some window."""
        return self.prior.features(self.gaps.impulses())

    def _elimination(self, which: Tensor, weights_root: Tensor) -> Elimination:
        """The missing samples of measurements `which`, with weights (Q, W, C)."""
        return Elimination(self.gaps, which, self._impulses, weights_root)

    def present(self, features: Tensor, root: Tensor, which: Tensor) -> Tensor:
        """What the missing samples leave of weighted features, if they are free.

        Args:
            features: shape (Q, k, W, C), float64; they may be overwritten.
            root: roots of the weights, (Q, W, C).
            which: measurement of each problem, (Q,).
        """
        if not self.gaps.count:
            return features
        everyone = torch.arange(len(which), device=which.device)
        return self._elimination(which, root).project(features, everyone)

    def information(self, fit: JointFit) -> Tensor:
        """Fisher information of theta with the latents of a fit known, (Q, P, P)."""
        with torch.no_grad():
            decoded = self.decode(fit.z)
            columns = self.form.jacobian_columns(self.record.t, fit.theta)
            everyone = torch.arange(len(fit.theta), device=columns.device)
            jacobian = self.features(columns, everyone)
            weights = decoded.precision.double().flatten(1).unsqueeze(1)
            prior = torch.diag(self.form.prior_precision.to(jacobian))
            return (weights * jacobian) @ jacobian.mT + prior

    # -- joint minimisation ------------------------------------------------------------

    def minimise(
        self, start: JointFit, which: Tensor, *, max_evaluations: int = MAX_EVALUATIONS
    ) -> JointFit:
        """Quasi-Newton over (theta, missing, z) together, then theta at the found z.

        theta is scaled by the Cholesky factor of its information and z by the prior's
        own posterior scale, so that the Hessian is near the identity.
        """
        prior, form = self.prior, self.form
        n_theta, n_linear = start.theta.shape[-1], self.form.n_linear
        shape = start.z.shape[1:]
        with torch.no_grad():
            covariance = inverse_information(self.information(start))
            root = torch.linalg.cholesky(covariance)
            features = self.noise_features(start.theta, start.missing, which)
            z_scale = prior.latent_scale(features)
            q_scale = covariance.diagonal(dim1=-2, dim2=-1)[:, n_linear:].sqrt()
        base = torch.cat(
            [
                start.theta.new_zeros(len(which), n_theta + self.n_gaps),
                start.z.double().flatten(1),
            ],
            1,
        )
        latent_unit = z_scale.double().flatten(1)
        base[:, n_theta + self.n_gaps :] /= latent_unit

        def split(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            step = (root[rows] @ u[:, :n_theta].unsqueeze(-1)).squeeze(-1)
            theta = start.theta[rows] + step
            filled = start.missing[rows]
            if self.n_gaps:
                values = u[:, n_theta : n_theta + self.n_gaps] * self.gap_scale
                filled = filled + self.gaps.fill(values, which[rows])
            z = u[:, n_theta + self.n_gaps :] * latent_unit[rows]
            return theta, filled, z.view(-1, *shape).to(start.z.dtype)

        def objective(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            u = u.detach().requires_grad_()
            theta, filled, z = split(u, rows)
            q = theta[:, n_linear:]
            inside = clamp(form, q, which[rows])
            outside = (q - inside) / q_scale[rows]
            theta = torch.cat([theta[:, :n_linear], inside], -1)
            energy = self.energy(theta, filled, z, which[rows])
            energy = energy + 0.5 * outside.square().sum(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), u)
            return energy.detach(), gradient

        double = prior.dtype == torch.float64
        rows = torch.arange(len(which), device=which.device)
        found, converged = base.clone(), torch.zeros_like(which, dtype=torch.bool)
        # Latents of many windows take longer: what has not ended goes on from there.
        for _ in range(1 + min(MOST_RUNS, shape[0])):
            left = rows[~converged]
            if not len(left):
                break
            minimum = minimize_batch(
                lambda u, some, left=left: objective(u, left[some]),
                found[left],
                max_evaluations=max_evaluations,
                gradient_tolerance=GRADIENT_TOLERANCE[double],
                decrease_tolerance=DECREASE_TOLERANCE[double],
            )
            found[left], converged[left] = minimum.x, minimum.converged
        with torch.no_grad():
            theta, filled, z = split(found, rows)
            q = clamp(form, theta[:, n_linear:], which)
            theta = torch.cat([theta[:, :n_linear], q], -1)
            theta, filled, energy = self.refit(
                theta, filled, z, self.decode(z), which, steps=FINAL_STEPS
            )
        return JointFit(theta, z, filled, energy, converged)

    # -- error bars --------------------------------------------------------------------

    def tangent(self, fit: JointFit) -> Tangent:
        """The noise near the latents of a fit, batch shape (Q W,)."""
        return self.tangent_of(fit.z)

    def tangent_of(self, z: Tensor) -> Tangent:
        """The same for latents (Q, W, K)."""
        return tangent(self.prior, z.flatten(0, 1))

    def hessian(
        self, fit: JointFit, which: Tensor, near: Tangent | None = None
    ) -> Hessian:
        """Expected Hessian in (theta, missing, z) at the optimum.

        Args:
            fit: Q problems.
            which: measurement of each, (Q,).
            near: their `tangent`, if it is known.
        """
        near = near or self.tangent(fit)
        shape = fit.z.shape[:2]
        k, width = near.slopes.shape[-2:]
        root = near.decoded.precision.double().view(*shape, width).sqrt()
        jacobian = self.features(
            self.form.jacobian_columns(self.record.t, fit.theta), which
        )
        jacobian = jacobian.unflatten(2, (-1, width)) * root.unsqueeze(1)
        means = near.slopes.double().view(*shape, k, width) * root.unsqueeze(2)
        corner = jacobian.flatten(2) @ jacobian.flatten(2).mT
        gaps = []
        if self.gaps.count:
            free = self._elimination(which, root)
            for block in free.blocks:
                columns = free.columns(block)
                others = (
                    columns,
                    jacobian[block.problem, :, block.window],
                    means[block.problem, block.window],
                )
                gaps.append(GapTerms(block, *(columns @ v.mT for v in others)))
        return Hessian(
            corner + torch.diag(self.form.prior_precision.to(jacobian)),
            torch.einsum("qiwc,qwkc->qwik", jacobian, means),
            near.information.double().view(*shape, k, k),
            gaps,
            self.gaps.count,
        )


def number_within(which: Tensor) -> Tensor:
    """How many earlier problems each problem's measurement has, (Q,)."""
    order = which.argsort(stable=True)
    count = torch.bincount(which)
    begin = count.cumsum(0) - count
    number = torch.empty_like(which)
    number[order] = torch.arange(len(which), device=which.device) - begin[which[order]]
    return number


def _better(a: JointFit, b: JointFit) -> JointFit:
    """Problem by problem, the one of lower energy."""
    won = b.energy < a.energy

    def choose(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(won.view(-1, *([1] * (x.dim() - 1))), y, x)

    return JointFit(*(choose(getattr(a, k), getattr(b, k)) for k in vars(a)))
