import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sepprior.checkpoint import load_prior, load_tensors, save_prior, save_tensors
from sepprior.config import (
    GaussianConfig,
    SpecGANConfig,
    config_to_dict,
    load_config,
)
from sepprior.data import (
    Recording,
    Segment,
    as_recording,
    consecutive_windows,
    data_hash,
    read_recordings,
    series,
)
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior, Prior, SpecGANPrior, beats_gaussian
from sepprior.training import (
    contract,
    moments,
    resume_path,
    train,
    train_noise,
    uncertainty,
)
from sepprior.training import train as train_function
from sepprior.training.gan import RECONSTRUCTION_WEIGHT, SpecGANTrainer
from sepprior.training.noise_model import NoiseModel
from sepprior.training.registry import build_trainer
from sepprior.training.specgan_networks import build_networks, freeze
from sepprior.training.state import pack, unpack
from sepprior.transforms import toeplitz
from tests.conftest import (
    LEVEL,
    SAMPLE_RATE,
    TINY,
    WINDOW,
    coloured_noise,
    finish,
    timeless,
)

train_module = __import__(train_function.__module__, fromlist=["train"])


@pytest.fixture
def quick(monkeypatch):
    """Leave out the final validation, which the shared priors go through."""
    monkeypatch.setattr(
        train_module,
        "validate",
        lambda *_, **__: {"heldout": {"gain": 0.0, "gain_stderr": 0.0}},
    )


def weights(prior: Prior) -> dict[str, torch.Tensor]:
    assert isinstance(prior, SpecGANPrior)
    found = {f"g.{k}": v for k, v in prior.generator.state_dict().items()}
    if prior.encoder is not None:
        found |= {f"e.{k}": v for k, v in prior.encoder.state_dict().items()}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def change(**settings: Any) -> SpecGANConfig:
    return dataclasses.replace(TINY, **settings)


# -- records and metadata ------------------------------------------------------------


def test_a_record_per_tick(recording, quick):
    records, prior = finish(train(recording, TINY, device="cpu"))
    assert [r["step"] for r in records] == [5, 10, 15, 20]
    assert [r["phase"] for r in records] == 2 * ["warm-up"] + 2 * ["adversarial"]
    for record in records:
        assert record["steps"] == 20
        for name in ("seconds", "bound", "spectral_error_db"):
            assert record[name] >= 0
        assert record["divergence"] > -1.0  # of one draw, which may fall short of 0
        assert all(math.isfinite(v) for v in record.values() if not isinstance(v, str))
        # Hardly trained, the model is still close to stationary Gaussian noise,
        # whose entropy is log(2 pi e) / 2 per sample for innovations of unit variance.
        entropy = 0.5 * math.log(2 * math.pi * math.e)
        assert record["heldout_nll_gaussian"] == pytest.approx(entropy, abs=0.05)
        assert record["heldout_nll"] == pytest.approx(
            record["heldout_nll_gaussian"], abs=0.02
        )
        assert record["spectral_error_db"] < 1.0
    adversarial = {"critic_distance", "gradient_penalty", "spectral_loss"}
    assert not adversarial & records[0].keys()
    assert adversarial <= records[-1].keys()
    assert [r["seconds"] for r in records] == sorted(r["seconds"] for r in records)
    assert prior.window == WINDOW and prior.sample_rate == SAMPLE_RATE


def test_last_record_is_that_of_the_last_step(recording, quick):
    records, _ = finish(train(recording, change(steps=7), device="cpu"))
    assert [r["step"] for r in records] == [5, 7]


@pytest.mark.parametrize("kind", ["gaussian_prior", "specgan_prior"])
def test_metadata_tells_where_a_prior_comes_from(kind, request):
    prior = request.getfixturevalue(kind)
    of = {"gaussian_prior": "recording", "specgan_prior": "bursts_recording"}
    recording = request.getfixturevalue(of[kind])
    facts = prior.metadata
    config = GaussianConfig(window=WINDOW) if kind == "gaussian_prior" else TINY
    assert facts["config"] == config_to_dict(config)
    assert facts["seed"] == 0
    assert facts["data_hash"] == data_hash(recording)
    assert facts["n_training_samples"] == pytest.approx(180 * WINDOW, abs=2 * WINDOW)
    held = facts["heldout"]
    assert held["gain"] == pytest.approx(
        held["heldout_nll_gaussian"] - held["heldout_nll"], abs=1e-9
    )
    assert held["windows"] >= 15
    assert set(facts["calibration"]) >= {"cycles", "gls", "robust"}
    # Only what is better than the Gaussian has a joint solver to calibrate.
    assert ("joint" in facts["calibration"]) == (
        prior.n_latent > 0 and beats_gaussian(held)
    )
    assert facts["novelty"]["windows"] > 100
    assert "unfinished" not in facts


