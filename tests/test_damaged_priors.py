"""Damaged priors are refused in one line, or give finite answers."""

import json
import math
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sepprior.checkpoint import load_prior, load_tensors, save_prior, save_tensors
from sepprior.checkpoint.facts import QUANTILES
from sepprior.config.checks import MAX_WINDOW
from sepprior.errors import SeppriorError
from sepprior.inference import novelty
from sepprior.nets import Denoiser, GANSynthGenerator, LSTMGenerator, WaveGANGenerator
from sepprior.priors import DiffusionPrior, GaussianPrior, GeneratorPrior, LatentSpace
from sepprior.priors.range_error import Reach, unit_ratio
from sepprior.separation import separate
from tests.conftest import WINDOW, coloured_noise
from tests.test_priors import ar1

DATA = Path(__file__).parent / "data"
NETWORKS = {
    "wavegan": lambda: WaveGANGenerator(window=WINDOW, code=3, width=2, peak=4.0),
    "lstm": lambda: LSTMGenerator(window=WINDOW, code=3, width=4, layers=1),
    "gansynth": lambda: GANSynthGenerator(window=WINDOW, code=3, width=2),
}
HELD = {"gain": 0.5, "gain_stderr": 0.01}


def built(kind):
    about = {"level": 0.5, "sample_rate": 100.0, "metadata": {"heldout": HELD}}
    if kind == "diffusion":
        impulse = unit_ratio(WINDOW).repeat(2, 1)
        return DiffusionPrior(
            Denoiser(window=WINDOW, width=8, views=2),
            whitening=ar1(),
            autocovariance=ar1(),
            levels=torch.tensor([2.0, 0.5]),
            information=impulse,
            scatter=impulse,
            lowest=0.1,
            **about,
        )
    return GeneratorPrior(
        kind,
        NETWORKS[kind](),
        space=LatentSpace(3),
        reach=Reach(0.5, unit_ratio(WINDOW)),
        autocovariance=ar1(),
        **about,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory, gaussian_prior):
    """Tensors and description of a prior of each kind."""
    path = tmp_path_factory.mktemp("priors") / "p.safetensors"
    found = {}
    for kind in (*NETWORKS, "diffusion"):
        save_prior(built(kind), path)
        found[kind] = load_tensors(path)
    save_prior(gaussian_prior, path)
    found["gaussian"] = load_tensors(path)
    for name in ("v1_complex", "v1_magnitude", "v5_row"):
        found[name] = load_tensors(DATA / f"{name}.safetensors")
    return found


KINDS = [*NETWORKS, "diffusion", "gaussian", "v1_complex", "v1_magnitude", "v5_row"]


def refusal(path):
    """The one line by which a file is refused."""
    with pytest.raises(SeppriorError) as error:
        load_prior(path, device="cpu")
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


