"""Equality holds for all variants, and a variant that says something else is found and named."""

from dataclasses import replace

import pytest
import torch

from modeling_rsmoe.bench import equality, peers
from modeling_rsmoe.bench.equality import Judge, check
from modeling_rsmoe.bench.names import MERGED, ONE_AFTER_ANOTHER, PEFT, RSMOE
from modeling_rsmoe.bench.peers import Decoder, Texts
from modeling_rsmoe.bench.workbench import expert_sequences


def by_name(bench) -> dict[str, equality.Equality]:
    return {one["name"]: one for one in check(replace(bench))}


def test_all_say_the_same(bench):
    found = by_name(bench)
    assert {name: one["differences"] for name, one in found.items()} == dict.fromkeys(found, [])
    assert {ONE_AFTER_ANOTHER, PEFT, MERGED, equality.ONE_PASS} <= found.keys()
    assert found[ONE_AFTER_ANOTHER]["texts"] == 12 and found[PEFT]["texts"] == 3
    assert found[PEFT]["logits"] < 1e-4  # computed in another order, on some processors to the very same numbers


def test_texts_depend_on_the_experts(bench):
    """Else equality would say nothing: every expert writes something else from the same prompt."""
    sequences = expert_sequences(bench, bench.inputs(1, expert_inputs=True)).select([0, 0, 0, 0])
    sequences.adapter_ids = torch.arange(2, 6) % 5
    texts = [tuple(text) for text in Decoder(bench).generate(sequences).tolist()]
    assert len(set(texts)) == 4


def swapped(bench, inputs) -> Texts:
    """Two experts of the first image change places."""
    texts = equality.in_one_batch(bench, inputs)
    texts.experts[:2] = texts.experts[1::-1]
    return texts


class WrongAdapters(Decoder):
    """Every sequence is read by the expert after its own."""

    def adapters(self, sequences):
        return {"adapter_ids": (sequences.adapter_ids - 1) % 3 + 2}


class WrongScores(Decoder):
    """The right tokens by chance: its scores are others."""

    def logits(self, sequences, new):
        return super().logits(sequences, new) * 1.01


@pytest.mark.slow
@pytest.mark.parametrize("name, wrong", [("swapped", swapped), ("few", lambda *_: Texts([], []))])
def test_a_wrong_variant_is_found(bench, monkeypatch, name, wrong):
    monkeypatch.setitem(equality.VARIANTS, name, wrong)
    found = by_name(bench)
    assert [variant for variant, one in found.items() if one["differences"]] == [name]
    said = found[name]["differences"][0]
    assert said.startswith("expert 0 (theme): token ") if name == "swapped" else said == "0 texts instead of 6"


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong, said", [(WrongAdapters, "sequence 0 (theme): token "), (WrongScores, "scores of the same")]
)
def test_a_wrong_decoder_is_found(bench, monkeypatch, wrong, said):
    monkeypatch.setitem(peers.DECODERS, "wrong", wrong)
    found = by_name(bench)
    assert [variant for variant, one in found.items() if one["differences"]] == ["wrong"]
    assert found["wrong"]["differences"][0].startswith(said) and found["wrong"]["against"] == RSMOE


def test_a_wrong_cache_is_found_by_one_pass(bench, monkeypatch):
    """All variants may share a fault; a pass over the whole text without a cache does not."""
    right = equality.in_one_batch

    def other_end(bench, inputs):
        texts = right(bench, inputs)
        return Texts(texts.router, [[*text[:-1], (text[-1] + 1) % 256 + 3] for text in texts.experts])

    monkeypatch.setattr(equality, "VARIANTS", {equality.REFERENCE: other_end, "the same": other_end})
    found = by_name(bench)
    assert found["the same"]["differences"] == [] and len(found[equality.ONE_PASS]["differences"]) == 6


def test_a_tie_is_no_difference(bench):
    """Where two tokens score the same, either may come; a token that scores less may not."""
    sequence = expert_sequences(bench, bench.inputs(1, expert_inputs=True)).select([0])
    judge = Judge(bench)
    best = Decoder(bench).generate(sequence)[0].tolist()
    other = (best[1] + 1) % 200 + 3
    assert judge.compare(sequence, [best], [[best[0], other, *best[2:]]], "sequence").ties == 0
    judge.tolerance = abs(judge.gap(sequence, best[:1], [best[1], other])) * 1.01
    assert judge.compare(sequence, [best], [[best[0], other, *best[2:]]], "sequence") == (1, 1, [])
    assert judge.compare(sequence, [best], [best], "sequence") == (1, 0, [])
