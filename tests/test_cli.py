"""The commands around the library: inputs, choices, files, messages, exit status.

Numbers are not looked at here: separation and training are replaced by stand-ins that
record how they were called.
"""

import json
import re
import shlex
import sys
from itertools import pairwise
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sepprior import __version__
from sepprior.checkpoint import save_prior
from sepprior.cli import main, separate
from sepprior.cli.train import Progress, time_left
from sepprior.config import GaussianConfig, SpecGANConfig, config_to_dict
from sepprior.errors import SeppriorError
from sepprior.outputs import StepLog
from sepprior.priors import GaussianPrior
from sepprior.result import Parameter, Separation
from sepprior.training.contract import Work

RATE = 30.0
NAMES = ("amplitude", "frequency", "phase", "bias")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder, without a prior in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(separate.PRIOR_VARIABLE, raising=False)
    return tmp_path


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refused(*args):
    """The one line that a command ends with when its input cannot be used."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return line


def write_prior(path, *, config=None, window=300, facts=()):
    lags = torch.zeros(window, dtype=torch.float64)
    lags[0] = 0.09
    metadata = {"config": config_to_dict(config or GaussianConfig()), "seed": 0}
    metadata |= dict(facts)
    prior = GaussianPrior(lags, level=0.5, sample_rate=RATE, metadata=metadata)
    save_prior(prior, path)
    return path


def write_series(path, *, n=300, rate=RATE, start=0.0, level=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = start + np.arange(n) / rate
    values = level + np.sin(2 * np.pi * 1.5 * time)
    table = np.column_stack([time, values])
    np.savetxt(path, table, delimiter=",", header="time,value", comments="")
    return path


# --- the program --------------------------------------------------------------------


def test_help_and_version():
    listed = run("--help").stdout
    for command in ("train-noise", "separate", "benchmark", "inspect", "sample"):
        assert f"  {command} " in listed
        assert run(command, "--help").exit_code == 0
    assert "..." not in listed.partition("Commands:")[2]  # nothing is cut off
    told = run("train-noise", "--help").stdout
    for word in ("configs/", "TOML", "losses", "label", '"magnitude"'):
        assert word in told
    assert run("--version").stdout == f"sepprior, version {__version__}\n"


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda c: c.name)
def test_help_has_groups_and_examples_that_work(command):
    told = run(command.name, "--help").stdout.partition("Examples:")[2]
    for title, names in command.groups.items():
        assert f"\n{title}:\n" in told
        assert set(names) <= {param.name for param in command.params}
    for param in command.params:
        if isinstance(param, click.Option):
            # A name, or a short and a long one, at the beginning of its line.
            assert len(re.findall(rf"^ +(-\w, )?{param.opts[-1]}\b", told, re.M)) == 1
    for line in command.example.split("\n"):
        if line.strip():
            program, name, *words = shlex.split(line)
            assert (program, name) == ("sepprior", command.name)
            command.make_context(name, words)


def test_completion_of_the_shell():
    done = CliRunner().invoke(
        main, env={"_SEPPRIOR_COMPLETE": "bash_source"}, prog_name="sepprior"
    )
    assert "_sepprior_completion" in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        SeppriorError("two\nlines"),
        PermissionError(13, "Permission denied", "there.csv"),
        OSError("two\nlines"),
    ],
)
def test_expected_errors_are_one_line(here, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("sepprior.data.read_measurements", fail)
    line = refused("separate", "x.csv", "--prior", write_prior(here / "p.safetensors"))
    assert line in ("Error: two lines", "Error: 'there.csv': Permission denied")


def test_programming_errors_are_not_hidden(here, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("a fault")

    monkeypatch.setattr("sepprior.data.read_measurements", fail)
    result = run("separate", "x.csv", "--prior", write_prior(here / "p.safetensors"))
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


# --- separate -----------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the separation; bias is the mean, to tell measurements apart."""
    made = []

    def stand_in(x, prior, **options):
        x = x.rows
        made.append(SimpleNamespace(x=x, prior=prior, **options))
        n = len(x)
        one = np.ones(n)
        values = dict(zip(NAMES, (one, 1.5 * one, 0 * one, x.mean(1)), strict=True))
        parameters = {
            name: Parameter(v, 0.1 * one, np.stack([v - 0.2, v + 0.2], axis=1))
            for name, v in values.items()
        }
        return Separation(
            parameters=parameters,
            covariance=np.tile(np.eye(4), (n, 1, 1)),
            sample_rate=options["sample_rate"],
            measurement=x,
            signal=0 * x,
            coherent=0 * x,
            whitened=x,
            signal_band=0 * x,
            spectrum_frequency=np.arange(3.0),
            spectrum_loglik=np.zeros((n, 3)),
            baselines={"gls": parameters, "robust": parameters},
            status=["converged"] * n,
            diagnostics={"chi_square": np.full(n, np.nan)},
            prior_info={"name": prior.name},
        )

    module = SimpleNamespace(separate=stand_in)
    monkeypatch.setitem(sys.modules, "sepprior.separation", module)
    monkeypatch.setattr(
        Separation, "plot", lambda self, path, truth: path.write_bytes(b"picture")
    )
    return made


