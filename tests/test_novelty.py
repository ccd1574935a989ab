import numpy as np
import pytest
import torch
from scipy import stats

from sepprior.inference.novelty import (
    FALSE_ALARM,
    band_powers,
    false_alarm_probability,
    measure_null,
)
from sepprior.transforms import Whitener

N = 64


def white(*shape: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, N, generator=rng, dtype=torch.float64)


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


@pytest.fixture(scope="module")
def null():
    return measure_null(white(6000, seed=0))


def test_band_powers_are_mean_periodograms():
    x = white(3, seed=1)
    power = np.abs(np.fft.rfft(x.numpy(), norm="ortho"))[:, 1:] ** 2
    expected = np.log(power.reshape(3, 8, 4).mean(-1))
    np.testing.assert_allclose(band_powers(x), expected, rtol=1e-12)
    # Total power of white noise of unit variance is 1 in every band.
    many = band_powers(white(4000, seed=2)).exp().mean(0)
    np.testing.assert_allclose(many, 1.0, atol=0.05)
    assert band_powers(torch.zeros(2, N)).isfinite().all()


def test_short_windows_have_fewer_bands():
    assert band_powers(torch.ones(2, 8)).shape == (2, 4)


def test_the_null_is_plain_data(null):
    assert set(null) == {"mean", "precision", "quantiles", "windows"}
    assert null["windows"] == 3000
    assert null["quantiles"] == sorted(null["quantiles"])
    precision = torch.tensor(null["precision"])
    assert precision.shape == (8, 8)
    assert float(torch.linalg.eigvalsh(precision)[0]) > 0


@pytest.mark.statistical
def test_unchanged_noise_has_flat_probabilities(null):
    """Kolmogorov-Smirnov, false-alarm rate 1e-3, with the null's own scatter added.

    The null's quantiles come from 3000 windows, so that its distribution function is
    itself off by up to 1.95 / sqrt(3000) = 0.036 at that rate.
    """
    x = white(2000, 1, seed=3)
    p = false_alarm_probability(null, x, everywhere(x)).numpy()
    both = stats.kstwobign.isf(1e-3) * np.sqrt(1 / 2000 + 1 / 3000)
    assert stats.kstest(p, "uniform").statistic < both
    # At the threshold for the flag: 20 expected, 6 to 40 at a rate below 1e-3.
    assert 6 <= (p < FALSE_ALARM).sum() <= 40
    # Negative control: half as much power again in the upper half is not flat.
    changed = torch.fft.rfft(x)
    changed[..., 16:] *= 1.5**0.5
    changed = torch.fft.irfft(changed, N)
    p = false_alarm_probability(null, changed, everywhere(x)).numpy()
    assert stats.kstest(p, "uniform").statistic > both


@pytest.mark.statistical
@pytest.mark.parametrize("n_windows", [4, 10, 30])
def test_many_windows_raise_no_more_alarms(null, n_windows):
    """The smallest probability is corrected for their number, also far in the tail."""
    x = white(1000, n_windows, seed=4)
    p = false_alarm_probability(null, x, everywhere(x))
    assert p.shape == (1000,)
    # 10 expected; extrapolation of the tail may double it, Poisson at rate 1e-3.
    assert (p < FALSE_ALARM).sum() <= stats.poisson.isf(1e-3, 20)
    assert 350 < (p < 0.5).sum() < 650


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 2.0 * x,
        lambda x: 0.5 * x,
        lambda x: Whitener(0.7 ** torch.arange(N).double()).inverse(x),
        lambda x: x + 3 * torch.sin(torch.arange(N) * 1.3),
    ],
    ids=["louder", "quieter", "coloured", "line"],
)
def test_changed_noise_is_flagged(null, change):
    x = white(200, 1, seed=5)
    before = false_alarm_probability(null, x, everywhere(x))
    after = false_alarm_probability(null, change(x), everywhere(x))
    assert float((after < FALSE_ALARM).double().mean()) > 0.9
    assert float((before < FALSE_ALARM).double().mean()) < 0.05
    assert float(after.median()) < 1e-4
    assert ((after >= 0) & (after <= 1)).all()


def test_the_tail_falls_on(null):
    x = white(1, 1, seed=6)
    scales = torch.tensor([1.0, 2.0, 3.0, 5.0, 10.0, 100.0])
    p = torch.cat([false_alarm_probability(null, s * x, everywhere(x)) for s in scales])
    assert (p[1:] < p[:-1]).all() or float(p[-1]) == 0.0
    assert float(p[2]) < 1e-6 and float(p[-1]) < 1e-30


def test_probability_is_continuous_and_monotonic(null):
    """In the distance: no step where the recorded distances end."""
    x = white(1, 1, seed=7)
    scales = torch.linspace(1.2, 2.5, 400)
    p = torch.cat([false_alarm_probability(null, s * x, everywhere(x)) for s in scales])
    assert (p[1:] <= p[:-1]).all()
    moderate = p > 1e-6
    ratio = (p[1:] / p[:-1])[moderate[1:]]
    assert float(ratio.min()) > 0.7


def test_masked_samples_are_allowed_for(null):
    """A quarter missing: the power of the rest is rescaled, not taken for quiet."""
    x = white(1000, 1, seed=8)
    present = everywhere(x)
    present[..., 40:56] = False
    masked = x * present
    p = false_alarm_probability(null, masked, present)
    assert float((p < FALSE_ALARM).double().mean()) < 0.06
    # Negative control: taken for complete, they look quiet.
    wrong = false_alarm_probability(null, masked, everywhere(x))
    assert wrong.mean() < 0.8 * p.mean()


def test_mostly_missing_windows_are_not_judged(null):
    x = white(3, 4, seed=9)
    present = everywhere(x)
    present[0] = False  # nothing at all
    present[1, 1:] = False  # one window left
    present[2, 0, : N // 2 + 1] = False  # one window less
    p = false_alarm_probability(null, x * present, present)
    assert torch.isnan(p[0])
    single = false_alarm_probability(null, x[1:2, :1], everywhere(x[1:2, :1]))
    torch.testing.assert_close(p[1:2], single)
    three = false_alarm_probability(null, x[2:, 1:], everywhere(x[2:, 1:]))
    torch.testing.assert_close(p[2:], three)


def test_without_a_null_nothing_is_known():
    x = white(5, 2, seed=10)
    assert false_alarm_probability(None, x, everywhere(x)).isnan().all()


def test_priors_carry_the_null_of_their_own_noise(gaussian_prior):
    null = gaussian_prior.metadata["novelty"]
    x = gaussian_prior.sample(500, generator=torch.Generator().manual_seed(0))
    residual = gaussian_prior.features(x - gaussian_prior.level)[:, None]
    p = false_alarm_probability(null, residual, everywhere(residual))
    # The null is known from 200 windows only.
    assert float((p < FALSE_ALARM).double().mean()) < 0.05
    p = false_alarm_probability(null, 2.0 * residual, everywhere(residual))
    assert float((p < FALSE_ALARM).double().mean()) > 0.9
