"""Two dates on the page, in a real browser without a network, and as a figure."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.scenes import figure
from modeling_rsmoe.scenes.change_words import NOTE, compare
from modeling_rsmoe.scenes.figure import write_figure
from modeling_rsmoe.scenes.map import write_map
from modeling_rsmoe.scenes.view import View
from tests.browser import Person, chromium, needs_chromium
from tests.scenes.views import ATTACK, image, scene, texts


RED, BLUE = (200, 30, 30), (30, 30, 200)


def two_dates() -> View:
    """Six tiles; the fifth is another on the later date. The earlier image is red, the later one blue."""
    before = replace(scene("before.tif"), image=Image.new("RGB", (450, 300), RED))
    roads = {"theme": "A road.", "object": "A road.", "relation": "A road."}
    tiles = [replace(tile, text="A road.", expert_texts=roads) if tile.number == 4 else tile for tile in before.tiles]
    after = replace(before, name=f"after{ATTACK}.tif", text="the later scene", tiles=tiles)
    after = replace(after, image=Image.new("RGB", (450, 300), BLUE))
    return replace(before, after=after, differences=[compare(*pair) for pair in zip(before.tiles, tiles)])


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Person]:
    write_map([two_dates(), image()], tmp_path / "map.html")
    with chromium() as browser:
        page = (tmp_path / "map.html").as_uri()
        someone = Person(browser, page, offline=True, viewport={"width": 1200, "height": 800})
        yield someone
        assert someone.foreign == [] and someone.problems == []


def color_at(page: Any, share: float, tmp_path: Path) -> np.ndarray:
    """RGB at this share of the width of the image, in its lower row of tiles."""
    box = page.locator("#frame").bounding_box()
    clip = {"x": box["x"] + share * box["width"], "y": box["y"] + 0.6 * box["height"], "width": 2, "height": 2}
    page.screenshot(path=tmp_path / "shot.png", clip=clip)
    with Image.open(tmp_path / "shot.png") as shot:
        return np.asarray(shot.convert("RGB"))[0, 0]


@pytest.mark.browser
@needs_chromium
def test_a_slider_between_the_dates(reader: Person, tmp_path: Path) -> None:
    page = reader.page
    slider = page.get_by_label("Before to the left, after to the right")
    for value, colors in (("50", (RED, BLUE)), ("0", (BLUE, BLUE)), ("100", (RED, RED)), ("90", (RED, RED))):
        slider.fill(value)
        for share, color in zip((0.15, 0.85), colors):
            assert np.abs(color_at(page, share, tmp_path).astype(int) - color).max() < 12, (value, share)
    boxes = slider.bounding_box(), page.locator("#frame").bounding_box()
    assert boxes[0]["width"] == pytest.approx(boxes[1]["width"], abs=2), "its thumb stands over the line"
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "88.5"
    assert page.locator("#earlier").inner_text() == "before: before.tif"
    page.get_by_label("Zoom in").click()  # the slider stays with what is seen
    slider.fill("50")
    assert np.abs(color_at(page, 0.45, tmp_path).astype(int) - RED).max() < 12
    assert np.abs(color_at(page, 0.6, tmp_path).astype(int) - BLUE).max() < 12


@pytest.mark.browser
@needs_chromium
def test_both_dates_of_a_tile(reader: Person) -> None:
    page = reader.page
    assert page.locator("h1").inner_text().startswith("before.tif → ")
    whole = page.locator("#whole").inner_text()
    assert "In 1 of 6 tiles the descriptions name different things." in whole and f"Note: {NOTE}." in whole
    assert "before: the whole scene" in whole and "after: the later scene" in whole
    assert page.locator("rect.differs").evaluate_all("all => all.map(one => one.getAttribute('x'))") == ["300"]
    page.get_by_label("Search the texts").fill("road")
    assert page.locator("#count").inner_text() == "1 of 7 tiles"
    page.locator("#list button").click()
    found = page.locator("#tile .final").all_inner_texts()
    assert found == ["Named after, not before: road. Named before, not after: river.", texts(4)["text"], "A road."]
    assert page.locator("#tile .step").first.locator("dt").all_inner_texts() == [
        "asked before",
        "found before",
        "asked after",
        "found after",
    ]
    page.get_by_label("Image or scene").select_option("tile.png")
    assert not page.locator("#swipe").is_visible() and not page.locator("#after").is_visible()
    assert page.locator("#whole").inner_text() == texts(7)["text"]


def test_a_figure_of_both(tmp_path: Path) -> None:
    write_figure([two_dates()], tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as drawn:
        pixels = np.asarray(drawn)
    height = figure.SIDE * 2 // 3
    tops = figure._MARGIN, figure._MARGIN + height + figure._GAP
    for top, color in zip(tops, (RED, BLUE)):
        assert (pixels[top + height // 4, figure._MARGIN + figure.SIDE // 6] == color).all()
