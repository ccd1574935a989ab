"""The sample rate, and the gaps, that a column of times tells.

Printed times are rounded: steps of 1/3198 s printed to 6 decimals read 0.000312 and
0.000313, and no single step tells the rate. The times `t_i` are therefore fitted by
parallel lines, one per stretch without a gap, with one common step `d`,

    t_i = a_k + d (i - mean_k(i)),   d = sum_k S_it / sum_k S_ii   (least squares),

and have to stay within 0.2 steps of them, or within the rounding, which is found from
the digits of the times: more is jitter. Where rows are missing so often that their
times could also be the rounded ones of a slower clock, only the caller can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data.series import BLOCK, Run, Values
from sepprior.errors import SeppriorError

_GAP = 1.5  # a step longer than this many usual ones is a gap
_REGULAR = 0.25  # steps scatter by less than this: gaps can be told step by step
_SAME = 0.02  # steps that scatter by less are all of one length
_LOOSE = 0.2  # farthest from the line, in steps
_ROUNDED = 0.55  # farthest from the line, in units of the last digit
_OFTEN = 0.05  # share of long steps from which on they may be a rhythm of rounding
_MOST_GAPS = 1 / 8  # per row; more than that is not uniform sampling with gaps
_MOST_ON_GRID = 100_000  # gaps, where all steps are multiples of the smallest
_EXAMINED = 2**14  # times whose digits are looked at, at either end
_ARITHMETIC = 1e-12  # relative rounding error of the sums in the fit
_COARSE = 1e-3  # relative uncertainty of a rate that is no longer accepted


@dataclass(frozen=True)
class Piece:
    """A stretch of rows that follow each other without a gap.

    Attributes:
        run: position of the run that it is part of.
        start: first row.
        stop: one past the last row.
        time: time of the first row in s, as it was read.
        fitted: the same on the fitted line.
    """

    run: int
    start: int
    stop: int
    time: float
    fitted: float


@dataclass(frozen=True)
class Clock:
    """What a time column says.

    Attributes:
        step: time between samples in s.
        sample_rate: its inverse in Hz, with no more digits than the times support.
        pieces: all rows in stretches without a gap, in order.
    """

    step: float
    sample_rate: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class _Resolution:
    """To how much times are rounded.

    Attributes:
        fixed: unit of their last decimal in s, 0 if they have too many to tell.
        digits: significant digits that all of them have at most.
        coarse: least rounding in s, of times that repeat.
    """

    fixed: float
    digits: int
    coarse: float = 0.0

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rounding of each time in s, shape (M,)."""
        size = np.maximum(np.abs(times), np.finfo(float).tiny)
        last = 10.0 ** (np.floor(np.log10(size)) - self.digits + 1)
        if self.digits > 9 or not self.fixed:
            last[:] = 0.0
        return np.maximum(last, max(self.fixed, self.coarse))


_EXACT = _Resolution(0.0, 10)


@dataclass(frozen=True)
class _Lines:
    """Parallel lines through times.

    Attributes:
        bounds: first row and one past the last of each piece.
        step: common slope in s per row.
        means: mean time of each piece in s.
        worst: largest distance of a time from its line in s.
        excess: the same, of times farther away than their rounding.
        excess_row: the row of that.
        rhythmic: whether the steps differ from the slope by no more than rounding does.
    """

    bounds: Sequence[tuple[int, int]]
    step: float
    means: Sequence[float]
    worst: float
    excess: float
    excess_row: int
    rhythmic: bool

    @property
    def fits(self) -> bool:
        """Whether the times are uniform, but for gaps."""
        return self.step > 0 and self.rhythmic and self.excess <= _LOOSE * self.step


