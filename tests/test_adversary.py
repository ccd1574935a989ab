"""The critic's side: its losses by hand, its penalties always in float32."""

import dataclasses
import math

import pytest
import torch

from sepprior import losses
from sepprior.config import WaveGANConfig, config_from_dict
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


# --- by hand --------------------------------------------------------------------------

LOG_2, LOG_3 = math.log(2), math.log(3)
GAIN = 2.0
PENALTY = 0.5


class Told(torch.nn.Module):
    """A critic that answers twice what it is shown."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(GAIN))

    def forward(self, view):
        return self.gain * view


def shown(*numbers):
    """A row for each window: its score, and a number for each label."""
    return torch.tensor(numbers) / GAIN


def told(loss, *, weight=None):
    config = WaveGANConfig(loss=loss, gradient_penalty=PENALTY, label_smoothing=0.1)
    critic = Told()
    return Adversary(
        critic,
        torch.optim.SGD(critic.parameters(), 1e-3),
        config,
        rng=torch.Generator().manual_seed(0),
        ranks=Ranks(),
        classifier_weight=weight,
    )


def objectives(made, real, fake, onehot):
    """What critic and generator minimise, and whether the latter saw real noise."""
    asked = []

    def again():
        asked.append(real)
        return real

    loss, _ = made._critic_loss(real, fake, onehot, torch.full((len(real),), 0.5))
    own = made.generator_loss(fake, again, onehot)
    return [float(loss.detach()), float(own.detach())], bool(asked)


# Of the critic, its penalty, of the generator. Scores are 0 and log 3 of real noise,
# -log 3 and 0 of generated noise; their gradient has a norm of 2.
BY_HAND = {
    "wgan-gp": (-LOG_3, 1.0, LOG_3 / 2),
    "wgan": (-LOG_3, None, LOG_3 / 2),
    # D is 1/2 and 3/4, 1/4 and 1/2; the target of real noise is 0.9.
    "dcgan": (
        (LOG_2 + 0.9 * math.log(4 / 3) + 0.1 * math.log(4)) / 2
        + (math.log(4 / 3) + LOG_2) / 2,
        None,
        (math.log(4) + LOG_2) / 2,
    ),
    "lsgan": (
        (1 + (LOG_3 - 1) ** 2) / 4 + LOG_3**2 / 4,
        None,
        ((LOG_3 + 1) ** 2 + 1) / 4,
    ),
    # Real noise is ahead by log 3 in both pairs.
    "rpgan-r1r2": (math.log(1 + 1 / 3), 4.0, math.log(1 + 3)),
}


@pytest.mark.parametrize("loss", BY_HAND)
def test_each_loss_is_the_one_of_its_name(loss):
    """Known scores give both sides of every loss the values found by hand."""
    critic, penalty, generator = BY_HAND[loss]
    real, fake = shown([0.0], [LOG_3]), shown([-LOG_3], [0.0])
    made = told(loss)
    found, asked = objectives(made, real, fake, None)
    total = critic + PENALTY * (penalty or 0.0)
    assert found == pytest.approx([total, generator], rel=1e-5)
    assert asked == (loss == "rpgan-r1r2")
    record = made.step(real, fake, None)
    assert record.pop("critic_distance") == pytest.approx(-critic, rel=1e-5)
    assert record == ({} if penalty is None else {"gradient_penalty": penalty})
    (gain,) = (float(p.detach()) for p in made.critic.parameters())
    assert (gain == pytest.approx(made.config.weight_clip)) == (loss == "wgan")


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("weight", [None, 0.0, 10.0])
@pytest.mark.parametrize("loss", PENALISED)
def test_labels_count_as_a_projection_or_are_classified(loss, weight, labelled):
    """Known numbers per label give both sides the values found by hand."""
    real = shown([1.0, 0.0, LOG_3], [2.0, LOG_2, 0.0])
    fake = shown([0.0, LOG_3 + 1.0, 1.0], [-1.0, 1.0, 1.0])
    onehot = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) if labelled else None
    projected = labelled and weight is None
    # By how much real noise is ahead; with the labels' numbers, 1 + log 3 and 2 + log 2
    # against 1 and 0.
    ahead = (LOG_3, 2.0 + LOG_2) if projected else (1.0, 3.0)
    norm = GAIN * math.sqrt(2.0) if projected else GAIN
    if loss == "wgan-gp":
        critic, penalty = -sum(ahead) / 2, (norm - 1.0) ** 2
        generator = -0.5 if projected else 0.5
    else:
        critic = sum(math.log(1.0 + math.exp(-a)) for a in ahead) / 2
        penalty = norm**2
        generator = sum(math.log(1.0 + math.exp(a)) for a in ahead) / 2
    # The right labels are given 3/4 and 2/3 of real noise, 1/4 and 1/2 of generated.
    on_real = -(math.log(3 / 4) + math.log(2 / 3)) / 2
    on_fake = -(math.log(1 / 4) + math.log(1 / 2)) / 2
    classified = weight if labelled and weight is not None else 0.0
    total = critic + PENALTY * penalty + classified * (on_real + on_fake)
    made = told(loss, weight=weight)
    found, _ = objectives(made, real, fake, onehot)
    expected = [total, generator + classified * on_fake]
    assert found == pytest.approx(expected, rel=1e-5)
    record = made.step(real, fake, onehot)
    assert record["critic_distance"] == pytest.approx(-critic, rel=1e-5)
    assert record["gradient_penalty"] == pytest.approx(penalty, rel=1e-5)
