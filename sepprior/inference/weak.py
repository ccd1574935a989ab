"""Error bars of a sinusoid whose frequency is uncertain: its posterior over the band.

A parabola at the highest peak of the likelihood does not know that there are others,
nor that a low peak is no parabola: where a signal can just be seen, or long gaps make
fringes of the likelihood, its intervals hold the truth too rarely. Given the frequency
all else is linear. So frequencies are drawn from a grid by their marginal likelihood,
bias and quadratures from the Gaussian that they have there (Bretthorst 1988, chapter
3), and the draws weighted to flat priors on amplitude, frequency, phase and bias. For
strong signals in records without gaps it is the same as the parabola.

The normal equations at all frequencies of the grid are Fourier sums over the precision
of the noise, as in the periodogram: any length of record is worked out.

R measurements, F frequencies, S draws, W windows of N samples or C features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import Fit
from sepprior.inference.periodogram import (
    BINS_AT_ONCE,
    SHORT,
    Gram,
    Periodogram,
    fourier_size,
    gram_of,
    matrix_sums,
    precision_times,
    sums,
)
from sepprior.inference.pipeline import LONG, Answer
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.priors import LatentPrior
from sepprior.priors.marginal import Tangent
from sepprior.signals import Sinusoids, wrap_phase
from sepprior.signals.form import Form
from sepprior.signals.sinusoids import polar
from sepprior.transforms import MAX_DENSE_WINDOW

WEAK = 20.0
"""Gain over no signal, nats, above which other peaks are out of the question."""
RIVAL = 12.0
"""Nats by which a peak must be higher than all others to be the only one."""
STEP_GAIN = 15.0
"""Gain, nats, up to which a grid of 8 frequencies per resolution is fine enough."""
FINEST = 2**23
"""Longest transform for a finer grid than that."""
DRAWS = 4000
AT_ONCE = 64
"""Measurements whose draws are worked out together."""
LEAST_CYCLES = 0.5
"""Cycles in the record below which a sinusoid is hardly different from a bias."""
CENTRAL = 0.682689
TAIL = 0.025
LIKELY = 0.05
"""Probability from which another frequency is worth naming."""
NAMED = 3
"""Other frequencies that are named, at most."""


@dataclass(frozen=True)
class Widths:
    """Intervals from the posterior over the band, natural parameters.

    Attributes:
        rows: the measurements that they are of, (R,).
        half: half the width of the 68 % intervals, (R, 4).
        ends: ends of the 95 % intervals relative to the estimates, (R, 4, 2).
        share: probability of the peak that the estimate is at, (R,).
        others: frequencies of other peaks, Hz, likeliest first, (R, 3); NaN where there
            are fewer.
    """

    rows: Tensor
    half: Tensor
    ends: Tensor
    share: Tensor
    others: Tensor


def uncertain(
    record: Record, gain: Tensor, frequency: Tensor, band: Periodogram
) -> Tensor:
    """Where the frequency may be another one, (B,).

    That is where the signal is weak, or where there are gaps and a peak of the
    likelihood that is not this one is nearly as high.

    Args:
        record: B measurements.
        gain: log-likelihood of the answer over that of no signal, nats, (B,).
        frequency: of the answer, Hz, (B,).
        band: likelihood over frequency.
    """
    weak = gain < WEAK
    present = record.present.flatten(1)[:, : record.length]
    gapped = ~present.all(-1)
    if not bool(gapped.any()):
        return weak
    away = (band.frequency - frequency[:, None]).abs() > 0.5 / record.duration
    other = torch.where(away, band.gain, -torch.inf).amax(-1)
    return weak | (gapped & (other > band.gain.amax(-1) - RIVAL))


def posterior_widths(
    form: Sinusoids,
    record: Record,
    rows: Tensor,
    gain: Tensor,
    fit: Answer | Fit,
    model: Model,
) -> Widths:
    """Widths of the intervals of some measurements, by their posterior over the band.

    Args:
        form: one sinusoid, with bounds common to all measurements.
        record: B measurements.
        rows: which of them, (B,); those are left out that are at an end of all
            frequencies.
        gain: log-likelihood over that of no signal, nats, (B,).
        fit: the answers.
        model: linear given the frequency.
    """
    edge = LEAST_CYCLES / record.duration
    nyquist = 0.5 * record.sample_rate
    low = max(float(form.low[0]), edge)
    high = min(float(form.high[0]), nyquist - edge)
    inside = (fit.theta[:, 3] >= edge) & (fit.theta[:, 3] <= nyquist - edge)
    rows = (rows & inside).nonzero().flatten()
    estimates = polar(fit.theta, middle=form.geometry.middle)
    found = []
    # Each has the grid that its gain asks for, whatever else is in the batch.
    finer = (gain.clamp_min(STEP_GAIN) / STEP_GAIN).sqrt().log2().ceil().long()[rows]
    for level in finer.unique().tolist():
        size = _size(record, level)
        resolution = record.sample_rate / size
        bins = slice(math.ceil(low / resolution), math.floor(high / resolution) + 1)
        if bins.stop - bins.start < 3:
            continue
        for part in rows[finer == level].split(model.at_once):
            theta = _draws(model, part, size, bins, record, form)
            half, ends = _widths(form, theta, estimates[part])
            share, others = _peaks(theta, estimates[part], record.duration)
            found.append(Widths(part, half, ends, share, others))
    if not found:
        none = fit.theta.new_zeros(0)
        return Widths(
            rows[:0],
            none.view(0, 1).expand(0, 4),
            none.view(0, 1, 1).expand(0, 4, 2),
            none,
            none.view(0, 1).expand(0, NAMED),
        )
    columns = zip(*(vars(part).values() for part in found), strict=True)
    return Widths(*(torch.cat(column) for column in columns))


def _size(record: Record, level: int) -> int:
    """Length of the transform: the periodogram's, or 2^level times as fine."""
    n_samples = record.x.shape[1] * record.x.shape[2]
    size = fourier_size(n_samples)
    if n_samples > SHORT:
        return size
    return max(size, min(size * 2**level, FINEST))


