"""Rows: who reads a row decides its output, whatever stands beside it in the batch."""

import copy
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    set_seed,
)

from modeling_rsmoe import RSMoEConfig, RSMoEError, RSMoEExpert, RSMoEForConditionalGeneration, RSMoEModel

from .tiny import TEXT, tiny_config, tiny_model


READERS = [None, 261, 262, 263, 264, 263, None, 264]  # the base LM, the router, theme, object, relation, ...
DECODERS = ["llama", "qwen2", "qwen3", "mistral", "smollm3"]
VISIONS = ["dinov2", "vit", "clip_vision_model", "siglip_vision_model", "instructblip_vision_model"]


def rows(readers=READERS, images=True, pad=3):
    """Rows of different lengths, padded on the left, each with an image, a reader's token and some text."""
    set_seed(1)
    texts = [torch.randint(10, 250, (5 + i,)).tolist() for i in range(len(readers))]
    prompts = [([259] * 4 if images else []) + ([r] if r else []) + text for r, text in zip(readers, texts)]
    width = max(map(len, prompts)) + pad
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }
    if images:
        inputs["pixel_values"] = torch.randn(len(readers), 3, 28, 28)
        inputs["qformer_input_ids"] = torch.randint(5, 60, (len(readers), 6))
    return inputs


def one(inputs, i, unpadded=True):
    """Row `i` alone, without its padding."""
    alone = {name: value[i : i + 1] for name, value in inputs.items()}
    if unpadded:
        start = int((alone["attention_mask"] == 0).sum())
        for name in ("input_ids", "attention_mask"):
            alone[name] = alone[name][:, start:]
    return alone


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_mixed_batch_equals_row_by_row(kind):
    # In double precision (but for norms and positions): what float32 rounds away depends on the processor.
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind, "r": 4})).double()
    inputs = rows()
    with torch.no_grad():
        together = model(**inputs).logits
        alone = [model(**one(inputs, i)).logits for i in range(len(READERS))]
    for i, logits in enumerate(alone):
        torch.testing.assert_close(together[i, -logits.shape[1] :], logits[0], atol=1e-5, rtol=1e-5)


def test_readers_differ():
    """The check above could not fail if every reader wrote the same."""
    model = tiny_model()
    outputs = []
    for reader in range(5):
        inputs = one(rows(readers=[None]), 0)
        with torch.no_grad():
            outputs.append(model(**inputs, adapter_ids=torch.tensor([reader])).logits)
    for i in range(5):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().max() > 0.01, (i, j)


def test_expert_ids_of_takes_the_first_token():
    model = tiny_model().model
    ids = torch.tensor([[5, 6, 7], [5, 264, 261], [261, 262, 263], [7, 8, 263]])
    assert model.get_adapter_ids(ids).tolist() == [0, 4, 1, 3]


def test_rows_without_an_expert_equal_the_stock_decoder():
    model = tiny_model()
    inputs = rows(readers=[None, None], images=False)
    stock = LlamaModel(model.config.text_config).eval()
    stock.load_state_dict(model.model.language_model.state_dict())
    with torch.no_grad():
        ours, theirs = model.model(**inputs).last_hidden_state, stock(**inputs).last_hidden_state
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_reset_adapters_are_the_llm_block(kind):
    """The beginning of stage 2: B = 0, or copied layers."""
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind}, router_config={"expert_type": kind}))
    model.model.reset_adapters()
    inputs = rows(images=False)
    with torch.no_grad():
        ours = model(**inputs).logits
        llm = model(**inputs, adapter_ids=torch.zeros(len(READERS), dtype=torch.long)).logits
    torch.testing.assert_close(ours, llm, atol=1e-6, rtol=0)


def test_full_experts_equal_lora_experts_at_the_start():
    lora, full = (tiny_model(config=tiny_config(expert_config={"expert_type": kind})) for kind in ("lora", "full"))
    for part in ("language_model", "encoder"):
        getattr(full.model, part).load_state_dict(getattr(lora.model, part).state_dict())
    lora.model.reset_adapters()
    full.model.reset_adapters()
    inputs = rows(readers=[262, 263, 264, None])
    with torch.no_grad():
        torch.testing.assert_close(full(**inputs).logits, lora(**inputs).logits, atol=1e-5, rtol=1e-5)


