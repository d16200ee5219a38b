"""The demo under hostile visitors, over HTTP and without a browser: what they upload, ask and send; twenty at once."""

import json
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.inference import Checkpoint

from ..tiny import speaking_model, tiny_processor
from .test_images import EPS, HOSTILE


pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
from modeling_rsmoe.demo.page import MAX_QUESTION_CHARACTERS, launch, make_page


OPEN, ASK = 0, 6  # events, in the order in which the page connects them
API = "/gradio_api"


def png(seed: int = 0) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class Visitor:
    """Someone with a session of the page, but without its page."""

    def __init__(self, url: str, session: str = "someone") -> None:
        self.http, self._session = httpx.Client(base_url=url, timeout=60), session

    def upload(self, content: bytes, name: str = "a.png") -> str:
        answer = self.http.post(f"{API}/upload", files=[("files", (name, content))])
        return str(answer.raise_for_status().json()[0])

    def send(self, event: int, *values: Any) -> httpx.Response:
        body = {"fn_index": event, "data": list(values), "session_hash": self._session}
        return self.http.post(f"{API}/queue/join", json=body)

    def outcome(self, event: int, *values: Any) -> dict[str, Any]:
        """What the page gets last."""
        self.send(event, *values).raise_for_status()
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self._session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:") or "{}")
                if message.get("msg") == "process_completed":
                    return dict(message["output"])
        raise AssertionError("no end")

    def open(self, path: str, **more: str) -> dict[str, Any]:
        return self.outcome(OPEN, file_of(path, **more), "", "generated", "concat", False)


def file_of(path: str, **more: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = make_page(Checkpoint("tiny", speaking_model(), tiny_processor(), Path()))
        yield launch(page, "127.0.0.1", upload_limit=1)[0]
        page.close(verbose=False)


@pytest.fixture
def visitor(home: str) -> Visitor:
    return Visitor(home)


def text_of(outcome: dict[str, Any]) -> str:
    return json.dumps(outcome)


def test_an_image_is_described(visitor: Visitor) -> None:
    assert "rsmoe-prediction" in text_of(visitor.open(visitor.upload(png())))


@pytest.mark.parametrize("name", [*HOSTILE, "EPS"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_hostile_uploads_are_answered_in_one_sentence(name: str, ending: str, visitor: Visitor) -> None:
    path = visitor.upload(HOSTILE.get(name, EPS), f"a.{ending}")
    outcome = text_of(visitor.open(path))
    assert "rsmoe-message" in outcome and f"a.{ending}" in outcome
    assert str(Path(path).parent) not in outcome and "Traceback" not in outcome


@pytest.mark.parametrize(
    "name",
    ["../../../../evil.png", "/etc/evil.png", "a\0b.png", "x" * 400 + ".png", "<img src=x onerror=alert(1)>.png"],
)
def test_names_of_uploads_lead_nowhere(name: str, visitor: Visitor, home: str) -> None:
    folder, path = Path(visitor.upload(png())).parents[1], Path(visitor.upload(png(), name))
    assert path.is_relative_to(folder) and ".." not in path.parts
    outcome = text_of(visitor.open(str(path)))
    assert "rsmoe-prediction" in outcome and "<img src=x" not in outcome


def test_too_large_an_upload(visitor: Visitor) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        visitor.upload(bytes(2_000_000))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "/dev/zero", "/proc/self/environ"])
def test_files_of_the_machine_are_not_read(path: str, visitor: Visitor) -> None:
    outcome = visitor.open(path)
    assert "error" in outcome and "rsmoe-prediction" not in text_of(outcome)
    assert visitor.http.get(f"{API}/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("url", ["http://example.com/a.png", "https://huggingface.co/a.png", " http://127.0.0.1:9/"])
def test_the_server_fetches_nothing_for_visitors(url: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **options: object) -> None:
        pytest.fail("it was fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", fetch)
    answer = visitor.send(OPEN, file_of(url), "", "generated", "concat", False)
    assert answer.status_code == 400 and "a URL is no upload" in answer.text
    values = [[{"deep": [file_of(url)]}], "", "generated", "concat", False]
    assert visitor.send(OPEN, *values).status_code == 400
    body = {"fn_index": OPEN, "data": values, "session_hash": "a"}
    assert visitor.http.post(f"{API}/run/predict", json=body).status_code == 400
    escaped = json.dumps({"fn_index": OPEN, "data": [file_of(url)], "session_hash": "a"}).replace("h", "\\u0068")
    assert visitor.http.post(f"{API}/queue/join", content=escaped).status_code == 400
    for address in (f"{API}/file={url.strip()}", f"{API}/proxy={url.strip()}", f"/file={url.strip()}"):
        assert visitor.http.get(address).status_code == 404
    assert visitor.http.post(f"{API}/process_recording").status_code == 404


def test_long_questions_and_large_events(visitor: Visitor) -> None:
    visitor.open(visitor.upload(png()))
    outcome = visitor.outcome(ASK, "why " * MAX_QUESTION_CHARACTERS, None, "generated", "concat")
    assert f"more than {MAX_QUESTION_CHARACTERS} characters" in text_of(outcome)
    assert visitor.send(ASK, "a" * 2**20, None, "generated", "concat").status_code == 413


@pytest.mark.parametrize("values", [[], [5, 5, 5, 5], [None], [{}, {}, {}, {}], ["a"] * 100])
def test_events_of_other_shapes(values: list[Any], visitor: Visitor) -> None:
    answer = visitor.outcome(OPEN, *values)
    assert "Traceback" not in text_of(answer)
    assert "rsmoe-prediction" in text_of(visitor.open(visitor.upload(png())))


@pytest.mark.slow
def test_twenty_at_once(home: str) -> None:
    """Everyone gets the caption that they would get alone."""
    alone = Visitor(home, "alone")
    expected = [caption_of(alone.open(alone.upload(png(seed)))) for seed in range(4)]
    found: dict[int, str] = {}

    def visit(number: int) -> None:
        someone = Visitor(home, f"visitor{number}")
        found[number] = caption_of(someone.open(someone.upload(png(number % 4))))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: expected[number % 4] for number in range(20)}


def caption_of(outcome: dict[str, Any]) -> str:
    return text_of(outcome).partition('class=\\"rsmoe-text\\">')[2].partition("<")[0]