class Model(Protocol):
    """What makes a measurement linear in bias and quadratures, given the frequency.

    Attributes:
        at_once: measurements that share their precision.
    """

    at_once: int

    def normal(
        self, rows: Tensor, size: int, bins: slice
    ) -> tuple[Gram, Tensor, Tensor]:
        """Normal equations for measurements `rows`, in bins of a transform.

        Returns:
            Sums over the precision, common to them, and over precision times data: at
            the frequencies (R, F), and plain (R, 1).
        """
        ...


class Stationary:
    """Noise of the recording's spectrum.

    Args:
        record: B measurements.
        whitener: of their noise.
    """

    def __init__(self, record: Record, whitener: MaskedWhitener) -> None:
        self.record, self.whitener = record, whitener
        # Without gaps the precision is the same for all.
        self.at_once = AT_ONCE if whitener.complete else 1

    def normal(
        self, rows: Tensor, size: int, bins: slice
    ) -> tuple[Gram, Tensor, Tensor]:
        """See `Model.normal`."""
        columns = self.record.x[rows].unsqueeze(1)
        weighted = precision_times(self.whitener, columns, rows)[:, 0].flatten(1)
        gram = gram_of(self.whitener, int(rows[0]), self.record, size, bins)
        return gram, sums(weighted, size, bins), weighted.sum(-1, keepdim=True)


