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
from ..prompting_rsmoe import ANSWER_SUFFIX, DEFAULT_INSTRUCTION, question_instruction, task_of
from .errors import ApiError
from .limits import Limits


MAX_JSON_BYTES = 256 * 2**10  # of a body beside its images
MAX_CHARACTERS = 2000  # of an instruction; more is not even tokenised
MAX_TOKENS = 512  # of an instruction, as many as the Q-Former reads: a prompt of thousands takes minutes
MAX_BEAMS = 8
MIN_TEMPERATURE = 1e-5  # below it the likeliest token is taken, as vLLM does: quotients would not be finite
STREAM_END = format_sse_event(data_str="[DONE]")
# Fields of OpenAI's API that are taken with the values that ask for nothing (`null` always is).
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Fields that say nothing about the text.
IGNORED = {"metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"}
IGNORED |= {"service_tier", "store", "user"}
_DATA_URL = re.compile(rb'"data:[^"]{64,}"')  # ends at the first quote: it never reaches beyond a string of the JSON


class _Text(BaseModel):
    type: Literal["text"]
    text: str


class _ImageUrl(BaseModel):
    url: str


class _Image(BaseModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Parts = Annotated[list[Annotated[_Text | _Image, Field(discriminator="type")]], Field(fail_fast=True)]


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | _Parts | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = Field(False, strict=True)


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`. What could not be done is refused rather than left out in silence."""

    model_config = ConfigDict(strict=True, extra="allow")  # others are checked by `_check_others`

    model: str
    messages: list[_Message] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Ours: arguments of `generate`, and the wording of questions that are answered in a word or phrase.
    router_mode: Literal["generated", "template", "none"] | None = None
    fusion: Literal["auto", "rerank", "rewrite", "concat", "sentences"] | None = None
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    min_confidence: float | None = Field(None, ge=0, le=1)
    short_answer: bool | None = None


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


def parse_body(body: bytes | bytearray) -> ChatRequest:
    """A body (JSON) as a request; 400 names what is wrong and where it stands, 413 is for too much JSON beside images.

    What passes costs little more than its images: the rest is small, and the first wrong item of a list ends it.
    """
    size = len(body) - sum(image.end() - image.start() for image in _DATA_URL.finditer(body))
    if size > MAX_JSON_BYTES:
        reason = f"the body has {size} bytes beside the data URLs of images, {MAX_JSON_BYTES} are the most"
        raise ApiError(413, reason, "body_too_large")
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        deepest = max(problems, key=lambda problem: len(problem["loc"]))
        path = _field_path(deepest["loc"])
        raise _invalid(f"{path or 'the body'}: {deepest['msg']}", path) from error
    _check_others(request.model_extra or {})
    return request


def _check_others(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name in IGNORED or (name in NEUTRAL_VALUES and value is None):
            continue
        values = NEUTRAL_VALUES.get(name, ())
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in values):
            taken = f" (only {' or '.join(map(json.dumps, values))} is)" if values else ""
            raise _invalid(f"{name} is not supported here{taken}: leave it out", name)


def _invalid(message: str, path: str | None) -> ApiError:
    """Not longer than a line or two, whatever the request repeats in it."""
    return ApiError(400, shorten(message), "invalid_request", path and shorten(path))


def shorten(text: str) -> str:
    """A text of a client, to stand in an error."""
    return text if len(text) <= 300 else f"{text[:200]}..."


def _field_path(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].content[1].image_url.url`; without the names that pydantic gives to branches of a union."""
    path = ""
    for item in location:
        if isinstance(item, int):
            path += f"[{item}]"
        elif item != "str" and "[" not in item and not path.endswith(f".{item}"):
            path += f".{item}"
    return path.lstrip(".") or None


def image_request(
    request: ChatRequest, limits: Limits, default_tokens: int, detail_tokens: int | None = None
) -> ImageRequest:
    """What a request asks of the model, `default_tokens` where it does not say how long, or `detail_tokens` where it
    asks for details; 400 for no image, several where one is meant, or a text that is too long."""
    if request.messages[-1].role != "user":
        raise _invalid("the last message must be the user's", "messages")
    content = request.messages[-1].content
    texts = [content] if isinstance(content, str) else [item.text for item in content or [] if isinstance(item, _Text)]
    image_url, image_field = _last_image(request.messages)
    instruction = _instruction(" ".join(texts), request.short_answer)
    is_detail = task_of(instruction) == "detail"
    generation = _generation(request, limits, detail_tokens if is_detail and detail_tokens else default_tokens)
    return ImageRequest(
        image_url,
        image_field,
        instruction=instruction,
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
            raise _invalid(f"{reason} (requests at the same time share a batch)", "messages")
        for place, url in images:
            return url, f"messages[{index}].content[{place}].image_url"
    reason = "no user message holds an image, and texts alone are not answered here: add an image_url part"
    raise _invalid(reason, "messages")


def _instruction(text: str, short_answer: bool | None) -> str:
    """A question gets the wording of short answers unless that is switched off [our decision]."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        reason = f"the instruction has {len(text)} characters, {MAX_CHARACTERS} are the most: shorten it"
        raise ApiError(400, reason, "context_length_exceeded", "messages")
    if short_answer and not text:
        raise _invalid("short_answer needs a question", "messages")
    text = text or DEFAULT_INSTRUCTION
    is_short = task_of(text) == "question" if short_answer is None else short_answer
    return question_instruction(text) if is_short and not text.endswith(ANSWER_SUFFIX) else text


def _generation(request: ChatRequest, limits: Limits, default_tokens: int) -> dict[str, Any]:
    """Arguments of `generate`. Requests that agree in them share a batch."""
    max_tokens = request.max_completion_tokens or request.max_tokens or default_tokens
    arguments = request.model_dump(include={"num_beams", "router_mode", "fusion", "min_confidence"}, exclude_none=True)
    arguments["max_new_tokens"] = min(max_tokens, limits.new_tokens)
    if request.temperature is not None and request.temperature < MIN_TEMPERATURE:
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
            "rsmoe": prediction.steps(),
        }

    def chunk(self, delta: dict[str, Any], prediction: Prediction | None = None) -> bytes:
        """A piece of a streamed text as a server-sent event; the last one has the prediction's `finish_reason` and
        `rsmoe`."""
        finish_reason = prediction.finish_reason if prediction else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        steps = {"rsmoe": prediction.steps()} if prediction else {}
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
