"""Whether all variants say the same: the same tokens, and the same scores behind them up to rounding.

Greedy decoding turns a difference of rounding into another token only where two tokens score the same. So where tokens
differ, the scores of both at that place are compared: a difference within `TOLERANCES` is a tie and no error.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from .names import ONE_AFTER_ANOTHER, PLAIN_SEARCH, RSMOE
from .peers import DECODERS, Decoder, Texts, decoder, one_after_another
from .results import Equality
from .workbench import Sequences, Workbench, end_tokens, expert_sequences, router_sequences, until_end, without_padding


# Of the largest score, by the type of the LLM's weights: float32 sums of another order differ by about 1e-6 of it.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
IMAGES = 2  # on which equality is checked
REFERENCE, ONE_PASS = "all in one batch", "one pass without a cache"


# ---- variants of the full model


def in_one_batch(bench: Workbench, inputs: Any) -> Texts:
    """Router and experts of all images, as `generate` does it."""
    outputs = bench.full_of(inputs)(return_dict_in_generate=True)
    return Texts(until_end(bench, outputs.router_prompts), until_end(bench, outputs.expert_sequences))


def image_by_image(bench: Workbench, inputs: Any) -> Texts:
    """Each image in its own call."""
    texts = Texts()
    for i in range(len(inputs["input_ids"])):
        of_image = in_one_batch(bench, {name: value[i : i + 1] for name, value in inputs.items()})
        texts.router += of_image.router
        texts.experts += of_image.experts
    return texts


@torch.no_grad()
def from_features(bench: Workbench, inputs: Any) -> Texts:
    """From what `encode_image` made of the images, as cached features are used."""
    inputs = dict(inputs)
    return in_one_batch(bench, {**inputs, "image_embeds": bench.model.encode_image(inputs.pop("pixel_values"))})


# By name: from the processor's inputs to texts; all of them must be those of the first.
VARIANTS: dict[str, Callable[[Workbench, Any], Texts]] = {
    REFERENCE: in_one_batch,
    ONE_AFTER_ANOTHER: one_after_another,
    "image by image": image_by_image,
    "from image features": from_features,
    PLAIN_SEARCH: lambda bench, inputs: in_one_batch(bench.without_kernels(), inputs),
}


# ---- comparing


class Compared(NamedTuple):
    """How many texts were compared, how many go apart at a tie, and what is wrong, in words."""

    texts: int
    ties: int
    differences: list[str]


class Judge:
    """Tells ties from errors, by the model's own scores of the reference's text in one pass without a cache."""

    def __init__(self, bench: Workbench):
        self.decoder = Decoder(bench)
        self.tolerance = TOLERANCES.get(bench.model.lm_head.weight.dtype, TOLERANCES[torch.float32])
        self.end = end_tokens(bench)[0]

    def compare(self, sequences: Sequences, reference: list[list[int]], texts: list[list[int]], kind: str) -> Compared:
        """Texts after these sequences against the reference's; `kind` names them in words."""
        if len(reference) != len(texts):
            return Compared(len(reference), 0, [f"{len(texts)} texts instead of {len(reference)}"])
        ties, differences = 0, []
        for i, (right, text) in enumerate(zip(reference, texts)):
            pairs = list(zip_longest(right, text, fillvalue=self.end))
            place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
            if place is None:
                continue
            gap = self.gap(sequences.select([i]), right[:place], list(pairs[place]))
            if abs(gap) <= self.tolerance:
                ties += 1
            else:
                differences.append(
                    f"{kind} {i} ({sequences.experts[i]}): token {place} is {pairs[place][1]} instead of "
                    f"{pairs[place][0]}, which scores {gap:.1e} more"
                )
        return Compared(len(reference), ties, differences)

    def gap(self, sequence: Sequences, before: list[int], tokens: list[int]) -> float:
        """How much the first of two tokens scores above the second after `before`, relative to the largest score."""
        new = torch.tensor([[*before, tokens[0]]], device=sequence.embeds.device)
        scores = self.decoder.logits(sequence, new)[0, -1]  # [vocab]
        return ((scores[tokens[0]] - scores[tokens[1]]) / scores.abs().max()).item()


