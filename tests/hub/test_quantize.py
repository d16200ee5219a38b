"""Smaller weights: what is quantised and what stays, experts that still act, round trips, devices, compiling."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import CompileConfig, TorchAoConfig
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEModel
from modeling_rsmoe.adapters_rsmoe import is_hooked
from modeling_rsmoe.cli import options
from modeling_rsmoe.hub.quantize import (
    DTYPES,
    NOT_CONVERTED,
    loading_arguments,
    quantization_config,
    save_checkpoint,
    weight_bytes,
)
from modeling_rsmoe.inference.checkpoint import load as load_checkpoint
from modeling_rsmoe.training.settings import Recipe
from modeling_rsmoe.training.stages import load_start

from ..sequences import rows
from ..tiny import tiny_config, tiny_model, tiny_processor


INT8 = ["int8", "int8-dynamic"]


@pytest.fixture(scope="module")
def folder(shared_checkpoint) -> Path:
    return shared_checkpoint(reranker_rank=4, reranker_buckets=32)


@pytest.fixture(scope="module")
def plain(folder):
    return RSMoEForConditionalGeneration.from_pretrained(folder)


def load(folder, dtype, **arguments):
    return RSMoEForConditionalGeneration.from_pretrained(folder, **loading_arguments(dtype, "cpu"), **arguments)


@torch.no_grad()
def logits(model, adapters=True) -> torch.Tensor:
    """Of the last token of rows of base LM, router and experts, or of the same rows read by the base LM."""
    inputs = rows()
    if not adapters:
        inputs["adapter_ids"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return model(**inputs).logits[:, -1].float()


def changed(model) -> torch.Tensor:
    """How much each row's adapter changes of what the base LM alone would say."""
    return (logits(model) - logits(model, adapters=False)).norm(dim=-1)


def check_like(model, plain, tolerance: float) -> None:
    """Each sequence's expert acts, nearly as in float32: on average, and in each beside what its expert changes.

    (Random weights: an expert changes much, and errors grow more from layer to layer than in a trained model.)
    """
    expected, found = logits(plain), logits(model)
    error = (found - expected).norm(dim=-1)
    assert error.mean() < tolerance * expected.norm(dim=-1).mean(), error / expected.norm(dim=-1)
    acts = changed(plain) > 0
    assert 3 <= acts.sum() < len(acts)
    assert torch.equal(changed(model) > 0, acts)
    assert (error[acts] < changed(plain)[acts] / 2).all()


def kinds(model) -> dict[str, str]:
    return {
        name: type(p).__name__ if "Int8" in type(p).__name__ else str(p.dtype) for name, p in model.named_parameters()
    }


def test_the_options_are_the_types_that_can_be_loaded():
    assert get_args(options.Dtype) == DTYPES


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_what_is_small_in_float32(dtype, folder, plain):
    model = load(folder, dtype)
    found = kinds(model)
    kept = {name for name, kind in found.items() if kind == "torch.float32"}
    parts = ("encoder.qformer.", "encoder.query_tokens.", "encoder.projection.", "lora_", "reranker.")
    assert kept == {name for name in found if any(part in name for part in parts)}
    assert {kind for name, kind in found.items() if name not in kept} == {f"torch.{dtype}"}
    check_like(model, plain, 0.1 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("dtype", INT8)
def test_int8(dtype, folder, plain):
    """Linear layers of ViT and base LM, nothing else."""
    model = load(folder, dtype)
    modules = dict(model.named_modules())
    for name, kind in kinds(model).items():
        linear = isinstance(modules[name.rpartition(".")[0]], nn.Linear) and name.endswith("weight")
        quantised = linear and (".vision_model." in name or ".language_model." in name)
        assert kind == ("Int8Tensor" if quantised else "torch.float32"), name
    check_like(model, plain, 0.2)


@pytest.mark.parametrize("dtype", INT8)
def test_int8_saved_and_loaded_again(dtype, folder, tmp_path, monkeypatch):
    model = load(folder, dtype)
    saved = save_checkpoint(model, tiny_processor(), tmp_path / "saved")
    kept = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kept <= {".json", ".jinja", ".safetensors", ".py", ".txt"}
    with safe_open(saved / "model.safetensors", "pt") as file:
        quantised = [key for key in file.keys() if key.endswith("_weight_qdata")]  # noqa: SIM118  # not a dict
        assert len(quantised) == 26  # 2 layers of 7 linear ones, 2 of 6
        assert len(json.loads(file.metadata()["tensor_names"])) == len(
            quantised
        )  # or loading a real one takes minutes
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    again = load_checkpoint(str(saved))
    assert kinds(again.model) == kinds(model)
    assert torch.equal(logits(again.model), logits(model))
    assert changed(again.model).max() > 0
    with pytest.raises(RSMoEError, match="are quantised; give --model with one of float weights"):
        load_start(saved, Recipe())
    with pytest.raises(RSMoEError, match="load RSMoEForConditionalGeneration, whose `.model` this is"):
        RSMoEModel.from_pretrained(saved)


def test_int8_without_our_settings(folder, plain):
    """transformers' own way, no module named: what must stay in float32 does, and experts act."""
    kind = type(quantization_config("int8").quant_type)
    model = RSMoEForConditionalGeneration.from_pretrained(folder, quantization_config=TorchAoConfig(kind()))
    found = kinds(model)
    assert not any(kind == "Int8Tensor" for name, kind in found.items() if "qformer" in name or "lm_head" in name)
    assert any(kind == "Int8Tensor" for kind in found.values())
    check_like(model, plain, 0.2)


def test_int8_generates_the_whole_path(folder):
    model, processor = load(folder, "int8"), tiny_processor()
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    inputs = processor(images=image, text="Describe.", return_tensors="pt")
    found = processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True))[0]
    assert (
        set(found["expert_texts"]) == {"theme", "object", "relation"} and len(set(found["expert_texts"].values())) == 3
    )


