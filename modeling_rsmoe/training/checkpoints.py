"""Checkpoints of a running training: only what learns, in safetensors and JSON, there complete or not at all.

transformers' Trainer writes the whole model, and keeps the optimizer, the schedule and the random numbers in pickles.
A callback writes ours; random numbers need no keeping, since each step draws from a seed of its own. The Trainer
resumes from such a folder: it reads its state, `TrainerMixin` the weights, and the callback the optimizer's state.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..errors_rsmoe import RSMoEError
from ..inference.loading import is_finite
from ..utils.files import whole_file
from .logs import ExampleBar
from .modules import trained_parameters


DIVERGED = "Begin again with a lower learning_rate or longer warmup_steps, with bf16 false, or without those images"
WEIGHTS, OPTIMIZER, SCHEDULE = "trained.safetensors", "optimizer.safetensors", "schedule.json"


class NotFiniteError(RSMoEError):
    """A loss, gradient or weight is not finite. Resuming with the same settings leads there again."""


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, there complete or not at all.

    Raises:
        OSError: it cannot be written.
        NotFiniteError: a tensor is not finite; the message names it.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise NotFiniteError(f"{name} is not finite in {tensor.dtype}, so {file.name} is not written. {DIVERGED}")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(file) as unfinished:
            save_file(contiguous, unfinished, metadata)
    except SafetensorError as error:  # how safetensors reports an error of the file system
        raise OSError(f"{file}: {error}") from error


def load_parameters(model: torch.nn.Module, file: Path) -> None:
    """Put the weights of a file into the parameters of their names.

    Raises:
        RSMoEError: the file is damaged, or holds a weight that the model does not have in that shape.
    """
    parameters = dict(model.named_parameters())
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RSMoEError(f"{file} cannot be read ({error}); remove its folder to go on from the one before") from error
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise RSMoEError(f"{file}: {name} {tuple(tensor.shape)} does not fit the model; resume with its settings")
        with torch.no_grad():
            parameters[name].copy_(tensor)


class SeedEachStep(TrainerCallback):
    """Dropout of a step depends on the seed, the step and the process alone, so that a resumed run draws the same."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed((args.seed * 1_000_003 + state.global_step) * args.world_size + args.process_index)


class SaveTrained(TrainerCallback):
    """Writes `checkpoint-STEP` every `save_steps` steps and after the last one, and resumes from one.

    Args:
        resumed: the checkpoint that `Trainer.train` resumes from.
    """

    def __init__(self, resumed: Path | None):
        self.resumed = resumed

    def on_train_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        self._args, self._state, self._saved_step = args, state, state.global_step
        self._learning = (model, optimizer, lr_scheduler)
        if self.resumed is not None:
            _load_optimizer(self.resumed, optimizer, lr_scheduler)

    def before_batch(self) -> None:
        """Called when a step is over, its losses are logged and the val split is measured, before images are read."""
        if self._state.global_step % self._state.save_steps == 0:
            self._save()

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self._save()

    def _save(self) -> None:
        args, step = self._args, self._state.global_step
        if step == self._saved_step or not args.should_save:
            return
        self._saved_step = step
        root = Path(args.output_dir)
        target, unfinished = root / f"checkpoint-{step}", root / f".checkpoint-{step}.part"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_checkpoint(unfinished, *self._learning)
            self._state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        except OSError as error:
            raise RSMoEError(f"checkpoint {target} cannot be written ({error}); free some space") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        rotate_checkpoints(str(root), save_total_limit=args.save_total_limit)


def write_checkpoint(folder: Path, model: torch.nn.Module, optimizer: Any, lr_scheduler: Any) -> None:
    """Write what learns, the optimizer's state by places of parameters, and the schedule into an empty folder."""
    save_tensors(trained_parameters(model), folder / WEIGHTS)
    state = optimizer.state_dict()
    tensors = {
        f"{place}/{kind}": torch.as_tensor(value)
        for place, values in state["state"].items()
        for kind, value in values.items()
    }
    save_tensors(tensors, folder / OPTIMIZER)
    schedule = {"groups": state["param_groups"], "scheduler": lr_scheduler.state_dict()}
    (folder / SCHEDULE).write_text(json.dumps(schedule), encoding="utf-8")


@contextmanager
def _resuming(folder: Path) -> Iterator[None]:
    """Within: what is wrong with a checkpoint's files becomes an error that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RSMoEError(
            f"{folder} is damaged or of another training ({error}); remove it to go on from the one before"
        ) from error


def _load_optimizer(folder: Path, optimizer: Any, lr_scheduler: Any) -> None:
    """Load what `write_checkpoint` wrote of the optimizer and the schedule."""
    with _resuming(folder):
        schedule = json.loads((folder / SCHEDULE).read_text(encoding="utf-8"))
        state: defaultdict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in load_file(folder / OPTIMIZER).items():
            place, kind = key.split("/")
            state[int(place)][kind] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": schedule["groups"]})
        lr_scheduler.load_state_dict(schedule["scheduler"])


def train_to_the_end(trainer: Any) -> None:
    """Train from the last checkpoint in the trainer's folder, if there is one.

    Weights that are spread over processes (FSDP, DeepSpeed) are only written at the end of a training.

    Raises:
        NotFiniteError: a loss, gradient or weight is not finite.
        RSMoEError: what broke, such as an image that was lost, and that the rest can be had.
    """
    folder = Path(trainer.args.output_dir)
    last = last_checkpoint(folder)
    if last is not None:
        with _resuming(last):  # the Trainer reads this too, and does not say what to do about a damaged one
            json.loads((last / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
    trainer.add_callback(SeedEachStep())
    save_strategy = trainer.args.save_strategy
    if save_strategy != "no" and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainer.saver = SaveTrained(last)
        trainer.add_callback(trainer.saver)
    trainer.args.save_strategy = "no"  # the Trainer writes none of its own
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except NotFiniteError as error:
        intact = last_checkpoint(folder) or "Its start"
        raise NotFiniteError(f"the training stopped: {error}, into another --output. {intact} is intact") from error
    except RSMoEError as error:
        intact = last_checkpoint(folder) or "Its start"
        raise RSMoEError(
            f"the training stopped: {error}. {intact} is intact: with that mended, go on with --resume"
        ) from error
    finally:
        trainer.args.save_strategy = save_strategy
        if bar := trainer.pop_callback(ExampleBar):
            bar.close()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a trainer's folder; unfinished ones have other names."""
    newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if newest is None else Path(newest)
