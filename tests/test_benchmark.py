"""The benchmark against closed forms, scipy, and negative controls.

Random experiments have fixed seeds; where a band is stated, the probability that a
correct program falls outside it is given beside it.
"""

import itertools
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import signal as sps
from scipy.integrate import quad
from scipy.linalg import toeplitz
from scipy.stats import binomtest, chi2, kurtosis, norm

from sepprior.benchmark import (
    METHODS,
    SCENARIOS,
    Scenario,
    cell,
    compare,
    file_scenario,
    make_noise_trials,
    make_trials,
    noise_record,
    plan_benchmark,
    recorded_scenario,
    run_benchmark,
    run_jobs,
    scores,
    summary,
    tables,
    to_markdown,
)
from sepprior.benchmark import noise as recipe
from sepprior.benchmark import trained as stage
from sepprior.benchmark.baselines import (
    Estimate,
    autocovariance,
    curve_fit_plain,
    gls_scipy,
    record_covariance,
    wrap,
)
from sepprior.benchmark.bounds import (
    cramer_rao,
    gls_true,
    oracle,
    pink_autocovariance,
    trial_bounds,
    true_autocovariance,
    true_covariance,
)
from sepprior.benchmark.chain import chain_oracle, forward_backward
from sepprior.benchmark.mapped import ar_cauchy, cauchy_scipy, esprit, whittle
from sepprior.benchmark.settings import PARAMETERS, draw_signals, sinusoid
from sepprior.data import as_recording
from sepprior.errors import SeppriorError
from sepprior.nets import Denoiser
from sepprior.priors import DiffusionPrior, GaussianPrior

CELLS = [(name, T) for name in SCENARIOS for T in (10.0, 1.0) if name != "article"]


def errors_of(fit, truth):
    return {p: scores.errors(p, fit[p].value, truth[p]) for p in PARAMETERS}


# --- noise --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "T"), CELLS)
def test_record_has_the_true_autocovariance(name, T):
    """17 runs of 6000 samples; the true mean is zero, so nothing is centred.

    P(|t| > 6) = 2e-5 per lag with 16 degrees of freedom. A strictly periodic component
    has hardly any scatter between runs, hence the floor for a run's ends.
    """
    blocks = np.stack(noise_record(name, T, 340, seed=11))
    truth = true_autocovariance(cell(name, T))
    assert truth.shape == (300,)
    n = blocks.shape[1]
    for lag in (0, 1, 2, 5, 11, 30, 60, 120, 240, 299):
        found = np.mean(blocks[:, : n - lag] * blocks[:, lag:], axis=1)
        stderr = found.std(ddof=1) / np.sqrt(17)
        assert abs(found.mean() - truth[lag]) < 6 * stderr + 2e-3 * truth[0]


@pytest.mark.parametrize(
    ("name", "sd"),
    [
        ("white", 0.3),
        ("pink", 0.3),
        ("ar2", 0.3),
        ("telegraph", np.hypot(0.3, 0.05)),
        ("pump", np.sqrt(0.15**2 + 0.05**2 + 0.5**2)),
    ],
)
@pytest.mark.parametrize("T", [10.0, 1.0])
def test_standard_deviation_is_as_specified(name, T, sd):
    """The closed forms give the standard deviations of the specification."""
    assert np.sqrt(true_autocovariance(cell(name, T))[0]) == pytest.approx(sd, rel=1e-6)


@pytest.mark.parametrize("sample_rate", [30.0, 300.0])
def test_pink_spectrum(sample_rate):
    """1/f above 0.2/T Hz, flat below; and the autocovariance is its transform."""
    corner = 0.2 * sample_rate / 300
    assert recipe.pink_corner(sample_rate) == pytest.approx(corner)
    rng = np.random.default_rng(3)
    x = recipe.pink(rng, 600_000, sample_rate)
    f, density = sps.welch(x, sample_rate, nperseg=30_000, detrend=False)
    total = 1 + np.log(sample_rate / 2 / corner)
    expected = 0.09 / (np.maximum(f, corner) * total)
    for low, high in [(2, 15), (100, 300), (1000, 3000), (8000, 14_000)]:
        ratio = np.mean(density[low:high] / expected[low:high])
        # About 39 overlapping segments: >= 20 * 13 degrees of freedom in the first.
        assert ratio == pytest.approx(1, abs=0.2 if low == 2 else 0.05)
    tau = 7 / sample_rate
    bulk = quad(
        lambda f: np.cos(2 * np.pi * f * tau) / f, corner, sample_rate / 2, limit=500
    )[0]
    flat = np.sin(2 * np.pi * corner * tau) / (2 * np.pi * corner * tau)
    r = pink_autocovariance(np.array([7]), sample_rate, sd=0.3)[0]
    assert r == pytest.approx(0.09 * (bulk + flat) / total, rel=1e-8)


@pytest.mark.parametrize("T", [10.0, 1.0])
def test_ar2_resonance(T):
    """The spectrum peaks near 2.2 Hz and is half its peak 0.4 Hz apart."""
    rate = 300 / T
    a1, a2 = recipe.ar2_coefficients(rate)
    f = np.linspace(1.0, 3.5, 20_001)
    power = np.abs(sps.freqz([1.0], [1.0, -a1, -a2], worN=f, fs=rate)[1]) ** 2
    above = f[power > power.max() / 2]
    assert f[np.argmax(power)] == pytest.approx(2.2, abs=0.03)
    assert above[-1] - above[0] == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("white", -0.03, 0.03),
        ("pink", -0.1, 0.1),
        ("ar2", -0.1, 0.1),
        ("bursts", 10.0, 30.0),
        ("telegraph", -2.0, -1.8),
        ("pump", 0.9, 1.2),
    ],
)
def test_kurtosis(name, low, high):
    """Excess kurtosis of 300 000 samples: 0 for Gaussian noise, -1.89 for two levels.

    For white noise the standard error is sqrt(24 / n) = 0.009.
    """
    assert low < kurtosis(np.concatenate(noise_record(name, 10.0, 1000, seed=5))) < high


