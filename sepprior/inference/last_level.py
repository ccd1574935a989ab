"""Where annealed Fisher scoring should stop, measured on noise with injected signals.

Towards low noise levels less information is smoothed away, but the network's score
gets worse in relation. Known sinusoids in held-out noise show at which level the
estimates are best.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from sepprior.inference.calibration import (
    analyse_batch,
    draw_injections,
    near,
    standardised_errors,
)
from sepprior.inference.pipeline import Answer
from sepprior.inference.score import ScoreProblem
from sepprior.priors import ScorePrior

TRIALS = 192
CYCLES = (1.0, 40.0)
"""Cycles per window of the injected sinusoids, log-uniform."""
KEEP = 0.9
"""Share of the trials, those with the smallest errors, that are counted."""
TOLERANCE = 1.02
"""An earlier level is taken when its error is at most this much larger."""


def choose_last_level(
    prior: ScorePrior, crops: Callable[[int], np.ndarray], *, seed: int
) -> int:
    """Number of the prior's levels after which the estimates are best.

    The score of a level is the mean over the parameters of the logarithm of the mean
    square error, in units of the standard errors of least squares, over the nine tenths
    of the trials with the smallest errors (a lost frequency must not decide).

    Args:
        prior: the prior with its levels and information.
        crops: gives n windows of held-out noise, (n, N), data units.
        seed: of the injected parameters.

    Returns:
        At least 1.
    """
    rng = np.random.default_rng(seed)
    n, rate = prior.window, prior.sample_rate
    low, high = (math.log(min(c, 0.4 * n)) for c in CYCLES)
    frequency = np.exp(rng.uniform(low, high, TRIALS)) * rate / n
    x, truth = draw_injections(prior, crops(TRIALS), frequency, rng)
    outcome = analyse_batch(prior, x, frequency, joint=False)
    record, form = near(prior, x, frequency)
    problem = ScoreProblem(prior, record, form=form)
    everyone = torch.arange(TRIALS, device=record.x.device)
    fit = problem.start(outcome.gls.theta)
    scores = []
    for index in range(len(prior.levels)):
        fit = problem.descend(fit, everyone, range(index, index + 1))
        answer = Answer(fit.theta, outcome.gls.covariance)
        errors = np.sort(np.square(standardised_errors(answer, record, truth)), axis=0)
        kept = errors[: max(1, int(KEEP * len(errors)))]
        scores.append(float(np.log(kept.mean(0) + 1e-12).mean()))
    limit = min(scores) + 2.0 * math.log(TOLERANCE)
    return 1 + next(i for i, value in enumerate(scores) if value <= limit)
