import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from sepprior import checks, measures, two_sample
from sepprior.benchmark import cell, noise_record
from sepprior.benchmark.noise import WINDOW as W
from sepprior.comparison import Comparison
from sepprior.config import config_from_dict
from sepprior.data import as_recording, consecutive_windows, split_recording
from sepprior.errors import SeppriorError
from sepprior.fidelity import Fidelity, inspect_prior
from sepprior.priors import GaussianPrior
from sepprior.training.contract import Task
from sepprior.training.registry import build_trainer
from sepprior.transforms import TightSTFT

N = 128


def white(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.3 * rng.standard_normal((n, N)) + 0.1


def bursts(rng: np.random.Generator, n: int) -> np.ndarray:
    """White noise and, per window, about two decaying exponentials."""
    noise = 0.1 * rng.standard_normal((n, N))
    age = np.arange(N)[None, :] - rng.uniform(-20, N, (2 * n, 1))
    pulse = np.where(age >= 0, np.exp(-np.maximum(age, 0) / 6), 0)
    pulse *= rng.standard_normal((2 * n, 1))
    return noise + pulse.reshape(n, 2, N).sum(1)


def random_walk_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """AR(1) noise with pole 0.9 and unit variance."""
    return stationary(0.9 ** np.arange(N))(rng, n)


def stationary(autocovariance: np.ndarray):
    values, vectors = linalg.eigh(linalg.toeplitz(autocovariance))
    root = vectors * np.sqrt(np.maximum(values, 0))
    return lambda rng, n: rng.standard_normal((n, N)) @ root.T


def mean_autocovariance(windows: np.ndarray) -> np.ndarray:
    size = windows.shape[1]
    power = np.abs(np.fft.rfft(windows - windows.mean(), 2 * size)) ** 2
    return np.fft.irfft(power.mean(0))[:size] / size


class FakePrior:
    """Draws from a function; its likelihood is Gaussian, worse by `excess` nats."""

    name = "fake"
    sample_rate = 100.0

    def __init__(self, draw, training: np.ndarray, *, excess: float = 0.0):
        self.draw, self.excess, self.window = draw, excess, training.shape[1]
        self.level = float(training.mean())
        self.autocovariance = torch.from_numpy(mean_autocovariance(training))

    def sample(self, n, *, generator=None):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return torch.from_numpy(self.draw(np.random.default_rng(seed), n))

    def heldout_nll(self, windows):
        nll = measures.gaussian_nll(
            windows.numpy(), self.autocovariance.numpy(), self.level
        )
        return torch.from_numpy(nll) + self.excess * self.window


def inspect(generated, real, *, n: int = 200, seed: int = 0, **options) -> Fidelity:
    windows = real(np.random.default_rng(10 + seed), n)
    training = real(np.random.default_rng(1000 + seed), 2000)
    return inspect_prior(FakePrior(generated, training, **options), windows, seed=seed)


def broken(found: Fidelity) -> set[str]:
    return {name for name, m in found.measures.items() if not m.within}


# --- measures against closed forms ---------------------------------------------------


def test_speckle_of_gaussian_noise_is_that_of_an_exponential():
    spectra = measures.periodograms(np.random.default_rng(0).standard_normal((4000, N)))
    gap, spread = measures.speckle(spectra)
    assert gap == pytest.approx(np.euler_gamma, abs=0.01)
    assert spread == pytest.approx(10 / math.log(10) * math.pi / math.sqrt(6), abs=0.05)
    assert pytest.approx(np.euler_gamma) == measures.SPECKLE_GAP_GAUSSIAN
    assert pytest.approx(5.57, abs=0.005) == measures.SPECKLE_SPREAD_GAUSSIAN


def test_speckle_of_one_repeated_waveform_is_zero():
    one = np.tile(np.random.default_rng(0).standard_normal(N), (30, 1))
    np.testing.assert_allclose(
        measures.speckle(measures.periodograms(one)), 0, atol=1e-9
    )


def test_periodogram_integrates_to_the_variance():
    rng = np.random.default_rng(0)
    spectra = measures.periodograms(2 * rng.standard_normal((4000, N)), sample_rate=50)
    assert spectra.mean(0).sum() * 50 / N == pytest.approx(4.0, rel=0.02)


def test_psd_error_of_a_factor_is_its_decibels():
    rng = np.random.default_rng(0)
    spectra = measures.periodograms(rng.standard_normal((300, N)))
    assert measures.psd_error_db(spectra, 2 * spectra) == pytest.approx(
        3.0103, abs=1e-6
    )
    assert measures.psd_error_db(spectra, 0 * spectra) == pytest.approx(120, abs=2)


def test_bands_are_wider_when_there_are_fewer_windows():
    ordinates = np.random.default_rng(0).exponential(size=(2, 1000, 65))
    few = measures.band_ratio_db(ordinates[0, :20], ordinates[1, :20])
    many = measures.band_ratio_db(*ordinates)
    assert (len(few), len(many)) == (6, 65)


def test_autocorrelation_of_ar1():
    windows = random_walk_like(np.random.default_rng(0), 4000)
    expected = 0.9 ** np.arange(N // 2 + 1) * (1 - np.arange(N // 2 + 1) / N)
    found = measures.autocorrelation(measures.autocovariances(windows))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_moments_against_scipy():
    x = stats.gamma(3).rvs((50, 200), random_state=1)
    raw = measures.raw_moments(x, centre=1.5, scale=2.0)
    mean, sd, skewness, kurtosis = measures.moments(raw)
    assert 1.5 + 2 * mean == pytest.approx(x.mean())
    assert 2 * sd == pytest.approx(x.std())
    assert skewness == pytest.approx(stats.skew(x, axis=None))
    assert kurtosis == pytest.approx(stats.kurtosis(x, axis=None, fisher=False))


def test_moments_of_a_constant():
    raw = measures.raw_moments(np.full((5, 8), 3.0))
    np.testing.assert_array_equal(measures.moments(raw), [3, 0, 0, 1])


def test_jackknife_error_of_a_mean():
    x = np.random.default_rng(0).standard_normal(4000)
    found = measures.jackknife_stderr(lambda v: v.mean(), x)
    assert found == pytest.approx(1 / math.sqrt(4000), rel=0.4)


def test_distances_of_a_shift():
    x = np.random.default_rng(0).standard_normal((200, N))
    assert measures.amplitude_distance(x, x + 0.5) == pytest.approx(0.5, abs=0.01)
    expected = 2 * stats.norm.cdf(0.25) - 1
    assert measures.kolmogorov_smirnov(x, x + 0.5) == pytest.approx(expected, abs=0.01)
    reference = stats.ks_2samp(x.ravel(), x.ravel() + 0.5).statistic
    assert measures.kolmogorov_smirnov(x, x + 0.5) == pytest.approx(reference)


def test_amplitudes_of_long_sets_come_from_all_positions():
    windows = np.zeros((64, 4096))
    windows[:, ::2] = 1.0
    assert measures.amplitude_distance(windows, windows[:, 1:]) < 0.01


def test_hop_variance_ratio_of_modulated_noise():
    noise = np.random.default_rng(0).standard_normal((3000, N))
    modulated = noise * np.where(np.arange(N) % 16 < 8, 1.0, 1.2)
    ratio, stderr = measures.hop_variance_ratio(modulated, 16)
    assert ratio == pytest.approx(1.44, abs=4 * stderr + 0.02)
    assert measures.hop_variance_ratio(modulated, 8)[0] < 1.03
    assert measures.hop_variance_ratio(np.zeros((30, N)), 8) == (1.0, 0.0)


@pytest.mark.parametrize("n_samples", [40, 2100])
def test_gaussian_likelihood_against_scipy(n_samples):
    covariance = 1.7 * 0.8 ** np.arange(n_samples)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, n_samples)) + 0.4
    found = measures.gaussian_nll(x, covariance, 0.4)
    factor = linalg.cho_factor(linalg.toeplitz(covariance), lower=True)
    quadratic = ((x - 0.4) * linalg.cho_solve(factor, (x - 0.4).T).T).sum(1)
    log_det = 2 * np.log(np.diag(factor[0])).sum()
    expected = 0.5 * (quadratic + log_det + n_samples * math.log(2 * math.pi))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_gaussian_likelihood_of_a_singular_autocovariance_is_finite():
    line = np.cos(0.3 * np.arange(N))
    assert np.isfinite(measures.gaussian_nll(line[None], line)).all()


