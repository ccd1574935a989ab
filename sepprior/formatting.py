"""Numbers with their uncertainty as text: the one place that decides on digits."""

from __future__ import annotations

import math
import re

_FIXED_LOW, _FIXED_HIGH = -4, 6  # decades written without an exponent


UNITS = {"frequency": "Hz", "phase": "rad", "decay": "1/s", "chirp": "Hz/s"}
"""SI units of parameters by their kind; others are in data units, or a user's own."""


def format_uncertain(
    value: float, stderr: float, *others: float
) -> tuple[str, str, tuple[str, ...]]:
    """Value, standard error and further numbers of the same quantity as text.

    All have the decimals that give the standard error two significant digits, and
    share one power of ten. A standard error that is not a positive finite number
    reads "n/a" and leaves six significant digits.

    Args:
        value: the estimate.
        stderr: its standard error.
        *others: numbers to be written with the same decimals (interval ends).

    Returns:
        the value, the standard error, and the others.
    """
    if not (math.isfinite(stderr) and stderr > 0 and math.isfinite(value)):
        stderr_text = f"{stderr:.2g}" if stderr == 0 else "n/a"
        return f"{value:.6g}", stderr_text, tuple(f"{o:.6g}" for o in others)
    decade = math.floor(math.log10(max(abs(value), stderr)))
    exponent = 0 if _FIXED_LOW <= decade < _FIXED_HIGH else decade
    scale = 10.0**exponent
    decimals = min(max(1 - math.floor(math.log10(stderr / scale)), 0), 15)
    suffix = f"e{exponent:+03d}" if exponent else ""

    def text(number: float) -> str:
        return f"{number / scale:.{decimals}f}{suffix}"

    return text(value), text(stderr), tuple(text(o) for o in others)


def format_table(rows: list[list[str]], *, gap: str = "  ") -> str:
    """Left-aligned columns, each as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        gap.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def without_numbers(status: str) -> str:
    """A status without what is in brackets and has digits, so that like is like."""
    return re.sub(r" \([^()]*\d[^()]*\)", "", status)
