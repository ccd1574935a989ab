"""Signals of any form, window by window: tracks, and tables of many inputs."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import sepprior
from sepprior.cli import main
from sepprior.cli.signal_options import find_signal
from sepprior.errors import SeppriorError
from sepprior.many import separate_many, work
from sepprior.many.run import signal_identity
from sepprior.signals import chirp, damped_sinusoid, harmonics
from sepprior.tracking import FitOptions
from sepprior.tracking.phase import unwrap, wrap
from sepprior.tracking.rows import lines_of, rows_of
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

COUNT = 5
TIME = np.arange(WINDOW) / SAMPLE_RATE


def decaying(t, height, tau, offset):
    return height * torch.exp(-t / tau) + offset


SIGNALS = {
    "harmonics": (
        harmonics(TIME, 9.0, [4.0, 2.0], [0.4, -1.0], 0.0),
        {"signal": "harmonics", "components": 2, "fmin": 6, "fmax": 12},
    ),
    "damped": (
        damped_sinusoid(TIME, 6.0, 12.0, 0.3, 3.0, 0.0),
        {"signal": "damped", "fmin": 8, "fmax": 20, "bounds": {"decay": (0.5, 10)}},
    ),
    "chirp": (
        chirp(TIME, 5.0, 8.0, 0.3, 9.0, 0.0),
        {"signal": "chirp", "fmin": 6, "fmax": 20, "guess": {"chirp_rate": 9.0}},
    ),
    "function": (
        5.0 * np.exp(-TIME / 0.1),
        {
            "signal": decaying,
            "bounds": {"tau": (0.02, 1.0)},
            "fixed": {"offset": 0.5},
        },
    ),
    "fixed": (
        4.0 * np.sin(2 * np.pi * 12.0 * TIME + 0.3),
        {"fmin": 6, "fmax": 20, "fixed": {"phase": 0.3}},
    ),
}


@pytest.fixture(autouse=True)
def few_simulations(monkeypatch):
    """Noise records behind the false-alarm probability: as many as make one."""
    monkeypatch.setattr("sepprior.inference.detection.N_SIMULATED", 20)


def measured(signal, seed=3):
    rows = coloured_noise(COUNT * WINDOW, seed=seed).reshape(COUNT, WINDOW) + signal
    rows[4, 10:15] = np.nan
    return rows


def assert_same_fits(table, x, prior, options):
    """Every row is what `separate` says of its window."""
    assert len(table) == len(x)
    gaps = np.isnan(x).any(1)
    for which in (gaps, ~gaps):
        result = sepprior.separate(x[which], prior, **options)
        rows = table[which]
        for name, p in result.parameters.items():
            np.testing.assert_allclose(rows[name], p.value, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(rows[f"{name}_stderr"], p.stderr, rtol=1e-5)
        assert rows["status"].tolist() == result.status
        alarm = result.diagnostics["false_alarm_probability"]
        np.testing.assert_allclose(rows["false_alarm_probability"], alarm, rtol=1e-4)


@pytest.mark.parametrize("case", SIGNALS)
def test_a_track_says_of_each_window_what_separate_says(case, gaussian_prior, tmp_path):
    signal, options = SIGNALS[case]
    x = measured(signal)
    track = sepprior.track(x.ravel(), gaussian_prior, hop=WINDOW, **options)
    assert_same_fits(track.table, x, gaussian_prior, options)
    result = sepprior.separate(x[:4], gaussian_prior, **options)
    separated = track.signal.reshape(COUNT, WINDOW)[:4]
    np.testing.assert_allclose(separated, result.signal, atol=1e-5)
    names = list(result.parameters)
    assert track.parameters == names
    report = track.report()
    shown = [n for n in names if not n.startswith("phase")]
    assert all(f"\n{name} " in report for name in shown)
    assert ("unwrapped" in report) == (case != "function")
    assert set(track.summary()["median"]) == set(names)
    track.plot(tmp_path / "track.png")
    assert (tmp_path / "track.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("signal", "components", "phases"),
    [
        ("harmonics", 2, [lambda f, _: f, lambda f, _: 2 * f]),
        ("chirp", 1, [lambda f, c: f + 0.5 * c * TIME[-1]]),
        ("damped", 1, [lambda f, _: f]),
    ],
)
def test_phase_at_the_centre(signal, components, phases, gaussian_prior):
    """The angle advances by the cycles up to the middle; its error by Monte Carlo."""
    clean, options = SIGNALS[signal]
    x = measured(clean)[:2]
    result = sepprior.separate(x, gaussian_prior, **options)
    lines = lines_of(signal, components)
    table = rows_of(result, lines)
    values = {k: p.value for k, p in result.parameters.items()}
    m = 0.5 * TIME[-1]
    rng = np.random.default_rng(0)
    names = list(values)
    mean = np.stack([values[n] for n in names], -1)
    for line, frequency in zip(lines, phases, strict=True):
        end = line.end
        rate = values.get("chirp_rate", np.zeros(2))
        centre = frequency(values["frequency"], rate)
        average = 0.5 * (centre + line.order * values["frequency"])
        expected = values[f"phase{end}"] + 2 * np.pi * average * m
        np.testing.assert_allclose(
            wrap(table[f"centre_phase{end}"].to_numpy() - expected), 0, atol=1e-9
        )
        np.testing.assert_allclose(line.order * table[line.frequency], centre)
        draws = rng.multivariate_normal(mean[0], result.covariance[0], 4000)
        one = dict(zip(names, draws.T, strict=True))
        f, c = one["frequency"], one.get("chirp_rate", 0.0)
        spread = one[f"phase{end}"] + np.pi * m * (line.order * f + frequency(f, c))
        # 4000 draws: a standard deviation to 1.1 %
        stderr = table[f"centre_phase{end}_stderr"][0]
        assert np.std(spread) == pytest.approx(stderr, rel=0.05)


def test_a_drifting_line_keeps_its_cycles_as_a_chirp():
    """Phases of a linear sweep are unwrapped exactly, and its drift is no wander."""
    start, rate, window = 8.0, 0.02, 10.0
    centre = 5.0 + 7.0 * np.arange(40)
    frequency = start + rate * centre
    truth = 2 * np.pi * (start * centre + 0.5 * rate * centre**2)
    few = np.full(40, 1e-3)
    known = {"usable": np.ones(40, bool), "duration": window, "epoch": 0.0}
    args = centre, frequency, few, wrap(truth), np.full(40, 0.05)
    chirped = unwrap(
        *args, **known, steady=False, rate=(np.full(40, rate), np.full(40, 1e-4))
    )
    kept = np.isfinite(chirped.value)
    assert kept.sum() >= 38  # the median of five leaves out the ends of a steep drift
    reference = 2 * np.pi * chirped.reference * centre
    error = (chirped.value - truth + reference)[kept]
    np.testing.assert_allclose(error, error[0], atol=1e-6)
    assert chirped.certain[kept][1:].all()
    # negative control: taken for the wander of a steady line the drift is doubted
    assert not unwrap(*args, **known).certain[kept][1:].all()


@pytest.fixture(scope="session")
def prior_file(gaussian_prior, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    sepprior.save_prior(gaussian_prior, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, prior_file):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPPRIOR_PRIOR", str(prior_file))
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef fall(t, tau):\n    return torch.exp(-t / tau)\n\n\n"
        "def decaying(t, height, tau, offset):\n"
        "    return height * fall(t, tau) + offset\n\n\n"
        "def pulse(t, height):\n    return height * fall(t, 0.1)\n"
    )
    return tmp_path


def command(*args):
    result = CliRunner().invoke(main, ["separate", *map(str, args)])
    assert "Traceback" not in result.stderr
    return result


TOLD = {
    "damped": "--signal damped --fmin 8 --fmax 20 --bounds decay=0.5:10",
    "function": "--signal mine.py:decaying --bounds tau=0.02:1 --fix offset=0.5",
}


@pytest.mark.parametrize("case", TOLD)
def test_a_table_of_any_signal(case, here, gaussian_prior):
    signal, options = SIGNALS[case]
    x = measured(signal)
    np.save("x.npy", x)
    done = command("x.npy", "--table", "t", *TOLD[case].split(), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == COUNT
    assert_same_fits(pd.read_parquet("t"), x, gaussian_prior, options)


def test_a_track_of_any_signal_from_the_command_line(here, gaussian_prior):
    signal, options = SIGNALS["damped"]
    x = measured(signal)
    time = np.arange(x.size) / SAMPLE_RATE
    pd.DataFrame({"time": time, "x": x.ravel()}).to_csv("x.csv", index=False)
    done = command("x.csv", "--hop", WINDOW, *TOLD["damped"].split())
    assert done.exit_code == 0, done.stderr
    assert_same_fits(pd.read_csv("x.track.csv"), x, gaussian_prior, options)


def test_another_signal_is_another_table(here):
    np.save("x.npy", measured(SIGNALS["damped"][0])[:3])
    table = ("x.npy", "--table", "t", "--resume", "--signal")
    mine = (*table, "mine.py:pulse", "--bounds", "height=0:9")
    assert command(*mine).exit_code == 0

    def refused(*args):
        result = command(*args)
        assert result.exit_code == 2
        return result.stderr.splitlines()[-1]

    other = refused(*mine[:-1], "height=0:8")
    assert "bounds = {'height': [0.0, 9.0]} (now {'height': [0.0, 8.0]})" in other
    other = refused(*table, "damped")
    assert "signal = pulse of a file with SHA-256" in other and "(now damped)" in other
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace("-t / tau", "-2 * t / tau"))
    assert "(now pulse of a file with SHA-256" in refused(*mine)
    Path("mine.py").write_text(text)
    assert command(*mine).exit_code == 0


def test_a_signal_must_be_told_by_its_file(here):
    assert signal_identity("chirp") == "chirp"
    assert signal_identity(decaying).startswith("decaying of a file with SHA-256 ")
    factor = 2.0
    for function in (lambda t, a: a * factor * t, eval("lambda t, a: a * t")):
        with pytest.raises(SeppriorError, match="plain function that stands in a file"):
            signal_identity(function)


def test_a_function_of_a_file_reaches_the_workers(here, prior_file):
    """What Dask sends stands for itself in a process that has not read the file."""
    from distributed.protocol.pickle import dumps

    from sepprior.many.plan import Cut

    options = FitOptions(signal=find_signal("mine.py:decaying"), bounds={"tau": (1, 2)})
    cut = Cut(WINDOW, WINDOW)
    task = work.Task(str(prior_file), "", "cpu", cut, options, None, False)
    with pytest.raises((pickle.PicklingError, AttributeError, ImportError)):
        pickle.dumps(task)  # negative control: plainly it does not
    Path("task").write_bytes(dumps(task))
    Path("mine.py").unlink()
    code = (
        "import torch\nfrom distributed.protocol.pickle import loads\n"
        "options = loads(open('task', 'rb').read()).options\n"
        "values = torch.tensor([3.0, 0.5, 1.0])\n"
        "print(options.signal(torch.tensor(0.5), *values).item(), options.bounds)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    value, bounds = found.stdout.split(maxsplit=1)
    assert float(value) == pytest.approx(3.0 * np.exp(-1.0) + 1.0)
    assert bounds.strip() == "{'tau': (1, 2)}"


def test_mistakes_in_the_signal_are_found_before_anything_is_written(here):
    np.save("x.npy", measured(0.0))
    before = sorted(here.iterdir())
    for args, message in (
        (("--signal", "mine.py:other"), "defines no function 'other'"),
        (("--signal", "mine.py:decaying"), "give it bounds or a guess"),
        (("--signal", "damped", "--components", "2"), "has one component"),
        (("--signal", "chirp", "--bounds", "rate=1:2"), "no parameter 'rate'"),
        (
            ("--signal", "mine.py:decaying", "--fmin", "3"),
            "mean nothing for a function",
        ),
        (("--label", "idle"), "trained without labels"),
    ):
        for where in (("--table", "t"), ("--hop", WINDOW)):
            result = command("x.npy", *where, *args)
            assert result.exit_code == 2
            assert message in result.stderr.splitlines()[-1]
            assert sorted(here.iterdir()) == before


def test_one_label_for_all_inputs(tmp_path, specgan_prior, monkeypatch):
    """A conditional prior in a table: a fixed label, or the inferred one by window."""
    from dataclasses import replace

    from sepprior.data import Recording, Segment
    from sepprior.inference import calibration
    from sepprior.training import train_noise
    from tests.conftest import TINY

    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 20)
    parts = [(coloured_noise(60 * WINDOW, seed=1), "idle")]
    parts += [(5 * coloured_noise(60 * WINDOW, seed=2), "busy")]
    recording = Recording(tuple(Segment(v, label=n) for v, n in parts), SAMPLE_RATE)
    prior = train_noise(recording, config=replace(TINY, steps=4), device="cpu")
    # So small a prior helps nobody; what matters is that it is used.
    prior.metadata["heldout"]["gain"] = 1.0
    prior.metadata["heldout"]["gain_stderr"] = 0.1
    path = tmp_path / "prior.safetensors"
    sepprior.save_prior(prior, path)
    x = coloured_noise(4 * WINDOW, seed=5) + np.sin(
        2 * np.pi * 12 * np.arange(256) / 100
    )
    np.save(tmp_path / "x.npy", x.reshape(4, WINDOW))

    def rows(label, table):
        options = FitOptions(fmin=5, fmax=20, starts=1)
        given = {"options": options, "label": label, "device": "cpu", "resume": True}
        list(separate_many([tmp_path / "x.npy"], path, table=tmp_path / table, **given))
        return pd.read_parquet(tmp_path / table)

    loaded = sepprior.load_prior(path, device="cpu")
    for label in (None, "busy"):
        table = rows(label, f"t{label}")
        expected = sepprior.separate(
            x.reshape(4, WINDOW), loaded, fmin=5, fmax=20, starts=1, label=label
        )
        amplitude = expected.parameters["amplitude"].value
        np.testing.assert_allclose(table["amplitude"], amplitude, rtol=1e-6)
        assert ("inferred_label" in table) == (label is None)
    assert set(rows(None, "tNone")["inferred_label"]) <= {"idle", "busy"}
    with pytest.raises(SeppriorError, match=r"label = None \(now busy\)"):
        rows("busy", "tNone")
    with pytest.raises(SeppriorError, match="labels it knows: 'busy', 'idle'"):
        rows("off", "toff")
    track = sepprior.track(
        x, loaded, fmin=5, fmax=20, starts=1, hop=WINDOW, label="busy"
    )
    np.testing.assert_allclose(
        track.table["amplitude"], rows("busy", "tbusy")["amplitude"], rtol=1e-6
    )
