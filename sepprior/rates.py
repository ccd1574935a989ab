"""Sample rates: when two agree, and how to get from one to the other."""

from fractions import Fraction

from sepprior.errors import SeppriorError, real_number

RATE_TOLERANCE = 1e-3
"""Relative difference up to which two sample rates count as the same.

Rates taken from a time column carry the rounding of its digits. A prior's frequencies
shift by the same fraction, far less than the width of its frequency bins.
"""


def check_sample_rate(given: float, expected: float, *, subject: str) -> None:
    """Refuse data at another sample rate than the prior's.

    Args:
        given: Sample rate of the data in Hz.
        expected: Sample rate that the prior was trained at, in Hz.
        subject: What the data are, to begin the message with.

    Raises:
        SeppriorError: The two differ by more than 0.1 %; the message has the integers
            of the resampling that makes them agree.
    """
    given = real_number("sample_rate", given)
    if given <= 0:
        raise SeppriorError(f"sample_rate={given:.6g}: give a positive number, in Hz")
    if abs(given - expected) <= RATE_TOLERANCE * expected:
        return
    up, down = resampling_factors(given, expected)
    told = (
        f"{subject} has a sample rate of {given:.6g} Hz but the prior was trained at "
        f"{expected:.6g} Hz: "
    )
    resample = f"resample it with scipy.signal.resample_poly(x, {up}, {down})"
    units = (
        "are the times in the unit that their column's name tells, as in 'time (ms)' "
        "(seconds if it tells none)? If not, rename it, or say --time-column none and "
        "--sample-rate HZ"
    )
    if max(up, down) > 10_000:
        raise SeppriorError(told + units)
    if not 1e-2 <= given / expected <= 1e2:
        raise SeppriorError(f"{told}{units}. Otherwise {resample}")
    raise SeppriorError(f"{told}{resample}, or train a prior at {given:.6g} Hz")


def resampling_factors(given: float, wanted: float) -> tuple[int, int]:
    """Small integers whose ratio takes one sample rate to another.

    Args:
        given: Present sample rate in Hz.
        wanted: Sample rate to reach in Hz.

    Returns:
        `(up, down)` without a common factor: the smallest found for which
        `given * up / down` is within a hundredth of `RATE_TOLERANCE` of `wanted`.
    """
    ratio = wanted / given
    limit = 1
    while True:
        fraction = Fraction(ratio).limit_denominator(limit)
        if abs(float(fraction) / ratio - 1) <= RATE_TOLERANCE / 100:
            return fraction.numerator, fraction.denominator
        limit *= 2
