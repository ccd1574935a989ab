"""Error bars of a sinusoid that is hardly there: its posterior over the frequency.

A parabola at the highest peak of the likelihood does not know that there are others,
nor that a low peak is no parabola: where a signal can just be seen, its intervals hold
the truth too rarely. Given the frequency all else is linear. So frequencies are drawn
from a grid by their marginal likelihood, bias and quadratures from the Gaussian that
they have there (Bretthorst 1988, chapter 3), and the draws weighted to flat priors on
amplitude, frequency, phase and bias. For strong signals it is the same as the parabola.

R measurements, F frequencies, S draws, W windows of N samples or C features.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import Fit, gls_features
from sepprior.inference.periodogram import Periodogram
from sepprior.inference.pipeline import Answer
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.priors import LatentPrior
from sepprior.priors.marginal import Tangent
from sepprior.signals import Sinusoids, wrap_phase
from sepprior.signals.form import Form
from sepprior.signals.sinusoids import polar

WEAK = 20.0
"""Gain over no signal, nats, above which the parabola is as good."""
DRAWS = 1000
NUMBERS = 2**23
"""Numbers in the whitened columns of all frequencies: of more, nothing is done."""
AT_ONCE = 64
"""Measurements whose draws are worked out together."""
LEAST_CYCLES = 0.5
"""Cycles in the record below which a sinusoid is hardly different from a bias."""
CENTRAL = 0.682689
TAIL = 0.025


def weak_widths(
    form: Sinusoids,
    record: Record,
    weak: Tensor,
    fit: Answer | Fit,
    band: Periodogram,
    model: Model,
) -> tuple[Tensor, Tensor, Tensor]:
    """Widths of the intervals of those measurements whose signal is weak.

    Args:
        form: one sinusoid, with bounds common to all measurements.
        record: B measurements.
        weak: which of them are, (B,).
        fit: the answers.
        band: its frequencies are the grid.
        model: linear given the frequency.

    Returns:
        The rows that were worked on (R,), half the width of their 68 % intervals
        (R, 4), and the ends of the 95 % intervals relative to the estimates (R, 4, 2),
        natural parameters.
    """
    frequency = band.within(float(form.low[0]), float(form.high[0])).frequency
    frequency = frequency[_resolved(frequency, record)]
    rows = (weak & _resolved(fit.theta[:, 3], record)).nonzero().flatten()
    windows, n = record.x.shape[1:]
    many = 3 * len(frequency) * windows * n > NUMBERS
    if len(frequency) < 3 or many or not len(rows):
        none = rows[:0]
        return none, fit.theta.new_zeros(0, 4), fit.theta.new_zeros(0, 4, 2)
    columns = form.linear_columns(record.t, frequency[:, None])
    estimates = polar(fit.theta, middle=form.geometry.middle)
    parts = []
    for part in rows.split(model.at_once):
        theta = _draws(*model.normal(columns, part), frequency, form)
        parts.append(_widths(form, theta, estimates[part]))
    half, ends = (torch.cat(v) for v in zip(*parts, strict=True))
    return rows, half, ends


def _resolved(frequency: Tensor, record: Record) -> Tensor:
    """Frequencies (...) that are far enough from zero and from half the sample rate."""
    edge = LEAST_CYCLES / record.duration
    return (frequency >= edge) & (frequency <= 0.5 * record.sample_rate - edge)


class Model(Protocol):
    """What makes a measurement linear in bias and quadratures, given the frequency.

    Attributes:
        at_once: measurements that share their columns.
    """

    at_once: int

    def normal(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normal equations of columns (F, 3, W, N) for measurements `rows`.

        Returns:
            Information (F, 3, 3), common to them, and right-hand sides (F, 3, R).
        """
        ...


