"""`rsmoe train DATA`: from a checkpoint and captions to a better one. Its commands are the steps, one by one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich import box
from rich.table import Table
from typer.core import TyperGroup

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import DEFAULT_MODEL, find_checkpoint
from ..utils.files import check_outputs, parse_json
from ..utils.progress import no_progress
from ..utils.quiet import quiet_libraries
from ..utils.tables import markdown_table
from . import terminal
from .options import OverwriteOption


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..configuration_rsmoe import RSMoEConfig
    from ..training.settings import Stage
    from ..utils.progress import Progress


class _Steps(TyperGroup):
    """What is no step by name begins the arguments of the hidden command. A folder of a step's name is `./stage1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        steps = [name for name, command in self.commands.items() if not command.hidden]
        if args and args[0] not in (*steps, *ctx.help_option_names):
            args = [_OWN, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == _OWN else name, command, rest  # `rsmoe train` in its usage


_OWN = "own"
train = typer.Typer(
    cls=_Steps,
    add_completion=False,
    help="Train on your own images and captions: `rsmoe train DATA --output DIR`. Or step by step.\n\n"
    "`rsmoe train DATA --help` says more of the first; the second are the commands below.",
)
# Further options are settings of the recipe and the trainer: `--max_steps 100`.
_WITH_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _show_settings(context: typer.Context, value: bool) -> None:
    if value:
        from ..training.settings import describe_settings

        typer.echo(describe_settings(str(context.info_name)))
        raise typer.Exit()


DataOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="A data folder: captions.jsonl, vqa.jsonl, images. The train split is learned."),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of image features, shared by all trainings.", show_default="in ~/.cache/rsmoe"
    ),
]

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in DIR, or begin if there is none yet.")
]
SettingsOption = Annotated[
    bool, typer.Option("--settings", is_eager=True, callback=_show_settings, help="List the settings and exit.")
]


@train.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@train.command(_OWN, hidden=True)
def own(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Your images and captions: an ImageFolder (images and metadata.jsonl), or a folder with "
            "captions.jsonl. Without splits a fifth of the images is held out for the scores.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The new checkpoint, its scores and card; holds the state meanwhile.")
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The trained checkpoint to begin with: a folder or a name.")
    ] = DEFAULT_MODEL,
    minutes: Annotated[
        float | None,
        typer.Option(min=1, metavar="N", help="About so long at most.", show_default="as the images need"),
    ] = None,
    features: FeaturesOption = None,
) -> None:
    """Train on your own captions: both stages, the reranker, then scores beside the checkpoint it began with.

    How long it takes is said first. After a stop the same command goes on. See docs/how-to/training.md for the steps.
    """
    with terminal.Steps() as steps, quiet_libraries():
        steps("reading the settings")
        from ..evaluation.markdown import score_tables
        from ..training import finetune

        plan = finetune.plan(data, output, model, minutes=minutes, progress=steps)
        for line in str(plan).splitlines():
            steps.note(line)
        report = finetune.fine_tune(plan, output, features=features, progress=_before_the_bar(steps))
        steps.print(score_tables([report]).rstrip())
        steps.print(f"{output} (trained on {plan.train_images} images)")


def _before_the_bar(steps: terminal.Steps) -> "Progress":
    def progress(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        if message == "training":
            steps.clear()  # the bar of the examples
        else:
            steps(message, done, total, unit)

    return progress


def _leave_together(arguments: "TrainingArguments") -> None:
    """The end of one of several processes: gloo aborts one that exits while a thread of it still frees its tensors."""
    arguments.distributed_state.wait_for_everyone()
    arguments.distributed_state.destroy_process_group()


def _stage(
    context: typer.Context,
    config: Annotated[Path, typer.Option(metavar="FILE", help="YAML with settings of each stage, stage1 and stage2.")],
    data: DataOption,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The new checkpoint, loss curve and logs; holds the state meanwhile.")
    ],
    resume: ResumeOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The checkpoint to train from. stage1: a folder, or a name such as rs-moe-nano, assembled without "
            "its trained weights; stage2: the output of stage1.",
            show_default="the one that FILE names",
        ),
    ] = None,
    features: FeaturesOption = None,
    settings: SettingsOption = False,
) -> None:
    stage = cast("Stage", context.info_name)
    check_outputs(output / "training.json")
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one reports its progress
    with terminal.Steps() as steps, quiet_libraries():
        if first:
            steps("reading the settings")
        from ..training import read_settings, train_stage
        from ..training.outputs import STATE

        recipe, arguments = read_settings(config, stage, output / STATE, context.args)
        start = _start(stage, model or recipe.model, output / STATE / "start", steps)
        progress = _before_the_bar(steps) if first else no_progress
        train_stage(stage, recipe, arguments, data, output, start, resume=resume, features=features, progress=progress)
        if first:
            steps.print(f"{output} ({stage} finished)")
        _leave_together(arguments)


