"""Bad arguments are refused at the door: one line, no traceback, at once."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sepprior
from sepprior.cli import main
from sepprior.errors import SeppriorError
from sepprior.tracking.fits import FitOptions
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

NUMBERS = (True, -1, 1.5, math.nan, math.inf, 10**30, "x", b"x", [1], {}, 1 + 2j)
OTHERS = (*NUMBERS, object(), np.zeros(3), torch.zeros(2), lambda: 0)


@pytest.fixture(scope="module")
def x():
    t = np.arange(3 * WINDOW) / SAMPLE_RATE
    return coloured_noise(len(t), seed=2) + 5 * np.sin(2 * np.pi * 11 * t)


def refused(call):
    """The line with which a call is refused."""
    with pytest.raises(sepprior.SeppriorError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line and len(line) < 500
    return line


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("components", [v for v in OTHERS if v is not True] + [0, 41, 10**9]),
        ("starts", OTHERS),
        ("seed", (None, *[v for v in OTHERS if v is not True], 2**64)),
        ("fmin", ("x", [1], math.nan, -1, 0, 1e9, object())),
        ("fmax", ("x", [1], math.nan, math.inf, -1, 1e9, object())),
        ("sample_rate", (0, -1, math.nan, math.inf, "100", [], 1e-300)),
        ("objective", ("Joint", 1, None, [], "plane")),
        ("method", ("laplacee", 1, None, [], np.zeros(3))),
        ("bounds", (1, "x", [1], {"freq": (1, 2)}, {"frequency": 3})),
        ("fixed", (1, "x", [1], {"freq": 1}, {"frequency": "x"})),
        ("guess", (1, "x", [1], {"freq": 1}, {"frequency": math.nan})),
        ("expected", (1, "x", {"bias": (1, 1e-160)}, {"bias": (1, -1)}, {"bias": 2})),
        ("device", (1, "", "meta", "gpu", 2**70, np.zeros(3))),
        ("signal", (1, None, "sinusiod", b"x", [])),
        ("label", ("idle",)),
    ],
)
def test_options_of_separate(name, bad, x, gaussian_prior):
    for value in bad:
        line = refused(
            lambda v=value: sepprior.separate(x, gaussian_prior, **{name: v})
        )
        assert name in line or "band" in line or "sinusiod" in line or "Hz" in line


@pytest.mark.parametrize("value", ["p.safetensors", None, {}, 3, torch.zeros(2), list])
def test_what_is_not_a_prior(value, x):
    assert "prior=" in refused(lambda: sepprior.separate(x, value))
    assert "prior=" in refused(lambda: sepprior.track(x, value))


def test_a_word_that_is_nearly_right(x, gaussian_prior):
    line = refused(lambda: sepprior.separate(x, gaussian_prior, method="bootstrapp"))
    assert line.endswith("did you mean 'bootstrap'?")


def test_more_parameters_than_samples(x, gaussian_prior):
    line = refused(lambda: sepprior.separate(x[:40], gaussian_prior, components=20))
    assert line.startswith("61 parameters cannot be fitted to 40 samples")
    assert sepprior.separate(x[:40], gaussian_prior, components=2).status


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("window", (0, 15, 1.5, "x", 10**12)),
        ("hop", (0, -1, 1.5, "x", 10**6)),
        ("start", ("x", math.nan, [])),
        ("components", ("auto", 0)),
        ("seed", (-1, None)),
    ],
)
def test_options_of_track(name, bad, x, gaussian_prior):
    for value in bad:
        assert name in refused(
            lambda v=value: sepprior.track(x, gaussian_prior, **{name: v})
        )


def test_options_are_checked_where_they_are_made():
    assert "starts" in refused(lambda: FitOptions(starts=0))
    assert FitOptions(starts=2).starts == 2


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sample_rate", (0, math.nan, "x", -1, [])),
        ("model", ("specGAN", 1, None)),
        ("window", (0, 1.5, "x", 10**12)),
        ("seed", (-1, "x")),
        ("config", ("gaussian", {}, 3)),
        ("device", (3, "meta")),
        ("output", (3, "", "p.csv", "a\0b.safetensors")),
    ],
)
def test_options_of_train_noise(name, bad, x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = {"sample_rate": SAMPLE_RATE, "model": "gaussian", "window": WINDOW}
    for value in bad:
        refused(lambda v=value: sepprior.train_noise(x, **(usual | {name: v})))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [*NUMBERS, 10**12])
def test_numbers_of_samples_and_paths(value, gaussian_prior, tmp_path):
    assert "n=" in refused(lambda: gaussian_prior.sample(value))
    if not isinstance(value, str):
        refused(lambda: sepprior.load_prior(value))
        refused(lambda: sepprior.save_prior(gaussian_prior, value))
    refused(lambda: sepprior.save_prior(value, tmp_path / "p.safetensors"))


def nan(t, a=1.0):
    return a * t * math.nan


def steep(t, a=0.0):
    return torch.sqrt(a) * t


def text(t, a="x"):
    return a * t


def failing(t, a=1.0):
    raise KeyError("boo")


def short(t, a=1.0):
    return a * torch.ones(3)


@pytest.mark.parametrize("function", [nan, steep, text, failing, short, print])
def test_functions_that_cannot_be_fitted(function, x, gaussian_prior):
    refused(lambda: sepprior.separate(x, gaussian_prior, signal=function))


@pytest.mark.parametrize(
    "words",
    [
        "separate m.npy --components 100",
        "separate m.npy --components 1000000000",
        "separate m.npy --objective plain",
        "separate m.npy --window 10000000000",
        "separate m.npy --expect bias=1:1e-160",
        "separate m.npy --seed 18446744073709551616",
        "separate m.npy --device meta",
        "separate m.npy --sample-rate nan",
        "separate m.npy --method bootstrap --draws 99999999999",
        "separate m.npy --fix frequency=inf",
        "separate a\0b.npy",
        f"separate {'a' * 5000}",
        "sample prior.safetensors -n 99999999999",
        "sample prior.safetensors --seed 18446744073709551616",
        "train-noise m.npy --sample-rate 100 --config deep.toml",
        "train-noise m.npy --sample-rate 100 --model gaussian --seed -1",
        "benchmark --trials 99999999999",
        "benchmark --duration 1e9",
    ],
)
def test_command_line(words, x, gaussian_prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("m.npy", x)
    sepprior.save_prior(gaussian_prior, "prior.safetensors")
    (tmp_path / "deep.toml").write_text("a=" + "[" * 5000 + "]" * 5000)
    before = set(tmp_path.iterdir())
    done = CliRunner().invoke(main, words.split(" "))
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    told = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1 and len(told[0]) < 500
    assert set(tmp_path.iterdir()) == before


def test_error_bars_are_numbers_or_the_status_says_why(x, gaussian_prior):
    for fixed in ({"amplitude": 0}, {"amplitude": 0, "phase": 0}, {"phase": 0}):
        result = sepprior.separate(x, gaussian_prior, fixed=fixed)
        known = all(np.isfinite(p.stderr) for p in result.parameters.values())
        assert known or not result.status.startswith("ok")


def test_whole_numbers_of_numpy(x, gaussian_prior):
    own = sepprior.separate(x, gaussian_prior, seed=5, components=1)
    of_numpy = {"seed": np.int64(5), "components": np.int32(1)}
    found = sepprior.separate(x, gaussian_prior, **of_numpy)
    assert found.parameters["frequency"].value == own.parameters["frequency"].value


def test_arrays_are_no_values_by_name(x, gaussian_prior):
    with pytest.raises(SeppriorError, match="by the name of the parameter"):
        sepprior.track(x, gaussian_prior, bounds=np.array([1, 2]))
