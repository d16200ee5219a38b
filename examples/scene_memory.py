"""Peak memory of captioning a large scene, beside that of captioning one tile: each in a process of its own.

    python examples/scene_memory.py nano --folder scene --tile 512 --batch-size 8

makes a 12,000 x 12,000 GeoTIFF of four 16-bit bands and one of a single tile in the folder (kept there, 1.2 GB), runs
`rsmoe caption` on both, and prints the peaks and their difference. Other options (`--router template`) go to
`rsmoe caption`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window


BLOCK = 512


def make_scene(path: Path, side: int, compress: str | None = None) -> Path:
    """Fields, tracks and water in four 16-bit bands (red, green, blue, near-infrared), UTM 33N, 1 m, no overviews."""
    random = np.random.default_rng(0)
    field = random.integers(300, 3000, (4, 16, 16), np.uint16).repeat(BLOCK // 16, 1).repeat(BLOCK // 16, 2)
    field += random.integers(0, 200, field.shape, np.uint16)
    field[:, ::64, :] = 2500
    options = {
        "driver": "GTiff",
        "count": 4,
        "dtype": "uint16",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
    }
    options |= {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 1, 1), "photometric": "rgb"}
    options |= {"compress": compress} if compress else {}
    with rasterio.open(path, "w", width=side, height=side, **options) as raster:
        for row in range(0, side, BLOCK):
            for column in range(0, side, BLOCK):
                height, width = min(BLOCK, side - row), min(BLOCK, side - column)
                block = np.roll(field, (row // 8, column // 8), (1, 2))[:, :height, :width]
                raster.write(block, window=Window(column, row, width, height))
    return path


def run(model: str, scene: Path, options: list[str]) -> tuple[float, float]:
    """Peak memory in MB and seconds of `rsmoe caption SCENE`."""
    output = scene.with_suffix(".jsonl")
    command = [sys.executable, "-m", "modeling_rsmoe.cli", "caption", str(scene), "--model", model, "--overwrite"]
    command += ["--output", str(output), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed")
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    return usage.ru_maxrss / unit, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--compress", help="deflate: a small file, slower to read")
    arguments, options = parser.parse_known_args()
    options += ["--tile", str(arguments.tile)]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    peaks = []
    for name, side in (("one tile", arguments.tile), ("scene", arguments.side)):
        scene = arguments.folder / f"{side}.tif"
        if not scene.exists():
            make_scene(scene, side, arguments.compress)
        peak, seconds = run(arguments.model, scene, options)
        peaks.append(peak)
        print(f"{name}: {side} x {side} px, peak {peak:.0f} MB, {seconds:.0f} s", flush=True)
    print(f"difference: {peaks[1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()
