"""Generation: the router writes, all experts of all images answer in one batched decode, and their parts become one text.

Works on token ids only: the processor prepares every row, so the model needs no tokenizer. The paper did not tell how
the experts' texts become one answer; the fusions here are [our decision].
"""

from dataclasses import dataclass
from itertools import dropwhile
from os.path import commonprefix
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .decoding_rsmoe import RowDecodingMixin, fast_products
from .errors_rsmoe import RSMoEError


ROUTER_MODES = ("generated", "template", "none")
FUSIONS = ("concat", "rewrite", "rerank")
# Settings of the whole path: keyword arguments of `generate`, else entries of a generation config, else these.
DEFAULTS = {"router_mode": "generated", "fusion": "concat", "router_max_new_tokens": 24}
# Tokens that a step of the composing base LM may take over from its prompt, which holds the parts: it copies much of
# them. A step over so many more costs little, and the text stays the same (prompt lookup).
LOOKUP = 3
PLAIN_GREEDY = {  # what decoding arguments may be where every step takes its likeliest token
    "do_sample": (None, False),
    "num_beams": (None, 1),
    "use_cache": (None, True),
    "cache_implementation": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_model": (None,),
}
# Made by the processor for the whole path; a model's own forward ignores them.
EXPERT_INPUTS = (
    "router_input_ids",  # [images, experts, tokens]: the router's row for each expert
    "expert_input_ids",  # [images, experts, tokens]: each expert's row, with one <prompt> token where its prompt goes
    "expert_qformer_input_ids",  # [images, experts, Q-Former tokens]: each expert's sub-task instruction
    "rewrite_input_ids",  # [images, tokens]: the base LM's row, with a <prompt> token for each expert's part
    "template_prompt_ids",  # [images, experts, tokens]: each expert's fixed prompt
    "instruction_ids",  # [images, tokens]: the global instruction
)


@dataclass
class RSMoEGenerateOutput(ModelOutput):
    """
    sequences (`torch.LongTensor` of shape `(images, tokens)`):
        The given prompt and the final text, as every `generate` returns it.
    router_prompts (`torch.LongTensor` of shape `(images, experts, tokens)`):
        What each expert was asked.
    expert_sequences (`torch.LongTensor` of shape `(images, experts, tokens)`):
        What each expert wrote.
    prompt_length (`int`):
        How many tokens of `sequences` are the prompt.
    scores (`tuple[torch.Tensor]`, *optional*): of the composing base LM, with `fusion="rewrite"` and
    `output_scores`. logits (`tuple[torch.Tensor]`, *optional*): likewise, with `output_logits`.
    sequences_scores (`torch.FloatTensor` of shape `(texts,)`, *optional*):
        With `fusion="rerank"`: how well the reranker found the texts to fit their images.
    """

    sequences: torch.LongTensor | None = None
    router_prompts: torch.LongTensor | None = None
    expert_sequences: torch.LongTensor | None = None
    prompt_length: int | None = None
    scores: tuple[torch.Tensor] | None = None
    logits: tuple[torch.Tensor] | None = None
    sequences_scores: torch.FloatTensor | None = None


