"""The status of a separation: what a user should know first, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FOREIGN = 1e-4
"""Probability of unchanged noise below which the prior is not used at all."""
EQUAL = 1.05
"""Ratio up to which two error bars are called the same."""
SWALLOWED = 0.9
"""Share of the amplitude's variance from which the noise can pass for the signal."""


def describe(
    facts: Mapping[str, Any],
    *,
    on_bound: Mapping[str, str],
    tried: bool,
    learned: bool,
    frequencies: Sequence[float] = (),
    unfinished: bool = False,
) -> str:
    """One sentence for one measurement, "ok" first unless something is wrong.

    Args:
        facts: diagnostics of the measurement, by name.
        on_bound: kinds of the parameters that sit on a bound, by name.
        tried: the joint solver was run.
        learned: the prior is more than a stationary Gaussian.
        frequencies: others that fit about as well, Hz.
        unfinished: the prior's training was stopped, or still runs.
    """
    notes = []
    if unfinished:
        notes.append(
            "the prior is unfinished, its error bars are not calibrated: end its "
            "training (train-noise --resume)"
        )
    if facts["out_of_distribution"]:
        notes.append(_changed(facts))
    elif facts.get("noise_level_followed", False):
        low, high = facts["noise_level_low"], facts["noise_level_high"]
        notes.append(
            f"the noise is {facts['noise_level']:.2g} times as loud as in training "
            f"({low:.2g} to {high:.2g}): the error bars account for it"
        )
    if not facts["detected"]:
        notes.append("no signal detected: the parameters may describe noise")
    if len(frequencies) and facts["detected"]:
        listed = ", ".join(f"{frequency:.6g}" for frequency in frequencies)
        notes.append(
            f"other frequencies fit about as well ({listed} Hz; this one has the "
            f"probability {facts['frequency_probability']:.2g}): the intervals hold "
            "them; fill the gaps or narrow the band"
        )
    others = [name for name, kind in on_bound.items() if kind != "frequency"]
    if len(others) < len(on_bound):
        notes.append("a frequency is at the edge of the band: widen fmin and fmax")
    if others:
        notes.append(f"at its bound: {', '.join(others)}; its error bar does not hold")
    if facts.get("unresolved", False):
        notes.append(
            "not all sinusoids are resolved: give fewer components, or measure longer"
        )
    if tried and facts["method"] != "gls" and not facts["converged"]:
        notes.append("not fully converged: compare with GLS, or a part of the record")
    if tried and facts["method"] != "gls" and facts["absorption"] > SWALLOWED:
        notes.append(
            f"noise of this kind can look like the signal (absorption "
            f"{facts['absorption']:.2f}): the error bars allow for it"
        )
    if not facts.get("well_sampled", True):
        notes.append(
            f"the chains do not agree (R-hat {facts['rhat']:.2f}, effective draws "
            f"{facts['effective_draws']:.0f}): more draws, or compare with "
            "method 'laplace'"
        )
    if learned and not tried:
        notes.append("GLS answer: on held-out noise the prior adds nothing to it")
    elif tried and facts["method"] == "gls" and _foreign(facts):
        notes.append("GLS answer: the prior does not describe this noise")
    elif tried and facts["method"] == "gls":
        notes.append("GLS answer: more probable here than the joint optimum")
    return "; ".join(["ok" if not notes else notes[0], *notes[1:]])


def _foreign(facts: Mapping[str, Any]) -> bool:
    """Whether the noise is plainly not the prior's, whatever its level."""
    if facts.get("noise_level_followed", False):
        return bool(facts["out_of_distribution"])
    return bool(facts["noise_change_p"] < FOREIGN)


def verdict(facts: Mapping[str, Any], ratios: Sequence[float]) -> str:
    """What matters first: is there a signal, what was gained, is the noise the same.

    Args:
        facts: diagnostics of one measurement, by name.
        ratios: error bar of least squares over that of the answer, by parameter.
    """
    parts = []
    if "detected" in facts:
        parts += ["signal detected" if facts["detected"] else "no signal detected"]
    if "method" in facts:
        parts.append(_compared(facts["method"], typical_ratio(ratios)))
    if facts.get("out_of_distribution", False):
        parts.append("the noise is not as in training")
    elif facts.get("noise_level_followed", False):
        level = facts["noise_level"]
        parts.append(f"noise {level:.2g} times as loud as in training")
    elif math.isfinite(facts.get("noise_change_p", math.nan)):
        parts.append("noise as in training")
    return "; ".join(parts) or "nothing was judged"


def _compared(method: str, gain: float) -> str:
    """Error bars beside those of least squares, `gain` times as large."""
    if method == "gls":
        return "the answer is that of least squares"
    if gain >= EQUAL:
        return f"error bars {gain:.2g} times smaller than least squares"
    if gain <= 1.0 / EQUAL:
        return f"error bars {1.0 / gain:.2g} times larger than least squares"
    return "error bars as those of least squares"


def typical_ratio(ratios: Sequence[float]) -> float:
    """Geometric mean of those that are known; 1 where none is."""
    known = [math.log(r) for r in ratios if math.isfinite(r) and r > 0]
    return math.exp(sum(known) / len(known)) if known else 1.0


def _changed(facts: Mapping[str, Any]) -> str:
    """What has changed since training, by its likeliest cause."""
    cause = facts.get("noise_change", "")
    if cause == "form":
        return (
            "what is left of the fit stands at the signal's frequency: the signal is "
            "not of this form; try damped, chirp, harmonics, more components or a "
            "function of your own"
        )
    where = ""
    even = cause == "level" and abs(facts["noise_change_ratio"] - 1.0) < EQUAL - 1.0
    if cause in ("unit", "level", "band") and not even:
        where = f" ({facts['noise_change_ratio']:.2g} times as loud"
        if cause == "band":
            low, high = facts["noise_change_low"], facts["noise_change_high"]
            where += f" at {low:.3g} to {high:.3g} Hz"
        where += ")"
    remedy = "record new noise and train again"
    if cause == "unit":
        remedy = "is the measurement in another unit (mV for V), or the gain another?"
    return f"the noise has changed since training{where}: {remedy}"
