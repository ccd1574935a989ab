import json

import numpy as np
import pytest
import torch
from scipy import stats

from sepprior.inference.novelty import (
    FALSE_ALARM,
    band_powers,
    false_alarm_probability,
    freedom,
    measure_null,
    n_bands,
    scores,
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
    expected = power.reshape(3, 8, 4).mean(-1)
    np.testing.assert_allclose(band_powers(x, 8), expected, rtol=1e-12)
    # Total power of white noise of unit variance is 1 in every band.
    many = band_powers(white(4000, seed=2), 8).mean(0)
    np.testing.assert_allclose(many, 1.0, atol=0.05)
    assert freedom(N, 8).tolist() == [8.0] * 7 + [7.0]
    assert freedom(N - 1, 2).tolist() == [32.0, 30.0]


def test_short_windows_have_fewer_bands():
    assert [n_bands(n) for n in (7, 8, 16, 40, 64, 300)] == [0, 1, 2, 4, 8, 8]
    assert n_bands(64, lost=4.0) == 4


@pytest.mark.parametrize("dof", [4.0, 8.0, 37.0])
def test_scores_of_chi_square_variates_are_normal(dof):
    quantiles = np.array([1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
    ratio = torch.from_numpy(stats.chi2.ppf(quantiles, dof) / dof)
    found = scores(ratio, torch.tensor(dof).double())
    np.testing.assert_allclose(found, stats.norm.ppf(quantiles), atol=1.2 / dof)


def test_the_null_is_plain_data(null):
    assert null.keys() >= {"mean", "precision", "quantiles", "windows"}
    assert null["windows"] == 6000
    assert [table["samples"] for table in null["shorter"]] == [32, 16]
    for table in (null, *null["shorter"]):
        assert table["quantiles"] == sorted(table["quantiles"])
        precision = torch.tensor(table["precision"])
        assert precision.shape == (n_bands(table["samples"]),) * 2
        assert float(torch.linalg.eigvalsh(precision)[0]) > 0
    assert json.loads(json.dumps(null)) == null


@pytest.mark.statistical
@pytest.mark.parametrize("windows", [4, 16, 60])
def test_a_null_of_few_windows_is_that_of_gaussian_noise(windows):
    """1 % on average over eight recordings; chance deviations may be kept of some."""
    x = white(3000, 1, seed=21)
    nulls = [measure_null(white(windows, seed=30 + i)) for i in range(8)]
    p = torch.stack([false_alarm_probability(n, x, everywhere(x)) for n in nulls])
    assert 0.006 <= (p < FALSE_ALARM).double().mean() <= 0.02


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


def masks(name: str, n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(11)
    there = torch.ones(n, N, dtype=torch.bool)
    if name == "half":
        there[:, N // 2 :] = False
    elif name == "two thirds":
        there[:, 43:] = False
    elif name == "a hole":
        there[:, 5:25] = False
    elif name == "a start and an end":
        there[:, 10:54] = False
    elif name == "16 samples":
        there[:, 16:] = False
    else:
        there = torch.rand(n, N, generator=rng) > 0.4
    return there


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name",
    ["half", "two thirds", "a hole", "a start and an end", "16 samples", "scattered"],
)
def test_missing_samples_raise_no_alarms(null, name):
    """At 1 % of 4000, 40 expected: 19 to 66 at a rate below 1e-4."""
    present = masks(name, 4000)[:, None]
    x = white(4000, 1, seed=8) * present
    p = false_alarm_probability(null, x, present)
    assert 19 <= (p < FALSE_ALARM).sum() <= 66
    assert stats.kstest(p.numpy(), "uniform").pvalue > 1e-6
    # Negative control: taken for complete, they look quiet.
    wrong = false_alarm_probability(null, x, everywhere(x))
    assert (wrong < FALSE_ALARM).sum() > 66
    # What is left still tells.
    changed = false_alarm_probability(null, 3.0 * x, present)
    assert (changed < FALSE_ALARM).double().mean() > 0.9


@pytest.mark.statistical
@pytest.mark.parametrize("n_samples", [16, 30, N])
def test_what_the_fit_takes_is_allowed_for(null, n_samples):
    """A fitted sinusoid and constant: five directions; bounds as above."""
    t = torch.arange(N).double()
    columns = [torch.ones(N), torch.cos(1.3 * t), torch.sin(1.3 * t)]
    columns += [t * torch.cos(1.3 * t), t * torch.sin(1.3 * t)]
    present = everywhere(white(4000, 1, seed=12))
    present[..., n_samples:] = False
    span = torch.linalg.qr((torch.stack(columns).double() * present[0, 0]).mT)[0].mT
    x = white(4000, 1, seed=12) * present
    left = x - (x @ span.mT) @ span
    directions = span[:, None].expand(4000, 5, 1, N)
    p = false_alarm_probability(null, left, present, directions)
    assert 19 <= (p < FALSE_ALARM).sum() <= 66
    if n_samples == N:
        return
    p = false_alarm_probability(null, left, present)
    assert not 19 <= (p < FALSE_ALARM).sum() <= 66 or (p < 0.5).sum() > 2200


def test_windows_of_a_few_samples_are_not_judged(null):
    x = white(3, 4, seed=9)
    present = everywhere(x)
    present[0] = False  # nothing at all
    present[1, 1:] = False  # one window left
    present[2, 0, 7:] = False  # one window less
    p = false_alarm_probability(null, x * present, present)
    assert torch.isnan(p[0])
    single = false_alarm_probability(null, x[1:2, :1], everywhere(x[1:2, :1]))
    torch.testing.assert_close(p[1:2], single)
    three = false_alarm_probability(null, x[2:, 1:], everywhere(x[2:, 1:]))
    torch.testing.assert_close(p[2:], three)


@pytest.mark.statistical
def test_an_error_of_the_spectrum_is_allowed_for():
    """Levels that scatter by a tenth: 1 % of 3000 with them, many more without."""
    level = (0.1 * white(1, 100, seed=13)[0, :, :1, None]).exp()
    groups = list(level * white(100, 200, seed=14))
    recorded = white(400, seed=15)
    level = (0.1 * white(1, 3000, seed=19)[0, :, :1, None]).exp()
    x = level * white(3000, 1, seed=16)
    alarms = [
        (false_alarm_probability(table, x, everywhere(x)) < FALSE_ALARM).sum()
        for table in (measure_null(recorded, groups), measure_null(recorded))
    ]
    assert alarms[0] < 60 and alarms[1] > 90


def test_tables_of_the_logarithm_are_still_read(null):
    """As older files have them: mean and precision of the log power."""
    rng = white(3000, seed=17)
    powers = band_powers(rng, 8).log()
    old = {
        "mean": powers.mean(0).tolist(),
        "precision": torch.linalg.inv(torch.cov(powers.T)).tolist(),
        "quantiles": torch.from_numpy(
            stats.chi2.ppf(np.linspace(0.001, 0.999, 201), 8)
        ).tolist(),
        "windows": 3000,
    }
    for n_samples in (N, N // 2):
        x = white(3000, 1, seed=18)
        present = everywhere(x)
        present[..., n_samples:] = False
        p = false_alarm_probability(old, x * present, present)
        assert 12 <= (p < FALSE_ALARM).sum() <= 50


def test_without_a_null_nothing_is_known():
    x = white(5, 2, seed=10)
    assert false_alarm_probability(None, x, everywhere(x)).isnan().all()


def test_priors_carry_the_null_of_their_own_noise(gaussian_prior):
    null = gaussian_prior.metadata["novelty"]
    x = gaussian_prior.sample(500, generator=torch.Generator().manual_seed(0))
    residual = gaussian_prior.features(x - gaussian_prior.level)[:, None]
    p = false_alarm_probability(null, residual, everywhere(residual))
    # 5 expected, 15 at a rate below 1e-4.
    assert (p < FALSE_ALARM).sum() < 15
    p = false_alarm_probability(null, 2.0 * residual, everywhere(residual))
    assert float((p < FALSE_ALARM).double().mean()) > 0.9
