"""Who reads a sequence decides its output, whatever stands beside it in the batch."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    LlamaModel,
)

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.low_rank_rsmoe import CALL, stacked_adapters

from .sequences import ADAPTERS, one, rows
from .tiny import tiny_config, tiny_model


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_mixed_batch_equals_row_by_row(kind):
    # In double precision (but for norms and positions): what float32 rounds away depends on the processor.
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind, "r": 4})).double()
    inputs = rows()
    with torch.no_grad():
        together = model(**inputs).logits
        alone = [model(**one(inputs, i)).logits for i in range(len(ADAPTERS))]
    for i, logits in enumerate(alone):
        torch.testing.assert_close(together[i, -logits.shape[1] :], logits[0], atol=1e-5, rtol=1e-5)


def test_only_adapters_that_read_a_sequence_are_computed():
    model = tiny_model()
    adapter_ids = torch.tensor([3, 0, 2])
    found = model.model.adapter_kwargs(adapter_ids, torch.float32)
    assert found["gated_adapters"] == (2, 3) and found["adapter_gate"].shape == (3, 1, 2 * 4)
    assert found["adapter_gate"].ne(0).sum(-1).flatten().tolist() == [4, 0, 4]
    assert model.model.adapter_kwargs(torch.tensor([0, 0]), torch.float32) == {}
    inputs = rows(adapters=[263, None, 262])
    with torch.no_grad():
        before = model(**inputs).logits
        for absent in (model.model.router, model.model.experts["relation"]):
            for parameter in absent.parameters():
                parameter.fill_(torch.nan)
        assert torch.equal(model(**inputs).logits, before)
    assert model.train().model.adapter_kwargs(adapter_ids, torch.float32)["gated_adapters"] == (1, 2, 3, 4)


def test_sequences_that_are_left_use_what_is_stacked():
    """When others have ended nothing is stacked anew."""
    model = tiny_model()
    inputs = rows(adapters=[263, None, 262])
    with torch.no_grad(), stacked_adapters():
        together = model(**inputs).logits
        left = model.model.adapter_kwargs(torch.tensor([0, 2]), torch.float32)
        assert left["gated_adapters"] == (2, 3) and left["adapter_gate"].shape == (2, 1, 2 * 4)
        alone = model(**one(inputs, 2)).logits[0]
        torch.testing.assert_close(alone, together[2, -len(alone) :], atol=1e-5, rtol=1e-5)
        assert model.model.adapter_kwargs(torch.tensor([4]), torch.float32)["gated_adapters"] == (4,)


def test_what_was_stacked_is_not_kept():
    """The stacked weights of nano's adapters take 39 MB."""
    model = tiny_model()
    with torch.no_grad(), stacked_adapters():
        model(**rows(adapters=[263, None, 262]))
        assert list(CALL.stacks) == [(2, 3)]
    assert CALL.stacks is None and CALL.stacked is None


def test_adapters_differ():
    """The check above could not fail if every adapter wrote the same."""
    model = tiny_model()
    outputs = []
    for adapter in range(5):
        inputs = one(rows(adapters=[None]), 0)
        with torch.no_grad():
            outputs.append(model(**inputs, adapter_ids=torch.tensor([adapter])).logits)
    for i in range(5):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().max() > 0.01, (i, j)


def test_adapter_ids_are_of_the_first_token():
    model = tiny_model().model
    ids = torch.tensor([[5, 6, 7], [5, 264, 261], [261, 262, 263], [7, 8, 263]])
    assert model.get_adapter_ids(ids).tolist() == [0, 4, 1, 3]


def test_rows_without_an_expert_equal_the_stock_decoder():
    model = tiny_model()
    inputs = rows(adapters=[None, None], images=False)
    stock = LlamaModel(model.config.text_config).eval()
    stock.load_state_dict(model.model.language_model.state_dict())
    with torch.no_grad():
        ours, theirs = model.model(**inputs).last_hidden_state, stock(**inputs).last_hidden_state
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_reset_adapters_are_the_base_lm(kind):
    """The beginning of stage 2: B = 0, or copied layers."""
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind}, router_config={"expert_type": kind}))
    model.model.reset_adapters()
    inputs = rows(images=False)
    with torch.no_grad():
        ours = model(**inputs).logits
        llm = model(**inputs, adapter_ids=torch.zeros(len(ADAPTERS), dtype=torch.long)).logits
    torch.testing.assert_close(ours, llm, atol=1e-6, rtol=0)


def test_full_experts_equal_lora_experts_at_the_start():
    lora, full = (tiny_model(config=tiny_config(expert_config={"expert_type": kind})) for kind in ("lora", "full"))
    for part in ("language_model", "encoder"):
        getattr(full.model, part).load_state_dict(getattr(lora.model, part).state_dict())
    lora.model.reset_adapters()
    full.model.reset_adapters()
    inputs = rows(adapters=[262, 263, 264, None])
    with torch.no_grad():
        torch.testing.assert_close(full(**inputs).logits, lora(**inputs).logits, atol=1e-5, rtol=1e-5)


def gradients(model, inputs, labels=None):
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"] if labels is None else labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_reach_only_the_adapters_that_are_present():
    model = tiny_model().train()
    found = gradients(model, rows(adapters=[262, None, 262]))
    for name, gradient in found.items():
        if "experts.object" in name or "experts.relation" in name or "router" in name:
            assert gradient.abs().max() == 0, name
    assert sum(gradient.abs().sum() for name, gradient in found.items() if "experts.theme" in name) > 0


def test_every_expert_stays_in_the_graph_in_training():
    """DDP then needs no search for unused parameters: absent experts get zeros, not None."""
    found = gradients(tiny_model().train(), rows(adapters=[262]))
    model = tiny_model()
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert lora and all(name in found for name in lora)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    """Another batch runs between forward and backward: adapters set outside the layer would be that batch's."""
    model, inputs = tiny_model().train(), rows(adapters=[262, 263, None])
    plain = gradients(model, inputs)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    model(**rows(adapters=[264, 264, 261]))
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain and "lora_" in name:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-5)


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
    model, inputs = tiny_model(), rows(adapters=[262, None, 264], images=False, pad=0)
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


def test_adapter_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(8,\), one for each sequence, or \(8, 20\)"):
        tiny_model()(**rows(), adapter_ids=torch.tensor([1, 2]))


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


def test_foreign_cache_without_adapters_is_refused():
    model, inputs = tiny_model(), rows(adapters=[262, 263], images=False)
    with torch.no_grad():
        cache = model.model.language_model(**inputs, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[7], [8]]), "past_key_values": cache}
        with pytest.raises(ValueError, match="pass `adapter_ids`"):
            model(**step)


def test_cache_remembers_its_adapters():
    """A decoding loop of one's own carries only the cache: its rows stay their experts'."""
    model, inputs = tiny_model(), rows(adapters=[262, 263])
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
