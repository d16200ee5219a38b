"""Images and texts as prompt embeddings for a server of one LLM and many adapters. Stands alone beside its folders.

    python vllm_client.py tile.png [other.jpg ...] [--text "Describe the image."] [--server http://localhost:8000/v1]

`rsmoe export vllm` puts this file beside encoder/, processor/ and base/. It needs torch, transformers and safetensors,
not the rsmoe package: encoder and processor carry their code. It asks the router for each expert's prompt, the experts
for their texts and the base LM to rewrite them, as `generate` does with `fusion="rewrite"`.
"""

import argparse
import base64
import io
import json
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor


TABLE = "model.embed_tokens.weight"
MAX_NEW_TOKENS, ROUTER_MAX_NEW_TOKENS = 48, 24


class PromptEmbeddings:
    """Prompts as the server takes them: embeddings, with an image's features in the place of its image tokens.

    Args:
        folder: of `rsmoe export vllm`.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.encoder: Any = AutoModel.from_pretrained(folder / "encoder", trust_remote_code=True).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder / "processor", trust_remote_code=True)
        self.table = _read_tensor(folder / "base", TABLE)  # [tokens, hidden_size]

    @torch.no_grad()
    def encode(self, image: Any) -> torch.Tensor:
        """[1, patches, vision width] of an image, for all prompts about it.

        Args:
            image: whatever the processor takes.
        """
        return self.encoder.encode_image(self.processor(images=image, return_tensors="pt")["pixel_values"])

    @torch.no_grad()
    def __call__(self, image_embeds: torch.Tensor, prompt: Any) -> torch.Tensor:
        """[tokens, hidden_size] of a prompt about an image, up to where the answer begins.

        Args:
            image_embeds: of `encode`.
            prompt: a `Prompt` of the processor's code.
        """
        inputs = self.processor(text=[prompt], image_embeds=image_embeds, expert_inputs=False, return_tensors="pt")
        ids = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask")
        features = self.encoder(**inputs)[0]  # [queries, hidden_size]
        embeds = self.table[ids].clone()
        embeds[ids == self.processor.image_token_id] = features.to(embeds)
        return embeds


def caption(embeddings: PromptEmbeddings, image: Any, instruction: str, server: str) -> dict[str, Any]:
    """Router, experts and base LM, one after the other.

    Args:
        embeddings: of the export's folder.
        image: whatever the processor takes.
        instruction: for the image.
        server: its address, up to /v1.

    Returns:
        `{"text": str, "router_prompts": {expert: str}, "expert_texts": {expert: str}}`.
    """
    processor = embeddings.processor
    Prompt = sys.modules[type(processor).__module__].Prompt  # prompts are worded by the code that came with it
    image_embeds = embeddings.encode(image)
    router_prompts, expert_texts = {}, {}
    for name in processor.experts:
        embeds = embeddings(image_embeds, Prompt.router(name, instruction))
        written = ask(server, "router", embeds, ROUTER_MAX_NEW_TOKENS)
        router_prompts[name] = written or processor.expert_instructions[name]
    for name, router_prompt in router_prompts.items():
        prompt = Prompt.for_expert(name, router_prompt, processor.expert_instructions[name])
        expert_texts[name] = ask(server, name, embeddings(image_embeds, prompt))
    text = ask(server, "base", embeddings(image_embeds, Prompt.rewrite(instruction, expert_texts)))
    return {"text": text, "router_prompts": router_prompts, "expert_texts": expert_texts}


def ask(server: str, model: str, embeds: torch.Tensor, max_tokens: int = MAX_NEW_TOKENS) -> str:
    """What an adapter writes after a prompt of embeddings, greedily.

    Args:
        server: its address, up to /v1.
        model: the adapter's name; "base" is the base LM.
        embeds: `[tokens, hidden_size]`.
        max_tokens: the most that it may write.
    """
    buffer = io.BytesIO()
    torch.save(embeds.contiguous(), buffer)  # the format that vLLM asks for; nothing is unpickled here
    encoded = base64.b64encode(buffer.getvalue()).decode()
    body = {"model": model, "prompt_embeds": encoded, "max_tokens": max_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{server}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["text"].strip()


def _read_tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor of a checkpoint, without the others."""
    index = folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else "model.safetensors"
    with safe_open(folder / file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--text", default="Describe the image.", help="the instruction")
    parser.add_argument("--server", default="http://localhost:8000/v1", help="where `sh serve.sh` answers")
    arguments = parser.parse_args(argv)
    embeddings = PromptEmbeddings(Path(__file__).resolve().parent)
    for image in arguments.images:
        prediction = caption(embeddings, image, arguments.text, arguments.server)
        print(json.dumps({"image": image, **prediction}), flush=True)


if __name__ == "__main__":
    main()
