"""Markdown tables and counts."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], texts: int | None = None) -> str:
    """A table, without a line's end after its last row.

    Args:
        header: of the columns.
        rows: of cells.
        texts: how many columns, the first ones, hold texts: those after them hold numbers and are aligned right. By
            default all columns hold texts.
    """
    texts = len(header) if texts is None else texts
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(map(escaped, row))} |" for row in (header, rule, *rows))


def escaped(text: object) -> str:
    """One line that can neither end a cell nor start HTML.

    Args:
        text: of a cell, or of a line beside a table.
    """
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def count_of(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