def test_classifier_finds_a_shift_as_often_as_can_be():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 1000, 5))
    second[:, 2] += 2.0
    found = two_sample.classifier_two_sample(first, second)
    assert found.accuracy == pytest.approx(stats.norm.cdf(1.0), abs=4 * found.stderr)
    assert found.stderr == pytest.approx(0.5 / math.sqrt(2000))


def test_classifier_finds_a_difference_in_spread():
    first, second = np.random.default_rng(0).standard_normal((2, 600, 4))
    same = two_sample.classifier_two_sample(first, second)
    other = two_sample.classifier_two_sample(first, 2 * second)
    assert abs(same.accuracy - 0.5) < 4 * same.stderr
    assert other.accuracy > 0.7


def test_density_and_coverage_have_their_expected_values():
    real, generated = np.random.default_rng(0).standard_normal((2, 1500, 3))
    density, coverage = two_sample.density_coverage(real, generated)
    assert density == pytest.approx(1.0, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)  # Naeem 2020, eq. 9


def test_density_and_coverage_see_a_dropped_mode_and_an_implausible_one():
    rng = np.random.default_rng(0)
    side = np.repeat([-5.0, 5.0], 300)[:, None]
    real = side + rng.standard_normal((600, 2))
    dropped = -5 + rng.standard_normal((600, 2))
    assert two_sample.density_coverage(real, dropped)[1] == pytest.approx(0.5, abs=0.02)
    assert two_sample.density_coverage(real, real + 100) == (0.0, 0.0)


