"""A spectrogram of fixed size, of series that arrive in blocks.

Power spectral density by short Hann-windowed frames at half overlap, averaged over all
frames that fall into the same column (Welch 1967): the picture of a year has as many
columns as that of a minute.

Dimensions: M samples, F frequencies, T columns, L samples in a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = 400
"""Most columns of a spectrogram."""
FRAME = (32, 1024)
"""Shortest and longest frame, samples."""
_MOST_MISSING = 0.5  # share of missing samples from which a frame is left out


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Power spectral density against time.

    Attributes:
        edges: times between the columns, s, shape (T + 1,).
        frequency: Hz, shape (F,).
        density: one-sided, data units squared per Hz, NaN in columns without samples,
            shape (F, T).
    """

    edges: NDArray[np.float64]
    frequency: NDArray[np.float64]
    density: NDArray[np.float64]


class SpectrogramBuilder:
    """Collects a spectrogram from consecutive blocks.

    Args:
        length: samples of the whole series.
        frame: L; the largest power of two up to it is used, within `FRAME`.
        sample_rate: Hz.
        start: time of the first sample, s.
    """

    def __init__(
        self, *, length: int, frame: int, sample_rate: float, start: float
    ) -> None:
        longest = max(2, min(frame, length, FRAME[1]))
        self._frame = max(2 ** int(np.log2(longest)), min(FRAME[0], length))
        self._hop = max(1, self._frame // 2)
        n_frames = 1 + max(0, (length - self._frame) // self._hop)
        self._n_frames, self._columns = n_frames, min(COLUMNS, n_frames)
        self._hann = np.hanning(self._frame + 2)[1:-1]
        self._rate, self._start, self._length = sample_rate, start, length
        self._left = np.empty(0)
        self._seen = 0
        self._sum = np.zeros((self._columns, self._frame // 2 + 1))
        self._count = np.zeros(self._columns)

    def add(self, block: NDArray[np.float64]) -> None:
        """Add the next samples, NaN where missing, shape (n,)."""
        samples = np.concatenate([self._left, block])
        ready = 1 + (len(samples) - self._frame) // self._hop
        if ready < 1:
            self._left = samples
            return
        frames = np.lib.stride_tricks.sliding_window_view(samples, self._frame)
        frames = frames[:: self._hop][:ready]
        number = self._seen + np.arange(ready)
        self._seen += ready
        self._left = samples[ready * self._hop :]
        present = np.isfinite(frames)
        share = present.mean(1)
        kept = share > _MOST_MISSING
        frames, present = frames[kept], present[kept]
        mean = np.nansum(frames, 1, keepdims=True) / present.sum(1, keepdims=True)
        centred = np.where(present, frames - mean, 0.0) * self._hann
        power = np.abs(np.fft.rfft(centred)) ** 2 / share[kept, None]
        column = number[kept] * self._columns // self._n_frames
        np.add.at(self._sum, column, power)
        np.add.at(self._count, column, 1)

    def finish(self) -> Spectrogram:
        """The spectrogram of all samples."""
        scale = 2.0 / (self._rate * np.sum(self._hann**2))
        count = self._count[:, None]
        density = np.divide(
            scale * self._sum,
            count,
            out=np.full_like(self._sum, np.nan),
            where=count > 0,
        )
        density[:, 0] /= 2
        if self._frame % 2 == 0:
            density[:, -1] /= 2
        # The columns share the frames evenly; a column begins where its first frame,
        # of which half belongs to the column before, has its middle.
        first = -(-(np.arange(self._columns) * self._n_frames) // self._columns)
        edges = first * self._hop + 0.5 * (self._frame - self._hop)
        edges[0] = 0.0
        edges = np.append(edges, self._length) / self._rate + self._start
        return Spectrogram(
            edges,
            np.arange(self._frame // 2 + 1) * (self._rate / self._frame),
            density.T,
        )