@pytest.mark.statistical
def test_bursts_have_their_rate_amplitude_and_decay():
    """Campbell's theorem: the cumulant of order k is rate * E[a^k] * E[sum exp(-km/d)].

    Rate 3/300, a from N(0, 1.5^2), d uniform in [3, 12]. With 12 000 bursts the
    standard errors are 1.5 % (k = 2) and 3.5 % (k = 4); the bands are 5 of them. The
    two together tell the rate from the amplitude.
    """
    d = np.linspace(3, 12, 20_001)
    expected = {
        order: 0.01 * moment * np.mean(1 / (1 - np.exp(-order / d)))
        for order, moment in ((2, 1.5**2), (4, 3 * 1.5**4))
    }
    train = recipe.burst_train(np.random.default_rng(8), 1_200_000)
    second = np.mean(train**2)
    fourth = np.mean(train**4) - 3 * second**2
    assert second == pytest.approx(expected[2], rel=0.075)
    assert fourth == pytest.approx(expected[4], rel=0.175)
    r = true_autocovariance(cell("bursts", 10.0), without=("pink", "white", "hum"))
    assert r[0] == pytest.approx(expected[2], rel=1e-6)


def test_telegraph_dwells_30_samples():
    levels = recipe.telegraph_levels(np.random.default_rng(1), 300_000)
    assert set(np.unique(levels)) == {-0.3, 0.3}
    # 10 000 switches: 1 % standard error, 4 of them.
    assert 300_000 / np.count_nonzero(np.diff(levels)) == pytest.approx(30, rel=0.04)


def test_hum_has_its_lines():
    """Amplitudes 0.2 at 50.03 Hz and 0.08 at 100.06 Hz, by projection over 1000 s."""
    time = np.arange(300_000) / 300
    x = recipe.hum(np.random.default_rng(3), time.size, 300.0)
    for frequency, amplitude in ((50.03, 0.2), (100.06, 0.08)):
        line = 2 * np.mean(x * np.exp(-2j * np.pi * frequency * time))
        assert abs(line) == pytest.approx(amplitude, rel=1e-3)
    assert x.var() == pytest.approx((0.2**2 + 0.08**2) / 2, rel=1e-3)


def test_pulse_has_zero_mean_its_sd_and_its_period():
    u = (np.arange(100_000) + 0.5) / 100_000
    wave = recipe.pulse_waveform(u)
    assert wave.mean() == pytest.approx(0, abs=1e-6)
    assert wave.std() == pytest.approx(0.5, rel=1e-6)
    raw = np.exp(-u / 0.12) - np.exp(-u / 0.03)
    assert np.corrcoef(wave, raw)[0, 1] == pytest.approx(1)
    # One phase for the whole record: 1413 periods in 1000 s, after which it is back.
    parts = recipe.pump_components(np.random.default_rng(0), 60_000, 30.0)
    pulse = parts["pulse"]
    assert np.allclose(pulse[:1000], pulse[30_000:31_000], atol=1e-6)
    rises = np.count_nonzero((pulse[:30_000] < 0) & (pulse[1:30_001] >= 0))
    assert rises == pytest.approx(1413, abs=1)


@pytest.mark.parametrize("name", ["bursts", "telegraph", "pump"])
def test_components_sum_to_the_noise(name):
    scenario = SCENARIOS[name]
    whole = scenario.noise(np.random.default_rng(4), 900, 30.0)
    parts = scenario.parts(np.random.default_rng(4), 900, 30.0)
    assert set(scenario.known) < set(parts)
    assert np.allclose(whole, sum(parts.values()))


# --- trials -------------------------------------------------------------------------


def test_signals_have_their_distributions():
    truth = draw_signals(np.random.default_rng(2), 4000)
    uniform = {
        "amplitude": (np.log10(truth["amplitude"]) + 1) / 2,
        "frequency": truth["frequency"] - 1,
        "phase": truth["phase"] / (2 * np.pi) + 0.5,
        "bias": (truth["bias"] - 0.1) / 9.9,
    }
    for value in uniform.values():
        counts = np.histogram(value, bins=20, range=(0, 1))[0]
        assert counts.sum() == 4000
        assert np.sum((counts - 200) ** 2 / 200) < chi2.ppf(0.9999, 19)


def test_trials_are_the_signal_plus_noise_and_fixed_by_their_key():
    trials = make_trials("bursts", 1.0, 6, seed=3)
    assert trials.sample_rate == 300 and trials.x.shape == (6, 300)
    assert np.allclose(trials.x - trials.noise, sinusoid(trials.time, trials.truth))
    i = 4
    a, f, phi, b = (trials.truth[p][i] for p in PARAMETERS)
    by_hand = a * np.sin(2 * np.pi * f * np.arange(300) / 300 + phi) + b
    assert np.allclose((trials.x - trials.noise)[i], by_hand)
    assert np.array_equal(trials.x[:2], make_trials("bursts", 1.0, 2, seed=3).x)
    assert np.array_equal(trials.x[:2], trials.first(2).x)
    for other in (
        make_trials("bursts", 1.0, 6, seed=4),
        make_trials("bursts", 10.0, 6, seed=3),
        make_trials("telegraph", 1.0, 6, seed=3),
    ):
        assert not np.isclose(other.truth["frequency"], trials.truth["frequency"]).any()


def test_record_is_made_of_runs_and_a_short_one_is_its_beginning():
    long = noise_record("pink", 10.0, 1000, seed=1)
    assert [run.shape for run in long] == [(6000,)] * 50
    (first,) = noise_record("pink", 10.0, 20, seed=1)
    assert np.array_equal(first, long[0])
    short = noise_record("pink", 10.0, 25, seed=1)
    assert [run.size for run in short] == [6000, 1500]
    assert np.array_equal(short[1], long[1][:1500])


