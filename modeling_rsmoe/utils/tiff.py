"""How a TIFF begins, and its tags, without decoding it."""

from typing import Any, BinaryIO


TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # either byte order; the last two: BigTIFF
WIDTH, HEIGHT, SAMPLES_PER_PIXEL, GEO_KEYS = 256, 257, 277, 34735


def read_tags(file: BinaryIO) -> Any:
    """The tags of a TIFF's first image, by number. Whatever is wrong with it raises one of many errors of Pillow's."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from ..images_rsmoe import HeaderReader

    file.seek(0)
    head = file.read(16)
    if head[:4] not in TIFF_MAGIC:
        raise ValueError("not a TIFF")
    tags = ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
    header: Any = HeaderReader(file)
    header.seek(tags.next)
    tags.load(header)
    return tags
