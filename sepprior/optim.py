"""Many small smooth minimisations at once: limited-memory BFGS over a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUFFICIENT_DECREASE = 1e-4
SHORTEST_STEP = 1e-10

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x of shape (A, n), problem indices (A,)) -> energies (A,) and gradients (A, n)."""


@dataclass(frozen=True)
class Minimum:
    """Where each problem of a batch ended.

    Attributes:
        x: shape (B, n).
        energy: shape (B,).
        gradient_norm: shape (B,), largest absolute component.
        converged: shape (B,), gradient or decrease below its tolerance, or no step
            however short gains anything; never where the energy is not finite.
        evaluations: objective evaluations of the longest-running problem.
    """

    x: Tensor
    energy: Tensor
    gradient_norm: Tensor
    converged: Tensor
    evaluations: int


def minimize_batch(
    objective: Objective,
    start: Tensor,
    *,
    max_evaluations: int = 60,
    history: int = 10,
    gradient_tolerance: float = 1e-3,
    decrease_tolerance: float = 1e-5,
) -> Minimum:
    """Minimise B independent functions of n variables side by side.

    Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4) with Armijo
    backtracking. Each evaluation serves every unfinished problem: those that accept
    their trial point turn to a new direction, the others halve their step. Scale the
    variables such that the Hessian is near the identity: the first step is then a
    Newton step.

    Args:
        objective: energies and gradients of a subset of the problems.
        start: shape (B, n).
        max_evaluations: bound on calls of `objective`.
        history: pairs kept.
        gradient_tolerance: a problem ends when no gradient component exceeds it.
        decrease_tolerance: ... or when two accepted steps in a row gain less, nats.

    Returns:
        The best point of each problem.
    """
    n_problems, n = start.shape
    x = start.clone()
    everyone = torch.arange(n_problems, device=x.device)
    energy, gradient = objective(x, everyone)
    pairs_s = x.new_zeros(history, n_problems, n)
    pairs_y = x.new_zeros(history, n_problems, n)
    rho = x.new_zeros(history, n_problems)
    norm = gradient.norm(dim=-1, keepdim=True)
    direction = -gradient / norm.clamp_min(1.0)
    step = torch.ones_like(energy)
    small = torch.zeros_like(energy)
    done = gradient.abs().amax(-1) < gradient_tolerance if n else energy == energy
    stuck = torch.zeros_like(done)
    evaluations = 1
    while evaluations < max_evaluations:
        active = everyone[~(done | stuck)]
        if active.numel() == 0:
            break
        trial = x[active] + step[active, None] * direction[active]
        trial_energy, trial_gradient = objective(trial, active)
        evaluations += 1
        slope = (gradient[active] * direction[active]).sum(-1)
        bound = energy[active] + SUFFICIENT_DECREASE * step[active] * slope
        accept = torch.isfinite(trial_energy) & (trial_energy <= bound)
        won = active[accept]
        lost = active[~accept]
        step[lost] *= 0.4
        stuck[lost] |= step[lost] < SHORTEST_STEP
        if won.numel() == 0:
            continue
        s = trial[accept] - x[won]
        y = trial_gradient[accept] - gradient[won]
        curvature = (s * y).sum(-1)
        usable = curvature > 1e-10 * y.square().sum(-1)
        inverse = torch.where(usable, 1.0 / curvature, torch.zeros_like(curvature))
        for pairs, newest in ((pairs_s, s), (pairs_y, y), (rho, inverse)):
            # Newest first; each problem has a history of its own.
            pairs[:, won] = torch.cat([newest.unsqueeze(0), pairs[:-1, won]])
        gain = energy[won] - trial_energy[accept]
        small[won] = torch.where(
            gain < decrease_tolerance, small[won] + 1, torch.zeros_like(gain)
        )
        x[won], energy[won] = trial[accept], trial_energy[accept]
        gradient[won] = trial_gradient[accept]
        done[won] = (gradient[won].abs().amax(-1) < gradient_tolerance) | (
            small[won] >= 2
        )
        direction[won] = _two_loop(
            gradient[won], pairs_s[:, won], pairs_y[:, won], rho[:, won]
        )
        step[won] = 1.0
    return Minimum(
        x=x,
        energy=energy,
        gradient_norm=gradient.abs().amax(-1) if n else torch.zeros_like(energy),
        converged=(done | stuck) & torch.isfinite(energy),
        evaluations=evaluations,
    )


def _two_loop(gradient: Tensor, s: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """Quasi-Newton direction (Nocedal and Wright 2006, algorithm 7.4)."""
    q = gradient.clone()
    weights: dict[int, Tensor] = {}
    for i in range(len(rho)):
        weights[i] = rho[i] * (s[i] * q).sum(-1)
        q = q - weights[i][:, None] * y[i]
    scale = torch.ones_like(q[:, 0])
    settled = torch.zeros_like(scale, dtype=torch.bool)
    for i in range(len(rho)):
        usable = (rho[i] > 0) & ~settled
        ratio = 1.0 / (rho[i] * y[i].square().sum(-1)).clamp_min(1e-30)
        scale = torch.where(usable, ratio, scale)
        settled |= usable
    q = q * scale[:, None]
    for i in reversed(range(len(rho))):
        back = rho[i] * (y[i] * q).sum(-1)
        q = q + (weights[i] - back)[:, None] * s[i]
    descent = (q * gradient).sum(-1, keepdim=True) > 0
    return -torch.where(descent, q, gradient)
