"""A server of many small requests: of random shapes, right, wrong and left half-way, of eight clients at once."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.serving.body import LINGER_SECONDS

from ..serving.conftest import data_url, user


NUM_REQUESTS = int(os.environ.get("RSMOE_SOAK_REQUESTS", "400"))
NUM_CLIENTS = 8
KINDS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM")
TEXTS = (None, "Describe.", "How many planes are there?", "\u98db\u884c\u5834" * 9, "a\0b", "why " * 40)
WRONG: tuple[dict[str, Any], ...] = (
    {"model": "other"},
    {"messages": []},
    {"n": 2},
    {"temperature": -1},
    {"num_beams": 10**9},
    {"messages": [user("data:image/png;base64,AAAA", "Describe.")]},
    {"messages": [user("http://127.0.0.1:9/a.png", "Describe.")]},
    {"messages": [user(data_url(b"\x89PNG\r\n\x1a\n" + bytes(99)), "Describe.")]},
)


class Server:
    """`rsmoe serve` in a process of its own, whose memory and files are counted."""

    def __init__(self, checkpoint: Path):
        command = (sys.executable, "-m", "modeling_rsmoe.cli", "serve", "--port", "0", "--batch-wait", "1")
        command += ("--model", str(checkpoint))
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = next(found[1] for line in self.process.stderr if (found := re.search(r"(http://\S+)/v1", line)))

    @property
    def num_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def num_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def serving(checkpoint: Path) -> Iterator[Server]:
    server = Server(checkpoint)
    try:
        yield server
    finally:
        server.process.terminate()
        _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0 and "Traceback" not in errors, errors[-2000:]


class Client:
    """Requests of random shapes, the same ones for the same seed."""

    def __init__(self, url: str, seed: int):
        self.random, self.seen = random.Random(seed), Counter[str]()
        self.http = httpx.Client(base_url=url, timeout=60)
        self.actions = (self.ask, self.ask, self.stream, self.leave, self.go_wrong, self.stop)

    def run(self, num_requests: int) -> None:
        for _ in range(num_requests):
            self.random.choice(self.actions)()

    def body(self, **more: Any) -> dict[str, Any]:
        choose = self.random.choice
        size = (self.random.randint(8, 100), self.random.randint(8, 100))
        pixels = np.random.default_rng(self.random.randrange(2**32)).integers(0, 256, (*size, 3), np.uint8)
        message = user(data_url(Image.fromarray(pixels), choose(KINDS)), choose(TEXTS))
        settings: dict[str, Any] = {
            "max_tokens": choose((1, 4)),
            "router_mode": choose(("template",) * 9 + ("generated",)),
        }
        settings |= choose(({},) * 9 + ({"num_beams": 2}, {"temperature": 0.5, "seed": 7}, {"fusion": "concat"}))
        return {"model": "tiny", "messages": [message], **settings, **more}

    def post(self, expected: int, **request: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/chat/completions", **request)
        assert answer.status_code == expected, (answer.status_code, answer.text)
        return dict(answer.json())

    def ask(self) -> None:
        assert self.post(200, json=self.body())["choices"][0]["finish_reason"]
        self.seen["answered"] += 1

    def stream(self) -> None:
        with self.http.stream("POST", "/v1/chat/completions", json=self.body(stream=True)) as answer:
            assert answer.status_code == 200 and [*answer.iter_lines()][-2] == "data: [DONE]"
        self.seen["streamed"] += 1

    def leave(self) -> None:
        """A stream is left at its first piece, or before."""
        try:
            options = {"json": self.body(stream=True), "timeout": self.random.choice((0.01, 0.1, 60))}
            with self.http.stream("POST", "/v1/chat/completions", **options) as answer:
                next(answer.iter_bytes(), b"")
        except httpx.TimeoutException:
            pass
        self.seen["left"] += 1

    def go_wrong(self) -> None:
        wrong = self.random.choice(WRONG)
        self.post(404 if "model" in wrong else 400, json=self.body(**wrong))
        self.seen["refused"] += 1

    def stop(self) -> None:
        """A body that ends too early, or is cut and sent whole."""
        body = json.dumps(self.body()).encode()
        part = body[: self.random.randrange(len(body))]
        headers = {"Content-Type": "application/json"}
        if self.random.random() < 0.5:
            self.post(400, content=part, headers=headers)
        else:
            with pytest.raises(httpx.TransportError):
                self.post(400, content=_broken_off(part), headers={**headers, "Content-Length": str(len(body))})
        self.seen["broken off"] += 1


def _broken_off(content: bytes) -> Iterator[bytes]:
    yield content
    raise httpx.WriteError("the client dies")


def soak(server: Server, num_requests: int, seed: int) -> Counter[str]:
    """What happened to so many requests of all clients."""
    clients = [Client(server.url, seed + number) for number in range(NUM_CLIENTS)]
    failures: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            client.run(num_requests // NUM_CLIENTS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.http.close()
    if failures:
        raise failures[0]
    return sum((client.seen for client in clients), Counter[str]())


@pytest.mark.attack
def test_nothing_grows(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signal.setitimer(signal.ITIMER_PROF, 60 + NUM_REQUESTS // 2)
    signal.alarm(2 * (60 + NUM_REQUESTS // 2))
    with serving(checkpoint) as server:
        soak(server, 400, seed=0)
        files, memory = idle(server)
        seen = soak(server, NUM_REQUESTS, seed=1000)
        files_after, memory_after = idle(server)
    with capsys.disabled():
        print(f"\n{dict(seen)}; files {files}, {files_after}; MB {memory >> 20}, {memory_after >> 20}")
    assert sum(seen.values()) == NUM_REQUESTS // NUM_CLIENTS * NUM_CLIENTS
    assert files_after <= files and memory_after < memory + 64 * 2**20


def idle(server: Server) -> tuple[int, int]:
    """Open files and memory when broken off requests are read no more."""
    time.sleep(LINGER_SECONDS + 2)
    return server.num_files, server.num_bytes