def test_separate_writes_table_fit_and_picture(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv", start=5.0)
    result = run("separate", "run.csv")
    assert result.exit_code == 0, result.output
    assert "frequency" in result.stdout and "status: converged" in result.stdout
    assert "phase: at the first sample, at 5 s" in result.stdout
    assert "written: run.separated.csv, run.fit.json, run.png" in result.stdout
    assert sorted(path.name for path in here.iterdir()) == [
        "prior.safetensors",
        "run.csv",
        "run.fit.json",
        "run.png",
        "run.separated.csv",
    ]
    table = (here / "run.separated.csv").read_text().splitlines()
    assert table[0] == "time,measurement,signal,noise,residual"
    assert len(table) == 301 and table[1].startswith("5,")
    fit = json.loads((here / "run.fit.json").read_text())
    assert set(fit["parameters"]) == set(fit["baselines"]["gls"]) == set(NAMES)
    assert set(fit["parameters"]["bias"]) == {"value", "stderr", "ci95"}
    assert fit["diagnostics"] == {"chi_square": None}
    assert fit["measurement"] == {
        "name": "run",
        "source": "run.csv",
        "samples": 300,
        "missing": 0,
        "notes": [],
        "start": 5.0,
    }


def test_separate_passes_its_options_on(here, calls):
    prior = write_prior(here / "p.safetensors")
    write_series(here / "run.csv")
    options = "--fmin 0.8 --fmax 2.5 --components 2 --objective plain --seed 7"
    options += " --starts 5 --device cpu --method bootstrap --draws 60"
    result = run("separate", "run.csv", "--prior", prior, *options.split())
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert call.x.shape == (1, 300)
    assert (call.fmin, call.fmax, call.components) == (0.8, 2.5, 2)
    assert (call.objective, call.seed, call.starts) == ("plain", 7, 5)
    assert (call.method, call.draws) == ("bootstrap", 60)
    assert call.sample_rate == pytest.approx(RATE) and call.device == "cpu"


def test_separate_passes_on_what_is_known_of_the_signal(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv")
    (here / "own.py").write_text("def decay(t, a, tau):\n    return a * t / tau\n")
    options = "--signal own.py:decay --bounds tau=0.1:10 --bounds a=:5 --fix a=2"
    options += " --guess tau=1 --expect tau=1:.2"
    result = run("separate", "run.csv", *options.split())
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert call.signal.__name__ == "decay"
    assert call.bounds == {"tau": (0.1, 10.0), "a": (-np.inf, 5.0)}
    assert (call.fixed, call.guess) == ({"a": 2.0}, {"tau": 1.0})
    assert call.expected == {"tau": (1.0, 0.2)}
    assert not (here / "__pycache__").exists()
    assert run("separate", "run.csv", "--signal", "chirp").exit_code == 0
    assert calls[1].signal == "chirp"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--signal sinus", "give sinusoid, harmonics"),
        ("--signal no.py:f", "no file 'no.py'"),
        ("--signal own.py:f", "it has decay"),
        ("--signal bad.py:f", "NameError"),
        ("--bounds tau", "expected NAME="),
        ("--bounds tau=3", "expected two numbers"),
        ("--fix tau=x", "'x' is not a number"),
        ("--fix tau=1 --fix tau=2", "given before"),
        ("--expect tau=1:", "give a finite number"),
    ],
)
def test_a_signal_that_cannot_be_used_is_refused(here, options, part):
    prior = write_prior(here / "p.safetensors")
    write_series(here / "run.csv")
    (here / "own.py").write_text("def decay(t, tau):\n    return t / tau\n")
    (here / "bad.py").write_text("f = g\n")
    if "--signal" not in options:
        options += " --signal own.py:decay"
    line = refused("separate", "run.csv", "--prior", prior, *options.split())
    assert part in line


