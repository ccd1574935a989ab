"""Missing samples window by window against dense algebra over all windows at once."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sepprior
from sepprior import signals
from sepprior.inference.gaps import Gaps
from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import gauss_newton, inverse_information
from sepprior.inference.pipeline import analyse
from sepprior.inference.posterior import _information
from sepprior.inference.record import lay_out
from sepprior.inference.score import DAMPING, LONGEST_STEP, STEPS, ScoreProblem
from sepprior.priors.marginal import decode_tangents, latent_information
from sepprior.signals.form import clamp
from tests.test_joint import linear_prior
from tests.test_score import LEVELS, gaussian_by_diffusion

PADDING = 25
WHICH = torch.tensor([0, 1, 0])
"""Two measurements, the first from two starts."""


def gapped(prior, *, padding=PADDING):
    """Two measurements of 3 windows, with gaps in two of them and end padding."""
    n, rate = prior.window, prior.sample_rate
    rng = torch.Generator().manual_seed(1)
    x = prior.sample(6, generator=rng).double().view(2, 3 * n)[:, : 3 * n - padding]
    t = torch.arange(x.shape[1], dtype=torch.float64) / rate
    x = x + 0.6 * prior.autocovariance[0].sqrt() * torch.sin(0.3 * rate * t)
    x[0, 5:25] = torch.nan
    x[0, n + 40 : n + 42] = torch.nan
    x[1, n + 3 : n + 9], x[1, 7] = torch.nan, torch.nan
    return lay_out(x, window=n, level=prior.level, sample_rate=rate)


def form_for(record):
    geometry = signals.Geometry(record.length, record.sample_rate)
    rate = record.sample_rate
    return signals.Sinusoids(1, geometry, low=0.03 * rate, high=0.2 * rate)


def starts(record):
    theta = torch.tensor([[0.0, 0.3, 0.1, 0.0]] * 3, dtype=torch.float64)
    theta[:, 3] = 0.3 * record.sample_rate / (2 * torch.pi)
    theta[:, 3] += torch.tensor([0.05, -0.03, 0.02]) / record.duration
    return theta


def dense_impulses(present, which):
    """Unit impulses at all missing samples, (Q, G, W, N); zero in spare slots."""
    missing = (~present).flatten(1)
    rows = torch.zeros(len(which), int(missing.sum(-1).max()), missing.shape[1])
    for q, b in enumerate(which.tolist()):
        where = missing[b].nonzero().flatten()
        rows[q, torch.arange(len(where)), where] = 1.0
    return rows.double().unflatten(2, present.shape[1:])


class DenseJoint:
    """The joint fit at fixed z with all missing samples as columns of one matrix."""

    def __init__(self, problem, z, which):
        self.problem, self.z, self.which = problem, z, which
        decoded = problem.decode(z)
        self.rest = decoded.half_log_det + problem.prior.latent_energy(z)
        self.root = decoded.precision.double().flatten(1).sqrt()
        impulses = dense_impulses(problem.record.present, which)
        self.gaps = problem.features(impulses, which) * self.root.unsqueeze(1)
        self.data = problem.data_features[which] - decoded.mean.double().flatten(1)
        self.data = self.data * self.root

    def fit(self, theta, *, steps):
        basis, r = torch.linalg.qr(self.gaps.mT)
        basis = basis * (r.diagonal(dim1=-2, dim2=-1).abs() > 1e-9).unsqueeze(1)

        def weighted(columns, rows):
            return self.problem.features(columns, rows) * self.root[rows].unsqueeze(1)

        def projected(columns, rows):
            f = weighted(columns, rows)
            return f - (f @ basis[rows]) @ basis[rows].mT

        target = self.data - (basis @ (basis.mT @ self.data.unsqueeze(-1))).squeeze(-1)
        form, record = self.problem.form, self.problem.record
        fit = gauss_newton(
            form, record, projected, self.which, theta, target, steps=steps
        )
        everyone = torch.arange(len(theta))
        signal = form.evaluate(record.t, fit.theta).unsqueeze(1)
        left = self.data - weighted(signal, everyone)[:, 0]
        values = -torch.linalg.lstsq(self.gaps.mT, left.unsqueeze(-1)).solution
        return fit.theta, values.squeeze(-1), fit.energy + self.rest.double().sum(-1)

    def hessian(self, theta):
        """The whole matrix: theta, the missing samples, the latents."""
        prior, (q, w, k) = self.problem.prior, self.z.shape
        form, record = self.problem.form, self.problem.record
        columns = self.problem.features(
            form.jacobian_columns(record.t, theta), self.which
        )
        decoded, d_mean, d_log = decode_tangents(prior, self.z.flatten(0, 1))
        width = d_mean.shape[-1]
        latent = latent_information(
            decoded,
            d_mean,
            d_log,
            prior.latent_curvature(self.z.flatten(0, 1)),
            redundancy=prior.window / width,
        )
        means = torch.zeros(q, w, k, w, width, dtype=torch.float64)
        for i in range(w):
            means[:, i, :, i] = d_mean.double().view(q, w, k, width)[:, i]
        weighted = means.flatten(1, 2).flatten(2) * self.root.unsqueeze(1)
        columns = columns * self.root.unsqueeze(1)
        jacobian = torch.cat([columns, self.gaps, weighted], 1)
        whole = jacobian @ jacobian.mT
        first = whole.shape[1] - w * k
        for i in range(w):
            here = slice(first + i * k, first + (i + 1) * k)
            whole[:, here, here] = latent.double().view(q, w, k, k)[:, i]
        spare = whole.diagonal(dim1=-2, dim2=-1) == 0
        return whole + torch.diag_embed(spare.double()), first


@pytest.fixture(scope="module")
def joint():
    path = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"
    prior = sepprior.load_prior(path)
    record = gapped(prior)
    problem = JointProblem(prior, record, form=form_for(record))
    rng = torch.Generator().manual_seed(3)
    z = torch.randn((3, 3, prior.n_latent), generator=rng)
    with torch.no_grad():
        reference = DenseJoint(problem, z, WHICH)
        fit = problem.refit(
            starts(record),
            torch.zeros_like(record.x)[WHICH],
            z,
            problem.decode(z),
            WHICH,
            steps=3,
        )
    return problem, reference, z, fit


def test_weighted_fit_is_that_of_dense_algebra(joint):
    problem, reference, _, (theta, filled, energy) = joint
    with torch.no_grad():
        expected = reference.fit(starts(problem.record), steps=3)
    torch.testing.assert_close(theta, expected[0], rtol=1e-10, atol=1e-11)
    wanted = problem.gaps.fill(expected[1], WHICH)
    torch.testing.assert_close(filled, wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(energy, expected[2], rtol=1e-11, atol=1e-9)
    # Negative control: missing samples taken for zeros, in the padding alone.
    where = torch.arange(reference.gaps.shape[1] - PADDING)
    reference.gaps = reference.gaps[:, where]
    with torch.no_grad():
        wrong = reference.fit(starts(problem.record), steps=3)
    assert (wrong[2][0] - expected[2][0]).abs() > 1.0
    assert ((wrong[0] - expected[0]).abs().amax(-1) > 1e-4).any()


def test_covariance_and_volume_are_those_of_the_dense_hessian(joint):
    problem, _, z, (theta, filled, energy) = joint
    fit = JointFit(theta, z, filled, energy, torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        hessian = problem.hessian(fit, WHICH)
        whole, first = DenseJoint(problem, z, WHICH).hessian(theta)
    torch.testing.assert_close(hessian.dense(), whole, rtol=1e-7, atol=1e-5)
    marginal, conditional, volume = hessian.summary()
    p = theta.shape[1]
    exact = torch.linalg.inv(whole)[:, :p, :p]
    torch.testing.assert_close(marginal, exact, rtol=1e-6, atol=1e-12)
    fixed = torch.linalg.inv(whole[:, :first, :first])[:, :p, :p]
    torch.testing.assert_close(conditional, fixed, rtol=1e-6, atol=1e-12)
    half = 0.5 * torch.linalg.slogdet(whole).logabsdet
    torch.testing.assert_close(volume, half, rtol=0.0, atol=1e-5)
    # Negative control: with the missing samples known, the errors are smaller.
    known = torch.cat([torch.arange(p), torch.arange(first, whole.shape[1])])
    known = torch.linalg.inv(whole[:, known][:, :, known])[:, :p, :p]
    ratio = known.diagonal(dim1=-2, dim2=-1) / marginal.diagonal(dim1=-2, dim2=-1)
    assert ratio.amin() < 0.95


def dense_scoring(problem, fit, which, index):
    """A Fisher step with the missing samples as columns beside those of theta."""
    prior, form, p = problem.prior, problem.form, fit.theta.shape[1]
    residual = problem.residual(fit.theta, fit.missing, which)
    impulses = prior.features(dense_impulses(problem.record.present, which))
    columns = torch.cat([problem.jacobian(fit.theta, which), impulses], 1)
    spare = (~problem.gaps.used[which]).double()
    spare = torch.diag_embed(torch.cat([torch.zeros(len(which), p), spare], 1))
    information, scatter = (
        (columns @ m).flatten(2) @ columns.flatten(2).mT + spare
        for m in (prior.information_matrix(index), prior.scatter_matrix(index))
    )
    score = problem.score(residual, index, problem.draws(index)).flatten(1)
    inverse = inverse_information(information)
    gradient = columns.flatten(2) @ score.unsqueeze(-1)
    step = (inverse @ gradient).squeeze(-1)
    own = torch.linalg.inv(inverse[:, :p, :p])
    length = torch.einsum("qi,qij,qj->q", step[:, :p], own, step[:, :p]).sqrt()
    scale = DAMPING * (LONGEST_STEP / length.clamp_min(LONGEST_STEP))
    theta = fit.theta + step[:, :p] * scale.unsqueeze(-1)
    n = form.n_linear
    reach = form.reach.to(theta)
    move = (theta - fit.theta)[:, n:].clamp(-reach, reach)
    nonlinear = clamp(form, fit.theta[:, n:] + move, which)
    return type(fit)(
        torch.cat([theta[:, :n], nonlinear], 1),
        fit.missing + DAMPING * step[:, p:],
        (inverse @ scatter @ inverse)[:, :p, :p],
        0.5 * torch.linalg.slogdet(information).logabsdet,
        length,
    )


def test_fisher_steps_are_those_of_dense_algebra():
    """Whitened by less than all of the noise, so that information is not diagonal."""
    prior = gaussian_by_diffusion(line=2.0)
    record = gapped(prior)
    problem = ScoreProblem(prior, record, form=form_for(record))
    last = len(LEVELS) - 1
    start = problem.start(starts(record))
    fit = problem.descend(start, WHICH, range(last, last + 1))
    expected = start
    for _ in range(STEPS):
        expected = dense_scoring(problem, expected, WHICH, last)
    for name, value in vars(fit).items():
        wanted = getattr(expected, name)
        torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-9, msg=name)
    # The information of theta and the missing samples together.
    whole = _information(problem, start.theta[:2], last)
    columns = torch.cat(
        [
            problem.jacobian(start.theta[:2], torch.arange(2)),
            prior.features(dense_impulses(record.present, torch.arange(2))),
        ],
        1,
    )
    dense = (columns @ prior.information_matrix(last)).flatten(2)
    dense = dense @ columns.flatten(2).mT
    dense = dense + torch.diag_embed((dense.diagonal(dim1=-2, dim2=-1) == 0).double())
    torch.testing.assert_close(whole, dense, rtol=1e-9, atol=1e-9)
    # Negative control: missing samples that do not follow the parameters.
    p = start.theta.shape[1]
    held = torch.linalg.inv(dense[:, :p, :p]).diagonal(dim1=-2, dim2=-1)
    free = torch.linalg.inv(dense)[:, :p, :p].diagonal(dim1=-2, dim2=-1)
    assert (held / free).amin() < 0.95


class Largest(TorchDispatchMode):
    """Numbers in the largest array that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().size():
                size = one.untyped_storage().size() // one.element_size()
                self.numbers = max(self.numbers, size)
        return out


