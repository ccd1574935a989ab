"""Fit of what a generator cannot produce, by inverting held-out noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sepprior.data import Recording, consecutive_windows
from sepprior.optim import minimize_batch
from sepprior.priors import GeneratorPrior, Reach, joint_energy, unit_ratio
from sepprior.priors.marginal import decode_tangents, latent_information
from sepprior.training.heldout import heldout_facts
from sepprior.training.labels import labelled_part

ITERATIONS = 3
N_BANDS = 16
"""Bands, equal in the logarithm of frequency, where bins are not worth measuring."""
DRAWS = 4
"""Draws of z around each inversion."""
FIT_SAMPLES = 2**16
FEWEST_FIT, MOST_FIT = 8, 128
"""Windows of a held-out recording that the range error is fitted to."""
FEWEST_CROSSED = 4
"""Windows from which those that score are not those that were fitted to."""
LEAST_RATIO = 1e-4
MOST_GAIN = 2.0


@dataclass(frozen=True)
class Effort:
    """How hard inversions are tried.

    Attributes:
        starts: latents screened per window.
        evaluations: of the minimisation.
        iterations: fits, each after an inversion.
    """

    starts: int = 64
    evaluations: int = 300
    iterations: int = ITERATIONS


def measured_range_error(
    prior: GeneratorPrior, held_out: Recording, *, effort: Effort | None = None
) -> GeneratorPrior:
    """The prior with the range errors of a held-out recording, one for each label too.

    Args:
        prior: the trained generator, its label not fixed.
        held_out: noise that it was not trained on.
        effort: how hard to try; the default where None.

    Returns:
        The prior that `chosen_range_error` gives for all of the recording, with those
        for the parts under each label; a label that was not held out shares the first.
        ``metadata["heldout"]`` is the score.
    """
    windows = _overlapping(held_out, prior.window)
    prior = chosen_range_error(prior, windows, effort=effort)
    prior.metadata["heldout"] = prior.metadata["range_error"]["heldout"]
    facts, reaches = {}, {}
    for name in prior.labels:
        part = labelled_part(held_out, name)
        if not part.window_starts(prior.window).total:
            continue
        windows = _overlapping(part, prior.window)
        trial = prior.with_label(name)
        own = chosen_range_error(trial, windows, reshape=True, effort=effort)
        reaches[name] = own.reach
        facts[name] = own.metadata["range_error"]
    if not reaches:
        return prior
    prior = prior.with_labels_reach(reaches)
    prior.metadata["range_error"] |= {"labels": facts}
    return prior


def _overlapping(held_out: Recording, window: int) -> Tensor:
    """Windows (n, N) of a recording that overlap by half."""
    most = max(FEWEST_FIT, min(MOST_FIT, FIT_SAMPLES // window))
    hop = max(1, window // 2)
    found = consecutive_windows(held_out, window=window, hop=hop, limit=most)
    return torch.from_numpy(found)


def fit_range_error(
    prior: GeneratorPrior, windows: Tensor, *, effort: Effort | None = None
) -> GeneratorPrior:
    """The prior with the gain and the range error of held-out noise.

    Expectation maximisation in ``n = a sd g(z) + e``. The expectation is taken over
    draws of z from its Laplace approximation around the inversion of each window (at
    the inversion alone the error would be too small by what z has fitted by chance);
    the maximisation is a linear fit of the gain a, weighted by the last error, and the
    mean power of the rest by bands of frequency. Weighting changes the inversion, so
    both are repeated; with expectations that are not exact this need not lead upwards,
    and the likeliest values on the way are taken.

    Args:
        prior: the trained generator, with a first guess of gain and error.
        windows: held-out noise (n, N), data units.
        effort: how hard to try; the default where None.

    Returns:
        The prior with the fitted values; ``metadata["range_error"]`` tells the gain
        and the share of the whitened noise's power that the generator explains.
    """
    effort = effort or Effort()
    noise = windows.double().to(prior.device) - prior.level
    white = prior.range_error.white(noise)
    trial = fitted = prior.with_reach(prior.reach)
    least, z = math.inf, None
    for _ in range(effort.iterations + 1):
        draws, nll, z = _inverted(trial, noise, effort, earlier=z)
        made = trial.range_error.white(draws)
        if nll < least:
            fitted, least = trial, nll
            left = (white - trial.gain * made).square().mean() / white.square().mean()
            facts = {"gain": trial.gain, "explained": 1.0 - float(left)}
            fitted.metadata["range_error"] = facts
        gain = _fitted_gain(trial, white, made)
        ratio = band_ratio(white - gain * made)
        trial = prior.with_reach(replace(prior.reach, gain=gain, ratio=ratio))
    return fitted


def chosen_range_error(
    prior: GeneratorPrior,
    windows: Tensor,
    *,
    reshape: bool = False,
    effort: Effort | None = None,
) -> GeneratorPrior:
    """The prior with the range error that describes held-out noise best.

    Those of `first_guesses` and one without the generator (gain 0) are fitted to either
    half of the windows and scored by the other. The best is then fitted to all windows.

    Args:
        prior: the trained generator, with the first guess of a range error.
        windows: held-out noise (n, N), data units, in the order of the recording;
            neighbours may overlap by half.
        reshape: with gain 0 the spectrum too is that of the windows; otherwise it is
            the recording's, and the prior the stationary Gaussian.
        effort: how hard to try; the default where None.

    Returns:
        The prior; ``metadata["range_error"]`` tells the gain, the share of the power
        that the generator explains (of noise whitened by what the ratio refers to), and
        as ``heldout`` the score against the stationary Gaussian of the recording. With
        less than four windows the score is that of the windows fitted to.
    """
    unit = unit_ratio(prior.window).to(prior.device)
    gaussian = Reach(0.0, unit).error(prior.autocovariance)

    def without(some: Tensor) -> GeneratorPrior:
        ratio = unit
        if reshape:
            noise = some.double().to(prior.device) - prior.level
            ratio = band_ratio(gaussian.white(noise)[None])
        chosen = prior.with_reach(Reach(0.0, ratio))
        chosen.metadata["range_error"] |= {"explained": 0.0}
        return chosen

    ways: list[Callable[[Tensor], GeneratorPrior]] = [
        without,
        *(partial(fit_range_error, g, effort=effort) for g in first_guesses(prior)),
    ]
    scores: list[list[Tensor]] = [[] for _ in ways]
    reference = []
    for some, others in _crossed(windows):
        noise = others.double().to(prior.device) - prior.level
        reference.append(gaussian.nll(noise))
        for score, way in zip(scores, ways, strict=True):
            trial = way(some)
            # Without a generator there is nothing to integrate out.
            alone = trial.gain == 0.0
            nll = trial.range_error.nll(noise) if alone else trial.heldout_nll(others)
            score.append(nll.double())
    each = torch.stack([torch.cat(score) for score in scores]).cpu() / prior.window
    best = int(each.mean(-1).argmin())
    chosen = ways[best](windows)
    facts = heldout_facts(each[best], torch.cat(reference).cpu() / prior.window)
    chosen.metadata["range_error"] |= {"heldout": facts}
    return chosen


def first_guesses(prior: GeneratorPrior) -> list[GeneratorPrior]:
    """A prior with the range errors to start fits from.

    Its own where it has one with a spectrum of its own, else as much noise as was
    recorded, in either form.
    """
    if prior.reach.absolute and prior.gain > 0.0:
        return [prior]
    unit = unit_ratio(prior.window).to(prior.device)
    return [prior.with_reach(Reach(1.0, unit, form)) for form in (False, True)]


def _crossed(windows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Windows to fit to and windows to score, which do not overlap, two ways."""
    if len(windows) < FEWEST_CROSSED:
        return [(windows, windows)]
    first, second = windows.tensor_split(2)
    # The first of the second half may share samples with the last of the first.
    return [(first, second[1::2]), (second[1:], first[::2])]


