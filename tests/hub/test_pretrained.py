"""rs-moe-nano's pretrained modules equal independent readings of their sources; bad files are refused."""

import functools
import gc
import io
import sys

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub import pretrained
from modeling_rsmoe.hub.assemble import build
from modeling_rsmoe.hub.download import demo_image


TOLERANCE = 1e-4
TEXTS = [
    "Describe the image.",
    "There are 12345 trees, 3.14 pools and 2 x 7 courts in 1999",
    "Crème brûlée à São Tomé — naïve Ærøskøbing, Ελλάδα, Привет",
    "航空写真には川と橋があります。機場旁邊有停車場。",
    "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n",
    "  two  spaces\tand\na tab, don't we'll I'm\r\n🛰️ 🏞️",
    "",
]


@pytest.fixture(scope="module", autouse=True)
def one_gguf_reader():
    """A file's 98,000 tokens and merges take 2 s to read, and five readers here want them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        yield


@pytest.fixture(scope="module")
def nano():
    """The model and processor of rs-moe-nano before training: every pretrained module in its place."""
    yield build("rs-moe-nano", trained=False)
    gc.collect()


@pytest.fixture(scope="module")
def gguf_file(real_files):
    return next(iter(real_files["language_model"].values()))


@pytest.fixture(scope="module")
def gguf_reader(gguf_file):
    return pretrained.open_gguf(gguf_file)


# Names in a GGUF file -> names in a LlamaModel's layer.
LAYER = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
LAYER |= {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"}
LAYER |= {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
OTHER = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs lie side by side in a GGUF file's query and key weights, [heads x size, in]; here in two halves."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])  # [heads, half, which half, in]
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(weight.shape)


@pytest.fixture(scope="module")
def llama_reference(gguf_reader):
    """The LLM of the GGUF file, by gguf's dequantization and the file's settings, without transformers' reader."""
    keys = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length"}
    keys |= {"num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count"}
    keys |= {"num_key_value_heads": "attention.head_count_kv", "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    said = {name: gguf_reader.fields[f"llama.{key}"].contents() for name, key in keys.items()}
    rope = {"rope_type": "default", "rope_theta": gguf_reader.fields["llama.rope.freq_base"].contents()}
    state = {}
    for tensor in gguf_reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        *_, number, kind, _ = ["", *tensor.name.split(".")]  # blk.7.attn_k.weight
        if kind in ("attn_q", "attn_k"):
            heads = said["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
            values = rotary_halves(values, heads)
        state[OTHER.get(tensor.name) or f"layers.{number}.{LAYER[kind]}.weight"] = torch.tensor(values)
    vocab = len(state["embed_tokens.weight"])
    config = LlamaConfig(**said, rope_parameters=rope, vocab_size=vocab, tie_word_embeddings=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.model.load_state_dict(state)
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def onnx_session(real_files):
    """ONNX Runtime on the wheel's own graph, which here also gives the output of the 8th layer."""
    graph = onnx.load(real_files["vision_model"]["vit_s_focus.onnx"])
    last = [
        node
        for node in graph.graph.node
        if node.name.startswith("/backbone/encoder/layer.7/") and node.op_type == "Add"
    ][-1]
    following = [node.name for node in graph.graph.node if last.output[0] in node.input]
    assert any(name.startswith("/backbone/encoder/layer.8/norm1") for name in following)  # it is the layer's output
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, last.output[0]


@pytest.fixture(scope="module")
def bert(nano, real_files):
    config = nano[0].config.qformer_config.to_dict()
    fields = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "layer_norm_eps",
    )
    bert = BertModel(BertConfig(**{field: config[field] for field in fields}))
    missing = bert.load_state_dict(load_file(real_files["qformer"]["model.safetensors"]), strict=False).missing_keys
    assert not missing
    return bert.eval()


@pytest.mark.wheels
class TestLanguageModel:
    def test_weights_and_logits_equal_the_gguf_files(self, nano, llama_reference):
        model = nano[0]
        ours, theirs = model.model.language_model.state_dict(), llama_reference.model.state_dict()
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name][: len(weight)], weight, rtol=0, atol=TOLERANCE, msg=name)
        input_ids = torch.tensor([[1, 4093, 198, 28783, 260, 2443, 30, 2, 198, 1, 520, 9531, 198]])
        with torch.no_grad():
            logits = model(input_ids=input_ids).logits[..., : llama_reference.config.vocab_size]
            torch.testing.assert_close(logits, llama_reference(input_ids).logits, rtol=0, atol=TOLERANCE)

    def test_a_tensor_read_by_hand(self, nano, gguf_reader):
        """Q4_1 by definition: blocks of 32 weights, each half a scale, a minimum, 16 bytes of two 4-bit numbers."""
        tensor = next(tensor for tensor in gguf_reader.tensors if tensor.name == "blk.7.attn_k.weight")
        blocks = np.frombuffer(
            tensor.data.tobytes(), dtype=[("scale", "<f2"), ("minimum", "<f2"), ("packed", "u1", 16)]
        )
        numbers = np.concatenate([blocks["packed"] & 15, blocks["packed"] >> 4], axis=1)  # [blocks, 32]
        values = numbers * blocks["scale"].astype(np.float32)[:, None] + blocks["minimum"].astype(np.float32)[:, None]
        ours = nano[0].model.language_model.layers[7].self_attn.k_proj.weight
        np.testing.assert_allclose(
            ours.detach().numpy(), rotary_halves(values.reshape(192, 576), 3), rtol=0, atol=TOLERANCE
        )

    def test_added_tokens_start_near_the_mean_and_differ(self, nano):
        table = nano[0].model.language_model.embed_tokens.weight.detach()
        old, new = table[:49152], table[49152:]
        assert len(new) == 6
        assert (new - old.mean(0)).abs().max() < 0.01 * old.std()
        assert len(torch.unique(new, dim=0)) == 6
        assert nano[0].lm_head.weight.data_ptr() == nano[0].model.language_model.embed_tokens.weight.data_ptr()

    def test_tokenizer_equals_transformers_gguf_reader(self, nano, gguf_file):
        ours = nano[1].tokenizer
        theirs = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
        for text in TEXTS:
            assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
            assert ours.decode(ours(text)["input_ids"]) == text
        assert ours("2024")["input_ids"] == ours.convert_tokens_to_ids(list("2024"))  # each digit by itself

    def test_special_tokens(self, nano):
        tokenizer = nano[1].tokenizer
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer("<|im_end|>\n<image>")["input_ids"] == [2, 198, 49152]
        assert len(tokenizer) == 49158


