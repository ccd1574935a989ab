"""Generators of waveforms: training, range error, labels, separation."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sepprior.checkpoint import load_prior, save_prior
from sepprior.checkpoint.entries import Entry
from sepprior.checkpoint.parts import read_latent
from sepprior.config import config_from_dict, load_config
from sepprior.data import Recording, Segment, as_recording, iterate_blocks
from sepprior.errors import SeppriorError
from sepprior.nets import LSTMGenerator, WaveformGenerator, weights_in_use
from sepprior.priors import (
    GaussianPrior,
    GeneratorPrior,
    LatentSpace,
    Prior,
    Reach,
    beats_gaussian,
    unit_ratio,
)
from sepprior.priors.labelled import inferred_labels
from sepprior.priors.waveform import WaveformPrior
from sepprior.separation import separate
from sepprior.stationary import autocovariance
from sepprior.training import resume_path, train
from sepprior.training import train as train_function
from sepprior.training.contract import Task
from sepprior.training.labels import Labels, labelled_crops
from sepprior.training.range_error import (
    N_BANDS,
    Effort,
    band_ratio,
    chosen_range_error,
    fit_range_error,
)
from sepprior.training.registry import build_trainer
from sepprior.training.waveform import WaveformTrainer
from sepprior.transforms import toeplitz
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise, finish, timeless

train_module = __import__(train_function.__module__, fromlist=["train"])
MODELS = ["wavegan", "lstm", "gansynth"]
AMPLITUDE = 2.0
SIGNAL = AMPLITUDE * np.sin(2 * np.pi * 9.0 * np.arange(WINDOW) / SAMPLE_RATE + 1.0)
MAGNITUDE = "specgan, magnitude"
SHORT = {
    "specgan": {"warmup_steps": 1, "latent_row": "no", "whitening": "total"},
    MAGNITUDE: {"channels": "magnitude"},
}


def tiny(model, **settings):
    recipe = config_from_dict({"model": model.split(",")[0]})
    small = {"window": WINDOW, "width": 4, "critic_width": 4, "latent": 3, "batch": 8}
    small |= {"steps": 4, "tick": 2, "critic_steps": 2}
    return dataclasses.replace(recipe, **(small | settings))


@pytest.fixture
def quick(monkeypatch):
    """Leave out the final validation."""
    facts = {"heldout": {"gain": 1.0, "gain_stderr": 0.1}}
    monkeypatch.setattr(train_module, "validate", lambda *_, **__: dict(facts))
    monkeypatch.setattr("sepprior.training.range_error.MOST_FIT", 8)
    monkeypatch.setattr("sepprior.training.waveform.EFFORT", Effort(8, 10, 2))
    monkeypatch.setattr(GeneratorPrior, "n_candidates", 4)


def same(a, b):
    return same_weights(network_of(a), network_of(b))


def network_of(prior):
    return prior.network if hasattr(prior, "network") else prior.generator


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def trainer_of(recording, config):
    """A run whose held-out windows are other noise of the same kind."""
    gaussian = finish(
        train(recording, config_from_dict({"model": "gaussian", "window": WINDOW}))
    )[1]
    held = torch.from_numpy(coloured_noise(8 * WINDOW, seed=3)).view(8, WINDOW)
    device = torch.device("cpu")
    task = Task(recording, recording, held, gaussian.to("cpu"), device, {})
    return WaveformTrainer(task, config)


# --- training -------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_train_save_load_sample_separate(model, recording, quick, tmp_path):
    path = tmp_path / "prior.safetensors"
    records, prior = finish(train(recording, tiny(model), device="cpu", output=path))
    assert [r["step"] for r in records] == [2, 4]
    for record in records:
        for name in ("critic_distance", "gradient_penalty", "spectral_loss"):
            assert math.isfinite(record[name])
        # Nothing is learned yet: the range error makes it the Gaussian, nearly, but
        # for phases that cannot be inverted.
        excess = record["heldout_nll"] - record["heldout_nll_gaussian"]
        assert -0.06 < excess < (0.6 if model == "gansynth" else 0.03)
    assert isinstance(prior, Prior) and prior.name == model
    loaded = load_prior(path, device="cpu")
    assert isinstance(loaded, GeneratorPrior) and same(loaded, prior)
    assert loaded.gain == prior.gain and loaded.metadata["range_error"]
    draws = [
        p.sample(500, generator=torch.Generator().manual_seed(0))
        for p in (prior, loaded)
    ]
    assert torch.equal(*draws)
    sd = float(prior.autocovariance[0]) ** 0.5
    assert 0.88 * sd < float(draws[0].std()) < 1.05 * sd
    # In separation like any other prior.
    noise = coloured_noise(4 * WINDOW, seed=5).reshape(4, WINDOW)
    result = separate(noise + SIGNAL, loaded, fmin=5, fmax=20, starts=1)
    answered_by_the_more_probable(result, model)


def answered_by_the_more_probable(result, model):
    """By the joint optimum where its evidence is above that of GLS, else by GLS."""
    used = result.diagnostics["log_evidence_over_gls"] > 0
    expected = np.where(used, model, "gls")
    np.testing.assert_array_equal(result.diagnostics["method"], expected)
    for status, own in zip(result.status, used, strict=True):
        assert ("more probable here than the joint optimum" in status) != own
        assert "adds nothing" not in status
    for name, truth in (("amplitude", AMPLITUDE), ("frequency", 9.0)):
        found, gls = result.parameters[name], result.baselines["gls"][name]
        assert (np.abs(found.value - truth) < 4 * found.stderr).all()
        np.testing.assert_array_equal(found.value[~used], gls.value[~used])
        np.testing.assert_array_equal(found.stderr[~used], gls.stderr[~used])


@pytest.mark.parametrize("model", MODELS)
def test_separation_in_noise_of_the_generator_itself(model, recording, quick):
    """Where nearly all noise is the generator's, GLS is not the answer any more.

    Waveforms of the lstm of four steps are hardly more than a constant, which cannot be
    seen; those of gansynth are too steep in z to be found every time.
    """
    _, trained = finish(train(recording, tiny(model), device="cpu"))
    prior = WaveformPrior(
        trained.waveform,
        n_latent=trained.n_latent,
        range_autocovariance=0.05 * trained.autocovariance,
        autocovariance=trained.autocovariance,
        sample_rate=SAMPLE_RATE,
        level=trained.level,
        dtype=torch.float32,
    )
    rng = torch.Generator().manual_seed(0)
    waves = prior.coherent(torch.randn(8, prior.n_latent, generator=rng)).numpy()
    white = torch.randn(8, WINDOW, generator=rng).double()
    rest = prior.whitener.inverse(white).numpy()
    x = prior.level + waves + rest + SIGNAL
    result = separate(x, prior, fmin=5, fmax=20, starts=1)
    answered_by_the_more_probable(result, "waveform")
    evidence = result.diagnostics["log_evidence_over_gls"]
    assert np.isfinite(evidence).all()
    if model != "gansynth":
        assert (evidence > 30).all()
    if model != "wavegan":
        return
    missed = result.coherent - prior.level - waves
    assert ((missed**2).sum(1) < 0.05 * (waves**2).sum(1)).all()
    own, gls = (
        np.sqrt(np.mean((parameters["amplitude"].value - AMPLITUDE) ** 2))
        for parameters in (result.parameters, result.baselines["gls"])
    )
    assert own < 0.75 * gls


@pytest.mark.parametrize(
    ("recipe", "steps", "sizes"),
    [
        ("wavegan-full", 1, (19_070_000, 17_430_000)),
        ("gansynth-full", 3, None),  # the third step is the first at full size
        ("lstm-full", 1, None),
    ],
)
def test_the_full_recipes_train(recipe, steps, sizes, quick, monkeypatch):
    """The sizes of the files, two windows a step; held-out noise is not inverted."""
    folder = Path(__file__).parent.parent / "configs"
    config = load_config(folder / f"{recipe}.toml")
    small = {"batch": 2, "critic_steps": 1, "steps": steps, "tick": 1}
    config = dataclasses.replace(config, **small, precision="float32", compile=False)
    trainers = []

    def uninverted(prior, windows, **_):
        made = prior.with_reach(Reach(0.5, 0.75 * unit_ratio(config.window)))
        made.metadata["range_error"]["heldout"] = {"gain": 0.0, "gain_stderr": 0.0}
        return made

    def begun(*args, **options):
        trainers.append(build_trainer(*args, **options))
        return trainers[0]

    part, fit = "sepprior.training.waveform", "sepprior.training.range_error"
    monkeypatch.setattr(f"{part}.fit_range_error", uninverted)
    monkeypatch.setattr(f"{fit}.chosen_range_error", uninverted)
    monkeypatch.setattr(f"{part}.laplace_nll", lambda _, windows, **__: windows.sum(1))
    monkeypatch.setattr(f"{part}.SPECTRUM_DRAWS", 4)
    monkeypatch.setattr(train_module, "build_trainer", begun)
    noise = coloured_noise(12 * config.window, seed=0)
    stream = train(as_recording(noise, sample_rate=16000.0), config, device="cpu")
    records, prior = finish(stream)
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    for name in ("critic_distance", "gradient_penalty", "spectral_loss"):
        assert all(math.isfinite(record[name]) for record in records)
    drawn = prior.sample(2)
    assert drawn.shape == (2, config.window) and torch.isfinite(drawn).all()
    if recipe == "gansynth-full":
        assert float(prior.network.grown) == prior.network.plan.stages - 1 == 5
    if sizes is not None:
        for network, size in zip(
            (prior.network, trainers[0].critic), sizes, strict=True
        ):
            count = sum(p.numel() for p in network.parameters())
            assert count == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("model", [*MODELS, *SHORT])
def test_resumed_exactly(model, recording, quick, tmp_path):
    config = tiny(model, keep="best", **SHORT.get(model, {}))
    check_resumed(recording, config, tmp_path)


@pytest.mark.parametrize("model", ["gansynth", *SHORT])
def test_a_training_with_labels_is_resumed_exactly(model, two_states, quick, tmp_path):
    config = tiny(model, **SHORT.get(model, {}))
    resumed = check_resumed(two_states, config, tmp_path)
    assert resumed.metadata["labels"] == ["busy", "idle"]


def check_resumed(recording, config, folder):
    """Interrupted after its first tick, a run ends as the uninterrupted one."""
    paths = folder / "a.safetensors", folder / "b.safetensors"
    records, prior = finish(train(recording, config, device="cpu", output=paths[0]))
    stream = train(recording, config, device="cpu", output=paths[1])
    before = [next(stream)]
    stream.close()
    assert load_prior(paths[1], device="cpu").metadata["unfinished"]
    after, resumed = finish(
        train(recording, config, device="cpu", output=paths[1], resume=True)
    )
    assert timeless(before + after) == timeless(records)
    # Networks, optimisers, random numbers, and what is kept of the best tick.
    first, second = (load_file(resume_path(path)) for path in paths)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert same(resumed, prior)
    return resumed


def test_more_latents_of_a_recurrence(recording, quick, tmp_path):
    """Eight, of which each has its say in the waveform."""
    path = tmp_path / "prior.safetensors"
    config = tiny("lstm", latent=8, width=16, layers=2)
    records, prior = finish(train(recording, config, device="cpu", output=path))
    assert math.isfinite(records[-1]["heldout_nll"])
    loaded = load_prior(path, device="cpu")
    assert loaded.n_latent == 8 and same(loaded, prior)
    derivative = torch.func.jacfwd(loaded.waveform)(torch.zeros(8))
    assert derivative.shape == (WINDOW, 8)
    assert torch.linalg.matrix_rank(derivative) == 8
    t = np.arange(WINDOW) / SAMPLE_RATE
    x = coloured_noise(WINDOW, seed=5) + 20 * np.sin(2 * np.pi * 9.0 * t + 1.0)
    result = separate(x, loaded, fmin=5, fmax=20, starts=1)
    assert float(result.parameters["frequency"].value) == pytest.approx(9.0, abs=0.3)


@pytest.mark.parametrize("model", MODELS)
def test_the_best_tick_is_kept(model, recording, quick, tmp_path, monkeypatch):
    """Not the likeliest, not that of the nearest spectrum, not the last."""
    nll, error = [1.5, 1.2, 1.1, 1.3], [0.0, 2.0, 6.0, 1.0]
    ticks = {}
    report = WaveformTrainer.report

    def seen(self, held):
        record = report(self, held)
        fit, _ = self._glance(held)
        ticks[self.step] = (copy.deepcopy(self.ema), fit.gain, fit.range_error.ratio)
        return record

    def scripted(values):
        return lambda self, *_: values[self.step - 1]

    monkeypatch.setattr(WaveformTrainer, "report", seen)
    monkeypatch.setattr(WaveformTrainer, "_quick_nll", scripted(nll))
    monkeypatch.setattr(WaveformTrainer, "prior_error_db", scripted(error))
    path = tmp_path / "prior.safetensors"
    config = tiny(model, keep="best", tick=1, ema=0.0)
    stream = train(recording, config, device="cpu", output=path)
    for _ in range(3):
        next(stream)
    stream.close()
    stopped = load_prior(path, device="cpu")
    network, gain, ratio = ticks[2]
    assert same_weights(stopped.network, network)
    assert stopped.gain == gain and torch.equal(stopped.range_error.ratio, ratio)
    # The best of before the interruption stays the best.
    _, prior = finish(train(recording, config, device="cpu", output=path, resume=True))
    assert same_weights(prior.network, network)
    assert not same_weights(prior.network, ticks[3][0])
    assert not same_weights(prior.network, ticks[4][0])


@pytest.mark.parametrize("model", ["wavegan", "lstm"])
def test_the_noise_beside_the_generator(model, recording, quick):
    """The critic sees it, it is learned, and the range error's fit starts there."""
    trainer = trainer_of(recording, tiny(model))
    bare = trainer_of(recording, tiny(model, range_noise=0.0))
    assert bare.noise is None and "noise" not in bare.state()["networks"]
    code = trainer.codes(None)
    made, view = trainer._fake(code)
    assert torch.equal(view, made.unsqueeze(1))
    alone, _ = bare._fake(code)
    torch.testing.assert_close(alone, trainer.generator(code), atol=1e-5, rtol=1e-5)
    added = (made - alone).detach()
    variance = float(trainer.noise.autocovariance()[0])
    assert float(added.var()) == pytest.approx(variance, rel=0.5)
    before = trainer.noise.shift.detach().clone()
    trainer.advance()
    assert (trainer.noise.shift != before).all()
    reach = trainer._prior(trainer.ema, {}).reach
    assert reach.absolute and reach.gain == 1.0
    torch.testing.assert_close(reach.ratio, trainer.noise.autocovariance())
    assert not bare._prior(bare.ema, {}).reach.absolute