def test_gaussian_prior_is_the_sample_autocovariance(recording, gaussian_prior, quick):
    assert gaussian_prior.level == pytest.approx(LEVEL, abs=0.1)
    expected = 0.6 ** np.arange(WINDOW) / (1 - 0.36)
    np.testing.assert_allclose(gaussian_prior.autocovariance, expected, atol=0.15)
    records, prior = finish(train(recording, GaussianConfig(window=WINDOW)))
    assert [(r["step"], r["steps"]) for r in records] == [(1, 1)]
    torch.testing.assert_close(
        prior.autocovariance.cpu(), gaussian_prior.autocovariance
    )


# -- seeds ---------------------------------------------------------------------------


def test_the_seed_decides_the_weights(recording, quick):
    state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    short = change(steps=6, warmup_steps=3)
    runs = [
        finish(train(recording, dataclasses.replace(short, seed=seed), device="cpu"))
        for seed in (0, 0, 1)
    ]
    assert same(weights(runs[0][1]), weights(runs[1][1]))
    assert timeless(runs[0][0]) == timeless(runs[1][0])
    first, third = weights(runs[0][1]), weights(runs[2][1])
    assert not any(torch.equal(first[k], third[k]) for k in first)
    # Nothing outside the library notices.
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


# -- interruption and resumption -----------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "prior.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train_module,
            "validate",
            lambda *_, **__: {"heldout": {"gain": 0.0, "gain_stderr": 0.0}},
        )
        records, prior = finish(train(recording, TINY, device="cpu", output=path))
    return records, prior, path


def close(stream: Iterator[Any]) -> None:
    stream.close()  # type: ignore[attr-defined]


