"""`rsmoe bench`: speed, memory and where the time goes, against other ways to the same texts, in one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.table import Table

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import DEFAULT_MODEL, load
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import options, terminal


if TYPE_CHECKING:
    from ..bench.results import Results

SECTIONS = ("equality", "cold", "latency", "throughput", "peers", "memory", "profile", "growth", "training")
DIFFERENT = 1  # exit code where contenders do not say the same


def bench(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder, or a name on the Hub.",
            show_default=f"{DEFAULT_MODEL}, assembled on first use",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="All single times as JSON, and beside it the curves as .png.", show_default=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only whether all contenders say the same, with short texts; no times.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION",
            help=f"{', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}. May be given more than once.",
            show_default="all; training where there is --data",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Turns of all contenders, after one that does not count.")
    ] = 5,
    tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="New tokens of every caption and part, exactly.")
    ] = 24,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of the processor.", show_default="torch's own, or $OMP_NUM_THREADS"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A data folder, whose train rows the section training learns.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings of that training; its stage1 is measured.",
            show_default=f"the checkpoint's training.yaml, else {DEFAULT_MODEL}'s",
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The LLM as GGUF: a contender by llama.cpp (llama-cpp-python).", show_default=False
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(metavar="CLOCK", help="What tables show: wall, or cpu (of the processor, for a busy machine)."),
    ] = "wall",
    given: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Show what an earlier bench wrote; measure nothing.", show_default=False
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Measure speed and memory in turns, and check that all ways to a text say the same.

    Exit code 1: some contender said something else.
    """
    if given is not None and (checkpoint or quick or only):
        raise RSMoEError("--from shows what was measured before: leave CHECKPOINT, --quick and --only out")
    sections = [] if given is not None else _sections(quick, only, data)
    picture = output.with_suffix(".png") if output is not None else None
    check_outputs(output, picture)
    with terminal.Steps() as steps:
        if given is not None:
            from ..bench.results import read_results

            results = read_results(given)
        else:
            _check_needs(sections, output, quick, data, gguf)
            results = _measure(
                checkpoint, sections, quick, (repeats, tokens, threads), (data, config, gguf), dtype, steps
            )
        _write(results, output, picture, clock, steps)
        _show(results, clock, markdown, steps)
        wrong = [one for one in results.get("equality", ()) if one["differences"]]
        for one in wrong:
            terminal.print_error(f"{one['name']} differs from {one['against']}: {one['differences'][0]}")
    if wrong:
        raise typer.Exit(DIFFERENT)


def _sections(quick: bool, only: list[str] | None, data: Path | None) -> list[str]:
    unknown = [name for name in only or () if name not in SECTIONS]
    if unknown:
        raise RSMoEError(f"--only {unknown[0]}: there is no such section; known are {', '.join(SECTIONS)}")
    if quick and only:
        raise RSMoEError("--quick checks equality alone: leave --only out")
    if only and "training" in only and data is None:
        raise RSMoEError("the section training needs --data, a data folder")
    if quick:
        return ["equality"]
    return list(only) if only else [name for name in SECTIONS if name != "training" or data is not None]


def _check_needs(sections: list[str], output: Path | None, quick: bool, data: Path | None, gguf: Path | None) -> None:
    """Before any work: what is missing at the end of a long run would cost it."""
    from ..utils.extras import require

    if gguf is not None:
        from ..bench.llama_cpp import check_file

        check_file(gguf)
    if data is not None:
        from ..data.records import read_captions

        read_captions(data, "train")
    if output is not None and not quick:
        require("matplotlib", "train")
    if "training" in sections:
        for module in ("datasets", "trl"):
            require(module, "train")


def _measure(
    checkpoint: str | None,
    sections: list[str],
    quick: bool,
    numbers: tuple[int, int, int | None],
    files: tuple[Path | None, Path | None, Path | None],
    dtype: options.Dtype | None,
    steps: terminal.Steps,
) -> "Results":
    import torch

    from ..bench.run import QUICK_ROUTER_TOKENS, QUICK_TOKENS, Run, measure
    from ..bench.workbench import Workbench

    repeats, tokens, threads = numbers
    data, config, gguf = files
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load(checkpoint, dtype, progress=steps)
    lengths = (QUICK_TOKENS, QUICK_ROUTER_TOKENS) if quick else (tokens, tokens)
    bench = Workbench(loaded.model, loaded.processor, loaded.folder, *lengths)
    run = Run(
        bench,
        Path(loaded.name).name,
        repeats,
        torch.get_num_threads(),
        gguf,
        data,
        config or _training_config(loaded.folder),
    )
    with quiet_libraries():
        return measure(run, sections, steps)


def _training_config(folder: Path) -> Path:
    from ..hub.sources import HUB_CONFIGS

    own = folder / "training.yaml"
    return own if own.is_file() else HUB_CONFIGS / DEFAULT_MODEL / "training.yaml"


def _write(results: "Results", output: Path | None, picture: Path | None, clock: str, steps: terminal.Steps) -> None:
    if output is None or picture is None:
        return
    from ..bench.plots import plot
    from ..bench.results import write_results

    write_results(results, output)
    drawn = plot(results, picture, clock)
    steps.note("written: " + ", ".join(str(file) for file in (output, picture if drawn else None) if file))


def _show(results: "Results", clock: str, markdown: bool, steps: terminal.Steps) -> None:
    from ..bench.tables import footer, tables
    from ..bench.tables import markdown as as_markdown

    if markdown:
        steps.print(as_markdown(results, clock).rstrip())
        return
    for found in tables(results, clock):
        table = Table(title=found.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(found.columns):
            table.add_column(column, justify="left" if index < found.texts else "right")
        for row in found.rows:
            table.add_row(*row)
        steps.print(table)
        for note in found.notes:
            steps.print(f"  {note}")
    for line in footer(results):
        steps.print(line)
