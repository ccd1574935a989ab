"""Signal or noise only: how large the gain gets when there is no signal.

The statistic is the gain in log-likelihood over no signal (a constant, if the signal
has one): under the prior where that gave the answer, else that of GLS. Its distribution
in noise alone is known in closed form for one sinusoid in Gaussian noise; for other
signals Gaussian noise is drawn and fitted.

Bursts and jumps gain more than Gaussian noise of the same spectrum: by how much is
measured on the recording when a prior is trained, and the gains of a sinusoid are
judged by what they would be in Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepprior.inference.least_squares import gls_features, solve_normal
from sepprior.inference.periodogram import periodogram
from sepprior.inference.record import MaskedWhitener, Record, lay_out
from sepprior.inference.starts import gls_starts
from sepprior.priors import Prior
from sepprior.signals.form import Form, Geometry
from sepprior.signals.sinusoids import Sinusoids
from sepprior.transforms import Whitener

N_SIMULATED = 60
"""Noise records that are fitted to learn the distribution of the gain."""
TAIL = 0.2
"""Share of the largest simulated gains that the exponential tail is fitted to."""
GAIN_BANDS = (1.0, 2.5, 8.0, 36.0)
"""Lower ends, in cycles per window, of the bands in which recorded gains are ranked."""
GAIN_STEP = 0.5
GRID_AT_ONCE = 2**22
"""Points of the grids of all windows that are transformed together; bounds memory."""
MOST_GAINS = 2**24
"""Recorded gains that are kept of a band."""
FEWEST_BEYOND = 20.0
"""Recorded gains, of independent windows and frequencies, beyond the last quantile."""


@dataclass(frozen=True)
class NullGains:
    """Distribution of the largest gain in noise alone.

    Attributes:
        width: effective number of independent frequencies, W; see `probability`.
        gains: simulated gains in ascending order, nats, which take precedence.
        recorded: table from `measure_gains`, for `threshold`.
        cycles: lowest and highest frequency searched, cycles per window.
        windows: how many the record has.
    """

    width: float
    gains: Tensor | None = None
    recorded: dict[str, Any] | None = None
    cycles: tuple[float, float] = (0.0, math.inf)
    windows: int = 1

    def probability(self, gain: Tensor) -> Tensor:
        """Probability that noise alone gains at least as much, any shape.

        In Gaussian noise the gain of a sinusoid is half a chi-square variate of two
        degrees of freedom at each frequency, and its maximum over a band of width B
        exceeds z with probability ``1 - (1 - exp(-z)) exp(-W sqrt(z) exp(-z))`` where
        ``W = B T sqrt(pi / 3)`` (Baluev 2008, equations 5 and 6). Simulated gains are
        ranked; beyond four fifths of them the tail is exponential with their mean
        excess.
        """
        gain = gain.clamp_min(0.0)
        if self.gains is None:
            z = gain.clamp_min(1e-12)
            crossings = self.width * z.sqrt() * torch.exp(-z)
            return -torch.expm1(torch.log1p(-torch.exp(-z)) - crossings)
        gains = self.gains.to(gain)
        n = len(gains)
        larger = n - torch.searchsorted(gains, gain.contiguous())
        start = n - math.ceil(TAIL * n)
        excess = gains[start:] - gains[start]
        scale = excess.mean().clamp_min(1e-12)
        beyond = TAIL * torch.exp(-(gain - gains[start]) / scale)
        ranked = (larger + 1.0) / (n + 1.0)
        return torch.where(gain > gains[start], beyond, ranked)

    def threshold(self, probability: float) -> float:
        """Gain that noise alone exceeds with this probability, nats.

        Where recorded gains are known, that of the band in which they are largest.
        """
        low, high = 0.0, 1.0
        while float(self.probability(torch.tensor(high).double())) > probability:
            high *= 2.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = float(self.probability(torch.tensor(middle).double()))
            low, high = (middle, high) if above > probability else (low, middle)
        return high + (self._in_recorded_noise(high) - high) / self.windows

    def _in_recorded_noise(self, gain: float) -> float:
        """The gain that recorded noise exceeds as often as Gaussian noise this one."""
        if self.recorded is None:
            return gain
        edges, found = self.recorded["cycles"], [gain]
        for low, high, row in zip(
            edges, [*edges[1:], math.inf], self.recorded["gains"], strict=True
        ):
            if low < self.cycles[1] and high > self.cycles[0]:
                at = gain / self.recorded["step"]
                upper = min(max(1, math.ceil(at)), len(row) - 1)
                slope = row[upper] - row[upper - 1]
                found.append(row[upper] + (at - upper) * slope)
        return max(found)


def null_gains(
    prior: Prior, form: Form, geometry: Geometry, *, fmin: float, fmax: float, seed: int
) -> NullGains:
    """The distribution of the gain of a form in Gaussian noise of the prior's spectrum.

    Args:
        prior: the noise.
        form: the signal.
        geometry: of the records.
        fmin: lowest frequency searched, Hz.
        fmax: highest frequency searched, Hz.
        seed: of the simulated noise.
    """
    width = (fmax - fmin) * geometry.duration * math.sqrt(math.pi / 3.0)
    n_windows = -(-geometry.length // prior.window)
    if isinstance(form.search, Sinusoids):
        scale = prior.window / prior.sample_rate
        return NullGains(
            width,
            recorded=prior.metadata.get("gains"),
            cycles=(fmin * scale, fmax * scale),
            windows=n_windows,
        )
    n = max(20, N_SIMULATED // n_windows)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(
        (n * n_windows, prior.window), generator=generator, dtype=torch.float64
    )
    noise = Whitener(prior.autocovariance).inverse(white.to(prior.device))
    record = lay_out(
        noise.reshape(n, -1)[:, : geometry.length],
        window=prior.window,
        level=0.0,
        sample_rate=geometry.sample_rate,
    )
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    fit = gls_starts(form, record, whitener, n_starts=1)[0]
    gain = no_signal_energy(form, record, whitener) - fit.energy
    return NullGains(width, gain.clamp_min(0.0).sort().values)


def measure_gains(
    noise: Tensor, autocovariance: Tensor, *, sample_rate: float
) -> dict[str, Any]:
    """How gains in recorded noise compare with those in Gaussian noise.

    Args:
        noise: overlapping recorded windows (n, N), data units without the level.
        autocovariance: shape (N,), of the noise.
        sample_rate: Hz.

    Returns:
        JSON-able table: lower ends of frequency bands in cycles per window, and for
        each band the gains that recorded noise exceeds as often as Gaussian noise
        exceeds 0, 0.5, 1, ... nats. A deviation is drawn towards none by its own
        uncertainty.
    """
    n, length = noise.shape
    edges = [c for c in GAIN_BANDS if c < 0.45 * length]
    rows = []
    bands = _recorded_gains(noise, autocovariance, edges, sample_rate=sample_rate)
    for low, (highest, n_kept, gains) in zip(edges, bands, strict=True):
        # Windows overlap by half, and gains half a cycle apart are independent.
        independent = min(0.5 * n, n_kept) * max(1.0, highest - low)
        deepest = math.log(max(independent / FEWEST_BEYOND, math.e))
        row = [0.0]
        for step in range(1, int(deepest / GAIN_STEP) + 1):
            expected = GAIN_STEP * step
            index = round(-math.expm1(-expected) * (len(gains) - 1))
            deviation = float(gains[index]) - expected
            spread = math.exp(0.5 * expected) / math.sqrt(independent)
            keep = max(0.0, 1.0 - spread**2 / max(deviation**2, 1e-12))
            row.append(max(row[-1] + 1e-6, expected + keep * deviation))
        rows.append(row)
    return {"cycles": edges, "step": GAIN_STEP, "gains": rows}


def both_gains(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A table with the deviations from Gaussian noise of two, of the same windows.

    The last deviation of a shorter row goes on.
    """
    rows = []
    for pair in zip(one["gains"], other["gains"], strict=True):
        expected = one["step"] * np.arange(max(map(len, pair)))
        total = expected.copy()
        for row in pair:
            deviation = np.array(row) - expected[: len(row)]
            total += np.pad(deviation, (0, len(total) - len(row)), mode="edge")
        rising = np.maximum.accumulate(total - 1e-6 * np.arange(len(total)))
        rows.append((rising + 1e-6 * np.arange(len(total))).tolist())
    return {**one, "gains": rows}


