import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sepprior.errors import SeppriorError
from sepprior.formatting import UNITS, format_uncertain
from sepprior.outputs import known_truth
from sepprior.result import Parameter, Separation
from sepprior.status import verdict

NAMES = ("amplitude", "frequency", "phase", "bias")
VALUES = np.array([1.25, 331.9, -0.5, 2.0])
STDERRS = np.array([0.013, 0.0021, 0.25, 0.0])
N, F = 32, 9


def parameters(n_batch: int | None) -> dict[str, Parameter]:
    found = {}
    for name, value, stderr in zip(NAMES, VALUES, STDERRS, strict=True):
        if n_batch is None:
            v, s = float(value), float(stderr)
            found[name] = Parameter(v, s, (v - 2 * s, v + 2 * s), UNITS.get(name, ""))
        else:
            v, s = value + np.arange(n_batch), np.full(n_batch, stderr)
            ci95 = np.stack([v - 2 * s, v + 2 * s], axis=1)
            found[name] = Parameter(v, s, ci95, UNITS.get(name, ""))
    return found


def separation(n_batch: int | None = None) -> Separation:
    lead = () if n_batch is None else (n_batch,)
    rng = np.random.default_rng(0)
    x, s, m = rng.standard_normal((3, *lead, N))
    single = n_batch is None
    return Separation(
        parameters=parameters(n_batch),
        covariance=rng.standard_normal((*lead, 4, 4)),
        sample_rate=10.0,
        measurement=x,
        signal=s,
        coherent=m,
        whitened=rng.standard_normal((*lead, N)),
        signal_band=np.full((*lead, N), 0.1),
        spectrum_frequency=np.linspace(1, 2, F),
        spectrum_loglik=rng.standard_normal((*lead, F)),
        baselines={"gls": parameters(n_batch), "robust": parameters(n_batch)},
        status="converged" if single else [f"status {i % 2}" for i in range(n_batch)],
        diagnostics={
            "converged": True if single else np.arange(n_batch) % 2 == 0,
            "chi_square": 1.04 if single else 1.0 + np.arange(n_batch),
            "absorption": float("nan") if single else np.full(n_batch, np.nan),
            "at_bound": [] if single else [["phase"]] * n_batch,
            "new_number": 3,
        },
        prior_info={"name": "specgan", "window": np.int64(N)},
    )


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (1.23456, 0.0123, ("1.235", "0.012")),
        (331.9000123, 0.00021, ("331.90001", "0.00021")),
        (-12345.6, 230.0, ("-12346", "230")),
        (2.345e-21, 1.1e-22, ("2.35e-21", "0.11e-21")),
        (4.5e7, 3.2e5, ("4.500e+07", "0.032e+07")),
        (0.0, 0.5, ("0.00", "0.50")),
        (1.5, float("nan"), ("1.5", "n/a")),
        (1.5, float("inf"), ("1.5", "n/a")),
        (1.5, 0.0, ("1.5", "0")),
    ],
)
def test_the_standard_error_decides_on_the_digits(value, stderr, expected):
    text, error, _ = format_uncertain(value, stderr)
    assert (text, error) == expected


def test_interval_ends_have_the_digits_of_the_value():
    _, _, ends = format_uncertain(2.345e-21, 1.1e-22, 2.1e-21, 2.6e-21)
    assert ends == ("2.10e-21", "2.60e-21")


def test_report_holds_parameters_baselines_status_and_words():
    report = separation().report(verbose=True)
    lines = report.splitlines()
    assert lines[0].startswith("verdict: ")
    assert lines[2].split("  ")[0] == "name"
    words = "amplitude 1.250 +/- 0.013 (1.224, 1.276)"
    assert lines[3].split() == words.split()
    short = separation().report().splitlines()
    assert short[:-2] == lines[: len(short) - 2]
    assert short[-1] == "status: converged"
    assert "331.9000" in report and report.count("Hz") == 1
    assert "GLS" in report and "robust" in report
    assert "status: converged" in report
    assert "the fit converged" in report
    assert "1.04 (expected 1)" in report
    assert "new number: 3" in report
    assert "at bound: none" in report
    assert "absorption: n/a" in report
    assert "nan" not in report


def test_report_of_a_batch_is_cut_after_twenty_rows():
    report = separation(25).report()
    rows = [line for line in report.splitlines() if line.split(" ")[0].isdigit()]
    assert len([r for r in rows if " of 25: " not in r]) == 20
    assert "... and 5 more" in report
    assert "13 of 25: status 0" in report
    assert "frequency (Hz)" in report
    assert "more" not in separation(20).report()


