"""Error bars of an answer: Laplace's, calibrated, or from draws.

B measurements, R natural parameters, P of theta, C chains, S draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError, one_of, whole_number
from sepprior.inference import calibration, weak
from sepprior.inference.bootstrap import replicas
from sepprior.inference.chains import CHAINS
from sepprior.inference.joint import JointFit
from sepprior.inference.least_squares import Fit
from sepprior.inference.pipeline import Answer, Outcome
from sepprior.inference.posterior import (
    least_squares_optimum,
    sample_latent,
    sample_score,
)
from sepprior.inference.record import Record
from sepprior.inference.sampling import effective_size, quantile, split_rhat
from sepprior.inference.score import ScoreFit
from sepprior.priors import (
    GaussianPrior,
    GeneratorPrior,
    LatentPrior,
    PlainPrior,
    Prior,
    ScorePrior,
    SpecGANPrior,
)
from sepprior.signals import Sinusoids
from sepprior.signals.form import Form, wrap_phase

METHODS = ("laplace", "bootstrap", "mcmc", "langevin")
REPLICAS = 200
"""Of a bootstrap by default: a standard error is then known to 5 %."""
DRAWS = 1000
"""From a posterior by default, in all chains together."""
MOST = 10**6
"""Draws of one measurement, at most: memory is bounded by it."""
FEWEST = 40
"""A 2.5 % quantile needs one draw beyond it."""
TAIL = 0.025
"""Probability on each side of a 95 % interval."""
SIGNAL_NUMBERS = 2**24
"""Numbers of the signals that are evaluated together; memory is bounded by it."""


@dataclass(frozen=True)
class Intervals:
    """Estimates with error bars, natural parameters.

    Attributes:
        values: shape (B, R).
        covariance: shape (B, R, R).
        ci95: shape (B, R, 2), ends of the 95 % intervals.
        share: shape (B,), probability of the peak of the likelihood that the frequency
            is at; 1 where it was not doubted.
        others: shape (B, 3), Hz, frequencies of other peaks; NaN where there are fewer.
    """

    values: Tensor
    covariance: Tensor
    ci95: Tensor
    share: Tensor
    others: Tensor

    @staticmethod
    def of(values: Tensor, covariance: Tensor, ci95: Tensor) -> Intervals:
        """Of a frequency that is not doubted."""
        share = torch.ones_like(values[:, 0])
        others = share[:, None].expand(-1, weak.NAMED) * torch.nan
        return Intervals(values, covariance, ci95, share, others)

    def where(self, which: Tensor, other: Intervals) -> Intervals:
        """These where `which` (B,), else those of the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Intervals(
            *(
                torch.where(which.view(-1, *([1] * (a.dim() - 1))), a, b)
                for a, b in pairs
            )
        )


@dataclass(frozen=True)
class Sampled:
    """Error bars from draws.

    Attributes:
        intervals: estimates with error bars.
        signal: shape (B, W, N), the signal that goes with the estimates.
        band: shape (B, W, N), one standard deviation of it.
        draws: shape (B, C, S, R), natural parameters.
        rhat: shape (B, R), split R-hat; NaN for a bootstrap.
        ess: shape (B, R), effective number of draws; NaN for a bootstrap.
    """

    intervals: Intervals
    signal: Tensor
    band: Tensor
    draws: Tensor
    rhat: Tensor
    ess: Tensor


@dataclass(frozen=True)
class ErrorBars:
    """How error bars are made.

    Attributes:
        method: one of `METHODS`.
        draws: replicas or posterior draws per measurement; 0 for Laplace's.
        seed: of the draws.
    """

    method: str
    draws: int
    seed: int

    @property
    def posterior(self) -> bool:
        """Whether draws are those of Markov chains."""
        return self.method in ("mcmc", "langevin")


