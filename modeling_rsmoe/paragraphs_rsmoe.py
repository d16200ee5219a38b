"""Paragraphs: which of the sentences that the experts and the base LM wrote about an image stay, and who wrote each.

[our decision] A sentence stays if the image supports it and it says something new. Order: that of the experts, the
base LM last.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers.generation import StoppingCriteria

from .objects_rsmoe import RSMoEObjectHead
from .reranker_rsmoe import RSMoEReranker, pool_image_features
from .sequences_rsmoe import Tokens, split_sentences


# Of these, what gives 436 val images most coverage without a loss of faithfulness (docs/explanation/fusion.md).
MIN_PRESENCE = 0.5  # probability of an object below which a sentence may not mention it
MIN_SCORE = 0.4  # share of the best sentence's score by the reranker
MAX_TRIFLE = 0.1  # share of a sentence's words, by weight, without which another says the same
MIN_NEW = 0.3  # share of a sentence's words, by weight, that other sentences have not


class Sentence(NamedTuple):
    """A sentence and who wrote it.

    Args:
        tokens (`list[int]`): With what ends it.
        writer (`int`): The place of the expert; `num_experts` for the base LM, one more for rewriting.
    """

    tokens: Tokens
    writer: int


class EndsAtRepetition(StoppingCriteria):
    """Ends a text once a sentence in it comes again: a paragraph that begins to go in circles.

    Args:
        prompt_length (`int`): Tokens before the new ones.
        sentence_ends (`Sequence[int]`): Tokens that end a sentence.
    """

    every_decode = True

    def __init__(self, prompt_length: int, sentence_ends: Sequence[int]):
        self.prompt_length, self.sentence_ends = prompt_length, set(sentence_ends)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        ended = [self._repeats(tokens) for tokens in input_ids[:, self.prompt_length :].tolist()]
        return torch.tensor(ended, device=input_ids.device)

    def _repeats(self, tokens: Tokens) -> bool:
        if not tokens or tokens[-1] not in self.sentence_ends:
            return False
        *before, last = split_sentences(tokens, self.sentence_ends)
        return last in before


def written_sentences(texts: Sequence[Tokens], writers: Sequence[int], sentence_ends: Sequence[int]) -> list[Sentence]:
    """The sentences of texts, each once, with their writers."""
    found: dict[tuple[int, ...], int] = {}
    for text, writer in zip(texts, writers):
        for tokens in split_sentences(text, sentence_ends):
            found.setdefault(tuple(tokens), writer)
    return [Sentence(list(tokens), writer) for tokens, writer in found.items()]


def without_repetitions(sentences: Sequence[Sentence], weigh: Callable[[int], float]) -> list[Sentence]:
    """The sentences that say something new, in their order.

    Those that say most come first: of two that say the same, in a few words more or with another number, one stays.

    Args:
        sentences (`Sequence[Sentence]`): In any order.
        weigh (`Callable`): How much a token says.
    """
    contents = [{token: weigh(token) for token in sentence.tokens} for sentence in sentences]
    order = sorted(range(len(sentences)), key=lambda place: -sum(contents[place].values()))
    said: set[int] = set()
    kept: list[int] = []
    for place in order:
        content = contents[place]
        new = sum(weight for token, weight in content.items() if token not in said)
        if not kept or new > MIN_NEW * sum(content.values()):
            kept.append(place)
            said |= content.keys()
    return [sentences[place] for place in sorted(kept)]


def choose_sentences(
    sentences: Sequence[Sentence],
    more: Sequence[Sentence],
    image_embeds: torch.Tensor,
    reranker: RSMoEReranker,
    sentence_ends: Sequence[int],
) -> list[Sentence]:
    """Of all sentences about an image those that it supports and that say something new.

    Args:
        sentences (`Sequence[Sentence]`): Of each writer's likeliest text; new are words.
        more (`Sequence[Sentence]`): Of further beams. New are objects alone: beams say much the same in other words.
        image_embeds (`torch.FloatTensor` of shape `(1, patches, vision width)`): Of `encode_image`.
        reranker (`RSMoEReranker`):
            Scores each; with an object head, what mentions an object that is likely absent goes, be it the sentence or
            a phrase that ends it.
        sentence_ends (`Sequence[int]`): Tokens that end a sentence.

    Returns:
        `list[Sentence]`: one at least, if there is one, in the order of their writers.
    """
    stated = [sentence for sentence in sentences if sentence.tokens]
    if not stated:
        return []
    head, absent = reranker.objects, set[str]()
    if head is not None:
        presence = head(pool_image_features(image_embeds))[0].tolist()
        absent = {name for name, value in zip(head.names, presence) if value < MIN_PRESENCE}
    supported = _supported(stated, head, absent, sentence_ends) or stated
    others = [] if head is None else _supported(more, head, absent, sentence_ends)
    (scores,) = reranker(image_embeds, [[sentence.tokens for sentence in (*supported, *others)]])
    best = float(scores[: len(supported)].max())
    likely = [score >= min(MIN_SCORE * best, best) for score in scores.tolist()]
    kept = without_repetitions([s for s, is_likely in zip(supported, likely) if is_likely], reranker.weigh_token)
    if head is not None:
        ranked = sorted(zip(scores[len(supported) :].tolist(), others), key=lambda pair: -pair[0])
        kept += _with_new_objects(kept, [s for score, s in ranked if score >= MIN_SCORE * best], head)
        kept = _without_contained(kept, reranker.weigh_token)
    return sorted(kept, key=lambda sentence: sentence.writer)


def _with_new_objects(said: Sequence[Sentence], more: Sequence[Sentence], head: RSMoEObjectHead) -> list[Sentence]:
    """Of more sentences, the likeliest first, those that mention objects which none yet does; most of them first."""
    mentioned = set[str]().union(*(head.mentions(sentence.tokens) for sentence in said))
    mentions = [(head.mentions(sentence.tokens), sentence) for sentence in more]
    added: list[Sentence] = []
    while mentions:
        objects, sentence = max(mentions, key=lambda pair: len(pair[0] - mentioned))  # of equals the likeliest
        if objects <= mentioned:
            break
        added.append(sentence)
        mentioned |= objects
    return added


def _without_contained(sentences: Sequence[Sentence], weigh: Callable[[int], float]) -> list[Sentence]:
    """Without those of which another says all but a trifle: "Planes are in an airport." beside "Planes are in an
    airport near a road."."""
    kept = list(sentences)
    for sentence in sorted(sentences, key=lambda sentence: len({*sentence.tokens})):
        content = {token: weigh(token) for token in sentence.tokens}
        others = [{*other.tokens} for other in kept if other is not sentence]
        trifle = MAX_TRIFLE * sum(content.values())
        if any(sum(content[token] for token in content.keys() - other) <= trifle for other in others):
            kept = [other for other in kept if other is not sentence]
    return kept


def _supported(
    sentences: Sequence[Sentence], head: RSMoEObjectHead | None, absent: set[str], sentence_ends: Sequence[int]
) -> list[Sentence]:
    """Without what mentions an object that is likely absent, where there is an object head."""
    if head is None:
        return list(sentences)
    cut = (_without(sentence, head, absent, sentence_ends) for sentence in sentences)
    return [sentence for sentence in cut if sentence.tokens]


def _without(sentence: Sentence, head: RSMoEObjectHead, absent: set[str], sentence_ends: Sequence[int]) -> Sentence:
    kept = head.supported(sentence.tokens, absent)
    if kept and len(kept) < len(sentence.tokens) and sentence.tokens[-1] in sentence_ends:
        kept = [*kept, sentence.tokens[-1]]
    return Sentence(kept, sentence.writer)


__all__ = ["Sentence"]
