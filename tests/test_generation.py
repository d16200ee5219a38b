"""The whole path: route, experts, compose; and ordinary generation of rows with an expert token."""

import pytest
import torch
from transformers import TextStreamer

from modeling_rsmoe import RSMoEError, generation_rsmoe
from modeling_rsmoe.generation_rsmoe import join_sentences

from .test_modeling import READERS, one, rows
from .tiny import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def inputs(processor):
    generator = torch.Generator().manual_seed(4)
    images = [torch.randint(0, 255, (3, 40, 50), generator=generator, dtype=torch.uint8) for _ in range(3)]
    return processor(images=images, text=["Describe.", "What is there?", "Where?"], return_tensors="pt")


def part(inputs, i):
    return {name: value[i : i + 1] for name, value in inputs.items()}


def describe(model, processor, inputs, **kwargs):
    return processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True, **kwargs))


@pytest.mark.parametrize(
    "decoding", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_mixed_rows_equal_single_runs(model, decoding):
    """Greedy, beams, without a cache and with a static one: a row's tokens do not depend on the rows beside it."""
    together = rows()
    batch = model.generate(**together, **decoding)[:, together["input_ids"].shape[1] :]
    for i in range(len(READERS)):
        alone = one(together, i)
        single = model.generate(**alone, **decoding)[0, alone["input_ids"].shape[1] :]
        assert batch[i, : len(single)].tolist() == single.tolist(), i


def test_cached_equals_a_plain_loop(model):
    inputs = one(rows(), 2)
    ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    row, suppressed = inputs["input_ids"], torch.arange(259, 265)
    for token in ids:
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": row, "attention_mask": torch.ones_like(row)}).logits[0, -1]
        logits[suppressed] = -torch.inf
        assert int(logits.argmax()) == token
        row = torch.cat([row, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("router_mode", ["generated", "template", "none"])
@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_batch_equals_image_by_image(model, processor, inputs, router_mode, fusion):
    settings = {"router_mode": router_mode, "fusion": fusion}
    together = describe(model, processor, inputs, **settings)
    assert together == [describe(model, processor, part(inputs, i), **settings)[0] for i in range(3)]
    assert len({result["text"] for result in together}) > 1


def test_router_modes_ask_differently(model, processor, inputs):
    asked = {mode: describe(model, processor, inputs, router_mode=mode) for mode in ("generated", "template", "none")}
    assert asked["template"][0]["router_prompts"] == {name: f"{name}?" for name in ("theme", "object", "relation")}
    assert set(asked["none"][1]["router_prompts"].values()) == {"What is there?"}
    assert asked["generated"][0]["router_prompts"] != asked["template"][0]["router_prompts"]


def test_experts_read_what_the_router_wrote(model, processor, inputs):
    """The path by hand: each expert's text equals an ordinary generate of its row under the router's prompt."""
    result = describe(model, processor, part(inputs, 0), router_mode="template")[0]
    for name in processor.experts:
        text = processor.render(f"<{name}> {name}?")
        row = processor(images=torch.zeros(3, 40, 50, dtype=torch.uint8), text=text, return_tensors="pt")
        assert "expert_input_ids" not in row
        row["pixel_values"] = inputs["pixel_values"][:1]
        new = model.generate(**row)[0, row["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == result["expert_texts"][name]


def test_concat_keeps_order_and_drops_repeated_sentences():
    stop = 17
    parts = [[1, 2, stop, 3, stop], [], [1, 2, stop, 4], [4]]
    assert join_sentences(parts, [stop]) == [1, 2, stop, 3, stop, 4]


def test_composing_llm_reads_the_parts(model, processor, inputs):
    """Other parts, other text: with the parts taken out, the base LM writes something else."""
    whole = describe(model, processor, inputs, fusion="rewrite")
    deaf = {**inputs, "rewrite_input_ids": inputs["input_ids"], "rewrite_attention_mask": inputs["attention_mask"]}
    assert [r["text"] for r in whole] != [r["text"] for r in describe(model, processor, deaf, fusion="rewrite")]


def test_router_reads_an_image_once(model, inputs, monkeypatch):
    """What an image's sequences have in common is read once, however long the expert's name; prompts are the same."""
    lengths = (inputs["router_input_ids"] != 0).sum(1)
    assert len(lengths[0].unique()) > 1
    seen, forward = [], model.model.forward

    def told(*args, **kwargs):
        seen.append((len(kwargs["input_ids"]), bool((kwargs["input_ids"] == model.config.image_token_id).any())))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", told)
    prompts = model.generate(**inputs, return_dict_in_generate=True).router_prompts
    assert seen[:2] == [(3, True), (9, False)]
    seen.clear()
    monkeypatch.setattr(generation_rsmoe, "commonprefix", lambda rows: [])
    assert torch.equal(model.generate(**inputs, return_dict_in_generate=True).router_prompts, prompts)
    assert seen[0] == (9, True)


def test_image_embeds_equal_pixels(model, processor, inputs):
    given = {**inputs, "image_embeds": model.encode_image(inputs["pixel_values"])}
    given.pop("pixel_values")
    assert describe(model, processor, given) == describe(model, processor, inputs)


def test_vit_runs_once(model, inputs, monkeypatch):
    calls = []
    forward = model.model.encoder.vision_model.forward
    monkeypatch.setattr(
        model.model.encoder.vision_model, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    )
    model.generate(**inputs, fusion="rewrite")
    assert len(calls) == 1


def test_beams_and_sampling(model, processor, inputs):
    for decoding in ({"num_beams": 3}, {"do_sample": True, "top_k": 5}):
        for fusion in ("concat", "rewrite"):
            results = describe(model, processor, inputs, fusion=fusion, **decoding)
            assert len(results) == 3 and all(results[0]["expert_texts"])


@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_several_samples_stay_apart(model, processor, inputs, fusion):
    """Two samples of an image are two texts, never one glued text."""
    decoding = {"num_beams": 2, "num_return_sequences": 2, "fusion": fusion}
    two = describe(model, processor, inputs, **decoding)
    assert len(two) == 6
    for i in range(3):
        assert two[2 * i]["router_prompts"] == two[2 * i + 1]["router_prompts"]
        assert two[2 * i : 2 * i + 2] == describe(model, processor, part(inputs, i), **decoding)
    assert any(two[2 * i]["text"] != two[2 * i + 1]["text"] for i in range(3))


@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_streamer_gets_the_final_text(model, processor, inputs, fusion, capsys):
    alone = part(inputs, 0)
    expected = describe(model, processor, alone, fusion=fusion)[0]["text"]
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**alone, fusion=fusion, streamer=streamer)
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_streamer_is_told_each_step_before_the_text(model, processor, inputs, fusion):
    class Steps(TextStreamer):
        told = []

        def put_step(self, name, ids):
            self.told.append((name, processor.decode_by_expert(ids)))

        def on_finalized_text(self, text, stream_end=False):
            self.told.append(("text", text))

    streamer = Steps(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    outputs = model.generate(**part(inputs, 0), fusion=fusion, streamer=streamer, return_dict_in_generate=True)
    expected = processor.post_process_generation(outputs)[0]
    assert streamer.told[:2] == [(name, expected[name]) for name in ("router_prompts", "expert_texts")]
    assert "".join(text for _, text in streamer.told[2:]).strip() == expected["text"]


def test_generation_config_holds_the_modes(model, processor, inputs, tmp_path):
    model.generation_config.router_mode = "template"
    try:
        assert describe(model, processor, inputs) == describe(model, processor, inputs, router_mode="template")
        model.save_pretrained(tmp_path)
        assert type(model).from_pretrained(tmp_path).generation_config.router_mode == "template"
    finally:
        del model.generation_config.router_mode


def test_sequences_begin_with_the_prompt(model, inputs):
    outputs = model.generate(**inputs)
    assert torch.equal(outputs[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_everything_empty(processor, inputs, fusion):
    """A model that says nothing at all gives empty texts, not an error."""
    model = tiny_model()
    model.generation_config.suppress_tokens = [i for i in range(265) if i != 2]
    result = describe(model, processor, inputs, fusion=fusion)[0]
    assert result["text"] == "" and set(result["expert_texts"].values()) == {""}
    assert result["router_prompts"]["theme"] == "theme?"  # a router that says nothing leaves the fixed prompt


def test_one_expert():
    model = tiny_model(config=tiny_config(expert_names=["object"], text_config={"vocab_size": 263}))
    model.generation_config.suppress_tokens = list(range(259, 263))
    processor = tiny_processor(experts=["object"])
    image = torch.randint(0, 255, (3, 30, 30), dtype=torch.uint8)
    inputs = processor(images=image, text="Describe.", return_tensors="pt")
    result = describe(model, processor, inputs, fusion="concat")[0]
    assert list(result["expert_texts"]) == ["object"] and result["expert_texts"]["object"] == result["text"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"router_mode": "softmax"}, "Unknown router_mode 'softmax'; known are generated, template, none"),
        ({"fusion": "vote"}, "Unknown fusion 'vote'; known are auto, rerank, rewrite, concat"),
        ({"pixel_values": None}, "without images; pass pixel_values or image_embeds"),
        ({"input_ids": None}, "without input_ids"),
        ({"pixel_values": torch.zeros(2, 3, 28, 28)}, "2 images were given for 3 texts"),
    ],
)
def test_bad_arguments(model, inputs, kwargs, message):
    with pytest.raises(RSMoEError, match=message):
        model.generate(**{**inputs, **kwargs})


def test_typo_is_noticed(model, inputs):
    with pytest.raises(ValueError, match="max_new_token"):
        model.generate(**inputs, max_new_token=3)


def test_streamer_refuses_a_batch(model, processor, inputs):
    with pytest.raises(ValueError, match="batch size 1|one text"):
        model.generate(**inputs, fusion="concat", streamer=TextStreamer(processor.tokenizer))