for _name, _help in (
    ("stage1", "Train the vision-language encoder and the base LM. Settings may follow, such as --max_steps 100."),
    ("stage2", "Train router and experts, from stage 1's base LM. Settings may follow, such as --experts theme."),
):
    train.command(_name, help=_help, context_settings=_WITH_SETTINGS)(_stage)


@train.command(context_settings=_WITH_SETTINGS)
def encoder(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="A data folder: captions.jsonl, perhaps objects.jsonl and scenes.jsonl. The train split is learned.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The new checkpoint, loss curve and logs; holds the state meanwhile.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The checkpoint to train from: a folder, or a name, assembled without its trained weights.",
            show_default="the setting model: rs-moe-nano",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with a mapping encoder of settings.", show_default="the defaults"),
    ] = None,
    resume: ResumeOption = False,
    settings: SettingsOption = False,
) -> None:
    """Adapt the ViT to remote sensing, before stage 1. Settings may follow, such as --max_steps 100."""
    check_outputs(output / "training.json")
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one reports its progress
    with terminal.Steps() as steps, quiet_libraries():
        if first:
            steps("reading the settings")
        from ..training.encoder import train_encoder
        from ..training.outputs import STATE
        from ..training.settings import read_encoder_settings

        recipe, arguments = read_encoder_settings(config, output / STATE, context.args)
        start = _start("stage1", model or recipe.model, output / STATE / "start", steps)
        assert start is not None
        progress = _before_the_bar(steps) if first else no_progress
        train_encoder(recipe, arguments, data, output, start, resume=resume, progress=progress)
        if first:
            steps.print(f"{output} (encoder trained)")
        _leave_together(arguments)


@train.command()
def reranker(
    data: DataOption,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A trained checkpoint: a folder, or a name such as rs-moe-nano.")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A dataset of DIR. May be given more than once.", show_default="all"),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the reranker.")] = 256,
    buckets: Annotated[int, typer.Option(min=1, metavar="N", help="Number of hashed n-grams.")] = 4096,
    features: FeaturesOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit the reranker of captions (--fusion rerank) to the train images, in closed form."""
    with terminal.Steps() as steps, quiet_libraries():
        start = find_checkpoint(model, steps)
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
def confidence(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Predictions of the checkpoint on val, as `rsmoe evaluate` writes them: captions, answers, or both.",
        ),
    ],
    data: DataOption,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint.")],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A checkpoint with a reranker: a folder, or a name such as rs-moe-nano."),
    ],
    features: FeaturesOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit how likely a text is right to predictions whose objects, or answers, are known."""
    with terminal.Steps() as steps, quiet_libraries():
        start = find_checkpoint(model, steps)
        from ..training.confidence import train_confidence

        worth = train_confidence(
            data, output, start, predictions, features=features, overwrite=overwrite, progress=steps
        )
        for kind, figures in worth.items():
            steps.print(
                f"{kind}: {figures['texts']:,.0f} texts, {figures['right']} % right; on held-out images AUROC "
                f"{figures['auroc']} %, calibration error {figures['calibration_error']} %"
            )
        steps.print(f"{output} (confidence fitted)")


@train.command()
def export(
    outputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Outputs of stage1, stage2 and reranker, in this order; before them the file of an earlier export, "
            "if stage1 began with its weights.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="R",
            help="Cut the base LM's LoRA to this rank, for a smaller file.",
            show_default="the sum of the trainings' ranks",
        ),
    ] = None,
) -> None:
    """Write only what was learned, in half precision: the trained.safetensors that `rsmoe assemble` takes."""
    check_outputs(output)
    with terminal.Steps() as steps, quiet_libraries():
        steps("reading what was learned")
        from ..training.export import export_trained

        file = export_trained(outputs, output, rank)
        steps.print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


