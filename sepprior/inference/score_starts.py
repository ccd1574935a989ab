"""Where annealed Fisher scoring starts, beside the answers of least squares.

S starts of B measurements, W windows, N samples, P parameters, L of them linear.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sepprior.inference.least_squares import Fit
from sepprior.inference.periodogram import Periodogram
from sepprior.inference.record import MaskedWhitener
from sepprior.inference.starts import gls_starts
from sepprior.signals.form import Form
from sepprior.signals.sinusoids import Sinusoids

if TYPE_CHECKING:
    from sepprior.inference.score import ScoreProblem

CLEANING_LEVEL = 2
"""Index of the noise level at which the data are cleaned for the periodogram."""
CLEANED_PEAKS = 2
"""Peaks of the cleaned data's periodogram that are followed."""
FAR_BELOW = 60.0
"""Nats below the periodogram's maximum at which a start is not followed."""


def first_of_kind(nonlinear: Tensor, alike: Tensor) -> Tensor:
    """Which starts (S, B) differ from every earlier one.

    Args:
        nonlinear: shape (S, B, P - L); NaN for a start that is not there.
        alike: differences that count as none, (B, P - L) or (P - L,).
    """
    apart = (nonlinear.unsqueeze(0) - nonlinear.unsqueeze(1)).abs()
    count = len(nonlinear)
    earlier = torch.ones(count, count, dtype=torch.bool, device=nonlinear.device)
    close = (apart < alike).all(-1)
    return ~(close & earlier.tril(-1).unsqueeze(-1)).any(1)


def hopeful(form: Form, theta: Tensor, spectrum: Periodogram | None) -> Tensor:
    """Which starts (S, B) of a sinusoid are not far below the periodogram's maximum.

    A strong signal leaves no doubt about its frequency; the noise's structure adds to
    the likelihood there, so that what trails by far in the periodogram cannot win.
    """
    hopeful = torch.ones(theta.shape[:2], dtype=torch.bool, device=theta.device)
    if spectrum is None or not isinstance(form, Sinusoids) or form.count > 1:
        return hopeful
    frequency = theta[..., form.n_linear]
    index = torch.searchsorted(spectrum.frequency, frequency.contiguous())
    gains = []
    for shift in (-1, 0):
        at = (index + shift).clamp(0, len(spectrum.frequency) - 1)
        gains.append(spectrum.gain.gather(1, at.mT).mT)
    gain = torch.maximum(*gains)
    hopeful = gain > spectrum.gain.amax(-1) - FAR_BELOW
    hopeful[0] = True
    return hopeful


def cleaned_starts(
    problem: ScoreProblem, whitener: MaskedWhitener, start: Fit
) -> list[Fit]:
    """Least-squares fits of the data with the noise's structure taken out.

    For Gaussian noise of covariance S the score is ``-S^-1 w``. Applying -S to the
    learned score therefore gives back Gaussian noise as it is, and other noise as
    Gaussian noise of equal information: what stands out (a burst, a jump, a pulse
    train) is gone, and a weak signal's peak in the periodogram is not hidden by it.

    Args:
        problem: B measurements.
        whitener: of the stationary part of the noise.
        start: fits whose constant part is taken as the level of the data.
    """
    prior, record, form = problem.prior, problem.record, problem.form
    index = min(CLEANING_LEVEL, len(prior.levels) - 1)
    constant = torch.zeros_like(record.x[:, :1, :1])
    if form.has_constant and form.n_linear:
        constant = start.theta[:, :1, None]
    noise = (record.x - constant) * record.present
    score = problem.score(prior.features(noise), index, problem.draws(index))
    cleaned = prior.gaussianised(score.flatten(0, 1), index).view_as(record.x)
    twin = record.with_values((cleaned + constant) * record.present)
    return gls_starts(form, twin, whitener, n_starts=CLEANED_PEAKS)


def starts_at_lines(problem: ScoreProblem, start: Fit) -> list[Fit]:
    """Small sinusoids at the frequencies of the noise's lines.

    Least squares is blind there, and so is its periodogram; the score is not where the
    lines have a shape (the phases of a pulse train).

    Args:
        problem: B measurements.
        start: fits whose constant part is kept.
    """
    form = problem.form
    if not isinstance(form, Sinusoids) or form.count > 1:
        return []
    search = form.search
    found = []
    for frequency in problem.prior.lines(
        float(search.low.min()), float(search.high.max())
    ):
        theta = start.theta.clone()
        theta[:, form.n_linear :] = frequency
        wave = problem.jacobian(theta, torch.arange(len(theta), device=theta.device))
        size = wave[:, 1].square().flatten(1).sum(-1).rsqrt()
        theta[:, 1 : form.n_linear] = size.unsqueeze(-1)
        found.append(replace(start, theta=theta))
    return found
