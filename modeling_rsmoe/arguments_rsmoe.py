"""Arguments of `generate`: the full model's own, and which of its decodes (router, experts, rewriting) takes which."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch

from .errors_rsmoe import RSMoEError


ROUTER_MODES = ("generated", "template", "none")
FUSIONS = ("auto", "rerank", "rewrite", "concat", "sentences")
# Settings of the full model: keyword arguments of `generate`, else entries of a generation config, else these.
DEFAULTS = {
    "router_mode": "generated",
    "fusion": "auto",
    "router_max_new_tokens": 24,
    "detail_max_new_tokens": 256,  # a paragraph's; RSICap's longest has about 200 words
    "detail_num_beams": None,  # as all texts
}
PLAIN_GREEDY = {  # what decoding arguments may be where every step takes its likeliest token
    "do_sample": (None, False),
    "num_beams": (None, 1),
    "use_cache": (None, True),
    "cache_implementation": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_model": (None,),
}
OUTPUT_FIELDS = {
    "output_scores": "scores",
    "output_logits": "logits",
    "output_attentions": "attentions",
    "output_hidden_states": "hidden_states",
}
# Arguments that not every decode takes, by who takes them. All others hold for the experts and for rewriting alike.
TEXT = "the decode that writes the text"  # rewriting; each expert's, where nothing is rewritten
REWRITING = "rewriting"
NOBODY = "nobody"  # the full model makes its own sequences
TAKEN_BY = {
    **dict.fromkeys(["stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn", "stop_strings"], TEXT),
    **dict.fromkeys([*OUTPUT_FIELDS, "prompt_lookup_num_tokens", "assistant_model", "guidance_scale"], REWRITING),
    **dict.fromkeys(["inputs_embeds", "adapter_ids", "past_key_values", "position_ids", "mm_encoder_outputs"], NOBODY),
    **dict.fromkeys(["negative_prompt_ids", "negative_prompt_attention_mask"], NOBODY),
}


def check_arguments(argument: Callable[[str], Any], fusions: Collection[str]) -> None:
    """Refuse, by name, an argument that no decode takes. `argument` gives the value of a name."""
    is_rewritten = {fusion == "rewrite" for fusion in fusions}
    for name, taken_by in TAKEN_BY.items():
        value = argument(name)
        if name == "stopping_criteria":
            value = [each for each in value or [] if not is_of_every_decode(each)]
        if value is None or value is False or (isinstance(value, list) and not value):
            continue
        if taken_by == NOBODY:
            reason = "the full model makes its own sequences: leave it out, or make inputs with expert_inputs=False"
        elif taken_by == REWRITING and is_rewritten != {True}:
            reason = "it is of a text that the base LM writes: give fusion='rewrite', or leave it out"
        elif len(is_rewritten) > 1:
            reason = "it is of one decode, and these texts are written in two: give a fusion, or fewer tasks in a call"
        else:
            continue
        raise RSMoEError(f"generate cannot take {name} with fusion {' and '.join(sorted(set(fusions)))}: {reason}.")


def of_router(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the router takes of the caller's arguments."""
    criteria, search = kwargs.get("stopping_criteria") or [], kwargs.get("custom_generate")
    taken: dict[str, Any] = {"stopping_criteria": list(filter(is_of_every_decode, criteria))}
    return {**taken, "custom_generate": search} if is_of_every_decode(search) else taken


def of_experts(kwargs: dict[str, Any], fusions: Collection[str], *view: Any) -> dict[str, Any]:
    """What experts take, and the base LM beside them; `view` as of `CallersView`."""
    if "rewrite" not in fusions:
        return of_text(kwargs, *view)
    return {**kwargs, **{name: None for name, by in TAKEN_BY.items() if by != NOBODY}, **of_router(kwargs)}


def of_text(kwargs: dict[str, Any], *view: Any) -> dict[str, Any]:
    """What the decode takes that writes the text; `view` as of `CallersView`."""
    criteria, processors = (list(kwargs.get(name) or []) for name in ("stopping_criteria", "logits_processor"))
    return {
        **kwargs,
        "stopping_criteria": [each if is_of_every_decode(each) else CallersView(each, *view) for each in criteria],
        "logits_processor": [CallersView(each, *view) for each in processors],
    }


def is_of_every_decode(argument: Any) -> bool:
    """Whether a stopping criterion or a search is of the call rather than of the text."""
    return getattr(argument, "every_decode", False)


class CallersView:
    """A stopping criterion or logits processor of the caller within the full model: it sees the caller's `input_ids`
    and the new tokens, a row for each image (and beam). Where several write about an image, each has a copy of it.

    Args:
        each (`Callable`): The criterion or processor.
        input_ids (`torch.LongTensor` of shape `(num_images, sequence_length)`): The caller's.
        prompt_length (`int`): Of the decode's own sequences.
        num_texts (`int`): How many write about each image.
    """

    def __init__(self, each: Any, input_ids: torch.Tensor, prompt_length: int, num_texts: int = 1):
        self.input_ids, self.prompt_length = input_ids, prompt_length
        try:
            self.copies = [each] if num_texts == 1 else [copy.deepcopy(each) for _ in range(num_texts)]
        except TypeError as error:
            raise RSMoEError(
                f"{type(each).__name__} cannot be copied for each expert ({error}): give it a `__deepcopy__`, or give "
                "fusion='rewrite'."
            ) from error

    def __call__(self, input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        rows = rows.view(len(self.input_ids), len(self.copies), -1).transpose(0, 1).flatten(1)  # [num_texts, rows]
        results = []
        for each, own in zip(self.copies, rows):
            prompts = self.input_ids.repeat_interleave(len(own) // len(self.input_ids), dim=0)
            seen = torch.cat([prompts, input_ids[own, self.prompt_length :]], dim=1)
            result = torch.as_tensor(each(seen, scores[own] if torch.is_tensor(scores) else scores))
            results.append(result if result.ndim else result.expand(len(own)))  # a bool stops all of its rows
        return torch.cat(results).to(input_ids.device)[rows.flatten().argsort()]
