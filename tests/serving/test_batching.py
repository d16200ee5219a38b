"""Many at once: who shares a batch, who is refused, who is forgotten, and that nothing is lost or mixed up."""

import http.client
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from modeling_rsmoe.serving.limits import Limits

from .conftest import Served, noise, serving, user


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def held():
    """A server whose model stands still at first, so that requests gather."""
    with serving(Limits(batch_size=4, requests=12)) as served:
        served.model.go.clear()
        yield served


def ask_all(served: Served, pool: ThreadPoolExecutor, asked: list[dict]) -> list:
    """One request after the other reaches the queue, in this order."""
    answers = []
    for arguments in asked:
        count = served.service.in_flight
        answers.append(pool.submit(served.ask, **arguments))
        served.until(lambda count=count: served.service.in_flight > count)
    busy = 1 if served.model.batches else 0
    served.until(lambda: served.service.batcher.num_waiting + sum(served.model.batches) >= len(asked) and busy <= 1)
    return answers


@pytest.mark.slow
def test_requests_that_decode_alike_share_a_batch(held) -> None:
    template = {"router_mode": "template"}
    asked = [
        {"image": noise(0)},  # runs alone at once, and holds the model
        {"image": noise(1), "text": "Describe it."},
        {"image": noise(2), "extra_body": template},
        {"image": noise(3), "text": "Describe this image."},
        {"image": noise(4), "temperature": 1.0, "seed": 5},
        {"image": noise(5), "temperature": 1.0, "seed": 5},
        {"image": noise(6), "max_tokens": 3},
        {"image": noise(7), "extra_body": template},
        {"image": noise(8)},
        {"image": noise(9), "seed": 7},  # greedy: the seed means nothing
        {"image": noise(10)},
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = ask_all(held, pool, asked[:1])
        held.until(lambda: held.model.batches == [1])
        answers += ask_all(held, pool, asked[1:])
        held.model.go.set()
        texts = [answer.result().choices[0].message.content for answer in answers]
    # 0 alone; 1, 3, 8, 9 (four are a batch); 2, 7; 4; 5; 6; 10
    assert held.model.batches == [1, 4, 2, 1, 1, 1, 1]
    for arguments, text in zip(asked, texts):
        if "temperature" not in arguments:
            given = {**arguments, **arguments.pop("extra_body", {})}
            more = {"max_new_tokens": given["max_tokens"]} if "max_tokens" in given else {}
            more |= {"router_mode": "template"} if "router_mode" in given else {}
            assert text == held.alone(given["image"], given.get("text", "Describe."), **more)["text"]
    again = held.ask(noise(4), temperature=1.0, seed=5).choices[0].message.content
    assert texts[4] == again  # as at the first time, whatever ran between


def test_streams_of_one_batch_are_kept_apart(held) -> None:
    def stream(index: int) -> str:
        body = {"fusion": "rewrite", "router_mode": "template"}
        chunks = held.ask(noise(index), max_tokens=12, stream=True, extra_body=body)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(held.ask, noise(9))
        held.until(lambda: held.model.batches == [1])
        streams = [pool.submit(stream, index) for index in range(3)]
        held.until(lambda: held.service.batcher.num_waiting == 3)
        held.model.go.set()
        assert first.result().choices[0].message.content
        texts = [text.result() for text in streams]
    asked = {"max_new_tokens": 12, "router_mode": "template", "fusion": "rewrite"}
    held.until(lambda: held.service.in_flight == 0)  # the last bytes may arrive before the service counts down
    assert held.model.batches == [1, 3]
    assert texts == [held.alone(noise(i), **asked)["text"] for i in range(3)] and len(set(texts)) == 3


def test_streams_share_a_batch_with_their_task_only(held) -> None:
    """Else the captions of a model with a reranker would keep the answers beside them from growing token by token."""
    texts = ["Describe the image.", "How many planes?", "Is there a road?", "Describe this image."]
    asked = [{"image": noise(i), "text": text, "stream": text == "How many planes?"} for i, text in enumerate(texts)]
    with ThreadPoolExecutor(5) as pool:
        answers = ask_all(held, pool, [{"image": noise(9)}])
        held.until(lambda: held.model.batches == [1])
        answers += ask_all(held, pool, asked)
        held.model.go.set()
        for answer in answers:
            answer.result()
    held.until(lambda: held.service.in_flight == 0)
    # the two captions with the question that is not streamed, then the streamed one
    assert held.model.batches == [1, 3, 1]


@pytest.mark.slow
def test_a_full_queue_is_said_at_once(held) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = ask_all(held, pool, [{"image": noise(i)} for i in range(12)])
        (first,) = held.model.batches  # of as many as had come together
        for image in (noise(12), noise(12, (900, 900))):  # also where the body is longer than what sockets hold
            with pytest.raises(openai.RateLimitError) as caught:
                held.ask(image)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert caught.value.code == "queue_full"
            assert held.model.batches == [first] and not held.model.go.is_set()  # nothing had to end before
        held.model.go.set()
        texts = [answer.result().choices[0].message.content for answer in answers]
        assert texts == [held.alone(noise(i))["text"] for i in range(12)] and len(set(texts)) > 6
    assert held.ask(noise(12)).choices[0].message.content == held.alone(noise(12))["text"]


def test_time_is_limited_and_late_work_is_dropped() -> None:
    with serving(Limits(batch_size=1)) as served:
        assert served.ask(noise(0)).choices[0].message.content
        served.service.limits = Limits(seconds=1.0, batch_size=1)
        served.model.go.clear()
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(served.ask, noise(i), stream=bool(i % 2)) for i in range(3)]
            for request in late:
                with pytest.raises(openai.InternalServerError) as caught:
                    request.result()
                assert caught.value.status_code == 503 and caught.value.code == "timeout"
                assert "no answer within 1 seconds" in caught.value.message
                assert int(caught.value.response.headers["retry-after"]) >= 1
        assert served.service.in_flight == 0
        served.model.go.set()
        served.until(lambda: served.service.batcher.num_waiting == 0)
        assert served.model.batches == [1, 1]  # the one that ran; those that waited never did
        served.service.limits = Limits(batch_size=1)
        assert served.ask(noise(3)).choices[0].message.content == served.alone(noise(3))["text"]