def _inverted(
    prior: GeneratorPrior, noise: Tensor, effort: Effort, *, earlier: Tensor | None
) -> tuple[Tensor, float, Tensor]:
    """Posteriors of z given each window, by Laplace's method.

    Args:
        prior: the generator with a gain and a range error.
        noise: windows (n, N), data units, without the level.
        effort: how hard to try.
        earlier: the most probable z by other values of both, (n, n_latent), as one
            more start.

    Returns:
        ``sd g(z)`` for draws of z, (DRAWS, n, N), data units; ``-log p`` of the
        windows, their mean, up to a constant; and the most probable z.
    """
    rng = torch.Generator().manual_seed(0)
    features = prior.features(noise)
    shape = (effort.starts, len(noise), prior.n_latent)
    draws = torch.randn(shape, generator=rng, dtype=prior.dtype).to(prior.device)
    with torch.no_grad():
        candidates = prior.propose(features, draws=draws)
        if earlier is not None:
            candidates = torch.cat([candidates, earlier[None]])
        energies = torch.stack([joint_energy(prior, features, z) for z in candidates])
        start = candidates[energies.argmin(0), torch.arange(len(noise))]

    def objective(z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        energy = joint_energy(prior, features[which], z)
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), gradient

    minimum = minimize_batch(objective, start, max_evaluations=effort.evaluations)
    best = minimum.x
    decoded, d_mean, d_log = decode_tangents(prior, best)
    # In double: a steep generator's information spans more than single precision.
    factor = torch.linalg.cholesky(
        latent_information(
            decoded,
            d_mean.double(),
            d_log.double(),
            prior.latent_curvature(best.double()),
            redundancy=1.0,
        )
    )
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    nll = float((minimum.energy + half_log_det).mean())
    shape = (DRAWS, len(noise), prior.n_latent, 1)
    normal = torch.randn(shape, generator=rng, dtype=torch.float64).to(prior.device)
    # Covariance H^-1 = L^-T L^-1 for H = L L^T.
    step = torch.linalg.solve_triangular(factor.mT, normal, upper=True).squeeze(-1)
    if prior.space.infers_label:
        step[..., -1] = 0.0
    with torch.no_grad():
        made = prior.waveform(best + step.to(best.dtype)).double()
    return made, nll, best


