import json
import math

import numpy as np
import pytest
import torch

from sepprior.inference import calibration
from sepprior.inference.calibration import (
    BANDS,
    KINDS,
    Z95,
    _factor,
    _factors,
    analyse_batch,
    factors,
    measure_calibration,
    trials_per_band,
)
from sepprior.priors import GaussianPrior, Prior, WaveformPrior
from sepprior.signals import to_polar
from sepprior.transforms import toeplitz

N = 64
RATE = 100.0
R = 2.0 * 0.6 ** torch.arange(N, dtype=torch.float64)


def gaussian(scale: float = 1.0) -> GaussianPrior:
    return GaussianPrior(scale * R, level=0.5, sample_rate=RATE)


def noise(seed: int = 0, prior: Prior | None = None):
    """Windows of noise of `prior`, by default AR(1) of autocovariance `R`."""
    source = prior or gaussian()
    rng = torch.Generator().manual_seed(seed)
    return lambda n: source.sample(n, generator=rng).numpy()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 300)


# -- one factor ----------------------------------------------------------------------


def test_exact_error_bars_stay_as_they_are():
    """Where the quantile is within its own uncertainty, the factor is exactly 1."""
    rng = np.random.default_rng(0)
    draws = [np.abs(rng.standard_normal(300)) for _ in range(200)]
    for level, expected in ((0.6827, 1.0), (0.95, Z95)):
        found = np.array([_factor(z, level, expected) for z in draws])
        raw = np.array([np.quantile(z, level) / expected for z in draws])
        # P(|deviation| < one standard error) = 0.68.
        assert 0.5 < (found == 1.0).mean() < 0.85
        assert np.abs(found - 1).mean() < 0.5 * np.abs(raw - 1).mean()
        assert (np.abs(found - 1) <= np.abs(raw - 1)).all()


@pytest.mark.parametrize("truth", [0.5, 2.0, 5.0])
def test_wrong_error_bars_are_found(truth):
    z = truth * np.abs(np.random.default_rng(1).standard_normal(2000))
    assert _factor(z, 0.6827, 1.0) == pytest.approx(truth, rel=0.06)
    assert _factor(z, 0.95, Z95) == pytest.approx(truth, rel=0.08)