def _recorded_gains(
    noise: Tensor, autocovariance: Tensor, edges: list[float], *, sample_rate: float
) -> Iterator[tuple[float, int, NDArray[np.float64]]]:
    """Of each band the highest frequency, how many windows, and their gains, sorted.

    Windows are transformed a few at a time. Of a band with more than `MOST_GAINS`
    gains, those of windows spread evenly are kept.
    """
    n, length = noise.shape
    whitener = Whitener(autocovariance)
    resolution = sample_rate / length
    # A power of two of rows, so that products of matrices round as those of all do.
    at_once = 2 ** max(0, math.floor(math.log2(GRID_AT_ONCE / (8 * length))))
    cycles = noise.new_empty(0)
    kept: list[list[Tensor]] = [[] for _ in edges]
    for begin in range(0, n, at_once):
        part = noise[begin : begin + at_once]
        record = lay_out(part, window=length, level=0.0, sample_rate=sample_rate)
        spectrum = periodogram(
            record,
            MaskedWhitener(whitener, record.present),
            fmin=edges[0] * resolution,
            fmax=0.45 * sample_rate,
        )
        cycles = spectrum.frequency / resolution
        for gains, band in zip(kept, _bands(cycles, edges), strict=True):
            wanted = _spread(n, MOST_GAINS // (band.stop - band.start))
            here = wanted[(wanted >= begin) & (wanted < begin + len(part))] - begin
            gains.append(spectrum.gain[here.to(part.device), band])
    for band in _bands(cycles, edges):
        gains = torch.cat(kept.pop(0))
        ascending = gains.flatten().cpu().numpy()
        ascending.sort()
        yield float(cycles[band.stop - 1]), len(gains), ascending


def _bands(cycles: Tensor, edges: list[float]) -> list[slice]:
    """Which of ascending frequencies lie in each band, those below in the first."""
    at = torch.tensor(edges[1:], dtype=cycles.dtype, device=cycles.device)
    places = [0, *torch.searchsorted(cycles, at).tolist(), len(cycles)]
    return [slice(a, b) for a, b in pairwise(places)]


def _spread(n: int, most: int) -> Tensor:
    """Numbers of at most `most` of n windows, spread evenly."""
    count = min(n, max(1, most))
    return torch.arange(count) * n // count


def gaussian_gains(
    table: dict[str, Any] | None, gain: Tensor, cycles: Tensor, *, windows: int
) -> Tensor:
    """Gains (B, F) as rare in Gaussian noise as the given ones in recorded noise.

    Args:
        table: from `measure_gains`, or None: the gains as they are.
        gain: at each frequency, nats.
        cycles: frequencies in cycles per window of the prior, (F,).
        windows: how many of these the record has. What sets the noise apart from
            Gaussian noise averages out as its kurtosis does, as one over their number.
    """
    if table is None:
        return gain
    edges = torch.tensor(table["cycles"], dtype=cycles.dtype, device=cycles.device)
    band = (torch.searchsorted(edges, cycles, right=True) - 1).clamp_min(0)
    found = torch.empty_like(gain)
    for i, row in enumerate(table["gains"]):
        inside = band == i
        known = gain.new_tensor(row)
        part = gain[:, inside].clamp_min(0.0).contiguous()
        upper = torch.searchsorted(known, part).clamp(1, len(row) - 1)
        low, high = known[upper - 1], known[upper]
        # Beyond the last quantile the last step goes on.
        share = (part - low) / (high - low)
        found[:, inside] = table["step"] * (upper - 1 + share)
    return gain + (found - gain) / windows


def largest_gaussian_gain(
    table: dict[str, Any] | None, gain: Tensor, cycles: Tensor, *, windows: int
) -> Tensor:
    """The largest of `gaussian_gains` over frequency, (B,).

    The map rises with the gain, so that only the largest gain of each band need be
    mapped. Arguments are those of `gaussian_gains`, `cycles` in ascending order.
    """
    if table is None:
        return gain.amax(-1)
    bands = [b for b in _bands(cycles, table["cycles"]) if b.start < b.stop]
    peaks = torch.stack([gain[:, band].amax(-1) for band in bands], -1)
    first = cycles[[band.start for band in bands]]
    return gaussian_gains(table, peaks, first, windows=windows).amax(-1)


def no_signal_energy(form: Form, record: Record, whitener: MaskedWhitener) -> Tensor:
    """Half the whitened squares of the data, a constant fitted if the form has one."""
    everyone = torch.arange(len(record.x), device=record.x.device)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    energy = 0.5 * target.square().sum(-1)
    if not form.has_constant:
        return energy
    ones = features(torch.ones_like(record.x).unsqueeze(1), everyone)
    right = (ones @ target.unsqueeze(-1)).squeeze(-1)
    return energy - 0.5 * (right * solve_normal(ones @ ones.mT, right)).sum(-1)
