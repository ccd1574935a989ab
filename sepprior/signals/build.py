"""From what a user says about the signal to the form that is fitted."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from sepprior.errors import SeppriorError, real_number, shown
from sepprior.signals.constrained import Constrained
from sepprior.signals.form import Form, Geometry
from sepprior.signals.function import FunctionForm
from sepprior.signals.oscillations import Chirp, DampedSinusoid, Harmonics
from sepprior.signals.sinusoids import Sinusoids

KINDS = ("sinusoid", "harmonics", "damped", "chirp")
EXPECTED_REACH = 5.0
"""Standard deviations of a prior within which starts are looked for."""

Signal = str | Callable[..., Tensor]
Bounds = Mapping[str, tuple[float | None, float | None]]
Values = Mapping[str, float]
Expected = Mapping[str, tuple[float, float]]


def build_form(
    signal: Signal,
    geometry: Geometry,
    *,
    components: int,
    fmin: float,
    fmax: float,
    bounds: Bounds | None = None,
    fixed: Values | None = None,
    guess: Values | None = None,
    expected: Expected | None = None,
) -> Form:
    """The form of a signal with what is known about its parameters.

    Args:
        signal: one of `KINDS`, or a function f(t, a, b, ...) of torch operations.
        geometry: of the records.
        components: number of sinusoids or harmonics.
        fmin: lowest frequency, Hz (of the fundamental; of a chirp's middle).
        fmax: highest frequency, Hz.
        bounds: lowest and highest value by name, None for an open end.
        fixed: values of parameters that are known, by name.
        guess: starting values by name; frequencies are searched near them only.
        expected: mean and standard deviation of Gaussian priors, by name.

    Raises:
        SeppriorError: an unknown name, or a value that cannot be used.
    """
    if callable(signal):
        names, defaults = _signature(signal)
        guess = {**defaults, **(guess or {})}
    else:
        names = _make(signal, components, geometry, fmin, fmax).names
    limits = _checked_bounds(bounds or {}, names)
    held, start = _checked("fixed", fixed, names), _checked("guess", guess, names)
    priors = _checked_priors(expected or {}, names)
    for name in held:
        if name in limits or name in priors:
            raise SeppriorError(
                f"parameter '{name}' is fixed: bounds and a prior mean nothing for it"
            )
    if len(held) == len(names):
        raise SeppriorError("every parameter is fixed: leave at least one free")
    for name, value in start.items():
        low, high = limits.get(name, (-math.inf, math.inf))
        if name not in held and not low <= value <= high:
            raise SeppriorError(
                f"guess {value:.6g} of '{name}' is outside its bounds {low:.6g} to "
                f"{high:.6g}"
            )
    searched = limits | {name: (value, value) for name, value in held.items()}
    for name, (mean, sd) in priors.items():
        low, high = limits.get(name, (-math.inf, math.inf))
        a, b = mean - EXPECTED_REACH * sd, mean + EXPECTED_REACH * sd
        searched[name] = (min(max(low, a), high), max(min(high, b), low))
    if callable(signal):
        function = FunctionForm(signal, names, geometry, bounds=searched, guess=start)
        if not held and not priors:
            return function
        return Constrained(
            function,
            function,
            bounds=limits,
            fixed=held,
            expected=priors,
            reach=dict(zip(names, function.reach.tolist(), strict=True)),
            alike={},
        )
    base = _make(signal, components, geometry, fmin, fmax)
    search = _make(signal, components, geometry, fmin, fmax)
    _narrow(base, limits, {})
    _narrow(search, searched, start)
    direct = [n for n in base.curved if signal != "chirp" or n != "frequency"]
    if not held and not priors and all(name in direct for name in limits):
        base.search = search
        return base
    rows = zip(base.curved, base.low.tolist(), base.high.tolist(), strict=True)
    own = {name: (low, high) for name, low, high in rows if name in direct}
    pairs = zip(base.names, base.kinds, strict=True)
    positive = {name: (0.0, math.inf) for name, kind in pairs if kind == "amplitude"}
    return Constrained(
        base,
        search,
        bounds=positive | own | limits,
        fixed=held,
        expected=priors,
        reach=dict(zip(base.curved, base.reach.tolist(), strict=True)),
        alike=dict(zip(base.curved, base.alike.tolist(), strict=True)),
    )


BuiltIn = Sinusoids | Harmonics | DampedSinusoid | Chirp


def _make(
    kind: str, components: int, geometry: Geometry, fmin: float, fmax: float
) -> BuiltIn:
    """A built-in form without constraints."""
    if kind not in KINDS:
        raise SeppriorError(
            f"signal {kind!r} is not known; give {', '.join(map(repr, KINDS))} or a "
            "function of time and parameters"
        )
    if components > 1 and kind not in ("sinusoid", "harmonics"):
        raise SeppriorError(
            f"components={components}: signal '{kind}' has one component; "
            "leave components out"
        )
    if kind == "sinusoid":
        return Sinusoids(components, geometry, low=fmin, high=fmax)
    if kind == "harmonics":
        highest = 0.5 * geometry.sample_rate * (1.0 - 1.0 / geometry.length)
        top = min(fmax, highest / components)
        if top <= fmin:
            raise SeppriorError(
                f"{components} harmonics of a fundamental above fmin = {fmin:.6g} Hz "
                f"do not fit below {highest:.6g} Hz; lower fmin or give fewer harmonics"
            )
        return Harmonics(components, geometry, low=fmin, high=top)
    form = {"damped": DampedSinusoid, "chirp": Chirp}[kind]
    return form(geometry, low=fmin, high=fmax)


def _narrow(
    form: BuiltIn, limits: Mapping[str, tuple[float, float]], near: Values
) -> None:
    """Tighten the bounds of a form to `limits`, and around the guesses `near`."""
    resolution = 1.0 / form.geometry.duration
    for i in reversed(range(len(form.curved))):
        name = form.curved[i]
        low, high = limits.get(name, (-math.inf, math.inf))
        if name in near:
            value = near[name]
            width = {"decay": 0.5 * value, "chirp_rate": 2.0 * resolution**2}
            half = width.get(name, resolution)
            low, high = max(low, value - half), min(high, value + half)
        if isinstance(form, Chirp) and name == "frequency":
            # Natural frequencies are those at the first sample, a chirp's own is that
            # in the middle.
            drift = form.geometry.middle
            low += drift * float(form.low[1])
            high += drift * float(form.high[1])
        own_low, own_high = float(form.low[i]), float(form.high[i])
        if not (low <= own_high and high >= own_low):
            raise SeppriorError(
                f"bounds of '{name}' ({low:.6g} to {high:.6g}) are outside what can be "
                f"searched, {own_low:.6g} to {own_high:.6g}"
            )
        form.low[i], form.high[i] = max(low, own_low), min(high, own_high)


def _signature(function: Callable[..., Tensor]) -> tuple[tuple[str, ...], Values]:
    """Names of a function's parameters after the time, and their default values."""
    title = getattr(function, "__name__", "function")
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError) as error:
        raise SeppriorError(
            f"signal '{title}' does not tell its parameters; give a plain function "
            "f(t, a, b, ...)"
        ) from error
    plain = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    if not parameters or any(p.kind not in plain for p in parameters):
        raise SeppriorError(
            f"signal '{title}' must have the form f(t, a, b, ...): a time and at least "
            "one named parameter"
        )
    given = {
        p.name: real_number(f"signal '{title}', default of '{p.name}'", p.default)
        for p in parameters
        if p.default is not inspect.Parameter.empty
    }
    return tuple(p.name for p in parameters), given


