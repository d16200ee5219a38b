"""The folder of a training: what is in it when the training begins, while it runs, and when it is finished."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback
from transformers.trainer import TRAINER_STATE_NAME

from ..errors_rsmoe import RSMoEError
from ..hub.facts import steps_of
from ..hub.records import carry_records
from ..inference.loading import open_config
from ..processing_rsmoe import RSMoEProcessor
from ..utils.files import disk_errors, only_writer, parse_json, write_whole
from ..utils.provenance import TRAINING_RECORD
from .checkpoints import last_checkpoint
from .logs import ExampleBar, LossCurve, tensorboard
from .settings import TrainArguments


STATE = ".training"  # in OUTPUT, while a training runs
LEARNED = "learned.safetensors"  # what the examples changed
# Arguments that change what is learned: a run is resumed with the same.
DECISIVE = ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1"]
DECISIVE += ["adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "bf16", "max_steps", "num_train_epochs"]


def examples_per_step(arguments: TrainArguments) -> int:
    """Over all processes."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def decisive_arguments(arguments: TrainArguments) -> dict[str, Any]:
    """The arguments that change what is learned, by name."""
    values = arguments.to_dict()
    return {name: values[name] for name in DECISIVE} | {"examples_per_step": examples_per_step(arguments)}


def history(start: Path) -> dict[str, Any] | None:
    """The training.json of a checkpoint, or None."""
    file = start / TRAINING_RECORD
    try:
        return parse_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RSMoEError(f"{file} cannot be read ({error}); restore it or train stage 1 again") from error


@contextmanager
def training_in(output: Path, arguments: TrainArguments) -> Iterator[None]:
    """The time in which a training uses its folder: no other may, and an error says how to go on.

    Args:
        output: the folder; the first of several processes holds it.
        arguments: of the trainer.

    Raises:
        RSMoEError: another process writes there, a full disk, a file that is lost.
    """
    try:
        with only_writer(output) if arguments.process_index == 0 else nullcontext():
            yield
    except (OSError, SafetensorError) as error:
        raise RSMoEError(
            f"the training in {output} stopped: {error}. Its last checkpoint is intact: free some space or put the "
            "file back, then go on with --resume"
        ) from error


def finished_record(
    record: dict[str, Any], steps: int, arguments: TrainArguments, began: float, before: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of a training that has reached its end.

    Args:
        record: what decided the outcome.
        steps: that were learned, over all sessions.
        arguments: of the trainer.
        began: when this session began, of `time.monotonic`.
        before: the training.json of the checkpoint that was trained from, or None.
    """
    seconds = round(time.monotonic() - began, 1)
    examples = steps * examples_per_step(arguments)
    return record | {
        "steps": steps,
        "examples": examples,
        "finished": True,
        "seconds_of_last_session": seconds,
        "before": before,
    }


def begin(output: Path, record: dict[str, Any], resume: bool) -> None:
    """Enter a new training into its folder, or see that the one there is the same.

    Args:
        output: the folder.
        record: what decides the outcome, as JSON values.
        resume: whether the one there may be gone on with.

    Raises:
        RSMoEError: the folder holds another training or a checkpoint, or cannot be written.
    """
    file = output / STATE / TRAINING_RECORD
    if (output / TRAINING_RECORD).is_file():
        raise RSMoEError(f"{output} holds a finished training; give another --output")
    if not file.is_file():
        if (output / "config.json").is_file():
            raise RSMoEError(f"{output} holds a checkpoint that was not begun here; give another --output")
        with disk_errors("cannot write", "Free some space or give another --output."):
            write_whole(file, json.dumps(record, indent=2) + "\n")
        return
    if not resume:
        raise RSMoEError(f"{output} holds a training that was begun; add --resume, or give another --output")
    try:
        old = parse_json(file.read_bytes())
    except ValueError as error:
        raise RSMoEError(f"{file} is damaged ({error}); restore it, or begin again in another --output") from error
    changed = _differences({**old, "versions": None}, {**record, "versions": None})
    if changed:
        raise RSMoEError(
            f"{output} was begun with other settings or data ({'; '.join(changed)}); resume with the same, or give "
            "another --output"
        )


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name was ..., is ...` for each value that differs."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{name} was {old}, is {new}"]
    differences = []
    for key in {**old, **new}:
        differences += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return differences


def show(output: Path, trainer: Any, name: str, examples: int, curve: str = "loss.png") -> None:
    """A bar in examples (`examples` a step), TensorBoard and a loss curve in place of transformers' printing."""
    trainer.remove_callback(PrinterCallback)
    events = tensorboard(output / "tensorboard" / name)
    for callback in (ExampleBar(name, examples), LossCurve(output / curve), events):
        trainer.add_callback(callback)


def finish(
    output: Path,
    start: Path,
    model: Any,
    processor: RSMoEProcessor,
    record: dict[str, Any],
    arguments: TrainArguments,
) -> None:
    """Write the checkpoint of a finished training into its folder. Its record comes last: it says that all is there.

    Args:
        output: the folder.
        start: the checkpoint that was trained from; its records are carried on.
        model: with what was learned, merged.
        processor: of the model.
        record: how the training came about, for training.json.
        arguments: for training_args.json.
    """
    state = output / STATE
    unfinished = state / "finished.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    dtype = open_config(start).dtype or torch.float32
    # Names as the model has them: saved under DINOv2's old names, a plain load_state_dict would miss them.
    model.to(dtype).save_pretrained(unfinished, save_original_format=False)
    processor.save_pretrained(unfinished)
    write_whole(unfinished / TRAINING_RECORD, json.dumps(record, indent=2) + "\n")
    carry_records(start, unfinished, output.name, steps_of({**record, "before": None}))
    last = last_checkpoint(state)
    if last is not None:
        shutil.copyfile(last / TRAINER_STATE_NAME, unfinished / TRAINER_STATE_NAME)
    write_whole(unfinished / "training_args.json", json.dumps(arguments.to_dict(), indent=2, default=str) + "\n")
    for new in sorted(unfinished.iterdir(), key=lambda new: new.name == TRAINING_RECORD):
        old = output / new.name
        if old.is_dir():
            shutil.rmtree(old)
        new.replace(old)
    unfinished.rmdir()
