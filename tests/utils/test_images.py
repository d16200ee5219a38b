"""`read_image`: what each kind of image becomes, and what each kind of bad input says. All files are made here."""

import base64
import http.server
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.images_rsmoe import MIN_SIDE
from modeling_rsmoe.utils.images import read_image, read_images


HEIGHT, WIDTH = 12, 16


def random_pixels(*channels: int, high: int = 256, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (HEIGHT, WIDTH, *channels)).astype(dtype)


def stretched(values: np.ndarray) -> np.ndarray:
    """The documented rule, written a second time: smallest to 0, largest to 255."""
    values = values.astype(np.float64)
    return np.rint(255 * (values - values.min()) / (values.max() - values.min())).astype(np.uint8)


def by_percentiles(band: np.ndarray) -> np.ndarray:
    """The rule of rasters, written a second time."""
    low, high = np.percentile(band.astype(np.float64), (2, 98))
    return np.rint(((band.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


def pixels_of(image: Image.Image) -> np.ndarray:
    assert type(image) is Image.Image and image.mode == "RGB"
    return np.asarray(image)


def wide_png(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, `[H, W, C]`; Pillow cannot write one of several channels."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[-1]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def wide_tiff(
    path: Path, bands: np.ndarray, by_band: bool, photometric: int = 2, order: str = "<", compress: bool = False
) -> Path:
    """A uint16 TIFF of `[C, H, W]`, interleaved by pixel or by band; Pillow cannot write one."""
    count, height, width = bands.shape
    values = bands.astype(f"{order}u2")
    strips = [band.tobytes() for band in values] if by_band else [np.moveaxis(values, 0, -1).tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compress else strips
    short, long, start = 3, 4, 8  # the pixels start at byte 8, the long values follow, then the directory
    sizes = [len(strip) for strip in strips]
    bits = struct.pack(f"{order}{count}H", *[16] * count)
    begins = [int(start + sum(sizes[:index])) for index in range(len(sizes))]
    offsets = struct.pack(f"{order}{len(sizes)}I", *begins)
    lengths = struct.pack(f"{order}{len(sizes)}I", *sizes)
    places = np.cumsum([start + sum(sizes), len(bits), len(offsets), len(lengths)])

    def long_entry(tag: int, values: list[int], place: int) -> bytes:
        return struct.pack(f"{order}HHII", tag, long, len(values), values[0] if len(values) == 1 else place)

    def short_entry(tag: int, value: int) -> bytes:
        return struct.pack(f"{order}HHIHH", tag, short, 1, value, 0)

    entries = [
        short_entry(256, width),
        short_entry(257, height),
        struct.pack(f"{order}HHII", 258, short, count, places[0]),
        short_entry(259, 8 if compress else 1),
        short_entry(262, photometric),
        long_entry(273, begins, places[1]),
        short_entry(277, count),
        short_entry(278, height),
        long_entry(279, sizes, places[2]),
        short_entry(284, 2 if by_band else 1),
    ]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", 0)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, places[3])
    path.write_bytes(magic + b"".join(strips) + bits + offsets + lengths + directory)
    return path


# ---- where it comes from


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pixels = random_pixels(3)
    Image.fromarray(pixels).save(tmp_path / "a photo.png")
    return tmp_path / "a photo.png", pixels


def test_paths_and_strings(photo: tuple[Path, np.ndarray]) -> None:
    path, pixels = photo
    encoded = base64.b64encode(path.read_bytes()).decode()
    wrapped = base64.encodebytes(path.read_bytes()).decode()
    for source in (path, str(path), path.as_uri(), f"data:image/png;base64,{encoded}", encoded, wrapped):
        assert np.array_equal(pixels_of(read_image(source)), pixels)


def test_relative_path_that_looks_like_base64(photo: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    path, pixels = photo
    path.rename(path.parent / "abcd")
    monkeypatch.chdir(path.parent)
    assert np.array_equal(pixels_of(read_image("abcd")), pixels)
    with pytest.raises(RSMoEError, match="there is no file abce: check the path"):
        read_image("abce")


@pytest.fixture
def server(photo: tuple[Path, np.ndarray]):
    body = photo[0].read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/photo.png")
                self.end_headers()
                return
            self.send_response(200 if self.path == "/photo.png" else 404)
            self.end_headers()
            self.wfile.write(body if self.path == "/photo.png" else b"<html>no such page</html>")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls(server: str, photo: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert np.array_equal(pixels_of(read_image(f"{server}/photo.png")), photo[1])
    assert np.array_equal(pixels_of(read_image(f"{server}/moved")), photo[1])
    with pytest.raises(RSMoEError, match=r"/lost.png cannot be downloaded .*404"):
        read_image(f"{server}/lost.png")
    monkeypatch.setattr("modeling_rsmoe.utils.images.MAX_URL_BYTES", 10)
    with pytest.raises(RSMoEError, match="download it and crop it first"):
        read_image(f"{server}/photo.png")
    with pytest.raises(RSMoEError, match="cannot be downloaded"):
        read_image("http://127.0.0.1:9/nothing-listens-here.png")


def test_batches_keep_their_structure(photo: tuple[Path, np.ndarray]) -> None:
    path, pixels = photo
    nested = read_images([[path, pixels], [torch.from_numpy(pixels)], []])
    assert [len(group) for group in nested] == [2, 1, 0]
    assert all(np.array_equal(pixels_of(image), pixels) for group in nested for image in group)
    assert np.array_equal(pixels_of(read_images(path)), pixels)
    batch = read_images(np.stack([pixels, 255 - pixels]))
    assert np.array_equal(pixels_of(batch[1]), 255 - pixels)
    with pytest.raises(RSMoEError, match=r"images\[1\]\[0\] has 3 x 20 pixels"):
        read_images([[path], [np.zeros((20, 3), np.uint8)]])


# ---- pixels of other kinds


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes_that_pillow_converts(mode: str, tmp_path: Path) -> None:
    photo = Image.fromarray(random_pixels(3)).convert(mode)
    expected = np.asarray(photo.convert("RGB"))
    assert np.array_equal(pixels_of(read_image(photo)), expected)
    if mode in ("L", "1", "P", "CMYK"):
        photo.save(tmp_path / "x.tif")
        assert np.array_equal(pixels_of(read_image(tmp_path / "x.tif")), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_lies_over_black(channels: int, tmp_path: Path) -> None:
    pixels = random_pixels(channels)
    pixels[0, :3, -1] = (0, 255, 128)
    expected = np.rint(pixels[..., :-1] * (pixels[..., -1:] / 255.0)) * np.ones(3)
    assert (expected[0, 0] == 0).all()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for source in (tmp_path / "x.png", Image.fromarray(pixels), pixels, np.moveaxis(pixels, -1, 0), pixels / 255.0):
        assert np.abs(pixels_of(read_image(source)) - expected).max() <= 1  # Pillow and numpy round differently


def test_transparent_colors_of_palette_gray_and_rgb(tmp_path: Path) -> None:
    gray = np.tile(np.arange(WIDTH, dtype=np.uint8) * 10 + 50, (HEIGHT, 1))
    palette = Image.fromarray(gray)
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    expected = pixels_of(read_image(palette)).copy()
    expected[:, 3] = 0
    palette.save(tmp_path / "p.png", transparency=80)
    assert np.array_equal(pixels_of(read_image(tmp_path / "p.png")), expected)
    Image.fromarray(gray).save(tmp_path / "l.png", transparency=80)
    assert np.array_equal(pixels_of(read_image(tmp_path / "l.png")), as_rgb(np.where(gray == 80, 0, gray)))
    Image.fromarray(as_rgb(gray)).save(tmp_path / "rgb.png", transparency=(80, 80, 80))
    assert np.array_equal(pixels_of(read_image(tmp_path / "rgb.png")), as_rgb(np.where(gray == 80, 0, gray)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.float32])
def test_gray_of_many_values_is_stretched_by_its_range(dtype: type, tmp_path: Path) -> None:
    values = random_pixels(high=3000, dtype=dtype) + dtype(500)
    expected = as_rgb(stretched(values))
    image = Image.fromarray(values)
    assert image.mode in ("I;16", "I", "F")
    image.save(tmp_path / "x.tif")
    assert np.array_equal(pixels_of(read_image(image)), expected)
    assert np.array_equal(pixels_of(read_image(tmp_path / "x.tif")), as_rgb(by_percentiles(values)))
    if dtype is not np.float32:
        for array in (values, values[..., None], values[None], torch.from_numpy(values.copy())):
            assert np.array_equal(pixels_of(read_image(array)), expected)
    if dtype is np.uint16:
        image.save(tmp_path / "x.png")
        assert np.array_equal(pixels_of(read_image(tmp_path / "x.png")), expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_wide_color_png_is_read_in_full(channels: int, tmp_path: Path) -> None:
    """Pillow alone keeps the upper 8 bits: 12-bit pixels would be 0 to 15 of 255, nearly black."""
    values = random_pixels(channels, high=4096, dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535
    path = wide_png(tmp_path / "x.png", values)
    colors = values if channels == 3 else values[..., :-1]
    expected = np.broadcast_to(stretched(colors), (HEIGHT, WIDTH, 3))
    assert np.asarray(Image.open(path)).reshape(-1)[:3].max() < 16
    assert np.array_equal(pixels_of(read_image(path)), expected)
    opened = Image.open(path)
    assert np.array_equal(pixels_of(read_image(opened)), expected)
    assert opened.tile and opened.fp.tell() == Image.open(path).fp.tell()  # the caller's image is as it was
    if channels != 3:
        values[:6, :, -1] = 0
        assert np.array_equal(pixels_of(read_image(wide_png(path, values)))[:6], np.zeros((6, WIDTH, 3)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_wide_color_tiff_is_read_in_full(order: str, tmp_path: Path) -> None:
    bands = np.moveaxis(random_pixels(3, high=4096, dtype=np.uint16), -1, 0)
    expected = np.stack([by_percentiles(band) for band in bands], axis=-1)
    for compress in (False, True):
        for by_band in (False, True):
            path = wide_tiff(tmp_path / "x.tif", bands, by_band=by_band, order=order, compress=compress)
            for source in (path, path.read_bytes(), Image.open(path) if not by_band else path):
                assert np.array_equal(pixels_of(read_image(source)), expected)
    assert np.array_equal(pixels_of(read_image(bands)), stretched(np.moveaxis(bands, 0, -1)))  # an array, no raster


def test_missing_values_do_not_count(tmp_path: Path) -> None:
    values = random_pixels(high=1000, dtype=np.float32)
    holes = values.copy()
    holes[0, :3] = (np.nan, np.inf, -np.inf)
    expected = stretched(np.where(np.isfinite(holes), holes, holes[1, 0]))
    expected[0, :3] = 0
    assert np.array_equal(pixels_of(read_image(Image.fromarray(holes))), as_rgb(expected))

    declared = TiffImagePlugin.ImageFileDirectory_v2()
    declared[42113] = "-9999"
    holes[0, :3] = -9999
    Image.fromarray(holes).save(tmp_path / "x.tif", tiffinfo=declared)
    shown = pixels_of(read_image(tmp_path / "x.tif"))[..., 0]
    valid = holes != -9999
    assert not shown[~valid].any() and np.array_equal(shown[valid], by_percentiles(holes[valid]))
    with pytest.raises(RSMoEError, match="holds no data"):
        read_image(Image.fromarray(np.full_like(values, np.nan)))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [(0, np.uint16, 0), (65535, np.uint16, 255), (-5, np.int32, 0), (32768, np.int32, 128), (0.5, np.float32, 128)],
)
def test_an_image_of_one_value(value: float, dtype: type, expected: int) -> None:
    image = Image.fromarray(np.full((HEIGHT, WIDTH), value, dtype))
    assert np.array_equal(pixels_of(read_image(image)), np.full((HEIGHT, WIDTH, 3), expected))


def test_arrays_and_tensors() -> None:
    pixels = random_pixels(3)
    unit = torch.from_numpy(pixels / 255.0)
    chw = unit.permute(2, 0, 1)
    floats = (unit.numpy(), unit, chw, chw.float(), chw.float().requires_grad_())
    for source in (pixels, pixels.transpose(2, 0, 1), *floats):
        assert np.array_equal(pixels_of(read_image(source)), pixels)
    assert np.abs(pixels_of(read_image(chw.bfloat16())).astype(int) - pixels).max() <= 1
    mask = pixels[..., 0] > 128
    assert np.array_equal(pixels_of(read_image(mask)), as_rgb(np.where(mask, 255, 0)))
    holes = np.where(mask[..., None], unit.numpy(), np.nan)
    assert np.array_equal(pixels_of(read_image(holes)), np.where(mask[..., None], pixels, 0))
    oversteps = unit.numpy() * 1.015 - 0.007
    assert pixels_of(read_image(oversteps)).max() == 255
    pixels.setflags(write=False)
    assert np.array_equal(pixels_of(read_image(pixels[::-1])), pixels[::-1])


def test_orientation_of_a_camera_is_applied(tmp_path: Path) -> None:
    pixels = random_pixels(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    expected = np.rot90(pixels, -1)
    assert np.array_equal(pixels_of(read_image(tmp_path / "x.png")), expected)
    assert np.array_equal(pixels_of(read_image(Image.open(tmp_path / "x.png"))), expected)
    Image.fromarray(pixels).save(tmp_path / "bad.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(pixels_of(read_image(tmp_path / "bad.png")), pixels)


def test_first_frame_and_caller_untouched(tmp_path: Path) -> None:
    pixels = random_pixels(3)
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(read_image(tmp_path / "x.tif")), pixels)
    mine = Image.fromarray(pixels)
    read_image(mine).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(mine), pixels)


# ---- bad input


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("not an image at all")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, message in [
        ("lost.png", "there is no file .*lost.png: check the path"),
        ("link.png", "there is no file .*link.png"),
        ("empty.png", r"empty.png is empty \(0 bytes\)"),
        ("notes.png", "notes.png is not an image that can be read here"),
        ("", "is a folder, not an image: name the files in it"),
    ]:
        for source in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(RSMoEError, match=message):
                read_image(source)
    with pytest.raises(RSMoEError, match="is not a regular file"):
        read_image("/dev/null")
    with pytest.raises(RSMoEError, match="there is no file"):
        read_image("name with a \0 byte.png")
    with pytest.raises(RSMoEError, match="the path of the image is empty: give"):
        read_image("")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on the damaged directory, before it raises
@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "gif", "bmp", "webp", "deflate.tif"])
def test_truncated_at_any_place(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{extension}"
    options = {"compression": "tiff_adobe_deflate"} if extension == "deflate.tif" else {}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, **options)
    whole = path.read_bytes()
    for share in (0.0005, 0.002, 0.01, 0.05, 0.2, 0.5, 0.9):
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        with pytest.raises(
            RSMoEError, match=f"x.{extension} (is|cannot be opened .*: it is) (truncated or damaged|not an image)"
        ):
            read_image(path)


def test_damaged_bytes_never_raise_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for extension in ("png", "jpg", "tif", "gif"):
        path = tmp_path / f"x.{extension}"
        Image.fromarray(random_pixels(3)).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[generator.integers(0, min(len(whole), 300), 4)] = generator.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    pixels_of(read_image(path))
                except RSMoEError as error:
                    assert path.name in str(error) and "\n" not in str(error)


def test_no_permission(photo: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # file modes do not bind a test that runs as root
    with pytest.raises(RSMoEError, match=r"cannot be opened .Permission denied.: check its permissions"):
        read_image(photo[0])


@pytest.mark.parametrize("excess", [1.5, 2.5])
@pytest.mark.parametrize("form", ["path", "pil", "base64"])
def test_over_the_bomb_limit_nothing_is_decoded(
    excess: float, form: str, photo: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow only warns up to twice its limit, and raises above that; both are errors here."""
    source = {
        "path": photo[0],
        "pil": Image.open(photo[0]),
        "base64": base64.b64encode(photo[0].read_bytes()).decode(),
    }
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(HEIGHT * WIDTH / excess))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            with pytest.raises(RSMoEError, match=r"over Pillow's limit .*cut it into tiles"):
                read_image(source[form])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (MIN_SIDE, MIN_SIDE - 1)])
def test_too_few_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "x.png")
    for source in (tmp_path / "x.png", Image.new("L", size), np.zeros((*size, 3), np.uint8)):
        with pytest.raises(RSMoEError, match=f"pixels, too few to describe: give an image of at least {MIN_SIDE}"):
            read_image(source)
    assert read_image(Image.new("L", (MIN_SIDE, MIN_SIDE))).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((20,), np.uint8), r"array shape \[20\]"),
        (np.zeros((20, 20, 13), np.uint8), "of more bands choose three"),
        (np.zeros((2, 20, 20, 3), np.uint8), "give several images as a list"),
        (np.zeros((20, 20, 0), np.uint8), "is not an image"),
        (np.zeros((4, 20, 20), np.uint16), "has 4 channels of uint16: choose one band, or three"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), "has dtype int64, whose range is not known: give uint8"),
        (np.zeros((20, 20), np.complex64), "has dtype complex64"),
        (np.full((20, 20), "x", dtype=object), "has dtype object"),
        (np.full((20, 20, 3), 200.0), "floats from 200 to 200: floats must be 0 to 1"),
        (torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0)), "undo a normalization"),
        (np.full((20, 20), np.nan), "floats from nan to nan"),
        (Image.new("La", (20, 20)), "pixels of mode 'La': convert it to RGB first"),
        (None, "is of type NoneType: give a path"),
        (b"bytes", "the image of 5 bytes is not an image"),
        ("data:image/png;base64,@@@", "is not valid base64"),
        ("data:text/plain,hello", "is not of the form data:image/png;base64"),
        ("data:image/png;base64,", r"is empty \(0 bytes\)"),
        ("data:image/png;base64,aGVsbG8=", "is not an image that can be read here"),
        ("file://elsewhere/x.png", "is on another machine"),
    ],
)
def test_wrong_shapes_types_and_strings(source: object, message: str) -> None:
    with pytest.raises(RSMoEError, match=message):
        read_image(source)
    with pytest.raises(RSMoEError, match="the second image"):
        read_image(np.zeros((20,), np.uint8), name="the second image")
