"""Paragraphs: which sentences stay, who wrote them, and how long they may be."""

from collections import Counter

import pytest
import torch
from transformers import GenerationConfig

from modeling_rsmoe import RSMoEConfig, RSMoEError, RSMoEForConditionalGeneration, fusion_rsmoe, paragraphs_rsmoe
from modeling_rsmoe.objects_rsmoe import RSMoEObjectHead
from modeling_rsmoe.paragraphs_rsmoe import (
    EndsAtRepetition,
    Sentence,
    choose_sentences,
    without_repetitions,
    written_sentences,
)
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION
from modeling_rsmoe.training.object_head import token_texts

from .tiny import speaking_model, tiny_config, tiny_model, tiny_tokenizer


END = tiny_tokenizer()(".")["input_ids"][0]
OBJECTS = {"airplane": ["airplane", "airplanes", "plane", "planes"], "buildings": ["building", "buildings"]}
OBJECTS |= {"trees": ["tree", "trees"], "court": ["court", "courts"]}


def ids(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


def words(tokens: list[int]) -> str:
    return tiny_tokenizer().decode(tokens)


@pytest.fixture(scope="module")
def head() -> RSMoEObjectHead:
    tokenizer = tiny_tokenizer()
    head = RSMoEObjectHead(4, OBJECTS, len(tokenizer))
    head.set_pieces(token_texts(tokenizer))
    return head


# ---- sentences


def test_each_sentence_once_with_its_first_writer() -> None:
    texts = [ids("A port. Many ships."), ids(" A port.A port."), ids("Many ships")]
    found = [(words(sentence.tokens), sentence.writer) for sentence in written_sentences(texts, [0, 1, 2], [END])]
    assert found == [("A port.", 0), (" Many ships.", 0), (" A port.", 1), ("Many ships", 2)]


def test_of_two_that_say_the_same_the_fuller_one_stays() -> None:
    said = [Sentence([1, 2, 3], 0), Sentence([7, 8], 1), Sentence([1, 2, 3, 4, 5], 2), Sentence([1, 2, 3, 4, 6], 3)]
    kept = without_repetitions(said, lambda _: 1.0)
    assert kept == [Sentence([7, 8], 1), Sentence([1, 2, 3, 4, 5], 2)]
    # What tokens are worth decides: here the fourth says more than half anew.
    assert without_repetitions(said, lambda token: 10.0 if token == 6 else 1.0)[-1] == Sentence([1, 2, 3, 4, 6], 3)
    assert without_repetitions([], lambda _: 1.0) == []


def test_a_text_ends_where_a_sentence_comes_again() -> None:
    criterion = EndsAtRepetition(2, [END])
    once, again, open_ = ids("ab. cd."), ids("ab.ab."), ids("ab.abc")
    length = min(map(len, (once, again, open_)))
    rows = torch.tensor([[5, 6, *tokens[:length]] for tokens in (once, again, open_)])
    assert criterion(rows, None).tolist() == [False, True, False]
    assert EndsAtRepetition(2, [])(rows, None).tolist() == [False, False, False]


# ---- objects


@pytest.mark.parametrize(
    ("sentence", "absent", "kept"),
    [
        ("Many planes are in an airport near some buildings.", "buildings", "Many planes are in an airport"),
        ("A port has ships, and two planes.", "airplane", "A port has ships"),
        ("The field is surrounded by many buildings and trees.", "trees", "The field is surrounded by many buildings"),
        # What is left would be no sentence.
        ("A church is near several trees.", "trees", ""),
        ("The beach is between an ocean and some trees.", "trees", ""),
        ("Many buildings and some trees are in a park.", "trees", ""),
        ("Many Trees are in a park.", "trees", ""),
        # Another word is not the object.
        ("A courtyard is near a treeless field.", "trees court", "A courtyard is near a treeless field."),
        ("Two planes.", "trees", "Two planes."),
    ],
)
def test_what_is_absent_goes(head: RSMoEObjectHead, sentence: str, absent: str, kept: str) -> None:
    assert words(head.supported(ids(sentence), set(absent.split()))) == kept


def test_tokens_are_read_as_words(head: RSMoEObjectHead) -> None:
    assert head.mentions(ids("Two Planes; a courtyard")) == {"airplane"}
    assert head.texts([*ids("aB"), 10_000, 0]) == ["a", "b", "", ""]  # a token that came later, and a special one


class Presence:
    """An object head with known probabilities."""

    def __init__(self, head: RSMoEObjectHead, present: dict[str, float]) -> None:
        self.names, self.supported, self.mentions = head.names, head.supported, head.mentions
        self.probabilities = torch.tensor([[present.get(name, 1.0) for name in head.names]])

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.probabilities


class Judge:
    """A reranker with known scores and presences."""

    def __init__(self, scores: dict[str, float], present: dict[str, float] | None, head: RSMoEObjectHead) -> None:
        self.scores = scores
        self.objects = None if present is None else Presence(head, present)

    def __call__(self, image_embeds: torch.Tensor, texts: list[list[list[int]]]) -> list[torch.Tensor]:
        return [torch.tensor([self.scores[words(text).strip()] for text in texts[0]])]

    def weigh_token(self, token: int) -> float:
        return 1.0


SCORES = {"Two planes.": 0.9, "Tall trees.": 0.8, "A port is big near trees.": 0.7, "A port is big.": 0.7, "xyz": 0.1}


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (None, ["Two planes.", "Tall trees.", "A port is big near trees."]),
        ({"trees": 0.01}, ["Two planes.", "A port is big."]),
    ],
)
def test_what_the_image_supports_stays(
    head: RSMoEObjectHead, present: dict | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paragraphs_rsmoe, "MIN_NEW", -1)  # letters are tokens here, and say little new
    said = ["Two planes.", "Tall trees.", "A port is big near trees.", "xyz"]
    sentences = [Sentence(ids(text), writer) for writer, text in enumerate(said)]
    kept = choose_sentences(sentences, [], torch.ones(1, 2, 4), Judge(SCORES, present, head), [END])
    assert [words(sentence.tokens) for sentence in kept] == expected


