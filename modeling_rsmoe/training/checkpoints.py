"""Checkpoints of a running training: only what learns, in safetensors and JSON, there whole or not at all.

transformers' Trainer keeps the optimizer, the schedule and the random numbers in pickles. Nothing is unpickled here:
the optimizer's state is kept by the parameters' names in safetensors, the schedule is JSON, and random numbers need no
keeping, since each step draws from a seed of its own.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint, rotate_checkpoints

from ..errors_rsmoe import RSMoEError
from .parts import trained_parameters


WEIGHTS, OPTIMIZER, SCHEDULE = "trained.safetensors", "optimizer.safetensors", "schedule.json"


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file, there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        part.replace(file)
    except SafetensorError as error:  # how safetensors reports an error of the file system
        raise OSError(f"{file}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


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


class OwnSeedEachStep(TrainerCallback):
    """Dropout of a step depends on the seed, the step and the process alone, so that a resumed run draws the same."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed((args.seed * 1_000_003 + state.global_step) * args.world_size + args.process_index)


class SafeCheckpoints:
    """A Trainer whose checkpoints hold what learns, without pickles. Put it before the Trainer's class."""

    # of the Trainer
    accelerator: Any
    args: Any
    lr_scheduler: Any
    model: Any
    optimizer: Any
    state: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            self.args.save_strategy = SaveStrategy.NO  # sharded weights are only written at the end
        trainer.add_callback(OwnSeedEachStep())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.should_save:
            return
        root = Path(self.args.output_dir)
        target = root / f"checkpoint-{self.state.global_step}"
        part = root / f".checkpoint-{self.state.global_step}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            self._write_checkpoint(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RSMoEError(f"checkpoint {target} cannot be written ({error}); free some space") from error
        rotate_checkpoints(str(root), save_total_limit=self.args.save_total_limit)

    def _write_checkpoint(self, folder: Path) -> None:
        names = {id(parameter): name for name, parameter in trained_parameters(self.model).items()}
        save_tensors(trained_parameters(self.model), folder / WEIGHTS)
        state = self.optimizer.state_dict()
        order = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
        tensors = {
            f"{key}/{order[place]}": torch.as_tensor(value)
            for place, values in state["state"].items()
            for key, value in values.items()
        }
        save_tensors(tensors, folder / OPTIMIZER)
        groups = [{**group, "params": [order[place] for place in group["params"]]} for group in state["param_groups"]]
        schedule = {"groups": groups, "scheduler": self.lr_scheduler.state_dict()}
        (folder / SCHEDULE).write_text(json.dumps(schedule), encoding="utf-8")
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_parameters(self.model if model is None else model, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        try:
            schedule = json.loads((Path(checkpoint) / SCHEDULE).read_text(encoding="utf-8"))
            tensors = load_file(Path(checkpoint) / OPTIMIZER)
            order = [name for group in schedule["groups"] for name in group["params"]]
            places = {name: place for place, name in enumerate(order)}
            names = {id(parameter): name for name, parameter in trained_parameters(self.model).items()}
            ours = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
            if ours != order:
                raise ValueError("other weights learned")
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, tensor in tensors.items():
                kind, name = key.split("/", 1)
                state.setdefault(places[name], {})[kind] = tensor
            groups = [{**group, "params": [places[name] for name in group["params"]]} for group in schedule["groups"]]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.lr_scheduler.load_state_dict(schedule["scheduler"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RSMoEError(
                f"{checkpoint} is damaged or of another training ({error}); remove it to go on from the one before"
            ) from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: see `OwnSeedEachStep`."""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a trainer's folder; unfinished ones have other names."""
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if found is None else Path(found)
