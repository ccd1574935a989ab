import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepprior.checkpoint import (
    FORMAT_VERSION,
    load_prior,
    load_tensors,
    resolve_device,
    save_prior,
    save_tensors,
)
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior, Prior, SpecGANPrior
from tests.test_priors import LATENT, ar1, linear, specgan, windows

DATA = Path(__file__).parent / "data"
FACTS = {"seed": 3, "nested": {"list": [1.5, None, "a"], "flag": True}}


def build(kind: str) -> Prior:
    if kind == "gaussian":
        return GaussianPrior(ar1(), level=0.5, sample_rate=100.0, metadata=FACTS)
    prior = {
        "complex": lambda: specgan(scale=30.0, encoder=True),
        "flow": lambda: specgan(scale=30.0, encoder=True, flow=True),
        "limited": lambda: specgan(scale=200.0, encoder=True, loudest=1.5),
        "no encoder": lambda: specgan(scale=30.0, uniform=True),
        "magnitude": lambda: specgan(channels="magnitude", scale=30.0),
        "long": lambda: specgan(window=101, scale=30.0, encoder=True),
    }[kind]()
    prior.metadata = dict(FACTS)
    return prior


KINDS = ["gaussian", "complex", "flow", "limited", "no encoder", "magnitude", "long"]


def only_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def rewrite(path: Path, **changes: object) -> None:
    """Change entries of the stored header; None removes one."""
    tensors, header = load_tensors(path)
    header = {k: v for k, v in (header | changes).items() if v is not None}
    save_tensors(tensors, header, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_prior_is_the_same_prior(kind, tmp_path):
    prior, path = build(kind), tmp_path / "prior.safetensors"
    save_prior(prior, path)
    loaded = load_prior(path, device="cpu")
    assert type(loaded) is type(prior)
    for name in ("name", "window", "sample_rate", "n_latent", "level", "dtype"):
        assert getattr(loaded, name) == getattr(prior, name)
    assert loaded.metadata == FACTS
    assert loaded.autocovariance.dtype == torch.float64
    assert torch.equal(loaded.autocovariance, prior.autocovariance)
    z = torch.randn((3, prior.n_latent), generator=torch.Generator().manual_seed(0))
    ours, theirs = prior.decode(z), loaded.decode(z)
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.precision, theirs.precision)
    assert torch.equal(ours.half_log_det, theirs.half_log_det)
    x = windows(3, prior.window)
    assert torch.equal(prior.features(x), loaded.features(x))
    assert torch.equal(prior.heldout_nll(x), loaded.heldout_nll(x))
    draws = [
        p.sample(2, generator=torch.Generator().manual_seed(1)) for p in (prior, loaded)
    ]
    assert torch.equal(*draws)


def test_weights_and_moments_keep_their_float_types(tmp_path):
    prior, path = build("complex"), tmp_path / "prior.safetensors"
    save_prior(prior, path)
    tensors = load_file(path)
    assert tensors["autocovariance"].dtype == torch.float64
    assert tensors["whitening"].dtype == torch.float64
    rest = {
        k: v for k, v in tensors.items() if k not in ("autocovariance", "whitening")
    }
    assert {v.dtype for v in rest.values()} == {torch.float32}
    loaded = load_prior(path, device="cpu")
    assert isinstance(loaded, SpecGANPrior)
    assert loaded.generator.project.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in loaded.generator.parameters())
    assert not loaded.generator.training


def test_a_trained_prior_survives(specgan_prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(specgan_prior, path)
    loaded = load_prior(path, device="cpu")
    assert loaded.metadata == json.loads(json.dumps(specgan_prior.metadata))
    z = torch.randn((2, LATENT), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(z).mean, specgan_prior.decode(z).mean)


def test_saving_replaces_the_file_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "prior.safetensors"
    save_prior(build("gaussian"), path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda *_, **__: 1 / 0, raising=True
    )
    with pytest.raises(ZeroDivisionError):
        save_prior(build("complex"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_prior_made_of_code_is_not_stored(tmp_path):
    with pytest.raises(SeppriorError, match="cannot be saved"):
        save_prior(linear()[0], tmp_path / "prior.safetensors")
    assert not list(tmp_path.iterdir())


# -- files that are no priors --------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(SeppriorError, match="no such prior file") as error:
        load_prior(tmp_path / "nothing.safetensors")
    assert "train-noise" in only_line(error)
    with pytest.raises(SeppriorError, match="no such prior file"):
        load_prior(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 4000, -1])
def test_truncated_file(keep, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(build("complex"), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SeppriorError, match="not a readable safetensors file") as error:
        load_prior(path)
    only_line(error)


@pytest.mark.parametrize("content", [b"time,value\n0,1\n1,2\n", b"\xff" * 5000])
def test_other_file(content, tmp_path):
    path = tmp_path / "prior.safetensors"
    path.write_bytes(content)
    with pytest.raises(SeppriorError, match="not a readable safetensors file") as error:
        load_prior(path)
    only_line(error)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "prior.safetensors"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Payload(trap))),
        lambda: torch.save({"prior": Payload(trap)}, path),
    ):
        write()
        with pytest.raises(SeppriorError, match="not a readable safetensors file"):
            load_prior(path)
        assert not trap.exists()
    # Negative control: unpickling the same bytes does run it.
    torch.load(path.rename(tmp_path / "prior.pt"), weights_only=False)
    assert trap.exists()