def gradients(model, inputs, labels=None):
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"] if labels is None else labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_reach_only_the_readers_that_are_present():
    model = tiny_model().train()
    found = gradients(model, rows(readers=[262, None, 262]))
    for name, gradient in found.items():
        if "experts.object" in name or "experts.relation" in name or "router" in name:
            assert gradient.abs().max() == 0, name
    assert sum(gradient.abs().sum() for name, gradient in found.items() if "experts.theme" in name) > 0


def test_every_expert_stays_in_the_graph_in_training():
    """DDP then needs no search for unused parameters: absent experts get zeros, not None."""
    found = gradients(tiny_model().train(), rows(readers=[262]))
    model = tiny_model()
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert lora and all(name in found for name in lora)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    """Another batch runs between forward and backward: readers set outside the layer would be that batch's by then."""
    model, inputs = tiny_model().train(), rows(readers=[262, 263, None])
    plain = gradients(model, inputs)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    model(**rows(readers=[264, 264, 261]))
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain and "lora_" in name:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-5)


def test_batch_size_and_padding_change_nothing():
    model = tiny_model()
    inputs = rows(readers=[262] * 8)
    for name in inputs:
        inputs[name] = inputs[name][:1].expand(8, *inputs[name].shape[1:]).contiguous()
    with torch.no_grad():
        eight = model(**inputs).logits[5, -6:]
        one_padded = model(**one(inputs, 0, unpadded=False)).logits[0, -6:]
        one_bare = model(**one(inputs, 0)).logits[0, -6:]
    torch.testing.assert_close(eight, one_padded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eight, one_bare, atol=1e-5, rtol=1e-5)


def test_sdpa_equals_eager():
    inputs = rows()
    model = tiny_model()
    with torch.no_grad():
        sdpa = model(**inputs).logits
        model.set_attn_implementation("eager")
        eager = model(**inputs).logits
    assert model.model.language_model.config._attn_implementation == "eager"
    torch.testing.assert_close(
        sdpa[inputs["attention_mask"] == 1], eager[inputs["attention_mask"] == 1], atol=1e-5, rtol=1e-4
    )


def test_encoder_equals_instructblip():
    """Same weights as transformers' own InstructBLIP: same features for the LLM."""
    set_seed(3)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    vision |= {"patch_size": 14, "initializer_range": 0.2}
    qformer = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 64,
    }
    theirs = InstructBlipForConditionalGeneration(
        InstructBlipConfig(
            vision_config=vision, qformer_config={**qformer, "initializer_range": 0.2}, text_config=TEXT,
            num_query_tokens=4, image_token_index=259,
        )
    ).eval()  # fmt: skip
    nn.init.normal_(theirs.model.query_tokens) if hasattr(theirs, "model") else nn.init.normal_(theirs.query_tokens)
    core = getattr(theirs, "model", theirs)
    config = RSMoEConfig(
        vision_config={"model_type": "instructblip_vision_model", **vision},
        qformer_config=qformer,
        text_config=TEXT,
        num_query_tokens=4,
    )
    ours = RSMoEModel(config).eval().encoder
    ours.vision_model.load_state_dict(core.vision_model.state_dict())
    ours.qformer.load_state_dict(core.qformer.state_dict())
    ours.query_tokens.weight.data.copy_(core.query_tokens[0])
    ours.projection.load_state_dict(core.language_projection.state_dict())
    pixels = torch.randn(3, 3, 28, 28)
    instruction = {
        "qformer_input_ids": torch.randint(5, 60, (3, 7)),
        "qformer_attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7]),
    }
    with torch.no_grad():
        features = ours(pixels, **instruction)
        expected = core.get_image_features(pixels, **instruction).pooler_output
    assert features.abs().max() > 0.1
    torch.testing.assert_close(features, expected.view_as(features), atol=1e-6, rtol=1e-5)


def test_image_embeds_equal_pixels():
    model, inputs = tiny_model(), rows()
    with torch.no_grad():
        pixels = model(**inputs).logits
        inputs["image_embeds"] = model.encode_image(inputs.pop("pixel_values"))
        torch.testing.assert_close(model(**inputs).logits, pixels)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders(decoder):
    """Targets are found by name in each decoder, and its readers differ."""
    extra = {"head_dim": 8} if decoder == "qwen3" else {}
    model = tiny_model(config=tiny_config(text_config={"model_type": decoder, **extra}))
    assert model.model.language_model.config.model_type == decoder
    inputs = rows()
    with torch.no_grad():
        together = model(**inputs).logits
        for i in (0, 2, 4):
            alone = model(**one(inputs, i)).logits
            torch.testing.assert_close(together[i, -alone.shape[1] :], alone[0], atol=1e-4, rtol=1e-4)
        llm = model(**inputs, adapter_ids=torch.zeros(len(READERS), dtype=torch.long)).logits
    assert (together - llm)[2].abs().max() > 0.01


