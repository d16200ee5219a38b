"""Views for tests of what shows them: a scene of six tiles and an image, with texts that must not be read as HTML."""

from PIL import Image

from modeling_rsmoe.inference import Prediction
from modeling_rsmoe.scenes.describe import Tile
from modeling_rsmoe.scenes.grid import Grid
from modeling_rsmoe.scenes.view import View, view_image


ATTACK = "</script><img src=x onerror=alert(1)> & ${7*7} {{7*7}}"
EXPERTS = ("theme", "object", "relation")


def texts(number: int) -> dict:
    words = ["trees", "a river", ATTACK][number % 3]
    return {
        "text": f"caption {number} with {words}",
        "router_prompts": {name: f"{name} {number}?" for name in EXPERTS},
        "expert_texts": {name: f"{name} sees {number} {words}" for name in EXPERTS},
    }


def scene(name: str = f"folder/{ATTACK}.tif") -> View:
    tiles = [Tile(number, window, 1.0, **texts(number)) for number, window in enumerate(Grid(900, 600, 300))]
    overview = Image.new("RGB", (450, 300), (60, 90, 60))
    places = [(9.5 + tile.number, 41.25) for tile in tiles]
    return View(name, "tiny", "Describe.", "the whole scene", overview, 900, 600, tiles, places, num_skipped=2)


def image(name: str = "tile.png") -> View:
    photo = Image.new("RGB", (200, 100), (90, 60, 60))
    return view_image(name, photo, Prediction(**texts(7)), "Describe.", "tiny", 100)
