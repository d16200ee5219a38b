"""What a model says about images: from images (or their features) and instructions to texts, batch by batch or as they
are written.

Every door goes through here: command line, server, demo, scenes, image collections and evaluation.
"""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, UNSURE, Prompt, task_of
from ..utils.images import ImageInput, read_image
from .context import check_context
from .decoding import is_greedy, shrinking_greedy
from .loading import check_limit


if TYPE_CHECKING:
    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

FULL, BASE, EXPERTS = "full", "base", "experts"
Stop = Callable[[], bool]


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are generated; None is the checkpoint's own setting.

    Attributes:
        router_mode: `generated`, `template` or `none`.
        fusion: `auto`, `rerank`, `rewrite`, `concat` or `sentences`.
        max_new_tokens: of an expert's text, and of the final one, be it a sentence or a paragraph.
        num_beams: of the search; 1 is greedy.
        min_confidence: from 0 to 1. A text that is less likely right is not given: `UNSURE` stands in its place, and
            of a paragraph the sentences that are as likely. The experts' texts stay.

    Raises:
        RSMoEError: `max_new_tokens` or `num_beams` is beyond `loading.LIMITS`, or `min_confidence` beyond 0 to 1.
    """

    router_mode: str | None = None
    fusion: str | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise RSMoEError(f"min_confidence is {self.min_confidence}: give a probability, from 0 to 1")
        for name in ("max_new_tokens", "num_beams"):
            check_limit(name, getattr(self, name))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`, and `min_confidence` of the predictor."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        text: the caption or answer.
        router_prompts: what each expert was asked, by name, in order.
        expert_texts: what each expert wrote, by name, in order.
        sentences: of a paragraph, each as `text` and `writer`: an expert's name, `base LM` or `rewriting`; with its
            `confidence` where there is one.
        confidence: the probability that the text is right; None where the checkpoint was not fitted to say so, of the
            base LM or an expert alone, and of an empty text.
        expert_confidences: likewise, of the expert texts.
        scores: `reranker`: how well the text fits the image, if texts were reranked.
        num_prompt_tokens: of the instruction and the image.
        num_tokens: of the text.
        finish_reason: `stop`, or `length` if a limit cut the text or an expert's text that it is joined of.
    """

    text: str = ""
    router_prompts: dict[str, str] = field(default_factory=dict)
    expert_texts: dict[str, str] = field(default_factory=dict)
    sentences: list[dict[str, Any]] = field(default_factory=list)
    confidence: float | None = None
    expert_confidences: dict[str, float | None] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str = "stop"

    def record(self) -> dict[str, Any]:
        """The texts and how likely they are right, as files and JSON output hold them."""
        steps = self.steps()
        if not self.expert_texts:
            del steps["router_prompts"], steps["expert_texts"]
        return {"text": self.text, **steps}

    def steps(self) -> dict[str, Any]:
        """What led to the text and how likely it is right, without the text."""
        steps: dict[str, Any] = {"router_prompts": self.router_prompts, "expert_texts": self.expert_texts}
        if self.sentences:
            steps["sentences"] = self.sentences
        if self.confidence is not None:
            steps["confidence"] = self.confidence
        return steps | ({"expert_confidences": self.expert_confidences} if self.expert_confidences else {})

    def withhold(self, min_confidence: float, instruction: str) -> "Prediction":
        """What is left of it where only texts are wanted that are so likely right; an empty one is not."""
        if (self.confidence or 0.0) >= min_confidence:
            return self
        kept = [sentence for sentence in self.sentences if (sentence["confidence"] or 0) >= min_confidence]
        text = " ".join(sentence["text"] for sentence in kept) or UNSURE[task_of(instruction)]
        least = min((sentence["confidence"] for sentence in kept), default=self.confidence)
        return replace(self, text=text, sentences=kept, confidence=least)


