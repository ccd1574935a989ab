"""Single steps of every adversarial network: losses, labels, mixed precision."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sepprior.config import config_from_dict
from sepprior.data import Recording, Segment, consecutive_windows, iterate_blocks
from sepprior.nets import weights_in_use
from sepprior.priors import GaussianPrior, SpecGANPrior
from sepprior.stationary import autocovariance
from sepprior.training.contract import Task
from sepprior.training.gan import SpecGANTrainer
from sepprior.training.registry import build_trainer
from sepprior.training.waveform import WaveformTrainer
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

LATENT = 3
MODELS = {
    "specgan": {},
    "specgan, magnitude": {"channels": "magnitude"},
    "wavegan": {},
    "gansynth": {"growth": 0.0},
    "lstm": {},
}
LOSSES = ("wgan-gp", "wgan", "dcgan", "lsgan", "rpgan-r1r2")


def task_of(recording):
    level, covariance = autocovariance(
        iterate_blocks(recording, block=2**20), n_lags=WINDOW
    )
    gaussian = GaussianPrior(covariance, level=level, sample_rate=SAMPLE_RATE)
    held = torch.from_numpy(consecutive_windows(recording, window=WINDOW, limit=8))
    return Task(recording, recording, held, gaussian, torch.device("cpu"), {})


def begun(recording, model, **settings):
    """A run at step 0, which is of the adversarial phase."""
    name = model.split(",")[0]
    small = {"window": WINDOW, "width": 4, "critic_width": 4, "latent": LATENT}
    small |= {"batch": 8, "critic_steps": 1}
    if name == "specgan":
        small |= {"warmup_steps": 0, "latent_row": "no", "whitening": "total"}
    config = config_from_dict({"model": name})
    config = dataclasses.replace(config, **(small | MODELS[model] | settings))
    trainer = build_trainer(task_of(recording), config, state=None)
    assert isinstance(trainer, SpecGANTrainer | WaveformTrainer)
    return trainer


def networks(trainer):
    """Generator and critic."""
    of = trainer.networks if isinstance(trainer, SpecGANTrainer) else trainer
    return of.generator, of.critic


# --- losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_every_loss(model, loss, recording):
    """Both networks learn, with the penalty or the clipping that the loss asks for."""
    trainer = begun(recording, model, loss=loss, critic_steps=2)
    generator, critic = networks(trainer)
    before = copy.deepcopy((generator, critic))
    records = [trainer.advance() for _ in range(2)]
    for record in records:
        assert all(math.isfinite(value) for value in record.values())
        assert {"critic_distance", "generator_loss"} <= record.keys()
        assert ("gradient_penalty" in record) == (loss in ("wgan-gp", "rpgan-r1r2"))
        # Of these the least is 0, for the critic and for the generator.
        if loss in ("dcgan", "lsgan", "rpgan-r1r2"):
            assert record["critic_distance"] < 0.0 < record["generator_loss"]
    for then, now in zip(before, (generator, critic), strict=True):
        pairs = zip(then.parameters(), now.parameters(), strict=True)
        # Layers of the coarser stages of gansynth are in no use.
        weights = [(a, b) for a, b in pairs if b.dim() > 1 and b.grad is not None]
        assert len(weights) >= 2
        assert not any(torch.equal(a, b) for a, b in weights)
    largest = max(f * float(p.detach().abs().max()) for p, f in weights_in_use(critic))
    assert (largest < 1.001 * trainer.config.weight_clip) == (loss == "wgan")


BESIDES = {
    "as it is": {},
    "no spectrum": {"spectral": "none"},
    "blind": {"likelihood_weight": 0.0},
    "in a row": {"latent_row": "yes", "row_latent": 4},
    "warm-up": {"warmup_steps": 3},
}
"""Settings by which different parameters could be left out of a loss."""
OF_SPECGAN = ("blind", "in a row", "warm-up")


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    ("model", "besides"),
    [
        (model, besides)
        for model in MODELS
        for besides in BESIDES
        if besides not in OF_SPECGAN or model.startswith("specgan")
    ],
)
def test_every_parameter_is_part_of_its_loss(
    model, besides, labels, recording, two_states
):
    """Processes that train together would wait for one that is not, but in gansynth."""
    noise = two_states if labels else recording
    trainer = begun(noise, model, **BESIDES[besides])
    bare = []

    def look(optimiser, *_):
        parts = [p for group in optimiser.param_groups for p in group["params"]]
        bare.extend(p for p in parts if p.grad is None)

    handle = register_optimizer_step_pre_hook(look)
    try:
        trainer.advance()
    finally:
        handle.remove()
    # Negative control: the coarser stages of gansynth.
    assert bool(bare) == (model == "gansynth")


# --- mixed precision ------------------------------------------------------------------


def two_steps(recording, model, precision):
    """What the first step reports, and the gradient that its generator learned from."""
    trainer = begun(recording, model, loss="lsgan", precision=precision)
    record = trainer.advance()
    generator, _ = networks(trainer)
    parts = [p.grad for p in generator.parameters() if p.grad is not None]
    gradient = torch.cat([part.flatten() for part in parts])
    trainer.advance()  # raises an error where losses are not finite
    assert all(p.dtype == torch.float32 for p in generator.parameters())
    return record, gradient


@pytest.mark.parametrize("model", MODELS)
def test_a_step_in_mixed_precision_is_the_plain_one_to_rounding(model, recording):
    """Losses and the generator's gradient are those in float32, but rounded."""
    exact, gradient = two_steps(recording, model, "float32")
    record, rounded = two_steps(recording, model, "bfloat16")
    assert record.keys() == exact.keys()
    for name in record.keys() - {"divergence"}:  # near 0, of 8 draws
        assert record[name] == pytest.approx(exact[name], rel=0.03)
    assert record["generator_loss"] != exact["generator_loss"]
    # Phases that are sums over all frames are rounded most, in gansynth.
    alike = float(torch.cosine_similarity(rounded, gradient, dim=0))
    assert 0.8 < alike < 0.99999


