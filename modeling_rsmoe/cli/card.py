"""`rsmoe card CARD --scores REPORT...`: the scores of reports go into a model card by command, never by hand."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError


def card(
    card: Annotated[
        Path, typer.Argument(metavar="CARD", help="The model card, or its folder, where it is README.md.")
    ],
    scores: Annotated[
        list[Path],
        typer.Option(
            "--scores",
            metavar="REPORT",
            help="A report of `rsmoe evaluate`, or a folder of reports (*.json). May be given several times.",
        ),
    ],
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table", metavar="FILE", help="Another Markdown file with marks for the table.", show_default=False
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
    """Write scores into a model card: its model-index, the table between <!-- scores --> and <!-- /scores -->, and
    .eval_results/."""
    from ..evaluation.markdown import markdown_table
    from ..evaluation.report import TASKS, read_report
    from ..hub.card import write_scores

    reports = [read_report(file) for path in scores for file in _reports(path)]
    of_tasks = [[report for report in reports if report["task"] == task] for task in TASKS]
    table = "\n".join(markdown_table(of_task) for of_task in of_tasks if of_task)
    named = dict(_benchmark(text) for text in benchmarks or [])
    for line in write_scores(card, reports, table, tables or [], named):
        typer.echo(line)


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