@pytest.mark.parametrize("vision", VISIONS)
def test_vision_encoders(vision):
    extra = {"intermediate_size": 24} if vision != "dinov2" else {}
    model = tiny_model(config=tiny_config(vision_config={"model_type": vision, **extra}))
    with torch.no_grad():
        features = model.model.encoder(torch.randn(2, 3, 28, 28))
        assert features.shape == (2, 4, 32)
        assert (features[0] - features[1]).abs().max() > 1e-3


def test_full_experts_of_qwen3_replace_its_norms_too():
    model = tiny_model(
        config=tiny_config(text_config={"model_type": "qwen3", "head_dim": 8}, expert_config={"expert_type": "full"})
    )
    inputs = rows()
    with torch.no_grad():
        for expert in model.model.experts.values():
            for name, parameter in expert.named_parameters():
                if "norm" in name:
                    parameter.normal_(1, 0.3)
        together = model(**inputs).logits
        expert = copy.deepcopy(model.model.language_model)
        model.model.experts["theme"].merge_into(expert)
        merged = copy.deepcopy(model)
        merged.model.language_model = expert
        alone = merged(**one(inputs, 2), adapter_ids=torch.zeros(1, dtype=torch.long)).logits
    torch.testing.assert_close(together[2, -alone.shape[1] :], alone[0], atol=1e-4, rtol=1e-4)


def test_merged_expert_is_a_plain_decoder():
    model = tiny_model()
    inputs = rows(readers=[262], images=False)
    expected = model.model(**inputs).last_hidden_state
    plain = LlamaModel(model.config.text_config).eval()
    plain.load_state_dict(model.model.language_model.state_dict())
    model.model.expert("theme").merge_into(plain)
    torch.testing.assert_close(plain(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_merged_llm(kind, tied):
    """A causal LM of transformers that reads text as the expert's rows do; the model stays as it was."""
    text = {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": tied}
    model = tiny_model(config=tiny_config(text_config=text, expert_config={"expert_type": kind, "r": 4}))
    before = copy.deepcopy(model.state_dict())
    llm = model.merged_llm("object")
    inputs = rows(readers=[263, 263], images=False)
    with torch.no_grad():
        found, expected = llm(**inputs).logits, model(**inputs).logits
        block = model(**inputs, adapter_ids=torch.zeros(2, dtype=torch.long)).logits
        kept = inputs["attention_mask"] == 1
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-4, rtol=1e-4)
        assert (found - block)[kept].abs().max() > 0.1
        for parameter in llm.parameters():
            parameter.zero_()
    assert type(llm).__name__ == "Qwen3ForCausalLM" and llm.config.tie_word_embeddings == tied
    assert llm.generation_config.eos_token_id == 2 and llm.generation_config.suppress_tokens == list(range(259, 265))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_added_expert(kind, tied, tmp_path):
    """It starts at the base LM and moves its own rows only; every other weight is the same, bit for bit."""
    config = tiny_config(text_config={"tie_word_embeddings": tied}, expert_config={"expert_type": kind, "r": 4})
    model, inputs = tiny_model(config=config), rows()
    new = rows(readers=[265])
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        others = model(**inputs).logits
        expert = model.add_expert("counting", 265)
        torch.testing.assert_close(model(**inputs).logits[..., :265], others, atol=1e-5, rtol=1e-5)
        start = model(**new).logits
        block = model(**new, adapter_ids=torch.zeros(1, dtype=torch.long)).logits
        torch.testing.assert_close(start, block, atol=1e-5, rtol=1e-5)
        for parameter in expert.parameters():
            parameter.normal_(0, 0.3)
        assert (model(**new).logits - start).abs().max() > 0.1
        torch.testing.assert_close(model(**inputs).logits[..., :265], others, atol=1e-5, rtol=1e-5)
    for name, value in model.state_dict().items():
        if name not in before:
            assert name.startswith("model.experts.counting.")
            continue
        assert torch.equal(value[: len(before[name])], before[name])
        if len(value) > len(before[name]):
            torch.testing.assert_close(value[265:], before[name][[262, 263, 264]].mean(0, keepdim=True))
    assert model.model.get_adapter_ids(new["input_ids"]).tolist() == [5]
    assert model.generation_config.suppress_tokens[-1] == 265
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied

    model.save_pretrained(tmp_path)
    again = RSMoEForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.expert_names == ["theme", "object", "relation", "counting"]
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        assert torch.equal(again(**new).logits, model(**new).logits)


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("theme", 265, "each name may stand once"),
        ("two words", 265, "cannot name an expert"),
        ("a", 264, "must differ"),
    ],
)
def test_expert_that_cannot_be_added(name, token, said):
    model = tiny_model()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(RSMoEError, match=said):
        model.add_expert(name, token)
    assert [name for name, _ in model.named_parameters()] == before
    assert len(model.config.expert_names) == 3 and model.config.text_config.vocab_size == 265


