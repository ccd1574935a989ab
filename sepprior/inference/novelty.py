"""Has the noise changed since training? A test of the whitened residual.

The residual of the least-squares fit, whitened by the recording's spectrum, has known
power in every band if the noise is still the same. The powers of the samples that are
present, over what the fit leaves of them, are turned into normal scores, whose mean and
covariance are those of recorded noise, widened by what a short recording leaves unknown
of the spectrum. Their Mahalanobis distance gives the probability of a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import chdtri, digamma, polygamma
from torch import Tensor

from sepprior.inference.record import MaskedWhitener, Record
from sepprior.signals.form import Form

N_BANDS = 8
FEWEST_FREEDOM = 8
"""Degrees of freedom of a window, on average, for each band it is judged in."""
QUANTILES = 201
TAIL = (0.02, 0.1)
"""Below this probability the distribution of the distance is extrapolated, at least and
at most."""
FEWEST_BEYOND = 20
"""Recorded distances beyond that probability, if it lies between the two."""
FALSE_ALARM = 0.01
"""A measurement is flagged below this probability."""
SAMPLES_AT_ONCE = 2**18
OVERLAP = 1.5
"""Windows that overlap by half for one that is independent."""
BLOCK = 8
"""Windows in turn that mean and covariance, and the distances, are taken from."""
CHANCE = 3.0
"""Square of a deviation, over that expected by chance, from which it is believed."""
LONG = 16
"""Windows of a record from which what the fit takes from each is neglected."""
FEWEST_WINDOWS = 16
"""Windows from which a covariance is estimated."""


def n_bands(n_samples: int, lost: float = 0.0) -> int:
    """Bands that a window is judged in: 8, 4, 2 or 1; 0 where too little is left."""
    freedom = n_samples - lost
    if freedom < FEWEST_FREEDOM:
        return 0
    return min(N_BANDS, 2 ** int(math.log2(freedom / FEWEST_FREEDOM)))


def band_powers(white: Tensor, bands: int) -> Tensor:
    """Mean power in equal bands of white windows (n, N): (n, bands), each 1 expected.

    The zero frequency is left out.
    """
    some = white.split(max(1, SAMPLES_AT_ONCE // white.shape[-1]))
    count = freedom(white.shape[-1] | 1, bands).to(white.device) / 2.0
    return torch.cat([_summed(_powers(part), bands) for part in some]) / count


def _powers(white: Tensor) -> Tensor:
    """Power at each frequency above zero, (n, N // 2)."""
    return torch.fft.rfft(white.double(), norm="ortho").abs().square()[:, 1:]


def _summed(power: Tensor, bands: int) -> Tensor:
    """Sums over equal bands, (n, bands)."""
    parts = torch.tensor_split(power, bands, dim=-1)
    return torch.stack([part.sum(-1) for part in parts], -1)


def freedom(n_samples: int, bands: int) -> Tensor:
    """Degrees of freedom of `band_powers` of white noise, (bands,).

    Two for each frequency, but one for the last one where N is even.
    """
    parts = torch.tensor_split(torch.full((n_samples // 2,), 2.0).double(), bands)
    total = torch.stack([part.sum() for part in parts])
    if n_samples % 2 == 0:
        total[-1] -= 1.0
    return total


def scores(ratio: Tensor, dof: Tensor) -> Tensor:
    """Normal scores of chi-square variates over their expectation.

    ``((P / E)^(1/3) - (1 - 2 / 9 nu)) / sqrt(2 / 9 nu)`` is nearly normal from nu = 3
    degrees of freedom on (Wilson and Hilferty 1931).
    """
    ninth = 2.0 / (9.0 * dof)
    return (ratio.clamp(0.0, 1e30).pow(1.0 / 3.0) - (1.0 - ninth)) / ninth.sqrt()


def measure_null(white: Tensor, possible: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Statistics of recorded noise, to be stored with the prior.

    Args:
        white: whitened windows of noise (n, N) that overlap by half, in order.
        possible: groups of windows (m, N) of spectra that the recording allows for,
            whitened likewise.

    Returns:
        JSON-able table with mean, precision and distribution of the distance of the
        scores in whole windows, the same of `shorter` ones of a half, a quarter, ...
        of their samples, and the mean products of the spectrum's errors in the bands,
        as logarithms of power.
    """
    n = white.shape[-1]
    sizes = [n >> i for i in range(n.bit_length()) if (n >> i) >= 2 * FEWEST_FREEDOM]
    tables = [_measured(white, size) for size in sizes]
    spectrum = torch.zeros(n_bands(n), n_bands(n)).double()
    if len(possible):
        groups = [band_powers(some, len(spectrum)).mean(0).cpu() for some in possible]
        logs = torch.stack(groups).log()
        # Powers of finite groups scatter even if the spectrum does not.
        chance = 2.0 / (freedom(n, len(spectrum)) * len(possible[0]))
        spectrum = logs.mT @ logs / len(logs)
        spectrum -= torch.diag(chance.minimum(spectrum.diagonal()))
    return {**tables[0], "shorter": tables[1:], "spectrum": spectrum.tolist()}


def _measured(white: Tensor, size: int) -> dict[str, Any]:
    """The table of windows of `size` samples, cut from whitened ones (n, N).

    What deviates from independent normal scores is drawn towards them by its own
    uncertainty. Distances are of windows that gave neither mean nor covariance.
    """
    n, window = white.shape
    each = window // size
    cut = white[:, : each * size].reshape(n * each, size)
    bands = n_bands(size)
    dof = freedom(size, bands)
    z = scores(band_powers(cut, bands).cpu(), dof)
    independent = n * each / OVERLAP
    turn = max(1, min(BLOCK, n // 4)) * each
    half = torch.arange(len(z)) // turn % 2 == 0
    distance = torch.cat(
        [
            _distance(z[one], *_moments(z[~one], independent / 2))
            for one in (half, ~half)
            if one.any() and (~one).any()
        ]
    )
    mean, precision = _moments(z, independent)
    return {
        "samples": size,
        "mean": mean.tolist(),
        "precision": precision.tolist(),
        "quantiles": _quantiles(distance, bands, independent).tolist(),
        "windows": len(distance),
    }


def _moments(z: Tensor, independent: float) -> tuple[Tensor, Tensor]:
    """Mean (p,) and precision (p, p) of scores (n, p), drawn towards 0 and 1."""
    p = z.shape[1]
    mean = z.mean(0)
    kept = _kept(mean.square().sum(), p / independent)
    excess = torch.zeros(p, p).to(z)
    if len(z) >= FEWEST_WINDOWS:
        excess = torch.cov(z.T).reshape(p, p) - torch.eye(p).to(z)
        excess = excess * _kept(excess.square().sum(), p * (p + 1) / independent)
    values, vectors = torch.linalg.eigh(torch.eye(p).to(z) + excess)
    # Less than chi-square scatter is chance, or a line; the mean has an error, too.
    values = values.clamp_min(1.0) + kept / independent
    return kept * mean, vectors @ torch.diag(1.0 / values) @ vectors.T


def _kept(square: Tensor, expected: float) -> Tensor:
    """Share of a deviation that is kept (positive-part James and Stein 1961).

    None of one that chance makes now and then: `CHANCE` times what is expected.
    """
    return (1.0 - CHANCE * expected / square.clamp_min(1e-12)).clamp_min(0.0)


def _levels() -> np.ndarray:
    """Probabilities of the quantiles; the ends stand for those of so many."""
    return np.linspace(0.0, 1.0, QUANTILES).clip(0.25 / QUANTILES, 1 - 0.25 / QUANTILES)


def _normal_quantiles(bands: int) -> Tensor:
    return torch.from_numpy(np.asarray(chdtri(bands, 1.0 - _levels())))


def _quantiles(distance: Tensor, bands: int, independent: float) -> Tensor:
    """Quantiles (201,) of distances (n,), drawn towards those of normal scores."""
    levels = torch.from_numpy(_levels())
    normal = _normal_quantiles(bands)
    density = torch.gradient(levels, spacing=(normal,))[0]
    error = (levels * (1 - levels) / independent).sqrt() / density
    deviation = torch.quantile(distance, levels) - normal
    kept = 1.0 - CHANCE * error.square() / deviation.square().clamp_min(1e-12)
    kept = kept.clamp_min(0.0)
    return (normal + kept * deviation).cummax(0).values


def fitted_directions(
    form: Form, record: Record, whitener: MaskedWhitener, theta: Tensor
) -> Tensor | None:
    """Orthonormal white waveforms (B, P, W, N) that the fit of theta (B, P) explains.

    None for long records, of which a fit takes next to nothing from each window.
    """
    if not theta.shape[1] or record.x.shape[1] > LONG:
        return None
    everyone = torch.arange(len(theta), device=theta.device)
    columns = whitener.forward(form.jacobian_columns(record.t, theta), everyone)
    flat = columns.flatten(2)
    flat = flat / flat.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    basis, triangle = torch.linalg.qr(flat.mT)
    # A parameter that changes nothing takes nothing away.
    known = triangle.diagonal(dim1=-2, dim2=-1).abs() > 1e-9
    return (basis * known[:, None, :]).mT.reshape(columns.shape)


@dataclass(frozen=True)
class Judged:
    """Windows of as many samples, judged in as many bands b.

    Attributes:
        rows: their numbers, (n,).
        n_samples: that are present in each.
        ratio: power of each band over what is expected of it, (n, b).
        dof: degrees of freedom of each, (n, b).
    """

    rows: Tensor
    n_samples: int
    ratio: Tensor
    dof: Tensor

    @property
    def scores(self) -> Tensor:
        """Normal scores of the powers, (n, b)."""
        return scores(self.ratio, self.dof)


def judged_windows(
    white: Tensor, present: Tensor, directions: Tensor | None
) -> Iterator[Judged]:
    """Powers of whitened residuals, by the number of samples that are present.

    These are moved together: without their gaps they are white, too. Arguments are
    those of `false_alarm_probability`; windows with too few samples are left out.
    """
    n_windows, length = white.shape[1:]
    flat, here = white.flatten(0, 1), present.flatten(0, 1)
    counts = here.sum(-1)
    for n in counts.unique().tolist():
        rows = (counts == n).nonzero().flatten()
        if not n_bands(n):
            continue
        lost = flat.new_zeros(len(rows), n // 2).double()
        own = flat[rows]
        order = None
        if n < length:
            order = (~here[rows]).byte().argsort(dim=-1, stable=True)[:, :n]
            own = own.gather(1, order)
        for p in range(0 if directions is None else directions.shape[1]):
            assert directions is not None
            column = directions[rows // n_windows, p, rows % n_windows]
            column = column if order is None else column.gather(1, order)
            lost += _powers(column)
        number = lost.sum(-1).mul(2.0).tolist()
        bands = torch.tensor([n_bands(n, some) for some in number]).to(rows.device)
        power = _powers(own)
        for b in bands.unique().tolist():
            if not b:
                continue
            which = bands == b
            dof = freedom(n, b).to(power) - 2.0 * _summed(lost[which], b)
            dof = dof.clamp_min(1.0)
            expected = 0.5 * dof
            if n % 2 == 0:  # half a frequency, but all of its power
                expected[:, -1] += 0.5
            ratio = _summed(power[which], b) / expected
            yield Judged(rows[which], n, ratio, dof)


def false_alarm_probability(
    null: dict[str, Any] | None,
    white: Tensor,
    present: Tensor,
    directions: Tensor | None = None,
) -> Tensor:
    """Probability that unchanged noise looks at least as strange, (B,).

    Args:
        null: from `measure_null`, or None (then NaN).
        white: whitened residual (B, W, N).
        present: shape (B, W, N).
        directions: orthonormal white waveforms (B, P, W, N) that the fit has taken
            from the residual, or None.

    Returns:
        The smallest over the windows of a measurement, corrected for their number;
        NaN where no window has enough samples.
    """
    shape = white.shape[:2]
    if null is None:
        return white.new_full(shape[:1], float("nan"))
    probability = white.new_full(shape, float("nan")).double().flatten()
    for part in judged_windows(white, present, directions):
        law = _Null.of(null, white.shape[-1], part.n_samples, part.dof)
        probability[part.rows] = law.probability(part.scores)
    probability = probability.view(shape)
    judged = torch.isfinite(probability).sum(-1)
    least = torch.where(torch.isfinite(probability), probability, 2.0).amin(-1)
    corrected = -torch.expm1(judged * torch.log1p(-least.clamp_max(1.0)))
    return torch.where(judged > 0, corrected, torch.nan)


@dataclass(frozen=True)
class _Null:
    """Distribution of the scores (n, b) of unchanged noise.

    Attributes:
        mean: shape (n, b).
        covariance: shape (n, b, b).
        quantiles: of the distance, (201,).
        tail: probability beyond which these are too uncertain.
    """

    mean: Tensor
    covariance: Tensor
    quantiles: Tensor
    tail: float

    @classmethod
    def of(
        cls, null: dict[str, Any], window: int, n_samples: int, dof: Tensor
    ) -> _Null:
        """From a table, for windows of which so many samples are present.

        Between two sizes that were measured, mean, covariance and the ratio of the
        quantiles to those of normal scores go linearly with the size's logarithm.
        """
        bands = dof.shape[1]
        tables = [null, *null.get("shorter", [])]
        usable = [t for t in tables if len(t["mean"]) >= bands]
        below = [t for t in usable if t.get("samples", 0) <= n_samples] or usable[-1:]
        above = [t for t in usable if t.get("samples", 0) > n_samples] or below[:1]
        ends = [(below[0], 1.0)]
        if above[-1] is not below[0]:
            low, high = (math.log(t["samples"]) for t in (below[0], above[-1]))
            share = (high - math.log(n_samples)) / (high - low)
            ends = [(below[0], share), (above[-1], 1.0 - share)]
        mean = dof.new_zeros(bands)
        covariance, ratio = dof.new_zeros(bands, bands), dof.new_zeros(QUANTILES)
        for table, weight in ends:
            own_mean, own_covariance = _merged(
                *_normal_units(table, window, dof), bands
            )
            mean += weight * own_mean
            covariance += weight * own_covariance
            plain = _normal_quantiles(len(table["mean"]))
            ratio += weight * (dof.new_tensor(table["quantiles"]) / plain.to(dof))
        quantiles = (ratio * _normal_quantiles(bands).to(dof)).cummax(0).values
        error = dof.new_zeros(bands, bands)
        if "spectrum" in null:
            error = dof.new_tensor(null["spectrum"])
            group = len(error) // bands
            error = error.view(bands, group, bands, group).mean((1, 3))
        # A relative error of the power is so many standard deviations of its score.
        scale = (0.5 * dof).sqrt()
        return cls(
            mean.expand_as(dof),
            covariance + scale[:, :, None] * scale[:, None, :] * error,
            quantiles,
            min(max(FEWEST_BEYOND / null["windows"], TAIL[0]), TAIL[1]),
        )

    def probability(self, z: Tensor) -> Tensor:
        """Share of unchanged noise that is at a larger distance, (n,).

        The distance is that of normal scores at the same quantile. Beyond all but
        `tail` of them it rises in proportion, by the ratio of the mean excesses
        (Davison and Smith 1990).
        """
        bands = z.shape[1]
        deviation = z - self.mean
        solved = torch.linalg.solve(self.covariance, deviation.unsqueeze(-1))
        distance = (deviation * solved.squeeze(-1)).sum(-1)
        known, normal = self.quantiles, _normal_quantiles(bands).to(z)
        upper = torch.searchsorted(known, distance).clamp(1, QUANTILES - 1)
        low, high = known[upper - 1], known[upper]
        part = ((distance - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        inside = normal[upper - 1] + part * (normal[upper] - normal[upper - 1])
        inside = torch.where(
            distance < known[0], normal[0] * distance / known[0], inside
        )
        start = round((1.0 - self.tail) * (QUANTILES - 1))
        excess = [torch.trapezoid(q[start:] - q[start]) for q in (normal, known)]
        slope = excess[0] / excess[1].clamp_min(1e-12)
        beyond = normal[start] + slope * (distance - known[start])
        like = torch.where(distance > known[start], beyond, inside)
        return torch.special.gammaincc(like.new_tensor(0.5 * bands), 0.5 * like)


def _normal_units(
    table: dict[str, Any], window: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a table's scores.

    Tables without the number of samples are of the logarithm of the power in whole
    windows, as it used to be.
    """
    mean, precision = (like.new_tensor(table[k]) for k in ("mean", "precision"))
    covariance = torch.linalg.inv(precision)
    if "samples" in table:
        return mean, covariance
    half = 0.5 * float(freedom(window, len(mean)).mean())
    deviation = mean - digamma(half) + math.log(half)
    variance = float(polygamma(1, half))
    return deviation / math.sqrt(variance), covariance / variance


def _merged(mean: Tensor, covariance: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the scores of `bands` wider bands."""
    group = len(mean) // bands
    wide = torch.eye(bands).to(mean).repeat_interleave(group, 1) / math.sqrt(group)
    return wide @ mean, wide @ covariance @ wide.T


def _distance(z: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    deviation = z - mean
    return torch.einsum("ni,ij,nj->n", deviation, precision, deviation)
