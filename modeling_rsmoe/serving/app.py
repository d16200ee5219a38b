"""The HTTP side of `rsmoe serve`: who is let in, how long it may take, and what is answered when it may not."""

import asyncio
import ipaddress
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors_rsmoe import RSMoEError
from ..inference.predict import Prediction
from . import chat, images
from .access import Access, check_content_type
from .batching import PendingRequest, RequestBatcher
from .body import Arrivals, discard_body
from .errors import CLIENT_GONE, ApiError
from .limits import Limits
from .metrics import Metrics


T = TypeVar("T")


class _Stream(EventSourceResponse):
    """Server-sent events, and a call when they have ended, also if none was ever sent: an iterator that never began
    does not do that. Who reads none of them is left at `deadline` (of the event loop's clock)."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None], deadline: float):
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self.on_end, self.deadline = on_end, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self.deadline):
                await super().__call__(scope, receive, send)
        except TimeoutError:  # the server closes the connection of an answer that did not end
            pass
        finally:
            self.on_end()


class Service:
    """One model under one name, and the requests that it works on.

    Args:
        model: of a checkpoint.
        processor: of the same checkpoint.
        name: what clients call the model.
        limits: of requests.
        access: who may ask.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, limits: Limits | None = None, access: Access | None = None
    ):
        self.name, self.limits, self.access = name, limits or Limits(), access or Access()
        self.metrics = Metrics()
        self.batcher = RequestBatcher(model, processor, self.limits.batch_size, self.limits.batch_wait, self.metrics)
        self.default_tokens = model.generation_config.max_new_tokens or 48
        self.detail_tokens = model._setting("detail_max_new_tokens", {}, None)
        self.created = int(time.time())
        self.in_flight = 0
        self.clients: Counter[str] = Counter()  # requests of each address, those that are arriving included
        self.arrivals = Arrivals(self.limits)
        self.is_stopping = False  # set where a signal is handled: what runs is finished, nothing new is let in

    # ---- a request, from its arrival to its answer

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        arrival, status = time.monotonic(), 500
        try:
            await self.access.check_key(request)
            check_content_type(request)
            if not self.is_open:
                raise ApiError(503, "the server is stopping", "stopping", retry_after=self.batcher.batch_seconds)
            self._check_room()
            with ExitStack() as places:
                places.enter_context(self._place_of_client(request))
                response = await self._respond(request, arrival, places)
            status = 200
            return response
        except ApiError as error:
            status = error.status
            if error.code != "body_timeout":
                await discard_body(request)
            raise
        finally:
            self.metrics.requests.labels(status).inc()

    def _check_room(self) -> None:
        if self.in_flight >= self.limits.requests:
            reason = f"{self.limits.requests} requests are waiting or running already: try again later"
            raise ApiError(429, reason, "queue_full", retry_after=self._queue_seconds())

    def _queue_seconds(self) -> float:
        return (self.batcher.num_waiting / self.limits.batch_size + 1) * self.batcher.batch_seconds

    @contextmanager
    def _place_of_client(self, request: Request) -> Iterator[None]:
        """Within, one more request of its address counts."""
        address = request.client.host if request.client else "localhost"
        share = max(1, int(self.limits.requests * self.limits.client_share))
        if self.clients[address] >= share and not _is_this_machine(address):
            reason = f"{share} requests of {address} are waiting or running already: try again later"
            raise ApiError(429, reason, "client_queue_full", retry_after=self._queue_seconds())
        self.clients[address] += 1
        try:
            yield
        finally:
            self.clients[address] -= 1
            if not self.clients[address]:
                del self.clients[address]

    @contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        self._check_room()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def _respond(self, request: Request, arrival: float, places: ExitStack) -> Response:
        deadline = arrival + self.limits.seconds
        pending = await self._receive(request, deadline)
        places.enter_context(self._place_in_queue())
        self.batcher.submit(pending)
        try:  # only with its first event a streamed answer begins, so that until then it can be an error
            event = await _unless_disconnected(request, self._next_event(pending, deadline))
        except BaseException:  # also a server that stops
            pending.cancelled.set()
            raise
        completion = chat.Completion(f"chatcmpl-{uuid.uuid4().hex}", self.name)
        if pending.request.stream:
            events = self._stream(completion, pending, event, arrival, deadline)
            last = deadline + self.limits.stall_seconds  # for the error event of a text that takes too long
            places.callback(pending.cancelled.set)  # if the client leaves before the text has ended
            return _Stream(events, on_end=places.pop_all().close, deadline=last)  # the stream keeps the places
        prediction = cast(Prediction, event)
        self._observe(prediction, arrival)
        return JSONResponse(completion.response(prediction))

    async def _receive(self, request: Request, deadline: float) -> PendingRequest:
        """What a client asks, with its image opened."""
        try:
            async with asyncio.timeout_at(deadline):
                body = await self.arrivals.read_body(request)
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", "body_timeout") from error
        except ClientDisconnect as error:
            raise ApiError(CLIENT_GONE, "the client left") from error
        image_request = await self.batcher.in_reader(self._understand, body)
        image = await _unless_disconnected(request, self._open_image(image_request, deadline))
        return PendingRequest(replace(image_request, image_url=""), image)  # the URL may be megabytes

    def _understand(self, body: bytearray) -> chat.ImageRequest:
        """What a body asks; ApiError if it asks for what is not there."""
        chat_request = chat.parse_body(body)
        self._check_model(chat_request.model)
        image_request = chat.image_request(chat_request, self.limits, self.default_tokens, self.detail_tokens)
        self.batcher.check(image_request)
        return image_request

    async def _open_image(self, request: chat.ImageRequest, deadline: float) -> Image.Image | BytesIO:
        field = request.image_field
        try:
            async with asyncio.timeout_at(deadline):
                data = await images.bytes_of(request.image_url, field, self.limits, self.arrivals)
            return await asyncio.to_thread(images.open_image, data, field, self.limits)
        except TimeoutError as error:
            raise ApiError(400, f"{field} did not arrive in time", "invalid_image_url", field) from error
        except RSMoEError as error:
            raise ApiError(400, str(error), "invalid_image", field) from error

    async def _next_event(self, pending: PendingRequest, deadline: float) -> str | Prediction:
        try:
            event = await asyncio.wait_for(pending.events.get(), deadline - time.monotonic())
        except TimeoutError as error:
            reason = f"no answer within {self.limits.seconds:g} seconds: try again later"
            raise ApiError(503, reason, "timeout", retry_after=self.batcher.batch_seconds) from error
        if isinstance(event, Exception):
            raise event
        return event

    async def _stream(
        self,
        completion: chat.Completion,
        pending: PendingRequest,
        event: str | Prediction,
        arrival: float,
        deadline: float,
    ) -> AsyncIterator[bytes]:
        """Server-sent events, `event` being the first one."""
        streamed = ""
        try:
            yield completion.chunk({"role": "assistant", "content": ""})
            while isinstance(event, str):
                streamed += event
                yield completion.chunk({"content": event})
                event = await self._next_event(pending, deadline)
            if rest := event.text.removeprefix(streamed):
                yield completion.chunk({"content": rest})
            yield completion.chunk({}, event)
            if pending.request.include_usage:
                yield completion.usage_chunk(event)
            self._observe(event, arrival)
            yield chat.STREAM_END
        except ApiError as error:  # the status is sent already
            yield chat.event(error.content)

    def _observe(self, prediction: Prediction, arrival: float) -> None:
        self.metrics.tokens.labels("prompt").inc(prediction.num_prompt_tokens)
        self.metrics.tokens.labels("completion").inc(prediction.num_tokens)
        self.metrics.seconds.observe(time.monotonic() - arrival)

    # ---- about the server

    @property
    def is_open(self) -> bool:
        return self.batcher.is_running and not self.is_stopping

    async def health(self) -> Response:
        """`GET /health`: 200 while requests are let in."""
        if not self.is_open:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok", "model": self.name, "in_flight": self.in_flight})

    async def show_metrics(self) -> Response:
        """`GET /metrics`."""
        self.metrics.in_flight.set(self.in_flight)
        self.metrics.waiting.set(self.batcher.num_waiting)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [chat.model_card(self.name, self.created)]})

    async def one_model(self, name: str) -> Response:
        """`GET /v1/models/NAME`."""
        self._check_model(name)
        return JSONResponse(chat.model_card(self.name, self.created))

    def _check_model(self, name: str) -> None:
        if name != self.name:
            reason = f"there is no model {chat.shorten(name)}: here is {self.name}"
            raise ApiError(404, reason, "model_not_found", "model")


def build_app(service: Service) -> FastAPI:
    """The routes of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.batcher.start()
        yield
        await service.batcher.stop()

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{chat.shorten(request.url.path)}: {error.detail}")
        elif not isinstance(error, ApiError):
            error = ApiError(500, "the server failed", "internal_error")
        return JSONResponse(error.content, error.status, error.headers)

    handlers: dict[Any, Any] = dict.fromkeys((ApiError, HTTPException, Exception), refuse)
    # No pages of documentation: they would load scripts from elsewhere.
    access = service.access
    app = FastAPI(
        lifespan=lifespan,
        exception_handlers=handlers,
        dependencies=[Depends(access.check_browser)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["Retry-After"],
        )
    needs_key = [Depends(access.check_key)]
    app.add_api_route("/v1/chat/completions", service.chat_completions, methods=["POST"])
    app.add_api_route("/v1/models", service.models, dependencies=needs_key)
    app.add_api_route("/v1/models/{name:path}", service.one_model, dependencies=needs_key)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.show_metrics)
    return app


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; it is cancelled when the client leaves."""
    task, disconnect = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_GONE, "the client left")
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a socket of the file system
        return True
