"""From measurements to fits: starts, joint optimisation, the choice of the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import Fit, robust_fit
from sepprior.inference.periodogram import Periodogram, periodogram
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.score import SETTLED, ScoreFit, ScoreProblem
from sepprior.inference.score_search import best_fit, gain_over_silence
from sepprior.inference.silence import gain_over_silence as latent_gain
from sepprior.inference.silence import integrated_energy
from sepprior.inference.starts import HOPELESS, alike_within, gls_starts
from sepprior.priors import LatentPrior, PlainPrior, Prior, ScorePrior
from sepprior.signals.form import Form
from sepprior.transforms import Whitener

N_PEAKS = 4
"""Periodogram peaks followed; the robust fit is one start more."""
N_KEPT = 3
"""Starts that are still followed after the first round of the search."""
ROUNDS = 4
"""Alternations between the latent's proposals and the signal's fit."""


@dataclass(frozen=True)
class Answer:
    """One method's parameters, in the order of the form's theta, with covariance.

    Attributes:
        theta: shape (B, P).
        covariance: shape (B, P, P).
    """

    theta: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Outcome:
    """Everything found about a batch of measurements.

    Attributes:
        record: the measurements.
        whitener: of the stationary part of their noise.
        gls: generalised least squares.
        robust: Cauchy regression.
        joint: the optimum under the prior, or None when it was not tried.
        periodogram: gain of a sinusoid over frequency, or None without a band.
        coherent: the prior's mean waveform at the optimum, (B, W, N).
        standardised: residual under the prior, white if it fits, (B, W, N).
        evidence: log Bayes factor of the joint optimum over GLS, nats, (B,).
        absorption: share of the amplitude's variance due to the latent, (B,).
        agreement: share of the searched starts that found the same parameters, (B,).
        converged: (B,).
        latent_energy: ``-log p(z)`` at the optimum, (B,).
        signal_gain: log-likelihood under the prior over that of no signal, nats, (B,),
            or None where it was not asked for, or only that of GLS is known.
        latent: z at the optimum, (B, W, K), or None without one.
        optimum: the fit that `joint` is part of.
    """

    record: Record
    whitener: MaskedWhitener
    gls: Fit
    robust: Answer
    joint: Answer | None
    periodogram: Periodogram | None
    coherent: Tensor
    standardised: Tensor
    evidence: Tensor
    absorption: Tensor
    agreement: Tensor
    converged: Tensor
    latent_energy: Tensor
    signal_gain: Tensor | None = None
    latent: Tensor | None = None
    optimum: JointFit | ScoreFit | None = None


def analyse(
    prior: Prior,
    record: Record,
    *,
    form: Form,
    generator: torch.Generator,
    n_peaks: int = N_PEAKS,
    joint: bool = True,
    band: tuple[float, float] | None = None,
    guess: Tensor | None = None,
    detect: bool = False,
) -> Outcome:
    """Fit a batch of measurements by GLS, robustly and jointly with the prior.

    Args:
        prior: the noise prior.
        record: B measurements.
        form: the signal.
        generator: for the latent's proposals.
        n_peaks: starts from the search.
        joint: also optimise over the prior's latent (when it has one).
        band: frequencies of the periodogram, Hz.
        guess: known nonlinear parameters (B, P - L), instead of a search.
        detect: also fit the prior without a signal, for `Outcome.signal_gain`.
    """
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    joint = joint and prior.learned
    spectrum = None
    if band is not None:
        spectrum = periodogram(record, whitener, fmin=band[0], fmax=band[1])
    fits = gls_starts(
        form,
        record,
        whitener,
        n_starts=n_peaks if joint else 1,
        guess=guess,
        spectrum=spectrum,
    )
    gls = fits[0]
    robust = robust_fit(form, record, whitener, gls)
    n = len(record.x)
    ones = torch.ones(n, dtype=torch.float64, device=record.x.device)
    outcome = Outcome(
        record=record,
        whitener=whitener,
        gls=gls,
        robust=Answer(robust.theta, robust.covariance),
        joint=None,
        periodogram=spectrum,
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
    starts = [*fits, robust]
    if isinstance(prior, ScorePrior):
        return _scored(prior, outcome, whitener, starts, form=form, detect=detect)
    assert isinstance(prior, LatentPrior)
    return _joint(
        prior,
        outcome,
        whitener,
        starts,
        form=form,
        generator=generator,
        detect=detect and not isinstance(prior, PlainPrior),
    )


def _scored(
    prior: ScorePrior,
    outcome: Outcome,
    whitener: MaskedWhitener,
    starts: list[Fit],
    *,
    form: Form,
    detect: bool,
) -> Outcome:
    """The answer of a score prior, put beside that of GLS."""
    record = outcome.record
    problem = ScoreProblem(prior, record, form=form)
    scored = best_fit(problem, whitener, starts, outcome.periodogram)
    fit = scored.fit
    everyone = torch.arange(len(record.x), device=record.x.device)
    noise = (record.x - form.evaluate(record.t, fit.theta)) * record.present
    standardised = whitener.forward(noise.unsqueeze(1), everyone)[:, 0]
    gls_volume = -0.5 * torch.linalg.slogdet(outcome.gls.covariance).logabsdet
    gls_energy = outcome.gls.energy + whitener.half_log_det()
    return replace(
        outcome,
        joint=Answer(fit.theta, fit.covariance),
        standardised=standardised,
        evidence=(gls_energy + gls_volume) - (scored.energy + fit.volume),
        agreement=scored.agreement,
        converged=fit.step < SETTLED,
        signal_gain=gain_over_silence(problem, scored) if detect else None,
        optimum=fit,
    )


def _joint(
    prior: LatentPrior,
    outcome: Outcome,
    whitener: MaskedWhitener,
    starts: list[Fit],
    *,
    form: Form,
    generator: torch.Generator,
    detect: bool,
) -> Outcome:
    record = outcome.record
    problem = JointProblem(prior, record, form=form)
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
    n_linear = form.n_linear
    alike = alike_within(form, outcome.gls)
    fit = problem.minimise(searched.select(order[0]), everyone)
    if n_kept > 1:
        fit = _try_second(problem, fit, searched, order, alike)
    marginal, conditional, volume = problem.hessian(fit, everyone).summary()
    found = searched.theta[:, n_linear:].view(n_kept, n, -1)
    close = ((found - fit.theta[:, n_linear:]).abs() < alike).all(-1)
    gls_volume = -0.5 * torch.linalg.slogdet(outcome.gls.covariance).logabsdet
    gls_energy = outcome.gls.energy + whitener.half_log_det()
    with torch.no_grad():
        features = problem.noise_features(fit.theta, fit.missing, everyone)
        decoded = problem.decode(fit.z)
        standardised = prior.standardise(features, decoded).double()
        coherent = prior.coherent(fit.z).double()
        latent_energy = prior.latent_energy(fit.z).double().sum(-1)
    gain = None
    if detect:
        integrated = integrated_energy(fit.energy, marginal, volume)
        gain = latent_gain(problem, fit, integrated, generator=generator)
    covariance = marginal
    if isinstance(prior, PlainPrior):
        # The plain objective has no noise model: its scale is that of the residual.
        rest = (features - decoded.mean).double() * record.present
        freedom = (record.present.flatten(1).sum(-1) - fit.theta.shape[-1]).clamp_min(1)
        covariance = (
            marginal * (rest.square().flatten(1).sum(-1) / freedom)[:, None, None]
        )
    return Outcome(
        record=record,
        whitener=whitener,
        gls=outcome.gls,
        robust=outcome.robust,
        joint=Answer(fit.theta, covariance),
        periodogram=outcome.periodogram,
        coherent=coherent,
        standardised=standardised * record.present,
        evidence=(gls_energy + gls_volume) - (fit.energy + volume),
        absorption=_absorption(form, marginal, conditional),
        agreement=close.double().mean(0),
        converged=fit.converged,
        latent_energy=latent_energy,
        signal_gain=gain,
        latent=fit.z,
        optimum=fit,
    )


def _absorption(form: Form, marginal: Tensor, conditional: Tensor) -> Tensor:
    """Share of the variance of the signal's size that is due to the latent, (B,).

    Of the quadratures where the form has them, else the mean share over the parameters.
    """
    free, fixed = (v.diagonal(dim1=-2, dim2=-1) for v in (marginal, conditional))
    if form.n_linear > 1:
        size = slice(1, form.n_linear)
        share = fixed[:, size].sum(-1) / free[:, size].sum(-1)
    else:
        share = (fixed / free).mean(-1)
    return (1.0 - share).clamp(0.0, 1.0)


def _try_second(
    problem: JointProblem,
    fit: JointFit,
    searched: JointFit,
    order: Tensor,
    alike: Tensor,
) -> JointFit:
    """Refine the second-best start where it could still win, and keep the better.

    That is where it trails by little and sits at other nonlinear parameters: at the
    same ones the search has already chosen between the two latents.
    """
    best, second = searched.select(order[0]), searched.select(order[1])
    close = second.energy - best.energy < HOPELESS
    shift = (second.theta - best.theta)[:, problem.form.n_linear :].abs()
    worth = close & (shift > alike).any(-1)
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
