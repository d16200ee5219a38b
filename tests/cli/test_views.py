"""`rsmoe caption --map --figure`, on images and on scenes. The model is tiny and random."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_cli import errors, refuse_to_load, run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def data_of(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_an_image(photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    page, figure = tmp_path / "new" / "map.html", tmp_path / "figure.png"
    options = ("--model", checkpoint, "--map", page, "--figure", figure)
    result = run("caption", photo, *options, "--json")
    told = json.loads(result.stdout)
    (view,) = data_of(page)
    assert (view["name"], view["text"], view["width"], view["height"]) == ("photo.png", told["caption"], 50, 40)
    (tile,) = view["tiles"]
    assert tile["window"] == [0, 0, 50, 40] and tile["place"] is None
    for place, (name, prompt) in enumerate(told["router_prompts"].items()):
        assert tile["steps"][place] == [name, place, prompt, told["expert_texts"][name], None]
    with Image.open(figure) as opened:
        assert opened.width > 1000
    assert "map.html exists: give another name, or --overwrite" in errors(run("caption", photo, *options))[0]
    again = run("caption", photo, *options, "--overwrite")
    assert again.exit_code == 0 and f"{page} (0.0 MB)" in again.stdout


def test_a_scene(checkpoint: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason='no rasterio here: pip install "rsmoe[geo]"')
    from rasterio.warp import transform

    file, page = tmp_path / "scene.tif", tmp_path / "map.html"
    values = np.random.default_rng(0).integers(1, 4000, (3, 60, 90)).astype(np.uint16)
    values[:, :30, :30] = 0  # one tile without data
    profile = {"driver": "GTiff", "height": 60, "width": 90, "count": 3, "dtype": "uint16", "nodata": 0}
    place = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)  # on the middle meridian of zone 32
    with rasterio.open(file, "w", crs="EPSG:32632", transform=place, **profile) as opened:
        opened.write(values)
    result = run("caption", file, "--tile", 30, "--model", checkpoint, "--json", "--map", page)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    (view,) = data_of(page)
    assert (view["width"], view["height"], view["skipped"]) == (90, 60, 1)
    assert [tile["window"] for tile in view["tiles"]] == [
        [30 * column, 30 * row, 30, 30] for row in range(2) for column in range(3) if (column, row) != (0, 0)
    ]
    captions = [line["caption"] for line in lines if "tile" in line]
    assert [tile["text"] for tile in view["tiles"]] == captions and len(captions) == 5
    latitude, longitude = map(float, view["tiles"][0]["place"].split(","))
    expected = transform("EPSG:32632", "EPSG:4326", [500_450], [4_999_850])
    assert longitude == pytest.approx(expected[0][0], abs=2e-4) and latitude == pytest.approx(expected[1][0], abs=2e-4)


def test_refused_before_the_model_is_loaded(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)
    (tmp_path / "file").touch()
    for options, message in [
        (("--map", tmp_path / "map.txt"), "--map .*map.txt does not end in .html"),
        (("--figure", tmp_path / "figure.jpg"), "--figure .*figure.jpg does not end in .png"),
        (("--map", photo.parent / "file" / "map.html"), "cannot write"),
    ]:
        (line,) = errors(run("caption", photo, *options))
        assert re.search(message, line), line
    (line,) = errors(run("caption", *[photo] * 51, "--figure", tmp_path / "f.png"))
    assert "at most 50 images" in line
