"""`rsmoe evaluate MODEL --data DIR`: scores with intervals and baselines, from a data folder to one report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.table import Table

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_outputs
from . import options, terminal
from .images import check_images


if TYPE_CHECKING:
    from ..evaluation.report import Report, ScoreEntry

Task = Literal["captioning", "vqa"]
Baseline = Literal["constant", "question-only", "no-image", "nearest", "retrieval"]
WITHOUT_A_MODEL = ("constant", "question-only")


def evaluate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="A data folder: captions.jsonl, vqa.jsonl, images.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The report, as JSON.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint: a folder, or a name on the Hub. Not needed for --baseline constant or question-only, "
            "nor to score the --predictions of another model.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[Task, typer.Option(metavar="TASK", help="captioning or vqa.")] = "captioning",
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="May be given more than once.", show_default="all that have the split"),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split to score.")] = "test",
    questions: Annotated[
        str, typer.Option(metavar="NAME", help="The data folder's file of questions, for --task vqa.")
    ] = "vqa.jsonl",
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only N items of each dataset, evenly spread.", show_default="all"),
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Only images of whose captions none stands in train word for word.")
    ] = False,
    detail: Annotated[
        bool, typer.Option("--detail", help="Ask for paragraphs: faithfulness and coverage are their measures.")
    ] = False,
    system: Annotated[
        str,
        typer.Option(
            metavar="SYSTEM",
            help="full: router, experts, fusion; full:theme,object: with these experts only; base: the base LM alone; "
            "experts:NAME: one expert alone.",
        ),
    ] = "full",
    baseline: Annotated[
        Baseline | None,
        typer.Option(
            metavar="NAME",
            help="Score instead: constant, one text for every image or type of question; question-only, the answers "
            "to the most similar training questions; no-image, the model before a gray image; nearest, a caption of "
            "the most similar training images; retrieval, the training caption that the model's reranker likes best.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL that predictions are written to as they come; a second run continues it.",
            show_default="OUTPUT as .jsonl",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Predictions of another system for the same items: the differences, with paired intervals. May be "
            "given more than once.",
            show_default=False,
        ),
    ] = None,
    router: options.RouterOption = None,
    fusion: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    batch_size: options.BatchSizeOption = 16,
    dtype: Annotated[
        options.Dtype,
        typer.Option(
            metavar="TYPE",
            help="Weight dtype, as of rsmoe caption. In float32 predictions do not depend on the batch size.",
        ),
    ] = "float32",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An HTML page: worst and best items with their images.", show_default=False),
    ] = None,
) -> None:
    """Score captions or answers on a data folder: intervals and baselines beside every score."""
    file = predictions or output.with_suffix(".jsonl")
    by_model = model is not None and baseline not in WITHOUT_A_MODEL
    _check(model, baseline, predictions, against or [])
    if detail and (task != "captioning" or model is None or baseline not in (None, "no-image")):
        raise RSMoEError("--detail asks a MODEL for paragraphs, with --task captioning: leave it out")
    if unseen and task != "captioning":
        raise RSMoEError("--unseen is of captions, not of --task vqa: leave it out")
    check_outputs(output, file, page)
    with terminal.Steps() as steps:
        steps("reading the data")
        from ..evaluation import lookup, report, run
        from ..evaluation.predict import read_predictions

        selection = run.select(data, task, split, dataset, limit, questions, unseen)
        check_images(list(dict.fromkeys(str(record.image) for record in selection.all())), 0, steps)
        lookups: dict[str, run.Predictions] = {}
        if model is not None and baseline in lookup.LOOKUPS:
            predicted = lookup.predictions_by_lookups(selection, model, {baseline: file}, progress=steps)[baseline]
        elif model is not None and by_model:
            settings = options.Generation(
                router, fusion, max_new_tokens, num_beams, None, batch_size, model
            ).settings()
            sees_image = baseline is None
            predicted = run.predictions_by_model(
                selection, model, file, system, sees_image, detail, settings, dtype, batch_size, steps
            )
            if sees_image:
                names = lookup.known_lookups(selection, model, steps)
                if limit is not None and lookup.NEAREST in names:  # all training images for a few of them
                    names.remove(lookup.NEAREST)
                files = {name: file.with_suffix(f".{name}.jsonl") for name in names}
                lookups = lookup.predictions_by_lookups(selection, model, files, progress=steps)
        elif baseline is not None:
            predicted = run.predictions_by_baseline(selection, baseline)
        else:
            predicted = run.Predictions("predictions", read_predictions(file))
        evaluated = run.evaluate(
            selection,
            predicted.lines,
            steps,
            with_expert_texts=baseline is None,
            baselines={name: other.lines for name, other in lookups.items()},
        )
        compared: list[report.Against] = [
            {"name": name, "differences": run.baseline_differences(evaluated, name)} for name in lookups
        ]
        for other in against or []:
            steps(f"comparing with {other}")
            compared.append(
                {"name": other.stem, "differences": run.differences(selection, evaluated, read_predictions(other))}
            )
        made = run.report_of(selection, predicted, evaluated, compared)
        report.write_report(made, output)
        if page is not None:
            from ..evaluation.page import write_page

            steps("drawing the page")
            write_page(made, run.scored_items(evaluated), data, page)
        _print(made, markdown, steps)
        if not markdown:
            written = [str(name) for name in (output, file if by_model else None, page) if name is not None]
            steps.print("Written: " + ", ".join(written))


def _check(model: str | None, baseline: Baseline | None, predictions: Path | None, against: list[Path]) -> None:
    if model is None and baseline not in WITHOUT_A_MODEL:
        if baseline is not None:
            raise RSMoEError(f"--baseline {baseline} is of a checkpoint; give a MODEL")
        if predictions is None:
            raise RSMoEError(
                "nothing to evaluate: give a MODEL, --baseline constant or question-only, or the --predictions that "
                "another model wrote"
            )
        if not predictions.is_file():
            raise RSMoEError(f"there is no file {predictions}; give the --predictions of a model, or a MODEL")
    for other in against:
        if not other.is_file():
            raise RSMoEError(f"there is no file {other}; give --against the predictions (.jsonl) of another system")


def _print(report: "Report", markdown: bool, steps: terminal.Steps) -> None:
    """The scores: a table for each dataset with a column for each system, then the differences from others."""
    from ..evaluation.markdown import data_note, headline, score_tables, shown_scores

    if markdown:
        steps.print(score_tables([report]).rstrip())
        return
    for result in report["results"]:
        columns, title = [report["system"], "95 % interval"], headline(result, report["task"])
        names = shown_scores([result["scores"]])
        own = [_cells(result["scores"][name]) for name in names]
        rows = [[name, *cells, *_values(name, result["baselines"])] for name, cells in zip(names, own, strict=True)]
        steps.print(_table(title, ["score", *columns, *result["baselines"]], rows, texts=1))
        if experts := result.get("expert_texts"):
            rows = [[name, *_values(name, experts)] for name in names]
            steps.print(_table(f"{title}: texts of the experts", ["score", *experts], rows, texts=1))
        if note := data_note(result):
            steps.print(note)
    for against in report.get("against", ()):
        columns = ["dataset", "score", report["system"], "95 % interval"]
        rows = [
            [difference["dataset"], name, *_cells(score, "+")]
            for difference in against["differences"]
            for name, score in difference["scores"].items()
        ]
        steps.print(_table(f"minus {against['name']}", columns, rows, texts=2))
    missing = {name: reason for result in report["results"] for name, reason in result["missing"].items()}
    for name, reason in missing.items():
        steps.print(f"{name} is missing: {reason}.")


def _values(name: str, others: "dict[str, dict[str, ScoreEntry]]") -> list[str]:
    return [f"{scores[name]['value']:.1f}" if name in scores else "" for scores in others.values()]


def _cells(score: "ScoreEntry", sign: str = "") -> list[str]:
    return [f"{score['value']:{sign}.1f}", f"{score['low']:{sign}.1f} to {score['high']:{sign}.1f}"]


def _table(title: str, columns: list[str], rows: list[list[str]], texts: int) -> Table:
    """The first columns, `texts` of them, hold no numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        is_fixed = index < texts or column == "95 % interval"
        table.add_column(column, justify="left" if index < texts else "right", no_wrap=is_fixed)
    for row in rows:
        table.add_row(*row)
    return table
