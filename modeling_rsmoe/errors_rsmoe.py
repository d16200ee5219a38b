"""The one error that bad input raises."""


class RSMoEError(ValueError):
    """Bad input from a user: the message names the value, what was expected and what to do.

    The command line prints the message in one line and exits with 2; from Python it is an ordinary ``ValueError``.
    """


__all__ = ["RSMoEError"]
