import dataclasses
import math
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepprior.config import (
    CONFIGS,
    GaussianConfig,
    SpecGANConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    override,
)
from sepprior.errors import SeppriorError

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(call, *args, **options):
    with pytest.raises(SeppriorError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults():
    assert config_from_dict({}) == SpecGANConfig()
    assert config_from_dict({"model": "gaussian"}) == GaussianConfig(
        window=300, validation_fraction=0.1, seed=0
    )


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.toml")), ids=str)
def test_files_of_the_repository_are_complete(path):
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    config = load_config(path)
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    default = type(config)()
    if path.stem == "specgan-magnitude-small":
        for name in ("window", "latent", "width", "critic_width", "batch"):
            assert getattr(config, name) == getattr(default, name)
    elif path.stem.endswith("-small") or path.stem == "gaussian":
        assert config == default


def test_every_model_and_mode_has_a_small_and_a_full_file():
    windows = {}
    for path in CONFIG_FOLDER.glob("*.toml"):
        if path.stem != "example":  # of the bundled prior
            config = load_config(path)
            mode = getattr(config, "channels", None)
            windows.setdefault((config.model, mode), []).append(config.window)
    modes = get_args(get_type_hints(SpecGANConfig)["channels"])
    kinds = {(name, None) for name in CONFIGS} - {("specgan", None)}
    assert windows.keys() == kinds | {("specgan", mode) for mode in modes}
    assert windows.pop(("gaussian", None)) == [300]
    for small, full in map(sorted, windows.values()):
        assert small == 300 and full >= 1024


def test_names_are_those_of_the_recipes():
    for name, recipe in CONFIGS.items():
        assert recipe().model == name


@given(
    window=st.integers(64, 65536),
    channels=st.sampled_from(["complex", "magnitude"]),
    rate=st.floats(1e-8, 0.5),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    seed=st.integers(0, 2**63 - 1),
)
def test_dictionary_round_trip(window, channels, rate, betas, seed):
    config = SpecGANConfig(
        window=window, channels=channels, learning_rate=rate, betas=betas, seed=seed
    )
    stored = config_to_dict(config)
    assert not any(isinstance(value, tuple) for value in stored.values())
    assert config_from_dict(stored) == config


def test_toml_file(tmp_path):
    path = write(
        tmp_path,
        """
        model = "specgan"   # a comment
        window = 4096
        channels = "magnitude"
        betas = [0, 0.9]
        gradient_penalty = 10
        """,
    )
    config = load_config(path)
    assert config == SpecGANConfig(window=4096, channels="magnitude", betas=(0.0, 0.9))
    # TOML's integers have become numbers, so that the stored recipe is the same too.
    assert isinstance(config, SpecGANConfig)
    assert type(config.gradient_penalty) is float
    assert type(config.betas) is tuple and type(config.betas[0]) is float


def test_model_named_by_the_caller(tmp_path):
    path = write(tmp_path, "window = 128")
    assert load_config(path, model="gaussian") == GaussianConfig(window=128)
    assert load_config(path) == SpecGANConfig(window=128)
    path = write(tmp_path, 'model = "specgan"')
    text = message_of(load_config, path, model="gaussian")
    assert "'specgan'" in text and "'gaussian'" in text


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"critic_step": 5}, "'critic_steps'"),
        ({"Window": 300}, "'window'"),
        ({"lr": 1.0, "model": "specgan"}, ""),
        ({"model": "gaussian", "windw": 300}, "'window'"),
        ({"model": "gausian"}, "'gaussian'"),
        ({"channels": "compex"}, "'complex'"),
    ],
)
def test_unknown_names_suggest_the_nearest(given, nearest):
    text = message_of(config_from_dict, given)
    assert ("did you mean" in text) == bool(nearest)
    assert nearest in text


def test_a_setting_of_another_model_is_unknown():
    text = message_of(config_from_dict, {"model": "gaussian", "latent": 8})
    assert "unknown key 'latent' for model 'gaussian'" in text
    assert "known are model, window, validation_fraction, seed" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", 63),
        ("window", 65537),
        ("window", 300.0),
        ("window", True),
        ("window", "300"),
        ("latent", 0),
        ("width", 0),
        ("steps", 0),
        ("batch", 1),
        ("critic_steps", 0),
        ("gradient_penalty", -1.0),
        ("gradient_penalty", math.nan),
        ("gradient_penalty", math.inf),
        ("learning_rate", 0.0),
        ("learning_rate", 1),
        ("betas", [0.5]),
        ("betas", 0.5),
        ("betas", [0.5, 1.0]),
        ("betas", [0.5, "0.9"]),
        ("ema", 1.0),
        ("spectral", "yes"),
        ("spectral", ["none"]),
        ("warmup_steps", -1),
        ("frame", 4),
        ("frame", 24),
        ("frame", 256),
        ("whitening", False),
        ("latent_distribution", "gauss"),
        ("validation_fraction", 0.0),
        ("validation_fraction", 0.6),
        ("tick", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("model", 3),
        ("model", ["specgan"]),
    ],
)
def test_values_that_cannot_be_used(name, value):
    assert name in message_of(config_from_dict, {name: value})


def test_a_recurrence_is_not_compiled():
    given = {"model": "lstm", "compile": True}
    assert "leave it out" in message_of(config_from_dict, given)


def test_limits_can_be_used():
    for window in (64, 65536):
        assert SpecGANConfig(window=window).window == window
    assert GaussianConfig(window=16).window == 16
    assert "at least" not in message_of(GaussianConfig, window=15)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"window = ", "not valid TOML"),
        (b"window = 300\nwindow = 301", "not valid TOML"),
        (b"\xff\xfe\x00", "not text"),
        (b"[training]\nsteps = 3", "unknown key 'training'"),
        (b"windows = 300", "did you mean 'window'"),
    ],
)
def test_bad_files(tmp_path, content, part):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    text = message_of(load_config, path)
    assert str(path) in text and part in text


def test_missing_file_and_folder(tmp_path):
    assert "cannot be read" in message_of(load_config, tmp_path / "absent.toml")
    assert "cannot be read" in message_of(load_config, tmp_path)


def test_override():
    config = SpecGANConfig(window=128, seed=3)
    changed = override(config, {"window": 256, "steps": None, "seed": None})
    assert changed == SpecGANConfig(window=256, seed=3)
    assert config.window == 128
    text = message_of(override, GaussianConfig(), {"steps": 10})
    assert "unknown setting 'steps' for model 'gaussian'" in text
    assert "64 to 65536" in message_of(override, config, {"window": 10})


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpecGANConfig().window = 1  # pyright: ignore[reportAttributeAccessIssue]
