"""Annealed Fisher scoring against least squares and exact maximum likelihood."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import sepprior
from sepprior import signals
from sepprior.diffusion import Smoothing
from sepprior.inference import score as score_module
from sepprior.inference.least_squares import gls_features
from sepprior.inference.pipeline import analyse
from sepprior.inference.record import MaskedWhitener, lay_out
from sepprior.inference.score import ScoreProblem
from sepprior.inference.score_search import best_fit, unlikely
from sepprior.inference.score_starts import cleaned_starts, starts_at_lines
from sepprior.inference.starts import gls_starts
from sepprior.nets import Denoiser
from sepprior.priors import DiffusionPrior, ScorePrior
from sepprior.training.diffusion import usual_energy
from sepprior.transforms import Whitener

N, RATE = 96, 48.0
BAND = (1.0, 8.0)
LEVELS = 2.0 ** torch.arange(0, -5, -1, dtype=torch.float64)
GAP = 0.95


def form_for(record):
    geometry = signals.Geometry(record.length, record.sample_rate)
    return signals.Sinusoids(1, geometry, low=BAND[0], high=BAND[1])


def gaussian_by_diffusion(*, line: float = 0.0, window: int = N) -> DiffusionPrior:
    """A network that corrects nothing: stationary Gaussian noise, perhaps with a line.

    Whitened by the noise without the line, so that C is not the identity.
    """
    lag = torch.arange(window, dtype=torch.float64)
    continuum = 0.3 * 0.7**lag
    network = Denoiser(window=window, width=8, views=2)
    information = torch.zeros(len(LEVELS), window, dtype=torch.float64)
    information[:, 0] = 1.0
    return DiffusionPrior(
        network,
        whitening=continuum,
        autocovariance=continuum + line * torch.cos(2 * math.pi * 0.11 * lag),
        level=0.4,
        sample_rate=RATE,
        levels=LEVELS,
        information=information,
        scatter=information,
        lowest=0.03,
    )


class TwoModes:
    """Independent samples with modes at +-0.95 and unit variance: exact scores."""

    name = "two modes"
    learned = True
    n_latent = 0
    window, sample_rate, level = N, RATE, 0.0
    device = torch.device("cpu")
    levels = LEVELS
    lowest = 0.01

    def __init__(self):
        self.metadata = {}
        self.autocovariance = torch.zeros(N, dtype=torch.float64)
        self.autocovariance[0] = 1.0
        grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
        self.fisher, self.clean = [], []
        for sigma in LEVELS.tolist():
            density = self.log_density(grid, sigma).exp()
            square = self.score(grid, sigma).square()
            self.fisher.append(float(torch.trapezoid(density * square, grid)))
            self.clean.append(self._pair_variance(sigma))

    @staticmethod
    def log_density(x, sigma):
        v = 1.0 - GAP**2 + sigma**2
        modes = torch.stack([-0.5 * (x - m) ** 2 / v for m in (-GAP, GAP)])
        return modes.logsumexp(0) - 0.5 * math.log(8.0 * math.pi * v)

    def features(self, x):
        return x.double()

    def score(self, noisy, sigma):
        v = 1.0 - GAP**2 + sigma**2
        return (GAP * torch.tanh(GAP * noisy / v) - noisy) / v

    def information_matrix(self, index):
        return self.fisher[index] * torch.eye(N, dtype=torch.float64)

    def _pair_variance(self, sigma):
        """Mean square of the score of clean samples, averaged over opposite draws."""
        clean = torch.linspace(-4, 4, 801, dtype=torch.float64)
        added = torch.linspace(-6, 6, 601, dtype=torch.float64)
        w, e = torch.meshgrid(clean, sigma * added, indexing="ij")
        mean = 0.5 * (self.score(w + e, sigma) + self.score(w - e, sigma))
        weight = torch.exp(-0.5 * added.square()) / math.sqrt(2.0 * math.pi)
        inner = torch.trapezoid(mean.square() * weight, added)
        return float(torch.trapezoid(inner * self.log_density(clean, 0.0).exp(), clean))

    def scatter_matrix(self, index):
        return self.clean[index] * torch.eye(N, dtype=torch.float64)

    def lines(self, low, high):
        return torch.zeros(0, dtype=torch.float64)

    def gaussianised(self, score, index):
        total = 1.0 + float(LEVELS[index]) ** 2
        return -score / self.fisher[index] / total

    def gaussian_energy(self, w):
        return 0.5 * w.square().sum(-1)

    def gain(self, w):
        constant = 0.5 * N * math.log(2.0 * math.pi)
        exact = self.log_density(w, 0.0).sum(-1) + constant
        return exact + self.gaussian_energy(w)

    def sample(self, n, *, generator=None):
        sign = 2.0 * torch.randint(0, 2, (n, N), generator=generator).double() - 1.0
        noise = torch.randn((n, N), generator=generator, dtype=torch.float64)
        return GAP * sign + math.sqrt(1.0 - GAP**2) * noise

    def heldout_nll(self, windows):
        return -self.log_density(windows, 0.0).sum(-1)

    def to(self, device):
        return self


def signal(t, amplitude, frequency, phase, bias):
    return amplitude * np.sin(2 * np.pi * frequency * t + phase) + bias


def measured(noise, *, amplitude=1.5, frequency=3.3, phase=0.6, bias=0.2):
    t = np.arange(noise.shape[1]) / RATE
    return noise + torch.from_numpy(signal(t, amplitude, frequency, phase, bias))


def laid(prior, x):
    return lay_out(x, window=N, level=prior.level, sample_rate=RATE)


def test_both_kinds_keep_the_contract():
    assert isinstance(TwoModes(), ScorePrior)
    assert isinstance(gaussian_by_diffusion(), ScorePrior)


@pytest.mark.parametrize("line", [0.0, 2.0])
@pytest.mark.parametrize("case", ["whole", "gaps", "short", "long"])
def test_gaussian_noise_gives_least_squares(line, case):
    """From a start that is off, to the exact (masked) GLS answer and covariance."""
    prior = gaussian_by_diffusion(line=line)
    rng = torch.Generator().manual_seed(3)
    x = measured(prior.sample(3, generator=rng))
    if case == "long":
        x = measured(prior.sample(9, generator=rng).view(3, 3 * N))
    if case == "gaps":
        x[torch.rand(x.shape, generator=rng) < 0.3] = torch.nan
    if case == "short":
        x = x[:, : N - 25]
    record = laid(prior, x)
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    gls = gls_starts(form, record, whitener, n_starts=1)[0]
    sd = gls.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    everyone = torch.arange(3)
    problem = ScoreProblem(prior, record, form=form)
    fit = problem.start(gls.theta + sd * torch.tensor([1.0, -1.0, 1.0, 0.7]))
    # Least squares is approached to the smoothing of the last level, and the exact
    # one has weights that depend on theta only through the Jacobian.
    fit = problem.descend(fit, everyone, range(len(LEVELS) - 1))
    for _ in range(8):
        fit = problem.descend(fit, everyone, range(len(LEVELS) - 1, len(LEVELS)))
    assert ((fit.theta - gls.theta).abs() / sd).max() < 0.02
    scale = fit.covariance / gls.covariance
    assert (scale.diagonal(dim1=-2, dim2=-1) - 1.0).abs().max() < 0.02
    gls_energy = gls.energy + whitener.half_log_det()
    volume = -0.5 * torch.linalg.slogdet(gls.covariance).logabsdet
    evidence = gls_energy + volume - problem.energy(fit, everyone) - fit.volume
    assert evidence.abs().max() < 0.1


@pytest.mark.statistical
@pytest.mark.parametrize("kind", [TwoModes, gaussian_by_diffusion])
def test_error_bars_hold_at_any_last_level(kind):
    """Stopped at a level as loud as the noise, the scatter counts, not the information.

    200 records; a right 68 % interval of four independent parameters holds 546 of 800,
    +- 13; four standard deviations are allowed. Negative control: the information of
    the smoothed noise gives bars that are too wide by 40 % and more.
    """
    prior = kind()
    record = laid(
        prior, measured(prior.sample(200, generator=torch.Generator().manual_seed(8)))
    )
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    everyone = torch.arange(200)
    problem = ScoreProblem(prior, record, form=form)
    fit = problem.start(gls_starts(form, record, whitener, n_starts=1)[0].theta)
    fit = problem.descend(problem.descend(fit, everyone, range(1)), everyone, range(1))
    truth = torch.tensor([1.5, 3.3, 0.6, 0.2]).double()

    def share(covariance):
        values, covariance = signals.to_polar(
            fit.theta, covariance, middle=record.middle
        )
        error = values - truth
        return float((error.square() < covariance.diagonal(dim1=1, dim2=2)).sum())

    assert abs(share(fit.covariance) - 546) < 52
    wave = problem.jacobian(fit.theta, everyone).flatten(2)
    naive = torch.linalg.inv(wave @ prior.information_matrix(0) @ wave.mT)
    assert share(naive) > 640


def test_expected_parameters_weigh_as_much_as_they_should():
    """Data and prior combined as two Gaussians, whatever the level."""
    rng = np.random.default_rng(4)
    root = rng.standard_normal((3, 3))
    covariance, step = root @ root.T, rng.standard_normal(3)
    precision, distance = np.array([0.0, 4.0, 0.0]), np.array([9.0, -1.0, 5.0])
    found, left = (
        part[0].numpy()
        for part in score_module._with_expected(
            torch.from_numpy(step)[None],
            torch.from_numpy(covariance)[None],
            torch.from_numpy(precision),
            torch.from_numpy(distance)[None],
        )
    )
    # The same as a Kalman update with one measurement of the second unknown.
    gain = covariance[:, 1] / (covariance[1, 1] + 0.25)
    np.testing.assert_allclose(found, step + gain * (-1.0 - step[1]))
    np.testing.assert_allclose(left, covariance - np.outer(gain, covariance[1]))


def test_lines_that_are_left_in_are_found_and_tried():
    prior = gaussian_by_diffusion(line=2.0)
    found = prior.lines(*BAND)
    assert found.tolist() == pytest.approx([0.11 * RATE], abs=0.2 * RATE / N)
    assert len(prior.lines(6.0, 8.0)) == len(gaussian_by_diffusion().lines(*BAND)) == 0
    record = laid(prior, measured(prior.sample(2)))
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    gls = gls_starts(form, record, whitener, n_starts=1)[0]
    (start,) = starts_at_lines(ScoreProblem(prior, record, form=form), gls)
    assert (start.theta[:, 3] == found).all()
    assert torch.equal(start.theta[:, 0], gls.theta[:, 0])
    size = start.theta[:, 1:3]
    assert (size > 0.0).all() and (size < 0.3).all()


def test_two_mode_noise_gives_maximum_likelihood():
    prior = TwoModes()
    rng = torch.Generator().manual_seed(5)
    noise = prior.sample(24, generator=rng)
    record = laid(prior, measured(noise))
    outcome = analyse(
        prior,
        record,
        form=form_for(record),
        generator=rng,
        band=BAND,
    )
    values, covariance = signals.to_polar(
        outcome.joint.theta, outcome.joint.covariance, middle=record.middle
    )
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    t = np.arange(N) / RATE
    truth = np.array([1.5, 3.3, 0.6, 0.2])
    distance = []
    for x, s in zip(record.x[:, 0].numpy(), sd.numpy(), strict=True):

        def energy(u, x=x, s=s):
            rest = torch.from_numpy(x - signal(t, *(truth + s * u)))
            return -float(prior.log_density(rest, float(LEVELS[-1])).sum())

        best = minimize(
            energy, np.zeros(4), method="Nelder-Mead", options={"maxiter": 2000}
        )
        distance.append(truth + s * best.x)
    exact = torch.from_numpy(np.array(distance))
    # Within a third of an error bar of the exact optimum at the last level, and far
    # better than least squares, whose error bars are 3 times as long.
    assert ((values - exact) / sd).square().mean().sqrt() < 0.35
    truth = torch.from_numpy(truth)
    gls = signals.to_polar(
        outcome.gls.theta, outcome.gls.covariance, middle=record.middle
    )[0]
    ours = ((values - truth) / sd).square().mean().sqrt()
    theirs = ((gls - truth) / sd).square().mean().sqrt()
    assert ours < 1.35
    assert theirs > 2.0 * ours
    assert (outcome.evidence > 10.0).all()
    assert outcome.converged.all()


def test_an_unlikely_noise_hypothesis_is_looked_at_again():
    """One start, off by half of 1 / T and of opposite phase: all fits are caught by a
    wrong frequency (the negative control), and say so by what they leave as noise."""
    prior = TwoModes()
    rng = torch.Generator().manual_seed(11)
    quiet = prior.features(prior.sample(400, generator=rng))
    energy = prior.gaussian_energy(quiet) - prior.gain(quiet)
    record = laid(prior, measured(prior.sample(32, generator=rng)))
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    off = torch.full((32, 1), 3.3 + 0.5 * RATE / N).double()
    start = gls_starts(form, record, whitener, n_starts=1, guess=off)[0]
    theta = start.theta * torch.tensor([1.0, -1.0, -1.0, 1.0])
    start = replace(start, theta=torch.cat([theta[:, :3], off], 1))
    problem = ScoreProblem(prior, record, form=form)
    once = best_fit(problem, whitener, [start], None)
    assert ((once.fit.theta[:, 3] - 3.3).abs() > 0.5 * RATE / N).all()
    assert not unlikely(problem, once.energy).any()  # nothing is known to compare with
    prior.metadata["energy"] = usual_energy(prior, quiet)
    assert prior.metadata["energy"]["mean"] == pytest.approx(float(energy.mean()))
    assert unlikely(problem, once.energy).all()
    assert 0 < unlikely(problem, energy).double().mean() < 0.06
    again = best_fit(problem, whitener, [start], None)
    assert (again.energy <= once.energy).all()
    assert ((again.fit.theta[:, 3] - 3.3).abs() < 0.1 * RATE / N).all()


def test_no_step_is_longer_than_an_error_bar():
    prior = TwoModes()
    noise = prior.sample(16, generator=torch.Generator().manual_seed(7))
    record = laid(prior, measured(noise, amplitude=6.0))
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    start = gls_starts(form, record, whitener, n_starts=1)[0].theta.clone()
    start[:, 1:3] *= 0.5
    problem = ScoreProblem(prior, record, form=form)
    everyone = torch.arange(16)
    fit = problem.start(start)
    for _ in range(5):
        after = problem._step(fit, everyone, 2)
        move = (after.theta - fit.theta).unsqueeze(1)
        wave = problem.jacobian(fit.theta, everyone).flatten(2)
        length = (move @ wave @ prior.information_matrix(2)).square().sum(-1)
        length = (length / prior.fisher[2]).flatten().sqrt()
        assert length.max() <= score_module.LONGEST_STEP * score_module.DAMPING + 1e-9
        fit = after
    assert (fit.step > score_module.LONGEST_STEP).any()


def test_cleaning_leaves_gaussian_noise_alone():
    """``W^-1 (-S score) = noise`` up to the draws, which come in pairs and cancel."""
    prior = gaussian_by_diffusion(line=2.0)
    noise = prior.sample(2, generator=torch.Generator().manual_seed(1)) - prior.level
    record = lay_out(noise, window=N, level=0.0, sample_rate=RATE)
    problem = ScoreProblem(prior, record, form=form_for(record))
    score = problem.score(prior.features(record.x), 2, problem.draws(2))
    cleaned = prior.gaussianised(score.flatten(0, 1), 2)
    torch.testing.assert_close(cleaned, noise, atol=1e-3, rtol=1e-3)


def test_cleaning_shows_a_weak_signal_that_bursts_hide():
    """The peak of the cleaned data's periodogram is the signal more often."""
    prior = TwoModes()
    rng = torch.Generator().manual_seed(11)
    x = measured(prior.sample(60, generator=rng), amplitude=0.35, frequency=4.1)
    record = laid(prior, x)
    form = form_for(record)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    problem = ScoreProblem(prior, record, form=form)
    plain = gls_starts(form, record, whitener, n_starts=1)[0]
    cleaned = cleaned_starts(problem, whitener, plain)[0]

    def found(fit):
        return float(((fit.theta[:, 3] - 4.1).abs() < 0.25).double().mean())

    assert found(cleaned) > found(plain) + 0.3