def test_deepcopy_is_independent():
    model = tiny_model()
    twin, inputs = copy.deepcopy(model), rows()
    with torch.no_grad():
        before = model(**inputs).logits
        torch.testing.assert_close(twin(**inputs).logits, before)
        for parameter in twin.model.experts.parameters():
            parameter.zero_()
        assert (twin(**inputs).logits - before)[2].abs().max() > 0.01
        assert torch.equal(model(**inputs).logits, before)


# -- rows that are packed into one, embeddings in place of ids


def packed(inputs):
    """The same sequences in one row, as padding-free collators make it."""
    mask = inputs["attention_mask"].bool()
    positions = torch.cat([torch.arange(length) for length in mask.sum(1).tolist()])
    others = {name: value for name, value in inputs.items() if name != "attention_mask"}
    return {**others, "input_ids": inputs["input_ids"][mask][None], "position_ids": positions[None]}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_packed_rows_equal_rows_of_their_own(kind):
    """Logits, loss and gradients, images included."""
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind, "r": 4})).double().train()
    inputs = rows()
    kept = inputs["attention_mask"].bool()
    row = packed(inputs)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = model(**inputs, position_ids=positions).logits[kept]
    torch.testing.assert_close(model(**row).logits[0], logits, atol=1e-5, rtol=1e-5)
    labels = inputs["input_ids"].masked_fill(~kept | (inputs["input_ids"] > 250), -100)
    labels[torch.arange(len(labels)), kept.int().argmax(1)] = -100  # no sequence follows another
    expected = gradients(model, {**inputs, "position_ids": positions}, labels)
    found = gradients(model, row, labels[kept][None])
    assert expected.keys() == found.keys() and any("experts.relation" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_packed_rows_of_a_collator():
    """transformers' own collator, two packed rows in a batch, and adapters given token by token."""
    model, inputs = tiny_model(), rows(readers=[262, None, 264], images=False, pad=0)
    sequences = [ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    row = DataCollatorWithFlattening()([{"input_ids": ids} for ids in sequences])
    twice = {name: torch.cat([row[name], row[name]]) for name in ("input_ids", "position_ids")}
    twice["input_ids"][1, 0] = 263
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences])
        logits = model(**twice).logits
        torch.testing.assert_close(logits[0], alone, atol=1e-5, rtol=1e-4)
        first = model(input_ids=torch.tensor([[263, *sequences[0][1:]]])).logits[0]
        torch.testing.assert_close(logits[1, : len(first)], first, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[1, len(first) :], alone[len(first) :], atol=1e-5, rtol=1e-4)
        ids = torch.tensor([2] * len(sequences[0]) + [0] * len(sequences[1]) + [4] * len(sequences[2]))
        plain = {**twice, "input_ids": twice["input_ids"].clamp(max=250)}
        given = model(**plain, adapter_ids=ids.expand(2, -1)).logits[0, : len(first)]
        expected = model(input_ids=plain["input_ids"][:1, : len(first)], adapter_ids=torch.tensor([2])).logits[0]
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


def test_embeddings_are_read_as_their_ids_are():
    model, inputs = tiny_model(), rows()
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, model(input_ids=ids, **inputs).logits)
        model.get_input_embeddings().weight[264] = model.get_input_embeddings().weight[263]
        with pytest.raises(RSMoEError, match="equal embeddings.*pass adapter_ids"):
            model(inputs_embeds=model.get_input_embeddings()(ids), **inputs)


