import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import nn

from sepprior.config import SpecGANConfig
from sepprior.data import as_recording
from sepprior.nets import Encoder, Flow, Generator, PlaneShape
from sepprior.priors import (
    GaussianPrior,
    LatentSpace,
    PlainPrior,
    PlaneStatistics,
    Prior,
    SpecGANPrior,
    WaveformPrior,
    conditional_energy,
    joint_energy,
)
from sepprior.priors.marginal import (
    FEW_LATENTS,
    decode_tangents,
    latent_information,
)
from sepprior.priors.planes import crop_plane, plane_channels
from sepprior.training.noise_model import NoiseModel
from sepprior.transforms import TightSTFT, Whitener, frame_length, toeplitz

N = 64
LATENT = 4
LEVEL = 0.5
SAMPLE_RATE = 100.0
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
EULER = 0.5772156649


def ar1(n: int = N, *, pole: float = 0.6, variance: float = 2.0) -> torch.Tensor:
    return variance * pole ** torch.arange(n, dtype=torch.float64)


def specgan(
    *,
    window: int = N,
    channels: str = "complex",
    scale: float = 1.0,
    bias: tuple[float, ...] = (),
    encoder: bool = False,
    uniform: bool = False,
    flow: bool = False,
    loudest: float = math.inf,
    row: int = 0,
    labels: tuple[str, ...] = (),
) -> SpecGANPrior:
    """An untrained prior; `scale` multiplies the last weights, `bias` sets its bias."""
    latent = row or LATENT
    frame = frame_length(window)
    stft = TightSTFT(window, frame)
    single = channels == "magnitude"
    plane = PlaneShape(stft.n_bins - 1, stft.n_frames - int(single))
    count = 1 if single else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        generator = Generator(
            plane,
            latent=latent + len(labels),
            width=4,
            channels=count,
            bounded=single,
            flow=bent_flow() if flow else None,
            row=row,
        )
        coder = Encoder(plane, latent=latent, width=4, channels=count)
    last = generator.layers[-1]
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.copy_(torch.tensor(bias or (0.0,) * count))
    r = ar1(window)
    whitening = r
    if single:
        whitening = torch.zeros_like(r)
        whitening[0] = r[0]
    flat = torch.ones(plane.bins, 1)
    return SpecGANPrior(
        generator,
        coder if encoder else None,
        statistics=PlaneStatistics(
            flat * math.sqrt(0.5), -0.5 * math.log(2.0) * flat, 0.6 * flat, loudest
        ),
        whitening=whitening,
        autocovariance=r,
        level=LEVEL,
        sample_rate=SAMPLE_RATE,
        frame=frame,
        space=LatentSpace(
            latent, uniform, labels, tuple(1.0 / len(labels) for _ in labels)
        ),
    )


def bent_flow() -> Flow:
    """A flow that is far from its start, where it only changes the order."""
    flow = Flow(LATENT, 3)
    for layer in flow.layers:
        nn.init.normal_(layer.net[-1].weight, std=0.3)
        nn.init.normal_(layer.net[-1].bias, std=0.3)
    return flow


