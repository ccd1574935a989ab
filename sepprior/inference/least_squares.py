"""Weighted Gauss-Newton for the signal's parameters, batched; GLS and robust fits.

theta is that of a form of signal, the linear parameters first; see
`sepprior.signals.form`. Q problems, P parameters, L of them linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.record import MaskedWhitener, Record
from sepprior.signals.form import Form, bounds_of, clamp, prior_energy

ROBUST_STEPS = 20
CAUCHY_SCALE = 2.385
"""Scale, in robust standard deviations, of 95 % efficiency in Gaussian noise."""
MAD_TO_SD = 1.4826
DAMPING = 3.0
"""First damping of a step that went uphill: a quarter of it is left."""
RELAXATION = 0.1
"""What is left of the damping after a step that went downhill."""
NEGLIGIBLE_DAMPING = 0.05

Features = Callable[[Tensor, Tensor], Tensor]
"""(columns (Q, k, W, N), measurement indices (Q,)) -> features (Q, k, C)."""


@dataclass(frozen=True)
class Fit:
    """A batch of fits of the signal.

    Attributes:
        theta: shape (Q, P).
        covariance: shape (Q, P, P).
        energy: shape (Q,), half the weighted squares of the residual, and
            ``-log p(theta)`` where the form has a prior.
        residual: shape (Q, C), features of what the signal leaves.
    """

    theta: Tensor
    covariance: Tensor
    energy: Tensor
    residual: Tensor

    def select(self, which: Tensor) -> Fit:
        """A sub-batch."""
        return Fit(
            self.theta[which],
            self.covariance[which],
            self.energy[which],
            self.residual[which],
        )


def solve_normal(gram: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric positive systems (Q, k, k) x = (Q, k), scaled to unit diagonal.

    A direction without information (a sine at Nyquist) gets a step of zero.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    scaled = gram / scale[:, :, None] / scale[:, None, :]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(scaled + 1e-12 * eye, right / scale)
    return solution / scale


def inverse_information(gram: Tensor) -> Tensor:
    """Inverse of information matrices (Q, k, k), scaled to unit diagonal first."""
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    scaled = gram / scale[:, :, None] / scale[:, None, :]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(scaled + 1e-12 * eye)
    return inverse / scale[:, :, None] / scale[:, None, :]


def linear_fit(
    form: Form,
    record: Record,
    features: Features,
    which: Tensor,
    nonlinear: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Theta (Q, P) with the linear parameters solved at fixed q (Q, P - L)."""
    if not form.n_linear:
        return nonlinear
    columns = features(form.linear_columns(record.t, nonlinear), which)
    weighted = columns if weights is None else columns * weights.unsqueeze(1)
    linear = solve_normal(
        weighted @ columns.mT, (weighted @ target.unsqueeze(-1)).squeeze(-1)
    )
    return torch.cat([linear, nonlinear], -1)