class Stationary:
    """Noise of the recording's spectrum.

    Args:
        record: B measurements.
        whitener: of their noise.
    """

    def __init__(self, record: Record, whitener: MaskedWhitener) -> None:
        self.record, self.features = record, gls_features(whitener)
        # Without gaps the columns are the same for all.
        self.at_once = AT_ONCE if whitener.complete else 1

    def normal(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.normal`."""
        target = self.features(self.record.x[rows].unsqueeze(1), rows)[:, 0]
        white = self.features(columns.flatten(0, 1)[None], rows[:1])[0]
        white = white.unflatten(0, columns.shape[:2])
        return white @ white.mT, white @ target.mT


class Conditional:
    """Noise of a prior whose latents are near those of a fit.

    Latents in reach of the fit are integrated out, to first order: of a signal that the
    noise could take along, other frequencies are less unlikely than in the noise that
    was found for this one. With J the derivative of the whitened mean by the latent, H
    the latent's information and e what the fit leaves, whitened signals d away from
    the fit's have ``-log p = d^T (1 - J H^-1 J^T) d / 2 - d^T e``: the gradient of the
    latent's own terms at the optimum is ``J^T e``. Of missing samples nothing is known.

    Args:
        prior: the noise prior.
        record: B measurements.
        fit: of all of them.
        form: the signal.
        near: their noise near the fit, if it is known.
    """

    at_once = 1

    def __init__(
        self,
        prior: LatentPrior,
        record: Record,
        fit: JointFit,
        form: Form,
        near: Tangent | None = None,
    ) -> None:
        self.prior, self.record, self.fit, self.form = prior, record, fit, form
        self.near = near
        self._columns: Tensor | None = None

    @torch.no_grad()
    def normal(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.normal`; of one measurement."""
        if self._columns is None:
            self._columns = self.prior.features(columns).flatten(0, 1)
        fit, record = self.fit.select(rows), self.record.select(rows)
        problem = JointProblem(self.prior, record, form=self.form)
        near = self._near(rows)
        if near is None:
            near = problem.tangent(fit)
        only = torch.zeros_like(rows)
        root = near.decoded.precision.double().sqrt()
        found = self.prior.features(self.form.evaluate(record.t, fit.theta))
        left = problem.noise_features(fit.theta, fit.missing, only)
        left = (left[0].double() - near.decoded.mean) * root
        slopes = near.slopes.double() * root.unsqueeze(1)
        latent = near.information.double() - slopes @ slopes.mT
        # Columns of the signal, of the latents, and the signal that was found.
        parts = self._columns, near.slopes.transpose(0, 1), found
        several = torch.cat([part.double() for part in parts]) * root
        several = problem.present(several[None], root[None], only)[0]
        white, slopes, found = several.split([len(part) for part in parts])
        slopes = slopes.transpose(0, 1)
        latent = latent + slopes @ slopes.mT
        along = torch.cat([white, found]).transpose(0, 1) @ slopes.mT
        # Not by a Cholesky factor: in single precision H may miss being definite.
        moved = torch.linalg.solve(latent, along.mT).flatten(0, 1).mT
        along, white = along.transpose(0, 1).flatten(1)[:-1], white.flatten(1)
        right = white @ (found + left).flatten() - along @ moved[-1]
        white, along, moved = (
            v.unflatten(0, (-1, 3)) for v in (white, along, moved[:-1])
        )
        information = white @ white.mT - along @ moved.mT
        return information, right.view(-1, 3, 1)

    def _near(self, rows: Tensor) -> Tangent | None:
        """The noise near the fit in all windows of one measurement, if it is known."""
        if self.near is None:
            return None
        count = self.fit.z.shape[1]
        windows = torch.arange(count, device=rows.device)
        return self.near.select(rows * count + windows)


def _draws(
    information: Tensor, right: Tensor, frequency: Tensor, form: Sinusoids
) -> Tensor:
    """Draws of theta (R, S, 4) for a flat prior on bias, quadratures and frequency.

    Args:
        information: of bias and quadratures, (F, 3, 3).
        right: right-hand sides of their normal equations, (F, 3, R).
        frequency: shape (F,), Hz, evenly spaced.
        form: with the bounds of the frequency.
    """
    root, failed = torch.linalg.cholesky_ex(information)
    alone = torch.eye(3, dtype=root.dtype, device=root.device)
    root = torch.where((failed > 0)[:, None, None], alone, root)
    mean = torch.cholesky_solve(right, root)
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weight = 0.5 * (right * mean).sum(1) - volume[:, None]
    weight[failed > 0] = -torch.inf
    below = torch.softmax(weight, 0).cumsum(0).mT.contiguous()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(DRAWS, 3, 1, generator=generator, dtype=torch.float64)
    within = torch.rand(DRAWS, generator=generator, dtype=torch.float64) - 0.5
    normal, within = normal.to(right.device), within.to(right.device)
    # Evenly spaced quantiles: the frequencies of the draws are hardly random.
    level = (torch.arange(DRAWS, device=right.device) + 0.5) / DRAWS
    level = level.to(below).expand(right.shape[-1], -1).contiguous()
    at = torch.searchsorted(below, level).clamp_max(len(frequency) - 1)
    spread = torch.linalg.solve_triangular(
        root.mT.expand(len(frequency), 3, 3)[at], normal, upper=True
    )
    own = torch.arange(right.shape[-1], device=at.device)[:, None]
    linear = mean.permute(2, 0, 1)[own, at] + spread.squeeze(-1)
    step = frequency[1] - frequency[0]
    drawn = (frequency[at] + within * step).clamp(
        float(form.low[0]), float(form.high[0])
    )
    return torch.cat([linear, drawn.unsqueeze(-1)], -1)


def _widths(form: Sinusoids, theta: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Widths (R, 4) and ends (R, 4, 2) about estimates, from draws (R, S, 4)."""
    values = polar(theta.flatten(0, 1), middle=form.geometry.middle).view_as(theta)
    away = (values - estimate[:, None]).mT.contiguous()
    away[:, 2] = wrap_phase(away[:, 2])
    # Flat in the quadratures is proportional to the amplitude.
    weight = 1.0 / values[..., 0].clamp_min(1e-300)
    weight = (weight / weight.sum(1, keepdim=True)).unsqueeze(1).expand_as(away)
    (half,) = _quantiles(away.abs(), weight, [CENTRAL])
    low, high = _quantiles(away, weight, [TAIL, 1.0 - TAIL])
    return half, torch.stack([low.clamp_max(0.0), high.clamp_min(0.0)], -1)


def _quantiles(values: Tensor, weight: Tensor, levels: list[float]) -> list[Tensor]:
    """Quantiles (R, 4) of weighted values (R, 4, S)."""
    values, order = values.sort(-1)
    below = weight.gather(-1, order).cumsum(-1)
    last = values.shape[-1] - 1
    places = [(below < level).sum(-1, keepdim=True) for level in levels]
    return [values.gather(-1, at.clamp_max(last)).squeeze(-1) for at in places]
