"""A recording of any length cut into windows on a regular grid.

Window k holds the samples from ``k hop`` to ``k hop + window``; the last one reaches
the end of the recording and is filled up with NaN, which the likelihood leaves out. So
every sample lies in at least one window.

Dimensions: M samples in the recording, B windows in a batch, N samples in a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sepprior.data import MIN_SAMPLES
from sepprior.data.series import Values
from sepprior.errors import SeppriorError, whole_number


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Consecutive windows of one recording.

    Attributes:
        x: samples in data units, NaN where missing, shape (B, N).
        number: number of each window in the recording, shape (B,).
        first: place of its first sample, shape (B,).
    """

    x: NDArray[np.float64]
    number: NDArray[np.int64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)


MOST_SAMPLES = 2**24
"""Samples of a window, at most."""


def check_grid(window: int, hop: int) -> None:
    """Refuse windows that cannot be fitted or would leave samples out."""
    whole_number("window", window, least=-MOST_SAMPLES, most=MOST_SAMPLES)
    whole_number("hop", hop, least=-MOST_SAMPLES)
    if window < MIN_SAMPLES:
        raise SeppriorError(
            f"window is {window} samples; expected at least {MIN_SAMPLES}"
        )
    if not 1 <= hop <= window:
        raise SeppriorError(
            f"hop is {hop} samples; expected 1 to {window}, the window: with a longer "
            "one samples between the windows would be lost"
        )


def count_windows(length: int, *, window: int, hop: int) -> int:
    """Number of windows that cover `length` samples: ``1 + ceil((M - N) / hop)``."""
    check_grid(window, hop)
    return 1 + max(0, -(-(length - window) // hop))


def iterate_windows(
    values: Values, *, window: int, hop: int, batch: int, begin: int = 0
) -> Iterator[WindowBatch]:
    """Cut a recording into batches of windows; only one batch is in memory.

    Args:
        values: samples, NaN where missing; anything whose slices are float64 arrays.
        window: samples in a window.
        hop: samples from the start of one window to the next, at most `window`.
        batch: windows in a batch; the last batch may have fewer.
        begin: number of the first window that is cut, to continue earlier work.

    Raises:
        SeppriorError: `window` or `hop` cannot be used.
    """
    total = count_windows(len(values), window=window, hop=hop)
    for start in range(begin, total, batch):
        number = np.arange(start, min(start + batch, total))
        span = hop * (len(number) - 1) + window
        samples = np.full(span, np.nan)
        taken = values[start * hop : start * hop + span]
        samples[: len(taken)] = taken
        view = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
        yield WindowBatch(np.ascontiguousarray(view), number, hop * number)
