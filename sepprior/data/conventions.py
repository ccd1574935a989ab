"""What attributes say about an array: conventions of netCDF, and sample rates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data.columns import RATE_NAMES, base_name
from sepprior.errors import SeppriorError

_RATE_UNITS = {"": 1.0, "hz": 1.0, "khz": 1e3, "mhz": 1e6, "ghz": 1e9, "sps": 1.0}
_RATE_UNITS |= {"s/s": 1.0, "sa/s": 1.0, "ks/s": 1e3, "ms/s": 1e6, "1/s": 1.0}
_STEP_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_STATED_RATES = {re.sub(r"[\W_]", "", name) for name in RATE_NAMES} | {
    "samplingfrequency",
    "samplefrequency",
    "samplingfreq",
    "samplefreq",
    "samplespersecond",
    "sfreq",
    "fsamp",
    "fsample",
    "framerate",
    "abtastrate",
    "abtastfrequenz",
}
_STATED_STEPS = {
    "dt",
    "deltat",
    "timestep",
    "sampleinterval",
    "samplinginterval",
    "sampleperiod",
    "samplingperiod",
    "wfincrement",  # of TDMS
    "xinc",
    "xincr",
    "xincrement",
    "increment",  # of Rigol
    "tinc",
    "deltax",  # of LabVIEW
    "abtastintervall",
}
_STATED = {"rate": "sample rate", "step": "time between samples"}
_SPELLED = re.compile(r"(.*?)[\s_(\[]*(hz|khz|mhz|ms|us|µs|ns|s)?[)\]]*")


def rate_name(name: str) -> tuple[str, float] | None:
    """Whether a name states the sample rate, "rate", or its inverse, "step".

    Returns:
        Which of the two, and its unit in Hz or s; None for another name.
    """
    name = base_name(name).lower()
    found = _SPELLED.fullmatch(name)
    for stem, unit in ((name, ""), (found[1], found[2] or "") if found else ("", "")):
        stem = re.sub(r"[\W_]", "", stem)
        if stem in _STATED_RATES and unit in _RATE_UNITS:
            return "rate", _RATE_UNITS[unit]
        if stem in _STATED_STEPS and unit in _STEP_UNITS:
            return "step", _STEP_UNITS[unit]
    return None


def rate_in(attributes: Mapping[str, Any], *, source: str) -> float | None:
    """Sample rate in Hz among named single values, None without one.

    Raises:
        SeppriorError: it is not a positive number, or two of them disagree.
    """
    rates: dict[str, float] = {}
    for name, value in attributes.items():
        known = rate_name(str(name))
        if known is None or np.size(value) != 1:
            continue
        stated = _number(value, _RATE_UNITS if known[0] == "rate" else _STEP_UNITS)
        if stated is None or not (np.isfinite(stated) and stated > 0):
            shown = str(np.ravel(value)[0])[:40].removesuffix(".0")
            raise SeppriorError(
                f"{source}: '{name}' states a {_STATED[known[0]]} of {shown}; "
                "expected a positive number"
            )
        stated *= known[1]
        rates[str(name)] = stated if known[0] == "rate" else 1.0 / stated
    if not rates:
        return None
    (first, rate), *others = rates.items()
    for name, other in others:
        if abs(other - rate) > 1e-3 * rate:
            raise SeppriorError(
                f"{source}: '{first}' states a sample rate of {rate:.6g} Hz, but "
                f"'{name}' {other:.6g} Hz; correct one of them"
            )
    return rate


def _number(value: Any, units: Mapping[str, float]) -> float | None:
    """A number, also as text with a unit, such as "1 kHz"; None for anything else."""
    value = np.ravel(value)[0]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        try:
            return float(value)
        except (TypeError, ValueError):
            return None
    found = re.fullmatch(r"\s*([-+0-9.eE]+)\s*(\S*)\s*", value)
    try:
        return float(found[1]) * units[found[2].lower()] if found else None
    except (ValueError, KeyError):
        return None


class Decoded:
    """An array that is read through the conventions of netCDF, slice by slice.

    Values equal to `_FillValue` or `missing_value`, or outside the valid range, are
    NaN; the others are ``scale_factor * value + add_offset``.

    Args:
        source: array-like, shape (M,) or (n, M).
        missing: stored values that mean "missing".
        low: lowest stored value that is valid.
        high: highest stored value that is valid.
        scale: units per stored value.
        offset: value of a stored 0.
    """

    dtype = np.dtype(np.float64)

    def __init__(
        self,
        source: Any,
        *,
        missing: NDArray[Any],
        low: float = -np.inf,
        high: float = np.inf,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        self._source, self._missing = source, missing
        self._low, self._high = low, high
        self._scale, self._offset = scale, offset
        self.shape = source.shape
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[np.float64]:
        raw = np.asarray(self._source[key])
        values = raw.astype(np.float64)
        bad = np.isin(raw, self._missing) | (values < self._low) | (values > self._high)
        values = values * self._scale + self._offset
        values[bad] = np.nan
        return values


def decoded(source: Any, attributes: Mapping[str, Any]) -> Any:
    """An array as its attributes say it is to be read; itself, where they say nothing.

    Args:
        source: array-like, shape (M,) or (n, M).
        attributes: `_FillValue`, `missing_value`, `valid_min`, `valid_max`,
            `valid_range`, `scale_factor` and `add_offset` are used.
    """

    def numbers(*names: str) -> list[float]:
        found = [np.ravel(attributes[name]) for name in names if name in attributes]
        return [v for part in found for v in part if np.asarray(v).dtype.kind in "iuf"]

    missing = np.array(numbers("_FillValue", "missing_value", "FillValue"))
    if source.dtype.kind == "f":  # as the stored values are rounded
        missing = missing.astype(source.dtype)
    low, high = numbers("valid_min"), numbers("valid_max")
    if len(both := numbers("valid_range")) == 2:
        low, high = both[:1], both[1:]
    scale, offset = numbers("scale_factor"), numbers("add_offset")
    if not (len(missing) or low or high or scale or offset):
        return source
    return Decoded(
        source,
        missing=missing,
        low=low[0] if low else -np.inf,
        high=high[0] if high else np.inf,
        scale=scale[0] if scale else 1.0,
        offset=offset[0] if offset else 0.0,
    )
