"""What the commands share: options, progress, checking images, finding and running a checkpoint, showing texts.

Images are read and checked before the model is loaded, because loading takes longer and bad input should cost no time.
torch and transformers are imported inside functions only, so that `rsmoe --help` answers at once.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..errors_rsmoe import RSMoEError


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

DEFAULT_CHECKPOINT = "rs-moe-nano"
BATCH_SIZE = 8
_OF_CHECKPOINT = "the checkpoint's"
_SECONDS_BETWEEN_DETAILS = 30.0

RouterMode = Literal["generated", "template", "none"]
Fusion = Literal["concat", "rewrite", "rerank"]
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int8-dynamic", "nf4"]
RouterOption = Annotated[
    RouterMode | None,
    typer.Option(
        metavar="MODE",
        help="What each expert is asked. generated: a prompt that the router writes; template: a fixed prompt; "
        "none: the instruction itself.",
        show_default=_OF_CHECKPOINT,
    ),
]
FusionOption = Annotated[
    Fusion | None,
    typer.Option(
        metavar="MODE",
        help="How the experts' parts become one text. concat: one after the other, without repeated sentences; "
        "rewrite: written by the base LM, which reads them; rerank: of them and the base LM's own caption the one that fits "
        "the image best (needs a reranker).",
        show_default="rerank for captions where the checkpoint has a reranker, else the checkpoint's",
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Longest text of an expert, in tokens.", show_default=_OF_CHECKPOINT),
]
NumBeamsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Beams of the search; 1 is greedy.", show_default=_OF_CHECKPOINT),
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images, or tiles of a scene, that are looked at together.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A checkpoint: a folder, or a name on the Hub.",
        show_default=f"{DEFAULT_CHECKPOINT}, assembled on first use",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        metavar="TYPE",
        help="Of the weights: float32, bfloat16, float16; int8 or int8-dynamic (torchao); nf4 (bitsandbytes).",
        show_default="float32, on a GPU bfloat16; the checkpoint's where it is quantised",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for each image, on a line of its own.")
]


@dataclass(frozen=True)
class Settings:
    """The options of a command that runs the model; None is the checkpoint's own setting."""

    router: RouterMode | None
    compose: Fusion | None
    max_new_tokens: int | None
    num_beams: int | None
    batch_size: int
    model: str | None

    def generation_arguments(self) -> dict[str, Any]:
        arguments = {
            "router_mode": self.router,
            "fusion": self.compose,
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def for_captions(self, checkpoint: Path) -> "Settings":
        """The same for the caption instruction: chosen by the checkpoint's reranker, where it has one and nothing else is asked."""
        # Read as it stands: transformers is not imported where all predictions are there already.
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        chooses = self.compose is None and config.get("reranker_rank")
        return replace(self, compose="rerank") if chooses else self


@dataclass(frozen=True)
class Loaded:
    """A model and its processor, under the name that the user knows."""

    name: str
    model: "RSMoEForConditionalGeneration"
    processor: "RSMoEProcessor"
    folder: Path

    def revision(self) -> str:
        """The commit of a checkpoint from the Hub, else the first 12 digits of its folder's hash (`folder_sha256`)."""
        return revision_of(self.folder)


@dataclass(frozen=True)
class Result:
    """What the model said about one image; `router_prompts` and `parts` by the experts' names, in order.

    `picture` is what it saw, None if that was read by another process.
    """

    image: str
    text: str
    router_prompts: dict[str, str]
    parts: dict[str, str]
    picture: "Image.Image | None" = None


# ---- telling what happens


class Steps:
    """What is being done now, on stderr: a spinner or bar in a terminal, a line for each new step elsewhere.

    Called as `steps(message, share)`, with the share that is done (0 to 1) or None: `hub.download.Progress`. A detail
    that changes ("120 of 672 tiles") stands behind the bar; where no terminal is, it is told every half minute.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._message = ""
        self._told = 0.0  # when a detail was last printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def __call__(self, message: str, share: float | None = None, detail: str = "") -> None:
        if not self._console.is_terminal:
            if message != self._message:
                self._told = time.monotonic()
                self._console.print(f"{printable(message)} ...", markup=False, highlight=False, soft_wrap=True)
            elif detail and time.monotonic() - self._told >= _SECONDS_BETWEEN_DETAILS:
                self._told = time.monotonic()
                line = f"{printable(message)}: {detail} ..."
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif message != self._message or self._progress is None:
            self.clear()
            columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
            columns += [BarColumn(bar_width=30), TextColumn("{task.percentage:.0f}%")] if share is not None else []
            columns += [TextColumn("{task.fields[detail]}", markup=False), TimeElapsedColumn()]
            self._progress = Progress(*columns, console=self._console, transient=True)
            done = round(100 * (share or 0))
            self._task = self._progress.add_task(printable(message), total=100, completed=done, detail=detail)
            self._progress.start()
        elif share is not None and self._task is not None:
            self._progress.update(self._task, completed=round(100 * share), detail=detail)
        self._message = message

    def print(self, line: Any) -> None:
        """A result, to stdout; text is printed as it is, on one line."""
        self.clear()
        if isinstance(line, str):
            print(line, flush=True)
        else:
            Console().print(line)

    def tell(self, note: str) -> None:
        """What the user should know, on a line of stderr."""
        self.clear()
        print(printable(f"rsmoe: note: {note}"), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the terminal to others until the next step."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_error(message: str, label: str | None = "error") -> None:
    """Each line of `message` on stderr, with the program's name before it."""
    for line in message.splitlines():
        text = ": ".join(filter(None, ("rsmoe", label, line.strip())))
        print(printable(text), file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' own bars and warnings: the commands tell what happens and check what those warn about."""
    import logging
    import warnings

    # Waiting threads must sleep: with the default, a process beside this one slows torch down many times. Set before
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("PIL", "huggingface_hub", "torch")]
    levels = [logger.level for logger in loggers]
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


# ---- files


def check_outputs(*files: Path | None) -> None:
    """Make the folders that these files will stand in, so that work is not lost for want of a place to write it.

    Raises:
        RSMoEError: a file cannot be written there.
    """
    from ..hub.download import disk_errors

    for file in filter(None, files):
        with disk_errors("cannot write", f"Give {file.name} another place."):
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            problem = "is a folder" if file.is_dir() else f"cannot be written: no permission in {file.parent}"
            raise RSMoEError(f"{file} {problem}; give the name of a file in a folder of yours")


# ---- images


def check_images(images: list[str], batch_size: int, steps: Steps) -> "list[Image.Image] | None":
    """Read every image once, so that bad ones are known before the model is loaded.

    Returns:
        The pictures if they are one batch; else None (many do not fit into memory: they are read again, by batch).

    Raises:
        RSMoEError: with a line for each bad image.
    """
    if not images:
        return None
    steps(f"reading {_count(images)}", 0.0 if len(images) > 1 else None)
    kept, problems = [], []
    with quiet_libraries():
        from ..images_rsmoe import read_image

        for index, image in enumerate(images):
            if len(images) > 1:
                steps(f"reading {_count(images)}", index / len(images))
            try:
                picture = read_image(image)
            except RSMoEError as error:
                problems.append(str(error))
                continue
            if len(images) <= batch_size:
                kept.append(picture)
    if problems:
        raise RSMoEError("\n".join(problems))
    return kept or None


# ---- checkpoints


def load(model: str | None, steps: Steps, dtype: Dtype | None = None) -> Loaded:
    """The checkpoint that `--model` names, on the GPU if there is one.

    Args:
        dtype: of the weights; by default bfloat16 on a GPU, else float32, and what the checkpoint has where it is quantised.

    Raises:
        RSMoEError: there is no such checkpoint, it is of another model type, or it is damaged.
    """
    name = model or DEFAULT_CHECKPOINT
    with quiet_libraries():
        folder = find_checkpoint(name, steps)
        steps(f"loading {name}")
        import torch

        from .. import RSMoEForConditionalGeneration, RSMoEProcessor
        from ..inference.loading import check_complete, loading_errors
        from ..hub.quantize import loading_arguments

        device = "cuda" if torch.cuda.is_available() else "cpu"
        arguments = loading_arguments(dtype, device)
        with loading_errors("the checkpoint", folder):
            found: Any = RSMoEForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **arguments)
            processor = RSMoEProcessor.from_pretrained(folder)
        loaded, info = found
        check_complete(info, folder)
        return Loaded(name, loaded.eval().to(device), processor, folder)


