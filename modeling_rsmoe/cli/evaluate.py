"""`rsmoe evaluate CHECKPOINT --data DIR`: scores with intervals and baselines, from a data folder to one report."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import find_checkpoint, load
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import options, terminal


if TYPE_CHECKING:
    from ..evaluation.predict import Key
    from ..evaluation.report import Checkpoint, Report
    from ..evaluation.run import Evaluated, Selection

Task = Literal["captioning", "vqa"]
Baseline = Literal["constant", "question-only", "no-image"]


def evaluate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="A data folder: captions.jsonl, vqa.jsonl, images.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The report, as JSON.")],
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder, a name on the Hub, or rs-moe-nano. Not needed for --baseline constant and question-only, "
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
    reader: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="WHO",
            help="full: router, experts, composer; full:theme,object: with these experts only; base: the base LM "
            "alone; experts:NAME: one expert alone.",
        ),
    ] = "full",
    baseline: Annotated[
        Baseline | None,
        typer.Option(
            metavar="NAME",
            help="Score instead: constant, one text for every image or type of question; question-only, what "
            "training questions of the same words have; no-image, the model before a gray image.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL that predictions are written to as they come; a second run goes on there.",
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
    compose: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    batch_size: options.BatchSizeOption = 16,
    dtype: Annotated[
        options.Dtype,
        typer.Option(
            metavar="TYPE",
            help="Of the weights, as of caption. In float32 predictions do not depend on the batch size.",
        ),
    ] = "float32",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An HTML page: worst and best items with their images.", show_default=False),
    ] = None,
) -> None:
    """Score captions or answers on a data folder: intervals and baselines beside every score."""
    by_model = baseline in (None, "no-image")
    if checkpoint is None and by_model and predictions is None:
        raise RSMoEError(
            "nothing to evaluate: give a CHECKPOINT, --baseline constant or question-only, or the --predictions that "
            "another model wrote"
        )
    settings = options.Generation(router, compose, max_new_tokens, num_beams, batch_size, checkpoint)
    file = predictions or output.with_suffix(".jsonl")
    check_outputs(output, file, page)
    for other in against or ():
        if not other.is_file():
            raise RSMoEError(f"there is no file {other}; give --against the predictions (.jsonl) of another system")
    with terminal.Steps() as steps:
        steps("reading the data")
        from ..evaluation import report, run
        from ..evaluation.differences import differences
        from ..evaluation.predict import read_predictions
        from ..utils.provenance import peak_memory

        selection = run.select(data, task, split, dataset, limit, questions)
        shared.check_images(list(dict.fromkeys(str(record.image) for record in selection.all())), 0, steps)
        if checkpoint is not None and by_model:
            made = _predict(selection, checkpoint, (reader, baseline is None), settings, dtype, file, steps)
        else:
            made = _given(selection, baseline, predictions)
        evaluated = run.evaluate(selection, made.lines, steps, with_parts=baseline is None)
        compared: list[report.Against] = []
        for other in against or ():
            steps(f"comparing with {other}")
            found = differences(selection, evaluated, read_predictions(other))
            compared.append({"name": other.stem, "differences": found})
        written = report.make_report(
            task,
            made.system,
            made.checkpoint,
            made.settings,
            [each.result for each in evaluated],
            machine=report.machine_name(made.device),
            seconds=sum(line.get("seconds", 0.0) for line in made.lines.values()),
            peak_memory_bytes=max(line.get("peak_memory", 0) for line in made.lines.values()) or peak_memory(),
            against=compared,
        )
        report.write_report(written, output)
        _show(written, evaluated, data, [output, file if by_model else None, page], markdown, steps)


@dataclass(frozen=True)
class _Made:
    """Predictions, and who made them."""

    system: str
    lines: "dict[Key, dict[str, Any]]"
    checkpoint: "Checkpoint | None" = None
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def _predict(
    selection: "Selection",
    checkpoint: str,
    who: tuple[str, bool],
    settings: options.Generation,
    dtype: options.Dtype,
    file: Path,
    steps: terminal.Steps,
) -> _Made:
    """By the checkpoint's model, which is loaded only if `file` lacks a prediction."""
    from ..evaluation.predict import Predictor, System, key_of, predict, read_predictions
    from ..evaluation.run import run_id
    from ..utils.provenance import folder_sha256, weights_sha256

    folder = find_checkpoint(checkpoint, steps)
    steps(f"hashing {checkpoint}")
    sha256 = folder_sha256(folder)
    system = System(*who)
    if selection.task == "captioning" and system.reader.startswith("full"):
        settings = settings.for_captions(folder)
    used = _generation_settings(folder, system.reader) | settings.generation_arguments() | {"dtype": dtype}
    run = run_id(sha256, system.name, used)
    records, device = selection.all(), "cpu"
    lines = read_predictions(file, run)
    if any(key_of(record, selection.folder) not in lines for record in records):
        loaded = load(str(folder), steps, dtype)
        device = str(loaded.model.device)
        predictor = Predictor(loaded.model, loaded.processor, system, settings.generation_arguments())
        told = f"{system.name} on {len(records)} {'questions' if selection.task == 'vqa' else 'images'}"
        with quiet_libraries():
            lines = predict(
                predictor,
                records,
                selection.folder,
                file,
                run,
                settings.batch_size,
                lambda done, total: steps(told, done / total),
            )
    own = {key: lines[key] for key in (key_of(record, selection.folder) for record in records)}
    made_by: Checkpoint = {"name": Path(checkpoint).name, "sha256": weights_sha256(folder)}
    return _Made(system.name, own, made_by, used, device)


