"""What each part of the default prior's separation earns, on the prior's own noise."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import sepprior
from sepprior.benchmark.ablations import ABLATIONS
from sepprior.benchmark.methods import Unavailable
from sepprior.inference import joint
from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.pipeline import analyse
from sepprior.inference.record import lay_out
from sepprior.inference.rivals import WEAK, rivals
from sepprior.inference.search import _spread_starts
from sepprior.priors import GaussianPrior, conditional_energy, reduced
from sepprior.signals import Geometry, Sinusoids, evaluate

BUNDLED = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"
BAND = (1.0, 6.0)
N_TRIALS = 60


@pytest.fixture(scope="module")
def prior():
    return sepprior.load_prior(BUNDLED)


def own_noise(prior, n, seed, share=1.0):
    """Sinusoids in noise of the prior's own: record, form, theta and z that made it."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        z = torch.randn((n, prior.n_latent), generator=rng, dtype=prior.dtype)
        z = prior.from_normal(z)
        white = prior.sample_white(z, generator=rng)
    noise = prior.whitener.inverse(white)
    geometry = Geometry(prior.window, prior.sample_rate)
    form = Sinusoids(1, geometry, low=BAND[0], high=BAND[1])
    frequency = 2.0 + 3.0 * torch.rand((n, 1), generator=rng, dtype=torch.float64)
    turn = 2 * np.pi * torch.rand((n, 1), generator=rng, dtype=torch.float64)
    size = share * float(prior.autocovariance[0]) ** 0.5
    theta = torch.cat(
        [0.0 * turn, size * torch.sin(turn), size * torch.cos(turn), frequency], 1
    )
    t = (torch.arange(prior.window).double() / prior.sample_rate) - geometry.middle
    record = lay_out(
        evaluate(t, theta) + noise + prior.level,
        window=prior.window,
        level=prior.level,
        sample_rate=prior.sample_rate,
    )
    return record, form, theta, z


def spread(fit, theta):
    """Root mean square error of the parameters, (P,)."""
    return (fit - theta).square().mean(0).sqrt()


@pytest.mark.statistical
def test_the_search_is_as_good_as_a_start_at_the_truth(prior, monkeypatch):
    """Parameters and latent known at the start: what the search leaves on the table.

    60 trials. Errors of both starts are those of the same noise, so that their ratio is
    certain to a few per cent. A minimisation that stopped early would stay near the
    truth: that of the start there goes on for longer.
    """
    record, form, theta, z = own_noise(prior, N_TRIALS, seed=0)
    rng = torch.Generator().manual_seed(0)
    found = analyse(prior, record, form=form, generator=rng, band=BAND)
    problem = JointProblem(prior, record, form=form)
    everyone = torch.arange(N_TRIALS)
    start = JointFit(
        theta,
        z[:, None],
        torch.zeros_like(record.x),
        torch.zeros(N_TRIALS, dtype=torch.float64),
        torch.zeros(N_TRIALS, dtype=torch.bool),
    )
    monkeypatch.setattr(joint, "DECREASE_TOLERANCE", (1e-2, 1e-13))
    best = problem.minimise(start, everyone, max_evaluations=200)
    lost = found.optimum.energy - best.energy
    ratio = spread(found.joint.theta, theta) / spread(best.theta, theta)
    gls = spread(found.gls.theta, theta) / spread(best.theta, theta)
    shares = [round(float(lost.quantile(q)), 2) for q in (0.5, 0.9)]
    print(f"nats lost {shares}; error over that of the truth: {ratio.numpy().round(3)}")
    assert lost.median() < 1.0
    assert ratio.max() < 1.1
    assert gls[1:].min() > 1.1  # the noise has something to be gained from


@pytest.mark.parametrize("name", ["flat", "one-start", "no-encoder", "untrained"])
def test_a_prior_without_a_part_separates(prior, name):
    record, _, theta, _ = own_noise(prior, 4, seed=1)
    x = (record.x[:, 0] + prior.level).numpy()
    ablation = ABLATIONS[name]
    result = sepprior.separate(
        x, ablation.of(prior), fmin=BAND[0], fmax=BAND[1], starts=ablation.starts
    )
    f = result.parameters["frequency"].value
    assert np.abs(f - theta[:, 3].numpy()).max() < 0.5 / record.duration
    whole = sepprior.separate(x, prior, fmin=BAND[0], fmax=BAND[1])
    lead, full = (r.diagnostics["log_evidence_over_gls"] for r in (result, whole))
    if name == "untrained":
        assert lead.max() < 0.5 * full.min()
    else:
        assert (result.diagnostics["method"] == "specgan").all()


