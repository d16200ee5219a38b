"""Images made to run programs or fill the memory: refused, or read as docs/explanation/security.md promises."""

import base64
import resource
import signal
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.images_rsmoe import to_rgb
from modeling_rsmoe.scenes.files import is_scene
from modeling_rsmoe.serving.errors import ApiError
from modeling_rsmoe.serving.images import open_image
from modeling_rsmoe.serving.limits import Limits
from modeling_rsmoe.utils.images import read_image

from .conftest import refusal
from .image_memory import SIDE, peak_bytes, write_images


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%stderr) (w) file pop\n%%EOF\n"

DOORS: dict[str, Callable[[Path], Any]] = {
    "a path": read_image,
    "bytes": lambda path: read_image(path.read_bytes()),
    "base64": lambda path: read_image(base64.b64encode(path.read_bytes()).decode()),
    "a data URL": lambda path: read_image(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"),
    "an opened image": lambda path: read_image(Image.open(path)),
    "the processor's path": lambda path: to_rgb(str(path)),
    "the processor's base64": lambda path: to_rgb(base64.b64encode(path.read_bytes()).decode()),
    "the processor's opened image": lambda path: to_rgb(Image.open(path)),
    "the server": lambda path: read_image(open_image(path.read_bytes(), "image", Limits())),
}


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` that leaves a mark when it runs."""
    mark = tmp_path / "it-ran"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return mark


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ending", ["eps", "png"])
def test_eps_never_reaches_ghostscript(door: str, ending: str, tmp_path: Path, ghostscript: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(EPS)
    with pytest.raises(RSMoEError):
        DOORS[door](path)
    assert not ghostscript.exists()


def test_the_mark_is_left_where_pillow_alone_reads_it(tmp_path: Path, ghostscript: Path) -> None:
    (tmp_path / "a.eps").write_bytes(EPS)
    with pytest.raises(OSError):
        Image.open(tmp_path / "a.eps").load()
    assert ghostscript.exists()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def hostile() -> dict[str, bytes]:
    """Files that are no images, or promise absurd ones, by what they are."""
    return {
        "pickle": b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "zip": b"PK\x03\x04" + bytes(200),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:9/a'/></svg>",
        "HTML": b"<html><script>alert(1)</script></html>",
        "ImageMagick's MVG": b"push graphic-context\nimage over 0,0 0,0 '|id'\npop graphic-context",
        "PNG of 2 ** 31 pixels a side": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", b"\x7f\xff\xff\xff" * 2 + b"\x08\2\0\0\0"),
        "PNG of 1 x 100,000": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II", 1, 10**5) + b"\x08\2\0\0\0"),
        "TIFF whose tags point at themselves": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 2**31 - 1, 8, 8),
        "JPEG 2000 of 2 ** 32 pixels a side": b"\xff\x4f\xff\x51\0\x2f\0\0" + b"\xff\xff\xff\xff" * 2 + bytes(36),
        "BMP of 2 ** 31 pixels a side": b"BM"
        + bytes(12)
        + struct.pack("<IiiHHI", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0)
        + bytes(20),
        "PPM of 10 ** 9 pixels a side": b"P6 1000000000 1000000000 255\n",
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_one_line(name: str, tmp_path: Path, checkpoint: Path) -> None:
    for ending in ("png", "tif"):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(HOSTILE[name])
        for options in ((), ("--tile", 64)):
            assert str(path) in refusal("caption", path, *options, "--model", checkpoint)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("door", ["bytes", "base64", "the processor's path", "the server"])
def test_hostile_files_at_every_door(name: str, door: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(HOSTILE[name])
    with pytest.raises((RSMoEError, ApiError)):
        DOORS[door](tmp_path / "a.png")


def test_a_text_chunk_of_128_mb(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, "PNG")
    png, text = buffer.getvalue(), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9))
    with pytest.raises(RSMoEError, match="truncated or damaged"):
        read_image(png[:33] + text + png[33:])


@pytest.mark.parametrize("door", DOORS)
def test_a_jpeg_of_thousands_of_scans(door: str, tmp_path: Path) -> None:
    """33 bytes for each: 13 s for 99 kB at 4096 x 4096 once."""
    buffer = BytesIO()
    Image.new("L", (512, 512)).save(buffer, "JPEG", progressive=True)
    data, path = buffer.getvalue(), tmp_path / "a.jpg"
    path.write_bytes(data + b"\xff\xda" * 500)  # what follows the image, such as a film, does not count
    DOORS[door](path)
    scan = data[data.rindex(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + scan * 5000 + data[-2:])
    with pytest.raises(RSMoEError, match="a JPEG of more than 100 scans"):
        DOORS[door](path)


def tiff(entries: dict[int, tuple[int, int, int]], end: bytes = b"") -> bytes:
    """Of tags: type, count and value."""
    tags = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + bytes(4) + end


def gray_tiff() -> dict[int, tuple[int, int, int]]:
    sizes = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    return {**sizes, 322: (4, 1, 64), 323: (4, 1, 64), 324: (4, 1, 8), 325: (4, 1, 100)}


def too_much_metadata() -> dict[str, bytes]:
    """Images of 64 x 64 pixels that took minutes or gigabytes to open, by what is too much in them."""

    def saved(kind: str) -> bytes:
        buffer = BytesIO()
        Image.new("P" if kind == "GIF" else "RGB", (64, 64)).save(buffer, kind)
        return buffer.getvalue()

    png, jpeg, gif = saved("PNG"), saved("JPEG"), saved("GIF")
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20 - 10), 9))
    colors = 13 + 3 * (2 << (gif[10] & 7))
    large = {40000 + number: (1, 2**20, 8) for number in range(2000)}
    exif = tiff({1000 + number: (7, 2**18, 8) for number in range(9000)}, bytes(2**18))
    segments = (b"Exif\0\0" + exif[place : place + 60000] for place in range(0, len(exif), 60000))
    raw_profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%d\n" % len(exif) + exif.hex().encode())
    return {
        "profiles of a PNG": png[:33] + profile * 5000 + png[33:],
        "profiles of a PNG, after its pixels": png[:-12] + profile * 5000 + png[-12:],
        "EXIF of a PNG": png[:33] + chunk(b"eXIf", exif) + png[33:],
        "EXIF of a PNG, as a text": png[:33] + chunk(b"zTXt", raw_profile) + png[33:],
        "segments of a JPEG": jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0ab" * 500_000 + jpeg[2:],
        "EXIF of a JPEG": jpeg[:2]
        + b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in segments)
        + jpeg[2:],
        "comments of a GIF": gif[:colors] + (b"\x21\xfe\xff" + bytes(255) + b"\0") * 30_000 + gif[colors:],
        "comment of a PPM": b"P6\n#" + b"a" * 2**23 + b"\n64 64 255\n" + bytes(64 * 64 * 3),
        "tags of a TIFF": tiff({**gray_tiff(), **large}, bytes(2**20)),
        "tile of a TIFF": tiff({**gray_tiff(), 322: (4, 1, 32768), 323: (4, 1, 32768)}, zlib.compress(bytes(1000))),
    }


TOO_MUCH = too_much_metadata()


@pytest.mark.parametrize("name", TOO_MUCH)
@pytest.mark.parametrize("door", ["a path", "bytes", "the processor's path", "the server"])
def test_metadata_costs_little(name: str, door: str, tmp_path: Path) -> None:
    """12 MB of them took a minute, 300 bytes 1.1 GB, and a TIFF ended the server for want of memory."""
    (tmp_path / "a.png").write_bytes(TOO_MUCH[name])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + 2**28, most))
    signal.setitimer(signal.ITIMER_PROF, 10)
    try:
        with pytest.raises(RSMoEError):
            DOORS[door](tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def test_a_large_tiff_is_known_without_its_tags(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(TOO_MUCH["tags of a TIFF"])
    assert not is_scene(str(tmp_path / "a.tif"))


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


DECODED_TWICE = ("16-bit RGB, PNG", "16-bit RGBA")  # for the upper and the lower 8 bits


@pytest.mark.attack
def test_memory_of_every_kind_of_pixels(tmp_path: Path) -> None:
    """At most 8 bytes a pixel over what Pillow's decoder takes."""
    signal.setitimer(signal.ITIMER_PROF, 600)  # files of 17 million pixels
    small, large = write_images(tmp_path / "small", 64), write_images(tmp_path / "large", SIDE)
    for name, path in large.items():
        decoder, ours = (peak_bytes(small[name], path, door) / SIDE**2 for door in ("decoder", "read_image"))
        passes = 2 if name in DECODED_TWICE else 1
        assert ours <= passes * decoder + 8, name


@pytest.mark.slow
def test_memory_of_16_bits(tmp_path: Path) -> None:
    """The short part: 93 bytes a pixel once. A raster is read by strips."""
    values = np.arange(2048 * 2048, dtype=np.uint32).reshape(2048, 2048).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "large.tif")
    Image.fromarray(values[:64, :64]).save(tmp_path / "small.tif")
    assert peak_bytes(tmp_path / "small.tif", tmp_path / "large.tif", "read_image") < (2 + 8) * 2048**2
