"""`rsmoe card NAME`: a checkpoint's model card and STAC item from facts and reports, by command, never by hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..utils.quiet import quiet_libraries


if TYPE_CHECKING:
    from ..evaluation.report import Report


def card(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A checkpoint: rs-moe-nano or another name under hub_configs, or its folder. Or the Markdown file of a "
            "card that you wrote yourself: only scores are written into it.",
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
            help="Where the STAC item of a trained checkpoint goes, which needs the extra geo.",
            show_default="stac_item.json of the folder",
        ),
    ] = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Another Markdown file, with the table of scores between <!-- scores --> and <!-- /scores -->.",
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
    """Write a checkpoint's model card: front matter, use, parts, training, scores, limits, licences; and its STAC item.

    What the checkpoint's files cannot say (uses, limits, risks, licences of data) stands in card.yaml beside them.
    """
    from ..evaluation.markdown import markdown_table
    from ..evaluation.report import TASKS, read_report

    reports = [read_report(file) for path in scores or [] for file in _reports(path)]
    of_tasks = [[report for report in reports if report["task"] == task] for task in TASKS]
    table = "\n".join(markdown_table(of_task) for of_task in of_tasks if of_task)
    named = dict(_benchmark(text) for text in benchmarks or [])
    if not reports and (tables or named):
        raise RSMoEError("--table and --benchmark are about scores; give --scores with reports of `rsmoe evaluate`")
    if Path(checkpoint).suffix.lower() == ".md":
        if not reports or output or stac:
            raise RSMoEError(
                f"{checkpoint} is a card of your own, into which scores are written where it is: give --scores with reports, "
                "and neither --output nor --stac"
            )
        from ..hub.card_scores import write_scores

        done = write_scores(checkpoint, reports, table, tables or [], named)
    else:
        done = _write_whole_card(checkpoint, reports, table, output, stac, tables or [], named)
    for line in done:
        typer.echo(line)


def _write_whole_card(
    checkpoint: str,
    reports: "list[Report]",
    table: str,
    output: Path | None,
    stac: Path | None,
    tables: list[Path],
    benchmarks: dict[str, str],
) -> list[str]:
    from ..evaluation.markdown import summary_table

    with quiet_libraries():
        from ..hub.card import CARD, write_card
        from ..hub.card_scores import with_tables, write_changed
        from ..hub.facts import read_facts
        from ..hub.stac import STAC_ITEM, stac_text

        facts = read_facts(checkpoint)
        item, reason = None, "catalogs are for trained models"
        if facts.trained:
            try:
                item = stac_text(facts)
            except RSMoEError as error:  # of the extra geo, which a card alone does not need
                if stac:
                    raise
                reason = str(error)
        texts = with_tables(tables, table)  # all is read and made before anything is written
        done = write_card(facts, output or facts.folder / CARD, reports, summary_table(reports), table, benchmarks)
        done += [write_changed(file, text) for file, text in texts.items()]
        if item is None:
            return [*done, f"no STAC item: {reason}"]
        return [*done, write_changed(stac or facts.folder / STAC_ITEM, item)]


def _reports(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise RSMoEError(f"folder {path} has no report (*.json); `rsmoe evaluate --output` writes them")
    return files


def _benchmark(text: str) -> tuple[str, str]:
    dataset, separator, name = text.partition("=")
    if not separator:
        raise RSMoEError(f'--benchmark "{text}" names no dataset; write DATASET=OWNER/NAME or DATASET=OWNER/NAME:TASK')
    return dataset, name