def fit_clock(
    time: Values,
    runs: Sequence[Run],
    *,
    what: str,
    where: Callable[[int], str],
    rate: float | None = None,
) -> Clock:
    """Fit uniform sampling to a time column.

    Args:
        time: times in s, shape (M,).
        runs: rows within which the times must be uniform; between them they may jump.
        what: the file, to begin an error message with.
        where: names the place of a row.
        rate: sample rate in Hz that the caller knows; it decides where the times allow
            several.

    Raises:
        SeppriorError: times are missing, decrease, are not uniform, or do not tell
            the sample rate.
    """
    breaks = np.array([run.start for run in runs], dtype=np.int64)
    steps = _first_steps(time, breaks)
    typical, scatter = _typical_step(steps)
    resolution = _resolution(time, typical if np.isinf(scatter) else 0.0)
    # Where nearly all steps are the same, they are no rounded ones of another clock.
    near = _EXACT if scatter <= _SAME * typical else resolution
    gaps, equal = _scan(time, breaks, typical, near, what=what, where=where)
    regular = scatter <= _REGULAR * typical
    if regular and len(equal):
        row = int(equal[0])
        raise SeppriorError(
            f"{what}: time does not increase at {where(row)}, it repeats "
            f"{_at(time, row):.9g} s; remove repeated rows"
        )

    def lines_with(gaps: NDArray[np.int64]) -> _Lines:
        return _fit_lines(time, _bounds(breaks, gaps, len(time)), resolution)

    most = _MOST_GAPS * len(time)
    lines = lines_with(gaps if regular else gaps[:0])
    fits = lines.fits and len(lines.bounds) - len(runs) <= most
    base = _grid(steps)
    if base and not regular:
        # all steps are multiples of the smallest one: rows may be missing
        few, _ = _scan(time, breaks, base, _EXACT, what=what, where=where)
        if len(few) <= min(_MOST_ON_GRID, 0.6 * len(time)):
            dropped = lines_with(few)
            if fits and dropped.fits:
                lines = _told_apart(lines, dropped, rate, resolution, what=what)
            elif dropped.fits:
                lines, fits = dropped, True
    if not regular and not fits:
        # only if coarse or jittery times fit no single line, their long steps are gaps
        lines = lines_with(gaps)
        fits = lines.fits and len(lines.bounds) - len(runs) <= most
    if lines.step <= 0:
        raise SeppriorError(
            f"{what}: time does not tell the sample rate; expected times in seconds "
            "that increase from row to row (--time-column none if it holds others)"
        )
    if not fits:
        n_gaps = len(lines.bounds) - len(runs)
        raise SeppriorError(
            f"{what}: time is not uniform, {where(lines.excess_row)} is "
            f"{lines.excess / lines.step:.3g} samples off a steady "
            f"{1 / lines.step:.6g} Hz with {n_gaps} gaps; resample to uniform steps "
            "first (numpy.interp), or say --time-column none and --sample-rate HZ if "
            "only the times jitter"
        )
    longest = max(stop - start for start, stop in lines.bounds)
    span = longest * lines.step
    rounding = float(resolution.at(time[len(time) - 1 : len(time)])[0])
    step = lines.step
    if len(equal) and rounding > _COARSE * span:
        if rate is None or abs(step * rate - 1) > 2 * rounding / span:
            row = int(equal[0])
            raise SeppriorError(
                f"{what}: time is rounded too coarsely to tell the sample rate, "
                f"{where(row)} repeats {_at(time, row):.9g} s; write it with more "
                "digits, or say --sample-rate HZ"
            )
        step = 1 / rate
    firsts = np.array([start for start, _ in lines.bounds])
    owners = np.searchsorted(breaks, firsts, side="right") - 1
    pieces = tuple(
        Piece(
            run=int(owner),
            start=start,
            stop=stop,
            time=_at(time, start),
            fitted=mean - step * (stop - start - 1) / 2,
        )
        for owner, (start, stop), mean in zip(
            owners, lines.bounds, lines.means, strict=True
        )
    )
    # standard error of the slope of the longest piece, for evenly spread errors
    error = max(2 * lines.worst / (lines.step * longest**1.5), _ARITHMETIC)
    found = _round_rate(1 / step, error)
    return Clock(step, rate if rate and step == 1 / rate else found, pieces)


