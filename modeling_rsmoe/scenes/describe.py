"""The tiles of a raster through the model, batch by batch; what is done is kept in a work file.

Knows nothing about options, formats or how rasters are found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .grid import Grid, Window
from .raster import no_data
from .work import WorkFile


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor
    from .raster import Picture, Raster

# A tile with less data than this is skipped, "mostly no data". Of a scene without a tile that has so much, those with at
# least half as much as its best tile are described [our decision].
MIN_VALID = 0.5
Progress = Callable[[int, int], None]  # tiles that are done, of how many


class Describer:
    """Runs the model over pictures under one instruction.

    Args:
        model, processor: of one checkpoint.
        instruction: what is asked of every picture.
        generation: keyword arguments of `generate` (`num_beams`, `router_mode`, ...).
    """

    def __init__(
        self,
        model: "RSMoEForConditionalGeneration",
        processor: "RSMoEProcessor",
        instruction: str,
        generation: Mapping[str, Any],
    ):
        self.model, self.processor, self.instruction = model, processor, instruction
        self.generation = dict(generation)

    @property
    def picture_side(self) -> int:
        """What the image processor makes of every picture: the longer side in pixels."""
        return max(dict(self.processor.image_processor.size).values())

    def __call__(self, pictures: "Sequence[Image.Image]") -> list[dict[str, Any]]:
        """For each picture `text`, and by the experts' names `router_prompts` and `parts`. Each goes through the ViT once."""
        inputs = self.processor(
            images=list(pictures), text=[self.instruction] * len(pictures), return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        outputs = self.model.generate(**inputs, **self.generation, return_dict_in_generate=True)
        return self.processor.post_process_generation(outputs)

    def compose(self, picture: "Image.Image", parts: Mapping[str, str]) -> str:
        """What the base LM makes of a picture and parts that were found in it."""
        from ..prompting_rsmoe import Prompt

        row = self.processor.render(Prompt.rewrite(self.instruction, dict(parts)).text)
        inputs = self.processor(images=[picture], text=[row], expert_inputs=False, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        own = {name: value for name, value in self.generation.items() if name not in ("router_mode", "fusion")}
        new = self.model.generate(**inputs, **own)[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()


@dataclass(frozen=True)
class Tile:
    """What was said about one tile.

    Attributes:
        number: in its grid, row by row, from 0.
        window: in pixels of the raster.
        valid: the share of its pixels that are data.
        text: the caption or answer. router_prompts, parts: by the experts' names, in order.
    """

    number: int
    window: Window
    valid: float
    text: str
    router_prompts: dict[str, str]
    parts: dict[str, str]


def describe(
    raster: "Raster",
    grid: Grid,
    describer: Describer,
    work: WorkFile,
    scene: int = 0,
    batch_size: int = 8,
    progress: Progress = lambda done, total: None,
) -> list[Tile]:
    """Describe every tile that is not mostly without data.

    Args:
        scene: the raster's number in the work file.
        batch_size: tiles that are looked at together; memory grows with it, not with the raster.

    Returns:
        The described tiles in the grid's order; the others were skipped.

    Raises:
        RSMoEError: the raster is damaged, or no tile has any data.
        OSError: the work file cannot be written.
    """
    total = len(grid)
    keys = [(scene, number) for number in range(total)]
    done = sum(key in work.lines for key in keys)
    progress(done, total)
    least = MIN_VALID
    while True:
        for batch in _batches(raster, grid, describer, work, scene, batch_size, least):
            done += sum((scene, number) not in work.lines for number, _ in batch)
            _describe_batch(batch, describer, work, scene, least)
            progress(done, total)
        best = max(work.lines[key]["valid"] for key in keys)
        if best >= least or best == 0:
            break
        least = best / 2
    tiles = [
        Tile(number, window, line["valid"], line["text"], line["router_prompts"], line["parts"])
        for number, window in enumerate(grid)
        if "text" in (line := work.lines[scene, number])
    ]
    if not tiles:
        raise no_data(raster.name)
    return tiles


def _describe_batch(
    batch: "Sequence[tuple[int, Picture]]", describer: Describer, work: WorkFile, scene: int, least: float
) -> None:
    lines = [{"scene": scene, "tile": number, "valid": round(picture.valid_share, 4)} for number, picture in batch]
    seen = [index for index, line in enumerate(lines) if line["valid"] >= least]
    said = describer([batch[index][1].image for index in seen]) if seen else []
    for index, texts in zip(seen, said, strict=True):
        lines[index] |= texts
    work.add(lines)


def _batches(
    raster: "Raster", grid: Grid, describer: Describer, work: WorkFile, scene: int, batch_size: int, least: float
) -> "Iterator[list[tuple[int, Picture]]]":
    """Tiles that are not done, until `batch_size` of them have data; read no larger than the model can use."""
    batch: list[tuple[int, Picture]] = []
    full = 0
    for number, window in enumerate(grid):
        line = work.lines.get((scene, number))
        if line is not None and ("text" in line or line["valid"] < least):
            continue
        picture = raster.read(window, read_side(max(window.width, window.height), describer.picture_side))
        batch.append((number, picture))
        full += round(picture.valid_share, 4) >= least
        if full == batch_size or len(batch) == 8 * batch_size:  # many empty ones are written down now and then
            yield batch
            batch, full = [], 0
    if batch:
        yield batch


def read_side(side: int, picture_side: int) -> int:
    """How large a tile is read: halved (as overviews are) as long as it stays twice as large as the model's picture."""
    while side >= 4 * picture_side:
        side = -(-side // 2)
    return side
