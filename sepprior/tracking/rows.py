"""One row of a table for each window.

Dimensions: B windows in a batch, K sinusoids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sepprior.result import Separation
from sepprior.signals import Signal
from sepprior.tracking.phase import wrap

if TYPE_CHECKING:
    import pandas

CENTRE_PHASE = "centre_phase"
CENTRE_FREQUENCY = "centre_frequency"
_STEMS = ("amplitude", "frequency", "phase", CENTRE_PHASE)
_ENDINGS = ("", "_stderr", "_low", "_high")


@dataclass(frozen=True)
class Line:
    """An oscillation of the signal whose phase is followed from window to window.

    Attributes:
        end: what the names of its own columns end in: "", or "_1", "_2", ...
        source: parameter that tells its frequency at the start of a window.
        frequency: column of the frequency at the centre of a window.
        order: how many times as high its own frequency is: the number of a harmonic.
        rate: parameter that tells how fast the frequency changes, if one does.
        steady: whether the errors of windows that overlap are correlated as those of a
            steady sinusoid are.
    """

    end: str = ""
    source: str = "frequency"
    frequency: str = "frequency"
    order: int = 1
    rate: str | None = None
    steady: bool = True


def lines_of(signal: Signal, components: int) -> tuple[Line, ...]:
    """The oscillations of a signal; none of a function, whose parameters may be any.

    Args:
        signal: see `separate`.
        components: number of sinusoids or harmonics.
    """
    if signal == "sinusoid" and components > 1:
        names = [f"_{k}" for k in range(1, components + 1)]
        return tuple(
            Line(end, source=f"frequency{end}", frequency=f"frequency{end}")
            for end in names
        )
    if signal == "harmonics":
        return tuple(Line(f"_{h}", order=h) for h in range(1, components + 1))
    if signal == "chirp":
        return (Line(frequency=CENTRE_FREQUENCY, rate="chirp_rate", steady=False),)
    if signal == "damped":
        return (Line(steady=False),)
    return (Line(),) if signal == "sinusoid" else ()


def rows_of(result: Separation, lines: tuple[Line, ...]) -> pandas.DataFrame:
    """The columns of `Separation.to_frame`, and the phases at the centre of the window.

    With m the time from the first sample to the centre, `centre_phase` of the h-th
    harmonic is ``phase + 2 pi h frequency m``, to which a chirp adds
    ``pi chirp_rate m^2``; the frequency there, a column of its own for a chirp alone,
    is ``frequency + chirp_rate m``. The errors follow from the covariance. Several
    sinusoids are put in ascending order of frequency: a fit has them in the order in
    which they were found, which may differ from window to window.

    Args:
        result: of a batch.
        lines: the oscillations of its signal.
    """
    table = result.to_frame()
    status = table.pop("status")
    m = 0.5 * (result.time[0] + result.time[-1])
    for line in lines:
        turn = 2 * np.pi * line.order * m
        weights = {f"phase{line.end}": 1.0, line.source: turn}
        if line.rate is not None:
            weights[line.rate] = np.pi * m**2
            value, stderr = _combine(result, {line.source: 1.0, line.rate: m})
            table[line.frequency], table[f"{line.frequency}_stderr"] = value, stderr
        value, stderr = _combine(result, weights)
        table[f"{CENTRE_PHASE}{line.end}"] = wrap(value)
        table[f"{CENTRE_PHASE}{line.end}_stderr"] = stderr
    if len({line.source for line in lines}) > 1:
        ends = [line.end for line in lines]
        _sort_by_frequency(
            table, ends, ["", *(f"{name}_" for name in result.baselines)]
        )
    table["status"] = status
    return table


def _combine(
    result: Separation, weights: dict[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sum of parameters and its standard error, shape (B,) each."""
    names = list(result.parameters)
    places = [names.index(name) for name in weights]
    w = np.array(list(weights.values()))
    values = np.stack([result.parameters[name].value for name in weights], -1)
    covariance = result.covariance[:, places][:, :, places]
    variance = np.einsum("i,bij,j->b", w, covariance, w)
    return values @ w, np.sqrt(np.maximum(variance, 0.0))


def _sort_by_frequency(
    table: pandas.DataFrame, ends: list[str], fits: list[str]
) -> None:
    """Reorder the sinusoids of each row, in place, for each fit's own frequencies."""
    for fit in fits:
        order = np.argsort(table[[f"{fit}frequency{end}" for end in ends]].to_numpy())
        for stem in _STEMS:
            for ending in _ENDINGS:
                columns = [f"{fit}{stem}{end}{ending}" for end in ends]
                if columns[0] in table:
                    values = table[columns].to_numpy()
                    table[columns] = np.take_along_axis(values, order, 1)
