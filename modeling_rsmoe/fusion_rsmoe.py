"""Fusion: the texts of the experts, and of the base LM beside them, become one text [our decision].

The paper did not tell how. `generate` (`generation_rsmoe.py`) has the texts written and then calls `_fuse`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch

from .arguments_rsmoe import OUTPUT_FIELDS, PLAIN_GREEDY, of_text
from .decoding_rsmoe import RSMoEDecodingMixin
from .paragraphs_rsmoe import EndsAtRepetition, Sentence, choose_sentences, without_repetitions, written_sentences
from .sequences_rsmoe import Tokens, fill_slots, join_sentences, pad_left


# Tokens that a step of the rewriting base LM may take over from its prompt, which holds the expert texts: it copies
# much of them. A step over so many more costs little, and the text stays the same (prompt lookup).
LOOKUP_TOKENS = 3


@dataclass
class Images:
    """Features of images: of the ViT, and as the base LM reads them under the user's instructions."""

    embeds: torch.Tensor  # [num_images, patches, vision width]
    features: torch.Tensor  # [num_images, num_query_tokens, hidden_size]


class Plan(NamedTuple):
    """How the text about an image is made."""

    fusion: str
    is_detail: bool = False  # a paragraph is asked for
    max_new_tokens: int | None = None  # of a paragraph; None: as of all texts of the call
    num_beams: int | None = None  # likewise

    @property
    def has_base(self) -> bool:
        """Whether the base LM writes beside the experts."""
        return self.fusion in ("rerank", "sentences")


