"""Processor of RS-MoE: images and instructions -> everything that `generate` or training needs, in one call.

What the sequences say stands in `prompting_rsmoe`; here they become tensors.
"""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack

from .configuration_rsmoe import EXPERT_NAMES
from .errors_rsmoe import RSMoEError
from .images_rsmoe import map_images, to_rgb
from .outputs_rsmoe import RSMoEPostProcessingMixin
from .prompting_rsmoe import (
    CHAT_TEMPLATE,
    EXPERT_INSTRUCTIONS,
    IMAGE_TOKEN,
    PROMPT_TOKEN,
    ROUTER_TOKEN,
    TASKS,
    Prompt,
    detailed,
    expert_token,
    task_of,
)
from .sequences_rsmoe import EXPERT_INPUTS, ONE_IMAGE


MAX_QFORMER_TOKENS = 512  # BERT's positions; a tokenizer without a limit of its own says 1e30


class RSMoEProcessor(ProcessorMixin, RSMoEPostProcessingMixin):
    r"""
    Wraps an image processor, the LLM's tokenizer and the Q-Former's tokenizer.

    Args:
        image_processor (`BaseImageProcessor`): Of the image encoder.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the base LM. Special tokens that it lacks (`<image>`, `<prompt>`, `<router>`, one for each expert) are
            added to it, in this order.
        qformer_tokenizer (`PreTrainedTokenizerBase`): Of the Q-Former.
        num_query_tokens (`int`, *optional*, defaults to 32): Image tokens that stand for one image.
        experts (`list[str]`, *optional*, defaults to `["theme", "object", "relation"]`):
            Names of the experts, in order.
        expert_instructions (`dict[str, str]`, *optional*): Each expert's sub-task instruction.
        chat_template (`str`, *optional*): Defaults to ChatML without a system message.

    Example:

    ```python
    >>> inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
    >>> outputs = model.generate(**inputs, return_dict_in_generate=True)
    >>> caption = processor.post_process_generation(outputs)[0]["text"]
    ```
    """

    # For training, set it to False on the instance: training examples need no expert inputs. It is no argument of
    # __init__, so a checkpoint saved in training does not remember it.
    makes_expert_inputs = True
    _makes_qformer_inputs = True  # until `attach_to`
    qformer_tokenizer: Any
    text_kwargs = {"padding": True, "padding_side": "left"}  # decoding continues at the right

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        qformer_tokenizer=None,
        num_query_tokens: int = 32,
        experts: list[str] | tuple[str, ...] = EXPERT_NAMES,
        expert_instructions: dict[str, str] | None = None,
        chat_template: str | None = None,
        **kwargs,
    ):
        self.num_query_tokens = num_query_tokens
        self.experts = list(experts)
        self.expert_instructions = {**EXPERT_INSTRUCTIONS, **(expert_instructions or {})}
        missing = [name for name in self.experts if name not in self.expert_instructions]
        if missing:
            raise RSMoEError(
                f"expert_instructions has no instruction for {missing}; give one for each of {self.experts}."
            )
        self.image_token = IMAGE_TOKEN
        has_both = tokenizer is not None and qformer_tokenizer is not None
        if has_both and qformer_tokenizer.get_vocab().items() <= tokenizer.get_vocab().items():
            raise RSMoEError(
                "the Q-Former's tokenizer is the LLM's: give that of the Q-Former (qformer_tokenizer/). A checkpoint "
                "that was saved without qformer_tokenizer/config.json loads so offline: load it from its folder, or "
                "save and push it again."
            )
        if tokenizer is not None:
            tokenizer.padding_side = "left"  # as text_kwargs say; transformers' pipelines ask the tokenizer
            _add_special_tokens(tokenizer, [IMAGE_TOKEN, PROMPT_TOKEN, ROUTER_TOKEN, *map(expert_token, self.experts)])
            self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def add_expert(self, name: str, instruction: str) -> int:
        """Make sequences for one expert more, after the others.

        Args:
            name (`str`): A Python identifier that no expert has; the tokenizer gets the token `<name>`.
            instruction (`str`): Its sub-task, which its Q-Former reads, and its prompt with `router_mode="template"`.

        Returns:
            `int`: the token's id, for the model's `add_expert`.

        Raises:
            RSMoEError: a name that is taken or cannot be one, or no instruction.
        """
        if name in self.experts or not name.isidentifier() or not instruction.strip():
            raise RSMoEError(
                f"cannot add the expert {name!r} with the instruction {instruction!r}: give a Python identifier other "
                f"than {', '.join(self.experts)}, and a text."
            )
        _add_special_tokens(self.tokenizer, [expert_token(name)])
        self.experts = [*self.experts, name]
        self.expert_instructions = {**self.expert_instructions, name: instruction}
        return self.tokenizer.convert_tokens_to_ids(expert_token(name))

    def with_experts(self, names: Sequence[str]) -> "RSMoEProcessor":
        """A copy that makes sequences for these experts alone; tokenizers are shared."""
        processor = copy.copy(self)
        processor.experts = list(names)
        return processor

    def attach_to(self, model: Any) -> None:
        """Let `model` read each image's instruction out of `input_ids`, as `read_rendered` does, where images come
        without `qformer_input_ids`; this processor then makes neither these nor expert inputs.

        For trainers that pass on a fixed list of inputs (TRL's GRPO and RLOO; docs/how-to/training.md). Nothing of it
        is saved.

        Args:
            model (`RSMoEForConditionalGeneration`): Before PEFT or a trainer wraps it; also a trainer's `ref_model`.
        """
        self.makes_expert_inputs = self._makes_qformer_inputs = False
        model.model.instruction_reader = self.read_input_ids

    def read_input_ids(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the Q-Former reads beside each image of sequences that the chat template has rendered.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Padding and completions may be in.

        Returns:
            `dict`: `qformer_input_ids` and `qformer_attention_mask` of shape `(num_images, qformer_sequence_length)`.
        """
        texts: list[str] = []
        closing = self.render("\x00").split("\x00")[1]
        for ids in input_ids.tolist():
            num_images = ids.count(self.image_token_id) // self.num_query_tokens
            rendered = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            prompt, found, completion = rendered.rpartition(closing)  # what a model writes is no instruction
            texts += [self.read_rendered(prompt + found or completion)] * num_images
        return {name: ids.to(input_ids.device) for name, ids in self.tokenize_qformer(texts, "pt").items()}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As of every processor. The Q-Former's tokenizer gets a `config.json`: without one, transformers loads the
        LLM's in its place where a repository is read offline."""
        folder = Path(save_directory, "qformer_tokenizer")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}) + "\n", encoding="utf-8")
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def llm_tokenizer(self) -> Any:
        """A copy of the LLM's tokenizer with the chat template, to go with the model's `merged_llm`."""
        tokenizer: Any = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self.chat_template
        tokenizer._set_processor_class(None)  # a folder of its own must not ask for this class and its code
        for name in ("auto_map", "processor_class"):
            tokenizer.init_kwargs.pop(name, None)
        return tokenizer

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):  # type: ignore[override]
        images = None if images is None else map_images(to_rgb, images)
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Prompt | list[str] | list[Prompt] | None = None,
        image_embeds: torch.Tensor | None = None,
        expert_inputs: bool | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Args:
            images (`ImageInput`, *optional*):
                One image or a list (paths, URLs, PIL, arrays, tensors): one for each `<image>` token of the texts.
            text (`str`, `Prompt` or a list of them, *optional*):
                Instructions or prompts, one for each image or one string for all: the chat template is applied. Or
                texts rendered by `apply_chat_template`, with as many `<image>` tokens as images.
            image_embeds (`torch.Tensor` of shape `(num_images, patches, vision width)`, *optional*):
                Output of the model's `encode_image`, in place of images.
            expert_inputs (`bool`, *optional*):
                Whether to make what the full model of `generate` needs besides `input_ids`, which is about one image
                for each text. By default it is made unless a text names the router or an expert. With `False` the
                base LM reads alone, also texts about several images.
            **kwargs:
                As of every transformers processor. `padding`, `padding_side`, `truncation` and `max_length` hold for
                all sequences of the base LM, router and experts.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` (num_texts, sequence_length); `pixel_values` (num_images, 3,
            height, width) or `image_embeds`; `qformer_input_ids`, `qformer_attention_mask` (num_images,
            qformer_sequence_length); and the expert inputs (see `sequences_rsmoe.EXPERT_INPUTS`).

        Raises:
            RSMoEError: an image that cannot be read, images and image_embeds together, `expert_inputs=True` of several
                images in one text (by default `generate` refuses them), or a `max_length` that cuts an expert's
                prompt. ValueError: other numbers of images and `<image>` tokens (both are named).
        """
        if images is not None and image_embeds is not None:
            raise RSMoEError("images and image_embeds were given; give one of them.")
        if text is None:
            return super().__call__(images=images, **kwargs)
        images_of_texts = images if image_embeds is None else list(image_embeds)
        num_images = _count_images(images_of_texts)
        prompts = self._to_prompts(text, images_of_texts, num_images)
        rendered = [text if isinstance(text, str) else self.render(text) for text in prompts]
        text_kwargs = self._text_kwargs(dict(kwargs))
        if image_embeds is None:
            features = super().__call__(images=images, text=list(rendered), **kwargs)
        else:
            features = self._embed(image_embeds, rendered, text_kwargs)
        if num_images:
            self._add_image_inputs(features, prompts, rendered, expert_inputs, text_kwargs)
        return features

    def _to_prompts(self, text: Any, images: Any, num_images: int) -> list[str | Prompt]:
        """Bare instructions, one for each image or one for all, as prompts; rendered texts stay texts."""
        texts = list(text) if isinstance(text, (list, tuple)) else [text]
        if wrong := [type(text).__name__ for text in texts if not isinstance(text, (str, Prompt))]:
            raise RSMoEError(f"text holds {wrong[0]}, expected strings: the order is processor(images, text).")
        if not num_images or any(isinstance(text, str) and self.image_token in text for text in texts):
            return texts
        is_nested = isinstance(images, (list, tuple)) and any(isinstance(image, (list, tuple)) for image in images)
        if not isinstance(text, (list, tuple)) and not is_nested:
            texts *= num_images
        if len(texts) != num_images:
            raise RSMoEError(
                f"Found 0 {self.image_token} tokens and {num_images} images for {len(texts)} texts: give one text for "
                "each image, or one string for all of a flat list. Several images in one text are a chat's."
            )
        # A router's or an expert's text says by its token who reads it, as rendered texts do.
        prompts = [text if isinstance(text, Prompt) else Prompt.base(text) for text in texts]
        return [
            self.render(prompt) if prompt.kind == "base" and self._selects_adapter(prompt.text) else prompt
            for prompt in prompts
        ]

    def _selects_adapter(self, text: str) -> bool:
        return any(token in text for token in (ROUTER_TOKEN, *map(expert_token, self.experts)))

    def _embed(self, image_embeds: torch.Tensor, rendered: list[str], text_kwargs: dict[str, Any]) -> BatchFeature:
        """As the stock call makes it, which refuses image tokens without pixels."""
        num_tokens = sum(text.count(self.image_token) for text in rendered)
        if num_tokens != len(image_embeds):
            raise ValueError(f"Found {num_tokens} {self.image_token} tokens and {len(image_embeds)} image_embeds.")
        encoded = self.tokenizer([self.with_image_tokens(text) for text in rendered], **text_kwargs)
        data = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return BatchFeature({**data, "image_embeds": image_embeds})

    def _text_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the tokenizer, as the stock call takes them out of its own."""
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        not_tokenizers = ("return_mm_token_type_ids", "return_text_replacement_offsets")
        return {name: value for name, value in merged["text_kwargs"].items() if name not in not_tokenizers}

    def _add_image_inputs(
        self,
        features: BatchFeature,
        prompts: list[str | Prompt],
        rendered: list[str],
        expert_inputs: bool | None,
        text_kwargs: dict[str, Any],
    ) -> None:
        return_tensors = text_kwargs.get("return_tensors")
        readings = [p.qformer_text if isinstance(p, Prompt) else self.read_rendered(p) for p in prompts]
        counts = [text.count(self.image_token) for text in rendered]
        if self._makes_qformer_inputs:
            qformer_texts = [reading for reading, count in zip(readings, counts) for _ in range(count)]
            features.update(self.tokenize_qformer(qformer_texts, return_tensors))
        makes_expert_inputs = expert_inputs
        if expert_inputs is None:
            makes_expert_inputs = self.makes_expert_inputs and not any(
                prompt.kind != "base" if isinstance(prompt, Prompt) else self._selects_adapter(prompt)
                for prompt in prompts
            )
        if not makes_expert_inputs:
            return
        # Without the inputs below, they tell `generate` to refuse: the full model reads texts about one image each.
        task_ids = [TASKS.index(task_of(reading)) for reading in readings]
        features.update(BatchFeature({"task_ids": task_ids}, tensor_type=return_tensors))
        if all(count == 1 for count in counts):
            features.update(self._expert_inputs(readings, text_kwargs))
        elif expert_inputs:
            raise RSMoEError(ONE_IMAGE)

    def render(self, prompt: str | Prompt) -> str:
        """One image and a prompt (or a text) as a user's turn of the chat template, up to where the answer begins."""
        text = prompt.text if isinstance(prompt, Prompt) else prompt
        content: Any = [{"type": "image"}, {"type": "text", "text": text}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def refuse_special_tokens(self, text: str) -> None:
        """Refuse a person's text that holds special tokens: it could pass for another sequence than it is."""
        tokens = [token for token in self.tokenizer.get_added_vocab() if token in text]
        if tokens:
            raise RSMoEError(
                f"the text {text!r} holds {', '.join(tokens)}, which only the model's own sequences may: leave it out"
            )

    def read_rendered(self, rendered: str) -> str:
        """What the Q-Former reads beside a text that the chat template has rendered.

        TRL and transformers' pipelines render messages before they call the processor, so that nothing but the text is
        left: the expert's sub-task instruction where it holds an expert's token, else the user's last instruction
        without special tokens and expert texts.
        """
        opening, closing = self.render("\x00").split("\x00")
        turn_start = opening.split(self.image_token)[0]
        first = self.tokenizer.bos_token
        if first and first not in closing:  # it opens the text, not each turn
            turn_start = turn_start.removeprefix(first)
        body = rendered.rsplit(turn_start, 1)[-1] if turn_start else rendered
        body = body.split(closing, 1)[0]
        names = "|".join(map(re.escape, self.experts))
        if expert := re.search(f"<({names})>", body):
            return self.expert_instructions[expert[1]]
        if ROUTER_TOKEN in body:
            body = re.sub(rf"^\s*({names}): ", "", body.split(ROUTER_TOKEN, 1)[1])
        body = re.split(rf"\n(?:{names}):", body, maxsplit=1)[0]
        return re.sub("|".join(map(re.escape, self.tokenizer.get_added_vocab())), "", body).strip()

    def tokenize_qformer(self, texts: list[str], return_tensors: str | None) -> dict[str, Any]:
        """`qformer_input_ids` and `qformer_attention_mask` (texts, qformer_sequence_length), padded on the right."""
        arguments = {"padding": True, "padding_side": "right", "return_tensors": return_tensors, "verbose": False}
        limit = min(self.qformer_tokenizer.model_max_length, MAX_QFORMER_TOKENS)
        encoded = self.qformer_tokenizer(texts, **arguments)
        # Truncation and padding are states of a tokenizer that threads share: changed only where they must be.
        if len(encoded["input_ids"][0]) > limit:
            encoded = self.qformer_tokenizer(texts, truncation=True, max_length=limit, **arguments)
        return {f"qformer_{name}": encoded[name] for name in ("input_ids", "attention_mask")}

    def _expert_inputs(self, instructions: list[str], text_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Sequences of router, experts and rewriting base LM for each image, and what may go into them."""
        return_tensors = text_kwargs.get("return_tensors")
        shape = (len(instructions), len(self.experts))
        pairs = [(instruction, name) for instruction in instructions for name in self.experts]
        sub_tasks = [self.expert_instructions[name] for _, name in pairs]
        slots = dict.fromkeys(self.experts, "\x00")
        slotted = [Prompt.rewrite(instruction, slots).text for instruction in instructions]
        prompts = {
            "router": [Prompt.router(name, instruction).text for instruction, name in pairs],
            "expert": [expert_token(name) + PROMPT_TOKEN for _, name in pairs],
            "rewrite": [text.replace(" \x00", PROMPT_TOKEN) for text in slotted],
        }
        texts = {
            kind: [self.with_image_tokens(self.render(text)) for text in kind_prompts]
            for kind, kind_prompts in prompts.items()
        }
        texts["template_prompt"] = [
            f" {detailed(sub_task) if task_of(instruction) == 'detail' else sub_task}"
            for (instruction, _), sub_task in zip(pairs, sub_tasks)
        ]
        texts["instruction"] = [f" {text}" for text in instructions]
        data: dict[str, Any] = {}
        for kind, kind_texts in texts.items():
            data |= {f"{kind}_{name}": value for name, value in self._tokenize(kind_texts, text_kwargs).items()}
        for name, value in self.tokenize_qformer(sub_tasks, return_tensors).items():
            data[f"expert_{name}"] = value
        self._check_slots(data, len(pairs))
        per_expert = ("router_", "expert_", "template_prompt_")
        return {name: _fold(value, *shape) if name.startswith(per_expert) else value for name, value in data.items()}

    def _tokenize(self, texts: list[str], text_kwargs: dict[str, Any]) -> dict[str, Any]:
        padding = text_kwargs.get("padding") or True  # sequences of different experts differ in length
        encoded = self.tokenizer(texts, **{**text_kwargs, "padding": padding, "add_special_tokens": False})
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _check_slots(self, data: dict[str, Any], expected: int) -> None:
        """Each expert's sequence has one place for its prompt, each rewriting one for each expert's text."""
        slot = self.tokenizer.convert_tokens_to_ids(PROMPT_TOKEN)
        for kind in ("expert", "rewrite"):
            sequences = data[f"{kind}_input_ids"]
            sequences = sequences.tolist() if hasattr(sequences, "tolist") else sequences
            if sum(ids.count(slot) for ids in sequences) != expected:
                raise RSMoEError("max_length cuts the experts' prompts off: give a larger one, or leave it out.")

    def with_image_tokens(self, text: str) -> str:
        """A rendered text with each image's token repeated for all its query tokens."""
        return text.replace(self.image_token, self.image_token * self.num_query_tokens)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_query_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """How many tokens images of these sizes take: the same for every size. Asked by servers such as vLLM."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_query_tokens] * count, num_image_patches=[1] * count)

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return list(dict.fromkeys([*names, "qformer_input_ids", "qformer_attention_mask", *EXPERT_INPUTS]))


def _count_images(images: Any) -> int:
    """How many images nested lists, a batch or a single image are."""
    if images is None:
        return 0
    if isinstance(images, (list, tuple)):
        return sum(map(_count_images, images))
    return len(images) if getattr(images, "ndim", 0) == 4 else 1


def _add_special_tokens(tokenizer: Any, tokens: list[str]) -> None:
    """Those of the tokens that the tokenizer lacks, in this order. An adapter's token swallows the space before it:
    "<image> <theme>" and "<image><theme>" are the same sequence."""
    vocab = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=True, normalized=False, lstrip=token not in (IMAGE_TOKEN, PROMPT_TOKEN))
            for token in tokens
            if token not in vocab
        ],
        special_tokens=True,
    )


def _fold(sequences, num_images: int, num_experts: int):
    """[num_images x num_experts, tokens] -> [num_images, tokens, num_experts], for tensors and for plain lists."""
    if hasattr(sequences, "reshape"):
        folded = sequences.reshape(num_images, num_experts, -1).swapaxes(1, 2)
        return folded.contiguous() if isinstance(folded, torch.Tensor) else folded
    groups = [sequences[start : start + num_experts] for start in range(0, num_images * num_experts, num_experts)]
    return [[list(tokens) for tokens in zip(*group)] for group in groups]


__all__ = ["RSMoEProcessor"]
