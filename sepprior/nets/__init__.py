"""Networks: modules only, no training and no files."""

from sepprior.nets.denoiser import Denoiser as Denoiser
from sepprior.nets.specgan import Critic as Critic
from sepprior.nets.specgan import Encoder as Encoder
from sepprior.nets.specgan import Generator as Generator
from sepprior.nets.specgan import PlaneShape as PlaneShape
