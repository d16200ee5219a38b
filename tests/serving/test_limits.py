"""What hostile requests may cost: bodies that are all structure, uploads and image hosts that stall, one client that
takes all places, prompts that nobody waits for."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from threading import Event
from urllib.parse import urlsplit

import openai
import pytest
from pydantic import ValidationError
from starlette.types import Message

from modeling_rsmoe.serving import chat, images
from modeling_rsmoe.serving.app import _Stream
from modeling_rsmoe.serving.chat import MAX_JSON_BYTES, ChatRequest, parse_body
from modeling_rsmoe.serving.errors import ApiError
from modeling_rsmoe.serving.limits import Limits

from .conftest import Served, image_host, noise, serving, user
from .test_batching import ask_all, post


# ---- bodies


def body(messages: bytes, more: bytes = b"") -> bytes:
    return b'{"model": "tiny", "messages": ' + messages + more + b"}"


LARGE, SMALL = 15 * 2**20, MAX_JSON_BYTES - 200
GOOD = b'[{"role": "user", "content": "Describe."}]'


@pytest.mark.parametrize(
    "hostile",
    [
        body(b"[" + b"1," * (LARGE // 2) + b"1]"),
        body(b"[" * LARGE),
        body(GOOD, b"".join(b',"%x":1' % i for i in range(LARGE // 10))),
        body(GOOD, b',"seed":' + b"9" * LARGE),
        body(b'["' + b"a" * LARGE + b'"]'),
        body(b'["\\"data:' + b"a" * LARGE + b'\\"data:' + b"1,2" * MAX_JSON_BYTES + b'"]'),
    ],
    ids=["items", "depth", "keys", "digits", "text", "data URLs within a text"],
)
def test_much_json_is_refused_before_it_is_parsed(hostile, monkeypatch) -> None:
    monkeypatch.setattr(ChatRequest, "model_validate_json", lambda *a: pytest.fail("it was parsed"))
    with pytest.raises(ApiError, match="bytes beside the data URLs of images") as caught:
        parse_body(hostile)
    assert caught.value.status == 413 and len(caught.value.message) < 300


def test_images_are_no_json() -> None:
    """They may be large and several, also as PHP writes them."""
    url = "data:image/png;base64," + "iVBORw0KGgo/" * 2**16
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    text = json.dumps({"model": "tiny", "messages": [message] * 10})
    assert len(text) > 2**22
    for written in (text, text.replace("/", "\\/")):
        assert parse_body(written.encode()).messages[-1].content[0].image_url.url == url


@pytest.mark.parametrize(
    ("hostile", "place"),
    [
        (body(b"[" + b"1," * (SMALL // 2) + b"1]"), "messages[0]"),
        (body(b'[{"role": "user", "content": [' + b"1," * (SMALL // 2) + b"1]}]"), "messages[0].content[0]"),
        (body(b"[" * (SMALL // 2) + b"]" * (SMALL // 2)), None),
        (body(GOOD, b"".join(b',"%x":1' % i for i in range(SMALL // 10))), "0"),
        (body(GOOD, b',"seed":' + b"9" * SMALL), None),
        (body(GOOD, b',"temperature":' + b"9" * 4000), "temperature"),
        (body(GOOD, b',"user":"\\ud800"'), None),
        (body(b'[{"role": "' + b"a" * SMALL + b'"}]'), "messages[0].role"),
        (body(b'[{"role": "user", "content": [{"type": "' + b"a" * SMALL + b'"}]}]'), "messages[0].content[0]"),
        (body(b'[{"role": "user", "content": [{"type": "data:' + b"a" * LARGE + b'"}]}]'), "messages[0].content[0]"),
        (body(GOOD, b',"data:' + b"a" * LARGE + b'":1'), "data:" + "a" * 195 + "..."),
        (b"1", None),
        (b"", None),
        (b"\xff\xfe{", None),
    ],
    ids=["items", "parts", "depth", "keys", "digits", "number", "surrogate", "role", "type", "long type", "long key"]
    + ["no object", "nothing", "no text"],
)
def test_the_first_error_ends_it(hostile, place, monkeypatch) -> None:
    counts = []
    validate = ChatRequest.model_validate_json

    def counting(body):
        try:
            return validate(body)
        except ValidationError as error:
            counts.append(error.error_count())
            raise

    monkeypatch.setattr(ChatRequest, "model_validate_json", counting)
    with pytest.raises(ApiError) as caught:
        parse_body(hostile)
    assert caught.value.status == 400 and caught.value.param == place and len(caught.value.message) < 400
    assert all(count <= 2 for count in counts)  # a text, or a list: of one union each branch is an error


def test_the_last_of_two_keys_counts() -> None:
    assert parse_body(body(GOOD, b', "model": "other"')).model == "other"


# ---- bodies and images that do not arrive


def half_open(served: Served, count: int, sent: int = 1000, length: int = 1_000_000) -> list[socket.socket]:
    """Requests that say they send so many bytes, and stop after some of them."""
    address = urlsplit(served.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    sockets = []
    for _ in range(count):
        opened = socket.create_connection((address.hostname, address.port), timeout=30)
        opened.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % length + b" " * sent)
        sockets.append(opened)
    served.until(lambda: served.service.arrivals.num_bytes == count * sent)
    return sockets


def test_uploads_that_stall_take_no_place() -> None:
    with serving(Limits(requests=4, stall_seconds=3600)) as served:
        stalled = half_open(served, 12)
        assert served.service.in_flight == 0
        assert served.ask(noise(0)).choices[0].message.content == served.alone(noise(0))["text"]
        for opened in stalled:
            opened.close()
        served.until(lambda: served.service.arrivals.num_bytes == 0)
        assert not served.service.clients


def test_uploads_that_stall_are_ended() -> None:
    with serving(Limits(stall_seconds=0.2)) as served:
        (stalled,) = half_open(served, 1)
        with closing(stalled), stalled.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 408 ")
    assert served.service.arrivals.num_bytes == 0


def test_a_slow_upload_is_taken() -> None:
    """Its pieces come more often than the limit for pauses."""
    with serving(Limits(stall_seconds=3600)) as served:
        request = json.dumps({"model": "tiny", "messages": [user(noise(0), "Describe.")]}).encode()
        (slow,) = half_open(served, 1, sent=10, length=10 + len(request))
        with closing(slow), slow.makefile("rb") as answer:
            for start in range(0, len(request), 700):
                slow.sendall(request[start : start + 700])
            assert answer.readline().startswith(b"HTTP/1.1 200 ")


def test_all_that_arrives_is_bounded() -> None:
    with serving(Limits(requests=1, body_bytes=1_000_000)) as served:
        stalled = half_open(served, 1, sent=999_000)
        with pytest.raises(openai.RateLimitError) as caught:
            served.ask(noise(0))
        assert caught.value.code == "queue_full"
        stalled[0].close()


class Slow(BaseHTTPRequestHandler):
    """A host of images that sends the beginning of one, and the rest when it may."""

    go = Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"\x89PNG")
        self.wfile.flush()
        self.go.wait(60)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def slow_host():
    Slow.go.clear()
    with image_host(Slow) as url:
        yield f"{url}/tile.png"
        Slow.go.set()


def test_a_slow_image_host_takes_no_place(slow_host) -> None:
    with serving(Limits(requests=2, hosts=("127.0.0.1",))) as served, ThreadPoolExecutor(5) as pool:
        slow = [pool.submit(served.ask, slow_host) for _ in range(5)]
        served.until(lambda: served.service.arrivals.num_bytes == 5 * 4)
        assert served.service.in_flight == 0
        assert served.ask(noise(0)).choices[0].message.content == served.alone(noise(0))["text"]
        Slow.go.set()
        for request in slow:
            with pytest.raises(openai.BadRequestError, match="truncated or damaged|not an image"):
                request.result()


@pytest.mark.parametrize("limits", [{"seconds": 1.0}, {"stall_seconds": 0.2}], ids=str)
def test_fetching_is_timed(slow_host, limits) -> None:
    with serving(Limits(hosts=("127.0.0.1",), **limits)) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            served.ask(slow_host)
        assert caught.value.code == "invalid_image_url" and caught.value.param == "messages[0].content[0].image_url"


def test_a_client_that_leaves_ends_its_fetching(slow_host) -> None:
    with serving(Limits(hosts=("127.0.0.1",))) as served:
        connection = post(served, messages=[user(slow_host)])
        served.until(lambda: served.service.arrivals.num_bytes == 4)
        connection.close()
        served.until(lambda: served.service.arrivals.num_bytes == 0 and not served.service.clients)


# ---- shares and prompts


def test_one_address_has_a_share_of_the_queue() -> None:
    """As a proxy tells it. This machine's own addresses have no share: all its users have them."""
    far = {"extra_headers": {"X-Forwarded-For": "203.0.113.7"}}
    with serving(Limits(batch_size=4, requests=6)) as served, ThreadPoolExecutor(6) as pool:
        served.model.go.clear()
        answers = ask_all(served, pool, [{"image": noise(i), **far} for i in range(3)])
        with pytest.raises(openai.RateLimitError, match="3 requests of 203.0.113.7") as caught:
            served.ask(noise(3), **far)
        assert caught.value.code == "client_queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        answers += ask_all(served, pool, [{"image": noise(3), "extra_headers": {"X-Forwarded-For": "203.0.113.8"}}])
        answers += ask_all(served, pool, [{"image": noise(i)} for i in (4, 5)])
        served.model.go.set()
        assert all(answer.result().choices[0].message.content for answer in answers)
        assert served.ask(noise(3), **far, stream=True)
        served.until(lambda: not served.service.clients)


