"""Folders of spectrograms: read, learned by the magnitude SpecGAN, and generated."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sepprior.checkpoint import load_prior, load_spectrogram_gan
from sepprior.cli import main
from sepprior.config import SpecGANConfig
from sepprior.data.spectrograms import (
    are_spectrograms,
    read_spectrogram,
    read_spectrograms,
    write_spectrogram,
)
from sepprior.errors import SeppriorError
from sepprior.losses import spectrum_distance_db
from sepprior.nets import Generator, PlaneShape
from sepprior.priors.spectrogram import magnitudes, planes_of
from sepprior.training import resume_path, train_spectrograms
from sepprior.training.spectrograms import SpectrogramTrainer, _mean_power
from tests.conftest import finish, timeless

SIZE = 8
TINY = SpecGANConfig(
    channels="magnitude",
    width=4,
    critic_width=4,
    latent=3,
    batch=8,
    steps=6,
    tick=2,
    critic_steps=1,
    spectral_weight=0.5,
)
RECIPE = (
    'model = "specgan"\nchannels = "magnitude"\nwidth = 4\ncritic_width = 4\n'
    "latent = 3\nbatch = 8\nsteps = 4\ntick = 2\ncritic_steps = 1\n"
)


def noise(n, size=SIZE, seed=0):
    """Magnitudes of complex Gaussian coefficients whose power falls with frequency."""
    rng = np.random.default_rng(seed)
    scale = (1.0 / (1.0 + np.arange(size)))[:, None]
    parts = rng.standard_normal((2, n, size, size))
    return scale * np.hypot(*parts)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    for number, values in enumerate(noise(40)):
        write_spectrogram(path / f"{number:03d}.csv", values)
    return path


def test_files_are_read_as_they_are_written(folder, tmp_path):
    assert are_spectrograms([folder])
    data = read_spectrograms([folder])
    assert (len(data), data.size, data.values.dtype) == (40, SIZE, np.float32)
    np.testing.assert_allclose(data.values, noise(40), rtol=1e-6)
    assert isinstance(data.values, np.memmap)  # on disk, not in memory
    parts = list(data.chunks(3, 40, most=16))
    assert [len(part) for part in parts] == [16, 16, 5]
    np.testing.assert_array_equal(np.concatenate(parts), data.values[3:])
    (folder / "000.csv").write_bytes((folder / "001.csv").read_bytes())
    assert read_spectrograms([folder]).digest != data.digest
    published = noise(1, 128)[0].astype(np.float32)
    write_spectrogram(tmp_path / "one.csv", published)
    np.testing.assert_array_equal(read_spectrogram(tmp_path / "one.csv"), published)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,value\n0,1\n", "is no spectrogram"),
        ("1,2\n3\n", "is no spectrogram"),
        ("", "is 0 x"),
        ("1,2\n3,4\n", "is 2 x 2; expected as many frequencies as frames"),
        ("\n".join([",".join(["1"] * 8)] * 7), "is 7 x 8"),
        ("\n".join([",".join(["1"] * 12)] * 12), "is 12 x 12; expected as many"),
        ("\n".join([",".join(["nan"] * 8)] * 8), "line 1, column 1 is not a finite"),
        ("\n".join([",".join(["1", "-2"] * 4)] * 8), "line 1, column 2 is negative"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_what_is_no_spectrogram_is_refused(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(SeppriorError, match=message) as caught:
        read_spectrogram(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_mixed_sizes_and_lone_files_are_refused(folder):
    write_spectrogram(folder / "z.csv", noise(1, 16)[0])
    with pytest.raises(SeppriorError, match=r"z.csv: is 16 x 16, '.*000.csv' is 8 x 8"):
        read_spectrograms([folder])
    with pytest.raises(SeppriorError, match="at least 2"):
        read_spectrograms([folder / "z.csv"])


def test_recordings_are_told_from_spectrograms(tmp_path):
    for text in ("time,value\n0,1\n", "1\n2\n", "0,1.5\n1,2.5\n"):
        (tmp_path / "a.csv").write_text(text)
        assert not are_spectrograms([tmp_path])
    np.save(tmp_path / "0.npy", np.zeros((8, 8)))
    assert not are_spectrograms([tmp_path])


def test_normalisation_is_that_of_the_definition_and_is_undone(folder):
    data = read_spectrograms([folder])
    trainer = SpectrogramTrainer(data, TINY, torch.device("cpu"))
    assert trainer.training == 36
    logs = np.log(noise(40)[:36] + 1e-6)
    mean, sd = logs.mean((0, 2)), logs.std((0, 2))
    np.testing.assert_allclose(trainer.log_mean[:, 0], mean, rtol=1e-4)
    np.testing.assert_allclose(trainer.log_sd[:, 0], sd, rtol=1e-4)
    values = torch.from_numpy(noise(40)).float()
    planes = planes_of(values, trainer.log_mean, trainer.log_sd)
    expected = np.clip(
        (np.log(noise(40) + 1e-6) - mean[:, None]) / 3 / sd[:, None], -1, 1
    )
    np.testing.assert_allclose(planes[:, 0], expected, atol=1e-4)
    back = magnitudes(planes, trainer.log_mean, trainer.log_sd)
    whole = planes[:, 0].abs() < 1
    torch.testing.assert_close(back[whole], values[whole], rtol=1e-4, atol=1e-6)
    # What was clipped comes back at three standard deviations.
    clipped = np.exp(mean - 3 * sd)[:, None] * np.ones_like(back[0])
    low = planes[:, 0] == -1
    assert low.any()
    torch.testing.assert_close(
        back[low],
        torch.from_numpy(clipped).float().expand_as(back)[low],
        rtol=1e-3,
        atol=1e-5,
    )
    power = (noise(40)[:36] ** 2).mean((0, 2))
    np.testing.assert_allclose(trainer.power, power, rtol=1e-4)


def test_training_resumes_exactly_and_keeps_an_interrupted_run(folder, tmp_path):
    data = read_spectrograms([folder])
    whole = tmp_path / "whole.safetensors"
    records, model = finish(train_spectrograms(data, TINY, device="cpu", output=whole))
    assert [record["step"] for record in records] == [2, 4, 6]
    assert records[-1]["spectral_floor_db"] < 3
    path = tmp_path / "part.safetensors"
    stream = train_spectrograms(data, TINY, device="cpu", output=path)
    first = next(stream)
    stream.close()
    assert load_spectrogram_gan(path, device="cpu").metadata["unfinished"]
    stream = train_spectrograms(data, TINY, device="cpu", output=path, resume=True)
    later, resumed = finish(stream)
    assert timeless([first, *later]) == timeless(records)
    for a, b in zip(
        model.generator.parameters(), resumed.generator.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    # Networks, optimisers and random numbers.
    ends, again = (load_file(resume_path(where)) for where in (whole, path))
    assert ends.keys() == again.keys()
    assert all(torch.equal(ends[name], again[name]) for name in ends)
    loaded = load_spectrogram_gan(path, device="cpu")
    draws = (
        m.sample(3, generator=torch.Generator().manual_seed(1)) for m in (model, loaded)
    )
    assert torch.equal(*draws)
    assert "unfinished" not in loaded.metadata
    (folder / "000.csv").write_bytes((folder / "001.csv").read_bytes())
    other = read_spectrograms([folder])
    with pytest.raises(SeppriorError, match="other recordings"):
        next(train_spectrograms(other, TINY, device="cpu", output=path, resume=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["wgan-gp", "wgan", "dcgan", "lsgan", "rpgan-r1r2"])
def test_every_loss_trains(folder, loss, precision):
    """Both networks learn, with the penalty or the clipping that the loss asks for."""
    data = read_spectrograms([folder])
    config = replace(TINY, loss=loss, precision=precision)
    trainer = SpectrogramTrainer(data, config, torch.device("cpu"))
    before = copy.deepcopy((trainer.generator, trainer.critic))
    for _ in range(2):
        record = trainer.advance()
        assert np.isfinite(list(record.values())).all()
        assert ("gradient_penalty" in record) == (loss in ("wgan-gp", "rpgan-r1r2"))
        # Of these the least is 0, for the critic and for the generator.
        if loss in ("dcgan", "lsgan", "rpgan-r1r2"):
            assert record["critic_distance"] < 0.0 < record["generator_loss"]
    for then, now in zip(before, (trainer.generator, trainer.critic), strict=True):
        pairs = zip(then.parameters(), now.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs if a.dim() > 1)
    largest = max(float(p.detach().abs().max()) for p in trainer.critic.parameters())
    assert (largest < 1.001 * config.weight_clip) == (loss == "wgan")


@pytest.mark.statistical
def test_training_learns_the_mean_spectrum(folder):
    """A tiny network, led by the spectral term, halves the error of the mean power."""
    data = read_spectrograms([folder])
    config = replace(TINY, steps=60, learning_rate=2e-3, ema=0.9, spectral_weight=30.0)
    trainer = SpectrogramTrainer(data, config, torch.device("cpu"))
    before = trainer.spectral_error_db()
    while trainer.step < config.steps:
        record = trainer.advance()
    assert np.isfinite(list(record.values())).all()
    after = trainer.spectral_error_db()
    assert after < 0.5 * before and after < 1.0
    # Negative control: white spectrograms of the same power are told apart.
    flat = torch.from_numpy(noise(64)).float().flip(1)
    assert spectrum_distance_db(_mean_power([flat]), trainer.power) > 5


def test_a_training_that_runs_away_is_stopped(folder, tmp_path):
    data = read_spectrograms([folder])
    path = tmp_path / "g.safetensors"
    broken = replace(TINY, learning_rate=0.9, steps=30)
    with pytest.raises(SeppriorError, match="mean spectrum of generated") as caught:
        finish(train_spectrograms(data, broken, device="cpu", output=path))
    assert "a lower learning_rate (now 0.9)" in str(caught.value)
    assert "\n" not in str(caught.value)
    # What the tick before had is kept.
    left = load_spectrogram_gan(path, device="cpu")
    assert left.metadata["unfinished"] and left.sample(2).isfinite().all()
    high = replace(TINY, learning_rate=0.02, steps=30)
    records, _ = finish(train_spectrograms(data, high, device="cpu"))
    assert records[-1]["step"] == 30


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": "complex"}, "channels"),
        ({"augment_noise": 0.1}, "augment_noise"),
        ({"keep": "best"}, "keep"),
    ],
)
def test_settings_without_a_meaning_are_refused(folder, setting, message):
    data = read_spectrograms([folder])
    with pytest.raises(SeppriorError, match=message):
        train_spectrograms(data, replace(TINY, **setting), device="cpu")


def test_the_spectral_term_is_that_of_the_frames(folder):
    """Of Rayleigh magnitudes: powers with a mean of 2 scale^2, sd of logs 1.28 nat."""
    data = read_spectrograms([folder])
    trainer = SpectrogramTrainer(data, TINY, torch.device("cpu"))
    frames = (noise(40)[:36] ** 2).transpose(0, 2, 1).reshape(-1, SIZE)
    mean, sd = np.log(frames.mean(0)), np.log(frames).std(0)
    np.testing.assert_allclose(trainer.log_mean_power, mean, atol=1e-4)
    np.testing.assert_allclose(trainer.log_sd_power, sd, rtol=1e-4)
    assert float(trainer.log_sd_power.mean()) == pytest.approx(1.28, abs=0.1)
    for form in ("batch-mean", "per-sample", "none"):
        config = replace(TINY, spectral=form)
        trainer = SpectrogramTrainer(data, config, torch.device("cpu"))
        record = trainer.advance()
        assert np.isfinite(list(record.values())).all()
        assert ("spectral_loss" in record) == (form != "none")


def test_a_frequency_without_power_is_learned(folder):
    """Spectrograms without their mean have none at frequency zero."""
    for path in folder.iterdir():
        values = read_spectrogram(path)
        values[0] = 0.0
        write_spectrogram(path, values)
    data = read_spectrograms([folder])
    trainer = SpectrogramTrainer(data, TINY, torch.device("cpu"))
    record = [trainer.advance() for _ in range(2)][-1]
    assert np.isfinite(list(record.values())).all()
    assert all(p.isfinite().all() for p in trainer.generator.parameters())


def test_from_folder_to_folder_on_the_command_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    np.savetxt("x.csv", noise(1)[0].ravel())
    run = CliRunner().invoke
    args = ["train-noise", "in", "--config", "tiny.toml", "--device", "cpu", "-o"]
    result = run(main, [*args, "g.safetensors"])
    assert result.exit_code == 0, result.stderr
    assert "training a specgan generator on 40 8 x 8 spectrograms" in result.stderr
    assert "next: sepprior sample g.safetensors -n N -o FOLDER" in result.stdout
    lines = (tmp_path / "g.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    result = run(main, ["sample", "g.safetensors", "-n", "3", "-o", "out"])
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"spectrogram_0000{k}.csv" for k in range(3)
    ]
    made = read_spectrograms([tmp_path / "out"])  # as what was trained on
    assert made.size == SIZE
    model = load_spectrogram_gan("g.safetensors", device="cpu")
    again = model.sample(3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made.values, again, rtol=1e-6)
    for command, message in (
        (["sample", "g.safetensors"], "-o FOLDER"),
        (["sample", "g.safetensors", "-o", "x.csv"], "-o FOLDER"),
        (["separate", "x.csv", "--prior", "g.safetensors"], "spectrograms"),
        (["inspect", "g.safetensors", "x.csv"], "spectrograms"),
        (["inspect", "g.safetensors", "--label", "idle"], "spectrograms"),
        (["sample", "g.safetensors", "-o", "two", "--label", "idle"], "no labels"),
    ):
        result = run(main, command)
        assert result.exit_code == 2
        assert message in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
    card = run(main, ["inspect", "g.safetensors"])
    assert card.exit_code == 0, card.stderr
    assert "8 frequencies, 8 frames" in card.stdout
    assert "spectral floor db" in card.stdout
    with pytest.raises(SeppriorError, match="train on recordings"):
        load_prior("g.safetensors")
    (folder / "005.csv").write_text("1,2\n")
    result = run(main, [*args, "h.safetensors"])
    assert result.exit_code == 2 and "005.csv: is 1 x 2" in result.stderr
    assert not list(tmp_path.glob("h.*"))


def test_spectrograms_of_the_published_size(tmp_path, monkeypatch):
    """From CSV files to CSV files: read in parts, their moments, two steps, draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sepprior.training.spectrograms.CHUNK_VALUES", 4 * 128**2)
    values = noise(12, 128)
    (tmp_path / "in").mkdir()
    for number, one in enumerate(values):
        write_spectrogram(tmp_path / f"in/{number:02d}.csv", one)
    recipe = RECIPE.replace("width = 4", "width = 1").replace("batch = 8", "batch = 4")
    (tmp_path / "one.toml").write_text(recipe.replace("steps = 4", "steps = 2"))
    run, args = CliRunner().invoke, ["--config", "one.toml", "--device", "cpu"]
    result = run(main, ["train-noise", "in", *args, "-o", "g.safetensors"])
    assert result.exit_code == 0, result.stderr
    assert "on 12 128 x 128 spectrograms" in result.stderr
    (record,) = map(json.loads, (tmp_path / "g.jsonl").read_text().splitlines())
    assert record["step"] == 2 and record["gradient_penalty"] > 0
    model = load_spectrogram_gan("g.safetensors", device="cpu")
    assert model.generator.plane.base == (4, 4)
    logs = np.log(values[:11] + 1e-6)  # the last one is held out
    mean, sd = logs.mean((0, 2)), logs.std((0, 2))
    np.testing.assert_allclose(model.log_mean[:, 0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.log_sd[:, 0], sd, rtol=1e-4)
    result = run(main, ["sample", "g.safetensors", "-n", "2", "-o", "out"])
    assert result.exit_code == 0, result.stderr
    made = read_spectrograms([tmp_path / "out"])
    assert (len(made), made.size) == (2, 128)
    drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made.values, drawn, rtol=1e-6)
    # Within three standard deviations of every frequency, around its mean.
    deviation = (np.log(made.values) - mean[:, None]) / sd[:, None]
    assert np.abs(deviation).max() < 3.001
    assert np.abs(deviation.mean((0, 2))).max() < 1.0
    # Negative control: of the other axis they are not.
    assert np.abs((np.log(made.values) - mean) / sd).max() > 3.1


def test_the_published_network_fits_the_published_plane():
    generator = Generator(
        PlaneShape(128, 128), latent=4, width=1, channels=1, bounded=True
    )
    assert generator(torch.zeros(1, 4)).shape == (1, 1, 128, 128)
