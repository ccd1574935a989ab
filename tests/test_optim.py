"""The batched minimiser against closed forms, scipy and torchmin."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torchmin import minimize

from sepprior.optim import _quasi_newton, minimize_batch


def with_gradient(energy):
    """An objective from a function (x (A, n), indices (A,)) -> energies (A,)."""

    def objective(x, which):
        x = x.detach().requires_grad_()
        e = energy(x, which)
        (gradient,) = torch.autograd.grad(e.sum(), x)
        return e.detach(), gradient

    return objective


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rosenbrock(x, which=None):
    valley = (x[..., 1:] - x[..., :-1].square()).square()
    return (100 * valley + (1 - x[..., :-1]).square()).sum(-1)


TIGHT = {"gradient_tolerance": 1e-7, "decrease_tolerance": 0.0}


def test_quadratics_end_at_the_solution_of_their_linear_systems():
    n_problems, n = 12, 6
    root = random(n_problems, n, n)
    hessian = root @ root.mT + torch.eye(n, dtype=torch.float64)
    centre = random(n_problems, n, seed=1)

    def energy(x, which):
        d = (x - centre[which]).unsqueeze(-1)
        return 0.5 * (d.mT @ hessian[which] @ d).flatten() + which

    found = minimize_batch(
        with_gradient(energy), torch.zeros_like(centre), max_evaluations=300, **TIGHT
    )
    assert found.converged.all()
    torch.testing.assert_close(found.x, centre, rtol=0, atol=1e-5)
    # Each problem has its own constant: none got the energy of another.
    expected = torch.arange(n_problems, dtype=torch.float64)
    torch.testing.assert_close(found.energy, expected, rtol=0, atol=1e-9)
    assert float(found.gradient_norm.max()) < 1e-7


def test_rosenbrock_valleys_end_where_scipy_and_torchmin_end():
    start = random(8, 2)
    found = minimize_batch(
        with_gradient(rosenbrock), start, max_evaluations=500, **TIGHT
    )
    assert found.converged.all()
    for k in range(len(start)):
        scipy = optimize.minimize(
            optimize.rosen, start[k].numpy(), jac=optimize.rosen_der, method="L-BFGS-B"
        )
        np.testing.assert_allclose(found.x[k], scipy.x, atol=1e-3)
        reference = minimize(rosenbrock, start[k], method="newton-exact")
        torch.testing.assert_close(found.x[k], reference.x, rtol=0, atol=1e-5)
    # Too few evaluations are told from enough.
    short = minimize_batch(with_gradient(rosenbrock), start, max_evaluations=5, **TIGHT)
    assert not short.converged.any()
    assert short.evaluations == 5
    assert (short.energy <= rosenbrock(start)).all()


def test_curvature_is_learned():
    """A valley of condition 1e3: steepest descent would need thousands of steps."""
    scale = torch.logspace(0, 3, 8, dtype=torch.float64)

    def energy(x, which):
        return 0.5 * (scale * x.square()).sum(-1)

    start = random(3, 8)
    evaluations = {}
    for history in (10, 1):
        found = minimize_batch(
            with_gradient(energy),
            start,
            max_evaluations=2000,
            history=history,
            gradient_tolerance=1e-5,
            decrease_tolerance=0.0,
        )
        assert float(found.x.abs().max()) < 1e-5
        evaluations[history] = found.evaluations
    assert evaluations[10] < 150
    assert evaluations[10] < 0.7 * evaluations[1]


def test_each_problem_ends_where_it_would_alone():
    start = random(6, 3, seed=4)
    together = minimize_batch(
        with_gradient(rosenbrock), start, max_evaluations=500, **TIGHT
    )
    for k in range(6):
        alone = minimize_batch(
            with_gradient(rosenbrock), start[k : k + 1], max_evaluations=500, **TIGHT
        )
        torch.testing.assert_close(together.x[k], alone.x[0], rtol=0, atol=1e-4)


def test_finished_problems_are_left_alone():
    asked = []

    def energy(x, which):
        asked.append(which.tolist())
        return 0.5 * x.square().sum(-1)

    start = torch.tensor([[0.0, 0.0], [30.0, 40.0]], dtype=torch.float64)
    found = minimize_batch(with_gradient(energy), start, max_evaluations=100)
    assert found.converged.all()
    assert asked[0] == [0, 1]
    assert all(which == [1] for which in asked[1:])
    assert len(asked) == found.evaluations > 1
    assert torch.equal(found.x[0], start[0])


@pytest.mark.parametrize("outside", [math.inf, math.nan])
def test_regions_of_infinite_energy_are_backed_out_of(outside):
    """``x - 1 - log x`` has its minimum, 0, at 1 and is not defined below 0."""

    def barrier(x, which):
        inside = (x > 0).all(-1)
        safe = x.clamp_min(1e-30)
        return torch.where(
            inside, (safe - 1 - safe.log()).sum(-1), torch.full_like(x[:, 0], outside)
        )

    start = torch.tensor([[0.01, 5.0], [30.0, 0.2]], dtype=torch.float64)
    found = minimize_batch(with_gradient(barrier), start, max_evaluations=300, **TIGHT)
    assert found.converged.all()
    torch.testing.assert_close(found.x, torch.ones_like(start), rtol=0, atol=1e-5)


def test_a_start_without_a_finite_energy_has_not_converged():
    def energy(x, which):
        return torch.where(
            x[:, 0] < 0, torch.full_like(x[:, 0], math.inf), x.square().sum(-1)
        )

    start = torch.tensor([[-1.0, 5.0], [2.0, 1.0]], dtype=torch.float64)
    found = minimize_batch(with_gradient(energy), start, max_evaluations=200)
    assert found.converged.tolist() == [False, True]
    assert torch.isfinite(found.energy).tolist() == [False, True]


def test_at_the_optimum_nothing_moves():
    start = torch.ones(3, 4, dtype=torch.float64)
    found = minimize_batch(with_gradient(rosenbrock), start)
    assert found.evaluations == 1
    assert found.converged.all()
    assert torch.equal(found.x, start)
    # Next to it, it does.
    moved = minimize_batch(with_gradient(rosenbrock), start + 0.1)
    assert moved.evaluations > 1


def test_no_variables_are_a_single_evaluation():
    def objective(x, which):
        return which.double() + 3.0, torch.zeros_like(x)

    found = minimize_batch(objective, torch.zeros(4, 0, dtype=torch.float64))
    assert found.evaluations == 1
    assert found.converged.all()
    assert found.x.shape == (4, 0)
    assert found.energy.tolist() == [3.0, 4.0, 5.0, 6.0]
    assert found.gradient_norm.tolist() == [0.0] * 4


def test_the_start_is_not_written_to():
    start = random(2, 3)
    before = start.clone()
    minimize_batch(with_gradient(rosenbrock), start, max_evaluations=20)
    assert torch.equal(start, before)


def test_the_energy_never_rises():
    """A wrong gradient finds no descent, and the start is returned."""

    def uphill(x, which):
        return x.square().sum(-1), -2 * x

    start = random(3, 2)
    found = minimize_batch(uphill, start, max_evaluations=100)
    assert torch.equal(found.x, start)
    assert float(found.gradient_norm.min()) > 1e-3


def test_direction_is_that_of_the_updated_inverse_hessian():
    """Compact form against BFGS updates one by one (Nocedal and Wright, eq. 6.17)."""
    rng = torch.Generator().manual_seed(3)
    n, h = 7, 4
    root = torch.randn((n, n), generator=rng, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(n, dtype=torch.float64)
    s = torch.randn((3, h, n), generator=rng, dtype=torch.float64)
    s[1, 1] = 0.0  # a pair that was of no use
    s[1, 3:] = 0.0  # a short history
    s[2] = 0.0  # none at all
    y = s @ hessian
    gradient = torch.randn((3, n), generator=rng, dtype=torch.float64)
    found = _quasi_newton(gradient, s, y)
    for b in range(3):
        pairs = [(s[b, i], y[b, i]) for i in range(h) if s[b, i].any()]
        scale = pairs[0][0] @ pairs[0][1] / pairs[0][1].square().sum() if pairs else 1.0
        inverse = scale * torch.eye(n, dtype=torch.float64)
        for step, change in reversed(pairs):
            rho = 1.0 / (step @ change)
            part = torch.eye(n, dtype=torch.float64) - rho * torch.outer(step, change)
            inverse = part @ inverse @ part.T + rho * torch.outer(step, step)
        torch.testing.assert_close(found[b], -inverse @ gradient[b])
    single = _quasi_newton(gradient.float(), s.float(), y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-4)