def test_float_weights_are_asked_for_where_they_are_needed(folder):
    model = load(folder, "int8")
    for needs_numbers in (model.plain_llm, lambda: model.merged_llm("theme")):
        with pytest.raises(RSMoEError, match="quantised: load a checkpoint of float weights"):
            needs_numbers()
    model.model.reset_adapters()  # low-rank weights only
    assert changed(model).max() == 0


def test_int8_of_full_experts(tmp_path):
    """Experts with layers of their own are as large as the base LM, and quantised like it; the router is not."""
    config = tiny_config(expert_config={"expert_type": "full"})
    tiny_model(config=config).save_pretrained(tmp_path)
    model = load(tmp_path, "int8")
    found = kinds(model)
    assert {kind for name, kind in found.items() if ".experts." in name and "_proj" in name} == {"Int8Tensor"}
    assert "Int8Tensor" not in {kind for name, kind in found.items() if ".router." in name}
    check_like(model, RSMoEForConditionalGeneration.from_pretrained(tmp_path), 0.2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_counted_bytes_are_those_of_a_loaded_model(dtype, folder):
    model = load(folder, dtype)
    real = 0
    for parameter in model.parameters():
        inner = (
            [getattr(parameter, name) for name in ("qdata", "scale", "zero_point")]
            if hasattr(parameter, "qdata")
            else [parameter]
        )
        real += sum(tensor.numel() * tensor.element_size() for tensor in inner if tensor is not None)
    assert weight_bytes(model.config, dtype, compute_dtype="float32") == real


# ---- quantisers that put modules of their own in the place of linear layers


class RoundedLinear(nn.Linear):
    """As of bitsandbytes: another module, which never saw our hooks."""

    def forward(self, x):
        return super().forward(x)


class RoundingConfig(QuantizationConfigMixin):
    def __init__(self, **kwargs):
        self.quant_method = "rounding"


class RoundingQuantizer(HfQuantizer):
    def _process_model_before_weight_loading(self, model, **kwargs):
        skipped = self.get_modules_to_not_convert(model, NOT_CONVERTED, model._keep_in_fp32_modules)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and not any(
                part in name for part in ("qformer", "projection", "reranker", *skipped)
            ):
                bias = module.bias is not None
                model.set_submodule(name, RoundedLinear(module.in_features, module.out_features, bias, device="meta"))

    def is_serializable(self):
        return False

    is_trainable = False


@pytest.fixture
def rounding():
    register_quantization_config("rounding")(RoundingConfig)
    register_quantizer("rounding")(RoundingQuantizer)
    yield RoundingConfig()
    del AUTO_QUANTIZATION_CONFIG_MAPPING["rounding"], AUTO_QUANTIZER_MAPPING["rounding"]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_replaced_modules_are_hooked_again(kind, rounding, tmp_path):
    tiny_model(config=tiny_config(expert_config={"expert_type": kind})).save_pretrained(tmp_path)
    plain = RSMoEForConditionalGeneration.from_pretrained(tmp_path)
    model, info = RSMoEForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=rounding, output_loading_info=True
    )
    assert not info["missing_keys"]
    linears = [module for module in model.model.language_model.layers.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 14 and all(type(module) is RoundedLinear and is_hooked(module) for module in linears)
    assert changed(plain).max() > 0 and torch.equal(logits(model), logits(plain))


def test_a_missing_library_and_a_wrong_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(RSMoEError, match=r'pip install "rsmoe\[quantize\]"'):
        quantization_config("int8")
    with pytest.raises(RSMoEError, match="'int3' is no quantisation; known are int8, int8-dynamic, nf4"):
        quantization_config("int3")
    with pytest.raises(RSMoEError, match="'int3' is no type of weights; known are float32"):
        loading_arguments("int3", "cpu")
    monkeypatch.setattr("modeling_rsmoe.hub.quantize.find_spec", lambda name: None)
    with pytest.raises(RSMoEError, match="pip install bitsandbytes"):
        loading_arguments("nf4", "cuda")


def test_settings_of_four_bits(monkeypatch):
    """On a GPU, where this was not run, and on a CPU."""
    monkeypatch.setattr("modeling_rsmoe.hub.quantize.find_spec", lambda name: object())
    for device, dtype in (("cuda", "bfloat16"), ("cpu", "float32")):
        arguments = loading_arguments("nf4", device)
        settings = arguments["quantization_config"]
        assert arguments["dtype"] == dtype and settings.bnb_4bit_compute_dtype is getattr(torch, dtype)
        assert settings.load_in_4bit and settings.bnb_4bit_quant_type == "nf4" and settings.bnb_4bit_use_double_quant
        assert settings.llm_int8_skip_modules == NOT_CONVERTED


def test_four_bits(folder, plain, tmp_path):
    """bitsandbytes has kernels for CPUs too; its modules take the place of linear layers, and are hooked again."""
    pytest.importorskip("bitsandbytes")
    model = load(folder, "nf4")
    linears = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(linears) == 26 and is_hooked(model.model.language_model.layers[0].self_attn.q_proj)
    assert torch.equal(changed(model) > 0, changed(plain) > 0)
    again = RSMoEForConditionalGeneration.from_pretrained(save_checkpoint(model, tiny_processor(), tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model))


# ---- where the weights are


@pytest.mark.parametrize(
    "arguments", [{"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}], ids=str
)
def test_device_maps(arguments, folder, plain):
    model = RSMoEForConditionalGeneration.from_pretrained(folder, **arguments)
    assert torch.equal(logits(model), logits(plain))


PARTS = ["encoder", "router", "experts", "reranker"]
PARTS += ["language_model.embed_tokens", "language_model.layers", "language_model.norm"]


def places(on_disk: str) -> dict[str, str]:
    modules = [*(f"model.{part}" for part in PARTS), "model.language_model.rotary_emb", "lm_head"]
    return {name: "disk" if name == f"model.{on_disk}" else "cpu" for name in modules}


def test_base_lm_on_disk(folder, plain, tmp_path):
    where = places("language_model.layers")
    model = RSMoEForConditionalGeneration.from_pretrained(folder, device_map=where, offload_folder=tmp_path)
    assert model.model.language_model.layers[0].mlp.up_proj.weight.is_meta
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("part", ["encoder", "router", "experts", "reranker"])
def test_parts_that_cannot_be_on_disk_are_refused(part, folder, tmp_path):
    with pytest.raises(RSMoEError, match=f"device_map offloads {part}.*may be on disk"):
        RSMoEForConditionalGeneration.from_pretrained(folder, device_map=places(part), offload_folder=tmp_path)


def test_attention_of_each_part(folder, plain):
    wanted = {"": "sdpa", "vision_config": "eager", "text_config": "eager"}
    model = RSMoEForConditionalGeneration.from_pretrained(folder, attn_implementation=wanted)
    found = model.model
    assert found.vision_model.config._attn_implementation == "eager"
    assert found.language_model.config._attn_implementation == "eager"
    assert found.encoder.qformer.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-4, rtol=1e-4)


# ---- compiling


@pytest.mark.slow
def test_compiled_decode_step_writes_the_same_tokens(plain):
    """Each step is one graph without a break, for all adapters; with a static cache its shapes do not change."""
    expected = plain.generate(**rows())
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    settings = CompileConfig(fullgraph=True, backend=backend, mode=None)
    settings._compile_all_devices = True  # transformers compiles on accelerators only, unless told
    found = plain.generate(**rows(), cache_implementation="static", compile_config=settings)
    assert torch.equal(found, expected) and expected.shape[1] > rows()["input_ids"].shape[1] + 3
    assert len(graphs) == 1
