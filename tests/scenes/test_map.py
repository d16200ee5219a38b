"""The map page in a real browser without a network, opened from its file; and what stands in the file."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.scenes import map as map_page
from modeling_rsmoe.scenes.map import check_map, write_map
from tests.browser import Person, chromium, needs_chromium
from tests.evaluation.test_page import Page
from tests.scenes.views import ATTACK, EXPERTS, image, scene, texts


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name needs care in a URL."""
    path = tmp_path_factory.mktemp("maps") / "a map #1.html"
    write_map([scene(), image()], path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def reader(browser: Any, file: Path) -> Iterator[Person]:
    someone = Person(browser, file.as_uri(), offline=True, viewport={"width": 1200, "height": 800})
    someone.page.on("dialog", lambda dialog: someone.problems.append(dialog.message))
    yield someone
    assert someone.foreign == [] and someone.problems == []
    someone.context.close()


def chosen(page: Any) -> str:
    """The caption of the chosen tile."""
    return page.locator("#tile .final").inner_text()


@pytest.mark.browser
@needs_chromium
def test_a_click_shows_the_texts_of_a_tile(reader: Person) -> None:
    page = reader.page
    assert page.locator("h1").inner_text() == f"folder/{ATTACK}.tif"
    assert page.locator("#whole").inner_text() == "the whole scene"
    facts = page.locator("#facts").inner_text()
    assert facts == "900 x 600 pixels, 6 tiles, 2 mostly without data left out. “Describe.”"
    assert page.locator("#image").evaluate("one => [one.naturalWidth, one.naturalHeight]") == [450, 300]
    box = page.locator("#tiles").bounding_box()
    for number, column, row in ((0, 0.5, 0.5), (2, 2.5, 0.5), (4, 1.5, 1.5)):
        page.mouse.click(box["x"] + box["width"] * column / 3, box["y"] + box["height"] * row / 2)
        expected = texts(number)
        assert chosen(page) == expected["text"]
        assert page.locator("#tile h2").inner_text() == (
            f"tile {number}, 300 x 300 pixels at {300 * (number % 3)}, {300 * (number // 3)}, "
            f"41.25000, {9.5 + number:.5f} (latitude, longitude)"
        )
        assert page.locator("#tile h3").all_inner_texts() == list(EXPERTS)
        assert page.locator("#tile .asked").all_inner_texts() == list(expected["router_prompts"].values())
        assert page.locator("#tile .found").all_inner_texts() == list(expected["expert_texts"].values())
    colors = page.locator("#tile h3").evaluate_all("all => all.map(one => getComputedStyle(one).color)")
    assert len(set(colors)) == 3
    assert page.locator("img:not(#after)").count() == 1  # no text became one


@pytest.mark.browser
@needs_chromium
def test_keys_alone_are_enough(reader: Person) -> None:
    page = reader.page
    page.get_by_label("Search the texts").focus()
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "tiles":
            break
    assert page.evaluate("document.activeElement.id") == "tiles"
    for key, number in (("Right", 1), ("Down", 4), ("Down", 4), ("Right", 5), ("Up", 2), ("Left", 1), ("Left", 0)):
        page.keyboard.press(f"Arrow{key}")
        assert chosen(page) == texts(number)["text"]
    page.get_by_label("Search the texts").fill("caption 5")
    page.locator("#list button").focus()
    page.keyboard.press("Enter")
    assert chosen(page) == texts(5)["text"]


@pytest.mark.browser
@needs_chromium
def test_search_highlights_tiles(reader: Person) -> None:
    page, search = reader.page, reader.page.get_by_label("Search the texts")
    hits = page.locator("#hits rect")
    assert hits.count() == 0 and not page.locator("#shade").is_visible()
    assert not page.get_by_label("likely right").is_visible()  # no text of this page has a confidence
    search.fill("RIVER caption")
    assert hits.evaluate_all("all => all.map(one => one.getAttribute('x') + ',' + one.getAttribute('y'))") == [
        "300,0",
        "300,300",
    ]
    assert page.locator("#shade").is_visible()
    assert page.locator("#count").inner_text() == "3 of 7 tiles"  # one of them is of the image
    listed = page.locator("#list button").all_inner_texts()
    assert [one.endswith(f"tile {number} {texts(number)['text']}") for one, number in zip(listed, (1, 4))] == [
        True
    ] * 2
    page.locator("#list button").last.click()
    assert page.locator("h1").inner_text() == "tile.png" and chosen(page) == texts(7)["text"]
    search.fill("sees 4")  # expert texts are searched too, router prompts not
    assert page.locator("#count").inner_text() == "1 of 7 tiles"
    search.fill("theme 4?")
    assert page.locator("#count").inner_text() == "0 of 7 tiles"
    search.fill("")
    assert page.locator("#count").inner_text() == "" and hits.count() == 0


@pytest.mark.browser
@needs_chromium
def test_what_is_less_likely_right_is_shaded(browser: Any, tmp_path: Path) -> None:
    """Tile 0 is right in 10 of 100 cases, tile 1 in 30, and so on; the image says nothing of itself."""
    view = scene("scene.tif")
    sure = {"theme": 0.5, "object": None, "relation": 0.25}
    tiles = [replace(tile, confidence=(1 + 2 * tile.number) / 10, expert_confidences=sure) for tile in view.tiles[:5]]
    write_map([replace(view, tiles=[*tiles, view.tiles[5]])], tmp_path / "map.html")
    someone = Person(browser, (tmp_path / "map.html").as_uri(), offline=True)
    page, limit = someone.page, someone.page.get_by_label("likely right")
    assert page.locator("#tile .final").inner_text() == f"{texts(0)['text']} 10 %"
    found = [f"{text}{shown}" for text, shown in zip(texts(0)["expert_texts"].values(), (" 50 %", "", " 25 %"))]
    assert page.locator("#tile .found").all_inner_texts() == found
    assert not page.locator("#shade").is_visible()
    limit.fill("50")
    assert page.locator("#limit").inner_text().strip() == "at least 50 %" and page.locator("#shade").is_visible()
    assert page.locator("#count").inner_text() == "4 of 6 tiles" and page.locator("#hits rect").count() == 4
    page.get_by_label("Search the texts").fill("river")
    assert page.locator("#count").inner_text() == "1 of 6 tiles"  # number 4; number 1 is less sure
    assert someone.problems == []
    someone.context.close()


@pytest.mark.browser
@needs_chromium
def test_views_and_zoom(reader: Person) -> None:
    page = reader.page
    page.get_by_label("Image or scene").select_option("tile.png")
    assert page.locator("#facts").inner_text() == "200 x 100 pixels, 1 tile. “Describe.”"
    assert chosen(page) == texts(7)["text"]
    width = page.locator("#image").bounding_box()["width"]
    page.get_by_label("Zoom in").click()
    assert page.locator("#image").bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.02)
    page.get_by_label("Zoom out").click()
    assert page.locator("#image").bounding_box()["width"] == pytest.approx(width, rel=0.02)


def test_the_file_names_no_other(file: Path) -> None:
    content = file.read_text(encoding="utf-8")
    assert "default-src 'none'" in content and content.count("</script>") == 2 and ATTACK not in content
    attributes = [attribute for _, found in Page(file).tags for attribute in found]
    assert not {"src", "href", "srcset", "data", "action", "onerror"} & set(attributes)
    assert set(re.findall(r"https?://[^\"]*", content)) == {"http://www.w3.org/2000/svg"}  # a name, nothing is fetched


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write_map([scene("bad\udcff.tif")], tmp_path / "map.html")
    assert "<title>bad?.tif</title>" in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_too_much_for_a_page() -> None:
    check_map(map_page.MAX_VIEWS, map_page.MAX_TILES)
    with pytest.raises(RSMoEError, match="a map of 20,001 tiles is too heavy .* give a larger --tile"):
        check_map(1, map_page.MAX_TILES + 1)
    with pytest.raises(RSMoEError, match="a map shows at most 200 images, not 201"):
        check_map(map_page.MAX_VIEWS + 1, map_page.MAX_VIEWS + 1)


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "map.html").write_text("old")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_map([scene()], tmp_path / "map.html")
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    assert (tmp_path / "map.html").read_text() == "old"
