"""One row of a table for each window.

Dimensions: B windows in a batch, K sinusoids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sepprior.result import Separation
from sepprior.tracking.phase import wrap

if TYPE_CHECKING:
    import pandas

CENTRE_PHASE = "centre_phase"
_STEMS = ("amplitude", "frequency", "phase", CENTRE_PHASE)
_ENDINGS = ("", "_stderr", "_low", "_high")


def line_suffixes(columns: list[str]) -> list[str]:
    """What the names of each sinusoid end in: [""], or ["_1", "_2", ...]."""
    stem = "frequency"
    found = [name.removeprefix(stem) for name in columns if name.startswith(stem)]
    return [end for end in found if end == "" or end[1:].isdecimal()]


def rows_of(result: Separation) -> pandas.DataFrame:
    """The columns of `Separation.to_frame`, and the phase at the centre of the window.

    `centre_phase` is ``phase + 2 pi frequency m``, m the time from the first sample to
    the centre, with ``var = var_phase + 2 (2 pi m) cov + (2 pi m)^2 var_frequency``.
    Several sinusoids are put in ascending order of frequency: a fit has them in the
    order in which they were found, which may differ from window to window.

    Args:
        result: of a batch.
    """
    table = result.to_frame()
    status = table.pop("status")
    middle = np.pi * (result.time[0] + result.time[-1])  # 2 pi m
    names = list(result.parameters)
    for end in line_suffixes(names):
        f, p = names.index(f"frequency{end}"), names.index(f"phase{end}")
        covariance = result.covariance
        variance = (
            covariance[:, p, p]
            + 2 * middle * covariance[:, p, f]
            + middle**2 * covariance[:, f, f]
        )
        phase = table[f"phase{end}"] + middle * table[f"frequency{end}"]
        table[f"{CENTRE_PHASE}{end}"] = wrap(phase.to_numpy())
        table[f"{CENTRE_PHASE}{end}_stderr"] = np.sqrt(np.maximum(variance, 0.0))
    _sort_by_frequency(table, ["", *(f"{name}_" for name in result.baselines)])
    table["status"] = status
    return table


def _sort_by_frequency(table: pandas.DataFrame, fits: list[str]) -> None:
    """Reorder the sinusoids of each row, in place, for each fit's own frequencies."""
    ends = line_suffixes(list(table))
    if len(ends) < 2:
        return
    for fit in fits:
        order = np.argsort(table[[f"{fit}frequency{end}" for end in ends]].to_numpy())
        for stem in _STEMS:
            for ending in _ENDINGS:
                columns = [f"{fit}{stem}{end}{ending}" for end in ends]
                if columns[0] in table:
                    values = table[columns].to_numpy()
                    table[columns] = np.take_along_axis(values, order, 1)
