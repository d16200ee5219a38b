"""Whether all that must say the same says the same: tokens, and the scores behind them up to rounding.

Greedy decoding turns a difference of rounding into another token only where two tokens score the same. So where tokens
differ, the scores of both at that place are looked at: a difference within `TOLERANCES` is a tie and no error.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NotRequired, TypedDict
from unittest.mock import patch

import torch

from .names import ONE_AFTER_ANOTHER, OURS, PLAIN_SEARCH
from .peers import DECODERS, Decoders, Ours, Texts, one_after_another, plain_search
from .timing import Tell
from .workbench import Rows, Workbench, ends, expert_rows, pad_token, router_rows, trimmed, without_padding


# Of the largest score, by the type of the LLM's weights: float32 sums of another order differ by about 1e-6 of it.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
REFERENCE = "all in one batch"


class Equality(TypedDict):
    """One contender against another."""

    name: str
    against: str
    rows: int  # texts that were compared
    ties: int  # of them, those that go apart where two tokens score the same
    differences: list[str]  # what is wrong, in words; empty where all is equal
    logits: NotRequired[float]  # the largest difference of scores, relative to the largest score


# ---- the whole path


def in_one_batch(bench: Workbench, inputs: Any) -> Texts:
    """Router and experts of all images, as `generate` does it."""
    said, stop = bench.full_of(inputs)(return_dict_in_generate=True), ends(bench)
    return Texts(trimmed(said.router_prompts.flatten(0, 1), stop), trimmed(said.expert_sequences.flatten(0, 1), stop))


def image_by_image(bench: Workbench, inputs: Any) -> Texts:
    texts = Texts([], [])
    for i in range(len(inputs["input_ids"])):
        own = in_one_batch(bench, {name: value[i : i + 1] for name, value in inputs.items()})
        texts.router += own.router
        texts.parts += own.parts
    return texts


@torch.no_grad()
def from_features(bench: Workbench, inputs: Any) -> Texts:
    """From what `encode_image` made of the pictures, as cached features are used."""
    given = {name: value for name, value in inputs.items() if name != "pixel_values"}
    return in_one_batch(bench, {**given, "image_embeds": bench.model.encode_image(inputs["pixel_values"])})


def stacked_each_step(bench: Workbench, inputs: Any) -> Texts:
    """The experts' weights put together at every step, as in training, not once for each `generate`."""
    with patch.object(bench.model.model.rows, "stacked_once", nullcontext):
        return in_one_batch(bench, inputs)


def by_plain_search(bench: Workbench, inputs: Any) -> Texts:
    with plain_search(bench.model):
        return in_one_batch(bench, inputs)


ONE_PASS = "one pass without a cache"
# name -> callable(bench, inputs of the processor) -> texts; all of them must be those of the first.
VARIANTS: dict[str, Callable[[Workbench, Any], Texts]] = {
    REFERENCE: in_one_batch,
    ONE_AFTER_ANOTHER: one_after_another,
    "image by image": image_by_image,
    "from image features": from_features,
    "experts stacked at every step": stacked_each_step,
    PLAIN_SEARCH: by_plain_search,
}


def check(bench: Workbench, decoders: Decoders, images: int, tell: Tell) -> list[Equality]:
    """Every variant of the whole path and every decoder of the experts' rows, against the first of its kind."""
    inputs, judge = bench.inputs(images, expert_inputs=True), Judge(bench)
    names = [*VARIANTS, ONE_PASS, *DECODERS]

    def told(name: str) -> None:
        tell(name, names.index(name) / len(names))

    told(REFERENCE)
    reference, found = VARIANTS[REFERENCE](bench, inputs), []
    fixed = without_padding(inputs["template_prompt_ids"].flatten(0, 1), pad_token(bench))
    prompts = [said or own for said, own in zip(reference.router, fixed, strict=True)]
    router, parts = router_rows(bench, inputs), expert_rows(bench, inputs, prompts)
    for name, variant in list(VARIANTS.items())[1:]:
        told(name)
        other = variant(bench, inputs)
        ties, problems = judge.compare(router, reference.router, other.router, "router")
        same = [i for i, (own, its) in enumerate(zip(reference.router, other.router)) if own == its]
        # A part under another prompt is another part.
        one, two = ([texts.parts[i] for i in same if i < len(texts.parts)] for texts in (reference, other))
        of_parts = judge.compare(parts.of(same), one, two, "part") if same else (0, [])
        compared = len(reference.router) + len(same)
        found.append(_equality(name, REFERENCE, compared, ties + of_parts[0], problems + of_parts[1]))
    told(ONE_PASS)
    found.append(_one_pass(bench, judge, (router, reference.router), (parts, reference.parts)))
    first = parts.of([i for i in range(len(parts)) if i < len(bench.processor.experts)])
    return found + _check_decoders(decoders, first, judge, told)


