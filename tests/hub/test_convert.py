"""Converting: random InstructBLIP and Llama folders of transformers give the same numbers in our checkpoint."""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.cli import app
from modeling_rsmoe.hub import convert as converting
from modeling_rsmoe.hub.convert import convert, llm_tokenizer

from ..tiny import INSTRUCTIONS, QFORMER, TEXT, tiny_config, tiny_qformer_tokenizer, tiny_tokenizer


VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
}
WORDS = 259  # tokens of tiny_tokenizer
TEMPLATE = (
    "{% for message in messages %}{{ 'U:' + (message['content'] if message['content'] is string else '<image>' + "
    "message['content'][-1]['text']) }}{% endfor %}{% if add_generation_prompt %}{{ ' A:' }}{% endif %}"
)
LAVIS = {  # transformers' names -> LAVIS's, as its own state dicts have them
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding": "visual_encoder.patch_embed.proj",
    "vision_model.post_layernorm": "ln_vision",
    "vision_model.encoder.layers": "visual_encoder.blocks",
    "layer_norm": "norm",
    "self_attn.projection": "attn.proj",
    "self_attn.": "attn.",
    "qformer.embeddings.layernorm": "Qformer.bert.embeddings.LayerNorm",
    "qformer.": "Qformer.bert.",
    "attention.attention.": "attention.self.",
    "language_projection": "llm_proj",
    "language_model.": "llm_model.",
}


@dataclass
class Sources:
    settings: Path
    instructblip: Path
    llm: Path  # of InstructBLIP's width
    other: Path  # a wider one, tied


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        for parameter in (p for name, p in model.named_parameters() if "norm" in name and name.endswith("weight")):
            parameter.add_(1)
    return model.eval()


def write_settings(folder: Path, text: dict) -> Path:
    """What hub_configs has for each size."""
    vision = {"model_type": "instructblip_vision_model", **VISION}
    ids = {"image_token_id": 259, "prompt_token_id": 260, "router_token_id": 261, "expert_token_ids": [262, 263, 264]}
    config = tiny_config(text_config=text, vision_config=vision, **ids)
    config.dtype = "float32"
    config.save_pretrained(folder)
    GenerationConfig(pad_token_id=0, eos_token_id=2, suppress_tokens=list(range(259, 265))).save_pretrained(folder)
    image_processor = {"image_processor_type": "BlipImageProcessor", "size": {"height": 28, "width": 28}}
    given = {"num_query_tokens": 4, "expert_instructions": INSTRUCTIONS, "image_processor": image_processor}
    (folder / "processor_config.json").write_text(json.dumps(given))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": WORDS + 1, "tie_word_embeddings": False}
    config = InstructBlipConfig(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=4, image_token_index=WORDS
    )
    theirs = randomised(InstructBlipForConditionalGeneration(config))
    theirs.save_pretrained(root / "instructblip", max_shard_size="20KB")
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 28, "width": 28}), tiny_tokenizer(), tiny_qformer_tokenizer(), 4
    )
    processor.save_pretrained(root / "instructblip")
    llm = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in text.items() if k != "model_type"}))
    llm.load_state_dict(theirs.language_model.state_dict())
    llm.save_pretrained(root / "llm", max_shard_size="20KB")
    processor.tokenizer.save_pretrained(root / "llm")
    wide = {**TEXT, "hidden_size": 48, "vocab_size": WORDS + 5}  # a padded table
    other = randomised(LlamaForCausalLM(LlamaConfig(**{k: v for k, v in wide.items() if k != "model_type"})))
    other.save_pretrained(root / "other")
    tiny_tokenizer().save_pretrained(root / "other")
    write_settings(root / "settings", {**TEXT, "tie_word_embeddings": False})
    write_settings(root / "wide", {**wide, "vocab_size": 265})
    return Sources(root / "settings", root / "instructblip", root / "llm", root / "other")