def test_something_stays_even_if_nothing_is_likely(head: RSMoEObjectHead) -> None:
    judge = Judge(SCORES, {"airplane": 0.0, "trees": 0.0}, head)
    sentences = [Sentence(ids(text), 0) for text in ("Two planes.", "Tall trees.")]
    assert choose_sentences(sentences, [], torch.ones(1, 2, 4), judge, [END])
    assert choose_sentences([Sentence([], 0)], [], torch.ones(1, 2, 4), judge, [END]) == []


def test_a_sentence_within_another_goes(head: RSMoEObjectHead) -> None:
    """Of a writer's own text too, once a further beam says it and more."""
    said = [Sentence(ids("A port is big."), 0)]
    more = [Sentence(ids("A port is big near trees."), 2)]
    kept = choose_sentences(said, more, torch.ones(1, 2, 4), Judge(SCORES, {}, head), [END])
    assert kept == more


def test_of_further_beams_stays_what_mentions_another_object(head: RSMoEObjectHead) -> None:
    """The one with most of them first, of equals the likeliest; in the order of the writers; none of an absent one."""
    said = [Sentence(ids("Two planes."), 0), Sentence(ids("Two planes."), 3)]
    texts = {
        "Big planes and a court.": 0.5,
        "Planes, trees and a court.": 0.6,
        "Trees and a court.": 0.7,
        "Tall buildings.": 0.9,
        "Many planes.": 0.9,
        "Some trees.": 0.3,
    }
    more = [Sentence(ids(text), writer % 4) for writer, text in enumerate(texts, 1)]
    scores = {**texts, "Two planes.": 0.8}
    everything = choose_sentences(said, more, torch.ones(1, 2, 4), Judge(scores, {}, head), [END])
    expected = [("Two planes.", 0), ("Tall buildings.", 0), ("Trees and a court.", 3)]
    assert [(words(sentence.tokens), sentence.writer) for sentence in everything] == expected
    without = choose_sentences(said, more, torch.ones(1, 2, 4), Judge(scores, {"buildings": 0.1}, head), [END])
    assert [words(sentence.tokens) for sentence in without] == ["Two planes.", "Trees and a court."]
    scores["Trees and a court."] = 0.2  # unlikely
    without = choose_sentences(said, more, torch.ones(1, 2, 4), Judge(scores, {"buildings": 0.1}, head), [END])
    assert [words(sentence.tokens) for sentence in without] == ["Two planes.", "Planes, trees and a court."]
    assert choose_sentences(said, more, torch.ones(1, 2, 4), Judge(scores, None, head), [END]) == said[:1]


def test_objects_need_words_and_a_reranker() -> None:
    for wrong in ({"reranker_rank": 0}, {"reranker_vocab_size": 0}, {"reranker_objects": {"trees": []}}):
        with pytest.raises(RSMoEError, match="trees"):
            tiny_config(
                **{"reranker_rank": 4, "reranker_objects": {"trees": ["tree"]}, "reranker_vocab_size": 259, **wrong}
            )


def test_a_head_is_saved_with_the_reranker(tmp_path) -> None:
    changes = {"reranker_rank": 4, "reranker_buckets": 64, "reranker_objects": OBJECTS, "reranker_vocab_size": 259}
    model = tiny_model(config=tiny_config(**changes))
    model.model.reranker.objects.set_pieces(token_texts(tiny_tokenizer()))
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        again = RSMoEForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        found, expected = again.model.reranker.objects, model.model.reranker.objects
        assert found.names == sorted(OBJECTS) and found.pieces.dtype == torch.uint8
        assert torch.equal(found.pieces, expected.pieces)
        assert torch.equal(found.projection.weight, expected.projection.weight)
    assert RSMoEConfig.from_pretrained(tmp_path).reranker_objects == OBJECTS