def latents(n: int, *, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((n, LATENT), generator=rng)


def windows(n: int, size: int = N, *, seed: int = 0) -> torch.Tensor:
    """Draws of the AR(1) process of `ar1`, without level."""
    rng = torch.Generator().manual_seed(seed)
    white = torch.randn((n, size), generator=rng, dtype=torch.float64)
    return Whitener(ar1(size)).inverse(white)


def analysis_matrix(window: int, frame: int) -> np.ndarray:
    """The frame as a real matrix (C, N), written out from its definition.

    Row (f, t, part): ``sqrt(k_f / L) w_j cos`` or ``sin`` of ``2 pi f j / L``, for the
    frame that starts at sample ``(t - 1) L / 2``.
    """
    hop, bins = frame // 2, frame // 2 + 1
    n_frames = -(-window // hop) + 1
    matrix = np.zeros((bins, n_frames, 2, window))
    j = np.arange(frame)
    taper = np.sin(np.pi * (j + 0.5) / frame)
    for f in range(bins):
        k = 1.0 if f in (0, frame // 2) else 2.0
        angle = 2 * np.pi * f * j / frame
        rows = math.sqrt(k / frame) * taper * np.stack([np.cos(angle), -np.sin(angle)])
        for t in range(n_frames):
            sample = (t - 1) * hop + j
            inside = (sample >= 0) & (sample < window)
            matrix[f, t][:, sample[inside]] = rows[:, inside]
    return matrix.reshape(-1, window)


def dense_precision(prior: SpecGANPrior, z: torch.Tensor) -> np.ndarray:
    """``W^T S D^-1 S^T W`` from the decoded scale by dense algebra, float64."""
    with torch.no_grad():
        _, log_d = prior.plane_parts(z[None])
    d = np.exp(log_d[0].double().numpy())
    white = linalg.inv(linalg.cholesky(toeplitz(prior.whitening).numpy(), lower=True))
    rows = analysis_matrix(prior.window, prior.stft.length) @ white
    return rows.T @ (rows / np.repeat(d.reshape(-1, 1), 2, 0))


# -- complex mode ------------------------------------------------------------------


@pytest.mark.parametrize("window", [64, 101])
def test_without_structure_the_energy_is_that_of_stationary_gaussian_noise(window):
    prior = specgan(window=window, scale=0.0)
    x = windows(20, window)
    decoded = prior.decode(latents(20))
    energy = conditional_energy(prior.features(x), decoded)
    exact = -stats.multivariate_normal(cov=toeplitz(ar1(window)).numpy()).logpdf(x)
    np.testing.assert_allclose(energy + window * HALF_LOG_2PI, exact, rtol=2e-6)
    assert not decoded.mean.any()


def test_without_structure_samples_have_the_autocovariance():
    prior = specgan(scale=0.0)
    x = prior.sample(4000, generator=torch.Generator().manual_seed(0)) - LEVEL
    assert x.dtype == torch.float64
    # W x is white: its covariance is the identity within 5 standard errors (2080
    # different entries: a false alarm in about 1e-3).
    white = prior.whitener.forward(x)
    covariance = white.T @ white / len(x)
    deviation = (covariance - torch.eye(N)) * math.sqrt(len(x))
    deviation[range(N), range(N)] /= math.sqrt(2.0)
    assert deviation.abs().max() < 5.0
    # Negative control: against noise of 10 % more power the same test fails.
    control = (1.1 * covariance - torch.eye(N)).diagonal() * math.sqrt(len(x) / 2)
    assert control.abs().max() > 5.0


@pytest.mark.parametrize("window", [64, 101])
def test_fast_quadratic_form_is_that_of_the_precision_matrix(window):
    prior = specgan(window=window, scale=100.0)
    z = latents(3)
    x = windows(3, window)
    decoded = prior.decode(z)
    assert float(decoded.precision.log().std()) > 0.5
    energy = conditional_energy(prior.features(x), decoded) - decoded.half_log_det
    for i in range(3):
        residual = (x[i] - prior.coherent(z[i])).numpy()
        exact = dense_precision(prior, z[i])
        np.testing.assert_allclose(
            prior.precision_matrix(z[i]).numpy(),
            exact,
            atol=1e-6 * np.abs(exact).max(),
        )
        quadratic = residual @ exact @ residual
        assert float(energy[i]) == pytest.approx(0.5 * quadratic, rel=1e-5)


@pytest.mark.parametrize("window", [64, 101])
@pytest.mark.parametrize("scale", [20.0, 60.0, 150.0])
def test_conditional_density_is_subnormalised(window, scale):
    prior = specgan(window=window, scale=scale)
    z = latents(4)
    half = prior.decode(z).half_log_det
    for i in range(4):
        exact = -0.5 * np.linalg.slogdet(dense_precision(prior, z[i]))[1]
        # half_log_det >= log det Sigma / 2, so that energy >= -log p.
        assert float(half[i]) > exact


@pytest.mark.parametrize("window", [64, 101])
def test_log_determinant_is_exact_for_a_constant_scale(window):
    prior = specgan(window=window, scale=0.0, bias=(0.3, -0.2, 1.0))
    log_d = 8 * math.tanh(1 / 8)
    z = latents(1)[0]
    half = prior.decode(z).half_log_det
    exact = -0.5 * np.linalg.slogdet(dense_precision(prior, z))[1]
    assert float(half) == pytest.approx(exact, abs=1e-4)
    expected = 0.5 * window * log_d + Whitener(ar1(window)).half_log_det
    assert float(half) == pytest.approx(expected, abs=1e-4)


def test_no_bin_is_louder_than_the_loudest_of_the_recording():
    """Precisions add: ``1/D = 1/D' + 1/D_max``; without a limit D is D'."""
    z = latents(3)
    free = specgan(scale=200.0).decode(z).precision
    assert float(free.min()) < math.exp(-2.0) / 2
    limited = specgan(scale=200.0, loudest=2.0).decode(z).precision
    torch.testing.assert_close(limited, free + math.exp(-2.0))


def test_samples_have_the_decoded_mean_and_covariance():
    prior = specgan(scale=100.0)
    z = latents(1)
    rng = torch.Generator().manual_seed(0)
    n = 10000
    white = prior.sample_white(z.expand(n, -1), generator=rng).double()
    with torch.no_grad():
        mean, log_d = prior.plane_parts(z)
    assert mean is not None
    centre = prior.stft.synthesise(mean)[0].double()
    matrix = analysis_matrix(N, prior.stft.length)
    d = np.repeat(log_d.double().exp().numpy().reshape(-1, 1), 2, 0)
    covariance = torch.from_numpy(matrix.T @ (d * matrix))
    sd = covariance.diagonal().sqrt()
    z_mean = (white.mean(0) - centre) / sd * math.sqrt(n)
    assert z_mean.abs().max() < 5.0
    error = torch.cov(white.T) - covariance
    scatter = (covariance.square() + sd[:, None].square() * sd.square()).sqrt()
    assert (error / scatter * math.sqrt(n)).abs().max() < 5.0
    waveform = prior.whitener.inverse(centre)
    torch.testing.assert_close(prior.coherent(z)[0], waveform, rtol=1e-5, atol=1e-5)


def test_standardised_residual_of_a_draw_is_white():
    prior = specgan(scale=0.0, bias=(0.0, 0.0, 1.5))
    rng = torch.Generator().manual_seed(0)
    x = prior.sample(2000, generator=rng) - LEVEL
    white = prior.standardise(prior.features(x), prior.decode(latents(2000)))
    covariance = (white.T @ white / 2000).double()
    deviation = (covariance - torch.eye(N)) * math.sqrt(2000 / 2)
    assert deviation.abs().max() < 5.0


def test_importance_weighted_bound_is_the_average_over_the_latent():
    """With proposals from the prior itself it is a plain Monte Carlo average."""
    prior = specgan(scale=0.2, encoder=True)
    assert prior.encoder is not None
    score = prior.encoder.body.score
    with torch.no_grad():
        score.weight.zero_()
        score.bias.zero_()
    x = windows(5) + LEVEL
    bound = prior.heldout_nll(x, draws=7)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn((7, 5, LATENT), generator=rng)
    features = prior.features(x - LEVEL).expand(7, -1, -1)
    energy = conditional_energy(features, prior.decode(z)).double()
    expected = -torch.logsumexp(-energy, 0) + math.log(7) + N * HALF_LOG_2PI
    torch.testing.assert_close(bound, expected, rtol=1e-6, atol=1e-4)
    # The proposals' density enters: a shifted proposal gives the same expectation.
    with torch.no_grad():
        score.bias[:LATENT] = 0.3
        score.bias[LATENT:] = -0.1
    shifted = prior.heldout_nll(x, draws=600)
    with torch.no_grad():
        score.bias.zero_()
    centred = prior.heldout_nll(x, draws=600)
    torch.testing.assert_close(shifted, centred, rtol=0, atol=0.15)


def test_the_bound_counts_what_a_flow_does_to_volumes(monkeypatch):
    """Proposals in the bent latents give the average over the normal ones."""
    prior = specgan(scale=0.2, encoder=True, flow=True)
    x = windows(5) + LEVEL
    features = prior.features(x - LEVEL)
    z = prior.from_normal(latents(4000))
    energy = conditional_energy(features[:, None], prior.decode(z)).double()
    average = -torch.logsumexp(-energy, 1) + math.log(4000) + N * HALF_LOG_2PI
    assert prior.encoder is not None
    score = prior.encoder.body.score
    with torch.no_grad():
        score.weight.zero_()
        score.bias[:LATENT] = 0.3
        score.bias[LATENT:] = 0.2
    bound = prior.heldout_nll(x, draws=4000)
    torch.testing.assert_close(bound, average, rtol=0, atol=0.1)
    # Negative control: the volume left out.
    inverse = prior.flow.inverse
    monkeypatch.setattr(prior.flow, "inverse", lambda b: (inverse(b)[0], 0 * b[..., 0]))
    assert (prior.heldout_nll(x, draws=4000) - average).abs().min() > 0.2


def test_laplace_bound_without_an_encoder_is_close_to_importance_sampling():
    prior = specgan(scale=0.06)
    sampled = specgan(scale=0.06, encoder=True)
    assert sampled.encoder is not None
    with torch.no_grad():
        sampled.encoder.body.score.weight.zero_()
        sampled.encoder.body.score.bias.zero_()
    x = windows(5) + LEVEL
    reference = sampled.heldout_nll(x, draws=600)
    torch.testing.assert_close(
        prior.heldout_nll(x).double(), reference, rtol=0, atol=0.2
    )


def test_uniform_latent_fills_the_cube_evenly():
    prior = specgan(uniform=True)
    z = torch.linspace(-4, 4, 100).view(-1, LATENT)
    mapped = prior.space.code(z)
    np.testing.assert_allclose(mapped, 2 * stats.norm.cdf(z.numpy()) - 1, atol=1e-6)
    assert float(mapped.abs().max()) < 1.0
    flat = prior.space.code(latents(5000)).flatten().numpy()
    assert stats.kstest(flat, "uniform", args=(-1, 2)).pvalue > 1e-3
    decoded, plain = (
        prior.decode(latents(2)),
        specgan().decode(torch.erf(latents(2) / math.sqrt(2))),
    )
    torch.testing.assert_close(decoded.mean, plain.mean)


def test_proposals_begin_at_the_centre():
    x = windows(3)
    rng = torch.Generator().manual_seed(0)
    blind = specgan()
    draws = torch.randn((5, 3, LATENT), generator=rng)
    z = blind.propose(blind.features(x), draws=draws)
    assert z.shape == (5, 3, LATENT)
    assert not z[0].any() and z[1:].all()
    assert blind.n_candidates > 4
    seeing = specgan(encoder=True)
    features = seeing.features(x)
    z = seeing.propose(features, draws=draws)
    mean, log_sd = seeing.posterior(features)
    torch.testing.assert_close(z[0], mean)
    torch.testing.assert_close((z[1:] - mean) / log_sd.exp(), draws[1:])
    torch.testing.assert_close(seeing.latent_scale(features), log_sd.exp())
    with pytest.raises(TypeError, match="no encoder"):
        blind.posterior(features)


def test_latents_bent_by_a_flow_have_the_density_that_their_energy_says():
    prior = specgan(encoder=True, flow=True)
    assert prior.flow is not None
    z = prior.from_normal(latents(20_000))
    # Under p the mean of q / p is 1 for any density q; here a narrow normal.
    narrow = torch.distributions.Normal(z.mean(0), 0.4 * z.std(0))
    constant = 0.5 * LATENT * math.log(2 * math.pi)
    ratio = (prior.latent_energy(z) + constant + narrow.log_prob(z).sum(-1)).exp()
    error = 4.0 * float(ratio.std()) / math.sqrt(len(z))
    assert abs(float(ratio.mean()) - 1.0) < error < 0.2
    # Negative control: the energy of a latent that is not bent.
    energy = 0.5 * z.square().sum(-1)
    wrong = (energy + constant + narrow.log_prob(z).sum(-1)).exp()
    assert abs(float(wrong.mean()) - 1.0) > 2.0 * error
    # Samples are painted from them.
    rng = torch.Generator().manual_seed(1)
    sampled = prior.sample(3, generator=rng)
    rng = torch.Generator().manual_seed(1)
    draws = torch.randn((3, LATENT), generator=rng)
    white = prior.sample_white(prior.from_normal(draws), generator=rng)
    torch.testing.assert_close(sampled, prior.whitener.inverse(white) + LEVEL)


def test_the_curvature_through_a_flow_is_that_of_its_squares():
    prior = specgan(encoder=True, flow=True)
    assert prior.flow is not None
    z = latents(3)
    for one, found in zip(z, prior.latent_curvature(z), strict=True):
        slopes = torch.autograd.functional.jacobian(
            lambda v: prior.flow.inverse(v)[0], one
        )
        torch.testing.assert_close(found, slopes.T @ slopes)
    plain = specgan(encoder=True)
    assert torch.equal(plain.latent_curvature(z)[0], torch.eye(LATENT))


# -- magnitude mode ----------------------------------------------------------------


def test_magnitude_of_white_noise_decodes_to_unit_variance():
    """``E|X|^2 = 1/2`` in a tight half-overlapping frame: D = 2 |X|^2 = 1."""
    prior = specgan(channels="magnitude", scale=0.0)
    z = latents(2)
    mean, log_d = prior.plane_parts(z)
    assert mean is None
    assert log_d.shape == (2, prior.stft.n_bins, prior.stft.n_frames)
    torch.testing.assert_close(log_d, torch.zeros_like(log_d), rtol=0, atol=1e-6)
    x = math.sqrt(2.0) * torch.randn(2, N, generator=torch.Generator().manual_seed(0))
    energy = conditional_energy(prior.features(x), prior.decode(z))
    exact = 0.5 * x.square().sum(-1) / 2.0 + 0.5 * N * math.log(2.0)
    torch.testing.assert_close(energy, exact, rtol=1e-5, atol=1e-4)
    assert not prior.coherent(z).any()
    assert prior.coherent(z).shape == (2, N)
    rng = torch.Generator().manual_seed(0)
    drawn = prior.sample(4000, generator=rng)
    assert float(drawn.var()) == pytest.approx(2.0, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(LEVEL, abs=0.02)


def test_magnitude_is_decoded_on_the_scale_it_was_normalised_on():
    """A generator at 0 says the mean log-magnitude, in speckle exp(-gamma) low."""
    x = np.random.default_rng(0).normal(LEVEL, 3.0, 1024 * 200)
    config = SpecGANConfig(window=1024, channels="magnitude")
    r = torch.zeros(1024, dtype=torch.float64)
    r[0] = 9.0
    model = NoiseModel(
        as_recording(x, sample_rate=1.0),
        config,
        torch.device("cpu"),
        LEVEL,
        r,
        r,
        torch.Generator().manual_seed(0),
    )
    log_d = 2 * model.statistics.log_mean[:, 0] + math.log(2.0)
    # The last frame is half outside: one in 32 frames with half the power.
    expected = -EULER + math.log(0.5) / 32
    np.testing.assert_allclose(log_d[1:], expected, atol=0.08)
    # Zero frequency is real: a chi-square of one degree of freedom, not two.
    assert float(log_d[0]) == pytest.approx(expected - math.log(2.0), abs=0.1)
    # pi^2/6 is the variance of the log of an exponential variable.
    sd = 2 * model.statistics.log_sd[1:, 0]
    np.testing.assert_allclose(sd, math.pi / math.sqrt(6), rtol=0.05)
    np.testing.assert_allclose(model.statistics.rms[:, 0], math.sqrt(0.5), rtol=0.05)


def test_magnitude_planes_are_the_published_frames():
    stft = TightSTFT(16384, frame_length(16384))
    c = stft.analyse(torch.randn(1, 16384, generator=torch.Generator().manual_seed(0)))
    plane = crop_plane(c, complex_mode=False)
    assert plane.shape == (1, 128, 128)
    flat = torch.ones(128, 1)
    statistics = PlaneStatistics(flat, flat * 0.0, flat)
    channels = plane_channels(plane, statistics, complex_mode=False)
    assert channels.shape == (1, 1, 128, 128)
    assert float(channels.abs().max()) <= 1.0
    torch.testing.assert_close(
        channels[:, 0], ((plane.abs() + 1e-6).log() / 3).clamp(-1, 1)
    )
    assert crop_plane(c, complex_mode=True).shape == (1, 128, 129)


def test_magnitude_quadratic_form_and_bound():
    prior = specgan(channels="magnitude", scale=100.0)
    z, x = latents(2), windows(2)
    decoded = prior.decode(z)
    energy = conditional_energy(prior.features(x), decoded)
    for i in range(2):
        precision = dense_precision(prior, z[i])
        exact = 0.5 * x[i].numpy() @ precision @ x[i].numpy()
        quadratic = float(energy[i] - decoded.half_log_det[i])
        assert quadratic == pytest.approx(exact, rel=1e-4)
        assert float(decoded.half_log_det[i]) > -0.5 * np.linalg.slogdet(precision)[1]


# -- a linear generator ------------------------------------------------------------


def linear(dtype: torch.dtype = torch.float64) -> tuple[WaveformPrior, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    matrix = torch.randn((N, 3), generator=rng, dtype=torch.float64)
    prior = WaveformPrior(
        lambda z: z.double() @ matrix.T,
        n_latent=3,
        range_autocovariance=ar1(),
        autocovariance=ar1(variance=4.0),
        sample_rate=SAMPLE_RATE,
        level=LEVEL,
        dtype=dtype,
    )
    return prior, matrix


def test_laplace_marginal_of_a_linear_generator_is_exact():
    prior, matrix = linear()
    covariance = (matrix @ matrix.T + toeplitz(ar1())).numpy()
    rng = torch.Generator().manual_seed(1)
    x = prior.sample(20, generator=rng)
    exact = -stats.multivariate_normal(np.full(N, LEVEL), covariance).logpdf(x)
    nll = prior.heldout_nll(x)
    assert nll.dtype == torch.float64
    np.testing.assert_allclose(nll, exact, rtol=1e-6)
    # Negative control: without the latent's volume it is off by log det H / 2.
    zero = torch.zeros((1, 3), dtype=torch.float64)
    information = latent_information(
        *decode_tangents(prior, zero), prior.latent_curvature(zero), redundancy=1.0
    )
    volume = 0.5 * float(torch.linalg.slogdet(information).logabsdet)
    assert volume > 5.0


def test_the_volume_of_a_steep_generator_is_kept_in_single_precision():
    """Two columns of slope 4000 that differ by a ten-thousandth."""
    _, matrix = linear()
    matrix = 4000 * torch.stack([matrix[:, 0], matrix[:, 0] + 1e-4 * matrix[:, 1]], 1)
    prior = WaveformPrior(
        lambda z: z.double() @ matrix.T,
        n_latent=2,
        range_autocovariance=ar1(),
        autocovariance=ar1(variance=4.0),
        sample_rate=SAMPLE_RATE,
        level=LEVEL,
        dtype=torch.float32,
    )
    x = windows(20) + LEVEL
    covariance = (matrix @ matrix.T + toeplitz(ar1())).numpy()
    exact = -stats.multivariate_normal(np.full(N, LEVEL), covariance).logpdf(x)
    # The minimum itself is that of single precision: in some windows not quite it.
    assert np.median(np.abs(prior.heldout_nll(x).numpy() - exact)) < 0.01
    # Negative control: squared in single precision the slopes leave another volume.
    zero = torch.zeros((1, 2))
    decoded, d_mean, d_log = decode_tangents(prior, zero)
    curvature = prior.latent_curvature(zero)
    single, double = (
        latent_information(decoded, slopes, d_log, curvature, redundancy=1.0)
        for slopes in (d_mean, d_mean.double())
    )
    volumes = [0.5 * torch.linalg.slogdet(m).logabsdet for m in (single, double)]
    assert abs(float(volumes[0] - volumes[1])) > 0.5


def test_tangents_of_a_linear_generator_are_its_columns():
    prior, matrix = linear()
    z = torch.randn((2, 3), generator=torch.Generator().manual_seed(0)).double()
    decoded, d_mean, d_log = decode_tangents(prior, z)
    whitened = linalg.solve_triangular(
        linalg.cholesky(toeplitz(ar1()).numpy(), lower=True), matrix.numpy(), lower=True
    )
    np.testing.assert_allclose(d_mean[0].T, whitened, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d_mean[0], d_mean[1])
    torch.testing.assert_close(
        prior.whitener.inverse(d_mean[0]), matrix.T, rtol=1e-9, atol=1e-9
    )
    assert not d_log.any()
    information = latent_information(
        decoded, d_mean, d_log, prior.latent_curvature(z), redundancy=1.0
    )
    expected = np.eye(3) + matrix.numpy().T @ linalg.solve(
        toeplitz(ar1()).numpy(), matrix.numpy()
    )
    np.testing.assert_allclose(information[0], expected, rtol=1e-9)


def test_tangents_of_few_latents_are_those_of_many():
    """By reverse mode twice, and by forward mode."""
    prior, z = specgan(scale=2.0), latents(FEW_LATENTS + 1)
    _, d_mean, d_log = decode_tangents(prior, z)
    _, mean, log = decode_tangents(prior, z[:FEW_LATENTS])
    assert mean.abs().max() > 1e-2 and log.abs().max() > 1e-2
    torch.testing.assert_close(mean, d_mean[:FEW_LATENTS])
    torch.testing.assert_close(log, d_log[:FEW_LATENTS])


def test_tangents_of_a_network_are_finite_differences():
    prior = specgan(scale=2.0)
    z, step = latents(2), 1e-3
    _, d_mean, d_log = decode_tangents(prior, z)
    for k in range(LATENT):
        shift = torch.zeros(LATENT)
        shift[k] = step
        up, down = prior.decode(z + shift), prior.decode(z - shift)
        slope = (up.mean - down.mean) / (2 * step)
        torch.testing.assert_close(d_mean[:, k], slope, rtol=0.05, atol=5e-3)
        slope = (up.precision.log() - down.precision.log()) / (2 * step)
        torch.testing.assert_close(d_log[:, k], slope, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("uniform", [False, True])
def test_tangents_of_a_row_are_those_of_any_prior(monkeypatch, uniform):
    """With a label that is inferred: its coordinate is not part of the row."""
    prior = specgan(scale=2.0, row=8, labels=("a", "b"), uniform=uniform)
    z = torch.randn((3, 9), generator=torch.Generator().manual_seed(4))
    assert prior.n_latent == 9 and prior.tangential and not specgan().tangential
    _, d_mean, d_log = decode_tangents(prior, z)
    monkeypatch.setattr(type(prior), "tangential", False)
    _, mean, log = decode_tangents(prior, z)
    torch.testing.assert_close(d_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_log, log, rtol=1e-4, atol=1e-5)
    assert d_mean[:, :8].abs().amax((0, 2)).min() > 1e-3


def test_linear_generator_samples_its_covariance():
    prior, matrix = linear()
    x = prior.sample(20000, generator=torch.Generator().manual_seed(2))
    covariance = matrix @ matrix.T + toeplitz(ar1())
    error = torch.cov(x.T) - covariance
    power = covariance.diagonal()
    scatter = (covariance.square() + power[:, None] * power).sqrt() / math.sqrt(20000)
    assert (error / scatter).abs().max() < 5.0


# -- gaussian and plain ------------------------------------------------------------


def test_gaussian_likelihood_is_the_multivariate_normal():
    prior = GaussianPrior(ar1(), level=LEVEL, sample_rate=SAMPLE_RATE)
    x = windows(10) + LEVEL
    normal = stats.multivariate_normal(np.full(N, LEVEL), toeplitz(ar1()).numpy())
    np.testing.assert_allclose(prior.heldout_nll(x), -normal.logpdf(x), rtol=1e-10)
    empty = torch.zeros((10, 0), dtype=torch.float64)
    energy = joint_energy(prior, prior.features(x - LEVEL), empty)
    np.testing.assert_allclose(energy + N * HALF_LOG_2PI, -normal.logpdf(x), rtol=1e-10)


def test_gaussian_samples_have_mean_and_covariance():
    prior = GaussianPrior(ar1(), level=LEVEL, sample_rate=SAMPLE_RATE)
    n = 20000
    x = prior.sample(n, generator=torch.Generator().manual_seed(0))
    covariance = toeplitz(ar1())
    mean_error = (x.mean(0) - LEVEL) / math.sqrt(2.0 / n)
    assert mean_error.abs().max() < 5.0
    scatter = (covariance.square() + 4.0).sqrt() / math.sqrt(n)
    assert ((torch.cov(x.T) - covariance) / scatter).abs().max() < 5.0


def test_the_generator_decides_the_samples():
    for prior in (specgan(), GaussianPrior(ar1(), level=0.0, sample_rate=1.0)):
        draws = [
            prior.sample(2, generator=torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        ]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


def test_plain_prior_is_the_squared_error_to_the_mean_waveform():
    inner, matrix = linear()
    prior = PlainPrior(inner)
    x = windows(3)
    z = torch.randn((3, 3), generator=torch.Generator().manual_seed(0)).double()
    energy = joint_energy(prior, prior.features(x), z)
    expected = (x - z @ matrix.T).square().sum(-1) / (2 * 4.0)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(inner.heldout_nll(x), prior.heldout_nll(x))


@pytest.mark.parametrize(
    "kind", ["gaussian", "specgan", "flow", "magnitude", "linear", "plain"]
)
def test_every_prior_keeps_the_contract(kind):
    prior: Prior = {
        "gaussian": lambda: GaussianPrior(ar1(), level=LEVEL, sample_rate=SAMPLE_RATE),
        "specgan": lambda: specgan(encoder=True),
        "flow": lambda: specgan(encoder=True, flow=True),
        "magnitude": lambda: specgan(channels="magnitude"),
        "linear": lambda: linear()[0],
        "plain": lambda: PlainPrior(linear()[0]),
    }[kind]()
    assert isinstance(prior, Prior)
    x = windows(6).view(2, 3, N)
    features = prior.features(x)
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn((4, 2, 3, prior.n_latent), generator=rng, dtype=prior.dtype)
    z = prior.propose(features, draws=draws)
    assert z.shape == (4, 2, 3, prior.n_latent)
    assert prior.latent_scale(features).shape == (2, 3, prior.n_latent)
    decoded = prior.decode(z[1])
    assert decoded.mean.shape == features.shape
    assert (decoded.precision > 0).all()
    assert decoded.half_log_det.shape == (2, 3)
    assert joint_energy(prior, features, z[1]).shape == (2, 3)
    assert prior.coherent(z[1]).shape == (2, 3, N)
    assert prior.standardise(features, decoded).shape == (2, 3, N)
    assert prior.sample(5, generator=rng).shape == (5, N)
    moved = prior.to("cpu")
    torch.testing.assert_close(moved.decode(z[1]).mean, decoded.mean)
    assert (moved.level, moved.sample_rate) == (prior.level, prior.sample_rate)
