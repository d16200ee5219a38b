"""How sure the model is of its texts: the signals by hand, the same in every batch, and what is withheld."""

import math

import pytest
import torch

from modeling_rsmoe import RSMoEConfig, RSMoEError
from modeling_rsmoe.confidence_rsmoe import MAX_LOG_ODDS, confidence
from modeling_rsmoe.inference import GenerationSettings, Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION
from modeling_rsmoe.reranker_rsmoe import pool_image_features
from modeling_rsmoe.training.object_head import token_texts

from .test_paragraphs import END, OBJECTS, ids
from .tiny import speaking_model, tiny_config, tiny_model, tiny_tokenizer


WEIGHTS = {
    "statement": {"fit": 1.5, "presence": 0.7, "bias": 0.2},
    "answer": {"likelihood": 0.4, "least_likelihood": 0.1, "bias": 2.0},
}
# Changes of a tiny configuration, after which a model says how sure it is.
RATED = {"reranker_rank": 8, "reranker_buckets": 64, "reranker_objects": OBJECTS, "confidence_weights": WEIGHTS}
RATED |= {"reranker_vocab_size": len(tiny_tokenizer())}
QUESTION = "Is there a road?"
INSTRUCTIONS = [DEFAULT_INSTRUCTION, QUESTION, DETAIL_INSTRUCTION]


@pytest.fixture(scope="module")
def config():
    return tiny_config(**RATED, sentence_end_token_ids=[END])


@pytest.fixture(scope="module")
def model(config):
    model = tiny_model(1, config)
    model.model.reranker.objects.set_pieces(token_texts(tiny_tokenizer()))
    model.generation_config.suppress_tokens = speaking_model().generation_config.suppress_tokens
    return model


@pytest.fixture(scope="module")
def images():
    return list(torch.randint(0, 255, (3, 3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8))


@pytest.fixture(scope="module")
def predictions(model, processor, images):
    return Predictor(model, processor).predict(images, INSTRUCTIONS)


def test_signals_of_statements_by_hand(model, processor, images):
    embeds = Predictor(model, processor).encode(images[:1])
    texts = [ids("two planes and a tree"), ids("nothing known")]
    signals = model.statement_signals(embeds, texts)
    (fit,) = model.model.reranker(embeds, [texts])
    pooled = pool_image_features(embeds)
    log_odds = dict(zip(sorted(OBJECTS), model.model.reranker.objects.projection(pooled)[0].tolist()))
    least = max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, log_odds["airplane"], log_odds["trees"]))
    expected = torch.stack([fit, torch.tensor([least, 0.0])], dim=1)
    torch.testing.assert_close(signals, expected)
    by_hand = 1.5 * fit[0] + 0.7 * least + 0.2
    assert float(confidence(WEIGHTS["statement"], "statement", signals)[0]) == pytest.approx(float(by_hand.sigmoid()))


def test_signals_of_answers_by_hand(model, processor, images):
    """Together, of unequal lengths, as each alone without padding."""
    answers = [ids("yes"), [*ids("a road"), 2]]
    inputs = processor(images=images[:2], text=[QUESTION, "Where?"], expert_inputs=False, return_tensors="pt")
    rows = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    features = model.get_image_features(**{name: inputs[name] for name in names}, return_dict=True).pooler_output
    signals = model.answer_signals(rows, features, answers)
    for place, answer in enumerate(answers):
        alone = {name: inputs[name][place : place + 1] for name in names}
        whole = torch.tensor([[*rows[place], *answer]])
        with torch.no_grad():
            logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **alone).logits[0]
        at = len(rows[place]) - 1
        each = torch.stack([logits[at + step].log_softmax(-1)[token] for step, token in enumerate(answer)])
        torch.testing.assert_close(signals[place], torch.stack([each.mean(), each.min()]), atol=1e-4, rtol=1e-4)


