"""Generation: the router writes, all experts of all images answer in one batch, and their texts become one text.

Works on token ids only: the processor prepares every sequence, so the model needs no tokenizer. The paper did not tell
how the experts' texts become one answer; the fusions here are [our decision].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from transformers.generation import GenerateDecoderOnlyOutput, PrefixConstrainedLogitsProcessor

from .arguments_rsmoe import (
    DEFAULTS,
    FUSIONS,
    ROUTER_MODES,
    check_arguments,
    of_experts,
    of_router,
)
from .confidence_rsmoe import RSMoEConfidenceMixin
from .errors_rsmoe import RSMoEError
from .fusion_rsmoe import Images, Plan, RSMoEFusionMixin
from .low_rank_rsmoe import stacked_adapters
from .paragraphs_rsmoe import Sentence
from .prompting_rsmoe import TASKS
from .sequences_rsmoe import (
    EXPERT_INPUTS,
    ONE_IMAGE,
    SEQUENCES,
    Tokens,
    by_expert,
    fill_slots,
    pad_right,
    shared_prefix_length,
    unpad,
)


@dataclass
class RSMoEGenerateOutput(GenerateDecoderOnlyOutput):
    """
    The other fields are those of every `generate`; `scores`, `logits`, `attentions` and `hidden_states` are the
    rewriting base LM's.

    Args:
        sequences (`torch.LongTensor` of shape `(num_texts, sequence_length)`): The given prompt and the final text.
        router_prompts (`torch.LongTensor` of shape `(num_images, num_experts, tokens)`): What each expert was asked.
        expert_sequences (`torch.LongTensor` of shape `(num_images, num_experts, tokens)`):
            What each expert wrote; with `fusion="concat"` or `"sentences"` for each of `num_return_sequences`.
        prompt_length (`int`): How many tokens of `sequences` are the prompt.
        sentences (`torch.LongTensor` of shape `(num_texts, num_sentences, tokens)`):
            The sentences of each paragraph; those of other texts are empty.
        sentence_writers (`torch.LongTensor` of shape `(num_texts, num_sentences)`):
            Who wrote each: an expert's place, `num_experts` for the base LM, one more for rewriting, -1 for an empty
            one.
        sequences_scores (`torch.FloatTensor` of shape `(num_texts,)`, *optional*):
            How well the reranker found each text to fit its image, not a number for texts that were rewritten; without
            a reranker those of beams.
        confidences (`torch.FloatTensor` of shape `(num_texts,)`, *optional*):
            The probability that each text is right, of a model that it was fitted to; not a number for an empty text.
        expert_confidences (`torch.FloatTensor` of shape `(num_images, num_experts)`, *optional*):
            Likewise, of the expert texts, in the order of `expert_sequences`.
        sentence_confidences (`torch.FloatTensor` of shape `(num_texts, num_sentences)`, *optional*):
            Likewise, of a paragraph's sentences.
        beam_indices (`torch.LongTensor` of shape `(num_texts, new_tokens)`, *optional*):
            The beams that wrote each token of a rewritten text.
    """

    router_prompts: torch.Tensor | None = None
    expert_sequences: torch.Tensor | None = None
    prompt_length: int | None = None
    sentences: torch.Tensor | None = None
    sentence_writers: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    confidences: torch.Tensor | None = None
    expert_confidences: torch.Tensor | None = None
    sentence_confidences: torch.Tensor | None = None
    beam_indices: torch.Tensor | None = None


def auto_fusion(task: str, has_reranker: bool) -> str:
    """What the fusion `"auto"` comes to [our decision].

    Args:
        task (`str`): One of `prompting_rsmoe.TASKS`.
        has_reranker (`bool`): Whether the model has one.
    """
    if task == "detail":
        return "sentences" if has_reranker else "concat"
    return "rerank" if has_reranker and task == "caption" else "rewrite"


class RSMoEGenerationMixin(RSMoEConfidenceMixin, RSMoEFusionMixin):
    """`generate` of [`RSMoEForConditionalGeneration`], in front of transformers' own."""

    encode_image: Any  # of the model that this is mixed into

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs=None, generation_config=None, streamer=None, **kwargs
    ):
        """Route, let the experts write and fuse their texts; with plain `input_ids`, transformers' own `generate`.

        The full model runs when the processor's expert inputs are among the arguments (its default). Decoding
        arguments (greedy, beams, sampling, lengths) hold for the experts and for rewriting; the router always decodes
        greedily, since its prompts are short and bound to the image [our decision]. A `repetition_penalty` is not for
        the router, and counts what a text itself has written, not its prompt. What follows or steers a text
        (`stopping_criteria`, `logits_processor`, `prefix_allowed_tokens_fn`, `stop_strings`, `streamer`) belongs to
        the text that you get: to rewriting or, with the other fusions, to each expert's text, by a copy. It
        sees your `input_ids` and the new tokens, a row for each image. A stopping criterion with `every_decode = True`
        sees, and stops, the sequences of router, experts and rewriting; a `custom_generate` that has it writes the
        router's prompts, too.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): As `input_ids`.
            generation_config (`GenerationConfig`, *optional*):
                Decoding arguments; may hold `router_mode`, `fusion`, `router_max_new_tokens`,
                `detail_max_new_tokens` and `detail_num_beams`.
            streamer (`BaseStreamer`, *optional*):
                Of one image; gets the final text. One that has a method `put_step(name, ids)` also gets
                `"router_prompts"` and `"expert_texts"` as soon as they are written, with ids of shape `(num_experts,
                tokens)`.
            router_mode (`str`, *optional*, defaults to `"generated"`):
                `"generated"`: the router writes each expert's prompt [paper]; `"template"`: fixed prompts; `"none"`:
                every expert gets the user's instruction.
            fusion (`str`, *optional*, defaults to `"auto"`):
                `"concat"`: the expert texts in order, repeated sentences dropped; `"rewrite"`: the base LM reads the
                expert texts and writes the text; `"rerank"`: of the base LM's own text and the expert texts (all beams
                or samples of them) the one that the reranker finds to fit the image best, or the
                `num_return_sequences` best; `"sentences"`: of the sentences of all these those that the image supports
                and that say something new (where several are to be returned, of one text of each writer for each);
                `"auto"`: `"rerank"` for captions and `"sentences"` for details where the model has a reranker, else
                `"concat"` for details and `"rewrite"` for all others.
            router_max_new_tokens (`int`, *optional*, defaults to 24): Limit of a router prompt.
            detail_max_new_tokens (`int`, *optional*, defaults to 256):
                In place of the configured `max_new_tokens` where an instruction asks for details. A `max_new_tokens`
                that is given to this call holds for them too.
            detail_num_beams (`int`, *optional*):
                In place of the configured `num_beams` for paragraphs of `"sentences"`. A `num_beams` that is given to
                this call, also by a `generation_config`, holds for them too. Samples have no beams.
            return_dict_in_generate (`bool`, *optional*):
                Return [`RSMoEGenerateOutput`] with router prompts and expert texts.
            **kwargs:
                As of every `generate`. `output_scores` and its like, `assistant_model`, `prompt_lookup_num_tokens` and
                `guidance_scale` are for texts that are rewritten.

        Returns:
            `torch.LongTensor` of shape `(num_texts, sequence_length)` (prompt and text), or [`RSMoEGenerateOutput`].

        Raises:
            RSMoEError: an unknown router mode or fusion (the known ones are listed), `"rerank"` or `"sentences"` of a
                model without a reranker, inputs that do not belong together, an argument that the fusion cannot take,
                or logits that are not finite.
        """
        expert_inputs = {name: by_expert(kwargs.pop(name, None)) for name in EXPERT_INPUTS}
        kwargs.pop("mm_token_type_ids", None)  # of servers that ask the processor for it; `input_ids` says the same
        settings = {name: self._setting(name, kwargs, generation_config) for name in DEFAULTS}
        if expert_inputs["expert_input_ids"] is None and expert_inputs["task_ids"] is not None:
            raise RSMoEError(ONE_IMAGE)
        self._complete_image_inputs(inputs, kwargs)
        with stacked_adapters():
            if expert_inputs["expert_input_ids"] is None:
                return super().generate(  # type: ignore[misc]  # transformers annotates `self`
                    inputs=inputs, generation_config=generation_config, streamer=streamer, **kwargs
                )
            input_ids = kwargs.pop("input_ids", inputs)
            if input_ids is None:
                raise RSMoEError("The expert inputs came without input_ids; pass all that the processor returned.")
            kwargs["generation_config"] = generation_config
            return self._generate_fused(input_ids, expert_inputs, settings, streamer, kwargs)

    def _complete_image_inputs(self, inputs: torch.Tensor | None, kwargs: dict) -> None:
        """Images need a text, and the instruction that the Q-Former reads them under."""
        if all(kwargs.get(name) is None for name in ("pixel_values", "image_embeds")):
            return
        input_ids = kwargs.get("input_ids", inputs)
        if input_ids is None and kwargs.get("inputs_embeds") is None:
            raise RSMoEError(
                "Images came without input_ids: give the processor a text too, as in processor(images=image, text="
                '"Describe the image.", return_tensors="pt").'
            )
        if kwargs.get("qformer_input_ids") is None:
            kwargs |= self.model.read_instructions(input_ids)

    # ---- settings

    def _setting(self, name: str, kwargs: dict, generation_config):
        value = self._argument(name, kwargs, generation_config)
        kwargs.pop(name, None)
        value = DEFAULTS[name] if value is None else value
        known = {"router_mode": ROUTER_MODES, "fusion": FUSIONS}.get(name)
        if known and value not in known:
            raise RSMoEError(f"Unknown {name} {value!r}; known are {', '.join(known)}.")
        if value in ("rerank", "sentences") and self.model.reranker is None:
            raise RSMoEError(
                f"fusion {value!r} needs a reranker, and this checkpoint has none: fit one by `rsmoe train reranker`, "
                "or give 'rewrite' or 'concat'."
            )
        return value

    def resolve_fusion(self, fusion: str, task_ids: torch.Tensor | None, num_images: int) -> list[str]:
        """The fusion of each image.

        Args:
            fusion (`str`): One for all; `"auto"` depends on the task.
            task_ids (`torch.LongTensor` of shape `(num_images,)`, *optional*):
                Places in `prompting_rsmoe.TASKS`; without them every image is rewritten.
            num_images (`int`): How many there are.
        """
        if fusion != "auto":
            return [fusion] * num_images
        if task_ids is None:
            return ["rewrite"] * num_images
        has_reranker = self.model.reranker is not None
        return [auto_fusion(TASKS[task], has_reranker) for task in task_ids.tolist()]

    # ---- the full model

    def _generate_fused(self, input_ids, expert_inputs, settings, streamer, kwargs):
        num_images, num_experts = expert_inputs["expert_input_ids"].shape[:2]
        config = kwargs["generation_config"]
        returns_dict = bool(self._argument("return_dict_in_generate", kwargs, config))
        num_samples = self._argument("num_return_sequences", kwargs, config) or 1
        fusions = self.resolve_fusion(settings["fusion"], expert_inputs["task_ids"], num_images)
        check_arguments(lambda name: self._argument(name, kwargs, config), fusions)
        plans = self._plans(fusions, expert_inputs["task_ids"], settings, kwargs)
        if allowed := kwargs.pop("prefix_allowed_tokens_fn", None):
            constraint = PrefixConstrainedLogitsProcessor(allowed, self._argument("num_beams", kwargs, config) or 1)
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), constraint]
        sequences = self._sequences(input_ids, kwargs.pop("attention_mask", None), expert_inputs)
        images = self._encode_images(num_images, kwargs)

        router_prompts = self._router_prompts(sequences, settings, images, of_router(kwargs))
        self._put_step(streamer, "router_prompts", router_prompts[0])
        candidates = self._write_candidates(
            input_ids, sequences, expert_inputs, router_prompts, images, plans, num_samples, kwargs
        )
        self._put_step(streamer, "expert_texts", [texts[0] for texts in candidates[0][-num_experts:]])
        texts, sentences, extra = self._fuse(
            input_ids, sequences, images, candidates, plans, num_samples, streamer, kwargs
        )

        final = pad_right(texts, self._pad_token_id(kwargs), input_ids.device)
        outputs = torch.cat([input_ids.repeat_interleave(num_samples, dim=0), final], dim=1)
        if not returns_dict:
            return outputs
        samples = num_samples if settings["fusion"] in ("concat", "sentences") else 1
        expert_texts = [
            list(sample) for image in candidates for sample in islice(zip(*image[-num_experts:]), samples)
        ]  # of each image and sample
        sentence_tokens, writers = self._padded_sentences(sentences, input_ids.device)
        tasks = expert_inputs["task_ids"]
        is_answer = [False] * num_images if tasks is None else (tasks == TASKS.index("question")).tolist()
        written = [self._trim(text, kwargs) for text in texts]
        extra |= self._confidences(
            sequences["base"], images.embeds, images.features, is_answer, written, sentences, expert_texts
        )
        return RSMoEGenerateOutput(
            sequences=cast(torch.LongTensor, outputs),
            router_prompts=self._pad_by_expert(router_prompts, input_ids.device),
            expert_sequences=self._pad_by_expert(expert_texts, input_ids.device),
            prompt_length=input_ids.shape[1],
            sentences=sentence_tokens,
            sentence_writers=writers,
            **extra,
        )

    def _plans(self, fusions: list[str], task_ids, settings: dict, kwargs: dict) -> list[Plan]:
        """Of each image. What is given to the call holds for paragraphs too."""
        is_limited = any(kwargs.get(name) is not None for name in ("max_new_tokens", "max_length"))
        max_new_tokens = None if is_limited else settings["detail_max_new_tokens"]
        config = kwargs["generation_config"]
        # A config that is given may be a copy of the model's: then it says nothing of its own.
        is_searched = (
            kwargs.get("num_beams") is not None
            or getattr(config, "num_beams", None) not in (None, self.generation_config.num_beams)
            or self._argument("do_sample", kwargs, config)
        )
        num_beams = None if is_searched else settings["detail_num_beams"]
        detail = TASKS.index("detail")
        return [
            Plan(fusion, True, max_new_tokens, num_beams if fusion == "sentences" else None)
            if task == detail
            else Plan(fusion)
            for fusion, task in zip(fusions, [None] * len(fusions) if task_ids is None else task_ids.tolist())
        ]

    def _sequences(self, input_ids, attention_mask, expert_inputs) -> dict[str, list]:
        """Every kind of sequence without its padding: tokens of each image, or of each image and expert."""
        num_images = len(expert_inputs["expert_input_ids"])
        if len(input_ids) != num_images:
            raise RSMoEError(
                f"input_ids has {len(input_ids)} sequences, expert_input_ids {num_images}; they must be equal."
            )
        if attention_mask is None:
            attention_mask = input_ids != self._pad_token_id({})
        sequences = {"base": unpad(input_ids, attention_mask)}
        for name in SEQUENCES:
            sequences[name] = unpad(expert_inputs[f"{name}_input_ids"], expert_inputs[f"{name}_attention_mask"])
        return sequences

    def _encode_images(self, num_images: int, kwargs: dict) -> Images:
        """Each image through the ViT once, and through the Q-Former under the user's instruction."""
        image_embeds, pixel_values = kwargs.pop("image_embeds", None), kwargs.pop("pixel_values", None)
        if image_embeds is None and pixel_values is None:
            raise RSMoEError("The expert inputs came without images; pass pixel_values or image_embeds.")
        image_embeds = self.encode_image(pixel_values) if image_embeds is None else image_embeds
        if len(image_embeds) != num_images:
            raise RSMoEError(f"{len(image_embeds)} images were given for {num_images} texts; give one for each.")
        instructions = {name: kwargs.pop(name, None) for name in ("qformer_input_ids", "qformer_attention_mask")}
        outputs = self.get_image_features(image_embeds=image_embeds, **instructions, return_dict=True)
        return Images(image_embeds, outputs.pooler_output)

    # ---- the router

    def _router_prompts(
        self, sequences: dict[str, list], settings: dict, images: Images, arguments: dict
    ) -> list[list[Tokens]]:
        """The prompt of each image's experts."""
        templates = sequences["template_prompt"]
        if settings["router_mode"] == "template":
            return templates
        if settings["router_mode"] == "none":
            return [[instruction] * len(templates[0]) for instruction in sequences["instruction"]]
        arguments |= {"max_new_tokens": settings["router_max_new_tokens"]}
        written = self._route(sequences["router"], images.features, arguments)
        # A router that says nothing leaves the expert its fixed prompt [our decision].
        return [
            [prompt or template for prompt, template in zip(image_prompts, image_templates)]
            for image_prompts, image_templates in zip(written, templates)
        ]

    def _route(self, requests: list[list[Tokens]], features: torch.Tensor, arguments: dict) -> list[list[Tokens]]:
        """What the router writes for each image's experts. Its sequences of one image are alike up to the expert's
        name, the image included: so much is read once for all of them."""
        num_experts = len(requests[0])
        decoding = {**arguments, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}
        decoding["repetition_penalty"] = 1.0  # its prompts name things in one form: "the planes and the terminal"
        prefixes = [sequences[0][: shared_prefix_length(sequences)] for sequences in requests]
        rests = [request[len(prefix) :] for prefix, group in zip(prefixes, requests) for request in group]
        config = self.generation_config
        caches = config.use_cache is not False and config.cache_implementation is None
        if caches and not any(self.config.image_token_id in rest for rest in rests):
            prefix_ids, prefix_mask = self._pad_left(prefixes, features.device)
            cache = self._read(prefix_ids, prefix_mask, features)
            cache.batch_repeat_interleave(num_experts)
            rest_ids, rest_mask = self._pad_left(rests, features.device)
            ids = torch.cat([prefix_ids.repeat_interleave(num_experts, dim=0), rest_ids], dim=1)
            mask = torch.cat([prefix_mask.repeat_interleave(num_experts, dim=0), rest_mask], dim=1)
            prompts = self._decode(ids, mask, None, past_key_values=cache, **decoding)
        else:
            ids, mask = self._pad_left([request for group in requests for request in group], features.device)
            prompts = self._decode(ids, mask, features.repeat_interleave(num_experts, dim=0), **decoding)
        return [prompts[start : start + num_experts] for start in range(0, len(prompts), num_experts)]

    # ---- the experts

    def _write_candidates(
        self,
        input_ids,
        sequences,
        expert_inputs,
        router_prompts,
        images: Images,
        plans: list[Plan],
        num_samples: int,
        kwargs,
    ) -> list[list[list[Tokens]]]:
        """For each image what its experts wrote, and before them the base LM where texts or sentences are reranked: a
        list of samples or beams for each."""
        num_images, num_experts = len(plans), len(router_prompts[0])
        outputs = self.get_image_features(
            image_embeds=images.embeds.repeat_interleave(num_experts, dim=0),
            qformer_input_ids=expert_inputs["expert_qformer_input_ids"].flatten(0, 1),
            qformer_attention_mask=expert_inputs["expert_qformer_attention_mask"].flatten(0, 1),
            return_dict=True,
        )  # each expert reads the image under its sub-task instruction
        expert_features = outputs.pooler_output.unflatten(0, (num_images, num_experts))
        slot = self.config.prompt_token_id
        needs = [(self._num_candidates(plan, num_samples, kwargs), plan.is_detail) for plan in plans]
        candidates: list[list[list[Tokens]]] = [[] for _ in plans]
        for need in dict.fromkeys(needs):  # one batch, unless an image needs another number or length of texts
            members = [image for image in range(num_images) if needs[image] == need]
            prompts, features = [], []  # of each image
            for image in members:
                image_prompts = [
                    fill_slots(request, slot, [prompt])
                    for request, prompt in zip(sequences["expert"][image], router_prompts[image])
                ]
                image_features = expert_features[image]
                if plans[image].has_base:
                    image_prompts.insert(0, sequences["base"][image])
                    image_features = torch.cat([images.features[image].unsqueeze(0), image_features])
                prompts.append(image_prompts)
                features.append(image_features)
            ids, mask = self._pad_left([prompt for group in prompts for prompt in group], images.embeds.device)
            fusions = [plan.fusion for plan in plans]
            arguments = of_experts(kwargs, fusions, input_ids[members], ids.shape[1], len(prompts[0]))
            arguments["num_return_sequences"] = need[0]
            arguments = self._of_length(plans[members[0]], arguments, ids.shape[1])
            texts = iter(self._decode(ids, mask, torch.cat(features), **arguments))
            for image, image_prompts in zip(members, prompts):
                candidates[image] = [list(islice(texts, need[0])) for _ in image_prompts]
        return candidates

    def _num_candidates(self, plan: Plan, num_samples: int, kwargs: dict) -> int:
        """Texts of each expert."""
        if plan.fusion == "rewrite":
            return 1
        if plan.fusion == "concat" or (plan.fusion == "sentences" and num_samples > 1):
            return num_samples
        config = kwargs["generation_config"]
        num_beams, do_sample = (self._argument(name, kwargs, config) for name in ("num_beams", "do_sample"))
        return max(plan.num_beams or num_beams or 1, num_samples if do_sample else 1)

    # ---- sequences

    def _put_step(self, streamer, name: str, texts: list[Tokens]) -> None:
        if hasattr(streamer, "put_step"):
            streamer.put_step(name, self._pad(texts, "cpu"))

    def _padded_sentences(self, texts: list[list[Sentence]], device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [texts, sentences, tokens] and writers [texts, sentences], -1 where a text has fewer."""
        count = max(1, *map(len, texts)) if texts else 1
        padded = [sentences + [Sentence([], -1)] * (count - len(sentences)) for sentences in texts]
        tokens = self._pad([sentence.tokens for sentences in padded for sentence in sentences], device)
        writers = [[sentence.writer for sentence in sentences] for sentences in padded]
        return tokens.view(len(texts), count, -1), torch.tensor(writers, device=device)

    def _pad(self, sequences: Sequence[Tokens], device) -> torch.Tensor:
        """Padded on the right [batch_size, tokens]."""
        return pad_right(sequences, self._pad_token_id({}), device)

    def _pad_by_expert(self, texts: list[list[Tokens]], device) -> torch.Tensor:
        """[num_texts, num_experts, tokens]."""
        padded = self._pad([tokens for group in texts for tokens in group], device)
        return padded.view(len(texts), len(texts[0]), -1)


__all__ = ["RSMoEGenerateOutput"]
