"""What a trained prior is worth on noise it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepprior.data import Recording, consecutive_windows, random_crops
from sepprior.errors import SeppriorError
from sepprior.inference.calibration import measure_calibration
from sepprior.inference.detection import measure_gains
from sepprior.inference.novelty import measure_null
from sepprior.priors import GaussianPrior, Prior, beats_gaussian
from sepprior.training.heldout import heldout_facts

FEWEST_WINDOWS = 40
"""Independent windows of noise needed before error bars are calibrated on them."""
NULL_WINDOWS = 2000
NULL_SAMPLES = 2**23
"""Samples, of windows of one part together, that statistics of noise are taken from."""
AT_ONCE = 2**22
"""Samples that are whitened together."""


def validate(
    prior: Prior,
    gaussian: GaussianPrior,
    training: Recording,
    validation: Recording,
    held: Tensor,
    *,
    seed: int,
) -> dict[str, Any]:
    """Held-out likelihood, calibration of the error bars, and what is normal.

    Error bars are calibrated on the whole recording, those of the joint solver also on
    the held-out part where it is long enough; with less than 40 windows in all nothing
    is calibrated.

    Args:
        prior: the trained prior.
        gaussian: the stationary Gaussian of the same recording.
        training: the training part of the recording.
        validation: the held-out part.
        held: held-out windows (n, N), data units.
        seed: of crops and injections.

    Returns:
        Metadata ``heldout`` (nats per sample of both, gain, standard error),
        ``calibration``, ``novelty`` and ``gains`` where there is noise enough.
    """
    window = prior.window
    # A trainer that has fitted to held-out noise brings a score of its own.
    facts: dict[str, Any] = {"heldout": prior.metadata.get("heldout")}
    if facts["heldout"] is None:
        own, reference = (p.heldout_nll(held).cpu() / window for p in (prior, gaussian))
        facts["heldout"] = heldout_facts(own, reference)
    rng = np.random.default_rng(seed)
    parts = [p for p in (training, validation) if p.n_samples >= window]
    if sum(p.n_samples for p in parts) // window < FEWEST_WINDOWS:
        return facts
    table = measure_calibration(
        prior, lambda n: _crops(parts, window, n, rng), joint=False, seed=seed
    )
    # Where the prior adds nothing, separation answers by least squares.
    if prior.learned and beats_gaussian(facts["heldout"]):
        n_unseen = validation.n_samples // window
        unseen = None
        if n_unseen >= FEWEST_WINDOWS:
            unseen = unseen_crops(training, validation, window, rng)
        table |= measure_calibration(
            prior,
            lambda n: _crops(parts, window, n, rng),
            joint=True,
            seed=seed + 1,
            unseen=unseen,
            n_unseen=n_unseen,
        )
    facts["calibration"] = table
    most = max(FEWEST_WINDOWS, min(NULL_WINDOWS, NULL_SAMPLES // window))
    windows = [
        consecutive_windows(p, window=window, hop=max(1, window // 2), limit=most)
        for p in parts
    ]
    x = torch.from_numpy(np.concatenate(windows)).to(prior.device) - gaussian.level
    whitened = [gaussian.features(p) for p in x.split(max(1, AT_ONCE // window))]
    facts["novelty"] = measure_null(torch.cat(whitened))
    del windows, whitened
    facts["gains"] = measure_gains(
        x, gaussian.autocovariance.to(x), sample_rate=prior.sample_rate
    )
    return facts


def unseen_crops(
    training: Recording,
    validation: Recording,
    window: int,
    rng: np.random.Generator,
) -> Callable[[int], np.ndarray] | None:
    """Random windows of held-out noise, or of all noise where too little is held out.

    Returns:
        A function of the number of windows, or None with less than 40 windows in all.
    """
    parts = [p for p in (training, validation) if p.n_samples >= window]
    if sum(p.n_samples for p in parts) // window < FEWEST_WINDOWS:
        return None
    source = [validation] if validation.n_samples // window >= FEWEST_WINDOWS else parts
    return lambda n: _crops(source, window, n, rng)


def _crops(
    parts: list[Recording], window: int, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Windows from several parts in proportion to their length, (n, N)."""
    weights = np.array([p.n_samples for p in parts], dtype=float)
    counts = rng.multinomial(n, weights / weights.sum())
    drawn = []
    for part, count in zip(parts, counts, strict=True):
        if not count:
            continue
        try:
            drawn.append(random_crops(part, window=window, n=int(count), generator=rng))
        except SeppriorError:
            continue  # a part whose pieces are all shorter than a window
    return np.concatenate(drawn)