def test_whitened_features_agree_with_the_masked_whitener():
    prior = gaussian_by_diffusion()
    record = laid(prior, measured(prior.sample(2)))
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    features = gls_features(whitener)(record.x.unsqueeze(1), torch.arange(2))
    torch.testing.assert_close(prior.features(record.x).flatten(1), features[:, 0])
    assert Smoothing.of(None, window=4, dtype=torch.float32).vectors is None


@pytest.mark.statistical
def test_detection_is_calibrated_and_sees_what_least_squares_does_not():
    """Noise alone is called a signal at the stated rate; a weak signal is found.

    160 records of noise, threshold 5 %: 8 expected; more than 18 (or none) happen to a
    right test in less than one key in a thousand.
    """
    prior = TwoModes()
    rng = torch.Generator().manual_seed(21)
    noise = prior.sample(160, generator=rng).numpy()
    band = {"fmin": BAND[0], "fmax": BAND[1]}
    silent = sepprior.separate(noise, prior, **band)
    alarms = (silent.diagnostics["false_alarm_probability"] < 0.05).sum()
    assert 1 <= alarms <= 18
    t = np.arange(N) / RATE
    weak = sepprior.separate(noise[:40] + signal(t, 0.35, 4.1, 0.3, 0.0), prior, **band)
    assert weak.diagnostics["detected"].mean() > 0.9
    record = laid(prior, torch.from_numpy(noise[:40] + signal(t, 0.35, 4.1, 0.3, 0.0)))
    gls = analyse(
        prior,
        record,
        form=form_for(record),
        generator=rng,
        band=BAND,
        joint=False,
    )
    assert gls.signal_gain is None
    assert (gls.periodogram.gain.amax(-1) > 9.0).double().mean() < 0.5


def test_rare_noise_of_the_prior_is_not_taken_for_foreign(monkeypatch):
    """However odd its band powers: the prior's lead over the Gaussian decides."""
    prior = TwoModes()
    prior.metadata = {"heldout": {"gain": 0.4, "gain_stderr": 0.01}}
    monkeypatch.setattr(
        "sepprior.inference.novelty.false_alarm_probability",
        lambda null, white, present, *_: torch.full((len(white),), 1e-12).double(),
    )
    rng = torch.Generator().manual_seed(31)
    band = {"fmin": BAND[0], "fmax": BAND[1]}
    own = sepprior.separate(measured(prior.sample(4, generator=rng)), prior, **band)
    assert set(own.diagnostics["method"]) == {"two modes"}
    gaussian = torch.randn((4, N), generator=rng, dtype=torch.float64)
    foreign = sepprior.separate(measured(gaussian), prior, **band)
    assert set(foreign.diagnostics["method"]) == {"gls"}
    assert all("does not describe this noise" in s for s in foreign.status)