def test_the_spectrum_that_is_judged_is_the_priors(recording, quick):
    """A generator far too soft, whose range error makes up for it."""
    trainer = trainer_of(recording, tiny("wavegan", keep="best", range_noise=0.0))
    with torch.no_grad():
        for parameter in list(trainer.ema.parameters())[-2:]:
            parameter.mul_(1e-3)
    record = trainer.report(trainer.task.held)
    assert record["spectral_error_db"] > 20.0
    # The likelihood, and the spectral error of 256 windows.
    assert trainer.best_score == pytest.approx(record["heldout_nll"], abs=0.02)
    # Negative control: with a gain it is far too loud.
    glance, _ = trainer._glance(trainer.task.held)
    loud = glance.with_reach(Reach(1e4, unit_ratio(WINDOW)))
    assert trainer.prior_error_db(loud) > 10.0


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "wgan", "spectral": "none"},
        {"loss": "dcgan", "label_smoothing": 0.1, "spectral": "per-sample"},
        {"loss": "lsgan", "precision": "bfloat16"},
        {"loss": "rpgan-r1r2", "latent_distribution": "uniform", "final_decay": 0.0},
        {"post_filter": 9, "phase_shuffle": 2, "window": 100},
        {"augment_shift": True, "augment_noise": 0.1, "augment_mask": 0.2},
        {"augment_stretch": 0.1, "critic_rate_ratio": 2.0, "range_noise": 0.0},
    ],
)
def test_every_setting_trains(settings, recording, quick):
    config = tiny("wavegan", steps=2, **settings)
    (record,), prior = finish(train(recording, config, device="cpu"))
    numbers = [v for v in record.values() if not isinstance(v, str)]
    assert all(math.isfinite(v) for v in numbers)
    assert ("spectral_loss" in record) == (config.spectral != "none")
    penalised = config.loss in ("wgan-gp", "rpgan-r1r2")
    assert ("gradient_penalty" in record) == penalised
    assert prior.sample(2).isfinite().all()