@pytest.mark.slow
def test_forward_is_traced_as_one_graph():
    """`torch.compile(model, fullgraph=True)`, images included."""
    model, inputs = tiny_model(), rows()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_adapter_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(8,\), one for each sequence, or \(8, 20\)"):
        tiny_model()(**rows(), adapter_ids=torch.tensor([1, 2]))


# -- LoRA of PEFT


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_lora_of_peft(kind, use_dora, targets, tmp_path):
    """Trained, saved, loaded and merged: the same logits in the base LM's, the router's and the experts' sequences."""
    config = tiny_config(expert_config={"expert_type": kind, "r": 4})
    inputs, settings = rows(), {"target_modules": targets, "use_dora": use_dora, "init_lora_weights": False}
    before = tiny_model(config=config).double()(**inputs).logits
    model = get_peft_model(tiny_model(config=config).double(), LoraConfig(r=2, **settings))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.SGD(learning, lr=0.1).step()
    with torch.no_grad():
        trained = model.eval()(**inputs).logits
        assert ((trained - before).abs().amax((1, 2)) > 0.1).all()
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(config=config).double(), tmp_path).eval()
        torch.testing.assert_close(again(**inputs).logits, trained, atol=1e-6, rtol=1e-6)
        with again.disable_adapter():
            torch.testing.assert_close(again(**inputs).logits, before, atol=1e-6, rtol=1e-6)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, trained, atol=1e-4, rtol=1e-4)
        assert torch.equal(merged.generate(**inputs), model.generate(**inputs))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", ["router", "theme"])
def test_router_and_experts_are_no_modules_to_save(name, kind):
    """A copy that PEFT wraps around them would learn in part only, without a word."""
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind, "r": 4}))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name]))
    with pytest.raises(
        RSMoEError, match="cannot be wrapped .ModulesToSaveWrapper.: leave them out of PEFT's modules_to"
    ):
        model(**rows())


# -- traps of the mechanism: each an error, never a silently wrong row


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_replaced_layer_is_hooked_anew(kind):
    model, inputs = (
        tiny_model(config=tiny_config(expert_config={"expert_type": kind}, router_config={"expert_type": kind})),
        rows(),
    )
    with torch.no_grad():
        before = model(**inputs).logits
    layer = model.model.language_model.layers[1].self_attn
    new = nn.Linear(32, 32, bias=False)
    new.load_state_dict(layer.q_proj.state_dict())
    layer.q_proj = new
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, before)


def test_foreign_cache_without_readers_is_refused():
    model, inputs = tiny_model(), rows(readers=[262, 263], images=False)
    with torch.no_grad():
        cache = model.model.language_model(**inputs, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[7], [8]]), "past_key_values": cache}
        with pytest.raises(ValueError, match="pass `adapter_ids`"):
            model(**step)


