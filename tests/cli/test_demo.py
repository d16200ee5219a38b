"""`rsmoe demo` as a process: it opens, serves, refuses what it cannot do, and Ctrl-C ends it. The model is tiny."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import Checkpoint
from tests.cli.test_cli import errors, run


# Not imported here: it takes seconds, and most tests of a run are of other files.
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
pytestmark = pytest.mark.skipif(not HAS_GRADIO, reason='no gradio here: pip install "rsmoe[demo]"')


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_opens_serves_and_ends(checkpoint: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    # A proxy that does not answer: what the page needs of its own machine must not go there.
    environment = {
        **os.environ,
        "TMPDIR": str(work),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "modeling_rsmoe.cli", "demo", "--model", str(checkpoint), "--no-examples"]
    command += ["--dtype", "bfloat16"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    try:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        found = re.fullmatch(r"rsmoe demo: (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops it\)\n", line)
        assert found, line or process.stderr.read()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        page = opener.open(found[1], timeout=60).read().decode()
        assert "RS-MoE: tiny" in page and str(tmp_path) not in page
        theme = opener.open(f"{found[1]}theme.css", timeout=60).read().decode()
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", theme)  # no fonts of others
        assert [path.name.startswith("rsmoe-demo-") for path in work.iterdir()].count(True) == 1
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "rsmoe: interrupted" and "Traceback" not in stderr
    assert not [path for path in work.iterdir() if path.name.startswith("rsmoe-demo-")]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the page would have been launched with; neither a model nor a page is made."""
    calls: list[dict[str, Any]] = []

    class Page:
        def close(self, verbose: bool) -> None:
            calls.append({"closed": True})

    def launch(page: Any, host: str, port: int | None, share: bool, upload_limit: int) -> tuple[str, str | None]:
        calls.append({"host": host, "port": port, "share": share, "upload_limit": upload_limit})
        return "http://here/", "https://there/" if share else None

    module = importlib.import_module("modeling_rsmoe.cli.demo")
    nothing: Any = None
    monkeypatch.setattr(
        module, "load", lambda *arguments, **options: Checkpoint("owner/name", nothing, nothing, Path())
    )
    monkeypatch.setattr(
        "modeling_rsmoe.demo.page.make_page", lambda checkpoint, tiles: calls.append({"tiles": tiles}) or Page()
    )
    monkeypatch.setattr("modeling_rsmoe.demo.page.launch", launch)
    monkeypatch.setattr(module, "_wait", lambda: None)
    for name in ("NO_PROXY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # set back afterwards
    return calls


def test_by_default_nobody_else_gets_in(opened: list[dict[str, Any]]) -> None:
    result = run("demo", "--no-examples")
    assert result.exit_code == 0 and result.stdout == "rsmoe demo: http://here/ (Ctrl-C stops it)\n"
    launched = {"host": "127.0.0.1", "port": None, "share": False, "upload_limit": 200}
    assert opened == [{"tiles": []}, launched, {"closed": True}]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    opened.clear()
    options = ("--host", "0.0.0.0", "--port", 8000, "--share", "--upload-limit", 5)
    assert "http://here/ and https://there/" in run("demo", "--no-examples", *options).stdout
    assert opened[1] == {"host": "0.0.0.0", "port": 8000, "share": True, "upload_limit": 5}


def test_without_a_connection_there_are_no_examples(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(progress: Any) -> None:
        raise RSMoEError("no connection to the package index")

    monkeypatch.setattr("modeling_rsmoe.hub.download.demo_images", unreachable)
    result = run("demo")
    assert result.exit_code == 0 and opened[0] == {"tiles": []}
    assert "rsmoe: note: no example images: no connection to the package index" in result.stderr


def test_a_port_that_is_taken() -> None:
    import gradio

    from modeling_rsmoe.demo.page import launch

    with socket.create_server(("127.0.0.1", 0)) as taken, gradio.Blocks() as page:
        port = taken.getsockname()[1]
        with pytest.raises(
            RSMoEError, match=f"cannot listen at port {port} of 127.0.0.1: give another --port or --host"
        ):
            launch(page, "127.0.0.1", port)


def test_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "65535" in errors(run("demo", "--port", 70000))[0]
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'this needs gradio, which is not installed: pip install "rsmoe[demo]"' in errors(run("demo"))[0]
