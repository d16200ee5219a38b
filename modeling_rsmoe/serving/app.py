"""The HTTP side of `rsmoe serve`: who is let in, how long it may take, and what is answered when it may not."""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors_rsmoe import RSMoEError
from ..inference.predict import Prediction
from . import chat, images
from .batching import PendingRequest, RequestBatcher
from .body import discard_body, read_body
from .errors import CLIENT_GONE, ApiError
from .limits import Limits
from .metrics import Metrics


class _Stream(EventSourceResponse):
    """Server-sent events, and a call when they have ended, also if none was ever sent: an iterator that never began
    does not do that."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]):
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()


class Service:
    """One model under one name, and the requests that it works on.

    Args:
        model: of a checkpoint.
        processor: of the same checkpoint.
        name: what clients call the model.
        limits: of requests.
        api_key: clients must send it as a bearer token; None: none is needed.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, limits: Limits | None = None, api_key: str | None = None
    ):
        self.processor, self.name, self.limits, self.api_key = processor, name, limits or Limits(), api_key
        self.metrics = Metrics()
        self.batcher = RequestBatcher(model, processor, self.limits.batch_size, self.limits.batch_wait, self.metrics)
        self.default_tokens = model.generation_config.max_new_tokens or 48
        self.created = int(time.time())
        self.in_flight = 0
        self.is_stopping = False  # set where a signal is handled: what runs is finished, nothing new is let in

    # ---- a request, from its arrival to its answer

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        arrival, status = time.monotonic(), 500
        try:
            await self.check_key(request)
            self._check_open()
            response = await self._respond(request, arrival)
            status = 200
            return response
        except ApiError as error:
            status = error.status
            await discard_body(request)
            raise
        finally:
            self.metrics.requests.labels(status).inc()

    def _check_open(self) -> None:
        if not self.is_open:
            raise ApiError(503, "the server is stopping", "stopping", retry_after=self.batcher.batch_seconds)
        if self.in_flight >= self.limits.requests:
            num_batches = self.batcher.num_waiting / self.limits.batch_size + 1
            reason = f"{self.limits.requests} requests are waiting or running already: try again later"
            raise ApiError(429, reason, "queue_full", retry_after=num_batches * self.batcher.batch_seconds)

    async def _respond(self, request: Request, arrival: float) -> Response:
        self.in_flight += 1
        response: Response | None = None
        try:
            pending = await self._read(request)
            deadline = arrival + self.limits.seconds
            self.batcher.submit(pending)
            try:
                event = await self._first_event(request, pending, deadline)
            except BaseException:  # also a server that stops
                pending.cancelled.set()
                raise
            completion = chat.Completion(f"chatcmpl-{uuid.uuid4().hex}", self.name)
            if pending.request.stream:
                events = self._stream(completion, pending, event, arrival, deadline)
                response = _Stream(events, on_end=lambda: self._end_stream(pending))
                return response
            prediction = cast(Prediction, event)
            self._observe(prediction, arrival)
            return JSONResponse(completion.response(prediction))
        finally:
            if response is None:  # a stream is in flight until its text has ended
                self.in_flight -= 1

    async def _read(self, request: Request) -> PendingRequest:
        """What a client asks, with its image opened."""
        try:
            body = await asyncio.wait_for(read_body(request, self.limits.body_bytes), self.limits.seconds)
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", "body_timeout") from error
        except ClientDisconnect as error:
            raise ApiError(CLIENT_GONE, "the client left") from error
        chat_request = await asyncio.to_thread(chat.parse_body, body)  # megabytes, which would hold up all others
        self._check_model(chat_request.model)
        image_request = chat.image_request(chat_request, self.limits, self.default_tokens)
        try:
            self.processor.refuse_special_tokens(image_request.instruction)
        except RSMoEError as error:
            raise ApiError(400, str(error), "invalid_request", "messages") from error
        field = image_request.image_field
        try:
            data = await images.bytes_of(image_request.image_url, field, self.limits)
            image = await asyncio.to_thread(images.open_image, data, field, self.limits)
        except RSMoEError as error:
            raise ApiError(400, str(error), "invalid_image", field) from error
        return PendingRequest(image_request, image)

    async def _first_event(self, request: Request, pending: PendingRequest, deadline: float) -> str | Prediction:
        """Only with it a streamed answer begins, so that until then it can be an error."""
        event = asyncio.create_task(self._next_event(pending, deadline))
        disconnect = asyncio.create_task(_wait_for_disconnect(request))
        try:
            await asyncio.wait({event, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                raise ApiError(CLIENT_GONE, "the client left")
            return event.result()
        finally:
            event.cancel()
            disconnect.cancel()

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

    def _end_stream(self, pending: PendingRequest) -> None:
        pending.cancelled.set()  # if the client left before the text ended
        self.in_flight -= 1

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
            raise ApiError(404, f"there is no model {name}: here is {self.name}", "model_not_found", "model")

    async def check_key(self, request: Request) -> None:
        """Raises 401 for all of /v1 if a key is needed and not sent."""
        authorization = request.headers.get("authorization", "").encode()
        if self.api_key and not hmac.compare_digest(authorization, f"Bearer {self.api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")


def build_app(service: Service) -> FastAPI:
    """The routes of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.batcher.start()
        yield
        await service.batcher.stop()

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{request.url.path}: {error.detail}")
        elif not isinstance(error, ApiError):
            error = ApiError(500, "the server failed", "internal_error")
        return JSONResponse(error.content, error.status, error.headers)

    handlers: dict[Any, Any] = dict.fromkeys((ApiError, HTTPException, Exception), refuse)
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, exception_handlers=handlers, docs_url=None, redoc_url=None, openapi_url=None)
    needs_key = [Depends(service.check_key)]
    app.add_api_route("/v1/chat/completions", service.chat_completions, methods=["POST"])
    app.add_api_route("/v1/models", service.models, dependencies=needs_key)
    app.add_api_route("/v1/models/{name:path}", service.one_model, dependencies=needs_key)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.show_metrics)
    return app


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