@pytest.mark.parametrize("model", ["wavegan", "gansynth"])
def test_clipped_weights_stay_clipped(model, recording, quick):
    trainer = trainer_of(recording, tiny(model, loss="wgan", weight_clip=0.02))
    trainer.advance()
    for parameter, factor in weights_in_use(trainer.critic):
        largest = factor * float(parameter.detach().abs().max())
        assert largest < 0.02001
        assert parameter.dim() == 1 or largest == pytest.approx(0.02)


def test_divergence_is_reported(recording, quick, monkeypatch):
    from sepprior.training.adversary import Adversary

    step = Adversary.step

    def spoil(self, *args):
        return step(self, *args) | {"critic_distance": math.nan}

    monkeypatch.setattr(Adversary, "step", spoil)
    with pytest.raises(SeppriorError, match="step 1: critic_distance") as error:
        finish(train(recording, tiny("wavegan"), device="cpu"))
    assert "lower learning_rate (now 0.001)" in str(error.value)


def test_waveforms_at_their_bound_stop_the_training(recording, quick, tmp_path):
    """The likelihood, which leaves such a generator out, would not tell."""
    path = tmp_path / "prior.safetensors"
    config = tiny("wavegan", steps=6, tick=6)
    broken = dataclasses.replace(config, learning_rate=0.9)
    with pytest.raises(SeppriorError, match=r"dB louder than the recorded") as error:
        finish(train(recording, broken, device="cpu", output=path))
    assert "lower learning_rate (now 0.9)" in str(error.value)
    assert load_prior(path, device="cpu").sample(2).isfinite().all()
    # Negative control: a step size that is merely high stops nothing.
    high = dataclasses.replace(config, learning_rate=0.02)
    assert len(finish(train(recording, high, device="cpu"))[0]) == 1


