"""Memory does not grow with the scene: 12,000 x 12,000 px of four 16-bit bands (1.2 GB of numbers) beside one tile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from rasterio.windows import Window

from tests.scenes.rasters import UTM, noise, write_raster


SIDE, TILE, MAX_MORE_MB = 12_000, 2_000, 300
CODE = """
import json, resource, sys
from pathlib import Path
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.scenes.pipeline import describe_scene
from tests.tiny import tiny_model, tiny_processor

predictor = Predictor(tiny_model(), tiny_processor(), {"router_mode": "none"})
peaks = []
for path in sys.argv[1:]:
    result = describe_scene(path, predictor, tile=2000, output=Path(path).with_suffix(".geojson"), batch_size=8)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps({"peaks": peaks, "tiles": len(result.tiles)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    block = noise(4, 512, 512)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "rgb", **UTM}
    one = write_raster(tmp_path / "one.tif", block, **layout)
    whole = tmp_path / "whole.tif"
    size = {"width": SIDE, "height": SIDE, "count": 4, "dtype": "uint16"}
    with rasterio.open(whole, "w", driver="GTiff", SPARSE_OK=True, **size, **layout) as raster:
        for number in range(23):  # the others are sparse in the file, and zeros in memory
            raster.write(block, window=Window(512 * number, 512 * number, 512, 512))
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(one), str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tiles"] == (SIDE // TILE) ** 2
    assert found["peaks"][1] - found["peaks"][0] < MAX_MORE_MB, found
    print(found)