def test_phases_are_drawn_anew_in_every_run():
    """The relative phase of the two hum lines is uniform over runs, not one value.

    Rayleigh's statistic of 50 uniform angles exceeds 0.4 with probability 3e-4.
    """
    time = np.arange(6000) / 300
    relative = []
    for run in noise_record("bursts", 1.0, 1000, seed=2):
        low, high = (
            np.sum(run * np.exp(-2j * np.pi * f * time)) for f, _ in recipe.HUM
        )
        relative.append(np.exp(1j * (np.angle(high) - 2 * np.angle(low))))
    assert np.abs(np.mean(relative)) < 0.4


def test_recorded_noise_never_shares_samples_between_record_and_trials():
    ramp = as_recording(np.arange(3000.0), sample_rate=50.0)
    scenario = recorded_scenario("ramp", ramp)
    (record,) = noise_record(scenario, None, 1000)
    trials = make_trials(scenario, None, 50)
    assert trials.sample_rate == 50 and trials.cell.label == "ramp"
    assert record.max() < trials.noise.min()
    assert np.allclose(np.diff(trials.noise), 1)
    assert true_autocovariance(cell(scenario)).shape == (300,)
    assert sum(run.size for run in noise_record(scenario, None, 3)) == 900
    with pytest.raises(SeppriorError, match="too short"):
        recorded_scenario("short", as_recording(np.arange(500.0), sample_rate=50.0))


def test_recorded_noise_with_gaps_and_the_scale_of_its_signals():
    """White noise of 0.6 doubles the amplitudes; no crop meets a gap or a seam."""
    rng = np.random.default_rng(4)
    parts = [rng.normal(0, 0.6, 4000), rng.normal(100, 0.6, 4000)]
    parts[0][700:703] = np.nan
    parts[1][3000] = np.nan
    scenario = recorded_scenario("two", as_recording(parts, sample_rate=100.0))
    # 8000 samples: 5 % standard error of the level in the band.
    assert scenario.setting.strong == pytest.approx(2, rel=0.25)
    runs = noise_record(scenario, None, 1000)
    trials = make_trials(scenario, None, 80)
    every = [*runs, *trials.noise]
    assert all(np.isfinite(run).all() and np.ptp(run) < 10 for run in every)
    assert 700 in [run.size for run in runs]
    f = trials.truth["frequency"]
    assert f.min() >= 10 / 3 and f.max() <= 20 / 3 and trials.fmin == 8 / 3


def test_scenario_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def hiss(rng, n, rate):\n    return rng.normal(0, 0.1, n)\n"
        "def short(rng, n, rate):\n    return rng.normal(0, 0.1, n - 1)\n"
    )
    scenario = file_scenario(f"{path}:hiss")
    assert scenario.name == "hiss"
    again = pickle.loads(pickle.dumps(scenario))
    trials = make_trials(again, 10.0, 3)
    assert trials.noise.std() == pytest.approx(0.1, rel=0.2)
    with pytest.raises(SeppriorError, match="expected 300 finite"):
        make_trials(file_scenario(f"{path}:short"), 10.0, 3)
    with pytest.raises(SeppriorError, match="has no function 'hum'"):
        file_scenario(f"{path}:hum")
    with pytest.raises(SeppriorError, match="cannot be read"):
        file_scenario(f"{tmp_path / 'none.py'}:hiss")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(SeppriorError, match="ZeroDivisionError"):
        file_scenario(f"{tmp_path / 'bad.py'}:hiss")


def test_article_setting():
    """``A sin(omega t) + b`` with t from -5 to 5, in tenths, and white noise 0.3."""
    trials = make_trials("article", None, 500)
    t = np.linspace(-5, 5, 300)
    assert trials.cell.label == "article"
    assert np.allclose(trials.time, t + 5)
    omega = 2 * np.pi * trials.truth["frequency"]
    assert omega.min() >= 1 and omega.max() <= 2
    for name in ("amplitude", "bias"):
        tenths = 10 * trials.truth[name]
        assert np.allclose(tenths, np.round(tenths))
        assert tenths.min() >= 1 - 1e-9 and tenths.max() <= 100 + 1e-9
        assert len(np.unique(np.round(tenths))) > 95  # of 100, 99.3 expected
    a, b = (trials.truth[name][:, None] for name in ("amplitude", "bias"))
    assert np.allclose(trials.x - trials.noise, a * np.sin(omega[:, None] * t) + b)
    assert trials.noise.std() == pytest.approx(0.3, rel=0.01)
    assert true_autocovariance(cell("article"))[:2] == pytest.approx([0.09, 0.0])


def test_noise_trials_have_no_signal_and_share_nothing_with_the_others():
    quiet = make_noise_trials("bursts", 1.0, 5, seed=3)
    assert np.allclose(quiet.x - quiet.noise, quiet.truth["bias"][:, None])
    assert (quiet.truth["amplitude"] == 0).all()
    assert np.isnan(quiet.truth["frequency"]).all()
    loud = make_trials("bursts", 1.0, 5, seed=3)
    assert not np.isclose(quiet.noise, loud.noise).all(axis=1).any()
    assert np.array_equal(quiet.x[:2], make_noise_trials("bursts", 1.0, 2, seed=3).x)


def test_unknown_names_are_refused():
    with pytest.raises(SeppriorError, match="expected one of white, pink"):
        cell("brown", 10.0)
    with pytest.raises(SeppriorError, match="positive number"):
        cell("pink", 0.0)
    with pytest.raises(SeppriorError, match="unknown method 'best'"):
        run_benchmark(["white"], ["best"])
    with pytest.raises(SeppriorError, match="oracle has no prior"):
        run_benchmark(["white"], ["oracle/plain"])
    with pytest.raises(SeppriorError, match="expected one of joint, plain"):
        run_benchmark(["white"], ["specgan/best"])
    with pytest.raises(SeppriorError, match="at least 1"):
        run_benchmark(["white"], ["oracle"], trials=0)


# --- bounds -------------------------------------------------------------------------


