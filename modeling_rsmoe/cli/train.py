"""`rsmoe train`: from a start checkpoint and a data folder to a trained checkpoint, in two stages and in sittings."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich import box
from rich.table import Table

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import find_checkpoint
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import terminal


if TYPE_CHECKING:
    from ..configuration_rsmoe import RSMoEConfig
    from ..training.settings import Stage

train = typer.Typer(
    add_completion=False, help="Train a checkpoint in two stages; what was stopped goes on with --resume."
)
# Further options are settings of the recipe and the trainer: `--max_steps 100`.
_WITH_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _show_settings(context: typer.Context, value: bool) -> None:
    if value:
        from ..training.settings import describe_settings

        typer.echo(describe_settings(cast("Stage", context.info_name)))
        raise typer.Exit()


ConfigOption = Annotated[
    Path, typer.Option(metavar="FILE", help="YAML with a mapping of settings for each stage, stage1 and stage2.")
]
DataOption = Annotated[
    Path, typer.Option(metavar="DIR", help="A data folder: captions.jsonl, vqa.jsonl, images. Train rows are learned.")
]
OutputOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="The new checkpoint, with its loss curve and logs; holds the state meanwhile."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in DIR, or begin if there is none yet.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="START",
        help="What is trained from. stage1: a folder, or a name such as rs-moe-nano, assembled without its trained "
        "weights; stage2: the output of stage1.",
        show_default="the checkpoint that FILE names",
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where features of images are kept, for all trainings.", show_default="in ~/.cache/rsmoe"
    ),
]
SettingsOption = Annotated[
    bool,
    typer.Option(
        "--settings", is_eager=True, callback=_show_settings, help="List the settings of this stage and exit."
    ),
]


@train.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@train.command(context_settings=_WITH_SETTINGS)
def stage1(
    context: typer.Context,
    config: ConfigOption,
    data: DataOption,
    output: OutputOption,
    resume: ResumeOption = False,
    checkpoint: CheckpointOption = None,
    features: FeaturesOption = None,
    settings: SettingsOption = False,
) -> None:
    """Train the vision-language encoder and the base LM. Settings may follow as options, such as --max_steps 100."""
    _run("stage1", context.args, config, data, output, resume, checkpoint, features)


@train.command(context_settings=_WITH_SETTINGS)
def stage2(
    context: typer.Context,
    config: ConfigOption,
    data: DataOption,
    output: OutputOption,
    resume: ResumeOption = False,
    checkpoint: CheckpointOption = None,
    features: FeaturesOption = None,
    settings: SettingsOption = False,
) -> None:
    """Train router and experts from the base LM of stage 1. Settings may follow as options, such as --experts theme."""
    _run("stage2", context.args, config, data, output, resume, checkpoint, features)


@train.command()
def reranker(
    data: DataOption,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="START", help="A trained checkpoint: a folder, or a name such as rs-moe-nano.")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A dataset of DIR. May be given more than once.", show_default="all"),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the reranker.")] = 256,
    buckets: Annotated[int, typer.Option(min=1, metavar="N", help="Hashed n-grams that it knows.")] = 4096,
    features: FeaturesOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint that --output names.")
    ] = False,
) -> None:
    """Fit what chooses among the captions of base LM and experts (--fusion rerank) to the train images, in closed form."""
    with terminal.Steps() as steps, quiet_libraries():
        start = find_checkpoint(checkpoint, steps)
        from ..training.reranker import train_reranker

        train_reranker(
            data,
            output,
            start,
            rank=rank,
            buckets=buckets,
            datasets=dataset,
            features=features,
            overwrite=overwrite,
            progress=steps,
        )
        steps.print(f"{output} (reranker fitted)")


@train.command()
def export(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Outputs of stage1, stage2 and reranker, in this order.")
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
) -> None:
    """Write only what was learned, in half precision: the trained.safetensors that `rsmoe assemble` takes."""
    check_outputs(output)
    with terminal.Steps() as steps, quiet_libraries():
        steps("reading what was learned")
        from ..training.export import export_trained

        file = export_trained(outputs, output)
        steps.print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


@train.command()
def estimate(
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="A folder with config.json, or a name such as rs-moe-7b.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of both stages.", show_default="training.yaml in the folder"),
    ] = None,
    processes: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Devices. May be given more than once.", show_default="1 and 8"),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Tokens of the longest rows, of image, prompt and completions; half are learned."
        ),
    ] = 192,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Say what learns and what each stage needs on each device; no weight is read or allocated."""
    with terminal.Steps() as steps, quiet_libraries():
        steps("reading the configuration")
        from .. import RSMoEConfig
        from ..hub.sources import HUB_CONFIGS

        folder = Path(size) if Path(size).is_dir() else HUB_CONFIGS / size
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json")))
            raise RSMoEError(f"{size} has no config.json: give the folder that holds it, or one of {known}")
        settings = config or folder / "training.yaml"
        model_config = RSMoEConfig.from_pretrained(folder)
        tables = _estimates(model_config, settings, _image_size(folder), processes or [1, 8], tokens, steps)
        for title, columns, rows in tables:
            if markdown:
                lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
                steps.print("\n".join([f"{title}:", "", *(f"| {' | '.join(line)} |" for line in lines), ""]))
                continue
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for place, column in enumerate(columns):
                table.add_column(column, justify="right" if place else "left", no_wrap=True)
            for row in rows:
                table.add_row(*row)
            steps.print(table)