def _generation_settings(folder: Path, reader: str) -> dict[str, Any]:
    """What of the checkpoint's generation settings bears on the texts of `reader`."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RSMoEError(
            f"{folder}/generation_config.json cannot be read ({error}): assemble or download it again"
        ) from error
    names = ["num_beams", "max_new_tokens", "do_sample"]
    names += [] if reader == "base" else ["router_mode", "router_max_new_tokens"]
    names += ["fusion"] if reader.startswith("full") else []
    return {name: found[name] for name in names if name in found}


def _given(selection: "Selection", baseline: Baseline | None, predictions: Path | None) -> _Made:
    """Without a model: a baseline of texts, or what another model wrote."""
    from ..evaluation.predict import key_of, read_predictions
    from ..evaluation.run import baseline_texts

    if baseline is None:
        if predictions is None or not predictions.is_file():
            raise RSMoEError(f"there is no file {predictions}; give the --predictions of a model, or a CHECKPOINT")
        return _Made("predictions", read_predictions(predictions))
    name = "answer" if selection.task == "vqa" else "caption"
    lines = {}
    for records in selection.records.values():
        for record, text in zip(records, baseline_texts(selection, baseline, records), strict=True):
            lines[key_of(record, selection.folder)] = {name: text}
    return _Made(baseline, lines)


def _show(
    report: "Report",
    evaluated: "list[Evaluated]",
    data: Path,
    files: list[Path | None],
    markdown: bool,
    steps: terminal.Steps,
) -> None:
    """The page if there is one, and the scores on stdout: a table for each dataset, a column for each system."""
    from ..evaluation.markdown import headline, markdown_table, shown_scores

    if (page := files[-1]) is not None:
        from ..evaluation.page import write_page
        from ..evaluation.run import page_items

        steps("drawing the page")
        write_page(report, page_items(evaluated), data, page)
    if markdown:
        steps.print(markdown_table([report]).rstrip())
        return
    for result in report["results"]:
        others = {**result.get("parts", {}), **result["baselines"]}
        table = Table(title=headline(result, report["task"]), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("score", no_wrap=True)
        table.add_column(report["system"], justify="right")
        table.add_column("95 % interval", justify="right", no_wrap=True)
        for column in others:
            table.add_column(column, justify="right")
        for name in shown_scores([result["scores"]]):
            own = result["scores"][name]
            beside = (f"{scores[name]['value']:.1f}" if name in scores else "" for scores in others.values())
            table.add_row(name, f"{own['value']:.1f}", f"{own['low']:.1f} to {own['high']:.1f}", *beside)
        steps.print(table)
    for against in report.get("against", ()):
        table = Table(title=f"minus {against['name']}", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("dataset", "score", report["system"], "95 % interval"):
            table.add_column(column, justify="left" if column in ("dataset", "score") else "right", no_wrap=True)
        for difference in against["differences"]:
            for name, own in difference["scores"].items():
                bounds = f"{own['low']:+.1f} to {own['high']:+.1f}"
                table.add_row(difference["dataset"], name, f"{own['value']:+.1f}", bounds)
        steps.print(table)
    missing = {name: reason for result in report["results"] for name, reason in result["missing"].items()}
    for name, reason in missing.items():
        steps.print(f"{name} is missing: {reason}.")
    steps.print("Written: " + ", ".join(str(file) for file in files if file is not None))
