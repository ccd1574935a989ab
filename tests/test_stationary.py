"""Level, autocovariance and continuum against direct sums and known processes."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from sepprior.stationary import (
    autocovariance,
    autoregressive,
    autoregressive_order,
    continuum_autocovariance,
    expected_periodogram,
)
from sepprior.transforms import toeplitz

N_LAGS = 32


def direct(blocks, n_lags, *, biased=False):
    """The definition, pair by pair; samples that are not finite are left out."""
    everything = np.concatenate(blocks)
    mean = everything[np.isfinite(everything)].mean()
    products, pairs = np.zeros(n_lags), np.zeros(n_lags)
    for block in blocks:
        w = ramps(block, 0.5 * n_lags)
        y = np.where(np.isfinite(block), block - mean, 0.0)
        for k in range(min(n_lags, block.size)):
            both = w[: block.size - k] * w[k:]
            products[k] += (both * y[: block.size - k] * y[k:]).sum()
            pairs[k] += both.sum()
    return mean, products / (pairs[0] if biased else pairs)


def ramps(block, longest):
    """Weights of a block, stretch by stretch."""
    w = np.zeros(block.size)
    ends = np.flatnonzero(np.diff([0, *np.isfinite(block).astype(int), 0]))
    for begin, end in zip(ends[::2], ends[1::2], strict=True):
        ramp = min(max(1, (end - begin) / 8), max(1, longest))
        for t in range(begin, end):
            depth = min(t - begin, end - 1 - t) + 0.5
            w[t] = np.sin(0.5 * np.pi * min(1.0, depth / ramp)) ** 2
    return w


def ar1(rng, n, pole):
    burn = 500
    return lfilter([1.0], [1.0, -pole], rng.standard_normal(n + burn))[burn:]


# --- autocovariance -------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 3.0, -1e4])
def test_one_block_gives_the_weighted_sums_exactly(offset):
    x = np.random.default_rng(1).standard_normal(500) + offset
    mean, found = autocovariance([x], n_lags=N_LAGS)
    assert mean == pytest.approx(x.mean(), rel=1e-12)
    np.testing.assert_allclose(found, direct([x], N_LAGS)[1], atol=1e-10)
    # The estimate without weights is another one.
    y = x - x.mean()
    sharp = np.correlate(y, y, "full")[499 : 499 + N_LAGS] / (500 - np.arange(N_LAGS))
    assert np.abs(found.numpy() - sharp).max() > 1e-3


def test_blocks_give_the_sum_over_pairs_inside_each():
    rng = np.random.default_rng(2)
    blocks = [ar1(rng, n, 0.9) + 5.0 for n in (100, 257, 90, 3)]
    mean, found = autocovariance(iter(blocks), n_lags=N_LAGS)
    reference_mean, reference = direct(blocks, N_LAGS)
    assert mean == pytest.approx(reference_mean, rel=1e-12)
    np.testing.assert_allclose(found, reference, atol=1e-11)


def steep(rng, n):
    """A resonance that is 10^5 times stronger than the noise at high frequencies."""
    return lfilter([1.0], [1.0, -1.96, 0.9801], rng.standard_normal(n + 3000))[3000:]


def innovation(r):
    """Variance of a sample given those before it, by the normal equations."""
    a = solve_toeplitz(r[:-1], r[1:])
    return r[0] - a @ r[1:]


def test_a_steep_spectrum_is_not_buried_by_the_ends_of_blocks():
    """The innovations have variance 1; sharp ends make them something else."""
    rng = np.random.default_rng(21)
    blocks = [steep(rng, 2000) for _ in range(20)]
    _, found = autocovariance(blocks, n_lags=64)
    assert innovation(found.numpy()) == pytest.approx(1.0, abs=0.03)
    sharp = sum(np.correlate(b, b, "full")[1999:2063] for b in blocks)
    sharp /= sum(b.size for b in blocks)
    assert innovation(sharp) > 1.5
    assert innovation(sharp / (1.0 - np.arange(64) / 2000)) < 0.5


def test_blocks_as_short_as_the_lags_give_a_positive_definite_estimate():
    rng = np.random.default_rng(22)
    blocks = [steep(rng, 70) for _ in range(4)]
    _, found = autocovariance(blocks, n_lags=64)
    expected = torch.from_numpy(direct(blocks, 64, biased=True)[1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(toeplitz(found))[0] > 0.0
    unbiased = torch.from_numpy(direct(blocks, 64)[1])
    assert torch.linalg.eigvalsh(toeplitz(unbiased))[0] < 0.0


@pytest.mark.parametrize(("line", "unbiased"), [(3.0, True), (0.0, False)])
def test_many_short_blocks_keep_a_line_sharp(line, unbiased):
    """The biased estimate loses half of a line at half the lags; noise bears it."""
    rng = np.random.default_rng(23)
    t = np.arange(32)
    phases = rng.uniform(0.0, 2.0 * np.pi, 400)
    blocks = [
        ar1(rng, 32, 0.6) + line * np.cos(2.0 * np.pi * 0.11 * t + p) for p in phases
    ]
    _, found = autocovariance(blocks, n_lags=32)
    expected = torch.from_numpy(direct(blocks, 32, biased=not unbiased)[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # Of too few blocks nobody can tell: the safe one.
    _, few = autocovariance(blocks[:60], n_lags=32)
    safe = torch.from_numpy(direct(blocks[:60], 32, biased=True)[1])
    torch.testing.assert_close(few, safe, rtol=1e-6, atol=1e-6)


def test_streaming_loses_little_and_never_holds_the_whole():
    x = ar1(np.random.default_rng(3), 20_000, 0.9) + 2.0
    whole_mean, whole = autocovariance([x], n_lags=N_LAGS)
    seen = []

    def stream():
        for start in range(0, x.size, 1000):
            seen.append(start)
            yield x[start : start + 1000]

    mean, found = autocovariance(stream(), n_lags=N_LAGS)
    assert len(seen) == 20
    assert mean == pytest.approx(whole_mean, rel=1e-12)
    np.testing.assert_allclose(found, whole, atol=0.01 * float(whole[0]))
    # Far longer pairs than blocks are where streaming would show.
    _, tiny = autocovariance(
        (x[s : s + 33] for s in range(0, x.size, 33)), n_lags=N_LAGS
    )
    assert float((tiny - whole).abs().max()) > 0.01 * float(whole[0])


def test_gaps_are_left_out_not_filled():
    rng = np.random.default_rng(4)
    x = ar1(rng, 3000, 0.9) + 10.0
    complete = autocovariance([x], n_lags=N_LAGS)
    x[rng.random(3000) < 0.3] = np.nan
    x[1000:1200] = np.inf  # an overflow is a gap too
    mean, found = autocovariance([x], n_lags=N_LAGS)
    reference_mean, reference = direct([x], N_LAGS)
    assert mean == pytest.approx(reference_mean, rel=1e-12)
    np.testing.assert_allclose(found, reference, atol=1e-10)
    np.testing.assert_allclose(found, complete[1], atol=0.15 * float(complete[1][0]))
    # Gaps filled with the mean would shrink the correlations by the share of pairs.
    filled = np.where(np.isfinite(x), x, mean)
    _, naive = autocovariance([filled], n_lags=N_LAGS)
    assert float(naive[1]) < 0.7 * float(found[1])


def test_blocks_of_nothing_but_gaps_are_skipped():
    x = np.random.default_rng(5).standard_normal(200)
    gap = np.full(50, np.nan)
    mean, found = autocovariance([gap, x, gap], n_lags=8)
    reference_mean, reference = autocovariance([x], n_lags=8)
    assert mean == pytest.approx(reference_mean)
    np.testing.assert_allclose(found, reference, atol=1e-14)


def test_a_lag_without_a_single_pair_is_zero():
    # The first block's mean, the pivot, is 5 off the mean of all.
    blocks = [np.array([10.0, 10.0, 11.0, 9.0]), np.array([0.0, 0.0, 1.0, -1.0])]
    _, found = autocovariance(blocks, n_lags=8)
    np.testing.assert_allclose(found[4:], 0.0, atol=1e-12)
    assert float(found[0]) == pytest.approx(25.5)


@pytest.mark.parametrize("blocks", [[], [np.full(9, np.nan)], [np.array([1.0])]])
def test_no_samples_are_an_error(blocks):
    with pytest.raises(ArithmeticError, match="no finite samples"):
        autocovariance(blocks, n_lags=4)


def test_the_estimate_of_one_block_is_positive_definite():
    x = np.random.default_rng(6).standard_normal(80).cumsum()
    _, r = autocovariance([x], n_lags=80)
    lag = np.arange(80)
    np.linalg.cholesky(r.numpy()[abs(lag[:, None] - lag)])


# --- continuum ------------------------------------------------------------------------


def pink(rng, n, corner):
    frequency = np.fft.rfftfreq(n)
    gain = np.maximum(frequency, corner) ** -0.5
    return np.fft.irfft(gain * np.fft.rfft(rng.standard_normal(n)), n)


@pytest.mark.parametrize("kind", ["ar1", "pink"])
def test_the_continuum_keeps_the_noise_and_drops_the_line(kind):
    rng = np.random.default_rng(7)
    n = 64 * 16 * 20
    noise = ar1(rng, n, 0.8) if kind == "ar1" else pink(rng, n, 1 / 64)
    _, truth = autocovariance([noise], n_lags=64)
    variance = float(truth[0])
    line = np.sqrt(2 * variance) * np.sin(2 * np.pi * 0.123 * np.arange(n) + 1)
    found = continuum_autocovariance([noise + line], n_lags=64, mean=0.0)
    assert found is not None
    assert float((found - truth).abs().max()) < 0.1 * variance
    # The plain autocovariance carries the line: its variance is that of the noise.
    _, plain = autocovariance([noise + line], n_lags=64)
    assert float((plain - truth).abs().max()) > 0.9 * variance


def test_the_continuum_of_an_ar1_process_is_its_closed_form():
    rng = np.random.default_rng(8)
    x = ar1(rng, 200_000, 0.6) + 4.0
    blocks = np.array_split(x, 3)
    found = continuum_autocovariance(blocks, n_lags=32, mean=4.0)
    closed = 0.6 ** np.arange(32) / (1 - 0.6**2)
    np.testing.assert_allclose(found, closed, atol=0.03 * closed[0])


@pytest.mark.statistical
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_few_segments_do_not_bias_the_level(segments):
    """Standard error < 0.6 % of 60 draws; 5 % is beyond 5 sigma and the bias of 1."""
    rng = np.random.default_rng(9)
    n = 32
    levels = [
        float(
            continuum_autocovariance(
                [rng.standard_normal(16 * n + (segments - 1) * 8 * n)],
                n_lags=n,
                mean=0.0,
            )[0]
        )
        for _ in range(60)
    ]
    assert np.mean(levels) == pytest.approx(1.0, abs=0.06)


def test_segments_with_gaps_are_skipped_and_too_short_ones_give_none():
    rng = np.random.default_rng(10)
    x = rng.standard_normal(16 * 32 * 4)
    reference = continuum_autocovariance([x[: 16 * 32]], n_lags=32, mean=0.0)
    x[16 * 32] = x[16 * 32 + 300] = x[16 * 32 + 700] = x[1500] = np.nan
    x[1800:] = np.nan
    found = continuum_autocovariance([x], n_lags=32, mean=0.0)
    np.testing.assert_allclose(found, reference, atol=1e-12)
    assert continuum_autocovariance([x[:500]], n_lags=32, mean=0.0) is None


def test_expected_periodogram_is_the_quadratic_form_of_the_covariance():
    lag = torch.arange(24, dtype=torch.float64)
    rho = 0.8**lag + 0.5 * torch.cos(2.0 * math.pi * 0.2 * lag)
    found = expected_periodogram(rho, n_fft=96)
    angle = -2.0 * math.pi / 96 * lag.new_tensor(range(49))[:, None] * lag
    wave = torch.polar(torch.ones_like(angle), angle)
    exact = (wave.conj() @ toeplitz(rho).cdouble() * wave).sum(-1).real / 24
    torch.testing.assert_close(found, exact)


# --- autoregressive processes ---------------------------------------------------------


def test_the_lags_of_an_autoregressive_process_go_on():
    r = 0.6 ** torch.arange(40, dtype=torch.float64)
    for order in (1, 2, 8):
        found = autoregressive(r, order, n_lags=60)
        expected = 0.6 ** torch.arange(60, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert autoregressive(r, 0, n_lags=3).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.statistical
def test_short_recordings_are_described_by_few_coefficients():
    """White noise by none, AR(1) by one or a few, a line by very many."""
    rng = np.random.default_rng(3)
    orders = {"white": [], "ar": [], "line": []}
    t = np.arange(3000)
    for _ in range(5):
        white = rng.standard_normal(3000)
        line = 5 * np.sin(0.7 * t + rng.uniform(0, 6)) + white
        for name, x in ("white", white), ("ar", ar1(rng, 3000, 0.6)), ("line", line):
            gap = x.copy()
            gap[500:520] = np.nan
            orders[name].append(autoregressive_order([gap], n_lags=100, mean=0.0))
    assert max(orders["white"]) <= 4 and orders["white"].count(0) >= 2
    assert min(orders["ar"]) >= 1 and max(orders["ar"]) <= 8
    assert all(order is None or order >= 16 for order in orders["line"])
