"""The whole path: route, experts, compose; and ordinary generation of rows with an expert token."""

import copy
import threading

import pytest
import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from modeling_rsmoe import RSMoEError, sequences_rsmoe
from modeling_rsmoe.decoding_rsmoe import RSMoEDecodingMixin
from modeling_rsmoe.inference.decoding import shrinking_greedy
from modeling_rsmoe.sequences_rsmoe import join_sentences

from .sequences import ADAPTERS, one, rows
from .tiny import speaking_model, tiny_config, tiny_model, tiny_processor


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
    for i in range(len(ADAPTERS)):
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


def test_a_repetition_penalty_counts_what_the_text_has_written(model, processor, inputs):
    """Not the prompt, in which the expert texts stand that are rewritten; and the router has none."""
    first, suppressed, written = one(rows(), 2), torch.arange(259, 265), []
    row = first["input_ids"]
    for token in model.generate(**first, repetition_penalty=3.0)[0, row.shape[1] :].tolist():
        with torch.no_grad():
            logits = model(**{**first, "input_ids": row, "attention_mask": torch.ones_like(row)}).logits[0, -1]
        logits[written] = torch.where(logits[written] < 0, logits[written] * 3, logits[written] / 3)
        logits[suppressed] = -torch.inf
        assert int(logits.argmax()) == token
        written, row = [*written, token], torch.cat([row, torch.tensor([[token]])], dim=1)
    plain, penalised = (describe(model, processor, inputs, repetition_penalty=each) for each in (1.0, 3.0))
    assert [each["router_prompts"] for each in plain] == [each["router_prompts"] for each in penalised]
    assert plain != penalised


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
    monkeypatch.setattr(sequences_rsmoe, "commonprefix", lambda rows: [])
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


@pytest.mark.parametrize("copies", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_copies_of_a_sequence_are_read_once(model, inputs, monkeypatch, copies):
    """Beams and samples of one sequence begin with what was read for the first, and the texts are transformers'."""
    seen, forward = [], model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *a, **k: (seen.append(tuple(k["input_ids"].shape)), forward(*a, **k))[1]
    )

    def write():
        seen.clear()
        torch.manual_seed(0)
        return model.generate(**inputs, fusion="concat", router_mode="template", **copies)

    shared = write()
    read = sum(rows for rows, tokens in seen if tokens > 1)
    monkeypatch.setattr(RSMoEDecodingMixin, "_prefill", GenerationMixin._prefill)
    assert torch.equal(write(), shared)
    assert sum(rows for rows, tokens in seen if tokens > 1) == 3 * read > 0


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


# -- arguments that not every decode takes


@pytest.fixture(scope="module")
def reranking():
    model = tiny_model(config=tiny_config(reranker_rank=4))
    with torch.no_grad():
        model.model.reranker.idf.weight.fill_(1.0)
    return model


class StopsOnTokens(StoppingCriteria):
    """As lm-eval's: knows the prompt and the number of sequences, and remembers which have said a stop word."""

    def __init__(self, inputs, *stops, beams=1):
        self.prompts, self.stops = inputs["input_ids"].repeat_interleave(beams, dim=0), set(stops)
        self.is_done = [False] * len(self.prompts)

    def __call__(self, input_ids, scores, **kwargs):
        width = self.prompts.shape[1]
        assert torch.equal(input_ids[:, :width], self.prompts)
        said = [not self.stops.isdisjoint(new) for new in input_ids[:, width:].tolist()]
        self.is_done = [done or now for done, now in zip(self.is_done, said, strict=True)]
        return torch.tensor(self.is_done)


class Forbids(LogitsProcessor):
    """Forbids tokens from the third step on."""

    def __init__(self, inputs, tokens, beams=1):
        self.prompts, self.tokens, self.steps = inputs["input_ids"].repeat_interleave(beams, dim=0), tokens, 0

    def __call__(self, input_ids, scores):
        assert torch.equal(input_ids[:, : self.prompts.shape[1]], self.prompts)
        assert self.steps == input_ids.shape[1] - self.prompts.shape[1]
        self.steps += 1
        return scores.index_fill(1, torch.tensor(self.tokens), -torch.inf) if self.steps > 2 else scores


def new_tokens(model, outputs):
    return [model._trim(tokens, {}) for tokens in outputs.sequences[:, outputs.prompt_length :].tolist()]


def texts_of(model, outputs):
    return [[model._trim(text, {}) for text in image] for image in outputs.expert_sequences.tolist()]


def cut(tokens, *stops):
    return tokens[: next((place for place, token in enumerate(tokens, start=1) if token in stops), len(tokens))]


