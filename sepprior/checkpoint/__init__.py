"""Frozen priors as safetensors files with JSON metadata.

Loading reads tensors and text only; no code is stored and none is run.
"""

from sepprior.checkpoint.files import load_tensors as load_tensors
from sepprior.checkpoint.files import resolve_device as resolve_device
from sepprior.checkpoint.files import save_tensors as save_tensors
from sepprior.checkpoint.spectrogram import (
    holds_spectrogram_gan as holds_spectrogram_gan,
)
from sepprior.checkpoint.spectrogram import (
    load_spectrogram_gan as load_spectrogram_gan,
)
from sepprior.checkpoint.stored import FORMAT_VERSION as FORMAT_VERSION
from sepprior.checkpoint.stored import load_prior as load_prior
from sepprior.checkpoint.stored import save_prior as save_prior
