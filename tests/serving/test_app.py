"""A server as the `openai` client sees it. The model is tiny and random."""

import io
import json
import struct
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION, question_instruction
from modeling_rsmoe.serving.access import Access
from modeling_rsmoe.serving.limits import Limits
from modeling_rsmoe.utils.images import read_image

from .conftest import Served, data_url, image_host, noise, serving, user


def refused(served: Served, body: dict[str, Any]) -> openai.APIStatusError:
    """The error of a request that the client itself would not let through either."""
    with pytest.raises(openai.APIStatusError) as caught:
        served.client.chat.completions.create(**{"model": "tiny", **body})
    return caught.value


def get(url: str, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# ---- answers


def test_an_answer_is_what_the_model_says_alone(served) -> None:
    expected = served.alone(noise(0), "Describe.")
    answer = served.ask(noise(0))
    assert answer.choices[0].message.content == expected["text"] and expected["text"]
    assert answer.model == "tiny" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.rsmoe == {name: expected[name] for name in ("router_prompts", "expert_texts")}
    inputs = served.processor(images=noise(0), text="Describe.", return_tensors="pt")
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason == "length"  # 8 tokens, and none ended it


@pytest.mark.parametrize("fusion", ["rewrite", "concat"])
def test_a_streamed_text_is_the_same_text(served, fusion) -> None:
    asked = {"extra_body": {"fusion": fusion, "router_mode": "template"}, "max_tokens": 24}
    expected = served.ask(noise(1), **asked)
    chunks = list(served.ask(noise(1), **asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == expected.choices[0].message.content
    assert len(pieces) > 2 if fusion == "rewrite" else len(pieces) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    last, usage = chunks[-2:]
    assert last.choices[0].finish_reason == expected.choices[0].finish_reason and last.rsmoe == expected.rsmoe
    assert usage.choices == [] and usage.usage == expected.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.fixture(scope="module")
def reranking():
    """A server of a model that has a reranker."""
    with serving(reranker_rank=8, reranker_buckets=64) as served:
        yield served


def test_the_text_is_the_predictors(reranking) -> None:
    """`fusion="auto"` by default: a caption is reranked, an answer is rewritten."""
    predictor = Predictor(reranking.model.model, reranking.processor)
    for text in (DEFAULT_INSTRUCTION, question_instruction("How many planes?")):
        (expected,) = predictor.predict([noise(8)], text)
        answer = reranking.ask(noise(8), text)
        assert answer.choices[0].message.content == expected.text
        assert answer.rsmoe == {"router_prompts": expected.router_prompts, "expert_texts": expected.expert_texts}
        assert bool(expected.scores) == (text == DEFAULT_INSTRUCTION)


def test_details_are_a_paragraph(reranking) -> None:
    """By the instruction; without `max_tokens` as long as the checkpoint's paragraphs."""
    model = reranking.model.model
    (expected,) = Predictor(model, reranking.processor).predict([noise(8)], DETAIL_INSTRUCTION)
    answer = reranking.ask(noise(8), DETAIL_INSTRUCTION)
    assert answer.choices[0].message.content == expected.text
    assert answer.rsmoe["sentences"] == expected.sentences and expected.sentences
    assert max(map(len, expected.expert_texts.values())) > model.generation_config.max_new_tokens
    short = reranking.ask(noise(8), DETAIL_INSTRUCTION, max_tokens=8)
    assert max(map(len, short.rsmoe["expert_texts"].values())) <= 8
    # A caption that waits beside it is the same as alone.
    assert "sentences" not in reranking.ask(noise(8), DEFAULT_INSTRUCTION).rsmoe


@pytest.mark.parametrize(("text", "is_by_token"), [("Describe the image.", False), ("How many planes?", True)])
def test_a_reranked_caption_is_streamed_as_one_piece(reranking, text, is_by_token) -> None:
    chunks = list(reranking.ask(noise(9), text, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == reranking.ask(noise(9), text).choices[0].message.content
    assert len(pieces) > 2 if is_by_token else len(pieces) == 1


def test_a_sampled_text_is_streamed(served) -> None:
    asked = {"temperature": 1.5, "seed": 3, "extra_body": {"fusion": "rewrite"}}
    chunks = list(served.ask(noise(9), **asked, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == served.ask(noise(9), **asked).choices[0].message.content and len(pieces) > 2


@pytest.mark.slow
def test_what_is_read_of_a_conversation(served) -> None:
    """The last user message, and the last image that there is."""
    messages = [
        {"role": "system", "content": "You are a pirate."},
        user(noise(2), "Describe the image."),
        {"role": "assistant", "content": "A golf course."},
        user(noise(3)),
        {"role": "assistant", "content": "An airport."},
        {"role": "user", "content": "How many planes?"},
    ]
    say = served.client.chat.completions.create
    short = served.alone(noise(3), question_instruction("How many planes?"))["text"]
    for more in ({}, {"short_answer": True}):  # as `rsmoe ask` by default
        assert say(model="tiny", messages=messages, extra_body=more).choices[0].message.content == short
    answer = say(model="tiny", messages=messages, extra_body={"short_answer": False})
    assert answer.choices[0].message.content == served.alone(noise(3), "How many planes?")["text"] != short
    again = say(model="tiny", messages=[user(noise(3), question_instruction("How many planes?"))])
    assert again.choices[0].message.content == short  # the wording is not added twice
    answer = say(model="tiny", messages=[user(noise(2))])
    assert answer.choices[0].message.content == served.alone(noise(2), DEFAULT_INSTRUCTION)["text"]


@pytest.mark.slow
def test_decoding_is_as_asked(served) -> None:
    beams = served.alone(noise(4), num_beams=2, max_new_tokens=5, fusion="rewrite")
    answer = served.ask(noise(4), max_completion_tokens=5, extra_body={"num_beams": 2, "fusion": "rewrite"})
    assert answer.choices[0].message.content == beams["text"] and answer.usage.completion_tokens <= 5
    greedy = served.ask(noise(4), temperature=0).choices[0].message.content
    assert greedy == served.alone(noise(4))["text"]
    sampled = [served.ask(noise(4), temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] and len({greedy, *sampled}) == 3


def test_geotiffs_are_read_as_everywhere(served, tmp_path) -> None:
    wide = Image.fromarray(np.random.default_rng(5).integers(0, 60_000, (40, 50)).astype(np.uint16))
    wide.save(tmp_path / "wide.tif")
    answer = served.ask(data_url((tmp_path / "wide.tif").read_bytes(), "TIFF"))
    assert answer.choices[0].message.content == served.alone(read_image(tmp_path / "wide.tif"))["text"]

    rasterio = pytest.importorskip("rasterio")
    shape = {"width": 50, "height": 40, "count": 5, "dtype": "uint16"}
    with rasterio.open(tmp_path / "bands.tif", "w", driver="GTiff", **shape) as raster:
        raster.write(np.ones((5, 40, 50), np.uint16))
    error = refused(served, {"messages": [user(data_url((tmp_path / "bands.tif").read_bytes(), "TIFF"))]})
    assert error.status_code == 400 and "has 5 bands" in error.message and str(tmp_path) not in error.message
    shape |= {"count": 3, "dtype": "float32"}
    with rasterio.open(tmp_path / "float.tif", "w", driver="GTiff", **shape) as raster:
        raster.write(np.random.default_rng(6).random((3, 40, 50), np.float32))
    answer = served.ask(data_url((tmp_path / "float.tif").read_bytes(), "TIFF"))
    assert answer.choices[0].message.content == served.alone(read_image(tmp_path / "float.tif"))["text"]
    huge = (
        (tmp_path / "float.tif")
        .read_bytes()
        .replace(struct.pack("<HHIH", 256, 3, 1, 50), struct.pack("<HHIH", 256, 3, 1, 65535))
    )
    huge = huge.replace(struct.pack("<HHIH", 257, 3, 1, 40), struct.pack("<HHIH", 257, 3, 1, 65535))
    error = refused(served, {"messages": [user(data_url(huge, "TIFF"))]})
    assert error.status_code == 413 and error.code == "image_too_large"


# ---- what is refused


PLAIN = user(noise(0), "Describe.")


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": "Describe."}]}, "messages", "no user message holds an image"),
        ({"messages": [PLAIN, {"role": "assistant", "content": "A"}]}, "messages", "last message must be the user's"),
        ({"messages": [{**PLAIN, "content": PLAIN["content"] * 2}]}, "messages", "holds 2 images"),
        ({"messages": [user("/etc/hostname")]}, "messages[0].content[0].image_url", "no data URL"),
        ({"messages": [user("file:///etc/hostname")]}, "messages[0].content[0].image_url", "no data URL"),
        ({"messages": [user("data:text/html;base64,AAAA")]}, "messages[0].content[0].image_url", "data URL"),
        ({"messages": [user("data:image/png;base64,A")]}, "messages[0].content[0].image_url", "not valid base64"),
        ({"messages": [user(noise(0), "a" * 2001)]}, "messages", "2001 characters, 2000 are the most"),
        ({"messages": [user(noise(0), "<theme> hello")]}, "messages", "holds <theme>, which only the model's own"),
        ({"messages": [user(noise(0), "")], "extra_body": {"short_answer": True}}, "messages", "needs a question"),
        ({"messages": [user(noise(0), "\U0001f600" * 500)]}, "messages", "2052 tokens, 512 are the most"),
        ({"messages": [user(noise(0), "a " * 600)]}, "messages", "645 tokens for the Q-Former, 512 are the most"),
        ({"messages": [PLAIN], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": [PLAIN], "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"messages": [PLAIN], "temperature": "0.5"}, "temperature", "valid number"),
        ({"messages": [PLAIN], "max_tokens": True}, "max_tokens", "valid integer"),
        ({"messages": [PLAIN], "n": 2}, "n", "n is not supported here (only 1 is): leave it out"),
        ({"messages": [PLAIN], "n": True}, "n", "n is not supported here (only 1 is)"),
        ({"messages": [PLAIN], "stop": ["."]}, "stop", "stop is not supported here (only [] is)"),
        ({"messages": [PLAIN], "extra_body": {"top_k": 5}}, "top_k", "top_k is not supported here: leave it out"),
        ({"messages": [PLAIN], "extra_body": {"a" * 5000: 5}}, f"{'a' * 200}...", "aaa..."),
        ({"messages": [PLAIN], "extra_body": {"num_beams": -3}}, "num_beams", "greater than or equal to 1"),
        ({"messages": [PLAIN], "extra_body": {"num_beams": 9}}, "num_beams", "less than or equal to 8"),
        ({"messages": [user("data:image/png;base64,\u2603")]}, "messages[0].content[0].image_url", "not valid base64"),
        ({"messages": [user("http://localhost:99999")]}, "messages[0].content[0].image_url", "Port out of range"),
        ({"messages": [user("http://[::1")]}, "messages[0].content[0].image_url", "no URL (Invalid IPv6 URL)"),
        ({"messages": [PLAIN], "extra_body": {"router_mode": "dice"}}, "router_mode", "'generated', 'template'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0]",
            "'input_audio'",
        ),
    ],
)
def test_bad_requests_name_what_is_wrong(served, body, place, message) -> None:
    error = refused(served, body)
    assert isinstance(error, openai.BadRequestError)
    assert message in error.message and error.param == place and error.type == "invalid_request_error"


def test_a_fusion_that_the_model_does_not_have(served) -> None:
    """It is known before the queue: no batch is begun."""
    batches = len(served.model.batches)
    error = refused(served, {"messages": [PLAIN], "extra_body": {"fusion": "rerank"}})
    assert error.status_code == 400 and "needs a reranker" in error.message and error.param == "fusion"
    assert len(served.model.batches) == batches


def test_max_tokens_is_an_upper_bound() -> None:
    with serving(Limits(new_tokens=3)) as served:
        answer = served.ask(noise(0), max_tokens=512)
        assert answer.choices[0].message.content == served.alone(noise(0), max_new_tokens=3)["text"]
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


@pytest.mark.parametrize("temperature", [1e-40, 9e-6])
def test_hardly_any_temperature_is_greedy(served, temperature) -> None:
    answer = served.ask(noise(4), temperature=temperature)
    assert answer.choices[0].message.content == served.alone(noise(4))["text"]


def test_no_json_and_no_model_of_that_name(served) -> None:
    assert isinstance(refused(served, {"model": "gpt-5", "messages": [PLAIN]}), openai.NotFoundError)
    request = urllib.request.Request(f"{served.url}/v1/chat/completions", b"{", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 400 and "Invalid JSON" in json.load(caught.value)["error"]["message"]


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and holds little."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", size) + block(b"IDAT", zlib.compress(b"\0" * 1000)) + block(b"IEND", b"")
    )


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"just text", "not an image of a kind that is taken here: PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not an image of a kind that is taken here"),
        (png(noise(0))[:600], "truncated or damaged"),
        (b"\x89PNG\r\n\x1a\n", "not an image of a kind that is taken here"),
        (png(noise(0, (4, 4))), "too few to describe"),
        (b"II*\0nothing", "is a TIFF"),
    ],
)
def test_bad_images_are_refused_and_harm_nobody(served, data, message) -> None:
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(served.ask, noise(6))
        error = refused(served, {"messages": [user(data_url(data))]})
    assert error.status_code == 400 and error.code == "invalid_image" and message in error.message
    assert error.param == "messages[0].content[0].image_url"
    assert good.result().choices[0].message.content == served.alone(noise(6))["text"]


@pytest.mark.parametrize("size", [(4097, 4096), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_known_before_they_are_decoded(served, size, monkeypatch) -> None:
    monkeypatch.setattr("modeling_rsmoe.serving.batching.read_image", lambda *a, **k: pytest.fail("it was decoded"))
    error = refused(served, {"messages": [user(data_url(header_of_png(*size)))]})
    assert error.status_code == 413 and error.code == "image_too_large" and str(4096 * 4096) in error.message


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_that_is_too_large(has_length) -> None:
    """With a length in its header or without: the client, which still sends, hears why."""
    with serving(Limits(body_bytes=100_000)) as served:
        assert served.ask(noise(0)).choices[0].message.content
        body = json.dumps({"model": "tiny", "messages": [user(noise(0, (1200, 1000)))]}).encode()
        pieces = iter([body[i : i + 5000] for i in range(0, len(body), 5000)])
        request = urllib.request.Request(
            f"{served.url}/v1/chat/completions", body if has_length else pieces, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert len(body) > 4_000_000 and caught.value.code == 413
        assert json.load(caught.value)["error"]["code"] == "body_too_large"
        assert served.service.in_flight == 0


def test_an_api_key() -> None:
    with serving(access=Access(api_key="secret")) as locked:
        wrong = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with pytest.raises(openai.AuthenticationError):
            wrong.chat.completions.create(model="tiny", messages=[user(noise(0, (400, 400)))])
        assert get(f"{locked.url}/v1/models")[0] == 401 and get(f"{locked.url}/health")[0] == 200
        assert [model.id for model in locked.client.models.list()] == ["tiny"]


def test_models_health_and_unknown_paths(served) -> None:
    assert served.client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("large")
    assert json.loads(get(f"{served.url}/health")[1])["status"] == "ok"
    for path in ("/v2", "/docs", "/openapi.json"):
        status, body = get(served.url + path)
        assert status == 404 and json.loads(body)["error"]["type"] == "invalid_request_error"


def test_metrics_count_what_happened() -> None:
    with serving() as served:
        served.ask(noise(0))
        list(served.ask(noise(0), stream=True))
        refused(served, {"messages": [user("nonsense")]})
        text = get(f"{served.url}/metrics")[1].decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert (
        lines['rsmoe_requests_total{status="200"}'] == "2.0" and lines['rsmoe_requests_total{status="400"}'] == "1.0"
    )
    assert lines["rsmoe_request_seconds_count"] == lines["rsmoe_batch_size_count"] == "2.0"
    assert lines["rsmoe_requests_in_flight"] == "0.0" and float(lines['rsmoe_tokens_total{kind="prompt"}']) > 100


# ---- images of other hosts


class Elsewhere(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        files = {"/tile.png": png(noise(7)), "/large.png": b"\0" * 50_000}
        self.send_response(302 if self.path == "/moved" else 200 if self.path in files else 404)
        self.send_header("Location", "/tile.png")
        self.end_headers()
        self.wfile.write(files.get(self.path, b""))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def elsewhere():
    Elsewhere.asked.clear()
    with image_host(Elsewhere) as url:
        yield url


def test_foreign_urls_are_not_fetched(served, elsewhere) -> None:
    error = refused(served, {"messages": [user(f"{elsewhere}/tile.png")]})
    assert error.status_code == 400 and error.code == "url_not_allowed" and "as a data URL" in error.message
    assert Elsewhere.asked == []


def test_allowed_hosts_are_asked_within_limits(elsewhere) -> None:
    with serving(Limits(hosts=("127.0.0.1",), body_bytes=40_000)) as served:
        answer = served.ask(f"{elsewhere}/tile.png")
        assert answer.choices[0].message.content == served.alone(noise(7))["text"]
        cases = {
            "/moved": (400, "answered 302"),
            "/none": (400, "answered 404"),
            "/large.png": (413, "more than 40000"),
        }
        for path, (status, message) in cases.items():
            error = refused(served, {"messages": [user(elsewhere + path)]})
            assert error.status_code == status and message in error.message
        assert "not fetched from localhost" in refused(served, {"messages": [user("http://localhost:1/a")]}).message
        assert "cannot be fetched" in refused(served, {"messages": [user("http://127.0.0.1:1/a.png")]}).message


# ---- failures of the model


def test_a_failure_is_an_error_and_the_next_request_is_answered(served, caplog) -> None:
    served.model.fail = RuntimeError("secret of the inside")
    error = refused(served, {"messages": [PLAIN]})
    assert isinstance(error, openai.InternalServerError) and "secret" not in error.message
    assert "secret of the inside" in caplog.text  # for the operator
    served.model.fail = torch.OutOfMemoryError("CUDA out of memory")
    error = refused(served, {"messages": [PLAIN]})
    assert error.status_code == 503 and error.response.headers["retry-after"] == "10"
    assert served.ask(noise(0)).choices[0].message.content == served.alone(noise(0))["text"]