def test_loud_lstm_stops_the_training(recording, quick):
    trainer = trainer_of(recording, tiny("lstm"))
    trainer.report(trainer.task.held)
    for parameter in trainer.ema.parameters():
        parameter.data.mul_(100.0)
    with pytest.raises(SeppriorError, match=r"step 0: .* dB louder than the recorded"):
        trainer.report(trainer.task.held)


# --- range error ----------------------------------------------------------------------


class Linear(WaveformGenerator):
    """``g(z) = scale L z``."""

    def __init__(self, matrix, scale=1.0):
        super().__init__()
        self.window = matrix.shape[0]
        self.register_buffer("matrix", matrix.float())
        self.scale = scale

    def forward(self, code):
        return self.scale * code @ self.matrix.mT


def low_rank(n=WINDOW, k=3):
    t = torch.arange(n)
    columns = [torch.sin(2 * math.pi * f * t / n + f) for f in (3.0, 5.0, 8.0)]
    return 1.5 * torch.stack(columns[:k], 1)


def made_of(matrix, scale, n, *, seed=0):
    """Prior and noise ``x = L z + e``, e white of unit variance."""
    size, k = matrix.shape
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=rng).double()
    noise = z @ matrix.double().mT + torch.randn(n, size, generator=rng).double()
    # The stationary autocovariance of the sum.
    dense = matrix.double() @ matrix.double().mT + torch.eye(size).double()
    r = torch.stack([dense.diagonal(i).mean() for i in range(size)])
    prior = GeneratorPrior(
        "wavegan",
        Linear(matrix / float(r[0]) ** 0.5, scale),
        space=LatentSpace(k),
        reach=Reach(1.0, unit_ratio(size)),
        autocovariance=r,
        level=0.0,
        sample_rate=1.0,
    )
    return prior, noise


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_gain_and_error_of_a_known_generator(scale):
    """128 windows of 3 latents: the gain's standard error is about 3 %."""
    prior, noise = made_of(low_rank(), scale, 128)
    fitted = fit_range_error(prior, noise, effort=Effort(8, 30, 8))
    assert fitted.gain * scale == pytest.approx(1.0, abs=0.2)
    error = fitted.range_error
    whiten = error.forward(torch.eye(WINDOW, dtype=torch.float64))
    covariance = torch.linalg.inv(whiten @ whiten.mT)
    # White noise of unit variance is left of a recording with 4.4. Short windows
    # cannot resolve the lines, so that part of them stays in the error.
    assert float(prior.autocovariance[0]) == pytest.approx(4.4, abs=0.05)
    assert 0.9 < float(covariance.diagonal().mean()) < 1.6
    # The likelihood beats the stationary Gaussian's by far on other noise.
    _, other = made_of(low_rank(), scale, 16, seed=1)
    own = float(fitted.heldout_nll(other).mean()) / WINDOW
    flat = prior.with_reach(Reach(0.0, unit_ratio(WINDOW)))
    assert own < float(flat.heldout_nll(other).mean()) / WINDOW - 0.02


