"""Weighted Gauss-Newton for the signal's parameters, batched; GLS.

theta is that of a form of signal, the linear parameters first; see
`sepprior.signals.form`. Q problems, P parameters, L of them linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepprior.inference.record import MaskedWhitener, Record
from sepprior.signals.form import Form, bounds_of, clamp, prior_energy

DAMPING = 3.0
"""First damping of a step that went uphill: a quarter of it is left."""
RELAXATION = 0.1
"""What is left of the damping after a step that went downhill."""
NEGLIGIBLE_DAMPING = 0.05
NEGLIGIBLE = 1e-12
"""Nats: a step that gains less is one of some 1e-6 standard errors."""

SAMPLES_AT_ONCE = 2**17
"""Samples of all problems that are worked on together; memory is bounded by it."""

Features = Callable[[Tensor, Tensor], Tensor]
"""(columns (A, k, W, N), the A problems they are for) -> features (A, k, C)."""


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
    rows: Tensor,
    nonlinear: Tensor,
    target: Tensor,
) -> Tensor:
    """Theta (Q, P) with the linear parameters solved at fixed q (Q, P - L)."""
    if not form.n_linear:
        return nonlinear
    theta = torch.cat([nonlinear.new_zeros(len(rows), form.n_linear), nonlinear], -1)
    parts = parts_of(record, features, len(rows))
    return _solved(form, parts, rows, theta, target)


def _solve_linear(columns: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Coefficients (Q, L) of columns (Q, L, C) that come nearest to the target."""
    weighted = columns if weights is None else columns * weights.unsqueeze(1)
    return solve_normal(
        weighted @ columns.mT, (weighted @ target.unsqueeze(-1)).squeeze(-1)
    )


@dataclass(frozen=True)
class _Point:
    """A batch of thetas and the quadratic model of the energy about each.

    Attributes:
        theta: shape (Q, P), linear parameters solved.
        gram: information, (Q, P, P).
        right: downward gradient, (Q, P).
        energy: shape (Q,).
        residual: shape (Q, C).
    """

    theta: Tensor
    gram: Tensor
    right: Tensor
    energy: Tensor
    residual: Tensor

    def select(self, rows: Tensor) -> _Point:
        """A sub-batch."""
        values = {k: _rows(v, rows) for k, v in vars(self).items()}
        return _Point(**values)

    def put(self, rows: Tensor, other: _Point, taken: Tensor) -> None:
        """Overwrite the rows by those of another batch that are taken, a mask."""
        for name, value in vars(self).items():
            value[rows[taken]] = getattr(other, name)[taken]


def _rows(values: Tensor | None, rows: Tensor) -> Any:
    """The given rows, in order; the tensor itself where these are all."""
    return values if values is None or len(rows) == len(values) else values[rows]


def _linearise(
    form: Form,
    record: Record,
    features: Features,
    rows: Tensor,
    theta: Tensor,
    target: Tensor,
    weights: Tensor | None,
) -> _Point:
    """Solve the linear parameters at theta's nonlinear ones, and linearise there."""
    n = form.n_linear
    parts = parts_of(record, features, len(rows))
    if weights is None and len(parts) > 1:
        return _linearise_parts(form, parts, rows, theta, target)
    if n:
        columns = features(form.linear_columns(record.t, theta[:, n:]), rows)
        linear = _solve_linear(columns, target, weights)
        residual = target - (linear.unsqueeze(1) @ columns).squeeze(1)
        theta = torch.cat([linear, theta[:, n:]], -1)
        jacobian = columns
        if theta.shape[1] > n:
            slopes = features(form.jacobian_columns(record.t, theta)[:, n:], rows)
            jacobian = torch.cat([columns, slopes], 1)
            del columns, slopes  # the largest arrays there are
    else:
        # The point is written to later, and the start belongs to the caller.
        theta = theta.clone()
        signal = form.evaluate(record.t, theta).unsqueeze(1)
        residual = target - features(signal, rows)[:, 0]
        jacobian = features(form.jacobian_columns(record.t, theta), rows)
    weighted = jacobian if weights is None else jacobian * weights.unsqueeze(1)
    mean, precision = form.prior_mean.to(theta), form.prior_precision.to(theta)
    square = residual.square() if weights is None else residual.square() * weights
    right = (weighted @ residual.unsqueeze(-1)).squeeze(-1)
    return _Point(
        theta=theta,
        gram=weighted @ jacobian.mT + torch.diag(precision),
        right=right + precision * (mean - theta),
        energy=0.5 * square.sum(-1) + prior_energy(form, theta),
        residual=residual,
    )


