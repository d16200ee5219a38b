"""Rasters: GeoTIFF, JPEG 2000 and what else GDAL reads, with any kind of numbers, as RGB images.

`drivers` says what kind of file a path names, `sources` what else it makes GDAL open, `archives` which raster is in a
`.zip`. `bands` says which bands are shown, `radar` how a radar's are, `stretch` how numbers become 8 bits,
`ground_points` where a raster without a transform lies. `raster` reads windows (`window`), `image` a whole raster as
one image, under `options`. Knows nothing about tiles or models. What needs rasterio imports it where it is used
(`extras.require`).
"""
