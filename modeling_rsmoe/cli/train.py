"""`rsmoe train stage1|stage2`: from a start checkpoint and a data folder to a trained checkpoint, in sittings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from . import shared


if TYPE_CHECKING:
    from ..training.settings import Stage

train = typer.Typer(help="Train a checkpoint in two stages; what was stopped goes on with --resume.")
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
    """Train the vision-language encoder and the LLM block. Settings may follow as options, such as --max_steps 100."""
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
    """Train router and experts from the LLM block of stage 1. Settings may follow as options, such as --experts theme."""
    _run("stage2", context.args, config, data, output, resume, checkpoint, features)


@train.command()
def export(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Outputs of stage1 and stage2, in this order.")
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
) -> None:
    """Write only what was learned, in half precision: the trained.safetensors that `rsmoe assemble` takes."""
    shared.check_outputs(output)
    with shared.Steps() as steps, shared.quiet_libraries():
        steps("reading what was learned")
        from ..training.export import export_trained

        file = export_trained(outputs, output)
        steps.print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


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
    shared.check_outputs(output / "training.json")
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one tells what happens
    with shared.Steps() as steps, shared.quiet_libraries():
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


def _start(stage: str, name: str | None, untrained: Path, steps: shared.Steps) -> Path | None:
    """The folder that is trained from. Stage 1 begins without trained weights of ours."""
    from filelock import FileLock

    from ..hub.sources import known_names

    if name is None:
        return None  # the training says what is missing
    if stage == "stage2" or Path(name).is_dir() or name not in known_names():
        return shared.find_checkpoint(name, steps)
    untrained.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(untrained.with_name(".start.lock")):
        if not untrained.is_dir():
            from ..hub.assemble import assemble

            assemble(name, untrained, trained=False, progress=steps)
    return untrained
