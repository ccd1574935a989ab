"""Noise recordings: segments that are never joined.

Dimensions: M samples in a series, n series, k stretches without a gap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data.given import given, is_list
from sepprior.data.series import (
    Values,
    blocks_of,
    check_values,
    in_place,
    part_of,
    sample_number,
)
from sepprior.errors import SeppriorError, real_number
from sepprior.rates import RATE_TOLERANCE

_EQUAL_SEGMENTS = 10  # from this many segments of one length, whole ones are held out


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive samples of one recording.

    Attributes:
        values: samples in the file's units, shape (M,), NaN where missing: a float64
            array, or a lazy series whose slices are float64 arrays.
        label: state of the instrument or kind of noise, None if unknown.
        start: time of the first sample in s.
        source: the file, or "array".
    """

    values: Values
    label: str | None = None
    start: float = 0.0
    source: str = "array"

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """Stretches without a gap: first sample and one past the last, shape (k, 2)."""
        edges: list[NDArray[np.int64]] = []
        inside, offset = False, 0
        for block in blocks_of(self.values):
            finite = np.concatenate([[inside], np.isfinite(block)])
            edges.append(offset + np.flatnonzero(finite[1:] != finite[:-1]))
            inside, offset = bool(finite[-1]), offset + len(block)
        if inside:
            edges.append(np.array([offset]))
        return np.concatenate([np.empty(0, dtype=np.int64), *edges]).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Recording:
    """Noise without a signal, in one or more segments of one sample rate.

    Attributes:
        segments: parts within which the samples are uniform in time.
        sample_rate: in Hz.
    """

    segments: tuple[Segment, ...]
    sample_rate: float

    @property
    def n_samples(self) -> int:
        """Samples of all segments together, gaps marked by NaN included."""
        return sum(len(segment.values) for segment in self.segments)

    def of_label(self, label: str) -> Recording:
        """The segments with a label; all of them where none has any.

        Raises:
            SeppriorError: others have one, but none has this.
        """
        known = sorted({s.label for s in self.segments if s.label is not None})
        if not known:
            return self
        kept = tuple(s for s in self.segments if s.label == label)
        if not kept:
            raise SeppriorError(
                f"no part of the recording is labelled {label!r}; labels it has: "
                + ", ".join(map(repr, known))
            )
        return replace(self, segments=kept)

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """Segment, first sample and length of all stretches without a gap, (k, 3)."""
        tables = [np.empty((0, 3), dtype=np.int64)]
        for number, segment in enumerate(self.segments):
            first, stop = segment.spans.T
            tables.append(
                np.stack([np.full_like(first, number), first, stop - first], 1)
            )
        return np.concatenate(tables)

    @cached_property
    def _starts(self) -> dict[int, WindowStarts]:
        return {}

    def window_starts(self, window: int) -> WindowStarts:
        """Places where a window may start; found once per window length."""
        if window not in self._starts:
            counts = np.maximum(self.spans[:, 2] - window + 1, 0)
            used = counts > 0
            self._starts[window] = WindowStarts(
                segment=self.spans[used, 0],
                first=self.spans[used, 1],
                counts=counts[used],
                ends=np.cumsum(counts[used]),
            )
        return self._starts[window]


