"""Priors of waveforms and of magnitudes, hardly trained: inspected, and in separation.

What generators of waveforms do in separation is in `test_waveform_training`.
"""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from sepprior.checkpoint import save_prior
from sepprior.cli import main
from sepprior.data import as_recording, consecutive_windows
from sepprior.fidelity import inspect_prior
from sepprior.nets import LSTMGenerator
from sepprior.priors import (
    GeneratorPrior,
    LatentSpace,
    Reach,
    SpecGANPrior,
    unit_ratio,
)
from sepprior.separation import separate
from sepprior.training import train
from sepprior.training import train as train_function
from tests.conftest import SAMPLE_RATE, TINY, WINDOW, coloured_noise, finish
from tests.test_waveform_training import MODELS, tiny

train_module = __import__(train_function.__module__, fromlist=["train"])
MAGNITUDE = dataclasses.replace(TINY, channels="magnitude", steps=4, tick=4)


@pytest.fixture
def quick(monkeypatch):
    """Leave out the final validation, and claim that the prior is of use."""
    facts = {"heldout": {"gain": 1.0, "gain_stderr": 0.1}}
    monkeypatch.setattr(train_module, "validate", lambda *_, **__: dict(facts))
    monkeypatch.setattr("sepprior.training.range_error.MOST_FIT", 8)


@pytest.mark.parametrize("model", [*MODELS, "magnitude"])
def test_inspection(model, recording, quick, tmp_path):
    config = MAGNITUDE if model == "magnitude" else tiny(model, steps=2)
    _, prior = finish(train(recording, config, device="cpu"))
    other = as_recording(coloured_noise(20 * WINDOW, seed=9), sample_rate=SAMPLE_RATE)
    found = inspect_prior(prior, consecutive_windows(other, window=WINDOW))
    assert found.prior_name == ("specgan" if model == "magnitude" else model)
    for m in found.measures.values():
        assert all(map(math.isfinite, (m.error, m.floor, m.limit))), m.title
    assert found.measures["sd"].generated == pytest.approx(1.0, abs=0.35)
    assert found.measures["mean"].within
    # Two or four steps teach nothing: at best it is the stationary Gaussian, at worst
    # (phases that cannot be inverted, random magnitudes) a quarter of a nat behind.
    assert found.nll_gain == pytest.approx(-0.15, abs=0.25)
    assert 0 < found.nll_gain_stderr < 0.1
    if model == "magnitude":
        assert {"hop_variance", "heldout_nll"} <= {
            name for name, m in found.measures.items() if not m.within
        }
        assert "worse than GLS" in found.verdict
    report = found.report()
    assert "nan" not in report and "inf" not in report
    assert all(m.title in report for m in found.measures.values())
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["heldout_nll"] == found.nll
    for m in read["measures"].values():
        assert None not in (m["error"], m["floor"], m["limit"])
    found.plot(tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000


def test_magnitudes_in_separation(recording, quick):
    """In noise of its own it adds to GLS, in recorded noise it steps back."""
    _, prior = finish(train(recording, MAGNITUDE, device="cpu"))
    assert isinstance(prior, SpecGANPrior) and not prior.complex_mode
    t = np.arange(WINDOW) / SAMPLE_RATE
    signal = 2 * np.sin(2 * np.pi * 9.0 * t + 1.0)
    noises = {
        "own": prior.sample(8, generator=torch.Generator().manual_seed(0)).numpy(),
        "recorded": coloured_noise(8 * WINDOW, seed=5).reshape(8, WINDOW),
    }
    evidence = {}
    for kind, noise in noises.items():
        result = separate(noise + signal, prior, fmin=5, fmax=20, starts=2)
        evidence[kind] = result.diagnostics["log_evidence_over_gls"]
        used = evidence[kind] > 0
        expected = np.where(used, "specgan", "gls")
        np.testing.assert_array_equal(result.diagnostics["method"], expected)
        gls = result.baselines["gls"]
        for name, truth in (("amplitude", 2.0), ("frequency", 9.0)):
            found = result.parameters[name]
            assert (np.abs(found.value - truth) < 4 * found.stderr).all()
            assert (found.stderr < 0.35).all()
            np.testing.assert_array_equal(found.value[~used], gls[name].value[~used])
            assert (found.stderr <= gls[name].stderr).all()
        # It knows how loud noise is where, but no waveform.
        np.testing.assert_array_equal(result.coherent, prior.level)
    assert (evidence["own"] > 0).sum() >= 4
    assert (evidence["recorded"] < -3).all()


def test_a_label_fixes_the_kind_of_noise(tmp_path, monkeypatch):
    """One kind is four times as loud as the other."""

    def run(*args):
        return CliRunner().invoke(main, [str(arg) for arg in args])

    monkeypatch.chdir(tmp_path)
    window, rng = 64, np.random.default_rng(0)
    quiet, loud = (Reach(0.0, k * unit_ratio(window)) for k in (1.0, 16.0))
    prior = GeneratorPrior(
        "lstm",
        LSTMGenerator(window=window, code=4, width=2, layers=1),
        space=LatentSpace(2, labels=("busy", "idle"), shares=(0.5, 0.5)),
        reach=quiet,
        by_label={"idle": quiet, "busy": loud},
        autocovariance=unit_ratio(window),
        level=0.0,
        sample_rate=30.0,
    )
    save_prior(prior, tmp_path / "p.safetensors")
    for label, sd in (("idle", 1.0), ("busy", 4.0)):
        name = f"{label}.npy"
        result = run("sample", "p.safetensors", "-n", 200, "--label", label, "-o", name)
        assert result.exit_code == 0, result.output
        assert np.load(tmp_path / name).std() == pytest.approx(sd, rel=0.05)
    noise = np.repeat([1.0, 4.0], 30 * window) * rng.standard_normal(60 * window)
    kinds = np.repeat(["idle", "busy"], 30 * window)
    time = np.arange(len(noise)) / 30.0
    table = pd.DataFrame({"time": time, "noise": noise, "label": kinds})
    table.to_csv(tmp_path / "noise.csv", index=False)
    result = run("inspect", "p.safetensors", "noise.csv", "--label", "busy")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "p.inspect.json").read_text())
    assert found["n_windows"] == 30
    assert found["measures"]["sd"]["within"]
    for command in (["inspect", "p.safetensors"], ["sample", "p.safetensors"]):
        wrong = run(*command, "--label", "off")
        assert wrong.exit_code == 2 and not wrong.stdout
        assert "label 'off' is unknown" in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
