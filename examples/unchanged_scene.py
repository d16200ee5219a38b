"""How often do descriptions differ where nothing has changed? Needs the extra `geo`.

    python examples/unchanged_scene.py rs-moe-nano scene.tif other.tif --tile 256 --bands 1,2,3

Each scene is described as it is, and again moved by two pixels, brightened, and with noise: an unchanged place on
another date looks no more alike. What `rsmoe caption before.tif after.tif --change` tells is to be read beside these
shares: of tiles with a noun that two experts name on one date alone, which it tells, or one expert, which it does not.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio

from modeling_rsmoe.inference import Predictor, load
from modeling_rsmoe.scenes.change_words import compare
from modeling_rsmoe.scenes.describe import Tile
from modeling_rsmoe.scenes.pipeline import describe_scene
from modeling_rsmoe.utils.rasters.bands import parse_bands


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of [bands, H, W], 0 to 255
    "moved by 2 pixels": lambda values: np.roll(values, 2, axis=(1, 2)),
    "15 % brighter": lambda values: values * 1.15,
    "noise of 5 gray levels": lambda values: values + np.random.default_rng(0).normal(0, 5, values.shape),
}


def write_changed(scene: Path, change: Callable[[np.ndarray], np.ndarray], output: Path) -> Path:
    """The scene, of 8 bits, with changed values on the same place."""
    with rasterio.open(scene) as source:
        values, profile = source.read(), source.profile
    lowest = 0 if profile.get("nodata") is None else 1  # 0 may be the no-data value
    changed = np.rint(change(values.astype(float))).clip(lowest, 255).astype(np.uint8)
    with rasterio.open(output, "w", **profile) as file:
        file.write(np.where(values == 0, values, changed))
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--bands", type=parse_bands)
    arguments = parser.parse_args()
    checkpoint = load(arguments.model)
    predictor = Predictor(checkpoint.model, checkpoint.processor)
    found: dict[str, list[tuple[Tile, Tile]]] = {name: [] for name in CHANGES}
    with tempfile.TemporaryDirectory() as folder:
        for scene in arguments.scenes:
            cut = {"tile": arguments.tile, "bands": arguments.bands}
            tiles = describe_scene(scene, predictor, **cut).tiles
            for name, change in CHANGES.items():
                changed = describe_scene(write_changed(scene, change, Path(folder) / "changed.tif"), predictor, **cut)
                found[name] += zip(tiles, changed.tiles, strict=True)
    print("| what was done | tiles | two experts | one expert | the same words |\n|---|---:|---:|---:|---:|")
    for name, pairs in found.items():
        two, one = ([compare(*pair, min_experts=number) for pair in pairs] for number in (2, 1))
        counts = [sum(difference.differs for difference in differences) for differences in (two, one)]
        counts.append(sum(difference.is_verbatim for difference in one))
        print(f"| {name} | {len(pairs)} | {' | '.join(f'{count / len(pairs):.0%}' for count in counts)} |")


if __name__ == "__main__":
    main()