@pytest.mark.statistical
def test_a_useless_generator_becomes_the_stationary_gaussian():
    """White noise, and a generator of something else: gain below 0.2."""
    prior, _ = made_of(low_rank(), 1.0, 1)
    rng = torch.Generator().manual_seed(2)
    noise = torch.randn(64, WINDOW, generator=rng).double()
    white = GeneratorPrior(
        "wavegan",
        prior.network,
        space=LatentSpace(3),
        reach=Reach(1.0, unit_ratio(WINDOW)),
        autocovariance=unit_ratio(WINDOW),
        level=0.0,
        sample_rate=1.0,
    )
    fitted = fit_range_error(white, noise, effort=Effort(8, 30, 6))
    assert abs(fitted.gain) < 0.25
    own = float(fitted.heldout_nll(noise).mean()) / WINDOW
    exact = 0.5 * math.log(2 * math.pi * math.e)
    assert own == pytest.approx(exact, abs=0.05)
    # Negative control: taken at its word, it does harm.
    naive = white.with_reach(Reach(1.0, unit_ratio(WINDOW)))
    assert float(naive.heldout_nll(noise).mean()) / WINDOW > own + 0.01


class Steep(WaveformGenerator):
    """``g(z) = sqrt 2 sin(30 M z)``: the right variance, too steep to be inverted."""

    def __init__(self, matrix):
        super().__init__()
        self.window = matrix.shape[0]
        self.register_buffer("matrix", matrix.float())

    def forward(self, code):
        return math.sqrt(2.0) * torch.sin(30.0 * code @ self.matrix.mT)


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_generator_of_the_noise_is_kept(scale):
    """Its score, by halves that fitted nothing, is that by noise of another record."""
    prior, noise = made_of(low_rank(), scale, 64)
    chosen = chosen_range_error(prior, noise, effort=Effort(8, 30, 6))
    # Expectation maximisation is slow where little is left: 0.77 after 24 rounds.
    assert 0.6 < chosen.gain * scale < 1.1
    facts = chosen.metadata["range_error"]
    assert facts["explained"] > 0.1 and facts["heldout"]["windows"] == 32
    _, fresh = made_of(low_rank(), scale, 64, seed=1)
    flat = prior.with_reach(Reach(0.0, unit_ratio(WINDOW)))
    difference = flat.heldout_nll(fresh) - chosen.heldout_nll(fresh)
    gain = float(difference.mean()) / WINDOW
    assert gain > 0.02
    error = facts["heldout"]["gain_stderr"]
    assert facts["heldout"]["gain"] == pytest.approx(gain, abs=3 * error)


