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
from sepprior.inference.sections import LongFit, fit_sections
from sepprior.inference.silence import (
    integrated_energy,
    signal_gain,
    signal_gain_long,
)
from sepprior.inference.starts import HOPELESS, alike_within, gls_starts
from sepprior.priors import LatentPrior, PlainPrior, Prior, ScorePrior
from sepprior.signals.form import Form
from sepprior.transforms import Whitener

N_PEAKS = 4
"""Periodogram peaks followed; the robust fit is one start more."""
N_KEPT = 3
"""Starts at most that are still followed after the first round of the search."""
ROUNDS = 3
"""Alternations between the latent's proposals and the signal's fit."""
LONG = 64
"""Windows of a measurement beyond which it is worked on in sections."""
MOST_LONG_STARTS = 2


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
    search = _in_sections if long else _all_at_once
    found = search(prior, outcome, starts, form=form, generator=generator)
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
    )


@dataclass(frozen=True)
class _Found:
    """Joint optima of B measurements.

    Attributes:
        fit: of B problems.
        marginal: covariance of theta with the latents free, (B, P, P).
        conditional: the same with the latents fixed, (B, P, P).
        volume: half the log-determinant of the whole Hessian, (B,).
        agreement: share of the starts that ended there, (B,).
    """

    fit: JointFit
    marginal: Tensor
    conditional: Tensor
    volume: Tensor
    agreement: Tensor


def _all_at_once(
    prior: LatentPrior,
    outcome: Outcome,
    starts: list[Fit],
    *,
    form: Form,
    generator: torch.Generator,
) -> _Found:
    """Latents of all windows and theta together, from several starts."""
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
    alike = alike_within(form, outcome.gls)
    kept = _worth_following(first, form.n_linear, alike)
    first, which = first.select(kept), which[kept]
    searched = problem.search(
        first.theta,
        first.missing,
        which,
        candidates=prior.n_candidates,
        rounds=ROUNDS - 1,
        generator=generator,
        z=first.z,
        n_starts=N_KEPT,
    )
    best, second = _ranked(searched.energy, which, n)
    fit = problem.minimise(searched.select(best), everyone)
    fit = _try_second(problem, fit, searched, best, second, alike)
    marginal, conditional, volume = problem.hessian(fit, everyone).summary()
    at = slice(form.n_linear, None)
    close = ((searched.theta - fit.theta[which])[:, at].abs() < alike[which]).all(-1)
    followed = torch.bincount(which, minlength=n)
    agreement = torch.bincount(which, close.double(), minlength=n) / followed
    return _Found(fit, marginal, conditional, volume, agreement)


def _worth_following(fits: JointFit, n_linear: int, alike: Tensor) -> Tensor:
    """Rows that could still win, of fits from S starts of each of n measurements.

    The best of each measurement, and of the next ones those that trail by less than
    `HOPELESS` and have nonlinear parameters of their own: `N_KEPT` at most.

    Args:
        fits: S n of them, start by start.
        n_linear: number of linear parameters.
        alike: differences of the others below which two answers are one, (n, P - L).
    """
    n = len(alike)
    energy = fits.energy.view(-1, n).nan_to_num(nan=torch.inf)
    order = energy.argsort(0)
    everyone = torch.arange(n, device=order.device)
    places = fits.theta[:, n_linear:].unflatten(0, (-1, n))
    places = places[order, everyone]
    kept = torch.zeros_like(order, dtype=torch.bool)
    for s in range(len(order)):
        near = ((places[:s] - places[s]).abs() < alike).all(-1) & kept[:s]
        close = energy[order[s], everyone] - energy[order[0], everyone] < HOPELESS
        kept[s] = close & ~near.any(0) & (kept[:s].sum(0) < N_KEPT)
    kept[0] = True
    return (order * n + everyone)[kept]


def _ranked(energy: Tensor, which: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Rows of the best fit of each of n measurements and of the second best.

    Where there is one fit alone it is both.
    """
    order = energy.nan_to_num(nan=torch.inf).argsort(stable=True)
    order = order[which[order].argsort(stable=True)]
    count = torch.bincount(which, minlength=n)
    begin = count.cumsum(0) - count
    return order[begin], order[begin + (count > 1)]


def _in_sections(
    prior: LatentPrior,
    outcome: Outcome,
    starts: list[Fit],
    *,
    form: Form,
    generator: torch.Generator,
) -> _Found:
    """Long measurements, one after the other, from the starts that may be right."""
    record = outcome.record
    alike = alike_within(form, outcome.gls)
    first_draws = generator.get_state()
    rows = []
    for b in range(len(record.x)):
        generator.set_state(first_draws)  # whatever else is in the batch
        one = slice(b, b + 1)
        tried: list[LongFit] = []
        for start in starts[:MOST_LONG_STARTS]:
            q = start.theta[one, form.n_linear :]
            known = [f.fit.theta[:, form.n_linear :] for f in tried]
            again = any(bool(((q - k).abs() < alike[one]).all()) for k in known)
            behind = float(start.energy[b] - starts[0].energy[b])
            if again or behind > HOPELESS:
                continue
            tried.append(
                fit_sections(
                    prior,
                    record.select(one),
                    start.theta[one],
                    form=form,
                    generator=generator,
                )
            )
        best = min(tried, key=lambda found: float(found.fit.energy))
        places = torch.cat([f.fit.theta[:, form.n_linear :] for f in tried])
        close = (places - best.fit.theta[:, form.n_linear :]).abs() < alike[one]
        agreement = close.all(-1).double().mean(0, keepdim=True)
        rows.append(
            _Found(best.fit, best.marginal, best.conditional, best.volume, agreement)
        )
    fits = [row.fit for row in rows]
    return _Found(
        JointFit(*(torch.cat([getattr(f, k) for f in fits]) for k in vars(fits[0]))),
        *(
            torch.cat([getattr(row, k) for row in rows])
            for k in ("marginal", "conditional", "volume", "agreement")
        ),
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


def _try_second(
    problem: JointProblem,
    fit: JointFit,
    searched: JointFit,
    first: Tensor,
    next_best: Tensor,
    alike: Tensor,
) -> JointFit:
    """Refine the second-best start where it could still win, and keep the better.

    That is where it trails by little and sits at other nonlinear parameters: at the
    same ones the search has already chosen between the two latents.
    """
    best, second = searched.select(first), searched.select(next_best)
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
