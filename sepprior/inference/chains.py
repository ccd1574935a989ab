"""Markov chains in coordinates in which the target is near a standard normal.

Many small targets are sampled side by side, with several chains each, as one tensor
problem. Every target gets the same random numbers, so that its chains do not depend on
what else is in the batch. B targets, C chains, S draws, D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHAINS = 4
WARM_UP = 200
"""Steps of every chain that are not kept."""
OVERDISPERSION = 1.5
"""Standard deviations by which chains start apart."""
LEAPFROGS = 3
"""Steps of a Hamiltonian trajectory."""
LONGEST_TRAJECTORY = 0.5 * math.pi
"""A quarter period of a standard normal: draws are independent there."""
JITTER = 0.3
"""Relative spread of step sizes, so that no trajectory is a multiple of a period."""
ACCEPTANCE = 0.8
"""Aim of the adaptation, near the optimum of 0.65 to 0.8 (Beskos et al. 2013)."""
LANGEVIN_STEP = 0.7
FRICTION = 1.0
"""Of Langevin dynamics, per unit of time: little correlation, no long oscillation."""
STEEPEST = 4.0
"""Gradients are cut at so many times their expected length, the root of D."""
LEARNING_RATE = 0.04
"""Weight of a step in the running mean of squared gradients."""

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (B, C, D) -> energies (B, C), infinite out of bounds, and gradients."""
Force = Callable[[Tensor, float], Tensor]
"""Points (B, C, D), share of the warm-up that is done -> gradients of the energy."""
Inside = Callable[[Tensor], Tensor]
"""Points (B, C, D) -> whether they are within bounds, (B, C)."""
Kept = Callable[[Tensor], Tensor]
"""Points (B, C, D) -> what is kept of them, (B, C, P)."""


def dispersed(
    shape: tuple[int, int, int], *, like: Tensor, rng: torch.Generator
) -> Tensor:
    """Points (B, C, D) farther from the origin than a standard normal's."""
    return OVERDISPERSION * _normal(shape, like, rng)


def hamiltonian(
    potential: Potential,
    start: Tensor,
    *,
    n_draws: int,
    kept: Kept,
    rng: torch.Generator,
    warm_up: int = WARM_UP,
) -> Tensor:
    """Hamiltonian Monte Carlo (Neal 2011, figure 2), draws (B, C, S, P).

    The step size of each target is adapted in the warm-up, by dual averaging of the
    mean acceptance of its chains (Hoffman and Gelman 2014, algorithm 5), and is fixed
    afterwards.

    Args:
        potential: the target.
        start: shape (B, C, D).
        n_draws: S.
        kept: part of the points that is returned.
        rng: random numbers, the same for all targets.
        warm_up: steps before the first draw.
    """
    longest = math.log(LONGEST_TRAJECTORY / LEAPFROGS)
    position = start
    energy, gradient = potential(position)
    step = start.new_full((len(start),), longest)
    adapted = _DualAveraging(step)
    draws = []
    for index in range(warm_up + n_draws):
        momentum = _normal(tuple(start.shape), start, rng)
        spread = 2.0 * torch.rand((start.shape[1], 1), generator=rng) - 1.0
        h = step.exp()[:, None, None] * (1.0 + JITTER * spread.to(start))
        new, slope, p = position, gradient, momentum - 0.5 * h * gradient
        new_energy = energy
        for leap in range(LEAPFROGS):
            new = new + h * p
            new_energy, slope = potential(new)
            p = p - (0.5 if leap + 1 == LEAPFROGS else 1.0) * h * slope
        kinetic = 0.5 * (momentum.square() - p.square()).sum(-1)
        log_ratio = (energy - new_energy + kinetic).nan_to_num(
            nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
        )
        level = torch.rand(start.shape[1], generator=rng).to(start).log()
        won = level < log_ratio
        position = torch.where(won[..., None], new, position)
        gradient = torch.where(won[..., None], slope, gradient)
        energy = torch.where(won, new_energy, energy)
        if index < warm_up:
            step = adapted.update(log_ratio.clamp_max(0.0).exp().mean(-1))
            if index == warm_up - 1:
                step = adapted.final
            step = step.clamp_max(longest)
        else:
            draws.append(kept(position))
    return torch.stack(draws, 2)