class Predictor:
    """
    Args:
        model: of a checkpoint.
        processor: of the same checkpoint.
        settings: a `GenerationSettings`, or keyword arguments of `generate` and `min_confidence`.
        system: who speaks: `full`; `full:NAME,NAME` (with these experts only); `base` (the base LM alone);
            `experts:NAME` (one expert alone).

    Raises:
        RSMoEError: the model has no such expert (the known systems are listed), or `min_confidence` is asked of what
            has no confidence.
    """

    def __init__(
        self,
        model: "RSMoEForConditionalGeneration",
        processor: "RSMoEProcessor",
        settings: GenerationSettings | Mapping[str, Any] = GenerationSettings(),
        system: str = FULL,
    ):
        self.model, self.system = model, system
        self.generation = settings.arguments() if isinstance(settings, GenerationSettings) else dict(settings)
        self.min_confidence = self.generation.pop("min_confidence", None)
        if self.min_confidence is not None and (system == BASE or not model.config.confidence_weights):
            remedy = "ask the full model" if system == BASE else "fit it by rsmoe train confidence"
            raise RSMoEError(f"min_confidence needs what says how sure it is, and this does not: {remedy}")
        experts = _experts_of(system, processor.experts)
        self.processor = processor if experts is None else processor.with_experts(experts)
        if system.startswith(f"{EXPERTS}:"):  # one expert's text is the whole text
            self.generation["fusion"] = "concat"

    @property
    def image_side(self) -> int:
        """What the image processor makes of every image: the longer side in pixels."""
        return max(dict(self.processor.image_processor.size).values())

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Features of images, for any number of predictions about them.

        Args:
            images: whatever `read_image` takes. One that stands in the list again is encoded once.

        Returns:
            `torch.Tensor` of shape `(num_images, patches, vision width)`.

        Raises:
            RSMoEError: an image cannot be read.
        """
        keys = [str(image) if isinstance(image, (str, os.PathLike)) else id(image) for image in images]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        unique = [read_image(image) for image in dict(zip(keys, images)).values()]
        pixels = self.processor.image_processor(images=unique, return_tensors="pt")["pixel_values"]
        image_embeds = self.model.encode_image(pixels.to(self.model.device, self.model.dtype))
        return image_embeds[[places[key] for key in keys]]

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[ImageInput] | None = None,
        instructions: str | Sequence[str] = DEFAULT_INSTRUCTION,
        image_embeds: torch.Tensor | None = None,
        stop: Stop | Sequence[Stop] | None = None,
        on_change: Callable[[int, Prediction], None] | None = None,
    ) -> list[Prediction]:
        """One batch. In float32 a text does not depend on the others in its batch.

        Args:
            images: whatever `read_image` takes.
            instructions: one for all images, or one for each.
            image_embeds: of `encode`, in place of images.
            stop: asked at every step, one for all images or one for each; an image's texts end when it returns true.
                Once all return true, the model stops before its next layer.
            on_change: called with an image's place and what is known so far, as it is written. Texts come word by word
                where the base LM rewrites without beams (of several images: all of them), else at the end.

        Raises:
            RSMoEError: an image cannot be read, or an instruction holds a special token or too many tokens.
        """
        if image_embeds is None:
            image_embeds = self.encode(images or [])
        num_images = len(image_embeds)
        texts = [instructions] * num_images if isinstance(instructions, str) else list(instructions)
        inputs, _ = self._checked_inputs(image_embeds, texts)
        fusions = self._fusions(inputs)
        kinds = [(fusion, task_of(text) == "detail") for fusion, text in zip(fusions, texts, strict=True)]
        arguments = self._arguments()
        stops = [stop] * num_images if callable(stop) else list(stop or [])
        if stops:
            if len(set(kinds)) > 1:
                return self._predict_by_kind(kinds, texts, image_embeds, stops, on_change)
            arguments["stopping_criteria"] = StoppingCriteriaList([_Stopped(stops)])
        try:
            with _ending_with_the_last(stops, self.model):
                if self.system == BASE:
                    longer = {"max_new_tokens": self._limit(texts)} if any(detail for _, detail in kinds) else {}
                    return self._predict_base(inputs, {**arguments, **longer})
                if on_change is not None and self.min_confidence is None:  # nothing is shown before it is sure
                    arguments |= self._streaming(kinds, arguments, on_change)
                outputs = self.model.generate(**inputs, **arguments, return_dict_in_generate=True)
                return self._predictions(inputs, outputs, texts, fusions)
        except _AllStopped:
            return [Prediction()] * num_images

    def check(self, instruction: str) -> int:
        """Whether `predict` would take an instruction.

        Returns:
            Its number of tokens.

        Raises:
            RSMoEError: it holds a special token, or too many tokens (`ContextLengthError`).
        """
        _, (num_tokens,) = self._checked_inputs(torch.empty(1, 0, 0), [instruction])
        return num_tokens

    def stream(
        self,
        image: ImageInput | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        image_embeds: torch.Tensor | None = None,
    ) -> Generator[Prediction, None, None]:
        """One prediction as it grows: router prompts, expert texts, and the text, word by word if rewritten.

        Args:
            image: whatever `read_image` takes.
            instruction: what is asked of it.
            image_embeds: of `encode` (1, patches, vision width), in place of the image.

        Yields:
            What is known so far, more each time; the last is whole. Closing the iterator stops the generation.
        """
        changes: queue.Queue[Prediction | BaseException | None] = queue.Queue()
        left = threading.Event()

        def run() -> None:
            """In a thread of its own: `generate` calls back, the caller iterates."""
            try:
                (prediction,) = self.predict(
                    None if image is None else [image],
                    instruction,
                    image_embeds,
                    stop=left.is_set,
                    on_change=lambda _, change: changes.put(change),
                )
                changes.put(prediction)
                changes.put(None)
            except BaseException as error:  # the caller's thread raises it
                changes.put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            while (change := changes.get()) is not None:
                if isinstance(change, BaseException):
                    raise change
                yield change
        finally:
            left.set()

    @torch.inference_mode()
    def rewrite(self, image: ImageInput, instruction: str, expert_texts: Mapping[str, str]) -> str:
        """What the base LM makes of an image and texts that were written about it.

        Args:
            image: whatever `read_image` takes.
            instruction: what is asked of it.
            expert_texts: by the experts' names, in order.
        """
        inputs = self._inputs(self.encode([image]), [Prompt.rewrite(instruction, expert_texts)])
        arguments = self._arguments()
        if task_of(instruction) == "detail":
            arguments["max_new_tokens"] = self._limit([instruction])
        (prediction,) = self._predict_base(inputs, arguments)
        return prediction.text

    def _checked_inputs(self, image_embeds: torch.Tensor, instructions: list[str]) -> tuple[dict[str, Any], list[int]]:
        """What `generate` needs, and the tokens of each instruction."""
        for text in dict.fromkeys(instructions):
            self.processor.refuse_special_tokens(text)
        inputs = self._inputs(image_embeds, [Prompt.base(text) for text in instructions])
        max_new_tokens = self._limit(instructions) or 0
        of_router = self.model._setting("router_max_new_tokens", dict(self.generation), None)
        counts = check_context(instructions, inputs, self.processor, self.model.config, max_new_tokens, of_router)
        return inputs, counts

    def _inputs(self, image_embeds: torch.Tensor, prompts: list[Prompt]) -> dict[str, Any]:
        processor: Any = self.processor
        inputs = processor(
            text=prompts,
            image_embeds=image_embeds.to(self.model.dtype),
            expert_inputs=self.system != BASE and all(prompt.kind == "base" for prompt in prompts),
            return_tensors="pt",
        )
        return dict(inputs.to(self.model.device))

    def _predict_base(self, inputs: dict[str, Any], arguments: dict[str, Any]) -> list[Prediction]:
        """What the base LM says alone."""
        arguments = {name: value for name, value in arguments.items() if name not in ("router_mode", "fusion")}
        sequences: Any = self.model.generate(**inputs, **arguments)
        new_tokens = sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new_tokens, skip_special_tokens=True)
        return [Prediction(text.strip()) for text in texts]

    def _arguments(self) -> dict[str, Any]:
        is_fast = is_greedy(self.model.generation_config, **self.generation)
        return {**self.generation, **({"custom_generate": shrinking_greedy} if is_fast else {})}

    def _limit(self, instructions: Sequence[str]) -> int | None:
        """New tokens of a text, the most of all instructions."""
        if given := self.generation.get("max_new_tokens"):
            return given
        of_sentence = self.model.generation_config.max_new_tokens
        if not any(task_of(text) == "detail" for text in instructions):
            return of_sentence
        of_paragraph = self.model._setting("detail_max_new_tokens", dict(self.generation), None)
        has_others = any(task_of(text) != "detail" for text in instructions)
        return max(of_sentence or 0, of_paragraph) if has_others else of_paragraph

    def _fusions(self, inputs: dict[str, Any]) -> list[str]:
        """Of each image."""
        fusion = self.generation.get("fusion") or getattr(self.model.generation_config, "fusion", None) or "auto"
        return self.model.resolve_fusion(fusion, inputs.get("task_ids"), len(inputs["input_ids"]))

    def _predict_by_kind(self, kinds, texts, image_embeds, stops, on_change) -> list[Prediction]:
        """One call for each fusion and length: its images have equally many sequences, so that each stop finds its
        own."""
        predictions: dict[int, Prediction] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, other in enumerate(kinds) if other == kind]
            changes = on_change and (lambda index, change, places=places: on_change(places[index], change))
            members = [texts[place] for place in places], image_embeds[places], [stops[place] for place in places]
            predictions |= zip(places, self.predict(None, *members, changes))
        return [predictions[place] for place in range(len(texts))]

    def _streaming(
        self,
        kinds: list[tuple[str, bool]],
        arguments: dict[str, Any],
        on_change: Callable[[int, Prediction], None],
    ) -> dict[str, Any]:
        """A single image's steps always; texts only where all are written token by token."""
        if (arguments.get("num_beams") or self.model.generation_config.num_beams or 1) > 1:
            return {}  # transformers' search streams no beams
        has_tokens = len(set(kinds)) == 1 and kinds[0][0] == "rewrite"
        if len(kinds) > 1 and not has_tokens:
            return {}
        return {"streamer": _Changes(self.processor, len(kinds), on_change, has_tokens)}

    def _predictions(
        self, inputs: dict[str, Any], outputs: Any, instructions: list[str], fusions: list[str]
    ) -> list[Prediction]:
        predictions = []
        for place, texts in enumerate(self.processor.post_process_generation(outputs)):
            new_tokens = outputs.sequences[place, outputs.prompt_length :].tolist()
            is_joined = fusions[place] in ("concat", "sentences")
            written = outputs.expert_sequences[place].tolist() if is_joined else [new_tokens]
            limit = self._limit(instructions[place : place + 1])
            longest = max(len(self.model._trim(tokens, {})) for tokens in written)
            scores = {}
            is_reranked = outputs.sequences_scores is not None and outputs.beam_indices is None
            if is_reranked and not outputs.sequences_scores[place].isnan():
                scores["reranker"] = float(outputs.sequences_scores[place])
            prediction = Prediction(
                **texts,
                scores=scores,
                num_prompt_tokens=int(inputs["attention_mask"][place].sum()),
                num_tokens=len(self.model._trim(new_tokens, {})),
                finish_reason="length" if limit is not None and longest >= limit else "stop",
            )
            if self.min_confidence is not None:
                prediction = prediction.withhold(self.min_confidence, instructions[place])
            predictions.append(prediction)
        return predictions