def _linearise_parts(
    form: Form,
    parts: list[Part],
    rows: Tensor,
    theta: Tensor,
    target: Tensor,
) -> _Point:
    """The same without weights, some windows at a time: columns are worked out again.

    Linear parameters are solved, then residuals, then the normal equations.
    """
    theta = _solved(form, parts, rows, theta, target)
    residual = torch.empty_like(target)
    for part in parts:
        signal = form.evaluate(part.record.t, theta).unsqueeze(1)
        residual[:, part.at] = target[:, part.at] - part.features(signal, rows)[:, 0]
    mean, precision = form.prior_mean.to(theta), form.prior_precision.to(theta)
    gram, right = torch.diag(precision), precision * (mean - theta)
    energy = prior_energy(form, theta)
    for part in parts:
        jacobian = part.features(form.jacobian_columns(part.record.t, theta), rows)
        left = residual[:, part.at]
        gram = gram + jacobian @ jacobian.mT
        right = right + (jacobian @ left.unsqueeze(-1)).squeeze(-1)
        energy = energy + 0.5 * left.square().sum(-1)
    return _Point(
        theta=theta,
        gram=gram,
        right=right,
        energy=energy,
        residual=residual,
    )


def _solved(
    form: Form,
    parts: list[Part],
    rows: Tensor,
    theta: Tensor,
    target: Tensor,
) -> Tensor:
    """Theta (Q, P) with the linear parameters solved at the nonlinear ones."""
    n = form.n_linear
    if not n:
        return theta.clone()
    gram, right = theta.new_zeros(()), theta.new_zeros(())
    for part in parts:
        columns = part.features(form.linear_columns(part.record.t, theta[:, n:]), rows)
        gram = gram + columns @ columns.mT
        right = right + (columns @ target[:, part.at].unsqueeze(-1)).squeeze(-1)
    return torch.cat([solve_normal(gram, right), theta[:, n:]], -1)


def gauss_newton(
    form: Form,
    record: Record,
    features: Features,
    which: Tensor,
    theta: Tensor,
    target: Tensor,
    *,
    steps: int,
    weights: Tensor | None = None,
) -> Fit:
    """Minimise ``sum w (target - A s(theta))^2 / 2 - log p(theta)`` over theta.

    Gauss-Newton with steps no longer than the form's reach, kept in its bounds (a
    parameter that a step would push through its bound is held there for that step) and
    damped where the energy would rise (Marquardt 1963); linear parameters are re-solved
    after each step (variable projection; Golub and Pereyra 1973). A problem rests when
    its next step promises less than `NEGLIGIBLE`.

    Args:
        form: the signal.
        record: the measurements.
        features: linear map from columns to features.
        which: measurement of each problem, (Q,), whose bounds hold.
        theta: start, (Q, P).
        target: features of the data, (Q, C).
        steps: most iterations.
        weights: (Q, C), or None for one.
    """
    active = torch.arange(len(theta), device=theta.device)
    damping = theta.new_zeros(len(theta))
    best: _Point | None = None
    for step in range(steps + 1):
        now = _linearise(
            form,
            record,
            features,
            active,
            theta,
            _rows(target, active),
            _rows(weights, active),
        )
        if best is None:
            best, down = now, torch.ones_like(now.energy, dtype=torch.bool)
        else:
            down = now.energy <= best.energy[active]
            if len(active) == len(best.theta) and bool(down.all()):
                best = now  # without a copy of residuals
            else:
                best.put(active, now, down)
        if step == steps:
            break
        relaxed = RELAXATION * damping[active]
        relaxed = torch.where(relaxed < NEGLIGIBLE_DAMPING, 0.0, relaxed)
        damped = torch.where(down, relaxed, 4.0 * damping[active] + DAMPING)
        damping[active] = damped
        at = best.select(active)
        move = bounded_step(
            form, at.theta, at.gram, at.right, which[active], damping=damped
        )
        resting = down & (0.5 * (move * at.right).sum(-1) < NEGLIGIBLE)
        # The last step is taken, but too short to be worth another look.
        best.theta[active[resting]] += move[resting]
        theta = moved(form, at.theta, move, which[active])
        active, theta = active[~resting], theta[~resting]
        if not len(active):
            break
    assert best is not None
    theta = torch.cat(
        [
            best.theta[:, : form.n_linear],
            clamp(form, best.theta[:, form.n_linear :], which),
        ],
        -1,
    )
    return Fit(theta, inverse_information(best.gram), best.energy, best.residual)