def _told_apart(
    slower: _Lines,
    dropped: _Lines,
    rate: float | None,
    resolution: _Resolution,
    *,
    what: str,
) -> _Lines:
    """Rounded times of a slower clock, or missing rows of a faster one.

    Raises:
        SeppriorError: no rate is known that would decide.
    """
    for lines in (slower, dropped):
        if rate is not None and abs(lines.step * rate - 1) < 0.01:
            return lines
    share = 1 - dropped.step / slower.step
    raise SeppriorError(
        f"{what}: time is rounded to {resolution.fixed:.3g} s, which fits "
        f"{1 / slower.step:.6g} Hz as well as {1 / dropped.step:.6g} Hz with "
        f"{100 * share:.0f} % of the rows missing; say which with --sample-rate HZ, or "
        "write the time with more digits"
    )


def missing_samples(before: Piece, after: Piece, step: float) -> float:
    """Number of samples missing between two pieces; whole if the gap fits the clock."""
    return (after.fitted - before.fitted) / step - (before.stop - before.start)


def _at(time: Values, row: int) -> float:
    return float(time[row : row + 1][0])


def _first_steps(time: Values, breaks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Steps between the first rows, within runs."""
    steps = np.diff(time[:BLOCK])
    inside = np.ones(len(steps), dtype=bool)
    inside[breaks[(breaks > 0) & (breaks <= len(steps))] - 1] = False
    return steps[inside & np.isfinite(steps)]


def _typical_step(steps: NDArray[np.float64]) -> tuple[float, float]:
    """Usual step of the first rows and how much 95 % of their steps scatter about it.

    The usual step is the median; where times are rounded so much that the median step
    is zero, it is the smallest step between times that differ.
    """
    if not len(steps):
        return 0.0, 0.0
    median = float(np.median(steps))
    scatter = float(np.percentile(np.abs(steps - median), 95))
    if median <= 0:
        positive = steps[steps > 0]
        return (float(positive.min()), np.inf) if len(positive) else (0.0, np.inf)
    if np.count_nonzero(steps == 0) > 0.01 * len(steps):
        return float(steps[steps > 0].min()), np.inf
    return median, scatter


def _grid(steps: NDArray[np.float64]) -> float:
    """The smallest step, where all are multiples of it and many are not it; else 0."""
    if not len(steps) or steps.min() <= 0:
        return 0.0
    base = float(np.percentile(steps, 1))
    times = steps / base
    if (np.abs(times - np.round(times)) > 0.02 * np.round(times)).any():
        return 0.0
    return base if (times > _GAP).mean() > _OFTEN else 0.0


def _resolution(time: Values, coarse: float) -> _Resolution:
    """Find the rounding of times from their digits.

    Args:
        time: times in s, shape (M,).
        coarse: smallest step in s of times that repeat, else 0.
    """
    ends = (time[:_EXAMINED], time[max(0, len(time) - _EXAMINED) : len(time)])
    times = np.abs(np.concatenate(ends))
    times = times[np.isfinite(times)]
    spacing = 4 * np.spacing(times.max()) if len(times) else 0.0

    def whole(unit: Any) -> bool:
        parts = times / unit
        near = np.maximum(1e-9, spacing / np.asarray(unit))
        return bool((np.abs(parts - np.round(parts)) <= near).all())

    units = (base * 10.0**-k for k in range(-2, 13) for base in (1.0, 60.0, 3600.0))
    top = times.max() if len(times) else 0.0
    fixed = next(
        (unit for unit in units if spacing < 0.1 * unit <= top and whole(unit)), 0.0
    )
    size = np.floor(np.log10(np.maximum(times, np.finfo(float).tiny)))
    digits = next((d for d in range(3, 10) if whole(10.0 ** (size - d + 1))), 10)
    return _Resolution(fixed, digits, coarse)


def _scan(
    time: Values,
    breaks: NDArray[np.int64],
    typical: float,
    resolution: _Resolution,
    *,
    what: str,
    where: Callable[[int], str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows before which there is a gap, and (some) rows that repeat a time."""
    gaps: list[NDArray[np.int64]] = []
    equal = np.empty(0, dtype=np.int64)
    for start in range(0, len(time), BLOCK - 1):  # blocks share one row
        block = time[start : start + BLOCK]
        if not np.isfinite(block).all():
            row = start + int(np.argmin(np.isfinite(block)))
            raise SeppriorError(
                f"{what}: time is missing or infinite at {where(row)}; expected "
                "a time in every row"
            )
        steps = np.diff(block)
        first = np.searchsorted(breaks, [start + 1, start + len(block)])
        steps[breaks[first[0] : first[1]] - start - 1] = typical
        if (steps < 0).any():
            row = start + 1 + int(np.argmax(steps < 0))
            raise SeppriorError(
                f"{what}: time does not increase at {where(row)}, {_at(time, row):.9g} "
                f"s follows {_at(time, row - 1):.9g} s; sort the rows, or number "
                "separate recordings in a column named segment"
            )
        if not len(equal):
            equal = start + 1 + np.flatnonzero(steps == 0)
        found = np.flatnonzero(steps > _GAP * typical)
        rounding = resolution.at(block[found + 1])
        gaps.append(start + 1 + found[steps[found] > _GAP * typical + rounding])
    return np.concatenate([np.empty(0, dtype=np.int64), *gaps]), equal


def _bounds(
    breaks: NDArray[np.int64], gaps: NDArray[np.int64], rows: int
) -> list[tuple[int, int]]:
    """First row and one past the last row of every stretch without a gap."""
    edges = [*np.union1d(breaks, gaps).tolist(), rows]
    return list(pairwise(edges))


def _fit_lines(
    time: Values, bounds: Sequence[tuple[int, int]], resolution: _Resolution
) -> _Lines:
    """Least-squares parallel lines through the times of all pieces."""
    means: list[float] = []
    s_it = s_ii = 0.0
    for start, stop in bounds:
        origin, total, centre = _at(time, start), 0.0, (start + stop - 1) / 2
        for first in range(start, stop, BLOCK):
            block = time[first : min(first + BLOCK, stop)] - origin
            total += float(block.sum())
            s_it += float(np.dot(np.arange(len(block)) + (first - centre), block))
        n = float(stop - start)
        s_ii += n * (n * n - 1) / 12
        means.append(origin + total / n)
    step = s_it / s_ii if s_ii else 0.0
    worst = excess = 0.0
    row, rhythmic = bounds[0][0], True
    for (start, stop), mean in zip(bounds, means, strict=True):
        centre = (start + stop - 1) / 2
        for first in range(start, stop, BLOCK):
            times = time[first : min(first + BLOCK, stop)]
            block = times - mean
            block = np.abs(block - step * (np.arange(len(block)) + (first - centre)))
            worst = max(worst, float(block.max()))
            if worst <= _LOOSE * step:
                continue
            rounding = resolution.at(times)
            off = np.abs(np.diff(times) - step)
            limit = np.maximum(0.999 * rounding[1:], 2 * _LOOSE * step)
            rhythmic &= bool((off <= limit).mean() > 0.99) if len(off) else True
            block[block <= _ROUNDED * rounding] = 0.0
            if block.max() > excess:
                excess, row = float(block.max()), first + int(np.argmax(block))
    return _Lines(bounds, step, means, worst, excess, row, rhythmic)


def _round_rate(rate: float, error: float) -> float:
    """The number with the fewest digits within the relative error of a rate."""
    for digits in range(1, 16):
        rounded = float(f"{rate:.{digits}g}")
        if abs(rounded / rate - 1) <= error:
            return rounded
    return rate
