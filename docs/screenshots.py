"""Make the pictures of the program at work, light and dark, from real output of rs-moe-nano.

    make screenshots          # or: python -m docs.screenshots [--output docs/images]

The image is the tile of `rsmoe caption --demo` (USGS, public domain). It needs the extras `demo` and `geo`, Playwright
and the system's Chromium. The same checkpoint gives the same texts, and the same fonts the same pictures.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_rsmoe.demo.page import launch, make_page
from modeling_rsmoe.hub.download import demo_image, demo_images
from modeling_rsmoe.inference import Checkpoint, Prediction, Predictor, load
from modeling_rsmoe.scenes import describe_scene
from modeling_rsmoe.scenes.figure import write_figure
from modeling_rsmoe.scenes.map import SIDE, write_map
from modeling_rsmoe.scenes.view import View, view_scene
from modeling_rsmoe.utils.html import data_url, render
from tests.browser import chromium


DOCS = Path(__file__).resolve().parent
TILE = 256  # pixels: four tiles of that scene
QUESTION = "Is there a pond?"
SCHEMES = ("light", "dark")
MAX_BYTES = 400_000  # of one picture


@contextmanager
def window(browser: Any, scheme: str, width: int, height: int, url: str, scale: float = 1.5) -> Iterator[Any]:
    """A page in a window of its own, `scale` pixels of the picture for each of CSS."""
    size = {"width": width, "height": height}
    context = browser.new_context(color_scheme=scheme, viewport=size, device_scale_factor=scale)
    context.set_default_timeout(180_000)
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def save(png: bytes, file: Path) -> None:
    """Write a screenshot in 256 colors: less than half the size, and the same to the eye."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    if file.stat().st_size > MAX_BYTES:
        raise SystemExit(f"error: {file} has {file.stat().st_size} bytes, more than {MAX_BYTES}")
    print(f"{file} ({file.stat().st_size / 1e3:.0f} kB)")


def in_both_schemes(name: str, output: Path, shoot: Callable[[str], bytes]) -> None:
    """Write NAME-light.png and NAME-dark.png."""
    for scheme in SCHEMES:
        save(shoot(scheme), output / f"{name}-{scheme}.png")


def hero(browser: Any, output: Path, work: Path, image: Image.Image, prediction: Prediction, view: View) -> None:
    """An image, what led to its caption, and a small map: on top of README."""
    file = work / "hero.html"
    pictures = {
        "image": data_url(image, 95),
        "small": data_url(image.resize((304, 304), Image.Resampling.LANCZOS), 95),
    }
    page = render(DOCS / "hero.html", title="RS-MoE", prediction=prediction, view=view, side=TILE, **pictures)
    file.write_text(page, encoding="utf-8")

    def shoot(scheme: str) -> bytes:
        with window(browser, scheme, 800, 600, file.as_uri(), 2) as page:
            return page.locator("main").screenshot()

    in_both_schemes("hero", output, shoot)


def map_page(browser: Any, output: Path, work: Path, view: View) -> None:
    """The page of `--map`, a tile chosen."""
    file = work / "map.html"
    write_map([view], file)

    def shoot(scheme: str) -> bytes:
        with window(browser, scheme, 1080, 830, file.as_uri()) as page:
            box = page.locator("#tiles").bounding_box()
            page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.75)
            page.mouse.move(0, 0)
            return page.screenshot()

    in_both_schemes("map", output, shoot)


def demo_page(browser: Any, output: Path, checkpoint: Checkpoint, tile: Path) -> None:
    """The page of `rsmoe demo`: the caption of a dropped image, and an answer."""
    demo = make_page(checkpoint, demo_images())
    url, _ = launch(demo, "127.0.0.1")

    def shoot(scheme: str) -> bytes:
        with window(browser, scheme, 1280, 850, url) as page:
            page.locator("#file input[type=file]").set_input_files(str(tile))
            page.locator("#caption .rsmoe-prediction[aria-busy=false]").wait_for()
            page.get_by_label("Question about this image").fill(QUESTION)
            page.get_by_role("button", name="Ask").click()
            page.locator("#answers .rsmoe-prediction[aria-busy=false]").filter(has_text=QUESTION).wait_for()
            page.mouse.move(0, 0)
            return page.screenshot()

    try:
        in_both_schemes("demo", output, shoot)
    finally:
        demo.close(verbose=False)


def figure(output: Path, work: Path, view: View) -> None:
    """The picture of `--figure`: of one look, as it is for papers and slides."""
    file = work / "figure.png"
    write_figure([view], file)
    save(file.read_bytes(), output / "figure.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS / "images", help="a folder")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = load()
    predictor = Predictor(checkpoint.model, checkpoint.processor)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        work = Path(folder)
        tile = Path(shutil.copy(demo_image(), work / "tile.tif"))
        image = Image.open(tile).convert("RGB")
        (prediction,) = predictor.predict([tile])
        view = view_scene(describe_scene(tile, predictor, tile=TILE), SIDE)
        hero(browser, output, work, image, prediction, view)
        map_page(browser, output, work, view)
        demo_page(browser, output, checkpoint, tile)
        figure(output, work, view)


if __name__ == "__main__":
    main()
