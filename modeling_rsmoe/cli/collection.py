"""What `rsmoe caption DIR_OR_LIST`, `rsmoe encode` and `rsmoe ask FEATURES` share: options of engines, a checkpoint
for every worker, the run.

[our decision] A folder or list is a collection of images, and one of scenes if `--tile`, `--overlap` or `--asset` says
how they are cut. With `--engine`, so are inputs that are named one by one; STAC documents are always scenes.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..collection import engines
from ..collection.describers import Captioner, CheckpointSource, Describer
from ..collection.features import FeatureFile
from ..collection.images import Item, find_images, is_collection, is_url
from ..collection.pipeline import describe_collection
from ..collection.store import begun_with, refuse_existing
from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import DEFAULT_MODEL, find_checkpoint, load, revision_of
from ..scenes.files import is_stac
from ..scenes.grid import check_tile
from ..scenes.result import SceneTask
from ..utils.files import check_outputs, disk_errors
from ..utils.provenance import folder_sha256
from ..utils.quiet import quiet_libraries
from ..utils.rasters.options import RasterOptions
from . import options, terminal
from .scenes import SceneOptions


if TYPE_CHECKING:
    from ..collection.scenes import Cut

NONE_READ = 1  # exit code: every row has an error
EngineName = Literal["local", "ray"]
EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        metavar="NAME",
        help="Execution engine of a collection. local: this process; ray: workers of a Ray cluster.",
        show_default="local",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Number of Ray workers; each holds the model.",
        show_default="one for each GPU of the cluster, else for each CPU",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of a running Ray cluster: auto, or HOST:PORT.",
        show_default="a cluster on this machine, for this run only",
    ),
]
StretchOption = Annotated[
    Literal["image", "collection"] | None,
    typer.Option(
        metavar="NAME",
        help="What 16-bit and float images are stretched by. image: each by its own numbers; collection: all by those "
        "of the whole collection.",
        show_default="image",
    ),
]


def make_engine(name: EngineName | None, workers: int | None, address: str | None) -> engines.Engine:
    """The engine that the options name."""
    for option, value in (("--workers", workers), ("--address", address)):
        if name != "ray" and value is not None:
            raise RSMoEError(f"{option} is an option of the Ray engine: add --engine ray, or leave it out")
    if name != "ray":
        return engines.LocalEngine()
    engine = engines.RayEngine(workers, address)
    engine.require()
    return engine


def are_collection(images: list[str], engine: EngineName | None) -> bool:
    """Whether the inputs are a collection: a folder or a list, or anything with an engine."""
    return engine is not None or any(map(is_collection, images))


def check_options(images: list[str], scene_options: SceneOptions, stretch: str | None, **others: object) -> bool:
    """Refuse options that mean nothing for a collection; `others` by their names.

    Returns:
        Whether it is a collection of scenes.
    """
    given = ", ".join(f"--{name}" for name, value in others.items() if value)
    if given:
        raise RSMoEError(f"{given} cannot be combined with a folder, a list or --engine: leave it out")
    is_cut = any(option is not None for option in (scene_options.tile, scene_options.overlap, scene_options.asset))
    if is_cut or any(map(is_stac, images)):
        check_tile(*scene_options.sizes())
        if stretch is not None:
            raise RSMoEError("--stretch is of images; every scene has its own: leave it out")
        return True
    if scene_options.remote:
        raise RSMoEError("--remote is for scenes: add --tile to cut the files into tiles, or leave it out")
    return False


def make_source(
    model: str | None, steps: terminal.Steps, load_folder: Callable[[Path], tuple[Any, Any]] | None = None
) -> CheckpointSource:
    """What workers need to open the checkpoint that `--model` names."""
    name = model or DEFAULT_MODEL
    folder = find_checkpoint(name, steps)
    steps(f"hashing {name}")
    # A folder is that folder on every machine; a name is found by each machine for itself.
    place = os.path.abspath(folder) if Path(name).expanduser().is_dir() else name
    sha256 = folder_sha256(folder)
    revision = revision_of(folder, sha256)
    return CheckpointSource(name, revision, sha256, functools.partial(_find, place), load_folder or load_model)


def load_model(folder: Path) -> tuple[Any, Any]:
    """The whole model and the processor."""
    with terminal.Steps() as steps:
        checkpoint = load(str(folder), progress=steps)
    return checkpoint.model, checkpoint.processor


def load_encoder_alone(folder: Path) -> tuple[Any, Any]:
    """The encoder in float32, on the GPU if there is one, and the processor."""
    with quiet_libraries():
        import torch

        from ..inference.encoder import load_encoder
        from ..inference.loading import open_processor

        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder: Any = load_encoder(folder)
        return encoder.to(device), open_processor(folder)


def caption_collection(
    images: list[str],
    instruction: str,
    are_scenes: bool,
    scene_options: SceneOptions,
    stretch: str | None,
    generation: options.Generation,
    engine: engines.Engine,
    steps: terminal.Steps,
) -> None:
    """Captions of many images, or of the tiles of many scenes, into one Parquet."""
    output, overwrite = scene_options.output, scene_options.overwrite
    if output is None or output.suffix != ".parquet":
        named = ", ".join(image for image in images if is_collection(image)) or "what --engine describes"
        actual = "" if output is None else f", not {output.name}"
        raise RSMoEError(
            f"{named}: captions of a collection (a folder, a list) go into a Parquet: give --output "
            f"NAME.parquet{actual}"
        )
    cut = scene_options.cut() if are_scenes else None
    found = find_new(images, output, overwrite, steps, cut, scene_options.remote)
    source = make_source(generation.model, steps)
    with quiet_libraries():
        from ..collection.tiles import TileCaptioner
        from ..inference.loading import open_processor

        open_processor(source.find()).refuse_special_tokens(instruction)
        settings = generation.settings()
        if cut is None:
            raster_options = RasterOptions(scene_options.parsed_bands, scene_options.nodata)
            raster_options = with_stretch(raster_options, stretch, found, output, steps)
            describer = Captioner(source, instruction, settings, raster_options)
        else:
            describer = TileCaptioner(source, instruction, settings, cut)
    describe(describer, found, output, engine, generation.batch_size, steps, overwrite)


def find_new(
    images: list[str],
    output: Path,
    overwrite: bool,
    steps: terminal.Steps,
    cut: "Cut | None" = None,
    remote: bool = False,
) -> Sequence[Item]:
    """The images, or the tiles of scenes that are cut, once it is sure that the output can be written."""
    refuse_existing(output, overwrite)
    check_outputs(output)
    if cut is not None:
        with quiet_libraries():
            from ..collection.scenes import find_tiles

            return find_tiles(images, cut, remote, steps)
    steps("finding the images")
    return find_images(images)


def with_stretch(
    raster_options: RasterOptions,
    stretch: str | None,
    images: Sequence[Item],
    output: Path,
    steps: terminal.Steps,
) -> RasterOptions:
    """The options with the stretch that `--stretch` names; a run that goes on keeps the one it was begun with."""
    if stretch != "collection":
        return raster_options
    from ..utils.rasters.image import measure_stretch
    from ..utils.rasters.stretch import Stretch

    if begun := begun_with(output).get("stretch"):
        return replace(raster_options, stretch=Stretch(tuple(begun["low"]), tuple(begun["high"])))
    steps("measuring the stretch of the collection")
    paths = [image.path for image in images if not is_url(image.path)]
    return replace(raster_options, stretch=measure_stretch(paths, raster_options))


def describe(
    describer: Describer,
    items: Sequence[Item],
    output: Path,
    engine: engines.Engine,
    batch_size: int,
    steps: terminal.Steps,
    overwrite: bool = False,
) -> None:
    """Describe a collection with a bar, and print what the output holds; arguments as of `describe_collection`."""
    try:
        with (
            disk_errors("cannot write", "Free some space or give --output another place; finished shards stay."),
            quiet_libraries(),
        ):
            result = describe_collection(describer, items, output, engine, batch_size, steps, overwrite)
    except KeyboardInterrupt:
        steps.note(f"finished {describer.unit} are kept in {output}.shards: the same command goes on from there")
        raise
    facts = [
        f"{result.num_rows:,} rows",
        f"{result.num_errors:,} with an error" if result.num_errors else "",
        f"{result.num_described:,} described now" if result.num_described < result.num_rows else "",
        f"{result.rate:.2f} {describer.unit}/s" if result.rate else "",
        f"{result.num_repeated} shards begun again, whose worker ended" if result.num_repeated else "",
    ]
    steps.print(terminal.printable(f"{output} ({', '.join(filter(None, facts))})"))
    if result.commonest_error is not None and result.num_errors == result.num_rows:
        error, count = result.commonest_error
        terminal.print_error(f"none of the {describer.unit} could be read; of {count:,}: {error}")
        raise typer.Exit(NONE_READ)


class Features:
    """A file of features with the checkpoint that answers questions about its images.

    Args:
        path: the output of `rsmoe encode`.
        generation: options of the command, as its others.

    Raises:
        RSMoEError: the file holds no features, or those of another encoder.
    """

    def __init__(
        self,
        path: str,
        generation: options.Generation,
        dtype: options.Dtype | None,
        as_json: bool,
        steps: terminal.Steps,
    ):
        self._file, self._batch_size = FeatureFile(path), generation.batch_size
        self._as_json, self._steps = as_json, steps
        self._checkpoint = load(generation.model, dtype, progress=steps)
        with quiet_libraries():
            from ..inference import Predictor
            from ..inference.encoder import encoder_sha256, load_encoder

            self._predictor = Predictor(self._checkpoint.model, self._checkpoint.processor, generation.settings())
            # From the folder: on a GPU the loaded encoder has another dtype.
            sha256 = encoder_sha256(load_encoder(self._checkpoint.folder), self._checkpoint.processor)
        self._file.check(sha256, self._checkpoint.name)
        if self._file.num_errors:
            total = self._file.num_images + self._file.num_errors
            steps.note(f"{self._file.num_errors:,} of {total:,} images have no features, and no answer")

    def describe(self, tasks: Sequence[SceneTask]) -> None:
        """Ask every image all questions; answers are printed as they come, image by image."""
        for task in tasks:
            self._predictor.check(task.instruction)
        done, num_images = 0, self._file.num_images
        for batch in self._file.batches(self._batch_size):
            self._steps(f"asking {num_images:,} images", done, num_images, "images")
            with quiet_libraries():
                answers = [self._predictor.predict(None, task.instruction, batch.image_embeds) for task in tasks]
            done += len(batch.images)
            for name, *predictions in zip(batch.images, *answers, strict=True):
                for task, prediction in zip(tasks, predictions, strict=True):
                    texts = task.texts(prediction.text)
                    terminal.show(name, prediction, texts, self._checkpoint.name, self._as_json, self._steps)


def _find(name: str) -> Path:
    with terminal.Steps() as steps:
        return find_checkpoint(name, steps)
