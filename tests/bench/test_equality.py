"""Equality holds for all contenders, and a contender that says something else is found and named."""

import pytest
import torch

from modeling_rsmoe.bench import equality, peers
from modeling_rsmoe.bench.equality import Judge, check
from modeling_rsmoe.bench.names import MERGED, ONE_AFTER_ANOTHER, OURS, PEFT
from modeling_rsmoe.bench.peers import Decoders, Ours, Texts
from modeling_rsmoe.bench.workbench import expert_rows


def quiet(name, share):
    """Nobody is told."""


def by_name(bench) -> dict[str, equality.Equality]:
    return {one["name"]: one for one in check(bench, Decoders(bench), 2, quiet)}


def test_all_say_the_same(bench):
    found = by_name(bench)
    assert {name: one["differences"] for name, one in found.items()} == dict.fromkeys(found, [])
    assert {ONE_AFTER_ANOTHER, PEFT, MERGED, equality.ONE_PASS} <= found.keys()
    assert found[ONE_AFTER_ANOTHER]["rows"] == 12 and found[PEFT]["rows"] == 3
    assert 0 < found[PEFT]["logits"] < 1e-4  # computed in another order: not the very same code


def test_texts_depend_on_the_experts(bench):
    """Else equality would say nothing: every expert writes something else from the same row."""
    rows = expert_rows(bench, bench.inputs(1, expert_inputs=True)).of([0, 0, 0, 0])
    rows.readers = torch.arange(2, 6) % 5
    texts = [tuple(row) for row in Ours(bench).generate(rows).tolist()]
    assert len(set(texts)) == 4


def swapped(bench, inputs) -> Texts:
    """Two experts of the first image change places."""
    texts = equality.in_one_batch(bench, inputs)
    texts.parts[:2] = texts.parts[1::-1]
    return texts


class WrongReaders(Ours):
    """Every row is read by the expert after its own."""

    def readers(self, rows):
        return {"adapter_ids": (rows.readers - 1) % 3 + 2}


class WrongScores(Ours):
    """The right tokens by chance: its scores are others."""

    def logits(self, rows, new):
        return super().logits(rows, new) * 1.01


@pytest.mark.parametrize("name, wrong", [("swapped", swapped), ("few", lambda *_: Texts([], []))])
def test_a_wrong_variant_is_found(bench, monkeypatch, name, wrong):
    monkeypatch.setitem(equality.VARIANTS, name, wrong)
    found = by_name(bench)
    assert [own for own, one in found.items() if one["differences"]] == [name]
    said = found[name]["differences"][0]
    assert said.startswith("part 0 (theme): token ") if name == "swapped" else said == "0 texts instead of 6"


@pytest.mark.parametrize("wrong, said", [(WrongReaders, "row 0 (theme): token "), (WrongScores, "scores of the same")])
def test_a_wrong_decoder_is_found(bench, monkeypatch, wrong, said):
    monkeypatch.setitem(peers.DECODERS, "wrong", wrong)
    found = by_name(bench)
    assert [own for own, one in found.items() if one["differences"]] == ["wrong"]
    assert found["wrong"]["differences"][0].startswith(said) and found["wrong"]["against"] == OURS


def test_a_wrong_cache_is_found_by_one_pass(bench, monkeypatch):
    """All variants may share a fault; a pass over the whole text without a cache does not."""
    right = equality.in_one_batch

    def other_end(bench, inputs):
        texts = right(bench, inputs)
        return Texts(texts.router, [[*part[:-1], (part[-1] + 1) % 256 + 3] for part in texts.parts])

    monkeypatch.setattr(equality, "VARIANTS", {equality.REFERENCE: other_end, "the same": other_end})
    found = by_name(bench)
    assert found["the same"]["differences"] == [] and len(found[equality.ONE_PASS]["differences"]) == 6


def test_a_tie_is_no_difference(bench):
    """Where two tokens score the same, either may come; a token that scores less may not."""
    rows = expert_rows(bench, bench.inputs(1, expert_inputs=True)).of([0])
    judge = Judge(bench)
    best = Ours(bench).generate(rows)[0].tolist()
    other = (best[1] + 1) % 200 + 3
    assert judge.compare(rows, [best], [[best[0], other, *best[2:]]], "row")[0] == 0
    judge.tolerance = abs(judge.gap(rows, best[:1], [best[1], other])) * 1.01
    assert judge.compare(rows, [best], [[best[0], other, *best[2:]]], "row") == (1, [])
    assert judge.compare(rows, [best], [best], "row") == (0, [])
