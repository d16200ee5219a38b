"""Other ways to the same texts, on the same weights: one call after another, PEFT's mixed batch, LLMs with an expert merged in.

The decoders here all go on from the same rows (`workbench.Rows`) and must write the same tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast
from unittest.mock import patch

import torch
from transformers.generation import GenerationMixin

from .. import generation_rsmoe
from .names import MERGED, ONE_BY_ONE, OURS, PEFT
from .workbench import Rows, Workbench, ends, filled, pad_token, trimmed, without_padding


@dataclass
class Texts:
    """What router and experts wrote, [images x experts] rows of tokens."""

    router: list[list[int]]
    parts: list[list[int]]


@torch.no_grad()
def one_after_another(bench: Workbench, inputs: Any) -> Texts:
    """Image by image and expert by expert: the router's prompt, then the expert's part, each a call of its own.

    What a plain program does; it is not made slow: every image goes through the ViT once.
    """
    model, pad, stop = bench.model, pad_token(bench), ends(bench)
    prompt_token, texts = model.config.prompt_token_id, Texts([], [])
    images, experts = inputs["expert_input_ids"].shape[:2]

    def write(row: list[int], asked: torch.Tensor, image: torch.Tensor, lengths: Mapping[str, Any]) -> list[int]:
        ids = torch.tensor([row], device=model.device)
        asked = asked[asked != model.config.qformer_config.pad_token_id].unsqueeze(0)
        given = {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked), "image_embeds": image}
        sequences = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given, **lengths)
        return trimmed(sequences[:, ids.shape[1] :], stop)[0]

    of_router = {"max_new_tokens": bench.router_tokens, "do_sample": False, "num_beams": 1}
    for i in range(images):
        image = model.encode_image(inputs["pixel_values"][i : i + 1])
        rows = without_padding(inputs["router_input_ids"][i], pad)
        fixed = without_padding(inputs["template_prompt_ids"][i], pad)
        for e in range(experts):
            prompt = write(rows[e], inputs["qformer_input_ids"][i], image, of_router)
            texts.router.append(prompt)
            row = filled(inputs["expert_input_ids"][i, e : e + 1], [prompt or fixed[e]], prompt_token, pad)[0]
            texts.parts.append(write(row, inputs["expert_qformer_input_ids"][i, e], image, bench.lengths))
    return texts


@contextmanager
def plain_search(model: Any) -> Iterator[None]:
    """Within, the model's `generate` is transformers' own search over stock linear layers, a step for each token: nothing of `decoding_rsmoe`, no lookup."""
    own = partial(GenerationMixin._sample, model)
    with (
        patch.object(model, "_sample", own),
        patch.object(generation_rsmoe, "fast_products", lambda *_: nullcontext()),
        patch.object(model, "_is_plain_greedy", lambda kwargs: False),
    ):
        yield


# ---- decoders of the experts' rows


class Decoder(Protocol):
    """Writes on from rows."""

    def generate(self, rows: Rows) -> torch.Tensor:
        """New tokens [rows, new]."""

    def logits(self, rows: Rows, new: torch.Tensor) -> torch.Tensor:
        """Scores of each of the tokens `new` [rows, new] after those before it: [rows, new, vocab]."""


def _arguments(rows: Rows) -> dict[str, torch.Tensor]:
    return {"inputs_embeds": rows.embeds, "attention_mask": rows.mask}


class Ours:
    """All rows in one batch, each read by its expert."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.model: Any = bench.model

    def readers(self, rows: Rows) -> dict[str, Any]:
        return {"adapter_ids": rows.readers}

    @torch.no_grad()
    def generate(self, rows: Rows, **more) -> torch.Tensor:
        return self.model.generate(**_arguments(rows), **self.readers(rows), **{**self.bench.lengths, **more})

    @torch.no_grad()
    def logits(self, rows: Rows, new: torch.Tensor) -> torch.Tensor:
        count = new.shape[1]
        embeds = torch.cat([rows.embeds, self.bench.model.get_input_embeddings()(new[:, :-1])], dim=1)
        mask = torch.cat([rows.mask, torch.ones_like(new[:, :-1])], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        outputs = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            logits_to_keep=count,
            **self.readers(rows),
        )
        return outputs.logits