class _DualAveraging:
    """Nesterov's dual averaging of log step sizes (B,), as Hoffman and Gelman use it.

    Args:
        start: log step sizes.
    """

    shrinkage, delay, decay = 0.05, 10.0, 0.75

    def __init__(self, start: Tensor) -> None:
        self.centre = start
        self.final = torch.zeros_like(start)
        self.shortfall = torch.zeros_like(start)
        self.count = 0

    def update(self, acceptance: Tensor) -> Tensor:
        """Log step sizes to try next, after one with this acceptance."""
        self.count += 1
        weight = 1.0 / (self.count + self.delay)
        self.shortfall = (1.0 - weight) * self.shortfall
        self.shortfall = self.shortfall + weight * (ACCEPTANCE - acceptance)
        now = self.centre - math.sqrt(self.count) / self.shrinkage * self.shortfall
        weight = self.count**-self.decay
        self.final = weight * now + (1.0 - weight) * self.final
        return now


def langevin(
    force: Force,
    start: Tensor,
    *,
    n_draws: int,
    kept: Kept,
    inside: Inside,
    rng: torch.Generator,
    warm_up: int = WARM_UP,
) -> Tensor:
    """Langevin dynamics from gradients alone, draws (B, C, S, P).

    The BAOAB splitting (Leimkuhler and Matthews 2013): for a Gaussian target the
    positions have the exact covariance at any step size, for others one that is off in
    the second order of the step. There is no rejection, because a score comes without
    its density; only a step out of bounds is not taken, and the velocity turns round.

    Each coordinate of each target has a mass, the mean square of its gradient, which
    for draws from a density is its mean curvature; it is followed through the warm-up
    and fixed afterwards.

    Args:
        force: gradients of the energy.
        start: shape (B, C, D).
        n_draws: S.
        kept: part of the points that is returned.
        inside: whether points are within bounds.
        rng: random numbers, the same for all targets.
        warm_up: steps before the first draw.
    """
    h, shape = LANGEVIN_STEP, tuple(start.shape)
    longest = STEEPEST * math.sqrt(shape[-1])
    persistence = math.exp(-FRICTION * h)
    mass = torch.ones_like(start[:, :1])

    def pull(at: Tensor, done: float) -> Tensor:
        gradient = force(at, done) / mass.sqrt()
        length = gradient.norm(dim=-1, keepdim=True)
        return gradient * (longest / length.clamp_min(longest))

    position, velocity = start, _normal(shape, start, rng)
    gradient = pull(position, 0.0)
    draws = []
    for index in range(warm_up + n_draws):
        moved = velocity - 0.5 * h * gradient
        half = position + 0.5 * h * moved / mass.sqrt()
        noise = _normal(shape, start, rng)
        moved = persistence * moved + math.sqrt(1.0 - persistence**2) * noise
        new = half + 0.5 * h * moved / mass.sqrt()
        taken = inside(new)[..., None]
        position = torch.where(taken, new, position)
        done = min(1.0, (index + 1) / max(warm_up, 1))
        gradient = pull(position, done)
        velocity = torch.where(taken, moved - 0.5 * h * gradient, -velocity)
        if index < warm_up:
            square = gradient.square().mean(1, keepdim=True)
            mass = mass * (1.0 + LEARNING_RATE * (square - 1.0))
        else:
            draws.append(kept(position))
    return torch.stack(draws, 2)


def _normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal (B, C, D), the same for all B."""
    one = torch.randn(shape[1:], generator=rng, dtype=like.dtype)
    return one.to(like.device).expand(shape)
