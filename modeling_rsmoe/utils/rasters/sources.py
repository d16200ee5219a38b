"""What else GDAL opens for a local raster, checked before it does: a file alone causes no request.

A `.vrt` names other rasters. Files beside a raster (`.ovr`, `.msk`, world files) are read with it, and its metadata
may name a file of overviews.

[our decision] Without consent (`--remote`) all of these must be local, regular files, and rasters of the kinds that
`drivers.driver_of` knows. Beneath this check `OFFLINE` keeps GDAL from every server.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors_rsmoe import RSMoEError
from ..files import check_input
from .drivers import driver_of


# Options of GDAL under which /vsicurl/ and its kin open nothing, other requests fail at a proxy that does not exist,
# and no code of a .vrt runs.
OFFLINE = {
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_HTTP_PROXY": "none://none",
    "GDAL_HTTPS_PROXY": "none://none",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}
MAX_BYTES = 16 * 2**20  # of a .vrt
MAX_DEPTH = 8  # of .vrt in .vrt
_NAMES = {"sourcefilename", "sourcedataset", "dempath"}  # elements or attributes of a .vrt; GDAL ignores case
_KEYS = re.compile("overview_file|[xy]_dataset|rpc_dem|.*filename.*")  # of its metadata, arguments and options
_NO_FILE = re.compile(r"/vsi|\w{2,}:|\s*<")  # GDAL's paths, connection strings and XML in place of a file's name
_RASTERS_BESIDE = (".ovr", ".msk", ".msk.ovr")
_BESIDE = (".aux.xml", ".aux", ".rrd", ".ige", ".tfw", ".tifw", ".tiffw", ".wld", ".pgw", ".jgw", ".j2w", ".tab")


class SourceCheck:
    """Checks local rasters.

    Args:
        open_dataset: `rasterio.open`.
        alone: whether no file may be named at all.
    """

    def __init__(self, open_dataset: Callable[..., Any], alone: bool = False) -> None:
        self._open, self._alone = open_dataset, alone
        self._checked: set[str] = set()
        self._folders: dict[str, dict[str, list[str]]] = {}

    def check(self, path: str, above: tuple[str, ...] = ()) -> None:
        """`above` are the .vrt files that name it.

        Raises:
            RSMoEError: GDAL would open what is no local raster, or a .vrt names itself.
        """
        driver = driver_of(path)
        file = os.path.realpath(path)
        if file in above or len(above) > MAX_DEPTH:
            raise RSMoEError(f"{path} names itself, or is {len(above)} .vrt deep: name the rasters themselves")
        if file in self._checked:
            return
        self._checked.add(file)
        self._check_beside(path, (*above, file))
        if driver == "VRT":
            for name in _names_in(path):
                self._check_named(name, path, (*above, file))
        with self._open(path, driver=driver) as dataset:
            if name := dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
                self._check_named(name, path, (*above, file))

    def _check_named(self, name: str, path: str, above: tuple[str, ...]) -> None:
        if self._alone:
            raise RSMoEError(f"{path} names another file, which is not read: write it again without (gdal_translate)")
        if _NO_FILE.match(name):
            shown = name if len(name) <= 160 else f"{name[:157]}..."
            raise RSMoEError(
                f"{path} names {' '.join(shown.split())}, which is no local file: if you trust it, allow it with "
                "--remote"
            )
        candidates = [os.path.join(os.path.dirname(path), name), name]  # GDAL takes one or the other
        for file in [file for file in candidates if os.path.lexists(file)] or candidates[:1]:
            try:
                self.check(file, above)
            except RSMoEError as error:
                raise RSMoEError(f"{path} names a file that cannot be read: {error}") from error

    def _check_beside(self, path: str, above: tuple[str, ...]) -> None:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = defaultdict(list)
            for entry in os.listdir(folder or "."):
                self._folders[folder][entry.lower()].append(os.path.join(folder, entry))
        for stem in {name.lower(), os.path.splitext(name.lower())[0]}:
            for ending in (*_RASTERS_BESIDE, *_BESIDE):
                for file in self._folders[folder].get(stem + ending, ()):
                    check_input(file, f"a part of {path}")
                    if ending in _RASTERS_BESIDE:
                        self.check(file, above)


def _names_in(vrt: str) -> Iterator[str]:
    """All that a .vrt names as a raster."""
    if os.path.getsize(vrt) > MAX_BYTES:
        raise RSMoEError(f"{vrt} has more than {MAX_BYTES >> 20} MiB: make a GeoTIFF of it (gdal_translate)")
    content = Path(vrt).read_bytes()
    if re.search(rb"<!(?!--|\[CDATA\[)|<\?(?!xml\s)", content):  # GDAL would read these in a way of its own
        raise RSMoEError(f"{vrt} holds XML declarations that no .vrt needs: write it again (gdal_translate -of VRT)")
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise RSMoEError(f"{vrt} is no .vrt that can be read ({error}): write it again") from error
    for element in root.iter():
        values = {element.tag: element.text, **element.attrib}
        yield from (value.strip() for key, value in values.items() if key.lower() in _NAMES and value)
        key = element.get("key") or element.get("name") or ""
        if _KEYS.fullmatch(key.lower()) and element.text:
            yield element.text.strip()