def test_number_of_components(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv")
    write_series(here / "other.csv")
    assert run("separate", "run.csv", "--components", "3").exit_code == 0
    assert calls.pop().components == 3
    # Each measurement may have a number of its own: no batches.
    result = run("separate", "run.csv", "other.csv", "--components", "auto")
    assert result.exit_code == 0, result.output
    assert [(call.components, len(call.x)) for call in calls] == [("auto", 1)] * 2
    for wrong in ("0", "-1", "many", "1.5"):
        assert "positive integer" in refused("separate", "x.csv", "--components", wrong)


def test_measurements_of_one_length_are_one_batch(here, calls):
    write_prior(here / "prior.safetensors")
    lengths = {"a": 300, "b": 200, "c": 300, "d": 200}
    for level, (name, n) in enumerate(lengths.items()):
        write_series(here / "in" / f"{name}.csv", n=n, level=level)
    result = run("separate", "in", "-o", "out/new", "--no-plot")
    assert result.exit_code == 0, result.output
    assert [call.x.shape for call in calls] == [(2, 300), (2, 200)]
    for level, name in enumerate(lengths):
        fit = json.loads((here / "out" / "new" / f"{name}.fit.json").read_text())
        assert fit["parameters"]["bias"]["value"] == pytest.approx(level, abs=0.01)
    assert len(list((here / "out" / "new").iterdir())) == 8
    assert len(list((here / "in").iterdir())) == 4


def test_results_of_an_earlier_run_are_not_measurements(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "in" / "run.csv")
    for _ in range(2):
        assert run("separate", "in").exit_code == 0
    assert [call.x.shape for call in calls] == [(1, 300)] * 2
    # Named itself, it is taken.
    result = run("separate", "in/run.separated.csv", "--column", "noise", "-o", "out")
    assert result.exit_code == 0, result.output
    (here / "in" / "run.csv").unlink()
    assert "nothing but results" in refused("separate", "in")


def test_json_on_stdout(here, calls):
    write_prior(here / "prior.safetensors")
    for name in ("a", "b"):
        write_series(here / f"{name}.csv")
    result = run("separate", "a.csv", "b.csv", "--json")
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [fit["measurement"]["name"] for fit in printed] == ["a", "b"]
    assert printed[0] == json.loads((here / "a.fit.json").read_text())
    assert "prior: " in result.stderr


def test_which_prior(here, calls, monkeypatch):
    write_series(here / "run.csv")
    bundled = write_prior(here / "bundled.safetensors")
    monkeypatch.setattr(separate, "BUNDLED_PRIOR", bundled)
    assert "bundled.safetensors (bundled" in run("separate", "run.csv").stderr
    write_prior(here / "prior.safetensors")
    said = run("separate", "run.csv").stderr
    assert "prior: prior.safetensors (in the working directory): gaussian" in said
    variable = write_prior(here / "variable.safetensors")
    monkeypatch.setenv(separate.PRIOR_VARIABLE, str(variable))
    said = run("separate", "run.csv").stderr
    assert f"prior: {variable} (named by SEPPRIOR_PRIOR)" in said
    option = write_prior(here / "option.safetensors")
    said = run("separate", "run.csv", "--prior", option).stderr
    assert f"prior: {option} (given with --prior)" in said


def test_no_prior(here, calls, monkeypatch):
    monkeypatch.setattr(separate, "BUNDLED_PRIOR", here / "absent.safetensors")
    write_series(here / "run.csv")
    line = refused("separate", "run.csv")
    assert "does not exist" in line and "train-noise" in line
    monkeypatch.setenv(separate.PRIOR_VARIABLE, "gone.safetensors")
    assert "'gone.safetensors' (named by SEPPRIOR" in refused("separate", "run.csv")


def test_unknown_sample_rate_is_the_priors(here, calls):
    write_prior(here / "prior.safetensors")
    np.save(here / "run.npy", np.sin(np.arange(300.0)))
    result = run("separate", "run.npy")
    assert "run: the file does not tell its sample rate" in result.stderr
    assert "30 Hz" in result.stderr
    assert calls[0].sample_rate == RATE
    last = (here / "run.separated.csv").read_text().splitlines()[-1]
    assert float(last.split(",")[0]) == pytest.approx(299 / RATE)
    assert "does not tell" not in run("separate", "run.npy", "--sample-rate", 30).stderr


@pytest.mark.parametrize(
    ("rate", "factors"), [(20, "3, 2"), (60, "1, 2"), (30.04, "750, 751")]
)
def test_another_sample_rate(here, calls, rate, factors):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv", rate=rate)
    line = refused("separate", "run.csv")
    assert f"resample_poly(x, {factors})" in line and "'run.csv'" in line
    assert not calls


def test_nearly_the_same_sample_rate(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv", rate=30.02)
    assert run("separate", "run.csv").exit_code == 0
    assert calls[0].sample_rate == pytest.approx(30.02)


def test_separate_checks_the_output_folder_first(here, calls):
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv")
    (here / "file").write_text("kept")
    before = sorted(here.iterdir())
    assert "not writable" in refused("separate", "run.csv", "-o", "file/below")
    assert not calls and sorted(here.iterdir()) == before


def test_a_failing_picture_leaves_nothing(here, calls, monkeypatch):
    def fail(self, path, truth):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Separation, "plot", fail)
    write_prior(here / "prior.safetensors")
    write_series(here / "run.csv")
    before = sorted(here.iterdir())
    assert "No space left" in refused("separate", "run.csv")
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "content", [None, "", "time,value\n0,a\n1,b\n", "value\n1\n2\n"]
)
def test_unusable_measurements(here, calls, content):
    write_prior(here / "prior.safetensors")
    if content is not None:
        (here / "run.csv").write_text(content)
    before = sorted(here.iterdir())
    assert "run.csv" in refused("separate", "run.csv")
    assert sorted(here.iterdir()) == before


