"""From measurements to fits: starts, joint optimisation, the choice of the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import Fit
from sepprior.inference.periodogram import Periodogram, periodogram
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.robust import robust_fit
from sepprior.inference.score import SETTLED, ScoreFit, ScoreProblem
from sepprior.inference.score_search import best_fit, gain_over_silence
from sepprior.inference.search import search_in_sections, search_together
from sepprior.inference.silence import (
    integrated_energy,
    signal_gain,
    signal_gain_long,
)
from sepprior.inference.starts import gls_starts
from sepprior.priors import LatentPrior, PlainPrior, Prior, ScorePrior
from sepprior.priors.marginal import Tangent
from sepprior.signals.form import Form
from sepprior.transforms import Whitener

N_PEAKS = 4
"""Periodogram peaks followed; the robust fit is one start more."""
LONG = 64
"""Windows of a measurement beyond which it is worked on in sections."""


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
        near: the noise near the optimum, if it was kept.
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
    near: Tangent | None = None


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
    robust = robust_fit(form, record, whitener, gls, own_start=guess is None)
    n = len(record.x)
    ones = torch.ones(n, dtype=torch.float64, device=record.x.device)
    outcome = Outcome(
        record=record,
        whitener=whitener,
        gls=gls,
        robust=Answer(robust.theta, robust.covariance),
        joint=None,
        periodogram=spectrum,
        coherent=record.x.new_zeros(()).expand(record.x.shape),
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
    long = record.x.shape[1] > LONG and not isinstance(prior, PlainPrior)
    search = search_in_sections if long else search_together
    found = search(prior, record, starts, form=form, generator=generator)
    fit, volume = found.fit, found.volume
    gls_volume = -0.5 * torch.linalg.slogdet(outcome.gls.covariance).logabsdet
    gls_energy = outcome.gls.energy + whitener.half_log_det()
    gain = None
    if detect:
        integrated = integrated_energy(fit.energy, found.marginal, volume)
        facts = (prior, record, form, fit, integrated)
        if long:
            gain = signal_gain_long(*facts, found.marginal, generator=generator)
        else:
            gain = signal_gain(*facts, generator=generator)
    standardised, coherent, latent_energy = _decoded(prior, record, fit, form=form)
    covariance = found.marginal
    if isinstance(prior, PlainPrior):
        # The plain objective has no noise model: its scale is that of the residual.
        freedom = record.present.flatten(1).sum(-1) - fit.theta.shape[-1]
        variance = standardised.square().flatten(1).sum(-1) / freedom.clamp_min(1)
        covariance = covariance * variance[:, None, None]
    return replace(
        outcome,
        joint=Answer(fit.theta, covariance),
        coherent=coherent,
        standardised=standardised,
        evidence=(gls_energy + gls_volume) - (fit.energy + volume),
        absorption=_absorption(form, found.marginal, found.conditional),
        agreement=found.agreement,
        converged=fit.converged,
        latent_energy=latent_energy,
        signal_gain=gain,
        latent=fit.z,
        optimum=fit,
        near=found.near,
    )


def _decoded(
    prior: LatentPrior, record: Record, fit: JointFit, *, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """White residual and mean waveform (B, W, N), and ``-log p(z)`` (B,), at optima."""
    everyone = torch.arange(len(record.x), device=record.x.device)
    white, mean = torch.empty_like(record.x), torch.empty_like(record.x)
    latent_energy = torch.zeros_like(fit.energy)
    at_once = max(1, LONG // len(record.x))
    with torch.no_grad():
        for begin in range(0, record.x.shape[1], at_once):
            part = slice(begin, begin + at_once)
            section = record.windows(part)
            problem = JointProblem(prior, section, form=form)
            z = fit.z[:, part]
            features = problem.noise_features(fit.theta, fit.missing[:, part], everyone)
            decoded = problem.decode(z)
            white[:, part] = prior.standardise(features, decoded).double()
            mean[:, part] = prior.coherent(z).double()
            latent_energy += prior.latent_energy(z).double().sum(-1)
    return white * record.present, mean, latent_energy


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