def test_what_is_taken_away_is_gone_and_the_prior_stays_whole(prior):
    z = prior.from_normal(torch.randn((3, prior.n_latent)))
    assert (reduced.flat(prior).latent_energy(z) == 0).all()
    assert (prior.latent_energy(z) != 0).all()
    assert reduced.without_encoder(prior).encoder is None
    assert prior.encoder is not None
    fresh = reduced.untrained(prior)
    assert not torch.equal(fresh.decode(z).mean, prior.decode(z).mean)
    with pytest.raises(Unavailable, match="gaussian prior has no such part"):
        ABLATIONS["flat"].of(
            GaussianPrior(prior.autocovariance, level=0.0, sample_rate=1.0)
        )


def test_starts_are_spread_where_least_squares_is_far_off(prior):
    """From a latent that fits badly, and least-squares errors as large as stated."""
    n = 8
    record, form, theta, z = own_noise(prior, n, seed=3)
    problem, everyone = JointProblem(prior, record, form=form), torch.arange(n)
    zero = torch.zeros(n, dtype=torch.float64)
    off = torch.tensor([0.1, 0.4, -0.4, 0.1], dtype=torch.float64)
    bad = JointFit(
        theta + off,
        torch.zeros_like(z)[:, None],
        torch.zeros_like(record.x),
        zero,
        zero.bool(),
    )
    energy = problem.energy(bad.theta, bad.missing, bad.z, everyone)
    bad = dataclasses.replace(bad, energy=energy.detach())

    def tried(scale):
        covariance = torch.diag(scale * off.square()).expand(n, 4, 4)
        gls = dataclasses.replace(
            analyse(
                prior, record, form=form, generator=rng, band=BAND, joint=False
            ).gls,
            theta=bad.theta,
            covariance=covariance.contiguous(),
        )
        draws = rng.get_state()
        rows, found = _spread_starts(problem, bad, gls, rng)
        assert torch.equal(draws, rng.get_state())
        return rows, problem.minimise(found, rows) if len(rows) else found

    rng = torch.Generator().manual_seed(0)
    assert not len(tried(1e-6)[0])
    rows, found = tried(4.0)
    assert torch.equal(rows, everyone)
    assert (found.energy < bad.energy - 10.0).all()
    assert (found.theta - theta).abs().mean() < (bad.theta - theta).abs().mean()


def test_a_weak_sinusoid_is_looked_for_at_all_frequencies_of_the_found_noise(prior):
    """At the latent that made the noise, and a fit that sits somewhere else."""
    n = 20
    share = torch.linspace(0.05, 1.0, n, dtype=torch.float64)[:, None]
    record, form, theta, z = own_noise(prior, n, seed=2, share=share)
    problem = JointProblem(prior, record, form=form)
    gains = signal_gain_at(problem, theta, z)
    weak = (gains > 10.0) & (gains < WEAK)
    strong = gains > 3 * WEAK
    assert weak.sum() > 0 and strong.sum() > 0
    wrong = theta.clone()
    wrong[:, 3] = torch.where(theta[:, 3] > 3.5, theta[:, 3] - 1.5, theta[:, 3] + 1.5)
    zero = torch.zeros(n, dtype=torch.float64)
    alike = torch.full((n, 1), 0.25, dtype=torch.float64)

    def found(at):
        fit = JointFit(at, z[:, None], torch.zeros_like(record.x), zero, zero.bool())
        return rivals(problem, fit, alike)

    rows, better = found(wrong)
    assert set(weak.nonzero().flatten().tolist()) <= set(rows.tolist())
    # Within the main lobe.
    near = (better[:, 3] - theta[rows, 3]).abs() < 0.75 / record.duration
    assert near[weak[rows]].all()
    # Where the fit is right there is nothing better far away, and of strong signals
    # nothing is asked.
    rows, better = found(theta)
    near = (better[:, 3] - theta[rows, 3]).abs() < 0.75 / record.duration
    assert near[weak[rows]].all()
    assert not strong[rows].any()


def signal_gain_at(problem, theta, z):
    """Gain of the sinusoids theta over a bias, with known latents, (B,)."""
    everyone = torch.arange(len(theta))
    zero = torch.zeros(len(theta), *problem.record.x.shape[1:], dtype=torch.float64)
    silent = theta.clone()
    silent[:, 1:3] = 0.0
    decoded = problem.decode(z[:, None])
    energies = []
    for start in (theta, silent):
        fixed = problem.noise_features(start, zero, everyone)
        energies.append(conditional_energy(fixed, decoded).double().sum(-1))
    return energies[1] - energies[0]
