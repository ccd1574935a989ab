"""Intervals of signals that can hardly be seen."""

import numpy as np
import pytest
import torch

import sepprior
from sepprior.inference import error_bars, weak
from sepprior.inference.joint import JointFit
from sepprior.inference.record import lay_out
from sepprior.priors import GaussianPrior
from sepprior.priors.base import Decoded
from sepprior.priors.marginal import tangent
from sepprior.signals import sinusoid
from tests.conftest import LEVEL, SAMPLE_RATE, WINDOW, coloured_noise

NAMES = ("amplitude", "frequency", "phase", "bias")
BAND = {"fmin": 4.0, "fmax": 16.0}
SPAN = WINDOW / SAMPLE_RATE


def white(n=40, rate=40.0):
    """White noise of unit variance, known exactly."""
    impulse = torch.zeros(n, dtype=torch.float64)
    impulse[0] = 1.0
    return GaussianPrior(impulse, level=0.0, sample_rate=rate)


@pytest.fixture(scope="module")
def prior():
    """The noise of the trials, known exactly: no factors from few injections."""
    lags = torch.arange(WINDOW, dtype=torch.float64)
    return GaussianPrior(0.6**lags / (1.0 - 0.36), level=LEVEL, sample_rate=SAMPLE_RATE)


def trials(count, amplitudes, *, seed):
    """Sinusoids within the band in coloured noise."""
    rng = np.random.default_rng(seed)
    truth = {
        "amplitude": np.exp(rng.uniform(*np.log(amplitudes), count)),
        "frequency": rng.uniform(BAND["fmin"], BAND["fmax"], count),
        "phase": rng.uniform(-np.pi, np.pi, count),
        "bias": rng.normal(size=count),
    }
    t = np.arange(WINDOW) / SAMPLE_RATE
    signal = sinusoid(t, **{k: v[:, None] for k, v in truth.items()})
    noise = [coloured_noise(WINDOW, seed=seed + 1 + i) for i in range(count)]
    return signal + np.stack(noise), truth


def covered(result, truth):
    """Shares of the truths in the 68 % and in the 95 % intervals, by name."""
    shares = {}
    for name in NAMES:
        p = result.parameters[name]
        away = truth[name] - p.value
        if name == "phase":
            away = np.angle(np.exp(1j * away))
        low, high = (p.ci95 - p.value[:, None]).T
        shares[name] = (
            np.mean(np.abs(away) <= p.stderr),
            np.mean((low <= away) & (away <= high)),
        )
    return shares


@pytest.mark.statistical
@pytest.mark.parametrize("gaps", [False, True])
def test_weak_signals_are_in_their_intervals(prior, monkeypatch, gaps):
    """Of 600 (200), within 4 standard errors; those of the parabola are not."""
    count = 200 if gaps else 600
    x, truth = trials(count, (0.3, 3.0), seed=100)
    if gaps:
        x[:, 20:26] = np.nan
    shares = covered(sepprior.separate(x, prior, **BAND), truth)
    for one, two in shares.values():
        assert abs(one - 0.683) < 4 * np.sqrt(0.683 * 0.317 / count)
        assert abs(two - 0.95) < 4 * np.sqrt(0.95 * 0.05 / count)
    monkeypatch.setattr(weak, "WEAK", -1.0)
    monkeypatch.setattr(weak, "RIVAL", -np.inf)
    parabola = covered(sepprior.separate(x, prior, **BAND), truth)
    assert parabola["frequency"][0] < 0.683 - 4 * np.sqrt(0.683 * 0.317 / count)
    assert parabola["frequency"][1] < 0.95 - 4 * np.sqrt(0.95 * 0.05 / count)


def test_strong_signals_keep_the_widths_of_the_parabola(prior, monkeypatch):
    """To what 1000 draws tell of a quantile: 3 to 5 %, four of them."""
    x, _ = trials(8, (20.0, 40.0), seed=7)
    before = sepprior.separate(x, prior, **BAND)
    monkeypatch.setattr(weak, "WEAK", np.inf)
    after = sepprior.separate(x, prior, **BAND)
    for name in NAMES:
        a, b = before.parameters[name], after.parameters[name]
        assert (a.stderr != b.stderr).all()  # they were worked out otherwise
        np.testing.assert_allclose(b.stderr, a.stderr, rtol=0.15)
        np.testing.assert_allclose(b.ci95 - a.ci95, 0, atol=0.5 * a.stderr.max())