@train.command()
def estimate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder with config.json, or a name such as rs-moe-7b.")
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
            min=2, metavar="N", help="Tokens of a sequence: image, prompt and completions; half are learned."
        ),
    ] = 192,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            metavar="N",
            help="What a device computes in a second at its peak, in units of 10^12.",
            show_default="312, an A100 in bfloat16",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Estimate trainable parameters, memory per device and time of each stage; no weight is read or allocated."""
    with terminal.Steps() as steps, quiet_libraries():
        steps("reading the configuration")
        from .. import RSMoEConfig
        from ..hub.sources import HUB_CONFIGS

        folder = Path(model) if Path(model).is_dir() else HUB_CONFIGS / model
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json")))
            raise RSMoEError(f"{model} has no config.json: give the folder that holds it, or one of {known}")
        settings = config or folder / "training.yaml"
        model_config = RSMoEConfig.from_pretrained(folder)
        for title, columns, rows in _estimates(
            model_config, settings, _image_size(folder), processes or [1, 8], tokens, tflops, steps
        ):
            if markdown:
                steps.print(f"{title}:\n\n{markdown_table(columns, rows)}\n")
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
    tflops: float | None,
    progress: "Progress",
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Tables, as they are ready: title, columns, rows."""
    from ..training import memory, read_settings
    from ..training.settings import STAGES

    stages = {stage: read_settings(settings, stage, settings.parent) for stage in STAGES}
    models = {
        stage: memory.without_weights(config, recipe, arguments.bf16) for stage, (recipe, arguments) in stages.items()
    }
    counts = [memory.count_parameters(memory.without_weights(config))]
    counts += [memory.count_parameters(model, learned=True) for model in models.values()]
    rows = [[module, *(f"{count[module] / 1e6:,.1f}" for count in counts)] for module in counts[0]]
    rows.append(["all", *(f"{sum(count.values()) / 1e6:,.1f}" for count in counts)])
    columns = ["module", "parameters", *(f"learn in {stage}" for stage in stages)]
    yield "millions of parameters", columns, rows

    columns, times = ["", "weights", "gradients", "optimizer", "buffers", "activations", "total"], []
    tflops = tflops or memory.PEAK_TFLOPS
    for stage, (recipe, arguments) in stages.items():
        progress(f"a step of {stage} without values")
        batch = memory.Batch(arguments.per_device_train_batch_size, tokens, tokens // 2, image_size=image_size)
        costs = memory.step_costs(config, recipe, batch, arguments.bf16)
        rows = []
        for count in sorted(set(processes)):
            for strategy in memory.STRATEGIES if count > 1 else memory.STRATEGIES[:1]:
                kept, recomputed = (
                    memory.step_memory(models[stage], strategy, count, arguments.bf16, cost.activations)
                    for cost in costs
                )
                cells: list[tuple[float, ...]] = [(getattr(kept, column),) for column in columns[1:5]]
                cells += [(getattr(kept, column), getattr(recomputed, column)) for column in columns[5:]]
                name = f"{count} x {strategy}" if count > 1 else "one device"
                rows.append([name, *(" / ".join(f"{value / 1e9:.1f}" for value in cell) for cell in cells)])
        precision = "bfloat16" if arguments.bf16 else "float32"
        title = f"{stage}, GB on each device, {batch.examples} examples of {tokens} tokens, {precision}\n"
        yield f"{title}(with activations kept / with activation_checkpointing)", columns, rows
        times.append(_time_row(stage, arguments, [cost.flops for cost in costs], tflops))
    title = f"time on one device, reckoned: {memory.USED_SHARE:.0%} of {tflops:g} TFLOP a second; without reading the "
    title += "data and the frozen ViT\n(with activations kept / with activation_checkpointing)"
    yield title, ["", "steps", "TFLOP a step", "seconds a step", "hours"], times


def _time_row(stage: str, arguments: Any, flops: list[int], tflops: float) -> list[str]:
    """Of the operations of a batch, with activations kept and recomputed. Without max_steps the data say how long."""
    from ..training.memory import reckoned_seconds

    steps, of_step = max(arguments.max_steps, 0), [count * arguments.gradient_accumulation_steps for count in flops]
    seconds = [reckoned_seconds(count, tflops) for count in of_step]
    columns = [[count / 1e12 for count in of_step], seconds, [steps * each / 3600 for each in seconds]]
    told = [" / ".join(f"{value:.2f}" for value in column) for column in columns]
    return [stage, f"{steps:,}" if steps else "", *told[:2], told[2] if steps else ""]


def _image_size(folder: Path) -> int | None:
    """Pixels of a side as the folder's processor makes them, where it has one."""
    try:
        config = parse_json((folder / "processor_config.json").read_bytes())
        return int(config["image_processor"]["size"]["height"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
