"""Every example runs in a tiny form, draws its picture and gets it right."""

import dataclasses
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import sepprior
from sepprior.data import as_recording
from sepprior.training import train
from tests.conftest import TINY

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))

TOOLS = ("make_example", "throughput", "training_speed", "long_record", "judge_priors")
"""What makes or measures things, instead of showing one idea."""


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Run ``main`` of an example in an empty folder; the picture must appear."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    before = matplotlib.get_backend()
    matplotlib.use("agg")

    def run(name, *arguments):
        main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
        found = main([*arguments, "-o", "picture.png"])
        assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
        return found

    yield run
    matplotlib.use(before)


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_are_short(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert name in TOOLS or len(lines) < 70


def test_first_steps(example):
    result = example("first_steps")
    assert result.parameters["frequency"].value == pytest.approx(3.67, abs=0.1)


def test_own_csv(example, tmp_path):
    result = example("own_csv", "--fmin", "2", "--fmax", "20", "--window", "100")
    assert 2 < result.parameters["frequency"].value < 5
    t = np.arange(3000) / 100
    rng = np.random.default_rng(0)
    for name, values in (
        ("noise.csv", rng.normal(0, 0.1, 3000)),
        ("run.csv", np.sin(2 * np.pi * 5 * t[:200]) + rng.normal(0, 0.1, 200)),
    ):
        rows = zip(t, values, strict=False)
        lines = ["time,volts", *(f"{a:.4f},{b:.6f}" for a, b in rows)]
        (tmp_path / name).write_text("\n".join(lines))
    result = example("own_csv", "noise.csv", "run.csv", "--window", "100")
    assert result.parameters["frequency"].value == pytest.approx(5, abs=0.05)


def test_ligo_line(example, tmp_path):
    found = example("ligo_line")
    assert np.abs(found.value - 331.9).max() < 1
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(1)
    t = np.arange(16 * 4096) / 4096
    x = rng.normal(0, 1, t.size) + 0.5 * np.sin(2 * np.pi * 331.9 * t)
    with h5py.File(tmp_path / "strain.hdf5", "w") as file:
        strain = file.create_dataset("strain/Strain", data=1e-21 * x)
        strain.attrs["Xspacing"] = 1 / 4096
    found = example("ligo_line", "strain.hdf5")
    assert np.abs(found.value - 331.9).max() < 1


def test_bursts(example):
    errors = example("bursts", "--measurements", "12")
    rms = {name: np.sqrt(np.mean(error**2)) for name, error in errors.items()}
    assert rms["prior"] < rms["gls"]


def test_many_to_table(example, tmp_path):
    table = example("many_to_table", "--count", "6")
    assert len(table) == 6 and (tmp_path / "many.csv").exists()
    truth = 0.5 + 0.1 * np.arange(6)
    assert np.abs(table["amplitude"] - truth).max() < 0.5


def test_custom_signal(example):
    result = example("custom_signal")
    assert result.parameters["centre"].value == pytest.approx(0.55, abs=0.02)


def test_own_generator(example):
    result = example("own_generator")
    assert result.parameters["frequency"].value == pytest.approx(1.3, abs=0.1)


def test_compare_priors(example):
    bars = example("compare_priors", "--measurements", "10")
    assert bars["example_prior"][0] < bars["gaussian"][0]


def test_throughput():
    command = [sys.executable, str(EXAMPLES / "throughput.py")]
    done = subprocess.run(
        [*command, "--batch", "3", "--repeat", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    row = done.stdout.splitlines()[-1].split()
    assert row[0] == "3" and all(float(value) > 0.0 for value in row[1:5])


def test_training_speed(tmp_path):
    script = EXAMPLES / "training_speed.py"
    recipe = tmp_path / "small.toml"
    sizes = "window = 64\nlatent = 4\nwidth = 4\ncritic_width = 4\n"
    recipe.write_text('model = "specgan"\n' + sizes)
    options = ["--config", str(recipe), "--steps", "1", "--batch", "4"]
    done = subprocess.run(
        [sys.executable, str(script), "--no-compile", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    head, _, plain, mixed = done.stdout.splitlines()
    assert head.startswith("small.toml: batch 4, 5 critic steps, ")
    assert plain.split()[:2] == ["float32", "no"] and plain.split()[-1] == "1.00"
    assert mixed.split()[:2] == ["bfloat16", "no"]
    assert all(float(value) > 0.0 for value in plain.split()[2:4])


def test_operations_are_counted_in_both_directions():
    """Of a layer's product forward, by its weights and by its input backward."""
    counter = runpy.run_path(str(EXAMPLES / "training_speed.py"))["Operations"]()
    layer = torch.nn.Linear(3, 5, bias=False)
    x = torch.ones(7, 3, requires_grad=True)
    with counter:
        layer(x).square().sum().backward()
    assert counter.total == 3 * 2 * (7 * 3 * 5)


def test_long_record():
    command = [sys.executable, str(EXAMPLES / "long_record.py"), "--samples", "30000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("30000 samples, prior gaussian: ")
    true, found = (float(lines[1].split()[i]) for i in (1, 4))
    assert found == pytest.approx(true, rel=1e-4)
    assert lines[2] == "status: ok"


def test_judge_priors(tmp_path):
    command = [sys.executable, str(EXAMPLES / "judge_priors.py"), "--folder"]
    options = [str(tmp_path), "--scenario", "white", "--model", "gaussian"]
    runs = [
        subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    row = runs[0].stdout.splitlines()[1].split()
    assert row[:3] == ["gaussian", "white", "0"]
    assert float(row[3]) < 0.6 and float(row[-4]) == pytest.approx(0.0, abs=1e-3)
    assert -0.002 < float(row[-1]) < 0.0  # estimated from the training record
    # The second run reads what the first one trained.
    assert (tmp_path / "gaussian-white-s0.safetensors").exists()
    assert runs[1].stdout == runs[0].stdout


def test_an_interrupted_training_is_finished_before_it_is_judged(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    judge = importlib.import_module("judge_priors")
    recipe = dataclasses.replace(TINY, seed=0)
    monkeypatch.setattr(judge, "config_from_dict", lambda table: recipe)
    path = tmp_path / "specgan-white-s0.safetensors"
    noise = judge.noise_record("white", 10.0, judge.TRAINING, 0)
    begun = train(as_recording(noise, sample_rate=30.0), recipe, output=path)
    next(begun)
    begun.close()
    assert "unfinished" in sepprior.load_prior(path).metadata
    prior = judge.prior_of(tmp_path, "white", "specgan", 0, 10.0)
    assert "unfinished" not in prior.metadata and "heldout" in prior.metadata
