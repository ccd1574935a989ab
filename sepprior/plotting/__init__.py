"""Figures of a separation and of the fidelity of a prior.

Drawn with matplotlib's object interface: nothing global is touched, no display needed.
"""

from sepprior.plotting.fidelity import plot_fidelity
from sepprior.plotting.separation import plot_separation
from sepprior.plotting.style import envelope

__all__ = ["envelope", "plot_fidelity", "plot_separation"]