def test_stop_words_are_of_the_rewritten_text(model, inputs):
    free = model.generate(**inputs, fusion="rewrite", return_dict_in_generate=True)
    stops = new_tokens(model, free)[0][2], texts_of(model, free)[0][0][2]
    told = model.generate(
        **inputs,
        fusion="rewrite",
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([StopsOnTokens(inputs, *stops)]),
    )
    assert new_tokens(model, told) == [cut(tokens, *stops) for tokens in new_tokens(model, free)]
    assert torch.equal(told.expert_sequences, free.expert_sequences)
    assert torch.equal(told.router_prompts, free.router_prompts)


@pytest.mark.parametrize("fusion", ["concat", "rerank"])
def test_stop_words_are_of_each_expert_where_nothing_is_rewritten(reranking, inputs, fusion):
    free = reranking.generate(**inputs, fusion=fusion, return_dict_in_generate=True)
    written = texts_of(reranking, free)
    stop = written[1][2][3]
    criteria = StoppingCriteriaList([StopsOnTokens(inputs, stop)])
    told = reranking.generate(**inputs, fusion=fusion, return_dict_in_generate=True, stopping_criteria=criteria)
    assert texts_of(reranking, told) == [[cut(text, stop) for text in image] for image in written] != written
    assert torch.equal(told.router_prompts, free.router_prompts)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("fusion", ["rewrite", "concat"])
def test_logits_processors_are_of_the_text(model, inputs, fusion, beams):
    settings = {"fusion": fusion, "num_beams": beams, "return_dict_in_generate": True}
    free = model.generate(**inputs, **settings)
    forbidden = list(range(3, 120))
    told = model.generate(**inputs, **settings, logits_processor=[Forbids(inputs, forbidden, beams)])
    texts, before = (
        new_tokens(model, outputs) if fusion == "rewrite" else sum(texts_of(model, outputs), [])
        for outputs in (told, free)
    )
    assert not {token for text in texts for token in text[2:]} & set(forbidden)
    assert {token for text in before for token in text[2:]} & set(forbidden)
    assert torch.equal(told.router_prompts, free.router_prompts)
    assert torch.equal(told.expert_sequences, free.expert_sequences) == (fusion == "rewrite")


def test_allowed_tokens_are_of_the_rewritten_text(model, inputs):
    def allowed(image, ids):
        assert torch.equal(ids[: inputs["input_ids"].shape[1]], inputs["input_ids"][image])
        return [[10, 11], [20, 21], [30, 31]][image]

    told = model.generate(**inputs, fusion="rewrite", prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True)
    for tokens, known in zip(new_tokens(model, told), ([10, 11], [20, 21], [30, 31])):
        assert tokens and set(tokens) <= set(known)


def test_stop_strings_are_of_the_rewritten_text(processor, inputs):
    model, settings = speaking_model(), {"fusion": "rewrite", "tokenizer": processor.tokenizer}
    free = describe(model, processor, inputs, **settings)
    stops = [free[1]["text"][2], free[1]["expert_texts"]["theme"][1]]
    told = describe(model, processor, inputs, **settings, stop_strings=stops)
    assert [each["expert_texts"] for each in told] == [each["expert_texts"] for each in free]
    for before, after in zip(free, told):
        assert after["text"] == "".join(cut(before["text"], *stops)).strip()


def test_a_criterion_of_every_decode_stops_all(model, inputs):
    class AfterOne(StoppingCriteria):
        every_decode = True

        def __call__(self, input_ids, scores, **kwargs):
            return torch.ones(len(input_ids), dtype=torch.bool)

    told = model.generate(
        **inputs, fusion="rewrite", return_dict_in_generate=True, stopping_criteria=StoppingCriteriaList([AfterOne()])
    )
    assert told.router_prompts.shape[-1] == told.expert_sequences.shape[-1] == 1
    assert told.sequences.shape[1] == told.prompt_length + 1