def test_bound_meets_the_closed_form_of_white_noise():
    """Kay eq. 3.41 with many cycles, phase at the first sample.

    var A = 2 s^2/N, var f = 12 s^2/(2 pi^2 A^2 N (N^2-1) dt^2), var phi =
    4 s^2 (2N-1)/(A^2 N (N+1)), var b = s^2/N.
    """
    n, rate, sd = 3000, 30.0, 0.3
    truth = {
        "amplitude": np.array([0.5, 4.0]),
        "frequency": np.array([3.1, 7.7]),
        "phase": np.array([0.3, -2.0]),
        "bias": np.array([1.0, 2.0]),
    }
    bound = cramer_rao(truth, sd**2 * np.eye(n), sample_rate=rate)
    a = truth["amplitude"]
    f_sd = np.sqrt(24 * sd**2 / (a**2 * n * (n**2 - 1))) / (2 * np.pi) * rate
    phi_sd = np.sqrt(4 * sd**2 * (2 * n - 1) / (a**2 * n * (n + 1)))
    assert bound["amplitude"] == pytest.approx(
        np.full(2, sd * np.sqrt(2 / n)), rel=5e-3
    )
    assert bound["frequency"] == pytest.approx(f_sd, rel=5e-3)
    assert bound["phase"] == pytest.approx(phi_sd, rel=5e-3)
    assert bound["bias"] == pytest.approx(np.full(2, sd / np.sqrt(n)), rel=5e-3)


def test_bound_is_that_of_fisher_information_by_differences():
    """Dense algebra with numerical derivatives, in coloured noise."""
    trials = make_trials("pump", 1.0, 3)
    covariance = true_covariance(trials.cell)
    bound = trial_bounds(trials)
    for i in range(3):
        base = {p: trials.truth[p][i : i + 1] for p in PARAMETERS}
        columns = []
        for p in PARAMETERS:
            up, down = ({**base, p: base[p] + h} for h in (1e-6, -1e-6))
            columns.append(
                (sinusoid(trials.time, up) - sinusoid(trials.time, down))[0] / 2e-6
            )
        j = np.stack(columns, axis=1)
        inverse = np.linalg.inv(j.T @ np.linalg.solve(covariance, j))
        expected = np.sqrt(np.diag(inverse))
        found = [bound[p][i] for p in PARAMETERS]
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "T"), CELLS)
def test_true_covariances_are_positive_definite(name, T):
    np.linalg.cholesky(true_covariance(cell(name, T)))
    known = SCENARIOS[name].known
    np.linalg.cholesky(true_covariance(cell(name, T), without=known))


def test_covariance_of_a_users_scenario_is_simulated():
    """The estimate meets the exact one; the known component is left out."""
    mine = replace(SCENARIOS["telegraph"], name="mine")
    exact = true_autocovariance(cell("telegraph", 10.0))
    found = true_autocovariance(cell(mine, 10.0))
    # 300 000 samples with 15 samples' correlation: 1 % standard error of the variance.
    assert np.abs(found - exact).max() < 0.04 * exact[0]
    rest = true_autocovariance(cell(mine, 10.0), without=("levels",))
    assert rest[0] == pytest.approx(0.05**2, rel=0.02)


# --- baselines ----------------------------------------------------------------------


def test_autocovariance_is_the_biased_sum():
    x = np.random.default_rng(0).normal(3.0, 1.0, 50)
    y = x - x.mean()
    expected = [np.dot(y[: 50 - k], y[k:]) / 50 for k in range(10)]
    assert autocovariance([x], 10) == pytest.approx(np.array(expected))
    np.linalg.cholesky(toeplitz(autocovariance([x], 49)))
    with pytest.raises(SeppriorError, match="more than 50"):
        autocovariance([x], 50)


def test_autocovariance_pools_runs_and_crosses_no_end():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1.0, 1.0, 30), rng.normal(1.0, 1.0, 70)
    both = np.concatenate([a, b])
    ya, yb = a - both.mean(), b - both.mean()
    expected = [(ya[: 30 - k] @ ya[k:] + yb[: 70 - k] @ yb[k:]) / 100 for k in range(9)]
    assert autocovariance([a, b], 9) == pytest.approx(np.array(expected))
    assert autocovariance([both], 9)[1:] != pytest.approx(np.array(expected[1:]))
    with pytest.raises(SeppriorError, match="more than 30"):
        autocovariance([a, b], 30)


def test_wrap_keeps_pi_and_not_minus_pi():
    angles = np.array([np.pi, -np.pi, 3 * np.pi, 0.0, -7.0])
    expected = [np.pi, np.pi, np.pi, 0.0, -7.0 + 2 * np.pi]
    assert wrap(angles) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("T", [10.0, 1.0])
def test_fits_are_exact_without_noise(T):
    trials = make_trials("white", T, 8)
    clean = trials.x - trials.noise
    keys = {"sample_rate": trials.sample_rate, "fmin": 0.8, "fmax": 2.5}
    record = noise_record("white", T, 20)
    for fit in (
        curve_fit_plain(clean, **keys),
        gls_scipy(clean, record_covariance(record, 300), **keys),
        cauchy_scipy(clean, record, **keys),
        ar_cauchy(clean, record, **keys),
        whittle(clean, record, **keys),
        esprit(clean, **keys),
    ):
        for p in PARAMETERS:
            assert fit[p].value == pytest.approx(trials.truth[p], abs=2e-5)


@pytest.mark.statistical
def test_gls_reaches_the_bound_in_white_noise():
    """100 strong trials: sum of squares over the bound is chi2(100) for each parameter.

    Band of probability 1 - 1e-4 per parameter; a doubled noise falls outside it.
    """
    trials = make_trials("white", 10.0, 260, seed=21)
    strong = np.flatnonzero(trials.truth["amplitude"] >= 1)[:100]
    truth = {p: value[strong] for p, value in trials.truth.items()}
    x = trials.x[strong]
    keys = {"sample_rate": 30.0, "fmin": 0.8, "fmax": 2.5}
    fit = gls_scipy(x, 0.09 * np.eye(300), **keys)
    loud = gls_scipy(x + trials.noise[strong], 0.09 * np.eye(300), **keys)
    bound = cramer_rao(truth, 0.09 * np.eye(300), sample_rate=30.0)
    low, high = np.sqrt(chi2.ppf([5e-5, 1 - 5e-5], 100) / 100)
    assert len(strong) == 100
    for p in PARAMETERS:
        assert low < scores.rms_ratio(errors_of(fit, truth)[p], bound[p]) < high
        assert scores.rms_ratio(errors_of(loud, truth)[p], bound[p]) > high
        assert fit[p].stderr == pytest.approx(bound[p], rel=0.25)