class Conditional:
    """Noise of a prior whose latents are near those of a fit.

    Latents in reach of the fit are integrated out, to first order: of a signal that the
    noise could take along, other frequencies are less unlikely than in the noise that
    was found for this one. With J the derivative of the whitened mean by the latent, H
    the latent's information and e what the fit leaves, whitened signals d away from
    the fit's have ``-log p = d^T (1 - J H^-1 J^T) d / 2 - d^T e``: the gradient of the
    latent's own terms at the optimum is ``J^T e``. Of missing samples nothing is known.

    Args:
        prior: the noise prior, with windows of at most `MAX_DENSE_WINDOW` samples.
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

    @staticmethod
    def serves(prior: LatentPrior) -> bool:
        """Whether the precision of a window is not too large to be written down."""
        return prior.window <= MAX_DENSE_WINDOW

    @torch.no_grad()
    def normal(
        self, rows: Tensor, size: int, bins: slice
    ) -> tuple[Gram, Tensor, Tensor]:
        """See `Model.normal`; of one measurement."""
        shape = tuple(self.record.x.shape[1:])
        weighted = self.record.x.new_empty(shape)
        ones = self.record.x.new_empty(shape)

        def matrices() -> Iterator[tuple[list[int], Tensor]]:
            for number, (precision, data) in enumerate(self.windows(rows)):
                weighted[number], ones[number] = data, precision.sum(0)
                yield [number], precision

        h, g = matrix_sums(matrices(), (shape[0], shape[1]), size, bins)
        gram = Gram(h, g, sums(ones.flatten(), size, bins), ones.sum())
        flat = weighted.flatten()[None]
        return gram, sums(flat, size, bins), flat.sum(-1, keepdim=True)

    def windows(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Precision (N, N), and precision times data (N,), of each window of one."""
        fit, record = self.fit.select(rows), self.record.select(rows)
        eye = torch.eye(record.x.shape[2], dtype=torch.float64, device=record.x.device)
        for begin in range(0, record.x.shape[1], LONG):
            part = slice(begin, begin + LONG)
            yield from self._section(rows, part, record.windows(part), fit, eye)

    def _section(
        self, rows: Tensor, part: slice, record: Record, fit: JointFit, eye: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        problem = JointProblem(self.prior, record, form=self.form)
        z, missing = fit.z[:, part], fit.missing[:, part]
        near = self._near(rows, part)
        if near is None:
            near = problem.tangent_of(z)
        only = torch.zeros_like(rows)
        root = near.decoded.precision.double().sqrt()
        found = self.prior.features(self.form.evaluate(record.t, fit.theta))[0]
        left = problem.noise_features(fit.theta, missing, only)
        left = (left[0].double() - near.decoded.mean) * root
        slopes = near.slopes.double() * root.unsqueeze(1)
        latent = near.information.double() - slopes @ slopes.mT
        # Columns of single samples, of the latents, and the signal that was found.
        single = self.prior.features(eye)[:, None].expand(-1, len(root), -1)
        columns = single, near.slopes.transpose(0, 1), found[None]
        several = torch.cat([column.double() for column in columns]) * root
        several = problem.present(several[None], root[None], only)[0]
        white, slopes, found = several.split([len(column) for column in columns])
        white, slopes = white.transpose(0, 1), slopes.transpose(0, 1)
        latent = latent + slopes @ slopes.mT
        along = torch.cat([white, found.transpose(0, 1)], 1) @ slopes.mT
        # Not by a Cholesky factor: in single precision H may miss being definite.
        moved = torch.linalg.solve(latent, along.mT).mT
        data = (white @ (found[0] + left)[..., None])[..., 0]
        data = data - (along[:, :-1] @ moved[:, -1, :, None])[..., 0]
        precision = white @ white.mT - along[:, :-1] @ moved[:, :-1].mT
        yield from zip(precision, data, strict=True)

    def _near(self, rows: Tensor, part: slice) -> Tangent | None:
        """The noise near the fit in windows of one measurement, if it is known."""
        if self.near is None:
            return None
        count = self.fit.z.shape[1]
        windows = torch.arange(count, device=rows.device)[part]
        return self.near.select(rows * count + windows)


def _draws(
    model: Model, rows: Tensor, size: int, bins: slice, record: Record, form: Sinusoids
) -> Tensor:
    """Draws of theta (R, S, 4) for a flat prior on bias, quadratures and frequency."""
    count = bins.stop - bins.start
    parts = [
        slice(begin, min(begin + BINS_AT_ONCE, bins.stop))
        for begin in range(bins.start, bins.stop, BINS_AT_ONCE)
    ]
    weight = record.x.new_empty(len(rows), count)
    normal = None
    for part in parts:
        normal = model.normal(rows, size, part)
        gram, x_hat, b0 = normal
        own = slice(part.start - bins.start, part.stop - bins.start)
        weight[:, own] = gram.gain(x_hat, b0) - 0.5 * gram.log_volume()
    weight = torch.nan_to_num(weight, nan=-torch.inf).clamp_min(-1e30)
    below = torch.softmax(weight, -1).cumsum(-1)
    del weight
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(DRAWS, 3, 1, generator=generator, dtype=torch.float64)
    within = torch.rand(DRAWS, generator=generator, dtype=torch.float64) - 0.5
    normals, within = normals.to(below), within.to(below)
    # Evenly spaced quantiles: the frequencies of the draws are hardly random.
    level = ((torch.arange(DRAWS) + 0.5) / DRAWS).to(below)
    level = level * below[:, -1:]  # 1 but for rounding
    at = torch.searchsorted(below, level.contiguous()).clamp_max(count - 1)
    resolution = record.sample_rate / size
    frequency = (at + bins.start) * resolution
    linear = torch.empty(*at.shape, 3).to(below)
    for part in parts:
        here = (at + bins.start >= part.start) & (at + bins.start < part.stop)
        if not bool(here.any()):
            continue
        if len(parts) > 1:
            normal = model.normal(rows, size, part)
        assert normal is not None
        gram, x_hat, b0 = normal
        row, draw = here.nonzero(as_tuple=True)
        place = at[here] + bins.start - part.start
        information = gram.select(place).information()
        x_hat = x_hat[row, place]
        right = torch.stack([b0[row, 0], x_hat.real, x_hat.imag], -1)[..., None]
        root = torch.linalg.cholesky_ex(information)[0]
        mean = torch.cholesky_solve(right, root)
        spread = torch.linalg.solve_triangular(root.mT, normals[draw], upper=True)
        linear[here] = (mean + spread)[..., 0]
    # Phases are counted from the middle of the measurement.
    angle = 2.0 * math.pi * frequency * record.middle
    one, even, odd = linear.unbind(-1)
    cosine = even * angle.cos() + odd * angle.sin()
    sine = odd * angle.cos() - even * angle.sin()
    drawn = (frequency + within * resolution).clamp(
        float(form.low[0]), float(form.high[0])
    )
    return torch.stack([one, cosine, sine, drawn], -1)


def _peaks(theta: Tensor, estimate: Tensor, duration: float) -> tuple[Tensor, Tensor]:
    """Share of the draws at the estimate's peak, (R,), and other peaks (R, 3), Hz."""
    frequency = theta[..., 3]
    number = ((frequency - estimate[:, 1:2]) * duration).round()
    share = (number == 0).double().mean(-1)
    others = torch.full((len(theta), NAMED), torch.nan).to(estimate)
    for row, (own, values) in enumerate(zip(number, frequency, strict=True)):
        kinds, count = own[own != 0].unique(return_counts=True)
        count = count / own.numel()
        best = count.argsort(descending=True)[:NAMED]
        for place, kind in enumerate(kinds[best][count[best] >= LIKELY]):
            others[row, place] = values[own == kind].mean()
    return share, others


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
