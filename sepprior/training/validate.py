"""What a trained prior is worth on noise it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepprior.data import Recording, consecutive_windows
from sepprior.inference.calibration import measure_calibration
from sepprior.inference.detection import both_gains, measure_gains
from sepprior.inference.novelty import measure_null
from sepprior.inference.own_level import levels_of
from sepprior.priors import GaussianPrior, Prior, beats_gaussian
from sepprior.training.heldout import heldout_facts
from sepprior.training.uncertainty import FEW_WINDOWS, PossibleNoise, recorded_crops

FEWEST_UNSEEN = 4
"""Held-out windows from which error bars are compared with those in noise seen."""
POSSIBLE_WINDOWS, POSSIBLE_SAMPLES = 10_000, 2**22
"""Simulated windows, and samples in them, that what few windows allow is learned by."""
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
    done: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Held-out likelihood, calibration of the error bars, and what is normal.

    Error bars are calibrated on the whole recording, those of the joint solver also on
    the held-out part. Where noise is short, what it leaves unknown of its spectrum
    widens everything; see `sepprior.training.uncertainty`.

    Args:
        prior: the trained prior.
        gaussian: the stationary Gaussian of the same recording.
        training: the training part of the recording.
        validation: the held-out part.
        held: held-out windows (n, N), data units.
        seed: of crops and injections.
        done: told the share of the work that has been done, from time to time.

    Returns:
        Metadata ``heldout`` (nats per sample of both, gain, standard error),
        ``calibration``, ``novelty`` and ``gains``.
    """
    window = prior.window
    # A trainer that has fitted to held-out noise brings a score of its own.
    facts: dict[str, Any] = {"heldout": prior.metadata.get("heldout")}
    if facts["heldout"] is None:
        own, reference = (p.heldout_nll(held).cpu() / window for p in (prior, gaussian))
        facts["heldout"] = heldout_facts(own, reference)
    rng = np.random.default_rng(seed)
    parts = [p for p in (training, validation) if p.n_samples >= window]
    possible = PossibleNoise.of(training, gaussian, rng)

    def crops(n: int) -> np.ndarray:
        return possible.crops(parts, n, rng)

    n_windows = sum(p.n_samples for p in parts) // window
    # Where the prior adds nothing, separation answers by least squares.
    joint = prior.learned and beats_gaussian(facts["heldout"])
    table = measure_calibration(
        prior,
        crops,
        joint=False,
        seed=seed,
        n_windows=n_windows,
        done=lambda share: done((0.1 if joint else 0.9) * share),
    )
    if joint:
        n_unseen = validation.n_samples // window

        def held_out(n: int) -> np.ndarray:
            return recorded_crops([validation], window, n, rng)

        table |= measure_calibration(
            prior,
            crops,
            joint=True,
            seed=seed + 1,
            n_windows=n_windows,
            unseen=held_out if n_unseen >= FEWEST_UNSEEN else None,
            n_unseen=n_unseen,
            done=lambda share: done(0.8 * share),
        )
    facts["calibration"] = table
    most = max(FEW_WINDOWS, min(NULL_WINDOWS, NULL_SAMPLES // window))
    windows = [
        consecutive_windows(p, window=window, hop=max(1, window // 2), limit=most)
        for p in parts
    ]
    x = torch.from_numpy(np.concatenate(windows)).to(prior.device) - gaussian.level
    n_simulated = min(POSSIBLE_WINDOWS, POSSIBLE_SAMPLES // window)
    simulated = torch.from_numpy(possible.simulated(n_simulated, rng)).to(x)
    groups = simulated.chunk(max(1, len(possible.whiteners))) if len(simulated) else ()
    # Windows of another level are followed in it when they are measured, too.
    white = _whitened(gaussian, x)
    factors = levels_of(white, table["gls"]["level"])
    white, x = white / factors, x / factors
    facts["novelty"] = measure_null(
        white, [_whitened(gaussian, group) for group in groups]
    )
    covariance = gaussian.autocovariance.to(x)
    rate = prior.sample_rate
    facts["gains"] = measure_gains(x, covariance, sample_rate=rate)
    if len(simulated):
        allowed = measure_gains(simulated, covariance, sample_rate=rate)
        facts["gains"] = both_gains(facts["gains"], allowed)
    return facts


def _whitened(gaussian: GaussianPrior, x: Tensor) -> Tensor:
    """Windows (n, N) without the level, whitened some at a time."""
    some = x.split(max(1, AT_ONCE // gaussian.window))
    return torch.cat([gaussian.features(part) for part in some])


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
    if sum(p.n_samples for p in parts) // window < FEW_WINDOWS:
        return None
    source = [validation] if validation.n_samples // window >= FEW_WINDOWS else parts
    return lambda n: recorded_crops(source, window, n, rng)
