"""What `rsmoe caption DIR_OR_LIST` and `rsmoe encode` share: options of engines, a checkpoint for every worker, the run."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import DEFAULT_MODEL, find_checkpoint, load, revision_of
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import options, terminal


if TYPE_CHECKING:
    from ..collection.describers import Checkpoint, Describer
    from ..collection.engines import Engine
    from ..collection.items import Item

EngineName = Literal["local", "ray"]
EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        metavar="NAME",
        help="Who looks at the images of an archive. local: this process; ray: workers of a Ray cluster.",
        show_default="local",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Ray workers; each holds the model.",
        show_default="one for each GPU of the cluster, else for each CPU",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of a running Ray cluster: auto, or HOST:PORT.",
        show_default="a cluster on this machine, for this run only",
    ),
]


def make_engine(engine: EngineName | None, workers: int | None, address: str | None) -> "Engine":
    """Raises: RSMoEError: options of Ray without Ray, or Ray is not installed."""
    if engine != "ray":
        for option, value in (("--workers", workers), ("--address", address)):
            if value is not None:
                raise RSMoEError(f"{option} is of the Ray engine: add --engine ray, or leave it out")
    from ..collection import engines

    if engine != "ray":
        return engines.LocalEngine()
    found = engines.RayEngine(workers, address)
    found.require()
    return found


def is_meant(images: list[str], engine: EngineName | None, as_json: bool, of_scenes: bool) -> bool:
    """Whether images are an archive: a folder or a list, or any with an engine.

    Raises:
        RSMoEError: they are, beside options that are of other inputs.
    """
    from ..collection.items import is_archive

    if engine is None and not any(map(is_archive, images)):
        return False
    if of_scenes or as_json:
        wrong = "--json" if as_json else "--tile, --overlap, --bands, --asset, --map and --picture"
        raise RSMoEError(f"{wrong} cannot be combined with a folder, a list or --engine: leave it out")
    return True


def checkpoint_of(
    model: str | None, steps: terminal.Steps, load: Callable[[Path], tuple[Any, Any]] | None = None
) -> "Checkpoint":
    """What workers need to open the checkpoint that `--model` names.

    Args:
        load: gives what is run, and the processor, out of the checkpoint's folder; by default the whole model.
    """
    from ..collection.describers import Checkpoint
    from ..utils.provenance import folder_sha256

    name = model or DEFAULT_MODEL
    folder = find_checkpoint(name, steps)
    steps(f"hashing {name}")
    # A folder is that folder on every machine; a name is found by each machine for itself.
    place = os.path.abspath(folder) if Path(name).expanduser().is_dir() else name
    sha256 = folder_sha256(folder)
    revision = revision_of(folder, sha256)
    return Checkpoint(name, revision, sha256, functools.partial(_find, place), load or load_whole)


def load_encoder_alone(folder: Path) -> tuple[Any, Any]:
    """The encoder in float32, on the GPU if there is one, and the processor."""
    with quiet_libraries():
        import torch

        from .. import RSMoEProcessor
        from ..inference.encoder import load_encoder

        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder: Any = load_encoder(folder)
        return encoder.to(device), RSMoEProcessor.from_pretrained(folder)


def caption_archive(
    images: list[str],
    instruction: str | None,
    output: Path | None,
    overwrite: bool,
    settings: options.Generation,
    engine: "Engine",
    steps: terminal.Steps,
) -> None:
    """Captions of many images into one Parquet."""
    from ..collection.items import find_items, is_archive

    if output is None or output.suffix != ".parquet":
        named = ", ".join(image for image in images if is_archive(image)) or "what --engine describes"
        found = "" if output is None else f", not {output.name}"
        raise RSMoEError(
            f"{named}: captions of an archive (a folder, a list) go into a Parquet: give --output NAME.parquet{found}"
        )
    from ..collection.store import check_output

    check_output(output, overwrite)
    check_outputs(output)
    steps("finding the images")
    items = find_items(images)
    checkpoint = checkpoint_of(settings.model, steps)
    with quiet_libraries():
        from .. import RSMoEProcessor
        from ..collection.describers import Captioner
        from ..prompting_rsmoe import DEFAULT_INSTRUCTION

        text = instruction.strip() if instruction else DEFAULT_INSTRUCTION
        folder = checkpoint.find()
        if text == DEFAULT_INSTRUCTION:
            settings = settings.for_captions(folder)
        processor: Any = RSMoEProcessor.from_pretrained(folder)
        processor.refuse_marks(text)
    describer = Captioner(checkpoint, text, settings.generation_arguments())
    write_archive(describer, items, output, engine, settings.batch_size, steps, overwrite)


def write_archive(
    describer: "Describer",
    items: "list[Item]",
    output: Path,
    engine: "Engine",
    batch_size: int,
    steps: terminal.Steps,
    overwrite: bool = False,
) -> None:
    """Make the archive with a bar, and say on stdout what it holds."""
    from ..collection.run import run
    from ..utils.files import disk_errors

    doing = f"{'captions' if describer.kind == 'captions' else 'features'} of {len(items):,} images"

    def progress(done: int, total: int, rate: float | None) -> None:
        per_second = f", {rate:.2f} images/s" if rate else ""
        steps(doing, done / total, f"{done:,} of {total:,}{per_second}")

    try:
        with disk_errors("cannot write", "Free some space or give --output another place; what is made stays."):
            with quiet_libraries():
                made = run(describer, items, output, engine, batch_size, progress, overwrite)
    except KeyboardInterrupt:
        steps.note(f"what is made is kept in {output}.parts: the same command goes on from there")
        raise
    told = [f"{made.rows:,} rows", f"{made.errors:,} with an error" if made.errors else ""]
    told += [f"{made.made:,} made now" if made.made < made.rows else ""]
    told += [f"{made.rate:.2f} images/s" if made.rate else ""]
    told += [f"{made.begun_again} parts begun again, whose worker ended" if made.begun_again else ""]
    steps.print(terminal.printable(f"{output} ({', '.join(filter(None, told))})"))


def holds_features(path: str, of_scenes: bool) -> bool:
    """Whether `rsmoe ask` is given features of images.

    Raises:
        RSMoEError: it is, beside options that are of other inputs.
    """
    from ..collection.features import holds_features

    if not holds_features(path):
        return False
    if of_scenes:
        raise RSMoEError(
            "--tile, --overlap, --bands, --asset and --output are of scenes; answers about features are printed: leave them "
            "out, and add --json for programs"
        )
    return True


def ask_features(
    path: str,
    question: str,
    settings: options.Generation,
    dtype: options.Dtype | None,
    as_json: bool,
    steps: terminal.Steps,
) -> None:
    """Ask every image whose features are in a file; each answer is printed as it comes."""
    from ..collection.features import FeatureFile

    file = FeatureFile(path)
    loaded = load(settings.model, dtype, progress=steps)
    with quiet_libraries():
        from ..collection.features import predict_features
        from ..inference.encoder import encoder_sha256, load_encoder
        from ..prompting_rsmoe import question_instruction

        loaded.processor.refuse_marks(question)
        # As it is stored: on a GPU it is loaded in another precision.
        file.check(encoder_sha256(load_encoder(loaded.folder), loaded.processor), loaded.name)
        if file.errors:
            steps.note(f"{file.errors:,} of {file.images + file.errors:,} images have no features, and no answer")
        done, generation = 0, settings.generation_arguments()
        for batch in file.batches(settings.batch_size):
            steps(f"asking {file.images:,} images", done / file.images, f"{done:,} of {file.images:,}")
            said = predict_features(batch, question_instruction(question), loaded.model, loaded.processor, generation)
            done += len(said)
            for image, one in zip(batch.images, said, strict=True):
                result = terminal.Result(image, one["text"], one["router_prompts"], one["parts"])
                terminal.show(result, {"question": question, "answer": result.text}, loaded.name, as_json, steps)


def _find(name: str) -> Path:
    with terminal.Steps() as steps:
        return find_checkpoint(name, steps)


def load_whole(folder: Path) -> tuple[Any, Any]:
    with terminal.Steps() as steps:
        loaded = load(str(folder), progress=steps)
    return loaded.model, loaded.processor