def _one_pass(bench: Workbench, judge: "Judge", *read: tuple[Rows, list[list[int]]]) -> Equality:
    """The reference's tokens against the highest scores of a pass over all of them, which needs no cache."""
    ties = 0
    problems: list[str] = []
    never = list(bench.model.generation_config.suppress_tokens or [])
    for kind, (rows, texts) in zip(("router", "part"), read, strict=True):
        if kind == "router":  # a prompt that ended before its limit ended with the token that ends it
            texts = [text + [judge.end] * (len(text) < bench.router_tokens) for text in texts]
        forbidden = [*never, *(ends(bench) if kind == "part" else ())]  # parts have a set length: they may not end
        best = []
        for i, text in enumerate(texts):
            scores = judge.ours.logits(rows.of([i]), torch.tensor([text], device=rows.embeds.device))[0]
            scores[:, forbidden] = -torch.inf
            best.append(scores.argmax(-1).tolist())
        more = judge.compare(rows, texts, best, kind)
        ties, problems = ties + more[0], problems + more[1]
    return _equality(ONE_PASS, REFERENCE, sum(len(rows) for rows, _ in read), ties, problems)


def _check_decoders(decoders: Decoders, rows: Rows, judge: "Judge", told: Callable[[str], None]) -> list[Equality]:
    told(OURS)
    new = decoders[OURS].generate(rows)
    found: list[Equality] = []
    texts, scores = new.tolist(), decoders[OURS].logits(rows, new)
    for name in list(DECODERS)[1:]:
        told(name)
        ties, problems = judge.compare(rows, texts, decoders[name].generate(rows).tolist(), "row")
        far = ((decoders[name].logits(rows, new) - scores).abs().max() / scores.abs().max()).item()
        if not far <= judge.tolerance:
            problems.append(
                f"scores of the same tokens differ by {far:.1e} of the largest, more than {judge.tolerance:.0e}"
            )
        found.append({**_equality(name, OURS, len(rows), ties, problems), "logits": far})
    return found


def _equality(name: str, against: str, rows: int, ties: int, problems: list[str]) -> Equality:
    return {"name": name, "against": against, "rows": rows, "ties": ties, "differences": problems}


class Judge:
    """Tells ties from errors, by the model's own scores of the reference's text in one pass without a cache."""

    def __init__(self, bench: Workbench):
        self.bench, self.ours = bench, Ours(bench)
        self.tolerance = TOLERANCES.get(bench.model.lm_head.weight.dtype, TOLERANCES[torch.float32])
        self.end = min(ends(bench) - {pad_token(bench)}, default=pad_token(bench))

    def compare(
        self, rows: Rows, reference: list[list[int]], other: list[list[int]], kind: str
    ) -> tuple[int, list[str]]:
        """How many texts go apart at a tie, and what else is wrong."""
        if len(reference) != len(other):
            return 0, [f"{len(other)} texts instead of {len(reference)}"]
        ties, problems = 0, []
        for i, (one, two) in enumerate(zip(reference, other)):
            if one == two:
                continue
            place = next((k for k, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
            tokens = [text[place] if place < len(text) else self.end for text in (one, two)]
            gap = self.gap(rows.of([i]), one[:place], tokens)
            if abs(gap) <= self.tolerance:
                ties += 1
            else:
                name = rows.names[i]
                problems.append(
                    f"{kind} {i} ({name}): token {place} is {tokens[1]} instead of {tokens[0]}, which scores {gap:.1e} more"
                )
        return ties, problems

    def gap(self, row: Rows, before: list[int], tokens: list[int]) -> float:
        """By how much the first of two tokens scores above the second after `before`, relative to the largest score."""
        new = torch.tensor([[*before, tokens[0]]], device=row.embeds.device)
        scores = self.ours.logits(row, new)[0, -1]  # [vocab]
        return ((scores[tokens[0]] - scores[tokens[1]]) / scores.abs().max()).item()
