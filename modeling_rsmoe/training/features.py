"""Image features of the frozen ViT, computed once for each image and read from disk afterwards.

A cache folder belongs to one encoder (its weights, settings and preprocessing): `features.f16` holds float16
[patches, width] of one image after the other, `index.json` says which image (by its content) each belongs to. The
index is written after the features it names: what a killed process had not entered is computed again.
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock

from ..errors_rsmoe import RSMoEError
from ..inference.encoder import encoder_sha256
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..processing_rsmoe import RSMoEProcessor
from ..utils.files import disk_errors, parse_json, sha256_of, write_whole
from ..utils.images import read_images
from ..utils.progress import Progress, no_progress


FORMAT = 1
VISION_BATCH = 8  # images that the ViT encodes together
INDEX_EVERY = 32  # batches between two writings of the index


class FeatureCache:
    """Features of images on disk, made by `add` and read by calling the cache.

    Args:
        folder: of all caches; this one's has the encoder's hash as its name.
        model: makes the features; its ViT must not change while the cache is used.
        processor: makes the pixels.

    Raises:
        RSMoEError: the folder cannot be read or written.
    """

    def __init__(self, folder: str | Path, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor):
        self.encoder = encoder_sha256(model.model.encoder, processor)
        self.folder = Path(folder) / self.encoder[:16]
        self._data_file, self._index_file = self.folder / "features.f16", self.folder / "index.json"
        self._model, self._processor = model, processor
        self._places: dict[str, int] = {}  # sha256 of an image -> its place in the file
        self._files: dict[str, list[Any]] = {}  # path -> [size, modification time in ns, sha256]
        self._shape: Sequence[int] = ()  # patches, width
        self._values: np.ndarray | None = None

    def add(self, images: Sequence[Path], progress: Progress = no_progress) -> None:
        """Make the features of those images that have none here, or have changed. A second process waits meanwhile.

        Raises:
            RSMoEError: an image cannot be read, a feature is not finite, or the disk is full (finished features stay).
        """
        with disk_errors(f"cannot keep image features in {self.folder}:", "free some space or give another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                self._read_index()
                missing = self._missing(list(dict.fromkeys(images)))
                self._make(missing, progress)
                self._write_index()
        if self._places:
            self._values = np.memmap(self._data_file, np.float16, "r", shape=(len(self._places), *self._shape))

    def __call__(self, images: Sequence[str | Path]) -> torch.Tensor:
        """[images, patches, width] in float32.

        Raises:
            RSMoEError: an image was not given to `add`.
        """
        unknown = [str(image) for image in images if str(image) not in self._files]
        if unknown or self._values is None:
            raise RSMoEError(f"no features of {unknown[:3]} in {self.folder}; add the image to the cache first")
        places = [self._places[self._files[str(image)][2]] for image in images]
        return torch.from_numpy(self._values[places].astype(np.float32))

    def _read_index(self) -> None:
        """Take the index as it stands; anything wrong with it, or with the file, starts the cache anew."""
        self._places, self._files, self._shape = {}, {}, ()
        with suppress(OSError, ValueError, KeyError, TypeError):
            index = parse_json(self._index_file.read_bytes())
            is_whole = self._data_file.stat().st_size >= len(index["images"]) * math.prod(index["shape"]) * 2
            if is_whole and index["format"] == FORMAT and index["encoder"] == self.encoder:
                self._places, self._files, self._shape = index["images"], index["files"], index["shape"]

    def _write_index(self) -> None:
        if self._shape:
            index = {"format": FORMAT, "encoder": self.encoder, "shape": self._shape}
            write_whole(self._index_file, json.dumps({**index, "images": self._places, "files": self._files}))

    def _missing(self, images: list[Path]) -> list[Path]:
        """Those without features; what is known of each file is brought up to date on the way."""
        missing: dict[str, Path] = {}
        for image in images:
            try:
                stat = image.stat()
                known = self._files.get(str(image), [])
                if known[:2] != [stat.st_size, stat.st_mtime_ns]:
                    self._files[str(image)] = known = [stat.st_size, stat.st_mtime_ns, sha256_of(image)]
            except OSError as error:
                raise RSMoEError(
                    f"image {image} cannot be read ({error.strerror}); put it back or leave its records out"
                ) from error
            if known[2] not in self._places:
                missing.setdefault(known[2], image)
        return list(missing.values())

    @torch.no_grad()
    def _make(self, images: list[Path], progress: Progress) -> None:
        self._data_file.touch()
        with self._data_file.open("r+b") as file:
            for number, start in enumerate(range(0, len(images), VISION_BATCH)):
                progress("encoding images", start, len(images), "images")
                batch = images[start : start + VISION_BATCH]
                values = self._embed(batch)
                self._shape = values.shape[1:]
                file.seek(len(self._places) * values[0].nbytes)
                file.write(values.tobytes())
                for image in batch:
                    self._places[self._files[str(image)][2]] = len(self._places)
                if number % INDEX_EVERY == INDEX_EVERY - 1 or start + VISION_BATCH >= len(images):
                    file.flush()
                    os.fsync(file.fileno())
                    self._write_index()

    def _embed(self, images: list[Path]) -> np.ndarray:
        model = self._model
        pixels = self._processor.image_processor(images=read_images(images), return_tensors="pt")["pixel_values"]
        values = model.encode_image(pixels.to(model.device)).half().cpu().numpy()
        if not np.isfinite(values).all():
            bad = images[int(np.argmin(np.isfinite(values).all((1, 2))))]
            raise RSMoEError(f"the ViT's features of {bad} are not finite in float16; train with vision: full instead")
        return values


def similar_images(features: FeatureCache, images: Sequence[Path], number: int) -> dict[Path, list[Path]]:
    """The `number` other images most like each image, by the cosine of their mean features.

    Args:
        features: of all these images.
        images: paths; repeated ones count once.
        number: of similar images for each; fewer where there are not as many.
    """
    images = list(dict.fromkeys(images))
    means = torch.cat([features(images[i : i + 256]).mean(1) for i in range(0, len(images), 256)])
    means = F.normalize(means, dim=-1)
    similar = {}
    for place, image in enumerate(images):
        cosines = means @ means[place]
        cosines[place] = -torch.inf
        nearest = cosines.topk(min(number, len(images) - 1)).indices.tolist()
        similar[image] = [images[i] for i in nearest]
    return similar