def _estimates(
    config: "RSMoEConfig",
    settings: Path,
    image_size: int | None,
    processes: list[int],
    tokens: int,
    steps: terminal.Steps,
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Tables, as they are ready: title, columns, rows."""
    from ..training import memory, read_settings
    from ..training.settings import STAGES

    stages = {stage: read_settings(settings, stage, settings.parent) for stage in STAGES}
    models = {name: memory.without_weights(config, recipe, use.bf16) for name, (recipe, use) in stages.items()}
    counts = [memory.count_parts(memory.without_weights(config))]
    counts += [memory.count_parts(model, learned=True) for model in models.values()]
    rows = [[part, *(f"{count[part] / 1e6:,.1f}" for count in counts)] for part in counts[0]]
    rows.append(["all", *(f"{sum(count.values()) / 1e6:,.1f}" for count in counts)])
    columns = ["part", "parameters", *(f"learn in {stage}" for stage in stages)]
    yield "millions of parameters", columns, rows

    columns = ["", "weights", "gradients", "optimizer", "buffers", "activations", "total"]
    for stage, (recipe, use) in stages.items():
        steps(f"a step of {stage} without values")
        batch = memory.Batch(use.per_device_train_batch_size, tokens, tokens // 2, image_size=image_size)
        activations = memory.activation_bytes(config, recipe, batch, use.bf16)
        rows = []
        for count in sorted(set(processes)):
            for strategy in memory.STRATEGIES if count > 1 else memory.STRATEGIES[:1]:
                kept, again = (memory.step_memory(models[stage], strategy, count, use.bf16, n) for n in activations)
                values = [kept.weights, kept.gradients, kept.optimizer, kept.buffers]
                pairs = [(kept.activations, again.activations), (kept.total, again.total)]
                shown = [f"{value / 1e9:.1f}" for value in values]
                shown += [" / ".join(f"{value / 1e9:.1f}" for value in pair) for pair in pairs]
                rows.append([f"{count} x {strategy}" if count > 1 else "one device", *shown])
        precision = "bfloat16" if use.bf16 else "float32"
        title = f"{stage}, GB on each device, {batch.rows} rows of {tokens} tokens, {precision}\n"
        yield f"{title}(with activations kept / with activation_checkpointing)", columns, rows


def _image_size(folder: Path) -> int | None:
    """Pixels of a side as the folder's processor makes them, where it has one."""
    try:
        found = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        return int(found["image_processor"]["size"]["height"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(
    stage: Literal["stage1", "stage2"],
    changes: list[str],
    config: Path,
    data: Path,
    output: Path,
    resume: bool,
    checkpoint: str | None,
    features: Path | None,
) -> None:
    check_outputs(output / "training.json")
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one tells what happens
    with terminal.Steps() as steps, quiet_libraries():
        if first:
            steps("reading the settings")
        from ..training import read_settings, train_stage1, train_stage2
        from ..training.stages import STATE

        recipe, arguments = read_settings(config, stage, output / STATE, changes)
        start = _start(stage, checkpoint or recipe.checkpoint, output / STATE / "start", steps)
        run = train_stage1 if stage == "stage1" else train_stage2

        def progress(message: str, share: float | None) -> None:
            if message == "training":
                steps.clear()  # the bar of the rows
            elif first:
                steps(message, share)

        run(recipe, arguments, data, output, start, resume=resume, features=features, progress=progress)
        if first:
            steps.print(f"{output} ({stage} finished)")
        arguments.distributed_state.destroy_process_group()


def _start(stage: str, name: str | None, untrained: Path, steps: terminal.Steps) -> Path | None:
    """The folder that is trained from. Stage 1 begins without trained weights of ours."""
    from filelock import FileLock

    from ..hub.sources import known_names

    if name is None:
        return None  # the training says what is missing
    if stage == "stage2" or Path(name).is_dir() or name not in known_names():
        return find_checkpoint(name, steps)
    untrained.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(untrained.with_name(".start.lock")):
        if not untrained.is_dir():
            from ..hub.assemble import assemble

            assemble(name, untrained, trained=False, progress=steps)
    return untrained