def post(served: Served, **more) -> http.client.HTTPConnection:
    """A request on a connection of its own, not waited for."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)
    body = json.dumps({"model": "tiny", "messages": [user(noise(0), "Describe.")], **more})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def test_clients_that_leave_are_forgotten(held) -> None:
    runs, waits = post(held, max_tokens=256), post(held, stream=True)
    held.until(lambda: held.model.batches and sum(held.model.batches) + held.service.batcher.num_waiting == 2)
    for connection in (runs, waits):
        connection.close()
    held.until(lambda: held.service.in_flight == 0)
    steps, ran = [], len(held.model.batches)
    held.model.lm_head.register_forward_hook(lambda *call: steps.append(1))
    held.model.go.set()
    said = held.ask(noise(1)).choices[0].message.content
    assert len(held.model.batches) <= ran + 1 and 0 < len(steps) < 256  # few tokens are made for nobody
    assert said == held.alone(noise(1))["text"]
    text = held.service.metrics.text().decode()
    assert 'rsmoe_requests_total{status="499"} 2.0' in text


@pytest.mark.slow
def test_a_stream_that_is_left_ends(held) -> None:
    """The rows of a client that has gone stop; 256 tokens would not have been written so soon."""
    held.model.go.set()
    connection = post(held, stream=True, max_tokens=250, fusion="rewrite", router_mode="template")
    answer = connection.getresponse()
    while b"content" not in answer.readline():
        pass
    connection.sock.close() if connection.sock else None
    answer.close()
    connection.close()
    held.until(lambda: held.service.in_flight == 0)
    assert held.ask(noise(1)).choices[0].message.content == held.alone(noise(1))["text"]


@pytest.mark.slow
def test_64_at_once() -> None:
    """None lost, none mixed up: what is said of each image is known before."""
    count, short = 64, {"router_mode": "template", "fusion": "concat"}  # one decode instead of three: to be quick
    with serving() as served:
        served.ask(noise(0), extra_body=short)  # what is slow at first only
        expected = [served.alone(noise(i), f"What is in it, {i}?", **short)["text"] for i in range(count)]
        served.model.batches.clear()
        with ThreadPoolExecutor(count) as pool:
            asked = [pool.submit(served.ask, noise(i), f"What is in it, {i}?", extra_body=short) for i in range(count)]
            answers = [request.result() for request in asked]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == expected and len(set(expected)) > count * 3 / 4  # an exchange would show
    assert len({answer.id for answer in answers}) == count
    assert sum(served.model.batches) == count and max(served.model.batches) == 8
    assert len(served.model.batches) <= count / 4  # runs of the model, in place of 64


def test_the_example_compares_one_by_one_with_at_once(served, tmp_path, capsys) -> None:
    spec = importlib.util.spec_from_file_location("time_serving", EXAMPLES / "time_serving.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for index, file in enumerate(files):
        noise(index).save(file)
    example.main([f"{served.url}/v1", *map(str, files), "--max-tokens", "4"])
    assert "3 requests, one by one" in (said := capsys.readouterr().out)
    assert "3 of 3 texts are the same, 3 different ones" in said