def checked(
    method: str, draws: int | None, seed: int, prior: Prior, *, expected: bool
) -> ErrorBars:
    """Options of `separate`, checked.

    Args:
        method: one of `METHODS`.
        draws: number of draws, or None for the default.
        seed: of the draws.
        prior: the noise prior.
        expected: parameters have Gaussian priors.

    Raises:
        SeppriorError: a combination that does not exist.
    """
    one_of("method", method, METHODS)
    if method == "laplace":
        if draws is not None:
            raise SeppriorError(
                f"draws={draws} means nothing for method='laplace'; give method="
                "'bootstrap', 'mcmc' or 'langevin', or leave draws out"
            )
        return ErrorBars(method, 0, seed)
    if draws is not None and whole_number("draws", draws, most=MOST) < FEWEST:
        raise SeppriorError(
            f"draws={draws}: 95 % intervals need at least {FEWEST} draws"
        )
    if method == "bootstrap" and expected:
        raise SeppriorError(
            "method='bootstrap' repeats the measurement, not what is expected of its "
            "parameters; leave expected out, or use method='laplace', 'mcmc' or "
            "'langevin'"
        )
    if method == "mcmc":
        _check_latent(prior)
    if method == "langevin" and not isinstance(prior, ScorePrior):
        raise SeppriorError(
            f"method='langevin' needs a prior that gives scores (diffusion), a "
            f"{prior.name} prior has none; use method='mcmc' or 'bootstrap'"
        )
    if draws is None:
        draws = REPLICAS if method == "bootstrap" else DRAWS
    return ErrorBars(method, draws, seed)


def _check_latent(prior: Prior) -> None:
    """Refuse priors whose joint posterior of theta and latent cannot be sampled."""
    if isinstance(prior, PlainPrior):
        raise SeppriorError(
            "method='mcmc' needs a density of the noise, and objective='plain' has "
            "none; use objective='joint', or method='bootstrap'"
        )
    if isinstance(prior, ScorePrior) or not isinstance(prior, LatentPrior):
        raise SeppriorError(
            f"method='mcmc' needs a prior with a latent, or gaussian; a {prior.name} "
            "prior has none: use method='langevin' or 'bootstrap'"
        )
    if isinstance(prior, SpecGANPrior | GeneratorPrior) and prior.space.infers_label:
        raise SeppriorError(
            "method='mcmc' cannot sample which label holds: give one of "
            f"label={', '.join(map(repr, prior.space.labels))}, or use "
            "method='bootstrap'"
        )


def laplace(
    answer: Answer | Fit,
    form: Form,
    method: str,
    table: dict[str, Any] | None,
    window: int,
) -> Intervals:
    """Error bars from the curvature at the optimum, with calibrated widths.

    Args:
        answer: parameters with covariance.
        form: the signal.
        method: "gls", "robust" or "joint", whose factors are used.
        table: from `calibration.measure_calibration`, if there is one.
        window: samples in the prior's window.
    """
    values, covariance = form.natural(answer.theta, answer.covariance)
    sd = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    one = torch.ones_like(sd)
    wide = torch.full_like(sd, calibration.Z95)
    alike = form.frequencies(answer.theta)
    for i, name in enumerate(form.names):
        kind, frequency = alike[name]
        cycles = frequency * window / form.geometry.sample_rate
        one[:, i], wide[:, i] = calibration.factors(table, method, kind, cycles)
    half = wide * sd
    return Intervals.of(
        values,
        covariance * one[:, :, None] * one[:, None, :],
        torch.stack([values - half, values + half], -1),
    )


def amplitude_widening(
    form: Form, theta: Tensor, table: dict[str, Any] | None, window: int
) -> Tensor:
    """Factor on the prior's 95 % intervals of the amplitudes, at least 1, (B,).

    The gain of a sinusoid that noise makes is ``(A / sigma)^2 / 2``: where sigma is so
    many times larger than the prior says, gains are its square too large.
    """
    widest = theta.new_ones(len(theta))
    for kind, frequency in form.frequencies(theta).values():
        if kind == "amplitude":
            cycles = frequency * window / form.geometry.sample_rate
            half = calibration.factors(table, "joint", kind, cycles)[1]
            widest = widest.maximum(half / calibration.Z95)
    return widest


def of_least_squares(
    outcome: Outcome, form: Form, table: dict[str, Any] | None, window: int
) -> Intervals:
    """Error bars of generalised least squares; arguments as of `laplace`."""
    intervals = laplace(outcome.gls, form, "gls", table, window)
    spectrum = outcome.periodogram
    assert spectrum is not None
    model = weak.Stationary(outcome.record, outcome.whitener)
    gain = spectrum.gain.amax(-1)
    return _with_posterior(intervals, outcome.gls, form, outcome, gain, model)


