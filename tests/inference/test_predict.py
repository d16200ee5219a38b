"""One way from images and instructions to texts: what each door gets is what `generate` writes."""

import threading

import pytest
import torch

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference import GenerationSettings, Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import Prompt

from ..tiny import speaking_model, tiny_config, tiny_model


QUESTION = "Is there a road?"


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, tiny_config(reranker_rank=8, reranker_buckets=64))


@pytest.fixture(scope="module")
def images():
    return list(torch.randint(0, 255, (3, 3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8))


def by_generate(model, processor, image, instruction, **settings):
    inputs = processor(images=image, text=instruction, return_tensors="pt")
    return processor.post_process_generation(model.generate(**inputs, **settings, return_dict_in_generate=True))[0]


@pytest.mark.parametrize("settings", [{}, {"fusion": "concat", "max_new_tokens": 5}, {"num_beams": 2}], ids=str)
def test_predictions_are_those_of_generate(model, processor, images, settings):
    """Of a batch that mixes captions and questions, from images and from their features."""
    predictor = Predictor(model, processor, GenerationSettings(**settings))
    instructions = ["Describe the image.", QUESTION, "Describe the image."]
    expected = [by_generate(model, processor, *pair, **settings) for pair in zip(images, instructions)]
    predictions = predictor.predict(images, instructions)
    assert [prediction.record() for prediction in predictions] == expected
    assert predictor.predict(image_embeds=predictor.encode(images), instructions=instructions) == predictions
    is_reranked = [bool(prediction.scores) for prediction in predictions]
    assert is_reranked == ([False] * 3 if "fusion" in settings else [True, False, True])


def test_an_image_is_encoded_once(model, processor, images, monkeypatch):
    sizes = []
    encode_image = model.encode_image

    def recorded(pixel_values):
        sizes.append(len(pixel_values))
        return encode_image(pixel_values)

    monkeypatch.setattr(model, "encode_image", recorded)
    asked = [images[0], images[1], images[0]]
    predictions = Predictor(model, processor).predict(asked, ["Describe.", QUESTION, QUESTION])
    assert sizes == [2]
    assert predictions[2].text == by_generate(model, processor, images[0], QUESTION)["text"]


def test_lengths_and_what_ended_a_text(model, processor, images):
    (prediction,) = Predictor(model, processor, {"max_new_tokens": 3}).predict(images[:1], QUESTION)
    assert (prediction.num_tokens, prediction.finish_reason) == (3, "length")
    inputs = processor(images=images[0], text=QUESTION)
    assert prediction.num_prompt_tokens == len(inputs["input_ids"][0])
    ended = {"max_new_tokens": 30, "eos_token_id": list(range(2, 259, 3))}
    (prediction,) = Predictor(model, processor, ended).predict(images[:1], QUESTION)
    assert prediction.finish_reason == "stop"


def test_systems(model, processor, images):
    """The base LM alone, one expert alone, the full model with some of the experts."""
    inputs = processor(images=images[0], text="Describe.", expert_inputs=False, return_tensors="pt")
    new_tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    (base,) = Predictor(model, processor, system="base").predict(images[:1], "Describe.")
    assert base == Prediction(processor.batch_decode(new_tokens, skip_special_tokens=True)[0].strip())
    assert base.record() == {"text": base.text}
    full = by_generate(model, processor, images[0], "Describe.", fusion="concat")
    (alone,) = Predictor(model, processor, system="experts:object").predict(images[:1], "Describe.")
    assert (
        alone.expert_texts == {"object": full["expert_texts"]["object"]} and alone.text == alone.expert_texts["object"]
    )
    (two,) = Predictor(model, processor, system="full:relation,theme").predict(images[:1], QUESTION)
    assert list(two.expert_texts) == ["theme", "relation"]
    assert processor.experts == ["theme", "object", "relation"]
    for system in ("experts:nobody", "full:theme,nobody", "llm", "experts:theme,object"):
        with pytest.raises(RSMoEError, match=f'there is no "{system}" to evaluate; known: full, full:NAME,NAME, base'):
            Predictor(model, processor, system=system)


def test_rewriting_given_texts(model, processor, images):
    texts = {"theme": "An airport.", "object": "", "relation": "Near."}
    prompt = Prompt.rewrite("Describe it.", texts)
    inputs = processor(images=images[:1], text=[processor.render(prompt)], expert_inputs=False, return_tensors="pt")
    new_tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(new_tokens, skip_special_tokens=True)[0].strip()
    predictor = Predictor(model, processor, {"router_mode": "none", "fusion": "concat"})
    assert predictor.rewrite(images[0], "Describe it.", texts) == expected


@pytest.mark.parametrize("fusion", ["rewrite", "concat"])
def test_stream_grows_to_the_prediction(processor, images, fusion):
    predictor = Predictor(speaking_model(), processor, {"fusion": fusion, "max_new_tokens": 20})
    steps = list(predictor.stream(images[0], QUESTION))
    (expected,) = predictor.predict(images[:1], QUESTION)
    assert steps[-1] == expected
    assert steps[0] == Prediction(router_prompts=expected.router_prompts)
    assert steps[1] == Prediction(router_prompts=expected.router_prompts, expert_texts=expected.expert_texts)
    texts = [step.text for step in steps]
    assert len(set(texts)) > 5 if fusion == "rewrite" else len(steps) == 3  # a joined text comes in one piece
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))


