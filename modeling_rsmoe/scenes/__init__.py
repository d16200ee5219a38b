"""Georeferenced rasters of any size: read by windows, cut into tiles, described tile by tile.

`raster` reads, `grid` cuts, `footprint` locates, `describe` runs the model, `work` lets a stopped run go on, `summary`
and `answers` speak of the whole scene, `outputs` writes, `stac` finds rasters in items. What needs rasterio, geopandas
or pystac is imported where it is used (`extras.require`).
"""
