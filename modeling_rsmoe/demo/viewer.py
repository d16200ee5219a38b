"""One model that several people look at images with: each image is encoded once, texts are told as they are written.

Knows nothing of the page. The model serves one call after another; whoever stops listening stops its generation.
"""

import importlib.util
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import DEFAULT_INSTRUCTION
from ..utils.images import read_image


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

SHOWN = 1024  # pixels of the longer side of a picture on the page
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Encoded:
    """An image that went through the ViT, for any number of texts about it.

    Attributes:
        name: of its file.
        size: width and height of the file's image, in pixels.
        picture: RGB, of at most `SHOWN` pixels on a side.
        embeds: `[1, patches, vision width]`, of `encode_image`.
    """

    name: str
    size: tuple[int, int]
    picture: "Image.Image"
    embeds: torch.Tensor


@dataclass(frozen=True)
class Told:
    """What the model has said so far: prompts and parts by the experts' names; empty is not yet."""

    router_prompts: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    text: str = ""
    done: bool = False


class Viewer:
    """A checkpoint that encodes images and tells texts about them, for one caller at a time."""

    def __init__(self, name: str, model: "RSMoEForConditionalGeneration", processor: "RSMoEProcessor") -> None:
        self.name = name
        self._model = model
        self._processor = processor
        self._alone = threading.Lock()

    @property
    def experts(self) -> list[str]:
        return list(self._processor.experts)

    @property
    def generation(self) -> Any:
        """The checkpoint's own settings: a generation config."""
        return self._model.generation_config

    @property
    def chooses(self) -> bool:
        """Whether captions can be chosen by a reranker."""
        return self._model.model.reranker is not None

    def encode(self, file: Path, bands: str = "") -> Encoded:
        """Read an image's file and encode it.

        Args:
            bands: of a GeoTIFF: `4,3,2` or `red,green,blue`; by default as the file says.

        Raises:
            RSMoEError: it is no image, or one that cannot be read; the message names it as `file.name`.
        """
        try:
            picture, size = _read(file, bands)
        except RSMoEError as error:  # where it lies here is nobody's business
            raise RSMoEError(str(error).replace(f"{file.parent}{os.sep}", "")) from error
        inputs = self._processor.image_processor(images=picture, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        with self._alone, torch.inference_mode():
            embeds = self._model.encode_image(pixels)
        picture.thumbnail((SHOWN, SHOWN))
        return Encoded(file.name, size, picture, embeds)

    def tell(self, image: Encoded, instruction: str = DEFAULT_INSTRUCTION, **generation: Any) -> Iterator[Told]:
        """Follow an instruction about an encoded image, step by step: prompts, then parts, then the text word by word.

        Args:
            generation: arguments of `generate`, such as `router_mode` and `fusion`.

        Yields:
            What is known so far, more each time; the last is `done`.

        Raises:
            RSMoEError: the instruction holds a special token.
        """
        self._processor.refuse_marks(instruction)
        # The processor makes rows for an image only together with it; its pixels are not needed a second time.
        inputs = self._processor(images=image.picture, text=instruction, return_tensors="pt")
        inputs.pop("pixel_values")
        inputs["image_embeds"] = image.embeds
        inputs = inputs.to(self._model.device)
        news: queue.Queue[Told | BaseException] = queue.Queue()
        leave = threading.Event()
        worker = threading.Thread(target=self._generate, args=(inputs, generation, news, leave), daemon=True)
        worker.start()
        try:
            done = False
            while not done:
                told = news.get()
                if isinstance(told, BaseException):
                    raise told
                done = told.done
                yield told
        finally:
            leave.set()

    def _generate(self, inputs: Any, generation: dict[str, Any], news: queue.Queue, leave: threading.Event) -> None:
        """In a thread of its own: `generate` hands words to a streamer, a page takes them from an iterator."""
        try:
            with self._alone:
                if leave.is_set():
                    return
                outputs = self._model.generate(
                    **inputs,
                    **generation,
                    streamer=_Teller(self._processor, news),
                    stopping_criteria=StoppingCriteriaList([_Left(leave)]),
                    return_dict_in_generate=True,
                )
            said = self._processor.post_process_generation(outputs)[0]
            news.put(Told(said["router_prompts"], said["parts"], said["text"], done=True))
        except BaseException as error:  # the caller's thread raises it
            news.put(error)


def _read(file: Path, bands: str) -> tuple["Image.Image", tuple[int, int]]:
    """The file's picture, and its width and height: a large GeoTIFF's picture is smaller than that.

    Only what begins as a TIFF is given to GDAL: other formats of its may name further files, which are not the visitor's.
    """
    with file.open("rb") as opened:
        is_tiff = opened.read(4) in _TIFF
    if not is_tiff or not importlib.util.find_spec("rasterio"):
        picture = read_image(file)
        return picture, picture.size
    from ..scenes.bands import parse_bands
    from ..scenes.raster import open_raster

    with open_raster(file, parse_bands(bands) if bands.strip() else None, name=file.name) as raster:
        return raster.overview(SHOWN).image, (raster.width, raster.height)


class _Teller(TextStreamer):
    """Puts into a queue what is known whenever there is more."""

    def __init__(self, processor: "RSMoEProcessor", news: queue.Queue) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._processor = processor
        self._news = news
        self._told = Told()

    def put_step(self, name: str, ids: torch.Tensor) -> None:
        self._tell(**{name: self._processor.by_expert(ids)})

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._tell(text=(self._told.text + text).lstrip())

    def _tell(self, **more: Any) -> None:
        self._told = replace(self._told, **more)
        self._news.put(self._told)


class _Left(StoppingCriteria):
    """Ends a generation that nobody listens to."""

    def __init__(self, leave: threading.Event) -> None:
        self._leave = leave

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._leave.is_set(), device=input_ids.device)
