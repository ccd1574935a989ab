"""The result of a separation: a fixed, typed object that says what it knows.

A measurement `x = s(t; theta) + n` has been taken apart into the signal `s` and the
noise `n`. The result holds both, the parameters `theta` with their uncertainties, the
answers of the classical fits beside them, and a status that says what to try when
something looks wrong.

Dimensions: B measurements (absent for a single one), N samples, P parameters,
F frequencies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sepprior.errors import SeppriorError
from sepprior.formatting import (
    format_table,
    format_uncertain,
    without_numbers,
)
from sepprior.samples import Samples
from sepprior.status import typical_ratio, verdict

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ROWS_IN_REPORT = 20  # measurements of a batch that `report` lists


@dataclass(frozen=True, eq=False)
class Parameter:
    """One parameter of the signal with its uncertainty.

    Attributes:
        value: the estimate; a float, or (B,).
        stderr: one standard deviation, half the width of the 68 % interval; a float,
            or (B,). NaN where it could not be estimated.
        ci95: the 95 % interval; a pair (low, high), or (B, 2). That of a weak sinusoid
            need not be symmetric, nor 1.96 standard errors wide.
        units: "Hz", "rad", "1/s", "Hz/s", or "" for data units and for parameters of a
            user's function.
    """

    value: float | np.ndarray
    stderr: float | np.ndarray
    ci95: tuple[float, float] | np.ndarray
    units: str = ""

    def select(self, index: int) -> Parameter:
        """The parameter of one measurement of a batch."""
        low, high = np.asarray(self.ci95)[index]
        return Parameter(
            value=float(np.asarray(self.value)[index]),
            stderr=float(np.asarray(self.stderr)[index]),
            ci95=(float(low), float(high)),
            units=self.units,
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"value", "stderr", "ci95"}`, ready for JSON (NaN becomes None)."""
        return {
            "value": _jsonable(self.value),
            "stderr": _jsonable(self.stderr),
            "ci95": _jsonable(self.ci95),
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Separation:
    """Signal, noise and parameters of one measurement, or of a batch of B.

    The leading dimension B is absent when a single measurement was separated.

    Attributes:
        parameters: estimates by name: `amplitude`, `frequency` (Hz), `phase` (rad),
            `bias`; with several components `amplitude_1`, `frequency_1`, ...
        covariance: (B, P, P), of the parameters in the order of `parameters`.
        sample_rate: Hz.
        measurement: (B, N) as given; NaN marks a gap.
        signal: (B, N) the fitted signal `s(t; theta)`.
        coherent: (B, N) the coherent part of the noise that the prior decodes, its
            mean level included.
        whitened: (B, N) the residual whitened by the prior: unit variance and white
            when the prior describes this noise.
        signal_band: (B, N) one standard deviation of the fitted signal.
        spectrum_frequency: (F,) Hz.
        spectrum_loglik: (B, F) gain in log-likelihood over no signal, nats, with
            every other parameter at its best.
        baselines: `{"gls": {name: Parameter}, "robust": {name: Parameter}}`.
        status: a sentence, or one for each measurement of a batch.
        diagnostics: by name, a number, truth value or text (one each for a batch).
        prior_info: which prior was used.
        samples: draws that the error bars were made from; None for Laplace's.
    """

    parameters: dict[str, Parameter]
    covariance: np.ndarray
    sample_rate: float
    measurement: np.ndarray
    signal: np.ndarray
    coherent: np.ndarray
    whitened: np.ndarray
    signal_band: np.ndarray
    spectrum_frequency: np.ndarray
    spectrum_loglik: np.ndarray
    baselines: dict[str, dict[str, Parameter]]
    status: str | list[str]
    diagnostics: dict[str, Any]
    prior_info: dict[str, Any]
    samples: Samples | None = None

    @property
    def time(self) -> np.ndarray:
        """Times of the samples, (N,), s from the first."""
        return np.arange(self.measurement.shape[-1]) / self.sample_rate

    @property
    def noise(self) -> np.ndarray:
        """The measurement minus the signal, (B, N)."""
        return self.measurement - self.signal

    @property
    def residual(self) -> np.ndarray:
        """The noise minus its coherent part, (B, N)."""
        return self.noise - self.coherent

    @property
    def is_batch(self) -> bool:
        """Whether the arrays have a leading dimension B."""
        return np.ndim(self.measurement) == 2

    def __len__(self) -> int:
        """Number of measurements (1 for a single one)."""
        return len(self.measurement) if self.is_batch else 1

    def __repr__(self) -> str:
        """Short: the parameters of a single measurement, or the size of a batch."""
        if self.is_batch:
            samples = self.measurement.shape[-1]
            return f"Separation({len(self)} measurements of {samples} samples)"
        fits = ", ".join(f"{k}={_short(p)}" for k, p in self.parameters.items())
        return f"Separation({fits}, status={self.status!r})"

    def select(self, index: int) -> Separation:
        """The result of one measurement of a batch.

        Raises:
            SeppriorError: there is no measurement of that number.
        """
        count = len(self)
        if not -count <= index < count:
            raise SeppriorError(
                f"measurement {index} was asked for, but the result holds {count}: "
                f"choose 0 to {count - 1}"
            )
        if not self.is_batch:
            return self
        return replace(
            self,
            parameters={k: p.select(index) for k, p in self.parameters.items()},
            baselines={
                name: {k: p.select(index) for k, p in fit.items()}
                for name, fit in self.baselines.items()
            },
            status=self.status[index],
            diagnostics={
                k: _element(v, index, count) for k, v in self.diagnostics.items()
            },
            samples=None if self.samples is None else self.samples.select(index),
            **{name: getattr(self, name)[index] for name in _BATCHED_ARRAYS},
        )

    @property
    def gain(self) -> float:
        """Error bars of least squares over those of the answer, of one measurement.

        The geometric mean over the parameters.
        """
        return typical_ratio(self._ratios())

    def _ratios(self) -> list[float]:
        gls = self.baselines.get("gls", {})
        return [
            float(gls[name].stderr) / float(p.stderr)
            for name, p in self.parameters.items()
            if name in gls and p.stderr
        ]

    @property
    def verdict(self) -> str:
        """In one sentence: signal, error bars and noise, of one measurement.

        Raises:
            SeppriorError: the result is a batch; select one measurement.
        """
        if self.is_batch:
            raise SeppriorError(
                f"a batch of {len(self)} measurements has a verdict for each: take "
                "that of result.select(i)"
            )
        return verdict(self.diagnostics, self._ratios())

    def report(self, *, verbose: bool = False) -> str:
        """The result in words: verdict, parameters, and what is to be known of them.

        Args:
            verbose: with the baselines' answers and all diagnostics.
        """
        if self.is_batch:
            return _report_batch(self)
        return _report_single(self, verbose=verbose)

    def to_frame(self) -> pandas.DataFrame:
        """A table.

        For a single measurement one row per sample with the columns time (s),
        measurement, signal, noise and residual. For a batch one row per measurement:
        of each parameter the value, `_stderr` and the ends `_low` and `_high` of the
        95 % interval; the same parameters and their `_stderr` by the baselines, as
        `gls_amplitude`, `robust_amplitude`, ...; the diagnostics; the status.
        """
        import pandas as pd

        if not self.is_batch:
            return pd.DataFrame(
                {
                    "time": self.time,
                    "measurement": self.measurement,
                    "signal": self.signal,
                    "noise": self.noise,
                    "residual": self.residual,
                }
            )
        columns: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            columns[name] = parameter.value
            columns[f"{name}_stderr"] = parameter.stderr
            low, high = np.asarray(parameter.ci95).T
            columns[f"{name}_low"], columns[f"{name}_high"] = low, high
        for baseline, fit in self.baselines.items():
            for name, parameter in fit.items():
                columns[f"{baseline}_{name}"] = parameter.value
                columns[f"{baseline}_{name}_stderr"] = parameter.stderr
        columns |= self.diagnostics
        columns["status"] = list(self.status)
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain types for JSON; numbers that are not finite become None.

        Keys: verdict (of a single measurement), status, parameters, baselines,
        diagnostics, prior, version, and samples (their summary) where there are any.
        For a batch every number is a list over measurements.
        """
        one = {} if self.is_batch else {"verdict": self.verdict}
        facts = one | {
            "status": _jsonable(self.status),
            "parameters": {k: p.to_dict() for k, p in self.parameters.items()},
            "baselines": {
                name: {k: p.to_dict() for k, p in fit.items()}
                for name, fit in self.baselines.items()
            },
            "diagnostics": _jsonable(self.diagnostics),
            "prior": _jsonable(self.prior_info),
            "version": _version(),
        }
        if self.samples is not None:
            facts["samples"] = _jsonable(self.samples.summary())
        return facts

    def plot(
        self,
        path: str | Path | None = None,
        *,
        truth: Mapping[str, float] | None = None,
    ) -> Figure:
        """Signal, noise, error bars beside least squares, likelihood, what is left.

        Args:
            path: where to save the figure as well, if given.
            truth: true values of parameters, where they are known, to be shown.

        Raises:
            SeppriorError: the result is a batch; select one measurement.
        """
        from sepprior.plotting import plot_separation

        return plot_separation(self, path, truth=truth)


_BATCHED_ARRAYS = (
    "covariance",
    "measurement",
    "signal",
    "coherent",
    "whitened",
    "signal_band",
    "spectrum_loglik",
)

# What a diagnostic means, in words. Truth values have a sentence each for True and
# False; numbers are put in place of {}. Names not listed are printed as they are.
_TRUE_FALSE_WORDS = {
    "converged": ("the fit converged", "the fit did not converge"),
    "out_of_distribution": (
        "the noise is not the noise the prior was trained on: train a new prior",
        "the noise is what the prior expects",
    ),
    "detected": (
        "a signal is detected",
        "no signal is detected: the parameters may describe noise",
    ),
    "gls_sufficient": (
        "the prior adds nothing to GLS here: GLS would do",
        "the prior adds to GLS here",
    ),
    "unresolved": (
        "the data do not show as many sinusoids, or do not tell two of them apart",
        "the sinusoids are told apart",
    ),
    "well_sampled": (
        "the chains agree",
        "the chains do not agree, or have too few draws",
    ),
    "at_bound": (
        "a parameter is at its bound",
        "no parameter is at its bound",
    ),
}
_NUMBER_WORDS = {
    "method": "the answer is that of: {}",
    "error_bars": "the error bars are made by: {}",
    "rhat": "largest split R-hat of a parameter: {} (1 when the chains agree)",
    "effective_draws": "smallest effective number of draws of a parameter: {}",
    "restart_agreement": "share of the starts that found the same answer: {}",
    "chi_square": "chi-square of the whitened residual per sample: {} (expected 1)",
    "log_evidence_over_gls": "log evidence for the prior's answer over that of GLS: "
    "{} nats",
    "absorption": "share of the amplitude's variance due to what the prior could "
    "absorb of the signal: {}",
    "loglik_gain": "log-likelihood gain over no signal: {} nats",
    "noise_change_p": "probability that unchanged noise looks as unusual: {}",
    "noise_level": "residual of least squares over the noise of the training, in "
    "amplitude: {}",
    "noise_change": "likeliest cause of the change: {}",
    "noise_change_low": "it has changed from (Hz): {}",
    "noise_change_high": "it has changed up to (Hz): {}",
    "noise_change_ratio": "times as loud there as in training: {}",
    "false_alarm_probability": "probability that noise alone looks like this: {}",
    "frequency_probability": "probability that the frequency is not that of another "
    "peak: {}",
}


def _report_single(result: Separation, *, verbose: bool) -> str:
    rows = [["name", "value", "+/- stderr", "(95 % interval)", ""]]
    level = result.prior_info.get("level")
    frequencies = [p for p in result.parameters.values() if p.units == "Hz"]
    for name, parameter in result.parameters.items():
        low, high = parameter.ci95
        value, stderr, (low, high) = format_uncertain(
            float(parameter.value), float(parameter.stderr), float(low), float(high)
        )
        unit = parameter.units
        if name == "bias" and level is not None and frequencies:
            unit = f"above the noise's mean, {level:.3g}"
        rows.append([name, value, f"+/- {stderr}", f"({low}, {high})", unit])
    parts = [f"verdict: {result.verdict}", format_table(rows)]
    if result.status != "ok" and not verbose:
        parts.append(f"status: {result.status}")
    return "\n\n".join([*parts, *(_details(result) if verbose else [])])


def _details(result: Separation) -> list[str]:
    """The baselines' answers, and the status with all diagnostics."""
    parts = []
    if result.baselines:
        titles = {"gls": "GLS", "robust": "robust"}
        rows = [["for comparison", *(titles.get(b, b) for b in result.baselines)]]
        for name in result.parameters:
            fits = [fit.get(name) for fit in result.baselines.values()]
            rows.append([name, *("n/a" if p is None else _short(p) for p in fits)])
        parts.append(format_table(rows))
    words = [f"  {_in_words(k, v)}" for k, v in _judged(result.diagnostics).items()]
    return [*parts, "\n".join([f"status: {result.status}", *words])]


def _report_batch(result: Separation) -> str:
    rows = [["#", *result.parameters, "status"]]
    shown = min(len(result), ROWS_IN_REPORT)
    for index in range(shown):
        fits = [_short(p.select(index)) for p in result.parameters.values()]
        rows.append([str(index), *fits, result.status[index]])
    units = {name: p.units for name, p in result.parameters.items()}
    rows[0][1:-1] = [f"{k} ({u})" if u else k for k, u in units.items()]
    lines = [format_table(rows)]
    if len(result) > shown:
        lines.append(f"... and {len(result) - shown} more")
    counts = Counter(map(without_numbers, result.status)).most_common()
    lines.append("")
    lines.extend(f"{count} of {len(result)}: {status}" for status, count in counts)
    return "\n".join(lines)


def _judged(diagnostics: dict[str, Any]) -> dict[str, Any]:
    """The diagnostics, without a verdict on the noise where nothing judged it.

    That is a prior without a recording, or windows with too few samples. Where nothing
    has changed, there is no cause to name.
    """
    if not diagnostics.get("noise_change", "-"):
        facts = ("", "_low", "_high", "_ratio")
        causes = [f"noise_change{fact}" for fact in facts]
        diagnostics = {k: v for k, v in diagnostics.items() if k not in causes}
    if math.isfinite(diagnostics.get("noise_change_p", 0.0)):
        return diagnostics
    return {k: v for k, v in diagnostics.items() if k != "out_of_distribution"}


def _short(parameter: Parameter) -> str:
    value, stderr, _ = format_uncertain(float(parameter.value), float(parameter.stderr))
    return f"{value} +/- {stderr}"


def _in_words(name: str, value: Any) -> str:
    if isinstance(value, (bool, np.bool_)) and name in _TRUE_FALSE_WORDS:
        return _TRUE_FALSE_WORDS[name][0 if value else 1]
    if isinstance(value, (bool, np.bool_)):
        text = "yes" if value else "no"
    elif isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return f"{name.replace('_', ' ')}: n/a"
        text = f"{value:.3g}"
    elif isinstance(value, (list, tuple, np.ndarray)):
        text = ", ".join(str(v) for v in value) or "none"
    else:
        text = str(value)
    if name in _NUMBER_WORDS:
        return _NUMBER_WORDS[name].format(text)
    return f"{name.replace('_', ' ')}: {text}"


def _element(value: Any, index: int, count: int) -> Any:
    """Element `index` of what has one entry per measurement; all else as it is."""
    if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
        entry = value[index]
        return entry.item() if np.ndim(entry) == 0 else entry
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[index]
    return value


def _jsonable(value: Any) -> Any:
    """The same with plain Python types only, and None for NaN and infinities."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _jsonable(value.tolist())
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def _version() -> str:
    try:
        return metadata.version("sepprior")
    except metadata.PackageNotFoundError:
        return "unknown"