# --- labels ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_states():
    quiet = Segment(coloured_noise(50 * WINDOW, seed=1), label="idle")
    loud = Segment(4.0 * coloured_noise(50 * WINDOW, seed=2), label="busy")
    return Recording((quiet, loud), SAMPLE_RATE)


def untrained(trainer):
    if isinstance(trainer, SpecGANTrainer):
        return trainer.prior
    return trainer._prior(trainer.ema, {})


def stands_for(prior, z):
    """What the generator makes of latents: a mean, without one scales, or waveforms."""
    if not isinstance(prior, SpecGANPrior):
        return prior.waveform(z)
    decoded = prior.decode(z)
    return decoded.mean if prior.complex_mode else decoded.precision.log()


@pytest.mark.parametrize("model", MODELS)
def test_a_latent_stands_for_something_else_under_each_label(model, two_states):
    """Fixed or a coordinate of z, the label changes what the same latents decode to."""
    prior = untrained(begun(two_states, model))
    z = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0))
    busy, idle = (stands_for(prior.with_label(k), z) for k in ("busy", "idle"))
    assert ((busy - idle).norm(dim=-1) > 0.1 * idle.norm(dim=-1)).all()
    for known, told in zip((busy, idle), prior.space.under_each_label(z), strict=True):
        torch.testing.assert_close(stands_for(prior, told), known)


@pytest.mark.parametrize("loss", ["wgan-gp", "rpgan-r1r2"])
@pytest.mark.parametrize("model", MODELS)
def test_one_label_goes_to_both_networks(model, loss, two_states, monkeypatch):
    """Generator and critic are told the labels of the recorded windows of the step."""
    trainer = begun(two_states, model, loss=loss)
    generator, _ = networks(trainer)
    seen = []

    def watch(owner, name, labels):
        function = getattr(owner, name)

        def watched(*args):
            found = function(*args)
            seen.append((name, labels(args, found)))
            return found

        monkeypatch.setattr(owner, name, watched)

    of_spectrograms = isinstance(trainer, SpecGANTrainer)
    watch(trainer.model if of_spectrograms else trainer, "crops", lambda _, x: x[1])
    made = "forward" if of_spectrograms else "fake"
    watch(generator, made, lambda args, _: args[0][:, LATENT:])
    watch(trainer.adversary, "judge", lambda args, _: args[1])
    trainer.advance()
    assert {name for name, _ in seen} == {"crops", made, "judge"}
    _, drawn = seen[0]
    for name, labels in seen:
        drawn = labels if name == "crops" else drawn
        assert torch.equal(labels, drawn)
        assert 0 < labels[:, 0].sum() < len(labels)  # of both states


@pytest.mark.parametrize("model", MODELS)
def test_a_critic_judges_labels_as_its_model_does(model, two_states):
    """That of gansynth classifies with the weight of the recipe, the others project."""
    settings = {"classifier_weight": 3.0} if model == "gansynth" else {}
    trainer = begun(two_states, model, **settings)
    assert trainer.adversary.classifier_weight == settings.get("classifier_weight")
