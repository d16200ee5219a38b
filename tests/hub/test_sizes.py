"""hub_configs of every size: files load and fit each other; the larger ones make sequences as their LLMs need them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, GenerationConfig, InstructBlipConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from modeling_rsmoe import RSMoEConfig, RSMoEProcessor
from modeling_rsmoe.hub.convert import llm_tokenizer
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.prompting_rsmoe import Prompt
from modeling_rsmoe.sequences_rsmoe import by_expert

from ..tiny import tiny_qformer_tokenizer
from .test_convert import bytes_with_first_token


SIZES = ["rs-moe-1b", "rs-moe-3b", "rs-moe-7b"]
EVERY = ["README.md", "card.yaml", "config.json", "generation_config.json", "processor_config.json", "training.yaml"]
FILES = {size: [*EVERY, "chat_template.jinja", "sources.yaml"] for size in SIZES}
# nano's chat template is the processor's own.
FILES["rs-moe-nano"] = [*EVERY, "picture.png", "sources.yaml", "stac_item.json", "trained.json", "trained.safetensors"]


def processor_of(size: str, folder: Path) -> RSMoEProcessor:
    """As convert makes it, with a tokenizer of bytes in place of the gated one."""
    settings = json.loads((HUB_CONFIGS / size / "processor_config.json").read_text())
    template = (HUB_CONFIGS / size / "chat_template.jinja").read_text()
    instructions, count = settings["expert_instructions"], settings["num_query_tokens"]
    return RSMoEProcessor(
        AutoImageProcessor.from_pretrained(HUB_CONFIGS / size, backend="pil"),
        llm_tokenizer(bytes_with_first_token(folder), 258),
        tiny_qformer_tokenizer(),
        count,
        settings["experts"],
        instructions,
        template,
    )


@pytest.mark.parametrize("size", FILES)
def test_files_fit_each_other(size):
    folder = HUB_CONFIGS / size
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES[size])
    config, generation = RSMoEConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    own = [config.image_token_id, config.prompt_token_id, *config.adapter_token_ids]
    assert generation.suppress_tokens == own
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(generation, name) == getattr(config.text_config, name)
    assert generation.pad_token_id != generation.eos_token_id
    assert (generation.router_mode, generation.fusion) == ("generated", "auto")
    settings = json.loads((folder / "processor_config.json").read_text())
    assert settings["num_query_tokens"] == config.num_query_tokens and settings["experts"] == config.expert_names
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert image_processor.size["height"] == image_processor.size["width"] == 224
    assert ModelCard.load(folder / "README.md").data.base_model == list(read_facts(size).base_models)
    # training.yaml: tests/training/test_settings.py


@pytest.mark.parametrize("size", SIZES)
def test_images_are_instructblips(size):
    config, image_processor = (
        RSMoEConfig.from_pretrained(HUB_CONFIGS / size),
        AutoImageProcessor.from_pretrained(HUB_CONFIGS / size, backend="pil"),
    )
    assert list(image_processor.image_mean) == OPENAI_CLIP_MEAN
    assert list(image_processor.image_std) == OPENAI_CLIP_STD
    assert image_processor.size["height"] == config.vision_config.image_size == 224


@pytest.mark.parametrize("size", SIZES)
def test_encoder_is_instructblips(size):
    """The configuration's defaults are the published ViT-g and Q-Former; the Q-Former's vocabulary has one more."""
    config, published = RSMoEConfig.from_pretrained(HUB_CONFIGS / size), InstructBlipConfig()
    assert config.vision_config.to_diff_dict() == {
        **published.vision_config.to_diff_dict(),
        "transformers_version": config.vision_config.to_diff_dict()["transformers_version"],
    }
    own, theirs = config.qformer_config.to_dict(), published.qformer_config.to_dict()
    assert {key for key in own if own[key] != theirs.get(key)} <= {"vocab_size", "_name_or_path"}
    assert own["vocab_size"] == theirs["vocab_size"] + 1


@pytest.mark.parametrize("size", SIZES)
def test_sources_and_card(size):
    sources = yaml.safe_load((HUB_CONFIGS / size / "sources.yaml").read_text())
    hub = {module: source["hub"] for module, source in sources["modules"].items()}
    card = ModelCard.load(HUB_CONFIGS / size / "README.md")
    assert card.data.base_model == [hub["qformer"]["repo_id"], hub["language_model"]["repo_id"]]
    assert card.data.license_name == hub["language_model"]["license"]
    assert "revisions" in sources["unverified"] and "**Not a trained model.**" in card.text


@pytest.mark.parametrize("size", ["rs-moe-1b", "rs-moe-7b"])
def test_rows(size, tmp_path):
    """A sequence begins with the first token, once; an answer ends with the end token; the Q-Former reads its text."""
    processor = processor_of(size, tmp_path)
    tokenizer = processor.tokenizer
    rendered = processor.render("Is there a river?")
    assert rendered == "<|begin|>USER: <image> Is there a river? ASSISTANT:"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    chat = [turn, {"role": "assistant", "content": "a port ."}, {"role": "user", "content": "Any ships?"}]
    whole = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert whole == "<|begin|>USER: <image> What is it? ASSISTANT: a port .<|end|>USER: Any ships? ASSISTANT:"
    assert processor.read_rendered(whole) == "Any ships?"
    assert processor.read_rendered(rendered) == "Is there a river?"
    for row in (
        Prompt.router("theme", "What?").text,
        Prompt.rewrite("What?", {"theme": "a", "object": "b", "relation": ""}).text,
    ):
        assert processor.read_rendered(processor.render(row)) == "What?"
    row = processor.render(Prompt.for_expert("object", "How many?", "").text)
    assert processor.read_rendered(row) == processor.expert_instructions["object"]
    inputs = processor(images=torch.zeros(3, 224, 224), text="Is there a river?", return_tensors="pt")
    for name in ("input_ids", "router_input_ids", "expert_input_ids", "rewrite_input_ids"):
        for ids in by_expert(inputs[name]).flatten(0, -2):
            ids = ids[ids != tokenizer.pad_token_id]
            assert ids[0] == tokenizer.bos_token_id and (ids == tokenizer.bos_token_id).sum() == 1
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 32
