"""Features that `rsmoe encode` wrote, read back batch by batch, for questions without the images.

```python
instruction = question_instruction("Is it a port?")
for batch in FeatureFile("features.parquet").batches(16):
    predictions = predictor.predict(image_embeds=batch.image_embeds, instructions=instruction)
```
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import check_input
from .store import FEATURES, METADATA


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FeatureBatch:
    """Names of images, and their features `[images, patches, width]` in the dtype they were stored in."""

    images: list[str]
    image_embeds: "torch.Tensor"


class FeatureFile:
    """A Parquet of features, or a folder of such files. Memory holds one batch.

    Args:
        path: the output of `rsmoe encode`.

    Attributes:
        encoder_sha256: of the encoder that made them (`inference.encoder.encoder_sha256`).
        num_images: that have features.
        num_errors: images without.

    Raises:
        RSMoEError: there is no such file, or it holds no features.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        arrow, parquet = require("pyarrow", "geo"), require("pyarrow.parquet", "geo")
        for file in files:
            check_input(file, "a file of features")
        try:
            self._files = [parquet.ParquetFile(file) for file in files]
            manifests = [json.loads(file.schema_arrow.metadata[METADATA]) for file in self._files]
            (self.encoder_sha256,) = {manifest["settings"]["encoder_sha256"] for manifest in manifests}
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowInvalid) as error:
            raise RSMoEError(f"{self.path} holds no features of images: give what `rsmoe encode` wrote") from error
        errors = [file.read(["error"])["error"] for file in self._files]
        self.num_errors = sum(len(column) - column.null_count for column in errors)
        self.num_images = sum(map(len, errors)) - self.num_errors

    def check(self, encoder_sha256: str, checkpoint: str) -> None:
        """Refuse a checkpoint of another encoder: it would read the features as noise."""
        if encoder_sha256 != self.encoder_sha256:
            raise RSMoEError(
                f"the features of {self.path} were made by another image encoder ({self.encoder_sha256[:12]}) than "
                f"that of {checkpoint} ({encoder_sha256[:12]}): encode the images again with it, or give the --model "
                "that made them"
            )

    def batches(self, batch_size: int) -> Iterator[FeatureBatch]:
        """All images that have features, in order."""
        import torch

        for file in self._files:
            for batch in file.iter_batches(batch_size, columns=["image", FEATURES]):
                encoded = batch.filter(batch[FEATURES].is_valid())
                if len(encoded):
                    values: Any = encoded[FEATURES].to_numpy_ndarray()
                    yield FeatureBatch(encoded["image"].to_pylist(), torch.from_numpy(values.copy()))


def holds_features(path: str | Path) -> bool:
    """Whether a path is, by its name, an output of `rsmoe encode`: a Parquet, or a folder of such files."""
    path = Path(path)
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
