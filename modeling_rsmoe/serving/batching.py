"""One model, many clients: requests that wait at the same time and decode in the same way share one batch.

The model runs in one thread of its own; requests come from the event loop, and what becomes of them goes back to it. A
request whose client has gone is dropped from the queue, or its sequences stop at the next token.
"""

import asyncio
import copy
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeVar

import torch
from PIL import Image

from ..errors_rsmoe import RSMoEError
from ..inference.context import ContextLengthError
from ..inference.predict import Prediction, Predictor
from ..prompting_rsmoe import task_of
from ..utils.images import read_image
from .chat import MAX_TOKENS, ImageRequest
from .errors import ApiError
from .metrics import Metrics


T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class PendingRequest:
    """A request in the queue. Its events are pieces of the text if it is streamed, then the prediction or an error."""

    request: ImageRequest
    image: Image.Image | BytesIO  # opened, not yet decoded
    cancelled: threading.Event = field(default_factory=threading.Event)  # set when the client no longer waits
    events: asyncio.Queue[str | Prediction | Exception] = field(default_factory=asyncio.Queue)
    streamed: str = ""  # the text that `events` has brought so far


class RequestBatcher:
    """
    Args:
        model: of a checkpoint.
        processor: of the same checkpoint.
        batch_size: images in one batch.
        batch_wait: seconds that an idle model waits for more requests before it begins.
        metrics: that count batches.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int, batch_wait: float, metrics: Metrics):
        self.model, self.processor, self.metrics = model, processor, metrics
        self.batch_size, self.batch_wait = batch_size, batch_wait
        self.batch_seconds = 1.0  # of the last batch: how long a refused client should wait
        self._queue: deque[PendingRequest] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rsmoe-model")
        # Requests are read in a thread of their own, one after the other, with tokenizers of its own: those of the
        # model's thread may not be used by two at a time.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rsmoe-reader")
        self._readers_processor = copy.deepcopy(processor)
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the batch that runs now. Requests that still wait are not answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._reader.shutdown(wait=False)

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    async def in_reader(self, function: Callable[[bytearray], T], body: bytearray) -> T:
        """The function's result, out of the thread that reads requests: a body may be megabytes."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function, body)

    def check(self, request: ImageRequest) -> None:
        """Raises 400 for what the model would refuse, or would take minutes for. In the reader's thread."""
        fusion = request.generation.get("fusion")
        if fusion in ("rerank", "sentences") and not self.model.config.reranker_rank:
            reason = f"fusion {fusion!r} needs a reranker, and this checkpoint has none: leave it out"
            raise ApiError(400, reason, "invalid_request", "fusion")
        if request.generation.get("min_confidence") is not None and not self.model.config.confidence_weights:
            reason = "min_confidence needs a checkpoint that says how sure it is, and this one does not: leave it out"
            raise ApiError(400, reason, "invalid_request", "min_confidence")
        try:
            num_tokens = Predictor(self.model, self._readers_processor, request.generation).check(request.instruction)
        except ContextLengthError as error:
            raise ApiError(400, str(error), "context_length_exceeded", "messages") from error
        except RSMoEError as error:  # a special token
            raise ApiError(400, str(error), "invalid_request", "messages") from error
        if num_tokens > MAX_TOKENS:
            reason = f"the instruction has {num_tokens} tokens, {MAX_TOKENS} are the most here: shorten it"
            raise ApiError(400, reason, "context_length_exceeded", "messages")

    def submit(self, pending: PendingRequest) -> None:
        """Put a request into the queue; its `events` bring what becomes of it."""
        self._queue.append(pending)
        self._arrived.set()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._queue) < self.batch_size:
                await asyncio.sleep(self.batch_wait)
            batch = self._next_batch()
            if batch:
                began = self._loop.time()
                await self._loop.run_in_executor(self._thread, self._run_batch, batch)
                self.batch_seconds = self._loop.time() - began
                self.metrics.batch_size.observe(len(batch))
            if not self._queue:
                self._arrived.clear()

    def _next_batch(self) -> list[PendingRequest]:
        """The oldest request and those that may share its batch, in the order in which they came."""
        batch: list[PendingRequest] = []
        remaining: deque[PendingRequest] = deque()
        for pending in self._queue:
            if pending.cancelled.is_set():
                continue
            has_room = len(batch) < self.batch_size
            if has_room and _may_join(pending.request, [member.request for member in batch]):
                batch.append(pending)
            else:
                remaining.append(pending)
        self._queue = remaining
        return batch

    # ---- in the model's thread

    def _send(self, pending: PendingRequest, event: str | Prediction | Exception) -> None:
        self._loop.call_soon_threadsafe(pending.events.put_nowait, event)

    def _run_batch(self, batch: list[PendingRequest]) -> None:
        readable, images = [], []
        for pending in batch:
            image_field = pending.request.image_field
            try:
                images.append(read_image(pending.image, name=image_field))
                readable.append(pending)
            except RSMoEError as error:
                self._send(pending, ApiError(400, str(error), "invalid_image", image_field))
            finally:
                pending.image.close()
        if not readable:
            return
        try:
            for pending, prediction in zip(readable, self._predict(readable, images), strict=True):
                self._send(pending, prediction)
        except Exception as error:
            logger.exception("a batch of %d failed", len(readable))
            answer = _answer_to(error)
            for pending in readable:
                self._send(pending, answer)

    def _predict(self, batch: list[PendingRequest], images: list[Image.Image]) -> list[Prediction]:
        first = batch[0].request
        if first.seed is not None:
            torch.manual_seed(first.seed)

        def stream(place: int, prediction: Prediction) -> None:
            pending = batch[place]
            if pending.request.stream and prediction.text != pending.streamed:
                self._send(pending, prediction.text.removeprefix(pending.streamed))
                pending.streamed = prediction.text

        return Predictor(self.model, self.processor, first.generation).predict(
            images,
            [pending.request.instruction for pending in batch],
            stop=[pending.cancelled.is_set for pending in batch],
            on_change=stream if any(pending.request.stream for pending in batch) else None,
        )


def _answer_to(error: Exception) -> ApiError:
    """How clients are answered when their batch fails."""
    if isinstance(error, torch.OutOfMemoryError):
        return ApiError(503, "the model is out of memory", "out_of_memory", None, 10)
    if isinstance(error, RSMoEError):
        return ApiError(400, str(error), "invalid_request")
    return ApiError(500, "the model failed", "internal_error")


def _may_join(request: ImageRequest, batch: list[ImageRequest]) -> bool:
    """Whether a request may share a batch.

    All are decoded alike. A sampled one with a seed is alone, since its text depends on its batch. Where one is
    streamed all have the same task: by it `fusion="auto"` decides whether texts are written token by token.
    """
    if any(request.generation != member.generation or (request.seed, member.seed) != (None, None) for member in batch):
        return False
    members = [*batch, request]
    return (
        not any(member.stream for member in members) or len({task_of(member.instruction) for member in members}) == 1
    )