def test_each_kind_of_text_has_its_own_in_any_batch(model, processor, images, predictions):
    alone = [Predictor(model, processor).predict([image], text)[0] for image, text in zip(images, INSTRUCTIONS)]
    for prediction, single in zip(predictions, alone):
        assert 0 < prediction.confidence < 1
        assert prediction.confidence == pytest.approx(single.confidence, abs=2e-4)
        assert prediction.expert_confidences == pytest.approx(single.expert_confidences, abs=2e-4)
    caption, _, detail = predictions
    inputs = processor(images=images[:1], text=INSTRUCTIONS[:1], return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    written = [outputs.sequences[0, outputs.prompt_length :], *outputs.expert_sequences[0]]
    tokens = [model._trim(each.tolist(), {}) for each in written]
    signals = model.statement_signals(model.encode_image(inputs["pixel_values"]), tokens)
    expected = confidence(WEIGHTS["statement"], "statement", signals).tolist()
    assert [caption.confidence, *caption.expert_confidences.values()] == pytest.approx(expected, abs=1e-4)
    assert detail.confidence == min(sentence["confidence"] for sentence in detail.sentences)
    assert set(caption.record()) == {"text", "router_prompts", "expert_texts", "confidence", "expert_confidences"}


def test_an_answer_is_as_sure_as_the_base_lm_finds_it(model, processor, images, predictions):
    inputs = processor(images=images[1:2], text=[QUESTION], return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    answer = model._trim(outputs.sequences[0, outputs.prompt_length :].tolist(), {})
    embeds = model.encode_image(inputs["pixel_values"])
    names = ("qformer_input_ids", "qformer_attention_mask")
    features = model.get_image_features(
        image_embeds=embeds, **{name: inputs[name] for name in names}, return_dict=True
    )
    signals = model.answer_signals([inputs["input_ids"][0].tolist()], features.pooler_output, [[*answer, 2]])
    assert predictions[1].confidence == pytest.approx(
        float(confidence(WEIGHTS["answer"], "answer", signals)[0]), abs=1e-4
    )


def test_an_empty_text_has_none(model, processor, images):
    silent = {"max_new_tokens": 1, "suppress_tokens": [token for token in range(265) if token != 2]}
    (prediction,) = Predictor(model, processor, silent).predict(images[:1])
    assert prediction.text == "" and prediction.confidence is None
    assert set(prediction.expert_confidences.values()) == {None}
    assert prediction.withhold(0.0, DEFAULT_INSTRUCTION) is prediction
    assert prediction.withhold(0.1, DEFAULT_INSTRUCTION).text == "Nothing here that I know."


def test_without_weights_there_is_none(processor, images):
    model = tiny_model(1, tiny_config(reranker_rank=8, reranker_buckets=64))
    (prediction,) = Predictor(model, processor).predict(images[:1])
    assert prediction.confidence is None and not prediction.expert_confidences
    assert "confidence" not in prediction.record()
    with pytest.raises(RSMoEError, match="fit it by rsmoe train confidence"):
        Predictor(model, processor, GenerationSettings(min_confidence=0.5))


def test_texts_that_are_less_sure_are_withheld(model, processor, images, predictions):
    none = Predictor(model, processor, GenerationSettings(min_confidence=1.0)).predict(images, INSTRUCTIONS)
    unknown = "Nothing here that I know."
    assert [prediction.text for prediction in none] == [unknown, "I do not know.", unknown]
    assert [prediction.confidence for prediction in none[:2]] == [
        prediction.confidence for prediction in predictions[:2]
    ]
    assert [prediction.expert_texts for prediction in none] == [prediction.expert_texts for prediction in predictions]
    everything = Predictor(model, processor, {"min_confidence": 0.0}).predict(images, INSTRUCTIONS)
    assert everything == predictions
    with pytest.raises(RSMoEError, match="ask the full model"):
        Predictor(model, processor, GenerationSettings(min_confidence=0.5), "base")
    with pytest.raises(RSMoEError, match=r"min_confidence is 1.5: give a probability, from 0 to 1"):
        GenerationSettings(min_confidence=1.5)


def test_a_paragraph_keeps_the_sentences_that_are_sure():
    said = [
        {"text": "A port.", "writer": "theme", "confidence": 0.9},
        {"text": "A car.", "writer": "object", "confidence": 0.3},
    ]
    paragraph = Prediction("A port. A car.", sentences=said, confidence=0.3)
    kept = paragraph.withhold(0.5, DETAIL_INSTRUCTION)
    assert (kept.text, kept.sentences, kept.confidence) == ("A port.", said[:1], 0.9)
    assert paragraph.withhold(0.3, DETAIL_INSTRUCTION) is paragraph


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"caption": {"bias": 0.0}}, "caption has .*; known are statement, answer"),
        ({"answer": {"bias": 0.0}}, "answer has .*finite weight for every signal and for bias"),
        ({"answer": {**WEIGHTS["answer"], "bias": math.inf}}, "answer has .*finite weight"),
        ({"statement": WEIGHTS["statement"]}, "need a reranker that knows objects"),
    ],
)
def test_weights_that_belong_to_nothing_are_refused(weights, problem):
    with pytest.raises(RSMoEError, match=problem):
        tiny_config(confidence_weights=weights)


def test_another_reranker_leaves_none(config):
    model = tiny_model(1, RSMoEConfig.from_dict(config.to_dict()))
    assert model.config.confidence_weights == WEIGHTS
    model.model.add_reranker(4, 32)
    assert model.config.confidence_weights == {}