def test_several_texts_grow_at_once(processor, images):
    predictor = Predictor(speaking_model(), processor, {"fusion": "rewrite", "max_new_tokens": 20})
    growing = {0: [""], 1: [""]}
    predictions = predictor.predict(images[:2], QUESTION, on_change=lambda at, step: growing[at].append(step.text))
    for place, texts in growing.items():
        assert len(texts) > 5 and texts[-1] == predictions[place].text
        assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))


def test_stop_ends_an_images_texts(processor, images):
    predictor = Predictor(speaking_model(), processor, {"fusion": "rewrite", "max_new_tokens": 40})
    whole = predictor.predict(images[:2], QUESTION)
    stopped = predictor.predict(images[:2], QUESTION, stop=[lambda: True, lambda: False])
    assert stopped[0].num_tokens <= 1 < whole[0].num_tokens and stopped[1] == whole[1]


@pytest.mark.parametrize("stopped_place", [0, 1, 2])
def test_stop_finds_its_image_in_a_mixed_batch(model, processor, images, stopped_place):
    """A caption has four sequences where a question has three."""
    predictor = Predictor(model, processor, {"max_new_tokens": 12})
    instructions = ["Describe the image.", QUESTION, "Describe the image."]
    whole = predictor.predict(images, instructions)
    stops = [lambda place=place: place == stopped_place for place in range(3)]
    stopped = predictor.predict(images, instructions, stop=stops)
    for place in range(3):
        assert (stopped[place] == whole[place]) == (place != stopped_place)
    assert stopped[stopped_place].num_tokens <= 1


@pytest.mark.slow
def test_whoever_leaves_stops_the_generation(processor, images, monkeypatch):
    predictor = Predictor(speaking_model(), processor, {"fusion": "rewrite", "max_new_tokens": 400})
    before = set(threading.enumerate())
    stream = predictor.stream(images[0], QUESTION)
    while not next(stream).text:
        pass
    ours = set(threading.enumerate()) - before
    stream.close()
    for thread in ours:
        thread.join(20)
    assert ours and not any(thread.is_alive() for thread in ours)


def test_errors_reach_the_caller(model, processor, images):
    predictor = Predictor(model, processor)
    with pytest.raises(RSMoEError, match="holds <theme>"):
        predictor.predict(images[:1], "<theme> What?")
    with pytest.raises(RSMoEError, match="nowhere.png"):
        next(predictor.stream("nowhere.png"))
