"""Real noise that a prior is judged by, and what is known of where it is from.

A prior knows the noise that it learned from better than any other. The recording it was
trained on is recognised by the hash in its metadata, and judges it by the part that was
held out in training. (No weight was learned from that part, but choices were made by
it: of a frame, of the best tick, of what a generator of waveforms cannot reach.)

Dimensions: n windows, N samples each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from sepprior.data import (
    Recording,
    consecutive_windows,
    data_hash,
    split_recording,
)

MIN_WINDOWS = 20
"""Fewest windows that a prior is judged by."""

Origin = Literal["given", "other", "held_out", "trained_on"]
"""Where windows are from: nothing known; not from the recording that the prior was
trained on; from the part of it that was held out; from all of it."""

ORIGINS: Mapping[Origin, str] = {
    "given": "",
    "other": "not the recording it was trained on (a part or a rounded copy of that "
    "would not be recognised)",
    "held_out": "the recording it was trained on: judged by the part that was held out",
    "trained_on": f"the recording it was trained on, of which fewer than {MIN_WINDOWS} "
    "windows were held out: judged by all of it",
}
"""What a report says of them."""


class RecordedPrior(Protocol):
    """A prior that may know what it was trained on."""

    window: int
    metadata: dict[str, Any]


def judging_windows(
    prior: RecordedPrior,
    recording: Recording,
    *,
    label: str | None = None,
    limit: int | None = None,
) -> tuple[np.ndarray, Origin]:
    """Windows of a recording to judge a prior by: of its own, those held out.

    All of its own recording where fewer than 20 windows of it were held out.

    Args:
        prior: with ``data_hash`` and ``config`` in its metadata, if it was trained
            here.
        recording: any noise.
        label: of recordings with labels, the parts with this one; None for all.
        limit: most windows; they are then spread evenly.

    Returns:
        Windows (n, N) in data units, in order, and where they are from.

    Raises:
        SeppriorError: no segment has a window without gaps, or none has the label.
    """

    def windows_of(some: Recording) -> np.ndarray:
        part = some if label is None else some.of_label(label)
        return consecutive_windows(part, window=prior.window, limit=limit)

    known, origin = prior.metadata.get("data_hash"), "given"
    if known is not None:
        origin = "trained_on" if known == data_hash(recording) else "other"
    if origin == "trained_on":
        _, held_out = split_recording(
            recording,
            window=prior.window,
            validation_fraction=prior.metadata["config"]["validation_fraction"],
        )
        unseen = windows_of(held_out)
        if len(unseen) >= MIN_WINDOWS:
            return unseen, "held_out"
    return windows_of(recording), origin
