"""Images and texts as prompt embeddings for a server of one LLM and many adapters. Stands alone beside its folders.

    python vllm_client.py tile.png [other.jpg ...] [--text "Describe the image."] [--server http://localhost:8000/v1]

`rsmoe export vllm` puts this file beside encoder/, processor/ and base/. Needs torch, transformers and safetensors, not
the rsmoe package: encoder and processor carry their code. Asks the router for each expert's prompt, the experts for
their parts and the base LM for the text, as `generate` does.
"""

import argparse
import base64
import io
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor


TABLE = "model.embed_tokens.weight"


class PromptEmbeddings:
    """The image-prefix step: a row's text, with the encoder's features of its image in the place of its image tokens."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.encoder: Any = AutoModel.from_pretrained(folder / "encoder", trust_remote_code=True).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder / "processor", trust_remote_code=True)
        self.table = _read(folder / "base", TABLE)  # [tokens, hidden_size]

    @torch.no_grad()
    def __call__(self, image: Any, text: str) -> torch.Tensor:
        """[tokens, hidden_size] of the user's `text` about `image`, up to where the answer begins.

        An expert's text begins with its token (`<object> How many planes?`), the router's with `<router> object: `; the
        Q-Former reads each under the instruction that it was trained with.
        """
        inputs = self.processor(images=image, text=text, expert_inputs=False, return_tensors="pt")
        ids = inputs["input_ids"][0]
        features = self.encoder(
            pixel_values=inputs["pixel_values"].to(self.encoder.dtype),
            qformer_input_ids=inputs["qformer_input_ids"],
            qformer_attention_mask=inputs["qformer_attention_mask"],
        )[0]  # [queries, hidden_size]
        embeds = self.table[ids].clone()
        embeds[ids == self.processor.image_token_id] = features.to(embeds)
        return embeds


def caption(embeddings: PromptEmbeddings, image: Any, text: str, server: str) -> dict[str, Any]:
    """Router, experts and base LM, one after the other: `{"text", "router_prompts", "parts"}`."""
    names = embeddings.processor.experts
    asked = {name: f"<router> {name}: {text}" for name in names}
    prompts = {
        name: ask(server, "router", embeddings(image, row), 24) or embeddings.processor.expert_instructions[name]
        for name, row in asked.items()
    }
    parts = {name: ask(server, name, embeddings(image, f"<{name}> {prompts[name]}")) for name in names}
    compose = text + "".join(f"\n{name}:{' ' + part if part else ''}" for name, part in parts.items())
    return {"text": ask(server, "base", embeddings(image, compose)), "router_prompts": prompts, "parts": parts}


def ask(server: str, model: str, embeds: torch.Tensor, max_tokens: int = 48) -> str:
    """What the adapter `model` ("base": the base LM) says after a prompt of embeddings, greedily."""
    buffer = io.BytesIO()
    torch.save(embeds.contiguous(), buffer)  # the format that vLLM asks for
    encoded = base64.b64encode(buffer.getvalue()).decode()
    body = {"model": model, "prompt_embeds": encoded, "max_tokens": max_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{server}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["text"].strip()


def _read(folder: Path, name: str) -> torch.Tensor:
    """One tensor of a checkpoint, without the others."""
    index = folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else "model.safetensors"
    with safe_open(folder / file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="files of images")
    parser.add_argument("--text", default="Describe the image.", help="the instruction")
    parser.add_argument("--server", default="http://localhost:8000/v1", help="where `sh serve.sh` answers")
    given = parser.parse_args(argv)
    embeddings = PromptEmbeddings(Path(__file__).resolve().parent)
    for image in given.images:
        print(json.dumps({"image": image, **caption(embeddings, image, given.text, given.server)}), flush=True)


if __name__ == "__main__":
    main()