def _known(option: str, name: str, names: tuple[str, ...]) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
    raise SeppriorError(f"{option}: the signal has no parameter '{name}'; {hint}")


def _number(option: str, name: str, value: object) -> float:
    return real_number(f"{option} of '{name}'", value)


def _checked(
    option: str, values: Values | None, names: tuple[str, ...]
) -> dict[str, float]:
    for name in values or {}:
        _known(option, name, names)
    return {name: _number(option, name, v) for name, v in (values or {}).items()}


def _pair(option: str, name: str, pair: object) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise SeppriorError(
            f"{option}: give two numbers for '{name}', not {shown(pair)}"
        )
    return pair[0], pair[1]


def _open(end: object, infinite: float) -> bool:
    """Whether an end of bounds is left open."""
    return end is None or (isinstance(end, float) and end == infinite)


def _checked_bounds(
    bounds: Bounds, names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    checked = {}
    for name, pair in bounds.items():
        _known("bounds", name, names)
        low, high = _pair("bounds", name, pair)
        low = -math.inf if _open(low, -math.inf) else _number("bounds", name, low)
        high = math.inf if _open(high, math.inf) else _number("bounds", name, high)
        if not low < high:
            raise SeppriorError(
                f"bounds: {low:.6g} to {high:.6g} of '{name}' is empty; give the lower "
                "end first"
            )
        checked[name] = (low, high)
    return checked


def _checked_priors(
    expected: Expected, names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    checked = {}
    for name, pair in expected.items():
        _known("expected", name, names)
        mean, sd = _pair("expected", name, pair)
        mean, sd = _number("expected", name, mean), _number("expected", name, sd)
        if sd <= 0 or not 1e-150 < sd < 1e150:
            raise SeppriorError(
                f"expected: the standard deviation {sd:.6g} of '{name}' must be "
                "positive; fix the parameter if it is known"
            )
        checked[name] = (mean, sd)
    return checked
