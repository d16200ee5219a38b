"""The HTTP side of `rsmoe serve`: who is let in, how long it may take, and what is answered when it may not."""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors_rsmoe import RSMoEError
from . import chat, images
from .body import Body
from .chat import Answer, Question
from .engine import Engine, Job
from .errors import CLIENT_GONE, ApiError
from .limits import Limits
from .metrics import Metrics


class _Stream(StreamingResponse):
    """Server-sent events; `leave` is called when they have ended, also if none was ever sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]):
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self.leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.leave()


class Service:
    """One model under one name, and the requests that are inside.

    Args:
        model, processor: of a checkpoint. name: what clients call it.
        api_key: clients must send it as a bearer token; None: nobody is asked.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, limits: Limits | None = None, api_key: str | None = None
    ):
        self.name, self.limits, self.api_key = name, limits or Limits(), api_key
        self.metrics = Metrics()
        self.engine = Engine(model, processor, self.limits.batch_size, self.limits.batch_wait, self.metrics)
        self.default_tokens = model.generation_config.max_new_tokens or 48
        self.marks = list(processor.tokenizer.get_added_vocab())
        self.created = int(time.time())
        self.inside = 0
        self.stopping = False  # set where a signal is handled: what runs is finished, nothing new is let in

    # ---- a request, from its arrival to its answer

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        began, body = time.monotonic(), Body(request, self.limits.body_bytes)
        status = 500
        try:
            await self.check_key(request)
            self._check_open()
            self.inside += 1
            leaves = True
            try:
                response, status = await self._answer(request, body, began), 200
                leaves = not isinstance(response, _Stream)  # that leaves when its text has ended
                return response
            finally:
                if leaves:
                    self.inside -= 1
        except ApiError as error:
            status = error.status
            await body.discard()
            raise
        finally:
            self.metrics.requests.labels(status).inc()
            if status == 200 and leaves:
                self.metrics.seconds.observe(time.monotonic() - began)

    def _check_open(self) -> None:
        if self.stopping or not self.engine.runs:
            raise ApiError(503, "the server is stopping", "stopping", retry_after=self.engine.seconds_of_batch)
        if self.inside >= self.limits.requests:
            batches = self.engine.waiting / self.limits.batch_size + 1
            reason = f"{self.limits.requests} requests are waiting or running already: try again later"
            raise ApiError(429, reason, "queue_full", retry_after=batches * self.engine.seconds_of_batch)

    async def _answer(self, request: Request, body: Body, began: float) -> Response:
        question = await self._question(body)
        job = await self._job(question)
        deadline = began + self.limits.seconds
        self.engine.submit(job)
        try:
            first = await self._first(request, job, deadline)
        except BaseException:  # also a server that stops
            job.abandoned = True
            raise
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        if question.stream:
            events = self._events(job, question, completion_id, first, began, deadline)
            return _Stream(events, leave=lambda: self._leave(job))
        answer = cast(Answer, first)
        self._count(answer)
        return JSONResponse(chat.completion(completion_id, self.name, answer))

    async def _question(self, body: Body) -> Question:
        try:
            read = await asyncio.wait_for(body.read(), self.limits.seconds)
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", "body_timeout") from error
        except ClientDisconnect as error:
            raise ApiError(CLIENT_GONE, "the client left") from error
        asked = await asyncio.to_thread(chat.read_request, read)  # megabytes, which would hold up all others
        if asked.model != self.name:
            raise ApiError(404, f"there is no model {asked.model}: here is {self.name}", "model_not_found", "model")
        return chat.question_of(asked, self.limits, self.default_tokens, self.marks)

    async def _job(self, question: Question) -> Job:
        try:
            data = await images.bytes_of(question.image_url, question.place, self.limits)
            image = await asyncio.to_thread(images.open_image, data, question.place, self.limits)
        except RSMoEError as error:
            raise ApiError(400, str(error), "invalid_image", question.place) from error
        return Job(image, question.place, question.instruction, question.decoding, question.stream)

    async def _first(self, request: Request, job: Job, deadline: float) -> str | Answer:
        """The first event of a job; only then does a streamed answer begin, so that until then it can be an error."""
        event = asyncio.create_task(job.events.get())
        gone = asyncio.create_task(_until_gone(request))
        try:
            done, _ = await asyncio.wait(
                {event, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            event.cancel()
            gone.cancel()
        if event in done:
            return _not_an_error(event.result())
        if gone in done:
            raise ApiError(CLIENT_GONE, "the client left")
        raise self._too_late()

    def _too_late(self) -> ApiError:
        reason = f"no answer within {self.limits.seconds:g} seconds: try again later"
        return ApiError(503, reason, "timeout", retry_after=self.engine.seconds_of_batch)

    async def _events(
        self, job: Job, question: Question, name: str, event: str | Answer, began: float, deadline: float
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        said = ""
        try:
            yield chat.chunk(name, self.name, {"role": "assistant", "content": ""})
            while isinstance(event, str):
                said += event
                yield chat.chunk(name, self.name, {"content": event})
                event = await self._next(job, deadline)
            if rest := event.text.removeprefix(said):
                yield chat.chunk(name, self.name, {"content": rest})
            yield chat.chunk(name, self.name, {}, event)
            if question.include_usage:
                yield chat.usage_chunk(name, self.name, event)
            self._count(event)
            self.metrics.seconds.observe(time.monotonic() - began)
            yield "data: [DONE]\n\n"
        except ApiError as error:  # the status is sent already
            yield chat.event(error.content)

    def _leave(self, job: Job) -> None:
        job.abandoned = True  # if the client left before the text ended
        self.inside -= 1

    async def _next(self, job: Job, deadline: float) -> str | Answer:
        try:
            event = await asyncio.wait_for(job.events.get(), deadline - time.monotonic())
        except TimeoutError as error:
            raise self._too_late() from error
        return _not_an_error(event)

    def _count(self, answer: Answer) -> None:
        self.metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(answer.completion_tokens)

    # ---- about the server

    async def health(self) -> Response:
        """`GET /health`: 200 while requests are let in."""
        if self.stopping or not self.engine.runs:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok", "model": self.name, "inside": self.inside})

    async def show_metrics(self) -> Response:
        """`GET /metrics`."""
        self.metrics.inside.set(self.inside)
        self.metrics.waiting.set(self.engine.waiting)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [chat.model_card(self.name, self.created)]})

    async def one_model(self, name: str) -> Response:
        """`GET /v1/models/NAME`."""
        if name != self.name:
            raise ApiError(404, f"there is no model {name}: here is {self.name}", "model_not_found", "model")
        return JSONResponse(chat.model_card(self.name, self.created))

    async def check_key(self, request: Request) -> None:
        """Raises 401 for all of /v1 if a key is wanted and not given."""
        given = request.headers.get("authorization", "").encode()
        if self.api_key and not hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")


def build_app(service: Service) -> FastAPI:
    """The routes of a service."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        yield
        await service.engine.stop()

    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    keyed = [Depends(service.check_key)]
    app.add_api_route("/v1/chat/completions", service.chat_completions, methods=["POST"])
    app.add_api_route("/v1/models", service.models, dependencies=keyed)
    app.add_api_route("/v1/models/{name:path}", service.one_model, dependencies=keyed)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.show_metrics)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return await refused(request, ApiError(error.status_code, f"{request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return await refused(request, ApiError(500, "the server failed", "internal_error"))

    return app


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _not_an_error(event: str | Answer | Exception) -> str | Answer:
    if isinstance(event, Exception):
        raise event
    return event
