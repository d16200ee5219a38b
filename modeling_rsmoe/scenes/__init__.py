"""Georeferenced rasters of any size: read by windows, cut into tiles, described tile by tile.

```python
from modeling_rsmoe.inference import Predictor, load
from modeling_rsmoe.scenes import describe_scene

checkpoint = load("rs-moe-nano")
caption = describe_scene("scene.tif", Predictor(checkpoint.model, checkpoint.processor)).text
```

`files` says what is a scene, `raster` reads it (by `utils.rasters`), `grid` cuts, `footprint` locates, `describe` runs
the model over tiles, `summary` and `answers` make one text of them, `outputs` writes, `style` colors, `map` and
`figure` show, `stac` finds rasters in items; `pipeline` does these one after the other. `change` is two dates on one
grid (`change_align`), compared by their texts (`change_words`). What needs rasterio, geopandas or pystac is imported
where it is used (`extras.require`).
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .change import describe_change
    from .change_result import ChangeResult
    from .describe import Tile
    from .pipeline import describe_scene, describe_scenes, open_scenes
    from .result import SceneResult, SceneTask


_MODULES = dict.fromkeys(("describe_scene", "describe_scenes", "open_scenes"), "pipeline")
_MODULES |= {"describe_change": "change", "ChangeResult": "change_result"}
_MODULES |= {"SceneResult": "result", "SceneTask": "result", "Tile": "describe"}


def __getattr__(name: str):
    """Imported with the first name that is asked for, so that `rsmoe --help` answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


__all__ = [
    "ChangeResult",
    "SceneResult",
    "SceneTask",
    "Tile",
    "describe_change",
    "describe_scene",
    "describe_scenes",
    "open_scenes",
]
