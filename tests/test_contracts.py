"""What servers and tools of the ecosystem ask of a model and its processor."""

import base64
import importlib.util
import io
import socket
from pathlib import Path

import pytest
import torch
import transformers
from openai import OpenAI
from PIL import Image
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto import modeling_auto

from modeling_rsmoe import RSMoEError, RSMoEProcessor

from .tiny import tiny_model


IMAGES = [Image.radial_gradient("L"), Image.linear_gradient("L")]
TEXTS = ["Describe.", "What is it now?"]


# ---- asked by vLLM, SGLang and transformers' own continuous batching


def test_how_many_tokens_an_image_takes_is_told_without_the_image(processor) -> None:
    sizes = [image.size for image in IMAGES]
    told = processor._get_num_multimodal_tokens(image_sizes=sizes)
    ids = processor(images=IMAGES, text=TEXTS)["input_ids"]
    assert told["num_image_tokens"] == [row.count(processor.image_token_id) for row in ids] == [4, 4]
    assert told["num_image_patches"] == [1, 1]  # rows of pixel_values for each image
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_token_types_mark_the_image_tokens(processor) -> None:
    assert processor.image_token_ids == [processor.image_token_id]
    inputs = processor(images=IMAGES, text=TEXTS, return_mm_token_type_ids=True, return_tensors="pt")
    assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == processor.image_token_id).long())
    chat = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "What?"}]}]
    wanted = {"return_mm_token_type_ids": True, "return_tensors": "pt"}
    said = processor.apply_chat_template(chat, tokenize=True, return_dict=True, processor_kwargs=wanted)
    assert said["mm_token_type_ids"].sum() == 4


@pytest.mark.parametrize("whole", [True, False])
def test_token_types_change_nothing(processor, model, whole) -> None:
    """Some servers pass on all that the processor made."""
    inputs = processor(images=IMAGES, text=TEXTS, expert_inputs=whole, return_tensors="pt")
    types = processor(images=IMAGES, text=TEXTS, return_mm_token_type_ids=True, return_tensors="pt")
    more = {**inputs, "mm_token_type_ids": types["mm_token_type_ids"]}
    assert torch.equal(model.generate(**more), model.generate(**inputs))
    with torch.no_grad():
        assert torch.equal(model(**more).logits, model(**inputs).logits)


def test_an_attention_of_ones_own_is_used_in_the_vit_and_the_decoder(processor) -> None:
    """`_supports_attention_backend`: servers put their paged attention in this way."""
    model = tiny_model()
    seen = []

    def probe(module, *args, **kwargs):
        seen.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    before = model.generate(**inputs)
    AttentionInterface.register("rsmoe_probe", probe)
    transformers.AttentionMaskInterface.register("rsmoe_probe", transformers.masking_utils.sdpa_mask)
    assert model._supports_attention_backend
    model.set_attn_implementation({"text_config": "rsmoe_probe", "vision_config": "rsmoe_probe"})
    assert torch.equal(model.generate(**inputs), before)
    assert {"LlamaAttention", "Dinov2Attention"} == set(seen)


def test_engines_of_single_tokens_are_refused(model) -> None:
    """They would read every token by the first one's expert: vLLM and SGLang ask, transformers is told."""
    assert not type(model).is_backend_compatible() and not type(model.model).is_backend_compatible()
    ids = [[token, 10, 11] for token in model.config.expert_token_ids]
    for start in (model.init_continuous_batching, lambda: model.generate_batch(ids, max_new_tokens=3)):
        with pytest.raises(RSMoEError, match="no continuous batching.*`generate` with a batch"):
            start()


# ---- transformers serve, transformers chat


def test_transformers_serve_takes_no_class_of_a_checkpoints_own_code(checkpoint) -> None:
    """Should this fail, transformers has learned it: docs/how-to/serving.md and transformers_serve.py are outdated."""
    from transformers.cli.serving.model_manager import ModelManager

    with pytest.raises(AttributeError, match="transformers has no attribute RSMoEForConditionalGeneration"):
        ModelManager(force_model=str(checkpoint), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError, match="Unknown modality for: RSMoEForConditionalGeneration"):
        ModelManager.get_model_modality(tiny_model())


@pytest.mark.slow
def test_transformers_serve_answers_with_the_class_in_its_tables(checkpoint, monkeypatch) -> None:
    from transformers.cli.serve import Serve

    # monkeypatch puts back what the example enters
    monkeypatch.setattr(transformers, "RSMoEForConditionalGeneration", None, raising=False)
    monkeypatch.setitem(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "rsmoe", None)
    file = Path(__file__).parents[1] / "examples" / "transformers_serve.py"
    spec = importlib.util.spec_from_file_location("transformers_serve", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(str(checkpoint), device="cpu", host="127.0.0.1", port=port, non_blocking=True)
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
        file = io.BytesIO()
        IMAGES[0].save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": TEXTS[0]}]
        asked = {"model": str(checkpoint), "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        answer = client.chat.completions.create(**asked)
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
    finally:
        serve.kill_server()

    processor, model = RSMoEProcessor.from_pretrained(checkpoint), tiny_model()
    inputs = processor(images=IMAGES[0], text=TEXTS[0], return_tensors="pt")
    sequences = model.generate(**inputs, max_new_tokens=8)
    expected = processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.choices[0].message.content == expected and expected.strip()
    assert len(pieces) > 3 and "".join(pieces).strip() == expected.strip()
