"""What is done to the items of a collection: captions of images or tiles, or features for later questions.

A describer is made by whoever starts a run and sent to its workers, on other machines too; only there does it open its
checkpoint. Knows nothing about files and shards.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors_rsmoe import RSMoEError
from ..utils.provenance import folder_sha256
from ..utils.rasters.options import AS_IN_THE_FILE, RasterOptions
from .images import Item, Row
from .store import FEATURES, Store


if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from ..inference import GenerationSettings

FeatureType = Literal["float16", "float32"]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that every worker opens for itself.

    Attributes:
        name: as the user knows it.
        revision: its commit on the Hub or the beginning of `sha256`.
        sha256: of its folder (`provenance.folder_sha256`).
        find: gives its folder on the machine that calls it.
        load: gives its model (or, for features, its encoder) and its processor out of that folder.
    """

    name: str
    revision: str
    sha256: str
    find: Callable[[], Path]
    load: Callable[[Path], tuple[Any, Any]]


class Describer(ABC):
    """Runs a checkpoint over images and gives, for each, the values of its own columns.

    Args:
        checkpoint: that it runs.
        raster_options: how the worker reads the rasters among the images.

    Attributes:
        kind: what it writes.
        unit: what it writes it of, in the plural.
        metadata: of the output's schema, besides the settings.
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "images"
    metadata: ClassVar[dict[bytes, bytes]] = {}

    def __init__(self, checkpoint: CheckpointSource, raster_options: RasterOptions = AS_IN_THE_FILE):
        self.checkpoint, self.raster_options = checkpoint, raster_options
        self._loaded: tuple[Any, Any] | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that rows depend on besides their image, as JSON; a run with other settings is another run."""

    @abstractmethod
    def describe(self, images: "Sequence[Image.Image]") -> list[Row]:
        """The values of its columns for each image; `error` in place of them where it has none."""

    def revisit(self, items: Sequence[Item], store: Store) -> list[Item]:
        """Items to be described once more, now that each has a row."""
        return []

    def summary(self, items: Sequence[Item], store: Store) -> dict[str, Any]:
        """What the output's metadata says of its rows, as JSON."""
        return {}

    @abstractmethod
    def columns(self, rows: Sequence[Row]) -> "dict[str, pa.Array]":
        """Its columns of such values, which some rows lack."""

    def open(self, check: bool = False) -> None:
        """Load the checkpoint, once; `check` that it is the one that the run was started with."""
        if self._loaded is not None:
            return
        folder = self.checkpoint.find()
        if check and folder_sha256(folder) != self.checkpoint.sha256:
            raise RSMoEError(
                f"the checkpoint {folder} of a worker's machine is not the one that the run was started with: copy it "
                "there"
            )
        self._loaded = self.checkpoint.load(folder)

    @property
    def image_side(self) -> int:
        """What the checkpoint, which is open, makes of every image: the longer side in pixels."""
        assert self._loaded is not None
        return max(dict(self._loaded[1].image_processor.size).values())

    def table(self, rows: Sequence[Row]) -> "pa.Table":
        """Rows as `worker` makes them, as a table: what every collection has, and the describer's own columns."""
        import pyarrow as pa

        constants = {"model": self.checkpoint.name, "revision": self.checkpoint.revision}
        rows = [{**row, **constants} for row in rows]
        sizes = {name: column_of(rows, name, pa.int32()) for name in ("width", "height")}
        before, after = (
            {name: column_of(rows, name, pa.string()) for name in names}
            for names in (("image", "sha256"), ("error", "model", "revision"))
        )
        return pa.table({**before, **sizes, **self.columns(rows), **after})


def column_of(rows: Sequence[Row], name: str, dtype: "pa.DataType") -> "pa.Array":
    """A column; null where a row has no such value."""
    import pyarrow as pa

    return pa.array([row.get(name) for row in rows], dtype)


