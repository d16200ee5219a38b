"""How a TIFF begins."""

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # either byte order; the last two: BigTIFF