def interrupt(stream: Iterator[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [close, interrupt])
@pytest.mark.parametrize("ticks", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one(
    recording, uninterrupted, quick, tmp_path, stop, ticks
):
    records, prior, whole = uninterrupted
    path = tmp_path / "prior.safetensors"
    stream = train(recording, TINY, device="cpu", output=path)
    before = [next(stream) for _ in range(ticks)]
    stop(stream)
    # What is left is usable, and says that it is not the end.
    left = load_prior(path, device="cpu")
    assert left.metadata["unfinished"] is True
    assert left.sample(2).isfinite().all()
    assert not same(weights(left), weights(prior))
    after, resumed = finish(
        train(recording, TINY, device="cpu", output=path, resume=True)
    )
    assert timeless(before + after) == timeless(records)
    assert same(weights(resumed), weights(prior))
    assert load_prior(path, device="cpu").metadata == load_prior(whole).metadata
    # Optimisers, running averages and random numbers end alike as well.
    ends = [load_file(resume_path(p)) for p in (path, whole)]
    assert same(*ends)


def test_interrupt_in_the_middle_of_a_step(
    recording, uninterrupted, quick, tmp_path, monkeypatch
):
    records, prior, _ = uninterrupted
    path = tmp_path / "prior.safetensors"
    critic_step = SpecGANTrainer._critic_step

    def break_in(self: SpecGANTrainer) -> dict[str, float]:
        result = critic_step(self)
        if self.step == 13:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(SpecGANTrainer, "_critic_step", break_in)
    with pytest.raises(KeyboardInterrupt):
        finish(train(recording, TINY, device="cpu", output=path))
    monkeypatch.undo()
    monkeypatch.setattr(
        train_module,
        "validate",
        lambda *_, **__: {"heldout": {"gain": 0.0, "gain_stderr": 0.0}},
    )
    after, resumed = finish(
        train(recording, TINY, device="cpu", output=path, resume=True)
    )
    assert timeless(after) == timeless(records)[2:]
    assert same(weights(resumed), weights(prior))


def test_interrupt_after_the_last_step(
    recording, uninterrupted, quick, tmp_path, monkeypatch
):
    _, prior, _ = uninterrupted
    path = tmp_path / "prior.safetensors"

    def break_in(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "validate", break_in)
    with pytest.raises(KeyboardInterrupt):
        finish(train(recording, TINY, device="cpu", output=path))
    assert load_prior(path, device="cpu").metadata["unfinished"] is True
    monkeypatch.setattr(
        train_module,
        "validate",
        lambda *_, **__: {"heldout": {"gain": 0.0, "gain_stderr": 0.0}},
    )
    after, resumed = finish(
        train(recording, TINY, device="cpu", output=path, resume=True)
    )
    assert after == []
    assert same(weights(resumed), weights(prior))
    assert "unfinished" not in load_prior(path, device="cpu").metadata


def test_killed_while_it_is_validated(recording, quick, tmp_path, monkeypatch):
    """What is on disk after the last step does not pass for a finished prior."""
    path = tmp_path / "prior.safetensors"
    on_disk = []

    def look(*_: Any, **__: Any) -> dict[str, Any]:
        on_disk.append(load_prior(path, device="cpu").metadata)
        return {"heldout": {"gain": 0.0, "gain_stderr": 0.0}}

    monkeypatch.setattr(train_module, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(train_module, "validate", look)
    finish(train(recording, TINY, device="cpu", output=path))
    assert [facts["unfinished"] for facts in on_disk] == [True]
    assert "unfinished" not in load_prior(path, device="cpu").metadata


def test_a_resumed_run_may_be_longer(recording, uninterrupted, quick, tmp_path):
    path = tmp_path / "prior.safetensors"
    _, first = finish(train(recording, change(steps=10), device="cpu", output=path))
    records, prior = finish(
        train(recording, change(tick=10), device="cpu", output=path, resume=True)
    )
    assert [r["step"] for r in records] == [20]
    assert not same(weights(first), weights(prior))
    assert "unfinished" not in prior.metadata


def test_a_finished_run_resumes_to_itself(recording, uninterrupted, quick, tmp_path):
    _, prior, whole = uninterrupted
    path = tmp_path / "prior.safetensors"
    for source, target in ((whole, path), (resume_path(whole), resume_path(path))):
        target.write_bytes(source.read_bytes())
    records, again = finish(
        train(recording, TINY, device="cpu", output=path, resume=True)
    )
    assert records == []
    assert same(weights(again), weights(prior))


def one_line_error(stream: Any, match: str) -> None:
    with pytest.raises(SeppriorError, match=match) as error:
        finish(stream)
    assert "\n" not in str(error.value)


def test_resuming_something_else_is_an_error(recording, uninterrupted, quick, tmp_path):
    _, _, whole = uninterrupted
    again = {"device": "cpu", "resume": True}
    other = as_recording(coloured_noise(200 * WINDOW, seed=9), sample_rate=SAMPLE_RATE)
    one_line_error(train(other, TINY, output=whole, **again), "other recordings")
    for name, value in {"batch": 16, "learning_rate": 1e-4, "seed": 1}.items():
        config = change(**{name: value})
        one_line_error(
            train(recording, config, output=whole, **again), f"another {name}"
        )
    one_line_error(train(recording, TINY, **again), "--resume needs the output path")
    nowhere = tmp_path / "prior.safetensors"
    one_line_error(train(recording, TINY, output=nowhere, **again), "no such")
    # A prior in the place of the training state.
    resume_path(nowhere).write_bytes(whole.read_bytes())
    one_line_error(
        train(recording, TINY, output=nowhere, **again), "holds no training state"
    )
    resume_path(nowhere).write_bytes(b"nonsense")
    one_line_error(
        train(recording, TINY, output=nowhere, **again), "not a readable safetensors"
    )


def test_training_states_are_packed_without_loss():
    tree = {
        "a": torch.arange(3),
        "nested": {0: {"step": torch.tensor(2.0)}, "list": [1, None, (0.5, "x")]},
        "empty": {},
        "flag": True,
    }
    tensors, plain = pack(tree)
    assert {k: v.tolist() for k, v in tensors.items()} == {
        "/a": [0, 1, 2],
        "/nested/0/step": 2.0,
    }
    back = unpack(tensors, plain)
    assert torch.equal(back["a"], tree["a"])
    assert back["nested"][0]["step"] == 2.0
    assert back["nested"]["list"] == [1, None, [0.5, "x"]]
    assert back["empty"] == {} and back["flag"] is True


# -- what is trained -----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"spectral": "per-sample"},
        {"spectral": "none"},
        {"likelihood_weight": 0.0},
        {"channels": "magnitude"},
        {"channels": "magnitude", "window": 101},
        {"latent_distribution": "uniform"},
        {"whitening": "continuum"},
        {"warmup_steps": 0},
        {"critic_steps": 1},
        {"window": 101},
    ],
)
def test_every_variant_trains_and_is_stored(settings, recording, quick, tmp_path):
    path = tmp_path / "prior.safetensors"
    config = change(**({"steps": 4, "tick": 4, "warmup_steps": 2} | settings))
    (record,), prior = finish(train(recording, config, device="cpu", output=path))
    assert all(math.isfinite(v) for v in record.values() if not isinstance(v, str))
    textbook = config.channels == "magnitude" or config.likelihood_weight == 0
    assert ("heldout_nll" in record) == (not textbook)
    assert ("bound" in record) == (not textbook)
    assert ("spectral_loss" in record) == (config.spectral != "none")
    assert record["phase"] == "adversarial" and "critic_distance" in record
    assert record["spectral_error_db"] < 6.0
    assert isinstance(prior, SpecGANPrior)
    assert (prior.encoder is None) == textbook
    assert prior.complex_mode == (config.channels == "complex")
    assert prior.space.uniform == (config.latent_distribution == "uniform")
    loaded = load_prior(path, device="cpu")
    assert same(weights(loaded), weights(prior))
    x = loaded.sample(200, generator=torch.Generator().manual_seed(0))
    assert x.shape == (200, config.window)
    sd = float(prior.autocovariance[0]) ** 0.5
    # Four steps of training: the generator's mean may still be off.
    assert float(x.mean()) == pytest.approx(LEVEL, abs=0.3)
    assert 0.3 * sd < float(x.std()) < 3 * sd


def test_the_best_tick_of_the_adversarial_phase_is_kept(
    recording, quick, tmp_path, monkeypatch
):
    """The warm-up's ticks would be better, the later ones are nearer in one respect."""
    nll = iter([0.5, 0.5, 1.5, 1.2, 1.1, 1.3])
    error = iter([0.0, 0.0, 0.0, 2.0, 6.0, 1.0])
    ticks = {}
    report = SpecGANTrainer.report

    def seen(self: SpecGANTrainer, held: torch.Tensor) -> dict[str, Any]:
        record = report(self, held)
        ticks[self.step] = weights(self._latest())
        return record

    def scripted(prior: Prior, windows: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(windows),), WINDOW * next(nll))

    monkeypatch.setattr(SpecGANTrainer, "report", seen)
    monkeypatch.setattr(SpecGANTrainer, "spectral_error_db", lambda *_: next(error))
    monkeypatch.setattr(SpecGANPrior, "heldout_nll", scripted)
    monkeypatch.setattr("sepprior.training.gan.settle_loudness", lambda *_, **__: None)
    path = tmp_path / "prior.safetensors"
    config = change(keep="best", steps=6, warmup_steps=2, tick=1, ema=0.0)
    stream = train(recording, config, device="cpu", output=path)
    for _ in range(5):
        next(stream)
    stream.close()
    assert same(weights(load_prior(path, device="cpu")), ticks[4])
    # The best of before the interruption stays the best.
    _, prior = finish(train(recording, config, device="cpu", output=path, resume=True))
    assert same(weights(prior), ticks[4])
    assert not any(same(ticks[4], ticks[step]) for step in (1, 2, 3, 5, 6))


