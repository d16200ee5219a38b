"""STAC items, item collections and static catalogs as lists of rasters. Reads their JSON with pystac; opens no raster.

[our decision] Of an item's assets the one is taken that is named; else the bands that are asked for, if they are all
names of assets (one file a band); else the asset `visual`, one with the role "visual", or the only raster. Relative
names are relative to where the JSON lies, not to its link to itself. A local item may name files on a network: they
are read only with `remote`, so that a file cannot cause requests by itself.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from .files import is_remote
from .raster import EXTRA


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
    bands: Sequence[int | str] | None


def find_scenes(
    path: str, bands: Sequence[int | str] | None = None, asset: str | None = None, remote: bool = False
) -> list[Scene]:
    """The rasters of a STAC item, item collection or static catalog, one for each item, in their order.

    Args:
        path: of the JSON; a URL is fetched, because it was named. Of a catalog or collection the items that it links
            to are read, and those of the catalogs below it.
        bands: names of assets, or what `open_raster` takes.
        asset: the asset to take from every item.
        remote: whether assets of a local document may be read over a network.

    Raises:
        RSMoEError: no STAC item or collection of items, no such asset, several rasters and no choice, or a remote
            asset or link without `remote`.
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
    names = [str(band) for band in bands or ()]
    if asset is not None:
        keys = [asset]
    elif names and all(name in item.assets for name in names):
        keys, bands = names, None
    else:
        keys = [_default_asset(item)]
    for key in keys:
        if key not in item.assets:
            raise RSMoEError(f"item {item.id} of {path} has no asset {key!r}; it has {', '.join(item.assets)}")
    hrefs = tuple(_href(item, key, path, remote) for key in keys)
    return Scene(f"{item.id}", hrefs, bands)


def _default_asset(item: Any) -> str:
    if VISUAL in item.assets:
        return VISUAL
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(asset)}
    visual = [key for key, asset in rasters.items() if VISUAL in (asset.roles or ())]
    for keys in (visual, list(rasters)):
        if len(keys) == 1:
            return keys[0]
    raise RSMoEError(
        f"item {item.id} has {len(rasters)} rasters ({', '.join(rasters) or 'none'}) and none called {VISUAL!r}: name "
        "one with --asset, or three as --bands, for example --bands red,green,blue"
    )


def _is_raster(asset: Any) -> bool:
    if set(asset.roles or ()) & set(_NOT_SHOWN):
        return False
    kind = (asset.media_type or "").split(";")[0].strip().lower()
    return kind in _RASTER_TYPES or (not kind and asset.href.split("?")[0].lower().endswith(_RASTER_SUFFIXES))


def _href(item: Any, key: str, path: str, remote: bool) -> str:
    href = item.assets[key].get_absolute_href() or item.assets[key].href
    if href.startswith("file://"):
        href = url2pathname(urlsplit(href).path)
    if is_remote(href) and not remote:
        raise RSMoEError(
            f"asset {key!r} of item {item.id} in {path} is {href}, which is read over a network: allow it by --remote"
        )
    return href
