"""How likely a text is right about its image [our decision].

A logistic regression over a few signals. Of a statement about the image (a caption, an expert's text) they are what
reranker and object head find in the image; of an answer, how likely the base LM finds its tokens. The weights are few,
and stand in config.json as `confidence_weights`; `rsmoe train confidence` fits them.
"""

from collections.abc import Mapping, Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_rsmoe import ANSWER, BIAS, CONFIDENCE_SIGNALS, STATEMENT
from .decoding_rsmoe import RSMoEDecodingMixin
from .paragraphs_rsmoe import Sentence
from .reranker_rsmoe import pool_image_features
from .sequences_rsmoe import Tokens, pad_left


MAX_LOG_ODDS = 6.0  # of an object's presence: more is not known of so few labels


def confidence(weights: Mapping[str, float], kind: str, signals: torch.Tensor) -> torch.Tensor:
    """The probability that texts are right.

    Args:
        weights (`Mapping[str, float]`): Of each signal, and `bias`.
        kind (`str`): `"statement"` or `"answer"`.
        signals (`torch.FloatTensor` of shape `(num_texts, num_signals)`): In the order of `CONFIDENCE_SIGNALS[kind]`.

    Returns:
        `torch.FloatTensor` of shape `(num_texts,)`.
    """
    of_signals = torch.tensor([weights[name] for name in CONFIDENCE_SIGNALS[kind]], device=signals.device)
    return (signals.float() @ of_signals + weights[BIAS]).sigmoid()


class RSMoEConfidenceMixin(RSMoEDecodingMixin):
    """Signals of texts, and the confidence that they come to."""

    @torch.no_grad()
    def statement_signals(self, image_embeds: torch.Tensor, texts: Sequence[Tokens]) -> torch.Tensor:
        """What reranker and object head, both needed, find in an image of statements about it.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(1, patches, vision width)`): Of `encode_image`.
            texts (`Sequence[list[int]]`): Tokens of each statement.

        Returns:
            `torch.FloatTensor` of shape `(num_texts, 2)`: the reranker's score; the log-odds that the least likely of
            the objects mentioned is there (0 without one).
        """
        reranker = self.model.reranker
        (fit,) = reranker(image_embeds, [texts])
        presence = reranker.objects(pool_image_features(image_embeds))[0]
        log_odds = presence.logit().clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS).tolist()
        of_objects = dict(zip(reranker.objects.names, log_odds))
        mentioned = [reranker.objects.mentions(text) for text in texts]
        least = [min((of_objects[name] for name in names), default=0.0) for names in mentioned]
        return torch.stack([fit, fit.new_tensor(least)], dim=1)

    @torch.no_grad()
    def answer_signals(
        self, prompts: Sequence[Tokens], features: torch.Tensor, answers: Sequence[Tokens]
    ) -> torch.Tensor:
        """How likely the base LM, asked alone, finds answers.

        Args:
            prompts (`Sequence[list[int]]`): Of the base LM, one for each answer.
            features (`torch.FloatTensor` of shape `(num_answers, num_query_tokens, hidden_size)`):
                Of each prompt's image.
            answers (`Sequence[list[int]]`): Tokens of each answer, with what ends it.

        Returns:
            `torch.FloatTensor` of shape `(num_answers, 2)`: the mean log-probability of a token, and the least.
        """
        whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        ids, mask = pad_left(whole, self._pad_token_id({}), features.device)
        longest = max(map(len, answers))
        outputs = self(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
            logits_to_keep=longest + 1,
        )
        log_probs = outputs.logits[:, :-1].float().log_softmax(-1)
        log_probs = log_probs.gather(2, ids[:, -longest:, None]).squeeze(2)
        each = [values[-len(answer) :] for values, answer in zip(log_probs, answers)]
        return torch.stack([torch.stack([values.mean(), values.min()]) for values in each])

    def _confidences(
        self,
        prompts: Sequence[Tokens],
        embeds: torch.Tensor,
        features: torch.Tensor,
        is_answer: Sequence[bool],
        texts: Sequence[Tokens],
        sentences: Sequence[Sequence[Sentence]],
        expert_texts: Sequence[Sequence[Tokens]],
    ) -> dict[str, torch.Tensor]:
        """Fields of the output; none where nothing was fitted. An answer's expert texts are statements too. A
        paragraph is as likely as its least likely sentence.

        Args:
            prompts: of the base LM, of each image.
            embeds: of the ViT, of each image.
            features: of the Q-Former under the user's instruction, of each image.
            is_answer: of each image, whether it was asked a question.
            texts: without what ends them, equally many of each image.
            sentences: of each text, if it is a paragraph.
            expert_texts: equally many lists of each image.
        """
        if not self.config.confidence_weights:
            return {}
        num_images = len(embeds)
        values = torch.full((len(texts),), torch.nan, device=embeds.device)
        of_experts = torch.full((len(expert_texts), len(expert_texts[0])), torch.nan, device=embeds.device)
        of_sentences = torch.full((len(texts), max(1, *map(len, sentences))), torch.nan, device=embeds.device)
        for place, written in enumerate(expert_texts):
            image = place * num_images // len(expert_texts)
            of_experts[place] = self._of_statements(embeds[image : image + 1], written)
        answers = []
        for place, text in enumerate(texts):
            image = place * num_images // len(texts)
            if is_answer[image]:
                answers.append((place, image))
            elif sentences[place]:
                stated = [sentence.tokens for sentence in sentences[place]]
                of_sentences[place, : len(stated)] = self._of_statements(embeds[image : image + 1], stated)
                values[place] = of_sentences[place, : len(stated)].amin()
            else:
                values[place] = self._of_statements(embeds[image : image + 1], [text])[0]
        if answers and (weights := self.config.confidence_weights.get(ANSWER)):
            places, images = map(list, zip(*answers))
            end = self._eos_token_ids({})[:1]
            given = [prompts[image] for image in images], features[images], [texts[place] + end for place in places]
            values[places] = confidence(weights, ANSWER, self.answer_signals(*given))
        return {"confidences": values, "expert_confidences": of_experts, "sentence_confidences": of_sentences}

    def _of_statements(self, image_embeds: torch.Tensor, texts: Sequence[Tokens]) -> torch.Tensor:
        """Of texts about one image; not a number where a text is empty or nothing was fitted."""
        values = torch.full((len(texts),), torch.nan, device=image_embeds.device)
        places = [place for place, text in enumerate(texts) if text]
        weights = self.config.confidence_weights.get(STATEMENT)
        if weights and places:
            signals = self.statement_signals(image_embeds, [texts[place] for place in places])
            values[places] = confidence(weights, STATEMENT, signals)
        return values


__all__: list[str] = []