def test_longer_warm_up_than_run_has_no_critic(recording, quick):
    config = change(steps=4, tick=4, warmup_steps=50)
    (record,), _ = finish(train(recording, config, device="cpu"))
    assert record["phase"] == "warm-up"
    assert "critic_distance" not in record


def test_gradient_penalty_is_in_use(recording, quick):
    """Negative control: without its weight the critic, so the generator, differs."""
    config = change(likelihood_weight=0.0, spectral="none", steps=4)
    runs = [
        finish(
            train(
                recording,
                dataclasses.replace(config, gradient_penalty=weight),
                device="cpu",
            )
        )
        for weight in (10.0, 0.0)
    ]
    first, second = (weights(prior) for _, prior in runs)
    assert not any(torch.equal(first[k], second[k]) for k in first)


def test_penalty_holds_the_critics_slope_near_one(recording):
    config = change(likelihood_weight=0.0, critic_steps=40, learning_rate=5e-3)
    penalties = {}
    for weight in (10.0, 0.0):
        trainer = trainer_of(
            recording, dataclasses.replace(config, gradient_penalty=weight)
        )
        for _ in range(60):
            record = trainer._critic_step()
        penalties[weight] = record["gradient_penalty"]
    assert penalties[10.0] < 0.1
    assert penalties[0.0] > 10 * penalties[10.0]


def test_critic_steps_do_not_touch_the_generator(recording):
    trainer = trainer_of(recording, TINY)
    before = {k: v.clone() for k, v in trainer.networks.generator.state_dict().items()}
    trainer._critic_step()
    assert same(before, trainer.networks.generator.state_dict())
    trainer.step = trainer.warmup
    critic = {k: v.clone() for k, v in trainer.networks.critic.state_dict().items()}
    trainer._adversarial_step()
    assert not same(before, trainer.networks.generator.state_dict())
    assert not same(critic, trainer.networks.critic.state_dict())
    assert all(p.requires_grad for p in trainer.networks.critic.parameters())


def trainer_of(recording: Recording, config: SpecGANConfig) -> SpecGANTrainer:
    r = torch.from_numpy(0.6 ** np.arange(config.window) / (1 - 0.36))
    model = NoiseModel(
        recording,
        config,
        torch.device("cpu"),
        LEVEL,
        r,
        r,
        torch.Generator().manual_seed(0),
    )
    return SpecGANTrainer(model, build_networks(config, model))


def test_moments_are_those_of_the_whitened_noise(recording):
    model = trainer_of(recording, TINY).model
    # Complex coefficients of unit white noise in the tight frame: half a unit of power,
    # less in the first and last frame, which are half outside.
    expected = math.sqrt(0.5 * float(model.stft.frame_share(torch.zeros(1)).mean()))
    np.testing.assert_allclose(model.statistics.rms[:, 0], expected, rtol=0.05)
    # The log of an exponential variable: variance pi^2 / 6.
    power = model.log_mean_power.exp().numpy()
    np.testing.assert_allclose(power[:-1], 1.0, atol=0.25)
    sd = model.log_sd_power[:-1].numpy()
    np.testing.assert_allclose(sd, math.pi / math.sqrt(6), atol=0.25)


