"""Which windows of a recording a prior is judged by, and what is said of them."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from sepprior.checkpoint import load_prior, save_prior
from sepprior.cli import main
from sepprior.config import GaussianConfig
from sepprior.data import Recording, Segment, as_recording, consecutive_windows
from sepprior.errors import SeppriorError
from sepprior.fidelity import inspect_prior
from sepprior.plotting import plot_fidelity
from sepprior.real_noise import MIN_WINDOWS, judging_windows
from sepprior.training import train as train_function
from sepprior.training import train_noise
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

train_module = __import__(train_function.__module__, fromlist=["train"])


@pytest.fixture
def validated(monkeypatch):
    """What the trainings of a test held out, instead of the final validation."""
    parts = []

    def validate(prior, gaussian, training, validation, held, *, seed, done):
        parts.append(validation)
        return {"heldout": {}}

    monkeypatch.setattr(train_module, "validate", validate)
    return parts


def trained(recording, **settings):
    config = GaussianConfig(window=WINDOW, **settings)
    return train_noise(recording, config=config, device="cpu")


def noise(n_windows, *, seed=1):
    return coloured_noise(n_windows * WINDOW, seed=seed)


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_its_own_recording_judges_by_what_training_held_out(
    fraction, validated, tmp_path
):
    recording = as_recording(noise(220), sample_rate=SAMPLE_RATE)
    path = tmp_path / "prior.safetensors"
    save_prior(trained(recording, validation_fraction=fraction), path)
    prior = load_prior(path, device="cpu")
    windows, origin = judging_windows(prior, recording)
    assert origin == "held_out"
    np.testing.assert_array_equal(
        windows, consecutive_windows(validated[0], window=WINDOW)
    )
    assert len(windows) == round(220 * fraction)
    # None of it is in the part that was trained on.
    assert recording.n_samples - windows.size == prior.metadata["n_training_samples"]
    assert len(judging_windows(prior, recording, limit=21)[0]) == 21


def test_of_each_label_the_end_is_held_out(validated):
    idle, busy = Segment(noise(150), label="idle"), Segment(noise(60), label="busy")
    recording = Recording((idle, busy), SAMPLE_RATE)
    windows, origin = judging_windows(trained(recording), recording)
    assert origin == "held_out"
    ends = [part.values[-n * WINDOW :] for part, n in ((idle, 15), (busy, 6))]
    np.testing.assert_array_equal(windows.ravel(), np.concatenate(ends))


def test_of_one_label_its_end_is_held_out(validated):
    idle, busy = Segment(noise(250), label="idle"), Segment(noise(60), label="busy")
    recording = Recording((idle, busy), SAMPLE_RATE)
    prior = trained(recording)
    windows, origin = judging_windows(prior, recording, label="idle")
    assert origin == "held_out"
    np.testing.assert_array_equal(windows.ravel(), idle.values[-25 * WINDOW :])
    # Six windows of the other one were held out.
    windows, origin = judging_windows(prior, recording, label="busy")
    assert origin == "trained_on"
    np.testing.assert_array_equal(windows.ravel(), busy.values)
    with pytest.raises(SeppriorError, match="'off'; labels it has: 'busy', 'idle'"):
        judging_windows(prior, recording, label="off")
    plain = as_recording(noise(30), sample_rate=SAMPLE_RATE)
    assert len(judging_windows(prior, plain, label="idle")[0]) == 30


def test_where_too_little_was_held_out_it_is_judged_by_all(validated):
    least = 10 * MIN_WINDOWS
    for n_windows, expected in ((least, "held_out"), (least - 10, "trained_on")):
        recording = as_recording(noise(n_windows), sample_rate=SAMPLE_RATE)
        windows, origin = judging_windows(trained(recording), recording)
        assert origin == expected
    assert len(windows) == n_windows


def test_any_other_numbers_are_another_recording(validated):
    recording = as_recording(noise(220), sample_rate=SAMPLE_RATE)
    prior = trained(recording)
    changed = {
        "other noise": noise(220, seed=2),
        "rounded": noise(220).round(6),
        "a part": noise(220)[:-1],
    }
    for what, values in changed.items():
        other = as_recording(values, sample_rate=SAMPLE_RATE)
        windows, origin = judging_windows(prior, other)
        assert origin == "other", what
        np.testing.assert_array_equal(
            windows, consecutive_windows(other, window=WINDOW)
        )
    slower = dataclasses.replace(recording, sample_rate=SAMPLE_RATE / 2)
    assert judging_windows(prior, slower)[1] == "other"
    del prior.metadata["data_hash"]
    assert judging_windows(prior, recording)[1] == "given"


@pytest.mark.parametrize(
    ("n_windows", "own", "n_judged", "origin", "said"),
    [
        (210, True, 21, "held_out", "the part that was held out"),
        (60, True, 60, "trained_on", "fewer than 20 windows were held out"),
        (60, False, 60, "other", "not the recording it was trained on"),
    ],
)
def test_the_command_says_what_it_judges_by(
    n_windows, own, n_judged, origin, said, validated, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("noise.npy", noise(n_windows))
    np.save("other.npy", noise(n_windows, seed=2))
    prior = trained(as_recording(noise(n_windows), sample_rate=SAMPLE_RATE))
    save_prior(prior, tmp_path / "p.safetensors")
    titles = []

    def plot(fidelity, path):
        figure = plot_fidelity(fidelity, path)
        titles.append(" ".join(figure.get_suptitle().split()))
        return figure

    monkeypatch.setattr("sepprior.plotting.plot_fidelity", plot)
    file = "noise.npy" if own else "other.npy"
    arguments = ["inspect", "p.safetensors", file, "--sample-rate", str(SAMPLE_RATE)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    kind = "held-out windows" if origin == "held_out" else "real windows"
    assert f"{n_judged} {kind} of {WINDOW} samples" in result.stdout
    assert said in result.stdout
    assert ("held-out" in result.stdout) == (origin == "held_out")
    read = json.loads((tmp_path / "p.inspect.json").read_text())
    assert read["n_windows"] == n_judged and read["real_windows"] == origin
    assert f"as many {kind} of" in titles[0]
    flattered = "It has learned from most of these windows"
    for text in (result.stdout, read["verdict"], titles[0]):
        assert (flattered in text) == (origin == "trained_on")


def test_windows_of_unknown_origin_claim_nothing(validated):
    recording = as_recording(noise(60), sample_rate=SAMPLE_RATE)
    windows = consecutive_windows(recording, window=WINDOW)
    report = inspect_prior(trained(recording), windows).report()
    assert report.startswith(f"60 real windows of {WINDOW} samples")
    assert "held" not in report and "trained on" not in report
