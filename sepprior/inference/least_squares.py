"""Weighted Gauss-Newton for the signal's parameters, batched; GLS and robust fits.

theta = (bias, a_1, b_1, ..., f_1, ...), see `sepprior.signals`. Q problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior import signals
from sepprior.inference.periodogram import Periodogram, periodogram
from sepprior.inference.record import MaskedWhitener, Record

GLS_STEPS = 8
ROBUST_STEPS = 20
CAUCHY_SCALE = 2.385
"""Scale, in robust standard deviations, of 95 % efficiency in Gaussian noise."""
MAD_TO_SD = 1.4826
LONGEST_FREQUENCY_STEP = 0.25
"""Of the resolution 1 / T, per iteration."""
BACKTRACK = 0.25
"""What is left of a frequency step that went uphill."""

Features = Callable[[Tensor, Tensor], Tensor]
"""(columns (Q, k, W, N), measurement indices (Q,)) -> features (Q, k, C)."""


Bound = float | Tensor
"""An edge of the band, Hz: one for all measurements, or (B, 1)."""


def clamp_band(frequency: Tensor, fmin: Bound, fmax: Bound) -> Tensor:
    """Frequencies (Q, P) kept in the band."""
    low = torch.as_tensor(fmin, dtype=frequency.dtype, device=frequency.device)
    high = torch.as_tensor(fmax, dtype=frequency.dtype, device=frequency.device)
    return torch.minimum(torch.maximum(frequency, low), high)


def bound_of(bound: Bound, which: Tensor) -> Bound:
    """The edge for the measurements `which`."""
    return bound[which] if isinstance(bound, Tensor) else bound


@dataclass(frozen=True)
class Fit:
    """A batch of fits of the signal.

    Attributes:
        theta: shape (Q, 1 + 3 P).
        covariance: shape (Q, 1 + 3 P, 1 + 3 P).
        energy: shape (Q,), half the weighted squares of the residual.
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
    record: Record,
    features: Features,
    which: Tensor,
    frequency: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """The bias and quadratures of theta solved at fixed frequencies (Q, P)."""
    columns = features(signals.linear_columns(record.t, frequency), which)
    weighted = columns if weights is None else columns * weights.unsqueeze(1)
    linear = solve_normal(
        weighted @ columns.mT, (weighted @ target.unsqueeze(-1)).squeeze(-1)
    )
    return torch.cat([linear, frequency], -1)


