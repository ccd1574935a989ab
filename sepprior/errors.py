"""The one exception users meet, and the one warning."""


class SeppriorError(ValueError):
    """Input that cannot be used.

    The message is one line: what was given, what was expected and what to do. The
    command line prints it and exits with status 2.
    """


class SeppriorWarning(UserWarning):
    """Input that is used, but not as it stands: what was left out, and how much."""
