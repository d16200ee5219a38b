"""How much memory an image of 4096 x 4096 takes: Pillow's decoder alone, and `read_image`. Each in its own process.

python -m tests.attack.image_memory
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.utils.test_images import wide_png, wide_tiff


SIDE = 4096
_MEASURE = """
import sys
from io import BytesIO
from PIL import Image
from modeling_rsmoe.serving.images import open_image
from modeling_rsmoe.serving.limits import Limits
from modeling_rsmoe.utils.images import read_image

small, large, how = sys.argv[1:]
doors = {"decoder": lambda path: Image.open(path).load(), "read_image": read_image}
doors["server"] = lambda path: read_image(open_image(open(path, "rb").read(), "image", Limits()))


def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024


doors[how](small)
before = peak()
doors[how](large)
print(peak() - before)
"""


def write_images(folder: Path, side: int) -> dict[str, Path]:
    """One file of each kind of pixels, `side` pixels on a side."""
    folder.mkdir(exist_ok=True)
    ramp = np.arange(side, dtype=np.uint32)
    gray = (ramp[:, None] * 7 + ramp * 3).astype(np.uint16)
    color = np.stack([gray, gray[::-1], gray.T])  # [3, H, W]
    small = (color >> 8).astype(np.uint8).transpose(1, 2, 0)
    alpha = np.dstack([small, small[..., :1]])
    images = {
        "8-bit RGB": (Image.fromarray(small), "rgb.png"),
        "JPEG": (Image.fromarray(small), "rgb.jpg"),
        "WebP": (Image.fromarray(small), "rgb.webp"),
        "JPEG 2000": (Image.fromarray(small), "rgb.jp2"),
        "palette, one color transparent": (Image.fromarray(small).quantize(16), "palette.png"),
        "RGBA": (Image.fromarray(alpha), "rgba.png"),
        "16-bit gray": (Image.fromarray(gray), "gray.png"),
        "32-bit float": (Image.fromarray(gray.astype(np.float32)), "float.tif"),
    }
    files = {}
    for name, (image, file) in images.items():
        image.save(folder / file, **({"transparency": 1} if file == "palette.png" else {}))
        files[name] = folder / file
    files["16-bit RGB, PNG"] = wide_png(folder / "wide.png", color.transpose(1, 2, 0))
    files["16-bit RGB, TIFF"] = wide_tiff(folder / "wide.tif", color, by_band=False)
    files["16-bit RGBA"] = wide_png(folder / "wide-alpha.png", np.dstack([*color, gray]))
    return files


def peak_bytes(small: Path, large: Path, door: str) -> int:
    """How much the memory's peak grows by reading `large`, after `small` was read."""
    command = [sys.executable, "-c", _MEASURE, str(small), str(large), door]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, large = write_images(Path(folder, "small"), 64), write_images(Path(folder, "large"), SIDE)
        print(f"| {SIDE} x {SIDE} px | decoder | `read_image` | server |\n|---|---:|---:|---:|")
        for name, path in large.items():
            doors = ("decoder", "read_image", "server")
            row = [f"{peak_bytes(small[name], path, door) / SIDE**2:.1f}" for door in doors]
            print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
