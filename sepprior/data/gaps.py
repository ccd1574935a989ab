"""Pieces of a series laid on one uniform time grid, with NaN where samples are missing.

Nothing is copied: a slice reads the pieces that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sepprior.data.clock import Clock, Piece, missing_samples
from sepprior.data.series import Values, part_of
from sepprior.errors import SeppriorError

_WHOLE = 0.25  # samples by which a gap may differ from a whole number of samples
_LONGEST_GAPS = 10  # missing samples per sample present


class GappedSeries:
    """Stretches of a series at their places on a grid; NaN between them.

    Args:
        values: the samples without the missing ones.
        pieces: first sample and one past the last in `values`, and the place of the
            first on the grid, in ascending order, shape (k, 3).
    """

    def __init__(self, values: Values, pieces: NDArray[np.int64]) -> None:
        self._values = values
        self._start, self._stop, self._place = pieces.T
        self._ends = self._place + self._stop - self._start

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: slice) -> NDArray[np.float64]:
        first, last, step = key.indices(len(self))
        if step != 1:
            raise IndexError("a series with gaps is sliced with step 1 only")
        taken = np.full(max(0, last - first), np.nan)
        begin = int(np.searchsorted(self._ends, first, side="right"))
        end = int(np.searchsorted(self._place, last, side="left"))
        for k in range(begin, end):
            place, stop = max(first, self._place[k]), min(last, self._ends[k])
            offset = self._start[k] - self._place[k]
            taken[place - first : stop - first] = self._values[
                int(place + offset) : int(stop + offset)
            ]
        return taken


def fill_gaps(
    values: Values,
    pieces: Sequence[Piece],
    clock: Clock | None,
    *,
    what: str,
    locate: Callable[[int], str],
) -> Values:
    """Samples of one measurement, with NaN where the time skips some.

    Args:
        values: all samples of the file.
        pieces: stretches of the measurement without a gap.
        clock: what the time column says; None without one.
        what: file and column, to begin an error message with.
        locate: names the place of a row of the file.

    Raises:
        SeppriorError: a gap that is no whole number of samples, or far more samples
            missing than present.
    """
    if len(pieces) == 1:
        return part_of(values, pieces[0].start, pieces[0].stop)
    places = [0]
    present = pieces[-1].stop - pieces[0].start
    absent = 0
    for before, after in pairwise(pieces):
        missing = missing_samples(before, after, clock.step) if clock else 0.0
        whole = round(missing)
        where = locate(after.start)
        if abs(missing - whole) > _WHOLE:
            raise SeppriorError(
                f"{what}: time is not uniform, {missing:.2f} samples are missing "
                f"before {where}; expected a whole number: resample, or number the "
                "parts in a column named segment"
            )
        absent += whole
        if absent > _LONGEST_GAPS * present:
            raise SeppriorError(
                f"{what}: {absent} samples are missing before {where}, and only "
                f"{present} are present; number the parts in a column named segment"
            )
        places.append(places[-1] + before.stop - before.start + whole)
    table = [
        (piece.start, piece.stop, place)
        for piece, place in zip(pieces, places, strict=True)
    ]
    return GappedSeries(values, np.array(table, dtype=np.int64))
