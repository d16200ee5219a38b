"""Images with their texts beside them: nothing runs over the edge, experts have their colours, tiles are outlined."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.scenes import figure
from modeling_rsmoe.scenes.figure import check_figure, write_figure
from modeling_rsmoe.utils.html import COLORS
from tests.scenes.views import image, scene


def drawn(views: list, folder: Path) -> np.ndarray:
    write_figure(views, folder / "figure.png")
    with Image.open(folder / "figure.png") as opened:
        assert opened.format == "PNG" and opened.mode == "RGB"
        return np.asarray(opened)


def has(pixels: np.ndarray, color: str) -> bool:
    return bool((pixels == ImageColor.getrgb(color)).all(axis=-1).any())


def test_an_image_and_its_texts(tmp_path: Path) -> None:
    pixels = drawn([image()], tmp_path)
    margin, side = figure._MARGIN, figure.SIDE
    assert (pixels[margin : margin + side // 2, margin : margin + side] == (90, 60, 60)).all()  # 2 : 1, as it was
    beside = pixels[:, margin + side :]
    assert all(has(beside, light) for light, _ in COLORS[:3]) and not has(beside, COLORS[3][0])
    assert (pixels[:, -margin:] == 255).all() and (pixels[-margin:] == 255).all() and (pixels[:margin] == 255).all()


def test_a_scene_has_its_tiles_outlined_and_listed(tmp_path: Path) -> None:
    margin, side = figure._MARGIN, figure.SIDE
    pixels = drawn([scene()], tmp_path)[margin:, margin : margin + side]
    edge, inner = side // 3, side // 6
    assert (pixels[inner, edge - 3 : edge + 3] == 255).all(axis=-1).any()  # a white line where two tiles meet
    assert (pixels[inner + 40, inner + 20 : edge - 10] == (60, 90, 60)).all()
    listed = figure._TextColumn()
    figure._add_texts(scene(), listed)
    texts = [text for _, text, *_ in listed._lines]
    assert "1: caption 1 with a river" in texts and "2 tiles are mostly without data" in texts
    many = scene()
    many = replace(many, tiles=[*many.tiles] * 10, places=[*many.places] * 10)
    listed = figure._TextColumn()
    figure._add_texts(many, listed)
    assert "and 36 more tiles; a map (--map) shows them all" in [text for _, text, *_ in listed._lines]


@pytest.mark.parametrize("text", ["w" * 300, "many words " * 60, "", "\x1b[31m\nred \udcff \u4e2d\u6587"])
def test_every_text_stays_in_its_column(text: str, tmp_path: Path) -> None:
    pixels = drawn([replace(image(), text=text, name=text)], tmp_path)
    assert (pixels[:, -figure._MARGIN :] == 255).all() and (pixels[-figure._MARGIN :] == 255).all()


def test_views_stand_under_one_another(tmp_path: Path) -> None:
    one, other = (drawn([view], tmp_path) for view in (image(), scene()))
    both = drawn([image(), scene()], tmp_path)
    assert both.shape == (one.shape[0] + other.shape[0] - figure._MARGIN, one.shape[1], 3)
    assert (both[: one.shape[0]] == one).all() and (both[one.shape[0] - figure._MARGIN :] == other).all()
    check_figure(figure.MAX_VIEWS)
    with pytest.raises(RSMoEError, match="at most 50 images under one another, not 51"):
        check_figure(figure.MAX_VIEWS + 1)
