"""The chat-completions shapes of OpenAI's API: what a request means to RS-MoE, and predictions in their form.

RS-MoE describes one image under one instruction, so of a conversation it reads [our decision]: the text of the last
user message as the instruction, and the last image that any user message holds. Earlier messages and system messages
are taken and not read: a follow-up question about the same image works, one about an earlier answer does not.
"""

import json
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..inference.predict import Prediction
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from .errors import ApiError
from .limits import Limits


MAX_CHARACTERS = 2000  # of an instruction: the decoder's context is short
MAX_BEAMS = 8
STREAM_END = format_sse_event(data_str="[DONE]")


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
    fusion: Literal["auto", "rerank", "rewrite", "concat"] | None = None
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    short_answer: bool = False
    # Only with the values that ask for nothing.
    n: Literal[1] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: _ResponseFormat | None = None
    stop: None = None
    # Without effect on the text.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None


@dataclass(frozen=True)
class ImageRequest:
    """What a chat request asks of the model."""

    image_url: str
    image_field: str  # where that URL stands in the request, for errors
    instruction: str
    generation: dict[str, Any]  # arguments of `generate`; the others are the checkpoint's settings
    seed: int | None  # of a sampled text. Greedy texts do not depend on it: they may share a batch.
    stream: bool  # whether the text is sent as it grows
    include_usage: bool  # whether a stream ends with a count of tokens


def parse_body(body: bytes) -> ChatRequest:
    """A body (JSON) as a request; 400 names what is wrong and where it stands."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        deepest = max(problems, key=lambda problem: len(problem["loc"]))
        path = _field_path(deepest["loc"])
        if deepest["type"] == "extra_forbidden":
            message = f"{path} is not supported here: leave it out"
        else:
            message = f"{path or 'the body'}: {deepest['msg']}"
        raise ApiError(400, message, "invalid_request", path) from error


def _field_path(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].content[1].image_url.url`; without the names that pydantic gives to branches of a union."""
    path = ""
    for item in location:
        if isinstance(item, int):
            path += f"[{item}]"
        elif item != "str" and "[" not in item and not path.endswith(f".{item}"):
            path += f".{item}"
    return path.lstrip(".") or None


def image_request(request: ChatRequest, limits: Limits, default_tokens: int) -> ImageRequest:
    """What a request asks of the model, `default_tokens` where it does not say how long; 400 for no image, several
    where one is meant, or a limit that is passed."""
    if request.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "invalid_request", "messages")
    content = request.messages[-1].content
    texts = [content] if isinstance(content, str) else [item.text for item in content or [] if isinstance(item, _Text)]
    image_url, image_field = _last_image(request.messages)
    generation = _generation(request, limits, default_tokens)
    return ImageRequest(
        image_url,
        image_field,
        instruction=_instruction(" ".join(texts), request.short_answer),
        generation=generation,
        seed=request.seed if generation.get("do_sample") else None,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _last_image(messages: list[_Message]) -> tuple[str, str]:
    """The URL of the last image of a user message, and where it stands."""
    for index, message in reversed(list(enumerate(messages))):
        content = message.content if message.role == "user" and isinstance(message.content, list) else []
        images = [(place, item.image_url.url) for place, item in enumerate(content) if isinstance(item, _Image)]
        if len(images) > 1:
            reason = f"messages[{index}] holds {len(images)} images: ask about each in a request of its own"
            raise ApiError(400, f"{reason} (requests at the same time share a batch)", "invalid_request", "messages")
        for place, url in images:
            return url, f"messages[{index}].content[{place}].image_url"
    raise ApiError(400, "no user message holds an image: add an image_url part", "invalid_request", "messages")


def _instruction(text: str, short_answer: bool) -> str:
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        reason = f"the instruction has {len(text)} characters, {MAX_CHARACTERS} are the most"
        raise ApiError(400, reason, "context_length_exceeded", "messages")
    if short_answer and not text:
        raise ApiError(400, "short_answer needs a question", "invalid_request", "messages")
    return question_instruction(text) if short_answer else text or DEFAULT_INSTRUCTION


def _generation(request: ChatRequest, limits: Limits, default_tokens: int) -> dict[str, Any]:
    """Arguments of `generate`. Requests that agree in them share a batch."""
    max_tokens = request.max_completion_tokens or request.max_tokens
    if max_tokens and max_tokens > limits.new_tokens:
        reason = f"max_tokens is {max_tokens}, {limits.new_tokens} are the most here"
        raise ApiError(400, reason, "invalid_request", "max_tokens")
    arguments = request.model_dump(include={"num_beams", "router_mode", "fusion"}, exclude_none=True)
    arguments["max_new_tokens"] = max_tokens or min(default_tokens, limits.new_tokens)
    if request.temperature == 0:
        arguments["do_sample"] = False
    elif request.temperature is not None or (request.top_p or 1) < 1:
        sampling = {"temperature": request.temperature or 1.0, "top_p": request.top_p or 1.0, "top_k": 0}
        arguments |= {"do_sample": True, **sampling}
    return arguments


# ---- answers


@dataclass(frozen=True)
class Completion:
    """The head of one answer, which all its events repeat: its id, and the model as clients call it."""

    id: str
    model: str

    def response(self, prediction: Prediction) -> dict[str, Any]:
        """A `chat.completion`, with what led to the text in the field `rsmoe`."""
        message = {"role": "assistant", "content": prediction.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": prediction.finish_reason}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(prediction),
            "rsmoe": _steps(prediction),
        }

    def chunk(self, delta: dict[str, Any], prediction: Prediction | None = None) -> bytes:
        """A piece of a streamed text as a server-sent event; the last one has the prediction's `finish_reason` and
        `rsmoe`."""
        finish_reason = prediction.finish_reason if prediction else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        steps = {"rsmoe": _steps(prediction)} if prediction else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **steps})

    def usage_chunk(self, prediction: Prediction) -> bytes:
        """The event that `stream_options: {"include_usage": true}` asks for."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(prediction)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event of JSON."""
    return format_sse_event(data_str=json.dumps(content))


def model_card(model: str, created: int) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    return {"id": model, "object": "model", "created": created, "owned_by": re.split(r"[/\\]", model)[0]}


def _usage(prediction: Prediction) -> dict[str, int]:
    return {
        "prompt_tokens": prediction.num_prompt_tokens,
        "completion_tokens": prediction.num_tokens,
        "total_tokens": prediction.num_prompt_tokens + prediction.num_tokens,
    }


def _steps(prediction: Prediction) -> dict[str, Any]:
    return {"router_prompts": prediction.router_prompts, "expert_texts": prediction.expert_texts}
