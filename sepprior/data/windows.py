"""Windows of samples, cut from a recording at random or in order.

A window may start at any sample from which `window` samples follow in the same segment
without a gap. `random_crops` draws uniformly among all these starts: they are counted
per stretch of samples without a gap, and the drawn numbers are looked up in the
cumulative counts. No draw is ever repeated, and nothing but the crops themselves is
held in memory.

Dimensions: n windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sepprior.data.recording import Recording, WindowStarts, check_window
from sepprior.data.series import blocks_of
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    import torch


def random_crops(
    recording: Recording,
    *,
    window: int,
    n: int,
    generator: torch.Generator | np.random.Generator,
) -> NDArray[np.float64]:
    """Draw windows uniformly from all places where one fits.

    Args:
        recording: what to draw from.
        window: samples in a window.
        n: number of windows.
        generator: source of randomness, of NumPy or torch.

    Returns:
        Windows in the recording's units, shape (n, window), without NaN and never
        across the end of a segment.

    Raises:
        SeppriorError: no segment has a window without gaps.
    """
    return random_placed_crops(recording, window=window, n=n, generator=generator)[0]


def random_placed_crops(
    recording: Recording,
    *,
    window: int,
    n: int,
    generator: torch.Generator | np.random.Generator,
    margin: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """As `random_crops`, with the number of the segment each window lies in, (n,).

    With a `margin` the windows come with as many samples before and after them, shape
    (n, window + 2 margin); beyond a gap or an end of the segment, the mirror image.
    """
    starts = _starts_or_error(recording, window)
    if isinstance(generator, np.random.Generator):
        drawn = generator.integers(starts.total, size=n)
    else:
        import torch

        drawn = torch.randint(
            starts.total, (n,), generator=generator, device=generator.device
        )
        drawn = drawn.cpu().numpy()
    spans = np.searchsorted(starts.ends, drawn, side="right")
    offsets = drawn - (starts.ends[spans] - starts.counts[spans])
    segments, firsts = starts.segment[spans], starts.first[spans] + offsets
    if not margin:
        return _cut(recording, segments, firsts, window), segments
    begins = starts.first[spans]
    ends = begins + starts.counts[spans] + window - 1
    wide = np.empty((n, window + 2 * margin))
    places = zip(segments, firsts - margin, begins, ends, strict=True)
    for row, (number, first, begin, end) in enumerate(places):
        left, right = max(first, begin), min(first + wide.shape[1], end)
        inside = recording.segments[number].values[left:right]
        missing = (left - first, first + wide.shape[1] - right)
        wide[row] = np.pad(inside, missing, mode="reflect")
    return wide, segments


def consecutive_windows(
    recording: Recording,
    *,
    window: int,
    hop: int | None = None,
    limit: int | None = None,
) -> NDArray[np.float64]:
    """Cut windows one after the other, in order.

    Args:
        recording: what to cut.
        window: samples in a window.
        hop: samples from the start of one window to the next, `window` by default. It
            is counted anew after each gap and in each segment.
        limit: most windows to return; they are then spread evenly over the recording.

    Returns:
        Windows in the recording's units, shape (n, window), without NaN.

    Raises:
        SeppriorError: no segment has a window without gaps.
    """
    chunks = iterate_windows(recording, window=window, hop=hop, limit=limit, chunk=None)
    return next(chunks)


def iterate_windows(
    recording: Recording,
    *,
    window: int,
    hop: int | None = None,
    limit: int | None = None,
    chunk: int | None,
) -> Iterator[NDArray[np.float64]]:
    """As `consecutive_windows`, `chunk` windows at a time (None: all at once)."""
    starts = _starts_or_error(recording, window)
    hop = window if hop is None else hop
    if hop < 1:
        raise SeppriorError(f"hop is {hop}; expected at least 1 sample")
    if limit is not None and limit < 1:
        raise SeppriorError(f"limit is {limit}; expected at least 1 window")
    ends = np.cumsum((starts.counts - 1) // hop + 1)
    total = int(ends[-1])
    if limit is None or limit >= total:
        wanted = np.arange(total)
    else:
        wanted = np.arange(limit) * total // limit
    spans = np.searchsorted(ends, wanted, side="right")
    before = np.concatenate([[0], ends])[spans]
    firsts = starts.first[spans] + hop * (wanted - before)
    step = len(firsts) if chunk is None else chunk
    for begin in range(0, len(firsts), step):
        part = slice(begin, begin + step)
        yield _cut(recording, starts.segment[spans[part]], firsts[part], window)


def iterate_blocks(
    recording: Recording, *, block: int
) -> Iterator[NDArray[np.float64]]:
    """Pass over all samples in blocks that never cross the end of a segment.

    Args:
        recording: what to pass over.
        block: samples per block; the last block of a segment may be shorter.

    Yields:
        Samples in the recording's units, shape (at most block,), gaps as NaN. Blocks
        may be views of the recording: do not write into them.
    """
    check_window(block, name="block")
    for segment in recording.segments:
        yield from blocks_of(segment.values, block=block)


def _starts_or_error(recording: Recording, window: int) -> WindowStarts:
    check_window(window)
    starts = recording.window_starts(window)
    if not starts.total:
        longest = recording.spans[:, 2].max(initial=0)
        raise SeppriorError(
            f"the recording has no window of {window} samples without gaps, the "
            f"longest stretch has {longest}; record more or choose a shorter window"
        )
    return starts


def _cut(
    recording: Recording,
    segments: NDArray[np.int64],
    firsts: NDArray[np.int64],
    window: int,
) -> NDArray[np.float64]:
    """Windows that start at samples `firsts` of `segments`, shape (n, window)."""
    windows = np.empty((len(firsts), window))
    places = zip(segments.tolist(), firsts.tolist(), strict=True)
    for row, (number, first) in enumerate(places):
        windows[row] = recording.segments[number].values[first : first + window]
    return windows
