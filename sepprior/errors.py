"""The one exception users meet."""


class SeppriorError(ValueError):
    """Input that cannot be used.

    The message is one line: what was given, what was expected and what to do. The
    command line prints it and exits with status 2.
    """
