"""Parameters against time: a long recording fitted window by window.

`windows` cuts a recording of any length, `fits` separates the windows batch by batch,
`stitch` joins the separated waveforms, `phase` counts the cycles between windows.
Generators yield batches; memory does not grow with the recording.
"""

from sepprior.tracking.fits import FitOptions as FitOptions
from sepprior.tracking.fits import WindowFits as WindowFits
from sepprior.tracking.fits import fit_recording as fit_recording
from sepprior.tracking.fits import fit_windows as fit_windows
from sepprior.tracking.result import Track as Track
from sepprior.tracking.result import TrackSummary as TrackSummary
from sepprior.tracking.result import Waveform as Waveform
from sepprior.tracking.stream import Grid as Grid
from sepprior.tracking.stream import grid_for as grid_for
from sepprior.tracking.stream import track as track
from sepprior.tracking.stream import track_blocks as track_blocks
from sepprior.tracking.stream import windows_in as windows_in
from sepprior.tracking.windows import WindowBatch as WindowBatch
from sepprior.tracking.windows import count_windows as count_windows
from sepprior.tracking.windows import iterate_windows as iterate_windows