def gauss_newton(
    form: Form,
    record: Record,
    features: Features,
    which: Tensor,
    theta: Tensor,
    target: Tensor,
    *,
    steps: int,
    weights: Callable[[Tensor], Tensor] | Tensor | None = None,
) -> Fit:
    """Minimise ``sum w (target - A s(theta))^2 / 2 - log p(theta)`` over theta.

    Gauss-Newton with steps no longer than the form's reach, kept in its bounds (a
    parameter that a step would push through its bound is held there for that step) and
    damped where the energy would rise (Marquardt 1963); linear parameters are re-solved
    after each step (variable projection; Golub and Pereyra 1973).

    Args:
        form: the signal.
        record: the measurements.
        features: linear map from columns to features.
        which: measurement of each problem, (Q,).
        theta: start, (Q, P).
        target: features of the data, (Q, C).
        steps: iterations.
        weights: (Q, C), or a function of the residual giving them (iteratively
            re-weighted), or None for one.
    """
    n_linear = form.n_linear
    reach = form.reach.to(theta)
    mean, precision = form.prior_mean.to(theta), form.prior_precision.to(theta)

    def linearise(theta: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Residual, its weights, weighted Jacobian and information matrix."""
        jacobian = features(form.jacobian_columns(record.t, theta), which)
        if n_linear:
            linear = jacobian[:, :n_linear]
            current = (theta[:, :n_linear].unsqueeze(1) @ linear).squeeze(1)
        else:
            signal = form.evaluate(record.t, theta).unsqueeze(1)
            current = features(signal, which)[:, 0]
        residual = target - current
        w = weights(residual) if callable(weights) else weights
        weighted = jacobian if w is None else jacobian * w.unsqueeze(1)
        return residual, w, weighted, weighted @ jacobian.mT + torch.diag(precision)

    def energy_of(theta: Tensor, residual: Tensor, w: Tensor | None) -> Tensor:
        square = residual.square()
        square = square if w is None else square * w
        return 0.5 * square.sum(-1) + prior_energy(form, theta)

    # With weights that follow the residual there is no one energy to go down.
    monotone = not callable(weights)
    best, best_energy = theta, torch.full_like(theta[:, 0], math.inf)
    p = theta.shape[-1]
    best_gram, best_right = theta.new_zeros(len(theta), p, p), torch.zeros_like(theta)
    damping = torch.zeros_like(theta[:, 0])
    for _ in range(steps):
        residual, w, weighted, gram = linearise(theta)
        right = (weighted @ residual.unsqueeze(-1)).squeeze(-1)
        right = right + precision * (mean - theta)
        energy = energy_of(theta, residual, w)
        down = (energy <= best_energy) | (not monotone)
        best = torch.where(down[:, None], theta, best)
        best_gram = torch.where(down[:, None, None], gram, best_gram)
        best_right = torch.where(down[:, None], right, best_right)
        best_energy = torch.where(down, energy, best_energy)
        relaxed = RELAXATION * damping
        relaxed = torch.where(relaxed < NEGLIGIBLE_DAMPING, 0.0, relaxed)
        damping = torch.where(down, relaxed, 4.0 * damping + DAMPING)
        move = _bounded_step(form, best, best_gram, best_right, damping, which)
        move = torch.minimum(torch.maximum(move, -reach), reach)
        q = clamp(form, best[:, n_linear:] + move, which)
        theta = linear_fit(form, record, features, which, q, target, w)
    residual, w, _, gram = linearise(theta)
    up = ~(energy_of(theta, residual, w) <= best_energy)[:, None]
    if monotone and bool(up.any()):
        theta = torch.where(up, best, theta)
        residual, w, _, gram = linearise(theta)
    energy = energy_of(theta, residual, w)
    return Fit(theta, inverse_information(gram), energy, residual)


def _bounded_step(
    form: Form,
    theta: Tensor,
    gram: Tensor,
    right: Tensor,
    damping: Tensor,
    which: Tensor,
) -> Tensor:
    """Damped step of the nonlinear parameters (Q, P - L) that respects the bounds."""
    damped = gram + torch.diag_embed(damping[:, None] * gram.diagonal(dim1=-2, dim2=-1))
    n = form.n_linear
    move = solve_normal(damped, right)[:, n:]
    low, high = (b.to(theta) for b in bounds_of(form, which))
    q = theta[:, n:]
    outward = ((q <= low) & (move < 0)) | ((q >= high) & (move > 0))
    if bool(outward.any()):
        held = torch.cat([torch.zeros_like(theta[:, :n]).bool(), outward], -1)
        free = (~held).to(damped)
        damped = damped * free[:, :, None] * free[:, None, :]
        move = solve_normal(damped, right * free)[:, n:]
    return torch.where(move.isfinite(), move, 0.0)


def gls_features(whitener: MaskedWhitener) -> Features:
    """Features of the stationary Gaussian model: whitened samples, (Q, k, W N)."""
    return lambda columns, which: whitener.forward(columns, which).flatten(-2)


def robust_fit(form: Form, record: Record, whitener: MaskedWhitener, start: Fit) -> Fit:
    """Cauchy regression on whitened residuals, by re-weighted least squares.

    The covariance is the sandwich of an M-estimator (Huber 1981, section 7.6),
    ``E psi^2 / (E psi')^2 (J^T J)^-1``, with the degrees of freedom in the first mean.
    """
    everyone = torch.arange(len(record.x), device=record.x.device)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    present = record.present.flatten(1)
    n_present = present.sum(-1, keepdim=True)

    def scale_of(residual: Tensor) -> Tensor:
        magnitude = residual.abs().masked_fill(~present, math.nan)
        middle = magnitude.nanmedian(-1, keepdim=True).values
        return CAUCHY_SCALE * MAD_TO_SD * middle.clamp_min(1e-12)

    def weights(residual: Tensor) -> Tensor:
        return 1.0 / (1.0 + (residual / scale_of(residual)).square())

    fit = gauss_newton(
        form,
        record,
        features,
        everyone,
        start.theta,
        target,
        steps=ROBUST_STEPS,
        weights=weights,
    )
    u = (fit.residual / scale_of(fit.residual)).square()
    psi = fit.residual / (1.0 + u)
    slope = (1.0 - u) / (1.0 + u).square() * present
    freedom = (n_present[:, 0] - fit.theta.shape[-1]).clamp_min(1)
    inflation = (psi.square().sum(-1) / freedom) / (
        slope.sum(-1) / n_present[:, 0]
    ).square().clamp_min(1e-12)
    jacobian = features(form.jacobian_columns(record.t, fit.theta), everyone)
    information = (jacobian @ jacobian.mT) / inflation[:, None, None]
    information = information + torch.diag(form.prior_precision.to(information))
    covariance = inverse_information(information)
    return Fit(fit.theta, covariance, fit.energy, fit.residual)