@pytest.mark.wheels
class TestVisionModel:
    def test_layer_8_equals_onnx_runtime(self, nano, onnx_session):
        model, processor = nano
        session, output = onnx_session
        pixels = processor.image_processor(Image.open(demo_image()), return_tensors="pt")["pixel_values"]
        expected = session.run([output], {session.get_inputs()[0].name: pixels.numpy()})[0]
        with torch.no_grad():
            ours = model.model.encoder.vision_model(pixels, output_hidden_states=True).hidden_states[8]
        assert ours.shape == (1, 257, 384)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=TOLERANCE)

    def test_the_final_norm_has_no_weights_of_its_own(self, nano):
        vision_model = nano[0].model.encoder.vision_model
        with torch.no_grad():
            out = vision_model(torch.randn(1, 3, 28, 28), output_hidden_states=True)
        expected = torch.nn.functional.layer_norm(out.hidden_states[8], (384,), eps=vision_model.config.layer_norm_eps)
        torch.testing.assert_close(out.last_hidden_state, expected)


@pytest.mark.wheels
class TestQFormer:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float64, 1e-6)])
    def test_text_passes_as_through_bert(self, nano, bert, dtype, tolerance):
        """In float64 only the one sum that conversion rounds to float32 (position + token type) is left."""
        model, processor = nano
        texts = ["Describe the image.", "Where are the planes, the terminal and the runway relative to each other?"]
        inputs = processor.qformer_tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        qformer = model.model.encoder.qformer
        try:
            with torch.no_grad():
                ours = qformer.to(dtype)(**inputs).last_hidden_state
                theirs = bert.to(dtype)(**inputs).last_hidden_state
        finally:
            qformer.float()
        real_tokens = inputs["attention_mask"].bool()
        torch.testing.assert_close(ours[real_tokens], theirs[real_tokens], rtol=0, atol=tolerance)

    def test_queries_start_with_the_same_feed_forward(self, nano):
        for layer in nano[0].model.encoder.qformer.encoder.layer:
            for text, query in ((layer.intermediate, layer.intermediate_query), (layer.output, layer.output_query)):
                assert all(torch.equal(a, b) for a, b in zip(text.parameters(), query.parameters(), strict=True))

    def test_tokenizer_is_berts(self, nano, real_files):
        ours = nano[1].qformer_tokenizer
        # BERT-uncased's published ids
        assert ours("Describe the image.")["input_ids"] == [101, 6235, 1996, 3746, 1012, 102]
        assert ours("Café 12345")["input_ids"] == [101, 7668, 13138, 19961, 102]
        theirs = AutoTokenizer.from_pretrained(real_files["qformer"]["tokenizer.json"].parent)
        for text in TEXTS:
            assert ours(text)["input_ids"] == theirs(text)["input_ids"][: ours.model_max_length], text
        assert len(ours("tree " * 300)["input_ids"]) == 302  # the file would cut it


