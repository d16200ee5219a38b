"""`rsmoe serve` as a process: it starts, answers, and ends in order."""

import http.client
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import openai
import pytest
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.utils import extras

from ..forks import Forked
from ..serving.conftest import noise, user


@pytest.fixture
def server(checkpoint):
    """The process, and the address that it printed."""
    command = ["-c", "from modeling_rsmoe.cli import main; main()", "serve", "--model", checkpoint]
    environment = {**os.environ, "RSMOE_API_KEY": "secret", "CUDA_VISIBLE_DEVICES": ""}
    process = Forked([*command, "--port", 0, "--timeout", 60, "--dtype", "float32"], environment)
    try:
        while not (found := re.search(r"serving tiny at (http://127.0.0.1:\d+)/v1", process.read())):
            assert process.poll() is None, process.read()
            time.sleep(0.02)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def after_start(said: str) -> list[str]:
    """The lines after the one with the address."""
    return said.partition("serving tiny at ")[2].splitlines()[1:]


def in_flight(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
        return json.load(answer)["in_flight"]


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight(server) -> None:
    process, url = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0, timeout=60)

    def ask(index: int) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=[user(noise(index), "Describe.")], max_tokens=60
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        texts = [pool.submit(ask, index) for index in range(12)]  # a batch and a half
        end = time.monotonic() + 30
        while in_flight(url) < 12 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert all(text.result() for text in texts)
    done = process.wait(30)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    with pytest.raises(urllib.error.URLError):
        in_flight(url)


@pytest.mark.slow
def test_ctrl_c_is_an_interruption(server) -> None:
    process, url = server
    assert in_flight(url) == 0
    process.send_signal(signal.SIGINT)
    done = process.wait(30)
    assert done.returncode == 130 and after_start(done.stderr) == ["rsmoe: interrupted"]


@pytest.mark.slow
def test_ctrl_c_twice_does_not_wait(server) -> None:
    """The first finishes what is in flight, the second ends at once, in one line."""
    process, url = server
    content = {"model": "tiny", "messages": [user(noise(0), "Describe.")], "max_tokens": 256, "num_beams": 8}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
    address = urlsplit(url).netloc
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(content), headers)
        until = time.monotonic() + 60
        while not in_flight(url):
            assert time.monotonic() < until, "the request was over before it was seen, or never began"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        # Refused, or cut off where the server closed while it was asked.
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            while True:
                in_flight(url)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        done = process.wait(30)
        assert done.returncode == 130 and after_start(done.stderr) == ["rsmoe: interrupted"]
        with pytest.raises(ConnectionError):
            connection.getresponse()


@pytest.mark.slow
def test_a_loopback_address_has_its_own_names_alone(server) -> None:
    _, url = server
    request = urllib.request.Request(f"{url}/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["serve", *arguments], catch_exceptions=False, prog_name="rsmoe")
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    return line


def test_bad_addresses_are_refused_before_the_model_is_loaded(monkeypatch) -> None:
    monkeypatch.setattr(
        "modeling_rsmoe.cli.serve.load", lambda *arguments, **options: pytest.fail("the model was loaded")
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen at 127.0.0.1:{port}" in refused("--port", port)
    assert "cannot listen at 192.0.2.1:8000" in refused("--host", "192.0.2.1")
    assert "less than or equal to 65535" in refused("--port", "70000")
    assert "'example.org' is no origin: give one such as https://" in refused("--port", "0", "--cors", "example.org")
    name = "https://example.org"
    assert f"'{name}' is no host name: give one such as" in refused("--port", "0", "--server-name", name)


def test_a_missing_library_names_its_extra(monkeypatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    assert 'pip install "rsmoe[serve]"' in refused()


def test_help_tells_the_limits() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"], prog_name="rsmoe").stdout
    limits = ("--batch-size", "--queue", "--timeout", "--max-body", "--max-pixels", "--max-new-tokens", "--allow-host")
    limits += ("--client-share", "--server-name", "--cors")
    assert all(option in text for option in ("--host", "--port", *limits))
    assert "127.0.0.1" in text
