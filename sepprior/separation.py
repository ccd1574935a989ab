"""`separate(x, G)`: measurements and a frozen noise prior in, a result out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sepprior import signals
from sepprior.arguments import check_options, checked_band, checked_measurements
from sepprior.checkpoint import resolve_device
from sepprior.formatting import units_of
from sepprior.inference import calibration, novelty
from sepprior.inference.pipeline import (
    N_PEAKS,
    Answer,
    Outcome,
    analyse,
    choose_components,
)
from sepprior.inference.record import Record, lay_out, unlay
from sepprior.priors import PlainPrior, Prior
from sepprior.rates import check_sample_rate
from sepprior.result import Parameter, Separation

BATCH_WINDOWS = 256
"""Windows worked on at a time; memory is bounded by it."""
GAIN_SIGMAS = 2.0
"""Standard errors by which a prior's held-out likelihood must beat the Gaussian's."""
FOREIGN = 1e-4
"""Probability of unchanged noise below which the prior is not used at all."""
NO_DETECTION = 0.01
"""False-alarm probability above which a signal counts as not detected."""
BOUND_MARGIN = 1e-6
"""Share of the band next to its edge in which a frequency counts as on the edge."""

Objective = Literal["joint", "plain"]


def separate(
    x: ArrayLike | Tensor,
    prior: Prior,
    *,
    sample_rate: float | None = None,
    fmin: float | None = None,
    fmax: float | None = None,
    components: int | Literal["auto"] = 1,
    objective: str = "joint",
    starts: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Separation:
    """Separate measurements into a sum of sinusoids and the instrument's noise.

    ``x = s(t; theta) + n`` with n from the frozen `prior`. Minimises
    ``-log p(x - s(theta) | z) - log p(z)`` over the parameters theta and the prior's
    latent z together, from several starts. Generalised least squares (GLS) and a robust
    fit are made as well: where the prior has nothing to add, or the joint optimum is
    less probable than GLS, the answer is that of GLS and the status says so.

    Args:
        x: shape (N,) or (B, N), data units; NaN marks missing samples. Shorter or
            longer than the prior's window is fine.
        prior: from `load_prior` or `train_noise`.
        sample_rate: Hz; must be the prior's (default).
        fmin: lowest frequency to search, Hz (default: one cycle in the record).
        fmax: highest frequency to search, Hz (default: just below Nyquist).
        components: number of sinusoids, or "auto" (one measurement only).
        objective: "joint", or "plain": squared error to the generator's waveform alone,
            the textbook baseline.
        starts: periodogram peaks that are followed (default 4).
        seed: seed of the random proposals for z.
        device: where to compute; default: where the prior is.

    Returns:
        The separation; arrays have a leading dimension B if `x` had. Phases are at the
        first sample.

    Raises:
        SeppriorError: `x`, the band or an option cannot be used.
    """
    if device is not None:
        prior = prior.to(resolve_device(device))
    single, data = checked_measurements(x)
    rate = float(prior.sample_rate if sample_rate is None else sample_rate)
    check_sample_rate(rate, prior.sample_rate, subject="x")
    low, high = checked_band(fmin, fmax, rate, data.shape[1])
    check_options(components, objective, starts, len(data))
    if objective == "plain":
        prior = PlainPrior(prior)
    count = components
    if count == "auto":
        record = lay_out(
            torch.from_numpy(data).to(prior.device),
            window=prior.window,
            level=prior.level,
            sample_rate=rate,
        )
        count = choose_components(prior, record, fmin=low, fmax=high)
    learned = _prior_adds(prior)
    n_windows = -(-data.shape[1] // prior.window)
    step = max(1, BATCH_WINDOWS // n_windows)
    parts = []
    for begin in range(0, len(data), step):
        record = lay_out(
            torch.from_numpy(data[begin : begin + step]).to(prior.device),
            window=prior.window,
            level=prior.level,
            sample_rate=rate,
        )
        outcome = analyse(
            prior,
            record,
            n_sinusoids=int(count),
            fmin=low,
            fmax=high,
            generator=torch.Generator().manual_seed(seed),
            n_peaks=N_PEAKS if starts is None else starts,
            joint=learned,
        )
        parts.append(_describe(prior, outcome, fmin=low, fmax=high))
    return _assemble(parts, data, prior, rate, int(count), single)


def _prior_adds(prior: Prior) -> bool:
    """Whether the prior beat the stationary Gaussian on noise it had not seen."""
    if isinstance(prior, PlainPrior):
        return True
    held = prior.metadata.get("heldout")
    if prior.n_latent == 0:
        return False
    if held is None:
        return True
    return held["gain"] > GAIN_SIGMAS * held["gain_stderr"]


# -- one chunk of measurements ---------------------------------------------------------


def _interval(
    answer: Answer,
    record: Record,
    method: str,
    table: dict[str, Any] | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B, P), calibrated covariance (B, P, P) and 95 % half-widths (B, P)."""
    values, covariance = answer.polar(record)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    n = (values.shape[1] - 1) // 3
    cycles = values[:, 1 : 3 * n : 3] * window / record.sample_rate
    one, wide = torch.ones_like(sd), torch.ones_like(sd)
    for p in range(n):
        for i, kind in enumerate(signals.PER_SINUSOID):
            one[:, 3 * p + i], wide[:, 3 * p + i] = calibration.factors(
                table, method, kind, cycles[:, p]
            )
    one[:, -1], wide[:, -1] = calibration.factors(table, method, "bias", cycles[:, 0])
    return values, covariance * one[:, :, None] * one[:, None, :], wide * sd


