"""Arrays as people hold them, made plain: numbers with NaN where a sample is missing.

NumPy (masked, structured), torch, pandas and xarray, alone or in lists. What an array
says about itself is kept: masked values become NaN, an index of times gives the sample
rate and the gaps. What cannot be kept is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data.clock import fit_clock
from sepprior.data.columns import role_of, seconds_per_unit
from sepprior.data.conventions import decoded, rate_in
from sepprior.data.gaps import fill_gaps
from sepprior.data.screening import screened
from sepprior.data.series import MIN_SAMPLES, Run, sample_number
from sepprior.errors import SeppriorError
from sepprior.rates import RATE_TOLERANCE

_NAMED = 6  # columns named in an error message


@dataclass(frozen=True, eq=False)
class Given:
    """Samples that were handed over in memory.

    Attributes:
        values: real numbers, shape (M,) or (n, M); NaN where missing.
        sample_rate: rate in Hz that came with them, None without one.
    """

    values: NDArray[Any]
    sample_rate: float | None = None

    def rate(self, stated: float | None, *, what: str) -> float | None:
        """The sample rate: as stated by the caller, else the array's own.

        Raises:
            SeppriorError: the two differ.
        """
        own = self.sample_rate
        if stated is None or own is None:
            return own if stated is None else stated
        if not abs(stated - own) <= RATE_TOLERANCE * own:
            raise SeppriorError(
                f"{what}: sample_rate is {stated:.6g} Hz, but its own times give "
                f"{own:.6g} Hz; leave sample_rate out or correct it"
            )
        return stated


def given(item: Any, *, what: str) -> Given:
    """Make an array, a labelled series or a list of them plain.

    Args:
        item: shape (M,) or (n, M): array-like of NumPy or torch; a Series or a
            DataFrame of pandas with one column of samples (and one of times); a
            DataArray of xarray; a structured array with such fields; or a list of
            series of one length.
        what: begins error messages.

    Raises:
        SeppriorError: no real numbers, another shape, or labels that cannot be used.
    """
    found = _plain(item, what=what)
    shape = found.values.shape
    if len(shape) == 2 and shape[1] == 1 and shape[0] > 1:
        found, shape = replace(found, values=found.values[:, 0]), shape[:1]
    if len(shape) not in (1, 2):
        kind = f"has shape {shape}" if shape else f"is of type {type(item).__name__}"
        raise SeppriorError(
            f"{what} {kind}; give one series (N,), or (B, N) with a series in each row"
        )
    if len(shape) == 2 and shape[1] < MIN_SAMPLES <= shape[0]:
        raise SeppriorError(
            f"{what} has shape {shape}: {shape[0]} rows of {shape[1]} samples; give a "
            "series in each row: choose a column, or transpose it"
        )
    if time_row(found.values) is not None:
        raise SeppriorError(
            f"{what}, row 0: rises in equal steps, as times do; give the samples "
            "without the times, and sample_rate in Hz"
        )
    return replace(found, values=_screened(found.values, what=what))


def _screened(values: NDArray[Any], *, what: str) -> NDArray[Any]:
    """Samples without numbers that are no readings."""
    if values.ndim == 1:
        return np.asarray(screened(values, what=what, where=sample_number)[0])
    before = list(values)
    rows = [_screened(row, what=f"{what}, row {k}") for k, row in enumerate(before)]
    same = all(row is old for row, old in zip(rows, before, strict=True))
    return values if same else np.stack(rows)


def is_list(item: Any) -> bool:
    """Whether this is a list of series, not of numbers."""
    return isinstance(item, list | tuple) and any(
        isinstance(part, list | tuple) or np.ndim(part) for part in item[:1]
    )


def time_row(values: Any) -> int | None:
    """0 where the first of a few rows is a time axis: rising in equal steps.

    Another row has to be otherwise. Of long rows the beginning is looked at.
    """
    shape = values.shape
    if len(shape) != 2 or not 2 <= shape[0] < MIN_SAMPLES <= shape[1]:
        return None
    head = np.asarray(values[:, : 2**16], dtype=np.float64)
    steps = np.diff(head, axis=1)
    with np.errstate(invalid="ignore"):
        ramps = (steps > 0).all(1) & (np.ptp(steps, axis=1) < 0.01 * steps.mean(1))
    return 0 if ramps[0] and not ramps.all() else None


def _plain(item: Any, *, what: str) -> Given:
    """As `given`, of any shape."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(item, pandas.DataFrame):
        return _frame(item, what=what)
    if pandas is not None and isinstance(item, pandas.Series):
        numeric = pandas.api.types.is_numeric_dtype(item) and item.dtype.kind != "c"
        values = (
            item.to_numpy(dtype=np.float64, na_value=np.nan)
            if numeric
            else item.to_numpy()
        )
        index = item.index
        if isinstance(index, pandas.PeriodIndex):
            index = index.to_timestamp()
        if isinstance(index, pandas.DatetimeIndex):
            index = (
                index.tz_localize(None) if index.tz is None else index.tz_convert(None)
            )
        return _on_index(
            _real(values, what=what),
            None if isinstance(index, pandas.RangeIndex) and index.step == 1 else index,
            what=what,
        )
    if hasattr(item, "data_vars"):
        raise SeppriorError(
            f"{what} is a dataset of {_names(item.data_vars)}; give one of them"
        )
    if hasattr(item, "dims") and hasattr(item, "coords"):
        return _data_array(item, what=what)
    if hasattr(item, "detach"):
        return Given(_real(_of_tensor(item, what=what), what=what))
    if is_list(item):
        return _stacked(item, what=what)
    try:
        array = item if isinstance(item, np.ndarray) else np.asanyarray(item)
    except (ValueError, TypeError, OverflowError) as error:
        raise SeppriorError(
            f"{what} cannot be read as an array of numbers ({error}); give real "
            "numbers (N,) or (B, N)"
        ) from error
    if array.dtype.names:
        return _fields(array, what=what)
    values = _real(array, what=what)
    attributes = getattr(item, "attrs", None)  # of a dataset of HDF5 or Zarr
    if not isinstance(attributes, Mapping):
        return Given(values)
    return Given(decoded(values, attributes)[:], rate_in(attributes, source=what))


