"""Many questions about the same images."""

import hashlib
from collections.abc import Sequence

import torch

from ..utils.images import ImageInput, read_image
from .predict import Predictor


MAX_BYTES = 256 << 20  # of kept features: 680 images of rs-moe-nano [our decision]


class CachingPredictor(Predictor):
    """A `Predictor` that encodes an image once, however often it is asked about; arguments as of `Predictor`.

    Images are known by their pixels. Features are kept up to `MAX_BYTES`; later images are encoded each time.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._features: dict[bytes, torch.Tensor] = {}
        self._num_bytes = 0

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """As of `Predictor`."""
        read = [read_image(image) for image in images]
        keys = [hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest() for image in read]
        new = {key: image for key, image in zip(keys, read) if key not in self._features}
        features = dict(self._features)
        if new:
            encoded = super().encode(list(new.values()))
            features |= dict(zip(new, encoded))
            if self._num_bytes + encoded.nbytes <= MAX_BYTES:
                self._features, self._num_bytes = features, self._num_bytes + encoded.nbytes
        return torch.stack([features[key] for key in keys])
