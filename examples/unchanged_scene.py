"""How often do descriptions differ where nothing has changed? Needs the extra `geo`.

    python examples/unchanged_scene.py rs-moe-nano scene.tif other.tif --tile 256 --bands 1,2,3

Each scene is described as it is, and again moved by two pixels, brightened, and with noise: an unchanged place on
another date looks no more alike. What `rsmoe caption before.tif after.tif --change` tells is to be read beside these
shares. "By two experts": a noun counts only if the texts of two experts name it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio

from modeling_rsmoe.inference import Predictor, load
from modeling_rsmoe.scenes.bands import parse_bands
from modeling_rsmoe.scenes.change_words import CAPTION, Difference, compare
from modeling_rsmoe.scenes.pipeline import describe_scene


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of [bands, H, W], 0 to 255
    "moved by 2 pixels": lambda values: np.roll(values, 2, axis=(1, 2)),
    "15 % brighter": lambda values: values * 1.15,
    "noise of 5 grey levels": lambda values: values + np.random.default_rng(0).normal(0, 5, values.shape),
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


def has_two_experts(difference: Difference) -> bool:
    named = [*difference.appears.values(), *difference.disappears.values()]
    return any(len(set(names) - {CAPTION}) > 1 for names in named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--bands", type=parse_bands)
    arguments = parser.parse_args()
    checkpoint = load(arguments.model)
    predictor = Predictor(checkpoint.model, checkpoint.processor)
    found: dict[str, list[Difference]] = {name: [] for name in CHANGES}
    with tempfile.TemporaryDirectory() as folder:
        for scene in arguments.scenes:
            cut = {"tile": arguments.tile, "bands": arguments.bands}
            tiles = describe_scene(scene, predictor, **cut).tiles
            for name, change in CHANGES.items():
                changed = describe_scene(write_changed(scene, change, Path(folder) / "changed.tif"), predictor, **cut)
                found[name] += map(compare, tiles, changed.tiles)
    print(
        "| change of the pixels | tiles | name other things | by two experts | same words |\n|---|---:|---:|---:|---:|"
    )
    for name, differences in found.items():
        shares = [
            np.mean(values)
            for values in (
                [one.differs for one in differences],
                [has_two_experts(one) for one in differences],
                [one.is_verbatim for one in differences],
            )
        ]
        print(f"| {name} | {len(differences)} | {' | '.join(f'{share:.0%}' for share in shares)} |")


if __name__ == "__main__":
    main()
