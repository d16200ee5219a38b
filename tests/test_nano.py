"""rs-moe-nano as a newcomer gets it: assembled from the real parts and our trained weights, captioning a real tile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.hub import vllm_client
from modeling_rsmoe.hub.adapters import export_vllm
from modeling_rsmoe.hub.assemble import assemble
from modeling_rsmoe.hub.download import demo_image

from .test_documents import ROOT, python_of, run_alone


pytestmark = pytest.mark.wheels


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    return assemble("rs-moe-nano", tmp_path_factory.mktemp("nano") / "rs-moe-nano")


@pytest.fixture(scope="module")
def loaded(nano) -> tuple[RSMoEForConditionalGeneration, RSMoEProcessor]:
    return RSMoEForConditionalGeneration.from_pretrained(nano).eval(), RSMoEProcessor.from_pretrained(nano)


def test_captions_the_demo_tile_from_the_command_line(nano):
    """In a process of its own: four texts, and the scene is the right one."""
    command = [sys.executable, "-c", "from modeling_rsmoe.cli import main; main()", "caption", "--demo", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--model", str(nano)], capture_output=True, text=True, env=environment, check=True
    )
    told = json.loads(done.stdout)
    assert list(told["expert_texts"]) == ["theme", "object", "relation"]
    assert all(told["expert_texts"].values()) and all(told["router_prompts"].values()) and told["caption"]
    assert all(prompt.endswith("?") for prompt in told["router_prompts"].values())
    assert len(set(told["router_prompts"].values())) == 3
    assert "golf course" in told["caption"].lower(), told["caption"]


def test_python_of_the_card_captions_the_demo_tile(nano, tmp_path):
    """The ten lines of model_card.md with rs-moe-nano itself, in a process of their own; the card came along."""
    (tmp_path / "nano").symlink_to(nano)
    Image.open(demo_image()).convert("RGB").save(tmp_path / "tile.png")
    caption, prompts, parts = run_alone(python_of("model_card.md")[0], tmp_path)
    assert "golf course" in caption.lower() and "theme" in prompts and "theme" in parts
    assert (nano / "README.md").read_bytes() == (ROOT / "model_card.md").read_bytes()


def test_experts_and_router_learned_something(loaded):
    """Template prompts and the router's own lead to other texts; experts say other things than the base LM."""
    model, processor = loaded
    inputs = processor(images=demo_image(), text="Describe the image.", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True, fusion="concat")
    result = processor.post_process_generation(outputs)[0]
    assert len(set(result["expert_texts"].values())) > 1
    assert result["router_prompts"]["relation"].startswith("Where")


def test_adapters_over_prompt_embeddings_say_what_generate_says(loaded, tmp_path, monkeypatch):
    """The client that `rsmoe export vllm` writes, with PEFT in the server's place: the same texts."""
    model, processor = loaded
    export_vllm(model, processor, tmp_path / "served")
    inputs = processor(images=demo_image(), text="Describe the image.", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True, fusion="rewrite")
    expected = processor.post_process_generation(outputs)[0]
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "served" / "base")
    for name in ("router", "theme", "object", "relation"):
        folder = tmp_path / "served" / "adapters" / name
        if name == "router":
            served = PeftModel.from_pretrained(served, folder, adapter_name=name)
        else:
            served.load_adapter(folder, adapter_name=name)
    served.eval()

    def ask(server, name, embeds, max_tokens=48):
        found = served.generate(
            inputs_embeds=embeds.unsqueeze(0),
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            adapter_names=["__base__" if name == "base" else name],
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        return processor.tokenizer.decode(found[0], skip_special_tokens=True).strip()

    monkeypatch.setattr(vllm_client, "ask", ask)
    found = vllm_client.caption(
        vllm_client.PromptEmbeddings(tmp_path / "served"), demo_image(), "Describe the image.", ""
    )
    assert found == {name: expected[name] for name in ("text", "router_prompts", "expert_texts")}