def test_the_loudest_bin_is_measured(recording):
    """At the variance it gives, the loudest bin's likelihood is largest."""
    model = trainer_of(recording, TINY).model
    white = model.white(
        torch.from_numpy(consecutive_windows(recording, window=TINY.window))
    )
    power = model.stft.analyse(white)[..., :-1, :].abs().square()
    d = torch.linspace(0.5, 50.0, 99001)
    # The energy of a bin, which counts twice in both of its terms.
    energy = power.max() / d + 0.5 * d.log()
    best = float(d[energy.argmin()])
    assert math.exp(model.statistics.loudest) == pytest.approx(best, rel=1e-3)
    assert best > 4.0


def test_the_amplitude_term_is_small_for_the_recording_itself(recording):
    """Batches of 64 windows: the recording's own, and the same a fifth louder."""
    config = dataclasses.replace(TINY, batch=64, amplitude_weight=1.0)
    model = trainer_of(recording, config).model
    white, _ = model.crops()
    own = float(model.amplitude_term(white))
    loud = float(model.amplitude_term(1.2 * white))
    assert own < 0.05
    # E |0.2 x| + E (0.2 x)^2 of a standard normal variable.
    assert loud == pytest.approx(0.2 * math.sqrt(2 / math.pi) + 0.04, abs=0.06)
    assert trainer_of(recording, change(amplitude_weight=0.0)).model.quantiles is None


def test_the_squared_error_is_that_in_data_units(recording):
    """Of whitened errors of any colour; circularly, so that the ends differ."""
    model = trainer_of(recording, TINY).model
    for colour in (0.0, 0.8, -0.8):
        white = torch.randn(
            4000, TINY.window, generator=torch.Generator().manual_seed(1)
        )
        white[:, 1:] += colour * white[:, :-1]
        data = model.whitener.inverse(white.double())
        exact = float(data.square().mean()) / model.sd**2
        white.requires_grad_()
        error = model.squared_error(white)
        assert float(error.detach()) == pytest.approx(exact, rel=0.1)
        (gradient,) = torch.autograd.grad(error, white)
        assert float(gradient.abs().max()) > 0.0


def test_quantiles_of_long_windows_are_those_of_a_part(monkeypatch):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 500)))
    whole = moments.sample_quantiles(iter([x]), 9, sd=2.0)
    expected = np.quantile(x / 2.0, (np.arange(9) + 0.5) / 9)
    np.testing.assert_allclose(whole, expected, atol=1e-3)
    monkeypatch.setattr(moments, "MOST_SAMPLES", moments.MOST_WINDOWS * 100)
    part = moments.sample_quantiles(iter([x]), 9, sd=2.0)
    assert not torch.equal(part, whole)
    np.testing.assert_allclose(part, expected, atol=0.05)


def test_leftover_is_what_least_squares_leaves(recording):
    """Five columns: the whitened leftover carries five degrees of freedom."""
    model = trainer_of(recording, TINY).model
    left = model.leftover_signal(2000)
    assert left.shape == (2000, WINDOW)
    energy = left.square().sum(-1)
    assert float(energy.mean()) == pytest.approx(5.0, abs=0.3)
    assert float(energy.var()) == pytest.approx(10.0, rel=0.2)


def test_warm_up_learns_what_no_stationary_model_describes(quick):
    """Noise in two states of loudness."""
    rng = np.random.default_rng(0)
    loud = np.repeat(np.exp(rng.choice([-2.0, 2.0], 400)), WINDOW)
    recording = as_recording(loud * rng.standard_normal(400 * WINDOW), sample_rate=1.0)
    config = change(steps=400, tick=400, warmup_steps=400, batch=64, width=16)
    config = dataclasses.replace(config, latent=32, whitening="total", seed=1)
    (record,), _ = finish(train(recording, config, device="cpu"))
    assert record["heldout_nll"] < record["heldout_nll_gaussian"] - 0.3


@pytest.mark.parametrize(
    ("recipe", "generator", "critic"),
    [
        # Three planes instead of one, and a flow of 0.11 M.
        ("specgan-full", 19_590_000, 17_440_000),
        ("specgan-magnitude", 19_070_000, 17_430_000),
    ],
)
def test_the_full_recipes_train(recipe, generator, critic, quick, monkeypatch):
    """Published sizes of everything; two windows a step, one step of each phase."""
    config = full(recipe)
    warmup = min(config.warmup_steps, 1)
    small = {"batch": 2, "warmup_steps": warmup, "steps": warmup + 1, "tick": 2}
    small |= {"whitening": "total", "precision": "float32", "compile": False}
    config = dataclasses.replace(config, **small)
    trainers = []

    def begun(*args: Any, **options: Any) -> SpecGANTrainer:
        trainers.append(build_trainer(*args, **options))
        return trainers[0]

    critic_step, steps = SpecGANTrainer._critic_step, []

    def counted(self: SpecGANTrainer) -> dict[str, float]:
        steps.append(self.step)
        return critic_step(self)

    monkeypatch.setattr(train_module, "build_trainer", begun)
    monkeypatch.setattr(SpecGANTrainer, "_critic_step", counted)
    noise = coloured_noise(12 * config.window, seed=0)
    stream = train(as_recording(noise, sample_rate=16000.0), config, device="cpu")
    (record,), prior = finish(stream)
    assert record["step"] == config.steps and steps == 5 * [warmup]
    assert record["gradient_penalty"] > 0
    drawn = prior.sample(2)
    assert drawn.shape == (2, 16384) and torch.isfinite(drawn).all()
    assert isinstance(prior, SpecGANPrior)
    assert n_parameters(prior.generator) == pytest.approx(generator, rel=1e-3)
    found = n_parameters(trainers[0].networks.critic)
    assert found == pytest.approx(critic, rel=1e-3)