# --- train-noise --------------------------------------------------------------------


class Training:
    """Stand in for the trainer: saves a prior when it ends, however it ends."""

    def __init__(self):
        self.steps = 3
        self.interrupt_at = None
        self.config = None
        self.resume = None
        self.ended = None
        self.facts = {}

    def train(self, recording, config, *, device, output, resume, watch):
        self.config, self.resume = config, resume
        work = SimpleNamespace(stage="choosing the frame", done=50.0, left=150.0)
        work.found = []
        watch(work)
        work.found.append("frames of 16 samples")
        work.stage = "training"
        watch(work)
        try:
            for step in range(1, self.steps + 1):
                if step == self.interrupt_at:
                    raise KeyboardInterrupt
                yield {
                    "step": step,
                    "steps": self.steps,
                    "seconds": 0.1,
                    "critic_distance": 0.25,
                    "spectral_error_db": float("nan"),
                }
            self.ended = "finished"
        except (KeyboardInterrupt, GeneratorExit) as error:
            self.ended = type(error).__name__
            raise
        finally:
            write_prior(output, config=config, facts=self.facts)
            output.with_suffix(".resume.safetensors").write_bytes(b"state")


@pytest.fixture
def training(monkeypatch):
    stand_in = Training()
    module = SimpleNamespace(train=stand_in.train)
    monkeypatch.setitem(sys.modules, "sepprior.training", module)
    return stand_in