class TestTinySources:
    """Without the real wheels: the tiny stand-ins come out as they went in."""

    def test_each_module_from_both_sources(self, tiny_sources):
        for folder, read in (
            ("wheel", {"llm": _gguf, "vit": pretrained.dinov2_from_onnx}),
            ("hub", {"llm": pretrained.llama_from_safetensors, "vit": pretrained.dinov2_from_safetensors}),
        ):
            data, hub = tiny_sources.hub.parent / "data", tiny_sources.hub / "tiny"
            llm = data / "llm.gguf" if folder == "wheel" else hub / "language_model" / "model.safetensors"
            vit = data / "vit.onnx" if folder == "wheel" else hub / "vision_model" / "model.safetensors"
            _assert_same(read["llm"](llm), tiny_sources.llm.state_dict())
            expected = {
                name: v for name, v in tiny_sources.vit.state_dict().items() if not name.startswith("encoder.layer.2.")
            }
            expected["layernorm.weight"], expected["layernorm.bias"] = torch.ones(16), torch.zeros(16)
            _assert_same(read["vit"](vit, 2), expected)

    @pytest.mark.parametrize(
        ("name", "read"),
        [
            ("a.gguf", pretrained.open_gguf),
            ("a.onnx", lambda path: pretrained.dinov2_from_onnx(path, 2)),
            ("a.safetensors", pretrained.qformer_from_bert),
            ("a.safetensors", pretrained.llama_from_safetensors),
        ],
    )
    def test_a_file_of_another_kind_is_refused(self, tmp_path, name, read):
        (tmp_path / name).write_bytes(b"\xff\xfe not a model at all, whatever its name says" * 3)
        with pytest.raises(RSMoEError, match=f"{name} cannot be read"):
            read(tmp_path / name)

    def test_another_onnx_model_is_refused(self, tmp_path):
        graph = onnx.helper.make_graph(
            [], "other", [], [], [onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")]
        )
        onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
        with pytest.raises(RSMoEError, match="not the expected model"):
            pretrained.dinov2_from_onnx(tmp_path / "other.onnx", 2)

    @pytest.mark.parametrize(
        ("module", "read"),
        [("gguf", pretrained.open_gguf), ("onnx", lambda path: pretrained.dinov2_from_onnx(path, 2))],
    )
    def test_a_missing_reader_is_named(self, tmp_path, monkeypatch, module, read):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RSMoEError, match=rf'needs {module}, .*: pip install "rsmoe\[assemble\]"'):
            read(tmp_path / "file")

    def test_weights_that_do_not_fit_are_named(self, tmp_path):
        linear = torch.nn.Linear(2, 3)
        with pytest.raises(
            RSMoEError, match=r"the source of head does not fit: weight \[3, 4\] \(the model has \[3, 2\]\)"
        ):
            pretrained.load_module(linear, {"weight": torch.zeros(3, 4)}, "head")
        with pytest.raises(RSMoEError, match=r"does not fit: gate \[1\] \(the model has none\)"):
            pretrained.load_module(linear, {**linear.state_dict(), "gate": torch.zeros(1)}, "head")
        with pytest.raises(RSMoEError, match="lacks bias"):
            pretrained.load_module(linear, {"weight": torch.ones(3, 2)}, "head")
        assert pretrained.load_module(linear, {"weight": torch.ones(3, 2)}, "head", new="bias") == ["weight"]
        assert torch.equal(linear.weight, torch.ones(3, 2))

    def test_nothing_is_unpickled(self, tmp_path):
        torch.save({"weight": torch.zeros(1)}, buffer := io.BytesIO())
        (tmp_path / "model.safetensors").write_bytes(buffer.getvalue())
        with pytest.raises(RSMoEError, match="cannot be read as safetensors"):
            pretrained.llama_from_safetensors(tmp_path / "model.safetensors")

    def test_half_precision_becomes_float32(self, tmp_path):
        save_file({"model.norm.weight": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
        assert pretrained.llama_from_safetensors(tmp_path / "m.safetensors")["norm.weight"].dtype == torch.float32


def _gguf(path):
    return pretrained.llama_from_gguf(path)[0]


def _assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