class Captioner(Describer):
    """Columns `caption`, and `router_prompts` and `expert_texts` by the experts' names; of a model that says how sure
    it is, `confidence` and `expert_confidences` too."""

    kind = "captions"

    def __init__(
        self,
        checkpoint: CheckpointSource,
        instruction: str,
        generation: "GenerationSettings",
        raster_options: RasterOptions = AS_IN_THE_FILE,
    ):
        super().__init__(checkpoint, raster_options)
        self.instruction, self.generation = instruction, generation

    @property
    def settings(self) -> dict[str, Any]:
        model = {"model": self.checkpoint.name, "revision": self.checkpoint.revision}
        task = {"instruction": self.instruction, "generation": self.generation.arguments()}
        return {**model, **task, **self.raster_options.settings}

    @property
    def rates(self) -> bool:
        """Whether the model says how sure it is."""
        assert self._loaded is not None
        return bool(self._loaded[0].config.confidence_weights)

    def describe(self, images: "Sequence[Image.Image]") -> list[Row]:
        from ..inference import Predictor

        assert self._loaded is not None
        predictor = Predictor(*self._loaded, self.generation)
        rows = []
        for prediction in predictor.predict(images, self.instruction):
            record = prediction.record()
            rows.append({"caption": record.pop("text"), **record})
        return rows

    def columns(self, rows: Sequence[Row]) -> "dict[str, pa.Array]":
        import pyarrow as pa

        assert self._loaded is not None
        by_expert = pa.struct([(name, pa.string()) for name in self._loaded[1].experts])
        dtypes = {"caption": pa.string(), "router_prompts": by_expert, "expert_texts": by_expert}
        if self.rates:
            numbers = pa.struct([(field.name, pa.float64()) for field in by_expert])
            dtypes |= {"confidence": pa.float64(), "expert_confidences": numbers}
        return {name: column_of(rows, name, dtype) for name, dtype in dtypes.items()}


class FeatureEncoder(Describer):
    """The column `features`: the image encoder's output, `[patches, width]`, to be given as `image_embeds`.

    Args:
        checkpoint: gives the encoder alone, in float32: features serve every later question, and the image encoder is
            the small part of the work [our decision].
        encoder_sha256: of `inference.encoder`: what the features can be used with.
        dtype: in which they are stored.
        raster_options: how the worker reads the rasters among the images.
    """

    kind = "features"

    def __init__(
        self,
        checkpoint: CheckpointSource,
        encoder_sha256: str,
        dtype: FeatureType = "float16",
        raster_options: RasterOptions = AS_IN_THE_FILE,
    ):
        super().__init__(checkpoint, raster_options)
        self.encoder_sha256, self.dtype = encoder_sha256, dtype
        self._shape: tuple[int, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        # Of the checkpoint only the encoder counts: any that shares it can use the features.
        return {"encoder_sha256": self.encoder_sha256, "dtype": self.dtype, **self.raster_options.settings}

    def open(self, check: bool = False) -> None:
        super().open(check)
        if not self._shape:
            from PIL import Image

            self._shape = self._encode([Image.new("RGB", (32, 32))]).shape[1:]  # also where every image is bad

    def describe(self, images: "Sequence[Image.Image]") -> list[Row]:
        import numpy as np

        rows: list[Row] = []
        with np.errstate(over="ignore"):  # checked below
            features = self._encode(images).astype(self.dtype)
        for values in features:
            if np.isfinite(values).all():
                rows.append({FEATURES: values})
            else:
                rows.append({"error": f"its features are not finite in {self.dtype}: keep them in float32"})
        return rows

    def columns(self, rows: Sequence[Row]) -> "dict[str, pa.Array]":
        import numpy as np
        import pyarrow as pa

        values = np.zeros((len(rows), *self._shape), self.dtype)
        for index, row in enumerate(rows):
            if FEATURES in row:
                values[index] = row[FEATURES]
        tensor_type = pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(self.dtype)), self._shape)
        missing = pa.array([FEATURES not in row for row in rows], pa.bool_())
        storage = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), int(np.prod(self._shape)), mask=missing)
        return {
            FEATURES: pa.ExtensionArray.from_storage(tensor_type, storage),
            "encoder_sha256": pa.array([self.encoder_sha256] * len(rows), pa.string()),
        }

    def _encode(self, images: "Sequence[Image.Image]") -> "np.ndarray":
        """float32 [images, patches, width]"""
        import torch

        assert self._loaded is not None
        encoder, processor = self._loaded
        pixels = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return encoder.encode_image(pixels.to(encoder.device)).float().cpu().numpy()