def of_the_prior(
    prior: Prior, outcome: Outcome, form: Form, table: dict[str, Any] | None
) -> Intervals:
    """Error bars of the prior's own answer, before draws; as of `laplace`."""
    answer, fit = outcome.joint, outcome.optimum
    assert answer is not None
    intervals = laplace(answer, form, "joint", table, prior.window)
    if outcome.signal_gain is None:
        return intervals
    if isinstance(fit, JointFit):
        assert isinstance(prior, LatentPrior)
        if weak.Conditional.serves(prior):
            record, near = outcome.record, outcome.near
            model = weak.Conditional(prior, record, fit, form, near)
            gain = outcome.signal_gain
            return _with_posterior(intervals, answer, form, outcome, gain, model)
    # The noise of the recording's spectrum leaves more frequencies open, never fewer.
    model = weak.Stationary(outcome.record, outcome.whitener)
    gain = outcome.signal_gain
    return _with_posterior(intervals, answer, form, outcome, gain, model)


def _with_posterior(
    intervals: Intervals,
    answer: Answer | Fit,
    form: Form,
    outcome: Outcome,
    gain: Tensor,
    model: weak.Model,
) -> Intervals:
    """Those of Laplace's method, with the posterior's widths where it is wide.

    Args:
        intervals: from `laplace`, whose factors are kept.
        answer: what they are of.
        form: the signal.
        outcome: measurements and band.
        gain: log-likelihood over that of no signal, (B,), nats.
        model: of the noise.
    """
    band = outcome.periodogram
    assert band is not None
    if not isinstance(form, Sinusoids) or form.count > 1 or form.low.dim() > 1:
        return intervals
    if bool(form.prior_precision.any()):
        return intervals
    record = outcome.record
    rows = weak.uncertain(record, gain, answer.theta[:, 3], band)
    found = weak.posterior_widths(form, record, rows, gain, answer, model)
    rows, values = found.rows, intervals.values
    raw = form.natural(answer.theta, answer.covariance)[1]
    raw = raw.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()[rows]
    wide = (intervals.ci95[rows, :, 1] - values[rows]) / (calibration.Z95 * raw)
    ratio = found.half / raw
    covariance, ci95 = intervals.covariance.clone(), intervals.ci95.clone()
    covariance[rows] *= ratio[:, :, None] * ratio[:, None, :]
    ci95[rows] = values[rows].unsqueeze(-1) + found.ends * wide.unsqueeze(-1)
    share, others = intervals.share.clone(), intervals.others.clone()
    share[rows], others[rows] = found.share, found.others
    return Intervals(values, covariance, ci95, share, others)