def _describe(
    prior: Prior, outcome: Outcome, *, fmin: float, fmax: float
) -> dict[str, Any]:
    """Arrays of one chunk, ready to be joined with those of the others."""
    record = outcome.record
    table = prior.metadata.get("calibration")
    gls = _interval(outcome.gls, record, "gls", table, prior.window)
    robust = _interval(outcome.robust, record, "robust", table, prior.window)
    novelty_p = novelty.false_alarm_probability(
        prior.metadata.get("novelty"),
        outcome.gls_white.view_as(record.x),
        record.present,
    )
    chosen, theta = gls, outcome.gls.theta
    raw = outcome.gls.covariance
    used = torch.zeros(len(record.x), dtype=torch.bool, device=record.x.device)
    if outcome.joint is not None:
        joint = _interval(outcome.joint, record, "joint", table, prior.window)
        # Noise that is plainly not the prior's has no use for what the prior learned.
        used = (outcome.evidence > 0) & ~(novelty_p < FOREIGN)
        if isinstance(prior, PlainPrior):
            used = torch.ones_like(used)
        chosen = tuple(_pick(used, a, b) for a, b in zip(joint, gls, strict=True))
        theta = _pick(used, outcome.joint.theta, theta)
        raw = _pick(used, outcome.joint.covariance, raw)
    signal = signals.evaluate(record.t, theta)
    jacobian = signals.jacobian_columns(record.t, theta).flatten(2)
    band = torch.einsum("bin,bij,bjn->bn", jacobian, raw, jacobian).clamp_min(0).sqrt()
    white = _pick(used, outcome.standardised.flatten(1), outcome.gls_white)
    coherent = outcome.coherent * used[:, None, None]
    n_present = record.present.flatten(1).sum(-1)
    freedom = (n_present - theta.shape[1]).clamp_min(1)
    assert outcome.periodogram is not None
    gain = outcome.periodogram.gain
    independent = 2.0 * record.duration * (fmax - fmin) + 1.0
    best = gain.amax(-1)
    alarm = -torch.expm1(
        independent * torch.log1p(-torch.exp(-best).clamp_max(1 - 1e-12))
    )
    frequency = theta[:, 1 + 2 * ((theta.shape[1] - 1) // 3) :]
    margin = BOUND_MARGIN * (fmax - fmin)
    edge = ((frequency < fmin + margin) | (frequency > fmax - margin)).any(-1)
    return {
        "values": chosen[0],
        "covariance": chosen[1],
        "half": chosen[2],
        "gls": gls,
        "robust": robust,
        "signal": unlay(signal, record.length),
        "coherent": unlay(coherent, record.length),
        "band": band[:, : record.length],
        "white": white[:, : record.length],
        "present": unlay(record.present, record.length),
        "spectrum": gain,
        "frequency": outcome.periodogram.frequency,
        "used": used,
        "tried": torch.full_like(used, outcome.joint is not None),
        "evidence": outcome.evidence,
        "absorption": outcome.absorption,
        "agreement": outcome.agreement,
        "converged": outcome.converged,
        "chi_square": white.square().sum(-1) / freedom,
        "novelty": novelty_p,
        "best_gain": best,
        "alarm": alarm,
        "edge": edge,
    }


def _pick(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `which`, else of `b`."""
    return torch.where(which.view(-1, *([1] * (a.dim() - 1))), a, b)


# -- the result ------------------------------------------------------------------------


def _assemble(
    parts: list[dict[str, Any]],
    data: np.ndarray,
    prior: Prior,
    rate: float,
    n_sinusoids: int,
    single: bool,
) -> Separation:
    names = signals.parameter_names(n_sinusoids)

    def joined(key: str) -> np.ndarray:
        return torch.cat([p[key] for p in parts]).cpu().numpy()

    def table(key: str) -> dict[str, Parameter]:
        values = torch.cat([p[key][0] for p in parts]).cpu().numpy()
        covariance = torch.cat([p[key][1] for p in parts]).cpu().numpy()
        half = torch.cat([p[key][2] for p in parts]).cpu().numpy()
        return _parameters(names, values, covariance, half)

    covariance = joined("covariance")
    parameters = _parameters(names, joined("values"), covariance, joined("half"))
    signal, present = joined("signal"), joined("present")
    noise = data - signal
    used, novel = joined("used"), joined("novelty")
    diagnostics: dict[str, Any] = {
        "method": np.where(used, prior.name, "gls"),
        "converged": joined("converged"),
        "restart_agreement": joined("agreement"),
        "chi_square": joined("chi_square"),
        "log_evidence_over_gls": joined("evidence"),
        "gls_sufficient": ~used,
        "absorption": joined("absorption"),
        "loglik_gain": joined("best_gain"),
        "false_alarm_probability": joined("alarm"),
        "detected": joined("alarm") < NO_DETECTION,
        "noise_change_p": novel,
        "out_of_distribution": novel < novelty.FALSE_ALARM,
        "at_bound": joined("edge"),
    }
    status = [
        _status(prior, {k: v[i] for k, v in diagnostics.items()}, bool(tried))
        for i, tried in enumerate(joined("tried"))
    ]
    result = Separation(
        parameters=parameters,
        covariance=covariance,
        time=np.arange(data.shape[1]) / rate,
        measurement=data,
        signal=signal,
        noise=noise,
        residual=noise - prior.level - joined("coherent"),
        whitened=np.where(present, joined("white"), np.nan),
        signal_band=joined("band"),
        spectrum_frequency=parts[0]["frequency"].cpu().numpy(),
        spectrum_loglik=joined("spectrum"),
        baselines={"gls": table("gls"), "robust": table("robust")},
        status=status,
        diagnostics=diagnostics,
        prior_info=_prior_info(prior),
    )
    return result.select(0) if single else result


def _parameters(
    names: tuple[str, ...], values: np.ndarray, covariance: np.ndarray, half: np.ndarray
) -> dict[str, Parameter]:
    out = {}
    for i, name in enumerate(names):
        low, high = values[:, i] - half[:, i], values[:, i] + half[:, i]
        out[name] = Parameter(
            values[:, i],
            np.sqrt(covariance[:, i, i]),
            np.stack([low, high], -1),
            units_of(name),
        )
    return out


def _prior_info(prior: Prior) -> dict[str, Any]:
    wrapped = prior.prior if isinstance(prior, PlainPrior) else prior
    keep = ("seed", "data_hash", "heldout", "whitening")
    return {
        "name": wrapped.name,
        "window": wrapped.window,
        "sample_rate": wrapped.sample_rate,
        "n_latent": wrapped.n_latent,
        **{k: wrapped.metadata[k] for k in keep if k in wrapped.metadata},
    }


def _status(prior: Prior, facts: dict[str, Any], tried: bool) -> str:
    """What a user should know first, and what to try."""
    notes = []
    if facts["out_of_distribution"]:
        notes.append(
            "the noise has changed since training: record new noise and train again"
        )
    if not facts["detected"]:
        notes.append("no signal detected: the parameters may describe noise")
    if facts["at_bound"]:
        notes.append("a frequency is at the edge of the band: widen fmin and fmax")
    if tried and facts["method"] != "gls" and not facts["converged"]:
        notes.append("not fully converged: compare with more starts")
    if prior.n_latent and not tried:
        notes.append("GLS answer: on held-out noise the prior adds nothing to it")
    elif tried and facts["method"] == "gls" and facts["noise_change_p"] < FOREIGN:
        notes.append("GLS answer: the prior does not describe this noise")
    elif tried and facts["method"] == "gls":
        notes.append("GLS answer: more probable here than the joint optimum")
    return "; ".join(["ok" if not notes else notes[0], *notes[1:]])