@pytest.mark.parametrize("kind", ["latent", "score"])
def test_memory_grows_as_the_record_does(kind):
    """Of 20 and 40 windows with a third of their samples missing, the last one short.

    Arrays of all missing samples by all samples would grow fourfold.
    """
    prior = linear_prior()[0] if kind == "latent" else gaussian_by_diffusion()
    n, sizes = prior.window, []
    for windows in (20, 40):
        rng = torch.Generator().manual_seed(0)
        x = prior.sample(windows, generator=rng).double().flatten()[: -n // 2]
        t = torch.arange(len(x)) / prior.sample_rate
        x = x + torch.sin(2 * torch.pi * 3.1 * t)
        x[torch.rand(len(x), generator=rng) < 1 / 3] = torch.nan
        record = lay_out(
            x[None], window=n, level=prior.level, sample_rate=prior.sample_rate
        )
        with Largest() as largest:
            outcome = analyse(
                prior,
                record,
                form=form_for(record),
                generator=torch.Generator().manual_seed(0),
                n_peaks=1,
                guess=torch.tensor([[3.1]], dtype=torch.float64),
            )
        assert outcome.joint is not None
        assert (outcome.joint.theta[0, 3] - 3.1).abs() < 0.01
        sizes.append(largest.numbers)
    assert sizes[1] < 2.3 * sizes[0]
    # Negative control: the columns that are not made are larger than any array.
    columns = int((~record.present).sum()) * record.x.numel()
    assert sizes[1] < columns


def test_gap_slots_put_values_where_samples_are_missing():
    present = torch.tensor([[[True, False, True], [True, True, False]]])
    present = torch.cat([present, torch.ones_like(present)])
    gaps = Gaps(present)
    assert gaps.count == 2
    which = torch.arange(2)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    filled = gaps.fill(values, which)
    expected = torch.zeros(2, 2, 3)
    expected[0, 0, 1], expected[0, 1, 2] = 1.0, 2.0
    torch.testing.assert_close(filled, expected)
    gathered = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(gaps.gather(filled, which), gathered)
    assert gaps.positions.tolist() == [1, 2]
    assert gaps.impulses().tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    (block,) = gaps.blocks(torch.tensor([1, 0]), width=3)
    assert block.problem.tolist() == [1, 1] and block.window.tolist() == [0, 1]
    assert block.position.tolist() == [[1], [2]] and block.slot.tolist() == [[0], [1]]