def _fitted_gain(prior: GeneratorPrior, white: Tensor, made: Tensor) -> float:
    """Least-squares gain of `made` (D, n, N) on `white` (n, N), both whitened."""
    inverse = 1.0 / _spectrum(prior.range_error.ratio)
    real, fake = torch.fft.rfft(white), torch.fft.rfft(made)
    above = (inverse * (fake.conj() * real).real).sum()
    below = (inverse * fake.abs().square()).sum()
    if not float(below) > 0.0:
        return 0.0
    return float((above / below).clamp(0.0, MOST_GAIN))


def _spectrum(ratio: Tensor) -> Tensor:
    """Spectrum (N // 2 + 1,) of a short autocovariance (N,), at least `LEAST_RATIO`."""
    # Lags k and N - k share a coefficient of the transform of length N.
    both = torch.cat([ratio[:1], ratio[1:] + ratio[1:].flip(0)])
    return torch.fft.rfft(both).real.clamp_min(LEAST_RATIO)


def band_ratio(rest: Tensor) -> Tensor:
    """Mean power of whitened noise by frequency, as an autocovariance (N,).

    Each bin is measured by itself, so that a generator of narrow lines is credited for
    them, or the power is averaged over bands of equal width in log-frequency, so that
    little of a limited recording is learned by heart. What describes either half of the
    windows better when measured on the other is taken (Whittle's likelihood; a bin
    measured on n windows costs ``1 / (4 n)`` nat per sample). In between it is
    interpolated linearly.

    Args:
        rest: whitened windows (D, n, N), D draws of each, in the order of the
            recording; unit white noise gives ``(1, 0, 0, ...)``.
    """
    n = rest.shape[-1]
    power = torch.fft.rfft(rest, norm="ortho").abs().square().mean(0).cpu()
    bins = torch.arange(power.shape[-1], dtype=torch.float64)
    last = math.log10(len(bins))
    each = torch.arange(1, len(bins) + 1, dtype=torch.float64)
    wide = torch.logspace(0.0, last, N_BANDS + 1, dtype=torch.float64)
    edges = wide
    if len(power) > 1:
        first, second = (half.mean(0) for half in power.tensor_split(2))
        edges = min(
            (wide, each),
            key=lambda e: (
                _whittle(_levels(first, e, bins), second)
                + _whittle(_levels(second, e, bins), first)
            ),
        )
    # A grid finer than the window's own makes the Toeplitz matrix positive definite.
    fine = torch.arange(2 * n + 1, dtype=torch.float64) / 4.0
    density = _levels(power.mean(0), edges, fine)
    return torch.fft.irfft(density, 4 * n)[:n].to(rest.device)


def _levels(power: Tensor, edges: Tensor, where: Tensor) -> Tensor:
    """Mean of a spectrum between edges, interpolated linearly; all in bins."""
    bins = torch.arange(len(power), dtype=torch.float64)
    centres, levels = [], []
    for low, high in pairwise(edges):
        inside = (bins >= low.floor()) & (bins < high.floor())
        if inside.any():
            centres.append(float(bins[inside].mean()))
            levels.append(float(power[inside].mean().clamp_min(LEAST_RATIO)))
    return torch.from_numpy(np.interp(where.numpy(), centres, levels))


def _whittle(density: Tensor, power: Tensor) -> float:
    """``-log p`` of a mean periodogram under a spectrum, up to a constant."""
    return float((density.log() + power / density).sum())
