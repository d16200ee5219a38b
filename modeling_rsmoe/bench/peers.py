"""Other ways to the same texts, on the same weights: one call after another, PEFT's mixed batch, LLMs with an expert
merged in.

The decoders here all go on from the same prompts (`workbench.Sequences`) and must write the same tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from .names import BASE, MERGED, ONE_BY_ONE, PEFT, RSMOE, TRANSFORMERS
from .workbench import Sequences, Workbench, until_end, with_prompts, without_padding


@dataclass
class Texts:
    """What router and experts wrote, tokens of `[images x experts]` texts each."""

    router: list[list[int]] = field(default_factory=list)
    experts: list[list[int]] = field(default_factory=list)


@torch.no_grad()
def one_after_another(bench: Workbench, inputs: Any) -> Texts:
    """Image by image and expert by expert: the router's prompt, then the expert's text, each in its own call.

    What a plain program does; it is not made slow: every image goes through the ViT once.
    """
    model, texts = bench.model, Texts()
    router_lengths = {"max_new_tokens": bench.router_tokens, "do_sample": False, "num_beams": 1}

    def write(sequence: list[int], lengths: dict[str, Any], **image: Any) -> list[int]:
        ids = torch.tensor([sequence], device=model.device)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), **image, **lengths, **bench.search)
        return until_end(bench, written[:, ids.shape[1] :])[0]

    for i in range(len(inputs["input_ids"])):
        of_image = {name: value[i : i + 1] for name, value in inputs.items()}
        image = {"image_embeds": model.encode_image(of_image["pixel_values"])}
        names = ("qformer_input_ids", "qformer_attention_mask")
        requests, templates = (without_padding(of_image, kind) for kind in ("router", "template_prompt"))
        prompts = []
        for request, template in zip(requests, templates, strict=True):
            texts.router.append(write(request, router_lengths, **image, **{name: of_image[name] for name in names}))
            prompts.append(texts.router[-1] or template)
        for e, sequence in enumerate(with_prompts(bench, of_image, prompts)):
            qformer = {name: of_image[f"expert_{name}"][..., e] for name in names}
            texts.experts.append(write(sequence, bench.lengths, **image, **qformer))
    return texts


# ---- decoders of the experts' sequences


class Decoder:
    """RS-MoE: all sequences in one batch, each under its adapter."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.model: Any = bench.model
        self.search = bench.search

    def adapters(self, sequences: Sequences) -> dict[str, Any]:
        """Arguments of the model that choose the adapters."""
        return {"adapter_ids": sequences.adapter_ids}

    @torch.no_grad()
    def generate(self, sequences: Sequences, **lengths) -> torch.Tensor:
        """New tokens `[sequences, new]`."""
        prompt = {"inputs_embeds": sequences.embeds, "attention_mask": sequences.mask}
        arguments = {**self.bench.lengths, **self.search, **lengths}
        return self.model.generate(**prompt, **self.adapters(sequences), **arguments)

    @torch.no_grad()
    def logits(self, sequences: Sequences, new: torch.Tensor) -> torch.Tensor:
        """Scores of each of the tokens `new` `[sequences, new]` after those before it: `[sequences, new, vocab]`."""
        embeds = torch.cat([sequences.embeds, self.bench.model.get_input_embeddings()(new[:, :-1])], dim=1)
        mask = torch.cat([sequences.mask, torch.ones_like(new[:, :-1])], dim=1)
        return self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=new.shape[1],
            **self.adapters(sequences),
        ).logits


class BaseLM(Decoder):
    """The same sequences by the base LM, none of them under an adapter."""

    def adapters(self, sequences: Sequences) -> dict[str, Any]:
        return {"adapter_ids": torch.zeros_like(sequences.adapter_ids)}


class PlainLM(Decoder):
    """A causal LM of transformers: by default the base LM's weights, no experts at all."""

    def __init__(self, bench: Workbench, llm: Any = None):
        super().__init__(bench)
        self.model = (llm or cast(Any, bench.model.plain_llm())).to(bench.model.device)
        self.search = {}

    def adapters(self, sequences: Sequences) -> dict[str, Any]:
        return {}


class Peft(PlainLM):
    """PEFT's batch of several adapters (`adapter_names`): the same experts as LoRA adapters of the same LLM."""

    def __init__(self, bench: Workbench):
        from peft import PeftModel

        from ..hub.adapters import save_peft

        super().__init__(bench)
        first, *others = dict.fromkeys(bench.processor.experts)
        with TemporaryDirectory() as folder:
            for name in (first, *others):
                save_peft(bench.model, name, Path(folder) / name)
            self.model = PeftModel.from_pretrained(self.model, str(Path(folder) / first), adapter_name=first)
            for name in others:
                self.model.load_adapter(str(Path(folder) / name), adapter_name=name)
        self.model.eval()

    def adapters(self, sequences: Sequences) -> dict[str, Any]:
        return {"adapter_names": sequences.experts}


class Split(Decoder):
    """The sequences in groups, one call after another."""

    def groups(self, sequences: Sequences) -> Iterator[tuple[Decoder, Sequences, list[int]]]:
        """Who decodes which sequences; and their places."""
        raise NotImplementedError

    def generate(self, sequences: Sequences, **lengths) -> torch.Tensor:
        return self._joined(sequences, lambda decoder, group, places: decoder.generate(group, **lengths))

    def logits(self, sequences: Sequences, new: torch.Tensor) -> torch.Tensor:
        return self._joined(sequences, lambda decoder, group, places: decoder.logits(group, new[places]))

    def _joined(self, sequences: Sequences, run: Callable[[Decoder, Sequences, list[int]], torch.Tensor]):
        order: list[int] = []
        outputs = []
        for decoder, group, places in self.groups(sequences):
            order += places
            outputs.append(run(decoder, group, places))
        return torch.cat(outputs)[torch.tensor(order).argsort()]


class OneByOne(Split):
    """Each sequence in its own call, without padding."""

    def groups(self, sequences: Sequences) -> Iterator[tuple[Decoder, Sequences, list[int]]]:
        for i in range(len(sequences)):
            one, start = sequences.select([i]), int(sequences.mask[i].argmax())
            one.embeds, one.mask = one.embeds[:, start:], one.mask[:, start:]
            yield Decoder(self.bench), one, [i]


class Merged(Split):
    """An LLM for each expert (its weights merged into the base LM), one after the other over its sequences."""

    def __init__(self, bench: Workbench):
        super().__init__(bench)
        self.llms = {name: PlainLM(bench, bench.model.merged_llm(name)) for name in bench.processor.experts}

    def groups(self, sequences: Sequences) -> Iterator[tuple[Decoder, Sequences, list[int]]]:
        for name, llm in self.llms.items():
            places = [i for i, expert in enumerate(sequences.experts) if expert == name]
            if places:
                yield llm, sequences.select(places), places


# Who must write the same tokens from the same sequences; the first is what the others are compared with.
DECODERS: dict[str, type[Decoder]] = {RSMOE: Decoder, ONE_BY_ONE: OneByOne, PEFT: Peft, MERGED: Merged}
OTHERS: dict[str, type[Decoder]] = {BASE: BaseLM, TRANSFORMERS: PlainLM}


def decoder(bench: Workbench, name: str) -> Decoder:
    """The bench's decoder of that name, built when it is first needed."""
    if name not in bench.decoders:
        bench.decoders[name] = {**DECODERS, **OTHERS}[name](bench)
    return bench.decoders[name]