def gauss_newton(
    record: Record,
    features: Features,
    which: Tensor,
    theta: Tensor,
    target: Tensor,
    *,
    fmin: Bound,
    fmax: Bound,
    steps: int,
    weights: Callable[[Tensor], Tensor] | Tensor | None = None,
) -> Fit:
    """Minimise ``sum w (target - A s(theta))^2 / 2`` over theta.

    Gauss-Newton with the frequency step limited to a quarter of the resolution, kept
    in the band and shortened where the energy would rise; the linear parameters are
    re-solved after each step (variable projection; Golub and Pereyra 1973).

    Args:
        record: the measurements.
        features: linear map from columns to features.
        which: measurement of each problem, (Q,).
        theta: start, (Q, 1 + 3 P).
        target: features of the data, (Q, C).
        fmin: lower edge of the band, Hz.
        fmax: upper edge, Hz.
        steps: iterations.
        weights: (Q, C), or a function of the residual giving them (iteratively
            re-weighted), or None for one.
    """
    n = (theta.shape[-1] - 1) // 3
    reach = LONGEST_FREQUENCY_STEP / record.duration

    def linearise(theta: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Residual, its weights, weighted Jacobian and Gram matrix."""
        jacobian = features(signals.jacobian_columns(record.t, theta), which)
        linear = jacobian[:, : 1 + 2 * n]
        current = (theta[:, : 1 + 2 * n].unsqueeze(1) @ linear).squeeze(1)
        residual = target - current
        w = weights(residual) if callable(weights) else weights
        weighted = jacobian if w is None else jacobian * w.unsqueeze(1)
        return residual, w, weighted, weighted @ jacobian.mT

    def energy_of(residual: Tensor, w: Tensor | None) -> Tensor:
        square = residual.square()
        return 0.5 * (square if w is None else square * w).sum(-1)

    # With weights that follow the residual there is no one energy to go down.
    monotone = not callable(weights)
    best, best_move = theta, torch.zeros_like(theta[:, 1 + 2 * n :])
    best_energy = torch.full_like(theta[:, 0], math.inf)
    share = torch.ones_like(theta[:, :1])
    for _ in range(steps):
        residual, w, weighted, gram = linearise(theta)
        move = solve_normal(gram, (weighted @ residual.unsqueeze(-1)).squeeze(-1))
        move = move[:, 1 + 2 * n :].clamp(-reach, reach)
        energy = energy_of(residual, w)
        down = (energy <= best_energy)[:, None] | (not monotone)
        best = torch.where(down, theta, best)
        best_move = torch.where(down, move, best_move)
        best_energy = torch.where(down[:, 0], energy, best_energy)
        share = torch.where(down, 1.0, share * BACKTRACK)
        f = clamp_band(best[:, 1 + 2 * n :] + share * best_move, fmin, fmax)
        theta = linear_fit(record, features, which, f, target, w)
    residual, w, _, gram = linearise(theta)
    up = (energy_of(residual, w) > best_energy)[:, None]
    if monotone and bool(up.any()):
        theta = torch.where(up, best, theta)
        residual, w, _, gram = linearise(theta)
    return Fit(theta, inverse_information(gram), energy_of(residual, w), residual)


def gls_features(whitener: MaskedWhitener) -> Features:
    """Features of the stationary Gaussian model: whitened samples, (Q, k, W N)."""
    return lambda columns, which: whitener.forward(columns, which).flatten(-2)


def gls_starts(
    record: Record,
    whitener: MaskedWhitener,
    *,
    n_sinusoids: int,
    n_starts: int,
    fmin: Bound,
    fmax: Bound,
    guess: Tensor | None = None,
) -> tuple[list[Fit], Periodogram | None]:
    """Generalised least squares from the highest peaks of the whitened periodogram.

    Several sinusoids are found one after another, each in what the joint fit of the
    others leaves; the alternatives differ in the last one.

    With a `guess` (B, P) there is no search and a single fit.

    Returns:
        `n_starts` fits of all measurements, the best first, and the periodogram of the
        data.
    """
    everyone = torch.arange(len(record.x), device=record.x.device)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]

    def fit_from(frequency: Tensor) -> Fit:
        theta = linear_fit(record, features, everyone, frequency, target)
        return gauss_newton(
            record,
            features,
            everyone,
            theta,
            target,
            fmin=fmin,
            fmax=fmax,
            steps=GLS_STEPS,
        )

    if guess is not None:
        return [fit_from(guess)], None
    if isinstance(fmin, Tensor) or isinstance(fmax, Tensor):
        raise TypeError("a search needs one band for all measurements")
    first = spectrum = periodogram(record, whitener, fmin=fmin, fmax=fmax)
    found = record.x.new_zeros(len(record.x), 0)
    fits: list[Fit] = []
    for p in range(n_sinusoids):
        last = p == n_sinusoids - 1
        count = n_starts if last else 1
        candidates = spectrum.peaks(count, separation=0.5 / record.duration)
        fits = [
            fit_from(torch.cat([found, candidates[:, k : k + 1]], 1))
            for k in range(count)
        ]
        if not last:
            found = fits[0].theta[:, 3 + 2 * p :]
            left = record.x - signals.evaluate(record.t, fits[0].theta)
            left = torch.where(record.present, left, torch.zeros_like(left))
            rest = Record(
                left, record.present, record.t, record.length, record.sample_rate
            )
            spectrum = periodogram(rest, whitener, fmin=fmin, fmax=fmax)
    energies = torch.stack([fit.energy for fit in fits])
    order = energies.argsort(0)
    stacked = Fit(*(torch.stack([getattr(f, k) for f in fits]) for k in vars(fits[0])))
    ranked = [
        Fit(*(getattr(stacked, k)[order[i], everyone] for k in vars(fits[0])))
        for i in range(n_starts)
    ]
    return ranked, first


def robust_fit(
    record: Record,
    whitener: MaskedWhitener,
    start: Fit,
    *,
    fmin: Bound,
    fmax: Bound,
) -> Fit:
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
        record,
        features,
        everyone,
        start.theta,
        target,
        fmin=fmin,
        fmax=fmax,
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
    jacobian = features(signals.jacobian_columns(record.t, fit.theta), everyone)
    covariance = inverse_information(jacobian @ jacobian.mT)
    return Fit(
        fit.theta, covariance * inflation[:, None, None], fit.energy, fit.residual
    )