def find_checkpoint(name: str, steps: Steps) -> Path:
    """A checkpoint's folder: a local one, else of a checkpoint that can be assembled, else of a repository of the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        _check_model_type(path / "config.json", name)
        return path
    from ..hub.sources import known_names

    if name in known_names():
        return _assembled(name, steps)
    if path.exists():
        raise RSMoEError(f"{name} is a file: --model takes the checkpoint's folder ({path.parent}?)")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        known = ", ".join(known_names())
        raise RSMoEError(f"there is no checkpoint {name}: give a folder, a Hub name (owner/model) or one of {known}")
    return _from_hub(name, steps)


def revision_of(folder: Path, sha256: str | None = None) -> str:
    """The commit of a checkpoint's folder in the Hub's cache, else the first 12 digits of its hash, which may be known."""
    from ..utils.provenance import folder_sha256

    from_hub = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if from_hub else (sha256 or folder_sha256(folder))[:12]


def _check_model_type(config_file: Path, name: str) -> None:
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError as error:
        raise RSMoEError(
            f"{name} has no config.json, so it is no checkpoint: give the folder that holds it"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise RSMoEError(
            f"{config_file} cannot be read ({error}): assemble or download the checkpoint again"
        ) from error
    if model_type != "rsmoe":
        raise RSMoEError(
            f"{name} is a checkpoint of model type {model_type!r}, expected 'rsmoe': give an RS-MoE checkpoint, "
            f"or leave --model out for {DEFAULT_CHECKPOINT}"
        )


def _assembled(name: str, steps: Steps) -> Path:
    """The checkpoint in the cache, assembled if it is not there or its recipe has changed since."""
    from filelock import FileLock

    from .. import __version__
    from ..hub.download import disk_errors
    from ..hub.sources import HUB_CONFIGS
    from ..utils.files import cache_folder, sha256_of

    folder = cache_folder() / "checkpoints" / name
    recipe_file = folder.with_name(f"{name}.recipe")
    parts = sorted(file for file in (HUB_CONFIGS / name).iterdir() if file.is_file())
    recipe = "\n".join([__version__, *(f"{file.name} {sha256_of(file)}" for file in parts)])
    with disk_errors("cannot write to the cache", "Free some space or set $RSMOE_CACHE to another folder."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if recipe_file.is_file() and recipe_file.read_text(encoding="utf-8") == recipe and folder.is_dir():
                return folder
            steps(f"assembling {name}, once")
            from ..hub.assemble import assemble

            assemble(name, folder, overwrite=True, progress=steps)
            recipe_file.write_text(recipe, encoding="utf-8")
    return folder


def _from_hub(name: str, steps: Steps) -> Path:
    """The repository's files in the Hub's cache; its own code is not needed, this package has it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.jinja", "*.safetensors", "qformer_tokenizer/*"]
    steps(f"fetching {name} from the Hub")
    try:
        _check_model_type(Path(huggingface_hub.hf_hub_download(name, "config.json")), name)
        steps.clear()
        huggingface_hub.utils.enable_progress_bars()  # the weights may be large: the Hub's own bars tell how far it is
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except RSMoEError:
        raise
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RSMoEError(
            f"there is no folder {name}, and the Hub did not give a checkpoint of that name ({reason}): "
            "check the name, the connection and your access"
        ) from error
    finally:
        huggingface_hub.utils.disable_progress_bars()


# ---- running and showing


def look_at(
    images: list[str], kept: "list[Image.Image] | None", text: str, settings: Settings, loaded: Loaded, steps: Steps
) -> Iterator[Result]:
    """Give `text` as the instruction for every image; results come batch by batch, in order."""
    from ..images_rsmoe import read_images

    loaded.processor.refuse_marks(text)
    from ..scenes.describe import Describer

    describer = Describer(loaded.model, loaded.processor, text, settings.generation_arguments())
    for start in range(0, len(images), settings.batch_size):
        names = images[start : start + settings.batch_size]
        doing = f"looking at {_count(images)}"
        steps(doing, start / len(images) if len(images) > len(names) else None)
        with quiet_libraries():
            pictures = kept or read_images(names)
            said = describer(pictures)
        for name, picture, texts in zip(names, pictures, said, strict=True):
            yield Result(name, texts["text"], texts["router_prompts"], texts["parts"], picture)


def show(result: Result, texts: dict[str, str], model: str, as_json: bool, steps: Steps) -> None:
    """One image's result on stdout: a JSON object on one line, or a panel.

    Args:
        texts: what the command is about, by name, the last one being the outcome: `{"caption": ...}`.
    """
    if as_json:
        found = {"router_prompts": result.router_prompts, "parts": result.parts}
        steps.print(json.dumps({"image": result.image, **texts, **found, "model": model}))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, part in result.parts.items():
        table.add_row(
            Text(name, "cyan"), Text("asked", "dim"), Text(printable(result.router_prompts[name]), "dim italic")
        )
        table.add_row("", Text("found", "dim"), Text(printable(part) or "(nothing)"))
    table.add_row()
    for name, text in texts.items():
        table.add_row(Text(name, "bold"), "", Text(printable(text) or "(nothing)", "bold"))
    steps.print(
        Panel(
            table,
            title=Text(printable(result.image)),
            title_align="left",
            subtitle=Text(model),
            subtitle_align="right",
        )
    )


def _count(images: list[str]) -> str:
    return "1 image" if len(images) == 1 else f"{len(images)} images"


def printable(text: str) -> str:
    """Neither a file's name nor a model's words may steer the terminal; names may also hold bytes that are no text."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
