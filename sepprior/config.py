"""Recipes for training a noise prior, as frozen dataclasses and strict TOML.

One dataclass per model holds every setting of its training together with the default;
a TOML file names the ones that differ. Reading is strict: a key that the model does not
know, a value of another type and a value out of range are errors that say what would
have been right. The same dictionary that a TOML file holds is stored in the checkpoint,
so that `config_from_dict(config_to_dict(config)) == config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from sepprior.errors import SeppriorError

MIN_WINDOW = 16
"""Fewest samples of a window of the `gaussian` prior."""
MIN_WINDOW_SPECGAN = 64
"""Fewest samples of a window that has a spectrogram."""
MAX_WINDOW = 65536
"""Most samples of a window."""
MAX_SEED = 2**63 - 1
"""Largest seed a random generator takes."""


@dataclass(frozen=True)
class GaussianConfig:
    """Stationary Gaussian noise: the autocovariance of the recordings, no training.

    Attributes:
        model: Always "gaussian".
        window: Samples of one noise window, 16 to 65536.
        validation_fraction: Share of the recording held out, in contiguous blocks.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["gaussian"] = "gaussian"
    window: int = 300
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        _check_types(self)
        _check_range("window", self.window, MIN_WINDOW, MAX_WINDOW)
        _check_common(self.validation_fraction, self.seed)


@dataclass(frozen=True)
class SpecGANConfig:
    """A generative adversarial network on the normalised spectrogram of the noise.

    Attributes:
        model: Always "specgan".
        window: Samples of one noise window, 64 to 65536.
        channels: "complex" decodes z into a complex mean and a log-scale per
            time-frequency bin; "magnitude" is the published single log-magnitude.
        latent: Number of latents, the length of z.
        latent_distribution: Distribution of each latent: "normal", or "uniform" on
            [-1, 1].
        width: Channels of the generator's widest-resolution layer; deeper layers have
            multiples. Also the encoder's.
        critic_width: The same of the critic, whose steps take most of the time.
        steps: Generator steps of the whole training.
        batch: Noise windows per step.
        critic_steps: Critic steps per generator step.
        gradient_penalty: Weight of the critic's gradient penalty.
        learning_rate: Step size of Adam, for generator and critic.
        betas: Adam's decay rates of the first and second moment.
        ema: Decay per step of the generator's running average, used after training.
        spectral: Spectral term of the generator: "batch-mean" compares the logarithm of
            the batch-mean spectrum, "per-sample" is the published form (biased),
            "none" leaves it out.
        spectral_weight: Weight of the spectral term.
        likelihood_weight: Weight of the conditional Gaussian's likelihood.
        warmup_steps: Steps at the start that train without the critic.
        whitening: Spectrum the noise is divided by before the network sees it: "total",
            "continuum" (narrow lines left in), or "auto".
        validation_fraction: Share of the recording held out, in contiguous blocks.
        tick: Steps between two records of statistics.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["specgan"] = "specgan"
    window: int = 300
    channels: Literal["complex", "magnitude"] = "complex"
    latent: int = 32
    latent_distribution: Literal["normal", "uniform"] = "normal"
    width: int = 32
    critic_width: int = 16
    steps: int = 2600
    batch: int = 64
    critic_steps: int = 5
    gradient_penalty: float = 10.0
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)
    ema: float = 0.999
    spectral: Literal["batch-mean", "per-sample", "none"] = "batch-mean"
    spectral_weight: float = 1.0
    likelihood_weight: float = 10.0
    warmup_steps: int = 2000
    whitening: Literal["auto", "total", "continuum"] = "auto"
    validation_fraction: float = 0.1
    tick: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        _check_types(self)
        _check_range("window", self.window, MIN_WINDOW_SPECGAN, MAX_WINDOW)
        _check_range("latent", self.latent, 1, 4096)
        for name in ("width", "critic_width"):
            _check_range(name, getattr(self, name), 1, 1024)
        _check_range("steps", self.steps, 1, None)
        _check_range("batch", self.batch, 2, 65536)
        _check_range("critic_steps", self.critic_steps, 1, 100)
        _check_range("warmup_steps", self.warmup_steps, 0, None)
        _check_range("tick", self.tick, 1, None)
        for name in ("gradient_penalty", "spectral_weight", "likelihood_weight"):
            _check_range(name, getattr(self, name), 0.0, None)
        _check_fraction("learning_rate", self.learning_rate, zero=False)
        for beta in self.betas:
            _check_fraction("betas", beta, zero=True)
        _check_fraction("ema", self.ema, zero=True)
        _check_common(self.validation_fraction, self.seed)


NoiseConfig: TypeAlias = GaussianConfig | SpecGANConfig
"""A recipe of any model."""

CONFIGS: Mapping[str, type[NoiseConfig]] = {
    "gaussian": GaussianConfig,
    "specgan": SpecGANConfig,
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
    except tomllib.TOMLDecodeError as error:
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
            f"unknown model {named!r}{_suggestion(named, CONFIGS)}: "
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
            hint = _suggestion(key, known)
            raise SeppriorError(
                f"unknown {noun} {key!r} for model {model!r}{hint}: "
                f"known are {', '.join(known)}"
            )


def _suggestion(given: object, known: Mapping[str, Any] | list[str]) -> str:
    nearest = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def _check_types(config: NoiseConfig) -> None:
    """Hold every field to its annotation; an int where a float belongs becomes one."""
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        # The one write to a frozen instance: the value is the same, only typed.
        object.__setattr__(config, name, _coerce(name, value, annotation))


def _coerce(name: str, value: object, annotation: Any) -> object:
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if value in choices:
            return value
        hint = _suggestion(value, [str(choice) for choice in choices])
        raise SeppriorError(
            f"{name} = {value!r}{hint}: expected one of "
            + ", ".join(f'"{choice}"' for choice in choices)
        )
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if not isinstance(value, (tuple, list)) or len(value) != len(inner):
            raise SeppriorError(
                f"{name} = {value!r}: expected a list of {len(inner)} numbers"
            )
        pairs = zip(value, inner, strict=True)
        return tuple(_coerce(name, item, kind) for item, kind in pairs)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if annotation is int and isinstance(value, int):
            return value
        if annotation is float and math.isfinite(value):
            return float(value)
    wanted = "an integer" if annotation is int else "a finite number"
    raise SeppriorError(f"{name} = {value!r}: expected {wanted}")


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        bound = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
        raise SeppriorError(f"{name} = {value}: expected {bound}")


def _check_fraction(name: str, value: float, *, zero: bool) -> None:
    if not (0.0 <= value < 1.0 if zero else 0.0 < value < 1.0):
        least = "at least 0" if zero else "above 0"
        raise SeppriorError(f"{name} = {value}: expected a number {least} and below 1")


def _check_common(validation_fraction: float, seed: int) -> None:
    if not 0.0 < validation_fraction <= 0.5:
        raise SeppriorError(
            f"validation_fraction = {validation_fraction}: expected a number above 0 "
            "and at most 0.5"
        )
    if not 0 <= seed <= MAX_SEED:
        raise SeppriorError(f"seed = {seed}: expected 0 to 2^63 - 1")