def test_selecting_drops_the_batch_dimension_everywhere():
    batch = separation(4)
    one = batch.select(2)
    assert (len(batch), len(one)) == (4, 1)
    assert one.measurement.shape == (N,)
    assert one.covariance.shape == (4, 4)
    assert one.spectrum_loglik.shape == (F,)
    np.testing.assert_array_equal(one.noise, batch.noise[2])
    assert one.parameters["amplitude"].value == 3.25
    assert one.parameters["frequency"].ci95 == pytest.approx((333.8958, 333.9042))
    assert one.baselines["gls"]["bias"].value == 4.0
    assert one.status == "status 0"
    assert one.diagnostics["converged"] is True
    assert one.diagnostics["chi_square"] == 3.0
    assert one.diagnostics["at_bound"] == ["phase"]
    assert one.diagnostics["new_number"] == 3
    assert batch.select(-1).parameters["bias"].value == 5.0
    one.report()


def test_selecting_what_is_not_there_says_what_is():
    with pytest.raises(SeppriorError, match=r"measurement 4 .* holds 4: choose 0 to 3"):
        separation(4).select(4)
    single = separation()
    assert single.select(0) is single


def test_frames():
    result = separation()
    frame = result.to_frame()
    assert list(frame) == ["time", "measurement", "signal", "noise", "residual"]
    np.testing.assert_allclose(frame["measurement"], frame["signal"] + frame["noise"])
    batch = separation(3).to_frame()
    assert list(batch) == [
        *(n + part for n in NAMES for part in ("", "_stderr", "_low", "_high")),
        *(
            f"{fit}_{n}{part}"
            for fit in separation(3).baselines
            for n in NAMES
            for part in ("", "_stderr")
        ),
        *separation(3).diagnostics,
        "status",
    ]
    low, high = separation(3).parameters["phase"].ci95.T
    np.testing.assert_array_equal(batch["phase_low"], low)
    np.testing.assert_array_equal(batch["phase_high"], high)
    assert len(batch) == 3
    assert isinstance(batch, pd.DataFrame)


@pytest.mark.parametrize("n_batch", [None, 3])
def test_dictionary_is_strict_json(n_batch):
    text = json.dumps(separation(n_batch).to_dict(), allow_nan=False)
    read = json.loads(text)
    assert ("verdict" in read) == (n_batch is None)
    read.pop("verdict", None)
    assert list(read) == [
        "status",
        "parameters",
        "baselines",
        "diagnostics",
        "prior",
        "version",
    ]
    assert set(read["parameters"]["phase"]) == {"value", "stderr", "ci95"}
    assert read["prior"]["window"] == N
    expected = None if n_batch is None else [None] * 3
    assert read["diagnostics"]["absorption"] == expected


def test_repr_is_short_and_results_do_not_change():
    result = separation()
    assert len(repr(result)) < 250
    assert "3 measurements" in repr(separation(3))
    with pytest.raises(AttributeError):
        result.status = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_import_loads_no_heavy_library():
    code = (
        "import sys, sepprior.result; "
        "print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("p", "told"), [(float("nan"), False), (0.5, True)])
def test_noise_that_was_not_judged_is_not_called_unchanged(p, told):
    single = separation()
    facts = {"noise_change_p": p, "out_of_distribution": False}
    report = Separation(**{**vars(single), "diagnostics": facts}).report(verbose=True)
    assert ("the noise is what the prior expects" in report) == told
    assert ("noise change p: n/a" in report) != told


UNCHANGED = {"out_of_distribution": False, "noise_change_p": 0.4}


@pytest.mark.parametrize(
    ("facts", "ratios", "expected"),
    [
        (
            {"detected": True, "method": "specgan", **UNCHANGED},
            [2.0, 4.5, float("nan")],
            "signal detected; error bars 3 times smaller than least squares; noise as "
            "in training",
        ),
        (
            {"detected": False, "method": "gls", **UNCHANGED, "noise_level": 2.1}
            | {"noise_level_followed": True},
            [1.0],
            "no signal detected; the answer is that of least squares; noise 2.1 times "
            "as loud as in training",
        ),
        (
            {"detected": True, "method": "plain", "out_of_distribution": True},
            [0.5],
            "signal detected; error bars 2 times larger than least squares; the noise "
            "is not as in training",
        ),
        (
            {"method": "specgan", "noise_change_p": float("nan")},
            [1.02],
            "error bars as",
        ),
        ({}, [], "nothing was judged"),
    ],
)
def test_verdicts(facts, ratios, expected):
    assert verdict(facts, ratios).startswith(expected)


def test_a_batch_has_a_verdict_for_each():
    with pytest.raises(SeppriorError, match="each: take that of"):
        assert separation(3).verdict
    assert separation(3).select(0).verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"frequency": 3, "name": "run"}', {"frequency": 3.0}),
        ("[1]", {}),
        ("no JSON", {}),
        (None, {}),
    ],
)
def test_known_truth(text, expected, tmp_path):
    if text is not None:
        (tmp_path / "run.truth.json").write_text(text)
    assert known_truth(tmp_path / "run.csv") == expected
