"""Networks that make waveforms: sizes, transforms, growth."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sepprior.losses import clip_weights
from sepprior.nets import (
    GANSynthCritic,
    GANSynthGenerator,
    LSTMGenerator,
    RangeNoise,
    WaveGANCritic,
    WaveGANGenerator,
    weights_in_use,
)
from sepprior.nets.gansynth import (
    GrowthPlan,
    ScaledConv,
    ScaledLinear,
    batch_spread,
    pixel_norm,
)
from sepprior.nets.phase_plane import PhasePlane
from sepprior.nets.wavegan import WaveShape, shuffle_phase


def count(module):
    return sum(p.numel() for p in module.parameters())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- WaveGAN --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "strides", "generator", "critic"),
    [
        # dense 100 -> 16 x 1024, then kernels of 25 down to one channel
        (16384, (4, 4, 4, 4, 4), 19_065_345, 17_427_969),
        (32768, (4, 4, 4, 4, 4, 2), 73_149_953, 69_875_201),
        (65536, (4, 4, 4, 4, 4, 4), 73_149_953, 69_875_201),
    ],
)
def test_published_sizes(window, strides, generator, critic):
    shape = WaveShape(window)
    assert (shape.strides, shape.base, shape.padded) == (strides, 16, window)
    with torch.device("meta"):
        made = WaveGANGenerator(window=window, code=100, width=64, peak=1.0)
        judge = WaveGANCritic(window=window, width=64)
        assert (count(made), count(judge)) == (generator, critic)
        assert made(torch.empty(2, 100)).shape == (2, window)
        assert judge(torch.empty(2, 1, window)).shape == (2, 1)
    # By hand, for the smallest: weights and biases of each layer.
    if window == 16384:
        widths = [1024, 512, 256, 128, 64, 1]
        layers = sum(25 * a * b + b for a, b in pairwise(widths))
        assert generator == 100 * 16384 + 16384 + layers


@pytest.mark.parametrize("window", [64, 65, 100, 300, 1000, 4097])
def test_any_other_length(window):
    shape = WaveShape(window)
    assert shape.base <= 16 and shape.padded - window < math.prod(shape.strides)
    made = WaveGANGenerator(window=window, code=5, width=2, peak=4.0)
    x = made(normal(3, 5))
    assert x.shape == (3, window)
    critic = WaveGANCritic(window=window, width=2, outputs=3, phase_shuffle=2)
    shifts = critic.draw_shifts(torch.Generator().manual_seed(0))
    assert critic(x[:, None], shifts).shape == (3, 3)
    assert len(shifts) == len(shape.strides) - 1


def test_the_length_rule_at_300():
    assert WaveShape(300).strides == (4, 4, 2)
    assert (WaveShape(300).base, WaveShape(300).padded) == (10, 320)


def test_output_is_bounded_and_has_slope_one():
    made = WaveGANGenerator(window=64, code=4, width=2, peak=3.0)
    big, small = made(1e4 * normal(4, 4)), made(1e-3 * normal(4, 4))
    assert float(big.detach().abs().max()) == pytest.approx(3.0, abs=1e-3)
    wide = WaveGANGenerator(window=64, code=4, width=2, peak=300.0)
    wide.load_state_dict(made.state_dict())
    torch.testing.assert_close(wide(1e-3 * normal(4, 4)), small, rtol=1e-3, atol=1e-7)


def test_the_post_filter_begins_as_a_passage():
    plain = WaveGANGenerator(window=100, code=4, width=2, peak=3.0)
    for taps in (1, 8, 33):
        made = WaveGANGenerator(window=100, code=4, width=2, peak=3.0, post_filter=taps)
        made.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(made(normal(2, 4)), plain(normal(2, 4)))
        assert count(made) == count(plain) + taps


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_phase_shuffle_is_a_reflected_shift(shift):
    h = normal(2, 3, 10)
    padded = np.pad(h.numpy(), ((0, 0), (0, 0), (2, 2)), mode="reflect")
    expected = padded[..., 2 - shift : 12 - shift]
    np.testing.assert_array_equal(shuffle_phase(h, shift), expected)


def test_shifts_cover_their_range_evenly():
    critic = WaveGANCritic(window=300, width=1, phase_shuffle=2)
    rng = torch.Generator().manual_seed(0)
    drawn = np.array([critic.draw_shifts(rng) for _ in range(500)]).ravel()
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert counts.min() > 150  # of 200 expected, 4 standard deviations


# --- LSTM -----------------------------------------------------------------------------


def test_the_recurrence_is_that_of_torch():
    made = LSTMGenerator(window=20, code=3, width=5, layers=2)
    reference = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True)
    with torch.no_grad():
        for i, cell in enumerate(made.cells):
            getattr(reference, f"weight_ih_l{i}").copy_(cell.input.weight)
            getattr(reference, f"bias_ih_l{i}").copy_(cell.input.bias)
            getattr(reference, f"weight_hh_l{i}").copy_(cell.recurrent.weight)
            getattr(reference, f"bias_hh_l{i}").zero_()
        code = normal(4, 3)
        start = torch.tanh(made.start(code)).view(4, 2, 2, 5)
        h, c = start[:, :, 0].transpose(0, 1), start[:, :, 1].transpose(0, 1)
        states, _ = reference(
            code[:, None].expand(-1, 20, -1), (h.contiguous(), c.contiguous())
        )
        expected = made.output(states).squeeze(-1)
        torch.testing.assert_close(made(code), expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_fused_recurrence_of_training_is_the_written_one(layers):
    made = LSTMGenerator(window=20, code=3, width=5, layers=layers)
    code = normal(4, 3)
    fused, view = made.fake(code)
    written = made(code)
    torch.testing.assert_close(fused, written)
    torch.testing.assert_close(view[:, 0], written)
    a, b = (
        torch.autograd.grad(x.square().sum(), made.parameters())
        for x in (fused, written)
    )
    for now, then in zip(a, b, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-5)


def test_derivatives_run_forward_and_backward():
    made = LSTMGenerator(window=30, code=3, width=8, layers=1)
    z, step = normal(2, 3), normal(2, 3, seed=1)
    _, forward = torch.func.jvp(made, (z,), (step,))
    small = 1e-2 * step
    numeric = (made(z + small) - made(z - small)) / 2e-2
    torch.testing.assert_close(forward, numeric, rtol=1e-2, atol=1e-3)


# --- magnitude and frequency ----------------------------------------------------------


def fitted_plane(x):
    plane = PhasePlane(x.shape[-1])
    logs = plane.log_magnitude(x)
    plane.fit(logs.mean((0, 2))[:, None], logs.std((0, 2))[:, None])
    return plane


def test_phases_are_summed_in_full_under_mixed_precision():
    plane = fitted_plane(normal(8, 4096))
    planes = plane.analyse(normal(2, 4096, seed=1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = plane.synthesise(planes)
    torch.testing.assert_close(mixed, plane.synthesise(planes.float()))
    # Negative control: summed in eight bits they are others.
    phase = torch.cumsum(planes[:, 1], -1).float()
    assert float((phase - torch.cumsum(planes[:, 1].float(), -1)).abs().max()) > 0.1


@pytest.mark.parametrize("window", [64, 100, 300, 1024])
def test_planes_keep_the_waveform(window):
    """Up to what is clipped (beyond 3 sigma) and the Nyquist row."""
    x = torch.nn.functional.avg_pool1d(normal(8, 1, window), 3, 1, 1)[:, 0]
    plane = fitted_plane(x)
    planes = plane.analyse(x)
    assert planes.shape == (8, 2, plane.bins, plane.frames)
    assert float(planes.abs().max()) <= 1.0 + 1e-6
    back = plane.synthesise(planes)
    error = (back - x).square().mean() / x.square().mean()
    assert float(error) < 0.02
    # Negative control: phases that do not belong to it.
    wrong = planes.clone()
    wrong[:, 1] = planes[:, 1].roll(1, 0)
    lost = (plane.synthesise(wrong) - x).square().mean() / x.square().mean()
    assert float(lost) > 0.5


def test_a_tone_has_a_constant_frequency():
    """Its phase advances by f hop turns per frame: half turns are twice that."""
    t = torch.arange(512, dtype=torch.float32)
    for cycles in (0.05, 0.1, 0.22):
        x = torch.sin(2 * math.pi * cycles * t + 0.3)[None]
        plane = fitted_plane(x)
        found = plane.analyse(x)[0, 1, round(cycles * plane.stft.length), 6:-6]
        turns = 2.0 * cycles * plane.stft.hop
        expected = (turns + 1.0) % 2.0 - 1.0
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_the_plan_of_growth():
    plan = GrowthPlan(16, 41)
    assert plan.stages == 3 and plan.base == (4, 11) and plan.padded_frames == 44
    assert plan.widths(8) == [32, 16, 8]
    # Train, fade, train, fade, train: equal parts of the first half.
    shares = {0.0: 0.0, 0.12: 0.0, 0.1875: 0.5, 0.25: 1.0, 0.3: 1.0, 0.4375: 1.5}
    for progress, expected in (shares | {0.5: 2.0, 1.0: 2.0}).items():
        assert plan.grown(progress, 0.5) == pytest.approx(expected, abs=1e-9)
    assert plan.grown(0.0, 0.0) == 2.0
    assert GrowthPlan(4, 9).grown(0.0, 0.5) == 0.0


def test_planes_and_critic_grow_together():
    made = GANSynthGenerator(window=300, code=4, width=2, growth=0.5)
    critic = GANSynthCritic(window=300, width=2, outputs=3, growth=0.5)
    x = normal(4, 300)
    sizes = []
    for progress in (0.0, 0.2, 0.25, 0.45, 1.0):
        made.grow(progress)
        critic.grow(progress)
        waveform, fake = made.fake(normal(4, 4))
        assert waveform.shape == x.shape and fake.shape == made.view(x).shape
        assert critic(fake).shape == (4, 3)
        sizes.append(tuple(fake.shape[-2:]))
    assert sizes == [(4, 11), (8, 22), (8, 22), (16, 44), (16, 44)]


def test_a_stage_fades_in_without_a_jump():
    made = GANSynthGenerator(window=300, code=4, width=2, growth=0.5)
    made.requires_grad_(False)
    code = normal(4, 4)
    made.grown.fill_(1.0)
    before = made(code)
    made.grown.fill_(1.0 + 1e-6)
    torch.testing.assert_close(made(code), before, rtol=0.02, atol=0.02)
    made.grown.fill_(2.0)
    assert float((made(code) - before).abs().max()) > 0.05


def input_gradient(critic, planes):
    x = planes.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    return gradient


def test_clipping_knows_the_scale_of_the_weights():
    """Against the same critic with weights that are not scaled when it runs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = GANSynthCritic(window=64, width=4)
    plain = copy.deepcopy(critic)
    for layer in plain.modules():
        if isinstance(layer, ScaledConv | ScaledLinear):
            layer.weight.data.mul_(layer.scale)
            layer.scale = 1.0
    planes = normal(8, 2, critic.plan.bins, critic.plan.padded_frames)
    torch.testing.assert_close(critic(planes), plain(planes))
    naive = copy.deepcopy(critic)
    clip_weights(weights_in_use(critic), 0.05)
    clip_weights(((p, 1.0) for p in plain.parameters()), 0.05)
    found, expected = (input_gradient(c, planes) for c in (critic, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-12)
    assert float(expected.abs().max()) > 1e-7
    # Negative control: weights of unit variance, clipped before they are scaled down.
    clip_weights(((p, 1.0) for p in naive.parameters()), 0.05)
    lost = input_gradient(naive, planes).norm() / expected.norm()
    assert float(lost) < 1e-2


def test_pixel_norm_and_batch_spread_by_hand():
    h = torch.tensor([[[[3.0]], [[4.0]]]])
    expected = torch.tensor([[[[3.0]], [[4.0]]]]) / math.sqrt(12.5)
    torch.testing.assert_close(pixel_norm(h), expected)
    batch = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    assert batch_spread(batch).shape == (2, 1, 1, 1)
    assert float(batch_spread(batch).mean()) == pytest.approx(1.0)
    assert float(batch_spread(batch[:1].repeat(2, 1, 1, 1)).mean()) < 1e-3


# --- noise beside a generator ---------------------------------------------------------


def pink_with_lines(window=300):
    """Mean periodogram without frequency zero, and the same without its lines."""
    smooth = 1.0 / torch.arange(1, window // 2 + 1)
    power = smooth.clone()
    power[13::14] += 50.0
    return power, smooth


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_range_noise_begins_as_a_share_of_the_continuum(share):
    power, smooth = pink_with_lines()
    noise = RangeNoise(power, window=300, share=share)
    density = noise.density().detach()[2::2]  # bins 1, 2, ... of the window
    assert density.shape == smooth.shape
    ratio = density / (share * smooth)
    # Bins 14, 28, 42 hold lines; where bands are one bin wide none can be ignored.
    assert float(ratio[14:].min()) > 0.6 and float(ratio[14:].max()) < 1.6
    assert float(ratio[:12].sub(1.0).abs().max()) < 0.3


@pytest.mark.statistical
def test_range_noise_has_the_spectrum_that_it_says():
    """8000 windows: 1.1 % per bin."""
    power, _ = pink_with_lines()
    noise = RangeNoise(power, window=300, share=0.5)
    with torch.no_grad():
        noise.shift += normal(len(noise.shift))
        drawn = noise(normal(8000, 600))
    assert drawn.shape == (8000, 300)
    covariance = noise.autocovariance()
    for lag in (0, 1, 7, 150):
        found = (drawn[:, : 300 - lag] * drawn[:, lag:]).mean()
        assert float(found) == pytest.approx(float(covariance[lag]), abs=0.02)
    assert float(covariance[0]) == pytest.approx(float(drawn.var()), rel=0.03)
    drawn = noise(normal(4, 600))
    (slope,) = torch.autograd.grad(drawn.square().sum(), noise.shift)
    assert slope.isfinite().all() and float(slope.min()) > 0.0
