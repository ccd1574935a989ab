"""The critic's penalties: float32, whatever the rest is computed in."""

import dataclasses

import pytest
import torch

from sepprior import losses
from sepprior.config import config_from_dict
from sepprior.nets import WaveGANCritic
from sepprior.training.adversary import Adversary
from sepprior.training.parallel import Ranks

WINDOW = 64
PENALISED = ["wgan-gp", "rpgan-r1r2"]


def adversary(**settings):
    config = config_from_dict({"model": "wavegan", "window": WINDOW})
    config = dataclasses.replace(config, critic_width=8, phase_shuffle=0, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = WaveGANCritic(window=WINDOW, width=config.critic_width)
    return Adversary(
        critic,
        torch.optim.Adam(critic.parameters(), config.learning_rate),
        config,
        rng=torch.Generator().manual_seed(0),
        ranks=Ranks(),
    )


def windows():
    drawn = torch.randn(2, 16, 1, WINDOW, generator=torch.Generator().manual_seed(1))
    return drawn[0], 3.0 * drawn[1]


def gradients(made):
    return torch.cat([p.grad.flatten() for p in made.critic.parameters()])


def apart(first, second):
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("loss", PENALISED)
def test_a_penalty_is_float32_in_mixed_precision(loss):
    plain, mixed = (
        adversary(loss=loss, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    exact, rounded = (made.step(*windows(), None) for made in (plain, mixed))
    assert rounded["gradient_penalty"] == exact["gradient_penalty"]
    # Negative controls: the scores are rounded, and so would the penalty be.
    assert rounded["critic_distance"] != exact["critic_distance"]
    critic = adversary(loss=loss).critic
    real, _ = windows()
    penalties = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            penalty = losses.zero_centred_penalty(lambda x: critic(x).float(), real)
        penalties.append(float(penalty.detach()))
    assert abs(penalties[1] / penalties[0] - 1.0) > 1e-5


@pytest.mark.parametrize("loss", PENALISED)
def test_the_gradient_of_a_penalty_is_float32_in_mixed_precision(loss):
    """By far the largest part of the critic's, with this weight."""
    heavy = {"loss": loss, "gradient_penalty": 1e6}
    plain, mixed = (
        adversary(precision=precision, **heavy) for precision in ("float32", "bfloat16")
    )
    for made in (plain, mixed):
        made.step(*windows(), None)
    assert apart(gradients(mixed), gradients(plain)) < 1e-6
    # Negative control: that of the scores is rounded to 8 bits.
    plain, mixed = (
        adversary(loss="dcgan", precision=precision)
        for precision in ("float32", "bfloat16")
    )
    for made in (plain, mixed):
        made.step(*windows(), None)
    assert apart(gradients(mixed), gradients(plain)) > 1e-4


@pytest.mark.parametrize("loss", PENALISED)
def test_no_convolution_of_a_penalty_is_in_tf32(loss, monkeypatch):
    switch = torch.backends.cudnn.conv
    seen = []
    made = adversary(loss=loss)
    forward = made.critic.forward

    def watched(x, shifts=()):
        seen.append(switch.fp32_precision)
        return forward(x, shifts)

    monkeypatch.setattr(made.critic, "forward", watched)
    made.critic.score.weight.register_hook(lambda _: seen.append(switch.fp32_precision))
    made.step(*windows(), None)
    usual = switch.fp32_precision
    assert usual == "tf32"
    # Scores of both; the penalty on what lies between or on both; the backward pass.
    passes = 1 if loss == "wgan-gp" else 2
    assert seen == [usual, usual, *passes * ["ieee"], "ieee"]
    # An error within leaves the switch as it was.
    monkeypatch.setattr(losses, "gradient_penalty", None)
    monkeypatch.setattr(losses, "zero_centred_penalty", None)
    with pytest.raises(TypeError):
        made.step(*windows(), None)
    assert switch.fp32_precision == usual
