"""Router and experts: merged, added, saved and loaded."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaModel,
)

from modeling_rsmoe import RSMoEError, RSMoEExpert, RSMoEForConditionalGeneration

from .sequences import ADAPTERS, one, rows
from .tiny import tiny_config, tiny_model


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
    inputs = rows(adapters=[262], images=False)
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
    inputs = rows(adapters=[263, 263], images=False)
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
    new = rows(adapters=[265])
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
    assert [bool(moved > 1e-4) for moved in change] == [adapter == 263 for adapter in ADAPTERS]
    assert isinstance(RSMoEExpert.from_pretrained(tmp_path), RSMoEExpert)


def test_unknown_expert_lists_the_known():
    with pytest.raises(RSMoEError, match="'ship'; this model has theme, object, relation"):
        tiny_model().model.expert("ship")