def full(recipe: str) -> SpecGANConfig:
    """A recipe of the published sizes."""
    folder = Path(__file__).parent.parent / "configs"
    config = load_config(folder / f"{recipe}.toml")
    assert isinstance(config, SpecGANConfig)
    assert (config.window, config.width, config.latent) == (16384, 64, 100)
    assert (config.batch, config.critic_steps, config.loss) == (64, 5, "wgan-gp")
    return config


def n_parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_a_step_of_the_full_recipe_as_it_is():
    """64 windows, five critic steps and one of the generator, with every loss."""
    config = dataclasses.replace(full("specgan-full"), warmup_steps=0)
    noise = coloured_noise(100 * config.window, seed=0)
    recording = as_recording(noise, sample_rate=16000.0)
    trainer = trainer_of(recording, config)
    learners = trainer.networks.generator.project, trainer.networks.critic.score
    before = [layer.weight.detach().clone() for layer in learners]
    record = trainer.advance()
    for name in ("critic_distance", "gradient_penalty", "spectral_loss", "bound"):
        assert math.isfinite(record[name])
    # Adam moves a weight by up to its step size each time.
    for layer, then, times in zip(learners, before, (1, 5), strict=True):
        moved = float((layer.weight - then).detach().abs().max())
        assert 0.5 < moved / (times * config.learning_rate) < 1.5


# -- failures ------------------------------------------------------------------------


def test_divergence_says_what_to_try(recording, quick, tmp_path, monkeypatch):
    path = tmp_path / "prior.safetensors"
    step = SpecGANTrainer._warmup_step

    def spoil(self: SpecGANTrainer) -> dict[str, float]:
        record = step(self)
        if self.step == 7:
            with torch.no_grad():
                for p in self.networks.generator.parameters():
                    p.fill_(math.nan)
            record["bound"] = math.nan
        return record

    monkeypatch.setattr(SpecGANTrainer, "_warmup_step", spoil)
    with pytest.raises(SeppriorError) as error:
        finish(train(recording, TINY, device="cpu", output=path))
    message = str(error.value)
    assert "step 8: bound is not finite" in message
    assert "lower warmup_learning_rate (now 0.002) or another seed" in message
    assert "\n" not in message
    left = load_prior(path, device="cpu")
    assert left.sample(2).isfinite().all()


@pytest.mark.parametrize(
    ("step", "setting"),
    [(10, "warmup_learning_rate (now 0.002)"), (15, "learning_rate (now 0.0002)")],
)
def test_a_likelihood_that_runs_away_stops_the_training(
    step, setting, recording, quick, tmp_path, monkeypatch
):
    path = tmp_path / "prior.safetensors"
    report = SpecGANTrainer.report

    def spoil(self: SpecGANTrainer, held: torch.Tensor) -> dict[str, Any]:
        record = report(self, held)
        # Within 0.02 of the Gaussian's, as long as little is learned.
        record["heldout_nll"] += train_module.RUNAWAY
        record["heldout_nll"] += 0.1 if self.step == step else -0.1
        return record

    monkeypatch.setattr(SpecGANTrainer, "report", spoil)
    one_line_error(
        train(recording, TINY, device="cpu", output=path),
        rf"by step {step}: held-out noise costs 11\.\d nats per sample, the stationary "
        rf"Gaussian 1\.4\d*; .* a lower {re.escape(setting)}",
    )
    # What was good at the tick before is kept.
    assert load_prior(path, device="cpu").sample(2).isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"channels": "magnitude"}, {"channels": "complex"}]
)
def test_without_a_likelihood_a_spectrum_that_runs_away_does(
    settings, recording, quick, tmp_path
):
    path = tmp_path / "prior.safetensors"
    config = change(likelihood_weight=0.0, **settings)
    records, _ = finish(train(recording, config, device="cpu"))
    assert all("heldout_nll" not in record for record in records)
    broken = dataclasses.replace(config, learning_rate=0.9, tick=1)
    one_line_error(
        train(recording, broken, device="cpu", output=path),
        r"by step \d+: the mean spectrum of generated noise is .* dB from the recorded "
        r"one, .* before training; .* lower learning_rate \(now 0\.9\)",
    )
    assert load_prior(path, device="cpu").sample(2).isfinite().all()
    # Negative control: a step size that is merely high stops nothing.
    high = dataclasses.replace(config, learning_rate=0.02)
    assert len(finish(train(recording, high, device="cpu"))[0]) == len(records)


