"""A level of each measurement's own: noise louder or quieter than in training.

An instrument's noise keeps its kind and changes its level, ``n = s n'`` with n' from
the prior. At ``v = log s`` a fit has the energy ``E(v)``, and by the envelope theorem
``dE/dv = N (1 - exp(2 u))``, where ``exp(2 u)`` is the mean square of the residual that
the prior has standardised. So u tells which way the level lies; the energies decide.
Before the measurement, the level is that of the training with probability `UNCHANGED`,
else anything, by a Cauchy law of v of half-width `SPREAD`: heavy tails, so that a level
that was never recorded costs a few nats. Where the noise is as loud as in training,
nothing is changed at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.pipeline import Outcome
from sepprior.inference.record import Record
from sepprior.priors.base import Prior, Scalable, ScorePrior

UNCHANGED = 0.8
"""Probability that the noise is as loud as in training."""
SPREAD = 0.5
"""Half-width of the Cauchy law of ``log s`` where it is not."""
STEP = 0.05
"""Levels that are tried, in ``log s``: fits of equal levels are made together."""
MOST = math.log(8.0)
"""Largest ``|log s|`` that is followed: beyond it, units are likelier to differ."""
LONGEST = math.log(2.0)
"""Largest change of ``log s`` from one fit to the next."""
PASSES = 8
DOUBTFUL = 2.0
"""Standard deviations of u from which another level is tried."""


@dataclass(frozen=True)
class Scatter:
    """Standard deviations in noise as loud as in training.

    Attributes:
        of_residual: of u.
        of_level: of the ``log s`` that is found.
    """

    of_residual: float
    of_level: float

    @classmethod
    def of(cls, sd: float, n: int, window: int) -> Scatter:
        """For n samples, where that of u is `sd` in a window.

        The scatter of single samples falls with their number, that of the level from
        one window to the next does not. In Gaussian noise both are ``1 / sqrt(2 n)``.
        Under a latent that takes in some of the level u scatters less and ``log s``
        more: the score ``2 n u`` has the information about v as its variance.
        """
        chance = min(sd, math.sqrt(0.5 / window))
        own = math.sqrt(sd**2 - chance**2 + chance**2 * window / max(1, n))
        gaussian = math.sqrt(0.5 / max(1, n))
        return cls(own, max(gaussian, gaussian**2 / own))


def log_level(outcome: Outcome) -> Tensor:
    """U of each measurement: half the log of the standardised mean square, (B,)."""
    left = outcome.standardised if outcome.joint is not None else outcome.gls.residual
    count = outcome.record.present.flatten(1).sum(-1) - outcome.gls.theta.shape[1]
    square = left.flatten(1).double().square().sum(-1) / count.clamp_min(1)
    return 0.5 * square.clamp_min(1e-300).log()


def _energy(outcome: Outcome) -> Tensor:
    """Energy of the fits with everything but the level integrated out, nats, (B,)."""
    volume = -0.5 * torch.linalg.slogdet(outcome.gls.covariance).logabsdet
    gls = outcome.gls.energy + outcome.whitener.half_log_det() + volume
    return gls - outcome.evidence if outcome.joint is not None else gls


@dataclass(frozen=True)
class Followed:
    """Measurements of one level that is not that of the training.

    Attributes:
        rows: their numbers, (n,).
        level: s.
        sd: standard deviation of ``log s`` of each, (n,).
        prior: noise of that level.
        outcome: their fits under it.
    """

    rows: Tensor
    level: float
    sd: Tensor
    prior: Prior
    outcome: Outcome


@dataclass
class _Search:
    """The search for v of one measurement.

    Attributes:
        u: at the best v so far, less its median in noise as loud as in training.
        energy: there.
        first: at v = 0.
        known: what is usual.
        share: fall of u over the rise of v.
        v: the best so far.
        done: no better one is looked for.
    """

    u: float
    energy: float
    first: float
    known: Scatter
    share: float = 1.0
    v: float = 0.0
    done: bool = False

    def __post_init__(self) -> None:
        """What a latent takes in of a level is known about, beforehand."""
        self.share = min(1.0, self.known.of_residual / self.known.of_level)

    def proposal(self) -> float | None:
        """The next v, on the grid; None where the best one is known."""
        step = min(max(self.u / self.share, -LONGEST), LONGEST)
        aim = STEP * round(min(max(self.v + step, -MOST), MOST) / STEP)
        self.done = self.done or aim == self.v
        return None if self.done else aim

    def see(self, v: float, u: float, energy: float) -> None:
        """Takes in a fit at another v."""
        if not energy < self.energy:
            self.done = abs(v - self.v) < 1.5 * STEP
            self.share *= 2.0
            return
        # A latent may take in some of the level: u falls by less than v rises.
        self.share = min(max((self.u - u) / (v - self.v), 0.2), 1.0)
        self.v, self.u, self.energy = v, u, energy

    def end(self, v: float, gain: float) -> None:
        """Takes in a level that is known, with its gain in log-likelihood."""
        self.v, self.done = STEP * round(v / STEP), True
        self.energy = self.first - gain

    def accepted(self) -> float | None:
        """The best v where it is more probable than that of the training."""
        gain = self.first - self.energy
        return self.v if _probable(self.v, gain, self.known.of_level) else None


def _probable(v: float, gain: float, sd: float) -> bool:
    """Whether a level is more probable than that of the training.

    Args:
        v: its logarithm.
        gain: in log-likelihood, nats.
        sd: standard deviation of v.
    """
    if not v or abs(v) > MOST - STEP:
        return False
    density = 1.0 / (math.pi * SPREAD * (1.0 + (v / SPREAD) ** 2))
    odds = (1.0 - UNCHANGED) / UNCHANGED * density * math.sqrt(2.0 * math.pi) * sd
    return gain > -math.log(odds)


def _gaussian_gain(u: float, n: float) -> float:
    """Log-likelihood of n Gaussian samples at their own level over that expected.

    Args:
        u: log of their level.
        n: their number.
    """
    return 0.5 * n * math.expm1(2.0 * min(u, 10.0)) - n * u


def levels_of(white: Tensor, typical: Sequence[float]) -> Tensor:
    """Levels (n, 1) of whitened windows (n, N) of noise: 1 where it is the training's.

    As `follow` finds it for measurements answered by least squares.

    Args:
        white: the windows.
        typical: median and standard deviation of u, of the prior's calibration.
    """
    n = white.shape[-1]
    known = Scatter.of(typical[1], n, n)
    u = 0.5 * white.double().square().mean(-1).clamp_min(1e-300).log() - typical[0]
    found = []
    for v in u.tolist():
        far = abs(v) > DOUBTFUL * known.of_residual
        probable = far and _probable(v, _gaussian_gain(v, n), known.of_level)
        found.append(v if probable else 0.0)
    return torch.tensor(found).to(white).exp().unsqueeze(-1)


Refit = Callable[[Prior, Record, bool], Outcome]
"""Fits of measurements under a prior, and whether there is a signal at all."""


def follow(prior: Prior, outcome: Outcome, refit: Refit) -> Iterator[Followed]:
    """Fits of the measurements whose noise has another level than in training.

    Nothing is followed under priors that were calibrated without levels.

    Args:
        prior: the noise prior.
        outcome: fits under it.
        refit: fits measurements under a prior.
    """
    method = "gls" if outcome.joint is None else "joint"
    table = prior.metadata.get("calibration", {}).get(method, {}).get("level")
    if table is None or not isinstance(prior, Scalable):
        return
    median = table[0]
    excess = (log_level(outcome) - median).tolist()
    counts = outcome.record.present.flatten(1).sum(-1).tolist()
    # What is whitened without a latent tells the level at once.
    at_once = outcome.joint is None or isinstance(prior, ScorePrior)
    energies = _energy(outcome).tolist()
    searches = {}
    for b, (u, n) in enumerate(zip(excess, counts, strict=True)):
        known = Scatter.of(table[1], n, prior.window)
        if abs(u) > DOUBTFUL * known.of_residual:
            searches[b] = _Search(u, energies[b], energies[b], known)
            if at_once:
                searches[b].end(u, _gaussian_gain(u, n))

    def fitted(v: float, numbers: list[int], detect: bool) -> tuple[Prior, Outcome]:
        scaled = prior.scaled(math.exp(v))
        rows = torch.tensor(numbers, device=outcome.record.x.device)
        return scaled, refit(scaled, outcome.record.select(rows), detect)

    for _ in range(PASSES):
        asked = _grouped((b, s.proposal()) for b, s in searches.items())
        for v, numbers in asked.items():
            _, found = fitted(v, numbers, False)
            u = (log_level(found) - median).tolist()
            for i, energy in enumerate(_energy(found).tolist()):
                searches[numbers[i]].see(v, u[i], energy)
    accepted = _grouped((b, s.accepted()) for b, s in searches.items())
    for v, numbers in accepted.items():
        rows = torch.tensor(numbers, device=outcome.record.x.device)
        sd = [searches[b].known.of_level for b in numbers]
        error = torch.tensor(sd).to(outcome.record.x)
        yield Followed(rows, math.exp(v), error, *fitted(v, numbers, True))


def _grouped(pairs: Iterable[tuple[int, float | None]]) -> dict[float, list[int]]:
    """Numbers of measurements by their v, of those that have one."""
    groups: dict[float, list[int]] = {}
    for b, v in pairs:
        if v is not None:
            groups.setdefault(v, []).append(b)
    return groups
