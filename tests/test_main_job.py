"""The main job, end to end, as a newcomer does it: files in, files out."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import sepprior
from sepprior.cli.separate import BUNDLED_PRIOR, PRIOR_VARIABLE
from sepprior.signals import wrap_phase
from tests.conftest import SAMPLE_RATE, coloured_noise

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "measurement.csv"
NAMES = ("amplitude", "frequency", "phase", "bias")


def command(*arguments, cwd):
    """`python -m sepprior` in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sepprior", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "make_example.py"
    spec = importlib.util.spec_from_file_location("make_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_separate_the_bundled_example(tmp_path, monkeypatch):
    monkeypatch.delenv(PRIOR_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = command("separate", EXAMPLE, "-o", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bundled" in done.stderr
    # Each of these takes a second or more to import.
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported and "matplotlib.figure" in imported
    slow = {"torch._dynamo", "scipy.stats", "matplotlib.pyplot"}
    assert not imported & slow
    assert "+/- stderr" in done.stdout
    fit = json.loads((tmp_path / "measurement.fit.json").read_text())
    truth = json.loads(EXAMPLE.with_suffix(".truth.json").read_text())
    assert set(truth) == set(fit["parameters"]) == set(NAMES)
    for name, true in truth.items():
        found = fit["parameters"][name]
        assert abs(found["value"] - true) < 4 * found["stderr"], name
    assert {"gls", "robust"} == set(fit["baselines"])
    gls = fit["baselines"]["gls"]
    # What the prior is for: much narrower intervals than least squares.
    for name in ("amplitude", "frequency", "phase"):
        assert fit["parameters"][name]["stderr"] < 0.6 * gls[name]["stderr"]
    table = pd.read_csv(tmp_path / "measurement.separated.csv")
    assert list(table) == ["time", "measurement", "signal", "noise", "residual"]
    assert np.allclose(table["signal"] + table["noise"], table["measurement"])
    assert (tmp_path / "measurement.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_is_what_its_script_makes(example):
    t, x, truth = example.measurement(0)
    table = pd.read_csv(EXAMPLE)
    assert np.allclose(table["time"], t, atol=1e-6)
    assert np.allclose(table["x"], x, atol=1e-6)
    assert truth == json.loads(EXAMPLE.with_suffix(".truth.json").read_text())
    assert BUNDLED_PRIOR.stat().st_size < 5e6


def errors_of(example, seeds):
    """Errors, standard errors and 95 % hits over seeds, prior and GLS, (n, 4) each."""
    parts = [example.measurement(seed) for seed in seeds]
    x = np.stack([part[1] for part in parts])
    truth = np.array([[part[2][name] for name in NAMES] for part in parts])
    prior = sepprior.load_prior(BUNDLED_PRIOR, device="cpu")
    result = sepprior.separate(x, prior, sample_rate=example.RATE)
    out = {}
    for key, table in (("prior", result.parameters), ("gls", result.baselines["gls"])):
        value = np.stack([table[name].value for name in NAMES], 1)
        error = value - truth
        error[:, 2] = wrap_phase(torch.from_numpy(error[:, 2])).numpy()
        sd = np.stack([table[name].stderr for name in NAMES], 1)
        ends = np.stack([table[name].ci95 for name in NAMES], 1)
        half = 0.5 * (ends[..., 1] - ends[..., 0])
        out[key] = (error, sd, np.abs(error) < half)
    return out


@pytest.mark.statistical
def test_truth_lies_in_the_intervals_of_the_example_and_gls_is_beaten(example):
    """40 other seeds: a count of 95 % hits below 33 has probability 2e-4 each."""
    found = errors_of(example, range(100, 140))
    error, sd, hit = found["prior"]
    assert (hit.sum(0) >= 33).all(), hit.sum(0)
    inside = (np.abs(error) < sd).mean(0)
    # 68 % counts: outside 0.4 to 0.95 has probability 3e-4 each.
    assert ((inside > 0.4) & (inside < 0.95)).all(), inside
    median = {key: np.median(np.abs(e[0]), 0) for key, e in found.items()}
    assert (median["prior"][:3] < 0.6 * median["gls"][:3]).all(), median
    # Negative control: intervals a third as wide are caught.
    narrow = (np.abs(error) < sd * 1.96 / 3).sum(0)
    assert (narrow < 33).all()


@pytest.mark.slow
@pytest.mark.statistical
def test_truth_lies_in_the_intervals_over_200_seeds(example):
    """Each rate within 3.5 binomial standard errors (8 tests, 0.4 % in all)."""
    error, sd, hit = errors_of(example, range(1000, 1200))["prior"]
    inside = (np.abs(error) < sd).mean(0)
    print("68 %:", inside, "95 %:", hit.mean(0))
    assert (np.abs(inside - 0.683) < 3.5 * np.sqrt(0.683 * 0.317 / 200)).all()
    assert (np.abs(hit.mean(0) - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / 200)).all()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a noise recording and a measurement of the user's own."""
    folder = tmp_path_factory.mktemp("workshop")
    # Too short to calibrate error bars on, which would take most of the time.
    noise = coloured_noise(38 * 64, seed=1)
    t = np.arange(len(noise)) / SAMPLE_RATE
    pd.DataFrame({"time": t, "volts": noise}).to_csv(folder / "noise.csv", index=False)
    x = coloured_noise(64, seed=2) + 4 * np.sin(2 * np.pi * 12.3 * t[:64] + 0.5)
    pd.DataFrame({"time": t[:64], "volts": x}).to_csv(folder / "run.csv", index=False)
    (folder / "tiny.toml").write_text(
        'model = "specgan"\nwindow = 64\nwidth = 4\nlatent = 4\nsteps = 20\n'
        "warmup_steps = 10\nbatch = 8\ntick = 5\n"
    )
    return folder


@pytest.mark.parametrize("model", ["gaussian", "specgan"])
def test_train_inspect_sample_separate(workshop, tmp_path, model):
    recipe = (
        ["--config", workshop / "tiny.toml"]
        if model == "specgan"
        else [
            "--model",
            "gaussian",
            "--window",
            64,
        ]
    )
    done = command("train-noise", workshop / "noise.csv", *recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prior.safetensors").exists()
    log = [json.loads(s) for s in (tmp_path / "prior.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == log[-1]["steps"]
    done = command("separate", workshop / "run.csv", "-o", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in the working directory" in done.stderr
    fit = json.loads((tmp_path / "run.fit.json").read_text())
    found = fit["parameters"]["frequency"]
    assert abs(found["value"] - 12.3) < 5 * found["stderr"]
    done = command("inspect", "prior.safetensors", workshop / "noise.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prior.inspect.png").exists()
    done = command("sample", "prior.safetensors", "-n", 3, "-o", "s.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "s.npy").shape == (3, 64)


def _refusals(folder):
    """(arguments, part of the message) for every kind of bad input."""
    good = folder / "run.csv"
    bad = {
        "empty.csv": "",
        "text.csv": "time,x\n"
        + "\n".join(f"{i},{'a' * (i == 20)}{i}" for i in range(40)),
        "nan.csv": "x\n" + "nan\n" * 40,
        "inf.csv": "x\n"
        + "\n".join("inf" if i == 9 else str(i % 7) for i in range(40)),
        "short.csv": "x\n" + "\n".join(str(i) for i in range(10)),
        "flat.csv": "x\n" + "2.5\n" * 40,
        "slow.csv": "time,x\n" + "\n".join(f"{i / 50},{i % 7}" for i in range(64)),
        "jitter.csv": "time,x\n"
        + "\n".join(f"{i / 100 + 0.004 * (i % 3)},{i % 7}" for i in range(64)),
        "broken.safetensors": "this is no tensor",
        "typo.toml": 'model = "specgan"\nlerning_rate = 1e-4\n',
    }
    for name, text in bad.items():
        (folder / name).write_text(text)
    return [
        (["separate", folder / "none.csv"], "none.csv"),
        (["separate", folder / "empty.csv"], "empty"),
        (["separate", folder / "text.csv"], "text.csv"),
        (["separate", good, "--column", "amps"], "volts"),
        (["separate", folder / "nan.csv"], "every value is missing"),
        (["separate", folder / "inf.csv"], "infinite"),
        (["separate", folder / "short.csv"], "16"),
        (["separate", folder / "flat.csv"], "constant"),
        (["separate", folder / "slow.csv"], "resample_poly(x, 2, 1)"),
        (["separate", folder / "jitter.csv"], "uniform"),
        (["separate", good, "--prior", folder / "broken.safetensors"], "safetensors"),
        (["separate", good, "--prior", folder / "absent.safetensors"], "absent"),
        (["separate", good, "--fmin", 10, "--fmax", 80], "50 Hz"),
        (
            ["train-noise", folder / "noise.csv", "--config", folder / "typo.toml"],
            "learning_rate",
        ),
        (["separate", good, "-o", folder / "noise.csv"], "noise.csv"),
    ]


def test_bad_input_is_one_line_status_two_and_no_file(workshop, tmp_path):
    from click.testing import CliRunner

    from sepprior.checkpoint import save_prior
    from sepprior.cli import main
    from sepprior.priors import GaussianPrior

    lags = 1.5 * 0.6 ** torch.arange(64, dtype=torch.float64)
    save_prior(
        GaussianPrior(lags, level=0.5, sample_rate=SAMPLE_RATE),
        tmp_path / "good.safetensors",
    )
    for arguments, part in _refusals(workshop):
        arguments = [str(a) for a in arguments]
        output = [] if "-o" in arguments else ["-o", str(tmp_path / "out")]
        if arguments[0] == "train-noise":
            output = ["-o", str(tmp_path / "out.safetensors")]
        elif "--prior" not in arguments:
            arguments += ["--prior", str(tmp_path / "good.safetensors")]
        before = set(workshop.rglob("*"))
        result = CliRunner().invoke(main, [*arguments, *output])
        assert result.exit_code == 2, (arguments, result.output)
        lines = [s for s in result.stderr.splitlines() if s.startswith("Error: ")]
        assert len(lines) == 1 and result.stderr.endswith(lines[0] + "\n"), (
            result.stderr
        )
        assert part in lines[0], lines[0]
        assert "Traceback" not in result.output
        written = list((tmp_path / "out").glob("*"))
        assert not written and set(workshop.rglob("*")) == before