def test_what_is_stored_is_the_score_of_other_windows(recording, monkeypatch):
    """Not that of the windows that the range error was fitted to."""
    monkeypatch.setattr("sepprior.training.waveform.EFFORT", Effort(8, 10, 2))
    monkeypatch.setattr(
        "sepprior.training.validate.measure_calibration",
        lambda *_, **__: {"gls": {"level": [0.0, 0.05]}},
    )
    _, prior = finish(train(recording, tiny("wavegan", steps=2), device="cpu"))
    held = prior.metadata["heldout"]
    assert held == prior.metadata["range_error"]["heldout"]
    assert held["gain"] == 0.0 and not beats_gaussian(held)
    # Negative control: rounding differs from it by the same in every window.
    assert not beats_gaussian(held | {"gain": 9e-8, "gain_stderr": 1e-8})
    assert beats_gaussian(held | {"gain": 9e-4, "gain_stderr": 1e-4})


class Pulses(WaveformGenerator):
    """A pulse every 21.3 samples whose phase is the first latent's quantile."""

    def __init__(self, sd):
        super().__init__()
        self.window, self.sd = WINDOW, sd

    def forward(self, code):
        phase = torch.special.ndtr(code[..., :1])
        cycle = (torch.arange(WINDOW) / 21.3 + phase) % 1.0 - 0.5
        return (3.0 * torch.exp(-0.5 * (cycle / 0.06) ** 2) - 0.4512) / self.sd


