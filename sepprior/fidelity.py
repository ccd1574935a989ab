"""How faithful a prior is to the noise it learned: generated against real windows.

Every measure stands beside a floor: what the same measure says of real noise against
real noise. The real windows are cut into contiguous blocks and the blocks dealt into
two halves, in several ways; the floor is the median over these of real half against
real half. A distance (of spectra, autocorrelations or amplitudes) is positive by chance
alone: its error is the median of real half against as many generated windows, so that
both carry the same sampling error. The error of anything else is taken from all
windows, and its floor, from half as many, scatters more: by a factor of sqrt(2) where
that goes with one over the root of their number. That samples look right does not show
that a density was learned: therefore the likelihood of real noise, against that of
stationary Gaussian noise, stands with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sepprior import checks, measures
from sepprior.comparison import Comparison, Measure, curves
from sepprior.errors import SeppriorError
from sepprior.formatting import format_table
from sepprior.real_noise import MIN_WINDOWS, ORIGINS, Origin
from sepprior.torch_state import usual_torch

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

_CHUNK = 2**20  # samples drawn or scored at a time
_CLOSEST = "diffusion"  # model that draws noise far from Gaussian most closely
_FLATTERED = "It has learned from most of these windows: it may do worse on others."
_INFORMATION_POINTS = 256


class InspectablePrior(Protocol):
    """What `inspect_prior` asks of a prior; every noise prior has it.

    A prior with an attribute `hop` (samples between frames) is searched for artefacts
    at that hop besides the powers of two; one with a method `information_gain` (of
    frequencies, Hz) also shows what it promises over GLS.
    """

    name: str
    window: int
    sample_rate: float
    level: float

    @property
    def autocovariance(self) -> torch.Tensor:
        """(window,) of the training noise."""
        ...

    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """(n, window) of generated noise."""
        ...

    def heldout_nll(self, windows: torch.Tensor) -> torch.Tensor:
        """(n,) negative log-likelihood (or an upper bound), nats."""
        ...


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Everything `inspect_prior` found.

    Attributes:
        prior_name: kind of prior.
        n_windows: number n of real, and of generated, windows.
        window: samples N.
        sample_rate: Hz.
        measures: comparisons by name.
        nll: negative log-likelihood of the real windows, nats per sample.
        nll_gaussian: the same for stationary Gaussian noise with the autocovariance
            of the training noise.
        nll_gain: `nll_gaussian - nll`; positive where the prior knows more.
        nll_gain_stderr: its standard error over windows.
        curves: arrays for the figure.
        step: of the converter that the real noise was recorded with, data units; None
            where it shows none. Generated noise is compared rounded to it.
        origin: where the real windows are from.
    """

    prior_name: str
    n_windows: int
    window: int
    sample_rate: float
    measures: dict[str, Measure]
    nll: float
    nll_gaussian: float
    nll_gain: float
    nll_gain_stderr: float
    curves: dict[str, np.ndarray]
    step: float | None = None
    origin: Origin = "given"

    @property
    def faithful(self) -> bool:
        """Whether every measure is within its limit."""
        return all(m.within for m in self.measures.values())

    @property
    def verdict(self) -> str:
        """Can it be told from real noise, is it any use, and does that flatter it."""
        broken = self._broken()
        if not broken:
            samples = "Generated noise was not told apart from real noise."
        else:
            names = ", ".join(m.title for m in broken)
            samples = f"Generated noise differs from real noise in: {names}."
        gain, error = self.nll_gain, self.nll_gain_stderr
        amount = f"{abs(gain):.2g} +/- {error:.1g} nats per sample"
        if gain > max(2 * error, 1e-3):
            density = f"It explains real noise better than GLS does, by {amount}."
        elif gain >= -checks.NLL_TOLERANCE:
            density = "It explains real noise as well as GLS does: expect a tie."
        else:
            density = f"It explains real noise worse than GLS does, by {amount}."
        if self.origin != "trained_on":
            return f"{samples} {density}"
        return f"{samples} {density} {_FLATTERED}"

    @property
    def real_windows(self) -> str:
        """What the real windows are, in two words."""
        return "held-out windows" if self.origin == "held_out" else "real windows"

    def report(self) -> str:
        """Table of all measures, the likelihoods, and the verdict in words."""
        header = ["measure", "generated", "real", "error", "floor", "limit", ""]
        rows = [header]
        for m in self.measures.values():
            own = [_text(m.generated), _text(m.real)]
            numbers = [_text(m.error), _text(m.floor), _text(m.limit)]
            rows.append([m.title, *own, *numbers, "ok" if m.within else "DIFFERENT"])
        lines = [
            f"{self.n_windows} {self.real_windows} of {self.window} samples against as "
            f"many from the {self.prior_name} prior",
            *([ORIGINS[self.origin]] if ORIGINS[self.origin] else []),
            "",
            format_table(rows),
            "",
            f"real noise, nats per sample: prior {self.nll:.4f}, "
            f"Gaussian {self.nll_gaussian:.4f}, "
            f"gain {round(self.nll_gain, 4) + 0.0:+.4f} +/- {self.nll_gain_stderr:.4f}",
            *self._information_lines(),
            *self._rounding_lines(),
            "",
            self.verdict,
        ]
        reasons: dict[str, list[str]] = {}
        for m in self._broken():
            reasons.setdefault(m.meaning, []).append(m.title)
        lines += [f"  {', '.join(t)}: {meaning}" for meaning, t in reasons.items()]
        return "\n".join([*lines, *self._advice_lines()])

    def _advice_lines(self) -> list[str]:
        """What to try where generated noise has the wrong extremes."""
        if self.prior_name == _CLOSEST or self.measures["kurtosis"].within:
            return []
        return [
            f"  to try: sepprior train-noise --model {_CLOSEST} (learns bursts and "
            "jumps more closely; separating takes longer)"
        ]

    def _information_lines(self) -> list[str]:
        """What the prior promises before any measurement, where it can tell."""
        gain = self.curves.get("information_gain")
        if gain is None:
            return []
        frequency = self.curves["information_frequency"]
        best = int(gain.argmax())
        return [
            "information about a sinusoid over GLS: "
            f"median {np.median(gain):.3g} times, most {gain[best]:.3g} times at "
            f"{frequency[best]:.4g} Hz (errors shrink by the square root)",
        ]

    def _rounding_lines(self) -> list[str]:
        """That the recording is coarse, where it is."""
        if self.step is None:
            return []
        return [
            f"the recording is in steps of {self.step:.4g}: generated noise is rounded "
            "to them before it is compared",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the curves; numbers not finite become None."""
        return {
            "prior": self.prior_name,
            "n_windows": self.n_windows,
            "real_windows": self.origin,
            "window": self.window,
            "sample_rate": self.sample_rate,
            "quantisation_step": self.step,
            "faithful": self.faithful,
            "verdict": self.verdict,
            "heldout_nll": _finite(self.nll),
            "heldout_nll_gaussian": _finite(self.nll_gaussian),
            "heldout_nll_gain": _finite(self.nll_gain),
            "heldout_nll_gain_stderr": _finite(self.nll_gain_stderr),
            **{
                name: self.curves[name].tolist()
                for name in ("information_frequency", "information_gain")
                if name in self.curves
            },
            "measures": {
                name: {
                    "title": m.title,
                    "generated": _finite(m.generated),
                    "real": _finite(m.real),
                    "error": _finite(m.error),
                    "stderr": _finite(m.stderr),
                    "floor": _finite(m.floor),
                    "limit": _finite(m.limit),
                    "within": m.within,
                }
                for name, m in self.measures.items()
            },
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Spectra, correlation, amplitudes, waveforms and spectrograms side by side.

        Args:
            path: where to save the figure as well, if given.
        """
        from sepprior.plotting import plot_fidelity

        return plot_fidelity(self, path)

    def _broken(self) -> list[Measure]:
        return [m for m in self.measures.values() if not m.within]


@usual_torch()
def inspect_prior(
    prior: InspectablePrior,
    windows: np.ndarray,
    *,
    origin: Origin = "given",
    seed: int = 0,
) -> Fidelity:
    """Compare noise generated by a prior with real noise.

    Args:
        prior: a frozen noise prior.
        windows: (n, N) real noise in data units, best what the prior was not trained
            on, in the order of the recording; n at least 20, N the prior's window.
        origin: where the windows are from, for the report (see `judging_windows`).
        seed: of the generated noise.

    Returns:
        All measures beside their floors, and the likelihoods in nats per sample.

    Raises:
        SeppriorError: too few windows, windows of another length or with gaps, or a
            prior that generates numbers that are not finite.
    """
    real = _checked(windows, prior.window)
    generated = _draw(prior, len(real), seed=seed)
    grid = measures.quantisation(real)
    if grid is not None:
        # Both, so that what is equal is so to the last bit.
        real, generated = (_rounded(x, *grid) for x in (real, generated))
    pair = Comparison.of(real, generated, sample_rate=prior.sample_rate)
    nll = _heldout_nll(prior, real)
    autocovariance = np.asarray(prior.autocovariance.detach().cpu(), dtype=np.float64)
    gaussian = measures.gaussian_nll(real, autocovariance, prior.level) / prior.window
    gain = gaussian - nll
    return Fidelity(
        prior_name=prior.name,
        n_windows=len(real),
        window=prior.window,
        sample_rate=float(prior.sample_rate),
        measures={
            "psd": checks.psd(pair),
            "autocorrelation": checks.autocorrelation(pair),
            **checks.moments(pair),
            "wasserstein": checks.wasserstein(pair),
            "kolmogorov_smirnov": checks.kolmogorov_smirnov(pair),
            **checks.speckle(pair),
            "hop_variance": checks.hop_variance(pair, hops=_hops(prior)),
            "two_sample_accuracy": checks.classifier(pair),
            **checks.density_coverage(pair),
            "heldout_nll": checks.heldout_nll(nll, gaussian),
        },
        nll=float(nll.mean()),
        nll_gaussian=float(gaussian.mean()),
        nll_gain=float(gain.mean()),
        nll_gain_stderr=float(gain.std(ddof=1)) / math.sqrt(len(real)),
        curves=curves(pair) | _information(prior),
        step=None if grid is None else grid[1],
        origin=origin,
    )


def _checked(windows: np.ndarray, window: int) -> np.ndarray:
    real = np.asarray(windows, dtype=np.float64)
    if real.ndim != 2 or real.shape[1] != window:
        raise SeppriorError(
            f"windows of shape {real.shape} were given, the prior needs (n, {window}): "
            f"cut the recording into windows of {window} samples"
        )
    if len(real) < MIN_WINDOWS:
        raise SeppriorError(
            f"{len(real)} windows of real noise were given, at least {MIN_WINDOWS} are "
            f"needed: use a recording of {MIN_WINDOWS * window} samples or more"
        )
    if not np.isfinite(real).all():
        raise SeppriorError(
            "the real windows hold NaN or infinite values, only finite ones can be "
            "compared: leave out the windows with gaps"
        )
    if np.ptp(real) == 0:
        raise SeppriorError(
            f"the real windows all have the constant value {real[0, 0]:g}, noise was "
            "expected: check the recording"
        )
    return real


def _draw(prior: InspectablePrior, n: int, *, seed: int) -> np.ndarray:
    import torch

    generator = torch.Generator().manual_seed(seed)
    step = max(_CHUNK // prior.window, 1)
    parts = [
        prior.sample(min(step, n - done), generator=generator).detach().cpu().numpy()
        for done in range(0, n, step)
    ]
    generated = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(generated).all():
        raise SeppriorError(
            "the prior generates values that are not finite, numbers were expected: "
            "its training has diverged, train it again"
        )
    return generated


def _rounded(values: np.ndarray, offset: float, step: float) -> np.ndarray:
    """The nearest points of a grid."""
    return offset + step * np.round((values - offset) / step)


def _heldout_nll(prior: InspectablePrior, real: np.ndarray) -> np.ndarray:
    """Nats per sample of each window, (n,)."""
    import torch

    step = max(_CHUNK // prior.window, 1)
    parts = [
        prior.heldout_nll(torch.tensor(real[done : done + step])).detach().cpu()
        for done in range(0, len(real), step)
    ]
    return torch.cat(parts).double().numpy() / prior.window


def _hops(prior: InspectablePrior) -> list[int]:
    """Powers of two up to a quarter of the window, the prior's hop, and the window."""
    hops = {2**k for k in range(1, int(math.log2(prior.window)) - 1)}
    own = getattr(prior, "hop", None)
    if isinstance(own, int) and 2 <= own < prior.window:
        hops.add(own)
    return [*sorted(hops), prior.window]


def _information(prior: InspectablePrior) -> dict[str, np.ndarray]:
    """Information about a sinusoid over that of GLS, for priors that know it."""
    import torch

    gain_at = getattr(prior, "information_gain", None)
    if gain_at is None:
        return {}
    n = min(prior.window // 2, _INFORMATION_POINTS)
    frequency = np.linspace(1.0, 0.5 * prior.window, n) / prior.window
    frequency *= prior.sample_rate
    gain = gain_at(torch.from_numpy(frequency)).cpu().numpy()
    return {"information_frequency": frequency, "information_gain": gain}


def _text(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.3f}" if abs(number) < 1000 else f"{number:.3g}"


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)
