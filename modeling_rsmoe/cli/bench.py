"""`rsmoe bench`: speed, memory and where the time goes, against other ways to the same texts, in one run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from ..errors_rsmoe import RSMoEError, first_line
from ..inference.checkpoint import DEFAULT_MODEL, Checkpoint, load
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import options, terminal


if TYPE_CHECKING:
    from ..bench.results import Results

SECTIONS = ("equality", "cold", "latency", "throughput", "peers", "memory", "profile", "growth", "training", "device")
DIFFERENT = 1  # exit code where variants do not say the same


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint: a folder, or a name on the Hub.",
            show_default=f"{DEFAULT_MODEL}, assembled on first use",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write all times as JSON, and curves as .png beside it.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the curves into this file, .svg or .png.", show_default="OUTPUT as .png"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check that all variants give the same text, with short texts.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION",
            help=f"{', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}. May be given more than once.",
            show_default="all but device; training where there is --data",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rounds of all variants, after one that does not count.")
    ] = 5,
    tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="New tokens of every caption and expert text, exactly.")
    ] = 24,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of CPU threads.", show_default="torch's own, or $OMP_NUM_THREADS"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A data folder for the section training.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings of that training, of which stage1 is measured.",
            show_default=f"the checkpoint's training.yaml, else {DEFAULT_MODEL}'s",
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The LLM as GGUF, to compare with llama.cpp (llama-cpp-python).", show_default=False
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Where the model runs, such as cuda. Without --only the section device alone is measured.",
            show_default="a GPU if there is one",
        ),
    ] = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(metavar="CLOCK", help="Times in tables: wall, or cpu (processor time, for a busy machine)."),
    ] = "wall",
    earlier: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Show the results of an earlier bench.", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Benchmark speed and memory; verify that all decoding paths give the same text.

    Exit code 1: some path gave another text.
    """
    if earlier is not None and (model or quick or only):
        raise RSMoEError("--from shows what was measured before: leave MODEL, --quick and --only out")
    sections = [] if earlier is not None else _sections(quick, only, data, device)
    if plot is None and output is not None:
        plot = output.with_suffix(".png")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise RSMoEError(f"--plot {plot} has an unknown ending: write .svg or .png")
    check_outputs(output, plot)
    with terminal.Steps() as steps:
        if earlier is not None:
            from ..bench.results import read_results

            results = read_results(earlier)
        else:
            _check_needs(sections, None if quick else plot, data, gguf)
            how = {"repeats": repeats, "threads": threads, "data": data, "config": config, "gguf": gguf}
            _check_device(device)
            loading = partial(load, model, dtype, device, steps)
            results = _measure(loading, sections, None if quick else tokens, how, steps)
        _write(results, output, plot, clock, steps)
        _show(results, clock, markdown, steps)
        different = [one for one in results.get("equality", ()) if one["differences"]]
        for one in different:
            terminal.print_error(f"{one['name']} differs from {one['against']}: {one['differences'][0]}")
    if different:
        raise typer.Exit(DIFFERENT)


def _sections(quick: bool, only: list[str] | None, data: Path | None, device: str | None) -> list[str]:
    unknown = [name for name in only or () if name not in SECTIONS]
    if unknown:
        raise RSMoEError(f"--only {unknown[0]}: there is no such section; known are {', '.join(SECTIONS)}")
    if quick and only:
        raise RSMoEError("--quick checks equality alone: leave --only out")
    if only and "training" in only and data is None:
        raise RSMoEError("the section training needs --data, a data folder")
    if quick:
        return ["equality"]
    if only:
        return list(only)
    if device is not None:
        return ["device"]
    return [name for name in SECTIONS[:-1] if name != "training" or data is not None]


def _check_needs(sections: list[str], plot: Path | None, data: Path | None, gguf: Path | None) -> None:
    """Before any work: what is missing at the end of a long run would cost it."""
    from ..utils.extras import require

    if gguf is not None:
        from ..bench.llama_cpp import check_file

        check_file(gguf)
    if data is not None:
        from ..data.records import read_captions

        read_captions(data, "train")
    modules = ["matplotlib"] if plot is not None else []
    for module in modules + (["datasets", "trl"] if "training" in sections else []):
        require(module, "train")


def _measure(
    loading: Callable[[], Checkpoint],
    sections: list[str],
    tokens: int | None,
    how: dict[str, Any],
    steps: terminal.Steps,
) -> "Results":
    """Load the checkpoint and measure; without `tokens`, short texts. `how` is of the `Workbench`."""
    import torch

    from ..bench.run import QUICK_ROUTER_TOKENS, QUICK_TOKENS, measure
    from ..bench.workbench import Workbench

    if how["threads"] is not None:
        torch.set_num_threads(how["threads"])
    loaded = loading()
    settings = {**how, "threads": torch.get_num_threads(), "config": how["config"] or _training_config(loaded.folder)}
    settings["tokens"], settings["router_tokens"] = tokens or QUICK_TOKENS, tokens or QUICK_ROUTER_TOKENS
    with quiet_libraries():
        bench = Workbench(loaded.model, loaded.processor, loaded.folder, **settings)
        return measure(bench, Path(loaded.name).name, sections, steps)


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = f"--device {device} cannot be used ({first_line(error)})"
        raise RSMoEError(f"{problem}: give one that torch has here, such as cpu") from error


def _training_config(folder: Path) -> Path:
    from ..hub.sources import HUB_CONFIGS

    of_checkpoint = folder / "training.yaml"
    return of_checkpoint if of_checkpoint.is_file() else HUB_CONFIGS / DEFAULT_MODEL / "training.yaml"


def _write(results: "Results", output: Path | None, plot_file: Path | None, clock: str, steps: terminal.Steps) -> None:
    from ..bench.plots import plot
    from ..bench.results import write_results

    written = []
    if output is not None:
        write_results(results, output)
        written.append(output)
    if plot_file is not None and plot(results, plot_file, clock):
        written.append(plot_file)
    if written:
        steps.note("written: " + ", ".join(map(str, written)))


def _show(results: "Results", clock: str, markdown: bool, steps: terminal.Steps) -> None:
    from ..bench import tables

    if markdown:
        steps.print(tables.markdown(results, clock).rstrip())
        return
    for found in tables.tables(results, clock):
        table = Table(title=found.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(found.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in found.rows:
            table.add_row(*row)
        steps.print(table)
        for note in found.notes:
            steps.print(f"  {note}")
    for line in tables.footer(results):
        steps.print(line)
