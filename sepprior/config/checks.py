"""Types and ranges of a recipe's settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sepprior.errors import SeppriorError

MIN_WINDOW = 16
"""Fewest samples of a window of the `gaussian` prior."""
MIN_WINDOW_SPECGAN = 64
"""Fewest samples of a window that has a spectrogram."""
MAX_WINDOW = 65536
"""Most samples of a window."""
MAX_SEED = 2**63 - 1
"""Largest seed a random generator takes."""


def suggestion(given: object, known: Mapping[str, Any] | list[str]) -> str:
    """`` (did you mean '...'?)`` where a known name is near, else nothing."""
    nearest = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def check_types(config: Any) -> None:
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
        hint = suggestion(value, [str(choice) for choice in choices])
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
    if annotation is bool and isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if annotation is int and isinstance(value, int):
            return value
        if annotation is float and math.isfinite(value):
            return float(value)
    wanted = {int: "an integer", bool: "true or false"}.get(
        annotation, "a finite number"
    )
    raise SeppriorError(f"{name} = {value!r}: expected {wanted}")


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    """Refuse a value below `low` or above `high` (None: no upper end)."""
    if value < low or (high is not None and value > high):
        bound = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
        raise SeppriorError(f"{name} = {value}: expected {bound}")


def check_fraction(name: str, value: float, *, zero: bool) -> None:
    """Refuse a value outside (0, 1), or outside [0, 1) where `zero` is allowed."""
    if not (0.0 <= value < 1.0 if zero else 0.0 < value < 1.0):
        least = "at least 0" if zero else "above 0"
        raise SeppriorError(f"{name} = {value}: expected a number {least} and below 1")


def check_common(validation_fraction: float, seed: int) -> None:
    """Refuse a held-out share or a seed that no recipe can use."""
    if not 0.0 < validation_fraction <= 0.5:
        raise SeppriorError(
            f"validation_fraction = {validation_fraction}: expected a number above 0 "
            "and at most 0.5"
        )
    if not 0 <= seed <= MAX_SEED:
        raise SeppriorError(f"seed = {seed}: expected 0 to 2^63 - 1")