def load(folder: Path) -> RSMoEForConditionalGeneration:
    model, info = RSMoEForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def rows() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    words = torch.randint(3, 250, (3, 6))
    return {
        "input_ids": torch.cat([torch.full((3, 4), WORDS), words], 1),
        "attention_mask": torch.ones(3, 10, dtype=torch.long),
        "pixel_values": torch.randn(3, 3, 28, 28),
        "qformer_input_ids": torch.randint(5, 60, (3, 7)),
        "qformer_attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7]),
    }


def check_equal(folder: Path, sources: Sources) -> None:
    """ViT features, Q-Former outputs and logits of our checkpoint are InstructBLIP's."""
    theirs, ours = InstructBlipForConditionalGeneration.from_pretrained(sources.instructblip).eval(), load(folder)
    inputs = rows()
    qformer = {name: inputs[name] for name in ("qformer_input_ids", "qformer_attention_mask")}
    with torch.no_grad():
        vision = theirs.vision_model(inputs["pixel_values"]).last_hidden_state
        embeds = theirs.query_tokens.expand(3, -1, -1)
        mask = torch.cat([torch.ones(3, 4), inputs["qformer_attention_mask"]], 1)
        states = theirs.qformer(
            input_ids=inputs["qformer_input_ids"],
            attention_mask=mask,
            query_embeds=embeds,
            encoder_hidden_states=vision,
        ).last_hidden_state[:, :4]
        logits = theirs(**inputs).logits
        assert min(tensor.abs().max() for tensor in (vision, states, logits)) > 0.5
        torch.testing.assert_close(ours.encode_image(inputs["pixel_values"]), vision, atol=1e-5, rtol=1e-5)
        found = ours.model.encoder.query_states(inputs["pixel_values"], **qformer)
        torch.testing.assert_close(found, states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(**inputs).logits[..., : WORDS + 1], logits, atol=1e-5, rtol=1e-5)
        for reader in ours.model.adapters:  # router and experts start at the base LM
            again = ours(**inputs, adapter_ids=torch.full((3,), reader)).logits
            torch.testing.assert_close(again[..., : WORDS + 1], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("own_llm", [True, False])
def test_outputs_are_instructblips(sources, tmp_path, own_llm):
    folder = convert(sources.settings, sources.instructblip, None if own_llm else sources.llm, tmp_path / "out")
    check_equal(folder, sources)
    assert (folder / "README.md").read_text() == "a card"


def test_full_experts_are_copies(sources, tmp_path):
    settings = Path(shutil.copytree(sources.settings, tmp_path / "settings"))
    config = json.loads((settings / "config.json").read_text())
    config["expert_config"]["expert_type"] = "full"
    (settings / "config.json").write_text(json.dumps(config))
    check_equal(convert(settings, sources.instructblip, sources.llm, tmp_path / "out"), sources)


def to_lavis(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in state.items():
        for old, new in LAVIS.items():
            key = key.replace(old, new)
        if key.endswith("attn.qkv.bias"):
            q, k, v = value.chunk(3)
            found |= {key.replace("qkv.bias", "q_bias"): q.clone(), key.replace("qkv.bias", "v_bias"): v.clone()}
        else:
            found[key] = value.contiguous()
    return found | {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}


@pytest.fixture(scope="module")
def lavis(sources, tmp_path_factory) -> Sources:
    """The same weights as LAVIS names them (its ViT has no bias of k), without a config.json."""
    root = tmp_path_factory.mktemp("lavis")
    theirs = InstructBlipForConditionalGeneration.from_pretrained(sources.instructblip)
    for layer in theirs.vision_model.encoder.layers:
        layer.self_attn.qkv.bias.data.chunk(3)[1].zero_()
    theirs.save_pretrained(root / "theirs")
    state = to_lavis({key: value for key, value in theirs.state_dict().items() if "language_model" not in key})
    assert {"visual_encoder.blocks.0.attn.q_bias", "Qformer.bert.encoder.layer.0.attention.self.query.weight"} <= set(
        state
    )
    assert {"llm_proj.weight", "visual_encoder.blocks.1.norm2.bias", "ln_vision.bias", "query_tokens"} <= set(state)
    (root / "lavis").mkdir()
    save_file(state, root / "lavis" / "rsgpt.safetensors")
    shutil.copytree(sources.instructblip / "qformer_tokenizer", root / "lavis" / "qformer_tokenizer")
    return Sources(sources.settings, root / "theirs", sources.llm, root / "lavis")


def test_lavis_state_dict(lavis, tmp_path):
    check_equal(convert(lavis.settings, lavis.other, lavis.llm, tmp_path / "out"), lavis)


def test_another_llm(sources, tmp_path):
    """Its width differs, so the projection is new; its padded table is cut; added rows can be told apart."""
    folder = convert(sources.settings.with_name("wide"), sources.instructblip, sources.other, tmp_path / "out")
    ours, theirs = load(folder), AutoModelForCausalLM.from_pretrained(sources.other).eval()
    ids = torch.randint(3, 250, (2, 9))
    with torch.no_grad():
        expected = theirs(ids).logits[..., :WORDS]
        torch.testing.assert_close(ours(ids).logits[..., :WORDS], expected, atol=1e-5, rtol=1e-5)
    projection = ours.model.encoder.projection
    assert projection.weight.shape == (48, 16) and projection.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not projection.bias.any()
    table = ours.get_input_embeddings().weight
    own, added = table[:WORDS], table[WORDS:]
    assert torch.equal(own, theirs.get_input_embeddings().weight[:WORDS])
    assert (added - own.mean(0)).abs().max() < 0.01 and len({tuple(row.tolist()) for row in added}) == 6
    half = convert(
        sources.settings.with_name("wide"), sources.instructblip, sources.other, tmp_path / "half", dtype="bfloat16"
    )
    added = load_file(half / "model.safetensors")["model.language_model.embed_tokens.weight"][WORDS:]
    assert added.dtype == torch.bfloat16 and len({tuple(row.tolist()) for row in added}) == 6
    again = convert(sources.settings.with_name("wide"), sources.instructblip, sources.other, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_folder_is_an_ordinary_checkpoint(sources, checkpoint, tmp_path):
    """As save_pretrained writes one, code included; it goes through the whole path of generate."""
    folder = convert(sources.settings, sources.instructblip, sources.llm, tmp_path / "out", dtype="bfloat16")
    files, expected = ({path.relative_to(root) for path in root.rglob("*")} for root in (folder, checkpoint))
    assert files == expected | {Path("README.md")}
    assert Path("qformer_tokenizer/config.json") in files
    config = json.loads((folder / "config.json").read_text())
    other = json.loads((checkpoint / "config.json").read_text())
    assert (config["architectures"], config["auto_map"]) == (other["architectures"], other["auto_map"])
    assert config["dtype"] == "bfloat16"
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    processor = RSMoEProcessor.from_pretrained(folder)
    assert processor.chat_template == TEMPLATE and processor.experts == ["theme", "object", "relation"]
    model = load(folder).float()
    inputs = processor(images=torch.zeros(3, 28, 28), text="what?", return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    assert set(processor.post_process_generation(outputs)[0]["expert_texts"]) == {"theme", "object", "relation"}


def test_one_shard_is_held_at_a_time(sources, tmp_path, monkeypatch):
    """Bytes of the tensors that were read and are still alive, when one more is read."""
    import weakref

    alive: dict[int, tuple[weakref.ref, int]] = {}
    peak = 0
    to = torch.Tensor.to

    def counted(self, *args, **kwargs):
        nonlocal peak
        copy = to(self, *args, **kwargs)
        if kwargs.get("copy"):
            alive[len(alive)] = (weakref.ref(copy), copy.nbytes)
            peak = max(peak, sum(size for reference, size in alive.values() if reference() is not None))
        return copy

    monkeypatch.setattr(torch.Tensor, "to", counted)
    folder = convert(sources.settings, sources.instructblip, sources.llm, tmp_path / "out", shard_bytes=40_000)
    monkeypatch.undo()
    sizes = [value.nbytes for file in folder.glob("*.safetensors") for value in load_file(file).values()]
    assert len(alive) == len(sizes)  # every tensor was counted
    assert sum(sizes) > 4 * 40_000 and 20_000 < peak <= 40_000 + max(sizes)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    check_equal(folder, sources)


# ---- tokenizers


def sentencepiece_like(folder: Path) -> Path:
    """As Vicuna's: a space is put before every text, and a first token."""
    letters = [*"abcdefghijklmnopqrstuvwxyz:?.", "▁"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "▁r", "▁ri"])}
    merges = [("▁", "r"), ("▁r", "i")]
    LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, pad_token="<unk>").save_pretrained(folder)
    return folder


def bytes_with_first_token(folder: Path) -> Path:
    """As Llama 3's: bytes, a first token by the post-processor, no padding token."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<|begin|>", "<|end|>", "<|pad|>"])
    first = ("<|begin|>", inner.token_to_id("<|begin|>"))
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[first])
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("write", "pad"), [(sentencepiece_like, 0), (bytes_with_first_token, 258)])
def test_tokenizers_add_nothing_to_a_piece_of_text(tmp_path, write, pad):
    source = write(tmp_path / "source")
    theirs = AutoTokenizer.from_pretrained(source)
    assert theirs("a")["input_ids"][0] == theirs.bos_token_id
    ours = llm_tokenizer(source, pad)
    ours.add_tokens(["<image>"], special_tokens=True)
    ours.save_pretrained(tmp_path / "saved")
    for tokenizer in (ours, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        ids = tokenizer("a<image> river")["input_ids"]
        assert ids == tokenizer("a")["input_ids"] + [len(tokenizer) - 1] + tokenizer(" river")["input_ids"]
        assert tokenizer.bos_token_id not in ids and tokenizer.decode(ids[2:]) == " river"
        assert tokenizer.pad_token_id == pad != tokenizer.eos_token_id
        assert tokenizer(f"{tokenizer.bos_token}a")["input_ids"][0] == tokenizer.bos_token_id


def test_padding_is_not_the_end(tmp_path):
    with pytest.raises(RSMoEError, match="pads with None and ends with"):
        llm_tokenizer(bytes_with_first_token(tmp_path), None)


# ---- bad input


def change(folder: Path, target: Path, **fields) -> Path:
    """A copy of a source's folder with other fields in its config.json; `part__field` for a field of a part."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    for name, value in fields.items():
        *parts, field = name.split("__")
        (config[parts[0]] if parts else config)[field] = value
    (target / "config.json").write_text(json.dumps(config))
    return target


def without(folder: Path, target: Path, key: str) -> Path:
    """A copy of a source's folder in one file, without one tensor."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    del state[key]
    save_file(state, target / "model.safetensors")
    return target


def refused(sources: Sources, tmp_path: Path, message: str, **changes) -> None:
    given = {"settings": sources.settings, "instructblip": sources.instructblip, "llm": sources.llm, **changes}
    target = tmp_path / "there" / "out"
    with pytest.raises(RSMoEError, match=message):
        convert(given["settings"], given["instructblip"], given["llm"], target)
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_wrong_kinds(sources, tmp_path):
    refused(sources, tmp_path, "is of model type 'llama', expected 'instructblip'", instructblip=sources.llm)
    copy = change(sources.instructblip, tmp_path / "copy")
    refused(sources, tmp_path, "is of model type 'instructblip', expected 'llama'", llm=copy)
    refused(sources, tmp_path, "text_config.head_dim 8; .* has 12", llm=sources.other)
    refused(
        sources,
        tmp_path,
        r"neither a checkpoint's folder \(with config.json\) nor one of .*rs-moe-7b",
        settings="rs-moe-9b",
    )
    refused(sources, tmp_path, "has no .*safetensors", llm=tmp_path)
    heads = change(sources.llm, tmp_path / "heads", num_key_value_heads=1)
    refused(sources, tmp_path, "text_config.num_key_value_heads 2; .* has 1", llm=heads)
    base = change(sources.llm, tmp_path / "base", rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    refused(sources, tmp_path, "text_config.rope_parameters", llm=base)
    queries = change(sources.instructblip, tmp_path / "queries", num_query_tokens=8)
    refused(sources, tmp_path, "num_query_tokens 4; .* has 8", instructblip=queries)
    eps = change(sources.instructblip, tmp_path / "eps", vision_config__layer_norm_eps=0.1)
    refused(sources, tmp_path, "vision_config.layer_norm_eps", instructblip=eps)


def test_missing_and_unfitting_tensors(sources, lavis, tmp_path):
    norm = without(sources.llm, tmp_path / "norm", "model.norm.weight")
    refused(sources, tmp_path, "lacks 1 weights, such as model.language_model.norm.weight", llm=norm)
    query = without(sources.instructblip, tmp_path / "query", "query_tokens")
    refused(sources, tmp_path, "lacks 1 weights, such as model.encoder.query_tokens.weight", instructblip=query)
    more = Path(shutil.copytree(sources.llm, tmp_path / "more"))
    save_file({"model.layers.2.input_layernorm.weight": torch.ones(32)}, more / "more.safetensors")
    refused(sources, tmp_path, r"layers.2.input_layernorm.weight has no place", llm=more)
    save_file({"model.norm.weight": torch.ones(31)}, norm / "norm.safetensors")
    refused(sources, tmp_path, r"has shape \[31\]; .*norm.weight needs \[32\]", llm=norm)
    save_file({"model.norm.weight": torch.full((32,), torch.nan)}, norm / "norm.safetensors")
    refused(sources, tmp_path, "model.norm.weight is not finite", llm=norm)
    half = without(lavis.other, tmp_path / "half", "visual_encoder.blocks.0.attn.v_bias")
    refused(sources, tmp_path, "its v_bias is missing", instructblip=half)
    cut = Path(shutil.copytree(sources.llm, tmp_path / "cut"))
    file = sorted(cut.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    refused(sources, tmp_path, "cannot be read as safetensors", llm=cut)


def test_pickles_are_not_opened(sources, tmp_path):
    file = tmp_path / "instruct_blip_vicuna7b.pth"
    file.write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    refused(sources, tmp_path, "is a pickle, .* as safetensors", instructblip=file)
    folder = Path(shutil.copytree(sources.llm, tmp_path / "bin", ignore=shutil.ignore_patterns("*.safetensors*")))
    (folder / "pytorch_model.bin").write_bytes(file.read_bytes())
    refused(sources, tmp_path, "pytorch_model.bin is a pickle", llm=folder)


def test_missing_tokenizers(sources, lavis, tmp_path):
    bare = Path(shutil.copytree(lavis.other, tmp_path / "bare", ignore=shutil.ignore_patterns("qformer_tokenizer")))
    refused(sources, tmp_path, "qformer_tokenizer is missing: put", instructblip=bare)
    llm = Path(shutil.copytree(sources.llm, tmp_path / "llm", ignore=shutil.ignore_patterns("tokenizer*")))
    refused(sources, tmp_path, "has no tokenizer that can be read", llm=llm)


def test_output_and_disk(sources, tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.mkdir()
    (there / "thesis.txt").touch()
    for overwrite, message in ((False, "exists: choose another folder"), (True, "is no RS-MoE checkpoint")):
        with pytest.raises(RSMoEError, match=message):
            convert(sources.settings, sources.instructblip, sources.llm, there, overwrite=overwrite)
    assert [path.name for path in there.iterdir()] == ["thesis.txt"]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
        refused(sources, tmp_path / "a", "no space for .*: it needs 0 MB")

    def full(tensors, path, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(converting, "save_file", full)
    refused(sources, tmp_path / "b", "No space left on device. Free some space")


def test_command(sources, tmp_path):
    command = ["convert", sources.settings, "--instructblip", sources.instructblip, "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, command), "--llm", str(sources.llm)], catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.startswith(f"{tmp_path / 'out'} ("), result.output
    check_equal(tmp_path / "out", sources)
    result = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert result.exit_code == 2 and "exists: choose another folder" in result.stderr
