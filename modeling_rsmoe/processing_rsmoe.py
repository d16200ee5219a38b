"""Processor of RS-MoE: images and instructions -> everything that `generate` or training needs, in one call.

Knows how every kind of row is written down (base LM, router, experts, composer); training and generation use the
same functions, so that a row reads the same in both.
"""

import copy
import re
from typing import Any

from transformers import AddedToken, BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .configuration_rsmoe import EXPERT_NAMES
from .errors_rsmoe import RSMoEError
from .generation_rsmoe import EXPERT_INPUTS
from .images_rsmoe import read_images


IMAGE_TOKEN, PROMPT_TOKEN, ROUTER_TOKEN = "<image>", "<prompt>", "<router>"
DEFAULT_INSTRUCTION = "Describe the image."  # [our decision]
ANSWER_WORDING = "Answer the question using a single word or phrase."  # GeoChat's wording for RSVQA
# Each expert's sub-task: what its Q-Former reads, and its prompt with router_mode="template" [our decision: wording].
EXPERT_INSTRUCTIONS = {
    "theme": "What is the theme of this image: its scene and land use?",
    "object": "Which objects are in this image, how many are there and what are they like?",
    "relation": "Where are the objects of this image relative to each other?",
}
# A completion begins with a space, so that parts joined token by token are the texts joined by spaces [our decision].
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- ('' if loop.first else '\n') + '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{%- set parts = [{'type': 'text', 'text': message['content']}] -%}
{%- else -%}
{%- set parts = message['content'] -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- for part in parts -%}{{- ' ' + part['text'] | trim -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{%- set before = namespace(text='') -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}{%- set before.text = before.text + '<image>' -%}
{%- else -%}{%- set before.text = before.text + (' ' if before.text else '') + part['text'] | trim -%}
{%- endif -%}
{%- endfor -%}
{{- before.text + '<|im_end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\n<|im_start|>assistant\n' -}}{%- endif -%}
"""


def question_instruction(question: str) -> str:
    """A question as the model is asked it: `question? Answer the question using a single word or phrase.`"""
    question = " ".join(question.split())
    return f"{question if question.endswith(('?', '.', '!')) else question + '?'} {ANSWER_WORDING}"


def expert_token(name: str) -> str:
    """The token that gives a row to the expert `name`."""
    return f"<{name}>"


def router_prompt(name: str, instruction: str) -> str:
    """User text of the row in which the router writes the prompt for the expert `name`."""
    return f"{ROUTER_TOKEN} {name}: {instruction}"


def expert_prompt(name: str, prompt: str) -> str:
    """User text of a row of the expert `name`, under the prompt that the router wrote for it."""
    return f"{expert_token(name)} {prompt}"


def rewrite_request(instruction: str, parts: dict[str, str]) -> str:
    """User text of the row in which the base LM reads the experts' parts; an absent part is left empty."""
    return instruction + "".join(f"\n{name}:{' ' + part if part else ''}" for name, part in parts.items())


class RSMoEProcessor(ProcessorMixin):
    r"""
    Wraps an image processor, the LLM's tokenizer and the Q-Former's tokenizer.

    Args:
        image_processor (`BaseImageProcessor`), tokenizer (`PreTrainedTokenizerBase`), qformer_tokenizer
        (`PreTrainedTokenizerBase`):
            The three parts. Tokens that the LLM's tokenizer lacks (`<image>`, `<prompt>`, `<router>`, one for each
            expert) are added to it, in this order.
        num_query_tokens (`int`, *optional*, defaults to 32): image tokens that stand for one image.
        experts (`list[str]`, *optional*, defaults to `["theme", "object", "relation"]`): names of the experts, in
        order. expert_instructions (`dict[str, str]`, *optional*): each expert's sub-task instruction.
        chat_template (`str`, *optional*): defaults to ChatML without a system message.

    Example:

    ```python
    >>> inputs = processor(images="tile.png", text="Describe the image.", return_tensors="pt")
    >>> outputs = model.generate(**inputs, return_dict_in_generate=True)
    >>> processor.post_process_generation(outputs)[0]["text"]
    ```
    """

    # For training, set it to False on the instance: rows of training need no expert inputs. It is no argument of
    # __init__, so a checkpoint saved in training does not remember it.
    makes_expert_inputs = True
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
        if tokenizer is not None:
            _add_marks(tokenizer, [IMAGE_TOKEN, PROMPT_TOKEN, ROUTER_TOKEN, *map(expert_token, self.experts)])
            self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def add_expert(self, name: str, instruction: str) -> int:
        """Make rows for one expert more, after the others.

        Args:
            name (`str`): a Python identifier that no expert has; the tokenizer gets the token `<name>`.
            instruction (`str`): its sub-task, which its Q-Former reads, and its prompt with `router_mode="template"`.

        Returns:
            `int`: the token's id, for the model's `add_expert`.

        Raises:
            RSMoEError: a name that is taken or cannot be one, or no instruction.
        """
        if name in self.experts or not name.isidentifier() or not instruction.strip():
            raise RSMoEError(
                f"cannot add the expert {name!r} with the instruction {instruction!r}: give a Python identifier other than "
                f"{', '.join(self.experts)}, and a text."
            )
        _add_marks(self.tokenizer, [expert_token(name)])
        self.experts = [*self.experts, name]
        self.expert_instructions = {**self.expert_instructions, name: instruction}
        return self.tokenizer.convert_tokens_to_ids(expert_token(name))

    def llm_tokenizer(self) -> Any:
        """A copy of the LLM's tokenizer with the chat template, to go with the model's `merged_llm`."""
        tokenizer: Any = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self.chat_template
        tokenizer._set_processor_class(None)  # a folder of its own must not ask for this class and its code
        for name in ("auto_map", "processor_class"):
            tokenizer.init_kwargs.pop(name, None)
        return tokenizer

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        images = None if images is None else read_images(images)
        images, text, videos, audio = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        count = len(make_flat_list_of_images(images)) if images is not None else 0
        plain = text is not None and all(isinstance(sample, str) and self.image_token not in sample for sample in text)
        if count and plain and len(text) == count:  # one bare instruction for each image
            text = [self.render(sample) for sample in text]
        return images, text, videos, audio

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        expert_inputs: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list (paths, URLs, PIL, arrays, tensors): one for each `<image>` mark of the texts.
            text: bare instructions (one for each image; the chat template is applied), or texts rendered by
                `apply_chat_template` with as many `<image>` marks as images.
            expert_inputs: whether to make what the whole path of `generate` needs besides `input_ids`. By default it
            is
                made when every text holds one image and no expert token.
            **kwargs: as of every transformers processor (`return_tensors="pt"`, `padding`, ...).

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask` [texts, tokens]; `pixel_values` [images, 3, height, width];
            `qformer_input_ids`, `qformer_attention_mask` [images, tokens]; and the expert inputs (see
            `generation_rsmoe.EXPERT_INPUTS`).

        Raises:
            RSMoEError: an image that cannot be read. ValueError: other numbers of images and marks (both are named).
        """
        tensors = kwargs.get("return_tensors", kwargs.get("text_kwargs", {}).get("return_tensors"))
        images, text, _, _ = self.prepare_inputs_layout(images=images, text=text)
        rendered = list(text) if text is not None else []  # the stock call replaces the marks in place
        features = super().__call__(images=images, text=text, **kwargs)
        if images is None or not rendered:
            return features
        instructions = [self.qformer_instruction(sample) for sample in rendered]
        marks = [sample.count(self.image_token) for sample in rendered]
        of_images = [instruction for instruction, n in zip(instructions, marks) for _ in range(n)]
        data = {f"qformer_{name}": value for name, value in self.tokenize_qformer(of_images, tensors).items()}
        if expert_inputs is None:
            readers = (ROUTER_TOKEN, *map(expert_token, self.experts))
            whole = all(n == 1 for n in marks) and not any(token in sample for sample in rendered for token in readers)
            expert_inputs = self.makes_expert_inputs and whole
        if expert_inputs:
            data |= self._expert_inputs(instructions, tensors)
        features.update(data)
        return features

    def render(self, text: str) -> str:
        """One image and `text` as a user's turn, up to where the answer begins."""
        content: Any = [{"type": "image"}, {"type": "text", "text": text}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def refuse_marks(self, text: str) -> None:
        """Raise RSMoEError where a person's text holds a special token: it could pass for another row than it is."""
        marks = [mark for mark in self.tokenizer.get_added_vocab() if mark in text]
        if marks:
            raise RSMoEError(
                f"the text {text!r} holds {', '.join(marks)}, which only the model's own rows may: leave it out"
            )

    def qformer_instruction(self, rendered: str) -> str:
        """The text under which the Q-Former reads the image of a row: the expert's sub-task instruction in an expert's row,
        else the global instruction, without chat marks, router marks and experts' parts."""
        opening, closing = self.render("\x00").split("\x00")
        user_mark = opening.split(self.image_token)[0]
        first = self.tokenizer.bos_token
        if first and first not in closing:  # it opens the text, not each turn
            user_mark = user_mark.removeprefix(first)
        body = rendered.rsplit(user_mark, 1)[-1] if user_mark else rendered
        body = body.split(closing, 1)[0]
        names = "|".join(map(re.escape, self.experts))
        reader = re.search(f"<({names})>", body)
        if reader:
            return self.expert_instructions[reader[1]]
        if ROUTER_TOKEN in body:
            body = re.sub(rf"^\s*({names}): ", "", body.split(ROUTER_TOKEN, 1)[1])
        body = re.split(rf"\n(?:{names}):", body, maxsplit=1)[0]
        return re.sub("|".join(map(re.escape, self.tokenizer.get_added_vocab())), "", body).strip()

    def tokenize_qformer(self, texts: list[str], tensors) -> dict:
        limit = min(self.qformer_tokenizer.model_max_length, 512)
        encoded = self.qformer_tokenizer(
            texts, padding=True, truncation=True, max_length=limit, padding_side="right", return_tensors=tensors
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _expert_inputs(self, instructions: list[str], tensors) -> dict:
        """Rows of the router, the experts and the composer for each image, and the prompts that may go into them."""
        every = [(instruction, name) for instruction in instructions for name in self.experts]
        fixed = [self.expert_instructions[name] for _, name in every]
        slots = dict.fromkeys(self.experts, "")
        compose = [rewrite_request(instruction, slots) for instruction in instructions]
        for name in self.experts:
            compose = [re.sub(rf"\n{name}:", rf"\n{name}:{PROMPT_TOKEN}", prompt) for prompt in compose]

        # One list, one tokenization, one width: [rows of all kinds].
        def rows(prompts):
            return self._tokenize([self.with_image_tokens(self.render(prompt)) for prompt in prompts], tensors)

        shape = (len(instructions), len(self.experts))
        return {
            "router_input_ids": _fold(rows([router_prompt(name, instruction) for instruction, name in every]), shape),
            "expert_input_ids": _fold(rows([expert_token(name) + PROMPT_TOKEN for _, name in every]), shape),
            "expert_qformer_input_ids": _fold(self.tokenize_qformer(fixed, tensors)["input_ids"], shape),
            "rewrite_input_ids": rows(compose),
            "template_prompt_ids": _fold(self._tokenize([" " + text for text in fixed], tensors), shape),
            "instruction_ids": self._tokenize([" " + text for text in instructions], tensors),
        }

    def with_image_tokens(self, text: str) -> str:
        return text.replace(self.image_token, self.image_token * self.num_query_tokens)

    def _tokenize(self, texts: list[str], tensors):
        encoded = self.tokenizer(
            texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors=tensors
        )
        return encoded["input_ids"]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_query_tokens

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """How many tokens images of these sizes take: the same for every size. Asked by servers such as vLLM."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_query_tokens] * count, num_image_patches=[1] * count)

    def post_process_generation(self, outputs) -> list[dict]:
        """Texts of a [`RSMoEGenerateOutput`]: for each image `{"text", "router_prompts": {expert: str}, "parts": {expert: str}}`."""
        texts = self.tokenizer.batch_decode(outputs.sequences[:, outputs.prompt_length :], skip_special_tokens=True)
        samples = len(texts) // len(outputs.router_prompts)
        results = []
        for index, text in enumerate(texts):
            part_index = index * len(outputs.expert_sequences) // len(texts)
            results.append(
                {
                    "text": text.strip(),
                    "router_prompts": self.by_expert(outputs.router_prompts[index // samples]),
                    "parts": self.by_expert(outputs.expert_sequences[part_index]),
                }
            )
        return results

    def by_expert(self, ids) -> dict[str, str]:
        """Texts of token ids [experts, tokens], by the experts' names."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {name: text.strip() for name, text in zip(self.experts, texts)}

    @property
    def model_input_names(self) -> list[str]:
        own = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        qformer = ["qformer_input_ids", "qformer_attention_mask"]
        return list(dict.fromkeys([*own, *qformer, *EXPERT_INPUTS]))


def _add_marks(tokenizer: Any, marks: list[str]) -> None:
    """Those of the tokens that the tokenizer lacks, in this order. A reader's token swallows the space before it:
    "<image> <theme>" and "<image><theme>" are the same row."""
    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [
            AddedToken(mark, special=True, normalized=False, lstrip=mark not in (IMAGE_TOKEN, PROMPT_TOKEN))
            for mark in marks
            if mark not in known
        ],
        special_tokens=True,
    )


def _fold(rows, shape: tuple[int, int]):
    """[images x experts, tokens] -> [images, experts, tokens], for tensors and for plain lists."""
    if hasattr(rows, "reshape"):
        return rows.reshape(*shape, -1)
    return [rows[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]


__all__ = ["RSMoEProcessor"]
