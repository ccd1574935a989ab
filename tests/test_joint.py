"""The joint solver against closed forms: a generator that is linear in z."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sepprior
from sepprior import signals
from sepprior.inference import search
from sepprior.inference.detection import no_signal_energy
from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import gls_features
from sepprior.inference.pipeline import analyse
from sepprior.inference.record import MaskedWhitener, Record, lay_out
from sepprior.inference.silence import CLEAR
from sepprior.inference.starts import gls_starts
from sepprior.priors import WaveformPrior
from sepprior.transforms import Whitener, toeplitz

N, K, RATE = 96, 5, 48.0
BAND = (0.8, 6.0)


def form_for(record):
    geometry = signals.Geometry(record.length, record.sample_rate)
    return signals.Sinusoids(1, geometry, low=BAND[0], high=BAND[1])


class DenseWhitener(MaskedWhitener):
    """GLS with any covariance: the exact reference."""

    def __init__(self, covariance, present):
        self.present, self.complete = present, True
        self.covariance = covariance
        self.factor = torch.linalg.cholesky(covariance)

    def forward(self, columns, which):
        flat = columns.double().flatten(-2)
        white = torch.linalg.solve_triangular(self.factor, flat.mT, upper=False).mT
        return white.unsqueeze(-2)


def linear_prior(seed=0, scale=0.4):
    """``n = L z + e``: smooth random columns, e an AR(1) process."""
    rng = torch.Generator().manual_seed(seed)
    lag = torch.arange(N, dtype=torch.float64)
    range_error = 0.05 * 0.6**lag
    t = lag / RATE
    f = 1.0 + 4.0 * torch.rand(K, generator=rng, dtype=torch.float64)
    p = 2 * math.pi * torch.rand(K, generator=rng, dtype=torch.float64)
    columns = (
        scale
        * torch.sin(2 * math.pi * f[:, None] * t + p[:, None])
        * torch.exp(
            -((t - t[-1] * torch.rand(K, 1, generator=rng, dtype=torch.float64)) ** 2)
        )
    )
    covariance = toeplitz(range_error) + columns.T @ columns
    # The stationary stand-in that GLS starts from: diagonal averages.
    index = torch.arange(N)
    distance = (index[:, None] - index[None, :]).abs()
    mean = torch.stack([covariance[distance == k].mean() for k in range(N)])
    prior = WaveformPrior(
        lambda z: z @ columns,
        n_latent=K,
        range_autocovariance=range_error,
        autocovariance=mean * (1 - lag / N),
        sample_rate=RATE,
    )
    return prior, columns, covariance


def measurements(covariance, n, seed=1, amplitude=1.0):
    """Sinusoids in noise of the given covariance; (x, linear theta)."""
    rng = np.random.default_rng(seed)
    white = torch.from_numpy(rng.normal(size=(n, N)))
    noise = white @ torch.linalg.cholesky(covariance).mT
    t = (torch.arange(N, dtype=torch.float64) - (N - 1) / 2) / RATE
    f = torch.from_numpy(rng.uniform(1.5, 5.0, (n, 1)))
    phase = torch.from_numpy(rng.uniform(-np.pi, np.pi, (n, 1)))
    linear = amplitude * torch.cat([torch.sin(phase), torch.cos(phase)], 1)
    theta = torch.cat([torch.full((n, 1), 0.7, dtype=torch.float64), linear, f], 1)
    return signals.evaluate(t, theta) + noise, theta


@dataclass(frozen=True)
class TimedRecord(Record):
    """Samples at given times, without windows."""

    times: torch.Tensor | None = None

    @property
    def t(self):
        return self.times


def exact_gls(record: Record, covariance):
    whitener = DenseWhitener(covariance, record.present)
    from sepprior.inference.least_squares import gauss_newton, linear_fit

    features = gls_features(whitener)
    which = torch.arange(len(record.x))
    target = features(record.x.unsqueeze(1), which)[:, 0]

    def refine(frequency):
        form = form_for(record)
        theta = linear_fit(form, record, features, which, frequency, target)
        return gauss_newton(form, record, features, which, theta, target, steps=200)

    return refine


@pytest.fixture(scope="module")
def setting():
    prior, columns, covariance = linear_prior()
    x, truth = measurements(covariance, 12)
    record = lay_out(x, window=N, level=0.0, sample_rate=RATE)
    return prior, columns, covariance, record, truth


def joint_fit(prior, record, start, evaluations=300):
    problem = JointProblem(prior, record, form=form_for(record))
    which = torch.arange(len(record.x))
    rng = torch.Generator().manual_seed(0)
    filled = torch.zeros_like(record.x)
    searched = problem.search(
        start, filled, which, candidates=8, rounds=4, generator=rng
    )
    fit = problem.minimise(searched, which, max_evaluations=evaluations)
    return problem, fit, which


def test_joint_optimum_is_gls_with_the_whole_covariance(setting):
    prior, _, covariance, record, truth = setting
    reference = exact_gls(record, covariance)(truth[:, 3:])
    _, fit, _ = joint_fit(prior, record, truth)
    scale = reference.theta.abs().clamp_min(0.1)
    assert ((fit.theta - reference.theta).abs() / scale).max() < 1e-4
    # Negative control: the generator left out gives another answer.
    alone = exact_gls(record, toeplitz(prior.whitener.autocovariance))(truth[:, 3:])
    assert ((alone.theta - reference.theta).abs() / scale).max() > 1e-2


def test_error_bars_with_z_marginalised_are_those_of_the_whole_covariance(setting):
    prior, _, covariance, record, truth = setting
    reference = exact_gls(record, covariance)(truth[:, 3:])
    problem, fit, which = joint_fit(prior, record, truth)
    marginal, conditional, _ = problem.hessian(fit, which).summary()
    expected = reference.covariance.diagonal(dim1=-2, dim2=-1)
    found = marginal.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(found, expected, rtol=1e-3)
    fixed = conditional.diagonal(dim1=-2, dim2=-1)
    assert (fixed < 0.9 * expected).any()


def test_absorption_tells_whether_the_noise_can_pass_for_the_signal():
    """A generator of sinusoids of 3 Hz, with signals there and elsewhere.

    The share is that of the exact covariances, and the status says so in the first case
    alone.
    """
    t = torch.arange(N, dtype=torch.float64) / RATE
    angle = 2 * math.pi * 3.0 * t
    columns = 2.0 * torch.stack([angle.sin(), angle.cos()])
    range_error = 0.05 * 0.6 ** torch.arange(N, dtype=torch.float64)
    own = toeplitz(range_error)
    total = own + columns.T @ columns
    prior = WaveformPrior(
        lambda z: z @ columns,
        n_latent=2,
        range_autocovariance=range_error,
        autocovariance=range_error + 4.0 * (2 * math.pi * 3.0 * t).cos(),
        sample_rate=RATE,
    )
    # A prior that leads by far, so that it is used wherever it is the more probable.
    prior.metadata["heldout"] = {"gain": 1.0, "gain_stderr": 0.01}
    rng = np.random.default_rng(2)
    factor = torch.linalg.cholesky(own)
    for frequency, expected in ((3.0, "imitated"), (5.3, "apart")):
        noise = torch.from_numpy(rng.normal(size=(20, N))) @ factor.mT
        z = torch.from_numpy(rng.normal(size=(20, 2)))
        x = 4.0 * torch.sin(2 * math.pi * frequency * t + 0.5) + z @ columns + noise
        result = sepprior.separate(
            x.numpy(),
            prior,
            sample_rate=RATE,
            fmin=frequency - 0.1,
            fmax=frequency + 0.1,
        )
        used = result.diagnostics["method"] != "gls"
        assert used.sum() >= 10
        told = np.array(["can look like the signal" in s for s in result.status])
        share = result.diagnostics["absorption"]
        if expected == "imitated":
            assert (share[used] > 0.95).all() and told[used].all()
        else:
            assert (share < 0.2).all() and not told.any()
        f = result.parameters["frequency"].value
        for i in np.flatnonzero(used)[:3]:
            turn = 2 * math.pi * float(f[i]) * (t - 0.5 * (N - 1) / RATE)
            a, p = (result.parameters[k].value[i] for k in ("amplitude", "phase"))
            middle = float(p) + math.pi * float(f[i]) * (N - 1) / RATE
            slope = a * turn / f[i] * torch.cos(turn + middle)
            wave = torch.stack([torch.ones_like(t), turn.sin(), turn.cos(), slope], 1)
            exact = [
                torch.linalg.inv(wave.T @ torch.linalg.solve(matrix, wave)).diagonal()
                for matrix in (total, own)
            ]
            ratio = float(exact[1][1:3].sum() / exact[0][1:3].sum())
            assert share[i] == pytest.approx(1.0 - ratio, abs=0.02)


def test_gradient_of_the_joint_energy_matches_finite_differences(setting):
    prior, _, _, record, truth = setting
    problem = JointProblem(prior, record, form=form_for(record))
    which = torch.arange(len(record.x))
    rng = torch.Generator().manual_seed(3)
    z = torch.randn((len(which), 1, K), generator=rng, dtype=torch.float64)
    filled = torch.zeros_like(record.x)
    theta = truth.clone().requires_grad_()
    z.requires_grad_()
    energy = problem.energy(theta, filled, z, which)
    d_theta, d_z = torch.autograd.grad(energy.sum(), (theta, z))
    step = 1e-6
    for i in range(theta.shape[1]):
        up, down = theta.detach().clone(), theta.detach().clone()
        up[:, i] += step
        down[:, i] -= step
        slope = (
            problem.energy(up, filled, z, which)
            - problem.energy(down, filled, z, which)
        ) / (2 * step)
        assert torch.allclose(slope.detach(), d_theta[:, i], rtol=1e-5, atol=1e-5)
    up = z.detach().clone()
    up[..., 2] += step
    down = z.detach().clone()
    down[..., 2] -= step
    slope = (
        problem.energy(theta, filled, up, which)
        - problem.energy(theta, filled, down, which)
    ) / (2 * step)
    assert torch.allclose(slope.detach(), d_z[:, 0, 2], rtol=1e-5, atol=1e-5)


def test_batched_solver_agrees_with_pytorch_minimize(setting):
    from torchmin import minimize

    prior, columns, _, record, truth = setting
    _, fit, _ = joint_fit(prior, record, truth)
    whitener = Whitener(prior.whitener.autocovariance)
    for b in range(3):

        def energy(u, b=b):
            theta, z = u[None, :4], u[4:]
            r = record.x[b, 0] - signals.evaluate(record.t[0], theta)[0] - z @ columns
            return 0.5 * whitener.forward(r).square().sum() + 0.5 * z.square().sum()

        start = torch.cat([truth[b], torch.zeros(K, dtype=torch.float64)])
        single = minimize(energy, start, method="bfgs", tol=1e-12, max_iter=500)
        assert torch.allclose(fit.theta[b], single.x[:4], rtol=1e-4, atol=1e-5)
        assert torch.allclose(fit.z[b, 0], single.x[4:], rtol=1e-3, atol=1e-4)


def test_gaps_agree_with_the_exact_masked_fit(setting):
    prior, _, covariance, record, truth = setting
    x = record.x[:, 0].clone()
    gap = np.random.default_rng(4).choice(N, 20, replace=False)
    x[:, gap] = torch.nan
    masked = lay_out(x, window=N, level=0.0, sample_rate=RATE)
    _, fit, _ = joint_fit(prior, masked, truth, evaluations=600)
    keep = torch.tensor(sorted(set(range(N)) - set(gap.tolist())))
    short = TimedRecord(
        masked.x[..., keep],
        masked.present[..., keep],
        N,
        RATE,
        times=masked.t[..., keep],
    )
    reference = exact_gls(short, covariance[keep][:, keep])(truth[:, 3:])
    scale = reference.theta.abs().clamp_min(0.1)
    assert ((fit.theta - reference.theta).abs() / scale).max() < 1e-3


def test_two_windows_share_theta_and_have_their_own_z():
    prior, _, covariance = linear_prior()
    both = torch.block_diag(covariance, covariance)
    rng = np.random.default_rng(5)
    noise = (
        torch.from_numpy(rng.normal(size=(6, 2 * N))) @ torch.linalg.cholesky(both).mT
    )
    t = (torch.arange(2 * N, dtype=torch.float64) - (2 * N - 1) / 2) / RATE
    truth = torch.tensor([[0.3, 0.8, -0.6, 2.7]], dtype=torch.float64).repeat(6, 1)
    x = signals.evaluate(t, truth) + noise
    record = lay_out(x, window=N, level=0.0, sample_rate=RATE)
    _, fit, _ = joint_fit(prior, record, truth)
    whole = Record(
        record.x.flatten(1).unsqueeze(1),
        record.present.flatten(1).unsqueeze(1),
        2 * N,
        RATE,
    )
    reference = exact_gls(whole, both)(truth[:, 3:])
    scale = reference.theta.abs().clamp_min(0.1)
    assert ((fit.theta - reference.theta).abs() / scale).max() < 1e-4


def test_evidence_is_the_exact_likelihood_ratio(setting):
    """For a linear generator the Laplace evidence is exact up to the volume of f."""
    prior, _, covariance, record, _ = setting
    outcome = analyse(
        prior,
        record,
        form=form_for(record),
        generator=torch.Generator().manual_seed(0),
    )
    reference = exact_gls(record, covariance)(outcome.joint.theta[:, 3:])
    exact_energy = reference.energy + 0.5 * torch.linalg.slogdet(covariance).logabsdet
    volume = -0.5 * torch.linalg.slogdet(reference.covariance).logabsdet
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    fits = gls_starts(form_for(record), record, whitener, n_starts=1)
    gls = fits[0].energy + whitener.half_log_det()
    gls = gls - 0.5 * torch.linalg.slogdet(fits[0].covariance).logabsdet
    expected = gls - exact_energy - volume
    assert torch.allclose(outcome.evidence, expected, atol=0.1)


def exact_gain(record, covariance, frequency):
    """Gain of the best sinusoid over a constant, with the exact covariance."""
    whitener = DenseWhitener(covariance, record.present)
    form = form_for(record)
    silence = no_signal_energy(form, record, whitener)
    return silence - exact_gls(record, covariance)(frequency).energy


def test_gain_over_no_signal_is_the_exact_likelihood_ratio(setting):
    """For a linear generator Laplace's integral over the latent is exact."""
    prior, _, covariance, _, _ = setting
    x, _ = measurements(covariance, 12, seed=3, amplitude=0.15)
    record = lay_out(x, window=N, level=0.0, sample_rate=RATE)

    def fitted(prior, detect=True):
        rng = torch.Generator().manual_seed(0)
        form = form_for(record)
        return analyse(prior, record, form=form, generator=rng, detect=detect)

    outcome = fitted(prior)
    expected = exact_gain(record, covariance, outcome.joint.theta[:, 3:])
    assert expected.max() < CLEAR and expected.max() > 5.0
    error = (outcome.signal_gain - expected).abs()
    assert error.median() < 1e-3 and error.max() < 0.3  # 30 evaluations at most
    assert fitted(prior, detect=False).signal_gain is None
    # Negative control: with the latents held, or GLS in their place, it is another.
    gls = no_signal_energy(form_for(record), record, outcome.whitener)
    assert (gls - outcome.gls.energy - expected).abs().median() > 0.5


