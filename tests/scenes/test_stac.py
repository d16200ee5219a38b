"""STAC items and item collections: which files they name, and that nothing is asked of a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.files import is_stac
from modeling_rsmoe.scenes.stac import find_scenes


TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(name: str = "S2A_1", **assets: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "links": [{"rel": "self", "href": "https://example.com/elsewhere/item.json"}],
        "assets": assets,
    }


def asset(href: str, kind: str | None = TIFF, roles: tuple[str, ...] = ("data",)) -> dict[str, Any]:
    return {"href": href, "roles": list(roles)} | ({"type": kind} if kind else {})


def save(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def collection(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def test_an_item_s_visual_asset(tmp_path: Path) -> None:
    bands = {name: asset(f"./{name}.tif") for name in ("red", "green", "blue")}
    path = save(tmp_path / "item.json", item(visual=asset("./TCI.tif"), **bands))
    (scene,) = find_scenes(path)
    assert (scene.name, scene.paths, scene.bands) == ("S2A_1", (str(tmp_path / "TCI.tif"),), None)
    (scene,) = find_scenes(path, ("red", "green", "blue"))
    assert scene.paths == tuple(str(tmp_path / f"{name}.tif") for name in bands) and scene.bands is None
    (scene,) = find_scenes(path, (3, 2, 1))
    assert scene.paths == (str(tmp_path / "TCI.tif"),) and scene.bands == (3, 2, 1)
    (scene,) = find_scenes(path, asset="blue")
    assert scene.paths == (str(tmp_path / "blue.tif"),)


def test_the_only_raster_and_the_role(tmp_path: Path) -> None:
    thumbnail = asset("t.png", "image/png", ("thumbnail",))
    path = save(tmp_path / "a.json", item(meta=asset("m.xml", "text/xml"), small=thumbnail, data=asset("d.tif", None)))
    assert find_scenes(path)[0].paths == (str(tmp_path / "d.tif"),)
    path = save(tmp_path / "b.json", item(x=asset("x.tif"), shown=asset("y.tif", TIFF, ("visual",))))
    assert find_scenes(path)[0].paths == (str(tmp_path / "y.tif"),)


def test_an_item_collection(tmp_path: Path) -> None:
    path = save(tmp_path / "all.json", collection(*(item(f"i{n}", visual=asset(f"{n}.tif")) for n in range(3))))
    assert [scene.name for scene in find_scenes(path)] == ["i0", "i1", "i2"]
    assert is_stac(path) and is_stac("https://a/b.json?x=1") and not is_stac("a.tif")


def test_a_network_is_asked_only_if_it_is_named(tmp_path: Path) -> None:
    for href in ("https://example.com/a.tif", "s3://bucket/a.tif", "/vsicurl/http://example.com/a.tif"):
        path = save(tmp_path / "item.json", item(visual=asset(href)))
        with pytest.raises(RSMoEError, match="which is read over a network: allow it by --remote"):
            find_scenes(path)
        assert find_scenes(path, remote=True)[0].paths[0].endswith(href)
    path = save(tmp_path / "item.json", item(visual=asset(f"file://{tmp_path}/a%20b.tif")))
    assert find_scenes(path)[0].paths == (f"{tmp_path}/a b.tif",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "Catalog"}, "is a collection or catalog without items"),
        ({"type": "Map"}, "is no STAC item, item collection or catalog .its type is 'Map'"),
        ([], "it holds no JSON object"),
        (collection(), "is a collection or catalog without items"),
        (collection({"type": "Feature"}), "holds a feature that is no STAC item"),
        ({"type": "FeatureCollection", "features": 3}, "is no STAC item"),
        (collection(3), "holds a feature that is no STAC item"),  # type: ignore[arg-type]
        (item(), r"has 0 rasters \(none\)"),
        (
            item(a=asset("a.tif"), b=asset("b.tif")),
            r"has 2 rasters \(a, b\) and none called 'visual': name one with --asset",
        ),
    ],
)
def test_what_is_no_item(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(RSMoEError, match=message):
        find_scenes(save(tmp_path / "x.json", content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("text.json", "deep.json", "bytes.json"):
        with pytest.raises(RSMoEError, match="cannot be read as JSON"):
            find_scenes(str(tmp_path / name))
    with pytest.raises(RSMoEError, match="there is no file"):
        find_scenes(str(tmp_path / "lost.json"))
    with pytest.raises(RSMoEError, match="has no asset 'nir'; it has visual"):
        find_scenes(save(tmp_path / "i.json", item(visual=asset("a.tif"))), asset="nir")
