"""Where the fits begin: a search over the nonlinear parameters in the whitened domain.

The energy is full of local minima in a frequency, so none is descended from a random
start. Each kind of signal is searched on a grid of its own (sinusoids: peaks of the
periodogram; harmonics: the periodogram summed over a comb; damped sinusoids and chirps:
matched filters of all decay or chirp rates; functions: a space-filling sample), with
the linear parameters solved. The best few are refined by Gauss-Newton.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sepprior.inference.least_squares import (
    Fit,
    WhitenedSamples,
    gauss_newton,
    gls_features,
    linear_fit,
    solve_normal,
)
from sepprior.inference.periodogram import Periodogram, matched_gain, periodogram
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.signals.form import Form
from sepprior.signals.function import FunctionForm
from sepprior.signals.oscillations import Chirp, DampedSinusoid, Harmonics
from sepprior.signals.sinusoids import Sinusoids

N_COMPARED = 8
"""Points of a grid of which the exact energies are compared."""
N_SAMPLED = 4
"""Points of a sample that are refined at least."""
RIVAL = 0.8
"""Share of the highest gain above which a second peak is followed as well."""
SPLITS = (0.2, 0.4)
"""Half distances at which a peak is split in two, in units of 1 / T."""
DRAWS_AT_ONCE = 64
FITTED_AT_ONCE = 256
"""Windows of all starts up to which these are fitted together."""
HOPELESS = 12.0
"""Nats by which a start may trail the best one and still be refined."""
ALIKE = 3.0
"""Standard errors of GLS within which two answers agree where a form has no scale."""


def gls_starts(
    form: Form,
    record: Record,
    whitener: MaskedWhitener,
    *,
    n_starts: int,
    guess: Tensor | None = None,
    spectrum: Periodogram | None = None,
    seed: int = 0,
) -> list[Fit]:
    """Generalised least squares from the best points of a search.

    Args:
        form: the signal.
        record: B measurements.
        whitener: of the stationary noise.
        n_starts: fits to return.
        guess: known nonlinear parameters (B, P - L): no search, a single fit.
        spectrum: periodogram of the data, if it is known already.
        seed: of the sample of starts for functions.

    Returns:
        `n_starts` fits of all measurements, the best first.
    """
    everyone = torch.arange(len(record.x), device=record.x.device)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    fitter = _Fitter(record, features, everyone, target)
    if guess is not None:
        return [fitter.fit(form, fitter.solve(form, guess))]
    search = form.search
    if search.low.dim() > 1:
        raise TypeError("a search needs the same bounds for all measurements")
    if isinstance(search, Sinusoids):
        fits = _sinusoid_starts(fitter, search, whitener, n_starts, spectrum)
    elif isinstance(search, FunctionForm):
        starts = _sampled(fitter, search, max(N_SAMPLED, n_starts), seed)
        fits = [fitter.fit(search, theta) for theta in starts]
    else:
        assert isinstance(search, Harmonics | DampedSinusoid | Chirp)
        starts = _gridded(fitter, search, whitener, n_starts)
        fits = [fitter.fit(search, theta) for theta in starts]
    fits = ranked(fits, n_starts)
    if form is not search:
        fits = [fitter.fit(form, form.adopt(fit.theta)) for fit in fits]
        fits = ranked(fits, n_starts)
    return fits


class _Fitter:
    """Fits of whitened measurements from given starts."""

    def __init__(
        self,
        record: Record,
        features: WhitenedSamples,
        which: Tensor,
        target: Tensor,
    ) -> None:
        self.record, self.features = record, features
        self.which, self.target = which, target

    def select(self, rows: Tensor) -> _Fitter:
        """The same for some of the measurements."""
        return _Fitter(
            self.record,
            self.features.select(rows),
            torch.arange(len(rows), device=rows.device),
            self.target[rows],
        )

    def solve(self, form: Form, nonlinear: Tensor) -> Tensor:
        """Theta (B, P) with the linear parameters solved."""
        return linear_fit(
            form, self.record, self.features, self.which, nonlinear, self.target
        )

    def fit(self, form: Form, theta: Tensor) -> Fit:
        """Gauss-Newton from theta (B, P)."""
        return gauss_newton(
            form,
            self.record,
            self.features,
            self.which,
            theta,
            self.target,
            steps=form.steps,
        )

    def fit_each(self, form: Form, starts: list[Tensor]) -> list[Fit]:
        """One fit for each of some nonlinear starts (B, P - L).

        Of few short measurements all at once: a call costs as much.
        """
        n, together = len(self.which), self.which.repeat(len(starts))
        if len(together) * self.record.x.shape[1] > FITTED_AT_ONCE:
            return [self.fit(form, self.solve(form, start)) for start in starts]
        fitter = self.select(together)
        fit = fitter.fit(form, fitter.solve(form, torch.cat(starts)))
        parts = zip(*(part.split(n) for part in vars(fit).values()), strict=True)
        return [Fit(*part) for part in parts]

    def energy(self, form: Form, theta: Tensor) -> Tensor:
        """Half the squares of the whitened residual, (B,)."""
        signal = form.evaluate(self.record.t, theta).unsqueeze(1)
        left = self.target - self.features(signal, self.which)[:, 0]
        return 0.5 * left.square().sum(-1)


class Estimated(Protocol):
    """Whatever has a covariance (B, P, P) of theta."""

    @property
    def covariance(self) -> Tensor:
        """Covariance of theta, (B, P, P)."""
        ...


def alike_within(form: Form, gls: Estimated) -> Tensor:
    """Differences of the nonlinear parameters below which two answers are one.

    Args:
        form: the signal.
        gls: the least-squares answers, whose standard errors stand in where the form
            has no scale of its own.

    Returns:
        Shape (B, P - L).
    """
    sd = gls.covariance.diagonal(dim1=-2, dim2=-1)[:, form.n_linear :].sqrt()
    alike = form.alike.to(sd)
    return torch.where(alike.isfinite(), alike, ALIKE * sd)


def ranked(fits: list[Fit], count: int) -> list[Fit]:
    """The `count` best fits of each measurement, the best first."""
    if len(fits) == 1:
        return fits
    stacked = {k: torch.stack([getattr(f, k) for f in fits]) for k in vars(fits[0])}
    order = stacked["energy"].nan_to_num(nan=torch.inf).argsort(0)
    everyone = torch.arange(order.shape[1], device=order.device)
    return [
        Fit(**{k: v[order[i], everyone] for k, v in stacked.items()})
        for i in range(min(count, len(fits)))
    ]


# -- sums of sinusoids -----------------------------------------------------------------


def _sinusoid_starts(
    fitter: _Fitter,
    form: Sinusoids,
    whitener: MaskedWhitener,
    n_starts: int,
    known: Periodogram | None,
) -> list[Fit]:
    """Sinusoids one after another, each in what the joint fit of the others leaves.

    Those with the narrowest bands come first. The alternatives differ in the last one;
    one of them may also be found by splitting an earlier one in two, for pairs that
    are closer than the resolution.
    """
    record, n = fitter.record, form.count
    width = (form.high - form.low).tolist()
    order = sorted(range(n), key=lambda p: width[p])
    inverse = sorted(range(n), key=lambda p: order[p])
    found = record.x.new_zeros(len(record.x), 0)
    rest = record
    fits: list[Fit] = []
    for p in range(n):
        last = p == n - 1
        part = form if last else form.part(order[: p + 1])
        low, high = float(form.low[order[p]]), float(form.high[order[p]])
        if p or known is None:
            spectrum = periodogram(rest, whitener, fmin=low, fmax=high)
        else:
            spectrum = known.within(low, high)
        if n == 1 and n_starts == 1:
            return [_best_peak(fitter, form, spectrum)]
        peaks = spectrum.peaks(
            max(2, n_starts) if last else 1, separation=0.5 / record.duration
        )
        candidates = [torch.cat([found, f[:, None]], 1) for f in peaks.unbind(1)]
        for k in range(p):
            for half in SPLITS:
                half /= record.duration
                apart = found.clone()
                apart[:, k] -= half
                candidates.append(torch.cat([apart, found[:, k : k + 1] + half], 1))
        if last:
            candidates = [f[:, inverse] for f in candidates]
        fits = ranked(fitter.fit_each(part, candidates), n_starts)
        if not last:
            found = fits[0].theta[:, part.n_linear :]
            left = record.x - part.evaluate(record.t, fits[0].theta)
            rest = record.with_values(left)
    return fits


def _best_peak(fitter: _Fitter, form: Sinusoids, spectrum: Periodogram) -> Fit:
    """The fit from the highest peak, or from the second where that may be higher.

    The gain between two points of the grid is little more than at the nearer one, so
    that a peak much lower on the grid is lower indeed.
    """
    peaks = spectrum.peaks(2, separation=0.5 / fitter.record.duration)
    fit = fitter.fit(form, fitter.solve(form, peaks[:, :1]))
    gains = spectrum.at(peaks)
    rivals = (gains[:, 1] > RIVAL * gains[:, 0]) & (peaks[:, 1] != peaks[:, 0])
    rows = rivals.nonzero().flatten()
    if not len(rows):
        return fit
    part = fitter.select(rows)
    other = part.fit(form, part.solve(form, peaks[rows, 1:]))
    won = other.energy < fit.energy[rows]
    for name, value in vars(fit).items():
        value[rows[won]] = getattr(other, name)[won]
    return fit


# -- grids -----------------------------------------------------------------------------


def _gridded(
    fitter: _Fitter,
    form: Harmonics | DampedSinusoid | Chirp,
    whitener: MaskedWhitener,
    count: int,
) -> list[Tensor]:
    """Theta (B, P) at the `count` best points of the form's grid."""
    low, high = float(form.low[0]), float(form.high[0])
    kept, count = count, max(count, N_COMPARED)
    if isinstance(form, Harmonics):
        comb = _comb(fitter.record, whitener, form.n_pairs, low=low, high=high)
        peaks = comb.peaks(
            count, separation=0.5 / (form.n_pairs * fitter.record.duration)
        )
        points = [f[:, None] for f in peaks.unbind(1)]
    else:
        found = matched_gain(
            fitter.record,
            whitener,
            form.taper,
            form.shapes.to(fitter.record.x),
            fmin=low,
            fmax=high,
            count=count,
        )
        points = list(found.unbind(1))
    thetas = torch.stack([fitter.solve(form, q) for q in points])
    order = torch.stack([fitter.energy(form, theta) for theta in thetas]).argsort(0)
    everyone = torch.arange(thetas.shape[1], device=thetas.device)
    return [thetas[order[i], everyone] for i in range(kept)]


