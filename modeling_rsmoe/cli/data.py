"""`rsmoe data`: public datasets, read from their published files and written as one data folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..utils.rasters.bands import parse_bands
from ..utils.rasters.options import RasterOptions
from . import collection, scenes
from .terminal import Steps


OWN = ("own", "imagefolder")  # two names of one reader: the second one stands in scripts of before

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
    rows.append((OWN[0], "captioning, vqa", "yours", "your own images and texts: tables, COCO, LLaVA, datasets"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@data.command()
def convert(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A dataset of `rsmoe data list`, such as rsicd; or own.")
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder with its published files, unpacked.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The data folder to write, or to add to.")],
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT", help="Only this split; may be given more than once.", show_default="all"),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links instead of copies of the images (on the same disk).")
    ] = False,
    val: Annotated[
        float | None, typer.Option(metavar="SHARE", help="own: share of val, without splits.", show_default="0.1")
    ] = None,
    test: Annotated[
        float | None, typer.Option(metavar="SHARE", help="own: share of test, without splits.", show_default="0.1")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="own: of the splits that are made.", show_default="0")
    ] = None,
    bands: scenes.BandsOption = None,
    nodata: scenes.NodataOption = None,
    stretch: collection.StretchOption = None,
) -> None:
    """Write a dataset's images, captions and questions into a data folder, beside what it holds of others.

    NAME own reads your own images and texts (ImageFolder, CSV, COCO, LLaVA, datasets) and makes splits where none are.
    Chips of 16 bits, floats or many bands become RGB PNGs: --bands, --nodata and --stretch are for own.
    """
    from ..data.benchmarks import find
    from ..data.folder import write_folder
    from ..data.own import read_own
    from ..utils.files import disk_errors

    with Steps() as steps, tempfile.TemporaryDirectory(prefix="rsmoe-") as scratch:
        steps(f"reading {name}")
        notes: Sequence[str] = ()
        if name.lower() in OWN:
            with disk_errors("cannot read", "Check its permissions."):
                raster_options = RasterOptions(None if bands is None else parse_bands(bands), nodata)
                own = read_own(
                    source,
                    scratch,
                    only=split,
                    val=val,
                    test=test,
                    seed=seed,
                    raster_options=raster_options,
                    stretch=stretch,
                    progress=steps,
                )
            counts = write_folder(own.records, own.folder, out, own.name, link=link, chips=own.chips, progress=steps)
            notes = own.notes
        else:
            benchmark = find(name)
            if any(option is not None for option in (val, test, seed)):
                raise RSMoEError(f"--val, --test and --seed are for NAME own; {benchmark.name} has its own splits")
            if any(option is not None for option in (bands, nodata, stretch)):
                raise RSMoEError(f"--bands, --nodata and --stretch are for NAME own; {benchmark.name} has no chips")
            counts = write_folder(
                benchmark.records(source, split),
                source,
                out,
                benchmark.name,
                questions_file=benchmark.questions_file,
                link=link,
                remedy=benchmark.remedy,
                progress=steps,
            )
        for (file, dataset, of_split), count in counts.items():
            steps.print(f"{out / file}: {dataset} {of_split}, {count} records")
        for note in notes:
            steps.note(note)


@data.command()
def questions(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="The data folder; its vqa.jsonl is written anew.")],
) -> None:
    """Make questions of a data folder's labels: presence and lists of objects.jsonl, scenes of scenes.jsonl.

    They are added to its vqa.jsonl as datasets of their own, such as RSICD-labels. Presence questions are balanced:
    each object is asked about as often where it is as where it is not.
    """
    from ..data.folder import add_label_questions

    for (file, dataset, split), count in add_label_questions(folder).items():
        typer.echo(f"{folder / file}: {dataset} {split}, {count} records")


@data.command()
def mosaics(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="The data folder; its vqa.jsonl is written anew.")],
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Mosaics of each dataset and split.")] = 500,
    side: Annotated[int, typer.Option(min=2, max=8, metavar="N", help="Images in a row of a mosaic.")] = 2,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of the drawing.")] = 0,
) -> None:
    """Make mosaics of a data folder's scene images, and questions about them as RSVQA-LR asks: is there, are there
    more, how many.

    The questions are added to its vqa.jsonl as datasets of their own, such as EuroSAT-mosaics.
    """
    from ..data.folder import add_mosaics

    with Steps() as steps:
        for (file, dataset, split), count in add_mosaics(folder, number, side, seed, steps).items():
            steps.print(f"{folder / file}: {dataset} {split}, {count} records")
