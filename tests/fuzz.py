"""Images and rasters that are damaged at random, through every entry point: nothing but our own errors may come out.

    python -m tests.fuzz --minutes 10 --seed 1

runs as long and keeps what failed under tests/fuzz_seeds/, which the suite reads again every time.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.footprint import footprint, outline
from modeling_rsmoe.scenes.grid import Grid, Window
from modeling_rsmoe.scenes.stac import find_scenes
from modeling_rsmoe.utils.images import read_image
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import UTM, noise, write_raster


MAX_SECONDS = 10  # of processor time for one file of a few kB
SEEDS = Path(__file__).parent / "fuzz_seeds"
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16, **UTM},
    "deflate": {"compress": "deflate", "predictor": 2, **UTM},
    "lzw": {"compress": "lzw", "nodata": 3, "interleave": "band"},
    "big": {"BIGTIFF": "YES", "crs": "EPSG:4326", "transform": rasterio.Affine(0.1, 0, 179, 0, -0.1, 80)},
}
DTYPES = ("uint8", "uint16", "int16", "float32", "float64", "complex64")


def base_files() -> dict[str, bytes]:
    """One small whole file of each kind."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, layout) in enumerate(LAYOUTS.items()):
            for dtype in DTYPES[number % 2 :: 2]:
                bands = 1 + 2 * (number % 2)
                layout = {key: value for key, value in layout.items() if key != "predictor" or "int" in dtype}
                path = write_raster(Path(folder) / "a.tif", noise(bands, 40, 36, dtype, 200, number), **layout)
                files[f"{name} {dtype}"] = path.read_bytes()
    picture = Image.fromarray(noise(3, 24, 20, "uint8", 255).transpose(1, 2, 0))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "JPEG2000"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        files[kind] = stream.getvalue()
    asset = {"href": "fuzzed.tif", "type": "image/tiff", "roles": ["data"]}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "i", "geometry": None, "links": []}
    item |= {"properties": {"datetime": "2024-01-01T00:00:00Z"}, "assets": {"a": asset}}
    files["STAC"] = json.dumps({"type": "FeatureCollection", "features": [item]}).encode()
    return files


Damage = tuple[str, int, bytes]


def damages() -> st.SearchStrategy[list[Damage]]:
    """Bytes that are replaced, put in or cut off, most often near the start, where the headers are."""
    place = st.one_of(st.integers(0, 300), st.integers(0, 20_000))
    word = st.one_of(
        st.binary(min_size=1, max_size=4),
        st.sampled_from(
            [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0", b"\0\0\1\0", b"\0" * 8]
        ),
    )
    one = st.tuples(st.sampled_from(["replace", "replace", "replace", "insert", "cut"]), place, word)
    return st.lists(one, min_size=1, max_size=6)


def damaged(content: bytes, plan: list[Damage]) -> bytes:
    for what, place, word in plan:
        place %= len(content) + 1
        if what == "replace":
            content = content[:place] + word + content[place + len(word) :]
        elif what == "insert":
            content = content[:place] + word + content[place:]
        elif place > 4:
            content = content[:place]
    return content


def try_file(content: bytes, folder: Path) -> str:
    """Every entry point over one file.

    Returns:
        "read" if an entry point could read it, else "refused".

    Raises:
        Whatever is not our own error.
    """
    path = folder / "fuzzed.tif"
    path.write_bytes(content)
    uses = [lambda: read_image(str(path)), lambda: _use_raster(path), lambda: find_scenes(str(path))]
    try:
        opened = Image.open(path)
    except Exception:  # Pillow's own
        opened = None
    with opened or contextlib.nullcontext():
        uses += [lambda: read_image(opened)] if opened else []
        outcomes = [_ours(use) for use in uses]
        return "read" if any(outcomes) else "refused"


def _use_raster(path: Path) -> None:
    with open_raster(path, bands=(1,)) as raster:
        raster.overview(64)
        grid = Grid(raster.width, raster.height, max(512, max(raster.width, raster.height) // 64))
        windows = [next(iter(grid)), Window(raster.width - 8, raster.height - 8, 8, 8)]
        for window in windows:
            picture = raster.read(window, 64)
            assert picture.image.mode == "RGB" and picture.valid.shape == picture.image.size[::-1]
            geometry = footprint(raster, window)
            json.dumps(geometry, allow_nan=False)
            outline(raster, window)


def _ours(action: Callable[[], Any]) -> bool:
    try:
        action()
    except RSMoEError as error:
        assert str(error).strip(), "an error says something"
        return False
    return True


def try_array(values: np.ndarray) -> None:
    """An array as an image."""
    _ours(lambda: read_image(values))


def kept_seeds() -> list[Path]:
    return sorted(SEEDS.glob("*.bin")) if SEEDS.is_dir() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    ends, files, counts = time.monotonic() + 60 * arguments.minutes, base_files(), {"read": 0, "refused": 0}
    print(f"seed {arguments.seed}, {len(files)} kinds of files", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last.bin"
        SEEDS.mkdir(exist_ok=True)

        def once(name: str, plan: list[Damage]) -> None:
            content = damaged(files[name], plan)
            last.write_bytes(content)
            began = time.process_time()
            try:
                counts[try_file(content, Path(folder))] += 1
                assert time.process_time() - began < MAX_SECONDS, "a small file keeps the processor busy"
            except Exception:
                (SEEDS / f"{name.replace(' ', '_')}_{arguments.seed}.bin").write_bytes(content)
                raise

        rounds = 0
        while time.monotonic() < ends:
            check = given(st.sampled_from(sorted(files)), damages())(once)
            check = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
                check
            )
            seed(arguments.seed + rounds)(check)()
            rounds += 1
            print(f"{sum(counts.values())} files, {counts}", flush=True)
    print(f"nothing but our own errors, seeds {arguments.seed} to {arguments.seed + rounds - 1}")


if __name__ == "__main__":
    main()
