"""The one error that bad input raises."""


class RSMoEError(ValueError):
    """Bad input from a user: the message names the value, what was expected and what to do.

    The command line prints the message in one line and exits with 2; from Python it is an ordinary ``ValueError``.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, to stand within a message of ours."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.replace(":\n", ": ").splitlines()[0].split())


__all__ = ["RSMoEError"]
