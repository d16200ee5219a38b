"""`rsmoe data`: public datasets, read from their published files and written as one data folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import Steps


if TYPE_CHECKING:
    from ..data.records import CaptionRecord, QuestionRecord

IMAGE_FOLDER = "imagefolder"

data = typer.Typer(add_completion=False, help="Data folders from public datasets, or from your own images.")


@data.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data.command("list")
def list_benchmarks() -> None:
    """The datasets that can be converted: name, tasks, splits, and where they are published."""
    from ..data.benchmarks import BENCHMARKS

    rows = [(key, ", ".join(one.tasks), ", ".join(one.splits), one.url) for key, one in BENCHMARKS.items()]
    rows.append((IMAGE_FOLDER, "captioning, vqa", "yours", "your own images with metadata.jsonl"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@data.command()
def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset of `rsmoe data list`, such as rsicd.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder with its published files, unpacked.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The data folder to write, or to add to.")],
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT", help="Only this split; may be given more than once.", show_default="all"),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links instead of copies of the images (on the same disk).")
    ] = False,
) -> None:
    """Write a dataset's images, captions and questions into a data folder, beside what it holds of others."""
    from ..data.benchmarks import find
    from ..data.folder import write_folder
    from ..data.records import QUESTIONS_FILE, read_image_folder

    with Steps() as steps:
        steps(f"reading {name}")
        records: Iterable[CaptionRecord | QuestionRecord]
        if name.lower() == IMAGE_FOLDER:
            records, title = read_image_folder(source, split), source.resolve().name
            questions_file, remedy = QUESTIONS_FILE, "copy them there or drop their lines"
        else:
            benchmark = find(name)
            records, title = benchmark.records(source, split), benchmark.name
            questions_file, remedy = benchmark.questions_file, benchmark.remedy
        counts = write_folder(
            records, source, out, title, questions_file=questions_file, link=link, remedy=remedy, progress=steps
        )
        for (file, dataset, of_split), count in counts.items():
            steps.print(f"{out / file}: {dataset} {of_split}, {count} records")