@pytest.mark.statistical
def test_signals_are_called_detected_in_noise_alone_at_the_stated_rate():
    """400 windows of noise: 5 and 20 % within 3.5 standard errors (5e-4 each).

    The probability is an upper bound, close to the truth where it is small (Baluev
    2008), so that fewer may be called at 20 %.
    """
    prior, _, covariance = linear_prior()
    x, _ = measurements(covariance, 400, seed=5, amplitude=0.0)
    result = sepprior.separate(x.numpy(), prior, fmin=BAND[0], fmax=BAND[1])
    joint = ~result.diagnostics["gls_sufficient"]
    assert joint.mean() > 0.5
    p = result.diagnostics["false_alarm_probability"]
    for rate, lowest in ((0.05, 0.05), (0.2, 0.12)):
        spread = 3.5 * math.sqrt(rate * (1 - rate) / len(p))
        assert lowest - spread < (p < rate).mean() < rate + spread


@pytest.mark.statistical
def test_intervals_of_the_joint_fit_cover_at_their_rate():
    """300 trials, four parameters: each 68 % count within 4 standard errors (6e-5)."""
    prior, _, covariance = linear_prior()
    x, truth = measurements(covariance, 300, seed=7, amplitude=3.0)
    record = lay_out(x, window=N, level=0.0, sample_rate=RATE)
    problem, fit, which = joint_fit(prior, record, truth, evaluations=80)
    marginal, conditional, _ = problem.hessian(fit, which).summary()
    error = (fit.theta - truth).abs()
    found = (error < marginal.diagonal(dim1=-2, dim2=-1).sqrt()).double().mean(0)
    spread = 4 * math.sqrt(0.6827 * 0.3173 / 300)
    assert ((found - 0.6827).abs() < spread).all()
    # Negative control: with z held at its optimum the intervals are too narrow.
    narrow = (error < conditional.diagonal(dim1=-2, dim2=-1).sqrt()).double().mean(0)
    assert (narrow < 0.6827 - spread).any()


