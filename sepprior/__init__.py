"""Separate a signal of known form from structured noise, with a learned noise prior.

Train a prior once on recordings without a signal, freeze it, and separate every later
measurement into signal and noise with error bars on the signal's parameters::

    import sepprior

    noise = sepprior.train_noise(recording, sample_rate=fs)
    result = sepprior.separate(measurement, noise, sample_rate=fs)
    print(result.report())

Names are imported on first use, so that `import sepprior` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sepprior.checkpoint import load_prior, save_prior
    from sepprior.config import (
        DiffusionConfig,
        GANSynthConfig,
        GaussianConfig,
        LSTMConfig,
        SpecGANConfig,
        WaveGANConfig,
    )
    from sepprior.data import (
        Recording,
        Segment,
        read_measurements,
        read_recordings,
    )
    from sepprior.errors import SeppriorError
    from sepprior.result import Parameter, Separation
    from sepprior.separation import separate
    from sepprior.tracking import Track, track
    from sepprior.training import train_noise

__version__ = "0.1.0"

__all__ = [
    "DiffusionConfig",
    "GANSynthConfig",
    "GaussianConfig",
    "LSTMConfig",
    "Parameter",
    "Recording",
    "Segment",
    "Separation",
    "SeppriorError",
    "SpecGANConfig",
    "Track",
    "WaveGANConfig",
    "__version__",
    "load_prior",
    "read_measurements",
    "read_recordings",
    "save_prior",
    "separate",
    "track",
    "train_noise",
]

_HOME = {
    "DiffusionConfig": "config",
    "GANSynthConfig": "config",
    "GaussianConfig": "config",
    "LSTMConfig": "config",
    "Parameter": "result",
    "Recording": "data",
    "Segment": "data",
    "Separation": "result",
    "SeppriorError": "errors",
    "SpecGANConfig": "config",
    "WaveGANConfig": "config",
    "load_prior": "checkpoint",
    "read_measurements": "data",
    "read_recordings": "data",
    "save_prior": "checkpoint",
    "Track": "tracking",
    "separate": "separation",
    "track": "tracking",
    "train_noise": "training",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sepprior' has no attribute {name!r}")
    value = getattr(import_module(f"sepprior.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
