"""Stage one: recordings of noise in, a frozen prior out."""

from sepprior.training.spectrograms import train_spectrograms as train_spectrograms
from sepprior.training.state import resume_path as resume_path
from sepprior.training.train import train as train
from sepprior.training.train import train_noise as train_noise
