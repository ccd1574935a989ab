"""Recipes for training a noise prior, as frozen dataclasses and strict TOML.

One dataclass per model holds every setting of its training together with the default;
a TOML file names the ones that differ. Reading is strict: a key that the model does not
know, a value of another type and a value out of range are errors that say what would
have been right. The same dictionary that a TOML file holds is stored in the checkpoint,
so that `config_from_dict(config_to_dict(config)) == config`.
"""

from sepprior.config.adversarial import AdversarialConfig as AdversarialConfig
from sepprior.config.diffusion import DiffusionConfig as DiffusionConfig
from sepprior.config.gansynth import GANSynthConfig as GANSynthConfig
from sepprior.config.gaussian import GaussianConfig as GaussianConfig
from sepprior.config.lstm import LSTMConfig as LSTMConfig
from sepprior.config.recipes import CONFIGS as CONFIGS
from sepprior.config.recipes import DEFAULT_MODEL as DEFAULT_MODEL
from sepprior.config.recipes import IterativeConfig as IterativeConfig
from sepprior.config.recipes import NoiseConfig as NoiseConfig
from sepprior.config.recipes import WaveformConfig as WaveformConfig
from sepprior.config.recipes import config_from_dict as config_from_dict
from sepprior.config.recipes import config_to_dict as config_to_dict
from sepprior.config.recipes import load_config as load_config
from sepprior.config.recipes import override as override
from sepprior.config.specgan import SpecGANConfig as SpecGANConfig
from sepprior.config.wavegan import WaveGANConfig as WaveGANConfig
