"""The sample rate, and the gaps, that a column of times tells.

Printed times are rounded: steps of 1/3198 s printed to 6 decimals read 0.000312 and
0.000313, and no single step tells the rate. The times `t_i` are therefore fitted by
parallel lines, one per stretch without a gap, with one common step `d`,

    t_i = a_k + d (i - mean_k(i)),   d = sum_k S_it / sum_k S_ii   (least squares),

and have to stay within 0.35 steps of them: more than rounding explains is jitter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sepprior.data.series import BLOCK, Run, Values
from sepprior.errors import SeppriorError

_GAP = 1.5  # a step longer than this many usual ones is a gap
_REGULAR = 0.25  # steps scatter by less than this: gaps can be told step by step
_LOOSE = 0.35  # farthest from the line, in steps
_MOST_GAPS = 1 / 8  # per row; more than that is not uniform sampling with gaps
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
class _Lines:
    """Parallel lines through times.

    Attributes:
        bounds: first row and one past the last of each piece.
        step: common slope in s per row.
        means: mean time of each piece in s.
        worst: largest distance of a time from its line in s.
        worst_row: its row.
    """

    bounds: Sequence[tuple[int, int]]
    step: float
    means: Sequence[float]
    worst: float
    worst_row: int


def fit_clock(
    time: Values,
    runs: Sequence[Run],
    *,
    what: str,
    where: Callable[[int], str],
) -> Clock:
    """Fit uniform sampling to a time column.

    Args:
        time: times in s, shape (M,).
        runs: rows within which the times must be uniform; between them they may jump.
        what: the file, to begin an error message with.
        where: names the place of a row.

    Raises:
        SeppriorError: times are missing, decrease, or are not uniform.
    """
    breaks = np.array([run.start for run in runs], dtype=np.int64)
    typical, scatter = _typical_step(time, breaks)
    gaps, equal = _scan(time, breaks, typical, what=what, where=where)
    regular = scatter <= _REGULAR * typical
    if regular and len(equal):
        row = int(equal[0])
        raise SeppriorError(
            f"{what}: time does not increase at {where(row)}, it repeats "
            f"{_at(time, row):.9g} s; remove repeated rows"
        )
    # equal times mean that they were rounded to more than a step
    rounding = 0.75 * typical if len(equal) else 0.0
    lines = _fit_lines(time, _bounds(breaks, gaps if regular else gaps[:0], len(time)))
    if not regular and lines.worst > _LOOSE * lines.step + rounding:
        # only if coarse or jittery times fit no single line, their long steps are gaps
        lines = _fit_lines(time, _bounds(breaks, gaps, len(time)))
    if lines.step <= 0:
        raise SeppriorError(
            f"{what}: time does not tell the sample rate; expected times in seconds "
            "that increase from row to row"
        )
    n_gaps = len(lines.bounds) - len(runs)
    if lines.worst > _LOOSE * lines.step + rounding or n_gaps > _MOST_GAPS * len(time):
        raise SeppriorError(
            f"{what}: time is not uniform, {where(lines.worst_row)} is "
            f"{lines.worst / lines.step:.3g} samples off a steady {1 / lines.step:.6g} "
            f"Hz with {n_gaps} gaps; resample to uniform steps first"
        )
    longest = max(stop - start for start, stop in lines.bounds)
    if rounding > _COARSE * longest * lines.step:
        row = int(equal[0])
        raise SeppriorError(
            f"{what}: time is rounded too coarsely to tell the sample rate, "
            f"{where(row)} repeats {_at(time, row):.9g} s; write it with more digits"
        )
    firsts = np.array([start for start, _ in lines.bounds])
    owners = np.searchsorted(breaks, firsts, side="right") - 1
    pieces = tuple(
        Piece(
            run=int(owner),
            start=start,
            stop=stop,
            time=_at(time, start),
            fitted=mean - lines.step * (stop - start - 1) / 2,
        )
        for owner, (start, stop), mean in zip(
            owners, lines.bounds, lines.means, strict=True
        )
    )
    # standard error of the slope of the longest piece, for evenly spread errors
    error = max(2 * lines.worst / (lines.step * longest**1.5), _ARITHMETIC)
    return Clock(lines.step, _round_rate(1 / lines.step, error), pieces)


def missing_samples(before: Piece, after: Piece, step: float) -> float:
    """Number of samples missing between two pieces; whole if the gap fits the clock."""
    return (after.fitted - before.fitted) / step - (before.stop - before.start)


def _at(time: Values, row: int) -> float:
    return float(time[row : row + 1][0])


def _typical_step(time: Values, breaks: NDArray[np.int64]) -> tuple[float, float]:
    """Usual step of the first rows and how much 95 % of their steps scatter about it.

    The usual step is the median; where times are rounded so much that the median step
    is zero, it is the smallest step between times that differ.
    """
    steps = np.diff(time[:BLOCK])
    inside = np.ones(len(steps), dtype=bool)
    inside[breaks[(breaks > 0) & (breaks <= len(steps))] - 1] = False
    steps = steps[inside & np.isfinite(steps)]
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


def _scan(
    time: Values,
    breaks: NDArray[np.int64],
    typical: float,
    *,
    what: str,
    where: Callable[[int], str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows before which there is a gap, and (some) rows that repeat a time."""
    gaps: list[NDArray[np.int64]] = []
    equal = np.empty(0, dtype=np.int64)
    n_gaps = 0
    for start in range(0, len(time), BLOCK - 1):  # blocks share one row
        block = time[start : start + BLOCK]
        if not np.isfinite(block).all():
            row = start + int(np.argmin(np.isfinite(block)))
            raise SeppriorError(
                f"{what}: time is missing or infinite at {where(row)}; expected "
                "seconds in every row"
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
        found = start + 1 + np.flatnonzero(steps > _GAP * typical)
        n_gaps += len(found)
        if n_gaps <= 2 * _MOST_GAPS * len(time) or not gaps:  # bounds the memory
            gaps.append(found)
    return np.concatenate([np.empty(0, dtype=np.int64), *gaps]), equal


def _bounds(
    breaks: NDArray[np.int64], gaps: NDArray[np.int64], rows: int
) -> list[tuple[int, int]]:
    """First row and one past the last row of every stretch without a gap."""
    edges = [*np.union1d(breaks, gaps).tolist(), rows]
    return list(pairwise(edges))


def _fit_lines(time: Values, bounds: Sequence[tuple[int, int]]) -> _Lines:
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
    worst, worst_row = 0.0, bounds[0][0]
    for (start, stop), mean in zip(bounds, means, strict=True):
        centre = (start + stop - 1) / 2
        for first in range(start, stop, BLOCK):
            block = time[first : min(first + BLOCK, stop)] - mean
            block = np.abs(block - step * (np.arange(len(block)) + (first - centre)))
            if block.max() > worst:
                worst, worst_row = float(block.max()), first + int(np.argmax(block))
    return _Lines(bounds, step, means, worst, worst_row)


def _round_rate(rate: float, error: float) -> float:
    """The number with the fewest digits within the relative error of a rate."""
    for digits in range(1, 16):
        rounded = float(f"{rate:.{digits}g}")
        if abs(rounded / rate - 1) <= error:
            return rounded
    return rate
