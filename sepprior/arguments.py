"""What `separate` is called with: checked before anything is computed."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sepprior.data import MIN_SAMPLES, given
from sepprior.errors import (
    SeppriorError,
    mapping,
    one_of,
    real_number,
    shown,
    whole_number,
)

MOST_COMPONENTS = 40
"""Sinusoids that are fitted together: of more the search takes minutes."""
MOST_STARTS = 1000
OBJECTIVES = ("joint", "plain")


@dataclass(frozen=True, eq=False)
class Checked:
    """Measurements (B, N), float64, NaN where missing, that were checked before."""

    rows: np.ndarray


def checked_measurements(
    x: ArrayLike | Tensor | Checked, *, sample_rate: float | None
) -> tuple[bool, np.ndarray, float | None]:
    """Measurements as (B, N) float64, and what is known of them.

    A copy, but of a read-only array, which nobody will change.

    Returns:
        Whether there was a single one; the measurements; the sample rate in Hz that
        was given or came with them, None without one.
    """
    if isinstance(x, Checked):
        return False, x.rows, sample_rate
    found = given(x, what="x")
    raw = found.values
    data = np.ascontiguousarray(np.atleast_2d(raw))
    if data.flags.writeable or data.dtype != np.float64:
        data = data.astype(np.float64)
    if not len(data):
        raise SeppriorError(f"x has shape {raw.shape}: no measurement; give at least 1")
    for index, row in enumerate(data):
        name = "x" if raw.ndim == 1 else f"measurement {index} of x"
        _check_row(row, name)
    return raw.ndim == 1, data, found.rate(sample_rate, what="x")


def tensor_of(data: np.ndarray, device: torch.device) -> Tensor:
    """Measurements as a tensor that is not written to; on a CPU they share memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(data).to(device)


def _check_row(row: np.ndarray, name: str) -> None:
    infinite = np.isinf(row)
    if infinite.any():
        raise SeppriorError(
            f"{name} has {infinite.sum()} infinite values, the first at sample "
            f"{int(infinite.argmax())}; mark missing samples with NaN"
        )
    present = len(row) - int(np.isnan(row).sum())
    if present < MIN_SAMPLES:
        raise SeppriorError(
            f"{name} has {present} samples that are not NaN; "
            f"at least {MIN_SAMPLES} are needed"
        )
    low, high = np.nanmin(row), np.nanmax(row)
    if low == high:
        raise SeppriorError(
            f"{name} is constant ({low:.6g}): there is nothing to separate; "
            "check the column and the instrument"
        )


def checked_band(
    fmin: float | None, fmax: float | None, rate: float, n: int
) -> tuple[float, float]:
    """The band searched, Hz, with its defaults filled in; `n` samples at `rate`."""
    nyquist = 0.5 * rate
    low = rate / n if fmin is None else real_number("fmin", fmin)
    high = nyquist * (1.0 - 1.0 / n) if fmax is None else real_number("fmax", fmax)
    if not 0.0 < low < high < nyquist:
        raise SeppriorError(
            f"the band {low:.6g} to {high:.6g} Hz cannot be searched: give 0 < fmin < "
            f"fmax < {nyquist:.6g} Hz, half the sample rate"
        )
    return low, high


def check_options(
    *,
    signal: object,
    components: object,
    objective: object,
    starts: object,
    seed: object,
    fmin: object,
    fmax: object,
    **known: object,
) -> None:
    """Refuse options of a fit that cannot be used, whatever is fitted.

    `known` are bounds, fixed, guess and expected.
    """
    if not (isinstance(components, str) and components == "auto"):
        whole_number("components", components, most=MOST_COMPONENTS)
    one_of("objective", objective, OBJECTIVES)
    if starts is not None:
        whole_number("starts", starts, most=MOST_STARTS)
    whole_number("seed", seed, least=0)
    for name, value in (("fmin", fmin), ("fmax", fmax)):
        if value is not None:
            real_number(name, value)
    for name, values in known.items():
        mapping(name, values)
    check_signal(signal, components, fmin=fmin, fmax=fmax)


def check_freedom(parameters: int, data: np.ndarray) -> None:
    """Refuse to fit as many parameters as there are samples.

    Args:
        parameters: that are not fixed.
        data: shape (B, N), NaN where missing.
    """
    fewest = int(np.isfinite(data).sum(-1).min())
    if parameters >= fewest:
        raise SeppriorError(
            f"{parameters} parameters cannot be fitted to {fewest} samples: give fewer "
            "components, fix parameters, or measure longer"
        )


def check_prior(prior: object, *, learned: bool = False) -> None:
    """Refuse what is not a noise prior.

    Args:
        prior: what was given for one.
        learned: it must be more than a stationary Gaussian.
    """
    if isinstance(prior, (str, os.PathLike)):
        raise SeppriorError(
            f"prior={shown(prior)}: a path was given; read it with "
            "sepprior.load_prior(path)"
        )
    members = ("window", "sample_rate", "level", "autocovariance", "sample", "metadata")
    if isinstance(prior, type) or not all(hasattr(prior, name) for name in members):
        raise SeppriorError(
            f"prior={shown(prior)}: expected a noise prior, from sepprior.load_prior "
            "or sepprior.train_noise"
        )


def check_signal(
    signal: object, components: object, *, fmin: object, fmax: object
) -> None:
    """Refuse a signal together with options that mean nothing for it."""
    if callable(signal):
        if isinstance(components, str) or components != 1:
            raise SeppriorError(
                f"components={components!r} means nothing for a function; "
                "write the components into it"
            )
        if fmin is not None or fmax is not None:
            raise SeppriorError(
                "fmin and fmax mean nothing for a function; give bounds of its "
                "parameters"
            )
    elif not isinstance(signal, str):
        raise SeppriorError(
            f"signal={shown(signal)}: give a name or a function f(t, a, b, ...)"
        )
    elif isinstance(components, str) and signal != "sinusoid":
        raise SeppriorError(
            f"components='auto' counts sinusoids; give the number for '{signal}'"
        )
