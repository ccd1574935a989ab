"""`separate(x, G)`: measurements and a frozen noise prior in, a result out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sepprior.arguments import (
    Checked,
    check_freedom,
    check_options,
    check_prior,
    checked_band,
    checked_measurements,
    tensor_of,
)
from sepprior.checkpoint import resolve_device
from sepprior.errors import SeppriorError
from sepprior.formatting import UNITS
from sepprior.inference import error_bars, novelty
from sepprior.inference.calibration import Z95
from sepprior.inference.change import likeliest_change
from sepprior.inference.components import choose_components, unresolved
from sepprior.inference.detection import (
    NullGains,
    largest_gaussian_gain,
    no_signal_energy,
    null_gains,
)
from sepprior.inference.error_bars import Intervals
from sepprior.inference.least_squares import SAMPLES_AT_ONCE
from sepprior.inference.own_level import Followed, follow
from sepprior.inference.pipeline import N_PEAKS, Outcome, analyse
from sepprior.inference.record import Record, lay_out, unlay
from sepprior.inference.sampling import well_sampled
from sepprior.priors import PlainPrior, Prior, beats_gaussian
from sepprior.priors.labelled import inferred_labels, with_label
from sepprior.rates import check_sample_rate
from sepprior.result import Parameter, Separation
from sepprior.samples import Samples
from sepprior.signals import Form, Geometry, Sinusoids, build_form
from sepprior.signals.build import Bounds, Expected, Signal, Values
from sepprior.signals.form import at_bound
from sepprior.status import FOREIGN, describe
from sepprior.torch_state import usual_torch

BATCH_WINDOWS = 512
"""Windows worked on at a time; memory is bounded by it."""
FAR = 1e3
"""Standard deviations of the noise from which a constant is taken off beforehand."""
LEAST_GAIN = 0.05
"""Nats per sample below which a prior's lead cannot prove that the noise is its own."""
NO_DETECTION = 0.01
"""False-alarm probability above which a signal counts as not detected."""

Objective = Literal["joint", "plain"]