def test_cache_remembers_its_readers():
    """A decoding loop of one's own carries only the cache: its rows stay their experts'."""
    model, inputs = tiny_model(), rows(readers=[262, 263])
    more = torch.tensor([[7], [8]])
    with torch.no_grad():
        position_ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        cache = model(**inputs, position_ids=position_ids, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        position_ids = mask.sum(1, keepdim=True) - 1
        cached = model(input_ids=more, attention_mask=mask, position_ids=position_ids, past_key_values=cache).logits[
            :, -1
        ]
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1), "attention_mask": mask}
        whole["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(model(**whole).logits[:, -1], cached, atol=1e-5, rtol=1e-4)


def test_image_counts_must_match():
    inputs = rows()
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    inputs["qformer_input_ids"] = inputs["qformer_input_ids"][:3]
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 32, features: 12"):
        tiny_model()(**inputs)


def test_expert_of_another_shape_is_refused(tmp_path):
    tiny_model(config=tiny_config(expert_config={"r": 2, "lora_alpha": 4})).model.expert("theme").save_pretrained(
        tmp_path
    )
    with pytest.raises(RSMoEError, match=r"lora_A has shape \(2, 48\); this model needs \(4, 48\)"):
        tiny_model().model.expert("theme").load_weights(tmp_path)


OLD_NAMES = {r"_lora\.lora_([AB])$": r".lora_\1"}  # q_proj.lora_A, as experts' weights were called once


def save_with_old_names(model, folder):
    model.save_pretrained(folder, save_original_format=False)
    weights = load_file(folder / "model.safetensors")
    renamed = {re.sub(*next(iter(OLD_NAMES.items())), name): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def test_expert_that_lacks_weights_is_refused(tmp_path):
    """transformers would make new ones."""
    save_with_old_names(tiny_model().model.expert("object"), tmp_path)
    with pytest.raises(RSMoEError, match=r"lacks weights, such as layers\.0\.mlp\.down_proj_lora\.lora_A"):
        tiny_model().model.expert("object").load_weights(tmp_path)


def test_old_names_are_loaded_by_a_key_mapping(tmp_path):
    """As docs/how-to/hub.md says."""
    model, inputs = tiny_model(), rows()
    save_with_old_names(model, tmp_path / "old")
    mapping = {r"(?<!_lora)\.lora_([AB])$": r"_lora.lora_\1"}
    again, info = RSMoEForConditionalGeneration.from_pretrained(
        tmp_path / "old", key_mapping=mapping, output_loading_info=True
    )
    assert not any(info.values())
    again.save_pretrained(tmp_path / "new", save_original_format=False)
    saved, info = RSMoEForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(saved(**inputs).logits, model(**inputs).logits)


def test_infinite_expert_is_refused(tmp_path):
    expert = tiny_model().model.expert("object")
    with torch.no_grad():
        expert.layers[0].self_attn.q_proj_lora.lora_A[0, 0] = torch.inf
    expert.save_pretrained(tmp_path)
    with pytest.raises(RSMoEError, match="not finite"):
        tiny_model().model.expert("object").load_weights(tmp_path)


def test_expert_saved_alone_moves_only_its_rows(tmp_path):
    model, other, inputs = tiny_model(), tiny_model(seed=5), rows()
    other.model.expert("object").save_pretrained(tmp_path)
    with torch.no_grad():
        before = model(**inputs).logits
        model.model.expert("object").load_weights(tmp_path)
        change = (model(**inputs).logits - before).abs().amax((1, 2))
    assert [bool(moved > 1e-4) for moved in change] == [reader == 263 for reader in READERS]
    assert isinstance(RSMoEExpert.from_pretrained(tmp_path), RSMoEExpert)


def test_unknown_expert_lists_the_known():
    with pytest.raises(RSMoEError, match="'ship'; this model has theme, object, relation"):
        tiny_model().model.expert("ship")


def test_frozen_encoder_stays_in_evaluation_mode():
    """Trainer calls model.train(); a frozen Q-Former with dropout would give other features at each step."""
    model = tiny_model(config=tiny_config(qformer_config={"hidden_dropout_prob": 0.5}))
    model.model.encoder.qformer.requires_grad_(False)
    model.train()
    assert not model.model.encoder.qformer.training and model.model.router.training
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(model.model.encoder(pixels), model.model.encoder(pixels))


def test_parts_of_other_ranks_and_targets_mix():
    """Router and experts may have other ranks and other layers."""
    config = tiny_config(
        router_config={"r": 3, "target_modules": ["down_proj", "q_proj"]},
        expert_config={"r": 5, "target_modules": ["q_proj", "v_proj"]},
    )
    model, inputs = tiny_model(config=config), rows()
    with torch.no_grad():
        together = model(**inputs).logits
        for i in (1, 2, 3):
            alone = model(**one(inputs, i)).logits
            torch.testing.assert_close(together[i, -alone.shape[1] :], alone[0], atol=1e-5, rtol=1e-4)


def test_order_of_parameters_survives_a_config_file(tmp_path):
    """optimizer.pt is indexed by position: another order after reload would mix the states of two weights."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    again = RSMoEForConditionalGeneration.from_pretrained(tmp_path)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in again.named_parameters()]


def test_loaded_weights_give_equal_outputs(tmp_path):
    model, inputs = tiny_model(), rows()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = RSMoEForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        base = RSMoEModel.from_pretrained(tmp_path)
        assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


@pytest.mark.parametrize("load", [RSMoEForConditionalGeneration, RSMoEModel, RSMoEExpert])
def test_checkpoint_of_another_model_type_is_refused(load, tmp_path):
    LlamaConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}).save_pretrained(tmp_path)
    with pytest.raises(RSMoEError, match="is of model type 'llama', expected 'rsmoe"):
        load.from_pretrained(tmp_path)
