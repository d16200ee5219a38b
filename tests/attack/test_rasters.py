"""Rasters made to ask servers, to hang or to exhaust: each is refused in one line, and a listener hears nothing."""

import threading
import warnings
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest


pytest.importorskip("rasterio", reason='no rasterio here: pip install "rsmoe[geo]"')
import rasterio

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.utils.rasters.raster import open_raster
from modeling_rsmoe.utils.rasters.sources import OFFLINE, SourceCheck

from ..scenes.rasters import UTM, noise, patch_tags, write_raster
from .conftest import NO_FILES, refusal


SIZE = "rasterXSize='64' rasterYSize='64'"


class Listener:
    """A server that counts who connects, and serves one GeoTIFF under every name."""

    def __init__(self, content: bytes) -> None:
        self.asked: list[str] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.asked.append(self.path)
                body, status = content, 200
                if (part := self.headers.get("Range", "")).startswith("bytes="):
                    first, last = part.removeprefix("bytes=").split("-")
                    body, status = content[int(first) : int(last) + 1], 206
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    listener = Listener(write_raster(tmp_path / "served.tif", noise(1, 64, 64, "uint8", 255), **UTM).read_bytes())
    # GDAL's other kinds of storage, as someone may have set them up
    for name, value in {
        "AWS_NO_SIGN_REQUEST": "YES",
        "AWS_S3_ENDPOINT": listener.host,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "CPL_GS_ENDPOINT": f"{listener.url}/",
        "GS_NO_SIGN_REQUEST": "YES",
        "no_proxy": "*",  # under which a proxy that there is not keeps nothing back
        "GDAL_VRT_ENABLE_PYTHON": "YES",
        "AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={listener.url}/;AccountName=a;AccountKey=eA==",
    }.items():
        monkeypatch.setenv(name, value)
    yield listener
    listener.close()


def service(url: str) -> str:
    corners = "<UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>9</LowerRightX><LowerRightY>-9"
    window = f"<DataWindow>{corners}</LowerRightY><SizeX>64</SizeX><SizeY>64</SizeY></DataWindow>"
    server = f"<Service name='WMS'><ServerUrl>{url}/wms?</ServerUrl><Layers>a</Layers></Service>"
    return f"<GDAL_WMS>{server}{window}<BandsCount>1</BandsCount></GDAL_WMS>"


def names(url: str) -> dict[str, str]:
    """All ways in which a .vrt may name what lies on a server."""
    file = f"{url}/a.tif"
    return {
        "curl": f"/vsicurl/{file}",
        "url": file,
        "curl with options": f"/vsicurl?url={file}",
        "streaming": f"/vsicurl_streaming/{file}",
        "s3": "/vsis3/bucket/a.tif",
        "s3 streaming": "/vsis3_streaming/bucket/a.tif",
        "gs": "/vsigs/bucket/a.tif",
        "az": "/vsiaz/bucket/a.tif",
        "webhdfs": f"/vsiwebhdfs/{url}/webhdfs/v1/a.tif",
        "zip on a server": f"/vsizip//vsicurl/{url}/a.zip/a.tif",
        "ftp": f"ftp://{url.partition('://')[2]}/a.tif",
        "WMS": service(url),
        "WMS by name": f"WMS:{url}/wms?",
        "WCS": f"<WCS_GDAL><ServiceURL>{url}/wcs?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
        "WMTS": f"WMTS:{url}/wmts.xml",
        "STAC": f'STACIT:"{url}/a.json"',
        "DAAS": f"DAAS:{url}/a",
        "Zarr": f'ZARR:"/vsicurl/{url}/a.zarr"',
        "VRT by name": f"vrt:///vsicurl/{file}",
        "database": "PG:host=127.0.0.1 dbname=a",
    }


KINDS = tuple(names(""))


def vrt(source: str) -> str:
    """A .vrt of one band; `source` is XML."""
    band = f"<VRTRasterBand dataType='Byte' band='1'><SimpleSource>{source}</SimpleSource></VRTRasterBand>"
    return f"<VRTDataset {SIZE}>{band}</VRTDataset>"


def named(name: str) -> str:
    return vrt(f"<SourceFilename>{escape(name)}</SourceFilename><SourceBand>1</SourceBand>")


