"""Figures of a separation, of a track and of the fidelity of a prior.

Drawn with matplotlib's object interface: nothing global is touched, no display needed.
"""

from sepprior.plotting.fidelity import plot_fidelity
from sepprior.plotting.separation import plot_separation
from sepprior.plotting.style import envelope
from sepprior.plotting.track import plot_track

__all__ = ["envelope", "plot_fidelity", "plot_separation", "plot_track"]
