"""Error bars measured instead of trusted: known sinusoids injected into real noise.

The Laplace approximation is exact only for a linear prior that is right. What is left
is measured once, when a prior is trained: sinusoids of known parameters are added to
recorded noise, separated, and the errors in units of their error bars give the factors
by which 68 % and 95 % intervals must be widened or may be narrowed. They depend on the
frequency (structure lives at some frequencies and not at others), so they are measured
in bands of cycles per window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepprior.inference.least_squares import Fit
from sepprior.inference.own_level import log_level
from sepprior.inference.pipeline import Answer, Outcome, analyse
from sepprior.inference.record import Record, lay_out
from sepprior.priors import Prior
from sepprior.signals import Geometry, Sinusoids, to_polar, wrap_phase

KINDS = ("amplitude", "frequency", "phase", "bias")
Q68, Q95 = 0.6827, 0.95
Z95 = 1.959964
BANDS = ((1.0, 1.6), (1.6, 2.5), (2.5, 8.0), (8.0, 36.0), (36.0, math.inf))
"""Cycles per window; the last one ends at 0.45 of the sample rate."""
SIGNAL_TO_NOISE = (8.0, 100.0)
"""Amplitude over its GLS standard error, log-uniform."""
BATCH = 100
TRIALS_PER_WINDOW, FEWEST_TRIALS = 10, 200
"""Most injections in a band for each window of noise, but so many at least."""
UNSEEN_SHARE = 4
"""One injection in held-out noise for so many in all noise."""

Crops = Callable[[int], np.ndarray]
"""Gives n windows of noise, (n, N), data units."""


def trials_per_band(window: int, *, joint: bool) -> int:
    """Injections per band: many for least squares, fewer where each costs more."""
    most, samples = (400, 200_000) if joint else (1500, 750_000)
    return int(min(most, max(40, samples // window)))


def measure_calibration(
    prior: Prior,
    crops: Crops,
    *,
    joint: bool,
    seed: int,
    n_windows: int | None = None,
    unseen: Crops | None = None,
    n_unseen: int = 0,
    done: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Factors for the error bars, from injections.

    Few windows are held out: a factor from them alone would be uncertain by a tenth.
    The factors are therefore measured on all noise; what a network is worse by on noise
    it has not seen is measured over all bands together, and multiplies them where it is
    significant.

    Args:
        prior: the prior to calibrate.
        crops: windows of noise.
        joint: calibrate the joint solver, else GLS and the robust fit.
        seed: of the injected parameters.
        n_windows: windows of noise there are, so that few are not drawn too often.
        unseen: windows of noise the prior has not seen, if there are enough.
        n_unseen: how many of them are independent.
        done: told the share of the injections that has been made since the last time.

    Returns:
        ``{"cycles": [...], "joint": {"amplitude": {"q68": [...], "q95": [...]}, ...},
        ...}``, factors on one standard error and on the 95 % half-width.
    """
    rng = np.random.default_rng(seed)
    n = prior.window
    bands = [(low, min(high, 0.45 * n)) for low, high in BANDS if low < 0.45 * n]
    count = trials_per_band(n, joint=joint)
    if n_windows is not None:
        count = min(count, max(FEWEST_TRIALS, TRIALS_PER_WINDOW * n_windows))
    few = -(-count // UNSEEN_SHARE) if unseen is not None else 0
    total = len(bands) * (count + few)

    def made(n: int) -> None:
        done(n / total)

    errors, levels = _errors(prior, crops, bands, count, made, joint=joint, rng=rng)
    fresh = {}
    if unseen is not None:
        fresh, levels = _errors(prior, unseen, bands, few, made, joint=joint, rng=rng)
    table: dict[str, Any] = {"cycles": [math.sqrt(a * b) for a, b in bands]}
    for method, parts in errors.items():
        table[method] = {}
        for i, kind in enumerate(KINDS):
            own = [z[:, i] for z in parts]
            new = np.concatenate([z[:, i] for z in fresh.get(method, [])] or [[]])
            table[method][kind] = {
                name: _worse(new, own, level, expected, n_unseen)
                * _factors(own, level, expected)
                for name, level, expected in (("q68", Q68, 1.0), ("q95", Q95, Z95))
            }
    table["joint" if joint else "gls"]["level"] = _typical(levels)
    return _as_lists(table)


def _typical(levels: np.ndarray) -> list[float]:
    """Median and half the width of the middle 68 % of levels (n,)."""
    low, middle, high = np.quantile(levels, [0.5 - Q68 / 2, 0.5, 0.5 + Q68 / 2])
    return [float(middle), max(0.5 * float(high - low), 1e-6)]


def _errors(
    prior: Prior,
    crops: Crops,
    bands: list[tuple[float, float]],
    count: int,
    made: Callable[[int], object],
    *,
    joint: bool,
    rng: np.random.Generator,
) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    """Absolute standardised errors (n, 4) of each method in each band, and levels.

    The latter are `log_level` of all injections.
    """
    methods = ("joint",) if joint else ("gls", "robust")
    found: dict[str, list[np.ndarray]] = {m: [] for m in methods}
    levels = []
    for low, high in bands:
        errors: dict[str, list[np.ndarray]] = {m: [] for m in methods}
        left = count
        while left > 0:
            here = min(left, BATCH)
            left -= here
            cycles = np.exp(rng.uniform(math.log(low), math.log(high), here))
            f = cycles * prior.sample_rate / prior.window
            x, truth = draw_injections(prior, crops(here), f, rng)
            outcome = analyse_batch(prior, x, f, joint=joint)
            levels.append(log_level(outcome).cpu().numpy())
            made(here)
            for method in methods:
                answer = getattr(outcome, method)
                errors[method].append(
                    standardised_errors(answer, outcome.record, truth)
                )
        for method, parts in errors.items():
            found[method].append(np.abs(np.concatenate(parts)))
    return found, np.concatenate(levels)


def _factors(bands: list[np.ndarray], level: float, expected: float) -> np.ndarray:
    """One factor per band, from the |z| (n,) of each.

    That of all bands together is drawn towards 1, those of the bands towards it.
    """
    pooled = _factor(np.concatenate(bands), level, expected)
    return np.array([_factor(z, level, expected, about=pooled) for z in bands])


def _factor(z: np.ndarray, level: float, expected: float, about: float = 1.0) -> float:
    """Quantile of |z| over its Gaussian value, drawn towards `about`.

    The deviation is multiplied by ``1 - variance / deviation^2`` (positive-part James
    and Stein 1961), so that exact error bars are not spoilt by counting noise.
    """
    spread = about * _relative_error(len(z), level, expected)
    return about + _shrunk(float(np.quantile(z, level)) / expected - about, spread)


def _worse(
    fresh: np.ndarray,
    bands: list[np.ndarray],
    level: float,
    expected: float,
    independent: int,
) -> float:
    """Quantile of |z| on unseen noise over that on all noise, drawn towards 1.

    Never below 1: nothing is learned better for not having been seen, so that a smaller
    quantile is the luck of few windows.
    """
    if not len(fresh):
        return 1.0
    ratio = np.quantile(fresh, level) / np.quantile(np.concatenate(bands), level)
    spread = _relative_error(min(len(fresh), independent), level, expected)
    return 1.0 + _shrunk(max(0.0, float(ratio) - 1.0), spread)


def _relative_error(count: int, level: float, expected: float) -> float:
    """Standard error of a Gaussian quantile of |z|, over the quantile."""
    density = 2.0 * math.exp(-0.5 * expected**2) / math.sqrt(2.0 * math.pi)
    return math.sqrt(level * (1.0 - level) / max(1, count)) / (density * expected)


def _shrunk(deviation: float, spread: float) -> float:
    return deviation * max(0.0, 1.0 - spread**2 / max(deviation**2, 1e-12))


def _as_lists(value: Any) -> Any:
    """Arrays within nested dictionaries as lists, for JSON."""
    if isinstance(value, dict):
        return {name: _as_lists(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def draw_injections(
    prior: Prior, noise: np.ndarray, frequency: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Known sinusoids in noise, of amplitudes that suit its level at each frequency.

    Args:
        prior: gives the resolution of least squares.
        noise: windows (B, N), data units.
        frequency: shape (B,), Hz.
        rng: of amplitudes, phases and biases.

    Returns:
        Measurements (B, N), and amplitude, frequency, phase and bias, (B, 4).
    """
    count, n = noise.shape
    rate = prior.sample_rate
    phase = rng.uniform(-math.pi, math.pi, count)
    sd = float(prior.autocovariance[0]) ** 0.5
    # Amplitudes in units of what least squares resolves at that frequency.
    probe = analyse_batch(
        prior,
        _signal(frequency, np.full(count, sd), phase, n, rate) + prior.level,
        frequency,
        joint=False,
    )
    resolution = _natural(probe.gls, probe.record)[1][:, 0, 0].sqrt().cpu().numpy()
    low, high = (math.log(v) for v in SIGNAL_TO_NOISE)
    amplitude = resolution * np.exp(rng.uniform(low, high, count))
    bias = rng.normal(0.0, sd, count)
    x = noise + _signal(frequency, amplitude, phase, n, rate) + bias[:, None]
    return x, np.stack([amplitude, frequency, phase, bias], 1)


def _signal(
    frequency: np.ndarray, amplitude: np.ndarray, phase: np.ndarray, n: int, rate: float
) -> np.ndarray:
    t = np.arange(n) / rate
    angle = 2.0 * np.pi * frequency[:, None] * t + phase[:, None]
    return amplitude[:, None] * np.sin(angle)


def analyse_batch(
    prior: Prior, x: np.ndarray, frequency: np.ndarray, *, joint: bool
) -> Outcome:
    """Fit measurements (B, N) whose frequencies are known to within 1.5 / T."""
    record, form = near(prior, x, frequency)
    return analyse(
        prior,
        record,
        form=form,
        generator=torch.Generator().manual_seed(0),
        guess=torch.from_numpy(frequency).to(prior.device)[:, None],
        joint=joint,
    )


def near(
    prior: Prior, x: np.ndarray, frequency: np.ndarray
) -> tuple[Record, Sinusoids]:
    """Measurements (B, N), and a sinusoid within 1.5 / T of each one's frequency."""
    record = lay_out(
        torch.from_numpy(x).to(prior.device),
        window=prior.window,
        level=prior.level,
        sample_rate=prior.sample_rate,
    )
    reach = 1.5 / record.duration
    f = torch.from_numpy(frequency).to(prior.device)[:, None]
    form = Sinusoids(
        1,
        _geometry(record),
        low=(f - reach).clamp_min(0.3 / record.duration),
        high=(f + reach).clamp_max(0.499 * prior.sample_rate),
    )
    return record, form


def _geometry(record: Record) -> Geometry:
    return Geometry(record.length, record.sample_rate)


def _natural(answer: Answer | Fit, record: Record) -> tuple[Tensor, Tensor]:
    """Amplitude, frequency, phase, bias (B, 4) and their covariance."""
    return to_polar(answer.theta, answer.covariance, middle=record.middle)


def standardised_errors(
    answer: Answer | Fit, record: Record, truth: np.ndarray
) -> np.ndarray:
    """(estimate - truth) / standard error, (B, 4); lost frequencies left out."""
    values, covariance = _natural(answer, record)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    error = values - torch.from_numpy(truth).to(values)
    error[:, 2] = wrap_phase(error[:, 2])
    found = error[:, 1].abs() < 0.5 / record.duration
    return (error / sd)[found].cpu().numpy()


def factors(
    calibration: dict[str, Any] | None, method: str, kind: str, cycles: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors on the standard error and on the 95 % half-width over it.

    Args:
        calibration: from `measure_calibration`, or None for factors of 1 and 1.96.
        method: "joint", "gls" or "robust".
        kind: "amplitude", "frequency", "phase" or "bias".
        cycles: frequency in cycles per window, any shape.

    Returns:
        Two tensors of that shape: standard error factor, 95 % half-width in units of
        the *uncorrected* standard error.
    """
    if not calibration or method not in calibration:
        return torch.ones_like(cycles), torch.full_like(cycles, Z95)
    at = np.log(np.asarray(calibration["cycles"]))
    where = cycles.clamp_min(1e-9).log().cpu().numpy()
    entry = calibration[method][kind]
    one = np.interp(where, at, entry["q68"])
    two = np.interp(where, at, entry["q95"]) * Z95
    return torch.from_numpy(one).to(cycles), torch.from_numpy(two).to(cycles)