@dataclass(frozen=True, eq=False)
class WindowStarts:
    """Starts of windows, by stretch without a gap.

    Attributes:
        segment: position of the segment, shape (k,).
        first: first start in the segment, shape (k,).
        counts: number of starts, shape (k,).
        ends: cumulative number of starts, this stretch included, shape (k,).
    """

    segment: NDArray[np.int64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of places where a window may start."""
        return int(self.ends[-1]) if len(self.ends) else 0


def as_recording(values: Any, *, sample_rate: float | None) -> Recording:
    """Make a recording of arrays.

    Args:
        values: noise of shape (M,), or (n, M) with a recording in each row, see
            `given`; or a list of such; or a `Recording`, returned as it is.
        sample_rate: in Hz; not needed where an index of times tells it.

    Raises:
        SeppriorError: the values are not usable as noise, or a `Recording` has another
            sample rate.
    """
    if isinstance(values, Recording):
        rate = values.sample_rate
        if sample_rate is not None and abs(sample_rate - rate) > RATE_TOLERANCE * rate:
            raise SeppriorError(
                f"the recording has a sample rate of {rate:.6g} Hz, but sample_rate is "
                f"{sample_rate:.6g} Hz; leave it out or correct it"
            )
        return values
    if sample_rate is not None:
        check_rate(sample_rate)
    rate = sample_rate
    segments: list[Segment] = []
    for number, item in enumerate(values if is_list(values) else [values]):
        what = f"recording {number}" if is_list(values) else "the recording"
        found = given(item, what=what)
        rate = found.rate(rate, what=what)
        array = found.values
        for row in [None] if array.ndim == 1 else range(len(array)):
            part = what if row is None else f"{what}, row {row}"
            series = in_place(array if row is None else array[row], what=part)
            check_values(series, what=part, where=sample_number)
            segments.append(Segment(values=series))
    if not segments:
        raise SeppriorError("the recording is empty; expected a series of numbers")
    if rate is None:
        raise SeppriorError("no sample rate; pass sample_rate= in Hz")
    return Recording(segments=tuple(segments), sample_rate=float(rate))


def split_recording(
    recording: Recording, *, window: int, validation_fraction: float = 0.1
) -> tuple[Recording, Recording]:
    """Split into training and validation, without a sample in both.

    Noise is correlated, so shuffled windows would leak from one part into the other:
    the end of the recording is held out as a block. Of ten or more segments of equal
    length the last ones are held out whole. Each label is split by itself.

    Args:
        recording: what to split.
        window: samples in a window; both parts have at least one.
        validation_fraction: share of the samples to hold out, at least one window.

    Returns:
        Training and validation recordings.

    Raises:
        SeppriorError: the recording is too short for a window in each part.
    """
    check_window(window)
    if not 0 < validation_fraction < 1:
        raise SeppriorError(
            f"validation_fraction is {validation_fraction}; expected more than 0 and "
            "less than 1"
        )
    kept: list[Segment] = []
    held_out: list[Segment] = []
    for label in dict.fromkeys(segment.label for segment in recording.segments):
        group = [segment for segment in recording.segments if segment.label == label]
        train, valid = _split_group(
            group, window, validation_fraction, recording.sample_rate
        )
        kept += train
        held_out += valid
    parts = (
        replace(recording, segments=tuple(kept)),
        replace(recording, segments=tuple(held_out)),
    )
    if not all(part.window_starts(window).total for part in parts):
        raise SeppriorError(
            f"the recording is too short: its {recording.n_samples} samples in "
            f"{len(recording.segments)} segments hold no two separate windows of "
            f"{window} samples without gaps, one to train on and one to validate with; "
            "record more noise or choose a shorter window"
        )
    return parts


def data_hash(recording: Recording) -> str:
    """SHA-256 of samples, segment boundaries, labels and sample rate, in hexadecimal.

    The same recording has the same hash in every file format that keeps its numbers.
    """
    digest = hashlib.sha256(f"{recording.sample_rate!r}".encode())
    for segment in recording.segments:
        digest.update(f"\n{len(segment.values)} {segment.label!r}\n".encode())
        for block in blocks_of(segment.values):
            # one bit pattern for every nan, and for zero
            block = np.where(np.isnan(block), np.nan, block + 0.0)
            digest.update(block.astype("<f8").tobytes())
    return digest.hexdigest()


def check_rate(sample_rate: float) -> None:
    """Refuse a sample rate that is not a positive number."""
    if real_number("sample_rate", sample_rate) <= 0:
        raise SeppriorError(
            f"the sample rate is {sample_rate}; expected a positive number in Hz"
        )


def check_window(window: int, *, name: str = "window") -> None:
    """Refuse a length below one sample."""
    if window < 1:
        raise SeppriorError(f"{name} is {window}; expected at least 1 sample")


def _part(segment: Segment, start: int, stop: int, sample_rate: float) -> Segment:
    """Samples `start` to `stop` of a segment as a segment of their own."""
    return replace(
        segment,
        values=part_of(segment.values, start, stop),
        start=segment.start + start / sample_rate,
    )


def _split_group(
    group: Sequence[Segment], window: int, fraction: float, sample_rate: float
) -> tuple[list[Segment], list[Segment]]:
    """Training and validation segments of one label, each in order.

    The stretches without a gap that hold a window are walked from the end until they
    make up the fraction. A stretch is cut only where both parts hold a window.
    """
    lengths = [len(segment.values) for segment in group]
    spans = Recording(tuple(group), sample_rate).spans
    spans = spans[spans[:, 2] >= window]
    all_usable = len(np.unique(spans[:, 0])) == len(group)
    if len(group) >= _EQUAL_SEGMENTS and len(set(lengths)) == 1 and all_usable:
        held_out = min(max(1, round(fraction * len(group))), len(group) - 1)
        return list(group[:-held_out]), list(group[-held_out:])
    wanted = max(round(fraction * sum(lengths)), window)
    cut: tuple[int, int] | None = None
    for position in range(len(spans) - 1, -1, -1):
        number, first, length = spans[position].tolist()
        if length - wanted >= window:
            cut = (number, first + length - wanted)
            break
        if position == 0:  # the first stretch is for training
            if cut is None and length >= 2 * window:
                cut = (number, first + window)
            break
        cut = (number, first)
        wanted -= length
        if wanted < window:
            break
    if cut is None:
        return list(group), []
    number, sample = cut
    whole = group[number]
    train, valid = list(group[:number]), list(group[number + 1 :])
    if sample:
        train.append(_part(whole, 0, sample, sample_rate))
    return train, [_part(whole, sample, len(whole.values), sample_rate), *valid]