@pytest.mark.parametrize("config", [TINY, GaussianConfig(window=WINDOW)])
def test_too_little_noise(config, tmp_path):
    path = tmp_path / "prior.safetensors"
    short = as_recording(coloured_noise(WINDOW + 10, seed=0), sample_rate=1.0)
    one_line_error(train(short, config, device="cpu", output=path), "window")
    assert not list(tmp_path.iterdir())


def test_training_part_without_variance(monkeypatch):
    """Constant but for the end, which is held out."""
    x = np.full(1000 * WINDOW, 2.0)
    x[-50 * WINDOW :] += coloured_noise(50 * WINDOW, seed=0)
    held_at_end = Recording(
        (Segment(x[: -50 * WINDOW]), Segment(x[-50 * WINDOW :])), 1.0
    )
    parts = tuple(Recording((s,), 1.0) for s in held_at_end.segments)
    monkeypatch.setattr(train_module, "split_recording", lambda *_, **__: parts)
    for config in (TINY, GaussianConfig(window=WINDOW)):
        one_line_error(
            train(held_at_end, config, device="cpu"), "no usable autocovariance"
        )


def test_unknown_device(recording):
    one_line_error(train(recording, TINY, device="abacus"), "abacus")


# -- recordings larger than a block --------------------------------------------------


def test_memory_mapped_recording_in_small_blocks(quick, tmp_path, monkeypatch):
    x = coloured_noise(300 * WINDOW, seed=4)
    np.save(tmp_path / "noise.npy", x)
    monkeypatch.setattr(series, "IN_MEMORY_SAMPLES", 1000)
    mapped = read_recordings([tmp_path / "noise.npy"], sample_rate=SAMPLE_RATE)
    assert isinstance(mapped.segments[0].values, series.LazySeries)
    config = change(steps=4, tick=4, warmup_steps=2)
    monkeypatch.setattr(contract, "BLOCK", 10**9)
    whole_records, whole = finish(
        train(as_recording(x, sample_rate=SAMPLE_RATE), config, device="cpu")
    )
    monkeypatch.setattr(contract, "BLOCK", 64 * WINDOW)
    largest = []
    blocks = uncertainty.iterate_blocks

    def watch(recording: Recording, *, block: int):
        for part in blocks(recording, block=block):
            largest.append(len(part))
            yield part

    monkeypatch.setattr(uncertainty, "iterate_blocks", watch)
    _, prior = finish(train(mapped, config, device="cpu"))
    assert max(largest) == 64 * WINDOW and len(largest) > 4
    # Blocks lose only the pairs across their ends.
    torch.testing.assert_close(
        prior.autocovariance, whole.autocovariance, rtol=0, atol=0.05
    )
    assert prior.level == pytest.approx(whole.level, abs=1e-9)
    assert prior.metadata["data_hash"] == whole.metadata["data_hash"]
    assert prior.metadata["n_training_samples"] == whole.metadata["n_training_samples"]
    (record,) = whole_records
    assert math.isfinite(record["critic_distance"])


def test_gaps_are_left_out(quick):
    x = coloured_noise(300 * WINDOW, seed=4)
    x[1000:1100] = np.nan
    x[np.random.default_rng(0).choice(len(x), 20, replace=False)] = np.nan
    recording = as_recording(x, sample_rate=SAMPLE_RATE)
    (record,), prior = finish(
        train(recording, change(steps=4, tick=4, warmup_steps=2), device="cpu")
    )
    assert all(math.isfinite(v) for v in record.values() if not isinstance(v, str))
    assert prior.sample(3).isfinite().all()


# -- the API -------------------------------------------------------------------------


def test_train_noise_takes_arrays(quick, tmp_path):
    x = coloured_noise(100 * WINDOW, seed=4)
    path = tmp_path / "prior.safetensors"
    prior = train_noise(
        x.reshape(2, -1),
        sample_rate=SAMPLE_RATE,
        model="gaussian",
        window=32,
        seed=3,
        device="cpu",
        output=path,
    )
    assert isinstance(prior, GaussianPrior) and prior.window == 32
    assert prior.metadata["seed"] == 3
    loaded = load_prior(path, device="cpu")
    assert torch.equal(loaded.autocovariance, prior.autocovariance)
    covariance = toeplitz(prior.autocovariance)
    assert float(torch.linalg.eigvalsh(covariance)[0]) > 0
    with pytest.raises(SeppriorError, match="gaussian"):
        train_noise(x, sample_rate=SAMPLE_RATE, model="gausian")
    with pytest.raises(SeppriorError, match="sample"):
        train_noise(x, model="gaussian")