def _experts_of(system: str, experts: Sequence[str]) -> list[str] | None:
    """The experts that a system has, in the model's order; None for all of them."""
    kind, _, names = system.partition(":")
    chosen = [name for name in experts if name in names.split(",")]
    if system in (FULL, BASE):
        return None
    is_known = set(names.split(",")) <= set(experts) and (kind == FULL or (kind == EXPERTS and len(chosen) == 1))
    if not is_known:
        known = [FULL, f"{FULL}:NAME,NAME", BASE, *(f"{EXPERTS}:{name}" for name in experts)]
        raise RSMoEError(f'there is no "{system}" to evaluate; known: {", ".join(known)}')
    return chosen


class _Stopped(StoppingCriteria):
    """Stops the sequences of images whose `stop` says so. An image's sequences (experts, beams) stand together."""

    every_decode = True

    def __init__(self, stops: list[Stop]):
        self.stops = stops

    def __call__(self, input_ids, scores, **kwargs):
        stopped = [stop() for stop in self.stops]
        num_sequences = len(input_ids)
        of_sequences = [stopped[index * len(stopped) // num_sequences] for index in range(num_sequences)]
        return torch.tensor(of_sequences, device=input_ids.device)


class _AllStopped(Exception):
    """Nobody waits for a batch any more."""


@contextmanager
def _ending_with_the_last(stops: list[Stop], model: Any) -> Iterator[None]:
    """Raises `_AllStopped` before the model's next layer, in this thread, once all stops return true: no long prompt
    is read on in vain."""
    thread = threading.get_ident()

    def end(*_: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == thread and all(stop() for stop in stops):
            raise _AllStopped

    layers = [module for module in model.modules() if stops and isinstance(module, GradientCheckpointingLayer)]
    handles = [layer.register_forward_pre_hook(end) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Changes(BaseStreamer):
    """Tells what is known of each image whenever there is more; with `has_tokens` texts as they are written."""

    def __init__(
        self,
        processor: "RSMoEProcessor",
        num_images: int,
        on_change: Callable[[int, Prediction], None],
        has_tokens: bool,
    ):
        self.processor, self.on_change, self.has_tokens = processor, on_change, has_tokens
        self.predictions = [Prediction() for _ in range(num_images)]
        self.tokens: list[list[int]] = [[] for _ in range(num_images)]
        self.has_prompts = False

    def put_step(self, name: str, ids: torch.Tensor) -> None:
        if len(self.predictions) == 1:
            self._change(0, **{name: self.processor.decode_by_expert(ids)})

    def put(self, value: torch.Tensor) -> None:
        if not self.has_tokens:
            return
        if not self.has_prompts:
            self.has_prompts = True
            return
        for place, token in enumerate(value.tolist()):  # [num_images]; sequences that have ended are padded
            self.tokens[place].append(token)
            text = self.processor.tokenizer.decode(self.tokens[place], skip_special_tokens=True).strip()
            shown = self.predictions[place].text
            # A character of several bytes may not be whole yet.
            if text != shown and text.startswith(shown) and not text.endswith("\ufffd"):
                self._change(place, text=text)

    def end(self) -> None:
        pass

    def _change(self, place: int, **changes: Any) -> None:
        self.predictions[place] = replace(self.predictions[place], **changes)
        self.on_change(place, self.predictions[place])
