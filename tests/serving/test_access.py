"""What a page in a browser may send to a server on the same machine: nothing, unless it is let in."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.serving.access import Access

from .conftest import Served, noise, serving, user


JSON = "application/json"


@pytest.fixture(scope="module")
def local():
    """As `rsmoe serve` at a loopback address."""
    with serving(access=Access(names=("tiles.example",))) as served:
        yield served


@pytest.fixture(scope="module")
def shared():
    """As `rsmoe serve --cors`."""
    with serving(access=Access("secret", (), ("https://map.example",))) as served:
        yield served


def send(served: Served, method: str = "POST", path: str = "/v1/chat/completions", **headers: str | None):
    """Status, headers and error code of a request; by default a good one."""
    address = urlsplit(served.url).netloc
    content = json.dumps({"model": "tiny", "messages": [user(noise(0), "Describe.")], "max_tokens": 1}).encode()
    body = content if method == "POST" else b""
    sent = {"host": address, "content-type": JSON, "content-length": str(len(body))}
    sent |= {name.lower().replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    is_json = answer.headers.get_content_type() == JSON
    return answer.status, answer.headers, json.loads(text).get("error", {}).get("code") if is_json else None


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:80", "10.0.0.7", "tiles.example"])
def test_names_of_the_server(local, host) -> None:
    assert send(local, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "[::1", "127.0.0.1.x"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/health")]
)
def test_other_names_are_refused(local, host, method, path) -> None:
    """DNS rebinding: a page's own name that was made to point at this machine."""
    status, _, code = send(local, method, path, Host=host)
    assert (status, code) == (403, "host_not_allowed")


def test_any_name_will_do_where_the_network_is_let_in(served) -> None:
    assert send(served, Host="gpu-box.lan")[0] == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None]
)
def test_only_json_is_read(local, content_type) -> None:
    """The others reach a server from any page, without the browser asking first."""
    status, _, code = send(local, content_type=content_type)
    assert (status, code) == (415, "unsupported_media_type")


def test_json_may_name_its_charset(local) -> None:
    assert send(local, content_type="Application/JSON; charset=utf-8")[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "https://map.example"])
def test_foreign_pages_are_refused(local, origin) -> None:
    status, headers, code = send(local, Origin=origin)
    assert (status, code) == (403, "origin_not_allowed") and "access-control-allow-origin" not in headers


def test_own_pages_may_ask(local) -> None:
    own = urlsplit(local.url).netloc
    assert send(local, Origin=f"http://{own}")[0] == 200
    assert send(local, Origin="https://tiles.example")[0] == 200  # a proxy with TLS before it


def test_allowed_origins_may_ask(shared) -> None:
    asking = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    status, headers, _ = send(shared, "OPTIONS", Origin="https://map.example", **asking)
    assert status == 200 and headers["access-control-allow-origin"] == "https://map.example"
    assert "authorization" in headers["access-control-allow-headers"]
    for key, status in (("secret", 200), ("guess", 401)):  # errors can be read as well
        answer = send(shared, Origin="https://map.example", Authorization=f"Bearer {key}")
        assert answer[0] == status and answer[1]["access-control-allow-origin"] == "https://map.example"
    assert send(shared, "OPTIONS", Origin="https://evil.example", **asking)[0] == 400
    assert send(shared, Origin="https://evil.example", Authorization="Bearer secret")[2] == "origin_not_allowed"


@pytest.mark.parametrize(
    "arguments",
    [{"origins": ("example.org",)}, {"origins": ("https://example.org/",)}, {"names": ("https://example.org",)}],
)
def test_what_is_no_origin_or_name(arguments) -> None:
    with pytest.raises(RSMoEError, match="give one such as"):
        Access(**arguments)
