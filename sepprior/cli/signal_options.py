"""What `sepprior separate` is told about the signal."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sepprior.errors import SeppriorError

BUILT_IN = ("sinusoid", "harmonics", "damped", "chirp")

signal_option = click.option(
    "--signal",
    default="sinusoid",
    show_default=True,
    metavar="FORM",
    help=f"{', '.join(BUILT_IN)}, or FILE.py:FUNCTION for a function "
    "f(t, a, b, ...) of torch operations.",
)
bounds_option = click.option(
    "--bounds",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="Bounds of a parameter; an end may be left empty.",
)
fixed_option = click.option(
    "--fix", "fixed", multiple=True, metavar="NAME=VALUE", help="A known parameter."
)
guess_option = click.option(
    "--guess", multiple=True, metavar="NAME=VALUE", help="Where to start a parameter."
)
expected_option = click.option(
    "--expect",
    "expected",
    multiple=True,
    metavar="NAME=MEAN:SD",
    help="Gaussian prior on a parameter.",
)


def find_signal(text: str) -> str | Callable[..., Any]:
    """The form of a signal, or the function that FILE.py:FUNCTION names."""
    if text in BUILT_IN:
        return text
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name:
        raise SeppriorError(
            f"--signal {text}: give {', '.join(BUILT_IN)}, or FILE.py:FUNCTION"
        )
    if not Path(file).is_file():
        raise SeppriorError(f"--signal {text}: there is no file '{file}'")
    try:
        found = runpy.run_path(file)
    except Exception as error:
        raise SeppriorError(
            f"--signal {text}: '{file}' cannot be run ({type(error).__name__}: {error})"
        ) from error
    if not callable(found.get(name)):
        functions = [
            key
            for key, value in found.items()
            if callable(value) and getattr(value, "__module__", "") == "<run_path>"
        ]
        raise SeppriorError(
            f"--signal {text}: '{file}' defines no function '{name}'; it has "
            f"{', '.join(functions) or 'none'}"
        )
    return found[name]


def read_values(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Values of NAME=VALUE."""
    return {
        name: _number(option, text, value)
        for name, value, text in _split(option, texts)
    }


def read_pairs(option: str, texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Pairs of NAME=A:B; an end that is left empty is infinite."""
    pairs = {}
    for name, value, text in _split(option, texts):
        first, colon, second = value.partition(":")
        if not colon:
            raise SeppriorError(f"{option} {text}: expected two numbers, NAME=A:B")
        pairs[name] = (
            _number(option, text, first) if first.strip() else -math.inf,
            _number(option, text, second) if second.strip() else math.inf,
        )
    return pairs


def _split(option: str, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    parts = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SeppriorError(f"{option} {text}: expected NAME=...")
        if name.strip() in [known for known, _, _ in parts]:
            raise SeppriorError(f"{option} {text}: '{name.strip()}' was given before")
        parts.append((name.strip(), value.strip(), text))
    return parts


def _number(option: str, text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise SeppriorError(f"{option} {text}: '{value}' is not a number") from error
