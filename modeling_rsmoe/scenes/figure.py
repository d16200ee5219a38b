"""One PNG of captioned images and scenes, each with its texts beside it; a scene with its tiles outlined and numbered.

Drawn with Pillow and the font it carries, so that it is the same on every machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import whole_file
from ..utils.html import COLORS
from .change_words import NOTE, summarize_differences
from .view import View


if TYPE_CHECKING:
    from PIL import Image

SIDE = 768  # pixels of the longer side of an image; a smaller one is enlarged
MAX_VIEWS = 50  # of one PNG, which every program can still open [our decision]
MAX_LISTED = 24  # tiles whose captions stand beside a scene
_TEXT_WIDTH, _GAP, _MARGIN, _INDENT = 560, 32, 28, 16  # pixels
_LINE_HEIGHT = 1.35  # of the font's size
_TEXT, _QUIET = "#1f2328", "#5c636b"
_OUTLINE, _HALO = "#ffffff", "#000000"


def check_figure(num_views: int) -> None:
    """Refuse more images and scenes than one figure can show."""
    if num_views > MAX_VIEWS:
        raise RSMoEError(
            f"--figure sets at most {MAX_VIEWS} images under one another, not {num_views}: make several, or take --map"
        )


def write_figure(views: Sequence[View], output: str | Path) -> None:
    """Write the PNG, whole or not at all: one view under the other."""
    from PIL import Image

    check_figure(len(views))
    drawings = []
    for view in views:
        column = _TextColumn()
        _add_texts(view, column)
        drawings.append((_images(view), column.image()))
    height = _MARGIN + sum(max(image.height, texts.height) + _MARGIN for image, texts in drawings)
    figure = Image.new("RGB", (SIDE + _GAP + _TEXT_WIDTH + 2 * _MARGIN, height), "white")
    top = _MARGIN
    for image, texts in drawings:
        figure.paste(image, (_MARGIN, top))
        figure.paste(texts, (_MARGIN + SIDE + _GAP, top))
        top += max(image.height, texts.height) + _MARGIN
    with whole_file(output) as file:
        figure.save(file, "PNG")


def _images(view: View) -> "Image.Image":
    """The image; of two dates the later one under the earlier one."""
    from PIL import Image

    before = _outlined(view)
    if view.after is None:
        return before
    images = Image.new("RGB", (before.width, 2 * before.height + _GAP), "white")
    images.paste(before, (0, 0))
    images.paste(_outlined(view.after), (0, before.height + _GAP))
    return images


def _outlined(view: View) -> "Image.Image":
    """The image at its full size, with the tiles of a scene outlined and, where there is room, numbered."""
    from PIL import Image, ImageDraw

    scale = SIDE / max(view.width, view.height)
    size = max(1, round(view.width * scale)), max(1, round(view.height * scale))
    image = view.image.resize(size, Image.Resampling.LANCZOS)
    if len(view.tiles) == 1 and not view.num_skipped:
        return image
    draw = ImageDraw.Draw(image)
    for tile in view.tiles:
        left, top = tile.window.column * scale, tile.window.row * scale
        right, bottom = left + tile.window.width * scale - 1, top + tile.window.height * scale - 1
        draw.rectangle((left, top, right, bottom), outline=_HALO, width=3)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=_OUTLINE, width=1)
        if right - left > 40:
            draw.text((left + 6, top + 4), str(tile.number), _OUTLINE, _font(16), stroke_width=2, stroke_fill=_HALO)
    return image


def _add_texts(view: View, column: "_TextColumn") -> None:
    if view.after is not None:
        _add_change(view, view.after, column)
        return
    column.add(view.name, 15, _QUIET)
    column.add(view.text or "(nothing)", 24, _TEXT, after=14)
    if len(view.tiles) == 1:
        tile = view.tiles[0]
        for index, (name, text) in enumerate(tile.expert_texts.items()):
            color = COLORS[index % len(COLORS)][0]
            column.add(name, 19, color, bar=color)
            column.add(f"asked: {tile.router_prompts.get(name) or '(nothing)'}", 16, _QUIET, bar=color)
            column.add(text or "(nothing)", 19, color, after=14, bar=color)
    else:
        for tile in view.tiles[:MAX_LISTED]:
            column.add(f"{tile.number}: {tile.text or '(nothing)'}", 16, _TEXT, after=4)
        if len(view.tiles) > MAX_LISTED:
            column.add(f"and {len(view.tiles) - MAX_LISTED} more tiles; a map (--map) shows them all", 16, _QUIET)
        if view.num_skipped:
            column.add(f"{view.num_skipped} tiles are mostly without data", 16, _QUIET)
    column.add(f"{view.model}: {view.instruction}", 14, _QUIET, before=8)


def _add_change(before: View, after: View, column: "_TextColumn") -> None:
    for when, view in (("before", before), ("after", after)):
        column.add(f"{when}: {view.name}", 15, _QUIET)
        column.add(view.text or "(nothing)", 24, _TEXT, after=14)
    column.add(summarize_differences(before.differences), 19, _TEXT, after=14)
    for tile, difference in list(zip(before.tiles, before.differences, strict=True))[:MAX_LISTED]:
        column.add(f"{tile.number}: {difference.text}", 16, _TEXT, after=4)
    if len(before.tiles) > MAX_LISTED:
        column.add(f"and {len(before.tiles) - MAX_LISTED} more tiles; a map (--map) shows them all", 16, _QUIET)
    column.add(f"{before.model}: {before.instruction} Note: {NOTE}.", 14, _QUIET, before=8)


class _TextColumn:
    """Lines of text under one another, of a fixed width."""

    def __init__(self) -> None:
        self.height = 0
        self._lines: list[tuple[int, str, int, str, str | None]] = []  # top, text, size, color, color of a bar

    def add(self, text: str, size: int, color: str, before: int = 0, after: int = 2, bar: str | None = None) -> None:
        self.height += before
        for line in _wrap(_drawable(text), _font(size), _TEXT_WIDTH - (_INDENT if bar else 0)):
            self._lines.append((self.height, line, size, color, bar))
            self.height += round(size * _LINE_HEIGHT)
        self.height += after

    def image(self) -> "Image.Image":
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (_TEXT_WIDTH, max(1, self.height)), "white")
        draw = ImageDraw.Draw(image)
        for top, line, size, color, bar in self._lines:
            if bar:
                draw.rectangle((0, top, 3, top + round(size * _LINE_HEIGHT) + 1), fill=bar)
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
    """One line of characters that can be drawn."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split())
    )