@pytest.mark.statistical
def test_whitening_pays_in_the_resonance_next_to_the_band():
    """Ordinary least squares is worse than GLS in `pump`, and its errors too small."""
    trials = make_trials("pump", 10.0, 60, seed=2)
    keys = {"sample_rate": 30.0, "fmin": 0.8, "fmax": 2.5}
    plain, gls = curve_fit_plain(trials.x, **keys), gls_true(trials)
    bound = trial_bounds(trials)
    strong = trials.truth["amplitude"] >= 1
    ratio = [
        scores.rms_ratio(errors_of(fit, trials.truth)["frequency"][strong], b)
        for fit in (plain, gls)
        for b in [bound["frequency"][strong]]
    ]
    assert ratio[0] > 2 * ratio[1]


@pytest.mark.statistical
def test_robust_fit_gains_in_bursts_and_oracle_more():
    trials = make_trials("bursts", 10.0, 60, seed=2)
    keys = {"sample_rate": 30.0, "fmin": 0.8, "fmax": 2.5}
    robust = cauchy_scipy(trials.x, noise_record("bursts", 10.0, 20), **keys)
    strong = trials.truth["amplitude"] >= 1
    bound = trial_bounds(trials)["amplitude"][strong]
    gls, cauchy, best = (
        scores.rms_ratio(errors_of(fit, trials.truth)["amplitude"][strong], bound)
        for fit in (gls_true(trials), robust, oracle(trials))
    )
    assert best < cauchy < 0.75 * gls


@pytest.mark.statistical
@pytest.mark.parametrize("T", [10.0, 1.0])
def test_oracle_beats_gls_on_telegraph_and_is_calibrated(T):
    trials = make_trials("telegraph", T, 80, seed=6)
    bound = trial_bounds(trials)
    strong = trials.truth["amplitude"] >= 1
    best, gls = oracle(trials), gls_true(trials)
    for p in PARAMETERS:
        mine, other = (
            scores.rms_ratio(errors_of(fit, trials.truth)[p][strong], bound[p][strong])
            for fit in (best, gls)
        )
        assert mine < other / 3
        # The oracle's noise is white with sd 0.05: squares are chi2(80) in its errors.
        z = errors_of(best, trials.truth)[p] / best[p].stderr
        low, high = chi2.ppf([5e-5, 1 - 5e-5], 80)
        assert low < np.sum(z**2) < high


# --- scores -------------------------------------------------------------------------


def known_errors(n=20_000, scale=1.0, seed=0):
    """Estimates with Gaussian errors of `scale` times their standard error."""
    rng = np.random.default_rng(seed)
    stderr = rng.uniform(0.5, 2.0, n)
    return scale * stderr * rng.standard_normal(n), stderr


@pytest.mark.statistical
def test_scores_of_known_gaussian_errors():
    """Bands of 5 binomial standard errors (6e-7 each)."""
    error, stderr = known_errors()
    assert scores.rms_ratio(error, stderr) == pytest.approx(1, abs=5 / np.sqrt(40_000))
    for level in (0.68, 0.95):
        band = 5 * np.sqrt(level * (1 - level) / 20_000)
        assert scores.coverage(error, stderr, level) == pytest.approx(level, abs=band)
        # Intervals half as wide are caught: 38 % and 67 %.
        assert scores.coverage(error, stderr / 2, level) < level - 0.2
        # So are those that are twice as wide.
        assert scores.coverage(error, 2 * stderr, level) > level + 0.04


@pytest.mark.statistical
def test_bootstrap_interval_of_an_rms_ratio():
    """It covers the true ratio in about 95 % of the cases, and is not too wide.

    With 300 Gaussian errors the RMS has a relative standard error of 4.1 %. Of 200
    intervals 176 or more cover with probability 1 - 1e-4.
    """
    rng = np.random.default_rng(5)
    squares = 4 * rng.standard_normal((200, 300)) ** 2
    low, high = scores.rms_intervals(squares, resamples=400).T
    assert 176 <= np.count_nonzero((low <= 2) & (high >= 2)) <= 200
    assert np.median(high - low) == pytest.approx(2 * 1.96 * 2 / np.sqrt(600), rel=0.15)
    assert np.isnan(scores.rms_intervals(np.ones((4, 1)))).all()


def test_rate_interval_is_that_of_the_binomial_test():
    low, high = scores.rate_interval(3, 50)
    assert binomtest(3, 50, low, alternative="greater").pvalue == pytest.approx(0.025)
    assert binomtest(3, 50, high, alternative="less").pvalue == pytest.approx(0.025)
    assert scores.rate_interval(0, 10)[0] == 0 and scores.rate_interval(10, 10)[1] == 1


@pytest.mark.statistical
def test_detection_at_a_rate_of_false_alarms():
    """Unit shift of a Gaussian statistic: 1 % false alarms, rate Phi(shift - 2.33)."""
    rng = np.random.default_rng(6)
    noise, signal = rng.standard_normal(20_000), 2 + rng.standard_normal(20_000)
    found = scores.detected(signal, noise, 0.01)
    assert found.mean() == pytest.approx(norm.cdf(2 - 2.326), abs=0.04)
    assert scores.detected(noise, noise, 0.01).mean() == pytest.approx(0.01, abs=1e-3)