def check(bench: Workbench) -> list[Equality]:
    """Every variant of the full model and every decoder of the experts' sequences, against the first of its kind."""
    inputs, judge = bench.inputs(IMAGES, expert_inputs=True), Judge(bench)
    names = [*VARIANTS, ONE_PASS, *DECODERS]

    def report(name: str) -> None:
        bench.progress(name, names.index(name), len(names))

    report(REFERENCE)
    reference = VARIANTS[REFERENCE](bench, inputs)
    templates = without_padding(inputs, "template_prompt")
    prompts = [written or template for written, template in zip(reference.router, templates, strict=True)]
    requests, sequences = router_sequences(bench, inputs), expert_sequences(bench, inputs, prompts)
    results = []
    for name in list(VARIANTS)[1:]:
        report(name)
        texts = VARIANTS[name](bench, inputs)
        routers = judge.compare(requests, reference.router, texts.router, "router")
        # Under another prompt an expert may say something else.
        same = [i for i, (right, prompt) in enumerate(zip(reference.router, texts.router)) if right == prompt]
        right, written = ([of.experts[i] for i in same if i < len(of.experts)] for of in (reference, texts))
        experts = judge.compare(sequences.select(same), right, written, "expert") if same else Compared(0, 0, [])
        results.append(_equality(name, REFERENCE, routers, experts))
    report(ONE_PASS)
    routers = _one_pass(bench, judge, requests, reference.router, "router")
    experts = _one_pass(bench, judge, sequences, reference.experts, "expert")
    results.append(_equality(ONE_PASS, REFERENCE, routers, experts))
    one_image = sequences.select(list(range(len(bench.processor.experts))))
    report(RSMOE)
    new = decoder(bench, RSMOE).generate(one_image)
    for name in list(DECODERS)[1:]:
        report(name)
        results.append(_check_decoder(bench, judge, one_image, new, name))
    return results


def _one_pass(bench: Workbench, judge: Judge, sequences: Sequences, texts: list[list[int]], kind: str) -> Compared:
    """The reference's tokens against the highest scores of a pass over all of them, which needs no cache."""
    forbidden = list(bench.model.generation_config.suppress_tokens or [])
    if kind == "router":  # a prompt that ended before its limit ended with the token that ends it
        texts = [text + [judge.end] * (len(text) < bench.router_tokens) for text in texts]
    else:  # texts have a set length: they may not end
        forbidden += end_tokens(bench)
    best = []
    for i, text in enumerate(texts):
        new = torch.tensor([text], device=sequences.embeds.device)
        scores = judge.decoder.logits(sequences.select([i]), new)[0]  # [tokens, vocab]
        scores[:, forbidden] = -torch.inf
        best.append(scores.argmax(-1).tolist())
    return judge.compare(sequences, texts, best, kind)


def _check_decoder(bench: Workbench, judge: Judge, sequences: Sequences, new: torch.Tensor, name: str) -> Equality:
    """A decoder's tokens against `new` `[sequences, new]` of the first one, and its scores of those."""
    other = decoder(bench, name)
    compared = judge.compare(sequences, new.tolist(), other.generate(sequences).tolist(), "sequence")
    scores = decoder(bench, RSMOE).logits(sequences, new)
    far = ((other.logits(sequences, new) - scores).abs().max() / scores.abs().max()).item()
    if not far <= judge.tolerance:
        compared.differences.append(
            f"scores of the same tokens differ by {far:.1e} of the largest, more than {judge.tolerance:.0e}"
        )
    return {**_equality(name, RSMOE, compared), "logits": far}


def _equality(name: str, against: str, *compared: Compared) -> Equality:
    differences = [difference for one in compared for difference in one.differences]
    texts, ties = sum(one.texts for one in compared), sum(one.ties for one in compared)
    return {"name": name, "against": against, "texts": texts, "ties": ties, "differences": differences}
