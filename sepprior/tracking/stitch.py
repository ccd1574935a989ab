"""Waveforms of overlapping windows joined into one, without seams or double counting.

Each window's waveform is faded in and out by a taper h, and the tapers are divided by
their sum, so that the weights of all windows that hold a sample add up to one
(overlap-add with a partition of unity; Griffin and Lim 1984 use the same quotient):

    s(n) = sum_k w_k(n) s_k(n - k hop),    w_k(n) = h(n - k hop) / sum_j h(n - j hop)
    h(m) = sin^2(pi (m + 1/2) / N)

h is never zero, so the sum is positive at every sample that a window holds, the first
and the last ones included. Where all windows agree the result is what they agree on.

The taper is small at the edges of a window, where an error of the frequency has moved
the fitted phase farthest. Windows that do not overlap are put side by side.

Dimensions: B windows in a batch, K waveforms at a time, N samples in a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def taper(window: int) -> NDArray[np.float64]:
    """h, shape (N,): positive, symmetric, sums to one at half overlap (even N)."""
    return np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2


class OverlapAdd:
    """Joins windows that arrive in order; holds what is still open.

    Args:
        window: samples in a window.
        hop: samples from window to window.
        length: samples of the recording; what sticks out beyond is cut off.
        n_waveforms: K, waveforms joined with the same weights.
    """

    def __init__(
        self, *, window: int, hop: int, length: int, n_waveforms: int = 1
    ) -> None:
        self._taper = taper(window)
        self._hop, self._length = hop, length
        self._weighted = np.zeros((n_waveforms, 0))
        self._weight = np.zeros(0)
        self._position = 0

    def add(
        self, waveforms: NDArray[np.float64], fitted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Add the next windows.

        Args:
            waveforms: shape (K, B, N), finite in windows that were fitted.
            fitted: windows that count, shape (B,).

        Returns:
            Joined waveforms of the samples that no later window holds, following
            those of the call before, shape (K, n). NaN where no window was fitted.
        """
        n_windows, window = waveforms.shape[1:]
        reach = self._hop * (n_windows - 1) + window
        grown = max(0, reach - len(self._weight))
        self._weighted = np.pad(self._weighted, ((0, 0), (0, grown)))
        self._weight = np.pad(self._weight, (0, grown))
        for row in np.flatnonzero(fitted):
            part = slice(row * self._hop, row * self._hop + window)
            self._weighted[:, part] += self._taper * waveforms[:, row]
            self._weight[part] += self._taper
        return self._take(self._hop * n_windows)

    def finish(self) -> NDArray[np.float64]:
        """The samples after the last call of `add`, shape (K, n)."""
        return self._take(len(self._weight))

    def _take(self, count: int) -> NDArray[np.float64]:
        kept = min(count, self._length - self._position)
        weight = self._weight[:kept]
        joined = np.divide(
            self._weighted[:, :kept],
            weight,
            out=np.full((len(self._weighted), kept), np.nan),
            where=weight > 0,
        )
        self._weighted = self._weighted[:, count:]
        self._weight = self._weight[count:]
        self._position += kept
        return joined