def test_failed_fits_do_not_cover():
    error = np.array([0.0, 0.0, np.nan, 0.5])
    stderr = np.array([np.inf, np.nan, 1.0, 1.0])
    assert scores.coverage(error, stderr, 0.68) == 0.25
    intervals = np.array([[-np.inf, np.inf], [-1.0, 2.0]])
    found = scores.interval_coverage("bias", np.zeros(2), np.ones(2), intervals)
    assert found == 0.5
    assert scores.is_outlier(np.array([0.04, -0.06, np.nan]), 10.0).tolist() == [
        False,
        True,
        True,
    ]


def test_phase_is_compared_on_the_circle():
    estimate, truth = np.array([3.1]), np.array([-3.1])
    assert scores.errors("phase", estimate, truth)[0] == pytest.approx(6.2 - 2 * np.pi)
    assert scores.errors("bias", estimate, truth)[0] == pytest.approx(6.2)
    interval = np.array([[3.0, 3.3]])
    assert scores.interval_coverage("phase", estimate, truth, interval) == 1
    assert scores.interval_coverage("bias", estimate, truth, interval) == 0


def test_asymmetric_interval_is_taken_as_it_is():
    value, interval = np.array([1.0, 1.0]), np.array([[0.9, 3.0], [0.9, 3.0]])
    assert (
        scores.interval_coverage("bias", value, np.array([2.5, 0.5]), interval) == 0.5
    )


@pytest.mark.statistical
def test_paired_ratio_and_its_interval():
    """The 95 % interval covers the true ratio at about its rate, and pairing helps."""
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        common = rng.standard_normal(200)
        other = common + 0.1 * rng.standard_normal(200)
        ratio = scores.paired_ratio(
            0.5 * common, other, np.ones(200), resamples=300, seed=seed
        )
        inside += ratio.low <= 0.5 / np.sqrt(1.01) <= ratio.high
        assert ratio.high - ratio.low < 0.05  # unpaired it would be 0.14
    # The percentile bootstrap covers somewhat less than 95 %.
    assert 170 <= inside <= 199
    with pytest.raises(SeppriorError, match="same trials"):
        scores.paired_ratio(np.ones(3), np.ones(2), np.ones(3))


# --- runner and tables --------------------------------------------------------------


def test_run_with_classical_methods():
    rows = run_benchmark(
        ["white", "telegraph"], ["gls_scipy", "oracle"], (10.0,), trials=12, seed=1
    )
    assert len(rows) == 2 * 2 * 24
    trials = make_trials("telegraph", 10.0, 12, seed=1)
    part = rows[(rows.scenario == "telegraph") & (rows.method == "oracle")]
    quiet, part = part[part.amplitude_true == 0], part[part.amplitude_true > 0]
    silent = make_noise_trials("telegraph", 10.0, 12, seed=1)
    assert quiet["bias_true"].to_numpy() == pytest.approx(silent.truth["bias"])
    assert quiet["bias"].to_numpy() == pytest.approx(oracle(silent)["bias"].value)
    assert part["bias_true"].to_numpy() == pytest.approx(trials.truth["bias"])
    assert part["phase"].to_numpy() == pytest.approx(oracle(trials)["phase"].value)
    bound = trial_bounds(trials)["frequency"]
    assert part["frequency_bound"].to_numpy() == pytest.approx(bound)
    table = summary(rows)
    assert table["method"].tolist() == ["gls_scipy", "oracle"] * 2
    assert (table["trials"] == 12).all()
    best = table.iloc[3]
    assert best["amplitude"] < 0.5 and best["outliers"] == 0
    ratios = compare(rows, "gls_scipy")
    assert len(ratios) == 2 * 4
    row = ratios.query("scenario == 'telegraph' and parameter == 'amplitude'").iloc[0]
    assert row["low"] <= row["ratio"] <= row["high"] < 1
    with pytest.raises(SeppriorError, match="expected one of gls_scipy, oracle"):
        compare(rows, "curve_fit")
    text = to_markdown(table[["scenario", "method", "amplitude"]])
    assert text.splitlines()[0] == "| scenario | method | amplitude |"
    assert len(text.splitlines()) == 2 + 4


def made_rows(scale, outliers=0, n=4000):
    """Rows of a method with known errors, claiming standard errors of one bound."""
    rng = np.random.default_rng(7)
    truth = draw_signals(rng, n)
    columns = {"scenario": "white", "duration": 10.0, "method": "m"}
    columns |= {"amplitude_strong": 1.0, "detection": truth["amplitude"]}
    columns |= {"false_alarm": np.nan}
    columns["trial"] = np.arange(n)
    for p in PARAMETERS:
        bound = np.full(n, 1e-3)
        value = truth[p] + scale * bound * rng.standard_normal(n)
        value = wrap(value) if p == "phase" else value
        if p == "frequency":
            value[:outliers] += 0.3
        columns |= {p: value, f"{p}_true": truth[p], f"{p}_stderr": bound}
        ends = scores.gaussian_interval(value, bound)
        columns |= {f"{p}_low": ends[:, 0], f"{p}_high": ends[:, 1]}
        columns[f"{p}_bound"] = bound
        columns[f"{p}_learned"] = 0.5 * bound
    columns |= {"seconds": 0.002, "seconds_alone": 0.004, "training_seconds": np.nan}
    return pd.DataFrame(columns)


