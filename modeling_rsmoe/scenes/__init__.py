"""Georeferenced rasters of any size: read by windows, cut into tiles, described tile by tile.

```python
from modeling_rsmoe.inference import Predictor, load
from modeling_rsmoe.scenes.pipeline import describe_scene

checkpoint = load("rs-moe-nano")
caption = describe_scene("scene.tif", Predictor(checkpoint.model, checkpoint.processor)).text
```

`files` says what is a scene, `raster` reads it (by `utils.rasters`), `grid` cuts, `footprint` locates, `describe` runs
the model over tiles, `summary` and `answers` make one text of them, `outputs` writes, `map` and `figure` show, `stac`
finds rasters in items; `pipeline` does these one after the other. What needs rasterio, geopandas or pystac is imported
where it is used (`extras.require`).
"""