class RSMoEGenerationMixin(RowDecodingMixin):
    """`generate` of [`RSMoEForConditionalGeneration`], in front of transformers' own."""

    # Of the model that this is mixed into.
    config: Any
    generation_config: Any
    model: Any
    lm_head: Any
    __call__: Any
    encode_image: Any
    get_image_features: Any

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, streamer=None, **kwargs):
        """Route, let the experts write and compose; with plain `input_ids`, transformers' own `generate`.

        The whole path runs when the processor's expert inputs are among the arguments (its default). Decoding
        arguments (greedy, beams, sampling, lengths) hold for the experts and for composing; the router always decodes
        greedily, since its prompts are short and bound to the image [our decision].

        Args:
            router_mode (`str`, *optional*): `"generated"`: the router writes each expert's prompt [paper];
                `"template"`: fixed prompts; `"none"`: every expert gets the global instruction.
            fusion (`str`, *optional*): `"concat"`: the parts in the experts' order, repeated sentences dropped;
                `"rewrite"`: the frozen base LM reads the parts and writes the text; `"rerank"`, for captions: of the base LM's own text and the parts (all beams or samples of them) the one that the model's reranker finds to
                fit the image best, or the `num_return_sequences` best.
            router_max_new_tokens (`int`, *optional*, defaults to 24): limit of a router prompt.
            return_dict_in_generate (`bool`, *optional*): return [`RSMoEGenerateOutput`] with prompts and parts.
            streamer (`BaseStreamer`, *optional*): of one image; gets the final text. One that has a method
                `put_step(name, ids)` also gets `"router_prompts"` and `"parts"` as soon as they are written, with ids of
                shape `(experts, tokens)`.

        Returns:
            `torch.LongTensor` of shape `(images, tokens)` (prompt and text), or [`RSMoEGenerateOutput`].

        Raises:
            RSMoEError: an unknown router mode or fusion (the known ones are listed), or `"rerank"` of a model without a
                reranker.
        """
        composed = {name: kwargs.pop(name, None) for name in EXPERT_INPUTS}
        kwargs.pop(
            "mm_token_type_ids", None
        )  # of servers that ask the processor for it; it says what `input_ids` says
        settings = {name: self._setting(name, kwargs, generation_config) for name in DEFAULTS}
        with self.model.rows.stacked_once(), fast_products(self.model.language_model, self.lm_head):
            if composed["expert_input_ids"] is None:
                return super().generate(
                    inputs=inputs, generation_config=generation_config, streamer=streamer, **kwargs
                )
            input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
            if input_ids is None:
                raise RSMoEError("The expert inputs came without input_ids; pass all that the processor returned.")
            for name in ("input_ids", "attention_mask"):
                kwargs.pop(name, None)
            kwargs["generation_config"] = generation_config
            return self._route_and_compose(input_ids, composed, settings, streamer, kwargs)

    def _argument(self, name: str, kwargs: dict, generation_config):
        """Taken out of `kwargs`, else an entry of the given generation config, else of the model's own."""
        value = kwargs.pop(name, None)
        for config in (generation_config, self.generation_config):
            value = getattr(config, name, None) if value is None else value
        return value

    def _is_plain_greedy(self, kwargs: dict) -> bool:
        return all(
            self._argument(name, dict(kwargs), kwargs["generation_config"]) in plain
            for name, plain in PLAIN_GREEDY.items()
        )

    def _setting(self, name: str, kwargs: dict, generation_config):
        value = self._argument(name, kwargs, generation_config)
        value = DEFAULTS[name] if value is None else value
        known = {"router_mode": ROUTER_MODES, "fusion": FUSIONS}.get(name)
        if known and value not in known:
            raise RSMoEError(f"Unknown {name} {value!r}; known are {', '.join(known)}.")
        if value == "rerank" and self.model.reranker is None:
            raise RSMoEError(
                "fusion 'rerank' needs a reranker, and this checkpoint has none: fit one by `rsmoe train reranker`, or give "
                "'rewrite' or 'concat'."
            )
        return value

    def _route_and_compose(self, input_ids, composed, settings, streamer, kwargs):
        images, experts = composed["expert_input_ids"].shape[:2]
        if input_ids.shape[0] != images:
            raise RSMoEError(
                f"input_ids has {input_ids.shape[0]} rows, expert_input_ids {images}; they must be equal."
            )
        image_embeds = kwargs.pop("image_embeds", None)
        pixel_values = kwargs.pop("pixel_values", None)
        if image_embeds is None and pixel_values is None:
            raise RSMoEError("The expert inputs came without images; pass pixel_values or image_embeds.")
        image_embeds = self.encode_image(pixel_values) if image_embeds is None else image_embeds  # once for all rows
        if image_embeds.shape[0] != images:
            raise RSMoEError(
                f"{image_embeds.shape[0]} images were given for {images} rows of text; give one for each."
            )
        whole = self.get_image_features(
            image_embeds=image_embeds,
            qformer_input_ids=kwargs.pop("qformer_input_ids", None),
            qformer_attention_mask=kwargs.pop("qformer_attention_mask", None),
            return_dict=True,
        ).pooler_output  # [images, queries, hidden_size]: read under the global instruction
        given = kwargs["generation_config"]
        output_dict = bool(self._argument("return_dict_in_generate", kwargs, given))
        wanted = {name: self._argument(name, kwargs, given) for name in ("output_scores", "output_logits")}
        scores = {name: True for name, value in wanted.items() if value and output_dict}
        samples = self._argument("num_return_sequences", kwargs, given) or 1

        prompts = self._prompts(composed, settings, whole, experts)
        self._put_step(streamer, "router_prompts", prompts)
        expert_instructions = composed["expert_qformer_input_ids"].flatten(0, 1)
        own = self.get_image_features(
            image_embeds=image_embeds.repeat_interleave(experts, dim=0),
            qformer_input_ids=expert_instructions,
            qformer_attention_mask=(expert_instructions != self.config.qformer_config.pad_token_id).long(),
            return_dict=True,
        ).pooler_output  # [images x experts, queries, hidden_size]: read under each expert's sub-task instruction
        rows = self._filled(composed["expert_input_ids"].flatten(0, 1), [[prompt] for prompt in prompts])
        fusion = settings["fusion"]
        each = 1 if fusion == "rewrite" else samples
        if fusion == "rerank":  # the base LM's own row stands before the experts' of the same image
            beams, draws = (self._argument(name, dict(kwargs), given) for name in ("num_beams", "do_sample"))
            each = max(beams or 1, samples if draws else 1)
            rows = [
                row
                for i, own_row in enumerate(self._unpadded(input_ids))
                for row in (own_row, *rows[i * experts : (i + 1) * experts])
            ]
            own = torch.cat([whole.unsqueeze(1), own.unflatten(0, (images, experts))], dim=1).flatten(0, 1)
        written = self._write(self._padded(rows, input_ids.device), own, num_return_sequences=each, **kwargs)
        readers = len(rows) // images
        # [images x readers x samples] -> for each sample of each image, its experts in order
        parts = [
            [written[(image * readers + reader) * each + sample] for reader in range(readers - experts, readers)]
            for image in range(images)
            for sample in range(1 if fusion == "rerank" else each)
        ]
        self._put_step(streamer, "parts", parts[0])
        extra = {}
        if fusion == "concat":
            texts = [self._concat(of_image) for of_image in parts]
            self._stream(streamer, input_ids, texts)
        elif fusion == "rerank":
            texts, found = self._choose(image_embeds, written, samples)
            extra = {"sequences_scores": found}
            self._stream(streamer, input_ids, texts)
        else:
            rows = self._padded(self._filled(composed["rewrite_input_ids"], parts), input_ids.device)
            # transformers looks up for one row only.
            alone = len(parts) == 1 and streamer is None and not scores and self._is_plain_greedy(kwargs)
            lookup = {"prompt_lookup_num_tokens": LOOKUP} if alone else {}
            outputs = self._generate_rows(
                rows,
                whole,
                streamer=streamer,
                num_return_sequences=samples,
                return_dict_in_generate=bool(scores),
                **scores,
                **lookup,
                **kwargs,
            )
            sequences = outputs.sequences if scores else outputs
            texts = [self._trim(row) for row in sequences[:, rows[0].shape[1] :].tolist()]
            extra = {name: outputs.get(name) for name in ("scores", "logits")} if scores else {}

        eos = self._eos()[:1]
        final = self._pad([text + eos for text in texts], input_ids.device)
        sequences = torch.cat([input_ids.repeat_interleave(samples, dim=0), final], dim=1)
        if not output_dict:
            return sequences
        shape = (len(parts), experts, -1)
        return RSMoEGenerateOutput(
            sequences=sequences,
            router_prompts=self._pad(prompts, input_ids.device).view(images, experts, -1),
            expert_sequences=self._pad([part for of_image in parts for part in of_image], input_ids.device).view(
                shape
            ),
            prompt_length=input_ids.shape[1],
            **extra,
        )

    def _prompts(self, composed, settings, whole, experts: int) -> list[list[int]]:
        """The prompt of each expert of each image, [images x experts]."""
        pad = self._pad_id()
        templates = [[i for i in row if i != pad] for row in composed["template_prompt_ids"].flatten(0, 1).tolist()]
        if settings["router_mode"] == "template":
            return templates
        if settings["router_mode"] == "none":
            instructions = composed["instruction_ids"].repeat_interleave(experts, dim=0).tolist()
            return [[i for i in row if i != pad] for row in instructions]
        written = self._route(composed["router_input_ids"], whole, settings["router_max_new_tokens"])
        # A router that says nothing leaves the expert its fixed prompt [our decision].
        return [prompt or template for prompt, template in zip(written, templates)]

    def _route(self, router_input_ids: torch.LongTensor, whole: torch.Tensor, limit: int) -> list[list[int]]:
        """What the router writes for each expert of each image, [images x experts]. The rows of an image are alike up to the
        expert's name, the image included: so much is read once for all of them."""
        experts = router_input_ids.shape[1]
        groups = [self._unpadded(of_image) for of_image in router_input_ids]
        alike = [min(len(commonprefix(rows)), *(len(row) - 1 for row in rows)) for rows in groups]
        heads = [rows[0][:count] for rows, count in zip(groups, alike)]
        tails = [row[count:] for rows, count in zip(groups, alike) for row in rows]
        settings = {"max_new_tokens": limit, "do_sample": False, "num_beams": 1}
        given = self.generation_config
        own_cache = given.use_cache is not False and given.cache_implementation is None
        if not own_cache or any(self.config.image_token_id in row for row in tails):
            rows = self._padded([row for rows in groups for row in rows], whole.device)
            return self._write(rows, whole.repeat_interleave(experts, dim=0), **settings)
        ids, mask = self._padded(heads, whole.device)
        cache = DynamicCache(config=self.config.get_text_config())
        self(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            adapter_ids=self.model.get_adapter_ids(ids),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=whole)},
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(experts)
        cache.may_shrink = True  # type: ignore[attr-defined]  # nobody wants it back
        ids, mask = (value.repeat_interleave(experts, dim=0) for value in (ids, mask))
        tail_ids, tail_mask = self._padded(tails, whole.device)
        rows = torch.cat([ids, tail_ids], dim=1), torch.cat([mask, tail_mask], dim=1)
        return self._write(rows, None, past_key_values=cache, **settings)

    def _generate_rows(self, rows: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor | None, **kwargs):
        """transformers' own `generate` over finished rows and the image features that belong to them (`None`: a cache in
        `kwargs` holds them)."""
        input_ids, attention_mask = rows
        if features is not None:
            kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        return super().generate(  # type: ignore[misc]  # transformers annotates `self`
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        )

    def _write(
        self, rows: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor | None, **kwargs
    ) -> list[list[int]]:
        """The new tokens of every row, up to its end-of-sequence token."""
        sequences = self._generate_rows(rows, features, return_dict_in_generate=False, **kwargs)
        return [self._trim(row) for row in sequences[:, rows[0].shape[1] :].tolist()]

    def _filled(self, input_ids: torch.LongTensor, texts: list[list[list[int]]]) -> list[list[int]]:
        """Rows without padding, with texts in the place of <prompt> tokens."""
        filled = []
        for row, own in zip(self._unpadded(input_ids), map(iter, texts)):
            filled.append([token for i in row for token in (next(own) if i == self.config.prompt_token_id else [i])])
        return filled

    def _unpadded(self, input_ids: torch.LongTensor) -> list[list[int]]:
        """Rows without their padding on the left."""
        pad = self._pad_id()
        return [list(dropwhile(lambda token: token == pad, row)) for row in input_ids.tolist()]

    def _padded(self, rows: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded on the left: ids and mask [rows, tokens]."""
        ids = self._pad(rows, device, side="left")
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device) >= ids.shape[1] - lengths.unsqueeze(1)
        return ids, mask.long()

    def _concat(self, parts: list[list[int]]) -> list[int]:
        """The experts' parts in order; a sentence that was said before is dropped."""
        ends, said, text = set(self.config.sentence_end_token_ids), [], []
        for part in parts:
            sentence = []
            for position, token in enumerate(part, start=1):
                sentence.append(token)
                if token in ends or position == len(part):
                    if sentence not in said:
                        said.append(sentence)
                        text += sentence
                    sentence = []
        return text

    def _choose(
        self, image_embeds: torch.Tensor, written: list[list[int]], number: int
    ) -> tuple[list[list[int]], torch.Tensor]:
        """The `number` texts of each image that the reranker finds best, best first, and its scores [images x number]. Where
        fewer differ, they come again."""
        count = len(written) // len(image_embeds)
        starts = range(0, len(written), count)
        different = [list(map(list, dict.fromkeys(map(tuple, written[start : start + count])))) for start in starts]
        chosen, found = [], []
        for some, scores in zip(different, self.model.reranker(image_embeds, different)):
            order = scores.argsort(descending=True, stable=True).tolist()
            for place in range(number):
                index = order[place % len(order)]
                chosen.append(some[index])
                found.append(scores[index])
        return chosen, torch.stack(found)

    def _stream(self, streamer, input_ids: torch.LongTensor, texts: list[list[int]]) -> None:
        if streamer is None:
            return
        if len(texts) > 1:
            raise ValueError(f"A streamer takes one text; this call makes {len(texts)}.")
        streamer.put(input_ids.cpu())
        for token in texts[0]:
            streamer.put(torch.tensor([token]))
        streamer.end()

    def _put_step(self, streamer, name: str, rows: list[list[int]]) -> None:
        if hasattr(streamer, "put_step"):
            streamer.put_step(name, self._pad(rows, "cpu"))

    def _pad(self, rows: list[list[int]], device, side: str = "right") -> torch.Tensor:
        width, pad = max(1, *map(len, rows)), self._pad_id()
        fill = [[pad] * (width - len(row)) for row in rows]
        padded = [extra + row if side == "left" else row + extra for row, extra in zip(rows, fill)]
        return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), width)

    def _trim(self, row: list[int]) -> list[int]:
        stop = {*self._eos(), self._pad_id()}
        return row[: next((i for i, token in enumerate(row) if token in stop), len(row))]

    def _eos(self) -> list[int]:
        eos = self.generation_config.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    def _pad_id(self) -> int:
        pad = self.generation_config.pad_token_id
        if pad is None:
            pad = (self._eos() or [0])[0]
        return pad

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict) -> Any:
        """Images to features once, before the rows are multiplied for beams; given features are taken as they are."""
        names = ("pixel_values", "image_embeds", "qformer_input_ids", "qformer_attention_mask")
        images = {name: model_kwargs.pop(name) for name in names if model_kwargs.get(name) is not None}
        if "pixel_values" in images or "image_embeds" in images:
            if model_kwargs.get("mm_encoder_outputs"):
                raise ValueError("Give images or mm_encoder_outputs, not both.")
            model_kwargs["mm_encoder_outputs"] = {"image": self.get_image_features(**images, return_dict=True)}
        return model_kwargs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        """Who reads each row is settled here, once for each `generate`, from the whole prompt; later steps carry it along,
        because a row's new tokens do not hold its expert token."""
        if model_kwargs.get("adapter_ids") is None and input_ids is not None and input_ids.shape[1]:
            model_kwargs["adapter_ids"] = self.model.get_adapter_ids(input_ids)
        expand = super()._expand_inputs_for_generation  # type: ignore[misc]  # transformers annotates `self`
        return expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)


__all__ = ["RSMoEGenerateOutput"]
