"""Impossible configurations are refused when they are made, naming the field."""

import json

import pytest

from modeling_rsmoe import RSMoEConfig, RSMoEError, RSMoEForConditionalGeneration

from .tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_names": []}, "expert_names has 0 names; give 1 to 8"),
        ({"expert_names": [f"e{i}" for i in range(9)]}, "expert_names has 9 names"),
        ({"expert_names": ["theme", "theme"]}, "each name may stand once"),
        ({"expert_names": ["keys"]}, "expert_names: 'keys' cannot name an expert"),
        ({"expert_names": ["two words"]}, "'two words' cannot name"),
        ({"expert_names": ["router"]}, "'router' cannot name"),
        ({"expert_config": {"r": 0}}, "expert_config.r is 0"),
        ({"router_config": {"lora_alpha": -1.0}}, "router_config.lora_alpha is -1.0"),
        ({"expert_config": {"target_modules": []}}, r"expert_config.target_modules is \[\]"),
        ({"expert_token_ids": [1, 2]}, "expert_token_ids has 2 ids for 3 expert_names"),
        ({"image_token_id": 999}, "vocabulary of text_config.vocab_size 265"),
        ({"router_token_id": 259, "image_token_id": 259}, "must differ"),
        ({"num_query_tokens": 0}, "num_query_tokens is 0"),
        ({"qformer_config": {"num_attention_heads": 3}}, "not a multiple of qformer_config.num_attention_heads 3"),
        ({"text_config": {"model_type": "t5"}}, "text_config.model_type 't5' is an encoder-decoder"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(RSMoEError, match=message):
        tiny_config(**changes)


def test_vision_encoder_without_patches_is_refused():
    with pytest.raises(RSMoEError, match="vision_config.model_type 'bert' has no hidden_size or no patch_size"):
        RSMoEConfig(vision_config={"model_type": "bert"})


def test_unknown_kind_is_refused():
    with pytest.raises(Exception, match="expert_type"):
        tiny_config(expert_config={"expert_type": "sparse"})


@pytest.mark.parametrize("decoder", ["gpt2", "opt"])
def test_decoder_that_cannot_hold_experts_is_refused_by_name(decoder):
    config = tiny_config(text_config={"model_type": decoder})
    with pytest.raises(RSMoEError, match=f"text_config.model_type '{decoder}'"):
        RSMoEForConditionalGeneration(config)


def test_unknown_target_lists_the_known():
    with pytest.raises(RSMoEError, match=r"no layer 'qkv'; its linear layers are \['down_proj'"):
        RSMoEForConditionalGeneration(tiny_config(expert_config={"target_modules": ["qkv"]}))


def test_one_to_eight_experts():
    for count in (1, 8):
        config = tiny_config(expert_names=[f"e{i}" for i in range(count)])
        assert len(RSMoEForConditionalGeneration(config).model.experts) == count
        assert config.adapter_token_ids == list(range(265 - count - 1, 265))


def test_saved_configuration_holds_the_decoder_once(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["expert_config"]["text_config"] is None and written["text_config"]["hidden_size"] == 32
    again = RSMoEConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.expert_config.text_config is again.text_config
