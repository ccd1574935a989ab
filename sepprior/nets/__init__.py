"""Networks: modules only, no training and no files."""

from sepprior.nets.denoiser import Denoiser as Denoiser
from sepprior.nets.flow import Flow as Flow
from sepprior.nets.gansynth import GANSynthCritic as GANSynthCritic
from sepprior.nets.gansynth import GANSynthGenerator as GANSynthGenerator
from sepprior.nets.gansynth import weights_in_use as weights_in_use
from sepprior.nets.lstm import LSTMGenerator as LSTMGenerator
from sepprior.nets.range_noise import RangeNoise as RangeNoise
from sepprior.nets.specgan import Critic as Critic
from sepprior.nets.specgan import Encoder as Encoder
from sepprior.nets.specgan import Generator as Generator
from sepprior.nets.specgan import PlaneShape as PlaneShape
from sepprior.nets.waveform import WaveformGenerator as WaveformGenerator
from sepprior.nets.wavegan import WaveGANCritic as WaveGANCritic
from sepprior.nets.wavegan import WaveGANGenerator as WaveGANGenerator