@pytest.mark.statistical
def test_distances_have_the_sampling_error_of_their_floors_and_statistics_a_smaller():
    """Medians over 40 pairs: six such sets came within 0.04 and 0.2 of these."""
    distance, statistics = [], []
    for seed in range(40):
        real, generated = np.random.default_rng([7, seed]).standard_normal((2, 80, 64))
        pair = Comparison.of(real, generated, sample_rate=1.0)
        found = checks.autocorrelation(pair)
        distance.append((found.error, found.floor))
        moments = checks.moments(pair).values()
        statistics.append([(m.error, m.floor) for m in moments])
    error, floor = np.median(distance, axis=0)
    assert floor / error == pytest.approx(1.0, abs=0.1)
    scaled = np.array(statistics) / np.mean(statistics, axis=(0, 2), keepdims=True)
    error, floor = np.median(scaled, axis=(0, 1))
    assert floor / error == pytest.approx(math.sqrt(2), abs=0.3)


# --- verdicts ------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [white, random_walk_like, bursts])
@pytest.mark.parametrize("n", [20, 200])
def test_noise_of_the_same_distribution_is_judged_the_same(noise, n):
    found = inspect(noise, noise, n=n)
    assert broken(found) == set()
    assert found.faithful
    assert found.verdict.startswith("Generated noise was not told apart")
    assert "DIFFERENT" not in found.report()
    assert "to try" not in found.report()


def test_gaussian_noise_with_the_right_spectrum_is_told_from_bursts():
    training = bursts(np.random.default_rng(5), 4000)
    found = inspect(stationary(mean_autocovariance(training)), bursts)
    assert {"kurtosis", "two_sample_accuracy", "speckle_gap"} <= broken(found)
    assert {"coverage", "wasserstein"} <= broken(found)
    assert found.measures["psd"].within  # the negative control is a good one
    assert found.measures["two_sample_accuracy"].error > 0.9
    assert "kurtosis" in found.verdict
    assert "bursts and outliers are too rare" in found.report()
    assert "to try: sepprior train-noise --model diffusion" in found.report()
    # It says so to the others alone.
    assert "to try" not in replace(found, prior_name="diffusion").report()


def test_a_wrong_spectrum_is_told_apart():
    found = inspect(stationary(0.8 ** np.arange(N)), random_walk_like)
    assert {"psd", "two_sample_accuracy"} <= broken(found)


@pytest.mark.filterwarnings("error")
def test_a_collapsed_generator_is_told_apart():
    def collapsed(rng, n):
        return np.tile(white(np.random.default_rng(3), 1), (n, 1))

    found = inspect(collapsed, white)
    assert {"speckle_gap", "speckle_spread", "coverage"} <= broken(found)
    assert found.measures["speckle_gap"].generated == pytest.approx(0, abs=1e-9)
    silent = inspect(lambda rng, n: np.zeros((n, N)), white)
    assert {"sd", "psd", "speckle_gap", "coverage"} <= broken(silent)


