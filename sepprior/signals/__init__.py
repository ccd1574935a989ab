"""Signals of known form, as plain functions of time and named parameters.

Frequencies are in Hz, phases in radians, times in seconds. The solvers see each kind of
signal through one contract, `Form`.
"""

from sepprior.signals.build import Bounds, Expected, Signal, Values, build_form
from sepprior.signals.constrained import Constrained
from sepprior.signals.form import Form, Geometry
from sepprior.signals.formulas import chirp, damped_sinusoid, harmonics
from sepprior.signals.function import FunctionForm
from sepprior.signals.oscillations import Chirp, DampedSinusoid, Harmonics
from sepprior.signals.sinusoids import (
    PER_SINUSOID,
    Sinusoids,
    evaluate,
    jacobian_columns,
    linear_columns,
    parameter_names,
    sinusoid,
    to_polar,
    wrap_phase,
)

__all__ = [
    "PER_SINUSOID",
    "Bounds",
    "Chirp",
    "Constrained",
    "DampedSinusoid",
    "Expected",
    "Form",
    "FunctionForm",
    "Geometry",
    "Harmonics",
    "Signal",
    "Sinusoids",
    "Values",
    "build_form",
    "chirp",
    "damped_sinusoid",
    "evaluate",
    "harmonics",
    "jacobian_columns",
    "linear_columns",
    "parameter_names",
    "sinusoid",
    "to_polar",
    "wrap_phase",
]