def test_the_posterior_is_that_of_a_fine_grid():
    """All four parameters on a grid, white noise, flat priors on each of them."""
    known, rng = white(), np.random.default_rng(3)
    t = np.arange(40) / 40.0
    x = 0.7 * np.sin(2 * np.pi * 6.3 * t + 0.4) + rng.standard_normal(40)
    result = sepprior.separate(x, known, fmin=4.0, fmax=9.0)
    assert result.diagnostics["loglik_gain"] < weak.WEAK
    f, a, phi = np.meshgrid(
        np.linspace(4, 9, 151),
        np.linspace(0.005, 3, 80),
        np.linspace(-np.pi, np.pi, 73)[1:],
        indexing="ij",
    )
    waves = np.sin(2 * np.pi * f[..., None] * t + phi[..., None])
    rest = x - a[..., None] * waves
    rest -= rest.mean(-1, keepdims=True)  # a flat bias, integrated out
    weight = np.exp(
        -0.5 * np.square(rest).sum(-1) + 0.5 * np.square(rest).sum(-1).min()
    )
    for name, values in (("frequency", f), ("amplitude", a), ("phase", phi)):
        p = result.parameters[name]
        away = values - p.value
        if name == "phase":
            away = np.angle(np.exp(1j * away))
        order = np.argsort(np.abs(away), axis=None)
        below = np.cumsum(weight.ravel()[order]) / weight.sum()
        half = np.abs(away).ravel()[order][np.searchsorted(below, 0.682689)]
        assert p.stderr == pytest.approx(half, rel=0.1)
        order = np.argsort(away, axis=None)
        below = np.cumsum(weight.ravel()[order]) / weight.sum()
        ends = away.ravel()[order][np.searchsorted(below, [0.025, 0.975])]
        width = ends[1] - ends[0]
        np.testing.assert_allclose(
            np.subtract(p.ci95, p.value), ends, atol=0.08 * width
        )


SHAPES = torch.linspace(-1.0, 2.0, 20, dtype=torch.float64) ** torch.tensor([[1], [2]])


class Linear:
    """Noise ``z SHAPES`` in windows of 20 and white noise of standard deviation 1/2."""

    window = 20
    device, dtype = torch.device("cpu"), torch.float64
    autocovariance = torch.eye(20, dtype=torch.float64)[0]

    def features(self, x):
        return x

    def decode(self, z):
        mean = z @ SHAPES
        return Decoded(mean, torch.full_like(mean, 4.0), torch.zeros_like(mean[..., 0]))

    def latent_energy(self, z):
        return 0.5 * z.square().sum(-1)

    def latent_curvature(self, z):
        return torch.eye(2, dtype=z.dtype).expand(*z.shape[:-1], 2, 2)