@pytest.mark.parametrize("period", [2, 16])
def test_noise_modulated_with_the_hop_is_found(period):
    position = np.arange(N) % period
    gain = np.where(position < period // 2, 1.15, 0.82)

    def modulated(rng, n):
        return 0.1 + 0.3 * gain * rng.standard_normal((n, N))

    found = inspect(modulated, white, n=300)
    assert "hop_variance" in broken(found)
    assert f"every {period} samples" in found.measures["hop_variance"].title


def test_a_hop_that_is_no_power_of_two_comes_from_the_prior():
    gain = np.where(np.arange(N) % 12 < 6, 1.2, 0.75)
    training = white(np.random.default_rng(1), 500)
    prior = FakePrior(lambda r, n: gain * 0.3 * r.standard_normal((n, N)), training)
    prior.hop = 12
    found = inspect_prior(prior, white(np.random.default_rng(2), 300))
    assert "every 12 samples" in found.measures["hop_variance"].title


def test_the_grid_of_a_converter_is_found():
    values = np.round(np.random.default_rng(0).normal(size=4000) * 5)
    # Multiples of 0.0610352, as a file with four decimals has them.
    assert measures.quantisation(np.round(0.0610352 * values + 0.3, 4)) == (
        pytest.approx((0.0610352 * values.min() + 0.3, 0.0610352), rel=1e-3)
    )
    assert measures.quantisation(np.random.default_rng(0).normal(size=4000)) is None
    uneven = np.array([0.0, 1.0, 2.5])[np.arange(3000) % 3]
    assert measures.quantisation(uneven) is None


def test_rounded_recordings_are_compared_with_rounded_noise():
    """Steps of a standard deviation. The control hides them, and is told apart."""

    def rounded(rng, n):
        return 0.3 * np.round(white(rng, n) / 0.3)

    found = inspect(white, rounded)
    assert found.step == pytest.approx(0.3)
    assert found.faithful, found.verdict
    assert "in steps of 0.3:" in found.report()
    assert found.to_dict()["quantisation_step"] == pytest.approx(0.3)
    control = inspect(white, lambda rng, n: rounded(rng, n) + 1e-5 * rng.random((n, N)))
    assert control.step is None
    assert "in steps" not in control.report()
    assert "kolmogorov_smirnov" in broken(control)


def test_likelihood_is_compared_with_the_gaussian_one():
    tie, worse, better = (
        inspect(white, white, n=50, excess=e) for e in (0.0, 0.05, -0.05)
    )
    assert tie.nll == pytest.approx(tie.nll_gaussian)
    assert tie.nll == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * 0.09), abs=0.03
    )
    assert worse.nll_gain == pytest.approx(-0.05)
    assert broken(worse) == {"heldout_nll"}
    assert "expect a tie" in tie.verdict
    assert "worse than GLS" in worse.verdict
    assert "better than GLS" in better.verdict and better.faithful


def test_the_seed_decides_on_the_generated_noise():
    windows = white(np.random.default_rng(0), 20)
    prior = FakePrior(white, windows)
    first, again, other = (
        inspect_prior(prior, windows, seed=s).to_dict() for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_results_as_json_report_and_picture(tmp_path):
    found = inspect(lambda rng, n: 3 * white(rng, n), white, n=30)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["faithful"] is False
    assert set(read["measures"]) == set(found.measures)
    assert read["measures"]["sd"]["generated"] == pytest.approx(3.0, rel=0.1)
    assert {"error", "floor", "limit", "within"} <= set(read["measures"]["psd"])
    report = found.report()
    assert all(m.title in report for m in found.measures.values())
    assert "30 real windows of 128 samples" in report
    found.plot(tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.ones((30, 64)), r"\(30, 64\) were given, the prior needs \(n, 128\)"),
        (np.ones(N), "cut the recording into windows of 128 samples"),
        (np.ones((5, N)), "5 windows .* at least 20 are needed"),
        (np.full((30, N), np.nan), "NaN or infinite"),
        (np.ones((30, N)), "constant value 1"),
    ],
)
def test_unusable_windows_are_refused_in_one_line(windows, message):
    prior = FakePrior(white, white(np.random.default_rng(0), 20))
    with pytest.raises(SeppriorError, match=message) as error:
        inspect_prior(prior, windows)
    assert "\n" not in str(error.value)


def test_a_prior_that_has_diverged_is_refused():
    with pytest.raises(SeppriorError, match="training has diverged"):
        inspect(lambda rng, n: np.full((n, N), np.nan), white, n=20)


# --- the noise of the benchmark, against what the package itself can make -------------
#
# Which measures break was the same for eight pairs of records (seeds 10 k and 10 k + 1
# of `noise_record`, k = 0 to 7), and so was that none breaks for independent noise.

WINDOWS = 240  # of 300 samples, at 10 s