def steps_logged(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_train_writes_prior_and_log(here, training):
    write_series(here / "noise.csv", n=5000)
    result = run("train-noise", "noise.csv")
    assert result.exit_code == 0, result.output
    assert training.config == SpecGANConfig() and training.ended == "finished"
    assert (here / "prior.safetensors").exists()
    assert steps_logged(here / "prior.jsonl") == [1, 2, 3]
    record = json.loads((here / "prior.jsonl").read_text().splitlines()[0])
    assert record["critic_distance"] == 0.25 and record["spectral_error_db"] is None
    told = result.stderr.splitlines()
    assert "choosing the frame: 25 % of all, time left not known yet" in told
    assert "  found: frames of 16 samples" in told
    assert "log: prior.jsonl; Ctrl-C leaves" in result.stderr
    assert "trained in" in result.stdout
    # The default name is found without being named.
    assert "next: sepprior separate MEASUREMENT\n" in result.stdout


def test_train_says_what_held_out_noise_says(here, training):
    write_series(here / "noise.csv", n=5000)
    good = {"gain": 0.3412, "gain_stderr": 0.0123}
    told = {
        "none": ({}, ""),
        "good": (
            {"heldout": good},
            "held-out noise is likelier than by its spectrum alone, by 0.34 +/- 0.01 "
            "nats per sample\n",
        ),
        "poor": (
            {
                "heldout": {"gain": 0.0, "gain_stderr": 0.0},
                "range_error": {"labels": {"idle": {"heldout": good}}},
            },
            "held-out noise is no likelier than by its spectrum alone: expect the "
            "results of least squares\nheld-out noise labelled 'idle' is likelier",
        ),
    }
    for facts, text in told.values():
        training.facts = facts
        out = run("train-noise", "noise.csv").stdout
        assert text in out and ("held-out" in out) == bool(text)


def test_train_options_go_before_the_recipe(here, training):
    write_series(here / "noise.csv", n=5000)
    (here / "recipe.toml").write_text("window = 128\nsteps = 7\nlatent = 8")
    options = "--config recipe.toml --steps 9 --seed 2 -o new/my.safetensors"
    result = run("train-noise", "noise.csv", *options.split())
    assert result.exit_code == 0, result.output
    assert training.config == SpecGANConfig(window=128, steps=9, latent=8, seed=2)
    assert (here / "new" / "my.jsonl").exists()
    assert "--prior new/my.safetensors" in result.stdout


def test_train_gaussian(here, training):
    training.steps = 1
    write_series(here / "noise.csv", n=5000)
    result = run("train-noise", "noise.csv", "--model", "gaussian", "--window", 64)
    assert result.exit_code == 0, result.output
    assert training.config == GaussianConfig(window=64)
    line = refused("train-noise", "noise.csv", "--model", "gaussian", "--steps", 10)
    assert "unknown setting 'steps' for model 'gaussian'" in line


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--config recipe.toml", "did you mean 'window'"),
        ("--config absent.toml", "absent.toml"),
        ("--window 10", "64 to 65536"),
        ("-o prior.pt", "prior.safetensors"),
        ("-o .", "is a folder"),
        ("-o recipe.toml/prior.safetensors", "not writable"),
        ("--resume", "nothing to resume"),
        ("--sample-rate 20", "Hz"),
        ("--column absent", "absent"),
    ],
)
def test_train_refuses(here, training, options, part):
    write_series(here / "noise.csv", n=5000)
    (here / "recipe.toml").write_text("windw = 128")
    before = sorted(here.iterdir())
    assert part in refused("train-noise", "noise.csv", *options.split())
    assert training.config is None and sorted(here.iterdir()) == before


def test_interrupted_trainer(here, training):
    training.interrupt_at = 2
    write_series(here / "my noise.csv", n=5000)
    result = run("train-noise", "my noise.csv", "--column", "value")
    assert result.exit_code == 130
    assert training.ended == "KeyboardInterrupt"
    assert steps_logged(here / "prior.jsonl") == [1]
    *_, line = result.stderr.splitlines()
    assert "prior as trained so far is prior.safetensors" in line
    # The command that is offered continues with the same recipe and inputs.
    again = shlex.split(line.split("To go on: ")[1])
    assert again[0] == "sepprior"
    training.interrupt_at = None
    assert run(*again[1:]).exit_code == 0
    assert training.resume and training.config == SpecGANConfig()
    assert steps_logged(here / "prior.jsonl") == [1, 2, 3]


