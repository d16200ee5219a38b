"""What is done to the images of an archive: captions, or features for later questions.

A describer is made by whoever starts a run and sent to its workers, on other machines too; only there does it open its
checkpoint. Knows nothing about files and parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors_rsmoe import RSMoEError
from ..scenes import describe as tiles
from ..utils.provenance import folder_sha256
from .store import FEATURES


if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

FeatureType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that every worker opens for itself.

    Attributes:
        name: as the user knows it; rows carry it.
        revision: its commit on the Hub or the beginning of `sha256`; rows carry it.
        sha256: of its folder (`utils.provenance.folder_sha256`).
        find: gives its folder on the machine that asks.
        load: gives its model (or, for features, its encoder) and its processor out of that folder.
    """

    name: str
    revision: str
    sha256: str
    find: Callable[[], Path]
    load: Callable[[Path], tuple[Any, Any]]


class Describer(ABC):
    """Runs a checkpoint over pictures; what it gives for each are values of its own columns."""

    kind: ClassVar[str]

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._loaded: tuple[Any, Any] | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that rows depend on besides their image, as JSON: a run with others is another archive."""

    @abstractmethod
    def describe(self, pictures: "Sequence[Image.Image]") -> list[dict[str, Any]]:
        """The values of its columns for each picture; `error` in place of them where it has none."""

    @abstractmethod
    def columns(self, rows: Sequence[dict[str, Any]]) -> "dict[str, pa.Array]":
        """Its columns of such values, which some rows lack."""

    def open(self, check: bool = False) -> None:
        """Load the checkpoint, once.

        Args:
            check: that this machine has the checkpoint that the run was started with.

        Raises:
            RSMoEError: it is another, or cannot be loaded.
        """
        if self._loaded is not None:
            return
        folder = self.checkpoint.find()
        if check and folder_sha256(folder) != self.checkpoint.sha256:
            raise RSMoEError(
                f"the checkpoint {folder} of a worker's machine is not the one that the run was started with: copy it there"
            )
        self._loaded = self.checkpoint.load(folder)

    def table(self, rows: Sequence[dict[str, Any]]) -> "pa.Table":
        """Rows as `worker` makes them, as a table: what every archive holds, and the describer's own columns."""
        import pyarrow as pa

        def column(name: str, kind: pa.DataType) -> pa.Array:
            return pa.array([row.get(name) for row in rows], kind)

        text = pa.string()
        before = {name: column(name, text) for name in ("image", "sha256")}
        before |= {name: column(name, pa.int32()) for name in ("width", "height")}
        after = {"error": column("error", text)}
        after |= {
            name: pa.array([value] * len(rows), text)
            for name, value in (("model", self.checkpoint.name), ("revision", self.checkpoint.revision))
        }
        return pa.table({**before, **self.columns(rows), **after})


class Captioner(Describer):
    """Columns `caption`, and `router_prompts` and `parts` by the experts' names.

    Args:
        checkpoint: gives the whole model.
        instruction: for every image.
        generation: keyword arguments of `generate`; what is not among them is the checkpoint's own.
    """

    kind = "captions"

    def __init__(self, checkpoint: Checkpoint, instruction: str, generation: dict[str, Any]):
        super().__init__(checkpoint)
        self.instruction, self.generation = instruction, generation

    @property
    def settings(self) -> dict[str, Any]:
        asked = {"instruction": self.instruction, "generation": self.generation}
        return {"model": self.checkpoint.name, "revision": self.checkpoint.revision, **asked}

    def describe(self, pictures: "Sequence[Image.Image]") -> list[dict[str, Any]]:
        assert self._loaded is not None
        said = tiles.Describer(*self._loaded, self.instruction, self.generation)(pictures)
        return [
            {"caption": one["text"], "router_prompts": one["router_prompts"], "parts": one["parts"]} for one in said
        ]

    def columns(self, rows: Sequence[dict[str, Any]]) -> "dict[str, pa.Array]":
        import pyarrow as pa

        assert self._loaded is not None
        by_expert = pa.struct([(name, pa.string()) for name in self._loaded[1].experts])
        kinds = {"caption": pa.string(), "router_prompts": by_expert, "parts": by_expert}
        return {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}


class Encoder(Describer):
    """The column `features`: the ViT's output for each image, `[patches, width]`, to be given as `image_embeds`.

    Args:
        checkpoint: gives the encoder alone, in float32: features serve every later question, and the ViT is the small
            part of the work [our decision].
        encoder_sha256: of `inference.encoder`: what the features can be used with.
        dtype: in which they are kept.
    """

    kind = "features"

    def __init__(self, checkpoint: Checkpoint, encoder_sha256: str, dtype: FeatureType = "float16"):
        super().__init__(checkpoint)
        self.encoder_sha256, self.dtype = encoder_sha256, dtype
        self._shape: tuple[int, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        # Of the checkpoint only the encoder counts: any that shares it can use the features.
        return {"encoder_sha256": self.encoder_sha256, "dtype": self.dtype}

    def open(self, check: bool = False) -> None:
        super().open(check)
        if not self._shape:
            from PIL import Image

            self._shape = self._features([Image.new("RGB", (32, 32))]).shape[1:]  # also where every image is bad

    def describe(self, pictures: "Sequence[Image.Image]") -> list[dict[str, Any]]:
        import numpy as np

        rows: list[dict[str, Any]] = []
        with np.errstate(over="ignore"):  # checked below
            found = self._features(pictures).astype(self.dtype)
        for values in found:
            if np.isfinite(values).all():
                rows.append({FEATURES: values})
            else:
                rows.append({"error": f"its features are not finite in {self.dtype}: keep them in float32"})
        return rows

    def columns(self, rows: Sequence[dict[str, Any]]) -> "dict[str, pa.Array]":
        import numpy as np
        import pyarrow as pa

        values = np.zeros((len(rows), *self._shape), self.dtype)
        for place, row in enumerate(rows):
            if FEATURES in row:
                values[place] = row[FEATURES]
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(self.dtype)), self._shape)
        absent = pa.array([FEATURES not in row for row in rows], pa.bool_())
        size = int(np.prod(self._shape))
        kept = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), size, mask=absent)
        return {
            FEATURES: pa.ExtensionArray.from_storage(kind, kept),
            "encoder_sha256": pa.array([self.encoder_sha256] * len(rows), pa.string()),
        }

    def _features(self, pictures: "Sequence[Image.Image]") -> Any:
        """float32 [images, patches, width]"""
        import torch

        assert self._loaded is not None
        encoder, processor = self._loaded
        pixels = processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return encoder.encode_image(pixels.to(encoder.device)).float().cpu().numpy()