class OneByOne(Ours):
    """The same rows, each in a call of its own, without padding."""

    def generate(self, rows: Rows, **more) -> torch.Tensor:
        return torch.cat([super(OneByOne, self).generate(one, **more) for one in self._each(rows)])

    def logits(self, rows: Rows, new: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._each(rows), new.split(1), strict=True)
        return torch.cat([super(OneByOne, self).logits(one, own) for one, own in pairs])

    @staticmethod
    def _each(rows: Rows) -> list[Rows]:
        found = []
        for i in range(len(rows)):
            one, start = rows.of([i]), int(rows.mask[i].argmax())
            found.append(Rows(one.embeds[:, start:], one.mask[:, start:], one.readers, one.names))
        return found


class Block(Ours):
    """The same rows read by the base LM, none of them by an expert."""

    def readers(self, rows: Rows) -> dict[str, Any]:
        return {"adapter_ids": torch.zeros_like(rows.readers)}


class Plain(Ours):
    """transformers' own causal LM with the base LM's weights: no experts at all."""

    def __init__(self, bench: Workbench, llm: Any = None):
        super().__init__(bench)
        self.model = (llm or cast(Any, bench.model.plain_llm())).to(bench.model.device)

    def readers(self, rows: Rows) -> dict[str, Any]:
        return {}


class Peft(Ours):
    """PEFT's batch of several adapters (`adapter_names`): the same experts as LoRA adapters of the same LLM."""

    def __init__(self, bench: Workbench):
        from peft import PeftModel

        from ..hub.adapters import save_peft

        super().__init__(bench)
        llm = cast(Any, bench.model.plain_llm()).to(bench.model.device)
        names = list(dict.fromkeys(bench.processor.experts))
        with TemporaryDirectory() as folder:
            for name in names:
                save_peft(bench.model, name, Path(folder) / name)
            self.model = PeftModel.from_pretrained(llm, str(Path(folder) / names[0]), adapter_name=names[0])
            for name in names[1:]:
                self.model.load_adapter(str(Path(folder) / name), adapter_name=name)
        self.model.eval()

    def readers(self, rows: Rows) -> dict[str, Any]:
        return {"adapter_names": rows.names}


class Merged(Ours):
    """A full LLM for each expert (its weights merged into the base LM), one after the other over that expert's rows."""

    def __init__(self, bench: Workbench):
        super().__init__(bench)
        self.llms = {name: Plain(bench, bench.model.merged_llm(name)) for name in bench.processor.experts}

    def generate(self, rows: Rows, **more) -> torch.Tensor:
        return self._by_expert(rows, lambda llm, own, index: llm.generate(own, **more))

    def logits(self, rows: Rows, new: torch.Tensor) -> torch.Tensor:
        return self._by_expert(rows, lambda llm, own, index: llm.logits(own, new[index]))

    def _by_expert(self, rows: Rows, run: Any) -> torch.Tensor:
        order, found = [], []
        for name, llm in self.llms.items():
            index = [i for i, own in enumerate(rows.names) if own == name]
            if index:
                order += index
                found.append(run(llm, rows.of(index), index))
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(found)[back]


# Who must write the same tokens from the same rows; the first is what the others are compared with.
DECODERS: dict[str, Any] = {OURS: Ours, ONE_BY_ONE: OneByOne, PEFT: Peft, MERGED: Merged}


class Decoders:
    """The decoders of one bench, each made when it is first asked for."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        self._made: dict[str, Decoder] = {}

    def __getitem__(self, name: str) -> Decoder:
        if name not in self._made:
            self._made[name] = DECODERS[name](self.bench)
        return self._made[name]

    @cached_property
    def block(self) -> Block:
        return Block(self.bench)

    @cached_property
    def plain(self) -> Plain:
        return Plain(self.bench)

    def __iter__(self):
        return iter(DECODERS)