def bounded_step(
    form: Form,
    theta: Tensor,
    gram: Tensor,
    right: Tensor,
    which: Tensor,
    *,
    damping: Tensor | None = None,
) -> Tensor:
    """Step of the parameters (Q, P) that respects the bounds.

    Args:
        form: the signal.
        theta: where the step begins, (Q, P).
        gram: information there, (Q, P, P).
        right: downward gradient there, (Q, P).
        which: measurement of each problem, (Q,), whose bounds hold.
        damping: share of the information's diagonal that is added to it, (Q,).
    """
    if damping is not None:
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        gram = gram + torch.diag_embed(damping[:, None] * diagonal)
    n = form.n_linear
    move = solve_normal(gram, right)
    low, high = (b.to(move) for b in bounds_of(form, which))
    q, step = theta[:, n:], move[:, n:]
    outward = ((q <= low) & (step < 0)) | ((q >= high) & (step > 0))
    if bool(outward.any()):
        free = torch.cat([torch.zeros_like(theta[:, :n]).bool(), outward], -1)
        free = (~free).to(gram)
        gram = gram * free[:, :, None] * free[:, None, :]
        move = solve_normal(gram, right * free)
    return torch.where(move.isfinite(), move, 0.0)


def moved(form: Form, theta: Tensor, move: Tensor, which: Tensor) -> Tensor:
    """Theta (Q, P) after a step of the nonlinear parameters, in reach and bounds."""
    n, reach = form.n_linear, form.reach.to(theta)
    step = torch.minimum(torch.maximum(move[:, n:], -reach), reach)
    return torch.cat([theta[:, :n], clamp(form, theta[:, n:] + step, which)], -1)


class WhitenedSamples:
    """Features of the stationary Gaussian model: whitened samples, (Q, k, W N).

    Args:
        whitener: of B measurements.
        rows: those that are meant, or None for all.
    """

    def __init__(self, whitener: MaskedWhitener, rows: Tensor | None = None) -> None:
        self.whitener, self.rows = whitener, rows

    def __call__(self, columns: Tensor, which: Tensor) -> Tensor:
        """Features of columns (Q, k, W, N) of the measurements `which`."""
        if self.rows is not None:
            which = self.rows[which]
        return self.whitener.forward(columns, which).flatten(-2)

    def select(self, rows: Tensor) -> WhitenedSamples:
        """The same for some of all measurements."""
        return WhitenedSamples(self.whitener, rows)


def gls_features(whitener: MaskedWhitener) -> WhitenedSamples:
    """See `WhitenedSamples`."""
    return WhitenedSamples(whitener)


@dataclass(frozen=True)
class Part:
    """Some of the windows of a record, to work on at a time.

    Attributes:
        record: the measurements in these windows.
        features: of columns there.
        at: which of the whole record's features they are.
    """

    record: Record
    features: Features
    at: slice


def parts_of(record: Record, features: Features, rows: int) -> list[Part]:
    """The windows some at a time, where they are many.

    Whitened samples alone are known to be those of their windows.
    """
    n_windows, n = record.x.shape[1:]
    at_once = max(1, SAMPLES_AT_ONCE // (n * rows))
    if at_once >= n_windows or not isinstance(features, WhitenedSamples):
        return [Part(record, features, slice(None))]
    found = []
    for begin in range(0, n_windows, at_once):
        end = min(begin + at_once, n_windows)
        own = WhitenedSamples(features.whitener.windows(begin, end), features.rows)
        part = record.windows(slice(begin, end))
        found.append(Part(part, own, slice(begin * n, end * n)))
    return found
