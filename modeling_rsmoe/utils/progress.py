"""How far a job is: the one signature that every long job reports with."""

from typing import Protocol


class Progress(Protocol):
    """What a long job calls now and then."""

    def __call__(self, message: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Take note of how far the job is.

        Args:
            message: what is being done, such as "downloading the weights".
            done: how much of it is done.
            total: how much there is; None where nobody knows.
            unit: what is counted, such as "images" or "MB".
        """


def no_progress(message: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
    """The default: nobody wants to know."""