def test_a_waiting_request_keeps_no_second_copy_of_its_image(monkeypatch) -> None:
    """Nothing holds on to the data URL once it is decoded."""
    urls = []
    bytes_of = images.bytes_of
    monkeypatch.setattr(images, "bytes_of", lambda url, *more: (urls.append(url), bytes_of(url, *more))[1])
    with serving() as served, ThreadPoolExecutor(1) as pool:
        served.model.go.clear()
        answer = pool.submit(served.ask, noise(0))
        served.until(lambda: bool(served.model.batches))
        references = sys.getrefcount(urls[0])
        assert references == 2  # of the list, and of the call
        served.model.go.set()
        assert answer.result().choices[0].message.content


def test_letters_are_limited_before_tokens_are_counted(served, monkeypatch) -> None:
    monkeypatch.setattr(served.service.batcher, "check", lambda request: pytest.fail("it was tokenised"))
    with pytest.raises(openai.BadRequestError) as caught:
        served.ask(noise(0), "a" * (chat.MAX_CHARACTERS + 1))
    assert caught.value.code == "context_length_exceeded"


def test_who_reads_no_stream_is_left() -> None:
    """The place in the queue is given back, as of a text that takes too long."""
    ended = []

    async def events() -> AsyncIterator[bytes]:
        yield b"data: a\n\n"

    async def run() -> None:
        async def send(message: Message) -> None:
            await asyncio.Event().wait()

        stream = _Stream(events(), lambda: ended.append(True), asyncio.get_running_loop().time() + 0.1)
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        await asyncio.wait_for(stream(scope, asyncio.Event().wait, send), 30)  # type: ignore[arg-type]

    asyncio.run(run())
    assert ended == [True]
