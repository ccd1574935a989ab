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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepprior.inference.pipeline import Outcome
from sepprior.inference.record import Record
from sepprior.priors.base import Prior, Scalable

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
class Level:
    """What is known of u in noise as loud as in training.

    Attributes:
        median: of u.
        sd: of u.
    """

    median: float
    sd: float

    @classmethod
    def of(
        cls, table: Mapping[str, Any] | None, method: str, n: float, window: int
    ) -> Level | None:
        """From a prior's calibration, for `n` samples; None where it has none.

        The scatter of single samples falls with their number, that of the level from
        one window to the next does not.
        """
        known = (table or {}).get(method, {}).get("level")
        if known is None:
            return None
        median, sd = known
        chance = min(sd, math.sqrt(0.5 / window))
        rest = sd**2 - chance**2
        return cls(median, math.sqrt(rest + chance**2 * window / n))


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
        sd: standard deviation of ``log s``.
        prior: noise of that level.
        outcome: their fits under it.
    """

    rows: Tensor
    level: float
    sd: float
    prior: Prior
    outcome: Outcome


@dataclass
class _Search:
    """The search for v of one measurement.

    Attributes:
        u: at the best v so far, less its median in noise as loud as in training.
        energy: there.
        first: at v = 0.
        v: the best so far.
        share: fall of u over the rise of v.
        done: no better one is looked for.
    """

    u: float
    energy: float
    first: float
    v: float = 0.0
    share: float = 1.0
    done: bool = False

    def proposal(self) -> float:
        """The next v, on the grid."""
        step = min(max(self.u / self.share, -LONGEST), LONGEST)
        aim = min(max(self.v + step, -MOST), MOST)
        return STEP * round(aim / STEP)

    def see(self, v: float, u: float, energy: float) -> None:
        """Takes in a fit at another v."""
        if not energy < self.energy:
            self.done = True
            return
        # A latent may take in some of the level: u falls by less than v rises.
        self.share = min(max((self.u - u) / (v - self.v), 0.2), 1.0)
        self.v, self.u, self.energy = v, u, energy


Refit = Callable[[Prior, Record], Outcome]
"""Fits of measurements under a prior."""


def follow(prior: Prior, outcome: Outcome, refit: Refit) -> Iterator[Followed]:
    """Fits of the measurements whose noise has another level than in training.

    Nothing is followed under priors that were calibrated without levels.

    Args:
        prior: the noise prior.
        outcome: fits under it.
        refit: fits measurements under a prior.
    """
    method = "gls" if outcome.joint is None else "joint"
    n = float(outcome.record.present.flatten(1).sum(-1).double().mean())
    known = Level.of(prior.metadata.get("calibration"), method, n, prior.window)
    if known is None or not isinstance(prior, Scalable):
        return
    u = (log_level(outcome) - known.median).tolist()
    energies = _energy(outcome).tolist()
    searches = {
        b: _Search(u[b], energy, energy)
        for b, energy in enumerate(energies)
        if abs(u[b]) > DOUBTFUL * known.sd
    }
    fits: dict[tuple[float, tuple[int, ...]], tuple[Prior, Outcome]] = {}

    def fitted(v: float, numbers: list[int]) -> tuple[Prior, Outcome]:
        key = v, tuple(numbers)
        if key not in fits:
            scaled = prior.scaled(math.exp(v))
            rows = torch.tensor(numbers, device=outcome.record.x.device)
            fits[key] = scaled, refit(scaled, outcome.record.select(rows))
        return fits[key]

    for _ in range(PASSES):
        asked = _grouped(
            (b, search.proposal()) for b, search in searches.items() if not search.done
        )
        moved = False
        for v, numbers in asked.items():
            numbers = [b for b in numbers if abs(v - searches[b].v) > 0.5 * STEP]
            if not numbers:
                continue
            moved = True
            _, found = fitted(v, numbers)
            u = (log_level(found) - known.median).tolist()
            for i, (b, energy) in enumerate(
                zip(numbers, _energy(found).tolist(), strict=True)
            ):
                searches[b].see(v, u[i], energy)
        if not moved:
            break
    sd = _uncertainty(known, n)
    accepted = _grouped(
        (b, search.v) for b, search in searches.items() if _probable(search, sd)
    )
    for v, numbers in accepted.items():
        rows = torch.tensor(numbers, device=outcome.record.x.device)
        yield Followed(rows, math.exp(v), sd, *fitted(v, numbers))


def _grouped(pairs: Iterable[tuple[int, float]]) -> dict[float, list[int]]:
    """Numbers of measurements by their v."""
    groups: dict[float, list[int]] = {}
    for b, v in pairs:
        groups.setdefault(v, []).append(b)
    return groups


def _uncertainty(known: Level, n: float) -> float:
    """Standard deviation of ``log s`` from n samples.

    That of Gaussian noise, ``1 / sqrt(2 n)``; larger under a latent that takes in some
    of the level: the score ``2 n u`` has the information about v as its variance.
    """
    gaussian = math.sqrt(0.5 / n)
    return max(gaussian, gaussian**2 / known.sd)


def _probable(search: _Search, sd: float) -> bool:
    """Whether the level that was found is more probable than that of the training."""
    if not search.v or abs(search.v) > MOST - STEP:
        return False
    density = 1.0 / (math.pi * SPREAD * (1.0 + (search.v / SPREAD) ** 2))
    odds = (1.0 - UNCHANGED) / UNCHANGED * density * math.sqrt(2.0 * math.pi) * sd
    return search.first - search.energy > -math.log(odds)
