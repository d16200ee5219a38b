"""What other programs send: every argument of the `openai` client, and the requests of geoai's `VLLMGeo`."""

import json
import urllib.error
import urllib.request
from typing import Any, get_type_hints

import openai
import pytest
from openai.types.chat import completion_create_params

from modeling_rsmoe.prompting_rsmoe import question_instruction, task_of
from modeling_rsmoe.serving.chat import IGNORED, NEUTRAL_VALUES, ChatRequest
from modeling_rsmoe.serving.limits import Limits

from .conftest import Served, data_url, noise, serving, user


# ---- openai


def test_every_argument_of_the_client_is_known() -> None:
    """Should this fail, the API has a new argument: say what it means here."""
    arguments: set[str] = set()
    for kind in ("Base", "NonStreaming", "Streaming"):
        arguments |= set(get_type_hints(getattr(completion_create_params, f"CompletionCreateParams{kind}")))
    assert arguments <= {*ChatRequest.model_fields, *NEUTRAL_VALUES, *IGNORED}


NEUTRAL = [(name, value) for name, values in NEUTRAL_VALUES.items() for value in (*values, None)]


def test_values_that_ask_for_nothing_change_nothing(served) -> None:
    expected = served.ask(noise(0)).choices[0].message.content
    everything = {name: value for name, value in NEUTRAL if value is not None}
    everything |= {"metadata": {"a": "b"}, "user": "someone", "store": False, "service_tier": "auto"}
    nothing = dict.fromkeys((*NEUTRAL_VALUES, *IGNORED, "seed", "max_tokens", "temperature", "num_beams"))
    for more in (everything, nothing):
        assert served.ask(noise(0), extra_body=more).choices[0].message.content == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), NEUTRAL, ids=str)
def test_each_such_value_is_taken(served, name, value) -> None:
    assert served.client.chat.completions.create(
        model="tiny", messages=[user(noise(0), "Describe.")], max_tokens=1, extra_body={name: value}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "a"}),
        ("frequency_penalty", 0.5),
        ("frequency_penalty", False),
        ("functions", [{"name": "f"}]),
        ("logit_bias", {"1": 5}),
        ("logprobs", True),
        ("logprobs", 0),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("response_format", {"type": "json_object"}),
        ("stop", "."),
        ("tool_choice", "required"),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("top_logprobs", 2),
    ],
    ids=str,
)
def test_all_others_are_refused_by_name(served, name, value) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{name} is not supported here") as caught:
        served.ask(noise(0), extra_body={name: value})
    assert caught.value.param == name


# ---- geoai: geoai/vllm_geo.py of github.com/opengeos/geoai at commit 4152b5d (after release 0.40.1)

NEW_TOKENS = 16  # `--max-new-tokens`; geoai asks for 512
CAPTION_PROMPTS = {
    "short": "Describe this satellite/aerial image in one short sentence.",
    "normal": "Describe this satellite/aerial image, including land cover, structures, and notable features.",
    "long": "Provide a detailed description of this satellite/aerial image, including land cover types, structures, "
    "vegetation, water bodies, infrastructure, and spatial patterns.",
}
DETECT_PROMPT = (
    "Detect all instances of 'car' in this image. Respond ONLY with a JSON array of bounding boxes with coordinates "
    'normalized to the 0-1 range, in this exact format: [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}]. '
    "If no objects are found, respond with []."
)
SUMMARIZE_PROMPT = (
    "Based on these observations of different regions of an image about 'the image content', provide a single "
    "comprehensive summary:\n\nRegion 0: Many trees.\nRegion 1: A road.\n"
)


@pytest.fixture(scope="module")
def server():
    with serving(Limits(new_tokens=NEW_TOKENS)) as served:
        yield served


def as_geoai(served: Served, prompt: str, image: Any = None, **more: Any) -> str:
    """`VLLMGeo(model_id="tiny", base_url=...)._chat(prompt, image)`; where this raises, it raises RuntimeError."""
    picture = {"type": "image_url", "image_url": {"url": data_url(image)}} if image else None
    content = [picture, {"type": "text", "text": prompt}] if picture else prompt
    messages = [{"role": "user", "content": content}]
    payload = {"model": "tiny", "messages": messages, "max_tokens": 512, "temperature": 0.0, **more}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer EMPTY"}
    request = urllib.request.Request(f"{served.url}/v1/chat/completions", json.dumps(payload).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("length", CAPTION_PROMPTS)
def test_geoai_captions(server, length) -> None:
    prompt = CAPTION_PROMPTS[length]
    assert task_of(prompt) == ("detail" if length == "long" else "caption")
    assert as_geoai(server, prompt, noise(3)) == server.alone(noise(3), prompt, max_new_tokens=NEW_TOKENS)["text"]


@pytest.mark.parametrize("question", ["Is there a road?", "How many planes", DETECT_PROMPT])
def test_geoai_asks_and_is_answered_shortly(server, question) -> None:
    """`query`, each window of `query_sliding_window`, and `detect`, whose answer holds no boxes."""
    expected = server.alone(noise(4), question_instruction(question), max_new_tokens=NEW_TOKENS)["text"]
    assert as_geoai(server, question, noise(4)) == expected


def test_geoai_gets_no_summary_of_texts(server) -> None:
    """It then joins the texts of the windows, as with `combine_strategy="concatenate"`."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        as_geoai(server, SUMMARIZE_PROMPT)
    assert caught.value.code == 400
    assert "texts alone are not answered here" in json.load(caught.value)["error"]["message"]