def test_a_criterion_that_cannot_be_copied(reranking, inputs):
    class Locked(StopsOnTokens):
        def __init__(self, *args):
            super().__init__(*args)
            self.lock = threading.Lock()

    given = {"stopping_criteria": StoppingCriteriaList([Locked(inputs, 5)])}
    assert reranking.generate(**inputs, fusion="rewrite", **given).shape[0] == 3
    with pytest.raises(RSMoEError, match="Locked cannot be copied for each expert.*__deepcopy__"):
        reranking.generate(**inputs, fusion="rerank", **given)


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_a_rewritten_text(model, inputs, beams):
    """As of an ordinary `generate`: each new token has its score, and beams theirs."""
    model.set_attn_implementation("eager")
    out = model.generate(
        **inputs,
        fusion="rewrite",
        num_beams=beams,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    model.set_attn_implementation("sdpa")
    steps = out.sequences.shape[1] - out.prompt_length
    assert len(out.scores) == len(out.logits) == len(out.attentions) == len(out.hidden_states) >= steps
    indices = out.beam_indices
    transitions = model.compute_transition_scores(out.sequences, out.scores, indices, normalize_logits=beams == 1)
    assert transitions.shape == (3, steps) and bool((transitions <= 0).all())
    if beams == 1:
        first = out.scores[0].argmax(-1)
        assert torch.equal(out.sequences[:, out.prompt_length], first) and out.sequences_scores is None
    else:
        lengths = (transitions < 0).sum(1)
        torch.testing.assert_close(out.sequences_scores, transitions.sum(1) / lengths, atol=1e-4, rtol=1e-4)


def test_speculation_is_of_the_rewritten_text(model, inputs):
    alone = part(inputs, 0)
    expected = model.generate(**alone, fusion="rewrite")
    for given in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": copy.deepcopy(model)}):
        assert torch.equal(model.generate(**alone, fusion="rewrite", **given), expected)


@pytest.mark.parametrize("as_config", [False, True])
@pytest.mark.parametrize("fusion", ["concat", "rerank"])
def test_the_caller_s_end_and_padding_tokens(reranking, inputs, fusion, as_config):
    """Experts' texts end at them, and their padding is in none."""
    plain = reranking.generate(**inputs, fusion=fusion, return_dict_in_generate=True)
    end = int(plain.expert_sequences[0, 0, 2])
    pad = next(token for token in range(10, 250) if not (plain.expert_sequences == token).any())
    ends = {"eos_token_id": [end, 2], "pad_token_id": pad, "max_new_tokens": 8}
    given = {"generation_config": GenerationConfig(**ends)} if as_config else ends
    ended = reranking.generate(**inputs, fusion=fusion, return_dict_in_generate=True, **given)
    expected = [[cut([*text, end], end)[:-1] for text in image] for image in texts_of(reranking, plain)]
    assert texts_of(reranking, ended) == expected
    if fusion == "concat":
        for new, texts in zip(ended.sequences[:, ended.prompt_length :].tolist(), expected):
            text = [*join_sentences(texts, reranking.config.sentence_end_token_ids), end]
            assert new == text + [pad] * (len(new) - len(text))


NAMES = ["output_scores", "output_logits", "output_attentions", "output_hidden_states", "assistant_model"]


@pytest.mark.parametrize(
    ("name", "fusion", "said"),
    [
        *((name, "concat", f"cannot take {name} with fusion concat: .*give fusion='rewrite'") for name in NAMES),
        ("prompt_lookup_num_tokens", "rerank", "cannot take prompt_lookup_num_tokens with fusion rerank"),
        ("guidance_scale", "rerank", "cannot take guidance_scale with fusion rerank"),
        ("inputs_embeds", "rewrite", "cannot take inputs_embeds.*expert_inputs=False"),
        ("past_key_values", "rewrite", "cannot take past_key_values"),
        ("adapter_ids", "concat", "cannot take adapter_ids"),
        ("stop_strings", "auto", "cannot take stop_strings with fusion rerank and rewrite: .*give a fusion"),
    ],
)
def test_arguments_that_nobody_takes(reranking, inputs, name, fusion, said):
    with pytest.raises(RSMoEError, match=said):
        reranking.generate(**inputs, fusion=fusion, **{name: 2 if name != "stop_strings" else ["a"]})


@pytest.mark.parametrize(
    ("damaged", "token"), [("model.experts.object", 263), ("model.router", 261), ("lm_head", 263)]
)
def test_damaged_weights_raise(inputs, damaged, token):
    """One value in one adapter spoils every sequence of a batch that it reads in: no text, rather than empty ones."""
    model = tiny_model()
    with torch.no_grad():
        next(model.get_submodule(damaged).parameters()).view(-1)[5] = torch.nan
    plain = {name: value for name, value in inputs.items() if name not in sequences_rsmoe.EXPERT_INPUTS}
    plain["input_ids"] = plain["input_ids"].index_fill(1, torch.tensor([-1]), token)
    for given in (inputs, {**plain, "num_beams": 2}, {**plain, "custom_generate": shrinking_greedy}):
        with pytest.raises(RSMoEError, match="logits are not finite. Its weights are damaged"):
            model.generate(**given)


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
