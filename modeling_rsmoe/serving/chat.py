"""The chat-completions shapes of OpenAI's API: what a request means to RS-MoE, and answers in their form.

RS-MoE looks at one image under one instruction, so of a conversation it reads [our decision]: the text of the last
user message as the instruction, and the last image that any user message holds. Earlier turns and system messages are
taken and not read: a follow-up question about the same image works, one about an earlier answer does not.
"""

import json
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from .errors import ApiError
from .limits import Limits


MAX_LETTERS = 2000  # of an instruction: the decoder's context is short, and its images' questions are
MAX_BEAMS = 8


class _Text(BaseModel):
    type: Literal["text"]
    text: str


class _ImageUrl(BaseModel):
    url: str


class _Image(BaseModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[_Text | _Image, Field(discriminator="type")]] | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _ResponseFormat(BaseModel):
    type: Literal["text"]


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`. What could not be done is refused rather than left out in silence."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Ours: arguments of `generate`, and the wording of questions that are answered in a word or phrase.
    router_mode: Literal["generated", "template", "none"] | None = None
    fusion: Literal["rewrite", "concat", "rerank"] | None = None
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    short_answer: bool = False
    # Only with the values that ask for nothing.
    n: Literal[1] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: _ResponseFormat | None = None
    stop: None = None
    # Without effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None


@dataclass(frozen=True)
class Decoding:
    """How a text is decoded. Requests that agree in it share a `generate`."""

    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    num_beams: int | None = None
    router_mode: str | None = None
    fusion: str | None = None
    seed: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Of `generate`. What is not asked for is the checkpoint's own setting."""
        given = {name: getattr(self, name) for name in ("num_beams", "router_mode", "fusion")}
        given |= {"max_new_tokens": self.max_new_tokens}
        if self.temperature == 0:
            given["do_sample"] = False
        elif self.temperature is not None or (self.top_p or 1) < 1:
            sampling = {"temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}
            given |= {"do_sample": True, **sampling}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Question:
    """What a request asks: the image under `image_url`, which stands at `place` in the request."""

    image_url: str
    place: str
    instruction: str
    decoding: Decoding
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it counted."""

    text: str
    router_prompts: dict[str, str]
    parts: dict[str, str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    @property
    def extension(self) -> dict[str, Any]:
        return {"router_prompts": self.router_prompts, "parts": self.parts}


def read_request(body: bytes) -> ChatRequest:
    """A body as a request.

    Raises:
        ApiError: 400, naming the first thing that is wrong and where it stands.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = max(error.errors(include_url=False, include_input=False), key=lambda problem: len(problem["loc"]))
        place = _place(first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"{place} is not supported here: leave it out"
        else:
            message = f"{place or 'the body'}: {first['msg']}"
        raise ApiError(400, message, "invalid_request", place) from error


def _place(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].content[1].image_url.url`; without the names that pydantic gives to branches of a union."""
    place = ""
    for item in location:
        if isinstance(item, int):
            place += f"[{item}]"
        elif item != "str" and "[" not in item and not place.endswith(f".{item}"):
            place += f".{item}"
    return place.lstrip(".") or None


def question_of(request: ChatRequest, limits: Limits, default_tokens: int, marks: list[str]) -> Question:
    """What a request means to RS-MoE.

    Args:
        default_tokens: length of a text where the request does not say.
        marks: the model's special tokens, which no instruction may hold.

    Raises:
        ApiError: 400, no image, several where one is meant, or a limit that is passed.
    """
    turns = [(index, message) for index, message in enumerate(request.messages) if message.role == "user"]
    if not turns or turns[-1][0] != len(request.messages) - 1:
        raise ApiError(400, "the last message must be the user's", "invalid_request", "messages")
    last = turns[-1][1].content
    texts = [last] if isinstance(last, str) else [part.text for part in last or [] if isinstance(part, _Text)]
    image_url, place = _image(turns)
    return Question(
        image_url=image_url,
        place=place,
        instruction=_instruction(" ".join(texts), request.short_answer, marks),
        decoding=_decoding(request, limits, default_tokens),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _image(turns: list[tuple[int, _Message]]) -> tuple[str, str]:
    for index, message in reversed(turns):
        parts = message.content if isinstance(message.content, list) else []
        images = [(i, part.image_url.url) for i, part in enumerate(parts) if isinstance(part, _Image)]
        if len(images) > 1:
            reason = f"messages[{index}] holds {len(images)} images: ask about each in a request of its own"
            raise ApiError(400, f"{reason} (requests at the same time share a batch)", "invalid_request", "messages")
        if images:
            return images[0][1], f"messages[{index}].content[{images[0][0]}].image_url"
    raise ApiError(400, "no user message holds an image: add an image_url part", "invalid_request", "messages")


def _instruction(text: str, short_answer: bool, marks: list[str]) -> str:
    text = text.strip()
    if len(text) > MAX_LETTERS:
        reason = f"the instruction has {len(text)} letters, {MAX_LETTERS} are the most"
        raise ApiError(400, reason, "context_length_exceeded", "messages")
    if found := [mark for mark in marks if mark in text]:
        reason = f"the text holds {', '.join(found)}, which only the model's own rows may: leave it out"
        raise ApiError(400, reason, "invalid_request", "messages")
    if short_answer and not text:
        raise ApiError(400, "short_answer needs a question", "invalid_request", "messages")
    return question_instruction(text) if short_answer else text or DEFAULT_INSTRUCTION


def _decoding(request: ChatRequest, limits: Limits, default_tokens: int) -> Decoding:
    asked = request.max_completion_tokens or request.max_tokens
    if asked and asked > limits.new_tokens:
        reason = f"max_tokens is {asked}, {limits.new_tokens} are the most here"
        raise ApiError(400, reason, "invalid_request", "max_tokens")
    samples = bool(request.temperature) or (request.top_p or 1) < 1
    return Decoding(
        max_new_tokens=asked or min(default_tokens, limits.new_tokens),
        temperature=request.temperature,
        top_p=request.top_p,
        num_beams=request.num_beams,
        router_mode=request.router_mode,
        fusion=request.fusion,
        seed=request.seed if samples else None,  # greedy texts do not depend on it: they may share a batch
    )


# ---- answers


def completion(name: str, model: str, answer: Answer) -> dict[str, Any]:
    """A `chat.completion`, with what led to the text in the field `rsmoe`."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {
        **_head(name, model, "chat.completion"),
        "choices": [choice],
        "usage": answer.usage,
        "rsmoe": answer.extension,
    }


def chunk(name: str, model: str, delta: dict[str, Any], answer: Answer | None = None) -> str:
    """A piece of a streamed text as a server-sent event; the last one has the answer's reason to stop and `rsmoe`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": answer and answer.finish_reason}
    more = {"rsmoe": answer.extension} if answer else {}
    return event({**_head(name, model, "chat.completion.chunk"), "choices": [choice], **more})


def usage_chunk(name: str, model: str, answer: Answer) -> str:
    """The event that `stream_options: {"include_usage": true}` asks for."""
    return event({**_head(name, model, "chat.completion.chunk"), "choices": [], "usage": answer.usage})


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def model_card(model: str, created: int) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": created, "owned_by": re.split(r"[/\\]", model)[0]}


def _head(name: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}
