"""`rsmoe card MODEL`: a checkpoint's model card and STAC item from facts and reports, by command, never by hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..utils.quiet import quiet_libraries


if TYPE_CHECKING:
    from ..evaluation.report import Report


def card(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint: rs-moe-nano or another name under hub_configs, or its folder. Or the Markdown file of "
            "a card that you wrote yourself: only scores are written into it.",
            show_default=False,
        ),
    ],
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            "--scores",
            metavar="REPORT",
            help="A report of `rsmoe evaluate`, or a folder of reports (*.json). May be given several times.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the card goes.", show_default="README.md of the folder"),
    ] = None,
    stac: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the STAC item of a trained checkpoint goes.",
            show_default="stac_item.json of the folder, with --output none",
        ),
    ] = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Another Markdown file, with the table of scores between `<!-- scores -->` and `<!-- /scores -->`.",
            show_default=False,
        ),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            metavar="DATASET=OWNER/NAME[:TASK]",
            help="The registered benchmark on the Hub that a dataset is, for .eval_results/.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a checkpoint's model card (use, modules, training, scores, limits, licences) and its STAC item.

    What the checkpoint's files cannot say (uses, limits, risks, licences of data) stands in card.yaml beside them.
    """
    from ..evaluation.markdown import folded_tables, summary_table
    from ..evaluation.report import read_report

    reports = [read_report(file) for path in scores or [] for file in _report_files(path)]
    reports.sort(key=_task_split_system)
    summary = summary_table(reports)
    table = f"{summary}\n{folded_tables(reports)}"
    if unnamed := [text for text in benchmarks or [] if "=" not in text]:
        raise RSMoEError(f'--benchmark "{unnamed[0]}" names no dataset; write DATASET=OWNER/NAME[:TASK]')
    benchmark_ids = dict(text.split("=", 1) for text in benchmarks or [])
    if not reports and (tables or benchmark_ids):
        raise RSMoEError("--table and --benchmark are about scores; give --scores with reports of `rsmoe evaluate`")
    with quiet_libraries():
        from ..hub.card import CARD, write_card
        from ..hub.card_scores import with_tables, write_changed, write_scores
        from ..hub.facts import read_facts
        from ..hub.stac import stac_text
        from ..utils.provenance import STAC_ITEM

        if Path(model).suffix.lower() == ".md":
            if not reports or output or stac:
                remedy = "give --scores with reports, and neither --output nor --stac"
                raise RSMoEError(f"{model} is a card of your own, into which scores are written where it is: {remedy}")
            done = write_scores(model, reports, table, tables or [], benchmark_ids)
        else:
            facts = read_facts(model)
            texts = with_tables(tables or [], table)  # all is read and made before anything is written
            item = stac_text(facts) if facts.trained else None
            done = write_card(facts, output or facts.folder / CARD, reports, summary, benchmark_ids)
            done += [write_changed(file, text) for file, text in texts.items()]
            if stac is None and output is not None:
                pass  # only what was asked for, where it was asked for
            elif item is None:
                done.append("no STAC item: catalogs are for trained models")
            else:
                done.append(write_changed(stac or facts.folder / STAC_ITEM, item))
    for line in done:
        typer.echo(line)


def _report_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if files := sorted(path.glob("*.json")):
        return files
    raise RSMoEError(f"folder {path} has no report (*.json); `rsmoe evaluate --output` writes them")


def _task_split_system(report: "Report") -> tuple[str, list[tuple[bool, str]], bool]:
    """For sorting: in the tables of a split, the full model comes first."""
    from ..evaluation.markdown import split_order

    splits = [split_order(result["split"]) for result in report["results"]]
    return report["task"], splits, not report["system"].startswith("full")
