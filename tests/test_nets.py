"""The SpecGAN networks: published sizes, shapes, and what they must not contain."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from sepprior.nets.flow import Flow, RowCoupling
from sepprior.nets.latent_row import RowPainter, RowReader
from sepprior.nets.specgan import KERNEL, Critic, Encoder, Generator, PlaneShape
from sepprior.transforms import TightSTFT, frame_length

WINDOWS = [16, 64, 300, 1024, 16384, 65536]


def plane_of(window):
    stft = TightSTFT(window, frame_length(window))
    return PlaneShape(stft.n_bins - 1, stft.n_frames)


def count(module):
    return sum(p.numel() for p in module.parameters())


def layer_shapes(layers, x):
    shapes = []
    for layer in layers:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    return shapes


# --- published sizes ------------------------------------------------------------------


def test_the_generator_has_the_published_number_of_parameters():
    generator = Generator(PlaneShape(128, 128), latent=100, width=64, channels=1)
    channels = [1024, 512, 256, 128, 64, 1]
    project = (100 + 1) * channels[0] * 4 * 4
    layers = sum((KERNEL**2 * a + 1) * b for a, b in pairwise(channels))
    assert project + layers == 19_065_345
    assert count(generator) == 19_065_345


def test_the_critic_has_the_published_number_of_parameters():
    critic = Critic(PlaneShape(128, 128), width=64, channels=1)
    channels = [1, 64, 128, 256, 512, 1024]
    layers = sum((KERNEL**2 * a + 1) * b for a, b in pairwise(channels))
    assert layers + channels[-1] * 4 * 4 + 1 == 17_427_969
    assert count(critic) == 17_427_969


def test_other_widths_have_other_sizes():
    generator = Generator(PlaneShape(128, 128), latent=100, width=32, channels=1)
    critic = Critic(PlaneShape(128, 128), width=32, channels=1)
    assert count(generator) < 19_065_345 / 3
    assert count(critic) < 17_427_969 / 3


# --- shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_gives_a_plane_that_the_networks_fill(window):
    plane = plane_of(window)
    generator = Generator(plane, latent=5, width=1, channels=3)
    critic = Critic(plane, width=1, channels=3)
    encoder = Encoder(plane, latent=5, width=1, channels=3)
    z = torch.randn(2, 5)
    with torch.no_grad():
        made = generator(z)
        assert made.shape == (2, 3, plane.bins, plane.frames)
        assert critic(made).shape == (2, 1)
        mean, log_sd = encoder(made)
    assert mean.shape == log_sd.shape == (2, 5)
    assert plane.base[0] <= 4
    assert plane.padded_frames >= plane.frames
    assert plane.padded_frames - plane.frames < 2**plane.layers


@pytest.mark.parametrize(
    ("window", "layers", "base"),
    [(64, 3, (1, 2)), (300, 3, (2, 3)), (1024, 3, (4, 5)), (16384, 5, (4, 5)),
     (65536, 6, (4, 5))],
)  # fmt: skip
def test_layers_follow_from_the_plane(window, layers, base):
    assert (plane_of(window).layers, plane_of(window).base) == (layers, base)


@pytest.mark.parametrize("window", [300, 16384])
def test_each_layer_doubles_or_halves_its_map_and_channels(window):
    plane = plane_of(window)
    generator = Generator(plane, latent=5, width=2, channels=1)
    rows, columns = plane.base
    n = plane.layers
    with torch.no_grad():
        start = torch.randn(1, 2 * 2 ** (n - 1), rows, columns)
        up = layer_shapes(generator.layers, start)
        critic = Critic(plane, width=2, channels=1)
        full = torch.randn(1, 1, plane.bins, plane.padded_frames)
        down = layer_shapes(critic.layers, full)
    channels = [2 * 2**i for i in reversed(range(n - 1))] + [1]
    expected = [
        (channels[i], rows * 2 ** (i + 1), columns * 2 ** (i + 1)) for i in range(n)
    ]
    assert up == expected
    assert down == [
        (2 * 2**i, plane.bins // 2 ** (i + 1), plane.padded_frames // 2 ** (i + 1))
        for i in range(n)
    ]


def test_without_output_padding_four_becomes_seven():
    x = torch.randn(1, 1, 4, 4)
    wrong = nn.ConvTranspose2d(1, 1, KERNEL, 2, padding=2)
    right = nn.ConvTranspose2d(1, 1, KERNEL, 2, padding=2, output_padding=1)
    assert wrong(x).shape[-1] == 7
    assert right(x).shape[-1] == 8


# --- behaviour ------------------------------------------------------------------------


def normalised_over_the_batch(module):
    return [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]


def test_nothing_is_normalised_over_the_batch():
    plane = plane_of(300)
    critic = Critic(plane, width=4, channels=3)
    generator = Generator(plane, latent=6, width=4, channels=3)
    encoder = Encoder(plane, latent=6, width=4, channels=3)
    for module in (critic, generator, encoder):
        assert normalised_over_the_batch(module) == []
    control = nn.Sequential(critic, nn.BatchNorm1d(1))
    assert len(normalised_over_the_batch(control)) == 1
    # The score of a plane does not depend on its company, as it would with batch norm.
    planes = torch.randn(4, 3, plane.bins, plane.frames)
    with torch.no_grad():
        torch.testing.assert_close(critic(planes)[:1], critic(planes[:1]))
        assert float((control(planes)[0] - critic(planes)[0]).abs().min()) > 1e-6


def test_magnitude_mode_is_bounded_and_the_other_is_not():
    plane = PlaneShape(16, 16)
    torch.manual_seed(0)
    free = Generator(plane, latent=4, width=4, channels=1)
    bounded = Generator(plane, latent=4, width=4, channels=1, bounded=True)
    bounded.load_state_dict(free.state_dict())
    z = 1e4 * torch.randn(3, 4)
    with torch.no_grad():
        assert float(free(z).abs().max()) > 1
        torch.testing.assert_close(bounded(z), torch.tanh(free(z)))


def test_the_encoder_keeps_its_standard_deviation_in_range():
    encoder = Encoder(PlaneShape(16, 16), latent=4, width=2, channels=1)
    with torch.no_grad():
        _, log_sd = encoder(1e6 * torch.randn(8, 1, 16, 16))
    assert float(log_sd.min()) >= -8
    assert float(log_sd.max()) <= 1


def test_both_networks_train_every_parameter():
    plane = plane_of(300)
    generator = Generator(plane, latent=5, width=2, channels=3)
    critic = Critic(plane, width=2, channels=3)
    critic(generator(torch.randn(4, 5))).sum().backward()
    for p in (*generator.parameters(), *critic.parameters()):
        assert p.grad is not None
        assert float(p.grad.abs().max()) > 0


@pytest.mark.parametrize("size", [2, 3, 32])
def test_a_flow_is_inverted_and_its_volume_is_the_determinant(size):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Flow(size, 4).double()
        for layer in flow.layers:
            nn.init.normal_(layer.net[-1].weight, std=0.3)
            nn.init.normal_(layer.net[-1].bias, std=0.3)
        u = torch.randn(5, size, dtype=torch.float64)
    z = flow(u)
    assert (z - u).abs().max() > 0.1
    again, volume = flow.inverse(z)
    torch.testing.assert_close(again, u)
    for one, change in zip(z, volume, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse(v)[0], one)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], change)


def test_a_new_flow_only_changes_the_order():
    flow = Flow(6, 4)
    u = torch.randn(3, 6)
    torch.testing.assert_close(flow(u).sort().values, u.sort().values)
    assert not flow.inverse(u)[1].any()


@pytest.mark.parametrize(("size", "first"), [(8, 0), (8, 1), (7, 0), (2, 1)])
def test_a_coupling_along_a_row_is_inverted_with_its_volume(size, first):
    torch.manual_seed(7)
    coupling = RowCoupling(size, first).double()
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    u = torch.randn(5, size, dtype=torch.float64)
    z = coupling(u)
    back, log_slopes = coupling.inverse(z)
    torch.testing.assert_close(back, u)
    kept = [k for k in range(size) if k % 2 != first]
    assert torch.equal(z[:, kept], u[:, kept]) and not torch.allclose(z, u)
    slopes = torch.func.vmap(torch.func.jacrev(lambda v: coupling.inverse(v)[0]))(z)
    expected = torch.linalg.slogdet(slopes).logabsdet
    torch.testing.assert_close(log_slopes.sum(-1), expected)


def test_a_coupling_along_a_row_is_the_same_everywhere():
    torch.manual_seed(8)
    coupling = RowCoupling(40, 0)
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    u = torch.randn(1, 40)
    shifted = u.roll(2, -1)
    a, b = coupling(u), coupling(shifted)
    # Away from the ends, by as many as it looks at.
    torch.testing.assert_close(a[:, 8:30], b[:, 10:32])


@pytest.mark.parametrize(("size", "row"), [(9, 4), (8, 3), (6, 0)])
def test_slopes_of_a_flow_are_those_of_its_inverse(size, row):
    torch.manual_seed(10)
    flow = Flow(size, 3, row).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(4, size, dtype=torch.float64)
    found = flow.slopes(z)
    expected = torch.func.vmap(torch.func.jacrev(lambda v: flow.inverse(v)[0]))(z)
    torch.testing.assert_close(found, expected)
    volume = torch.linalg.slogdet(found).logabsdet
    torch.testing.assert_close(volume, flow.inverse(z)[1])
    assert flow.float().slopes(z.float()).dtype == torch.float32


def test_a_flow_along_a_row_starts_as_one_without():
    torch.manual_seed(9)
    flow = Flow(6, 4, 3)
    u = torch.randn(3, 6)
    torch.testing.assert_close(flow(u).sort().values, u.sort().values)
    z, volume = flow.inverse(flow(u))
    torch.testing.assert_close(z, u)
    assert len(flow.layers) == 7 and not volume.any()


# --- a row of latents -----------------------------------------------------------------


def test_a_latent_of_a_row_is_painted_where_it_stands():
    torch.manual_seed(0)
    painter = RowPainter(24, 3, 2, 95)  # as many frames as a window of 380 samples has
    z = torch.randn(1, 27)  # labels behind the latents are not part of the row
    moved, labelled = z.clone(), z.clone()
    moved[0, 12] += 1.0
    labelled[0, 25] += 1.0
    before, after = painter(z), painter(moved)
    assert before.shape == (1, 3, 2, 95)
    changed = (after - before).abs().amax((0, 1, 2)) > 1e-6
    # Four frames per latent; kernels of 5 and 3 at the latents' resolution, two of 3 at
    # that of every other frame, and a few frames more by interpolating and doubling.
    assert changed[48:52].all() and not changed[:28].any() and not changed[72:].any()
    assert torch.equal(painter(labelled), before)


def test_columns_are_frames_or_every_other_one():
    torch.manual_seed(5)
    painter = RowPainter(64, 3, 4, 76, every=1)
    assert painter.columns == 76 and painter(torch.randn(2, 64)).shape == (2, 3, 4, 76)
    assert RowPainter(64, 3, 4, 76).columns == 38


@pytest.mark.parametrize(("latent", "frames", "every"), [(64, 76, 1), (20, 80, 2)])
def test_derivatives_of_a_row_are_those_one_by_one(latent, frames, every):
    torch.manual_seed(6)
    painter = RowPainter(latent, 3, 2, frames, every=every).double()
    z = torch.randn(2, latent, dtype=torch.float64)
    each = [torch.func.jacfwd(painter)(one[None])[0, ..., 0, :] for one in z]
    expected = torch.stack(each).movedim(-1, 0)
    found = painter.derivatives(z)
    torch.testing.assert_close(found, expected)
    assert painter.apart < latent
    # Told apart by fewer frames than it is painted in, a latent would lose some.
    near = painter.reach.sum(1).argmin()
    assert expected[near].abs().amax((0, 1, 2)).ne(0).sum() == painter.reach[near].sum()


def test_the_same_weights_paint_everywhere():
    torch.manual_seed(1)
    painter = RowPainter(20, 2, 1, 40)
    z = torch.zeros(2, 20)
    z[0, 8] = z[1, 11] = 1.5
    a, b = painter(z)
    torch.testing.assert_close(a[..., 12:22], b[..., 18:28])


def test_a_row_is_read_where_it_stands():
    torch.manual_seed(2)
    reader = RowReader(24, 3, 2, parameters=2)
    planes = torch.randn(1, 3, 2, 48)
    moved = planes.clone()
    moved[..., 24] += 1.0
    mean, log_sd = (reader(moved) - reader(planes)).abs()[0].chunk(2)
    for part in (mean, log_sd):
        assert (part[11:13] > 1e-6).all()
        assert (part[:5] < 1e-6).all() and (part[-4:] < 1e-6).all()


def test_a_generator_adds_what_the_row_paints():
    plane = PlaneShape(4, 76)
    torch.manual_seed(3)
    generator = Generator(plane, latent=34, width=4, channels=3, row=32)
    z = torch.randn(5, 34)
    whole = generator(z)
    assert whole.shape == (5, 3, 4, 76)
    row, generator.row = generator.row, None
    torch.testing.assert_close(whole, generator(z) + row(z))


def test_an_encoder_adds_what_is_read_along_the_row():
    plane = PlaneShape(4, 76)
    torch.manual_seed(4)
    encoder = Encoder(plane, latent=32, width=4, channels=3, row=True)
    planes = torch.randn(5, 3, 4, 76)
    mean, log_sd = encoder(planes)
    assert mean.shape == log_sd.shape == (5, 32)
    row, encoder.row = encoder.row, None
    torch.testing.assert_close(mean, encoder(planes)[0] + row(planes)[:, :32])