class Constant:
    """A signal that is its only parameter."""

    def evaluate(self, t, theta):
        return theta[..., None].expand(-1, *t.shape)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_latents_and_gaps_are_integrated_out_about_the_fit(kept, gaps):
    """Normal equations of least squares with the covariance of the noise."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, generator=draws, dtype=torch.float64) + 1.0
    if gaps:
        x[:2, 14:24] = torch.nan
        x[1, 30] = torch.nan
    record = lay_out(x, window=20, level=0.0, sample_rate=40.0)
    rule = torch.block_diag(SHAPES, SHAPES)
    covariance = 0.25 * torch.eye(40) + rule.mT @ rule
    theta, z, filled = torch.ones(3, 1), torch.zeros(3, 2, 2), torch.zeros(3, 40)
    theta, z, filled = theta.double(), z.double(), filled.double()
    inverses = []
    for row in range(3):
        # The joint optimum: least squares, and what it leaves by the noise's rule.
        present = x[row].isfinite()
        inverse = torch.zeros(40, 40, dtype=torch.float64)
        inverse[present[:, None] & present] = torch.linalg.inv(
            covariance[present][:, present]
        ).flatten()
        inverses.append(inverse)
        known = x[row].nan_to_num()
        theta[row] = (inverse @ known).sum() / inverse.sum()
        z[row] = (rule @ inverse @ (known - theta[row])).view(2, 2)
        expected = theta[row] + z[row].flatten() @ rule
        filled[row] = torch.where(present, 0.0, expected)
    nothing = torch.zeros(3, dtype=torch.float64)
    fit = JointFit(theta, z, filled.view_as(record.x), nothing, nothing.bool())
    near = tangent(Linear(), z.flatten(0, 1)) if kept else None
    model = weak.Conditional(Linear(), record, fit, Constant(), near)
    for row, inverse in enumerate(inverses):
        found = list(model.windows(torch.tensor([row])))
        precision = torch.block_diag(*(block for block, _ in found))
        torch.testing.assert_close(precision, inverse, atol=1e-12, rtol=1e-9)
        data = torch.cat([data for _, data in found])
        torch.testing.assert_close(data, inverse @ x[row].nan_to_num())
        # Control: with the latents known it is another matrix.
        assert (4.0 * torch.eye(40) - precision).abs().max() > 1.0


def test_answers_of_a_prior_with_a_latent_have_them_too(specgan_prior, monkeypatch):
    x, _ = trials(3, (0.3, 0.5), seed=77)
    outcome = {}
    of_the_prior = error_bars.of_the_prior

    def watched(prior, found, form, table):
        outcome["weak"] = of_the_prior(prior, found, form, table)
        outcome["plain"] = error_bars.laplace(
            found.joint, form, "joint", table, prior.window
        )
        return outcome["weak"]

    monkeypatch.setattr(error_bars, "of_the_prior", watched)
    sepprior.separate(x, specgan_prior, **BAND)
    assert (outcome["weak"].values == outcome["plain"].values).all()
    assert (outcome["weak"].ci95 != outcome["plain"].ci95).all()


def test_frequencies_that_cannot_be_told_from_a_bias_are_left_alone(prior):
    """Next to zero and next to half the sample rate, where columns are degenerate."""
    x, _ = trials(4, (0.3, 0.5), seed=4)
    half = 0.5 * SAMPLE_RATE
    for low, high in ((0.1 / SPAN, 2.0), (half - 3.0, half - 1e-6)):
        result = sepprior.separate(x, prior, fmin=low, fmax=high)
        for name in NAMES:
            p = result.parameters[name]
            assert np.isfinite(p.stderr).all() and (p.stderr > 0).all()
            assert (p.ci95[:, 0] <= p.value).all() and (p.value <= p.ci95[:, 1]).all()


def test_an_interval_does_not_depend_on_what_else_is_in_the_batch(prior):
    x, _ = trials(5, (0.5, 2.0), seed=31)
    batch = sepprior.separate(x, prior, **BAND)
    for i in range(5):
        alone = sepprior.separate(x[i], prior, **BAND)
        for name in NAMES:
            np.testing.assert_allclose(
                alone.parameters[name].ci95, batch.parameters[name].ci95[i], rtol=1e-6
            )


def frequency_covered(x, known, f, **options):
    """Share of the true frequencies in the 95 % intervals, and the result."""
    result = sepprior.separate(x, known, **options)
    ends = result.parameters["frequency"].ci95
    return np.mean((ends[:, 0] <= f) & (f <= ends[:, 1])), result


@pytest.mark.statistical
def test_long_records_have_them_too(monkeypatch):
    """3000 samples, 100 trials: within 4 standard errors; the parabola's are not."""
    rng = np.random.default_rng(8)
    t, f = np.arange(3000) / 40.0, rng.uniform(1.0, 15.0, 100)
    a = np.sqrt(4.0 * rng.uniform(1.0, 10.0, 100) / len(t))
    phase = rng.uniform(-np.pi, np.pi, (100, 1))
    x = a[:, None] * np.sin(2 * np.pi * f[:, None] * t + phase)
    x += rng.standard_normal(x.shape)
    band = {"fmin": 0.5, "fmax": 16.0}
    error = 4 * np.sqrt(0.95 * 0.05 / 100)
    assert abs(frequency_covered(x, white(), f, **band)[0] - 0.95) < error
    monkeypatch.setattr(weak, "WEAK", -1.0)
    assert frequency_covered(x, white(), f, **band)[0] < 0.7


@pytest.mark.statistical
@pytest.mark.parametrize("edge", [8, 20])
def test_fringes_of_a_long_gap_are_in_the_interval(monkeypatch, edge):
    """A gap in 400 samples, 80 trials; the parabola knows one fringe alone."""
    rng = np.random.default_rng(9)
    t, f = np.arange(400) / 40.0, rng.uniform(3.0, 9.0, 80)
    phase = rng.uniform(-np.pi, np.pi, (80, 1))
    x = 3.0 * np.sin(2 * np.pi * f[:, None] * t + phase)
    x += rng.standard_normal(x.shape)
    x[:, edge:-edge] = np.nan
    band = {"fmin": 1.0, "fmax": 15.0}
    held, result = frequency_covered(x, white(), f, **band)
    assert held > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 80)
    probability = result.diagnostics["frequency_probability"]
    assert (probability < 0.95).mean() > 0.9
    assert "other frequencies fit about as well" in result.status[0]
    # The probabilities are right: as often as they say, the peak is the true one.
    right = np.abs(result.parameters["frequency"].value - f) < 0.05
    error = np.sqrt((probability * (1 - probability)).sum())
    assert abs(right.sum() - probability.sum()) < 4 * error
    monkeypatch.setattr(weak, "WEAK", -1.0)
    monkeypatch.setattr(weak, "RIVAL", -np.inf)
    assert frequency_covered(x, white(), f, **band)[0] < 0.8