@pytest.mark.statistical
def test_summary_of_known_errors():
    """A method that is as good as it says, one that is twice as bad, and outliers."""
    good = summary(made_rows(1.0)).iloc[0]
    bad = summary(made_rows(2.0)).iloc[0]
    for p in PARAMETERS:
        assert good[p] == pytest.approx(1, abs=0.06)
        assert good[f"{p}_weak"] == pytest.approx(1, abs=0.06)
        assert good[f"{p}_68"] == pytest.approx(0.68, abs=0.04)
        assert good[f"{p}_95"] == pytest.approx(0.95, abs=0.02)
        assert bad[p] == pytest.approx(2, abs=0.12)
        assert good[f"{p}_learned"] == pytest.approx(0.5)
        assert bad[f"{p}_68"] == pytest.approx(0.38, abs=0.04)
        assert bad[f"{p}_95"] == pytest.approx(0.67, abs=0.04)
    assert good["outliers"] == good["outliers_weak"] == 0
    assert good["ms"] == pytest.approx(2) and good["ms_alone"] == pytest.approx(4)
    lost = summary(made_rows(1.0, outliers=400)).iloc[0]
    share = 0.5 * (lost["outliers"] + lost["outliers_weak"])
    assert share == pytest.approx(0.1, abs=0.01)
    assert lost["frequency"] == pytest.approx(1, abs=0.06)
    assert lost["frequency_68"] < good["frequency_68"] - 0.04
    # The shares stand with their intervals, here against scipy's own.
    hits = round(lost["outliers"] * lost["trials_strong"])
    exact = binomtest(hits, int(lost["trials_strong"])).proportion_ci(0.95)
    assert (lost["outliers_from"], lost["outliers_to"]) == pytest.approx(tuple(exact))
    for p in PARAMETERS:
        assert good[f"{p}_68_from"] < 0.68 < good[f"{p}_68_to"]
        assert good[f"{p}_95_from"] < 0.95 < good[f"{p}_95_to"]
        assert bad[f"{p}_68_to"] < 0.68 and bad[f"{p}_95_to"] < 0.95
    told = tables.grid(
        pd.DataFrame([lost]), ("outliers", "frequency_68"), intervals=True
    )
    pattern = r"0\.1\d \(0\.\d\d-0\.1\d\)/0\.6\d \(0\.\d\d-0\.6\d\)"
    assert re.fullmatch(pattern, told["white 10 s"][0])


class StubParameter:
    def __init__(self, value):
        self.value = value
        self.stderr = np.full(np.shape(value), 0.1)
        self.ci95 = np.stack([value - 0.2, value + 0.3], axis=-1)


class StubResult:
    """What a separation returns, knowing the truth of one cell."""

    def __init__(self, trials):
        n = len(trials.x)
        gain = trials.truth["amplitude"]
        self.diagnostics = {"loglik_gain": gain}
        self.diagnostics["false_alarm_probability"] = np.linspace(0, 1, n)
        self.parameters = {p: StubParameter(trials.truth[p]) for p in PARAMETERS}
        self.baselines = {"gls": self.parameters}
        self.status = ["converged"] * len(trials.x)


def separate_stub(trials, prior, device, ablation):
    result = StubResult(trials)
    if ablation.objective == "plain":
        result.status = ["plain"] * len(trials.x)
    return result


def test_learned_bounds_of_gaussian_noise_are_those_of_cramer_and_rao():
    """A score prior that has learned nothing beyond the spectrum promises no more.

    Negative controls: half the information gives bounds longer by sqrt(2), and a prior
    without a score promises nothing.
    """
    trials = make_trials("pink", 10.0, 8, 3)
    bound, r = trial_bounds(trials), torch.from_numpy(true_autocovariance(trials.cell))
    levels = torch.tensor([1.0, 0.03], dtype=torch.float64)

    def prior(information):
        row = torch.zeros(2, len(r), dtype=torch.float64)
        row[:, 0] = information
        return DiffusionPrior(
            Denoiser(window=len(r), width=8, views=1),
            whitening=r,
            autocovariance=r,
            level=0.0,
            sample_rate=trials.sample_rate,
            levels=levels,
            information=row,
            scatter=row,
            lowest=0.03,
        )

    for information, ratio in ((1.0, 1.0), (0.5, math.sqrt(2.0))):
        learned = stage.learned_bounds(trials, prior(information))
        for name in PARAMETERS:
            found = learned[name] / bound[name]
            np.testing.assert_allclose(found, ratio, rtol=1e-3)
    nothing = stage.learned_bounds(
        trials, GaussianPrior(r, level=0.0, sample_rate=30.0)
    )
    assert all(np.isnan(nothing[name]).all() for name in PARAMETERS)


def test_run_with_a_prior_trains_once_and_uses_its_cache(monkeypatch, tmp_path):
    trained, loaded = [], []

    def train(record, sample_rate, recipe, device):
        trained.append(
            ([len(run) for run in record], sample_rate, recipe.model, device)
        )
        return "prior"

    def save(prior, path):
        path.write_text(prior)

    def load(path, device):
        loaded.append(path.name)
        return path.read_text()

    monkeypatch.setattr(stage, "train", train)
    monkeypatch.setattr(stage, "save", save)
    monkeypatch.setattr(stage, "load", load)
    monkeypatch.setattr(stage, "separate_trials", separate_stub)
    options = {"trials": 3, "cache_dir": tmp_path / "cache", "device": "cpu"}
    rows = run_benchmark(["pink"], ["gaussian"], (1.0,), **options)
    assert rows["method"].unique().tolist() == ["gaussian", "gaussian:gls"]
    assert trained == [([6000] * 50, 300.0, "gaussian", "cpu")] and len(loaded) == 1
    loud = rows[rows["amplitude_true"] > 0]
    assert len(rows) == 2 * len(loud)
    assert (loud["frequency"] == loud["frequency_true"]).all()
    assert np.allclose(loud["bias_high"] - loud["bias"], 0.3)
    assert loud["status"].tolist() == ["converged"] * 3 + [""] * 3
    assert loud["detection"].tolist()[:3] == loud["amplitude_true"].tolist()[:3]
    both = run_benchmark(["pink"], ["gaussian/plain", "gaussian"], (1.0,), **options)
    assert len(trained) == 1
    assert both["method"].unique().tolist() == [
        "gaussian/plain",
        "gaussian/plain:gls",
        "gaussian",
    ]
    assert set(both[both["method"] == "gaussian/plain"]["status"]) == {"plain"}

    run_benchmark(["pink"], ["gaussian"], (1.0,), **options)
    assert len(trained) == 1 and len(set(loaded)) == 1
    run_benchmark(["pink"], ["gaussian"], (1.0,), seed=1, **options)
    assert len(trained) == 2  # another record
    seeds = run_benchmark(["pink"], ["gaussian"], (1.0,), train_seeds=(0, 5), **options)
    assert len(trained) == 3  # the first seed is in the cache
    assert seeds["method"].unique().tolist()[::2] == ["gaussian@0", "gaussian@5"]

    file = tmp_path / "mine.safetensors"
    file.write_text("other prior")
    run_benchmark(
        ["pink"], ["mine"], (1.0,), prior_files={"mine:pink1": file}, **options
    )
    assert loaded[-1] == "mine.safetensors" and len(trained) == 3
    with pytest.raises(
        SeppriorError, match="no prior for method 'mine' in cell white1"
    ):
        run_benchmark(
            ["white"], ["mine"], (1.0,), prior_files={"mine:pink1": file}, **options
        )


