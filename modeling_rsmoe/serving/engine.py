"""One model, many askers: what is asked at the same time in the same way goes into one `generate`.

The model runs in one thread of its own; jobs come from and answers go to the event loop. A job that nobody waits for
any longer is dropped from the queue, or its rows stop at the next token.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..errors_rsmoe import RSMoEError
from ..utils.images import read_image
from .chat import Answer, Decoding
from .errors import ApiError
from .metrics import Metrics


logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A question in the queue. `events` brings pieces of the text if it is streamed, then the answer or an error."""

    image: Image.Image
    place: str
    instruction: str
    decoding: Decoding
    stream: bool = False
    abandoned: bool = False
    events: asyncio.Queue[str | Answer | Exception] = field(default_factory=asyncio.Queue)


class Engine:
    """
    Args:
        model, processor: of a checkpoint.
        batch_size: images in one `generate`.
        batch_wait: seconds that an idle model waits for more jobs before it begins.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int, batch_wait: float, metrics: Metrics):
        self.model, self.processor, self.metrics = model, processor, metrics
        self.batch_size, self.batch_wait = batch_size, batch_wait
        self.seconds_of_batch = 1.0  # of the last one: what a refused client is told to wait
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rsmoe-model")
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the batch that runs now. Jobs that still wait are not answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def runs(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        self._arrived.set()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self.batch_size:
                await asyncio.sleep(self.batch_wait)
            batch = self._next_batch()
            if batch:
                began = self._loop.time()
                await self._loop.run_in_executor(self._thread, self._answer, batch)
                self.seconds_of_batch = self._loop.time() - began
                self.metrics.batch_size.observe(len(batch))
            if not self._waiting:
                self._arrived.clear()

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that are decoded as it is, in the order in which they came."""
        waiting = [job for job in self._waiting if not job.abandoned]
        batch: list[Job] = []
        for job in waiting:
            # A seed gives the same text again only to a batch of the same jobs: one alone.
            alone = bool(batch) and batch[0].decoding.seed is not None
            if len(batch) < self.batch_size and not alone and (not batch or job.decoding == batch[0].decoding):
                batch.append(job)
        self._waiting = deque(job for job in waiting if job not in batch)
        return batch

    # ---- in the model's thread

    def _tell(self, job: Job, event: str | Answer | Exception) -> None:
        self._loop.call_soon_threadsafe(job.events.put_nowait, event)

    def _answer(self, batch: list[Job]) -> None:
        jobs, pictures = [], []
        for job in batch:
            try:
                pictures.append(read_image(job.image, name=job.place))
                jobs.append(job)
            except RSMoEError as error:
                self._tell(job, ApiError(400, str(error), "invalid_image", job.place))
            finally:
                job.image.close()
        if not jobs:
            return
        try:
            for job, answer in zip(jobs, self._generate(jobs, pictures), strict=True):
                self._tell(job, answer)
        except torch.OutOfMemoryError:
            logger.exception("out of memory with a batch of %d", len(jobs))
            for job in jobs:
                self._tell(job, ApiError(503, "the model is out of memory", "out_of_memory", None, 10))
        except Exception:
            logger.exception("a batch of %d failed", len(jobs))
            for job in jobs:
                self._tell(job, ApiError(500, "the model failed", "internal_error"))

    @torch.inference_mode()
    def _generate(self, jobs: list[Job], pictures: list[Image.Image]) -> list[Answer]:
        decoding, model = jobs[0].decoding, self.model
        arguments = decoding.arguments()
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        inputs = self.processor(images=pictures, text=[job.instruction for job in jobs], return_tensors="pt")
        fusion = decoding.fusion or getattr(model.generation_config, "fusion", None) or "concat"
        beams = decoding.num_beams or model.generation_config.num_beams or 1
        if fusion == "rewrite" and beams == 1 and any(job.stream for job in jobs):
            arguments["streamer"] = _Pieces(self, jobs)  # in other cases a text is there at the end only
        outputs = model.generate(
            **inputs.to(model.device, model.dtype),
            **arguments,
            stopping_criteria=StoppingCriteriaList([_Abandoned(jobs)]),
            return_dict_in_generate=True,
        )
        written = self._lengths(outputs.sequences[:, outputs.prompt_length :])
        of_parts = self._lengths(outputs.expert_sequences.flatten(0, 1))
        experts = len(of_parts) // len(jobs)
        answers = []
        for index, said in enumerate(self.processor.post_process_generation(outputs)):
            longest = written[index]
            if fusion == "concat":
                longest = max(of_parts[index * experts : (index + 1) * experts])
            answers.append(
                Answer(
                    **said,
                    finish_reason="length" if longest >= decoding.max_new_tokens else "stop",
                    prompt_tokens=int(inputs["attention_mask"][index].sum()),
                    completion_tokens=written[index],
                )
            )
        return answers

    def _lengths(self, rows: torch.Tensor) -> list[int]:
        """Tokens of each row before it ends."""
        return [next((i for i, token in enumerate(row) if token in self.ends), len(row)) for row in rows.tolist()]

    @property
    def ends(self) -> set[int | None]:
        eos = self.model.generation_config.eos_token_id
        return {*(eos if isinstance(eos, list) else [eos]), self.model.generation_config.pad_token_id}


class _Abandoned(StoppingCriteria):
    """Stops the rows of jobs that nobody waits for any longer; an image's rows stand together, for experts and beams."""

    def __init__(self, jobs: list[Job]):
        self.jobs = jobs

    def __call__(self, input_ids, scores, **kwargs):
        rows = len(input_ids)
        stop = [self.jobs[row * len(self.jobs) // rows].abandoned for row in range(rows)]
        return torch.tensor(stop, device=input_ids.device)


class _Pieces(BaseStreamer):
    """A streamer of many texts: each job that is streamed is told what its text has grown by."""

    def __init__(self, engine: Engine, jobs: list[Job]):
        self.engine, self.jobs = engine, jobs
        self.ends, self.decode = engine.ends, engine.processor.tokenizer.decode
        self.tokens: list[list[int]] = [[] for _ in jobs]
        self.said = [""] * len(jobs)
        self.prompts_came = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompts_came:
            self.prompts_came = True
            return
        for index, token in enumerate(value.tolist()):  # [jobs]; ended rows are padded
            job = self.jobs[index]
            if not job.stream or token in self.ends:
                continue
            self.tokens[index].append(token)
            text = self.decode(self.tokens[index], skip_special_tokens=True).strip()
            # A letter of several bytes may not be whole yet.
            if not text.endswith("\ufffd") and text.startswith(self.said[index]) and text != self.said[index]:
                self.engine._tell(job, text[len(self.said[index]) :])
                self.said[index] = text

    def end(self) -> None:
        pass
