"""TRL's SFTTrainer over examples: the loss at labelled positions only, and that of each kind of example in the log."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer
from trl import SFTTrainer

from ..errors_rsmoe import RSMoEError
from .checkpoints import DIVERGED, WEIGHTS, NotFiniteError, SaveTrained, load_parameters
from .examples import ExampleCollator
from .modules import learning_rate_groups
from .settings import Recipe


SHOWN_IMAGES = 4  # of a step that broke


class TrainerMixin:
    """What both trainers add to a Trainer: means of further values in the log, checkpoints of what learns alone, and
    an end where a loss or gradient is not finite.

    Put it before the Trainer's class.
    """

    model: Any  # of the Trainer
    saver: SaveTrained | None = None  # writes checkpoints

    def __init__(self, *args: Any, **kwargs: Any):
        self._noted: dict[bool, defaultdict[str, list[float]]] = {True: defaultdict(list), False: defaultdict(list)}
        super().__init__(*args, **kwargs)

    def note(self, name: str, value: float) -> None:
        """Enter a value; where the model is in evaluation mode, the log calls it eval_NAME."""
        self._noted[self.model.training][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        training = self.model.training
        prefix = "" if training else "eval_"
        means = {f"{prefix}{name}": sum(values) / len(values) for name, values in self._noted[training].items()}
        self._noted[training].clear()
        cast(Any, super()).log(logs | means, start_time)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of one step. Those of the steps before are saved first: an image may be lost."""
        if self.saver is not None:
            self.saver.before_batch()
        return cast(Any, super()).get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = cast(Any, super()).training_step(*args, **kwargs)
        self._check_finite("loss", float(loss))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Private, but the norm is known nowhere else before the optimizer uses the gradients.
        grad_norm = cast(Any, super())._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is not None:
            self._check_finite("gradient norm", float(grad_norm))
        return grad_norm

    def _check_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        trainer = cast(Any, self)
        step, dataset = trainer.state.global_step, trainer.train_dataset
        size = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size
        rows = range(step * size, min((step + 1) * size, len(dataset)))
        images = list(dict.fromkeys(Path(dataset[row]["image"]).name for row in rows))
        shown = ", ".join(images[:SHOWN_IMAGES]) + (", ..." if len(images) > SHOWN_IMAGES else "")
        raise NotFiniteError(
            f"the {name} of step {step + 1} is {value}, in the examples {rows.start} to {rows.stop - 1} ({shown}). "
            f"{DIVERGED}"
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Private, but without a public way: the Trainer's own refuses a folder without the whole model.
        load_parameters(self.model if model is None else model, Path(resume_from_checkpoint) / WEIGHTS)


class NamedLossesTrainer(TrainerMixin, Trainer):
    """Trains a model that gives its losses by name: `loss` is minimised, the others are logged beside it.

    Args:
        recipe: of the training.
    """

    def __init__(self, *args: Any, recipe: Any, **kwargs: Any):
        self.recipe = recipe
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = model(**inputs)
        for name, value in losses.items():
            if name != "loss":
                self.note(name, value.item())
        return (losses["loss"], losses) if return_outputs else losses["loss"]


class ExampleTrainer(TrainerMixin, SFTTrainer):
    """Next-token cross-entropy on the completions of examples [paper]; each example is of one adapter or the base LM.

    SFTTrainer's own loss counts every token the same. Here each example counts the same in the share `example_weight`
    of the loss, so that answers of one word are learned too [our decision]. Over several processes and accumulated
    batches, tokens and examples of the whole step are counted.

    Args:
        recipe: learning rates and `example_weight`.
        data_collator: its kinds name the losses in the log.
        **kwargs: of SFTTrainer.
    """

    def __init__(self, *args: Any, recipe: Recipe, data_collator: ExampleCollator, **kwargs: Any):
        self.recipe, self.kinds = recipe, data_collator.kinds
        super().__init__(*args, data_collator=cast(Callable, data_collator), **kwargs)
        cast(Any, self).loss_is_scaled_for_ga = True  # by the counts of the whole step
        self.model_accepts_loss_kwargs = False  # the counts are for `compute_loss` alone; evaluation has none

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args, model = self.args, model or self.model
            groups = learning_rate_groups(model, self.recipe, args.learning_rate, args.weight_decay)
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of one step, and `count_items` of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.count_items(batches, device)

    def count_items(self, batches: list[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor | None:
        """[weights of tokens, examples] of the batches of one step, over all processes."""
        if not batches:
            return None
        tokens = sum(float(batch["token_weights"].sum()) for batch in batches)
        counts = torch.tensor([[tokens, sum(len(batch["labels"]) for batch in batches)]], device=device)
        return self.accelerator.gather(counts).sum(0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        kinds, labels = inputs.pop("kinds"), inputs.pop("labels")
        token_weights, example_weights = inputs.pop("token_weights"), inputs.pop("example_weights")
        if inputs["attention_mask"].ndim == 4:
            inputs["attention_mask"] = self._mask(inputs["attention_mask"])
        targets = labels[:, 1:]
        labelled = targets != -100
        # The head runs where there is something to learn, not over images and prompts.
        outputs = model(**inputs, use_cache=False, logits_to_keep=F.pad(labelled, (0, 1)))
        losses = F.cross_entropy(outputs.logits.float(), targets[labelled], reduction="none")
        by_token = losses * token_weights[:, 1:][labelled]
        by_example = losses * example_weights[:, 1:][labelled]
        if num_items_in_batch is None:  # evaluation
            tokens, examples, processes = token_weights.sum(), len(labels), 1
        else:  # DDP averages over processes
            (tokens, examples), processes = num_items_in_batch, self.accelerator.num_processes
        weight = self.recipe.example_weight
        loss = processes * ((1 - weight) * by_token.sum() / tokens + weight * by_example.sum() / examples)
        example_losses = losses.new_zeros(len(labels)).index_add(0, labelled.nonzero()[:, 0], by_example.detach())
        kinds, example_losses = self.accelerator.gather_for_metrics((kinds, example_losses))
        for kind, value in zip(kinds.tolist(), example_losses.tolist()):
            self.note(f"loss_{self.kinds[kind]}", value)  # the log has the mean of each kind
        return (loss, outputs) if return_outputs else loss

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask of several completions as the base LM's attention takes it."""
        implementation = cast(Any, self.model).config.text_config._attn_implementation
        if implementation == "sdpa":
            return mask
        if implementation == "eager":
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        raise RSMoEError(
            f"attn_implementation {implementation!r} takes no mask of several completions; set references_per_example "
            "to 1"
        )