def _real(array: Any, *, what: str) -> NDArray[Any]:
    """Real numbers, NaN where they are masked or None."""
    mask = getattr(array, "mask", None)
    if not isinstance(mask, np.ndarray | np.bool_) or not np.any(mask):
        mask = None
    values = np.asarray(array)
    if values.dtype.kind == "b":
        values = values.astype(np.float64)
    if values.dtype.kind == "O":
        values = _of_objects(values, what=what)
    if values.dtype.kind not in "iuf":
        raise SeppriorError(
            f"{what} holds values of type {values.dtype}; give real numbers (N,) or "
            "(B, N)"
        )
    if mask is not None:
        values = np.where(mask, np.nan, values.astype(np.float64))
    return values


def _of_objects(values: NDArray[Any], *, what: str) -> NDArray[np.float64]:
    """Numbers among Python objects; None and NA are missing."""
    pandas = sys.modules.get("pandas")
    nothing = (None, np.ma.masked, *((pandas.NA, pandas.NaT) if pandas else ()))
    flat = np.empty(values.size)
    for place, value in enumerate(values.ravel()):
        if any(value is none for none in nothing):
            flat[place] = np.nan
        elif isinstance(value, Real | Decimal | np.bool_):
            flat[place] = float(value)
        else:
            raise SeppriorError(
                f"{what} holds values of type {type(value).__name__}; give real "
                "numbers (N,) or (B, N)"
            )
    return flat.reshape(values.shape)


def _of_tensor(item: Any, *, what: str) -> NDArray[Any]:
    if item.is_meta:
        raise SeppriorError(
            f"{what} is a tensor on the device 'meta', which holds no numbers"
        )
    item = item.detach()
    if item.is_quantized:
        item = item.dequantize()
    item = item.to_dense() if item.is_sparse or "sparse" in str(item.layout) else item
    item = item.cpu().resolve_conj().resolve_neg()
    if item.is_floating_point() and str(item.dtype)[6:] not in ("float64", "float32"):
        item = item.double()  # NumPy has no bfloat16
    return item.numpy()


def _stacked(items: Any, *, what: str) -> Given:
    """Series of one length as rows."""
    rows = [_plain(row, what=f"{what}, row {k}") for k, row in enumerate(items)]
    shapes = {row.values.shape for row in rows}
    if len(shapes) > 1:
        raise SeppriorError(
            f"{what}: rows differ in length, their shapes are "
            f"{', '.join(map(str, sorted(shapes)[:4]))}; give rows of one length, or "
            "one after the other"
        )
    rates = {row.sample_rate for row in rows if row.sample_rate is not None}
    if rates and max(rates) - min(rates) > RATE_TOLERANCE * min(rates):
        raise SeppriorError(
            f"{what}: rows differ in their sample rates, {min(rates):.6g} to "
            f"{max(rates):.6g} Hz; give rows of one rate"
        )
    return Given(np.stack([row.values for row in rows]), min(rates, default=None))


