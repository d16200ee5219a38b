"""What every kind of sequence says: to the base LM, the router, an expert, and to the Q-Former beside it.

Training and generation write their sequences here and nowhere else, so that a sequence reads the same in both. A
prompt knows its kind and its expert; only a text that another library has rendered is read back, by the processor.

[our decision] All wordings, except that of `ANSWER_SUFFIX`: the paper's prompts were not recovered.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


IMAGE_TOKEN, PROMPT_TOKEN, ROUTER_TOKEN = "<image>", "<prompt>", "<router>"
DEFAULT_INSTRUCTION = "Describe the image."
DETAIL_INSTRUCTION = "Describe the image in detail."  # asks for a paragraph
ANSWER_SUFFIX = "Answer the question using a single word or phrase."  # GeoChat's wording for RSVQA
DETAIL_SUFFIX = "Answer in detail."  # of the prompts that experts answer with all sentences of a paragraph
# Each expert's sub-task: what its Q-Former reads, and its prompt with router_mode="template".
EXPERT_INSTRUCTIONS = {
    "theme": "What is the theme of this image: its scene and land use?",
    "object": "Which objects are in this image, how many are there and what are they like?",
    "relation": "Where are the objects of this image relative to each other?",
}
# A completion begins with a space, so that texts joined token by token are the texts joined by spaces.
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

PromptKind = Literal["base", "router", "expert", "rewrite"]
Task = Literal["caption", "detail", "question"]
TASKS: tuple[Task, ...] = ("caption", "detail", "question")  # a task's place here is its id in the model's inputs
# In place of a text that is less likely right than was asked for, by its task [our decision].
UNSURE = {"caption": "Nothing here that I know.", "detail": "Nothing here that I know.", "question": "I do not know."}
# An instruction asks for a caption where the image itself, and not something in it, is to be described.
_CAPTION = re.compile(
    r"\b(describe|caption|(description|contents) of|caption for)\s+(this|the|that|an?)\s+([\w/-]+\s+){0,2}"
    r"(image|picture|scene|photo|tile|view)\b"
    r"|^what (does|do) (this|the|that|an?)\s+([\w/-]+\s+){0,2}(image|picture|scene|photo|tile)s? show\b"
    r"|\bdescribe what you (notice|see)\b"
    r"|^(describe|caption)( it| this| that)?( in detail| briefly| in (one|a) sentence)?[.!]?$",
    re.IGNORECASE,
)
_DETAIL = re.compile(r"\b(in detail|detailed|thorough(ly)?|paragraph)\b", re.IGNORECASE)


def expert_token(expert: str) -> str:
    """The special token that selects the expert `expert` for a sequence."""
    return f"<{expert}>"


def question_instruction(question: str) -> str:
    """A question as an instruction: `Is there a road? Answer the question using a single word or phrase.`"""
    question = " ".join(question.split())
    return f"{question if question.endswith(('?', '.', '!')) else question + '?'} {ANSWER_SUFFIX}"


def detailed(prompt: str) -> str:
    """An expert's prompt that asks for several sentences: `What do the planes look like? Answer in detail.`"""
    return f"{prompt} {DETAIL_SUFFIX}"


def task_of(instruction: str) -> Task:
    """What an instruction asks for; `fusion="auto"` depends on it [our decision].

    Returns:
        `"caption"` if the image itself is to be described, `"detail"` if in detail, `"question"` for everything else.
    """
    instruction = " ".join(instruction.split())
    if instruction.endswith(ANSWER_SUFFIX) or not _CAPTION.search(instruction):
        return "question"
    return "detail" if _DETAIL.search(instruction) else "caption"


@dataclass(frozen=True)
class Prompt:
    """One sequence up to where its answer begins, about one image.

    Attributes:
        kind: who answers it: `"base"` and `"rewrite"` the base LM, `"router"`, `"expert"`.
        text: the user's turn, without the image's token and the chat template.
        qformer_text: what the Q-Former reads beside the image: the expert's sub-task instruction for an expert, else
            the user's instruction.
        expert: the expert of a `"router"` or `"expert"` prompt.
    """

    kind: PromptKind
    text: str
    qformer_text: str
    expert: str | None = None

    @classmethod
    def base(cls, instruction: str) -> "Prompt":
        """The instruction itself, for the base LM."""
        return cls("base", instruction, instruction)

    @classmethod
    def router(cls, expert: str, instruction: str) -> "Prompt":
        """Asks the router for the prompt of `expert`."""
        return cls("router", f"{ROUTER_TOKEN} {expert}: {instruction}", instruction, expert)

    @classmethod
    def for_expert(cls, expert: str, router_prompt: str, expert_instruction: str) -> "Prompt":
        """Gives `expert` the router's prompt; its Q-Former reads its sub-task, `expert_instruction`."""
        return cls("expert", f"{expert_token(expert)} {router_prompt}", expert_instruction, expert)

    @classmethod
    def rewrite(cls, instruction: str, expert_texts: Mapping[str, str]) -> "Prompt":
        """Asks the base LM for one text out of the expert texts, by name and in order; an empty one leaves a line."""
        lines = [f"\n{name}:{' ' + text if text else ''}" for name, text in expert_texts.items()]
        return cls("rewrite", instruction + "".join(lines), instruction)


__all__ = ["Prompt"]