class RSMoEFusionMixin(RSMoEDecodingMixin):
    """What `generate` does with the texts once they are written."""

    def _fuse(
        self, input_ids, sequences, images: Images, candidates, plans: list[Plan], num_samples: int, streamer, kwargs
    ) -> tuple[list[Tokens], list[list[Sentence]], dict[str, Any]]:
        """The final texts, `num_samples` of each image, the sentences of those that are paragraphs, and fields of the
        output."""
        texts: list[list[Tokens]] = [[] for _ in plans]
        sentences: list[list[list[Sentence]]] = [[[]] * num_samples for _ in plans]
        eos = self._eos_token_ids(kwargs)[:1]
        scores = torch.full((len(plans), num_samples), torch.nan, device=images.embeds.device)
        for image, plan in enumerate(plans):
            embeds = images.embeds[image : image + 1]
            if plan.fusion == "rerank":
                best, scores[image] = self._rerank(embeds, candidates[image], num_samples)
                texts[image] = [text + eos for text in best]
                if plan.is_detail:
                    sentences[image] = [self._reranked_sentences(text, candidates[image]) for text in best]
            elif plan.fusion == "sentences" or (plan.fusion == "concat" and plan.is_detail):
                samples = [candidates[image]]  # all beams of all, or of each paragraph one text
                if num_samples > 1:
                    samples = [[[text] for text in sample] for sample in zip(*candidates[image])]
                sentences[image] = [self._paragraph(plan, sample, embeds) for sample in samples]
                texts[image] = [_joined(kept) + eos for kept in sentences[image]]
            elif plan.fusion == "concat":
                ends = self.config.sentence_end_token_ids
                texts[image] = [join_sentences(sample, ends) + eos for sample in zip(*candidates[image])]
        extra: dict[str, Any] = {}
        is_whole = False  # all texts are written in one decode, which streams them
        for plan in dict.fromkeys(plan for plan in plans if plan.fusion == "rewrite"):
            members = [image for image, other in enumerate(plans) if other == plan]
            is_whole = len(members) == len(plans)
            expert_texts = [[samples[0] for samples in candidates[image]] for image in members]
            requests = [sequences["rewrite"][image] for image in members]
            arguments = {**kwargs, "num_return_sequences": num_samples, "streamer": streamer if is_whole else None}
            features = images.features[members]
            written, extra = self._rewrite(input_ids[members], requests, expert_texts, features, plan, arguments)
            for place, image in enumerate(members):
                texts[image] = written[place * num_samples : (place + 1) * num_samples]
                if plan.is_detail:
                    trimmed = [self._trim(text, kwargs) for text in texts[image]]
                    sentences[image] = [self._rewritten_sentences(text, candidates[image]) for text in trimmed]
                if plan.is_detail and not extra:  # fields of the output are as long as what was decoded
                    texts[image] = [_joined(kept) + eos for kept in sentences[image]]
        final = [text for image_texts in texts for text in image_texts]
        if not is_whole:
            extra = {}  # beams of some texts only are no field of the output
            self._stream(streamer, input_ids, final)
        if any(plan.fusion == "rerank" for plan in plans):
            extra["sequences_scores"] = scores.flatten()
        return final, [kept for of_image in sentences for kept in of_image], extra

    # ---- paragraphs

    def _of_length(self, plan: Plan, arguments: dict, prompt_length: int) -> dict:
        """Arguments of a decode that writes a sentence or, with other limits, a paragraph."""
        if not plan.is_detail:
            return arguments
        ends = EndsAtRepetition(prompt_length, self.config.sentence_end_token_ids)
        own = {"max_new_tokens": plan.max_new_tokens, "num_beams": plan.num_beams}
        arguments = arguments | {name: value for name, value in own.items() if value is not None}
        if (plan.num_beams or 1) > 1:
            arguments.pop("custom_generate", None)  # a loop of greedy searches
            arguments["early_stopping"] = True  # as many texts as beams are enough: the reranker chooses
        return {**arguments, "stopping_criteria": [*(arguments.get("stopping_criteria") or []), ends]}

    def _paragraph(self, plan: Plan, texts: Sequence[Sequence[Tokens]], embeds: torch.Tensor) -> list[Sentence]:
        """The sentences of what each expert wrote, and before them the base LM where it did."""
        ordered = [*texts[1:], texts[0]] if plan.has_base else texts
        ends, reranker = self.config.sentence_end_token_ids, self.model.reranker
        sentences = written_sentences([written[0] for written in ordered], range(len(ordered)), ends)
        if plan.fusion == "sentences":
            others = [(text, writer) for writer, written in enumerate(ordered) for text in written[1:]]
            more = written_sentences([text for text, _ in others], [writer for _, writer in others], ends)
            return choose_sentences(sentences, more, embeds, reranker, ends)
        return without_repetitions(sentences, (lambda _: 1.0) if reranker is None else reranker.weigh_token)

    def _reranked_sentences(self, text: Tokens, candidates: list[list[Tokens]]) -> list[Sentence]:
        """Of one text of an expert or, first among the candidates, the base LM."""
        num_experts = len(candidates) - 1
        writer = next(place for place, texts in enumerate(candidates) if text in texts) - 1
        writer = num_experts if writer < 0 else writer
        return written_sentences([text], [writer], self.config.sentence_end_token_ids)

    def _rewritten_sentences(self, text: Tokens, candidates: list[list[Tokens]]) -> list[Sentence]:
        return written_sentences([text], [len(candidates) + 1], self.config.sentence_end_token_ids)

    # ---- whole texts

    def _rerank(
        self, image_embeds: torch.Tensor, candidates: list[list[Tokens]], number: int
    ) -> tuple[list[Tokens], torch.Tensor]:
        """The `number` texts that fit the image best, and their scores. Where fewer differ, they come again."""
        texts = [list(text) for text in dict.fromkeys(tuple(text) for group in candidates for text in group)]
        (scores,) = self.model.reranker(image_embeds, [texts])
        order = scores.argsort(descending=True, stable=True).tolist()
        places = [order[index % len(order)] for index in range(number)]
        return [texts[place] for place in places], scores[places]

    def _rewrite(
        self, input_ids, requests: list[Tokens], expert_texts, features: torch.Tensor, plan: Plan, kwargs
    ) -> tuple[list[Tokens], dict[str, Any]]:
        """What the base LM makes of the expert texts, up to and with end and padding, and fields of the output."""
        prompts = [
            fill_slots(request, self.config.prompt_token_id, texts) for request, texts in zip(requests, expert_texts)
        ]
        ids, mask = self._pad_left(prompts, features.device)
        arguments = self._of_length(plan, of_text(kwargs, input_ids, ids.shape[1]), ids.shape[1])
        given = {
            name: self._argument(name, kwargs, kwargs["generation_config"])
            for name in (*OUTPUT_FIELDS, "num_beams", "return_dict_in_generate", *PLAIN_GREEDY)
        }
        has_fields = (given["num_beams"] or 1) > 1 or any(given[name] for name in OUTPUT_FIELDS)
        returns_dict = arguments["return_dict_in_generate"] = bool(given["return_dict_in_generate"]) and has_fields
        # transformers looks up for one sequence only, and its own search writes to streamers.
        is_alone = len(prompts) == 1 and kwargs["streamer"] is None
        if is_alone and not returns_dict and all(given[name] in plain for name, plain in PLAIN_GREEDY.items()):
            given["prompt_lookup_num_tokens"] = arguments["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        if kwargs["streamer"] or given["assistant_model"] or given["prompt_lookup_num_tokens"]:
            arguments.pop("custom_generate", None)
        outputs = self._generate_sequences(ids, mask, features, **arguments)
        rewritten = outputs.sequences if returns_dict else outputs
        fields = [*OUTPUT_FIELDS.values(), "sequences_scores", "beam_indices"] if returns_dict else []
        return rewritten[:, ids.shape[1] :].tolist(), {name: outputs.get(name) for name in fields}

    def _stream(self, streamer, input_ids: torch.LongTensor, texts: list[Tokens]) -> None:
        if streamer is None:
            return
        if len(texts) > 1:
            raise ValueError(f"A streamer takes one text; this call makes {len(texts)}.")
        streamer.put(input_ids.cpu())
        for token in texts[0]:
            streamer.put(torch.tensor([token]))
        streamer.end()

    def _pad_left(self, sequences: Sequence[Tokens], device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [batch_size, tokens]."""
        return pad_left(sequences, self._pad_token_id({}), device)


def _joined(sentences: Sequence[Sentence]) -> Tokens:
    return list(chain.from_iterable(sentence.tokens for sentence in sentences))


__all__ = ["Plan"]