def test_shrinkage_follows_the_number_of_trials():
    """One and the same deviation is believed the more, the more trials show it."""
    quantiles = (np.arange(10000) + 0.5) / 10000
    z = 1.15 * np.quantile(
        np.abs(np.random.default_rng(0).normal(size=10**5)), quantiles
    )
    found = [_factor(z[:: 10000 // n], 0.6827, 1.0) for n in (10, 100, 1000, 10000)]
    assert found[0] == 1.0
    assert found[1] < found[2] < found[3]
    assert found[3] == pytest.approx(1.15, abs=0.01)


def test_heavy_tails_widen_the_outer_interval_only():
    rng = np.random.default_rng(2)
    t = np.abs(rng.standard_t(2, 5000)) / 1.3213  # its own 68 % point
    assert _factor(t, 0.6827, 1.0) == pytest.approx(1.0, abs=0.05)
    assert _factor(t, 0.95, Z95) > 1.5


# -- a whole table -------------------------------------------------------------------


def flat(table: dict, method: str) -> np.ndarray:
    """All factors of a method, (kinds, 2, bands)."""
    return np.array([[table[method][k][q] for q in ("q68", "q95")] for k in KINDS])


def test_a_right_prior_needs_no_correction(few):
    table = measure_calibration(gaussian(), noise(), joint=False, seed=0)
    assert set(table) == {"cycles", "gls", "robust"}
    assert len(table["cycles"]) == sum(low < 0.45 * N for low, _ in BANDS) >= 3
    for method in ("gls", "robust"):
        found = flat(table, method)
        assert found.shape == (4, 2, len(table["cycles"]))
        np.testing.assert_allclose(found, 1.0, atol=0.3)
    assert (np.abs(flat(table, "gls") - 1) < 0.03).mean() > 0.4
    assert np.abs(flat(table, "gls") - 1).mean() < 0.06
    assert json.loads(json.dumps(table)) == table


def test_half_as_wide_error_bars_get_a_factor_of_two(few):
    table = measure_calibration(gaussian(0.25), noise(), joint=False, seed=0)
    found = flat(table, "gls")
    np.testing.assert_allclose(found, 2.0, rtol=0.25)
    assert found.mean() == pytest.approx(2.0, rel=0.06)


def test_too_wide_error_bars_are_narrowed(few):
    found = flat(
        measure_calibration(gaussian(4.0), noise(), joint=False, seed=0), "gls"
    )
    assert found.mean() == pytest.approx(0.5, rel=0.08)


def test_one_band_of_wrong_spectrum_is_told_from_the_others(few):
    """Noise with four times the power above a quarter of the sample rate."""
    rng = np.random.default_rng(3)

    def crops(n: int) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal((n, 4 * N)))
        spectrum[:, spectrum.shape[1] // 2 :] *= 2.0
        return np.fft.irfft(spectrum)[:, :N] + 0.5

    unit = torch.zeros(N, dtype=torch.float64)
    unit[0] = 1.0
    prior = GaussianPrior(unit, level=0.5, sample_rate=RATE)
    table = measure_calibration(prior, crops, joint=False, seed=0)
    kinds = ("amplitude", "frequency", "phase")
    mean = np.mean([table["gls"][kind]["q68"] for kind in kinds], axis=0)
    assert mean[0] == pytest.approx(1.0, abs=0.15)
    assert mean[-1] > 1.25


def test_the_joint_solver_is_calibrated_likewise(monkeypatch):
    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 100)
    monkeypatch.setattr(calibration, "BANDS", BANDS[1:2])
    rng = torch.Generator().manual_seed(5)
    matrix = torch.randn((N, 2), generator=rng, dtype=torch.float64)

    def prior(scale: float) -> WaveformPrior:
        total = scale * (R + (matrix.square().sum(1)).mean() * (R > 1.99))
        return WaveformPrior(
            lambda z: math.sqrt(scale) * z.double() @ matrix.T,
            n_latent=2,
            range_autocovariance=scale * R,
            autocovariance=total,
            sample_rate=RATE,
            level=0.5,
        )

    table = measure_calibration(prior(1.0), noise(1, prior(1.0)), joint=True, seed=0)
    assert set(table) == {"cycles", "joint"}
    assert np.abs(flat(table, "joint") - 1).mean() < 0.12
    table = measure_calibration(prior(0.25), noise(1, prior(1.0)), joint=True, seed=0)
    assert flat(table, "joint").mean() == pytest.approx(2.0, rel=0.15)


def test_error_bars_that_are_too_short_on_unseen_noise_are_widened(few):
    """Right on what was seen, half as wide as they should be on what was not.

    Negative control: unseen noise like the seen one changes little.
    """
    table = measure_calibration(
        gaussian(), noise(), joint=False, seed=0, unseen=noise(7), n_unseen=100
    )
    assert np.abs(flat(table, "gls") - 1).mean() < 0.08
    louder = noise(7, gaussian(4.0))
    table = measure_calibration(
        gaussian(), noise(), joint=False, seed=0, unseen=louder, n_unseen=100
    )
    assert flat(table, "gls").mean() == pytest.approx(2.0, rel=0.12)
    # Two windows tell little.
    table = measure_calibration(
        gaussian(), noise(), joint=False, seed=0, unseen=louder, n_unseen=2
    )
    assert flat(table, "gls").mean() < 1.8


def test_error_bars_are_not_narrowed_by_unseen_noise_that_is_quieter(few):
    seen = measure_calibration(gaussian(), noise(), joint=False, seed=0)
    quieter = noise(7, gaussian(0.25))
    table = measure_calibration(
        gaussian(), noise(), joint=False, seed=0, unseen=quieter, n_unseen=1000
    )
    assert (flat(table, "gls") == flat(seen, "gls")).all()


def test_bands_borrow_strength_from_each_other():
    """A deviation common to all bands is kept where each band alone would drop it."""
    rng = np.random.default_rng(6)
    together, alone = [], []
    for _ in range(100):
        bands = [1.15 * np.abs(rng.standard_normal(60)) for _ in range(4)]
        together.append(_factors(bands, 0.6827, 1.0))
        alone.append([_factor(z, 0.6827, 1.0) for z in bands])
    assert np.mean(together) > np.mean(alone)
    errors = [np.mean((np.array(v) - 1.15) ** 2) for v in (together, alone)]
    assert errors[0] < 0.7 * errors[1]


def test_seeds(few, monkeypatch):
    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
    tables = [
        measure_calibration(gaussian(0.25), noise(1), joint=False, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_known_frequencies_are_found(few):
    """`analyse_batch` searches 1.5 / T around the frequencies it is given."""
    t = np.arange(N) / RATE
    f = np.array([10.0, 20.0, 30.0])
    x = 5 * np.sin(2 * np.pi * f[:, None] * t + 0.4) + 0.5 + noise(2)(3)
    outcome = analyse_batch(gaussian(), x, f + 0.5, joint=False)
    values, covariance = to_polar(
        outcome.gls.theta, outcome.gls.covariance, middle=outcome.record.middle
    )
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    truth = torch.stack(
        [torch.tensor([5.0, v, 0.4, 0.0], dtype=torch.float64) for v in f]
    )
    assert ((values - truth).abs() < 5 * sd).all()


def test_covariance_of_the_noise_is_what_is_tested():
    """The noise of these tests has the covariance the prior assumes."""
    x = noise(4)(20000) - 0.5
    covariance = x.T @ x / len(x)
    np.testing.assert_allclose(covariance, toeplitz(R), atol=0.15)


def test_trials():
    assert trials_per_band(300, joint=False) == 1500
    assert trials_per_band(300, joint=True) == 400
    assert trials_per_band(16384, joint=False) == 45
    assert trials_per_band(65536, joint=True) == 40


# -- use of the table ----------------------------------------------------------------


def test_factors_are_interpolated_in_log_frequency():
    entry = {"q68": [1.0, 2.0, 4.0], "q95": [1.5, 1.0, 1.0]}
    table = {"cycles": [2.0, 8.0, 32.0], "gls": {"phase": entry}}
    cycles = torch.tensor([[1e-12, 2.0, 4.0], [8.0, 16.0, 1000.0]], dtype=torch.float64)
    one, two = factors(table, "gls", "phase", cycles)
    assert one.tolist() == [
        [1.0, 1.0, pytest.approx(1.5)],
        [2.0, pytest.approx(3.0), 4.0],
    ]
    np.testing.assert_allclose(two, np.array([[1.5, 1.5, 1.25], [1.0, 1.0, 1.0]]) * Z95)


@pytest.mark.parametrize("table", [None, {}, {"cycles": [1.0], "robust": {}}])
def test_without_a_table_errors_are_gaussian(table):
    cycles = torch.tensor([3.0, 5.0], dtype=torch.float64)
    one, two = factors(table, "gls", "bias", cycles)
    assert one.tolist() == [1.0, 1.0]
    assert two.tolist() == [Z95, Z95]
