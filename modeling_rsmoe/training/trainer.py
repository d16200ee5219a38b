"""TRL's SFTTrainer over rows: the loss at labelled positions only, and the loss of each kind of row in the log."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from trl import SFTTrainer

from ..errors_rsmoe import RSMoEError
from .checkpoints import SafeCheckpoints
from .parts import learning_rate_groups
from .rows import RowCollator
from .settings import Recipe


class RowTrainer(SafeCheckpoints, SFTTrainer):
    """Next-token cross-entropy on the completions of rows [paper], by one reader for each row.

    SFTTrainer's own loss counts every token the same. Here each row counts the same in the share `row_weight` of the
    loss, so that answers of one word are learned too [our decision]. Over several processes and accumulated batches,
    tokens and rows of the whole step are counted.

    Args:
        recipe: learning rates and `row_weight`.
        data_collator: a `RowCollator`; its kinds name the losses in the log.
        kwargs: of SFTTrainer.
    """

    def __init__(self, *args: Any, recipe: Recipe, data_collator: RowCollator, **kwargs: Any):
        self.recipe, self.kinds = recipe, data_collator.kinds
        super().__init__(*args, data_collator=cast(Callable, data_collator), **kwargs)
        cast(Any, self).loss_is_scaled_for_ga = True  # by the counts of the whole step

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            arguments = self.args
            self.optimizer = torch.optim.AdamW(
                learning_rate_groups(
                    model or self.model, self.recipe, arguments.learning_rate, arguments.weight_decay
                ),
                lr=arguments.learning_rate,
                betas=(arguments.adam_beta1, arguments.adam_beta2),
                eps=arguments.adam_epsilon,
            )
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """[weights of tokens, rows] of one step, over all processes."""
        if not batch_samples:
            return None
        tokens = sum(float(batch["token_weights"].sum()) for batch in batch_samples)
        counts = torch.tensor([[tokens, sum(len(batch["labels"]) for batch in batch_samples)]], device=device)
        return self.accelerator.gather(counts).sum(0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        kinds, labels = inputs.pop("kinds"), inputs.pop("labels")
        token_weights, row_weights = inputs.pop("token_weights"), inputs.pop("row_weights")
        if inputs["attention_mask"].ndim == 4:
            inputs["attention_mask"] = self._mask(inputs["attention_mask"])
        targets = labels[:, 1:]
        kept = targets != -100
        # The head runs where there is something to learn, not over images and prompts.
        outputs = model(**inputs, use_cache=False, logits_to_keep=F.pad(kept, (0, 1)))
        losses = F.cross_entropy(outputs.logits.float(), targets[kept], reduction="none")
        by_token, by_row = losses * token_weights[:, 1:][kept], losses * row_weights[:, 1:][kept]
        if num_items_in_batch is None:  # evaluation
            tokens, rows, processes = token_weights.sum(), len(labels), 1
        else:  # DDP averages over processes
            (tokens, rows), processes = num_items_in_batch, self.accelerator.num_processes
        weight = self.recipe.row_weight
        loss = processes * ((1 - weight) * by_token.sum() / tokens + weight * by_row.sum() / rows)
        self._note(kinds, losses.new_zeros(len(labels)).index_add(0, kept.nonzero()[:, 0], by_row.detach()))
        return (loss, outputs) if return_outputs else loss

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        """The mask of several completions as the base LM's attention takes it."""
        implementation = cast(Any, self.model).config.text_config._attn_implementation
        if implementation == "sdpa":
            return seen
        if implementation == "eager":
            return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        raise RSMoEError(
            f"attn_implementation {implementation!r} takes no mask of several completions; set references_per_row to 1"
        )

    def _note(self, kinds: torch.Tensor, per_row: torch.Tensor) -> None:
        """Enter the loss of each row; the log has their mean since the last entry, by kind."""
        kinds, per_row = self.accelerator.gather_for_metrics((kinds, per_row))
        metrics = self._metrics["train" if self.model.training else "eval"]
        for kind, value in zip(kinds.tolist(), per_row.tolist()):
            metrics[f"loss_{self.kinds[kind]}"].append(value)
