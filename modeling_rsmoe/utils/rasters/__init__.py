"""Rasters: GeoTIFF, JPEG 2000 and what else GDAL reads, with any kind of numbers, as RGB images.

`drivers` says what kind of file a path names, `sources` what else it makes GDAL open, `bands` which bands are shown,
`stretch` how numbers become 8 bits, `raster` reads windows, `image` a whole raster as one image,
under `options`. Knows nothing about
tiles or models. What needs rasterio imports it where it is used (`extras.require`).
"""
