"""The recipe of each model, by its name, and strict reading from TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sepprior.config.checks import suggestion
from sepprior.config.diffusion import DiffusionConfig
from sepprior.config.gansynth import GANSynthConfig
from sepprior.config.gaussian import GaussianConfig
from sepprior.config.lstm import LSTMConfig
from sepprior.config.specgan import SpecGANConfig
from sepprior.config.wavegan import WaveGANConfig
from sepprior.errors import SeppriorError

WaveformConfig: TypeAlias = WaveGANConfig | LSTMConfig | GANSynthConfig
"""A recipe of a generator of waveforms, which has no scale of its own."""

IterativeConfig: TypeAlias = SpecGANConfig | WaveformConfig | DiffusionConfig
"""A recipe of a model that is trained in steps."""

NoiseConfig: TypeAlias = GaussianConfig | IterativeConfig
"""A recipe of any model."""

CONFIGS: Mapping[str, type[NoiseConfig]] = {
    "gaussian": GaussianConfig,
    "specgan": SpecGANConfig,
    "diffusion": DiffusionConfig,
    "wavegan": WaveGANConfig,
    "gansynth": GANSynthConfig,
    "lstm": LSTMConfig,
}
"""The recipe of each model, by its name."""

DEFAULT_MODEL = "specgan"
"""The model that is trained when none is named."""


def load_config(path: str | Path, *, model: str | None = None) -> NoiseConfig:
    """Read a recipe from a TOML file.

    Args:
        path: The TOML file: one flat table with the field names of the model's recipe.
        model: Model to train, where the caller has named one. It must agree with the
            file's own `model`, and stands in for it where the file has none.

    Returns:
        The recipe, with defaults where the file is silent.

    Raises:
        SeppriorError: The file is missing, unreadable, not TOML, or holds an unknown
            key or a value that cannot be used.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SeppriorError(
            f"config file '{path}' cannot be read ({error.strerror}): give a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise SeppriorError(
            f"config file '{path}' is not text: give a TOML file in UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SeppriorError(
            f"config file '{path}' is not valid TOML: {error}; write lines such as "
            "window = 300"
        ) from error
    try:
        return config_from_dict(values, model=model)
    except SeppriorError as error:
        raise SeppriorError(f"config file '{path}': {error}") from error


def config_from_dict(
    values: Mapping[str, Any], *, model: str | None = None
) -> NoiseConfig:
    """Build the recipe that a plain dictionary describes.

    Args:
        values: Field names and values, as from TOML or JSON (a list stands for a
            tuple). "model" picks the recipe.
        model: Model to train, where the caller has named one. It must agree with
            `values["model"]`, and stands in for it where there is none.

    Returns:
        The recipe, with defaults for fields that are not named.

    Raises:
        SeppriorError: Unknown model or key (the nearest known one is named), a value of
            another type, or a value out of range.
    """
    named = values.get("model", model or DEFAULT_MODEL)
    if model is not None and named != model:
        raise SeppriorError(
            f"the recipe is for model {named!r} but model {model!r} was asked for: "
            "make the two agree or leave one out"
        )
    recipe = CONFIGS.get(named) if isinstance(named, str) else None
    if recipe is None:
        raise SeppriorError(
            f"unknown model {named!r}{suggestion(named, CONFIGS)}: "
            f"choose one of {', '.join(CONFIGS)}"
        )
    _check_known(recipe, values, "key")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }
    return recipe(**given)


def config_to_dict(config: NoiseConfig) -> dict[str, Any]:
    """Turn a recipe into a dictionary that JSON and TOML can hold.

    Args:
        config: The recipe.

    Returns:
        Every field by name, tuples as lists; `config_from_dict` is its inverse.
    """
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def override(config: NoiseConfig, changes: Mapping[str, Any]) -> NoiseConfig:
    """Replace some settings of a recipe, as the options of the command line do.

    Args:
        config: The recipe to start from.
        changes: New values by field name; None means not given.

    Returns:
        A recipe with the given values.

    Raises:
        SeppriorError: The model has no such setting, or the value cannot be used.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    _check_known(type(config), given, "setting")
    return dataclasses.replace(config, **given)


def _check_known(
    recipe: type[NoiseConfig], values: Mapping[str, Any], noun: str
) -> None:
    known = [field.name for field in dataclasses.fields(recipe)]
    for key in values:
        if key not in known:
            model = recipe.model
            hint = suggestion(key, known)
            raise SeppriorError(
                f"unknown {noun} {key!r} for model {model!r}{hint}: "
                f"known are {', '.join(known)}"
            )
