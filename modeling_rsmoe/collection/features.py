"""Features that `rsmoe encode` wrote, read back batch by batch, for questions about images that are not looked at again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from .store import FEATURES, METADATA


if TYPE_CHECKING:
    import torch

    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor


@dataclass(frozen=True)
class FeatureBatch:
    """Some images' features.

    Attributes:
        images: their names.
        image_embeds: `[images, patches, width]`, in the dtype they were kept in: for `generate(image_embeds=...)`.
    """

    images: list[str]
    image_embeds: "torch.Tensor"


class FeatureFile:
    """A Parquet of features, or a folder of such files. Memory holds one batch.

    Args:
        path: the output of `rsmoe encode`.

    Attributes:
        encoder_sha256: of the encoder that made them (`inference.encoder.encoder_sha256`).
        images: how many images have features.
        errors: how many have none.

    Raises:
        RSMoEError: there is no such file, or it holds no features.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        parquet = require("pyarrow.parquet", "geo")
        arrow = require("pyarrow", "geo")
        try:
            self._files = [parquet.ParquetFile(file) for file in files]
            made = [json.loads(file.schema_arrow.metadata[METADATA]) for file in self._files]
            (self.encoder_sha256,) = {one["settings"]["encoder_sha256"] for one in made}
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowInvalid) as error:
            if not self.path.exists():
                raise RSMoEError(f"there is no file {self.path}: give what `rsmoe encode` wrote") from error
            raise RSMoEError(f"{self.path} holds no features of images: give what `rsmoe encode` wrote") from error
        errors = [file.read(["error"])["error"] for file in self._files]
        self.errors = sum(len(column) - column.null_count for column in errors)
        self.images = sum(map(len, errors)) - self.errors

    def check(self, encoder_sha256: str, checkpoint: str) -> None:
        """Refuse a checkpoint of another encoder.

        Raises:
            RSMoEError: it would read the features as noise.
        """
        if encoder_sha256 != self.encoder_sha256:
            raise RSMoEError(
                f"the features of {self.path} were made by another image encoder ({self.encoder_sha256[:12]}) than that of "
                f"{checkpoint} ({encoder_sha256[:12]}): encode the images again with it, or give the --model that made them"
            )

    def batches(self, batch_size: int) -> Iterator[FeatureBatch]:
        """All images that have features, in order."""
        import torch

        for file in self._files:
            for batch in file.iter_batches(batch_size, columns=["image", FEATURES]):
                kept = batch.filter(batch[FEATURES].is_valid())
                if len(kept):
                    values: Any = kept[FEATURES].to_numpy_ndarray()
                    yield FeatureBatch(kept["image"].to_pylist(), torch.from_numpy(values.copy()))


def holds_features(path: str | Path) -> bool:
    """Whether a path looks like the output of `rsmoe encode`: a Parquet, or a folder of such files."""
    path = Path(path)
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def predict_features(
    batch: FeatureBatch,
    text: str,
    model: "RSMoEForConditionalGeneration",
    processor: "RSMoEProcessor",
    generation: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Give `text` as the instruction for every image of a batch; no image is looked at.

    Args:
        model, processor: of a checkpoint with the features' encoder (`FeatureFile.check`).
        generation: keyword arguments of `generate` (`num_beams`, `router_mode`, ...).

    Returns:
        For each image `text`, and by the experts' names `router_prompts` and `parts`.
    """
    from PIL import Image

    count = len(batch.images)
    # The processor makes the rows of texts for images; these stand for those whose features are there.
    blank = [Image.new("RGB", (32, 32))] * count
    inputs = processor(images=blank, text=[text] * count, return_tensors="pt").to(model.device)
    del inputs["pixel_values"]
    embeds = batch.image_embeds.to(model.device, model.dtype)
    outputs: Any = model.generate(**inputs, **generation, image_embeds=embeds, return_dict_in_generate=True)
    return processor.post_process_generation(outputs)
