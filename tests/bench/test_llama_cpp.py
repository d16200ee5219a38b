"""What goes into llama.cpp and how long it writes; the library itself is not needed here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from modeling_rsmoe.bench import speed
from modeling_rsmoe.bench.llama_cpp import check_file, decode, file_facts, llama, write_as
from modeling_rsmoe.bench.names import BASE, RSMOE
from modeling_rsmoe.errors_rsmoe import RSMoEError


@pytest.fixture
def gguf(tmp_path):
    """A file with settings of every kind and weights of two."""
    file = tmp_path / "small.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_name("small")
    writer.add_block_count(2)
    writer.add_rope_freq_base(1e5)
    writer.add_file_type(3)
    writer.add_token_list(["a", "b"])
    weights = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = quantize(weights, GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("norm.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_bytes_by_type(gguf):
    assert file_facts(gguf) == {"types": {"Q4_1": 4 * 64 * 20 // 32, "F32": 64 * 4}, "bytes": 160 + 256}


@pytest.mark.parametrize(
    ("weight_type", "matrix", "error"), [("F32", 1024, 0), ("F16", 512, 2e-3), ("Q8_0", 272, 2e-2)]
)
def test_written_in_another_type_it_is_the_same_model(gguf, tmp_path, weight_type, matrix, error):
    target = tmp_path / "other.gguf"
    write_as(gguf, target, weight_type)
    facts = file_facts(target)
    assert facts["bytes"] == matrix + 256 and set(facts["types"]) == {weight_type, "F32"}
    old, new = GGUFReader(gguf), GGUFReader(target)
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert before.name == after.name and list(before.shape) == list(after.shape)
        numbers = [dequantize(tensor.data, tensor.tensor_type) for tensor in (before, after)]
        np.testing.assert_allclose(*numbers, atol=error, rtol=0)
    kept = {name: field.contents() for name, field in new.fields.items() if not name.startswith("GGUF.")}
    expected = {name: field.contents() for name, field in old.fields.items() if not name.startswith("GGUF.")}
    del expected["general.file_type"]  # of other weights
    assert kept == expected


class FakeLlama:
    """As llama-cpp-python's class, as far as it is used; its last call's prompt and the tokens that were taken."""

    def __init__(self, path, **settings):
        if not str(path).endswith(".gguf"):
            raise ValueError("no GGUF")
        self.settings, self.calls, self.empty = settings, [], False

    def reset(self):
        self.empty = True

    def tokenize(self, text, add_bos):
        assert add_bos is False
        return list(range(len(text.split())))

    def generate(self, prompt, temp, reset):
        assert temp == 0 and reset and self.empty
        self.empty = False
        self.calls.append([len(prompt), 0])
        while True:
            self.calls[-1][1] += 1
            yield 7


@pytest.fixture
def library(monkeypatch):
    module = SimpleNamespace(Llama=FakeLlama)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return module


def test_prompt_and_text_have_the_given_lengths(library, gguf):
    model = llama(gguf, threads=3, context=40)
    assert decode(model, 20, 5)() == [7] * 5 and model.calls == [[20, 5]]
    assert model.settings["n_threads"] == model.settings["n_threads_batch"] == 3 and model.settings["n_ctx"] == 40


def test_variants_of_llama_cpp(library, bench, gguf):
    group, facts = speed.against_llama_cpp(bench, gguf)
    kinds = ["the file (F32)", "F32", "F16", "Q8_0"]  # most of this small file is float32
    names = [f"llama.cpp, {kind}" for kind in kinds]
    who = [f"{name}, {n}" for n in ("1 token", "4 tokens") for name in ("transformers", BASE, RSMOE, *names)]
    assert set(who) == group["times"].keys()
    assert group["base"] == "transformers, 4 tokens" and list(facts) == names


def test_what_is_missing_is_said(gguf, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(RSMoEError, match=r"--gguf needs llama-cpp-python \(.*\): pip install llama-cpp-python"):
        check_file(gguf)
    with pytest.raises(RSMoEError, match="there is no file .*absent.gguf"):
        check_file(tmp_path / "absent.gguf")


@pytest.mark.parametrize("content", [b"", b"x" * 8, b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16])
def test_a_file_that_is_no_gguf(library, tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(RSMoEError, match="x.gguf is no GGUF of an LLM"):
        llama(tmp_path / "x.gguf", 1, 8)


def test_an_llm_that_llama_cpp_does_not_know(library, gguf):
    with pytest.raises(RSMoEError, match=r"llama.cpp cannot load .*other.file \(no GGUF\)"):
        llama(gguf.rename(gguf.with_name("other.file")), 1, 8)
