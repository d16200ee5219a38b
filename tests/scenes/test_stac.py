"""STAC items and item collections: which files they name, and that nothing is asked of a network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.files import is_stac
from modeling_rsmoe.scenes.pipeline import open_scenes
from modeling_rsmoe.scenes.stac import find_scenes
from tests.scenes.rasters import UTM, noise, write_raster


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


def touch(folder: Path, *names: str) -> None:
    """Files that items name: which ones are found without opening them."""
    for name in names:
        (folder / name).touch()


def collection(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def test_an_item_s_visual_asset(tmp_path: Path) -> None:
    bands = {name: asset(f"./{name}.tif") for name in ("red", "green", "blue")}
    touch(tmp_path, "TCI.tif", *(f"{name}.tif" for name in bands))
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
    touch(tmp_path, "d.tif", "y.tif")
    thumbnail = asset("t.png", "image/png", ("thumbnail",))
    path = save(tmp_path / "a.json", item(meta=asset("m.xml", "text/xml"), small=thumbnail, data=asset("d.tif", None)))
    assert find_scenes(path)[0].paths == (str(tmp_path / "d.tif"),)
    path = save(tmp_path / "b.json", item(x=asset("x.tif"), shown=asset("y.tif", TIFF, ("visual",))))
    assert find_scenes(path)[0].paths == (str(tmp_path / "y.tif"),)


def test_an_item_collection(tmp_path: Path) -> None:
    touch(tmp_path, "0.tif", "1.tif", "2.tif")
    path = save(tmp_path / "all.json", collection(*(item(f"i{n}", visual=asset(f"{n}.tif")) for n in range(3))))
    assert [scene.name for scene in find_scenes(path)] == ["i0", "i1", "i2"]
    assert is_stac(path) and is_stac("https://a/b.json?x=1") and not is_stac("a.tif")


def test_a_network_is_asked_only_if_it_is_named(tmp_path: Path) -> None:
    for href in ("https://example.com/a.tif", "s3://bucket/a.tif", "/vsicurl/http://example.com/a.tif"):
        path = save(tmp_path / "item.json", item(visual=asset(href)))
        with pytest.raises(RSMoEError, match="which is read over a network: allow it by --remote"):
            find_scenes(path)
        assert find_scenes(path, remote=True)[0].paths[0].endswith(href)


@pytest.mark.parametrize("href", ["a%20b.tif", "./a%20b.tif", "a b.tif", "file://{}/a%20b.tif", "{}/a%20b.tif"])
def test_a_space_is_written_as_20_or_as_it_is(tmp_path: Path, href: str) -> None:
    touch(tmp_path, "a b.tif")
    path = save(tmp_path / "item.json", item(visual=asset(href.format(tmp_path))))
    assert find_scenes(path)[0].paths == (f"{tmp_path}/a b.tif",)


def test_a_percent_sign_of_a_name_s_own(tmp_path: Path) -> None:
    folder = tmp_path / "50%25"
    folder.mkdir()
    touch(folder, "a b.tif", "c%20d.tif")
    path = save(folder / "items.json", collection(item(visual=asset("a%20b.tif")), item(visual=asset("c%20d.tif"))))
    assert [scene.paths for scene in find_scenes(path)] == [(f"{folder}/a b.tif",), (f"{folder}/c%20d.tif",)]


def test_a_missing_file_names_item_and_asset(tmp_path: Path) -> None:
    path = save(tmp_path / "item.json", item(visual=asset("lost.tif")))
    lost = f"asset 'visual' of item S2A_1 in {path} is {tmp_path}/lost.tif, which is not there"
    with pytest.raises(RSMoEError, match=lost):
        find_scenes(path)


def with_bands(href: str, *names: Any, field: str = "eo:bands") -> dict[str, Any]:
    return asset(href) | {field: [{"name": own, "common_name": common} for own, common in names]}


def landsat(tmp_path: Path) -> dict[str, Any]:
    touch(tmp_path, "B4.tif", "B3.tif", "B2.tif", "B6.tif", "B7.tif", "all.tif")
    return {
        "preview": with_bands("small.png", ("p", "red")) | {"roles": ["thumbnail"]},
        "B4": with_bands("B4.tif", ("OLI_B4", "red")),
        "green_band": {**asset("B3.tif"), "bands": [{"name": "OLI_B3", "eo:common_name": "green"}]},  # STAC 1.1
        "B2": {**asset("B2.tif"), "eo:common_name": "blue"},
        "B6": with_bands("B6.tif", ("OLI_B6", "swir")),
        "B7": with_bands("B7.tif", ("OLI_B7", "swir")),
        "stack": with_bands("all.tif", ("x", "red"), ("y", "green"), ("z", "blue"), ("v", "nir")),
    }


@pytest.mark.parametrize(
    ("bands", "files", "found"),
    [
        (("red", "green", "blue"), "B4 B3 B2", [(0, 1), (1, 1), (2, 1)]),
        (("OLI_B3", "B2", "Red"), "B3 B2 B4", [(0, 1), (1, 1), (2, 1)]),
        (("nir", "red", "z"), "all B4", [(0, 4), (1, 1), (0, 3)]),
        (("nir",), "all", [(0, 4)]),
        (("B4", "B2", "B6"), "B4 B2 B6", None),
    ],
)
def test_bands_are_found_in_several_assets(tmp_path: Path, bands: Any, files: str, found: Any) -> None:
    (scene,) = find_scenes(save(tmp_path / "i.json", item(**landsat(tmp_path))), bands)
    assert scene.paths == tuple(str(tmp_path / f"{file}.tif") for file in files.split()) and scene.bands == found


def test_bands_of_one_asset_have_its_names(tmp_path: Path) -> None:
    path = save(tmp_path / "i.json", item(**landsat(tmp_path)))
    (scene,) = find_scenes(path, ("nir", "red", "green"), asset="stack")
    assert scene.paths == (str(tmp_path / "all.tif"),) and scene.bands == [(0, 4), (0, 1), (0, 2)]
    assert find_scenes(path, (3, 2, 1), asset="stack")[0].bands == (3, 2, 1)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (("swir", "red", "green"), r"has several bands 'swir' \(1 of asset B6, 1 of asset B7\): name an asset"),
        (("red", "green", "teal"), "has no band 'teal'; it has red, green, blue, swir, nir"),
        (None, "--asset B4, or three bands, for example --bands red,green,blue$"),
    ],
)
def test_errors_name_what_the_item_has(tmp_path: Path, bands: Any, message: str) -> None:
    with pytest.raises(RSMoEError, match=message):
        find_scenes(save(tmp_path / "i.json", item(**landsat(tmp_path))), bands)


def test_what_is_shown_is_what_was_asked_for(tmp_path: Path) -> None:
    values = noise(4, 10, 12, "uint8", 255)
    write_raster(tmp_path / "red.tif", values[:1], **UTM)
    write_raster(tmp_path / "more.tif", values[1:], **UTM)
    assets = {"B4": with_bands("red.tif", ("B4", "red"))}
    assets["more"] = with_bands("more.tif", ("B2", "blue"), ("B3", "green"), ("B8", "nir"), field="bands")
    path = save(tmp_path / "i.json", item(**assets))
    (raster,) = open_scenes([path], bands=("nir", "red", "green"))
    assert (np.asarray(raster.read().image) == np.moveaxis(values[[3, 0, 2]], 0, -1)).all()
    raster.close()
    assets["B4"]["eo:bands"].append({"name": "B5"})  # that the file does not have
    with pytest.raises(RSMoEError, match="has no band 2 in its file 1; it has 1 gray, 2 red, 3 green, 4 blue"):
        open_scenes([save(tmp_path / "i.json", item(**assets))], bands=("b5", "green", "blue"))


def test_a_radar_item_is_shown_without_a_choice(tmp_path: Path) -> None:
    touch(tmp_path, "vh.tif", "vv.tif")
    path = save(tmp_path / "i.json", item(vh=asset("vh.tif"), vv=asset("vv.tif"), noise=asset("n.xml", "text/xml")))
    (scene,) = find_scenes(path)
    assert scene.paths == (f"{tmp_path}/vv.tif", f"{tmp_path}/vh.tif") and scene.bands == [(0, 1), (1, 1)]
    assert find_scenes(path, ("vh",))[0].paths == (f"{tmp_path}/vh.tif",)


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
            r"has 2 rasters \(a, b\) and none called 'visual': name one, for example --asset a$",
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