def test_interrupted_between_steps(here, training, monkeypatch):
    def interrupt(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(StepLog, "write", interrupt)
    write_series(here / "noise.csv", n=5000)
    assert run("train-noise", "noise.csv").exit_code == 130
    assert training.ended == "GeneratorExit"
    assert (here / "prior.safetensors").exists()


def test_interrupted_before_the_training(here, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sepprior.data.read_recordings", interrupt)
    result = run("train-noise", "noise.csv")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n" and list(here.iterdir()) == []


def test_resume_keeps_the_recipe(here, training):
    write_series(here / "noise.csv", n=5000)
    run("train-noise", "noise.csv", "--window", 128, "--seed", 5)
    result = run("train-noise", "noise.csv", "--resume", "--steps", 4000)
    assert result.exit_code == 0, result.output
    assert training.config == SpecGANConfig(window=128, seed=5, steps=4000)
    line = refused("train-noise", "noise.csv", "--resume", "--model", "gaussian")
    assert "'specgan'" in line


# --- inspect and sample -------------------------------------------------------------


def test_card(here):
    write_prior(here / "p.safetensors")
    result = run("inspect", "p.safetensors")
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert "model        gaussian" in shown
    assert "300 samples = 10 s" in shown and "30 Hz" in shown
    assert "mean 0.5, standard deviation 0.3" in shown
    assert len(list(here.iterdir())) == 1


def test_inspect_says_what_was_calibrated(here):
    factors = {
        name: {"q68": [1.05, 1.5], "q95": [1.0, 1.0]}
        for name in ("amplitude", "frequency", "phase", "bias")
    }
    facts = {
        "calibration": {"cycles": [1.2, 2.0], "gls": factors, "robust": factors},
        "heldout": {"gain": 0.3412, "gain_stderr": 0.0123},
        "gains": {"step": 0.5, "cycles": [1.0, 4.0], "gains": [[0.0, 1.0]] * 2},
    }
    write_prior(here / "p.safetensors", facts=facts)
    told = run("inspect", "p.safetensors").stdout
    assert (
        "error bars times least squares 1.05 to 1.50, robust fit 1.05 to 1.50 "
        "(measured in 2 bands)" in told
    )
    assert "0.341 +/- 0.01 nats per sample likelier than by the spectrum alone" in told
    assert "values" not in told


def test_inspect_with_recordings(here, monkeypatch):
    def inspect_prior(prior, windows, *, origin, seed):
        assert windows.shape == (16, 300) and origin == "given" and seed == 3
        return SimpleNamespace(
            report=lambda: "the comparison",
            to_dict=lambda: {"psd": float("nan")},
            plot=lambda path: path.write_bytes(b"picture"),
        )

    monkeypatch.setattr("sepprior.fidelity.inspect_prior", inspect_prior)
    (here / "in").mkdir()
    write_prior(here / "in" / "p.safetensors")
    write_series(here / "noise.csv", n=5000)
    result = run("inspect", "in/p.safetensors", "noise.csv", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "the comparison" in result.stdout
    table = here / "in" / "p.inspect.json"
    assert json.loads(table.read_text()) == {"psd": None}
    assert (here / "in" / "p.inspect.png").exists()
    options = "--seed 3 -o out"
    again = run("inspect", "in/p.safetensors", "noise.csv", *options.split())
    assert again.exit_code == 0
    assert (here / "out" / "p.inspect.json").exists()


def test_inspect_at_another_sample_rate(here):
    write_prior(here / "p.safetensors")
    write_series(here / "noise.csv", n=5000, rate=60)
    result = run("inspect", "p.safetensors", "noise.csv")
    assert result.exit_code == 2
    assert "the noise has a sample rate of 60 Hz" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "sample"])
def test_unusable_priors(here, command):
    (here / "p.safetensors").write_bytes(b"something else")
    assert "p.safetensors" in refused(command, "p.safetensors")
    assert "absent" in refused(command, "absent.safetensors")


def test_sample(here):
    write_prior(here / "p.safetensors")
    printed = run("sample", "p.safetensors", "-n", 2, "--seed", 1).stdout
    lines = printed.splitlines()
    assert lines[0] == "time,sample_0,sample_1" and len(lines) == 301
    assert lines[2].startswith("0.0333333333333333,")
    for name in ("s.csv", "s.npy"):
        result = run("sample", "p.safetensors", "-n", 2, "--seed", 1, "-o", name)
        assert result.stdout == f"written: {name}\n"
    assert (here / "s.csv").read_text() == printed
    samples = np.load(here / "s.npy")
    table = np.loadtxt(here / "s.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, 1:].T, samples, rtol=1e-14)
    assert run("sample", "p.safetensors", "-n", 2, "--seed", 2).stdout != printed
    assert "s.csv" in refused("sample", "p.safetensors", "-o", "s.wav")


# --- benchmark ----------------------------------------------------------------------


def test_benchmark(here):
    options = "--scenario white --method curve_fit --method gls_scipy --trials 10"
    result = run("benchmark", *options.split(), "-o", "out")
    assert result.exit_code == 0, result.output
    assert "| gls_scipy |" in result.stdout and "white 10 s" in result.stdout
    rows = (here / "out" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 10 * 2 * 2
    text = (here / "out" / "summary.md").read_text()
    assert "--scenario white --method curve_fit --method gls_scipy --trials 10" in text
    assert "over that of gls_scipy" in text


def test_benchmark_on_recorded_noise_is_taken_up_again(here):
    x = np.random.default_rng(0).normal(0, 0.2, 4000)
    np.savetxt(here / "room.csv", x, header="volts", comments="")
    options = ["--noise", "room.csv", "--sample-rate", 50, "--trials", 12]
    methods = ["--method", "gls_scipy", "--method", "esprit"]
    first = run("benchmark", *options, *methods, "-o", "out")
    assert first.exit_code == 0, first.output
    assert "room 6 s" in first.stdout
    names = {path.name for path in (here / "out").iterdir() if path.is_file()}
    assert {"trials.csv", "summary.md", "summary.json", "report.html"} <= names
    content = json.loads((here / "out" / "summary.json").read_text())
    row = next(r for r in content["summary"] if r["method"] == "gls_scipy")
    assert 0.3 < row["amplitude"] < 2 and row["trials"] == 12
    written = {path: path.stat().st_mtime_ns for path in here.glob("out/pieces/*")}
    assert len(written) == 2
    again = run("benchmark", *options, *methods, "--resume", "-o", "out")
    assert again.stdout.splitlines()[:6] == first.stdout.splitlines()[:6]
    assert written == {p: p.stat().st_mtime_ns for p in here.glob("out/pieces/*")}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--scenario whit", "whit"),
        ("--column x", "--noise"),
        ("--noise none.csv", "none.csv"),
        ("--method cuve_fit", "cuve_fit"),
        ("--trials 0", "trials"),
        ("-o file/below", "not writable"),
    ],
)
def test_benchmark_refuses(here, options, part):
    (here / "file").write_text("kept")
    assert part in refused("benchmark", *options.split())
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("seconds", "done", "left", "words"),
    [
        (1.0, 100.0, 100.0, "time left not known yet"),
        (100.0, 10.0, 100.0, "time left not known yet"),
        (100.0, 1000.0, 50.0, "a few seconds left"),
        (100.0, 1000.0, 410.0, "about 50 s left"),
        (100.0, 1000.0, 6100.0, "about 11 min left"),
    ],
)
def test_time_left_in_words(seconds, done, left, words):
    assert time_left(seconds, done, left) == words


def test_the_time_left_falls_as_work_is_done():
    """Stages of different pace and choices that end early: never up by a third."""
    clock, told = 0.0, []
    work = Work(lambda work: told.append(clock / max(work.done, 1) * work.left))
    work.enter("choosing", left=9000)
    for _ in range(2000):
        clock += 0.1
        work.add()
    work.enter("training", left=5000)
    for _ in range(5000):
        clock += 0.12
        work.add()
    known = told[20:]
    assert known[-1] == 0.0
    assert all(later < 1.33 * now for now, later in pairwise(known))


def test_progress_on_a_terminal_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress()
    work = Work(progress.watch)
    work.enter("choosing the frame", left=1000)
    for _ in range(500):
        work.add()
    work.tell("frames of 16 samples")
    work.enter("training", left=500)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.count("\r") >= 3
    assert "found: frames of 16 samples\n" in shown
    assert shown.endswith("training: 50 % of all, time left not known yet")


def test_no_picture_where_none_is_wanted(here, training):
    write_series(here / "noise.csv", n=5000)
    assert run("train-noise", "noise.csv", "--no-plot").exit_code == 0
    assert not (here / "prior.png").exists()