def test_a_users_scenario_runs():
    def hiss(rng, n_samples, sample_rate):
        return 0.1 * rng.standard_normal(n_samples)

    rows = run_benchmark([Scenario("hiss", hiss)], ["oracle"], (10.0,), trials=4)
    assert rows["scenario"].unique().tolist() == ["hiss"]
    assert isinstance(oracle(make_trials("white", 10.0, 1))["bias"], Estimate)
    assert "specgan" in METHODS


def test_resumed_and_parallel_runs_give_the_same_rows(tmp_path):
    """Pieces are read and not made again; two processes give what one does."""

    def run(**options):
        jobs = plan_benchmark(["white"], ["gls_scipy", "esprit"], (1.0,), trials=5)
        done = sorted(run_jobs(jobs, **options), key=lambda each: jobs.index(each.job))
        rows = pd.concat([each.rows for each in done], ignore_index=True)
        return rows.drop(columns=["seconds", "seconds_alone"])

    first = run(pieces=tmp_path)
    assert len(list(tmp_path.glob("*.csv"))) == 2
    pd.testing.assert_frame_equal(first, run())
    pd.testing.assert_frame_equal(first, run(processes=2))
    marked = sorted(tmp_path.glob("*.csv"))[0]
    marked.write_text(marked.read_text().replace("white", "kept"))
    assert "kept" in set(run(pieces=tmp_path)["scenario"])


def test_a_method_that_cannot_do_a_cell_says_why():
    jobs = plan_benchmark(["white"], ["oracle_chain"], (10.0,), trials=3)
    (outcome,) = run_jobs(jobs)
    assert outcome.rows.empty and "telegraph only" in str(outcome.reason)


# --- the chain ----------------------------------------------------------------------


def test_forward_algorithm_meets_the_sum_over_all_paths():
    """All 2^7 sequences of levels, weighted by hand."""
    rng = np.random.default_rng(3)
    residual = rng.normal(0, 0.4, (2, 7))
    level, switch, sd = 0.3, 0.2, 0.25
    found, mean = forward_backward(residual, level=level, switch=switch, sd=sd)
    for row, x in enumerate(residual):
        total, weighted = 0.0, np.zeros(7)
        for path in itertools.product((-level, level), repeat=7):
            moves = np.count_nonzero(np.diff(path))
            chance = 0.5 * switch**moves * (1 - switch) ** (6 - moves)
            chance *= np.prod(norm.pdf(x, path, sd))
            total += chance
            weighted += chance * np.array(path)
        assert found[row] == pytest.approx(np.log(total), rel=1e-10)
        assert mean[row] == pytest.approx(weighted / total, rel=1e-9)


@pytest.mark.statistical
def test_chain_oracle_needs_not_be_told_the_levels():
    """In 1 s windows its errors are those of the oracle that is told the levels.

    Where the levels are recognised the two are the same fit, so that of 10 trials at
    least 9 agree to half a standard error; GLS is 20 times worse.
    """
    trials = make_trials("telegraph", 1.0, 10, seed=9)
    keys = {"sample_rate": 300.0, "fmin": 0.8, "fmax": 2.5}
    covariance = true_covariance(cell("telegraph", 1.0))
    found, told = chain_oracle(trials.x, covariance, **keys), oracle(trials)
    gls = gls_true(trials)
    for p in PARAMETERS:
        off = scores.errors(p, found[p].value, told[p].value) / told[p].stderr
        assert np.count_nonzero(np.abs(off) < 0.5) >= 9
        off = scores.errors(p, gls[p].value, told[p].value) / told[p].stderr
        assert np.count_nonzero(np.abs(off) < 0.5) < 5


# --- whitening in three forms -------------------------------------------------------


@pytest.mark.statistical
def test_whittle_is_gls_where_the_ends_do_not_matter():
    """In white noise the two are the same fit but for the record's scatter."""
    trials = make_trials("white", 10.0, 20, seed=5)
    keys = {"sample_rate": 30.0, "fmin": 0.8, "fmax": 2.5}
    exact = gls_scipy(trials.x, 0.09 * np.eye(300), **keys)
    found = whittle(trials.x, noise_record("white", 10.0, 1000, seed=5), **keys)
    for p in PARAMETERS:
        off = scores.errors(p, found[p].value, exact[p].value) / exact[p].stderr
        assert np.abs(off).max() < 0.35
        assert found[p].stderr == pytest.approx(exact[p].stderr, rel=0.1)


def test_ar_filter_whitens():
    """The residual of the fit is white with unit variance; with W = 1 it is not."""
    runs = noise_record("ar2", 10.0, 100, seed=5)
    trials = make_trials("ar2", 10.0, 40, seed=5)
    keys = {"sample_rate": 30.0, "fmin": 0.8, "fmax": 2.5}
    fit = ar_cauchy(trials.x, runs, **keys)
    z = errors_of(fit, trials.truth)["bias"] / fit["bias"].stderr
    # chi2(40) within its 1e-4 band; the tail of a biased covariance would leave it.
    assert chi2.ppf(5e-5, 40) < np.sum(z**2) < chi2.ppf(1 - 5e-5, 40)
