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
FEWEST_QUANTILES = 11
"""Quantiles from which the tail of a distribution is known."""
MOST_BANDS = 8
"""Bands in which the noise is judged."""


def check_facts(metadata: Entry, window: int) -> None:
    """Refuse facts of another type, length or range.

    Args:
        metadata: of the file.
        window: samples of a window of the prior.

    Raises:
        ValueError: says which fact, what it is, and what was expected.
    """
    checks = {
        "heldout": _heldout,
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


def _gains(facts: Entry) -> None:
    """Gains of recorded noise by band, for equal steps in Gaussian noise."""
    facts["step"].number(low=1e-6)
    bands = len(facts["cycles"].rising(low=0.0))
    for row in facts["gains"].items(bands):
        row.rising(fewest=2, low=0.0)


def _novelty(facts: Entry, window: int) -> None:
    """Band powers of the recorded noise, and of shorter windows if they are known."""
    samples = facts.get("samples")
    bands = len(facts["mean"].items())
    if samples is not None:
        samples.integer(1, window)
    elif bands != min(MOST_BANDS, window // 2):
        facts["mean"].refuse(f"a list of {min(MOST_BANDS, window // 2)}")
    if not 1 <= bands <= MOST_BANDS:
        facts["mean"].refuse(f"a list of 1 to {MOST_BANDS}")
    facts["mean"].numbers()
    _positive(facts["precision"], bands)
    facts["quantiles"].rising(fewest=FEWEST_QUANTILES, low=0.0, equal=True)
    shorter, spectrum = facts.get("shorter"), facts.get("spectrum")
    for table in [] if shorter is None else shorter.items():
        table["samples"].integer(1, window)
        _novelty(table, window)
    if spectrum is not None:
        spectrum["mean"].numbers(bands)
        for row in spectrum["covariance"].items(bands):
            row.numbers(bands)


def _positive(matrix: Entry, size: int) -> None:
    """A symmetric matrix (size, size) that is positive definite."""
    values = np.array([row.numbers(size) for row in matrix.items(size)])
    about = float(np.abs(values).max())
    symmetric = np.abs(values - values.T).max() <= 1e-6 * about
    if not symmetric or np.linalg.eigvalsh(values)[0] <= 0.0:
        matrix.refuse("a symmetric, positive definite matrix")
