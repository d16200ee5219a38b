"""The model: its encoder and decoders, batches, and checkpoints."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    set_seed,
)

from modeling_rsmoe import RSMoEConfig, RSMoEError, RSMoEExpert, RSMoEForConditionalGeneration, RSMoEModel

from .sequences import ADAPTERS, one, rows
from .tiny import TEXT, tiny_config, tiny_model


DECODERS = ["llama", "qwen2", "qwen3", "mistral", "smollm3"]
VISIONS = ["dinov2", "vit", "clip_vision_model", "siglip_vision_model", "instructblip_vision_model"]


def test_batch_size_and_padding_change_nothing():
    model = tiny_model()
    inputs = rows(adapters=[262] * 8)
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
    """Targets are found by name in each decoder, and its adapters differ."""
    extra = {"head_dim": 8} if decoder == "qwen3" else {}
    model = tiny_model(config=tiny_config(text_config={"model_type": decoder, **extra}))
    assert model.model.language_model.config.model_type == decoder
    inputs = rows()
    with torch.no_grad():
        together = model(**inputs).logits
        for i in (0, 2, 4):
            alone = model(**one(inputs, i)).logits
            torch.testing.assert_close(together[i, -alone.shape[1] :], alone[0], atol=1e-4, rtol=1e-4)
        llm = model(**inputs, adapter_ids=torch.zeros(len(ADAPTERS), dtype=torch.long)).logits
    assert (together - llm)[2].abs().max() > 0.01


@pytest.mark.parametrize("vision", VISIONS)
def test_vision_encoders(vision):
    extra = {"intermediate_size": 24} if vision != "dinov2" else {}
    model = tiny_model(config=tiny_config(vision_config={"model_type": vision, **extra}))
    with torch.no_grad():
        features = model.model.encoder(torch.randn(2, 3, 28, 28))
        assert features.shape == (2, 4, 32)
        assert (features[0] - features[1]).abs().max() > 1e-3


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


@pytest.mark.slow
def test_forward_is_traced_as_one_graph():
    """`torch.compile(model, fullgraph=True)`, images included."""
    model, inputs = tiny_model(), rows()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_image_counts_must_match():
    inputs = rows()
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    inputs["qformer_input_ids"] = inputs["qformer_input_ids"][:3]
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 32, features: 12"):
        tiny_model()(**inputs)


def test_frozen_encoder_stays_in_evaluation_mode():
    """Trainer calls model.train(); a frozen Q-Former with dropout would give other features at each step."""
    model = tiny_model(config=tiny_config(qformer_config={"hidden_dropout_prob": 0.5}))
    model.model.encoder.qformer.requires_grad_(False)
    model.train()
    assert not model.model.encoder.qformer.training and model.model.router.training
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(model.model.encoder(pixels), model.model.encoder(pixels))


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