def test_frozen_priors_share_nothing_with_the_run(recording):
    trainer = trainer_of(recording, TINY)
    prior = trainer.frozen()
    z = torch.zeros(1, TINY.latent)
    before = prior.decode(z).mean.clone()
    for _ in range(3):
        trainer.advance()
    assert torch.equal(prior.decode(z).mean, before)
    assert not torch.equal(trainer.frozen().decode(z).mean, before)
    alias = freeze(
        trainer.model, trainer.networks.ema_generator, trainer.networks.ema_encoder
    )
    assert not any(p.requires_grad for p in alias.generator.parameters())


def test_running_average_lags_behind(recording):
    trainer = trainer_of(recording, change(ema=0.999))
    start = trainer.networks.ema_generator.project.bias.clone()
    trainer.advance()
    # The first decay is (1 + 1) / (10 + 1): young averages follow closely.
    now = trainer.networks.generator.project.bias
    expected = start + (1 - 2 / 11) * (now - start)
    torch.testing.assert_close(trainer.networks.ema_generator.project.bias, expected)


def test_learning_rate_schedule(recording):
    trainer = trainer_of(recording, change(steps=110, warmup_steps=10))
    rates = {}
    for step in (0, 5, 9):
        trainer.step = step
        trainer.advance()
        rates[step] = trainer.networks.warmup_optimiser.param_groups[0]["lr"]
    assert rates[0] == pytest.approx(TINY.warmup_learning_rate)
    assert rates[0] > rates[5] > rates[9] > TINY.learning_rate
    for step, share in {10: 1.0, 80: 1.0, 95: 0.5, 109: 1 / 30}.items():
        trainer.step = step
        trainer._set_rate()
        for optimiser in (
            trainer.networks.optimiser,
            trainer.networks.critic_optimiser,
        ):
            rate = optimiser.param_groups[0]["lr"]
            assert rate == pytest.approx(share * TINY.learning_rate)


def test_divergence_is_phased_in_while_the_waveform_is_phased_out(recording):
    trainer = trainer_of(recording, change(steps=40, warmup_steps=30))
    objective, weights_seen = trainer._warmup_objective, []

    def seen(white, onehot, kl_weight, reconstruction):
        weights_seen.append((kl_weight, reconstruction))
        return objective(white, onehot, kl_weight, reconstruction)

    trainer._warmup_objective = seen
    for _ in range(30):
        trainer.advance()
    divergence, waveform = np.transpose(weights_seen)
    left = np.maximum(0.0, 1.0 - np.arange(30) / 4)
    assert waveform == pytest.approx(RECONSTRUCTION_WEIGHT * left)
    assert divergence == pytest.approx(np.minimum(1.0, np.arange(30) / 10) * (1 - left))


def test_the_error_of_the_waveform_adds_to_the_bound(recording):
    trainer = trainer_of(recording, TINY)
    white, onehot = trainer.model.crops()
    totals = []
    for weight in (0.0, 2.0):
        trainer.model.rng.manual_seed(3)
        totals.append(float(trainer._bound(white, onehot, 1.0, weight)[0].detach()))
    # Before training the decoded mean is small beside the noise.
    assert totals[1] - totals[0] == pytest.approx(2.0, rel=0.5)


def test_an_output_folder_that_does_not_exist_is_made(recording, quick, tmp_path):
    path = Path(tmp_path / "new" / "prior.safetensors")
    finish(train(recording, GaussianConfig(window=WINDOW), output=path))
    assert load_prior(path).window == WINDOW


def test_saved_and_returned_prior_are_the_same(uninterrupted, tmp_path):
    _, prior, whole = uninterrupted
    stored = load_prior(whole, device="cpu")
    assert same(weights(stored), weights(prior))
    copy = tmp_path / "copy.safetensors"
    save_prior(stored, copy)
    assert same(weights(load_prior(copy, device="cpu")), weights(prior))


def test_a_training_state_that_does_not_fit_is_one_line(tmp_path, recording):
    """Whole by its checksum, but not what a training left."""
    output = tmp_path / "p.safetensors"
    stream = train(recording, TINY, device="cpu", output=output)
    next(stream)
    stream.close()
    tensors, header = load_tensors(resume_path(output))
    plain = header["training_state"]
    kept = [item for item in plain["dict"] if item[0] in ("config", "data_hash")]
    names = [key for key, _ in plain["dict"] if key not in ("config", "data_hash")]
    for others in ([], [[key, {"value": None}] for key in names]):
        strange = {"training_state": {"dict": [*kept, *others]}}
        save_tensors(tensors, strange, resume_path(output))
        with pytest.raises(SeppriorError, match="train from the start") as caught:
            next(train(recording, TINY, device="cpu", output=output, resume=True))
        assert "\n" not in str(caught.value)