def test_the_search_of_a_measurement_ignores_the_rest_of_the_batch(setting):
    prior, _, _, record, truth = setting
    filled = torch.zeros_like(record.x)

    def searched(rows: list[int], seed: int = 0):
        part, n_starts = record.select(torch.tensor(rows)), 2
        problem = JointProblem(prior, part, form=form_for(part))
        theta = torch.cat([truth[rows], truth[rows] + 0.1])
        fit = problem.search(
            theta,
            filled[rows].repeat(n_starts, 1, 1),
            torch.arange(len(rows)).repeat(n_starts),
            candidates=8,
            rounds=2,
            generator=torch.Generator().manual_seed(seed),
        )
        return fit.z.view(n_starts, len(rows), K)

    batch = searched([0, 1, 2, 3])
    for row in range(4):
        torch.testing.assert_close(searched([row])[:, 0], batch[:, row])
    torch.testing.assert_close(searched([3, 2, 1, 0]).flip(1), batch)
    # Negative controls: other draws, and the two starts have draws of their own.
    assert (searched([0, 1, 2, 3], seed=1) - batch).abs().amax() > 1e-2
    assert (batch[0] - batch[1]).abs().amax() > 1e-2


def fits_of(energy, frequency):
    """Fits from S starts of n measurements, start by start, of (S, n) values."""
    energy, frequency = (
        torch.tensor(v, dtype=torch.float64) for v in (energy, frequency)
    )
    theta = torch.zeros((energy.numel(), 4), dtype=torch.float64)
    theta[:, 3] = frequency.flatten()
    z = torch.zeros((energy.numel(), 1, 2))
    return JointFit(theta, z, z, energy.flatten(), z[:, 0, 0].bool())


def test_starts_that_cannot_win_are_not_followed():
    energy = [[5.0, 0.0, 1.0], [0.0, 20.0, 1.0], [6.0, 30.0, 9.0], [1.0, 3.0, math.nan]]
    places = [[1.0, 1.0, 2.0], [2.0, 2.0, 2.0], [3.0, 3.0, 4.0], [4.0, 1.05, 5.0]]
    fits = fits_of(energy, places)
    alike = torch.full((3, 1), 0.1, dtype=torch.float64)
    kept = search._worth_following(fits, 3, alike)
    pairs = {(int(row) // 3, int(row) % 3) for row in kept}
    # The first keeps three of four; of the second the rest trails, or is where the
    # best is; of the third one is the best's double and one is lost.
    assert pairs == {(1, 0), (3, 0), (0, 0), (0, 1), (0, 2), (2, 2)}
    which = kept % 3
    best, second = search._ranked(fits.energy[kept], which, 3)
    assert kept[best].tolist() == [3, 1, 2]
    assert kept[second].tolist() == [9, 1, 8]
