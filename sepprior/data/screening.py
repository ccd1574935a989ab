"""Numbers that are no readings: overloads, codes for "missing", readings stuck.

Instruments and loggers write a number where they have none. What is taken for one, and
made NaN:

- *overload*: further from the median than 1e12 interquartile ranges, or beyond 1e30
  where the others are below 1e25 (9.9E+37 of SCPI, 9.97e36 of netCDF, the largest
  floats). No converter has such a range.
- *code*: exactly a number of `_CODES` (-9999, -999.25, 32767, ...) that stands apart:
  further from all other values than these are from each other.
- *stuck*: one value, 16 times or more in a row, in data whose neighbours are otherwise
  equal in less than one pair of twenty; the chance of such a run is below 1e-15 per
  sample. Runs at the highest or lowest value stay, except a single one of 100 samples
  or more; so does a value that has a fifth of all samples, in three runs or more: it
  is a level of the data.

All else stays, also glitches of any other size, quantised data and square waves. That
samples are *clipped* is told: the highest or the lowest of more than 20 values occurs
ten times as often as the next ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sepprior.data.series import BLOCK, MIN_SAMPLES, Values, part_of
from sepprior.errors import SeppriorWarning

_CODES = np.unique(
    [
        sign * float(kind(code))
        for code in (99, 999, 999.25, 999.9, 999.99, 9999, 9999.9, 9999.99, 99999,
                     99999.9, 999999, 9999999, 32767, 32768, 65535, 2147483647,
                     2147483648, 4294967295, 9223372036854775807, 1e20)
        for sign in (-1.0, 1.0)
        for kind in (np.float64, np.float32)
    ]
)  # fmt: skip
_SMALLEST = np.abs(_CODES).min()
_TWICE = 900  # smaller codes have to occur more than once
_OVERLOAD, _USUAL = 1e30, 1e25
_APART = 1e12  # interquartile ranges
_STUCK, _AT_RAIL = 16, 100  # samples in a row
_EQUAL = 0.05  # pairs of neighbours
_LEVEL, _LEVEL_RUNS = 0.2, 3
_PROBES = 64


@dataclass(frozen=True, eq=False)
class Screened:
    """A series of which some numbers are no readings; a slice has NaN there.

    Attributes:
        values: the series as it was written.
        codes: numbers that mean "missing".
        low: numbers below it are overloads.
        high: numbers above it are overloads.
        spans: first sample of stuck readings and one past the last, shape (k, 2).
    """

    values: Values
    codes: NDArray[np.float64]
    low: float
    high: float
    spans: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: slice) -> NDArray[np.float64]:
        first, last, _ = key.indices(len(self))
        values = np.array(self.values[first : max(first, last)], dtype=np.float64)
        bad = np.isin(values, self.codes) | (values < self.low) | (values > self.high)
        for start, stop in self.spans:
            bad[max(0, start - first) : max(0, stop - first)] = True
        values[bad] = np.nan
        return values

    def part(self, start: int, stop: int) -> Screened:
        """Samples `start` to `stop` as a series of their own, still unread."""
        return replace(
            self, values=part_of(self.values, start, stop), spans=self.spans - start
        )


class _Runs:
    """Long runs of one value, and how often neighbours are equal outside them."""

    def __init__(self) -> None:
        self.long: list[tuple[int, int, float]] = []
        self.samples = self.inside = self.equal = 0
        self._open: tuple[int, float] | None = None

    def add(self, block: NDArray[np.float64]) -> None:
        """Take in the next samples."""
        begin = self.samples
        self.samples += len(block)
        starts = np.flatnonzero(block[1:] != block[:-1]) + 1
        if self._open is None or block[0] != self._open[1]:
            self._close(begin)
            starts = np.concatenate([[0], starts])
        if not len(starts):
            return
        self._close(begin + int(starts[0]))
        lengths = np.diff(starts)
        for k in np.flatnonzero(lengths >= _STUCK):
            self._keep(begin + int(starts[k]), int(lengths[k]), float(block[starts[k]]))
        self.equal += int((lengths[lengths < _STUCK] - 1).sum())
        self._open = begin + int(starts[-1]), float(block[starts[-1]])

    def _close(self, at: int) -> None:
        if self._open is not None:
            start, value = self._open
            if at - start >= _STUCK:
                self._keep(start, at - start, value)
            else:
                self.equal += at - start - 1
        self._open = None

    def _keep(self, start: int, length: int, value: float) -> None:
        self.long.append((start, start + length, float(value)))
        self.inside += length

    def stuck(self, low: float, high: float) -> list[tuple[int, int, float]]:
        """Runs of readings that are stuck, in data from `low` to `high`."""
        self._close(self.samples)
        outside = self.samples - self.inside
        if outside < max(MIN_SAMPLES, len(self.long)):
            return []
        if not self.long or self.equal > _EQUAL * outside:
            return []
        stuck = []
        for value in {value for _, _, value in self.long}:
            runs = [run for run in self.long if run[2] == value]
            length = sum(stop - start for start, stop, _ in runs)
            if value in (low, high) and (len(runs) > 1 or length < _AT_RAIL):
                continue
            if len(runs) < _LEVEL_RUNS or length < _LEVEL * self.samples:
                stuck += runs
        return sorted(stuck)


def screened(
    values: Values, *, what: str, where: Callable[[int], str]
) -> tuple[Values, tuple[str, ...]]:
    """Leave out numbers that are no readings, with a warning that counts them.

    Args:
        values: samples, shape (M,), NaN where missing.
        what: file and column, to begin the warning with.
        where: names the place of a sample.

    Returns:
        The series, the same where nothing was found; and what was found.
    """
    probe = _probe(values)
    middle, quartiles = _middle(probe)
    reach = _APART * quartiles if quartiles > 0 else np.inf
    if abs(middle) + quartiles < _USUAL:
        reach = min(reach, _OVERLOAD)
    over, under = middle + reach, middle - reach
    low, high = np.inf, -np.inf
    present: dict[float, int] = {}
    overloads: list[float] = []
    n_overloads = 0
    runs = _Runs()
    for start in range(0, len(values), BLOCK):
        block = np.asarray(values[start : start + BLOCK])
        if block.dtype == np.float16:  # whose largest number is 65504
            block = block.astype(np.float64)
        runs.add(block)
        finite = block[np.isfinite(block)]
        beyond = (finite > over) | (finite < under)
        if beyond.any():
            n_overloads += int(beyond.sum())
            overloads += finite[beyond][:1].tolist()
            finite = finite[~beyond]
        if len(finite) and max(-finite.min(), finite.max()) < _SMALLEST:
            coded = np.zeros(len(finite), dtype=bool)  # the usual case, in no time
        else:
            coded = np.isin(finite, _CODES)
        if coded.any():
            for value, count in zip(
                *np.unique(finite[coded], return_counts=True), strict=True
            ):
                present[float(value)] = present.get(float(value), 0) + int(count)
            finite = finite[~coded]
        if len(finite):
            low, high = min(low, finite.min()), max(high, finite.max())
    codes = {
        code: count
        for code, count in present.items()
        if max(low - code, code - high) > high - low
        and np.isfinite(high - low)
        and (abs(code) > _TWICE or count > 1)
    }
    kept = [code for code in present if code not in codes]
    low, high = min([low, *kept]), max([high, *kept])
    stuck = [
        run
        for run in runs.stuck(low, high)
        if run[2] not in codes and under <= run[2] <= over
    ]
    notes = []
    if n_overloads:
        notes.append(f"{_samples(n_overloads)} out of range ({overloads[0]:.6g})")
    for code, count in sorted(codes.items()):
        notes.append(f"{_samples(count)} that say {code:.9g}")
    for start, stop, value in stuck[:3]:
        notes.append(f"{stop - start} samples stuck at {value:.6g} from {where(start)}")
    if len(stuck) > 3:
        rest = sum(stop - start for start, stop, _ in stuck[3:])
        notes.append(f"{rest} samples stuck elsewhere")
    told: list[str] = []
    if notes:
        told.append(f"{', '.join(notes)}: no readings, taken as missing")
    if (rail := _rail(probe[(probe >= low) & (probe <= high)])) is not None:
        told.append(f"clipped at {rail:.6g}: an amplitude will be too small")
    for note in told:
        warnings.warn(f"{what}: {note}", SeppriorWarning, stacklevel=3)
    if not notes:
        return values, tuple(told)
    spans = np.array([run[:2] for run in stuck], dtype=np.int64).reshape(-1, 2)
    result = Screened(values, np.array(list(codes)), under, over, spans)
    whole = isinstance(values, np.ndarray)
    return (result[:] if whole else result), tuple(told)


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _probe(values: Values) -> NDArray[np.float64]:
    """Finite samples, taken all over a long series."""
    if len(values) <= BLOCK:
        probe = np.asarray(values[0 : len(values)], dtype=np.float64)
    else:
        places = np.linspace(0, len(values) - 2048, _PROBES).astype(int).tolist()
        probe = np.concatenate([part_of(values, k, k + 2048)[0:2048] for k in places])
    return probe[np.isfinite(probe)]


def _middle(probe: NDArray[np.float64]) -> tuple[float, float]:
    """Median and interquartile range; of equal quartiles, the range further out."""
    usual = probe[np.abs(probe) < _OVERLOAD]
    if len(usual) >= MIN_SAMPLES:
        probe = usual
    if not len(probe):
        return 0.0, 0.0
    for share in (0.25, 0.1, 0.02):
        low, middle, high = np.quantile(probe, [share, 0.5, 1 - share])
        if high > low:
            return float(middle), float(high - low)
    return float(np.median(probe)), 0.0


def _rail(probe: NDArray[np.float64]) -> float | None:
    """The value that samples are clipped at, None where they are not."""
    values, counts = np.unique(probe, return_counts=True)
    if len(values) <= 20:
        return None
    for rail, inside in ((-1, slice(-4, -1)), (0, slice(1, 4))):
        if counts[rail] >= 10 * counts[inside].max() and counts[rail] >= _STUCK:
            return float(values[rail])
    return None
