"""How far a job is: the one signature by which the package reports it."""

from typing import Protocol


class Progress(Protocol):
    """Called as a job goes on."""

    def __call__(self, message: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Report what the job does now.

        Args:
            message: what happens, such as "reading the data".
            done: how many units are finished.
            total: of how many, where that is known.
            unit: what is counted, such as "images".
        """


def no_progress(message: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
    """Report nothing: the default."""
