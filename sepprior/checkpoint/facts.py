"""What was measured when a prior was trained, checked before it is used.

Facts that are missing were not measured. Fields that are not known here, of a later
release, are left alone.
"""

from __future__ import annotations

import numpy as np

from sepprior.checkpoint.entries import Entry

METHODS = ("gls", "robust", "joint")
PARAMETERS = ("amplitude", "frequency", "phase", "bias")
FACTOR = 1e4
"""Largest factor by which an error bar is widened; its inverse is the least."""
QUANTILES = 201
"""Quantiles of the distance by which the noise is judged."""
MOST_BANDS, SAMPLES_PER_BAND = 8, 8
"""Bands in which the noise is judged: 1, 2, 4 or 8, of so many samples each."""


def check_facts(metadata: Entry, window: int, *, scored: bool) -> None:
    """Refuse facts of another type, length or range.

    Args:
        metadata: of the file.
        window: samples of a window of the prior.
        scored: the prior is used by its held-out score, if it has one.

    Raises:
        ValueError: says which fact, what it is, and what was expected.
    """
    checks = {
        "range_error": _range_error,
        "calibration": _calibration,
        "gains": _gains,
        "energy": _energy,
        "data_hash": Entry.text,
        "whitening": Entry.text,
        "unfinished": Entry.flag,
        "config": _config,
    }
    for name, entry in metadata.fields().items():
        if name == "novelty":
            _novelty(entry, window)
        elif name == "heldout":
            if scored or entry.fields():
                _heldout(entry)
        elif name in checks:
            checks[name](entry)


def _heldout(facts: Entry) -> None:
    facts["gain"].number()
    facts["gain_stderr"].number(low=0.0)


def _range_error(facts: Entry) -> None:
    """Held-out scores, which each label may have of its own."""
    held, labels = facts.get("heldout"), facts.get("labels")
    if held is not None:
        _heldout(held)
    for of_label in [] if labels is None else labels.fields().values():
        _heldout(of_label["heldout"])


def _config(facts: Entry) -> None:
    share = facts.get("validation_fraction")
    if share is not None:
        share.number(0.0, 1.0)


def _energy(facts: Entry) -> None:
    facts["mean"].number()
    facts["sd"].number(low=0.0)


def _calibration(facts: Entry) -> None:
    """Factors on error bars by method, parameter and band."""
    bands = len(facts["cycles"].rising(low=1e-9))
    for method in METHODS:
        table = facts.get(method)
        if table is None:
            continue
        for parameter in PARAMETERS:
            for name in ("q68", "q95"):
                table[parameter][name].numbers(bands, low=1 / FACTOR, high=FACTOR)
        level = table.get("level")
        if level is not None:
            median, sd = level.items(2)
            median.number(-FACTOR, FACTOR)
            sd.number(low=1.0 / FACTOR**2)


def _gains(facts: Entry) -> None:
    """Gains of recorded noise by band, for equal steps in Gaussian noise."""
    facts["step"].number(low=1e-6)
    bands = len(facts["cycles"].rising(low=0.0))
    for row in facts["gains"].items(bands):
        row.rising(fewest=2, low=0.0)


def _novelty(facts: Entry, window: int) -> None:
    """Powers of the noise in bands of whole windows, and of shorter ones."""
    bands = _bands(facts, window)
    if facts.get("samples") is not None:
        facts["samples"].integer(window, window)
    shorter, spectrum = facts.get("shorter"), facts.get("spectrum")
    longer = window
    for table in [] if shorter is None else shorter.items():
        longer = table["samples"].integer(1, longer - 1)
        _bands(table, longer)
    if spectrum is not None:
        for row in spectrum.items(bands):
            row.numbers(bands, low=-FACTOR, high=FACTOR)


def _bands(table: Entry, samples: int) -> int:
    """How many bands windows of so many samples are judged in."""
    bands = len(table["mean"].numbers(low=-FACTOR, high=FACTOR))
    fewest = min(
        MOST_BANDS, 2 ** max(0, (samples // SAMPLES_PER_BAND).bit_length() - 1)
    )
    if bands not in (1, 2, 4, 8) or bands < fewest:
        table["mean"].refuse(f"a list of {fewest}")
    _positive(table["precision"], bands)
    table["quantiles"].rising(fewest=QUANTILES, low=0.0, equal=True)
    table["quantiles"].items(QUANTILES)
    table["windows"].integer(1, 10**12)
    return bands


def _positive(matrix: Entry, size: int) -> None:
    """A symmetric matrix (size, size) that is positive definite."""
    values = np.array([row.numbers(size) for row in matrix.items(size)])
    about = float(np.abs(values).max())
    symmetric = np.abs(values - values.T).max() <= 1e-6 * about
    if not symmetric or np.linalg.eigvalsh(values)[0] <= 0.0:
        matrix.refuse("a symmetric, positive definite matrix")
