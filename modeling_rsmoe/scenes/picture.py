"""One PNG of captioned images and scenes, each with its texts set beside it; a scene with its tiles outlined and numbered.

Drawn with Pillow and the font it carries, so that it looks the same on every machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import whole_file
from ..utils.html import COLORS
from .sheet import Sheet


if TYPE_CHECKING:
    from PIL import Image

SIDE = 768  # pixels of the longer side of a picture; a smaller one is made as large
MAX_SHEETS = 50  # of one PNG, which every program can still open [our decision]
LISTED = 24  # tiles whose captions are set beside a scene
_COLUMN, _GAP, _MARGIN, _INDENT = 560, 32, 28, 16  # pixels
_TEXT, _QUIET, _LINE = "#1f2328", "#5c636b", "#dddcd6"
_OUTLINE, _HALO = "#ffffff", "#000000"


def check_picture(sheets: int) -> None:
    """
    Raises:
        RSMoEError: more images than one picture can show.
    """
    if sheets > MAX_SHEETS:
        raise RSMoEError(
            f"--picture sets at most {MAX_SHEETS} images under one another, not {sheets}: make several, or take --map"
        )


def write_picture(sheets: Sequence[Sheet], output: str | Path) -> None:
    """Write the PNG, whole or not at all: one sheet under the other.

    Args:
        sheets: at least one.

    Raises:
        RSMoEError: `check_picture`. OSError: the disk is full, for example.
    """
    from PIL import Image

    check_picture(len(sheets))
    rows = [_draw(sheet) for sheet in sheets]
    height = _MARGIN + sum(row.height + _MARGIN for row in rows)
    whole = Image.new("RGB", (max(row.width for row in rows) + 2 * _MARGIN, height), "white")
    top = _MARGIN
    for row in rows:
        whole.paste(row, (_MARGIN, top))
        top += row.height + _MARGIN
    with whole_file(output) as file:
        whole.save(file, "PNG")


def _draw(sheet: Sheet) -> "Image.Image":
    from PIL import Image

    picture = _outlined(sheet)
    column = _Column()
    _write_texts(sheet, column)
    height = max(picture.height, column.height)
    row = Image.new("RGB", (SIDE + _GAP + _COLUMN, height), "white")
    row.paste(picture, (0, 0))
    row.paste(column.image(), (SIDE + _GAP, 0))
    return row


def _outlined(sheet: Sheet) -> "Image.Image":
    """The picture at its full size, with the tiles of a scene outlined and, where there is room, numbered."""
    from PIL import Image, ImageDraw

    scale = SIDE / max(sheet.width, sheet.height)
    size = max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale))
    picture = sheet.picture.resize(size, Image.Resampling.LANCZOS)
    if len(sheet.tiles) == 1 and not sheet.skipped:
        return picture
    draw = ImageDraw.Draw(picture)
    for tile in sheet.tiles:
        left, top = tile.window.column * scale, tile.window.row * scale
        right, bottom = left + tile.window.width * scale - 1, top + tile.window.height * scale - 1
        draw.rectangle((left, top, right, bottom), outline=_HALO, width=3)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=_OUTLINE, width=1)
        if right - left > 40:
            draw.text((left + 6, top + 4), str(tile.number), _OUTLINE, _font(16), stroke_width=2, stroke_fill=_HALO)
    return picture


def _write_texts(sheet: Sheet, column: "_Column") -> None:
    column.add(sheet.name, 15, _QUIET)
    column.add(sheet.text or "(nothing)", 24, _TEXT, after=14)
    first = sheet.tiles[0]
    if len(sheet.tiles) == 1:
        for index, (name, part) in enumerate(first.parts.items()):
            color = COLORS[index % len(COLORS)][0]
            column.add(name, 19, color, bar=color)
            column.add(f"asked: {first.router_prompts.get(name) or '(nothing)'}", 16, _QUIET, bar=color)
            column.add(part or "(nothing)", 19, color, after=14, bar=color)
    else:
        for tile in sheet.tiles[:LISTED]:
            column.add(f"{tile.number}: {tile.text or '(nothing)'}", 16, _TEXT, after=4)
        if len(sheet.tiles) > LISTED:
            column.add(f"and {len(sheet.tiles) - LISTED} more tiles; a map (--map) shows them all", 16, _QUIET)
        if sheet.skipped:
            column.add(f"{sheet.skipped} tiles are mostly without data", 16, _QUIET)
    column.add(f"{sheet.model}: {sheet.asked}", 14, _QUIET, before=8)


class _Column:
    """Lines of text under one another, of a fixed width."""

    def __init__(self) -> None:
        self.height = 0
        self._lines: list[tuple[int, str, int, str, str | None]] = []  # top, text, size, color, color of a bar

    def add(self, text: str, size: int, color: str, before: int = 0, after: int = 2, bar: str | None = None) -> None:
        self.height += before
        for line in _wrap(_drawable(text), _font(size), _COLUMN - (_INDENT if bar else 0)):
            self._lines.append((self.height, line, size, color, bar))
            self.height += round(size * 1.35)
        self.height += after

    def image(self) -> "Image.Image":
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (_COLUMN, max(1, self.height)), "white")
        draw = ImageDraw.Draw(image)
        for top, line, size, color, bar in self._lines:
            if bar:
                draw.rectangle((0, top, 3, top + round(size * 1.35) + 1), fill=bar)
            draw.text((_INDENT if bar else 0, top), line, color, _font(size))
        return image


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines that fit, broken at spaces, and within words that are wider than a line."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line]


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """One line of letters that can be drawn."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split())
    )
