"""How a long job says how far it is: one signature for all of them."""

from typing import Protocol


class Progress(Protocol):
    """Called whenever there is something to say.

    Args:
        message: what is being done; the same text as long as it is the same job.
        done: how much of it.
        total: of how much; None where that is not known.
        unit: what is counted, in the plural: "tiles", "MB".
    """

    def __call__(self, message: str, done: float = 0, total: float | None = None, unit: str = "") -> None: ...


def no_progress(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
    """Says nothing."""