# ---- generate


def asked(model, processor, instructions: list[str], **kwargs) -> list[dict]:
    generator = torch.Generator().manual_seed(4)
    images = [torch.randint(0, 255, (3, 40, 50), generator=generator, dtype=torch.uint8) for _ in instructions]
    inputs = processor(images=images, text=instructions, return_tensors="pt")
    return processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True, **kwargs))


@pytest.fixture(scope="module")
def speaker() -> RSMoEForConditionalGeneration:
    model = speaking_model()
    model.generation_config.detail_max_new_tokens = 30
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("fusion", ["auto", "concat", "rewrite"])
def test_details_are_longer_and_captions_stay_as_they_are(speaker, processor, fusion: str) -> None:
    mixed = asked(speaker, processor, [DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION], fusion=fusion)
    caption, paragraph = (
        asked(speaker, processor, [DEFAULT_INSTRUCTION, text], fusion=fusion)[place]
        for place, text in enumerate((DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION))
    )
    assert mixed == [caption, paragraph]
    assert all(len(text) <= 8 for text in caption["expert_texts"].values()) and "sentences" not in caption
    # Rewriting reads what the experts wrote, in paragraphs too.
    assert max(len(text) for text in paragraph["expert_texts"].values()) > 8
    short = asked(speaker, processor, [DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION], fusion=fusion, max_new_tokens=8)[1]
    assert all(len(text) <= 8 for text in short["expert_texts"].values())


@pytest.mark.parametrize("fusion", ["auto", "sentences", "concat", "rerank", "rewrite"])
def test_sentences_make_the_text_and_have_a_writer(processor, fusion: str) -> None:
    model = tiny_model(config=tiny_config(reranker_rank=4, reranker_buckets=64, sentence_end_token_ids=[END]))
    (found,) = asked(model, processor, [DETAIL_INSTRUCTION], fusion=fusion)
    writers = {"rewrite": {"rewriting"}, "concat": set(processor.experts)}
    known = writers.get(fusion, {*processor.experts, "base LM"})
    assert found["sentences"] and {sentence["writer"] for sentence in found["sentences"]} <= known
    joined = "".join("".join(sentence["text"].split()) for sentence in found["sentences"])
    assert joined == "".join(found["text"].split())
    assert "sentences" not in asked(model, processor, [DEFAULT_INSTRUCTION], fusion="concat")[0]


def test_sentences_need_a_reranker(model, processor) -> None:
    with pytest.raises(RSMoEError, match="'sentences' needs a reranker"):
        asked(model, processor, [DETAIL_INSTRUCTION], fusion="sentences")


def test_every_sample_is_a_paragraph(processor) -> None:
    model = tiny_model(config=tiny_config(reranker_rank=4, reranker_buckets=64))
    found = asked(model, processor, [DETAIL_INSTRUCTION], do_sample=True, num_return_sequences=2)
    assert len(found) == 2 and all(sample["sentences"] for sample in found)


@pytest.mark.parametrize(
    ("given", "configured", "texts"),
    [
        ({}, None, 1),
        ({}, 3, 3),
        ({"num_beams": 2}, None, 2),
        ({"num_beams": 1}, 3, 1),
        ({"detail_num_beams": 2}, 3, 2),
        ({"do_sample": False}, 3, 3),
        ({"do_sample": True}, 3, 1),
        ({"generation_config": GenerationConfig(num_beams=1)}, 3, 1),
        ({"generation_config": GenerationConfig(do_sample=False)}, 3, 3),  # as of pipelines, which copy the model's
    ],
)
def test_sentences_come_of_all_beams(processor, monkeypatch, given: dict, configured: int | None, texts: int) -> None:
    """Of the experts in their order, the base LM last; the configured beams are for paragraphs alone."""
    offered: list[list[Sentence]] = []

    def offer(sentences, more, *others):
        offered.append([*sentences, *more])
        return sentences

    monkeypatch.setattr(fusion_rsmoe, "choose_sentences", offer)
    model = tiny_model(config=tiny_config(reranker_rank=4, reranker_buckets=64))
    model.generation_config.detail_num_beams = configured
    torch.manual_seed(0)
    (found,) = asked(model, processor, [DETAIL_INSTRUCTION], detail_max_new_tokens=6, **given)
    assert Counter(sentence.writer for sentence in offered[0]) == dict.fromkeys(range(4), texts)
    # An expert's own text is its best beam.
    assert [words(s.tokens).strip() for s in offered[0][:3]] == list(found["expert_texts"].values())
    asked(model, processor, [DEFAULT_INSTRUCTION], max_new_tokens=6, fusion="sentences")
    assert max(Counter(sentence.writer for sentence in offered[-1]).values()) == 1
