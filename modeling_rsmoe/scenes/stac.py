"""STAC items, item collections and static catalogs as lists of rasters. Reads their JSON with pystac; opens no raster.

[our decision] Of an item's assets the one is taken that is named; else those of the bands that are asked for, by the
assets' names or by names and common names of their bands (`bands`, `eo:bands`), an asset with fewer bands first; else
the asset `visual`, one with the role "visual", the only raster, or a radar's pair (`vv` and `vh`). Relative names are
relative to where the JSON lies, not to its link to itself. A local item may name files on a network: they are read
only with `remote`, so that a file cannot cause requests by itself.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.rasters.drivers import EXTRA, is_gdal_path, is_remote
from ..utils.rasters.radar import find_pair


VISUAL = "visual"
MAX_BYTES = 64 * 2**20  # of an item collection's JSON
_RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/png", "image/jpeg", "image/webp")
_RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".webp", ".vrt")
_NOT_SHOWN = ("thumbnail", "overview", "metadata")  # roles
_CATALOGS = ("Catalog", "Collection")


@dataclass(frozen=True)
class Scene:
    """A raster to open, its name, files and bands as of `open_raster`."""

    name: str
    paths: tuple[str, ...]
    bands: Sequence[int | str | tuple[int, int]] | None


def find_scenes(
    path: str, bands: Sequence[int | str] | None = None, asset: str | None = None, remote: bool = False
) -> list[Scene]:
    """The rasters of a STAC item, item collection or static catalog, one for each item, in their order.

    Args:
        path: of the JSON; a URL is fetched, because it was named. Of a catalog or collection the items that it links
            to are read, and those of the catalogs below it.
        bands: names of assets or of their bands, or what `open_raster` takes.
        asset: the asset to take from every item.
        remote: whether assets of a local document may be read over a network.

    Raises:
        RSMoEError: no STAC item or collection of items, no such asset or band, several rasters and no choice, an
            asset's file that is not there, or a remote asset or link without `remote`.
    """
    scenes = []
    for _, scene in each_scene(path, bands, asset, remote):
        if not isinstance(scene, Scene):
            raise scene
        scenes.append(scene)
    return scenes


def each_scene(
    path: str, bands: Sequence[int | str] | None = None, asset: str | None = None, remote: bool = False
) -> Iterator[tuple[str, Scene | RSMoEError]]:
    """The items' ids (of a document that cannot be read its path) with what `find_scenes` gives, or raises, of each.

    Raises:
        RSMoEError: the document itself cannot be read, or has no items.
    """
    pystac = require("pystac", EXTRA)
    remote = remote or is_remote(path)
    is_empty = True
    for document, content in _documents(pystac, path, remote):
        is_empty = False
        if isinstance(content, RSMoEError):
            yield document, content
            continue
        try:
            item = _item(pystac, document, content)
        except RSMoEError as error:
            yield str(content.get("id", document)) if isinstance(content, dict) else document, error
            continue
        try:
            yield item.id, _scene(item, document, bands, asset, remote)
        except RSMoEError as error:
            yield item.id, error
    if is_empty:
        raise RSMoEError(f"{path} is a collection or catalog without items")


def _read(pystac: Any, path: str) -> dict[str, Any]:
    file = Path(path)
    if not is_remote(path):
        if not file.is_file():
            raise RSMoEError(f"there is no file {path}: check the path")
        if file.stat().st_size > MAX_BYTES:
            raise RSMoEError(f"{path} has more than {MAX_BYTES >> 20} MiB: split the item collection")
    try:
        text = pystac.StacIO.default().read_text(path) if is_remote(path) else file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise RSMoEError(f"{path} cannot be read as JSON ({error}): give a STAC item or item collection") from error
    if not isinstance(content, dict):
        raise RSMoEError(f"{path} is no STAC item or item collection: it holds no JSON object")
    return content


def _documents(pystac: Any, path: str, remote: bool) -> Iterator[tuple[str, Any]]:
    """Items as JSON, and where it stands; or why a linked document cannot be read."""
    content = _read(pystac, path)
    kind, features = content.get("type"), content.get("features")
    if kind == "Feature":
        yield path, content
    elif kind == "FeatureCollection" and isinstance(features, list):
        yield from ((path, feature) for feature in features)
    elif kind in _CATALOGS:
        yield from _linked(pystac, path, content, remote)
    else:
        raise RSMoEError(f"{path} is no STAC item, item collection or catalog (its type is {kind!r})")


def _linked(pystac: Any, path: str, content: dict[str, Any], remote: bool) -> Iterator[tuple[str, Any]]:
    """The items that a catalog links to, then those of the catalogs below it, each document once."""
    visited, catalogs = {_place(path)}, deque([(path, content)])
    while catalogs:
        path, content = catalogs.popleft()
        links = content.get("links")
        for link in links if isinstance(links, list) else ():
            if not isinstance(link, dict) or link.get("rel") not in ("item", "child") or not link.get("href"):
                continue
            href = pystac.utils.make_absolute_href(str(link["href"]), _place(path), start_is_dir=False)
            if href in visited:
                continue
            visited.add(href)
            try:
                if is_remote(href) and not remote:
                    raise RSMoEError(f"{path} links to {href}, which is read over a network: allow it by --remote")
                linked = _read(pystac, href)
                if linked.get("type") not in (*_CATALOGS, "Feature"):
                    raise RSMoEError(f"{href} is no STAC item or catalog, though {path} links to it as one")
            except RSMoEError as error:
                yield href, error
                continue
            if linked["type"] == "Feature":
                yield href, linked
            else:
                catalogs.append((href, linked))


def _place(path: str) -> str:
    return path if is_remote(path) else str(Path(path).absolute())


def _item(pystac: Any, path: str, feature: Any) -> Any:
    try:
        links = [link for link in feature.get("links", ()) if link.get("rel") != "self"]
        item = pystac.Item.from_dict({**feature, "links": links}, migrate=False, preserve_dict=True)
    except Exception as error:  # pystac raises whatever the JSON provokes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RSMoEError(f"{path} holds a feature that is no STAC item ({reason})") from error
    item.set_self_href(_place(path))
    return item


def _scene(item: Any, path: str, bands: Sequence[int | str] | None, asset: str | None, remote: bool) -> Scene:
    keys, shown = _choice(item, path, bands, asset)
    hrefs = tuple(_href(item, key, path, remote) for key in keys)
    return Scene(f"{item.id}", hrefs, shown)


def _choice(
    item: Any, path: str, bands: Sequence[int | str] | None, asset: str | None
) -> tuple[list[str], Sequence[int | str | tuple[int, int]] | None]:
    """The assets to stack, and which of their bands."""
    names = [str(band) for band in bands or ()]
    if asset is not None:
        if asset not in item.assets:
            raise RSMoEError(f"item {item.id} of {path} has no asset {asset!r}; it has {', '.join(item.assets)}")
        keys = [asset]
    elif names and all(name in item.assets for name in names):
        return names, None
    else:
        keys = [key for key, one in item.assets.items() if _is_raster(one)]
    declared = {(key, number): names_ for key in keys for number, names_ in enumerate(_band_names(item, key), start=1)}
    found = [_find(item, path, name, declared) for name in names]
    if not any(found):  # numbers, or names that only the file knows
        if asset is None:
            keys, pair = _default_assets(item, path)
            return keys, bands or pair
        return keys, bands
    if None in found:
        raise RSMoEError(
            f"item {item.id} of {path} has no band {names[found.index(None)]!r}; it has {_listed(declared)}"
        )
    places = [place for place in found if place is not None]
    keys = list(dict.fromkeys(key for key, _ in places))
    return keys, [(keys.index(key), number) for key, number in places]


def _band_names(item: Any, key: str) -> list[list[str]]:
    """What each band of an asset is called, lower case: its own name last."""
    fields = item.assets[key].extra_fields
    listed: list[Any] = next(
        (fields[name] for name in ("bands", "eo:bands") if isinstance(fields.get(name), list)), []
    )
    bands = [band if isinstance(band, dict) else {} for band in listed] or [fields]  # one band may go without a list
    names = [[band.get(name) for name in ("eo:common_name", "common_name", "name")] for band in bands]
    if len(bands) == 1:
        names[0].append(key)
    return [[name.lower() for name in one if isinstance(name, str)] for one in names]


def _find(item: Any, path: str, name: str, declared: dict[tuple[str, int], list[str]]) -> tuple[str, int] | None:
    """The asset and number of a band; of several the one in the asset with the fewest bands."""
    found = [place for place, names in declared.items() if name.lower() in names]
    sizes = [sum(key == place[0] for key, _ in declared) for place in found]
    nearest = [place for place, size in zip(found, sizes, strict=True) if size == min(sizes)]
    if len(nearest) > 1:
        places = ", ".join(f"{number} of asset {key}" for key, number in nearest)
        raise RSMoEError(
            f"item {item.id} of {path} has several bands {name!r} ({places}): name an asset of one band in its place, "
            f"or the asset of all, for example --asset {nearest[0][0]}"
        )
    return nearest[0] if nearest else None


def _listed(declared: dict[tuple[str, int], list[str]]) -> str:
    names = dict.fromkeys(names[0] for names in declared.values() if names)
    return ", ".join(list(names)[:16]) + (", ..." if len(names) > 16 else "")


def _default_assets(item: Any, path: str) -> tuple[list[str], list[int | str | tuple[int, int]] | None]:
    """The asset that is shown without a choice; or the two of a radar, and which of their bands."""
    if VISUAL in item.assets:
        return [VISUAL], None
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(asset)}
    visual = [key for key, asset in rasters.items() if VISUAL in (asset.roles or ())]
    for keys in (visual, list(rasters)):
        if len(keys) == 1:
            return keys, None
    if pair := find_pair(list(rasters)):
        return [list(rasters)[place] for place in pair], [(0, 1), (1, 1)]
    raise RSMoEError(
        f"item {item.id} of {path} has {len(rasters)} rasters ({', '.join(rasters) or 'none'}) and none called "
        f"{VISUAL!r}{_example(item, list(rasters))}"
    )


def _example(item: Any, rasters: list[str]) -> str:
    """What may be asked for instead, by names that the item has."""
    if not rasters:
        return ": give another item"
    known = {name for key in rasters for names in _band_names(item, key) for name in names}
    colors = [color for color in ("red", "green", "blue") if color in known]
    names = colors if len(colors) == 3 else rasters[:3]
    example = f": name one, for example --asset {rasters[0]}"
    return example + (f", or three bands, for example --bands {','.join(names)}" if len(names) == 3 else "")


def _is_raster(asset: Any) -> bool:
    if set(asset.roles or ()) & set(_NOT_SHOWN):
        return False
    kind = (asset.media_type or "").split(";")[0].strip().lower()
    return kind in _RASTER_TYPES or (not kind and asset.href.split("?")[0].lower().endswith(_RASTER_SUFFIXES))


def _href(item: Any, key: str, path: str, remote: bool) -> str:
    asset = item.assets[key]
    href = asset.get_absolute_href() or asset.href
    if href.startswith("file://"):
        href = url2pathname(urlsplit(href).path)
    elif not is_gdal_path(href) and not os.path.exists(href):  # a file's name may hold a % of its own
        asset.href = unquote(asset.href)
        href = asset.get_absolute_href() or asset.href
    if is_remote(href) and not remote:
        raise RSMoEError(
            f"asset {key!r} of item {item.id} in {path} is {href}, which is read over a network: allow it by --remote"
        )
    if not is_gdal_path(href) and not os.path.exists(href):
        raise RSMoEError(f"asset {key!r} of item {item.id} in {path} is {href}, which is not there: check the item")
    return href
