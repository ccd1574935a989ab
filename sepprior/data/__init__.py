"""Recordings and measurements: from files and arrays to windows of samples.

A *recording* is noise alone, from which a prior is trained; it may be larger than
memory and consists of *segments* that are never joined. A *measurement* is one series
with a signal in that noise, held in memory (`read_measurements`) or read slice by slice
(`open_measurements`). Missing samples are NaN in both.
"""

from sepprior.data.given import given as given
from sepprior.data.listing import list_files as list_files
from sepprior.data.reading import Measurement as Measurement
from sepprior.data.reading import MeasurementStream as MeasurementStream
from sepprior.data.reading import open_measurements as open_measurements
from sepprior.data.reading import read_measurements as read_measurements
from sepprior.data.reading import read_recordings as read_recordings
from sepprior.data.reading import shape_of_rows as shape_of_rows
from sepprior.data.recording import Recording as Recording
from sepprior.data.recording import Segment as Segment
from sepprior.data.recording import as_recording as as_recording
from sepprior.data.recording import data_hash as data_hash
from sepprior.data.recording import split_recording as split_recording
from sepprior.data.series import MIN_SAMPLES as MIN_SAMPLES
from sepprior.data.windows import consecutive_windows as consecutive_windows
from sepprior.data.windows import iterate_blocks as iterate_blocks
from sepprior.data.windows import iterate_windows as iterate_windows
from sepprior.data.windows import random_crops as random_crops
from sepprior.data.windows import random_placed_crops as random_placed_crops