def read(path: Path | str, remote: bool = False) -> None:
    with open_raster(str(path), remote=remote) as raster:
        raster.overview(16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vrt_asks_no_server(kind: str, tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "a.vrt").write_text(named(names(listener.url)[kind]))
    with pytest.raises(RSMoEError, match="a.vrt names .* which is no local file: .* --remote"):
        read(tmp_path / "a.vrt")
    (tmp_path / "outer.vrt").write_text(vrt("<SourceFilename relativeToVRT='1'>a.vrt</SourceFilename>"))
    with pytest.raises(RSMoEError, match="outer.vrt names .*a.vrt names"):
        read(tmp_path / "outer.vrt")
    assert listener.asked == []


@pytest.mark.parametrize("kind", KINDS)
def test_beneath_the_check_gdal_is_offline(
    kind: str, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    (tmp_path / "a.vrt").write_text(named(names(listener.url)[kind]))
    for options, is_heard in [(OFFLINE, False), ({}, kind in ("curl", "url", "s3", "gs", "az", "WMS", "WCS"))]:
        with rasterio.Env(GDAL_HTTP_TIMEOUT="1", **options), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with rasterio.open(tmp_path / "a.vrt", driver="VRT") as dataset:
                    dataset.read()
            except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError):
                pass
        assert not listener.asked if options else listener.asked or not is_heard


def test_with_consent_it_is_read(tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "a.vrt").write_text(named(f"/vsicurl/{listener.url}/a.tif"))
    read(tmp_path / "a.vrt", remote=True)
    assert listener.asked


WORDS = {
    "another case": "<sOURCEfILENAME>{}</sOURCEfILENAME>",
    "an attribute": "<SourceFilename x='1'>a.tif</SourceFilename></SimpleSource><SimpleSource SourceFilename='{}'>",
    "the second": "<SourceFilename relativeToVRT='1'>a.tif</SourceFilename><SourceFilename>{}</SourceFilename>",
    "CDATA": "<SourceFilename><![CDATA[{}]]></SourceFilename>",
    "characters": "<SourceFilename>&#x2f;vsicurl&#47;http://127.0.0.1/a.tif</SourceFilename>",
    "an overview": "</SimpleSource><Overview><SourceFilename>{}</SourceFilename></Overview><SimpleSource>",
    "warped": "</SimpleSource></VRTRasterBand><GDALWarpOptions><SourceDataset>{}</SourceDataset></GDALWarpOptions>"
    "<VRTRasterBand><SimpleSource>",
    "metadata": "</SimpleSource></VRTRasterBand><Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>{}</MDI>"
    "</Metadata><VRTRasterBand><SimpleSource>",
    "an argument": "<Argument name='gain_dataset_filename_1'>{}</Argument>",
}


@pytest.mark.parametrize("where", WORDS)
def test_wherever_a_vrt_names_it(where: str, tmp_path: Path, listener: Listener) -> None:
    write_raster(tmp_path / "a.tif", noise(1, 64, 64, "uint8", 255), **UTM)
    (tmp_path / "b.vrt").write_text(vrt(WORDS[where].format(f"/vsicurl/{listener.url}/a.tif")))
    with pytest.raises(RSMoEError, match="names .* which is no local file"):
        read(tmp_path / "b.vrt")
    assert listener.asked == []


@pytest.mark.parametrize(
    "head",
    ["<!DOCTYPE a [<!ENTITY b 'c'>]>", "<?x '?><!-- ?>' ?>", "<?xml version='1.0' encoding='utf-16'?>", "]"],
)
def test_xml_that_two_parsers_read_in_two_ways(head: str, tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "a.vrt").write_text(head + named(f"/vsicurl/{listener.url}/a.tif"))
    with pytest.raises(RSMoEError, match=r"a\.vrt "):
        read(tmp_path / "a.vrt")
    assert listener.asked == []


@pytest.mark.parametrize("where", ["in the file", "aux.xml", "ovr", "ovr in capitals", "msk"])
@pytest.mark.parametrize("kind", ["curl", "WMS"])
def test_what_lies_beside_a_raster(where: str, kind: str, tmp_path: Path, listener: Listener) -> None:
    path, name = tmp_path / "a.tif", names(listener.url)[kind]
    write_raster(path, noise(1, 2048, 2048, "uint8", 255), **UTM)
    if where == "in the file":
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
    elif where == "aux.xml":
        item = f"<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>{escape(name)}</MDI></Metadata>"
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{item}</PAMDataset>")
    else:
        ending = {"ovr": "ovr", "ovr in capitals": "OvR", "msk": "msk"}[where]
        (tmp_path / f"a.tif.{ending}").write_text(named(name) if kind == "curl" else name)
    (tmp_path / "b.vrt").write_text(vrt("<SourceFilename relativeToVRT='1'>a.tif</SourceFilename>"))
    for file in ("a.tif", "b.vrt"):
        with pytest.raises(RSMoEError, match="which is no local file|is not a raster that can be read here"):
            read(tmp_path / file)
    assert listener.asked == []


def test_a_folder_that_is_called_as_a_server_is(tmp_path: Path, listener: Listener) -> None:
    folder = tmp_path / "vsicurl"
    folder.mkdir()
    (folder / "a.vrt").write_text(named(f"/vsicurl/{listener.url}/a.tif"))
    with pytest.raises(RSMoEError, match="which is no local file"):
        read(folder / "a.vrt")
    with open_raster(write_raster(folder / "a.tif", noise(1, 64, 64, "uint8", 255), **UTM)) as raster:
        with raster._gdal("be read"):
            assert rasterio.env.getenv()["CPL_VSIL_CURL_ALLOWED_FILENAME"] == "none"


def test_archives(tmp_path: Path, listener: Listener) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 64, 64, "uint8", 255), **UTM)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.tif")
        archive.writestr("b.tif", named(f"/vsicurl/{listener.url}/a.tif"))
        archive.writestr("c.vrt", named(f"/vsicurl/{listener.url}/a.tif"))
        archive.write(path, "d.tif")
        archive.writestr("d.tif.ovr", named(f"/vsicurl/{listener.url}/a.tif"))
    read(f"/vsizip/{tmp_path}/a.zip/a.tif")
    read(f"zip://{tmp_path}/a.zip!a.tif")
    for name in (
        f"/vsizip/{tmp_path}/a.zip/b.tif",
        f"/vsizip/{tmp_path}/a.zip/d.tif",
        f"/vsizip/{tmp_path}/a.zip/c.vrt",
        "/vsistdin/",
        "/vsizip//vsistdin/a.tif",
    ):
        with pytest.raises(RSMoEError):
            read(name)
    for name in ("/vsisparse/a.xml", "/vsimem/a.tif", f"/vsisubfile/0_9,{path}", service(listener.url), "PG:dbname=a"):
        with pytest.raises(RSMoEError, match="unpack it|there is no file"):
            read(name)
    read(f"file://{path}")
    assert listener.asked == []