def _comb(
    record: Record,
    whitener: MaskedWhitener,
    n_harmonics: int,
    *,
    low: float,
    high: float,
) -> Periodogram:
    """The periodogram summed over the harmonics of each fundamental."""
    nyquist = 0.5 * record.sample_rate
    spectrum = periodogram(
        record, whitener, fmin=low, fmax=min(n_harmonics * high, nyquist)
    )
    step = float(spectrum.frequency[1] - spectrum.frequency[0])
    first = float(spectrum.frequency[0])
    count = max(2, round((high - low) * n_harmonics / step) + 1)
    fundamental = torch.linspace(low, high, count).to(spectrum.gain)
    gain = torch.zeros_like(spectrum.gain[:, :1]).repeat(1, count)
    for h in range(1, n_harmonics + 1):
        index = ((h * fundamental - first) / step).round().long()
        gain += spectrum.gain[:, index.clamp(0, spectrum.gain.shape[1] - 1)]
    return Periodogram(fundamental, gain)


# -- functions -------------------------------------------------------------------------


def _sampled(
    fitter: _Fitter, form: FunctionForm, count: int, seed: int
) -> list[Tensor]:
    """Theta (B, P) at the best points of a sample, linear parameters solved."""
    record = fitter.record
    points = form.draws(seed=seed).to(record.x)
    solved = [i for i in form.linear if float(form.low[i]) < float(form.high[i])]
    for i in form.linear:
        if i not in solved:
            points[:, i] = float(form.low[i])
    units = torch.eye(len(form.names)).to(points)[solved]
    complete = bool(record.present.all())
    groups = [fitter.which] if complete else list(fitter.which.split(1))
    thetas = []
    for group in groups:
        energies, solutions = [], []
        for draws in points.split(DRAWS_AT_ONCE):
            base = form.evaluate(record.t, draws)
            moved = (draws[:, None] + units).flatten(0, 1)
            columns = form.evaluate(record.t, moved).view(
                len(draws), len(solved), *record.t.shape
            )
            columns = torch.cat([base.unsqueeze(1), columns - base.unsqueeze(1)], 1)
            one = group[:1].expand(len(draws))
            energy, theta = _projected(
                fitter.features(columns, one), fitter.target[group], draws, solved
            )
            energies.append(energy)
            solutions.append(theta)
        energy = torch.cat(energies, 1).nan_to_num(nan=torch.inf)
        best = energy.topk(min(count, energy.shape[1]), largest=False).indices
        theta = torch.cat(solutions, 1)
        rows = torch.arange(len(theta), device=theta.device)[:, None]
        thetas.append(theta[rows, best])
    low, high = form.low.to(points), form.high.to(points)
    chosen = torch.cat(thetas)
    return list(torch.minimum(torch.maximum(chosen, low), high).unbind(1))


def _projected(
    columns: Tensor, target: Tensor, draws: Tensor, solved: list[int]
) -> tuple[Tensor, Tensor]:
    """Energy (B, n) and theta (B, n, P) with the linear parameters solved.

    Args:
        columns: features (n, 1 + L, C) of the signal without its linear part, and of
            the linear columns.
        target: features of the data, (B, C).
        draws: theta without the linear parameters, (n, P).
        solved: indices of the L linear parameters.
    """
    n, n_data = len(draws), len(target)
    rest = target[:, None] - columns[None, :, 0]
    theta = draws.expand(n_data, -1, -1).clone()
    if solved:
        basis = columns[:, 1:]
        right = torch.einsum("nlc,bnc->bnl", basis, rest)
        gram = (basis @ basis.mT).expand(n_data, -1, -1, -1)
        weights = solve_normal(gram.flatten(0, 1), right.flatten(0, 1))
        weights = weights.view(n_data, n, -1)
        rest = rest - torch.einsum("bnl,nlc->bnc", weights, basis)
        theta[:, :, solved] = weights
    return 0.5 * rest.square().sum(-1), theta