class Records:
    """Windows to be judged by, others that were trained on, and the training's task."""

    def __init__(self, seed: int):
        runs = noise_record("bursts", 10.0, WINDOWS, seed)
        rate = cell("bursts", 10.0).sample_rate
        training, held = split_recording(as_recording(runs, sample_rate=rate), window=W)
        self.learned = np.concatenate(runs).reshape(-1, W)
        self.real = self.windows(seed + 1)
        self.gaussian = GaussianPrior(
            torch.from_numpy(mean_autocovariance(self.learned)),
            level=float(self.learned.mean()),
            sample_rate=rate,
        )
        windows = torch.from_numpy(consecutive_windows(held, window=W))
        device = torch.device("cpu")
        self.task = Task(training, held, windows, self.gaussian, device, {})

    @staticmethod
    def windows(seed: int) -> np.ndarray:
        return np.concatenate(noise_record("bursts", 10.0, WINDOWS, seed)).reshape(
            -1, W
        )

    def judge(self, generated: np.ndarray) -> Fidelity:
        return inspect_prior(
            FakePrior(lambda rng, n: generated, self.learned), self.real
        )

    def untrained(self, model: str, **settings):
        """The trainer of a recipe with its networks of the usual size, at step 0."""
        config = config_from_dict({"model": model, **settings})
        trainer = build_trainer(self.task, config, state=None)
        assert trainer.step == 0
        return trainer


@pytest.fixture(scope="module")
def records() -> Records:
    return Records(seed=0)


def test_an_independent_record_is_not_told_apart(records):
    found = records.judge(records.windows(2))
    assert broken(found) == set()
    assert abs(found.measures["two_sample_accuracy"].error - 0.5) < 0.05


def test_gaussian_noise_is_told_from_recorded_bursts(records):
    """White noise through the right spectrum: what the gaussian prior draws."""
    found = inspect_prior(records.gaussian, records.real)
    assert {"kurtosis", "two_sample_accuracy", "speckle_gap"} <= broken(found)
    assert {"wasserstein", "kolmogorov_smirnov", "coverage"} <= broken(found)
    assert found.measures["two_sample_accuracy"].error > 0.95
    m = found.measures["kurtosis"]
    assert m.generated == pytest.approx(3, abs=0.3) and m.real > 10
    # The spectrum is right, and the likelihood its own.
    assert {"psd", "autocorrelation", "sd", "hop_variance", "heldout_nll"}.isdisjoint(
        broken(found)
    )


def test_an_untrained_specgan_is_told_apart(records):
    """Its spectrum comes from the recording, all else from random weights."""
    # Where nothing is left to be chosen, no warm-up is needed to choose by.
    trainer = records.untrained("specgan", frame=32, whitening="total", latent_row="no")
    found = inspect_prior(trainer.frozen({}), records.real)
    assert {"kurtosis", "two_sample_accuracy", "speckle_gap"} <= broken(found)
    assert {"wasserstein", "kolmogorov_smirnov", "coverage"} <= broken(found)
    assert found.measures["two_sample_accuracy"].error > 0.95


@pytest.mark.parametrize("model", ["wavegan", "gansynth", "lstm"])
def test_an_untrained_generator_of_waveforms_is_told_apart(model, records):
    """The waveforms alone, without the Gaussian for what they cannot reach."""
    trainer = records.untrained(model)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(WINDOWS, trainer.config.latent, generator=rng)
    with torch.no_grad():
        waves = trainer.level + trainer.sd * trainer.generator(trainer.space.code(z))
    found = records.judge(waves.double().numpy())
    assert {"psd", "autocorrelation", "two_sample_accuracy"} <= broken(found)
    assert {"wasserstein", "kolmogorov_smirnov", "density", "coverage"} <= broken(found)
    # Strided layers and overlapping frames leave their rhythm, a recurrence does not.
    assert ("hop_variance" in broken(found)) == (model != "lstm")
    assert found.measures["two_sample_accuracy"].error > 0.95


def griffin_lim(magnitude: torch.Tensor, stft: TightSTFT) -> torch.Tensor:
    """Waveforms with nearly these magnitudes, phases from zero (Griffin, Lim 1984)."""
    phase = torch.zeros_like(magnitude)
    for _ in range(16):
        x = stft.synthesise(torch.polar(magnitude, phase))
        phase = stft.analyse(x).angle()
    return x


def test_phases_from_griffin_lim_are_told_apart(records):
    """Even with the magnitudes of recorded noise: the best a magnitude prior could do.

    Zero phases line up at the same place of every frame, so that the variance follows
    the hop of 16 samples.
    """
    stft = TightSTFT(W, 32)
    spectrogram = stft.analyse(torch.from_numpy(records.windows(2)))
    found = records.judge(griffin_lim(spectrogram.abs(), stft).numpy())
    assert {"hop_variance", "two_sample_accuracy", "psd", "skewness"} <= broken(found)
    assert {"autocorrelation", "mean", "density", "coverage"} <= broken(found)
    assert found.measures["hop_variance"].error > 1.4
    assert found.measures["two_sample_accuracy"].error > 0.95
    # Negative control: with the right phases nothing is found.
    assert not broken(records.judge(stft.synthesise(spectrogram).numpy()))