@usual_torch()
def separate(
    x: ArrayLike | Tensor | Checked,
    prior: Prior,
    *,
    signal: Signal = "sinusoid",
    sample_rate: float | None = None,
    fmin: float | None = None,
    fmax: float | None = None,
    components: int | Literal["auto"] = 1,
    bounds: Bounds | None = None,
    fixed: Values | None = None,
    guess: Values | None = None,
    expected: Expected | None = None,
    objective: str = "joint",
    method: str = "laplace",
    draws: int | None = None,
    starts: int | None = None,
    seed: int = 0,
    label: str | None = None,
    device: str | None = None,
) -> Separation:
    """Separate measurements into a signal of known form and the instrument's noise.

    ``x = s(t; theta) + n`` with n from the frozen `prior`. Minimises
    ``-log p(x - s(theta) | z) - log p(z)`` over the parameters theta and the prior's
    latent z together, from several starts. Generalised least squares (GLS) and a robust
    fit are made as well: where the prior has nothing to add, or the joint optimum is
    less probable than GLS, the answer is that of GLS and the status says so.

    Args:
        x: shape (N,) or (B, N), data units; NaN marks missing samples. Shorter or
            longer than the prior's window is fine. Ends that are missing in all rows
            change nothing; times still count from the first sample given.
        prior: from `load_prior` or `train_noise`.
        signal: "sinusoid" (a sum of them), "harmonics" (of one fundamental), "damped"
            (an exponentially damped sinusoid), "chirp" (a linear one), or a function
            f(t, a, b, ...) of torch operations, t in seconds from the first sample.
            Default values in its signature are starting guesses.
        sample_rate: Hz; must be the prior's (default).
        fmin: lowest frequency to search, Hz (default: one cycle in the record).
        fmax: highest frequency to search, Hz (default: just below Nyquist).
        components: number of sinusoids or harmonics; "auto" chooses the number of
            sinusoids (one measurement only).
        bounds: lowest and highest value of parameters by name; None for an open end.
        fixed: values of parameters that are known.
        guess: values to start from; a frequency is searched within 1 / T of it.
        expected: mean and standard deviation of Gaussian priors on parameters.
        objective: "joint", or "plain": squared error to the generator's waveform alone,
            the textbook baseline.
        method: what error bars are made from. "laplace": curvature at the optimum,
            calibrated by known signals in held-out noise; for a single sinusoid that
            can hardly be seen, its posterior over the frequency. "bootstrap": noise
            of the prior on the fitted signal, fitted again. "mcmc": posterior of
            parameters and latent (priors with a latent, gaussian), "langevin":
            posterior by the scores of a diffusion prior, slightly smoothed; values are
            its means. Draws are as right as the prior (of GLS, where it gave the
            answer): uncalibrated.
        draws: replicas (default 200), or draws of 4 chains (default 1000).
        starts: points of the search that are followed (default 4).
        seed: seed of the random proposals for z, and of the draws.
        label: state of the instrument or kind of noise, for a prior trained with
            labels; by default inferred for each measurement, and told as the diagnostic
            `inferred_label`.
        device: where to compute; default: where the prior is.

    Returns:
        The separation; arrays have a leading dimension B if `x` had. Phases are at the
        first sample.

    Raises:
        SeppriorError: `x`, the band or an option cannot be used.
    """
    check_prior(prior)
    known = {"bounds": bounds, "fixed": fixed, "guess": guess, "expected": expected}
    check_options(
        signal=signal,
        components=components,
        objective=objective,
        starts=starts,
        seed=seed,
        fmin=fmin,
        fmax=fmax,
        **known,
    )
    seed = int(seed)  # numpy's whole numbers, too
    if device is not None:
        prior = prior.to(resolve_device(device))
    if label is not None:
        prior = with_label(prior, label)
    single, data, told = checked_measurements(x, sample_rate=sample_rate)
    rate = prior.sample_rate if told is None else told
    check_sample_rate(rate, prior.sample_rate, subject="x")
    rate = float(rate)
    given = data
    data, skipped = _without_padding(given)
    low, high = checked_band(fmin, fmax, rate, data.shape[1])
    if components == "auto" and len(data) > 1:
        raise SeppriorError(
            f"components='auto' chooses for one measurement, {len(data)} were given; "
            "call separate for each, or give the number of sinusoids"
        )
    if objective == "plain":
        if not prior.learned:
            raise SeppriorError(
                "objective='plain' fits the waveform of a generator, and a "
                f"{prior.name} prior has none: leave objective out"
            )
        prior = PlainPrior.of(prior)
    bars = error_bars.checked(method, draws, seed, prior, expected=bool(expected))
    named = {name for part in known.values() for name in part or ()}
    free_bias = isinstance(signal, str) and "bias" not in named

    def laid_out(rows: np.ndarray) -> tuple[Record, Tensor]:
        """Measurements in windows, and the constants that were taken off, (B, 1)."""
        x = tensor_of(rows, prior.device)
        own = _own_levels(x, prior) if free_bias else x.new_zeros((len(x), 1))
        level = prior.level + own
        return lay_out(x, window=prior.window, level=level, sample_rate=rate), own

    count = components
    if count == "auto":
        record, _ = laid_out(data)
        count = choose_components(prior, record, fmin=low, fmax=high, seed=seed)
    geometry = Geometry(data.shape[1], rate, skipped)
    form = build_form(
        signal,
        geometry,
        components=int(count),
        fmin=low,
        fmax=high,
        bounds=bounds,
        fixed=fixed,
        guess=guess,
        expected=expected,
    )
    check_freedom(len(form.names) - len(fixed or ()), data)
    null = null_gains(prior, form, geometry, fmin=low, fmax=high, seed=seed)
    learned = _prior_adds(prior)
    n_windows = -(-data.shape[1] // prior.window)
    step = max(1, BATCH_WINDOWS // n_windows)
    parts = []
    for begin in range(0, len(data), step):
        record, own = laid_out(data[begin : begin + step])

        def fitted(under: Prior, some: Record, detect: bool) -> Outcome:
            return analyse(
                under,
                some,
                form=form,
                generator=torch.Generator().manual_seed(seed),
                n_peaks=N_PEAKS if starts is None else starts,
                joint=learned,
                band=(low, high),
                detect=detect,
            )

        outcome = fitted(prior, record, True)
        part = _describe(prior, outcome, form, null, bars)
        for other in follow(prior, outcome, fitted):
            own_part = _describe(other.prior, other.outcome, form, null, bars, other)
            _put(part, other.rows, own_part)
        if len(data[0]) < len(given[0]):
            _pad(part, form, skipped, given.shape[1])
        parts.append(_with_levels(part, own, form) if bool(own.any()) else part)
    return _assemble(parts, given, prior, rate, form, bars, single)


def _put(part: dict[str, Any], rows: Tensor, other: dict[str, Any]) -> None:
    """Gives some rows of one chunk the results of another one, in place."""
    for key, value in part.items():
        if key != "frequency" and value is not None:
            part[key] = _replaced(value, rows, other[key])


def _replaced(value: Any, rows: Tensor, other: Any) -> Any:
    """Arrays, or what holds them, with some rows from others."""
    if isinstance(value, Tensor):
        return value.index_copy(0, rows, other.to(value.dtype))
    if isinstance(value, Intervals):
        pairs = zip(vars(value).values(), vars(other).values(), strict=True)
        return Intervals(*(_replaced(a, rows, b) for a, b in pairs))
    if isinstance(value, tuple):
        return tuple(_replaced(a, rows, b) for a, b in zip(value, other, strict=True))
    value = value.copy()
    for i, row in enumerate(rows.tolist()):
        value[row] = other[i]
    return value


def _without_padding(data: np.ndarray) -> tuple[np.ndarray, int]:
    """Measurements (B, N) without the ends that all of them miss, and the start's."""
    if not np.isnan(data[:, [0, -1]]).all(0).any():
        return data, 0
    present = np.flatnonzero(~np.isnan(data).all(0))
    begin, end = int(present[0]), int(present[-1]) + 1
    return np.ascontiguousarray(data[:, begin:end]), begin


def _pad(part: dict[str, Any], form: Form, skipped: int, length: int) -> None:
    """Gives the arrays of one chunk the ends that were left out, in place."""
    theta, covariance = part["theta"]
    own = part["signal"].shape[1]
    index = torch.arange(length, dtype=theta.dtype, device=theta.device)
    t = (index - skipped - 0.5 * (own - 1)) / form.geometry.sample_rate
    signal, band = (v[:, 0] for v in _signal_at(form, t[None], theta, covariance))
    inside = slice(skipped, skipped + own)
    for key, whole in (("signal", signal), ("band", band)):
        whole[:, inside] = part[key]
        part[key] = whole
    ends = (skipped, length - own - skipped)
    for key in ("coherent", "white", "present"):
        part[key] = torch.nn.functional.pad(part[key], ends)


def _own_levels(x: Tensor, prior: Prior) -> Tensor:
    """Distance of measurements (B, N) from the prior's level, (B, 1); 0 if not far.

    A large constant is taken off in double precision, before anything is rounded.
    """
    distance = x.nanmedian(-1, keepdim=True).values - prior.level
    far = distance.abs() > FAR * float(prior.autocovariance[0]) ** 0.5
    return torch.where(far, distance, 0.0)


def _with_levels(part: dict[str, Any], own: Tensor, form: Form) -> dict[str, Any]:
    """Results with the constants (B, 1) in the bias, from where they were taken off."""
    at = form.names.index("bias")
    for key in ("chosen", "gls", "robust"):
        found = part[key]
        values, ci95 = found.values.clone(), found.ci95.clone()
        values[:, at] += own[:, 0]
        ci95[:, at] += own
        part[key] = replace(found, values=values, ci95=ci95)
    part["signal"] = part["signal"] + own
    if "draws" in part:
        part["draws"] = part["draws"].clone()
        part["draws"][..., at] += own[:, :, None]
    return part


def _prior_adds(prior: Prior) -> bool:
    """Whether the prior beat the stationary Gaussian on noise it had not seen."""
    if isinstance(prior, PlainPrior):
        return True
    held = prior.metadata.get("heldout")
    if not prior.learned:
        return False
    if held is None:
        return True
    return beats_gaussian(held)


def _as_useful_as_ever(prior: Prior, outcome: Outcome) -> Tensor:
    """Where the prior explains the noise half as well as what it was validated on.

    Rare but genuine noise (no jump in a whole window) can look foreign in its band
    powers; that the prior's lead over the Gaussian is what it should be speaks for it.
    """
    gain = prior.metadata.get("heldout", {}).get("gain", torch.inf)
    samples = outcome.record.present.flatten(1).sum(-1)
    return outcome.evidence > 0.5 * max(gain, LEAST_GAIN) * samples


# -- one chunk of measurements ---------------------------------------------------------


def _describe(
    prior: Prior,
    outcome: Outcome,
    form: Form,
    null: NullGains,
    bars: error_bars.ErrorBars,
    followed: Followed | None = None,
) -> dict[str, Any]:
    """Arrays of one chunk, ready to be joined with those of the others."""
    record = outcome.record
    table = prior.metadata.get("calibration")
    gls = error_bars.of_least_squares(outcome, form, table, prior.window)
    robust = error_bars.laplace(outcome.robust, form, "robust", table, prior.window)
    left, fitted = outcome.gls.residual.view_as(record.x), outcome.gls.theta
    directions = novelty.fitted_directions(form, record, outcome.whitener, fitted)
    novelty_p = novelty.false_alarm_probability(
        prior.metadata.get("novelty"), left, record.present, directions
    )
    flagged = novelty_p < novelty.FALSE_ALARM
    change = likeliest_change(left, record, form, fitted, flagged, directions)
    sd = torch.full_like(change.level, torch.nan)
    if followed is not None:
        sd = followed.sd
        change = change.with_level(followed.level, 0.5 * record.sample_rate)
    chosen, theta = gls, outcome.gls.theta
    raw = outcome.gls.covariance
    used = torch.zeros(len(record.x), dtype=torch.bool, device=record.x.device)
    if outcome.joint is not None:
        joint = error_bars.of_the_prior(prior, outcome, form, table)
        # Noise that is plainly not the prior's has no use for what the prior learned.
        strange = FOREIGN if followed is None else novelty.FALSE_ALARM
        foreign = (novelty_p < strange) & ~_as_useful_as_ever(prior, outcome)
        used = (outcome.evidence > 0) & ~foreign
        if isinstance(prior, PlainPrior):
            used = torch.ones_like(used)
        chosen = joint.where(used, gls)
        theta = _pick(used, outcome.joint.theta, theta)
        raw = _pick(used, outcome.joint.covariance, raw)
    signal, band = _signal(record, form, theta, raw)
    drawn = {}
    if bars.method != "laplace":
        found = error_bars.sampled(prior, outcome, form, used, bars)
        chosen, signal, band = found.intervals, found.signal, found.band.flatten(1)
        drawn = {"draws": found.draws, "rhat": found.rhat, "ess": found.ess}
        drawn["well_sampled"] = well_sampled(found.rhat, found.ess)
    # Nothing the length of the measurements is made that was not needed.
    white, coherent = outcome.gls.residual, outcome.coherent
    if outcome.joint is not None:
        white = _pick(used, outcome.standardised.flatten(1), white)
        coherent = coherent * used[:, None, None]
    n_present = record.present.flatten(1).sum(-1)
    freedom = (n_present - theta.shape[1]).clamp_min(1)
    assert outcome.periodogram is not None
    spectrum = outcome.periodogram.gain
    best = spectrum.amax(-1)
    cycles = outcome.periodogram.frequency * prior.window / prior.sample_rate
    judged = largest_gaussian_gain(
        prior.metadata.get("gains"), spectrum, cycles, windows=record.x.shape[1]
    )
    whitener = outcome.whitener
    if not isinstance(form.search, Sinusoids):
        best = no_signal_energy(form, record, whitener) - outcome.gls.energy
        judged = best
    if outcome.signal_gain is not None:
        best = torch.where(used, outcome.signal_gain, best)
        wider = error_bars.amplitude_widening(form, theta, table, prior.window)
        judged = torch.where(used, outcome.signal_gain / wider.square(), judged)
    if followed is not None:
        # Of noise whose level is estimated: the F-test's likelihood ratio.
        judged = 0.5 * freedom * torch.log1p(2.0 * judged / freedom)
    alarm = null.probability(judged)
    close = torch.zeros_like(used)
    if isinstance(form, Sinusoids) and form.count > 1:
        close = unresolved(form, record, whitener, outcome.gls, null)
    return {
        "theta": (theta, raw),
        "chosen": chosen,
        "gls": gls,
        "robust": robust,
        "signal": unlay(signal, record.length),
        "coherent": unlay(coherent, record.length),
        "band": band[:, : record.length],
        "white": white[:, : record.length],
        "present": unlay(record.present, record.length),
        "spectrum": spectrum,
        "frequency": outcome.periodogram.frequency,
        "used": used,
        "tried": torch.full_like(used, outcome.joint is not None),
        "evidence": outcome.evidence,
        "absorption": outcome.absorption,
        "agreement": outcome.agreement,
        "converged": outcome.converged,
        "chi_square": torch.linalg.vector_norm(white, dim=-1).square() / freedom,
        "novelty": novelty_p,
        "change": change.cause,
        "noise_level": change.level,
        "followed": torch.full_like(used, followed is not None),
        "noise_level_error": sd,
        "noise_change_low": change.low,
        "noise_change_high": change.high,
        "noise_change_ratio": change.ratio,
        "best_gain": best,
        "alarm": alarm,
        "edge": at_bound(form, theta),
        "unresolved": close,
        "labels": inferred_labels(prior, outcome.latent),
        **drawn,
    }


def _signal(
    record: Record, form: Form, theta: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """The signal (B, W, N), and one standard deviation of it (B, W N)."""
    signal, band = torch.empty_like(record.x), torch.empty_like(record.x)
    at_once = max(1, SAMPLES_AT_ONCE // record.x[:, 0].numel())
    for begin in range(0, record.x.shape[1], at_once):
        here = slice(begin, begin + at_once)
        found = _signal_at(form, record.windows(here).t, theta, covariance)
        signal[:, here], band[:, here] = found
    return signal, band.flatten(1)


def _signal_at(
    form: Form, t: Tensor, theta: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """The same at times (W, N), s from the middle, both (B, W, N)."""
    jacobian = form.jacobian_columns(t, theta)
    square = torch.einsum("biwn,bij,bjwn->bwn", jacobian, covariance, jacobian)
    return form.evaluate(t, theta), square.clamp_min(0).sqrt()


def _pick(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `which`, else of `b`."""
    return torch.where(which.view(-1, *([1] * (a.dim() - 1))), a, b)


# -- the result ------------------------------------------------------------------------


def _assemble(
    parts: list[dict[str, Any]],
    data: np.ndarray,
    prior: Prior,
    rate: float,
    form: Form,
    bars: error_bars.ErrorBars,
    single: bool,
) -> Separation:
    names, kinds = form.names, dict(zip(form.names, form.kinds, strict=True))

    def joined(key: str) -> np.ndarray:
        whole = parts[0][key] if len(parts) == 1 else torch.cat([p[key] for p in parts])
        return whole.cpu().numpy()

    def intervals(key: str) -> tuple[np.ndarray, ...]:
        rows = zip(*(vars(p[key]).values() for p in parts), strict=True)
        return tuple(torch.cat(column).cpu().numpy() for column in rows)

    def table(key: str) -> dict[str, Parameter]:
        return _parameters(form, *intervals(key)[:3])

    white = joined("white")
    white[~joined("present")] = np.nan
    used, novel = joined("used"), joined("novelty")
    level, level_error = joined("noise_level"), joined("noise_level_error")
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
        "noise_level": level,
        "noise_level_low": level * np.exp(-Z95 * level_error),
        "noise_level_high": level * np.exp(Z95 * level_error),
        "noise_level_followed": joined("followed"),
        "noise_change": np.concatenate([p["change"] for p in parts]),
        "noise_change_low": joined("noise_change_low"),
        "noise_change_high": joined("noise_change_high"),
        "noise_change_ratio": joined("noise_change_ratio"),
        "at_bound": joined("edge").any(-1),
        "frequency_probability": intervals("chosen")[3],
    }
    samples = None
    if bars.method != "laplace":
        drawn, told = joined("draws"), ("rhat", "ess") if bars.posterior else ()
        quality = {key: joined(key) for key in told}
        samples = Samples(method=bars.method, names=names, draws=drawn, **quality)
        diagnostics["error_bars"] = np.full(len(data), bars.method)
    if bars.posterior:
        diagnostics["rhat"] = joined("rhat").max(-1)
        diagnostics["effective_draws"] = np.nanmin(joined("ess"), -1)
        diagnostics["well_sampled"] = joined("well_sampled")
    if isinstance(form, Sinusoids) and form.count > 1:
        diagnostics["unresolved"] = joined("unresolved")
    if parts[0]["labels"] is not None:
        diagnostics["inferred_label"] = np.concatenate([p["labels"] for p in parts])
    others = intervals("chosen")[4]
    status = [
        describe(
            {k: v[i] for k, v in diagnostics.items()},
            frequencies=others[i][np.isfinite(others[i])],
            unfinished=bool(prior.metadata.get("unfinished")),
            on_bound={
                name: kinds[name]
                for name, at in zip(form.curved, edge, strict=True)
                if at
            },
            tried=bool(tried),
            learned=prior.learned,
        )
        for i, (tried, edge) in enumerate(
            zip(joined("tried"), joined("edge"), strict=True)
        )
    ]
    result = Separation(
        parameters=table("chosen"),
        covariance=intervals("chosen")[1],
        sample_rate=rate,
        measurement=data,
        signal=joined("signal"),
        coherent=_plus(joined("coherent"), prior.level),
        whitened=white,
        signal_band=joined("band"),
        spectrum_frequency=parts[0]["frequency"].cpu().numpy(),
        spectrum_loglik=joined("spectrum"),
        baselines={"gls": table("gls"), "robust": table("robust")},
        status=status,
        diagnostics=diagnostics,
        prior_info=prior_info(prior),
        samples=samples,
    )
    return result.select(0) if single else result


def _plus(waves: np.ndarray, level: float) -> np.ndarray:
    """Waves (B, N) on a level; one number seen B N times where there are no waves."""
    if not any(waves.strides):
        return np.broadcast_to(np.float64(level), waves.shape)
    return waves + level


def _parameters(
    form: Form, values: np.ndarray, covariance: np.ndarray, ci95: np.ndarray
) -> dict[str, Parameter]:
    pairs = enumerate(zip(form.names, form.kinds, strict=True))
    return {
        name: Parameter(
            values[:, i], np.sqrt(covariance[:, i, i]), ci95[:, i], UNITS.get(kind, "")
        )
        for i, (name, kind) in pairs
    }


def prior_info(prior: Prior) -> dict[str, Any]:
    """What a result says about the prior it was made with."""
    wrapped = prior.prior if isinstance(prior, PlainPrior) else prior
    keep = ("seed", "data_hash", "heldout", "whitening")
    return {
        "name": wrapped.name,
        "window": wrapped.window,
        "sample_rate": wrapped.sample_rate,
        "n_latent": wrapped.n_latent,
        "level": wrapped.level,
        **{k: wrapped.metadata[k] for k in keep if k in wrapped.metadata},
    }
