"""From measurements to fits: starts, joint optimisation, the choice of the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior import signals
from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import Bound, Fit, gls_starts, robust_fit
from sepprior.inference.periodogram import Periodogram, periodogram
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.priors import PlainPrior, Prior
from sepprior.transforms import Whitener

N_PEAKS = 4
"""Periodogram peaks followed; the robust fit is one start more."""
N_KEPT = 3
"""Starts that are still followed after the first round of the search."""
ROUNDS = 4
"""Alternations between the latent's proposals and the signal's fit."""
HOPELESS = 12.0
"""Nats by which a start may trail the best one and still be refined."""
SAME_FREQUENCY = 0.25
"""Two answers agree when their frequencies differ by less, in units of 1 / T."""


@dataclass(frozen=True)
class Answer:
    """One method's parameters in the linear form, with covariance.

    Attributes:
        theta: shape (B, 1 + 3 P).
        covariance: shape (B, 1 + 3 P, 1 + 3 P).
    """

    theta: Tensor
    covariance: Tensor

    def polar(self, record: Record) -> tuple[Tensor, Tensor]:
        """Amplitude, frequency, phase, bias and their covariance."""
        return signals.to_polar(self.theta, self.covariance, middle=record.middle)


@dataclass(frozen=True)
class Outcome:
    """Everything found about a batch of measurements.

    Attributes:
        record: the measurements.
        gls: generalised least squares.
        robust: Cauchy regression.
        joint: the optimum under the prior, or None when it was not tried.
        periodogram: gain over frequency, or None when the frequencies were given.
        gls_white: whitened residual of the GLS fit, (B, W N).
        coherent: the prior's mean waveform at the optimum, (B, W, N).
        standardised: residual under the prior, white if it fits, (B, W, N).
        evidence: log Bayes factor of the joint optimum over GLS, nats, (B,).
        absorption: share of the amplitude's variance due to the latent, (B,).
        agreement: share of the searched starts that found the same frequency, (B,).
        converged: (B,).
        latent_energy: ``-log p(z)`` at the optimum, (B,).
    """

    record: Record
    gls: Answer
    robust: Answer
    joint: Answer | None
    periodogram: Periodogram | None
    gls_white: Tensor
    coherent: Tensor
    standardised: Tensor
    evidence: Tensor
    absorption: Tensor
    agreement: Tensor
    converged: Tensor
    latent_energy: Tensor


def analyse(
    prior: Prior,
    record: Record,
    *,
    n_sinusoids: int,
    fmin: Bound,
    fmax: Bound,
    generator: torch.Generator,
    n_peaks: int = N_PEAKS,
    joint: bool = True,
    guess: Tensor | None = None,
) -> Outcome:
    """Fit a batch of measurements by GLS, robustly and jointly with the prior.

    Args:
        prior: the noise prior.
        record: B measurements.
        n_sinusoids: P.
        fmin: lower edge of the band, Hz; one for all, or shape (B, 1).
        fmax: upper edge, Hz, likewise.
        generator: for the latent's proposals.
        n_peaks: periodogram peaks to start from.
        joint: also optimise over the prior's latent (when it has one).
        guess: known frequencies (B, P), Hz, instead of periodogram peaks.
    """
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    joint = joint and prior.n_latent > 0
    fits, spectrum = gls_starts(
        record,
        whitener,
        n_sinusoids=n_sinusoids,
        n_starts=n_peaks if joint else min(2, n_peaks),
        fmin=fmin,
        fmax=fmax,
        guess=guess,
    )
    gls = fits[0]
    robust = robust_fit(record, whitener, gls, fmin=fmin, fmax=fmax)
    n = len(record.x)
    ones = torch.ones(n, dtype=torch.float64, device=record.x.device)
    outcome = Outcome(
        record=record,
        gls=Answer(gls.theta, gls.covariance),
        robust=Answer(robust.theta, robust.covariance),
        joint=None,
        periodogram=spectrum,
        gls_white=gls.residual,
        coherent=torch.zeros_like(record.x),
        standardised=gls.residual.view_as(record.x),
        evidence=ones * 0.0,
        absorption=ones * 0.0,
        agreement=ones,
        converged=ones.bool(),
        latent_energy=ones * 0.0,
    )
    if not joint:
        return outcome
    return _joint(
        prior,
        outcome,
        whitener,
        [*fits, robust],
        fmin=fmin,
        fmax=fmax,
        generator=generator,
    )


def _joint(
    prior: Prior,
    outcome: Outcome,
    whitener: MaskedWhitener,
    starts: list[Fit],
    *,
    fmin: Bound,
    fmax: Bound,
    generator: torch.Generator,
) -> Outcome:
    record = outcome.record
    problem = JointProblem(prior, record, fmin=fmin, fmax=fmax)
    n = len(record.x)
    everyone = torch.arange(n, device=record.x.device)
    which = everyone.repeat(len(starts))
    theta = torch.cat([fit.theta for fit in starts])
    filled = _interpolate(record)[which]
    first = problem.search(
        theta,
        filled,
        which,
        candidates=prior.n_candidates,
        rounds=1,
        generator=generator,
    )
    order = first.energy.view(len(starts), n).argsort(0)
    kept = (order[:N_KEPT] * n + everyone).flatten()
    first = first.select(kept)
    searched = problem.search(
        first.theta,
        first.missing,
        which[kept],
        candidates=prior.n_candidates,
        rounds=ROUNDS - 1,
        generator=generator,
        z=first.z,
    )
    n_kept = len(kept) // n
    order = searched.energy.view(n_kept, n).argsort(0) * n + everyone
    fit = problem.minimise(searched.select(order[0]), everyone)
    if n_kept > 1:
        fit = _try_second(problem, fit, searched, order)
    marginal, conditional, volume = problem.information(fit, everyone)
    frequencies = searched.theta[:, -1].view(n_kept, n)
    close = (frequencies - fit.theta[:, -1]).abs() < SAME_FREQUENCY / record.duration
    gls_volume = -0.5 * torch.linalg.slogdet(outcome.gls.covariance).logabsdet
    gls_energy = 0.5 * outcome.gls_white.square().sum(-1) + whitener.half_log_det()
    with torch.no_grad():
        features = problem.noise_features(fit.theta, fit.missing, everyone)
        decoded = problem.decode(fit.z)
        standardised = prior.standardise(features, decoded).double()
        coherent = prior.coherent(fit.z).double()
        latent_energy = prior.latent_energy(fit.z).double().sum(-1)
    covariance = marginal
    if isinstance(prior, PlainPrior):
        # The plain objective has no noise model: its scale is that of the residual.
        rest = (features - decoded.mean).double() * record.present
        freedom = (record.present.flatten(1).sum(-1) - fit.theta.shape[-1]).clamp_min(1)
        covariance = (
            marginal * (rest.square().flatten(1).sum(-1) / freedom)[:, None, None]
        )
    variance = (marginal, conditional)
    amplitude = [v[:, 1, 1] + v[:, 2, 2] for v in variance]
    return Outcome(
        record=record,
        gls=outcome.gls,
        robust=outcome.robust,
        joint=Answer(fit.theta, covariance),
        periodogram=outcome.periodogram,
        gls_white=outcome.gls_white,
        coherent=coherent,
        standardised=standardised * record.present,
        evidence=(gls_energy + gls_volume) - (fit.energy + volume),
        absorption=(1.0 - amplitude[1] / amplitude[0]).clamp(0.0, 1.0),
        agreement=close.double().mean(0),
        converged=fit.converged,
        latent_energy=latent_energy,
    )


def _try_second(
    problem: JointProblem, fit: JointFit, searched: JointFit, order: Tensor
) -> JointFit:
    """Refine the second-best start where it could still win, and keep the better.

    That is where it trails by little and sits at another frequency: at the same one
    the search has already chosen between the two latents.
    """
    best, second = searched.select(order[0]), searched.select(order[1])
    close = second.energy - best.energy < HOPELESS
    n_linear = 1 + 2 * ((fit.theta.shape[-1] - 1) // 3)
    shift = (second.theta - best.theta)[:, n_linear:].abs().amax(-1)
    worth = close & (shift > SAME_FREQUENCY / problem.record.duration)
    rows = worth.nonzero().flatten()
    if not len(rows):
        return fit
    other = problem.minimise(second.select(rows), rows)
    won = other.energy < fit.energy[rows]
    merged = {}
    for name in vars(fit):
        value = getattr(fit, name).clone()
        value[rows[won]] = getattr(other, name)[won]
        merged[name] = value
    return JointFit(**merged)


def _interpolate(record: Record) -> Tensor:
    """A first guess of the missing samples: the mean of the present ones."""
    if bool(record.present.all()):
        return torch.zeros_like(record.x)
    count = record.present.flatten(1).sum(-1).clamp_min(1)
    mean = record.x.flatten(1).sum(-1) / count
    return torch.where(record.present, 0.0, mean[:, None, None])


def choose_components(
    prior: Prior, record: Record, *, fmin: float, fmax: float, most: int = 8
) -> int:
    """Number of sinusoids in one measurement, by a penalised likelihood.

    Sinusoids are added while the best of the remaining band gains more than
    ``log(M / 0.01)`` nats, with M = 2 T (fmax - fmin) + 1 independent frequencies: each
    addition is false in at most one record of noise in a hundred.

    Returns:
        At least 1.
    """
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    independent = 2.0 * record.duration * (fmax - fmin) + 1.0
    threshold = math.log(independent / 0.01)
    for count in range(1, most + 1):
        fits, _ = gls_starts(
            record, whitener, n_sinusoids=count, n_starts=1, fmin=fmin, fmax=fmax
        )
        left = record.x - signals.evaluate(record.t, fits[0].theta)
        rest = Record(
            left * record.present,
            record.present,
            record.t,
            record.length,
            record.sample_rate,
        )
        gain = periodogram(rest, whitener, fmin=fmin, fmax=fmax).gain.amax()
        if float(gain) < threshold:
            return count
    return most
