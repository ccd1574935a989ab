"""Frozen noise priors behind one contract."""

from sepprior.priors.base import Decoded as Decoded
from sepprior.priors.base import LatentPrior as LatentPrior
from sepprior.priors.base import Prior as Prior
from sepprior.priors.base import ScorePrior as ScorePrior
from sepprior.priors.base import conditional_energy as conditional_energy
from sepprior.priors.base import joint_energy as joint_energy
from sepprior.priors.diffusion import DiffusionPrior as DiffusionPrior
from sepprior.priors.gaussian import GaussianPrior as GaussianPrior
from sepprior.priors.plain import PlainPrior as PlainPrior
from sepprior.priors.specgan import PlaneStatistics as PlaneStatistics
from sepprior.priors.specgan import SpecGANPrior as SpecGANPrior
from sepprior.priors.waveform import WaveformPrior as WaveformPrior