def sampled(
    prior: Prior, outcome: Outcome, form: Form, used: Tensor, how: ErrorBars
) -> Sampled:
    """Error bars of the answers from draws.

    Where the answer is that of least squares, its noise model (stationary Gaussian) is
    what noise is drawn from, or what the likelihood is made of.

    Args:
        prior: the noise prior.
        outcome: the fits.
        form: the signal, with bounds common to all measurements.
        used: shape (B,), whether the answer is the prior's.
        how: method other than "laplace", and number of draws.
    """
    record = outcome.record
    theta = outcome.gls.theta.clone()
    if outcome.joint is not None:
        theta[used] = outcome.joint.theta[used]
    chains = CHAINS if how.posterior else 1
    n_draws = -(-how.draws // chains)
    drawn = theta.new_empty(len(theta), chains, n_draws, theta.shape[1])
    for mine in (True, False):
        rows = (used == mine).nonzero().flatten()
        if len(rows):
            drawn[rows] = _draw(prior, outcome, form, rows, n_draws, how, joint=mine)
    return _summary(form, record, theta, drawn, posterior=how.posterior)


def _draw(
    prior: Prior,
    outcome: Outcome,
    form: Form,
    rows: Tensor,
    n_draws: int,
    how: ErrorBars,
    *,
    joint: bool,
) -> Tensor:
    """Draws (B, C, S, P) of theta for some of the measurements."""
    record, seed = outcome.record.select(rows), how.seed
    if how.method == "bootstrap":
        answer = outcome.joint if joint else outcome.gls
        assert answer is not None
        source = prior if joint else _stationary(prior)
        return replicas(
            source,
            record,
            form,
            answer.theta[rows],
            n_draws=n_draws,
            joint=joint,
            seed=seed,
        )
    if not joint:
        gaussian = _stationary(prior)
        fit = least_squares_optimum(gaussian, record, form, outcome.gls.theta[rows])
        return sample_latent(gaussian, record, form, fit, n_draws=n_draws, seed=seed)
    optimum = outcome.optimum
    assert optimum is not None
    fit = optimum.select(rows)
    if isinstance(fit, ScoreFit):
        assert isinstance(prior, ScorePrior)
        return sample_score(prior, record, form, fit, n_draws=n_draws, seed=seed)
    assert isinstance(prior, LatentPrior) and isinstance(fit, JointFit)
    return sample_latent(prior, record, form, fit, n_draws=n_draws, seed=seed)


def _stationary(prior: Prior) -> GaussianPrior:
    """Gaussian noise of the prior's spectrum: the model behind least squares."""
    return GaussianPrior(
        prior.autocovariance, level=prior.level, sample_rate=prior.sample_rate
    )


def _summary(
    form: Form, record: Record, theta: Tensor, drawn: Tensor, *, posterior: bool
) -> Sampled:
    """Natural parameters, intervals and signal from draws (B, C, S, P) of theta."""
    n, chains, count, p = drawn.shape
    nothing = theta.new_zeros(n, p, p)
    estimate, _ = form.natural(theta, nothing)
    flat = drawn.flatten(0, 2)
    natural = torch.cat(
        [form.natural(v, v.new_zeros(len(v), p, p))[0] for v in flat.split(2**16)]
    ).view(n, chains * count, -1)
    kinds = form.frequencies(theta)
    phases = [i for i, name in enumerate(form.names) if kinds[name][0] == "phase"]
    centre = estimate[:, None]
    turned = wrap_phase((natural - centre)[..., phases])
    natural[..., phases] = centre[..., phases] + turned
    mean = natural.mean(1)
    rest = natural - mean[:, None]
    covariance = rest.mT @ rest / (natural.shape[1] - 1)
    low, high = (quantile(natural.mT, level) for level in (TAIL, 1.0 - TAIL))
    signal, band = _signals(form, record, drawn.flatten(1, 2))
    draws = natural.view(n, chains, count, -1)
    if not posterior:
        # The estimate errs as the replicas do about it: the interval is mirrored.
        ends = torch.stack([2.0 * estimate - high, 2.0 * estimate - low], -1)
        nan = torch.full_like(estimate, torch.nan)
        signal = form.evaluate(record.t, theta)
        return Sampled(
            Intervals.of(estimate, covariance, ends), signal, band, draws, nan, nan
        )
    shift = torch.zeros_like(mean)
    shift[:, phases] = wrap_phase(mean[:, phases]) - mean[:, phases]
    ends = torch.stack([low + shift, high + shift], -1)
    by_name = draws.permute(0, 3, 1, 2)
    return Sampled(
        Intervals.of(mean + shift, covariance, ends),
        signal,
        band,
        draws,
        split_rhat(by_name),
        effective_size(by_name),
    )


def _signals(form: Form, record: Record, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, W, N) of the signals of draws (B, S, P)."""
    means, deviations = [], []
    at_once = max(2, SIGNAL_NUMBERS // record.t.numel())
    for own in theta:
        total = torch.zeros_like(record.t)
        square = torch.zeros_like(record.t)
        offset = form.evaluate(record.t, own[:1])
        for part in own.split(at_once):
            rest = form.evaluate(record.t, part) - offset
            total += rest.sum(0)
            square += rest.square().sum(0)
        mean = total / len(own)
        variance = (square / len(own) - mean.square()).clamp_min(0.0)
        means.append(mean + offset[0])
        deviations.append(variance.sqrt())
    return torch.stack(means), torch.stack(deviations)