def write(path, tensors, header):
    """Without a checksum, as earlier releases did."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"sepprior": text})


def changed(header, place, value):
    """The description with the value at a dotted place replaced, or left out."""
    header = json.loads(json.dumps(header))
    *parents, last = [int(k) if k.isdigit() else k for k in place.split("/")]
    table = header
    for key in parents:
        table = table[key]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return header


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


# -- checksum ------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(path):
    prior = GaussianPrior(ar1(), level=0.5, sample_rate=100.0, metadata={"seed": 1})
    save_prior(prior, path)
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    for at in (*range(8, end, 3), *rng.integers(end, len(whole), 60).tolist()):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            same = load_prior(path, device="cpu")
        except SeppriorError:
            continue
        # What was hit is the name of the checksum, or the space behind the header.
        assert torch.equal(same.autocovariance, prior.autocovariance)
        assert (same.level, same.sample_rate) == (0.5, 100.0)
        assert same.metadata == {"seed": 1}


def test_a_changed_number_is_noticed(stored, path):
    tensors, header = stored["gaussian"]
    save_tensors(tensors, header, path)
    with safe_open(path, "pt") as file:
        told = file.metadata()
    other = told | {"sepprior": told["sepprior"].replace("100.0", "100.1", 1)}
    assert other != told
    save_file(tensors, path, metadata=other)
    assert "checksum differs" in refusal(path)
    save_file({"autocovariance": tensors["autocovariance"] * 1.1}, path, metadata=told)
    assert "checksum differs" in refusal(path)
    save_file(tensors, path, metadata=told)  # negative control
    load_prior(path, device="cpu")


# -- the description -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 200_000, "description is damaged"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('{"a": ' + "9" * 5000 + "}", "description is damaged"),
        ('{"metadata": [1]}', "table"),
    ],
)
def test_descriptions_that_are_no_table(text, said, path):
    write(path, {"a": torch.zeros(1)}, text)
    assert said in refusal(path)


VALUES = (None, "x", [], {}, -1, math.nan, math.inf, 10**400, [[1]], 1e308, ...)


@pytest.mark.parametrize(
    "place",
    ["level", "sample_rate", "kind", "format_version", "structure", "metadata"],
)
@pytest.mark.parametrize("value", ["x", [], None, math.nan, 10**400, ...], ids=range(6))
def test_wrong_entries_of_the_description(place, value, stored, path):
    tensors, header = stored["gaussian"]
    write(path, tensors, changed(header, place, value))
    refusal(path)


@pytest.mark.parametrize(
    "place",
    [
        "heldout/gain",
        "calibration/cycles",
        "calibration/gls/amplitude",
        "calibration/robust/phase/q95/0",
        "novelty",
        "novelty/mean",
        "novelty/precision",
        "novelty/precision/1/1",
        "novelty/quantiles",
        "novelty/windows",
        "novelty/shorter/0/samples",
        "gains/step",
        "gains/cycles",
        "gains/gains/0",
        "gains/gains/0/1",
    ],
)
def test_wrong_facts_name_themselves(place, stored, path):
    tensors, header = stored["gaussian"]
    for value in VALUES:
        if value is ... and (place == "novelty" or place[-1].isdigit()):
            continue  # not measured, or a list that is shorter
        if value == -1 and place == "heldout/gain":
            continue  # worse than its spectrum
        write(path, tensors, changed(header, f"metadata/{place}", value))
        assert place.split("/")[0] in refusal(path)


@pytest.mark.parametrize(
    "place",
    [
        "calibration/cycles",
        "calibration/robust/phase/q95",
        "novelty/mean",
        "novelty/precision",
        "novelty/precision/1",
        "novelty/quantiles",
        "novelty/shorter/0/mean",
        "novelty/spectrum",
        "gains/cycles",
        "gains/gains",
    ],
)
def test_lists_of_another_length_name_themselves(place, stored, path):
    tensors, header = stored["gaussian"]
    node = header["metadata"]
    for key in place.split("/"):
        node = node[int(key) if key.isdigit() else key]
    for value in (node[:-1], [*node, node[-1]]):
        write(path, tensors, changed(header, f"metadata/{place}", value))
        assert place.split("/")[0] in refusal(path)


def test_facts_of_a_later_release_are_left_alone(stored, path):
    tensors, header = stored["gaussian"]
    for place in ("more", "calibration/more", "novelty/more", "gains/more"):
        write(path, tensors, changed(header, f"metadata/{place}", {"a": [1, "b"]}))
        load_prior(path, device="cpu")


def test_the_number_of_quantiles_is_that_of_the_check():
    assert QUANTILES == novelty.QUANTILES


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_structures(kind, stored, path):
    tensors, header = stored[kind]

    def places(value, prefix):
        for key, inner in value.items():
            yield f"{prefix}/{key}"
            if isinstance(inner, dict):
                yield from places(inner, f"{prefix}/{key}")

    for place in places(header["structure"], "structure"):
        for value in ("x", [1], None, math.nan, 2**40, 10**400):
            write(path, tensors, changed(header, place, value))
            refusal(path)


# -- the tensors ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tensors(kind, stored, path):
    tensors, header = stored[kind]
    write(path, tensors, header)
    load_prior(path, device="cpu")  # negative control
    write(path, tensors | {"more": torch.zeros(2)}, header)
    assert "more is left over" in refusal(path)
    names = sorted(tensors)
    for name in {*names[:3], *names[-2:], *(k for k in names if "order" in k)}:
        whole = tensors[name]
        worse = [whole.half(), whole.reshape(-1)[:0], torch.zeros(2, 2, 2, 2, 2)]
        if whole.is_floating_point():
            worse.append(torch.full_like(whole, math.nan))
        else:
            worse.append(torch.zeros_like(whole))
        for value in worse:
            write(path, tensors | {name: value}, header)
            said = refusal(path)
            part = name.removeprefix("network.").removeprefix("generator.")
            part = part.removeprefix("encoder.").removeprefix("flow.")
            assert part in said or "a window of 0" in said
        write(path, {k: v for k, v in tensors.items() if k != name}, header)
        refusal(path)


@pytest.mark.parametrize("lags", [1, 15, MAX_WINDOW + 1, 2**22])
def test_windows_of_other_sizes_are_refused_at_once(lags, stored, path):
    header = stored["gaussian"][1]
    write(path, {"autocovariance": unit_ratio(lags)}, header)
    begin = time.process_time()
    assert f"a window of {lags} samples" in refusal(path)
    assert time.process_time() - begin < 2.0


@pytest.mark.parametrize("variance", [0.0, -1.0, 5e-324, 1e300])
def test_what_is_no_variance(variance, stored, path):
    header = stored["gaussian"][1]
    write(path, {"autocovariance": variance * unit_ratio(WINDOW)}, header)
    assert "no variance" in refusal(path)


LOUD = {
    "v1_complex": "generator.layers.2.bias",
    "v5_row": "encoder.body.score.bias",
    "diffusion": "network.leave.bias",
}


def test_weights_out_of_all_proportion(stored, path):
    for kind, name in LOUD.items():
        tensors, header = stored[kind]
        loud = torch.full_like(tensors[name], 1e30)
        write(path, tensors | {name: loud}, header)
        assert "out of all proportion" in refusal(path)


# -- at random -----------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["gaussian", "v5_row", "lstm"])
def test_flipped_bits_of_old_files(kind, stored, path):
    """Refused, or the answers are finite."""
    write(path, *stored[kind])
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(5)
    x = coloured_noise(WINDOW, seed=5) + 3 * np.sin(0.7 * np.arange(WINDOW))
    for i in range(12):
        damaged = bytearray(whole)
        at = int(rng.integers(8, end) if i % 2 else rng.integers(end, len(whole)))
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            prior = load_prior(path, device="cpu")
        except SeppriorError as error:
            assert "\n" not in str(error)
            continue
        if prior.window == WINDOW and i < 6:
            found = separate(x, prior, starts=1)
            values = [(p.value, p.stderr) for p in found.parameters.values()]
            assert np.isfinite(values).all()


def test_loading_imports_no_compiler(stored, tmp_path):
    """Networks made without memory must not bring in what they do not need."""
    for kind in KINDS:
        write(tmp_path / f"{kind}.safetensors", *stored[kind])
    code = (
        "import sys, sepprior; from pathlib import Path; import torch\n"
        "before = 'sympy' in sys.modules\n"
        f"for path in Path({str(tmp_path)!r}).iterdir():\n"
        "    sepprior.load_prior(path, device='cpu')\n"
        "assert before or 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
