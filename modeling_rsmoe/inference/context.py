"""How long an instruction may be: what base LM and Q-Former read, less what a prediction needs besides it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors_rsmoe import RSMoEError
from ..sequences_rsmoe import by_expert


class ContextLengthError(RSMoEError):
    """An instruction has more tokens than the model reads."""


def check_context(
    instructions: Sequence[str],
    inputs: Mapping[str, torch.Tensor],
    processor: Any,
    config: Any,
    max_new_tokens: int,
    router_max_new_tokens: int,
) -> list[int]:
    """Refuse instructions that the model would read in part, or at positions that it has not learned.

    Args:
        instructions: one for each image.
        inputs: what the processor made of them.
        processor: that made them.
        config: of the model.
        max_new_tokens: of an expert's text, and of the final one.
        router_max_new_tokens: of a router prompt.

    Returns:
        The tokens of each instruction.

    Raises:
        ContextLengthError: an instruction has too many; tokens, limit and remedy are named.
    """
    counts = [_count(processor.tokenizer, text) for text in instructions]
    for text in dict.fromkeys(instructions):
        _check_qformer(text, processor.qformer_tokenizer, config.qformer_config.max_position_embeddings)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        longest = _longest_sequences(inputs, max_new_tokens, router_max_new_tokens)
        for count, length in zip(counts, longest):
            if length > positions:
                raise ContextLengthError(
                    f"the instruction has {count} tokens, {max(0, count - (length - positions))} are the most beside "
                    f"the image, the expert texts and {max_new_tokens} new tokens, since the base LM reads "
                    f"{positions}: shorten the instruction, or lower max_new_tokens"
                )
    return counts


def _check_qformer(instruction: str, tokenizer: Any, positions: int) -> None:
    limit = min(tokenizer.model_max_length, positions)
    count = _count(tokenizer, instruction, add_special_tokens=True)
    if count > limit:  # the processor would cut it without a word
        raise ContextLengthError(
            f"the instruction has {count} tokens for the Q-Former, {limit} are the most: shorten the instruction"
        )


def _count(tokenizer: Any, text: str, add_special_tokens: bool = False) -> int:
    # Padded as the processor asks for it: padding is a state of the tokenizer, which threads share.
    side = "right" if add_special_tokens else "left"
    arguments = {"padding": True, "padding_side": side, "verbose": False}
    return len(tokenizer([text], add_special_tokens=add_special_tokens, **arguments)["input_ids"][0])


def _longest_sequences(inputs: Mapping[str, torch.Tensor], new_tokens: int, router_tokens: int) -> list[int]:
    """Tokens of each image's longest sequence with all that may be written into it and after it."""

    def lengths(kind: str) -> torch.Tensor:
        """[num_images], or [num_images, num_experts]."""
        return by_expert(inputs[f"{kind}attention_mask"]).sum(-1)

    longest = lengths("") + new_tokens
    if "router_attention_mask" in inputs:
        num_experts = inputs["router_attention_mask"].shape[2]
        prompts = torch.maximum(lengths("template_prompt_").amax(-1), lengths("instruction_"))  # in any router mode
        prompts = prompts.clamp(min=router_tokens)
        sequences = (
            lengths("router_").amax(-1) + router_tokens,
            lengths("expert_").amax(-1) + prompts + new_tokens,
            lengths("rewrite_") + num_experts * new_tokens + new_tokens,
        )
        for length in sequences:
            longest = torch.maximum(longest, length)
    return longest.tolist()
