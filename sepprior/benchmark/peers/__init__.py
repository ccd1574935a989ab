"""Methods of other packages, each called as its own documentation says.

They come with ``pip install 'sepprior[peers]'``. One that is not installed is shown as
not run, with the reason.
"""

from collections.abc import Mapping

from sepprior.benchmark.methods import Method
from sepprior.benchmark.peers.cleaned import noisereduce_fit, pywavelets_fit
from sepprior.benchmark.peers.fits import (
    astropy_lombscargle,
    celerite2_joint,
    lmfit_sine,
    statsmodels_glsar,
)
from sepprior.benchmark.peers.posteriors import bilby_dynesty, sbi_npe
from sepprior.benchmark.peers.slic import slic
from sepprior.benchmark.scenarios import RECORD_WINDOWS

PEERS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "lmfit",
            lmfit_sine,
            "SineModel() + ConstantModel(), started by guess()",
            package="lmfit",
        ),
        Method(
            "lombscargle",
            astropy_lombscargle,
            "astropy's LombScargle, the peak refined",
            package="astropy",
        ),
        Method(
            "glsar",
            statsmodels_glsar,
            "statsmodels' GLSAR(rho=4).iterative_fit()",
            package="statsmodels",
        ),
        Method(
            "celerite2",
            celerite2_joint,
            "Gaussian process (SHOTerm + jitter) and sinusoid, fitted jointly",
            package="celerite2",
        ),
        Method(
            "noisereduce",
            noisereduce_fit,
            "spectral gating by the record, then curve_fit",
            package="noisereduce",
        ),
        Method(
            "pywavelets",
            pywavelets_fit,
            "wavelet thresholds from the record, then curve_fit",
            package="PyWavelets",
        ),
        Method(
            "bilby",
            bilby_dynesty,
            "nested sampling (dynesty) with the GLS likelihood; first trials only",
            most_trials=5,
            package="bilby",
        ),
        Method(
            "sbi_npe",
            sbi_npe,
            "amortised posterior, 40 000 simulations with the record's noise, 5 min of "
            "training",
            windows=RECORD_WINDOWS,
            most_trials=200,
            trains=True,
            package="sbi",
        ),
        Method(
            "score_models",
            slic,
            "score-based likelihood (SLIC), NCSN++ of the record, 5 min of training",
            windows=RECORD_WINDOWS,
            most_trials=200,
            trains=True,
            package="score_models",
        ),
    )
}
"""The peers, in the order of the tables."""