def test_safetensors_file_of_another_program(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(SeppriorError, match="of another program") as error:
        load_prior(path)
    only_line(error)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(SeppriorError, match="of another program"):
        load_prior(path)


def test_training_state_instead_of_prior(tmp_path):
    path = tmp_path / "prior.resume.safetensors"
    save_tensors({"a": torch.zeros(2)}, {"training_state": {"value": 1}}, path)
    with pytest.raises(SeppriorError, match="perhaps a training state") as error:
        load_prior(path)
    only_line(error)


def test_newer_format(tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(build("gaussian"), path)
    rewrite(path, format_version=FORMAT_VERSION + 1)
    with pytest.raises(SeppriorError, match="upgrade") as error:
        load_prior(path)
    assert f"format version {FORMAT_VERSION + 1}" in only_line(error)


@pytest.mark.parametrize("text", ["{broken", "[1, 2]", "null"])
def test_damaged_description(text, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"sepprior": text})
    with pytest.raises(SeppriorError, match="description is damaged") as error:
        load_prior(path)
    only_line(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"structure": None},
        {"level": None},
        {"structure": {"frame": 16}},
        {"level": "high"},
        {"kind": "unheard-of", "structure": {}},
    ],
)
def test_description_that_does_not_fit(changes, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(build("complex"), path)
    rewrite(path, **changes)
    with pytest.raises(SeppriorError, match="do not fit the description") as error:
        load_prior(path)
    only_line(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("autocovariance"),
        lambda t: t.pop("statistics.rms"),
        lambda t: t.update(autocovariance=torch.full((64,), math.nan).double()),
        lambda t: t.update({"generator.project.bias": torch.zeros(3)}),
        lambda t: [t.pop(k) for k in list(t) if k.startswith("generator.layers")],
    ],
)
def test_tensors_that_do_not_fit(change, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(build("complex"), path)
    tensors, header = load_tensors(path)
    change(tensors)
    save_tensors(tensors, header, path)
    with pytest.raises(SeppriorError, match="do not fit the description") as error:
        load_prior(path, device="cpu")
    only_line(error)


def test_unknown_device(tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(build("gaussian"), path)
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(SeppriorError, match="cannot be used") as error:
        load_prior(path, device="abacus")
    only_line(error)


# -- past formats --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "complex", "magnitude"])
def test_format_1_keeps_loading(name):
    """Files and numbers written by ``tests/data/make_priors_v1.py``."""
    expected = json.loads((DATA / "v1_expected.json").read_text())[name]
    prior = load_prior(DATA / f"v1_{name}.safetensors", device="cpu")
    assert prior.metadata == {"seed": 0, "config": {"window": 64}}
    assert (prior.level, prior.sample_rate) == (0.25, 100.0)
    x = prior.sample(2, generator=torch.Generator().manual_seed(0))
    sample = torch.tensor(expected["sample"], dtype=torch.float64)
    torch.testing.assert_close(x[:, :8], sample, rtol=1e-5, atol=1e-5)
    nll = torch.tensor(expected["heldout_nll"], dtype=torch.float64)
    # Without an encoder the bound comes from a minimisation, which may stop elsewhere.
    rtol = 1e-2 if name == "magnitude" else 1e-4
    torch.testing.assert_close(prior.heldout_nll(x).double(), nll, rtol=rtol, atol=1e-3)


def test_a_row_of_format_5_keeps_loading():
    """File and numbers written by ``tests/data/make_prior_v5.py``."""
    expected = json.loads((DATA / "v5_expected.json").read_text())
    path = DATA / "v5_row.safetensors"
    assert load_tensors(path)[1]["format_version"] == 5
    prior = load_prior(path, device="cpu")
    assert isinstance(prior, SpecGANPrior) and prior.generator.row is not None
    assert prior.generator.row.every == 2
    x = prior.sample(2, generator=torch.Generator().manual_seed(0))
    sample = torch.tensor(expected["sample"], dtype=torch.float64)
    torch.testing.assert_close(x[:, :8], sample, rtol=1e-5, atol=1e-5)
    nll = torch.tensor(expected["nll"], dtype=torch.float64)
    torch.testing.assert_close(prior.heldout_nll(x).double(), nll, rtol=1e-4, atol=1e-3)