def _frame(frame: Any, *, what: str) -> Given:
    """A table with one column of samples, and perhaps one of times."""
    names = [str(name) for name in frame.columns]
    roles = [role_of(name) for name in names]
    samples = [k for k, role in enumerate(roles) if role != "time"]
    if len(samples) != 1 or len(names) > 2:
        raise SeppriorError(
            f"{what} is a DataFrame with the columns {_names(names)}; give one of them "
            "(x['NAME']), or rows of samples as an array (x.to_numpy().T)"
        )
    series = frame.iloc[:, samples[0]]
    if "time" in roles:
        series = series.set_axis(frame.iloc[:, roles.index("time")].to_numpy())
        series.index.name = names[roles.index("time")]
    return _plain(series, what=what)


def _fields(array: NDArray[Any], *, what: str) -> Given:
    """The field of a structured array that holds the samples."""
    names = array.dtype.names or ()
    roles = [role_of(name) for name in names]
    samples = [name for name, role in zip(names, roles, strict=True) if role != "time"]
    if len(samples) != 1:
        raise SeppriorError(
            f"{what} is a structured array with the fields {_names(names)}; give one "
            "of them (x['NAME'])"
        )
    values = _real(array[samples[0]], what=what)
    if "time" not in roles:
        return Given(values)
    name = names[roles.index("time")]
    times = _real(array[name], what=f"{what}, {name}") * seconds_per_unit(name)
    return _on_times(values, times, what=what)


def _data_array(item: Any, *, what: str) -> Given:
    """An array of xarray, with the coordinate of its last dimension, or of `time`."""
    times = [dim for dim in item.dims if role_of(str(dim)) == "time"]
    if times and item.dims[-1] != times[0]:
        item = item.transpose(*(d for d in item.dims if d != times[0]), times[0])
    index = None
    if item.dims and item.dims[-1] in item.coords:
        coordinate = item.coords[item.dims[-1]]
        index = np.asarray(coordinate.values).view(_Named)
        unit = getattr(coordinate, "attrs", {}).get("units", "")
        index.name = f"{item.dims[-1]} {unit}".strip()
    values = decoded(_real(item.values, what=what), item.attrs)[:]
    found = _on_index(values, index, what=what)
    stated = rate_in(item.attrs, source=what)
    return replace(found, sample_rate=found.rate(stated, what=what))


class _Named(np.ndarray):
    """An array with a name, as an index of pandas has."""

    name: str = ""


def _on_index(values: NDArray[Any], index: Any, *, what: str) -> Given:
    """Samples (..., M) with the labels of their last dimension, (M,)."""
    if index is None or values.shape[-1] < 2:
        return Given(values)
    labels, name = np.asarray(index), str(getattr(index, "name", None) or "")
    kind = labels.dtype.kind
    if kind == "M":
        labels, kind = labels - labels[0], "m"
    if kind == "m":
        return _on_times(values, labels / np.timedelta64(1, "s"), what=what)
    if kind == "f" or (kind in "iu" and role_of(name) == "time"):
        times = labels.astype(np.float64) * seconds_per_unit(name)
        return _on_times(values, times, what=what)
    if kind in "iu":
        steps = np.diff(labels.astype(np.int64))
        if (steps == 1).all():
            return Given(values)
        if steps.min() == 1 and steps.sum() < 10 * len(labels):  # rows were dropped
            places = np.concatenate([[0], steps.cumsum()])
            filled = np.full((*values.shape[:-1], places[-1] + 1), np.nan)
            filled[..., places] = values
            return Given(filled)
    raise SeppriorError(
        f"{what} has an index that is neither times nor consecutive numbers "
        f"({labels[0]}, {labels[1]}, ...): order it, or drop it with to_numpy() and "
        "give sample_rate"
    )


def _on_times(values: NDArray[Any], times: NDArray[Any], *, what: str) -> Given:
    """Samples (..., M) on a uniform grid, NaN where the times (M,) skip some."""
    runs = (Run(0, len(times)),)
    clock = fit_clock(times, runs, what=f"{what}, its times", where=sample_number)
    filled = [
        fill_gaps(row, clock.pieces, clock, what=what, locate=sample_number)[:]
        for row in np.atleast_2d(values).astype(np.float64)
    ]
    whole = filled[0] if values.ndim == 1 else np.stack(filled)
    return Given(whole, clock.sample_rate)


def _names(names: Any) -> str:
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:_NAMED])
    hidden = len(listed) - _NAMED
    return f"{shown} and {hidden} more" if hidden > 0 else shown
