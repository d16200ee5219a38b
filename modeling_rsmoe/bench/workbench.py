"""The model on the bench: its pictures, and its calls with a set number of new tokens.

Texts do not matter here, only their lengths, so that pictures may be made ones. The router's prompts end where the
router ends them: that is part of what is measured, and whoever else asks the router gets the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image


if TYPE_CHECKING:
    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

SIDE = 256  # of a made picture, as of most aerial datasets


@dataclass
class Workbench:
    """A loaded checkpoint and how it is run.

    Attributes:
        tokens: new tokens of every caption and part, exactly. router_tokens: of a router's prompt, at most.
        pictures: that captions are made of; where more are asked for they come again.
    """

    model: "RSMoEForConditionalGeneration"
    processor: "RSMoEProcessor"
    folder: Path
    tokens: int = 24
    router_tokens: int = 24
    pictures: list[Image.Image] = field(default_factory=lambda: made_pictures(8))

    @property
    def lengths(self) -> dict[str, Any]:
        """Arguments of `generate` for greedy texts of exactly so many tokens."""
        return {"min_new_tokens": self.tokens, "max_new_tokens": self.tokens, "do_sample": False, "num_beams": 1}

    @property
    def fusions(self) -> list[str]:
        """Those that the model has."""
        return ["concat", "rewrite"] + (["rerank"] if self.model.model.reranker is not None else [])

    def some(self, images: int) -> list[Image.Image]:
        return [self.pictures[i % len(self.pictures)] for i in range(images)]

    def inputs(self, images: int, expert_inputs: bool) -> Any:
        """What the processor makes of so many pictures, on the model's device."""
        from ..prompting_rsmoe import DEFAULT_INSTRUCTION

        made = self.processor(
            images=self.some(images),
            text=[DEFAULT_INSTRUCTION] * images,
            expert_inputs=expert_inputs,
            return_tensors="pt",
        )
        return made.to(self.model.device, self.model.dtype)

    def block(self, images: int = 1) -> Callable[[], Any]:
        """From pictures to the captions of the base LM alone."""
        return lambda: self.model.generate(**self.inputs(images, False), **self.lengths)

    def full(self, images: int = 1, router: str = "generated", fusion: str = "concat") -> Callable[[], Any]:
        """From pictures to the captions of the whole path."""
        return lambda: self.full_of(self.inputs(images, True), router, fusion)()

    def full_of(self, inputs: Any, router: str = "generated", fusion: str = "concat") -> Callable[..., Any]:
        """The same from what the processor made."""
        settings = {"router_mode": router, "fusion": fusion, "router_max_new_tokens": self.router_tokens}
        return lambda **more: self.model.generate(**inputs, **settings, **self.lengths, **more)