def test_mosaics_of_local_rasters_are_read(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    write_raster(tmp_path / "tiles/a.tif", noise(1, 64, 64, "uint8", 255), **UTM)
    for name, source in {
        "a.vrt": "<SourceFilename relativeToVRT='1'>tiles/a.tif</SourceFilename>",
        "b.vrt": f"<SourceFilename relativeToVRT='0'>{tmp_path}/tiles/a.tif</SourceFilename>",
        "c.vrt": "<SourceFilename relativeToVRT='1'>a.vrt</SourceFilename><SourceFilename>b.vrt</SourceFilename>",
    }.items():
        (tmp_path / name).write_text(f"<?xml version='1.0'?>\n<!-- a mosaic -->{vrt(source)}")
        read(tmp_path / name)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("place", ["a.tif", "source.tif", "whole.tif.aux.xml", "whole.tif.ovr", "whole.tfw"])
def test_no_regular_file(kind: str, place: str, tmp_path: Path, checkpoint: Path) -> None:
    write_raster(tmp_path / "whole.tif", noise(1, 64, 64, "uint8", 255), **UTM)
    (tmp_path / "a.vrt").write_text(vrt("<SourceFilename relativeToVRT='1'>source.tif</SourceFilename>"))
    NO_FILES[kind](tmp_path / place)
    path = {"a.tif": "a.tif", "source.tif": "a.vrt"}.get(place, "whole.tif")
    line = refusal("caption", tmp_path / path, "--tile", 32, "--model", checkpoint)
    expected = "a folder" if kind == "folder" else f"{place} is not a regular file"
    assert expected in line


# ---- hostile rasters through --tile


def write_hostile(folder: Path) -> dict[str, Path]:
    """Damaged and absurd rasters, by what is wrong with them."""
    whole = write_raster(folder / "whole.tif", noise(3, 64, 64, "uint8", 255), **UTM)
    content = whole.read_bytes()
    files = {}
    for share in (0.001, 0.01, 0.1, 0.5, 0.9):
        files[f"cut at {share}"] = folder / f"cut{share}.tif"
        files[f"cut at {share}"].write_bytes(content[: max(5, int(len(content) * share))])
    for name, tags in {
        "zero wide": {256: 0},
        "huge": {256: 2**31 - 1, 257: 2**31 - 1},
        "65,535 bands": {277: 65535},
        "a huge strip": {278: 2**31 - 1, 257: 2**24},
    }.items():
        files[name] = patch_tags(whole, folder / f"{name.replace(' ', '-')}.tif", tags)
    files["1 px high"] = write_raster(folder / "thin.tif", noise(1, 1, 100_000, "uint8", 255))
    files["200 bands"] = write_raster(folder / "bands.tif", noise(200, 16, 16, "uint8", 255))
    files["NaN alone"] = write_raster(folder / "nan.tif", np.full((1, 32, 32), np.nan, "float32"))
    layout = {"tiled": True, "blockxsize": 20480, "blockysize": 20480, "SPARSE_OK": True}
    files["huge blocks"] = folder / "blocks.tif"
    with rasterio.open(files["huge blocks"], "w", "GTiff", 20480, 20480, 1, dtype="uint8", **layout):
        pass
    sources = {"itself": "itself.vrt", "one": "two.vrt", "two": "one.vrt", "text": "text.tif", "lost": "lost.tif"}
    (folder / "text.tif").write_text("no raster")
    for name, source in sources.items():
        files[f".vrt of {source}: {name}"] = folder / f"{name}.vrt"
        (folder / f"{name}.vrt").write_text(vrt(f"<SourceFilename relativeToVRT='1'>{source}</SourceFilename>"))
    for depth in range(20):
        source = f"deep{depth - 1}.vrt" if depth else "whole.tif"
        files["20 deep"] = folder / f"deep{depth}.vrt"
        files["20 deep"].write_text(vrt(f"<SourceFilename relativeToVRT='1'>{source}</SourceFilename>"))
    wide = f"<VRTDataset rasterXSize='{2**31 - 1}' rasterYSize='{2**31 - 1}'>"
    files["a huge .vrt"] = folder / "huge.vrt"
    files["a huge .vrt"].write_text(
        vrt("<SourceFilename relativeToVRT='1'>whole.tif</SourceFilename>").replace(f"<VRTDataset {SIZE}>", wide)
    )
    files["many entities"] = folder / "laughs.vrt"
    files["many entities"].write_text("<!DOCTYPE a [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;'>]>" + named("&b;"))
    files["XML without an end"] = folder / "open.vrt"
    files["XML without an end"].write_text("<VRTDataset>" + "<a>" * 100_000)
    return files


def test_hostile_rasters_cost_one_line(tmp_path: Path, checkpoint: Path) -> None:
    for name, path in write_hostile(tmp_path).items():
        output = tmp_path / "out.geojson"
        line = refusal("caption", path, "--tile", 512, "--output", output, "--model", checkpoint)
        assert str(path) in line or "tiles of 512 px would cut" in line, name
        assert not list(tmp_path.glob("*out.geojson*")), name


@pytest.mark.parametrize(
    "transform", [(np.nan,) * 6, (np.inf, 0, 0, 0, np.inf, 0), (1e308, 1e308, 0, 1e308, -1e308, 0)]
)
def test_places_that_are_no_places(transform: tuple[float, ...], tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", noise(3, 32, 32, "uint8", 255), crs="EPSG:4326", transform=rasterio.Affine(*transform)
    )
    read(path)


def test_each_source_is_checked_once(tmp_path: Path) -> None:
    """Ten .vrt of ten names each: 10 ** 10 readings, were each name followed."""
    write_raster(tmp_path / "whole.tif", noise(1, 64, 64, "uint8", 255), **UTM)
    opened: list[str] = []

    def counted(path: str, **options: str) -> rasterio.DatasetReader:
        opened.append(path)
        return rasterio.open(tmp_path / "whole.tif")

    for number in range(8):
        source = f"{number - 1}.vrt" if number else "whole.tif"
        content = vrt(10 * f"<SourceFilename relativeToVRT='1'>{source}</SourceFilename>")
        (tmp_path / f"{number}.vrt").write_text(content)
    SourceCheck(counted).check(str(tmp_path / "7.vrt"))
    assert len(opened) == 9
