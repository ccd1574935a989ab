"""Many small smooth minimisations at once: limited-memory BFGS over a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUFFICIENT_DECREASE = 1e-4
SHORTEST_STEP = 1e-10
NEGLIGIBLE = 0.01
"""Share of the tolerated decrease that a step must promise to be tried."""

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
            that promises anything gains it; never where the energy is not finite.
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

    Limited-memory BFGS (Nocedal and Wright 2006, section 7.2) with Armijo
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
    pairs_s, pairs_y = x.new_zeros(2, n_problems, history, n)
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
        promised = -step[lost] * slope[~accept]
        stuck[lost] |= promised < NEGLIGIBLE * decrease_tolerance
        stuck[lost] |= step[lost] < SHORTEST_STEP
        if won.numel() == 0:
            continue
        s = trial[accept] - x[won]
        y = trial_gradient[accept] - gradient[won]
        usable = (s * y).sum(-1) > 1e-10 * y.square().sum(-1)
        for pairs, newest in ((pairs_s, s), (pairs_y, y)):
            # Newest first; each problem has a history of its own.
            newest = torch.where(usable[:, None], newest, 0.0).unsqueeze(1)
            pairs[won] = torch.cat([newest, pairs[won, :-1]], 1)
        gain = energy[won] - trial_energy[accept]
        small[won] = torch.where(
            gain < decrease_tolerance, small[won] + 1, torch.zeros_like(gain)
        )
        x[won], energy[won] = trial[accept], trial_energy[accept]
        gradient[won] = trial_gradient[accept]
        done[won] = (gradient[won].abs().amax(-1) < gradient_tolerance) | (
            small[won] >= 2
        )
        known = min(history, evaluations)
        direction[won] = _quasi_newton(
            gradient[won], pairs_s[won, :known], pairs_y[won, :known]
        )
        step[won] = 1.0
    return Minimum(
        x=x,
        energy=energy,
        gradient_norm=gradient.abs().amax(-1) if n else torch.zeros_like(energy),
        converged=(done | stuck) & torch.isfinite(energy),
        evaluations=evaluations,
    )


def _quasi_newton(gradient: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Downward directions (B, n) by the inverse BFGS matrix in its compact form.

    Byrd, Nocedal and Schnabel (1994), equation 3.1: a few products of small matrices
    instead of a loop over the pairs.

    Args:
        gradient: shape (B, n).
        s: steps, newest first, zero where there is none, (B, h, n).
        y: changes of the gradient, likewise, (B, h, n).
    """
    dtype, gradient = gradient.dtype, gradient.double()
    s, y = s.double(), y.double()
    products = s @ y.mT
    curvature = products.diagonal(dim1=-2, dim2=-1)
    empty = (curvature == 0).to(gradient)
    # Steps before or at the change of the gradient: newest first, that is below.
    lower = products.tril() + torch.diag_embed(empty)
    changes = y @ y.mT
    newest = empty.argmin(-1, keepdim=True)
    squares = changes.diagonal(dim1=-2, dim2=-1)
    scale = curvature.gather(-1, newest) / squares.gather(-1, newest)
    scale = torch.where(empty.all(-1, keepdim=True), 1.0, scale)
    along_s, along_y = (pairs @ gradient.unsqueeze(-1) for pairs in (s, y))
    v = torch.linalg.solve_triangular(lower, along_s, upper=False)
    gamma = scale.unsqueeze(-1)
    right = curvature.unsqueeze(-1) * v + gamma * (changes @ v - along_y)
    w = torch.linalg.solve_triangular(lower.mT, right, upper=True)
    q = scale * gradient + (s.mT @ w - gamma * (y.mT @ v)).squeeze(-1)
    descent = (q * gradient).sum(-1, keepdim=True) > 0
    return -torch.where(descent, q, gradient).to(dtype)
