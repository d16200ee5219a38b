"""A server of the tiny model in a thread of the test's own process, and its clients."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import uvicorn
from openai import OpenAI
from PIL import Image

from modeling_rsmoe.serving.access import Access
from modeling_rsmoe.serving.app import Service, build_app
from modeling_rsmoe.serving.limits import Limits
from modeling_rsmoe.serving.server import take_address

from ..tiny import tiny_config, tiny_model, tiny_processor


def noise(seed: int, size: tuple[int, int] = (40, 50)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def data_url(image: Image.Image | bytes, kind: str = "PNG") -> str:
    if not isinstance(image, bytes):
        file = io.BytesIO()
        image.save(file, kind)
        image = file.getvalue()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(image).decode()}"


def user(image: Any = None, text: str | None = None) -> dict[str, Any]:
    """A user message; `image` is an image or a URL."""
    url = image if isinstance(image, str) or image is None else data_url(image)
    content: list[dict[str, Any]] = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": content + ([] if text is None else [{"type": "text", "text": text}])}


class Held:
    """The tiny model, whose `generate` waits until it may go on, and notes what it was asked."""

    def __init__(self, model: Any):
        self.model, self.go, self.batches = model, threading.Event(), []
        self.fail: Exception | None = None
        self.go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, **arguments: Any) -> Any:
        self.batches.append(len(arguments["input_ids"]))
        assert self.go.wait(60)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return self.model.generate(**arguments)


@dataclass
class Served:
    url: str
    service: Service
    model: Held
    processor: Any

    @cached_property  # making one costs more than a request
    def client(self) -> OpenAI:
        key = self.service.access.api_key or "none"
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, image: Any, text: str = "Describe.", **more: Any) -> Any:
        return self.client.chat.completions.create(model="tiny", messages=[user(image, text)], **more)

    def alone(self, image: Any, text: str = "Describe.", **more: Any) -> dict[str, Any]:
        """What the model says of this image alone, without a server."""
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        outputs = self.model.model.generate(**inputs, return_dict_in_generate=True, **more)
        return self.processor.post_process_generation(outputs)[0]

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)


@contextmanager
def serving(
    limits: Limits | None = None,
    access: Access | None = None,
    checkpoint: tuple[Any, Any] | None = None,
    **config: Any,
) -> Iterator[Served]:
    """The server; `checkpoint`: a model and its processor, else tiny ones, whose configuration `config` changes."""
    plain, processor = checkpoint or (tiny_model(config=tiny_config(**config)), tiny_processor())
    model = Held(plain)
    service = Service(model, processor, "tiny", limits, access)
    listening = take_address("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", service, model, processor)
        served.until(lambda: service.batcher.is_running)
        yield served
    finally:
        model.go.set()
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def image_host(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of another server, of images."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """With the limits that `rsmoe serve` has by default."""
    with serving() as server:
        yield server


__all__ = ["Served", "data_url", "image_host", "noise", "serving", "user"]
