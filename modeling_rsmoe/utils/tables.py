"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a line's end after its last row; pipes and line ends inside cells are escaped.

    Args:
        header: of the columns.
        rows: of cells.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return " ".join(str(cell).replace("|", "\\|").split("\n"))