def modes(fusions: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The whole path's modes, router and fusion, by the name that tables give them."""
    routers = {"router": "generated", "template": "template"}
    return {f"full, {name}, {fusion}": (router, fusion) for fusion in fusions for name, router in routers.items()}


def made_pictures(count: int, side: int = SIDE) -> list[Image.Image]:
    """Fields, roads and roofs: smooth areas and edges, as aerial images have them."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        fields = generator.integers(40, 200, (8, 8, 3)).repeat(side // 8, 0).repeat(side // 8, 1)
        pixels = fields + generator.normal(0, 6, (*fields.shape[:2], 1))
        road = int(generator.integers(side // 4, side // 2))
        pixels[:, road : road + side // 32] = 150
        for row, column in generator.integers(0, side - side // 10, (12, 2)):
            pixels[row : row + side // 12, column : column + side // 16] = generator.integers(120, 250, 3)
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return pictures


def encoded(picture: Image.Image) -> bytes:
    """A picture as a JPEG file's bytes."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


# ---- rows


@dataclass
class Rows:
    """Rows of the experts of some images, ready to be decoded by any causal LM of the same embeddings.

    Attributes:
        embeds: [rows, tokens, hidden_size], padded on the left. mask: [rows, tokens].
        readers: [rows]: who reads each row, as of `RSMoEModel.get_adapter_ids`. names: the same by expert.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    readers: torch.Tensor
    names: list[str]

    def of(self, index: torch.Tensor | list[int]) -> "Rows":
        index = torch.as_tensor(index, device=self.readers.device)
        return Rows(self.embeds[index], self.mask[index], self.readers[index], [self.names[i] for i in index.tolist()])

    def __len__(self) -> int:
        return len(self.names)


@torch.inference_mode()
def router_rows(bench: Workbench, inputs: Any) -> Rows:
    """The router's row for each expert of each image: [images x experts] rows.

    Args:
        inputs: of the processor, with expert inputs.
    """
    ids, experts = inputs["router_input_ids"].flatten(0, 1), inputs["router_input_ids"].shape[1]
    asked = [
        inputs[name].repeat_interleave(experts, dim=0) for name in ("qformer_input_ids", "qformer_attention_mask")
    ]
    return _rows(bench, inputs, without_padding(ids, pad_token(bench)), *asked)


@torch.inference_mode()
def expert_rows(bench: Workbench, inputs: Any, prompts: list[list[int]] | None = None) -> Rows:
    """Every expert's row of each image, under these prompts or its fixed one: [images x experts] rows."""
    pad = pad_token(bench)
    prompts = prompts or without_padding(inputs["template_prompt_ids"].flatten(0, 1), pad)
    ids = filled(inputs["expert_input_ids"].flatten(0, 1), prompts, bench.model.config.prompt_token_id, pad)
    asked = inputs["expert_qformer_input_ids"].flatten(0, 1)
    return _rows(bench, inputs, ids, asked, (asked != bench.model.config.qformer_config.pad_token_id).long())


def _rows(bench: Workbench, inputs: Any, ids: list[list[int]], asked: torch.Tensor, asked_mask: torch.Tensor) -> Rows:
    """Rows of these tokens, whose images are read under the Q-Former's instructions `asked`."""
    model: Any = bench.model
    pad = pad_token(bench)
    width, experts = max(map(len, ids)), len(bench.processor.experts)
    padded = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    features = model.get_image_features(
        image_embeds=model.encode_image(inputs["pixel_values"]).repeat_interleave(experts, dim=0),
        qformer_input_ids=asked,
        qformer_attention_mask=asked_mask,
        return_dict=True,
    ).pooler_output  # [rows, queries, hidden_size]
    embeds = model.get_input_embeddings()(padded)
    places = (padded == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(places, features.to(embeds.dtype))
    names = list(bench.processor.experts) * (len(ids) // experts)
    return Rows(embeds, mask, model.model.get_adapter_ids(padded), names)


def without_padding(rows: torch.Tensor, pad: int) -> list[list[int]]:
    return [[token for token in row if token != pad] for row in rows.tolist()]


def filled(rows: torch.Tensor, prompts: list[list[int]], prompt_token: int, pad: int) -> list[list[int]]:
    """Token ids of rows without padding, with a prompt in the place of each row's <prompt> token."""
    pairs = zip(without_padding(rows, pad), prompts, strict=True)
    return [[own for token in row for own in (said if token == prompt_token else [token])] for row, said in pairs]


def pad_token(bench: Workbench) -> int:
    """What the model's generation pads with."""
    return bench.model.generation_config.pad_token_id or 0


def ends(bench: Workbench) -> set[int]:
    """Tokens that end a text."""
    eos = bench.model.generation_config.eos_token_id
    return {pad_token(bench), *([eos] if isinstance(eos, int) else eos or [])}


def trimmed(tokens: torch.Tensor, stop: set[int]) -> list[list[int]]:
    """New tokens [rows, tokens] up to where each row ends."""
    return [row[: next((i for i, t in enumerate(row) if t in stop), len(row))] for row in tokens.tolist()]