@pytest.mark.statistical
def test_what_a_generator_of_pulses_leaves_has_a_spectrum_of_its_own():
    """White noise of 0.3 beneath pulses, not a smooth share of their spectrum."""
    rng = torch.Generator().manual_seed(0)
    pulses = Pulses(1.0)(torch.randn(4000, 2, generator=rng)).double()
    noise = pulses + 0.3 * torch.randn(4000, WINDOW, generator=rng).double()
    recording = as_recording(noise.numpy(), sample_rate=1.0)
    level, covariance = autocovariance(
        iterate_blocks(recording, block=2**20), n_lags=WINDOW
    )
    prior = GeneratorPrior(
        "lstm",
        Pulses(float(covariance[0]) ** 0.5),
        space=LatentSpace(2),
        reach=Reach(1.0, unit_ratio(WINDOW)),
        autocovariance=covariance,
        level=level,
        sample_rate=1.0,
    )
    chosen = chosen_range_error(prior, noise[:64])
    assert chosen.reach.absolute and chosen.gain == pytest.approx(1.0, abs=0.05)
    left = chosen.range_error
    whiten = left.forward(torch.eye(WINDOW, dtype=torch.float64))
    variance = torch.linalg.inv(whiten @ whiten.mT).diagonal().mean()
    assert float(variance) == pytest.approx(0.09, rel=0.1)
    fresh = noise[-100:]
    own = float(chosen.heldout_nll(fresh).mean())
    # The phase integrated out on a grid; the Laplace approximation costs 0.001.
    phases = torch.special.ndtri((torch.arange(4000).double() + 0.5) / 4000)
    waves = Pulses(1.0)(phases[:, None].float()).double() - level
    logs = -0.5 * torch.cdist(fresh - level, waves).square() / 0.09
    exact = 0.5 * WINDOW * math.log(2 * math.pi * 0.09) + math.log(4000)
    exact = float((exact - logs.logsumexp(1)).mean())
    assert own == pytest.approx(exact, abs=0.005 * WINDOW)
    # Negative control: as a ratio to the recording's lines it is far from that.
    relative = float(fit_range_error(prior, noise[:64]).heldout_nll(fresh).mean())
    assert relative > exact + 0.1 * WINDOW
    held = chosen.metadata["range_error"]["heldout"]
    assert held["heldout_nll"] == pytest.approx(exact / WINDOW, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_generator_that_does_harm_is_left_out(seed):
    """What remains is the stationary Gaussian to the last digit."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(48, WINDOW, generator=rng).double()
    prior = GeneratorPrior(
        "wavegan",
        Steep(torch.randn(WINDOW, 3, generator=rng)),
        space=LatentSpace(3),
        reach=Reach(1.0, unit_ratio(WINDOW)),
        autocovariance=unit_ratio(WINDOW),
        level=0.0,
        sample_rate=1.0,
    )
    effort = Effort(8, 30, 2)
    chosen = chosen_range_error(prior, noise, effort=effort)
    assert chosen.gain == 0.0
    assert torch.equal(chosen.range_error.ratio, unit_ratio(WINDOW))
    held = chosen.metadata["range_error"]["heldout"]
    assert (held["gain"], held["gain_stderr"]) == (0.0, 0.0)
    assert not beats_gaussian(held)
    gaussian = GaussianPrior(unit_ratio(WINDOW), level=0.0, sample_rate=1.0)
    expected = gaussian.heldout_nll(noise)
    found = chosen.heldout_nll(noise).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    # Negative control: the fit alone would have kept it.
    fitted = fit_range_error(prior, noise[:24], effort=effort)
    assert fitted.heldout_nll(noise[24:]).mean() > expected[24:].mean() + 0.1


def test_the_band_ratio_of_known_noise():
    rng = torch.Generator().manual_seed(0)
    white = torch.randn(1, 400, WINDOW, generator=rng).double()
    ratio = band_ratio(white)
    assert float(ratio[0]) == pytest.approx(1.0, abs=0.05)
    assert float(ratio[1:].abs().max()) < 0.05
    # Twice the amplitude is four times the variance; any ratio is a covariance.
    torch.testing.assert_close(band_ratio(2 * white), 4 * ratio)
    spiky = torch.fft.irfft(
        torch.fft.rfft(white) * torch.linspace(0, 3, WINDOW // 2 + 1), WINDOW
    )
    assert float(torch.linalg.eigvalsh(toeplitz(band_ratio(spiky)))[0]) > 0


@pytest.mark.parametrize("windows", [4, 16, 64])
def test_the_band_ratio_resolves_what_is_there(windows):
    """Three lines in white noise bin by bin, white noise alone in bands."""
    rng = torch.Generator().manual_seed(windows)
    white = torch.randn(1, windows, WINDOW, generator=rng).double()
    phase = 2 * math.pi * torch.rand(3, windows, 1, generator=rng).double()
    turns = 2 * math.pi * torch.arange(WINDOW).double() / WINDOW
    lines = sum(torch.sin(k * turns + phase[i]) for i, k in enumerate((5, 11, 23)))
    density = torch.fft.rfft(band_ratio(white + 2 * lines), 4 * WINDOW).real
    density = 2 * density - band_ratio(white + 2 * lines)[0]
    assert all(float(density[4 * k]) > 20.0 for k in (5, 11, 23))
    between = density[4 * 8], density[4 * 17], density[4 * 27]
    assert all(float(level) < 3.0 for level in between)
    # Negative control: nothing is resolved where there is nothing.
    flat = band_ratio(white)
    assert float(flat[0]) == pytest.approx(1.0, abs=4 / math.sqrt(windows * WINDOW))
    assert float(flat[1:].square().sum()) < 2 * N_BANDS / (windows * WINDOW)


# --- labels ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_states():
    quiet = Segment(coloured_noise(150 * WINDOW, seed=1), label="idle")
    loud = Segment(4.0 * coloured_noise(50 * WINDOW, seed=2), label="busy")
    return Recording((quiet, loud), SAMPLE_RATE)


def test_labels_follow_their_segments(two_states):
    labels = Labels.of(two_states)
    assert labels.names == ("busy", "idle")
    assert labels.shares == pytest.approx((0.25, 0.75))
    rng = torch.Generator().manual_seed(0)
    x, onehot = labelled_crops(two_states, labels, window=WINDOW, n=200, rng=rng)
    assert onehot is not None
    sd = (x - x.mean(-1, keepdim=True)).std(-1)
    assert float(sd[onehot[:, 0] == 1].min()) > float(sd[onehot[:, 1] == 1].max())
    assert Labels.of(as_recording(x.numpy(), sample_rate=1.0)) == Labels()


def test_the_latent_space_draws_labels_in_their_shares():
    space = LatentSpace(2, labels=("a", "b", "c"), shares=(0.2, 0.5, 0.3))
    assert space.n_latent == 3
    z = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    code = space.code(z)
    assert code.shape == (20000, 5)
    torch.testing.assert_close(code[:, :2], z[:, :2])
    found = code[:, 2:].mean(0)  # standard error 0.0035
    assert found.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    turns = space.numbers(space.with_labels_by_turns(torch.zeros(6, 1, 2)))
    assert turns[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    each = [int(space.numbers(z)) for z in space.under_each_label(torch.zeros(2))]
    assert each == [0, 1, 2]
    # -log p(label) beside the latent's energy.
    z = space.under_each_label(torch.ones(2))[1]
    assert float(space.energy(z)) == pytest.approx(1.0 - math.log(0.5), rel=1e-5)
    fixed = space.fixed("c")
    assert fixed.n_latent == 2
    assert fixed.code(torch.zeros(2)).tolist() == [0, 0, 0, 0, 1]
    assert float(fixed.energy(torch.ones(2))) == 1.0
    assert read_latent(Entry(space.to_dict(), "latent")) == space
    with pytest.raises(SeppriorError, match="labels it knows: 'a', 'b', 'c'"):
        space.fixed("d")


def test_the_inferred_label_is_that_of_most_windows():
    network = torch.nn.Linear(4, WINDOW)
    space = LatentSpace(2, labels=("a", "b"), shares=(0.5, 0.5))
    prior = GeneratorPrior(
        "wavegan",
        network,
        space=space,
        reach=Reach(1.0, unit_ratio(WINDOW)),
        autocovariance=torch.eye(WINDOW)[0].double(),
        level=0.0,
        sample_rate=SAMPLE_RATE,
    )
    z = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    z = torch.stack([z, z, z], -1)
    found = inferred_labels(prior, z)
    assert found is not None and found.tolist() == ["b", "a"]
    assert inferred_labels(prior.with_label("a"), z[..., :2]) is None
    assert inferred_labels(prior, None) is None


@pytest.mark.parametrize("model", [*MODELS, *SHORT])
def test_every_model_takes_labels(model, two_states, quick, tmp_path):
    settings = {"warmup_steps": 1} if model == "specgan" else SHORT.get(model, {})
    path = tmp_path / "prior.safetensors"
    config = tiny(model, steps=2, **settings)
    _, prior = finish(train(two_states, config, device="cpu", output=path))
    loaded = load_prior(path, device="cpu")
    assert loaded.metadata["labels"] == ["busy", "idle"]
    assert loaded.n_latent == 4 and prior.n_latent == 4
    if isinstance(loaded, GeneratorPrior):
        errors_follow_labels(loaded)
    busy = loaded.with_label("busy")  # pyright: ignore[reportAttributeAccessIssue]
    assert busy.n_latent == 3 and busy.decode(torch.zeros(2, 3)).mean.shape[0] == 2
    assert busy.heldout_nll(prior.sample(2)).isfinite().all()
    x = 4.0 * coloured_noise(WINDOW, seed=7)
    for label in (None, "busy") if model in ("wavegan", *SHORT) else ():
        result = separate(x, loaded, fmin=5, fmax=20, starts=1, label=label)
        assert np.isfinite(result.covariance).all()
        told = result.diagnostics.get("inferred_label")
        assert told in (("busy", "idle") if label is None else (None,))
    with pytest.raises(SeppriorError, match="label 'off' is unknown"):
        separate(x, loaded, label="off")
    with pytest.raises(SeppriorError, match="trained without"):
        separate(x, unlabelled(loaded), label="busy")


def errors_follow_labels(shared):
    """One state is four times louder, which a generator of two steps cannot know."""
    states = {name: shared.with_label(name) for name in ("busy", "idle")}
    sd = {
        name: float(p.sample(400, generator=torch.Generator().manual_seed(0)).std())
        for name, p in states.items()
    }
    assert sd["busy"] / sd["idle"] == pytest.approx(4.0, rel=0.15)
    for name, factor in (("busy", 4.0), ("idle", 1.0)):
        noise = factor * coloured_noise(20 * WINDOW, seed=9).reshape(20, WINDOW)
        nll = {
            k: float(p.heldout_nll(torch.from_numpy(noise)).mean()) / WINDOW
            for k, p in {**states, "shared": shared}.items()
        }
        other = "idle" if name == "busy" else "busy"
        assert nll[name] < nll[other] - 0.5
        assert nll[name] < nll["shared"] - 0.1
        # What decides whether separation relies on it is of the label as well.
        assert beats_gaussian(states[name].metadata["heldout"])
    again = states["busy"].with_label(None)
    assert again.gain == shared.gain
    assert torch.equal(again.range_error.ratio, shared.range_error.ratio)


def test_a_range_error_by_label_is_stored(tmp_path):
    prior, _ = made_of(low_rank(), 1.0, 1)
    ratio = 2.0 * unit_ratio(WINDOW)
    labelled = GeneratorPrior(
        "lstm",
        LSTMGenerator(window=WINDOW, code=5, width=4, layers=1),
        space=LatentSpace(3, labels=("a", "b"), shares=(0.5, 0.5)),
        reach=Reach(0.5, unit_ratio(WINDOW)),
        by_label={"b": Reach(0.25, ratio, absolute=True)},
        autocovariance=prior.autocovariance,
        level=0.0,
        sample_rate=1.0,
    )
    path = tmp_path / "prior.safetensors"
    save_prior(labelled, path)
    loaded = load_prior(path, device="cpu")
    assert isinstance(loaded, GeneratorPrior)
    assert (loaded.gain, loaded.with_label("a").gain) == (0.5, 0.5)
    assert loaded.with_label("b").reach.absolute and not loaded.reach.absolute
    assert loaded.with_label("b").gain == 0.25
    assert torch.equal(loaded.with_label("b").range_error.ratio, ratio)


def unlabelled(prior):
    from sepprior.priors import GaussianPrior

    return GaussianPrior(
        prior.autocovariance, level=prior.level, sample_rate=prior.sample_rate
    )


def test_saved_with_labels_needs_the_newer_format(two_states, quick, tmp_path):
    from sepprior.checkpoint import load_tensors

    path = tmp_path / "prior.safetensors"
    config = tiny("specgan", steps=1, warmup_steps=1, flow_layers=0)
    _, prior = finish(train(two_states, config, device="cpu"))
    save_prior(prior, path)
    assert load_tensors(path)[1]["format_version"] == 4  # it has a loudest bin
    prior.statistics = dataclasses.replace(prior.statistics, loudest=math.inf)
    save_prior(prior, path)
    assert load_tensors(path)[1]["format_version"] == 2
