"""The reranker's n-grams, and fusion by choice."""

import pytest
import torch

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration
from modeling_rsmoe.reranker_rsmoe import RSMoEReranker, hashed_ngrams, pool_image_features

from .test_generation import describe, inputs, part  # noqa: F401  (fixtures)
from .tiny import tiny_config, tiny_model


@pytest.fixture(scope="module")
def model():
    """With a reranker of random weights, so that its choices differ."""
    return tiny_model(1, tiny_config(reranker_rank=8, reranker_buckets=64))


def test_ngrams_are_counted_by_length():
    counts = hashed_ngrams([5, 6, 5, 6, 5], 1000)
    assert [sum(of_length.values()) for of_length in counts] == [5, 4, 3, 2]
    assert sorted(counts[0].values()) == [2, 3] and sorted(counts[1].values()) == [2, 2]
    assert not set(counts[0]) & set(counts[1])
    assert hashed_ngrams([5, 6], 1000)[1] != hashed_ngrams([6, 5], 1000)[1]
    assert [sum(of_length.values()) for of_length in hashed_ngrams([5], 1000)] == [1, 0, 0, 0]


def test_ngrams_stay_the_same_everywhere():
    """Weights of a checkpoint belong to these buckets."""
    assert [list(of_length) for of_length in hashed_ngrams([49151, 7, 0], 8192)] == [
        [579, 587, 580],
        [7892, 4302],
        [4478],
        [],
    ]


def test_product_of_two_texts_is_the_mean_of_their_cosines():
    """With every n-gram a direction of its own."""
    reranker = RSMoEReranker(400, 1000, 1000)
    reranker.ngram_embeddings.weight.copy_(torch.eye(1000))
    reranker.idf.weight.fill_(2.0)
    same, other = reranker.embed([1, 2, 3, 4]), reranker.embed([1, 2, 9, 8])
    assert torch.isclose(same @ same, torch.tensor(1.0))
    assert torch.isclose(same @ other, torch.tensor((2 / 4 + 1 / 3) / 4))
    assert not reranker.embed([]).any()


def test_looks_are_the_first_token_the_mean_and_the_spread():
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool_image_features(values).tolist() == [[1, 2, 2, 4, 1, 2]]
    assert pool_image_features(values[:, :1]).tolist() == [[1, 2, 1, 2, 0, 0]]


@pytest.mark.parametrize("router_mode", ["generated", "template"])
def test_batch_equals_image_by_image(model, processor, inputs, router_mode):  # noqa: F811
    settings = {"router_mode": router_mode, "fusion": "rerank"}
    together = describe(model, processor, inputs, **settings)
    assert together == [describe(model, processor, part(inputs, i), **settings)[0] for i in range(3)]


def test_the_best_of_own_text_and_parts_is_chosen(model, processor, inputs):  # noqa: F811
    """By hand: the base LM's own text and the experts' parts, each as decoded elsewhere, and the highest score."""
    ids = inputs["input_ids"]
    plain = {
        name: inputs[name]
        for name in ("input_ids", "attention_mask", "pixel_values", "qformer_input_ids", "qformer_attention_mask")
    }
    own = model.generate(**plain)[:, ids.shape[1] :].tolist()
    parts = model.generate(**inputs, fusion="concat", return_dict_in_generate=True).expert_sequences.tolist()
    chosen = model.generate(**inputs, fusion="rerank", return_dict_in_generate=True)
    assert chosen.expert_sequences.tolist() == parts
    embeds = model.encode_image(inputs["pixel_values"])
    picked = set()
    for i in range(3):
        texts = [model._trim(text, {}) for text in (own[i], *parts[i])]
        (scores,) = model.model.reranker(embeds[i : i + 1], [texts])
        best = int(scores.argmax())
        picked.add(best)
        assert model._trim(chosen.sequences[i, ids.shape[1] :].tolist(), {}) == texts[best]
        assert torch.isclose(chosen.sequences_scores[i], scores[best])
    assert len(picked) > 1


def test_several_are_returned_best_first(model, inputs):  # noqa: F811
    """Of all beams; where fewer texts differ than are asked for they come again."""
    settings = {"fusion": "rerank", "return_dict_in_generate": True}
    few = model.generate(**inputs, **settings, num_beams=3, num_return_sequences=3)
    assert len(few.sequences) == 9 and len(few.expert_sequences) == 3
    scores = few.sequences_scores.view(3, 3)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values) and len(scores[0].unique()) == 3
    one = model.generate(**inputs, **settings, num_beams=3)
    assert torch.equal(one.sequences_scores, scores[:, 0])
    greedy = model.generate(**inputs, **settings, num_return_sequences=3)  # of one text by each adapter
    assert len(greedy.sequences) == 9 and len(greedy.sequences_scores[:3].unique()) == 3
    greedy = model.generate(**inputs, **settings)
    assert bool((one.sequences_scores >= greedy.sequences_scores - 1e-6).any())
    texts, scores = model._rerank(model.encode_image(inputs["pixel_values"][:1]), [[[5]], [[5]]], 3)
    assert texts == [[5], [5], [5]] and len(set(map(float, scores))) == 1


def test_auto_goes_by_the_task(model, processor):
    """In one batch a caption is reranked, a question is rewritten, and a paragraph made of sentences, as if each were
    alone."""
    generator = torch.Generator().manual_seed(4)
    images = [torch.randint(0, 255, (3, 40, 50), generator=generator, dtype=torch.uint8) for _ in range(3)]
    texts = ["Describe the image.", "Is there a road?", "Describe the image in detail."]
    expected = dict(zip(texts, ("rerank", "rewrite", "sentences")))
    batch = processor(images=images, text=texts, return_tensors="pt")
    outputs = model.generate(**batch, return_dict_in_generate=True)
    together = processor.post_process_generation(outputs)
    assert outputs.sequences_scores.isnan().tolist() == [False, True, True]
    for place, text in enumerate(texts):
        alone = processor(images=images[place], text=text, return_tensors="pt")
        assert describe(model, processor, alone) == [together[place]]
        assert describe(model, processor, alone, fusion=expected[text]) == [together[place]]
    plain = tiny_model(1)
    *others, _ = describe(plain, processor, batch, fusion="rewrite")
    *_, paragraph = describe(plain, processor, batch, fusion="concat")
    assert describe(plain, processor, batch) == [*others, paragraph]  # without a reranker


def test_checkpoint_keeps_the_reranker(model, inputs, tmp_path):  # noqa: F811
    model.save_pretrained(tmp_path)
    again = RSMoEForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.generate(**inputs, fusion="rerank"), model.generate(**inputs, fusion="rerank"))
    half = RSMoEForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.reranker.image_projection.weight.dtype == torch.float32


def test_without_a_reranker_it_is_said(inputs):  # noqa: F811
    with pytest.raises(RSMoEError, match="needs a reranker.*rsmoe train reranker"):
        tiny_model().generate(**inputs, fusion="rerank")


def test_ranks_that_do_not_fit_are_refused():
    with pytest.raises(RSMoEError, match="reranker_rank is -1"):
        tiny_config(reranker_rank=-1)
    with pytest.raises(RSMoEError, match="reranker_rank is 49.*48 at most"):
        tiny_model().model.add_reranker(49, 64)
